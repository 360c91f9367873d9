//! The benchmark: two logs of two policies; the first tells what the second earned, and the second says whether it did.
use super::{
    Cell, Choice, EstimateOptions, Estimates, Estimator, Log, LogRow, LoggedFile, Measure, OffPolicyFileError, Refusal,
    estimate, estimate::LEVEL, gamma_interval, read_file,
};
use ahash::AHashMap;
use serde::Serialize;
use std::{fmt, path::Path};

/// A policy's value from its own log, per row, with its 95 % interval.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OwnMean {
    pub file: String,
    pub rows: usize,
    /// None where the file does not tell users.
    pub users: Option<usize>,
    pub rewarded_rows: usize,
    pub mean: f64,
    pub low: f64,
    pub high: f64,
}

/// An estimate beside the target policy's own mean.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Judged {
    #[serde(flatten)]
    pub measure: Measure,
    /// `|estimate - own mean| / own mean`, as the Open Bandit Pipeline reports it; None where the own mean is 0.
    pub relative_error: Option<f64>,
    /// Whether the interval holds the own mean. Both are uncertain, so even an interval that holds the policy's true
    /// value in 95 of 100 cases holds the own mean in somewhat fewer.
    pub covers: bool,
    /// Estimate less own mean, with a 95 % interval that knows of both uncertainties.
    pub difference: f64,
    pub difference_low: f64,
    pub difference_high: f64,
}

/// What `lodestone benchmark off-policy` prints.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OffPolicyReport {
    pub logged: OwnMean,
    pub target: OwnMean,
    /// The estimates, or nothing where the log was refused.
    pub estimates: Option<Estimates>,
    pub judged: Vec<Judged>,
    /// The estimator to use: doubly robust.
    pub recommended: Estimator,
    /// Why there is no estimate.
    pub refused: Option<String>,
}

/// Estimates from the log `logged`, with its propensities, what the policy that wrote the log `target` earns per row, and
/// compares it with that log's own mean. The target policy's probabilities are the shares of its items by position; the
/// propensities of its log are not looked at.
pub fn benchmark(
    logged: &Path,
    target: &Path,
    options: &EstimateOptions,
) -> Result<OffPolicyReport, OffPolicyFileError> {
    let (from, to) = (read_file(logged)?, read_file(target)?);
    let own = own_mean(target, &to);
    let estimated = estimate(&log_of(&from, &to), options);
    let judged: Vec<Judged> = (estimated.iter())
        .flat_map(|estimates| &estimates.measures)
        .map(|measure| Judged::new(*measure, &own))
        .collect();
    Ok(OffPolicyReport {
        logged: own_mean(logged, &from),
        target: own,
        refused: estimated.as_ref().err().map(Refusal::to_string),
        estimates: estimated.ok(),
        judged,
        recommended: Estimator::DoublyRobust,
    })
}

/// Puts a log beside a policy of which there is a sample. Both choose a position and an item: the shares of the
/// positions are part of the probabilities, so that logs with other shares can be compared.
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
            choice: 0,
            reward: row.reward,
            propensity: row.propensity * position_share.get(&row.position).copied().unwrap_or(1.0),
            target: 0.0,
        });
    }
    let probability = |count: &u32| f64::from(*count) / to.rows.len() as f64;
    log.rows.iter_mut().for_each(|row| row.target = probability(&target_counts[row.cell as usize]));
    log.choices = vec![Choice {
        cells: (0..log.cells.len() as u32).collect(),
        probabilities: target_counts.iter().map(probability).collect(),
    }];
    log.target_counts = Some(target_counts);
    log
}

/// The share of each value.
fn shares(values: impl Iterator<Item = u32>) -> AHashMap<u32, f64> {
    let mut counts: AHashMap<u32, f64> = AHashMap::new();
    values.for_each(|value| *counts.entry(value).or_default() += 1.0);
    let total: f64 = counts.values().sum();
    counts.values_mut().for_each(|count| *count /= total);
    counts
}

fn own_mean(path: &Path, file: &LoggedFile) -> OwnMean {
    let (rows, mean) = (file.rows.len() as f64, file.reward_mean());
    // A user's rewards depend on each other: their deviations are summed before they are squared.
    let mut deviations: AHashMap<u32, f64> = AHashMap::new();
    for (number, row) in file.rows.iter().enumerate() {
        *deviations.entry(row.user.unwrap_or(number as u32)).or_default() += row.reward - mean;
    }
    let variance = deviations.values().map(|deviation| deviation * deviation).sum::<f64>() / (rows * rows);
    let squares: f64 = file.rows.iter().map(|row| row.reward * row.reward).sum();
    let step = if mean > 0.0 { squares / (mean * rows) } else { 1.0 } / rows;
    let (low, high) = gamma_interval(mean, variance, step, LEVEL);
    OwnMean {
        file: path.display().to_string(),
        rows: file.rows.len(),
        users: file.users,
        rewarded_rows: file.rows.iter().filter(|row| row.reward > 0.0).count(),
        mean,
        low,
        high,
    }
}

impl Judged {
    /// The interval of the difference is made of both intervals (Zou and Donner 2008, "Construction of confidence limits
    /// about effect measures"), so it is as lopsided as they are.
    fn new(measure: Measure, own: &OwnMean) -> Self {
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

impl fmt::Display for OwnMean {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let users = self.users.map_or_else(|| "users not known".to_owned(), |count| format!("{count} users"));
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
            "support {:.0} effective of {} rows; weights: mean {:.3} ({:+.1} standard errors from 1), greatest {:.1}",
            support.ess, support.rows, support.weight_mean, support.weight_mean_z, support.weight_max
        )?;
        if support.unseen_cells > 0.0 {
            writeln!(
                f,
                "        {:.2} % of the target policy's probability is where the log shows nothing, {:.2} % on items it never shows",
                100.0 * support.unseen_cells,
                100.0 * support.unseen_items
            )?;
        }
        writeln!(
            f,
            "\n{:<14} {:>9}  {:<20}  relative error  covers the target's own mean",
            "", "value", "95 % interval"
        )?;
        for judged in &self.judged {
            let Measure { estimator, value, low, high, .. } = judged.measure;
            let error = judged.relative_error.map_or_else(|| "-".to_owned(), |error| format!("{error:.3}"));
            let interval = format!("[{low:.5}, {high:.5}]");
            let covers = if judged.covers { "yes" } else { "no" };
            writeln!(f, "{:<14} {value:>9.5}  {interval:<20}  {error:>14}  {covers}", estimator.name())?;
        }
        let error = (self.target.mean > 0.0).then(|| (estimates.direct - self.target.mean).abs() / self.target.mean);
        let error = error.map_or_else(|| "-".to_owned(), |error| format!("{error:.3}"));
        writeln!(f, "{:<14} {:>9.5}  {:<20}  {error:>14}", "reward model", estimates.direct, "none: biased")?;
        writeln!(
            f,
            "\nClipped IPS cut weights at {:.1}: {:.2} % of their sum.",
            estimates.clip,
            100.0 * estimates.clipped_share
        )?;
        if let Some(judged) = self.judged.iter().find(|judged| judged.measure.estimator == self.recommended) {
            writeln!(
                f,
                "{} less own mean: {:+.5} [{:+.5}, {:+.5}], with the uncertainty of both.",
                self.recommended.name(),
                judged.difference,
                judged.difference_low,
                judged.difference_high
            )?;
        }
        Ok(())
    }
}
