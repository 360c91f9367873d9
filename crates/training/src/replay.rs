//! The positive interactions of a shop's history in time order, and the items of one visit or basket.
use ahash::AHashMap;
use lodestone_core::{
    ids::{ItemId, UserId},
    units::UnixMillis,
};
use lodestone_dataset::DatasetEvent;
use lodestone_events::EventKind;

/// Items of a basket that are used. Larger baskets say little about pairs, and the number of pairs grows quadratically.
pub(crate) const BASKET_ITEMS_MAX: usize = 60;
/// If there are fewer purchases, visits stand in for baskets.
const BASKETS_MIN: usize = 20;
/// A longer pause between two events of a user ends the visit.
pub(crate) const VISIT_MS: i64 = 30 * 60 * 1000;

/// A positive interaction. Items of one invoice share their time, so their order has no meaning.
#[derive(Debug, Clone)]
pub(crate) struct Interaction {
    /// None for an anonymous event.
    pub user: Option<UserId>,
    pub at: UnixMillis,
    pub kind: EventKind,
    /// Distinct rows of the item table.
    pub rows: Vec<u32>,
}

/// Groups the rows of positive events by event, in time order. Items that the table does not contain are skipped.
pub(crate) fn interactions(events: &[DatasetEvent], row_of: &AHashMap<ItemId, u32>) -> Vec<Interaction> {
    let mut by_event: AHashMap<&str, usize> = AHashMap::new();
    let mut interactions: Vec<Interaction> = Vec::new();
    for event in events.iter().filter(|event| event.kind.is_positive()) {
        let Some(&row) = event.item.as_ref().and_then(|item| row_of.get(item)) else { continue };
        let index = *by_event.entry(event.event_id.as_str()).or_insert_with(|| {
            let (user, kind) = (event.user.clone(), event.kind);
            interactions.push(Interaction { user, at: event.at, kind, rows: Vec::new() });
            interactions.len() - 1
        });
        if !interactions[index].rows.contains(&row) {
            interactions[index].rows.push(row);
        }
    }
    interactions.sort_by_key(|interaction| interaction.at);
    interactions
}

/// Returns the purchases; in a shop with fewer than [`BASKETS_MIN`], the items of each visit.
pub(crate) fn baskets(interactions: &[Interaction]) -> Vec<Interaction> {
    let is_purchase = |interaction: &&Interaction| interaction.kind == EventKind::Purchase;
    let purchases: Vec<Interaction> = interactions.iter().filter(is_purchase).cloned().collect();
    if purchases.len() >= BASKETS_MIN {
        return purchases;
    }
    let mut open: AHashMap<&UserId, (usize, UnixMillis)> = AHashMap::new();
    let mut visits: Vec<Interaction> = Vec::new();
    for interaction in interactions {
        let Some(user) = &interaction.user else { continue };
        let of_visit =
            open.get(user).filter(|(_, last)| interaction.at.0 - last.0 <= VISIT_MS).map(|(index, _)| *index);
        let index = of_visit.unwrap_or_else(|| {
            visits.push(Interaction { rows: Vec::new(), ..interaction.clone() });
            visits.len() - 1
        });
        open.insert(user, (index, interaction.at));
        for row in &interaction.rows {
            let rows = &mut visits[index].rows;
            if rows.len() < BASKET_ITEMS_MAX && !rows.contains(row) {
                rows.push(*row);
            }
        }
    }
    visits
}

/// Returns the time before which `share` of the interactions happened.
pub(crate) fn time_at_share(interactions: &[Interaction], share: f64) -> UnixMillis {
    let index = ((interactions.len() as f64 * share) as usize).min(interactions.len().saturating_sub(1));
    interactions.get(index).map_or(UnixMillis(0), |interaction| interaction.at)
}
