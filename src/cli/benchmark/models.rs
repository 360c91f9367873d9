//! `lodestone benchmark models`
use crate::cli::{LibraryArgs, exit::Exit, numbers::within, output::OutputArgs};
use anyhow::ensure;
use lodestone_core::ids::Row;
use lodestone_events::EventKind;
use lodestone_pipeline::{
    bundle::Bundle,
    ranking::{Device, Ranker, RankingError, TextEncoder, TextRole, UserEncoder, UserInput},
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::{fmt, path::PathBuf, time::Instant};

/// Events per history, in addition to the most that the user encoder reads.
const EVENTS: [usize; 2] = [1, 10];
const CANDIDATES: [usize; 3] = [50, 200, 1000];
/// Words per query.
const QUERY_WORDS: [usize; 2] = [1, 4];
/// Different inputs per size, used in rotation.
const INPUTS: usize = 64;
/// Warm-up runs, as a share of the measured ones.
const WARM_UP: f64 = 0.1;

/// Measures the inference time of a bundle's models by the size of their input, on one thread.
///
/// Models run as in a worker of the server, one request at a time: a time includes building the input tensors, the run,
/// and checking the output. Histories consist of the bundle's items, queries of words of their titles, features of
/// random numbers.
#[derive(clap::Args)]
pub(crate) struct ModelsArgs {
    /// The bundle.
    #[arg(long, value_name = "DIR")]
    bundle: PathBuf,
    /// Measured runs per size.
    #[arg(long, value_name = "N", value_parser = within(10..=1_000_000), default_value_t = 2000)]
    runs: usize,
    /// Seed of the inputs.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    #[command(flatten)]
    output: OutputArgs,
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
    /// Unit of `size`.
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

pub(crate) fn models(args: &ModelsArgs) -> anyhow::Result<Exit> {
    let runtime = args.library.load()?;
    let bundle = Bundle::open(&args.bundle)?;
    ensure!(!bundle.items.is_empty(), "{} has no items", args.bundle.display());
    let mut rng = StdRng::seed_from_u64(args.seed);
    let mut models = Vec::new();
    let mut add = |model, size, unit, times: Vec<f64>| {
        models.push(Timing { model, size, unit, p50_ms: quantile(&times, 0.5), p99_ms: quantile(&times, 0.99) });
    };
    let (width, events_max) = (bundle.item_vectors.dimensions(), bundle.manifest.encoder_events);
    ensure!(!bundle.user_encoder.is_empty(), "{} has no user encoder", args.bundle.display());
    ensure!(!bundle.ranker.is_empty(), "{} has no ranking model", args.bundle.display());
    let mut user_encoder = UserEncoder::open(&runtime, &bundle.user_encoder, width, Device::Cpu)?;
    for events in EVENTS.into_iter().filter(|events| *events < events_max).chain([events_max]) {
        let inputs: Vec<[UserInput; 1]> = (0..INPUTS).map(|_| [history(&bundle, events, &mut rng)]).collect();
        add("user encoder", events, "events", timed(&inputs, args.runs, |input| user_encoder.encode_batch(input))?);
    }
    let mut ranker = Ranker::open(&runtime, &bundle.ranker, bundle.manifest.features.names(), Device::Cpu)?;
    for candidates in CANDIDATES {
        let inputs: Vec<Vec<f32>> =
            (0..INPUTS).map(|_| (0..candidates * ranker.column_count()).map(|_| rng.random()).collect()).collect();
        add("ranker", candidates, "candidates", timed(&inputs, args.runs, |input| ranker.score(input, candidates))?);
    }
    let mut query = TextEncoder::open(&runtime, bundle.query_encoder_files(), Device::Cpu)?;
    for words in QUERY_WORDS {
        let inputs: Vec<String> = (0..INPUTS).map(|_| query_of(&bundle, words, &mut rng)).collect();
        add(
            "query encoder",
            words,
            "words",
            timed(&inputs, args.runs, |input| query.encode(&[input], TextRole::Query))?,
        );
    }
    args.output.write(&Report { bundle: bundle.manifest.name.clone(), runs: args.runs, models })?;
    Ok(Exit::Success)
}

/// Builds a history of random items of the bundle, purchased one day apart.
fn history(bundle: &Bundle, events: usize, rng: &mut StdRng) -> UserInput {
    let mut input = UserInput::default();
    for event in 0..events {
        let row = Row(rng.random_range(0..bundle.items.len() as u32));
        let vector = bundle.item_vectors.vector(row).unwrap_or_else(|| vec![0.0; bundle.item_vectors.dimensions()]);
        input.items.extend_from_slice(&vector);
        input.kinds.push(EventKind::Purchase as i64);
        input.positions.push((events - 1 - event) as i64);
        input.ages.push(((events - event) as f32).ln_1p());
    }
    input
}

/// Builds a query of the first words of a random title.
fn query_of(bundle: &Bundle, words: usize, rng: &mut StdRng) -> String {
    let title = &bundle.items[rng.random_range(0..bundle.items.len())].title;
    title.split_whitespace().take(words).collect::<Vec<_>>().join(" ")
}

/// Measures runs, rotating through the inputs. Returns milliseconds in ascending order.
fn timed<I, O>(
    inputs: &[I],
    runs: usize,
    mut run: impl FnMut(&I) -> Result<O, RankingError>,
) -> Result<Vec<f64>, RankingError> {
    let warm_up = (runs as f64 * WARM_UP) as usize;
    let mut times = Vec::with_capacity(runs);
    for (index, input) in inputs.iter().cycle().take(warm_up + runs).enumerate() {
        let started = Instant::now();
        std::hint::black_box(run(input)?);
        if index >= warm_up {
            times.push(started.elapsed().as_secs_f64() * 1000.0);
        }
    }
    times.sort_by(f64::total_cmp);
    Ok(times)
}

/// Returns a quantile of a sorted list.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    sorted.get(((sorted.len() as f64 * share) as usize).min(sorted.len().saturating_sub(1))).copied().unwrap_or(0.0)
}
