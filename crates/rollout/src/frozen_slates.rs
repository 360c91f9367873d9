//! Slates as they were answered first, for their later pages.
use lodestone_pipeline::{facets::Facets, request::AnswerInfo, slate::Slate};
use moka::sync::Cache;
use std::{sync::Arc, time::Duration};

/// By the answer's id. Each generation has its own: the rows that they name are its, and they go when it goes.
pub type Slates = Cache<[u8; 16], Arc<FrozenAnswer>>;

/// How many slates a generation keeps, and how long.
#[derive(Debug, Clone, Copy)]
pub struct SlatesConfig {
    pub count_max: u64,
    pub time_to_live: Duration,
}

impl Default for SlatesConfig {
    fn default() -> Self {
        Self { count_max: 100_000, time_to_live: Duration::from_secs(30 * 60) }
    }
}

impl SlatesConfig {
    pub fn begin(&self) -> Slates {
        Cache::builder().max_capacity(self.count_max).time_to_live(self.time_to_live).build()
    }
}

/// An answer with all of its pages.
pub struct FrozenAnswer {
    /// Of the request, which a later page must have too.
    pub fingerprint: u64,
    pub slate: Slate,
    pub corrected_query: String,
    pub facets: Arc<Facets>,
    pub info: AnswerInfo,
}
