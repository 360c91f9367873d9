//! Support checks: whether a log contains enough evidence about the target policy.
use super::log::{ActionDistribution, Log};
use serde::Serialize;

/// Limits beyond which a log is refused.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SupportLimits {
    /// Smallest effective sample size, in rows.
    pub ess_min: f64,
    /// Greatest share of the target policy's probability, 0 to 1, on items that the log shows at no position.
    pub unseen_items_max: f64,
    /// The same for items that the log does not show at that position. The limit is higher, because an item that is
    /// shown at other positions may be possible but rare at this one.
    pub unseen_cells_max: f64,
}

impl Default for SupportLimits {
    fn default() -> Self {
        Self { ess_min: 50.0, unseen_items_max: 0.02, unseen_cells_max: 0.10 }
    }
}

/// The support of the target policy in a log.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Support {
    pub rows: usize,
    /// Rows with a reward above 0.
    pub rewarded_rows: usize,
    /// Kish's effective sample size, `(Σw)² / Σw²`: the number of rows of the target policy with the same information.
    pub ess: f64,
    /// 1 in expectation for true propensities and full support.
    pub weight_mean: f64,
    pub weight_max: f64,
    /// Distance of `weight_mean` from 1, in standard errors.
    pub weight_mean_z: f64,
    /// The target policy's probability of items that the log shows at no position.
    pub unseen_items: f64,
    /// The target policy's probability of items that the log does not show at that position; includes `unseen_items`.
    pub unseen_cells: f64,
}

/// Why a log does not support an estimate.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Refusal {
    #[error("the log has no rows")]
    Empty,
    #[error("too few rows: the log has {rows}; an estimate needs an effective sample size of at least {limit:.0} rows")]
    Rows { rows: usize, limit: f64 },
    #[error(
        "no support: {share:.1} % of the target policy's probability is on items that the log never shows (limit {limit:.1} %), so their rewards are unknown"
    )]
    UnseenItems { share: f64, limit: f64 },
    #[error(
        "no support: {share:.1} % of the target policy's probability is on items at positions where the log never shows them (limit {limit:.1} %)"
    )]
    UnseenCells { share: f64, limit: f64 },
    #[error(
        "too little support: the effective sample size is {ess:.1} rows of {rows} (limit {limit:.0}); the logging policy rarely selects the target policy's items"
    )]
    Ess { ess: f64, rows: usize, limit: f64 },
    #[error(
        "no support, or wrong propensities: the mean weight is {mean:.3}, {z:.0} standard errors from 1; a mean below 1 can mean that the log never shows some of the target policy's selections; a propensity must be the probability of this item at this position, not of the whole list and not the mean over positions"
    )]
    Propensities { mean: f64, z: f64 },
}

impl Support {
    /// Measures the support of a log. `weight_error` is the standard error of the mean weight.
    pub(super) fn of(log: &Log, weight_error: f64) -> Self {
        let (mut sum, mut squares, mut greatest) = (0.0, 0.0, 0.0f64);
        let mut seen = vec![false; log.cells.len()];
        let mut used = vec![0.0; log.distributions.len()];
        for row in &log.rows {
            let weight = row.weight();
            sum += weight;
            squares += weight * weight;
            greatest = greatest.max(weight);
            seen[row.cell as usize] = true;
            used[row.distribution as usize] += 1.0 / log.rows.len() as f64;
        }
        let actions = log.cells.iter().map(|cell| cell.action as usize + 1).max().unwrap_or(0);
        let mut seen_action = vec![false; actions];
        for (cell, _) in log.cells.iter().zip(&seen).filter(|(_, seen)| **seen) {
            seen_action[cell.action as usize] = true;
        }
        let on = |is_counted: &dyn Fn(u32) -> bool| -> f64 {
            let of_distribution = |distribution: &ActionDistribution| -> f64 {
                distribution
                    .cells
                    .iter()
                    .zip(&distribution.probabilities)
                    .filter(|(cell, _)| is_counted(**cell))
                    .map(|(_, p)| p)
                    .sum()
            };
            log.distributions.iter().zip(&used).map(|(distribution, used)| used * of_distribution(distribution)).sum()
        };
        let unseen_items = on(&|cell| !seen_action[log.cells[cell as usize].action as usize]);
        let unseen_cells = on(&|cell| !seen[cell as usize]);
        let weight_mean = sum / log.rows.len().max(1) as f64;
        Self {
            rows: log.rows.len(),
            rewarded_rows: log.rows.iter().filter(|row| row.reward > 0.0).count(),
            ess: if squares > 0.0 { sum * sum / squares } else { 0.0 },
            weight_mean,
            weight_max: greatest,
            weight_mean_z: if weight_error > 0.0 { (weight_mean - 1.0) / weight_error } else { 0.0 },
            // Adding 0 turns the -0 of an empty sum into 0.
            unseen_items: unseen_items + 0.0,
            unseen_cells: unseen_cells + 0.0,
        }
    }

    /// Refuses a log with insufficient support.
    pub(super) fn check(&self, limits: &SupportLimits) -> Result<(), Refusal> {
        let percent = |share: f64| 100.0 * share;
        if self.rows == 0 {
            return Err(Refusal::Empty);
        }
        if (self.rows as f64) < limits.ess_min {
            return Err(Refusal::Rows { rows: self.rows, limit: limits.ess_min });
        }
        if self.unseen_items > limits.unseen_items_max {
            let (share, limit) = (percent(self.unseen_items), percent(limits.unseen_items_max));
            return Err(Refusal::UnseenItems { share, limit });
        }
        if self.unseen_cells > limits.unseen_cells_max {
            let (share, limit) = (percent(self.unseen_cells), percent(limits.unseen_cells_max));
            return Err(Refusal::UnseenCells { share, limit });
        }
        if self.ess < limits.ess_min {
            return Err(Refusal::Ess { ess: self.ess, rows: self.rows, limit: limits.ess_min });
        }
        // Heavy tails make the standard error unreliable, so the limits require both a large distance and many errors.
        if self.weight_mean_z.abs() > WEIGHT_MEAN_Z_MAX && (self.weight_mean - 1.0).abs() > WEIGHT_MEAN_DISTANCE_MAX {
            return Err(Refusal::Propensities { mean: self.weight_mean, z: self.weight_mean_z.abs() });
        }
        Ok(())
    }
}

const WEIGHT_MEAN_Z_MAX: f64 = 5.0;
const WEIGHT_MEAN_DISTANCE_MAX: f64 = 0.25;
