//! Lodestone: a gRPC ranking engine for online shops.
//!
//! The rooms, in the order in which a request meets them:
//!
//! ```text
//! server    the only room that names tonic and the generated types
//! engine    the story of a request: search, recommend, rank, suggest
//! catalog   items, their rows and keys, the filter language
//! people    what each person did, bounded: the fold of the events
//! events    event types, the durable log, deduplication, popularity
//! text      normal form, words, hashed terms
//! retrieval stage one: graph, words, neighbours; fusion
//! features  numbers about a candidate; the same code in training and serving
//! ranking   stage two; the only room that names ONNX Runtime
//! policy    boosts, diversity, interleaving, pins, exploration: pure functions
//! serving   named configurations, and the experiments that choose among them
//! answers   the log of answers: replay, propensities, export
//! bundle    a trained model on disk, verified
//! telemetry metrics for Prometheus
//! dataset   canonical items and events as Parquet
//! import    a shop's own files into canonical ones      (feature `train`)
//! training  encoders, ranker, export to ONNX, evaluation (feature `train`)
//! off_policy what another policy would have earned, from a log (feature `train`)
//! simulation made shoppers with known tastes (feature `train`)
//! experiments who is in which arm, and what the arms did
//! plots     plots and the style of the pages
//! statistics tails and quantiles of a few distributions
//! ```
pub mod answers;
pub mod bits;
pub mod bundle;
pub mod catalog;
pub mod cli;
pub mod dataset;
pub mod engine;
pub mod events;
pub mod experiments;
pub mod features;
pub mod ids;
#[cfg(feature = "train")]
pub mod import;
#[cfg(feature = "train")]
pub mod off_policy;
pub mod people;
pub mod plots;
pub mod policy;
pub mod ranking;
pub mod retrieval;
pub mod server;
pub mod serving;
#[cfg(feature = "train")]
pub mod simulation;
pub mod statistics;
pub mod telemetry;
pub mod text;
#[cfg(feature = "train")]
pub mod training;
pub mod units;
