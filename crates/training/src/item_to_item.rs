//! The item-to-item model EASE: for each item, the weights by which a user's other items predict it (Steck 2019,
//! "Embarrassingly Shallow Autoencoders for Sparse Data").
use super::{
    linear::invert,
    replay::{Interaction, by_user},
};
use lodestone_core::ids::Row;
use lodestone_index::Neighbours;
use rayon::prelude::*;

/// Regularisation λ of the ridge regression.
const REGULARISATION: f32 = 500.0;
/// Most items of the model, the most chosen ones. Others have no weights: the matrix has the square of this number of
/// elements, 576 MB, and its inversion takes the cube of it.
const ITEMS_MAX: usize = 12_000;
/// Items of a user that are used, the latest ones.
const USER_ITEMS_MAX: usize = 200;
/// Neighbours kept for an item.
const NEIGHBOURS_MAX: usize = 200;
/// Smaller weights do not change an order.
const WEIGHT_MIN: f32 = 1e-5;

/// Learns the weights from the users' positive interactions; an anonymous one is a user of its own. Row `i` of the
/// table has the items that item `i` predicts. Items without interactions have no neighbours. The rows of an
/// interaction are below `item_count`.
pub(crate) fn item_to_item(interactions: &[Interaction], item_count: usize) -> Neighbours {
    let users: Vec<Vec<(u32, f32)>> = by_user(interactions).iter().map(|of_user| user_items(of_user)).collect();
    let kept = most_chosen(&users, item_count);
    let n = kept.len();
    let mut matrix = gram(&users, &kept, item_count);
    ease(&mut matrix, n, REGULARISATION);
    let strongest = |from: usize| -> Vec<(Row, Row, f32)> {
        let weights = matrix[from * n..][..n].iter().copied().enumerate();
        let mut positive: Vec<(usize, f32)> = weights.filter(|(_, weight)| *weight > WEIGHT_MIN).collect();
        if positive.len() > NEIGHBOURS_MAX {
            positive.select_nth_unstable_by(NEIGHBOURS_MAX, |a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            positive.truncate(NEIGHBOURS_MAX);
        }
        positive.into_iter().map(|(to, weight)| (Row(kept[from]), Row(kept[to]), weight)).collect()
    };
    let pairs: Vec<Vec<(Row, Row, f32)>> = (0..n).into_par_iter().map(strongest).collect();
    Neighbours::from_counts(item_count, pairs.into_iter().flatten(), NEIGHBOURS_MAX)
}

/// Turns XᵀX `[n × n]` into the weights B of EASE: B = I - P · diag(1 / P), P = (XᵀX + λI)⁻¹ (equation 8). Row `i` has
/// the weights of the items for a user with item `i`; the diagonal is 0.
pub(crate) fn ease(gram: &mut [f32], n: usize, regularisation: f32) {
    (0..n).for_each(|diagonal| gram[diagonal * n + diagonal] += regularisation);
    // A positive λ makes the matrix positive definite.
    if !invert(gram, n) {
        gram.fill(0.0);
        return;
    }
    let scales: Vec<f32> = (0..n).map(|diagonal| -1.0 / gram[diagonal * n + diagonal]).collect();
    gram.par_chunks_mut(n.max(1)).enumerate().for_each(|(row, weights)| {
        weights.iter_mut().zip(&scales).for_each(|(weight, scale)| *weight *= scale);
        weights[row] = 0.0;
    });
}

/// Returns the latest distinct items of a user, each with the weight of the strongest interaction.
fn user_items(interactions: &[&Interaction]) -> Vec<(u32, f32)> {
    let mut items: Vec<(u32, f32)> = Vec::new();
    for interaction in interactions.iter().rev() {
        let weight = interaction.kind.interest();
        for row in &interaction.rows {
            match items.iter().position(|(known, _)| known == row) {
                Some(index) => items[index].1 = items[index].1.max(weight),
                None if items.len() < USER_ITEMS_MAX => items.push((*row, weight)),
                None => {}
            }
        }
    }
    items
}

/// Returns the items with interactions, at most [`ITEMS_MAX`], the most chosen ones first.
fn most_chosen(users: &[Vec<(u32, f32)>], item_count: usize) -> Vec<u32> {
    let mut chosen = vec![0.0f32; item_count];
    users.iter().flatten().for_each(|(row, weight)| chosen[*row as usize] += weight);
    let mut kept: Vec<u32> = (0..item_count as u32).filter(|row| chosen[*row as usize] > 0.0).collect();
    kept.sort_by(|a, b| chosen[*b as usize].total_cmp(&chosen[*a as usize]).then(a.cmp(b)));
    kept.truncate(ITEMS_MAX);
    kept
}

/// Returns XᵀX `[kept × kept]` for the matrix X of the users' item weights.
fn gram(users: &[Vec<(u32, f32)>], kept: &[u32], item_count: usize) -> Vec<f32> {
    let n = kept.len();
    let mut index_of = vec![None; item_count];
    kept.iter().enumerate().for_each(|(index, row)| index_of[*row as usize] = Some(index));
    let mut gram = vec![0.0; n * n];
    for items in users {
        let items: Vec<(usize, f32)> =
            items.iter().filter_map(|(row, weight)| Some((index_of[*row as usize]?, *weight))).collect();
        for (from, weight) in &items {
            let row = &mut gram[from * n..][..n];
            items.iter().for_each(|(to, other)| row[*to] += weight * other);
        }
    }
    gram
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replay::Session;
    use lodestone_core::{ids::UserId, units::UnixMillis};
    use lodestone_events::EventKind;

    fn bought(user: &str, rows: &[u32]) -> Interaction {
        let user = UserId::signed_in(user).ok();
        Interaction {
            user,
            session: Session::UNKNOWN,
            at: UnixMillis(0),
            kind: EventKind::Purchase,
            rows: rows.to_vec(),
        }
    }

    #[test]
    fn weights_are_those_of_the_closed_form() {
        // XᵀX = [[3, 2], [2, 2]], so P = [[502, -2], [-2, 503]] / det and B₀₁ = 2 / 503, B₁₀ = 2 / 502.
        let interactions = [bought("p", &[0, 1]), bought("q", &[0]), bought("q", &[1, 0]), bought("r", &[0])];
        let table = item_to_item(&interactions, 3);
        for (from, to, expected) in [(0, 1, 2.0 / 503.0), (1, 0, 2.0 / 502.0)] {
            let (rows, weights) = table.of(Row(from));
            assert_eq!(rows, [to]);
            assert!((weights[0] - expected).abs() < 1e-6, "{from}: {} instead of {expected}", weights[0]);
        }
        assert!(table.of(Row(2)).0.is_empty(), "nobody chose it");
    }

    #[test]
    fn an_interaction_counts_by_the_strongest_interest() {
        let view = Interaction { kind: EventKind::View, ..bought("p", &[0, 1]) };
        let weight = |interactions: &[Interaction]| item_to_item(interactions, 2).of(Row(0)).1[0];
        let viewed = weight(std::slice::from_ref(&view));
        assert!((viewed - 0.16 / 500.16).abs() < 1e-6, "{viewed}");
        let both = weight(&[view, bought("p", &[0, 1])]);
        assert!((both - 1.0 / 501.0).abs() < 1e-6, "{both}");
    }

    #[test]
    fn without_interactions_the_table_is_empty() {
        assert!(item_to_item(&[], 2).of(Row(0)).0.is_empty());
    }
}
