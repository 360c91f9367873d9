//! Intervals that hold when rewards are rare.
use lodestone_core::statistics::gamma_quantile;
use rand::Rng;

/// The interval of a weighted sum of rare rewards: `value` with its `variance`, and `step`, what one more reward of
/// usual weight would add to the value. `level` is its coverage, above 0, below 1. The ends are at least 0, and the
/// upper end is above 0 even where nothing was earned.
///
/// This is the gamma interval of Fay and Feuer (1997, "Confidence intervals for directly standardized rates"): a policy's
/// value is a directly standardized rate, whose weights are the importance weights. Its upper end is that of a sum with
/// one reward more; as Tiwari, Clegg and Zou (2006) propose, of usual weight and not of the greatest. With counts of
/// weight 1 it is the exact interval of a Poisson mean. Normal and percentile intervals are symmetric or end at the
/// sample's edge, and cover too seldom here (`docs/off-policy.md` has the figures).
pub fn gamma_interval(value: f64, variance: f64, step: f64, level: f64) -> (f64, f64) {
    let tail = (1.0 - level) / 2.0;
    let (value, variance, step) = (value.max(0.0), variance.max(0.0), step.max(0.0));
    let end = |mean: f64, variance: f64, below: f64| match mean > 0.0 && variance > 0.0 {
        true => variance / mean * gamma_quantile(mean * mean / variance, below),
        false => mean,
    };
    (end(value, variance, tail), end(value + step, variance + step * step, 1.0 - tail))
}

/// A draw of a Poisson distribution of mean 1: how often a user is in a resample.
pub(super) fn poisson_of_one(rng: &mut impl Rng) -> u32 {
    poisson_small(1.0, rng)
}

/// A draw of a Poisson distribution of this mean. Above 30 in parts, so that `exp(-mean)` stays a number.
pub(super) fn poisson(mean: f64, rng: &mut impl Rng) -> u32 {
    let parts = (mean / 30.0).ceil().max(1.0);
    (0..parts as u32).map(|_| poisson_small(mean / parts, rng)).sum()
}

/// By inversion of the distribution (Devroye 1986, chapter X.3).
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
