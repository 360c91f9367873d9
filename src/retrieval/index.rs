//! All vectors of one space: those of the bundle in a frozen graph, those that came since in a live one.
use super::{
    frozen::{FrozenGraph, Way},
    hnsw::{Graph, GraphConfig, VectorError, best_first, exact_search},
};
use crate::{bits, ids::Row};
use std::sync::Arc;

/// The width of a walk.
const EF_SEARCH: usize = 200;
/// Up to so many live rows an exact scan is faster than the live graph, and misses nothing.
const EXACT_ROWS_MAX: usize = 5000;

/// Rows below the frozen graph's count are frozen; every later one is live.
pub struct VectorIndex {
    frozen: Arc<FrozenGraph>,
    live: Graph,
}

impl VectorIndex {
    /// `live_rows` are expected beyond the frozen ones; more are taken.
    pub fn new(frozen: Arc<FrozenGraph>, live_rows: usize) -> Self {
        Self { frozen, live: Graph::new(GraphConfig { capacity: live_rows, ..GraphConfig::default() }) }
    }

    /// Adds live rows while others search. An error adds none.
    pub fn insert_many(&self, rows: &[(Row, &[f32])]) -> Result<(), VectorError> {
        self.live.insert_many(rows)
    }

    /// The `count` rows with the highest inner product among those whose bit is set, best first, and how the frozen ones
    /// were found. `vector_of` gives the vectors of live rows.
    pub fn search<'v>(
        &self,
        query: &[f32],
        count: usize,
        eligible: &[u64],
        vector_of: impl Fn(Row) -> &'v [f32],
    ) -> (Vec<(Row, f32)>, Way) {
        let eligible_count = bits::count(eligible, self.frozen.row_count());
        let mut found = Vec::with_capacity(count);
        let width = EF_SEARCH.max(count + count / 4);
        let way = self.frozen.search_eligible(query, count, width, eligible, eligible_count, &mut found);
        if !self.live.is_empty() {
            found.extend(self.live_rows(query, count, width, eligible, vector_of));
            found.sort_unstable_by(best_first);
            found.truncate(count);
        }
        (found, way)
    }

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
