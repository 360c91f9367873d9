//! One request on its way through the pipeline, and the stages that several requests share.
use crate::{
    features::{self, Anchors, FeatureContext, FeatureSchema, RequestFeatures, UserContext},
    fusion::Candidates,
    generation::Generation,
    models::Models,
    policy,
    popularity::PopularityView,
    request::*,
    retrieve::{EligibleRows, Query, RetrievalInput, RetrievalLimits},
    serving::ServingConfig,
    slate::SearchMatches,
};
use ahash::{AHashMap, AHashSet};
use lodestone_catalog::{Catalog, Filter, Position};
use lodestone_core::{
    ids::{ItemId, Row},
    units::UnixMillis,
    viewer::ViewerContext,
};
use lodestone_index::QueryText;
use lodestone_rules::Synonyms;
use lodestone_state::users::History;
use lodestone_telemetry::call::StageTime;
use std::{sync::Arc, time::Instant};

/// Age of the events of a visitor that count for the user who has signed in, in milliseconds: a day. Older ones may be
/// those of another user of the device.
const VISITOR_EVENTS_MS: i64 = UnixMillis::DAY;

/// The stages of a request.
pub type StageTimes = Vec<StageTime>;

/// One request in flight: its view of a generation and the results of the stages so far.
pub struct RequestContext<'a> {
    pub generation: &'a Generation,
    pub catalog: &'a Arc<Catalog>,
    pub now: UnixMillis,
    pub viewer: ViewerContext,
    pub history: History,
    pub user: UserContext,
    /// None for a list that starts from no items.
    pub anchors: Option<Anchors>,
    pub user_known: bool,
    /// Whether the history includes events of the visitor before the user signed in.
    pub visitor_history_used: bool,
    /// The popularity of one moment for all stages.
    pub popularity: PopularityView,
    /// The log position that the user's history includes.
    pub position: u64,
    /// As the request has it.
    pub sent_query: Option<&'a str>,
    /// None: the sent query needs no correction.
    pub corrected_query: Option<String>,
    pub query_vector: Option<Vec<f32>>,
    /// Those of rules and sets, in addition to those of the lexical index.
    pub synonyms: Vec<Arc<Synonyms>>,
    /// The items that the rules leave.
    pub rule_filter: Option<Filter>,
    pub eligible: EligibleRows<'a>,
    /// The eligible rows among which the sources search. None: all.
    pub retrievable: Option<EligibleRows<'a>>,
    /// Those of the rows among which the sources search that boosts raise. None: no boost raises any.
    pub boosted: Option<EligibleRows<'a>>,
    /// The rows that the request excludes.
    pub excluded: AHashSet<Row>,
    /// The rows of items that only the request has; no index has them.
    pub request_rows: AHashMap<ItemId, Row>,
    /// The values of features that the request has.
    pub request_features: Option<RequestFeatures>,
    pub limits: RetrievalLimits,
    /// Whether a group has one result, in a catalogue that has groups.
    pub one_per_group: bool,
    /// What becomes of items that are sold out.
    pub sold_out: SoldOut,
    pub ranker: RankerUse,
    pub candidates: Candidates,
    /// The matches of a search with a query.
    pub matches: Option<SearchMatches>,
    /// Those without the filter's conditions on the fields of facets that count without them. None: no facet does.
    pub wide_matches: Option<SearchMatches>,
    /// The position of the last candidate in the order of fields, if the candidates are the first items of this order.
    pub field_position: Option<Position>,
    pub degradations: Vec<Degradation>,
    pub stage_times: StageTimes,
    pub(crate) stage_begun: Instant,
}

/// Whether the ranking model scores the candidates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RankerUse {
    Scores,
    /// The order of retrieval stays.
    Skipped,
}

/// Candidates with their scores; all parallel, in the order of retrieval.
pub struct RankedCandidates {
    pub candidates: Candidates,
    /// `[candidates × columns of the schema]`.
    pub features: Vec<f32>,
    /// `[candidates × heads]`, probabilities. Empty if the ranking model did not run.
    pub heads: Vec<f32>,
    pub scores: Vec<f32>,
}

impl RankedCandidates {
    /// Returns the features of the candidate at an index.
    pub fn features_of(&self, index: usize) -> &[f32] {
        let columns = self.features.len() / self.candidates.list.len();
        &self.features[index * columns..(index + 1) * columns]
    }
}

impl<'a> RequestContext<'a> {
    /// Takes one snapshot of the user, including recent events of the visitor if the user has signed in, and the
    /// request's context events. Every offered item is eligible.
    pub fn new(
        generation: &'a Generation,
        catalog: &'a Arc<Catalog>,
        viewer: &Viewer,
        options: &Options,
        now: UnixMillis,
    ) -> Self {
        let stage_begun = Instant::now();
        let position = generation.state.applied_position();
        let known = generation.state.users.history(&viewer.user);
        let user_known = known.is_some();
        let mut history = known.unwrap_or_default();
        let visitor = viewer.visitor.as_ref().and_then(|visitor| generation.state.users.history(visitor));
        let visitor_history_used = visitor.is_some_and(|visitor| history.add_recent(&visitor, now, VISITOR_EVENTS_MS));
        if !options.context_events.is_empty() {
            history = history.with_context(&options.context_events, &generation.state.keys);
        }
        let mut context = Self {
            user: UserContext::new(&history, generation.schema(), catalog, &generation.transitions, now),
            anchors: None,
            generation,
            catalog,
            now,
            viewer: viewer.context.clone(),
            history,
            user_known,
            visitor_history_used,
            popularity: generation.popularity(),
            position,
            sent_query: None,
            corrected_query: None,
            query_vector: None,
            synonyms: Vec::new(),
            rule_filter: None,
            eligible: EligibleRows::offered(catalog),
            excluded: AHashSet::new(),
            request_rows: AHashMap::new(),
            request_features: None,
            limits: ServingConfig::default().retrieval_limits(),
            one_per_group: options.one_per_group && catalog.has_groups(),
            sold_out: options.sold_out.unwrap_or_default(),
            retrievable: None,
            boosted: None,
            ranker: RankerUse::Scores,
            candidates: Candidates::default(),
            matches: None,
            wide_matches: None,
            field_position: None,
            degradations: Vec::new(),
            stage_times: Vec::with_capacity(8),
            stage_begun,
        };
        context.end_stage("state");
        context
    }

    /// The rows that an id names: the item's or, if there is no such item, those of the group's variants.
    pub fn named_rows(&self, id: &ItemId) -> impl Iterator<Item = Row> + use<'a> {
        let catalog: &'a Catalog = self.catalog;
        let of_request = self.request_rows.get(id).copied();
        let named = of_request.is_none().then(|| catalog.named_rows(&self.generation.state.keys, id));
        of_request.into_iter().chain(named.into_iter().flatten())
    }

    /// The row of an item of the catalogue or of the request.
    pub fn row_of(&self, id: &ItemId) -> Option<Row> {
        let of_request = self.request_rows.get(id).copied();
        of_request.or_else(|| self.catalog.row_of(&self.generation.state.keys, id))
    }

    /// The corrected query, otherwise the sent one.
    pub fn query(&self) -> Option<&str> {
        self.corrected_query.as_deref().or(self.sent_query)
    }

    /// A query with the synonyms of the request.
    pub fn query_text<'q>(&'q self, text: &'q str) -> QueryText<'q> {
        QueryText { text, synonyms: &self.synonyms }
    }

    /// The input of the first stage.
    pub fn retrieval_input(&self) -> RetrievalInput<'_> {
        RetrievalInput {
            generation: self.generation,
            catalog: self.catalog,
            user: &self.user,
            popularity: &self.popularity,
            query: self.query().map(|text| Query {
                text,
                vector: self.query_vector.as_deref(),
                synonyms: &self.synonyms,
            }),
            anchors: self.anchors.as_ref().map_or(&[], |anchors| &anchors.items),
            eligible: self.retrievable.as_ref().unwrap_or(&self.eligible),
            boosted: self.boosted.as_ref(),
            now: self.now,
            limits: self.limits,
            one_per_group: self.one_per_group,
        }
    }

    /// The generation's feature schema.
    pub fn schema(&self) -> &'a FeatureSchema {
        self.generation.schema()
    }

    /// Features `[candidates × columns of the schema]` of the candidates.
    pub fn features(&mut self) -> Vec<f32> {
        let moment = FeatureContext {
            schema: self.schema(),
            catalog: self.catalog,
            popularity: &self.popularity,
            now: self.now,
            viewer: &self.viewer,
            context_counts: &self.generation.context_counts,
            query_vector: self.query_vector.as_deref(),
            lexical_best: self.candidates.lexical_best,
            anchors: self.anchors.as_ref(),
            of_request: self.request_features.as_ref(),
        };
        let mut out = Vec::with_capacity(self.candidates.list.len() * self.schema().column_count());
        for candidate in &self.candidates.list {
            features::append(&mut out, &moment, &self.user, candidate.row, candidate.evidence);
        }
        self.end_stage("features");
        out
    }

    pub fn degrade(&mut self, code: DegradationCode, subject: &str) {
        self.degradations.push(Degradation { code, subject: subject.to_owned() });
    }

    /// Starts a stage after other requests used the thread.
    pub fn start_stage(&mut self) {
        self.stage_begun = Instant::now();
    }

    /// Records the duration since the last stage ended or [`Self::start_stage`] was called.
    pub fn end_stage(&mut self, name: &'static str) {
        let now = Instant::now();
        self.stage_times.push(StageTime { name, begun: self.stage_begun, time: now - self.stage_begun });
        self.stage_begun = now;
    }

    /// Ends the retrieval stage. The vector search, which is a part of it, is recorded as a stage of its own after it,
    /// because stages do not overlap.
    pub fn end_retrieval(&mut self) {
        let vector_search_time = self.candidates.vector_search_time;
        self.end_stage("retrieve");
        let Some(rest) = self.stage_times.last_mut() else { return };
        rest.time = rest.time.saturating_sub(vector_search_time);
        let begun = rest.begun + rest.time;
        self.stage_times.push(StageTime { name: "vector_search", begun, time: vector_search_time });
    }

    /// The answer's metadata, without the parts that only the engine knows: tokens, position, generation.
    pub fn answer_info(&self, sources: Vec<SourceCount>, level: DebugLevel) -> AnswerInfo {
        AnswerInfo {
            degradations: self.degradations.clone(),
            user_known: self.user_known,
            visitor_history_used: self.visitor_history_used,
            debug: (level >= DebugLevel::Timings).then(|| AnswerDebug {
                stages: self.stage_times.iter().map(|stage| (stage.name, stage.time)).collect(),
                sources,
                head_weights: Vec::new(),
                objectives: None,
                feature_names: match level >= DebugLevel::Features {
                    true => self.schema().names().to_vec(),
                    false => Vec::new(),
                },
            }),
            ..AnswerInfo::default()
        }
    }
}

/// Records a stage that ran once for several requests; each gets an equal share of the duration.
fn end_shared_stage(contexts: &mut [RequestContext], name: &'static str, begun: Instant) {
    let time = begun.elapsed() / contexts.len().max(1) as u32;
    for context in contexts {
        context.stage_times.push(StageTime { name, begun, time });
        context.start_stage();
    }
}

/// Encodes the users of several requests in one run of the model; the requests share a time. If the
/// model fails, the requests lose the sources that need the vector and declare a degradation.
pub fn encode_users(contexts: &mut [RequestContext], models: &mut Models) {
    let begun = Instant::now();
    let Some(first) = contexts.first() else { return };
    let histories: Vec<(&History, &Catalog)> =
        contexts.iter().map(|context| (&context.history, &**context.catalog)).collect();
    match models.encode_users(&histories, first.now) {
        Ok(vectors) => {
            for (context, vector) in contexts.iter_mut().zip(vectors) {
                context.user.vector = vector;
            }
        }
        Err(error) => {
            tracing::warn!(%error, "the user encoder failed");
            for context in contexts.iter_mut() {
                context.degrade(DegradationCode::EncoderSkipped, "user_encoder");
            }
        }
    }
    end_shared_stage(contexts, "encode", begun);
}

/// Encodes the queries of those requests that have one, in one run of the model.
pub fn encode_queries(contexts: &mut [RequestContext], models: &mut Models) {
    if contexts.iter().all(|context| context.sent_query.is_none()) {
        return;
    }
    let begun = Instant::now();
    // The vocabulary of a sentence encoder is larger than the catalogue's, by which queries are corrected.
    let queries: Vec<Option<&str>> = match models.query.is_sentence_encoder() {
        true => contexts.iter().map(|context| context.sent_query).collect(),
        false => contexts.iter().map(|context| context.query()).collect(),
    };
    match models.encode_queries(&queries) {
        Ok(vectors) => {
            for (context, vector) in contexts.iter_mut().zip(vectors) {
                context.query_vector = vector;
            }
        }
        Err(error) => {
            tracing::warn!(%error, "the query encoder failed");
            for context in contexts.iter_mut() {
                context.degrade(DegradationCode::EncoderSkipped, "query_encoder");
            }
        }
    }
    end_shared_stage(contexts, "encode_query", begun);
}

/// The second stage: scores the candidates of several requests in one run of the model, and takes them out of their
/// contexts. If the model fails, the order of retrieval stays and the requests declare a degradation.
pub fn rank(contexts: &mut [RequestContext], models: &mut Models) -> Vec<RankedCandidates> {
    let mut features = Vec::with_capacity(contexts.len());
    for context in contexts.iter_mut() {
        context.start_stage();
        features.push(context.features());
    }
    let begun = Instant::now();
    let scored: Vec<&Vec<f32>> = (contexts.iter().zip(&features))
        .filter(|(context, _)| context.ranker == RankerUse::Scores)
        .map(|(_, features)| features)
        .collect();
    let heads = match &scored[..] {
        [] => Ok(Vec::new()),
        [alone] => models.probabilities(alone),
        several => {
            models.probabilities(&several.iter().flat_map(|features| features.iter().copied()).collect::<Vec<f32>>())
        }
    };
    let heads = heads.unwrap_or_else(|error| {
        tracing::warn!(%error, "the ranking model failed");
        for context in contexts.iter_mut().filter(|context| context.ranker == RankerUse::Scores) {
            context.degrade(DegradationCode::RankerSkipped, "ranker");
        }
        Vec::new()
    });
    let weights: Vec<f32> = models.heads.iter().map(|head| head.weight).collect();
    let mut rest = &heads[..];
    let mut ranked = Vec::with_capacity(contexts.len());
    for (context, features) in contexts.iter_mut().zip(features) {
        let candidates = std::mem::take(&mut context.candidates);
        let count = match context.ranker {
            RankerUse::Scores => candidates.list.len() * weights.len(),
            RankerUse::Skipped => 0,
        };
        let heads = rest.split_off(..count.min(rest.len())).unwrap_or_default();
        let scores = match heads.is_empty() {
            true => candidates.list.iter().map(|candidate| candidate.evidence.fused).collect(),
            false => heads.chunks_exact(weights.len()).map(|heads| policy::utility(&weights, heads)).collect(),
        };
        ranked.push(RankedCandidates { candidates, features, heads: heads.to_vec(), scores });
    }
    end_shared_stage(contexts, "rank", begun);
    ranked
}
