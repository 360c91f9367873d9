//! Users alike (UserKNN): items bought by the users whose purchases are most similar (Herlocker et al. 1999; with a
//! decay in time as in TIFU-KNN, Hu et al. 2020).
use super::shop::{Shop, decayed};
use ahash::AHashMap;
use lodestone_core::{ids::UserId, units::UnixMillis};

/// Vectors of all users at one time: the sum of the decayed weights of each item.
pub(super) struct UserVectors {
    until: UnixMillis,
    pub(super) half_life_days: f32,
    of_user: Vec<AHashMap<u32, f32>>,
    norms_squared: Vec<f32>,
    /// Users with each item, in the order of their first purchase.
    users_with: Vec<Vec<u32>>,
    /// Interactions that are included.
    included: usize,
}

impl UserVectors {
    /// Starts without purchases; `until` is the time to which all weights refer.
    pub(super) fn new(shop: &Shop, until: UnixMillis, half_life_days: f32) -> Self {
        Self {
            until,
            half_life_days,
            of_user: vec![AHashMap::new(); shop.user_count()],
            norms_squared: vec![0.0; shop.user_count()],
            users_with: vec![Vec::new(); shop.item_count],
            included: 0,
        }
    }

    /// Includes the purchases before `at`. Later calls have later times. A common factor of all weights changes no
    /// cosine, so the weights may refer to the end of the data.
    pub(super) fn advance(&mut self, shop: &Shop, at: UnixMillis) {
        let interactions = shop.interactions_before(at);
        for interaction in &interactions[self.included..] {
            let Some(user) = interaction.user.as_ref().and_then(|user| shop.number(user)) else { continue };
            let added = decayed(interaction.at, self.until, self.half_life_days);
            for &row in &interaction.rows {
                let weight = self.of_user[user as usize].entry(row).or_insert_with(|| {
                    self.users_with[row as usize].push(user);
                    0.0
                });
                self.norms_squared[user as usize] += (2.0 * *weight + added) * added;
                *weight += added;
            }
        }
        self.included = interactions.len();
    }

    /// Adds the items of the `count` users most similar to `user` by cosine to a score of each item.
    pub(super) fn scores(&self, shop: &Shop, user: &UserId, count: usize) -> Vec<f32> {
        let mut scores = vec![0.0; shop.item_count];
        let Some(own) = shop.number(user) else { return scores };
        let mut products: AHashMap<u32, f32> = AHashMap::new();
        for (row, weight) in &self.of_user[own as usize] {
            for other in &self.users_with[*row as usize] {
                *products.entry(*other).or_insert(0.0) += weight * self.of_user[*other as usize][row];
            }
        }
        products.remove(&own);
        let cosine = |(other, product): (u32, f32)| {
            (other, product / (self.norms_squared[own as usize] * self.norms_squared[other as usize]).sqrt())
        };
        let mut similar: Vec<(u32, f32)> = products.into_iter().map(cosine).collect();
        similar.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        for (other, similarity) in similar.into_iter().take(count) {
            let norm = self.norms_squared[other as usize].sqrt();
            for (row, weight) in &self.of_user[other as usize] {
                scores[*row as usize] += similarity * weight / norm;
            }
        }
        scores
    }
}
