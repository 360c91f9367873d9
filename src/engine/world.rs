//! Everything that an answer reads: what was learned (the bundle) and what changed since (the fold of the log).
use super::models::{Models, embed_items};
use crate::engine::CompletionSource;
use crate::{
    bundle::{Bundle, Manifest},
    catalog::{Catalog, Item, ItemKeys, ItemVectors, VECTOR_DIM},
    events::{Change, Event, EventKind, Popularity},
    ids::{ItemId, ItemKey, Row},
    people::People,
    ranking::RankingError,
    retrieval::{Lexical, LexicalError, Neighbours, Suggester, Suggestible, VectorError, VectorIndex},
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
    pub person_index: VectorIndex,
    /// Title vectors in the query's space.
    pub query_index: VectorIndex,
    pub lexical: Lexical,
    pub suggester: Suggester,
    /// By item key: a bundle's items get the keys 0, 1, 2 … in order, and keep them when they are replaced.
    pub next: Neighbours,
    pub together: Neighbours,
    pub text_projection: Vec<f32>,
    popular: Mutex<Ready>,
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
            popular: Mutex::default(),
            applied: AtomicU64::new(0),
            manifest: bundle.manifest,
        };
        let vectors = |row: usize| ItemVectors {
            person_space: array(bundle.item_vectors.vector(Row(row as u32))),
            query_space: array(bundle.title_vectors.vector(Row(row as u32))),
        };
        let items = bundle.items.into_iter().enumerate().map(|(row, item)| (Arc::new(item), Arc::new(vectors(row))));
        // The frozen indexes have them already, in the same order.
        let mut catalog = Catalog::default();
        let rows = catalog.upsert(&world.keys, items.collect());
        world.index_words(&catalog, &rows)?;
        world.catalog.store(Arc::new(catalog));
        Ok(world)
    }

    /// Adds or replaces items in every index, then in the catalogue, so that no reader finds a row without content.
    pub fn upsert(&self, items: Vec<(Arc<Item>, Arc<ItemVectors>)>) -> Result<(), WorldError> {
        let mut catalog = Catalog::clone(&self.catalog.load());
        let rows = catalog.upsert(&self.keys, items);
        let entries: Vec<_> = rows.iter().map(|&row| (row, catalog.get(row))).collect();
        let person: Vec<(Row, &[f32])> = entries.iter().map(|(row, e)| (*row, &e.vectors.person_space[..])).collect();
        let query: Vec<(Row, &[f32])> = entries.iter().map(|(row, e)| (*row, &e.vectors.query_space[..])).collect();
        let first = entries.first().map(|(_, entry)| entry.item.id.clone());
        for (index, vectors) in [(&self.person_index, person), (&self.query_index, query)] {
            index.insert_many(&vectors).map_err(|source| WorldError::Vector {
                item: first.clone().expect("an empty list has no bad vector"),
                source,
            })?;
        }
        self.index_words(&catalog, &rows)?;
        self.catalog.store(Arc::new(catalog));
        Ok(())
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
                (Change::Upsert(item), Some(vectors)) => upserts.push((Arc::new(*item), Arc::new(vectors))),
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
            self.upsert(items.into_iter().map(Arc::new).zip(vectors.into_iter().map(Arc::new)).collect())?;
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

/// `values` has [`VECTOR_DIM`] numbers.
pub(super) fn array(values: &[f32]) -> [f32; VECTOR_DIM] {
    values.try_into().expect("cut in pieces of this length")
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
