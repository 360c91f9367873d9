//! Purchases of a shop by user and by item, read up to any time.
use crate::replay::Interaction;
use ahash::AHashMap;
use lodestone_core::{ids::UserId, units::UnixMillis};

/// One item of a user's interaction.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bought {
    pub at: UnixMillis,
    pub row: u32,
}

/// The interactions of a shop in time order. Interactions without a user count for items only.
pub(crate) struct Shop<'a> {
    pub(super) interactions: &'a [Interaction],
    pub(crate) item_count: usize,
    user_numbers: AHashMap<&'a UserId, u32>,
    /// By user, in time order.
    of_user: Vec<Vec<Bought>>,
    /// By item: its creation if it is known, otherwise its first interaction. None if it has neither.
    introduced: Vec<Option<UnixMillis>>,
}

impl<'a> Shop<'a> {
    /// Groups interactions, which are in time order. `created` has the creation time of each row of the item table.
    pub(crate) fn new(interactions: &'a [Interaction], created: Vec<Option<UnixMillis>>) -> Self {
        let mut shop = Self {
            interactions,
            item_count: created.len(),
            user_numbers: AHashMap::new(),
            of_user: Vec::new(),
            introduced: created,
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
                shop.introduced[row as usize].get_or_insert(interaction.at);
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
    pub(crate) fn bought_before(&self, user: &UserId, at: UnixMillis) -> &[Bought] {
        self.number(user).map_or(&[], |number| self.of_user_before(number as usize, at))
    }

    /// As [`Self::bought_before`], by the number of the user, below [`Self::user_count`].
    pub(super) fn of_user_before(&self, number: usize, at: UnixMillis) -> &[Bought] {
        let bought = &self.of_user[number];
        &bought[..bought.partition_point(|bought| bought.at < at)]
    }

    /// Returns the number of baskets of the user before `at`. Purchases at the same time are one basket.
    pub(crate) fn basket_count(&self, user: &UserId, at: UnixMillis) -> usize {
        self.bought_before(user, at).chunk_by(|a, b| a.at == b.at).count()
    }

    /// Returns whether the item was introduced within `days` before `at`, or later.
    pub(super) fn is_new(&self, row: u32, at: UnixMillis, days: i64) -> bool {
        self.introduced[row as usize].is_none_or(|introduced| introduced.0 > at.0 - days * UnixMillis::DAY)
    }
}

/// Sales of each item within the last days, at a time that only advances.
#[derive(Clone)]
pub(crate) struct Sales {
    days: f32,
    counts: Vec<f32>,
    /// The interactions that are counted.
    counted: std::ops::Range<usize>,
}

impl Sales {
    pub(crate) fn new(item_count: usize, days: f32) -> Self {
        Self { days, counts: vec![0.0; item_count], counted: 0..0 }
    }

    /// Counts the interactions before `at` and not earlier than the days before it.
    pub(crate) fn advance(&mut self, shop: &Shop, at: UnixMillis) {
        let since = UnixMillis(at.0.saturating_sub((f64::from(self.days) * UnixMillis::DAY as f64) as i64));
        let place = |time: UnixMillis| shop.interactions.partition_point(|interaction| interaction.at < time);
        let counted = place(since)..place(at);
        for interaction in &shop.interactions[self.counted.end..counted.end] {
            interaction.rows.iter().for_each(|row| self.counts[*row as usize] += 1.0);
        }
        for interaction in &shop.interactions[self.counted.start..counted.start] {
            interaction.rows.iter().for_each(|row| self.counts[*row as usize] -= 1.0);
        }
        self.counted = counted;
    }

    pub(crate) fn counts(&self) -> &[f32] {
        &self.counts
    }
}

/// Returns the weight of a purchase: 1 at `at`, half of it each `half_life_days` earlier. An infinite half-life: 1.
pub(crate) fn decayed(bought: UnixMillis, at: UnixMillis, half_life_days: f32) -> f32 {
    (-at.days_since(bought) / half_life_days).exp2()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::replay::Session;
    use lodestone_events::EventKind;

    pub(in crate::baselines) fn user(name: &str) -> UserId {
        UserId::signed_in(name).unwrap()
    }

    pub(in crate::baselines) fn day(days: f64) -> UnixMillis {
        UnixMillis((days * UnixMillis::DAY as f64) as i64)
    }

    /// A purchase of `name`, or of a guest if it is empty.
    pub(in crate::baselines) fn bought(name: &str, days: f64, rows: &[u32]) -> Interaction {
        let user = (!name.is_empty()).then(|| user(name));
        Interaction { user, session: Session::UNKNOWN, at: day(days), kind: EventKind::Purchase, rows: rows.to_vec() }
    }

    #[test]
    fn a_purchase_counts_half_after_each_half_life() {
        assert_eq!(decayed(day(10.0), day(10.0), 30.0), 1.0);
        assert_eq!(decayed(day(10.0), day(40.0), 30.0), 0.5);
        assert_eq!(decayed(day(10.0), day(70.0), 30.0), 0.25);
        assert_eq!(decayed(day(10.0), day(9000.0), f32::INFINITY), 1.0);
    }

    #[test]
    fn sales_are_those_of_the_window() {
        let interactions = [bought("a", 1.0, &[0, 1]), bought("", 5.0, &[1]), bought("b", 8.0, &[1, 2])];
        let shop = Shop::new(&interactions, vec![None; 3]);
        let (mut week, mut all) = (Sales::new(3, 7.0), Sales::new(3, f32::INFINITY));
        let mut at = |days: f64| {
            week.advance(&shop, day(days));
            all.advance(&shop, day(days));
            (week.counts().to_vec(), all.counts().to_vec())
        };
        assert_eq!(at(1.0), (vec![0.0; 3], vec![0.0; 3]), "what happens at the time is not known yet");
        assert_eq!(at(5.5), (vec![1.0, 2.0, 0.0], vec![1.0, 2.0, 0.0]));
        assert_eq!(at(9.0), (vec![0.0, 2.0, 1.0], vec![1.0, 3.0, 1.0]));
        assert_eq!(at(90.0), (vec![0.0; 3], vec![1.0, 3.0, 1.0]));
    }

    #[test]
    fn an_item_is_new_since_its_creation_or_its_first_sale() {
        let interactions = [bought("a", 50.0, &[0, 1])];
        let shop = Shop::new(&interactions, vec![Some(day(1.0)), None, None]);
        let is_new = |days: f64| [0, 1, 2].map(|row| shop.is_new(row, day(days), 30));
        assert_eq!(is_new(60.0), [false, true, true]);
        assert_eq!(is_new(81.0), [false, false, true]);
        assert_eq!(is_new(20.0), [true, true, true]);
    }
}
