//! The front door: asks the workers, freezes slates, writes through the log.
use super::{
    answer::{Ranked, Slate, Story},
    models::{Models, embed_items},
    request::*,
    retrieve::{self, Ask, Eligible},
    token::{PageToken, TokenKey},
    workers::Workers,
    world::World,
};
use crate::{
    catalog::{Catalog, Filter, Item, ItemVectors},
    events::{Change, Event, EventKind, Outcome, Writer},
    features::Recent,
    ids::{ItemId, Row},
    telemetry::{Metrics, Sizes},
    units::UnixMillis,
};
use moka::sync::Cache;
use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};
use uuid::Uuid;

/// What the engine may spend.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// Candidates of each source.
    pub source_candidates_max: usize,
    /// Candidates that are ranked.
    pub candidates_max: usize,
    /// Frozen slates that are kept, and how long.
    pub slates_max: u64,
    pub slate_ttl: Duration,
    /// 0 to 1, where a request does not say.
    pub diversity_default: f32,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            source_candidates_max: 150,
            candidates_max: 250,
            slates_max: 100_000,
            slate_ttl: Duration::from_secs(30 * 60),
            diversity_default: 0.0,
        }
    }
}

/// Times of the stages of an answer.
type Stages = Vec<(&'static str, Duration)>;

/// A slate as it was answered first, for its later pages.
struct Frozen {
    fingerprint: u64,
    slate: Slate,
    corrected_query: String,
    tail: AnswerTail,
    stages: Stages,
}

pub struct Engine {
    world: Arc<World>,
    workers: Workers,
    writer: Writer<ItemVectors>,
    slates: Cache<[u8; 16], Arc<Frozen>>,
    tokens: TokenKey,
    config: EngineConfig,
    generation: Arc<str>,
    metrics: Metrics,
}

impl Engine {
    pub fn new(
        world: Arc<World>,
        workers: Workers,
        writer: Writer<ItemVectors>,
        tokens: TokenKey,
        config: EngineConfig,
    ) -> Self {
        let slates = Cache::builder().max_capacity(config.slates_max).time_to_live(config.slate_ttl).build();
        let generation = Arc::from(world.manifest.name.as_str());
        let metrics = Metrics::default();
        metrics.serving(&generation);
        Self { world, workers, writer, slates, tokens, config, generation, metrics }
    }

    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The metrics as text, with the sizes of now.
    pub fn metrics_text(&self) -> String {
        self.metrics.text(Sizes {
            items: self.world.catalog.load().item_count(),
            people: self.world.people.len(),
            slates: self.slates.entry_count(),
            log_position: self.writer.position(),
        })
    }

    pub fn generation(&self) -> Arc<str> {
        self.generation.clone()
    }

    pub fn is_attribution_token(&self, text: &str) -> bool {
        self.tokens.is_attribution(text)
    }

    pub fn get_item(&self, id: &ItemId) -> Option<Arc<Item>> {
        let catalog = self.world.catalog.load();
        catalog.row_of(&self.world.keys, id).map(|row| catalog.get(row).item.clone())
    }

    pub async fn search(&self, request: SearchRequest, deadline: Instant) -> Result<Answer, EngineError> {
        if !request.page.token.is_empty() {
            return self.next_page(&request.page);
        }
        let page = request.page.clone();
        let (world, config) = (self.world.clone(), self.config.clone());
        let frozen = self.workers.run(deadline, move |models| Ok(search(&world, models, &request, &config))).await?;
        Ok(self.first_page(frozen, &page))
    }

    pub async fn recommend(&self, request: RecommendRequest, deadline: Instant) -> Result<Answer, EngineError> {
        if !request.page.token.is_empty() {
            return self.next_page(&request.page);
        }
        let page = request.page.clone();
        let (world, config) = (self.world.clone(), self.config.clone());
        let frozen = self.workers.run(deadline, move |models| Ok(recommend(&world, models, &request, &config))).await?;
        Ok(self.first_page(frozen, &page))
    }

    pub async fn rank(&self, request: RankRequest, deadline: Instant) -> Result<Answer, EngineError> {
        let world = self.world.clone();
        let page = Page { size: request.candidates.len(), token: String::new(), fingerprint: 0 };
        let config = self.config.clone();
        let (frozen, unknown) =
            self.workers.run(deadline, move |models| Ok(rank(&world, models, &request, &config))).await?;
        let mut answer = self.first_page(frozen, &page);
        for id in unknown {
            let rank = answer.results.len() + 1;
            let reasons = vec![Reason { code: ReasonCode::Candidate, evidence: Vec::new() }];
            answer.results.push(RankedItem { id, rank, score: 0.0, reasons, item: None, debug: None });
        }
        answer.total_size = answer.results.len();
        Ok(answer)
    }

    pub async fn suggest(&self, request: SuggestRequest, deadline: Instant) -> Result<SuggestAnswer, EngineError> {
        let world = self.world.clone();
        let (mut answer, stages) =
            self.workers.run(deadline, move |models| Ok(suggest(&world, models, &request))).await?;
        self.note(&stages, &answer.tail);
        self.sign(&mut answer.tail, Uuid::now_v7().into_bytes());
        Ok(answer)
    }

    pub async fn write_events(&self, events: Vec<Event>) -> Result<(Vec<WriteOutcome>, u64), EngineError> {
        let changes = events.into_iter().map(|event| (Change::Event(event), None)).collect();
        let written = self.writer.write(changes).await.map_err(EngineError::Log)?;
        let outcomes = written.outcomes.into_iter().map(|outcome| match outcome {
            Outcome::Accepted => WriteOutcome::Accepted,
            Outcome::Duplicate => WriteOutcome::Duplicate,
        });
        let outcomes: Vec<WriteOutcome> = outcomes.collect();
        self.note_written(&outcomes);
        Ok((outcomes, written.session_version))
    }

    pub async fn upsert_items(&self, items: Vec<Item>) -> Result<(Vec<WriteOutcome>, u64), EngineError> {
        let outcomes: Vec<WriteOutcome> = items
            .iter()
            .map(|item| match self.get_item(&item.id) {
                Some(_) => WriteOutcome::Replaced,
                None => WriteOutcome::Created,
            })
            .collect();
        let world = self.world.clone();
        let deadline = Instant::now() + Duration::from_secs(30);
        let (items, vectors) = self
            .workers
            .run(deadline, move |models| match embed_items(&world, models, &items) {
                Ok(vectors) => Ok((items, vectors)),
                Err(error) => Err(EngineError::Internal(error.to_string())),
            })
            .await?;
        let changes =
            items.into_iter().zip(vectors).map(|(item, v)| (Change::Upsert(Box::new(item)), Some(v))).collect();
        let written = self.writer.write(changes).await.map_err(EngineError::Log)?;
        self.note_written(&outcomes);
        Ok((outcomes, written.session_version))
    }

    pub async fn delete_items(&self, ids: Vec<ItemId>) -> Result<(Vec<WriteOutcome>, u64), EngineError> {
        let outcomes: Vec<WriteOutcome> = ids
            .iter()
            .map(|id| match self.get_item(id) {
                Some(_) => WriteOutcome::Deleted,
                None => WriteOutcome::Unknown,
            })
            .collect();
        let changes = ids.into_iter().map(|id| (Change::Delete(id), None)).collect();
        let written = self.writer.write(changes).await.map_err(EngineError::Log)?;
        self.note_written(&outcomes);
        Ok((outcomes, written.session_version))
    }

    fn first_page(&self, mut frozen: Frozen, page: &Page) -> Answer {
        let id = Uuid::now_v7().into_bytes();
        frozen.fingerprint = page.fingerprint;
        self.note(&std::mem::take(&mut frozen.stages), &frozen.tail);
        self.sign(&mut frozen.tail, id);
        let answer = self.cut(&frozen, id, 0, page.size);
        if frozen.slate.places.len() > page.size {
            self.slates.insert(id, Arc::new(frozen));
        }
        answer
    }

    fn note(&self, stages: &Stages, tail: &AnswerTail) {
        for (stage, time) in stages {
            self.metrics.stage(stage, *time);
        }
        for degradation in &tail.degradations {
            self.metrics.degraded(degradation.code.name());
        }
    }

    fn note_written(&self, outcomes: &[WriteOutcome]) {
        let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
        for outcome in outcomes {
            *counts.entry(outcome.name()).or_default() += 1;
        }
        for (outcome, count) in counts {
            self.metrics.wrote(outcome, count);
        }
    }

    fn next_page(&self, page: &Page) -> Result<Answer, EngineError> {
        let token = self.tokens.parse_page(&page.token).ok_or(EngineError::PageToken(PageTokenError::Foreign))?;
        let frozen = self.slates.get(&token.slate).ok_or(EngineError::PageToken(PageTokenError::Expired))?;
        if frozen.fingerprint != page.fingerprint {
            return Err(EngineError::PageToken(PageTokenError::OtherRequest));
        }
        Ok(self.cut(&frozen, token.slate, token.offset as usize, page.size))
    }

    fn cut(&self, frozen: &Frozen, slate: [u8; 16], offset: usize, size: usize) -> Answer {
        let total_size = frozen.slate.places.len();
        let end = offset.saturating_add(size).min(total_size);
        let next_page_token = match end < total_size {
            true => self.tokens.page(PageToken { slate, offset: end as u32 }),
            false => String::new(),
        };
        Answer {
            results: frozen.slate.results(&self.world, offset.min(end)..end),
            next_page_token,
            total_size,
            corrected_query: frozen.corrected_query.clone(),
            tail: frozen.tail.clone(),
        }
    }

    fn sign(&self, tail: &mut AnswerTail, answer: [u8; 16]) {
        tail.attribution_token = self.tokens.attribution(answer);
        tail.session_version = self.writer.position();
        tail.generation = self.generation.clone();
    }
}

/// Which rows a request may show: offered, not excluded, matching the filter.
fn eligible<'a>(world: &World, catalog: &'a Catalog, options: &Options, filter: Option<&Filter>) -> Eligible<'a> {
    let excluded = options.exclude.iter().filter_map(|id| catalog.row_of(&world.keys, id));
    let eligible = Eligible::offered(catalog).without(excluded);
    match filter {
        Some(filter) => eligible.matching(catalog, |item| filter.matches(item)),
        None => eligible,
    }
}

fn unknown(story: &Story, ids: &[ItemId]) -> Vec<ItemId> {
    ids.iter().filter(|id| story.catalog.row_of(&story.world.keys, id).is_none()).cloned().collect()
}

fn freeze(story: Story, mut slate: Slate, options: &Options, unknown_items: Vec<ItemId>) -> Frozen {
    let mut tail = story.tail(std::mem::take(&mut slate.sources), options.debug);
    tail.unknown_items = unknown_items;
    tail.dropped_pins = std::mem::take(&mut slate.dropped_pins);
    Frozen { fingerprint: 0, slate, corrected_query: String::new(), tail, stages: story.stages }
}

/// The story of a search.
fn search(world: &World, models: &mut Models, request: &SearchRequest, config: &EngineConfig) -> Frozen {
    let mut story = Story::begin(world, &request.viewer, &request.options, UnixMillis::now());
    check_version(&mut story, &request.options);
    let vector = story.encode_query(models, &request.query);
    story.encode_person(models);
    let catalog = story.catalog.clone();
    let eligible = eligible(world, &catalog, &request.options, request.filter.as_ref());
    let keep = |row: Row| eligible.keeps(row);
    let ask = Ask {
        world,
        catalog: &catalog,
        person: &story.person,
        query: Some((&request.query, vector.as_deref())),
        anchors: &story.person.recent,
        eligible: &eligible,
        now: story.now,
        source_count: config.source_candidates_max,
        candidate_count: config.candidates_max,
    };
    let found = retrieve::for_query(&ask);
    let candidates = match found {
        Ok(candidates) => {
            if candidates.words_complete == 0 {
                story.degrade(DegradationCode::QueryRelaxed, "");
            }
            candidates
        }
        Err(error) => {
            tracing::warn!(%error, "the words source failed");
            story.degrade(DegradationCode::SourceFailed, "words");
            Default::default()
        }
    };
    story.retrieved(candidates.near_time);
    let mut ranked = story.rank(models, candidates, vector.as_deref());
    put_matches_first(&mut ranked);
    let slate = story.slate(ranked, &with_default(&request.options, config), models, &keep);
    let unknown_items = unknown(&story, &request.options.exclude);
    freeze(story, slate, &request.options, unknown_items)
}

/// What has all words of the query comes before what is only near to it: the ranking model orders each of the two, and a
/// shopper who typed a name in another language than the model learned still finds it first. Utilities are below 1.
fn put_matches_first(ranked: &mut Ranked) {
    for (score, candidate) in ranked.scores.iter_mut().zip(&ranked.candidates.list) {
        if usize::from(candidate.places[retrieve::WORDS]) < ranked.candidates.words_complete {
            *score += 1.0;
        }
    }
}

/// The story of a recommendation.
fn recommend(world: &World, models: &mut Models, request: &RecommendRequest, config: &EngineConfig) -> Frozen {
    let mut story = Story::begin(world, &request.viewer, &request.options, UnixMillis::now());
    check_version(&mut story, &request.options);
    story.encode_person(models);
    let catalog = story.catalog.clone();
    let eligible = eligible(world, &catalog, &request.options, request.filter.as_ref());
    let keep = |row: Row| eligible.keeps(row);
    let given = anchors(&story, &request.anchors);
    let ask = Ask {
        world,
        catalog: &catalog,
        person: &story.person,
        query: None,
        anchors: if given.is_empty() { &story.person.recent } else { &given },
        eligible: &eligible,
        now: story.now,
        source_count: config.source_candidates_max,
        candidate_count: config.candidates_max,
    };
    let keyed = |list: Vec<(crate::ids::ItemKey, f32)>| -> Vec<(Row, f32)> {
        let row = |key| catalog.row_of_key(key).filter(|row| keep(*row));
        list.into_iter().filter_map(|(key, score)| Some((row(key)?, score))).collect()
    };
    let candidates = match request.kind {
        RecommendKind::ForYou => retrieve::for_person(&ask),
        RecommendKind::Similar => retrieve::like_anchors(&ask),
        RecommendKind::BoughtTogether => retrieve::with_anchors(&ask),
        RecommendKind::BuyAgain => retrieve::bought_before(&ask),
        RecommendKind::Trending => {
            let top = world.popularity.read().top_trending(config.candidates_max, story.now);
            retrieve::in_order(&catalog, retrieve::POPULAR, keyed(top), config.candidates_max)
        }
        RecommendKind::RecentlyViewed => {
            retrieve::in_order(&catalog, retrieve::HISTORY, keyed(recently_viewed(&story)), config.candidates_max)
        }
    };
    story.retrieved(candidates.near_time);
    let mut ranked = story.rank(models, candidates, None);
    let keeps_order = matches!(
        request.kind,
        RecommendKind::Similar
            | RecommendKind::BoughtTogether
            | RecommendKind::Trending
            | RecommendKind::RecentlyViewed
    );
    if keeps_order {
        // These lists answer a question of their own (alike, together, when); the person's taste would blur it.
        ranked.scores = ranked.candidates.list.iter().map(|candidate| candidate.evidence.fused).collect();
    }
    let mut slate = story.slate(ranked, &with_default(&request.options, config), models, &keep);
    name_reasons(&mut slate, request, &given, world);
    let unknown_items = unknown(&story, &request.anchors);
    freeze(story, slate, &request.options, unknown_items)
}

/// The story of a ranking of the caller's candidates. The second value: those that the catalogue does not have.
fn rank(world: &World, models: &mut Models, request: &RankRequest, config: &EngineConfig) -> (Frozen, Vec<ItemId>) {
    let mut story = Story::begin(world, &request.viewer, &request.options, UnixMillis::now());
    check_version(&mut story, &request.options);
    let vector = if request.query.trim().is_empty() { None } else { story.encode_query(models, &request.query) };
    story.encode_person(models);
    let catalog = story.catalog.clone();
    let mut found: Vec<(Row, f32)> = Vec::new();
    for id in request.candidates.iter().filter(|id| !request.options.exclude.contains(id)) {
        if let Some(row) = catalog.row_of(&world.keys, id)
            && !found.iter().any(|(known, _)| *known == row)
        {
            found.push((row, 0.0));
        }
    }
    let candidates = retrieve::in_order(&catalog, retrieve::PERSON_VECTOR, found, request.candidates.len());
    story.stage("retrieve");
    let ranked = story.rank(models, candidates, vector.as_deref());
    let mut slate = story.slate(ranked, &with_default(&request.options, config), models, &|row| catalog.is_alive(row));
    slate.reason = Some(Reason { code: ReasonCode::Candidate, evidence: Vec::new() });
    let unknown_items = unknown(&story, &request.candidates);
    let excluded = |id: &ItemId| request.options.exclude.contains(id);
    let appended = unknown_items.iter().filter(|id| !excluded(id)).cloned().collect();
    (freeze(story, slate, &request.options, unknown_items), appended)
}

/// The story of a suggestion.
fn suggest(world: &World, models: &mut Models, request: &SuggestRequest) -> (SuggestAnswer, Stages) {
    let options = Options::default();
    let mut story = Story::begin(world, &request.viewer, &options, UnixMillis::now());
    let catalog = story.catalog.clone();
    let affinity = category_affinity(&story);
    let completions = if request.prefix.trim().is_empty() {
        let completion = |query: &crate::people::PastQuery| Completion {
            text: query.text.to_string(),
            source: CompletionSource::Query,
        };
        story.history.queries.iter().rev().take(request.completion_count).map(completion).collect()
    } else {
        let affinity = |category: &str| affinity.get(category).copied().unwrap_or(0.0);
        world.suggester.complete(&request.prefix, request.completion_count, &affinity)
    };
    story.stage("complete");
    let keep = |row: Row| catalog.is_offered(row);
    let found = if request.prefix.trim().is_empty() {
        story.person.recent.iter().filter(|r| keep(r.row)).map(|recent| (recent.row, recent.weight)).collect()
    } else {
        let found = world.lexical.search(&request.prefix, crate::retrieval::Match::Prefix, 50, &keep);
        found.unwrap_or_else(|error| {
            tracing::warn!(%error, "the words source failed");
            story.degrade(DegradationCode::SourceFailed, "words");
            Vec::new()
        })
    };
    story.encode_person(models);
    let candidates = retrieve::in_order(&catalog, retrieve::WORDS, found, 50);
    let ranked = story.rank(models, candidates, None);
    let slate = story.slate(ranked, &options, models, &keep);
    let products = slate.results(world, 0..request.product_count.min(slate.places.len()));
    let tail = story.tail(slate.sources, DebugLevel::None);
    (SuggestAnswer { completions, products, tail }, story.stages)
}

fn with_default(options: &Options, config: &EngineConfig) -> Options {
    Options { diversity: options.diversity.or(Some(config.diversity_default)), ..options.clone() }
}

/// Every acknowledged position is applied before it is acknowledged, so only a position of another server is ahead.
fn check_version(story: &mut Story, options: &Options) {
    if options.session_version > story.world.applied_position() {
        story.degrade(DegradationCode::StaleState, "people");
    }
}

fn anchors(story: &Story, ids: &[ItemId]) -> Vec<Recent> {
    let recent = |id: &ItemId| {
        let key = story.world.keys.get(id)?;
        let row = story.catalog.row_of_key(key)?;
        Some(Recent { row, key, weight: 1.0, kind: EventKind::View, at_s: story.now.seconds_u32() })
    };
    ids.iter().filter_map(recent).collect()
}

fn recently_viewed(story: &Story) -> Vec<(crate::ids::ItemKey, f32)> {
    let mut seen: Vec<(crate::ids::ItemKey, f32)> = Vec::new();
    for event in story.history.events.iter().rev() {
        let looked = matches!(event.kind, EventKind::View | EventKind::Click);
        if looked && !seen.iter().any(|(key, _)| *key == event.item) {
            seen.push((event.item, event.at_s as f32));
        }
    }
    seen
}

fn category_affinity(story: &Story) -> std::collections::HashMap<String, f32> {
    let mut affinity = std::collections::HashMap::new();
    for recent in &story.person.recent {
        for category in &story.catalog.get(recent.row).item.categories {
            *affinity.entry(category.clone()).or_insert(0.0) += recent.weight;
        }
    }
    affinity
}

/// Lists with a question of their own give it as their reason, with the anchors as evidence.
fn name_reasons(slate: &mut Slate, request: &RecommendRequest, given: &[Recent], world: &World) {
    let code = match request.kind {
        RecommendKind::Similar => ReasonCode::Similar,
        RecommendKind::BoughtTogether => ReasonCode::BoughtTogether,
        RecommendKind::Trending => ReasonCode::Trending,
        RecommendKind::RecentlyViewed => ReasonCode::RecentlyViewed,
        RecommendKind::ForYou | RecommendKind::BuyAgain => return,
    };
    let evidence = given.iter().take(3).map(|anchor| world.keys.id(anchor.key)).collect();
    slate.reason = Some(Reason { code, evidence });
}
