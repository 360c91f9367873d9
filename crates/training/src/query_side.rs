//! The query encoder of a bundle: trained on titles, or external.
use super::{
    Progress,
    error::TrainError,
    onnx::ExportCheck,
    options::TrainOptions,
    query_encoder::{QueryEncoderConfig, QueryEncoderData, train_query_encoder},
};
use lodestone_catalog::Item;
use lodestone_core::text;
use lodestone_pipeline::ranking::{Device, QueryEncoderKind, Runtime, SentenceEncoder, SentenceFiles, TextRole};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom};

pub(super) const BUCKET_COUNT: u32 = 32_768;
/// Title spans for each item that stand in for queries.
const SPANS_PER_ITEM: usize = 8;

/// The query encoder and the vectors of the items.
pub(super) struct QuerySide {
    pub kind: QueryEncoderKind,
    pub model: Vec<u8>,
    pub tokenizer: Option<Vec<u8>>,
    /// `[items × dimension]`, of length 1.
    pub title_vectors: Vec<f32>,
}

/// Learned on titles; it begins with `start`, an exported one, if there is one, and then takes fewer steps.
pub(super) fn learned_query_side(
    items: &[Item],
    options: &TrainOptions,
    start: Option<&[u8]>,
    exports: &mut Vec<ExportCheck>,
    runtime: &Runtime,
    progress: &mut dyn FnMut(Progress),
) -> Result<QuerySide, TrainError> {
    // A generator of its own: a training that is taken up again draws the rest as if it had learned this too.
    let (texts, spans) = title_samples(items, &mut StdRng::seed_from_u64(options.seed));
    let mut config = QueryEncoderConfig { bucket_count: BUCKET_COUNT, seed: options.seed, ..Default::default() };
    if start.is_some() {
        config = QueryEncoderConfig { epochs: 1, steps_max: config.steps_max / config.epochs, ..config };
    }
    let data = QueryEncoderData { texts: &texts, samples: &spans };
    let trained = train_query_encoder(data, &config, start, runtime, progress)?;
    exports.push(trained.check.clone());
    let kind = QueryEncoderKind::HashedTerms { bucket_count: BUCKET_COUNT };
    Ok(QuerySide { kind, title_vectors: trained.encode(&texts), model: trained.onnx, tokenizer: None })
}

/// Encodes the items with an external sentence encoder.
pub(super) fn embed_with(
    files: &SentenceFiles,
    items: &[Item],
    runtime: &Runtime,
    progress: &mut dyn FnMut(Progress),
) -> Result<QuerySide, TrainError> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut encoder = SentenceEncoder::open(runtime, files, Device::Cpu, threads)?;
    let texts: Vec<String> = items.iter().map(Item::sentence).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let mut title_vectors = encoder.encode(&texts, TextRole::Passage, &mut |done| {
        progress(Progress { stage: "item texts", done, total: texts.len(), loss: f32::NAN });
    })?;
    // The model may know no token of a text. The index needs a vector, so the item gets an arbitrary unit vector, as
    // one that is written while a server runs.
    for vector in title_vectors.chunks_exact_mut(encoder.dimension()) {
        if vector.iter().all(|value| *value == 0.0) {
            vector[0] = 1.0;
        }
    }
    let (model, tokenizer) = (files.model.clone(), Some(files.tokenizer.clone()));
    Ok(QuerySide { kind: QueryEncoderKind::Sentence(files.config.clone()), model, tokenizer, title_vectors })
}

/// Hashed terms of a text.
type Terms = Vec<u32>;

/// Hashed terms of each item's whole text, and of random spans of its title with some misspellings: queries before
/// there are any.
pub(super) fn title_samples(items: &[Item], rng: &mut StdRng) -> (Vec<Terms>, Vec<(Terms, u32)>) {
    let texts = items
        .iter()
        .map(|item| text::hashed_terms(&item.search_text(), BUCKET_COUNT))
        .map(|terms| if terms.is_empty() { vec![0] } else { terms })
        .collect();
    let mut spans = Vec::with_capacity(items.len() * SPANS_PER_ITEM);
    for (row, item) in items.iter().enumerate() {
        for _ in 0..SPANS_PER_ITEM {
            let terms = text::hashed_terms(&query_from_title(&item.title, rng), BUCKET_COUNT);
            if !terms.is_empty() {
                spans.push((terms, row as u32));
            }
        }
    }
    spans.shuffle(rng);
    (texts, spans)
}

/// One to four neighbouring words of a title (characters where it has no spaces), one in four with a typing error.
pub(super) fn query_from_title(title: &str, rng: &mut StdRng) -> String {
    let words: Vec<&str> = title.split_whitespace().collect();
    let mut query = if words.len() > 1 {
        let length = rng.random_range(1..=words.len().min(4));
        let start = rng.random_range(0..=words.len() - length);
        words[start..start + length].join(" ")
    } else {
        let characters: Vec<char> = title.chars().collect();
        let length = rng.random_range(characters.len().min(2)..=characters.len().min(8));
        let start = rng.random_range(0..=characters.len() - length);
        characters[start..start + length].iter().collect()
    };
    if rng.random_bool(0.25) {
        query = misspelled(&query, rng);
    }
    query
}

/// Drops or swaps one character.
fn misspelled(text: &str, rng: &mut StdRng) -> String {
    let mut characters: Vec<char> = text.chars().collect();
    if characters.len() < 4 {
        return text.to_owned();
    }
    let place = rng.random_range(1..characters.len() - 1);
    if rng.random_bool(0.5) {
        characters.remove(place);
    } else {
        characters.swap(place, place + 1);
    }
    characters.into_iter().collect()
}
