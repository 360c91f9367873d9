//! The story of a request: search, recommend, rank, suggest, write.
//!
//! Useful for: everything that an answer decides. Not useful for: the wire (`server`) and the disk (`events`, `bundle`).
//! Cost of an answer: two runs of ONNX Runtime and a walk of the graph, on one thread.
mod background;
mod catalogue;
pub mod checkpoints;
#[allow(clippy::module_inception)]
mod engine;
mod facets;
mod fusion;
mod generation;
mod generations;
mod golden;
mod life;
mod live;
mod models;
mod open;
mod replays;
mod request;
pub mod retrieve;
mod shadow;
mod slate;
mod slates;
mod start;
mod stories;
mod story;
mod token;
mod trace;
mod trial;
mod window;
mod workers;

pub use engine::{Engine, EngineConfig};
pub use facets::*;
pub use fusion::{Candidate, Candidates, Fusion};
pub use generation::{Generation, GenerationError};
pub use golden::{GoldenError, golden_requests};
pub use life::{BundleState, BundleStatus, Life, LifeConfig, LifeError, Source};
pub use live::Live;
pub use models::{ENCODED_EVENTS_MAX, Models, embed_items};
pub use open::{ANSWERS, OpenError, Opening, open};
pub use replays::{Replay, ReplayedSlot};
pub use request::*;
pub use shadow::ShadowReport;
pub use slates::SlatesConfig;
pub use start::{Folded, fold, live_of};
pub use story::{Ranked, Story};
pub use token::{PageToken, TokenKey};
pub use trial::TrialReport;
pub use window::{Bounds, Summary};
