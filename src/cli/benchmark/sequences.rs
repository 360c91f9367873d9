//! `lodestone benchmark next-item`, `sessions`, `next-basket`, `encoder-step`
use crate::cli::{
    LibraryArgs,
    exit::Exit,
    numbers::within,
    output::{OutputArgs, write_file},
    paths::new_file,
    progress::StageBars,
    threads::ThreadsArgs,
    train::UserEncoderArgs,
};
use anyhow::ensure;
use lodestone_pipeline::ranking::Runtime;
use lodestone_training::{
    Progress, TrainError,
    benchmark::{self, BasketFiles, NextItemFiles, RunOptions, SessionFiles},
    sequence::{EncoderConfig, Shape, Similarity, fit::time_steps},
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::{
    fmt::{self, Display},
    path::PathBuf,
};

/// Predicts the last item of each user (leave-one-out): HR and NDCG at 5, 10 and 20 of each source and of the ranking.
///
/// The lines become the events of a shop, the code of `train` makes a bundle of them, and the pipeline of requests
/// answers a Recommend FOR_YOU for each user, without the items of the history. The last item of each line is the test
/// target, the one before it the validation target. Models learn from the items before both; the validation targets
/// control early stopping of the encoder and are the labels of the ranking model. Metrics are also printed for the
/// users whose last two items descend in item order: in files that sort the items of a day (Amazon's do), ascending
/// targets are easier than in reality. Settings follow from the size of the data.
#[derive(clap::Args)]
#[command(after_help = "\
Example:
  lodestone benchmark next-item --sequences beauty.txt --items items.tsv --seeds 3")]
pub(crate) struct NextItemArgs {
    /// A line per user: user and items, oldest first, separated by spaces; plain, .gz or .zst.
    #[arg(long, value_name = "FILE")]
    sequences: PathBuf,
    /// .tsv with a header: item, and optionally asin, title, phrase, keywords, attributes.
    #[arg(long, value_name = "FILE")]
    items: PathBuf,
    /// .tsv of user and cluster, for a cluster bootstrap: users of one cluster, such as accounts of one household, are
    /// resampled together for the intervals. Default: every user is a cluster.
    #[arg(long, value_name = "FILE")]
    clusters: Option<PathBuf>,
    #[command(flatten)]
    trials: TrialArgs,
}

/// Predicts the next click of anonymous sessions: P@20 (equal to HR@20) and MRR@20 of each source and of the ranking.
///
/// Sessions become the visitors of a shop, as with `next-item`; a Recommend FOR_YOU contains the clicks before the
/// target. The latest sessions of the training file control early stopping of the encoder and are the labels of the
/// ranking model. Items of the session may repeat. Settings follow from the size of the data.
#[derive(clap::Args)]
pub(crate) struct SessionsArgs {
    /// Sessions in order of time, one per line, items separated by spaces; or .tsv with SessionId, ItemId, Time.
    /// Plain, .gz or .zst.
    #[arg(long, value_name = "FILE")]
    train: PathBuf,
    /// Lines of the previous items, a tab, and the next item; or .tsv with SessionId, ItemId, Time.
    #[arg(long, value_name = "FILE")]
    test: PathBuf,
    #[command(flatten)]
    trials: TrialArgs,
}

/// Predicts the next basket of each user: recall and NDCG at 10 and 20 and the share of users with a hit, of each
/// source and of the ranking.
///
/// Baskets become the purchases of a shop, as with `next-item`. The last known basket of each user controls early
/// stopping of the encoder and is the label of the ranking model. Items bought before may be recommended again.
#[derive(clap::Args)]
pub(crate) struct NextBasketArgs {
    /// Lines of a user, a tab, and baskets, oldest first, separated by semicolons; items separated by spaces. Plain,
    /// .gz, .zst.
    #[arg(long, value_name = "FILE")]
    history: PathBuf,
    /// Lines of a user, a tab, and the items of the next basket.
    #[arg(long, value_name = "FILE")]
    future: PathBuf,
    #[command(flatten)]
    trials: TrialArgs,
}

/// Measures a training step of the sequence encoder on synthetic histories.
///
/// A step is forward pass, softmax, backward pass and Adam for one batch. `make bench-train` compares it with PyTorch
/// on the same histories, which --save writes.
#[derive(clap::Args)]
pub(crate) struct EncoderStepArgs {
    /// Number of items.
    #[arg(long, value_name = "N", value_parser = within(2..=10_000_000), default_value_t = 12_101)]
    items: usize,
    /// Histories per batch.
    #[arg(long, value_name = "N", value_parser = within(1..=4096), default_value_t = 128)]
    batch: usize,
    /// Greatest number of items per history. One more is its last target.
    #[arg(long, value_name = "N", value_parser = within(1..=1000), default_value_t = 50)]
    length: usize,
    /// Mean of exponentially distributed history lengths. Default: every history has the greatest length.
    #[arg(long, value_name = "N")]
    mean_length: Option<f64>,
    /// Dimensions of the encoder.
    #[arg(long, value_name = "N", value_parser = within(1..=1024), default_value_t = 64)]
    width: usize,
    /// Sampled softmax over the items of the batch and this many negatives. Default: softmax over all items.
    #[arg(long, value_name = "N", value_parser = within(1..=100_000))]
    negatives: Option<usize>,
    /// Measured steps.
    #[arg(long, value_name = "N", value_parser = within(1..=1000), default_value_t = 20)]
    steps: usize,
    #[command(flatten)]
    threads: ThreadsArgs,
    /// Also writes the histories for other programs, one per line.
    #[arg(long, value_name = "FILE", value_parser = new_file)]
    save: Option<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(serde::Serialize)]
struct StepReport {
    targets: usize,
    threads: usize,
    milliseconds_best: f64,
    milliseconds_median: f64,
}

impl Display for StepReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} targets, {} threads: {:.2} ms per step (median), {:.2} ms (best)",
            self.targets, self.threads, self.milliseconds_median, self.milliseconds_best
        )
    }
}

pub(crate) fn encoder_step(args: &EncoderStepArgs) -> anyhow::Result<Exit> {
    ensure!(
        args.mean_length.is_none_or(|mean| mean.is_finite() && mean > 0.0),
        "--mean-length is {}; it must be above 0",
        args.mean_length.unwrap_or_default()
    );
    let threads = args.threads.start_pool()?;
    let mut rng = StdRng::seed_from_u64(1);
    let histories: Vec<Vec<u32>> = (0..args.batch)
        .map(|_| {
            // Lengths of real histories are roughly exponentially distributed.
            let drawn = args.mean_length.map(|mean| (-mean * (1.0 - rng.random::<f64>()).ln()).ceil() as usize);
            let length = drawn.unwrap_or(args.length).clamp(1, args.length);
            (0..=length).map(|_| rng.random_range(0..args.items as u32)).collect()
        })
        .collect();
    if let Some(path) = &args.save {
        let line = |history: &Vec<u32>| history.iter().map(u32::to_string).collect::<Vec<_>>().join(" ") + "\n";
        write_file("--save", path, &histories.iter().map(line).collect::<String>())?;
    }
    let sequences: Vec<&[u32]> = histories.iter().map(Vec::as_slice).collect();
    let mut config = EncoderConfig::for_data(&sequences, args.items, threads, 1);
    config.shape = Shape { width: args.width, heads: 1, blocks: 2, positions: args.length, kinds: 0 };
    config.similarity = Similarity::Dot;
    config.negatives = args.negatives;
    let mut times = time_steps(&sequences, args.items, &config, args.steps);
    times.sort_by(f64::total_cmp);
    let targets: usize = histories.iter().map(|history| history.len() - 1).sum();
    args.output.write(&StepReport {
        targets,
        threads,
        milliseconds_best: times[0],
        milliseconds_median: times[times.len() / 2],
    })?;
    Ok(Exit::Success)
}

#[derive(clap::Args)]
struct TrialArgs {
    /// Number of trainings, each with another seed. Mean and spread are printed.
    #[arg(long, value_name = "N", value_parser = within(1..=100), default_value_t = 1)]
    seeds: usize,
    /// First seed. The same seed and number of threads produce the same figures.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Also compares the answers of the last seed with the baselines of `evaluate`, each tuned on the last part of the
    /// training data: NDCG@10 of at most 2,000 queries, ratio and interval.
    #[arg(long)]
    baselines: bool,
    #[command(flatten)]
    user_encoder: UserEncoderArgs,
    #[command(flatten)]
    threads: ThreadsArgs,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    library: LibraryArgs,
}

impl TrialArgs {
    fn run<R: serde::Serialize + Display>(
        self,
        benchmark: impl FnOnce(&Runtime, RunOptions, &mut dyn FnMut(Progress)) -> Result<R, TrainError>,
    ) -> anyhow::Result<Exit> {
        let runtime = self.library.load()?;
        self.threads.start_pool()?;
        let mut bars = StageBars::default();
        let options = RunOptions {
            seed: self.seed,
            seeds: self.seeds,
            encoder: self.user_encoder.settings(),
            with_baselines: self.baselines,
        };
        let report = benchmark(&runtime, options, &mut |step| bars.show(step))?;
        bars.finish();
        self.output.write(&report)?;
        Ok(Exit::Success)
    }
}

pub(crate) fn next_item(args: NextItemArgs) -> anyhow::Result<Exit> {
    let files = NextItemFiles { sequences: args.sequences, items: args.items, clusters: args.clusters };
    args.trials.run(|runtime, options, progress| benchmark::next_item(&files, runtime, options, progress))
}

pub(crate) fn sessions(args: SessionsArgs) -> anyhow::Result<Exit> {
    let files = SessionFiles { train: args.train, test: args.test };
    args.trials.run(|runtime, options, progress| benchmark::sessions(&files, runtime, options, progress))
}

pub(crate) fn next_basket(args: NextBasketArgs) -> anyhow::Result<Exit> {
    let files = BasketFiles { history: args.history, future: args.future };
    args.trials.run(|runtime, options, progress| benchmark::next_basket(&files, runtime, options, progress))
}
