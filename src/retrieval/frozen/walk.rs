//! Answering a query.
use super::{Frozen, build::NONE};
use crate::{
    ids::Row,
    retrieval::kernels::{dot, prefetch},
};
use std::cell::RefCell;

/// How a filtered query was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// A walk; all rows may be found.
    Walk,
    /// A walk that looks at more, since some of what it finds may not be shown.
    WidenedWalk,
    /// A scan of all rows that may be shown.
    Scan,
}

/// Of the walk's and the scan's costs, measured at 1,000,000 × 64: a point of the walk's list costs as much as so many
/// codes of a scan.
const WALK_TO_SCAN: f64 = 60.0;
/// Codes that are scored at a time in a scan.
const SCAN_BATCH: usize = 256;

/// A candidate in one number that sorts: the nearer the lower; below, the point and whether it was expanded.
type Entry = u64;

fn entry(dot: i32, point: u32) -> Entry {
    // Greater products become smaller numbers.
    let far = !((dot as u32) ^ 0x8000_0000);
    u64::from(far) << 32 | u64::from(point) << 1
}

fn point_of(entry: Entry) -> u32 {
    (entry as u32) >> 1
}

/// Buffers of one thread.
#[derive(Default)]
struct Scratch {
    query: Vec<i8>,
    visited: Vec<u64>,
    pool: Vec<Entry>,
    fresh: Vec<u32>,
    dots: Vec<i32>,
    scored: Vec<(f32, u32)>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl Frozen {
    /// The `count` rows with the highest inner products with `query`, best first. `ef`, at least `count`, is the width of
    /// the walk: wider finds more and takes longer. Nothing for a query of other dimensions or with a number that is not
    /// finite.
    pub fn search(&self, query: &[f32], count: usize, ef: usize) -> Vec<(Row, f32)> {
        let mut found = Vec::new();
        self.search_into(query, count, ef, &mut found);
        found
    }

    /// [`Frozen::search`] into a vector that is used again.
    pub fn search_into(&self, query: &[f32], count: usize, ef: usize, found: &mut Vec<(Row, f32)>) {
        found.clear();
        if !self.takes(query) || count == 0 {
            return;
        }
        SCRATCH.with_borrow_mut(|scratch| {
            self.quantizer.query(query, &mut scratch.query);
            self.walk(ef.max(count), scratch);
            self.score(query, |_| true, count, scratch, found);
        });
    }

    /// The best `count` of the rows whose bit is set in `eligible`, of which there are `eligible_count`.
    pub fn search_eligible(
        &self,
        query: &[f32],
        count: usize,
        ef: usize,
        eligible: &[u64],
        eligible_count: usize,
        found: &mut Vec<(Row, f32)>,
    ) -> Way {
        found.clear();
        if !self.takes(query) || count == 0 || eligible_count == 0 {
            return Way::Scan;
        }
        let keeps = |row: u32| eligible.get(row as usize / 64).is_some_and(|word| word >> (row % 64) & 1 == 1);
        let share = (eligible_count as f64 / self.row_count() as f64).min(1.0);
        let width = (ef.max(count) as f64 / share).ceil();
        SCRATCH.with_borrow_mut(|scratch| {
            self.quantizer.query(query, &mut scratch.query);
            if width * WALK_TO_SCAN < eligible_count as f64 {
                self.walk(width as usize, scratch);
                self.score(query, keeps, count, scratch, found);
                let all = share == 1.0;
                // Where what may be shown is far from the query, the walk meets less of it than its share.
                let met = scratch.scored.len();
                if all || met >= ef.max(count) * 9 / 10 {
                    return if all { Way::Walk } else { Way::WidenedWalk };
                }
            }
            self.scan(eligible, count.max(ef), scratch);
            self.score(query, keeps, count, scratch, found);
            Way::Scan
        })
    }

    fn takes(&self, query: &[f32]) -> bool {
        query.len() == self.dimensions() && self.point_count() > 0 && query.iter().all(|value| value.is_finite())
    }

    /// The nearest `width` points that a walk finds into `scratch.pool`, nearest first.
    fn walk(&self, width: usize, scratch: &mut Scratch) {
        let Scratch { query, visited, pool, fresh, dots, .. } = scratch;
        let width = width.min(self.point_count());
        let degree = 2 * self.m;
        dots.clear();
        dots.resize(degree.max(SCAN_BATCH), 0);
        let start = self.descend(query, fresh, dots);
        visited.clear();
        visited.resize(self.point_count().div_ceil(64), 0);
        visited[start as usize / 64] |= 1 << (start % 64);
        pool.clear();
        pool.reserve(width + 1);
        // SAFETY: every id in the links was checked to be a point when the index was built or opened.
        unsafe { (self.gather)(query, self.codes.as_ptr(), &[start], dots) };
        pool.push(entry(dots[0], start));
        let code_length = self.quantizer.length();
        let mut cursor = 0;
        while cursor < pool.len() {
            let from = point_of(pool[cursor]) as usize;
            pool[cursor] |= 1;
            fresh.clear();
            for &link in &self.links[from * degree..][..degree] {
                if link == NONE {
                    break;
                }
                let (word, bit) = (&mut visited[link as usize / 64], 1u64 << (link % 64));
                if *word & bit == 0 {
                    *word |= bit;
                    prefetch(self.codes[link as usize * code_length..].as_ptr());
                    fresh.push(link);
                }
            }
            // SAFETY: as above.
            unsafe { (self.gather)(query, self.codes.as_ptr(), fresh, dots) };
            let mut lowest = cursor + 1;
            for (&point, &dot) in fresh.iter().zip(dots.iter()) {
                let candidate = entry(dot, point);
                if pool.len() == width {
                    if candidate >= pool[width - 1] {
                        continue;
                    }
                    pool.pop();
                }
                let at = pool.partition_point(|other| *other < candidate);
                pool.insert(at, candidate);
                lowest = lowest.min(at);
            }
            cursor = lowest;
            while cursor < pool.len() && pool[cursor] & 1 == 1 {
                cursor += 1;
            }
            if let Some(&next) = pool.get(cursor) {
                let links = self.links[point_of(next) as usize * degree..].as_ptr();
                prefetch(links.cast());
                prefetch(links.wrapping_add(16).cast());
            }
        }
    }

    /// The point of the lowest layer from which to walk.
    fn descend(&self, query: &[i8], fresh: &mut Vec<u32>, dots: &mut Vec<i32>) -> u32 {
        let mut place = 0u32;
        for layer in self.upper.iter().rev() {
            let mut best = i32::MIN;
            loop {
                fresh.clear();
                let links = &layer.links[place as usize * self.m..][..self.m];
                let links = links.iter().take_while(|link| **link != NONE);
                fresh.push(layer.points[place as usize]);
                fresh.extend(links.clone().map(|link| layer.points[*link as usize]));
                // SAFETY: every point was checked when the index was built or opened.
                unsafe { (self.gather)(query, self.codes.as_ptr(), fresh, dots) };
                best = best.max(dots[0]);
                let mut nearer = place;
                for (link, dot) in links.zip(&dots[1..]) {
                    if *dot > best {
                        (best, nearer) = (*dot, *link);
                    }
                }
                if nearer == place {
                    break;
                }
                place = nearer;
            }
            place = layer.below[place as usize];
        }
        place
    }

    /// The best `width` points by code of the rows whose bit is set, into `scratch.pool`, in no order.
    fn scan(&self, eligible: &[u64], width: usize, scratch: &mut Scratch) {
        let Scratch { query, pool, fresh, dots, .. } = scratch;
        pool.clear();
        dots.clear();
        dots.resize(SCAN_BATCH, 0);
        fresh.clear();
        let limit = 2 * width.max(64);
        let mut worst = Entry::MAX;
        let mut flush = |fresh: &mut Vec<u32>| {
            // SAFETY: points of rows are points.
            unsafe { (self.gather)(query, self.codes.as_ptr(), fresh, dots) };
            for (&point, &dot) in fresh.iter().zip(dots.iter()) {
                let candidate = entry(dot, point);
                if candidate < worst {
                    pool.push(candidate);
                    if pool.len() == limit {
                        pool.select_nth_unstable(width);
                        pool.truncate(width);
                        worst = pool.iter().copied().max().unwrap_or(Entry::MAX);
                    }
                }
            }
            fresh.clear();
        };
        for (index, &bits) in eligible.iter().enumerate().take(self.row_count().div_ceil(64)) {
            let mut rest = bits;
            while rest != 0 {
                let row = index * 64 + rest.trailing_zeros() as usize;
                rest &= rest - 1;
                let Some(&point) = self.point_of_row.get(row) else { break };
                prefetch(self.codes[point as usize * query.len()..].as_ptr());
                fresh.push(point);
                if fresh.len() == SCAN_BATCH {
                    flush(fresh);
                }
            }
        }
        flush(fresh);
        if pool.len() > width {
            pool.select_nth_unstable(width);
            pool.truncate(width);
        }
        // Rows of one point came as often as it has rows.
        pool.sort_unstable();
        pool.dedup();
    }

    /// Scores what the pool holds exactly and gives the best rows that `keeps` lets through.
    fn score(
        &self,
        query: &[f32],
        keeps: impl Fn(u32) -> bool,
        count: usize,
        scratch: &mut Scratch,
        found: &mut Vec<(Row, f32)>,
    ) {
        const AHEAD: usize = 4;
        let Scratch { pool, scored, .. } = scratch;
        scored.clear();
        for (at, &candidate) in pool.iter().enumerate() {
            if let Some(&later) = pool.get(at + AHEAD) {
                let vector = self.vector_of_point(point_of(later));
                (0..vector.len()).step_by(16).for_each(|at| prefetch(vector[at..].as_ptr().cast()));
            }
            let point = point_of(candidate);
            let rows = self.rows_of(point);
            if rows.iter().any(|row| keeps(*row)) {
                let score = dot(query, self.vector_of_point(point));
                scored.extend(rows.iter().filter(|row| keeps(**row)).map(|row| (score, *row)));
            }
        }
        let best_first = |a: &(f32, u32), b: &(f32, u32)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
        if scored.len() > count {
            scored.select_nth_unstable_by(count, best_first);
        }
        let kept = count.min(scored.len());
        let best = &mut scored[..kept];
        best.sort_unstable_by(best_first);
        found.extend(best.iter().map(|(score, row)| (Row(*row), *score)));
    }
}
