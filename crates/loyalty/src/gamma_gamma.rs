//! Gamma–Gamma model of spend (Fader and Hardie 2013, "The Gamma-Gamma Model of Monetary Value").
//!
//! The values of a customer's purchases are gamma distributed (shape `p`) around a mean that differs between customers:
//! its inverse scale is gamma distributed (shape `q`, rate `v`). The mean is assumed to be independent of the
//! frequency.
use crate::{
    error::LoyaltyError,
    optimize::{Stop, minimize},
    special::digamma,
};
use lodestone_core::statistics::ln_gamma;
use rayon::prelude::*;

/// Number and mean value of a customer's purchases.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ValueSummary {
    /// Number of purchases with a known value, 0 for none.
    pub count: u32,
    /// Mean value of these purchases, above 0 unless the count is 0.
    pub mean: f64,
}

/// A fitted model.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct GammaGamma {
    pub p: f64,
    /// Above 1, so that the mean of the population exists.
    pub q: f64,
    /// In the currency of the values.
    pub v: f64,
    /// Maximised log-likelihood over the customers with purchases.
    pub log_likelihood: f64,
}

impl GammaGamma {
    const NAME: &str = "gamma-gamma";
    const CHUNK: usize = 4096;

    /// Fits the parameters by maximum likelihood with analytic gradients. Customers without purchases are ignored.
    pub fn fit(summaries: &[ValueSummary]) -> Result<Self, LoyaltyError> {
        for (index, of) in summaries.iter().enumerate().filter(|(_, of)| of.count > 0) {
            if !(of.mean.is_finite() && of.mean > 0.0) {
                return Err(LoyaltyError::Summary {
                    index,
                    field: "mean value",
                    value: of.mean,
                    limit: "finite and above 0",
                });
            }
        }
        let with_value: Vec<ValueSummary> = summaries.iter().filter(|of| of.count > 0).copied().collect();
        if with_value.is_empty() {
            return Err(LoyaltyError::NoCustomers);
        }
        let count = with_value.len() as f64;
        // In units of the mean value, so that the start fits every currency.
        let unit = with_value.iter().map(|of| of.mean).sum::<f64>() / count;
        let minimum =
            minimize(vec![0.5, 0.5, 0.5], Stop { iterations_max: 500, gradient_max: 1e-8 }, |logs, gradient| {
                let (p, q, v) = parameters(logs);
                let sums: Vec<[f64; 4]> =
                    with_value.par_chunks(Self::CHUNK).map(|chunk| log_likelihood(chunk, unit, p, q, v)).collect();
                let total = |index: usize| sums.iter().map(|sum| sum[index]).sum::<f64>();
                gradient[0] = -total(1) * p / count;
                gradient[1] = -total(2) * (q - 1.0) / count;
                gradient[2] = -total(3) * v / count;
                -total(0) / count
            });
        if !minimum.converged {
            return Err(LoyaltyError::NotConverged { model: Self::NAME, iterations: minimum.iterations });
        }
        let (p, q, v) = parameters(&minimum.at);
        Ok(Self { p, q, v: v * unit, log_likelihood: -minimum.value * count - count * unit.ln() })
    }

    /// Returns the expected mean value of the customer's future purchases: a weighted mean of those of the population
    /// and of the customer (equation 5 of the paper).
    pub fn expected_value(&self, of: &ValueSummary) -> f64 {
        let observed = self.p * f64::from(of.count);
        let total = f64::from(of.count) * of.mean;
        let total = if total.is_finite() { total } else { 0.0 };
        self.p * (self.v + total) / (observed + self.q - 1.0)
    }
}

/// Largest absolute logarithm of a parameter, beyond which the likelihood is nearly flat.
const LOG_PARAMETER_MAX: f64 = 12.0;

fn parameters(logs: &[f64]) -> (f64, f64, f64) {
    let bounded = |index: usize| logs[index].clamp(-LOG_PARAMETER_MAX, LOG_PARAMETER_MAX).exp();
    (bounded(0), 1.0 + bounded(1), bounded(2))
}

/// Returns the log-likelihood of the means in units of `unit`, and its derivatives by p, q and v.
fn log_likelihood(summaries: &[ValueSummary], unit: f64, p: f64, q: f64, v: f64) -> [f64; 4] {
    let (q_terms, q_slope) = (q * v.ln() - ln_gamma(q), v.ln() - digamma(q));
    let mut sum = [0.0; 4];
    for of in summaries {
        let (x, mean) = (f64::from(of.count), of.mean / unit);
        let (shape, total) = (p * x, x * mean);
        let log_scale = (v + total).ln();
        sum[0] += ln_gamma(shape + q) - ln_gamma(shape) + q_terms + (shape - 1.0) * mean.ln() + shape * x.ln()
            - (shape + q) * log_scale;
        let slope = digamma(shape + q);
        sum[1] += x * (slope - digamma(shape) + mean.ln() + x.ln() - log_scale);
        sum[2] += slope + q_slope - log_scale;
        sum[3] += q / v - (shape + q) / (v + total);
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::{Rng, SeedableRng, rngs::StdRng};

    fn gamma(rng: &mut StdRng, shape: f64) -> f64 {
        crate::simulate::gamma(rng, shape)
    }

    #[test]
    fn the_fit_recovers_known_parameters() {
        let mut rng = StdRng::seed_from_u64(1);
        let (p, q, v) = (6.25, 3.74, 15.44);
        let customers: Vec<ValueSummary> = (0..40_000)
            .map(|_| {
                let scale = gamma(&mut rng, q) / v;
                let count = rng.random_range(1..8u32);
                let total: f64 = (0..count).map(|_| gamma(&mut rng, p) / scale).sum();
                ValueSummary { count, mean: total / f64::from(count) }
            })
            .collect();
        let fitted = GammaGamma::fit(&customers).unwrap();
        assert!((fitted.p / p - 1.0).abs() < 0.1, "{fitted:?}");
        assert!((fitted.q / q - 1.0).abs() < 0.05, "{fitted:?}");
        assert!((fitted.v / v - 1.0).abs() < 0.1, "{fitted:?}");
        // The same fit in cents has the same shapes.
        let cents: Vec<ValueSummary> =
            customers.iter().map(|of| ValueSummary { mean: of.mean * 100.0, ..*of }).collect();
        let in_cents = GammaGamma::fit(&cents).unwrap();
        assert!((in_cents.p - fitted.p).abs() < 1e-4 && (in_cents.v / fitted.v - 100.0).abs() < 1e-2);
    }

    #[test]
    fn the_published_parameters_have_the_published_expectation() {
        // Fader and Hardie 2013, CDNOW: p 6.25, q 3.74, v 15.44; the mean of the population is 35.2.
        let published = GammaGamma { p: 6.25, q: 3.74, v: 15.44, log_likelihood: 0.0 };
        let none = ValueSummary { count: 0, mean: 0.0 };
        assert!((published.expected_value(&none) - 35.2).abs() < 0.05);
        let one = published.expected_value(&ValueSummary { count: 1, mean: 100.0 });
        assert!(one > 35.2 && one < 100.0);
    }

    #[test]
    fn values_of_zero_and_no_customers_are_errors() {
        assert_eq!(GammaGamma::fit(&[]), Err(LoyaltyError::NoCustomers));
        let error = GammaGamma::fit(&[ValueSummary { count: 2, mean: 0.0 }]).unwrap_err();
        assert_eq!(error.to_string(), "customer 0: mean value is 0; it must be finite and above 0");
    }

    proptest! {
        #[test]
        fn the_expectation_approaches_the_mean_of_many_purchases(
            p in 0.5f64..20.0, q in 1.1f64..10.0, v in 0.1f64..100.0, mean in 0.01f64..1e9
        ) {
            let model = GammaGamma { p, q, v, log_likelihood: 0.0 };
            let many = model.expected_value(&ValueSummary { count: 1_000_000_000, mean });
            prop_assert!((many / mean - 1.0).abs() < 1e-3, "{many} {mean}");
        }
    }
}
