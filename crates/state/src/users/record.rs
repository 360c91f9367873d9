//! Encodes histories for checkpoints.
use super::{EVENTS_MAX, History, HistoryEvent, HistoryQuantity, PastQuery, QUERIES_MAX, QUERY_CHARS_MAX};
use lodestone_core::ids::{ItemKey, UserId};
use lodestone_events::EventKind;
use lodestone_loyalty::UserSummary;
use prost::Message;

/// Bytes of one event: item key u32, seconds u32, fraction of the second u8, kind u8, quantity u16.
const EVENT_BYTES: usize = 12;

#[derive(Clone, PartialEq, Message)]
struct UserRecord {
    #[prost(string, tag = "1")]
    user: String,
    #[prost(uint64, tag = "2")]
    position: u64,
    #[prost(bytes = "vec", tag = "3")]
    events: Vec<u8>,
    #[prost(message, repeated, tag = "4")]
    queries: Vec<QueryRecord>,
    #[prost(uint64, tag = "5")]
    created: u64,
    #[prost(uint32, tag = "6")]
    last_s: u32,
    /// See [`UserSummary::to_bytes`].
    #[prost(bytes = "vec", optional, tag = "7")]
    summary: Option<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
struct QueryRecord {
    #[prost(uint32, tag = "1")]
    at_s: u32,
    #[prost(uint32, tag = "2")]
    fraction: u32,
    #[prost(string, tag = "3")]
    text: String,
}

/// Encodes a user's history. Item keys are those of this process.
pub fn encode(user: &UserId, history: &History) -> Vec<u8> {
    let mut events = Vec::with_capacity(history.events.len() * EVENT_BYTES);
    for event in &history.events {
        events.extend_from_slice(&event.item.0.to_le_bytes());
        events.extend_from_slice(&event.at_s.to_le_bytes());
        events.extend_from_slice(&[event.fraction, event.kind as u8]);
        events.extend_from_slice(&event.quantity.0.to_le_bytes());
    }
    let query = |query: &PastQuery| QueryRecord {
        at_s: query.at_s,
        fraction: query.fraction.into(),
        text: query.text.to_string(),
    };
    let queries = history.queries.iter().map(query).collect();
    let &History { position, created, last_s, .. } = history;
    let summary = history.summary.as_ref().map(|summary| summary.to_bytes());
    UserRecord { user: user.as_str().to_owned(), position, events, queries, created, last_s, summary }.encode_to_vec()
}

/// Decodes the output of [`encode`]; `key` maps a stored item key to the key of this process.
pub fn decode(bytes: &[u8], key: impl Fn(ItemKey) -> Option<ItemKey>) -> Result<(UserId, History), &'static str> {
    let mut record = UserRecord::decode(bytes).map_err(|_| "a user record is not a protobuf message")?;
    let user = UserId::from_key(&record.user).ok_or("a user id is invalid")?;
    if record.events.len() > EVENTS_MAX * EVENT_BYTES || record.queries.len() > QUERIES_MAX {
        return Err("a user has more events or searches than the limit");
    }
    let event = |bytes: &[u8]| -> Result<HistoryEvent, &'static str> {
        let number = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        Ok(HistoryEvent {
            item: key(ItemKey(number(0))).ok_or("an event's item is unknown")?,
            at_s: number(4),
            fraction: bytes[8],
            kind: EventKind::from_number(bytes[9].into()).ok_or("an event's type is unknown")?,
            quantity: HistoryQuantity(u16::from_le_bytes([bytes[10], bytes[11]])),
        })
    };
    let query = |query: QueryRecord| -> Result<PastQuery, &'static str> {
        match query.text.chars().nth(QUERY_CHARS_MAX) {
            None => Ok(PastQuery { at_s: query.at_s, fraction: query.fraction as u8, text: query.text.into() }),
            Some(_) => Err("a search is longer than the limit"),
        }
    };
    let events = record.events.chunks_exact(EVENT_BYTES).map(event).collect::<Result<_, &'static str>>()?;
    let queries = std::mem::take(&mut record.queries).into_iter().map(query).collect::<Result<_, &'static str>>()?;
    let summary = match &record.summary {
        None => None,
        Some(bytes) => Some(Box::new(UserSummary::from_bytes(bytes).ok_or("a user's summary cannot be read")?)),
    };
    let UserRecord { position, created, last_s, .. } = record;
    Ok((user, History { events, queries, position, created, last_s, summary }))
}
