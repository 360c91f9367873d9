//! Simulated customers with known parameters, for tests and speed measurements.
use crate::history::PurchaseSummary;
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::f64::consts::TAU;

/// Simulates customers of BG/NBD with the parameters that Fader, Hardie and Lee (2005) report for CDNOW (r 0.243,
/// alpha 4.414 weeks, a 0.793, b 2.426). First purchases fall in the first `entry_weeks` weeks of `weeks`. Times are
/// whole days in weeks.
pub fn simulate_customers(count: usize, weeks: f64, entry_weeks: f64, seed: u64) -> Vec<PurchaseSummary> {
    let mut rng = StdRng::seed_from_u64(seed);
    (0..count)
        .map(|_| {
            let age = (weeks - rng.random::<f64>() * entry_weeks).max(0.0);
            let times = purchase_times(&mut rng, [0.243, 4.414, 0.793, 2.426], age);
            let whole_days = |time: f64| (time * 7.0).floor() / 7.0;
            let recency = whole_days(times.last().copied().unwrap_or(0.0));
            PurchaseSummary { frequency: times.len() as u32, recency, age: whole_days(age) }
        })
        .collect()
}

/// Draws the times of a customer's repeat purchases until `end`.
pub(crate) fn purchase_times(rng: &mut StdRng, [r, alpha, a, b]: [f64; 4], end: f64) -> Vec<f64> {
    let rate = gamma(rng, r) / alpha;
    let (x, y) = (gamma(rng, a), gamma(rng, b));
    let dropout = x / (x + y);
    let mut times = Vec::new();
    let mut now = 0.0;
    loop {
        now += -(1.0 - rng.random::<f64>()).ln() / rate;
        // A rate of 0 makes the time infinite.
        if now.is_nan() || now > end {
            return times;
        }
        times.push(now);
        if rng.random::<f64>() < dropout {
            return times;
        }
    }
}

/// Draws from the gamma distribution with scale 1 (Marsaglia and Tsang 2000).
pub(crate) fn gamma(rng: &mut StdRng, shape: f64) -> f64 {
    if shape < 1.0 {
        let uniform = 1.0 - rng.random::<f64>();
        return gamma(rng, shape + 1.0) * uniform.powf(1.0 / shape);
    }
    let d = shape - 1.0 / 3.0;
    let c = 1.0 / (9.0 * d).sqrt();
    loop {
        let normal = normal(rng);
        let v = (1.0 + c * normal).powi(3);
        if v > 0.0 && (1.0 - rng.random::<f64>()).ln() < 0.5 * normal * normal + d * (1.0 - v + v.ln()) {
            return d * v;
        }
    }
}

/// Draws from the standard normal distribution (Box and Muller 1958).
pub(crate) fn normal(rng: &mut StdRng) -> f64 {
    let (first, second) = (1.0 - rng.random::<f64>(), rng.random::<f64>());
    (-2.0 * first.ln()).sqrt() * (TAU * second).cos()
}
