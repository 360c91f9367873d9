//! Frozen slates for later pages.
use lodestone_pipeline::{facets::Facets, request::AnswerInfo, slate::Slate};
use moka::sync::Cache;
use std::{sync::Arc, time::Duration};

/// Frozen answers by their ids. Each generation has its own cache, because reasons come from its tables and vectors.
pub type SlateCache = Cache<[u8; 16], Arc<FrozenAnswer>>;

/// Limits of a generation's slate cache.
#[derive(Debug, Clone, Copy)]
pub struct SlateCacheConfig {
    pub count_max: u64,
    pub time_to_live: Duration,
}

impl Default for SlateCacheConfig {
    fn default() -> Self {
        Self { count_max: 100_000, time_to_live: Duration::from_secs(30 * 60) }
    }
}

impl SlateCacheConfig {
    pub fn build(&self) -> SlateCache {
        Cache::builder().max_capacity(self.count_max).time_to_live(self.time_to_live).build()
    }
}

/// An answer with all of its pages.
pub struct FrozenAnswer {
    /// Fingerprint of the request, which requests of later pages must match.
    pub fingerprint: u64,
    pub slate: Slate,
    /// See [`lodestone_pipeline::Answer::total_size`].
    pub total_size: usize,
    pub corrected_query: String,
    pub facets: Arc<Facets>,
    pub info: AnswerInfo,
}
