//! Checkpoints of an interrupted training, next to the bundle's path. The same command resumes from them.
use super::{query_side::QuerySide, sequence::TrainerState};
use lodestone_events::storage;
use lodestone_pipeline::ranking::QueryEncoderKind;
use prost::Message;
use sha2::{Digest, Sha256};
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Version of the format. Checkpoints of other versions are ignored.
const VERSION: u32 = 3;

/// The query encoder and the state of the user encoder's training.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Checkpoint {
    #[prost(uint32, tag = "1")]
    version: u32,
    /// SHA-256 of the data and the settings.
    #[prost(bytes = "vec", tag = "2")]
    fingerprint: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    query_model: Vec<u8>,
    #[prost(bytes = "vec", optional, tag = "4")]
    tokenizer: Option<Vec<u8>>,
    /// Little-endian f32, `[items × dimension]`.
    #[prost(bytes = "vec", tag = "5")]
    title_vectors: Vec<u8>,
    #[prost(message, optional, tag = "6")]
    pub user_encoder: Option<TrainerState>,
    /// The kind of the query encoder, as JSON.
    #[prost(string, tag = "7")]
    query_kind: String,
}

/// The use that a training made of its checkpoint file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckpointUse {
    /// There was no checkpoint.
    Nothing,
    /// The training resumed from it.
    Resumed,
    /// The training started again, because the checkpoint is corrupt or of other data or other settings.
    Ignored,
    /// The training started again, because another version of this program wrote the checkpoint.
    OtherVersion { found: u32, expected: u32 },
}

/// Returns `OUT.checkpoint`.
pub fn path_for(out: &Path) -> PathBuf {
    let mut name = out.as_os_str().to_owned();
    name.push(".checkpoint");
    name.into()
}

/// Hashes the content of `files` and the settings. Fails with the path of a file that cannot be read.
pub(crate) fn fingerprint(files: &[PathBuf], settings: &[&[u8]]) -> Result<Vec<u8>, (PathBuf, io::Error)> {
    let mut hash = Sha256::new();
    for path in files {
        let copied = fs::File::open(path).and_then(|mut file| io::copy(&mut file, &mut hash));
        copied.map_err(|error| (path.clone(), error))?;
    }
    for setting in settings {
        hash.update(setting.len().to_le_bytes());
        hash.update(setting);
    }
    Ok(hash.finalize().to_vec())
}

impl Checkpoint {
    pub(super) fn new(fingerprint: &[u8], query: &QuerySide, user_encoder: Option<TrainerState>) -> Self {
        Self {
            version: VERSION,
            fingerprint: fingerprint.to_vec(),
            query_model: query.model.clone(),
            tokenizer: query.tokenizer.clone(),
            title_vectors: bytemuck::cast_slice(&query.title_vectors).to_vec(),
            user_encoder,
            query_kind: serde_json::to_string(&query.kind).expect("texts and numbers serialise to JSON"),
        }
    }

    pub(crate) fn read(path: &Path, fingerprint: &[u8]) -> (Option<Self>, CheckpointUse) {
        let Ok(bytes) = fs::read(path) else { return (None, CheckpointUse::Nothing) };
        match Self::decode(bytes.as_slice()) {
            Ok(read) if read.version != VERSION => {
                (None, CheckpointUse::OtherVersion { found: read.version, expected: VERSION })
            }
            Ok(read) if read.fingerprint == fingerprint => (Some(read), CheckpointUse::Resumed),
            _ => (None, CheckpointUse::Ignored),
        }
    }

    /// Replaces the file atomically, so that a crash leaves no partial checkpoint.
    pub(crate) fn write(&self, path: &Path) -> io::Result<()> {
        storage::replace(path, &self.encode_to_vec())
    }

    /// Returns the query encoder; none if the checkpoint has another program's content.
    pub(super) fn query_side(&self) -> Option<QuerySide> {
        let kind: QueryEncoderKind = serde_json::from_str(&self.query_kind).ok()?;
        let numbers = self.title_vectors.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        Some(QuerySide {
            kind,
            model: self.query_model.clone(),
            tokenizer: self.tokenizer.clone(),
            title_vectors: numbers.collect(),
        })
    }
}
