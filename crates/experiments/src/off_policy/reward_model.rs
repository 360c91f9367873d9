//! The reward model of the doubly robust estimator: the rate of the position times a factor of the item, shrunk towards
//! 1 by empirical Bayes.
use super::log::Log;

/// Folds of the users; the model that predicts a row has no row of the same fold in its training data.
pub(super) const FOLDS: usize = 5;

/// The expected reward of each cell: `rate of the position × factor of the item`. The factors are a gamma-Poisson
/// model: `(reward of the item + m) / (reward expected from its positions + m)`, where `1 / m` is the variance of the
/// true factors, by the method of moments (Marshall 1991, "Mapping disease and mortality rates using empirical Bayes
/// estimators"). With rare rewards, which hardly distinguish items, `m` is large and the model approaches the
/// position's rate.
#[derive(Debug, Clone, PartialEq)]
pub struct RewardModel {
    /// Expected reward of each cell.
    expected: Vec<f64>,
}

impl RewardModel {
    /// Fits the model to the rows with indexes that `is_training` accepts. A position without rows has the mean rate.
    pub fn fit(log: &Log, is_training: impl Fn(usize) -> bool) -> Self {
        let actions = log.cells.iter().map(|cell| cell.action as usize + 1).max().unwrap_or(0);
        let positions: Vec<u32> = sorted(log.cells.iter().map(|cell| cell.position));
        let index: Vec<usize> =
            log.cells.iter().map(|cell| positions.binary_search(&cell.position).unwrap_or(0)).collect();
        let (mut rewards, mut counts) = (vec![0.0; log.cells.len()], vec![0.0; log.cells.len()]);
        for (_, row) in log.rows.iter().enumerate().filter(|(index, _)| is_training(*index)) {
            rewards[row.cell as usize] += row.reward;
            counts[row.cell as usize] += 1.0;
        }
        let share = |rewards: f64, count: f64| if count > 0.0 { rewards / count } else { 0.0 };
        let mean = share(rewards.iter().sum(), counts.iter().sum());
        let rates: Vec<f64> = (0..positions.len())
            .map(|position| {
                let of = |values: &[f64]| {
                    index.iter().zip(values).filter(|(index, _)| **index == position).map(|(_, v)| v).sum::<f64>()
                };
                if of(&counts) > 0.0 { share(of(&rewards), of(&counts)) } else { mean }
            })
            .collect();
        let (mut earned, mut expected_rewards) = (vec![0.0; actions], vec![0.0; actions]);
        for (cell, at) in log.cells.iter().enumerate().map(|(index, cell)| (cell, index)) {
            earned[cell.action as usize] += rewards[at];
            expected_rewards[cell.action as usize] += counts[at] * rates[index[at]];
        }
        let m = 1.0 / factor_variance(&earned, &expected_rewards);
        let factor = |action: u32| (earned[action as usize] + m) / (expected_rewards[action as usize] + m);
        let expected = log.cells.iter().zip(&index).map(|(cell, index)| rates[*index] * factor(cell.action)).collect();
        Self { expected }
    }

    /// Returns the expected reward of a cell, at least 0.
    pub fn expected(&self, cell: u32) -> f64 {
        self.expected.get(cell as usize).copied().unwrap_or(0.0)
    }
}

/// Returns the variance of the items' true factors around 1: the observed variance minus that of counting. Never 0, so
/// that its inverse is finite.
fn factor_variance(earned: &[f64], expected_rewards: &[f64]) -> f64 {
    let known = || earned.iter().zip(expected_rewards).filter(|(_, expected_rewards)| **expected_rewards > 0.0);
    let total: f64 = known().map(|(_, expected_rewards)| expected_rewards).sum();
    let observed: f64 =
        known().map(|(earned, expected_rewards)| expected_rewards * (earned / expected_rewards - 1.0).powi(2)).sum();
    let variance = if total > 0.0 { (observed - known().count() as f64) / total } else { 0.0 };
    variance.max(1e-3)
}

/// Returns the distinct values in ascending order.
fn sorted(values: impl Iterator<Item = u32>) -> Vec<u32> {
    let mut values: Vec<u32> = values.collect();
    values.sort_unstable();
    values.dedup();
    values
}
