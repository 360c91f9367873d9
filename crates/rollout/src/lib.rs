//! Loaded generations: which of them answers whom, activation, canary, shadow, health, rollback.
#![deny(unsafe_code)]
mod canary;
mod control;
mod frozen_slates;
mod health;
mod load_threads;
mod routes;
mod shadow;
pub mod store;

pub use canary::*;
pub use control::*;
pub use frozen_slates::*;
pub use health::*;
pub use load_threads::*;
pub use routes::*;
pub use shadow::*;
pub use store::{Pointer, Store, StoreError};
