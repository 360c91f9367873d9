//! Runs requests on the workers, freezes slates for later pages, and writes through the log.
use crate::{
    error::{EngineError, PageTokenError, WriteOutcome, WriteReport},
    loyalty::AtRiskSnapshots,
    serving::ServingCache,
    token::{ItemsToken, PageToken, TokenKey},
    workers::Workers,
};
use arc_swap::ArcSwap;
use lodestone_catalog::{
    Catalog, Field, Filter, Item, ItemChange, ItemList, ItemState, ItemWrite, WriteTime, WrittenFields,
};
use lodestone_core::{
    bits,
    ids::{ItemId, ItemKey, Row, UserId},
    units::UnixMillis,
};
use lodestone_events::{Attribution, Change, Event, LogError, QueuedWrite, Writer, Written};
use lodestone_index::{Completion, check_vector};
use lodestone_pipeline::{
    FacetSpec,
    answers::{AnswerId, AnswerLog, AnswerLogConfig},
    context::StageTimes,
    generation::Space,
    request::*,
    run::{
        self, AnswerLogging, PipelineAnswer, PlannedRequest, PlannedSuggest, RankingRequest, RequestField, Suggested,
    },
    serving::{Serving, ServingConfig},
    slate::{CurrentItems, PageStart},
    trace::Trace,
};
use lodestone_rollout::{
    Embedded, FrozenAnswer, Generations, LoadedGeneration, Rollout, ServedAnswer, SlateCacheConfig,
};
use lodestone_state::checkpoints::Checkpoints;
use lodestone_telemetry::{Metrics, Sizes, call};
use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::watch;
use uuid::Uuid;

/// Maximum time for which an upsert waits for the encoding of its items.
const ENCODE_TIMEOUT: Duration = Duration::from_secs(30);
/// Time limit for the selection of items of the whole catalogue.
const LIST_TIMEOUT: Duration = Duration::from_secs(30);

/// Configuration of an engine.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// Named configurations and experiments.
    pub serving: Arc<Serving>,
    pub answers: AnswerLogConfig,
    pub slates: SlateCacheConfig,
    /// The currency in which a request compares prices in several currencies, if neither its viewer nor its filter chooses
    /// one. None: such a request is refused.
    pub currency: Option<String>,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            serving: Arc::new(Serving::of(ServingConfig::default())),
            answers: AnswerLogConfig::default(),
            slates: SlateCacheConfig::default(),
            currency: None,
        }
    }
}

/// Worker threads. The state of a worker is its number, which selects its models in each generation.
pub(crate) type PipelineWorkers = Workers<usize, PlannedRequest, ServedAnswer>;

pub struct Engine {
    pub(crate) generations: Arc<Generations>,
    pub(crate) rollout: Rollout,
    pub(crate) workers: PipelineWorkers,
    pub(crate) writer: Writer<Embedded>,
    /// See [`EngineConfig::currency`].
    pub(crate) currency: Option<String>,
    /// The serving file.
    pub(crate) serving: Arc<Serving>,
    pub(crate) serving_cache: ArcSwap<ServingCache>,
    pub(crate) answers: Arc<AnswerLog>,
    pub(crate) tokens: TokenKey,
    /// See [`TokenKey::log_id`].
    pub(crate) log_id: u32,
    /// None if the state depends on the time of the startup, not on the log alone.
    pub(crate) checkpoints: Option<Arc<Checkpoints>>,
    /// The file of the saved vectors of written items.
    pub(crate) item_vectors: PathBuf,
    pub(crate) metrics: Metrics,
    /// The directory of the event log.
    pub(crate) log: PathBuf,
    /// Held while a change of an entry is checked and written, so that no other one comes between.
    pub(crate) rule_writes: Arc<tokio::sync::Mutex<()>>,
    /// Written while an attribute is declared, read by writes of items; see [`Engine::hold_declarations`].
    pub(crate) declarations: Arc<tokio::sync::RwLock<()>>,
    /// Held while a decision about an incentive is made and written, so that no other one comes between.
    pub(crate) incentive_writes: Arc<tokio::sync::Mutex<()>>,
    /// Held by the preview of a rule, which reads files.
    pub(crate) preview: Arc<tokio::sync::Mutex<()>>,
    pub(crate) at_risk: Arc<AtRiskSnapshots>,
}

pub(crate) type WriteResult = Result<WriteReport, EngineError>;

/// A page of an answer that is to be returned.
struct WantedPage {
    frozen: Arc<FrozenAnswer>,
    id: AnswerId,
    start: PageStart,
    size: usize,
    /// The page has fewer results if they have more bytes.
    bytes_max: usize,
    /// The generation that made the answer.
    loaded: Arc<LoadedGeneration>,
    /// The generation that has the items of now, and its catalogue as the viewer sees it.
    up_to_date: Arc<LoadedGeneration>,
    catalog: Arc<Catalog>,
}

impl WantedPage {
    fn answer(&self, tokens: &TokenKey) -> Answer {
        let Self { frozen, start, size, .. } = self;
        let now = CurrentItems { generation: &self.up_to_date.generation, catalog: &self.catalog };
        let mut page = frozen.slate.page(&self.loaded.generation, now, start, *size);
        let fitting = fitting_results(&page.results, self.bytes_max);
        let is_cut = fitting < page.results.len();
        page.truncate(fitting);
        let token =
            |next: PageStart| tokens.page(&PageToken { slate: self.id, offset: next.offset as u32, after: next.after });
        Answer {
            next_page_token: page.next.map(token).unwrap_or_default(),
            results: page.results,
            total_size: frozen.total_size,
            corrected_query: frozen.corrected_query.clone(),
            facets: frozen.facets.clone(),
            recommendations: None,
            info: frozen.info.clone(),
            is_cut,
        }
    }
}

/// A positive interaction with an answer's result.
struct Conversion {
    /// Position of its event in the request.
    index: usize,
    user: UserId,
    answer: AnswerId,
}

/// Events in the queue of writes.
pub struct QueuedEvents {
    write: QueuedWrite,
    conversions: Vec<Conversion>,
    /// Positions of the events that accept a completion.
    accepted: Vec<usize>,
}

impl Engine {
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The metrics as text, with the current sizes.
    pub fn metrics_text(&self) -> String {
        self.metrics.text(self.sizes())
    }

    /// Returns the values of the metrics that are read at each scrape.
    pub fn sizes(&self) -> Sizes {
        let (current, routes) = (self.generations.current(), self.generations.routes());
        // Without further answers, the caches would not remove what is too large or too old.
        routes.loaded().for_each(|loaded| loaded.slates.run_pending_tasks());
        Sizes {
            items: current.generation.catalog.load().item_count(),
            live_items: current.generation.vector_index(Space::User).live_count(),
            merges: current.generation.merge_count(),
            users: self.generations.state.users.len(),
            slates: routes.loaded().map(|loaded| loaded.slates.entry_count()).sum(),
            slate_bytes: routes.loaded().map(|loaded| loaded.slates.weighted_size()).sum(),
            log_position: self.writer.position(),
            dedupe_ids: self.writer.dedupe_id_count(),
            checkpoint_position: self.checkpoints.as_ref().map_or(0, |checkpoints| checkpoints.position()),
            log_writable: self.writer.displaced().borrow().is_none() && !*self.writer.is_stopped().borrow(),
            quarantined: self.writer.quarantined_count(),
            evicted_users: self.generations.state.users.evicted_count(),
            evicted_items: self.generations.state.event_items.lock().evicted_count(),
            item_keys: self.generations.state.keys.len(),
            rules: self.rules().rules.len(),
            synonym_sets: self.rules().synonym_sets.len(),
            serving_configs: self.rules().serving_configs.len(),
        }
    }

    /// The name of the current generation.
    pub fn generation(&self) -> Arc<str> {
        Arc::from(self.generations.current().name())
    }

    /// Writes a checkpoint on shutdown, so that the next startup replays little of the log, and saves the vectors of written
    /// items, so that it need not encode them. No checkpoint after
    /// [`Checkpoints::end`](lodestone_state::Checkpoints::end), when the state lacks changes of the log.
    pub fn checkpoint_on_shutdown(&self) {
        if let Some(checkpoints) = &self.checkpoints {
            checkpoints.write_on_shutdown();
        }
        self.generations.current().save_vectors(&self.item_vectors);
    }

    /// Loads, activates and rolls back bundles.
    pub fn rollout(&self) -> &Rollout {
        &self.rollout
    }

    /// Returns a number that identifies the event log of this engine, so that a position of another one is noticed.
    pub fn log_id(&self) -> u32 {
        self.log_id
    }

    /// Returns the names of the features of kind `request` that the serving bundle of a user declares.
    pub fn request_features(&self, user: &UserId) -> Vec<String> {
        let routes = self.generations.routes();
        routes.of(user).generation.schema().of_request().map(str::to_owned).collect()
    }

    /// Returns the answer and the text of a completion id; none if it is not one of this server.
    pub fn completion(&self, id: &str) -> Option<(AnswerId, String)> {
        self.tokens.parse_completion(id)
    }

    /// Returns the answer of an attribution token; none if it is not one of this server.
    pub fn attributed_answer(&self, token: &str) -> Option<AnswerId> {
        self.tokens.parse_attribution(token)
    }

    pub fn get_item(&self, id: &ItemId) -> Option<Arc<Item>> {
        let catalog = self.generations.current().generation.catalog.load_full();
        catalog.row_of(&self.generations.state.keys, id).map(|row| catalog.get(row).item.clone())
    }

    /// Returns the current items with these ids, in the same order; none for an id that the catalogue does not have.
    pub fn get_items<'a>(&self, ids: impl Iterator<Item = &'a ItemId>) -> Vec<Option<Arc<Item>>> {
        let catalog = self.generations.current().generation.catalog.load_full();
        let keys = &self.generations.state.keys;
        ids.map(|id| catalog.row_of(keys, id).map(|row| catalog.get(row).item.clone())).collect()
    }

    /// Lists the current items that match a filter, in the order of their ids; see [`Catalog::list`]. `token` is that
    /// of the page before, or empty.
    pub async fn list_items(
        &self,
        filter: Option<Filter>,
        token: &str,
        fingerprint: u64,
        count: usize,
        deadline: Instant,
    ) -> Result<ItemList, EngineError> {
        let after = match token {
            "" => None,
            token => {
                let token = self.tokens.parse_items(token).ok_or(EngineError::PageToken(PageTokenError::Foreign))?;
                if token.fingerprint != fingerprint {
                    return Err(EngineError::PageToken(PageTokenError::OtherRequest));
                }
                Some(token.after)
            }
        };
        let catalog = self.catalog_now(&self.generations.current(), deadline).await?;
        check_currencies(&catalog, filter.as_ref())?;
        let list = move |_: &mut usize| Ok(catalog.list(filter.as_ref(), after.as_ref(), count));
        self.workers.run(Priority::Batch, deadline, list).await
    }

    /// Returns the catalogue of a generation with the prices of now. After a sale began or ended, a worker rewrites the
    /// prices, because that takes as long as there are items on sale.
    pub(crate) async fn catalog_now(
        &self,
        loaded: &Arc<LoadedGeneration>,
        deadline: Instant,
    ) -> Result<Arc<Catalog>, EngineError> {
        let (now, loaded) = (UnixMillis::now(), loaded.clone());
        match loaded.generation.current_catalog_at(now) {
            Some(catalog) => Ok(catalog),
            None => {
                let of_now = move |_: &mut usize| Ok(loaded.generation.catalog_at(now));
                self.workers.run(Priority::Interactive, deadline, of_now).await
            }
        }
    }

    /// Returns true if a write would change nothing, because all its fields have later values.
    pub fn is_stale(&self, write: &ItemWrite) -> bool {
        let is_recorded_later =
            self.generations.state.catalogue.lock().state(&write.item.id).is_some_and(|state| state.is_stale(write));
        is_recorded_later || self.get_item(&write.item.id).is_some_and(|item| write.is_older_than(&item))
    }

    /// Returns a write without the fields that have later values; none if all have.
    pub fn without_stale<'w>(&self, write: &'w ItemWrite) -> Option<Cow<'w, ItemWrite>> {
        if matches!(write.time, WriteTime::Received(_)) {
            return Some(Cow::Borrowed(write));
        }
        let known = self.get_item(&write.item.id);
        let catalogue = self.generations.state.catalogue.lock();
        write.without_stale(catalogue.state(&write.item.id), known.as_deref())
    }

    /// Returns true if the item already has all written values. A write without a creation time keeps the known one.
    pub fn is_unchanged(&self, write: &ItemWrite) -> bool {
        let Some(known) = self.get_item(&write.item.id) else { return false };
        let mut write = write.clone();
        if write.fields == WrittenFields::All && write.item.created_at.is_none() {
            write.item.created_at = known.created_at;
        }
        write.is_content_of(&known)
    }

    /// Returns the key of an item of the current catalogue.
    pub fn item_key(&self, id: &ItemId) -> Option<ItemKey> {
        let key = self.generations.state.keys.get(id)?;
        self.generations.current().generation.catalog.load().row_of_key(key).map(|_| key)
    }

    /// Returns the ids of the items that match a filter, ascending.
    pub async fn items_matching(&self, filter: Filter) -> Result<Vec<ItemId>, EngineError> {
        let deadline = Instant::now() + LIST_TIMEOUT;
        let catalog = self.catalog_now(&self.generations.current(), deadline).await?;
        check_currencies(&catalog, Some(&filter))?;
        let list = move |_: &mut usize| Ok(catalog.list(Some(&filter), None, usize::MAX).items);
        let items = self.workers.run(Priority::Batch, deadline, list).await?;
        Ok(items.iter().map(|item| item.id.clone()).collect())
    }

    /// Returns the ids, ascending, of the items whose keys are not in a bit set and whose values, written or of a file,
    /// are not later than a time, and the number of all items.
    pub async fn items_missing_in(
        &self,
        keys: Vec<u64>,
        until: UnixMillis,
    ) -> Result<(Vec<ItemId>, usize), EngineError> {
        let catalog = self.generations.current().generation.catalog.load_full();
        let state = self.generations.state.clone();
        let list = move |_: &mut usize| {
            let missing = bits::ones(catalog.alive(), 0).map(|row| catalog.get(Row(row as u32)));
            let mut ids: Vec<ItemId> = missing
                .filter(|content| !bits::has(&keys, content.key.0 as usize))
                .filter(|content| content.item.values_at.is_none_or(|of_file| of_file <= until))
                .map(|content| content.item.id.clone())
                .collect();
            let changes = state.catalogue.lock();
            ids.retain(|id| changes.state(id).and_then(ItemState::newest).is_none_or(|newest| newest <= until));
            drop(changes);
            ids.sort_unstable();
            Ok((ids, catalog.item_count()))
        };
        self.workers.run(Priority::Batch, Instant::now() + LIST_TIMEOUT, list).await
    }

    /// Returns the token of the page that begins after an item.
    pub fn items_token(&self, token: &ItemsToken) -> String {
        self.tokens.items(token)
    }

    /// Checks that a serving configuration of this name exists. The empty name is valid.
    fn check_serving_config(&self, name: &str) -> Result<(), EngineError> {
        match name {
            "" => Ok(()),
            name => Ok(self.serving().config(name).map(|_| ())?),
        }
    }

    /// Refuses a ranking request that the workers cannot answer before its deadline. A server calls it before it reads the
    /// request, so that a refusal costs neither time nor memory; the request is checked again when it is queued.
    pub fn admit(&self, priority: Priority, deadline: Instant) -> Result<(), EngineError> {
        self.workers.admit(priority, deadline)
    }

    /// Searches. If nothing is found, also answers the request's fallback.
    pub async fn search(&self, mut request: SearchRequest, deadline: Instant) -> Result<Answer, EngineError> {
        self.check_serving_config(&request.options.serving_config)?;
        if !request.page.token.is_empty() {
            return self.next_page(&request.page, deadline).await;
        }
        let (page, fallback) = (request.page.clone(), request.fallback.take());
        let mut answer = self.first_page(RankingRequest::Search(request), &page, deadline).await?;
        if let Some(fallback) = fallback.filter(|_| answer.info.empty_reason.is_some()) {
            answer.recommendations = Some(Box::new(self.recommend(*fallback, deadline).await?));
        }
        Ok(answer)
    }

    pub async fn recommend(&self, request: RecommendRequest, deadline: Instant) -> Result<Answer, EngineError> {
        self.check_serving_config(&request.options.serving_config)?;
        if !request.page.token.is_empty() {
            return self.next_page(&request.page, deadline).await;
        }
        let page = request.page.clone();
        self.first_page(RankingRequest::Recommend(request), &page, deadline).await
    }

    /// Ranks the request's candidates. Unknown items come last.
    pub async fn rank(&self, request: RankRequest, deadline: Instant) -> Result<Answer, EngineError> {
        let page = Page { size: request.candidates.len(), token: String::new(), number: 1, fingerprint: 0 };
        let excluded = request.options.exclude.clone();
        let mut answer = self.first_page(RankingRequest::Rank(request), &page, deadline).await?;
        for id in answer.info.unknown_items.iter().filter(|id| !excluded.contains(id)).cloned() {
            let rank = answer.results.len() + 1;
            let reasons = vec![Reason { code: ReasonCode::Candidate, evidence: Vec::new() }];
            let unknown = RankedItem { rank, reasons, ..RankedItem::named(id) };
            answer.results.push(unknown);
        }
        answer.total_size = answer.results.len();
        answer.is_cut = remove_items_beyond(&mut answer.results, RESULTS_BYTES_MAX);
        Ok(answer)
    }

    pub async fn suggest(&self, mut request: SuggestRequest, deadline: Instant) -> Result<SuggestAnswer, EngineError> {
        let compares_prices = request.filter.as_ref().is_some_and(|filter| filter.has_any(Field::is_price));
        let price_field = compares_prices.then_some(RequestField::Filter);
        let (viewer, filter) = (&request.viewer, request.filter.as_ref());
        if let Some(currency) = self.compared_currency(viewer, price_field, filter, BTreeSet::new(), deadline).await? {
            request.viewer.offers.currency = currency.into();
        }
        let plan = self.serving().plan_of_suggestions(&request.options.serving_config)?;
        let id = Uuid::now_v7().into_bytes();
        let planned = PlannedSuggest { answer_id: id, plan, logging: self.logging_of(&id), request };
        let request = &planned.request;
        self.wait_for_position(request.options.log_position, deadline).await?;
        let (generations, position, priority) =
            (self.generations.clone(), self.writer.position(), request.options.priority);
        let suggest = move |worker: &mut usize| {
            let loaded = generations.routes().of(&planned.request.viewer.user).clone();
            let mut models = loaded.models_of(*worker);
            let now = UnixMillis::now();
            loaded.generation.catalog_at(now);
            let suggested = run::suggest(&loaded.generation, &mut models, &planned, now);
            drop(models);
            Ok((loaded, suggested))
        };
        let sent = Instant::now();
        let suggested = self.workers.run(priority, deadline, suggest).await;
        call::record_answer(sent, suggested.as_ref().ok().map(|(_, suggested)| &suggested.stage_times[..]));
        let (loaded, Suggested { mut answer, stage_times, trace }) = suggested?;
        if let Some(trace) = trace {
            self.log_answer(id, trace, &loaded, &answer.products);
        }
        self.metrics.shown_completions(answer.completions.len() as u64);
        answer.is_cut = remove_items_beyond(&mut answer.products, RESULTS_BYTES_MAX);
        self.record_metrics(&stage_times, &answer.info);
        self.sign(&mut answer.info, &loaded, id, position);
        let completion_id = |completion: &Completion| self.tokens.completion(id, &completion.text);
        answer.completion_ids = answer.completions.iter().map(completion_id).collect();
        Ok(answer)
    }

    pub async fn write_events(&self, events: Vec<Event>) -> WriteResult {
        let (conversions, accepted) = (self.conversions(&events), accepted_completions(&events));
        let written = call::timed("write", self.writer.write(event_changes(events))).await;
        let written = self.finish_write(written)?;
        self.record_conversions(conversions, &written.outcomes);
        self.count_accepted(&accepted, &written.outcomes);
        Ok(written)
    }

    /// Queues events, and waits while the queue of writes is full, instead of failing. Events that are queued one after
    /// the other are stored in that order. [`Engine::finish_events`] returns their outcomes.
    pub async fn queue_events(&self, events: Vec<Event>) -> Result<QueuedEvents, EngineError> {
        let (conversions, accepted) = (self.conversions(&events), accepted_completions(&events));
        let write = self.writer.queue(event_changes(events)).await.map_err(EngineError::Log)?;
        Ok(QueuedEvents { write, conversions, accepted })
    }

    /// Waits until queued events are stored and applied.
    pub async fn finish_events(&self, queued: QueuedEvents) -> WriteResult {
        let written = self.finish_write(call::timed("write", queued.write.written()).await)?;
        self.record_conversions(queued.conversions, &written.outcomes);
        self.count_accepted(&queued.accepted, &written.outcomes);
        Ok(written)
    }

    /// Returns a receiver of the reason why no write can be stored, because the files of the event log were removed,
    /// moved or replaced; none while they are in place.
    pub fn log_displaced(&self) -> watch::Receiver<Option<LogError>> {
        self.writer.displaced()
    }

    /// Waits until the server takes no more writes, because a change failed in a way that only a restart repairs.
    pub async fn writes_stopped(&self) {
        // The sender is dropped when the writer ends.
        let _ = self.writer.is_stopped().wait_for(|is_stopped| *is_stopped).await;
    }

    /// Writes items. Those whose texts may change are encoded before they are logged, because an acknowledged item must
    /// be in effect. A new item without a creation time has that of its first write.
    pub async fn write_items(&self, mut writes: Vec<ItemWrite>) -> WriteResult {
        let now = UnixMillis::now();
        let is_new = |write: &&mut ItemWrite| write.fields == WrittenFields::All && write.item.created_at.is_none();
        for write in writes.iter_mut().filter(is_new) {
            write.item.created_at = self.get_item(&write.item.id).map_or(Some(now), |known| known.created_at);
        }
        let encoded: Vec<Option<Item>> = writes.iter().map(|write| self.item_to_encode(write)).collect();
        let embedded = match encoded.iter().any(Option::is_some) {
            true => call::timed("encode_items", self.embed(encoded)).await?,
            false => vec![None; writes.len()],
        };
        let change = |write: ItemWrite| Change::Item(ItemChange::Write(Box::new(write)));
        let changes = writes.into_iter().map(change).zip(embedded).collect();
        self.finish_write(call::timed("write", self.writer.write(changes)).await)
    }

    /// Returns the values of an item that changes set, also if the current catalogue does not have it, and how many of its
    /// attributes have a value or a time in them.
    pub fn recorded_values(&self, id: &ItemId) -> (Option<Arc<Item>>, usize) {
        let catalogue = self.generations.state.catalogue.lock();
        let state = catalogue.state(id);
        (state.and_then(ItemState::values).cloned(), state.map_or(0, ItemState::attribute_count))
    }

    /// Returns the codes of the currencies of the current catalogue's prices and of the configured one, ascending.
    pub fn price_currencies(&self) -> Vec<String> {
        let catalog = self.generations.current().generation.catalog.load_full();
        let codes = catalog.price_currencies(catalog.alive()).into_iter().chain(self.currency.clone());
        codes.collect::<BTreeSet<String>>().into_iter().collect()
    }

    /// Returns the number of variants of a group in the current catalogue.
    pub fn variant_count(&self, group: &str) -> usize {
        let catalog = self.generations.current().generation.catalog.load_full();
        catalog.group_named(group).map_or(0, |group| catalog.rows_of_group(group).len())
    }

    /// Returns the item of a write with texts that may have to be encoded.
    fn item_to_encode(&self, write: &ItemWrite) -> Option<Item> {
        let known = || self.get_item(&write.item.id);
        write.sets_encoded_text().then(|| write.content(known().as_deref()))?
    }

    async fn embed(&self, items: Vec<Option<Item>>) -> Result<Vec<Option<Embedded>>, EngineError> {
        let generations = self.generations.clone();
        let encode = move |worker: &mut usize| {
            let encoded: Vec<&Item> = items.iter().flatten().collect();
            let embedded = generations.embed(*worker, &encoded);
            let embedded = embedded.map_err(|error| EngineError::Internal(error.to_string()))?;
            for (item, embedded) in encoded.iter().zip(&embedded) {
                check_embedded(item, embedded)?;
            }
            let mut embedded = embedded.into_iter();
            Ok(items.iter().map(|item| item.as_ref().and_then(|_| embedded.next())).collect())
        };
        self.workers.run(Priority::Batch, Instant::now() + ENCODE_TIMEOUT, encode).await
    }

    /// Deletes items; as of a stated time only those that have no later value.
    pub async fn delete_items(&self, ids: Vec<ItemId>, time: WriteTime) -> WriteResult {
        let changes = ids.into_iter().map(|id| (Change::Item(ItemChange::Delete { id, time }), None)).collect();
        self.finish_write(call::timed("write", self.writer.write(changes)).await)
    }

    /// Checks a request against the catalogue, the declared attributes and the serving configurations, without running it.
    pub async fn check(&self, request: RankingRequest, deadline: Instant) -> Result<(), EngineError> {
        self.check_serving_config(&request.options().serving_config)?;
        self.check_facets(&request)?;
        let sent = self.sent_currencies(&request);
        self.compared_currency(request.viewer(), request.price_field(), request.filter(), sent, deadline).await?;
        match request {
            RankingRequest::Search(SearchRequest { fallback: Some(fallback), .. }) => {
                Box::pin(self.check(RankingRequest::Recommend(*fallback), deadline)).await
            }
            _ => Ok(()),
        }
    }

    /// Runs a request and returns its first page.
    async fn first_page(
        &self,
        mut request: RankingRequest,
        page: &Page,
        deadline: Instant,
    ) -> Result<Answer, EngineError> {
        let version = request.options().log_position;
        let bytes_max = match request {
            // Not paged: a caller expects all of its candidates.
            RankingRequest::Rank(_) => usize::MAX,
            RankingRequest::Search(_) | RankingRequest::Recommend(_) => RESULTS_BYTES_MAX,
        };
        self.check_facets(&request)?;
        let sent = self.sent_currencies(&request);
        let (viewer, price_field, filter) = (request.viewer(), request.price_field(), request.filter());
        if let Some(currency) = self.compared_currency(viewer, price_field, filter, sent, deadline).await? {
            request.viewer_mut().offers.currency = currency.into();
        }
        let planned = self.plan(request)?;
        self.wait_for_position(version, deadline).await?;
        let position = self.writer.position();
        let (sent, priority) = (Instant::now(), planned.request.options().priority);
        let served = self.workers.answer(priority, deadline, planned).await;
        call::record_answer(sent, served.as_ref().ok().map(|served| &served.answer.stage_times[..]));
        self.freeze(served?, position, page, bytes_max, deadline).await
    }

    /// Refuses facets of attributes that are declared otherwise.
    fn check_facets(&self, request: &RankingRequest) -> Result<(), EngineError> {
        let rules = self.rules();
        let refused = |(index, spec): (usize, &FacetSpec)| match &spec.field {
            Field::Attribute(name) if rules.refuses_facets_of(name) => {
                Some(EngineError::NotFacetable { index, name: name.clone() })
            }
            _ => None,
        };
        request.facets().iter().enumerate().find_map(refused).map_or(Ok(()), Err)
    }

    /// Returns the currencies that the prices of the items that only the request has are in for its viewer.
    fn sent_currencies(&self, request: &RankingRequest) -> BTreeSet<String> {
        let Viewer { user, offers, .. } = request.viewer();
        let (catalog, now) = (self.generations.routes().of(user).generation.catalog.load_full(), UnixMillis::now());
        let is_new = |item: &&Item| catalog.row_of(&self.generations.state.keys, &item.id).is_none();
        let seen = request.sent_items().filter(is_new).map(|item| item.for_viewer(offers));
        let priced = seen.filter(|item| item.price_at(now).price.is_some() && !item.currency.is_empty());
        priced.map(|item| item.currency.to_uppercase()).collect()
    }

    /// Returns the configured currency if a field of a request compares prices and the prices that the viewer sees are in
    /// several currencies, of which neither the viewer nor the filter chooses one. Without a configured one this is an
    /// error. `sent` are the currencies of the items that the request has.
    async fn compared_currency(
        &self,
        viewer: &Viewer,
        price_field: Option<RequestField>,
        filter: Option<&Filter>,
        sent: BTreeSet<String>,
        deadline: Instant,
    ) -> Result<Option<&str>, EngineError> {
        let Some(field) = price_field else { return Ok(None) };
        if !viewer.offers.currency.is_empty() || filter.is_some_and(Filter::selects_one_currency) {
            return Ok(None);
        }
        let loaded = self.generations.routes().of(&viewer.user).clone();
        let catalog = self.catalog_now(&loaded, deadline).await?;
        let own = catalog.price_currencies(catalog.alive());
        // Offers that name no currency bring no other one.
        let known = match viewer.offers.is_empty() || !catalog.has_currency_offers() && own.len() < 2 {
            true => own,
            false => {
                let offers = viewer.offers.clone();
                let of_view = move |_: &mut usize| {
                    let view = catalog.view(&offers);
                    Ok(view.price_currencies(view.alive()))
                };
                self.workers.run(Priority::Interactive, deadline, of_view).await?
            }
        };
        let currencies: BTreeSet<String> = known.into_iter().chain(sent).collect();
        match (currencies.len(), &self.currency) {
            (0 | 1, _) => Ok(None),
            (_, Some(currency)) => Ok(Some(currency)),
            (_, None) => {
                let currencies = currencies.into_iter().collect();
                Err(EngineError::MixedCurrencies { field, currencies, has_viewer: true })
            }
        }
    }

    /// Waits until the log is applied up to `version`, for at most half of the remaining time, because an answer that
    /// declares a stale state is better than none. Only as many requests may wait as the queue of the workers has
    /// places.
    async fn wait_for_position(&self, version: u64, deadline: Instant) -> Result<(), EngineError> {
        if self.writer.position() < version {
            let timeout = deadline.saturating_duration_since(Instant::now()) / 2;
            let mut positions = self.writer.positions();
            let reached = positions.wait_for(|position| *position >= version);
            let _ = self.workers.wait_for(tokio::time::timeout(timeout, reached)).await?;
        }
        Ok(())
    }

    fn plan(&self, request: RankingRequest) -> Result<PlannedRequest, EngineError> {
        let plan = self.serving().plan(&request.options().serving_config, &request.viewer().user)?;
        let answer_id = Uuid::now_v7().into_bytes();
        let logging = self.logging_of(&answer_id);
        Ok(PlannedRequest { request, answer_id, plan, logging })
    }

    /// Decides by its id whether an answer is recorded.
    fn logging_of(&self, answer_id: &AnswerId) -> AnswerLogging {
        match self.answers.samples(answer_id) {
            true => AnswerLogging::Recorded,
            false => AnswerLogging::Skipped,
        }
    }

    /// Logs and signs an answer, returns the requested page, and keeps the slate if other pages follow.
    async fn freeze(
        &self,
        ServedAnswer { loaded, answer }: ServedAnswer,
        position: u64,
        page: &Page,
        bytes_max: usize,
        deadline: Instant,
    ) -> Result<Answer, EngineError> {
        let PipelineAnswer {
            mut slate,
            total_size,
            corrected_query,
            facets,
            mut info,
            stage_times,
            id,
            catalog,
            trace,
        } = answer;
        self.record_metrics(&stage_times, &info);
        self.sign(&mut info, &loaded, id, position);
        // Only the first page has debug information, so that it is not kept for later ones.
        let (result_debug, answer_debug) = (slate.take_debug(), info.debug.take());
        let facets = Arc::new(facets);
        let answer = FrozenAnswer { fingerprint: page.fingerprint, slate, total_size, corrected_query, facets, info };
        let frozen = Arc::new(answer);
        let offset = page.number.saturating_sub(1).saturating_mul(page.size);
        let wanted = WantedPage {
            frozen: frozen.clone(),
            id,
            start: PageStart { offset, after: None },
            size: page.size,
            bytes_max,
            loaded: loaded.clone(),
            // The record of the answer has the first slots in their order, so no item may leave between ranking and
            // page.
            up_to_date: loaded.clone(),
            catalog,
        };
        let mut answer = self.page(wanted, deadline).await?;
        answer.info.debug = answer_debug;
        for result in &mut answer.results {
            result.debug = result_debug.get(result.rank - 1).cloned().flatten();
        }
        if let Some(trace) = trace {
            // The record has the probability of the page that was shown, which the limit of bytes may have cut.
            let shown = if offset == 0 { &answer.results[..] } else { &[] };
            self.log_answer(id, trace, &loaded, shown);
        }
        if !answer.next_page_token.is_empty() {
            loaded.slates.insert(id, frozen);
        }
        Ok(answer)
    }

    /// Logs an answer that showed these results.
    fn log_answer(&self, id: AnswerId, trace: Box<Trace>, loaded: &Arc<LoadedGeneration>, shown: &[RankedItem]) {
        let codes = |item: &RankedItem| item.reasons.iter().map(|reason| reason.code as i32).collect();
        let (reasons, loaded) = (shown.iter().map(codes).collect::<Vec<Vec<i32>>>(), loaded.clone());
        self.answers.log(id, Box::new(move || trace.record(&loaded.generation.manifest, reasons)));
    }

    async fn next_page(&self, page: &Page, deadline: Instant) -> Result<Answer, EngineError> {
        let token = self.tokens.parse_page(&page.token).ok_or(EngineError::PageToken(PageTokenError::Foreign))?;
        let routes = self.generations.routes();
        let found = routes.loaded().find_map(|loaded| Some((loaded, loaded.slates.get(&token.slate)?)));
        let (loaded, frozen) = found.ok_or(EngineError::PageToken(PageTokenError::Expired))?;
        if frozen.fingerprint != page.fingerprint {
            return Err(EngineError::PageToken(PageTokenError::OtherRequest));
        }
        let up_to_date = routes.up_to_date(loaded).clone();
        let catalog = self.catalog_now(&up_to_date, deadline).await?;
        let offers = frozen.slate.offers.clone();
        let catalog = match offers.is_empty() {
            true => catalog,
            // A view that is not known yet reads the whole catalogue.
            false => {
                let of_view = move |_: &mut usize| Ok(catalog.view(&offers));
                self.workers.run(Priority::Interactive, deadline, of_view).await?
            }
        };
        let wanted = WantedPage {
            frozen,
            id: token.slate,
            start: PageStart { offset: token.offset as usize, after: token.after },
            size: page.size,
            bytes_max: RESULTS_BYTES_MAX,
            loaded: loaded.clone(),
            catalog,
            up_to_date,
        };
        self.page(wanted, deadline).await
    }

    /// Returns a page. A worker selects results behind the slate, because that reads all of them.
    async fn page(&self, wanted: WantedPage, deadline: Instant) -> Result<Answer, EngineError> {
        let tokens = self.tokens.clone();
        match wanted.frozen.slate.reaches_tail(&wanted.start, wanted.size) {
            true => {
                let answer = move |_: &mut usize| Ok(wanted.answer(&tokens));
                self.workers.finish(Priority::Interactive, deadline, answer).await
            }
            false => Ok(wanted.answer(&tokens)),
        }
    }

    fn sign(&self, info: &mut AnswerInfo, loaded: &LoadedGeneration, answer: AnswerId, position: u64) {
        info.attribution_token = self.tokens.attribution(answer);
        info.log_position = position;
        info.generation = Arc::from(loaded.name());
    }

    /// Positive interactions with answers, if a canary is under evaluation.
    fn conversions(&self, events: &[Event]) -> Vec<Conversion> {
        if self.generations.canary().is_none() {
            return Vec::new();
        }
        let conversion = |(index, event): (usize, &Event)| match &event.attribution {
            Attribution::Answer(token) if event.kind.is_positive() => {
                Some(Conversion { index, user: event.user.clone(), answer: self.tokens.parse_attribution(token)? })
            }
            _ => None,
        };
        events.iter().enumerate().filter_map(conversion).collect()
    }

    /// Records the conversions that were not written before.
    fn record_conversions(&self, conversions: Vec<Conversion>, outcomes: &[WriteOutcome]) {
        let Some(canary) = self.generations.canary() else { return };
        for conversion in conversions {
            if outcomes.get(conversion.index) == Some(&WriteOutcome::Accepted) {
                canary.record_conversion(&conversion.user, conversion.answer);
            }
        }
    }

    /// Counts the accepted completions of events that were not written before.
    fn count_accepted(&self, accepted: &[usize], outcomes: &[WriteOutcome]) {
        let is_new = |index: &&usize| outcomes.get(**index) == Some(&WriteOutcome::Accepted);
        self.metrics.accepted_completions(accepted.iter().filter(is_new).count() as u64);
    }

    fn finish_write(&self, written: Result<Written, LogError>) -> WriteResult {
        let report = WriteReport::from(written.map_err(EngineError::Log)?);
        self.count_outcomes(&report.outcomes);
        self.metrics.repeated_order_lines(report.repeated_lines.len() as u64);
        Ok(report)
    }

    fn record_metrics(&self, stage_times: &StageTimes, info: &AnswerInfo) {
        for stage in stage_times {
            self.metrics.stage(stage.name, stage.time);
        }
        for degradation in &info.degradations {
            self.metrics.degraded(degradation.code.name());
        }
        for applied in &info.applied_rules {
            self.metrics.applied_rule(applied.rule.id());
        }
        self.metrics.configured(&info.serving_config);
        if info.explored {
            self.metrics.explored();
        }
        if let Some(chosen) = &info.arm {
            self.metrics.experimented(&chosen.experiment, &chosen.arm);
        }
    }

    fn count_outcomes(&self, outcomes: &[WriteOutcome]) {
        let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
        for outcome in outcomes {
            *counts.entry(outcome.name()).or_default() += 1;
        }
        for (outcome, count) in counts {
            self.metrics.wrote(outcome, count);
        }
    }
}

/// Returns an error if a filter of a list of items compares prices in several currencies.
fn check_currencies(catalog: &Catalog, filter: Option<&Filter>) -> Result<(), EngineError> {
    if !filter.is_some_and(|filter| filter.has_any(Field::is_price) && !filter.selects_one_currency()) {
        return Ok(());
    }
    let currencies = catalog.price_currencies(catalog.alive());
    match currencies.len() {
        0 | 1 => Ok(()),
        _ => Err(EngineError::MixedCurrencies { field: RequestField::Filter, currencies, has_viewer: false }),
    }
}

/// Returns the positions of the events that accept a completion.
fn accepted_completions(events: &[Event]) -> Vec<usize> {
    events.iter().enumerate().filter(|(_, event)| !event.completion.is_empty()).map(|(index, _)| index).collect()
}

fn event_changes(events: Vec<Event>) -> Vec<(Change, Option<Embedded>)> {
    events.into_iter().map(|event| (Change::Event(event), None)).collect()
}

/// Rejects vectors that an index would not accept.
fn check_embedded(item: &Item, embedded: &Embedded) -> Result<(), EngineError> {
    for (_, vectors) in &embedded.vectors {
        for vector in [vectors.user_space(), vectors.query_space()] {
            check_vector(vector, vector.len())
                .map_err(|problem| EngineError::Internal(format!("vector of item {}: {problem}", item.id)))?;
        }
    }
    Ok(())
}
