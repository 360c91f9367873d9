//! Reciprocal rank fusion, and what each source said of each candidate.
use super::retrieve::{Found, USER_VECTOR, POPULAR, QUERY_VECTOR, SIMILAR, SOURCES, WORDS};
use lodestone_catalog::Catalog;
use crate::features::{Recent, SourceEvidence};
use lodestone_core::ids::{ItemKey, Row};
use lodestone_index::{Neighbours, Way, best_first};
use std::{cell::RefCell, time::Duration};

/// Weights of the sources.
const WEIGHTS: [f32; SOURCES.len()] = [1.0, 1.0, 2.0, 1.0, 0.7, 0.5, 0.5, 1.2];
/// The constant of reciprocal rank fusion (Cormack, Clarke and Büttcher 2009), by source. The first places of a search say
/// much more than those that follow; what a user may want next is less certain.
const K: [f32; SOURCES.len()] = [60.0, 10.0, 10.0, 60.0, 60.0, 60.0, 60.0, 60.0];
/// The place of a candidate that a source did not find.
pub const NO_PLACE: u16 = u16::MAX;
const NO_SLOT: u32 = u32::MAX;

/// A row with what the sources said of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    pub row: Row,
    pub evidence: SourceEvidence,
    /// By source: its best place in that source's lists, from 0, or [`NO_PLACE`].
    pub places: [u16; SOURCES.len()],
}

/// What stage one gives.
#[derive(Debug, Default)]
pub struct Candidates {
    /// Best first.
    pub list: Vec<Candidate>,
    /// What each source found.
    pub lists: Vec<(usize, Found)>,
    /// How the nearest vectors were found, where they were asked for, and how long that took.
    pub way: Option<Way>,
    pub near_time: Duration,
    /// The best score of words.
    pub words_best: f32,
    /// So many of the first rows of words are named by the query, by their id or SKU.
    pub words_exact: usize,
    /// So many of the first rows of words are named by the query or have all of its words.
    pub words_complete: usize,
}

impl Candidates {
    /// How a source found its rows, of the sources that have several ways.
    pub fn way_of(&self, source: usize) -> Option<Way> {
        self.way.filter(|_| [USER_VECTOR, QUERY_VECTOR, SIMILAR].contains(&source))
    }
}

/// Which neighbours are added up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Table {
    Next,
    Together,
}

thread_local! {
    /// By row: the place among the candidates, or [`NO_SLOT`]. Kept for the next request of the thread.
    static SLOTS: RefCell<Vec<u32>> = const { RefCell::new(Vec::new()) };
}

/// Candidates in the making. A row's score is the sum over the lists of `weight / (k + rank)`, rank from 1, with
/// the weight and the constant of the list's source.
pub struct Fusion {
    candidates: Vec<Candidate>,
    slots: Vec<u32>,
    lists: Vec<(usize, Found)>,
    way: Option<Way>,
    near_time: Duration,
}

impl Fusion {
    pub fn new(row_count: usize) -> Self {
        let mut slots = SLOTS.take();
        slots.resize(slots.len().max(row_count), NO_SLOT);
        Self {
            candidates: Vec::with_capacity(1024),
            slots,
            lists: Vec::with_capacity(SOURCES.len()),
            way: None,
            near_time: Duration::ZERO,
        }
    }

    fn candidate(&mut self, row: Row) -> &mut Candidate {
        let slot = &mut self.slots[row.index()];
        if *slot == NO_SLOT {
            *slot = self.candidates.len() as u32;
            let places = [NO_PLACE; SOURCES.len()];
            self.candidates.push(Candidate { row, evidence: SourceEvidence::default(), places });
        }
        &mut self.candidates[*slot as usize]
    }

    /// Adds what a source found, best first, each row once.
    pub fn add(&mut self, source: usize, found: Found) {
        for (place, &(row, score)) in found.iter().enumerate() {
            let candidate = self.candidate(row);
            candidate.evidence.fused += WEIGHTS[source] / (K[source] + 1.0 + place as f32);
            candidate.places[source] = candidate.places[source].min(place.min(NO_PLACE as usize - 1) as u16);
            if source == WORDS {
                candidate.evidence.words = score;
            }
        }
        self.lists.push((source, found));
    }

    pub fn note_near(&mut self, way: Way, time: Duration) {
        self.way = Some(way);
        self.near_time += time;
    }

    /// Adds anchor weight × neighbour weight to the neighbours of the anchors that may appear. `only_found`: no row
    /// becomes a candidate by this.
    pub fn spread(
        &mut self,
        table: Table,
        neighbours: &Neighbours,
        anchors: &[Recent],
        catalog: &Catalog,
        keep: impl Fn(Row) -> bool,
        only_found: bool,
    ) {
        for anchor in anchors {
            let (keys, weights) = neighbours.of(Row(anchor.key.0));
            for (&key, &weight) in keys.iter().zip(weights) {
                let Some(row) = catalog.row_of_key(ItemKey(key)) else { continue };
                if self.slots[row.index()] == NO_SLOT && (only_found || !keep(row)) {
                    continue;
                }
                let evidence = &mut self.candidate(row).evidence;
                match table {
                    Table::Next => evidence.next += weight * anchor.weight,
                    Table::Together => evidence.together += weight * anchor.weight,
                }
            }
        }
    }

    /// The best of what was spread.
    pub fn best_spread(&self, table: Table, count: usize) -> Found {
        let score = |candidate: &Candidate| match table {
            Table::Next => candidate.evidence.next,
            Table::Together => candidate.evidence.together,
        };
        let with_score = self.candidates.iter().map(|candidate| (candidate.row, score(candidate)));
        best_of(with_score.filter(|(_, score)| *score > 0.0).collect(), count)
    }

    /// The best `count` of what was found.
    pub fn finish(mut self, count: usize) -> Candidates {
        for candidate in &self.candidates {
            self.slots[candidate.row.index()] = NO_SLOT;
        }
        SLOTS.set(std::mem::take(&mut self.slots));
        let mut list = self.candidates;
        list.retain(|candidate| candidate.places.iter().any(|place| *place != NO_PLACE));
        let best_first =
            |a: &Candidate, b: &Candidate| best_first(&(a.row, a.evidence.fused), &(b.row, b.evidence.fused));
        if list.len() > count {
            list.select_nth_unstable_by(count, best_first);
            list.truncate(count);
        }
        list.sort_unstable_by(best_first);
        let words_best = list.iter().map(|candidate| candidate.evidence.words).fold(0.0, f32::max);
        let (lists, way, near_time) = (self.lists, self.way, self.near_time);
        Candidates { list, lists, way, near_time, words_best, words_exact: 0, words_complete: 0 }
    }
}

/// The best `count`, best first; equal scores in the order of the rows.
pub fn best_of(mut found: Found, count: usize) -> Found {
    if found.len() > count {
        found.select_nth_unstable_by(count, best_first);
        found.truncate(count);
    }
    found.sort_unstable_by(best_first);
    found
}

impl Candidate {
    /// The two sources that placed it best, best first.
    pub fn best_sources(&self) -> [Option<u8>; 2] {
        let mut best = [(NO_PLACE, 0u8); 2];
        for (source, &place) in self.places.iter().enumerate() {
            // What is merely popular is a reason only where there is no other.
            let place = if source == POPULAR && place != NO_PLACE { NO_PLACE - 1 } else { place };
            if place < best[0].0 {
                best = [(place, source as u8), best[0]];
            } else if place < best[1].0 {
                best[1] = (place, source as u8);
            }
        }
        best.map(|(place, source)| (place != NO_PLACE).then_some(source))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::retrieve::NEXT;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn list(rows: impl IntoIterator<Item = u32>) -> Found {
        rows.into_iter().map(|row| (Row(row), 1.0)).collect()
    }

    fn fuse(lists: &[(usize, Vec<u32>)], count: usize) -> Candidates {
        let mut fusion = Fusion::new(50);
        for (source, rows) in lists {
            fusion.add(*source, list(rows.iter().copied()));
        }
        fusion.finish(count)
    }

    #[test]
    fn a_row_in_both_lists_beats_the_first_of_one() {
        let fused = fuse(&[(USER_VECTOR, vec![1, 2, 3]), (NEXT, vec![4, 2, 5])], 10).list;
        assert_eq!(fused[0].row, Row(2));
        assert!((fused[0].evidence.fused - 2.0 / 62.0).abs() < 1e-6);
        assert_eq!(fused[0].best_sources(), [Some(USER_VECTOR as u8), Some(NEXT as u8)]);
    }

    #[test]
    fn a_heavier_source_wins() {
        assert_eq!(fuse(&[(QUERY_VECTOR, vec![1]), (WORDS, vec![2])], 10).list[0].row, Row(2));
    }

    proptest! {
        #[test]
        fn no_row_is_lost_or_doubled_and_nothing_stays_from_the_request_before(
            lists in prop::collection::vec((0usize..8, prop::collection::btree_set(0u32..50, 0..40)), 0..5),
            count in 0usize..60,
        ) {
            let lists: Vec<_> = lists.into_iter().map(|(source, rows)| (source, rows.into_iter().collect())).collect();
            let fused = fuse(&lists, count);
            let all: BTreeSet<u32> = lists.iter().flat_map(|(_, rows): &(usize, Vec<u32>)| rows).copied().collect();
            let found: BTreeSet<u32> = fused.list.iter().map(|candidate| candidate.row.0).collect();
            prop_assert_eq!(fused.list.len(), all.len().min(count));
            prop_assert_eq!(found.len(), fused.list.len());
            prop_assert!(found.is_subset(&all));
            prop_assert!(fused.list.windows(2).all(|pair| pair[0].evidence.fused >= pair[1].evidence.fused));
            prop_assert_eq!(fused.list, fuse(&lists, count).list);
        }
    }
}
