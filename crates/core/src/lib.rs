//! Types and pure functions that all crates share: ids, units, currencies, bit sets, text, statistics, and the faults that tests
//! inject. Apart from [`units::UnixMillis::now`], nothing here does I/O or reads the clock or the environment.
#![forbid(unsafe_code)]
pub mod bits;
pub mod currency;
pub mod error_chain;
pub mod faults;
pub mod format;
pub mod ids;
pub mod mask;
pub mod statistics;
pub mod text;
pub mod toml_error;
pub mod units;
pub mod viewer;
