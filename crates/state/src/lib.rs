//! The state folded from the log: users, popularity, queries and catalogue changes; its checkpoints and its recovery.
//!
//! The same fold runs when a change is written and when the log is replayed, so a state is equal after a restart.
#![forbid(unsafe_code)]
mod catalog_changes;
pub mod checkpoints;
mod recovery;
mod state;
pub mod users;

pub use catalog_changes::{CatalogChanges, ItemChange};
pub use recovery::{RecoveredState, RecoveryError, RecoveryOptions, recover, state_of_items};
pub use state::LiveState;
