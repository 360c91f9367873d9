//! Compares models of another outcome than a purchase, such as the redemption of a coupon: they are fitted to purchases
//! and outcomes until the end of the calibration and judged on the outcomes within the horizon after it.
use crate::{
    backtest::{BacktestOptions, Interval, bootstrap, check_period},
    error::LoyaltyError,
    history::{PurchaseHistory, PurchaseSummary},
    metrics::{ProbabilityMetrics, ScoredProbabilities},
    model::sigmoid,
    regression::{Family, dot, fit},
    rfm::mean_value,
    standardisation::{INPUT_MAX, Standardisation},
};
use serde::Serialize;
use std::{collections::BTreeSet, fmt, ops::Range};

/// Days between two cuts of the training.
const CUT_DAYS: u32 = 28;
/// Largest number of cuts.
const CUTS_MAX: u32 = 6;
/// Half-lives of the decayed numbers, in days.
const HALF_LIVES: [f64; 3] = [14.0, 60.0, 240.0];
/// Penalty of squared weights, in rows: of the baselines, and of the learned model as in the model of a bundle.
const BASELINE_PENALTY: f64 = 1.0;
const PENALTY: f64 = 100.0;

/// Inputs of a row: frequency, recency and age of purchases; number, recency and presence of outcomes; mean value and units
/// and the decayed numbers of purchases and of outcomes.
const INPUTS: usize = 14;
/// The models with their inputs and penalties. The last one is compared with the others.
const MODELS: [(&str, Range<usize>, f64); 3] =
    [("rfm", 0..3, BASELINE_PENALTY), ("outcome-rfm", 3..6, BASELINE_PENALTY), ("learned", 0..INPUTS, PENALTY)];

/// The purchases of a customer and the days of the outcome, in the same days.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct OutcomeHistory {
    pub purchases: PurchaseHistory,
    pub days: BTreeSet<i32>,
}

/// The result of [`backtest_outcomes`].
#[derive(Debug, Clone, Serialize)]
pub struct OutcomeReport {
    /// Customers with a purchase until the end of the calibration.
    pub customers: usize,
    pub horizon_days: u32,
    /// Customers with the outcome within the horizon.
    pub with_outcome: usize,
    /// Cuts of the training, each with a window of the horizon's length.
    pub cuts: usize,
    pub models: Vec<OutcomeModelReport>,
    /// Metrics of `learned` minus those of each other model.
    pub differences: Vec<OutcomeDifference>,
    pub resamples: usize,
}

/// Metrics of the probability of the outcome.
#[derive(Debug, Clone, Serialize)]
pub struct OutcomeModelReport {
    pub model: &'static str,
    #[serde(flatten)]
    pub metrics: ProbabilityMetrics,
    pub mean_probability: f64,
}

/// Differences between the learned model and a baseline. Negative is better, except for `auc`.
#[derive(Debug, Clone, Serialize)]
pub struct OutcomeDifference {
    pub model: &'static str,
    pub baseline: &'static str,
    pub auc: Interval,
    pub log_loss: Interval,
    pub brier: Interval,
    pub calibration_error: Interval,
}

/// Fits three logistic regressions to the same rows and compares their forecasts: `rfm`, of the purchases' frequency,
/// recency and age; `outcome-rfm`, of the number and the recency of earlier outcomes; `learned`, of both, values and
/// decayed numbers. A row is a customer at one of up to six cuts in the calibration, four weeks apart, whose windows end
/// within it.
///
/// Returns an error if the calibration ends before the first purchase, if the horizon ends after the last one, if the
/// calibration has no room for a window, or if all customers have the same outcome.
pub fn backtest_outcomes(
    customers: &[OutcomeHistory],
    options: &BacktestOptions,
    progress: &mut dyn FnMut(&'static str, usize, usize),
) -> Result<OutcomeReport, LoyaltyError> {
    let (end, horizon) = (options.calibration_end, options.horizon_days);
    let days = || customers.iter().flat_map(|of| of.purchases.purchases()).map(|purchase| purchase.day);
    let first_day = check_period(days, options)?;
    let known: Vec<&OutcomeHistory> = customers.iter().filter(|of| !of.purchases.until(end).is_empty()).collect();
    let outcomes: Vec<f64> = known.iter().map(|of| of.has_outcome(end, horizon)).collect();
    let with_outcome = outcomes.iter().filter(|outcome| **outcome > 0.0).count();
    if with_outcome == 0 || with_outcome == known.len() {
        let outcome = if with_outcome == 0 { "none" } else { "each" };
        return Err(LoyaltyError::OneOutcome { outcome, customers: known.len() });
    }
    let cut = |number: u32| end.checked_sub_unsigned(horizon.checked_add(number * CUT_DAYS)?);
    let cuts: Vec<i32> = (0..CUTS_MAX).filter_map(cut).filter(|cut| *cut > first_day).collect();
    if cuts.is_empty() {
        let (calibration_days, limit) = (end - first_day, i32::try_from(horizon).unwrap_or(i32::MAX).saturating_add(1));
        return Err(LoyaltyError::CalibrationTooShort { calibration_days, limit });
    }
    let (mut rows, mut targets) = (Vec::new(), Vec::new());
    for cut in &cuts {
        for of in &known {
            if let Some(inputs) = of.inputs(*cut) {
                rows.push(inputs);
                targets.push(of.has_outcome(*cut, horizon));
            }
        }
    }
    let trained_with = targets.iter().filter(|outcome| **outcome > 0.0).count();
    if trained_with == 0 || trained_with == targets.len() {
        let share = if trained_with == 0 { "no customer" } else { "each customer" };
        let reason =
            format!("{share} has the outcome within the {} windows until the end of the calibration", cuts.len());
        return Err(LoyaltyError::Unlearnable { reason });
    }
    let now: Vec<[f64; INPUTS]> = known.iter().filter_map(|of| of.inputs(end)).collect();
    let once = vec![1.0; known.len()];
    let (mut models, mut scored) = (Vec::with_capacity(MODELS.len()), Vec::with_capacity(MODELS.len()));
    for (model, inputs, penalty) in MODELS {
        progress("fit", models.len(), MODELS.len());
        let probabilities = Regression::fit(&rows, &targets, inputs, penalty).probabilities(&now);
        let mean_probability = probabilities.iter().sum::<f64>() / probabilities.len() as f64;
        let of_model = ScoredProbabilities::new(probabilities);
        models.push(OutcomeModelReport { model, metrics: of_model.metrics(&outcomes, &once), mean_probability });
        scored.push(of_model);
    }
    progress("fit", MODELS.len(), MODELS.len());
    let of_resample = |weights: &[f64]| scored.iter().map(|of| of.metrics(&outcomes, weights)).collect();
    let resampled: Vec<Vec<ProbabilityMetrics>> = bootstrap(known.len(), options, progress, of_resample);
    let learned = models.len() - 1;
    let differences = (0..learned).map(|baseline| {
        let interval = |metric: fn(&ProbabilityMetrics) -> f64| {
            let point = metric(&models[learned].metrics) - metric(&models[baseline].metrics);
            Interval::new(point, resampled.iter().map(|of| metric(&of[learned]) - metric(&of[baseline])))
        };
        OutcomeDifference {
            model: models[learned].model,
            baseline: models[baseline].model,
            auc: interval(|of| of.auc),
            log_loss: interval(|of| of.log_loss),
            brier: interval(|of| of.brier),
            calibration_error: interval(|of| of.calibration_error),
        }
    });
    let differences = differences.collect();
    Ok(OutcomeReport {
        customers: known.len(),
        horizon_days: horizon,
        with_outcome,
        cuts: cuts.len(),
        models,
        differences,
        resamples: options.resamples,
    })
}

impl OutcomeHistory {
    /// Returns 1 if the outcome is after `day` and within `days` days of it, otherwise 0.
    fn has_outcome(&self, day: i32, days: u32) -> f64 {
        let last = day.saturating_add_unsigned(days);
        f64::from(u8::from(self.days.range(day.saturating_add(1)..).next().is_some_and(|of| *of <= last)))
    }

    /// Returns the inputs at the end of `day`; none without a purchase.
    fn inputs(&self, day: i32) -> Option<[f64; INPUTS]> {
        let of_purchases = PurchaseSummary::at(&self.purchases, day)?;
        let purchases = self.purchases.until(day);
        let since = |of: i32| f64::from(day) - f64::from(of);
        let outcomes: Vec<f64> = self.days.range(..=day).map(|of| since(*of)).collect();
        let bought: Vec<f64> = purchases.iter().map(|purchase| since(purchase.day)).collect();
        let first = bought.first().copied().unwrap_or_default();
        let decayed =
            |ages: &[f64], half_life: f64| ages.iter().map(|age| (-age / half_life).exp2()).sum::<f64>().ln_1p();
        let units = purchases.iter().map(|of| of.units).sum::<f64>() / purchases.len() as f64;
        let [short, middle, long] = HALF_LIVES;
        Some([
            f64::from(of_purchases.frequency).ln_1p(),
            bought.last().copied().unwrap_or_default().ln_1p(),
            first.ln_1p(),
            (outcomes.len() as f64).ln_1p(),
            // Without an outcome, as if the last one was before the first purchase.
            outcomes.last().copied().unwrap_or(first).ln_1p(),
            f64::from(u8::from(!outcomes.is_empty())),
            mean_value(purchases).ln_1p(),
            units.ln_1p(),
            decayed(&bought, short),
            decayed(&bought, middle),
            decayed(&bought, long),
            decayed(&outcomes, short),
            decayed(&outcomes, middle),
            decayed(&outcomes, long),
        ])
    }
}

/// A logistic regression on standardised inputs.
struct Regression {
    inputs: Range<usize>,
    standardisation: Standardisation,
    weights: Vec<f64>,
}

impl Regression {
    fn fit(rows: &[[f64; INPUTS]], targets: &[f64], inputs: Range<usize>, penalty: f64) -> Self {
        let standardisation = Standardisation::of(rows.iter().map(|row| &row[inputs.clone()]), inputs.len());
        let mut model = Self { inputs, standardisation, weights: Vec::new() };
        let standardised: Vec<f64> = rows.iter().flat_map(|row| model.standardised(row)).collect();
        model.weights = fit(&standardised, model.inputs.len() + 1, targets, Family::Bernoulli, penalty);
        model
    }

    /// Returns the constant 1 and the standardised inputs.
    fn standardised(&self, row: &[f64; INPUTS]) -> Vec<f64> {
        self.standardisation.apply(&row[self.inputs.clone()], INPUT_MAX)
    }

    fn probabilities(&self, rows: &[[f64; INPUTS]]) -> Vec<f64> {
        rows.iter().map(|row| sigmoid(dot(&self.standardised(row), &self.weights))).collect()
    }
}

impl fmt::Display for OutcomeReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} customers, {} of them have the outcome within {} days ({:.1} %); learned from {} windows",
            self.customers,
            self.with_outcome,
            self.horizon_days,
            100.0 * self.with_outcome as f64 / self.customers as f64,
            self.cuts
        )?;
        let (log_loss, calibration, mean) = ("log-loss", "calibration", "mean probability");
        writeln!(f, "\n{:<12} {:>8} {log_loss:>9} {:>8} {calibration:>12} {mean:>17}", "", "AUC", "Brier")?;
        for of in &self.models {
            writeln!(
                f,
                "{:<12} {:>8.4} {:>9.4} {:>8.4} {:>12.4} {:>17.4}",
                of.model,
                of.metrics.auc,
                of.metrics.log_loss,
                of.metrics.brier,
                of.metrics.calibration_error,
                of.mean_probability
            )?;
        }
        writeln!(f, "\nDifferences with 95 % intervals over {} resamples of the customers", self.resamples)?;
        for of in &self.differences {
            writeln!(
                f,
                "{} - {:<12} AUC {}, log-loss {}, Brier {}",
                of.model, of.baseline, of.auc, of.log_loss, of.brier
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Purchase;
    use rand::{Rng, SeedableRng, rngs::StdRng};

    /// Customers who purchase once a week or twice a month; a third of them redeem a coupon at one in five purchases.
    fn customers(count: usize) -> Vec<OutcomeHistory> {
        let mut rng = StdRng::seed_from_u64(4);
        (0..count)
            .map(|number| {
                let (gap, redeems) = (if number % 2 == 0 { 7 } else { 15 }, number % 3 == 0);
                let (mut day, mut bought, mut days) = (rng.random_range(0..20), Vec::new(), BTreeSet::new());
                while day < 365 {
                    bought.push(Purchase { day, value: 10.0, units: 2.0 });
                    if redeems && rng.random::<f64>() < 0.2 {
                        days.insert(day);
                    }
                    day += rng.random_range(1..2 * gap);
                }
                OutcomeHistory { purchases: PurchaseHistory::new(bought), days }
            })
            .collect()
    }

    fn options(calibration_end: i32, horizon_days: u32) -> BacktestOptions {
        BacktestOptions { calibration_end, horizon_days, resamples: 100, seed: 1 }
    }

    #[test]
    fn purchases_and_outcomes_together_are_better_than_purchases_alone() {
        let report = backtest_outcomes(&customers(900), &options(290, 56), &mut |_, _, _| {}).unwrap();
        assert_eq!(report.models.iter().map(|of| of.model).collect::<Vec<_>>(), ["rfm", "outcome-rfm", "learned"]);
        assert_eq!((report.customers, report.cuts, report.differences.len()), (900, 6, 2));
        let [rfm, _, learned] = &report.models[..] else { panic!("{report}") };
        let (rfm, learned) = (&rfm.metrics, &learned.metrics);
        assert!(learned.auc > 0.9 && learned.auc > rfm.auc + 0.2 && learned.calibration_error < 0.08, "{report}");
        assert!(report.differences[0].log_loss.high < 0.0, "{report}");
        for of in &report.differences {
            assert!(of.auc.low <= of.auc.difference && of.auc.difference <= of.auc.high, "{report}");
        }
        // What follows the horizon is not read.
        let mut later = customers(900);
        later.iter_mut().for_each(|of| of.days.retain(|day| *day <= 290 + 56));
        let again = backtest_outcomes(&later, &options(290, 56), &mut |_, _, _| {}).unwrap();
        assert_eq!(again.to_string(), report.to_string());
    }

    #[test]
    fn periods_outside_the_data_and_a_single_outcome_are_errors() {
        let run = |customers: &[OutcomeHistory], end, horizon| {
            backtest_outcomes(customers, &options(end, horizon), &mut |_, _, _| {}).unwrap_err()
        };
        let known = customers(90);
        assert!(matches!(run(&known, 340, 56), LoyaltyError::HorizonBeyondData { .. }));
        assert!(matches!(run(&known, -1, 56), LoyaltyError::CalibrationBeforeData { .. }));
        assert!(matches!(run(&known, 40, 56), LoyaltyError::CalibrationTooShort { .. }));
        assert_eq!(run(&[], 40, 56), LoyaltyError::NoCustomers);
        let none: Vec<OutcomeHistory> =
            known.iter().map(|of| OutcomeHistory { days: BTreeSet::new(), ..of.clone() }).collect();
        assert_eq!(run(&none, 290, 56), LoyaltyError::OneOutcome { outcome: "none", customers: 90 });
    }
}
