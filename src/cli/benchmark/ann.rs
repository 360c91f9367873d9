//! `lodestone benchmark ann`
use crate::cli::{
    exit::Exit, matrix::Matrix, numbers::within, output::OutputArgs, paths::new_file, threads::ThreadsArgs,
};
use anyhow::{Context, bail, ensure};
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use indicatif::{ProgressBar, ProgressStyle};
use lodestone_core::{bits, ids::Row};
use lodestone_index::{BuildConfig, FrozenGraph, Precision, SearchStrategy, dot};
use lodestone_pipeline::bundle::Bundle;
use rayon::prelude::*;
use std::{fmt, path::PathBuf, time::Instant};

const QUERIES: usize = 1000;
/// Queries of the filtered runs.
const FILTERED_QUERIES: usize = 200;
/// Beam widths, raised until [`RECALL`] is reached.
const EF: [usize; 17] = [100, 105, 110, 115, 120, 135, 150, 160, 175, 200, 250, 300, 400, 500, 600, 800, 1200];
/// Recall at which indexes are compared.
const RECALL: f64 = 0.99;

/// Parses the name of a precision. The help lists the names with their meanings.
fn precision_parser() -> impl TypedValueParser<Value = Precision> {
    let help = |precision| match precision {
        Precision::F32 => "32-bit floats: 4 bytes per number",
        Precision::F16 => "16-bit floats: 2 bytes per number; numbers beyond ±65,504 are clipped",
        Precision::Int12 => "Fixed point of 12 bits: half a byte per number in addition to the code",
        Precision::Int8 => "The code alone; sufficient for hundreds of dimensions",
    };
    let values = Precision::ALL.map(|precision| PossibleValue::new(precision.name()).help(help(precision)));
    PossibleValuesParser::new(values).try_map(|name| name.parse::<Precision>())
}

/// Measures vector search: build time, recall against exact search, and queries per second, without and with filters.
///
/// Builds the index and searches it on one thread for the largest inner products. The last 1,000 vectors are the
/// queries and are not indexed. The beam width is raised until recall is 0.99.
#[derive(clap::Args)]
#[command(group = clap::ArgGroup::new("source").required(true).args(["vectors", "synthetic", "bundle"]))]
#[command(after_help = "\
Examples:
  lodestone benchmark ann --synthetic 100000x64
  lodestone benchmark ann --bundle bundle --precision int8 --format json --out ann.json")]
pub(crate) struct AnnArgs {
    /// Vectors: .npy (two dimensions of f32) or .fvecs.
    #[arg(long, value_name = "FILE")]
    vectors: Option<PathBuf>,
    /// The item vectors of a trained bundle.
    #[arg(long, value_name = "DIR")]
    bundle: Option<PathBuf>,
    /// Synthetic vectors that resemble those of a shop: their number and dimensions, such as 100000x64.
    #[arg(long, value_name = "N×D")]
    synthetic: Option<String>,
    /// Results per query.
    #[arg(long, value_name = "N", value_parser = within(1..=1000), default_value_t = 100)]
    count: usize,
    /// Neighbours per point (HNSW's M); twice as many in the lowest layer.
    #[arg(long, value_name = "N", value_parser = within(2..=64), default_value_t = 16)]
    m: usize,
    /// Beam width of the construction.
    #[arg(long, value_name = "N", value_parser = within(1..=10_000), default_value_t = 200)]
    ef_construction: usize,
    /// Precision of the stored vectors, from which final scores are computed.
    #[arg(long, value_parser = precision_parser(), default_value = "f32")]
    precision: Precision,
    #[command(flatten)]
    threads: ThreadsArgs,
    /// Seed of the construction and of synthetic vectors.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Writes the vectors as .npy for other programs and does not measure.
    #[arg(long, value_name = "FILE", value_parser = new_file)]
    save: Option<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(serde::Serialize)]
struct Report {
    vectors: usize,
    dimensions: usize,
    count: usize,
    precision: Precision,
    build_seconds: f64,
    build_threads: usize,
    /// Memory-mapping and verifying the written index.
    open_seconds: f64,
    /// Bytes that a graph walk reads.
    walked_bytes_per_vector: f64,
    /// Vectors and their rows, for the final scores.
    exact_bytes_per_vector: f64,
    runs: Vec<Run>,
    filtered: Vec<FilteredRun>,
}

#[derive(serde::Serialize)]
struct Run {
    ef: usize,
    recall: f64,
    queries_per_s: f64,
}

#[derive(serde::Serialize)]
struct FilteredRun {
    /// Share of the vectors that pass the filter.
    selectivity: f64,
    /// Whether those vectors are close to each other.
    correlated: bool,
    recall: f64,
    queries_per_s: f64,
    /// Shares of the queries by search strategy.
    walked: f64,
    widened: f64,
    scanned: f64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        writeln!(
            f,
            "{} × {}: built in {:.1} s with {} threads, opened in {:.2} s; {:.0} + {:.0} bytes per vector",
            self.vectors,
            self.dimensions,
            self.build_seconds,
            self.build_threads,
            self.open_seconds,
            self.walked_bytes_per_vector,
            self.exact_bytes_per_vector
        )?;
        writeln!(f, "{:>6} {:>12} {:>12}", "ef", format!("recall@{}", self.count), "queries/s")?;
        for run in &self.runs {
            writeln!(f, "{:>6} {:>12.4} {:>12.0}", run.ef, run.recall, run.queries_per_s)?;
        }
        writeln!(f, "{:>12} {:>10} {:>8} {:>10}  strategy", "selectivity", "filter", "recall", "queries/s")?;
        for run in &self.filtered {
            let filter = if run.correlated { "clustered" } else { "random" };
            let strategies = format!(
                "walk {:.0} %, widened {:.0} %, scan {:.0} %",
                100.0 * run.walked,
                100.0 * run.widened,
                100.0 * run.scanned
            );
            writeln!(
                f,
                "{:>10.2} % {:>10} {:>8.4} {:>10.0}  {strategies}",
                100.0 * run.selectivity,
                filter,
                run.recall,
                run.queries_per_s
            )?;
        }
        Ok(())
    }
}

pub(crate) fn ann(args: &AnnArgs) -> anyhow::Result<Exit> {
    let matrix = match (&args.vectors, &args.synthetic, &args.bundle) {
        (Some(path), ..) => Matrix::read(path)?,
        (None, Some(size), _) => {
            let (rows, dimensions) = parse_size(size)?;
            Matrix::synthetic(rows + QUERIES, dimensions, args.seed)
        }
        (None, None, Some(bundle)) => {
            let vectors = Bundle::open(bundle)?.item_vectors;
            let rows = (0..vectors.row_count()).filter_map(|row| vectors.vector(Row(row as u32)));
            Matrix { values: rows.flatten().collect(), dimensions: vectors.dimensions() }
        }
        (None, None, None) => bail!("one of --vectors, --synthetic and --bundle is required"),
    };
    if let Some(path) = &args.save {
        matrix.write(path)?;
        return Ok(Exit::Success);
    }
    ensure!(matrix.rows() > 2 * QUERIES, "there are {} vectors; more than {} are needed", matrix.rows(), 2 * QUERIES);
    let threads = args.threads.count();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
    let (base, queries) = matrix.split_last(QUERIES);

    let bar = ProgressBar::new(base.rows() as u64);
    bar.set_style(ProgressStyle::with_template("build [{bar:30}] {pos}/{len} {elapsed} left {eta}")?);
    let config =
        BuildConfig { m: args.m, ef_construction: args.ef_construction, seed: args.seed, precision: args.precision };
    let started = Instant::now();
    let built = pool.install(|| {
        FrozenGraph::build(&base.values, base.dimensions, config, &|done| {
            bar.set_position(bar.position().max(done as u64))
        })
    })?;
    let build_seconds = started.elapsed().as_secs_f64();
    bar.finish_and_clear();

    let file = std::env::temp_dir().join(format!("lodestone-ann-{}.index", std::process::id()));
    let opened = built.write(&file).and_then(|()| {
        let started = Instant::now();
        FrozenGraph::open(&file).map(|index| (index, started.elapsed().as_secs_f64()))
    });
    // The mapping outlives the file's name.
    let _ = std::fs::remove_file(&file);
    let (index, open_seconds) = opened?;
    drop(built);

    let everything = vec![u64::MAX; base.rows().div_ceil(64)];
    let truth = exact(&base, &queries, args.count, &everything);
    let search = Search { index: &index, base: &base, queries: &queries, count: args.count };
    let mut runs = Vec::new();
    for ef in EF.into_iter().filter(|ef| *ef >= args.count) {
        let run = search.unfiltered(&truth, ef);
        let enough = run.recall >= RECALL;
        runs.push(run);
        if enough {
            break;
        }
    }
    let ef = runs.last().map_or(args.count, |run| run.ef);
    let (walked_bytes_per_vector, exact_bytes_per_vector) = index.bytes_per_row();
    let filtered = [0.0001, 0.001, 0.01, 0.1, 0.5, 1.0]
        .into_iter()
        .flat_map(|selectivity| [(selectivity, Spread::Random), (selectivity, Spread::Clustered)])
        .map(|(selectivity, spread)| search.filtered(ef, selectivity, spread))
        .collect();
    let report = Report {
        vectors: base.rows(),
        dimensions: base.dimensions,
        count: args.count,
        precision: args.precision,
        build_seconds,
        build_threads: threads,
        open_seconds,
        walked_bytes_per_vector,
        exact_bytes_per_vector,
        runs,
        filtered,
    };
    args.output.write(&report)?;
    Ok(Exit::Success)
}

fn parse_size(text: &str) -> anyhow::Result<(usize, usize)> {
    let parts: Vec<&str> = text.split(['x', '×', '*']).collect();
    let [rows, dimensions] = parts[..] else { bail!("--synthetic is `{text}`; write it as 100000x64") };
    let (rows, dimensions) = (rows.parse()?, dimensions.parse().context("--synthetic")?);
    ensure!((1000..=100_000_000).contains(&rows), "--synthetic: {rows} vectors are not within 1,000 and 100,000,000");
    ensure!((1..=4096).contains(&dimensions), "--synthetic: {dimensions} dimensions are not within 1 and 4096");
    Ok((rows, dimensions))
}

/// Returns for each query the best eligible rows, by a scan of all vectors.
fn exact(base: &Matrix, queries: &Matrix, count: usize, eligible: &[u64]) -> Vec<Vec<u32>> {
    (0..queries.rows())
        .into_par_iter()
        .map(|query| {
            let query = queries.row(query);
            let rows = bits::ones(eligible, 0).take_while(|row| *row < base.rows());
            let mut scored: Vec<(f32, u32)> = rows.map(|row| (dot(query, base.row(row)), row as u32)).collect();
            let best_first = |a: &(f32, u32), b: &(f32, u32)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
            if scored.len() > count {
                scored.select_nth_unstable_by(count, best_first);
                scored.truncate(count);
            }
            let mut rows: Vec<u32> = scored.into_iter().map(|(_, row)| row).collect();
            // The collection reuses the allocation of `scored`.
            rows.shrink_to_fit();
            rows
        })
        .collect()
}

fn recall(found: &[(Row, f32)], truth: &[u32]) -> f64 {
    if truth.is_empty() {
        return 1.0;
    }
    let found: std::collections::HashSet<u32> = found.iter().map(|(row, _)| row.0).collect();
    truth.iter().filter(|row| found.contains(row)).count() as f64 / truth.len() as f64
}

/// Returns the seconds of the fastest of three passes, because other processes may slow one down.
fn fastest(mut pass: impl FnMut()) -> f64 {
    (0..3)
        .map(|_| {
            let started = Instant::now();
            pass();
            started.elapsed().as_secs_f64()
        })
        .fold(f64::MAX, f64::min)
}

/// How the vectors that pass a filter are distributed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Spread {
    /// Chosen by a multiplicative hash of the row.
    Random,
    /// The nearest neighbours of one vector.
    Clustered,
}

impl Spread {
    /// Returns a bit set with `count` bits.
    fn eligible(self, base: &Matrix, count: usize) -> Vec<u64> {
        let mut order: Vec<u32> = (0..base.rows() as u32).collect();
        match self {
            Self::Clustered => order
                .sort_by_cached_key(|row| std::cmp::Reverse((dot(base.row(0), base.row(*row as usize)) * 1e6) as i64)),
            Self::Random => order.sort_by_key(|row| (row.wrapping_add(1).wrapping_mul(2_654_435_761), *row)),
        }
        let mut eligible = vec![0u64; base.rows().div_ceil(64)];
        order[..count].iter().for_each(|row| eligible[*row as usize / 64] |= 1 << (row % 64));
        eligible
    }
}

/// Searches of one index.
struct Search<'a> {
    index: &'a FrozenGraph,
    base: &'a Matrix,
    queries: &'a Matrix,
    /// Results per query.
    count: usize,
}

impl Search<'_> {
    fn unfiltered(&self, truth: &[Vec<u32>], ef: usize) -> Run {
        let Self { index, queries, count, .. } = *self;
        let mut found = Vec::with_capacity(count);
        let mut recalls = 0.0;
        for (query, truth) in truth.iter().enumerate() {
            index.search_into(queries.row(query), count, ef, &mut found);
            recalls += recall(&found, truth);
        }
        let seconds = fastest(|| {
            for query in 0..queries.rows() {
                index.search_into(queries.row(query), count, ef, &mut found);
            }
        });
        Run { ef, recall: recalls / queries.rows() as f64, queries_per_s: queries.rows() as f64 / seconds }
    }

    fn filtered(&self, ef: usize, selectivity: f64, spread: Spread) -> FilteredRun {
        let Self { index, base, count, .. } = *self;
        let eligible_count = ((base.rows() as f64 * selectivity) as usize).max(1);
        let eligible = spread.eligible(base, eligible_count);
        let dimensions = self.queries.dimensions;
        let queries = Matrix { values: self.queries.values[..FILTERED_QUERIES * dimensions].to_vec(), dimensions };
        let truth = exact(base, &queries, count, &eligible);
        let (mut found, mut recalls, mut strategies) = (Vec::with_capacity(count), 0.0, [0.0; 3]);
        for (query, truth) in truth.iter().enumerate() {
            let way = index.search_eligible(queries.row(query), count, ef, &eligible, eligible_count, &mut found);
            recalls += recall(&found, truth);
            strategies[match way {
                SearchStrategy::Walk => 0,
                SearchStrategy::WidenedWalk => 1,
                SearchStrategy::Scan => 2,
            }] += 1.0 / queries.rows() as f64;
        }
        let seconds = fastest(|| {
            for query in 0..queries.rows() {
                index.search_eligible(queries.row(query), count, ef, &eligible, eligible_count, &mut found);
            }
        });
        let [walked, widened, scanned] = strategies;
        FilteredRun {
            selectivity,
            correlated: spread == Spread::Clustered,
            recall: recalls / queries.rows() as f64,
            queries_per_s: queries.rows() as f64 / seconds,
            walked,
            widened,
            scanned,
        }
    }
}
