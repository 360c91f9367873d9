//! Features of a customer's history at a moment, for a horizon.
use crate::history::Purchase;

/// Number of features of [`features`].
pub(crate) const FEATURES: usize = 20;
/// Positions of features that the heads of the learned model select.
pub(crate) const FREQUENCY: usize = 0;
pub(crate) const LOG_GAP: usize = 1;
pub(crate) const LOG_AGE: usize = 2;
pub(crate) const DECAYED: [usize; 3] = [10, 11, 12];

/// Half-lives of the decayed frequencies, as shares of the horizon.
const HALF_LIVES: [f64; 3] = [0.25, 0.5, 1.0];

/// Computes the features of `purchases` (not empty, all until the end of `day`). Times are relative to the horizon, so
/// that features at an earlier day and for a shorter horizon mean the same.
pub(crate) fn features(purchases: &[Purchase], day: i32, horizon_days: f64) -> [f64; FEATURES] {
    let (Some(first), Some(last)) = (purchases.first(), purchases.last()) else { return [0.0; FEATURES] };
    let since = |earlier: i32| f64::from(day) - f64::from(earlier);
    let smooth = horizon_days / 16.0;
    let (age, gap) = (since(first.day), since(last.day));
    let repeats = (purchases.len() - 1) as f64;
    let frequency = repeats.ln_1p();
    let log_gap = (gap + smooth).ln();
    let log_age = (age + smooth).ln();
    let decayed = HALF_LIVES.map(|share| {
        let half_life = share * horizon_days;
        (0.05 + purchases.iter().map(|of| (-since(of.day) / half_life).exp2()).sum::<f64>()).ln()
    });
    let count = purchases.len() as f64;
    let units = purchases.iter().map(|of| of.units).sum::<f64>() / count;
    let value = purchases.iter().map(|of| of.value).sum::<f64>() / count;
    let units_max = purchases.iter().map(|of| of.units).fold(0.0, f64::max);
    // Mean time between purchases, shrunk towards a quarter of the horizon.
    let interval = (age - gap + horizon_days / 4.0) / (repeats + 1.0);
    let overdue = (gap / interval + 0.1).ln();
    // Variation of the intervals, which is small for regular customers.
    let variation = if repeats >= 2.0 {
        let mean = (age - gap) / repeats;
        let squares: f64 =
            purchases.windows(2).map(|pair| (f64::from(pair[1].day) - f64::from(pair[0].day) - mean).powi(2)).sum();
        ((squares / repeats).sqrt() / mean).min(5.0)
    } else {
        1.0
    };
    [
        frequency,
        log_gap,
        log_age,
        frequency * log_gap,
        frequency * log_age,
        log_gap * log_age,
        frequency * frequency,
        log_gap * log_gap,
        log_age * log_age,
        f64::from(u8::from(repeats == 0.0)),
        decayed[0],
        decayed[1],
        decayed[2],
        units.ln_1p(),
        value.ln_1p(),
        units_max.ln_1p(),
        last.units.ln_1p(),
        overdue,
        overdue * frequency,
        variation,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_do_not_depend_on_the_unit_of_time() {
        let at = |scale: i32| {
            let purchases = [0, 10, 40, 55].map(|day| Purchase { day: day * scale, value: 7.0, units: 2.0 });
            features(&purchases, 80 * scale, f64::from(30 * scale))
        };
        let (days, doubled) = (at(1), at(2));
        // Logarithms of times move by a constant, which the regression absorbs; the others stay.
        for index in [FREQUENCY, DECAYED[0], DECAYED[2], 13, 14, 17, 19] {
            assert!((days[index] - doubled[index]).abs() < 1e-12, "{index}");
        }
        assert!((doubled[LOG_GAP] - days[LOG_GAP] - 2f64.ln()).abs() < 1e-12);
    }

    #[test]
    fn features_are_finite_for_one_purchase_of_a_billion_today() {
        let purchase = Purchase { day: 3, value: 1e9, units: 1e9 };
        assert!(features(&[purchase], 3, 1.0).iter().all(|feature| feature.is_finite()));
        assert_eq!(features(&[], 3, 1.0), [0.0; FEATURES]);
    }
}
