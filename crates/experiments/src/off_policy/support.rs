//! Whether a log can say anything about a policy at all.
use super::Log;
use serde::Serialize;

/// Where a log is refused.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SupportLimits {
    /// The least effective sample size, in rows.
    pub ess_min: f64,
    /// The most of the target policy's probability, 0 to 1, that may lie on items which the log shows at no position.
    pub unseen_items_max: f64,
    /// The same for items which the log does not show at that position. More is allowed: an item that is shown elsewhere
    /// can be shown here, only seldom.
    pub unseen_cells_max: f64,
}

impl Default for SupportLimits {
    fn default() -> Self {
        Self { ess_min: 50.0, unseen_items_max: 0.02, unseen_cells_max: 0.10 }
    }
}

/// How far the log reaches.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Support {
    pub rows: usize,
    /// Rows with a reward above 0.
    pub rewarded_rows: usize,
    /// Kish's effective sample size: `(Σw)² / Σw²`. So many rows of the target policy itself would know as much.
    pub ess: f64,
    /// 1 for true propensities and full support, but for chance.
    pub weight_mean: f64,
    pub weight_max: f64,
    /// How far `weight_mean` is from 1, in standard errors.
    pub weight_mean_z: f64,
    /// Probability of the target policy on items that the log shows nowhere.
    pub unseen_items: f64,
    /// Probability of the target policy on items that the log does not show at that position; includes the former.
    pub unseen_cells: f64,
}

/// Why there is no estimate.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Refusal {
    #[error("the log has no rows")]
    Empty,
    #[error(
        "no support: {share:.1} % of the target policy's probability is on items that the log never shows (limit {limit:.1} %); nothing in the log says what they would have earned"
    )]
    UnseenItems { share: f64, limit: f64 },
    #[error(
        "no support: {share:.1} % of the target policy's probability is on items at positions where the log never shows them (limit {limit:.1} %)"
    )]
    UnseenCells { share: f64, limit: f64 },
    #[error(
        "too little support: the effective sample size is {ess:.1} rows of {rows} (limit {limit:.0}); the logging policy seldom does what the target policy would"
    )]
    Ess { ess: f64, rows: usize, limit: f64 },
    #[error(
        "no support, or wrong propensities: the weights' mean is {mean:.3}, {z:.0} standard errors from 1; below 1 the log may never do part of what the judged policy would; and a propensity must be the probability of this item at this position, not of the whole list and not the mean over positions"
    )]
    Propensities { mean: f64, z: f64 },
}

impl Support {
    /// Looks at a log. `weight_error` is the standard error of the weights' mean.
    pub(super) fn of(log: &Log, weight_error: f64) -> Self {
        let (mut sum, mut squares, mut greatest) = (0.0, 0.0, 0.0f64);
        let mut seen = vec![false; log.cells.len()];
        let mut used = vec![0.0; log.choices.len()];
        for row in &log.rows {
            let weight = row.weight();
            sum += weight;
            squares += weight * weight;
            greatest = greatest.max(weight);
            seen[row.cell as usize] = true;
            used[row.choice as usize] += 1.0 / log.rows.len() as f64;
        }
        let actions = log.cells.iter().map(|cell| cell.action as usize + 1).max().unwrap_or(0);
        let mut seen_action = vec![false; actions];
        for (cell, _) in log.cells.iter().zip(&seen).filter(|(_, seen)| **seen) {
            seen_action[cell.action as usize] = true;
        }
        let on = |is_counted: &dyn Fn(u32) -> bool| -> f64 {
            let of_choice = |choice: &super::Choice| -> f64 {
                choice
                    .cells
                    .iter()
                    .zip(&choice.probabilities)
                    .filter(|(cell, _)| is_counted(**cell))
                    .map(|(_, p)| p)
                    .sum()
            };
            log.choices.iter().zip(&used).map(|(choice, used)| used * of_choice(choice)).sum()
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
            // An empty sum is -0.
            unseen_items: unseen_items + 0.0,
            unseen_cells: unseen_cells + 0.0,
        }
    }

    /// Refuses a log that is too far from the policy.
    pub(super) fn check(&self, limits: &SupportLimits) -> Result<(), Refusal> {
        let percent = |share: f64| 100.0 * share;
        if self.rows == 0 {
            return Err(Refusal::Empty);
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
        // Heavy tails make the mean's own error unsure, so both a large distance and many errors are asked for.
        if self.weight_mean_z.abs() > WEIGHT_MEAN_Z_MAX && (self.weight_mean - 1.0).abs() > WEIGHT_MEAN_DISTANCE_MAX {
            return Err(Refusal::Propensities { mean: self.weight_mean, z: self.weight_mean_z.abs() });
        }
        Ok(())
    }
}

const WEIGHT_MEAN_Z_MAX: f64 = 5.0;
const WEIGHT_MEAN_DISTANCE_MAX: f64 = 0.25;
