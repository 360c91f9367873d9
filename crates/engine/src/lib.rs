//! The engine: opens a server's state, runs requests on worker threads, signs tokens, freezes slates, writes through
//! the log.
#![forbid(unsafe_code)]
mod attributes;
mod engine;
mod error;
mod incentive_choice;
mod incentives;
mod loyalty;
mod open;
mod popularity;
mod previews;
mod replays;
mod rules;
mod serving;
mod token;
mod workers;

pub use attributes::{AttributeConflicts, AttributeProblem, AttributeProblemReason, AttributesPage, DeclarationsGuard};
pub use engine::{Engine, EngineConfig, QueuedEvents};
pub use error::{EngineError, PageTokenError, RuleError, WriteOutcome, WriteReport};
pub use incentives::{CampaignStatus, DecideRequest, IncentiveAnswer, IncentiveReason};
pub use lodestone_rules::EntryKind;
pub use loyalty::{AT_RISK_MAX, AtRiskPage, AtRiskRequest, UserLoyalty};
pub use open::{ANSWERS, ITEM_VECTORS, LOG, LogMissing, OpenError, OpenOptions, event_log, open};
pub use previews::{PagePair, RequestOfRecord, RewardPreview, RulePreview, ServingConfigPreview};
pub use replays::{Replay, ReplayedSlot};
pub use rules::PutMode;
pub use serving::{ServingConfigEntry, ServingConfigSource};
pub use token::{ItemsToken, PageToken, TokenKey, TokenKeyError, answer_of_token};
