//! The front door: asks the workers, freezes slates, writes through the log.
use lodestone_state::checkpoints::Checkpoints;
use lodestone_pipeline::{generation::Space, request::*, run::{self, RankingRequest, PlannedRequest, PipelineResponse}};
use lodestone_rollout::{routes::{ServedResponse, Embedded, Generations, LoadedGeneration}, control::Rollout, frozen_slates::{Frozen, SlatesConfig}};
use super::{token::{PageToken, TokenKey}, workers::Workers};
use lodestone_pipeline::{answers::{AnswersConfig, AnswersLog}, serving::{Serving, ServingConfig}};
use lodestone_catalog::Item;
use lodestone_events::{Attribution, Change, Event, LogError, Outcome, Writer, Written};
use lodestone_core::ids::{ItemId, UserId};
use lodestone_index::check_vector;
use lodestone_telemetry::{Metrics, Sizes};
use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};
use uuid::Uuid;

/// What the engine may spend.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// Named configurations and experiments.
    pub serving: Arc<Serving>,
    pub answers: AnswersConfig,
    pub slates: SlatesConfig,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            serving: Arc::new(Serving::of(ServingConfig::default())),
            answers: AnswersConfig::default(),
            slates: SlatesConfig::default(),
        }
    }
}

/// Times of the stages of an answer.
pub type Stages = Vec<(&'static str, Duration)>;

pub struct Engine {
    pub(super) generations: Arc<Generations>,
    life: Rollout,
    pub(super) workers: Answerers,
    writer: Writer<Embedded>,
    serving: Arc<Serving>,
    pub(super) answers: Arc<AnswersLog>,
    pub(super) tokens: TokenKey,
    /// None: the state is not the log's alone.
    checkpoints: Option<Arc<Checkpoints>>,
    metrics: Metrics,
}

/// Workers know their number, by which they find their models in each generation.
pub type Answerers = Workers<usize, PlannedRequest, ServedResponse>;

impl Engine {
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        generations: Arc<Generations>,
        life: Rollout,
        workers: Answerers,
        writer: Writer<Embedded>,
        answers: AnswersLog,
        tokens: TokenKey,
        config: &EngineConfig,
        metrics: Metrics,
    ) -> Self {
        let (serving, answers) = (config.serving.clone(), Arc::new(answers));
        Self { generations, life, workers, writer, serving, answers, tokens, checkpoints: None, metrics }
    }

    /// The engine, taking its state down in checkpoints.
    pub fn with_checkpoints(self, checkpoints: Option<Arc<Checkpoints>>) -> Self {
        Self { checkpoints, ..self }
    }

    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The metrics as text, with the sizes of now.
    pub fn metrics_text(&self) -> String {
        let served = self.generations.current();
        self.metrics.text(Sizes {
            items: served.generation.catalog.load().item_count(),
            live_items: served.generation.vectors_of(Space::User).live_count(),
            merges: served.generation.merge_count(),
            users: self.generations.live.users.len(),
            slates: self.generations.routes().loaded().map(|served| served.slates.entry_count()).sum(),
            log_position: self.writer.position(),
            dedupe_ids: self.writer.remembered_ids(),
            checkpoint_position: self.checkpoints.as_ref().map_or(0, |checkpoints| checkpoints.position()),
        })
    }

    /// The name of the generation that answers.
    pub fn generation(&self) -> Arc<str> {
        Arc::from(self.generations.current().name())
    }

    /// Takes the state down so that the next start is quick; for a server that has stopped answering.
    pub fn checkpoint_at_end(&self) {
        if let Some(checkpoints) = &self.checkpoints {
            checkpoints.write_at_end();
        }
    }

    /// Asks the workers once the log is applied up to `version`, and tells up to where it was applied when they began.
    async fn answer(
        &self,
        version: u64,
        deadline: Instant,
        question: PlannedRequest,
    ) -> Result<(ServedResponse, u64), EngineError> {
        self.reached(version, deadline).await;
        let seen = self.writer.position();
        Ok((self.workers.answer(deadline, question).await?, seen))
    }

    /// Waits until the log is applied up to `version`, at most for half of the time that is left: an answer from an older
    /// state, which says so, is worth more than none.
    async fn reached(&self, version: u64, deadline: Instant) {
        if self.writer.position() < version {
            let left = deadline.saturating_duration_since(Instant::now()) / 2;
            let mut positions = self.writer.positions();
            let _ = tokio::time::timeout(left, positions.wait_for(|position| *position >= version)).await;
        }
    }

    /// Bundles, and how they come and go.
    pub fn life(&self) -> &Rollout {
        &self.life
    }

    pub fn is_attribution_token(&self, text: &str) -> bool {
        self.tokens.parse_attribution(text).is_some()
    }

    pub fn get_item(&self, id: &ItemId) -> Option<Arc<Item>> {
        let catalog = self.generations.current().generation.catalog.load_full();
        catalog.row_of(&self.generations.live.keys, id).map(|row| catalog.get(row).item.clone())
    }

    pub async fn search(&self, request: SearchRequest, deadline: Instant) -> Result<Answer, EngineError> {
        if !request.page.token.is_empty() {
            return self.next_page(&request.page);
        }
        let (version, page) = (request.options.session_version, request.page.clone());
        let question = self.question(RankingRequest::Search(request))?;
        Ok(self.first_page(self.answer(version, deadline, question).await?, &page))
    }

    pub async fn recommend(&self, request: RecommendRequest, deadline: Instant) -> Result<Answer, EngineError> {
        if !request.page.token.is_empty() {
            return self.next_page(&request.page);
        }
        let (version, page) = (request.options.session_version, request.page.clone());
        let question = self.question(RankingRequest::Recommend(request))?;
        Ok(self.first_page(self.answer(version, deadline, question).await?, &page))
    }

    pub async fn rank(&self, request: RankRequest, deadline: Instant) -> Result<Answer, EngineError> {
        let page = Page { size: request.candidates.len(), token: String::new(), fingerprint: 0 };
        let (version, excluded) = (request.options.session_version, request.options.exclude.clone());
        let question = self.question(RankingRequest::Rank(request))?;
        let mut answer = self.first_page(self.answer(version, deadline, question).await?, &page);
        for id in answer.tail.unknown_items.iter().filter(|id| !excluded.contains(id)).cloned() {
            let rank = answer.results.len() + 1;
            let reasons = vec![Reason { code: ReasonCode::Candidate, evidence: Vec::new() }];
            answer.results.push(RankedItem { id, rank, score: 0.0, reasons, item: None, debug: None });
        }
        answer.total_size = answer.results.len();
        Ok(answer)
    }

    pub async fn suggest(&self, request: SuggestRequest, deadline: Instant) -> Result<SuggestAnswer, EngineError> {
        let (generations, seen) = (self.generations.clone(), self.writer.position());
        let tell = move |worker: &mut usize| {
            let served = generations.routes().of(&request.viewer.user).clone();
            let suggested = stories::suggest(&served.generation, &mut served.models_of(*worker), &request);
            Ok((served, suggested))
        };
        let (served, (mut answer, stages)) = self.workers.run(deadline, tell).await?;
        self.note(&stages, &answer.tail);
        self.sign(&mut answer.tail, &served, Uuid::now_v7().into_bytes(), seen);
        Ok(answer)
    }

    pub async fn write_events(&self, events: Vec<Event>) -> Result<(Vec<WriteOutcome>, u64), EngineError> {
        let choices = self.choices(&events);
        let written = self.written(self.writer.write(event_changes(events)).await)?;
        self.note_choices(choices, &written.0);
        Ok(written)
    }

    /// As [`Engine::write_events`], but waits where too many writes wait already.
    pub async fn write_events_when_there_is_room(
        &self,
        events: Vec<Event>,
    ) -> Result<(Vec<WriteOutcome>, u64), EngineError> {
        let choices = self.choices(&events);
        let written = self.written(self.writer.write_when_there_is_room(event_changes(events)).await)?;
        self.note_choices(choices, &written.0);
        Ok(written)
    }

    /// What was chosen from which answer, with its place among the events, while a canary is on trial.
    fn choices(&self, events: &[Event]) -> Vec<(usize, UserId, [u8; 16])> {
        if self.generations.canary().is_none() {
            return Vec::new();
        }
        let chosen = |(place, event): (usize, &Event)| match &event.attribution {
            Attribution::Answer(token) if event.kind.is_choice() => {
                Some((place, event.user.clone(), self.tokens.parse_attribution(token)?))
            }
            _ => None,
        };
        events.iter().enumerate().filter_map(chosen).collect()
    }

    /// Tells the canary's trial of the choices that were not written before.
    fn note_choices(&self, choices: Vec<(usize, UserId, [u8; 16])>, outcomes: &[WriteOutcome]) {
        let Some(canary) = self.generations.canary() else { return };
        for (place, user, answer) in choices {
            if outcomes.get(place) == Some(&WriteOutcome::Accepted) {
                canary.note_choice(&user, answer);
            }
        }
    }

    fn written(&self, written: Result<Written, LogError>) -> Result<(Vec<WriteOutcome>, u64), EngineError> {
        let written = written.map_err(EngineError::Log)?;
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
        let generations = self.generations.clone();
        let deadline = Instant::now() + Duration::from_secs(30);
        let embed = move |worker: &mut usize| {
            let vectors = generations.embed(*worker, &items);
            let vectors = vectors.map_err(|error| EngineError::Internal(error.to_string()))?;
            // Before the log has them: what is acknowledged is in effect.
            for (item, embedded) in items.iter().zip(&vectors) {
                check_embedded(item, embedded)?;
            }
            Ok((items, vectors))
        };
        let (items, vectors) = self.workers.run(deadline, embed).await?;
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

    /// Whether there is a serving configuration of this name; none is named by nothing.
    pub fn check_serving_config(&self, name: &str, viewer: &Viewer) -> Result<(), EngineError> {
        Ok(self.serving.plan(name, &viewer.user).map(|_| ())?)
    }

    fn question(&self, asked: RankingRequest) -> Result<PlannedRequest, EngineError> {
        let plan = self.serving.plan(&asked.options().serving_config, &asked.viewer().user)?;
        let id = Uuid::now_v7().into_bytes();
        Ok(PlannedRequest { asked, id, plan, is_logged: self.answers.wants(&id) })
    }

    fn first_page(&self, (ServedResponse { served, told }, seen): (ServedResponse, u64), page: &Page) -> Answer {
        let PipelineResponse { slate, corrected_query, facets, mut tail, stages, id, trace } = told;
        self.note(&stages, &tail);
        if let Some(trace) = trace {
            let (served, page_size) = (served.clone(), page.size);
            self.answers.log(id, Box::new(move || trace.record(&served.generation.manifest, page_size)));
        }
        self.sign(&mut tail, &served, id, seen);
        let facets = Arc::new(facets);
        let frozen = Frozen { fingerprint: page.fingerprint, slate, corrected_query, facets, tail };
        let answer = self.cut(&frozen, &served, id, 0, page.size);
        if frozen.slate.places.len() > page.size {
            served.slates.insert(id, Arc::new(frozen));
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
        if tail.explored {
            self.metrics.explored();
        }
        if let Some(chosen) = &tail.arm {
            self.metrics.experimented(&chosen.experiment, &chosen.arm);
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
        let routes = self.generations.routes();
        let found = routes.loaded().find_map(|served| Some((served, served.slates.get(&token.slate)?)));
        let (served, frozen) = found.ok_or(EngineError::PageToken(PageTokenError::Expired))?;
        if frozen.fingerprint != page.fingerprint {
            return Err(EngineError::PageToken(PageTokenError::OtherRequest));
        }
        Ok(self.cut(&frozen, served, token.slate, token.offset as usize, page.size))
    }

    fn cut(&self, frozen: &Frozen, served: &LoadedGeneration, slate: [u8; 16], offset: usize, size: usize) -> Answer {
        let total_size = frozen.slate.places.len();
        let end = offset.saturating_add(size).min(total_size);
        let next_page_token = match end < total_size {
            true => self.tokens.page(PageToken { slate, offset: end as u32 }),
            false => String::new(),
        };
        Answer {
            results: frozen.slate.results(&served.generation, offset.min(end)..end),
            next_page_token,
            total_size,
            corrected_query: frozen.corrected_query.clone(),
            facets: frozen.facets.clone(),
            tail: frozen.tail.clone(),
        }
    }

    fn sign(&self, tail: &mut AnswerTail, served: &LoadedGeneration, answer: [u8; 16], seen: u64) {
        tail.attribution_token = self.tokens.attribution(answer);
        tail.session_version = seen;
        tail.generation = Arc::from(served.name());
    }
}

fn event_changes(events: Vec<Event>) -> Vec<(Change, Option<Embedded>)> {
    events.into_iter().map(|event| (Change::Event(event), None)).collect()
}

/// Refuses vectors that an index would not take.
fn check_embedded(item: &Item, embedded: &Embedded) -> Result<(), EngineError> {
    for (_, vectors) in embedded {
        for vector in [vectors.user_space(), vectors.query_space()] {
            check_vector(vector, vector.len())
                .map_err(|problem| EngineError::Internal(format!("vector of item {}: {problem}", item.id)))?;
        }
    }
    Ok(())
}
