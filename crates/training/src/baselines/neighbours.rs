//! Nearest users: UserKNN (Herlocker et al. 1999, with purchases decayed in time) and TIFU-KNN (Hu et al. 2020).
use super::shop::{Bought, Shop, decayed};
use lodestone_core::units::UnixMillis;
use std::collections::{BTreeMap, BTreeSet};

/// An item of a user's vector.
#[derive(Debug, Clone, Copy)]
struct Entry {
    row: u32,
    /// The user's index in the item's list of users.
    index: u32,
    weight: f32,
}

/// Sparse vectors of all users over the items, by user and by item, because both are read often.
struct UserVectors {
    /// By user, in the order of the items.
    of_user: Vec<Vec<Entry>>,
    /// By item: users with their weights.
    users_with: Vec<Vec<(u32, f32)>>,
    norms_squared: Vec<f32>,
}

impl UserVectors {
    fn new(shop: &Shop) -> Self {
        Self {
            of_user: vec![Vec::new(); shop.user_count()],
            users_with: vec![Vec::new(); shop.item_count],
            norms_squared: vec![0.0; shop.user_count()],
        }
    }

    /// Replaces an item's weight by `changed`, a function of it; 0 if the user does not have the item yet.
    fn change(&mut self, user: u32, row: u32, changed: impl Fn(f32) -> f32) {
        let (entries, users) = (&mut self.of_user[user as usize], &mut self.users_with[row as usize]);
        let position = entries.binary_search_by_key(&row, |entry| entry.row).unwrap_or_else(|position| {
            entries.insert(position, Entry { row, index: users.len() as u32, weight: 0.0 });
            users.push((user, 0.0));
            position
        });
        let entry = &mut entries[position];
        let weight = changed(entry.weight);
        self.norms_squared[user as usize] += (weight - entry.weight) * (weight + entry.weight);
        entry.weight = weight;
        users[entry.index as usize].1 = weight;
    }

    fn add(&mut self, user: u32, row: u32, added: f32) {
        self.change(user, row, |weight| weight + added);
    }

    /// Replaces a user's vector by one with at least the same items.
    fn replace(&mut self, user: u32, vector: &BTreeMap<u32, f32>) {
        vector.iter().for_each(|(row, weight)| self.change(user, *row, |_| *weight));
        // Without the rounding errors of the changes.
        self.norms_squared[user as usize] = vector.values().map(|weight| weight * weight).sum();
    }

    fn vector(&self, user: u32) -> impl Iterator<Item = (u32, f32)> + '_ {
        self.of_user[user as usize].iter().map(|entry| (entry.row, entry.weight))
    }

    /// Returns the product with the vector of each user.
    fn products(&self, user: u32) -> Vec<f32> {
        let mut products = vec![0.0; self.of_user.len()];
        for (row, weight) in self.vector(user) {
            for (other, others) in &self.users_with[row as usize] {
                products[*other as usize] += weight * others;
            }
        }
        products
    }

    /// Returns the `count` other users with a vector whose values are greatest; of equal ones the first.
    fn best(&self, user: u32, values: Vec<f32>, count: usize) -> Vec<(u32, f32)> {
        let others = values.into_iter().enumerate().map(|(other, value)| (other as u32, value));
        let mut others: Vec<(u32, f32)> =
            others.filter(|(other, _)| *other != user && !self.of_user[*other as usize].is_empty()).collect();
        let best_first = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        if others.len() > count {
            others.select_nth_unstable_by(count, best_first);
            others.truncate(count);
        }
        others.sort_unstable_by(best_first);
        others
    }
}

/// Users with the most similar purchases, at a time that only advances.
pub(super) struct SimilarUsers {
    vectors: UserVectors,
    /// The time to which all weights refer. A common factor of all weights changes no cosine, so that it may be the
    /// end of the data.
    until: UnixMillis,
    half_life_days: f32,
    /// Interactions that are included.
    included: usize,
}

impl SimilarUsers {
    pub(super) fn new(shop: &Shop, until: UnixMillis, half_life_days: f32) -> Self {
        Self { vectors: UserVectors::new(shop), until, half_life_days, included: 0 }
    }

    /// Includes the purchases before `at`: each adds its decayed weight to its user's vector.
    pub(super) fn advance(&mut self, shop: &Shop, at: UnixMillis) {
        let interactions = shop.interactions_before(at);
        for interaction in &interactions[self.included..] {
            let Some(user) = interaction.user.as_ref().and_then(|user| shop.number(user)) else { continue };
            let added = decayed(interaction.at, self.until, self.half_life_days);
            interaction.rows.iter().for_each(|row| self.vectors.add(user, *row, added));
        }
        self.included = interactions.len();
    }

    /// Returns the users with the greatest cosines above 0, best first.
    pub(super) fn similar(&self, user: u32, count: usize) -> Vec<(u32, f32)> {
        let norms = &self.vectors.norms_squared;
        let mut cosines = self.vectors.products(user);
        let own = norms[user as usize];
        cosines.iter_mut().zip(norms).filter(|(product, _)| **product > 0.0).for_each(|(product, norm)| {
            *product /= (own * norm).sqrt();
        });
        let mut similar = self.vectors.best(user, cosines, count);
        similar.retain(|(_, cosine)| *cosine > 0.0);
        similar
    }

    /// Returns a score of each item: the sum over the users of cosine × their normalised vectors.
    pub(super) fn scores(&self, similar: &[(u32, f32)]) -> Vec<f32> {
        let mut scores = vec![0.0; self.vectors.users_with.len()];
        for (other, cosine) in similar {
            let scale = cosine / self.vectors.norms_squared[*other as usize].sqrt();
            self.vectors.vector(*other).for_each(|(row, weight)| scores[row as usize] += scale * weight);
        }
        scores
    }
}

/// Decay of each earlier basket of a group, and of each earlier group (Hu et al. 2020, table 3: 0.9 and 0.7 for
/// Ta-Feng).
const BASKET_DECAY: f32 = 0.9;
const GROUP_DECAY: f32 = 0.7;

/// Users with the nearest vectors of TIFU-KNN, at a time that only advances.
pub(super) struct FrequencyVectors {
    vectors: UserVectors,
    group_count: usize,
    included: usize,
}

impl FrequencyVectors {
    pub(super) fn new(shop: &Shop, group_count: usize) -> Self {
        Self { vectors: UserVectors::new(shop), group_count, included: 0 }
    }

    /// Includes the purchases before `at`.
    pub(super) fn advance(&mut self, shop: &Shop, at: UnixMillis) {
        let interactions = shop.interactions_before(at);
        let added = interactions[self.included..].iter();
        let changed: BTreeSet<u32> = added.filter_map(|interaction| shop.number(interaction.user.as_ref()?)).collect();
        for user in changed {
            let vector = frequency_vector(shop.of_user_before(user as usize, at), self.group_count);
            self.vectors.replace(user, &vector);
        }
        self.included = interactions.len();
    }

    /// Returns the users with the least Euclidean distances, the nearest first.
    fn nearest(&self, user: u32, count: usize) -> Vec<u32> {
        let mut nearness = self.vectors.products(user);
        let norms = &self.vectors.norms_squared;
        nearness.iter_mut().zip(norms).for_each(|(product, norm)| *product = 2.0 * *product - norm);
        self.vectors.best(user, nearness, count).into_iter().map(|(other, _)| other).collect()
    }

    /// Returns the mean of the vectors of the nearest users.
    pub(super) fn mean_of_nearest(&self, user: u32, count: usize) -> Vec<f32> {
        let mut mean = vec![0.0; self.vectors.users_with.len()];
        let nearest = self.nearest(user, count);
        let share = 1.0 / nearest.len().max(1) as f32;
        for other in nearest {
            self.vectors.vector(other).for_each(|(row, weight)| mean[row as usize] += share * weight);
        }
        mean
    }

    /// Returns a score of each item: `own_share` × the user's vector + the rest × the mean of the nearest ones.
    pub(super) fn scores(&self, user: u32, mean_of_nearest: &[f32], own_share: f32) -> Vec<f32> {
        let mut scores: Vec<f32> = mean_of_nearest.iter().map(|mean| (1.0 - own_share) * mean).collect();
        self.vectors.vector(user).for_each(|(row, weight)| scores[row as usize] += own_share * weight);
        scores
    }
}

/// Returns the temporal item frequency vector (Hu et al. 2020, section 4.2): the baskets, in time order, are divided
/// into groups. A group's vector is the mean of its baskets, each decayed by the number of later ones in the group; the
/// user's vector is the mean of the groups, decayed in the same way.
fn frequency_vector(bought: &[Bought], group_count: usize) -> BTreeMap<u32, f32> {
    let baskets: Vec<&[Bought]> = bought.chunk_by(|a, b| a.at == b.at).collect();
    let mut vector = BTreeMap::new();
    let group_count = group_count.min(baskets.len());
    let mut rest = &baskets[..];
    for group in 0..group_count {
        let (baskets, later) = rest.split_at(rest.len() / (group_count - group));
        rest = later;
        let group_weight = GROUP_DECAY.powi((group_count - 1 - group) as i32) / group_count as f32;
        for (index, basket) in baskets.iter().enumerate() {
            let weight = BASKET_DECAY.powi((baskets.len() - 1 - index) as i32) / baskets.len() as f32;
            basket.iter().for_each(|bought| *vector.entry(bought.row).or_insert(0.0) += group_weight * weight);
        }
    }
    vector
}

#[cfg(test)]
mod tests {
    use super::{
        super::shop::tests::{bought, day},
        *,
    };
    use crate::replay::Interaction;

    fn assert_near(found: &[f32], expected: &[f32]) {
        let near = found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-5);
        assert!(found.len() == expected.len() && near, "{found:?} instead of {expected:?}");
    }

    #[test]
    fn similar_users_are_weighted_by_cosine() {
        let interactions = [
            bought("me", 0.0, &[0, 1]),
            bought("like", 0.0, &[0, 1, 2]),
            bought("half", 0.0, &[0, 3]),
            bought("other", 0.0, &[3]),
        ];
        let shop = Shop::new(&interactions, vec![None; 4]);
        let mut users = SimilarUsers::new(&shop, day(1.0), f32::INFINITY);
        users.advance(&shop, day(1.0));
        let similar = users.similar(0, 9);
        let (like, half) = (2.0 / 6.0f32.sqrt(), 0.5);
        assert_eq!(similar.iter().map(|(user, _)| *user).collect::<Vec<_>>(), [1, 2], "none without a common item");
        assert_near(&similar.iter().map(|(_, cosine)| *cosine).collect::<Vec<_>>(), &[like, half]);
        let (of_like, of_half) = (like / 3.0f32.sqrt(), half / 2.0f32.sqrt());
        assert_near(&users.scores(&similar), &[of_like + of_half, of_like, of_like, of_half]);
        assert_near(&users.scores(&users.similar(0, 1)), &[of_like, of_like, of_like, 0.0]);
    }

    #[test]
    fn purchases_of_users_decay_and_later_ones_are_unknown() {
        let interactions =
            [bought("me", 0.0, &[0]), bought("u", 0.0, &[0]), bought("u", 10.0, &[1]), bought("u", 20.0, &[2])];
        let shop = Shop::new(&interactions, vec![None; 3]);
        let mut users = SimilarUsers::new(&shop, day(20.0), 10.0);
        users.advance(&shop, day(5.0));
        users.advance(&shop, day(20.0));
        // The vector of u is (1/4, 1/2) for a half-life of 10 days, with the norm √5 / 4.
        let cosine = 1.0 / 5.0f32.sqrt();
        let similar = users.similar(0, 9);
        assert_near(&[similar[0].1], &[cosine]);
        assert_near(&users.scores(&similar), &[cosine / 5.0f32.sqrt(), cosine * 2.0 / 5.0f32.sqrt(), 0.0]);
    }

    fn baskets(baskets: &[&[u32]]) -> Vec<Interaction> {
        baskets.iter().enumerate().map(|(at, rows)| bought("u", at as f64, rows)).collect()
    }

    #[test]
    fn frequency_vectors_follow_the_paper() {
        let vector = |rows: &[&[u32]], groups| {
            let interactions = baskets(rows);
            let shop = Shop::new(&interactions, vec![None; 3]);
            frequency_vector(shop.of_user_before(0, day(99.0)), groups).into_iter().collect::<Vec<(u32, f32)>>()
        };
        // One group of two baskets: item 0 in both, (0.9 + 1) / 2; item 1 in the first, 0.9 / 2.
        let found = vector(&[&[0, 1], &[0]], 1);
        assert_near(&found.iter().map(|(_, weight)| *weight).collect::<Vec<_>>(), &[0.95, 0.45]);
        // Two groups of two baskets: ((0.9 + 0) / 2 · 0.7 + (0.9 + 1) / 2) / 2 for item 0.
        let found = vector(&[&[0], &[1], &[0], &[0, 2]], 2);
        let expected = [(0.45 * 0.7 + 0.95) / 2.0, 0.5 * 0.7 / 2.0, 0.5 / 2.0];
        assert_near(&found.iter().map(|(_, weight)| *weight).collect::<Vec<_>>(), &expected);
        // Fewer baskets than groups: each is a group of its own.
        let found = vector(&[&[0], &[1]], 7);
        assert_near(&found.iter().map(|(_, weight)| *weight).collect::<Vec<_>>(), &[0.35, 0.5]);
        assert!(frequency_vector(&[], 3).is_empty());
    }

    #[test]
    fn the_users_vector_is_mixed_with_the_mean_of_the_nearest() {
        let interactions = [bought("me", 0.0, &[0]), bought("near", 0.0, &[0, 1]), bought("far", 0.0, &[1, 2, 3])];
        let shop = Shop::new(&interactions, vec![None; 4]);
        let mut users = FrequencyVectors::new(&shop, 3);
        users.advance(&shop, day(1.0));
        // Squared distances: 1 and 4.
        assert_eq!(users.nearest(0, 9), [1, 2]);
        assert_near(&users.scores(0, &users.mean_of_nearest(0, 9), 0.6), &[0.6 + 0.2, 0.4, 0.2, 0.2]);
        assert_near(&users.scores(0, &users.mean_of_nearest(0, 1), 0.6), &[1.0, 0.4, 0.0, 0.0]);
    }

    #[test]
    fn vectors_change_with_the_users_later_baskets() {
        let interactions = [bought("me", 0.0, &[0]), bought("me", 5.0, &[1]), bought("", 6.0, &[1])];
        let shop = Shop::new(&interactions, vec![None; 2]);
        let mut users = FrequencyVectors::new(&shop, 2);
        users.advance(&shop, day(1.0));
        assert_near(&users.scores(0, &[0.0, 0.0], 1.0), &[1.0, 0.0]);
        users.advance(&shop, day(9.0));
        assert_near(&users.scores(0, &[0.0, 0.0], 1.0), &[0.35, 0.5]);
        assert!(users.nearest(0, 5).is_empty(), "a guest is no neighbour");
    }
}
