//! Anytime-valid confidence intervals: an experiment may be monitored continuously and stopped at any time without
//! inflating the error rate.
use serde::Serialize;

/// Streaming count, mean and variance (Welford 1962).
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Moments {
    pub count: u64,
    pub mean: f64,
    squares: f64,
}

impl Moments {
    pub fn add(&mut self, value: f64) {
        self.count += 1;
        let before = value - self.mean;
        self.mean += before / self.count as f64;
        self.squares += before * (value - self.mean);
    }

    /// Builds the moments from the count, the sum and the sum of squares.
    pub fn of_sums(count: u64, sum: f64, squares: f64) -> Self {
        let mean = if count == 0 { 0.0 } else { sum / count as f64 };
        Self { count, mean, squares: (squares - mean * sum).max(0.0) }
    }

    /// Returns the half width of the anytime-valid interval of the mean; [`sequential_interval`] describes `planned`
    /// and `alpha`. Returns `None` for fewer than two values or a variance of 0.
    pub fn sequential_half_width(&self, planned: f64, alpha: f64) -> Option<f64> {
        let variance = self.variance() / self.count as f64;
        (self.count > 1 && variance > 0.0)
            .then(|| Mixture::new(variance, self.variance() / planned.max(2.0), alpha).half_width())
    }

    /// Returns the sample variance; 0 for fewer than two values.
    pub fn variance(&self) -> f64 {
        if self.count < 2 { 0.0 } else { self.squares / (self.count - 1) as f64 }
    }
}

/// The difference of two means, second minus first, with its anytime-valid interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct SequentialInterval {
    pub difference: f64,
    pub low: f64,
    pub high: f64,
    /// Anytime-valid p-value: stopping as soon as it is below a level has at most that probability of a type I error.
    pub p: f64,
}

/// Returns the interval of the difference of two means that contains the true difference at all times simultaneously
/// with probability `1 - alpha`, for `alpha` above 0 and below 1. It is the normal mixture of Robbins (1970) with
/// estimated variances: the asymptotic confidence sequence of Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas (2024,
/// "Time-uniform central limit theory and asymptotic confidence sequences"), which is the mixture test of Johari,
/// Pekelis and Walsh (2022, "Always valid inference"). If `V` is the variance of the difference and `T` that of the
/// mixture, the half width is `√(V (V + T) / T · (2 ln(1 / alpha) + ln((V + T) / V)))`.
///
/// `planned` is the number of users in an arm at which the interval is narrowest for its level; the interval is valid
/// at any other number too. Returns `None` while an arm has fewer than two values or the variance is 0.
pub fn sequential_interval(first: &Moments, second: &Moments, planned: f64, alpha: f64) -> Option<SequentialInterval> {
    let variance = first.variance() / first.count as f64 + second.variance() / second.count as f64;
    if first.count < 2 || second.count < 2 || variance.is_nan() || variance <= 0.0 {
        return None;
    }
    let mixture = Mixture::new(variance, (first.variance() + second.variance()) / planned.max(2.0), alpha);
    let difference = second.mean - first.mean;
    let half = mixture.half_width();
    Some(SequentialInterval { difference, low: difference - half, high: difference + half, p: mixture.p(difference) })
}

/// The normal mixture for a mean of known variance.
struct Mixture {
    /// `2 ln(1 / alpha)`.
    level: f64,
    /// `V (V + T) / T`.
    spread: f64,
    /// `ln((V + T) / V)`.
    growth: f64,
}

impl Mixture {
    /// Builds the mixture for a mean of this variance (above 0); the interval is narrowest at the variance `planned`.
    fn new(variance: f64, planned: f64, alpha: f64) -> Self {
        let level = 2.0 * (1.0 / alpha).ln();
        // Nearly minimises the half width at `planned` (Waudby-Smith et al., appendix B.2).
        let mixture = (level + level.ln() + 1.0) * planned;
        let spread = variance * (variance + mixture) / mixture;
        Self { level, spread, growth: ((variance + mixture) / variance).ln() }
    }

    fn half_width(&self) -> f64 {
        (self.spread * (self.level + self.growth)).sqrt()
    }

    fn p(&self, difference: f64) -> f64 {
        (0.5 * self.growth - difference * difference / (2.0 * self.spread)).exp().min(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::{Rng, SeedableRng, rngs::StdRng};

    /// Counts the runs of 400 whose sequential and whose fixed interval ever excluded `truth`, checked after each pair
    /// of users from the hundredth on.
    fn excluded(seed: u64, rates: (f64, f64), truth: f64) -> (usize, usize) {
        const RUNS: usize = 400;
        let mut rng = StdRng::seed_from_u64(seed);
        let (mut sequential, mut fixed) = (0, 0);
        for _ in 0..RUNS {
            let (mut first, mut second) = (Moments::default(), Moments::default());
            let (mut out, mut fixed_out) = (false, false);
            for user in 0..3000 {
                first.add(f64::from(u8::from(rng.random_bool(rates.0))));
                second.add(f64::from(u8::from(rng.random_bool(rates.1))));
                if user < 100 {
                    continue;
                }
                let Some(interval) = sequential_interval(&first, &second, 2000.0, 0.05) else { continue };
                out |= !(interval.low..=interval.high).contains(&truth);
                let error = ((first.variance() + second.variance()) / first.count as f64).sqrt();
                fixed_out |= (interval.difference - truth).abs() > 1.96 * error;
            }
            sequential += usize::from(out);
            fixed += usize::from(fixed_out);
        }
        (sequential, fixed)
    }

    #[test]
    fn continuous_monitoring_has_a_type_i_error_below_5_percent() {
        let (sequential, fixed) = excluded(1, (0.1, 0.1), 0.0);
        assert!(sequential <= 20, "{sequential} of 400 null experiments were significant");
        // The fixed-sample interval fails under continuous monitoring, which is why the sequential one exists.
        assert!(fixed > 80, "{fixed} of 400 with fixed intervals");
        let (sequential, _) = excluded(2, (0.3, 0.36), 0.06);
        assert!(sequential <= 20, "{sequential} of 400 intervals excluded the true difference");
    }

    #[test]
    fn a_real_difference_is_detected() {
        let (sequential, _) = excluded(3, (0.10, 0.16), 0.0);
        assert!(sequential > 320, "{sequential} of 400 experiments detected 6 points");
    }

    #[test]
    fn the_interval_and_the_p_value_agree() {
        let mut rng = StdRng::seed_from_u64(9);
        let (mut first, mut second) = (Moments::default(), Moments::default());
        for user in 0..4000 {
            first.add(rng.random_range(0.0..1.0));
            second.add(rng.random_range(0.0..1.1));
            if let Some(interval) = sequential_interval(&first, &second, 1000.0, 0.05) {
                let excludes = interval.low > 0.0 || interval.high < 0.0;
                assert_eq!(excludes, interval.p < 0.05, "after {user}: {interval:?}");
            }
        }
        assert_eq!(sequential_interval(&Moments::default(), &first, 1000.0, 0.05), None);
    }

    proptest! {
        #[test]
        fn moments_match_the_two_pass_formulas(values in prop::collection::vec(-1e3..1e3f64, 2..60)) {
            let mut moments = Moments::default();
            values.iter().for_each(|value| moments.add(*value));
            let mean = values.iter().sum::<f64>() / values.len() as f64;
            let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (values.len() - 1) as f64;
            let of_sums = Moments::of_sums(moments.count, values.iter().sum(), values.iter().map(|value| value * value).sum());
            for moments in [moments, of_sums] {
                prop_assert!((moments.mean - mean).abs() < 1e-9 * 1e3);
                prop_assert!((moments.variance() - variance).abs() < 1e-6 * (1.0 + variance));
            }
        }
    }
}
