//! Tails and quantiles of the gamma, chi-square, normal and binomial distributions, for intervals and tests.
//!
//! The module does not use a crate, because everything here follows from one function of forty lines, the incomplete
//! gamma function. Tests compare it with published tables.

mod bootstrap;
mod sequential;

pub use bootstrap::{MeanInterval, bootstrap_mean, resamples};
pub use sequential::{Moments, SequentialInterval, sequential_interval};

/// Returns the natural logarithm of the gamma function for `x` above 0, to about 14 digits, by the Lanczos
/// approximation with the nine coefficients of Godfrey (g = 7).
pub fn ln_gamma(x: f64) -> f64 {
    const G: f64 = 7.0;
    const FIRST: f64 = 0.999_999_999_999_809_9;
    const COEFFICIENTS: [f64; 8] = [
        676.520_368_121_885_1,
        -1_259.139_216_722_402_8,
        771.323_428_777_653_1,
        -176.615_029_162_140_6,
        12.507_343_278_686_905,
        -0.138_571_095_265_720_12,
        9.984_369_578_019_572e-6,
        1.505_632_735_149_311_6e-7,
    ];
    if x < 0.5 {
        // Euler's reflection formula, because the series needs x above one half.
        let pi = std::f64::consts::PI;
        return (pi / (pi * x).sin().abs()).ln() - ln_gamma(1.0 - x);
    }
    let x = x - 1.0;
    let series = COEFFICIENTS.iter().zip(1u32..).fold(FIRST, |sum, (c, i)| sum + c / (x + f64::from(i)));
    let t = x + G + 0.5;
    0.5 * (2.0 * std::f64::consts::PI).ln() + (x + 0.5) * t.ln() - t + series.ln()
}

/// Returns the cumulative distribution function at `x` of the gamma distribution with this shape (above 0) and scale 1.
/// Uses the series below the mean and the continued fraction above it (NIST DLMF 8.11.4 and 8.9.2).
pub fn gamma_cdf(shape: f64, x: f64) -> f64 {
    if x.is_nan() || x <= 0.0 {
        return 0.0;
    }
    match x < shape + 1.0 {
        true => lower_series(shape, x).clamp(0.0, 1.0),
        false => (1.0 - upper_fraction(shape, x)).clamp(0.0, 1.0),
    }
}

/// Returns the survival function at `x`. Unlike `1 - gamma_cdf`, it keeps the digits of small probabilities.
pub fn gamma_survival(shape: f64, x: f64) -> f64 {
    if x.is_nan() || x <= 0.0 {
        return 1.0;
    }
    match x < shape + 1.0 {
        true => (1.0 - lower_series(shape, x)).clamp(0.0, 1.0),
        false => upper_fraction(shape, x).clamp(0.0, 1.0),
    }
}

/// The largest number of terms of both expansions. They need about six times the square root of the shape, so this
/// suffices for a shape of 10^8.
const TERMS_MAX: usize = 100_000;

fn lower_series(shape: f64, x: f64) -> f64 {
    let (mut term, mut sum, mut at) = (1.0 / shape, 1.0 / shape, shape);
    for _ in 0..TERMS_MAX {
        at += 1.0;
        term *= x / at;
        sum += term;
        if term < sum * 1e-16 {
            break;
        }
    }
    sum * (shape * x.ln() - x - ln_gamma(shape)).exp()
}

fn upper_fraction(shape: f64, x: f64) -> f64 {
    const TINY: f64 = 1e-300;
    let nonzero = |value: f64| if value.abs() < TINY { TINY } else { value };
    let mut b = x + 1.0 - shape;
    let mut c = 1.0 / TINY;
    let mut d = 1.0 / nonzero(b);
    let mut fraction = d;
    for i in 1..=TERMS_MAX {
        let i = i as f64;
        let a = -i * (i - shape);
        b += 2.0;
        d = 1.0 / nonzero(a * d + b);
        c = nonzero(b + a / c);
        let change = d * c;
        fraction *= change;
        if (change - 1.0).abs() < 1e-15 {
            break;
        }
    }
    fraction * (shape * x.ln() - x - ln_gamma(shape)).exp()
}

/// Returns the quantile `below` (0 to 1) of the gamma distribution with this shape (above 0) and scale 1; 0 and
/// infinity at the ends.
pub fn gamma_quantile(shape: f64, below: f64) -> f64 {
    if below.is_nan() || below <= 0.0 {
        return 0.0;
    }
    if below >= 1.0 {
        return f64::INFINITY;
    }
    let (mut low, mut high) = (0.0, shape + 1.0);
    while gamma_cdf(shape, high) < below {
        low = high;
        high *= 2.0;
    }
    // Bisection is slow but always converges, and a report needs only a few dozen quantiles.
    for _ in 0..200 {
        let middle = 0.5 * (low + high);
        if middle <= low || middle >= high || high - low < 1e-13 * high {
            break;
        }
        match gamma_cdf(shape, middle) < below {
            true => low = middle,
            false => high = middle,
        }
    }
    0.5 * (low + high)
}

/// Returns the p-value of a chi-square statistic with `freedom` degrees of freedom (at least 1).
pub fn chi_square_p_value(statistic: f64, freedom: usize) -> f64 {
    gamma_survival(freedom.max(1) as f64 / 2.0, statistic / 2.0)
}

/// Returns the two-sided p-value of a standard normal statistic.
pub fn normal_two_sided_p_value(z: f64) -> f64 {
    chi_square_p_value(z * z, 1)
}

/// Returns the p-value of a sign test: the probability of a split at least as uneven as `first` against `second` if
/// both outcomes are equally probable. Returns 1 if both counts are 0.
pub fn sign_test(first: u64, second: u64) -> f64 {
    let count = first + second;
    let fewer = first.min(second);
    if count == 0 || fewer * 2 == count {
        return 1.0;
    }
    let total = ln_gamma(count as f64 + 1.0) - count as f64 * std::f64::consts::LN_2;
    // Starts with the largest term and stops when terms no longer change the sum.
    let mut sum = 0.0;
    for wins in (0..=fewer).rev() {
        let term = (total - ln_gamma(wins as f64 + 1.0) - ln_gamma((count - wins) as f64 + 1.0)).exp();
        sum += term;
        if term < sum * 1e-17 {
            break;
        }
    }
    (2.0 * sum).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn assert_close(actual: f64, expected: f64) {
        assert!((actual - expected).abs() <= 1e-9 + 1e-6 * expected.abs(), "{actual} is not {expected}");
    }

    #[test]
    fn functions_agree_with_published_tables() {
        assert_close(ln_gamma(0.5), 0.572_364_942_924_700_1);
        assert_close(ln_gamma(10.0), 12.801_827_480_081_469);
        assert_close(ln_gamma(0.1), 2.252_712_651_734_206);
        // Critical values of chi-square: 5 % and 1 %.
        assert_close((chi_square_p_value(3.841_458_820_694_124, 1) * 1e6).round() / 1e6, 0.05);
        assert_close((chi_square_p_value(11.344_866_730_144_373, 3) * 1e6).round() / 1e6, 0.01);
        assert_close((chi_square_p_value(124.342_113_404_004_1, 100) * 1e6).round() / 1e6, 0.05);
        assert_close((normal_two_sided_p_value(1.959_963_984_540_054) * 1e6).round() / 1e6, 0.05);
        // The exact limits of a Poisson mean for a count of 10: 4.795 and 18.390 (Garwood 1936).
        assert_close((gamma_quantile(10.0, 0.025) * 1e3).round() / 1e3, 4.795);
        assert_close((gamma_quantile(11.0, 0.975) * 1e3).round() / 1e3, 18.390);
        assert_close(sign_test(1, 9), 0.021_484_375);
        assert_close(sign_test(3, 0), 0.25);
        assert_eq!((sign_test(0, 0), sign_test(7, 7)), (1.0, 1.0));
    }

    #[test]
    fn large_shapes_approach_the_normal_distribution() {
        let shape = 1e7;
        let z = (gamma_quantile(shape, 0.975) - shape) / shape.sqrt();
        assert!((z - 1.96).abs() < 0.002, "{z}");
        assert!(sign_test(500_000, 502_000) > 0.04 && sign_test(500_000, 502_000) < 0.05);
    }

    proptest! {
        #[test]
        fn a_quantile_inverts_the_cumulative_distribution(shape in 0.5f64..5000.0, below in 0.0001f64..0.9999) {
            let x = gamma_quantile(shape, below);
            prop_assert!((gamma_cdf(shape, x) - below).abs() < 1e-8);
            prop_assert!((gamma_cdf(shape, x) + gamma_survival(shape, x) - 1.0).abs() < 1e-9);
        }
    }
}
