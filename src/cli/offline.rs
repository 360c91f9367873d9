//! import, train, evaluate.
use super::{Format, LibraryArgs, time::bundle_name};
use anyhow::{Context, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use lodestone_core::units::UnixMillis;
use lodestone_dataset::import::{self, Mapping};
use lodestone_experiments as experiments;
use lodestone_experiments::off_policy::{self, EstimateOptions, JudgedSlots, Reward};
use lodestone_pipeline::{
    ranking::Runtime,
    serving::{Serving, ServingConfig},
};
use lodestone_training::{
    self as training, EvaluateOptions, Found, GateOptions, Progress, Start, TrainError, TrainOptions, Verdict,
};
use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};
use tokio::signal::unix::{SignalKind, signal};

#[derive(clap::Args)]
pub(super) struct ImportArgs {
    /// Which columns mean what, and how to clean; see docs/events.md.
    #[arg(long, value_name = "FILE")]
    mapping: PathBuf,
    /// The shop's file: .csv, .jsonl (also .gz, .zst) or .parquet.
    #[arg(long = "in", value_name = "FILE")]
    input: PathBuf,
    /// Where items.parquet and events.parquet are written.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
}

#[derive(clap::Args)]
pub(super) struct TrainArgs {
    /// Imported data: items.parquet and events.parquet.
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// The bundle to be written; must not exist.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Begins with the encoders of this bundle instead of random weights: fewer epochs for about the same quality.
    #[arg(long, value_name = "DIR")]
    from: Option<PathBuf>,
    #[command(flatten)]
    learning: LearningArgs,
    /// The bundle that serves: a new one that is worse, slower or covers fewer items is not written, with exit code 1 and the
    /// reason; see `lodestone gate`.
    #[arg(long, value_name = "DIR")]
    gate: Option<PathBuf>,
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
    #[command(flatten)]
    library: LibraryArgs,
}

/// How `train` and `retrain` learn.
#[derive(clap::Args)]
pub(super) struct LearningArgs {
    /// The same seed gives the same samples and starting weights.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// A sentence encoder for queries and item texts, instead of one that is learned on the titles: a directory with
    /// model.onnx and tokenizer.json, as Hugging Face models have them.
    #[arg(long, value_name = "DIR")]
    query_encoder: Option<PathBuf>,
    /// Default: one for each processor. With one thread, the same seed gives the same model.
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
}

impl LearningArgs {
    /// Sets how many threads there are.
    pub(super) fn set_threads(&self) -> anyhow::Result<()> {
        let threads = self.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
        ensure!((1..=256).contains(&threads), "--threads is {threads}; it must be within 1 and 256");
        rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().context("threads")
    }

    /// A training that begins now, is named after this moment, and ends at a signal.
    pub(super) fn options(&self) -> anyhow::Result<TrainOptions> {
        let now = UnixMillis::now();
        let name = bundle_name(now)?;
        let (query_encoder, stop) = (self.query_encoder.clone(), on_signal()?);
        Ok(TrainOptions { seed: self.seed, query_encoder, name, now, stop, ..TrainOptions::default() })
    }
}

#[derive(clap::Args)]
pub(super) struct EvaluateArgs {
    /// The data that the bundle was trained on; its later part was left out of the training.
    #[arg(long, value_name = "DIR", required_unless_present = "off_policy")]
    data: Option<PathBuf>,
    #[arg(long, value_name = "DIR", required_unless_present = "off_policy")]
    bundle: Option<PathBuf>,
    #[command(flatten)]
    logged: LoggedArgs,
    /// Also writes one HTML page with plots that needs nothing else: losses, quality by activity, what each source and
    /// feature adds, calibration, popularity bias.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
    #[command(flatten)]
    library: LibraryArgs,
}

/// The judgement of logged answers instead of a bundle.
#[derive(clap::Args)]
struct LoggedArgs {
    /// Instead of a bundle: what the order without exploration, or another serving configuration, earns per slot, from logged answers that explored, with their
    /// propensities. IPS, SNIPS, clipped IPS and doubly robust; exit code 1 where the log cannot tell (docs/off-policy.md).
    #[arg(long, requires = "answers", requires = "events", conflicts_with_all = ["data", "bundle", "report"])]
    off_policy: bool,
    /// Of --off-policy: answers.parquet, or the directory that `lodestone answers export` wrote. With --serving-config: the
    /// server's own records, DATA/answers.
    #[arg(long, value_name = "PATH", requires = "off_policy")]
    answers: Option<PathBuf>,
    /// Of --off-policy: judges this serving configuration instead of the order without exploration.
    #[arg(long, value_name = "NAME", requires = "serving", requires = "off_policy")]
    serving_config: Option<String>,
    /// The file with that configuration (docs/serving.md).
    #[arg(long, value_name = "FILE", requires = "serving_config")]
    serving: Option<PathBuf>,
    /// Of --off-policy: events.parquet, a directory with one, or .jsonl (docs/experiments.md).
    #[arg(long, value_name = "PATH", requires = "off_policy")]
    events: Option<PathBuf>,
    /// Of --off-policy: the type of event that is a reward, 1 for a slot with one.
    #[arg(long, value_name = "TYPE", default_value = "click")]
    reward: String,
    /// Of --off-policy: the reward is what the events were worth, quantity times price.
    #[arg(long)]
    value: bool,
    /// Of --off-policy: an event counts for so many hours after the answer.
    #[arg(long, value_name = "HOURS", default_value_t = 24, value_parser = clap::value_parser!(u32).range(1..=8784))]
    window_hours: u32,
}

#[derive(clap::Args)]
pub(super) struct GateArgs {
    /// The data that both bundles were trained on; they are judged on what came after the training of either.
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// The new bundle.
    #[arg(long, value_name = "DIR")]
    candidate: PathBuf,
    /// The bundle that serves.
    #[arg(long, value_name = "DIR")]
    current: PathBuf,
    /// Refuses a candidate whose answers take more than this multiple of the current one's time.
    #[arg(long, value_name = "RATIO", default_value_t = GateOptions::default().slower_max)]
    slower_max: f64,
    /// Refuses a candidate whose lists show fewer different items than this share of the current one's.
    #[arg(long, value_name = "SHARE", default_value_t = GateOptions::default().coverage_min)]
    coverage_min: f64,
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
    #[command(flatten)]
    library: LibraryArgs,
}

pub(super) fn import(args: ImportArgs) -> anyhow::Result<()> {
    let mapping = Mapping::read(&args.mapping)?;
    let bar = ProgressBar::new(0).with_style(style("{bytes}/{total_bytes}"));
    bar.set_message("import");
    let report = import::import(&mapping, &args.input, &args.out, |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    })?;
    bar.finish_and_clear();
    print(args.format, &report)
}

/// The exit code of a training that was stopped.
pub(super) const STOPPED: i32 = 130;

pub(super) fn train(args: TrainArgs) -> anyhow::Result<i32> {
    args.learning.set_threads()?;
    let runtime = Runtime::load(args.library.onnxruntime.as_deref())?;
    let started = Instant::now();
    let options = TrainOptions { warm_start: args.from, ..args.learning.options()? };
    let mut bars = Bars::default();
    // A gated bundle gets its name once it has passed.
    let written = match &args.gate {
        Some(_) => args.out.with_extension("candidate"),
        None => args.out.clone(),
    };
    if args.gate.is_some() {
        ensure!(!args.out.exists(), "{} exists; choose another directory or remove it", args.out.display());
    }
    let trained = training::train(&args.data, &written, &runtime, &options, &mut |step| bars.show(step));
    bars.finish();
    if matches!(trained, Err(TrainError::Stopped)) {
        eprintln!("stopped; the same command goes on from {}.checkpoint", written.display());
        return Ok(STOPPED);
    }
    let report = trained?;
    let verdict = match &args.gate {
        Some(current) => Some(judged(&args.data, &written, current, &runtime, &GateOptions::default())?),
        None => None,
    };
    let passes = verdict.as_ref().is_none_or(|verdict| verdict.refusals.is_empty());
    if args.gate.is_some() {
        match passes {
            true => std::fs::rename(&written, &args.out),
            false => std::fs::remove_dir_all(&written),
        }
        .with_context(|| written.display().to_string())?;
    }
    match args.format {
        Format::Json => {
            let mut told = serde_json::to_value(&report)?;
            if let Some(verdict) = &verdict {
                told["gate"] = serde_json::to_value(verdict)?;
            }
            println!("{}", serde_json::to_string_pretty(&told)?);
        }
        Format::Text => {
            if report.checkpoint == Found::Ignored {
                println!("the checkpoint beside the bundle is of other data or settings; the training began anew");
            }
            match &report.start {
                Start::RandomWeights => {}
                Start::Bundle { name, known_item_count } => {
                    println!("began with bundle {name}, which has {known_item_count} of the items");
                }
                Start::BundleNotUsed { reason } => println!("began with random weights: {reason}"),
            }
            println!(
                "{} items, {} choices; {} windows of histories, {} epochs; {} ranking lists; heads: {}",
                report.item_count,
                report.choice_count,
                report.sample_count,
                report.epoch_count,
                report.list_count,
                report.heads.join(", ")
            );
            let seconds: Vec<String> =
                report.seconds.iter().map(|(stage, seconds)| format!("{stage} {seconds:.1} s")).collect();
            let memory = report.memory_bytes_max.map_or(String::new(), |bytes| format!("; {} MB at most", bytes >> 20));
            println!("{}{memory}", seconds.join(", "));
            for (model, difference) in &report.exports {
                println!("{model:<16} ONNX differs from the trained model by at most {difference:.1e}");
            }
            if let Some(verdict) = &verdict {
                print!("{verdict}");
            }
            if !passes {
                println!("no bundle was written");
                return Ok(1);
            }
            println!("bundle {} written in {:.0} s", args.out.display(), started.elapsed().as_secs_f32());
        }
    }
    Ok(i32::from(!passes))
}

/// Becomes true with the first SIGINT (Ctrl-C) or SIGTERM; with the second the process ends.
pub(super) fn on_signal() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let told = stop.clone();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        runtime.block_on(async {
            let Ok(mut terminate) = signal(SignalKind::terminate()) else { return };
            loop {
                tokio::select! {
                    _ = tokio::signal::ctrl_c() => {}
                    _ = terminate.recv() => {}
                }
                if told.swap(true, Ordering::Relaxed) {
                    std::process::exit(STOPPED);
                }
                eprintln!("stopping after this step; once more to end at once");
            }
        });
    })?;
    Ok(stop)
}

/// Gives the exit code.
pub(super) fn evaluate(args: EvaluateArgs) -> anyhow::Result<i32> {
    let (Some(data), Some(bundle)) = (&args.data, &args.bundle) else {
        return evaluate_logged(&args.logged, args.format);
    };
    let runtime = Runtime::load(args.library.onnxruntime.as_deref())?;
    let mut bars = Bars::default();
    let options = EvaluateOptions::default();
    let show = &mut |step| bars.show(step);
    let evaluation = match &args.report {
        None => training::evaluate(data, bundle, &runtime, &options, show)?,
        Some(path) => {
            let (evaluation, page) = training::report(data, bundle, &runtime, &options, show)?;
            std::fs::write(path, page).with_context(|| path.display().to_string())?;
            evaluation
        }
    };
    bars.finish();
    print(args.format, &evaluation).map(|()| 0)
}

fn evaluate_logged(args: &LoggedArgs, format: Format) -> anyhow::Result<i32> {
    let (Some(answers), Some(events)) = (&args.answers, &args.events) else {
        anyhow::bail!("--off-policy needs --answers and --events");
    };
    let reward =
        Reward { kind: args.reward.clone(), is_value: args.value, window_ms: i64::from(args.window_hours) * 3_600_000 };
    let judged = match (&args.serving, &args.serving_config) {
        (Some(file), Some(name)) => {
            let serving = Serving::open(file, &ServingConfig::default())?;
            let config = serving.config(name)?;
            off_policy::answers_under(config, answers)?
        }
        _ => JudgedSlots::organic(experiments::read_slots(answers)?),
    };
    let is_empty = judged.slots.is_empty() && judged.left_out == 0;
    ensure!(!is_empty, "{} has no records of answers", answers.display());
    let outcomes = experiments::read_outcomes(events)?;
    let report = off_policy::judge_answers(&judged, &outcomes, &reward, &EstimateOptions::default());
    print(format, &report)?;
    Ok(i32::from(report.refused.is_some()))
}

pub(super) fn gate(args: GateArgs) -> anyhow::Result<i32> {
    let runtime = Runtime::load(args.library.onnxruntime.as_deref())?;
    let options =
        GateOptions { slower_max: args.slower_max, coverage_min: args.coverage_min, ..GateOptions::default() };
    let verdict = judged(&args.data, &args.candidate, &args.current, &runtime, &options)?;
    print(args.format, &verdict)?;
    Ok(i32::from(!verdict.refusals.is_empty()))
}

fn judged(
    data: &Path,
    candidate: &Path,
    current: &Path,
    runtime: &Runtime,
    options: &GateOptions,
) -> anyhow::Result<Verdict> {
    let mut bars = Bars::default();
    let verdict = training::gate(data, candidate, current, runtime, options, &mut |step| bars.show(step))?;
    bars.finish();
    Ok(verdict)
}

fn print<T: serde::Serialize + std::fmt::Display>(format: Format, value: &T) -> anyhow::Result<()> {
    match format {
        Format::Json => println!("{}", serde_json::to_string_pretty(value)?),
        Format::Text => print!("{value}"),
    }
    Ok(())
}

pub(super) fn style(position: &str) -> ProgressStyle {
    let template = format!("{{msg:<28}} [{{bar:30}}] {position} {{per_sec}} {{elapsed}} left {{eta}}");
    ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> ")
}

/// One bar at a time, a new one for each stage.
#[derive(Default)]
pub(super) struct Bars {
    current: Option<(&'static str, ProgressBar)>,
}

impl Bars {
    pub(super) fn show(&mut self, step: Progress) {
        if self.current.as_ref().is_none_or(|(stage, _)| *stage != step.stage) {
            self.finish();
            self.current = Some((step.stage, ProgressBar::new(step.total as u64).with_style(style("{pos}/{len}"))));
        }
        let Some((stage, bar)) = &self.current else { return };
        bar.set_length(step.total as u64);
        bar.set_position(step.done as u64);
        match step.loss.is_finite() {
            true => bar.set_message(format!("{stage} loss {:.4}", step.loss)),
            false => bar.set_message(*stage),
        }
    }

    pub(super) fn finish(&mut self) {
        if let Some((_, bar)) = self.current.take() {
            bar.finish();
        }
    }
}
