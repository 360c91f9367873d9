//! The state of all services, and RankingService.
use super::{
    ServerConfig,
    admission::priority_of,
    convert::{self, Envelope, FilterForms, LogPosition},
    deadline::handler_deadline,
    guard::guarded,
    proto::{self, ranking_service_server::RankingService},
    status,
    violations::{Violation, Violations},
};
use lodestone_catalog::{AttributeKind, attribute_name};
use lodestone_core::{ids::ID_BYTES_MAX, units::UnixMillis};
use lodestone_engine::{AttributeProblem, AttributeProblemReason, Engine, EngineError};
use lodestone_pipeline::{
    Answer, AttributePurpose, AttributeUse, RESULTS_BYTES_MAX, RankCandidate, RankedItem,
    run::{RankingRequest, RequestField},
};
use lodestone_telemetry::{Metrics, call::Call};
use prost::Message;
use std::{fmt::Display, sync::Arc, time::Instant};
use tonic::{Request, Response, Status};

/// All services over one engine.
#[derive(Clone)]
pub(crate) struct Services {
    pub(crate) engine: Arc<Engine>,
    pub(crate) config: ServerConfig,
    pub(crate) metrics: Metrics,
    /// The name of the engine's catalogue.
    pub(crate) catalog: String,
}

/// Deadline and options of a call that are not part of the ranking request.
pub(crate) struct CallContext {
    pub(crate) deadline: Instant,
    request_id: String,
    validate_only: bool,
    /// Identifies the log of the engine.
    log: u32,
}

impl Services {
    pub(crate) fn new(engine: Arc<Engine>, config: ServerConfig, catalog: &str) -> Self {
        let metrics = engine.metrics().clone();
        Self { engine, config, metrics, catalog: catalog.to_owned() }
    }

    pub(crate) fn call_context<T>(&self, request: &Request<T>, options: Option<&proto::RankingOptions>) -> CallContext {
        let request_id = match options.map(|options| options.request_id.as_str()) {
            None | Some("") => match Call::current() {
                Some(call) => call.request_id(),
                None => uuid::Uuid::now_v7().to_string(),
            },
            Some(id) => {
                // The headers and the log have the same id as the message.
                Call::current().iter().for_each(|call| call.name(id));
                id.to_owned()
            }
        };
        let ServerConfig { deadline_default, deadline_max, .. } = self.config;
        CallContext {
            deadline: handler_deadline(request.metadata().as_ref(), deadline_default, deadline_max),
            request_id,
            validate_only: options.is_some_and(|options| options.validate_only),
            log: self.engine.log_id(),
        }
    }

    /// Returns the token of a position of the engine's log.
    pub(crate) fn consistency_token(&self, position: u64) -> String {
        convert::consistency_token(LogPosition { log: self.engine.log_id(), position })
    }

    /// Adds a violation if a consistency token names a position of another log.
    fn check_log(&self, violations: &mut Violations, field: &str, position: u64, log: u32) {
        if position > 0 && log != self.engine.log_id() {
            violations.add(field, "is the token of another server or catalogue; leave it out");
        }
    }
}

impl Services {
    /// Refuses a request with violations. Otherwise answers it. `forms` says how the request states its filters.
    async fn answer(
        &self,
        violations: Violations,
        context: CallContext,
        forms: FilterForms,
        request: RankingRequest,
    ) -> Result<(Answer, Envelope), Status> {
        if !violations.is_empty() {
            return Err(self.refused(violations, context.deadline).await);
        }
        let uses = request.attribute_uses();
        let answer = self.answered(request, context.validate_only, context.deadline).await;
        let answer = answer.map_err(|error| status::of_request(error, &forms))?;
        let mut notices = violations.notices;
        // After the answer, which may have waited for the write of an attribute.
        notices.extend(self.attribute_notices(uses, |field| forms.path(field), context.deadline).await);
        notices.extend(answer.is_cut.then(|| match answer.next_page_token.is_empty() {
            true => cut_notice("options.read_mask", &answer.results),
            false => Violation::new(
                "page_size",
                format!(
                    "results have at most {} MiB; the page has {}, and others follow",
                    RESULTS_BYTES_MAX >> 20,
                    answer.results.len()
                ),
            ),
        }));
        let consistency_token =
            convert::consistency_token(LogPosition { log: context.log, position: answer.info.log_position });
        Ok((answer, Envelope { request_id: context.request_id, consistency_token, notices }))
    }

    /// Answers a request or, with `validate_only`, only checks it against the catalogue and the configurations.
    async fn answered(
        &self,
        request: RankingRequest,
        validate_only: bool,
        deadline: Instant,
    ) -> Result<Answer, EngineError> {
        if validate_only {
            self.engine.check(request, deadline).await?;
            return Ok(Answer::default());
        }
        match request {
            RankingRequest::Search(request) => self.engine.search(request, deadline).await,
            RankingRequest::Recommend(request) => self.engine.recommend(request, deadline).await,
            RankingRequest::Rank(request) => self.engine.rank(request, deadline).await,
        }
    }

    /// Returns a notice for each use of an attribute that has no effect, because no item has the attribute or because its
    /// values are of another kind. `path` is that of a field in the request.
    pub(crate) async fn attribute_notices(
        &self,
        uses: Vec<AttributeUse>,
        path: impl Fn(RequestField) -> String,
        deadline: Instant,
    ) -> Vec<Violation> {
        let problems = self.engine.attribute_problems(uses, deadline).await;
        problems.iter().map(|problem| Violation::new(path(problem.used.field), description(problem))).collect()
    }

    /// Returns the status of a request with violations. Those of an unknown field of items name the attribute that was
    /// probably meant.
    pub(crate) async fn refused(&self, mut violations: Violations, deadline: Instant) -> Status {
        let is_name = |name: &&String| attribute_name(&format!("attributes.{name}")).is_some();
        let unknown = |of: &Violation| of.unknown_field.as_ref().filter(is_name).cloned();
        let names: Vec<String> = violations.found.iter().filter_map(unknown).collect();
        if !names.is_empty() {
            // Without an answer in time, the descriptions stay as they are.
            let nearest = self.engine.nearest_attributes(names, deadline).await.unwrap_or_default();
            let unknown = violations.found.iter_mut().filter(|of| unknown(of).is_some());
            for (violation, nearest) in unknown.zip(nearest) {
                if let Some(nearest) = nearest {
                    propose(violation, &nearest);
                }
            }
        }
        status::invalid(violations.found)
    }

    /// Returns a notice if the request has items that the catalogue has.
    fn known_items(&self, candidates: &[RankCandidate]) -> Option<Violation> {
        let with_item = candidates.iter().filter(|candidate| candidate.item.is_some());
        let known: Vec<&RankCandidate> = with_item.filter(|of| self.engine.get_item(&of.id).is_some()).collect();
        let first = known.first()?;
        let description = format!(
            "the catalogue has {} of the items that candidates describe, the first of them `{}`; its own are ranked",
            known.len(),
            convert::shortened(first.id.as_str())
        );
        Some(Violation::new("candidates", description))
    }
}

/// Describes a use of an attribute that has no effect.
fn description(AttributeProblem { used: AttributeUse { name, purpose, .. }, reason }: &AttributeProblem) -> String {
    let kinds = match reason {
        AttributeProblemReason::Unknown { nearest } => {
            let nearest =
                nearest.as_ref().map(|nearest| format!("; the nearest name is `{nearest}`")).unwrap_or_default();
            return format!("no item has the attribute `{name}`, and it is not declared{nearest}");
        }
        AttributeProblemReason::SeveralTexts => {
            return format!("the items have several texts of `attributes.{name}`, which do not sort");
        }
        AttributeProblemReason::OtherKind(kinds) => {
            let names: Vec<&str> = kinds.iter().map(|kind| kind.name()).collect();
            format!("`attributes.{name}` is of the kind {}", names.join(" and "))
        }
    };
    match purpose {
        AttributePurpose::Compare { kind, value } => {
            let (value, kind) = (convert::shortened(value), kind.name());
            format!("{kinds}, and is compared with {value}, of the kind {kind}; no item satisfies the comparison")
        }
        AttributePurpose::Distance => {
            let wanted = AttributeKind::GeoPoint.name();
            format!("{kinds}, and distances are those of the kind {wanted}; no item has a distance")
        }
        AttributePurpose::Sort => format!("{kinds}, which does not sort; use distance(attributes.{name}, …)"),
        AttributePurpose::Count => format!("{kinds}, and facets count the kinds text, number and flag"),
        AttributePurpose::CountRanges => format!("{kinds}, and `bounds` are those of the kind number"),
        AttributePurpose::CountFound => format!("{kinds}, and `value_query` finds values of the kinds text and flag"),
    }
}

/// Adds an attribute to the description of an unknown field, before the list of the fields that exist.
fn propose(violation: &mut Violation, attribute: &str) {
    let hint = match violation.unknown_field.as_deref() == Some(attribute) {
        true => format!("`{attribute}` is an attribute, use `attributes.{attribute}`"),
        false => format!("the nearest attribute is `attributes.{attribute}`"),
    };
    let (problem, fields) = violation.description.split_once("; ").unwrap_or((&violation.description, ""));
    violation.description = format!("{problem}; {hint}; {fields}");
}

/// Says which results have no item because of [`RESULTS_BYTES_MAX`]. `field` requests the items.
fn cut_notice(field: &str, results: &[RankedItem]) -> Violation {
    let with_items = results.iter().take_while(|result| result.item.is_some()).count();
    let limit = RESULTS_BYTES_MAX >> 20;
    let description = format!("results have at most {limit} MiB; results after rank {with_items} have no item");
    Violation::new(field, description)
}

#[tonic::async_trait]
impl RankingService for Services {
    async fn search(&self, request: Request<proto::SearchRequest>) -> Result<Response<proto::SearchResponse>, Status> {
        let response = async {
            let options = request.get_ref().options.as_ref();
            self.check_debug_level(&request, "options.debug_level", options.map_or(0, |of| of.debug_level))?;
            let context = self.call_context(&request, options);
            let mut violations = Violations::default();
            let priority = priority_of(&mut violations, &request);
            let sent = request.into_inner();
            let forms = FilterForms::of(sent.filter_expression.as_ref(), sent.options.as_ref());
            let mut parsed = convert::search(&mut violations, sent, UnixMillis::now());
            parsed.options.priority = priority;
            if let Some(fallback) = &mut parsed.fallback {
                fallback.options.priority = priority;
            }
            let options = &parsed.options;
            self.check_log(&mut violations, "options.consistency_token", options.log_position, options.log);
            let request = RankingRequest::Search(parsed);
            let (answer, envelope) = self.answer(violations, context, forms, request).await?;
            Ok(Response::new(convert::search_response(answer, envelope)))
        };
        guarded(&self.metrics, "Search", response).await
    }

    async fn recommend(
        &self,
        request: Request<proto::RecommendRequest>,
    ) -> Result<Response<proto::RecommendResponse>, Status> {
        let response = async {
            let options = request.get_ref().options.as_ref();
            self.check_debug_level(&request, "options.debug_level", options.map_or(0, |of| of.debug_level))?;
            let context = self.call_context(&request, options);
            let mut violations = Violations::default();
            let priority = priority_of(&mut violations, &request);
            let sent = request.into_inner();
            let forms = FilterForms::of(sent.filter_expression.as_ref(), sent.options.as_ref());
            let mut parsed = convert::recommend(&mut violations, sent, UnixMillis::now());
            parsed.options.priority = priority;
            let options = &parsed.options;
            self.check_log(&mut violations, "options.consistency_token", options.log_position, options.log);
            let request = RankingRequest::Recommend(parsed);
            let (answer, envelope) = self.answer(violations, context, forms, request).await?;
            Ok(Response::new(convert::recommend_response(answer, envelope)))
        };
        guarded(&self.metrics, "Recommend", response).await
    }

    async fn rank(&self, request: Request<proto::RankRequest>) -> Result<Response<proto::RankResponse>, Status> {
        let response = async {
            let options = request.get_ref().options.as_ref();
            self.check_debug_level(&request, "options.debug_level", options.map_or(0, |of| of.debug_level))?;
            let context = self.call_context(&request, options);
            let mut violations = Violations::default();
            let priority = priority_of(&mut violations, &request);
            let sent = request.into_inner();
            let forms = FilterForms::of(None, sent.options.as_ref());
            let mut parsed = convert::rank(&mut violations, &sent, UnixMillis::now());
            parsed.options.priority = priority;
            if sent.candidates.iter().any(|candidate| !candidate.features.is_empty()) {
                let declared = self.engine.request_features(&parsed.viewer.user);
                convert::check_features(&mut violations, &sent.candidates, &declared);
            }
            violations.notices.extend(self.known_items(&parsed.candidates));
            let options = &parsed.options;
            self.check_log(&mut violations, "options.consistency_token", options.log_position, options.log);
            let request = RankingRequest::Rank(parsed);
            let (answer, envelope) = self.answer(violations, context, forms, request).await?;
            Ok(Response::new(convert::rank_response(answer, envelope)))
        };
        guarded(&self.metrics, "Rank", response).await
    }

    async fn suggest(
        &self,
        request: Request<proto::SuggestRequest>,
    ) -> Result<Response<proto::SuggestResponse>, Status> {
        let response = async {
            self.check_debug_level(&request, "debug_level", request.get_ref().debug_level)?;
            let context = self.call_context(&request, None);
            let mut violations = Violations::default();
            let priority = priority_of(&mut violations, &request);
            let sent = request.into_inner();
            let forms = FilterForms::of(sent.filter_expression.as_ref(), None);
            let mut parsed = convert::suggest(&mut violations, sent);
            parsed.options.priority = priority;
            let options = &parsed.options;
            self.check_log(&mut violations, "consistency_token", options.log_position, options.log);
            if !violations.is_empty() {
                return Err(self.refused(violations, context.deadline).await);
            }
            let unknown = |error| match error {
                EngineError::ServingConfig(unknown) => status::unknown_serving_config("serving_config", unknown),
                error => status::of_request(error, &forms),
            };
            let uses = parsed.attribute_uses();
            let answer = self.engine.suggest(parsed, context.deadline).await.map_err(unknown)?;
            let mut notices = violations.notices;
            notices.extend(self.attribute_notices(uses, |field| forms.path(field), context.deadline).await);
            notices.extend(answer.is_cut.then(|| cut_notice("read_mask", &answer.products)));
            let consistency_token = self.consistency_token(answer.info.log_position);
            let envelope = Envelope { request_id: context.request_id, consistency_token, notices };
            Ok(Response::new(convert::suggest_response(answer, envelope)))
        };
        guarded(&self.metrics, "Suggest", response).await
    }
}

/// Refuses a list that is empty or longer than `limit`.
pub(crate) fn list_size(field: &str, count: usize, limit: usize) -> Result<(), Status> {
    if (1..=limit).contains(&count) {
        return Ok(());
    }
    Err(list_size_refused(field, count, limit))
}

/// Returns the status of a list with too many entries or none.
pub(super) fn list_size_refused(field: &str, count: impl Display, limit: usize) -> Status {
    let description = format!("has {count} entries; it must have 1 to {limit}");
    status::invalid(vec![Violation { limit: Some(limit), ..Violation::new(field, description) }])
}

/// Converts the violations of the entries of a batch, within the limits of a response.
#[derive(Default)]
pub(crate) struct BatchViolations {
    bytes: usize,
}

impl BatchViolations {
    /// Greatest number of violations of one entry.
    const PER_ENTRY_MAX: usize = 10;
    /// Greatest size of the violations of all entries in bytes. With 10,000 ids, a response has less than 4 MiB.
    const BYTES_MAX: usize = 2 << 20;

    /// Returns the violations of the next entry that fit.
    pub(crate) fn of_entry(&mut self, violations: Vec<Violation>) -> Vec<proto::FieldViolation> {
        let converted = violations
            .into_iter()
            .take(Self::PER_ENTRY_MAX)
            .map(|violation| proto::FieldViolation { field: violation.field, description: violation.description });
        let fits = |violation: &proto::FieldViolation| {
            self.bytes += violation.encoded_len();
            self.bytes <= Self::BYTES_MAX
        };
        converted.take_while(fits).collect()
    }
}

/// Returns the id of an entry for its result, truncated if it is longer than an id may be.
pub(crate) fn echoed_id(id: &str) -> String {
    if id.len() <= ID_BYTES_MAX { id.to_owned() } else { convert::shortened(id) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::RESPONSE_BYTES_MAX;

    #[test]
    fn the_results_of_the_largest_batch_fit_into_a_response() {
        let mut violations = BatchViolations::default();
        let violation = |n| Violation::new(format_args!("events[9999].lines[{n}].item_id"), "x".repeat(500));
        let of_entry = |violations: &mut BatchViolations| proto::EventResult {
            status: proto::EventStatus::Rejected.into(),
            event_id: echoed_id(&"e".repeat(ID_BYTES_MAX)),
            violations: violations.of_entry((0..20).map(violation).collect()),
            warnings: violations.of_entry((0..20).map(violation).collect()),
        };
        let results: Vec<_> = (0..10_000).map(|_| of_entry(&mut violations)).collect();
        assert_eq!(results[0].violations.len(), BatchViolations::PER_ENTRY_MAX);
        let response = proto::WriteEventsResponse {
            results,
            consistency_token: convert::consistency_token(LogPosition { log: 7, position: u64::MAX }),
        };
        let bytes = response.encoded_len();
        assert!((2 << 20..RESPONSE_BYTES_MAX).contains(&bytes), "{bytes} bytes");
    }

    #[test]
    fn an_id_of_megabytes_is_not_returned() {
        assert_eq!(echoed_id("a-1"), "a-1");
        assert!(echoed_id(&"é".repeat(1_000_000)).len() <= ID_BYTES_MAX);
    }
}
