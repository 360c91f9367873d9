//! What was answered and why: a log of answers that can be replayed, learned from and judged.
//!
//! Useful for: the true probability of everything that was shown, and an answer made once more to the bit. Not useful for:
//! state; nothing that is served rests on it, and it may lose the last second in a crash.
mod columns;
mod log;
mod other;
mod record;
mod replay;
mod rows;
mod segment;

pub use columns::{decode as decode_columns, encode as encode_columns};
pub use log::{AnswersConfig, AnswersLog, MakeRecord, day, find};
pub use record::*;
pub use replay::{Generation, Propensity, ReplayError, Replayed, digest, replay, seed_of, slate_sum, team_number};
pub use rows::{Join, Rewards, SlotRow, for_each_record, read_rows, write_rows};
pub use segment::{AnswersError, Lost};
