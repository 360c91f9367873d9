//! Training lists of the ranking model: candidates that retrieval returns at moments of the history, with labels by
//! head.
use super::{
    Progress,
    answers::{LoggedAnswers, shown_list, with_mean_weight_one},
    error::TrainError,
    options::{Outcome, TrainOptions},
    query_side::query_from_title,
    ranker::RankingList,
    replay::{Session, is_one_visit, sampled},
    request_tasks::VIEW_PAIRS_MIN,
    retrieval::{ListRequest, retrieve_candidates},
};
use ahash::{AHashMap, AHashSet};
use lodestone_catalog::Item;
use lodestone_core::{
    ids::{ItemId, Row, UserId},
    units::UnixMillis,
};
use lodestone_events::{Event, EventKind, RefundLine, Refunds};
use lodestone_pipeline::{
    Candidate, Generation, Models, Options, RequestContext, Viewer,
    features::{AnchoredList, RecentItem},
    fusion::NOT_FOUND,
};
use rand::{Rng, rngs::StdRng, seq::IndexedRandom};
use std::ops::Range;

/// Heads of the ranking model. `click`, `cart` and `purchase`: the user views, adds to the cart or buys the item within
/// a day. `return_visit`: one of these, and the user visits the shop again 1 to 14 days later. `refund`: the user buys
/// the item and returns all of it within 30 days.
pub(crate) const HEADS: [&str; 5] = ["click", "cart", "purchase", "return_visit", "refund"];
pub(crate) const CLICK: usize = 0;
pub(crate) const CART: usize = 1;
pub(crate) const PURCHASE: usize = 2;
pub(crate) const RETURN_VISIT: usize = 3;
pub(crate) const REFUND: usize = 4;

/// Returns the default weight of a head's probability in the utility.
pub(crate) fn head_weight(head: &str) -> f32 {
    match head {
        "click" => 0.1,
        "cart" => 0.3,
        "return_visit" => 0.2,
        // A purchase that was refunded in full is worth nothing.
        "refund" => -1.0,
        _ => 1.0,
    }
}

/// By head: 1 or 0, or NaN if the data end before the outcome is known.
pub(crate) type Labels = [f32; HEADS.len()];

/// Horizons of the heads after a moment, in days.
const INTERACTION_DAYS: i64 = 1;
const RETURN_VISIT_DAYS: i64 = 14;
const REFUND_DAYS: i64 = 30;
/// Heads with fewer positive labels are not trained.
const HEAD_POSITIVES_MIN: usize = 50;

/// Events of all users by user, for the labels of a moment.
pub(crate) struct Outcomes<'a> {
    by_user: AHashMap<&'a UserId, Vec<&'a Event>>,
    row_of: AHashMap<ItemId, Row>,
    /// End of the data.
    until: UnixMillis,
    outcome: Outcome,
}

impl<'a> Outcomes<'a> {
    /// `events` are in time order. Those at or after `until` are ignored.
    pub(crate) fn new(events: &'a [Event], items: &[Item], until: UnixMillis, outcome: Outcome) -> Self {
        let mut by_user: AHashMap<&UserId, Vec<&Event>> = AHashMap::new();
        for event in events.iter().take_while(|event| event.at < until) {
            by_user.entry(&event.user).or_default().push(event);
        }
        let row_of = items.iter().enumerate().map(|(row, item)| (item.id.clone(), Row(row as u32))).collect();
        Self { by_user, row_of, until, outcome }
    }

    pub(crate) fn row_of(&self, item: &ItemId) -> Option<Row> {
        self.row_of.get(item).copied()
    }

    /// Returns the labels of the items with which a user interacts within a day from `at` or, with
    /// [`Outcome::NextEvent`], in the next interaction. The labels of all other items are 0.
    pub(crate) fn positives(&self, user: &UserId, at: UnixMillis) -> AHashMap<Row, Labels> {
        let mut positives: AHashMap<Row, Labels> = AHashMap::new();
        let days = |count: i64| UnixMillis(at.0.saturating_add(count * UnixMillis::DAY));
        for event in self.of(user, at..days(INTERACTION_DAYS)) {
            let head = match event.kind {
                EventKind::View | EventKind::Click | EventKind::Review => CLICK,
                EventKind::AddToCart | EventKind::Favorite => CART,
                EventKind::Purchase => PURCHASE,
                _ => continue,
            };
            for row in event.lines.iter().filter_map(|line| self.row_of(&line.item)) {
                positives.entry(row).or_default()[head] = 1.0;
            }
            if self.outcome == Outcome::NextEvent {
                break;
            }
        }
        if positives.is_empty() {
            return positives;
        }
        // A label is unknown until its horizon has passed, because early positives alone would bias it upwards.
        let known =
            |happened: bool, end: UnixMillis| if end <= self.until { f32::from(u8::from(happened)) } else { f32::NAN };
        let visited_again =
            self.of(user, days(INTERACTION_DAYS)..days(RETURN_VISIT_DAYS)).any(|event| event.kind.is_visit());
        for labels in positives.values_mut() {
            labels[RETURN_VISIT] = known(visited_again, days(RETURN_VISIT_DAYS));
            if labels[PURCHASE] == 1.0 {
                labels[REFUND] = known(false, days(REFUND_DAYS));
            }
        }
        for row in self.refunded(user, at..days(REFUND_DAYS), days(INTERACTION_DAYS)) {
            if let Some(labels) = positives.get_mut(&row).filter(|labels| labels[PURCHASE] == 1.0) {
                labels[REFUND] = known(true, days(REFUND_DAYS));
            }
        }
        positives
    }

    /// Returns the items of which a user returned within `times` everything that was bought before `bought_until`.
    fn refunded(&self, user: &UserId, times: Range<UnixMillis>, bought_until: UnixMillis) -> Vec<Row> {
        let events: Vec<&Event> = self.of(user, times).collect();
        let lines: Vec<(RefundLine<Row>, UnixMillis)> = (events.iter())
            .flat_map(|event| event.lines.iter().map(move |line| (event, line)))
            .filter_map(|(event, line)| {
                let item = self.row_of(&line.item)?;
                Some((RefundLine { item, kind: event.kind, thousandths: line.quantity.thousandths().into() }, event.at))
            })
            .collect();
        let refunds = Refunds::of(&lines.iter().map(|(line, _)| *line).collect::<Vec<_>>());
        let is_bought =
            |(line, at): &(RefundLine<Row>, UnixMillis)| line.kind == EventKind::Purchase && *at < bought_until;
        let bought = || lines.iter().enumerate().filter(|(_, line)| is_bought(line));
        let kept: AHashSet<Row> =
            bought().filter(|(index, _)| !refunds.is_refunded(*index)).map(|(_, (line, _))| line.item).collect();
        bought().map(|(_, (line, _))| line.item).filter(|row| !kept.contains(row)).collect()
    }

    /// Returns the labels of `rows`, given those of the items with interactions. If a head is unknown for one of these,
    /// it is unknown for all rows, because the zeros of the others alone would bias it downwards.
    pub(crate) fn labels(positives: &AHashMap<Row, Labels>, rows: impl Iterator<Item = Row>) -> Vec<Labels> {
        let mut negative = Labels::default();
        for (head, label) in negative.iter_mut().enumerate() {
            if positives.values().any(|labels| labels[head].is_nan()) {
                *label = f32::NAN;
            }
        }
        let of =
            |labels: &Labels| std::array::from_fn(|head| if negative[head].is_nan() { f32::NAN } else { labels[head] });
        rows.map(|row| positives.get(&row).map_or(negative, of)).collect()
    }

    /// Returns the first purchase of each user within `times`, with the labels of the basket, in the order of the users'
    /// ids. Heads other than the purchase are unknown.
    pub(crate) fn next_baskets(&self, times: &Range<UnixMillis>) -> Vec<(&'a Event, AHashMap<Row, Labels>)> {
        let mut baskets: Vec<(&Event, AHashMap<Row, Labels>)> = Vec::new();
        for user in self.by_user.keys().filter(|user| !user.is_anonymous()) {
            baskets.extend(self.next_basket(user, times.clone()));
        }
        baskets.sort_unstable_by(|(a, _), (b, _)| a.user.cmp(&b.user));
        baskets
    }

    /// Returns the first purchase of a user within `times` and the labels of the basket. None if there is none, or if it
    /// has no item of the table.
    fn next_basket(&self, user: &UserId, times: Range<UnixMillis>) -> Option<(&'a Event, AHashMap<Row, Labels>)> {
        let purchase = self.of(user, times).find(|event| event.kind == EventKind::Purchase)?;
        Some((purchase, self.basket(purchase))).filter(|(_, basket)| !basket.is_empty())
    }

    /// Returns the labels of a basket. Heads other than the purchase are unknown.
    fn basket(&self, purchase: &Event) -> AHashMap<Row, Labels> {
        let mut labels = [f32::NAN; HEADS.len()];
        labels[PURCHASE] = 1.0;
        self.rows(purchase).into_iter().map(|row| (row, labels)).collect()
    }

    /// Returns the rows of an event's items that the table contains, each once.
    fn rows(&self, event: &Event) -> Vec<Row> {
        let mut rows: Vec<Row> = event.lines.iter().filter_map(|line| self.row_of(&line.item)).collect();
        rows.sort_unstable();
        rows.dedup();
        rows
    }

    fn of(&self, user: &UserId, times: Range<UnixMillis>) -> impl Iterator<Item = &'a Event> {
        let events = self.by_user.get(user).map_or(&[][..], Vec::as_slice);
        let begin = events.partition_point(|event| event.at < times.start);
        events[begin..].iter().copied().take_while(move |event| event.at < times.end)
    }
}

/// Training lists, and the names of the heads with enough positive labels.
pub(crate) struct Lists {
    pub lists: Vec<RankingList>,
    /// Lists of logged answers.
    pub shown: Vec<RankingList>,
    pub heads: Vec<String>,
    /// For each chosen item among the candidates of recommendations: bit s is set if source s found it.
    pub found: Vec<u16>,
}

/// Sampled share of the moments with a purchase and of the others.
struct Shares {
    purchase: f64,
    other: f64,
}

impl Shares {
    /// Purchases are rarer than other moments, so they get at least half of them.
    fn new<'a>(moments: impl Iterator<Item = &'a Event>, moments_max: usize) -> Self {
        let (mut purchases, mut others) = (0usize, 0usize);
        for event in moments {
            *(if event.kind == EventKind::Purchase { &mut purchases } else { &mut others }) += 1;
        }
        let moments_max = moments_max as f64;
        let of_purchases = if others == 0 { moments_max } else { moments_max / 2.0 };
        let purchase = (of_purchases / purchases.max(1) as f64).min(1.0);
        let rest = moments_max - purchase * purchases as f64;
        Self { purchase, other: (rest / others.max(1) as f64).clamp(0.0, 1.0) }
    }
}

/// Moments at which all users with a purchase soon are ranked.
const SNAPSHOTS: usize = 8;
/// Most lists of all snapshots, as a multiple of the most lists before interactions.
const SNAPSHOT_LISTS: usize = 3;
/// A purchase this many days after a snapshot is its outcome.
const SNAPSHOT_DAYS: i64 = 30;
/// There is one list of similar items, and one of items bought together, for this many lists before interactions.
const ANCHORED_SHARE: usize = 2;

/// Returns moments at equal intervals from the start of `times`.
fn snapshots(times: &Range<UnixMillis>) -> Vec<UnixMillis> {
    let step = ((times.end.0 - times.start.0) / (SNAPSHOTS as i64 + 1)).max(1);
    (0..SNAPSHOTS as i64).map(|index| UnixMillis(times.start.0 + index * step)).collect()
}

/// A moment at which a list starts from an item.
struct AnchoredMoment {
    /// Index of the event. The list is computed before it.
    event: usize,
    list: AnchoredList,
    anchor: Row,
}

impl AnchoredMoment {
    /// Returns the labels of the items other than the anchor. Bought together: those of the event's user on that day.
    /// Similar: the same from a view, otherwise the user's next basket.
    fn positives(&self, event: &Event, outcomes: &Outcomes) -> AHashMap<Row, Labels> {
        let mut positives = match self.list {
            AnchoredList::BoughtTogether if event.user.is_anonymous() => outcomes.basket(event),
            AnchoredList::Similar if event.kind == EventKind::Purchase => {
                let times = UnixMillis(event.at.0.saturating_add(1))..outcomes.until;
                outcomes.next_basket(&event.user, times).map(|(_, basket)| basket).unwrap_or_default()
            }
            AnchoredList::BoughtTogether | AnchoredList::Similar => outcomes.positives(&event.user, event.at),
        };
        positives.remove(&self.anchor);
        positives
    }
}

/// Returns the moments of anchored lists in time order: of items bought together, baskets of several items; of similar
/// items, views that another view follows in the same visit or, in a shop without views, the baskets of known users.
/// There are at most `lists_max` of each kind.
fn anchored_moments(
    events: &[Event],
    times: &Range<UnixMillis>,
    outcomes: &Outcomes,
    lists_max: usize,
    rng: &mut StdRng,
) -> Vec<AnchoredMoment> {
    let within = || events.iter().enumerate().filter(|(_, event)| times.contains(&event.at));
    let mut together = Vec::new();
    let mut baskets = Vec::new();
    for (event, purchase) in within().filter(|(_, event)| event.kind == EventKind::Purchase) {
        let rows = outcomes.rows(purchase);
        let Some(anchor) = rows.choose(rng).copied() else { continue };
        if rows.len() > 1 {
            together.push(AnchoredMoment { event, list: AnchoredList::BoughtTogether, anchor });
        }
        if !purchase.user.is_anonymous() {
            baskets.push(AnchoredMoment { event, list: AnchoredList::Similar, anchor });
        }
    }
    let mut views = Vec::new();
    let mut last: AHashMap<&UserId, (usize, (Session, UnixMillis), Row)> = AHashMap::new();
    for (event, view) in within().filter(|(_, event)| event.kind == EventKind::View && !event.user.is_anonymous()) {
        let Some(row) = outcomes.rows(view).first().copied() else { continue };
        let here = (Session::of(&view.session), view.at);
        let before = last.insert(&view.user, (event, here, row));
        if let Some((event, last, anchor)) = before
            && anchor != row
            && is_one_visit(last, here)
        {
            views.push(AnchoredMoment { event, list: AnchoredList::Similar, anchor });
        }
    }
    let similar = if views.len() >= VIEW_PAIRS_MIN { views } else { baskets };
    let mut moments = sampled(together, lists_max);
    moments.extend(sampled(similar, lists_max));
    moments.sort_by_key(|moment| moment.event);
    moments
}

/// The history that [`ranking_lists`] replays.
pub(crate) struct ListInput<'a> {
    pub generation: &'a Generation,
    pub items: &'a [Item],
    /// In time order.
    pub events: &'a [Event],
    /// Times of the moments. Features and labels use no event at or after the end.
    pub times: Range<UnixMillis>,
    pub answers: Option<&'a LoggedAnswers>,
    pub options: &'a TrainOptions,
}

/// Replays the events through the serving code and keeps the candidates of retrieval before positive interactions. May
/// return few lists, or none.
pub(crate) fn ranking_lists(
    input: &ListInput,
    models: &mut Models,
    rng: &mut StdRng,
    progress: &mut dyn FnMut(Progress),
) -> Result<Lists, TrainError> {
    let ListInput { generation, items, events, times, answers, options } = input;
    let outcomes = Outcomes::new(events, items, times.end, options.outcome);
    // Anonymous events say nothing about users with a history, so they are moments only in a shop of guests.
    let has_users = events.iter().any(|event| !event.user.is_anonymous());
    let is_moment = |event: &Event| {
        event.kind.is_positive() && times.contains(&event.at) && !(has_users && event.user.is_anonymous())
    };
    // Each moment yields a list without a query and, with queries, a second one.
    let moments_max = options.lists_max / if options.with_queries { 2 } else { 1 };
    let shares = Shares::new(events.iter().filter(|event| is_moment(event)), moments_max);
    let mut lists = ReplayedLists::default();
    let lists_per_snapshot = (SNAPSHOT_LISTS * options.lists_max / SNAPSHOTS).max(1);
    let mut snapshots = snapshots(times).into_iter().peekable();
    let anchored_max = options.lists_max / ANCHORED_SHARE;
    let mut anchored = anchored_moments(events, times, &outcomes, anchored_max, rng).into_iter().peekable();
    let (bias, answers) = match answers {
        Some(logged) => (logged.report.position_bias.as_ref(), &logged.answers[..]),
        None => (None, &[][..]),
    };
    let mut answers = answers.iter().filter(|answer| times.contains(&answer.at)).peekable();
    let mut shown = Vec::new();
    let known = &events[..events.partition_point(|event| event.at < times.end)];
    let mut done = 0;
    // Events at one time have no order, so that none of them is known before another one.
    for at_once in known.chunk_by(|one, next| one.at == next.at) {
        let now = at_once[0].at;
        while let Some(at) = snapshots.next_if(|at| *at <= now) {
            generation.state.publish_popularity(at);
            let end = UnixMillis((at.0 + SNAPSHOT_DAYS * UnixMillis::DAY).min(times.end.0));
            for (basket, positives) in sampled(outcomes.next_baskets(&(at..end)), lists_per_snapshot) {
                if options.is_stopped() {
                    return Err(TrainError::Stopped);
                }
                if generation.state.users.history(&basket.user).is_some() {
                    lists.extend(list_for(
                        generation,
                        models,
                        &viewer_of(basket),
                        at,
                        &ListRequest::ForYou,
                        &positives,
                    ));
                }
            }
        }
        while let Some(answer) = answers.next_if(|answer| answer.at <= now) {
            if options.is_stopped() {
                return Err(TrainError::Stopped);
            }
            if answer.has_interaction() {
                generation.state.publish_popularity(answer.at);
            }
            shown.extend(bias.and_then(|bias| shown_list(generation, models, answer, &outcomes, bias)));
        }
        let mut is_published = false;
        let mut publish = || {
            if !std::mem::replace(&mut is_published, true) {
                generation.state.publish_popularity(now);
            }
        };
        for event in at_once {
            while let Some(moment) = anchored.next_if(|moment| moment.event == done) {
                publish();
                let positives = moment.positives(event, &outcomes);
                let key = generation.catalog.load().get(moment.anchor).key;
                let at_s = now.seconds_u32();
                let anchor = RecentItem { row: moment.anchor, key, weight: 1.0, kind: EventKind::View, at_s };
                let request = ListRequest::Anchored(moment.list, anchor);
                lists.extend(list_for(generation, models, &viewer_of(event), now, &request, &positives));
            }
            let share = if event.kind == EventKind::Purchase { shares.purchase } else { shares.other };
            if is_moment(event) && rng.random_bool(share) {
                publish();
                let positives = outcomes.positives(&event.user, now);
                let item = event.lines.first().filter(|_| options.with_queries);
                let item = item.and_then(|line| outcomes.row_of(&line.item));
                let query = item.map(|row| query_from_title(&items[row.index()].title, rng));
                for request in std::iter::once(ListRequest::ForYou).chain(query.as_deref().map(ListRequest::Search)) {
                    lists.extend(list_for(generation, models, &viewer_of(event), now, &request, &positives));
                }
            }
            done += 1;
            if done % 256 == 0 {
                if options.is_stopped() {
                    return Err(TrainError::Stopped);
                }
                progress(Progress { stage: "replay", done, total: events.len(), loss: f32::NAN });
            }
        }
        at_once.iter().for_each(|event| generation.state.apply_event(0, event));
    }
    with_mean_weight_one(&mut shown);
    let ReplayedLists { lists, found } = lists;
    Ok(with_frequent_heads(lists, shown, found))
}

/// Lists, and which sources found their chosen items.
#[derive(Default)]
struct ReplayedLists {
    lists: Vec<RankingList>,
    found: Vec<u16>,
}

impl Extend<(RankingList, Vec<u16>)> for ReplayedLists {
    fn extend<T: IntoIterator<Item = (RankingList, Vec<u16>)>>(&mut self, lists: T) {
        for (list, found) in lists {
            self.lists.push(list);
            self.found.extend(found);
        }
    }
}

/// Returns the viewer of a list that an event follows.
fn viewer_of(event: &Event) -> Viewer {
    Viewer { context: event.context.clone(), ..Viewer::of_user(event.user.clone()) }
}

/// Returns candidates and features as in serving, with labels by head, and of a recommendation the sources that found
/// the chosen items; none if no candidate has an interaction.
fn list_for(
    generation: &Generation,
    models: &mut Models,
    viewer: &Viewer,
    at: UnixMillis,
    request: &ListRequest,
    positives: &AHashMap<Row, Labels>,
) -> Option<(RankingList, Vec<u16>)> {
    let (catalog, options) = (generation.catalog.load_full(), Options::default());
    let mut context = RequestContext::new(generation, &catalog, viewer, &options, at);
    retrieve_candidates(&mut context, models, request);
    if !context.candidates.list.iter().any(|candidate| positives.contains_key(&candidate.row)) {
        return None;
    }
    let features = context.features();
    let labels = Outcomes::labels(positives, context.candidates.list.iter().map(|candidate| candidate.row));
    let mut found = Vec::<u16>::new();
    if matches!(request, ListRequest::ForYou) {
        let chosen = context.candidates.list.iter().filter(|candidate| positives.contains_key(&candidate.row));
        let sources = |candidate: &Candidate| {
            let ranks = candidate.ranks.iter().enumerate().filter(|(_, rank)| **rank != NOT_FOUND);
            ranks.fold(0, |sources, (source, _)| sources | 1 << source)
        };
        found = chosen.map(sources).collect();
    }
    Some((RankingList { features, labels: labels.concat(), is_weighted: false }, found))
}

/// Removes the heads with fewer than [`HEAD_POSITIVES_MIN`] positive labels.
fn with_frequent_heads(mut lists: Vec<RankingList>, mut shown: Vec<RankingList>, found: Vec<u16>) -> Lists {
    let mut positives = [0usize; HEADS.len()];
    for labels in lists.iter().flat_map(|list| list.labels.chunks_exact(HEADS.len())) {
        positives.iter_mut().zip(labels).for_each(|(count, label)| *count += usize::from(*label == 1.0));
    }
    let kept: Vec<usize> = match (0..HEADS.len()).filter(|head| positives[*head] >= HEAD_POSITIVES_MIN).collect() {
        // Without any, the most frequent head is kept.
        none if Vec::is_empty(&none) => (0..HEADS.len()).max_by_key(|head| positives[*head]).into_iter().collect(),
        some => some,
    };
    for list in lists.iter_mut().chain(&mut shown) {
        let rows = list.labels.chunks_exact(HEADS.len());
        list.labels = rows.flat_map(|labels| kept.iter().map(|head| labels[*head])).collect();
    }
    Lists { lists, shown, found, heads: kept.into_iter().map(|head| HEADS[head].to_owned()).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lodestone_core::{
        ids::EventId,
        units::{PriceMicros, Quantity},
        viewer::{Locale, Platform, Region, ViewerContext},
    };
    use lodestone_dataset::{DatasetEvent, write_events, write_items};
    use lodestone_events::EventLine;
    use lodestone_pipeline::{
        Page, RecommendKind, RecommendRequest, answers,
        bundle::Bundle,
        features::FEATURES,
        ranking::{Device, Runtime},
        run::{self, AnswerLogging, PlannedRequest, RankingRequest},
        serving::{Plan, ServingConfig},
    };
    use rand::SeedableRng;
    use std::sync::Arc;

    fn event(kind: EventKind, item: &str, day: f64) -> Event {
        let at = UnixMillis((day * UnixMillis::DAY as f64) as i64);
        let line = EventLine { item: ItemId::parse(item).unwrap(), quantity: Quantity::ONE, price: None, rank: 0 };
        let user = UserId::signed_in("p").unwrap();
        Event { lines: vec![line], ..Event::new(EventId::parse("e").unwrap(), kind, user, at) }
    }

    fn labels(events: &[Event], item: &str, day: f64, until: f64) -> Option<Labels> {
        let items: Vec<Item> = ["a", "b"].map(|id| Item::titled(ItemId::parse(id).unwrap(), id)).into();
        let time = |day: f64| UnixMillis((day * UnixMillis::DAY as f64) as i64);
        let outcomes = Outcomes::new(events, &items, time(until), Outcome::Day);
        let row = outcomes.row_of(&ItemId::parse(item).unwrap()).unwrap();
        outcomes.positives(&UserId::signed_in("p").unwrap(), time(day)).get(&row).copied()
    }

    fn sorted(mut events: Vec<Event>) -> Vec<Event> {
        events.sort_by_key(|event| event.at);
        events
    }

    /// Desktop in Britain, a phone in Germany, an app in France, and a viewer of whom nothing is known.
    fn context_of(number: usize) -> ViewerContext {
        let (platform, region, locale) =
            [("web", "GB", "en-GB"), ("mobile_web", "DE", "de"), ("ios", "FR", "fr-FR"), ("", "", "")][number % 4];
        ViewerContext {
            platform: Platform::from_name(platform),
            region: Region::parse(region),
            locale: Locale::parse(locale),
        }
    }

    /// A shop of three brands whose users buy one item a week.
    fn branded_shop() -> (Vec<Item>, Vec<Event>) {
        let id = |item: usize| ItemId::parse(&format!("i{item}")).unwrap();
        let item = |index: usize| {
            let mut item = Item::titled(id(index), &format!("mug number {index}"));
            item.brand = format!("Brand {}", index % 3);
            item.categories = vec![format!("Kitchen > Mugs {}", index % 2)];
            item.price = PriceMicros::new(1_000_000 * index as i64);
            item
        };
        let purchase = |number: usize| {
            let user = UserId::signed_in(&format!("p{}", number % 20)).unwrap();
            let event_id = EventId::parse(&format!("e{number}")).unwrap();
            let at = UnixMillis(1_700_000_000_000 + number as i64 * UnixMillis::DAY / 3);
            let line = EventLine { item: id(number * 7 % 30), quantity: Quantity::ONE, price: None, rank: 0 };
            let context = context_of(number % 3 + number % 2);
            Event { context, lines: vec![line], ..Event::new(event_id, EventKind::Purchase, user, at) }
        };
        ((0..30).map(item).collect(), (0..400).map(purchase).collect())
    }

    /// Trains a bundle of the shop with features of all kinds and opens it.
    fn branded_bundle(items: &[Item], events: &[Event]) -> (Generation, Models) {
        let directory = tempfile::tempdir().unwrap();
        write_items(&directory.path().join("items.parquet"), items).unwrap();
        let row = |event: &Event| {
            let item = event.lines[0].item.clone();
            let (id, user, context) = (event.id.to_string(), Some(event.user.clone()), event.context.clone());
            DatasetEvent { context, ..DatasetEvent::of_item(id, event.kind, user, event.at, item) }
        };
        write_events(&directory.path().join("events.parquet"), &events.iter().map(row).collect::<Vec<_>>()).unwrap();
        let features = serde_json::from_str(
            r#"[{"kind": "affinity", "name": "brand_affinity", "field": "brand"},
                {"kind": "number", "name": "cost", "field": "price", "log": true},
                {"kind": "context", "name": "hour", "field": "hour"},
                {"kind": "affinity", "name": "category_affinity", "field": "category", "half_life_days": 20.0},
                {"kind": "match", "name": "is_dear", "filter": "price > 12"},
                {"kind": "context", "name": "in_app", "field": "platform", "values": ["ios", "android"]},
                {"kind": "context", "name": "is_german", "field": "language", "values": ["de"]},
                {"kind": "context_affinity", "name": "platform_affinity", "field": "platform"},
                {"kind": "context_affinity", "name": "region_affinity", "field": "region"}]"#,
        );
        let options = TrainOptions { features: features.unwrap(), ..TrainOptions::default() };
        let out = directory.path().join("bundle");
        let runtime = test_runtime();
        crate::train(directory.path(), &out, &runtime, &options, &mut |_| {}).unwrap();
        let bundle = Bundle::open(&out).unwrap();
        let models = Models::open(&runtime, &bundle, Device::Cpu).unwrap();
        (Generation::standalone(bundle, 16).unwrap(), models)
    }

    #[expect(clippy::disallowed_methods, reason = "`make test` passes the library through the environment")]
    fn test_runtime() -> Runtime {
        let library = std::env::var_os("ORT_DYLIB_PATH").map(std::path::PathBuf::from);
        Runtime::load(library.as_deref()).expect("ORT_DYLIB_PATH must name the library; `make test` sets it")
    }

    /// The features that the log of answers keeps are those of a training list at the same moment, bit for bit.
    #[test]
    fn logged_features_are_those_of_training() {
        let (items, events) = branded_shop();
        let (generation, mut models) = branded_bundle(&items, &events);
        events.iter().for_each(|event| generation.state.apply_event(0, event));
        let at = UnixMillis(events.last().unwrap().at.0 + 5 * UnixMillis::DAY / 24);
        generation.state.publish_popularity(at);
        let columns = generation.schema().column_count();
        let positives: AHashMap<Row, Labels> = (0..30).map(|row| (Row(row), Labels::default())).collect();
        let mut varied = vec![false; columns];
        let mut values: Vec<AHashSet<u32>> = vec![AHashSet::new(); columns];
        for number in 0..20 {
            let user = UserId::signed_in(&format!("p{number}")).unwrap();
            // As training has it, from the event before which it computes the list.
            let event = Event {
                context: context_of(number),
                ..Event::new(EventId::parse("next").unwrap(), EventKind::Purchase, user, at)
            };
            let (viewer, request) = (viewer_of(&event), ListRequest::ForYou);
            let trained = list_for(&generation, &mut models, &viewer, at, &request, &positives).unwrap();
            let served = served_features(&generation, &mut models, viewer, at);
            assert_eq!(trained.0.features.len(), served.len());
            for (index, (trained, served)) in trained.0.features.iter().zip(&served).enumerate() {
                let name = &generation.schema().names()[index % columns];
                assert_eq!(trained.to_bits(), served.to_bits(), "{name} of candidate {}", index / columns);
                varied[index % columns] |= *trained != 0.0 && *trained != 1.0;
                values[index % columns].insert(trained.to_bits());
            }
        }
        let [affinity, cost, hour, category, _, in_app, is_german, platform, region] = &varied[FEATURES.len()..] else {
            panic!("nine are declared")
        };
        assert!(*affinity && *cost && *hour && *category && *platform && *region, "{varied:?}");
        assert!(!in_app && !is_german, "flags");
        let counts = values[FEATURES.len() + 5..].iter().map(|values| values.len()).collect::<Vec<_>>();
        assert!(counts[..2] == [2, 2] && counts[2] > 2 && counts[3] > 2, "{counts:?}");
    }

    /// Recommends as a server does, and returns the features of the answer's record.
    fn served_features(generation: &Generation, models: &mut Models, viewer: Viewer, at: UnixMillis) -> Vec<f32> {
        let request = RecommendRequest {
            viewer,
            kind: RecommendKind::ForYou,
            page: Page { size: 10, token: String::new(), number: 1, fingerprint: 0 },
            filter: None,
            anchors: Vec::new(),
            facets: Vec::new(),
            options: Options::default(),
            message: Vec::new(),
        };
        let planned = PlannedRequest {
            request: RankingRequest::Recommend(request),
            answer_id: [7; 16],
            plan: Plan { configs: vec![Arc::new(ServingConfig::default())], arm: None },
            logging: AnswerLogging::Recorded,
        };
        let answer = run::run(generation, models, &[planned], at).remove(0);
        let record = answer.trace.unwrap().record(&generation.manifest, Vec::new());
        let columns = record.feature_count as usize;
        answers::decode_columns(&record.features, record.candidate_count as usize, columns).unwrap()
    }

    #[test]
    fn labels_follow_the_horizons_of_their_heads() {
        let events = [
            event(EventKind::View, "a", 1.0),
            event(EventKind::AddToCart, "a", 1.1),
            event(EventKind::Purchase, "a", 1.2),
            event(EventKind::View, "b", 3.5),
            event(EventKind::Refund, "a", 10.0),
        ];
        assert_eq!(labels(&events, "a", 1.0, 100.0), Some([1.0, 1.0, 1.0, 1.0, 1.0]));
        let again = [&events[..], &[event(EventKind::Purchase, "a", 1.3)]].concat();
        let again = sorted(again);
        assert_eq!(labels(&again, "a", 1.0, 100.0), Some([1.0, 1.0, 1.0, 1.0, 0.0]), "one of two came back");
        assert_eq!(labels(&events, "b", 1.0, 100.0), None, "2.5 days are more than one");
        assert_eq!(labels(&events, "b", 3.0, 100.0), Some([1.0, 0.0, 0.0, 0.0, 0.0]), "a refund is no visit");
        assert_eq!(labels(&events, "b", 3.5, 3.4), None, "events at or after the end are ignored");
    }

    #[test]
    fn the_outcome_of_a_snapshot_is_the_first_basket_after_it() {
        let events = [
            event(EventKind::Purchase, "b", 1.0),
            event(EventKind::View, "b", 4.0),
            event(EventKind::Purchase, "a", 5.0),
            event(EventKind::Purchase, "b", 6.0),
        ];
        let items: Vec<Item> = ["a", "b"].map(|id| Item::titled(ItemId::parse(id).unwrap(), id)).into();
        let time = |day: f64| UnixMillis((day * UnixMillis::DAY as f64) as i64);
        let outcomes = Outcomes::new(&events, &items, time(9.0), Outcome::Day);
        let rows = |from: f64, until: f64| -> Vec<Row> {
            let baskets = outcomes.next_baskets(&(time(from)..time(until)));
            baskets.iter().flat_map(|(_, positives)| positives.keys().copied()).collect()
        };
        assert_eq!(rows(2.0, 9.0), [Row(0)]);
        assert_eq!(rows(5.5, 9.0), [Row(1)]);
        assert!(rows(2.0, 5.0).is_empty(), "a view is no purchase");
        let (_, positives) = &outcomes.next_baskets(&(time(2.0)..time(9.0)))[0];
        let labels = positives[&Row(0)];
        assert!(labels[PURCHASE] == 1.0 && labels[CLICK].is_nan() && labels[RETURN_VISIT].is_nan());
    }

    #[test]
    fn an_anchored_list_has_the_rest_of_the_basket_or_the_next_one_as_outcome() {
        let mut basket = event(EventKind::Purchase, "a", 1.0);
        basket.lines.extend(event(EventKind::Purchase, "b", 1.0).lines);
        let guest = Event { user: UserId::anonymous(&basket.id), ..basket.clone() };
        let events = [basket, guest, event(EventKind::Purchase, "c", 5.0)];
        let items: Vec<Item> = ["a", "b", "c"].map(|id| Item::titled(ItemId::parse(id).unwrap(), id)).into();
        let times = UnixMillis(0)..UnixMillis(9 * UnixMillis::DAY);
        let outcomes = Outcomes::new(&events, &items, times.end, Outcome::Day);
        let moments = anchored_moments(&events, &times, &outcomes, 10, &mut StdRng::seed_from_u64(1));
        let of = |list: AnchoredList| -> Vec<(usize, Row, Vec<Row>)> {
            let of_list = moments.iter().filter(|moment| moment.list == list);
            let positives = |moment: &AnchoredMoment| {
                moment.positives(&events[moment.event], &outcomes).into_keys().collect::<Vec<Row>>()
            };
            of_list.map(|moment| (moment.event, moment.anchor, positives(moment))).collect()
        };
        let together = of(AnchoredList::BoughtTogether);
        assert_eq!(together.iter().map(|(event, ..)| *event).collect::<Vec<_>>(), [0, 1]);
        assert!(together.iter().all(|(_, anchor, rest)| *rest == [Row(1 - anchor.0)]), "{together:?}");
        let similar = of(AnchoredList::Similar);
        assert_eq!(similar.iter().map(|(event, ..)| *event).collect::<Vec<_>>(), [0, 2], "a guest has no next basket");
        assert_eq!((&similar[0].2[..], &similar[1].2[..]), (&[Row(2)][..], &[][..]));
    }

    #[test]
    fn similar_items_start_from_a_view_that_another_one_follows() {
        let view = |item: &str, minute: f64| event(EventKind::View, item, minute / 1440.0);
        let events: Vec<Event> = (0..VIEW_PAIRS_MIN + 1)
            .map(|index| view(if index % 2 == 0 { "a" } else { "b" }, index as f64))
            .chain([view("a", 500.0)])
            .collect();
        let items: Vec<Item> = ["a", "b"].map(|id| Item::titled(ItemId::parse(id).unwrap(), id)).into();
        let times = UnixMillis(0)..UnixMillis(UnixMillis::DAY);
        let outcomes = Outcomes::new(&events, &items, times.end, Outcome::Day);
        let moments = anchored_moments(&events, &times, &outcomes, 1000, &mut StdRng::seed_from_u64(1));
        assert_eq!(moments.len(), VIEW_PAIRS_MIN, "the last view is of another visit");
        assert!(moments.iter().enumerate().all(|(index, moment)| moment.anchor == Row(index as u32 % 2)));
        let positives = moments[0].positives(&events[0], &outcomes);
        assert!(positives.contains_key(&Row(1)) && !positives.contains_key(&Row(0)), "{positives:?}");
    }

    #[test]
    fn a_head_that_is_unknown_for_one_item_is_unknown_for_the_list() {
        let positives =
            [(Row(3), [1.0, 0.0, 1.0, f32::NAN, 0.0]), (Row(5), [1.0, 0.0, 0.0, 0.0, 0.0])].into_iter().collect();
        let labels = Outcomes::labels(&positives, [Row(1), Row(3), Row(5)].into_iter());
        assert!(labels.iter().all(|labels| labels[RETURN_VISIT].is_nan() && labels[REFUND] == 0.0));
        assert_eq!(labels.iter().map(|labels| labels[CLICK]).collect::<Vec<_>>(), [0.0, 1.0, 1.0]);
    }

    #[test]
    fn a_label_is_unknown_if_the_data_end_before_its_horizon() {
        let events = [event(EventKind::Purchase, "a", 1.0)];
        let [.., purchase, return_visit, refund] = labels(&events, "a", 1.0, 10.0).unwrap();
        assert!(purchase == 1.0 && return_visit.is_nan() && refund.is_nan());
        let [.., return_visit, refund] = labels(&events, "a", 1.0, 20.0).unwrap();
        assert!(return_visit == 0.0 && refund.is_nan());
    }
}
