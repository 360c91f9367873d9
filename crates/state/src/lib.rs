//! The state folded from the log: users, popularity, queries and catalogue changes; its checkpoints and its recovery.
//!
//! The same fold runs when a change is written and when the log is replayed, so a state is equal after a restart.
#![forbid(unsafe_code)]
mod catalog_changes;
pub mod checkpoints;
mod live;
mod recovery;
pub mod users;

pub use catalog_changes::{CatalogChanges, ItemChange};
pub use live::LiveState;
pub use recovery::{RecoveredState, RecoveryError, RecoveryOptions, live_of, recover};
