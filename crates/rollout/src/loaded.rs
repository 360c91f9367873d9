//! Generations with their models, and the loader of bundles.
use crate::{
    health::HealthWindow,
    load_threads::LoadThreads,
    slate_cache::{SlateCache, SlateCacheConfig},
};
use ahash::AHashMap;
use lodestone_catalog::{ItemChange, ItemVectors};
use lodestone_core::ids::ItemId;
use lodestone_index::Languages;
use lodestone_pipeline::{
    bundle::{Bundle, BundleError},
    generation::{ChangedItem, EmbeddedChange, Generation, GenerationError, text_hash},
    golden::{self, GoldenError},
    models::Models,
    ranking::{Device, RankingError, Runtime},
    saved_vectors::SavedVectors,
};
use lodestone_rules::Synonyms;
use lodestone_state::LiveState;
use parking_lot::{Mutex, MutexGuard};
use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// Number of rows in the indexes for items that are not in the bundle.
const SPARE_ROWS: usize = 100_000;
/// The number of a load of a bundle, from 1. Each load of the same bundle has its own number.
pub(crate) type LoadNumber = u64;

/// Vectors of one written item.
#[derive(Debug, Clone)]
pub struct Embedded {
    /// [`text_hash`] of the item that was encoded.
    pub text_hash: u64,
    /// By the generation of their space.
    pub vectors: Vec<(LoadNumber, ItemVectors)>,
}

/// A generation with the inference sessions of its models.
pub struct LoadedGeneration {
    pub number: LoadNumber,
    pub generation: Generation,
    /// One entry for each worker, which writes lock only if the worker is idle or all workers are busy; the last is
    /// for background work.
    models: Box<[Mutex<Models>]>,
    /// Recent outcomes of its answers.
    pub window: HealthWindow,
    /// Its answers that have further pages.
    pub slates: SlateCache,
}

impl LoadedGeneration {
    /// Returns the names of the ranking model's heads.
    pub fn head_names(&self) -> impl Iterator<Item = &str> + Clone {
        self.generation.manifest.heads.iter().map(|head| head.name.as_str())
    }

    /// Locks the models of one worker.
    pub fn models_of(&self, worker: usize) -> MutexGuard<'_, Models> {
        self.models[worker].lock()
    }

    /// Locks the models of every worker in turn, and those for background work.
    pub fn all_models(&self) -> impl Iterator<Item = MutexGuard<'_, Models>> {
        self.models.iter().map(Mutex::lock)
    }

    /// Locks a worker's models for a write. A write must not wait for the models of background work, because threads of
    /// low priority hold those during a run of the models.
    pub fn writer_models(&self) -> MutexGuard<'_, Models> {
        let workers = &self.models[..self.models.len() - 1];
        workers.iter().find_map(Mutex::try_lock).unwrap_or_else(|| workers[0].lock())
    }

    /// Locks the models for background work: shadow traffic and loading. Only threads that no write waits for may hold
    /// them.
    pub fn spare_models(&self) -> MutexGuard<'_, Models> {
        self.models[self.models.len() - 1].lock()
    }

    pub fn name(&self) -> &str {
        self.generation.name()
    }

    /// Saves the vectors of written items in a file, for the next startup. A failure is only logged, because its only
    /// effect is a slower startup.
    pub fn save_vectors(&self, path: &Path) {
        match self.generation.save_vectors(&self.spare_models(), path) {
            Ok(0) => {}
            Ok(vectors) => tracing::info!(vectors, "saved the vectors of written items"),
            Err(error) => {
                tracing::warn!(%error, "cannot save the vectors of written items; the next startup takes longer")
            }
        }
    }
}

/// Loads bundles as generations.
pub struct Loader {
    pub runtime: Runtime,
    pub device: Device,
    pub worker_count: usize,
    pub synonyms: Synonyms,
    pub languages: Languages,
    pub state: Arc<LiveState>,
    /// Length of the health window.
    pub window: Duration,
    pub slates: SlateCacheConfig,
    pub loads: AtomicU64,
}

/// The reason why a bundle cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error(transparent)]
    Bundle(#[from] BundleError),
    #[error(transparent)]
    Generation(#[from] GenerationError),
    #[error(transparent)]
    Golden(#[from] GoldenError),
}

impl Loader {
    /// Verifies a bundle, loads it on these threads, and runs the self-test with the bundle's golden requests. The
    /// generation includes the catalogue changes up to a recent moment.
    pub fn load(&self, bundle: &Path, threads: &LoadThreads) -> Result<LoadedGeneration, LoadError> {
        let bundle = threads.install(|| Bundle::open(bundle))?;
        self.load_opened(bundle, threads, &SavedVectors::default())
    }

    /// Loads a bundle that is already verified. Items whose texts have a saved vector are not encoded.
    pub fn load_opened(
        &self,
        bundle: Bundle,
        threads: &LoadThreads,
        saved: &SavedVectors,
    ) -> Result<LoadedGeneration, LoadError> {
        let begun = Instant::now();
        let models = threads.install(|| {
            let opened =
                (0..=self.worker_count).map(|_| Models::open(&self.runtime, &bundle, self.device).map(Mutex::new));
            opened.collect::<Result<Box<[_]>, RankingError>>().map_err(GenerationError::from)
        })?;
        let models_ms = begun.elapsed().as_millis() as u64;
        let golden = bundle.golden.clone();
        let (languages, synonyms) = (self.languages.clone(), self.synonyms.clone());
        let generation =
            threads.install(|| Generation::new(bundle, self.state.clone(), languages, synonyms, SPARE_ROWS))?;
        let indexes_ms = begun.elapsed().as_millis() as u64 - models_ms;
        let number = 1 + self.loads.fetch_add(1, Ordering::Relaxed);
        let (window, slates) = (HealthWindow::new(self.window), self.slates.build());
        let loaded = LoadedGeneration { number, generation, models, window, slates };
        threads.install(|| -> Result<(), LoadError> {
            let begun = Instant::now();
            if let Some(golden) = golden {
                golden::self_test(&loaded.generation, &mut loaded.spare_models(), &golden)?;
            }
            let self_test_ms = begun.elapsed().as_millis() as u64;
            loaded.generation.load_changes(&mut loaded.spare_models(), saved)?;
            // Later writes create their own indexing threads, which do not inherit the low priority of these threads.
            loaded.generation.lexical.end_writing().map_err(GenerationError::from)?;
            let changes_ms = begun.elapsed().as_millis() as u64 - self_test_ms;
            let (bundle, items) = (loaded.name(), loaded.generation.catalog.load().item_count());
            tracing::info!(bundle, items, models_ms, indexes_ms, self_test_ms, changes_ms, "loaded the bundle");
            Ok(())
        })?;
        Ok(loaded)
    }
}

/// Returns changed items with their vectors in one generation: those that it knows of equal texts, otherwise those that
/// were computed with the write. Computes them if the generation began to answer in between, or if the item has other
/// texts by another write.
pub(crate) fn with_vectors(
    loaded: &LoadedGeneration,
    items: Vec<ChangedItem>,
    embedded: &AHashMap<&ItemId, &Embedded>,
) -> Result<Vec<EmbeddedChange>, RankingError> {
    let vectors = |(id, item): &ChangedItem| -> Result<Option<ItemVectors>, RankingError> {
        let Some(item) = item else { return Ok(None) };
        if let Some(known) = loaded.generation.known_vectors(item) {
            return Ok(Some(known));
        }
        let sent = embedded.get(id).filter(|sent| sent.text_hash == text_hash(item));
        let of_this = sent.and_then(|sent| sent.vectors.iter().find(|(number, _)| *number == loaded.number));
        match of_this {
            Some((_, vectors)) => Ok(Some(vectors.clone())),
            None => Ok(loaded.generation.embed(&mut loaded.writer_models(), &[item])?.pop()),
        }
    };
    items.into_iter().map(|item| vectors(&item).map(|vectors| (item, vectors))).collect()
}

/// A committed change of the catalogue.
pub(crate) struct CatalogueChange {
    /// Its position in the log.
    pub(crate) position: u64,
    pub(crate) change: ItemChange,
    pub(crate) embedded: Option<Embedded>,
}
