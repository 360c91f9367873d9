//! Position bias, estimated from the exploration that the answer log records.
//!
//! The click model is position-based (Richardson, Dominowska and Ragno 2007): a user interacts with an item in slot `k`
//! with the probability `examination of k × relevance of the item`. Exploration shows the same item in different slots
//! with known probabilities, so the interactions of two slots with the same items differ by the examination alone:
//! intervention harvesting (Agarwal, Zaitsev, Wang, Li, Najork and Joachims 2019, "Estimating Position Bias without
//! Intrusive Interventions").

/// A slot whose estimate has fewer interactions than this is closer to the power law than to its own interactions.
const PRIOR_INTERACTIONS: f64 = 20.0;
/// Greatest exponent of the power law.
const EXPONENT_MAX: f64 = 3.0;
const STEPS: usize = 200;
/// Slots beyond are examined like this one.
const SLOTS_MAX: usize = 200;

/// Interactions and displays of pairs of slots, as if both slots had shown the same items equally often.
///
/// An item that the policy shows in slot `k` with probability `p(k)` counts for the pair `(k, j)` with the matching
/// weight `min(p(k), p(j)) / p(k)` (Li and Greene 2013), divided by the number of its other slots. The expectation of
/// the displays is then the same in both slots, for each item, and no weight exceeds 1.
#[derive(Debug, Default)]
pub(crate) struct PairCounts {
    slot_count: usize,
    /// `[slot][other slot]`
    displays: Vec<f64>,
    interactions: Vec<f64>,
}

impl PairCounts {
    pub(super) fn new(slot_count: usize) -> Self {
        let slot_count = slot_count.min(SLOTS_MAX);
        let zeros = vec![0.0; slot_count * slot_count];
        Self { slot_count, displays: zeros.clone(), interactions: zeros }
    }

    /// Adds an item that was shown at index `slot`; `probabilities`: of the item, by slot.
    pub(super) fn add(&mut self, slot: usize, probabilities: &[f32], has_interaction: bool) {
        let own = probabilities.get(slot).copied().unwrap_or(0.0);
        let possible = || probabilities.iter().take(self.slot_count).enumerate().filter(|(_, other)| **other > 0.0);
        let others = possible().filter(|(index, _)| *index != slot).count();
        if slot >= self.slot_count || own <= 0.0 || others == 0 {
            return;
        }
        for (index, other) in possible().filter(|(index, _)| *index != slot) {
            let weight = f64::from(own.min(*other) / own) / others as f64;
            self.displays[slot * self.slot_count + index] += weight;
            self.interactions[slot * self.slot_count + index] += if has_interaction { weight } else { 0.0 };
        }
    }

    /// Returns the pairs of slots with interactions: both slots, and displays and interactions of both.
    fn pairs(&self) -> Vec<Pair> {
        let mut pairs = Vec::new();
        for one in 0..self.slot_count {
            for other in one + 1..self.slot_count {
                let cells = [one * self.slot_count + other, other * self.slot_count + one];
                let [displays, interactions] =
                    [&self.displays, &self.interactions].map(|of| cells.map(|cell| of[cell]));
                if displays[0] > 0.0 && displays[1] > 0.0 && interactions[0] + interactions[1] > 0.0 {
                    pairs.push(Pair { slots: [one, other], displays, interactions });
                }
            }
        }
        pairs
    }
}

struct Pair {
    slots: [usize; 2],
    displays: [f64; 2],
    interactions: [f64; 2],
}

/// The probability that a user examines a slot, relative to the slot with the greatest one.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct PositionBias {
    /// By slot, from slot 1.
    pub examination: Vec<f64>,
    /// By slot: the interactions that the estimate is based on. 0 if exploration never moved an item into or out of
    /// the slot, or nobody interacted there: then the power law alone determines the estimate.
    pub interactions: Vec<f64>,
    /// The examination is about `slot ^ -exponent`.
    pub exponent: f64,
}

impl PositionBias {
    /// Estimates the curve. Given the interactions of a pair, the number of those in the first slot is binomial with
    /// the odds `examination × displays` of the two slots: the model of Bradley and Terry, with a power law as the
    /// prior (fitted first), maximised by the steps of Hunter (2004).
    pub(super) fn estimate(counts: &PairCounts) -> Self {
        let pairs = counts.pairs();
        let exponent = power_law(&pairs);
        let prior: Vec<f64> = (0..counts.slot_count).map(|slot| ((slot + 1) as f64).powf(-exponent)).collect();
        let mut interactions = vec![0.0; counts.slot_count];
        for pair in &pairs {
            pair.slots.iter().zip(pair.interactions).for_each(|(slot, count)| interactions[*slot] += count);
        }
        let mut examination = prior.clone();
        for _ in 0..STEPS {
            let mut rates = vec![0.0; counts.slot_count];
            for pair in &pairs {
                let sum: f64 =
                    pair.slots.iter().zip(pair.displays).map(|(slot, count)| examination[*slot] * count).sum();
                let total = pair.interactions[0] + pair.interactions[1];
                pair.slots.iter().zip(pair.displays).for_each(|(slot, count)| rates[*slot] += total * count / sum);
            }
            for (slot, value) in examination.iter_mut().enumerate() {
                *value = (PRIOR_INTERACTIONS + interactions[slot]) / (PRIOR_INTERACTIONS / prior[slot] + rates[slot]);
            }
        }
        let greatest = examination.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
        examination.iter_mut().for_each(|value| *value /= greatest);
        Self { examination, interactions, exponent }
    }

    /// Returns the probability that the user examines an item: that of its slot, or for an item that exploration may
    /// show elsewhere, the mean over its slots (the policy-aware propensity of Oosterhuis and de Rijke 2020), which has
    /// a lower variance and includes the probability that the item is not on the page.
    pub(super) fn propensity(&self, slot: usize, probabilities: &[f32]) -> f64 {
        let last = self.examination.len().saturating_sub(1);
        let of = |slot: usize| self.examination.get(slot.min(last)).copied().unwrap_or(1.0);
        match probabilities.is_empty() {
            true => of(slot),
            false => probabilities.iter().enumerate().map(|(slot, share)| f64::from(*share) * of(slot)).sum(),
        }
    }
}

/// Returns the exponent of the power law with the greatest likelihood, by golden-section search: the likelihood is
/// concave in it.
fn power_law(pairs: &[Pair]) -> f64 {
    let likelihood = |exponent: f64| -> f64 {
        let of_pair = |pair: &Pair| {
            let odds: Vec<f64> = (pair.slots.iter().zip(pair.displays))
                .map(|(slot, count)| ((slot + 1) as f64).powf(-exponent) * count)
                .collect();
            let sum: f64 = odds.iter().sum();
            odds.iter().zip(pair.interactions).map(|(odds, count)| count * (odds / sum).ln()).sum::<f64>()
        };
        pairs.iter().map(of_pair).sum()
    };
    let ratio = (5f64.sqrt() - 1.0) / 2.0;
    let (mut low, mut high) = (0.0, EXPONENT_MAX);
    for _ in 0..40 {
        let (left, right) = (high - ratio * (high - low), low + ratio * (high - low));
        if likelihood(left) < likelihood(right) { low = left } else { high = right }
    }
    (low + high) / 2.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng, rngs::StdRng};

    /// Items whose relevance decides their probabilities by slot, so that better items are shown earlier: the rates of
    /// the slots alone would overstate the position bias.
    fn simulated(examination: &[f64], answers: usize, seed: u64) -> (PairCounts, Vec<f64>) {
        let mut rng = StdRng::seed_from_u64(seed);
        let slots = examination.len();
        let mut counts = PairCounts::new(slots);
        let (mut shown, mut clicked) = (vec![0.0; slots], vec![0.0; slots]);
        for _ in 0..answers {
            let relevance: f64 = rng.random_range(0.02..0.6);
            let weights: Vec<f64> =
                (0..slots).map(|slot| (-6.0 * relevance * slot as f64 / slots as f64).exp()).collect();
            let sum: f64 = weights.iter().sum();
            let probabilities: Vec<f32> = weights.iter().map(|weight| (weight / sum) as f32).collect();
            let mut rest = rng.random_range(0.0..sum);
            let slot = weights
                .iter()
                .position(|weight| {
                    rest -= weight;
                    rest < 0.0
                })
                .unwrap_or(slots - 1);
            let clicks = rng.random_bool(examination[slot] * relevance);
            counts.add(slot, &probabilities, clicks);
            shown[slot] += 1.0;
            clicked[slot] += f64::from(u8::from(clicks));
        }
        (counts, clicked.iter().zip(&shown).map(|(clicked, shown)| clicked / shown).collect())
    }

    #[test]
    fn the_curve_is_recovered_although_better_items_are_shown_earlier() {
        let truth: Vec<f64> = (1..=8).map(|slot: u32| f64::from(slot).powf(-0.7)).collect();
        let (counts, rates) = simulated(&truth, 60_000, 1);
        let found = PositionBias::estimate(&counts);
        for (slot, (found, truth)) in found.examination.iter().zip(&truth).enumerate() {
            assert!((found / truth - 1.0).abs() < 0.15, "slot {}: {found}, truly {truth}", slot + 1);
        }
        assert!(rates[7] / rates[0] < 0.75 * truth[7], "the rates alone are biased: {rates:?}");
    }

    #[test]
    fn a_curve_that_is_no_power_law_is_recovered_from_many_interactions() {
        let truth = [1.0, 0.9, 0.8, 0.2, 0.6, 0.1];
        let found = PositionBias::estimate(&simulated(&truth, 200_000, 2).0);
        for (found, truth) in found.examination.iter().zip(&truth) {
            assert!((found / truth - 1.0).abs() < 0.15, "{found}, truly {truth}");
        }
    }

    #[test]
    fn few_interactions_leave_the_power_law_and_none_a_flat_curve() {
        let truth: Vec<f64> = (1..=8).map(|slot: u32| 1.0 / f64::from(slot)).collect();
        let few = PositionBias::estimate(&simulated(&truth, 800, 3).0);
        assert!(few.examination.iter().all(|value| *value > 0.03 && *value <= 1.0), "{few:?}");
        assert!((0.4..1.8).contains(&few.exponent), "{few:?}");
        let none = PositionBias::estimate(&PairCounts::new(3));
        assert!(none.examination.iter().all(|value| value.is_finite() && *value > 0.0), "{none:?}");
        // A slot without exploration has the examination of the power law.
        let mut counts = PairCounts::new(3);
        (0..100).for_each(|round| counts.add(round % 2, &[0.5, 0.5, 0.0], round % 3 == 0));
        counts.add(2, &[0.0, 0.0, 1.0], true);
        assert_eq!(PositionBias::estimate(&counts).interactions[2], 0.0);
    }

    #[test]
    fn the_propensity_of_an_explored_item_is_the_mean_over_its_slots() {
        let bias = PositionBias { examination: vec![1.0, 0.5], interactions: vec![0.0; 2], exponent: 1.0 };
        assert_eq!(bias.propensity(1, &[]), 0.5);
        assert_eq!(bias.propensity(9, &[]), 0.5, "later slots are examined like the last one");
        assert_eq!(bias.propensity(1, &[0.5, 0.25]), 0.625);
    }
}
