//! The input of the estimators: the rows of a log with the target policy's probabilities.

/// One item at one position: the unit of selection, and of the reward model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cell {
    pub action: u32,
    /// Any number that identifies the position.
    pub position: u32,
}

/// The target policy's distribution over cells in one context.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ActionDistribution {
    /// Indexes of [`Log::cells`].
    pub cells: Vec<u32>,
    /// Finite, at least 0, with a sum of 1.
    pub probabilities: Vec<f64>,
}

/// One logged selection.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LogRow {
    /// The number of the user, whose rows are resampled together. If users are unknown: the number of the row.
    pub user: u32,
    /// The shown item: an index of [`Log::cells`].
    pub cell: u32,
    /// The target policy in this context: an index of [`Log::distributions`].
    pub distribution: u32,
    /// Finite, at least 0. A click is 1.
    pub reward: f64,
    /// The probability of this cell under the logging policy: above 0, at most 1.
    pub propensity: f64,
    /// The probability of this cell under the target policy: from 0 to 1.
    pub target: f64,
}

impl LogRow {
    /// Returns the importance weight.
    pub fn weight(&self) -> f64 {
        self.target / self.propensity
    }
}

/// A log with the target policy's probabilities.
#[derive(Debug, Clone, Default)]
pub struct Log {
    pub cells: Vec<Cell>,
    pub distributions: Vec<ActionDistribution>,
    pub rows: Vec<LogRow>,
    /// Counts of each cell, if the target policy's probabilities are shares of a sample; the intervals then include
    /// their uncertainty. Requires a single distribution.
    pub target_counts: Option<Vec<u32>>,
}

impl Log {
    /// Returns an upper bound of the users' numbers.
    pub(super) fn user_count(&self) -> usize {
        self.rows.iter().map(|row| row.user as usize + 1).max().unwrap_or(0)
    }
}
