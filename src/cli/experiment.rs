//! `lodestone experiment`
use super::{
    exit::Exit,
    output::{OutputArgs, write_file},
    paths::new_file,
};
use anyhow::{anyhow, ensure};
use lodestone_experiments::{self, AnalysisOptions};
use std::path::PathBuf;

#[derive(clap::Subcommand)]
pub(crate) enum ExperimentCommand {
    Report(ReportArgs),
}

/// Compares the arms of an experiment with always-valid confidence intervals.
///
/// Checks the split of the users (sample ratio mismatch) and estimates the metrics of each arm and their differences.
/// The intervals are valid at all times simultaneously: the report may be read every day and the experiment stopped
/// when an interval excludes 0. A user counts once, with the events in the window after the first answer. Exit code 1
/// if the split differs from the configured shares, because then nothing can be concluded. See docs/experiments.md.
#[derive(clap::Args)]
#[command(after_help = "\
Example:
  lodestone experiment report --answers answers --events events --experiment bold --report page.html")]
pub(crate) struct ReportArgs {
    /// The answers: answers.parquet, a directory with one per day, or .jsonl with user, time_ms, experiment, and arm
    /// (or picks, for interleaved rankings).
    #[arg(long, value_name = "PATH")]
    answers: PathBuf,
    /// The events: events.parquet, a directory that contains it or one per day, or .jsonl with user, time_ms, type,
    /// and optionally value, item, answer.
    #[arg(long, value_name = "PATH")]
    events: PathBuf,
    /// Name of the experiment.
    #[arg(long, value_name = "NAME")]
    experiment: String,
    /// The arm that the others are compared with. Default: `control`, then `default`, then the first by name.
    #[arg(long, value_name = "ARM")]
    control: Option<String>,
    /// Configured shares of the arms, such as control=0.9,brave=0.1. Default: equal shares.
    #[arg(long, value_name = "ARM=SHARE,…", value_delimiter = ',', value_parser = share)]
    shares: Vec<(String, f64)>,
    /// Hours after a user's first answer in which events count. Users whose window has not ended are left out.
    #[arg(long, value_name = "HOURS", default_value_t = 24.0)]
    window_hours: f64,
    /// Users per arm for which the width of the intervals is optimised. The intervals are valid for any number.
    #[arg(long, value_name = "USERS", default_value_t = AnalysisOptions::default().planned as u64,
          value_parser = clap::value_parser!(u64).range(100..))]
    planned: u64,
    /// Also writes a self-contained HTML page with plots.
    #[arg(long, value_name = "FILE", value_parser = new_file)]
    report: Option<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
}

fn share(text: &str) -> anyhow::Result<(String, f64)> {
    let (arm, share) = text.rsplit_once('=').ok_or_else(|| anyhow!("`{text}` is not of the form ARM=SHARE"))?;
    let number: f64 = share.parse().map_err(|_| anyhow!("the share `{share}` is not a number"))?;
    Ok((arm.to_owned(), number))
}

pub(crate) fn run(command: ExperimentCommand) -> anyhow::Result<Exit> {
    match command {
        ExperimentCommand::Report(args) => report(args),
    }
}

fn report(args: ReportArgs) -> anyhow::Result<Exit> {
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
    if let Some(path) = &args.report {
        write_file("--report", path, &report.page())?;
    }
    args.output.write(&report)?;
    Ok(Exit::answer(!report.sample_ratio.is_some_and(|ratio| ratio.mismatch)))
}
