//! From files to a running engine: bundle, imported history, log.
use super::{
    engine::{Engine, EngineConfig},
    token::TokenKey,
    workers::Workers,
};
use lodestone_core::units::UnixMillis;
use lodestone_events::{Apply, EventLog, LogError, Writer};
use lodestone_index::{Synonyms, SynonymsError};
use lodestone_pipeline::{
    answers::{AnswersError, AnswersLog},
    bundle::{Bundle, BundleError},
    ranking::{Device, Runtime, RuntimeError},
    serving::ServingError,
};
use lodestone_pipeline::{generation::GenerationError, run::PlannedRequest};
use lodestone_rollout::{
    BUNDLE_COPIES, BundleSource, Embedded, Generations, LoadError, LoadThreads, Loader, Parts, Rollout, RolloutConfig,
    StoreError, first_bundle, start_shadow,
};
use lodestone_state::{RecoveryError, RecoveryOptions, checkpoints::Checkpoints, recover, state_of_items};
use lodestone_telemetry::Metrics;
use parking_lot::Mutex;
use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicU64},
};

const TOKEN_KEY: &str = "token.key";
const LOG: &str = "log";
/// The log of answers; see `docs/answers.md`.
pub const ANSWERS: &str = "answers";
/// The imported history in the data directory; see `docs/events.md`.
const EVENTS: &str = "events.parquet";

/// What an engine is opened from.
pub struct OpenOptions<'a> {
    pub bundle: BundleSource,
    /// The shop's data directory: imported history and the log.
    pub data: &'a Path,
    /// The library of ONNX Runtime; none: it is looked for.
    pub library: Option<&'a Path>,
    pub device: Device,
    /// A list of synonyms; see `docs/search.md`.
    pub synonyms: Option<&'a Path>,
    pub workers: usize,
    pub queue_requests_max: usize,
    /// Moves the imported history so that it ends now: for demonstrations with old data. No checkpoints are used then.
    pub history_ends_now: bool,
    /// Event ids that are remembered at most.
    pub dedupe_ids_max: usize,
    pub config: EngineConfig,
    pub rollout: RolloutConfig,
}

/// Why an engine does not start.
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
    #[error("the log of answers: {0}")]
    Answers(#[from] AnswersError),
    #[error("synonyms: {0}")]
    Synonyms(#[from] SynonymsError),
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
}

/// Verifies the bundle, opens the models, folds the history and the log, and starts the threads.
pub fn open(opening: OpenOptions) -> Result<Engine, OpenError> {
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| OpenError::Io { path, source }
    };
    let synonyms = opening.synonyms.map(Synonyms::open).transpose()?.unwrap_or_default();
    fs::create_dir_all(opening.data).map_err(io(opening.data))?;
    let (place, seen) = match &opening.bundle {
        BundleSource::Directory(directory) => (directory.clone(), None),
        BundleSource::Store(store) => {
            let (name, pointer) = first_bundle(store, opening.data)?;
            (store.fetch(&name, &opening.data.join(BUNDLE_COPIES))?, Some(pointer))
        }
    };
    let bundle = Bundle::open(&place)?;
    opening.config.serving.check_heads(bundle.manifest.heads.iter().map(|head| head.name.as_str()))?;
    let runtime = Runtime::load(opening.library)?;
    let directory = opening.data.join(LOG);
    let log = EventLog::open(&directory)?;
    if let Some(torn) = log.torn_tail() {
        let (path, position) = (torn.path.display(), log.last_position());
        let (offset, bytes) = (torn.offset, torn.bytes);
        tracing::warn!(%path, offset, bytes, position, "cut the rest of an interrupted write from the event log's end");
    }
    let recovery = RecoveryOptions {
        directory: &directory,
        history: &opening.data.join(EVENTS),
        history_end: opening.history_ends_now.then(UnixMillis::now),
        dedupe_ids_max: opening.dedupe_ids_max,
    };
    let folded = recover(&log, &recovery, &|| state_of_items(bundle.items.iter().map(|item| &item.id)))?;
    let state = folded.state;
    let recent = Arc::new(Mutex::new(folded.recent));
    let checkpoints =
        Arc::new(Checkpoints::new(state.clone(), recent.clone(), &directory, folded.origin, folded.checkpoint));
    let checkpoints = (!opening.history_ends_now).then_some(checkpoints);
    let loader = Loader {
        runtime,
        device: opening.device,
        worker_count: opening.workers.max(1),
        synonyms,
        state,
        window: opening.rollout.bounds.window,
        slates: opening.config.slates,
        loads: AtomicU64::new(0),
    };
    let first = loader.load_opened(bundle, &LoadThreads::alone().map_err(io(opening.data))?)?;
    let generations = Arc::new(Generations::new(first, start_shadow().map_err(io(opening.data))?));
    let tokens = token_key(&opening.data.join(TOKEN_KEY)).map_err(io(opening.data))?;

    let apply = apply_changes(generations.clone(), checkpoints.clone()).map_err(io(opening.data))?;
    let writer = Writer::start(log, recent, UnixMillis::now, apply)?;
    let shared = generations.clone();
    let run = move |worker: &mut usize, requests: &[PlannedRequest]| shared.run(*worker, requests, UnixMillis::now());
    let workers = (0..loader.worker_count).collect();
    let workers = Workers::start(workers, opening.queue_requests_max, Arc::new(run)).map_err(io(opening.data))?;
    let metrics = Metrics::default();
    let answers = AnswersLog::open(&opening.data.join(ANSWERS), &opening.config.answers, metrics.clone())?;
    metrics.serving(generations.current().name());
    let rollout = Rollout::start(Parts {
        generations: generations.clone(),
        loader,
        threads: LoadThreads::beside_answers().map_err(io(opening.data))?,
        source: Arc::new(opening.bundle),
        seen,
        data: opening.data.to_owned(),
        config: opening.rollout,
        serving: opening.config.serving.clone(),
        metrics: metrics.clone(),
        clock: UnixMillis::now,
    });
    Ok(Engine {
        generations,
        rollout: rollout.map_err(io(opening.data))?,
        workers,
        writer,
        serving: opening.config.serving.clone(),
        answers: Arc::new(answers),
        tokens,
        checkpoints,
        metrics,
    })
}

/// Returns the function that applies committed changes, and starts the threads that merge live items and write checkpoints.
fn apply_changes(generations: Arc<Generations>, checkpoints: Option<Arc<Checkpoints>>) -> io::Result<Apply<Embedded>> {
    let merging = start_merging(generations.clone())?;
    let taking = checkpoints.clone().map(start_checkpoints).transpose()?;
    Ok(Box::new(move |changes| {
        if let Err(error) = generations.apply(changes) {
            tracing::error!(%error, "a committed change could not be indexed");
        }
        if generations.current().generation.needs_merge() {
            // Full: it will look once more anyway.
            let _ = merging.try_send(());
        }
        if let (Some(due), Some(taking)) = (&checkpoints, &taking)
            && due.is_due()
        {
            let _ = taking.try_send(());
        }
    }))
}

/// Starts the thread that merges live items into new frozen graphs, once now and whenever it is told; on half of the cores,
/// so that answers keep the others. It ends with its sender.
fn start_merging(generations: Arc<Generations>) -> io::Result<crossbeam_channel::Sender<()>> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let pool = rayon::ThreadPoolBuilder::new().num_threads((cores / 2).max(1)).thread_name(|_| "merge".into());
    let pool = pool.build().map_err(io::Error::other)?;
    let (sender, told) = crossbeam_channel::bounded(1);
    let _ = sender.try_send(());
    std::thread::Builder::new().name("merge".into()).spawn(move || {
        while told.recv().is_ok() {
            let served = generations.current();
            let generation = &served.generation;
            if !generation.needs_merge() {
                continue;
            }
            let begun = std::time::Instant::now();
            match pool.install(|| generation.merge()) {
                Ok(()) => {
                    let items = generation.catalog.load().item_count();
                    tracing::info!(items, seconds = begun.elapsed().as_secs_f64(), "merged the live items");
                }
                Err(error) => tracing::error!(%error, "the live items could not be merged; they stay live"),
            }
        }
    })?;
    Ok(sender)
}

/// Starts the thread that takes the state down when it is told and enough has changed. It ends with its sender.
fn start_checkpoints(checkpoints: Arc<Checkpoints>) -> io::Result<crossbeam_channel::Sender<()>> {
    let (sender, told) = crossbeam_channel::bounded(1);
    std::thread::Builder::new().name("checkpoint".into()).spawn(move || {
        while told.recv().is_ok() {
            if checkpoints.is_due() {
                checkpoints.write_and_log();
            }
        }
    })?;
    Ok(sender)
}

/// Reads the key that signs tokens, or makes one.
fn token_key(path: &Path) -> io::Result<TokenKey> {
    if let Ok(bytes) = fs::read(path)
        && let Ok(key) = <[u8; 32]>::try_from(bytes.as_slice())
    {
        return Ok(TokenKey::new(key));
    }
    let key: [u8; 32] = rand::random();
    fs::write(path, key)?;
    fs::File::open(path)?.sync_all()?;
    Ok(TokenKey::new(key))
}
