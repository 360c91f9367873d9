//! Opens an engine from a bundle, the imported history and the event log.
use crate::{
    engine::{Engine, EngineConfig, PipelineWorkers},
    popularity,
    serving::ServingCache,
    token::{TokenKey, TokenKeyError},
    workers::Workers,
};
use arc_swap::ArcSwap;
use crossbeam_channel::Sender;
use lodestone_catalog::ItemChange;
use lodestone_core::units::UnixMillis;
use lodestone_events::{
    Applied, Change, EventLog, Fold, LogError, Outcome, Writer, panic_message, storage::create_private_directory,
};
use lodestone_index::Languages;
use lodestone_pipeline::{
    answers::{AnswerLog, AnswerLogError},
    bundle::{Bundle, BundleError},
    generation::{GenerationError, catch_panic},
    ranking::{Device, Runtime, RuntimeError},
    run::PlannedRequest,
    saved_vectors::SavedVectors,
    serving::ServingError,
};
use lodestone_rollout::{
    BUNDLE_COPIES, BundleSource, Embedded, Generations, LoadError, LoadThreads, LoadedGeneration, Loader, Pointer,
    Rollout, RolloutConfig, RolloutInput, StoreError, first_bundle, start_shadow,
};
use lodestone_rules::{Synonyms, SynonymsError};
use lodestone_state::{
    LiveState, RecoveredState, RecoveryError, RecoveryOptions, Searches, StateLimits, checkpoints::Checkpoints,
    recover, state_with_items,
};
use lodestone_telemetry::Metrics;
use parking_lot::Mutex;
use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicU64},
    thread,
    time::Instant,
};

/// The event log in the data directory; see `docs/event-log.md`.
pub const LOG: &str = "log";
/// The answer log in the data directory; see `docs/answers.md`.
pub const ANSWERS: &str = "answers";
/// The saved vectors of written items in the data directory; see `docs/event-log.md`.
pub const ITEM_VECTORS: &str = "item_vectors.cache";
/// The imported history in the data directory; see `docs/events.md`.
const EVENTS: &str = "events.parquet";

/// The inputs and configuration of an engine.
pub struct OpenOptions<'a> {
    pub bundle: BundleSource,
    /// The shop's data directory: imported history and event log.
    pub data: &'a Path,
    /// The library of ONNX Runtime; none: the usual paths are searched.
    pub library: Option<&'a Path>,
    pub device: Device,
    /// A list of synonyms; see `docs/search.md`.
    pub synonyms: Option<&'a Path>,
    /// The languages of the items' texts.
    pub languages: Languages,
    /// Number of different users that must have searched for a text before it is a completion for others.
    pub completion_users_min: usize,
    pub workers: usize,
    pub queue_requests_max: usize,
    /// Shifts the imported history so that it ends now, for demonstrations with old data. Checkpoints are not used
    /// then.
    pub history_ends_now: bool,
    /// Maximum number of event ids that are remembered for deduplication.
    pub dedupe_ids_max: usize,
    pub limits: StateLimits,
    pub config: EngineConfig,
    pub rollout: RolloutConfig,
}

/// The reason why an engine cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Bundle(#[from] BundleError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    #[error(transparent)]
    Generation(#[from] GenerationError),
    #[error(transparent)]
    Recovery(#[from] RecoveryError),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Serving(#[from] ServingError),
    #[error(transparent)]
    LogMissing(#[from] LogMissing),
    #[error(transparent)]
    TokenKey(#[from] TokenKeyError),
    #[error("answer log: {0}")]
    Answers(#[from] AnswerLogError),
    #[error("synonyms: {0}")]
    Synonyms(#[from] SynonymsError),
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
}

/// The reason why a data directory has no event log.
#[derive(Debug, thiserror::Error)]
pub enum LogMissing {
    #[error("{log} has no event log, because no server has used the data directory {data} yet; check --data")]
    Unused { log: PathBuf, data: PathBuf },
    #[error(
        "{log} has no event log, but a server has used the data directory {data}: the log was moved or removed, or its \
         volume is not mounted; put it back, or go on without its events by \
         `lodestone events verify --data {data} --repair`"
    )]
    Lost { log: PathBuf, data: PathBuf },
}

/// Returns the directory of the event log in a data directory.
pub fn event_log(data: &Path) -> Result<PathBuf, LogMissing> {
    let log = data.join(LOG);
    if EventLog::exists(&log) {
        return Ok(log);
    }
    let data = data.to_owned();
    // The key is created after the log.
    match TokenKey::exists(&data) {
        true => Err(LogMissing::Lost { log, data }),
        false => Err(LogMissing::Unused { log, data }),
    }
}

/// Verifies the bundle, opens the models, recovers the state and starts the threads.
pub fn open(options: OpenOptions) -> Result<Engine, OpenError> {
    let synonyms = options.synonyms.map(Synonyms::open).transpose()?.unwrap_or_default();
    let runtime = Runtime::load(options.library)?;
    let (bundle, pointer) = open_bundle(&options)?;
    // A bundle or library that cannot be opened leaves no new data directory.
    create_private_directory(options.data).map_err(io_error(options.data))?;
    let (log, recovered) = recover_state(&options, &bundle)?;
    let log_directory = log.directory().path().to_owned();
    let RecoveredState { state, recent, origin, checkpoint } = recovered;
    check_serving(&options, &bundle, &state)?;
    state.publish_popularity(UnixMillis::now());
    let deduper = Arc::new(Mutex::new(recent));
    let checkpoints = (!options.history_ends_now)
        .then(|| Arc::new(Checkpoints::new(state.clone(), deduper.clone(), log.directory(), origin, checkpoint)));
    let loader = Loader {
        runtime,
        device: options.device,
        worker_count: options.workers.max(1),
        synonyms,
        languages: options.languages,
        state,
        window: options.rollout.bounds.window,
        slates: options.config.slates,
        loads: AtomicU64::new(0),
    };
    let vectors = options.data.join(ITEM_VECTORS);
    let saved = SavedVectors::open(&vectors, &bundle);
    let first = loader.load_opened(bundle, &LoadThreads::exclusive().map_err(io_error(options.data))?, &saved)?;
    if saved.item_count() != first.generation.written_count() {
        first.save_vectors(&vectors);
    }
    drop(saved);
    let generations = Arc::new(Generations::new(first, start_shadow().map_err(io_error(options.data))?));
    let tokens = TokenKey::open(options.data)?;
    let fold = ServerFold::start(generations.clone(), checkpoints.clone()).map_err(io_error(options.data))?;
    let writer = Writer::start(log, deduper, UnixMillis::now, Box::new(fold))?;
    let workers = start_workers(&generations, loader.worker_count, options.queue_requests_max);
    let workers = workers.map_err(io_error(options.data))?;
    let metrics = Metrics::default();
    let answers = AnswerLog::open(&options.data.join(ANSWERS), &options.config.answers, metrics.clone())?;
    metrics.serving(generations.current().name());
    let rollout = Rollout::start(RolloutInput {
        generations: generations.clone(),
        loader,
        threads: LoadThreads::background().map_err(io_error(options.data))?,
        source: Arc::new(options.bundle),
        pointer,
        data: options.data.to_owned(),
        config: options.rollout,
        serving: options.config.serving.clone(),
        metrics: metrics.clone(),
        clock: UnixMillis::now,
    });
    warn_of_currencies(&generations, options.config.currency.as_deref());
    let rules = generations.state.rules();
    Ok(Engine {
        generations,
        rollout: rollout.map_err(io_error(options.data))?,
        workers,
        writer,
        serving_cache: ArcSwap::from_pointee(ServingCache::new(&options.config.serving, rules)),
        currency: options.config.currency,
        serving: options.config.serving,
        answers: Arc::new(answers),
        log_id: tokens.log_id(),
        tokens,
        checkpoints,
        item_vectors: vectors,
        metrics,
        log: log_directory,
        rule_writes: Arc::default(),
        declarations: Arc::default(),
        incentive_writes: Arc::default(),
        preview: Arc::default(),
        at_risk: Arc::default(),
    })
}

/// Warns if requests that compare prices would be refused, or find none.
fn warn_of_currencies(generations: &Generations, chosen: Option<&str>) {
    let catalog = generations.current().generation.catalog.load_full();
    let known = catalog.price_currencies(catalog.alive());
    match chosen {
        None if known.len() > 1 => tracing::warn!(
            currencies = known.join(", "),
            "items have prices in several currencies: requests that compare prices must choose one, or --currency"
        ),
        Some(code) if !known.is_empty() && !known.iter().any(|of| of == code) => tracing::warn!(
            currency = code,
            currencies = known.join(", "),
            "no item has a price in the currency of --currency"
        ),
        _ => {}
    }
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> OpenError {
    let path = path.to_owned();
    move |source| OpenError::Io { path, source }
}

/// Opens the first bundle. Returns it with the store's pointer.
fn open_bundle(options: &OpenOptions) -> Result<(Bundle, Option<Pointer>), OpenError> {
    let (path, pointer) = match &options.bundle {
        BundleSource::Directory(directory) => (directory.clone(), None),
        BundleSource::Store(store) => {
            let (name, pointer) = first_bundle(store, options.data)?;
            // The bundle is copied into it.
            create_private_directory(options.data).map_err(io_error(options.data))?;
            (store.fetch(&name, &options.data.join(BUNDLE_COPIES))?, Some(pointer))
        }
    };
    Ok((Bundle::open(&path)?, pointer))
}

/// Checks the configurations of the file and of the API against each other and against the heads and
/// the loyalty model of the bundle.
fn check_serving(options: &OpenOptions, bundle: &Bundle, state: &LiveState) -> Result<(), ServingError> {
    let (serving, rules) = (&options.config.serving, state.rules());
    serving.check(&rules.serving_configs)?;
    let heads = bundle.manifest.heads.iter().map(|head| head.name.as_str());
    serving.snapshot(&rules.serving_configs).check_bundle(heads, &bundle.loyalty)
}

/// Opens the event log and recovers the state, with the bundle's items as the first keys.
fn recover_state(options: &OpenOptions, bundle: &Bundle) -> Result<(EventLog, RecoveredState), OpenError> {
    let directory = match event_log(options.data) {
        Ok(log) | Err(LogMissing::Unused { log, .. }) => log,
        Err(lost) => return Err(lost.into()),
    };
    let log = EventLog::open(&directory)?;
    if let Some(torn) = log.torn_tail() {
        let (path, position) = (torn.path.display(), log.last_position());
        let (offset, bytes) = (torn.offset, torn.bytes);
        tracing::warn!(%path, offset, bytes, position, "cut the rest of an interrupted write from the event log's end");
    }
    let recovery = RecoveryOptions {
        directory: &directory,
        history: &options.data.join(EVENTS),
        history_end: options.history_ends_now.then(UnixMillis::now),
        dedupe_ids_max: options.dedupe_ids_max,
    };
    let ids = || bundle.items.iter().map(|item| &item.id);
    let empty = || state_with_items(ids(), Searches::new(options.completion_users_min), options.limits);
    let recovered = recover(&log, &recovery, &empty)?;
    Ok((log, recovered))
}

fn start_workers(
    generations: &Arc<Generations>,
    worker_count: usize,
    queue_requests_max: usize,
) -> io::Result<PipelineWorkers> {
    let generations = generations.clone();
    let run =
        move |worker: &mut usize, requests: &[PlannedRequest]| generations.run(*worker, requests, UnixMillis::now());
    Workers::start((0..worker_count).collect(), queue_requests_max, Arc::new(run))
}

/// Applies committed changes to the generations, and signals the threads that merge live items, write checkpoints and
/// publish popularity.
struct ServerFold {
    generations: Arc<Generations>,
    checkpoints: Option<Arc<Checkpoints>>,
    merge_thread: Sender<()>,
    checkpoint_thread: Option<Sender<()>>,
    popularity_thread: Sender<()>,
}

impl ServerFold {
    /// Starts the threads.
    fn start(generations: Arc<Generations>, checkpoints: Option<Arc<Checkpoints>>) -> io::Result<Self> {
        Ok(Self {
            merge_thread: start_merging(generations.clone())?,
            checkpoint_thread: checkpoints.clone().map(start_checkpoints).transpose()?,
            popularity_thread: popularity::start_publishing(generations.state.clone())?,
            generations,
            checkpoints,
        })
    }
}

impl Fold<Embedded> for ServerFold {
    fn apply(&mut self, changes: Vec<(u64, Change, Option<Embedded>)>) -> Applied {
        let applied = self.generations.apply(changes);
        for change in &applied.failures {
            let (position, kind, id, reason) = (change.position, &change.kind, &change.id, &change.reason);
            tracing::error!(position, kind, id, reason, "a change could not be applied; it is quarantined");
        }
        // If a signal is pending already, the threads will check again anyway.
        let _ = self.popularity_thread.try_send(());
        if answering(&self.generations).any(|loaded| loaded.generation.needs_merge()) {
            let _ = self.merge_thread.try_send(());
        }
        if let (Some(checkpoints), Some(thread)) = (&self.checkpoints, &self.checkpoint_thread)
            && checkpoints.is_due()
        {
            let _ = thread.try_send(());
        }
        applied
    }

    fn outcome_without_effect(&self, change: &ItemChange) -> Option<Outcome> {
        self.generations.outcome_without_effect(change)
    }

    fn stop(&mut self, reason: &str) {
        tracing::error!(reason, "the server takes no more writes; a restart applies the log again");
        if let Some(checkpoints) = &self.checkpoints {
            checkpoints.end();
        }
    }
}

/// Returns the generations that answer users, which receive every write.
fn answering(generations: &Generations) -> impl Iterator<Item = Arc<LoadedGeneration>> {
    std::iter::once(generations.current()).chain(generations.canary().map(|canary| canary.loaded))
}

/// Starts the thread that merges live items into new frozen graphs, once now and at each signal. It uses half of the
/// cores, so that answers keep the others. It ends when the sender is dropped.
fn start_merging(generations: Arc<Generations>) -> io::Result<Sender<()>> {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let pool = rayon::ThreadPoolBuilder::new().num_threads((cores / 2).max(1)).thread_name(|_| "merge".into());
    let pool = pool.build().map_err(io::Error::other)?;
    let (sender, signals) = crossbeam_channel::bounded(1);
    let _ = sender.try_send(());
    thread::Builder::new().name("merge".into()).spawn(move || {
        while signals.recv().is_ok() {
            for loaded in answering(&generations).filter(|loaded| loaded.generation.needs_merge()) {
                let begun = Instant::now();
                // A panic must not end the thread, because later merges may succeed.
                match catch_panic(|| pool.install(|| loaded.generation.merge())) {
                    Ok(()) => {
                        let items = loaded.generation.catalog.load().item_count();
                        tracing::info!(items, seconds = begun.elapsed().as_secs_f64(), "merged the live items");
                    }
                    Err(error) => tracing::error!(%error, "the live items could not be merged; they stay live"),
                }
            }
        }
    })?;
    Ok(sender)
}

/// Starts the thread that writes a checkpoint at each signal if one is due. It ends when the sender is dropped.
fn start_checkpoints(checkpoints: Arc<Checkpoints>) -> io::Result<Sender<()>> {
    let (sender, signals) = crossbeam_channel::bounded(1);
    thread::Builder::new().name("checkpoint".into()).spawn(move || {
        while signals.recv().is_ok() {
            // A panic must not end the thread, because later checkpoints may succeed.
            let write = AssertUnwindSafe(|| checkpoints.is_due().then(|| checkpoints.write_and_log()));
            if let Err(panic) = catch_unwind(write) {
                tracing::error!(reason = panic_message(&*panic), "cannot write a checkpoint");
            }
        }
    })?;
    Ok(sender)
}
