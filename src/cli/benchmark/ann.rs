//! benchmark ann
use crate::cli::matrix::Matrix;
use anyhow::{Context, bail, ensure};
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use indicatif::{ProgressBar, ProgressStyle};
use lodestone_core::{bits, ids::Row};
use lodestone_index::{BuildConfig, FrozenGraph, Precision, SearchStrategy, dot};
use lodestone_pipeline::bundle::Bundle;
use rayon::prelude::*;
use std::{fmt, path::PathBuf, time::Instant};

const QUERIES: usize = 1000;
const EF: [usize; 17] = [100, 105, 110, 115, 120, 135, 150, 160, 175, 200, 250, 300, 400, 500, 600, 800, 1200];
/// The recall that an index must have to be compared.
const RECALL: f64 = 0.99;

/// Builds the index over vectors and asks it, on one thread, for the best by inner product.
///
/// The last 1,000 vectors are the queries and are not in the index. The walk's width is raised until recall is 0.99.
#[derive(clap::Args)]
#[command(group = clap::ArgGroup::new("source").required(true).args(["vectors", "synthetic", "bundle"]))]
pub(crate) struct AnnArgs {
    /// Vectors: .npy (two dimensions of f32) or .fvecs.
    #[arg(long, value_name = "FILE")]
    vectors: Option<PathBuf>,
    /// The item vectors of a trained bundle.
    #[arg(long, value_name = "DIR")]
    bundle: Option<PathBuf>,
    /// Made vectors like those of a shop, such as 100000x64.
    #[arg(long, value_name = "N×D")]
    synthetic: Option<String>,
    /// Results of a query.
    #[arg(long, value_name = "N", default_value_t = 100)]
    count: usize,
    /// Neighbours of a point; twice as many in the lowest layer.
    #[arg(long, value_name = "N", default_value_t = 16)]
    m: usize,
    #[arg(long, value_name = "N", default_value_t = 200)]
    ef_construction: usize,
    /// Precision of the stored vectors, from which exact scores are computed.
    #[arg(long, value_parser = precision_parser(), default_value = "f32")]
    precision: Precision,
    /// Threads of the build. Default: one for each core.
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Only writes the vectors, for other programs; as .npy.
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
}

#[derive(serde::Serialize)]
struct Report {
    vectors: usize,
    dimensions: usize,
    count: usize,
    precision: Precision,
    build_seconds: f64,
    build_threads: usize,
    /// Mapping the written index and checking it.
    open_seconds: f64,
    /// What a walk reads.
    walked_bytes_per_vector: f64,
    /// The vectors themselves and their rows, for the exact score.
    exact_bytes_per_vector: f64,
    runs: Vec<Run>,
    filtered: Vec<Filtered>,
}

#[derive(serde::Serialize)]
struct Run {
    ef: usize,
    recall: f64,
    queries_per_s: f64,
}

#[derive(serde::Serialize)]
struct Filtered {
    /// Share of the vectors that may be shown.
    selectivity: f64,
    /// Whether those are near each other.
    correlated: bool,
    recall: f64,
    queries_per_s: f64,
    /// Shares of the queries that were answered in each way.
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
        writeln!(f, "{:>12} {:>10} {:>8} {:>10}  ways", "selectivity", "kept", "recall", "queries/s")?;
        for run in &self.filtered {
            let kept = if run.correlated { "together" } else { "anywhere" };
            let ways = format!(
                "walk {:.0} %, widened {:.0} %, scan {:.0} %",
                100.0 * run.walked,
                100.0 * run.widened,
                100.0 * run.scanned
            );
            writeln!(
                f,
                "{:>10.2} % {:>10} {:>8.4} {:>10.0}  {ways}",
                100.0 * run.selectivity,
                kept,
                run.recall,
                run.queries_per_s
            )?;
        }
        Ok(())
    }
}

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

pub(super) fn ann(args: AnnArgs) -> anyhow::Result<()> {
    let matrix = match (&args.vectors, &args.synthetic, &args.bundle) {
        (Some(path), ..) => Matrix::read(path)?,
        (None, Some(size), _) => {
            let (rows, dimensions) = size_of(size)?;
            Matrix::synthetic(rows + QUERIES, dimensions, args.seed)
        }
        (None, None, Some(bundle)) => {
            let vectors = Bundle::open(bundle)?.item_vectors;
            let rows = (0..vectors.row_count()).filter_map(|row| vectors.vector(Row(row as u32)));
            Matrix { values: rows.flatten().collect(), dimensions: vectors.dimensions() }
        }
        (None, None, None) => bail!("--vectors, --synthetic or --bundle is needed"),
    };
    if let Some(path) = &args.save {
        return matrix.write(path);
    }
    ensure!(matrix.rows() > 2 * QUERIES, "there are {} vectors; more than {} are needed", matrix.rows(), 2 * QUERIES);
    ensure!((1..=1000).contains(&args.count), "--count is {}; it must be within 1 and 1000", args.count);
    let threads = args.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
    let (base, queries) = matrix.split_last(QUERIES);

    let bar = ProgressBar::new(base.rows() as u64);
    bar.set_style(ProgressStyle::with_template("build [{bar:30}] {pos}/{len} {elapsed} left {eta}")?);
    let config =
        BuildConfig { m: args.m, ef_construction: args.ef_construction, seed: args.seed, precision: args.precision };
    let begun = Instant::now();
    let built = pool.install(|| {
        FrozenGraph::build(&base.values, base.dimensions, config, &|done| {
            bar.set_position(bar.position().max(done as u64))
        })
    })?;
    let build_seconds = begun.elapsed().as_secs_f64();
    bar.finish_and_clear();

    let file = std::env::temp_dir().join(format!("lodestone-ann-{}.index", std::process::id()));
    let opened = built.write(&file).and_then(|()| {
        let begun = Instant::now();
        FrozenGraph::open(&file).map(|index| (index, begun.elapsed().as_secs_f64()))
    });
    // The mapping stays.
    let _ = std::fs::remove_file(&file);
    let (index, open_seconds) = opened?;
    drop(built);

    let everything = vec![u64::MAX; base.rows().div_ceil(64)];
    let truth = exact(&base, &queries, args.count, &everything);
    let mut runs = Vec::new();
    for ef in EF.into_iter().filter(|ef| *ef >= args.count) {
        let run = walked(&index, &queries, &truth, args.count, ef);
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
        .flat_map(|selectivity| [(selectivity, false), (selectivity, true)])
        .map(|(selectivity, correlated)| filtered(&index, &base, &queries, args.count, ef, selectivity, correlated))
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
    match args.json {
        true => println!("{}", serde_json::to_string_pretty(&report)?),
        false => print!("{report}"),
    }
    Ok(())
}

fn size_of(text: &str) -> anyhow::Result<(usize, usize)> {
    let parts: Vec<&str> = text.split(['x', '×', '*']).collect();
    let [rows, dimensions] = parts[..] else { bail!("--synthetic is `{text}`; write it as 100000x64") };
    let (rows, dimensions) = (rows.parse()?, dimensions.parse().context("--synthetic")?);
    ensure!((1000..=100_000_000).contains(&rows), "--synthetic: {rows} vectors are not within 1,000 and 100,000,000");
    ensure!((1..=4096).contains(&dimensions), "--synthetic: {dimensions} dimensions are not within 1 and 4096");
    Ok((rows, dimensions))
}

/// For each query the best rows whose bit is set, by a scan of everything.
fn exact(base: &Matrix, queries: &Matrix, count: usize, eligible: &[u64]) -> Vec<Vec<u32>> {
    (0..queries.rows())
        .into_par_iter()
        .map(|query| {
            let query = queries.row(query);
            let kept = bits::ones(eligible, 0).take_while(|row| *row < base.rows());
            let mut scored: Vec<(f32, u32)> = kept.map(|row| (dot(query, base.row(row)), row as u32)).collect();
            let best_first = |a: &(f32, u32), b: &(f32, u32)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
            if scored.len() > count {
                scored.select_nth_unstable_by(count, best_first);
                scored.truncate(count);
            }
            let mut rows: Vec<u32> = scored.into_iter().map(|(_, row)| row).collect();
            // The list's memory is used again for the rows, all of it.
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

/// The best of three passes: others may want the machine too.
fn fastest(mut pass: impl FnMut()) -> f64 {
    (0..3)
        .map(|_| {
            let begun = Instant::now();
            pass();
            begun.elapsed().as_secs_f64()
        })
        .fold(f64::MAX, f64::min)
}

fn walked(index: &FrozenGraph, queries: &Matrix, truth: &[Vec<u32>], count: usize, ef: usize) -> Run {
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

fn filtered(
    index: &FrozenGraph,
    base: &Matrix,
    queries: &Matrix,
    count: usize,
    ef: usize,
    selectivity: f64,
    correlated: bool,
) -> Filtered {
    let kept = ((base.rows() as f64 * selectivity) as usize).max(1);
    // Together: what is nearest to one vector. Anywhere: spread by a multiplicative hash.
    let mut order: Vec<u32> = (0..base.rows() as u32).collect();
    match correlated {
        true => {
            order.sort_by_cached_key(|row| std::cmp::Reverse((dot(base.row(0), base.row(*row as usize)) * 1e6) as i64))
        }
        false => order.sort_by_key(|row| (row.wrapping_add(1).wrapping_mul(2_654_435_761), *row)),
    }
    let mut eligible = vec![0u64; base.rows().div_ceil(64)];
    order[..kept].iter().for_each(|row| eligible[*row as usize / 64] |= 1 << (row % 64));
    let asked = Matrix { values: queries.values[..200 * queries.dimensions].to_vec(), dimensions: queries.dimensions };
    let truth = exact(base, &asked, count, &eligible);
    let (mut found, mut recalls, mut ways) = (Vec::with_capacity(count), 0.0, [0.0; 3]);
    for (query, truth) in truth.iter().enumerate() {
        let way = index.search_eligible(asked.row(query), count, ef, &eligible, kept, &mut found);
        recalls += recall(&found, truth);
        ways[match way {
            SearchStrategy::Walk => 0,
            SearchStrategy::WidenedWalk => 1,
            SearchStrategy::Scan => 2,
        }] += 1.0 / asked.rows() as f64;
    }
    let seconds = fastest(|| {
        for query in 0..asked.rows() {
            index.search_eligible(asked.row(query), count, ef, &eligible, kept, &mut found);
        }
    });
    Filtered {
        selectivity,
        correlated,
        recall: recalls / asked.rows() as f64,
        queries_per_s: asked.rows() as f64 / seconds,
        walked: ways[0],
        widened: ways[1],
        scanned: ways[2],
    }
}
