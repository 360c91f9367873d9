//! The estimators, and what they are unsure of.
use super::{
    Log, Refusal, RewardModel, Support, SupportLimits,
    interval::{gamma_interval, poisson, poisson_of_one},
    reward_model::FOLDS,
};
use rand::{SeedableRng, rngs::StdRng};
use rayon::prelude::*;
use serde::Serialize;

/// How a policy's value is estimated. With weights `w`, rewards `r` and `n` rows:
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Estimator {
    /// Inverse propensity scoring, `Σ w·r / n` (Horvitz and Thompson 1952). Unbiased.
    Ips,
    /// Self-normalized, `Σ w·r / Σ w` (Swaminathan and Joachims 2015). A bias that vanishes with `n`; not moved by a
    /// reward that all rows have in common.
    Snips,
    /// Weights are cut at the root of `n` or as told (Ionides 2008, "Truncated importance sampling"). Too low by what
    /// was cut; steadier.
    ClippedIps,
    /// The reward model's expectation, corrected by the weighted errors of the model on rows that it did not learn from
    /// (Dudík, Langford and Li 2011; cross-fitting as in Chernozhukov et al. 2018). Unbiased, and with true
    /// propensities whatever the model says.
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

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EstimateOptions {
    /// Resamples of the users. 400 know a standard error to a 28th of itself.
    pub resamples: usize,
    pub seed: u64,
    /// Where clipped IPS cuts weights, above 0. None: at the root of the number of rows.
    pub clip: Option<f64>,
    pub limits: SupportLimits,
}

impl Default for EstimateOptions {
    fn default() -> Self {
        Self { resamples: 400, seed: 1, clip: None, limits: SupportLimits::default() }
    }
}

/// What an estimator says, per row of the log: with clicks, the click rate.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Measure {
    pub estimator: Estimator,
    pub value: f64,
    /// Of the resamples of users, and of the target policy's sample where it is one.
    pub standard_error: f64,
    /// The 95 % interval, from [`gamma_interval`].
    pub low: f64,
    pub high: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Estimates {
    pub support: Support,
    /// One for each of [`Estimator::ALL`].
    pub measures: Vec<Measure>,
    /// What the reward model alone says (the direct method). It is biased by as much as the model is, so it has no
    /// interval.
    pub direct: f64,
    /// Where clipped IPS cut.
    pub clip: f64,
    /// Share of the weights' sum that it cut off.
    pub clipped_share: f64,
}

/// What the intervals are meant to cover.
pub(super) const LEVEL: f64 = 0.95;

/// Estimates what the target policy would have earned per row, or says why this log cannot tell.
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
            // Self-normalized weights are smaller by their mean.
            let step = if *estimator == Estimator::Snips { step / all.weight_mean() } else { step };
            let (low, high) = gamma_interval(*value, *variance, step, LEVEL);
            Measure { estimator: *estimator, value: *value, standard_error: variance.sqrt(), low, high }
        })
        .collect();
    let cut: f64 = log.rows.iter().map(|row| (row.weight() - clip).max(0.0)).sum();
    let weights: f64 = log.rows.iter().map(super::LogRow::weight).sum();
    Ok(Estimates { support, measures, direct: all.direct / all.count, clip, clipped_share: cut / weights })
}

/// A log with what the reward model says of it.
struct Prepared<'a> {
    log: &'a Log,
    clip: f64,
    models: Vec<RewardModel>,
}

/// A user's part: all of their rows are in it.
fn fold(user: u32) -> usize {
    user as usize % FOLDS
}

impl<'a> Prepared<'a> {
    fn new(log: &'a Log, clip: f64) -> Self {
        let learn = |held_back| RewardModel::fit(log, |row| fold(log.rows[row].user) != held_back);
        Self { log, clip, models: (0..FOLDS).into_par_iter().map(learn).collect() }
    }

    /// The sums over the rows, each user's taken so often. `ratios` multiplies the target's probability of each cell.
    fn sums(&self, times: &[u32], ratios: Option<&[f64]>) -> Sums {
        let ratio = |cell: u32| ratios.map_or(1.0, |ratios| ratios[cell as usize]);
        let expectation = |model: &RewardModel, choice: &super::Choice| -> f64 {
            let cells = choice.cells.iter().zip(&choice.probabilities);
            cells.map(|(cell, probability)| probability * ratio(*cell) * model.expected(*cell)).sum()
        };
        let direct: Vec<Vec<f64>> = (self.models.iter())
            .map(|model| self.log.choices.iter().map(|choice| expectation(model, choice)).collect())
            .collect();
        let mut sums = Sums::default();
        for row in &self.log.rows {
            let times = f64::from(times[row.user as usize]);
            if times == 0.0 {
                continue;
            }
            let fold = fold(row.user);
            let weight = row.weight() * ratio(row.cell);
            let direct = direct[fold][row.choice as usize];
            sums.count += times;
            sums.weights += times * weight;
            sums.weighted += times * weight * row.reward;
            sums.clipped += times * weight.min(self.clip) * row.reward;
            sums.direct += times * direct;
            sums.robust += times * (direct + weight * (row.reward - self.models[fold].expected(row.cell)));
        }
        sums
    }

    /// What one more reward of usual weight and size would add to IPS. Usual is what weighs most in the variance: the
    /// mean of the weights by weight, and of the rewards by reward. Where users have several rows, their rewards come
    /// together, and the step grows by as much as this widens the variance.
    fn step(&self, values: &[f64], variances: &[f64]) -> f64 {
        let rows = self.log.rows.len() as f64;
        let by_itself = |values: &mut dyn Iterator<Item = f64>| {
            let (sum, squares) = values.fold((0.0, 0.0), |(sum, squares), v| (sum + v, squares + v * v));
            if sum > 0.0 { squares / sum } else { 1.0 }
        };
        let weight = by_itself(&mut self.log.rows.iter().map(super::LogRow::weight));
        let reward = by_itself(&mut self.log.rows.iter().map(|row| row.reward));
        let of_rows: f64 = self.log.rows.iter().map(|row| (row.weight() * row.reward - values[0]).powi(2)).sum::<f64>()
            / (rows * rows);
        let together = if of_rows > 0.0 { (variances[0] / of_rows).max(1.0) } else { 1.0 };
        weight * reward * together / rows
    }
}

/// The target's sample drawn again: how much more often than in the first sample each cell came.
fn ratios(counts: &[u32], rng: &mut StdRng) -> Vec<f64> {
    let drawn: Vec<u32> = counts.iter().map(|count| poisson(f64::from(*count), rng)).collect();
    let total = |counts: &[u32]| counts.iter().map(|count| f64::from(*count)).sum::<f64>();
    let scale = total(counts) / total(&drawn).max(1.0);
    drawn.iter().zip(counts).map(|(drawn, count)| scale * f64::from(*drawn) / f64::from((*count).max(1))).collect()
}

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
    /// In the order of [`Estimator::ALL`]; 0 where there is nothing to divide by.
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
