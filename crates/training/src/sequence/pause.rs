//! A training that is stopped, and taken up again where it was.
use super::{
    SequenceEncoder, SequenceError,
    fit::Course,
    samples::ItemText,
    trainer::{START, Trainer},
};
use crate::{adam::Moments, kernels::add_scaled, layers::normal};
use prost::Message;
use rand::SeedableRng;
use rand_chacha::ChaCha12Rng;
use std::sync::atomic::{AtomicBool, Ordering};

/// Lets a training be stopped. What it needs to go on goes out, and in, by `state`.
#[derive(Default)]
pub struct Pause<'a> {
    /// The training stops at the next step after this becomes true; none: never.
    pub wanted: Option<&'a AtomicBool>,
    pub state: Option<TrainerState>,
}

impl Pause<'_> {
    pub fn is_wanted(&self) -> bool {
        self.wanted.is_some_and(|wanted| wanted.load(Ordering::Relaxed))
    }
}

/// All of a trainer between two steps: a training that goes on from it gives the same model as one that was never stopped
/// (with as many threads). Numbers are little-endian.
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
    /// Words that the generator of random numbers gave: 128 bits.
    #[prost(bytes = "vec", tag = "5")]
    random_words: Vec<u8>,
    #[prost(bytes = "vec", tag = "6")]
    order: Vec<u8>,
    /// Weights, table, projection, then mean and square of each.
    #[prost(bytes = "vec", repeated, tag = "7")]
    learned: Vec<Vec<u8>>,
    /// Weights, items, their lengths, projection of the best so far; empty: none yet.
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

/// Writes over `to` what `bytes` hold, if there are as many.
fn read<T: bytemuck::Pod>(bytes: &[u8], to: &mut [T]) -> Result<(), SequenceError> {
    let of: &mut [u8] = bytemuck::cast_slice_mut(to);
    if of.len() != bytes.len() {
        let problem = format!("the checkpoint has {} bytes where {} are due", bytes.len(), of.len());
        return Err(SequenceError::Checkpoint(problem));
    }
    of.copy_from_slice(bytes);
    Ok(())
}

impl TrainerState {
    /// Before the first step of a training that does not begin with random weights, but with those of an encoder (in the order of
    /// [`SequenceEncoder::flat_weights`]), the vectors of its items, where it has them, and its projection of texts
    /// `[text width × width]`. The other items begin with small random vectors of their own beside their texts'.
    pub fn beginning(
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
                "the items' vectors are not as wide as their texts' are made".to_owned(),
            ));
        }
        let mut rng = ChaCha12Rng::seed_from_u64(seed);
        let mut table: Vec<f32> = Vec::with_capacity(vectors.len() * width);
        for (item, vector) in vectors.iter().enumerate() {
            let begin = table.len();
            match vector {
                None => table.extend((0..width).map(|_| START * normal(&mut rng))),
                // What its text does not give is its own.
                Some(vector) => {
                    table.extend(vector);
                    let text = &text.vectors[item * text.width..][..text.width];
                    for (factor, row) in text.iter().zip(projection.chunks_exact(width)) {
                        add_scaled(&mut table[begin..], -factor, row);
                    }
                }
            }
        }
        let own = [weights, &table, projection];
        let moments = own.into_iter().flat_map(|values| std::iter::repeat_n(vec![0; 4 * values.len()], 2));
        Ok(Self {
            loss: f32::NAN,
            random_words: 0u128.to_le_bytes().to_vec(),
            order: bytes_of(&(0..sample_count as u32).collect::<Vec<u32>>()),
            learned: own.into_iter().map(bytes_of).chain(moments).collect(),
            best_score: f64::NEG_INFINITY,
            ..Self::default()
        })
    }

    pub(super) fn of(trainer: &Trainer, course: &Course) -> Self {
        let own = [&trainer.weights, &trainer.table, &trainer.projection];
        let moments = trainer.moments.iter().flat_map(|moments| [&moments.mean, &moments.square]);
        let best =
            course.best.iter().flat_map(|best| [&best.weights, &best.items, &best.lengths, &best.text_projection]);
        Self {
            epoch: course.epoch as u64,
            done: course.done as u64,
            step: trainer.step as u64,
            loss: course.loss,
            random_words: trainer.rng.get_word_pos().to_le_bytes().to_vec(),
            order: bytes_of(&course.order),
            learned: own.into_iter().chain(moments).map(|values| bytes_of(values)).collect(),
            best: best.map(|values| bytes_of(values)).collect(),
            best_score: course.best_score,
            best_epoch: course.best_epoch as u64,
            validated_steps: course.validation.iter().map(|(step, _)| *step as u64).collect(),
            validations: course.validation.iter().map(|(_, score)| *score).collect(),
            is_over: course.is_over,
        }
    }

    /// Puts a new trainer where the old one was.
    pub(super) fn restore(&self, trainer: &mut Trainer, course: &mut Course) -> Result<(), SequenceError> {
        let refuse = |problem: &str| Err(SequenceError::Checkpoint(problem.to_owned()));
        let Ok(words) = <[u8; 16]>::try_from(self.random_words.as_slice()) else {
            return refuse("the checkpoint does not tell where the random numbers were");
        };
        if self.learned.len() != 9 || !matches!(self.best.len(), 0 | 4) {
            return refuse("the checkpoint lacks a part");
        }
        read(&self.learned[0], &mut trainer.weights)?;
        read(&self.learned[1], &mut trainer.table)?;
        read(&self.learned[2], &mut trainer.projection)?;
        for (Moments { mean, square }, saved) in trainer.moments.iter_mut().zip(self.learned[3..].chunks_exact(2)) {
            read(&saved[0], mean)?;
            read(&saved[1], square)?;
        }
        read(&self.order, &mut course.order)?;
        let sample_count = course.order.len() as u32;
        if course.order.iter().any(|sample| *sample >= sample_count) {
            return refuse("the checkpoint names a sample that is not there");
        }
        if !self.best.is_empty() {
            let mut best: SequenceEncoder = trainer.snapshot();
            read(&self.best[0], &mut best.weights)?;
            read(&self.best[1], &mut best.items)?;
            read(&self.best[2], &mut best.lengths)?;
            read(&self.best[3], &mut best.text_projection)?;
            course.best = Some(best);
        }
        trainer.step = self.step as usize;
        trainer.rng.set_word_pos(u128::from_le_bytes(words));
        (course.epoch, course.done, course.loss) = (self.epoch as usize, self.done as usize, self.loss);
        course.is_over = self.is_over;
        (course.best_score, course.best_epoch) = (self.best_score, self.best_epoch as usize);
        let steps = self.validated_steps.iter().map(|step| *step as usize);
        course.validation = steps.zip(self.validations.iter().copied()).collect();
        Ok(())
    }
}
