//! Types and pure functions that every crate shares: ids, units, text, statistics. No I/O, no clock, no environment.
#![forbid(unsafe_code)]
pub mod bits;
pub mod ids;
pub mod statistics;
pub mod text;
pub mod units;
