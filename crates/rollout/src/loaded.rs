//! Generations with their models, and how bundles become generations.
use crate::{
    frozen_slates::{Slates, SlatesConfig},
    health::HealthWindow,
    load_threads::LoadThreads,
};
use lodestone_catalog::ItemVectors;
use lodestone_index::{Lexical, Synonyms};
use lodestone_pipeline::{
    bundle::{Bundle, BundleError},
    generation::{EmbeddedChange, Generation, GenerationError},
    golden::{self, GoldenError},
    models::{Models, embed_items},
    ranking::{Device, RankingError, Runtime},
};
use lodestone_state::{ItemChange, LiveState};
use parking_lot::{Mutex, MutexGuard};
use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// Rows that the graphs make room for beyond the bundle's items.
const SPARE_ROWS: usize = 100_000;
/// The number of a load of a bundle, from 1. A bundle that is loaded twice has two.
pub(crate) type LoadNumber = u64;

/// Vectors of one written item in the spaces of several generations.
pub type Embedded = Vec<(LoadNumber, ItemVectors)>;

/// A generation with the sessions that its models run in: they come and go with it.
pub struct LoadedGeneration {
    pub number: LoadNumber,
    pub generation: Generation,
    /// One for each worker, which alone takes it, so that it never waits; the last is for background work.
    models: Box<[Mutex<Models>]>,
    /// How its answers go.
    pub window: HealthWindow,
    /// Answers of its that have later pages.
    pub slates: Slates,
}

impl LoadedGeneration {
    /// The heads of its ranking model.
    pub fn head_names(&self) -> impl Iterator<Item = &str> + Clone {
        self.generation.manifest.heads.iter().map(|head| head.name.as_str())
    }

    /// The models of one worker.
    pub fn models_of(&self, worker: usize) -> MutexGuard<'_, Models> {
        self.models[worker].lock()
    }

    /// The models of every worker, one after the other, and those for background work.
    pub fn all_models(&self) -> impl Iterator<Item = MutexGuard<'_, Models>> {
        self.models.iter().map(Mutex::lock)
    }

    /// The models for background work.
    pub fn spare_models(&self) -> MutexGuard<'_, Models> {
        self.models[self.models.len() - 1].lock()
    }

    pub fn name(&self) -> &str {
        self.generation.name()
    }
}

/// Makes generations of bundles.
pub struct Loader {
    pub runtime: Runtime,
    pub device: Device,
    pub worker_count: usize,
    pub synonyms: Synonyms,
    pub state: Arc<LiveState>,
    /// How long the course of answers is remembered.
    pub window: Duration,
    pub slates: SlatesConfig,
    pub loads: AtomicU64,
}

/// Why a bundle is not loaded.
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
    /// Verifies a bundle, makes a generation of it on these threads, and asks it the bundle's golden requests. It then has
    /// the catalogue's changes up to a moment in the past.
    pub fn load(&self, bundle: &Path, threads: &LoadThreads) -> Result<LoadedGeneration, LoadError> {
        self.load_opened(threads.install(|| Bundle::open(bundle))?, threads)
    }

    /// The same of a bundle that was verified.
    pub fn load_opened(&self, bundle: Bundle, threads: &LoadThreads) -> Result<LoadedGeneration, LoadError> {
        let models = threads.install(|| {
            let opened =
                (0..=self.worker_count).map(|_| Models::open(&self.runtime, &bundle, self.device).map(Mutex::new));
            opened.collect::<Result<Box<[_]>, RankingError>>().map_err(GenerationError::from)
        })?;
        let golden = bundle.golden.clone();
        let generation = threads.install(|| {
            let mut lexical = Lexical::new()?;
            lexical.set_synonyms(self.synonyms.clone());
            let generation = Generation::new(bundle, self.state.clone(), lexical, SPARE_ROWS)?;
            // Whoever writes words from now on shall not wait as these threads do.
            generation.lexical.end_writing()?;
            Ok::<_, GenerationError>(generation)
        })?;
        let number = 1 + self.loads.fetch_add(1, Ordering::Relaxed);
        let (window, slates) = (HealthWindow::new(self.window), self.slates.begin());
        let loaded = LoadedGeneration { number, generation, models, window, slates };
        threads.install(|| -> Result<(), LoadError> {
            if let Some(golden) = golden {
                golden::self_test(&loaded.generation, &mut loaded.spare_models(), &golden)?;
            }
            loaded.generation.catch_up(&mut loaded.spare_models())?;
            Ok(loaded.generation.lexical.end_writing().map_err(GenerationError::from)?)
        })?;
        Ok(loaded)
    }
}

/// The changes with the vectors of one generation; those that were not made beside the write are made now.
pub(crate) fn changes_for(
    loaded: &LoadedGeneration,
    changes: &[(ItemChange, Embedded)],
) -> Result<Vec<EmbeddedChange>, RankingError> {
    let of_this = |embedded: &Embedded| {
        embedded.iter().find(|(number, _)| *number == loaded.number).map(|(_, vectors)| vectors.clone())
    };
    changes
        .iter()
        .map(|(change, embedded)| {
            let vectors = match (&change.1, of_this(embedded)) {
                (Some(item), None) => {
                    embed_items(loaded.generation.text_projection(), &mut loaded.spare_models(), &[item])?.pop()
                }
                (_, vectors) => vectors,
            };
            Ok((change.clone(), vectors))
        })
        .collect()
}
