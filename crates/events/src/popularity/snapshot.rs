//! A state of popularity that readers share, with the items in order.
use super::{Counts, Rank};
use lodestone_core::{ids::ItemKey, units::UnixMillis};
use std::sync::Arc;

/// Items of a chunk. A chunk is copied if it changes while a snapshot holds it.
const CHUNK: usize = 256;

/// Counts of all items, in chunks that snapshots share with the fold.
#[derive(Debug, Clone, Default)]
pub struct ItemCounts {
    chunks: Vec<Arc<[Counts; CHUNK]>>,
}

impl ItemCounts {
    /// Returns the counts of an item; zero for an unknown one.
    pub fn get(&self, key: ItemKey) -> Counts {
        let index = key.0 as usize;
        self.chunks.get(index / CHUNK).map_or_else(Counts::default, |chunk| chunk[index % CHUNK])
    }

    /// Returns the items with events, in the order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = (ItemKey, Counts)> {
        let all = self.chunks.iter().flat_map(|chunk| chunk.iter()).enumerate();
        all.filter(|(_, counts)| !counts.is_zero()).map(|(index, counts)| (ItemKey(index as u32), *counts))
    }

    /// Returns the counts with other keys: `keys` has the new key of each key.
    pub fn renumbered(&self, keys: &[ItemKey]) -> Self {
        let mut renumbered = Self::default();
        for (key, counts) in self.iter() {
            if let Some(new) = keys.get(key.0 as usize) {
                *renumbered.entry(*new) = counts;
            }
        }
        renumbered
    }

    pub(super) fn entry(&mut self, key: ItemKey) -> &mut Counts {
        let index = key.0 as usize;
        while self.chunks.len() <= index / CHUNK {
            self.chunks.push(Arc::new([Counts::default(); CHUNK]));
        }
        &mut Arc::make_mut(&mut self.chunks[index / CHUNK])[index % CHUNK]
    }

    /// Number of keys for which there is space.
    fn capacity(&self) -> usize {
        self.chunks.len() * CHUNK
    }
}

/// Counts of all items at one moment, with the items in order. It does not change, so readers need no lock.
#[derive(Debug, Clone, Default)]
pub struct PopularitySnapshot {
    counts: ItemCounts,
    popular: Vec<ItemKey>,
    trending: Vec<ItemKey>,
}

impl PopularitySnapshot {
    /// Orders the items. O(items), and faster with the previous snapshot, whose order is nearly the same.
    pub fn new(counts: ItemCounts, previous: &Self, now: UnixMillis) -> Self {
        let mut ranks = vec![Rank::NONE; counts.capacity()];
        counts.iter().for_each(|(key, counts)| ranks[key.0 as usize] = counts.rank());
        let rank = |key: ItemKey| ranks.get(key.0 as usize).copied().unwrap_or(Rank::NONE);
        let mut is_known = vec![false; ranks.len()];
        let known = previous.popular.iter().filter(|key| rank(**key) != Rank::NONE);
        let mut popular: Vec<ItemKey> = known.inspect(|key| is_known[key.0 as usize] = true).copied().collect();
        popular.extend(counts.iter().map(|(key, _)| key).filter(|key| !is_known[key.0 as usize]));
        // The stable sort is linear on sorted runs.
        popular.sort_by(|a, b| rank(*a).cmp_popular_first(&rank(*b)).then(a.cmp(b)));
        let trend = |(key, counts): (ItemKey, Counts)| Some((counts.sales_trend(now)?, key));
        let mut trending: Vec<(f32, ItemKey)> = counts.iter().filter_map(trend).collect();
        trending.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        Self { counts, popular, trending: trending.into_iter().map(|(_, key)| key).collect() }
    }

    /// Returns the counts of an item; zero for an unknown one.
    pub fn counts(&self, key: ItemKey) -> Counts {
        self.counts.get(key)
    }

    /// Returns the items with events, the most popular first, by [`Counts::rank`].
    pub fn popular(&self) -> &[ItemKey] {
        &self.popular
    }

    /// Returns the items that sell more than usual in descending order of [`Counts::sales_trend`].
    pub fn trending(&self) -> &[ItemKey] {
        &self.trending
    }
}
