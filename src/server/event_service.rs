//! EventService: writes events of one message or of a stream of messages.
use super::{
    client::client_of,
    convert,
    event_stream::EventStream,
    guard::{guarded, guarded_stream},
    proto::{self, event_service_server::EventService},
    services::{BatchViolations, Services, echoed_id, list_size},
    status,
    violations::{Violation, Violations},
};
use futures_util::stream::BoxStream;
use lodestone_core::{text::normalize, units::UnixMillis};
use lodestone_engine::{EngineError, WriteOutcome, WriteReport};
use lodestone_events::{Attribution, Event, EventKind, RepeatedLine};
use lodestone_telemetry::call;
use std::fmt::Display;
use tokio::task::JoinHandle;
use tonic::{Request, Response, Status, Streaming};

pub(super) const EVENTS_MAX: usize = 10_000;
/// Events validated before the task yields, so that responses of other requests do not wait for hundreds of events.
const VALIDATED_AT_ONCE: usize = 16;

/// The events of a message before they are stored.
pub(super) struct ValidatedEvents {
    /// A result per event. Those of valid events are REJECTED until their outcome is known.
    results: Vec<proto::EventResult>,
    /// The valid events.
    events: Vec<Event>,
    /// Indices of the results of `events`.
    indices: Vec<usize>,
    details: BatchViolations,
}

impl ValidatedEvents {
    fn with_report(mut self, report: WriteReport) -> Vec<proto::EventResult> {
        for lines in report.repeated_lines.chunk_by(|a, b| a.change == b.change) {
            let index = self.indices[lines[0].change];
            let warning = |repeated: &RepeatedLine| {
                Violation::new(
                    format_args!("events[{index}].lines[{}]", repeated.line),
                    "an earlier event of this user and order has the item; the line is not counted again",
                )
            };
            let warnings = self.details.of_entry(lines.iter().map(warning).collect());
            self.results[index].warnings.extend(warnings);
        }
        for (index, outcome) in self.indices.into_iter().zip(report.outcomes) {
            self.results[index].status = match outcome {
                WriteOutcome::Duplicate => proto::EventStatus::Duplicate,
                _ => proto::EventStatus::Accepted,
            }
            .into();
        }
        self.results
    }
}

impl Services {
    pub(super) async fn validate_events(&self, sent: &[proto::Event]) -> ValidatedEvents {
        let now = UnixMillis::now();
        let ahead_max = Some(self.config.event_ahead_max);
        let mut validated = ValidatedEvents {
            results: Vec::with_capacity(sent.len()),
            events: Vec::new(),
            indices: Vec::new(),
            details: BatchViolations::default(),
        };
        for (index, event) in sent.iter().enumerate() {
            if index > 0 && index.is_multiple_of(VALIDATED_AT_ONCE) {
                tokio::task::yield_now().await;
            }
            let path = format_args!("events[{index}]");
            let mut violations = Violations::default();
            let mut parsed = convert::event(&mut violations, path, event, now, ahead_max);
            let mut warnings = Vec::new();
            if let Some(event) = &mut parsed {
                warnings.extend(self.check_token(path, &mut event.attribution));
                warnings.extend(self.check_completion(&mut violations, path, event));
            }
            let parsed = parsed.filter(|_| violations.is_empty());
            let mut result = proto::EventResult {
                status: proto::EventStatus::Rejected.into(),
                event_id: echoed_id(&event.event_id),
                violations: validated.details.of_entry(violations.found),
                warnings: Vec::new(),
            };
            if let Some(mut event) = parsed {
                warnings.extend(self.check_items(path, &mut event));
                warnings.extend(self.check_coupon(path, &event));
                if result.event_id.is_empty() {
                    result.event_id = event.id.to_string();
                }
                result.warnings = validated.details.of_entry(warnings);
                validated.events.push(event);
                validated.indices.push(index);
            }
            validated.results.push(result);
        }
        self.metrics.wrote("rejected", (validated.results.len() - validated.events.len()) as u64);
        validated
    }

    /// Sets the currency of an event that has prices and names none to that of its items. Returns warnings about items
    /// that the catalogue does not have, and about a purchase or refund whose values have no currency. The event is kept.
    fn check_items(&self, path: impl Display, event: &mut Event) -> Vec<Violation> {
        let items = self.engine.get_items(event.lines.iter().map(|line| &line.item));
        let lines = event.lines.iter().zip(&items).enumerate();
        let unknown = lines.filter(|(_, (_, item))| item.is_none()).map(|(index, (line, _))| {
            let description = format!("is `{}`, which the catalogue does not have; the event is stored", line.item);
            Violation::new(format_args!("{path}.lines[{index}].item_id"), description)
        });
        let mut warnings: Vec<Violation> = unknown.collect();
        if !warnings.is_empty() {
            self.metrics.unknown_event_items(warnings.len() as u64);
        }
        if !event.currency.is_empty() || event.lines.iter().all(|line| line.price.is_none()) {
            return warnings;
        }
        let priced = event.lines.iter().zip(&items).filter(|(line, _)| line.price.is_some());
        let mut currencies: Vec<&str> =
            priced.filter_map(|(_, item)| item.as_deref()).map(|item| &*item.currency).collect();
        currencies.retain(|currency| !currency.is_empty());
        currencies.sort_unstable();
        currencies.dedup();
        let problem = match currencies[..] {
            [currency] => {
                event.currency = currency.to_owned();
                return warnings;
            }
            [] => "no item of the event has one".to_owned(),
            _ => format!("its items have {}", currencies.join(" and ")),
        };
        if matches!(event.kind, EventKind::Purchase | EventKind::Refund) {
            self.metrics.event_without_currency();
            let description = format!("is empty, and {problem}; the values of the event are in no known currency");
            warnings.push(Violation::new(format_args!("{path}.currency_code"), description));
        }
        warnings
    }

    /// Returns a warning about the coupon of an incentive that counts for no campaign. The event is kept.
    fn check_coupon(&self, path: impl Display, event: &Event) -> Option<Violation> {
        let reason = self.engine.uncounted_coupon(event)?;
        let coupon = convert::shortened(&event.coupon);
        let description = format!("is `{coupon}`: {reason}; the event is stored and counts for no campaign");
        Some(Violation::new(format_args!("{path}.coupon_id"), description))
    }

    /// Marks an attribution token that this shop did not sign as foreign and returns a warning. The event is kept.
    fn check_token(&self, path: impl Display, attribution: &mut Attribution) -> Option<Violation> {
        let Attribution::Answer(token) = attribution else { return None };
        if self.engine.attributed_answer(token).is_some() {
            return None;
        }
        *attribution = Attribution::Foreign(std::mem::take(token));
        let description = "is not a token of this server; the event is stored and excluded from training";
        Some(Violation::new(format_args!("{path}.attribution_token"), description))
    }
}

impl Services {
    /// Replaces the id of the completion that an event accepts by the completion's text. Returns a warning about an id
    /// that this shop did not sign, which is removed. A completion of another answer, or of another text than the query,
    /// is a violation.
    fn check_completion(
        &self,
        violations: &mut Violations,
        path: impl Display,
        event: &mut Event,
    ) -> Option<Violation> {
        let id = std::mem::take(&mut event.completion);
        if id.is_empty() {
            return None;
        }
        let field = format!("{path}.completion_id");
        let Some((answer, text)) = self.engine.completion(&id) else {
            let description = "is not an id of this server; the event is stored and accepts no completion";
            return Some(Violation::new(field, description));
        };
        let attributed = match &event.attribution {
            Attribution::Answer(token) => self.engine.attributed_answer(token),
            Attribution::None | Attribution::Foreign(_) => None,
        };
        if attributed != Some(answer) {
            violations.add(&field, "is that of another answer than attribution_token");
        }
        if event.kind == EventKind::Search && normalize(&event.query) != normalize(&text) {
            let (text, query) = (convert::shortened(&text), convert::shortened(&event.query));
            violations.add(&field, format!("is that of `{text}`, and the query is `{query}`; send the accepted text"));
        }
        event.completion = text;
        None
    }
}

#[tonic::async_trait]
impl EventService for Services {
    type StreamEventsStream = BoxStream<'static, Result<proto::StreamEventsResponse, Status>>;

    async fn write_events(
        &self,
        request: Request<proto::WriteEventsRequest>,
    ) -> Result<Response<proto::WriteEventsResponse>, Status> {
        let response = async {
            self.admit_changes(&request, request.get_ref().events.len())?;
            let sent = request.into_inner().events;
            list_size("events", sent.len(), EVENTS_MAX)?;
            let mut validated = self.validate_events(&sent).await;
            let events = std::mem::take(&mut validated.events);
            let report = self.engine.write_events(events).await.map_err(status::of)?;
            let log_position = report.log_position;
            let results = validated.with_report(report);
            Ok(Response::new(proto::WriteEventsResponse {
                results,
                consistency_token: self.consistency_token(log_position),
            }))
        };
        guarded(&self.metrics, "WriteEvents", response).await
    }

    async fn stream_events(
        &self,
        request: Request<Streaming<proto::StreamEventsRequest>>,
    ) -> Result<Response<Self::StreamEventsStream>, Status> {
        let client = client_of(&request);
        let stream = EventStream::new(self.clone(), client, request.into_inner());
        Ok(guarded_stream(&self.metrics, "StreamEvents", stream, |stream| Box::pin(stream.step())))
    }
}

/// Events of a message that are being stored.
pub(super) type PendingWrite = JoinHandle<Result<(Vec<proto::EventResult>, u64), EngineError>>;

impl Services {
    /// Queues events, in the order of the stream's messages, and waits for space in the queue instead of failing.
    pub(super) async fn queue_write(&self, mut validated: ValidatedEvents) -> Result<PendingWrite, EngineError> {
        let queued = self.engine.queue_events(std::mem::take(&mut validated.events)).await?;
        let engine = self.engine.clone();
        // A task, so that outcomes are counted even if the client ends the stream.
        Ok(call::spawn(async move {
            let report = engine.finish_events(queued).await?;
            let version = report.log_position;
            Ok((validated.with_report(report), version))
        }))
    }
}
