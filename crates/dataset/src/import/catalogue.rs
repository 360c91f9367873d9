//! Items as the events show them: the usual title, the middle price, the first day.
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
    items: BTreeMap<ItemId, Seen>,
}

#[derive(Default)]
struct Seen {
    titles: AHashMap<String, u32>,
    prices: Vec<i64>,
    first: Option<UnixMillis>,
}

impl Catalogue {
    pub(super) fn note(
        &mut self,
        id: &ItemId,
        title: &str,
        price: Option<PriceMicros>,
        at: UnixMillis,
        kind: EventKind,
    ) {
        let seen = self.items.entry(id.clone()).or_default();
        let title = title.split_whitespace().collect::<Vec<_>>().join(" ");
        if !title.is_empty() {
            *seen.titles.entry(title).or_insert(0) += 1;
        }
        if kind == EventKind::Purchase {
            seen.prices.extend(price.map(PriceMicros::micros));
        }
        seen.first = Some(seen.first.map_or(at, |first| first.min(at)));
    }

    /// Items by id. One without a title is called by its id.
    pub(super) fn items(self, currency: &str) -> Vec<Item> {
        self.items
            .into_iter()
            .map(|(id, mut seen)| {
                let usual = seen.titles.iter().max_by(|a, b| a.1.cmp(b.1).then_with(|| b.0.cmp(a.0)));
                let title = usual.map_or_else(|| id.to_string(), |(title, _)| title.chars().take(1000).collect());
                seen.prices.sort_unstable();
                Item {
                    price: seen.prices.get(seen.prices.len() / 2).copied().and_then(PriceMicros::new),
                    currency: currency.to_owned(),
                    created_at: seen.first,
                    ..Item::titled(id, &title)
                }
            })
            .collect()
    }
}
