//! Everything that an answer reads: what was learned (the bundle) and what changed since (the fold of the log).
use super::models::{Models, embed_items};
use crate::engine::CompletionSource;
use crate::{
    bits,
    bundle::{Bundle, Manifest},
    catalog::{Catalog, Item, ItemKeys, ItemVectors},
    events::{Change, Event, EventKind, Popularity},
    ids::{ItemId, ItemKey, Row},
    people::People,
    ranking::RankingError,
    retrieval::{
        BadVector, FrozenError, FrozenGraph, Lexical, LexicalError, Neighbours, Suggester, Suggestible, VectorError,
        VectorIndex,
    },
    units::UnixMillis,
};
use arc_swap::ArcSwap;
use parking_lot::{Mutex, RwLock};
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// Popular items kept ready.
const POPULAR_COUNT: usize = 200;
/// How old the ready list may be.
const POPULAR_AGE_MS_MAX: i64 = 1000;

/// The state of one server. Written by one thread (the log's writer), read by all.
pub struct World {
    pub manifest: Manifest,
    pub keys: ItemKeys,
    pub catalog: ArcSwap<Catalog>,
    pub people: People,
    pub popularity: RwLock<Popularity>,
    /// Item vectors in the person's space.
    person_index: VectorIndex,
    /// Title vectors in the query's space.
    query_index: VectorIndex,
    pub lexical: Lexical,
    pub suggester: Suggester,
    /// By item key: a bundle's items get the keys 0, 1, 2 … in order, and keep them when they are replaced.
    pub next: Neighbours,
    pub together: Neighbours,
    pub text_projection: Vec<f32>,
    query_dimension: usize,
    popular: Mutex<Ready>,
    /// Held while the catalogue and its indexes change.
    writing: Mutex<()>,
    merges: AtomicU64,
    applied: AtomicU64,
}

#[derive(Default)]
struct Ready {
    at: Option<UnixMillis>,
    top: Arc<Vec<(ItemKey, f32)>>,
}

/// Why a bundle or a write could not become state.
#[derive(Debug, thiserror::Error)]
pub enum WorldError {
    #[error("vector of item {item}: {source}")]
    Vector { item: ItemId, source: VectorError },
    #[error("the merge of live items: {0}")]
    Merge(#[from] FrozenError),
    #[error(transparent)]
    Lexical(#[from] LexicalError),
    #[error(transparent)]
    Ranking(#[from] RankingError),
}

impl World {
    /// A bundle's items, with room for `live_rows` more; nobody is known yet.
    pub fn new(bundle: Bundle, live_rows: usize) -> Result<Self, WorldError> {
        let suggester = Suggester::build(bundle.items.iter().flat_map(suggestibles));
        let world = Self {
            keys: ItemKeys::default(),
            catalog: ArcSwap::from_pointee(Catalog::default()),
            people: People::default(),
            popularity: RwLock::new(Popularity::default()),
            person_index: VectorIndex::new(bundle.item_vectors.clone(), live_rows),
            query_index: VectorIndex::new(bundle.title_vectors.clone(), live_rows),
            lexical: Lexical::new()?,
            suggester,
            next: bundle.next,
            together: bundle.together,
            text_projection: bundle.text_projection,
            query_dimension: bundle.title_vectors.dimensions(),
            popular: Mutex::default(),
            writing: Mutex::default(),
            merges: AtomicU64::new(0),
            applied: AtomicU64::new(0),
            manifest: bundle.manifest,
        };
        let vectors = |row: usize| {
            let of =
                |index: &FrozenGraph| index.vector(Row(row as u32)).expect("a bundle has vectors of all its items");
            ItemVectors::new(&of(&bundle.item_vectors), &of(&bundle.title_vectors))
        };
        let items = bundle.items.into_iter().enumerate().map(|(row, item)| (Arc::new(item), vectors(row)));
        // The frozen indexes have them already, in the same order.
        let mut catalog = Catalog::default();
        let rows = catalog.upsert(&world.keys, items.collect());
        world.index_words(&catalog, &rows)?;
        world.catalog.store(Arc::new(catalog));
        Ok(world)
    }

    /// Adds or replaces items in every index, then in the catalogue, so that no reader finds a row without content.
    pub fn upsert(&self, items: Vec<(Arc<Item>, ItemVectors)>) -> Result<(), WorldError> {
        let _writing = self.writing.lock();
        let mut catalog = Catalog::clone(&self.catalog.load());
        let rows = catalog.upsert(&self.keys, items);
        for space in Space::BOTH {
            let vectors: Vec<(Row, &[f32])> = rows.iter().map(|row| (*row, space.vector(&catalog, *row))).collect();
            self.vectors_of(space).insert_many(&vectors).map_err(|bad| bad_vector(&catalog, bad))?;
        }
        self.index_words(&catalog, &rows)?;
        rows.iter().flat_map(|row| suggestibles(&catalog.get(*row).item)).for_each(|text| self.suggester.add(text));
        self.catalog.store(Arc::new(catalog));
        Ok(())
    }

    /// Numbers of a vector in the query's space.
    pub fn query_dimension(&self) -> usize {
        self.query_dimension
    }

    pub fn vectors_of(&self, space: Space) -> &VectorIndex {
        match space {
            Space::Person => &self.person_index,
            Space::Query => &self.query_index,
        }
    }

    /// Whether so many items came or went that [`World::merge`] pays.
    pub fn wants_merge(&self) -> bool {
        let alive = self.catalog.load().item_count();
        Space::BOTH.into_iter().any(|space| self.vectors_of(space).wants_merge(alive))
    }

    /// Builds new frozen graphs of all items on the threads of the current rayon pool and puts them in place of the frozen
    /// and live ones. Answers and writes go on; writes wait while the items that came meanwhile are added.
    pub fn merge(&self) -> Result<(), WorldError> {
        for space in Space::BOTH {
            let catalog = self.catalog.load_full();
            let rows: Vec<Row> = bits::ones(catalog.alive(), 0).map(|row| Row(row as u32)).collect();
            let frozen =
                self.vectors_of(space).freeze(&rows, catalog.row_count(), |row| space.vector(&catalog, row))?;
            let _writing = self.writing.lock();
            let now = self.catalog.load_full();
            let later = bits::ones(now.alive(), catalog.row_count() / 64).filter(|row| *row >= catalog.row_count());
            let later: Vec<(Row, &[f32])> =
                later.map(|row| Row(row as u32)).map(|row| (row, space.vector(&now, row))).collect();
            self.vectors_of(space).replace(frozen, &later).map_err(|bad| bad_vector(&now, bad))?;
        }
        self.merges.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Merges since the start.
    pub fn merge_count(&self) -> u64 {
        self.merges.load(Ordering::Relaxed)
    }

    fn index_words(&self, catalog: &Catalog, rows: &[Row]) -> Result<(), LexicalError> {
        let documents: Vec<(Row, &Item)> = rows.iter().map(|row| (*row, &*catalog.get(*row).item)).collect();
        self.lexical.upsert(&documents)
    }

    /// The log position up to which events are in effect.
    pub fn applied_position(&self) -> u64 {
        self.applied.load(Ordering::Acquire)
    }

    pub fn delete(&self, id: &ItemId) -> bool {
        let _writing = self.writing.lock();
        let mut catalog = Catalog::clone(&self.catalog.load());
        let known = catalog.delete(&self.keys, id);
        if known {
            self.catalog.store(Arc::new(catalog));
        }
        known
    }

    /// The fold of one event. The same code runs when it is written and when it is replayed.
    pub fn apply_event(&self, position: u64, event: &Event) {
        self.people.apply(position, event, &self.keys);
        self.applied.fetch_max(position, Ordering::Release);
        self.popularity.write().apply(event, &self.keys);
        if event.kind == EventKind::Search {
            self.suggester.add_query(&event.query, 1.0);
        }
    }

    /// The fold of what the log's writer committed, in log order.
    pub fn apply(&self, changes: Vec<(u64, Change, Option<ItemVectors>)>) -> Result<(), WorldError> {
        let mut upserts = Vec::new();
        for (position, change, vectors) in changes {
            self.applied.fetch_max(position, Ordering::Release);
            match (change, vectors) {
                (Change::Event(event), _) => self.apply_event(position, &event),
                (Change::Upsert(item), Some(vectors)) => upserts.push((Arc::new(*item), vectors)),
                (Change::Upsert(_), None) => unreachable!("the engine prepares the vectors of every item it writes"),
                (Change::Delete(id), _) => {
                    self.upsert(std::mem::take(&mut upserts))?;
                    self.delete(&id);
                }
            }
        }
        if upserts.is_empty() { Ok(()) } else { self.upsert(upserts) }
    }

    /// The fold of the catalogue changes of a replay: only the last state of each item is embedded and indexed.
    pub fn apply_catalog(
        &self,
        changes: BTreeMap<ItemId, Option<Item>>,
        models: &mut Models,
    ) -> Result<(), WorldError> {
        let (mut items, mut deleted) = (Vec::new(), Vec::new());
        for (id, item) in changes {
            match item {
                Some(item) => items.push(item),
                None => deleted.push(id),
            }
        }
        let vectors = embed_items(self, models, &items)?;
        if !items.is_empty() {
            self.upsert(items.into_iter().map(Arc::new).zip(vectors).collect())?;
        }
        for id in deleted {
            self.delete(&id);
        }
        Ok(())
    }

    /// The most popular items, at most a second old.
    pub fn popular(&self, now: UnixMillis) -> Arc<Vec<(ItemKey, f32)>> {
        let mut ready = self.popular.lock();
        if ready.at.is_none_or(|at| (now.0 - at.0).abs() >= POPULAR_AGE_MS_MAX) {
            ready.top = Arc::new(self.popularity.read().top(POPULAR_COUNT, now));
            ready.at = Some(now);
        }
        ready.top.clone()
    }
}

/// In which space an item is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Space {
    Person,
    Query,
}

impl Space {
    const BOTH: [Self; 2] = [Self::Person, Self::Query];

    pub fn vector(self, catalog: &Catalog, row: Row) -> &[f32] {
        let vectors = &catalog.get(row).vectors;
        match self {
            Self::Person => vectors.person_space(),
            Self::Query => vectors.query_space(),
        }
    }
}

fn bad_vector(catalog: &Catalog, BadVector { row, problem }: BadVector) -> WorldError {
    WorldError::Vector { item: catalog.get(row).item.id.clone(), source: problem }
}

/// What completions may offer of an item: its title, its categories, its brand.
fn suggestibles(item: &Item) -> Vec<Suggestible> {
    let category = item.categories.last().cloned().unwrap_or_default();
    let named = |text: &String| Suggestible {
        text: text.clone(),
        category: text.clone(),
        weight: 1.0,
        source: CompletionSource::Category,
    };
    let title = Suggestible { text: item.title.clone(), category, weight: 1.0, source: CompletionSource::Title };
    let brand = (!item.brand.is_empty()).then_some(&item.brand);
    std::iter::once(title).chain(item.categories.iter().chain(brand).map(named)).collect()
}
