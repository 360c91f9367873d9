//! Co-occurrence counts: transitions between interactions of a user, co-purchases within a basket, and the contexts in
//! which items are chosen.
//!
//! A user adds a limited amount to a pair and to an item, however often, so that one user or one program does not
//! decide what is recommended after an item.
use super::replay::{BASKET_ITEMS_MAX, Interaction, by_user};
use ahash::{AHashMap, AHashSet};
use lodestone_core::ids::{ItemId, Row, UserId};
use lodestone_events::Event;
use lodestone_index::{Histories, Neighbours};
use lodestone_pipeline::features::{ContextCounts, ContextField};

/// Neighbours kept for an item.
const NEIGHBOURS_MAX: usize = 50;
/// The same in the table of co-purchases, whose first neighbours are popular items.
const CO_PURCHASES_MAX: usize = 150;
/// Earlier interactions of a user from which a transition is counted. Each further one has half the weight of the one
/// before.
const STEPS_BACK: usize = 3;
/// The most that one user adds to a pair.
const USER_WEIGHT_MAX: f32 = 1.0;
/// The most interactions of one user that count for the frequency of an item.
const USER_INTERACTIONS_MAX: f32 = 5.0;

/// Counts of pairs of rows.
#[derive(Default)]
struct Pairs(AHashMap<(u32, u32), f32>);

impl Pairs {
    fn add(&mut self, from: u32, to: u32, weight: f32) {
        *self.0.entry((from, to)).or_insert(0.0) += weight;
    }

    /// Adds the pairs of one user, each at most [`USER_WEIGHT_MAX`].
    fn add_user(&mut self, user: Self) {
        user.0.into_iter().for_each(|((from, to), weight)| self.add(from, to, weight.min(USER_WEIGHT_MAX)));
    }
}

/// Counts transitions: items of a user's later interactions, for each item of an earlier one. Counts are damped by
/// popularity. The rows of an interaction are below `items`, the number of items.
pub(crate) fn transitions(interactions: &[Interaction], items: usize) -> Neighbours {
    let mut counts = Pairs::default();
    for history in by_user(interactions).into_iter().filter(|history| history.len() > 1) {
        let mut user = Pairs::default();
        for (index, interaction) in history.iter().enumerate() {
            for (step, previous) in earlier(&history[..index], interaction).take(STEPS_BACK).enumerate() {
                let pairs = previous.rows.len() * interaction.rows.len();
                let weight = 0.5f32.powi(step as i32) / (pairs as f32).sqrt().max(1.0);
                for &from in previous.rows.iter().take(BASKET_ITEMS_MAX) {
                    interaction.rows.iter().take(BASKET_ITEMS_MAX).for_each(|&to| user.add(from, to, weight));
                }
            }
        }
        counts.add_user(user);
    }
    damped(counts, interactions, items)
}

/// Returns the interactions before the time of another one, the latest first. Those at the same time have no order.
fn earlier<'a>(history: &'a [&'a Interaction], interaction: &Interaction) -> impl Iterator<Item = &'a Interaction> {
    let at = interaction.at;
    history.iter().rev().copied().filter(move |previous| previous.at < at)
}

/// Counts pairs of items within a basket. Each basket adds 1 in all to an item's pairs, so that a large basket does not
/// outweigh many small ones. The counts are divided by the item's own, and so are about the share of its baskets.
/// Anonymous baskets count as well, each as a user of its own.
pub(crate) fn co_purchases(baskets: &[Interaction], items: usize) -> Neighbours {
    let mut counts = Pairs::default();
    for of_user in by_user(baskets) {
        let mut user = Pairs::default();
        for basket in of_user.into_iter().filter(|basket| basket.rows.len() > 1) {
            let rows = &basket.rows[..basket.rows.len().min(BASKET_ITEMS_MAX)];
            let weight = 1.0 / (rows.len() as f32 - 1.0);
            for &from in rows {
                rows.iter().filter(|to| **to != from).for_each(|&to| user.add(from, to, weight));
            }
        }
        counts.add_user(user);
    }
    let frequency = frequencies(baskets, items);
    let share =
        |((from, to), count): ((u32, u32), f32)| (Row(from), Row(to), count / frequency[from as usize].max(1.0));
    Neighbours::from_counts(items, counts.0.into_iter().map(share), CO_PURCHASES_MAX)
}

/// Collects the users' histories in the order of their last interactions. An anonymous interaction is a history.
pub(crate) fn histories(interactions: &[Interaction], items: usize) -> Histories {
    let mut of_users = by_user(interactions);
    of_users.sort_by_key(|of_user| of_user.last().map(|last| last.at));
    let rows = |of_user: Vec<&Interaction>| of_user.into_iter().flat_map(|of| of.rows.iter().copied()).collect();
    Histories::new(items, &of_users.into_iter().map(rows).collect::<Vec<Vec<u32>>>())
}

/// Divides by the square root of both items' frequencies, because a popular item would otherwise be a neighbour of
/// every item.
fn damped(counts: Pairs, interactions: &[Interaction], items: usize) -> Neighbours {
    let frequency = frequencies(interactions, items);
    let pairs = counts.0.into_iter().map(|((from, to), count)| {
        let scale = ((frequency[from as usize] + 5.0) * (frequency[to as usize] + 5.0)).sqrt();
        (Row(from), Row(to), 10.0 * count / scale)
    });
    Neighbours::from_counts(items, pairs, NEIGHBOURS_MAX)
}

/// Returns by item the number of its interactions, of one user at most [`USER_INTERACTIONS_MAX`].
fn frequencies(interactions: &[Interaction], items: usize) -> Vec<f32> {
    let mut frequency = vec![0.0f32; items];
    for of_user in by_user(interactions) {
        let mut user: AHashMap<u32, f32> = AHashMap::new();
        of_user.into_iter().flat_map(|of| &of.rows).for_each(|row| *user.entry(*row).or_default() += 1.0);
        user.into_iter().for_each(|(row, count)| frequency[row as usize] += count.min(USER_INTERACTIONS_MAX));
    }
    frequency
}

/// Counts the users that chose an item with a value of the viewer's context, by field. A user counts once for an item
/// and a value, however often.
pub(crate) fn context_counts(
    events: &[Event],
    row_of: &AHashMap<ItemId, u32>,
    fields: &[ContextField],
) -> ContextCounts {
    let mut counts = ContextCounts::default();
    for field in fields {
        let mut users: AHashMap<(&str, Row), AHashSet<&UserId>> = AHashMap::new();
        for event in events.iter().filter(|event| event.kind.is_positive()) {
            let Some(value) = field.value_of(&event.context) else { continue };
            for row in event.lines.iter().filter_map(|line| row_of.get(&line.item)) {
                users.entry((value, Row(*row))).or_default().insert(&event.user);
            }
        }
        let count =
            |((value, row), users): ((&str, Row), AHashSet<&UserId>)| ((value.to_owned(), row), users.len() as u32);
        counts.add(*field, users.into_iter().map(count).collect());
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replay::Session;
    use lodestone_core::{
        ids::{EventId, UserId},
        units::{Quantity, UnixMillis},
        viewer::{Platform, ViewerContext},
    };
    use lodestone_events::{EventKind, EventLine};

    fn basket(user: Option<&str>, at: i64, rows: &[u32]) -> Interaction {
        let user = user.map(|user| UserId::signed_in(user).unwrap());
        Interaction {
            user,
            session: Session::UNKNOWN,
            at: UnixMillis(at),
            kind: EventKind::Purchase,
            rows: rows.to_vec(),
        }
    }

    #[test]
    fn a_user_counts_once_for_an_item_and_a_platform() {
        let rows: AHashMap<ItemId, u32> =
            ["a", "b"].map(|id| ItemId::parse(id).unwrap()).into_iter().zip(0..).collect();
        let event = |user: &str, kind, item: &str, platform: &str| {
            let line = EventLine { item: ItemId::parse(item).unwrap(), quantity: Quantity::ONE, price: None, rank: 0 };
            let context = ViewerContext { platform: Platform::from_name(platform), ..ViewerContext::default() };
            let (id, user) = (EventId::parse("e").unwrap(), UserId::signed_in(user).unwrap());
            Event { context, lines: vec![line], ..Event::new(id, kind, user, UnixMillis(0)) }
        };
        let events = [
            event("p", EventKind::View, "a", "ios"),
            event("p", EventKind::Purchase, "a", "ios"),
            event("p", EventKind::View, "a", "web"),
            event("q", EventKind::View, "a", "ios"),
            event("q", EventKind::Impression, "b", "ios"),
            event("q", EventKind::View, "b", ""),
            event("q", EventKind::View, "unknown", "web"),
        ];
        let mut expected = ContextCounts::default();
        let cells = [("ios", 2), ("web", 1)].map(|(platform, users)| ((platform.to_owned(), Row(0)), users));
        expected.add(ContextField::Platform, cells.into_iter().collect());
        assert_eq!(context_counts(&events, &rows, &[ContextField::Platform]), expected);
    }

    /// Rows that follow row 0, best first.
    fn after_first(neighbours: &Neighbours) -> &[u32] {
        neighbours.of(Row(0)).0
    }

    #[test]
    fn three_users_outweigh_a_hundred_repetitions_of_one() {
        let mut interactions: Vec<Interaction> =
            (0..200).map(|at| basket(Some("bot"), at, &[(at % 2) as u32])).collect();
        for user in ["p", "q", "r"] {
            interactions.extend([basket(Some(user), 300, &[0]), basket(Some(user), 301, &[2])]);
        }
        assert_eq!(after_first(&transitions(&interactions, 3))[0], 2);

        let mut baskets: Vec<Interaction> = (0..100).map(|at| basket(Some("bot"), at, &[0, 1])).collect();
        baskets.extend(["p", "q", "r"].map(|user| basket(Some(user), 300, &[0, 2])));
        assert_eq!(after_first(&co_purchases(&baskets, 3)), [2, 1]);
        // Anonymous baskets are baskets of different users.
        baskets.extend((0..9).map(|at| basket(None, at, &[0, 1])));
        assert_eq!(after_first(&co_purchases(&baskets, 3)), [1, 2]);
    }

    #[test]
    fn items_at_one_time_have_no_order() {
        let at_once = [basket(Some("p"), 1, &[0, 1]), basket(Some("p"), 1, &[2]), basket(Some("p"), 2, &[3])];
        let table = transitions(&at_once, 4);
        assert!((0..3).all(|row| table.of(Row(row)).0 == [3]));
    }

    #[test]
    fn histories_are_in_the_order_of_their_last_interactions() {
        let interactions = [
            basket(Some("late"), 1, &[0]),
            basket(Some("early"), 2, &[1, 2]),
            basket(None, 3, &[2, 3]),
            basket(Some("once"), 4, &[3]),
            basket(Some("late"), 5, &[1]),
        ];
        assert_eq!(histories(&interactions, 4), Histories::new(4, &[vec![1, 2], vec![2, 3], vec![0, 1]]));
    }
}
