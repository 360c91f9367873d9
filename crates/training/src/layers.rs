//! Fully connected layers, and numbers to start them with. Weights lie in flat vectors: a matrix `[inputs × outputs]`,
//! row after row, then a bias `[outputs]`.
use super::kernels::{Into, View, add_row, matmul, sum_rows};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha12Rng;
use std::ops::Range;

/// x · W + b: `x` `[rows × inputs]` to `[rows × outputs]`.
pub(crate) fn linear(x: &[f32], inputs: usize, matrix_and_bias: &[f32]) -> Vec<f32> {
    let outputs = matrix_and_bias.len() / (inputs + 1);
    let (matrix, bias) = matrix_and_bias.split_at(inputs * outputs);
    let rows = x.len() / inputs;
    let mut out = vec![0.0; rows * outputs];
    matmul(&mut out, Into::Replace, View::new(x, rows, inputs), View::new(matrix, inputs, outputs));
    add_row(&mut out, bias);
    out
}

/// Adds the gradient of matrix and bias to `gradient`; `dout` `[rows × outputs]` is the gradient of the layer's output.
pub(crate) fn linear_gradient(gradient: &mut [f32], dout: &[f32], x: &[f32], inputs: usize) {
    let outputs = gradient.len() / (inputs + 1);
    let rows = x.len() / inputs;
    let (dmatrix, dbias) = gradient.split_at_mut(inputs * outputs);
    matmul(dmatrix, Into::Add, View::new(x, rows, inputs).transposed(), View::new(dout, rows, outputs));
    sum_rows(dbias, dout);
}

/// [`linear_gradient`]; returns the gradient of `x`.
pub(crate) fn linear_backward(
    gradient: &mut [f32],
    dout: &[f32],
    x: &[f32],
    inputs: usize,
    matrix_and_bias: &[f32],
) -> Vec<f32> {
    linear_gradient(gradient, dout, x, inputs);
    let outputs = matrix_and_bias.len() / (inputs + 1);
    let rows = x.len() / inputs;
    let mut dx = vec![0.0; rows * inputs];
    let matrix = View::new(matrix_and_bias, inputs, outputs);
    matmul(&mut dx, Into::Replace, View::new(dout, rows, outputs), matrix.transposed());
    dx
}

/// Shape of a layer and its range within a vector of weights.
#[derive(Debug, Clone)]
pub(crate) struct Linear {
    pub inputs: usize,
    pub outputs: usize,
    pub range: Range<usize>,
}

impl Linear {
    /// Returns a layer whose weights start at `begin`.
    pub(crate) fn new(begin: usize, inputs: usize, outputs: usize) -> Self {
        Self { inputs, outputs, range: begin..begin + (inputs + 1) * outputs }
    }

    /// Draws matrix and bias uniformly from ±1/√inputs (LeCun et al. 1998, §4.6; PyTorch's default).
    pub(crate) fn initialise(&self, weights: &mut [f32], rng: &mut impl Rng) {
        let limit = 1.0 / (self.inputs as f32).sqrt();
        weights[self.range.clone()].fill_with(|| rng.random_range(-limit..limit));
    }

    /// Matrix `[inputs × outputs]` and bias `[outputs]`.
    pub(crate) fn matrix_and_bias<'a>(&self, weights: &'a [f32]) -> (&'a [f32], &'a [f32]) {
        weights[self.range.clone()].split_at(self.inputs * self.outputs)
    }

    /// See [`linear`].
    pub(crate) fn forward(&self, weights: &[f32], x: &[f32]) -> Vec<f32> {
        linear(x, self.inputs, &weights[self.range.clone()])
    }

    /// See [`linear_gradient`]; `gradient` is that of all weights.
    pub(crate) fn gradient(&self, gradient: &mut [f32], dout: &[f32], x: &[f32]) {
        linear_gradient(&mut gradient[self.range.clone()], dout, x, self.inputs);
    }

    /// See [`linear_backward`]; `gradient` is that of all weights.
    pub(crate) fn backward(&self, gradient: &mut [f32], dout: &[f32], x: &[f32], weights: &[f32]) -> Vec<f32> {
        linear_backward(&mut gradient[self.range.clone()], dout, x, self.inputs, &weights[self.range.clone()])
    }
}

/// Random streams of one seed, by model. The sequence encoder, whose checkpoints store its position, has stream 0.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Stream {
    QueryEncoder = 1,
    Ranker = 2,
}

/// Returns a generator whose numbers are independent of the other streams of the seed, so that no model starts with
/// another model's weights.
pub(crate) fn generator(seed: u64, stream: Stream) -> ChaCha12Rng {
    let mut rng = ChaCha12Rng::seed_from_u64(seed);
    rng.set_stream(stream as u64);
    rng
}

/// A normally distributed number (Box & Muller 1958).
pub(crate) fn normal(rng: &mut impl Rng) -> f32 {
    let (a, b): (f32, f32) = (rng.random(), rng.random());
    (-2.0 * a.max(1e-12).ln()).sqrt() * (2.0 * std::f32::consts::PI * b).cos()
}
