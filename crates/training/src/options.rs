//! Options of a training.
use super::answers::AnswerSource;
use lodestone_core::units::UnixMillis;
use lodestone_pipeline::{features::FeatureSchema, ranking::EncoderSource};
use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

/// Options of [`train`](super::train).
#[derive(Debug, Clone)]
pub struct TrainOptions {
    pub seed: u64,
    /// Share of the interactions, by time, that the encoders and counts learn from. The ranking model's labels begin
    /// after it.
    pub encoder_share: f64,
    /// Share of the interactions, by time, at which the training data end. Later events are for `evaluate`.
    pub trained_share: f64,
    /// Most ranking lists before interactions. There are at most three times as many of snapshots.
    pub lists_max: usize,
    /// A sentence encoder. If none, a query encoder is trained on the titles.
    pub query_encoder: Option<EncoderSource>,
    /// A bundle whose encoders are the initial weights, if they can be used.
    pub warm_start: Option<PathBuf>,
    /// The built-in features and those that the shop declares.
    pub features: FeatureSchema,
    /// An answer log from which the ranking model learns too.
    pub answers: Option<AnswerSource>,
    pub name: String,
    pub now: UnixMillis,
    /// When it becomes true, the training writes a checkpoint and fails with
    /// [`TrainError::Stopped`](super::TrainError::Stopped).
    pub stop: Arc<AtomicBool>,
}

impl TrainOptions {
    pub fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Returns the settings that affect the trained models, for a checkpoint's fingerprint.
    pub(crate) fn settings(&self) -> String {
        format!("{} {} {}", self.seed, self.encoder_share, self.trained_share)
    }
}

impl Default for TrainOptions {
    fn default() -> Self {
        Self {
            seed: 1,
            encoder_share: 0.75,
            trained_share: 0.9,
            lists_max: 3000,
            query_encoder: None,
            warm_start: None,
            features: FeatureSchema::default(),
            answers: None,
            name: "bundle".to_owned(),
            now: UnixMillis(0),
            stop: Arc::default(),
        }
    }
}
