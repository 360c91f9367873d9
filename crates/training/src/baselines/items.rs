//! Item-to-item models, learned from the users' items before the end of the training: EASE (Steck 2019) and ItemKNN
//! (Sarwar et al. 2001).
use super::shop::{Bought, Shop, decayed};
use crate::{kernels::add_scaled, linear::invert};
use lodestone_core::units::UnixMillis;
use rayon::prelude::*;

/// Most items of a model, the most bought ones. Others have no score: the matrix of EASE has the square of it.
pub(super) const ITEMS_MAX: usize = 12_000;
/// Neighbours of an item that ItemKNN keeps.
const NEIGHBOURS: usize = 200;

/// A dense matrix of item-to-item weights.
pub(super) struct ItemWeights {
    /// `[kept × kept]`: the weight of the column's item for a user with the row's item.
    weights: Vec<f32>,
    /// Rows of the item table.
    kept: Vec<u32>,
    /// By row of the item table: the index in `kept`.
    index_of: Vec<Option<u32>>,
}

impl ItemWeights {
    /// Counts the users who bought both items of a pair before `until`, each user once.
    pub(super) fn counts(shop: &Shop, until: UnixMillis) -> Self {
        let sales = shop.sales(until, f32::INFINITY);
        let mut kept: Vec<u32> = (0..shop.item_count as u32).filter(|row| sales[*row as usize] > 0.0).collect();
        kept.sort_by(|a, b| sales[*b as usize].total_cmp(&sales[*a as usize]).then(a.cmp(b)));
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

    /// Turns counts into the weights of EASE: B = I - P · diag(1 / P), P = (XᵀX + λI)⁻¹ (Steck 2019, equation 8).
    pub(super) fn ease(mut self, regularisation: f32) -> Self {
        let n = self.kept.len();
        (0..n).for_each(|diagonal| self.weights[diagonal * n + diagonal] += regularisation);
        // A positive λ makes the matrix positive definite.
        if !invert(&mut self.weights, n) {
            self.weights.fill(0.0);
            return self;
        }
        let scales: Vec<f32> = (0..n).map(|diagonal| -1.0 / self.weights[diagonal * n + diagonal]).collect();
        self.weights.par_chunks_mut(n.max(1)).enumerate().for_each(|(row, weights)| {
            weights.iter_mut().zip(&scales).for_each(|(weight, scale)| *weight *= scale);
            weights[row] = 0.0;
        });
        self
    }

    /// Turns counts into cosines of the items' users. Each item keeps its [`NEIGHBOURS`] most similar items.
    pub(super) fn cosines(mut self) -> Self {
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
            // A half-life stands for the share of the user's interest; without one each item counts once, as in the
            // counts.
            *weight = match half_life_days.is_finite() {
                true => *weight + decayed(bought.at, at, half_life_days),
                false => 1.0,
            };
        }
        let mut sums = vec![0.0; n];
        for (row, weight) in own.iter().enumerate().filter(|(_, weight)| **weight > 0.0) {
            if let Some(index) = self.index_of[row] {
                add_scaled(&mut sums, *weight, &self.weights[index as usize * n..][..n]);
            }
        }
        let mut scores = vec![0.0; self.index_of.len()];
        self.kept.iter().zip(sums).for_each(|(row, sum)| scores[*row as usize] = sum);
        scores
    }
}
