//! Training of the sequence encoder with early stopping on a validation score.
use super::{
    SequenceError,
    encoder::SequenceEncoder,
    encoder_config::EncoderConfig,
    interruption::{Interruption, TrainerState},
    samples::{ItemText, Sample, next_items},
    trainer::Trainer,
    training_history::TrainingHistory,
};
use crate::Progress;
use rand::seq::SliceRandom;
use std::time::Instant;

/// Trains on `samples`, each of at most `shape.positions` events. `validate` scores the encoder after each epoch,
/// higher is better; the encoder of the best epoch is returned.
///
/// Stops with [`SequenceError::Stopped`] after `interruption` is requested. An interruptible training writes its state
/// there, both when it stops and at its end, so that a later call continues from it or returns the same encoder again.
pub fn train_encoder(
    samples: &[Sample],
    item_count: usize,
    text: &ItemText,
    config: &EncoderConfig,
    interruption: &mut Interruption,
    validate: &mut dyn FnMut(&SequenceEncoder) -> f64,
    progress: &mut dyn FnMut(Progress),
) -> Result<TrainedEncoder, SequenceError> {
    const STAGE: &str = "encoder";
    if samples.is_empty() {
        return Err(SequenceError::TooLittle(
            "no history has two items; the encoder needs at least one next item to learn from".to_owned(),
        ));
    }
    let mut trainer = Trainer::new(samples, item_count, text, config);
    let steps = samples.len().div_ceil(config.batch);
    let mut history = TrainingHistory::new(samples.len());
    if let Some(state) = interruption.state.take() {
        state.restore(&mut trainer, &mut history)?;
    }
    while history.epoch <= config.epochs_max && !history.is_over {
        let mut stops = interruption.is_requested();
        if history.done == 0 && !stops {
            history.order.shuffle(&mut trainer.rng);
        }
        while history.epoch > 0 && history.done < steps {
            if stops {
                interruption.state = Some(TrainerState::of(&trainer, &history));
                return Err(SequenceError::Stopped);
            }
            let batch = history.order.chunks(config.batch).nth(history.done).unwrap_or_default();
            let batch: Vec<Sample> = batch.iter().map(|index| samples[*index as usize]).collect();
            let value = trainer.step(&batch) as f32;
            history.done += 1;
            let done = (history.epoch - 1) * steps + history.done;
            if !value.is_finite() {
                return Err(SequenceError::Diverged { stage: STAGE, step: done });
            }
            history.loss = if history.loss.is_nan() { value } else { 0.95 * history.loss + 0.05 * value };
            progress(Progress { stage: STAGE, done, total: config.epochs_max * steps, loss: history.loss });
            stops = interruption.is_requested();
        }
        let snapshot = trainer.snapshot();
        if snapshot.items.iter().chain(&snapshot.weights).any(|value| !value.is_finite()) {
            return Err(SequenceError::Diverged { stage: STAGE, step: history.epoch * steps });
        }
        let score = validate(&snapshot);
        history.end_epoch(snapshot, score, steps, config.patience);
    }
    if interruption.requested.is_some() {
        interruption.state = Some(TrainerState::of(&trainer, &history));
    }
    let encoder = history.best.unwrap_or_else(|| trainer.snapshot());
    Ok(TrainedEncoder {
        encoder,
        epochs: history.best_epoch,
        score: history.best_score,
        validation: history.validation,
    })
}

/// The result of [`train_encoder`].
#[derive(Debug, Clone)]
pub struct TrainedEncoder {
    pub encoder: SequenceEncoder,
    /// The epoch of the best validation score, from 1.
    pub epochs: usize,
    /// The best validation score.
    pub score: f64,
    /// Total steps and the validation score after them, for each epoch.
    pub validation: Vec<(usize, f64)>,
}

/// Returns the milliseconds of each of `steps` steps on `sequences`, all in one batch, after one step of warm-up.
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
