//! Training that begins with the encoders of an earlier bundle instead of random weights.
use super::{
    onnx::ModelError,
    sequence::{ItemText, TrainerState},
    user_encoder::TrainedUserEncoder,
};
use ahash::AHashMap;
use lodestone_catalog::{Item, VECTOR_DIM};
use lodestone_core::{
    ids::{ItemId, Row},
    units::UnixMillis,
};
use lodestone_pipeline::bundle::{Bundle, BundleError};
use prost::Message;
use std::path::Path;

/// Weights of another version are not read.
const VERSION: u32 = 1;

/// `user_encoder.weights` of a bundle: what its other files do not tell of the user encoder as it was trained. Numbers are
/// little-endian f32.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct EncoderWeights {
    #[prost(uint32, tag = "1")]
    version: u32,
    /// It learned from no event at or after this.
    #[prost(int64, tag = "2")]
    learned_until_ms: i64,
    /// In the order of `SequenceEncoder::flat_weights`.
    #[prost(bytes = "vec", tag = "3")]
    weights: Vec<u8>,
    /// Lengths of the items' vectors, of which the bundle's index has the directions.
    #[prost(bytes = "vec", tag = "4")]
    item_lengths: Vec<u8>,
}

impl EncoderWeights {
    pub(super) fn of(trained: &TrainedUserEncoder, learned_until: UnixMillis) -> Self {
        Self {
            version: VERSION,
            learned_until_ms: learned_until.0,
            weights: bytemuck::cast_slice(&trained.weights).to_vec(),
            item_lengths: bytemuck::cast_slice(&trained.item_lengths).to_vec(),
        }
    }
}

/// What the encoders' training began with.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Start {
    RandomWeights,
    /// The weights of this bundle, which has vectors of so many of the items.
    Bundle {
        name: String,
        known_item_count: usize,
    },
    /// Random weights, although a bundle was given.
    BundleNotUsed {
        reason: String,
    },
}

/// A bundle to begin with.
pub(crate) struct WarmStart {
    bundle: Bundle,
    weights: Vec<f32>,
    item_lengths: Vec<f32>,
    /// Rows in the bundle, by item.
    row_of: AHashMap<ItemId, u32>,
}

impl WarmStart {
    /// Reads a bundle. The second is why it cannot be begun with. It can where it was learned with the same query encoder (`sentence`,
    /// or none: one that is learned on titles), and from nothing that the training is to be stopped by, which begins at
    /// `validated_from`.
    pub(crate) fn open(
        directory: &Path,
        sentence: Option<&[u8]>,
        validated_from: UnixMillis,
    ) -> Result<Result<Self, String>, BundleError> {
        let bundle = match Bundle::open(directory) {
            Ok(bundle) => bundle,
            // The place is wrong; with any other error the bundle is.
            Err(error @ (BundleError::Io { .. } | BundleError::Missing { .. })) => return Err(error),
            Err(error) => return Ok(Err(error.to_string())),
        };
        Ok(Self::of(bundle, sentence, validated_from))
    }

    fn of(bundle: Bundle, sentence: Option<&[u8]>, validated_from: UnixMillis) -> Result<Self, String> {
        let name = &bundle.manifest.name;
        let Some(bytes) = &bundle.encoder_weights else {
            return Err(format!("bundle {name} has no user_encoder.weights: another program trained its user encoder"));
        };
        let kept = EncoderWeights::decode(bytes.as_slice()).ok().filter(|kept| kept.version == VERSION);
        let kept = kept.ok_or_else(|| format!("user_encoder.weights of bundle {name} is of another version"))?;
        let is_same = match sentence {
            Some(model) => bundle.query_encoder == model,
            None => bundle.tokenizer.is_none(),
        };
        if !is_same {
            return Err(format!("bundle {name} has another query encoder"));
        }
        if kept.learned_until_ms > validated_from.0 {
            return Err(format!("bundle {name} learned from events by which this training is to be stopped"));
        }
        let numbers =
            |bytes: &[u8]| bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        let (weights, item_lengths): (Vec<f32>, Vec<f32>) = (numbers(&kept.weights), numbers(&kept.item_lengths));
        if item_lengths.len() != bundle.items.len() || weights.iter().chain(&item_lengths).any(|x| !x.is_finite()) {
            return Err(format!("user_encoder.weights of bundle {name} is not of its items"));
        }
        let row_of = bundle.items.iter().enumerate().map(|(row, item)| (item.id.clone(), row as u32)).collect();
        Ok(Self { bundle, weights, item_lengths, row_of })
    }

    pub(crate) fn start(&self, items: &[Item]) -> Start {
        let known_item_count = items.iter().filter(|item| self.row_of.contains_key(&item.id)).count();
        Start::Bundle { name: self.bundle.manifest.name.clone(), known_item_count }
    }

    /// The query encoder; none: it is not one that is learned.
    pub(crate) fn query_encoder(&self) -> Option<&[u8]> {
        self.bundle.tokenizer.is_none().then_some(self.bundle.query_encoder.as_slice())
    }

    /// The user encoder before its first step: items that the bundle has get its vectors, the others their text's.
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
        debug_assert!(vectors.iter().flatten().all(|vector| vector.len() == VECTOR_DIM));
        let projection = &self.bundle.text_projection;
        Ok(TrainerState::beginning(&self.weights, &vectors, text, projection, sample_count, seed)?)
    }
}
