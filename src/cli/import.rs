//! `lodestone import`
use super::{exit::Exit, output::FormatArgs, paths::output_directory, progress::style, time::since};
use anyhow::Context;
use clap::ArgGroup;
use indicatif::ProgressBar;
use lodestone_core::units::UnixMillis;
use lodestone_dataset::import::{self, ImportOptions, Mapping, ShopFiles};
use std::path::PathBuf;

/// Converts product feeds and event exports of a shop to canonical items and events, and reports dropped rows with the
/// reason.
///
/// Reads CSV, TSV, JSON lines, XML and Parquet. Replaces items.parquet, and with --events also events.parquet. Items
/// that only events name are derived from them. See docs/feeds.md.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  lodestone import --mapping google-merchant-center --items feed.xml --mapping ga4 --events events.json.gz --out data
  lodestone import --mapping mapping.toml --events transactions.csv.zst --out data")]
#[command(group(ArgGroup::new("files").required(true).multiple(true).args(["events", "items"])))]
pub(crate) struct ImportArgs {
    #[command(flatten)]
    mapping: MappingArgs,
    /// The shop's events, such as its orders: .csv, .tsv, .txt, .jsonl, .json, .xml (also .gz, .zst) or .parquet. One
    /// row for each item of an event. May be given several times.
    #[arg(long, value_name = "FILE")]
    events: Vec<PathBuf>,
    /// The shop's items, in the same formats. One row for each item.
    #[arg(long, value_name = "FILE")]
    items: Option<PathBuf>,
    #[command(flatten)]
    time: ItemsTimeArgs,
    /// Imports even if the catalogue in --out loses more than 20 % of its items.
    #[arg(long)]
    allow_shrink: bool,
    /// Directory for items.parquet and events.parquet.
    #[arg(long, value_name = "DIR", value_parser = output_directory)]
    out: PathBuf,
    #[command(flatten)]
    format: FormatArgs,
}

/// The mappings of files.
#[derive(clap::Args)]
pub(crate) struct MappingArgs {
    /// How columns become fields: `clickstream`, `ga4`, `google-local-inventory`, `google-merchant-center`,
    /// `icecat`, `opensearch-ubi`, `shopify`, or a TOML file. Twice if items and events have different mappings.
    #[arg(long = "mapping", value_name = "NAME|FILE", required = true)]
    mappings: Vec<String>,
}

impl MappingArgs {
    pub(crate) fn open(&self) -> anyhow::Result<Vec<Mapping>> {
        Ok(self.mappings.iter().map(|mapping| Mapping::open(mapping)).collect::<Result<_, _>>()?)
    }
}

/// The time of the values of a file of items.
#[derive(clap::Args)]
pub(crate) struct ItemsTimeArgs {
    /// Time at which the shop had the values of the file, such as 2026-11-30T04:00:00Z or 2h for two hours ago. Values
    /// that the API wrote later win. Default: the file's modification time.
    #[arg(long, value_name = "TIME")]
    items_time: Option<String>,
}

impl ItemsTimeArgs {
    pub(crate) fn options(&self, allow_shrink: bool) -> anyhow::Result<ImportOptions> {
        let now = UnixMillis::now();
        let items_time = self.items_time.as_deref().map(|time| since(time, now).context("--items-time")).transpose()?;
        Ok(ImportOptions { now, items_time, allow_shrink })
    }
}

/// A progress bar of the bytes of a file.
pub(crate) fn bytes_bar(message: &'static str) -> ProgressBar {
    let bar = ProgressBar::new(0).with_style(style("{bytes}/{total_bytes}"));
    bar.set_message(message);
    bar
}

pub(crate) fn import(args: &ImportArgs) -> anyhow::Result<Exit> {
    let mappings = args.mapping.open()?;
    let options = args.time.options(args.allow_shrink)?;
    let bar = bytes_bar("import");
    let files = ShopFiles { events: &args.events, items: args.items.as_deref() };
    let report = import::import(&mappings, files, &args.out, options, |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    })?;
    bar.finish_and_clear();
    args.format.print(&report)?;
    Ok(Exit::Success)
}
