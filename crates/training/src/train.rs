//! From a shop's data to a bundle.
use super::{
    Progress,
    checkpoint::{self, Checkpoint, Found},
    counts,
    lists::{head_weight, ranking_lists},
    losses::LossCurves,
    onnx::{ExportCheck, ModelError},
    query_side::{BUCKET_COUNT, QuerySide, embed_with, learned_query_side},
    ranker::{RankerConfig, RankingData, TrainedRanker, train_ranker},
    replay::{Choice, baskets, choices, time_at_share},
    sequence::{ItemText, Pause, SequenceError},
    user_encoder::{UserSample, train_user_encoder, user_samples},
    warm::{EncoderWeights, Start, WarmStart},
};
use ahash::AHashMap;
use lodestone_catalog::{Item, VECTOR_DIM};
use lodestone_core::{ids::ItemId, units::UnixMillis};
use lodestone_dataset::{self as dataset, DatasetError};
use lodestone_events::Event;
use lodestone_index::{BuildConfig, FrozenError, FrozenGraph, Precision, VectorError, check_vector};
use lodestone_pipeline::{
    Generation, GenerationError, GoldenError, Models, RequestContext,
    bundle::{Bundle, BundleError, Head, Manifest},
    context,
    features::FEATURES,
    golden_requests,
    ranking::{Device, RankingError, Runtime, SentenceEncoder, SentenceError},
    retrieve,
};
use prost::Message;
use rand::{SeedableRng, rngs::StdRng};
use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
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
    /// A bundle whose encoders the training begins with, where it can.
    pub warm_start: Option<PathBuf>,
    pub name: String,
    pub now: UnixMillis,
    /// When it becomes true, the training leaves a checkpoint and ends with [`TrainError::Stopped`].
    pub stop: Arc<AtomicBool>,
}

impl TrainOptions {
    pub fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// What decides what is learned, for a checkpoint's fingerprint.
    fn settings(&self) -> String {
        format!("{} {} {}", self.seed, self.encoder_share, self.trained_share)
    }
}

impl Default for TrainOptions {
    fn default() -> Self {
        Self {
            seed: 1,
            encoder_share: 0.75,
            trained_share: 0.9,
            lists_max: 3000,
            query_encoder: None,
            warm_start: None,
            name: "bundle".to_owned(),
            now: UnixMillis(0),
            stop: Arc::default(),
        }
    }
}

/// What a training did.
#[derive(Debug, Clone, serde::Serialize)]
pub struct TrainReport {
    pub item_count: usize,
    /// Events by which somebody chose something.
    pub choice_count: usize,
    /// Windows of histories that the user encoder learned from.
    pub sample_count: usize,
    /// Until the user encoder was at its best.
    pub epoch_count: usize,
    pub list_count: usize,
    pub heads: Vec<String>,
    /// Loss on what early stopping watched: user encoder, ranker.
    pub validation_losses: [f32; 2],
    /// Model and the greatest difference between its ONNX export and the trained original.
    pub exports: Vec<(String, f32)>,
    pub checkpoint: Found,
    pub start: Start,
    /// By stage.
    pub seconds: Vec<(&'static str, f64)>,
    /// The most memory that the process had so far; none where the system does not tell.
    pub memory_bytes_max: Option<u64>,
}

#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    #[error(transparent)]
    Bundle(#[from] BundleError),
    #[error(transparent)]
    Generation(#[from] GenerationError),
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
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Golden(#[from] GoldenError),
    #[error("the training was stopped")]
    Stopped,
}

impl TrainError {
    fn is_stop(&self) -> bool {
        matches!(self, Self::Stopped | Self::Model(ModelError::Sequence(SequenceError::Stopped) | ModelError::Stopped))
    }
}

/// Share of what the encoder may know, the latest, that early stopping watches.
const VALIDATION_SHARE: f64 = 0.08;
/// Fewer choices teach nothing.
const CHOICES_MIN: usize = 20;

/// Trains every model on `data` (canonical Parquet) and writes the bundle to `out`. A training that is stopped leaves a
/// checkpoint beside `out`; the next one with the same data and settings goes on from it.
pub fn train(
    data: &Path,
    out: &Path,
    runtime: &Runtime,
    options: &TrainOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<TrainReport, TrainError> {
    let place = checkpoint::path_for(out);
    let mut files = vec![data.join("items.parquet"), data.join("events.parquet")];
    if let Some(directory) = &options.query_encoder {
        files.extend(["model.onnx", "tokenizer.json"].map(|name| directory.join(name)));
    }
    if let Some(directory) = &options.warm_start {
        // It has the sums of all other files.
        files.push(directory.join("manifest.json"));
    }
    let shop = Shop::read(data, options)?;
    let fingerprint = checkpoint::fingerprint(&files, &options.settings())
        .map_err(|(path, source)| TrainError::Io { path, source })?;
    let (found, resumed) = Checkpoint::read(&place, &fingerprint);
    let mut learned =
        Learned { checkpoint: found, query: None, curves: LossCurves::default(), stages: Stages::begin() };
    let mut pause = Pause { wanted: Some(&options.stop), state: None };
    let result = learned.bundle(&shop, runtime, options, &mut pause, progress);
    match result {
        Ok((mut bundle, report)) => {
            bundle.golden = Some(golden_requests(&bundle, runtime)?);
            bundle.write(out)?;
            let _ = fs::remove_file(&place);
            Ok(TrainReport { checkpoint: resumed, ..report })
        }
        Err(error) if error.is_stop() => {
            if let Some(query) = &learned.query {
                let written = Checkpoint::new(&fingerprint, query, pause.state.take()).write(&place);
                written.map_err(|source| TrainError::Io { path: place, source })?;
            }
            Err(TrainError::Stopped)
        }
        Err(error) => Err(error),
    }
}

/// A shop's data, and the times that divide them.
struct Shop {
    items: Vec<Item>,
    row_of: AHashMap<ItemId, u32>,
    choices: Vec<Choice>,
    events: Vec<Event>,
    /// From here on the ranking model's labels begin; the encoders learn from what came before.
    labels_from: UnixMillis,
    /// From here on nothing is known.
    trained_until: UnixMillis,
}

impl Shop {
    fn read(data: &Path, options: &TrainOptions) -> Result<Self, TrainError> {
        let items = dataset::read_items(&data.join("items.parquet"))?;
        let lines = dataset::read_history(data)?;
        let row_of: AHashMap<ItemId, u32> =
            items.iter().enumerate().map(|(row, item)| (item.id.clone(), row as u32)).collect();
        let choices = choices(&lines, &row_of);
        if items.len() < 2 || choices.len() < CHOICES_MIN {
            return Err(TrainError::TooLittle(format!(
                "{} items, and {} events by which one of them was chosen (viewed, put into a cart, bought …), are too few to \
                 learn from; at least 2 and {CHOICES_MIN} are needed",
                items.len(),
                choices.len()
            )));
        }
        let labels_from = time_at_share(&choices, options.encoder_share);
        let trained_until = time_at_share(&choices, options.trained_share);
        Ok(Self { items, row_of, choices, events: dataset::into_events(lines), labels_from, trained_until })
    }

    fn choices_before(&self, end: UnixMillis) -> &[Choice] {
        &self.choices[..self.choices.partition_point(|choice| choice.at < end)]
    }

    /// From here on the encoders' training is stopped by what came; they learn from what came before.
    fn validated_from(&self) -> UnixMillis {
        time_at_share(self.choices_before(self.labels_from), 1.0 - VALIDATION_SHARE)
    }

    /// Windows to learn from, and later ones to stop by.
    fn user_samples(&self) -> [Vec<UserSample>; 2] {
        let split = self.validated_from();
        let samples = |times| user_samples(&self.events, &self.row_of, times);
        [samples(UnixMillis(i64::MIN)..split), samples(split..self.labels_from)]
    }
}

/// A training under way.
struct Learned {
    checkpoint: Option<Checkpoint>,
    /// Once it is learned.
    query: Option<QuerySide>,
    curves: LossCurves,
    stages: Stages,
}

/// How long the stages took.
struct Stages {
    seconds: Vec<(&'static str, f64)>,
    begun: Instant,
}

impl Stages {
    fn begin() -> Self {
        Self { seconds: Vec::new(), begun: Instant::now() }
    }

    fn end(&mut self, name: &'static str) {
        self.seconds.push((name, self.begun.elapsed().as_secs_f64()));
        self.begun = Instant::now();
    }
}

impl Learned {
    fn bundle(
        &mut self,
        shop: &Shop,
        runtime: &Runtime,
        options: &TrainOptions,
        pause: &mut Pause,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(Bundle, TrainReport), TrainError> {
        let mut exports: Vec<ExportCheck> = Vec::new();
        let Self { checkpoint, query, curves, stages } = self;
        let progress = &mut |step: Progress| {
            curves.note(step);
            progress(step);
        };

        let (warm, start) = warm_start(shop, options)?;
        let side = match (&*checkpoint, &options.query_encoder) {
            (Some(checkpoint), _) => checkpoint.query_side(),
            (None, Some(directory)) => embed_with(directory, &shop.items, runtime, progress)?,
            (None, None) => {
                let start = warm.as_ref().and_then(WarmStart::query_encoder);
                learned_query_side(&shop.items, options, start, &mut exports, runtime, progress)?
            }
        };
        pause.state = checkpoint.take().and_then(|checkpoint| checkpoint.user_encoder);
        let side = query.insert(side);
        let title_dimension = side.title_vectors.len() / shop.items.len();
        check_item_vectors("title", &shop.items, &side.title_vectors, title_dimension)?;
        stages.end("query encoder");

        let [samples, validation] = shop.user_samples();
        let text = ItemText { vectors: side.title_vectors.clone(), width: title_dimension };
        let item_count = shop.items.len();
        let seed = options.seed;
        if let (None, Some(warm)) = (&pause.state, &warm) {
            pause.state = Some(warm.user_encoder(&shop.items, &text, samples.len(), seed)?);
        }
        drop(warm);
        let user = train_user_encoder(&text, item_count, &samples, &validation, seed, pause, runtime, progress)?;
        exports.push(user.check.clone());
        check_item_vectors("item", &shop.items, &user.item_vectors, VECTOR_DIM)?;
        stages.end("user encoder");

        let early = shop.choices_before(shop.labels_from);
        let mut bundle = Bundle {
            manifest: Manifest::new(options.name.clone(), options.now.0, shop.trained_until.0, BUCKET_COUNT),
            item_vectors: freeze(&user.item_vectors, VECTOR_DIM)?,
            title_vectors: freeze(&side.title_vectors, title_dimension)?,
            encoder_weights: Some(EncoderWeights::of(&user, shop.validated_from()).encode_to_vec()),
            text_projection: user.text_projection,
            transitions: counts::next_choice(early, item_count),
            co_purchases: counts::together(&baskets(early), item_count),
            user_encoder: user.onnx,
            query_encoder: side.model.clone(),
            tokenizer: side.tokenizer.clone(),
            training: None,
            golden: None,
            ranker: Vec::new(),
            items: shop.items.clone(),
        };
        stages.end("indexes and counts");
        let (ranker, heads, list_count) = learn_ranker(&bundle, shop, runtime, options, stages, progress)?;
        exports.push(ranker.check.clone());
        curves.add("user encoder, validation", &user.validation_losses);
        curves.add("ranker, validation", &ranker.validation_losses);
        bundle.training = Some(serde_json::to_vec(&curves.thinned()).expect("numbers become JSON"));

        // The counts cost nothing: they learn up to the end of what may be known.
        let known = shop.choices_before(shop.trained_until);
        bundle.transitions = counts::next_choice(known, item_count);
        bundle.co_purchases = counts::together(&baskets(known), item_count);
        bundle.ranker = ranker.onnx;
        bundle.manifest.heads = heads
            .iter()
            .zip(&ranker.calibration)
            .map(|(name, c)| Head { name: name.clone(), weight: head_weight(name), scale: c.scale, offset: c.offset })
            .collect();
        let report = TrainReport {
            item_count,
            choice_count: shop.choices.len(),
            sample_count: samples.len(),
            epoch_count: user.epochs,
            list_count,
            heads,
            validation_losses: [user.validation_loss, ranker.validation_loss],
            exports: exports.iter().map(|check| (check.model.to_string(), check.max_difference)).collect(),
            checkpoint: Found::Nothing,
            start,
            seconds: stages.seconds.clone(),
            memory_bytes_max: memory_bytes_max(),
        };
        Ok((bundle, report))
    }
}

/// Replays what the encoders have not seen, and learns from it. Gives the ranking model, its heads, and how many lists it has seen.
fn learn_ranker(
    bundle: &Bundle,
    shop: &Shop,
    runtime: &Runtime,
    options: &TrainOptions,
    stages: &mut Stages,
    progress: &mut dyn FnMut(Progress),
) -> Result<(TrainedRanker, Vec<String>, usize), TrainError> {
    let mut models = Models::open(runtime, bundle, Device::Cpu)?;
    let generation = Generation::standalone(copy_for_replay(bundle), 1024)?;
    let times = shop.labels_from..shop.trained_until;
    let with = (options, &mut StdRng::seed_from_u64(options.seed));
    let lists = ranking_lists(&generation, &mut models, &shop.items, &shop.events, times, with, progress)?;
    drop((generation, models));
    stages.end("replay");

    let list_count = lists.lists.len();
    let (fit_lists, validation) = lists.lists.split_at(list_count - list_count / 6);
    let data = RankingData { lists: fit_lists, validation, feature_names: FEATURES, heads: &lists.heads };
    let config = RankerConfig { seed: options.seed, ..Default::default() };
    let ranker = train_ranker(data, &config, &options.stop, runtime, progress)?;
    stages.end("ranker");
    Ok((ranker, lists.heads, list_count))
}

/// The greatest resident size of this process so far, as Linux tells it.
fn memory_bytes_max() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}

/// The bundle that the training begins with, if one is given and can be used, and what is told of it.
fn warm_start(shop: &Shop, options: &TrainOptions) -> Result<(Option<WarmStart>, Start), TrainError> {
    let Some(directory) = &options.warm_start else { return Ok((None, Start::RandomWeights)) };
    let sentence = options.query_encoder.as_deref().map(SentenceEncoder::read).transpose()?;
    let sentence = sentence.as_ref().map(|[model, _]| model.as_slice());
    Ok(match WarmStart::open(directory, sentence, shop.validated_from())? {
        Ok(warm) => {
            let start = warm.start(&shop.items);
            (Some(warm), start)
        }
        Err(reason) => (None, Start::BundleNotUsed { reason }),
    })
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

/// Runs the first stage as serving runs it, with the default limits and without a filter. The context has the candidates
/// afterwards.
pub(super) fn retrieve_candidates<'a>(context: &mut RequestContext<'a>, models: &mut Models, query: Option<&'a str>) {
    context.sent_query = query;
    let contexts = std::slice::from_mut(context);
    context::encode_queries(contexts, models);
    context::encode_users(contexts, models);
    let input = context.retrieval_input();
    context.candidates = match query {
        Some(_) => retrieve::for_query(&input).unwrap_or_default(),
        None => retrieve::for_user(&input),
    };
}

pub(super) fn freeze(vectors: &[f32], dimensions: usize) -> Result<Arc<FrozenGraph>, FrozenError> {
    let config = BuildConfig { precision: Precision::Int12, ..BuildConfig::default() };
    FrozenGraph::build(vectors, dimensions, config, &|_| {}).map(Arc::new)
}

/// The bundle so far, for a generation that replays.
fn copy_for_replay(bundle: &Bundle) -> Bundle {
    Bundle {
        manifest: bundle.manifest.clone(),
        items: bundle.items.clone(),
        item_vectors: bundle.item_vectors.clone(),
        title_vectors: bundle.title_vectors.clone(),
        text_projection: bundle.text_projection.clone(),
        transitions: bundle.transitions.clone(),
        co_purchases: bundle.co_purchases.clone(),
        user_encoder: Vec::new(),
        encoder_weights: None,
        query_encoder: Vec::new(),
        tokenizer: None,
        training: None,
        ranker: Vec::new(),
        golden: None,
    }
}

const _: () = assert!(VECTOR_DIM == 64, "the encoders are trained for 64 dimensions");
