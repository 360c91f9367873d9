//! The generations that are loaded, and which of them answers.
use crate::{load_threads::LoadThreads, frozen_slates::{Slates, SlatesConfig}, canary::CanaryEvaluation, health::Window};
use lodestone_state::{catalog_changes::ItemChange, live::LiveState};
use lodestone_pipeline::{generation::{EmbeddedChange, Generation, GenerationError}, golden::{self, GoldenError}, models::{Models, embed_items}, run::{self, PlannedRequest, PipelineResponse}};
use super::shadow::{Shadow, ShadowWork, time_of};
use lodestone_pipeline::{bundle::{Bundle, BundleError}, ranking::{Device, RankingError, Runtime}};
use lodestone_catalog::{Item, ItemVectors};
use lodestone_events::Change;
use lodestone_core::{ids::UserId, units::UnixMillis};
use lodestone_index::{Lexical, Synonyms};
use arc_swap::ArcSwap;
use crossbeam_channel::{Sender, TrySendError};
use parking_lot::{Mutex, MutexGuard};
use sha2::{Digest, Sha256};
use std::{
    collections::VecDeque,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// Rows that the graphs make room for beyond the bundle's items.
const SPARE_ROWS: usize = 100_000;
/// Requests that are kept to warm a generation, one of so many.
const SAMPLES_MAX: usize = 32;
const SAMPLE_EVERY: u64 = 16;

/// The number of a load of a bundle, from 1. A bundle that is loaded twice has two.
pub type LoadNumber = u64;

/// Vectors of one written item in the spaces of several generations.
pub type Embedded = Vec<(LoadNumber, ItemVectors)>;

/// A generation with the sessions that its models run in: they come and go with it.
pub struct LoadedGeneration {
    pub number: LoadNumber,
    pub generation: Generation,
    /// One for each worker, which alone takes it, so that it never waits; the last is for what is done beside answers.
    models: Box<[Mutex<Models>]>,
    /// How its answers go.
    pub window: Window,
    /// Answers of its that have later pages.
    pub slates: Slates,
}

impl LoadedGeneration {
    /// The heads of its ranking model.
    pub fn head_names(&self) -> impl Iterator<Item = &str> + Clone {
        self.generation.manifest.heads.iter().map(|head| head.name.as_str())
    }

    /// The models of one worker.
    pub fn models_of(&self, worker: usize) -> MutexGuard<'_, Models> {
        self.models[worker].lock()
    }

    /// The models for what is done beside answers.
    pub fn spare_models(&self) -> MutexGuard<'_, Models> {
        self.models[self.models.len() - 1].lock()
    }

    pub fn name(&self) -> &str {
        self.generation.name()
    }
}

/// Makes generations of bundles.
pub struct Loader {
    pub runtime: Runtime,
    pub device: Device,
    pub worker_count: usize,
    pub synonyms: Synonyms,
    pub live: Arc<LiveState>,
    /// How long the course of answers is remembered.
    pub window: Duration,
    pub slates: SlatesConfig,
    pub loads: AtomicU64,
}

/// Why a bundle is not loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error(transparent)]
    Bundle(#[from] BundleError),
    #[error(transparent)]
    Generation(#[from] GenerationError),
    #[error(transparent)]
    Golden(#[from] GoldenError),
}

impl Loader {
    /// Verifies a bundle, makes a generation of it on these threads, and asks it the bundle's golden requests. It then has
    /// the catalogue's changes up to a moment in the past.
    pub fn load(&self, bundle: &Path, threads: &LoadThreads) -> Result<LoadedGeneration, LoadError> {
        self.load_opened(threads.install(|| Bundle::open(bundle))?, threads)
    }

    /// The same of a bundle that was verified.
    pub fn load_opened(&self, bundle: Bundle, threads: &LoadThreads) -> Result<LoadedGeneration, LoadError> {
        let models = threads.install(|| {
            let opened =
                (0..=self.worker_count).map(|_| Models::open(&self.runtime, &bundle, self.device).map(Mutex::new));
            opened.collect::<Result<Box<[_]>, RankingError>>().map_err(GenerationError::from)
        })?;
        let golden = bundle.golden.clone();
        let generation = threads.install(|| {
            let mut lexical = Lexical::new()?;
            lexical.set_synonyms(self.synonyms.clone());
            let generation = Generation::new(bundle, self.live.clone(), lexical, SPARE_ROWS)?;
            // Whoever writes words from now on shall not wait as these threads do.
            generation.lexical.end_writing()?;
            Ok::<_, GenerationError>(generation)
        })?;
        let number = 1 + self.loads.fetch_add(1, Ordering::Relaxed);
        let (window, slates) = (Window::new(self.window), self.slates.begin());
        let served = LoadedGeneration { number, generation, models, window, slates };
        threads.install(|| -> Result<(), LoadError> {
            if let Some(golden) = golden {
                golden::self_test(&served.generation, &mut served.spare_models(), &golden)?;
            }
            served.generation.catch_up(&mut served.spare_models())?;
            Ok(served.generation.lexical.end_writing().map_err(GenerationError::from)?)
        })?;
        Ok(served)
    }
}

/// An answer and the generation that gave it.
pub struct ServedResponse {
    pub served: Arc<LoadedGeneration>,
    pub told: PipelineResponse,
}

/// Which generation answers whom.
#[derive(Clone)]
pub struct Routes {
    pub current: Arc<LoadedGeneration>,
    /// Answers a share of the users.
    pub canary: Option<Canary>,
    /// Is asked what others answer.
    pub shadow: Option<Arc<Shadow>>,
    /// ServedResponse before, the latest first; for a way back, for later pages and for replays.
    pub kept: Vec<Arc<LoadedGeneration>>,
}

#[derive(Clone)]
pub struct Canary {
    pub served: Arc<LoadedGeneration>,
    /// Of the users, within 0 and 1.
    pub share: f64,
    /// What shoppers choose from its answers.
    pub trial: Arc<CanaryEvaluation>,
}

impl Canary {
    /// A canary that begins now.
    pub fn new(served: Arc<LoadedGeneration>, share: f64) -> Self {
        Self { served, share, trial: Arc::new(CanaryEvaluation::new(UnixMillis::now())) }
    }

    /// Whether a user is answered by it: the same user always is, and stays so when the share grows.
    fn takes(&self, user: &UserId) -> bool {
        user_share(self.served.name(), user) < self.share
    }

    /// Notes that a user chose something from an answer.
    pub fn note_choice(&self, user: &UserId, answer: [u8; 16]) {
        self.trial.note_choice(user, answer, self.takes(user));
    }
}

/// A user's place within 0 and 1 that depends on the bundle, so that not always the same users are the first.
fn user_share(bundle: &str, user: &UserId) -> f64 {
    let mut hash = Sha256::new();
    hash.update(bundle);
    hash.update([0]);
    hash.update(user.as_str());
    let sum = hash.finalize();
    let first = u64::from_le_bytes([sum[0], sum[1], sum[2], sum[3], sum[4], sum[5], sum[6], sum[7]]);
    first as f64 / (u64::MAX as f64 + 1.0)
}

impl Routes {
    /// Who answers a user.
    pub fn of(&self, user: &UserId) -> &Arc<LoadedGeneration> {
        match &self.canary {
            Some(canary) if canary.takes(user) => &canary.served,
            _ => &self.current,
        }
    }

    /// Those that answer somebody.
    fn answering(&self) -> impl Iterator<Item = &Arc<LoadedGeneration>> {
        std::iter::once(&self.current).chain(self.canary.iter().map(|canary| &canary.served))
    }

    /// Those that are loaded.
    pub fn loaded(&self) -> impl Iterator<Item = &Arc<LoadedGeneration>> {
        self.answering().chain(self.shadow.iter().map(|shadow| &shadow.served)).chain(&self.kept)
    }
}

/// Which generation answers whom. A request loads the pointer once.
pub struct Generations {
    pub live: Arc<LiveState>,
    routes: ArcSwap<Routes>,
    /// Held while changes of the catalogue are put into effect and while routes change, so that no change falls between two
    /// generations.
    writing: Mutex<()>,
    samples: Mutex<VecDeque<PlannedRequest>>,
    asked: AtomicU64,
    shadow_work: Sender<ShadowWork>,
}

impl Generations {
    pub fn new(first: LoadedGeneration, shadow_work: Sender<ShadowWork>) -> Self {
        let live = first.generation.live.clone();
        let routes = Routes { current: Arc::new(first), canary: None, shadow: None, kept: Vec::new() };
        Self {
            live,
            routes: ArcSwap::from_pointee(routes),
            writing: Mutex::default(),
            samples: Mutex::default(),
            asked: AtomicU64::new(0),
            shadow_work,
        }
    }

    pub fn routes(&self) -> Arc<Routes> {
        self.routes.load_full()
    }

    /// The generation that answers most.
    pub fn current(&self) -> Arc<LoadedGeneration> {
        self.routes.load().current.clone()
    }

    /// The one on trial.
    pub fn canary(&self) -> Option<Canary> {
        self.routes.load().canary.clone()
    }

    /// A loaded generation by the name of its bundle.
    pub fn named(&self, name: &str) -> Option<Arc<LoadedGeneration>> {
        self.routes.load().loaded().find(|served| served.name() == name).cloned()
    }

    /// Changes the routes. Generations that will answer somebody have every change of the catalogue by then; most of it before
    /// anything waits for it.
    pub fn reroute(&self, routes: Routes) -> Result<(), GenerationError> {
        let known = self.routes();
        let is_new = |served: &&Arc<LoadedGeneration>| !known.answering().any(|other| other.number == served.number);
        let catch_up = || -> Result<(), GenerationError> {
            let mut new = routes.answering().filter(is_new);
            new.try_for_each(|served| served.generation.catch_up(&mut served.spare_models()).map(drop))
        };
        catch_up()?;
        let _writing = self.writing.lock();
        catch_up()?;
        self.routes.store(Arc::new(routes));
        Ok(())
    }

    /// Gives a generation that answers nobody what changed in the catalogue.
    pub fn catch_up_others(&self) -> Result<(), GenerationError> {
        let routes = self.routes();
        let others = routes.shadow.iter().map(|shadow| &shadow.served).chain(&routes.kept);
        others.into_iter().try_for_each(|served| served.generation.catch_up(&mut served.spare_models()).map(drop))
    }

    /// Requests of late, for warming; the generation answers each of them with the models of every worker.
    pub fn warm(&self, served: &LoadedGeneration) -> usize {
        let samples: Vec<PlannedRequest> = self.samples.lock().iter().cloned().collect();
        for models in &served.models {
            for question in &samples {
                // What fails here fails later too, where it is counted.
                let tell = || stories::tell(&served.generation, &mut models.lock(), std::slice::from_ref(question));
                let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(tell));
            }
        }
        samples.len()
    }

    /// Answers requests with a worker's models.
    pub fn tell(&self, worker: usize, questions: &[PlannedRequest]) -> Vec<ServedResponse> {
        let routes = self.routes.load();
        let answered = match &routes.canary {
            None => tell_by(&routes.current, worker, questions),
            Some(canary) => tell_by_two(&routes.current, canary, worker, questions),
        };
        for (question, answered) in questions.iter().zip(&answered) {
            self.sample(question);
            if let Some(shadow) = &routes.shadow {
                self.ask_shadow(shadow, question, answered);
            }
        }
        answered
    }

    fn sample(&self, question: &PlannedRequest) {
        if self.asked.fetch_add(1, Ordering::Relaxed).is_multiple_of(SAMPLE_EVERY)
            && let Some(mut samples) = self.samples.try_lock()
        {
            samples.truncate(SAMPLES_MAX - 1);
            samples.push_front(question.unlogged());
        }
    }

    fn ask_shadow(&self, shadow: &Arc<Shadow>, question: &PlannedRequest, answered: &ServedResponse) {
        if !rand::random_bool(shadow.share) {
            return;
        }
        let work = shadow.work(question.unlogged(), &answered.served, &answered.told);
        if let Err(TrySendError::Full(_)) = self.shadow_work.try_send(work) {
            shadow.dropped();
        }
    }

    /// Vectors of items in the spaces of the generations that answer, with a worker's models.
    pub fn embed(&self, worker: usize, items: &[Item]) -> Result<Vec<Embedded>, RankingError> {
        let items: Vec<&Item> = items.iter().collect();
        let mut embedded: Vec<Embedded> = vec![Vec::new(); items.len()];
        for served in self.routes.load().answering() {
            let vectors = embed_items(&served.generation, &mut served.models_of(worker), &items)?;
            embedded.iter_mut().zip(vectors).for_each(|(of, vectors)| of.push((served.number, vectors)));
        }
        Ok(embedded)
    }

    /// The fold of what the log's writer committed, in log order.
    pub fn apply(&self, changes: Vec<(u64, Change, Option<Embedded>)>) -> Result<(), GenerationError> {
        let (mut catalogue, mut last) = (Vec::new(), 0);
        for (position, change, embedded) in changes {
            last = position;
            match change {
                Change::Event(event) => self.live.apply_event(position, &event),
                Change::Upsert(item) => {
                    catalogue.push(((item.id.clone(), Some(Arc::new(*item))), embedded.unwrap_or_default()));
                }
                Change::Delete(id) => catalogue.push(((id, None), Vec::new())),
            }
        }
        let result = if catalogue.is_empty() { Ok(()) } else { self.apply_catalogue(catalogue) };
        self.live.note_position(last);
        result
    }

    fn apply_catalogue(&self, changes: Vec<(ItemChange, Embedded)>) -> Result<(), GenerationError> {
        let _writing = self.writing.lock();
        let version = {
            let mut noted = self.live.catalogue.lock();
            changes.iter().for_each(|(change, _)| noted.note(change.clone()));
            noted.version()
        };
        // One that cannot take them must not keep them from the others.
        let routes = self.routes.load();
        let results =
            routes.answering().map(|served| served.generation.apply(for_generation(served, &changes)?, version));
        results.collect::<Vec<_>>().into_iter().collect()
    }
}

/// Notes an error where an answer panics.
struct NotesPanic<'a>(&'a LoadedGeneration);

impl Drop for NotesPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.window.note_error();
        }
    }
}

fn tell_by(served: &Arc<LoadedGeneration>, worker: usize, questions: &[PlannedRequest]) -> Vec<ServedResponse> {
    // Of several that were asked together only one is to blame; each is asked again alone, and that counts.
    let _noted = (questions.len() == 1).then(|| NotesPanic(served));
    let told = stories::tell(&served.generation, &mut served.models_of(worker), questions);
    told.into_iter()
        .map(|told| {
            served.window.note(time_of(&told), told.is_degraded());
            ServedResponse { served: served.clone(), told }
        })
        .collect()
}

/// Each request by the generation that its user has; the answers in the order of the requests.
fn tell_by_two(current: &Arc<LoadedGeneration>, canary: &Canary, worker: usize, questions: &[PlannedRequest]) -> Vec<ServedResponse> {
    let (mut for_canary, mut others) = (Vec::new(), Vec::new());
    let is_canary: Vec<bool> = questions.iter().map(|question| canary.takes(&question.asked.viewer().user)).collect();
    for (question, is_canary) in questions.iter().zip(&is_canary) {
        canary.trial.note_answer(&question.asked.viewer().user, *is_canary);
        if *is_canary { &mut for_canary } else { &mut others }.push(question.clone());
    }
    let tell = |served, questions: Vec<PlannedRequest>| match questions.is_empty() {
        true => Vec::new().into_iter(),
        false => tell_by(served, worker, &questions).into_iter(),
    };
    let (mut of_canary, mut of_current) = (tell(&canary.served, for_canary), tell(current, others));
    is_canary.into_iter().filter_map(|canary| if canary { of_canary.next() } else { of_current.next() }).collect()
}

/// The changes with the vectors of one generation; those that were not made beside the write are made now.
fn for_generation(served: &LoadedGeneration, changes: &[(ItemChange, Embedded)]) -> Result<Vec<EmbeddedChange>, RankingError> {
    let of_this = |embedded: &Embedded| {
        embedded.iter().find(|(number, _)| *number == served.number).map(|(_, vectors)| vectors.clone())
    };
    changes
        .iter()
        .map(|(change, embedded)| {
            let vectors = match (&change.1, of_this(embedded)) {
                (Some(item), None) => embed_items(&served.generation, &mut served.spare_models(), &[item])?.pop(),
                (_, vectors) => vectors,
            };
            Ok((change.clone(), vectors))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_shared_out_evenly_and_each_bundle_has_others_first() {
        let user = |n: u32| UserId::signed_in(&format!("p{n}")).unwrap();
        let share =
            |bundle: &str, share: f64| (0..10_000).filter(|n| user_share(bundle, &user(*n)) < share).count();
        for asked in [0.0, 0.05, 0.5, 1.0] {
            let found = share("a", asked) as f64 / 10_000.0;
            assert!((found - asked).abs() < 0.015, "{asked}: {found}");
        }
        let both = (0..10_000).filter(|n| user_share("a", &user(*n)) < 0.1 && user_share("b", &user(*n)) < 0.1);
        assert!(both.count() < 200, "a tenth of a tenth");
        assert_eq!(user_share("a", &user(1)), user_share("a", &user(1)));
    }
}
