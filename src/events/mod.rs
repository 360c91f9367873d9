//! What shoppers did: event types, the durable log, deduplication, popularity.
mod event;

pub use event::{Attribution, Event, EventKind, EventLine};

/// (being written)
#[derive(Debug, thiserror::Error)]
#[error("log")]
pub struct LogError;
