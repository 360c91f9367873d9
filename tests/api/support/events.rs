//! Events of signed-in users.
use lodestone_core::{
    ids::{EventId, ItemId, UserId},
    units::{Quantity, UnixMillis},
};
use lodestone_events::{Event, EventKind, EventLine};

/// The time of the first event of a test: 2025-06-15T15:06:40Z, in milliseconds.
pub(crate) const START: i64 = 1_750_000_000_000;

/// Returns an event with one item. A search has the query `query ITEM`.
pub(crate) fn event(id: &str, kind: EventKind, user: &str, item: &str, at_ms: i64) -> Event {
    let user = UserId::signed_in(user).unwrap();
    Event {
        lines: vec![EventLine { item: ItemId::parse(item).unwrap(), quantity: Quantity::ONE, price: None, rank: 0 }],
        query: if kind == EventKind::Search { format!("query {item}") } else { String::new() },
        ..Event::new(EventId::parse(id).unwrap(), kind, user, UnixMillis(at_ms))
    }
}
