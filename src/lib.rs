//! Lodestone: a gRPC ranking engine for online shops. This package is the server and the command line; the engine is in
//! `crates/`.
#![forbid(unsafe_code)]
pub mod audit;
pub mod backup;
pub mod cli;
pub mod server;
