//! Co-occurrence counts: transitions between interactions of a user, and co-purchases within a basket.
use super::replay::{BASKET_ITEMS_MAX, Interaction};
use ahash::AHashMap;
use lodestone_core::ids::{Row, UserId};
use lodestone_index::Neighbours;

/// Neighbours kept for an item.
const NEIGHBOURS_MAX: usize = 50;
/// Earlier interactions of a user from which a transition is counted. Each further one has half the weight of the one
/// before.
const STEPS_BACK: usize = 3;

/// Counts transitions: items of a user's later interactions, for each item of an earlier one. Counts are damped by
/// popularity. The rows of an interaction are below `items`, the number of items.
pub(crate) fn transitions(interactions: &[Interaction], items: usize) -> Neighbours {
    let mut counts: AHashMap<(u32, u32), f32> = AHashMap::new();
    let mut histories: AHashMap<&UserId, Vec<&Interaction>> = AHashMap::new();
    for interaction in interactions {
        let Some(user) = &interaction.user else { continue };
        let history = histories.entry(user).or_default();
        for (step, previous) in history.iter().rev().take(STEPS_BACK).enumerate() {
            let pairs = previous.rows.len() * interaction.rows.len();
            let weight = 0.5f32.powi(step as i32) / (pairs as f32).sqrt().max(1.0);
            for &from in previous.rows.iter().take(BASKET_ITEMS_MAX) {
                for &to in interaction.rows.iter().take(BASKET_ITEMS_MAX) {
                    *counts.entry((from, to)).or_insert(0.0) += weight;
                }
            }
        }
        history.push(interaction);
    }
    damped(counts, interactions, items)
}

/// Counts pairs of items within a basket. Anonymous baskets count as well.
pub(crate) fn co_purchases(baskets: &[Interaction], items: usize) -> Neighbours {
    let mut counts: AHashMap<(u32, u32), f32> = AHashMap::new();
    for basket in baskets {
        let rows = &basket.rows[..basket.rows.len().min(BASKET_ITEMS_MAX)];
        let weight = 1.0 / (rows.len() as f32).ln_1p();
        for &from in rows {
            for &to in rows {
                if from != to {
                    *counts.entry((from, to)).or_insert(0.0) += weight;
                }
            }
        }
    }
    damped(counts, baskets, items)
}

/// Divides by the square root of both items' frequencies, because a popular item would otherwise be a neighbour of
/// every item.
fn damped(counts: AHashMap<(u32, u32), f32>, baskets: &[Interaction], items: usize) -> Neighbours {
    let mut frequency = vec![0.0f32; items];
    for &row in baskets.iter().flat_map(|basket| &basket.rows) {
        frequency[row as usize] += 1.0;
    }
    let pairs = counts.into_iter().map(|((from, to), count)| {
        let scale = ((frequency[from as usize] + 5.0) * (frequency[to as usize] + 5.0)).sqrt();
        (Row(from), Row(to), 10.0 * count / scale)
    });
    Neighbours::from_counts(items, pairs, NEIGHBOURS_MAX)
}
