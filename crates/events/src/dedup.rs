//! Which events were seen lately.
use lodestone_core::{ids::EventId, units::UnixMillis};
use std::{
    collections::{HashSet, VecDeque},
    hash::{BuildHasherDefault, Hasher},
    sync::Arc,
};

/// Days for which the id of a stored event is remembered, unless too many come.
pub const DEDUPE_DAYS: u32 = 7;
/// Event ids that are remembered at most, where nobody says otherwise: 33 per second over seven days.
pub const DEDUPE_IDS_MAX: usize = 20_000_000;
/// Ids that are forgotten together.
const CHUNK_IDS: usize = 16_384;
/// Many small tables: when one grows, a write waits for it.
const TABLES: usize = 256;

/// Remembers event ids for seven days of log time, as 64-bit hashes: with 20,000,000 of them the odds that a new event is
/// taken for a duplicate are one in 10^12. Takes 17 to 29 bytes per id.
///
/// An id's age counts from when the event was stored, not from when it happened: a purchase of last month that is written
/// today must be known when its write is tried again a second later. Where more ids come than may be held, the oldest are
/// forgotten sooner; a retry that comes later than that counts twice.
pub struct Deduper {
    tables: Vec<HashSet<u64, BuildHasherDefault<Hashed>>>,
    /// In the order in which they were noted.
    full: VecDeque<Arc<Chunk>>,
    filling: Chunk,
    len: usize,
    ids_max: usize,
}

/// Ids that came one after the other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chunk {
    /// When the last of them was stored, in seconds since 1970.
    pub last_s: u32,
    pub hashes: Vec<u64>,
}

impl Default for Deduper {
    fn default() -> Self {
        Self::with_capacity(DEDUPE_IDS_MAX)
    }
}

impl Deduper {
    /// Remembers at most `ids_max` ids, at least one.
    pub fn with_capacity(ids_max: usize) -> Self {
        let tables = (0..TABLES).map(|_| HashSet::default()).collect();
        Self { tables, full: VecDeque::new(), filling: Chunk::default(), len: 0, ids_max: ids_max.max(1) }
    }

    pub fn contains(&self, id: &EventId) -> bool {
        let hash = hash(id.as_str().as_bytes());
        self.tables[table_of(hash)].contains(&hash)
    }

    /// Remembers an event that is stored at time `at`. False: it was known already.
    pub fn note(&mut self, id: &EventId, at: UnixMillis) -> bool {
        self.note_hash(hash(id.as_str().as_bytes()), at.seconds_u32())
    }

    fn note_hash(&mut self, hash: u64, at_s: u32) -> bool {
        if !self.tables[table_of(hash)].insert(hash) {
            return false;
        }
        self.len += 1;
        self.filling.last_s = self.filling.last_s.max(at_s);
        self.filling.hashes.push(hash);
        // Small capacities have smaller chunks, so that a whole one is never most of what is remembered.
        if self.filling.hashes.len() >= CHUNK_IDS.min(self.ids_max.div_ceil(8)) {
            let full = std::mem::take(&mut self.filling);
            self.filling.last_s = full.last_s;
            self.full.push_back(Arc::new(full));
            self.forget_before(at_s.saturating_sub(DEDUPE_DAYS * 86_400));
        }
        while self.len > self.ids_max && self.forget_oldest() {}
        true
    }

    fn forget_before(&mut self, limit_s: u32) {
        while self.full.front().is_some_and(|oldest| oldest.last_s < limit_s) && self.forget_oldest() {}
    }

    fn forget_oldest(&mut self) -> bool {
        let Some(oldest) = self.full.pop_front() else { return false };
        for hash in &oldest.hashes {
            self.tables[table_of(*hash)].remove(hash);
        }
        self.len -= oldest.hashes.len();
        true
    }

    /// All that is remembered, oldest first: to be noted again by [`Deduper::note_chunk`].
    pub fn chunks(&self) -> Vec<Arc<Chunk>> {
        let filling = Arc::new(self.filling.clone());
        self.full.iter().cloned().chain(std::iter::once(filling)).filter(|chunk| !chunk.hashes.is_empty()).collect()
    }

    /// Remembers what another deduper did. Chunks must come in their order.
    pub fn note_chunk(&mut self, chunk: &Chunk) {
        for hash in &chunk.hashes {
            self.note_hash(*hash, chunk.last_s);
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
    // Bits that the tables themselves do not look at.
    (hash >> 44) as usize % TABLES
}

/// A 64-bit hash that is the same on every machine and in every version, since checkpoints hold it. Eight bytes at a time
/// through the finalizer of MurmurHash3 (A. Appleby, public domain).
fn hash(bytes: &[u8]) -> u64 {
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

/// A hash that is used as it is.
#[derive(Default)]
struct Hashed(u64);

impl Hasher for Hashed {
    fn write(&mut self, _: &[u8]) {
        unreachable!("only 64-bit hashes are kept")
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
    use proptest::prelude::*;

    fn id(number: usize) -> EventId {
        EventId::parse(&format!("e{number}")).unwrap()
    }

    const START: UnixMillis = UnixMillis(1_750_000_000_000);

    #[test]
    fn an_id_is_new_once() {
        let mut seen = Deduper::default();
        assert!(seen.note(&id(1), START));
        assert!(!seen.note(&id(1), START));
        assert!(seen.contains(&id(1)) && !seen.contains(&id(2)));
    }

    #[test]
    fn the_oldest_ids_leave_a_full_set() {
        let mut seen = Deduper::with_capacity(16);
        for number in 0..20 {
            seen.note(&id(number), START);
        }
        assert!(seen.len() <= 16 && seen.len() >= 14);
        assert!(!seen.contains(&id(0)) && (4..20).all(|number| seen.contains(&id(number))));
    }

    proptest! {
        /// Seven days of log time, whatever the number of events per second, while they are fewer than the limit.
        #[test]
        fn an_id_is_known_for_seven_days(gaps in proptest::collection::vec(0i64..40_000, 1..300)) {
            let (mut seen, mut at, mut noted) = (Deduper::with_capacity(1000), START, Vec::new());
            for (number, gap) in gaps.iter().enumerate() {
                at.0 += gap * 1000;
                prop_assert!(seen.note(&id(number), at));
                noted.push(at);
                let known = noted.iter().enumerate().filter(|(_, noted)| at.0 - noted.0 <= 7 * UnixMillis::DAY);
                for (number, _) in known {
                    prop_assert!(seen.contains(&id(number)));
                }
            }
        }

        #[test]
        fn what_was_taken_down_is_known_again(count in 0usize..500, ids_max in 1usize..300) {
            let mut seen = Deduper::with_capacity(ids_max);
            (0..count).for_each(|number| _ = seen.note(&id(number), START));
            let mut again = Deduper::with_capacity(ids_max);
            seen.chunks().iter().for_each(|chunk| again.note_chunk(chunk));
            prop_assert_eq!(again.len(), seen.len());
            prop_assert!((0..count).all(|number| again.contains(&id(number)) == seen.contains(&id(number))));
        }
    }

    #[test]
    fn the_hash_never_changes() {
        assert_eq!(hash(b""), hash(b""));
        assert_ne!(hash(b"ab"), hash(b"ab\0"));
        assert_eq!(format!("{:x}", hash(b"event-1")), HASH_OF_EVENT_1);
    }

    const HASH_OF_EVENT_1: &str = "2bc02001c9329f8f";
}
