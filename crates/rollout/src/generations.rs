//! The loaded generations: runs requests on the generation of each user, samples them for warming and shadow traffic,
//! and applies catalogue changes to every generation that answers.
use crate::{
    loaded::{CatalogueChange, Embedded, LoadedGeneration, with_vectors},
    routes::{Canary, Routes},
    shadow::{Shadow, ShadowWork, run_time},
};
use ahash::{AHashMap, AHashSet};
use arc_swap::ArcSwap;
use crossbeam_channel::{Sender, TrySendError};
use lodestone_catalog::{Item, ItemChange, ItemState, ItemWrite, WriteEffect, WriteTime, WrittenFields};
use lodestone_core::{faults, ids::ItemId, units::UnixMillis};
use lodestone_events::{Applied, Change, Outcome, Quarantined};
use lodestone_pipeline::{
    generation::{GenerationError, catch_panic, text_hash},
    ranking::RankingError,
    run::{self, PipelineAnswer, PlannedRequest},
};
use lodestone_state::{CatalogChanges, LiveState};
use parking_lot::Mutex;
use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// Maximum number of sampled requests, which warm a new generation.
const SAMPLES_MAX: usize = 32;
/// One of this many requests is sampled.
const SAMPLE_EVERY: u64 = 16;

/// An answer and the generation that produced it.
pub struct ServedAnswer {
    pub loaded: Arc<LoadedGeneration>,
    pub answer: PipelineAnswer,
}

/// The loaded generations behind an atomic pointer to their routes, which a request loads once.
pub struct Generations {
    pub state: Arc<LiveState>,
    routes: ArcSwap<Routes>,
    /// Locked while catalogue changes are applied and while routes change, so that no generation misses a change.
    writing: Mutex<()>,
    samples: Mutex<VecDeque<PlannedRequest>>,
    request_count: AtomicU64,
    shadow_work: Sender<ShadowWork>,
}

impl Generations {
    pub fn new(first: LoadedGeneration, shadow_work: Sender<ShadowWork>) -> Self {
        let state = first.generation.state.clone();
        let routes = Routes { current: Arc::new(first), canary: None, shadow: None, previous: Vec::new() };
        Self {
            state,
            routes: ArcSwap::from_pointee(routes),
            writing: Mutex::default(),
            samples: Mutex::default(),
            request_count: AtomicU64::new(0),
            shadow_work,
        }
    }

    pub fn routes(&self) -> Arc<Routes> {
        self.routes.load_full()
    }

    /// Returns the current generation.
    pub fn current(&self) -> Arc<LoadedGeneration> {
        self.routes.load().current.clone()
    }

    /// Returns the canary.
    pub fn canary(&self) -> Option<Canary> {
        self.routes.load().canary.clone()
    }

    /// Returns the loaded generation of the bundle of this name.
    pub fn named(&self, name: &str) -> Option<Arc<LoadedGeneration>> {
        self.routes.load().loaded().find(|loaded| loaded.name() == name).cloned()
    }

    /// Replaces the routes. Generations that begin to answer users first apply all catalogue changes: most of them
    /// without the lock, the rest with it.
    pub fn reroute(&self, routes: Routes) -> Result<(), GenerationError> {
        let known = self.routes();
        let is_new = |loaded: &&Arc<LoadedGeneration>| !known.answering().any(|other| other.number == loaded.number);
        let catch_up = || -> Result<(), GenerationError> {
            let mut new = routes.answering().filter(is_new);
            new.try_for_each(|loaded| loaded.generation.catch_up(&mut loaded.writer_models()).map(drop))
        };
        catch_up()?;
        let _writing = self.writing.lock();
        catch_up()?;
        self.routes.store(Arc::new(routes));
        Ok(())
    }

    /// Applies catalogue changes to the generations that do not answer users.
    pub fn catch_up_others(&self) -> Result<(), GenerationError> {
        let routes = self.routes();
        let others = routes.shadow.iter().map(|shadow| &shadow.loaded).chain(&routes.previous);
        others.into_iter().try_for_each(|loaded| loaded.generation.catch_up(&mut loaded.spare_models()).map(drop))
    }

    /// Runs sampled requests on a generation with the models of every worker. Returns the number of samples.
    pub fn warm(&self, loaded: &LoadedGeneration, now: UnixMillis) -> usize {
        let samples: Vec<PlannedRequest> = self.samples.lock().iter().cloned().collect();
        for mut models in loaded.all_models() {
            for request in &samples {
                // A request that panics here panics again when it is served, and is counted there.
                loaded.generation.catalog_at(now);
                let run = || run::run(&loaded.generation, &mut models, std::slice::from_ref(request), now);
                let _ = catch_unwind(AssertUnwindSafe(run));
            }
        }
        samples.len()
    }

    /// Runs requests with a worker's models, each on the generation of its user.
    pub fn run(&self, worker: usize, requests: &[PlannedRequest], now: UnixMillis) -> Vec<ServedAnswer> {
        let routes = self.routes.load();
        let answers = match &routes.canary {
            None => run_on(&routes.current, worker, requests, now),
            Some(canary) => run_with_canary(&routes.current, canary, worker, requests, now),
        };
        for (request, answer) in requests.iter().zip(&answers) {
            self.sample(request);
            if let Some(shadow) = &routes.shadow {
                self.send_to_shadow(shadow, request, answer, now);
            }
        }
        answers
    }

    fn sample(&self, request: &PlannedRequest) {
        if self.request_count.fetch_add(1, Ordering::Relaxed).is_multiple_of(SAMPLE_EVERY)
            && let Some(mut samples) = self.samples.try_lock()
        {
            samples.truncate(SAMPLES_MAX - 1);
            samples.push_front(request.discarded());
        }
    }

    fn send_to_shadow(&self, shadow: &Arc<Shadow>, request: &PlannedRequest, served: &ServedAnswer, now: UnixMillis) {
        if !is_shadowed(shadow.share) {
            return;
        }
        let work = shadow.work(request.discarded(), &served.answer, now);
        if let Err(TrySendError::Full(_)) = self.shadow_work.try_send(work) {
            shadow.record_dropped();
        }
    }

    /// Returns the vectors of items in the spaces of the generations that answer users, with a worker's models.
    pub fn embed(&self, worker: usize, items: &[&Item]) -> Result<Vec<Embedded>, RankingError> {
        let without_vectors = |item: &&Item| Embedded { text_hash: text_hash(item), vectors: Vec::new() };
        let mut embedded: Vec<Embedded> = items.iter().map(without_vectors).collect();
        for loaded in self.routes.load().answering() {
            let vectors = loaded.generation.embed(&mut loaded.models_of(worker), items)?;
            embedded.iter_mut().zip(vectors).for_each(|(of, vectors)| of.vectors.push((loaded.number, vectors)));
        }
        Ok(embedded)
    }

    /// Applies the changes that the log's writer committed, in log order. A change that fails or panics is in effect
    /// nowhere, and the others are applied.
    pub fn apply(&self, changes: Vec<(u64, Change, Option<Embedded>)>) -> Applied {
        let (mut catalogue, mut applied, mut last) = (Vec::new(), Applied::default(), 0);
        let mut has_rules = false;
        for (position, change, embedded) in changes {
            last = position;
            let folded = match &change {
                Change::Item(_) => Ok(()),
                Change::Decision(decision) => {
                    self.state.apply_decision(decision.clone());
                    Ok(())
                }
                Change::Event(event) => catch_panic(|| {
                    faults::check("event", [event.id.as_str()])?;
                    self.state.apply_event(position, event);
                    Ok(())
                })
                .map_err(|error| error.to_string()),
                Change::Rule(change) => {
                    has_rules = true;
                    let fold = || Ok(self.state.apply_rule(change.clone()));
                    catch_panic(fold).map_err(|error| error.to_string()).flatten()
                }
            };
            if let Err(reason) = folded {
                let (kind, id) = (change.kind_name().to_owned(), change.id().to_owned());
                applied.failures.push(Quarantined { position, kind, id, reason });
            }
            if let Change::Item(change) = change {
                catalogue.push(CatalogueChange { position, change, embedded });
            }
        }
        if has_rules {
            let applied_rules = self.state.publish_rules().and_then(|()| self.apply_declarations());
            applied.stop = applied_rules.err();
        }
        if !catalogue.is_empty() && applied.stop.is_none() {
            self.apply_catalogue(&catalogue, &mut applied);
        }
        if applied.stop.is_none() {
            self.state.advance_position(last);
        }
        applied
    }

    /// Makes the declared attributes searchable in every generation that answers; others do so when they catch up.
    fn apply_declarations(&self) -> Result<(), String> {
        let _writing = self.writing.lock();
        let routes = self.routes.load();
        let applied = routes.answering().try_for_each(|loaded| loaded.generation.apply_declarations());
        applied.map_err(|error| error.to_string())
    }

    /// Returns the outcome of an item's change that would change nothing, neither in a loaded generation nor in one
    /// that loads later: the written fields have these values or later ones, or an item that no loaded generation has
    /// is changed or deleted. None for any other change.
    pub fn outcome_without_effect(&self, change: &ItemChange) -> Option<Outcome> {
        let routes = self.routes.load();
        let recorded = self.state.catalogue.lock();
        let state = recorded.state(change.id());
        let item_in = |loaded: &Arc<LoadedGeneration>| self.item_in(loaded, change.id());
        let is_absent = || match state {
            Some(ItemState::Written(_)) => false,
            Some(ItemState::Deleted { .. }) => routes.answering().all(|loaded| item_in(loaded).is_none()),
            None => routes.loaded().all(|loaded| item_in(loaded).is_none()),
        };
        let ItemChange::Write(write) = change else { return is_absent().then_some(Outcome::Unknown) };
        if state.is_some_and(|state| state.is_stale(write)) {
            return Some(Outcome::Stale);
        }
        // A repeated value of a stated time is stored, because earlier values are stale from then on.
        let is_repeated =
            || matches!(write.time, WriteTime::Received(_)) && state.is_some_and(|state| state.has_values_of(write));
        match &write.fields {
            WrittenFields::All => {
                let is_in_effect =
                    || routes.answering().all(|loaded| item_in(loaded).is_some_and(|known| *known == write.item));
                (is_repeated() && is_in_effect()).then_some(Outcome::Unchanged)
            }
            WrittenFields::Some(_) if is_absent() => Some(Outcome::Unknown),
            WrittenFields::Some(_) => {
                let is_in_effect = || routes.answering().all(|loaded| item_in(loaded).is_some());
                (is_repeated() && is_in_effect()).then_some(Outcome::Unchanged)
            }
        }
    }

    /// Returns an item of a generation's catalogue.
    fn item_in(&self, loaded: &LoadedGeneration, id: &ItemId) -> Option<Arc<Item>> {
        let catalog = loaded.generation.catalog.load();
        catalog.row_of(&self.state.keys, id).map(|row| catalog.get(row).item.clone())
    }

    /// Applies changes together; if that fails, each alone.
    fn apply_catalogue(&self, changes: &[CatalogueChange], applied: &mut Applied) {
        let _writing = self.writing.lock();
        let routes = self.routes.load();
        let mut parts = vec![changes];
        while let Some(part) = parts.pop().filter(|_| applied.stop.is_none()) {
            let staged = Staged::of(part, &self.state.catalogue.lock());
            let outcomes = self.outcomes(&routes, part, &staged.effects);
            match self.apply_part(&routes, part, staged.states) {
                Ok(()) => {
                    applied.outcomes.extend(outcomes);
                    for (change, effect) in part.iter().zip(staged.effects) {
                        if let WriteEffect::Applied { stale } = effect
                            && !stale.is_empty()
                        {
                            applied.stale_fields.insert(change.position, stale);
                        }
                    }
                }
                Err(error @ GenerationError::NotRestored { .. }) => applied.stop = Some(error.to_string()),
                Err(error) if part.len() == 1 => applied.failures.push(Quarantined {
                    position: part[0].position,
                    kind: part[0].change.kind_name().to_owned(),
                    id: part[0].change.id().to_string(),
                    reason: error.to_string(),
                }),
                Err(_) => parts.extend(part.chunks(1).rev()),
            }
        }
    }

    /// Brings every generation that answers to new states of items, and records them for the others; all or none.
    fn apply_part(
        &self,
        routes: &Routes,
        changes: &[CatalogueChange],
        states: Vec<(ItemId, ItemState)>,
    ) -> Result<(), GenerationError> {
        let version = self.state.catalogue.lock().version() + states.len() as u64;
        let embedded: AHashMap<&ItemId, &Embedded> =
            changes.iter().filter_map(|change| Some((change.change.id(), change.embedded.as_ref()?))).collect();
        let mut undos = Vec::new();
        for loaded in routes.answering() {
            let result = catch_panic(|| {
                // A test can make one of the generations fail.
                faults::check(loaded.name(), changes.iter().map(|change| change.change.id().as_str()))?;
                Ok(with_vectors(loaded, loaded.generation.contents(&states), &embedded)?)
            })
            .and_then(|changes| loaded.generation.apply(changes, version));
            match result {
                Ok(undo) => undos.push((loaded, undo)),
                Err(change) => {
                    let reverted = undos.iter().try_for_each(|(loaded, undo)| loaded.generation.revert(undo));
                    return Err(match reverted {
                        Ok(()) => change,
                        Err(restore) => {
                            GenerationError::NotRestored { change: Box::new(change), restore: Box::new(restore) }
                        }
                    });
                }
            }
        }
        let mut recorded = self.state.catalogue.lock();
        states.into_iter().for_each(|(id, state)| recorded.set(id, state));
        Ok(())
    }

    /// Returns the outcomes of changes by position, if they are applied in order.
    fn outcomes(&self, routes: &Routes, changes: &[CatalogueChange], effects: &[WriteEffect]) -> Vec<(u64, Outcome)> {
        let catalog = routes.current.generation.catalog.load();
        let mut exists: AHashMap<&ItemId, bool> = AHashMap::new();
        // Items that differ from those of the catalogue after the changes so far.
        let mut changed: AHashSet<&ItemId> = AHashSet::new();
        let mut outcomes = Vec::with_capacity(changes.len());
        for (CatalogueChange { position, change, .. }, effect) in changes.iter().zip(effects) {
            let row = catalog.row_of(&self.state.keys, change.id());
            let is_as_known = !changed.contains(change.id());
            let exists = exists.entry(change.id()).or_insert(row.is_some());
            // The write is recorded, because it may be later than the file of another bundle.
            let is_older_than_file =
                |write: &ItemWrite| row.is_some_and(|row| write.is_older_than(&catalog.get(row).item));
            let outcome = match (change, effect) {
                (_, WriteEffect::Stale) => Outcome::Stale,
                (ItemChange::Write(write), _) if is_older_than_file(write) => Outcome::Stale,
                (ItemChange::Write(write), _)
                    if is_as_known && row.is_some_and(|row| write.is_content_of(&catalog.get(row).item)) =>
                {
                    Outcome::Unchanged
                }
                (ItemChange::Write(write), _) if write.fields == WrittenFields::All => {
                    if std::mem::replace(exists, true) { Outcome::Replaced } else { Outcome::Created }
                }
                (ItemChange::Write(_), _) => {
                    if *exists {
                        Outcome::Updated
                    } else {
                        Outcome::Unknown
                    }
                }
                (ItemChange::Delete { .. }, _) => {
                    if std::mem::replace(exists, false) {
                        Outcome::Deleted
                    } else {
                        Outcome::Unknown
                    }
                }
            };
            if !matches!(outcome, Outcome::Unchanged | Outcome::Stale) {
                changed.insert(change.id());
            }
            outcomes.push((*position, outcome));
        }
        outcomes
    }
}

/// The states of items after changes that are not in effect yet.
struct Staged {
    /// Of the distinct items that change.
    states: Vec<(ItemId, ItemState)>,
    /// Of each change.
    effects: Vec<WriteEffect>,
}

impl Staged {
    fn of(changes: &[CatalogueChange], recorded: &CatalogChanges) -> Self {
        let mut states: AHashMap<&ItemId, Option<ItemState>> = AHashMap::with_capacity(changes.len());
        let mut changed = Vec::with_capacity(changes.len());
        let effects = changes.iter().map(|CatalogueChange { change, .. }| {
            let state = states.entry(change.id()).or_insert_with(|| {
                changed.push(change.id());
                recorded.state(change.id()).cloned()
            });
            ItemState::apply(state, change)
        });
        let effects = effects.collect();
        let state = |id: &ItemId| Some((id.clone(), states.remove(id)??));
        Self { states: changed.into_iter().filter_map(state).collect(), effects }
    }
}

/// Decides whether a request is part of the shadow's share.
#[expect(clippy::disallowed_methods, reason = "the sample affects no answer, so it need not repeat")]
fn is_shadowed(share: f64) -> bool {
    rand::random_bool(share)
}

/// Records an error in the health window if the scope ends by a panic.
struct RecordPanic<'a>(&'a LoadedGeneration);

impl Drop for RecordPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.window.record_error();
        }
    }
}

fn run_on(
    loaded: &Arc<LoadedGeneration>,
    worker: usize,
    requests: &[PlannedRequest],
    now: UnixMillis,
) -> Vec<ServedAnswer> {
    // If one of several requests panics, each runs again alone, and that run counts.
    let _record = (requests.len() == 1).then(|| RecordPanic(loaded));
    loaded.generation.catalog_at(now);
    let answers = run::run(&loaded.generation, &mut loaded.models_of(worker), requests, now);
    answers
        .into_iter()
        .map(|answer| {
            loaded.window.record(run_time(&answer), answer.is_degraded());
            ServedAnswer { loaded: loaded.clone(), answer }
        })
        .collect()
}

/// Runs each request on the generation of its user. Returns the answers in the order of the requests.
fn run_with_canary(
    current: &Arc<LoadedGeneration>,
    canary: &Canary,
    worker: usize,
    requests: &[PlannedRequest],
    now: UnixMillis,
) -> Vec<ServedAnswer> {
    let (mut for_canary, mut for_current) = (Vec::new(), Vec::new());
    let user = |planned: &PlannedRequest| planned.request.viewer().user.clone();
    let goes_to_canary: Vec<bool> = requests.iter().map(|request| canary.takes(&user(request))).collect();
    for (request, to_canary) in requests.iter().zip(&goes_to_canary) {
        canary.evaluation.record_answer(&user(request), *to_canary);
        if *to_canary { &mut for_canary } else { &mut for_current }.push(request.clone());
    }
    let run = |loaded, requests: Vec<PlannedRequest>| match requests.is_empty() {
        true => Vec::new().into_iter(),
        false => run_on(loaded, worker, &requests, now).into_iter(),
    };
    let (mut canary_answers, mut current_answers) = (run(&canary.loaded, for_canary), run(current, for_current));
    let in_order = goes_to_canary.into_iter();
    in_order.filter_map(|canary| if canary { canary_answers.next() } else { current_answers.next() }).collect()
}
