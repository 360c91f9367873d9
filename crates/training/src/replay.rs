//! A shop's events in the order in which they happened.
use super::counts::BASKET_ITEMS_MAX;
use ahash::AHashMap;
use lodestone_core::{
    ids::{ItemId, UserId},
    units::UnixMillis,
};
use lodestone_dataset::DatasetEvent;
use lodestone_events::EventKind;

/// What was chosen at one time: items of one invoice share their time, so their order means nothing.
#[derive(Debug, Clone)]
pub(crate) struct Choice {
    /// None: nobody known.
    pub user: Option<UserId>,
    pub at: UnixMillis,
    pub kind: EventKind,
    /// Places in the item table, each once.
    pub rows: Vec<u32>,
}

/// Choices by event, in time order. Items that the table does not have are left out.
pub(crate) fn choices(events: &[DatasetEvent], row_of: &AHashMap<ItemId, u32>) -> Vec<Choice> {
    let mut by_event: AHashMap<&str, usize> = AHashMap::new();
    let mut choices: Vec<Choice> = Vec::new();
    for event in events.iter().filter(|event| event.kind.is_positive()) {
        let Some(&row) = event.item.as_ref().and_then(|item| row_of.get(item)) else { continue };
        let index = *by_event.entry(event.event_id.as_str()).or_insert_with(|| {
            let (user, kind) = (event.user.clone(), event.kind);
            choices.push(Choice { user, at: event.at, kind, rows: Vec::new() });
            choices.len() - 1
        });
        if !choices[index].rows.contains(&row) {
            choices[index].rows.push(row);
        }
    }
    choices.sort_by_key(|choice| choice.at);
    choices
}

/// What was bought together; in a shop where hardly anything is bought, what one user chose in a visit.
pub(crate) fn baskets(choices: &[Choice]) -> Vec<Choice> {
    let bought: Vec<Choice> = choices.iter().filter(|choice| choice.kind == EventKind::Purchase).cloned().collect();
    if bought.len() >= BASKETS_MIN {
        return bought;
    }
    let mut open: AHashMap<&UserId, (usize, UnixMillis)> = AHashMap::new();
    let mut visits: Vec<Choice> = Vec::new();
    for choice in choices {
        let Some(user) = &choice.user else { continue };
        let of_visit = open.get(user).filter(|(_, last)| choice.at.0 - last.0 <= VISIT_MS).map(|(index, _)| *index);
        let index = of_visit.unwrap_or_else(|| {
            visits.push(Choice { rows: Vec::new(), ..choice.clone() });
            visits.len() - 1
        });
        open.insert(user, (index, choice.at));
        for row in &choice.rows {
            let rows = &mut visits[index].rows;
            if rows.len() < BASKET_ITEMS_MAX && !rows.contains(row) {
                rows.push(*row);
            }
        }
    }
    visits
}

/// Fewer say nothing of what goes together.
const BASKETS_MIN: usize = 20;
/// A pause after which a user's next event belongs to another visit.
pub(crate) const VISIT_MS: i64 = 30 * 60 * 1000;

/// The time before which `share` of the choices happened.
pub(crate) fn time_at_share(choices: &[Choice], share: f64) -> UnixMillis {
    let index = ((choices.len() as f64 * share) as usize).min(choices.len().saturating_sub(1));
    choices.get(index).map_or(UnixMillis(0), |choice| choice.at)
}
