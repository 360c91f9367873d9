//! What shoppers did: event types, the durable log, deduplication, popularity.
mod dedup;
mod event;
mod log;
mod popularity;
mod record;
mod writer;

pub use dedup::Deduper;
pub use event::{Attribution, Event, EventKind, EventLine};
pub use log::{EventLog, LogError};
pub use popularity::Popularity;
pub use record::Change;
pub use writer::{Outcome, Writer, Written};
