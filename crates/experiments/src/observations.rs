//! The input of an analysis: exposures, interleaved answers and outcomes.
use lodestone_core::units::UnixMillis;

/// An answer of an arm that a user received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exposure {
    pub user: String,
    /// Empty: unknown.
    pub session: String,
    pub at: UnixMillis,
    pub experiment: String,
    pub arm: String,
}

/// An answer with two interleaved rankings that a user received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft {
    /// The id of the answer. Empty: unknown; outcomes are then matched by user, item and time.
    pub answer: String,
    pub user: String,
    pub at: UnixMillis,
    pub experiment: String,
    /// Each shown item and the team that picked it.
    pub picks: Vec<(String, Team)>,
}

/// One of two interleaved rankings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Team {
    A,
    B,
}

/// An action of a user.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    pub user: String,
    pub at: UnixMillis,
    /// `click`, `purchase`, …
    pub kind: String,
    /// The value, for example money; 0 if unknown. Finite.
    pub value: f64,
    /// ISO 4217 code of the value. Empty: unknown.
    pub currency: String,
    /// The item of the action. Empty: none, or unknown.
    pub item: String,
    /// The answer that the action followed from. Empty: unknown.
    pub answer: String,
}
