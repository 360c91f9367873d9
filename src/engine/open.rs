//! From files to a running engine: bundle, imported history, log.
use super::{
    engine::{Engine, EngineConfig},
    generation::GenerationError,
    generations::{Embedded, Generations, Loader},
    live::Live,
    stories::Question,
    token::TokenKey,
    workers::Workers,
};
use crate::{
    answers::{AnswersError, AnswersLog},
    bundle::{Bundle, BundleError},
    dataset::{self, DatasetError},
    events::{Change, Deduper, EventLog, LogError, Writer},
    ranking::{Device, Runtime, RuntimeError},
    retrieval::{Synonyms, SynonymsError},
    serving::ServingError,
    telemetry::Metrics,
    units::UnixMillis,
};
use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

const TOKEN_KEY: &str = "token.key";
const LOG: &str = "log";
/// The log of answers; see `docs/answers.md`.
pub const ANSWERS: &str = "answers";
/// The imported history in the data directory; see `docs/events.md`.
const EVENTS: &str = "events.parquet";

/// What an engine is opened from.
pub struct Opening<'a> {
    pub bundle: &'a Path,
    /// The shop's data directory: imported history and the log.
    pub data: &'a Path,
    /// The library of ONNX Runtime; none: it is looked for.
    pub library: Option<&'a Path>,
    pub device: Device,
    /// A list of synonyms; see `docs/search.md`.
    pub synonyms: Option<&'a Path>,
    pub workers: usize,
    pub queue_requests_max: usize,
    /// Moves the imported history so that it ends now: for demonstrations with old data.
    pub history_ends_now: bool,
    pub config: EngineConfig,
}

/// Why an engine does not start.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Bundle(#[from] BundleError),
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    #[error(transparent)]
    Generation(#[from] GenerationError),
    #[error(transparent)]
    Dataset(#[from] DatasetError),
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
pub fn open(opening: Opening) -> Result<Engine, OpenError> {
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| OpenError::Io { path, source }
    };
    let synonyms = opening.synonyms.map(Synonyms::open).transpose()?.unwrap_or_default();
    let bundle = Bundle::open(opening.bundle)?;
    opening.config.serving.check_heads(bundle.manifest.heads.iter().map(|head| head.name.as_str()))?;
    let runtime = Runtime::load(opening.library)?;
    let live = Arc::new(Live::default());
    // First, so that the bundle's items have the keys 0, 1, 2, … and its tables need no other.
    for item in &bundle.items {
        live.keys.intern(&item.id);
    }

    fs::create_dir_all(opening.data).map_err(io(opening.data))?;
    let mut deduper = Deduper::default();
    fold_history(&live, opening.data, opening.history_ends_now)?;
    let log = EventLog::open(&opening.data.join(LOG))?;
    replay(&live, &log, &mut deduper)?;
    let worker_count = opening.workers.max(1);
    let loader = Loader::new(runtime, opening.device, worker_count, synonyms, live);
    let generations = Arc::new(Generations::new(loader.load(bundle)?));
    let tokens = token_key(&opening.data.join(TOKEN_KEY)).map_err(io(opening.data))?;

    let merging = start_merging(generations.clone()).map_err(io(opening.data))?;
    let folded = generations.clone();
    let apply = move |changes: Vec<(u64, Change, Option<Embedded>)>| {
        if let Err(error) = folded.apply(changes) {
            tracing::error!(%error, "a committed change could not be indexed");
        }
        if folded.current().generation.wants_merge() {
            // Full: it will look once more anyway.
            let _ = merging.try_send(());
        }
    };
    let writer = Writer::start(log, deduper, Box::new(apply))?;
    let told = generations.clone();
    let tell = move |worker: &mut usize, questions: &[Question]| told.tell(*worker, questions);
    let workers = (0..worker_count).collect();
    let workers = Workers::start(workers, opening.queue_requests_max, Arc::new(tell)).map_err(io(opening.data))?;
    let metrics = Metrics::default();
    let answers = AnswersLog::open(&opening.data.join(ANSWERS), &opening.config.answers, metrics.clone())?;
    Ok(Engine::new(generations, workers, writer, answers, tokens, &opening.config, metrics))
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
            if !generation.wants_merge() {
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

/// What was imported is the state before the log's first position.
fn fold_history(live: &Live, data: &Path, ends_now: bool) -> Result<(), OpenError> {
    let path = data.join(EVENTS);
    if !path.exists() {
        return Ok(());
    }
    let mut events = dataset::into_events(dataset::read_events(&path)?);
    let last = events.iter().map(|event| event.at.0).max().unwrap_or(0);
    let shift = if ends_now { UnixMillis::now().0 - last } else { 0 };
    for event in &mut events {
        event.at.0 += shift;
        live.apply_event(0, event);
    }
    tracing::info!(events = events.len(), "folded the imported history");
    Ok(())
}

fn replay(live: &Live, log: &EventLog, deduper: &mut Deduper) -> Result<(), OpenError> {
    let mut catalogue = live.catalogue.lock();
    let last = log.replay(1, |position, change| {
        live.note_position(position);
        match change {
            Change::Event(event) => {
                deduper.note(&event.id);
                live.apply_event(position, &event);
            }
            Change::Upsert(item) => catalogue.note((item.id.clone(), Some(Arc::new(*item)))),
            Change::Delete(id) => catalogue.note((id, None)),
        }
    })?;
    tracing::info!(position = last, "replayed the log");
    Ok(())
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
