//! EventService: writes events of one message or of a stream of messages.
use super::{
    convert,
    guard::guarded,
    proto::{self, event_service_server::EventService},
    services::{BatchViolations, Services, echoed_id, list_size},
    status,
    violations::{Violation, Violations},
};
use lodestone_core::units::UnixMillis;
use lodestone_engine::{EngineError, WriteOutcome, WriteReport};
use lodestone_events::{Attribution, Event, RepeatedLine};
use prost::Message;
use std::{collections::VecDeque, fmt::Display};
use tokio::task::JoinHandle;
use tonic::{Request, Response, Status, Streaming};

const EVENTS_MAX: usize = 10_000;
/// Events validated before the task yields, so that responses of other requests do not wait for hundreds of events.
const VALIDATED_AT_ONCE: usize = 16;
/// Events per message of a stream.
const STREAM_EVENTS_MAX: usize = 1000;
/// Messages of a stream that are queued or being stored at the same time. Beyond it no message is read, which is the
/// backpressure to the client.
const STREAM_WRITES_MAX: usize = 16;
/// Results in the response to a stream, and the size in bytes at which no further result is added.
const STREAM_RESULTS_MAX: usize = 1000;
const STREAM_RESULTS_BYTES_MAX: usize = 2 << 20;

/// The events of a message before they are stored.
struct ValidatedEvents {
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
            let warning = |repeated: &RepeatedLine| Violation {
                field: format!("events[{index}].lines[{}]", repeated.line),
                description: "an earlier event of this user and order has the item; the line is not counted again"
                    .to_owned(),
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
    async fn validate_events(&self, sent: &[proto::Event]) -> ValidatedEvents {
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
            let parsed = convert::event(&mut violations, path, event, now, ahead_max);
            let mut result = proto::EventResult {
                status: proto::EventStatus::Rejected.into(),
                event_id: echoed_id(&event.event_id),
                violations: validated.details.of_entry(violations.found),
                warnings: Vec::new(),
            };
            if let Some(mut event) = parsed {
                if result.event_id.is_empty() {
                    result.event_id = event.id.to_string();
                }
                let warning = self.check_token(path, &mut event.attribution);
                result.warnings = validated.details.of_entry(warning.into_iter().collect());
                validated.events.push(event);
                validated.indices.push(index);
            }
            validated.results.push(result);
        }
        self.metrics.wrote("rejected", (validated.results.len() - validated.events.len()) as u64);
        validated
    }

    /// Marks an attribution token that this shop did not sign as foreign and returns a warning. The event is kept.
    fn check_token(&self, path: impl Display, attribution: &mut Attribution) -> Option<Violation> {
        let Attribution::Answer(token) = attribution else { return None };
        if self.engine.is_attribution_token(token) {
            return None;
        }
        *attribution = Attribution::Foreign(std::mem::take(token));
        Some(Violation {
            field: format!("{path}.attribution_token"),
            description: "is not a token of this server; the event is stored and excluded from training".to_owned(),
        })
    }
}

#[tonic::async_trait]
impl EventService for Services {
    async fn write_events(
        &self,
        request: Request<proto::WriteEventsRequest>,
    ) -> Result<Response<proto::WriteEventsResponse>, Status> {
        let response = async {
            let sent = request.into_inner().events;
            list_size("events", sent.len(), EVENTS_MAX)?;
            let mut validated = self.validate_events(&sent).await;
            let events = std::mem::take(&mut validated.events);
            let report = self.engine.write_events(events).await.map_err(status::of)?;
            let session_version = report.session_version;
            let results = validated.with_report(report);
            Ok(Response::new(proto::WriteEventsResponse { results, session_version }))
        };
        guarded(&self.metrics, "WriteEvents", response).await
    }

    async fn stream_events(
        &self,
        request: Request<Streaming<proto::StreamEventsRequest>>,
    ) -> Result<Response<proto::StreamEventsResponse>, Status> {
        let response = async {
            let mut stream = request.into_inner();
            let (mut response, mut writes) = (proto::StreamEventsResponse::default(), VecDeque::new());
            while let Some(message) = stream.message().await.map_err(|error| status::of_transport(&error, ""))? {
                list_size("events", message.events.len(), STREAM_EVENTS_MAX)?;
                let validated = self.validate_events(&message.events).await;
                writes.push_back(self.queue_write(validated).await.map_err(status::of)?);
                // Backpressure: the next message is not read before the oldest write has ended.
                if writes.len() >= STREAM_WRITES_MAX {
                    await_oldest(&mut response, &mut writes).await?;
                }
            }
            while !writes.is_empty() {
                await_oldest(&mut response, &mut writes).await?;
            }
            Ok(Response::new(response))
        };
        guarded(&self.metrics, "StreamEvents", response).await
    }
}

type PendingWrite = JoinHandle<Result<(Vec<proto::EventResult>, u64), EngineError>>;

impl Services {
    /// Queues events, in the order of the stream's messages, and waits for space in the queue instead of failing.
    async fn queue_write(&self, mut validated: ValidatedEvents) -> Result<PendingWrite, EngineError> {
        let queued = self.engine.queue_events(std::mem::take(&mut validated.events)).await?;
        let engine = self.engine.clone();
        // A task, so that outcomes are counted even if the client ends the stream.
        Ok(tokio::spawn(async move {
            let report = engine.finish_events(queued).await?;
            let version = report.session_version;
            Ok((validated.with_report(report), version))
        }))
    }
}

/// Waits for the oldest write of a stream and adds its results to the response.
async fn await_oldest(
    response: &mut proto::StreamEventsResponse,
    writes: &mut VecDeque<PendingWrite>,
) -> Result<(), Status> {
    let Some(oldest) = writes.pop_front() else { return Ok(()) };
    let stored = oldest.await.unwrap_or_else(|_| Err(EngineError::Internal("storing events panicked".into())));
    let (results, version) = stored.map_err(status::of)?;
    response.session_version = response.session_version.max(version);
    let mut bytes = response.encoded_len();
    for result in results {
        let index = response.event_count;
        response.event_count += 1;
        match result.status() {
            proto::EventStatus::Accepted => response.accepted_count += 1,
            proto::EventStatus::Duplicate => response.duplicate_count += 1,
            _ => response.rejected_count += 1,
        }
        if result.status() == proto::EventStatus::Accepted && result.warnings.is_empty() {
            continue;
        }
        if response.results.len() < STREAM_RESULTS_MAX && bytes < STREAM_RESULTS_BYTES_MAX {
            bytes += result.encoded_len();
            response.results.push(proto::StreamEventResult { index, result: Some(result) });
        } else {
            response.omitted_result_count += 1;
        }
    }
    Ok(())
}
