//! A generation: a loaded bundle with the catalogue changes since, its indexes and its neighbour tables.
use super::models::{Models, TextProjection, embed_items};
use crate::{
    bundle::{Bundle, Manifest},
    popularity::PopularityView,
    ranking::RankingError,
};
use arc_swap::ArcSwap;
use lodestone_catalog::{Catalog, Item, ItemVectors};
use lodestone_core::{
    bits,
    ids::{ItemId, ItemKey, Row},
    units::UnixMillis,
};
use lodestone_events::PopularitySnapshot;
use lodestone_index::{
    CompletionCandidate, CompletionSource, FrozenError, FrozenGraph, InvalidVector, KeyedNeighbours, Lexical,
    LexicalError, Suggester, VectorError, VectorIndex,
};
use lodestone_state::{ItemChange, LiveState};
use parking_lot::Mutex;
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// A loaded bundle with the catalogue changes since. One thread at a time writes; all threads read.
pub struct Generation {
    pub state: Arc<LiveState>,
    pub manifest: Manifest,
    /// Number of first rows of the catalogue that are the bundle's own items, in its order, with its vectors.
    pub bundle_row_count: usize,
    pub catalog: ArcSwap<Catalog>,
    /// Item vectors in the user space.
    user_index: VectorIndex,
    /// Title vectors in the query space.
    query_index: VectorIndex,
    pub lexical: Lexical,
    /// Titles, categories and brands, as completions.
    pub titles: Suggester,
    /// Items that users choose after an item.
    pub transitions: KeyedNeighbours,
    /// Items that users buy in one basket with an item.
    pub co_purchases: KeyedNeighbours,
    /// Popularity at the training.
    trained_popularity: Arc<PopularitySnapshot>,
    text_projection: TextProjection,
    /// Locked while the catalogue and its indexes change.
    write_lock: Mutex<()>,
    merges: AtomicU64,
    /// The version of the catalogue changes that are applied.
    catalogue_version: AtomicU64,
}

/// The reason why a bundle or a catalogue change could not be applied.
#[derive(Debug, thiserror::Error)]
pub enum GenerationError {
    #[error("vector of item {item}: {source}")]
    Vector { item: ItemId, source: VectorError },
    #[error("cannot merge live items: {0}")]
    Merge(#[from] FrozenError),
    #[error(transparent)]
    Lexical(#[from] LexicalError),
    #[error(transparent)]
    Ranking(#[from] RankingError),
}

/// A catalogue change, with the written item's vectors in the spaces of this generation.
pub type EmbeddedChange = (ItemChange, Option<ItemVectors>);

impl Generation {
    /// Builds a generation of a bundle, without catalogue changes. `lexical` must be empty. The vector indexes have
    /// room for `live_rows` more items.
    pub fn new(
        bundle: Bundle,
        state: Arc<LiveState>,
        lexical: Lexical,
        live_rows: usize,
    ) -> Result<Self, GenerationError> {
        let keys: Vec<ItemKey> = bundle.items.iter().map(|item| state.keys.intern(&item.id)).collect();
        let generation = Self {
            bundle_row_count: bundle.items.len(),
            catalog: ArcSwap::from_pointee(Catalog::default()),
            user_index: VectorIndex::new(bundle.item_vectors.clone(), live_rows),
            query_index: VectorIndex::new(bundle.title_vectors.clone(), live_rows),
            lexical,
            titles: Suggester::build(bundle.items.iter().flat_map(completion_candidates)),
            transitions: bundle.transitions.by_key(&keys),
            co_purchases: bundle.co_purchases.by_key(&keys),
            trained_popularity: Arc::new(PopularitySnapshot::new(
                bundle.popularity.renumbered(&keys),
                &PopularitySnapshot::default(),
                UnixMillis(bundle.manifest.trained_until_ms),
            )),
            text_projection: TextProjection {
                matrix: bundle.text_projection,
                query_dimension: bundle.title_vectors.dimensions(),
            },
            write_lock: Mutex::default(),
            merges: AtomicU64::new(0),
            catalogue_version: AtomicU64::new(0),
            manifest: bundle.manifest,
            state,
        };
        let vectors = |row: usize| {
            let of =
                |index: &FrozenGraph| index.vector(Row(row as u32)).expect("a bundle has vectors of all its items");
            ItemVectors::new(&of(&bundle.item_vectors), &of(&bundle.title_vectors))
        };
        let items = bundle.items.into_iter().enumerate().map(|(row, item)| (Arc::new(item), vectors(row)));
        // The frozen indexes contain these items already, in the same order.
        let mut catalog = Catalog::default();
        let rows = catalog.upsert(&generation.state.keys, items.collect());
        generation.index_text(&catalog, &rows)?;
        generation.catalog.store(Arc::new(catalog));
        Ok(generation)
    }

    /// Builds a generation over an empty state. The items have the keys 0, 1, 2, … in order.
    pub fn standalone(bundle: Bundle, live_rows: usize) -> Result<Self, GenerationError> {
        Self::new(bundle, Arc::default(), Lexical::new()?, live_rows)
    }

    pub fn name(&self) -> &str {
        &self.manifest.name
    }

    /// Adds or replaces items in every index, then in the catalogue, so that no reader sees a row without content.
    fn upsert(&self, items: Vec<(Arc<Item>, ItemVectors)>) -> Result<(), GenerationError> {
        if items.is_empty() {
            return Ok(());
        }
        let _lock = self.write_lock.lock();
        let mut catalog = Catalog::clone(&self.catalog.load());
        let rows = catalog.upsert(&self.state.keys, items);
        for space in Space::BOTH {
            let vectors: Vec<(Row, &[f32])> = rows.iter().map(|row| (*row, space.vector(&catalog, *row))).collect();
            self.vector_index(space).insert_many(&vectors).map_err(|bad| invalid_vector(&catalog, bad))?;
        }
        self.index_text(&catalog, &rows)?;
        rows.iter()
            .flat_map(|row| completion_candidates(&catalog.get(*row).item))
            .for_each(|text| self.titles.add(text));
        self.catalog.store(Arc::new(catalog));
        Ok(())
    }

    fn delete(&self, id: &ItemId) {
        let _lock = self.write_lock.lock();
        let mut catalog = Catalog::clone(&self.catalog.load());
        if catalog.delete(&self.state.keys, id) {
            self.catalog.store(Arc::new(catalog));
        }
    }

    /// Applies changes in order and sets the catalogue version.
    pub fn apply(&self, changes: Vec<EmbeddedChange>, version: u64) -> Result<(), GenerationError> {
        let mut written = Vec::new();
        for ((id, item), vectors) in changes {
            match item.zip(vectors) {
                Some(item) => written.push(item),
                None => {
                    self.upsert(std::mem::take(&mut written))?;
                    self.delete(&id);
                }
            }
        }
        self.upsert(written)?;
        self.catalogue_version.store(version, Ordering::Release);
        Ok(())
    }

    /// Applies the catalogue changes since this generation's version, with its own models, and returns their number.
    /// Other threads may record changes meanwhile, but must not write to this generation.
    pub fn catch_up(&self, models: &mut Models) -> Result<usize, GenerationError> {
        const PART: usize = 1000;
        let mut count = 0;
        loop {
            let (changes, version) = self.state.catalogue.lock().after(self.catalogue_version(), PART);
            if changes.is_empty() {
                return Ok(count);
            }
            count += changes.len();
            let items: Vec<&Item> = changes.iter().filter_map(|(_, item)| item.as_deref()).collect();
            let mut vectors = embed_items(&self.text_projection, models, &items)?.into_iter();
            let embedded = changes.into_iter().map(|(id, item)| {
                let vectors = item.as_ref().and_then(|_| vectors.next());
                ((id, item), vectors)
            });
            self.apply(embedded.collect(), version)?;
        }
    }

    /// Returns the version of the catalogue changes that are applied.
    pub fn catalogue_version(&self) -> u64 {
        self.catalogue_version.load(Ordering::Acquire)
    }

    /// Returns the popularity of this moment.
    pub fn popularity(&self) -> PopularityView {
        PopularityView::new(self.state.popularity(), self.trained_popularity.clone())
    }

    /// Returns the projection of encoded texts into the user space.
    pub fn text_projection(&self) -> &TextProjection {
        &self.text_projection
    }

    pub fn vector_index(&self, space: Space) -> &VectorIndex {
        match space {
            Space::User => &self.user_index,
            Space::Query => &self.query_index,
        }
    }

    /// Returns whether enough items were added or deleted for [`Generation::merge`].
    pub fn needs_merge(&self) -> bool {
        let alive = self.catalog.load().item_count();
        Space::BOTH.into_iter().any(|space| self.vector_index(space).needs_merge(alive))
    }

    /// Builds new frozen graphs of all items on the current rayon pool and replaces the frozen and live graphs with
    /// them. Answers and writes continue; writes wait only while the items that were written meanwhile are added.
    pub fn merge(&self) -> Result<(), GenerationError> {
        for space in Space::BOTH {
            let catalog = self.catalog.load_full();
            let rows: Vec<Row> = bits::ones(catalog.alive(), 0).map(|row| Row(row as u32)).collect();
            let frozen =
                self.vector_index(space).freeze(&rows, catalog.row_count(), |row| space.vector(&catalog, row))?;
            let _lock = self.write_lock.lock();
            let now = self.catalog.load_full();
            let later = bits::ones(now.alive(), catalog.row_count() / 64).filter(|row| *row >= catalog.row_count());
            let later: Vec<(Row, &[f32])> =
                later.map(|row| Row(row as u32)).map(|row| (row, space.vector(&now, row))).collect();
            self.vector_index(space).replace(frozen, &later).map_err(|bad| invalid_vector(&now, bad))?;
        }
        self.merges.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Returns the number of merges since the generation was loaded.
    pub fn merge_count(&self) -> u64 {
        self.merges.load(Ordering::Relaxed)
    }

    fn index_text(&self, catalog: &Catalog, rows: &[Row]) -> Result<(), LexicalError> {
        let documents: Vec<(Row, &Item)> = rows.iter().map(|row| (*row, &*catalog.get(*row).item)).collect();
        self.lexical.upsert(&documents)
    }
}

/// A vector space in which items are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Space {
    User,
    Query,
}

impl Space {
    const BOTH: [Self; 2] = [Self::User, Self::Query];

    pub fn vector(self, catalog: &Catalog, row: Row) -> &[f32] {
        let vectors = &catalog.get(row).vectors;
        match self {
            Self::User => vectors.user_space(),
            Self::Query => vectors.query_space(),
        }
    }
}

fn invalid_vector(catalog: &Catalog, InvalidVector { row, problem }: InvalidVector) -> GenerationError {
    GenerationError::Vector { item: catalog.get(row).item.id.clone(), source: problem }
}

/// Returns the completions of an item: its title, its categories and its brand.
fn completion_candidates(item: &Item) -> Vec<CompletionCandidate> {
    let category = item.categories.last().cloned().unwrap_or_default();
    let named = |text: &String| CompletionCandidate {
        text: text.clone(),
        category: text.clone(),
        weight: 1.0,
        source: CompletionSource::Category,
    };
    let title =
        CompletionCandidate { text: item.title.clone(), category, weight: 1.0, source: CompletionSource::Title };
    let brand = (!item.brand.is_empty()).then_some(&item.brand);
    std::iter::once(title).chain(item.categories.iter().chain(brand).map(named)).collect()
}
