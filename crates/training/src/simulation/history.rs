//! The actions of a visit, and the history before the first simulated day.
use super::{
    SimulationConfig,
    draws::{Draws, Purpose},
    shop::{CURRENCY, KINDS, STYLES, Shop, id_of},
    shopper::{Intent, Reaction, Shopper},
};
use lodestone_core::{
    ids::{ItemId, UserId},
    units::{Quantity, UnixMillis},
    viewer::ViewerContext,
};
use lodestone_dataset::DatasetEvent;
use lodestone_events::EventKind;

/// Seconds between two lists of a visit, and between two ranks of a list.
const LIST_S: usize = 300;
const RANK_S: usize = 10;
/// Share of a day in which visits start. The rest is for their end.
const OPEN_SHARE: f64 = 0.95;
/// Scale of the noise in the order by sales.
const SHELF_NOISE: f64 = 3.0;

/// A list that a shopper saw, with the reactions to it.
#[derive(Debug, Clone)]
pub struct DisplayedList {
    pub intent: Intent,
    pub products: Vec<usize>,
    pub reactions: Vec<Reaction>,
}

/// One shopper's visit on one day. Days before the first simulated one are negative.
#[derive(Debug, Clone)]
pub struct Visit {
    pub shopper: String,
    pub day: i64,
    pub hour: f64,
    pub lists: Vec<DisplayedList>,
}

/// An action of a shopper: an event without its user.
#[derive(Debug, Clone, PartialEq)]
pub struct UserAction {
    pub kind: EventKind,
    pub at: UnixMillis,
    /// Products with their ranks in the list, from 1.
    pub lines: Vec<(usize, usize)>,
    pub query: String,
}

impl DisplayedList {
    /// Returns the actions on this list, number `list` of a visit on `day` at `hour`. `start` is the start of day 0.
    pub fn actions(&self, list: usize, start: UnixMillis, day: i64, hour: f64) -> Vec<UserAction> {
        let begin = start.0 + day * UnixMillis::DAY + (hour * OPEN_SHARE * UnixMillis::DAY as f64) as i64;
        let action = |kind, rank: usize, lines: Vec<(usize, usize)>| UserAction {
            kind,
            at: UnixMillis(begin + (1000 * (list * LIST_S + rank * RANK_S)) as i64),
            lines,
            query: String::new(),
        };
        let mut actions = Vec::new();
        if let Intent::Search(query) = &self.intent {
            actions.push(UserAction { query: query.clone(), ..action(EventKind::Search, 0, Vec::new()) });
        }
        let shown = self.products.iter().enumerate().map(|(index, product)| (*product, index + 1));
        actions.push(action(EventKind::Impression, 0, shown.collect()));
        for reaction in &self.reactions {
            let line = vec![(reaction.product, reaction.rank)];
            actions.push(action(EventKind::Click, reaction.rank, line.clone()));
            if reaction.is_bought {
                actions.push(action(EventKind::AddToCart, reaction.rank, line));
            }
        }
        let bought: Vec<(usize, usize)> =
            self.reactions.iter().filter(|r| r.is_bought).map(|r| (r.product, r.rank)).collect();
        if !bought.is_empty() {
            actions.push(action(EventKind::Purchase, self.products.len() + 1, bought));
        }
        actions
    }
}

/// Simulates the days before the first simulated one without personalisation: a first page of best sellers and random
/// products, and kinds in the order of sales with some noise.
pub(super) fn first_history(
    shop: &Shop,
    shoppers: &mut [Shopper],
    config: &SimulationConfig,
    draws: Draws,
) -> Vec<Visit> {
    let offered: Vec<usize> = shop.launched(None).collect();
    let mut sold = vec![0usize; shop.products.len()];
    let mut visits = Vec::new();
    for day in -(config.history_days as i64)..0 {
        for shopper in shoppers.iter_mut() {
            shopper.start_day(day, draws);
            if !shopper.visits(day, draws) {
                continue;
            }
            let mut lists: Vec<DisplayedList> = Vec::new();
            while let Some(intent) = shopper.next_intent(lists.len(), day, draws) {
                let noise = |product: usize| {
                    let key = [shopper.number(), day as u64, lists.len() as u64, product as u64];
                    draws.uniform(Purpose::Shelf, &key)
                };
                let products = shelf(&offered, &intent, shop, &sold, config.page_size, noise);
                let reactions = shopper.react(&products, lists.len(), shop, day, draws);
                shopper.record_purchases(&reactions, shop, day);
                reactions.iter().filter(|reaction| reaction.is_bought).for_each(|reaction| sold[reaction.product] += 1);
                lists.push(DisplayedList { intent, products, reactions });
            }
            shopper.end_visit(&lists.iter().flat_map(|list| list.reactions.clone()).collect::<Vec<_>>());
            visits.push(Visit { shopper: shopper.id(), day, hour: shopper.hour(day, draws), lists });
        }
    }
    visits
}

/// Returns the first products of a list without personalisation. A query selects a kind and moves its style to the top.
fn shelf(
    offered: &[usize],
    intent: &Intent,
    shop: &Shop,
    sold: &[usize],
    size: usize,
    noise: impl Fn(usize) -> f64,
) -> Vec<usize> {
    let words: Vec<&str> = match intent {
        Intent::FirstPage => Vec::new(),
        Intent::Search(query) => query.split(' ').collect(),
    };
    let has = |word: &str| words.contains(&word);
    let matches = |product: &&usize| words.is_empty() || has(KINDS[shop.products[**product].kind]);
    let mut ordered: Vec<(f64, usize)> = offered
        .iter()
        .filter(matches)
        .map(|&product| {
            let sales = (sold[product] as f64).ln_1p();
            let style = if has(STYLES[shop.products[product].style]) { 10.0 } else { 0.0 };
            // On the first page, half of the products are ordered without their sales.
            let ignores_sales = words.is_empty() && noise(product) < 0.5;
            (style + SHELF_NOISE * noise(product) + if ignores_sales { 0.0 } else { sales }, product)
        })
        .collect();
    ordered.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    ordered.into_iter().take(size).map(|(_, product)| product).collect()
}

/// Returns the visits as a dataset. It has no impressions, because shops rarely keep them. `start` is the start of day
/// 0.
pub fn dataset_events(visits: &[Visit], shop: &Shop, start: UnixMillis) -> Vec<DatasetEvent> {
    let mut rows = Vec::new();
    for (visit_number, visit) in visits.iter().enumerate() {
        let actions = visit
            .lists
            .iter()
            .enumerate()
            .flat_map(|(number, list)| list.actions(number, start, visit.day, visit.hour));
        for (index, action) in actions.filter(|action| action.kind != EventKind::Impression).enumerate() {
            let products: Vec<Option<usize>> = match action.lines.is_empty() {
                true => vec![None],
                false => action.lines.iter().map(|line| Some(line.0)).collect(),
            };
            rows.extend(products.into_iter().map(|product| DatasetEvent {
                event_id: format!("h{visit_number}-{index}"),
                user: UserId::signed_in(&visit.shopper).ok(),
                session: format!("h{visit_number}"),
                context: ViewerContext::default(),
                kind: action.kind,
                at: action.at,
                item: product.and_then(|product| ItemId::parse(&id_of(product)).ok()),
                quantity: Some(Quantity::ONE),
                price: product.map(|product| shop.products[product].price),
                currency: CURRENCY.to_owned(),
                order: if action.kind == EventKind::Purchase {
                    format!("h{visit_number}-{index}")
                } else {
                    String::new()
                },
                query: action.query.clone(),
            }));
        }
    }
    rows.sort_by_key(|row| row.at);
    rows
}
