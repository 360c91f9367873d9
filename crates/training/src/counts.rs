//! Which items follow which, and which are bought together.
use super::replay::Choice;
use ahash::AHashMap;
use lodestone_core::ids::{Row, UserId};
use lodestone_index::Neighbours;

/// Neighbours kept for an item.
const NEIGHBOURS_MAX: usize = 50;
/// Larger baskets say little about pairs and cost their square.
pub(crate) const BASKET_ITEMS_MAX: usize = 60;
/// Choices back from which a step to the next is counted, each with half the weight of the one after.
const STEPS_BACK: usize = 3;

/// What the same user chose later, as the share of the popularity-damped count. `items` is the number of items; a choice
/// holds their places.
pub(crate) fn next_choice(choices: &[Choice], items: usize) -> Neighbours {
    let mut counts: AHashMap<(u32, u32), f32> = AHashMap::new();
    let mut earlier: AHashMap<&UserId, Vec<&Choice>> = AHashMap::new();
    for choice in choices {
        let Some(user) = &choice.user else { continue };
        let before = earlier.entry(user).or_default();
        for (step, previous) in before.iter().rev().take(STEPS_BACK).enumerate() {
            let weight = 0.5f32.powi(step as i32) / ((previous.rows.len() * choice.rows.len()) as f32).sqrt().max(1.0);
            for &from in previous.rows.iter().take(BASKET_ITEMS_MAX) {
                for &to in choice.rows.iter().take(BASKET_ITEMS_MAX) {
                    *counts.entry((from, to)).or_insert(0.0) += weight;
                }
            }
        }
        before.push(choice);
    }
    damped(counts, choices, items)
}

/// What was bought in the same basket, anonymous baskets included.
pub(crate) fn together(baskets: &[Choice], items: usize) -> Neighbours {
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

/// Divides by the root of both items' frequencies, so that what everybody buys is not everything's neighbour.
fn damped(counts: AHashMap<(u32, u32), f32>, baskets: &[Choice], items: usize) -> Neighbours {
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
