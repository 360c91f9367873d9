//! One vector index from two graphs: a frozen graph of the bundle's vectors and a live graph of later ones.
use super::{
    frozen::{BuildConfig, FrozenError, FrozenGraph, SearchStrategy},
    hnsw::{InvalidVector, LiveGraph, LiveGraphConfig, best_first, check_vectors, exact_search},
};
use arc_swap::ArcSwap;
use lodestone_core::{bits, ids::Row};
use std::{borrow::Cow, sync::Arc};

/// Minimum width (`ef`) of a graph search.
const EF_SEARCH: usize = 200;
/// Up to this number of live rows an exact scan is faster than the live graph, and its recall is 1.
const EXACT_ROWS_MAX: usize = 5000;

/// Minimum of live or dead rows for a merge: with fewer live rows an exact scan of them costs no more.
const MERGE_ROWS_MIN: usize = 5000;
/// Minimum share of live or dead rows in the frozen rows for a merge, because an eighth of a graph search is then
/// wasted.
const MERGE_SHARE: f64 = 0.125;

/// How many times as long an insert into the live graph takes as one into a frozen graph that is built.
const LIVE_INSERT_COST: usize = 3;

/// Vectors of a frozen and a live graph, searched as one. A row is live if its vector was set after the frozen graph
/// was built, which then no longer returns it. Searches and writes may run concurrently.
pub struct VectorIndex {
    parts: ArcSwap<Parts>,
    /// Initial capacity of the live graph, in rows.
    capacity: usize,
}

struct Parts {
    frozen: Arc<FrozenGraph>,
    /// None during a load, in which searches scan the live rows.
    live: Option<LiveGraph>,
    /// One bit for each row, set if the row is live. Words after the last live row are left out.
    live_rows: ArcSwap<Vec<u64>>,
}

impl Parts {
    fn new(frozen: Arc<FrozenGraph>, capacity: usize) -> Self {
        let config = LiveGraphConfig { capacity, ..LiveGraphConfig::default() };
        Self { live: Some(LiveGraph::new(frozen.dimensions(), config)), frozen, live_rows: ArcSwap::default() }
    }

    fn live_count(&self) -> usize {
        match &self.live {
            Some(live) => live.row_count().max(live.point_count()),
            None => bits::ones(&self.live_rows.load(), 0).count(),
        }
    }

    fn set_many(&self, rows: &[(Row, &[f32])]) -> Result<(), InvalidVector> {
        match &self.live {
            Some(live) => live.set_many(rows)?,
            None => check_vectors(rows, self.frozen.dimensions())?,
        }
        let Some(last) = rows.iter().map(|(row, _)| row.index()).max() else { return Ok(()) };
        let mut live_rows = self.live_rows.load().to_vec();
        live_rows.resize(live_rows.len().max(last / 64 + 1), 0);
        rows.iter().for_each(|(row, _)| live_rows[row.index() / 64] |= 1 << (row.index() % 64));
        // After the graph has the vectors, so that a search finds each row in one of the graphs.
        self.live_rows.store(Arc::new(live_rows));
        Ok(())
    }
}

impl VectorIndex {
    /// Creates an index without live rows. `capacity` is a hint of their number, not a limit.
    pub fn new(frozen: Arc<FrozenGraph>, capacity: usize) -> Self {
        Self { parts: ArcSwap::from_pointee(Parts::new(frozen, capacity)), capacity }
    }

    /// Sets the vectors of distinct rows, which become live. Searches may run meanwhile. On an error nothing changes.
    pub fn set_many(&self, rows: &[(Row, &[f32])]) -> Result<(), InvalidVector> {
        self.parts.load().set_many(rows)
    }

    /// Begins a load of many rows. Until [`VectorIndex::end_load`] or [`VectorIndex::replace`], rows that are set do not
    /// enter the live graph, because they may enter a new frozen graph at the end. Searches scan them meanwhile. The
    /// caller must not set rows concurrently.
    pub fn begin_load(&self) {
        let parts = self.parts.load();
        let (frozen, live_rows) = (parts.frozen.clone(), ArcSwap::new(parts.live_rows.load_full()));
        self.parts.store(Arc::new(Parts { frozen, live: None, live_rows }));
    }

    /// Returns whether a load has so many live rows that a new frozen graph of all rows, which [`VectorIndex::replace`]
    /// installs, takes less time than [`VectorIndex::end_load`].
    pub fn loads_faster_by_merge(&self) -> bool {
        let parts = self.parts.load();
        let live = parts.live_count();
        live * LIVE_INSERT_COST > parts.frozen.len() + live
    }

    /// Ends a load by inserting all live rows that have a vector into the live graph, on the current rayon pool. The caller
    /// must not set rows concurrently. On an error nothing changes.
    pub fn end_load<'v>(&self, vector_of: impl Fn(Row) -> Option<&'v [f32]>) -> Result<(), InvalidVector> {
        let parts = self.parts.load();
        let live_rows = parts.live_rows.load();
        let rows = bits::ones(&live_rows, 0).map(|row| Row(row as u32));
        let rows: Vec<(Row, &[f32])> = rows.filter_map(|row| Some((row, vector_of(row)?))).collect();
        let loaded = Parts::new(parts.frozen.clone(), self.capacity);
        loaded.set_many(&rows)?;
        self.parts.store(Arc::new(loaded));
        Ok(())
    }

    /// Returns whether a search can return the row.
    pub fn contains(&self, row: Row) -> bool {
        let parts = self.parts.load();
        parts.frozen.contains(row) || bits::has(&parts.live_rows.load(), row.index())
    }

    /// Returns the number of live rows or, if it is greater, of their distinct vectors, including replaced ones.
    pub fn live_count(&self) -> usize {
        self.parts.load().live_count()
    }

    /// Returns true if enough rows were added or deleted for a new frozen graph. `alive` is the number of rows that a
    /// search may return.
    pub fn needs_merge(&self, alive: usize) -> bool {
        let parts = self.parts.load();
        let (frozen, live) = (parts.frozen.len(), parts.live_count());
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

    /// Installs a frozen graph. `later` are the rows that were set while it was built; they become the live rows. The
    /// caller must not set rows concurrently. On an error the index does not change.
    pub fn replace(&self, frozen: FrozenGraph, later: &[(Row, &[f32])]) -> Result<(), InvalidVector> {
        let parts = Parts::new(Arc::new(frozen), self.capacity);
        parts.set_many(later)?;
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
        let live_rows = parts.live_rows.load();
        let frozen_rows = without(eligible, &live_rows, parts.frozen.row_count());
        let eligible_count = bits::count(&frozen_rows, parts.frozen.row_count());
        let mut hits = Vec::with_capacity(count);
        let width = EF_SEARCH.max(count + count / 4);
        let strategy = parts.frozen.search_eligible(query, count, width, &frozen_rows, eligible_count, &mut hits);
        if !live_rows.is_empty() {
            hits.extend(parts.live_hits(query, count, width, eligible, &live_rows, vector_of));
            hits.sort_unstable_by(best_first);
            hits.truncate(count);
        }
        (hits, strategy)
    }
}

/// Returns the eligible rows below `row_count` that are not live.
fn without<'e>(eligible: &'e [u64], live_rows: &[u64], row_count: usize) -> Cow<'e, [u64]> {
    let words = row_count.div_ceil(64).min(live_rows.len()).min(eligible.len());
    if live_rows[..words].iter().all(|word| *word == 0) {
        return Cow::Borrowed(eligible);
    }
    let mut rows = eligible.to_vec();
    rows.iter_mut().zip(&live_rows[..words]).for_each(|(row, live)| *row &= !live);
    Cow::Owned(rows)
}

impl Parts {
    /// Returns the best live rows: from the live graph if many are eligible, otherwise from an exact scan.
    fn live_hits<'v>(
        &self,
        query: &[f32],
        count: usize,
        width: usize,
        eligible: &[u64],
        live_rows: &[u64],
        vector_of: impl Fn(Row) -> &'v [f32],
    ) -> Vec<(Row, f32)> {
        let first = live_rows.iter().position(|word| *word != 0).unwrap_or(live_rows.len());
        // A write may have added a row to the graph that `live_rows` does not have yet; the frozen graph returns it.
        let is_eligible = |row: Row| bits::has(live_rows, row.index()) && bits::has(eligible, row.index());
        let rows = || bits::ones(live_rows, first).map(|row| Row(row as u32)).filter(|row| is_eligible(*row));
        if let Some(live) = &self.live
            && rows().nth(EXACT_ROWS_MAX).is_some()
        {
            let hits = live.search(query, count, width, &is_eligible);
            if hits.len() == count {
                return hits;
            }
        }
        exact_search(rows(), vector_of, query, count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frozen::Precision;

    const DIMENSIONS: usize = 4;

    /// Returns a unit vector that differs by `angle` in radians from the first axis.
    fn vector(angle: f32) -> [f32; DIMENSIONS] {
        [angle.cos(), angle.sin(), 0.0, 0.0]
    }

    /// An index of `angles.len()` frozen rows, and the vectors of all rows.
    struct Fixture {
        index: VectorIndex,
        vectors: Vec<[f32; DIMENSIONS]>,
    }

    impl Fixture {
        fn new(angles: &[f32]) -> Self {
            let vectors: Vec<_> = angles.iter().map(|angle| vector(*angle)).collect();
            let config = BuildConfig { precision: Precision::F32, ..BuildConfig::default() };
            let frozen = FrozenGraph::build(&vectors.concat(), DIMENSIONS, config, &|_| {}).unwrap();
            Self { index: VectorIndex::new(Arc::new(frozen), 10), vectors }
        }

        fn set(&mut self, row: usize, angle: f32) {
            self.vectors.resize(self.vectors.len().max(row + 1), vector(0.0));
            self.vectors[row] = vector(angle);
            self.index.set_many(&[(Row(row as u32), &self.vectors[row])]).unwrap();
        }

        /// Returns the rows by descending similarity to the first axis.
        fn order(&self) -> Vec<u32> {
            let eligible = vec![u64::MAX; 1];
            let (hits, _) = self.index.search(&vector(0.0), 10, &eligible, |row| &self.vectors[row.index()]);
            hits.into_iter().map(|(row, _)| row.0).collect()
        }
    }

    #[test]
    fn a_row_is_found_only_by_its_last_vector() {
        let mut fixture = Fixture::new(&[0.1, 0.2, 0.3]);
        assert_eq!(fixture.order(), [0, 1, 2]);
        fixture.set(0, 0.25);
        assert_eq!(fixture.order(), [1, 0, 2]);
        fixture.set(3, 0.15);
        fixture.set(0, 0.5);
        assert_eq!(fixture.order(), [3, 1, 2, 0]);
        // A merge leaves the order.
        let rows: Vec<Row> = (0..4).map(Row).collect();
        let frozen = fixture.index.freeze(&rows, 4, |row| &fixture.vectors[row.index()]).unwrap();
        fixture.index.replace(frozen, &[]).unwrap();
        assert_eq!((fixture.order(), fixture.index.live_count()), (vec![3, 1, 2, 0], 0));
    }

    #[test]
    fn rows_of_a_load_are_found_during_it_and_after_either_end() {
        let load = || {
            let mut fixture = Fixture::new(&[0.1, 0.2, 0.3]);
            fixture.set(3, 0.25);
            fixture.index.begin_load();
            fixture.set(0, 0.4);
            fixture.set(4, 0.15);
            assert_eq!((fixture.order(), fixture.index.live_count()), (vec![4, 1, 3, 2, 0], 3));
            assert!(fixture.index.contains(Row(4)) && !fixture.index.contains(Row(5)));
            fixture
        };
        let mut fixture = load();
        fixture.index.end_load(|row| fixture.vectors.get(row.index()).map(|vector| &vector[..])).unwrap();
        assert_eq!((fixture.order(), fixture.index.live_count()), (vec![4, 1, 3, 2, 0], 3));
        fixture.set(4, 0.35);
        assert_eq!(fixture.order(), [1, 3, 2, 4, 0]);

        let mut fixture = load();
        let rows: Vec<Row> = (0..5).map(Row).collect();
        let frozen = fixture.index.freeze(&rows, 5, |row| &fixture.vectors[row.index()]).unwrap();
        fixture.index.replace(frozen, &[]).unwrap();
        assert_eq!((fixture.order(), fixture.index.live_count()), (vec![4, 1, 3, 2, 0], 0));
        fixture.set(4, 0.35);
        assert_eq!((fixture.order(), fixture.index.live_count()), (vec![1, 3, 2, 4, 0], 1));
    }

    #[test]
    fn an_invalid_vector_changes_nothing() {
        an_invalid_vector_changes_nothing_of(Fixture::new(&[0.1, 0.2]));
        let loading = Fixture::new(&[0.1, 0.2]);
        loading.index.begin_load();
        an_invalid_vector_changes_nothing_of(loading);
    }

    fn an_invalid_vector_changes_nothing_of(mut fixture: Fixture) {
        let (valid, invalid) = (vector(0.5), [f32::NAN; DIMENSIONS]);
        assert!(fixture.index.set_many(&[(Row(0), &valid), (Row(1), &invalid)]).is_err());
        assert_eq!((fixture.order(), fixture.index.live_count()), (vec![0, 1], 0));
        fixture.set(0, 0.5);
        assert_eq!(fixture.order(), [1, 0]);
    }
}
