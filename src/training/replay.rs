//! A shop's events in the order in which they happened.
use crate::{
    dataset::DatasetEvent,
    events::EventKind,
    ids::{ItemId, PersonId},
    units::UnixMillis,
};
use ahash::AHashMap;

/// What was bought at one time: items of one invoice share their time, so their order means nothing.
#[derive(Debug, Clone)]
pub struct Basket {
    /// None: nobody known.
    pub person: Option<PersonId>,
    pub at: UnixMillis,
    /// Places in the item table, each once.
    pub rows: Vec<u32>,
}

/// Groups purchases by order, in time order. Items that the table does not have are left out.
pub fn baskets(events: &[DatasetEvent], row_of: &AHashMap<ItemId, u32>) -> Vec<Basket> {
    let mut by_order: AHashMap<&str, usize> = AHashMap::new();
    let mut baskets: Vec<Basket> = Vec::new();
    for event in events.iter().filter(|event| event.kind == EventKind::Purchase) {
        let Some(&row) = event.item.as_ref().and_then(|item| row_of.get(item)) else { continue };
        let index = *by_order.entry(event.event_id.as_str()).or_insert_with(|| {
            baskets.push(Basket { person: event.person.clone(), at: event.at, rows: Vec::new() });
            baskets.len() - 1
        });
        if !baskets[index].rows.contains(&row) {
            baskets[index].rows.push(row);
        }
    }
    baskets.sort_by_key(|basket| basket.at);
    baskets
}

/// The time before which `share` of the baskets happened.
pub fn time_at_share(baskets: &[Basket], share: f64) -> UnixMillis {
    let index = ((baskets.len() as f64 * share) as usize).min(baskets.len().saturating_sub(1));
    baskets.get(index).map_or(UnixMillis(0), |basket| basket.at)
}
