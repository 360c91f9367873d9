//! Metrics of forecasts against what customers did, weighted, so that bootstrap resamples need no copies.
use serde::Serialize;

/// Bins of the calibration error, with equal numbers of customers.
const BINS: usize = 10;
/// Probabilities are kept this far from 0 and 1 in the log-loss.
const PROBABILITY_MIN: f64 = 1e-6;

/// Metrics of the probability of an outcome.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ProbabilityMetrics {
    /// Probability that a random customer with the outcome has a higher probability than a random one without.
    pub auc: f64,
    /// Mean negative log-likelihood, in nats.
    pub log_loss: f64,
    /// Mean squared error of the probability.
    pub brier: f64,
    /// Mean distance between the mean probability and the share with the outcome, over ten bins of equal size.
    pub calibration_error: f64,
}

impl ProbabilityMetrics {
    /// Applies `combine` to each metric of two models.
    fn zip(left: &Self, right: &Self, combine: impl Fn(f64, f64) -> f64) -> Self {
        Self {
            auc: combine(left.auc, right.auc),
            log_loss: combine(left.log_loss, right.log_loss),
            brier: combine(left.brier, right.brier),
            calibration_error: combine(left.calibration_error, right.calibration_error),
        }
    }
}

/// Metrics of the probability of at least one purchase and of the expected number of purchases.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Metrics {
    /// Of at least one purchase.
    #[serde(flatten)]
    pub probability: ProbabilityMetrics,
    /// Mean absolute error of the expected number of purchases.
    pub mae: f64,
    /// Mean absolute error of the median number, which minimises it: a customer does not purchase with 1 − the
    /// probability, and the further purchases of a buyer are negative binomial with the mean of the model and the shape
    /// of the customer's number of purchases.
    pub median_mae: f64,
    /// Root of the mean squared error of the expected number.
    pub rmse: f64,
    /// Pearson's correlation of the expected and the actual number.
    pub correlation: f64,
    /// Mean absolute error of the expected value, in the currency of the data.
    pub value_mae: Option<f64>,
    /// Root of the mean squared error of the expected value.
    pub value_rmse: Option<f64>,
    /// Pearson's correlation of the expected and the actual value.
    pub value_correlation: Option<f64>,
    /// Gini coefficient of the actual values in the order of the expected ones, divided by that of their own order (Wang,
    /// Liu and Miao 2019); 1 is perfect.
    pub value_gini: Option<f64>,
    /// Distance between expected and actual value over ten bins of equal size, as a share of the actual value.
    pub value_calibration_error: Option<f64>,
}

impl Metrics {
    /// Applies `combine` to each metric of two models.
    pub(crate) fn zip(left: &Self, right: &Self, combine: impl Fn(f64, f64) -> f64) -> Self {
        let both = |left: Option<f64>, right: Option<f64>| left.zip(right).map(|(left, right)| combine(left, right));
        Self {
            probability: ProbabilityMetrics::zip(&left.probability, &right.probability, &combine),
            mae: combine(left.mae, right.mae),
            median_mae: combine(left.median_mae, right.median_mae),
            rmse: combine(left.rmse, right.rmse),
            correlation: combine(left.correlation, right.correlation),
            value_mae: both(left.value_mae, right.value_mae),
            value_rmse: both(left.value_rmse, right.value_rmse),
            value_correlation: both(left.value_correlation, right.value_correlation),
            value_gini: both(left.value_gini, right.value_gini),
            value_calibration_error: both(left.value_calibration_error, right.value_calibration_error),
        }
    }
}

/// What customers did within the horizon.
#[derive(Debug, Clone)]
pub(crate) struct Outcomes {
    pub(crate) counts: Vec<f64>,
    values: Vec<f64>,
    /// Repeat purchases before the horizon.
    repeats: Vec<f64>,
    /// Customers by descending value.
    order: Vec<u32>,
}

impl Outcomes {
    /// `values`: as many as `counts`.
    pub(crate) fn new(counts: Vec<f64>, values: Vec<f64>) -> Self {
        Self { repeats: vec![0.0; counts.len()], order: descending(&values), counts, values }
    }

    pub(crate) fn with_repeats(self, repeats: Vec<f64>) -> Self {
        Self { repeats, ..self }
    }
}

/// Returns the indices of `numbers`, the largest first, and of equal ones the first.
pub(crate) fn descending(numbers: &[f64]) -> Vec<u32> {
    let mut order: Vec<u32> = (0..numbers.len() as u32).collect();
    order.sort_by(|left, right| numbers[*right as usize].total_cmp(&numbers[*left as usize]));
    order
}

/// Probabilities of an outcome of the same customers.
#[derive(Debug, Clone)]
pub(crate) struct ScoredProbabilities {
    probabilities: Vec<f64>,
    /// Customers by ascending probability.
    order: Vec<u32>,
}

/// Forecasts of the same customers.
#[derive(Debug, Clone)]
pub(crate) struct Scored {
    probabilities: ScoredProbabilities,
    counts: Vec<f64>,
    medians: Vec<f64>,
    values: Option<Vec<f64>>,
    /// Customers by descending value.
    value_order: Vec<u32>,
}

/// Returns the median of a number that is 0 with 1 − `probability`, and otherwise 1 plus a negative binomial number of
/// shape `shape`, so that its mean is `expected`.
fn median(probability: f64, expected: f64, shape: f64) -> f64 {
    const COUNT_MAX: u32 = 10_000;
    if probability <= 0.5 {
        return 0.0;
    }
    let mean = (expected / probability - 1.0).max(0.0);
    let share = mean / (mean + shape);
    let mut further = (shape * (-share).ln_1p()).exp();
    let mut below = 1.0 - probability;
    for count in 0..COUNT_MAX {
        below += probability * further;
        if below >= 0.5 {
            return f64::from(count) + 1.0;
        }
        further *= share * (f64::from(count) + shape) / (f64::from(count) + 1.0);
    }
    expected
}

impl ScoredProbabilities {
    pub(crate) fn new(probabilities: Vec<f64>) -> Self {
        let mut order: Vec<u32> = (0..probabilities.len() as u32).collect();
        order.sort_by(|left, right| probabilities[*left as usize].total_cmp(&probabilities[*right as usize]));
        Self { probabilities, order }
    }

    /// Computes all metrics. `outcomes`: above 0 for customers with the outcome. `weights`: how often each customer counts.
    /// Metrics of both groups are NaN if one of them has no weight.
    pub(crate) fn metrics(&self, outcomes: &[f64], weights: &[f64]) -> ProbabilityMetrics {
        let total: f64 = weights.iter().sum();
        let (mut log_loss, mut brier) = (0.0, 0.0);
        for (index, weight) in weights.iter().enumerate() {
            let has_outcome = outcomes[index] > 0.0;
            let probability = self.probabilities[index].clamp(PROBABILITY_MIN, 1.0 - PROBABILITY_MIN);
            log_loss -= weight * if has_outcome { probability.ln() } else { (-probability).ln_1p() };
            brier += weight * (probability - f64::from(u8::from(has_outcome))).powi(2);
        }
        ProbabilityMetrics {
            auc: self.auc(outcomes, weights),
            log_loss: log_loss / total,
            brier: brier / total,
            calibration_error: self.calibration_error(outcomes, weights, total),
        }
    }

    /// The Mann-Whitney statistic; ties count half.
    fn auc(&self, outcomes: &[f64], weights: &[f64]) -> f64 {
        let (mut with, mut without, mut pairs) = (0.0, 0.0, 0.0);
        let equal = |left: &u32, right: &u32| self.probabilities[*left as usize] == self.probabilities[*right as usize];
        for tied in self.order.chunk_by(equal) {
            let (mut tied_with, mut tied_without) = (0.0, 0.0);
            for index in tied {
                match outcomes[*index as usize] > 0.0 {
                    true => tied_with += weights[*index as usize],
                    false => tied_without += weights[*index as usize],
                }
            }
            pairs += tied_with * (without + 0.5 * tied_without);
            with += tied_with;
            without += tied_without;
        }
        pairs / (with * without)
    }

    fn calibration_error(&self, outcomes: &[f64], weights: &[f64], total: f64) -> f64 {
        let differences = binned(&self.order, weights, |index| {
            self.probabilities[index] - f64::from(u8::from(outcomes[index] > 0.0))
        });
        differences.iter().map(|difference| difference.abs()).sum::<f64>() / total
    }
}

impl Scored {
    pub(crate) fn new(
        probabilities: Vec<f64>,
        counts: Vec<f64>,
        values: Option<Vec<f64>>,
        outcomes: &Outcomes,
    ) -> Self {
        let value_order = values.as_deref().map_or(Vec::new(), descending);
        let of = probabilities.iter().zip(&counts).zip(&outcomes.repeats);
        let medians = of.map(|((probability, count), repeats)| median(*probability, *count, repeats + 1.0)).collect();
        let probabilities = ScoredProbabilities::new(probabilities);
        Self { probabilities, counts, medians, values, value_order }
    }

    /// Computes all metrics. `weights`: how often each customer counts. Metrics of buyers and non-buyers are NaN if one
    /// of the two groups has no weight.
    pub(crate) fn metrics(&self, outcomes: &Outcomes, weights: &[f64]) -> Metrics {
        Metrics {
            probability: self.probabilities.metrics(&outcomes.counts, weights),
            mae: mean_absolute_error(&self.counts, &outcomes.counts, weights),
            median_mae: mean_absolute_error(&self.medians, &outcomes.counts, weights),
            rmse: mean_squared_error(&self.counts, &outcomes.counts, weights).sqrt(),
            correlation: correlation(&self.counts, &outcomes.counts, weights),
            value_mae: self.values.as_ref().map(|values| mean_absolute_error(values, &outcomes.values, weights)),
            value_rmse: self.values.as_ref().map(|values| mean_squared_error(values, &outcomes.values, weights).sqrt()),
            value_correlation: self.values.as_ref().map(|values| correlation(values, &outcomes.values, weights)),
            value_gini: self.values.is_some().then(|| {
                gini(&self.value_order, &outcomes.values, weights) / gini(&outcomes.order, &outcomes.values, weights)
            }),
            value_calibration_error: self.values.as_ref().map(|values| {
                let differences = binned(&self.value_order, weights, |index| values[index] - outcomes.values[index]);
                let actual: f64 = outcomes.values.iter().zip(weights).map(|(value, weight)| value * weight).sum();
                differences.iter().map(|difference| difference.abs()).sum::<f64>() / actual
            }),
        }
    }
}

/// Sums `of` over ten bins of customers with equal weight, in an order.
fn binned(order: &[u32], weights: &[f64], of: impl Fn(usize) -> f64) -> [f64; BINS] {
    let total: f64 = weights.iter().sum();
    let (mut sums, mut seen) = ([0.0; BINS], 0.0);
    for index in order {
        let index = *index as usize;
        let bin = ((seen / total * BINS as f64) as usize).min(BINS - 1);
        seen += weights[index];
        sums[bin] += weights[index] * of(index);
    }
    sums
}

/// Returns the Gini coefficient of `values` in a descending order: twice the area between the share of value and the
/// share of customers.
fn gini(order: &[u32], values: &[f64], weights: &[f64]) -> f64 {
    let (mut area, mut value, mut total) = (0.0, 0.0, 0.0);
    for index in order {
        let weight = weights[*index as usize];
        let of = weight * values[*index as usize];
        area += weight * (value + 0.5 * of);
        value += of;
        total += weight;
    }
    2.0 * area / (value * total) - 1.0
}

fn mean_absolute_error(expected: &[f64], actual: &[f64], weights: &[f64]) -> f64 {
    let errors = expected.iter().zip(actual).zip(weights);
    errors.map(|((expected, actual), weight)| weight * (expected - actual).abs()).sum::<f64>()
        / weights.iter().sum::<f64>()
}

fn mean_squared_error(expected: &[f64], actual: &[f64], weights: &[f64]) -> f64 {
    let errors = expected.iter().zip(actual).zip(weights);
    errors.map(|((expected, actual), weight)| weight * (expected - actual).powi(2)).sum::<f64>()
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
        let outcomes = Outcomes::new(counts.to_vec(), counts.to_vec());
        let values = Some(counts.to_vec());
        Scored::new(probabilities.to_vec(), probabilities.to_vec(), values, &outcomes).metrics(&outcomes, weights)
    }

    #[test]
    fn metrics_of_four_customers_are_those_computed_by_hand() {
        let of = metrics(&[0.1, 0.4, 0.4, 0.8], &[0.0, 0.0, 1.0, 3.0], &[1.0; 4]);
        assert!((of.probability.auc - 3.5 / 4.0).abs() < 1e-12);
        assert!((of.probability.brier - (0.01 + 0.16 + 0.36 + 0.04) / 4.0).abs() < 1e-12);
        let log_loss = -(0.9f64.ln() + 0.6f64.ln() + 0.4f64.ln() + 0.8f64.ln()) / 4.0;
        assert!((of.probability.log_loss - log_loss).abs() < 1e-12);
        assert!((of.mae - (0.1 + 0.4 + 0.6 + 2.2) / 4.0).abs() < 1e-12);
        assert!((of.probability.calibration_error - (0.1 + 0.4 + 0.6 + 0.2) / 4.0).abs() < 1e-12);
        assert_eq!((of.value_mae, of.value_correlation), (Some(0.0), Some(1.0)));
        assert_eq!((of.value_rmse, of.value_gini, of.value_calibration_error), (Some(0.0), Some(1.0), Some(0.0)));
        // Of the four medians, one is 1 and the others 0.
        assert!((of.median_mae - (1.0 + 2.0) / 4.0).abs() < 1e-12);
    }

    #[test]
    fn a_report_has_the_metrics_of_the_probability_among_the_others() {
        let json = serde_json::to_value(metrics(&[0.1, 0.8], &[0.0, 1.0], &[1.0; 2])).unwrap();
        assert_eq!(json["auc"], 1.0);
        assert_eq!(json["value_mae"], 0.0);
    }

    #[test]
    fn the_median_is_that_of_the_distribution() {
        // Geometric further purchases of mean 1: P(N > n) = 0.8 / 2^n.
        assert_eq!(median(0.8, 1.6, 1.0), 1.0);
        // Of mean 3: P(N > n) = 0.8 × 0.75^n.
        assert_eq!(median(0.8, 3.2, 1.0), 2.0);
        assert_eq!(median(0.5, 100.0, 1.0), 0.0);
        // Nearly Poisson of mean 9.
        assert_eq!(median(1.0, 10.0, 1e6), 10.0);
    }

    #[test]
    fn values_in_the_opposite_order_have_a_negative_gini() {
        let values = [4.0, 0.0, 1.0, 3.0];
        let weights = [1.0; 4];
        let best = gini(&descending(&values), &values, &weights);
        let worst: Vec<f64> = values.iter().map(|value| -value).collect();
        assert!((gini(&descending(&worst), &values, &weights) + best).abs() < 1e-12 && best > 0.0);
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
            prop_assert!((weighted.probability.auc - repeated.probability.auc).abs() < 1e-9 && (weighted.mae - repeated.mae).abs() < 1e-9);
            prop_assert!((weighted.probability.log_loss - repeated.probability.log_loss).abs() < 1e-9);
            prop_assert!((weighted.correlation - repeated.correlation).abs() < 1e-9);
        }
    }
}
