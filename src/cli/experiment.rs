//! `lodestone experiment`
use super::{
    exit::Exit,
    numbers::whole,
    output::{OutputArgs, write_file},
    paths::new_file,
};
use anyhow::{anyhow, ensure};
use lodestone_experiments::{self, AnalysisOptions, CertificateOptions};
use std::path::PathBuf;

#[derive(clap::Subcommand)]
pub(crate) enum ExperimentCommand {
    Report(ReportArgs),
    Certificate(CertificateArgs),
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
    #[command(flatten)]
    input: InputArgs,
    /// Hours after a user's first answer in which events count. Users whose window has not ended are left out.
    #[arg(long, value_name = "HOURS", default_value_t = 24.0)]
    window_hours: f64,
    /// Also writes a self-contained HTML page with plots.
    #[arg(long, value_name = "FILE", value_parser = new_file)]
    report: Option<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
}

/// What both reports read.
#[derive(clap::Args)]
struct InputArgs {
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
    /// Users per arm for which the width of the intervals is optimised. The intervals are valid for any number.
    #[arg(long, value_name = "USERS", default_value_t = AnalysisOptions::default().planned as u64,
          value_parser = whole::<u64>(100..))]
    planned: u64,
}

/// States what an arm of an experiment costs and brings against the control, for a decision to activate it.
///
/// Clicks, purchases, return visits and value per user, each with the difference to the control and an interval. All four
/// intervals together contain the true differences at all looks with probability 95 %, so that the certificate may be
/// made every day. A user counts once. A hold-out is an arm with the configuration of before. Exit code 1, with the
/// counts, if the evidence is too thin or the split differs from the configured shares. See docs/objectives.md.
#[derive(clap::Args)]
#[command(after_help = "\
Example:
  lodestone experiment certificate --answers answers --events events --experiment loyal --format json")]
pub(crate) struct CertificateArgs {
    #[command(flatten)]
    input: InputArgs,
    /// The arm that the certificate is about. Default: the only one besides the control.
    #[arg(long, value_name = "ARM")]
    arm: Option<String>,
    /// Currency of values, such as EUR. Default: the only one of the purchases.
    #[arg(long, value_name = "CODE")]
    currency: Option<String>,
    /// Hours after a user's first answer in which events count. Users whose window has not ended are left out.
    #[arg(long, value_name = "HOURS", default_value_t = 14.0 * 24.0)]
    window_hours: f64,
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
        ExperimentCommand::Certificate(args) => certificate(args),
    }
}

impl InputArgs {
    fn options(&self, window_hours: f64) -> anyhow::Result<AnalysisOptions> {
        const HOURS_MAX: f64 = 24.0 * 366.0;
        ensure!(
            window_hours > 0.0 && window_hours <= HOURS_MAX,
            "--window-hours is {window_hours}; it must be above 0 and at most {HOURS_MAX}"
        );
        Ok(AnalysisOptions {
            control: self.control.clone(),
            shares: self.shares.clone(),
            window_ms: (window_hours * 3_600_000.0) as i64,
            planned: self.planned as f64,
        })
    }
}

fn report(args: ReportArgs) -> anyhow::Result<Exit> {
    let options = args.input.options(args.window_hours)?;
    let InputArgs { answers, events, experiment, .. } = &args.input;
    let log = lodestone_experiments::read_answers(answers)?;
    let outcomes = lodestone_experiments::read_outcomes(events)?;
    let report = lodestone_experiments::analyse(experiment, &log.exposures, &log.drafts, &outcomes, &options)?;
    if let Some(path) = &args.report {
        write_file("--report", path, &report.page())?;
    }
    args.output.write(&report)?;
    Ok(Exit::answer(!report.sample_ratio.is_some_and(|ratio| ratio.mismatch)))
}

fn certificate(args: CertificateArgs) -> anyhow::Result<Exit> {
    let analysis = args.input.options(args.window_hours)?;
    let currency = args.currency.map(|code| code.to_uppercase());
    let options = CertificateOptions { analysis, arm: args.arm, currency };
    let InputArgs { answers, events, experiment, .. } = &args.input;
    let log = lodestone_experiments::read_answers(answers)?;
    let outcomes = lodestone_experiments::read_outcomes(events)?;
    let is_interleaved = log.drafts.iter().any(|draft| draft.experiment == *experiment);
    match lodestone_experiments::certify(experiment, &log.exposures, is_interleaved, &outcomes, &options) {
        Ok(certificate) => {
            args.output.write(&certificate)?;
            Ok(Exit::Success)
        }
        Err(error) if error.is_refusal() => {
            eprintln!("{error}");
            Ok(Exit::No)
        }
        Err(error) => Err(error.into()),
    }
}
