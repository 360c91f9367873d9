//! `lodestone retrain`: from the current data of a shop to a published bundle, as one command.
use super::{
    bundle::StoreArgs,
    exit::Exit,
    gate::{UsersMinArg, decide},
    lock::{Attempt, Lock},
    output::OutputArgs,
    paths::existing_directory,
    progress::StageBars,
    train::{Earlier, TrainArgs, Trained, answer_source},
};
use crate::backup::RETRAIN;
use anyhow::{Context, bail, ensure};
use lodestone_engine::{ANSWERS, LogMissing, event_log};
use lodestone_events as events;
use lodestone_pipeline::ranking::Runtime;
use lodestone_training::{
    self, DatasetBuilder, DatasetSummary, EvaluateOptions, Evaluation, GateOptions, TrainError, TrainOptions, Verdict,
};
use std::{
    collections::BTreeMap,
    fmt, fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Default working directory, within the data directory.
const WORK: &str = RETRAIN;
/// Entries of the working directory.
const LOCK: &str = "lock";
const DATA: &str = "data";
const BUNDLE: &str = "bundle";
/// Describes the gathered data.
const GATHERED: &str = "gathered.json";
/// Copies of bundles of a remote store.
const CACHE: &str = "cache";
/// A stopped training resumes with its data if they are not older.
const RESUMABLE: Duration = Duration::from_secs(24 * 60 * 60);
/// Share and greatest number of the newest interactions that are held out for the evaluation. They are few, because the
/// bundle does not learn from them.
const NEWEST_SHARE: f64 = 0.1;
const NEWEST_MAX: usize = 10_000;
/// Share and greatest number of the interactions before those that become labels of the ranking model.
const LABELS_SHARE: f64 = 0.15;
const LABELS_MAX: usize = 100_000;

/// Trains on all current data of a shop and publishes the bundle if it is good enough: the learning loop, for cron.
///
/// Gathers the imported history and the event log (a server may be running on the data), trains on all but the newest
/// interactions, evaluates the bundle on those, compares it with the store's current bundle (--gate), and publishes it.
/// Servers that watch the store load it. Exit code 1 if the gate refused the bundle; 2 also if another retrain holds
/// the lock; 130 if a signal stopped the training, which the same command resumes within a day. See docs/deploy.md.
#[derive(clap::Args)]
#[command(after_help = "\
Example, in a crontab:
  0 3 * * *  lodestone retrain --gate --data /data --store /store --keep 7 2>>/var/log/retrain.log")]
pub(crate) struct RetrainArgs {
    /// The data directory of `lodestone serve`: imported history and event log. Both are only read.
    #[arg(long, value_name = "DIR", value_parser = existing_directory, env = "LODESTONE_DATA")]
    data: PathBuf,
    #[command(flatten)]
    store: StoreArgs,
    /// Working directory with the lock; all retrains of a shop must use the same. Default: `retrain` in the data
    /// directory.
    #[arg(long, value_name = "DIR")]
    work: Option<PathBuf>,
    /// Publishes only if the bundle passes the gate against the store's current bundle; see `lodestone gate`.
    #[arg(long)]
    gate: bool,
    #[command(flatten)]
    users: UsersMinArg,
    /// Number of newest interactions that the bundle is evaluated on and does not learn from. Default: a tenth, at
    /// most 10,000.
    #[arg(long, value_name = "N")]
    newest: Option<usize>,
    /// Initialises the encoders with random weights. Default: with the weights of the store's current bundle, for
    /// fewer epochs.
    #[arg(long)]
    cold: bool,
    /// The ranking model also learns from the answer log in the data directory: lists that were really shown. Starts
    /// when exploration gave enough evidence of the position bias; until then the result says how much is missing. See
    /// docs/training.md.
    #[arg(long)]
    answers: bool,
    /// After publishing, removes bundles from the store, except for the current one and this many of the newest
    /// others. Default: removes none.
    #[arg(long, value_name = "N")]
    keep: Option<usize>,
    #[command(flatten)]
    train: TrainArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// The result of `lodestone retrain`.
#[derive(serde::Serialize)]
struct Report {
    gathered: DatasetSummary,
    /// Whether a stopped training was resumed, with its data.
    resumed: bool,
    trained: Trained,
    /// None if there are too few events for an evaluation.
    evaluation: Option<Evaluation>,
    /// None without `--gate` or a current bundle.
    gate: Option<Verdict>,
    /// Name of the bundle if it was published.
    published: Option<String>,
    /// Bundles that were removed from the store.
    pruned: Vec<String>,
    seconds: f64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let DatasetSummary { item_count, imported_event_count, logged_event_count, foreign_event_count, .. } =
            self.gathered;
        writeln!(
            f,
            "{item_count} items, {imported_event_count} imported events, {logged_event_count} logged events; \
             {foreign_event_count} logged events with a foreign attribution token were left out"
        )?;
        write!(f, "{}", self.trained)?;
        match &self.evaluation {
            Some(evaluation) => write!(f, "{evaluation}")?,
            None => writeln!(
                f,
                "no evaluation: no user with a history has a positive interaction with an item of the bundle among the \
                 newest interactions"
            )?,
        }
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

pub(crate) fn retrain(args: &RetrainArgs) -> anyhow::Result<Exit> {
    let work = Work::open(args.work.clone().unwrap_or_else(|| args.data.join(WORK)))?;
    let _lock = match Lock::attempt(&work.path.join(LOCK))? {
        Attempt::Taken(lock) => lock,
        Attempt::Held(owner) => bail!("another retrain is running ({owner}); nothing was done"),
    };
    let store = args.store.open()?;
    // The bundle that the new one is compared with must still be current when the new one is published.
    let seen = store.current()?;
    let runtime = args.train.start()?;
    let started = Instant::now();
    let (GatheredFrom { gathered, searchable, .. }, resumed) = work.gather(&args.data)?;
    let current = match &seen {
        Some(current) => Some(store.fetch(&current.name, &work.path.join(CACHE))?),
        None => None,
    };
    let warm_start = current.clone().filter(|_| !args.cold);
    let [encoder_share, trained_share] = shares(gathered.interaction_count, args.newest)?;
    let answers = args.answers.then(|| answer_source(args.data.join(ANSWERS)));
    let adjust = |options| TrainOptions { encoder_share, trained_share, warm_start, answers, ..options };
    let earlier = Earlier { bundle: current.as_deref(), searchable: &searchable };
    let Some(trained) = args.train.run(&work.data(), &work.bundle(), earlier, &runtime, adjust)? else {
        eprintln!("stopped; the same command resumes the training");
        return Ok(Exit::Interrupted);
    };
    let evaluation = evaluate(&work, &runtime)?;
    let gate = match current.as_ref().filter(|_| args.gate) {
        Some(current) => {
            let options = GateOptions { users_min: args.users.users_min, ..GateOptions::default() };
            Some(decide(&work.data(), &work.bundle(), current, &runtime, &options)?)
        }
        None => None,
    };
    let passes = gate.as_ref().is_none_or(|verdict| verdict.refusals.is_empty());
    let published = match passes {
        true => Some(store.publish(&work.bundle(), Some(seen.as_ref()))?.name),
        false => None,
    };
    let pruned = match (&published, args.keep) {
        // The new bundle is current even if the old ones cannot be removed.
        (Some(_), Some(kept)) => store.prune(kept).unwrap_or_else(|error| {
            eprintln!("lodestone: old bundles were not removed from the store: {error}");
            Vec::new()
        }),
        _ => Vec::new(),
    };
    work.clear()?;
    let seconds = started.elapsed().as_secs_f64();
    args.output.write(&Report { gathered, resumed, trained, evaluation, gate, published, pruned, seconds })?;
    Ok(Exit::answer(passes))
}

/// Evaluates the bundle; none if there are too few events.
fn evaluate(work: &Work, runtime: &Runtime) -> anyhow::Result<Option<Evaluation>> {
    let mut bars = StageBars::default();
    let options = EvaluateOptions::default();
    let evaluation =
        lodestone_training::evaluate(&work.data(), &work.bundle(), runtime, &options, &mut |step| bars.show(step));
    bars.finish();
    match evaluation {
        Ok(evaluation) => Ok(Some(evaluation)),
        Err(TrainError::TooLittle(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Shares of the interactions, in order of time, at which the training data of the encoders and of the ranking model
/// end.
fn shares(interaction_count: usize, newest: Option<usize>) -> anyhow::Result<[f64; 2]> {
    let count = interaction_count.max(1) as f64;
    let newest_share = match newest {
        Some(newest) => newest as f64 / count,
        None => NEWEST_SHARE.min(NEWEST_MAX as f64 / count),
    };
    ensure!(
        newest_share < 0.5,
        "--newest is {}; it must be less than half of the {interaction_count} interactions",
        newest.unwrap_or_default()
    );
    let labels = LABELS_SHARE.min(LABELS_MAX as f64 / count);
    Ok([1.0 - newest_share - labels, 1.0 - newest_share])
}

/// Content of [`GATHERED`].
#[derive(serde::Serialize, serde::Deserialize)]
struct GatheredFrom {
    /// The data directory.
    source: String,
    gathered: DatasetSummary,
    /// By declared attribute: whether searches find its texts.
    searchable: BTreeMap<String, bool>,
}

/// The working directory. A retrain that was stopped leaves its data and its checkpoint here.
struct Work {
    path: PathBuf,
}

impl Work {
    fn open(path: PathBuf) -> anyhow::Result<Self> {
        events::storage::create_private_directory(&path).with_context(|| path.display().to_string())?;
        Ok(Self { path })
    }

    fn data(&self) -> PathBuf {
        self.path.join(DATA)
    }

    fn bundle(&self) -> PathBuf {
        self.path.join(BUNDLE)
    }

    /// Gathers the data, or returns those of a stopped training if they are recent enough. The second value is whether
    /// they are of a stopped training.
    fn gather(&self, from: &Path) -> anyhow::Result<(GatheredFrom, bool)> {
        let source = fs::canonicalize(from).with_context(|| from.display().to_string())?.display().to_string();
        let description = self.path.join(GATHERED);
        let checkpoint = fs::metadata(lodestone_training::checkpoint_path(&self.bundle()));
        let age = checkpoint.and_then(|file| file.modified()).ok().and_then(|at| at.elapsed().ok());
        let resumable = age.is_some_and(|age| age < RESUMABLE) && !self.bundle().exists();
        if let (true, Ok(text)) = (resumable, fs::read(&description))
            && let Ok(left) = serde_json::from_slice::<GatheredFrom>(&text)
            && left.source == source
        {
            return Ok((left, true));
        }
        // Remains of an earlier retrain cannot be resumed.
        self.clear()?;
        let mut builder = DatasetBuilder::open(from)?;
        match event_log(from) {
            Ok(log) => _ = events::log::read(&log, 1, |_, _, change| builder.apply(change))?,
            Err(LogMissing::Unused { .. }) => {}
            Err(lost @ LogMissing::Lost { .. }) => return Err(lost.into()),
        }
        let searchable = builder.declared_searchable().clone();
        let gathered = GatheredFrom { source, gathered: builder.write(&self.data())?, searchable };
        events::storage::replace(&description, &serde_json::to_vec(&gathered)?)
            .with_context(|| description.display().to_string())?;
        Ok((gathered, false))
    }

    /// Removes everything except the lock.
    fn clear(&self) -> anyhow::Result<()> {
        let path = || self.path.display().to_string();
        for entry in fs::read_dir(&self.path).with_context(path)? {
            let entry = entry.with_context(path)?;
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
