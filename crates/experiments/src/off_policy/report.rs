//! The benchmark of the estimators: the log of one policy estimates the value of a second one, whose own log is the
//! reference.
use super::{
    ActionDistribution, Cell, EstimateOptions, Estimates, Estimator, Log, LogRow, LoggedFile, Measure,
    OffPolicyFileError, Refusal, estimate, estimate::LEVEL, gamma_interval, read_file,
};
use ahash::AHashMap;
use serde::Serialize;
use std::{fmt, path::Path};

/// A policy's mean reward per row in its own log, with its 95 % interval.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OnPolicyMean {
    pub file: String,
    pub rows: usize,
    /// `None` if the file has no users.
    pub users: Option<usize>,
    pub rewarded_rows: usize,
    pub mean: f64,
    pub low: f64,
    pub high: f64,
}

/// An estimate compared with the target policy's own mean.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct MeasureComparison {
    #[serde(flatten)]
    pub measure: Measure,
    /// `|estimate - own mean| / own mean`, as the Open Bandit Pipeline reports it; `None` if the own mean is 0.
    pub relative_error: Option<f64>,
    /// Whether the interval contains the own mean. Because the own mean is uncertain too, an interval that contains
    /// the policy's true value in 95 of 100 cases contains the own mean in fewer.
    pub covers: bool,
    /// Estimate minus own mean, with a 95 % interval that includes both uncertainties.
    pub difference: f64,
    pub difference_low: f64,
    pub difference_high: f64,
}

/// The report of `lodestone benchmark off-policy`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OffPolicyReport {
    pub logged: OnPolicyMean,
    pub target: OnPolicyMean,
    /// `None` if the log was refused.
    pub estimates: Option<Estimates>,
    #[serde(rename = "judged")]
    pub comparisons: Vec<MeasureComparison>,
    /// The estimator to use: doubly robust.
    pub recommended: Estimator,
    /// The reason for a missing estimate.
    pub refused: Option<String>,
}

/// Estimates, from the log `logged` with its propensities, the reward per row of the policy that wrote the log
/// `target`, and compares it with the mean of that log. The target policy's probabilities are the shares of its items
/// by position; the propensities of its log are ignored.
pub fn benchmark(
    logged: &Path,
    target: &Path,
    options: &EstimateOptions,
) -> Result<OffPolicyReport, OffPolicyFileError> {
    let (from, to) = (read_file(logged)?, read_file(target)?);
    let own = on_policy_mean(target, &to);
    let estimated = estimate(&log_of(&from, &to), options);
    let comparisons: Vec<MeasureComparison> = (estimated.iter())
        .flat_map(|estimates| &estimates.measures)
        .map(|measure| MeasureComparison::new(*measure, &own))
        .collect();
    Ok(OffPolicyReport {
        logged: on_policy_mean(logged, &from),
        target: own,
        refused: estimated.as_ref().err().map(Refusal::to_string),
        estimates: estimated.ok(),
        comparisons,
        recommended: Estimator::DoublyRobust,
    })
}

/// Joins a log with the target policy's sample. Positions are part of the selection, with their shares as
/// probabilities, so that logs with different shares of positions are comparable.
fn log_of(from: &LoggedFile, to: &LoggedFile) -> Log {
    let mut log = Log::default();
    let mut actions: AHashMap<&str, u32> = AHashMap::new();
    let mut cells: AHashMap<Cell, u32> = AHashMap::new();
    let mut target_counts: Vec<u32> = Vec::new();
    let mut cell_of = |log: &mut Log, counts: &mut Vec<u32>, item, position| {
        let next = actions.len() as u32;
        let cell = Cell { action: *actions.entry(item).or_insert(next), position };
        *cells.entry(cell).or_insert_with(|| {
            log.cells.push(cell);
            counts.push(0);
            log.cells.len() as u32 - 1
        })
    };
    for row in &to.rows {
        let cell = cell_of(&mut log, &mut target_counts, to.items[row.item as usize].as_str(), row.position);
        target_counts[cell as usize] += 1;
    }
    let position_share = shares(from.rows.iter().map(|row| row.position));
    for (number, row) in from.rows.iter().enumerate() {
        let cell = cell_of(&mut log, &mut target_counts, from.items[row.item as usize].as_str(), row.position);
        log.rows.push(LogRow {
            user: row.user.unwrap_or(number as u32),
            cell,
            distribution: 0,
            reward: row.reward,
            propensity: row.propensity * position_share.get(&row.position).copied().unwrap_or(1.0),
            target: 0.0,
        });
    }
    let probability = |count: &u32| f64::from(*count) / to.rows.len() as f64;
    log.rows.iter_mut().for_each(|row| row.target = probability(&target_counts[row.cell as usize]));
    log.distributions = vec![ActionDistribution {
        cells: (0..log.cells.len() as u32).collect(),
        probabilities: target_counts.iter().map(probability).collect(),
    }];
    log.target_counts = Some(target_counts);
    log
}

/// Returns the share of each value.
fn shares(values: impl Iterator<Item = u32>) -> AHashMap<u32, f64> {
    let mut counts: AHashMap<u32, f64> = AHashMap::new();
    values.for_each(|value| *counts.entry(value).or_default() += 1.0);
    let total: f64 = counts.values().sum();
    counts.values_mut().for_each(|count| *count /= total);
    counts
}

fn on_policy_mean(path: &Path, file: &LoggedFile) -> OnPolicyMean {
    let (rows, mean) = (file.rows.len() as f64, file.reward_mean());
    // The rewards of a user are dependent, so their deviations are summed before squaring.
    let mut deviations: AHashMap<u32, f64> = AHashMap::new();
    for (number, row) in file.rows.iter().enumerate() {
        *deviations.entry(row.user.unwrap_or(number as u32)).or_default() += row.reward - mean;
    }
    let variance = deviations.values().map(|deviation| deviation * deviation).sum::<f64>() / (rows * rows);
    let squares: f64 = file.rows.iter().map(|row| row.reward * row.reward).sum();
    let step = if mean > 0.0 { squares / (mean * rows) } else { 1.0 } / rows;
    let (low, high) = gamma_interval(mean, variance, step, LEVEL);
    OnPolicyMean {
        file: path.display().to_string(),
        rows: file.rows.len(),
        users: file.users,
        rewarded_rows: file.rows.iter().filter(|row| row.reward > 0.0).count(),
        mean,
        low,
        high,
    }
}

impl MeasureComparison {
    /// Combines both intervals to that of the difference (Zou and Donner 2008, "Construction of confidence limits about
    /// effect measures"), which preserves their asymmetry.
    fn new(measure: Measure, own: &OnPolicyMean) -> Self {
        let difference = measure.value - own.mean;
        let below = (measure.value - measure.low).hypot(own.high - own.mean);
        let above = (measure.high - measure.value).hypot(own.mean - own.low);
        Self {
            measure,
            relative_error: (own.mean > 0.0).then(|| difference.abs() / own.mean),
            covers: (measure.low..=measure.high).contains(&own.mean),
            difference,
            difference_low: difference - below,
            difference_high: difference + above,
        }
    }
}

impl fmt::Display for OnPolicyMean {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let users = self.users.map_or_else(|| "users unknown".to_owned(), |count| format!("{count} users"));
        write!(
            f,
            "{}: {} rows, {users}, {} with a reward; mean {:.5} [{:.5}, {:.5}]",
            self.file, self.rows, self.rewarded_rows, self.mean, self.low, self.high
        )
    }
}

impl fmt::Display for OffPolicyReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "logged  {}", self.logged)?;
        writeln!(f, "target  {}", self.target)?;
        let Some(estimates) = &self.estimates else {
            return writeln!(f, "refused: {}", self.refused.as_deref().unwrap_or("no estimate"));
        };
        let support = &estimates.support;
        writeln!(
            f,
            "support {:.0} effective of {} rows; weights: mean {:.3} ({:+.1} standard errors from 1), maximum {:.1}",
            support.ess, support.rows, support.weight_mean, support.weight_mean_z, support.weight_max
        )?;
        if support.unseen_cells > 0.0 {
            writeln!(
                f,
                "        {:.2} % of the target policy's probability is on cells that the log never shows, {:.2} % on items that it never shows",
                100.0 * support.unseen_cells,
                100.0 * support.unseen_items
            )?;
        }
        writeln!(
            f,
            "\n{:<14} {:>9}  {:<20}  relative error  covers the target's own mean",
            "", "value", "95 % interval"
        )?;
        for comparison in &self.comparisons {
            let Measure { estimator, value, low, high, .. } = comparison.measure;
            let error = comparison.relative_error.map_or_else(|| "-".to_owned(), |error| format!("{error:.3}"));
            let interval = format!("[{low:.5}, {high:.5}]");
            let covers = if comparison.covers { "yes" } else { "no" };
            writeln!(f, "{:<14} {value:>9.5}  {interval:<20}  {error:>14}  {covers}", estimator.name())?;
        }
        let error = (self.target.mean > 0.0).then(|| (estimates.direct - self.target.mean).abs() / self.target.mean);
        let error = error.map_or_else(|| "-".to_owned(), |error| format!("{error:.3}"));
        writeln!(f, "{:<14} {:>9.5}  {:<20}  {error:>14}", "reward model", estimates.direct, "none: biased")?;
        writeln!(
            f,
            "\nClipped IPS clips weights at {:.1}: {:.2} % of their sum.",
            estimates.clip,
            100.0 * estimates.clipped_share
        )?;
        if let Some(comparison) =
            self.comparisons.iter().find(|comparison| comparison.measure.estimator == self.recommended)
        {
            writeln!(
                f,
                "{} minus own mean: {:+.5} [{:+.5}, {:+.5}], with both uncertainties.",
                self.recommended.name(),
                comparison.difference,
                comparison.difference_low,
                comparison.difference_high
            )?;
        }
        Ok(())
    }
}
