//! The live graph: an HNSW graph that accepts inserts during searches; and the exact scan. The only user of `hnsw_rs`.
use super::kernels::dot;
use ahash::{AHashMap, RandomState};
use hnsw_rs::prelude::{Distance, Hnsw};
use lodestone_core::ids::Row;
use parking_lot::RwLock;
use rayon::prelude::*;
use std::{
    cmp::{Ordering, Reverse},
    collections::BinaryHeap,
};

/// Maximum number of layers, the limit of `hnsw_rs`.
const LAYERS_MAX: usize = 16;
/// Rows that are inserted sequentially before parallel inserts begin, because the first rows of a graph do not see each
/// other if they are inserted concurrently, and would stay unreachable.
const FIRST_ROWS: usize = 256;
/// Maximum width of a filtered search; beyond it the caller uses the exact scan.
const EF_MAX: usize = 1024;

/// The reason why a vector is rejected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VectorError {
    #[error("has {found} dimensions; the index has {expected}")]
    Dimension { found: usize, expected: usize },
    #[error("has a number that is not finite at position {position}")]
    NotFinite { position: usize },
    #[error("has length {length}; it must be 1 within 0.01")]
    NotUnit { length: String },
}

/// A row whose vector is rejected, with the reason.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("vector of row {}: {problem}", row.0)]
pub struct InvalidVector {
    pub row: Row,
    pub problem: VectorError,
}

/// Parameters of a live graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LiveGraphConfig {
    /// Maximum neighbours of a node; twice as many in the lowest layer. Clamped to 2..=128.
    pub m: usize,
    /// Width of the neighbour search of an insert. Raised to at least 8.
    pub ef_construction: usize,
    /// Expected number of rows, a hint and not a limit.
    pub capacity: usize,
}

impl Default for LiveGraphConfig {
    fn default() -> Self {
        Self { m: 16, ef_construction: 100, capacity: 10_000 }
    }
}

/// An HNSW graph over unit vectors. Inserts and searches may run concurrently.
pub struct LiveGraph {
    dimensions: usize,
    /// One point for each distinct vector; its id is its index in `Points::rows`.
    hnsw: Hnsw<'static, f32, UnitDistance>,
    points: RwLock<Points>,
    hashers: [RandomState; 2],
}

/// Rows with equal vectors share a point, because more than `2 * m` equal points would link only to each other, and a
/// search that reaches them could not leave. The graph has no deletion: the point of a replaced vector stays without
/// rows.
#[derive(Default)]
struct Points {
    of_vector: AHashMap<[u64; 2], usize>,
    of_row: AHashMap<Row, usize>,
    rows: Vec<Vec<Row>>,
}

/// 1 minus the inner product of unit vectors, clamped to at least 0 because `hnsw_rs` asserts that no distance is
/// negative.
#[derive(Debug, Clone, Copy, Default)]
struct UnitDistance;

impl Distance<f32> for UnitDistance {
    fn eval(&self, a: &[f32], b: &[f32]) -> f32 {
        // `max` also turns NaN into 0; checked vectors never produce NaN.
        (1.0 - dot(a, b)).max(0.0)
    }
}

impl LiveGraph {
    pub fn new(dimensions: usize, config: LiveGraphConfig) -> Self {
        let m = config.m.clamp(2, 128);
        // `keep_pruned` stays off, because filling up with the nearest disconnects dense clusters (recall 0.70).
        let hnsw = Hnsw::new(m, config.capacity.max(1), LAYERS_MAX, config.ef_construction.max(8), UnitDistance);
        let hashers = [RandomState::with_seeds(1, 2, 3, 4), RandomState::with_seeds(5, 6, 7, 8)];
        Self { dimensions, hnsw, points: RwLock::default(), hashers }
    }

    /// Returns the number of distinct vectors that were added, including replaced ones.
    pub fn point_count(&self) -> usize {
        self.points.read().rows.len()
    }

    /// Returns the number of rows that have a vector.
    pub fn row_count(&self) -> usize {
        self.points.read().of_row.len()
    }

    /// Sets the unit vector of a row.
    pub fn set(&self, row: Row, vector: &[f32]) -> Result<(), InvalidVector> {
        self.set_many(&[(row, vector)])
    }

    /// Sets the vectors of distinct rows on all threads of the current rayon pool. Checks all vectors first; on an
    /// error nothing changes.
    pub fn set_many(&self, rows: &[(Row, &[f32])]) -> Result<(), InvalidVector> {
        check_vectors(rows, self.dimensions)?;
        let mut new = self.new_points(rows);
        let points = &new.points;
        let first = FIRST_ROWS.saturating_sub(self.hnsw.get_nb_point()).min(points.len());
        points[..first].iter().for_each(|&(vector, point, _)| self.hnsw.insert((vector, point)));
        points[first..].par_iter().for_each(|&(vector, point, _)| self.hnsw.insert((vector, point)));
        new.is_inserted = true;
        Ok(())
    }

    fn hash(&self, vector: &[f32]) -> [u64; 2] {
        let bytes: &[u8] = bytemuck::cast_slice(vector);
        [self.hashers[0].hash_one(bytes), self.hashers[1].hash_one(bytes)]
    }

    /// Registers the rows and returns the vectors that are new to the graph, with the ids of their points.
    fn new_points<'g, 'v>(&'g self, rows: &[(Row, &'v [f32])]) -> NewPoints<'g, 'v> {
        let mut points = self.points.write();
        let mut new = Vec::with_capacity(rows.len());
        for &(row, vector) in rows {
            let (hash, next) = (self.hash(vector), points.rows.len());
            let point = *points.of_vector.entry(hash).or_insert(next);
            if point == next {
                points.rows.push(Vec::with_capacity(1));
                new.push((vector, point, hash));
            }
            match points.of_row.insert(row, point) {
                Some(old) if old == point => continue,
                Some(old) => points.rows[old].retain(|other| *other != row),
                None => {}
            }
            points.rows[point].push(row);
        }
        NewPoints { graph: self, points: new, is_inserted: false }
    }

    /// Returns the `count` distinct rows that pass `keep` and whose vectors have the greatest inner products with
    /// `query`, best first. `ef`, raised to at least `count`, is the width of the search: a wider search has a higher
    /// recall and takes longer.
    ///
    /// Returns fewer than `count` rows if the graph has fewer or few pass `keep`; then use [`exact_search`]. Returns
    /// nothing for a query that is not a unit vector.
    pub fn search(&self, query: &[f32], count: usize, ef: usize, keep: &dyn Fn(Row) -> bool) -> Vec<(Row, f32)> {
        let size = self.hnsw.get_nb_point();
        if count == 0 || size == 0 || check_vector(query, self.dimensions).is_err() {
            return Vec::new();
        }
        // The filter of `hnsw_rs` panics if nothing passes. Therefore rows are filtered after an unfiltered search,
        // which is repeated with a greater width while too few rows are left.
        let mut width = ef.max(count).min(size);
        loop {
            let nearest = self.hnsw.search(query, width, width);
            let mut hits = self.kept_rows(nearest.iter().map(|point| (point.d_id, 1.0 - point.distance)), keep);
            if hits.len() >= count || width >= size || width >= EF_MAX {
                hits.sort_unstable_by(best_first);
                hits.dedup_by_key(|pair| pair.0);
                hits.truncate(count);
                return hits;
            }
            width = (width * 4).min(size).min(EF_MAX);
        }
    }

    fn kept_rows(&self, points: impl Iterator<Item = (usize, f32)>, keep: &dyn Fn(Row) -> bool) -> Vec<(Row, f32)> {
        let rows = self.points.read();
        let rows_of = |(point, score): (usize, f32)| rows.rows[point].iter().map(move |&row| (row, score));
        points.flat_map(rows_of).filter(|&(row, _)| keep(row)).collect()
    }
}

/// Points that are registered and not yet in the graph. If an insert panics, their vectors are forgotten, so that a
/// later row with such a vector gets a point that the graph has.
struct NewPoints<'g, 'v> {
    graph: &'g LiveGraph,
    /// Vector, point and hash.
    points: Vec<(&'v [f32], usize, [u64; 2])>,
    is_inserted: bool,
}

impl Drop for NewPoints<'_, '_> {
    fn drop(&mut self) {
        if !self.is_inserted {
            let mut points = self.graph.points.write();
            self.points.iter().for_each(|(_, _, hash)| _ = points.of_vector.remove(hash));
        }
    }
}

/// Scans `rows` and returns the exact `count` best, best first. Takes about 20 ns for each row. Returns nothing for a
/// query that is not a unit vector; skips rows whose vector has another dimension.
pub fn exact_search<'v>(
    rows: impl Iterator<Item = Row>,
    vector_of: impl Fn(Row) -> &'v [f32],
    query: &[f32],
    count: usize,
) -> Vec<(Row, f32)> {
    if count == 0 || check_vector(query, query.len()).is_err() {
        return Vec::new();
    }
    let mut best = TopRows::new(count);
    for row in rows {
        let vector = vector_of(row);
        if vector.len() == query.len() {
            best.push(row, dot(vector, query));
        }
    }
    best.into_sorted()
}

/// Checks the vectors of rows with [`check_vector`].
pub(super) fn check_vectors(rows: &[(Row, &[f32])], dimensions: usize) -> Result<(), InvalidVector> {
    rows.iter().try_for_each(|&(row, vector)| {
        check_vector(vector, dimensions).map_err(|problem| InvalidVector { row, problem })
    })
}

/// Checks that a vector has `dimensions` finite numbers and length 1 within 0.01.
pub fn check_vector(vector: &[f32], dimensions: usize) -> Result<(), VectorError> {
    if vector.len() != dimensions {
        return Err(VectorError::Dimension { found: vector.len(), expected: dimensions });
    }
    if let Some(position) = vector.iter().position(|x| !x.is_finite()) {
        return Err(VectorError::NotFinite { position });
    }
    let length = dot(vector, vector).sqrt();
    if (length - 1.0).abs() > 0.01 || length.is_nan() {
        return Err(VectorError::NotUnit { length: format!("{length:.4}") });
    }
    Ok(())
}

/// Orders by descending score, then by ascending row.
pub fn best_first(a: &(Row, f32), b: &(Row, f32)) -> Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

/// A bounded heap of the `count` best rows.
pub(super) struct TopRows {
    count: usize,
    heap: BinaryHeap<Reverse<Scored>>,
}

impl TopRows {
    pub(super) fn new(count: usize) -> Self {
        Self { count, heap: BinaryHeap::with_capacity(count.min(4096) + 1) }
    }

    /// Returns true if a row with this score would be among the best.
    pub(super) fn accepts(&self, row: Row, score: f32) -> bool {
        self.heap.len() < self.count || self.heap.peek().is_some_and(|worst| Scored(row, score) > worst.0)
    }

    pub(super) fn push(&mut self, row: Row, score: f32) {
        if self.accepts(row, score) {
            self.heap.push(Reverse(Scored(row, score)));
            if self.heap.len() > self.count {
                self.heap.pop();
            }
        }
    }

    /// Returns the score that a row must exceed to be among the best; none while the heap is not full.
    pub(super) fn threshold(&self) -> Option<f32> {
        (self.heap.len() >= self.count).then(|| self.heap.peek().map_or(f32::MIN, |worst| worst.0.1))
    }

    pub(super) fn into_sorted(self) -> Vec<(Row, f32)> {
        let mut rows: Vec<(Row, f32)> = self.heap.into_iter().map(|Reverse(Scored(row, score))| (row, score)).collect();
        rows.sort_unstable_by(best_first);
        rows
    }
}

/// A row with its score. The greater is the better: a higher score, then a lower row.
#[derive(Clone, Copy)]
struct Scored(Row, f32);

impl Ord for Scored {
    fn cmp(&self, other: &Self) -> Ordering {
        self.1.total_cmp(&other.1).then(other.0.cmp(&self.0))
    }
}

impl PartialOrd for Scored {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Scored {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Scored {}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng, rngs::StdRng};

    const DIMENSIONS: usize = 64;

    fn unit(mut vector: Vec<f32>) -> Vec<f32> {
        let length = dot(&vector, &vector).sqrt();
        vector.iter_mut().for_each(|x| *x /= length);
        vector
    }

    /// Returns vectors around 60 centres, similar to the categories of a shop.
    fn clustered(count: usize, seed: u64) -> Vec<Vec<f32>> {
        let mut random = StdRng::seed_from_u64(seed);
        let mut draw = |scale: f32| -> Vec<f32> {
            (0..DIMENSIONS).map(|_| (random.random::<f32>() + random.random::<f32>() - 1.0) * scale).collect()
        };
        let centres: Vec<Vec<f32>> = (0..60).map(|_| draw(1.0)).collect();
        (0..count)
            .map(|i| unit(draw(0.6).iter().zip(&centres[i * 7 % 60]).map(|(noise, centre)| noise + centre).collect()))
            .collect()
    }

    fn graph_of(vectors: &[Vec<f32>]) -> LiveGraph {
        let graph =
            LiveGraph::new(DIMENSIONS, LiveGraphConfig { m: 16, ef_construction: 100, capacity: vectors.len() });
        let rows: Vec<(Row, &[f32])> =
            vectors.iter().enumerate().map(|(i, vector)| (Row(i as u32), vector.as_slice())).collect();
        graph.set_many(&rows).unwrap();
        graph
    }

    fn exact(vectors: &[Vec<f32>], query: &[f32], count: usize) -> Vec<(Row, f32)> {
        exact_search((0..vectors.len() as u32).map(Row), |row| &vectors[row.index()], query, count)
    }

    #[test]
    fn recall_against_the_exact_scan_is_at_least_97_percent() {
        let vectors = clustered(4600, 1);
        let graph = graph_of(&vectors);
        let queries = clustered(200, 1);
        for (count, ef) in [(100, 128), (200, 256)] {
            let found: Vec<_> = queries.iter().map(|query| graph.search(query, count, ef, &|_| true)).collect();
            let truth: Vec<_> = queries.iter().map(|query| exact(&vectors, query, count)).collect();
            let hits: usize = (found.iter().zip(&truth))
                .map(|(found, truth)| truth.iter().filter(|(row, _)| found.iter().any(|f| f.0 == *row)).count())
                .sum();
            let recall = hits as f64 / (queries.len() * count) as f64;
            assert!(recall >= 0.97, "recall {recall} of the top {count}");
            assert!(found.iter().all(|list| list.windows(2).all(|pair| pair[0].1 >= pair[1].1)));
        }
    }

    #[test]
    fn search_respects_a_filter_and_the_exact_scan_serves_rare_rows() {
        let vectors = clustered(3000, 2);
        let graph = graph_of(&vectors);
        let half = graph.search(&vectors[0], 50, 128, &|row| row.0 % 2 == 1);
        assert_eq!(half.len(), 50);
        assert!(half.iter().all(|(row, _)| row.0 % 2 == 1));
        assert!(graph.search(&vectors[0], 10, 64, &|_| false).is_empty());
        let rare = (0..3000).filter(|row| row % 500 == 3).map(Row);
        assert_eq!(exact_search(rare, |row| &vectors[row.index()], &vectors[0], 10).len(), 6);
    }

    #[test]
    fn invalid_vectors_are_rejected() {
        let graph = LiveGraph::new(DIMENSIONS, LiveGraphConfig::default());
        let good = unit(vec![1.0; DIMENSIONS]);
        let mut bad = good.clone();
        bad[3] = f32::NAN;
        assert_eq!(
            graph.set(Row(0), &bad),
            Err(InvalidVector { row: Row(0), problem: VectorError::NotFinite { position: 3 } })
        );
        assert_eq!(
            graph.set(Row(0), &good[1..]),
            Err(InvalidVector { row: Row(0), problem: VectorError::Dimension { found: 63, expected: DIMENSIONS } })
        );
        assert!(matches!(
            graph.set(Row(0), &[0.0; DIMENSIONS]),
            Err(InvalidVector { problem: VectorError::NotUnit { .. }, .. })
        ));
        assert!(graph.search(&good, 5, 10, &|_| true).is_empty());
        graph.set(Row(7), &good).unwrap();
        assert_eq!(graph.search(&good, 5, 10, &|_| true)[0].0, Row(7));
        assert!(graph.search(&bad, 5, 10, &|_| true).is_empty());
    }

    #[test]
    fn inserts_and_searches_run_concurrently() {
        let vectors = clustered(1500, 3);
        let graph = graph_of(&vectors[..500]);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for (i, vector) in vectors.iter().enumerate().skip(500) {
                    graph.set(Row(i as u32), vector).unwrap();
                }
            });
            for vector in vectors.iter().take(300) {
                assert_eq!(graph.search(vector, 20, 64, &|_| true).len(), 20);
            }
        });
        assert_eq!(graph.search(&vectors[1400], 1, 64, &|_| true)[0].0, Row(1400));
    }

    #[test]
    fn a_row_whose_vector_is_replaced_is_found_only_by_the_new_one() {
        let vectors = clustered(600, 5);
        let graph = graph_of(&vectors[..300]);
        for round in [300, 0, 300] {
            let rows: Vec<(Row, &[f32])> = (0..300).map(|row| (Row(row as u32), &vectors[round + row][..])).collect();
            graph.set_many(&rows).unwrap();
            assert!(graph.point_count() <= 600, "a vector that returns uses its old point");
            for row in 0..300 {
                let nearest = graph.search(&vectors[round + row], 1, 64, &|_| true);
                assert_eq!(nearest[0].0, Row(row as u32));
                let all = graph.search(&vectors[row], 300, 600, &|_| true);
                assert_eq!(all.len(), 300);
            }
        }
    }

    #[test]
    fn many_equal_vectors_do_not_make_others_unreachable() {
        let mut vectors = vec![unit(vec![1.0; DIMENSIONS]); 60];
        vectors.extend(clustered(1000, 4));
        let graph = graph_of(&vectors);
        let equal = graph.search(&vectors[0], 60, 128, &|row| row.0 < 60).len();
        assert_eq!(equal, 60);
        for (i, vector) in vectors.iter().enumerate().skip(60) {
            assert_eq!(graph.search(vector, 1, 64, &|_| true)[0].0, Row(i as u32));
        }
    }
}
