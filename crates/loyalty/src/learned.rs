//! Models that learn from windows inside the calibration period: the learned model and the RFM baseline.
//!
//! A training row is a customer at an earlier day (the cut) with the purchases in the window that follows. Windows of
//! several lengths, with the logarithm of the length as an input, make the model a discrete-time model of the next
//! purchases that extrapolates to horizons longer than any window. The cut of the forecast is later than every training
//! window, so no later purchase is used.
use crate::{
    beta_geometric::{BetaGeometric, Dropout},
    error::LoyaltyError,
    features::{DECAYED, FEATURES, FREQUENCY, LOG_AGE, LOG_GAP, features},
    history::{Purchase, PurchaseHistory, PurchaseSummary},
    regression::{Family, dot, fit},
};
use rayon::prelude::*;

/// Inputs of the learned model: a constant, the features, two outputs of BG/NBD for the window, the logarithm of the
/// window's share of the horizon, and its products with frequency, gap and age.
const BG_LOGIT: usize = 1 + FEATURES;
const BG_FURTHER: usize = BG_LOGIT + 1;
const LOG_WINDOW: usize = BG_FURTHER + 1;
const INPUTS: usize = LOG_WINDOW + 4;
type Inputs = [f64; INPUTS];

/// Cuts per training.
const CUTS: usize = 12;
/// Ratio of the lengths of consecutive windows.
const RATIO: f64 = 1.5;
/// Windows that may be used, from the horizon downwards.
const WINDOWS: i32 = 5;
/// Windows per cut: the longest that end within the calibration.
const WINDOWS_PER_CUT: usize = 2;
/// Penalty of squared weights, in rows.
const PENALTY: f64 = 20.0;
/// Standardised inputs are clipped here, so that an unusual customer cannot move the forecast without limit.
const INPUT_MAX: f64 = 5.0;
/// Largest logarithm of an expected number.
const LOG_COUNT_MAX: f64 = 40.0;
/// Shortest calibration, in days, and shortest horizon that can be learned.
const DAYS_MIN: i32 = 14;

/// A forecast for one customer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Forecast {
    /// Probability of at least one purchase within the horizon, from 0 to 1.
    pub purchase_probability: f64,
    /// Expected number of days with a purchase within the horizon.
    pub expected_purchases: f64,
    /// Expected value of these purchases, in the currency of the histories.
    pub expected_value: f64,
}

/// A training row.
struct Row {
    inputs: Inputs,
    count: f64,
}

/// A regression on some of the inputs.
#[derive(Debug, Clone)]
struct Head {
    columns: Vec<usize>,
    weights: Vec<f64>,
}

impl Head {
    /// `target` returns `None` for rows that the head does not learn from.
    fn fit(rows: &[Row], columns: &[usize], family: Family, target: impl Fn(&Row) -> Option<f64>) -> Self {
        let columns: Vec<usize> = std::iter::once(0).chain(columns.iter().copied()).collect();
        let (mut inputs, mut targets) = (Vec::new(), Vec::new());
        for row in rows {
            let Some(of_row) = target(row) else { continue };
            targets.push(of_row);
            inputs.extend(columns.iter().map(|column| row.inputs[*column]));
        }
        let weights = fit(&inputs, columns.len(), &targets, family, PENALTY);
        Self { columns, weights }
    }

    fn output(&self, inputs: &Inputs) -> f64 {
        self.columns.iter().zip(&self.weights).map(|(column, weight)| inputs[*column] * weight).sum()
    }
}

/// The learned model, fitted for one horizon.
///
/// Two regressions share their inputs: the logit of the probability of a purchase, and the logarithm of the expected
/// number of further purchases of a buyer (Poisson). The expected value is the expected number times the mean value of
/// the customer's purchases.
#[derive(Debug, Clone)]
pub struct LearnedModel {
    horizon_days: f64,
    /// `None` if BG/NBD has no maximum of its likelihood; its two inputs are then constant.
    beta_geometric: Option<BetaGeometric>,
    mean: Inputs,
    scale: Inputs,
    purchase: Head,
    further: Head,
}

/// Returns the mean value of the purchases; 0 without any.
pub(crate) fn mean_value(purchases: &[Purchase]) -> f64 {
    purchases.iter().map(|of| of.value).sum::<f64>() / purchases.len().max(1) as f64
}

/// Returns the first day of all histories, or an error if there is none, or if the calibration is too short.
fn first_day(histories: &[PurchaseHistory], end: i32, horizon_days: u32) -> Result<i32, LoyaltyError> {
    let days = histories.iter().filter_map(|history| history.purchases().first().map(|purchase| purchase.day));
    let first_day = days.min().ok_or(LoyaltyError::NoCustomers)?;
    if first_day > end {
        return Err(LoyaltyError::CalibrationBeforeData { calibration_end: end, first_day });
    }
    if horizon_days == 0 {
        let limit = "at least 1".to_owned();
        return Err(LoyaltyError::Option { field: "horizon_days", value: 0.0, limit });
    }
    let calibration_days = end.saturating_sub(first_day);
    if calibration_days < DAYS_MIN {
        return Err(LoyaltyError::CalibrationTooShort { calibration_days, limit: DAYS_MIN });
    }
    Ok(first_day)
}

/// Returns the pairs of a cut and a length of the window, in days, that end by `end`.
///
/// The first cut is in the middle of the calibration, or earlier, but not before 30 % of it, where a window of two
/// thirds of the horizon would not fit. The last leaves the shortest window.
fn training_windows(first: i32, end: i32, horizon_days: u32) -> Vec<(i32, u32)> {
    let (length, horizon) = (f64::from(end) - f64::from(first), f64::from(horizon_days));
    let lengths: Vec<f64> =
        (0..WINDOWS).map(|step| (horizon / RATIO.powi(step)).floor()).filter(|days| *days >= 1.0).collect();
    // Beyond the calibration no window of the horizon's scale fits; half of the calibration is then the shortest.
    let shortest = lengths.last().copied().unwrap_or(1.0).min((length / 2.0).floor()).max(1.0);
    let start = length * (1.0 - horizon / RATIO / length).clamp(0.3, 0.5);
    let step = (length - shortest - start).max(0.0) / (CUTS - 1) as f64;
    let mut windows = Vec::new();
    for index in 0..CUTS {
        let cut = (start + step * index as f64).round().min(length - shortest);
        let fitting: Vec<f64> = lengths.iter().copied().filter(|days| cut + days <= length).collect();
        let fitting = if fitting.is_empty() { vec![shortest] } else { fitting };
        for days in fitting.into_iter().take(WINDOWS_PER_CUT) {
            windows.push((first.saturating_add(cut as i32), days as u32));
        }
    }
    windows.dedup();
    windows
}

impl LearnedModel {
    /// Fits the model to the purchases until the end of the day `end`; later purchases are not read.
    ///
    /// Returns an error without customers, for a horizon of 0 days, and for a calibration shorter than 14 days.
    pub fn fit(histories: &[PurchaseHistory], end: i32, horizon_days: u32) -> Result<Self, LoyaltyError> {
        let first = first_day(histories, end, horizon_days)?;
        let summaries: Vec<PurchaseSummary> =
            histories.iter().filter_map(|history| PurchaseSummary::at(history, end)).collect();
        let mut model = Self {
            horizon_days: f64::from(horizon_days),
            beta_geometric: BetaGeometric::fit(&summaries, Dropout::AfterRepeatPurchases).ok(),
            mean: [0.0; INPUTS],
            scale: [1.0; INPUTS],
            purchase: Head { columns: Vec::new(), weights: Vec::new() },
            further: Head { columns: Vec::new(), weights: Vec::new() },
        };
        let windows = training_windows(first, end, horizon_days);
        let mut rows: Vec<Row> = windows.iter().flat_map(|(cut, days)| model.rows(histories, *cut, *days)).collect();
        model.standardise(&mut rows);

        let of_customer: Vec<usize> = (1..=BG_LOGIT).chain(LOG_WINDOW..INPUTS).collect();
        model.purchase =
            Head::fit(&rows, &of_customer, Family::Bernoulli, |row| Some(f64::from(u8::from(row.count > 0.0))));
        let decayed = DECAYED.map(|feature| feature + 1);
        let of_count = [decayed[0], decayed[1], decayed[2], BG_FURTHER, LOG_WINDOW];
        model.further =
            Head::fit(&rows, &of_count, Family::Poisson, |row| (row.count > 0.0).then_some(row.count - 1.0));
        Ok(model)
    }

    /// The training rows of one window, not yet standardised.
    fn rows(&self, histories: &[PurchaseHistory], cut: i32, days: u32) -> Vec<Row> {
        let row = |history: &PurchaseHistory| {
            let inputs = self.raw_inputs(history, cut, f64::from(days))?;
            Some(Row { inputs, count: history.within(cut, days).len() as f64 })
        };
        histories.par_iter().filter_map(row).collect()
    }

    /// Returns the inputs before they are standardised, without the products; `None` without purchases until `day`.
    fn raw_inputs(&self, history: &PurchaseHistory, day: i32, window_days: f64) -> Option<Inputs> {
        let summary = PurchaseSummary::at(history, day)?;
        let mut inputs = [0.0; INPUTS];
        inputs[0] = 1.0;
        inputs[1..=FEATURES].copy_from_slice(&features(history.until(day), day, self.horizon_days));
        if let Some(model) = &self.beta_geometric {
            let weeks = window_days / PurchaseSummary::DAYS_PER_WEEK;
            let probability = model.purchase_probability(&summary, weeks).clamp(1e-5, 1.0 - 1e-5);
            let further = (model.expected_purchases(&summary, weeks) / probability - 1.0).max(1e-3);
            inputs[BG_LOGIT] = (probability / (1.0 - probability)).ln();
            inputs[BG_FURTHER] = further.ln();
        }
        inputs[LOG_WINDOW] = (window_days / self.horizon_days).ln();
        Some(inputs)
    }

    /// Learns the mean and the spread of each input and standardises the rows.
    fn standardise(&mut self, rows: &mut [Row]) {
        let count = rows.len().max(1) as f64;
        for column in 1..LOG_WINDOW {
            let mean = rows.iter().map(|row| row.inputs[column]).sum::<f64>() / count;
            let square = rows.iter().map(|row| (row.inputs[column] - mean).powi(2)).sum::<f64>() / count;
            self.mean[column] = mean;
            self.scale[column] = square.sqrt().max(1e-6);
        }
        rows.par_iter_mut().for_each(|row| row.inputs = self.standardised(row.inputs));
    }

    fn standardised(&self, mut inputs: Inputs) -> Inputs {
        let learned = self.mean.iter().zip(&self.scale);
        for (input, (mean, scale)) in inputs[..LOG_WINDOW].iter_mut().zip(learned).skip(1) {
            *input = ((*input - mean) / scale).clamp(-INPUT_MAX, INPUT_MAX);
        }
        for (index, feature) in [FREQUENCY, LOG_GAP, LOG_AGE].into_iter().enumerate() {
            inputs[LOG_WINDOW + 1 + index] = inputs[LOG_WINDOW] * inputs[feature + 1];
        }
        inputs
    }

    /// Forecasts the horizon after the end of `day`. Returns `None` for a customer without purchases until then.
    pub fn forecast(&self, history: &PurchaseHistory, day: i32) -> Option<Forecast> {
        let inputs = self.standardised(self.raw_inputs(history, day, self.horizon_days)?);
        let purchase_probability = 1.0 / (1.0 + (-self.purchase.output(&inputs)).exp());
        // At most one purchase per day.
        let purchases = (1.0 + self.further.output(&inputs).exp()).min(self.horizon_days);
        let expected_purchases = purchase_probability * purchases;
        Some(Forecast {
            purchase_probability,
            expected_purchases,
            expected_value: expected_purchases * mean_value(history.until(day)),
        })
    }
}

/// The usual baseline: logistic and Poisson regressions on frequency, recency and age, learned from the last window of
/// the calibration. If the horizon does not fit, the window is half of the calibration and a constant rate extends it.
#[derive(Debug, Clone)]
pub struct RfmModel {
    /// The horizon in windows, at least 1.
    windows: f64,
    mean: [f64; 3],
    scale: [f64; 3],
    purchase: Vec<f64>,
    count: Vec<f64>,
}

impl RfmModel {
    /// Fits the model to the purchases until the end of the day `end`. The errors are those of [`LearnedModel::fit`].
    pub fn fit(histories: &[PurchaseHistory], end: i32, horizon_days: u32) -> Result<Self, LoyaltyError> {
        let first = first_day(histories, end, horizon_days)?;
        let half = ((f64::from(end) - f64::from(first)) / 2.0) as u32;
        let window = horizon_days.min(half);
        let cut = end.saturating_sub_unsigned(window);
        let rows: Vec<([f64; 3], f64)> = histories
            .iter()
            .filter_map(|history| Some((Self::inputs(history, cut)?, history.within(cut, window).len() as f64)))
            .collect();
        let count = rows.len().max(1) as f64;
        let mean = std::array::from_fn(|index| rows.iter().map(|row| row.0[index]).sum::<f64>() / count);
        let scale = std::array::from_fn(|index| {
            let square = rows.iter().map(|row| (row.0[index] - mean[index]).powi(2)).sum::<f64>() / count;
            square.sqrt().max(1e-6)
        });
        let windows = f64::from(horizon_days) / f64::from(window);
        let mut model = Self { windows, mean, scale, purchase: Vec::new(), count: Vec::new() };
        let inputs: Vec<f64> = rows.iter().flat_map(|row| model.standardised(row.0)).collect();
        let buys: Vec<f64> = rows.iter().map(|row| f64::from(u8::from(row.1 > 0.0))).collect();
        let counts: Vec<f64> = rows.iter().map(|row| row.1).collect();
        model.purchase = fit(&inputs, 4, &buys, Family::Bernoulli, 1.0);
        model.count = fit(&inputs, 4, &counts, Family::Poisson, 1.0);
        Ok(model)
    }

    fn inputs(history: &PurchaseHistory, day: i32) -> Option<[f64; 3]> {
        let summary = PurchaseSummary::at(history, day)?;
        let gap = summary.age - summary.recency;
        Some([f64::from(summary.frequency).ln_1p(), gap.ln_1p(), summary.age.ln_1p()])
    }

    fn standardised(&self, inputs: [f64; 3]) -> [f64; 4] {
        let standardised = |index: usize| (inputs[index] - self.mean[index]) / self.scale[index];
        [1.0, standardised(0), standardised(1), standardised(2)]
    }

    /// Forecasts probability and number. Returns `None` for a customer without purchases until the end of `day`.
    pub fn forecast(&self, history: &PurchaseHistory, day: i32) -> Option<(f64, f64)> {
        let inputs = self.standardised(Self::inputs(history, day)?);
        let none = 1.0 / (1.0 + dot(&inputs, &self.purchase).exp());
        let count = dot(&inputs, &self.count).min(LOG_COUNT_MAX).exp() * self.windows;
        Some((1.0 - none.powf(self.windows), count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulate::{normal, purchase_times};
    use rand::{Rng, SeedableRng, rngs::StdRng};

    /// Customers of BG/NBD over 52 weeks, with lognormal values.
    fn customers(count: usize, seed: u64) -> Vec<PurchaseHistory> {
        let mut rng = StdRng::seed_from_u64(seed);
        (0..count)
            .map(|_| {
                let first = rng.random_range(0..84);
                let repeats = purchase_times(&mut rng, [0.5, 6.0, 0.6, 3.0], f64::from(364 - first) / 7.0);
                let mut purchase = |time: f64| Purchase {
                    day: first + (time * 7.0) as i32,
                    value: (3.0 + 0.7 * normal(&mut rng)).exp(),
                    units: 1.0,
                };
                let mut purchases = vec![purchase(0.0)];
                purchases.extend(repeats.into_iter().map(&mut purchase));
                PurchaseHistory::new(purchases)
            })
            .collect()
    }

    #[test]
    fn forecasts_of_simulated_customers_are_calibrated() {
        let histories = customers(8000, 7);
        let (end, horizon) = (273, 91);
        let model = LearnedModel::fit(&histories, end, horizon).unwrap();
        let (mut sums, mut actual) = ([0.0; 3], [0.0; 3]);
        for history in &histories {
            let forecast = model.forecast(history, end).unwrap();
            let within = history.within(end, horizon);
            sums[0] += forecast.purchase_probability;
            sums[1] += forecast.expected_purchases;
            sums[2] += forecast.expected_value;
            actual[0] += f64::from(u8::from(!within.is_empty()));
            actual[1] += within.len() as f64;
            actual[2] += within.iter().map(|of| of.value).sum::<f64>();
        }
        for (index, tolerance) in [0.06, 0.08, 0.1].into_iter().enumerate() {
            let ratio: f64 = sums[index] / actual[index];
            assert!((ratio - 1.0).abs() < tolerance, "{index}: {ratio}");
        }
    }

    #[test]
    fn later_purchases_do_not_change_the_fit() {
        let histories = customers(500, 3);
        let until = |history: &PurchaseHistory| PurchaseHistory::new(history.until(200).to_vec());
        let before: Vec<PurchaseHistory> = histories.iter().map(until).collect();
        let with_later = LearnedModel::fit(&histories, 200, 60).unwrap();
        let without = LearnedModel::fit(&before, 200, 60).unwrap();
        for (history, before) in histories.iter().zip(&before) {
            assert_eq!(with_later.forecast(history, 200), without.forecast(before, 200));
        }
    }

    #[test]
    fn windows_end_within_the_calibration() {
        for (end, horizon) in [(272, 273), (282, 91), (308, 56), (14, 1), (14, 1000), (3650, 30), (40, 39)] {
            let windows = training_windows(0, end, horizon);
            assert!(!windows.is_empty());
            for (cut, days) in windows {
                assert!(cut >= 0 && days >= 1 && cut + days as i32 <= end, "{end} {horizon}: {cut} {days}");
            }
        }
    }

    #[test]
    fn forecasts_are_finite_for_unusual_customers() {
        let mut histories = customers(300, 5);
        histories.push(PurchaseHistory::new(vec![Purchase { day: 200, value: 1e9, units: 1e9 }]));
        histories.push(PurchaseHistory::new((0..=200).map(|day| Purchase { day, value: 0.0, units: 0.0 }).collect()));
        let model = LearnedModel::fit(&histories, 200, 60).unwrap();
        let rfm = RfmModel::fit(&histories, 200, 60).unwrap();
        for history in &histories {
            let Some(forecast) = model.forecast(history, 200) else { continue };
            assert!((0.0..=1.0).contains(&forecast.purchase_probability));
            assert!(forecast.expected_purchases <= 60.0 && forecast.expected_value.is_finite());
            let (probability, count) = rfm.forecast(history, 200).unwrap();
            assert!((0.0..=1.0).contains(&probability) && count.is_finite());
        }
        assert_eq!(model.forecast(&PurchaseHistory::default(), 200), None);
    }

    #[test]
    fn short_calibrations_and_empty_horizons_are_errors() {
        let histories = customers(50, 1);
        let fit = |end, horizon| LearnedModel::fit(&histories, end, horizon).map(drop);
        assert!(matches!(fit(-5, 10), Err(LoyaltyError::CalibrationBeforeData { calibration_end: -5, .. })));
        assert!(matches!(fit(90, 0), Err(LoyaltyError::Option { field: "horizon_days", .. })));
        assert!(matches!(fit(10, 10), Err(LoyaltyError::CalibrationTooShort { limit: DAYS_MIN, .. })));
        assert!(LearnedModel::fit(&[], 90, 10).is_err());
    }
}
