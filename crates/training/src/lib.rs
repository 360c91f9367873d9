//! Training of bundles from a shop's events, and their evaluation. Training replays the events through the same state,
//! retrieval and features as serving, so that features never use later events.
#![deny(unsafe_code)]
mod adam;
mod answers;
mod baselines;
pub mod benchmark;
mod checkpoint;
mod comparison;
mod counts;
mod dataset_builder;
mod declared_features;
mod error;
mod evaluate;
mod external_models;
mod gate;
mod item_to_item;
#[allow(unsafe_code)]
mod kernels;
mod layers;
mod linear;
mod lists;
mod losses;
mod onnx;
mod optional_sources;
mod options;
mod query_encoder;
mod query_side;
mod ranker;
mod relevance;
mod replay;
mod report;
mod request_tasks;
mod retrieval;
mod search_benchmark;
pub mod sequence;
mod similar_texts;
pub mod simulation;
mod softmax;
mod train;
mod user_encoder;
mod warm_start;

pub use answers::{AnswerSource, AnswersReport, LeftOut, MissingEvidence, PositionBias};
pub use baselines::StateUntil;
pub use checkpoint::{CheckpointUse, path_for as checkpoint_path};
pub use comparison::{BaselineScore, Comparison, GroupScore, Task};
pub use dataset_builder::{DatasetBuilder, DatasetSummary};
pub use declared_features::{FeatureReport, LeakCheck};
pub use error::TrainError;
pub use evaluate::{EvaluateOptions, Evaluation, UnknownTargets, evaluate};
pub use external_models::{ExternalModelError, ExternalModels, ExternalUserEncoder, bundle_external_models};
pub use gate::{BaselineVerdict, GateOptions, Verdict, gate};
pub use onnx::ExportCheck;
pub use options::{EncoderSettings, Outcome, TrainOptions, TrainTimes};
pub use relevance::RelevanceCut;
pub use report::report;
pub use search_benchmark::{
    SearchBenchmarkError, SearchBenchmarkOptions, SearchQuality, SearchReport, search_benchmark,
};
pub use train::{LoyaltyHorizonReport, LoyaltyReport, TrainReport, train};
pub use warm_start::WarmStart;

/// A step of a long operation, for a progress bar.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    pub stage: &'static str,
    pub done: usize,
    pub total: usize,
    /// NaN if the stage has no loss.
    pub loss: f32,
}
