//! Outcomes of writes, and the errors of the engine.
use lodestone_events::LogError;
use lodestone_pipeline::{
    answers::{AnswersError, ReplayError},
    serving::UnknownConfig,
};
use std::time::Duration;

/// What became of a written event or item, in the order of the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteOutcome {
    Accepted,
    Duplicate,
    Created,
    Replaced,
    Deleted,
    /// There is no such item; nothing changed.
    Unknown,
}

impl WriteOutcome {
    pub fn name(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Duplicate => "duplicate",
            Self::Created => "created",
            Self::Replaced => "replaced",
            Self::Deleted => "deleted",
            Self::Unknown => "unknown",
        }
    }
}

/// Why the engine gives no answer.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The queue of the workers is full.
    #[error("the server has more requests than it can answer")]
    Overloaded { retry_after: Duration },
    /// The deadline passed before the answer was ready.
    #[error("the deadline passed before the answer was ready")]
    DeadlineExceeded,
    /// The page token is not one of ours, or belongs to another request.
    #[error("{0}")]
    PageToken(PageTokenError),
    /// The request names a serving configuration that there is not.
    #[error("{0}")]
    ServingConfig(#[from] UnknownConfig),
    /// The attribution token is not one of ours.
    #[error("is not an attribution token of this server")]
    AttributionToken,
    /// The answer was not logged, or its record was removed since.
    #[error("there is no record of this answer: it was not logged, or is older than records are kept")]
    AnswerNotFound,
    /// The models that made the answer are not loaded.
    #[error("the answer is of generation {generation}, and {current} answers now")]
    GenerationGone { generation: String, current: String },
    #[error("{0}")]
    Replay(#[from] ReplayError),
    /// The records of answers could not be read.
    #[error("the log of answers cannot be read")]
    Answers(#[source] AnswersError),
    /// The log could not take the write.
    #[error("the log did not take the write")]
    Log(#[source] LogError),
    /// A bug: logged, never told to a client.
    #[error("internal error: {0}")]
    Internal(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PageTokenError {
    #[error("is not a page token of this server")]
    Foreign,
    #[error("belongs to another request; send everything else as in the request that returned it")]
    OtherRequest,
    #[error("has expired; start again from the first page")]
    Expired,
}
