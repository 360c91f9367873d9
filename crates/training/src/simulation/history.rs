//! What happens in a visit, and the days before the shop had an engine.
use super::{
    SimulationConfig,
    draws::{Draws, Purpose},
    shop::{KINDS, STYLES, Shop, id_of},
    shopper::{Reaction, Shopper, Wish},
};
use lodestone_core::{
    ids::{ItemId, UserId},
    units::UnixMillis,
};
use lodestone_dataset::DatasetEvent;
use lodestone_events::EventKind;

/// Seconds between two lists of a visit, and between the places of a list.
const LIST_S: usize = 300;
const PLACE_S: usize = 10;
/// How much of a day visits may begin in; the rest is for their end.
const OPEN_SHARE: f64 = 0.95;
/// How strongly a shelf that is sorted by sales is disordered.
const SHELF_NOISE: f64 = 3.0;

/// A list that a shopper saw, and what they did with it.
#[derive(Debug, Clone)]
pub struct Seen {
    pub wish: Wish,
    pub products: Vec<usize>,
    pub reactions: Vec<Reaction>,
}

/// One shopper's visit on one day; days before the first watched one are below 0.
#[derive(Debug, Clone)]
pub struct Visit {
    pub shopper: String,
    pub day: i64,
    pub hour: f64,
    pub lists: Vec<Seen>,
}

/// Something that a shopper did: an event without its user.
#[derive(Debug, Clone, PartialEq)]
pub struct Deed {
    pub kind: EventKind,
    pub at: UnixMillis,
    /// Products with their places in the list, from 1.
    pub lines: Vec<(usize, usize)>,
    pub query: String,
}

impl Seen {
    /// The events of this list, the `list`th of a visit on `day` at `hour`. `start`: when day 0 began.
    pub fn deeds(&self, list: usize, start: UnixMillis, day: i64, hour: f64) -> Vec<Deed> {
        let begin = start.0 + day * UnixMillis::DAY + (hour * OPEN_SHARE * UnixMillis::DAY as f64) as i64;
        let deed = |kind, place: usize, lines: Vec<(usize, usize)>| Deed {
            kind,
            at: UnixMillis(begin + (1000 * (list * LIST_S + place * PLACE_S)) as i64),
            lines,
            query: String::new(),
        };
        let mut deeds = Vec::new();
        if let Wish::Search(query) = &self.wish {
            deeds.push(Deed { query: query.clone(), ..deed(EventKind::Search, 0, Vec::new()) });
        }
        let shown = self.products.iter().enumerate().map(|(place, product)| (*product, place + 1));
        deeds.push(deed(EventKind::Impression, 0, shown.collect()));
        for reaction in &self.reactions {
            let line = vec![(reaction.product, reaction.rank)];
            deeds.push(deed(EventKind::Click, reaction.rank, line.clone()));
            if reaction.is_bought {
                deeds.push(deed(EventKind::AddToCart, reaction.rank, line));
            }
        }
        let bought: Vec<(usize, usize)> =
            self.reactions.iter().filter(|r| r.is_bought).map(|r| (r.product, r.rank)).collect();
        if !bought.is_empty() {
            deeds.push(deed(EventKind::Purchase, self.products.len() + 1, bought));
        }
        deeds
    }
}

/// The days before the first watched one: a first page of what sells most, beside what is drawn by lot, and shelves that are sorted
/// by sales with some disorder. Nothing in them knows a user.
pub fn first_history(shop: &Shop, shoppers: &mut [Shopper], config: &SimulationConfig, draws: Draws) -> Vec<Visit> {
    let offered: Vec<usize> = shop.launched(None).collect();
    let mut sold = vec![0usize; shop.products.len()];
    let mut visits = Vec::new();
    for day in -(config.history_days as i64)..0 {
        for shopper in shoppers.iter_mut() {
            shopper.begin_day(day, draws);
            if !shopper.comes(day, draws) {
                continue;
            }
            let mut lists: Vec<Seen> = Vec::new();
            while let Some(wish) = shopper.asks(lists.len(), day, draws) {
                let luck = |product: usize| {
                    let name = [shopper.number(), day as u64, lists.len() as u64, product as u64];
                    draws.uniform(Purpose::Shelf, &name)
                };
                let products = shelf(&offered, &wish, shop, &sold, config.page_size, luck);
                let reactions = shopper.look(&products, lists.len(), shop, day, draws);
                shopper.take_home(&reactions, shop, day);
                reactions.iter().filter(|reaction| reaction.is_bought).for_each(|reaction| sold[reaction.product] += 1);
                lists.push(Seen { wish, products, reactions });
            }
            shopper.leave(&lists.iter().flat_map(|list| list.reactions.clone()).collect::<Vec<_>>());
            visits.push(Visit { shopper: shopper.id(), day, hour: shopper.hour(day, draws), lists });
        }
    }
    visits
}

/// The first places of a shelf. A query's words choose a kind, and put its style first.
fn shelf(
    offered: &[usize],
    wish: &Wish,
    shop: &Shop,
    sold: &[usize],
    size: usize,
    luck: impl Fn(usize) -> f64,
) -> Vec<usize> {
    let words: Vec<&str> = match wish {
        Wish::FirstPage => Vec::new(),
        Wish::Search(query) => query.split(' ').collect(),
    };
    let has = |word: &str| words.contains(&word);
    let fits = |product: &&usize| words.is_empty() || has(KINDS[shop.products[**product].kind]);
    let mut ordered: Vec<(f64, usize)> = offered
        .iter()
        .filter(fits)
        .map(|&product| {
            let sales = (sold[product] as f64).ln_1p();
            let style = if has(STYLES[shop.products[product].style]) { 10.0 } else { 0.0 };
            // On the first page every second place is drawn by lot.
            let by_lot = words.is_empty() && luck(product) < 0.5;
            (style + SHELF_NOISE * luck(product) + if by_lot { 0.0 } else { sales }, product)
        })
        .collect();
    ordered.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    ordered.into_iter().take(size).map(|(_, product)| product).collect()
}

/// The visits as a shop would have kept them: what was shown is not among it. `start`: when day 0 began.
pub fn dataset_events(visits: &[Visit], shop: &Shop, start: UnixMillis) -> Vec<DatasetEvent> {
    let mut rows = Vec::new();
    for (number, visit) in visits.iter().enumerate() {
        let deeds =
            visit.lists.iter().enumerate().flat_map(|(list, seen)| seen.deeds(list, start, visit.day, visit.hour));
        for (place, deed) in deeds.filter(|deed| deed.kind != EventKind::Impression).enumerate() {
            let products: Vec<Option<usize>> = match deed.lines.is_empty() {
                true => vec![None],
                false => deed.lines.iter().map(|line| Some(line.0)).collect(),
            };
            rows.extend(products.into_iter().map(|product| DatasetEvent {
                event_id: format!("h{number}-{place}"),
                user: UserId::signed_in(&visit.shopper).ok(),
                session: format!("h{number}"),
                kind: deed.kind,
                at: deed.at,
                item: product.and_then(|product| ItemId::parse(&id_of(product)).ok()),
                quantity: 1,
                price: product.map(|product| shop.products[product].price),
                currency: String::new(),
                order: if deed.kind == EventKind::Purchase { format!("h{number}-{place}") } else { String::new() },
                query: deed.query.clone(),
            }));
        }
    }
    rows.sort_by_key(|row| row.at);
    rows
}
