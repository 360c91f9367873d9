//! Training of the sequence encoder: epochs until the validation gets no better.
use super::{
    SequenceError,
    encoder::{SequenceEncoder, Similarity},
    pause::{Pause, TrainerState},
    samples::{ItemText, Sample, next_items},
    trainer::Trainer,
    transformer::{Dropout, Shape},
};
use crate::Progress;
use rand::seq::SliceRandom;
use std::time::Instant;

#[derive(Debug, Clone, PartialEq)]
pub struct EncoderConfig {
    pub shape: Shape,
    pub dropout: Dropout,
    pub similarity: Similarity,
    pub learning_rate: f32,
    /// Share of a weight that a step takes away, in units of the learning rate; the item table alone.
    pub weight_decay: f32,
    /// Share of the items whose own vector is left out of a step, so that their texts alone must do: as for new items.
    pub residual_dropout: f32,
    /// Samples of a step.
    pub batch: usize,
    pub epochs_max: usize,
    /// Epochs without a better validation before it stops.
    pub patience: usize,
    /// Items drawn at random for each step, beside those of the batch; none: the softmax is over all items.
    pub negatives: Option<usize>,
    /// Parts that a batch is cut into, each on a thread of its own. The same seed and number give the same model.
    pub threads: usize,
    pub seed: u64,
}

impl EncoderConfig {
    /// Settings for data of this size. Many events take fewer epochs, and a large catalogue a sampled softmax.
    pub fn for_data(sequences: &[&[u32]], item_count: usize, threads: usize, seed: u64) -> Self {
        let targets: usize = sequences.iter().map(|sequence| sequence.len().saturating_sub(1)).sum();
        let lengths: Vec<usize> = sequences.iter().map(|sequence| sequence.len()).collect();
        Self::for_sizes(lengths, targets, item_count, threads, seed)
    }

    /// Settings for samples of these lengths with so many moments at which something is foretold.
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
/// Logits of an epoch, above which a sample of the items takes the place of all.
const FULL_SOFTMAX_CELLS: f64 = 6e9;
/// Items drawn for each step of a sampled softmax.
const NEGATIVES: usize = 4096;

/// Trains on `samples` (at most `shape.positions` events each). `validate` judges the model after each epoch, higher is
/// better; the best is given back with its epoch, from 1. Stops when `pause` wants it, with [`SequenceError::Stopped`].
/// What it needs to go on, or to give the same again, it leaves there if it may be stopped.
pub fn train_encoder(
    samples: &[Sample],
    item_count: usize,
    text: &ItemText,
    config: &EncoderConfig,
    pause: &mut Pause,
    validate: &mut dyn FnMut(&SequenceEncoder) -> f64,
    progress: &mut dyn FnMut(Progress),
) -> Result<TrainedEncoder, SequenceError> {
    const STAGE: &str = "encoder";
    if samples.is_empty() {
        return Err(SequenceError::TooLittle(
            "no history has two items: there is no next item to learn from".to_owned(),
        ));
    }
    let mut trainer = Trainer::new(samples, item_count, text, config);
    let steps = samples.len().div_ceil(config.batch);
    let mut course = Course::new(samples.len());
    if let Some(state) = pause.state.take() {
        state.restore(&mut trainer, &mut course)?;
    }
    while course.epoch <= config.epochs_max && !course.is_over {
        let mut stops = pause.is_wanted();
        if course.done == 0 && !stops {
            course.order.shuffle(&mut trainer.rng);
        }
        while course.epoch > 0 && course.done < steps {
            if stops {
                pause.state = Some(TrainerState::of(&trainer, &course));
                return Err(SequenceError::Stopped);
            }
            let chosen = course.order.chunks(config.batch).nth(course.done).unwrap_or_default();
            let chosen: Vec<Sample> = chosen.iter().map(|index| samples[*index as usize]).collect();
            let value = trainer.step(&chosen) as f32;
            course.done += 1;
            let done = (course.epoch - 1) * steps + course.done;
            if !value.is_finite() {
                return Err(SequenceError::Diverged { stage: STAGE, step: done });
            }
            course.loss = if course.loss.is_nan() { value } else { 0.95 * course.loss + 0.05 * value };
            progress(Progress { stage: STAGE, done, total: config.epochs_max * steps, loss: course.loss });
            stops = pause.is_wanted();
        }
        let snapshot = trainer.snapshot();
        if snapshot.items.iter().chain(&snapshot.weights).any(|value| !value.is_finite()) {
            return Err(SequenceError::Diverged { stage: STAGE, step: course.epoch * steps });
        }
        let score = validate(&snapshot);
        course.judge(snapshot, score, steps, config.patience);
    }
    if pause.wanted.is_some() {
        pause.state = Some(TrainerState::of(&trainer, &course));
    }
    let encoder = course.best.unwrap_or_else(|| trainer.snapshot());
    Ok(TrainedEncoder { encoder, epochs: course.best_epoch, score: course.best_score, validation: course.validation })
}

/// Where a training is.
pub(super) struct Course {
    /// From 1; 0: what a training began with that did not begin with random weights is to be judged.
    pub(super) epoch: usize,
    /// Steps of the epoch that were made.
    pub(super) done: usize,
    /// Samples in the order of this epoch.
    pub(super) order: Vec<u32>,
    /// Smoothed; begins anew with each epoch.
    pub(super) loss: f32,
    pub(super) best: Option<SequenceEncoder>,
    pub(super) best_score: f64,
    pub(super) best_epoch: usize,
    /// Steps, and the score after them.
    pub(super) validation: Vec<(usize, f64)>,
    pub(super) is_over: bool,
}

impl Course {
    fn new(sample_count: usize) -> Self {
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

    /// Ends an epoch.
    fn judge(&mut self, snapshot: SequenceEncoder, score: f64, steps: usize, patience: usize) {
        self.validation.push((self.epoch * steps, score));
        if score > self.best_score {
            (self.best, self.best_score, self.best_epoch) = (Some(snapshot), score, self.epoch);
        }
        self.is_over = self.epoch - self.best_epoch >= patience;
        (self.epoch, self.done, self.loss) = (self.epoch + 1, 0, f32::NAN);
    }
}

/// What [`train_encoder`] gives.
#[derive(Debug, Clone)]
pub struct TrainedEncoder {
    pub encoder: SequenceEncoder,
    /// Epochs until the best validation.
    pub epochs: usize,
    /// The best validation.
    pub score: f64,
    /// Steps, and the validation after them.
    pub validation: Vec<(usize, f64)>,
}

/// Milliseconds of each of `steps` steps on `sequences`, all in one batch, after one that is not counted.
pub fn time_steps(sequences: &[&[u32]], item_count: usize, config: &EncoderConfig, steps: usize) -> Vec<f64> {
    let text = ItemText::default();
    let samples = next_items(sequences);
    let mut trainer = Trainer::new(&samples, item_count, &text, config);
    trainer.step(&samples);
    let timed = (0..steps).map(|_| {
        let begun = Instant::now();
        trainer.step(&samples);
        1e3 * begun.elapsed().as_secs_f64()
    });
    timed.collect()
}
