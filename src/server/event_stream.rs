//! A stream of events: each message is answered when its events are stored and in effect, in the order of the messages.
use super::{
    client::Client,
    event_service::PendingWrite,
    proto,
    services::{Services, list_size},
    status,
};
use lodestone_engine::EngineError;
use std::{collections::VecDeque, sync::Arc};
use tonic::{Status, Streaming};

/// Events per message of a stream.
pub(super) const EVENTS_MAX: usize = 1000;
/// Messages of a stream that are queued or being stored at the same time. Beyond it no message is read, which is the
/// backpressure to the client.
const WRITES_MAX: usize = 16;

pub(super) struct EventStream {
    services: Services,
    client: Option<Arc<Client>>,
    messages: Streaming<proto::StreamEventsRequest>,
    /// Messages that have arrived.
    message_count: u64,
    /// Whether the client's rate has room for the next message.
    is_paced: bool,
    /// The messages that are not answered yet, the oldest first.
    writes: VecDeque<PendingWrite>,
    counts: proto::EventCounts,
    log_position: u64,
    /// How the client's messages ended. None: more may follow. It is returned after the answers to all messages.
    end: Option<Result<(), Status>>,
}

impl EventStream {
    pub(super) fn new(
        services: Services,
        client: Option<Arc<Client>>,
        messages: Streaming<proto::StreamEventsRequest>,
    ) -> Self {
        Self {
            services,
            client,
            messages,
            message_count: 0,
            // The first message is that of the call, which is counted.
            is_paced: true,
            writes: VecDeque::new(),
            counts: proto::EventCounts::default(),
            log_position: 0,
            end: None,
        }
    }

    /// Reads messages until the oldest one is stored, and returns its response. None: the stream has ended.
    pub(super) async fn step(&mut self) -> Result<Option<proto::StreamEventsResponse>, Status> {
        loop {
            let (may_read, may_answer) =
                (self.end.is_none() && self.writes.len() < WRITES_MAX, !self.writes.is_empty());
            if !may_read && !may_answer {
                return self.end.take().unwrap_or(Ok(())).map(|()| None);
            }
            let oldest = async {
                match self.writes.front_mut() {
                    Some(oldest) => oldest.await,
                    None => std::future::pending().await,
                }
            };
            // It continues where it was when the answer to an earlier message comes first.
            let next = async {
                if let Some(client) = self.client.as_ref().filter(|_| !self.is_paced) {
                    client.pace().await;
                    self.is_paced = true;
                }
                self.messages.message().await
            };
            tokio::select! {
                message = next, if may_read => match self.queue(message).await {
                    Ok(true) => {}
                    Ok(false) => self.end = Some(Ok(())),
                    Err(status) => self.end = Some(Err(status)),
                },
                stored = oldest, if may_answer => {
                    self.writes.pop_front();
                    let stored = stored.unwrap_or_else(|_| Err(EngineError::Internal("storing events panicked".into())));
                    let (results, version) = stored.map_err(status::of)?;
                    return Ok(Some(self.response(results, version)));
                }
            }
        }
    }

    /// Queues the events of a message. False: there is none.
    async fn queue(&mut self, message: Result<Option<proto::StreamEventsRequest>, Status>) -> Result<bool, Status> {
        let Some(message) = message.map_err(|error| status::of_transport(&error, ""))? else { return Ok(false) };
        self.message_count += 1;
        self.is_paced = false;
        if let Some(client) = &self.client {
            if self.message_count > 1 {
                client.count_message(&self.services.metrics);
            }
            client.admit_changes(message.events.len(), &self.services.metrics)?;
        }
        list_size("events", message.events.len(), EVENTS_MAX)?;
        let validated = self.services.validate_events(&message.events).await;
        self.writes.push_back(self.services.queue_write(validated).await.map_err(status::of)?);
        Ok(true)
    }

    fn response(&mut self, results: Vec<proto::EventResult>, version: u64) -> proto::StreamEventsResponse {
        self.log_position = self.log_position.max(version);
        let mut kept = Vec::new();
        for result in results {
            let index = self.counts.event_count;
            self.counts.event_count += 1;
            let status = result.status();
            match status {
                proto::EventStatus::Accepted => self.counts.accepted_count += 1,
                proto::EventStatus::Duplicate => self.counts.duplicate_count += 1,
                proto::EventStatus::Rejected | proto::EventStatus::Unspecified => self.counts.rejected_count += 1,
            }
            if status != proto::EventStatus::Accepted || !result.warnings.is_empty() {
                kept.push(proto::StreamEventResult { index, result: Some(result) });
            }
        }
        proto::StreamEventsResponse {
            counts: Some(self.counts),
            results: kept,
            consistency_token: self.services.consistency_token(self.log_position),
        }
    }
}
