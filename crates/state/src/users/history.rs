//! The recent history of one user.
use ahash::AHashMap;
use lodestone_catalog::ItemKeys;
use lodestone_core::{
    ids::{ItemId, ItemKey},
    units::{Quantity, UnixMillis},
};
use lodestone_events::{Event, EventKind, RefundLine, Refunds};
use lodestone_loyalty::UserSummary;

/// Maximum number of item events in a history; the latest stay.
pub const EVENTS_MAX: usize = 200;
/// Maximum number of searches in a history; the latest stay.
pub const QUERIES_MAX: usize = 8;
/// Maximum number of characters of a stored search.
pub const QUERY_CHARS_MAX: usize = 100;
/// Number of events by which the capacity of a history grows. Small, because memory per user matters more than the
/// copy.
const EVENTS_GROWTH: usize = 8;

/// One item of an event. 12 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HistoryEvent {
    pub item: ItemKey,
    /// Seconds since 1970.
    pub at_s: u32,
    /// Fraction of the second in 256ths, which orders events of the same second.
    pub fraction: u8,
    pub kind: EventKind,
    pub quantity: HistoryQuantity,
}

impl HistoryEvent {
    /// The time of the event, to the 256th of a second.
    fn at(&self) -> UnixMillis {
        UnixMillis(i64::from(self.at_s) * 1000 + i64::from(self.fraction) * 1000 / 256)
    }
}

/// A purchase that counts no longer, or again, since the last event of its user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PurchaseChange {
    pub item: ItemKey,
    /// The time of the purchase.
    pub at: UnixMillis,
    /// False: it was refunded in full.
    pub counts: bool,
}

const _: () = assert!(size_of::<HistoryEvent>() == 12);

/// A quantity in 2 bytes: exact to thousandths below 32.768, above that in whole units, rounded up, which saturate at
/// 32,767.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HistoryQuantity(pub(super) u16);

impl HistoryQuantity {
    /// Set in a number of whole units.
    const WHOLE: u16 = 1 << 15;

    pub fn thousandths(self) -> u64 {
        match self.0 & Self::WHOLE {
            0 => self.0.into(),
            _ => u64::from(self.0 & !Self::WHOLE) * 1000,
        }
    }
}

impl From<Quantity> for HistoryQuantity {
    fn from(quantity: Quantity) -> Self {
        let thousandths = quantity.thousandths();
        match u16::try_from(thousandths) {
            Ok(exact) if exact < Self::WHOLE => Self(exact),
            _ => Self(Self::WHOLE | thousandths.div_ceil(1000).min((Self::WHOLE - 1).into()) as u16),
        }
    }
}

/// A past search.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PastQuery {
    /// Seconds since 1970.
    pub at_s: u32,
    /// Fraction of the second in 256ths.
    pub fraction: u8,
    /// Truncated to [`QUERY_CHARS_MAX`] characters.
    pub text: Box<str>,
}

/// The events of a user, oldest first. Impressions are not part of it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct History {
    /// At most [`EVENTS_MAX`], one for each line of an event.
    pub events: Vec<HistoryEvent>,
    /// At most [`QUERIES_MAX`].
    pub queries: Vec<PastQuery>,
    /// The log position of the user's last event; 0 if the log has none.
    pub position: u64,
    /// The log position of the first event since the history was created; 0 if the history precedes the log.
    pub created: u64,
    /// The time of the user's latest event of any type, in seconds since 1970.
    pub last_s: u32,
    /// The lifetime of a signed-in user. None for a visitor, who is known only until signing in.
    pub summary: Option<Box<UserSummary>>,
}

impl History {
    /// Returns the history with further events of the same user. Items without a key are left out, so that a request
    /// cannot create keys.
    pub fn with_context(mut self, events: &[Event], keys: &ItemKeys) -> Self {
        for event in events {
            self.add(event, |id| keys.get(id));
        }
        self
    }

    /// Returns the events that refunds take back, by their index in `events`.
    pub fn refunds(&self) -> Refunds {
        if !self.has_refunds() {
            return Refunds::default();
        }
        Refunds::of(&self.events.iter().map(refund_line).collect::<Vec<_>>())
    }

    fn has_refunds(&self) -> bool {
        self.events.iter().any(|event| event.kind == EventKind::Refund)
    }

    /// Returns the purchases that count no longer, or again, because of an event that was added. A refund changes that,
    /// and a late purchase of an item that was refunded. After a purchase that counts no longer, the latest one of the
    /// item that still does is returned, because the popularity remembers only the latest.
    pub(super) fn purchase_changes(&self, event: &Event) -> Vec<PurchaseChange> {
        let may_change = match event.kind {
            EventKind::Refund => true,
            EventKind::Purchase => self.has_refunds(),
            _ => false,
        };
        if !may_change {
            return Vec::new();
        }
        let time = (event.at.seconds_u32(), fraction(event));
        let end = insertion_index(&self.events, time, |event| (event.at_s, event.fraction));
        let added = end.saturating_sub(event.lines.len())..end;
        let without: Vec<usize> = (0..self.events.len()).filter(|index| !added.contains(index)).collect();
        let lines: Vec<RefundLine<ItemKey>> = without.iter().map(|index| refund_line(&self.events[*index])).collect();
        let (before, after) = (Refunds::of(&lines), self.refunds());
        let mut was_refunded = vec![false; self.events.len()];
        without.iter().enumerate().for_each(|(line, index)| was_refunded[*index] = before.is_refunded(line));
        let of = |index: usize, counts: bool| {
            let event = &self.events[index];
            PurchaseChange { item: event.item, at: event.at(), counts }
        };
        let standing = |item: ItemKey| {
            let is_standing = |index: &usize| {
                let event = &self.events[*index];
                event.item == item && event.kind == EventKind::Purchase && !after.is_refunded(*index)
            };
            (0..self.events.len()).rev().find(is_standing).map(|index| of(index, true))
        };
        let changed = (0..self.events.len()).filter(|index| after.is_refunded(*index) != was_refunded[*index]);
        let mut changes: Vec<PurchaseChange> = changed.map(|index| of(index, !after.is_refunded(index))).collect();
        let mut refunded: Vec<ItemKey> =
            changes.iter().filter(|change| !change.counts).map(|change| change.item).collect();
        refunded.sort_unstable();
        refunded.dedup();
        changes.extend(refunded.into_iter().filter_map(standing));
        changes
    }

    /// Adds the events of another history that are at most `age_ms` old, such as those of the visitor before the user
    /// signed in. Returns whether there are any.
    pub fn add_recent(&mut self, other: &Self, now: UnixMillis, age_ms: i64) -> bool {
        let since_s = UnixMillis(now.0.saturating_sub(age_ms)).seconds_u32();
        let events = other.events.iter().filter(|event| event.at_s >= since_s);
        let queries = other.queries.iter().filter(|query| query.at_s >= since_s);
        let has_any = events.clone().next().is_some() || queries.clone().next().is_some();
        events.for_each(|event| self.add_event(*event));
        queries.for_each(|query| self.insert_query(query.clone()));
        has_any
    }

    /// Returns the items in the cart with their quantities (added minus removed and bought), the latest addition first.
    pub fn cart(&self) -> Vec<(ItemKey, f64)> {
        let mut cart: AHashMap<ItemKey, (u64, usize)> = AHashMap::new();
        for (index, event) in self.events.iter().enumerate() {
            let quantity = event.quantity.thousandths();
            match event.kind {
                EventKind::AddToCart => {
                    let (held, last) = cart.entry(event.item).or_default();
                    *held += quantity;
                    *last = index;
                }
                EventKind::RemoveFromCart | EventKind::Purchase => {
                    if let Some((held, _)) = cart.get_mut(&event.item) {
                        *held = held.saturating_sub(quantity);
                    }
                }
                _ => {}
            }
        }
        let mut held: Vec<_> = cart.into_iter().filter(|(_, (quantity, _))| *quantity > 0).collect();
        held.sort_unstable_by_key(|(_, (_, last))| std::cmp::Reverse(*last));
        held.into_iter().map(|(item, (thousandths, _))| (item, thousandths as f64 / 1000.0)).collect()
    }

    /// Returns the items that are marked as favourites, the latest first.
    pub fn favorites(&self) -> Vec<ItemKey> {
        let mut decided = AHashMap::new();
        let mut favorites = Vec::new();
        for event in self.events.iter().rev() {
            if matches!(event.kind, EventKind::Favorite | EventKind::Unfavorite)
                && decided.insert(event.item, ()).is_none()
                && event.kind == EventKind::Favorite
            {
                favorites.push(event.item);
            }
        }
        favorites
    }

    /// Inserts an event by its time, so that late events end up in the right order. Events of the same 256th of a
    /// second keep their order of arrival.
    pub(super) fn add(&mut self, event: &Event, key: impl Fn(&ItemId) -> Option<ItemKey>) {
        if event.kind == EventKind::Search {
            self.add_query(event);
        }
        if !is_stored(event.kind) {
            return;
        }
        for line in &event.lines {
            if let Some(item) = key(&line.item) {
                self.add_event(HistoryEvent {
                    item,
                    at_s: event.at.seconds_u32(),
                    fraction: fraction(event),
                    kind: event.kind,
                    quantity: line.quantity.into(),
                });
            }
        }
    }

    fn add_event(&mut self, event: HistoryEvent) {
        let index = insertion_index(&self.events, (event.at_s, event.fraction), |event| (event.at_s, event.fraction));
        if self.events.len() >= EVENTS_MAX {
            insert_and_drop_first(&mut self.events, index, event);
            return;
        }
        if self.events.len() == self.events.capacity() {
            self.events.reserve_exact(EVENTS_GROWTH.min(EVENTS_MAX - self.events.len()));
        }
        self.events.insert(index, event);
    }

    fn add_query(&mut self, event: &Event) {
        let at_s = event.at.seconds_u32();
        let text = match event.query.char_indices().nth(QUERY_CHARS_MAX) {
            Some((end, _)) => &event.query[..end],
            None => &event.query,
        };
        if text.is_empty() {
            return;
        }
        self.insert_query(PastQuery { at_s, fraction: fraction(event), text: text.into() });
    }

    fn insert_query(&mut self, query: PastQuery) {
        let index = insertion_index(&self.queries, (query.at_s, query.fraction), |query| (query.at_s, query.fraction));
        if self.queries.len() >= QUERIES_MAX {
            insert_and_drop_first(&mut self.queries, index, query);
        } else {
            self.queries.reserve_exact(1);
            self.queries.insert(index, query);
        }
    }
}

fn refund_line(event: &HistoryEvent) -> RefundLine<ItemKey> {
    RefundLine { item: event.item, kind: event.kind, thousandths: event.quantity.thousandths() }
}

/// Returns whether events of this kind relate the user to an item.
pub(crate) fn is_stored(kind: EventKind) -> bool {
    kind.needs_items() && kind != EventKind::Impression
}

/// Returns the fraction of the event's second, in 256ths.
fn fraction(event: &Event) -> u8 {
    (event.at.0.rem_euclid(1000) * 256 / 1000) as u8
}

/// Returns the index at which an entry of this time belongs in a list sorted by time. Searches from the end, because
/// most events arrive in order.
fn insertion_index<T>(list: &[T], at: (u32, u8), time: impl Fn(&T) -> (u32, u8)) -> usize {
    list.iter().rposition(|other| time(other) <= at).map_or(0, |last| last + 1)
}

/// Inserts `new` before `index` and drops the first entry, which is `new` itself if it is the oldest.
fn insert_and_drop_first<T>(list: &mut [T], index: usize, new: T) {
    if index > 0 {
        list[0] = new;
        list[..index].rotate_left(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_of_weights_are_exact_and_large_ones_are_whole() {
        let stored = |units: f64| HistoryQuantity::from(Quantity::from_units(units).unwrap()).thousandths();
        for (units, thousandths) in [(0.001, 1), (0.345, 345), (32.767, 32_767)] {
            assert_eq!(stored(units), thousandths);
        }
        assert_eq!(stored(32.768), 33_000);
        assert_eq!(stored(255.0), 255_000);
        assert_eq!(stored(1e6), 32_767_000);
    }
}
