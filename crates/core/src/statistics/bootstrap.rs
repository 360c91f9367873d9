//! Percentile bootstrap intervals of a mean (Efron 1979).
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::fmt;

/// A mean with its 95 % bootstrap interval.
#[derive(Debug, Clone, Copy, serde::Serialize)]
pub struct MeanInterval {
    pub mean: f64,
    pub low: f64,
    pub high: f64,
}

impl fmt::Display for MeanInterval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.4} [{:.4}, {:.4}]", self.mean, self.low, self.high)
    }
}

/// Draws `resample_count` resamples of the indices `0..count` with replacement. Metrics that are compared must share
/// their resamples.
pub fn resamples(count: usize, resample_count: usize, seed: u64) -> Vec<Vec<u32>> {
    let mut rng = StdRng::seed_from_u64(seed);
    (0..resample_count).map(|_| (0..count).map(|_| rng.random_range(0..count as u32)).collect()).collect()
}

/// Returns the mean of `values` with the 2.5 % and 97.5 % quantiles of the resampled means. Without resamples, both
/// ends of the interval are the mean.
pub fn bootstrap_mean(values: &[f64], resamples: &[Vec<u32>]) -> MeanInterval {
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let mut means: Vec<f64> = resamples
        .iter()
        .map(|sample| sample.iter().map(|index| values[*index as usize]).sum::<f64>() / values.len() as f64)
        .collect();
    means.sort_by(f64::total_cmp);
    let quantile = |share: f64| means.get(((means.len() as f64 * share) as usize).min(means.len().saturating_sub(1)));
    MeanInterval { mean, low: quantile(0.025).copied().unwrap_or(mean), high: quantile(0.975).copied().unwrap_or(mean) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_contains_the_mean_and_narrows_with_more_values() {
        let width = |count: usize| {
            let values: Vec<f64> = (0..count).map(|value| (value % 10) as f64).collect();
            let interval = bootstrap_mean(&values, &resamples(count, 500, 1));
            assert!((interval.mean - 4.5).abs() < 1e-12);
            assert!(interval.low < 4.5 && interval.high > 4.5);
            interval.high - interval.low
        };
        assert!(width(1000) < width(100) / 2.0);
    }

    #[test]
    fn without_resamples_the_interval_is_the_mean() {
        let interval = bootstrap_mean(&[1.0, 3.0], &[]);
        assert_eq!((interval.low, interval.mean, interval.high), (2.0, 2.0, 2.0));
    }
}
