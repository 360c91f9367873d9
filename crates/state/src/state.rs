//! What is known whichever generation answers: the fold of the log. Written by one thread (the log's writer), read by all.
use crate::catalog_changes::CatalogChanges;
use crate::users::Users;
use lodestone_catalog::ItemKeys;
use lodestone_core::{ids::ItemKey, units::UnixMillis};
use lodestone_events::{Event, EventKind, Popularity};
use lodestone_index::Suggester;
use parking_lot::{Mutex, RwLock};
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// Popular items kept ready.
const POPULAR_COUNT: usize = 200;
/// How old the ready list may be.
const POPULAR_AGE_MS_MAX: i64 = 1000;

/// What shoppers did and what the shop changed, for all generations.
pub struct LiveState {
    /// Of all items that any generation has or that any event names.
    pub keys: ItemKeys,
    pub users: Users,
    pub popularity: RwLock<Popularity>,
    /// What users searched for, as completions.
    pub queries: Suggester,
    /// Items that were written since the bundles were made; every generation has them too.
    pub catalogue: Mutex<CatalogChanges>,
    popular: Mutex<Ready>,
    applied: AtomicU64,
}

#[derive(Default)]
struct Ready {
    at: Option<UnixMillis>,
    top: Arc<Vec<(ItemKey, f32)>>,
}

impl Default for LiveState {
    fn default() -> Self {
        Self {
            keys: ItemKeys::default(),
            users: Users::default(),
            popularity: RwLock::default(),
            queries: Suggester::build([]),
            catalogue: Mutex::default(),
            popular: Mutex::default(),
            applied: AtomicU64::new(0),
        }
    }
}

impl LiveState {
    /// The fold of one event. The same code runs when it is written and when it is replayed.
    pub fn apply_event(&self, position: u64, event: &Event) {
        self.users.apply(position, event, &self.keys);
        self.note_position(position);
        self.apply_to_all(event);
    }

    /// The fold of one event after a checkpoint's position, which the event's user may have been taken down with.
    pub fn replay_event(&self, position: u64, event: &Event, may_be_known: bool) {
        if !(may_be_known && self.users.has(&event.user, position)) {
            self.users.apply(position, event, &self.keys);
        }
        self.apply_to_all(event);
    }

    /// The part of the fold that is not the user's.
    fn apply_to_all(&self, event: &Event) {
        self.popularity.write().apply(event, &self.keys);
        if event.kind == EventKind::Search {
            self.queries.add_query(&event.query, 1.0);
        }
    }

    /// Notes that the change at this log position is in effect.
    pub fn note_position(&self, position: u64) {
        self.applied.fetch_max(position, Ordering::Release);
    }

    /// The log position up to which changes are in effect.
    pub fn applied_position(&self) -> u64 {
        self.applied.load(Ordering::Acquire)
    }

    /// The most popular items, at most a second old.
    pub fn popular(&self, now: UnixMillis) -> Arc<Vec<(ItemKey, f32)>> {
        let mut ready = self.popular.lock();
        if ready.at.is_none_or(|at| (now.0 - at.0).abs() >= POPULAR_AGE_MS_MAX) {
            ready.top = Arc::new(self.popularity.read().top(POPULAR_COUNT, now));
            ready.at = Some(now);
        }
        ready.top.clone()
    }
}
