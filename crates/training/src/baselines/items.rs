//! Item-to-item models, learned from the users' items before the end of the training: EASE (Steck 2019) and ItemKNN
//! (Sarwar et al. 2001).
use super::shop::{Bought, Shop, decayed};
use crate::{item_to_item::ease, kernels::add_multiple};
use lodestone_core::units::UnixMillis;
use rayon::prelude::*;

/// Most items of a model, the most bought ones; others have no score. A matrix of 6,000 items takes 144 MB, of which
/// the tuning has five at a time, and its inverse 2 · 6000³ operations.
const ITEMS_MAX: usize = 6_000;
/// Neighbours of an item that ItemKNN keeps.
const NEIGHBOURS: usize = 200;

/// A dense matrix of item-to-item weights.
#[derive(Clone)]
pub(crate) struct ItemWeights {
    /// `[kept × kept]`: the weight of the column's item for a user with the row's item.
    weights: Vec<f32>,
    /// Rows of the item table, the most bought first.
    kept: Vec<u32>,
    /// By row of the item table: the index in `kept`.
    index_of: Vec<Option<u32>>,
}

impl ItemWeights {
    /// Counts the users who bought both items of a pair before `until`, each user once.
    pub(crate) fn counts(shop: &Shop, until: UnixMillis) -> Self {
        let mut sales = vec![0u32; shop.item_count];
        shop.interactions_before(until).iter().flat_map(|of| &of.rows).for_each(|row| sales[*row as usize] += 1);
        let mut kept: Vec<u32> = (0..shop.item_count as u32).filter(|row| sales[*row as usize] > 0).collect();
        kept.sort_by_key(|row| (std::cmp::Reverse(sales[*row as usize]), *row));
        kept.truncate(ITEMS_MAX);
        let mut index_of = vec![None; shop.item_count];
        kept.iter().enumerate().for_each(|(index, row)| index_of[*row as usize] = Some(index as u32));
        let n = kept.len();
        let mut weights = vec![0.0; n * n];
        for user in 0..shop.user_count() {
            let bought = shop.of_user_before(user, until);
            let mut items: Vec<u32> = bought.iter().filter_map(|bought| index_of[bought.row as usize]).collect();
            items.sort_unstable();
            items.dedup();
            for &from in &items {
                let row = &mut weights[from as usize * n..][..n];
                items.iter().for_each(|to| row[*to as usize] += 1.0);
            }
        }
        Self { weights, kept, index_of }
    }

    /// Turns counts into the weights of EASE.
    pub(crate) fn ease(mut self, regularisation: f32) -> Self {
        ease(&mut self.weights, self.kept.len(), regularisation);
        self
    }

    /// Turns counts into cosines of the items' users. Each item keeps its [`NEIGHBOURS`] most similar items.
    pub(crate) fn cosines(mut self) -> Self {
        let n = self.kept.len();
        let norms: Vec<f32> = (0..n).map(|diagonal| self.weights[diagonal * n + diagonal].max(1.0).sqrt()).collect();
        self.weights.par_chunks_mut(n.max(1)).enumerate().for_each(|(row, weights)| {
            weights.iter_mut().zip(&norms).for_each(|(weight, norm)| *weight /= norm * norms[row]);
            weights[row] = 0.0;
            if n > NEIGHBOURS {
                let mut sorted = weights.to_vec();
                let (_, least, _) = sorted.select_nth_unstable_by(NEIGHBOURS - 1, |a, b| b.total_cmp(a));
                let least = *least;
                weights.iter_mut().filter(|weight| **weight < least).for_each(|weight| *weight = 0.0);
            }
        });
        self
    }

    /// Returns a score of each item: the sum of the weights of the purchases' items, decayed.
    pub(super) fn scores(&self, bought: &[Bought], at: UnixMillis, half_life_days: f32) -> Vec<f32> {
        let n = self.kept.len();
        let mut own = vec![0.0f32; self.index_of.len()];
        for bought in bought {
            let weight = &mut own[bought.row as usize];
            // Without a half-life each item counts once, as in the counts.
            *weight = match half_life_days.is_finite() {
                true => *weight + decayed(bought.at, at, half_life_days),
                false => 1.0,
            };
        }
        let mut sums = vec![0.0; n];
        for (row, weight) in own.iter().enumerate().filter(|(_, weight)| **weight > 0.0) {
            if let Some(index) = self.index_of[row] {
                add_multiple(&mut sums, *weight, &self.weights[index as usize * n..][..n]);
            }
        }
        let mut scores = vec![0.0; self.index_of.len()];
        self.kept.iter().zip(sums).for_each(|(row, sum)| scores[*row as usize] = sum);
        scores
    }

    /// Returns the weight of each item for a user with one item.
    pub(crate) fn of_item(&self, row: u32) -> Vec<f32> {
        let n = self.kept.len();
        let mut scores = vec![0.0; self.index_of.len()];
        if let Some(index) = self.index_of[row as usize] {
            let weights = &self.weights[index as usize * n..][..n];
            self.kept.iter().zip(weights).for_each(|(row, weight)| scores[*row as usize] = *weight);
        }
        scores
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::shop::tests::{bought, day},
        *,
    };
    use rand::{Rng, SeedableRng, rngs::StdRng};

    /// Three users: {0, 1}, {0, 1}, {1, 2}. XᵀX is [[2, 2, 0], [2, 3, 1], [0, 1, 1]].
    fn counts() -> ItemWeights {
        let interactions =
            [bought("a", 1.0, &[0, 1]), bought("b", 2.0, &[0]), bought("b", 3.0, &[0, 1]), bought("c", 4.0, &[1, 2])];
        ItemWeights::counts(&Shop::new(&interactions, vec![None; 4]), day(9.0))
    }

    fn assert_near(found: &[f32], expected: &[f32]) {
        let near = found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-5);
        assert!(found.len() == expected.len() && near, "{found:?} instead of {expected:?}");
    }

    #[test]
    fn ease_solves_the_equation_of_the_paper() {
        // With λ = 1: XᵀX + I = [[3, 2, 0], [2, 4, 1], [0, 1, 2]], with determinant 13 and the inverse
        // P = [[7, -4, 2], [-4, 6, -3], [2, -3, 8]] / 13. B = I - P · diag(1 / P).
        let ease = counts().ease(1.0);
        assert_near(&ease.of_item(0), &[0.0, 4.0 / 6.0, -2.0 / 8.0, 0.0]);
        assert_near(&ease.of_item(1), &[4.0 / 7.0, 0.0, 3.0 / 8.0, 0.0]);
        assert_near(&ease.of_item(2), &[-2.0 / 7.0, 3.0 / 6.0, 0.0, 0.0]);
        assert_near(&ease.of_item(3), &[0.0; 4]);
    }

    #[test]
    fn cosines_are_those_of_the_items_users() {
        let cosines = counts().cosines();
        assert_near(&cosines.of_item(1), &[2.0 / 6.0f32.sqrt(), 0.0, 1.0 / 3.0f32.sqrt(), 0.0]);
        assert_near(&cosines.of_item(0), &[0.0, 2.0 / 6.0f32.sqrt(), 0.0, 0.0]);
    }

    #[test]
    fn purchases_are_summed_by_weight_and_decay() {
        let cosines = counts().cosines();
        let of = |row, days| Bought { row, at: day(days) };
        let bought = [of(0, 0.0), of(0, 10.0), of(2, 10.0)];
        let [from_0, from_2] = [2.0 / 6.0f32.sqrt(), 1.0 / 3.0f32.sqrt()];
        assert_near(&cosines.scores(&bought, day(10.0), f32::INFINITY), &[0.0, from_0 + from_2, 0.0, 0.0]);
        assert_near(&cosines.scores(&bought, day(10.0), 10.0), &[0.0, 1.5 * from_0 + from_2, 0.0, 0.0]);
    }

    #[test]
    fn a_shop_without_users_has_no_weights() {
        let interactions = [bought("", 1.0, &[0, 1])];
        let counts = ItemWeights::counts(&Shop::new(&interactions, vec![None; 2]), day(9.0));
        assert_eq!(counts.clone().cosines().of_item(0), [0.0, 0.0]);
        assert_near(&counts.ease(1.0).of_item(0), &[0.0, 0.0]);
        let nothing = ItemWeights::counts(&Shop::new(&[], vec![None; 2]), day(9.0));
        assert_eq!(nothing.ease(1.0).of_item(1), [0.0, 0.0]);
    }

    /// EASE minimises ‖X - XB‖² + λ‖B‖² with a zero diagonal, so off the diagonal the gradient XᵀX · B + λB - XᵀX is
    /// zero.
    #[test]
    fn ease_has_no_gradient_off_the_diagonal() {
        let mut rng = StdRng::seed_from_u64(1);
        for round in 0..50 {
            let purchase = |user: usize, rng: &mut StdRng| {
                let rows: Vec<u32> = (0..8).filter(|_| rng.random_bool(0.4)).collect();
                bought(&user.to_string(), user as f64, &rows)
            };
            let interactions: Vec<_> = (0..rng.random_range(1..15)).map(|user| purchase(user, &mut rng)).collect();
            let regularisation = rng.random_range(0.5..50.0);
            let counts = ItemWeights::counts(&Shop::new(&interactions, vec![None; 8]), day(99.0));
            let (n, gram) = (counts.kept.len(), counts.weights.clone());
            let ease = counts.ease(regularisation);
            for from in 0..n {
                assert_eq!(ease.weights[from * n + from], 0.0);
                for to in (0..n).filter(|to| *to != from) {
                    let product: f32 = (0..n).map(|k| gram[from * n + k] * ease.weights[k * n + to]).sum();
                    let gradient = product + regularisation * ease.weights[from * n + to] - gram[from * n + to];
                    assert!(gradient.abs() < 1e-3, "round {round}: {gradient}");
                }
            }
        }
    }
}
