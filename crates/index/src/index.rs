//! All vectors of one space: those of the bundle in a frozen graph, those that came since in a live one.
use super::{
    frozen::{BuildConfig, FrozenError, FrozenGraph, SearchStrategy},
    hnsw::{BadVector, Graph, GraphConfig, best_first, exact_search},
};
use arc_swap::ArcSwap;
use lodestone_core::{bits, ids::Row};
use std::sync::Arc;

/// The width of a walk.
const EF_SEARCH: usize = 200;
/// Up to so many live rows an exact scan is faster than the live graph, and misses nothing.
const EXACT_ROWS_MAX: usize = 5000;

/// Live rows at which a merge pays: below, a scan of them is as good.
const MERGE_ROWS_MIN: usize = 5000;
/// Live or dead rows, as a share of the frozen ones, at which a merge pays: an eighth of what a walk looks at is in vain.
const MERGE_SHARE: f64 = 0.125;

/// Rows below the frozen graph's count are frozen; every later one is live.
pub struct VectorIndex {
    parts: ArcSwap<Parts>,
    /// Rows that the live graph makes room for.
    live_rows: usize,
}

struct Parts {
    frozen: Arc<FrozenGraph>,
    live: Graph,
}

impl Parts {
    fn new(frozen: Arc<FrozenGraph>, live_rows: usize) -> Self {
        let config = GraphConfig { capacity: live_rows, ..GraphConfig::default() };
        Self { live: Graph::new(frozen.dimensions(), config), frozen }
    }
}

impl VectorIndex {
    /// `live_rows` are expected beyond the frozen ones; more are taken.
    pub fn new(frozen: Arc<FrozenGraph>, live_rows: usize) -> Self {
        Self { parts: ArcSwap::from_pointee(Parts::new(frozen, live_rows)), live_rows }
    }

    /// Adds live rows while others search. An error adds none.
    pub fn insert_many(&self, rows: &[(Row, &[f32])]) -> Result<(), BadVector> {
        self.parts.load().live.insert_many(rows)
    }

    /// Rows that came since the frozen graph was built.
    pub fn live_count(&self) -> usize {
        self.parts.load().live.len()
    }

    /// Whether so much came or went that a new frozen graph pays. `alive` rows are to be found.
    pub fn wants_merge(&self, alive: usize) -> bool {
        let parts = self.parts.load();
        let (frozen, live) = (parts.frozen.len(), parts.live.len());
        let dead = (frozen + live).saturating_sub(alive);
        let changed = live.max(dead);
        changed >= MERGE_ROWS_MIN && changed as f64 >= MERGE_SHARE * frozen as f64
    }

    /// A frozen graph of these rows, ascending and below `row_count`, on the threads of the current rayon pool, to be put
    /// in place by [`VectorIndex::replace`]. Takes minutes for millions of rows; searches and inserts go on.
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
        Ok(FrozenGraph::build(&values, dimensions, config, &|_| {})?.renamed(rows, row_count))
    }

    /// Puts a new frozen graph in place, with the rows that came while it was built. Nothing else may write meanwhile. An
    /// error leaves everything as it was.
    pub fn replace(&self, frozen: FrozenGraph, later: &[(Row, &[f32])]) -> Result<(), BadVector> {
        let parts = Parts::new(Arc::new(frozen), self.live_rows);
        parts.live.insert_many(later)?;
        self.parts.store(Arc::new(parts));
        Ok(())
    }

    /// The `count` rows with the highest inner product among those whose bit is set, best first, and how the frozen ones
    /// were found. `vector_of` gives the vectors of live rows.
    pub fn search<'v>(
        &self,
        query: &[f32],
        count: usize,
        eligible: &[u64],
        vector_of: impl Fn(Row) -> &'v [f32],
    ) -> (Vec<(Row, f32)>, SearchStrategy) {
        let parts = self.parts.load();
        let eligible_count = bits::count(eligible, parts.frozen.row_count());
        let mut found = Vec::with_capacity(count);
        let width = EF_SEARCH.max(count + count / 4);
        let way = parts.frozen.search_eligible(query, count, width, eligible, eligible_count, &mut found);
        if !parts.live.is_empty() {
            found.extend(parts.live_rows(query, count, width, eligible, vector_of));
            found.sort_unstable_by(best_first);
            found.truncate(count);
        }
        (found, way)
    }
}

impl Parts {
    /// The best live rows.
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
            let found = self.live.search(query, count, width, &|row| bits::has(eligible, row.index()));
            if found.len() == count {
                return found;
            }
        }
        exact_search(rows(), vector_of, query, count)
    }
}
