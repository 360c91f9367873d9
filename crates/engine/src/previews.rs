//! Previews of rules: the pages of logged answers with one more rule, and the estimate of their rewards.
use crate::{EngineError, engine::Engine, token::answer_of_token};
use lodestone_catalog::{Catalog, Filter, Group};
use lodestone_core::{
    ids::{ItemId, Row, UserId},
    units::UnixMillis,
};
use lodestone_dataset::DatasetSlot;
use lodestone_events::{Attribution, Change, Event, EventKind, log};
use lodestone_experiments::{
    Outcome,
    off_policy::{EstimateOptions, Estimator, EvaluatedSlots, Reward, SupportLimits, evaluate_answers, slots_of},
};
use lodestone_pipeline::{
    answers::{self, AnswerKind, AnswerRecord, PreviewedPage, RuleOnRecord},
    generation::Generation,
    policy::ObjectiveFacts,
    request::Viewer,
    retrieve::EligibleRows,
    rules::RuleInput,
    run::RankingRequest,
    serving::{ServingConfig, ServingSnapshot},
    slate::{self, objective_facts},
};
use lodestone_rules::{Action, CompiledRule, CompiledServingConfig, RuleSnapshot};
use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

/// Pages that a preview shows.
const PAGES_MAX: usize = 10;
/// Time after an answer in which an interaction counts.
const INTERACTION_MS: i64 = UnixMillis::DAY;
/// Time after an answer in which a visit counts as a return, as in the training of the head `return_visit`.
const RETURN_MS: i64 = 14 * UnixMillis::DAY;
/// The retry delay of a preview while another one runs.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Returns the request of a record; none if it cannot be read.
pub type RequestOfRecord = fn(&AnswerRecord) -> Option<RankingRequest>;

/// The effect that a rule would have had on logged answers.
#[derive(Debug, Default)]
pub struct RulePreview {
    pub answer_count: usize,
    /// Answers whose requests meet the condition.
    pub matched_count: usize,
    /// Reasons why matched answers are left out of everything below, with their numbers.
    pub left_out: BTreeMap<String, usize>,
    pub slot_count: usize,
    pub changed_slot_count: usize,
    pub changed_answer_count: usize,
    /// The first changed pages.
    pub pages: Vec<PagePair>,
    /// Of clicks, purchases and return visits.
    pub estimates: Vec<RewardPreview>,
}

/// A page with and without a rule.
#[derive(Debug)]
pub struct PagePair {
    /// A UUID.
    pub answer: String,
    pub query: String,
    pub page: PreviewedPage,
}

/// The estimate of a reward per slot.
#[derive(Debug)]
pub struct RewardPreview {
    pub slot_count: usize,
    pub shown: f64,
    /// Value, lower and upper end of the 95 % interval; or the reason why the log does not determine them.
    pub estimate: Result<(f64, f64, f64), String>,
}

/// The effect that a serving configuration would have had on logged answers.
#[derive(Debug, Default)]
pub struct ServingConfigPreview {
    pub answer_count: usize,
    /// Reasons why answers are left out of everything below, with their numbers.
    pub left_out: BTreeMap<String, usize>,
    pub slot_count: usize,
    pub changed_slot_count: usize,
    pub changed_answer_count: usize,
    /// Of the other answers, 0 to 1.
    pub mean_ndcg_loss: f64,
    pub largest_ndcg_loss: f64,
    /// Mean share of the weights of objectives that their limit leaves, 0 to 1.
    pub mean_objective_share: f64,
    /// Answers with a share below 1.
    pub bounded_answer_count: usize,
}

/// A logged answer with and without a serving configuration.
struct ConfiguredAnswer {
    slot_count: usize,
    changed_slot_count: usize,
    ndcg_loss: f32,
    objective_share: f32,
}

/// A matched answer whose record determines its page with the rule.
struct MatchedAnswer {
    query: String,
    log_position: u64,
    slots: Vec<DatasetSlot>,
    page: PreviewedPage,
}

/// An answer that was read.
enum ReadAnswer {
    Unmatched,
    LeftOut(String),
    Matched(Box<MatchedAnswer>),
}

/// Everything that a preview reads.
struct PreviewInput {
    rule: CompiledRule,
    /// Finds the rule, without its dates.
    found: RuleSnapshot,
    count: usize,
    request_of: RequestOfRecord,
    answers: PathBuf,
    log: PathBuf,
    catalog: Arc<Catalog>,
    state: Arc<lodestone_state::LiveState>,
    serving: Arc<ServingSnapshot>,
    deadline: Instant,
}

impl Engine {
    /// Applies a rule to the latest `count` logged answers. One preview runs at a time.
    pub async fn preview_rule(
        &self,
        rule: CompiledRule,
        count: usize,
        request_of: RequestOfRecord,
        deadline: Instant,
    ) -> Result<RulePreview, EngineError> {
        let running = self.preview.clone().try_lock_owned();
        let running = running.map_err(|_| EngineError::Overloaded { retry_after: RETRY_AFTER })?;
        let rule = rule.without_dates();
        let input = PreviewInput {
            found: RuleSnapshot::of(rule.clone()).map_err(EngineError::Internal)?,
            rule,
            count,
            request_of,
            answers: self.answers.directory().to_owned(),
            log: self.log.clone(),
            catalog: self.catalog_now(&self.generations.current(), deadline).await?,
            state: self.generations.state.clone(),
            serving: self.serving(),
            deadline,
        };
        let preview = tokio::task::spawn_blocking(move || {
            let _running = running;
            input.preview()
        });
        preview.await.map_err(|error| EngineError::Internal(error.to_string()))?
    }

    /// Applies a serving configuration to the latest `count` logged answers. One preview runs at a time.
    pub async fn preview_serving_config(
        &self,
        config: &CompiledServingConfig,
        count: usize,
        request_of: RequestOfRecord,
        deadline: Instant,
    ) -> Result<ServingConfigPreview, EngineError> {
        let running = self.preview.clone().try_lock_owned();
        let running = running.map_err(|_| EngineError::Overloaded { retry_after: RETRY_AFTER })?;
        let config = ServingConfig { exploration: None, ..self.serving.resolved(config) };
        let (loaded, directory) = (self.generations.current(), self.answers.directory().to_owned());
        let preview = tokio::task::spawn_blocking(move || {
            let _running = running;
            let now = UnixMillis::now();
            let catalog = loaded.generation.catalog_at(now);
            let read = |record: &AnswerRecord| {
                configured_answer(record, &config, &loaded.generation, &catalog, request_of, now)
            };
            Ok(ServingConfigPreview::of(read_latest(&directory, count, deadline, read)?))
        });
        preview.await.map_err(|error| EngineError::Internal(error.to_string()))?
    }
}

/// Applies a configuration to the record of an answer, with the prices and the user's risk of now. Returns the reason if
/// the record does not determine the page.
fn configured_answer(
    record: &AnswerRecord,
    config: &ServingConfig,
    generation: &Generation,
    catalog: &Arc<Catalog>,
    request_of: RequestOfRecord,
    now: UnixMillis,
) -> Result<ConfiguredAnswer, String> {
    let request = request_of(record).ok_or("its request cannot be read")?;
    let Viewer { user, offers, .. } = request.viewer();
    let mut facts = ObjectiveFacts::default();
    if let Some(mix) = &config.objectives {
        let summary = generation.state.users.summary(user);
        let (view, keys) = (catalog.view(offers), &generation.state.keys);
        let row = |id: &String| view.row_of(keys, &ItemId::parse(id).ok()?);
        let rows: Vec<Option<Row>> = record.items.iter().take(record.candidate_count()).map(row).collect();
        let known = rows.iter().flatten().copied();
        facts = objective_facts(generation, &view, &[mix], known, summary.as_ref(), now);
        if mix.needs_prices() {
            let spread = |values: Vec<f32>| -> Vec<f32> {
                let mut values = values.into_iter();
                rows.iter().map(|row| row.and_then(|_| values.next()).unwrap_or(f32::NAN)).collect()
            };
            (facts.prices, facts.margins) = (spread(facts.prices), spread(facts.margins));
        }
    }
    let before = record.with_rule(&RuleOnRecord::default()).map_err(|error| error.0)?.before;
    let after = record.counterfactual_page(config, &facts).map_err(|error| error.0)?;
    let is_same = |at: usize| before.get(at).map(String::as_str) == after.items.get(at).copied();
    let slot_count = before.len().max(after.items.len());
    Ok(ConfiguredAnswer {
        slot_count,
        changed_slot_count: (0..slot_count).filter(|at| !is_same(*at)).count(),
        ndcg_loss: after.ndcg_loss,
        objective_share: after.objective_share.unwrap_or(1.0),
    })
}

impl ServingConfigPreview {
    fn of(answers: VecDeque<Result<ConfiguredAnswer, String>>) -> Self {
        let mut preview = Self { answer_count: answers.len(), ..Self::default() };
        let mut count = 0.0;
        for answer in answers {
            match answer {
                Err(reason) => *preview.left_out.entry(reason).or_default() += 1,
                Ok(answer) => {
                    count += 1.0;
                    preview.slot_count += answer.slot_count;
                    preview.changed_slot_count += answer.changed_slot_count;
                    preview.changed_answer_count += usize::from(answer.changed_slot_count > 0);
                    preview.mean_ndcg_loss += f64::from(answer.ndcg_loss);
                    preview.largest_ndcg_loss = preview.largest_ndcg_loss.max(answer.ndcg_loss.into());
                    preview.mean_objective_share += f64::from(answer.objective_share);
                    preview.bounded_answer_count += usize::from(answer.objective_share < 1.0);
                }
            }
        }
        if count > 0.0 {
            preview.mean_ndcg_loss /= count;
            preview.mean_objective_share /= count;
        }
        preview
    }
}

impl PreviewInput {
    fn preview(&self) -> Result<RulePreview, EngineError> {
        let mut preview = RulePreview::default();
        let mut matched = Vec::new();
        for read in read_latest(&self.answers, self.count, self.deadline, |record| self.read_record(record))? {
            preview.answer_count += 1;
            match read {
                ReadAnswer::Unmatched => continue,
                ReadAnswer::LeftOut(reason) => *preview.left_out.entry(reason).or_default() += 1,
                ReadAnswer::Matched(answer) => matched.push(answer),
            }
            preview.matched_count += 1;
        }
        for answer in &matched {
            let changed = answer.page.changed_slot_count();
            preview.slot_count += answer.slots.len();
            preview.changed_slot_count += changed;
            preview.changed_answer_count += usize::from(changed > 0);
            if changed > 0 && preview.pages.len() < PAGES_MAX {
                let id = answer.slots.first().map_or(String::new(), |slot| slot.answer.clone());
                preview.pages.push(PagePair { answer: id, query: answer.query.clone(), page: answer.page.clone() });
            }
        }
        preview.estimates = self.estimates(&matched)?;
        Ok(preview)
    }

    fn read_record(&self, record: &AnswerRecord) -> ReadAnswer {
        let left_out = |reason: &str| ReadAnswer::LeftOut(reason.to_owned());
        let Some(request) = (self.request_of)(record) else { return ReadAnswer::Unmatched };
        let config = record.rankings.first().map_or("", |ranking| &ranking.serving_config);
        let Some(input) = RuleInput::of(&request, config) else { return ReadAnswer::Unmatched };
        if self.found.applying(&input.facts(UnixMillis(record.at_ms))).next().is_none() {
            return ReadAnswer::Unmatched;
        }
        if record.applied_rules.iter().any(|applied| applied.rule_id == self.rule.id()) {
            return left_out("a rule with this id was in effect, and the record does not separate its effects");
        }
        let on_record = match self.on_record(record, &request) {
            Ok(on_record) => on_record,
            Err(reason) => return left_out(reason),
        };
        let page = match record.with_rule(&on_record) {
            Ok(page) => page,
            Err(error) => return ReadAnswer::LeftOut(error.0),
        };
        let Some(slots) = slots_of(record) else { return left_out("the record is damaged") };
        let query = request.query().unwrap_or_default().to_owned();
        ReadAnswer::Matched(Box::new(MatchedAnswer { query, log_position: record.log_position, slots, page }))
    }

    /// Evaluates the actions of the rule on the items of a record, as the viewer sees them now. An item that was deleted
    /// since matches no filter, so it stays where it was.
    fn on_record(&self, record: &AnswerRecord, request: &RankingRequest) -> Result<RuleOnRecord, &'static str> {
        let catalog = self.catalog.view(&request.viewer().offers);
        let rows: Vec<Option<Row>> = record.items.iter().map(|id| self.row_of(id)).collect();
        let mut on_record = RuleOnRecord { hidden: vec![false; rows.len()], ..RuleOnRecord::default() };
        let mut pins: Vec<(&ItemId, usize)> = Vec::new();
        let mut filters: Vec<&Filter> = Vec::new();
        for action in &self.rule.actions {
            match action {
                Action::Banner(_) => {}
                Action::Redirect(_) => return Err("the rule redirects, so that the shop does not show the page"),
                Action::ReplaceQuery(_) | Action::AddSynonyms(_) => {
                    return Err("the rule changes the searched query, and the log has no candidates of the new one");
                }
                Action::Pin { item, rank } => pins.push((item, *rank)),
                Action::Boost { filter, factor } => {
                    let matches = |row: &Option<Row>| row.is_some_and(|row| catalog.matches(filter, row));
                    on_record.boosts.push((*factor, rows.iter().map(matches).collect()));
                }
                Action::Restrict(filter) => {
                    filters.push(filter);
                    let hides = |row: &Option<Row>| row.is_some_and(|row| !catalog.matches(filter, row));
                    on_record.hidden.iter_mut().zip(&rows).for_each(|(hidden, row)| *hidden |= hides(row));
                }
            }
        }
        if !pins.is_empty() {
            let eligible = self.eligible_rows(record, request, &catalog, &filters)?;
            self.pin(&mut on_record, &pins, &eligible, &catalog, (record, &rows, request.options().one_per_group));
        }
        Ok(on_record)
    }

    /// Returns the rows that pins could show in a recorded answer. `filters` are those of the previewed rule.
    fn eligible_rows<'c>(
        &self,
        record: &AnswerRecord,
        request: &RankingRequest,
        catalog: &'c Catalog,
        filters: &[&Filter],
    ) -> Result<EligibleRows<'c>, &'static str> {
        let ranking = record.rankings.first();
        let config = ranking.and_then(|ranking| self.serving.config(&ranking.serving_config).ok());
        let config = config.filter(|config| ranking.is_some_and(|ranking| ranking.serving_config_etag == config.etag));
        let Some(config) = config else {
            return Err("its serving configuration has changed, so that it is unknown which items a pin could show");
        };
        let rules = self.state.rules();
        let mut of_rules = Vec::new();
        for applied in &record.applied_rules {
            let Some(rule) = rules.rules.get(&applied.rule_id).filter(|rule| rule.rule.etag == applied.etag) else {
                return Err(
                    "a rule that applied to it has changed, so that it is unknown which items a pin could show",
                );
            };
            let actions = (0u32..).zip(&rule.actions).filter(|(index, _)| !applied.unused_actions.contains(index));
            of_rules.extend(actions.filter_map(|(_, action)| match action {
                Action::Restrict(filter) => Some(filter.clone()),
                _ => None,
            }));
        }
        let excluded = request.options().exclude.iter().flat_map(|id| catalog.named_rows(&self.state.keys, id));
        let filters = filters.iter().copied().chain(&of_rules).chain(request.filter());
        Ok(EligibleRows::for_request(catalog, request.sold_out(config.sold_out), excluded, filters))
    }

    /// Adds the pins of the rule that show an item. If a product has one result, a pinned variant hides the others.
    fn pin(
        &self,
        on_record: &mut RuleOnRecord,
        pins: &[(&ItemId, usize)],
        eligible: &EligibleRows,
        catalog: &Catalog,
        (record, rows, one_per_group): (&AnswerRecord, &[Option<Row>], bool),
    ) {
        let candidates = rows.get(..record.candidate_count as usize).unwrap_or(rows);
        let is_candidate = |row: Row| candidates.contains(&Some(row));
        let mut pinned: Vec<Row> = record.pins.iter().filter_map(|pin| *rows.get(pin.item? as usize)?).collect();
        for (item, rank) in pins {
            let named = catalog.named_rows(&self.state.keys, item).filter(|row| eligible.contains(*row));
            let Some(row) = slate::pinned_row(named, is_candidate) else { continue };
            pinned.push(row);
            on_record.pins.push((catalog.own(row).item.id.to_string(), *rank));
        }
        if one_per_group {
            let groups: HashSet<Group> = pinned.iter().filter_map(|row| catalog.group_of(*row)).collect();
            for (hidden, row) in on_record.hidden.iter_mut().zip(rows) {
                let is_other = |row: Row| {
                    catalog.group_of(row).is_some_and(|group| groups.contains(&group)) && !pinned.contains(&row)
                };
                *hidden |= row.is_some_and(is_other);
            }
        }
    }

    fn row_of(&self, id: &str) -> Option<Row> {
        self.catalog.row_of(&self.state.keys, &ItemId::parse(id).ok()?)
    }

    /// Estimates clicks, purchases and return visits.
    fn estimates(&self, matched: &[Box<MatchedAnswer>]) -> Result<Vec<RewardPreview>, EngineError> {
        check_deadline(self.deadline)?;
        let outcomes = self.outcomes(matched)?;
        let now = UnixMillis::now();
        let known_until = |window_ms: i64| UnixMillis(now.0 - window_ms);
        let rewards = [("click", now), ("purchase", now), ("return_visit", known_until(RETURN_MS))];
        Ok(rewards.into_iter().map(|(kind, until)| estimate(matched, &outcomes, kind, until)).collect())
    }

    /// Returns the outcomes of the users of the answers.
    fn outcomes(&self, matched: &[Box<MatchedAnswer>]) -> Result<Vec<Outcome>, EngineError> {
        let Some(from) = matched.iter().map(|answer| answer.log_position + 1).min() else { return Ok(Vec::new()) };
        let mut events: HashMap<UserId, Vec<Event>> = HashMap::new();
        let users = matched.iter().filter_map(|answer| UserId::from_key(&answer.slots.first()?.user));
        users.for_each(|user| _ = events.entry(user).or_default());
        log::try_read(&self.log, from, |_, _, change| {
            if let Change::Event(event) = change
                && let Some(of_user) = events.get_mut(&event.user)
            {
                of_user.push(event);
            }
            until(self.deadline)
        })
        .map_err(EngineError::Log)?;
        check_deadline(self.deadline)?;
        let of_user = |(user, events): (&UserId, &Vec<Event>)| interactions(user, events);
        let mut outcomes: Vec<Outcome> = events.iter().flat_map(of_user).collect();
        for answer in matched {
            let user = answer.slots.first().and_then(|slot| UserId::from_key(&slot.user));
            let of_user = user.and_then(|user| events.get(&user)).map_or(&[][..], Vec::as_slice);
            outcomes.extend(return_visits(answer, of_user));
        }
        Ok(outcomes)
    }
}

fn check_deadline(deadline: Instant) -> Result<(), EngineError> {
    if Instant::now() > deadline { Err(EngineError::DeadlineExceeded) } else { Ok(()) }
}

/// Ends a reading at the deadline.
fn until(deadline: Instant) -> ControlFlow<()> {
    if Instant::now() > deadline { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
}

/// Reads the latest answers to Search and Recommend, whose order rules and configurations change. Returns what `read`
/// makes of them, the oldest first.
fn read_latest<T>(
    directory: &Path,
    count: usize,
    deadline: Instant,
    mut read: impl FnMut(&AnswerRecord) -> T,
) -> Result<VecDeque<T>, EngineError> {
    let mut latest: VecDeque<T> = VecDeque::new();
    let files = answers::list_files(directory).map_err(EngineError::Answers)?;
    for path in files.iter().rev() {
        if latest.len() == count {
            break;
        }
        answers::read_backwards(path, |record| {
            if matches!(record.kind(), AnswerKind::Search | AnswerKind::Recommend) {
                latest.push_front(read(&record));
            }
            if latest.len() == count { ControlFlow::Break(()) } else { until(deadline) }
        })
        .map_err(EngineError::Answers)?;
        check_deadline(deadline)?;
    }
    Ok(latest)
}

/// Returns the clicks and purchases of a user.
fn interactions(user: &UserId, events: &[Event]) -> Vec<Outcome> {
    let counted = events.iter().filter(|event| matches!(event.kind, EventKind::Click | EventKind::Purchase));
    let outcomes = counted.flat_map(|event| {
        let answer = match &event.attribution {
            Attribution::Answer(token) => answer_of_token(token),
            Attribution::None | Attribution::Foreign(_) => None,
        };
        let answer = answer.map_or(String::new(), |id| uuid::Uuid::from_bytes(id).to_string());
        event.lines.iter().map(move |line| Outcome {
            user: user.as_str().to_owned(),
            at: event.at,
            kind: event.kind.name().to_owned(),
            value: 0.0,
            currency: String::new(),
            item: line.item.to_string(),
            answer: answer.clone(),
        })
    });
    outcomes.collect()
}

/// Returns a return visit for each item with an interaction within a day of the answer, if the user comes back later.
fn return_visits(answer: &MatchedAnswer, events: &[Event]) -> Vec<Outcome> {
    let Some(first) = answer.slots.first() else { return Vec::new() };
    let age = |event: &Event| event.at.0 - first.at.0;
    if !events.iter().any(|event| event.kind.is_visit() && (INTERACTION_MS..RETURN_MS).contains(&age(event))) {
        return Vec::new();
    }
    let interactions =
        events.iter().filter(|event| event.kind.is_positive() && (0..INTERACTION_MS).contains(&age(event)));
    let outcomes = interactions.flat_map(|event| event.lines.iter().map(move |line| (event, line)));
    let outcomes = outcomes.map(|(event, line)| Outcome {
        user: first.user.clone(),
        at: event.at,
        kind: "return_visit".to_owned(),
        value: 0.0,
        currency: String::new(),
        item: line.item.to_string(),
        answer: first.answer.clone(),
    });
    outcomes.collect()
}

/// Estimates one reward from the answers before `until`.
fn estimate(matched: &[Box<MatchedAnswer>], outcomes: &[Outcome], kind: &str, until: UnixMillis) -> RewardPreview {
    let mut evaluated = EvaluatedSlots::default();
    let (mut slot_count, mut unsupported) = (0, 0);
    for answer in matched.iter().filter(|answer| answer.slots.first().is_some_and(|slot| slot.at <= until)) {
        for (at, slot) in answer.slots.iter().enumerate() {
            evaluated.is_same.push(answer.page.after.get(at) == Some(&slot.item));
            slot_count += 1;
            unsupported += usize::from(answer.page.is_supported.get(at) == Some(&false));
        }
        evaluated.slots.extend(answer.slots.iter().cloned());
    }
    let reward = Reward { kind: kind.to_owned(), is_value: false, window_ms: INTERACTION_MS };
    let report = evaluate_answers(&evaluated, outcomes, &reward, &EstimateOptions::default());
    let limit = SupportLimits::default().unseen_items_max;
    let share = unsupported as f64 / (slot_count as f64).max(1.0);
    let estimate = match (report.estimates, report.refused) {
        _ if share > limit => Err(format!(
            "{:.1} % of the slots would show an item that the logged policy could not show there (limit {:.1} %); only \
             exploration, or an experiment with the rule, shows its effect",
            100.0 * share,
            100.0 * limit
        )),
        (Some(estimates), _) => {
            let measure = estimates.measures.iter().find(|measure| measure.estimator == Estimator::DoublyRobust);
            measure.map(|measure| (measure.value, measure.low, measure.high)).ok_or_else(|| "no estimate".to_owned())
        }
        (None, refused) => Err(refused.unwrap_or_else(|| "no estimate".to_owned())),
    };
    RewardPreview { slot_count: report.slots, shown: report.shown_mean, estimate }
}
