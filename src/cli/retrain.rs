//! retrain: from what a shop has done until now to a published bundle, as one command.
use super::{
    Format, LibraryArgs, StoreArgs,
    lock::{Attempt, Lock},
    offline::{Bars, LearningArgs, STOPPED},
};
use anyhow::{Context, ensure};
use lodestone_events as events;
use lodestone_pipeline::ranking::Runtime;
use lodestone_training::{
    self as training, EvaluateOptions, Evaluation, GateOptions, Gathered, Gathering, TrainError, TrainOptions,
    TrainReport, Verdict,
};
use std::{
    fmt, fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// The exit code where another retrain has the lock.
const BUSY: i32 = 3;
/// Where a retrain works, in the data directory, if nothing else is said.
const WORK: &str = "retrain";
/// In the working directory, as all that follow.
const LOCK: &str = "lock";
const DATA: &str = "data";
const BUNDLE: &str = "bundle";
/// What the data are.
const LEFT: &str = "gathered.json";
/// Copies of bundles of a store that is elsewhere.
const CACHE: &str = "cache";
/// In the data directory.
const LOG: &str = "log";
/// A stopped training goes on with the data that it had, unless they are older.
const RESUMABLE: Duration = Duration::from_secs(24 * 60 * 60);
/// Share of the choices, the newest, that judge a bundle, and so many at most: what is not learned from should be little.
const NEWEST_SHARE: f64 = 0.1;
const NEWEST_MAX: usize = 10_000;
/// Share of the choices before them that the ranking model's labels come from, and so many at most.
const LABELS_SHARE: f64 = 0.15;
const LABELS_MAX: usize = 100_000;

/// Trains on all that is known by now and publishes the bundle, if it is good enough.
///
/// Gathers the imported history and what was logged since (a server may be running on the data), trains on all but the newest part,
/// judges the bundle on that part, holds it against the store's current bundle (`--gate`), and publishes it. Servers that watch the
/// store put it in place. Exit codes: 0 published, 1 refused by the gate, 2 failed, 3 another retrain has the lock, 130 stopped
/// (the same command goes on from there). See docs/deploy.md.
#[derive(clap::Args)]
pub(super) struct RetrainArgs {
    /// The shop's data directory, as `serve` has it: imported history and log. Both are only read.
    #[arg(long, value_name = "DIR", env = "LODESTONE_DATA")]
    data: PathBuf,
    #[command(flatten)]
    store: StoreArgs,
    /// Where it works and has its lock: two retrains of one shop must have the same. Default: `retrain` in the data directory.
    #[arg(long, value_name = "DIR")]
    work: Option<PathBuf>,
    /// Publishes only what is neither worse nor slower nor covers fewer items than the store's current bundle; see
    /// `lodestone gate`.
    #[arg(long)]
    gate: bool,
    /// Events by which something was chosen, the newest, that judge the bundle and are not learned from. Default: a tenth of all,
    /// at most 10,000.
    #[arg(long, value_name = "N")]
    newest: Option<usize>,
    /// Lists that the ranking model learns from at most.
    #[arg(long, value_name = "N", default_value_t = TrainOptions::default().lists_max)]
    lists_max: usize,
    /// Begins with random weights. Otherwise the encoders begin with those of the store's current bundle, and learn in fewer epochs.
    #[arg(long)]
    cold: bool,
    /// Removes old bundles from the store after publishing, but this many beside the current one. Default: none is removed.
    #[arg(long, value_name = "N")]
    keep: Option<usize>,
    #[command(flatten)]
    learning: LearningArgs,
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
    #[command(flatten)]
    library: LibraryArgs,
}

/// What a retrain did.
#[derive(serde::Serialize)]
struct Report {
    gathered: Gathered,
    /// Whether a stopped training went on, with the data that it had.
    resumed: bool,
    trained: TrainReport,
    evaluation: Evaluation,
    /// None: there was nothing to hold the bundle against, or it was not asked for.
    gate: Option<Verdict>,
    /// The bundle's name, if it was published.
    published: Option<String>,
    /// Old bundles that were removed from the store.
    pruned: Vec<String>,
    seconds: f64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Gathered { item_count, imported_event_count, logged_event_count, foreign_event_count, .. } = self.gathered;
        writeln!(
            f,
            "{item_count} items, {imported_event_count} imported events and {logged_event_count} of the log; \
             {foreign_event_count} with a foreign token were left out"
        )?;
        write!(f, "{}", self.evaluation)?;
        if let Some(verdict) = &self.gate {
            write!(f, "{verdict}")?;
        }
        match &self.published {
            Some(name) => writeln!(f, "bundle {name} published after {:.0} s", self.seconds)?,
            None => writeln!(f, "no bundle was published")?,
        }
        self.pruned.iter().try_for_each(|name| writeln!(f, "bundle {name} removed from the store"))
    }
}

pub(super) fn retrain(args: RetrainArgs) -> anyhow::Result<i32> {
    ensure!(args.data.is_dir(), "--data: {} is no directory", args.data.display());
    let work = Work::open(args.work.clone().unwrap_or_else(|| args.data.join(WORK)))?;
    let _lock = match Lock::attempt(&work.path.join(LOCK))? {
        Attempt::Taken(lock) => lock,
        Attempt::Held(owner) => {
            eprintln!("lodestone: a retrain is running already ({owner}); nothing was done");
            return Ok(BUSY);
        }
    };
    let store = args.store.open()?;
    // What the bundle is judged against must still be current when it is published.
    let seen = store.current()?;
    args.learning.set_threads()?;
    let runtime = Runtime::load(args.library.onnxruntime.as_deref())?;
    let begun = Instant::now();
    let (gathered, resumed) = work.gather(&args.data)?;
    let current = match &seen {
        Some(current) => Some(store.fetch(&current.name, &work.path.join(CACHE))?),
        None => None,
    };
    let warm_start = current.clone().filter(|_| !args.cold);
    let Some(trained) = train(&args, warm_start, &work, &gathered, &runtime)? else {
        eprintln!("stopped; the same command goes on from there");
        return Ok(STOPPED);
    };
    let mut bars = Bars::default();
    let show = &mut |step| bars.show(step);
    let (data, bundle) = (work.data(), work.bundle());
    let evaluation = training::evaluate(&data, &bundle, &runtime, &EvaluateOptions::default(), show)?;
    let gate = match current.as_ref().filter(|_| args.gate) {
        Some(current) => Some(training::gate(&data, &bundle, current, &runtime, &GateOptions::default(), show)?),
        None => None,
    };
    bars.finish();
    let passes = gate.as_ref().is_none_or(|verdict| verdict.refusals.is_empty());
    let published = match passes {
        true => Some(store.publish(&bundle, Some(seen.as_ref()))?.name),
        false => None,
    };
    let pruned = match (&published, args.keep) {
        // The new bundle is in place whatever becomes of the old ones.
        (Some(_), Some(kept)) => store.prune(kept).unwrap_or_else(|error| {
            eprintln!("lodestone: old bundles stay in the store: {error}");
            Vec::new()
        }),
        _ => Vec::new(),
    };
    work.clear()?;
    let seconds = begun.elapsed().as_secs_f64();
    let report = Report { gathered, resumed, trained, evaluation, gate, published, pruned, seconds };
    match args.format {
        Format::Json => println!("{}", serde_json::to_string_pretty(&report)?),
        Format::Text => print!("{report}"),
    }
    Ok(i32::from(!passes))
}

/// None: it was stopped.
fn train(
    args: &RetrainArgs,
    warm_start: Option<PathBuf>,
    work: &Work,
    gathered: &Gathered,
    runtime: &Runtime,
) -> anyhow::Result<Option<TrainReport>> {
    let [encoder_share, trained_share] = shares(gathered.choice_count, args.newest)?;
    let options = TrainOptions {
        encoder_share,
        trained_share,
        lists_max: args.lists_max,
        warm_start,
        ..args.learning.options()?
    };
    let mut bars = Bars::default();
    let trained = training::train(&work.data(), &work.bundle(), runtime, &options, &mut |step| bars.show(step));
    bars.finish();
    match trained {
        Err(TrainError::Stopped) => Ok(None),
        trained => Ok(Some(trained?)),
    }
}

/// Shares of the choices, by time, at which the encoders' part and the ranking model's part end.
fn shares(choice_count: usize, newest: Option<usize>) -> anyhow::Result<[f64; 2]> {
    let count = choice_count.max(1) as f64;
    let newest = match newest {
        Some(newest) => newest as f64 / count,
        None => NEWEST_SHARE.min(NEWEST_MAX as f64 / count),
    };
    ensure!(newest < 0.5, "--newest is more than half of the {choice_count} events by which something was chosen");
    let labels = LABELS_SHARE.min(LABELS_MAX as f64 / count);
    Ok([1.0 - newest - labels, 1.0 - newest])
}

/// What is known of gathered data.
#[derive(serde::Serialize, serde::Deserialize)]
struct Left {
    /// The data directory.
    source: String,
    gathered: Gathered,
}

/// Where a retrain works; what a stopped one left is taken up.
struct Work {
    path: PathBuf,
}

impl Work {
    fn open(path: PathBuf) -> anyhow::Result<Self> {
        fs::create_dir_all(&path).with_context(|| path.display().to_string())?;
        Ok(Self { path })
    }

    fn data(&self) -> PathBuf {
        self.path.join(DATA)
    }

    fn bundle(&self) -> PathBuf {
        self.path.join(BUNDLE)
    }

    /// Gathers the data, unless a stopped training left some that are not too old. The second is whether it did.
    fn gather(&self, from: &Path) -> anyhow::Result<(Gathered, bool)> {
        let source = fs::canonicalize(from).with_context(|| from.display().to_string())?.display().to_string();
        let left = self.path.join(LEFT);
        let checkpoint = fs::metadata(training::checkpoint_of(&self.bundle()));
        let age = checkpoint.and_then(|file| file.modified()).ok().and_then(|at| at.elapsed().ok());
        let resumable = age.is_some_and(|age| age < RESUMABLE) && !self.bundle().exists();
        if let (true, Ok(text)) = (resumable, fs::read(&left))
            && let Ok(left) = serde_json::from_slice::<Left>(&text)
            && left.source == source
        {
            return Ok((left.gathered, true));
        }
        // Whatever an earlier one left is of no use.
        self.clear()?;
        let mut gathering = Gathering::begin(from)?;
        let log = from.join(LOG);
        if log.exists() {
            events::log::read(&log, 1, |_, _, change| gathering.take(change))?;
        }
        let gathered = gathering.write(&self.data())?;
        let text = serde_json::to_vec(&Left { source, gathered })?;
        fs::write(&left, text).with_context(|| left.display().to_string())?;
        Ok((gathered, false))
    }

    /// Removes all but the lock.
    fn clear(&self) -> anyhow::Result<()> {
        let told = || self.path.display().to_string();
        for entry in fs::read_dir(&self.path).with_context(told)? {
            let entry = entry.with_context(told)?;
            let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
            match entry.file_name() == LOCK {
                true => Ok(()),
                false if is_directory => fs::remove_dir_all(entry.path()),
                false => fs::remove_file(entry.path()),
            }
            .with_context(|| entry.path().display().to_string())?;
        }
        Ok(())
    }
}
