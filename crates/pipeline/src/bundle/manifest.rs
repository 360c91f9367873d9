//! The manifest of a bundle, `manifest.json`.
use crate::{features::FeatureSchema, ranking::QueryEncoderKind};
use lodestone_core::format::OtherVersion;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The format of the directory; see `docs/bundle.md`.
    pub format: u32,
    /// The bundle version.
    pub name: String,
    /// The time of the training, in ms since 1970.
    pub created_ms: i64,
    /// The end of the training data, in ms since 1970. Evaluation uses later events.
    pub trained_until_ms: i64,
    /// See [`FeatureSchema::hash`].
    pub feature_schema: String,
    /// The columns of the ranking model's input.
    #[serde(rename = "declared_features")]
    pub features: FeatureSchema,
    /// Maximum number of events that the user encoder reads: the latest ones of a user. The index of the items'
    /// vectors has the encoder's width.
    pub encoder_events: usize,
    /// Attributes whose texts the lexical search finds.
    pub searchable_attributes: Vec<String>,
    pub query_encoder: QueryEncoderKind,
    pub relevance: RelevanceFloor,
    /// The ranking model's heads, in the order of its output.
    pub heads: Vec<Head>,
    /// Metrics of the training, for display.
    pub metrics: BTreeMap<String, f64>,
    /// Each file with its size and checksum.
    pub files: BTreeMap<String, FileSum>,
}

/// The reason why a manifest cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    #[error("the manifest {0}; train again with this version of lodestone")]
    Version(OtherVersion),
    #[error("the manifest cannot be read: {0}")]
    Json(#[from] serde_json::Error),
}

/// The part of a manifest that all versions have.
#[derive(Deserialize)]
struct Format {
    format: u32,
}

/// The minimum similarity of an item that only the vector search finds for a query, learned from queries that match an
/// item of the catalogue and queries that match none.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RelevanceFloor {
    /// Cosine of the vectors of query and item, -1 to 1.
    pub cosine_min: f32,
    /// Share of matching queries among the training's queries with a result above the minimum.
    pub precision: f32,
    /// Share of the training's matching queries whose item is above the minimum.
    pub recall: f32,
}

impl RelevanceFloor {
    /// Keeps every item.
    pub const NONE: Self = Self { cosine_min: -1.0, precision: 0.0, recall: 1.0 };
}

/// One head of the ranking model. Its probability is `sigmoid(scale × logit + offset)`. An item's utility is the sum of
/// weight × probability over the heads.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    pub name: String,
    pub weight: f32,
    pub scale: f32,
    pub offset: f32,
}

/// The size and checksum of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileSum {
    pub bytes: u64,
    pub sha256: String,
}

impl Manifest {
    pub const FORMAT: u32 = 18;

    pub fn new(
        name: String,
        created_ms: i64,
        trained_until_ms: i64,
        encoder_events: usize,
        query_encoder: QueryEncoderKind,
    ) -> Self {
        Self {
            format: Self::FORMAT,
            name,
            created_ms,
            trained_until_ms,
            feature_schema: FeatureSchema::default().hash(),
            features: FeatureSchema::default(),
            encoder_events,
            searchable_attributes: Vec::new(),
            query_encoder,
            relevance: RelevanceFloor::NONE,
            heads: Vec::new(),
            metrics: BTreeMap::new(),
            files: BTreeMap::new(),
        }
    }

    /// Returns the manifest of a bundle with these features.
    pub fn with_features(self, features: FeatureSchema) -> Self {
        Self { feature_schema: features.hash(), features, ..self }
    }

    /// Parses a manifest. Reads the format first, because other versions have other fields.
    pub fn parse(text: &[u8]) -> Result<Self, ManifestError> {
        let Format { format } = serde_json::from_slice(text)?;
        match format == Self::FORMAT {
            true => Ok(serde_json::from_slice(text)?),
            false => Err(ManifestError::Version(OtherVersion { found: format, expected: Self::FORMAT })),
        }
    }

    /// Returns the size of all files.
    pub fn byte_count(&self) -> u64 {
        self.files.values().map(|file| file.bytes).sum()
    }

    /// Records the size and SHA-256 of a file.
    pub fn add_file(&mut self, name: &str, bytes: &[u8]) {
        let sum = FileSum { bytes: bytes.len() as u64, sha256: sha256(bytes) };
        self.files.insert(name.to_owned(), sum);
    }
}

/// SHA-256 in lower-case hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}
