//! benchmark models
use crate::cli::LibraryArgs;
use anyhow::{Context, ensure};
use lodestone_catalog::VECTOR_DIM;
use lodestone_core::ids::Row;
use lodestone_events::EventKind;
use lodestone_pipeline::{
    ENCODED_EVENTS_MAX,
    bundle::Bundle,
    features::FEATURE_COUNT,
    ranking::{Device, Ranker, RankingError, Runtime, TextEncoder, UserEncoder, UserInput},
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::{fmt, path::PathBuf, time::Instant};

const EVENTS: [usize; 3] = [1, 10, ENCODED_EVENTS_MAX];
const CANDIDATES: [usize; 3] = [50, 200, 1000];
/// Words of a title that make a query.
const QUERY_WORDS: [usize; 2] = [1, 4];
/// Different inputs of each size, taken in turn.
const INPUTS: usize = 64;
/// Runs before the measured ones, as a share of them.
const WARM_UP: f64 = 0.1;

/// Times a bundle's models as a worker of the server runs them: one request at a time, on one thread.
///
/// A time holds what the server does for each run: laying out the input, the run, and checking the output. Histories are of
/// the bundle's own items, queries are words of their titles, features are random numbers.
#[derive(clap::Args)]
pub(crate) struct ModelsArgs {
    #[arg(long, value_name = "DIR")]
    bundle: PathBuf,
    /// Measured runs of each size.
    #[arg(long, value_name = "N", default_value_t = 2000)]
    runs: usize,
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    library: LibraryArgs,
}

#[derive(serde::Serialize)]
struct Report {
    bundle: String,
    runs: usize,
    models: Vec<Timing>,
}

#[derive(serde::Serialize)]
struct Timing {
    model: &'static str,
    size: usize,
    /// What `size` counts.
    unit: &'static str,
    p50_ms: f64,
    p99_ms: f64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        writeln!(f, "bundle {}, one thread, {} runs of each size", self.bundle, self.runs)?;
        writeln!(f, "{:<16} {:>16} {:>8} {:>8}", "", "", "p50 ms", "p99 ms")?;
        for timing in &self.models {
            let size = format!("{} {}", timing.size, timing.unit);
            writeln!(f, "{:<16} {size:>16} {:>8.3} {:>8.3}", timing.model, timing.p50_ms, timing.p99_ms)?;
        }
        Ok(())
    }
}

pub(super) fn models(args: ModelsArgs) -> anyhow::Result<()> {
    ensure!((10..=1_000_000).contains(&args.runs), "--runs is {}; it must be within 10 and 1000000", args.runs);
    let runtime = Runtime::load(args.library.onnxruntime.as_deref())?;
    let bundle = Bundle::open(&args.bundle)?;
    ensure!(!bundle.items.is_empty(), "{} has no items", args.bundle.display());
    let mut rng = StdRng::seed_from_u64(args.seed);
    let mut models = Vec::new();
    let mut note = |model, size, unit, times: Vec<f64>| {
        models.push(Timing { model, size, unit, p50_ms: quantile(&times, 0.5), p99_ms: quantile(&times, 0.99) });
    };
    let mut user = UserEncoder::open(&runtime, &bundle.user_encoder, Device::Cpu)?;
    for events in EVENTS {
        let inputs: Vec<[UserInput; 1]> = (0..INPUTS).map(|_| [history(&bundle, events, &mut rng)]).collect();
        note("user encoder", events, "events", timed(&inputs, args.runs, |input| user.encode_batch(input))?);
    }
    let mut ranker = Ranker::open(&runtime, &bundle.ranker, Device::Cpu)?;
    for candidates in CANDIDATES {
        let inputs: Vec<Vec<f32>> =
            (0..INPUTS).map(|_| (0..candidates * FEATURE_COUNT).map(|_| rng.random()).collect()).collect();
        note("ranker", candidates, "candidates", timed(&inputs, args.runs, |input| ranker.score(input, candidates))?);
    }
    let (buckets, tokenizer) = (bundle.manifest.term_bucket_count, bundle.tokenizer.as_deref());
    let mut query = TextEncoder::open(&runtime, &bundle.query_encoder, tokenizer, buckets, Device::Cpu)?;
    for words in QUERY_WORDS {
        let inputs: Vec<String> = (0..INPUTS).map(|_| query_of(&bundle, words, &mut rng)).collect();
        note("query encoder", words, "words", timed(&inputs, args.runs, |input| query.encode(&[input]))?);
    }
    let report = Report { bundle: bundle.manifest.name.clone(), runs: args.runs, models };
    match args.json {
        true => println!("{}", serde_json::to_string_pretty(&report).context("numbers become JSON")?),
        false => print!("{report}"),
    }
    Ok(())
}

/// A history of random items of the bundle, bought a day after each other.
fn history(bundle: &Bundle, events: usize, rng: &mut StdRng) -> UserInput {
    let mut input = UserInput::default();
    for event in 0..events {
        let row = Row(rng.random_range(0..bundle.items.len() as u32));
        let vector = bundle.item_vectors.vector(row).unwrap_or_else(|| vec![0.0; VECTOR_DIM]);
        input.items.extend_from_slice(&vector);
        input.kinds.push(EventKind::Purchase as i64);
        input.positions.push((events - 1 - event) as i64);
        input.ages.push(((events - event) as f32).ln_1p());
    }
    input
}

/// The first words of some title.
fn query_of(bundle: &Bundle, words: usize, rng: &mut StdRng) -> String {
    let title = &bundle.items[rng.random_range(0..bundle.items.len())].title;
    title.split_whitespace().take(words).collect::<Vec<_>>().join(" ")
}

/// Milliseconds of each run, in ascending order. The inputs are taken in turn.
fn timed<I, O>(
    inputs: &[I],
    runs: usize,
    mut run: impl FnMut(&I) -> Result<O, RankingError>,
) -> Result<Vec<f64>, RankingError> {
    let warm_up = (runs as f64 * WARM_UP) as usize;
    let mut times = Vec::with_capacity(runs);
    for (index, input) in inputs.iter().cycle().take(warm_up + runs).enumerate() {
        let begun = Instant::now();
        std::hint::black_box(run(input)?);
        if index >= warm_up {
            times.push(begun.elapsed().as_secs_f64() * 1000.0);
        }
    }
    times.sort_by(f64::total_cmp);
    Ok(times)
}

/// Of a sorted list.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    sorted.get(((sorted.len() as f64 * share) as usize).min(sorted.len().saturating_sub(1))).copied().unwrap_or(0.0)
}
