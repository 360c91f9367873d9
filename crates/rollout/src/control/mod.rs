//! Control of the rollout: bundles are loaded alongside the current one, tested, warmed and swapped in, and rolled back
//! if they violate a health bound. One thread executes all commands in order.
mod controller;
mod last_served;

use crate::{
    canary::CanaryReport,
    generations::Generations,
    health::{HealthBounds, HealthSummary},
    load_threads::LoadThreads,
    loaded::{LoadedGeneration, Loader},
    routes::Routes,
    shadow::ShadowReport,
    store::{Pointer, Store},
};
use controller::Controller;
use crossbeam_channel::{Sender, TrySendError};
pub use last_served::first_bundle;
use lodestone_core::{error_chain::format_error_chain, units::UnixMillis};
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
use tokio::sync::oneshot;

/// Maximum number of queued commands; one runs at a time.
const QUEUED_COMMANDS_MAX: usize = 16;
/// Directory of downloaded bundles in the data directory.
pub const BUNDLE_COPIES: &str = "bundles";

/// Configuration of the rollout.
#[derive(Debug, Clone)]
pub struct RolloutConfig {
    /// Interval at which the store's pointer to the current bundle is read.
    pub watch: Duration,
    /// Maximum number of previous generations in memory.
    pub kept_max: usize,
    pub bounds: HealthBounds,
}

impl Default for RolloutConfig {
    fn default() -> Self {
        Self { watch: Duration::from_secs(10), kept_max: 1, bounds: HealthBounds::default() }
    }
}

/// The source of bundles.
pub enum BundleSource {
    /// One bundle; no other can be activated.
    Directory(PathBuf),
    Store(Store),
}

/// The state of a bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BundleState {
    /// In the store, not loaded.
    Available,
    Loading,
    /// Answers all users that no canary takes.
    Current,
    /// An earlier current bundle that is still in memory.
    Kept,
    Canary,
    Shadow,
    /// Failed to load, or failed its self-test.
    Refused,
    /// Was rolled back, because it violated a bound or by command.
    RolledBack,
}

/// A bundle with its state and health.
#[derive(Debug, Clone)]
pub struct BundleStatus {
    pub name: String,
    pub state: BundleState,
    /// The reason for a refusal or rollback.
    pub reason: String,
    pub changed_at: Option<UnixMillis>,
    /// The time of the training; none if the bundle is not loaded.
    pub created_at: Option<UnixMillis>,
    /// The time of the last event that it learned from.
    pub trained_until: Option<UnixMillis>,
    pub item_count: usize,
    /// From the first read to the end of warming.
    pub load_time: Option<Duration>,
    /// The share of a canary or shadow, otherwise 0.
    pub share: f64,
    /// Its recent answers.
    pub window: HealthSummary,
    pub shadow: Option<ShadowReport>,
    pub evaluation: Option<CanaryReport>,
}

/// The reason why a rollout command failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RolloutError {
    #[error("there is no bundle `{name}`")]
    Unknown { name: String },
    #[error("bundle `{name}` is refused: {reason}")]
    Refused { name: String, reason: String },
    #[error("no earlier generation is in memory; activate a bundle by its name")]
    NoEarlierBundle,
    #[error("bundle `{name}` is the current bundle already")]
    IsCurrent { name: String },
    #[error("the store cannot be read: {0}")]
    Store(String),
    #[error("{QUEUED_COMMANDS_MAX} changes of models wait already; ListBundles shows which bundle is loading")]
    Busy,
    #[error("the change takes longer than the deadline; ListBundles shows its outcome")]
    Deadline,
    #[error("the thread that executes changes of models ended")]
    Ended,
}

impl RolloutError {
    /// Whether the command cannot be executed as it is. Otherwise the bundle, the store or the server is at fault.
    fn is_mistake_of_caller(&self) -> bool {
        match self {
            Self::Unknown { .. } | Self::NoEarlierBundle | Self::IsCurrent { .. } => true,
            Self::Refused { .. } | Self::Store(_) | Self::Busy | Self::Deadline | Self::Ended => false,
        }
    }
}

enum Command {
    Activate(String),
    Rollback(String),
    SetCanary(Option<(String, f64)>),
    SetShadow(Option<(String, f64)>),
}

/// A command and the channel of its result.
type QueuedCommand = (Command, oneshot::Sender<Result<(), RolloutError>>);

/// The interface to the control thread.
pub struct Rollout {
    commands: Sender<QueuedCommand>,
    records: Arc<BundleRecords>,
    generations: Arc<Generations>,
    source: Arc<BundleSource>,
}

/// Records of bundles that the routes do not contain.
#[derive(Default)]
struct BundleRecords {
    by_name: Mutex<BTreeMap<String, BundleRecord>>,
}

#[derive(Clone, Default)]
struct BundleRecord {
    /// Loading, refused or rolled back.
    state: Option<BundleState>,
    reason: String,
    changed_at: Option<UnixMillis>,
    load_time: Option<Duration>,
}

impl BundleRecords {
    fn set(&self, name: &str, state: Option<BundleState>, reason: &str) {
        let mut records = self.by_name.lock();
        let record = records.entry(name.to_owned()).or_default();
        (record.state, record.reason, record.changed_at) = (state, reason.to_owned(), Some(UnixMillis::now()));
    }
}

/// The parts that the control thread works with.
pub struct RolloutInput {
    pub generations: Arc<Generations>,
    pub loader: Loader,
    pub threads: LoadThreads,
    pub source: Arc<BundleSource>,
    /// The store's pointer as it was read on startup.
    pub pointer: Option<Pointer>,
    /// The data directory.
    pub data: PathBuf,
    pub config: RolloutConfig,
    /// A bundle must have all heads that its configurations name.
    pub serving: Arc<Serving>,
    pub metrics: Metrics,
    pub clock: fn() -> UnixMillis,
}

impl Rollout {
    /// Starts the control thread. It ends when this value is dropped.
    pub fn start(input: RolloutInput) -> io::Result<Self> {
        let (commands, queue) = crossbeam_channel::bounded(QUEUED_COMMANDS_MAX);
        let (generations, records) = (input.generations.clone(), Arc::<BundleRecords>::default());
        let source = input.source.clone();
        let controller = Controller::new(input, records.clone());
        Builder::new().name("models".into()).spawn(move || controller.run(&queue))?;
        Ok(Self { commands, records, generations, source })
    }

    /// Loads a bundle and makes it the current one.
    pub async fn activate(&self, name: String, deadline: Instant) -> Result<(), RolloutError> {
        self.execute(Command::Activate(name), deadline).await
    }

    /// Makes the previous generation the current one.
    pub async fn rollback(&self, reason: String, deadline: Instant) -> Result<(), RolloutError> {
        self.execute(Command::Rollback(reason), deadline).await
    }

    /// Routes a share of the users to a bundle. None: routes all users to the current bundle.
    pub async fn set_canary(&self, canary: Option<(String, f64)>, deadline: Instant) -> Result<(), RolloutError> {
        self.execute(Command::SetCanary(canary), deadline).await
    }

    /// Copies a share of the requests to a bundle, whose answers are discarded. None: ends the shadow traffic.
    pub async fn set_shadow(&self, shadow: Option<(String, f64)>, deadline: Instant) -> Result<(), RolloutError> {
        self.execute(Command::SetShadow(shadow), deadline).await
    }

    async fn execute(&self, command: Command, deadline: Instant) -> Result<(), RolloutError> {
        let (reply, answered) = oneshot::channel();
        self.commands.try_send((command, reply)).map_err(|error| match error {
            TrySendError::Full(_) => RolloutError::Busy,
            TrySendError::Disconnected(_) => RolloutError::Ended,
        })?;
        match tokio::time::timeout_at(deadline.into(), answered).await {
            Err(_) => Err(RolloutError::Deadline),
            Ok(answer) => answer.unwrap_or(Err(RolloutError::Ended)),
        }
    }

    /// Lists every bundle that is loaded, in the store or recorded, by name.
    pub async fn bundles(&self) -> Result<Vec<BundleStatus>, RolloutError> {
        let source = self.source.clone();
        let listed = tokio::task::spawn_blocking(move || match &*source {
            BundleSource::Directory(_) => Ok(Vec::new()),
            BundleSource::Store(store) => store.names().map_err(|error| {
                let reason = format_error_chain(&error);
                tracing::error!(reason, "the store cannot be read");
                RolloutError::Store(without_paths(&reason, &[store.location()]))
            }),
        });
        let names = listed.await.map_err(|_| RolloutError::Ended)??;
        let routes = self.generations.routes();
        let records = self.records.by_name.lock().clone();
        let mut all: BTreeMap<String, BundleStatus> = BTreeMap::new();
        let known = names.iter().map(String::as_str).chain(records.keys().map(String::as_str));
        for name in known.chain(routes.loaded().map(|loaded| loaded.name())) {
            all.entry(name.to_owned()).or_insert_with(|| status(name, &routes, records.get(name)));
        }
        Ok(all.into_values().collect())
    }
}

/// Returns the state of a bundle from the routes and its record.
fn status(name: &str, routes: &Routes, record: Option<&BundleRecord>) -> BundleStatus {
    let record = record.cloned().unwrap_or_default();
    let is_it = |loaded: &Arc<LoadedGeneration>| loaded.name() == name;
    let canary = routes.canary.as_ref().filter(|canary| is_it(&canary.loaded));
    let shadow = routes.shadow.as_ref().filter(|shadow| is_it(&shadow.loaded));
    let is_previous = routes.previous.iter().any(is_it);
    let state = match () {
        () if is_it(&routes.current) => BundleState::Current,
        () if canary.is_some() => BundleState::Canary,
        () if shadow.is_some() => BundleState::Shadow,
        () => record.state.unwrap_or(if is_previous { BundleState::Kept } else { BundleState::Available }),
    };
    let loaded = routes.loaded().find(|loaded| is_it(loaded));
    let manifest = loaded.map(|loaded| &loaded.generation.manifest);
    BundleStatus {
        name: name.to_owned(),
        state,
        reason: record.reason,
        changed_at: record.changed_at,
        created_at: manifest.map(|manifest| UnixMillis(manifest.created_ms)),
        trained_until: manifest.map(|manifest| UnixMillis(manifest.trained_until_ms)),
        item_count: loaded.map_or(0, |loaded| loaded.generation.catalog.load().item_count()),
        load_time: record.load_time,
        share: canary.map(|canary| canary.share).or(shadow.map(|shadow| shadow.share)).unwrap_or(0.0),
        window: loaded.map(|loaded| loaded.window.summary()).unwrap_or_default(),
        shadow: shadow.map(|shadow| shadow.report()),
        evaluation: canary.map(|canary| canary.evaluation.report()),
    }
}

/// Removes the directories of paths from an error, because callers of the API need not know where files are: first
/// those of `roots`, which may contain spaces, then those of every word that is an absolute path or a URL. The names of
/// files stay.
fn without_paths(text: &str, roots: &[&str]) -> String {
    let mut text = text.to_owned();
    let is_absolute = |root: &&str| root.len() > 1 && (root.starts_with('/') || root.contains("://"));
    for root in roots.iter().map(|root| root.trim_end_matches('/')).filter(is_absolute) {
        text = text.replace(&format!("{root}/"), "").replace(root, "…");
    }
    let short = |word: &str| {
        let start = word.find(|c: char| c.is_alphanumeric() || c == '/').unwrap_or(0);
        let (quote, path) = word.split_at(start);
        match path.starts_with('/') || path.contains("://") {
            true => format!("{quote}{}", path.rsplit('/').next().unwrap_or_default()),
            false => word.to_owned(),
        }
    };
    text.split(' ').map(short).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_files_without_their_directories() {
        for (text, expected) in [
            ("bundle file /srv/my shop/a/ranker.onnx is damaged", "bundle file a/ranker.onnx is damaged"),
            ("bundle /var/lib/x/manifest.json: no such file", "bundle manifest.json: no such file"),
            ("the library (`/usr/lib/libonnxruntime.so`) is old", "the library (`libonnxruntime.so`) is old"),
            ("store s3://secret-bucket/shop: denied", "store shop: denied"),
            ("store /srv/my shop: denied", "store …: denied"),
            ("the model has 3/4 of the heads", "the model has 3/4 of the heads"),
        ] {
            assert_eq!(without_paths(text, &["/srv/my shop", "store", "/"]), expected);
        }
    }
}
