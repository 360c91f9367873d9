//! benchmark
mod ann;
mod matrix;

#[derive(clap::Subcommand)]
pub enum Benchmark {
    /// Nearest vectors: build time, recall against the exact answer, queries per second, and both with filters.
    Ann(ann::AnnArgs),
}

pub fn run(command: Benchmark) -> anyhow::Result<()> {
    match command {
        Benchmark::Ann(args) => ann::ann(args),
    }
}
