//! The stories of requests: what is asked of each stage, in which order. Requests that wait together are answered
//! together: each learned function runs once for all of them, so that its weights and its code are fetched once.
use lodestone_engine::engine::Stages;
use super::{facets::{self, FacetSpec, Facets}, fusion::Candidates, generation::Generation, models::Models, request::*, retrieve::{self, RetrievalInput, Eligible}, slate::{PolicyContext, Slate}, trace::Trace};
use crate::context::{Ranked, RequestContext};
use crate::{answers::{self, AnswerId, AnswerKind}, features::Recent, serving::{Plan, ServingConfig}};
use lodestone_catalog::{Catalog, Filter};
use lodestone_events::EventKind;
use lodestone_core::{ids::{ItemId, ItemKey, Row}, units::UnixMillis};
use lodestone_index::Suggester;

/// A request with how it will be answered.
#[derive(Clone)]
pub struct PlannedRequest {
    pub asked: RankingRequest,
    /// Of the answer.
    pub id: AnswerId,
    pub plan: Plan,
    /// Whether the log of answers wants this one.
    pub is_logged: bool,
}

impl PlannedRequest {
    /// The same, for an answer that nobody gets.
    pub fn unlogged(&self) -> Self {
        Self { is_logged: false, ..self.clone() }
    }
}

/// A request that ends in a slate.
#[derive(Debug, Clone)]
pub enum RankingRequest {
    Search(SearchRequest),
    Recommend(RecommendRequest),
    Rank(RankRequest),
}

impl RankingRequest {
    fn kind(&self) -> AnswerKind {
        match self {
            Self::Search(_) => AnswerKind::Search,
            Self::Recommend(_) => AnswerKind::Recommend,
            Self::Rank(_) => AnswerKind::Rank,
        }
    }

    fn sent(&self) -> &[u8] {
        match self {
            Self::Search(request) => &request.sent,
            Self::Recommend(request) => &request.sent,
            Self::Rank(request) => &request.sent,
        }
    }

    pub fn viewer(&self) -> &Viewer {
        match self {
            Self::Search(request) => &request.viewer,
            Self::Recommend(request) => &request.viewer,
            Self::Rank(request) => &request.viewer,
        }
    }

    pub fn options(&self) -> &Options {
        match self {
            Self::Search(request) => &request.options,
            Self::Recommend(request) => &request.options,
            Self::Rank(request) => &request.options,
        }
    }

    fn query(&self) -> Option<&str> {
        match self {
            Self::Search(request) => Some(&request.query),
            Self::Recommend(_) => None,
            Self::Rank(request) => Some(request.query.as_str()).filter(|query| !query.trim().is_empty()),
        }
    }

    fn facets(&self) -> &[FacetSpec] {
        match self {
            Self::Search(request) => &request.facets,
            Self::Recommend(request) => &request.facets,
            Self::Rank(_) => &[],
        }
    }

    fn filter(&self) -> Option<&Filter> {
        match self {
            Self::Search(request) => request.filter.as_ref(),
            Self::Recommend(request) => request.filter.as_ref(),
            Self::Rank(_) => None,
        }
    }

    /// Items that the request names, of which the catalogue may not have some.
    fn named_items(&self) -> &[ItemId] {
        match self {
            Self::Search(request) => &request.options.exclude,
            Self::Recommend(request) => &request.anchors,
            Self::Rank(request) => &request.candidates,
        }
    }
}

/// A slate as it was made, with what is told about it.
pub struct PipelineResponse {
    pub slate: Slate,
    /// Empty: the query as sent.
    pub corrected_query: String,
    pub facets: Facets,
    pub tail: AnswerTail,
    pub stages: Stages,
    pub id: AnswerId,
    /// For the log of answers, where it wants this one.
    pub trace: Option<Box<Trace>>,
}

impl PipelineResponse {
    /// Whether it lacks a model or a source; what the request itself brought about does not count.
    pub fn is_degraded(&self) -> bool {
        use DegradationCode::{EncoderSkipped, RankerSkipped, SourceFailed};
        let own = [EncoderSkipped, RankerSkipped, SourceFailed];
        self.tail.degradations.iter().any(|degradation| own.contains(&degradation.code))
    }
}

/// The stories of some requests, in their order.
pub fn tell(generation: &Generation, models: &mut Models, questions: &[PlannedRequest]) -> Vec<PipelineResponse> {
    let asked: Vec<&RankingRequest> = questions.iter().map(|question| &question.asked).collect();
    let (catalog, now) = (generation.catalog.load_full(), UnixMillis::now());
    let mut stories: Vec<RequestContext> =
        asked.iter().map(|asked| RequestContext::begin(generation, &catalog, asked.viewer(), asked.options(), now)).collect();
    let corrected: Vec<Option<String>> =
        stories.iter_mut().zip(&asked).map(|(story, asked)| correct(story, asked)).collect();
    let sent: Vec<Option<&str>> = asked.iter().map(|asked| asked.query()).collect();
    let queries: Vec<Option<&str>> = corrected.iter().zip(&sent).map(|(new, sent)| new.as_deref().or(*sent)).collect();
    // A sentence encoder knows more words than the catalogue has.
    let encoded = if models.query.is_sentence_encoder() { &sent } else { &queries };
    let query_vectors = RequestContext::encode_queries(&mut stories, models, encoded);
    RequestContext::encode_users(&mut stories, models);
    let (mut eligible, mut candidates) = (Vec::with_capacity(asked.len()), Vec::with_capacity(asked.len()));
    for (index, asked) in asked.iter().enumerate() {
        let story = &mut stories[index];
        story.resume();
        check_version(story, asked.options());
        eligible.push(eligible_rows(generation, &catalog, asked.options(), asked.filter()));
        let ask = RetrievalInput {
            generation,
            catalog: &catalog,
            user: &story.user,
            query: queries[index].map(|query| (query, query_vectors[index].as_deref())),
            anchors: &story.user.recent,
            eligible: &eligible[index],
            now,
            source_count: most(&questions[index].plan, |config| config.source_candidates),
            candidate_count: most(&questions[index].plan, |config| config.candidates),
        };
        let (found, degradation) = match asked {
            RankingRequest::Search(_) => search(&ask),
            RankingRequest::Recommend(request) => (recommend(&ask, story, request), None),
            RankingRequest::Rank(request) => (given(&ask, request), None),
        };
        story.degradations.extend(degradation);
        story.retrieved(found.near_time);
        candidates.push(found);
    }
    let runs: Vec<bool> =
        questions.iter().map(|question| question.plan.configs.iter().any(|config| config.ranker)).collect();
    let ranked = RequestContext::rank_those(&mut stories, models, candidates, &query_vectors, &runs);
    let slates = stories.into_iter().zip(ranked).zip(questions).zip(&eligible).zip(&corrected);
    let told = slates.map(|((((mut story, ranked), question), eligible), corrected)| {
        let query = corrected.as_deref().or(question.asked.query());
        let facets = facets(&mut story, &question.asked, query, eligible);
        PipelineResponse { facets, ..finish(story, ranked, question, corrected.as_deref().unwrap_or_default(), eligible, models) }
    });
    told.collect()
}

/// The greatest of what the plan's configurations say.
fn most(plan: &Plan, of: impl Fn(&ServingConfig) -> usize) -> usize {
    plan.configs.iter().map(|config| of(config)).max().unwrap_or_default()
}

/// The query of a search with its misspelled words corrected, where that helps.
fn correct(story: &mut RequestContext, asked: &RankingRequest) -> Option<String> {
    let RankingRequest::Search(request) = asked else { return None };
    story.resume();
    let corrected = story.generation.lexical.correct(&request.query, &|row| story.catalog.is_offered(row));
    story.stage("correct");
    corrected.unwrap_or_else(|error| {
        tracing::warn!(%error, "the words source failed");
        None
    })
}

/// Counts what the request wants counted: of a search all matches of its words, otherwise everything that is eligible.
fn facets(story: &mut RequestContext, asked: &RankingRequest, query: Option<&str>, eligible: &Eligible) -> Facets {
    if asked.facets().is_empty() {
        return Facets::default();
    }
    story.resume();
    let rows = match query {
        Some(query) => story.generation.lexical.matching(query, &|row| eligible.keeps(row)).unwrap_or_else(|error| {
            tracing::warn!(%error, "the words source failed");
            Vec::new()
        }),
        None => eligible.rows().collect(),
    };
    let counted = facets::count(&story.catalog, &rows, asked.facets());
    story.stage("facets");
    counted
}

/// Policy, and what an answer says about itself.
fn finish(
    mut story: RequestContext,
    ranked: Ranked,
    question: &PlannedRequest,
    corrected_query: &str,
    eligible: &Eligible,
    models: &Models,
) -> PipelineResponse {
    story.resume();
    let (asked, options) = (&question.asked, question.asked.options());
    let asking = PolicyContext {
        plan: &question.plan,
        has_own_order: matches!(asked, RankingRequest::Recommend(request) if has_order_of_its_own(request.kind)),
        puts_matches_first: matches!(asked, RankingRequest::Search(_)),
        seed: answers::seed_of(&question.id),
    };
    let catalog = story.catalog.clone();
    let rules = match asked {
        RankingRequest::Search(_) | RankingRequest::Recommend(_) => {
            story.rules(&ranked, options, &asking, models, &|row| eligible.keeps(row))
        }
        RankingRequest::Rank(_) => story.rules(&ranked, options, &asking, models, &|row| catalog.is_alive(row)),
    };
    let (mut slate, arranged) = story.slate(&ranked, &rules, options, models);
    slate.reason = match asked {
        RankingRequest::Search(_) => None,
        RankingRequest::Recommend(request) => reason_of_list(&story, request),
        RankingRequest::Rank(_) => Some(Reason { code: ReasonCode::Candidate, evidence: Vec::new() }),
    };
    let mut tail = story.tail(std::mem::take(&mut slate.sources), options.debug);
    tail.unknown_items = unknown(&story, asked.named_items());
    tail.dropped_pins = std::mem::take(&mut slate.dropped_pins);
    tail.serving_config = question.plan.main().name.clone();
    tail.arm = question.plan.arm.clone();
    tail.explored = arranged.explored;
    let trace = question.is_logged.then(|| {
        Box::new(Trace {
            id: question.id,
            at: story.now,
            kind: asked.kind(),
            user: asked.viewer().user.clone(),
            sent: asked.sent().to_vec(),
            arm: question.plan.arm.clone(),
            session_version: story.position,
            degradations: story.degradations.clone(),
            corrected_query: corrected_query.to_owned(),
            catalog,
            bundle_row_count: story.generation.bundle_row_count,
            ranked,
            rules,
            arranged,
        })
    });
    PipelineResponse {
        slate,
        corrected_query: corrected_query.to_owned(),
        facets: Facets::default(),
        tail,
        stages: story.stages,
        id: question.id,
        trace,
    }
}

fn search(ask: &RetrievalInput) -> (Candidates, Option<Degradation>) {
    let degradation = |code, subject: &str| Some(Degradation { code, subject: subject.to_owned() });
    match retrieve::for_query(ask) {
        Ok(found) if found.words_complete == 0 => (found, degradation(DegradationCode::QueryRelaxed, "")),
        Ok(found) => (found, None),
        Err(error) => {
            tracing::warn!(%error, "the words source failed");
            (Candidates::default(), degradation(DegradationCode::SourceFailed, "words"))
        }
    }
}

fn recommend(ask: &RetrievalInput, story: &RequestContext, request: &RecommendRequest) -> Candidates {
    let given = anchors(story, &request.anchors);
    let ask = RetrievalInput { anchors: if given.is_empty() { ask.anchors } else { &given }, ..*ask };
    let eligible = |key: ItemKey| ask.catalog.row_of_key(key).filter(|row| ask.eligible.keeps(*row));
    let in_order = |source: usize, list: Vec<(ItemKey, f32)>| {
        let rows = list.into_iter().filter_map(|(key, score)| Some((eligible(key)?, score))).collect();
        retrieve::in_order(ask.catalog, source, rows, ask.candidate_count)
    };
    match request.kind {
        RecommendKind::ForYou => retrieve::for_user(&ask),
        RecommendKind::Similar => retrieve::like_anchors(&ask),
        RecommendKind::BoughtTogether => retrieve::with_anchors(&ask),
        RecommendKind::BuyAgain => retrieve::bought_before(&ask),
        RecommendKind::Trending => in_order(
            retrieve::POPULAR,
            ask.generation.live.popularity.read().top_trending(ask.candidate_count, ask.now),
        ),
        RecommendKind::RecentlyViewed => in_order(retrieve::HISTORY, recently_viewed(story)),
    }
}

/// These lists answer a question of their own (alike, together, when); the user's taste would blur it.
fn has_order_of_its_own(kind: RecommendKind) -> bool {
    match kind {
        RecommendKind::ForYou | RecommendKind::BuyAgain => false,
        RecommendKind::Similar
        | RecommendKind::BoughtTogether
        | RecommendKind::Trending
        | RecommendKind::RecentlyViewed => true,
    }
}

/// The caller's candidates that the catalogue has, each once.
fn given(ask: &RetrievalInput, request: &RankRequest) -> Candidates {
    let mut found: Vec<(Row, f32)> = Vec::new();
    for id in request.candidates.iter().filter(|id| !request.options.exclude.contains(id)) {
        if let Some(row) = ask.catalog.row_of(&ask.generation.live.keys, id)
            && !found.iter().any(|(known, _)| *known == row)
        {
            found.push((row, 0.0));
        }
    }
    retrieve::in_order(ask.catalog, retrieve::USER_VECTOR, found, request.candidates.len())
}

/// The story of a suggestion.
pub fn suggest(generation: &Generation, models: &mut Models, request: &SuggestRequest) -> (SuggestAnswer, Stages) {
    let options = Options::default();
    let catalog = generation.catalog.load_full();
    let mut story = RequestContext::begin(generation, &catalog, &request.viewer, &options, UnixMillis::now());
    let affinity = category_affinity(&story);
    let completions = if request.prefix.trim().is_empty() {
        let completion = |query: &lodestone_state::users::PastQuery| Completion {
            text: query.text.to_string(),
            source: CompletionSource::Query,
        };
        story.history.queries.iter().rev().take(request.completion_count).map(completion).collect()
    } else {
        let affinity = |category: &str| affinity.get(category).copied().unwrap_or(0.0);
        let sources = [&generation.titles, &generation.live.queries];
        Suggester::complete_from(&sources, &request.prefix, request.completion_count, &affinity)
    };
    story.stage("complete");
    let keep = |row: Row| catalog.is_offered(row);
    let found = if request.prefix.trim().is_empty() {
        story.user.recent.iter().filter(|r| keep(r.row)).map(|recent| (recent.row, recent.weight)).collect()
    } else {
        let found = generation.lexical.search(&request.prefix, lodestone_index::Match::Prefix, 50, &keep);
        found.unwrap_or_else(|error| {
            tracing::warn!(%error, "the words source failed");
            story.degrade(DegradationCode::SourceFailed, "words");
            Vec::new()
        })
    };
    story.stage("retrieve");
    RequestContext::encode_users(std::slice::from_mut(&mut story), models);
    let candidates = retrieve::in_order(&catalog, retrieve::WORDS, found, 50);
    let ranked = RequestContext::rank(std::slice::from_mut(&mut story), models, vec![candidates], &[None]).remove(0);
    let asking = PolicyContext { plan: &Plan::default(), has_own_order: false, puts_matches_first: false, seed: 0 };
    let rules = story.rules(&ranked, &options, &asking, models, &keep);
    let (slate, _) = story.slate(&ranked, &rules, &options, models);
    let products = slate.results(generation, 0..request.product_count.min(slate.places.len()));
    let tail = story.tail(slate.sources, DebugLevel::None);
    (SuggestAnswer { completions, products, tail }, story.stages)
}

/// Every acknowledged position is applied before it is acknowledged, so only a position of another server is ahead.
fn check_version(story: &mut RequestContext, options: &Options) {
    if options.session_version > story.generation.live.applied_position() {
        story.degrade(DegradationCode::StaleState, "users");
    }
}

fn anchors(story: &RequestContext, ids: &[ItemId]) -> Vec<Recent> {
    let recent = |id: &ItemId| {
        let key = story.generation.live.keys.get(id)?;
        let row = story.catalog.row_of_key(key)?;
        Some(Recent { row, key, weight: 1.0, kind: EventKind::View, at_s: story.now.seconds_u32() })
    };
    ids.iter().filter_map(recent).collect()
}

fn recently_viewed(story: &RequestContext) -> Vec<(ItemKey, f32)> {
    let mut seen: Vec<(ItemKey, f32)> = Vec::new();
    for event in story.history.events.iter().rev() {
        let looked = matches!(event.kind, EventKind::View | EventKind::Click);
        if looked && !seen.iter().any(|(key, _)| *key == event.item) {
            seen.push((event.item, event.at_s as f32));
        }
    }
    seen
}

fn category_affinity(story: &RequestContext) -> std::collections::HashMap<String, f32> {
    let mut affinity = std::collections::HashMap::new();
    for recent in &story.user.recent {
        for category in &story.catalog.get(recent.row).item.categories {
            *affinity.entry(category.clone()).or_insert(0.0) += recent.weight;
        }
    }
    affinity
}

/// Lists with a question of their own give it as their reason, with the anchors as evidence.
fn reason_of_list(story: &RequestContext, request: &RecommendRequest) -> Option<Reason> {
    let code = match request.kind {
        RecommendKind::Similar => ReasonCode::Similar,
        RecommendKind::BoughtTogether => ReasonCode::BoughtTogether,
        RecommendKind::Trending => ReasonCode::Trending,
        RecommendKind::RecentlyViewed => ReasonCode::RecentlyViewed,
        RecommendKind::ForYou | RecommendKind::BuyAgain => return None,
    };
    let evidence =
        anchors(story, &request.anchors).iter().take(3).map(|a| story.generation.live.keys.id(a.key)).collect();
    Some(Reason { code, evidence })
}

/// Which rows a request may show: offered, not excluded, matching the filter.
fn eligible_rows<'a>(
    generation: &Generation,
    catalog: &'a Catalog,
    options: &Options,
    filter: Option<&Filter>,
) -> Eligible<'a> {
    let excluded = options.exclude.iter().filter_map(|id| catalog.row_of(&generation.live.keys, id));
    let eligible = Eligible::offered(catalog).without(excluded);
    match filter {
        Some(filter) => eligible.matching(catalog, filter),
        None => eligible,
    }
}

fn unknown(story: &RequestContext, ids: &[ItemId]) -> Vec<ItemId> {
    ids.iter().filter(|id| story.catalog.row_of(&story.generation.live.keys, id).is_none()).cloned().collect()
}
