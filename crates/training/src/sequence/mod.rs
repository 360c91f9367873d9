//! Sequence models, which predict the next item of a history: a transformer, co-occurrence counts, text similarity, and
//! a listwise ranker that blends them; and the public benchmarks that compare them with published results.
pub mod benchmark;
pub mod blend;
pub mod encoder;
mod encoder_config;
pub mod files;
pub mod fit;
mod interruption;
pub mod metrics;
pub mod next_basket;
pub mod next_item;
pub mod pairs;
mod samples;
pub mod sessions;
pub mod similar_histories;
pub mod sources;
pub mod text;
mod trainer;
mod training_history;
pub(super) mod transformer;

pub use encoder::{SequenceEncoder, Similarity};
pub use encoder_config::EncoderConfig;
pub use fit::{TrainedEncoder, train_encoder};
pub use interruption::{Interruption, TrainerState};
pub use samples::{EventTargets, ItemText, Repeats, Sample, next_items};
use std::{io, path::PathBuf};
pub use transformer::{Dropout, Shape, Tokens};

/// Why sequence models cannot be trained or evaluated.
#[derive(Debug, thiserror::Error)]
pub enum SequenceError {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{path}: line {line}: {problem}")]
    Line { path: PathBuf, line: usize, problem: String },
    #[error("{path}: {problem}")]
    File { path: PathBuf, problem: String },
    #[error("the loss of {stage} diverged at step {step}; train with a smaller learning rate")]
    Diverged { stage: &'static str, step: usize },
    #[error("{0}")]
    TooLittle(String),
    #[error("{0}")]
    Checkpoint(String),
    #[error("the training was stopped")]
    Stopped,
}

/// Most events of one history that training reads, the latest ones, because one program that clicks all day must not
/// outweigh all other users.
pub const HISTORY_MAX: usize = 10_000;

/// Returns the latest [`HISTORY_MAX`] elements of a history.
fn latest<T>(history: &[T]) -> &[T] {
    &history[history.len().saturating_sub(HISTORY_MAX)..]
}
