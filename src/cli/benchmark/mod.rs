//! benchmark
mod ann;
#[cfg(feature = "train")]
mod search;

#[derive(clap::Subcommand)]
pub enum Benchmark {
    /// Nearest vectors: build time, recall against the exact answer, queries per second, and both with filters.
    Ann(ann::AnnArgs),
    /// Product search on judged queries: nDCG@10 and recall@100 of words, vectors and both.
    #[cfg(feature = "train")]
    Search(search::SearchArgs),
}

pub fn run(command: Benchmark) -> anyhow::Result<()> {
    match command {
        Benchmark::Ann(args) => ann::ann(args),
        #[cfg(feature = "train")]
        Benchmark::Search(args) => search::search(args),
    }
}
