//! The items that events name, with the times of their last events: bounds the items that are in no catalogue.
use ahash::{AHashMap, AHashSet};
use lodestone_catalog::ItemKeys;
use lodestone_core::ids::{ItemId, ItemKey};

/// The default limit on the number of items that events name.
pub const EVENT_ITEMS_MAX: usize = 5_000_000;

/// The time of the last event of each item that events name. If there are more items than the limit, those with the
/// earliest last events are evicted until an eighth of the limit is free: their events are forgotten. The evictions
/// follow from the log alone.
pub struct EventItems {
    /// Seconds since 1970.
    last_s: AHashMap<ItemKey, u32>,
    items_max: usize,
    evicted: u64,
}

impl Default for EventItems {
    fn default() -> Self {
        Self::with_limit(EVENT_ITEMS_MAX)
    }
}

impl EventItems {
    /// Creates an empty map of at most `items_max` items; 0 counts as 1.
    pub fn with_limit(items_max: usize) -> Self {
        Self { last_s: AHashMap::new(), items_max: items_max.max(1), evicted: 0 }
    }

    pub(crate) fn contains(&self, key: ItemKey) -> bool {
        self.last_s.contains_key(&key)
    }

    /// Records an event of an item.
    pub(crate) fn record(&mut self, key: ItemKey, at_s: u32) {
        let last = self.last_s.entry(key).or_default();
        *last = (*last).max(at_s);
    }

    /// Removes and returns the items with the earliest last events, if there are too many; among those of one second
    /// the first ids.
    pub(crate) fn evict(&mut self, keys: &ItemKeys) -> AHashSet<ItemKey> {
        if self.last_s.len() <= self.items_max {
            return AHashSet::new();
        }
        let count = self.last_s.len() - (self.items_max - self.items_max / 8);
        let mut times: Vec<u32> = self.last_s.values().copied().collect();
        let (_, &mut threshold, _) = times.select_nth_unstable(count - 1);
        let with = |wanted: &dyn Fn(u32) -> bool| -> Vec<ItemKey> {
            self.last_s.iter().filter(|(_, time)| wanted(**time)).map(|(key, _)| *key).collect()
        };
        let mut evicted: AHashSet<ItemKey> = with(&|time| time < threshold).into_iter().collect();
        let mut tied: Vec<(Option<ItemId>, ItemKey)> =
            with(&|time| time == threshold).into_iter().map(|key| (keys.id(key), key)).collect();
        tied.sort_unstable();
        evicted.extend(tied.into_iter().take(count - evicted.len()).map(|(_, key)| key));
        self.last_s.retain(|key, _| !evicted.contains(key));
        self.evicted += count as u64;
        evicted
    }

    /// The length of a record of [`EventItems::records`] in bytes.
    pub(crate) const RECORD_BYTES: usize = 8;

    /// Returns the state for checkpoints: for each item its key and the time of its last event.
    pub(crate) fn records(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.last_s.len() * Self::RECORD_BYTES);
        for (key, last_s) in &self.last_s {
            bytes.extend_from_slice(&key.0.to_le_bytes());
            bytes.extend_from_slice(&last_s.to_le_bytes());
        }
        bytes
    }

    /// Restores the records that [`EventItems::records`] returned. `key` maps a key of the writing process to one of
    /// this process.
    pub(crate) fn restore(
        &mut self,
        records: &[u8],
        key: impl Fn(ItemKey) -> Option<ItemKey>,
    ) -> Result<(), &'static str> {
        for record in records.chunks_exact(Self::RECORD_BYTES) {
            let number = |at: usize| u32::from_le_bytes(record[at..at + 4].try_into().expect("four bytes"));
            self.record(key(ItemKey(number(0))).ok_or("an item is unknown")?, number(4));
        }
        Ok(())
    }

    pub fn len(&self) -> usize {
        self.last_s.len()
    }

    pub fn is_empty(&self) -> bool {
        self.last_s.is_empty()
    }

    /// Number of items that were evicted.
    pub fn evicted_count(&self) -> u64 {
        self.evicted
    }
}
