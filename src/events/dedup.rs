//! Which events were seen lately.
use crate::ids::EventId;
use ahash::RandomState;
use std::collections::{HashSet, VecDeque};

/// Event ids that are remembered at most.
const IDS_MAX: usize = 2_000_000;

/// Remembers the last 2,000,000 event ids as 64-bit hashes: with a full set the odds that a new event is taken for a
/// duplicate are one in 10^13. An id's age is its place in the log, not the event's time: a purchase of last month that
/// is written today must be known when its write is tried again a second later.
pub struct Deduper {
    hasher: RandomState,
    seen: HashSet<u64, RandomState>,
    /// In the order in which they were noted.
    queue: VecDeque<u64>,
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
        Self { hasher: RandomState::new(), seen: HashSet::default(), queue: VecDeque::new(), capacity: capacity.max(1) }
    }

    pub fn contains(&self, id: &EventId) -> bool {
        self.seen.contains(&self.hasher.hash_one(id))
    }

    /// Remembers an event. False: it was known already.
    pub fn note(&mut self, id: &EventId) -> bool {
        let hash = self.hasher.hash_one(id);
        if !self.seen.insert(hash) {
            return false;
        }
        self.queue.push_back(hash);
        while self.queue.len() > self.capacity {
            if let Some(oldest) = self.queue.pop_front() {
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
        assert!(seen.note(&id(1)));
        assert!(!seen.note(&id(1)));
        assert!(seen.contains(&id(1)) && !seen.contains(&id(2)));
    }

    #[test]
    fn the_oldest_id_leaves_a_full_set() {
        let mut seen = Deduper::with_capacity(3);
        for number in 0..5 {
            seen.note(&id(number));
        }
        assert_eq!(seen.len(), 3);
        assert!(!seen.contains(&id(1)) && seen.contains(&id(2)));
    }
}
