//! Search in the frozen graph: a walk, which is HNSW's best-first search with a candidate pool of fixed width, or a
//! scan of the codes of all eligible rows.
use super::{FrozenGraph, ids::NONE};
use crate::kernels::{Codes, inlined, prefetch, with_codes};
use lodestone_core::{bits, ids::Row};
use std::cell::RefCell;

/// The strategy of a filtered search.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SearchStrategy {
    /// A graph search; all rows are eligible.
    Walk,
    /// A graph search of greater width, because some candidates are not eligible.
    WidenedWalk,
    /// A scan of all eligible rows.
    Scan,
}

impl SearchStrategy {
    /// Returns the name in answers, logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Walk => "walk",
            Self::WidenedWalk => "widened_walk",
            Self::Scan => "scan",
        }
    }
}

/// Cost of one point of a walk's pool, in codes of a scan. Measured: 30 for 100,000 × 64, 75 for 1,000,000 × 64.
const WALK_TO_SCAN: f64 = 60.0;
/// Codes that a scan scores in one batch.
const SCAN_BATCH: usize = 256;

/// A candidate as one sortable number: the distance in bits 63 to 32 (nearer is less), the point in bits 31 to 1, and
/// in bit 0 whether it is expanded.
type Entry = u64;

fn entry(dot: i32, point: u32) -> Entry {
    // A greater product becomes a smaller number.
    let far = !((dot as u32) ^ 0x8000_0000);
    u64::from(far) << 32 | u64::from(point) << 1
}

fn point_of(entry: Entry) -> u32 {
    (entry as u32) >> 1
}

/// Zeros before the pool, at which [`Codes::insert`] stops.
const BEFORE: usize = 8;

/// Buffers of one thread.
#[derive(Default)]
struct Scratch {
    query: Vec<i8>,
    /// One bit for each point.
    visited: Vec<u32>,
    /// [`BEFORE`] zeros, then the entries of the pool.
    list: Vec<Entry>,
    pool_length: usize,
    fresh: Vec<u32>,
    neighbours: Vec<u32>,
    dots: Vec<i32>,
    scored: Vec<u64>,
    decoded: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl FrozenGraph {
    /// Returns the `count` rows with the greatest inner products with `query`, best first. `ef`, raised to at least
    /// `count`, is the width of the walk: a wider walk has a higher recall and takes longer. Returns nothing for a
    /// query of other dimensions or with a number that is not finite.
    pub fn search(&self, query: &[f32], count: usize, ef: usize) -> Vec<(Row, f32)> {
        let mut hits = Vec::new();
        self.search_into(query, count, ef, &mut hits);
        hits
    }

    /// [`FrozenGraph::search`] into a reused vector, which it clears first.
    pub fn search_into(&self, query: &[f32], count: usize, ef: usize, hits: &mut Vec<(Row, f32)>) {
        hits.clear();
        if !self.accepts(query) || count == 0 {
            return;
        }
        SCRATCH.with_borrow_mut(|scratch| {
            self.quantizer.query(query, &mut scratch.query);
            self.walk(ef.max(count), scratch);
            self.score(query, |_| true, count, scratch, hits);
        });
    }

    /// Writes the best `count` of the rows whose bit is set in `eligible` to `hits`, which it clears first.
    /// `eligible_count` is the number of these rows. Returns the strategy of the result: a walk if it is expected
    /// to cost less than a scan and reaches enough eligible rows, otherwise a scan.
    pub fn search_eligible(
        &self,
        query: &[f32],
        count: usize,
        ef: usize,
        eligible: &[u64],
        eligible_count: usize,
        hits: &mut Vec<(Row, f32)>,
    ) -> SearchStrategy {
        hits.clear();
        if !self.accepts(query) || count == 0 || eligible_count == 0 {
            return SearchStrategy::Scan;
        }
        let keeps = |row: u32| bits::has(eligible, row as usize);
        let share = (eligible_count as f64 / self.len() as f64).min(1.0);
        let width = (ef.max(count) as f64 / share).ceil();
        SCRATCH.with_borrow_mut(|scratch| {
            self.quantizer.query(query, &mut scratch.query);
            if width * WALK_TO_SCAN < eligible_count as f64 {
                self.walk(width as usize, scratch);
                self.score(query, keeps, count, scratch, hits);
                let all = share == 1.0;
                // If eligible rows are far from the query, the walk reaches fewer of them than their share.
                let reached = scratch.scored.len();
                if all || reached >= ef.max(count) * 9 / 10 {
                    return if all { SearchStrategy::Walk } else { SearchStrategy::WidenedWalk };
                }
            }
            hits.clear();
            self.scan(eligible, count.max(ef), scratch);
            self.score(query, keeps, count, scratch, hits);
            SearchStrategy::Scan
        })
    }

    fn accepts(&self, query: &[f32]) -> bool {
        query.len() == self.dimensions() && self.point_count() > 0 && query.iter().all(|value| value.is_finite())
    }

    /// Writes the nearest `width` points that a walk reaches to the pool, nearest first.
    fn walk(&self, width: usize, scratch: &mut Scratch) {
        with_codes!(self.instructions, |C| self.walk_with::<C>(width, scratch));
    }

    #[inline(always)]
    fn walk_with<C: Codes>(&self, width: usize, scratch: &mut Scratch) {
        let Scratch { query, visited, list, pool_length, fresh, neighbours, dots, .. } = scratch;
        let width = width.min(self.point_count());
        let degree = 2 * self.m;
        dots.clear();
        dots.resize(degree + 1, 0);
        fresh.clear();
        fresh.resize(degree + 17, 0);
        neighbours.clear();
        neighbours.resize(degree, 0);
        let start = self.descend::<C>(query, fresh, dots);
        visited.clear();
        visited.resize(self.point_count().div_ceil(32), 0);
        visited[start as usize / 32] |= 1 << (start % 32);
        list.clear();
        list.resize(BEFORE + width + 1, 0);
        let pool = list[BEFORE..].as_mut_ptr();
        let (codes, code_length) = (self.codes.as_ptr(), self.quantizer.length());
        // SAFETY: every id in the links was checked to be a point when the index was built or opened; the pool has a
        // capacity of `width + 1`, and indexes into it are below its length.
        unsafe {
            C::dots(query, codes, &[start], &mut dots[..1]);
            *pool = entry(dots[0], start);
            let (mut length, mut cursor, mut worst) = (1, 0, Entry::MAX);
            while cursor < length {
                let from = point_of(*pool.add(cursor)) as usize;
                *pool.add(cursor) |= 1;
                self.links.unpack::<C>(from * degree, degree, neighbours);
                let count = C::unset(neighbours, visited, fresh);
                for &point in &fresh[..count] {
                    *visited.get_unchecked_mut(point as usize / 32) |= 1 << (point % 32);
                    prefetch(codes.add(point as usize * code_length));
                }
                C::dots(query, codes, &fresh[..count], &mut dots[..count]);
                let mut lowest = cursor + 1;
                for (&point, &dot) in fresh[..count].iter().zip(dots.iter()) {
                    let candidate = entry(dot, point);
                    if candidate < worst {
                        // Most accepted candidates are expanded soon.
                        let next = point as usize * degree;
                        prefetch(self.links.address(next));
                        prefetch(self.links.address(next + degree - 1));
                        // A full pool drops its last entry.
                        let kept = length.min(width - 1);
                        lowest = lowest.min(C::insert(pool, kept, candidate));
                        length = kept + 1;
                        if length == width {
                            worst = *pool.add(width - 1);
                        }
                    }
                }
                cursor = lowest;
                while cursor < length && *pool.add(cursor) & 1 == 1 {
                    cursor += 1;
                }
            }
            *pool_length = length;
        }
    }

    /// Descends the upper layers greedily and returns the point of the lowest layer from which the walk starts.
    #[inline(always)]
    fn descend<C: Codes>(&self, query: &[i8], fresh: &mut [u32], dots: &mut [i32]) -> u32 {
        let mut node = 0u32;
        for layer in self.upper.iter().rev() {
            let mut best = i32::MIN;
            loop {
                let links = &layer.links[node as usize * self.m..][..self.m];
                let count = links.iter().take_while(|link| **link != NONE).count();
                fresh[0] = layer.points[node as usize];
                for (fresh, link) in fresh[1..].iter_mut().zip(&links[..count]) {
                    *fresh = layer.points[*link as usize];
                }
                // SAFETY: every point was checked when the index was built or opened.
                unsafe { C::dots(query, self.codes.as_ptr(), &fresh[..=count], &mut dots[..=count]) };
                best = best.max(dots[0]);
                let mut nearer = node;
                for (link, dot) in links[..count].iter().zip(&dots[1..]) {
                    if *dot > best {
                        (best, nearer) = (*dot, *link);
                    }
                }
                if nearer == node {
                    break;
                }
                node = nearer;
            }
            node = layer.below[node as usize];
        }
        node
    }

    /// Writes the best `width` points, by code, of the rows whose bit is set to the pool, nearest first.
    fn scan(&self, eligible: &[u64], width: usize, scratch: &mut Scratch) {
        with_codes!(self.instructions, |C| self.scan_with::<C>(eligible, width, scratch));
    }

    #[inline(always)]
    fn scan_with<C: Codes>(&self, eligible: &[u64], width: usize, scratch: &mut Scratch) {
        let Scratch { query, list, pool_length, fresh, dots, .. } = scratch;
        list.clear();
        list.resize(BEFORE, 0);
        dots.clear();
        dots.resize(SCAN_BATCH, 0);
        fresh.clear();
        let limit = BEFORE + 2 * width.max(64);
        let mut worst = Entry::MAX;
        let mut flush = inlined(
            #[inline(always)]
            |fresh: &mut Vec<u32>| {
                // SAFETY: `point_of_row` has only points; `dots` is cut to the length of `fresh`.
                unsafe { C::dots(query, self.codes.as_ptr(), fresh, &mut dots[..fresh.len()]) };
                for (&point, &dot) in fresh.iter().zip(dots.iter()) {
                    let candidate = entry(dot, point);
                    if candidate < worst {
                        list.push(candidate);
                        if list.len() == limit {
                            list[BEFORE..].select_nth_unstable(width);
                            list.truncate(BEFORE + width);
                            worst = list[BEFORE..].iter().copied().max().unwrap_or(Entry::MAX);
                        }
                    }
                }
                fresh.clear();
            },
        );
        for (index, &bits) in eligible.iter().enumerate().take(self.row_count().div_ceil(64)) {
            let mut rest = bits;
            while rest != 0 {
                let row = index * 64 + rest.trailing_zeros() as usize;
                rest &= rest - 1;
                if row >= self.row_count() {
                    break;
                }
                let point = self.point_of_row.get(row);
                if point == NONE {
                    continue;
                }
                prefetch(self.codes[point as usize * query.len()..].as_ptr());
                fresh.push(point);
                if fresh.len() == SCAN_BATCH {
                    flush(fresh);
                }
            }
        }
        flush(fresh);
        list[BEFORE..].sort_unstable();
        // A point occurs once for each of its eligible rows.
        list.dedup_by(|a, b| a == b && *a != 0);
        list.truncate(BEFORE + width);
        *pool_length = list.len() - BEFORE;
    }

    /// Scores the points of the pool with the stored vectors and appends the best rows that pass `keeps` to `hits`.
    fn score(
        &self,
        query: &[f32],
        keeps: impl Fn(u32) -> bool,
        count: usize,
        scratch: &mut Scratch,
        hits: &mut Vec<(Row, f32)>,
    ) {
        with_codes!(self.instructions, |C| self.score_with::<C>(query, &keeps, count, scratch, hits));
    }

    #[inline(always)]
    fn score_with<C: Codes>(
        &self,
        query: &[f32],
        keeps: &impl Fn(u32) -> bool,
        count: usize,
        scratch: &mut Scratch,
        hits: &mut Vec<(Row, f32)>,
    ) {
        const AHEAD: usize = 12;
        let Scratch { list, pool_length, scored, decoded, .. } = scratch;
        let pool = &list[BEFORE..BEFORE + *pool_length];
        decoded.resize(self.quantizer.length(), 0.0);
        let fetch = |entry: &Entry| self.values.fetch(point_of(*entry) as usize, self.quantizer.dimensions);
        scored.clear();
        pool.iter().take(AHEAD).for_each(fetch);
        for (at, &candidate) in pool.iter().enumerate() {
            if let Some(later) = pool.get(at + AHEAD) {
                fetch(later);
            }
            let point = point_of(candidate);
            if self.rows_of(point).any(keeps) {
                // SAFETY: the CPU supports the instructions; the pool has only points; the query has the index's
                // dimensions.
                let score =
                    unsafe { self.values.dot::<C>(query, point as usize, &self.codes, &self.quantizer, decoded) };
                let kept = self.rows_of(point).filter(|row| keeps(*row));
                scored.extend(kept.map(|row| sort_key(score, row)));
            }
        }
        if scored.len() > count {
            scored.select_nth_unstable(count);
        }
        let kept = count.min(scored.len());
        let best = &mut scored[..kept];
        best.sort_unstable();
        hits.extend(best.iter().map(|number| (Row(*number as u32), score_of(*number))));
    }
}

/// Packs a score and a row into a number that sorts by descending score, then by ascending row.
fn sort_key(score: f32, row: u32) -> u64 {
    let bits = score.to_bits();
    // Floats sort as integers after all bits of negative ones and the sign of the others are inverted.
    let ascending = if bits >> 31 == 1 { !bits } else { bits | 0x8000_0000 };
    u64::from(!ascending) << 32 | u64::from(row)
}

fn score_of(number: u64) -> f32 {
    let ascending = !((number >> 32) as u32);
    f32::from_bits(if ascending >> 31 == 1 { ascending & 0x7FFF_FFFF } else { !ascending })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_better_score_has_a_lower_sort_key(a in -1e30f32..1e30, b in -1e30f32..1e30, row in any::<u32>()) {
            prop_assert_eq!(score_of(sort_key(a, row)), a);
            prop_assert_eq!(sort_key(a, row) < sort_key(b, row), a.total_cmp(&b).is_gt());
            prop_assert!(row == u32::MAX || sort_key(a, row) < sort_key(a, row + 1));
        }

        #[test]
        fn a_nearer_point_has_a_lower_entry(a in any::<i32>(), b in any::<i32>(), point in 0u32..1 << 31) {
            prop_assert_eq!(point_of(entry(a, point)), point);
            prop_assert_eq!(entry(a, point) < entry(b, point), a > b);
        }
    }
}
