//! BG/NBD (Fader, Hardie and Lee 2005) and MBG/NBD (Batislam, Denizel and Filiztekin 2007).
//!
//! While active, a customer purchases at random with a rate that is gamma distributed among customers (shape `r`, rate
//! `alpha`). After each purchase the customer drops out for good with a probability that is beta distributed (`a`,
//! `b`). In BG/NBD the first chance to drop out is after the first repeat purchase, in MBG/NBD after the first
//! purchase. With y chances to drop out, which is x or x + 1, both models have the same formulas.
use crate::{
    error::LoyaltyError,
    history::PurchaseSummary,
    optimize::{Minimum, Stop, minimize},
    special::{digamma, scaled_hypergeometric},
};
use lodestone_core::statistics::ln_gamma;
use rayon::prelude::*;

/// Whether customers may drop out right after their first purchase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Dropout {
    /// BG/NBD: only after repeat purchases.
    AfterRepeatPurchases,
    /// MBG/NBD: after every purchase.
    AfterEveryPurchase,
}

impl Dropout {
    pub fn model_name(self) -> &'static str {
        match self {
            Self::AfterRepeatPurchases => "bg-nbd",
            Self::AfterEveryPurchase => "mbg-nbd",
        }
    }

    /// The number of chances to drop out (y) after `frequency` repeat purchases.
    fn chances(self, frequency: f64) -> f64 {
        match self {
            Self::AfterRepeatPurchases => frequency,
            Self::AfterEveryPurchase => frequency + 1.0,
        }
    }
}

/// A fitted model. Times have the unit of the summaries from which it was fitted.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BetaGeometric {
    pub dropout: Dropout,
    /// Shape of the purchase rates.
    pub r: f64,
    /// Rate parameter of the purchase rates, in time units.
    pub alpha: f64,
    /// Parameters of the dropout probability.
    pub a: f64,
    pub b: f64,
    /// Maximised log-likelihood over all customers.
    pub log_likelihood: f64,
}

/// Customers with the same summary.
struct Group {
    /// Index of the frequency in [`Groups::frequencies`].
    frequency: u32,
    recency: f64,
    age: f64,
    count: f64,
}

/// Customers by summary, and by frequency alone, on which all terms with gamma functions depend.
struct Groups {
    groups: Vec<Group>,
    frequencies: Vec<(f64, f64)>,
    count: f64,
    age_mean: f64,
}

/// Groups whose terms one task sums. The sum does not depend on the number of threads.
const CHUNK: usize = 4096;
/// Groups of the first, coarse fit, from which the fit on all groups starts.
const COARSE: usize = 20_000;
/// Largest absolute logarithms of r, alpha, a and b. At a bound the likelihood is nearly flat: a large r and alpha mean
/// that all customers have the same rate, a small a that nobody drops out.
const LOG_PARAMETERS_MAX: [f64; 4] = [9.0, 16.0, 9.0, 9.0];

fn within_bounds(logs: &[f64]) -> [f64; 4] {
    std::array::from_fn(|index| logs[index].clamp(-LOG_PARAMETERS_MAX[index], LOG_PARAMETERS_MAX[index]))
}

impl Groups {
    fn new(summaries: &[PurchaseSummary]) -> Self {
        let mut keys: Vec<(u32, u64, u64)> = summaries
            .par_iter()
            // Times are at least 0, so the order of their bits is their order; adding 0 removes the sign of -0.
            .map(|of| (of.frequency, (of.recency + 0.0).to_bits(), (of.age + 0.0).to_bits()))
            .collect();
        keys.par_sort_unstable();
        let mut groups: Vec<Group> = Vec::new();
        let mut frequencies: Vec<(f64, f64)> = Vec::new();
        let mut last = None;
        for key in keys {
            let (frequency, recency, age) = (f64::from(key.0), f64::from_bits(key.1), f64::from_bits(key.2));
            match frequencies.last_mut().filter(|of| of.0 == frequency) {
                Some(of) => of.1 += 1.0,
                None => frequencies.push((frequency, 1.0)),
            }
            match groups.last_mut().filter(|_| last == Some(key)) {
                Some(group) => group.count += 1.0,
                None => groups.push(Group { frequency: frequencies.len() as u32 - 1, recency, age, count: 1.0 }),
            }
            last = Some(key);
        }
        let count = summaries.len() as f64;
        let age_mean = groups.iter().map(|group| group.count * group.age).sum::<f64>() / count;
        Self { groups, frequencies, count, age_mean }
    }

    /// A systematic sample of the groups, for a first fit.
    fn sample(&self) -> Option<Self> {
        let stride = self.groups.len() / COARSE;
        if stride < 2 {
            return None;
        }
        let mut frequencies: Vec<(f64, f64)> = self.frequencies.iter().map(|of| (of.0, 0.0)).collect();
        let mut groups = Vec::new();
        let mut count = 0.0;
        for group in self.groups.iter().step_by(stride) {
            // Large groups are few and would dominate the sample, so each one counts for its stride.
            let weight = if group.count > stride as f64 { group.count / stride as f64 } else { group.count };
            frequencies[group.frequency as usize].1 += weight;
            count += weight;
            groups.push(Group { count: weight, ..*group });
        }
        Some(Self { groups, frequencies, count, age_mean: self.age_mean })
    }
}

impl BetaGeometric {
    /// Fits the parameters by maximum likelihood. Customers with the same summary are one term of the sum; gradients
    /// are analytic; the optimiser works on the logarithms of the parameters.
    ///
    /// Parameters that the data does not determine end at a bound, such as a small `a` if nobody drops out. Returns an
    /// error if a summary is impossible, if nobody purchased again, or if the optimiser does not converge.
    pub fn fit(summaries: &[PurchaseSummary], dropout: Dropout) -> Result<Self, LoyaltyError> {
        if summaries.is_empty() {
            return Err(LoyaltyError::NoCustomers);
        }
        summaries.iter().enumerate().try_for_each(|(index, summary)| summary.check(index))?;
        let model = dropout.model_name();
        if summaries.iter().all(|summary| summary.frequency == 0) {
            return Err(LoyaltyError::NoRepeatPurchases { model });
        }
        let groups = Groups::new(summaries);
        let mut start = vec![0.0, (groups.age_mean / 4.0).max(1e-3).ln(), 0.0, 0.5];
        if let Some(sample) = groups.sample() {
            let coarse = Self::maximize(&sample, dropout, start.clone(), 1e-4);
            if coarse.converged {
                start = coarse.at;
            }
        }
        let minimum = Self::maximize(&groups, dropout, start, 1e-7);
        if !minimum.converged {
            return Err(LoyaltyError::NotConverged { model, iterations: minimum.iterations });
        }
        let parameters = within_bounds(&minimum.at).map(f64::exp);
        Ok(Self {
            dropout,
            r: parameters[0],
            alpha: parameters[1],
            a: parameters[2],
            b: parameters[3],
            log_likelihood: -minimum.value * groups.count,
        })
    }

    fn maximize(groups: &Groups, dropout: Dropout, start: Vec<f64>, gradient_max: f64) -> Minimum {
        minimize(start, Stop { iterations_max: 500, gradient_max }, |logs, gradient| {
            let bounded = within_bounds(logs);
            let parameters = bounded.map(f64::exp);
            let (value, slopes) = log_likelihood(groups, dropout, parameters);
            for index in 0..4 {
                // Constant beyond the bounds.
                let is_inside = bounded[index] == logs[index];
                gradient[index] = if is_inside { -slopes[index] * parameters[index] / groups.count } else { 0.0 };
            }
            -value / groups.count
        })
    }

    /// Returns the log-likelihood of other customers.
    pub fn log_likelihood_of(&self, summaries: &[PurchaseSummary]) -> Result<f64, LoyaltyError> {
        summaries.iter().enumerate().try_for_each(|(index, summary)| summary.check(index))?;
        Ok(log_likelihood(&Groups::new(summaries), self.dropout, [self.r, self.alpha, self.a, self.b]).0)
    }

    /// Returns the logarithm of the odds of having dropped out; minus infinity if there was no chance.
    fn log_odds_of_dropout(&self, of: &PurchaseSummary) -> f64 {
        let x = f64::from(of.frequency);
        let y = self.dropout.chances(x);
        if y == 0.0 {
            return f64::NEG_INFINITY;
        }
        (self.a / (self.b + y - 1.0)).ln() + (self.r + x) * ((self.alpha + of.age) / (self.alpha + of.recency)).ln()
    }

    /// Checks the numbers of a decoded model.
    pub(crate) fn check(&self) -> bool {
        let numbers = [self.r, self.alpha, self.a, self.b];
        numbers.iter().all(|number| number.is_finite() && *number > 0.0) && self.log_likelihood.is_finite()
    }

    /// Returns the probability that the customer is still active, from 0 to 1.
    pub fn active_probability(&self, of: &PurchaseSummary) -> f64 {
        1.0 / (1.0 + self.log_odds_of_dropout(of).exp())
    }

    /// Returns the probability of at least one purchase within the next `time`, from 0 to 1. An active customer cannot
    /// drop out before the next purchase, so this is closed form.
    pub fn purchase_probability(&self, of: &PurchaseSummary, time: f64) -> f64 {
        let shape = self.r + f64::from(of.frequency);
        let age = self.alpha + of.age;
        self.active_probability(of) * -(shape * (age / (age + time)).ln()).exp_m1()
    }

    /// Returns the expected number of purchases within the next `time` (equation 10 of Fader, Hardie and Lee 2005;
    /// equation 15 of Batislam et al. 2007).
    pub fn expected_purchases(&self, of: &PurchaseSummary, time: f64) -> f64 {
        let x = f64::from(of.frequency);
        let y = self.dropout.chances(x);
        // The formula has removable singularities at a = 1 and at c = 0.
        let away_from = |value: f64, singularity: f64| match (value - singularity).abs() < 1e-6 {
            true => singularity + 1e-6,
            false => value,
        };
        let a = away_from(self.a, 1.0);
        let c = away_from(a + self.b + y - 1.0, 0.0);
        let age = self.alpha + of.age;
        let (shape, z) = (self.r + x, time / (age + time));
        let inner = 1.0 - scaled_hypergeometric(shape, self.b + y, c, z, shape);
        (c / (a - 1.0) * inner * self.active_probability(of)).max(0.0)
    }
}

/// Returns the log-likelihood and its derivatives by r, alpha, a and b.
fn log_likelihood(groups: &Groups, dropout: Dropout, parameters: [f64; 4]) -> (f64, [f64; 4]) {
    let [r, alpha, a, b] = parameters;
    let constant = r * alpha.ln() + ln_gamma(a + b) - ln_gamma(r) - ln_gamma(b);
    let slopes = [alpha.ln() - digamma(r), r / alpha, digamma(a + b), digamma(a + b) - digamma(b)];
    let mut sum = [constant * groups.count, 0.0, 0.0, 0.0, 0.0];
    (0..4).for_each(|index| sum[index + 1] = slopes[index] * groups.count);
    // Terms that depend on the frequency alone. Per frequency: shape r + x, and the odds a / (b + y - 1).
    let by_frequency: Vec<(f64, f64)> = groups
        .frequencies
        .iter()
        .map(|(x, count)| {
            let y = dropout.chances(*x);
            sum[0] += count * (ln_gamma(r + x) + ln_gamma(b + y) - ln_gamma(a + b + y));
            sum[1] += count * digamma(r + x);
            sum[3] -= count * digamma(a + b + y);
            sum[4] += count * (digamma(b + y) - digamma(a + b + y));
            (r + x, if y > 0.0 { (a / (b + y - 1.0)).ln() } else { f64::NEG_INFINITY })
        })
        .collect();
    let chunk_sum = |chunk: &[Group]| {
        let mut sum = [0.0; 5];
        for group in chunk {
            let (shape, log_odds) = by_frequency[group.frequency as usize];
            let age = alpha + group.age;
            let log_age = age.ln();
            if log_odds == f64::NEG_INFINITY {
                sum[0] -= group.count * shape * log_age;
                sum[1] -= group.count * log_age;
                sum[2] -= group.count * shape / age;
                continue;
            }
            let recency = alpha + group.recency;
            let log_ratio = log_age - recency.ln();
            let difference = log_odds + shape * log_ratio;
            // ln(1 + e^d) and its derivative, the probability of having dropped out.
            let odds = (-difference.abs()).exp();
            let dropped = if difference > 0.0 { 1.0 / (1.0 + odds) } else { odds / (1.0 + odds) };
            sum[0] += group.count * (difference.max(0.0) + odds.ln_1p() - shape * log_age);
            sum[1] += group.count * (dropped * log_ratio - log_age);
            sum[2] -= group.count * shape * ((1.0 - dropped) / age + dropped / recency);
            sum[3] += group.count * dropped / a;
            // b + y - 1 = a / odds.
            sum[4] -= group.count * dropped * log_odds.exp() / a;
        }
        sum
    };
    let chunks: Vec<[f64; 5]> = groups.groups.par_chunks(CHUNK).map(chunk_sum).collect();
    for chunk in chunks {
        (0..5).for_each(|index| sum[index] += chunk[index]);
    }
    (sum[0], [sum[1], sum[2], sum[3], sum[4]])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulate::{purchase_times, simulate_customers};
    use proptest::prelude::*;
    use rand::{SeedableRng, rngs::StdRng};

    /// Fader, Hardie and Lee 2005, table 2, in weeks.
    const PUBLISHED: BetaGeometric = BetaGeometric {
        dropout: Dropout::AfterRepeatPurchases,
        r: 0.243,
        alpha: 4.414,
        a: 0.793,
        b: 2.426,
        log_likelihood: -9582.4,
    };
    const PARAMETERS: [f64; 4] = [0.243, 4.414, 0.793, 2.426];

    fn summary(frequency: u32, recency: f64, age: f64) -> PurchaseSummary {
        PurchaseSummary { frequency, recency, age }
    }

    #[test]
    fn the_published_customer_has_the_published_expectation() {
        // The customer of Fader, Hardie and Lee's spreadsheet: 1.226 purchases in 39 weeks.
        let expected = PUBLISHED.expected_purchases(&summary(2, 30.43, 38.86), 39.0);
        assert!((expected - 1.226).abs() < 5e-4, "{expected}");
    }

    #[test]
    fn the_fit_recovers_known_parameters() {
        let customers = simulate_customers(200_000, 78.0, 12.0, 3);
        let fitted = BetaGeometric::fit(&customers, Dropout::AfterRepeatPurchases).unwrap();
        for (found, known) in [fitted.r, fitted.alpha, fitted.a, fitted.b].into_iter().zip(PARAMETERS) {
            assert!((found / known - 1.0).abs() < 0.05, "{fitted:?}");
        }
        let known = PUBLISHED.log_likelihood_of(&customers).unwrap();
        assert!(fitted.log_likelihood >= known, "{} {known}", fitted.log_likelihood);
        let again = fitted.log_likelihood_of(&customers).unwrap();
        assert!((again / fitted.log_likelihood - 1.0).abs() < 1e-12);
    }

    #[test]
    fn gradients_agree_with_finite_differences() {
        let groups = Groups::new(&simulate_customers(300, 39.0, 12.0, 5));
        for dropout in [Dropout::AfterRepeatPurchases, Dropout::AfterEveryPurchase] {
            let (_, slopes) = log_likelihood(&groups, dropout, PARAMETERS);
            for index in 0..4 {
                let at = |sign: f64| {
                    let mut parameters = PARAMETERS;
                    parameters[index] *= 1.0 + sign * 1e-6;
                    log_likelihood(&groups, dropout, parameters).0
                };
                let slope = (at(1.0) - at(-1.0)) / (2e-6 * PARAMETERS[index]);
                assert!((slope - slopes[index]).abs() < 1e-4 * (1.0 + slope.abs()), "{dropout:?} {index} {slope}");
            }
        }
    }

    #[test]
    fn probabilities_and_counts_are_those_of_simulated_customers() {
        let mut rng = StdRng::seed_from_u64(9);
        let (mut expected, mut actual, mut buys, mut probability) = (0.0, 0.0, 0.0, 0.0);
        for _ in 0..100_000 {
            let times = purchase_times(&mut rng, PARAMETERS, 65.0);
            let before: Vec<f64> = times.iter().copied().filter(|time| *time <= 26.0).collect();
            let of = summary(before.len() as u32, before.last().copied().unwrap_or(0.0), 26.0);
            expected += PUBLISHED.expected_purchases(&of, 39.0);
            probability += PUBLISHED.purchase_probability(&of, 39.0);
            actual += (times.len() - before.len()) as f64;
            buys += f64::from(u8::from(times.len() > before.len()));
        }
        assert!((expected / actual - 1.0f64).abs() < 0.02, "{expected} {actual}");
        assert!((probability / buys - 1.0f64).abs() < 0.02, "{probability} {buys}");
    }

    #[test]
    fn customers_who_never_drop_out_and_equal_customers_have_a_fit() {
        let mut rng = StdRng::seed_from_u64(2);
        let loyal: Vec<PurchaseSummary> = (0..2000)
            .map(|_| {
                let times = purchase_times(&mut rng, [0.8, 5.0, 1e-9, 1.0], 40.0);
                summary(times.len() as u32, times.last().copied().unwrap_or(0.0), 40.0)
            })
            .collect();
        let fitted = BetaGeometric::fit(&loyal, Dropout::AfterRepeatPurchases).unwrap();
        assert!(fitted.active_probability(&summary(8, 38.0, 40.0)) > 0.95, "{fitted:?}");
        assert!((fitted.r / 0.8 - 1.0).abs() < 0.15, "{fitted:?}");
        // Equal customers determine their rate and not its spread.
        for dropout in [Dropout::AfterRepeatPurchases, Dropout::AfterEveryPurchase] {
            let equal = BetaGeometric::fit(&[summary(4, 38.0, 40.0); 50], dropout).unwrap();
            let expected = equal.expected_purchases(&summary(4, 38.0, 40.0), 10.0);
            assert!((expected - 1.0).abs() < 0.2, "{equal:?} {expected}");
        }
    }

    #[test]
    fn customers_without_repeat_purchases_and_impossible_summaries_are_errors() {
        let fit = |customers: &[PurchaseSummary]| BetaGeometric::fit(customers, Dropout::AfterEveryPurchase);
        assert_eq!(fit(&[]), Err(LoyaltyError::NoCustomers));
        assert_eq!(fit(&[summary(0, 0.0, 4.0)]), Err(LoyaltyError::NoRepeatPurchases { model: "mbg-nbd" }));
        assert!(matches!(fit(&[summary(2, 5.0, 4.0)]), Err(LoyaltyError::Summary { field: "recency", .. })));
    }

    #[test]
    fn many_purchases_in_a_short_time_have_a_finite_forecast() {
        let dropout = Dropout::AfterRepeatPurchases;
        let model = BetaGeometric { dropout, r: 0.01, alpha: 2.4, a: 0.01, b: 0.01, log_likelihood: 0.0 };
        let count = model.expected_purchases(&summary(181, 0.0, 0.1), 136.0);
        assert!(count.is_finite() && count >= 0.0, "{count}");
    }

    proptest! {
        #[test]
        fn forecasts_are_possible_and_grow_with_the_horizon(
            r in 0.01f64..5.0, alpha in 0.1f64..50.0, a in 0.01f64..5.0, b in 0.01f64..20.0,
            frequency in 0u32..200, share in 0.0f64..1.0, age in 0.1f64..500.0, time in 0.01f64..200.0, every in any::<bool>()
        ) {
            let dropout = if every { Dropout::AfterEveryPurchase } else { Dropout::AfterRepeatPurchases };
            let model = BetaGeometric { dropout, r, alpha, a, b, log_likelihood: 0.0 };
            let of = summary(frequency, if frequency == 0 { 0.0 } else { share * age }, age);
            let (active, near, far) = (
                model.active_probability(&of),
                model.purchase_probability(&of, time),
                model.purchase_probability(&of, 2.0 * time),
            );
            prop_assert!((0.0..=1.0).contains(&active) && near >= 0.0 && near <= far && far <= active);
            let (count, later) = (model.expected_purchases(&of, time), model.expected_purchases(&of, 2.0 * time));
            prop_assert!(count.is_finite() && later.is_finite());
            // At least one purchase contributes at least its probability.
            prop_assert!(count >= near * (1.0 - 1e-3) - 1e-6, "{count} {near}");
            prop_assert!(later >= count * (1.0 - 1e-3) - 1e-6, "{later} {count}");
        }
    }
}
