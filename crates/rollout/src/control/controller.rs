//! The control thread: executes rollout commands in order, follows the store's pointer and enforces health bounds.
use super::{
    BUNDLE_COPIES, BundleRecords, BundleSource, BundleState, Command, QueuedCommand, RolloutConfig, RolloutError,
    RolloutInput, last_served::LastServed, without_paths,
};
use crate::{
    generations::Generations,
    health::HealthSummary,
    load_threads::{LoadThreads, migrate_idle_threads},
    loaded::{LoadedGeneration, Loader},
    routes::{Canary, Routes},
    shadow::Shadow,
    store::{Pointer, StoreError},
};
use crossbeam_channel::{Receiver, RecvTimeoutError};
use lodestone_core::{error_chain::format_error_chain, units::UnixMillis};
use lodestone_pipeline::serving::Serving;
use lodestone_telemetry::Metrics;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

/// Interval at which health bounds are checked.
const TICK: Duration = Duration::from_millis(500);

pub(super) struct Controller {
    generations: Arc<Generations>,
    loader: Loader,
    threads: LoadThreads,
    source: Arc<BundleSource>,
    /// The store's pointer that was last followed.
    pointer: Option<Pointer>,
    data: PathBuf,
    config: RolloutConfig,
    serving: Arc<Serving>,
    metrics: Metrics,
    clock: fn() -> UnixMillis,
    records: Arc<BundleRecords>,
    /// The end of the current generation's probation, and the health of the previous generation before the swap.
    probation: Option<(Instant, HealthSummary)>,
    /// Generations without a route, whose last requests may still be in flight. The controller frees them, so that no
    /// request pays for it.
    retired: Vec<Arc<LoadedGeneration>>,
    watched: Instant,
}

impl Controller {
    pub(super) fn new(input: RolloutInput, records: Arc<BundleRecords>) -> Self {
        let RolloutInput { generations, loader, threads, source, pointer, data, config, serving, metrics, clock } =
            input;
        Self {
            generations,
            loader,
            threads,
            source,
            pointer,
            data,
            config,
            serving,
            metrics,
            clock,
            records,
            probation: None,
            retired: Vec::new(),
            watched: Instant::now(),
        }
    }

    pub(super) fn run(mut self, commands: &Receiver<QueuedCommand>) {
        self.resume_candidates();
        loop {
            match commands.recv_timeout(TICK.min(self.config.watch)) {
                Ok((command, reply)) => {
                    let result = self.execute(command);
                    match &result {
                        Err(error) if error.is_mistake_of_caller() => {
                            tracing::info!(%error, "refused a rollout command");
                        }
                        Err(error) => tracing::warn!(%error, "a rollout command failed"),
                        Ok(()) => {}
                    }
                    // Fails if the caller's deadline has passed.
                    let _ = reply.send(result);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            self.watch();
            self.enforce_bounds();
            if let Err(error) = self.generations.catch_up_others() {
                tracing::warn!(%error, "cannot apply catalogue changes to a generation that answers no users");
            }
            self.free();
        }
    }

    /// Restores the canary and the shadow from before a restart.
    fn resume_candidates(&mut self) {
        let Some(last) = self.pointer.as_ref().and_then(|pointer| LastServed::read(&self.data, pointer)) else {
            return;
        };
        let results = [
            last.canary.map(|canary| self.set_canary(Some(canary))),
            last.shadow.map(|shadow| self.set_shadow(Some(shadow))),
        ];
        for error in results.into_iter().flatten().filter_map(Result::err) {
            tracing::warn!(%error, "cannot restore a canary or shadow after the restart");
        }
    }

    fn execute(&mut self, command: Command) -> Result<(), RolloutError> {
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
        tracing::info!(generation = name, "activated a bundle");
        Ok(())
    }

    /// Returns the generation of this bundle; loads, tests and warms it unless it is in memory.
    fn loaded(&mut self, name: &str) -> Result<Arc<LoadedGeneration>, RolloutError> {
        if let Some(loaded) = self.generations.named(name) {
            return Ok(loaded);
        }
        let unknown = || RolloutError::Unknown { name: name.to_owned() };
        let BundleSource::Store(store) = &*self.source else { return Err(unknown()) };
        let directory = store.fetch(name, &self.data.join(BUNDLE_COPIES)).map_err(|error| match error {
            StoreError::Unknown { .. } | StoreError::Name { .. } => unknown(),
            StoreError::Access { .. } => {
                let reason = format_error_chain(&error);
                tracing::error!(bundle = name, reason, "the store cannot be read");
                RolloutError::Store(without_paths(&reason, &[store.location()]))
            }
            error => self.refused(name, format_error_chain(&error)),
        })?;
        self.records.set(name, Some(BundleState::Loading), "");
        let begun = Instant::now();
        let migration = migrate_idle_threads();
        let loaded = self.load(&directory).map_err(|reason| self.refused(name, reason))?;
        let warmed = self.threads.install(|| self.generations.warm(&loaded, (self.clock)()));
        drop(migration);
        let time = begun.elapsed();
        self.metrics.loaded_bundle(time);
        tracing::info!(generation = name, seconds = time.as_secs_f64(), warmed, "loaded a bundle");
        self.records.set(name, None, "");
        if let Some(record) = self.records.by_name.lock().get_mut(name) {
            record.load_time = Some(time);
        }
        Ok(Arc::new(loaded))
    }

    /// Loads a bundle. A panic refuses the bundle and does not end the thread.
    fn load(&self, directory: &Path) -> Result<LoadedGeneration, String> {
        let load = || self.loader.load(directory, &self.threads);
        match std::panic::catch_unwind(std::panic::AssertUnwindSafe(load)) {
            Ok(loaded) => {
                let loaded = loaded.map_err(|error| format_error_chain(&error))?;
                let serving = self.serving.snapshot(&self.generations.state.rules().serving_configs);
                serving
                    .check_bundle(loaded.head_names(), &loaded.generation.loyalty)
                    .map_err(|error| format_error_chain(&error))?;
                Ok(loaded)
            }
            Err(_) => Err("loading it panicked; the log has the location".to_owned()),
        }
    }

    fn refused(&self, name: &str, reason: String) -> RolloutError {
        tracing::error!(bundle = name, reason, "refused a bundle");
        let data = self.data.display().to_string();
        let reason = match &*self.source {
            BundleSource::Store(store) => without_paths(&reason, &[store.location(), &data]),
            BundleSource::Directory(_) => without_paths(&reason, &[&data]),
        };
        self.records.set(name, Some(BundleState::Refused), &reason);
        self.metrics.changed_bundle("refused");
        RolloutError::Refused { name: name.to_owned(), reason }
    }

    /// Makes a generation the current one, and the old one the previous one.
    fn swap(&mut self, new: Arc<LoadedGeneration>) -> Result<(), RolloutError> {
        let mut routes = Routes::clone(&self.generations.routes());
        let before = routes.current.window.summary();
        let old = std::mem::replace(&mut routes.current, new.clone());
        let is_new = |loaded: &Arc<LoadedGeneration>| loaded.number == new.number;
        routes.canary = routes.canary.filter(|canary| !is_new(&canary.loaded));
        routes.shadow = routes.shadow.filter(|shadow| !is_new(&shadow.loaded));
        routes.previous.retain(|loaded| !is_new(loaded));
        routes.previous.insert(0, old);
        let dropped = routes.previous.split_off(self.config.kept_max.min(routes.previous.len()));
        self.reroute(new.name(), routes)?;
        self.retired.extend(dropped);
        self.probation = Some((Instant::now() + self.config.bounds.probation, before));
        self.records.set(new.name(), None, "");
        self.metrics.serving(new.name());
        self.save_last_served();
        Ok(())
    }

    fn reroute(&self, name: &str, routes: Routes) -> Result<(), RolloutError> {
        self.generations.reroute(routes).map_err(|error| self.refused(name, format_error_chain(&error)))
    }

    fn roll_back(&mut self, reason: &str) -> Result<(), RolloutError> {
        let routes = self.generations.routes();
        let before = routes.previous.first().cloned().ok_or(RolloutError::NoEarlierBundle)?;
        let bad = routes.current.clone();
        self.swap(before.clone())?;
        // A rollback starts no probation, and the generation that was rolled back is not a target of a later rollback.
        self.probation = None;
        let mut routes = Routes::clone(&self.generations.routes());
        routes.previous.retain(|loaded| loaded.number != bad.number);
        self.reroute(before.name(), routes)?;
        self.records.set(bad.name(), Some(BundleState::RolledBack), reason);
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
            routes.previous.retain(|kept| kept.number != loaded.number);
            routes.shadow = routes.shadow.filter(|shadow| shadow.loaded.number != loaded.number);
            routes.canary = Some(Canary::new(loaded, share, (self.clock)()));
        }
        let name = routes.canary.as_ref().map_or_else(String::new, |canary| canary.loaded.name().to_owned());
        self.reroute(&name, routes)?;
        self.retired.extend(old.map(|canary| canary.loaded));
        self.save_last_served();
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
            routes.previous.retain(|kept| kept.number != loaded.number);
            routes.canary = routes.canary.filter(|canary| canary.loaded.number != loaded.number);
            routes.shadow = Some(Arc::new(Shadow::new(loaded, share, self.config.bounds.window)));
        }
        let name = routes.shadow.as_ref().map_or_else(String::new, |shadow| shadow.loaded.name().to_owned());
        self.reroute(&name, routes)?;
        self.retired.extend(old.map(|shadow| shadow.loaded.clone()));
        self.save_last_served();
        Ok(())
    }

    /// Returns the generation of a bundle that is not the current one.
    fn other(&mut self, name: &str) -> Result<Arc<LoadedGeneration>, RolloutError> {
        match self.generations.current().name() == name {
            true => Err(RolloutError::IsCurrent { name: name.to_owned() }),
            false => self.loaded(name),
        }
    }

    /// Activates the store's current bundle, once for each change of the pointer.
    fn watch(&mut self) {
        let source = self.source.clone();
        let BundleSource::Store(store) = &*source else { return };
        if self.watched.elapsed() < self.config.watch {
            return;
        }
        self.watched = Instant::now();
        match store.current() {
            Ok(pointer) if pointer == self.pointer => {}
            Ok(Some(pointer)) => {
                let result = self.activate(&pointer.name);
                if let Err(error) = &result {
                    tracing::error!(%error, bundle = pointer.name, "cannot activate the store's current bundle");
                }
                // A failure to read the store is retried at the next interval.
                if !matches!(result, Err(RolloutError::Store(_))) {
                    self.pointer = Some(pointer);
                    self.save_last_served();
                }
            }
            Ok(None) => tracing::warn!("the store has no current bundle"),
            Err(error) => tracing::warn!(error = format_error_chain(&error), "cannot read the store"),
        }
    }

    /// Removes a canary that violates a bound, and rolls back a current generation that violates one during its
    /// probation.
    fn enforce_bounds(&mut self) {
        let routes = self.generations.routes();
        let bounds = &self.config.bounds;
        if let Some(canary) = &routes.canary
            && let Some(reason) = bounds
                .violation(&canary.loaded.window.summary(), &routes.current.window.summary())
                .or_else(|| canary.evaluation.violation(bounds.conversion_ratio_min))
        {
            let name = canary.loaded.name().to_owned();
            if self.set_canary(None).is_ok() {
                tracing::warn!(canary = name, reason, "removed the canary");
                self.records.set(&name, Some(BundleState::RolledBack), &reason);
                self.metrics.changed_bundle("rolled_back");
            }
        }
        let Some((until, before)) = &self.probation else { return };
        if Instant::now() > *until {
            self.probation = None;
            return;
        }
        if let Some(reason) = self.config.bounds.violation(&routes.current.window.summary(), before)
            && !routes.previous.is_empty()
            && let Err(error) = self.roll_back(&reason)
        {
            tracing::error!(%error, reason, "cannot roll back");
        }
    }

    /// Frees unused generations and removes the local copies of their bundles.
    fn free(&mut self) {
        let routes = self.generations.routes();
        let is_used = |loaded: &Arc<LoadedGeneration>| {
            routes.loaded().any(|other| other.number == loaded.number) || Arc::strong_count(loaded) > 1
        };
        let retired_count = self.retired.len();
        for unused in self.retired.extract_if(.., |loaded| !is_used(loaded)) {
            // On a loading thread, because it has many small allocations.
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

    /// Saves the served bundles, so that a restart continues with them even if the store still points to a rolled-back
    /// bundle.
    fn save_last_served(&self) {
        let Some(pointer) = &self.pointer else { return };
        if let Err(error) = LastServed::of(&self.generations.routes(), pointer).write(&self.data) {
            tracing::warn!(%error, path = %self.data.display(), "cannot save which bundle serves");
        }
    }
}
