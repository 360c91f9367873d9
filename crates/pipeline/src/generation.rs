//! A generation: a loaded bundle with the catalogue changes since, its indexes and its neighbour tables.
use super::models::{Models, TextProjection, embed_items};
use crate::{
    bundle::{Bundle, Manifest},
    features::{FeatureSchema, KeyedContextCounts},
    popularity::PopularityView,
    ranking::RankingError,
    saved_vectors::{self, SavedVectors},
    text_indexes::{completion_candidates, have_same_completions},
};
use ahash::{AHashSet, RandomState};
use arc_swap::ArcSwap;
use lodestone_catalog::{Catalog, Item, ItemState, ItemVectors};
use lodestone_core::{
    bits,
    faults::{self, InjectedFault},
    ids::{ItemId, Row},
    units::UnixMillis,
};
use lodestone_events::{PopularitySnapshot, panic_message};
use lodestone_index::{
    ArraysError, FrozenError, FrozenGraph, InvalidVector, KeyedNeighbours, Languages, Lexical, LexicalError,
    LexicalFileError, RowChange, SimilarHistories, Suggester, VectorError, VectorIndex,
};
use lodestone_loyalty::TrainedLoyalty;
use lodestone_rules::{Synonyms, searchable_attributes};
use lodestone_state::LiveState;
use parking_lot::Mutex;
use rayon::prelude::*;
use std::{
    io, iter,
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

/// A loaded bundle with the catalogue changes since. One thread at a time writes; all threads read.
///
/// A change is applied to every index first and published with the catalogue last. If a step fails, the indexes are set
/// back to the content of the published catalogue, so that a change is in effect everywhere or nowhere.
pub struct Generation {
    pub state: Arc<LiveState>,
    pub manifest: Manifest,
    /// Hashes of the texts of the bundle's own items, which have the first rows of the catalogue, in their order.
    bundle_texts: Vec<u64>,
    /// The vectors of the bundle's items in the two spaces.
    bundle_vectors: [Arc<FrozenGraph>; 2],
    pub catalog: ArcSwap<Catalog>,
    /// Item vectors in the user space.
    user_index: VectorIndex,
    /// Title vectors in the query space.
    query_index: VectorIndex,
    pub lexical: Lexical,
    /// Titles, their phrases, categories and brands, as completions.
    pub titles: Suggester,
    /// Items that users choose after an item.
    pub transitions: KeyedNeighbours,
    /// Items that users buy in one basket with an item.
    pub co_purchases: KeyedNeighbours,
    /// Items that users with the same items choose.
    pub item_to_item: KeyedNeighbours,
    /// Items with similar texts.
    pub similar_texts: KeyedNeighbours,
    /// Earlier histories of users.
    pub histories: SimilarHistories,
    /// Users by item and value of the viewer's context, at the training.
    pub context_counts: KeyedContextCounts,
    /// Popularity at the training.
    trained_popularity: Arc<PopularitySnapshot>,
    text_projection: TextProjection,
    /// The loyalty model, or the reason why there is none.
    pub loyalty: Arc<TrainedLoyalty>,
    /// The mean margin share of the catalogue and its time.
    margin_share: Mutex<Option<(UnixMillis, Option<f64>)>>,
    /// Locked while the catalogue and its indexes change.
    write_lock: Mutex<()>,
    /// Locked while a catalogue is published. Requests wait for it when a sale begins or ends, and not for a write.
    publish_lock: Mutex<()>,
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
    #[error("the bundle's lexical index: {0}")]
    LexicalFile(#[from] LexicalFileError),
    #[error("the bundle's index of completions {0}")]
    Completions(#[from] ArraysError),
    #[error(transparent)]
    Ranking(#[from] RankingError),
    #[error("{0}")]
    Panic(String),
    #[error(transparent)]
    Injected(#[from] InjectedFault),
    /// A change failed and could not be undone, so that the indexes contradict the catalogue.
    #[error("{change}; and the indexes could not be restored: {restore}")]
    NotRestored { change: Box<GenerationError>, restore: Box<GenerationError> },
    /// More items than a few cannot be applied, so that the fault is not one of the items.
    #[error("{count} of the written items cannot be applied, such as {item}: {source}")]
    ManyItems { count: usize, item: ItemId, source: Box<GenerationError> },
}

/// Age at which the mean margin share of the catalogue is computed again, in milliseconds.
const MARGIN_SHARE_AGE_MS: i64 = 60_000;

/// Maximum number of written items that a generation leaves out while it catches up.
const SKIPPED_MAX: usize = 100;

/// Runs `body` and turns a panic into an error.
pub fn catch_panic<T>(body: impl FnOnce() -> Result<T, GenerationError>) -> Result<T, GenerationError> {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| Err(GenerationError::Panic(panic_message(&*panic))))
}

/// The catalogue before and after a change of some rows.
pub struct Undo {
    before: Arc<Catalog>,
    after: Arc<Catalog>,
    /// Distinct.
    rows: Vec<Row>,
    /// The catalogue version before the change.
    version: u64,
}

/// The indexes that a change has reached.
#[derive(Default)]
struct Indexed {
    /// Set before the first vector of the space is set.
    spaces: [bool; 2],
    /// Set when all texts are indexed.
    lexical: bool,
}

/// An item's content after its changes; none if it is deleted.
pub type ChangedItem = (ItemId, Option<Arc<Item>>);

/// A changed item, with its vectors in the spaces of this generation unless it is deleted.
pub type EmbeddedChange = (ChangedItem, Option<ItemVectors>);

impl Generation {
    /// Builds a generation of a bundle, without catalogue changes and declarations, on all threads of the current rayon
    /// pool. `languages` are those of the items' texts. The vector indexes have room for `live_rows` more items.
    pub fn new(
        bundle: Bundle,
        state: Arc<LiveState>,
        languages: Languages,
        synonyms: Synonyms,
        live_rows: usize,
    ) -> Result<Self, GenerationError> {
        let keys = state.keys.intern_all(bundle.items.par_iter().map(|item| &item.id));
        let (item_count, trained_until) = (bundle.items.len(), UnixMillis(bundle.manifest.trained_until_ms));
        let bundle_texts = bundle.items.par_iter().map(text_hash).collect();
        let bundle_vectors = [bundle.item_vectors.clone(), bundle.title_vectors.clone()];
        let vectors_of = |rows| vectors_of(&bundle_vectors, rows).expect("a bundle has vectors of all its items");
        let ((lexical, completions), (tables, catalog)) = rayon::join(
            || {
                let lexical = || bundle.text_indexes.read_lexical(item_count, languages);
                rayon::join(|| timed(lexical), || timed(|| bundle.text_indexes.read_completions()))
            },
            || {
                let tables = || {
                    let tables = [bundle.transitions, bundle.co_purchases, bundle.item_to_item, bundle.similar_texts];
                    (tables.map(|table| table.by_key(&keys)), bundle.histories.by_key(&keys))
                };
                let tables = timed(tables);
                let prepared = bundle.manifest.features.prepared();
                let catalog = || Catalog::of_items(prepared, trained_until, keys.clone(), bundle.items, vectors_of);
                (tables, timed(catalog))
            },
        );
        let ((lexical, lexical_ms), (titles, completions_ms)) = (lexical, completions);
        let ((tables, tables_ms), (catalog, catalogue_ms)) = (tables, catalog);
        let ([transitions, co_purchases, item_to_item, similar_texts], histories) = tables;
        tracing::info!(lexical_ms, completions_ms, tables_ms, catalogue_ms, "built the indexes of the bundle");
        let mut lexical = lexical?;
        lexical.set_synonyms(synonyms);
        Ok(Self {
            bundle_texts,
            user_index: VectorIndex::new(bundle.item_vectors.clone(), live_rows),
            query_index: VectorIndex::new(bundle.title_vectors.clone(), live_rows),
            bundle_vectors,
            catalog: ArcSwap::from_pointee(catalog),
            lexical,
            titles: titles?,
            transitions,
            co_purchases,
            item_to_item,
            similar_texts,
            histories,
            context_counts: bundle.context_counts.by_key(&keys),
            trained_popularity: Arc::new(PopularitySnapshot::new(
                bundle.popularity.renumbered(&keys),
                &PopularitySnapshot::default(),
                trained_until,
            )),
            text_projection: TextProjection {
                matrix: bundle.text_projection,
                query_dimension: bundle.title_vectors.dimensions(),
                user_dimension: bundle.item_vectors.dimensions(),
            },
            loyalty: bundle.loyalty,
            margin_share: Mutex::default(),
            write_lock: Mutex::default(),
            publish_lock: Mutex::default(),
            merges: AtomicU64::new(0),
            catalogue_version: AtomicU64::new(0),
            manifest: bundle.manifest,
            state,
        })
    }

    /// Builds a generation over an empty state. The items have the keys 0, 1, 2, … in order.
    pub fn standalone(bundle: Bundle, live_rows: usize) -> Result<Self, GenerationError> {
        Self::new(bundle, Arc::default(), Languages::default(), Synonyms::default(), live_rows)
    }

    pub fn name(&self) -> &str {
        &self.manifest.name
    }

    /// Returns the mean margin share of the catalogue, at most a minute old; see [`Catalog::mean_margin_share`]. The prices
    /// are the items' own, whatever a viewer sees. Requests do not wait for one that computes it.
    pub fn mean_margin_share(&self, now: UnixMillis) -> Option<f64> {
        let known = *self.margin_share.lock();
        match known {
            Some((at, share)) if (0..MARGIN_SHARE_AGE_MS).contains(&(now.0 - at.0)) => share,
            _ => {
                let share = self.catalog.load().mean_margin_share();
                *self.margin_share.lock() = Some((now, share));
                share
            }
        }
    }

    pub fn schema(&self) -> &FeatureSchema {
        &self.manifest.features
    }

    /// Returns the vectors of a row of the bundle; none for a row of another item.
    pub fn bundle_vectors(&self, row: Row) -> Option<ItemVectors> {
        vectors_of(&self.bundle_vectors, row.index()..row.index() + 1)?.pop()
    }

    /// Returns the vectors of an item whose texts are those of the bundle or of the current catalogue. So a change of a
    /// price needs no encoder, and keeps the vectors that the training learned.
    pub fn known_vectors(&self, item: &Item) -> Option<ItemVectors> {
        let catalog = self.catalog.load();
        let row = catalog.last_row_of(&self.state.keys, &item.id)?;
        let (hash, known) = (text_hash(item), catalog.own(row));
        if catalog.is_alive(row) && text_hash(&known.item) == hash {
            return Some(known.vectors.clone());
        }
        (self.bundle_texts.get(row.index()) == Some(&hash)).then(|| self.bundle_vectors(row))?
    }

    /// Returns the attributes whose texts searches find, by the current declarations.
    fn searchable_attributes(&self) -> Vec<String> {
        let rules = self.state.rules();
        searchable_attributes(
            rules.attributes.values().map(|attribute| &**attribute),
            &self.manifest.searchable_attributes,
        )
    }

    /// Makes searches find the texts of the attributes that are declared searchable now. Costs nothing if these are the
    /// same as before. After an error the lexical index contradicts the catalogue.
    pub fn apply_declarations(&self) -> Result<(), GenerationError> {
        let _lock = self.write_lock.lock();
        let searchable = self.searchable_attributes();
        if *self.lexical.searchable() == *searchable {
            return Ok(());
        }
        let catalog = self.catalog.load_full();
        let rows = bits::ones(catalog.alive(), 0).map(|row| Row(row as u32));
        catch_panic(|| {
            faults::check("declarations", searchable.iter().map(String::as_str))?;
            Ok(self.lexical.set_searchable(searchable, rows.map(|row| (row, &*catalog.get(row).item)))?)
        })
    }

    /// Applies changes in order, all or none, and sets the catalogue version. Only after
    /// [`GenerationError::NotRestored`] it is unknown which of them are in effect.
    pub fn apply(&self, changes: Vec<EmbeddedChange>, version: u64) -> Result<Undo, GenerationError> {
        let _lock = self.write_lock.lock();
        let before = self.catalog.load_full();
        let (mut catalog, mut rows) = (Catalog::clone(&before), Vec::with_capacity(changes.len()));
        let ids: Vec<ItemId> = changes.iter().map(|((id, _), _)| id.clone()).collect();
        let fault = |step: &str| faults::check(step, ids.iter().map(ItemId::as_str));
        catch_panic(|| {
            fault("catalog")?;
            for ((id, item), vectors) in changes {
                rows.extend(match item.zip(vectors) {
                    Some((item, vectors)) => Some(catalog.upsert(&self.state.keys, item, vectors)),
                    None => catalog.delete(&self.state.keys, &id),
                });
            }
            Ok(())
        })?;
        let mut known = AHashSet::new();
        rows.retain(|row| known.insert(*row));
        let undo = Undo { before, after: Arc::new(catalog), rows, version: self.catalogue_version() };
        let mut indexed = Indexed::default();
        if let Err(change) = catch_panic(|| self.index(&undo, &mut indexed, &fault)) {
            let restored = catch_panic(|| {
                fault("restore")?;
                self.restore(&undo, &indexed)
            });
            return Err(match restored {
                Ok(()) => change,
                Err(restore) => GenerationError::NotRestored { change: Box::new(change), restore: Box::new(restore) },
            });
        }
        self.publish(&undo.after);
        self.catalogue_version.store(version, Ordering::Release);
        Ok(undo)
    }

    /// Returns the catalogue with the prices of a time, and publishes it if a sale began or ended since. Prices never go
    /// back, so that requests of slightly different times do not rewrite them again and again.
    ///
    /// Only what answers users calls this. Training, evaluation and golden requests read the prices of the end of the
    /// training, like all other values of items, so that their results repeat.
    ///
    /// Waits for other requests that rewrite the prices, and not for writes.
    pub fn catalog_at(&self, now: UnixMillis) -> Arc<Catalog> {
        if let Some(catalog) = self.current_catalog_at(now) {
            return catalog;
        }
        let _publishing = self.publish_lock.lock();
        if let Some(later) = self.catalog.load().at_time(now) {
            self.catalog.store(Arc::new(later));
        }
        self.catalog.load_full()
    }

    /// Returns the catalogue if it has the prices of a time; none if a sale began or ended since.
    pub fn current_catalog_at(&self, now: UnixMillis) -> Option<Arc<Catalog>> {
        let catalog = self.catalog.load_full();
        catalog.next_price_change().is_none_or(|change| change > now).then_some(catalog)
    }

    /// Publishes a catalogue, with prices that are not of an earlier time than those of the published one. Only with the
    /// lock of writes.
    fn publish(&self, catalog: &Arc<Catalog>) {
        let _publishing = self.publish_lock.lock();
        let later = catalog.at_time(self.catalog.load().time());
        self.catalog.store(later.map_or_else(|| catalog.clone(), Arc::new));
    }

    /// Undoes the last [`Generation::apply`]. After an error the indexes contradict the catalogue.
    pub fn revert(&self, undo: &Undo) -> Result<(), GenerationError> {
        let _lock = self.write_lock.lock();
        catch_panic(|| self.restore(undo, &Indexed { spaces: [true; 2], lexical: true }))?;
        self.set_completions(&undo.after, &undo.before, &undo.rows);
        self.publish(&undo.before);
        self.catalogue_version.store(undo.version, Ordering::Release);
        Ok(())
    }

    /// Brings the indexes from the catalogue before the change to the one after it.
    fn index(
        &self,
        undo: &Undo,
        indexed: &mut Indexed,
        fault: &dyn Fn(&str) -> Result<(), InjectedFault>,
    ) -> Result<(), GenerationError> {
        for (at, step) in ["user vectors", "query vectors"].into_iter().enumerate() {
            fault(step)?;
            indexed.spaces[at] = true;
            self.set_vectors(Space::BOTH[at], &undo.before, &undo.after, &undo.rows)?;
        }
        fault("lexical")?;
        self.lexical.apply(&row_changes(&undo.before, &undo.after, &undo.rows))?;
        indexed.lexical = true;
        self.lexical.refresh()?;
        fault("completions")?;
        fault("publish")?;
        // Last, because `restore` does not reach the completions.
        self.set_completions(&undo.before, &undo.after, &undo.rows);
        Ok(())
    }

    /// Replaces the completions of the rows' items in one catalogue by those in another one.
    fn set_completions(&self, from: &Catalog, to: &Catalog, rows: &[Row]) {
        for row in rows {
            let [old, new] = [from, to].map(|catalog| item_of(catalog, *row));
            if old.zip(new).is_some_and(|(old, new)| have_same_completions(old, new)) {
                continue;
            }
            let [old, new] = [old, new].map(|item| item.map(completion_candidates).unwrap_or_default());
            // Added first, so that a text of both is suggested all the time.
            new.into_iter().for_each(|text| self.titles.add(text));
            old.into_iter().for_each(|text| self.titles.remove(text));
        }
    }

    /// Brings the vector and lexical indexes back to the catalogue before the change.
    fn restore(&self, undo: &Undo, indexed: &Indexed) -> Result<(), GenerationError> {
        for (space, _) in iter::zip(Space::BOTH, indexed.spaces).filter(|(_, is_indexed)| *is_indexed) {
            self.set_vectors(space, &undo.after, &undo.before, &undo.rows)?;
        }
        if indexed.lexical {
            self.lexical.apply(&row_changes(&undo.after, &undo.before, &undo.rows))?;
            self.lexical.refresh()?;
        }
        Ok(())
    }

    /// Sets the vectors of the rows whose vectors differ between two catalogues to those of `to`.
    fn set_vectors(&self, space: Space, from: &Catalog, to: &Catalog, rows: &[Row]) -> Result<(), GenerationError> {
        let index = self.vector_index(space);
        let differs = |row: Row| {
            row.index() >= from.row_count()
                // An item that is written again after its deletion, if a merge left it out in between.
                || !index.contains(row)
                || space.vector(from, row) != space.vector(to, row)
        };
        let changed = rows.iter().filter(|row| to.is_alive(**row) && differs(**row));
        let vectors: Vec<(Row, &[f32])> = changed.map(|row| (*row, space.vector(to, *row))).collect();
        index.set_many(&vectors).map_err(|bad| invalid_vector(to, bad))
    }

    /// Calls [`Generation::catch_up`] for a generation that does not answer yet. The vectors of all changes enter the
    /// graphs together at the end: if they are a third of all, by a merge, on all threads of the current rayon pool.
    /// Texts with a saved vector are not encoded.
    pub fn load_changes(&self, models: &mut Models, saved: &SavedVectors) -> Result<usize, GenerationError> {
        Space::BOTH.into_iter().for_each(|space| self.vector_index(space).begin_load());
        let count = self.catch_up_from(models, saved)?;
        if Space::BOTH.into_iter().any(|space| self.vector_index(space).loads_faster_by_merge()) {
            self.merge()?;
            return Ok(count);
        }
        let catalog = self.catalog.load_full();
        for space in Space::BOTH {
            // A change that was undone leaves a live row that the catalogue does not have.
            let vector_of = |row: Row| catalog.is_alive(row).then(|| space.vector(&catalog, row));
            let ended = self.vector_index(space).end_load(vector_of);
            ended.map_err(|bad| invalid_vector(&catalog, bad))?;
        }
        Ok(count)
    }

    /// Applies the declarations of attributes, and the catalogue changes since this generation's version with its own
    /// models, and returns the number of these.
    /// Leaves out items that cannot be applied, and logs them. Other threads may record changes meanwhile, but must not
    /// write to this generation.
    pub fn catch_up(&self, models: &mut Models) -> Result<usize, GenerationError> {
        self.catch_up_from(models, &SavedVectors::default())
    }

    fn catch_up_from(&self, models: &mut Models, saved: &SavedVectors) -> Result<usize, GenerationError> {
        const PART: usize = 1000;
        let (mut count, mut skipped) = (0, 0);
        self.apply_declarations()?;
        loop {
            let (changed, version) = self.state.catalogue.lock().after(self.catalogue_version(), PART);
            if changed.is_empty() {
                return Ok(count);
            }
            let changes = self.contents(&changed);
            count += changes.len();
            if let Err(error) = self.embed_and_apply(models, saved, changes.clone(), version) {
                if matches!(error, GenerationError::NotRestored { .. }) {
                    return Err(error);
                }
                for change in changes {
                    let id = change.0.clone();
                    let Err(source) = self.embed_and_apply(models, saved, vec![change], version) else { continue };
                    skipped += 1;
                    tracing::error!(item = %id, error = %source, "a written item cannot be applied; it is left out");
                    if skipped > SKIPPED_MAX || matches!(source, GenerationError::NotRestored { .. }) {
                        return Err(GenerationError::ManyItems { count: skipped, item: id, source: Box::new(source) });
                    }
                }
                self.catalogue_version.store(version, Ordering::Release);
            }
        }
    }

    /// Returns the contents of items after their changes.
    pub fn contents(&self, changed: &[(ItemId, ItemState)]) -> Vec<ChangedItem> {
        let catalog = self.catalog.load();
        let content = |(id, state): &(ItemId, ItemState)| {
            let known = catalog.row_of(&self.state.keys, id).map(|row| &*catalog.get(row).item);
            (id.clone(), state.content(known))
        };
        changed.iter().map(content).collect()
    }

    fn embed_and_apply(
        &self,
        models: &mut Models,
        saved: &SavedVectors,
        changes: Vec<ChangedItem>,
        version: u64,
    ) -> Result<(), GenerationError> {
        let items: Vec<&Item> = changes.iter().filter_map(|(_, item)| item.as_deref()).collect();
        let mut vectors = catch_panic(|| Ok(self.embed_from(models, saved, &items)?))?.into_iter();
        let embedded = changes.iter().map(|(id, item)| {
            let vectors = item.as_ref().and_then(|_| vectors.next());
            ((id.clone(), item.clone()), vectors)
        });
        self.apply(embedded.collect(), version).map(drop)
    }

    /// Returns the vectors of items: those of equal texts that are known, otherwise encoded with the models.
    pub fn embed(&self, models: &mut Models, items: &[&Item]) -> Result<Vec<ItemVectors>, RankingError> {
        self.embed_from(models, &SavedVectors::default(), items)
    }

    fn embed_from(
        &self,
        models: &mut Models,
        saved: &SavedVectors,
        items: &[&Item],
    ) -> Result<Vec<ItemVectors>, RankingError> {
        let known: Vec<Option<ItemVectors>> = items.iter().map(|item| self.known_vectors(item)).collect();
        let unknown: Vec<&Item> =
            iter::zip(items, &known).filter(|(_, known)| known.is_none()).map(|(item, _)| *item).collect();
        let mut encoded = embed_items(&self.text_projection, models, saved, &unknown)?.into_iter();
        Ok(known.into_iter().filter_map(|known| known.or_else(|| encoded.next())).collect())
    }

    /// Returns the number of items whose vectors the bundle does not have.
    pub fn written_count(&self) -> usize {
        let catalog = self.catalog.load();
        bits::ones(catalog.alive(), 0).filter(|row| is_written(&catalog, Row(*row as u32))).count()
    }

    /// Saves the vectors of the items that the bundle does not have for [`Generation::load_changes`]. Returns their
    /// number. `models` are those of this generation.
    pub fn save_vectors(&self, models: &Models, path: &Path) -> io::Result<usize> {
        let catalog = self.catalog.load_full();
        let rows = bits::ones(catalog.alive(), 0).map(|row| Row(row as u32));
        let vectors = rows
            .filter(|row| is_written(&catalog, *row))
            .map(|row| (models.query.text_of(&catalog.get(row).item), Space::Query.vector(&catalog, row)));
        saved_vectors::write(path, &self.manifest, self.text_projection.query_dimension, vectors)
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
            let is_frozen = |row: Row| {
                // A row that was added meanwhile is beyond the catalogue of the graph.
                catalog.is_alive(row) && {
                    let (before, after) = (space.vector(&catalog, row), space.vector(&now, row));
                    // An unchanged row shares its vector, whose content need not be read under the lock.
                    std::ptr::eq(before, after) || before == after
                }
            };
            let later = bits::ones(now.alive(), 0).map(|row| Row(row as u32)).filter(|row| !is_frozen(*row));
            let later: Vec<(Row, &[f32])> = later.map(|row| (row, space.vector(&now, row))).collect();
            self.vector_index(space).replace(frozen, &later).map_err(|bad| invalid_vector(&now, bad))?;
        }
        self.merges.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Returns the number of merges since the generation was loaded.
    pub fn merge_count(&self) -> u64 {
        self.merges.load(Ordering::Relaxed)
    }
}

/// Returns the vectors of rows in the user space and in the query space; none if the graphs do not have all of them.
fn vectors_of(spaces: &[Arc<FrozenGraph>; 2], rows: Range<usize>) -> Option<Vec<ItemVectors>> {
    let [user_dimensions, query_dimensions] = [0, 1].map(|space| spaces[space].dimensions());
    let mut values = Vec::with_capacity(rows.len() * (user_dimensions + query_dimensions));
    for row in rows {
        for space in spaces {
            values.extend(space.vector(Row(row as u32))?);
        }
    }
    Some(ItemVectors::of_bundle(values.into(), user_dimensions, query_dimensions).collect())
}

/// Runs `body` and returns its result with the milliseconds that it took.
fn timed<T>(body: impl FnOnce() -> T) -> (T, u64) {
    let begun = Instant::now();
    (body(), begun.elapsed().as_millis() as u64)
}

/// Returns whether the vectors of a row are not those of the bundle, but those of its text.
fn is_written(catalog: &Catalog, row: Row) -> bool {
    !catalog.get(row).vectors.is_of_bundle()
}

/// Returns the item of a row; none if it is deleted or of a later catalogue.
fn item_of(catalog: &Catalog, row: Row) -> Option<&Item> {
    catalog.is_alive(row).then(|| &*catalog.get(row).item)
}

fn row_changes<'c>(from: &'c Catalog, to: &'c Catalog, rows: &[Row]) -> Vec<RowChange<'c>> {
    rows.iter().map(|row| RowChange { row: *row, old: item_of(from, *row), new: item_of(to, *row) }).collect()
}

/// Returns a hash of the texts that an encoder may read.
pub fn text_hash(item: &Item) -> u64 {
    RandomState::with_seeds(1, 2, 3, 4).hash_one((
        &item.title,
        &item.description,
        &item.brand,
        &item.categories,
        &item.tags,
    ))
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
