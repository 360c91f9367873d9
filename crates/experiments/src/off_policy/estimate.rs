//! The estimators, with bootstrap variances and gamma intervals.
use super::{
    interval::{gamma_interval, poisson, poisson_of_one},
    log::{ActionDistribution, Log, LogRow},
    reward_model::{FOLDS, RewardModel},
    support::{Refusal, Support, SupportLimits},
};
use rand::{SeedableRng, rngs::StdRng};
use rayon::prelude::*;
use serde::Serialize;

/// An estimator of a policy's value. The formulas use weights `w`, rewards `r` and `n` rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Estimator {
    /// Inverse propensity scoring, `Σ w·r / n` (Horvitz and Thompson 1952). Unbiased.
    Ips,
    /// Self-normalised, `Σ w·r / Σ w` (Swaminathan and Joachims 2015). Its bias vanishes with `n`; a constant added to
    /// all rewards shifts it by exactly this constant.
    Snips,
    /// Weights are clipped at the root of `n` or a configured value (Ionides 2008, "Truncated importance sampling").
    /// Too low by the clipped part, with less variance.
    ClippedIps,
    /// The reward model's expectation, corrected by the weighted errors of the model on rows outside of its training
    /// data (Dudík, Langford and Li 2011; cross-fitting as in Chernozhukov et al. 2018). Unbiased with true
    /// propensities for any reward model.
    DoublyRobust,
}

impl Estimator {
    pub const ALL: [Estimator; 4] = [Self::Ips, Self::Snips, Self::ClippedIps, Self::DoublyRobust];

    pub fn name(self) -> &'static str {
        match self {
            Self::Ips => "IPS",
            Self::Snips => "SNIPS",
            Self::ClippedIps => "clipped IPS",
            Self::DoublyRobust => "doubly robust",
        }
    }
}

/// Options of [`estimate`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EstimateOptions {
    /// Bootstrap resamples of the users. 400 determine a standard error to 1/28 of itself.
    pub resamples: usize,
    pub seed: u64,
    /// The greatest weight of clipped IPS, above 0. `None`: the root of the number of rows.
    pub clip: Option<f64>,
    pub limits: SupportLimits,
}

impl Default for EstimateOptions {
    fn default() -> Self {
        Self { resamples: 400, seed: 1, clip: None, limits: SupportLimits::default() }
    }
}

/// An estimate per row of the log; with clicks, the click rate.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Measure {
    pub estimator: Estimator,
    pub value: f64,
    /// Bootstrap standard error, which includes the target policy's sample if its probabilities are shares of one.
    pub standard_error: f64,
    /// The 95 % interval, from [`gamma_interval`].
    pub low: f64,
    pub high: f64,
}

/// The estimates from one log.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Estimates {
    pub support: Support,
    /// One for each of [`Estimator::ALL`].
    pub measures: Vec<Measure>,
    /// The expectation of the reward model alone (the direct method). It has the bias of the model, so it has no
    /// interval.
    pub direct: f64,
    /// The greatest weight of clipped IPS.
    pub clip: f64,
    /// Share of the sum of weights above this limit.
    pub clipped_share: f64,
}

/// Nominal coverage of the intervals.
pub(super) const LEVEL: f64 = 0.95;

/// Estimates the target policy's reward per row, or returns why the log does not support an estimate.
pub fn estimate(log: &Log, options: &EstimateOptions) -> Result<Estimates, Refusal> {
    if log.rows.is_empty() {
        return Err(Refusal::Empty);
    }
    let clip = options.clip.unwrap_or((log.rows.len() as f64).sqrt());
    let prepared = Prepared::new(log, clip);
    let ones = vec![1; log.user_count()];
    let all = prepared.sums(&ones, None);
    let values = all.values();
    let resampled: Vec<Sums> = (0..options.resamples.max(2) as u64)
        .into_par_iter()
        .map(|resample| {
            let mut rng =
                StdRng::seed_from_u64(options.seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(resample));
            let times: Vec<u32> = ones.iter().map(|_| poisson_of_one(&mut rng)).collect();
            prepared.sums(&times, log.target_counts.as_deref().map(|counts| ratios(counts, &mut rng)).as_deref())
        })
        .collect();
    let support = Support::of(log, variance(resampled.iter().map(Sums::weight_mean)).sqrt());
    support.check(&options.limits)?;
    let variances: Vec<f64> =
        (0..values.len()).map(|which| variance(resampled.iter().map(|sums| sums.values()[which]))).collect();
    let step = prepared.step(&values, &variances);
    let measures = Estimator::ALL
        .iter()
        .zip(values.iter().zip(&variances))
        .map(|(estimator, (value, variance))| {
            // Self-normalisation divides the weights by their mean.
            let step = if *estimator == Estimator::Snips { step / all.weight_mean() } else { step };
            let (low, high) = gamma_interval(*value, *variance, step, LEVEL);
            Measure { estimator: *estimator, value: *value, standard_error: variance.sqrt(), low, high }
        })
        .collect();
    let cut: f64 = log.rows.iter().map(|row| (row.weight() - clip).max(0.0)).sum();
    let weights: f64 = log.rows.iter().map(LogRow::weight).sum();
    Ok(Estimates { support, measures, direct: all.direct / all.count, clip, clipped_share: cut / weights })
}

/// A log with the cross-fitted reward models.
struct Prepared<'a> {
    log: &'a Log,
    clip: f64,
    models: Vec<RewardModel>,
}

/// Returns the fold of a user, which contains all rows of the user.
fn fold(user: u32) -> usize {
    user as usize % FOLDS
}

impl<'a> Prepared<'a> {
    fn new(log: &'a Log, clip: f64) -> Self {
        let learn = |held_back| RewardModel::fit(log, |row| fold(log.rows[row].user) != held_back);
        Self { log, clip, models: (0..FOLDS).into_par_iter().map(learn).collect() }
    }

    /// Returns the sums over the rows. `times` is the multiplicity of each user; `ratios` multiplies the target's
    /// probability of each cell.
    fn sums(&self, times: &[u32], ratios: Option<&[f64]>) -> Sums {
        let ratio = |cell: u32| ratios.map_or(1.0, |ratios| ratios[cell as usize]);
        let expectation = |model: &RewardModel, distribution: &ActionDistribution| -> f64 {
            let cells = distribution.cells.iter().zip(&distribution.probabilities);
            cells.map(|(cell, probability)| probability * ratio(*cell) * model.expected(*cell)).sum()
        };
        let direct: Vec<Vec<f64>> = (self.models.iter())
            .map(|model| self.log.distributions.iter().map(|distribution| expectation(model, distribution)).collect())
            .collect();
        let mut sums = Sums::default();
        for row in &self.log.rows {
            let times = f64::from(times[row.user as usize]);
            if times == 0.0 {
                continue;
            }
            let fold = fold(row.user);
            let weight = row.weight() * ratio(row.cell);
            let direct = direct[fold][row.distribution as usize];
            sums.count += times;
            sums.weights += times * weight;
            sums.weighted += times * weight * row.reward;
            sums.clipped += times * weight.min(self.clip) * row.reward;
            sums.direct += times * direct;
            sums.robust += times * (direct + weight * (row.reward - self.models[fold].expected(row.cell)));
        }
        sums
    }

    /// Returns the increase of IPS by one more reward of typical weight and size. Typical are the weight-weighted mean
    /// of the weights and the reward-weighted mean of the rewards, because they dominate the variance. If users
    /// have several rows, their rewards are dependent, and the step grows by the same factor as the variance.
    fn step(&self, values: &[f64], variances: &[f64]) -> f64 {
        let rows = self.log.rows.len() as f64;
        let self_weighted_mean = |values: &mut dyn Iterator<Item = f64>| {
            let (sum, squares) = values.fold((0.0, 0.0), |(sum, squares), v| (sum + v, squares + v * v));
            if sum > 0.0 { squares / sum } else { 1.0 }
        };
        let weight = self_weighted_mean(&mut self.log.rows.iter().map(LogRow::weight));
        let reward = self_weighted_mean(&mut self.log.rows.iter().map(|row| row.reward));
        let independent: f64 =
            self.log.rows.iter().map(|row| (row.weight() * row.reward - values[0]).powi(2)).sum::<f64>()
                / (rows * rows);
        let dependence = if independent > 0.0 { (variances[0] / independent).max(1.0) } else { 1.0 };
        weight * reward * dependence / rows
    }
}

/// Resamples the target policy's log: returns the new share of each cell, divided by its observed share.
fn ratios(counts: &[u32], rng: &mut StdRng) -> Vec<f64> {
    let drawn: Vec<u32> = counts.iter().map(|count| poisson(f64::from(*count), rng)).collect();
    let total = |counts: &[u32]| counts.iter().map(|count| f64::from(*count)).sum::<f64>();
    let scale = total(counts) / total(&drawn).max(1.0);
    drawn.iter().zip(counts).map(|(drawn, count)| scale * f64::from(*drawn) / f64::from((*count).max(1))).collect()
}

/// Sums over the rows of a log.
#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    count: f64,
    weights: f64,
    weighted: f64,
    clipped: f64,
    robust: f64,
    direct: f64,
}

impl Sums {
    /// Returns the estimates in the order of [`Estimator::ALL`]; 0 for a zero denominator.
    fn values(&self) -> [f64; 4] {
        let over = |sum: f64, count: f64| if count > 0.0 { sum / count } else { 0.0 };
        [
            over(self.weighted, self.count),
            over(self.weighted, self.weights),
            over(self.clipped, self.count),
            over(self.robust, self.count),
        ]
    }

    fn weight_mean(&self) -> f64 {
        if self.count > 0.0 { self.weights / self.count } else { 0.0 }
    }
}

fn variance(values: impl Iterator<Item = f64> + Clone) -> f64 {
    let count = values.clone().count().max(2) as f64;
    let mean = values.clone().sum::<f64>() / count;
    values.map(|value| (value - mean).powi(2)).sum::<f64>() / (count - 1.0)
}
