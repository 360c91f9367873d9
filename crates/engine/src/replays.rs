//! Replays of logged answers from their records.
use super::engine::Engine;
use crate::EngineError;
use lodestone_core::ids::Row;
use lodestone_pipeline::{
    answers::{self, AnswerRecord, Propensity, ReplayError, ReplayModels},
    generation::Generation,
    models::Models,
    policy::Placed,
    request::Priority,
    trace,
};
use lodestone_rollout::LoadedGeneration;
use std::{sync::Arc, time::Instant};

/// Number of samples for the propensities of a replayed page.
const SAMPLE_COUNT: usize = 1000;

/// A replayed answer.
pub struct Replay {
    pub record: AnswerRecord,
    /// The first page of the replay.
    pub slots: Vec<ReplayedSlot>,
    /// The first difference from the logged answer; none if they are bit-equal.
    pub difference: Option<String>,
}

pub struct ReplayedSlot {
    pub placed: Placed,
    pub item: String,
    /// None if the logged answer has another item in this slot.
    pub propensity: Option<Propensity>,
}

/// The models of a generation, as one worker owns them.
struct WorkerModels<'a> {
    models: &'a mut Models,
    /// Vectors of the record's bundle rows in the query space, by row.
    vectors: Vec<(u32, Vec<f32>)>,
}

impl ReplayModels for WorkerModels<'_> {
    fn probabilities(&mut self, features: &[f32]) -> Result<Vec<f32>, ReplayError> {
        self.models.probabilities(features).map_err(|error| ReplayError(error.to_string()))
    }

    fn vector(&self, bundle_row: u32) -> Option<&[f32]> {
        let at = self.vectors.binary_search_by_key(&bundle_row, |(row, _)| *row).ok()?;
        Some(&self.vectors[at].1)
    }
}

impl Engine {
    /// Replays the answer of an attribution token from its record, with the models that produced it. They must still be
    /// loaded.
    pub async fn replay(&self, token: &str, deadline: Instant) -> Result<Replay, EngineError> {
        let id = self.tokens.parse_attribution(token).ok_or(EngineError::AttributionToken)?;
        let answers = self.answers.clone();
        let found = tokio::task::spawn_blocking(move || answers.find(id)).await;
        let found = found.map_err(|error| EngineError::Internal(error.to_string()))?.map_err(EngineError::Answers)?;
        let record = found.ok_or(EngineError::AnswerNotFound)?;
        let routes = self.generations.routes();
        let produced_it = |loaded: &&Arc<LoadedGeneration>| {
            let manifest = &loaded.generation.manifest;
            record.generation == manifest.name && record.models == trace::models(manifest)
        };
        let Some(loaded) = routes.loaded().find(produced_it).cloned() else {
            let current = routes.current.name().to_owned();
            return Err(EngineError::GenerationGone { generation: record.generation, current });
        };
        let run = move |worker: &mut usize| Ok(replay(&loaded.generation, &mut loaded.models_of(*worker), record)?);
        self.workers.run(Priority::Batch, deadline, run).await
    }
}

fn replay(generation: &Generation, models: &mut Models, record: AnswerRecord) -> Result<Replay, ReplayError> {
    let vectors = bundle_vectors(generation, &record);
    let replayed = answers::replay(&record, &mut WorkerModels { models, vectors })?;
    let propensities = record.propensities(SAMPLE_COUNT)?;
    let slot = |(at, placed): (usize, &Placed)| ReplayedSlot {
        placed: *placed,
        item: record.items.get(placed.candidate.index()).cloned().unwrap_or_default(),
        propensity: propensities.get(at).filter(|_| record.slots[at].item == placed.candidate.0).copied(),
    };
    let slots = replayed.arranged.placed.iter().take(record.slots.len()).enumerate().map(slot).collect();
    Ok(Replay { slots, difference: replayed.difference, record })
}

/// Returns the vectors of the record's bundle rows in the query space, as the bundle has them.
fn bundle_vectors(generation: &Generation, record: &AnswerRecord) -> Vec<(u32, Vec<f32>)> {
    let mut rows: Vec<u32> = record.vector_rows.iter().filter_map(|row| row.checked_sub(1)).collect();
    rows.sort_unstable();
    rows.dedup();
    let vector = |row: u32| Some((row, generation.bundle_vectors(Row(row))?.query_space().to_vec()));
    rows.into_iter().filter_map(vector).collect()
}
