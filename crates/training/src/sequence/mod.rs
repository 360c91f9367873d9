//! The transformer that predicts the next items of a history.
pub mod encoder;
mod encoder_config;
pub mod fit;
mod interruption;
mod samples;
mod trainer;
mod training_history;
pub(super) mod transformer;

pub use encoder::{SequenceEncoder, Similarity};
pub use encoder_config::EncoderConfig;
pub use fit::{TrainedEncoder, train_encoder};
pub use interruption::{Interruption, TrainerState};
pub use samples::{EventTargets, ItemText, Sample, next_items};
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
