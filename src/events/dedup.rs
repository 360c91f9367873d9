//! Which events were seen lately.
use crate::{ids::EventId, units::UnixMillis};
use ahash::RandomState;
use std::collections::{HashSet, VecDeque};

/// Event ids that are remembered at most.
const IDS_MAX: usize = 2_000_000;
/// How long an id is remembered.
const REMEMBERED: i64 = 7 * UnixMillis::DAY;

/// Remembers the event ids of the last 7 days, at most 2,000,000 of them, as 64-bit hashes: with a full set the odds
/// that a new event is taken for a duplicate are one in 10^13.
///
/// An id's age is counted from the latest event time that was noted up to it, so that a late event is remembered as
/// long as any other and old events that are imported in order behave like live ones.
pub struct Deduper {
    hasher: RandomState,
    seen: HashSet<u64, RandomState>,
    /// In the order in which they were noted, which is also the order of their times.
    queue: VecDeque<(u64, UnixMillis)>,
    latest: UnixMillis,
    capacity: usize,
}

impl Default for Deduper {
    fn default() -> Self {
        Self::with_capacity(IDS_MAX)
    }
}

impl Deduper {
    /// Remembers at most `capacity` ids, at least one.
    pub fn with_capacity(capacity: usize) -> Self {
        Self {
            hasher: RandomState::new(),
            seen: HashSet::default(),
            queue: VecDeque::new(),
            latest: UnixMillis(i64::MIN),
            capacity: capacity.max(1),
        }
    }

    pub fn contains(&self, id: &EventId) -> bool {
        self.seen.contains(&self.hasher.hash_one(id))
    }

    /// Remembers an event. False: it was known already.
    pub fn note(&mut self, id: &EventId, at: UnixMillis) -> bool {
        let hash = self.hasher.hash_one(id);
        if !self.seen.insert(hash) {
            return false;
        }
        self.latest = self.latest.max(at);
        self.queue.push_back((hash, self.latest));
        while self.queue.len() > self.capacity || self.oldest_is_out_of_date() {
            if let Some((oldest, _)) = self.queue.pop_front() {
                self.seen.remove(&oldest);
            }
        }
        true
    }

    pub fn len(&self) -> usize {
        self.queue.len()
    }

    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    fn oldest_is_out_of_date(&self) -> bool {
        self.queue.front().is_some_and(|(_, at)| self.latest.0.saturating_sub(at.0) > REMEMBERED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: usize) -> EventId {
        EventId::parse(&format!("e{number}")).unwrap()
    }

    #[test]
    fn an_id_is_new_once() {
        let mut seen = Deduper::default();
        assert!(seen.note(&id(1), UnixMillis(5)));
        assert!(!seen.note(&id(1), UnixMillis(6)));
        assert!(seen.contains(&id(1)) && !seen.contains(&id(2)));
    }

    #[test]
    fn the_oldest_id_leaves_a_full_set() {
        let mut seen = Deduper::with_capacity(3);
        for number in 0..5 {
            seen.note(&id(number), UnixMillis(0));
        }
        assert_eq!(seen.len(), 3);
        assert!(!seen.contains(&id(1)) && seen.contains(&id(2)));
    }

    #[test]
    fn an_id_is_forgotten_after_seven_days() {
        let mut seen = Deduper::default();
        seen.note(&id(1), UnixMillis(0));
        seen.note(&id(2), UnixMillis(REMEMBERED));
        assert!(seen.contains(&id(1)));
        seen.note(&id(3), UnixMillis(REMEMBERED + 1));
        assert!(!seen.contains(&id(1)) && seen.contains(&id(2)));
    }

    #[test]
    fn a_late_event_is_remembered_as_long_as_any_other() {
        let mut seen = Deduper::default();
        seen.note(&id(1), UnixMillis(30 * UnixMillis::DAY));
        seen.note(&id(2), UnixMillis(0));
        assert!(!seen.note(&id(2), UnixMillis(0)));
    }
}
