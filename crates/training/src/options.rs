//! Options of a training.
use super::answers::AnswerSource;
use lodestone_core::units::UnixMillis;
use lodestone_pipeline::{features::FeatureSchema, ranking::EncoderSource};
use std::{
    fmt,
    ops::Range,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

/// Size of the user encoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EncoderSettings {
    /// Dimensions of the user space, in which users and items are compared.
    pub width: usize,
    /// Transformer blocks, at least 1.
    pub blocks: usize,
    /// Maximum number of events that the encoder reads: the latest ones of a user, at most 200, as many as a server
    /// keeps of a user.
    pub events: usize,
}

impl Default for EncoderSettings {
    fn default() -> Self {
        Self { width: 64, blocks: 2, events: 50 }
    }
}

impl fmt::Display for EncoderSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { width, blocks, events } = self;
        write!(f, "width {width}, {blocks} block{}, {events} events", if *blocks == 1 { "" } else { "s" })
    }
}

/// Options of [`train`](super::train).
#[derive(Debug, Clone)]
pub struct TrainOptions {
    pub seed: u64,
    /// Share of the interactions, by time, that the encoders and counts learn from. The ranking model's labels begin
    /// after it.
    pub encoder_share: f64,
    /// Share of the interactions, by time, at which the training data end. Later events are for `evaluate`.
    pub trained_share: f64,
    /// Times that replace both shares.
    pub times: Option<TrainTimes>,
    pub outcome: Outcome,
    /// Whether the ranking model learns from searches for the title of the next item, too.
    pub with_queries: bool,
    /// Most ranking lists before interactions. There are at most three times as many of snapshots.
    pub lists_max: usize,
    /// Size of the user encoder.
    pub encoder: EncoderSettings,
    /// A sentence encoder. If none, a query encoder is trained on the titles.
    pub query_encoder: Option<EncoderSource>,
    /// A bundle whose encoders are the initial weights, if they can be used.
    pub warm_start: Option<PathBuf>,
    /// The built-in features and those that the shop declares.
    pub features: FeatureSchema,
    /// Attributes whose texts the lexical search of the bundle finds.
    pub searchable_attributes: Vec<String>,
    /// An answer log from which the ranking model learns too.
    pub answers: Option<AnswerSource>,
    pub name: String,
    pub now: UnixMillis,
    /// When it becomes true, the training writes a checkpoint and fails with
    /// [`TrainError::Stopped`](super::TrainError::Stopped).
    pub stop: Arc<AtomicBool>,
}

/// The times of a protocol that prescribes which events are known, such as leave-one-out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrainTimes {
    /// The encoder stops by the interactions within these times and learns from earlier ones.
    pub validation: Range<UnixMillis>,
    /// Labels of the ranking model. The training data end with them.
    pub labels: Range<UnixMillis>,
    /// End of the events in the final counts and in the popularity.
    pub counted_until: UnixMillis,
}

/// The interactions after a moment that are its positive labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Outcome {
    /// All within a day.
    #[default]
    Day,
    /// The next one, within a day.
    NextEvent,
}

impl TrainOptions {
    pub fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Returns the settings that affect the trained models, for a checkpoint's fingerprint.
    pub(crate) fn settings(&self) -> String {
        let Self { seed, encoder_share, trained_share, times, encoder, .. } = self;
        format!("{seed} {encoder_share} {trained_share} {times:?} {encoder:?}")
    }
}

impl Default for TrainOptions {
    fn default() -> Self {
        Self {
            seed: 1,
            encoder_share: 0.75,
            trained_share: 0.9,
            times: None,
            outcome: Outcome::Day,
            with_queries: true,
            lists_max: 3000,
            encoder: EncoderSettings::default(),
            query_encoder: None,
            warm_start: None,
            features: FeatureSchema::default(),
            searchable_attributes: Vec::new(),
            answers: None,
            name: "bundle".to_owned(),
            now: UnixMillis(0),
            stop: Arc::default(),
        }
    }
}
