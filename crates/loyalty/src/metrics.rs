//! Metrics of forecasts against what customers did, weighted, so that bootstrap resamples need no copies.
use serde::Serialize;

/// Bins of the calibration error, with equal numbers of customers.
const BINS: usize = 10;
/// Probabilities are kept this far from 0 and 1 in the log-loss.
const PROBABILITY_MIN: f64 = 1e-6;

/// Metrics of the probability of at least one purchase (the first four) and of the expected number of purchases.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Metrics {
    /// Probability that a random buyer has a higher probability than a random non-buyer.
    pub auc: f64,
    /// Mean negative log-likelihood, in nats.
    pub log_loss: f64,
    /// Mean squared error of the probability.
    pub brier: f64,
    /// Mean distance between the mean probability and the share of buyers, over ten bins of equal size.
    pub calibration_error: f64,
    /// Mean absolute error of the expected number of purchases.
    pub mae: f64,
    /// Root of the mean squared error of the expected number.
    pub rmse: f64,
    /// Pearson's correlation of the expected and the actual number.
    pub correlation: f64,
    /// Mean absolute error of the expected value, in the currency of the data.
    pub value_mae: Option<f64>,
    /// Pearson's correlation of the expected and the actual value.
    pub value_correlation: Option<f64>,
}

impl Metrics {
    /// Applies `combine` to each metric of two models.
    pub(crate) fn zip(left: &Self, right: &Self, combine: impl Fn(f64, f64) -> f64) -> Self {
        let both = |left: Option<f64>, right: Option<f64>| left.zip(right).map(|(left, right)| combine(left, right));
        Self {
            auc: combine(left.auc, right.auc),
            log_loss: combine(left.log_loss, right.log_loss),
            brier: combine(left.brier, right.brier),
            calibration_error: combine(left.calibration_error, right.calibration_error),
            mae: combine(left.mae, right.mae),
            rmse: combine(left.rmse, right.rmse),
            correlation: combine(left.correlation, right.correlation),
            value_mae: both(left.value_mae, right.value_mae),
            value_correlation: both(left.value_correlation, right.value_correlation),
        }
    }
}

/// What customers did within the horizon.
#[derive(Debug, Clone, Default)]
pub(crate) struct Outcomes {
    pub(crate) counts: Vec<f64>,
    pub(crate) values: Vec<f64>,
}

/// Forecasts of the same customers.
#[derive(Debug, Clone)]
pub(crate) struct Scored {
    probabilities: Vec<f64>,
    counts: Vec<f64>,
    values: Option<Vec<f64>>,
    /// Customers by ascending probability.
    order: Vec<u32>,
}

impl Scored {
    pub(crate) fn new(probabilities: Vec<f64>, counts: Vec<f64>, values: Option<Vec<f64>>) -> Self {
        let mut order: Vec<u32> = (0..probabilities.len() as u32).collect();
        order.sort_by(|left, right| probabilities[*left as usize].total_cmp(&probabilities[*right as usize]));
        Self { probabilities, counts, values, order }
    }

    /// Computes all metrics. `weights`: how often each customer counts. Metrics of buyers and non-buyers are NaN if one
    /// of the two groups has no weight.
    pub(crate) fn metrics(&self, outcomes: &Outcomes, weights: &[f64]) -> Metrics {
        let total: f64 = weights.iter().sum();
        let (mut log_loss, mut brier, mut absolute, mut squared) = (0.0, 0.0, 0.0, 0.0);
        for (index, weight) in weights.iter().enumerate() {
            let buys = outcomes.counts[index] > 0.0;
            let probability = self.probabilities[index].clamp(PROBABILITY_MIN, 1.0 - PROBABILITY_MIN);
            log_loss -= weight * if buys { probability.ln() } else { (-probability).ln_1p() };
            brier += weight * (probability - f64::from(u8::from(buys))).powi(2);
            let error = self.counts[index] - outcomes.counts[index];
            absolute += weight * error.abs();
            squared += weight * error * error;
        }
        Metrics {
            auc: self.auc(outcomes, weights),
            log_loss: log_loss / total,
            brier: brier / total,
            calibration_error: self.calibration_error(outcomes, weights, total),
            mae: absolute / total,
            rmse: (squared / total).sqrt(),
            correlation: correlation(&self.counts, &outcomes.counts, weights),
            value_mae: self.values.as_ref().map(|values| mean_absolute_error(values, &outcomes.values, weights)),
            value_correlation: self.values.as_ref().map(|values| correlation(values, &outcomes.values, weights)),
        }
    }

    /// The Mann-Whitney statistic; ties count half.
    fn auc(&self, outcomes: &Outcomes, weights: &[f64]) -> f64 {
        let (mut buyers, mut others, mut pairs) = (0.0, 0.0, 0.0);
        let equal = |left: &u32, right: &u32| self.probabilities[*left as usize] == self.probabilities[*right as usize];
        for tied in self.order.chunk_by(equal) {
            let (mut tied_buyers, mut tied_others) = (0.0, 0.0);
            for index in tied {
                match outcomes.counts[*index as usize] > 0.0 {
                    true => tied_buyers += weights[*index as usize],
                    false => tied_others += weights[*index as usize],
                }
            }
            pairs += tied_buyers * (others + 0.5 * tied_others);
            buyers += tied_buyers;
            others += tied_others;
        }
        pairs / (buyers * others)
    }

    fn calibration_error(&self, outcomes: &Outcomes, weights: &[f64], total: f64) -> f64 {
        let mut differences = [0.0; BINS];
        let mut seen = 0.0;
        for index in &self.order {
            let index = *index as usize;
            let bin = ((seen / total * BINS as f64) as usize).min(BINS - 1);
            seen += weights[index];
            let bought = f64::from(u8::from(outcomes.counts[index] > 0.0));
            differences[bin] += weights[index] * (self.probabilities[index] - bought);
        }
        differences.iter().map(|difference| difference.abs()).sum::<f64>() / total
    }
}

fn mean_absolute_error(expected: &[f64], actual: &[f64], weights: &[f64]) -> f64 {
    let errors = expected.iter().zip(actual).zip(weights);
    errors.map(|((expected, actual), weight)| weight * (expected - actual).abs()).sum::<f64>()
        / weights.iter().sum::<f64>()
}

/// Weighted correlation; 0 if one side is constant.
fn correlation(left: &[f64], right: &[f64], weights: &[f64]) -> f64 {
    let total: f64 = weights.iter().sum();
    let mean = |values: &[f64]| values.iter().zip(weights).map(|(value, weight)| value * weight).sum::<f64>() / total;
    let (left_mean, right_mean) = (mean(left), mean(right));
    let (mut both, mut left_square, mut right_square) = (0.0, 0.0, 0.0);
    for ((left, right), weight) in left.iter().zip(right).zip(weights) {
        let (left, right) = (left - left_mean, right - right_mean);
        both += weight * left * right;
        left_square += weight * left * left;
        right_square += weight * right * right;
    }
    let spread = (left_square * right_square).sqrt();
    if spread > 0.0 { both / spread } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn metrics(probabilities: &[f64], counts: &[f64], weights: &[f64]) -> Metrics {
        let outcomes = Outcomes { counts: counts.to_vec(), values: counts.to_vec() };
        Scored::new(probabilities.to_vec(), probabilities.to_vec(), Some(counts.to_vec())).metrics(&outcomes, weights)
    }

    #[test]
    fn metrics_of_four_customers_are_those_computed_by_hand() {
        let of = metrics(&[0.1, 0.4, 0.4, 0.8], &[0.0, 0.0, 1.0, 3.0], &[1.0; 4]);
        assert!((of.auc - 3.5 / 4.0).abs() < 1e-12);
        assert!((of.brier - (0.01 + 0.16 + 0.36 + 0.04) / 4.0).abs() < 1e-12);
        let log_loss = -(0.9f64.ln() + 0.6f64.ln() + 0.4f64.ln() + 0.8f64.ln()) / 4.0;
        assert!((of.log_loss - log_loss).abs() < 1e-12);
        assert!((of.mae - (0.1 + 0.4 + 0.6 + 2.2) / 4.0).abs() < 1e-12);
        assert!((of.calibration_error - (0.1 + 0.4 + 0.6 + 0.2) / 4.0).abs() < 1e-12);
        assert_eq!((of.value_mae, of.value_correlation), (Some(0.0), Some(1.0)));
    }

    proptest! {
        #[test]
        fn a_weight_of_two_is_the_customer_twice(probabilities in prop::collection::vec(0.0f64..1.0, 2..30)) {
            let counts: Vec<f64> = (0..probabilities.len()).map(|index| (index % 2) as f64).collect();
            let twice = |values: &[f64]| values.iter().chain(&values[..2]).copied().collect::<Vec<f64>>();
            let mut weights = vec![1.0; probabilities.len()];
            weights[..2].fill(2.0);
            let weighted = metrics(&probabilities, &counts, &weights);
            let repeated = metrics(&twice(&probabilities), &twice(&counts), &vec![1.0; probabilities.len() + 2]);
            prop_assert!((weighted.auc - repeated.auc).abs() < 1e-9 && (weighted.mae - repeated.mae).abs() < 1e-9);
            prop_assert!((weighted.log_loss - repeated.log_loss).abs() < 1e-9);
            prop_assert!((weighted.correlation - repeated.correlation).abs() < 1e-9);
        }
    }
}
