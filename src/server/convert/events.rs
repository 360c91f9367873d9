//! Validates and converts events.
use super::{TEXT_CHARS_MAX, currency, items, viewer::viewer};
use crate::server::{proto, violations::Violations};
use lodestone_core::{
    ids::{EventId, ItemId},
    units::{Quantity, UnixMillis},
};
use lodestone_events::{Attribution, Event, EventKind, EventLine};
use std::{
    fmt::{self, Display},
    time::Duration,
};

const LINES_MAX: usize = 1000;
const COMPLETION_ID_BYTES_MAX: usize = 8000;
/// 1990-01-01.
const EARLIEST_MS: i64 = 631_152_000_000;

/// Converts an event. Returns None if there are violations. The attribution token and the completion id are copied; the
/// caller verifies their signatures. `ahead_max`: the greatest time by which the event may be ahead of `now`; None for an
/// event that is not stored.
pub(crate) fn event(
    violations: &mut Violations,
    path: impl Display,
    event: &proto::Event,
    now: UnixMillis,
    ahead_max: Option<Duration>,
) -> Option<Event> {
    let before = violations.found.len();
    let path = &path;
    let field = |name: &'static str| fmt::from_fn(move |f| write!(f, "{path}.{name}"));
    let id = match event.event_id.as_str() {
        "" => EventId::parse(&uuid::Uuid::now_v7().to_string()).ok(),
        id => violations.keep(field("event_id"), EventId::parse(id)),
    };
    let kind = EventKind::from_number(event.r#type);
    if kind.is_none() {
        violations.add(field("type"), format!("{} is not an EventType", event.r#type));
    }
    let viewer = viewer(violations, field("viewer"), event.viewer.as_ref());
    let at = time(violations, field("occurred_time"), event.occurred_time.as_ref(), now, ahead_max);
    let lines = lines(violations, path, &event.lines);
    if let Some(kind) = kind {
        check_kind(violations, path, kind, event);
    }
    violations.characters(field("query"), &event.query, TEXT_CHARS_MAX);
    for (name, text) in [("order_id", &event.order_id), ("coupon_id", &event.coupon_id)] {
        if text.len() > 128 {
            violations.add(field(name), format!("has {} bytes; the limit is 128", text.len()));
        }
    }
    if event.attribution_token.len() > 1000 {
        let description = format!("has {} bytes; the limit is 1,000", event.attribution_token.len());
        violations.add(field("attribution_token"), description);
    }
    if !event.completion_id.is_empty() {
        check_completion(violations, path, kind, event, ahead_max.is_some());
    }
    let categories = items::categories(violations, field("categories"), &event.categories);
    let currency = currency(violations, field("currency_code"), &event.currency_code);
    if violations.found.len() > before {
        return None;
    }
    Some(Event {
        id: id?,
        kind: kind?,
        user: viewer.user,
        session: viewer.session,
        context: viewer.context,
        at,
        lines,
        query: event.query.clone(),
        order: event.order_id.clone(),
        stars: event.stars as u8,
        coupon: event.coupon_id.clone(),
        categories,
        currency,
        attribution: match event.attribution_token.as_str() {
            "" => Attribution::None,
            token => Attribution::Answer(token.to_owned()),
        },
        completion: event.completion_id.clone(),
    })
}

/// Validates a time; `now` if it is absent. `ahead_max`: the greatest time by which it may be ahead of `now`.
pub(super) fn time(
    violations: &mut Violations,
    field: impl Display,
    sent: Option<&prost_types::Timestamp>,
    now: UnixMillis,
    ahead_max: Option<Duration>,
) -> UnixMillis {
    let Some(sent) = sent else { return now };
    let at = sent.seconds.saturating_mul(1000).saturating_add(i64::from(sent.nanos) / 1_000_000);
    if let Some(max) = ahead_max.filter(|max| at.saturating_sub(now.0) > max.as_millis() as i64) {
        let seconds = max.as_secs();
        let description = format!("is {}, more than {seconds} s ahead of the server's {now}", UnixMillis(at));
        violations.add(&field, description);
    }
    if at < EARLIEST_MS {
        violations.add(&field, format!("is {}, before 1990", UnixMillis(at)));
    }
    nanos(violations, field, sent);
    UnixMillis(at)
}

/// Checks the fraction of a second of a time.
pub(super) fn nanos(violations: &mut Violations, field: impl Display, sent: &prost_types::Timestamp) {
    if !(0..1_000_000_000).contains(&sent.nanos) {
        violations.add(field, format!("has {} nanos; they must be within 0 and 999,999,999", sent.nanos));
    }
}

fn lines(violations: &mut Violations, path: impl Display, sent: &[proto::EventLine]) -> Vec<EventLine> {
    let path = &path;
    violations.count(format_args!("{path}.lines"), sent.len(), LINES_MAX);
    let mut lines = Vec::with_capacity(sent.len().min(LINES_MAX));
    for (index, line) in sent.iter().take(LINES_MAX).enumerate() {
        let field = |name: &'static str| fmt::from_fn(move |f| write!(f, "{path}.lines[{index}].{name}"));
        let item = violations.keep(field("item_id"), ItemId::parse(&line.item_id));
        let quantity = if line.quantity == 0.0 { Some(Quantity::ONE) } else { Quantity::from_units(line.quantity) };
        if quantity.is_none() {
            let max = Quantity::UNITS_MAX;
            let description = format!("is {}; it must be within 0.001 and {max}, or 0 for one piece", line.quantity);
            violations.add(field("quantity"), description);
        }
        if line.rank < 0 {
            violations.add(field("rank"), format!("is {}; it must be at least 1, or 0 if it is not known", line.rank));
        }
        let price = items::price(violations, field("price_micros"), line.price_micros);
        lines.extend(item.map(|item| EventLine {
            item,
            quantity: quantity.unwrap_or(Quantity::ONE),
            price,
            rank: line.rank.max(0) as u32,
        }));
    }
    lines
}

/// Validates the fields of an event that accepts a completion.
fn check_completion(
    violations: &mut Violations,
    path: impl Display,
    kind: Option<EventKind>,
    event: &proto::Event,
    is_stored: bool,
) {
    let field = &format!("{path}.completion_id");
    let bytes = event.completion_id.len();
    if bytes > COMPLETION_ID_BYTES_MAX {
        violations.add(field, format!("has {bytes} bytes; the limit is {COMPLETION_ID_BYTES_MAX}"));
    }
    if let Some(kind) = kind.filter(|kind| !matches!(kind, EventKind::Search | EventKind::Click)) {
        violations.add(field, format!("must be empty for `{}`; a search or click accepts a completion", kind.name()));
    }
    if event.attribution_token.is_empty() {
        violations.add(field, "needs the attribution_token of its Suggest");
    }
    if !is_stored {
        violations.add(field, "must be empty, because a context event is not counted");
    }
}

/// Validates the fields that an event type requires or forbids.
fn check_kind(violations: &mut Violations, path: impl Display, kind: EventKind, event: &proto::Event) {
    let is_acceptance = kind == EventKind::Click && !event.completion_id.is_empty();
    if kind.needs_items() && event.lines.is_empty() && !is_acceptance {
        violations.add(format_args!("{path}.lines"), format!("is empty; `{}` requires at least one item", kind.name()));
    }
    if kind == EventKind::Search && event.query.trim().is_empty() {
        violations.add(format_args!("{path}.query"), "is empty; `search` requires one");
    }
    let is_of_coupon = matches!(kind, EventKind::IncentiveShown | EventKind::IncentiveRedeemed);
    if is_of_coupon && event.coupon_id.trim().is_empty() {
        let problem = format!("is empty; `{}` requires one, because it counts for the coupon's decision", kind.name());
        violations.add(format_args!("{path}.coupon_id"), problem);
    }
    match kind {
        EventKind::Review if !(1..=5).contains(&event.stars) => {
            violations.add(
                format_args!("{path}.stars"),
                format!("is {}; it must be within 1 and 5 for a review", event.stars),
            );
        }
        EventKind::Review => {}
        _ if event.stars != 0 => {
            violations.add(
                format_args!("{path}.stars"),
                format!("is {}; it must be 0, because only a review has stars", event.stars),
            );
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent() -> proto::Event {
        proto::Event {
            event_id: "e".into(),
            r#type: EventKind::View as i32,
            viewer: Some(proto::Viewer { user_id: "u".into(), ..Default::default() }),
            lines: vec![proto::EventLine { item_id: "a".into(), ..Default::default() }],
            ..Default::default()
        }
    }

    fn check(event: proto::Event) -> Vec<String> {
        let mut violations = Violations::default();
        let now = UnixMillis(1_700_000_000_000);
        let parsed = super::event(&mut violations, "events[0]", &event, now, Some(Duration::from_secs(300)));
        assert_eq!(parsed.is_some(), violations.is_empty());
        violations.found.into_iter().map(|violation| violation.field).collect()
    }

    #[test]
    fn a_plain_event_is_valid() {
        assert!(check(sent()).is_empty());
    }

    #[test]
    fn next_year_and_negative_quantities_are_refused_by_field() {
        let next_year = prost_types::Timestamp { seconds: 1_700_000_000 + 365 * 86_400, nanos: 0 };
        let lines = vec![proto::EventLine { item_id: "a".into(), quantity: -2.0, ..Default::default() }];
        let fields = check(proto::Event { occurred_time: Some(next_year), lines, ..sent() });
        assert_eq!(fields, ["events[0].occurred_time", "events[0].lines[0].quantity"]);
    }

    #[test]
    fn quantities_of_weights_are_kept_and_impossible_ones_refused() {
        let parsed = |quantity: f64| {
            let lines = vec![proto::EventLine { item_id: "a".into(), quantity, ..Default::default() }];
            let mut violations = Violations::default();
            let event = proto::Event { lines, ..sent() };
            let event = super::event(&mut violations, "events[0]", &event, UnixMillis(1_700_000_000_000), None);
            event.map(|event| event.lines[0].quantity.units()).ok_or(violations.found.len())
        };
        for (quantity, kept) in [(0.345, 0.345), (1.9, 1.9), (0.0, 1.0), (1e6, 1e6)] {
            assert_eq!(parsed(quantity), Ok(kept));
        }
        for impossible in [-1.0, 0.0001, 1_000_001.0, f64::NAN, f64::INFINITY] {
            assert_eq!(parsed(impossible), Err(1), "{impossible}");
        }
    }

    #[test]
    fn ids_of_white_space_are_refused() {
        let lines = vec![proto::EventLine { item_id: "  ".into(), ..Default::default() }];
        let viewer = Some(proto::Viewer { user_id: "\u{a0}".into(), ..Default::default() });
        assert_eq!(check(proto::Event { lines, viewer, ..sent() }).len(), 2);
    }

    #[test]
    fn required_and_forbidden_fields_of_event_types_are_checked() {
        assert_eq!(check(proto::Event { lines: vec![], ..sent() }), ["events[0].lines"]);
        let search = proto::Event { r#type: EventKind::Search as i32, lines: vec![], ..sent() };
        assert_eq!(check(search), ["events[0].query"]);
        assert_eq!(check(proto::Event { stars: 3, ..sent() }), ["events[0].stars"]);
        let accepted = |kind: EventKind, attribution_token: &str| proto::Event {
            r#type: kind as i32,
            lines: vec![],
            completion_id: "id".into(),
            attribution_token: attribution_token.into(),
            ..sent()
        };
        assert!(check(accepted(EventKind::Click, "token")).is_empty());
        assert_eq!(check(accepted(EventKind::Click, "")), ["events[0].completion_id"]);
        assert_eq!(check(accepted(EventKind::CategoryView, "token")), ["events[0].completion_id"]);
        assert_eq!(check(proto::Event { r#type: 0, ..sent() }), ["events[0].type"]);
        for kind in [EventKind::IncentiveShown, EventKind::IncentiveRedeemed] {
            let of =
                |coupon: &str| proto::Event { r#type: kind as i32, lines: vec![], coupon_id: coupon.into(), ..sent() };
            assert!(check(of("c")).is_empty());
            assert_eq!(check(of("")), ["events[0].coupon_id"]);
            assert_eq!(check(of(" ")), ["events[0].coupon_id"]);
        }
    }
}
