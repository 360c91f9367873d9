//! Baselines of the field that need no training beyond counting, or one matrix inverse: what a bundle must be better
//! than. Each is tuned on the last part of the training data, by task.
mod cases;
mod items;
mod neighbours;
mod scores;
mod shop;
mod tuning;

pub(crate) use cases::{Case, Subtask, SubtaskScores, ranking_scores};
pub(crate) use items::ItemWeights;
pub(crate) use scores::Decay;
pub(crate) use shop::{Sales, Shop, decayed};
pub use tuning::StateUntil;
pub(crate) use tuning::{TUNED, TunedBaseline, tuned_baselines, validation_begins, validation_cases};
