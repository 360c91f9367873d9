//! One user's recent past.
use ahash::AHashMap;
use lodestone_catalog::ItemKeys;
use lodestone_core::ids::{ItemId, ItemKey};
use lodestone_events::{Event, EventKind};

/// Events with items that are kept of a user, the latest ones.
pub const EVENTS_MAX: usize = 200;
/// Searches that are kept of a user, the latest ones.
pub const QUERIES_MAX: usize = 8;
/// Characters that are kept of a search.
pub const QUERY_CHARS_MAX: usize = 100;
/// Places by which a full list of events grows. Small: memory per user counts for more than the copy.
const EVENTS_GROWTH: usize = 8;

/// One item of an event. 12 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HistoryEvent {
    pub item: ItemKey,
    /// Seconds since 1970.
    pub at_s: u32,
    /// The rest of the time in 256ths of a second, for the order of events in the same second.
    pub fraction: u8,
    pub kind: EventKind,
    /// 255 stands for that many and more.
    pub quantity: u8,
    /// 1 to 5 for a review, otherwise 0.
    pub stars: u8,
}

const _: () = assert!(size_of::<HistoryEvent>() == 12);

/// A search.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PastQuery {
    /// Seconds since 1970.
    pub at_s: u32,
    /// In 256ths of a second.
    pub fraction: u8,
    /// At most [`QUERY_CHARS_MAX`] characters of it.
    pub text: Box<str>,
}

/// What a user did, oldest first. Impressions are not part of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History {
    /// At most [`EVENTS_MAX`], one for each item of an event.
    pub events: Vec<HistoryEvent>,
    /// At most [`QUERIES_MAX`].
    pub queries: Vec<PastQuery>,
    /// The log position of the user's last event; 0 if none is stored.
    pub position: u64,
}

impl History {
    /// The history as if these events of the same user had happened too. Items without a key are left out, so that
    /// a request cannot make keys.
    pub fn with_context(mut self, events: &[Event], keys: &ItemKeys) -> Self {
        for event in events {
            self.add(event, |id| keys.get(id));
        }
        self
    }

    /// What lies in the cart, the latest addition first, with its quantity: added minus removed and bought.
    pub fn cart(&self) -> Vec<(ItemKey, u32)> {
        let mut cart: AHashMap<ItemKey, (u32, usize)> = AHashMap::new();
        for (place, event) in self.events.iter().enumerate() {
            let quantity = u32::from(event.quantity);
            match event.kind {
                EventKind::AddToCart => {
                    let (held, last) = cart.entry(event.item).or_default();
                    *held += quantity;
                    *last = place;
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
        held.into_iter().map(|(item, (quantity, _))| (item, quantity)).collect()
    }

    /// The items whose last word is a favourite, the latest first.
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

    /// Adds an event at its place in time, so that it does not matter how late it comes. Events of the same 256th of a
    /// second stay in the order in which they came.
    pub(super) fn add(&mut self, event: &Event, key: impl Fn(&ItemId) -> Option<ItemKey>) {
        if event.kind == EventKind::Search {
            self.add_query(event);
        }
        if !is_kept(event.kind) {
            return;
        }
        for line in &event.lines {
            if let Some(item) = key(&line.item) {
                self.add_event(HistoryEvent {
                    item,
                    at_s: event.at.seconds_u32(),
                    fraction: fraction(event),
                    kind: event.kind,
                    quantity: u8::try_from(line.quantity).unwrap_or(u8::MAX),
                    stars: event.stars,
                });
            }
        }
    }

    fn add_event(&mut self, event: HistoryEvent) {
        let place = place_for(&self.events, (event.at_s, event.fraction), |event| (event.at_s, event.fraction));
        if self.events.len() >= EVENTS_MAX {
            insert_and_drop_first(&mut self.events, place, event);
            return;
        }
        if self.events.len() == self.events.capacity() {
            self.events.reserve_exact(EVENTS_GROWTH.min(EVENTS_MAX - self.events.len()));
        }
        self.events.insert(place, event);
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
        let query = PastQuery { at_s, fraction: fraction(event), text: text.into() };
        let place = place_for(&self.queries, (at_s, query.fraction), |query| (query.at_s, query.fraction));
        if self.queries.len() >= QUERIES_MAX {
            insert_and_drop_first(&mut self.queries, place, query);
        } else {
            self.queries.reserve_exact(1);
            self.queries.insert(place, query);
        }
    }
}

/// Kinds that say something about the user and an item.
fn is_kept(kind: EventKind) -> bool {
    kind.needs_items() && kind != EventKind::Impression
}

/// The part of the event's second, in 256ths.
fn fraction(event: &Event) -> u8 {
    (event.at.0.rem_euclid(1000) * 256 / 1000) as u8
}

/// Where a thing of this time goes in a list that is sorted by time: mostly its end, so it is searched from there.
fn place_for<T>(list: &[T], at: (u32, u8), time: impl Fn(&T) -> (u32, u8)) -> usize {
    list.iter().rposition(|other| time(other) <= at).map_or(0, |last| last + 1)
}

/// Puts `new` before `place` and drops the first, which is `new` itself if it is the oldest.
fn insert_and_drop_first<T>(list: &mut [T], place: usize, new: T) {
    if place > 0 {
        list[0] = new;
        list[..place].rotate_left(1);
    }
}
