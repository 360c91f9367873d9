//! Hyperparameters of the sequence encoder, and defaults that follow from the size of the data.
use super::{
    encoder::Similarity,
    transformer::{Dropout, Shape},
};

/// How the sequence encoder is trained.
#[derive(Debug, Clone, PartialEq)]
pub struct EncoderConfig {
    pub shape: Shape,
    pub dropout: Dropout,
    pub similarity: Similarity,
    pub learning_rate: f32,
    /// Decoupled weight decay of the item table, in units of the learning rate; other weights do not decay.
    pub weight_decay: f32,
    /// Share of the items whose residual vector is dropped in a step, so that their text alone represents them, as for
    /// new items.
    pub residual_dropout: f32,
    /// Samples in a step.
    pub batch: usize,
    pub epochs_max: usize,
    /// Epochs without a better validation score before training stops.
    pub patience: usize,
    /// Random items in the softmax of a step, in addition to those of the batch; `None`: all items.
    pub negatives: Option<usize>,
    /// Shards of a batch, one for each thread. The same seed and number of threads reproduce the model.
    pub threads: usize,
    pub seed: u64,
}

impl EncoderConfig {
    /// Returns settings for these sequences. Many events need fewer epochs, and a large catalogue a sampled softmax.
    pub fn for_data(sequences: &[&[u32]], item_count: usize, threads: usize, seed: u64) -> Self {
        let targets: usize = sequences.iter().map(|sequence| sequence.len().saturating_sub(1)).sum();
        let lengths: Vec<usize> = sequences.iter().map(|sequence| sequence.len()).collect();
        Self::for_sizes(lengths, targets, item_count, threads, seed)
    }

    /// Returns settings for samples of these lengths with `targets` predictions in total.
    pub fn for_sizes(mut lengths: Vec<usize>, targets: usize, item_count: usize, threads: usize, seed: u64) -> Self {
        const WIDTH: usize = 64;
        let count = lengths.len();
        lengths.sort_unstable();
        // Long enough for 99 of 100 histories.
        let usual = lengths.get(lengths.len() * 99 / 100).copied().unwrap_or(2);
        let is_large = targets > LARGE_TARGETS;
        Self {
            shape: Shape { width: WIDTH, heads: 1, blocks: 2, positions: usual.clamp(5, 50), kinds: 0 },
            dropout: Dropout { hidden: 0.4, attention: if is_large { 0.2 } else { 0.4 } },
            similarity: Similarity::Cosine(16.0),
            learning_rate: 1e-3,
            weight_decay: 0.0,
            residual_dropout: 0.0,
            batch: (count / 20).clamp(1, 256),
            epochs_max: if is_large { 15 } else { 60 },
            patience: if is_large { 2 } else { 5 },
            negatives: (targets as f64 * item_count as f64 > FULL_SOFTMAX_CELLS).then_some(NEGATIVES),
            threads,
            seed,
        }
    }
}

/// Targets above which few epochs are enough.
const LARGE_TARGETS: usize = 400_000;
/// Logits of an epoch above which a sample of the items replaces the full softmax.
const FULL_SOFTMAX_CELLS: f64 = 6e9;
/// Random items in each step of a sampled softmax.
const NEGATIVES: usize = 4096;
