//! The thread that changes models, one thing after the other.
use super::{
    BUNDLE_COPIES, BundleSource, BundleState, Command, Notes, Order, Parts, RolloutConfig, RolloutError,
    last_served::LastServed, told,
};
use crate::store::{Pointer, StoreError};
use crate::{
    generations::Generations,
    health::HealthSummary,
    load_threads::{LoadThreads, keep_moving},
    loaded::{LoadedGeneration, Loader},
    routes::{Canary, Routes},
    shadow::Shadow,
};
use crossbeam_channel::{Receiver, RecvTimeoutError};
use lodestone_core::units::UnixMillis;
use lodestone_pipeline::serving::Serving;
use lodestone_telemetry::Metrics;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

/// How often bounds are looked at.
const TICK: Duration = Duration::from_millis(500);

pub(super) struct Thread {
    generations: Arc<Generations>,
    loader: Loader,
    threads: LoadThreads,
    source: Arc<BundleSource>,
    seen: Option<Pointer>,
    data: PathBuf,
    config: RolloutConfig,
    serving: Arc<Serving>,
    metrics: Metrics,
    clock: fn() -> UnixMillis,
    notes: Arc<Notes>,
    /// Until when the current generation is judged, beside what the one before did.
    probation: Option<(Instant, HealthSummary)>,
    /// Answers of theirs may still be under way. They are freed here, so that no answer waits for it.
    retired: Vec<Arc<LoadedGeneration>>,
    watched: Instant,
}

impl Thread {
    pub(super) fn new(parts: Parts, notes: Arc<Notes>) -> Self {
        let Parts { generations, loader, threads, source, seen, data, config, serving, metrics, clock } = parts;
        Self {
            generations,
            loader,
            threads,
            source,
            seen,
            data,
            config,
            serving,
            metrics,
            clock,
            notes,
            probation: None,
            retired: Vec::new(),
            watched: Instant::now(),
        }
    }

    pub(super) fn run(mut self, orders: &Receiver<Order>) {
        self.resume_candidates();
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
    fn resume_candidates(&mut self) {
        let Some(last) = self.seen.as_ref().and_then(|pointer| LastServed::read(&self.data, pointer)) else { return };
        let results = [
            last.canary.map(|canary| self.set_canary(Some(canary))),
            last.shadow.map(|shadow| self.set_shadow(Some(shadow))),
        ];
        for error in results.into_iter().flatten().filter_map(Result::err) {
            tracing::warn!(%error, "a trial does not go on after the restart");
        }
    }

    fn obey(&mut self, command: Command) -> Result<(), RolloutError> {
        match command {
            Command::Activate(name) => self.activate(&name),
            Command::Rollback(reason) => self.roll_back(&reason),
            Command::SetCanary(canary) => self.set_canary(canary),
            Command::SetShadow(shadow) => self.set_shadow(shadow),
        }
    }

    fn activate(&mut self, name: &str) -> Result<(), RolloutError> {
        if self.generations.current().name() == name {
            return Ok(());
        }
        let loaded = self.loaded(name)?;
        self.swap(loaded)?;
        self.metrics.changed_bundle("activated");
        tracing::info!(generation = name, "answers come from another generation");
        Ok(())
    }

    /// A generation of this bundle: one that is in memory, or it is loaded, tested and warmed.
    fn loaded(&mut self, name: &str) -> Result<Arc<LoadedGeneration>, RolloutError> {
        if let Some(loaded) = self.generations.named(name) {
            return Ok(loaded);
        }
        let unknown = || RolloutError::Unknown { name: name.to_owned() };
        let BundleSource::Store(store) = &*self.source else { return Err(unknown()) };
        let directory = store.fetch(name, &self.data.join(BUNDLE_COPIES)).map_err(|error| match error {
            StoreError::Unknown { .. } | StoreError::Name { .. } => unknown(),
            StoreError::Access { .. } => RolloutError::Store(told(&error)),
            error => self.refused(name, told(&error)),
        })?;
        self.notes.set(name, Some(BundleState::Loading), "");
        let begun = Instant::now();
        let moving = keep_moving();
        let loaded = self.load(&directory).map_err(|reason| self.refused(name, reason))?;
        let warmed = self.threads.install(|| self.generations.warm(&loaded, (self.clock)()));
        drop(moving);
        let time = begun.elapsed();
        self.metrics.loaded_bundle(time);
        tracing::info!(generation = name, seconds = time.as_secs_f64(), warmed, "loaded a bundle beside");
        self.notes.set(name, None, "");
        if let Some(note) = self.notes.by_name.lock().get_mut(name) {
            note.load_time = Some(time);
        }
        Ok(Arc::new(loaded))
    }

    /// What panics at a bundle's content refuses the bundle, and does not end the thread.
    fn load(&self, directory: &Path) -> Result<LoadedGeneration, String> {
        let load = || self.loader.load(directory, &self.threads);
        match std::panic::catch_unwind(std::panic::AssertUnwindSafe(load)) {
            Ok(loaded) => {
                let loaded = loaded.map_err(|error| told(&error))?;
                self.serving.check_heads(loaded.head_names()).map_err(|error| told(&error))?;
                Ok(loaded)
            }
            Err(_) => Err("it makes the program panic; the log tells where".to_owned()),
        }
    }

    fn refused(&self, name: &str, reason: String) -> RolloutError {
        self.notes.set(name, Some(BundleState::Refused), &reason);
        self.metrics.changed_bundle("refused");
        RolloutError::Refused { name: name.to_owned(), reason }
    }

    /// Makes a generation the one that answers; the one before is kept.
    fn swap(&mut self, new: Arc<LoadedGeneration>) -> Result<(), RolloutError> {
        let mut routes = Routes::clone(&self.generations.routes());
        let before = routes.current.window.summary();
        let old = std::mem::replace(&mut routes.current, new.clone());
        let is_new = |loaded: &Arc<LoadedGeneration>| loaded.number == new.number;
        routes.canary = routes.canary.filter(|canary| !is_new(&canary.loaded));
        routes.shadow = routes.shadow.filter(|shadow| !is_new(&shadow.loaded));
        routes.kept.retain(|loaded| !is_new(loaded));
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

    fn reroute(&self, name: &str, routes: Routes) -> Result<(), RolloutError> {
        self.generations.reroute(routes).map_err(|error| self.refused(name, told(&error)))
    }

    fn roll_back(&mut self, reason: &str) -> Result<(), RolloutError> {
        let routes = self.generations.routes();
        let before = routes.kept.first().cloned().ok_or(RolloutError::NothingKept)?;
        let bad = routes.current.clone();
        self.swap(before.clone())?;
        // What was taken back is not judged again, and is no way back.
        self.probation = None;
        let mut routes = Routes::clone(&self.generations.routes());
        routes.kept.retain(|loaded| loaded.number != bad.number);
        self.reroute(before.name(), routes)?;
        self.notes.set(bad.name(), Some(BundleState::RolledBack), reason);
        self.metrics.changed_bundle("rolled_back");
        tracing::warn!(from = bad.name(), to = before.name(), reason, "rolled back");
        self.retired.push(bad);
        Ok(())
    }

    fn set_canary(&mut self, canary: Option<(String, f64)>) -> Result<(), RolloutError> {
        let new = match canary {
            Some((name, share)) => Some((self.other(&name)?, share)),
            None => None,
        };
        let mut routes = Routes::clone(&self.generations.routes());
        let old = routes.canary.take();
        if let Some((loaded, share)) = new {
            routes.kept.retain(|kept| kept.number != loaded.number);
            routes.shadow = routes.shadow.filter(|shadow| shadow.loaded.number != loaded.number);
            routes.canary = Some(Canary::new(loaded, share, (self.clock)()));
        }
        let name = routes.canary.as_ref().map_or_else(String::new, |canary| canary.loaded.name().to_owned());
        self.reroute(&name, routes)?;
        self.retired.extend(old.map(|canary| canary.loaded));
        self.remember();
        Ok(())
    }

    fn set_shadow(&mut self, shadow: Option<(String, f64)>) -> Result<(), RolloutError> {
        let new = match shadow {
            Some((name, share)) => Some((self.other(&name)?, share)),
            None => None,
        };
        let mut routes = Routes::clone(&self.generations.routes());
        let old = routes.shadow.take();
        if let Some((loaded, share)) = new {
            routes.kept.retain(|kept| kept.number != loaded.number);
            routes.canary = routes.canary.filter(|canary| canary.loaded.number != loaded.number);
            routes.shadow = Some(Arc::new(Shadow::new(loaded, share, self.config.bounds.window)));
        }
        let name = routes.shadow.as_ref().map_or_else(String::new, |shadow| shadow.loaded.name().to_owned());
        self.reroute(&name, routes)?;
        self.retired.extend(old.map(|shadow| shadow.loaded.clone()));
        self.remember();
        Ok(())
    }

    /// A generation that is to stand beside the current one.
    fn other(&mut self, name: &str) -> Result<Arc<LoadedGeneration>, RolloutError> {
        match self.generations.current().name() == name {
            true => Err(RolloutError::IsCurrent { name: name.to_owned() }),
            false => self.loaded(name),
        }
    }

    /// Activates what the store names, once each time that it changes.
    fn watch(&mut self) {
        let source = self.source.clone();
        let BundleSource::Store(store) = &*source else { return };
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
                if !matches!(result, Err(RolloutError::Store(_))) {
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
                .broken(&canary.loaded.window.summary(), &routes.current.window.summary())
                .or_else(|| canary.evaluation.broken(bounds.choice_ratio_min))
        {
            let name = canary.loaded.name().to_owned();
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

    /// Frees generations that nobody uses any more, and drops the copies of their bundles.
    fn free(&mut self) {
        let routes = self.generations.routes();
        let is_used = |loaded: &Arc<LoadedGeneration>| {
            routes.loaded().any(|other| other.number == loaded.number) || Arc::strong_count(loaded) > 1
        };
        let retired_count = self.retired.len();
        for unused in self.retired.extract_if(.., |loaded| !is_used(loaded)) {
            // It has many small parts; the threads that load have time for them.
            self.threads.spawn(move || drop(unused));
        }
        if let BundleSource::Store(store) = &*self.source
            && self.retired.len() < retired_count
        {
            let copies = self.data.join(BUNDLE_COPIES);
            let is_loaded = |name: &str| routes.loaded().any(|loaded| loaded.name() == name);
            if let Err(error) = store.drop_copies(&copies, is_loaded) {
                tracing::warn!(%error, path = %copies.display(), "cannot remove copies of bundles");
            }
        }
        self.metrics.generations(routes.loaded().count() + self.retired.len());
    }

    /// Notes what serves, so that a restart goes on with it although the store may name what was taken back.
    fn remember(&self) {
        let Some(pointer) = &self.seen else { return };
        if let Err(error) = LastServed::of(&self.generations.routes(), pointer).write(&self.data) {
            tracing::warn!(%error, path = %self.data.display(), "cannot note which bundle serves");
        }
    }
}
