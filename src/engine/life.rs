//! The life of models: bundles are loaded beside the one that answers, tested, warmed, and swapped in; watched, and taken back
//! where they break a bound. One thread does all of it, one thing after the other.
use super::{
    background::{self, lower_priority},
    generations::{Canary, Generations, Loader, Routes, Served},
    shadow::{Shadow, ShadowReport, ShadowWork},
    trial::TrialReport,
    window::{Bounds, Summary},
};
use crate::{
    bundle::{Pointer, Store, StoreError},
    serving::Serving,
    telemetry::Metrics,
    units::UnixMillis,
};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use parking_lot::Mutex;
use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};
use tokio::sync::oneshot;

/// How often bounds are looked at.
const TICK: Duration = Duration::from_millis(500);
/// Which bundles served last, in the data directory.
const SERVING: &str = "serving.json";
/// Copies of bundles of an object store, in the data directory.
pub const CACHE: &str = "bundles";

/// How bundles come and go.
#[derive(Debug, Clone)]
pub struct LifeConfig {
    /// How often the store is asked which bundle is to serve.
    pub watch: Duration,
    /// Generations that stay in memory after they answered.
    pub kept_max: usize,
    pub bounds: Bounds,
}

impl Default for LifeConfig {
    fn default() -> Self {
        Self { watch: Duration::from_secs(10), kept_max: 1, bounds: Bounds::default() }
    }
}

/// Where bundles come from.
pub enum Source {
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
    /// Answered before and is still in memory.
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
    pub window: Summary,
    pub shadow: Option<ShadowReport>,
    pub trial: Option<TrialReport>,
}

/// Why the life of a model does not change.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LifeError {
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

type Order = (Command, oneshot::Sender<Result<(), LifeError>>);

/// The door to the thread.
pub struct Life {
    orders: Sender<Order>,
    notes: Arc<Notes>,
    generations: Arc<Generations>,
    source: Arc<Source>,
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
    pub pool: rayon::ThreadPool,
    pub source: Source,
    /// The pointer that was read at the start.
    pub seen: Option<Pointer>,
    pub data: PathBuf,
    pub config: LifeConfig,
    /// Its configurations name heads, which a bundle must have.
    pub serving: Arc<Serving>,
    pub metrics: Metrics,
}

impl Life {
    /// Starts the thread. It ends with this value.
    pub fn start(parts: Parts) -> io::Result<Self> {
        let (orders, given) = crossbeam_channel::bounded(16);
        let (generations, notes) = (parts.generations.clone(), Arc::<Notes>::default());
        let source = Arc::new(parts.source);
        let thread = Thread {
            generations: parts.generations,
            loader: parts.loader,
            pool: parts.pool,
            source: source.clone(),
            seen: parts.seen,
            data: parts.data,
            config: parts.config,
            serving: parts.serving,
            metrics: parts.metrics,
            notes: notes.clone(),
            probation: None,
            retired: Vec::new(),
            watched: Instant::now(),
        };
        thread::Builder::new().name("models".into()).spawn(move || thread.run(&given))?;
        Ok(Self { orders, notes, generations, source })
    }

    pub async fn activate(&self, name: String, deadline: Instant) -> Result<(), LifeError> {
        self.order(Command::Activate(name), deadline).await
    }

    /// Back to the generation before.
    pub async fn rollback(&self, reason: String, deadline: Instant) -> Result<(), LifeError> {
        self.order(Command::Rollback(reason), deadline).await
    }

    /// Gives a share of the persons to a bundle; none: all go back to the current one.
    pub async fn set_canary(&self, canary: Option<(String, f64)>, deadline: Instant) -> Result<(), LifeError> {
        self.order(Command::SetCanary(canary), deadline).await
    }

    /// Asks a bundle a share of the requests without using its answers; none: no more.
    pub async fn set_shadow(&self, shadow: Option<(String, f64)>, deadline: Instant) -> Result<(), LifeError> {
        self.order(Command::SetShadow(shadow), deadline).await
    }

    async fn order(&self, command: Command, deadline: Instant) -> Result<(), LifeError> {
        let (reply, answered) = oneshot::channel();
        self.orders.try_send((command, reply)).map_err(|_| LifeError::Ended)?;
        match tokio::time::timeout_at(deadline.into(), answered).await {
            Err(_) => Err(LifeError::Deadline),
            Ok(answer) => answer.unwrap_or(Err(LifeError::Ended)),
        }
    }

    /// Every bundle that is loaded or in the store, by name.
    pub async fn bundles(&self) -> Result<Vec<BundleStatus>, LifeError> {
        let source = self.source.clone();
        let listed = tokio::task::spawn_blocking(move || match &*source {
            Source::Directory(_) => Ok(Vec::new()),
            Source::Store(store) => store.names(),
        });
        let names = listed.await.map_err(|_| LifeError::Ended)?.map_err(|error| LifeError::Store(told(&error)))?;
        let routes = self.generations.routes();
        let notes = self.notes.by_name.lock().clone();
        let mut all: BTreeMap<String, BundleStatus> = BTreeMap::new();
        let places = names.iter().map(String::as_str).chain(notes.keys().map(String::as_str));
        for name in places.chain(routes.loaded().map(|served| served.name())) {
            all.entry(name.to_owned()).or_insert_with(|| status(name, &routes, notes.get(name)));
        }
        Ok(all.into_values().collect())
    }
}

/// Where a bundle is now, with what was noted of it.
fn status(name: &str, routes: &Routes, note: Option<&Note>) -> BundleStatus {
    let note = note.cloned().unwrap_or_default();
    let is_it = |served: &Arc<Served>| served.name() == name;
    let canary = routes.canary.as_ref().filter(|canary| is_it(&canary.served));
    let shadow = routes.shadow.as_ref().filter(|shadow| is_it(&shadow.served));
    let kept = routes.kept.iter().any(is_it);
    let state = match () {
        () if is_it(&routes.current) => BundleState::Current,
        () if canary.is_some() => BundleState::Canary,
        () if shadow.is_some() => BundleState::Shadow,
        () => note.state.unwrap_or(if kept { BundleState::Kept } else { BundleState::Available }),
    };
    let served = routes.loaded().find(|served| is_it(served));
    let manifest = served.map(|served| &served.generation.manifest);
    BundleStatus {
        name: name.to_owned(),
        state,
        reason: note.reason,
        changed_at: note.changed_at,
        created_at: manifest.map(|manifest| UnixMillis(manifest.created_ms)),
        trained_until: manifest.map(|manifest| UnixMillis(manifest.trained_until_ms)),
        item_count: served.map_or(0, |served| served.generation.catalog.load().item_count()),
        load_time: note.load_time,
        share: canary.map(|canary| canary.share).or(shadow.map(|shadow| shadow.share)).unwrap_or(0.0),
        window: served.map(|served| served.window.summary()).unwrap_or_default(),
        shadow: shadow.map(|shadow| shadow.report()),
        trial: canary.map(|canary| canary.trial.report()),
    }
}

struct Thread {
    generations: Arc<Generations>,
    loader: Loader,
    pool: rayon::ThreadPool,
    source: Arc<Source>,
    seen: Option<Pointer>,
    data: PathBuf,
    config: LifeConfig,
    serving: Arc<Serving>,
    metrics: Metrics,
    notes: Arc<Notes>,
    /// Until when the current generation is judged, beside what the one before did.
    probation: Option<(Instant, Summary)>,
    /// Answers of theirs may still be under way. They are freed here, so that no answer waits for it.
    retired: Vec<Arc<Served>>,
    watched: Instant,
}

impl Thread {
    fn run(mut self, orders: &Receiver<Order>) {
        self.resume_trials();
        loop {
            match orders.recv_timeout(TICK.min(self.config.watch)) {
                Ok((command, reply)) => {
                    let result = self.obey(command);
                    if let Err(error) = &result {
                        tracing::warn!(%error, "models do not change");
                    }
                    // A caller may have stopped waiting.
                    let _ = reply.send(result);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            self.watch();
            self.judge();
            if let Err(error) = self.generations.catch_up_others() {
                tracing::warn!(%error, "a generation that answers nobody misses changes of the catalogue");
            }
            self.free();
        }
    }

    /// Goes on with the canary and the shadow that were there before a restart.
    fn resume_trials(&mut self) {
        let Some(last) = self.seen.as_ref().and_then(|pointer| LastServed::read(&self.data, pointer)) else { return };
        let results = [
            last.canary.map(|canary| self.set_canary(Some(canary))),
            last.shadow.map(|shadow| self.set_shadow(Some(shadow))),
        ];
        for error in results.into_iter().flatten().filter_map(Result::err) {
            tracing::warn!(%error, "a trial does not go on after the restart");
        }
    }

    fn obey(&mut self, command: Command) -> Result<(), LifeError> {
        match command {
            Command::Activate(name) => self.activate(&name),
            Command::Rollback(reason) => self.roll_back(&reason),
            Command::SetCanary(canary) => self.set_canary(canary),
            Command::SetShadow(shadow) => self.set_shadow(shadow),
        }
    }

    fn activate(&mut self, name: &str) -> Result<(), LifeError> {
        if self.generations.current().name() == name {
            return Ok(());
        }
        let served = self.loaded(name)?;
        self.swap(served)?;
        self.metrics.changed_bundle("activated");
        tracing::info!(generation = name, "answers come from another generation");
        Ok(())
    }

    /// A generation of this bundle: one that is in memory, or it is loaded, tested and warmed.
    fn loaded(&mut self, name: &str) -> Result<Arc<Served>, LifeError> {
        if let Some(served) = self.generations.named(name) {
            return Ok(served);
        }
        let unknown = || LifeError::Unknown { name: name.to_owned() };
        let Source::Store(store) = &*self.source else { return Err(unknown()) };
        let directory = store.fetch(name, &self.data.join(CACHE)).map_err(|error| match error {
            StoreError::Unknown { .. } | StoreError::Name { .. } => unknown(),
            StoreError::Access { .. } => LifeError::Store(told(&error)),
            error => self.refused(name, told(&error)),
        })?;
        self.notes.set(name, Some(BundleState::Loading), "");
        let begun = Instant::now();
        let moving = background::keep_moving();
        let served = self.load(&directory).map_err(|reason| self.refused(name, reason))?;
        let warmed = self.pool.install(|| self.generations.warm(&served));
        drop(moving);
        let time = begun.elapsed();
        self.metrics.loaded_bundle(time);
        tracing::info!(generation = name, seconds = time.as_secs_f64(), warmed, "loaded a bundle beside");
        self.notes.set(name, None, "");
        if let Some(note) = self.notes.by_name.lock().get_mut(name) {
            note.load_time = Some(time);
        }
        Ok(Arc::new(served))
    }

    /// What panics at a bundle's content refuses the bundle, and does not end the thread.
    fn load(&self, directory: &Path) -> Result<Served, String> {
        let load = || self.loader.load(directory, &self.pool);
        match std::panic::catch_unwind(std::panic::AssertUnwindSafe(load)) {
            Ok(loaded) => {
                let served = loaded.map_err(|error| told(&error))?;
                self.serving.check_heads(served.head_names()).map_err(|error| told(&error))?;
                Ok(served)
            }
            Err(_) => Err("it makes the program panic; the log tells where".to_owned()),
        }
    }

    fn refused(&self, name: &str, reason: String) -> LifeError {
        self.notes.set(name, Some(BundleState::Refused), &reason);
        self.metrics.changed_bundle("refused");
        LifeError::Refused { name: name.to_owned(), reason }
    }

    /// Makes a generation the one that answers; the one before is kept.
    fn swap(&mut self, new: Arc<Served>) -> Result<(), LifeError> {
        let mut routes = Routes::clone(&self.generations.routes());
        let before = routes.current.window.summary();
        let old = std::mem::replace(&mut routes.current, new.clone());
        let is_new = |served: &Arc<Served>| served.number == new.number;
        routes.canary = routes.canary.filter(|canary| !is_new(&canary.served));
        routes.shadow = routes.shadow.filter(|shadow| !is_new(&shadow.served));
        routes.kept.retain(|served| !is_new(served));
        routes.kept.insert(0, old);
        let gone = routes.kept.split_off(self.config.kept_max.min(routes.kept.len()));
        self.reroute(new.name(), routes)?;
        self.retired.extend(gone);
        self.probation = Some((Instant::now() + self.config.bounds.probation, before));
        self.notes.set(new.name(), None, "");
        self.metrics.serving(new.name());
        self.remember();
        Ok(())
    }

    fn reroute(&self, name: &str, routes: Routes) -> Result<(), LifeError> {
        self.generations.reroute(routes).map_err(|error| self.refused(name, told(&error)))
    }

    fn roll_back(&mut self, reason: &str) -> Result<(), LifeError> {
        let routes = self.generations.routes();
        let before = routes.kept.first().cloned().ok_or(LifeError::NothingKept)?;
        let bad = routes.current.clone();
        self.swap(before.clone())?;
        // What was taken back is not judged again, and is no way back.
        self.probation = None;
        let mut routes = Routes::clone(&self.generations.routes());
        routes.kept.retain(|served| served.number != bad.number);
        self.reroute(before.name(), routes)?;
        self.notes.set(bad.name(), Some(BundleState::RolledBack), reason);
        self.metrics.changed_bundle("rolled_back");
        tracing::warn!(from = bad.name(), to = before.name(), reason, "rolled back");
        self.retired.push(bad);
        Ok(())
    }

    fn set_canary(&mut self, canary: Option<(String, f64)>) -> Result<(), LifeError> {
        let new = match canary {
            Some((name, share)) => Some((self.other(&name)?, share)),
            None => None,
        };
        let mut routes = Routes::clone(&self.generations.routes());
        let old = routes.canary.take();
        if let Some((served, share)) = new {
            routes.kept.retain(|kept| kept.number != served.number);
            routes.shadow = routes.shadow.filter(|shadow| shadow.served.number != served.number);
            routes.canary = Some(Canary::new(served, share));
        }
        let name = routes.canary.as_ref().map_or_else(String::new, |canary| canary.served.name().to_owned());
        self.reroute(&name, routes)?;
        self.retired.extend(old.map(|canary| canary.served));
        self.remember();
        Ok(())
    }

    fn set_shadow(&mut self, shadow: Option<(String, f64)>) -> Result<(), LifeError> {
        let new = match shadow {
            Some((name, share)) => Some((self.other(&name)?, share)),
            None => None,
        };
        let mut routes = Routes::clone(&self.generations.routes());
        let old = routes.shadow.take();
        if let Some((served, share)) = new {
            routes.kept.retain(|kept| kept.number != served.number);
            routes.canary = routes.canary.filter(|canary| canary.served.number != served.number);
            routes.shadow = Some(Arc::new(Shadow::new(served, share, self.config.bounds.window)));
        }
        let name = routes.shadow.as_ref().map_or_else(String::new, |shadow| shadow.served.name().to_owned());
        self.reroute(&name, routes)?;
        self.retired.extend(old.map(|shadow| shadow.served.clone()));
        self.remember();
        Ok(())
    }

    /// A generation that is to stand beside the current one.
    fn other(&mut self, name: &str) -> Result<Arc<Served>, LifeError> {
        match self.generations.current().name() == name {
            true => Err(LifeError::IsCurrent { name: name.to_owned() }),
            false => self.loaded(name),
        }
    }

    /// Activates what the store names, once each time that it changes.
    fn watch(&mut self) {
        let source = self.source.clone();
        let Source::Store(store) = &*source else { return };
        if self.watched.elapsed() < self.config.watch {
            return;
        }
        self.watched = Instant::now();
        match store.current() {
            Ok(pointer) if pointer == self.seen => {}
            Ok(Some(pointer)) => {
                let result = self.activate(&pointer.name);
                if let Err(error) = &result {
                    tracing::error!(%error, bundle = pointer.name, "the store's current bundle does not serve");
                }
                // A store that cannot be read is tried again.
                if !matches!(result, Err(LifeError::Store(_))) {
                    self.seen = Some(pointer);
                    self.remember();
                }
            }
            Ok(None) => tracing::warn!("the store names no current bundle any more"),
            Err(error) => tracing::warn!(error = told(&error), "the store cannot be read"),
        }
    }

    /// Takes back what breaks a bound.
    fn judge(&mut self) {
        let routes = self.generations.routes();
        let bounds = &self.config.bounds;
        if let Some(canary) = &routes.canary
            && let Some(reason) = bounds
                .broken(&canary.served.window.summary(), &routes.current.window.summary())
                .or_else(|| canary.trial.broken(bounds.choice_ratio_min))
        {
            let name = canary.served.name().to_owned();
            if self.set_canary(None).is_ok() {
                tracing::warn!(canary = name, reason, "the canary is taken back");
                self.notes.set(&name, Some(BundleState::RolledBack), &reason);
                self.metrics.changed_bundle("rolled_back");
            }
        }
        let Some((until, before)) = &self.probation else { return };
        if Instant::now() > *until {
            self.probation = None;
            return;
        }
        if let Some(reason) = self.config.bounds.broken(&routes.current.window.summary(), before)
            && !routes.kept.is_empty()
            && let Err(error) = self.roll_back(&reason)
        {
            tracing::error!(%error, reason, "cannot roll back");
        }
    }

    /// Frees generations that nobody uses any more.
    fn free(&mut self) {
        let routes = self.generations.routes();
        let is_used = |served: &Arc<Served>| {
            routes.loaded().any(|other| other.number == served.number) || Arc::strong_count(served) > 1
        };
        for unused in self.retired.extract_if(.., |served| !is_used(served)) {
            // It has many small parts; the threads that load have time for them.
            self.pool.spawn(move || drop(unused));
        }
        self.metrics.generations(routes.loaded().count() + self.retired.len());
    }

    /// Notes what serves, so that a restart goes on with it although the store may name what was taken back.
    fn remember(&self) {
        let Some(pointer) = &self.seen else { return };
        let routes = self.generations.routes();
        let serving = LastServed {
            bundle: routes.current.name().to_owned(),
            pointer: pointer.name.clone(),
            canary: routes.canary.as_ref().map(|canary| (canary.served.name().to_owned(), canary.share)),
            shadow: routes.shadow.as_ref().map(|shadow| (shadow.served.name().to_owned(), shadow.share)),
        };
        let text = serde_json::to_vec(&serving).expect("texts and numbers become JSON");
        let (path, partial) = (self.data.join(SERVING), self.data.join(format!("{SERVING}.partial")));
        if let Err(error) = fs::write(&partial, text).and_then(|()| fs::rename(&partial, &path)) {
            tracing::warn!(%error, path = %path.display(), "cannot note which bundle serves");
        }
    }
}

#[derive(serde::Serialize, serde::Deserialize)]
struct LastServed {
    bundle: String,
    /// What the store named then.
    pointer: String,
    /// Bundles on trial, with their shares.
    #[serde(default)]
    canary: Option<(String, f64)>,
    #[serde(default)]
    shadow: Option<(String, f64)>,
}

impl LastServed {
    /// What served last, unless the store names another bundle since.
    fn read(data: &Path, pointer: &Pointer) -> Option<Self> {
        let text = fs::read(data.join(SERVING)).ok()?;
        serde_json::from_slice::<Self>(&text).ok().filter(|last| last.pointer == pointer.name)
    }
}

/// The bundle to start with: what served last, unless the store names another one since.
pub fn first_bundle(store: &Store, data: &Path) -> Result<(String, Pointer), StoreError> {
    let pointer = store.current()?.ok_or_else(|| StoreError::Empty { place: store.place().to_owned() })?;
    let last = LastServed::read(data, &pointer).filter(|last| store.manifest(&last.bundle).is_ok());
    Ok((last.map_or_else(|| pointer.name.clone(), |last| last.bundle), pointer))
}

/// Starts the thread that asks the shadow. It ends with the last sender.
pub fn start_shadow() -> io::Result<Sender<ShadowWork>> {
    let (sender, given) = crossbeam_channel::bounded::<ShadowWork>(64);
    thread::Builder::new().name("shadow".into()).spawn(move || {
        lower_priority();
        while let Ok(work) = given.recv() {
            work.run();
        }
    })?;
    Ok(sender)
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
