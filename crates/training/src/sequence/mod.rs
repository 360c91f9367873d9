//! Models of what comes next in a sequence: a transformer, counts, texts, and a listwise blend of them; and the public
//! benchmarks on which they are compared with others.
pub mod alike;
pub mod benchmark;
pub mod blend;
pub mod encoder;
pub mod files;
pub mod fit;
pub mod metrics;
pub mod next_basket;
pub mod next_item;
pub mod pairs;
mod pause;
mod samples;
pub mod sessions;
pub mod sources;
pub mod text;
mod trainer;
pub(super) mod transformer;

pub use encoder::{SequenceEncoder, Similarity};
pub use fit::{EncoderConfig, TrainedEncoder, train_encoder};
pub use pause::{Pause, TrainerState};
pub use samples::{Asked, ItemText, Sample, next_items};
use std::{io, path::PathBuf};
pub use transformer::{Dropout, Shape, Tokens};

/// Why sequences were not learned or judged.
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

/// Events of one history that are learned from at most, the latest: one program that clicks all day must not outweigh
/// everyone else.
pub const HISTORY_MAX: usize = 10_000;

/// The latest [`HISTORY_MAX`] of a history.
fn latest<T>(history: &[T]) -> &[T] {
    &history[history.len().saturating_sub(HISTORY_MAX)..]
}
