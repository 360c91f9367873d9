//! Confidence intervals for rare rewards.
use lodestone_core::statistics::gamma_quantile;
use rand::Rng;

/// Returns the interval of a weighted sum of rare rewards with coverage `level`, above 0 and below 1. `variance` is
/// that of `value`, and `step` is the increase of the value by one more reward of typical weight. The endpoints are at
/// least 0, and the upper endpoint is above 0 even if no reward was observed.
///
/// This is the gamma interval of Fay and Feuer (1997, "Confidence intervals for directly standardized rates"), because
/// a policy's value is a directly standardised rate with the importance weights as weights. The upper endpoint is that
/// of a sum with one more reward, of typical instead of maximum weight as proposed by Tiwari, Clegg and Zou (2006).
/// With counts of weight 1 it is the exact interval of a Poisson mean. Normal intervals are symmetric and percentile
/// intervals end with the sample, so that their coverage is too low here (`docs/off-policy.md` has the figures).
pub fn gamma_interval(value: f64, variance: f64, step: f64, level: f64) -> (f64, f64) {
    let tail = (1.0 - level) / 2.0;
    let (value, variance, step) = (value.max(0.0), variance.max(0.0), step.max(0.0));
    let end = |mean: f64, variance: f64, below: f64| match mean > 0.0 && variance > 0.0 {
        true => variance / mean * gamma_quantile(mean * mean / variance, below),
        false => mean,
    };
    (end(value, variance, tail), end(value + step, variance + step * step, 1.0 - tail))
}

/// Draws from a Poisson distribution with mean 1: the multiplicity of a user in a resample.
pub(super) fn poisson_of_one(rng: &mut impl Rng) -> u32 {
    poisson_small(1.0, rng)
}

/// Draws from a Poisson distribution with this mean. A mean above 30 is split into parts, because `exp(-mean)` would
/// underflow.
pub(super) fn poisson(mean: f64, rng: &mut impl Rng) -> u32 {
    let parts = (mean / 30.0).ceil().max(1.0);
    (0..parts as u32).map(|_| poisson_small(mean / parts, rng)).sum()
}

/// Draws by inversion of the distribution function (Devroye 1986, chapter X.3).
fn poisson_small(mean: f64, rng: &mut impl Rng) -> u32 {
    let mut left: f64 = rng.random();
    let mut probability = (-mean).exp();
    let mut count = 0;
    while left > probability && count < 200 {
        left -= probability;
        count += 1;
        probability *= mean / f64::from(count);
    }
    count
}
