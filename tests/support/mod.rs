//! Events for the tests of the log and of the users.
use lodestone_core::{
    ids::{EventId, ItemId, UserId},
    units::UnixMillis,
};
use lodestone_events::{Attribution, Event, EventKind, EventLine};

pub(crate) const START: i64 = 1_750_000_000_000;

/// An event with one item.
pub(crate) fn event(id: &str, kind: EventKind, user: &str, item: &str, at_ms: i64) -> Event {
    Event {
        id: EventId::parse(id).unwrap(),
        kind,
        user: UserId::signed_in(user).unwrap(),
        session: String::new(),
        at: UnixMillis(at_ms),
        lines: vec![EventLine { item: ItemId::parse(item).unwrap(), quantity: 1, price: None, rank: 0 }],
        query: if kind == EventKind::Search { format!("query {item}") } else { String::new() },
        order: String::new(),
        stars: 0,
        coupon: String::new(),
        categories: Vec::new(),
        currency: String::new(),
        attribution: Attribution::None,
    }
}
