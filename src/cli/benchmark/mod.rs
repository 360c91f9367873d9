//! benchmark
mod ann;
mod events;
mod models;
mod off_policy;
mod search;
mod sequences;

#[derive(clap::Subcommand)]
pub(super) enum Benchmark {
    /// Nearest vectors: build time, recall against the exact answer, queries per second, and both with filters.
    Ann(ann::AnnArgs),
    /// A bundle's models on one thread: milliseconds of each, by the size of its input.
    Models(models::ModelsArgs),
    /// The event log: written, folded, checkpointed, started from.
    Events(events::EventsArgs),
    /// Product search on judged queries: nDCG@10 and recall@100 of words, vectors and both.
    Search(search::SearchArgs),
    /// Everyone's last item by those before it: HR and NDCG at 5, 10 and 20 of each source and of the ranking.
    NextItem(sequences::NextItemArgs),
    /// The next click of anonymous sessions: P@20 and MRR@20.
    Sessions(sequences::SessionsArgs),
    /// Everyone's next basket: recall and NDCG at 10 and 20.
    NextBasket(sequences::NextBasketArgs),
    /// Milliseconds of one step of the sequence encoder's training.
    EncoderStep(sequences::EncoderStepArgs),
    /// What one policy earns, from the log of another; exit code 1 and the reason where the log cannot tell.
    OffPolicy(off_policy::OffPolicyArgs),
}

/// Gives the exit code.
pub(super) fn run(command: Benchmark) -> anyhow::Result<i32> {
    let done = match command {
        Benchmark::Ann(args) => ann::ann(args),
        Benchmark::Models(args) => models::models(args),
        Benchmark::Events(args) => events::events(args),
        Benchmark::Search(args) => search::search(args),
        Benchmark::NextItem(args) => sequences::next_item(args),
        Benchmark::Sessions(args) => sequences::sessions(args),
        Benchmark::NextBasket(args) => sequences::next_basket(args),
        Benchmark::EncoderStep(args) => sequences::encoder_step(args),
        Benchmark::OffPolicy(args) => return off_policy::off_policy(args),
    };
    done.map(|()| 0)
}
