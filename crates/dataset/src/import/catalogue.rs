//! The items of an import: those of the file of items, and those that only events name, with their most frequent
//! title. Events also provide the median price of items that have no column of prices, and the first time of those
//! without one.
use super::text::visible_text;
use ahash::AHashMap;
use lodestone_catalog::{Item, ItemField, limits};
use lodestone_core::{
    ids::ItemId,
    units::{PriceMicros, UnixMillis},
};
use lodestone_events::EventKind;
use std::collections::BTreeMap;

#[derive(Default)]
pub(super) struct Catalogue {
    items: BTreeMap<ItemId, Occurrences>,
}

#[derive(Default)]
struct Occurrences {
    titles: AHashMap<String, u32>,
    /// By currency.
    prices: BTreeMap<String, Vec<i64>>,
    first: Option<UnixMillis>,
}

impl Catalogue {
    pub(super) fn add(
        &mut self,
        id: &ItemId,
        title: &str,
        price: Option<(PriceMicros, &str)>,
        at: UnixMillis,
        kind: EventKind,
    ) {
        let occurrences = self.items.entry(id.clone()).or_default();
        let title = visible_text(title).split_whitespace().collect::<Vec<_>>().join(" ");
        if !title.is_empty() {
            *occurrences.titles.entry(title).or_insert(0) += 1;
        }
        if let (Some((price, currency)), EventKind::Purchase) = (price, kind) {
            occurrences.prices.entry(currency.to_owned()).or_default().push(price.micros());
        }
        occurrences.first = Some(occurrences.first.map_or(at, |first| first.min(at)));
    }

    /// Returns the items of the file and those that only events name, in the order of their ids. An item without a
    /// title gets its id as the title.
    pub(super) fn items(self, feed: Vec<Item>, currency: &str) -> Vec<Item> {
        let mut items: BTreeMap<ItemId, Item> = feed.into_iter().map(|item| (item.id.clone(), item)).collect();
        for (id, occurrences) in self.items {
            let (is_of_file, first) = (items.contains_key(&id), occurrences.first);
            let item = items.entry(id).or_insert_with_key(|id| {
                let title = occurrences.title().unwrap_or_else(|| id.to_string());
                Item::titled(id.clone(), &title)
            });
            // A file with a column of prices has the price of each of its items, also that there is none.
            if !is_of_file || item.absent_fields.contains(&ItemField::Price) {
                occurrences.set_price(item);
            }
            if item.currency.is_empty() {
                currency.clone_into(&mut item.currency);
            }
            item.created_at = item.created_at.or(first);
        }
        items.into_values().collect()
    }
}

impl Occurrences {
    /// Returns the most frequent title.
    fn title(&self) -> Option<String> {
        let most_frequent = self.titles.iter().max_by(|a, b| a.1.cmp(b.1).then_with(|| b.0.cmp(a.0)));
        most_frequent.map(|(title, _)| title.chars().take(limits::TITLE_CHARS).collect())
    }

    /// Sets the median price of the most frequent currency, or of the one that the item's other prices have.
    fn set_price(mut self, item: &mut Item) {
        if !item.currency.is_empty() {
            self.prices.retain(|currency, _| *currency == item.currency);
        }
        // The first of equal ones.
        let most_frequent = self.prices.into_iter().rev().max_by_key(|(_, prices)| prices.len());
        let Some((currency, mut prices)) = most_frequent else { return };
        prices.sort_unstable();
        item.price = prices.get(prices.len() / 2).copied().and_then(PriceMicros::new);
        item.currency = currency;
    }
}
