//! What shoppers do, one message or a stream of them.
use super::{
    convert,
    guard::guarded,
    proto::{self, event_service_server::EventService},
    services::{Services, list_size, to_proto},
    status,
    violations::Violations,
};
use lodestone_core::units::UnixMillis;
use lodestone_engine::{EngineError, WriteOutcome};
use lodestone_events::{Attribution, Event};
use std::{collections::VecDeque, fmt::Display};
use tokio::task::JoinHandle;
use tonic::{Request, Response, Status, Streaming};

const EVENTS_MAX: usize = 10_000;
/// Events of a message that are checked at a time. Between them other requests have the thread: an answer that is ready shall not
/// wait for hundreds of events.
const CHECKED_AT_ONCE: usize = 16;
/// Events of one message of a stream.
const STREAM_EVENTS_MAX: usize = 1000;
/// Messages of a stream that are being stored. Until one is done no further message is read, and the client must wait.
const STREAM_WRITES_MAX: usize = 16;
/// Results that a stream's answer lists, and violations of each.
const STREAM_RESULTS_MAX: usize = 1000;
const STREAM_VIOLATIONS_MAX: usize = 10;

/// Events of a message: what is known before they are stored.
struct Checked {
    /// One for each event; those that may be stored are REJECTED still.
    results: Vec<proto::EventResult>,
    events: Vec<Event>,
    /// Where the results of `events` are.
    places: Vec<usize>,
}

impl Checked {
    fn with_outcomes(mut self, outcomes: Vec<WriteOutcome>) -> Vec<proto::EventResult> {
        for (place, outcome) in self.places.into_iter().zip(outcomes) {
            self.results[place].status = match outcome {
                WriteOutcome::Duplicate => proto::EventStatus::Duplicate,
                _ => proto::EventStatus::Accepted,
            }
            .into();
        }
        self.results
    }
}

impl Services {
    async fn check_events(&self, sent: &[proto::Event]) -> Checked {
        let now = UnixMillis::now();
        let ahead_max = Some(self.config.event_ahead_max);
        let mut checked = Checked { results: Vec::with_capacity(sent.len()), events: Vec::new(), places: Vec::new() };
        for (index, event) in sent.iter().enumerate() {
            if index > 0 && index.is_multiple_of(CHECKED_AT_ONCE) {
                tokio::task::yield_now().await;
            }
            let path = format_args!("events[{index}]");
            let mut violations = Violations::default();
            let parsed = convert::event(&mut violations, path, event, now, ahead_max);
            let mut result = proto::EventResult {
                status: proto::EventStatus::Rejected.into(),
                event_id: event.event_id.clone(),
                violations: to_proto(violations.found),
                warnings: Vec::new(),
            };
            if let Some(mut event) = parsed {
                if result.event_id.is_empty() {
                    result.event_id = event.id.to_string();
                }
                result.warnings.extend(self.check_token(path, &mut event.attribution));
                checked.events.push(event);
                checked.places.push(index);
            }
            checked.results.push(result);
        }
        self.metrics.wrote("rejected", (checked.results.len() - checked.events.len()) as u64);
        checked
    }

    /// A token that is not ours keeps the event and is told.
    fn check_token(&self, path: impl Display, attribution: &mut Attribution) -> Option<proto::FieldViolation> {
        let Attribution::Answer(token) = attribution else { return None };
        if self.engine.is_attribution_token(token) {
            return None;
        }
        *attribution = Attribution::Foreign(std::mem::take(token));
        Some(proto::FieldViolation {
            field: format!("{path}.attribution_token"),
            description: "is not a token of this server; the event is kept and not learned from".to_owned(),
        })
    }
}

#[tonic::async_trait]
impl EventService for Services {
    async fn write_events(
        &self,
        request: Request<proto::WriteEventsRequest>,
    ) -> Result<Response<proto::WriteEventsResponse>, Status> {
        let answer = async {
            let sent = request.into_inner().events;
            list_size("events", sent.len(), EVENTS_MAX)?;
            let mut checked = self.check_events(&sent).await;
            let events = std::mem::take(&mut checked.events);
            let (outcomes, session_version) = self.engine.write_events(events).await.map_err(status::of)?;
            let results = checked.with_outcomes(outcomes);
            Ok(Response::new(proto::WriteEventsResponse { results, session_version }))
        };
        guarded(&self.metrics, "WriteEvents", answer).await
    }

    async fn stream_events(
        &self,
        request: Request<Streaming<proto::StreamEventsRequest>>,
    ) -> Result<Response<proto::StreamEventsResponse>, Status> {
        let answer = async {
            let mut stream = request.into_inner();
            let (mut answer, mut writing) = (proto::StreamEventsResponse::default(), VecDeque::new());
            while let Some(message) = stream.message().await? {
                list_size("events", message.events.len(), STREAM_EVENTS_MAX)?;
                writing.push_back(self.store(self.check_events(&message.events).await));
                // Not reading on is what makes the client wait.
                if writing.len() >= STREAM_WRITES_MAX {
                    note_oldest(&mut answer, &mut writing).await?;
                }
            }
            while !writing.is_empty() {
                note_oldest(&mut answer, &mut writing).await?;
            }
            Ok(Response::new(answer))
        };
        guarded(&self.metrics, "StreamEvents", answer).await
    }
}

type Storing = JoinHandle<Result<(Vec<proto::EventResult>, u64), EngineError>>;

impl Services {
    /// Begins to store events, with room to wait for.
    fn store(&self, mut checked: Checked) -> Storing {
        let engine = self.engine.clone();
        tokio::spawn(async move {
            let events = std::mem::take(&mut checked.events);
            let (outcomes, version) = engine.write_events_when_there_is_room(events).await?;
            Ok((checked.with_outcomes(outcomes), version))
        })
    }
}

/// Waits for the oldest message of a stream and counts what became of its events.
async fn note_oldest(answer: &mut proto::StreamEventsResponse, writing: &mut VecDeque<Storing>) -> Result<(), Status> {
    let Some(oldest) = writing.pop_front() else { return Ok(()) };
    let stored = oldest.await.unwrap_or_else(|_| Err(EngineError::Internal("storing events panicked".into())));
    let (results, version) = stored.map_err(status::of)?;
    answer.session_version = answer.session_version.max(version);
    for mut result in results {
        let index = answer.event_count;
        answer.event_count += 1;
        match result.status() {
            proto::EventStatus::Accepted => answer.accepted_count += 1,
            proto::EventStatus::Duplicate => answer.duplicate_count += 1,
            _ => answer.rejected_count += 1,
        }
        if result.status() == proto::EventStatus::Accepted && result.warnings.is_empty() {
            continue;
        }
        if answer.results.len() < STREAM_RESULTS_MAX {
            result.violations.truncate(STREAM_VIOLATIONS_MAX);
            answer.results.push(proto::StreamEventResult { index, result: Some(result) });
        } else {
            answer.omitted_result_count += 1;
        }
    }
    Ok(())
}
