//! Metrics of ranked lists with one or several relevant items.
use serde::Serialize;

/// List lengths of the metrics.
const CUTOFFS: [usize; 3] = [5, 10, 20];

/// Means over queries with one relevant item each, for which hit rate and recall are the same.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct HitMetrics {
    pub hr_at_5: f64,
    pub hr_at_10: f64,
    pub hr_at_20: f64,
    pub ndcg_at_5: f64,
    pub ndcg_at_10: f64,
    pub ndcg_at_20: f64,
    /// Mean of 1 / rank; 0 beyond rank 20.
    pub mrr_at_20: f64,
}

impl HitMetrics {
    /// Combines each metric of `all` to one, for example by the mean.
    pub fn combine(all: &[Self], combine: impl Fn(&[f64]) -> f64) -> Self {
        let each = |metric: fn(&Self) -> f64| combine(&all.iter().map(metric).collect::<Vec<f64>>());
        Self {
            hr_at_5: each(|metrics| metrics.hr_at_5),
            hr_at_10: each(|metrics| metrics.hr_at_10),
            hr_at_20: each(|metrics| metrics.hr_at_20),
            ndcg_at_5: each(|metrics| metrics.ndcg_at_5),
            ndcg_at_10: each(|metrics| metrics.ndcg_at_10),
            ndcg_at_20: each(|metrics| metrics.ndcg_at_20),
            mrr_at_20: each(|metrics| metrics.mrr_at_20),
        }
    }

    /// Computes the metrics from the ranks of the relevant items, from 1; `None`: not in the list. All are 0 without
    /// ranks.
    pub fn of(ranks: impl IntoIterator<Item = Option<usize>>) -> Self {
        let (mut count, mut hits, mut gains, mut reciprocal) = (0usize, [0.0; 3], [0.0; 3], 0.0);
        for rank in ranks {
            count += 1;
            let Some(rank) = rank else { continue };
            for (index, cutoff) in CUTOFFS.into_iter().enumerate().filter(|(_, cutoff)| rank <= *cutoff) {
                debug_assert!(rank >= 1 && rank <= cutoff);
                hits[index] += 1.0;
                gains[index] += 1.0 / (rank as f64 + 1.0).log2();
            }
            if rank <= CUTOFFS[2] {
                reciprocal += 1.0 / rank as f64;
            }
        }
        let mean = |sum: f64| if count == 0 { 0.0 } else { sum / count as f64 };
        Self {
            hr_at_5: mean(hits[0]),
            hr_at_10: mean(hits[1]),
            hr_at_20: mean(hits[2]),
            ndcg_at_5: mean(gains[0]),
            ndcg_at_10: mean(gains[1]),
            ndcg_at_20: mean(gains[2]),
            mrr_at_20: mean(reciprocal),
        }
    }
}

/// Means over users with several relevant items each.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct BasketMetrics {
    pub recall_at_10: f64,
    pub recall_at_20: f64,
    pub ndcg_at_10: f64,
    pub ndcg_at_20: f64,
    /// Share of the users with at least one relevant item in the first ten.
    pub phr_at_10: f64,
}

impl BasketMetrics {
    /// Computes the metrics from pairs of a ranked list and the relevant items (sorted, not empty).
    pub fn of<'a>(lists: impl Iterator<Item = (&'a [u32], &'a Vec<u32>)>) -> Self {
        let (mut sum, mut count) = (Self::default(), 0usize);
        for (ranked, relevant) in lists {
            let ((recall, ndcg), (recall_20, ndcg_20)) =
                (basket_quality(ranked, relevant, 10), basket_quality(ranked, relevant, 20));
            sum.recall_at_10 += recall;
            sum.ndcg_at_10 += ndcg;
            sum.recall_at_20 += recall_20;
            sum.ndcg_at_20 += ndcg_20;
            sum.phr_at_10 += f64::from(u8::from(recall > 0.0));
            count += 1;
        }
        Self::combine(&[sum], |values| values[0] / count.max(1) as f64)
    }

    /// Combines each metric of `all` to one, for example by the mean.
    pub fn combine(all: &[Self], combine: impl Fn(&[f64]) -> f64) -> Self {
        let each = |metric: fn(&Self) -> f64| combine(&all.iter().map(metric).collect::<Vec<f64>>());
        Self {
            recall_at_10: each(|metrics| metrics.recall_at_10),
            recall_at_20: each(|metrics| metrics.recall_at_20),
            ndcg_at_10: each(|metrics| metrics.ndcg_at_10),
            ndcg_at_20: each(|metrics| metrics.ndcg_at_20),
            phr_at_10: each(|metrics| metrics.phr_at_10),
        }
    }
}

/// Returns recall and NDCG of the first `cutoff` items of `ranked`. `relevant` is sorted and not empty; the ideal list
/// of NDCG begins with these items.
pub fn basket_quality(ranked: &[u32], relevant: &[u32], cutoff: usize) -> (f64, f64) {
    let gain = |index: usize| 1.0 / (index as f64 + 2.0).log2();
    let (mut hits, mut gained) = (0.0, 0.0);
    for (index, item) in ranked.iter().take(cutoff).enumerate() {
        if relevant.binary_search(item).is_ok() {
            hits += 1.0;
            gained += gain(index);
        }
    }
    let ideal: f64 = (0..relevant.len().min(cutoff)).map(gain).sum();
    (hits / relevant.len() as f64, gained / ideal)
}
