//! Experiments on shoppers: who is in which arm, whether the split is the one that was asked for, and what the arms did,
//! in intervals that hold however often one looks. Pure functions over exposures and outcomes; only `files` reads anything.
//! Useful for: deciding between serving configurations. Not useful for: deciding what to try, see `off_policy`.
#![forbid(unsafe_code)]
mod analysis;
mod files;
mod interleaving;
pub mod off_policy;
mod page;
pub mod plots;
mod sample_ratio;

pub use analysis::{
    AnalysisOptions, ArmCount, Comparison, ExperimentError, ExperimentReport, LeftOut, MetricReport, Moment, analyse,
};
pub use files::{ExperimentFileError, ExperimentLog, read_answers, read_outcomes, read_slots};
pub use interleaving::{InterleavingReport, credit};
pub use sample_ratio::{SampleRatio, sample_ratio};

use lodestone_core::units::UnixMillis;

/// A user was shown an answer of an arm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exposure {
    pub user: String,
    pub at: UnixMillis,
    pub experiment: String,
    pub arm: String,
}

/// A user was shown an answer in which two rankings were interleaved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft {
    /// Empty: not known; outcomes are then matched by user, item and time.
    pub answer: String,
    pub user: String,
    pub at: UnixMillis,
    pub experiment: String,
    /// Each shown item and whose pick it was.
    pub picks: Vec<(String, Team)>,
}

/// One of two interleaved rankings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Team {
    A,
    B,
}

/// A user did something.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    pub user: String,
    pub at: UnixMillis,
    /// `click`, `purchase`, …
    pub kind: String,
    /// What it was worth, for example money; 0 where nothing is known. Finite.
    pub value: f64,
    /// The item that it was done with. Empty: none, or not known.
    pub item: String,
    /// The answer that it followed from. Empty: not known.
    pub answer: String,
}
