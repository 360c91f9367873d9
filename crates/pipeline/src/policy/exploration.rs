//! Exploration: random orders with exact probabilities.
//!
//! Positions are filled in turn from the organic list. Three rules are the only sources of randomness:
//!
//! 1. A window of the organic list is drawn from a Plackett-Luce model: the next of the remaining candidates is `i`
//!    with probability proportional to `exp(utility(i) / temperature)`. The window has `top` candidates, from the first
//!    position whose slot is at least `first_slot`. The draw adds Gumbel noise to each utility and sorts (Gumbel-top-k;
//!    Kool, van Hoof and Welling 2019).
//! 2. An ε-slot is filled, with probability `epsilon`, uniformly from the first `epsilon_candidates` remaining
//!    candidates.
//! 3. Only a `share` of all answers explores; the others show the organic list.
//!
//! The utility of an organic index is the score with this rank in the window, in standard deviations of the window's
//! scores. So a temperature has the same effect for every model, and as it approaches 0 the order approaches the
//! organic one, even if diversity reordered the list. Rule 1 raises no candidate from below the window, and rule 2 none
//! by `epsilon_candidates` or more ranks.
use super::Random;

/// The parameters of the exploration policy.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Exploration {
    /// In standard deviations of the window's scores; 0 disables rule 1.
    pub temperature: f64,
    /// The first slot that rule 1 may change, from 1.
    pub first_slot: usize,
    /// Length of the window.
    pub top: usize,
    /// Slots from 1, ascending.
    pub epsilon_slots: Vec<usize>,
    /// 0 to 1.
    pub epsilon: f64,
    /// At least 1 if there are ε-slots.
    pub epsilon_candidates: usize,
    /// Share of answers that explore, 0 to 1.
    pub share: f64,
}

impl From<&lodestone_rules::Exploration> for Exploration {
    /// Takes the parameters of a validated configuration.
    fn from(config: &lodestone_rules::Exploration) -> Self {
        let count = |value: Option<i32>, default: usize| value.map_or(default, |value| value as usize);
        Self {
            temperature: config.temperature,
            first_slot: count(config.first_slot, 1),
            top: count(config.top, 20),
            epsilon_slots: config.epsilon_slots.iter().map(|slot| *slot as usize).collect(),
            epsilon: config.epsilon.unwrap_or(1.0),
            epsilon_candidates: count(config.epsilon_candidates, 20),
            share: config.share.unwrap_or(1.0),
        }
    }
}

/// The organic list, best first, without pinned candidates.
#[derive(Debug, Clone, Copy)]
pub struct OrganicList<'a> {
    /// By organic index.
    pub scores: &'a [f32],
    /// By organic index: the slot of the answer, from 1, ascending. Pins have the other slots.
    pub slots: &'a [usize],
}

/// A drawn order.
#[derive(Debug, Clone, PartialEq)]
pub struct DrawnOrder {
    /// By position: the organic index that is shown.
    pub order: Vec<usize>,
    /// Whether this answer explores by rule 3.
    pub explored: bool,
    /// By position: the exact probability of the shown candidate, given the candidates before it.
    pub conditionals: Vec<f64>,
}

/// The marginal probability that the policy shows a candidate at a position.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Marginal {
    pub probability: f64,
    /// 0 if the probability is exact.
    pub standard_error: f64,
}

impl Exploration {
    fn is_random(&self) -> bool {
        self.share > 0.0 && (self.temperature > 0.0 || self.has_epsilon_slots())
    }

    /// Draws an order. The same seed produces the same order.
    pub fn draw(&self, organic: OrganicList, seed: u64) -> DrawnOrder {
        let mut random = Random::new(seed);
        let explored = self.is_random() && random.unit() < self.share;
        let order = match explored {
            true => Walk::new(self, organic).draw(&mut random, organic.scores.len()),
            false => (0..organic.scores.len()).collect(),
        };
        let conditionals = self.conditionals(organic, &order);
        DrawnOrder { order, explored, conditionals }
    }

    /// Computes, by position, the exact probability of the candidate that `order` shows, given the candidates before
    /// it, under the whole policy including rule 3. The order contains each organic index at most once and may be a
    /// prefix.
    pub fn conditionals(&self, organic: OrganicList, order: &[usize]) -> Vec<f64> {
        if !self.is_random() {
            return order.iter().enumerate().map(|(position, shown)| f64::from(u8::from(position == *shown))).collect();
        }
        let mut walk = Walk::new(self, organic);
        // The probability that this answer explores, given the candidates so far.
        let mut exploring = self.share;
        let mut conditionals = Vec::with_capacity(order.len());
        let mut is_organic = true;
        for (position, &shown) in order.iter().enumerate() {
            let of_exploring = walk.probability(shown);
            let of_organic = f64::from(u8::from(is_organic && position == shown));
            let probability = exploring * of_exploring + (1.0 - exploring) * of_organic;
            conditionals.push(probability);
            exploring = if probability > 0.0 { exploring * of_exploring / probability } else { 0.0 };
            is_organic &= position == shown;
            walk.take(shown);
        }
        conditionals
    }

    /// Computes, for each position of `order`, the probability that the policy shows that candidate at that position.
    /// It is exact up to the first drawn position; otherwise it is the mean of `sample_count` samples. `seed`
    /// should not be the answer's own. A candidate that the policy can show never has probability 0.
    pub fn marginals(&self, organic: OrganicList, order: &[usize], sample_count: usize, seed: u64) -> Vec<Marginal> {
        let of_organic = |position: usize, shown: usize| f64::from(u8::from(position == shown));
        let sums = match (self.is_random(), self.has_epsilon_slots()) {
            (false, _) => Vec::new(),
            (true, false) => self.arrivals(organic, order, sample_count.max(2), seed),
            (true, true) => self.prefixes(organic, order, sample_count.max(2), seed),
        };
        let marginal = |(position, &shown): (usize, &usize)| match sums.get(position) {
            None => Marginal { probability: of_organic(position, shown), standard_error: 0.0 },
            Some(sum) => Marginal {
                probability: self.share * sum.mean() + (1.0 - self.share) * of_organic(position, shown),
                standard_error: self.share * sum.standard_error(),
            },
        };
        order.iter().enumerate().map(marginal).collect()
    }

    /// Estimates the probabilities of each candidate of a page at each position of the page: `[candidate][position]`,
    /// in the order of `order`. They are the shares of `sample_count` draws, of which the page itself is one, so that
    /// no candidate has probability 0 at its own position. A candidate that the policy may leave out of the page
    /// has a sum below 1.
    pub fn page_probabilities(
        &self,
        organic: OrganicList,
        order: &[usize],
        sample_count: usize,
        seed: u64,
    ) -> Vec<Vec<f32>> {
        let mut index_of = vec![usize::MAX; organic.scores.len()];
        order.iter().enumerate().for_each(|(index, shown)| index_of[*shown] = index);
        let mut probabilities = vec![vec![0f32; order.len()]; order.len()];
        let mut add = |order: &[usize], weight: f64| {
            for (position, shown) in order.iter().enumerate() {
                if let Some(of_candidate) = probabilities.get_mut(index_of[*shown]) {
                    of_candidate[position] += weight as f32;
                }
            }
        };
        let sample_count = sample_count.max(2);
        let exploring = if self.is_random() { self.share } else { 0.0 };
        let of_sample = exploring / sample_count as f64;
        if exploring < 1.0 {
            add(&(0..order.len()).collect::<Vec<usize>>(), 1.0 - exploring);
        }
        if exploring > 0.0 {
            let mut random = Random::new(seed);
            add(order, of_sample);
            (1..sample_count).for_each(|_| add(&Walk::new(self, organic).draw(&mut random, order.len()), of_sample));
        }
        probabilities
    }

    fn has_epsilon_slots(&self) -> bool {
        !self.epsilon_slots.is_empty() && self.epsilon > 0.0
    }

    /// Samples for policies without ε-slots. The draw is a race, in which the candidates of the window arrive after
    /// exponential times with their weights as rates. Given the times of all others, the probability that a
    /// candidate arrives at its position has a closed form: that is one sample, and never 0.
    fn arrivals(&self, organic: OrganicList, order: &[usize], sample_count: usize, seed: u64) -> Vec<Samples> {
        let walk = Walk::new(self, organic);
        let (begin, end) = (walk.begin, walk.end);
        let mut random = Random::new(seed);
        let mut sums = vec![Samples::default(); order.len()];
        let mut times: Vec<(f64, usize)> = Vec::with_capacity(end - begin);
        for _ in 0..sample_count {
            times.clear();
            // Logarithms of the times, because rates differ by many powers of ten.
            times.extend(walk.logits.iter().enumerate().map(|(at, logit)| (-random.gumbel() - logit, begin + at)));
            times.sort_by(|a, b| a.0.total_cmp(&b.0));
            for (position, (&shown, sum)) in order.iter().zip(&mut sums).enumerate() {
                let is_drawn = walk.is_in_window(position) && walk.is_in_window(shown);
                sum.add(match is_drawn {
                    false => f64::from(u8::from(position == shown)),
                    true if position == begin => walk.of_window(shown),
                    true => arrival(&times, shown, position - begin, walk.logits[shown - begin]),
                });
            }
        }
        sums
    }

    /// Samples for policies with ε-slots: the probability of each position given a drawn prefix is one sample. The
    /// order itself is the last prefix, so that no shown candidate has probability 0.
    fn prefixes(&self, organic: OrganicList, order: &[usize], sample_count: usize, seed: u64) -> Vec<Samples> {
        let mut random = Random::new(seed);
        let mut sums = vec![Samples::default(); order.len()];
        for sample in 1..=sample_count {
            let prefix = match sample == sample_count {
                true => order.to_vec(),
                false => Walk::new(self, organic).draw(&mut random, order.len()),
            };
            let mut walk = Walk::new(self, organic);
            for (position, (&shown, sum)) in order.iter().zip(&mut sums).enumerate() {
                sum.add(if walk.taken[shown] { 0.0 } else { walk.probability(shown) });
                walk.take(prefix[position]);
            }
        }
        sums
    }
}

/// Returns the probability that a candidate with this logit arrives after exactly `before` of the others. `times`
/// ascend.
fn arrival(times: &[(f64, usize)], shown: usize, before: usize, logit: f64) -> f64 {
    let mut others = times.iter().filter(|(_, index)| *index != shown).map(|(time, _)| (time + logit).exp());
    let after = if before == 0 { 0.0 } else { others.nth(before - 1).unwrap_or(f64::INFINITY) };
    let until = others.next().unwrap_or(f64::INFINITY);
    ((-after).exp() * -(after - until).exp_m1()).max(f64::MIN_POSITIVE)
}

/// Running mean and standard error.
#[derive(Debug, Clone, Copy, Default)]
struct Samples {
    count: f64,
    first: f64,
    /// Sum of differences to the first sample, so that equal samples have variance 0.
    sum: f64,
    squares: f64,
}

impl Samples {
    fn add(&mut self, value: f64) {
        if self.count == 0.0 {
            self.first = value;
        }
        self.count += 1.0;
        self.sum += value - self.first;
        self.squares += (value - self.first).powi(2);
    }

    fn mean(&self) -> f64 {
        self.first + self.sum / self.count
    }

    fn standard_error(&self) -> f64 {
        let variance = (self.squares - self.sum * self.sum / self.count).max(0.0) / (self.count - 1.0);
        (variance / self.count).sqrt()
    }
}

/// Returns the probability of a whole page, the product of its conditional probabilities.
pub fn joint(conditionals: &[f64]) -> f64 {
    conditionals.iter().product()
}

/// A partially filled exploring answer.
struct Walk<'a> {
    policy: &'a Exploration,
    organic: OrganicList<'a>,
    /// The window: organic indices `begin..end`.
    begin: usize,
    end: usize,
    /// By index in the window: utility / temperature, shifted so that the maximum is 0.
    logits: Vec<f64>,
    /// The exponentials of `logits`.
    weights: Vec<f64>,
    /// By organic index: whether the candidate is placed.
    taken: Vec<bool>,
    /// The first remaining organic index.
    head: usize,
    /// The position that is filled next.
    position: usize,
}

impl<'a> Walk<'a> {
    fn new(policy: &'a Exploration, organic: OrganicList<'a>) -> Self {
        let count = organic.scores.len().min(organic.slots.len());
        let begin = organic.slots.partition_point(|slot| *slot < policy.first_slot).min(count);
        let length = if policy.temperature > 0.0 { policy.top.min(count - begin) } else { 0 };
        let end = begin + length;
        let logits = logits(&organic.scores[begin..end], policy.temperature);
        let weights = logits.iter().map(|logit| logit.exp()).collect();
        Self { policy, organic, begin, end, logits, weights, taken: vec![false; count], head: 0, position: 0 }
    }

    /// Returns the probability that the remaining candidate `shown` comes next.
    fn probability(&self, shown: usize) -> f64 {
        let base = match self.is_in_window(self.head) {
            true if self.is_in_window(shown) => self.of_window(shown),
            true => 0.0,
            false => f64::from(u8::from(shown == self.head)),
        };
        if !self.is_epsilon_slot() {
            return base;
        }
        let (count, is_member) = self.epsilon_pool(shown);
        let uniform = if is_member { 1.0 / count as f64 } else { 0.0 };
        (1.0 - self.policy.epsilon) * base + self.policy.epsilon * uniform
    }

    /// Returns whether an organic index is in the window. Candidates before the window are placed before it, so the
    /// window is drawn exactly while the first remaining candidate is in it.
    fn is_in_window(&self, index: usize) -> bool {
        (self.begin..self.end).contains(&index)
    }

    /// Returns the Plackett-Luce probability of a remaining candidate of the window.
    fn of_window(&self, shown: usize) -> f64 {
        let left = || (self.begin..self.end).filter(|index| !self.taken[*index]).map(|index| index - self.begin);
        let sum: f64 = left().map(|at| self.weights[at]).sum();
        let at = shown - self.begin;
        if sum > f64::MIN_POSITIVE {
            return self.weights[at] / sum;
        }
        // All remaining weights underflow, so normalise by the best remaining candidate.
        let best = left().map(|at| self.logits[at]).fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = left().map(|at| (self.logits[at] - best).exp()).sum();
        (self.logits[at] - best).exp() / sum
    }

    fn is_epsilon_slot(&self) -> bool {
        let slot = self.organic.slots.get(self.position);
        self.policy.epsilon > 0.0 && slot.is_some_and(|slot| self.policy.epsilon_slots.contains(slot))
    }

    /// Returns the number of candidates that may fill an ε-slot, and whether `shown` is one of them.
    fn epsilon_pool(&self, shown: usize) -> (usize, bool) {
        let (mut count, mut is_member) = (0, false);
        for index in (self.head..self.taken.len()).filter(|index| !self.taken[*index]) {
            if count == self.policy.epsilon_candidates.max(1) {
                break;
            }
            count += 1;
            is_member |= index == shown;
        }
        (count.max(1), is_member)
    }

    fn take(&mut self, shown: usize) {
        self.taken[shown] = true;
        self.position += 1;
        while self.taken.get(self.head) == Some(&true) {
            self.head += 1;
        }
    }

    /// Draws the first `position_count` positions. The window is sorted only once, because ε-slots select candidates
    /// independently of the Gumbel noise, so the rest keeps its distribution.
    fn draw(mut self, random: &mut Random, position_count: usize) -> Vec<usize> {
        let mut window: Vec<(usize, f64)> =
            self.logits.iter().enumerate().map(|(at, logit)| (self.begin + at, logit + random.gumbel())).collect();
        window.sort_by(|a, b| b.1.total_cmp(&a.1));
        let mut window = window.into_iter().map(|(index, _)| index).peekable();
        let count = self.taken.len();
        let mut order = Vec::with_capacity(count);
        for _ in 0..position_count.min(count) {
            let is_random = self.is_epsilon_slot() && random.unit() < self.policy.epsilon;
            let shown = if is_random {
                let nth = random.below(self.epsilon_pool(count).0);
                (self.head..count).filter(|index| !self.taken[*index]).nth(nth).unwrap_or(self.head)
            } else if self.is_in_window(self.head) {
                while window.next_if(|index| self.taken[*index]).is_some() {}
                window.next().unwrap_or(self.head)
            } else {
                self.head
            };
            order.push(shown);
            self.take(shown);
        }
        order
    }
}

/// Returns the logits by index in the window: the score with that rank, in standard deviations from the best, divided
/// by the temperature.
fn logits(scores: &[f32], temperature: f64) -> Vec<f64> {
    let mut utilities: Vec<f64> = scores.iter().map(|score| f64::from(*score)).collect();
    utilities.sort_by(|a, b| b.total_cmp(a));
    let Some(&best) = utilities.first() else { return utilities };
    let count = utilities.len() as f64;
    let mean = utilities.iter().sum::<f64>() / count;
    let deviation = (utilities.iter().map(|utility| (utility - mean).powi(2)).sum::<f64>() / count).sqrt();
    let scale = if deviation > 0.0 && deviation.is_finite() { deviation * temperature } else { f64::INFINITY };
    utilities.iter().map(|utility| (utility - best) / scale).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn organic<'a>(scores: &'a [f32], slots: &'a [usize]) -> OrganicList<'a> {
        OrganicList { scores, slots }
    }

    fn policy(temperature: f64, first_slot: usize, top: usize) -> Exploration {
        Exploration { temperature, first_slot, top, share: 1.0, ..Exploration::default() }
    }

    /// Returns all orders of `count` candidates.
    fn orders(count: usize) -> Vec<Vec<usize>> {
        if count == 0 {
            return vec![Vec::new()];
        }
        let shorter = orders(count - 1);
        (0..count)
            .flat_map(|at| {
                shorter.iter().map(move |order| {
                    let mut order = order.clone();
                    order.insert(at, count - 1);
                    order
                })
            })
            .collect()
    }

    /// The 0.9999 quantile of chi-square by the approximation of Wilson and Hilferty. Seeds are fixed, so a failure is
    /// a bug.
    fn chi_square_limit(freedom: f64) -> f64 {
        freedom * (1.0 - 2.0 / (9.0 * freedom) + 3.719 * (2.0 / (9.0 * freedom)).sqrt()).powi(3)
    }

    /// Draws, counts whole orders, and compares with the stated joint probabilities.
    fn check_frequencies(policy: &Exploration, organic: OrganicList, seed: u64) {
        const DRAWS: usize = 20_000;
        let mut counts: HashMap<Vec<usize>, usize> = HashMap::new();
        let mut seeds = Random::new(seed);
        for _ in 0..DRAWS {
            let drawn = policy.draw(organic, seeds.bits());
            assert!((joint(&drawn.conditionals) - joint(&policy.conditionals(organic, &drawn.order))).abs() < 1e-12);
            *counts.entry(drawn.order).or_default() += 1;
        }
        let (mut statistic, mut cells, mut total, mut rare) = (0.0, 0.0, 0.0, (0.0, 0.0));
        for order in orders(organic.scores.len()) {
            let probability = joint(&policy.conditionals(organic, &order));
            let count = counts.get(&order).copied().unwrap_or(0) as f64;
            total += probability;
            let expected = probability * DRAWS as f64;
            if expected < 5.0 {
                assert!(probability > 0.0 || count == 0.0, "{order:?} is impossible but was drawn");
                rare = (rare.0 + expected, rare.1 + count);
                continue;
            }
            statistic += (count - expected).powi(2) / expected;
            cells += 1.0;
        }
        if rare.0 >= 5.0 {
            statistic += (rare.1 - rare.0).powi(2) / rare.0;
            cells += 1.0;
        }
        assert!((total - 1.0).abs() < 1e-9, "all orders together have probability {total}");
        if cells > 1.0 {
            assert!(statistic < chi_square_limit(cells - 1.0), "{statistic} of {cells} cells; {policy:?}");
        }
    }

    #[test]
    fn frequencies_match_the_stated_probabilities() {
        let scores = [0.9, 0.7, 0.65, 0.2, 0.1];
        let slots = [1, 2, 3, 4, 5];
        let epsilon = |slots: &[usize], epsilon, candidates| Exploration {
            epsilon_slots: slots.to_vec(),
            epsilon,
            epsilon_candidates: candidates,
            ..policy(0.0, 1, 0)
        };
        let policies = [
            policy(0.5, 1, 5),
            policy(1.0, 2, 3),
            Exploration { share: 0.3, ..policy(2.0, 1, 4) },
            epsilon(&[1], 1.0, 3),
            epsilon(&[2, 4], 0.5, 2),
            Exploration { temperature: 0.7, top: 3, ..epsilon(&[1, 3], 0.4, 4) },
            Exploration { temperature: 1.5, first_slot: 2, top: 2, share: 0.6, ..epsilon(&[1], 0.9, 5) },
        ];
        for (seed, policy) in policies.iter().enumerate() {
            check_frequencies(policy, organic(&scores, &slots), seed as u64);
            // Pins have slots 1 and 4.
            check_frequencies(policy, organic(&scores, &[2, 3, 5, 6, 7]), 100 + seed as u64);
        }
    }

    #[test]
    fn marginals_agree_with_the_sum_over_all_orders() {
        let scores = [0.9, 0.7, 0.65, 0.2, 0.1];
        let slots = [1, 2, 3, 4, 5];
        let plain = Exploration { share: 0.7, ..policy(0.8, 1, 5) };
        let later = policy(0.5, 2, 3);
        let slotted = Exploration { epsilon_slots: vec![3], epsilon: 0.5, epsilon_candidates: 2, ..plain.clone() };
        let organic = organic(&scores, &slots);
        for (policy, shown) in [(plain, [1, 0, 3, 2, 4]), (later, [0, 3, 1, 2, 4]), (slotted, [1, 0, 3, 2, 4])] {
            let found = policy.marginals(organic, &shown, 4000, 9);
            let drawn = policy.first_slot - 1;
            assert_eq!(found[drawn].standard_error, 0.0, "the first drawn position needs no sample");
            for (position, marginal) in found.iter().enumerate() {
                let with = orders(5).into_iter().filter(|order| order[position] == shown[position]);
                let exact: f64 = with.map(|order| joint(&policy.conditionals(organic, &order))).sum();
                let error = (marginal.probability - exact).abs();
                assert!(
                    error <= 4.0 * marginal.standard_error + 1e-9,
                    "position {position}: {marginal:?}, exactly {exact}"
                );
                assert!(marginal.standard_error < 0.01);
            }
        }
    }

    #[test]
    fn page_probabilities_agree_with_the_sum_over_all_orders() {
        let scores = [0.9, 0.7, 0.65, 0.2, 0.1];
        let slots = [1, 2, 3, 4, 5];
        let plain = Exploration { share: 0.7, ..policy(0.8, 1, 5) };
        let slotted = Exploration { epsilon_slots: vec![3], epsilon: 0.5, epsilon_candidates: 2, ..plain.clone() };
        let organic = organic(&scores, &slots);
        for policy in [plain, slotted, Exploration::default()] {
            let page = if policy.is_random() { [1, 0, 3] } else { [0, 1, 2] };
            let found = policy.page_probabilities(organic, &page, 4000, 9);
            for (candidate, probabilities) in page.iter().zip(&found) {
                for (position, probability) in probabilities.iter().enumerate() {
                    let with = orders(5).into_iter().filter(|order| order[position] == *candidate);
                    let exact: f64 = with.map(|order| joint(&policy.conditionals(organic, &order))).sum();
                    assert!((f64::from(*probability) - exact).abs() < 0.03, "{candidate} at {position}: {probability}");
                }
            }
        }
    }

    #[test]
    fn a_higher_temperature_varies_more() {
        let (scores, slots) = ([0.9, 0.5, 0.1], [1, 2, 3]);
        let first = |temperature| policy(temperature, 1, 3).conditionals(organic(&scores, &slots), &[0])[0];
        assert!(first(0.1) > 0.99 && first(0.1) > first(1.0) && first(1.0) > first(100.0));
        assert!((first(1e9) - 1.0 / 3.0).abs() < 1e-6);
    }

    #[test]
    fn probabilities_of_distant_scores_are_finite() {
        let (scores, slots) = ([1e30, 1.0, 0.5, 0.0], [1, 2, 3, 4]);
        let policy = policy(1e-12, 1, 4);
        let conditionals = policy.conditionals(organic(&scores, &slots), &[0, 1, 2, 3]);
        assert!(conditionals.iter().all(|p| p.is_finite() && *p > 0.0), "{conditionals:?}");
        let equal = policy.conditionals(organic(&[0.0; 4], &slots), &[3, 2, 1, 0]);
        assert_eq!(equal, [0.25, 1.0 / 3.0, 0.5, 1.0]);
    }

    fn explorations() -> impl Strategy<Value = Exploration> {
        let slots = prop::collection::btree_set(1usize..40, 0..4);
        (0.0f64..3.0, 1usize..12, 0usize..30, slots, 0.0f64..=1.0, 1usize..10, 0.0f64..=1.0).prop_map(
            |(temperature, first_slot, top, slots, epsilon, epsilon_candidates, share)| Exploration {
                temperature: if temperature < 0.3 { 0.0 } else { temperature },
                first_slot,
                top,
                epsilon_slots: slots.into_iter().collect(),
                epsilon,
                epsilon_candidates,
                share,
            },
        )
    }

    proptest! {
        #[test]
        fn each_candidate_appears_once_and_does_not_rise_beyond_the_window(
            policy in explorations(), scores in prop::collection::vec(-1e3f32..1e3, 0..40),
            gaps in prop::collection::vec(1usize..3, 40), seed in any::<u64>(),
        ) {
            let slots: Vec<usize> = gaps.iter().scan(0, |slot, gap| { *slot += gap; Some(*slot) }).collect();
            let organic = organic(&scores, &slots[..scores.len()]);
            let drawn = policy.draw(organic, seed);
            let mut sorted = drawn.order.clone();
            sorted.sort_unstable();
            prop_assert_eq!(sorted, (0..scores.len()).collect::<Vec<_>>());
            prop_assert!(drawn.conditionals.iter().all(|p| *p > 0.0 && *p <= 1.0 + 1e-12), "{:?}", drawn.conditionals);
            prop_assert_eq!(&drawn, &policy.draw(organic, seed));
            let reach = policy.top.max(policy.epsilon_candidates);
            for (position, shown) in drawn.order.iter().enumerate() {
                prop_assert!(*shown < position + reach.max(1), "position {} shows organic index {}", position, shown);
                if policy.epsilon_slots.is_empty() && organic.slots[position] < policy.first_slot {
                    prop_assert_eq!(*shown, position, "slots before the first one do not change");
                }
            }
        }

        #[test]
        fn without_temperature_and_epsilon_the_order_is_organic(
            policy in explorations(), scores in prop::collection::vec(-1e3f32..1e3, 0..40), seed in any::<u64>(),
        ) {
            let policy = Exploration { temperature: 0.0, epsilon: 0.0, ..policy };
            let slots: Vec<usize> = (1..=scores.len()).collect();
            let drawn = policy.draw(organic(&scores, &slots), seed);
            prop_assert_eq!(drawn.order, (0..scores.len()).collect::<Vec<_>>());
            prop_assert!(drawn.conditionals.iter().all(|p| *p == 1.0));
        }

        #[test]
        fn the_probabilities_of_the_next_candidate_sum_to_one(
            policy in explorations(), scores in prop::collection::vec(-10f32..10.0, 1..15), seed in any::<u64>(), cut in 0usize..15,
        ) {
            let slots: Vec<usize> = (1..=scores.len()).collect();
            let organic = organic(&scores, &slots);
            let drawn = policy.draw(organic, seed);
            let prefix = &drawn.order[..cut.min(scores.len() - 1)];
            let next = |shown: usize| {
                let order: Vec<usize> = prefix.iter().copied().chain([shown]).collect();
                policy.conditionals(organic, &order)[prefix.len()]
            };
            let sum: f64 = (0..scores.len()).filter(|shown| !prefix.contains(shown)).map(next).sum();
            prop_assert!((sum - 1.0).abs() < 1e-9, "{}", sum);
        }
    }
}
