//! `lodestone evaluate`
use super::{
    LibraryArgs,
    exit::Exit,
    numbers::whole,
    output::{OutputArgs, write_file},
    paths::{existing_directory, new_file},
    progress::StageBars,
};
use anyhow::ensure;
use lodestone_events::EventKind;
use lodestone_experiments as experiments;
use lodestone_experiments::{
    Outcome,
    off_policy::{self, EstimateOptions, EvaluatedSlots, Reward},
};
use lodestone_pipeline::serving::{Serving, ServingConfig};
use lodestone_training::{self, EvaluateOptions};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

/// Evaluates a bundle on the part of the data after its training, or a serving policy on logged answers.
///
/// Prints HR@10, NDCG@10, MRR@10 and coverage with bootstrap intervals, for the ranking, for retrieval alone and for
/// popularity. Compares NDCG@10 with baselines that need no training, each tuned on the last part of the training data,
/// by task; see docs/evaluation.md.
///
/// With --off-policy, estimates the reward per slot of the ranking without exploration, or of another serving
/// configuration, from logged answers that explored, using their propensities: IPS, SNIPS, clipped IPS and doubly
/// robust. Exit code 1 if the log does not support an estimate; see docs/off-policy.md.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  lodestone evaluate --data data --bundle bundle --report page.html
  lodestone evaluate --off-policy --answers answers --events events --reward purchase --value")]
pub(crate) struct EvaluateArgs {
    /// The data that the bundle was trained on; training left its later part out.
    #[arg(long, value_name = "DIR", value_parser = existing_directory, required_unless_present = "off_policy")]
    data: Option<PathBuf>,
    /// The bundle.
    #[arg(long, value_name = "DIR", required_unless_present = "off_policy")]
    bundle: Option<PathBuf>,
    /// Also writes a self-contained HTML page with plots: losses, quality by activity, ablations of sources and
    /// features, calibration, popularity bias.
    #[arg(long, value_name = "FILE", value_parser = new_file)]
    report: Option<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    library: LibraryArgs,
    // Last, because its help heading continues.
    #[command(flatten)]
    logged: LoggedArgs,
}

/// Flags of the evaluation on logged answers.
#[derive(clap::Args)]
#[command(next_help_heading = "Off-policy evaluation")]
struct LoggedArgs {
    /// Evaluates a policy on logged answers instead of a bundle on data.
    #[arg(long, requires = "answers", requires = "events", conflicts_with_all = ["data", "bundle", "report"])]
    off_policy: bool,
    /// answers.parquet, or the directory that `lodestone answers export` wrote. With --serving-config: the server's
    /// own records, DATA/answers.
    #[arg(long, value_name = "PATH", requires = "off_policy")]
    answers: Option<PathBuf>,
    /// Evaluates this serving configuration instead of the ranking without exploration.
    #[arg(long, value_name = "NAME", requires = "serving", requires = "off_policy")]
    serving_config: Option<String>,
    /// The file that defines the serving configuration; see docs/serving.md.
    #[arg(long, value_name = "FILE", requires = "serving_config")]
    serving: Option<PathBuf>,
    /// events.parquet, a directory that contains it, or .jsonl; see docs/experiments.md.
    #[arg(long, value_name = "PATH", requires = "off_policy")]
    events: Option<PathBuf>,
    /// Event type that counts as reward, such as click or purchase: 1 for a slot with at least one such event.
    #[arg(long, value_name = "TYPE", default_value = "click")]
    reward: String,
    /// The reward is the value of the events, quantity times price.
    #[arg(long)]
    value: bool,
    /// Hours after the answer in which an event counts.
    #[arg(long, value_name = "HOURS", default_value_t = 24, value_parser = whole::<u32>(1..=8784))]
    window_hours: u32,
}

pub(crate) fn evaluate(args: &EvaluateArgs) -> anyhow::Result<Exit> {
    match (&args.data, &args.bundle) {
        (Some(data), Some(bundle)) => evaluate_bundle(data, bundle, args),
        _ => evaluate_logged(&args.logged, &args.output),
    }
}

fn evaluate_bundle(data: &Path, bundle: &Path, args: &EvaluateArgs) -> anyhow::Result<Exit> {
    let runtime = args.library.load()?;
    let mut bars = StageBars::default();
    let options = EvaluateOptions::default();
    let show = &mut |step| bars.show(step);
    let evaluation = match &args.report {
        None => lodestone_training::evaluate(data, bundle, &runtime, &options, show)?,
        Some(path) => {
            let (evaluation, page) = lodestone_training::report(data, bundle, &runtime, &options, show)?;
            write_file("--report", path, &page)?;
            evaluation
        }
    };
    bars.finish();
    args.output.write(&evaluation)?;
    Ok(Exit::Success)
}

/// Refuses a reward that is neither an event type nor a type in the file, which may have types of its own.
fn check_reward(reward: &str, outcomes: &[Outcome], events: &Path) -> anyhow::Result<()> {
    const NAMES_MAX: usize = 20;
    let in_file: BTreeSet<&str> = outcomes.iter().map(|outcome| outcome.kind.as_str()).collect();
    let types = EventKind::ALL.map(EventKind::name);
    ensure!(
        types.contains(&reward) || in_file.contains(reward),
        "--reward is `{reward}`, which is not an event type; the event types are {}; {} has {}",
        types.join(", "),
        events.display(),
        in_file.into_iter().take(NAMES_MAX).collect::<Vec<_>>().join(", ")
    );
    Ok(())
}

fn evaluate_logged(args: &LoggedArgs, output: &OutputArgs) -> anyhow::Result<Exit> {
    let (Some(answers), Some(events)) = (&args.answers, &args.events) else {
        anyhow::bail!("--off-policy needs --answers and --events");
    };
    let reward =
        Reward { kind: args.reward.clone(), is_value: args.value, window_ms: i64::from(args.window_hours) * 3_600_000 };
    let judged = match (&args.serving, &args.serving_config) {
        (Some(file), Some(name)) => {
            let serving = Serving::open(file, &ServingConfig::default())?;
            off_policy::answers_under(serving.snapshot(&BTreeMap::new()).config(name)?, answers)?
        }
        _ => EvaluatedSlots::organic(experiments::read_slots(answers)?),
    };
    let is_empty = judged.slots.is_empty() && judged.left_out == 0;
    ensure!(!is_empty, "{} contains no records of answers", answers.display());
    let outcomes = experiments::read_outcomes(events)?;
    check_reward(&args.reward, &outcomes, events)?;
    let report = off_policy::evaluate_answers(&judged, &outcomes, &reward, &EstimateOptions::default());
    output.write(&report)?;
    Ok(Exit::answer(report.refused.is_none()))
}
