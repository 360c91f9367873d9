//! The RFM baseline: regressions on recency and frequency, learned from the last window of the calibration.
use crate::{
    error::LoyaltyError,
    history::{Purchase, PurchaseHistory, PurchaseSummary},
    regression::{Family, dot, fit},
    standardisation::Standardisation,
};

/// Largest logarithm of an expected number.
const LOG_COUNT_MAX: f64 = 40.0;
/// Shortest calibration, in days, that can be learned from.
const DAYS_MIN: i32 = 14;
/// Frequency, recency and age.
const INPUTS: usize = 3;

/// Returns the mean value of the purchases; 0 without any.
pub(crate) fn mean_value(purchases: &[Purchase]) -> f64 {
    purchases.iter().map(|of| of.value).sum::<f64>() / purchases.len().max(1) as f64
}

/// Returns the first day of all histories, or an error if there is none, or if the calibration is too short.
pub(crate) fn first_day(histories: &[PurchaseHistory], end: i32, horizon_days: u32) -> Result<i32, LoyaltyError> {
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

/// The usual baseline: logistic and Poisson regressions on frequency, recency and age, learned from the last window of
/// the calibration. If the horizon does not fit, the window is half of the calibration and a constant rate extends it.
#[derive(Debug, Clone)]
pub struct RfmModel {
    /// The horizon in windows, at least 1.
    windows: f64,
    standardisation: Standardisation,
    purchase: Vec<f64>,
    count: Vec<f64>,
}

impl RfmModel {
    /// Fits the model to the purchases until the end of the day `end`.
    ///
    /// Returns an error without customers, for a horizon of 0 days, and for a calibration shorter than 14 days.
    pub fn fit(histories: &[PurchaseHistory], end: i32, horizon_days: u32) -> Result<Self, LoyaltyError> {
        let first = first_day(histories, end, horizon_days)?;
        let half = ((f64::from(end) - f64::from(first)) / 2.0) as u32;
        let window = horizon_days.min(half);
        let cut = end.saturating_sub_unsigned(window);
        let rows: Vec<([f64; INPUTS], f64)> = histories
            .iter()
            .filter_map(|history| Some((Self::inputs(history, cut)?, history.within(cut, window).len() as f64)))
            .collect();
        let standardisation = Standardisation::of(rows.iter().map(|row| row.0.as_slice()), INPUTS);
        let windows = f64::from(horizon_days) / f64::from(window);
        let mut model = Self { windows, standardisation, purchase: Vec::new(), count: Vec::new() };
        let inputs: Vec<f64> = rows.iter().flat_map(|row| model.standardised(&row.0)).collect();
        let buys: Vec<f64> = rows.iter().map(|row| f64::from(u8::from(row.1 > 0.0))).collect();
        let counts: Vec<f64> = rows.iter().map(|row| row.1).collect();
        model.purchase = fit(&inputs, INPUTS + 1, &buys, Family::Bernoulli, 1.0);
        model.count = fit(&inputs, INPUTS + 1, &counts, Family::Poisson, 1.0);
        Ok(model)
    }

    fn inputs(history: &PurchaseHistory, day: i32) -> Option<[f64; INPUTS]> {
        let summary = PurchaseSummary::at(history, day)?;
        let gap = summary.age - summary.recency;
        Some([f64::from(summary.frequency).ln_1p(), gap.ln_1p(), summary.age.ln_1p()])
    }

    /// The baseline does not clip its inputs, as usual.
    fn standardised(&self, inputs: &[f64; INPUTS]) -> Vec<f64> {
        self.standardisation.apply(inputs, f64::INFINITY)
    }

    /// Forecasts probability and number. Returns `None` for a customer without purchases until the end of `day`.
    pub fn forecast(&self, history: &PurchaseHistory, day: i32) -> Option<(f64, f64)> {
        let inputs = self.standardised(&Self::inputs(history, day)?);
        let none = 1.0 / (1.0 + dot(&inputs, &self.purchase).exp());
        let count = dot(&inputs, &self.count).min(LOG_COUNT_MAX).exp() * self.windows;
        Some((1.0 - none.powf(self.windows), count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulate::purchase_times;
    use rand::{Rng, SeedableRng, rngs::StdRng};

    /// Customers of BG/NBD over 52 weeks.
    fn customers(count: usize, seed: u64) -> Vec<PurchaseHistory> {
        let mut rng = StdRng::seed_from_u64(seed);
        (0..count)
            .map(|_| {
                let first = rng.random_range(0..84);
                let repeats = purchase_times(&mut rng, [0.5, 6.0, 0.6, 3.0], f64::from(364 - first) / 7.0);
                let days = std::iter::once(0.0).chain(repeats).map(|time| first + (time * 7.0) as i32);
                PurchaseHistory::new(days.map(|day| Purchase { day, value: 1.0, units: 1.0 }).collect())
            })
            .collect()
    }

    #[test]
    fn later_purchases_do_not_change_the_fit() {
        let histories = customers(500, 3);
        let until = |history: &PurchaseHistory| PurchaseHistory::new(history.until(200).to_vec());
        let before: Vec<PurchaseHistory> = histories.iter().map(until).collect();
        let with_later = RfmModel::fit(&histories, 200, 60).unwrap();
        let without = RfmModel::fit(&before, 200, 60).unwrap();
        for (history, before) in histories.iter().zip(&before) {
            assert_eq!(with_later.forecast(history, 200), without.forecast(before, 200));
        }
    }

    #[test]
    fn short_calibrations_and_empty_horizons_are_errors() {
        let histories = customers(50, 1);
        let fit = |end, horizon| RfmModel::fit(&histories, end, horizon).map(drop);
        assert!(matches!(fit(-5, 10), Err(LoyaltyError::CalibrationBeforeData { calibration_end: -5, .. })));
        assert!(matches!(fit(90, 0), Err(LoyaltyError::Option { field: "horizon_days", .. })));
        assert!(matches!(fit(10, 10), Err(LoyaltyError::CalibrationTooShort { limit: DAYS_MIN, .. })));
        assert!(RfmModel::fit(&[], 90, 10).is_err());
    }
}
