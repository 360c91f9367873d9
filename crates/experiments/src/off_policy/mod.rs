//! What would another policy have earned? Estimates from a log that tells with which probability each shown item was
//! chosen. Pure functions over rows; only `files` reads anything. Useful for: choosing what is worth an experiment. Not
//! useful for: effects that come later than the logged reward, or items that the log never showed.
//!
//! The words are those of the field: the *logging* policy wrote the log, the *target* policy is judged, the
//! *propensity* is the probability with which the logging policy chose the shown item for its position, and a *weight*
//! is the target policy's probability divided by it.
mod answers;
mod estimate;
mod files;
mod interval;
mod report;
mod reward_model;
mod support;

pub use answers::{JudgedSlots, LoggedReport, Reward, answers_under, judge_answers};
pub use estimate::{EstimateOptions, Estimates, Estimator, Measure, estimate};
pub use files::{LoggedFile, OffPolicyFileError, read_file};
pub use interval::gamma_interval;
pub use report::{OffPolicyReport, benchmark};
pub use reward_model::RewardModel;
pub use support::{Refusal, Support, SupportLimits};

/// One item at one position: what is chosen, and what the reward model learns about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cell {
    pub action: u32,
    /// Any number that tells positions apart.
    pub position: u32,
}

/// What the target policy would do in one situation: cells, as numbers into [`Log::cells`], with probabilities that are
/// finite, at least 0, and sum to 1.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Choice {
    pub cells: Vec<u32>,
    pub probabilities: Vec<f64>,
}

/// One logged choice.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LogRow {
    /// A number for each user: rows of one are resampled together. Where nobody knows users: the row's own number.
    pub user: u32,
    /// What was shown: a number into [`Log::cells`].
    pub cell: u32,
    /// What the target policy would have done: a number into [`Log::choices`].
    pub choice: u32,
    /// Finite, at least 0. A click is 1.
    pub reward: f64,
    /// Above 0, at most 1: how probable this cell was under the logging policy.
    pub propensity: f64,
    /// The same cell's probability in this row's choice: at least 0, at most 1.
    pub target: f64,
}

impl LogRow {
    /// How much more often the target policy would have been here.
    pub fn weight(&self) -> f64 {
        self.target / self.propensity
    }
}

/// A log with the target policy beside it.
#[derive(Debug, Clone, Default)]
pub struct Log {
    pub cells: Vec<Cell>,
    pub choices: Vec<Choice>,
    pub rows: Vec<LogRow>,
    /// Where the target policy's probabilities are shares of a sample: how often it took each cell. The intervals then
    /// know that they are not exact. Needs a single choice.
    pub target_counts: Option<Vec<u32>>,
}

impl Log {
    /// Users' numbers are below this.
    fn user_count(&self) -> usize {
        self.rows.iter().map(|row| row.user as usize + 1).max().unwrap_or(0)
    }
}
