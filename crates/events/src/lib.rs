//! User events: event types, the durable log and its checkpoints, deduplication, popularity.
#![forbid(unsafe_code)]
pub mod checkpoint;
mod decision;
mod dedup;
mod directory;
mod error;
mod event;
pub mod log;
mod popularity;
mod quarantine;
mod record;
mod refunds;
pub mod storage;
mod writer;

pub use decision::{DecisionDemand, DecisionEffect, DecisionEstimate, IncentiveDecision, is_holdout};
pub use dedup::{Chunk, DEDUPE_DAYS, DEDUPE_IDS_MAX, Deduper, stable_hash};
pub use directory::LogDirectory;
pub use error::{LogError, Quarantined};
pub use event::{Attribution, Event, EventKind, EventLine};
pub use log::{EventLog, TornTail};
pub use popularity::{Counts, CountsAt, ItemCounts, Popularity, PopularitySnapshot, Rank};
pub use quarantine::{panic_message, quarantined};
pub use record::Change;
pub use refunds::{RefundLine, Refunds};
pub use writer::{Applied, Fold, Outcome, QueuedWrite, RepeatedLine, StaleField, Writer, Written};
