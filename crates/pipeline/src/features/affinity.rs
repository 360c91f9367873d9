//! A user's affinity to the values of an item field.
use super::user::{days_between, decay};
use ahash::AHashMap;
use lodestone_catalog::{Catalog, PreparedValue};
use lodestone_core::units::UnixMillis;
use lodestone_events::Refunds;
use lodestone_state::users::History;

/// The interest of a user by label. An event's interest, which depends on its type, halves after each half-life.
#[derive(Debug, Default)]
pub(super) struct Affinity {
    by_label: AHashMap<u64, f32>,
    /// The interest in items with any label.
    total: f32,
}

impl Affinity {
    /// Sums the interest by the labels of a prepared field. O(events × labels).
    pub(super) fn new(
        history: &History,
        refunds: &Refunds,
        catalog: &Catalog,
        (prepared, half_life_days): (usize, f32),
        now: UnixMillis,
    ) -> Self {
        let mut affinity = Self::default();
        for (index, event) in history.events.iter().enumerate() {
            let interest = event.kind.interest();
            if interest == 0.0 || refunds.is_withdrawn(index) {
                continue;
            }
            let Some(row) = catalog.row_of_key(event.item) else { continue };
            let labels = labels(catalog.get(row).prepared.get(prepared));
            if labels.is_empty() {
                continue;
            }
            let weight = interest * decay(days_between(event.at_s, now), half_life_days);
            affinity.total += weight;
            labels.iter().for_each(|label| *affinity.by_label.entry(*label).or_default() += weight);
        }
        affinity
    }

    /// Returns the share of the interest in items with the same label, the mean over the item's labels; 0 if the user
    /// or the item has none.
    pub(super) fn share(&self, value: Option<&PreparedValue>) -> f32 {
        let labels = labels(value);
        if labels.is_empty() || self.total == 0.0 {
            return 0.0;
        }
        let interest = |label| self.by_label.get(label).map_or(0.0, |interest| interest / self.total);
        labels.iter().map(interest).sum::<f32>() / labels.len() as f32
    }
}

fn labels(value: Option<&PreparedValue>) -> &[u64] {
    match value {
        Some(PreparedValue::Labels(labels)) => labels,
        _ => &[],
    }
}
