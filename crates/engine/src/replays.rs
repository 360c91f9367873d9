//! Answers that are made once more, from their records.
use super::engine::Engine;
use crate::EngineError;
use lodestone_core::ids::Row;
use lodestone_pipeline::{
    answers::{self, AnswerRecord, Generation, Propensity, ReplayError},
    policy::Placed,
};
use lodestone_pipeline::{generation::Generation as Answering, models::Models, trace};
use lodestone_rollout::LoadedGeneration;
use std::{sync::Arc, time::Instant};

/// Samples for the probabilities of a replayed page.
const SAMPLES: usize = 1000;

/// An answer made once more.
pub struct Replay {
    pub record: AnswerRecord,
    /// The first page, as it came out now.
    pub slots: Vec<ReplayedSlot>,
    /// What differs first from what was shown; none: nothing, to the bit.
    pub difference: Option<String>,
}

pub struct ReplayedSlot {
    pub placed: Placed,
    pub item: String,
    /// None where the replay shows another item here than the answer did.
    pub propensity: Option<Propensity>,
}

/// A generation as a worker sees it.
struct Loaded<'a> {
    models: &'a mut Models,
    /// The bundle's vectors in the query's space, of the rows that are asked for.
    vectors: Vec<(u32, Vec<f32>)>,
}

impl Generation for Loaded<'_> {
    fn probabilities(&mut self, features: &[f32]) -> Result<Vec<f32>, ReplayError> {
        self.models.probabilities(features).map_err(|error| ReplayError(error.to_string()))
    }

    fn vector(&self, bundle_row: u32) -> Option<&[f32]> {
        let at = self.vectors.binary_search_by_key(&bundle_row, |(row, _)| *row).ok()?;
        Some(&self.vectors[at].1)
    }
}

impl Engine {
    /// Makes the answer of a token once more: from its record, with the models that made it, as long as they are loaded.
    pub async fn replay(&self, token: &str, deadline: Instant) -> Result<Replay, EngineError> {
        let id = self.tokens.parse_attribution(token).ok_or(EngineError::AttributionToken)?;
        let answers = self.answers.clone();
        let found = tokio::task::spawn_blocking(move || answers.find(id)).await;
        let found = found.map_err(|error| EngineError::Internal(error.to_string()))?.map_err(EngineError::Answers)?;
        let record = found.ok_or(EngineError::AnswerNotFound)?;
        let routes = self.generations.routes();
        let made_it = |loaded: &&Arc<LoadedGeneration>| {
            let manifest = &loaded.generation.manifest;
            record.generation == manifest.name && record.models == trace::models(manifest)
        };
        let Some(loaded) = routes.loaded().find(made_it).cloned() else {
            let current = routes.current.name().to_owned();
            return Err(EngineError::GenerationGone { generation: record.generation, current });
        };
        let make = move |worker: &mut usize| Ok(replay(&loaded.generation, &mut loaded.models_of(*worker), record)?);
        self.workers.run(deadline, make).await
    }
}

fn replay(generation: &Answering, models: &mut Models, record: AnswerRecord) -> Result<Replay, ReplayError> {
    let vectors = bundle_vectors(generation, &record);
    let replayed = answers::replay(&record, &mut Loaded { models, vectors })?;
    let propensities = record.propensities(SAMPLES)?;
    let slot = |(at, placed): (usize, &Placed)| ReplayedSlot {
        placed: *placed,
        item: record.items.get(placed.candidate.index()).cloned().unwrap_or_default(),
        propensity: propensities.get(at).filter(|_| record.slots[at].item == placed.candidate.0).copied(),
    };
    let slots = replayed.arranged.placed.iter().take(record.slots.len()).enumerate().map(slot).collect();
    Ok(Replay { slots, difference: replayed.difference, record })
}

/// Rows outlive their items, and the bundle's rows are the first ones.
fn bundle_vectors(generation: &Answering, record: &AnswerRecord) -> Vec<(u32, Vec<f32>)> {
    let catalog = generation.catalog.load();
    let mut rows: Vec<u32> = record.vector_rows.iter().filter_map(|row| row.checked_sub(1)).collect();
    rows.retain(|row| (*row as usize) < generation.bundle_row_count);
    rows.sort_unstable();
    rows.dedup();
    rows.into_iter().map(|row| (row, catalog.get(Row(row)).vectors.query_space().to_vec())).collect()
}
