//! Bounded histories of all users: the fold of the events.
mod history;
mod record;

use dashmap::DashMap;
pub use history::{
    EVENTS_MAX, History, HistoryEvent, HistoryQuantity, PastQuery, PurchaseChange, QUERIES_MAX, QUERY_CHARS_MAX,
};
use lodestone_catalog::ItemKeys;
use lodestone_core::ids::UserId;
use lodestone_events::Event;
pub use record::{decode, encode};

/// The histories of all users. Readers may read while one thread applies events.
#[derive(Default)]
pub struct Users {
    /// Boxed, because the map has up to twice as many slots as users.
    histories: DashMap<UserId, Box<History>, ahash::RandomState>,
}

impl Users {
    /// Adds the event at log `position` to its user's history. Must be called once for each event. Returns the
    /// purchases that count no longer, or again.
    pub fn apply(&self, position: u64, event: &Event, keys: &ItemKeys) -> Vec<PurchaseChange> {
        let mut history = match self.histories.get_mut(&event.user) {
            Some(history) => history,
            None => self.histories.entry(event.user.clone()).or_default(),
        };
        history.add(event, |id| Some(keys.intern(id)));
        history.position = history.position.max(position);
        history.purchase_changes(event)
    }

    /// Returns a copy of the user's history, or none for an unknown user.
    pub fn history(&self, user: &UserId) -> Option<History> {
        self.histories.get(user).map(|history| (**history).clone())
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

    /// Number of users with a history.
    pub fn len(&self) -> usize {
        self.histories.len()
    }

    pub fn is_empty(&self) -> bool {
        self.histories.is_empty()
    }
}
