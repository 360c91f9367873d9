//! Users' next baskets, and the scores of the items that may be in a list for them.
use super::{
    scores::{Fitted, Score, ScoringState},
    shop::Shop,
};
use crate::{
    Progress,
    evaluate::{CUTOFF, ndcg},
};
use ahash::AHashSet;
use lodestone_core::{
    ids::{Row, UserId},
    units::UnixMillis,
};
use lodestone_pipeline::slate::NEW_ITEM_DAYS;
use rayon::prelude::*;
use std::{
    sync::mpsc::{self, Sender},
    thread,
};

/// A user's next basket, and the time from which on nothing is known.
#[derive(Debug, Clone)]
pub(crate) struct Case {
    pub user: UserId,
    pub at: UnixMillis,
    pub targets: AHashSet<Row>,
}

/// What an item is to the user of a case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ItemKind {
    /// The user bought it before.
    Own,
    /// In the shop for at most [`NEW_ITEM_DAYS`].
    New,
    Established,
}

/// A part of the task of a user's next basket: which items are listed, and which of them are targets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Subtask {
    All,
    Repeat,
    Discovery,
    /// The list of `Discovery`, with the targets of one age.
    DiscoveryOfNew,
    DiscoveryOfEstablished,
}

impl Subtask {
    pub(crate) const ALL: [Self; 5] =
        [Self::All, Self::Repeat, Self::Discovery, Self::DiscoveryOfNew, Self::DiscoveryOfEstablished];

    fn lists(self, kind: ItemKind) -> bool {
        match self {
            Self::All => true,
            Self::Repeat => kind == ItemKind::Own,
            Self::Discovery | Self::DiscoveryOfNew | Self::DiscoveryOfEstablished => kind != ItemKind::Own,
        }
    }

    fn has_target(self, kind: ItemKind) -> bool {
        match self {
            Self::All | Self::Repeat | Self::Discovery => self.lists(kind),
            Self::DiscoveryOfNew => kind == ItemKind::New,
            Self::DiscoveryOfEstablished => kind == ItemKind::Established,
        }
    }
}

/// NDCG@10 by subtask; `None` if the basket has no target of the subtask.
pub(crate) type SubtaskScores = [Option<f64>; Subtask::ALL.len()];

/// Returns the kind of each item for a case.
fn item_kinds(shop: &Shop, case: &Case) -> impl Fn(Row) -> ItemKind {
    let own: AHashSet<u32> = shop.bought_before(&case.user, case.at).iter().map(|bought| bought.row).collect();
    move |row| match (own.contains(&row.0), shop.is_new(row.0, case.at, NEW_ITEM_DAYS)) {
        (true, _) => ItemKind::Own,
        (false, true) => ItemKind::New,
        (false, false) => ItemKind::Established,
    }
}

/// Returns NDCG@10 of the first items in the order of `ranking`, which may be longer than the list.
pub(crate) fn ranking_scores(shop: &Shop, case: &Case, ranking: &[Row]) -> SubtaskScores {
    let kind_of = item_kinds(shop, case);
    Subtask::ALL.map(|subtask| {
        let target_count = case.targets.iter().filter(|row| subtask.has_target(kind_of(**row))).count();
        let listed = ranking.iter().filter(|row| subtask.lists(kind_of(**row))).take(CUTOFF);
        let hits = listed.enumerate().filter(|(_, row)| case.targets.contains(row));
        let hits = hits.filter(|(_, row)| subtask.has_target(kind_of(**row))).map(|(position, _)| position);
        (target_count > 0).then(|| ndcg(hits, target_count))
    })
}

/// Candidates of each score, in addition to the user's own items. More than the length of a list, because a sum of
/// several scores may prefer an item that no score prefers alone.
const CANDIDATES: usize = 50;

/// The candidates of a case, in the order of the item table, with their scores. Each score has mean 0 and standard
/// deviation 1 over all items.
pub(super) struct CaseTable {
    kinds: Vec<ItemKind>,
    is_target: Vec<bool>,
    /// `[scores × candidates]`.
    scores: Vec<f32>,
    /// By subtask, candidates or not.
    target_counts: [usize; Subtask::ALL.len()],
}

impl CaseTable {
    fn new(shop: &Shop, case: &Case, scores: Vec<Vec<f32>>) -> Self {
        let kind_of = item_kinds(shop, case);
        let own: Vec<u32> = shop.bought_before(&case.user, case.at).iter().map(|bought| bought.row).collect();
        let count = (CANDIDATES + own.len()).min(shop.item_count);
        let mut rows = own;
        for scores in &scores {
            let mut order: Vec<u32> = (0..shop.item_count as u32).collect();
            if count < order.len() {
                order.select_nth_unstable_by(count, |a, b| {
                    scores[*b as usize].total_cmp(&scores[*a as usize]).then(a.cmp(b))
                });
            }
            rows.extend_from_slice(&order[..count]);
        }
        rows.sort_unstable();
        rows.dedup();
        let target_count =
            |subtask: Subtask| case.targets.iter().filter(|row| subtask.has_target(kind_of(**row))).count();
        let standardised = scores.into_iter().map(standardised);
        Self {
            kinds: rows.iter().map(|row| kind_of(Row(*row))).collect(),
            is_target: rows.iter().map(|row| case.targets.contains(&Row(*row))).collect(),
            scores: standardised
                .flat_map(|scores| rows.iter().map(move |row| scores[*row as usize]).collect::<Vec<_>>())
                .collect(),
            target_counts: Subtask::ALL.map(target_count),
        }
    }

    /// Returns the weighted sum of scores by candidate.
    fn sums(&self, weights: &[(usize, f32)]) -> Vec<f32> {
        let count = self.kinds.len();
        let mut sums = vec![0.0; count];
        for (score, weight) in weights {
            let values = &self.scores[score * count..][..count];
            sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += weight * value);
        }
        sums
    }

    /// Returns NDCG@10 of the list with the greatest sums.
    pub(super) fn ndcg(&self, weights: &[(usize, f32)], subtask: Subtask) -> Option<f64> {
        let target_count = self.target_counts[subtask as usize];
        if target_count == 0 {
            return None;
        }
        let sums = self.sums(weights);
        let mut list: Vec<(f32, usize)> = Vec::with_capacity(CUTOFF + 1);
        for (index, sum) in sums.into_iter().enumerate().filter(|(index, _)| subtask.lists(self.kinds[*index])) {
            let position = list.partition_point(|(listed, _)| *listed >= sum);
            if position < CUTOFF {
                list.insert(position, (sum, index));
                list.truncate(CUTOFF);
            }
        }
        let is_hit = |index: usize| self.is_target[index] && subtask.has_target(self.kinds[index]);
        let hits = list.iter().enumerate().filter(|(_, (_, index))| is_hit(*index)).map(|(position, _)| position);
        Some(ndcg(hits, target_count))
    }
}

/// Shifts and scales values to mean 0 and standard deviation 1. Equal values become 0.
fn standardised(mut values: Vec<f32>) -> Vec<f32> {
    let count = values.len().max(1) as f64;
    let mean = values.iter().map(|value| f64::from(*value)).sum::<f64>() / count;
    let variance = values.iter().map(|value| (f64::from(*value) - mean).powi(2)).sum::<f64>() / count;
    let scale = if variance > 0.0 { 1.0 / variance.sqrt() } else { 0.0 };
    values.iter_mut().for_each(|value| *value = ((f64::from(*value) - mean) * scale) as f32);
    values
}

/// Computes a value from the table of each case, in the order of the cases.
pub(super) fn for_each_case<T: Send>(
    shop: &Shop,
    fitted: &Fitted,
    scores: &[Score],
    cases: &[Case],
    progress: &mut dyn FnMut(Progress),
    value: impl Fn(&Case, CaseTable) -> T + Sync,
) -> Vec<T> {
    let mut order: Vec<usize> = (0..cases.len()).collect();
    order.sort_by_key(|index| cases[*index].at);
    let Some(ends) = order.last().map(|last| cases[*last].at) else { return Vec::new() };
    // Each thread has a state of its own, which advances from case to case.
    let of_part = |part: &[usize], done: &Sender<()>| {
        let mut state = ScoringState::new(shop, fitted, scores, ends);
        let value_of = |index: &usize| {
            let case = &cases[*index];
            state.advance(case.at);
            let value = value(case, CaseTable::new(shop, case, state.scores(case)));
            // The receiver lives until all are done.
            let _ = done.send(());
            (*index, value)
        };
        part.iter().map(value_of).collect::<Vec<_>>()
    };
    let part_length = order.len().div_ceil(rayon::current_num_threads());
    let (sender, receiver) = mpsc::channel();
    let mut values: Vec<(usize, T)> = thread::scope(|scope| {
        let (order, of_part) = (&order, &of_part);
        let computing = scope.spawn(move || {
            order.par_chunks(part_length).flat_map_iter(|part| of_part(part, &sender)).collect::<Vec<_>>()
        });
        for (done, ()) in receiver.iter().enumerate() {
            progress(Progress { stage: "baselines", done, total: cases.len(), loss: f32::NAN });
        }
        computing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    values.sort_by_key(|(index, _)| *index);
    values.into_iter().map(|(_, value)| value).collect()
}

#[cfg(test)]
mod tests {
    use super::{
        super::shop::tests::{bought, day, user},
        *,
    };
    use crate::replay::Interaction;
    use rand::{Rng, SeedableRng, rngs::StdRng};

    /// The user bought items 0 and 1. Item 2 is established, item 3 new at day 100.
    fn interactions() -> Vec<Interaction> {
        vec![bought("me", 1.0, &[0, 1]), bought("", 2.0, &[2]), bought("", 90.0, &[3])]
    }

    fn case(targets: &[u32]) -> Case {
        Case { user: user("me"), at: day(100.0), targets: targets.iter().map(|row| Row(*row)).collect() }
    }

    #[test]
    fn each_subtask_has_its_own_list_and_targets() {
        let interactions = interactions();
        let shop = Shop::new(&interactions, vec![None; 5]);
        let ranking = [0, 2, 1, 3].map(Row);
        let second = 1.0 / 3.0f64.log2();
        let scores = ranking_scores(&shop, &case(&[1, 3]), &ranking);
        let all = (1.0 / 4.0f64.log2() + 1.0 / 5.0f64.log2()) / (1.0 + second);
        let expected = [Some(all), Some(second), Some(second), Some(second), None];
        for (subtask, (score, expected)) in Subtask::ALL.into_iter().zip(scores.into_iter().zip(expected)) {
            let near = score.unwrap_or(-1.0) - expected.unwrap_or(-1.0);
            assert!(near.abs() < 1e-9, "{subtask:?}: {score:?} instead of {expected:?}");
        }
        let scores = ranking_scores(&shop, &case(&[0, 2]), &ranking);
        assert_eq!(scores, [Some(1.0), Some(1.0), Some(1.0), None, Some(1.0)]);
        // An item that no list has is a target nevertheless, a new one: it was never sold.
        assert_eq!(ranking_scores(&shop, &case(&[4]), &ranking), [Some(0.0), None, Some(0.0), Some(0.0), None]);
    }

    #[test]
    fn scores_have_mean_0_and_deviation_1() {
        assert_eq!(standardised(vec![1.0, 3.0]), [-1.0, 1.0]);
        assert_eq!(standardised(vec![2.0, 2.0]), [0.0, 0.0]);
        assert!(standardised(Vec::new()).is_empty());
    }

    #[test]
    fn a_table_has_the_list_of_each_score() {
        let interactions = interactions();
        let shop = Shop::new(&interactions, vec![Some(day(1.0)); 80]);
        let mut rng = StdRng::seed_from_u64(1);
        for _ in 0..200 {
            let targets: Vec<u32> = (0..rng.random_range(1..6)).map(|_| rng.random_range(0..80)).collect();
            let case = case(&targets);
            // Few different values, so that many items have equal scores.
            let scores: Vec<f32> = (0..80).map(|_| rng.random_range(0..9) as f32).collect();
            let mut ranking: Vec<Row> = (0..80).map(Row).collect();
            ranking.sort_by(|a, b| scores[b.index()].total_cmp(&scores[a.index()]));
            let expected = ranking_scores(&shop, &case, &ranking);
            let other: Vec<f32> = scores.iter().rev().copied().collect();
            let table = CaseTable::new(&shop, &case, vec![other, scores]);
            for subtask in Subtask::ALL {
                assert_eq!(table.ndcg(&[(1, 2.0)], subtask), expected[subtask as usize], "{subtask:?} of {case:?}");
            }
        }
    }
}
