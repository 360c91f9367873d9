//! The items of an import: those of the file of items, and those that only events name, with their most frequent
//! title. Events also provide the median price and the first time of an item without them.
use super::text::visible_text;
use ahash::AHashMap;
use lodestone_catalog::{Item, limits};
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
    prices: Vec<i64>,
    /// Of the last price.
    currency: String,
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
        let title = title.split_whitespace().collect::<Vec<_>>().join(" ");
        if !title.is_empty() {
            *occurrences.titles.entry(title).or_insert(0) += 1;
        }
        if let (Some((price, currency)), EventKind::Purchase) = (price, kind) {
            occurrences.prices.push(price.micros());
            currency.clone_into(&mut occurrences.currency);
        }
        occurrences.first = Some(occurrences.first.map_or(at, |first| first.min(at)));
    }

    /// Returns the items of the file and those that only events name, in the order of their ids. An item without a
    /// title gets its id as the title.
    pub(super) fn items(self, feed: Vec<Item>, currency: &str) -> Vec<Item> {
        let mut items: BTreeMap<ItemId, Item> = feed.into_iter().map(|item| (item.id.clone(), item)).collect();
        for (id, mut occurrences) in self.items {
            let title = occurrences.title();
            let item = items.entry(id).or_insert_with_key(|id| {
                let title = title.unwrap_or_else(|| id.to_string());
                Item::titled(id.clone(), &title)
            });
            if item.price.is_none() {
                item.price = occurrences.median_price();
                item.currency = occurrences.currency;
            }
            if item.currency.is_empty() {
                currency.clone_into(&mut item.currency);
            }
            item.created_at = item.created_at.or(occurrences.first);
        }
        items.into_values().collect()
    }
}

impl Occurrences {
    /// Returns the most frequent title.
    fn title(&self) -> Option<String> {
        let most_frequent = self.titles.iter().max_by(|a, b| a.1.cmp(b.1).then_with(|| b.0.cmp(a.0)));
        most_frequent.map(|(title, _)| visible_text(title).chars().take(limits::TITLE_CHARS).collect())
    }

    fn median_price(&mut self) -> Option<PriceMicros> {
        self.prices.sort_unstable();
        self.prices.get(self.prices.len() / 2).copied().and_then(PriceMicros::new)
    }
}
