//! Interruption of a training, and the state from which it resumes.
use super::{
    SequenceError,
    encoder::SequenceEncoder,
    samples::ItemText,
    trainer::{INITIAL_DEVIATION, Trainer},
    training_history::TrainingHistory,
};
use crate::{adam::Moments, kernels::add_scaled, layers::normal};
use prost::Message;
use rand::SeedableRng;
use rand_chacha::ChaCha12Rng;
use std::sync::atomic::{AtomicBool, Ordering};

/// The means to interrupt a training and to resume it.
#[derive(Default)]
pub struct Interruption<'a> {
    /// The training stops before the next step once this is true; `None`: the training cannot be interrupted.
    pub requested: Option<&'a AtomicBool>,
    /// On input the state to resume from, on output the state of the stopped or completed training.
    pub state: Option<TrainerState>,
}

impl Interruption<'_> {
    pub fn is_requested(&self) -> bool {
        self.requested.is_some_and(|requested| requested.load(Ordering::Relaxed))
    }
}

/// The complete state of a trainer between two steps: a training that resumes from it produces the same model as an
/// uninterrupted one with the same number of threads. Numbers are little-endian.
#[derive(Clone, PartialEq, Message)]
pub struct TrainerState {
    #[prost(uint64, tag = "1")]
    epoch: u64,
    #[prost(uint64, tag = "2")]
    done: u64,
    #[prost(uint64, tag = "3")]
    step: u64,
    #[prost(float, tag = "4")]
    loss: f32,
    /// Position of the random number generator in its stream, in words: 128 bits.
    #[prost(bytes = "vec", tag = "5")]
    random_words: Vec<u8>,
    #[prost(bytes = "vec", tag = "6")]
    order: Vec<u8>,
    /// Weights, item table and text projection, then Adam's mean and square of each.
    #[prost(bytes = "vec", repeated, tag = "7")]
    learned: Vec<Vec<u8>>,
    /// Weights, items, their lengths and text projection of the best encoder so far; empty before the first
    /// validation.
    #[prost(bytes = "vec", repeated, tag = "8")]
    best: Vec<Vec<u8>>,
    #[prost(double, tag = "9")]
    best_score: f64,
    #[prost(uint64, tag = "10")]
    best_epoch: u64,
    #[prost(uint64, repeated, tag = "11")]
    validated_steps: Vec<u64>,
    #[prost(double, repeated, tag = "12")]
    validations: Vec<f64>,
    #[prost(bool, tag = "13")]
    is_over: bool,
}

fn bytes_of<T: bytemuck::Pod>(values: &[T]) -> Vec<u8> {
    bytemuck::cast_slice(values).to_vec()
}

/// Overwrites `to` with `bytes`; an error if their sizes differ.
fn read<T: bytemuck::Pod>(bytes: &[u8], to: &mut [T]) -> Result<(), SequenceError> {
    let to: &mut [u8] = bytemuck::cast_slice_mut(to);
    if to.len() != bytes.len() {
        let problem = format!("the checkpoint has a part of {} bytes; {} are expected", bytes.len(), to.len());
        return Err(SequenceError::Checkpoint(problem));
    }
    to.copy_from_slice(bytes);
    Ok(())
}

impl TrainerState {
    /// Returns the state before the first step of a warm start: with the weights of an encoder (in the order of
    /// [`SequenceEncoder::flat_weights`]), its item vectors if it has them, and its text projection
    /// `[text width × width]`. Other items start with a small random residual vector, which is added to the projection
    /// of their text.
    pub fn from_encoder(
        weights: &[f32],
        vectors: &[Option<Vec<f32>>],
        text: &ItemText,
        projection: &[f32],
        sample_count: usize,
        seed: u64,
    ) -> Result<Self, SequenceError> {
        let width = projection.len() / text.width.max(1);
        if width * text.width != projection.len() || vectors.iter().flatten().any(|vector| vector.len() != width) {
            return Err(SequenceError::Checkpoint(
                "the item vectors and the text projection have different widths".to_owned(),
            ));
        }
        let mut rng = ChaCha12Rng::seed_from_u64(seed);
        let mut table: Vec<f32> = Vec::with_capacity(vectors.len() * width);
        for (item, vector) in vectors.iter().enumerate() {
            let begin = table.len();
            match vector {
                None => table.extend((0..width).map(|_| INITIAL_DEVIATION * normal(&mut rng))),
                // The table has residuals: the vector without the projection of the text.
                Some(vector) => {
                    table.extend(vector);
                    let text = &text.vectors[item * text.width..][..text.width];
                    for (factor, row) in text.iter().zip(projection.chunks_exact(width)) {
                        add_scaled(&mut table[begin..], -factor, row);
                    }
                }
            }
        }
        let learned = [weights, &table, projection];
        let moments = learned.into_iter().flat_map(|values| std::iter::repeat_n(vec![0; 4 * values.len()], 2));
        Ok(Self {
            loss: f32::NAN,
            random_words: 0u128.to_le_bytes().to_vec(),
            order: bytes_of(&(0..sample_count as u32).collect::<Vec<u32>>()),
            learned: learned.into_iter().map(bytes_of).chain(moments).collect(),
            best_score: f64::NEG_INFINITY,
            ..Self::default()
        })
    }

    pub(super) fn of(trainer: &Trainer, history: &TrainingHistory) -> Self {
        let learned = [&trainer.weights, &trainer.table, &trainer.projection];
        let moments = trainer.moments.iter().flat_map(|moments| [&moments.mean, &moments.square]);
        let best =
            history.best.iter().flat_map(|best| [&best.weights, &best.items, &best.lengths, &best.text_projection]);
        Self {
            epoch: history.epoch as u64,
            done: history.done as u64,
            step: trainer.step as u64,
            loss: history.loss,
            random_words: trainer.rng.get_word_pos().to_le_bytes().to_vec(),
            order: bytes_of(&history.order),
            learned: learned.into_iter().chain(moments).map(|values| bytes_of(values)).collect(),
            best: best.map(|values| bytes_of(values)).collect(),
            best_score: history.best_score,
            best_epoch: history.best_epoch as u64,
            validated_steps: history.validation.iter().map(|(step, _)| *step as u64).collect(),
            validations: history.validation.iter().map(|(_, score)| *score).collect(),
            is_over: history.is_over,
        }
    }

    /// Restores this state in a new trainer of the same configuration.
    pub(super) fn restore(&self, trainer: &mut Trainer, history: &mut TrainingHistory) -> Result<(), SequenceError> {
        let refuse = |problem: &str| Err(SequenceError::Checkpoint(problem.to_owned()));
        let Ok(words) = <[u8; 16]>::try_from(self.random_words.as_slice()) else {
            return refuse("the checkpoint has no valid position of the random number generator");
        };
        if self.learned.len() != 9 || !matches!(self.best.len(), 0 | 4) {
            return refuse("the checkpoint is incomplete");
        }
        read(&self.learned[0], &mut trainer.weights)?;
        read(&self.learned[1], &mut trainer.table)?;
        read(&self.learned[2], &mut trainer.projection)?;
        for (Moments { mean, square }, saved) in trainer.moments.iter_mut().zip(self.learned[3..].chunks_exact(2)) {
            read(&saved[0], mean)?;
            read(&saved[1], square)?;
        }
        read(&self.order, &mut history.order)?;
        let sample_count = history.order.len() as u32;
        if history.order.iter().any(|sample| *sample >= sample_count) {
            return refuse("the checkpoint refers to a sample beyond the number of samples");
        }
        if !self.best.is_empty() {
            let mut best: SequenceEncoder = trainer.snapshot();
            read(&self.best[0], &mut best.weights)?;
            read(&self.best[1], &mut best.items)?;
            read(&self.best[2], &mut best.lengths)?;
            read(&self.best[3], &mut best.text_projection)?;
            history.best = Some(best);
        }
        trainer.step = self.step as usize;
        trainer.rng.set_word_pos(u128::from_le_bytes(words));
        (history.epoch, history.done, history.loss) = (self.epoch as usize, self.done as usize, self.loss);
        history.is_over = self.is_over;
        (history.best_score, history.best_epoch) = (self.best_score, self.best_epoch as usize);
        let steps = self.validated_steps.iter().map(|step| *step as usize);
        history.validation = steps.zip(self.validations.iter().copied()).collect();
        Ok(())
    }
}
