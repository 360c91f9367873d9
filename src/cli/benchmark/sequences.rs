//! benchmark next-item, sessions, next-basket, encoder-step
use crate::cli::offline::Bars;
use anyhow::{Context, ensure};
use lodestone_training::{
    Progress,
    sequence::{
        EncoderConfig, Shape, Similarity,
        benchmark::{self, BasketFiles, NextItemFiles, SessionFiles, Trials},
        fit::time_steps,
    },
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::{fmt::Display, fs, path::PathBuf};

/// Foretells everyone's last item (leave-one-out) and prints HR and NDCG at 5, 10 and 20 of each source alone, of their union
/// and of the ranking.
///
/// The last item of each line is the test, the one before it the validation. All models are fitted to what comes before both;
/// the validation items stop the encoder and teach the ranker, which then ranks all items but those of the history. Figures
/// are given for everyone, and apart for those whose last two items descend in the items' order: where a file keeps the items
/// of a day in that order (Amazon's do), the ascending ones are easier than they should be. Settings follow from the data's size.
#[derive(clap::Args)]
pub(crate) struct NextItemArgs {
    /// A line for each user: user and items, oldest first, separated by spaces; plain, .gz or .zst.
    #[arg(long, value_name = "FILE")]
    sequences: PathBuf,
    /// .tsv with a header: item, and where known asin, title, phrase, keywords, attributes.
    #[arg(long, value_name = "FILE")]
    items: PathBuf,
    /// .tsv: user, user. Users of one user are drawn together for the intervals.
    #[arg(long, value_name = "FILE")]
    users: Option<PathBuf>,
    #[command(flatten)]
    trials: TrialArgs,
}

/// Foretells the next click of later sessions and prints hit rate (P@20 is HR@20) and MRR@20 of each source alone, of their
/// union and of the ranking.
///
/// The latest sessions of the training file stop the encoder and teach the ranker; the test is only asked. All items of both
/// files are ranked, those of the session too. Settings follow from the data's size.
#[derive(clap::Args)]
pub(crate) struct SessionsArgs {
    /// Sessions in time order, one a line, items separated by spaces; or .tsv with SessionId, ItemId, Time. Plain, .gz or .zst.
    #[arg(long, value_name = "FILE")]
    train: PathBuf,
    /// Lines of the items clicked so far, a tab, and the next item; or .tsv with SessionId, ItemId, Time.
    #[arg(long, value_name = "FILE")]
    test: PathBuf,
    #[command(flatten)]
    trials: TrialArgs,
}

/// Foretells everyone's next basket and prints recall, NDCG and the share of users with a hit, of the sources' union and of
/// the ranking.
///
/// Everyone's last known basket teaches the ranker; the baskets to come are only asked. All items are ranked, those bought
/// before too.
#[derive(clap::Args)]
pub(crate) struct NextBasketArgs {
    /// Lines of a user, a tab, and baskets, oldest first, separated by semicolons; items separated by spaces. Plain, .gz, .zst.
    #[arg(long, value_name = "FILE")]
    history: PathBuf,
    /// Lines of a user, a tab, and the items of the next basket.
    #[arg(long, value_name = "FILE")]
    future: PathBuf,
    #[command(flatten)]
    trials: TrialArgs,
}

/// Times steps of the sequence encoder's training on made histories, and prints JSON: milliseconds, best and median.
///
/// A step is forward, softmax, backward and Adam for one batch. `make bench-train` runs it beside PyTorch on the
/// same histories, which are written with `--save`.
#[derive(clap::Args)]
pub(crate) struct EncoderStepArgs {
    #[arg(long, value_name = "N", default_value_t = 12_101)]
    items: usize,
    /// Histories of the batch.
    #[arg(long, value_name = "N", default_value_t = 128)]
    batch: usize,
    /// Items of each history at most; one more is its last target.
    #[arg(long, value_name = "N", default_value_t = 50)]
    length: usize,
    /// Histories are this long in the mean, most of them shorter; default: all of the greatest length.
    #[arg(long, value_name = "N")]
    mean_length: Option<f64>,
    #[arg(long, value_name = "N", default_value_t = 64)]
    width: usize,
    /// Softmax over the batch's items and so many drawn ones; default: over all items.
    #[arg(long, value_name = "N")]
    negatives: Option<usize>,
    #[arg(long, value_name = "N", default_value_t = 20)]
    steps: usize,
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Writes the histories, one a line.
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
}

pub(super) fn encoder_step(args: EncoderStepArgs) -> anyhow::Result<()> {
    ensure!((2..=10_000_000).contains(&args.items), "--items is {}; it must be within 2 and 10000000", args.items);
    ensure!((1..=4096).contains(&args.batch), "--batch is {}; it must be within 1 and 4096", args.batch);
    ensure!((1..=1000).contains(&args.length), "--length is {}; it must be within 1 and 1000", args.length);
    ensure!((1..=1000).contains(&args.steps), "--steps is {}; it must be within 1 and 1000", args.steps);
    ensure!((1..=1024).contains(&args.width), "--width is {}; it must be within 1 and 1024", args.width);
    let threads = args.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().context("threads")?;
    let mut rng = StdRng::seed_from_u64(1);
    let histories: Vec<Vec<u32>> = (0..args.batch)
        .map(|_| {
            // Exponentially distributed, as the lengths of real histories nearly are.
            let drawn = args.mean_length.map(|mean| (-mean * (1.0 - rng.random::<f64>()).ln()).ceil() as usize);
            let length = drawn.unwrap_or(args.length).clamp(1, args.length);
            (0..=length).map(|_| rng.random_range(0..args.items as u32)).collect()
        })
        .collect();
    if let Some(path) = &args.save {
        let line = |history: &Vec<u32>| history.iter().map(u32::to_string).collect::<Vec<_>>().join(" ") + "\n";
        fs::write(path, histories.iter().map(line).collect::<String>()).with_context(|| path.display().to_string())?;
    }
    let sequences: Vec<&[u32]> = histories.iter().map(Vec::as_slice).collect();
    let mut config = EncoderConfig::for_data(&sequences, args.items, threads, 1);
    config.shape = Shape { width: args.width, heads: 1, blocks: 2, positions: args.length, kinds: 0 };
    config.similarity = Similarity::Dot;
    config.negatives = args.negatives;
    let mut times = time_steps(&sequences, args.items, &config, args.steps);
    times.sort_by(f64::total_cmp);
    let targets: usize = histories.iter().map(|history| history.len() - 1).sum();
    let report = serde_json::json!({
        "targets": targets,
        "threads": threads,
        "milliseconds_best": times[0],
        "milliseconds_median": times[times.len() / 2],
    });
    println!("{}", serde_json::to_string_pretty(&report)?);
    Ok(())
}

#[derive(clap::Args)]
struct TrialArgs {
    /// Writes the figures as JSON too.
    #[arg(long, value_name = "OUT")]
    json: Option<PathBuf>,
    /// Trains so often, each time with another seed; mean and spread are printed.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seeds: usize,
    /// The first seed. The same seed and number of threads give the same figures.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Default: one for each processor.
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
}

impl TrialArgs {
    fn run<R: serde::Serialize + Display, E: std::error::Error + Send + Sync + 'static>(
        self,
        benchmark: impl FnOnce(Trials, &mut dyn FnMut(Progress)) -> Result<R, E>,
    ) -> anyhow::Result<()> {
        ensure!((1..=100).contains(&self.seeds), "--seeds is {}; it must be within 1 and 100", self.seeds);
        let threads = self.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
        ensure!((1..=256).contains(&threads), "--threads is {threads}; it must be within 1 and 256");
        rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().context("threads")?;
        let mut bars = Bars::default();
        let trials = Trials { seed: self.seed, seeds: self.seeds, threads };
        let report = benchmark(trials, &mut |step| bars.show(step))?;
        bars.finish();
        if let Some(path) = &self.json {
            let json = serde_json::to_string_pretty(&report)?;
            fs::write(path, json + "\n").with_context(|| path.display().to_string())?;
        }
        print!("{report}");
        Ok(())
    }
}

pub(super) fn next_item(args: NextItemArgs) -> anyhow::Result<()> {
    let files = NextItemFiles { sequences: args.sequences, items: args.items, users: args.users };
    args.trials.run(|trials, progress| benchmark::next_item(&files, trials, progress))
}

pub(super) fn sessions(args: SessionsArgs) -> anyhow::Result<()> {
    let files = SessionFiles { train: args.train, test: args.test };
    args.trials.run(|trials, progress| benchmark::sessions(&files, trials, progress))
}

pub(super) fn next_basket(args: NextBasketArgs) -> anyhow::Result<()> {
    let files = BasketFiles { history: args.history, future: args.future };
    args.trials.run(|trials, progress| benchmark::next_basket(&files, trials, progress))
}
