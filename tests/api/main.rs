//! Integration tests of the program. They are modules of one binary because every binary links the whole program;
//! `cargo test --test api crash::` runs one module. `tests/memory.rs` is a binary of its own because it counts
//! allocations.
mod attributes;
mod availability;
mod backup;
mod browse;
mod catalogs;
mod checkpoints;
mod completions;
mod connections;
mod context;
mod crash;
mod discovery;
mod facets;
mod filter_messages;
mod identity;
mod incentive_crash;
mod incentives;
mod item_import;
mod item_prices;
mod log;
mod loyalty;
mod models;
mod objectives;
mod observability;
mod overload;
mod pages;
mod places;
mod popularity;
mod power_loss;
mod rank;
mod read_your_events;
mod relaxed;
mod rules;
mod security;
mod serving_configs;
mod state;
mod support;
mod transport;
mod updates;
mod variants;
mod writes;

/// The allocator of the program, because `models` measures resident memory.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
