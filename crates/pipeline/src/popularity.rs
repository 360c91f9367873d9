//! Popularity as a request sees it: the live counts, and those of the bundle's training.
use lodestone_core::ids::ItemKey;
use lodestone_events::{Counts, PopularitySnapshot, Rank};
use std::{cmp::Ordering, sync::Arc};

/// For each item the greater of its live counts and of its counts at the bundle's training.
///
/// A server that knows the events of the training sees its live counts, because those include the others. A server that
/// starts with an empty data directory sees the counts of the training until its own events exceed them.
#[derive(Debug, Clone, Default)]
pub struct PopularityView {
    live: Arc<PopularitySnapshot>,
    trained: Arc<PopularitySnapshot>,
}

impl PopularityView {
    pub fn new(live: Arc<PopularitySnapshot>, trained: Arc<PopularitySnapshot>) -> Self {
        Self { live, trained }
    }

    pub fn counts(&self, key: ItemKey) -> Counts {
        self.live.counts(key).max(self.trained.counts(key))
    }

    /// Returns the number of entries that [`Self::popular`] reads.
    pub fn item_count_max(&self) -> usize {
        self.live.popular().len() + self.trained.popular().len()
    }

    /// Returns the items with events, the most popular first, by the greater of both [`Counts::rank`], each once.
    pub fn popular(&self) -> impl Iterator<Item = ItemKey> {
        // An item belongs to the list in which its counts are greater, and both lists are in order.
        let precedes = |live: ItemKey, trained: ItemKey| {
            let [live, trained] = [self.live.counts(live), self.trained.counts(trained)].map(|counts| counts.rank());
            live.cmp_popular_first(&trained) != Ordering::Greater
        };
        let (mut live, mut trained) =
            (self.live.popular().iter().copied().peekable(), self.trained.popular().iter().copied().peekable());
        std::iter::from_fn(move || {
            loop {
                let is_from_live = match (live.peek(), trained.peek()) {
                    (Some(a), Some(b)) => precedes(*a, *b),
                    (live, _) => live.is_some(),
                };
                let key = if is_from_live { live.next()? } else { trained.next()? };
                if precedes(key, key) == is_from_live {
                    return Some(key);
                }
            }
        })
    }

    /// Returns the rank that the `count` most popular items reach; of fewer items with events, that of the last one.
    /// Items without events do not reach it.
    pub fn rank_of_most_popular(&self, count: usize) -> Option<Rank> {
        self.popular().take(count).last().map(|key| self.counts(key).rank())
    }

    /// Returns the items that sell more than usual, best first. The counts of the training do not trend.
    pub fn trending(&self) -> &[ItemKey] {
        self.live.trending()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lodestone_catalog::ItemKeys;
    use lodestone_core::{
        ids::{EventId, ItemId, UserId},
        units::{Quantity, UnixMillis},
    };
    use lodestone_events::{Event, EventKind, EventLine, Popularity};
    use proptest::prelude::*;

    const NOW: UnixMillis = UnixMillis(1_800_000_000_000);

    /// Views of items, each by a user of its own and some days ago.
    fn snapshot(views: &[(u8, u8)], keys: &ItemKeys) -> Arc<PopularitySnapshot> {
        let mut popularity = Popularity::default();
        for (number, (item, days)) in views.iter().enumerate() {
            let id = EventId::parse("e").unwrap();
            let at = UnixMillis(NOW.0 - i64::from(*days) * UnixMillis::DAY);
            let item = ItemId::parse(&item.to_string()).unwrap();
            let lines = vec![EventLine { item, quantity: Quantity::ONE, price: None, rank: 0 }];
            let user = UserId::visitor(&number.to_string()).unwrap();
            popularity.apply(&Event { lines, ..Event::new(id, EventKind::View, user, at) }, keys);
        }
        Arc::new(PopularitySnapshot::new(popularity.counts().clone(), &PopularitySnapshot::default(), NOW))
    }

    proptest! {
        #[test]
        fn the_merged_order_is_that_of_the_greater_ranks(
            live in prop::collection::vec((0u8..12, 0u8..200), 0..40),
            trained in prop::collection::vec((0u8..12, 0u8..200), 0..40),
        ) {
            let keys = ItemKeys::default();
            for item in 0..12u8 {
                keys.intern(&ItemId::parse(&item.to_string()).unwrap());
            }
            let view = PopularityView::new(snapshot(&live, &keys), snapshot(&trained, &keys));
            let found: Vec<ItemKey> = view.popular().collect();
            let rank = |key: &ItemKey| {
                let [live, trained] = [&view.live, &view.trained].map(|popularity| popularity.counts(*key).rank());
                if live.cmp_popular_first(&trained) == Ordering::Greater { trained } else { live }
            };
            let mut expected: Vec<ItemKey> = (0..12).map(ItemKey).filter(|key| !view.counts(*key).is_zero()).collect();
            expected.sort_by(|a, b| rank(a).cmp_popular_first(&rank(b)));
            let ranks = |keys: &[ItemKey]| keys.iter().map(rank).collect::<Vec<_>>();
            prop_assert_eq!(ranks(&found), ranks(&expected));
            let distinct: std::collections::BTreeSet<ItemKey> = found.iter().copied().collect();
            prop_assert_eq!(distinct.len(), found.len());
        }
    }
}
