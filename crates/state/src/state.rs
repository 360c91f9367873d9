//! The state that all generations share: the fold of the log. One thread (the log's writer) writes it; all threads read
//! it.
use crate::{
    catalog_changes::CatalogChanges,
    searches::Searches,
    users::{PurchaseChange, Users},
};
use lodestone_catalog::ItemKeys;
use lodestone_core::{ids::ItemKey, units::UnixMillis};
use lodestone_events::{Event, EventKind, Popularity};
use parking_lot::{Mutex, RwLock};
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// Number of popular items that are cached.
const POPULAR_COUNT: usize = 200;
/// Maximum age of the cached list.
const POPULAR_AGE_MS_MAX: i64 = 1000;

/// Users, popularity, searches and catalogue changes, for all generations.
pub struct LiveState {
    /// Keys of all items of any generation and of all items in events.
    pub keys: ItemKeys,
    pub users: Users,
    pub popularity: RwLock<Popularity>,
    /// Past searches, some of which are completions.
    pub searches: Searches,
    /// Catalogue changes since the bundles were trained. Every generation applies them.
    pub catalogue: Mutex<CatalogChanges>,
    popular: Mutex<PopularCache>,
    applied: AtomicU64,
    /// Log position up to which a restored checkpoint's popularity counts events.
    popularity_restored: AtomicU64,
}

/// The state that a replay of the log starts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplayBase {
    Empty,
    /// Histories of a checkpoint may include events after its position, because it was written during writes.
    Checkpoint,
}

#[derive(Default)]
struct PopularCache {
    at: Option<UnixMillis>,
    top: Arc<Vec<(ItemKey, f32)>>,
}

impl Default for LiveState {
    fn default() -> Self {
        Self::new(Searches::default())
    }
}

impl LiveState {
    /// Creates an empty state. `searches` decides which searches become completions.
    pub fn new(searches: Searches) -> Self {
        Self {
            keys: ItemKeys::default(),
            users: Users::default(),
            popularity: RwLock::default(),
            searches,
            catalogue: Mutex::default(),
            popular: Mutex::default(),
            applied: AtomicU64::new(0),
            popularity_restored: AtomicU64::new(0),
        }
    }

    /// Folds one event of the log.
    pub fn apply_event(&self, position: u64, event: &Event) {
        let changes = self.users.apply(position, event, &self.keys);
        self.advance_position(position);
        self.count(event, &changes);
        self.add_search(event);
    }

    /// Folds one event during recovery.
    pub fn replay_event(&self, position: u64, event: &Event, base: ReplayBase) {
        let is_included = match base {
            ReplayBase::Empty => false,
            ReplayBase::Checkpoint => self.users.includes(&event.user, position),
        };
        let changes = if is_included { Vec::new() } else { self.users.apply(position, event, &self.keys) };
        if base == ReplayBase::Empty || position > self.popularity_restored.load(Ordering::Relaxed) {
            self.count(event, &changes);
        }
        self.add_search(event);
    }

    /// Declares that the popularity was restored and counts the events up to this log position.
    pub(crate) fn set_popularity_position(&self, position: u64) {
        self.popularity_restored.store(position, Ordering::Relaxed);
    }

    /// Counts an event for the popularity of its items, without the purchases that were refunded in full.
    fn count(&self, event: &Event, changes: &[PurchaseChange]) {
        let mut popularity = self.popularity.write();
        popularity.apply(event, &self.keys);
        for change in changes {
            match change.counts {
                true => popularity.restore_purchase(change.item, change.at),
                false => popularity.remove_purchase(change.item, change.at),
            }
        }
    }

    fn add_search(&self, event: &Event) {
        if event.kind == EventKind::Search {
            self.searches.add(&event.query, &event.user);
        }
    }

    /// Records that all changes up to this log position are in effect.
    pub fn advance_position(&self, position: u64) {
        self.applied.fetch_max(position, Ordering::Release);
    }

    /// Returns the log position up to which changes are in effect.
    pub fn applied_position(&self) -> u64 {
        self.applied.load(Ordering::Acquire)
    }

    /// Returns the most popular items with their scores, at most [`POPULAR_AGE_MS_MAX`] old.
    pub fn popular(&self, now: UnixMillis) -> Arc<Vec<(ItemKey, f32)>> {
        let mut cache = self.popular.lock();
        if cache.at.is_none_or(|at| (now.0 - at.0).abs() >= POPULAR_AGE_MS_MAX) {
            cache.top = Arc::new(self.popularity.read().top(POPULAR_COUNT, now));
            cache.at = Some(now);
        }
        cache.top.clone()
    }
}
