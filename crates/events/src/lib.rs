//! What shoppers did: event types, the durable log, deduplication, popularity.
#![forbid(unsafe_code)]
pub mod checkpoint;
mod dedup;
mod event;
pub mod log;
mod popularity;
mod record;
mod writer;

pub use dedup::{Chunk, DEDUPE_DAYS, DEDUPE_IDS_MAX, Deduper};
pub use event::{Attribution, Event, EventKind, EventLine};
pub use log::{EventLog, LogError, TornTail};
pub use popularity::Popularity;
pub use record::Change;
pub use writer::{Apply, Outcome, Writer, Written};
