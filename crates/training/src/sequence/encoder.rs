//! Inference of the sequence encoder. A user's vector is the transformer's output at the latest event; the score of an
//! item is its dot product with the item's vector.
use super::transformer::{Bits, Dropout, NamedWeights, Packed, Shape, Tokens, WeightLayout};
use crate::{
    kernels::{Into, View, at_least, matmul, normalise_rows},
    softmax::{Softmax, Targets},
};
use rayon::prelude::*;

/// How the vectors of a user and an item become a logit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Similarity {
    Dot,
    /// The cosine times this scale (NISER: Gupta et al. 2019, equation 5), because otherwise popular items have longer
    /// vectors.
    Cosine(f32),
}

/// A trained encoder.
#[derive(Debug, Clone)]
pub struct SequenceEncoder {
    pub(super) layout: WeightLayout,
    pub(super) shape: Shape,
    pub(super) similarity: Similarity,
    pub(super) weights: Vec<f32>,
    /// Item vectors `[items × width]`, of length 1 for [`Similarity::Cosine`].
    pub(super) items: Vec<f32>,
    /// Lengths of the item vectors before normalisation; empty for [`Similarity::Dot`].
    pub(super) lengths: Vec<f32>,
    pub(super) text_projection: Vec<f32>,
}

/// Tokens encoded in one batch.
const ENCODED_TOKENS: usize = 4096;

impl SequenceEncoder {
    /// Returns the item vectors `[items × width]`.
    pub fn item_vectors(&self) -> &[f32] {
        &self.items
    }

    /// Returns the projection `[text width × width]`: the vector of an item without a residual vector is its text's
    /// vector times this matrix, normalised to length 1.
    pub fn text_projection(&self) -> &[f32] {
        &self.text_projection
    }

    pub fn weights(&self) -> NamedWeights<'_> {
        self.layout.named(&self.weights)
    }

    /// Returns all weights except the item table and the text projection, in an order that depends on the shape.
    pub fn flat_weights(&self) -> &[f32] {
        &self.weights
    }

    /// Returns the lengths `[items]` of the learned vectors, whose directions are [`Self::item_vectors`]. Empty for
    /// [`Similarity::Dot`].
    pub fn item_lengths(&self) -> &[f32] {
        &self.lengths
    }

    pub fn shape(&self) -> Shape {
        self.shape
    }

    pub fn width(&self) -> usize {
        self.shape.width
    }

    /// Returns the vectors `[histories × width]` of histories with the latest item last; zero for an empty history. The
    /// dot product with an item's vector is the logit.
    pub fn encode(&self, histories: &[Tokens]) -> Vec<f32> {
        let d = self.shape.width;
        let mut out = vec![0.0; histories.len() * d];
        let mut chunks = Vec::new();
        let mut rest = &mut out[..];
        let mut begin = 0;
        while begin < histories.len() {
            let (mut end, mut tokens) = (begin, 0);
            while end < histories.len() && tokens < ENCODED_TOKENS {
                tokens += histories[end].items.len().min(self.shape.positions);
                end += 1;
            }
            let (chunk, after) = rest.split_at_mut((end - begin) * d);
            chunks.push((&histories[begin..end], chunk));
            rest = after;
            begin = end;
        }
        chunks.into_par_iter().for_each(|(histories, out)| self.encode_chunk(histories, out));
        out
    }

    fn encode_chunk(&self, histories: &[Tokens], out: &mut [f32]) {
        let mut batch = Packed::default();
        for history in histories {
            let latest = history.latest(self.shape.positions);
            batch.push(latest.items.iter().copied(), latest, self.shape);
        }
        self.encode_batch(&batch, &self.items, out);
    }

    /// Returns the vector, normalised to length 1, of one history whose items have the vectors `[events × width]`;
    /// `tokens.items` is ignored.
    pub fn encode_direction(&self, vectors: &[f32], tokens: Tokens) -> Vec<f32> {
        let (d, mut batch) = (self.shape.width, Packed::default());
        batch.push(0..(vectors.len() / d) as u32, tokens, self.shape);
        let mut out = vec![0.0; d];
        self.encode_batch(&batch, vectors, &mut out);
        normalise_rows(&mut out, d, &mut [0.0]);
        out
    }

    fn encode_batch(&self, batch: &Packed, items: &[f32], out: &mut [f32]) {
        let d = self.shape.width;
        let trace = self.layout.forward(&self.weights, items, batch, Dropout::NONE, &mut Bits(1));
        for (tokens, out) in batch.sequences().zip(out.chunks_exact_mut(d)) {
            if !tokens.is_empty() {
                out.copy_from_slice(&trace.out()[(tokens.end - 1) * d..tokens.end * d]);
                if let Similarity::Cosine(scale) = self.similarity {
                    let mut inverse = [0.0];
                    normalise_rows(out, d, &mut inverse);
                    out.iter_mut().for_each(|value| *value *= scale);
                }
            }
        }
    }
}

/// Returns the mean of share × -ln p(target) over the targets after histories; the softmax is over all items.
pub fn encoder_loss(encoder: &SequenceEncoder, queries: &[(Tokens, &[(u32, f32)])]) -> f64 {
    let every = queries.len().div_ceil(QUERIES_MAX).max(1);
    let queries: Vec<_> = queries.iter().step_by(every).collect();
    let histories: Vec<Tokens> = queries.iter().map(|(tokens, _)| *tokens).collect();
    let (users, d) = (encoder.encode(&histories), encoder.width());
    let parts: Vec<(f64, f32)> = queries
        .par_chunks(128)
        .zip(users.par_chunks(128 * d))
        .map(|(part, hidden)| {
            let mut targets = Targets::default();
            part.iter().for_each(|(_, items)| targets.push(items.iter().copied()));
            let softmax = Softmax {
                hidden,
                items: &encoder.items,
                width: d,
                scale: 1.0,
                targets: &targets,
                log_q_correction: &[],
            };
            (softmax.loss(), targets.weight())
        })
        .collect();
    let (loss, weight) = parts.iter().fold((0.0, 0.0), |(loss, weight), part| (loss + part.0, weight + part.1));
    loss / f64::from(weight).max(1e-9)
}

/// Most queries of [`encoder_loss`], spread evenly.
const QUERIES_MAX: usize = 20_000;

/// Ranks that [`encoder_quality`] counts.
const QUALITY_CUTOFF: usize = 100;

/// Returns the mean of share / log₂(1 + rank) over the targets after histories, ranked among all items: NDCG@100 for
/// single targets.
pub fn encoder_quality(encoder: &SequenceEncoder, queries: &[(Tokens, &[(u32, f32)])]) -> f64 {
    let every = queries.len().div_ceil(QUERIES_MAX).max(1);
    let queries: Vec<_> = queries.iter().step_by(every).collect();
    let histories: Vec<Tokens> = queries.iter().map(|(tokens, _)| *tokens).collect();
    let (users, d) = (encoder.encode(&histories), encoder.width());
    let item_count = encoder.items.len() / d;
    let gain = |logits: &[f32], (target, share): &(u32, f32)| {
        let rank = at_least(logits, logits[*target as usize]);
        let gain = if rank <= QUALITY_CUTOFF { 1.0 / (rank as f64 + 1.0).log2() } else { 0.0 };
        (f64::from(*share) * gain, f64::from(*share))
    };
    let parts: Vec<(f64, f64)> = queries
        .par_chunks(32)
        .zip(users.par_chunks(32 * d))
        .map_init(Vec::new, |logits: &mut Vec<f32>, (part, users)| {
            logits.resize(part.len() * item_count, 0.0);
            let items = View::new(&encoder.items, item_count, d).transposed();
            matmul(logits, Into::Replace, View::new(users, part.len(), d), items);
            let rows = part.iter().zip(logits.chunks_exact(item_count));
            let gains = rows.flat_map(|((_, targets), logits)| targets.iter().map(|target| gain(logits, target)));
            gains.fold((0.0, 0.0), |sum, of| (sum.0 + of.0, sum.1 + of.1))
        })
        .collect();
    let (gains, shares) = parts.into_iter().fold((0.0, 0.0), |sum, of| (sum.0 + of.0, sum.1 + of.1));
    gains / shares.max(1e-9)
}
