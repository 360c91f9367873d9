//! Special functions of the likelihoods: digamma and the Gauss hypergeometric function. `ln_gamma` is that of
//! [`lodestone_core::statistics`].

/// Returns the derivative of `ln_gamma` for `x` above 0, to about 14 digits: recurrence to x ≥ 10, then the asymptotic
/// series (NIST DLMF 5.5.2, 5.11.2).
pub(crate) fn digamma(mut x: f64) -> f64 {
    let mut shift = 0.0;
    while x < 10.0 {
        shift -= 1.0 / x;
        x += 1.0;
    }
    let inverse = 1.0 / (x * x);
    let series = inverse
        * (1.0 / 12.0
            - inverse
                * (1.0 / 120.0
                    - inverse
                        * (1.0 / 252.0
                            - inverse * (1.0 / 240.0 - inverse * (1.0 / 132.0 - inverse * 691.0 / 32_760.0)))));
    shift + x.ln() - 0.5 / x - series
}

/// The largest number of terms of the hypergeometric series; enough for z = 0.9999.
const TERMS_MAX: usize = 400_000;

/// Returns (1 - z)^exponent · ₂F₁(a, b; c; z) for c above -1 except 0, where it has a pole, and z in [0, 1). One of the
/// factors may overflow where the product does not. BG/NBD has a c below 0 without a repeat purchase if its a + b is less
/// than 1. Sums the series after Euler's transformation (NIST DLMF 15.8.1), whose terms do not grow if c is less than
/// a + b, as in BG/NBD.
pub(crate) fn scaled_hypergeometric(a: f64, b: f64, c: f64, z: f64, exponent: f64) -> f64 {
    let power = c - a - b;
    let scale = |power: f64| ((1.0 - z).ln() * power).exp();
    if power < 0.0 {
        scale(exponent + power) * series(c - a, c - b, c, z)
    } else {
        scale(exponent) * series(a, b, c, z)
    }
}

fn series(a: f64, b: f64, c: f64, z: f64) -> f64 {
    let (mut term, mut sum) = (1.0, 1.0);
    for index in 0..TERMS_MAX {
        let n = index as f64;
        term *= (a + n) * (b + n) / ((c + n) * (n + 1.0)) * z;
        sum += term;
        if term.abs() <= 1e-16 * f64::abs(sum) {
            break;
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use lodestone_core::statistics::ln_gamma;
    use proptest::prelude::*;

    fn hypergeometric(a: f64, b: f64, c: f64, z: f64) -> f64 {
        scaled_hypergeometric(a, b, c, z, 0.0)
    }

    fn assert_close(actual: f64, expected: f64) {
        assert!((actual - expected).abs() <= 1e-11 * expected.abs().max(1.0), "{actual} is not {expected}");
    }

    #[test]
    fn functions_have_their_published_values() {
        assert_close(digamma(1.0), -0.577_215_664_901_532_9);
        assert_close(digamma(0.5), -1.963_510_026_021_423_5);
        assert_close(digamma(10.5), 2.303_001_034_297_686_5);
        // ₂F₁(1, 1; 2; z) = -ln(1 - z) / z and ₂F₁(a, b; b; z) = (1 - z)^(-a) (NIST DLMF 15.4.1, 15.4.6).
        assert_close(hypergeometric(1.0, 1.0, 2.0, 0.5), 2.0 * std::f64::consts::LN_2);
        assert_close(hypergeometric(1.0, 1.0, 2.0, 0.99), -(0.01f64.ln()) / 0.99);
        assert_close(hypergeometric(3.5, 2.0, 2.0, 0.9), 0.1f64.powf(-3.5));
        assert_close(hypergeometric(1.0, 1.0, 2.0, 0.0), 1.0);
        // ₂F₁(a, b; c; z) for c below 0, as in BG/NBD without a repeat purchase and with a + b below 1.
        assert_close(hypergeometric(3.5, -0.25, -0.25, 0.9), 0.1f64.powf(-3.5));
        assert_close(hypergeometric(1.0, 0.5, -0.5, 0.5), -2.0);
    }

    proptest! {
        #[test]
        fn digamma_is_the_derivative_of_ln_gamma(x in 0.05f64..1000.0) {
            let step = 1e-5 * x;
            let slope = (ln_gamma(x + step) - ln_gamma(x - step)) / (2.0 * step);
            prop_assert!((digamma(x) - slope).abs() < 1e-5 * (1.0 + slope.abs()), "{} {slope}", digamma(x));
        }

        #[test]
        fn euler_transformation_keeps_the_value(a in 0.1f64..5.0, b in 0.1f64..5.0, c in 0.1f64..5.0, z in 0.0f64..0.9) {
            let (direct, used) = (series(a, b, c, z), hypergeometric(a, b, c, z));
            prop_assert!((direct - used).abs() < 1e-9 * direct.abs(), "{direct} {used}");
        }
    }
}
