//! Answers that vary on purpose, with the probability of everything that was shown.
//!
//! Places are filled one after the other from the organic list. Three rules say how, and nothing else is random:
//!
//! 1. A window of the organic list, `top` places long from the first place whose slot is `first_slot` or later, is drawn by
//!    Plackett and Luce: the next of those that are left is `i` with probability proportional to `exp(worth(i) / temperature)`.
//!    The draw adds a Gumbel number to each worth and sorts (Gumbel-top-k; Kool, van Hoof and Welling 2019).
//! 2. An ε-slot is filled, with probability `epsilon`, uniformly from the first `epsilon_candidates` that are left.
//! 3. Only a `share` of all answers explores; the others show the organic list.
//!
//! The worth of an organic place is the window's score of that rank, in standard deviations of the window's scores. So a
//! temperature means the same for every model, and as it falls to 0 the order becomes the organic one, also where diversity
//! made that differ from the order of scores. Nothing from below the window is lifted by rule 1, and by rule 2 nothing from
//! further than `epsilon_candidates` down.
use super::Random;

/// Places of the organic list that exploration may reach.
pub const EXPLORED_MAX: usize = 250;

/// How much answers vary on purpose.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Exploration {
    /// In standard deviations of the window's scores; 0: rule 1 is off.
    pub temperature: f64,
    /// The first slot that rule 1 may change, from 1.
    pub first_slot: usize,
    /// Places of the window.
    pub top: usize,
    /// From 1, ascending.
    pub epsilon_slots: Vec<usize>,
    /// 0 to 1.
    pub epsilon: f64,
    /// At least 1 where there are ε-slots.
    pub epsilon_candidates: usize,
    /// Of the answers, 0 to 1.
    pub share: f64,
}

/// What exploration starts from: the organic list, best first, without what is pinned.
#[derive(Debug, Clone, Copy)]
pub struct Organic<'a> {
    /// By organic place.
    pub scores: &'a [f32],
    /// By organic place: the slot of the answer that this place is, from 1, ascending; pins have the others.
    pub slots: &'a [usize],
}

/// An order that was drawn.
#[derive(Debug, Clone, PartialEq)]
pub struct Drawn {
    /// By place: which organic place is shown there.
    pub order: Vec<usize>,
    /// Whether rule 3 let this answer explore.
    pub explored: bool,
    /// By place: the probability of what is shown there, given what is shown before it. Exact.
    pub conditionals: Vec<f64>,
}

/// The probability that the policy shows an item at a place, whatever is shown before it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Marginal {
    pub probability: f64,
    /// 0: the probability is exact.
    pub standard_error: f64,
}

impl Exploration {
    fn is_random(&self) -> bool {
        self.share > 0.0 && (self.temperature > 0.0 || self.has_epsilon_slots())
    }

    /// Draws an order. The same seed gives the same order.
    pub fn draw(&self, organic: Organic, seed: u64) -> Drawn {
        let mut random = Random::new(seed);
        let explored = self.is_random() && random.unit() < self.share;
        let order = match explored {
            true => Walk::new(self, organic).draw(&mut random, organic.scores.len()),
            false => (0..organic.scores.len()).collect(),
        };
        let conditionals = self.conditionals(organic, &order);
        Drawn { order, explored, conditionals }
    }

    /// By place: the probability of what `order` shows there given what it shows before; of the policy as a whole, rule 3
    /// included. Exact. The order has each organic place at most once; where it is shorter, only its places are told.
    pub fn conditionals(&self, organic: Organic, order: &[usize]) -> Vec<f64> {
        if !self.is_random() {
            return order.iter().enumerate().map(|(place, shown)| f64::from(u8::from(place == *shown))).collect();
        }
        let mut walk = Walk::new(self, organic);
        // The probability that this answer explores, given what was shown so far.
        let mut exploring = self.share;
        let mut conditionals = Vec::with_capacity(order.len());
        let mut is_organic = true;
        for (place, &shown) in order.iter().enumerate() {
            let of_exploring = walk.probability(shown);
            let of_organic = f64::from(u8::from(is_organic && place == shown));
            let probability = exploring * of_exploring + (1.0 - exploring) * of_organic;
            conditionals.push(probability);
            exploring = if probability > 0.0 { exploring * of_exploring / probability } else { 0.0 };
            is_organic &= place == shown;
            walk.take(shown);
        }
        conditionals
    }

    /// For each place of `order`: the probability that the policy shows that item at that place. Exact where the places before
    /// are certain, and so for the first place that is drawn; otherwise the mean of `sample_count` samples. `seed` should not
    /// be the answer's own. What the policy can show never has probability 0.
    pub fn marginals(&self, organic: Organic, order: &[usize], sample_count: usize, seed: u64) -> Vec<Marginal> {
        let of_organic = |place: usize, shown: usize| f64::from(u8::from(place == shown));
        let sums = match (self.is_random(), self.has_epsilon_slots()) {
            (false, _) => Vec::new(),
            (true, false) => self.arrivals(organic, order, sample_count.max(2), seed),
            (true, true) => self.prefixes(organic, order, sample_count.max(2), seed),
        };
        let marginal = |(place, &shown): (usize, &usize)| match sums.get(place) {
            None => Marginal { probability: of_organic(place, shown), standard_error: 0.0 },
            Some(sum) => Marginal {
                probability: self.share * sum.mean() + (1.0 - self.share) * of_organic(place, shown),
                standard_error: self.share * sum.standard_error(),
            },
        };
        order.iter().enumerate().map(marginal).collect()
    }

    fn has_epsilon_slots(&self) -> bool {
        !self.epsilon_slots.is_empty() && self.epsilon > 0.0
    }

    /// Without ε-slots: the draw is a race, in which candidates of the window arrive after exponential times whose rates are
    /// their weights. PolicyInput when all others arrive, the probability that this one arrives at its place is known: that is one
    /// sample, and never 0.
    fn arrivals(&self, organic: Organic, order: &[usize], sample_count: usize, seed: u64) -> Vec<Samples> {
        let walk = Walk::new(self, organic);
        let (begin, end) = (walk.begin, walk.end);
        let mut random = Random::new(seed);
        let mut sums = vec![Samples::default(); order.len()];
        let mut times: Vec<(f64, usize)> = Vec::with_capacity(end - begin);
        for _ in 0..sample_count {
            times.clear();
            // Logarithms of the times: rates differ by many powers of ten.
            times.extend(walk.logits.iter().enumerate().map(|(at, logit)| (-random.gumbel() - logit, begin + at)));
            times.sort_by(|a, b| a.0.total_cmp(&b.0));
            for (place, (&shown, sum)) in order.iter().zip(&mut sums).enumerate() {
                let is_drawn = walk.is_in_window(place) && walk.is_in_window(shown);
                sum.add(match is_drawn {
                    false => f64::from(u8::from(place == shown)),
                    true if place == begin => walk.of_window(shown),
                    true => arrival(&times, shown, place - begin, walk.logits[shown - begin]),
                });
            }
        }
        sums
    }

    /// With ε-slots: the probability of each place given a drawn prefix is one sample. The order itself is the last of the
    /// prefixes, so that nothing which was shown has probability 0.
    fn prefixes(&self, organic: Organic, order: &[usize], sample_count: usize, seed: u64) -> Vec<Samples> {
        let mut random = Random::new(seed);
        let mut sums = vec![Samples::default(); order.len()];
        for sample in 1..=sample_count {
            let prefix = match sample == sample_count {
                true => order.to_vec(),
                false => Walk::new(self, organic).draw(&mut random, order.len()),
            };
            let mut walk = Walk::new(self, organic);
            for (place, (&shown, sum)) in order.iter().zip(&mut sums).enumerate() {
                sum.add(if walk.taken[shown] { 0.0 } else { walk.probability(shown) });
                walk.take(prefix[place]);
            }
        }
        sums
    }
}

/// The probability that one with this logit arrives after exactly `before` of the others. `times` ascend.
fn arrival(times: &[(f64, usize)], shown: usize, before: usize, logit: f64) -> f64 {
    let mut others = times.iter().filter(|(_, place)| *place != shown).map(|(time, _)| (time + logit).exp());
    let after = if before == 0 { 0.0 } else { others.nth(before - 1).unwrap_or(f64::INFINITY) };
    let until = others.next().unwrap_or(f64::INFINITY);
    ((-after).exp() * -(after - until).exp_m1()).max(f64::MIN_POSITIVE)
}

/// The mean of samples, and how sure it is.
#[derive(Debug, Clone, Copy, Default)]
struct Samples {
    count: f64,
    first: f64,
    /// Of differences to the first sample, so that equal samples have no variance.
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

/// The probability of a whole page, from its conditional probabilities.
pub fn joint(conditionals: &[f64]) -> f64 {
    conditionals.iter().product()
}

/// An exploring answer in the making: what is left, and what may come next.
struct Walk<'a> {
    policy: &'a Exploration,
    organic: Organic<'a>,
    /// The window: organic places `begin..end`.
    begin: usize,
    end: usize,
    /// By place of the window: worth / temperature, at most 0.
    logits: Vec<f64>,
    /// Their exponentials.
    weights: Vec<f64>,
    /// By organic place.
    taken: Vec<bool>,
    /// The first organic place that is left.
    head: usize,
    place: usize,
}

impl<'a> Walk<'a> {
    fn new(policy: &'a Exploration, organic: Organic<'a>) -> Self {
        let count = organic.scores.len().min(organic.slots.len());
        let begin = organic.slots.partition_point(|slot| *slot < policy.first_slot).min(count);
        let length = if policy.temperature > 0.0 { policy.top.min(count - begin) } else { 0 };
        let end = begin + length;
        let logits = logits(&organic.scores[begin..end], policy.temperature);
        let weights = logits.iter().map(|logit| logit.exp()).collect();
        Self { policy, organic, begin, end, logits, weights, taken: vec![false; count], head: 0, place: 0 }
    }

    /// The probability that `shown`, which is left, comes next.
    fn probability(&self, shown: usize) -> f64 {
        let base = match self.is_in_window(self.head) {
            true if self.is_in_window(shown) => self.of_window(shown),
            true => 0.0,
            false => f64::from(u8::from(shown == self.head)),
        };
        if !self.is_epsilon_slot() {
            return base;
        }
        let (count, is_near) = self.near(shown);
        let uniform = if is_near { 1.0 / count as f64 } else { 0.0 };
        (1.0 - self.policy.epsilon) * base + self.policy.epsilon * uniform
    }

    /// What comes before the window is shown before it; so the window is open exactly while the first that is left is in it.
    fn is_in_window(&self, place: usize) -> bool {
        (self.begin..self.end).contains(&place)
    }

    fn of_window(&self, shown: usize) -> f64 {
        let left = || (self.begin..self.end).filter(|place| !self.taken[*place]).map(|place| place - self.begin);
        let sum: f64 = left().map(|at| self.weights[at]).sum();
        let at = shown - self.begin;
        if sum > f64::MIN_POSITIVE {
            return self.weights[at] / sum;
        }
        // All that is left is far below what was taken: once more, from the best that is left.
        let best = left().map(|at| self.logits[at]).fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = left().map(|at| (self.logits[at] - best).exp()).sum();
        (self.logits[at] - best).exp() / sum
    }

    fn is_epsilon_slot(&self) -> bool {
        let slot = self.organic.slots.get(self.place);
        self.policy.epsilon > 0.0 && slot.is_some_and(|slot| self.policy.epsilon_slots.contains(slot))
    }

    /// How many an ε-slot is filled from, and whether `shown` is one of them.
    fn near(&self, shown: usize) -> (usize, bool) {
        let (mut count, mut is_near) = (0, false);
        for place in (self.head..self.taken.len()).filter(|place| !self.taken[*place]) {
            if count == self.policy.epsilon_candidates.max(1) {
                break;
            }
            count += 1;
            is_near |= place == shown;
        }
        (count.max(1), is_near)
    }

    fn take(&mut self, shown: usize) {
        self.taken[shown] = true;
        self.place += 1;
        while self.taken.get(self.head) == Some(&true) {
            self.head += 1;
        }
    }

    /// The first `place_count` places, drawn. The window is sorted once: what an ε-slot takes out of it is chosen without
    /// regard to the Gumbel numbers, so the rest keeps its distribution.
    fn draw(mut self, random: &mut Random, place_count: usize) -> Vec<usize> {
        let mut window: Vec<(usize, f64)> =
            self.logits.iter().enumerate().map(|(at, logit)| (self.begin + at, logit + random.gumbel())).collect();
        window.sort_by(|a, b| b.1.total_cmp(&a.1));
        let mut window = window.into_iter().map(|(place, _)| place).peekable();
        let count = self.taken.len();
        let mut order = Vec::with_capacity(count);
        for _ in 0..place_count.min(count) {
            let is_random = self.is_epsilon_slot() && random.unit() < self.policy.epsilon;
            let shown = if is_random {
                let nth = random.below(self.near(count).0);
                (self.head..count).filter(|place| !self.taken[*place]).nth(nth).unwrap_or(self.head)
            } else if self.is_in_window(self.head) {
                while window.next_if(|place| self.taken[*place]).is_some() {}
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

/// By place of the window: its score of that rank, in standard deviations from the best, divided by the temperature.
fn logits(scores: &[f32], temperature: f64) -> Vec<f64> {
    let mut worths: Vec<f64> = scores.iter().map(|score| f64::from(*score)).collect();
    worths.sort_by(|a, b| b.total_cmp(a));
    let Some(&best) = worths.first() else { return worths };
    let count = worths.len() as f64;
    let mean = worths.iter().sum::<f64>() / count;
    let deviation = (worths.iter().map(|worth| (worth - mean).powi(2)).sum::<f64>() / count).sqrt();
    let scale = if deviation > 0.0 && deviation.is_finite() { deviation * temperature } else { f64::INFINITY };
    worths.iter().map(|worth| (worth - best) / scale).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn organic<'a>(scores: &'a [f32], slots: &'a [usize]) -> Organic<'a> {
        Organic { scores, slots }
    }

    fn policy(temperature: f64, first_slot: usize, top: usize) -> Exploration {
        Exploration { temperature, first_slot, top, share: 1.0, ..Exploration::default() }
    }

    /// All orders of `count` places.
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

    /// The 0.9999 quantile of chi-square, by Wilson and Hilferty: seeds are fixed, so this fails only where the code is wrong.
    fn chi_square_limit(freedom: f64) -> f64 {
        freedom * (1.0 - 2.0 / (9.0 * freedom) + 3.719 * (2.0 / (9.0 * freedom)).sqrt()).powi(3)
    }

    /// Draws, counts whole orders, and compares with the stated joint probabilities.
    fn check_frequencies(policy: &Exploration, organic: Organic, seed: u64) {
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
            let due = probability * DRAWS as f64;
            if due < 5.0 {
                assert!(probability > 0.0 || count == 0.0, "{order:?} is impossible and was drawn");
                rare = (rare.0 + due, rare.1 + count);
                continue;
            }
            statistic += (count - due).powi(2) / due;
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
    fn frequencies_are_the_stated_probabilities() {
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
            assert_eq!(found[drawn].standard_error, 0.0, "the first drawn place needs no sample");
            for (place, marginal) in found.iter().enumerate() {
                let with = orders(5).into_iter().filter(|order| order[place] == shown[place]);
                let exact: f64 = with.map(|order| joint(&policy.conditionals(organic, &order))).sum();
                let error = (marginal.probability - exact).abs();
                assert!(error <= 4.0 * marginal.standard_error + 1e-9, "place {place}: {marginal:?}, exactly {exact}");
                assert!(marginal.standard_error < 0.01);
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
    fn probabilities_of_what_is_far_apart_are_numbers() {
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
        fn nobody_is_lost_or_doubled_or_rises_beyond_the_window(
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
            for (place, shown) in drawn.order.iter().enumerate() {
                prop_assert!(*shown < place + reach.max(1), "place {} shows organic place {}", place, shown);
                if policy.epsilon_slots.is_empty() && organic.slots[place] < policy.first_slot {
                    prop_assert_eq!(*shown, place, "before the first slot nothing changes");
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
        fn what_may_come_next_has_probability_one_together(
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
