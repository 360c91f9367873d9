//! Derives items from imported events: the most frequent title, the median price and the first time.
use ahash::AHashMap;
use lodestone_catalog::Item;
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
    first: Option<UnixMillis>,
}

impl Catalogue {
    pub(super) fn add(
        &mut self,
        id: &ItemId,
        title: &str,
        price: Option<PriceMicros>,
        at: UnixMillis,
        kind: EventKind,
    ) {
        let occurrences = self.items.entry(id.clone()).or_default();
        let title = title.split_whitespace().collect::<Vec<_>>().join(" ");
        if !title.is_empty() {
            *occurrences.titles.entry(title).or_insert(0) += 1;
        }
        if kind == EventKind::Purchase {
            occurrences.prices.extend(price.map(PriceMicros::micros));
        }
        occurrences.first = Some(occurrences.first.map_or(at, |first| first.min(at)));
    }

    /// Returns the items in the order of their ids. An item without a title gets its id as the title.
    pub(super) fn items(self, currency: &str) -> Vec<Item> {
        self.items
            .into_iter()
            .map(|(id, mut occurrences)| {
                let most_frequent = occurrences.titles.iter().max_by(|a, b| a.1.cmp(b.1).then_with(|| b.0.cmp(a.0)));
                let title =
                    most_frequent.map_or_else(|| id.to_string(), |(title, _)| title.chars().take(1000).collect());
                occurrences.prices.sort_unstable();
                Item {
                    price: occurrences.prices.get(occurrences.prices.len() / 2).copied().and_then(PriceMicros::new),
                    currency: currency.to_owned(),
                    created_at: occurrences.first,
                    ..Item::titled(id, &title)
                }
            })
            .collect()
    }
}
