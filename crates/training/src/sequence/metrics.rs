//! Figures of ranked lists with one right answer or with several.
use serde::Serialize;

/// Where the lists are cut.
pub const CUTOFFS: [usize; 3] = [5, 10, 20];

/// Means over users with one right item each. HR and recall are then the same.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct HitMetrics {
    pub hr_at_5: f64,
    pub hr_at_10: f64,
    pub hr_at_20: f64,
    pub ndcg_at_5: f64,
    pub ndcg_at_10: f64,
    pub ndcg_at_20: f64,
    /// Mean of 1 / rank, 0 beyond rank 20.
    pub mrr_at_20: f64,
}

impl HitMetrics {
    /// Combines each figure of several.
    pub fn combine(all: &[Self], combine: impl Fn(&[f64]) -> f64) -> Self {
        let each = |figure: fn(&Self) -> f64| combine(&all.iter().map(figure).collect::<Vec<f64>>());
        Self {
            hr_at_5: each(|figures| figures.hr_at_5),
            hr_at_10: each(|figures| figures.hr_at_10),
            hr_at_20: each(|figures| figures.hr_at_20),
            ndcg_at_5: each(|figures| figures.ndcg_at_5),
            ndcg_at_10: each(|figures| figures.ndcg_at_10),
            ndcg_at_20: each(|figures| figures.ndcg_at_20),
            mrr_at_20: each(|figures| figures.mrr_at_20),
        }
    }

    /// Of the ranks of the right items, from 1; none: not among what was ranked. All 0 without users.
    pub fn of(ranks: impl IntoIterator<Item = Option<usize>>) -> Self {
        let (mut count, mut hits, mut gains, mut reciprocal) = (0usize, [0.0; 3], [0.0; 3], 0.0);
        for rank in ranks {
            count += 1;
            let Some(rank) = rank else { continue };
            for (place, cutoff) in CUTOFFS.into_iter().enumerate().filter(|(_, cutoff)| rank <= *cutoff) {
                debug_assert!(rank >= 1 && rank <= cutoff);
                hits[place] += 1.0;
                gains[place] += 1.0 / (rank as f64 + 1.0).log2();
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

/// Means over users with several right items each.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct BasketMetrics {
    pub recall_at_10: f64,
    pub recall_at_20: f64,
    pub ndcg_at_10: f64,
    pub ndcg_at_20: f64,
    /// Share of the users with at least one right item among ten.
    pub phr_at_10: f64,
}

impl BasketMetrics {
    /// Of what was ranked and what was wanted (sorted, not empty).
    pub fn of<'a>(lists: impl Iterator<Item = (&'a [u32], &'a Vec<u32>)>) -> Self {
        let (mut sum, mut count) = (Self::default(), 0usize);
        for (ranked, wanted) in lists {
            let ((recall, ndcg), (recall_20, ndcg_20)) =
                (basket_quality(ranked, wanted, 10), basket_quality(ranked, wanted, 20));
            sum.recall_at_10 += recall;
            sum.ndcg_at_10 += ndcg;
            sum.recall_at_20 += recall_20;
            sum.ndcg_at_20 += ndcg_20;
            sum.phr_at_10 += f64::from(u8::from(recall > 0.0));
            count += 1;
        }
        Self::combine(&[sum], |values| values[0] / count.max(1) as f64)
    }

    /// Combines each figure of several.
    pub fn combine(all: &[Self], combine: impl Fn(&[f64]) -> f64) -> Self {
        let each = |figure: fn(&Self) -> f64| combine(&all.iter().map(figure).collect::<Vec<f64>>());
        Self {
            recall_at_10: each(|figures| figures.recall_at_10),
            recall_at_20: each(|figures| figures.recall_at_20),
            ndcg_at_10: each(|figures| figures.ndcg_at_10),
            ndcg_at_20: each(|figures| figures.ndcg_at_20),
            phr_at_10: each(|figures| figures.phr_at_10),
        }
    }
}

/// Recall and nDCG of the first `cutoff` of `ranked` where `wanted` (sorted, not empty) is right; nDCG's best list has all of
/// them first.
pub fn basket_quality(ranked: &[u32], wanted: &[u32], cutoff: usize) -> (f64, f64) {
    let gain = |place: usize| 1.0 / (place as f64 + 2.0).log2();
    let (mut hits, mut gained) = (0.0, 0.0);
    for (place, item) in ranked.iter().take(cutoff).enumerate() {
        if wanted.binary_search(item).is_ok() {
            hits += 1.0;
            gained += gain(place);
        }
    }
    let ideal: f64 = (0..wanted.len().min(cutoff)).map(gain).sum();
    (hits / wanted.len() as f64, gained / ideal)
}
