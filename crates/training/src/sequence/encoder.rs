//! The sequence encoder in use. A user is the transformer's output at the latest event; the score of an item is its product
//! with the item's vector.
use super::transformer::{Bits, Dropout, NamedWeights, Packed, Places, Shape, Tokens};
use crate::{
    kernels::{Into, View, at_least, matmul, normalise_rows},
    softmax::{Softmax, Targets},
};
use rayon::prelude::*;

/// How the product of a user and an item becomes a logit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Similarity {
    Dot,
    /// Both of length 1, times this (NISER: Gupta et al. 2019, equation 5). Popular items get no longer vectors.
    Cosine(f32),
}

/// A trained encoder.
#[derive(Debug, Clone)]
pub struct SequenceEncoder {
    pub(super) places: Places,
    pub(super) shape: Shape,
    pub(super) similarity: Similarity,
    pub(super) weights: Vec<f32>,
    /// Item vectors of length as the similarity wants them: `[items × width]`.
    pub(super) items: Vec<f32>,
    /// What their lengths were before the similarity made them 1; empty where it does not.
    pub(super) lengths: Vec<f32>,
    pub(super) text_projection: Vec<f32>,
}

/// Tokens that are encoded at a time.
const ENCODED_TOKENS: usize = 4096;

impl SequenceEncoder {
    /// `[items × width]`.
    pub fn item_vectors(&self) -> &[f32] {
        &self.items
    }

    /// `[text width × width]`: a text's vector times it, made of length 1, is the vector of an item without one of its own.
    pub fn text_projection(&self) -> &[f32] {
        &self.text_projection
    }

    pub fn weights(&self) -> NamedWeights<'_> {
        self.places.named(&self.weights)
    }

    /// All weights but those of items and texts, in an order of the shape's own.
    pub fn flat_weights(&self) -> &[f32] {
        &self.weights
    }

    /// `[items]`: the lengths of the learned vectors, of which [`Self::item_vectors`] are the directions. Empty where the
    /// similarity takes the vectors as they are.
    pub fn item_lengths(&self) -> &[f32] {
        &self.lengths
    }

    pub fn shape(&self) -> Shape {
        self.shape
    }

    pub fn width(&self) -> usize {
        self.shape.width
    }

    /// The vector of each history, latest item last: `[histories × width]`; zero for an empty one. Its product with an
    /// item's vector is the logit.
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
        self.read_out(&batch, &self.items, out);
    }

    /// The vector, made of length 1, of one history whose items have the vectors `[events × width]`; `tokens.items` is not
    /// read.
    pub fn encode_direction(&self, vectors: &[f32], tokens: Tokens) -> Vec<f32> {
        let (d, mut batch) = (self.shape.width, Packed::default());
        batch.push(0..(vectors.len() / d) as u32, tokens, self.shape);
        let mut out = vec![0.0; d];
        self.read_out(&batch, vectors, &mut out);
        normalise_rows(&mut out, d, &mut [0.0]);
        out
    }

    fn read_out(&self, batch: &Packed, items: &[f32], out: &mut [f32]) {
        let d = self.shape.width;
        let trace = self.places.forward(&self.weights, items, batch, Dropout::NONE, &mut Bits(1));
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

/// `out[i]` gains the logits of `user` with every item; see [`SequenceEncoder::encode`].
pub fn logits(out: &mut [f32], users: &[f32], items: &[f32], width: usize) {
    let (rows, columns) = (users.len() / width, items.len() / width);
    matmul(out, Into::Replace, View::new(users, rows, width), View::new(items, columns, width).transposed());
}

/// Mean of share × -ln p(chosen) over what was chosen after some histories; the softmax is over all items.
pub fn encoder_loss(encoder: &SequenceEncoder, asked: &[(Tokens, &[(u32, f32)])]) -> f64 {
    let every = asked.len().div_ceil(ASKED_MAX).max(1);
    let asked: Vec<_> = asked.iter().step_by(every).collect();
    let histories: Vec<Tokens> = asked.iter().map(|(tokens, _)| *tokens).collect();
    let (users, d) = (encoder.encode(&histories), encoder.width());
    let parts: Vec<(f64, f32)> = asked
        .par_chunks(128)
        .zip(users.par_chunks(128 * d))
        .map(|(asked, hidden)| {
            let mut targets = Targets::default();
            asked.iter().for_each(|(_, chosen)| targets.push(chosen.iter().copied()));
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

/// Histories at most that [`encoder_quality`] and [`encoder_loss`] ask.
const ASKED_MAX: usize = 20_000;

/// NDCG@10 of an encoder alone over all items, without those of the history unless they may repeat.
pub fn encoder_quality(encoder: &SequenceEncoder, asked: &[(&[u32], u32)], repeats: bool) -> f64 {
    let every = asked.len().div_ceil(ASKED_MAX).max(1);
    let asked: Vec<(&[u32], u32)> = asked.iter().step_by(every).copied().collect();
    let histories: Vec<Tokens> = asked.iter().map(|(history, _)| Tokens::from(*history)).collect();
    let (users, d) = (encoder.encode(&histories), encoder.width());
    let item_count = encoder.items.len() / d;
    let gains: f64 = asked
        .par_chunks(32)
        .zip(users.par_chunks(32 * d))
        .map_init(Vec::new, |block: &mut Vec<f32>, (asked, users)| {
            block.resize(asked.len() * item_count, 0.0);
            logits(block, users, &encoder.items, d);
            let gains = asked.iter().zip(block.chunks_exact_mut(item_count)).map(|((history, target), logits)| {
                if !repeats {
                    history.iter().for_each(|item| logits[*item as usize] = f32::NEG_INFINITY);
                }
                let limit = logits[*target as usize];
                let rank = at_least(logits, limit);
                if rank <= 10 && limit.is_finite() { 1.0 / (rank as f64 + 1.0).log2() } else { 0.0 }
            });
            gains.sum::<f64>()
        })
        .collect::<Vec<f64>>()
        .into_iter()
        .sum();
    gains / asked.len().max(1) as f64
}
