//! Reciprocal rank fusion of the sources' lists, and the scores of each source for each candidate.
use crate::{
    features::SourceEvidence,
    source::{CandidateSource, ScoredRows},
};
use lodestone_catalog::Catalog;
use lodestone_core::ids::{ItemKey, Row};
use lodestone_index::{KeyedNeighbours, SearchStrategy, best_first};
use std::{cell::RefCell, time::Duration};

/// The rank of a candidate that a source did not find.
pub const NOT_FOUND: u16 = u16::MAX;
const NO_SLOT: u32 = u32::MAX;

/// A row with the scores of the sources.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    pub row: Row,
    pub evidence: SourceEvidence,
    /// By source: the best rank in that source's lists, from 0, or [`NOT_FOUND`].
    pub ranks: [u16; CandidateSource::COUNT],
}

/// The result of the first stage.
#[derive(Debug, Default)]
pub struct Candidates {
    /// Best first.
    pub list: Vec<Candidate>,
    /// The list of each source.
    pub lists: Vec<(CandidateSource, ScoredRows)>,
    /// The strategy of the vector search, if there was one, and its duration.
    pub strategy: Option<SearchStrategy>,
    pub vector_search_time: Duration,
    /// The best lexical score.
    pub lexical_best: f32,
    /// The number of leading rows of the lexical list that the query names by id or SKU.
    pub exact_match_count: usize,
    /// The number of leading rows of the lexical list that the query names or that have all of its words.
    pub full_match_count: usize,
    /// If no row has all words of the query: by row of the lexical list, its share of the words, 0 to 1. Otherwise
    /// empty.
    pub coverage: Vec<f32>,
}

impl Candidates {
    /// The strategy of a source's vector search.
    pub fn strategy_of(&self, source: CandidateSource) -> Option<SearchStrategy> {
        self.strategy.filter(|_| source.is_vector_search())
    }
}

/// A table of neighbouring items.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NeighbourTable {
    Transitions,
    CoPurchases,
    ItemToItem,
}

/// Which neighbours of the anchors [`Fusion::spread`] adds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spread {
    /// All of them.
    All,
    /// Those that are candidates already.
    CandidatesOnly,
}

thread_local! {
    /// By row: the position among the candidates, or [`NO_SLOT`]. Kept for the next request of the thread.
    static SLOTS: RefCell<Vec<u32>> = const { RefCell::new(Vec::new()) };
}

/// Candidates under construction. A row's score is the sum over the lists of `weight / (k + rank)`, rank from 1, with
/// the weight and the constant of the list's source.
pub struct Fusion {
    candidates: Vec<Candidate>,
    slots: Vec<u32>,
    lists: Vec<(CandidateSource, ScoredRows)>,
    strategy: Option<SearchStrategy>,
    vector_search_time: Duration,
}

impl Fusion {
    pub fn new(row_count: usize) -> Self {
        let mut slots = SLOTS.take();
        slots.resize(slots.len().max(row_count), NO_SLOT);
        Self {
            candidates: Vec::with_capacity(1024),
            slots,
            lists: Vec::with_capacity(CandidateSource::COUNT),
            strategy: None,
            vector_search_time: Duration::ZERO,
        }
    }

    fn candidate(&mut self, row: Row) -> &mut Candidate {
        let slot = &mut self.slots[row.index()];
        if *slot == NO_SLOT {
            *slot = self.candidates.len() as u32;
            let ranks = [NOT_FOUND; CandidateSource::COUNT];
            self.candidates.push(Candidate { row, evidence: SourceEvidence::default(), ranks });
        }
        &mut self.candidates[*slot as usize]
    }

    /// Adds a source's list, best first, each row once.
    pub fn add(&mut self, source: CandidateSource, found: ScoredRows) {
        self.add_from_rank(0, source, found);
    }

    /// Adds the first `count` rows of an ordered list that no list has yet, with ranks after all rows of the other
    /// lists, so that they follow rows of the same weight.
    pub fn append(&mut self, source: CandidateSource, rows: impl Iterator<Item = (Row, f32)>, count: usize) {
        let first = self.found_count();
        let is_new = |(row, _): &(Row, f32)| {
            let slot = self.slots[row.index()];
            slot == NO_SLOT || !self.candidates[slot as usize].is_found()
        };
        let rows = rows.filter(is_new).take(count).collect();
        self.add_from_rank(first, source, rows);
    }

    /// Number of rows in the lists.
    pub fn found_count(&self) -> usize {
        self.candidates.iter().filter(|candidate| candidate.is_found()).count()
    }

    fn add_from_rank(&mut self, first: usize, source: CandidateSource, found: ScoredRows) {
        let (weight, constant) = (source.fusion_weight(), source.fusion_constant());
        for (rank, &(row, score)) in found.iter().enumerate() {
            let candidate = self.candidate(row);
            candidate.evidence.fused += weight / (constant + 1.0 + (first + rank) as f32);
            let best = &mut candidate.ranks[source.index()];
            *best = (*best).min(rank.min(NOT_FOUND as usize - 1) as u16);
            if source == CandidateSource::Lexical {
                candidate.evidence.lexical = score;
            }
        }
        self.lists.push((source, found));
    }

    /// Records the strategy and the duration of a vector search.
    pub fn record_vector_search(&mut self, strategy: SearchStrategy, time: Duration) {
        self.strategy = Some(strategy);
        self.vector_search_time += time;
    }

    /// Adds anchor weight × neighbour weight to the neighbours of the anchors that `keep` accepts.
    pub fn spread(
        &mut self,
        (table, neighbours): (NeighbourTable, &KeyedNeighbours),
        anchors: impl Iterator<Item = (ItemKey, f32)>,
        catalog: &Catalog,
        keep: impl Fn(Row) -> bool,
        spread: Spread,
    ) {
        for (anchor, anchor_weight) in anchors {
            for (key, weight) in neighbours.of(anchor) {
                let Some(row) = catalog.row_of_key(key) else { continue };
                if self.slots[row.index()] == NO_SLOT && (spread == Spread::CandidatesOnly || !keep(row)) {
                    continue;
                }
                let evidence = &mut self.candidate(row).evidence;
                match table {
                    NeighbourTable::Transitions => evidence.transitions += weight * anchor_weight,
                    NeighbourTable::CoPurchases => evidence.co_purchases += weight * anchor_weight,
                    NeighbourTable::ItemToItem => evidence.item_to_item += weight * anchor_weight,
                }
            }
        }
    }

    /// The `count` candidates with the highest sums of [`Fusion::spread`].
    pub fn best_spread(&self, table: NeighbourTable, count: usize) -> ScoredRows {
        let score = |candidate: &Candidate| match table {
            NeighbourTable::Transitions => candidate.evidence.transitions,
            NeighbourTable::CoPurchases => candidate.evidence.co_purchases,
            NeighbourTable::ItemToItem => candidate.evidence.item_to_item,
        };
        let with_score = self.candidates.iter().map(|candidate| (candidate.row, score(candidate)));
        best_of(with_score.filter(|(_, score)| *score > 0.0).collect(), count)
    }

    /// The `count` candidates with the best fused scores. Rows that only [`Fusion::spread`] reached are left out.
    pub fn finish(mut self, count: usize) -> Candidates {
        for candidate in &self.candidates {
            self.slots[candidate.row.index()] = NO_SLOT;
        }
        SLOTS.set(std::mem::take(&mut self.slots));
        let mut list = self.candidates;
        list.retain(Candidate::is_found);
        let best_first =
            |a: &Candidate, b: &Candidate| best_first(&(a.row, a.evidence.fused), &(b.row, b.evidence.fused));
        if list.len() > count {
            list.select_nth_unstable_by(count, best_first);
            list.truncate(count);
        }
        list.sort_unstable_by(best_first);
        Candidates {
            lexical_best: list.iter().map(|candidate| candidate.evidence.lexical).fold(0.0, f32::max),
            list,
            lists: self.lists,
            strategy: self.strategy,
            vector_search_time: self.vector_search_time,
            exact_match_count: 0,
            full_match_count: 0,
            coverage: Vec::new(),
        }
    }
}

/// The best `count`, best first; equal scores in the order of the rows.
pub fn best_of(mut found: ScoredRows, count: usize) -> ScoredRows {
    if found.len() > count {
        found.select_nth_unstable_by(count, best_first);
        found.truncate(count);
    }
    found.sort_unstable_by(best_first);
    found
}

impl Candidate {
    /// Whether any list has it.
    fn is_found(&self) -> bool {
        self.ranks.iter().any(|rank| *rank != NOT_FOUND)
    }

    /// The two sources that ranked it best, best first.
    pub fn best_sources(&self) -> [Option<CandidateSource>; 2] {
        let mut best = [(NOT_FOUND, None); 2];
        for (source, &rank) in CandidateSource::ALL.into_iter().zip(&self.ranks) {
            // Popularity is a reason only if there is no other.
            let rank = if source == CandidateSource::Popular && rank != NOT_FOUND { NOT_FOUND - 1 } else { rank };
            if rank < best[0].0 {
                best = [(rank, Some(source)), best[0]];
            } else if rank < best[1].0 {
                best[1] = (rank, Some(source));
            }
        }
        best.map(|(_, source)| source)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use CandidateSource::{Lexical, QueryVector, Transitions, UserVector};
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn list(rows: impl IntoIterator<Item = u32>) -> ScoredRows {
        rows.into_iter().map(|row| (Row(row), 1.0)).collect()
    }

    fn fuse(lists: &[(CandidateSource, Vec<u32>)], count: usize) -> Candidates {
        let mut fusion = Fusion::new(50);
        for (source, rows) in lists {
            fusion.add(*source, list(rows.iter().copied()));
        }
        fusion.finish(count)
    }

    #[test]
    fn a_row_in_both_lists_beats_the_first_of_one() {
        let fused = fuse(&[(UserVector, vec![1, 2, 3]), (Transitions, vec![4, 2, 5])], 10).list;
        assert_eq!(fused[0].row, Row(2));
        assert!((fused[0].evidence.fused - 2.0 / 62.0).abs() < 1e-6);
        assert_eq!(fused[0].best_sources(), [Some(UserVector), Some(Transitions)]);
    }

    #[test]
    fn a_heavier_source_wins() {
        assert_eq!(fuse(&[(QueryVector, vec![1]), (Lexical, vec![2])], 10).list[0].row, Row(2));
    }

    proptest! {
        #[test]
        fn no_row_is_lost_or_doubled_and_nothing_stays_from_the_request_before(
            lists in prop::collection::vec((0usize..CandidateSource::COUNT, prop::collection::btree_set(0u32..50, 0..40)), 0..5),
            count in 0usize..60,
        ) {
            let lists: Vec<_> =
                lists.into_iter().map(|(source, rows)| (CandidateSource::ALL[source], rows.into_iter().collect())).collect();
            let fused = fuse(&lists, count);
            let all: BTreeSet<u32> = lists.iter().flat_map(|(_, rows): &(CandidateSource, Vec<u32>)| rows).copied().collect();
            let found: BTreeSet<u32> = fused.list.iter().map(|candidate| candidate.row.0).collect();
            prop_assert_eq!(fused.list.len(), all.len().min(count));
            prop_assert_eq!(found.len(), fused.list.len());
            prop_assert!(found.is_subset(&all));
            prop_assert!(fused.list.windows(2).all(|pair| pair[0].evidence.fused >= pair[1].evidence.fused));
            prop_assert_eq!(fused.list, fuse(&lists, count).list);
        }
    }
}
