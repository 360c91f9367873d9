//! A sentence encoder that a shop brings: `model.onnx` with `tokenizer.json` beside it, as Hugging Face models have them.
use super::onnx::{RankingError, Runtime, SentenceModel};
use std::{
    path::{Path, PathBuf},
    sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
};
use tokenizers::{Tokenizer, TruncationParams};

/// Tokens of a text that are read; the rest of a longer one is cut.
const TOKENS_MAX: usize = 128;
/// Texts of one run of the model.
const BATCH: usize = 16;

/// Why a sentence encoder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SentenceError {
    #[error("{path}: {source}; an encoder is a directory with model.onnx and tokenizer.json")]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{path}: {message}")]
    Tokenizer { path: PathBuf, message: String },
    #[error(transparent)]
    Model(#[from] RankingError),
}

/// From texts to vectors of length 1: the mean of the tokens' vectors, or the model's own sentence vector.
pub struct SentenceEncoder {
    tokenizer: Tokenizer,
    /// One for each thread.
    models: Vec<SentenceModel>,
}

impl SentenceEncoder {
    /// Opens `directory/model.onnx` once for each thread, and `directory/tokenizer.json`.
    pub fn open(runtime: &Runtime, directory: &Path, threads: usize) -> Result<Self, SentenceError> {
        let path = directory.join("model.onnx");
        let bytes = std::fs::read(&path).map_err(|source| SentenceError::Io { path, source })?;
        let path = directory.join("tokenizer.json");
        let text = std::fs::read(&path).map_err(|source| SentenceError::Io { path: path.clone(), source })?;
        let refuse = |message: String| SentenceError::Tokenizer { path: path.clone(), message };
        let mut tokenizer = Tokenizer::from_bytes(text).map_err(|error| refuse(error.to_string()))?;
        let truncation = TruncationParams { max_length: TOKENS_MAX, ..Default::default() };
        tokenizer.with_truncation(Some(truncation)).map_err(|error| refuse(error.to_string()))?;
        tokenizer.with_padding(None);
        let models = (0..threads.max(1)).map(|_| SentenceModel::open(runtime, &bytes)).collect::<Result<_, _>>()?;
        Ok(Self { tokenizer, models })
    }

    /// Numbers of a vector.
    pub fn dimension(&self) -> usize {
        self.models[0].dimension()
    }

    /// Vectors `[texts × dimension]`, each of length 1, or 0 where the model says nothing of a text. `progress` gets the
    /// number of texts that are done.
    pub fn encode(&mut self, texts: &[String], progress: &mut dyn FnMut(usize)) -> Result<Vec<f32>, SentenceError> {
        let tokens = texts.iter().map(|text| self.tokens(text)).collect::<Result<Vec<_>, _>>()?;
        // Texts of about the same length share a batch, so that little is padded.
        let mut order: Vec<usize> = (0..texts.len()).collect();
        order.sort_by_key(|at| tokens[*at].len());
        let batches: Vec<&[usize]> = order.chunks(BATCH).collect();
        let dimension = self.dimension();
        let mut out = vec![0.0; texts.len() * dimension];
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

    fn tokens(&self, text: &str) -> Result<Vec<i64>, SentenceError> {
        let failed =
            |error: tokenizers::Error| RankingError::Run { model: "sentence_encoder", message: error.to_string() };
        let encoding = self.tokenizer.encode(text, true).map_err(failed)?;
        Ok(encoding.get_ids().iter().map(|id| i64::from(*id)).collect())
    }
}
