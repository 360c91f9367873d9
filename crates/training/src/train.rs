//! Training of a bundle from a shop's data.
use super::{
    Progress,
    answers::{AnswersReport, JoinInput, LoggedAnswers},
    checkpoint::{self, Checkpoint, CheckpointUse},
    counts,
    declared_features::{self, FeatureReport, note_constant},
    error::TrainError,
    item_to_item::item_to_item,
    lists::{ListInput, Lists, head_weight, ranking_lists},
    losses::LossCurves,
    onnx::ExportCheck,
    optional_sources::{self, OptionalSource},
    options::{EncoderSettings, TrainOptions, TrainTimes},
    query_side::{QuerySide, embed_with, learned_query_side},
    ranker::{Calibration, RankerConfig, RankingData, TrainedRanker, train_ranker},
    relevance,
    replay::{Interaction, baskets, interactions, remove_refunded, time_at_share, without_refunded},
    sequence::{Interruption, ItemText},
    similar_texts::similar_texts,
    user_encoder::{TARGETS_MIN, UserEncoderData, UserSample, basket_samples, train_user_encoder, user_samples},
    warm_start::{EarlierBundle, EncoderWeights, WarmStart},
};
use ahash::AHashMap;
use lodestone_catalog::{Item, ItemKeys};
use lodestone_core::{
    ids::{ItemId, ItemKey},
    units::UnixMillis,
};
use lodestone_dataset::{self as dataset, DatasetEvent};
use lodestone_events::{Event, ItemCounts, Popularity};
use lodestone_index::{BuildConfig, FrozenError, FrozenGraph, Neighbours, Precision, check_vector};
use lodestone_loyalty::{
    CampaignUplift, HorizonModel, LeftOutHorizon, TrainedLoyalty, Validation, fit_campaign_uplift, fit_loyalty,
};
use lodestone_pipeline::{
    Generation, GenerationError, Models, TextIndexes,
    bundle::{Bundle, Head, Manifest},
    features::{ContextCounts, FeatureSchema},
    golden_requests,
    ranking::{Device, Runtime, SentenceFiles},
};
use prost::Message;
use rand::{SeedableRng, rngs::StdRng};
use std::{
    fmt, fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

/// Result of [`train`].
#[derive(Debug, Clone, serde::Serialize)]
pub struct TrainReport {
    pub item_count: usize,
    /// Positive interactions with known items.
    #[serde(rename = "choice_count")]
    pub interaction_count: usize,
    /// Windows of histories in the user encoder's training data.
    pub sample_count: usize,
    /// Epochs up to the user encoder's best one.
    pub epoch_count: usize,
    pub list_count: usize,
    /// Candidate sources that the bundle does without, because they find hardly a chosen item that no other one finds.
    pub left_out_sources: Vec<&'static str>,
    /// None without an answer log.
    pub answers: Option<AnswersReport>,
    pub heads: Vec<String>,
    /// The declared features, in their order.
    pub features: Vec<FeatureReport>,
    /// Validation loss of the user encoder. NaN without validation data, and without a user encoder.
    pub user_encoder_loss: f32,
    /// Why the bundle has no user encoder, and how it serves without one.
    pub missing_user_encoder: Option<String>,
    /// Why the bundle has no ranking model, and how it serves without one.
    pub missing_ranker: Option<String>,
    /// Validation loss of the ranking model; none if there were too few lists for one.
    pub ranker_loss: Option<f32>,
    /// The loyalty model with its backtests, or the reason why there is none.
    pub loyalty: LoyaltyReport,
    /// By model: the greatest difference between its ONNX export and the trained original.
    pub exports: Vec<(String, f32)>,
    pub checkpoint: CheckpointUse,
    pub start: WarmStart,
    /// Duration of each stage.
    pub seconds: Vec<(&'static str, f64)>,
    /// Peak resident memory of the process; none if the system does not report it.
    pub memory_bytes_max: Option<u64>,
}

/// The loyalty model of a training.
#[derive(Debug, Clone, serde::Serialize)]
pub struct LoyaltyReport {
    pub horizons: Vec<LoyaltyHorizonReport>,
    pub left_out_horizons: Vec<LeftOutHorizon>,
    /// The uplift of campaigns of incentives.
    pub campaigns: Vec<CampaignReport>,
    /// The reason why the bundle has no loyalty model.
    pub missing: Option<String>,
}

/// The uplift of a campaign of incentives.
#[derive(Debug, Clone, serde::Serialize)]
pub struct CampaignReport {
    pub campaign_id: String,
    pub observation_count: usize,
    /// Why there is no uplift model.
    pub missing: Option<String>,
}

/// One horizon of a loyalty model.
#[derive(Debug, Clone, serde::Serialize)]
pub struct LoyaltyHorizonReport {
    pub days: u32,
    pub row_count: usize,
    pub has_measured_intervals: bool,
    /// None if the events are too few for a backtest.
    pub validation: Option<Validation>,
}

impl LoyaltyReport {
    fn of(trained: &TrainedLoyalty) -> Self {
        let horizon = |of: &HorizonModel| LoyaltyHorizonReport {
            days: of.days,
            row_count: of.row_count,
            has_measured_intervals: of.has_measured_intervals,
            validation: of.validation.clone(),
        };
        let campaign = |of: &CampaignUplift| CampaignReport {
            campaign_id: of.campaign_id.clone(),
            observation_count: of.evidence.iter().map(|of| of.observations).sum(),
            missing: (!of.reason.is_empty()).then(|| of.reason.clone()),
        };
        match trained {
            TrainedLoyalty::Model(model) => Self {
                horizons: model.horizons.iter().map(horizon).collect(),
                left_out_horizons: model.left_out.clone(),
                campaigns: model.uplift.iter().map(campaign).collect(),
                missing: None,
            },
            TrainedLoyalty::Missing { reason } => Self {
                horizons: Vec::new(),
                left_out_horizons: Vec::new(),
                campaigns: Vec::new(),
                missing: Some(reason.clone()),
            },
        }
    }
}

impl fmt::Display for LoyaltyReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(reason) = &self.missing {
            return writeln!(f, "no loyalty model: {reason}");
        }
        for horizon in &self.horizons {
            let calibration = if horizon.has_measured_intervals { "" } else { ", intervals not measured" };
            write!(f, "loyalty {} days: {} rows{calibration}", horizon.days, horizon.row_count)?;
            let Some(validation) = &horizon.validation else {
                writeln!(f, "; too few events for a backtest")?;
                continue;
            };
            let (groups, counts) = (validation.purchase_interval_coverage, validation.count_interval_coverage);
            writeln!(f, "; intervals cover {:.0} % of groups and {:.0} % of numbers", 100.0 * groups, 100.0 * counts)?;
            for of in &validation.quality {
                let name = format!("{} {}", of.target, of.model);
                write!(f, "  {name:<16} AUC {:.3}  log-loss {:.4}  Brier {:.4}", of.auc, of.log_loss, of.brier)?;
                writeln!(f, "  calibration error {:.3}", of.calibration_error)?;
            }
        }
        for of in &self.left_out_horizons {
            writeln!(f, "loyalty {} days: no model: {}", of.days, of.reason)?;
        }
        for of in &self.campaigns {
            let model =
                of.missing.as_ref().map_or_else(|| "uplift model".to_owned(), |why| format!("no uplift model: {why}"));
            writeln!(f, "campaign {}: {} observations; {model}", of.campaign_id, of.observation_count)?;
        }
        Ok(())
    }
}

/// Share of the encoders' interactions, the newest, that early stopping uses.
const VALIDATION_SHARE: f64 = 0.08;
/// Fewest lists for a ranking model.
const LISTS_MIN: usize = 20;
/// Fewest positive interactions for a user encoder.
const INTERACTIONS_MIN: usize = 20;
/// Fewest items for a training.
const ITEMS_MIN: usize = 2;

/// Trains all models on `data` (canonical Parquet) and writes the bundle to `out`. A stopped training leaves a
/// checkpoint next to `out`, from which the next one with the same data and settings resumes.
pub fn train(
    data: &Path,
    out: &Path,
    runtime: &Runtime,
    options: &TrainOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<TrainReport, TrainError> {
    let path = checkpoint::path_for(out);
    let mut files = vec![data.join("items.parquet")];
    // A new shop has no events.
    files.extend(dataset::history_files(data)?.into_iter().filter(|path| path.exists()));
    if let Some(directory) = &options.warm_start {
        // The manifest contains the checksums of all other files.
        files.push(directory.join("manifest.json"));
    }
    let shop = Shop::read(data, options)?;
    let features = declared_features::check(&options.features, &shop.items, &shop.events, shop.times.labels.clone())?;
    let sentence = options.query_encoder.as_ref().map(|source| SentenceFiles::read(runtime, source)).transpose()?;
    let fingerprint = fingerprint(&files, options, sentence.as_ref())?;
    let (checkpoint, checkpoint_use) = Checkpoint::read(&path, &fingerprint);
    let mut training = Training::new(sentence, checkpoint, features);
    let mut interruption = Interruption { requested: Some(&options.stop), state: None };
    let result = training.bundle(&shop, runtime, options, &mut interruption, progress);
    match result {
        Ok((mut bundle, report)) => {
            bundle.golden = Some(golden_requests(&bundle, runtime)?);
            bundle.write(out)?;
            let _ = fs::remove_file(&path);
            Ok(TrainReport { checkpoint: checkpoint_use, ..report })
        }
        Err(error) if error.is_stop() => {
            if let Some(query) = &training.query {
                let written = Checkpoint::new(&fingerprint, query, interruption.state.take()).write(&path);
                written.map_err(|source| TrainError::Io { path, source })?;
            }
            Err(TrainError::Stopped)
        }
        Err(error) => Err(error),
    }
}

/// Hashes everything that the trained models depend on.
fn fingerprint(
    files: &[PathBuf],
    options: &TrainOptions,
    sentence: Option<&SentenceFiles>,
) -> Result<Vec<u8>, TrainError> {
    let settings = options.settings();
    let config = sentence.map(|files| format!("{:?}", files.config));
    let mut parts: Vec<&[u8]> = vec![settings.as_bytes()];
    if let (Some(files), Some(config)) = (sentence, &config) {
        parts.extend([&files.model[..], &files.tokenizer, config.as_bytes()]);
    }
    checkpoint::fingerprint(files, &parts).map_err(|(path, source)| TrainError::Io { path, source })
}

/// A shop's data, and the times that split them.
struct Shop {
    items: Vec<Item>,
    row_of: AHashMap<ItemId, u32>,
    interactions: Vec<Interaction>,
    /// Interactions before the labels and before `times.counted_until`, without what was refunded by then.
    kept: [Vec<Interaction>; 2],
    events: Vec<Event>,
    times: TrainTimes,
    answers: Option<LoggedAnswers>,
    /// Decisions about incentives.
    decisions: dataset::LoggedDecisions,
}

impl Shop {
    fn read(data: &Path, options: &TrainOptions) -> Result<Self, TrainError> {
        let items = dataset::read_items(&data.join("items.parquet"))?;
        let rows = dataset::read_history_if_any(data)?;
        // With the event ids before orders are joined, to which the tokens belong.
        let sent_events = options.answers.as_ref().map(|_| dataset::into_events(rows.clone())).unwrap_or_default();
        let shop = Self::new(items, rows, options)?;
        let answers = match &options.answers {
            Some(source) => {
                let (tokens, until) = (&dataset::read_answer_tokens(data)?, shop.times.labels.end);
                let input = JoinInput { events: &sent_events, until, tokens, row_of: &shop.row_of };
                Some(LoggedAnswers::read(source, &input)?)
            }
            None => None,
        };
        let decisions = dataset::LoggedDecisions::read(data)?;
        Ok(Self { answers, decisions, ..shop })
    }

    fn new(items: Vec<Item>, lines: Vec<DatasetEvent>, options: &TrainOptions) -> Result<Self, TrainError> {
        let row_of: AHashMap<ItemId, u32> =
            items.iter().enumerate().map(|(row, item)| (item.id.clone(), row as u32)).collect();
        let lines = dataset::join_orders(lines);
        let interactions = interactions(&lines, &row_of);
        if items.len() < ITEMS_MIN {
            let problem = format!("{} items are too few for a training; it needs at least {ITEMS_MIN}", items.len());
            return Err(TrainError::TooLittle(problem));
        }
        let times = options.times.clone().unwrap_or_else(|| times_by_shares(&interactions, options));
        let kept = [times.labels.start, times.counted_until]
            .map(|end| super::replay::interactions(&without_refunded(&lines, end), &row_of));
        let events = dataset::into_events(lines);
        Ok(Self { items, row_of, interactions, kept, events, times, answers: None, decisions: Default::default() })
    }

    /// Returns windows of histories of at most `events_max` events for training, and later ones for validation. If
    /// users with a history have few interactions, as in a shop of guests, baskets stand in for histories.
    fn user_samples(&self, events_max: usize) -> [Vec<UserSample>; 2] {
        let validation = self.times.validation.clone();
        let split = validation.start;
        let samples = |times| user_samples(&self.events, &self.row_of, times, events_max);
        let mut both = [samples(UnixMillis(i64::MIN)..split), samples(validation)];
        if both[0].iter().map(|sample| sample.targets.len()).sum::<usize>() < TARGETS_MIN {
            let early = &self.kept[0];
            let (train, validation) = early.split_at(early.partition_point(|interaction| interaction.at < split));
            both[0].extend(basket_samples(&baskets(train)));
            both[1].extend(basket_samples(&baskets(validation)));
        }
        both
    }

    /// Returns why there is no user encoder and how the bundle serves without one; none if `samples` suffice for one.
    fn missing_user_encoder(&self, samples: &[UserSample]) -> Option<String> {
        let count = self.interactions.len();
        let reason = match samples.iter().all(|sample| sample.targets.is_empty()) {
            _ if count < INTERACTIONS_MIN => format!(
                "{count} positive interactions with items (views, carts, purchases, …); it needs at least {INTERACTIONS_MIN}"
            ),
            true => "none of the interactions is before those of its validation".to_owned(),
            false => return None,
        };
        Some(format!(
            "no user encoder: {reason}. Recommendations do not depend on vectors of users; train again with more events"
        ))
    }

    /// Returns the events before `end`, without the purchases that were refunded in full by then.
    fn kept_events(&self, end: UnixMillis) -> Vec<Event> {
        let mut events: Vec<Event> = self.events.iter().take_while(|event| event.at < end).cloned().collect();
        remove_refunded(&mut events);
        events
    }

    /// Returns the users by item and value of the fields that declared features count, from the events before `end`.
    fn context_counts(&self, features: &FeatureSchema, end: UnixMillis) -> ContextCounts {
        match features.counted_fields() {
            none if none.is_empty() => ContextCounts::default(),
            fields => counts::context_counts(&self.kept_events(end), &self.row_of, &fields),
        }
    }

    /// Returns the popularity at the end of the training data, by row.
    fn popularity(&self) -> ItemCounts {
        let (keys, mut popularity) = (ItemKeys::default(), Popularity::default());
        let rows: Vec<ItemKey> = self.items.iter().map(|item| keys.intern(&item.id)).collect();
        let events = self.kept_events(self.times.counted_until);
        events.iter().for_each(|event| popularity.apply(event, &keys));
        // The first keys are the rows; items that the table does not contain have later ones.
        popularity.counts().renumbered(&rows)
    }
}

/// Returns the times by the shares of the interactions. The encoders validate on the newest events before the labels.
fn times_by_shares(interactions: &[Interaction], options: &TrainOptions) -> TrainTimes {
    if interactions.is_empty() {
        let now = options.now;
        return TrainTimes { validation: now..now, labels: now..now, counted_until: now };
    }
    let labels_from = time_at_share(interactions, options.encoder_share);
    let trained_until = time_at_share(interactions, options.trained_share);
    let before = &interactions[..interactions.partition_point(|interaction| interaction.at < labels_from)];
    TrainTimes {
        validation: time_at_share(before, 1.0 - VALIDATION_SHARE)..labels_from,
        labels: labels_from..trained_until,
        counted_until: trained_until,
    }
}

/// Trains all models on items and events in memory, without a checkpoint.
pub(crate) fn train_in_memory(
    items: Vec<Item>,
    events: Vec<DatasetEvent>,
    runtime: &Runtime,
    options: &TrainOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<(Bundle, TrainReport), TrainError> {
    let shop = Shop::new(items, events, options)?;
    Training::new(None, None, Vec::new()).bundle(&shop, runtime, options, &mut Interruption::default(), progress)
}

/// A running training.
struct Training {
    /// The declared features.
    features: Vec<FeatureReport>,
    /// The external query encoder.
    sentence: Option<SentenceFiles>,
    checkpoint: Option<Checkpoint>,
    /// None until it is trained.
    query: Option<QuerySide>,
    curves: LossCurves,
    stages: StageTimes,
}

/// Durations of the stages.
struct StageTimes {
    seconds: Vec<(&'static str, f64)>,
    started: Instant,
}

impl StageTimes {
    fn start() -> Self {
        Self { seconds: Vec::new(), started: Instant::now() }
    }

    fn end(&mut self, name: &'static str) {
        self.seconds.push((name, self.started.elapsed().as_secs_f64()));
        self.started = Instant::now();
    }
}

impl Training {
    fn new(sentence: Option<SentenceFiles>, checkpoint: Option<Checkpoint>, features: Vec<FeatureReport>) -> Self {
        let (curves, stages) = (LossCurves::default(), StageTimes::start());
        Self { sentence, checkpoint, features, query: None, curves, stages }
    }

    fn bundle(
        &mut self,
        shop: &Shop,
        runtime: &Runtime,
        options: &TrainOptions,
        interruption: &mut Interruption,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(Bundle, TrainReport), TrainError> {
        let mut exports: Vec<ExportCheck> = Vec::new();
        let Self { sentence, checkpoint, features, query, curves, stages } = self;
        let progress = &mut |step: Progress| {
            curves.note(step);
            progress(step);
        };

        let (warm, start) = warm_start(shop, options, sentence.as_ref())?;
        let side = match (checkpoint.as_ref().and_then(Checkpoint::query_side), sentence) {
            (Some(side), _) => side,
            (None, Some(files)) => embed_with(files, &shop.items, runtime, progress)?,
            (None, None) => {
                let initial = warm.as_ref().and_then(EarlierBundle::query_encoder);
                learned_query_side(&shop.items, options, initial, &mut exports, runtime, progress)?
            }
        };
        interruption.state = checkpoint.take().and_then(|checkpoint| checkpoint.user_encoder);
        let side = query.insert(side);
        let title_dimension = side.title_vectors.len() / shop.items.len();
        check_item_vectors("title", &shop.items, &side.title_vectors, title_dimension)?;
        stages.end("query encoder");

        let [samples, validation] = shop.user_samples(options.encoder.events);
        let text = ItemText { vectors: side.title_vectors.clone(), width: title_dimension };
        let item_count = shop.items.len();
        let seed = options.seed;
        let EncoderSettings { width, events, .. } = options.encoder;
        let missing_user_encoder = shop.missing_user_encoder(&samples);
        let user = match &missing_user_encoder {
            Some(_) => None,
            None => {
                if let (None, Some(warm)) = (&interruption.state, &warm) {
                    interruption.state = Some(warm.user_encoder(&shop.items, &text, samples.len(), seed)?);
                }
                drop(warm);
                let data = UserEncoderData { text: &text, item_count, samples: &samples, validation: &validation };
                let user = train_user_encoder(&data, options.encoder, seed, interruption, runtime, progress)?;
                exports.push(user.check.clone());
                check_item_vectors("item", &shop.items, &user.item_vectors, width)?;
                Some(user)
            }
        };
        stages.end("user encoder");

        let mut loyalty = fit_loyalty(&shop.events, shop.times.labels.end);
        if let TrainedLoyalty::Model(model) = &mut loyalty {
            let decisions = shop.decisions.iter();
            model.uplift = fit_campaign_uplift(model, &shop.events, decisions, shop.times.labels.end);
        }
        stages.end("loyalty");

        let [early, all] = &shop.kept;
        let trained_until = shop.times.labels.end;
        let title_vectors = freeze(&side.title_vectors, title_dimension)?;
        let item_vectors = match &user {
            Some(user) => freeze(&user.item_vectors, width)?,
            None => title_vectors.clone(),
        };
        let encoder_weights = |user| EncoderWeights::of(user, options.encoder, shop.times.validation.start);
        let mut bundle = Bundle {
            manifest: Manifest {
                searchable_attributes: options.searchable_attributes.clone(),
                ..Manifest::new(options.name.clone(), options.now.0, trained_until.0, events, side.kind.clone())
                    .with_features(options.features.clone())
            },
            item_vectors,
            title_vectors,
            text_indexes: TextIndexes::build(&shop.items, &options.searchable_attributes)
                .map_err(GenerationError::from)?,
            encoder_weights: user.as_ref().map(|user| encoder_weights(user).encode_to_vec()),
            text_projection: match &user {
                Some(user) => user.text_projection.clone(),
                None => identity(title_dimension),
            },
            transitions: counts::transitions(early, item_count),
            co_purchases: counts::co_purchases(&baskets(early), item_count),
            item_to_item: item_to_item(early, item_count),
            similar_texts: similar_texts(&shop.items),
            histories: counts::histories(early, item_count),
            // The replay for the ranking model must not know later events.
            popularity: ItemCounts::default(),
            context_counts: shop.context_counts(&options.features, shop.times.labels.start),
            user_encoder: user.as_ref().map(|user| user.onnx.clone()).unwrap_or_default(),
            query_encoder: side.model.clone(),
            tokenizer: side.tokenizer.clone(),
            known_answer: None,
            training: None,
            golden: None,
            ranker: Vec::new(),
            loyalty: Arc::new(loyalty),
            items: shop.items.clone(),
        };
        stages.end("indexes and counts");
        let mut lists = replayed_lists(&bundle, shop, runtime, options, progress)?;
        let left_out = optional_sources::without_effect(&lists.found);
        for source in &left_out {
            optional_sources::clear_features(&mut lists, options.features.column_count(), *source);
        }
        stages.end("replay");
        note_constant(features, &lists);
        let (list_count, shown_count) = (lists.lists.len(), lists.shown.len());
        let heads = lists.heads.clone();
        let ranker = train_on_lists(lists, runtime, options, progress)?;
        let heads = if ranker.is_some() { heads } else { Vec::new() };
        stages.end("ranker");
        // After the replay: the floor only removes candidates, and lists whose item is below it teach the ranker too.
        relevance::calibrate(&mut bundle, runtime, progress)?;
        stages.end("relevance");
        if let Some(user) = &user {
            curves.add("user encoder, validation", &user.validation_losses);
        }
        if let Some(ranker) = &ranker {
            exports.push(ranker.check.clone());
            curves.add("ranker, validation", &ranker.validation_losses);
        }
        bundle.training = Some(serde_json::to_vec(&curves.thinned()).expect("finite numbers serialise to JSON"));

        // Counts need no labels, so the final ones use all training data.
        bundle.transitions = counts::transitions(all, item_count);
        bundle.co_purchases = counts::co_purchases(&baskets(all), item_count);
        bundle.item_to_item = item_to_item(all, item_count);
        bundle.histories = counts::histories(all, item_count);
        for source in &left_out {
            match source {
                OptionalSource::SimilarTexts => bundle.similar_texts = Neighbours::from_counts(item_count, [], 0),
                OptionalSource::SimilarHistories => bundle.histories = counts::histories(&[], item_count),
            }
        }
        bundle.popularity = shop.popularity();
        bundle.context_counts = shop.context_counts(&options.features, shop.times.counted_until);
        let ranker_loss = ranker.as_ref().map(|ranker| ranker.validation_loss);
        if let Some(ranker) = ranker {
            bundle.ranker = ranker.onnx;
            let head = |(name, c): (&String, &Calibration)| Head {
                name: name.clone(),
                weight: head_weight(name),
                scale: c.scale,
                offset: c.offset,
            };
            bundle.manifest.heads = heads.iter().zip(&ranker.calibration).map(head).collect();
        }
        let report = TrainReport {
            item_count,
            interaction_count: shop.interactions.len(),
            sample_count: samples.len(),
            epoch_count: user.as_ref().map_or(0, |user| user.epochs),
            list_count,
            left_out_sources: left_out.iter().map(|of| of.source().name()).collect(),
            answers: shop
                .answers
                .as_ref()
                .map(|logged| AnswersReport { list_count: shown_count, ..logged.report.clone() }),
            heads,
            features: features.clone(),
            user_encoder_loss: user.as_ref().map_or(f32::NAN, |user| user.validation_loss),
            missing_user_encoder,
            missing_ranker: ranker_loss.is_none().then(|| missing_ranker(list_count)),
            ranker_loss,
            loyalty: LoyaltyReport::of(&bundle.loyalty),
            exports: exports.iter().map(|check| (check.model.to_string(), check.max_difference)).collect(),
            checkpoint: CheckpointUse::Nothing,
            start,
            seconds: stages.seconds.clone(),
            memory_bytes_max: memory_bytes_max(),
        };
        Ok((bundle, report))
    }
}

/// Replays the events after the encoders' data, and the logged answers of that time.
fn replayed_lists(
    bundle: &Bundle,
    shop: &Shop,
    runtime: &Runtime,
    options: &TrainOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<Lists, TrainError> {
    let mut models = Models::open(runtime, bundle, Device::Cpu)?;
    let generation = Generation::standalone(without_models(bundle), 1024)?;
    let input = ListInput {
        generation: &generation,
        items: &shop.items,
        events: &shop.events,
        times: shop.times.labels.clone(),
        answers: shop.answers.as_ref(),
        options,
    };
    ranking_lists(&input, &mut models, &mut StdRng::seed_from_u64(options.seed), progress)
}

/// Trains the ranking model. With too few lists there is no model, and answers keep the order of retrieval.
fn train_on_lists(
    mut lists: Lists,
    runtime: &Runtime,
    options: &TrainOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<Option<TrainedRanker>, TrainError> {
    let list_count = lists.lists.len();
    if list_count < LISTS_MIN {
        return Ok(None);
    }
    let validation = lists.lists.split_off(list_count - list_count / 6);
    let mut fit_lists = lists.lists;
    fit_lists.append(&mut lists.shown);
    let data = RankingData {
        lists: &fit_lists,
        validation: &validation,
        feature_names: options.features.names(),
        heads: &lists.heads,
    };
    let config = RankerConfig { seed: options.seed, ..Default::default() };
    Ok(Some(train_ranker(data, &config, &options.stop, runtime, progress)?))
}

/// Returns why there is no ranking model, and how the bundle serves without one.
fn missing_ranker(list_count: usize) -> String {
    format!(
        "no ranking model: {list_count} lists with interactions; it needs at least {LISTS_MIN}. Answers keep the order of \
         retrieval; train again with more events"
    )
}

/// Returns the identity matrix, `[dimensions × dimensions]`, which projects the query space to a user space that equals
/// it.
fn identity(dimensions: usize) -> Vec<f32> {
    (0..dimensions * dimensions).map(|at| f32::from(u8::from(at % (dimensions + 1) == 0))).collect()
}

/// Returns the peak resident size of this process, from Linux's `/proc/self/status`.
fn memory_bytes_max() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}

/// Opens the bundle of the warm start, if the options name one that can be used. The second value is for the report.
fn warm_start(
    shop: &Shop,
    options: &TrainOptions,
    sentence: Option<&SentenceFiles>,
) -> Result<(Option<EarlierBundle>, WarmStart), TrainError> {
    let Some(directory) = &options.warm_start else { return Ok((None, WarmStart::RandomWeights)) };
    Ok(match EarlierBundle::open(directory, options.encoder, sentence, shop.times.validation.start)? {
        Ok(bundle) => {
            let start = bundle.warm_start(&shop.items);
            (Some(bundle), start)
        }
        Err(reason) => (None, WarmStart::BundleNotUsed { reason }),
    })
}

/// Checks that an index accepts the vectors. The error names the item.
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

pub(super) fn freeze(vectors: &[f32], dimensions: usize) -> Result<Arc<FrozenGraph>, FrozenError> {
    let config = BuildConfig { precision: Precision::Int12, ..BuildConfig::default() };
    FrozenGraph::build(vectors, dimensions, config, &|_| {}).map(Arc::new)
}

/// Copies the parts of a bundle that a generation needs besides the models.
pub(crate) fn without_models(bundle: &Bundle) -> Bundle {
    Bundle {
        manifest: bundle.manifest.clone(),
        items: bundle.items.clone(),
        item_vectors: bundle.item_vectors.clone(),
        title_vectors: bundle.title_vectors.clone(),
        text_indexes: bundle.text_indexes.clone(),
        text_projection: bundle.text_projection.clone(),
        transitions: bundle.transitions.clone(),
        co_purchases: bundle.co_purchases.clone(),
        item_to_item: bundle.item_to_item.clone(),
        similar_texts: bundle.similar_texts.clone(),
        histories: bundle.histories.clone(),
        popularity: bundle.popularity.clone(),
        context_counts: bundle.context_counts.clone(),
        user_encoder: Vec::new(),
        encoder_weights: None,
        query_encoder: Vec::new(),
        tokenizer: None,
        known_answer: None,
        training: None,
        ranker: Vec::new(),
        loyalty: bundle.loyalty.clone(),
        golden: None,
    }
}
