//! Errors of training, evaluation and the gate.
use super::{onnx::ModelError, sequence::SequenceError};
use lodestone_core::ids::ItemId;
use lodestone_dataset::DatasetError;
use lodestone_index::{FrozenError, VectorError};
use lodestone_pipeline::{
    GenerationError, GoldenError,
    answers::AnswerLogError,
    bundle::BundleError,
    features::FeatureError,
    ranking::{RankingError, SentenceError},
};
use std::{io, path::PathBuf};

/// Errors of [`train`](super::train), [`evaluate`](super::evaluate), [`gate`](super::gate) and
/// [`DatasetBuilder`](super::DatasetBuilder).
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    #[error(transparent)]
    Bundle(#[from] BundleError),
    #[error(transparent)]
    Generation(#[from] GenerationError),
    #[error(transparent)]
    Ranking(#[from] RankingError),
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Index(#[from] FrozenError),
    #[error(transparent)]
    Sentence(#[from] SentenceError),
    #[error("{space} vector of item {item}: {source}")]
    Vector { space: &'static str, item: ItemId, source: VectorError },
    #[error(transparent)]
    Sequence(#[from] SequenceError),
    #[error("{0}")]
    TooLittle(String),
    #[error(transparent)]
    Feature(#[from] FeatureError),
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Golden(#[from] GoldenError),
    #[error(transparent)]
    AnswerLog(#[from] AnswerLogError),
    #[error(
        "{directory}: none of the {answer_count} answers shows an item of the catalogue, which has {item_count}; it is the \
         answer log of another shop"
    )]
    OtherCatalogue { directory: PathBuf, answer_count: usize, item_count: usize },
    #[error(
        "{data}: none of the {item_count} items of the events is in the catalogue of bundle {bundle}; they are of another \
         shop"
    )]
    OtherItems { data: PathBuf, bundle: String, item_count: usize },
    #[error("bundle {candidate} has no item of bundle {current}, which is of another shop")]
    OtherBundle { candidate: String, current: String },
    #[error("the training was stopped")]
    Stopped,
}

impl TrainError {
    pub(crate) fn is_stop(&self) -> bool {
        matches!(self, Self::Stopped | Self::Model(ModelError::Sequence(SequenceError::Stopped) | ModelError::Stopped))
    }
}
