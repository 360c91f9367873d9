//! External sentence encoders: a directory with `model.onnx` and `tokenizer.json` in the format of Hugging Face.
use super::{
    external_data::{ModelFileError, read_model},
    onnx::{Device, RankingError, Runtime, SentenceModel},
};
use std::{
    path::{Path, PathBuf},
    sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
};
use tokenizers::{Tokenizer, TruncationParams};

/// Maximum number of tokens of a text; longer texts are truncated.
const TOKENS_MAX: usize = 128;
/// Number of texts in one run of the model.
const BATCH: usize = 16;

/// The reason why a sentence encoder cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum SentenceError {
    #[error("{path}: {source}; an encoder is a directory with model.onnx and tokenizer.json")]
    Io { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    File(ModelFileError),
    #[error("{path}: {source}")]
    Model { path: PathBuf, source: RankingError },
}

/// Maps texts to vectors of length 1: the mean of the token vectors, or the model's own sentence vector.
pub struct SentenceEncoder {
    tokenizer: Tokenizer,
    /// One model for each thread.
    models: Vec<SentenceModel>,
}

impl SentenceEncoder {
    /// Reads `model.onnx` and `tokenizer.json` from a directory.
    pub fn read(directory: &Path) -> Result<[Vec<u8>; 2], SentenceError> {
        let model = read_model(&directory.join("model.onnx")).map_err(|error| match error {
            ModelFileError::Io { path, source } => SentenceError::Io { path, source },
            other => SentenceError::File(other),
        })?;
        let path = directory.join("tokenizer.json");
        let tokenizer = std::fs::read(&path).map_err(|source| SentenceError::Io { path, source })?;
        Ok([model, tokenizer])
    }

    /// Opens the encoder in a directory, with one model for each thread.
    pub fn open(runtime: &Runtime, directory: &Path, threads: usize) -> Result<Self, SentenceError> {
        let [model, tokenizer] = Self::read(directory)?;
        Self::from_bytes(runtime, &model, &tokenizer, Device::Cpu, threads)
            .map_err(|source| SentenceError::Model { path: directory.to_owned(), source })
    }

    /// Opens one model for each thread and checks its inputs and outputs.
    pub fn from_bytes(
        runtime: &Runtime,
        model: &[u8],
        tokenizer: &[u8],
        device: Device,
        threads: usize,
    ) -> Result<Self, RankingError> {
        let refuse = |error: tokenizers::Error| RankingError::Contract {
            model: "sentence_encoder",
            problem: format!("tokenizer.json: {error}"),
        };
        let mut tokenizer = Tokenizer::from_bytes(tokenizer).map_err(refuse)?;
        let truncation = TruncationParams { max_length: TOKENS_MAX, ..Default::default() };
        tokenizer.with_truncation(Some(truncation)).map_err(refuse)?;
        tokenizer.with_padding(None);
        let models =
            (0..threads.max(1)).map(|_| SentenceModel::open(runtime, model, device)).collect::<Result<_, _>>()?;
        Ok(Self { tokenizer, models })
    }

    /// Returns the number of dimensions of a vector.
    pub fn dimension(&self) -> usize {
        self.models[0].dimension()
    }

    /// Encodes texts as vectors `[texts × dimension]` of length 1, or 0 if the model's output for a text is 0. Calls
    /// `progress` with the number of encoded texts.
    pub fn encode(&mut self, texts: &[&str], progress: &mut dyn FnMut(usize)) -> Result<Vec<f32>, RankingError> {
        let tokens = texts.iter().map(|text| self.tokens(text)).collect::<Result<Vec<_>, _>>()?;
        // Sorted by length, so that the texts of a batch need little padding.
        let mut order: Vec<usize> = (0..texts.len()).collect();
        order.sort_by_key(|at| tokens[*at].len());
        let batches: Vec<&[usize]> = order.chunks(BATCH).collect();
        let dimension = self.dimension();
        let mut out = vec![0.0; texts.len() * dimension];
        if let [model] = &mut self.models[..] {
            let mut count = 0;
            for batch in batches {
                let ids: Vec<&[i64]> = batch.iter().map(|at| &tokens[*at][..]).collect();
                for (at, vector) in batch.iter().zip(model.encode(&ids)?.chunks_exact(dimension)) {
                    out[at * dimension..(at + 1) * dimension].copy_from_slice(vector);
                }
                count += batch.len();
                progress(count);
            }
            return Ok(out);
        }
        let (next, tokens) = (AtomicUsize::new(0), &tokens);
        thread::scope(|scope| {
            let (sender, done) = mpsc::channel();
            for model in &mut self.models {
                let (sender, next, batches) = (sender.clone(), &next, &batches);
                scope.spawn(move || {
                    while let Some(batch) = batches.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let ids: Vec<&[i64]> = batch.iter().map(|at| &tokens[*at][..]).collect();
                        if sender.send((*batch, model.encode(&ids))).is_err() {
                            return;
                        }
                    }
                });
            }
            drop(sender);
            let mut count = 0;
            for (batch, vectors) in done {
                for (at, vector) in batch.iter().zip(vectors?.chunks_exact(dimension)) {
                    out[at * dimension..(at + 1) * dimension].copy_from_slice(vector);
                }
                count += batch.len();
                progress(count);
            }
            Ok(out)
        })
    }

    fn tokens(&self, text: &str) -> Result<Vec<i64>, RankingError> {
        let failed =
            |error: tokenizers::Error| RankingError::Run { model: "sentence_encoder", message: error.to_string() };
        let encoding = self.tokenizer.encode(text, true).map_err(failed)?;
        Ok(encoding.get_ids().iter().map(|id| i64::from(*id)).collect())
    }
}
