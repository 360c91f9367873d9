//! Named objectives: blends relevance with what a shop wants to maximise, and bounds the relevance that this costs.
//!
//! With the relevance `r` of a candidate, the values `v` of its objectives, and the greatest absolute values `R` and `V`
//! of the candidates, the score is
//!
//! ```text
//! r + share · R · Σ weight · (v / V − r / R)
//! ```
//!
//! so that with a share of 1 it is `R` times the weighted mean of `r / R` and `v / V`, and never above `R`. The share is 1
//! unless the NDCG of the first slots (Järvelin and Kekäläinen 2002) loses more than the limit against the order by
//! relevance, with `max(r, 0)` as gains; then bisection finds a smaller one that fits. The loss is no monotone function of
//! the share, so that the found share is one that fits and not always the largest.
use lodestone_rules::{Objective, RankingObjectives};

/// The limit of the loss of a configuration that sets none.
const NDCG_LOSS_DEFAULT: f32 = 0.05;
/// Steps of the bisection: the share is exact to 1 / 64.
const STEPS: usize = 6;

/// A validated mixture of objectives.
#[derive(Debug, Clone, PartialEq)]
pub struct ObjectiveMix {
    /// Weights above 0 with a sum of at most 1.
    pub weights: Vec<(Objective, f32)>,
    /// 0 to 1.
    pub ndcg_loss_max: f32,
}

impl From<&RankingObjectives> for ObjectiveMix {
    /// Takes the parameters of a validated configuration.
    fn from(objectives: &RankingObjectives) -> Self {
        let weighted = objectives.weighted();
        Self {
            weights: weighted.map(|(index, objective)| (objective, objectives.weights[index].weight as f32)).collect(),
            ndcg_loss_max: objectives.ndcg_loss_max.map_or(NDCG_LOSS_DEFAULT, |loss| loss as f32),
        }
    }
}

impl ObjectiveMix {
    pub fn has(&self, wanted: Objective) -> bool {
        self.weights.iter().any(|(objective, _)| *objective == wanted)
    }

    /// Whether an objective depends on prices.
    pub fn needs_prices(&self) -> bool {
        self.weights.iter().any(|(objective, _)| objective.is_of_prices())
    }
}

/// What objectives read apart from the heads.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ObjectiveFacts {
    /// By candidate, in units of one currency; NaN: unknown. Empty unless a mixture needs prices.
    pub prices: Vec<f32>,
    /// By candidate: price minus cost, in units; NaN: unknown. Empty unless a mixture has MARGIN.
    pub margins: Vec<f32>,
    /// Probability that the user does not return, 0 to 1. None unless a mixture has LOYALTY.
    pub return_risk: Option<f32>,
}

impl ObjectiveFacts {
    /// Whether it has everything that a mixture reads for this number of candidates.
    pub fn suffice(&self, mix: &ObjectiveMix, count: usize) -> bool {
        let has_prices = !mix.has(Objective::Revenue) || self.prices.len() >= count;
        let has_margins = !mix.has(Objective::Margin) || self.margins.len() >= count;
        has_prices && has_margins && (!mix.has(Objective::Loyalty) || self.return_risk.is_some())
    }
}

/// The columns of the heads that objectives read, of `width` heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HeadColumns {
    width: usize,
    click: Option<usize>,
    purchase: Option<usize>,
    return_visit: Option<usize>,
}

impl HeadColumns {
    pub fn new<'a>(names: impl Iterator<Item = &'a str>) -> Self {
        let mut columns = Self::default();
        for (at, name) in names.enumerate() {
            columns.width = at + 1;
            match name {
                "click" => columns.click = Some(at),
                "purchase" => columns.purchase = Some(at),
                "return_visit" => columns.return_visit = Some(at),
                _ => {}
            }
        }
        columns
    }
}

/// The input of a blend.
#[derive(Debug, Clone, Copy)]
pub struct BlendInput<'a> {
    pub mix: &'a ObjectiveMix,
    pub facts: &'a ObjectiveFacts,
    pub columns: HeadColumns,
    /// `[candidates × heads]`, probabilities.
    pub heads: &'a [f32],
    /// By candidate: added to every score before sorting. Empty: all 0.
    pub tiers: &'a [u8],
    /// Slots of the first page, whose NDCG is bounded.
    pub slots: usize,
}

/// Blended scores.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Blend {
    /// By candidate, without tiers.
    pub scores: Vec<f32>,
    /// Share of the weights that the limit leaves, 0 to 1.
    pub share: f32,
    /// Relative loss of NDCG with this share, 0 to 1.
    pub ndcg_loss: f32,
}

/// Blends the relevance of candidates with their objectives. A candidate without a price keeps its relevance for the
/// objectives of prices, and an objective that is 0 for all candidates has no effect.
pub fn blend(relevance: Vec<f32>, input: &BlendInput) -> Blend {
    let largest = relevance.iter().fold(0f32, |most, score| most.max(score.abs()));
    let mut slopes = vec![0f32; relevance.len()];
    if largest > 0.0 {
        let mut values = Vec::with_capacity(relevance.len());
        for (objective, weight) in &input.mix.weights {
            let weight = match objective {
                Objective::Loyalty => weight * input.facts.return_risk.unwrap_or(0.0),
                _ => *weight,
            };
            input.values(*objective, relevance.len(), &mut values);
            let most = values.iter().filter(|value| !value.is_nan()).fold(0f32, |most, value| most.max(value.abs()));
            if most > 0.0 {
                for ((slope, value), score) in slopes.iter_mut().zip(&values).zip(&relevance) {
                    let difference = value * (largest / most) - score;
                    *slope += if difference.is_nan() { 0.0 } else { weight * difference };
                }
            }
        }
    }
    let mut page = Page::new(&relevance, &slopes, input.tiers, input.slots);
    let ideal = page.gain(0.0);
    let least = page.least();
    let loss = |page: &mut Page, share: f32| match ideal > 0.0 {
        true => (1.0 - page.gain(share) / ideal).max(0.0),
        false => 0.0,
    };
    let limit = input.mix.ndcg_loss_max;
    let (mut share, mut ndcg_loss) = (1.0, loss(&mut page, 1.0));
    if ndcg_loss > limit {
        page.prune([least, page.least()]);
        let mut above = 1.0;
        (share, ndcg_loss) = (0.0, 0.0);
        for _ in 0..STEPS {
            let middle = 0.5 * (share + above);
            match loss(&mut page, middle) {
                fits if fits <= limit => (share, ndcg_loss) = (middle, fits),
                _ => above = middle,
            }
        }
    }
    let scores = match share > 0.0 {
        true => relevance.iter().zip(&slopes).map(|(score, slope)| score + share * slope).collect(),
        false => relevance,
    };
    Blend { scores, share, ndcg_loss }
}

impl BlendInput<'_> {
    /// Computes the values of an objective; NaN: unknown.
    fn values(&self, objective: Objective, count: usize, values: &mut Vec<f32>) {
        let of = |row: &[f32], column: Option<usize>| column.and_then(|at| row.get(at)).copied().unwrap_or(0.0);
        let rows = self.heads.chunks_exact(self.columns.width.max(1)).take(count);
        let HeadColumns { click, purchase, return_visit, .. } = self.columns;
        let times = |known: &[f32], values: &mut Vec<f32>| {
            let known = known.iter().copied().chain(std::iter::repeat(f32::NAN));
            values.extend(rows.clone().zip(known).map(|(row, value)| of(row, purchase) * value));
        };
        values.clear();
        match objective {
            Objective::Unspecified => {}
            Objective::Click => values.extend(rows.map(|row| of(row, click))),
            Objective::Purchase => values.extend(rows.map(|row| of(row, purchase))),
            Objective::Revenue => times(&self.facts.prices, values),
            Objective::Margin => times(&self.facts.margins, values),
            Objective::Loyalty => {
                values.extend(rows.map(|row| 1.0 - (1.0 - of(row, purchase)) * (1.0 - of(row, return_visit))));
            }
        }
        values.resize(count, f32::NAN);
    }
}

/// Computes the gain of the first page by share.
struct Page<'a> {
    relevance: &'a [f32],
    slopes: &'a [f32],
    tiers: &'a [u8],
    /// `1 / log2(1 + rank)` by slot.
    discounts: Vec<f32>,
    /// The candidates that can be on the page, ascending.
    candidates: Vec<u32>,
    /// The page: keys of scores and candidates, best first.
    first: Vec<(i32, u32)>,
}

/// Returns a number with the order of [`f32::total_cmp`].
fn key(score: f32) -> i32 {
    let bits = score.to_bits() as i32;
    bits ^ (((bits >> 31) as u32) >> 1) as i32
}

impl<'a> Page<'a> {
    fn new(relevance: &'a [f32], slopes: &'a [f32], tiers: &'a [u8], slots: usize) -> Self {
        let count = slots.clamp(1, relevance.len().max(1));
        let discounts = (0..count).map(|slot| 1.0 / (slot as f32 + 2.0).log2()).collect();
        let candidates = (0..relevance.len() as u32).collect();
        Self { relevance, slopes, tiers, discounts, candidates, first: Vec::with_capacity(count + 1) }
    }

    /// The score with its tier, as the answer is sorted by it.
    fn score(&self, at: u32, share: f32) -> f32 {
        let at = at as usize;
        let base = if share > 0.0 { self.relevance[at] + share * self.slopes[at] } else { self.relevance[at] };
        base + self.tiers.get(at).map_or(0.0, |tier| f32::from(*tier))
    }

    /// Returns the discounted sum of the gains of the first page.
    fn gain(&mut self, share: f32) -> f32 {
        let count = self.discounts.len();
        let mut first = std::mem::take(&mut self.first);
        first.clear();
        let mut last = i32::MIN;
        for &at in &self.candidates {
            let key = key(self.score(at, share));
            if first.len() == count {
                // Of equal scores the earlier candidate is first, as in the order of the answer.
                if key <= last {
                    continue;
                }
                first.pop();
            }
            let mut place = first.len();
            first.push((key, at));
            while place > 0 && first[place - 1].0 < key {
                first[place] = first[place - 1];
                place -= 1;
            }
            first[place] = (key, at);
            last = first[first.len() - 1].0;
        }
        self.first = first;
        let gains = self.first.iter().map(|(_, at)| self.relevance[*at as usize].max(0.0));
        gains.zip(&self.discounts).map(|(gain, discount)| gain * discount).sum()
    }

    /// Returns the least scores of the candidates on the page, at the shares 0 and 1.
    fn least(&self) -> [f32; 2] {
        [0.0, 1.0].map(|share| {
            let scores = self.first.iter().map(|(_, at)| self.score(*at, share));
            scores.fold(f32::INFINITY, f32::min)
        })
    }

    /// Keeps the candidates that can be on the page for some share. `least` are those of the pages of the shares 0 and 1.
    ///
    /// The least score of a page is a concave function of the share, and the score of a candidate a linear one. So a
    /// candidate that is below a page at both ends is below as many candidates in between.
    fn prune(&mut self, least: [[f32; 2]; 2]) {
        let mut candidates = std::mem::take(&mut self.candidates);
        candidates.retain(|at| {
            let scores = [0.0, 1.0].map(|share| self.score(*at, share));
            // The margin is beyond the rounding of a score.
            let is_below = |least: &[f32; 2]| {
                scores.iter().zip(least).all(|(score, least)| *score < least - 1e-6 * (least.abs() + 4.0))
            };
            !least.iter().any(is_below)
        });
        self.candidates = candidates;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Instant;

    fn mix(weights: &[(Objective, f32)], ndcg_loss_max: f32) -> ObjectiveMix {
        ObjectiveMix { weights: weights.to_vec(), ndcg_loss_max }
    }

    /// Heads `click`, `purchase`, `return_visit`.
    fn columns() -> HeadColumns {
        HeadColumns::new(["click", "purchase", "return_visit"].into_iter())
    }

    fn order(scores: &[f32]) -> Vec<usize> {
        let mut order: Vec<usize> = (0..scores.len()).collect();
        order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
        order
    }

    const HEADS: [f32; 9] = [0.5, 0.1, 0.05, 0.4, 0.2, 0.01, 0.1, 0.15, 0.3];
    const RELEVANCE: [f32; 3] = [0.6, 0.5, 0.2];

    fn blended(mix: &ObjectiveMix, facts: &ObjectiveFacts) -> Blend {
        let input = BlendInput { mix, facts, columns: columns(), heads: &HEADS, tiers: &[], slots: 3 };
        blend(RELEVANCE.to_vec(), &input)
    }

    #[test]
    fn each_objective_orders_by_its_formula() {
        let facts =
            ObjectiveFacts { prices: vec![10.0, 2.0, 5.0], margins: vec![-1.0, 1.0, 4.0], return_risk: Some(1.0) };
        for (objective, expected) in [
            (Objective::Click, [0, 1, 2]),
            (Objective::Purchase, [1, 2, 0]),
            (Objective::Revenue, [0, 2, 1]),
            (Objective::Margin, [2, 1, 0]),
            (Objective::Loyalty, [2, 1, 0]),
        ] {
            let blend = blended(&mix(&[(objective, 1.0)], 1.0), &facts);
            assert_eq!((order(&blend.scores), blend.share), (expected.to_vec(), 1.0), "{objective:?}");
        }
        // 0.6 (0.5 / 0.6 + 0.5 (0.2 / 0.2 − 0.5 / 0.6)).
        let half = blended(&mix(&[(Objective::Purchase, 0.5)], 1.0), &facts);
        assert!((half.scores[1] - 0.55).abs() < 1e-6, "{half:?}");
    }

    #[test]
    fn loyalty_weighs_as_much_as_the_user_is_at_risk() {
        let at = |risk: f32| {
            let facts = ObjectiveFacts { return_risk: Some(risk), ..ObjectiveFacts::default() };
            blended(&mix(&[(Objective::Loyalty, 0.8)], 1.0), &facts).scores
        };
        assert_eq!(at(0.0), RELEVANCE);
        let (half, full) = (at(0.5), at(1.0));
        for (index, relevance) in RELEVANCE.iter().enumerate() {
            let (half, full) = (half[index] - relevance, full[index] - relevance);
            assert!((2.0 * half - full).abs() < 1e-6, "{half} {full}");
        }
        assert_eq!(order(&full), [2, 1, 0]);
    }

    #[test]
    fn a_candidate_without_a_price_keeps_its_relevance() {
        let facts = ObjectiveFacts { prices: vec![f32::NAN, 2.0, 5.0], ..ObjectiveFacts::default() };
        let blend = blended(&mix(&[(Objective::Revenue, 0.5)], 1.0), &facts);
        assert_eq!(blend.scores[0], 0.6);
        let unknown = ObjectiveFacts { prices: vec![f32::NAN; 3], ..ObjectiveFacts::default() };
        assert_eq!(blended(&mix(&[(Objective::Revenue, 0.5)], 1.0), &unknown).scores, RELEVANCE);
    }

    #[test]
    fn the_limit_reduces_the_share() {
        let facts = ObjectiveFacts { return_risk: Some(1.0), ..ObjectiveFacts::default() };
        let free = blended(&mix(&[(Objective::Loyalty, 1.0)], 1.0), &facts);
        assert!(free.ndcg_loss > 0.1, "{free:?}");
        let bounded = blended(&mix(&[(Objective::Loyalty, 1.0)], 0.05), &facts);
        assert!(bounded.ndcg_loss <= 0.05 && bounded.share > 0.0 && bounded.share < 1.0, "{bounded:?}");
        let none = blended(&mix(&[(Objective::Loyalty, 1.0)], 0.0), &facts);
        assert_eq!((order(&none.scores), none.ndcg_loss), (vec![0, 1, 2], 0.0));
    }

    /// The loss of an order, from its definition.
    fn loss_of(relevance: &[f32], tiers: &[u8], scores: &[f32], slots: usize) -> f32 {
        let dcg = |scores: &[f32]| -> f32 {
            let total: Vec<f32> = scores.iter().zip(tiers).map(|(score, tier)| score + f32::from(*tier)).collect();
            let gains = order(&total).into_iter().take(slots).map(|at| relevance[at].max(0.0));
            gains.enumerate().map(|(slot, gain)| gain / (slot as f32 + 2.0).log2()).sum()
        };
        let ideal = dcg(relevance);
        if ideal > 0.0 { (1.0 - dcg(scores) / ideal).max(0.0) } else { 0.0 }
    }

    proptest! {
        #[test]
        fn no_answer_loses_more_than_the_limit(
            rows in prop::collection::vec((-0.5f32..1.0, 0f32..1.0, 0f32..1.0, prop::option::of(0.01f32..500.0), 0u8..3), 1..60),
            weights in prop::collection::vec(0.01f32..1.0, 5), limit in 0f32..0.3, risk in 0f32..1.0, slots in 1usize..30,
        ) {
            let sum: f32 = weights.iter().sum();
            let weights: Vec<(Objective, f32)> = Objective::ALL.into_iter().zip(weights.iter().map(|of| of / sum)).collect();
            let mix = mix(&weights, limit);
            let relevance: Vec<f32> = rows.iter().map(|row| row.0).collect();
            let heads: Vec<f32> = rows.iter().flat_map(|row| [row.0.abs(), row.1, row.2]).collect();
            let tiers: Vec<u8> = rows.iter().map(|row| row.4).collect();
            let prices: Vec<f32> = rows.iter().map(|row| row.3.unwrap_or(f32::NAN)).collect();
            let margins = prices.iter().map(|price| price - 20.0).collect();
            let facts = ObjectiveFacts { prices, margins, return_risk: Some(risk) };
            let input = BlendInput { mix: &mix, facts: &facts, columns: columns(), heads: &heads, tiers: &tiers, slots };
            let blend = blend(relevance.clone(), &input);
            let loss = loss_of(&relevance, &tiers, &blend.scores, slots);
            prop_assert!(loss <= limit + 1e-5, "{loss} of {limit}");
            prop_assert!((loss - blend.ndcg_loss).abs() < 1e-5, "{loss} {}", blend.ndcg_loss);
            let largest = relevance.iter().fold(0f32, |most, score| most.max(score.abs()));
            prop_assert!(blend.scores.iter().all(|score| score.abs() <= largest * 1.0001));
        }
    }

    /// Prints the time of a blend of 250 candidates: `cargo test --release -p lodestone-pipeline blend_time -- --nocapture`.
    #[test]
    fn blend_time() {
        let number = |at: usize| (at as f32 * 0.618_034).fract();
        let relevance: Vec<f32> = (0..250).map(number).collect();
        let heads: Vec<f32> = (0..750).map(|at| number(at + 7) * 0.3).collect();
        let facts = ObjectiveFacts { return_risk: Some(0.7), ..ObjectiveFacts::default() };
        let [without, with] = [1.0, 0.002].map(|limit| {
            let mix = mix(&[(Objective::Loyalty, 0.5)], limit);
            let input =
                BlendInput { mix: &mix, facts: &facts, columns: columns(), heads: &heads, tiers: &[], slots: 20 };
            let times = (0..2000).map(|_| {
                let relevance = relevance.clone();
                let begun = Instant::now();
                let blend = std::hint::black_box(blend(relevance, std::hint::black_box(&input)));
                let elapsed = begun.elapsed();
                assert!(blend.ndcg_loss <= limit && (blend.share < 1.0) == (limit < 1.0));
                elapsed
            });
            let mut times: Vec<_> = times.collect();
            times.sort_unstable();
            times[times.len() / 2]
        });
        println!("a blend of 250 candidates: {without:?} without and {with:?} with bisection");
    }
}
