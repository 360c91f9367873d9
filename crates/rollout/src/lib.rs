//! Rollout of bundles: loading, routing of users to generations, activation, canary, shadow, health bounds, rollback.
#![deny(unsafe_code)]
mod canary;
mod control;
mod generations;
mod health;
mod load_threads;
mod loaded;
mod routes;
mod scheduler;
mod shadow;
mod slate_cache;
mod store;

pub use canary::CanaryReport;
pub use control::{
    BUNDLE_COPIES, BundleSource, BundleState, BundleStatus, Rollout, RolloutConfig, RolloutError, RolloutInput,
    first_bundle,
};
pub use generations::{Generations, ServedAnswer};
pub use health::{HealthBounds, HealthSummary};
pub use load_threads::LoadThreads;
pub use loaded::{Embedded, LoadError, LoadedGeneration, Loader};
pub use routes::{Canary, Routes};
pub use scheduler::be_nice;
pub use shadow::{ShadowReport, start_shadow};
pub use slate_cache::{FrozenAnswer, SlateCache, SlateCacheConfig};
pub use store::{Pointer, Store, StoreError};
