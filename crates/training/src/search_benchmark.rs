//! Benchmark of product search on a catalogue with relevance judgments: nDCG@10 and recall@100 of lexical search,
//! vector search, their fusion, and the fusion ordered by the ranking model.
//!
//! The encoder is trained on the catalogue's text alone. The ranking model is trained on judgments, and
//! cross-validation over queries ensures that it never orders a query of its training data.
use super::{
    Progress,
    onnx::ModelError,
    query_encoder::{QueryEncoderConfig, QueryEncoderData, WIDTH, train_query_encoder},
    query_side::{BUCKET_COUNT, title_samples},
    ranker::{RankerConfig, RankingData, RankingList, train_ranker},
    relevance,
};
use ahash::AHashMap;
use lodestone_catalog::Item;
use lodestone_core::ids::{ItemId, ItemKey, Row};
use lodestone_dataset::decompress;
use lodestone_index::{BuildConfig, FrozenError, FrozenGraph, Lexical, LexicalError, dot};
use lodestone_pipeline::{
    Candidates, Fusion,
    bundle::RelevanceFloor,
    features::{FEATURES, FeatureSchema},
    ranking::{
        Device, EncoderSource, QueryEncoder, Ranker, RankingError, Runtime, SentenceEncoder, SentenceError,
        SentenceFiles, TextEncoder, TextRole,
    },
    retrieve,
    source::CandidateSource,
};
use rand::{SeedableRng, rngs::StdRng};
use std::{
    fmt,
    fs::File,
    io::{self, BufRead, BufReader},
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
};

/// Cut-off rank of nDCG.
const NDCG_CUTOFF: usize = 10;
/// Cut-off rank of recall, and length of the result lists.
const RECALL_CUTOFF: usize = 100;
/// Candidates per source before fusion.
const SOURCE_COUNT: usize = 200;
/// Folds of the queries in the cross-validation.
const FOLDS: usize = 5;

/// Errors of [`search_benchmark`].
#[derive(Debug, thiserror::Error)]
pub enum SearchBenchmarkError {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{path}: line {line}: {problem}")]
    Line { path: PathBuf, line: usize, problem: String },
    #[error("{path}: {problem}")]
    File { path: PathBuf, problem: String },
    #[error(transparent)]
    Lexical(#[from] LexicalError),
    #[error(transparent)]
    Index(#[from] FrozenError),
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Ranking(#[from] RankingError),
    #[error(transparent)]
    Sentence(#[from] SentenceError),
}

/// Metrics of one search method.
#[derive(Debug, Clone, serde::Serialize)]
pub struct SearchQuality {
    pub method: &'static str,
    /// Mean over the queries with a relevant product.
    pub ndcg_at_10: f64,
    /// Recall of the good products. Mean over the queries with a good product.
    pub recall_at_100: f64,
}

/// Result of [`search_benchmark`].
#[derive(Debug, serde::Serialize)]
pub struct SearchReport {
    pub products: usize,
    /// Queries with a relevant product.
    pub queries: usize,
    /// The vectors' results are fused if they reach this floor.
    pub relevance: RelevanceFloor,
    pub methods: Vec<SearchQuality>,
}

impl fmt::Display for SearchReport {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        writeln!(f, "{} products, {} queries with a relevant product", self.products, self.queries)?;
        writeln!(f, "{:<10} {:>8} {:>11}", "", "nDCG@10", "recall@100")?;
        for method in &self.methods {
            writeln!(f, "{:<10} {:>8.4} {:>11.4}", method.method, method.ndcg_at_10, method.recall_at_100)?;
        }
        writeln!(f, "fused: vector results with a cosine of at least {:.3}", self.relevance.cosine_min)
    }
}

/// Options of [`search_benchmark`].
#[derive(Debug, Clone)]
pub struct SearchBenchmarkOptions {
    /// File of the products; see [`search_benchmark`].
    pub products: PathBuf,
    /// File of the judgments; see [`search_benchmark`].
    pub judgments: PathBuf,
    /// If none, an encoder is trained on the titles.
    pub encoder: Option<EncoderSource>,
    pub seed: u64,
}

/// The judgments of one query.
struct JudgedQuery {
    query: String,
    /// By row: the gain in nDCG, and whether the product is good.
    gains: AHashMap<u32, (f64, bool)>,
}

/// Searches the whole catalogue for each judged query and computes the metrics of each method.
///
/// `products`: .jsonl with `id` and `title`, and optionally `name`, `supplier` or `brand`, `short_description` or
/// `description`, `attr_t_…`; or .tsv with `product_uid` or `id`, and `title`. `judgments`: .tsv with `query`,
/// `product_id` or `product_uid`, and `rating` (0 to 3; gain 2^r - 1, good from 2) or `relevance` (1 to 3; gain
/// 2^(r-1) - 1, good from 2.33). Both plain, .gz or .zst.
pub fn search_benchmark(
    options: &SearchBenchmarkOptions,
    runtime: &Runtime,
    progress: &mut dyn FnMut(Progress),
) -> Result<SearchReport, SearchBenchmarkError> {
    let items = read_products(&options.products)?;
    let rows: AHashMap<&str, u32> =
        items.iter().enumerate().map(|(row, item)| (item.id.as_str(), row as u32)).collect();
    let judged = read_judgments(&options.judgments, &rows)?;

    let lexical = Lexical::new()?;
    let documents: Vec<(Row, &Item)> = items.iter().enumerate().map(|(row, item)| (Row(row as u32), item)).collect();
    lexical.upsert(&documents)?;
    let queries = judged.iter().map(|judged| {
        let corrected = lexical.correct(&judged.query, &|_| true)?;
        Ok(corrected.unwrap_or_else(|| judged.query.clone()))
    });
    let queries: Vec<String> = queries.collect::<Result<_, LexicalError>>()?;
    let mut encoded = match &options.encoder {
        Some(source) => encode_with(source, &items, runtime, progress)?,
        None => encode_with_trained(&items, runtime, options.seed, progress)?,
    };
    let query_vectors = queries.iter().map(|query| encoded.encoder.encode(&[query], TextRole::Query));
    let query_vectors =
        query_vectors.map(|vectors| Ok(vectors?.remove(0))).collect::<Result<Vec<_>, RankingError>>()?;
    let index = FrozenGraph::build(&encoded.items, encoded.dimension, BuildConfig::default(), &|_| {})?;

    let relevance = relevance::learn(&items, &index, &mut encoded.encoder, progress)?;

    let mut results: [Vec<Vec<u32>>; 3] = Default::default();
    let mut lists = Vec::with_capacity(judged.len());
    for (done, (judged, vector)) in judged.iter().zip(&query_vectors).enumerate() {
        progress(Progress { stage: "search", done: done + 1, total: query_vectors.len(), loss: f32::NAN });
        let matches = lexical.search_all_then_any(&queries[done], SOURCE_COUNT, &|_| true)?.rows;
        let mut neighbours = vector.as_ref().map(|vector| index.search(vector, SOURCE_COUNT, 400)).unwrap_or_default();
        let first = |list: &[(Row, f32)]| list.iter().take(RECALL_CUTOFF).map(|(row, _)| row.0).collect();
        results[0].push(first(&matches));
        results[1].push(first(&neighbours));
        retrieve::remove_irrelevant(&mut neighbours, &matches, relevance.cosine_min);
        let mut fusion = Fusion::new(items.len());
        fusion.add(CandidateSource::Lexical, matches);
        fusion.add(CandidateSource::QueryVector, neighbours);
        let fused = fusion.finish(2 * SOURCE_COUNT, |row| ItemKey(row.0));
        results[2].push(fused.list.iter().take(RECALL_CUTOFF).map(|candidate| candidate.row.0).collect());
        lists.push(list_of(&fused, &encoded, vector.as_deref(), judged));
    }
    let ranked = rank_by_cross_validation(&lists, options.seed, runtime, progress)?;
    let methods = ["lexical", "vector", "fused"].into_iter().zip(&results).chain([("ranked", &ranked)]);
    Ok(SearchReport {
        products: items.len(),
        queries: judged.len(),
        relevance,
        methods: methods.map(|(method, results)| quality(method, &judged, results)).collect(),
    })
}

/// An encoder with its vectors of the products.
struct Encoded {
    encoder: TextEncoder,
    dimension: usize,
    /// `[products × dimension]`.
    items: Vec<f32>,
}

/// Encodes with an external sentence encoder.
fn encode_with(
    source: &EncoderSource,
    items: &[Item],
    runtime: &Runtime,
    progress: &mut dyn FnMut(Progress),
) -> Result<Encoded, SearchBenchmarkError> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let files = SentenceFiles::read(runtime, source)?;
    let mut encoder = SentenceEncoder::open(runtime, &files, Device::Cpu, threads)?;
    let texts: Vec<String> = items.iter().map(Item::sentence).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let total = texts.len();
    let items = encoder.encode(&texts, TextRole::Passage, &mut |done| {
        progress(Progress { stage: "embed products", done, total, loss: f32::NAN });
    })?;
    let dimension = encoder.dimension();
    Ok(Encoded { encoder: TextEncoder::Sentence(Box::new(encoder)), dimension, items })
}

/// Encodes with the subword encoder, which it trains on the titles.
fn encode_with_trained(
    items: &[Item],
    runtime: &Runtime,
    seed: u64,
    progress: &mut dyn FnMut(Progress),
) -> Result<Encoded, SearchBenchmarkError> {
    let mut rng = StdRng::seed_from_u64(seed);
    let (texts, spans) = title_samples(items, &mut rng);
    let config = QueryEncoderConfig { bucket_count: BUCKET_COUNT, seed, steps_max: 3000, ..Default::default() };
    let data = QueryEncoderData { texts: &texts, samples: &spans };
    let trained = train_query_encoder(data, &config, None, runtime, progress)?;
    let encoder = QueryEncoder::open(runtime, &trained.onnx, Device::Cpu)?;
    let encoder = TextEncoder::Terms { encoder, bucket_count: BUCKET_COUNT };
    Ok(Encoded { encoder, dimension: WIDTH, items: trained.encode(&texts) })
}

/// The candidates of one query as a training list, with their rows.
struct QueryList {
    rows: Vec<u32>,
    list: RankingList,
}

/// Computes the features that exist for a query without a user. [`lodestone_pipeline::features::append`] does not
/// apply, because it reads a user and a catalogue with vectors in the user space.
fn list_of(fused: &Candidates, encoded: &Encoded, vector: Option<&[f32]>, judged: &JudgedQuery) -> QueryList {
    let best_gain = judged.gains.values().map(|(gain, _)| *gain).fold(f64::MIN_POSITIVE, f64::max);
    let names = ["query_similarity", "lexical_score", "lexical_score_relative", "retrieval_score"];
    let columns = names.map(|name| FEATURES.iter().position(|feature| *feature == name));
    let mut features = vec![0.0; fused.list.len() * FEATURES.len()];
    for (candidate, features) in fused.list.iter().zip(features.chunks_exact_mut(FEATURES.len())) {
        let item = &encoded.items[candidate.row.index() * encoded.dimension..][..encoded.dimension];
        let lexical = candidate.evidence.lexical;
        let values = [
            vector.map_or(0.0, |vector| dot(vector, item)),
            lexical,
            if fused.lexical_best > 0.0 { lexical / fused.lexical_best } else { 0.0 },
            candidate.evidence.fused,
        ];
        for (column, value) in columns.into_iter().zip(values) {
            features[column.expect("the names above are features")] = value;
        }
    }
    let rows: Vec<u32> = fused.list.iter().map(|candidate| candidate.row.0).collect();
    let label = |row| judged.gains.get(row).map_or(0.0, |(gain, _)| (gain / best_gain) as f32);
    QueryList { list: RankingList { features, labels: rows.iter().map(label).collect(), is_weighted: false }, rows }
}

/// Orders each list by a ranking model that was trained on the other folds. If there are too few lists for a training,
/// they keep the order of fusion.
fn rank_by_cross_validation(
    lists: &[QueryList],
    seed: u64,
    runtime: &Runtime,
    progress: &mut dyn FnMut(Progress),
) -> Result<Vec<Vec<u32>>, SearchBenchmarkError> {
    let in_order = |list: &QueryList| list.rows.iter().copied().take(RECALL_CUTOFF).collect::<Vec<u32>>();
    let mut ranked: Vec<Vec<u32>> = lists.iter().map(in_order).collect();
    if lists.len() < 4 * FOLDS {
        return Ok(ranked);
    }
    for fold in 0..FOLDS {
        let (mut training, mut validation) = (Vec::new(), Vec::new());
        for (at, list) in lists.iter().enumerate().filter(|(at, _)| at % FOLDS != fold) {
            if list.list.labels.iter().any(|label| *label > 0.0) {
                if (at / FOLDS).is_multiple_of(8) { &mut validation } else { &mut training }.push(list.list.clone());
            }
        }
        let config = RankerConfig { epochs_max: 40, patience: 3, seed, ..Default::default() };
        let (heads, schema) = (["relevance".to_owned()], FeatureSchema::default());
        let data =
            RankingData { lists: &training, validation: &validation, feature_names: schema.names(), heads: &heads };
        let trained = train_ranker(data, &config, &AtomicBool::new(false), runtime, progress)?;
        let mut ranker = Ranker::open(runtime, &trained.onnx, schema.names(), Device::Cpu)?;
        for (at, list) in lists.iter().enumerate().skip(fold).step_by(FOLDS) {
            if list.rows.is_empty() {
                continue;
            }
            let scores = ranker.score(&list.list.features, list.rows.len())?;
            let mut order: Vec<usize> = (0..list.rows.len()).collect();
            order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b)));
            ranked[at] = order.into_iter().take(RECALL_CUTOFF).map(|index| list.rows[index]).collect();
        }
    }
    Ok(ranked)
}

fn quality(method: &'static str, judged: &[JudgedQuery], results: &[Vec<u32>]) -> SearchQuality {
    let discount = |position: usize| 1.0 / ((position + 2) as f64).log2();
    let (mut ndcg, mut recall, mut with_good) = (0.0, 0.0, 0usize);
    for (judged, result) in judged.iter().zip(results) {
        let gain = |row: &u32| judged.gains.get(row).map_or(0.0, |(gain, _)| *gain);
        let mut ideal: Vec<f64> = judged.gains.values().map(|(gain, _)| *gain).collect();
        ideal.sort_by(|a, b| b.total_cmp(a));
        let best: f64 =
            ideal.iter().take(NDCG_CUTOFF).enumerate().map(|(position, gain)| gain * discount(position)).sum();
        let gained: f64 =
            result.iter().take(NDCG_CUTOFF).enumerate().map(|(position, row)| gain(row) * discount(position)).sum();
        ndcg += gained / best;
        let good = judged.gains.values().filter(|(_, good)| *good).count();
        if good > 0 {
            with_good += 1;
            let hits = result.iter().filter(|row| judged.gains.get(row).is_some_and(|(_, good)| *good)).count();
            recall += hits as f64 / good as f64;
        }
    }
    SearchQuality {
        method,
        ndcg_at_10: ndcg / judged.len().max(1) as f64,
        recall_at_100: recall / with_good.max(1) as f64,
    }
}

/// Reads a text file, plain, .gz or .zst. Returns its name without that extension, and its lines.
fn lines(path: &Path) -> Result<(String, Vec<String>), SearchBenchmarkError> {
    let io = |source| SearchBenchmarkError::Io { path: path.to_owned(), source };
    let file = File::open(path).map_err(io)?;
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_lowercase();
    let (plain, reader) = decompress(&name, file).map_err(io)?;
    let mut lines = Vec::new();
    for (number, line) in BufReader::new(reader).lines().enumerate() {
        let problem = |error: io::Error| error.to_string();
        let path = || path.to_owned();
        lines.push(line.map_err(|e| SearchBenchmarkError::Line {
            path: path(),
            line: number + 1,
            problem: problem(e),
        })?);
    }
    Ok((plain.to_owned(), lines))
}

/// Returns the indices of columns in a tab-separated header. A column may have several names.
fn columns<const N: usize>(
    path: &Path,
    header: &str,
    columns: [&[&str]; N],
) -> Result<[usize; N], SearchBenchmarkError> {
    let names: Vec<&str> = header.split('\t').collect();
    let mut indices = [0; N];
    for (index, alternatives) in indices.iter_mut().zip(columns) {
        *index =
            names.iter().position(|name| alternatives.contains(name)).ok_or_else(|| SearchBenchmarkError::File {
                path: path.to_owned(),
                problem: format!("column {} is missing; the file has {}", alternatives.join(" or "), names.join(", ")),
            })?;
    }
    Ok(indices)
}

fn read_products(path: &Path) -> Result<Vec<Item>, SearchBenchmarkError> {
    let (plain, lines) = lines(path)?;
    let at = |line: usize, problem: String| SearchBenchmarkError::Line { path: path.to_owned(), line, problem };
    let parse = |line: usize, id: &str| ItemId::parse(id).map_err(|error| at(line, format!("id `{id}` {error}")));
    let mut items = Vec::with_capacity(lines.len());
    if plain.ends_with(".jsonl") {
        for (number, line) in lines.iter().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let product: serde_json::Map<String, serde_json::Value> =
                serde_json::from_str(line).map_err(|error| at(number + 1, error.to_string()))?;
            let text = |name: &str| product.get(name).and_then(|value| value.as_str()).unwrap_or_default();
            let mut item = Item::titled(parse(number + 1, text("id"))?, text("title"));
            let name = text("name");
            if !item.title.contains(name) {
                item.title = format!("{} {name}", item.title).trim().to_owned();
            }
            item.brand = [text("supplier"), text("brand")].concat();
            item.description = [text("short_description"), text("description")].join(" ").trim().to_owned();
            for (_, value) in product.iter().filter(|(name, _)| name.starts_with("attr_t_")) {
                item.description.push(' ');
                item.description.push_str(value.as_str().unwrap_or_default());
            }
            items.push(item);
        }
    } else if plain.ends_with(".tsv") {
        let header = lines.first().map_or("", String::as_str);
        let [id, title] = columns(path, header, [&["product_uid", "product_id", "id"], &["title"]])?;
        for (number, line) in lines.iter().enumerate().skip(1) {
            let fields: Vec<&str> = line.split('\t').collect();
            let field = |index: usize| fields.get(index).copied().unwrap_or_default();
            items.push(Item::titled(parse(number + 1, field(id))?, field(title)));
        }
    } else {
        let problem = "unknown format; products are .jsonl or .tsv, plain, .gz or .zst".to_owned();
        return Err(SearchBenchmarkError::File { path: path.to_owned(), problem });
    }
    if items.len() < 2 {
        let problem = format!("has {} products; at least 2 are needed", items.len());
        return Err(SearchBenchmarkError::File { path: path.to_owned(), problem });
    }
    Ok(items)
}

/// Reads the queries with a relevant product, in the order of the file.
fn read_judgments(path: &Path, rows: &AHashMap<&str, u32>) -> Result<Vec<JudgedQuery>, SearchBenchmarkError> {
    let (_, lines) = lines(path)?;
    let header = lines.first().map_or("", String::as_str);
    let graded = header.split('\t').any(|name| name == "rating");
    let grade: &[&str] = if graded { &["rating"] } else { &["relevance"] };
    let [query, product, grade] = columns(path, header, [&["query"], &["product_id", "product_uid"], grade])?;
    let mut judged: Vec<JudgedQuery> = Vec::new();
    let mut index_of: AHashMap<String, usize> = AHashMap::new();
    for (number, line) in lines.iter().enumerate().skip(1) {
        let at = |problem: String| SearchBenchmarkError::Line { path: path.to_owned(), line: number + 1, problem };
        let fields: Vec<&str> = line.split('\t').collect();
        let field = |index: usize| fields.get(index).copied().unwrap_or_default();
        let row = *rows.get(field(product)).ok_or_else(|| at(format!("product `{}` is unknown", field(product))))?;
        let value: f64 = field(grade).parse().map_err(|_| at(format!("`{}` is not a number", field(grade))))?;
        let gain = match graded {
            true => (value.exp2() - 1.0, value >= 2.0),
            false => ((value - 1.0).exp2() - 1.0, value >= 2.33),
        };
        let index = *index_of.entry(field(query).to_owned()).or_insert(judged.len());
        if index == judged.len() {
            judged.push(JudgedQuery { query: field(query).to_owned(), gains: AHashMap::new() });
        }
        judged[index].gains.insert(row, gain);
    }
    judged.retain(|judged| judged.gains.values().any(|(gain, _)| *gain > 0.0));
    if judged.is_empty() {
        let problem = "has no query with a relevant product".to_owned();
        return Err(SearchBenchmarkError::File { path: path.to_owned(), problem });
    }
    Ok(judged)
}
