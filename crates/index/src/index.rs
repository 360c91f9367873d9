//! One vector index from two graphs: a frozen graph of the bundle's vectors and a live graph of later ones.
use super::{
    frozen::{BuildConfig, FrozenError, FrozenGraph, SearchStrategy},
    hnsw::{InvalidVector, LiveGraph, LiveGraphConfig, best_first, exact_search},
};
use arc_swap::ArcSwap;
use lodestone_core::{bits, ids::Row};
use std::sync::Arc;

/// Minimum width (`ef`) of a graph search.
const EF_SEARCH: usize = 200;
/// Up to this number of live rows an exact scan is faster than the live graph, and its recall is 1.
const EXACT_ROWS_MAX: usize = 5000;

/// Minimum of live or dead rows for a merge: with fewer live rows an exact scan of them costs no more.
const MERGE_ROWS_MIN: usize = 5000;
/// Minimum share of live or dead rows in the frozen rows for a merge, because an eighth of a graph search is then
/// wasted.
const MERGE_SHARE: f64 = 0.125;

/// Vectors of a frozen and a live graph, searched as one. Rows below the frozen graph's row count are frozen; all later
/// rows are live. Searches and inserts may run concurrently.
pub struct VectorIndex {
    parts: ArcSwap<Parts>,
    /// Initial capacity of the live graph, in rows.
    live_rows: usize,
}

struct Parts {
    frozen: Arc<FrozenGraph>,
    live: LiveGraph,
}

impl Parts {
    fn new(frozen: Arc<FrozenGraph>, live_rows: usize) -> Self {
        let config = LiveGraphConfig { capacity: live_rows, ..LiveGraphConfig::default() };
        Self { live: LiveGraph::new(frozen.dimensions(), config), frozen }
    }
}

impl VectorIndex {
    /// Creates an index without live rows. `live_rows` is a capacity hint, not a limit.
    pub fn new(frozen: Arc<FrozenGraph>, live_rows: usize) -> Self {
        Self { parts: ArcSwap::from_pointee(Parts::new(frozen, live_rows)), live_rows }
    }

    /// Adds live rows. Searches may run meanwhile. On an error no row is added.
    pub fn insert_many(&self, rows: &[(Row, &[f32])]) -> Result<(), InvalidVector> {
        self.parts.load().live.insert_many(rows)
    }

    /// Returns the number of rows that were added after the frozen graph was built.
    pub fn live_count(&self) -> usize {
        self.parts.load().live.len()
    }

    /// Returns true if enough rows were added or deleted for a new frozen graph. `alive` is the number of rows that a
    /// search may return.
    pub fn needs_merge(&self, alive: usize) -> bool {
        let parts = self.parts.load();
        let (frozen, live) = (parts.frozen.len(), parts.live.len());
        let dead = (frozen + live).saturating_sub(alive);
        let changed = live.max(dead);
        changed >= MERGE_ROWS_MIN && changed as f64 >= MERGE_SHARE * frozen as f64
    }

    /// Builds a frozen graph of `rows`, which are ascending and below `row_count`, on the current rayon pool.
    /// [`VectorIndex::replace`] installs it. Takes minutes for millions of rows; searches and inserts continue
    /// meanwhile.
    pub fn freeze<'v>(
        &self,
        rows: &[Row],
        row_count: usize,
        vector_of: impl Fn(Row) -> &'v [f32],
    ) -> Result<FrozenGraph, FrozenError> {
        let (dimensions, precision) = {
            let parts = self.parts.load();
            (parts.frozen.dimensions(), parts.frozen.precision())
        };
        let mut values = Vec::with_capacity(rows.len() * dimensions);
        rows.iter().for_each(|row| values.extend_from_slice(vector_of(*row)));
        let config = BuildConfig { precision, ..BuildConfig::default() };
        Ok(FrozenGraph::build(&values, dimensions, config, &|_| {})?.with_rows(rows, row_count))
    }

    /// Installs a frozen graph. `later` are the rows that were added while it was built; they become the live rows. The
    /// caller must not insert concurrently. On an error the index does not change.
    pub fn replace(&self, frozen: FrozenGraph, later: &[(Row, &[f32])]) -> Result<(), InvalidVector> {
        let parts = Parts::new(Arc::new(frozen), self.live_rows);
        parts.live.insert_many(later)?;
        self.parts.store(Arc::new(parts));
        Ok(())
    }

    /// Returns the `count` rows with the greatest inner products among the rows whose bit is set in `eligible`, best
    /// first, and the strategy of the search in the frozen graph. `vector_of` returns the vectors of live rows.
    pub fn search<'v>(
        &self,
        query: &[f32],
        count: usize,
        eligible: &[u64],
        vector_of: impl Fn(Row) -> &'v [f32],
    ) -> (Vec<(Row, f32)>, SearchStrategy) {
        let parts = self.parts.load();
        let eligible_count = bits::count(eligible, parts.frozen.row_count());
        let mut hits = Vec::with_capacity(count);
        let width = EF_SEARCH.max(count + count / 4);
        let strategy = parts.frozen.search_eligible(query, count, width, eligible, eligible_count, &mut hits);
        if !parts.live.is_empty() {
            hits.extend(parts.live_rows(query, count, width, eligible, vector_of));
            hits.sort_unstable_by(best_first);
            hits.truncate(count);
        }
        (hits, strategy)
    }
}

impl Parts {
    /// Returns the best live rows: from the live graph if many are eligible, otherwise from an exact scan.
    fn live_rows<'v>(
        &self,
        query: &[f32],
        count: usize,
        width: usize,
        eligible: &[u64],
        vector_of: impl Fn(Row) -> &'v [f32],
    ) -> Vec<(Row, f32)> {
        let first = self.frozen.row_count();
        let rows = || bits::ones(eligible, first / 64).filter(|row| *row >= first).map(|row| Row(row as u32));
        if rows().nth(EXACT_ROWS_MAX).is_some() {
            let hits = self.live.search(query, count, width, &|row| bits::has(eligible, row.index()));
            if hits.len() == count {
                return hits;
            }
        }
        exact_search(rows(), vector_of, query, count)
    }
}
