//! Product search on a judged catalogue: nDCG@10 and recall@100 of words, vectors, and both.
//!
//! Learning sees the catalogue's text alone. Judgments only score.
use super::{
    Progress,
    query_encoder::{QueryEncoderConfig, train_query_encoder},
    train::{BUCKET_COUNT, title_samples},
};
use crate::{
    catalog::{Item, VECTOR_DIM},
    engine::{Fusion, retrieve},
    ids::{ItemId, Row},
    import::plain,
    ranking::{Device, QueryEncoder, RankingError, Runtime},
    retrieval::{BuildConfig, FrozenError, FrozenGraph, Lexical, LexicalError},
    text,
};
use ahash::AHashMap;
use rand::{SeedableRng, rngs::StdRng};
use std::{
    fmt,
    fs::File,
    io::{self, BufRead, BufReader},
    path::{Path, PathBuf},
};

/// Places that nDCG looks at.
const NDCG_CUTOFF: usize = 10;
/// Places that recall looks at; so many results are asked for.
const RECALL_CUTOFF: usize = 100;

/// Why a search cannot be judged.
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
    Model(#[from] super::onnx::ModelError),
    #[error(transparent)]
    Ranking(#[from] RankingError),
}

/// How well one way of searching does.
#[derive(Debug, Clone, serde::Serialize)]
pub struct SearchQuality {
    pub method: &'static str,
    /// Mean over the queries with a product of some worth.
    pub ndcg_at_10: f64,
    /// Of the good products; mean over the queries that have one.
    pub recall_at_100: f64,
}

#[derive(Debug, serde::Serialize)]
pub struct SearchReport {
    pub products: usize,
    /// With a product of some worth.
    pub queries: usize,
    pub methods: Vec<SearchQuality>,
}

impl fmt::Display for SearchReport {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        writeln!(f, "{} products, {} queries with an answer", self.products, self.queries)?;
        writeln!(f, "{:<10} {:>8} {:>11}", "", "nDCG@10", "recall@100")?;
        for method in &self.methods {
            writeln!(f, "{:<10} {:>8.4} {:>11.4}", method.method, method.ndcg_at_10, method.recall_at_100)?;
        }
        Ok(())
    }
}

/// What raters said of the products of a query.
struct Judged {
    query: String,
    /// By row: the gain of nDCG, and whether it counts as good.
    gains: AHashMap<u32, (f64, bool)>,
}

/// Searches the whole catalogue for every judged query.
///
/// `products`: .jsonl with `id`, `title`, and where known `name`, `supplier` or `brand`, `short_description` or
/// `description`, `attr_t_…`; or .tsv with `product_uid` or `id`, and `title`. `judgments`: .tsv with `query`, `product_id`
/// or `product_uid`, and `rating` (0 to 3; gain 2^r - 1, good from 2) or `relevance` (1 to 3; gain 2^(r-1) - 1, good from
/// 2.33). Both plain, .gz or .zst.
pub fn search_benchmark(
    products: &Path,
    judgments: &Path,
    runtime: &Runtime,
    seed: u64,
    progress: &mut dyn FnMut(Progress),
) -> Result<SearchReport, SearchBenchmarkError> {
    let items = read_products(products)?;
    let rows: AHashMap<&str, u32> =
        items.iter().enumerate().map(|(row, item)| (item.id.as_str(), row as u32)).collect();
    let judged = read_judgments(judgments, &rows)?;
    let query_count = judged.len();

    let lexical = Lexical::new()?;
    let documents: Vec<(Row, &Item)> = items.iter().enumerate().map(|(row, item)| (Row(row as u32), item)).collect();
    lexical.upsert(&documents)?;

    let mut rng = StdRng::seed_from_u64(seed);
    let (texts, spans) = title_samples(&items, &mut rng);
    let config = QueryEncoderConfig { bucket_count: BUCKET_COUNT, seed, steps_max: 3000, ..Default::default() };
    let trained = train_query_encoder(&texts, &spans, &config, runtime, progress)?;
    let vectors = trained.encode(&texts);
    let index = FrozenGraph::build(&vectors, VECTOR_DIM, BuildConfig::default(), &|_| {})?;
    let mut encoder = QueryEncoder::open(runtime, &trained.onnx, Device::Cpu)?;

    let mut found: [Vec<Vec<u32>>; 3] = Default::default();
    for (done, judged) in judged.iter().enumerate() {
        progress(Progress { stage: "search", done: done + 1, total: query_count, loss: f32::NAN });
        let (words, _) = lexical.search_all_then_any(&judged.query, RECALL_CUTOFF, &|_| true)?;
        let terms = text::hashed_terms(&judged.query, BUCKET_COUNT);
        let near = match terms.is_empty() {
            true => Vec::new(),
            false => index.search(&encoder.encode_batch(&[terms])?, RECALL_CUTOFF, 200),
        };
        let rows = |list: &[(Row, f32)]| list.iter().map(|(row, _)| row.0).collect();
        found[0].push(rows(&words));
        found[1].push(rows(&near));
        let mut fusion = Fusion::new(items.len());
        fusion.add(retrieve::WORDS, words);
        fusion.add(retrieve::QUERY_VECTOR, near);
        found[2].push(fusion.finish(RECALL_CUTOFF).list.iter().map(|candidate| candidate.row.0).collect());
    }
    let methods = ["lexical", "vector", "fused"].into_iter().zip(&found);
    Ok(SearchReport {
        products: items.len(),
        queries: judged.len(),
        methods: methods.map(|(method, found)| quality(method, &judged, found)).collect(),
    })
}

fn quality(method: &'static str, judged: &[Judged], found: &[Vec<u32>]) -> SearchQuality {
    let discount = |place: usize| 1.0 / ((place + 2) as f64).log2();
    let (mut ndcg, mut recall, mut with_good) = (0.0, 0.0, 0usize);
    for (judged, found) in judged.iter().zip(found) {
        let gain = |row: &u32| judged.gains.get(row).map_or(0.0, |(gain, _)| *gain);
        let mut ideal: Vec<f64> = judged.gains.values().map(|(gain, _)| *gain).collect();
        ideal.sort_by(|a, b| b.total_cmp(a));
        let best: f64 = ideal.iter().take(NDCG_CUTOFF).enumerate().map(|(place, gain)| gain * discount(place)).sum();
        let got: f64 = found.iter().take(NDCG_CUTOFF).enumerate().map(|(place, row)| gain(row) * discount(place)).sum();
        ndcg += got / best;
        let good = judged.gains.values().filter(|(_, good)| *good).count();
        if good > 0 {
            with_good += 1;
            let hits = found.iter().filter(|row| judged.gains.get(row).is_some_and(|(_, good)| *good)).count();
            recall += hits as f64 / good as f64;
        }
    }
    SearchQuality {
        method,
        ndcg_at_10: ndcg / judged.len().max(1) as f64,
        recall_at_100: recall / with_good.max(1) as f64,
    }
}

/// The lines of a text file, plain, .gz or .zst, and its name without that ending.
fn lines(path: &Path) -> Result<(String, Vec<String>), SearchBenchmarkError> {
    let io = |source| SearchBenchmarkError::Io { path: path.to_owned(), source };
    let file = File::open(path).map_err(io)?;
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_lowercase();
    let (plain, reader) = plain(&name, file).map_err(io)?;
    let mut found = Vec::new();
    for (number, line) in BufReader::new(reader).lines().enumerate() {
        let problem = |error: io::Error| error.to_string();
        let path = || path.to_owned();
        found.push(line.map_err(|e| SearchBenchmarkError::Line {
            path: path(),
            line: number + 1,
            problem: problem(e),
        })?);
    }
    Ok((plain.to_owned(), found))
}

/// The places of columns in a header of tab-separated names; each may have several names.
fn columns<const N: usize>(
    path: &Path,
    header: &str,
    wanted: [&[&str]; N],
) -> Result<[usize; N], SearchBenchmarkError> {
    let names: Vec<&str> = header.split('\t').collect();
    let mut places = [0; N];
    for (place, wanted) in places.iter_mut().zip(wanted) {
        *place = names.iter().position(|name| wanted.contains(name)).ok_or_else(|| SearchBenchmarkError::File {
            path: path.to_owned(),
            problem: format!("column {} is missing; found: {}", wanted.join(" or "), names.join(", ")),
        })?;
    }
    Ok(places)
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
            let field = |place: usize| fields.get(place).copied().unwrap_or_default();
            items.push(Item::titled(parse(number + 1, field(id))?, field(title)));
        }
    } else {
        let problem = "products are .jsonl or .tsv, plain, .gz or .zst".to_owned();
        return Err(SearchBenchmarkError::File { path: path.to_owned(), problem });
    }
    if items.len() < 2 {
        let problem = format!("has {} products; at least 2 are needed", items.len());
        return Err(SearchBenchmarkError::File { path: path.to_owned(), problem });
    }
    Ok(items)
}

/// Queries with a product of some worth, in the order of the file.
fn read_judgments(path: &Path, rows: &AHashMap<&str, u32>) -> Result<Vec<Judged>, SearchBenchmarkError> {
    let (_, lines) = lines(path)?;
    let header = lines.first().map_or("", String::as_str);
    let graded = header.split('\t').any(|name| name == "rating");
    let grade: &[&str] = if graded { &["rating"] } else { &["relevance"] };
    let [query, product, grade] = columns(path, header, [&["query"], &["product_id", "product_uid"], grade])?;
    let mut judged: Vec<Judged> = Vec::new();
    let mut places: AHashMap<String, usize> = AHashMap::new();
    for (number, line) in lines.iter().enumerate().skip(1) {
        let at = |problem: String| SearchBenchmarkError::Line { path: path.to_owned(), line: number + 1, problem };
        let fields: Vec<&str> = line.split('\t').collect();
        let field = |place: usize| fields.get(place).copied().unwrap_or_default();
        let row = *rows.get(field(product)).ok_or_else(|| at(format!("there is no product `{}`", field(product))))?;
        let value: f64 = field(grade).parse().map_err(|_| at(format!("`{}` is no number", field(grade))))?;
        let gain = match graded {
            true => (value.exp2() - 1.0, value >= 2.0),
            false => ((value - 1.0).exp2() - 1.0, value >= 2.33),
        };
        let place = *places.entry(field(query).to_owned()).or_insert(judged.len());
        if place == judged.len() {
            judged.push(Judged { query: field(query).to_owned(), gains: AHashMap::new() });
        }
        judged[place].gains.insert(row, gain);
    }
    judged.retain(|judged| judged.gains.values().any(|(gain, _)| *gain > 0.0));
    if judged.is_empty() {
        let problem = "has no query with a product of some worth".to_owned();
        return Err(SearchBenchmarkError::File { path: path.to_owned(), problem });
    }
    Ok(judged)
}
