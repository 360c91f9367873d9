//! `lodestone import`
use super::{exit::Exit, output::FormatArgs, progress::style};
use indicatif::ProgressBar;
use lodestone_dataset::import::{self, Mapping};
use std::path::PathBuf;

/// Converts CSV, JSONL or Parquet files of a shop to canonical items and events, and reports dropped rows with the
/// reason.
#[derive(clap::Args)]
#[command(after_help = "\
Example:
  lodestone import --mapping mapping.toml --in transactions.csv.zst --out data")]
pub(crate) struct ImportArgs {
    /// TOML file that maps columns to fields and sets the cleaning rules; see docs/events.md.
    #[arg(long, value_name = "FILE")]
    mapping: PathBuf,
    /// The shop's file: .csv, .jsonl (also .gz, .zst) or .parquet.
    #[arg(long = "in", value_name = "FILE")]
    input: PathBuf,
    /// Directory for items.parquet and events.parquet.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    #[command(flatten)]
    format: FormatArgs,
}

pub(crate) fn import(args: &ImportArgs) -> anyhow::Result<Exit> {
    let mapping = Mapping::read(&args.mapping)?;
    let bar = ProgressBar::new(0).with_style(style("{bytes}/{total_bytes}"));
    bar.set_message("import");
    let report = import::import(&mapping, &args.input, &args.out, |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    })?;
    bar.finish_and_clear();
    args.format.print(&report)?;
    Ok(Exit::Success)
}
