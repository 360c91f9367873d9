//! Deduplication of events by their ids, and of purchases by user, order and item.
use super::{Event, EventKind};
use lodestone_core::{ids::EventId, units::UnixMillis};
use std::{
    collections::{HashSet, VecDeque},
    hash::{BuildHasherDefault, Hasher},
    sync::Arc,
};

/// The deduplication window in days. Ids expire earlier if their number exceeds the limit.
pub const DEDUPE_DAYS: u32 = 7;
/// The default limit on the number of ids: 33 per second over seven days.
pub const DEDUPE_IDS_MAX: usize = 20_000_000;
/// The number of ids that expire together.
const CHUNK_IDS: usize = 16_384;
/// The number of hash tables. Many small tables shorten the pause of a write when one of them grows.
const TABLES: usize = 256;

/// The set of event ids and order lines of the last seven days of ingestion time, stored as 64-bit hashes. With
/// 20,000,000 ids, the probability that a new event counts as a duplicate is 10^-12. An id takes 17 to 29 bytes.
///
/// Ids expire by ingestion time, not by event time, because a purchase of last month that is written today must be
/// recognised when the write is retried a second later. If the number of ids exceeds the limit, the oldest expire
/// earlier; a retry after that counts twice.
pub struct Deduper {
    tables: Vec<HashSet<u64, BuildHasherDefault<IdentityHasher>>>,
    /// Complete chunks in insertion order.
    full: VecDeque<Arc<Chunk>>,
    filling: Chunk,
    len: usize,
    ids_max: usize,
}

/// Consecutively inserted ids.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chunk {
    /// The ingestion time of the last id, in seconds since 1970.
    pub last_s: u32,
    pub hashes: Vec<u64>,
}

impl Default for Deduper {
    fn default() -> Self {
        Self::with_capacity(DEDUPE_IDS_MAX)
    }
}

impl Deduper {
    /// Creates a set of at most `ids_max` ids; 0 counts as 1.
    pub fn with_capacity(ids_max: usize) -> Self {
        let tables = (0..TABLES).map(|_| HashSet::default()).collect();
        Self { tables, full: VecDeque::new(), filling: Chunk::default(), len: 0, ids_max: ids_max.max(1) }
    }

    pub fn contains(&self, id: &EventId) -> bool {
        self.contains_hash(Self::hash_of(id))
    }

    /// Inserts the id and the order lines of an event with the ingestion time `at`.
    pub fn insert_event(&mut self, event: &Event, at: UnixMillis) {
        Self::hashes_of(event).for_each(|hash| _ = self.insert_hash(hash, at));
    }

    /// Inserts the order lines of an event with the ingestion time `at`.
    pub fn insert_order_lines(&mut self, event: &Event, at: UnixMillis) {
        Self::order_line_hashes(event).for_each(|hash| _ = self.insert_hash(hash, at));
    }

    pub(super) fn hash_of(id: &EventId) -> u64 {
        stable_hash(id.as_str().as_bytes())
    }

    /// Returns the hashes of the event's id and of its order lines.
    pub(super) fn hashes_of(event: &Event) -> impl Iterator<Item = u64> + '_ {
        std::iter::once(Self::hash_of(&event.id)).chain(Self::order_line_hashes(event))
    }

    /// Returns a hash of user, order and item for each line of a purchase with an order id. They share the set with the
    /// event ids, because an id has no control characters and a line's text has.
    pub(super) fn order_line_hashes(event: &Event) -> impl Iterator<Item = u64> + '_ {
        let is_order = event.kind == EventKind::Purchase && !event.order.is_empty();
        let lines = if is_order { &event.lines[..] } else { &[] };
        let text = |item: &str| format!("{}\0{}\0{item}", event.user.as_str(), event.order);
        lines.iter().map(move |line| stable_hash(text(line.item.as_str()).as_bytes()))
    }

    pub(super) fn contains_hash(&self, hash: u64) -> bool {
        self.tables[table_of(hash)].contains(&hash)
    }

    pub(super) fn insert_hash(&mut self, hash: u64, at: UnixMillis) -> bool {
        self.insert_hash_of_second(hash, at.seconds_u32())
    }

    fn insert_hash_of_second(&mut self, hash: u64, at_s: u32) -> bool {
        if !self.tables[table_of(hash)].insert(hash) {
            return false;
        }
        self.len += 1;
        self.filling.last_s = self.filling.last_s.max(at_s);
        self.filling.hashes.push(hash);
        // Small limits use smaller chunks, so that one chunk is never most of the set.
        if self.filling.hashes.len() >= CHUNK_IDS.min(self.ids_max.div_ceil(8)) {
            let full = std::mem::take(&mut self.filling);
            self.filling.last_s = full.last_s;
            self.full.push_back(Arc::new(full));
            self.expire_before(at_s.saturating_sub(DEDUPE_DAYS * 86_400));
        }
        while self.len > self.ids_max && self.expire_oldest() {}
        true
    }

    fn expire_before(&mut self, limit_s: u32) {
        while self.full.front().is_some_and(|oldest| oldest.last_s < limit_s) && self.expire_oldest() {}
    }

    fn expire_oldest(&mut self) -> bool {
        let Some(oldest) = self.full.pop_front() else { return false };
        for hash in &oldest.hashes {
            self.tables[table_of(*hash)].remove(hash);
        }
        self.len -= oldest.hashes.len();
        true
    }

    /// Returns the content in insertion order, to be restored by [`Deduper::insert_chunk`].
    pub fn chunks(&self) -> Vec<Arc<Chunk>> {
        let filling = Arc::new(self.filling.clone());
        self.full.iter().cloned().chain(std::iter::once(filling)).filter(|chunk| !chunk.hashes.is_empty()).collect()
    }

    /// Inserts a chunk of another deduper. Chunks must be inserted in their order.
    pub fn insert_chunk(&mut self, chunk: &Chunk) {
        for hash in &chunk.hashes {
            self.insert_hash_of_second(*hash, chunk.last_s);
        }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

fn table_of(hash: u64) -> usize {
    // Bits that the tables do not use themselves.
    (hash >> 44) as usize % TABLES
}

/// Returns a 64-bit hash that is the same on all machines and in all versions, because checkpoints contain it. Mixes
/// eight bytes at a time with the finalizer of MurmurHash3 (A. Appleby, public domain).
pub fn stable_hash(bytes: &[u8]) -> u64 {
    let mut hash = 0x9E37_79B9_7F4A_7C15 ^ bytes.len() as u64;
    for part in bytes.chunks(8) {
        let mut word = [0; 8];
        word[..part.len()].copy_from_slice(part);
        hash ^= u64::from_le_bytes(word);
        hash = (hash ^ (hash >> 33)).wrapping_mul(0xFF51_AFD7_ED55_8CCD);
        hash = (hash ^ (hash >> 33)).wrapping_mul(0xC4CE_B9FE_1A85_EC53);
        hash ^= hash >> 33;
    }
    hash
}

/// A hasher that returns the hash it receives.
#[derive(Default)]
struct IdentityHasher(u64);

impl Hasher for IdentityHasher {
    fn write(&mut self, _: &[u8]) {
        unreachable!("the tables contain only 64-bit hashes")
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lodestone_core::ids::UserId;
    use proptest::prelude::*;

    fn id(number: usize) -> EventId {
        EventId::parse(&format!("e{number}")).unwrap()
    }

    fn insert(seen: &mut Deduper, number: usize, at: UnixMillis) {
        seen.insert_event(&Event::new(id(number), EventKind::View, UserId::visitor("v").unwrap(), at), at);
    }

    const START: UnixMillis = UnixMillis(1_750_000_000_000);

    #[test]
    fn an_id_is_new_only_once() {
        let mut seen = Deduper::default();
        for _ in 0..2 {
            insert(&mut seen, 1, START);
            assert_eq!(seen.len(), 1);
        }
        assert!(seen.contains(&id(1)) && !seen.contains(&id(2)));
    }

    #[test]
    fn the_oldest_ids_expire_from_a_full_set() {
        let mut seen = Deduper::with_capacity(16);
        for number in 0..20 {
            insert(&mut seen, number, START);
        }
        assert!(seen.len() <= 16 && seen.len() >= 14);
        assert!(!seen.contains(&id(0)) && (4..20).all(|number| seen.contains(&id(number))));
    }

    proptest! {
        /// The window is seven days of ingestion time at any rate of events, as long as their number is below the limit.
        #[test]
        fn ids_are_kept_for_seven_days(gaps in proptest::collection::vec(0i64..40_000, 1..300)) {
            let (mut seen, mut at, mut times) = (Deduper::with_capacity(1000), START, Vec::new());
            for (number, gap) in gaps.iter().enumerate() {
                at.0 += gap * 1000;
                insert(&mut seen, number, at);
                times.push(at);
                let recent = times.iter().enumerate().filter(|(_, time)| at.0 - time.0 <= 7 * UnixMillis::DAY);
                for (number, _) in recent {
                    prop_assert!(seen.contains(&id(number)));
                }
            }
        }

        #[test]
        fn restored_chunks_contain_the_same_ids(count in 0usize..500, ids_max in 1usize..300) {
            let mut seen = Deduper::with_capacity(ids_max);
            (0..count).for_each(|number| insert(&mut seen, number, START));
            let mut restored = Deduper::with_capacity(ids_max);
            seen.chunks().iter().for_each(|chunk| restored.insert_chunk(chunk));
            prop_assert_eq!(restored.len(), seen.len());
            prop_assert!((0..count).all(|number| restored.contains(&id(number)) == seen.contains(&id(number))));
        }
    }

    #[test]
    fn the_hash_is_stable() {
        assert_eq!(stable_hash(b""), stable_hash(b""));
        assert_ne!(stable_hash(b"ab"), stable_hash(b"ab\0"));
        assert_eq!(format!("{:x}", stable_hash(b"event-1")), HASH_OF_EVENT_1);
    }

    const HASH_OF_EVENT_1: &str = "2bc02001c9329f8f";
}
