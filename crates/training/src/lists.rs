//! What the ranking model learns from: moments of real histories, with what retrieval found then and what came of it.
use super::{
    Progress,
    query_side::query_from_title,
    ranker::RankingList,
    train::{TrainError, TrainOptions, retrieve_candidates},
};
use ahash::AHashMap;
use lodestone_catalog::Item;
use lodestone_core::{
    ids::{ItemId, Row, UserId},
    units::UnixMillis,
};
use lodestone_events::{Event, EventKind};
use lodestone_pipeline::{Generation, Models, Options, RequestContext, Viewer};
use rand::{Rng, rngs::StdRng};
use std::ops::Range;

/// What may come of a candidate within a day: that it is looked at, put into the cart, bought; that it is one of these and the
/// user comes back (a day to 14 days later); that it is bought and given back (within 30 days).
pub(crate) const HEADS: [&str; 5] = ["click", "cart", "purchase", "return_visit", "refund"];
const CLICK: usize = 0;
const CART: usize = 1;
const PURCHASE: usize = 2;
const RETURN_VISIT: usize = 3;
const REFUND: usize = 4;

/// What a head's probability counts in an item's utility, where a shop does not say otherwise.
pub(crate) fn head_weight(head: &str) -> f32 {
    match head {
        "click" => 0.1,
        "cart" => 0.3,
        "return_visit" => 0.2,
        "refund" => -0.5,
        _ => 1.0,
    }
}

/// By head: 1 or 0, or NaN where the data end before it is known.
pub(crate) type Labels = [f32; HEADS.len()];

/// What follows from a moment, in days.
const SOON_DAYS: i64 = 1;
const RETURN_VISIT_DAYS: i64 = 14;
const REFUND_DAYS: i64 = 30;
/// Heads with fewer positive labels are not learned.
const HEAD_POSITIVES_MIN: usize = 50;

/// Everyone's events, to look up what came of a moment.
pub(crate) struct Outcomes<'a> {
    by_user: AHashMap<&'a UserId, Vec<&'a Event>>,
    row_of: AHashMap<ItemId, Row>,
    /// Nothing from here on is known.
    until: UnixMillis,
}

impl<'a> Outcomes<'a> {
    /// `events` in time order; those from `until` on are not looked at.
    pub(crate) fn new(events: &'a [Event], items: &[Item], until: UnixMillis) -> Self {
        let mut by_user: AHashMap<&UserId, Vec<&Event>> = AHashMap::new();
        for event in events.iter().take_while(|event| event.at < until) {
            by_user.entry(&event.user).or_default().push(event);
        }
        let row_of = items.iter().enumerate().map(|(row, item)| (item.id.clone(), Row(row as u32))).collect();
        Self { by_user, row_of, until }
    }

    pub(crate) fn row_of(&self, item: &ItemId) -> Option<Row> {
        self.row_of.get(item).copied()
    }

    /// The labels of what a user chose within a day from `at` on. All others are 0 throughout.
    pub(crate) fn chosen(&self, user: &UserId, at: UnixMillis) -> AHashMap<Row, Labels> {
        let mut chosen: AHashMap<Row, Labels> = AHashMap::new();
        let days = |count: i64| UnixMillis(at.0.saturating_add(count * UnixMillis::DAY));
        for event in self.of(user, at..days(SOON_DAYS)) {
            let head = match event.kind {
                EventKind::View | EventKind::Click | EventKind::Review => CLICK,
                EventKind::AddToCart | EventKind::Favorite => CART,
                EventKind::Purchase => PURCHASE,
                _ => continue,
            };
            for row in event.lines.iter().filter_map(|line| self.row_of(&line.item)) {
                chosen.entry(row).or_default()[head] = 1.0;
            }
        }
        if chosen.is_empty() {
            return chosen;
        }
        // Also what came is not known before the time is over: to know only what came early would make it look likely.
        let known = |came: bool, end: UnixMillis| if end <= self.until { f32::from(u8::from(came)) } else { f32::NAN };
        let came_back = self.of(user, days(SOON_DAYS)..days(RETURN_VISIT_DAYS)).next().is_some();
        for labels in chosen.values_mut() {
            labels[RETURN_VISIT] = known(came_back, days(RETURN_VISIT_DAYS));
            if labels[PURCHASE] == 1.0 {
                labels[REFUND] = known(false, days(REFUND_DAYS));
            }
        }
        let refunds = self.of(user, at..days(REFUND_DAYS)).filter(|event| event.kind == EventKind::Refund);
        for row in refunds.flat_map(|event| &event.lines).filter_map(|line| self.row_of(&line.item)) {
            if let Some(labels) = chosen.get_mut(&row).filter(|labels| labels[PURCHASE] == 1.0) {
                labels[REFUND] = known(true, days(REFUND_DAYS));
            }
        }
        chosen
    }

    /// The labels of `rows` beside those that were chosen. Where it is not known yet what came of a chosen one, nothing is
    /// known of that head: with the others' zeros alone it would look rare.
    pub(crate) fn labels(chosen: &AHashMap<Row, Labels>, rows: impl Iterator<Item = Row>) -> Vec<Labels> {
        let mut unchosen = Labels::default();
        for (head, label) in unchosen.iter_mut().enumerate() {
            if chosen.values().any(|labels| labels[head].is_nan()) {
                *label = f32::NAN;
            }
        }
        let of =
            |labels: &Labels| std::array::from_fn(|head| if unchosen[head].is_nan() { f32::NAN } else { labels[head] });
        rows.map(|row| chosen.get(&row).map_or(unchosen, of)).collect()
    }

    fn of(&self, user: &UserId, times: Range<UnixMillis>) -> impl Iterator<Item = &'a Event> {
        let events = self.by_user.get(user).map_or(&[][..], Vec::as_slice);
        let begin = events.partition_point(|event| event.at < times.start);
        events[begin..].iter().copied().take_while(move |event| event.at < times.end)
    }
}

/// Lists with the names of the heads that enough of them speak of.
pub(crate) struct Lists {
    pub lists: Vec<RankingList>,
    pub heads: Vec<String>,
}

/// Share of the moments that is looked at, by whether something was bought.
struct Shares {
    purchase: f64,
    other: f64,
}

impl Shares {
    /// Each moment gives two lists, one without a query and one with. Purchases, which are rarer, get half of the lists at
    /// least.
    fn new(events: &[Event], times: &Range<UnixMillis>, lists_max: usize) -> Self {
        let labelled = events.iter().filter(|event| times.contains(&event.at) && event.kind.is_positive());
        let (mut purchases, mut others) = (0usize, 0usize);
        for event in labelled {
            *(if event.kind == EventKind::Purchase { &mut purchases } else { &mut others }) += 1;
        }
        let moments_max = lists_max as f64 / 2.0;
        let of_purchases = if others == 0 { moments_max } else { moments_max / 2.0 };
        let purchase = (of_purchases / purchases.max(1) as f64).min(1.0);
        let rest = moments_max - purchase * purchases as f64;
        Self { purchase, other: (rest / others.max(1) as f64).clamp(0.0, 1.0) }
    }
}

/// Replays the events through the serving code and keeps, before choices within `times`, what retrieval found. Nothing from
/// the end of `times` on is known to features or labels.
pub(crate) fn ranking_lists(
    generation: &Generation,
    models: &mut Models,
    items: &[Item],
    events: &[Event],
    times: Range<UnixMillis>,
    (options, rng): (&TrainOptions, &mut StdRng),
    progress: &mut dyn FnMut(Progress),
) -> Result<Lists, TrainError> {
    let outcomes = Outcomes::new(events, items, times.end);
    let shares = Shares::new(events, &times, options.lists_max);
    let mut lists = Vec::new();
    for (done, event) in events.iter().take_while(|event| event.at < times.end).enumerate() {
        let share = if event.kind == EventKind::Purchase { shares.purchase } else { shares.other };
        if event.kind.is_positive() && event.at >= times.start && rng.random_bool(share) {
            let chosen = outcomes.chosen(&event.user, event.at);
            let item = event.lines.first().and_then(|line| outcomes.row_of(&line.item));
            let query = item.map(|row| query_from_title(&items[row.index()].title, rng));
            lists.extend(list_for(generation, models, event, None, &chosen));
            lists.extend(query.and_then(|query| list_for(generation, models, event, Some(&query), &chosen)));
        }
        generation.state.apply_event(0, event);
        if done % 256 == 0 {
            if options.is_stopped() {
                return Err(TrainError::Stopped);
            }
            progress(Progress { stage: "replay", done, total: events.len(), loss: f32::NAN });
        }
    }
    if lists.len() < 20 {
        return Err(TrainError::TooLittle(format!(
            "only {} moments of known users can be learned to rank from; at least 20 are needed",
            lists.len()
        )));
    }
    Ok(with_enough(lists))
}

/// Candidates and features as serving would have made them, with labels by head. None without anything that was chosen.
fn list_for(
    generation: &Generation,
    models: &mut Models,
    event: &Event,
    query: Option<&str>,
    chosen: &AHashMap<Row, Labels>,
) -> Option<RankingList> {
    let viewer = Viewer { user: event.user.clone(), session: String::new(), locale: String::new() };
    let (catalog, options) = (generation.catalog.load_full(), Options::default());
    let mut context = RequestContext::new(generation, &catalog, &viewer, &options, event.at);
    retrieve_candidates(&mut context, models, query);
    if !context.candidates.list.iter().any(|candidate| chosen.contains_key(&candidate.row)) {
        return None;
    }
    let features = context.features();
    let labels = Outcomes::labels(chosen, context.candidates.list.iter().map(|candidate| candidate.row));
    Some(RankingList { features, labels: labels.concat() })
}

/// Leaves out the heads that hardly any list speaks of.
fn with_enough(mut lists: Vec<RankingList>) -> Lists {
    let mut positives = [0usize; HEADS.len()];
    for labels in lists.iter().flat_map(|list| list.labels.chunks_exact(HEADS.len())) {
        positives.iter_mut().zip(labels).for_each(|(count, label)| *count += usize::from(*label == 1.0));
    }
    let kept: Vec<usize> = match (0..HEADS.len()).filter(|head| positives[*head] >= HEAD_POSITIVES_MIN).collect() {
        // Little is better learned from than nothing.
        none if Vec::is_empty(&none) => (0..HEADS.len()).max_by_key(|head| positives[*head]).into_iter().collect(),
        some => some,
    };
    for list in &mut lists {
        let rows = list.labels.chunks_exact(HEADS.len());
        list.labels = rows.flat_map(|labels| kept.iter().map(|head| labels[*head])).collect();
    }
    Lists { lists, heads: kept.into_iter().map(|head| HEADS[head].to_owned()).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lodestone_core::ids::EventId;
    use lodestone_events::{Attribution, EventLine};

    fn event(kind: EventKind, item: &str, day: f64) -> Event {
        Event {
            id: EventId::parse("e").unwrap(),
            kind,
            user: UserId::signed_in("p").unwrap(),
            session: String::new(),
            at: UnixMillis((day * UnixMillis::DAY as f64) as i64),
            lines: vec![EventLine { item: ItemId::parse(item).unwrap(), quantity: 1, price: None, rank: 0 }],
            query: String::new(),
            order: String::new(),
            stars: 0,
            coupon: String::new(),
            categories: Vec::new(),
            currency: String::new(),
            attribution: Attribution::None,
        }
    }

    fn labels(events: &[Event], item: &str, day: f64, until: f64) -> Option<Labels> {
        let items: Vec<Item> = ["a", "b"].map(|id| Item::titled(ItemId::parse(id).unwrap(), id)).into();
        let time = |day: f64| UnixMillis((day * UnixMillis::DAY as f64) as i64);
        let outcomes = Outcomes::new(events, &items, time(until));
        let row = outcomes.row_of(&ItemId::parse(item).unwrap()).unwrap();
        outcomes.chosen(&UserId::signed_in("p").unwrap(), time(day)).get(&row).copied()
    }

    #[test]
    fn labels_say_what_came_within_their_times() {
        let events = [
            event(EventKind::View, "a", 1.0),
            event(EventKind::AddToCart, "a", 1.1),
            event(EventKind::Purchase, "a", 1.2),
            event(EventKind::View, "b", 3.5),
            event(EventKind::Refund, "a", 10.0),
        ];
        assert_eq!(labels(&events, "a", 1.0, 100.0), Some([1.0, 1.0, 1.0, 1.0, 1.0]));
        assert_eq!(labels(&events, "b", 1.0, 100.0), None, "three days later is not soon");
        assert_eq!(labels(&events, "b", 3.0, 100.0), Some([1.0, 0.0, 0.0, 1.0, 0.0]));
        assert_eq!(labels(&events, "b", 3.5, 3.4), None, "nothing from the end on is known");
    }

    #[test]
    fn where_what_came_is_not_known_the_others_zeros_are_not_counted() {
        let chosen =
            [(Row(3), [1.0, 0.0, 1.0, f32::NAN, 0.0]), (Row(5), [1.0, 0.0, 0.0, 0.0, 0.0])].into_iter().collect();
        let labels = Outcomes::labels(&chosen, [Row(1), Row(3), Row(5)].into_iter());
        assert!(labels.iter().all(|labels| labels[RETURN_VISIT].is_nan() && labels[REFUND] == 0.0));
        assert_eq!(labels.iter().map(|labels| labels[CLICK]).collect::<Vec<_>>(), [0.0, 1.0, 1.0]);
    }

    #[test]
    fn what_the_data_end_before_is_not_known() {
        let events = [event(EventKind::Purchase, "a", 1.0)];
        let [.., purchase, return_visit, refund] = labels(&events, "a", 1.0, 10.0).unwrap();
        assert!(purchase == 1.0 && return_visit.is_nan() && refund.is_nan());
        let [.., return_visit, refund] = labels(&events, "a", 1.0, 20.0).unwrap();
        assert!(return_visit == 0.0 && refund.is_nan());
    }
}
