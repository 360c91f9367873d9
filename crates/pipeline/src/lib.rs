//! The request pipeline: from a request and a generation to an answer.
//!
//! Useful for: everything that decides an answer. Training and evaluation replay events through it. Not useful for: the
//! wire (`server`), loading and choosing generations (`lodestone-rollout`), the log (`lodestone-events`).
#![forbid(unsafe_code)]
pub mod answers;
mod attributes;
pub mod bundle;
pub mod context;
pub mod facets;
pub mod features;
pub mod fusion;
pub mod generation;
pub mod golden;
pub mod models;
pub mod policy;
pub mod popularity;
mod products;
pub mod ranking;
pub mod request;
pub mod retrieve;
pub mod rules;
pub mod run;
pub mod saved_vectors;
pub mod serving;
pub mod slate;
pub mod source;
pub mod tail;
mod text_indexes;
pub mod trace;

pub use attributes::{AttributePurpose, AttributeUse};
pub use context::{RankedCandidates, RequestContext};
pub use facets::*;
pub use fusion::{Candidate, Candidates, Fusion};
pub use generation::{Generation, GenerationError};
pub use golden::{GoldenError, golden_requests};
pub use models::Models;
pub use request::*;
pub use text_indexes::TextIndexes;
