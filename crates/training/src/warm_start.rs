//! Warm start: training that begins with the encoders of an earlier bundle instead of random weights.
use super::{
    onnx::ModelError,
    options::EncoderSettings,
    sequence::{ItemText, TrainerState},
    user_encoder::TrainedUserEncoder,
};
use ahash::AHashMap;
use lodestone_catalog::Item;
use lodestone_core::{
    format::OtherVersion,
    ids::{ItemId, Row},
    units::UnixMillis,
};
use lodestone_pipeline::{
    bundle::{Bundle, BundleError},
    ranking::{QueryEncoderKind, SentenceFiles},
};
use prost::Message;
use std::path::Path;

/// Version of the format. Weights of other versions are not used.
const VERSION: u32 = 2;

/// `user_encoder.weights` of a bundle: the parts of the trained user encoder that no other file contains. Numbers are
/// little-endian f32.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct EncoderWeights {
    #[prost(uint32, tag = "1")]
    version: u32,
    /// All events of the training data are earlier.
    #[prost(int64, tag = "2")]
    learned_until_ms: i64,
    /// Flat, in the order of `SequenceEncoder::flat_weights`.
    #[prost(bytes = "vec", tag = "3")]
    weights: Vec<u8>,
    /// Lengths of the items' vectors. The bundle's index contains the directions.
    #[prost(bytes = "vec", tag = "4")]
    item_lengths: Vec<u8>,
    /// Transformer blocks. The index has the encoder's width, and the manifest the number of its events.
    #[prost(uint32, tag = "5")]
    blocks: u32,
}

impl EncoderWeights {
    pub(super) fn of(trained: &TrainedUserEncoder, settings: EncoderSettings, learned_until: UnixMillis) -> Self {
        Self {
            version: VERSION,
            learned_until_ms: learned_until.0,
            weights: bytemuck::cast_slice(&trained.weights).to_vec(),
            item_lengths: bytemuck::cast_slice(&trained.item_lengths).to_vec(),
            blocks: settings.blocks as u32,
        }
    }
}

/// Initial weights of the encoders.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum WarmStart {
    RandomWeights,
    /// The weights of this bundle, which has vectors of `known_item_count` of the items.
    Bundle {
        name: String,
        known_item_count: usize,
    },
    /// Random weights, because the bundle cannot be used.
    BundleNotUsed {
        reason: String,
    },
}

/// An earlier bundle whose encoders are the initial weights.
pub(crate) struct EarlierBundle {
    bundle: Bundle,
    weights: Vec<f32>,
    item_lengths: Vec<f32>,
    /// Rows in the bundle by item.
    row_of: AHashMap<ItemId, u32>,
}

impl EarlierBundle {
    /// Opens a bundle. The inner error is the reason why its encoders cannot be used. They can be used if they were
    /// trained with the same settings and the same query encoder (`sentence`, or none for one that is trained on
    /// titles), and without events of this training's validation data, which begin at `validated_from`.
    pub(crate) fn open(
        directory: &Path,
        settings: EncoderSettings,
        sentence: Option<&SentenceFiles>,
        validated_from: UnixMillis,
    ) -> Result<Result<Self, String>, BundleError> {
        let bundle = match Bundle::open(directory) {
            Ok(bundle) => bundle,
            // The path is wrong. With any other error, the bundle is.
            Err(error @ (BundleError::Io { .. } | BundleError::Missing { .. })) => return Err(error),
            Err(error) => return Ok(Err(error.to_string())),
        };
        Ok(Self::of(bundle, settings, sentence, validated_from))
    }

    fn of(
        bundle: Bundle,
        settings: EncoderSettings,
        sentence: Option<&SentenceFiles>,
        validated_from: UnixMillis,
    ) -> Result<Self, String> {
        let name = &bundle.manifest.name;
        if bundle.user_encoder.is_empty() {
            return Err(format!("bundle {name} has no user encoder"));
        }
        let Some(bytes) = &bundle.encoder_weights else {
            return Err(format!(
                "bundle {name} has no user_encoder.weights, because another program trained its user encoder"
            ));
        };
        let encoder = EncoderWeights::decode(bytes.as_slice())
            .map_err(|error| format!("user_encoder.weights of bundle {name} cannot be read: {error}"))?;
        if encoder.version != VERSION {
            let version = OtherVersion { found: encoder.version, expected: VERSION };
            return Err(format!("user_encoder.weights of bundle {name} {version}"));
        }
        let found = EncoderSettings {
            width: bundle.item_vectors.dimensions(),
            blocks: encoder.blocks as usize,
            events: bundle.manifest.encoder_events,
        };
        if found != settings {
            return Err(format!("bundle {name} has a user encoder of {found}; this training's has {settings}"));
        }
        let is_same = match (sentence, &bundle.manifest.query_encoder) {
            (Some(files), QueryEncoderKind::Sentence(config)) => {
                *config == files.config && bundle.query_encoder == files.model
            }
            (None, QueryEncoderKind::HashedTerms { .. }) => true,
            _ => false,
        };
        if !is_same {
            return Err(format!("bundle {name} has another query encoder"));
        }
        if encoder.learned_until_ms > validated_from.0 {
            return Err(format!("bundle {name} was trained on events of this training's validation data"));
        }
        let numbers =
            |bytes: &[u8]| bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        let (weights, item_lengths): (Vec<f32>, Vec<f32>) = (numbers(&encoder.weights), numbers(&encoder.item_lengths));
        if item_lengths.len() != bundle.items.len() || weights.iter().chain(&item_lengths).any(|x| !x.is_finite()) {
            return Err(format!("user_encoder.weights of bundle {name} does not match its items"));
        }
        let row_of = bundle.items.iter().enumerate().map(|(row, item)| (item.id.clone(), row as u32)).collect();
        Ok(Self { bundle, weights, item_lengths, row_of })
    }

    /// Describes this warm start for the report.
    pub(crate) fn warm_start(&self, items: &[Item]) -> WarmStart {
        let known_item_count = items.iter().filter(|item| self.row_of.contains_key(&item.id)).count();
        WarmStart::Bundle { name: self.bundle.manifest.name.clone(), known_item_count }
    }

    /// Returns the query encoder; none if it is an external sentence encoder.
    pub(crate) fn query_encoder(&self) -> Option<&[u8]> {
        let is_trained = matches!(self.bundle.manifest.query_encoder, QueryEncoderKind::HashedTerms { .. });
        is_trained.then_some(self.bundle.query_encoder.as_slice())
    }

    /// Returns the state of the user encoder's training before its first step. New items get vectors from their text.
    pub(crate) fn user_encoder(
        &self,
        items: &[Item],
        text: &ItemText,
        sample_count: usize,
        seed: u64,
    ) -> Result<TrainerState, ModelError> {
        let vector = |item: &Item| {
            let row = *self.row_of.get(&item.id)?;
            let mut vector = self.bundle.item_vectors.vector(Row(row))?;
            vector.iter_mut().for_each(|value| *value *= self.item_lengths[row as usize]);
            Some(vector)
        };
        let vectors: Vec<Option<Vec<f32>>> = items.iter().map(vector).collect();
        let projection = &self.bundle.text_projection;
        Ok(TrainerState::from_encoder(&self.weights, &vectors, text, projection, sample_count, seed)?)
    }
}
