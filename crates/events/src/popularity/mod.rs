//! Popularity of items: decayed numbers of users, and of buyers, per item.
//!
//! Counts are numbers of users and not of events, so that one user, or one program, cannot make an item popular: a user
//! counts once per item, and only a limited number of a user's events counts within an hour.
mod counts;
mod rates;
mod records;
mod snapshot;

use super::Event;
pub use counts::{Counts, CountsAt, Rank};
use counts::{Level, UserTimes};
use lodestone_catalog::ItemKeys;
use lodestone_core::{
    ids::{ItemKey, UserId},
    units::UnixMillis,
};
use rates::UserRates;
pub use snapshot::{ItemCounts, PopularitySnapshot};

/// Maximum number of users of an item that are remembered, so that their next events do not count again. An item has at
/// most one repeated user for each of this number of other users.
const USERS_MAX: usize = 8;

/// The fold of events into counts per item.
///
/// Apart from the rounding of floats, the result does not depend on the order of the events while an item has at most
/// [`USERS_MAX`] users: counts refer to the time of the item's latest event, and a late event is added with the decay
/// since its own time.
#[derive(Debug, Default)]
pub struct Popularity {
    counts: ItemCounts,
    /// By [`ItemKey`]: remembered users, at most [`USERS_MAX`].
    users: Vec<Vec<UserTimes>>,
    rates: UserRates,
}

impl Popularity {
    /// Counts the event's user once for each item, regardless of the quantity.
    pub fn apply(&mut self, event: &Event, keys: &ItemKeys) {
        let Some(level) = Level::of(event.kind) else { return };
        let user = checksum(&event.user);
        // 0 stands for no event.
        let at_s = event.at.seconds_u32().max(1);
        for line in &event.lines {
            if self.rates.allows(user, at_s) {
                self.count(keys.intern_for_event(&line.item), user, level, at_s);
            }
        }
    }

    fn count(&mut self, key: ItemKey, user: u32, level: Level, at_s: u32) {
        let counts = self.counts.entry(key);
        let index = key.0 as usize;
        if index >= self.users.len() {
            self.users.resize_with(index + 1, Vec::new);
        }
        let users = &mut self.users[index];
        let known = users.iter().position(|times| times.user == user);
        let slot = known.unwrap_or_else(|| {
            let new = UserTimes::new(user);
            if users.len() < USERS_MAX {
                users.push(new);
                return users.len() - 1;
            }
            // The user who came least recently is forgotten, and so counts again only after USERS_MAX others.
            let least = (0..users.len()).min_by_key(|slot| users[*slot].latest()).unwrap_or(0);
            users[least] = new;
            least
        });
        let after = users[slot].with(level, at_s);
        replace(counts, users, slot, after);
    }

    /// Withdraws the count of a purchase that was refunded in full, or counts it again. Without effect for a user whom
    /// the item does not remember, because [`USERS_MAX`] others came since. A user's views and carts still count.
    pub fn change_purchase(&mut self, user: &UserId, key: ItemKey, at: UnixMillis, counts: bool) {
        let (user, at_s) = (checksum(user), at.seconds_u32().max(1));
        let Some(users) = self.users.get_mut(key.0 as usize) else { return };
        let Some(slot) = users.iter().position(|times| times.user == user) else { return };
        let after = match counts {
            true => users[slot].with(Level::Purchase, at_s),
            false => users[slot].without_purchase(at_s),
        };
        replace(self.counts.entry(key), users, slot, after);
    }

    /// Forgets the events of an item.
    pub fn forget(&mut self, key: ItemKey) {
        if let Some(users) = self.users.get_mut(key.0 as usize) {
            *users = Vec::new();
            *self.counts.entry(key) = Counts::default();
        }
    }

    /// Returns the counts of all items.
    pub fn counts(&self) -> &ItemCounts {
        &self.counts
    }
}

fn checksum(user: &UserId) -> u32 {
    crc32c::crc32c(user.as_str().as_bytes())
}

/// Replaces the times of a remembered user and the user's contribution to the counts.
fn replace(counts: &mut Counts, users: &mut [UserTimes], slot: usize, after: UserTimes) {
    let others = users.iter().enumerate().filter(|(index, _)| *index != slot).map(|(_, times)| times);
    let strongest = others.max_by(|a, b| a.strength().total_cmp(&b.strength()));
    counts.replace(&users[slot], &after, strongest);
    users[slot] = after;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{EventKind, EventLine};
    use lodestone_core::{
        ids::{EventId, ItemId, UserId},
        units::{Quantity, UnixMillis},
    };
    use proptest::prelude::*;

    const START: i64 = 1_700_000_000_000;

    fn day(day: f64) -> UnixMillis {
        UnixMillis(START + (day * UnixMillis::DAY as f64) as i64)
    }

    fn event(kind: EventKind, user: &str, item: &str, at: UnixMillis) -> Event {
        let item = ItemId::parse(item).unwrap();
        Event {
            lines: vec![EventLine { item, quantity: Quantity::ONE, price: None, rank: 0 }],
            ..Event::new(EventId::parse("e").unwrap(), kind, UserId::signed_in(user).unwrap(), at)
        }
    }

    fn fold(events: &[Event], keys: &ItemKeys) -> Popularity {
        let mut popularity = Popularity::default();
        events.iter().for_each(|event| popularity.apply(event, keys));
        popularity
    }

    fn snapshot(popularity: &Popularity, now: UnixMillis) -> PopularitySnapshot {
        PopularitySnapshot::new(popularity.counts().clone(), &PopularitySnapshot::default(), now)
    }

    fn close(a: f32, b: f32) -> bool {
        (a - b).abs() <= 1e-5 * a.abs().max(b.abs()).max(1e-6)
    }

    #[test]
    fn a_purchase_counts_four_and_half_of_it_sixty_days_later() {
        let keys = ItemKeys::default();
        let popularity = fold(&[event(EventKind::Purchase, "p", "a", day(0.0))], &keys);
        let counts = popularity.counts().get(keys.get(&ItemId::parse("a").unwrap()).unwrap());
        assert!(close(counts.score(day(0.0)), 4.0));
        assert!(close(counts.score(day(60.0)), 2.0));
        let unknown = popularity.counts().get(ItemKey(9999));
        assert_eq!((unknown.score(day(0.0)), unknown.at_time(day(0.0)).trend), (0.0, 1.0));
    }

    #[test]
    fn a_user_counts_once_per_item_with_the_strongest_interest() {
        let keys = ItemKeys::default();
        let views = |user: &str, count: usize| -> Vec<Event> {
            (0..count).map(|n| event(EventKind::View, user, "a", day(n as f64 / 1000.0))).collect()
        };
        let score = |events: &[Event]| fold(events, &keys).counts().get(ItemKey(0)).score(day(0.1));
        let one = score(&[event(EventKind::View, "bot", "a", day(0.099))]);
        assert!(close(score(&views("bot", 100)), one), "100 views of one user");
        let two = score(&[views("bot", 100), views("other", 1)].concat());
        assert!(two > 1.9 && two <= 2.0, "{two}");
        let mut bought = views("bot", 100);
        bought.push(event(EventKind::Purchase, "bot", "a", day(0.05)));
        let bought = score(&bought);
        assert!(bought > 3.9 && bought <= 4.0, "the purchase replaces the views: {bought}");
    }

    #[test]
    fn a_user_who_is_forgotten_counts_again_at_most_once_for_eight_others() {
        let keys = ItemKeys::default();
        let mut events = Vec::new();
        for visit in 0..900 {
            events.push(event(EventKind::View, "bot", "a", day(f64::from(visit) / 1000.0)));
            events.push(event(EventKind::View, &format!("user {visit}"), "a", day(f64::from(visit) / 1000.0)));
        }
        let score = fold(&events, &keys).counts().get(ItemKey(0)).score(day(0.9));
        assert!(score > 890.0 && score < 1030.0, "{score}");
    }

    #[test]
    fn viewers_of_an_item_with_many_buyers_count_once() {
        let keys = ItemKeys::default();
        let buyers = (0..USERS_MAX).map(|buyer| event(EventKind::Purchase, &format!("buyer {buyer}"), "a", day(0.0)));
        let viewers = (0..500).map(|visit| {
            let viewer = if visit % 2 == 0 { "one" } else { "other" };
            event(EventKind::View, viewer, "a", day(0.001 + f64::from(visit) / 10_000.0))
        });
        let score = fold(&buyers.chain(viewers).collect::<Vec<_>>(), &keys).counts().get(ItemKey(0)).score(day(0.1));
        let bought = 4.0 * USERS_MAX as f32;
        assert!(score > bought && score < bought + 2.1, "{score}");
    }

    #[test]
    fn the_events_of_one_user_count_at_a_limited_rate() {
        let keys = ItemKeys::default();
        let walk: Vec<Event> =
            (0..5000).map(|item| event(EventKind::View, "bot", &item.to_string(), day(0.0))).collect();
        assert_eq!(fold(&walk, &keys).counts().iter().count(), 1000);
    }

    #[test]
    fn an_item_trends_if_several_users_buy_it_more_than_usual() {
        let keys = ItemKeys::default();
        let mut events = Vec::new();
        for hour in 0..200 * 24 {
            events.push(event(EventKind::Purchase, &format!("user {hour}"), "steady", day(f64::from(hour) / 24.0)));
        }
        for hour in 197 * 24..200 * 24 {
            let at = day(f64::from(hour) / 24.0);
            events.push(event(EventKind::Purchase, &format!("user {hour}"), "rising", at));
            events.push(event(EventKind::View, &format!("user {hour}"), "viewed", at));
            events.push(event(EventKind::Purchase, "one user", "bought by one", at));
        }
        let popularity = fold(&events, &keys);
        let now = day(200.0);
        let snapshot = snapshot(&popularity, now);
        let ids = |keys_in_order: &[ItemKey]| -> Vec<String> {
            keys_in_order.iter().map(|key| keys.id(*key).unwrap().to_string()).collect()
        };
        assert_eq!(ids(snapshot.popular()), ["steady", "rising", "viewed", "bought by one"]);
        assert_eq!(ids(snapshot.trending())[0], "rising");
        assert!(!ids(snapshot.trending()).contains(&"viewed".to_owned()), "views are no sales");
        assert!(!ids(snapshot.trending()).contains(&"bought by one".to_owned()), "one buyer is no trend");
        let steady = popularity.counts().get(ItemKey(0));
        let trend = |now| steady.at_time(now).trend;
        assert!((trend(now) - 1.0).abs() < 0.15, "{}", trend(now));
        assert!(trend(day(230.0)) < 1.0);
    }

    #[test]
    fn a_snapshot_does_not_change_and_the_next_one_is_in_order() {
        let keys = ItemKeys::default();
        let mut popularity = fold(&[event(EventKind::View, "p", "a", day(0.0))], &keys);
        let before = snapshot(&popularity, day(0.0));
        for (user, item) in [("p", "b"), ("q", "b"), ("p", "c"), ("q", "c"), ("r", "c")] {
            popularity.apply(&event(EventKind::View, user, item, day(1.0)), &keys);
        }
        let after = PopularitySnapshot::new(popularity.counts().clone(), &before, day(1.0));
        assert_eq!(before.popular(), [ItemKey(0)]);
        assert!(before.counts(ItemKey(2)).is_zero());
        assert_eq!(after.popular(), [ItemKey(2), ItemKey(1), ItemKey(0)]);
        assert_eq!(after.popular(), snapshot(&popularity, day(1.0)).popular());
    }

    #[test]
    fn one_user_does_not_move_an_item_up_but_a_second_one_does() {
        let keys = ItemKeys::default();
        let mut events = Vec::new();
        // "a" is popular in a shop without events for ten years.
        for (item, count) in [("a", 9), ("b", 5), ("c", 2), ("d", 1)] {
            let buy = |user| event(EventKind::Purchase, &format!("{item}{user}"), item, day(-3650.0));
            events.extend((0..count).map(buy));
        }
        let order = |events: &[Event]| snapshot(&fold(events, &keys), day(1.0)).popular().to_vec();
        let before = order(&events);
        assert_eq!(before, [0, 1, 2, 3].map(ItemKey));
        events.extend((0..100).map(|n| event(EventKind::View, "bot", "c", day(f64::from(n) / 100.0))));
        events.extend((0..9).map(|_| event(EventKind::Purchase, "bot", "b", day(0.5))));
        assert_eq!(order(&events), before);
        events.push(event(EventKind::View, "another", "c", day(0.5)));
        assert_eq!(order(&events), [2, 0, 1, 3].map(ItemKey));
    }

    #[test]
    fn the_order_of_old_events_does_not_underflow() {
        let keys = ItemKeys::default();
        let long_ago = UnixMillis(UnixMillis::DAY * 100);
        let events = [
            event(EventKind::View, "p", "a", long_ago),
            event(EventKind::Purchase, "p", "b", long_ago),
            event(EventKind::AddToCart, "p", "c", long_ago),
        ];
        let snapshot = snapshot(&fold(&events, &keys), day(0.0));
        assert_eq!(snapshot.popular(), [ItemKey(1), ItemKey(2), ItemKey(0)]);
    }

    #[test]
    fn a_refunded_purchase_leaves_what_the_other_events_count() {
        let keys = ItemKeys::default();
        let view = event(EventKind::View, "p", "a", day(0.0));
        let purchase = event(EventKind::Purchase, "p", "a", day(1.5));
        let other = event(EventKind::Purchase, "q", "a", day(1.0));
        let now = day(20.0);
        let mut popularity = fold(&[view.clone(), purchase.clone(), other.clone()], &keys);
        let (whole, expected) = (popularity.counts().get(ItemKey(0)), fold(&[view, other], &keys));
        popularity.change_purchase(&purchase.user, ItemKey(0), purchase.at, false);
        let [found, expected] = [&popularity, &expected].map(|popularity| popularity.counts().get(ItemKey(0)));
        let (found_now, expected_now) = (found.at_time(now), expected.at_time(now));
        assert!(close(found_now.score, expected_now.score) && close(found_now.trend, expected_now.trend));
        assert!((found.rank().others() - expected.rank().others()).abs() < 1e-6);
        popularity.change_purchase(&purchase.user, ItemKey(0), purchase.at, true);
        assert!(close(popularity.counts().get(ItemKey(0)).score(now), whole.score(now)));

        let mut only = fold(std::slice::from_ref(&purchase), &keys);
        only.change_purchase(&purchase.user, ItemKey(0), purchase.at, false);
        assert_eq!(only.counts().iter().count(), 0);
        only.change_purchase(&purchase.user, ItemKey(0), purchase.at, true);
        assert!(close(only.counts().get(ItemKey(0)).score(purchase.at), 4.0));
    }

    #[test]
    fn impressions_do_not_count() {
        let keys = ItemKeys::default();
        let popularity = fold(&[event(EventKind::Impression, "p", "a", day(0.0))], &keys);
        assert_eq!(popularity.counts().iter().count(), 0);
    }

    #[test]
    fn the_greater_of_two_counts_is_that_of_the_fold_with_all_events() {
        let keys = ItemKeys::default();
        let events: Vec<Event> =
            (0..5).map(|n| event(EventKind::View, &n.to_string(), "a", day(f64::from(n)))).collect();
        let counts = |events: &[Event]| fold(events, &keys).counts().get(ItemKey(0));
        let (part, all) = (counts(&events[..3]), counts(&events));
        for (a, b) in [(part, all), (all, part)] {
            assert!(close(a.max(b).score(day(9.0)), all.score(day(9.0))));
        }
        assert_eq!(Counts::default().max(all), all);
    }

    proptest! {
        #[test]
        fn the_order_of_events_does_not_matter(
            order in proptest::collection::vec((0usize..14, 0u8..8, 0u8..4, 0u32..400), 1..60).prop_shuffle()
        ) {
            let keys = ItemKeys::default();
            for item in 0..4u8 {
                keys.intern(&ItemId::parse(&item.to_string()).unwrap());
            }
            let to_event = |(kind, user, item, at): &(usize, u8, u8, u32)| {
                event(EventKind::ALL[*kind], &user.to_string(), &item.to_string(), day(f64::from(*at)))
            };
            let mut events: Vec<Event> = order.iter().map(to_event).collect();
            let shuffled = fold(&events, &keys);
            events.sort_by_key(|event| event.at);
            let sorted = fold(&events, &keys);
            for key in (0..4).map(ItemKey) {
                let now = day(400.0);
                let [a, b] = [&shuffled, &sorted].map(|popularity| popularity.counts().get(key));
                prop_assert!(close(a.score(now), b.score(now)), "{a:?} {b:?}");
                prop_assert!(close(a.at_time(now).trend, b.at_time(now).trend));
                prop_assert_eq!(a.is_zero(), b.is_zero());
                let ranks = [a, b].map(|counts| counts.rank().others());
                prop_assert!(ranks[0] == ranks[1] || (ranks[0] - ranks[1]).abs() < 1e-6, "{a:?} {b:?}");
            }
        }

        #[test]
        fn scores_and_trends_are_finite_at_any_time(
            times in proptest::collection::vec((any::<i64>(), 0u8..20), 1..40),
            now: i64,
        ) {
            let keys = ItemKeys::default();
            let purchase = |(at, user): &(i64, u8)| {
                event(EventKind::Purchase, &user.to_string(), "a", UnixMillis(*at))
            };
            let events: Vec<Event> = times.iter().map(purchase).collect();
            let counts = fold(&events, &keys).counts().get(ItemKey(0));
            prop_assert!(counts.score(UnixMillis(now)).is_finite());
            prop_assert!(counts.at_time(UnixMillis(now)).trend.is_finite());
            prop_assert!(counts.sales_trend(UnixMillis(now)).is_none_or(f32::is_finite));
            prop_assert_ne!(counts.rank(), Rank::NONE);
        }

        #[test]
        fn records_restore_the_fold(
            order in proptest::collection::vec((0usize..14, 0u8..20, 0u8..4, 0u32..400), 1..80)
        ) {
            let keys = ItemKeys::default();
            let to_event = |(kind, user, item, at): &(usize, u8, u8, u32)| {
                event(EventKind::ALL[*kind], &user.to_string(), &item.to_string(), day(f64::from(*at)))
            };
            let events: Vec<Event> = order.iter().map(to_event).collect();
            let (first, rest) = events.split_at(events.len() / 2);
            let mut whole = fold(first, &keys);
            let mut restored = Popularity::default();
            for record in whole.records() {
                restored.restore(&record, Some).unwrap();
            }
            restored.restore_rates(&whole.rates_record()).unwrap();
            for event in rest {
                whole.apply(event, &keys);
                restored.apply(event, &keys);
            }
            prop_assert!(whole.counts().iter().eq(restored.counts().iter()));
        }
    }
}
