//! The positive interactions of a shop's history in time order, and the items of one visit or basket.
use ahash::AHashMap;
use lodestone_core::{
    ids::{ItemId, UserId},
    units::{Quantity, UnixMillis},
    viewer::ViewerContext,
};
use lodestone_dataset::DatasetEvent;
use lodestone_events::{Event, EventKind, RefundLine, Refunds};
use std::num::NonZeroU64;

/// Items of a basket that are used. Larger baskets say little about pairs, and the number of pairs grows quadratically.
pub(crate) const BASKET_ITEMS_MAX: usize = 60;
/// If there are fewer purchases, visits stand in for baskets.
const BASKETS_MIN: usize = 20;
/// A longer pause between two events of a user ends the visit, unless both have session ids.
const VISIT_MS: i64 = 30 * 60 * 1000;

/// The session of an event: a hash of its id; none if the event has no session id. Compared only among the events of one
/// user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Session(Option<NonZeroU64>);

impl Session {
    pub(crate) const UNKNOWN: Self = Self(None);

    pub(crate) fn of(id: &str) -> Self {
        if id.is_empty() {
            return Self::UNKNOWN;
        }
        // Fixed seeds, so that equal data lead to equal bundles.
        let hash = ahash::RandomState::with_seeds(1, 2, 3, 4).hash_one(id);
        Self(NonZeroU64::new(hash.max(1)))
    }
}

/// Returns whether two events of a user, the earlier one first, belong to one visit: they have the same session id or,
/// if one of them has none, the pause between them is at most 30 minutes.
pub(crate) fn is_one_visit(earlier: (Session, UnixMillis), later: (Session, UnixMillis)) -> bool {
    match (earlier.0.0, later.0.0) {
        (Some(one), Some(other)) => one == other,
        _ => later.1.0 - earlier.1.0 <= VISIT_MS,
    }
}

/// The contexts of all users' events, for requests that are evaluated.
pub(crate) struct ViewerContexts<'a>(AHashMap<&'a UserId, Vec<(UnixMillis, &'a ViewerContext)>>);

impl<'a> ViewerContexts<'a> {
    /// `events` are in time order.
    pub(crate) fn of(events: &'a [Event]) -> Self {
        let mut by_user: AHashMap<&UserId, Vec<(UnixMillis, &ViewerContext)>> = AHashMap::new();
        for event in events {
            by_user.entry(&event.user).or_default().push((event.at, &event.context));
        }
        Self(by_user)
    }

    /// Returns the context of the user's first event that is not before `at`, which a request at this time precedes.
    pub(crate) fn at(&self, user: &UserId, at: UnixMillis) -> ViewerContext {
        let events = self.0.get(user).map_or(&[][..], Vec::as_slice);
        let next = events.get(events.partition_point(|(of, _)| *of < at));
        next.map_or_else(ViewerContext::default, |(_, context)| (*context).clone())
    }
}

/// A positive interaction. Items of one invoice share their time, so their order has no meaning.
#[derive(Debug, Clone)]
pub(crate) struct Interaction {
    /// None for an anonymous event.
    pub user: Option<UserId>,
    pub session: Session,
    pub at: UnixMillis,
    pub kind: EventKind,
    /// Distinct rows of the item table.
    pub rows: Vec<u32>,
}

/// Returns the rows of events before `end`, without those that the refunds before `end` withdraw. Anonymous refunds
/// take nothing, because their purchases are not known.
pub(crate) fn without_refunded(events: &[DatasetEvent], end: UnixMillis) -> Vec<DatasetEvent> {
    let mut by_user: AHashMap<&UserId, Vec<usize>> = AHashMap::new();
    for (index, event) in events.iter().enumerate().filter(|(_, event)| event.at < end && event.item.is_some()) {
        if let Some(user) = &event.user {
            by_user.entry(user).or_default().push(index);
        }
    }
    let mut is_withdrawn = vec![false; events.len()];
    for indices in by_user.values_mut() {
        indices.sort_by_key(|index| events[*index].at);
        let line = |index: &usize| {
            let DatasetEvent { item, kind, quantity, .. } = &events[*index];
            item.as_ref().map(|item| RefundLine {
                item,
                kind: *kind,
                thousandths: quantity.unwrap_or(Quantity::ONE).thousandths().into(),
            })
        };
        let refunds = Refunds::of(&indices.iter().filter_map(line).collect::<Vec<_>>());
        indices.iter().enumerate().for_each(|(at, index)| is_withdrawn[*index] = refunds.is_withdrawn(at));
    }
    let kept = events.iter().zip(is_withdrawn).filter(|(event, is_withdrawn)| event.at < end && !is_withdrawn);
    kept.map(|(event, _)| event.clone()).collect()
}

/// Removes the lines of purchases that were refunded in full. `events` are in time order.
pub(crate) fn remove_refunded(events: &mut [Event]) {
    let mut by_user: AHashMap<UserId, Vec<(usize, usize)>> = AHashMap::new();
    for (index, event) in events.iter().enumerate() {
        by_user.entry(event.user.clone()).or_default().extend((0..event.lines.len()).map(|line| (index, line)));
    }
    let mut refunded: Vec<(usize, usize)> = Vec::new();
    for lines in by_user.values() {
        let line = |(event, line): &(usize, usize)| {
            let (event, line) = (&events[*event], &events[*event].lines[*line]);
            RefundLine { item: &line.item, kind: event.kind, thousandths: line.quantity.thousandths().into() }
        };
        let refunds = Refunds::of(&lines.iter().map(line).collect::<Vec<_>>());
        refunded.extend(lines.iter().enumerate().filter(|(at, _)| refunds.is_refunded(*at)).map(|(_, line)| *line));
    }
    // From the last line, so that the indices before it stay valid.
    refunded.sort_unstable_by(|a, b| b.cmp(a));
    for (event, line) in refunded {
        events[event].lines.remove(line);
    }
}

/// Groups the rows of positive events by event, in time order. Items that the table does not contain are skipped.
pub(crate) fn interactions(events: &[DatasetEvent], row_of: &AHashMap<ItemId, u32>) -> Vec<Interaction> {
    let mut by_event: AHashMap<&str, usize> = AHashMap::new();
    let mut interactions: Vec<Interaction> = Vec::new();
    for event in events.iter().filter(|event| event.kind.is_positive()) {
        let Some(&row) = event.item.as_ref().and_then(|item| row_of.get(item)) else { continue };
        let index = *by_event.entry(event.event_id.as_str()).or_insert_with(|| {
            let (user, kind, session) = (event.user.clone(), event.kind, Session::of(&event.session));
            interactions.push(Interaction { user, session, at: event.at, kind, rows: Vec::new() });
            interactions.len() - 1
        });
        if !interactions[index].rows.contains(&row) {
            interactions[index].rows.push(row);
        }
    }
    interactions.sort_by_key(|interaction| interaction.at);
    interactions
}

/// Returns the purchases; in a shop with fewer than [`BASKETS_MIN`], the items of each visit. An anonymous interaction
/// is a visit of its own.
pub(crate) fn baskets(interactions: &[Interaction]) -> Vec<Interaction> {
    let is_purchase = |interaction: &&Interaction| interaction.kind == EventKind::Purchase;
    let purchases: Vec<Interaction> = interactions.iter().filter(is_purchase).cloned().collect();
    if purchases.len() >= BASKETS_MIN {
        return purchases;
    }
    let mut open: AHashMap<&UserId, (usize, (Session, UnixMillis))> = AHashMap::new();
    let mut visits: Vec<Interaction> = Vec::new();
    for interaction in interactions {
        let Some(user) = &interaction.user else {
            visits.push(interaction.clone());
            continue;
        };
        let here = (interaction.session, interaction.at);
        let of_visit = open.get(user).filter(|(_, last)| is_one_visit(*last, here)).map(|(index, _)| *index);
        let index = of_visit.unwrap_or_else(|| {
            visits.push(Interaction { rows: Vec::new(), ..interaction.clone() });
            visits.len() - 1
        });
        open.insert(user, (index, here));
        for row in &interaction.rows {
            let rows = &mut visits[index].rows;
            if rows.len() < BASKET_ITEMS_MAX && !rows.contains(row) {
                rows.push(*row);
            }
        }
    }
    visits
}

/// Groups interactions by user, in the order of each user's first one. An anonymous one is a group of its own.
pub(crate) fn by_user(interactions: &[Interaction]) -> Vec<Vec<&Interaction>> {
    let mut index_of: AHashMap<&UserId, usize> = AHashMap::new();
    let mut groups: Vec<Vec<&Interaction>> = Vec::new();
    for interaction in interactions {
        let known = interaction.user.as_ref().map(|user| *index_of.entry(user).or_insert(groups.len()));
        match known.filter(|index| *index < groups.len()) {
            Some(index) => groups[index].push(interaction),
            None => groups.push(vec![interaction]),
        }
    }
    groups
}

/// Returns at most `count` values at about equal distances.
pub(crate) fn sampled<T>(values: Vec<T>, count: usize) -> Vec<T> {
    let (length, count) = (values.len(), count.min(values.len()));
    let is_kept = |index: usize| (index + 1) * count / length > index * count / length;
    values.into_iter().enumerate().filter(|(index, _)| is_kept(*index)).map(|(_, value)| value).collect()
}

/// Returns the time before which `share` of the interactions happened.
pub(crate) fn time_at_share(interactions: &[Interaction], share: f64) -> UnixMillis {
    let index = ((interactions.len() as f64 * share) as usize).min(interactions.len().saturating_sub(1));
    interactions.get(index).map_or(UnixMillis(0), |interaction| interaction.at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use lodestone_core::units::UnixMillis;

    fn row(event_id: &str, user: Option<&str>, kind: EventKind, at: i64, item: &str) -> DatasetEvent {
        let user = user.map(|user| UserId::signed_in(user).unwrap());
        DatasetEvent::of_item(event_id.into(), kind, user, UnixMillis(at), ItemId::parse(item).unwrap())
    }

    #[test]
    fn a_session_id_joins_and_separates_events_and_a_pause_does_without_one() {
        let items: AHashMap<ItemId, u32> =
            (0..4).map(|item| (ItemId::parse(&format!("i{item}")).unwrap(), item)).collect();
        let view = |number: usize, minute: i64, session: &str| {
            let at = minute * 60_000;
            let event = row(&format!("e{number}"), Some("p"), EventKind::View, at, &format!("i{number}"));
            DatasetEvent { session: session.to_owned(), ..event }
        };
        let visits = |sessions: [&str; 4]| -> Vec<Vec<u32>> {
            // 20, 40 and 20 minutes apart.
            let rows: Vec<DatasetEvent> = sessions
                .into_iter()
                .zip([0, 20, 60, 80])
                .enumerate()
                .map(|(number, (session, minute))| view(number, minute, session))
                .collect();
            baskets(&interactions(&rows, &items)).into_iter().map(|visit| visit.rows).collect()
        };
        assert_eq!(visits(["", "", "", ""]), [[0, 1], [2, 3]]);
        assert_eq!(visits(["a", "a", "a", "b"]), [vec![0, 1, 2], vec![3]]);
        assert_eq!(visits(["a", "b", "b", ""]), [vec![0], vec![1, 2, 3]]);
    }

    #[test]
    fn what_was_refunded_before_the_end_is_no_interaction() {
        let rows = [
            row("1", Some("p"), EventKind::View, 1, "a"),
            row("2", Some("p"), EventKind::Purchase, 2, "a"),
            row("2", Some("p"), EventKind::Purchase, 2, "b"),
            row("3", Some("q"), EventKind::Purchase, 2, "a"),
            row("4", None, EventKind::Purchase, 3, "a"),
            row("5", Some("p"), EventKind::Refund, 5, "a"),
            row("6", None, EventKind::Refund, 6, "a"),
        ];
        let ids = |end: i64| -> Vec<(String, String)> {
            let name = |row: &DatasetEvent| (row.event_id.clone(), row.item.clone().unwrap().to_string());
            let kept = without_refunded(&rows, UnixMillis(end));
            kept.iter().filter(|row| row.kind.is_positive()).map(name).collect()
        };
        let named = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
            pairs.iter().map(|(id, item)| ((*id).to_owned(), (*item).to_owned())).collect()
        };
        assert_eq!(ids(5), named(&[("1", "a"), ("2", "a"), ("2", "b"), ("3", "a"), ("4", "a")]));
        assert_eq!(ids(9), named(&[("2", "b"), ("3", "a"), ("4", "a")]));
    }
}
