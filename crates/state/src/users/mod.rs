//! What each user did, bounded: the fold of the events.
mod history;
mod record;

pub use history::{EVENTS_MAX, History, HistoryEvent, PastQuery, QUERIES_MAX, QUERY_CHARS_MAX};
pub use record::{decode, encode};

use dashmap::DashMap;
use lodestone_catalog::ItemKeys;
use lodestone_core::ids::UserId;
use lodestone_events::Event;

/// Every user's history, for reading while one thread applies events.
#[derive(Default)]
pub struct Users {
    /// Boxed, since the map keeps up to twice as many places as it has users.
    histories: DashMap<UserId, Box<History>, ahash::RandomState>,
}

impl Users {
    /// Adds the event, stored at log `position`, to its user's history. Each event must be given once.
    pub fn apply(&self, position: u64, event: &Event, keys: &ItemKeys) {
        let mut history = match self.histories.get_mut(&event.user) {
            Some(history) => history,
            None => self.histories.entry(event.user.clone()).or_default(),
        };
        history.add(event, |id| Some(keys.intern(id)));
        history.position = history.position.max(position);
    }

    /// A copy of what the user did. None: nothing is known of them.
    pub fn history(&self, user: &UserId) -> Option<History> {
        self.histories.get(user).map(|history| (**history).clone())
    }

    /// Whether the event at log `position` is part of the user's history already. Positions of a user rise.
    pub fn has(&self, user: &UserId, position: u64) -> bool {
        self.histories.get(user).is_some_and(|history| history.position >= position)
    }

    /// Puts a history in the place of what is known of the user.
    pub fn insert(&self, user: UserId, history: History) {
        self.histories.insert(user, Box::new(history));
    }

    /// Everybody who has a history now. Each part of the map is held only while its ids are copied.
    pub fn ids(&self) -> Vec<UserId> {
        self.histories.iter().map(|entry| entry.key().clone()).collect()
    }

    /// Users with a history.
    pub fn len(&self) -> usize {
        self.histories.len()
    }

    pub fn is_empty(&self) -> bool {
        self.histories.is_empty()
    }
}
