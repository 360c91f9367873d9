//! experiment report
use super::Format;
use anyhow::{Context, anyhow, ensure};
use lodestone_experiments::{self, AnalysisOptions};
use std::path::PathBuf;

#[derive(clap::Subcommand)]
pub(super) enum ExperimentCommand {
    /// What the arms of an experiment did, in intervals that hold at every look.
    Report(ReportArgs),
}

/// Tells whether users are split as asked, what each arm did, and how far the differences are known.
///
/// The intervals hold the true difference at all times at once: look every day, and stop when one excludes 0. A user counts
/// once, with what they did in the window after their first answer. Exit code 1: the split is not the one that was asked
/// for, and nothing can be concluded. docs/experiments.md tells how to read it.
#[derive(clap::Args)]
pub(super) struct ReportArgs {
    /// The answers: answers.parquet, a directory with one for each day, or .jsonl with user, time_ms, experiment, and arm (or
    /// picks, where rankings were interleaved).
    #[arg(long, value_name = "PATH")]
    answers: PathBuf,
    /// What users did: events.parquet, a directory with it or with one for each day, or .jsonl with user, time_ms, type, and where known value, item, answer.
    #[arg(long, value_name = "PATH")]
    events: PathBuf,
    /// The experiment's name.
    #[arg(long, value_name = "NAME")]
    experiment: String,
    /// The arm that others are compared with. Default: `control`, then `default`, then the first by name.
    #[arg(long, value_name = "ARM")]
    control: Option<String>,
    /// The shares that the arms should have, as control=0.9,brave=0.1. Default: the same for all.
    #[arg(long, value_name = "ARM=SHARE,…", value_delimiter = ',', value_parser = share)]
    shares: Vec<(String, f64)>,
    /// What a user does counts for so many hours after the first answer; users whose hours are not over do not count yet.
    #[arg(long, value_name = "HOURS", default_value_t = 24.0)]
    window_hours: f64,
    /// Users in an arm at which the intervals are narrowest for their level; they hold at any other number too.
    #[arg(long, value_name = "USERS", default_value_t = AnalysisOptions::default().planned as u64,
          value_parser = clap::value_parser!(u64).range(100..))]
    planned: u64,
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
    /// Also writes one HTML page with plots that needs nothing else.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

fn share(text: &str) -> anyhow::Result<(String, f64)> {
    let (arm, share) = text.rsplit_once('=').ok_or_else(|| anyhow!("`{text}` is not an arm, `=` and its share"))?;
    let number: f64 = share.parse().map_err(|_| anyhow!("`{share}` is not a number"))?;
    Ok((arm.to_owned(), number))
}

/// Gives the exit code.
pub(super) fn run(command: ExperimentCommand) -> anyhow::Result<i32> {
    match command {
        ExperimentCommand::Report(args) => report(args),
    }
}

fn report(args: ReportArgs) -> anyhow::Result<i32> {
    const HOURS_MAX: f64 = 24.0 * 366.0;
    let hours = args.window_hours;
    ensure!(hours > 0.0 && hours <= HOURS_MAX, "--window-hours is {hours}; it must be above 0 and at most {HOURS_MAX}");
    let options = AnalysisOptions {
        control: args.control,
        shares: args.shares,
        window_ms: (hours * 3_600_000.0) as i64,
        planned: args.planned as f64,
    };
    let log = lodestone_experiments::read_answers(&args.answers)?;
    let outcomes = lodestone_experiments::read_outcomes(&args.events)?;
    let report = lodestone_experiments::analyse(&args.experiment, &log.exposures, &log.drafts, &outcomes, &options)?;
    if let Some(path) = &args.html {
        std::fs::write(path, report.page()).with_context(|| path.display().to_string())?;
    }
    match args.format {
        Format::Json => println!("{}", serde_json::to_string_pretty(&report)?),
        Format::Text => print!("{report}"),
    }
    Ok(i32::from(report.sample_ratio.is_some_and(|ratio| ratio.mismatch)))
}
