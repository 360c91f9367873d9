//! The answer log: sampled records of answers with everything that decided them, for replays, training and off-policy
//! estimates.
//!
//! Useful for: the exact probability of each shown order, and bit-equal replays of answers. Not useful for: state,
//! because a crash may lose the last second of the log; serving does not depend on it.
mod columns;
mod counterfactual;
mod log;
mod record;
mod replay;
mod rows;
mod rule_preview;
mod scores;
mod segment;

pub use columns::{decode as decode_columns, encode as encode_columns};
pub use counterfactual::CounterfactualPage;
pub use log::{AnswerLog, AnswerLogConfig, RecordBuilder, day, find};
pub use record::*;
pub use replay::{
    Propensity, ReplayError, ReplayModels, ReplayedAnswer, digest, replay, seed_of, slate_checksum, team_number,
};
pub use rows::{RewardJoin, Rewards, SlotRow, for_each_record, read_backwards, read_file, read_rows, write_rows};
pub use rule_preview::{PreviewedPage, RuleOnRecord};
pub use scores::{HeadPart, SlotExplanation, SourcePart};
pub use segment::{AnswerLogError, Damage, list as list_files};
