//! The state that all generations share: the fold of the log. One thread (the log's writer) writes it; all threads read
//! it.
use crate::{
    catalog_changes::CatalogChanges,
    event_items::{EVENT_ITEMS_MAX, EventItems},
    incentives::IncentiveLedger,
    searches::Searches,
    users::{PurchaseChange, USERS_MAX, Users, is_stored},
};
use arc_swap::ArcSwap;
use lodestone_catalog::ItemKeys;
use lodestone_core::{ids::ItemKey, units::UnixMillis};
use lodestone_events::{Event, EventKind, IncentiveDecision, Popularity, PopularitySnapshot};
use lodestone_rules::{RuleBook, RuleChange, RuleSnapshot};
use parking_lot::Mutex;
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// Users, popularity, searches and catalogue changes, for all generations.
pub struct LiveState {
    /// Keys of all items of any generation and of all items in events.
    pub keys: ItemKeys,
    pub users: Users,
    pub event_items: Mutex<EventItems>,
    /// The fold. Locked for one event or one copy at a time, never while a reader computes.
    pub(crate) popularity: Mutex<Popularity>,
    /// The popularity that readers see.
    published: ArcSwap<PopularitySnapshot>,
    /// Past searches, some of which are completions.
    pub searches: Searches,
    /// Catalogue changes since the bundles were trained. Every generation applies them.
    pub catalogue: Mutex<CatalogChanges>,
    /// The fold of the changes of rules, synonyms and serving configurations.
    pub(crate) rules: Mutex<RuleBook>,
    /// The rules, synonyms and serving configurations that requests see.
    published_rules: ArcSwap<RuleSnapshot>,
    /// Decisions about incentives.
    pub incentives: Mutex<IncentiveLedger>,
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

/// Limits of the state. Beyond them, users and items without recent events are forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StateLimits {
    pub users_max: usize,
    /// Maximum number of items that events name.
    pub event_items_max: usize,
}

impl Default for StateLimits {
    fn default() -> Self {
        Self { users_max: USERS_MAX, event_items_max: EVENT_ITEMS_MAX }
    }
}

impl Default for LiveState {
    fn default() -> Self {
        Self::new(Searches::default(), StateLimits::default())
    }
}

impl LiveState {
    /// Creates an empty state. `searches` decides which searches become completions.
    pub fn new(searches: Searches, limits: StateLimits) -> Self {
        Self {
            keys: ItemKeys::default(),
            users: Users::with_limit(limits.users_max),
            event_items: Mutex::new(EventItems::with_limit(limits.event_items_max)),
            popularity: Mutex::default(),
            published: ArcSwap::default(),
            searches,
            catalogue: Mutex::default(),
            rules: Mutex::default(),
            published_rules: ArcSwap::default(),
            incentives: Mutex::default(),
            applied: AtomicU64::new(0),
            popularity_restored: AtomicU64::new(0),
        }
    }

    /// Folds one event of the log.
    pub fn apply_event(&self, position: u64, event: &Event) {
        // First, because it normalises the text, which is the only part of the fold that depends on what a user typed:
        // if it panics, nothing of the event is folded.
        self.add_search(event);
        self.redeem_incentive(event);
        let changes = self.apply_to_user(position, event);
        self.count(event, &changes);
        self.record_items(position, event, true);
        self.advance_position(position);
    }

    /// Folds one event during recovery.
    pub fn replay_event(&self, position: u64, event: &Event, base: ReplayBase) {
        let is_included = match base {
            ReplayBase::Empty => false,
            ReplayBase::Checkpoint => self.users.includes(&event.user, position),
        };
        self.add_search(event);
        self.redeem_incentive(event);
        let changes = if is_included { Vec::new() } else { self.apply_to_user(position, event) };
        let is_counted = base == ReplayBase::Empty || position > self.popularity_restored.load(Ordering::Relaxed);
        if is_counted {
            self.count(event, &changes);
        }
        self.record_items(position, event, is_counted);
    }

    /// Adds an event to its user's history. Anonymous events have none.
    fn apply_to_user(&self, position: u64, event: &Event) -> Vec<PurchaseChange> {
        match event.user.is_anonymous() {
            true => Vec::new(),
            false => self.users.apply(position, event, &self.keys),
        }
    }

    /// Declares that the popularity was restored and counts the events up to this log position.
    pub(crate) fn set_popularity_position(&self, position: u64) {
        self.popularity_restored.store(position, Ordering::Relaxed);
    }

    /// Counts an event for the popularity of its items, without the purchases that were refunded in full.
    fn count(&self, event: &Event, changes: &[PurchaseChange]) {
        let mut popularity = self.popularity.lock();
        popularity.apply(event, &self.keys);
        for change in changes {
            popularity.change_purchase(&event.user, change.item, change.at, change.counts);
        }
    }

    /// Folds a decision about an incentive.
    pub fn apply_decision(&self, decision: IncentiveDecision) {
        self.incentives.lock().add(decision);
    }

    fn redeem_incentive(&self, event: &Event) {
        if event.kind == EventKind::IncentiveRedeemed && !event.coupon.is_empty() {
            self.incentives.lock().redeem(&event.coupon, event.user.as_str());
        }
    }

    fn add_search(&self, event: &Event) {
        // Anonymous searches do not show whether several users searched for a text.
        if event.user.is_anonymous() {
            return;
        }
        match (event.completion.as_str(), event.kind) {
            ("", EventKind::Search) => self.searches.add(&event.query, &event.user),
            ("", _) => {}
            // The query of a search is the text of its completion.
            (completion, _) => self.searches.accept(completion, &event.user),
        }
    }

    /// Records the items of an event, and forgets items if there are too many. `is_counted`: the popularity counts
    /// events up to this one, and not later ones.
    fn record_items(&self, position: u64, event: &Event, is_counted: bool) {
        if !is_stored(event.kind) {
            return;
        }
        let mut items = self.event_items.lock();
        for line in &event.lines {
            items.record(self.keys.intern_for_event(&line.item), event.at.seconds_u32());
        }
        let evicted = items.evict(&self.keys);
        if evicted.is_empty() {
            return;
        }
        self.users.forget_items(&evicted, position);
        if !is_counted {
            // The restored popularity and histories were copied later. The items were evicted from them already, and
            // may have come back with the same keys.
            return;
        }
        let mut popularity = self.popularity.lock();
        evicted.iter().for_each(|key| popularity.forget(*key));
        drop(popularity);
        // A checkpoint in progress maps keys to ids when it ends.
        if !self.users.is_in_checkpoint() {
            self.keys.reuse_released();
        }
        evicted.into_iter().for_each(|key| self.keys.release(key));
    }

    /// Releases the keys of a checkpoint that neither an event nor a catalogue needs any more. Only during recovery,
    /// while nothing holds copies of keys.
    pub(crate) fn release_unused_keys(&self) {
        let items = self.event_items.lock();
        let keys = (0..self.keys.key_count() as u32).map(ItemKey);
        keys.filter(|key| !items.contains(*key)).for_each(|key| self.keys.release(key));
        self.keys.reuse_released();
    }

    /// Records that all changes up to this log position are in effect.
    pub fn advance_position(&self, position: u64) {
        self.applied.fetch_max(position, Ordering::Release);
    }

    /// Returns the log position up to which changes are in effect.
    pub fn applied_position(&self) -> u64 {
        self.applied.load(Ordering::Acquire)
    }

    /// Returns the rules, synonyms and serving configurations as of the last [`LiveState::publish_rules`].
    pub fn rules(&self) -> Arc<RuleSnapshot> {
        self.published_rules.load_full()
    }

    /// Applies a change of a rule, a set of synonyms or a serving configuration. An error is the reason why it is not valid.
    pub fn apply_rule(&self, change: RuleChange) -> Result<(), String> {
        self.rules.lock().apply(change)
    }

    /// Makes the applied changes of rules, synonyms and serving configurations visible to requests.
    pub fn publish_rules(&self) -> Result<(), String> {
        let snapshot = self.rules.lock().snapshot(&self.published_rules.load())?;
        self.published_rules.store(Arc::new(snapshot));
        Ok(())
    }

    /// Returns the popularity as of the last [`LiveState::publish_popularity`].
    pub fn popularity(&self) -> Arc<PopularitySnapshot> {
        self.published.load_full()
    }

    /// Makes the folded popularity visible to readers. O(items), so it is not called for a request. Folds continue
    /// meanwhile, and so do readers.
    pub fn publish_popularity(&self, now: UnixMillis) {
        let counts = self.popularity.lock().counts().clone();
        let snapshot = PopularitySnapshot::new(counts, &self.published.load(), now);
        self.published.store(Arc::new(snapshot));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lodestone_core::{
        ids::{EventId, ItemId, ItemKey, UserId},
        units::Quantity,
    };
    use lodestone_events::EventLine;
    use std::{sync::mpsc, thread, time::Duration};

    fn view(user: &str, item: &str) -> Event {
        let (id, at) = (EventId::parse("e").unwrap(), UnixMillis(1_700_000_000_000));
        let line = EventLine { item: ItemId::parse(item).unwrap(), quantity: Quantity::ONE, price: None, rank: 0 };
        Event { lines: vec![line], ..Event::new(id, EventKind::View, UserId::signed_in(user).unwrap(), at) }
    }

    /// A thread that stalls while it reads popularity, as a thread of low priority does on a busy machine, holds up
    /// neither the fold nor the next snapshot nor other readers.
    #[test]
    fn a_stalled_reader_delays_neither_writes_nor_other_readers() {
        let state = Arc::new(LiveState::default());
        state.apply_event(1, &view("p", "a"));
        let now = UnixMillis(1_700_000_000_000);
        state.publish_popularity(now);
        let (stalled, has_stalled) = mpsc::channel();
        let (release, released) = mpsc::channel::<()>();
        let reading = thread::Builder::new().spawn({
            let state = state.clone();
            move || {
                let popularity = state.popularity();
                stalled.send(()).unwrap();
                released.recv().unwrap();
                popularity.popular().len()
            }
        });
        has_stalled.recv().unwrap();
        let (done, is_done) = mpsc::channel();
        let writing = thread::Builder::new().spawn({
            let state = state.clone();
            move || {
                state.apply_event(2, &view("q", "b"));
                state.publish_popularity(now);
                done.send(state.popularity().counts(ItemKey(1)).score(now)).unwrap();
            }
        });
        assert_eq!(is_done.recv_timeout(Duration::from_secs(30)), Ok(1.0), "the writer waits for the reader");
        release.send(()).unwrap();
        assert_eq!(reading.unwrap().join().unwrap(), 1, "its snapshot did not change");
        writing.unwrap().join().unwrap();
    }

    #[test]
    fn an_anonymous_event_counts_for_popularity_and_has_no_history() {
        let state = LiveState::default();
        let event = Event { user: UserId::anonymous(&EventId::parse("order 1").unwrap()), ..view("p", "a") };
        state.apply_event(1, &event);
        state.publish_popularity(event.at);
        assert!(state.users.is_empty());
        assert_eq!(state.popularity().popular(), [ItemKey(0)]);
    }
}
