//! What a training that was stopped leaves beside the place of its bundle, so that the same command goes on from there.
use super::{query_side::QuerySide, sequence::TrainerState};
use prost::Message;
use sha2::{Digest, Sha256};
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Checkpoints of another version are not read.
const VERSION: u32 = 2;

/// The query side, and where the user encoder's training is.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Checkpoint {
    #[prost(uint32, tag = "1")]
    version: u32,
    /// Of the data and the settings.
    #[prost(bytes = "vec", tag = "2")]
    fingerprint: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    query_model: Vec<u8>,
    #[prost(bytes = "vec", optional, tag = "4")]
    tokenizer: Option<Vec<u8>>,
    /// Little-endian f32.
    #[prost(bytes = "vec", tag = "5")]
    title_vectors: Vec<u8>,
    #[prost(message, optional, tag = "6")]
    pub user_encoder: Option<TrainerState>,
}

/// What was found where a checkpoint may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Found {
    Nothing,
    /// The training goes on from it.
    Resumed,
    /// It is of other data, other settings or another version, or it is damaged: the training begins anew.
    Ignored,
}

/// `OUT.checkpoint`.
pub fn path_for(out: &Path) -> PathBuf {
    let mut name = out.as_os_str().to_owned();
    name.push(".checkpoint");
    name.into()
}

/// Of files, by their content, and of settings. Fails with the file that cannot be read.
pub(crate) fn fingerprint(files: &[PathBuf], settings: &str) -> Result<Vec<u8>, (PathBuf, io::Error)> {
    let mut hash = Sha256::new();
    for path in files {
        let copied = fs::File::open(path).and_then(|mut file| io::copy(&mut file, &mut hash));
        copied.map_err(|error| (path.clone(), error))?;
    }
    hash.update(settings);
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
        }
    }

    pub(crate) fn read(path: &Path, fingerprint: &[u8]) -> (Option<Self>, Found) {
        let Ok(bytes) = fs::read(path) else { return (None, Found::Nothing) };
        let checkpoint = Self::decode(bytes.as_slice()).ok();
        match checkpoint.filter(|found| found.version == VERSION && found.fingerprint == fingerprint) {
            Some(checkpoint) => (Some(checkpoint), Found::Resumed),
            None => (None, Found::Ignored),
        }
    }

    /// Writes beside the place and moves there, so that no half of one is found.
    pub(crate) fn write(&self, path: &Path) -> io::Result<()> {
        let mut partial = path.as_os_str().to_owned();
        partial.push(".partial");
        fs::write(&partial, self.encode_to_vec())?;
        fs::File::open(&partial)?.sync_all()?;
        fs::rename(&partial, path)
    }

    pub(super) fn query_side(&self) -> QuerySide {
        let numbers = self.title_vectors.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        QuerySide {
            model: self.query_model.clone(),
            tokenizer: self.tokenizer.clone(),
            title_vectors: numbers.collect(),
        }
    }
}
