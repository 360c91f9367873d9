//! Adam (Kingma & Ba 2015) with decoupled weight decay (Loshchilov & Hutter 2019): the optimiser of every model that is
//! trained here.
use super::kernels::{AdamStep, adam};
use rayon::prelude::*;

/// Settings of the optimiser.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Adam {
    pub learning_rate: f32,
    /// Decay of the first and of the second moment.
    pub betas: (f32, f32),
    /// Added to the root of the second moment (ε̂ in §2 of the paper).
    pub epsilon: f32,
    /// Times the learning rate, subtracted from the weights at each step as a share of them.
    pub weight_decay: f32,
}

impl Adam {
    /// Rates of step `step`, counted from 1, with the moments' bias corrected.
    pub(crate) fn at(&self, step: usize) -> AdamStep {
        let (first, second) = self.betas;
        let correction = (1.0 - second.powi(step as i32)).sqrt() / (1.0 - first.powi(step as i32));
        AdamStep {
            rate: self.learning_rate * correction,
            betas: self.betas,
            epsilon: self.epsilon,
            decay: self.learning_rate * self.weight_decay,
        }
    }
}

/// Weights that one thread takes at a time.
const CHUNK: usize = 65_536;

/// First and second moments of the gradients of some weights, as many as there are weights.
#[derive(Debug, Clone)]
pub(crate) struct Moments {
    pub mean: Vec<f32>,
    pub square: Vec<f32>,
}

impl Moments {
    pub(crate) fn new(count: usize) -> Self {
        Self { mean: vec![0.0; count], square: vec![0.0; count] }
    }

    /// Makes one step: changes `weights` by their `gradient`, and the moments.
    pub(crate) fn update(&mut self, weights: &mut [f32], gradient: &[f32], step: AdamStep) {
        adam(weights, &mut self.mean, &mut self.square, gradient, step);
    }

    /// [`Self::update`] on all threads; the result is the same.
    pub(crate) fn update_in_parallel(&mut self, weights: &mut [f32], gradient: &[f32], step: AdamStep) {
        let weights = weights.par_chunks_mut(CHUNK).zip(gradient.par_chunks(CHUNK));
        let moments = self.mean.par_chunks_mut(CHUNK).zip(self.square.par_chunks_mut(CHUNK));
        weights.zip(moments).for_each(|((weights, gradient), (mean, square))| {
            adam(weights, mean, square, gradient, step);
        });
    }

    /// [`Self::update`] of the weights from `begin` on.
    pub(crate) fn update_from(&mut self, begin: usize, weights: &mut [f32], gradient: &[f32], step: AdamStep) {
        let range = begin..begin + gradient.len();
        adam(&mut weights[range.clone()], &mut self.mean[range.clone()], &mut self.square[range], gradient, step);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_step_moves_each_weight_by_the_learning_rate_against_its_gradient() {
        let adam = Adam { learning_rate: 0.01, betas: (0.9, 0.999), epsilon: 1e-8, weight_decay: 0.0 };
        let (mut weights, mut moments) = (vec![1.0, 1.0, 1.0], Moments::new(3));
        moments.update(&mut weights, &[5.0, -0.002, 0.0], adam.at(1));
        let expected = [0.99, 1.01, 1.0];
        assert!(weights.iter().zip(expected).all(|(a, b): (&f32, f32)| (a - b).abs() < 1e-5), "{weights:?}");
    }

    #[test]
    fn a_quadratic_is_minimised() {
        let adam = Adam { learning_rate: 0.05, betas: (0.9, 0.999), epsilon: 1e-8, weight_decay: 0.0 };
        let (mut weights, mut moments) = (vec![3.0, -2.0], Moments::new(2));
        for step in 1..=1000 {
            let gradient: Vec<f32> = weights.iter().map(|weight| 2.0 * (weight - 1.0)).collect();
            moments.update(&mut weights, &gradient, adam.at(step));
        }
        assert!(weights.iter().all(|weight| (weight - 1.0).abs() < 1e-3), "{weights:?}");
    }
}
