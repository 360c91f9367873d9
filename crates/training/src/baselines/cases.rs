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
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Duration,
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

/// A question about a user's next basket: which items are listed, and which of them are targets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Question {
    All,
    Repeat,
    Discovery,
    /// The list of `Discovery`, with the targets of one age.
    DiscoveryOfNew,
    DiscoveryOfEstablished,
}

impl Question {
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

/// NDCG@10 by question; `None` if the basket has no target of the question.
pub(crate) type QuestionScores = [Option<f64>; Question::ALL.len()];

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
pub(crate) fn ranking_scores(shop: &Shop, case: &Case, ranking: &[Row]) -> QuestionScores {
    let kind_of = item_kinds(shop, case);
    Question::ALL.map(|question| {
        let target_count = case.targets.iter().filter(|row| question.has_target(kind_of(**row))).count();
        let listed = ranking.iter().filter(|row| question.lists(kind_of(**row))).take(CUTOFF);
        let hits = listed.enumerate().filter(|(_, row)| case.targets.contains(row));
        let hits = hits.filter(|(_, row)| question.has_target(kind_of(**row))).map(|(position, _)| position);
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
    /// By question, candidates or not.
    target_counts: [usize; Question::ALL.len()],
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
            |question: Question| case.targets.iter().filter(|row| question.has_target(kind_of(**row))).count();
        let standardised = scores.into_iter().map(standardised);
        Self {
            kinds: rows.iter().map(|row| kind_of(Row(*row))).collect(),
            is_target: rows.iter().map(|row| case.targets.contains(&Row(*row))).collect(),
            scores: standardised
                .flat_map(|scores| rows.iter().map(move |row| scores[*row as usize]).collect::<Vec<_>>())
                .collect(),
            target_counts: Question::ALL.map(target_count),
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
    pub(super) fn ndcg(&self, weights: &[(usize, f32)], question: Question) -> Option<f64> {
        let target_count = self.target_counts[question as usize];
        if target_count == 0 {
            return None;
        }
        let sums = self.sums(weights);
        let mut list: Vec<(f32, usize)> = Vec::with_capacity(CUTOFF + 1);
        for (index, sum) in sums.into_iter().enumerate().filter(|(index, _)| question.lists(self.kinds[*index])) {
            let position = list.partition_point(|(listed, _)| *listed >= sum);
            if position < CUTOFF {
                list.insert(position, (sum, index));
                list.truncate(CUTOFF);
            }
        }
        let is_hit = |index: usize| self.is_target[index] && question.has_target(self.kinds[index]);
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

/// Pause between two reports of progress.
const PROGRESS_PAUSE: Duration = Duration::from_millis(50);

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
    let done = AtomicUsize::new(0);
    // Each thread has a state of its own, which advances from case to case.
    let of_part = |part: &[usize]| {
        let mut state = ScoringState::new(shop, fitted, scores, ends);
        let value_of = |index: &usize| {
            let case = &cases[*index];
            state.advance(case.at);
            done.fetch_add(1, Ordering::Relaxed);
            (*index, value(case, CaseTable::new(shop, case, state.scores(case))))
        };
        part.iter().map(value_of).collect::<Vec<_>>()
    };
    let part_length = order.len().div_ceil(rayon::current_num_threads());
    let mut values: Vec<(usize, T)> = thread::scope(|scope| {
        let computing = scope.spawn(|| order.par_chunks(part_length).flat_map_iter(of_part).collect());
        while !computing.is_finished() {
            let done = done.load(Ordering::Relaxed);
            progress(Progress { stage: "baselines", done, total: cases.len(), loss: f32::NAN });
            thread::sleep(PROGRESS_PAUSE);
        }
        computing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    values.sort_by_key(|(index, _)| *index);
    values.into_iter().map(|(_, value)| value).collect()
}
