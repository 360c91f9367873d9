//! The listwise ranker: a linear model of the sources' scores, plus a small hidden layer if there is enough training
//! data. Trained with the softmax cross-entropy over each list (ListNet's top-one probability: Cao et al. 2007).
use super::SequenceError;
use crate::{
    Progress,
    adam::{Adam, Moments},
    kernels::{Into, View, add_row, exponentials, gelu, gelu_backward, matmul, sum_rows},
    layers::normal,
};
use rand::{SeedableRng, rngs::StdRng, seq::SliceRandom};
use rayon::prelude::*;

/// Concatenated lists of candidates.
#[derive(Debug, Clone)]
pub struct Lists {
    /// Number of features of a candidate.
    pub width: usize,
    /// `[candidates × width]`.
    pub features: Vec<f32>,
    /// Target probability of each candidate; the labels of a list sum to 1.
    pub labels: Vec<f32>,
    /// Index of the first candidate of each list, and the end of the last list.
    pub starts: Vec<usize>,
}

impl Lists {
    pub fn new(width: usize) -> Self {
        Self { width, features: Vec::new(), labels: Vec::new(), starts: vec![0] }
    }

    /// Adds a list and scales its labels to sum 1. A list without a positive label is skipped.
    pub fn push(&mut self, features: &[f32], labels: &[f32]) {
        let sum: f32 = labels.iter().sum();
        if sum > 0.0 {
            self.features.extend_from_slice(features);
            self.labels.extend(labels.iter().map(|label| label / sum));
            self.starts.push(self.labels.len());
        }
    }

    pub fn count(&self) -> usize {
        self.starts.len() - 1
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct BlendConfig {
    /// Units of the hidden layer; 0: a linear model.
    pub hidden: usize,
    pub learning_rate: f32,
    /// Decoupled weight decay, in units of the learning rate.
    pub weight_decay: f32,
    pub batch: usize,
    pub epochs_max: usize,
    pub patience: usize,
    pub seed: u64,
}

impl Default for BlendConfig {
    fn default() -> Self {
        Self { hidden: 0, learning_rate: 5e-3, weight_decay: 1e-4, batch: 64, epochs_max: 40, patience: 4, seed: 1 }
    }
}

/// A trained ranker.
#[derive(Debug, Clone, PartialEq)]
pub struct Blend {
    scale: Scale,
    hidden: usize,
    /// Linear weights, then the hidden layer's matrix and bias, then its output weights.
    weights: Vec<f32>,
}

/// Mean and 1 / standard deviation of each feature.
#[derive(Debug, Clone, PartialEq)]
struct Scale {
    mean: Vec<f32>,
    inverse: Vec<f32>,
}

impl Scale {
    fn of(lists: &Lists) -> Self {
        let width = lists.width;
        let count = lists.labels.len().max(1) as f64;
        let (mut sum, mut square) = (vec![0.0f64; width], vec![0.0f64; width]);
        for row in lists.features.chunks_exact(width) {
            for (column, value) in row.iter().enumerate() {
                sum[column] += f64::from(*value);
                square[column] += f64::from(*value) * f64::from(*value);
            }
        }
        let mean: Vec<f64> = sum.iter().map(|sum| sum / count).collect();
        let inverse = square.iter().zip(&mean).map(|(square, mean)| {
            let variance = square / count - mean * mean;
            // A constant feature has no information.
            if variance < 1e-9 { 0.0 } else { (1.0 / variance.sqrt()) as f32 }
        });
        Self { inverse: inverse.collect(), mean: mean.iter().map(|mean| *mean as f32).collect() }
    }

    fn apply(&self, features: &mut [f32]) {
        for row in features.chunks_exact_mut(self.mean.len()) {
            for ((value, mean), inverse) in row.iter_mut().zip(&self.mean).zip(&self.inverse) {
                // Far outside of its training data a model is unreliable.
                *value = ((*value - mean) * inverse).clamp(-8.0, 8.0);
            }
        }
    }
}

impl Blend {
    /// Returns an untrained model: random weights of the hidden layer, all others 0.
    fn untrained(scale: &Scale, hidden: usize, rng: &mut StdRng) -> Self {
        let width = scale.mean.len();
        let mut weights = vec![0.0; width + hidden * (width + 1) + hidden];
        let spread = 1.0 / (width as f32).sqrt();
        for weight in &mut weights[width..width + hidden * width] {
            *weight = spread * normal(rng);
        }
        Self { scale: scale.clone(), hidden, weights }
    }

    /// Returns the number of units of the hidden layer.
    pub fn hidden(&self) -> usize {
        self.hidden
    }

    /// Returns the linear weights of the standardised features, without the hidden layer.
    pub fn linear_weights(&self) -> &[f32] {
        &self.weights[..self.scale.mean.len()]
    }

    /// Returns the scores `[candidates]` of `features` `[candidates × width]`; higher is better.
    pub fn scores(&self, features: &[f32]) -> Vec<f32> {
        let mut x = features.to_vec();
        self.scale.apply(&mut x);
        self.forward(&x).0
    }

    /// Returns the scores, and the hidden units before and after the activation.
    fn forward(&self, x: &[f32]) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
        let (width, hidden) = (self.scale.mean.len(), self.hidden);
        let rows = x.len() / width;
        let x = View::new(x, rows, width);
        let mut scores = vec![0.0; rows];
        matmul(&mut scores, Into::Replace, x, View::new(&self.weights[..width], width, 1));
        let (mut before, mut after) = (vec![0.0; rows * hidden], vec![0.0; rows * hidden]);
        if hidden > 0 {
            let (matrix, rest) = self.weights[width..].split_at(width * hidden);
            let (bias, out) = rest.split_at(hidden);
            matmul(&mut before, Into::Replace, x, View::new(matrix, width, hidden));
            add_row(&mut before, bias);
            gelu(&mut after, &before);
            matmul(&mut scores, Into::Add, View::new(&after, rows, hidden), View::new(out, hidden, 1));
        }
        (scores, before, after)
    }

    /// Returns the mean loss of lists with these lengths, and its gradient with respect to the weights.
    fn gradient(&self, x: &[f32], labels: &[f32], lengths: &[usize]) -> (f64, Vec<f32>) {
        let (width, hidden) = (self.scale.mean.len(), self.hidden);
        let (mut slopes, before, after) = self.forward(x);
        let rows = slopes.len();
        let weight = 1.0 / lengths.len() as f32;
        let (mut loss, mut begin) = (0.0, 0);
        for length in lengths {
            let scores = &mut slopes[begin..begin + length];
            let labels = &labels[begin..begin + length];
            let chosen: f32 = scores.iter().zip(labels).map(|(score, label)| score * label).sum();
            let (peak, sum) = exponentials(scores);
            loss += f64::from(weight * (sum.ln() + peak - chosen));
            for (score, label) in scores.iter_mut().zip(labels) {
                *score = weight * (*score / sum - label);
            }
            begin += length;
        }
        let mut gradient = vec![0.0; self.weights.len()];
        let x = View::new(x, rows, width);
        let column = View::new(&slopes, rows, 1);
        matmul(&mut gradient[..width], Into::Replace, x.transposed(), column);
        if hidden > 0 {
            let out = &self.weights[width + width * hidden + hidden..];
            let (dmatrix, rest) = gradient[width..].split_at_mut(width * hidden);
            let (dbias, dout) = rest.split_at_mut(hidden);
            matmul(dout, Into::Replace, View::new(&after, rows, hidden).transposed(), column);
            let mut dhidden = vec![0.0; rows * hidden];
            matmul(&mut dhidden, Into::Replace, column, View::new(out, 1, hidden));
            gelu_backward(&mut dhidden, &before);
            matmul(dmatrix, Into::Replace, x.transposed(), View::new(&dhidden, rows, hidden));
            sum_rows(dbias, &dhidden);
        }
        (loss, gradient)
    }
}

/// Units of the hidden layer that is compared with the linear model.
const HIDDEN: usize = 32;
/// With fewer lists only the linear model is trained.
const HIDDEN_LISTS_MIN: usize = 500;

/// Trains a linear model and one with a hidden layer, and returns the one with the lower loss on held-out lists.
pub fn train_best_blend(
    mut lists: Lists,
    config: &BlendConfig,
    progress: &mut dyn FnMut(Progress),
) -> Result<Blend, SequenceError> {
    let count = lists.count();
    if count < 2 {
        return Err(SequenceError::TooLittle(format!(
            "{count} lists contain the target item; the ranker needs at least 2"
        )));
    }
    let scale = Scale::of(&lists);
    scale.apply(&mut lists.features);
    let (linear, linear_loss) = train_blend(&lists, &scale, &BlendConfig { hidden: 0, ..config.clone() }, progress)?;
    if count < HIDDEN_LISTS_MIN {
        return Ok(linear);
    }
    let config = BlendConfig { hidden: HIDDEN, learning_rate: 0.4 * config.learning_rate, ..config.clone() };
    let (hidden, hidden_loss) = train_blend(&lists, &scale, &config, progress)?;
    Ok(if hidden_loss < linear_loss { hidden } else { linear })
}

/// One of this many lists is held out for early stopping.
const HELD_OUT: usize = 8;

/// Lists of a batch in one parallel task.
const PART: usize = 32;

/// Trains a model on scaled lists. Every eighth list, by a hash of its index, is held out for early stopping. Returns
/// the model with the loss on the held-out lists.
fn train_blend(
    lists: &Lists,
    scale: &Scale,
    config: &BlendConfig,
    progress: &mut dyn FnMut(Progress),
) -> Result<(Blend, f64), SequenceError> {
    const STAGE: &str = "ranker";
    let count = lists.count();
    let mut rng = StdRng::seed_from_u64(config.seed);
    let mut blend = Blend::untrained(scale, config.hidden, &mut rng);
    let rank = |index: usize| (index as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40;
    let mut order: Vec<usize> = (0..count).collect();
    order.sort_by_key(|index| rank(*index));
    let held_out = order.split_off(count - (count / HELD_OUT).max(1));
    let BlendConfig { learning_rate, weight_decay, .. } = *config;
    let adam = Adam { learning_rate, betas: (0.9, 0.999), epsilon: 1e-8, weight_decay };
    let mut moments = Moments::new(blend.weights.len());
    let gradient = |blend: &Blend, chosen: &[usize]| -> (f64, Vec<f32>) {
        let (mut x, mut labels, mut lengths) = (Vec::new(), Vec::new(), Vec::new());
        for index in chosen {
            let range = lists.starts[*index]..lists.starts[index + 1];
            x.extend_from_slice(&lists.features[range.start * lists.width..range.end * lists.width]);
            labels.extend_from_slice(&lists.labels[range.clone()]);
            lengths.push(range.len());
        }
        blend.gradient(&x, &labels, &lengths)
    };
    // Parts of the same size are computed in parallel and summed in a fixed order, so that results are reproducible.
    let of_all = |blend: &Blend, chosen: &[usize]| -> (f64, Vec<f32>) {
        let parts: Vec<(f64, Vec<f32>)> = chosen.par_chunks(PART).map(|chosen| gradient(blend, chosen)).collect();
        let (mut loss, mut sum) = (0.0, vec![0.0; blend.weights.len()]);
        for ((part_loss, part), chosen_part) in parts.iter().zip(chosen.chunks(PART)) {
            let share = chosen_part.len() as f64 / chosen.len() as f64;
            loss += share * part_loss;
            sum.iter_mut().zip(part).for_each(|(sum, value)| *sum += share as f32 * value);
        }
        (loss, sum)
    };
    let steps = order.len().div_ceil(config.batch);
    let (mut best, mut best_loss, mut worse, mut step) = (blend.clone(), f64::INFINITY, 0, 0);
    for _ in 0..config.epochs_max {
        order.shuffle(&mut rng);
        for chosen in order.chunks(config.batch) {
            let (loss, gradient) = of_all(&blend, chosen);
            step += 1;
            if !loss.is_finite() {
                return Err(SequenceError::Diverged { stage: STAGE, step });
            }
            moments.update(&mut blend.weights, &gradient, adam.at(step));
            progress(Progress { stage: STAGE, done: step, total: config.epochs_max * steps, loss: loss as f32 });
        }
        let (loss, _) = of_all(&blend, &held_out);
        if loss < best_loss - 1e-5 {
            (best, best_loss, worse) = (blend.clone(), loss, 0);
        } else {
            worse += 1;
            if worse >= config.patience {
                break;
            }
        }
    }
    Ok((best, best_loss))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gradient_matches_finite_differences() {
        let mut lists = Lists::new(3);
        let features: Vec<f32> = (0..27).map(|x| (x as f32 * 1.3).sin()).collect();
        lists.push(&features[..12], &[0.0, 1.0, 0.0, 1.0]);
        lists.push(&features[12..], &[1.0, 0.0, 0.0, 0.0, 0.0]);
        let scale = Scale::of(&lists);
        scale.apply(&mut lists.features);
        let mut blend = Blend::untrained(&scale, 4, &mut StdRng::seed_from_u64(1));
        blend.weights.iter_mut().enumerate().for_each(|(index, weight)| *weight += (index as f32).cos());
        let x = lists.features.clone();
        let (_, gradient) = blend.gradient(&x, &lists.labels, &[4, 5]);
        for (index, analytic) in gradient.iter().enumerate() {
            let loss = |shift: f32| {
                let mut moved = blend.clone();
                moved.weights[index] += shift;
                moved.gradient(&x, &lists.labels, &[4, 5]).0
            };
            let numeric = (loss(1e-2) - loss(-1e-2)) / 2e-2;
            assert!((numeric - f64::from(*analytic)).abs() < 2e-3, "{index}: {analytic} {numeric}");
        }
    }
}
