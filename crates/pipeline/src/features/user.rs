//! A user's history, prepared once for all candidates of a request.
use super::{FeatureSchema, affinity::Affinity};
use ahash::AHashMap;
use lodestone_catalog::{Catalog, ItemVectors};
use lodestone_core::{
    ids::{ItemKey, Row},
    units::UnixMillis,
};
use lodestone_events::{EventKind, Refunds};
use lodestone_index::{KeyedNeighbours, LANES, LaneVectors};
use lodestone_state::users::History;

/// Maximum number of recent distinct items, from which similarity and neighbours start.
const RECENT_MAX: usize = 12;
const _: () = assert!(RECENT_MAX <= LANES);
/// The weight of each item relative to the next more recent one.
const RECENT_DECAY: f32 = 0.85;

/// Half-lives of [`ItemStats::bought_decayed`], in days: the last visits, the season, the year.
const BOUGHT_HALF_LIVES: [f32; 3] = [14.0, 60.0, 180.0];

/// Counts and times of a user's events on one item.
#[derive(Debug, Clone, Copy, Default)]
pub struct ItemStats {
    pub bought_count: u32,
    /// The first and the last purchase.
    pub bought_first_at: Option<u32>,
    pub bought_at: Option<u32>,
    /// Purchases, each with half the weight after a half-life: 14, 60 and 180 days.
    pub bought_decayed: [f32; 3],
    pub seen_count: u32,
    pub seen_at: Option<u32>,
    pub refunded_count: u32,
    pub is_in_cart: bool,
    pub is_favorite: bool,
}

impl ItemStats {
    /// Returns `ln(1 + days)`, or -1 for never.
    pub fn days_since(&self, at_s: Option<u32>, now: UnixMillis) -> f32 {
        at_s.map_or(-1.0, |at| days_between(at, now).ln_1p())
    }

    /// Returns how near the next purchase is, if the user buys the item at equal intervals: 1 when the time since the
    /// last purchase equals the interval, less before and after; 0 if the interval is unknown.
    pub fn due(&self, now: UnixMillis) -> f32 {
        let (Some(interval), Some(last)) = (self.bought_interval(), self.bought_at) else { return 0.0 };
        let ratio = days_between(last, now) / interval;
        ratio.min(1.0 / ratio.max(f32::MIN_POSITIVE))
    }

    /// Returns the mean days between purchases; none with fewer than two, or if all are at the same time.
    pub fn bought_interval(&self) -> Option<f32> {
        let (first, last) = (self.bought_first_at?, self.bought_at?);
        let days = (last - first) as f32 / DAY_S;
        (days > 0.0).then(|| days / (self.bought_count - 1) as f32)
    }
}

const DAY_S: f32 = 86_400.0;

/// Returns the days from a time in seconds since 1970 until `now`; 0 if it is later.
pub(super) fn days_between(at_s: u32, now: UnixMillis) -> f32 {
    now.days_since(UnixMillis(i64::from(at_s) * 1000)).max(0.0)
}

/// Returns the weight of an event some days ago.
pub(super) fn decay(days: f32, half_life: f32) -> f32 {
    (-days / half_life).exp2()
}

/// A recent item of the user.
#[derive(Debug, Clone, Copy)]
pub struct RecentItem {
    pub row: Row,
    pub key: ItemKey,
    /// 1 for the latest item, smaller for older ones.
    pub weight: f32,
    pub kind: EventKind,
    pub at_s: u32,
}

/// Returns the vectors of items in the user space and in the query space.
pub(super) fn lane_vectors(items: &[RecentItem], catalog: &Catalog) -> [LaneVectors; 2] {
    let vectors = |item: &RecentItem| &catalog.get(item.row).vectors;
    let dimensions = |space: fn(&ItemVectors) -> &[f32]| items.first().map_or(0, |item| space(vectors(item)).len());
    [ItemVectors::user_space, ItemVectors::query_space]
        .map(|space| LaneVectors::new(dimensions(space), items.iter().map(|item| space(vectors(item)))))
}

/// The prepared history of a request's user.
#[derive(Debug, Default)]
pub struct UserContext {
    /// The output of the user encoder.
    pub vector: Option<Vec<f32>>,
    /// Distinct recent items, latest first.
    pub recent: Vec<RecentItem>,
    /// The vectors of `recent` in the user space and in the query space.
    pub recent_vectors: [LaneVectors; 2],
    /// ln(1 + events).
    pub log_history_length: f32,
    /// All items that the user showed interest in, each once, with the strongest interest, 0 to 1. The item-to-item
    /// model starts from them, as in its training: older choices say as much about new ones.
    pub chosen: Vec<(ItemKey, f32)>,
    pub basket_count: u32,
    /// The time of the latest purchase in seconds since 1970.
    pub basket_at: Option<u32>,
    /// Mean of ln(1 + price) over bought items; 0 if unknown.
    pub mean_log_price: f32,
    /// Of the declared affinities, in the order of the schema.
    pub(super) affinities: Vec<Affinity>,
    stats: AHashMap<ItemKey, ItemStats>,
    transitions_of_last: AHashMap<ItemKey, f32>,
}

impl UserContext {
    /// Prepares a history. O(events).
    pub fn new(
        history: &History,
        schema: &FeatureSchema,
        catalog: &Catalog,
        transitions: &KeyedNeighbours,
        now: UnixMillis,
    ) -> Self {
        let mut context = Self { log_history_length: (history.events.len() as f32).ln_1p(), ..Self::default() };
        let (mut price_sum, mut price_count, mut last_basket) = (0.0f32, 0u32, None);
        let refunds = history.refunds();
        for (index, event) in history.events.iter().enumerate() {
            if refunds.is_refunded(index) {
                context.stats.entry(event.item).or_default().is_in_cart = false;
                continue;
            }
            context.count(event.item, event.kind, event.at_s, now);
            if event.kind == EventKind::Purchase {
                if last_basket != Some(event.at_s) {
                    context.basket_count += 1;
                    context.basket_at = Some(event.at_s);
                    last_basket = Some(event.at_s);
                }
                let row = catalog.row_of_key(event.item).map(|row| catalog.get(row));
                if let Some(row) = row.filter(|row| row.item.price_at(catalog.time()).price.is_some()) {
                    price_sum += row.log_price;
                    price_count += 1;
                }
            }
        }
        if price_count > 0 {
            context.mean_log_price = price_sum / price_count as f32;
        }
        context.collect_recent(history, &refunds, catalog);
        context.collect_chosen(history, &refunds);
        context.affinities = schema.affinities(history, &refunds, catalog, now);
        context.recent_vectors = lane_vectors(&context.recent, catalog);
        if let Some(last) = context.recent.first() {
            context.transitions_of_last = transitions.of(last.key).collect();
        }
        context
    }

    /// Returns `ln(1 + days)` since the latest purchase of any item, or -1 for never.
    pub fn days_since_basket(&self, now: UnixMillis) -> f32 {
        self.basket_at.map_or(-1.0, |at| days_between(at, now).ln_1p())
    }

    /// Returns the stats of an item.
    pub fn stats(&self, key: ItemKey) -> ItemStats {
        self.stats.get(&key).copied().unwrap_or_default()
    }

    /// Returns the items of the history with their stats, in no order.
    pub fn items(&self) -> impl Iterator<Item = (ItemKey, &ItemStats)> {
        self.stats.iter().map(|(key, stats)| (*key, stats))
    }

    /// Returns the transition weight from the latest item to this item.
    pub fn transition_weight_of_last(&self, key: ItemKey) -> f32 {
        self.transitions_of_last.get(&key).copied().unwrap_or(0.0)
    }

    fn count(&mut self, key: ItemKey, kind: EventKind, at_s: u32, now: UnixMillis) {
        let stats = self.stats.entry(key).or_default();
        match kind {
            EventKind::Purchase => {
                stats.bought_count += 1;
                stats.bought_first_at.get_or_insert(at_s);
                let days = days_between(at_s, now);
                for (sum, half_life) in stats.bought_decayed.iter_mut().zip(BOUGHT_HALF_LIVES) {
                    *sum += decay(days, half_life);
                }
                stats.bought_at = stats.bought_at.max(Some(at_s));
                stats.is_in_cart = false;
            }
            EventKind::Refund => stats.refunded_count += 1,
            EventKind::AddToCart => stats.is_in_cart = true,
            EventKind::RemoveFromCart => stats.is_in_cart = false,
            EventKind::Favorite => stats.is_favorite = true,
            EventKind::Unfavorite => stats.is_favorite = false,
            _ => {
                stats.seen_count += 1;
                stats.seen_at = stats.seen_at.max(Some(at_s));
            }
        }
    }

    fn collect_chosen(&mut self, history: &History, refunds: &Refunds) {
        let mut index_of: AHashMap<ItemKey, usize> = AHashMap::new();
        for (index, event) in history.events.iter().enumerate() {
            let interest = event.kind.interest();
            if interest == 0.0 || refunds.is_withdrawn(index) {
                continue;
            }
            let at = *index_of.entry(event.item).or_insert_with(|| {
                self.chosen.push((event.item, 0.0));
                self.chosen.len() - 1
            });
            self.chosen[at].1 = self.chosen[at].1.max(interest);
        }
    }

    fn collect_recent(&mut self, history: &History, refunds: &Refunds, catalog: &Catalog) {
        let mut weight = 1.0;
        for (index, event) in history.events.iter().enumerate().rev() {
            if self.recent.len() == RECENT_MAX {
                break;
            }
            if refunds.is_withdrawn(index) || self.recent.iter().any(|recent| recent.key == event.item) {
                continue;
            }
            if let Some(row) = catalog.row_of_key(event.item) {
                self.recent.push(RecentItem { row, key: event.item, weight, kind: event.kind, at_s: event.at_s });
                weight *= RECENT_DECAY;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u32 = 86_400;

    #[test]
    fn a_purchase_is_due_when_the_interval_has_passed() {
        let at = |day: u32| UnixMillis(i64::from(day * DAY) * 1000);
        let regular =
            ItemStats { bought_count: 3, bought_first_at: Some(0), bought_at: Some(20 * DAY), ..ItemStats::default() };
        assert_eq!(regular.bought_interval(), Some(10.0));
        assert_eq!([25, 30, 40].map(|day| regular.due(at(day))), [0.5, 1.0, 0.5]);
        let once = ItemStats { bought_count: 1, bought_first_at: Some(0), bought_at: Some(0), ..ItemStats::default() };
        assert_eq!((once.bought_interval(), once.due(at(9))), (None, 0.0));
        let twice_at_once = ItemStats { bought_count: 2, ..once };
        assert_eq!(twice_at_once.bought_interval(), None);
    }
}
