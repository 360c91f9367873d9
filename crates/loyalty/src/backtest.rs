//! Compares the models on a later period: they are fitted to the purchases until the end of the calibration and judged
//! on those within the horizon after it.
use crate::{
    beta_geometric::{BetaGeometric, Dropout},
    error::LoyaltyError,
    fit::fit_horizon,
    gamma_gamma::{GammaGamma, ValueSummary},
    history::{Purchase, PurchaseHistory, PurchaseSummary},
    metrics::{Metrics, Outcomes, Scored},
    rfm::{RfmModel, mean_value},
    summary::{UserSummary, day_of},
};
use lodestone_core::{
    ids::{EventId, ItemId, UserId},
    statistics::resamples,
    units::{PriceMicros, Quantity, UnixMillis},
};
use lodestone_events::{Event, EventKind, EventLine};
use rayon::prelude::*;
use serde::Serialize;
use std::fmt;

/// Resamples in memory at a time, and per call of the progress callback.
const RESAMPLES_PER_STEP: usize = 32;
/// The model that the others are compared with.
const LEARNED: &str = "learned";
/// The day since 1970 that the first day of the histories becomes as events.
const FIRST_EVENT_DAY: i64 = 1000;
/// Largest number of items of a purchase as an event.
const ITEMS_MAX: f64 = 1000.0;

/// Options of [`backtest`].
#[derive(Debug, Clone, Copy)]
pub struct BacktestOptions {
    /// Last day of the calibration, in the days of the histories.
    pub calibration_end: i32,
    /// Days after it that are predicted.
    pub horizon_days: u32,
    /// Bootstrap resamples of the customers.
    pub resamples: usize,
    pub seed: u64,
}

/// The result of [`backtest`].
#[derive(Debug, Clone, Serialize)]
pub struct BacktestReport {
    /// Customers with a purchase until the end of the calibration.
    pub customers: usize,
    pub horizon_days: u32,
    /// Customers with a purchase within the horizon.
    pub buyers: usize,
    /// Days with a purchase within the horizon, over all customers.
    pub purchases: f64,
    pub models: Vec<ModelReport>,
    /// The reason why the values have no Gamma–Gamma model; `null` if they have one or there are no values.
    pub gamma_gamma_error: Option<String>,
    /// Metrics of the learned model minus those of each other model.
    pub differences: Vec<Difference>,
    pub resamples: usize,
}

/// Parameters and metrics of one model.
#[derive(Debug, Clone, Serialize)]
pub struct ModelReport {
    pub model: &'static str,
    #[serde(flatten)]
    pub metrics: Metrics,
    /// Maximised log-likelihood of the calibration; `null` for regressions, which have none of the whole history.
    pub log_likelihood: Option<f64>,
    /// Sum of the expected purchases.
    pub expected_purchases: f64,
    /// Mean of the probabilities.
    pub mean_probability: f64,
    pub parameters: Option<Parameters>,
}

/// Parameters of BG/NBD or MBG/NBD in weeks, with those of Gamma–Gamma where values exist.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Parameters {
    pub r: f64,
    pub alpha: f64,
    pub a: f64,
    pub b: f64,
    pub gamma_gamma: Option<GammaGamma>,
}

/// A difference with its 95 % percentile interval over resamples of the customers.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Interval {
    pub difference: f64,
    pub low: f64,
    pub high: f64,
}

impl fmt::Display for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:+.4} [{:+.4}, {:+.4}]", self.difference, self.low, self.high)
    }
}

/// Differences between the learned model and a baseline. Negative is better, except for `auc`, `value_gini` and the
/// correlations.
#[derive(Debug, Clone, Serialize)]
pub struct Difference {
    pub model: &'static str,
    pub baseline: &'static str,
    pub auc: Interval,
    pub log_loss: Interval,
    pub brier: Interval,
    pub calibration_error: Interval,
    pub mae: Interval,
    pub median_mae: Interval,
    pub rmse: Interval,
    pub correlation: Interval,
    pub value_mae: Option<Interval>,
    pub value_rmse: Option<Interval>,
    pub value_correlation: Option<Interval>,
    pub value_gini: Option<Interval>,
    pub value_calibration_error: Option<Interval>,
}

/// One model with its forecasts of all customers.
struct Forecasts {
    model: &'static str,
    log_likelihood: Option<f64>,
    parameters: Option<Parameters>,
    probabilities: Vec<f64>,
    counts: Vec<f64>,
    values: Option<Vec<f64>>,
}

/// Fits BG/NBD, MBG/NBD, the RFM baseline and the learned model, and compares their forecasts. `has_values`: whether
/// the histories have values. `progress` receives the name of a stage, the completed steps and their number.
///
/// Customers whose first purchase is after the calibration are left out. Returns an error if the calibration ends
/// before the first purchase, if the horizon ends after the last one, if all customers have the same outcome, or if a
/// model cannot be fitted.
pub fn backtest(
    histories: &[PurchaseHistory],
    has_values: bool,
    options: &BacktestOptions,
    progress: &mut dyn FnMut(&'static str, usize, usize),
) -> Result<BacktestReport, LoyaltyError> {
    let end = options.calibration_end;
    check_period(|| histories.iter().flat_map(PurchaseHistory::purchases).map(|purchase| purchase.day), options)?;
    let known: Vec<PurchaseHistory> =
        histories.iter().filter(|history| !history.until(end).is_empty()).cloned().collect();
    let within = |history: &PurchaseHistory| history.within(end, options.horizon_days).len() as f64;
    let value = |history: &PurchaseHistory| history.within(end, options.horizon_days).iter().map(|of| of.value).sum();
    let repeats = |history: &PurchaseHistory| history.until(end).len() as f64 - 1.0;
    let outcomes = Outcomes::new(known.iter().map(within).collect(), known.iter().map(value).collect())
        .with_repeats(known.iter().map(repeats).collect());
    let buyers = outcomes.counts.iter().filter(|count| **count > 0.0).count();
    if buyers == 0 || buyers == known.len() {
        let outcome = if buyers == 0 { "none" } else { "each" };
        return Err(LoyaltyError::OneOutcome { outcome, customers: known.len() });
    }

    const STAGES: usize = 4;
    let mut forecasts = Vec::with_capacity(STAGES);
    let summaries: Vec<PurchaseSummary> =
        known.iter().filter_map(|history| PurchaseSummary::at(history, end)).collect();
    let values: Vec<ValueSummary> = known.iter().map(|history| value_summary(history, end)).collect();
    // Without a Gamma–Gamma model, BG/NBD and MBG/NBD predict no values.
    let (spend, gamma_gamma_error) = match has_values.then(|| GammaGamma::fit(&values)) {
        None => (None, None),
        Some(Ok(spend)) => (Some(spend), None),
        Some(Err(LoyaltyError::NoCustomers)) => (None, Some("no repeat purchase has a value".to_owned())),
        Some(Err(error)) => (None, Some(error.to_string())),
    };
    for dropout in [Dropout::AfterRepeatPurchases, Dropout::AfterEveryPurchase] {
        progress("fit", forecasts.len(), STAGES);
        forecasts.push(beta_geometric(&summaries, &values, spend, dropout, options.horizon_days)?);
    }
    progress("fit", forecasts.len(), STAGES);
    forecasts.push(rfm(&known, options, has_values)?);
    progress("fit", forecasts.len(), STAGES);
    forecasts.push(learned(&known, options, has_values)?);
    progress("fit", STAGES, STAGES);

    let purchases = outcomes.counts.iter().sum();
    let (models, differences) = compare(forecasts, &outcomes, options, progress);
    Ok(BacktestReport {
        customers: known.len(),
        horizon_days: options.horizon_days,
        buyers,
        purchases,
        models,
        gamma_gamma_error,
        differences,
        resamples: options.resamples,
    })
}

/// Returns the first of the days of purchases, or an error if the calibration or the horizon is outside of them.
pub(crate) fn check_period<I: Iterator<Item = i32>>(
    days: impl Fn() -> I,
    options: &BacktestOptions,
) -> Result<i32, LoyaltyError> {
    let BacktestOptions { calibration_end, horizon_days, .. } = *options;
    let (Some(first_day), Some(last_day)) = (days().min(), days().max()) else {
        return Err(LoyaltyError::NoCustomers);
    };
    if calibration_end < first_day {
        return Err(LoyaltyError::CalibrationBeforeData { calibration_end, first_day });
    }
    if i64::from(calibration_end) + i64::from(horizon_days) > i64::from(last_day) {
        return Err(LoyaltyError::HorizonBeyondData { calibration_end, horizon_days, last_day });
    }
    Ok(first_day)
}

/// Number and mean of the customer's repeat purchases with a value, as in Fader and Hardie 2013.
fn value_summary(history: &PurchaseHistory, end: i32) -> ValueSummary {
    let repeats = history.until(end).iter().skip(1).map(|purchase| purchase.value).filter(|value| *value > 0.0);
    let (count, sum) = repeats.fold((0u32, 0.0), |(count, sum), value| (count + 1, sum + value));
    ValueSummary { count, mean: if count > 0 { sum / f64::from(count) } else { 0.0 } }
}

fn beta_geometric(
    summaries: &[PurchaseSummary],
    values: &[ValueSummary],
    spend: Option<GammaGamma>,
    dropout: Dropout,
    horizon_days: u32,
) -> Result<Forecasts, LoyaltyError> {
    let model = BetaGeometric::fit(summaries, dropout)?;
    let weeks = f64::from(horizon_days) / PurchaseSummary::DAYS_PER_WEEK;
    let counts: Vec<f64> = summaries.par_iter().map(|of| model.expected_purchases(of, weeks)).collect();
    let value_of = |spend: GammaGamma| {
        counts.iter().zip(values).map(|(count, value)| count * spend.expected_value(value)).collect::<Vec<f64>>()
    };
    Ok(Forecasts {
        model: dropout.model_name(),
        log_likelihood: Some(model.log_likelihood),
        parameters: Some(Parameters { r: model.r, alpha: model.alpha, a: model.a, b: model.b, gamma_gamma: spend }),
        probabilities: summaries.par_iter().map(|of| model.purchase_probability(of, weeks)).collect(),
        values: spend.map(value_of),
        counts,
    })
}

fn rfm(known: &[PurchaseHistory], options: &BacktestOptions, has_values: bool) -> Result<Forecasts, LoyaltyError> {
    let model = RfmModel::fit(known, options.calibration_end, options.horizon_days)?;
    let forecasts: Vec<(f64, f64)> =
        known.iter().filter_map(|history| model.forecast(history, options.calibration_end)).collect();
    let values = known
        .iter()
        .zip(&forecasts)
        .map(|(history, (_, count))| count * mean_value(history.until(options.calibration_end)))
        .collect();
    Ok(Forecasts {
        model: "rfm",
        log_likelihood: None,
        parameters: None,
        probabilities: forecasts.iter().map(|of| of.0).collect(),
        counts: forecasts.iter().map(|of| of.1).collect(),
        values: has_values.then_some(values),
    })
}

/// Fits the model of a bundle, with the purchases until the end of the calibration as events.
fn learned(known: &[PurchaseHistory], options: &BacktestOptions, has_values: bool) -> Result<Forecasts, LoyaltyError> {
    let end = options.calibration_end;
    let days = known.iter().filter_map(|history| history.purchases().first()).map(|purchase| purchase.day);
    let first = i64::from(days.min().unwrap_or_default());
    let event_day = |day: i32| i64::from(day) - first + FIRST_EVENT_DAY;
    // The last day that events can have.
    let limit = day_of(UnixMillis(i64::MAX));
    let last_day = u16::try_from(event_day(end)).ok().filter(|day| *day < limit);
    let last_day = last_day.ok_or_else(|| LoyaltyError::Option {
        field: "calibration days",
        value: f64::from(end) - first as f64,
        limit: format!("below {}", i64::from(limit) - FIRST_EVENT_DAY),
    })?;
    let unlearnable = |reason: String| LoyaltyError::Unlearnable { reason };
    let of_customer = |(customer, history): (usize, &PurchaseHistory)| -> Result<Vec<Event>, String> {
        let user = UserId::signed_in(&format!("{customer:09}")).map_err(|error| error.to_string())?;
        let (id, item) = (EventId::parse("e"), ItemId::parse("i"));
        let (id, item) = (id.map_err(|error| error.to_string())?, item.map_err(|error| error.to_string())?);
        let event = |purchase: &Purchase| {
            let price = PriceMicros::new((purchase.value * 1e6) as i64).filter(|_| has_values);
            let line = EventLine { item: item.clone(), quantity: Quantity::ONE, price, rank: 0 };
            let mut lines = vec![line];
            let items = purchase.units.round().clamp(1.0, ITEMS_MAX) as usize;
            lines.resize(items, EventLine { price: None, ..lines[0].clone() });
            let at = UnixMillis(event_day(purchase.day) * UnixMillis::DAY);
            Event { lines, ..Event::new(id.clone(), EventKind::Purchase, user.clone(), at) }
        };
        Ok(history.until(end).iter().map(event).collect())
    };
    let events: Result<Vec<Vec<Event>>, String> = known.par_iter().enumerate().map(of_customer).collect();
    let events: Vec<Event> = events.map_err(unlearnable)?.into_iter().flatten().collect();
    let model = fit_horizon(&events, last_day, options.horizon_days).map_err(unlearnable)?;
    let forecast = |events: &[Event]| {
        let mut summary = UserSummary::default();
        events.iter().for_each(|event| summary.add(event));
        let score = model.score(Some(&summary), last_day);
        let of = &score.horizons[0];
        (of.purchase.value, of.purchases.value, of.value.map_or(0.0, |value| value.value))
    };
    let customers: Vec<&[Event]> = events.chunk_by(|left, right| left.user == right.user).collect();
    let forecasts: Vec<(f64, f64, f64)> = customers.par_iter().map(|events| forecast(events)).collect();
    Ok(Forecasts {
        model: LEARNED,
        log_likelihood: None,
        parameters: None,
        probabilities: forecasts.iter().map(|of| of.0).collect(),
        counts: forecasts.iter().map(|of| of.1).collect(),
        values: has_values.then(|| forecasts.iter().map(|of| of.2).collect()),
    })
}

/// Computes the metrics of each model, and the differences between the last and the others on shared resamples.
fn compare(
    forecasts: Vec<Forecasts>,
    outcomes: &Outcomes,
    options: &BacktestOptions,
    progress: &mut dyn FnMut(&'static str, usize, usize),
) -> (Vec<ModelReport>, Vec<Difference>) {
    let count = outcomes.counts.len();
    let once = vec![1.0; count];
    let (mut reports, mut scored) = (Vec::new(), Vec::new());
    for of in forecasts {
        let expected_purchases = of.counts.iter().sum();
        let mean_probability = of.probabilities.iter().sum::<f64>() / count as f64;
        let of_model = Scored::new(of.probabilities, of.counts, of.values, outcomes);
        reports.push(ModelReport {
            model: of.model,
            metrics: of_model.metrics(outcomes, &once),
            log_likelihood: of.log_likelihood,
            expected_purchases,
            mean_probability,
            parameters: of.parameters,
        });
        scored.push(of_model);
    }
    let of_resample = |weights: &[f64]| scored.iter().map(|of| of.metrics(outcomes, weights)).collect();
    let resampled: Vec<Vec<Metrics>> = bootstrap(count, options, progress, of_resample);
    let learned = reports.len() - 1;
    let differences = (0..learned).map(|baseline| {
        let all: Vec<Metrics> =
            resampled.iter().map(|of| Metrics::zip(&of[learned], &of[baseline], |left, right| left - right)).collect();
        let point = Metrics::zip(&reports[learned].metrics, &reports[baseline].metrics, |left, right| left - right);
        Difference::new(reports[learned].model, reports[baseline].model, &point, &all)
    });
    let differences = differences.collect();
    (reports, differences)
}

/// Computes the metrics of each resample of `count` customers, of their weights in it.
pub(crate) fn bootstrap<M: Send>(
    count: usize,
    options: &BacktestOptions,
    progress: &mut dyn FnMut(&'static str, usize, usize),
    metrics: impl Fn(&[f64]) -> M + Sync,
) -> Vec<M> {
    let mut resampled: Vec<M> = Vec::with_capacity(options.resamples);
    // In steps, because all resamples of a million customers would take gigabytes.
    for step in 0..options.resamples.div_ceil(RESAMPLES_PER_STEP) {
        progress("bootstrap", resampled.len(), options.resamples);
        let size = RESAMPLES_PER_STEP.min(options.resamples - resampled.len());
        let samples = resamples(count, size, options.seed.wrapping_add(step as u64));
        resampled.par_extend(samples.par_iter().map(|sample| {
            let mut weights = vec![0.0; count];
            sample.iter().for_each(|index| weights[*index as usize] += 1.0);
            metrics(&weights)
        }));
    }
    progress("bootstrap", options.resamples, options.resamples);
    resampled
}

impl Interval {
    /// Returns a difference with the percentiles of those of the resamples, without resamples that have none.
    pub(crate) fn new(difference: f64, resampled: impl Iterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = resampled.filter(|value| value.is_finite()).collect();
        values.sort_by(f64::total_cmp);
        let quantile = |share: f64| {
            let index = ((values.len() as f64 * share) as usize).min(values.len().saturating_sub(1));
            values.get(index).copied().unwrap_or(difference)
        };
        Self { difference, low: quantile(0.025), high: quantile(0.975) }
    }
}

impl Difference {
    fn new(model: &'static str, baseline: &'static str, point: &Metrics, resampled: &[Metrics]) -> Self {
        let interval = |metric: fn(&Metrics) -> f64| Interval::new(metric(point), resampled.iter().map(metric));
        let has_values = point.value_mae.is_some();
        Self {
            model,
            baseline,
            auc: interval(|of| of.probability.auc),
            log_loss: interval(|of| of.probability.log_loss),
            brier: interval(|of| of.probability.brier),
            calibration_error: interval(|of| of.probability.calibration_error),
            mae: interval(|of| of.mae),
            median_mae: interval(|of| of.median_mae),
            rmse: interval(|of| of.rmse),
            correlation: interval(|of| of.correlation),
            value_mae: has_values.then(|| interval(|of| of.value_mae.unwrap_or(f64::NAN))),
            value_rmse: has_values.then(|| interval(|of| of.value_rmse.unwrap_or(f64::NAN))),
            value_correlation: has_values.then(|| interval(|of| of.value_correlation.unwrap_or(f64::NAN))),
            value_gini: has_values.then(|| interval(|of| of.value_gini.unwrap_or(f64::NAN))),
            value_calibration_error: has_values.then(|| interval(|of| of.value_calibration_error.unwrap_or(f64::NAN))),
        }
    }
}

impl fmt::Display for BacktestReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} customers, {} of them purchase within {} days ({:.1} %), on {:.0} days",
            self.customers,
            self.buyers,
            self.horizon_days,
            100.0 * self.buyers as f64 / self.customers as f64,
            self.purchases
        )?;
        writeln!(
            f,
            "\n{:<10} {:>8} {:>9} {:>8} {:>12} {:>8} {:>10} {:>8} {:>12} {:>10} {:>15}",
            "",
            "AUC",
            "log-loss",
            "Brier",
            "calibration",
            "MAE",
            "median MAE",
            "RMSE",
            "correlation",
            "purchases",
            "log-likelihood"
        )?;
        for of in &self.models {
            let optional =
                |value: Option<f64>, digits: usize| value.map_or("-".to_owned(), |value| format!("{value:.digits$}"));
            writeln!(
                f,
                "{:<10} {:>8.4} {:>9.4} {:>8.4} {:>12.4} {:>8.4} {:>10.4} {:>8.4} {:>12.4} {:>10.0} {:>15}",
                of.model,
                of.metrics.probability.auc,
                of.metrics.probability.log_loss,
                of.metrics.probability.brier,
                of.metrics.probability.calibration_error,
                of.metrics.mae,
                of.metrics.median_mae,
                of.metrics.rmse,
                of.metrics.correlation,
                of.expected_purchases,
                optional(of.log_likelihood, 1)
            )?;
        }
        if self.models.iter().any(|of| of.metrics.value_mae.is_some()) {
            let (mae, rmse) = ("value MAE", "value RMSE");
            writeln!(f, "\n{:<10} {mae:>10} {rmse:>11} {:>12} {:>8} {:>12}", "", "correlation", "Gini", "calibration")?;
        }
        for of in &self.models {
            let Metrics { value_mae: Some(mae), value_rmse: Some(rmse), .. } = of.metrics else { continue };
            let [correlation, gini, calibration] =
                [of.metrics.value_correlation, of.metrics.value_gini, of.metrics.value_calibration_error]
                    .map(Option::unwrap_or_default);
            writeln!(
                f,
                "{:<10} {mae:>10.2} {rmse:>11.2} {correlation:>12.4} {gini:>8.4} {calibration:>12.4}",
                of.model
            )?;
        }
        for of in &self.models {
            let Some(parameters) = of.parameters else { continue };
            write!(
                f,
                "{}{}: r {:.4}, alpha {:.4} weeks, a {:.4}, b {:.4}",
                if of.model == self.models[0].model { "\n" } else { "" },
                of.model,
                parameters.r,
                parameters.alpha,
                parameters.a,
                parameters.b
            )?;
            match parameters.gamma_gamma {
                Some(spend) => writeln!(f, "; Gamma–Gamma p {:.4}, q {:.4}, v {:.4}", spend.p, spend.q, spend.v)?,
                None => writeln!(f)?,
            }
        }
        if let Some(error) = &self.gamma_gamma_error {
            writeln!(f, "no Gamma–Gamma model: {error}")?;
        }
        writeln!(f, "\nDifferences with 95 % intervals over {} resamples of the customers", self.resamples)?;
        for of in &self.differences {
            writeln!(
                f,
                "{} - {:<8} AUC {}, log-loss {}, Brier {}, MAE {}, median MAE {}, RMSE {}",
                of.model, of.baseline, of.auc, of.log_loss, of.brier, of.mae, of.median_mae, of.rmse
            )?;
            let (Some(mae), Some(rmse), Some(gini)) = (&of.value_mae, &of.value_rmse, &of.value_gini) else { continue };
            writeln!(f, "{:<19} value MAE {}, RMSE {}, Gini {}", "", mae, rmse, gini)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{history::Purchase, simulate::purchase_times};
    use rand::{Rng, SeedableRng, rngs::StdRng};

    fn customers(count: usize) -> Vec<PurchaseHistory> {
        let mut rng = StdRng::seed_from_u64(2);
        (0..count)
            .map(|_| {
                let first = rng.random_range(0..60);
                let times = purchase_times(&mut rng, [0.8, 5.0, 0.5, 4.0], f64::from(365 - first) / 7.0);
                let days = std::iter::once(0.0).chain(times).map(|time| first + (time * 7.0) as i32);
                PurchaseHistory::new(days.map(|day| Purchase { day, value: 10.0, units: 1.0 }).collect())
            })
            .collect()
    }

    fn run(
        histories: &[PurchaseHistory],
        calibration_end: i32,
        horizon_days: u32,
    ) -> Result<BacktestReport, LoyaltyError> {
        let options = BacktestOptions { calibration_end, horizon_days, resamples: 60, seed: 1 };
        backtest(histories, true, &options, &mut |_, _, _| {})
    }

    #[test]
    fn all_models_rank_buyers_first_and_the_intervals_contain_the_differences() {
        let report = run(&customers(1500), 240, 90).unwrap();
        assert_eq!(
            report.models.iter().map(|of| of.model).collect::<Vec<_>>(),
            ["bg-nbd", "mbg-nbd", "rfm", "learned"]
        );
        for of in &report.models {
            assert!(of.metrics.probability.auc > 0.65 && of.metrics.probability.calibration_error < 0.1, "{report}");
            assert!((of.expected_purchases / report.purchases - 1.0).abs() < 0.25, "{report}");
        }
        for of in &report.differences {
            assert!(of.auc.low <= of.auc.difference && of.auc.difference <= of.auc.high);
        }
        assert_eq!(report.differences.len(), 3);
    }

    #[test]
    fn a_report_without_a_gamma_gamma_model_says_why() {
        // Equal values do not determine its parameters.
        let equal = run(&customers(1500), 240, 90).unwrap();
        let parameters = equal.models[0].parameters.unwrap();
        assert_eq!(parameters.gamma_gamma.is_none(), equal.gamma_gamma_error.is_some(), "{equal}");
        let free = |of: &Purchase| Purchase { value: 0.0, ..*of };
        let customers: Vec<PurchaseHistory> = customers(1500)
            .iter()
            .map(|history| PurchaseHistory::new(history.purchases().iter().map(free).collect()))
            .collect();
        let report = run(&customers, 240, 90).unwrap();
        assert_eq!(report.gamma_gamma_error.as_deref(), Some("no repeat purchase has a value"));
        assert!(report.to_string().contains("no Gamma–Gamma model: no repeat purchase has a value"), "{report}");
        let options = BacktestOptions { calibration_end: 240, horizon_days: 90, resamples: 60, seed: 1 };
        let without = backtest(&customers, false, &options, &mut |_, _, _| {}).unwrap();
        assert_eq!(without.gamma_gamma_error, None);
    }

    #[test]
    fn periods_outside_the_data_are_errors_with_value_and_limit() {
        let histories = customers(100);
        let last = histories.iter().flat_map(PurchaseHistory::purchases).map(|of| of.day).max().unwrap();
        let error = run(&histories, last - 10, 11).unwrap_err();
        assert!(error.to_string().contains("the horizon of 11 days"), "{error}");
        assert!(error.to_string().contains("at most 10 days"), "{error}");
        assert!(matches!(run(&histories, -1, 10), Err(LoyaltyError::CalibrationBeforeData { .. })));
        assert_eq!(run(&[], 10, 10).unwrap_err(), LoyaltyError::NoCustomers);
        assert!(matches!(
            run(&histories, 5, 10),
            Err(LoyaltyError::CalibrationTooShort { .. }
                | LoyaltyError::NoRepeatPurchases { .. }
                | LoyaltyError::OneOutcome { .. }
                | LoyaltyError::NotConverged { .. })
        ));
    }

    /// The learned model has events, whose days are limited.
    #[test]
    fn a_calibration_of_more_than_a_century_is_an_error() {
        let mut histories = customers(200);
        histories.push(PurchaseHistory::new(vec![Purchase { day: -60_000, value: 1.0, units: 1.0 }]));
        let options = BacktestOptions { calibration_end: 240, horizon_days: 90, resamples: 0, seed: 1 };
        let error = learned(&histories, &options, true).map(drop).unwrap_err().to_string();
        assert!(error.contains("calibration days is 60240") && error.contains("below 48710"), "{error}");
    }

    #[test]
    fn customers_with_one_outcome_are_an_error() {
        let daily = |_| PurchaseHistory::new((0..100).map(|day| Purchase { day, value: 1.0, units: 1.0 }).collect());
        let histories: Vec<PurchaseHistory> = (0..5).map(daily).collect();
        let error = run(&histories, 50, 20).unwrap_err();
        assert_eq!(error, LoyaltyError::OneOutcome { outcome: "each", customers: 5 });
    }
}
