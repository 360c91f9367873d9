//! What each person did, bounded: the fold of the events.
mod history;
mod record;

pub use history::{EVENTS_MAX, History, HistoryEvent, PastQuery, QUERIES_MAX, QUERY_CHARS_MAX};
pub use record::{decode, encode};

use lodestone_catalog::ItemKeys;
use lodestone_events::Event;
use lodestone_core::ids::PersonId;
use dashmap::DashMap;

/// Every person's history, for reading while one thread applies events.
#[derive(Default)]
pub struct People {
    /// Boxed, since the map keeps up to twice as many places as it has persons.
    histories: DashMap<PersonId, Box<History>, ahash::RandomState>,
}

impl People {
    /// Adds the event, stored at log `position`, to its person's history. Each event must be given once.
    pub fn apply(&self, position: u64, event: &Event, keys: &ItemKeys) {
        let mut history = match self.histories.get_mut(&event.person) {
            Some(history) => history,
            None => self.histories.entry(event.person.clone()).or_default(),
        };
        history.add(event, |id| Some(keys.intern(id)));
        history.position = history.position.max(position);
    }

    /// A copy of what the person did. None: nothing is known of them.
    pub fn history(&self, person: &PersonId) -> Option<History> {
        self.histories.get(person).map(|history| (**history).clone())
    }

    /// Whether the event at log `position` is part of the person's history already. Positions of a person rise.
    pub fn has(&self, person: &PersonId, position: u64) -> bool {
        self.histories.get(person).is_some_and(|history| history.position >= position)
    }

    /// Puts a history in the place of what is known of the person.
    pub fn insert(&self, person: PersonId, history: History) {
        self.histories.insert(person, Box::new(history));
    }

    /// Everybody who has a history now. Each part of the map is held only while its ids are copied.
    pub fn ids(&self) -> Vec<PersonId> {
        self.histories.iter().map(|entry| entry.key().clone()).collect()
    }

    /// Persons with a history.
    pub fn len(&self) -> usize {
        self.histories.len()
    }

    pub fn is_empty(&self) -> bool {
        self.histories.is_empty()
    }
}
