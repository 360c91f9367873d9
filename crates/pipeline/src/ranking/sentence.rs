//! External sentence encoders: a directory in the layout of Hugging Face and sentence-transformers.
use super::{
    external_data::{ModelFileError, read_model},
    known_answer::KnownAnswer,
    onnx::{Device, RankingError, Runtime, SentenceModel, SentenceSession, padded_length},
    sentence_config::{DeclaredConfig, EncoderSource, Pooling, SentenceConfig, SentenceError},
    tokenizer::TextTokenizer,
};
use std::{
    fs,
    path::Path,
    sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
};

/// Number of texts in one run of the model.
const BATCH: usize = 16;
/// Most tokens of the text that checks the maximum length, because the memory of a run is quadratic in it.
const CHECKED_TOKENS_MAX: usize = 2048;
/// A query with its vector by another program, which may be in a model directory.
const KNOWN_ANSWER: &str = "known_answer.json";

/// Whether a text is a query or a passage, which models read with different prefixes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TextRole {
    Query,
    /// The text of an item.
    Passage,
}

/// A sentence encoder as it is stored in a bundle.
#[derive(Debug, Clone)]
pub struct SentenceFiles {
    /// ONNX.
    pub model: Vec<u8>,
    /// `tokenizer.json`.
    pub tokenizer: Vec<u8>,
    pub config: SentenceConfig,
}

impl SentenceFiles {
    /// Reads a model directory and completes its properties with those of the source. If the directory has a
    /// `known_answer.json`, checks that the encoder returns its vector.
    pub fn read(runtime: &Runtime, source: &EncoderSource) -> Result<Self, SentenceError> {
        let directory = &source.directory;
        let path = Some(directory.join("onnx/model.onnx")).filter(|path| path.is_file());
        let path = path.unwrap_or_else(|| directory.join("model.onnx"));
        let model = read_model(&path).map_err(|error| match error {
            ModelFileError::Io { path, source } => SentenceError::Io { path, source },
            other => SentenceError::File(other),
        })?;
        let tokenizer = read(&directory.join("tokenizer.json"))?;
        let failed = |source| SentenceError::Model { path: path.clone(), source };
        TextTokenizer::check(&tokenizer).map_err(failed)?;
        let session = SentenceSession::open(runtime, &model, Device::Cpu).map_err(failed)?;
        let declared = DeclaredConfig::read(source)?;
        let outputs = session.outputs();
        let output = declared.select_output(directory, &outputs)?;
        let mut selected = session.select(&output.name).map_err(failed)?;
        let config = declared.complete(directory, output, selected.width())?;
        check_length(&mut selected, config.tokens_max).map_err(failed)?;
        let files = Self { model, tokenizer, config };
        files.check_known_answer(runtime, directory)?;
        Ok(files)
    }

    fn check_known_answer(&self, runtime: &Runtime, directory: &Path) -> Result<(), SentenceError> {
        let path = directory.join(KNOWN_ANSWER);
        if !path.is_file() {
            return Ok(());
        }
        let failed = |source| SentenceError::Model { path: path.clone(), source };
        let known: KnownAnswer = serde_json::from_slice(&read(&path)?)
            .map_err(|error| SentenceError::Config { path: path.clone(), problem: error.to_string() })?;
        let mut encoder = SentenceEncoder::open(runtime, self, Device::Cpu, 1).map_err(failed)?;
        let found = encoder.encode(&[known.query.as_str()], TextRole::Query, &mut |_| {}).map_err(failed)?;
        known.check(&found).map_err(failed)
    }
}

/// Runs the model on a text of the maximum length. A model has as many positions as its training, and would otherwise
/// fail for the first long text.
fn check_length(model: &mut SentenceModel, tokens_max: usize) -> Result<(), RankingError> {
    let text = vec![0; tokens_max.min(CHECKED_TOKENS_MAX)];
    match model.encode(&[&text]) {
        Ok(_) => Ok(()),
        Err(error) => {
            let problem = format!("a text of {} tokens fails ({error}); lower --encoder-tokens-max", text.len());
            Err(RankingError::Contract { model: "sentence_encoder", problem })
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>, SentenceError> {
    fs::read(path).map_err(|source| SentenceError::Io { path: path.to_owned(), source })
}

/// Maps texts to vectors of length 1.
pub struct SentenceEncoder {
    tokenizer: TextTokenizer,
    config: SentenceConfig,
    /// One model for each thread.
    models: Vec<SentenceModel>,
}

impl SentenceEncoder {
    /// Opens one model for each thread and checks its inputs and outputs.
    pub fn open(
        runtime: &Runtime,
        files: &SentenceFiles,
        device: Device,
        threads: usize,
    ) -> Result<Self, RankingError> {
        Self::from_bytes(runtime, &files.model, &files.tokenizer, &files.config, device, threads)
    }

    /// Like [`Self::open`], from the parts of a bundle.
    pub(super) fn from_bytes(
        runtime: &Runtime,
        model: &[u8],
        tokenizer: &[u8],
        config: &SentenceConfig,
        device: Device,
        threads: usize,
    ) -> Result<Self, RankingError> {
        let tokenizer = TextTokenizer::from_bytes(tokenizer, config)?;
        let open = |_| SentenceSession::open(runtime, model, device)?.select(&config.output);
        let models = (0..threads.max(1)).map(open).collect::<Result<Vec<_>, _>>()?;
        let (width, has_tokens) = (models[0].width(), models[0].has_tokens());
        if config.dimensions > width || has_tokens == (config.pooling == Pooling::Model) {
            let problem = format!(
                "output `{}` has {width} dimensions for each {}; the bundle's configuration is {config:?}",
                config.output,
                if has_tokens { "token" } else { "text" }
            );
            return Err(RankingError::Contract { model: "sentence_encoder", problem });
        }
        Ok(Self { tokenizer, config: config.clone(), models })
    }

    /// Returns the number of dimensions of a vector.
    pub fn dimension(&self) -> usize {
        self.config.dimensions
    }

    /// Encodes texts as vectors `[texts × dimension]` of length 1, or 0 if the model's output for a text is 0. Calls
    /// `progress` with the number of encoded texts.
    pub fn encode(
        &mut self,
        texts: &[&str],
        role: TextRole,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Vec<f32>, RankingError> {
        let prefix = match role {
            TextRole::Query => &self.config.query_prefix,
            TextRole::Passage => &self.config.passage_prefix,
        };
        let tokens = texts.iter().map(|text| self.tokenizer.tokens(prefix, text)).collect::<Result<Vec<_>, _>>()?;
        // Sorted by length, so that the texts of a batch need little padding.
        let mut order: Vec<usize> = (0..texts.len()).collect();
        order.sort_by_key(|at| tokens[*at].len());
        let batches: Vec<&[usize]> = order.chunks(BATCH).collect();
        let dimension = self.dimension();
        let mut out = vec![0.0; texts.len() * dimension];
        let config = &self.config;
        let encode = |model: &mut SentenceModel, batch: &[usize]| {
            let ids: Vec<&[i64]> = batch.iter().map(|at| &tokens[*at][..]).collect();
            Ok(text_vectors(&model.encode(&ids)?, &ids, model.width(), config))
        };
        let (mut count, mut store) = (0, |batch: &[usize], vectors: Vec<f32>| {
            for (at, vector) in batch.iter().zip(vectors.chunks_exact(dimension)) {
                out[at * dimension..(at + 1) * dimension].copy_from_slice(vector);
            }
        });
        if let [model] = &mut self.models[..] {
            for batch in batches {
                store(batch, encode(model, batch)?);
                count += batch.len();
                progress(count);
            }
            return Ok(out);
        }
        let next = AtomicUsize::new(0);
        let (next, batches, encode) = (&next, &batches, &encode);
        thread::scope(|scope| {
            let (sender, done) = mpsc::channel::<(&[usize], Result<Vec<f32>, RankingError>)>();
            for model in &mut self.models {
                let sender = sender.clone();
                scope.spawn(move || {
                    while let Some(batch) = batches.get(next.fetch_add(1, Ordering::Relaxed)) {
                        if sender.send((*batch, encode(model, batch))).is_err() {
                            return;
                        }
                    }
                });
            }
            drop(sender);
            for (batch, vectors) in done {
                store(batch, vectors?);
                count += batch.len();
                progress(count);
            }
            Ok::<(), RankingError>(())
        })?;
        Ok(out)
    }
}

/// Computes vectors `[texts × config.dimensions]` of length 1 from a model's output: pools token vectors, keeps the
/// first dimensions and normalises.
fn text_vectors(output: &[f32], texts: &[&[i64]], width: usize, config: &SentenceConfig) -> Vec<f32> {
    let mut vectors = Vec::with_capacity(texts.len() * config.dimensions);
    let rows = if config.pooling == Pooling::Model { 1 } else { padded_length(texts) };
    for (text, output) in texts.iter().zip(output.chunks_exact(rows * width)) {
        let mut vector = pooled(output, text.len(), width, config.pooling);
        vector.truncate(config.dimensions);
        let norm = vector.iter().map(|x| x * x).sum::<f32>().sqrt().max(1e-12);
        vectors.extend(vector.iter().map(|x| x / norm));
    }
    vectors
}

/// Pools the vectors of a text's `count` tokens. A mean is a sum, because the caller normalises; that of no tokens is
/// 0.
fn pooled(output: &[f32], count: usize, width: usize, pooling: Pooling) -> Vec<f32> {
    let tokens = &output[..output.len().min(count * width)];
    let token = |at: usize| tokens.chunks_exact(width).nth(at).map_or_else(|| vec![0.0; width], <[f32]>::to_vec);
    match pooling {
        Pooling::Model => output.to_vec(),
        Pooling::Cls => token(0),
        Pooling::LastToken => token(count.saturating_sub(1)),
        Pooling::Mean => {
            let mut sum = vec![0.0f32; width];
            for token in tokens.chunks_exact(width) {
                sum.iter_mut().zip(token).for_each(|(sum, x)| *sum += x);
            }
            sum
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::known_answer::cosine, *};

    fn config(pooling: Pooling, dimensions: usize) -> SentenceConfig {
        SentenceConfig {
            output: "out".to_owned(),
            pooling,
            query_prefix: String::new(),
            passage_prefix: String::new(),
            tokens_max: 16,
            lower_case: false,
            dimensions,
        }
    }

    #[test]
    fn each_pooling_reads_its_tokens_and_no_padding() {
        // Two texts of two and one tokens; 9.0 is padding.
        let output = [3.0, 4.0, 0.0, 1.0, 0.0, 0.0, 0.0, -2.0, 0.0, 9.0, 9.0, 9.0];
        let texts: [&[i64]; 2] = [&[5, 6], &[7]];
        let vectors = |pooling, dimensions| text_vectors(&output, &texts, 3, &config(pooling, dimensions));
        assert_eq!(vectors(Pooling::Cls, 3), [0.6, 0.8, 0.0, 0.0, -1.0, 0.0]);
        assert_eq!(vectors(Pooling::LastToken, 2), [1.0, 0.0, 0.0, -1.0]);
        let mean = vectors(Pooling::Mean, 2);
        assert!((cosine(&mean[..2], &[4.0, 4.0]) - 1.0).abs() < 1e-6 && mean[2..] == [0.0, -1.0], "{mean:?}");
        assert_eq!(text_vectors(&[3.0, 4.0, 12.0], &[&[1]], 3, &config(Pooling::Model, 2)), [0.6, 0.8]);
        assert_eq!(text_vectors(&[1.0, 2.0, 3.0], &[&[]], 3, &config(Pooling::Mean, 3)), [0.0; 3]);
    }
}
