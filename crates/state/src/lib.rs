//! The state folded from the event log: users, popularity, searches and catalogue changes; its checkpoints and
//! recovery.
//!
//! The same fold runs on writes and on replays of the log, so that a restart restores the same state.
#![forbid(unsafe_code)]
mod catalog_changes;
pub mod checkpoints;
mod event_items;
mod incentives;
mod recovery;
mod searches;
mod state;
pub mod users;

pub use catalog_changes::CatalogChanges;
pub use event_items::{EVENT_ITEMS_MAX, EventItems};
pub use incentives::{BudgetPeriod, CampaignUse, DECISIONS_MAX, IncentiveLedger};
pub use recovery::{RecoveredState, RecoveryError, RecoveryOptions, recover, state_with_items};
pub use searches::{COMPLETION_USERS_MIN, COMPLETION_USERS_MIN_MAX, Search, Searches};
pub use state::{LiveState, ReplayBase, StateLimits};
