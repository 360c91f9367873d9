//! Frozen slates for later pages.
use lodestone_pipeline::{facets::Facets, request::AnswerInfo, slate::Slate};
use moka::{policy::EvictionPolicy, sync::Cache};
use std::{sync::Arc, time::Duration};

/// Frozen answers by their ids. Each generation has its own cache, because reasons come from its tables and vectors.
pub type SlateCache = Cache<[u8; 16], Arc<FrozenAnswer>>;

/// Limits of a generation's slate cache.
#[derive(Debug, Clone, Copy)]
pub struct SlateCacheConfig {
    /// Greatest size of the kept answers in bytes; those that were not used for the longest time are removed beyond it.
    pub bytes_max: u64,
    pub time_to_live: Duration,
}

impl Default for SlateCacheConfig {
    fn default() -> Self {
        Self { bytes_max: 512 << 20, time_to_live: Duration::from_secs(30 * 60) }
    }
}

impl SlateCacheConfig {
    pub fn build(&self) -> SlateCache {
        Cache::builder()
            .max_capacity(self.bytes_max)
            .weigher(|_, answer: &Arc<FrozenAnswer>| u32::try_from(answer.bytes()).unwrap_or(u32::MAX))
            // The page that follows is requested soon or never; the default policy refuses new entries.
            .eviction_policy(EvictionPolicy::lru())
            .time_to_live(self.time_to_live)
            .build()
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

impl FrozenAnswer {
    /// The memory of the answer and its entry of the cache in bytes, approximately.
    fn bytes(&self) -> usize {
        /// The entry of the cache with its lists and its timer.
        const ENTRY_BYTES: usize = 256;
        ENTRY_BYTES
            + size_of::<Self>()
            + self.slate.bytes()
            + self.corrected_query.len()
            + self.facets.bytes()
            + self.info.bytes()
    }
}
