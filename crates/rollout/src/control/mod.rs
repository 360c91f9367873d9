//! The life of models: bundles are loaded beside the one that answers, tested, warmed, and swapped in; watched, and taken back
//! where they break a bound. One thread does all of it, one thing after the other.
mod last_served;
mod thread;

use super::shadow::ShadowReport;
use crate::store::{Pointer, Store};
use crate::{
    canary::CanaryReport,
    generations::Generations,
    health::{HealthBounds, HealthSummary},
    load_threads::LoadThreads,
    loaded::{LoadedGeneration, Loader},
    routes::Routes,
};
use crossbeam_channel::{Sender, TrySendError};
pub use last_served::first_bundle;
use lodestone_core::units::UnixMillis;
use lodestone_pipeline::serving::Serving;
use lodestone_telemetry::Metrics;
use parking_lot::Mutex;
use std::{
    collections::BTreeMap,
    io,
    path::PathBuf,
    sync::Arc,
    thread::Builder,
    time::{Duration, Instant},
};
use thread::Thread;
use tokio::sync::oneshot;

/// Changes that wait at most: one is made at a time.
const ORDERS_MAX: usize = 16;
/// Copies of bundles of an object store, in the data directory.
pub const BUNDLE_COPIES: &str = "bundles";

/// How bundles come and go.
#[derive(Debug, Clone)]
pub struct RolloutConfig {
    /// How often the store is asked which bundle is to serve.
    pub watch: Duration,
    /// Generations that stay in memory after they answered.
    pub kept_max: usize,
    pub bounds: HealthBounds,
}

impl Default for RolloutConfig {
    fn default() -> Self {
        Self { watch: Duration::from_secs(10), kept_max: 1, bounds: HealthBounds::default() }
    }
}

/// Where bundles come from.
pub enum BundleSource {
    /// One directory, which is all there is.
    Directory(PathBuf),
    Store(Store),
}

/// What became of a bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BundleState {
    /// In the store, not loaded.
    Available,
    Loading,
    /// Answers.
    Current,
    /// ServedAnswer before and is still in memory.
    Kept,
    Canary,
    Shadow,
    /// Could not be loaded, or failed its self-test.
    Refused,
    /// Broke a bound, or was taken back by hand.
    RolledBack,
}

/// A bundle and how it goes.
#[derive(Debug, Clone)]
pub struct BundleStatus {
    pub name: String,
    pub state: BundleState,
    /// Why it was refused or taken back.
    pub reason: String,
    pub changed_at: Option<UnixMillis>,
    /// When it was made, and up to when it learned; none where its manifest was not read.
    pub created_at: Option<UnixMillis>,
    pub trained_until: Option<UnixMillis>,
    pub item_count: usize,
    /// From reading its first byte to being ready.
    pub load_time: Option<Duration>,
    /// Of a canary or a shadow: its share.
    pub share: f64,
    /// Its answers of late.
    pub window: HealthSummary,
    pub shadow: Option<ShadowReport>,
    pub evaluation: Option<CanaryReport>,
}

/// Why the life of a model does not change.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RolloutError {
    #[error("there is no bundle `{name}`")]
    Unknown { name: String },
    #[error("bundle `{name}` is refused: {reason}")]
    Refused { name: String, reason: String },
    #[error("no earlier generation is in memory; activate a bundle by its name")]
    NothingKept,
    #[error("bundle `{name}` answers everybody already")]
    IsCurrent { name: String },
    #[error("the store cannot be read: {0}")]
    Store(String),
    #[error("{ORDERS_MAX} changes of models wait already; ListBundles tells what is loading")]
    Busy,
    #[error("the change takes longer than the deadline; ListBundles tells what becomes of it")]
    Deadline,
    #[error("the thread that changes models ended")]
    Ended,
}

enum Command {
    Activate(String),
    Rollback(String),
    SetCanary(Option<(String, f64)>),
    SetShadow(Option<(String, f64)>),
}

type Order = (Command, oneshot::Sender<Result<(), RolloutError>>);

/// The door to the thread.
pub struct Rollout {
    orders: Sender<Order>,
    notes: Arc<Notes>,
    generations: Arc<Generations>,
    source: Arc<BundleSource>,
}

/// What is told of bundles beside where they are now.
#[derive(Default)]
struct Notes {
    by_name: Mutex<BTreeMap<String, Note>>,
}

#[derive(Clone, Default)]
struct Note {
    /// Loading, refused or taken back.
    state: Option<BundleState>,
    reason: String,
    changed_at: Option<UnixMillis>,
    load_time: Option<Duration>,
}

impl Notes {
    fn set(&self, name: &str, state: Option<BundleState>, reason: &str) {
        let mut notes = self.by_name.lock();
        let note = notes.entry(name.to_owned()).or_default();
        (note.state, note.reason, note.changed_at) = (state, reason.to_owned(), Some(UnixMillis::now()));
    }
}

/// What the thread works with.
pub struct Parts {
    pub generations: Arc<Generations>,
    pub loader: Loader,
    pub threads: LoadThreads,
    pub source: Arc<BundleSource>,
    /// The pointer that was read at the start.
    pub seen: Option<Pointer>,
    pub data: PathBuf,
    pub config: RolloutConfig,
    /// Its configurations name heads, which a bundle must have.
    pub serving: Arc<Serving>,
    pub metrics: Metrics,
    pub clock: fn() -> UnixMillis,
}

impl Rollout {
    /// Starts the thread. It ends with this value.
    pub fn start(parts: Parts) -> io::Result<Self> {
        let (orders, given) = crossbeam_channel::bounded(ORDERS_MAX);
        let (generations, notes) = (parts.generations.clone(), Arc::<Notes>::default());
        let source = parts.source.clone();
        let thread = Thread::new(parts, notes.clone());
        Builder::new().name("models".into()).spawn(move || thread.run(&given))?;
        Ok(Self { orders, notes, generations, source })
    }

    pub async fn activate(&self, name: String, deadline: Instant) -> Result<(), RolloutError> {
        self.order(Command::Activate(name), deadline).await
    }

    /// Back to the generation before.
    pub async fn rollback(&self, reason: String, deadline: Instant) -> Result<(), RolloutError> {
        self.order(Command::Rollback(reason), deadline).await
    }

    /// Gives a share of the users to a bundle; none: all go back to the current one.
    pub async fn set_canary(&self, canary: Option<(String, f64)>, deadline: Instant) -> Result<(), RolloutError> {
        self.order(Command::SetCanary(canary), deadline).await
    }

    /// Asks a bundle a share of the requests without using its answers; none: no more.
    pub async fn set_shadow(&self, shadow: Option<(String, f64)>, deadline: Instant) -> Result<(), RolloutError> {
        self.order(Command::SetShadow(shadow), deadline).await
    }

    async fn order(&self, command: Command, deadline: Instant) -> Result<(), RolloutError> {
        let (reply, answered) = oneshot::channel();
        self.orders.try_send((command, reply)).map_err(|error| match error {
            TrySendError::Full(_) => RolloutError::Busy,
            TrySendError::Disconnected(_) => RolloutError::Ended,
        })?;
        match tokio::time::timeout_at(deadline.into(), answered).await {
            Err(_) => Err(RolloutError::Deadline),
            Ok(answer) => answer.unwrap_or(Err(RolloutError::Ended)),
        }
    }

    /// Every bundle that is loaded or in the store, by name.
    pub async fn bundles(&self) -> Result<Vec<BundleStatus>, RolloutError> {
        let source = self.source.clone();
        let listed = tokio::task::spawn_blocking(move || match &*source {
            BundleSource::Directory(_) => Ok(Vec::new()),
            BundleSource::Store(store) => store.names(),
        });
        let names =
            listed.await.map_err(|_| RolloutError::Ended)?.map_err(|error| RolloutError::Store(told(&error)))?;
        let routes = self.generations.routes();
        let notes = self.notes.by_name.lock().clone();
        let mut all: BTreeMap<String, BundleStatus> = BTreeMap::new();
        let places = names.iter().map(String::as_str).chain(notes.keys().map(String::as_str));
        for name in places.chain(routes.loaded().map(|loaded| loaded.name())) {
            all.entry(name.to_owned()).or_insert_with(|| status(name, &routes, notes.get(name)));
        }
        Ok(all.into_values().collect())
    }
}

/// Where a bundle is now, with what was noted of it.
fn status(name: &str, routes: &Routes, note: Option<&Note>) -> BundleStatus {
    let note = note.cloned().unwrap_or_default();
    let is_it = |loaded: &Arc<LoadedGeneration>| loaded.name() == name;
    let canary = routes.canary.as_ref().filter(|canary| is_it(&canary.loaded));
    let shadow = routes.shadow.as_ref().filter(|shadow| is_it(&shadow.loaded));
    let kept = routes.kept.iter().any(is_it);
    let state = match () {
        () if is_it(&routes.current) => BundleState::Current,
        () if canary.is_some() => BundleState::Canary,
        () if shadow.is_some() => BundleState::Shadow,
        () => note.state.unwrap_or(if kept { BundleState::Kept } else { BundleState::Available }),
    };
    let loaded = routes.loaded().find(|loaded| is_it(loaded));
    let manifest = loaded.map(|loaded| &loaded.generation.manifest);
    BundleStatus {
        name: name.to_owned(),
        state,
        reason: note.reason,
        changed_at: note.changed_at,
        created_at: manifest.map(|manifest| UnixMillis(manifest.created_ms)),
        trained_until: manifest.map(|manifest| UnixMillis(manifest.trained_until_ms)),
        item_count: loaded.map_or(0, |loaded| loaded.generation.catalog.load().item_count()),
        load_time: note.load_time,
        share: canary.map(|canary| canary.share).or(shadow.map(|shadow| shadow.share)).unwrap_or(0.0),
        window: loaded.map(|loaded| loaded.window.summary()).unwrap_or_default(),
        shadow: shadow.map(|shadow| shadow.report()),
        evaluation: canary.map(|canary| canary.evaluation.report()),
    }
}

/// An error with its causes, on one line.
fn told(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}
