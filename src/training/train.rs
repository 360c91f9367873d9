//! From a shop's data to a bundle.
use super::{
    Progress, counts,
    onnx::ExportCheck,
    person_encoder::{HistoryToken, PersonEncoderConfig, SequenceSample, train_person_encoder},
    query_encoder::{QueryEncoderConfig, train_query_encoder},
    ranker::{RankerConfig, RankingList, train_ranker},
    replay::{Basket, baskets, time_at_share},
};
use crate::{
    bundle::{Bundle, BundleError, Head, Manifest},
    catalog::{Item, VECTOR_DIM},
    dataset::{self, DatasetError, DatasetEvent},
    engine::{
        Candidates, ENCODED_EVENTS_MAX, Models, Options, Story, Viewer, World, WorldError,
        retrieve::{self, Ask, Eligible},
    },
    events::{Event, EventKind},
    features::FEATURES,
    ids::{ItemId, PersonId, Row},
    ranking::{Device, RankingError, Runtime, SentenceEncoder, SentenceError},
    retrieval::{BuildConfig, FrozenError, FrozenGraph, Precision, VectorError, check_vector},
    text,
    units::UnixMillis,
};
use ahash::{AHashMap, AHashSet};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// How a bundle is trained.
#[derive(Debug, Clone)]
pub struct TrainOptions {
    pub seed: u64,
    /// Share of the baskets, by time, that encoders and counts learn from before the ranker's labels begin.
    pub encoder_share: f64,
    /// Share after which nothing is learned: what comes later is left for `evaluate`.
    pub trained_share: f64,
    /// Ranking lists at most.
    pub lists_max: usize,
    /// A directory with `model.onnx` and `tokenizer.json` of a sentence encoder, instead of one learned on the titles.
    pub query_encoder: Option<PathBuf>,
    pub name: String,
    pub now: UnixMillis,
}

impl Default for TrainOptions {
    fn default() -> Self {
        Self {
            seed: 1,
            encoder_share: 0.75,
            trained_share: 0.9,
            lists_max: 3000,
            query_encoder: None,
            name: "bundle".to_owned(),
            now: UnixMillis(0),
        }
    }
}

/// What a training did.
#[derive(Debug, Clone, serde::Serialize)]
pub struct TrainReport {
    pub item_count: usize,
    pub basket_count: usize,
    pub sample_count: usize,
    pub list_count: usize,
    pub heads: Vec<String>,
    /// Loss on what early stopping watched: person encoder, ranker.
    pub validation_losses: [f32; 2],
    /// Model and the greatest difference between its ONNX export and the trained original.
    pub exports: Vec<(String, f32)>,
}

#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    #[error(transparent)]
    Bundle(#[from] BundleError),
    #[error(transparent)]
    World(#[from] WorldError),
    #[error(transparent)]
    Ranking(#[from] RankingError),
    #[error(transparent)]
    Model(#[from] super::onnx::ModelError),
    #[error(transparent)]
    Index(#[from] FrozenError),
    #[error(transparent)]
    Sentence(#[from] SentenceError),
    #[error("{space} vector of item {item}: {source}")]
    Vector { space: &'static str, item: ItemId, source: VectorError },
    #[error("{0}")]
    TooLittle(String),
}

/// Share of the encoder's samples, the latest, that early stopping watches.
const VALIDATION_SHARE: f64 = 0.08;
/// Encoder samples at most; the latest are kept.
const SAMPLES_MAX: usize = 20_000;
/// Title spans for each item that stand in for queries.
const SPANS_PER_ITEM: usize = 8;
pub(super) const BUCKET_COUNT: u32 = 32_768;
/// A return within this time counts against the purchase.
const RETURN_DAYS: i64 = 60;
/// Heads with fewer positive labels are not learned.
const HEAD_POSITIVES_MIN: usize = 50;

/// Trains every model on `data` (canonical Parquet) and writes the bundle to `out`.
pub fn train(
    data: &Path,
    out: &Path,
    runtime: &Runtime,
    options: &TrainOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<TrainReport, TrainError> {
    let items = dataset::read_items(&data.join("items.parquet"))?;
    let lines = dataset::read_events(&data.join("events.parquet"))?;
    let row_of: AHashMap<ItemId, u32> =
        items.iter().enumerate().map(|(row, item)| (item.id.clone(), row as u32)).collect();
    let baskets = baskets(&lines, &row_of);
    if items.len() < 2 || baskets.len() < 20 {
        return Err(TrainError::TooLittle(format!(
            "{} items and {} baskets are too few to learn from; at least 2 and 20 are needed",
            items.len(),
            baskets.len()
        )));
    }
    let labels_from = time_at_share(&baskets, options.encoder_share);
    let trained_until = time_at_share(&baskets, options.trained_share);
    let mut rng = StdRng::seed_from_u64(options.seed);
    let mut exports: Vec<ExportCheck> = Vec::new();
    let mut curves = LossCurves::default();
    let progress = &mut |step: Progress| {
        curves.note(step);
        progress(step);
    };

    let query = match &options.query_encoder {
        Some(directory) => embed_with(directory, &items, runtime, progress)?,
        None => learned_query_side(&items, options.seed, &mut rng, &mut exports, runtime, progress)?,
    };
    let title_dimension = query.title_vectors.len() / items.len();
    check_item_vectors("title", &items, &query.title_vectors, title_dimension)?;

    let early = &baskets[..baskets.partition_point(|basket| basket.at < labels_from)];
    let samples = sequence_samples(early);
    let (fit, validation) = samples.split_at((samples.len() as f64 * (1.0 - VALIDATION_SHARE)) as usize);
    let person_config = PersonEncoderConfig { seed: options.seed, ..Default::default() };
    let person = train_person_encoder(
        &query.title_vectors,
        title_dimension,
        fit,
        validation,
        &person_config,
        runtime,
        progress,
    )?;
    exports.push(person.check.clone());
    check_item_vectors("item", &items, &person.item_vectors, VECTOR_DIM)?;

    let mut bundle = Bundle {
        manifest: Manifest::new(options.name.clone(), options.now.0, trained_until.0, BUCKET_COUNT),
        item_vectors: freeze(&person.item_vectors, VECTOR_DIM)?,
        title_vectors: freeze(&query.title_vectors, title_dimension)?,
        text_projection: person.text_projection,
        next: counts::next_basket(early, items.len()),
        together: counts::together(early, items.len()),
        person_encoder: person.onnx,
        query_encoder: query.model,
        tokenizer: query.tokenizer,
        training: None,
        ranker: Vec::new(),
        items,
    };
    let lists =
        ranking_lists(&bundle, runtime, lines, &baskets, labels_from, trained_until, options, &mut rng, progress)?;
    let list_count = lists.lists.len();
    let person_loss = person.validation_loss;
    let split = list_count - list_count / 6;
    let config = RankerConfig { seed: options.seed, ..Default::default() };
    let (fit_lists, validation_lists) = lists.lists.split_at(split);
    let ranker = train_ranker(fit_lists, validation_lists, FEATURES, &lists.heads, &config, runtime, progress)?;
    exports.push(ranker.check.clone());
    let validation_losses = [person_loss, ranker.validation_loss];
    curves.add("person encoder, validation", &person.validation_losses);
    curves.add("ranker, validation", &ranker.validation_losses);
    bundle.training = Some(serde_json::to_vec(&curves.thinned()).expect("numbers become JSON"));

    // The counts cost nothing: they learn up to the end of what may be known.
    let known = &baskets[..baskets.partition_point(|basket| basket.at < trained_until)];
    bundle.next = counts::next_basket(known, bundle.items.len());
    bundle.together = counts::together(known, bundle.items.len());
    bundle.ranker = ranker.onnx;
    let weight = |head: &String| if head == "return" { -0.05 } else { 1.0 };
    bundle.manifest.heads = lists
        .heads
        .iter()
        .zip(&ranker.calibration)
        .map(|(name, c)| Head { name: name.clone(), weight: weight(name), scale: c.scale, offset: c.offset })
        .collect();
    let report = TrainReport {
        item_count: bundle.items.len(),
        basket_count: baskets.len(),
        sample_count: samples.len(),
        list_count,
        heads: lists.heads,
        validation_losses,
        exports: exports.iter().map(|check| (check.model.to_string(), check.max_difference)).collect(),
    };
    bundle.write(out)?;
    Ok(report)
}

/// The losses of a training as it went, by stage: `training.json` of a bundle.
#[derive(Debug, Clone, Default, serde::Serialize, serde::Deserialize)]
pub(super) struct LossCurves {
    /// By name: steps and losses.
    pub curves: Vec<(String, Vec<(usize, f32)>)>,
}

impl LossCurves {
    /// Points that are kept of a curve.
    const POINTS_MAX: usize = 200;

    fn note(&mut self, step: Progress) {
        if step.loss.is_finite() {
            if self.curves.last().is_none_or(|(name, _)| name != step.stage) {
                self.curves.push((step.stage.to_owned(), Vec::new()));
            }
            self.curves.last_mut().expect("one was pushed").1.push((step.done, step.loss));
        }
    }

    fn add(&mut self, name: &str, points: &[(usize, f32)]) {
        let finite = points.iter().copied().filter(|point| point.1.is_finite());
        self.curves.push((name.to_owned(), finite.collect()));
    }

    /// Means of neighbouring points, so that each curve has at most [`Self::POINTS_MAX`].
    fn thinned(&self) -> Self {
        let thin = |points: &Vec<(usize, f32)>| {
            let size = points.len().div_ceil(Self::POINTS_MAX).max(1);
            let mean = |part: &[(usize, f32)]| part.iter().map(|point| point.1).sum::<f32>() / part.len() as f32;
            points.chunks(size).map(|part| (part[part.len() - 1].0, mean(part))).collect()
        };
        Self { curves: self.curves.iter().map(|(name, points)| (name.clone(), thin(points))).collect() }
    }
}

/// The query encoder and what it says of the items.
pub(super) struct QuerySide {
    pub model: Vec<u8>,
    pub tokenizer: Option<Vec<u8>>,
    /// `[items × dimension]`, of length 1.
    pub title_vectors: Vec<f32>,
}

fn learned_query_side(
    items: &[Item],
    seed: u64,
    rng: &mut StdRng,
    exports: &mut Vec<ExportCheck>,
    runtime: &Runtime,
    progress: &mut dyn FnMut(Progress),
) -> Result<QuerySide, TrainError> {
    let (texts, spans) = title_samples(items, rng);
    let config = QueryEncoderConfig { bucket_count: BUCKET_COUNT, seed, ..Default::default() };
    let trained = train_query_encoder(&texts, &spans, &config, runtime, progress)?;
    exports.push(trained.check.clone());
    Ok(QuerySide { title_vectors: trained.encode(&texts), model: trained.onnx, tokenizer: None })
}

pub(super) fn embed_with(
    directory: &Path,
    items: &[Item],
    runtime: &Runtime,
    progress: &mut dyn FnMut(Progress),
) -> Result<QuerySide, TrainError> {
    let [model, tokenizer] = SentenceEncoder::read(directory)?;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let opened = SentenceEncoder::from_bytes(runtime, &model, &tokenizer, Device::Cpu, threads);
    let mut encoder = opened.map_err(|source| SentenceError::Model { path: directory.to_owned(), source })?;
    let texts: Vec<String> = items.iter().map(Item::sentence).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let title_vectors = encoder.encode(&texts, &mut |done| {
        progress(Progress { stage: "item texts", done, total: texts.len(), loss: f32::NAN });
    })?;
    Ok(QuerySide { model, tokenizer: Some(tokenizer), title_vectors })
}

/// Refuses vectors that an index could not take, by the item's name.
pub(super) fn check_item_vectors(
    space: &'static str,
    items: &[Item],
    vectors: &[f32],
    dimensions: usize,
) -> Result<(), TrainError> {
    for (item, vector) in items.iter().zip(vectors.chunks(dimensions)) {
        check_vector(vector, dimensions).map_err(|source| TrainError::Vector {
            space,
            item: item.id.clone(),
            source,
        })?;
    }
    Ok(())
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
fn query_from_title(title: &str, rng: &mut StdRng) -> String {
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

/// For each basket but a person's first: the events before it, and its items as targets. In time order.
fn sequence_samples(baskets: &[Basket]) -> Vec<SequenceSample> {
    let mut histories: AHashMap<&PersonId, Vec<(u32, UnixMillis)>> = AHashMap::new();
    let mut samples = Vec::new();
    for basket in baskets {
        let Some(person) = &basket.person else { continue };
        let history = histories.entry(person).or_default();
        if !history.is_empty() {
            let latest = &history[history.len().saturating_sub(ENCODED_EVENTS_MAX)..];
            let share = 1.0 / basket.rows.len() as f32;
            samples.push(SequenceSample {
                history: latest
                    .iter()
                    .map(|(item, at)| HistoryToken {
                        item: *item,
                        kind: EventKind::Purchase as u8,
                        age_days: basket.at.days_since(*at),
                    })
                    .collect(),
                targets: basket.rows.iter().map(|row| (*row, share)).collect(),
            });
        }
        history.extend(basket.rows.iter().map(|row| (*row, basket.at)));
    }
    samples.split_off(samples.len().saturating_sub(SAMPLES_MAX))
}

struct Lists {
    lists: Vec<RankingList>,
    heads: Vec<String>,
}

/// Replays the events through the serving code and keeps, before each labelled basket, what retrieval returned.
#[allow(clippy::too_many_arguments)]
fn ranking_lists(
    bundle: &Bundle,
    runtime: &Runtime,
    lines: Vec<DatasetEvent>,
    baskets: &[Basket],
    labels_from: UnixMillis,
    trained_until: UnixMillis,
    options: &TrainOptions,
    rng: &mut StdRng,
    progress: &mut dyn FnMut(Progress),
) -> Result<Lists, TrainError> {
    let mut models = Models::open(runtime, bundle, Device::Cpu)?;
    let world = World::new(copy_for_replay(bundle), 1024)?;
    let events = dataset::into_events(lines);
    let returned = returned_lines(&events);
    let labelled = baskets
        .iter()
        .filter(|basket| basket.person.is_some() && (labels_from..trained_until).contains(&basket.at))
        .count();
    // Each labelled basket gives two lists: one without a query, one with.
    let keep = (options.lists_max as f64 / (2 * labelled).max(1) as f64).min(1.0);
    let (mut lists, mut positives) = (Vec::new(), 0usize);
    for (done, event) in events.iter().take_while(|event| event.at < trained_until).enumerate() {
        if event.kind == EventKind::Purchase && event.at >= labels_from && rng.random_bool(keep) {
            let bought: AHashMap<Row, f32> = event
                .lines
                .iter()
                .filter_map(|line| {
                    let key = world.keys.get(&line.item)?;
                    let returned = returned.contains(&(event.person.clone(), line.item.clone()));
                    Some((Row(key.0), f32::from(u8::from(returned))))
                })
                .collect();
            for query in [None, event.lines.first().map(|line| &line.item)] {
                let query = query.and_then(|id| bundle.items.iter().find(|item| item.id == *id));
                let query = query.map(|item| query_from_title(&item.title, rng));
                if let Some(list) = list_for(&world, &mut models, event, query.as_deref(), &bought) {
                    positives += list.labels.chunks_exact(2).filter(|labels| labels[1] == 1.0).count();
                    lists.push(list);
                }
            }
        }
        world.apply_event(0, event);
        if done % 256 == 0 {
            progress(Progress { stage: "replay", done, total: events.len(), loss: f32::NAN });
        }
    }
    if lists.len() < 20 {
        return Err(TrainError::TooLittle(format!(
            "only {} baskets of known persons can be learned to rank from; at least 20 are needed",
            lists.len()
        )));
    }
    let mut heads = vec!["purchase".to_owned(), "return".to_owned()];
    if positives < HEAD_POSITIVES_MIN {
        heads.truncate(1);
        for list in &mut lists {
            list.labels = list.labels.iter().step_by(2).copied().collect();
        }
    }
    Ok(Lists { lists, heads })
}

/// Candidates and features as serving would have made them, with labels `[purchase, return]`. None without a positive.
fn list_for(
    world: &World,
    models: &mut Models,
    event: &Event,
    query: Option<&str>,
    bought: &AHashMap<Row, f32>,
) -> Option<RankingList> {
    let viewer = Viewer { person: event.person.clone(), session: String::new(), locale: String::new() };
    let mut story = Story::begin(world, &world.catalog.load_full(), &viewer, &Options::default(), event.at);
    let (candidates, vector) = candidates(&mut story, models, query);
    if !candidates.list.iter().any(|candidate| bought.contains_key(&candidate.row)) {
        return None;
    }
    let features = story.features(&candidates, vector.as_deref());
    let labels = candidates
        .list
        .iter()
        .flat_map(|candidate| match bought.get(&candidate.row) {
            Some(returned) => [1.0, *returned],
            None => [0.0, f32::NAN],
        })
        .collect();
    Some(RankingList { features, labels })
}

/// Stage one as serving runs it, with the default limits and no filter.
pub(super) fn candidates(
    story: &mut Story,
    models: &mut Models,
    query: Option<&str>,
) -> (Candidates, Option<Vec<f32>>) {
    let story_alone = std::slice::from_mut(story);
    let vector = Story::encode_queries(story_alone, models, &[query]).remove(0);
    Story::encode_people(story_alone, models);
    let catalog = story.catalog.clone();
    let limits = crate::engine::EngineConfig::default();
    let eligible = Eligible::offered(&catalog);
    let ask = Ask {
        world: story.world,
        catalog: &catalog,
        person: &story.person,
        query: query.map(|query| (query, vector.as_deref())),
        anchors: &story.person.recent,
        eligible: &eligible,
        now: story.now,
        source_count: limits.source_candidates_max,
        candidate_count: limits.candidates_max,
    };
    let found = match query {
        Some(_) => retrieve::for_query(&ask).unwrap_or_default(),
        None => retrieve::for_person(&ask),
    };
    (found, vector)
}

/// Purchases that were given back within [`RETURN_DAYS`].
pub(super) fn returned_lines(events: &[Event]) -> AHashSet<(PersonId, ItemId)> {
    let mut bought: AHashMap<(PersonId, ItemId), UnixMillis> = AHashMap::new();
    let mut returned = AHashSet::new();
    for event in events {
        for line in &event.lines {
            let pair = (event.person.clone(), line.item.clone());
            match event.kind {
                EventKind::Purchase => {
                    bought.insert(pair, event.at);
                }
                EventKind::Return
                    if bought.get(&pair).is_some_and(|at| event.at.0 - at.0 <= RETURN_DAYS * UnixMillis::DAY) =>
                {
                    returned.insert(pair);
                }
                _ => {}
            }
        }
    }
    returned
}

pub(super) fn freeze(vectors: &[f32], dimensions: usize) -> Result<Arc<FrozenGraph>, FrozenError> {
    let config = BuildConfig { precision: Precision::Int12, ..BuildConfig::default() };
    FrozenGraph::build(vectors, dimensions, config, &|_| {}).map(Arc::new)
}

/// The bundle so far, for a world that replays.
fn copy_for_replay(bundle: &Bundle) -> Bundle {
    Bundle {
        manifest: bundle.manifest.clone(),
        items: bundle.items.clone(),
        item_vectors: bundle.item_vectors.clone(),
        title_vectors: bundle.title_vectors.clone(),
        text_projection: bundle.text_projection.clone(),
        next: bundle.next.clone(),
        together: bundle.together.clone(),
        person_encoder: Vec::new(),
        query_encoder: Vec::new(),
        tokenizer: None,
        training: None,
        ranker: Vec::new(),
    }
}

const _: () = assert!(VECTOR_DIM == 64, "the encoders are trained for 64 dimensions");
