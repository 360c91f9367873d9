//! How much shoppers want each item, now and lately.
use super::{Event, EventKind};
use lodestone_catalog::ItemKeys;
use lodestone_core::{ids::ItemKey, units::UnixMillis};

/// Half-life of [`Popularity::score`], in days.
const SLOW_HALF_LIFE: f64 = 60.0;
/// Half-life of what [`Popularity::trend`] compares with it, in days.
const FAST_HALF_LIFE: f64 = 7.0;
/// Weight per day that every item is taken to have, so that a handful of events is no trend.
const TREND_DAMPING: f64 = 1.0;

/// Decayed counts per item. An event counts by its kind, and half as much after each half-life.
///
/// The fold does not depend on the order of the events but for the last bits of a float: each item's counts stand as
/// of its latest event, and a late event joins them already decayed.
#[derive(Debug, Clone, Default)]
pub struct Popularity {
    /// By [`ItemKey`].
    counts: Vec<Counts>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    /// The time of the item's latest event; the counts are as of then.
    at: UnixMillis,
    slow: f64,
    fast: f64,
}

impl Popularity {
    /// Counts the event for each of its items, whatever the quantity.
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

    /// The state by item, for checkpoints: bytes of [`Popularity::RECORD_BYTES`] each, the item's key first.
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

    /// Bytes of an item in [`Popularity::records`].
    pub const RECORD_BYTES: usize = 28;

    /// Takes what [`Popularity::records`] gave; `key` gives this process's key for the one that was written.
    pub fn restore(&mut self, records: &[u8], key: impl Fn(ItemKey) -> Option<ItemKey>) -> Result<(), &'static str> {
        for record in records.chunks_exact(Self::RECORD_BYTES) {
            let eight = |at: usize| <[u8; 8]>::try_from(&record[at..at + 8]).expect("eight bytes");
            let written = ItemKey(u32::from_le_bytes(record[..4].try_into().expect("four bytes")));
            let at = UnixMillis(i64::from_le_bytes(eight(4)));
            let (slow, fast) = (f64::from_le_bytes(eight(12)), f64::from_le_bytes(eight(20)));
            if !(slow.is_finite() && fast.is_finite() && slow >= 0.0 && fast >= 0.0) {
                return Err("an item's popularity is no number");
            }
            let index = key(written).ok_or("an item is unknown")?.0 as usize;
            if index >= self.counts.len() {
                self.counts.resize(index + 1, Counts::default());
            }
            self.counts[index] = Counts { at, slow, fast };
        }
        Ok(())
    }

    /// The weight of all events, decayed with a half-life of 60 days; at least 0. 0 for an item without events.
    pub fn score(&self, key: ItemKey, now: UnixMillis) -> f32 {
        self.score_and_trend(key, now).0
    }

    /// How the last days' weight per day compares with the last months': above 1 is rising, below 1 falling, 1 steady
    /// or unknown. Damped, so that it stays near 1 for an item with few events.
    pub fn trend(&self, key: ItemKey, now: UnixMillis) -> f32 {
        self.score_and_trend(key, now).1
    }

    /// [`Popularity::score`] and [`Popularity::trend`] for the price of one.
    pub fn score_and_trend(&self, key: ItemKey, now: UnixMillis) -> (f32, f32) {
        self.counts.get(key.0 as usize).map_or((0.0, 1.0), |counts| {
            let slow = counts.slow_at(now);
            (slow as f32, counts.trend_beside(slow, now) as f32)
        })
    }

    /// At most `count` items with events by [`Popularity::score`], highest first.
    pub fn top(&self, count: usize, now: UnixMillis) -> Vec<(ItemKey, f32)> {
        self.best(count, |counts| counts.slow_at(now), 0.0)
    }

    /// At most `count` rising items by [`Popularity::trend`], highest first.
    pub fn top_trending(&self, count: usize, now: UnixMillis) -> Vec<(ItemKey, f32)> {
        self.best(count, |counts| counts.trend_at(now), 1.0)
    }

    /// Items whose value is above `floor`; the lower key first where values are equal.
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

    fn slow_at(&self, now: UnixMillis) -> f64 {
        self.slow * decay(days_between(self.at, now), SLOW_HALF_LIFE)
    }

    fn trend_at(&self, now: UnixMillis) -> f64 {
        self.trend_beside(self.slow_at(now), now)
    }

    fn trend_beside(&self, slow: f64, now: UnixMillis) -> f64 {
        let fast = self.fast * decay(days_between(self.at, now), FAST_HALF_LIFE);
        // A steady weight per day makes a count of that weight times half-life / ln 2.
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
        | EventKind::Return
        | EventKind::CategoryView
        | EventKind::IncentiveShown
        | EventKind::IncentiveRedeemed => 0.0,
    }
}

fn days_between(from: UnixMillis, to: UnixMillis) -> f64 {
    to.0.saturating_sub(from.0) as f64 / UnixMillis::DAY as f64
}

/// 1 for a time that has not come yet.
fn decay(days: f64, half_life: f64) -> f64 {
    (-days.max(0.0) / half_life).exp2()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Attribution, EventLine};
    use lodestone_core::ids::{EventId, ItemId, UserId};
    use proptest::prelude::*;

    const START: i64 = 1_700_000_000_000;

    fn day(day: f64) -> UnixMillis {
        UnixMillis(START + (day * UnixMillis::DAY as f64) as i64)
    }

    fn event(kind: EventKind, item: &str, at: UnixMillis) -> Event {
        let item = ItemId::parse(item).unwrap();
        Event {
            id: EventId::parse("e").unwrap(),
            kind,
            user: UserId::signed_in("p").unwrap(),
            session: String::new(),
            at,
            lines: vec![EventLine { item, quantity: 1, price: None, rank: 0 }],
            query: String::new(),
            order: String::new(),
            stars: 0,
            coupon: String::new(),
            categories: Vec::new(),
            currency: String::new(),
            attribution: Attribution::None,
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
    fn an_item_that_takes_off_trends_above_a_steady_best_seller() {
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
    fn impressions_make_nothing_popular() {
        let keys = ItemKeys::default();
        let popularity = fold(&[event(EventKind::Impression, "a", day(0.0))], &keys);
        assert!(popularity.top(9, day(0.0)).is_empty());
    }

    proptest! {
        #[test]
        fn late_events_count_as_if_they_had_come_in_time(
            order in proptest::collection::vec((0usize..14, 0u8..4, 0u32..400), 1..60).prop_shuffle()
        ) {
            let keys = ItemKeys::default();
            for item in 0..4u8 {
                keys.intern(&ItemId::parse(&item.to_string()).unwrap());
            }
            let make = |(kind, item, at): &(usize, u8, u32)| {
                event(EventKind::ALL[*kind], &item.to_string(), day(f64::from(*at)))
            };
            let mut events: Vec<Event> = order.iter().map(make).collect();
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
        fn no_time_makes_a_number_that_is_not_finite(times in proptest::collection::vec(any::<i64>(), 1..9), now: i64) {
            let keys = ItemKeys::default();
            let events: Vec<Event> =
                times.iter().map(|at| event(EventKind::Purchase, "a", UnixMillis(*at))).collect();
            let popularity = fold(&events, &keys);
            prop_assert!(popularity.score(ItemKey(0), UnixMillis(now)).is_finite());
            prop_assert!(popularity.trend(ItemKey(0), UnixMillis(now)).is_finite());
        }
    }
}
