//! `lodestone import`
use super::{exit::Exit, output::FormatArgs, paths::output_directory, progress::style};
use clap::ArgGroup;
use indicatif::ProgressBar;
use lodestone_core::units::UnixMillis;
use lodestone_dataset::import::{self, Mapping, ShopFiles};
use std::path::PathBuf;

/// Converts CSV, JSONL or Parquet files of a shop to canonical items and events, and reports dropped rows with the
/// reason.
///
/// Replaces items.parquet, and with --in also events.parquet. Items that only events name are derived from them.
#[derive(clap::Args)]
#[command(after_help = "\
Example:
  lodestone import --mapping mapping.toml --in transactions.csv.zst --products products.csv --out data")]
#[command(group(ArgGroup::new("files").required(true).multiple(true).args(["input", "products"])))]
pub(crate) struct ImportArgs {
    /// TOML file that maps columns to fields and sets the cleaning rules; see docs/events.md.
    #[arg(long, value_name = "FILE")]
    mapping: PathBuf,
    /// The shop's events, such as its orders: .csv, .jsonl (also .gz, .zst) or .parquet. One row for each item of an
    /// event.
    #[arg(long = "in", value_name = "FILE")]
    input: Option<PathBuf>,
    /// The shop's products, in the same formats. One row for each product.
    #[arg(long, value_name = "FILE")]
    products: Option<PathBuf>,
    /// Directory for items.parquet and events.parquet.
    #[arg(long, value_name = "DIR", value_parser = output_directory)]
    out: PathBuf,
    #[command(flatten)]
    format: FormatArgs,
}

pub(crate) fn import(args: &ImportArgs) -> anyhow::Result<Exit> {
    let mapping = Mapping::read(&args.mapping)?;
    let bar = ProgressBar::new(0).with_style(style("{bytes}/{total_bytes}"));
    bar.set_message("import");
    let files = ShopFiles { events: args.input.as_deref(), products: args.products.as_deref() };
    let report = import::import(&mapping, files, &args.out, UnixMillis::now(), |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    })?;
    bar.finish_and_clear();
    args.format.print(&report)?;
    Ok(Exit::Success)
}
