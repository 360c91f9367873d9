//! Popularity of items: decayed interaction counts and their recent trend.
use super::{Event, EventKind};
use lodestone_catalog::ItemKeys;
use lodestone_core::{ids::ItemKey, units::UnixMillis};

/// Half-life of [`Popularity::score`], in days.
const SLOW_HALF_LIFE: f64 = 60.0;
/// Half-life of the recent count that [`Popularity::trend`] compares with the slow one, in days.
const FAST_HALF_LIFE: f64 = 7.0;
/// A weight per day that is added to both rates of [`Popularity::trend`], so that a few events are not a trend.
const TREND_DAMPING: f64 = 1.0;

/// Smaller counts are 0 after a purchase was removed.
const REMAINDER_MIN: f64 = 1e-6;

/// Exponentially decayed counts per item. The weight of an event depends on its kind and halves after each half-life.
///
/// Apart from the rounding of floats, the result does not depend on the order of the events: the counts of an item
/// refer to the time of its latest event, and a late event is added with the decay since its own time.
#[derive(Debug, Clone, Default)]
pub struct Popularity {
    /// Indexed by [`ItemKey`].
    counts: Vec<Counts>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    /// The time of the item's latest event, to which the counts refer.
    at: UnixMillis,
    slow: f64,
    fast: f64,
}

impl Popularity {
    /// Counts the event once for each of its items, regardless of the quantity.
    pub fn apply(&mut self, event: &Event, keys: &ItemKeys) {
        let weight = weight(event.kind);
        if weight == 0.0 {
            return;
        }
        for line in &event.lines {
            let index = keys.intern(&line.item).0 as usize;
            if index >= self.counts.len() {
                self.counts.resize(index + 1, Counts::default());
            }
            self.counts[index].add(event.at, weight);
        }
    }

    /// Takes back the count of a purchase that was refunded in full.
    pub fn remove_purchase(&mut self, key: ItemKey, at: UnixMillis) {
        if let Some(counts) = self.counts.get_mut(key.0 as usize) {
            counts.remove(at, weight(EventKind::Purchase));
        }
    }

    /// Counts a purchase again whose count [`Popularity::remove_purchase`] took back.
    pub fn restore_purchase(&mut self, key: ItemKey, at: UnixMillis) {
        if let Some(counts) = self.counts.get_mut(key.0 as usize) {
            counts.add(at, weight(EventKind::Purchase));
        }
    }

    /// Returns the state for checkpoints: one record of [`Popularity::RECORD_BYTES`] bytes for each item, which starts
    /// with the item's key.
    pub fn records(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (index, counts) in self.counts.iter().enumerate().filter(|(_, counts)| counts.slow > 0.0) {
            bytes.extend_from_slice(&(index as u32).to_le_bytes());
            bytes.extend_from_slice(&counts.at.0.to_le_bytes());
            bytes.extend_from_slice(&counts.slow.to_le_bytes());
            bytes.extend_from_slice(&counts.fast.to_le_bytes());
        }
        bytes
    }

    /// The length of a record of [`Popularity::records`] in bytes.
    pub const RECORD_BYTES: usize = 28;

    /// Restores the records that [`Popularity::records`] returned. `key` maps a key of the writing process to one of
    /// this process.
    pub fn restore(&mut self, records: &[u8], key: impl Fn(ItemKey) -> Option<ItemKey>) -> Result<(), &'static str> {
        for record in records.chunks_exact(Self::RECORD_BYTES) {
            let eight = |at: usize| <[u8; 8]>::try_from(&record[at..at + 8]).expect("eight bytes");
            let written = ItemKey(u32::from_le_bytes(record[..4].try_into().expect("four bytes")));
            let at = UnixMillis(i64::from_le_bytes(eight(4)));
            let (slow, fast) = (f64::from_le_bytes(eight(12)), f64::from_le_bytes(eight(20)));
            if !(slow.is_finite() && fast.is_finite() && slow >= 0.0 && fast >= 0.0) {
                return Err("the popularity of an item is not a finite number of at least 0");
            }
            let index = key(written).ok_or("an item is unknown")?.0 as usize;
            if index >= self.counts.len() {
                self.counts.resize(index + 1, Counts::default());
            }
            self.counts[index] = Counts { at, slow, fast };
        }
        Ok(())
    }

    /// Returns the total weight of an item's events, decayed with a half-life of 60 days; 0 for an item without events.
    pub fn score(&self, key: ItemKey, now: UnixMillis) -> f32 {
        self.score_and_trend(key, now).0
    }

    /// Returns the ratio of the weight per day of the last days to that of the last months: above 1 is rising, below 1
    /// falling, 1 steady or unknown. Damping keeps the ratio near 1 for items with few events.
    pub fn trend(&self, key: ItemKey, now: UnixMillis) -> f32 {
        self.score_and_trend(key, now).1
    }

    /// Returns [`Popularity::score`] and [`Popularity::trend`] with one decay of the slow count.
    pub fn score_and_trend(&self, key: ItemKey, now: UnixMillis) -> (f32, f32) {
        self.counts.get(key.0 as usize).map_or((0.0, 1.0), |counts| {
            let slow = counts.slow_at(now);
            (slow as f32, counts.trend_with(slow, now) as f32)
        })
    }

    /// Returns at most `count` items with events in descending order of [`Popularity::score`].
    pub fn top(&self, count: usize, now: UnixMillis) -> Vec<(ItemKey, f32)> {
        self.best(count, |counts| counts.slow_at(now), 0.0)
    }

    /// Returns at most `count` rising items in descending order of [`Popularity::trend`].
    pub fn top_trending(&self, count: usize, now: UnixMillis) -> Vec<(ItemKey, f32)> {
        self.best(count, |counts| counts.trend_at(now), 1.0)
    }

    /// Returns at most `count` items with a value above `floor` in descending order. The lower key breaks ties.
    fn best(&self, count: usize, value: impl Fn(&Counts) -> f64, floor: f64) -> Vec<(ItemKey, f32)> {
        let values = self.counts.iter().enumerate().map(|(index, counts)| (ItemKey(index as u32), value(counts)));
        let mut best: Vec<(ItemKey, f64)> = values.filter(|(_, value)| *value > floor).collect();
        let order = |a: &(ItemKey, f64), b: &(ItemKey, f64)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        if count < best.len() {
            best.select_nth_unstable_by(count, order);
            best.truncate(count);
        }
        best.sort_unstable_by(order);
        best.into_iter().map(|(key, value)| (key, value as f32)).collect()
    }
}

impl Counts {
    fn add(&mut self, at: UnixMillis, weight: f64) {
        if self.slow == 0.0 && self.fast == 0.0 {
            *self = Self { at, slow: weight, fast: weight };
            return;
        }
        let days = days_between(self.at, at);
        if days > 0.0 {
            self.slow = self.slow * decay(days, SLOW_HALF_LIFE) + weight;
            self.fast = self.fast * decay(days, FAST_HALF_LIFE) + weight;
            self.at = at;
        } else {
            self.slow += weight * decay(-days, SLOW_HALF_LIFE);
            self.fast += weight * decay(-days, FAST_HALF_LIFE);
        }
    }

    /// The inverse of [`Counts::add`]. What remains of rounding is 0.
    fn remove(&mut self, at: UnixMillis, weight: f64) {
        let days = days_between(at, self.at);
        let rest = |count: f64, half_life: f64| {
            let rest = count - weight * decay(days, half_life);
            if rest > REMAINDER_MIN { rest } else { 0.0 }
        };
        (self.slow, self.fast) = (rest(self.slow, SLOW_HALF_LIFE), rest(self.fast, FAST_HALF_LIFE));
    }

    fn slow_at(&self, now: UnixMillis) -> f64 {
        self.slow * decay(days_between(self.at, now), SLOW_HALF_LIFE)
    }

    fn trend_at(&self, now: UnixMillis) -> f64 {
        self.trend_with(self.slow_at(now), now)
    }

    fn trend_with(&self, slow: f64, now: UnixMillis) -> f64 {
        let fast = self.fast * decay(days_between(self.at, now), FAST_HALF_LIFE);
        // A steady weight per day converges to a count of that weight times half-life / ln 2.
        let per_day = |count: f64, half_life: f64| count * std::f64::consts::LN_2 / half_life;
        (per_day(fast, FAST_HALF_LIFE) + TREND_DAMPING) / (per_day(slow, SLOW_HALF_LIFE) + TREND_DAMPING)
    }
}

fn weight(kind: EventKind) -> f64 {
    match kind {
        EventKind::Purchase => 4.0,
        EventKind::AddToCart | EventKind::Favorite => 2.0,
        EventKind::View | EventKind::Click | EventKind::Review => 1.0,
        EventKind::Search
        | EventKind::Impression
        | EventKind::RemoveFromCart
        | EventKind::Unfavorite
        | EventKind::Refund
        | EventKind::CategoryView
        | EventKind::IncentiveShown
        | EventKind::IncentiveRedeemed => 0.0,
    }
}

fn days_between(from: UnixMillis, to: UnixMillis) -> f64 {
    to.0.saturating_sub(from.0) as f64 / UnixMillis::DAY as f64
}

/// Returns the decay factor after `days`; 1 for negative days.
fn decay(days: f64, half_life: f64) -> f64 {
    (-days.max(0.0) / half_life).exp2()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::EventLine;
    use lodestone_core::{
        ids::{EventId, ItemId, UserId},
        units::Quantity,
    };
    use proptest::prelude::*;

    const START: i64 = 1_700_000_000_000;

    fn day(day: f64) -> UnixMillis {
        UnixMillis(START + (day * UnixMillis::DAY as f64) as i64)
    }

    fn event(kind: EventKind, item: &str, at: UnixMillis) -> Event {
        let item = ItemId::parse(item).unwrap();
        Event {
            lines: vec![EventLine { item, quantity: Quantity::ONE, price: None, rank: 0 }],
            ..Event::new(EventId::parse("e").unwrap(), kind, UserId::signed_in("p").unwrap(), at)
        }
    }

    fn fold(events: &[Event], keys: &ItemKeys) -> Popularity {
        let mut popularity = Popularity::default();
        events.iter().for_each(|event| popularity.apply(event, keys));
        popularity
    }

    fn close(a: f32, b: f32) -> bool {
        (a - b).abs() <= 1e-5 * a.abs().max(b.abs()).max(1e-6)
    }

    #[test]
    fn a_purchase_counts_four_and_half_of_it_sixty_days_later() {
        let keys = ItemKeys::default();
        let popularity = fold(&[event(EventKind::Purchase, "a", day(0.0))], &keys);
        let key = keys.get(&ItemId::parse("a").unwrap()).unwrap();
        assert!(close(popularity.score(key, day(0.0)), 4.0));
        assert!(close(popularity.score(key, day(60.0)), 2.0));
        assert_eq!(popularity.score(ItemKey(99), day(0.0)), 0.0);
        assert_eq!(popularity.trend(ItemKey(99), day(0.0)), 1.0);
    }

    #[test]
    fn a_rising_item_trends_above_a_steady_best_seller() {
        let keys = ItemKeys::default();
        let mut events = Vec::new();
        for hour in 0..200 * 24 {
            events.push(event(EventKind::Purchase, "steady", day(f64::from(hour) / 24.0)));
        }
        for hour in 197 * 24..200 * 24 {
            events.push(event(EventKind::View, "rising", day(f64::from(hour) / 24.0)));
        }
        let popularity = fold(&events, &keys);
        let (steady, rising) = (ItemKey(0), ItemKey(1));
        let now = day(200.0);
        assert_eq!(popularity.top(1, now)[0].0, steady);
        assert_eq!(popularity.top_trending(1, now)[0].0, rising);
        assert!((popularity.trend(steady, now) - 1.0).abs() < 0.15, "{}", popularity.trend(steady, now));
        assert!(popularity.trend(steady, day(230.0)) < 1.0);
        assert_eq!(popularity.top(5, now).len(), 2);
    }

    #[test]
    fn a_removed_purchase_leaves_what_the_other_events_count() {
        let keys = ItemKeys::default();
        let (view, purchase) = (event(EventKind::View, "a", day(0.0)), event(EventKind::Purchase, "a", day(1.5)));
        let later = event(EventKind::View, "a", day(9.0));
        let mut popularity = fold(&[view.clone(), purchase.clone(), later.clone()], &keys);
        let expected = fold(&[view, later], &keys);
        popularity.remove_purchase(ItemKey(0), purchase.at);
        let now = day(20.0);
        assert!(close(popularity.score(ItemKey(0), now), expected.score(ItemKey(0), now)));
        assert!(close(popularity.trend(ItemKey(0), now), expected.trend(ItemKey(0), now)));
        let mut only = fold(std::slice::from_ref(&purchase), &keys);
        only.remove_purchase(ItemKey(0), purchase.at);
        assert!(only.top(9, now).is_empty());
        only.restore_purchase(ItemKey(0), purchase.at);
        assert_eq!(only.top(9, now), fold(&[purchase], &keys).top(9, now));
    }

    #[test]
    fn impressions_do_not_count() {
        let keys = ItemKeys::default();
        let popularity = fold(&[event(EventKind::Impression, "a", day(0.0))], &keys);
        assert!(popularity.top(9, day(0.0)).is_empty());
    }

    proptest! {
        #[test]
        fn the_order_of_events_does_not_matter(
            order in proptest::collection::vec((0usize..14, 0u8..4, 0u32..400), 1..60).prop_shuffle()
        ) {
            let keys = ItemKeys::default();
            for item in 0..4u8 {
                keys.intern(&ItemId::parse(&item.to_string()).unwrap());
            }
            let to_event = |(kind, item, at): &(usize, u8, u32)| {
                event(EventKind::ALL[*kind], &item.to_string(), day(f64::from(*at)))
            };
            let mut events: Vec<Event> = order.iter().map(to_event).collect();
            let shuffled = fold(&events, &keys);
            events.sort_by_key(|event| event.at);
            let sorted = fold(&events, &keys);
            for key in (0..4).map(ItemKey) {
                let now = day(400.0);
                prop_assert!(close(shuffled.score(key, now), sorted.score(key, now)));
                prop_assert!(close(shuffled.trend(key, now), sorted.trend(key, now)));
            }
        }

        #[test]
        fn scores_and_trends_are_finite_at_any_time(times in proptest::collection::vec(any::<i64>(), 1..9), now: i64) {
            let keys = ItemKeys::default();
            let events: Vec<Event> =
                times.iter().map(|at| event(EventKind::Purchase, "a", UnixMillis(*at))).collect();
            let popularity = fold(&events, &keys);
            prop_assert!(popularity.score(ItemKey(0), UnixMillis(now)).is_finite());
            prop_assert!(popularity.trend(ItemKey(0), UnixMillis(now)).is_finite());
        }
    }
}
