//! Optimisation steps of the sequence encoder. An item's vector is a learned residual vector plus a projection of its
//! text, so that an item without any interaction has a vector too.
use super::{
    encoder::{SequenceEncoder, Similarity},
    encoder_config::EncoderConfig,
    samples::{ItemText, Sample},
    transformer::{Bits, Packed, WeightLayout},
};
use crate::{
    adam::{Adam, Moments},
    kernels::{Into, View, add, matmul, normalise_rows, normalise_rows_backward},
    layers::normal,
    softmax::{Softmax, Targets},
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha12Rng;
use rayon::prelude::*;

const BETAS: (f32, f32) = (0.9, 0.98);
const EPSILON: f32 = 1e-8;
/// Standard deviation of the initial residual vectors and text projection.
pub(super) const INITIAL_DEVIATION: f32 = 0.02;

pub(super) struct Trainer<'a> {
    config: &'a EncoderConfig,
    layout: WeightLayout,
    pub(super) weights: Vec<f32>,
    /// Residual vectors of the items: `[items × width]`.
    pub(super) table: Vec<f32>,
    /// `[text width × width]`; empty without text.
    pub(super) projection: Vec<f32>,
    text: &'a ItemText,
    item_count: usize,
    /// -ln of each item's probability of being in the sampled softmax of a step.
    log_q_correction: Vec<f32>,
    /// Adam's moments of the weights, the table and the projection.
    pub(super) moments: [Moments; 3],
    /// Completed steps.
    pub(super) step: usize,
    pub(super) rng: ChaCha12Rng,
}

/// The samples of a step, with the items of its softmax: all, or those of the batch and the random negatives.
struct Step {
    /// The item of each local row, ascending; empty: all items.
    rows: Vec<u32>,
    shards: Vec<Shard>,
    /// Sum of all shares.
    weight: f32,
    log_q_correction: Vec<f32>,
    /// Rows whose residual vectors are dropped; empty: none.
    dropped: Vec<bool>,
}

#[derive(Default)]
struct Shard {
    batch: Packed,
    /// Tokens with a prediction, one for each of `targets`; empty: all.
    predictions: Vec<u32>,
    targets: Targets,
}

impl<'a> Trainer<'a> {
    pub(super) fn new(samples: &[Sample], item_count: usize, text: &'a ItemText, config: &'a EncoderConfig) -> Self {
        let d = config.shape.width;
        let mut rng = ChaCha12Rng::seed_from_u64(config.seed);
        let layout = WeightLayout::new(config.shape);
        let weights = layout.starting_weights(|| normal(&mut rng));
        let table: Vec<f32> = (0..item_count * d).map(|_| INITIAL_DEVIATION * normal(&mut rng)).collect();
        // Texts of length 1 are projected to vectors about as long as the residual vectors.
        let projection: Vec<f32> = (0..text.width * d).map(|_| INITIAL_DEVIATION * normal(&mut rng)).collect();
        let log_q_correction = match config.negatives {
            Some(negatives) => log_q_correction(samples, item_count, config.batch, negatives),
            None => Vec::new(),
        };
        let moments = [weights.len(), table.len(), projection.len()].map(Moments::new);
        Self { config, layout, weights, table, projection, text, item_count, log_q_correction, moments, step: 0, rng }
    }

    pub(super) fn snapshot(&self) -> SequenceEncoder {
        let (items, inverse) = self.item_vectors(&[], &[]);
        SequenceEncoder {
            layout: self.layout.clone(),
            shape: self.config.shape,
            similarity: self.config.similarity,
            weights: self.weights.clone(),
            items,
            lengths: inverse.into_iter().map(|inverse| 1.0 / inverse).collect(),
            text_projection: self.projection.clone(),
        }
    }

    /// Returns the vectors of `rows` (empty: all), and 1 / their length before normalisation (empty for
    /// [`Similarity::Dot`]). Rows that are `dropped` consist of their projected text alone.
    fn item_vectors(&self, rows: &[u32], dropped: &[bool]) -> (Vec<f32>, Vec<f32>) {
        let d = self.config.shape.width;
        let mut items = if rows.is_empty() { self.table.clone() } else { gather(&self.table, d, rows) };
        clear(&mut items, d, dropped);
        if self.text.width > 0 {
            let gathered = if rows.is_empty() { Vec::new() } else { gather(&self.text.vectors, self.text.width, rows) };
            let texts = if rows.is_empty() { &self.text.vectors } else { &gathered };
            let projection = View::new(&self.projection, self.text.width, d);
            items.par_chunks_mut(d * 2048).zip(texts.par_chunks(self.text.width * 2048)).for_each(|(items, texts)| {
                matmul(items, Into::Add, View::new(texts, items.len() / d, self.text.width), projection);
            });
        }
        let mut inverse = Vec::new();
        if matches!(self.config.similarity, Similarity::Cosine(_)) {
            inverse = vec![0.0; items.len() / d];
            normalise_rows(&mut items, d, &mut inverse);
        }
        (items, inverse)
    }

    /// Performs one step and returns the mean loss of its predictions.
    pub(super) fn step(&mut self, samples: &[Sample]) -> f64 {
        let step = self.lay_out(samples);
        let (items, inverse) = self.item_vectors(&step.rows, &step.dropped);
        let seeds: Vec<u64> = step.shards.iter().map(|_| self.rng.random::<u64>() | 1).collect();
        let parts: Vec<(f64, Vec<f32>, Vec<f32>)> =
            step.shards.par_iter().zip(seeds).map(|(shard, seed)| self.shard(shard, &items, &step, seed)).collect();
        let mut parts = parts.into_iter();
        // Summed in a fixed order, so that the same seed reproduces the model.
        let (mut loss, mut gradient, mut ditems) = parts.next().unwrap_or_default();
        for (part_loss, part_gradient, part_ditems) in parts {
            loss += part_loss;
            add(&mut gradient, &part_gradient);
            add(&mut ditems, &part_ditems);
        }
        if !inverse.is_empty() {
            normalise_rows_backward(&mut ditems, &items, self.config.shape.width, &inverse);
        }
        self.update(&step, &gradient, &mut ditems);
        loss
    }

    /// Splits a batch into shards with about the same number of tokens, and numbers the items of the softmax.
    fn lay_out(&mut self, samples: &[Sample]) -> Step {
        let (mut rows, mut log_q_correction) = (Vec::new(), Vec::new());
        if let Some(negatives) = self.config.negatives {
            rows = samples.iter().flat_map(|sample| sample.tokens().items.iter().copied()).collect();
            rows.extend(samples.iter().flat_map(Sample::targets));
            rows.extend((0..negatives).map(|_| self.rng.random_range(0..self.item_count as u32)));
            rows.sort_unstable();
            rows.dedup();
            log_q_correction = rows.iter().map(|item| self.log_q_correction[*item as usize]).collect();
        }
        let local = |item: u32| if rows.is_empty() { item } else { rows.partition_point(|row| *row < item) as u32 };
        let tokens: usize = samples.iter().map(|sample| sample.tokens().items.len()).sum();
        let share = tokens.div_ceil(self.config.threads.max(1));
        let mut shards = vec![Shard::default()];
        for sample in samples {
            if shards.last().is_some_and(|shard| shard.batch.tokens() >= share) {
                shards.push(Shard::default());
            }
            let Some(shard) = shards.last_mut() else { continue };
            let (tokens, begin) = (sample.tokens(), shard.batch.tokens() as u32);
            shard.batch.push(tokens.items.iter().map(|item| local(*item)), tokens, self.config.shape);
            match sample {
                Sample::Next(items) => {
                    items[1..].iter().for_each(|item| shard.targets.push(std::iter::once((local(*item), 1.0))));
                }
                Sample::Targets { targets, .. } => {
                    for (event, items) in *targets {
                        shard.predictions.push(begin + event);
                        shard.targets.push(items.iter().map(|(item, share)| (local(*item), *share)));
                    }
                }
            }
        }
        let weight = shards.iter().map(|shard| shard.targets.weight()).sum();
        let dropped = match self.config.residual_dropout > 0.0 && self.text.width > 0 {
            true => {
                let count = if rows.is_empty() { self.item_count } else { rows.len() };
                (0..count).map(|_| self.rng.random::<f32>() < self.config.residual_dropout).collect()
            }
            false => Vec::new(),
        };
        Step { rows, shards, weight, log_q_correction, dropped }
    }

    /// Returns the loss of one shard, and the gradients of the weights and of the item vectors.
    fn shard(&self, shard: &Shard, items: &[f32], step: &Step, seed: u64) -> (f64, Vec<f32>, Vec<f32>) {
        let d = self.config.shape.width;
        let Shard { batch, predictions, targets } = shard;
        let trace = self.layout.forward(&self.weights, items, batch, self.config.dropout, &mut Bits(seed));
        let mut hidden =
            if predictions.is_empty() { trace.out().to_vec() } else { gather(trace.out(), d, predictions) };
        let (mut inverse, mut scale) = (Vec::new(), 1.0);
        if let Similarity::Cosine(sharpness) = self.config.similarity {
            inverse = vec![0.0; targets.count()];
            normalise_rows(&mut hidden, d, &mut inverse);
            scale = sharpness;
        }
        let mut dhidden = vec![0.0; hidden.len()];
        let mut ditems = vec![0.0; items.len()];
        let softmax =
            Softmax { hidden: &hidden, items, width: d, scale, targets, log_q_correction: &step.log_q_correction };
        let loss = softmax.loss_and_gradient(&mut dhidden, &mut ditems, 1.0 / step.weight);
        if !inverse.is_empty() {
            normalise_rows_backward(&mut dhidden, &hidden, d, &inverse);
        }
        if !predictions.is_empty() {
            let gathered = std::mem::replace(&mut dhidden, vec![0.0; batch.tokens() * d]);
            for (token, slope) in predictions.iter().zip(gathered.chunks_exact(d)) {
                dhidden[*token as usize * d..][..d].copy_from_slice(slope);
            }
        }
        let mut gradient = vec![0.0; self.weights.len()];
        self.layout.backward(&mut gradient, &mut ditems, &dhidden, &self.weights, batch, &trace);
        (loss, gradient, ditems)
    }

    fn update(&mut self, step: &Step, gradient: &[f32], ditems: &mut [f32]) {
        let (d, rows) = (self.config.shape.width, &step.rows);
        self.step += 1;
        let EncoderConfig { learning_rate, weight_decay, .. } = *self.config;
        // Only the item vectors decay.
        let adam_of = |weight_decay| Adam { learning_rate, betas: BETAS, epsilon: EPSILON, weight_decay }.at(self.step);
        let (plain, decaying) = (adam_of(0.0), adam_of(weight_decay));
        let [weights, table, projection] = &mut self.moments;
        weights.update(&mut self.weights, gradient, plain);
        if self.text.width > 0 {
            let gathered = if rows.is_empty() { Vec::new() } else { gather(&self.text.vectors, self.text.width, rows) };
            let texts = if rows.is_empty() { &self.text.vectors } else { &gathered };
            let count = ditems.len() / d;
            let mut dprojection = vec![0.0; self.projection.len()];
            let texts = View::new(texts, count, self.text.width);
            matmul(&mut dprojection, Into::Replace, texts.transposed(), View::new(ditems, count, d));
            projection.update(&mut self.projection, &dprojection, plain);
        }
        clear(ditems, d, &step.dropped);
        if rows.is_empty() {
            table.update_in_parallel(&mut self.table, ditems, decaying);
        }
        // Only the rows of this step are updated, moments included, so that the cost does not grow with the catalogue.
        for (row, gradient) in rows.iter().zip(ditems.chunks_exact(d)) {
            table.update_from(*row as usize * d, &mut self.table, gradient, decaying);
        }
    }
}

fn gather(table: &[f32], width: usize, rows: &[u32]) -> Vec<f32> {
    let mut out = Vec::with_capacity(rows.len() * width);
    for row in rows {
        out.extend_from_slice(&table[*row as usize * width..][..width]);
    }
    out
}

/// Sets the marked rows to zero.
fn clear(values: &mut [f32], width: usize, marked: &[bool]) {
    values.chunks_exact_mut(width).zip(marked).filter(|(_, marked)| **marked).for_each(|(row, _)| row.fill(0.0));
}

/// Returns -ln of the probability that an item is in the softmax of a step: as an item of the batch, in proportion to
/// its occurrences in `samples`, or as a random negative.
fn log_q_correction(samples: &[Sample], item_count: usize, batch: usize, negatives: usize) -> Vec<f32> {
    let mut counts = vec![0.0f64; item_count];
    for sample in samples {
        match sample {
            Sample::Next(items) => items.iter().for_each(|item| counts[*item as usize] += 1.0),
            Sample::Targets { tokens, .. } => {
                let targets = sample.targets();
                tokens.items.iter().copied().chain(targets).for_each(|item| counts[item as usize] += 1.0);
            }
        }
    }
    let drawn = negatives as f64 * (1.0 - 1.0 / item_count as f64).ln();
    let share = batch as f64 / samples.len() as f64;
    let correction = counts.iter().map(|count| {
        let absent = drawn.max(-700.0) + count * (1.0 - share.min(0.999)).ln();
        -(-absent.exp_m1()).max(1e-9).ln() as f32
    });
    correction.collect()
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            samples::next_items,
            transformer::{Dropout, Shape, Tokens},
        },
        *,
    };

    fn config(similarity: Similarity, negatives: Option<usize>) -> EncoderConfig {
        EncoderConfig {
            shape: Shape { width: 16, heads: 2, blocks: 2, positions: 6, kinds: 4 },
            dropout: Dropout { hidden: 0.2, attention: 0.2 },
            similarity,
            learning_rate: 1e-3,
            weight_decay: 0.0,
            residual_dropout: 0.0,
            batch: 4,
            epochs_max: 1,
            patience: 1,
            negatives,
            threads: 1,
            seed: 3,
        }
    }

    /// Compares the gradients of weights and item vectors with central differences of the loss, with the same dropout
    /// masks.
    fn compare(similarity: Similarity, negatives: Option<usize>, with_targets: bool) {
        let targets = [(1u32, vec![(7u32, 0.25f32), (8, 0.75)]), (3, vec![(0, 0.5)])];
        let mut samples = next_items(&[&[0, 1, 2, 3, 4], &[5, 1], &[2, 6, 2], &[7, 8, 9, 10, 11, 0, 1]]);
        if with_targets {
            let tokens = Tokens { items: &[3, 4, 5, 6], kinds: &[1, 3, 2, 1], gaps: &[0.0, 0.7, 0.0, 2.0] };
            samples =
                vec![Sample::Targets { tokens, targets: &targets }, Sample::Targets { tokens, targets: &targets[..1] }];
        }
        let config = config(similarity, negatives);
        let text = ItemText { vectors: (0..12 * 3).map(|x| (x as f32).sin()).collect(), width: 3 };
        let mut trainer = Trainer::new(&samples, 12, &text, &config);
        // Larger than initial weights, so that the differences exceed rounding errors; gains stay 1.
        trainer.weights.iter_mut().filter(|weight| **weight != 1.0).for_each(|weight| *weight *= 8.0);
        trainer.table.iter_mut().for_each(|value| *value *= 20.0);
        let step = trainer.lay_out(&samples);
        let (items, _) = trainer.item_vectors(&step.rows, &[]);
        let shard = &step.shards[0];
        let (_, gradient, ditems) = trainer.shard(shard, &items, &step, 77);
        const STEP: f32 = 3e-3;
        let mut checked = 0;
        let mut check = |analytic: f32, high: f64, low: f64, name: String| {
            let numeric = (high - low) / f64::from(2.0 * STEP);
            let close = (numeric - f64::from(analytic)).abs() <= 2e-3 + 0.03 * numeric.abs();
            assert!(close, "{name}: {analytic} is {numeric} by differences, {similarity:?}");
            checked += 1;
        };
        for index in (0..gradient.len()).step_by(gradient.len() / 150) {
            let mut loss = |shift: f32| {
                let before = trainer.weights[index];
                trainer.weights[index] = before + shift;
                let loss = trainer.shard(shard, &items, &step, 77).0;
                trainer.weights[index] = before;
                loss
            };
            let (high, low) = (loss(STEP), loss(-STEP));
            check(gradient[index], high, low, format!("weight {index}"));
        }
        for index in (0..ditems.len()).step_by(5) {
            let loss = |shift: f32| {
                let mut items = items.clone();
                items[index] += shift;
                trainer.shard(shard, &items, &step, 77).0
            };
            check(ditems[index], loss(STEP), loss(-STEP), format!("item vector {index}"));
        }
        assert!(checked > 150);
    }

    #[test]
    fn gradients_match_finite_differences() {
        compare(Similarity::Dot, None, false);
        compare(Similarity::Cosine(8.0), None, false);
        compare(Similarity::Dot, Some(5), false);
        compare(Similarity::Cosine(8.0), None, true);
        compare(Similarity::Dot, Some(5), true);
    }

    #[test]
    fn the_gradient_of_normalised_rows_matches_finite_differences() {
        let x: Vec<f32> = (0..8).map(|x| 1.0 + (x as f32 * 1.7).sin()).collect();
        let weight: Vec<f32> = (0..8).map(|x| (x as f32 * 0.9).cos()).collect();
        let value = |x: &[f32]| {
            let (mut rows, mut inverse) = (x.to_vec(), vec![0.0; 2]);
            normalise_rows(&mut rows, 4, &mut inverse);
            (rows.iter().zip(&weight).map(|(a, b)| a * b).sum::<f32>(), rows, inverse)
        };
        let (_, rows, inverse) = value(&x);
        let mut gradient = weight.clone();
        normalise_rows_backward(&mut gradient, &rows, 4, &inverse);
        for index in 0..8 {
            let (mut high, mut low) = (x.clone(), x.clone());
            high[index] += 1e-2;
            low[index] -= 1e-2;
            let numeric = (value(&high).0 - value(&low).0) / 2e-2;
            assert!((numeric - gradient[index]).abs() < 1e-3, "{index}: {} {numeric}", gradient[index]);
        }
    }

    #[test]
    fn a_sampled_softmax_over_all_items_equals_the_full_softmax() {
        let sequences: Vec<&[u32]> = vec![&[0, 1, 2], &[3, 4, 5], &[1, 3, 5]];
        // Every item is in the batch, so the sample is the whole catalogue and all corrections are 0.
        let losses = [None, Some(100_000)].map(|negatives| {
            let mut config = config(Similarity::Cosine(8.0), negatives);
            config.dropout = Dropout::NONE;
            let text = ItemText::default();
            let samples = next_items(&sequences);
            let mut trainer = Trainer::new(&samples, 6, &text, &config);
            [trainer.step(&samples), trainer.step(&samples)]
        });
        assert!(losses[0].iter().zip(&losses[1]).all(|(a, b)| (a - b).abs() < 1e-4), "{losses:?}");
    }

    #[test]
    fn a_sampled_step_changes_no_other_rows() {
        let samples = next_items(&[&[3, 5, 7], &[900, 5]]);
        let config = config(Similarity::Cosine(8.0), Some(4));
        let text = ItemText::default();
        let mut trainer = Trainer::new(&samples, 1000, &text, &config);
        let before = trainer.table.clone();
        trainer.step(&samples);
        let changed: Vec<usize> =
            (0..1000).filter(|row| trainer.table[row * 16..][..16] != before[row * 16..][..16]).collect();
        assert!([3, 5, 7, 900].iter().all(|row| changed.contains(row)) && changed.len() <= 8, "{changed:?}");
    }
}
