//! The generations that are loaded, and which of them answers.
use super::{
    catalogue::ItemChange,
    generation::{EmbeddedChange, Generation, GenerationError},
    live::Live,
    models::{Models, embed_items},
    stories::{self, Question, Told},
};
use crate::{
    bundle::Bundle,
    catalog::{Item, ItemVectors},
    events::Change,
    ranking::{Device, RankingError, Runtime},
    retrieval::Synonyms,
};
use arc_swap::ArcSwap;
use parking_lot::{Mutex, MutexGuard};
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// Rows that the graphs make room for beyond the bundle's items.
const SPARE_ROWS: usize = 100_000;

/// The number of a load of a bundle, from 1. A bundle that is loaded twice has two.
pub type LoadNumber = u64;

/// Vectors of one written item in the spaces of several generations.
pub type Embedded = Vec<(LoadNumber, ItemVectors)>;

/// A generation with the sessions that its models run in: they come and go with it.
pub struct Served {
    pub number: LoadNumber,
    pub generation: Generation,
    /// One for each worker, which alone takes it, so that it never waits; the last is for what is done beside answers.
    models: Box<[Mutex<Models>]>,
}

impl Served {
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
    pub live: Arc<Live>,
    loads: AtomicU64,
}

impl Loader {
    pub fn new(runtime: Runtime, device: Device, worker_count: usize, synonyms: Synonyms, live: Arc<Live>) -> Self {
        Self { runtime, device, worker_count, synonyms, live, loads: AtomicU64::new(0) }
    }

    /// A generation of a verified bundle, on the threads of the current rayon pool. It has the catalogue's changes up to a
    /// moment in the past.
    pub fn load(&self, bundle: Bundle) -> Result<Served, GenerationError> {
        let models = (0..=self.worker_count)
            .map(|_| Models::open(&self.runtime, &bundle, self.device).map(Mutex::new))
            .collect::<Result<Box<[_]>, RankingError>>()?;
        let generation = Generation::new(bundle, self.live.clone(), self.synonyms.clone(), SPARE_ROWS)?;
        let served = Served { number: 1 + self.loads.fetch_add(1, Ordering::Relaxed), generation, models };
        served.generation.catch_up(&mut served.spare_models())?;
        Ok(served)
    }
}

/// An answer and the generation that gave it.
pub struct Answered {
    pub served: Arc<Served>,
    pub told: Told,
}

/// Which generation answers. A request loads the pointer once.
pub struct Generations {
    pub live: Arc<Live>,
    current: ArcSwap<Served>,
    /// Held while changes of the catalogue are put into effect, so that none falls between two generations.
    writing: Mutex<()>,
}

impl Generations {
    pub fn new(first: Served) -> Self {
        Self { live: first.generation.live.clone(), current: ArcSwap::from_pointee(first), writing: Mutex::default() }
    }

    /// The generation that answers.
    pub fn current(&self) -> Arc<Served> {
        self.current.load_full()
    }

    /// Answers requests with a worker's models.
    pub fn tell(&self, worker: usize, questions: &[Question]) -> Vec<Answered> {
        let served = self.current();
        let told = stories::tell(&served.generation, &mut served.models_of(worker), questions);
        told.into_iter().map(|told| Answered { served: served.clone(), told }).collect()
    }

    /// Vectors of items in the spaces of the generations that answer, with a worker's models.
    pub fn embed(&self, worker: usize, items: &[Item]) -> Result<Vec<Embedded>, RankingError> {
        let served = self.current();
        let items: Vec<&Item> = items.iter().collect();
        let vectors = embed_items(&served.generation, &mut served.models_of(worker), &items)?;
        Ok(vectors.into_iter().map(|vectors| vec![(served.number, vectors)]).collect())
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
        let served = self.current();
        served.generation.apply(for_generation(&served, changes)?, version)
    }
}

/// The changes with the vectors of one generation; those that were not made beside the write are made now.
fn for_generation(served: &Served, changes: Vec<(ItemChange, Embedded)>) -> Result<Vec<EmbeddedChange>, RankingError> {
    let of_this = |embedded: Embedded| embedded.into_iter().find(|(number, _)| *number == served.number);
    let mut embedded: Vec<EmbeddedChange> =
        changes.into_iter().map(|(change, vectors)| (change, of_this(vectors).map(|(_, vectors)| vectors))).collect();
    for ((_, item), vectors) in &mut embedded {
        if let (Some(item), None) = (&*item, &*vectors) {
            *vectors = embed_items(&served.generation, &mut served.spare_models(), &[item])?.pop();
        }
    }
    Ok(embedded)
}
