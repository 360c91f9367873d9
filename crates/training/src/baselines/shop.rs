//! Purchases of a shop by user and by item, read up to any time.
use crate::replay::Interaction;
use ahash::AHashMap;
use lodestone_core::{ids::UserId, units::UnixMillis};

/// One item of a user's interaction.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bought {
    pub at: UnixMillis,
    pub row: u32,
}

/// The interactions of a shop in time order. Interactions without a user count for items only.
pub(crate) struct Shop<'a> {
    pub(super) interactions: &'a [Interaction],
    pub(super) item_count: usize,
    user_numbers: AHashMap<&'a UserId, u32>,
    /// By user, in time order.
    of_user: Vec<Vec<Bought>>,
    /// Times at which each item was bought, in order.
    of_item: Vec<Vec<UnixMillis>>,
}

impl<'a> Shop<'a> {
    /// Groups interactions, which are in time order. Their rows are below `item_count`.
    pub(crate) fn new(interactions: &'a [Interaction], item_count: usize) -> Self {
        let mut shop = Self {
            interactions,
            item_count,
            user_numbers: AHashMap::new(),
            of_user: Vec::new(),
            of_item: vec![Vec::new(); item_count],
        };
        for interaction in interactions {
            let user = interaction.user.as_ref().map(|user| {
                let next = shop.of_user.len() as u32;
                let number = *shop.user_numbers.entry(user).or_insert(next);
                if number == next {
                    shop.of_user.push(Vec::new());
                }
                number as usize
            });
            for &row in &interaction.rows {
                shop.of_item[row as usize].push(interaction.at);
                if let Some(user) = user {
                    shop.of_user[user].push(Bought { at: interaction.at, row });
                }
            }
        }
        shop
    }

    pub(super) fn number(&self, user: &UserId) -> Option<u32> {
        self.user_numbers.get(user).copied()
    }

    pub(super) fn user_count(&self) -> usize {
        self.of_user.len()
    }

    /// Returns the interactions before `until`.
    pub(super) fn interactions_before(&self, until: UnixMillis) -> &'a [Interaction] {
        &self.interactions[..self.interactions.partition_point(|interaction| interaction.at < until)]
    }

    /// Returns what the user bought before `at`, in time order.
    pub(super) fn bought_before(&self, user: &UserId, at: UnixMillis) -> &[Bought] {
        self.number(user).map_or(&[], |number| self.of_user_before(number as usize, at))
    }

    /// As [`Self::bought_before`], by the number of the user, below [`Self::user_count`].
    pub(super) fn of_user_before(&self, number: usize, at: UnixMillis) -> &[Bought] {
        let bought = &self.of_user[number];
        &bought[..bought.partition_point(|bought| bought.at < at)]
    }

    /// Returns how often each item was bought in the `days` before `at`.
    pub(super) fn sales(&self, at: UnixMillis, days: f32) -> Vec<f32> {
        let since = UnixMillis(at.0.saturating_sub((f64::from(days) * UnixMillis::DAY as f64) as i64));
        let before = |times: &[UnixMillis], limit: UnixMillis| times.partition_point(|time| *time < limit);
        self.of_item.iter().map(|times| (before(times, at) - before(times, since)) as f32).collect()
    }
}

/// Returns the weight of a purchase: 1 at `at`, half of it each `half_life_days` earlier. An infinite half-life: 1.
pub(super) fn decayed(bought: UnixMillis, at: UnixMillis, half_life_days: f32) -> f32 {
    (-at.days_since(bought) / half_life_days).exp2()
}
