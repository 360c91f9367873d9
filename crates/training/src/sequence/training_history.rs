//! The history of a training: position within the epochs, validation scores and the best encoder.
use super::encoder::SequenceEncoder;

/// Progress and results of a training so far.
pub(super) struct TrainingHistory {
    /// The current epoch, from 1. 0: a warm start, whose initial weights are validated before the first epoch.
    pub(super) epoch: usize,
    /// Completed steps of the epoch.
    pub(super) done: usize,
    /// Sample indices in the order of this epoch.
    pub(super) order: Vec<u32>,
    /// Exponentially smoothed loss of this epoch; NaN before its first step.
    pub(super) loss: f32,
    pub(super) best: Option<SequenceEncoder>,
    pub(super) best_score: f64,
    pub(super) best_epoch: usize,
    /// Total steps and the validation score after them, for each epoch.
    pub(super) validation: Vec<(usize, f64)>,
    pub(super) is_over: bool,
}

impl TrainingHistory {
    pub(super) fn new(sample_count: usize) -> Self {
        Self {
            epoch: 1,
            done: 0,
            order: (0..sample_count as u32).collect(),
            loss: f32::NAN,
            best: None,
            best_score: f64::NEG_INFINITY,
            best_epoch: 0,
            validation: Vec::new(),
            is_over: false,
        }
    }

    /// Records the score of an epoch, keeps the best encoder, and starts the next epoch or ends the training.
    pub(super) fn end_epoch(&mut self, snapshot: SequenceEncoder, score: f64, steps: usize, patience: usize) {
        self.validation.push((self.epoch * steps, score));
        if score > self.best_score {
            (self.best, self.best_score, self.best_epoch) = (Some(snapshot), score, self.epoch);
        }
        self.is_over = self.epoch - self.best_epoch >= patience;
        (self.epoch, self.done, self.loss) = (self.epoch + 1, 0, f32::NAN);
    }
}
