//! The reward model of the doubly robust estimator: rates by position, times a factor for each item that is drawn
//! towards 1 as far as the data ask for it.
use super::Log;

/// Parts of the users; a row's reward is foretold by a model that saw none of its user's rows.
pub(super) const FOLDS: usize = 5;

/// The expected reward of each cell: `rate of the position × factor of the item`. The factors are a gamma-Poisson model:
/// `(reward of the item + m) / (reward expected from its positions + m)`, where `1 / m` is the variance of the true
/// factors, by the method of moments (Marshall 1991, "Mapping disease and mortality rates using empirical Bayes
/// estimators"). With rare rewards, which tell items hardly apart, `m` is large and the model says the position's rate.
#[derive(Debug, Clone, PartialEq)]
pub struct RewardModel {
    /// By cell.
    expected: Vec<f64>,
}

impl RewardModel {
    /// Learns from the rows that `learned` keeps. A cell whose item or position was not there has the mean.
    pub fn fit(log: &Log, learned: impl Fn(usize) -> bool) -> Self {
        let actions = log.cells.iter().map(|cell| cell.action as usize + 1).max().unwrap_or(0);
        let positions: Vec<u32> = sorted(log.cells.iter().map(|cell| cell.position));
        let place: Vec<usize> =
            log.cells.iter().map(|cell| positions.binary_search(&cell.position).unwrap_or(0)).collect();
        let (mut rewards, mut counts) = (vec![0.0; log.cells.len()], vec![0.0; log.cells.len()]);
        for (_, row) in log.rows.iter().enumerate().filter(|(index, _)| learned(*index)) {
            rewards[row.cell as usize] += row.reward;
            counts[row.cell as usize] += 1.0;
        }
        let share = |rewards: f64, count: f64| if count > 0.0 { rewards / count } else { 0.0 };
        let mean = share(rewards.iter().sum(), counts.iter().sum());
        let rates: Vec<f64> = (0..positions.len())
            .map(|position| {
                let of = |values: &[f64]| {
                    place.iter().zip(values).filter(|(place, _)| **place == position).map(|(_, v)| v).sum::<f64>()
                };
                if of(&counts) > 0.0 { share(of(&rewards), of(&counts)) } else { mean }
            })
            .collect();
        let (mut earned, mut foretold) = (vec![0.0; actions], vec![0.0; actions]);
        for (cell, at) in log.cells.iter().enumerate().map(|(index, cell)| (cell, index)) {
            earned[cell.action as usize] += rewards[at];
            foretold[cell.action as usize] += counts[at] * rates[place[at]];
        }
        let m = 1.0 / factor_variance(&earned, &foretold);
        let factor = |action: u32| (earned[action as usize] + m) / (foretold[action as usize] + m);
        let expected = log.cells.iter().zip(&place).map(|(cell, place)| rates[*place] * factor(cell.action)).collect();
        Self { expected }
    }

    /// The expected reward of a cell, at least 0.
    pub fn expected(&self, cell: u32) -> f64 {
        self.expected.get(cell as usize).copied().unwrap_or(0.0)
    }
}

/// The variance of the items' true factors around 1: what the observed ones vary more than counting alone explains.
/// Never 0, so that its inverse is finite.
fn factor_variance(earned: &[f64], foretold: &[f64]) -> f64 {
    let known = || earned.iter().zip(foretold).filter(|(_, foretold)| **foretold > 0.0);
    let total: f64 = known().map(|(_, foretold)| foretold).sum();
    let observed: f64 = known().map(|(earned, foretold)| foretold * (earned / foretold - 1.0).powi(2)).sum();
    let variance = if total > 0.0 { (observed - known().count() as f64) / total } else { 0.0 };
    variance.max(1e-3)
}

fn sorted(values: impl Iterator<Item = u32>) -> Vec<u32> {
    let mut values: Vec<u32> = values.collect();
    values.sort_unstable();
    values.dedup();
    values
}
