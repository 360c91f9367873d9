//! A catalogue as the viewers of one place, region, group of customers and currency see it: columns with the prices and
//! the stock that apply, so that filters, orders and facets read them as fast as the items' own.
use crate::{
    Catalog, OfferKey, PreparedField,
    filter::{BLOCK_ROWS, Columns, Mask},
    offers::{OfferRow, OfferRows},
    snapshot::CatalogRow,
};
use ahash::AHashMap;
use lodestone_core::{bits, ids::Row, text::normalize, units::UnixMillis};
use parking_lot::Mutex;
use std::{
    collections::BTreeSet,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

/// Maximum size of the views that are kept for the next request, over all viewers, in blocks: a block with values of offers
/// counts 1, and so do [`ROWS_PER_BLOCK`] rows that were read and [`EMPTY_PER_BLOCK`] blocks without offers.
const KEPT_BLOCKS_MAX: usize = 4096;
/// Rows of a view that take about the memory of the columns of a block.
const ROWS_PER_BLOCK: usize = 64;
/// Blocks without offers that take about the memory of one with offers.
const EMPTY_PER_BLOCK: usize = 1024;
/// Number of reads after which the rows that they added are counted.
const READS_PER_COUNT: u64 = 1024;

/// Identifies a content of a catalogue or of one of its blocks within the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Version(u64);

impl Version {
    /// Returns a version that no content has.
    pub(crate) fn next() -> Self {
        static LAST: AtomicU64 = AtomicU64::new(0);
        Self(LAST.fetch_add(1, Ordering::Relaxed) + 1)
    }
}

/// What differs for a viewer from the items' own values.
pub(crate) struct View {
    viewer: OfferKey,
    /// The time of the prices.
    time: UnixMillis,
    /// By block of rows.
    blocks: Vec<Arc<ViewBlock>>,
}

struct ViewBlock {
    /// The version of the block that it was built from.
    version: Version,
    /// None: all items of the block have their own values.
    /// Boxed, because most blocks of most viewers have none.
    differing: Option<Box<Differing>>,
}

struct Differing {
    columns: Columns,
    /// The items whose values differ.
    items: Mask,
    /// The rows of these items, once they are read.
    rows: Box<[OnceLock<Box<CatalogRow>>]>,
    /// Number of rows that were read.
    read_count: AtomicUsize,
}

impl View {
    /// Returns the row as the viewer sees it. `own` has the item's own values.
    pub(crate) fn row<'c>(&'c self, row: Row, own: &'c CatalogRow, prepared: &[PreparedField]) -> &'c CatalogRow {
        let (block, at) = (row.index() / BLOCK_ROWS, row.index() % BLOCK_ROWS);
        match self.blocks.get(block).and_then(|block| block.differing.as_ref()) {
            Some(differing) if bits::has(&differing.items, at) => differing.rows[at].get_or_init(|| {
                differing.read_count.fetch_add(1, Ordering::Relaxed);
                Box::new(own.for_viewer(&self.viewer, prepared, self.time))
            }),
            _ => own,
        }
    }

    /// Returns the size of the view in blocks; see [`KEPT_BLOCKS_MAX`].
    fn size(&self) -> usize {
        let differing = self.blocks.iter().filter_map(|block| block.differing.as_ref());
        let of_block = |block: &Differing| 1 + block.read_count.load(Ordering::Relaxed) / ROWS_PER_BLOCK;
        1 + self.blocks.len() / EMPTY_PER_BLOCK + differing.map(|block| of_block(block)).sum::<usize>()
    }
}

/// The views of a catalogue and its later snapshots that requests read last.
#[derive(Default)]
pub(crate) struct ViewCache(Mutex<Views>);

#[derive(Default)]
struct Views {
    by_viewer: AHashMap<OfferKey, CachedView>,
    /// Counts the reads.
    tick: u64,
}

struct CachedView {
    view: Arc<View>,
    /// Only of the snapshot that was read last, so that idle views do not keep the rows of earlier ones. Without a catalogue
    /// if no offer applies: the viewer sees the snapshot itself.
    catalog: Option<(Version, Option<Arc<Catalog>>)>,
    last_tick: u64,
}

impl ViewCache {
    /// Returns the catalogue of a viewer if it is of this version, none if no offer applies; otherwise the view of an
    /// earlier version.
    fn get(&self, viewer: &OfferKey, version: Version) -> Result<Option<Arc<Catalog>>, Option<Arc<View>>> {
        let mut views = self.0.lock();
        views.tick += 1;
        let tick = views.tick;
        if tick.is_multiple_of(READS_PER_COUNT) {
            views.shrink(viewer);
        }
        let Some(cached) = views.by_viewer.get_mut(viewer) else { return Err(None) };
        cached.last_tick = tick;
        match &cached.catalog {
            Some((of, catalog)) if *of == version => Ok(catalog.clone()),
            _ => Err(Some(cached.view.clone())),
        }
    }

    /// Keeps a view; without a catalogue if no offer applies, so that viewers with keys that no offer names take little
    /// memory.
    fn insert(&self, viewer: &OfferKey, version: Version, view: Arc<View>, catalog: Option<Arc<Catalog>>) {
        let mut views = self.0.lock();
        let Views { by_viewer, tick } = &mut *views;
        for other in by_viewer.values_mut() {
            other.catalog = other.catalog.take().filter(|(of, _)| *of == version);
        }
        let cached = CachedView { view, catalog: Some((version, catalog)), last_tick: *tick };
        by_viewer.insert(viewer.clone(), cached);
        views.shrink(viewer);
    }
}

impl Views {
    /// Removes the views of the viewers whose requests are the oldest, except that of `viewer`, until the others are within
    /// [`KEPT_BLOCKS_MAX`].
    fn shrink(&mut self, viewer: &OfferKey) {
        let mut kept: usize = self.by_viewer.values().map(|cached| cached.view.size()).sum();
        while kept > KEPT_BLOCKS_MAX {
            let others = self.by_viewer.iter().filter(|(of, _)| *of != viewer);
            let Some(oldest) = others.min_by_key(|(_, cached)| cached.last_tick).map(|(of, _)| of.clone()) else {
                break;
            };
            // Rows may be read meanwhile.
            let size = self.by_viewer.remove(&oldest).map_or(0, |cached| cached.view.size());
            kept = kept.saturating_sub(size);
        }
    }
}

impl Catalog {
    /// Returns the catalogue as a viewer sees it: rows, columns and stock have the values of the offers that apply
    /// ([`Item::for_viewer`](crate::Item::for_viewer)). It has the rows and keys of this one, and is not written to.
    /// Blocks that did not change since the last call for the viewer are shared with it.
    pub fn view(self: &Arc<Self>, viewer: &OfferKey) -> Arc<Self> {
        if viewer.is_empty() || !self.has_offers() && viewer.currency.is_empty() {
            return self.clone();
        }
        let known = match self.views.get(viewer, self.version) {
            Ok(catalog) => return catalog.unwrap_or_else(|| self.clone()),
            Err(known) => known,
        };
        let block = |index: usize| {
            let version = self.block_versions[index];
            let known = known.as_ref().and_then(|known| known.blocks.get(index));
            known.filter(|known| known.version == version).cloned().unwrap_or_else(|| {
                let differing = differing(self.columns(index), viewer, self.time());
                Arc::new(ViewBlock { version, differing: differing.map(Box::new) })
            })
        };
        let blocks: Vec<Arc<ViewBlock>> = (0..self.block_versions.len()).map(block).collect();
        let is_own = blocks.iter().all(|block| block.differing.is_none());
        let view = Arc::new(View { viewer: viewer.clone(), time: self.time(), blocks });
        if is_own {
            self.views.insert(viewer, self.version, view, None);
            return self.clone();
        }
        let catalog = Arc::new(self.with_view(view.clone()));
        self.views.insert(viewer, self.version, view, Some(catalog.clone()));
        catalog
    }

    fn with_view(&self, view: Arc<View>) -> Self {
        let mut catalog = self.clone();
        // The cache has the view, so that the view does not have the cache.
        catalog.views = Arc::default();
        for (block, of_view) in view.blocks.iter().enumerate() {
            let Some(differing) = &of_view.differing else { continue };
            catalog.set_view_columns(block, differing.columns.clone());
        }
        catalog.view = Some(view);
        catalog
    }

    /// Returns the codes of the currencies that the prices of the items in a bit set have, ascending. Items without a
    /// currency do not count.
    pub fn price_currencies(&self, among: &[u64]) -> Vec<String> {
        let mut codes = BTreeSet::new();
        for (block, among) in among.chunks(BLOCK_ROWS / 64).enumerate() {
            self.columns(block).add_price_currencies(among, &mut codes);
        }
        codes.into_iter().map(str::to_uppercase).collect()
    }

    /// Returns the mean share of the price that remains above the cost, over all items with both, and at least 0; none
    /// without such an item. Below 0 it would turn the order of all items without a cost round.
    pub fn mean_margin_share(&self) -> Option<f64> {
        let (mut sum, mut count) = (0.0, 0);
        for (block, among) in self.alive().chunks(BLOCK_ROWS / 64).enumerate() {
            self.columns(block).add_margin_shares(among, &mut sum, &mut count);
        }
        (count > 0).then(|| (sum / count as f64).max(0.0))
    }
}

/// Returns the values of a block that differ for a viewer at a time from the items' own; none if no offer applies.
fn differing(own: &Columns, viewer: &OfferKey, time: UnixMillis) -> Option<Differing> {
    let wanted = Some(normalize(&viewer.currency)).filter(|code| !code.is_empty());
    let mut applicable: Vec<(&OfferKey, &OfferRows)> =
        own.offers().filter(|(key, _)| key.applies_to(viewer)).map(|(key, rows)| (key, &**rows)).collect();
    if applicable.is_empty() && wanted.is_none() {
        return None;
    }
    let in_wanted = wanted.as_deref().map(|code| own.in_currency(code));
    // The offers that apply, by item: those of a greater rank replace the others.
    let mut prices: Vec<Option<(&OfferRow, &str)>> = vec![None; BLOCK_ROWS];
    applicable.sort_unstable_by_key(|(key, _)| key.price_rank(viewer));
    for (key, rows) in &applicable {
        let is_in_wanted = |at: u16| {
            !key.currency.is_empty() || in_wanted.as_ref().is_none_or(|items| bits::has(items, usize::from(at)))
        };
        for row in rows.iter().filter(|row| row.price().is_some() && is_in_wanted(row.at)) {
            prices[usize::from(row.at)] = Some((row, &key.currency));
        }
    }
    let mut stocks: Vec<Option<u32>> = vec![None; BLOCK_ROWS];
    applicable.retain(|(key, _)| key.currency.is_empty());
    applicable.sort_unstable_by_key(|(key, _)| key.stock_rank());
    for (_, rows) in &applicable {
        for row in rows.iter() {
            let stock = &mut stocks[usize::from(row.at)];
            *stock = row.stock_quantity().or(*stock);
        }
    }
    let (mut columns, mut items): (Columns, Mask) = (own.clone(), [0; BLOCK_ROWS / 64]);
    let mut normals: AHashMap<&str, String> = AHashMap::new();
    for at in 0..BLOCK_ROWS {
        let is_unwanted = in_wanted.as_ref().is_some_and(|items| !bits::has(items, at));
        match prices[at] {
            Some((row, "")) => columns.set_price(at, row.pricing_at(time), None),
            Some((row, code)) => {
                let normal = normals.entry(code).or_insert_with(|| normalize(code));
                columns.set_price(at, row.pricing_at(time), Some(normal));
            }
            // The item has no price in the currency.
            None if is_unwanted => columns.remove_price(at),
            None => {}
        }
        if let Some(stock) = stocks[at] {
            columns.set_stock(at, stock);
        }
        if prices[at].is_some() || stocks[at].is_some() || is_unwanted {
            items[at / 64] |= 1 << (at % 64);
        }
    }
    let rows = (0..BLOCK_ROWS).map(|_| OnceLock::new()).collect();
    items.iter().any(|word| *word != 0).then_some(Differing { columns, items, rows, read_count: AtomicUsize::new(0) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Availability, Field, Filter, Item, ItemKeys, ItemVectors, Offer, OrderBy, Part, Pricing};
    use lodestone_core::{ids::ItemId, units::PriceMicros};
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn id(number: usize) -> ItemId {
        ItemId::parse(&format!("i{number}")).unwrap()
    }

    fn key(place: &str, region: &str, group: &str, currency: &str) -> OfferKey {
        OfferKey {
            place_id: place.into(),
            region_code: region.into(),
            customer_group: group.into(),
            currency: currency.into(),
        }
    }

    fn price(units: i64) -> Option<PriceMicros> {
        PriceMicros::new(units * 1_000_000)
    }

    fn item(number: usize, units: i64, currency: &str, offers: &[(OfferKey, i64, Option<u32>)]) -> Item {
        let offer = |(key, units, stock): &(OfferKey, i64, Option<u32>)| Offer {
            price: price(*units),
            stock_quantity: *stock,
            ..Offer::new(key.clone())
        };
        let mut offers: Vec<Offer> = offers.iter().map(offer).collect();
        offers.sort_by(|a, b| a.key.cmp(&b.key));
        Item {
            price: price(units),
            currency: currency.to_owned(),
            stock_quantity: Some(9),
            offers,
            ..Item::titled(id(number), "title")
        }
    }

    #[test]
    fn the_most_specific_offer_applies_and_prices_and_stock_may_be_of_different_ones() {
        let offers = [
            (key("", "CH", "", ""), 1, None),
            (key("", "", "gold", ""), 2, None),
            (key("", "CH", "gold", ""), 3, Some(30)),
            (key("a", "", "", ""), -1, Some(0)),
            (key("b", "", "", ""), 4, None),
            (key("b", "", "gold", ""), 5, None),
        ];
        let item = item(0, 7, "EUR", &offers);
        for (viewer, units, stock) in [
            (key("", "", "", ""), 7, 9),
            (key("", "CH", "", ""), 1, 9),
            (key("", "DE", "gold", ""), 2, 9),
            (key("", "CH", "gold", ""), 3, 30),
            (key("a", "CH", "gold", ""), 3, 0),
            (key("b", "CH", "gold", ""), 5, 30),
            (key("b", "CH", "", ""), 4, 9),
            (key("c", "", "", ""), 7, 9),
        ] {
            let seen = item.for_viewer(&viewer);
            assert_eq!((seen.price, seen.stock_quantity), (price(units), Some(stock)), "{viewer:?}");
            assert!(seen.offers.is_empty());
        }
    }

    #[test]
    fn a_chosen_currency_leaves_only_its_prices() {
        let offers = [
            (key("", "", "", "USD"), 12, None),
            (key("", "CH", "", "CHF"), 9, None),
            (key("", "CH", "", "USD"), 11, None),
            (key("a", "", "", ""), 6, None),
        ];
        let item = item(0, 7, "EUR", &offers);
        for (viewer, expected) in [
            (key("", "", "", ""), Some((7, "EUR"))),
            (key("", "CH", "", ""), Some((9, "CHF"))),
            (key("", "CH", "", "USD"), Some((11, "USD"))),
            (key("", "DE", "", "USD"), Some((12, "USD"))),
            (key("", "CH", "", "EUR"), Some((7, "EUR"))),
            (key("a", "CH", "", "EUR"), Some((6, "EUR"))),
            (key("a", "CH", "", "CHF"), Some((9, "CHF"))),
            (key("", "DE", "", "CHF"), None),
        ] {
            let seen = item.for_viewer(&viewer);
            let expected = expected.map_or((None, ""), |(units, code)| (price(units), code));
            assert_eq!((seen.price, seen.currency.as_str()), expected, "{viewer:?}");
        }
    }

    #[test]
    fn currencies_are_those_of_the_prices_of_a_viewer() {
        let (keys, mut catalog) = (ItemKeys::default(), Catalog::default());
        let franc = [(key("", "CH", "", "CHF"), 9, None)];
        for (number, currency) in ["EUR", "EUR", ""].into_iter().enumerate() {
            catalog.upsert(&keys, Arc::new(item(number, 7, currency, &franc)), ItemVectors::new(&[], &[]));
        }
        let codes = |catalog: &Catalog, viewer: &OfferKey| {
            let view = Arc::new(catalog.clone()).view(viewer);
            view.price_currencies(view.alive())
        };
        assert_eq!(codes(&catalog, &key("", "", "", "")), ["EUR"]);
        assert_eq!(codes(&catalog, &key("", "CH", "", "")), ["CHF"]);
        catalog.upsert(&keys, Arc::new(item(0, 7, "EUR", &[])), ItemVectors::new(&[], &[]));
        assert_eq!(codes(&catalog, &key("", "CH", "", "")), ["CHF", "EUR"]);
        assert_eq!(codes(&catalog, &key("", "CH", "", "EUR")), ["EUR"]);
        catalog.delete(&keys, &id(0));
        assert_eq!(codes(&catalog, &key("", "CH", "", "")), ["CHF"], "deleted items do not count");
    }

    #[test]
    fn views_are_shared_until_the_catalogue_changes_and_their_number_is_bounded() {
        let (keys, mut catalog) = (ItemKeys::default(), Catalog::default());
        for number in 0..2 * BLOCK_ROWS {
            let offers = [(key("a", "", "", ""), 1, None)];
            catalog.upsert(&keys, Arc::new(item(number, 7, "", &offers)), ItemVectors::new(&[], &[]));
        }
        let before = Arc::new(catalog.clone());
        let of_a = before.view(&key("a", "", "", ""));
        assert!(Arc::ptr_eq(&of_a, &before.view(&key("a", "", "", ""))));
        let first = |catalog: &Catalog| std::ptr::from_ref(catalog.get(Row(0)));
        let (row, last) = (first(&of_a), std::ptr::from_ref(of_a.get(Row(2047))));
        catalog.upsert(&keys, Arc::new(item(2047, 8, "", &[])), ItemVectors::new(&[], &[]));
        let now = Arc::new(catalog.clone()).view(&key("a", "", "", ""));
        assert_eq!(first(&now), row, "its block did not change");
        assert!(std::ptr::from_ref(now.get(Row(2047))) != last && now.get(Row(2047)).item.price == price(8));
        let now = Arc::new(catalog);
        for number in 0..KEPT_BLOCKS_MAX {
            now.view(&key("a", "", &number.to_string(), ""));
        }
        assert!(now.views.0.lock().by_viewer.len() <= KEPT_BLOCKS_MAX / 3);
    }

    #[test]
    fn rows_that_requests_read_count_for_the_size_of_the_kept_views() {
        let (keys, mut catalog) = (ItemKeys::default(), Catalog::default());
        for number in 0..BLOCK_ROWS {
            let offers = [(key("a", "", "", ""), 1, None)];
            catalog.upsert(&keys, Arc::new(item(number, 7, "", &offers)), ItemVectors::new(&[], &[]));
        }
        let catalog = Arc::new(catalog);
        let viewer = |number: usize| key("a", "", &number.to_string(), "");
        const VIEWERS: usize = 300;
        for number in 0..VIEWERS {
            let view = catalog.view(&viewer(number));
            (0..BLOCK_ROWS).for_each(|row| _ = view.get(Row(row as u32)));
        }
        // Nothing is inserted any more; reading alone must remove views.
        (0..READS_PER_COUNT).for_each(|_| _ = catalog.view(&viewer(VIEWERS - 1)));
        let of_one = 2 + BLOCK_ROWS / ROWS_PER_BLOCK;
        let kept = catalog.views.0.lock().by_viewer.len();
        assert!(kept <= KEPT_BLOCKS_MAX / of_one && kept > KEPT_BLOCKS_MAX / of_one / 2, "{kept} views");
    }

    #[test]
    fn a_price_of_an_offer_has_the_sale_of_the_offer() {
        let (start, end) = (Some(UnixMillis(100)), Some(UnixMillis(200)));
        let mut item = Item { sale_price: price(1), ..item(0, 7, "EUR", &[(key("a", "", "", ""), 5, None)]) };
        item.offers[0] = Offer { sale_price: price(4), sale_start: start, sale_end: end, ..item.offers[0].clone() };
        let (keys, mut catalog) = (ItemKeys::default(), Catalog::default());
        let row = catalog.upsert(&keys, Arc::new(item), ItemVectors::new(&[], &[]));
        let changes = [0, 100, 200].map(|time| catalog.get(row).item.next_price_change(UnixMillis(time)));
        assert_eq!(changes, [start, end, None]);
        for (time, units, original) in [(0, 5, None), (100, 4, price(5)), (200, 5, None)] {
            catalog = catalog.at_time(UnixMillis(time)).unwrap_or(catalog);
            let view = Arc::new(catalog.clone()).view(&key("a", "", "", ""));
            let shown = view.shown_item(row);
            assert_eq!((shown.price, shown.original_price), (price(units), original), "{time}");
            let filter = Filter::parse(&format!("price = {units}")).unwrap();
            assert!(bits::has(&view.matching(&filter, view.alive()), row.index()), "{time}");
        }
    }

    #[test]
    fn a_price_of_an_offer_has_no_sale_of_the_item_and_its_cost_only_in_its_currency() {
        let offers =
            [(key("a", "", "", ""), 5, None), (key("", "CH", "", "CHF"), 6, None), (key("", "", "g", ""), -1, Some(4))];
        let (start, end) = (Some(UnixMillis(100)), Some(UnixMillis(200)));
        let (sale_price, cost) = (price(4), price(3));
        let item = Item { sale_price, sale_start: start, sale_end: end, cost, ..item(0, 7, "EUR", &offers) };
        let (regular, sale) =
            (Pricing { price: price(7), original_price: None }, Pricing { price: price(4), original_price: price(7) });
        let of = |units| [Pricing { price: price(units), original_price: None }; 2];
        for (viewer, prices, margins) in [
            (key("", "", "", ""), [regular, sale], [Some(4.0), Some(1.0)]),
            (key("", "", "g", ""), [regular, sale], [Some(4.0), Some(1.0)]),
            (key("a", "", "", ""), of(5), [Some(2.0); 2]),
            (key("", "CH", "", ""), of(6), [None; 2]),
            (key("", "CH", "", "EUR"), [regular, sale], [Some(4.0), Some(1.0)]),
            (key("", "", "", "USD"), [Pricing::default(); 2], [None; 2]),
        ] {
            let seen = item.for_viewer(&viewer);
            let times = [UnixMillis(99), UnixMillis(100)];
            assert_eq!(
                (times.map(|at| seen.price_at(at)), times.map(|at| seen.margin_at(at))),
                (prices, margins),
                "{viewer:?}"
            );
        }
    }

    #[test]
    fn a_stated_availability_and_the_stock_of_an_offer_mean_what_they_mean_in_an_item() {
        use Availability::{Backorder, Discontinued, InStock, OutOfStock, Preorder};
        for (stated, expected) in [
            (None, [OutOfStock, InStock]),
            (Some(InStock), [OutOfStock, InStock]),
            (Some(Backorder), [Backorder, InStock]),
            (Some(Preorder), [Preorder; 2]),
            (Some(OutOfStock), [OutOfStock; 2]),
            (Some(Discontinued), [Discontinued; 2]),
        ] {
            let offers = [(key("none", "", "", ""), -1, Some(0)), (key("some", "", "", ""), -1, Some(3))];
            let (keys, mut catalog) = (ItemKeys::default(), Catalog::default());
            let item = Item { stated_availability: stated, ..item(0, 7, "", &offers) };
            let row = catalog.upsert(&keys, Arc::new(item), ItemVectors::new(&[], &[]));
            let catalog = Arc::new(catalog);
            let found = ["none", "some"].map(|place| {
                let view = catalog.view(&key(place, "", "", ""));
                let availability = view.get(row).item.availability();
                assert_eq!(view.is_offered(row), availability.is_in_stock());
                let filter = Filter::parse(&format!("availability = \"{}\"", availability.name())).unwrap();
                assert!(bits::has(&view.matching(&filter, view.alive()), row.index()), "{stated:?} {place}");
                availability
            });
            assert_eq!(found, expected, "{stated:?}");
        }
    }

    #[test]
    fn sales_begin_and_end_in_a_view_that_other_times_share() {
        let (keys, mut catalog) = (ItemKeys::default(), Catalog::default());
        for number in 0..2 * BLOCK_ROWS {
            let offers = [(key("a", "", "", ""), 5, None)];
            let plain = item(number, 7, "", if number % 2 == 0 { &offers } else { &[] });
            let is_on_sale = number < BLOCK_ROWS && number % 3 == 0;
            let sale = Item { sale_price: price(2), sale_start: Some(UnixMillis(100)), ..plain.clone() };
            let item = if is_on_sale { sale } else { plain };
            catalog.upsert(&keys, Arc::new(item), ItemVectors::new(&[], &[]));
        }
        let before = Arc::new(catalog);
        let after = Arc::new(before.at_time(UnixMillis(100)).unwrap());
        let viewer = key("a", "", "", "");
        let count = |catalog: &Arc<Catalog>, units: usize| {
            let view = catalog.view(&viewer);
            assert_eq!(view.time(), catalog.time());
            let filter = Filter::parse(&format!("price = {units}")).unwrap();
            let matching = view.matching(&filter, view.alive());
            let rows = bits::ones(&matching, 0).map(|row| Row(row as u32));
            rows.inspect(|row| assert!(view.matches(&filter, *row))).count()
        };
        // Odd multiples of 3 below 1,024 have no offer.
        assert_eq!([2, 5, 7].map(|units| count(&before, units)), [0, 1024, 1024]);
        assert_eq!([2, 5, 7].map(|units| count(&after, units)), [171, 1024, 853]);
        let shared = [&before, &after].map(|catalog| std::ptr::from_ref(catalog.view(&viewer).get(Row(2046))));
        assert_eq!(shared[0], shared[1], "no sale begins in its block");
    }

    #[test]
    fn the_items_of_a_request_have_the_offers_of_its_viewer() {
        let (keys, mut catalog) = (ItemKeys::default(), Catalog::default());
        let at_a = |units| [(key("a", "", "", ""), units, Some(0))];
        for number in 0..3 {
            catalog.upsert(&keys, Arc::new(item(number, 7, "EUR", &at_a(5))), ItemVectors::new(&[], &[]));
        }
        catalog.delete(&keys, &id(1));
        let catalog = Arc::new(catalog);
        for viewer in [key("", "", "", ""), key("a", "", "", ""), key("a", "", "", "EUR"), key("b", "", "", "USD")] {
            let view = catalog.view(&viewer);
            // Reads the row of a deleted item before it is written.
            view.get(Row(1));
            let sent = [1, 9].map(|number| (Arc::new(item(number, 8, "EUR", &at_a(6))), ItemVectors::new(&[], &[])));
            let (of_request, rows) = view.with_items(&keys, &viewer, view.time(), sent);
            for (row, number) in rows.iter().zip([1, 9]) {
                let (found, expected) =
                    (&of_request.get(*row).item, item(number, 8, "EUR", &at_a(6)).for_viewer(&viewer));
                assert_eq!(
                    (found.price, found.stock_quantity, &found.currency),
                    (expected.price, expected.stock_quantity, &expected.currency)
                );
                for filter in ["price = 6", "price = 8", "in_stock", "currency = \"EUR\"", "currency = \"\""] {
                    let filter = Filter::parse(filter).unwrap();
                    let matching = of_request.matching(&filter, of_request.alive());
                    assert_eq!(
                        bits::has(&matching, row.index()),
                        filter.matches(&expected, UnixMillis(0)),
                        "{viewer:?} {filter}"
                    );
                }
            }
            assert_eq!(of_request.get(Row(0)).item.price, view.get(Row(0)).item.price, "the others are as before");
        }
    }

    fn any_key() -> impl Strategy<Value = OfferKey> {
        ("[ab]?", "(CH|DE)?", "(gold)?", "(CHF|EUR)?").prop_map(|(a, b, c, d)| key(&a, &b, &c, &d))
    }

    /// A sale price, and when it starts and ends.
    fn any_sale() -> impl Strategy<Value = (Option<i64>, [Option<i64>; 2])> {
        (prop::option::weighted(0.4, 0i64..4), prop::array::uniform2(prop::option::of(0i64..100)))
    }

    prop_compose! {
        fn any_item()(
            units in prop::option::of(0i64..4), original in prop::option::of(0i64..6),
            currency in "(CHF|EUR|GBP)?", stock in prop::option::of(0u32..3),
            stated in prop::option::weighted(0.4, prop::sample::select(Availability::ALL.to_vec())),
            cost in prop::option::of(0i64..4), sale in prop::option::weighted(0.4, 0i64..4),
            sale_times in prop::array::uniform2(prop::option::of(0i64..100)),
            offers in prop::collection::vec((any_key(), prop::option::of(0i64..4), prop::option::of(0i64..6), prop::option::of(0u32..3), any_sale()), 0..5),
        ) -> Item {
            let offers: BTreeMap<OfferKey, Offer> = offers
                .into_iter()
                .filter(|(key, ..)| !key.is_empty())
                .map(|(key, units, original, stock, (sale, [start, end]))| {
                    let offer = Offer {
                        price: units.and_then(price),
                        original_price: original.and_then(price),
                        stock_quantity: stock.filter(|_| key.currency.is_empty()),
                        sale_price: sale.and_then(price),
                        sale_start: start.map(UnixMillis),
                        sale_end: end.map(UnixMillis),
                        ..Offer::new(key.clone())
                    };
                    (key, offer)
                })
                .collect();
            Item {
                price: units.and_then(price), original_price: original.and_then(price), currency, stock_quantity: stock,
                stated_availability: stated, cost: cost.and_then(price), sale_price: sale.and_then(price),
                sale_start: sale_times[0].map(UnixMillis), sale_end: sale_times[1].map(UnixMillis),
                offers: offers.into_values().collect(),
                ..Item::titled(id(0), "title")
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        /// A view after random writes equals a catalogue of the items as the viewer sees them, one by one.
        #[test]
        fn a_view_is_a_catalogue_of_the_items_that_the_viewer_sees(
            writes in prop::collection::vec((0usize..1100, any_item(), prop::bool::weighted(0.1)), 1..60),
            viewers in prop::collection::vec(any_key(), 1..4),
            times in [0i64..100, 0..100].prop_map(|times| times.map(UnixMillis)),
        ) {
            let prepared = || {
                let numbers = [Field::Price, Field::Margin, Field::InStock].map(PreparedField::Number);
                numbers.into_iter().chain([PreparedField::Labels(Field::Availability)])
            };
            let (keys, mut catalog) = (ItemKeys::default(), Catalog::preparing(prepared(), UnixMillis(0)));
            let mut items: BTreeMap<usize, Item> = BTreeMap::new();
            // Items without offers fill the first block.
            for number in 0..1100 {
                let plain = item(number, 3, "EUR", &[]);
                catalog.upsert(&keys, Arc::new(plain.clone()), ItemVectors::new(&[], &[]));
                items.insert(number, plain);
            }
            let half = writes.len() / 2;
            for (at, (number, item, is_deleted)) in writes.into_iter().enumerate() {
                if at == half {
                    // Later views share the blocks of these.
                    viewers.iter().for_each(|viewer| _ = Arc::new(catalog.clone()).view(viewer));
                    // Sales begin and end.
                    catalog = catalog.at_time(times[0]).unwrap_or(catalog);
                }
                if is_deleted {
                    catalog.delete(&keys, &id(number));
                    items.remove(&number);
                } else {
                    let item = Item { id: id(number), ..item };
                    catalog.upsert(&keys, Arc::new(item.clone()), ItemVectors::new(&[], &[]));
                    items.insert(number, item);
                }
            }
            viewers.iter().for_each(|viewer| _ = Arc::new(catalog.clone()).view(viewer));
            let catalog = Arc::new(catalog.at_time(times[1]).unwrap_or(catalog));
            for viewer in &viewers {
                let (view, mut expected) = (catalog.view(viewer), Catalog::preparing(prepared(), catalog.time()));
                for number in 0..1100 {
                    // The same rows in both.
                    let seen = items.get(&number).map(|item| Item { offers: Vec::new(), ..item.for_viewer(viewer) });
                    expected.upsert(&keys, Arc::new(seen.clone().unwrap_or_else(|| item(number, 0, "", &[]))), ItemVectors::new(&[], &[]));
                    match seen {
                        None => _ = expected.delete(&keys, &id(number)),
                        Some(seen) => {
                            let row = view.row_of(&keys, &seen.id).unwrap();
                            let shown = view.get(row);
                            let own = Item { offers: Vec::new(), ..(*shown.item).clone() };
                            prop_assert_eq!(&own, &seen);
                            prop_assert_eq!(shown.log_price, expected.get(row).log_price);
                            prop_assert_eq!(&shown.prepared, &expected.get(row).prepared);
                        }
                    }
                }
                prop_assert_eq!(view.alive(), expected.alive());
                prop_assert_eq!(view.offered(), expected.offered(), "{:?}", viewer);
                prop_assert_eq!(view.price_currencies(view.alive()), expected.price_currencies(expected.alive()));
                for text in [
                    "price < 2", "price >= 2", "original_price > 3", "discount > 0.3", "currency = \"CHF\"", "currency != \"CHF\"",
                    "currency = \"\"", "stock_quantity >= 1", "in_stock", "NOT price > 1", "margin >= 1", "margin < 0",
                    "availability = \"backorder\"", "availability != \"out_of_stock\"",
                ] {
                    let filter = Filter::parse(text).unwrap();
                    prop_assert_eq!(view.matching(&filter, view.alive()), expected.matching(&filter, expected.alive()), "{} {:?}", text, viewer);
                }
                for order in ["price desc, currency", "discount", "stock_quantity desc", "margin, availability"] {
                    let (order, part) = (OrderBy::parse(order).unwrap(), Part { count: 50, ..Part::default() });
                    let rows = || bits::ones(view.alive(), 0).map(|row| Row(row as u32));
                    prop_assert_eq!(view.select_by(&order, rows(), part), expected.select_by(&order, rows(), part));
                }
                for field in [Field::Price, Field::Currency, Field::InStock, Field::Availability] {
                    let (counted, of_items) = (view.count_values(&field, view.alive(), true), expected.count_values(&field, expected.alive(), true));
                    prop_assert_eq!(counted, of_items);
                }
            }
        }
    }
}
