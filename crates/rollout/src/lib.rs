//! Loaded generations: which of them answers whom, activation, canary, shadow, health, rollback.
#![deny(unsafe_code)]
mod canary;
mod control;
mod frozen_slates;
mod generations;
mod health;
mod load_threads;
mod loaded;
mod routes;
mod scheduler;
mod shadow;
mod store;

pub use canary::CanaryReport;
pub use control::{
    BUNDLE_COPIES, BundleSource, BundleState, BundleStatus, Parts, Rollout, RolloutConfig, RolloutError, first_bundle,
};
pub use frozen_slates::{FrozenAnswer, Slates, SlatesConfig};
pub use generations::{Generations, ServedAnswer};
pub use health::{HealthBounds, HealthSummary};
pub use load_threads::LoadThreads;
pub use loaded::{Embedded, LoadError, LoadedGeneration, Loader};
pub use routes::{Canary, Routes};
pub use shadow::{ShadowReport, start_shadow};
pub use store::{Pointer, Store, StoreError};
