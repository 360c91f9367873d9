//! Reciprocal rank fusion of the sources' lists, and the scores of each source for each candidate.
use crate::{
    features::{SourceEvidence, TableScores},
    source::{CandidateSource, ScoredRows},
};
use lodestone_core::ids::{ItemKey, Row};
use lodestone_index::{KeyedNeighbours, SearchStrategy, SimilarHistories, best_first};
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
    SimilarTexts,
    /// The similar texts of the latest item.
    SimilarTextsOfLast,
    /// Scores of [`Fusion::spread_histories`].
    SimilarHistories,
}

impl NeighbourTable {
    pub const ALL: [Self; 6] = [
        Self::Transitions,
        Self::CoPurchases,
        Self::ItemToItem,
        Self::SimilarTexts,
        Self::SimilarTextsOfLast,
        Self::SimilarHistories,
    ];
    /// Those that are read from the items of a request too.
    pub const OF_ANCHORS: [Self; 3] = [Self::Transitions, Self::CoPurchases, Self::ItemToItem];
    const COUNT: usize = Self::ALL.len();
}

/// The items from which a table is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The user's.
    User,
    /// Those that the request names.
    Anchors,
}

impl Origin {
    const COUNT: usize = 2;
}

/// Sums of item weight × neighbour weight. They are an array over all items, because a long history has many more
/// neighbours than there are candidates.
#[derive(Default)]
struct ItemScores {
    /// By [`ItemKey`]; 0 for items that are not in `keys`.
    scores: Vec<f32>,
    /// Items with a score, each once.
    keys: Vec<ItemKey>,
}

impl ItemScores {
    /// Adds a score; one that is not positive is ignored.
    fn add(&mut self, key: ItemKey, score: f32) {
        let sum = &mut self.scores[key.0 as usize];
        if score > 0.0 {
            if *sum == 0.0 {
                self.keys.push(key);
            }
            *sum += score;
        }
    }

    fn get(&self, key: ItemKey) -> f32 {
        self.scores.get(key.0 as usize).copied().unwrap_or(0.0)
    }

    fn clear(&mut self) {
        self.keys.drain(..).for_each(|key| self.scores[key.0 as usize] = 0.0);
    }
}

/// Arrays over the whole catalogue, kept for the next request of the thread.
#[derive(Default)]
struct Arrays {
    /// By row: the position among the candidates, or [`NO_SLOT`].
    slots: Vec<u32>,
    /// By [`NeighbourTable`] and [`Origin`].
    tables: [[ItemScores; Origin::COUNT]; NeighbourTable::COUNT],
}

thread_local! {
    /// Without a slot and without a score.
    static ARRAYS: RefCell<Arrays> = RefCell::default();
}

/// Candidates under construction. A row's score is the sum over the lists of `weight / (k + rank)`, rank from 1, with
/// the weight and the constant of the list's source.
pub struct Fusion {
    candidates: Vec<Candidate>,
    arrays: Arrays,
    lists: Vec<(CandidateSource, ScoredRows)>,
    strategy: Option<SearchStrategy>,
    vector_search_time: Duration,
}

impl Fusion {
    pub fn new(row_count: usize) -> Self {
        let mut arrays = ARRAYS.take();
        arrays.slots.resize(arrays.slots.len().max(row_count), NO_SLOT);
        Self {
            candidates: Vec::with_capacity(1024),
            arrays,
            lists: Vec::with_capacity(CandidateSource::COUNT),
            strategy: None,
            vector_search_time: Duration::ZERO,
        }
    }

    fn candidate(&mut self, row: Row) -> &mut Candidate {
        let slot = &mut self.arrays.slots[row.index()];
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
        let is_new = |(row, _): &(Row, f32)| self.arrays.slots[row.index()] == NO_SLOT;
        let rows = rows.filter(is_new).take(count).collect();
        self.add_from_rank(first, source, rows);
    }

    /// The rows in the lists.
    pub fn found_rows(&self) -> impl Iterator<Item = Row> + '_ {
        self.candidates.iter().map(|candidate| candidate.row)
    }

    /// Number of rows in the lists.
    pub fn found_count(&self) -> usize {
        self.candidates.len()
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

    /// Adds item weight × neighbour weight to the scores of the items' neighbours. The candidates get these scores at
    /// the end.
    pub fn spread(
        &mut self,
        table: NeighbourTable,
        origin: Origin,
        neighbours: &KeyedNeighbours,
        items: impl Iterator<Item = (ItemKey, f32)>,
    ) {
        let scores = &mut self.arrays.tables[table as usize][origin as usize];
        scores.scores.resize(scores.scores.len().max(neighbours.key_count()), 0.0);
        for (item, item_weight) in items {
            neighbours.of(item).for_each(|(key, weight)| scores.add(key, weight * item_weight));
        }
    }

    /// Adds the scores of the items in the histories that are similar to one with these items, the latest first.
    pub fn spread_histories(
        &mut self,
        histories: &SimilarHistories,
        items: impl Iterator<Item = (ItemKey, f32)> + Clone,
    ) {
        let scores = &mut self.arrays.tables[NeighbourTable::SimilarHistories as usize][Origin::User as usize];
        scores.scores.resize(scores.scores.len().max(histories.key_count()), 0.0);
        histories.score(items, |key, score| scores.add(key, score));
    }

    /// The `count` rows with the highest scores of [`Fusion::spread`], among the items for which `row_of` has a row.
    pub fn best_spread(
        &self,
        table: NeighbourTable,
        origin: Origin,
        count: usize,
        row_of: impl Fn(ItemKey) -> Option<Row>,
    ) -> ScoredRows {
        let found = &self.arrays.tables[table as usize][origin as usize];
        best_of(found.keys.iter().filter_map(|key| Some((row_of(*key)?, found.get(*key)))).collect(), count)
    }

    /// The `count` candidates with the best fused scores.
    pub fn finish(mut self, count: usize, key_of: impl Fn(Row) -> ItemKey) -> Candidates {
        for candidate in &self.candidates {
            self.arrays.slots[candidate.row.index()] = NO_SLOT;
        }
        let mut list = self.candidates;
        let best_first =
            |a: &Candidate, b: &Candidate| best_first(&(a.row, a.evidence.fused), &(b.row, b.evidence.fused));
        if list.len() > count {
            list.select_nth_unstable_by(count, best_first);
            list.truncate(count);
        }
        list.sort_unstable_by(best_first);
        for Candidate { row, evidence, .. } in &mut list {
            let key = key_of(*row);
            let scores = |origin: Origin| {
                let score = |table: NeighbourTable| self.arrays.tables[table as usize][origin as usize].get(key);
                TableScores {
                    transitions: score(NeighbourTable::Transitions),
                    co_purchases: score(NeighbourTable::CoPurchases),
                    item_to_item: score(NeighbourTable::ItemToItem),
                }
            };
            evidence.of_user = scores(Origin::User);
            evidence.of_anchors = scores(Origin::Anchors);
            let score = |table: NeighbourTable| self.arrays.tables[table as usize][Origin::User as usize].get(key);
            evidence.similar_texts = score(NeighbourTable::SimilarTexts);
            evidence.similar_texts_of_last = score(NeighbourTable::SimilarTextsOfLast);
            evidence.similar_histories = score(NeighbourTable::SimilarHistories);
        }
        self.arrays.tables.iter_mut().flatten().for_each(ItemScores::clear);
        ARRAYS.set(self.arrays);
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
        fusion.finish(count, |row| ItemKey(row.0))
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
