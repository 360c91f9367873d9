//! Bounded histories of all users: the fold of the events.
mod history;
mod record;

use ahash::AHashSet;
use dashmap::DashMap;
pub(crate) use history::is_stored;
pub use history::{
    EVENTS_MAX, History, HistoryEvent, HistoryQuantity, PastQuery, PurchaseChange, QUERIES_MAX, QUERY_CHARS_MAX,
};
use lodestone_catalog::ItemKeys;
use lodestone_core::ids::{ItemKey, UserId};
use lodestone_events::Event;
use lodestone_loyalty::UserSummary;
use parking_lot::Mutex;
pub use record::{decode, encode};
use std::sync::atomic::{AtomicU64, Ordering};

/// The default limit on the number of users.
pub const USERS_MAX: usize = 5_000_000;

type EvictedUser = (UserId, Box<History>);

/// The histories of all users. Readers may read while one thread applies events.
///
/// If there are more users than the limit, those with the earliest last events are evicted until an eighth of the limit
/// is free. The evictions follow from the log alone.
pub struct Users {
    /// Boxed, because the map has up to twice as many slots as users.
    histories: DashMap<UserId, Box<History>, ahash::RandomState>,
    users_max: usize,
    evicted: AtomicU64,
    /// Histories that were evicted since a checkpoint in progress began.
    evicted_during_checkpoint: Mutex<Option<Vec<EvictedUser>>>,
}

impl Default for Users {
    fn default() -> Self {
        Self::with_limit(USERS_MAX)
    }
}

impl Users {
    /// Creates an empty map of at most `users_max` users; 0 counts as 1.
    pub fn with_limit(users_max: usize) -> Self {
        Self {
            histories: DashMap::default(),
            users_max: users_max.max(1),
            evicted: AtomicU64::new(0),
            evicted_during_checkpoint: Mutex::default(),
        }
    }

    /// Adds the event at log `position` to its user's history. Must be called once for each event. Returns the
    /// purchases that count no longer, or again.
    pub fn apply(&self, position: u64, event: &Event, keys: &ItemKeys) -> Vec<PurchaseChange> {
        let (is_new, changes) = {
            let mut history = match self.histories.get_mut(&event.user) {
                Some(history) => history,
                None => self.histories.entry(event.user.clone()).or_default(),
            };
            history.add(event, |id| Some(keys.intern_for_event(id)));
            if event.user.is_signed_in() {
                history.summary.get_or_insert_default().add(event);
            }
            let is_new = history.last_s == 0;
            history.created = if is_new { position } else { history.created.min(position) };
            history.position = history.position.max(position);
            // At least 1, because 0 marks a new history.
            history.last_s = history.last_s.max(event.at.seconds_u32()).max(1);
            (is_new, history.purchase_changes(event))
        };
        if is_new && self.histories.len() > self.users_max {
            self.evict();
        }
        changes
    }

    /// Evicts the users with the earliest last events; among those of one second the first ids.
    fn evict(&self) {
        let count = self.histories.len() - (self.users_max - self.users_max / 8);
        let mut times: Vec<u32> = self.histories.iter().map(|history| history.last_s).collect();
        let (_, &mut threshold, _) = times.select_nth_unstable(count - 1);
        let earlier = times.iter().filter(|time| **time < threshold).count();
        let of_threshold = self.histories.iter().filter(|history| history.last_s == threshold);
        let mut tied: Vec<UserId> = of_threshold.map(|history| history.key().clone()).collect();
        tied.sort_unstable();
        tied.truncate(count - earlier);
        let tied: AHashSet<UserId> = tied.into_iter().collect();
        let mut kept = self.evicted_during_checkpoint.lock();
        self.histories.retain(|user, history| {
            let stays = history.last_s > threshold || history.last_s == threshold && !tied.contains(user);
            if let (false, Some(kept)) = (stays, &mut *kept) {
                kept.push((user.clone(), std::mem::take(history)));
            }
            stays
        });
        self.evicted.fetch_add(count as u64, Ordering::Relaxed);
    }

    /// Removes the events of items from the histories whose last event is not after `position`.
    pub fn forget_items(&self, items: &AHashSet<ItemKey>, position: u64) {
        for mut history in self.histories.iter_mut().filter(|history| history.position <= position) {
            if history.events.iter().any(|event| items.contains(&event.item)) {
                history.events.retain(|event| !items.contains(&event.item));
            }
        }
    }

    /// Returns a copy of the user's history, or none for an unknown user.
    pub fn history(&self, user: &UserId) -> Option<History> {
        self.histories.get(user).map(|history| (**history).clone())
    }

    /// Returns a copy of the user's lifetime summary, or none for an unknown user or a visitor.
    pub fn summary(&self, user: &UserId) -> Option<UserSummary> {
        self.histories.get(user)?.summary.as_deref().copied()
    }

    /// Returns whether the user's history includes the event at log `position`. The positions of a user rise.
    pub fn includes(&self, user: &UserId, position: u64) -> bool {
        self.histories.get(user).is_some_and(|history| history.position >= position)
    }

    /// Sets or replaces the user's history.
    pub fn insert(&self, user: UserId, history: History) {
        self.histories.insert(user, Box::new(history));
    }

    /// Returns the ids of all users with a history. Locks each shard of the map only while it copies the shard's ids.
    pub fn ids(&self) -> Vec<UserId> {
        self.histories.iter().map(|entry| entry.key().clone()).collect()
    }

    /// Begins to keep the histories that are evicted, for a checkpoint of the present position.
    pub(crate) fn begin_checkpoint(&self) {
        *self.evicted_during_checkpoint.lock() = Some(Vec::new());
    }

    pub(crate) fn is_in_checkpoint(&self) -> bool {
        self.evicted_during_checkpoint.lock().is_some()
    }

    /// Returns the histories that were evicted since [`Users::begin_checkpoint`], and keeps further ones.
    pub(crate) fn evicted_since_checkpoint(&self) -> Vec<(UserId, Box<History>)> {
        self.evicted_during_checkpoint.lock().as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Keeps no more evicted histories.
    pub(crate) fn end_checkpoint(&self) {
        *self.evicted_during_checkpoint.lock() = None;
    }

    /// Number of users with a history.
    pub fn len(&self) -> usize {
        self.histories.len()
    }

    /// Number of histories that were evicted.
    pub fn evicted_count(&self) -> u64 {
        self.evicted.load(Ordering::Relaxed)
    }

    pub fn is_empty(&self) -> bool {
        self.histories.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lodestone_core::{
        ids::{EventId, ItemId},
        units::{Quantity, UnixMillis},
    };
    use lodestone_events::{EventKind, EventLine};

    fn id(user: &str) -> UserId {
        UserId::visitor(user).unwrap()
    }

    fn view(users: &Users, keys: &ItemKeys, position: u64, user: &str, at_s: i64) {
        let item = ItemId::parse("i").unwrap();
        let event = Event {
            lines: vec![EventLine { item, quantity: Quantity::ONE, price: None, rank: 0 }],
            ..Event::new(EventId::parse("e").unwrap(), EventKind::View, id(user), UnixMillis(at_s * 1000))
        };
        users.apply(position, &event, keys);
    }

    #[test]
    fn the_users_with_the_earliest_last_events_are_evicted() {
        let (users, keys) = (Users::with_limit(16), ItemKeys::default());
        for user in 0..16 {
            view(&users, &keys, 1 + user, &format!("v{user:02}"), 1000 + user as i64 / 4);
        }
        // A late event does not renew a visitor, a later one does.
        view(&users, &keys, 17, "v00", 2000);
        view(&users, &keys, 18, "v01", 5);
        assert_eq!((users.len(), users.evicted_count()), (16, 0));
        view(&users, &keys, 19, "new", 1500);
        // An eighth is free: of the four visitors of the first second three are left, and the first ids leave.
        assert_eq!((users.len(), users.evicted_count()), (14, 3));
        let evicted = ["v01", "v02", "v03"];
        assert!(evicted.iter().all(|user| users.history(&id(user)).is_none()));
        assert!(["v00", "v04", "new"].iter().all(|user| users.history(&id(user)).is_some()));
        // A visitor who comes back starts with an empty history.
        view(&users, &keys, 20, "v02", 3000);
        let history = users.history(&id("v02")).unwrap();
        assert_eq!((history.created, history.position, history.events.len()), (20, 20, 1));
    }
}
