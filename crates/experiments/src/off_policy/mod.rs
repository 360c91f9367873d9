//! Off-policy evaluation: estimates the value of one policy from the log of another, which records the probability of
//! each shown item. All functions are pure functions of rows; only `answers` and `files` read files. Use it to select
//! candidates for an experiment; it cannot estimate effects later than the logged reward, or items that the log never
//! shows.
//!
//! Terms: the *logging* policy wrote the log, the *target* policy is evaluated, the *propensity* is the probability
//! with which the logging policy selected the shown item for its position, and the *weight* is the target policy's
//! probability divided by the propensity.
mod answers;
mod estimate;
mod files;
mod interval;
mod log;
mod report;
mod reward_model;
mod support;

pub use answers::{EvaluatedSlots, LoggedReport, Reward, answers_under, evaluate_answers, slots_of};
pub use estimate::{EstimateOptions, Estimates, Estimator, Measure, estimate};
pub use files::{LoggedFile, OffPolicyFileError, read_file};
pub use interval::gamma_interval;
pub use log::{ActionDistribution, Cell, Log, LogRow};
pub use report::{MeasureComparison, OffPolicyReport, OnPolicyMean, benchmark};
pub use reward_model::RewardModel;
pub use support::{Refusal, Support, SupportLimits};
