//! Copy-on-write snapshots of the catalogue. A request reads one snapshot.
use super::{
    Filter, Item, ItemKeys, OfferKey, PreparedField, PreparedValue, SortText,
    filter::{BLOCK_ROWS, CategoryLabels, Columns, Mask},
    groups::Groups,
    views::{Version, View, ViewCache},
};
use ahash::AHashSet;
use lodestone_core::{
    bits,
    ids::{ItemId, ItemKey, Row},
    text::normalize,
    units::UnixMillis,
};
use rayon::prelude::*;
use std::{ops::Range, sync::Arc};

/// The learned vectors of one item, each of norm 1.
#[derive(Debug, Clone)]
pub struct ItemVectors {
    /// Of this item, or of several: for each the vector in the user space, then the one in the query space.
    values: Arc<[f32]>,
    /// The index of the item's first value.
    first: u32,
    user_dimensions: u32,
    query_dimensions: u32,
    is_of_bundle: bool,
}

impl ItemVectors {
    /// Concatenates the vectors. `user_space` has the dimensions of the user encoder, `query_space` those of the query
    /// encoder.
    pub fn new(user_space: &[f32], query_space: &[f32]) -> Self {
        Self {
            values: [user_space, query_space].concat().into(),
            first: 0,
            user_dimensions: user_space.len() as u32,
            query_dimensions: query_space.len() as u32,
            is_of_bundle: false,
        }
    }

    /// Returns the vectors of items of a bundle, which share an allocation: `[items × (user dimensions + query
    /// dimensions)]`, at most 2³² values.
    pub fn of_bundle(
        values: Arc<[f32]>,
        user_dimensions: usize,
        query_dimensions: usize,
    ) -> impl Iterator<Item = Self> {
        let firsts = (0..values.len()).step_by((user_dimensions + query_dimensions).max(1));
        firsts.map(move |first| Self {
            values: values.clone(),
            first: first as u32,
            user_dimensions: user_dimensions as u32,
            query_dimensions: query_dimensions as u32,
            is_of_bundle: true,
        })
    }

    /// Returns true if the bundle contains these vectors at the item's row.
    pub fn is_of_bundle(&self) -> bool {
        self.is_of_bundle
    }

    /// Returns the vector that is compared with user vectors.
    pub fn user_space(&self) -> &[f32] {
        &self.values[self.first as usize..][..self.user_dimensions as usize]
    }

    /// Returns the vector that is compared with query vectors: the encoded title.
    pub fn query_space(&self) -> &[f32] {
        &self.values[(self.first + self.user_dimensions) as usize..][..self.query_dimensions as usize]
    }
}

const NO_ROW: u32 = u32::MAX;

/// The first key of items that only one request has; see [`Catalog::with_items`]. No item that is interned has a key from
/// here on.
const REQUEST_KEY_FIRST: u32 = u32::MAX - 65_536;

/// Rows of one chunk, which a write of one of them copies. Few, so that writes of prices all over the catalogue are
/// cheap.
const CHUNK_ROWS: usize = 32;

/// Items by row. A write creates a snapshot that shares all unchanged chunks and columns with the previous one. An item
/// keeps its row when it is replaced, and also when it is deleted and written again, so that the rows of the indexes
/// and of frozen slates stay valid and repeated writes take no memory.
#[derive(Clone, Default)]
pub struct Catalog {
    /// [`CHUNK_ROWS`] rows each; fewer in the last.
    chunks: Vec<Arc<Vec<CatalogRow>>>,
    /// One for each [`BLOCK_ROWS`] rows.
    columns: Vec<Columns>,
    alive: Vec<u64>,
    /// Rows that are alive and in stock.
    offered: Vec<u64>,
    /// The row of each key, also of a deleted item.
    row_of_key: Arc<Vec<u32>>,
    /// The rows of the keys from [`REQUEST_KEY_FIRST`].
    rows_of_request: Vec<Row>,
    /// By row. Also in the rows; read from here for many rows, because it takes fewer cache lines.
    keys: Arc<Vec<ItemKey>>,
    /// The keys of the last rows, which only one request has, so that it does not copy those of all items.
    keys_of_request: Vec<ItemKey>,
    row_count: usize,
    alive_count: usize,
    pub(crate) groups: Groups,
    prepared: Arc<[PreparedField]>,
    /// The time of the prices.
    time: UnixMillis,
    /// By block: no price changes before this time. May be too early.
    price_changes: Vec<UnixMillis>,
    /// Of all content.
    pub(crate) version: Version,
    /// One for each [`BLOCK_ROWS`] rows.
    pub(crate) block_versions: Vec<Version>,
    /// Items that are not deleted and have offers, and those of them that have an offer that names a currency.
    offer_item_count: usize,
    currency_offer_item_count: usize,
    /// What viewers see instead of the values of the rows.
    pub(crate) view: Option<Arc<View>>,
    /// The rows that have been written after that, with the values that the viewer sees; see [`Catalog::with_items`].
    written_in_view: AHashSet<Row>,
    pub(crate) views: Arc<ViewCache>,
}

/// The time of a price change that never comes.
const NEVER: UnixMillis = UnixMillis(i64::MAX);

/// One item with its vectors and the values that retrieval and features read.
#[derive(Clone)]
pub struct CatalogRow {
    pub item: Arc<Item>,
    pub key: ItemKey,
    pub vectors: ItemVectors,
    /// ln(1 + price) at the time of the catalogue; 0 without a price. Copied so that features do not dereference the item.
    pub log_price: f32,
    /// Copied for the same reason.
    pub created_at: Option<UnixMillis>,
    /// The title in normal form, by which items are sorted.
    pub title_normal: SortText,
    /// The values of the catalogue's prepared fields, in their order.
    pub prepared: Arc<[PreparedValue]>,
}

/// A part of a catalogue's items, in the order of their ids.
#[derive(Debug, Default)]
pub struct ItemList {
    pub items: Vec<Arc<Item>>,
    /// Number of matching items, also before and after this part.
    pub total: usize,
    /// Others follow.
    pub has_more: bool,
}

impl Catalog {
    /// Returns an empty catalogue that computes these values for each item, with the prices of a time.
    pub fn preparing(prepared: impl IntoIterator<Item = PreparedField>, time: UnixMillis) -> Self {
        Self { prepared: prepared.into_iter().collect(), time, ..Self::default() }
    }

    /// Builds the catalogue of new items, as [`Catalog::upsert`] of each in their order would, on all threads of the current
    /// rayon pool. `keys` are those of the items, which are distinct; `vectors` returns the vectors of a range of rows.
    ///
    /// # Panics
    /// If two items have the same key, or `keys`, `items` and the vectors of a range differ in length.
    pub fn of_items(
        prepared: impl IntoIterator<Item = PreparedField>,
        time: UnixMillis,
        keys: Vec<ItemKey>,
        items: Vec<Item>,
        vectors: impl Fn(Range<usize>) -> Vec<ItemVectors> + Sync,
    ) -> Self {
        assert_eq!(keys.len(), items.len(), "of_items needs one key for each item");
        let mut catalog = Self::preparing(prepared, time);
        let block = |labels: &mut CategoryLabels, (block, items): (usize, Vec<Item>)| {
            let rows = block * BLOCK_ROWS..block * BLOCK_ROWS + items.len();
            let vectors = vectors(rows.clone());
            assert_eq!(vectors.len(), items.len(), "of_items needs the vectors of each item");
            let rows = items.into_iter().zip(&keys[rows]).zip(vectors).map(|((item, key), vectors)| {
                let title_normal = SortText::new(&normalize(&item.title));
                catalog.content(*key, Arc::new(item), vectors, title_normal)
            });
            Block::of(rows.collect(), time, labels)
        };
        let blocks = items.into_par_iter().chunks(BLOCK_ROWS).enumerate();
        let blocks: Vec<Block> = blocks.map_init(CategoryLabels::default, block).collect();
        let row_of_key = Arc::make_mut(&mut catalog.row_of_key);
        row_of_key.resize(keys.iter().map(|key| key.0 as usize + 1).max().unwrap_or(0), NO_ROW);
        for (row, key) in keys.iter().enumerate() {
            let known = std::mem::replace(&mut row_of_key[key.0 as usize], row as u32);
            assert_eq!(known, NO_ROW, "two items have the key {}", key.0);
        }
        (catalog.row_count, catalog.alive_count) = (keys.len(), keys.len());
        catalog.keys = Arc::new(keys);
        catalog.version = Version::next();
        for block in blocks {
            for (at, row) in block.chunks.iter().flat_map(|chunk| chunk.iter()).enumerate() {
                let group_id = &row.item.group_id;
                if !group_id.is_empty() {
                    catalog.groups.set(Row((catalog.columns.len() * BLOCK_ROWS + at) as u32), Some(group_id));
                }
            }
            catalog.chunks.extend(block.chunks);
            catalog.columns.push(block.columns);
            catalog.alive.extend(block.alive);
            catalog.offered.extend(block.offered);
            catalog.price_changes.push(block.price_change);
            catalog.block_versions.push(catalog.version);
            catalog.offer_item_count += block.offer_counts[0];
            catalog.currency_offer_item_count += block.offer_counts[1];
        }
        catalog
    }

    /// Returns the content of a row.
    fn content(&self, key: ItemKey, item: Arc<Item>, vectors: ItemVectors, title_normal: SortText) -> CatalogRow {
        let ((log_price, prepared), created_at) = (self.dated_values(&item), item.created_at);
        CatalogRow { item, key, vectors, log_price, created_at, title_normal, prepared }
    }

    /// Returns the time of the prices: those of a later time are equal until [`Catalog::next_price_change`].
    pub fn time(&self) -> UnixMillis {
        self.time
    }

    /// Returns a time before which no price changes; none if none ever does.
    pub fn next_price_change(&self) -> Option<UnixMillis> {
        self.price_changes.iter().copied().min().filter(|change| *change != NEVER)
    }

    /// Returns the catalogue with the prices of a later time; none if they are equal. Rewrites the rows whose prices
    /// changed between, and shares all others.
    pub fn at_time(&self, time: UnixMillis) -> Option<Self> {
        if self.next_price_change().is_none_or(|change| change > time) {
            return None;
        }
        let mut later = self.clone();
        // A view of it has the time too.
        (later.time, later.version) = (time, Version::next());
        for block in (0..later.price_changes.len()).filter(|block| self.price_changes[*block] <= time) {
            let mut next = NEVER;
            for row in block * BLOCK_ROWS..((block + 1) * BLOCK_ROWS).min(self.row_count) {
                let row = Row(row as u32);
                let known = self.get(row);
                if known.item.next_price_change(self.time).is_some_and(|change| change <= time) {
                    let (log_price, prepared) = later.dated_values(&known.item);
                    later.replace(row, CatalogRow { log_price, prepared, ..known.clone() }, self.time);
                    later.changed(row);
                }
                next = next.min(known.item.next_price_change(time).unwrap_or(NEVER));
            }
            later.price_changes[block] = next;
        }
        Some(later)
    }

    /// Returns true if a row's item matches at the time of the catalogue.
    pub fn matches(&self, filter: &Filter, row: Row) -> bool {
        filter.matches(&self.get(row).item, self.time)
    }

    /// Returns a row's item as users see it at the time of the catalogue.
    pub fn shown_item(&self, row: Row) -> Arc<Item> {
        self.get(row).item.shown_at(self.time)
    }

    /// Returns the values of an item that depend on the time: see [`CatalogRow::log_price`] and
    /// [`CatalogRow::prepared`].
    fn dated_values(&self, item: &Item) -> (f32, Arc<[PreparedValue]>) {
        (item.log_price_at(self.time), self.prepared.iter().map(|field| field.of(item, self.time)).collect())
    }

    pub fn row_count(&self) -> usize {
        self.row_count
    }

    /// Returns the number of items that are not deleted.
    pub fn item_count(&self) -> usize {
        self.alive_count
    }

    /// Returns the content of a row, also of a dead one.
    pub fn get(&self, row: Row) -> &CatalogRow {
        let own = self.own(row);
        match &self.view {
            Some(view) if !self.written_in_view.contains(&row) => view.row(row, own, &self.prepared),
            _ => own,
        }
    }

    /// Returns a row without the offers that apply to a viewer, which change neither ids, texts, vectors nor times. Unlike
    /// [`Catalog::get`], it copies no item in a view.
    pub fn own(&self, row: Row) -> &CatalogRow {
        &self.chunks[row.index() / CHUNK_ROWS][row.index() % CHUNK_ROWS]
    }

    /// Returns true if an item that is not deleted has offers.
    pub fn has_offers(&self) -> bool {
        self.offer_item_count > 0
    }

    /// Returns true if an item that is not deleted has an offer that names a currency.
    pub fn has_currency_offers(&self) -> bool {
        self.currency_offer_item_count > 0
    }

    /// Returns the key of a row's item, also of a deleted one.
    pub fn key_of(&self, row: Row) -> ItemKey {
        self.keys.get(row.index()).copied().unwrap_or_else(|| self.keys_of_request[row.index() - self.keys.len()])
    }

    /// Returns the columns of a block of [`BLOCK_ROWS`] rows.
    pub(crate) fn columns(&self, block: usize) -> &Columns {
        &self.columns[block]
    }

    /// Returns true for a row of this snapshot whose item is not deleted.
    pub fn is_alive(&self, row: Row) -> bool {
        bits::has(&self.alive, row.index())
    }

    /// Returns one bit for each row, set if the row is alive.
    pub fn alive(&self) -> &[u64] {
        &self.alive
    }

    /// Returns true for a row that is alive and in stock.
    pub fn is_offered(&self, row: Row) -> bool {
        bits::has(&self.offered, row.index())
    }

    /// Returns one bit for each row, set if the row is alive and in stock.
    pub fn offered(&self) -> &[u64] {
        &self.offered
    }

    /// Returns the rows of `among` whose items match the filter. Both are bit sets over rows.
    pub fn matching(&self, filter: &Filter, among: &[u64]) -> Vec<u64> {
        let words = BLOCK_ROWS / 64;
        let mut matching = Vec::with_capacity(self.columns.len() * words);
        for (block, (columns, among)) in self.columns.iter().zip(among.chunks(words)).enumerate() {
            let mut mask: Mask = [0; BLOCK_ROWS / 64];
            mask[..among.len()].copy_from_slice(among);
            // Filters read only ids and texts from items; other values have columns.
            let item_of = |index: usize| &*self.own(Row((block * BLOCK_ROWS + index) as u32)).item;
            matching.extend(filter.mask(columns, &item_of, mask));
        }
        matching
    }

    /// Returns the `count` first items in the order of their ids that match the filter, after an id; also items that
    /// are not in stock. With the number of all that match, and whether others follow.
    pub fn list(&self, filter: Option<&Filter>, after: Option<&ItemId>, count: usize) -> ItemList {
        let matching = filter.map(|filter| self.matching(filter, &self.alive));
        let matching = matching.as_ref().unwrap_or(&self.alive);
        let item = |row: &Row| &self.get(*row).item;
        let mut rows: Vec<Row> = bits::ones(matching, 0).map(|row| Row(row as u32)).collect();
        let total = rows.len();
        rows.retain(|row| after.is_none_or(|after| item(row).id > *after));
        let has_more = rows.len() > count;
        if has_more {
            rows.select_nth_unstable_by(count, |a, b| item(a).id.cmp(&item(b).id));
            rows.truncate(count);
        }
        rows.sort_unstable_by(|a, b| item(a).id.cmp(&item(b).id));
        ItemList { items: rows.iter().map(|row| item(row).clone()).collect(), total, has_more }
    }

    pub fn row_of_key(&self, key: ItemKey) -> Option<Row> {
        self.last_row_of_key(key).filter(|row| self.is_alive(*row))
    }

    pub fn row_of(&self, keys: &ItemKeys, id: &ItemId) -> Option<Row> {
        self.row_of_key(keys.get(id)?)
    }

    /// Returns the row of an item, also of a deleted one.
    pub fn last_row_of(&self, keys: &ItemKeys, id: &ItemId) -> Option<Row> {
        self.last_row_of_key(keys.get(id)?)
    }

    fn last_row_of_key(&self, key: ItemKey) -> Option<Row> {
        match key.0.checked_sub(REQUEST_KEY_FIRST) {
            Some(of_request) => self.rows_of_request.get(of_request as usize).copied(),
            None => self.row_of_key.get(key.0 as usize).filter(|row| **row != NO_ROW).map(|row| Row(*row)),
        }
    }

    /// Returns the catalogue of one request: this one, as its viewer sees it, and further items, which no index has, with
    /// the offers that apply to the viewer and the prices of `now`; and their rows. They have keys that no other item has, unless their ids have
    /// keys already. At most 65,536 items.
    pub fn with_items(
        &self,
        keys: &ItemKeys,
        viewer: &OfferKey,
        now: UnixMillis,
        items: impl IntoIterator<Item = (Arc<Item>, ItemVectors)>,
    ) -> (Self, Vec<Row>) {
        let (mut catalog, mut rows) = (self.clone(), Vec::new());
        if catalog.next_price_change().is_none_or(|change| change > now) {
            // The columns have the prices of this time too.
            catalog.time = catalog.time.max(now);
        }
        for (item, vectors) in items {
            let next = ItemKey(REQUEST_KEY_FIRST + catalog.rows_of_request.len() as u32);
            let key = keys.get(&item.id).unwrap_or(next);
            let item = if viewer.is_empty() { item } else { Arc::new(item.for_viewer(viewer)) };
            let row = catalog.put(key, item, vectors, true);
            if catalog.view.is_some() {
                catalog.written_in_view.insert(row);
            }
            rows.push(row);
        }
        (catalog, rows)
    }

    /// Adds an item, or replaces the one with the same id. Returns its row.
    pub fn upsert(&mut self, keys: &ItemKeys, item: Arc<Item>, vectors: ItemVectors) -> Row {
        self.put(keys.intern(&item.id), item, vectors, false)
    }

    fn put(&mut self, key: ItemKey, item: Arc<Item>, vectors: ItemVectors, is_of_request: bool) -> Row {
        let (group_id, offers, in_stock) = (item.group_id.clone(), offer_counts(&item), item.is_in_stock());
        let price_change = item.next_price_change(self.time).unwrap_or(NEVER);
        let known = self.last_row_of_key(key);
        let same_title = known.map(|row| self.get(row)).filter(|known| known.item.title == item.title);
        let title_normal =
            same_title.map_or_else(|| SortText::new(&normalize(&item.title)), |known| known.title_normal.clone());
        let content = self.content(key, item, vectors, title_normal);
        if let Some(known) = known {
            self.uncount_offers(known);
        }
        self.offer_item_count += offers[0];
        self.currency_offer_item_count += offers[1];
        let row = match known {
            Some(row) => {
                self.replace(row, content, self.time);
                row
            }
            None => self.push(content, is_of_request),
        };
        let of_block = &mut self.price_changes[row.index() / BLOCK_ROWS];
        *of_block = (*of_block).min(price_change);
        self.groups.set(row, Some(&group_id));
        set_bit(&mut self.offered, row, in_stock);
        self.alive_count += usize::from(!self.is_alive(row));
        set_bit(&mut self.alive, row, true);
        self.changed(row);
        row
    }

    /// Removes an item that is not deleted from the counts of offers.
    fn uncount_offers(&mut self, row: Row) {
        if self.is_alive(row) {
            let [any, in_currency] = offer_counts(&self.get(row).item);
            self.offer_item_count -= any;
            self.currency_offer_item_count -= in_currency;
        }
    }

    /// Notes that a row changed.
    fn changed(&mut self, row: Row) {
        self.version = Version::next();
        self.block_versions[row.index() / BLOCK_ROWS] = self.version;
    }

    /// Replaces the columns of a block by those that a viewer sees.
    pub(crate) fn set_view_columns(&mut self, block: usize, columns: Columns) {
        let first = block * (BLOCK_ROWS / 64);
        let words = self.offered.iter_mut().zip(&self.alive).skip(first);
        words.zip(columns.in_stock()).for_each(|((offered, alive), in_stock)| *offered = alive & in_stock);
        self.columns[block] = columns;
    }

    /// Deletes an item. Returns its row, or none if the item does not exist.
    pub fn delete(&mut self, keys: &ItemKeys, id: &ItemId) -> Option<Row> {
        let row = self.row_of(keys, id)?;
        self.uncount_offers(row);
        self.groups.set(row, None);
        set_bit(&mut self.offered, row, false);
        set_bit(&mut self.alive, row, false);
        self.alive_count -= 1;
        self.changed(row);
        Some(row)
    }

    /// Replaces the content of a row, whose columns have the values of a time.
    fn replace(&mut self, row: Row, content: CatalogRow, time: UnixMillis) {
        // In a view, the columns have the values that the viewer sees.
        let known = self.get(row).item.clone();
        let columns = &mut self.columns[row.index() / BLOCK_ROWS];
        columns.replace(row.index() % BLOCK_ROWS, (&known, time), (&content.item, self.time));
        Arc::make_mut(&mut self.chunks[row.index() / CHUNK_ROWS])[row.index() % CHUNK_ROWS] = content;
    }

    fn push(&mut self, content: CatalogRow, is_of_request: bool) -> Row {
        if self.row_count.is_multiple_of(CHUNK_ROWS) {
            self.chunks.push(Arc::default());
        }
        if self.row_count.is_multiple_of(BLOCK_ROWS) {
            self.columns.push(Columns::default());
            self.price_changes.push(NEVER);
            self.block_versions.push(Version::default());
        }
        let row = Row(self.row_count as u32);
        let key = content.key.0 as usize;
        if content.key.0 >= REQUEST_KEY_FIRST {
            self.rows_of_request.push(row);
        } else {
            let row_of_key = Arc::make_mut(&mut self.row_of_key);
            if row_of_key.len() <= key {
                row_of_key.resize(key + 1, NO_ROW);
            }
            row_of_key[key] = row.0;
        }
        match is_of_request {
            true => self.keys_of_request.push(content.key),
            false => Arc::make_mut(&mut self.keys).push(content.key),
        }
        let columns = &mut self.columns[row.index() / BLOCK_ROWS];
        columns.add(row.index() % BLOCK_ROWS, &content.item, self.time, &mut CategoryLabels::default());
        Arc::make_mut(&mut self.chunks[row.index() / CHUNK_ROWS]).push(content);
        self.row_count += 1;
        if self.alive.len() * 64 <= row.index() {
            self.alive.push(0);
            self.offered.push(0);
        }
        row
    }
}

/// A block of the rows of new items.
struct Block {
    chunks: Vec<Arc<Vec<CatalogRow>>>,
    columns: Columns,
    alive: Vec<u64>,
    offered: Vec<u64>,
    price_change: UnixMillis,
    offer_counts: [usize; 2],
}

impl Block {
    /// `rows` have the values of a time.
    fn of(rows: Vec<CatalogRow>, time: UnixMillis, labels: &mut CategoryLabels) -> Self {
        let words = rows.len().div_ceil(64);
        let mut block = Self {
            chunks: Vec::with_capacity(rows.len().div_ceil(CHUNK_ROWS)),
            columns: Columns::default(),
            alive: vec![0; words],
            offered: vec![0; words],
            price_change: NEVER,
            offer_counts: [0; 2],
        };
        for (at, CatalogRow { item, .. }) in rows.iter().enumerate() {
            block.columns.add(at, item, time, labels);
            set_bit(&mut block.alive, Row(at as u32), true);
            set_bit(&mut block.offered, Row(at as u32), item.is_in_stock());
            block.price_change = block.price_change.min(item.next_price_change(time).unwrap_or(NEVER));
            let [any, in_currency] = offer_counts(item);
            block.offer_counts = [block.offer_counts[0] + any, block.offer_counts[1] + in_currency];
        }
        let mut rows = rows.into_iter();
        while rows.len() > 0 {
            block.chunks.push(Arc::new(rows.by_ref().take(CHUNK_ROWS).collect()));
        }
        block
    }
}

/// Returns 1 for an item with offers, otherwise 0, and the same for offers that name a currency.
fn offer_counts(item: &Item) -> [usize; 2] {
    [!item.offers.is_empty(), item.offers.iter().any(|offer| !offer.key.currency.is_empty())].map(usize::from)
}

fn set_bit(bits: &mut [u64], row: Row, value: bool) {
    let bit = 1 << (row.index() % 64);
    let word = &mut bits[row.index() / 64];
    *word = if value { *word | bit } else { *word & !bit };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{AttributeValue, Availability, Field};
    use lodestone_core::units::PriceMicros;
    use rand::{Rng, SeedableRng, rngs::StdRng};

    fn item(id: &str, title: &str) -> Arc<Item> {
        Arc::new(Item::titled(ItemId::parse(id).unwrap(), title))
    }

    fn vectors() -> ItemVectors {
        ItemVectors::new(&[0.0; 3], &[0.0; 2])
    }

    fn alive(catalog: &Catalog) -> usize {
        (0..catalog.row_count() as u32).filter(|row| catalog.is_alive(Row(*row))).count()
    }

    #[test]
    fn the_spaces_of_an_item_may_have_different_dimensions() {
        let vectors = ItemVectors::new(&[1.0, 2.0, 3.0], &[4.0, 5.0]);
        assert_eq!((vectors.user_space(), vectors.query_space()), (&[1.0, 2.0, 3.0][..], &[4.0, 5.0][..]));
        let shared: Vec<ItemVectors> = ItemVectors::of_bundle((1..=6).map(|n| n as f32).collect(), 2, 1).collect();
        assert_eq!(shared.len(), 2);
        assert_eq!((shared[0].user_space(), shared[0].query_space()), (&[1.0, 2.0][..], &[3.0][..]));
        assert_eq!((shared[1].user_space(), shared[1].query_space()), (&[4.0, 5.0][..], &[6.0][..]));
    }

    #[test]
    fn a_replaced_item_keeps_its_row_and_older_snapshots_are_unchanged() {
        let keys = ItemKeys::default();
        let mut catalog = Catalog::default();
        let id = ItemId::parse("a").unwrap();
        let row = catalog.upsert(&keys, item("a", "old"), vectors());
        catalog.upsert(&keys, item("b", "other"), vectors());
        let before = catalog.clone();
        assert_eq!(catalog.upsert(&keys, item("a", "new"), vectors()), row);
        let added = catalog.upsert(&keys, item("c", "added"), vectors());

        assert_eq!(catalog.row_of(&keys, &id), Some(row));
        assert_eq!((catalog.item_count(), catalog.row_count()), (3, 3));
        assert_eq!(catalog.get(row).item.title, "new");
        assert_eq!(before.get(row).item.title, "old");
        assert!(!before.is_alive(added), "an older snapshot does not contain newer rows");
    }

    #[test]
    fn a_deleted_item_can_be_added_again_and_gets_its_row_back() {
        let keys = ItemKeys::default();
        let mut catalog = Catalog::default();
        let id = ItemId::parse("a").unwrap();
        let row = catalog.upsert(&keys, item("a", "one"), vectors());
        assert_eq!(catalog.delete(&keys, &id), Some(row));
        assert_eq!(catalog.delete(&keys, &id), None);
        assert_eq!((alive(&catalog), catalog.item_count(), catalog.row_of(&keys, &id)), (0, 0, None));
        assert_eq!(catalog.upsert(&keys, item("a", "again"), vectors()), row);
        assert_eq!((alive(&catalog), catalog.item_count(), catalog.row_of(&keys, &id)), (1, 1, Some(row)));
    }

    #[test]
    fn rows_beyond_the_first_chunk_are_addressable() {
        let keys = ItemKeys::default();
        let mut catalog = Catalog::default();
        for n in 0..3000 {
            let row = catalog.upsert(&keys, item(&format!("i{n}"), &format!("title {n}")), vectors());
            assert_eq!((row.index(), &*catalog.get(row).item.title), (n, &*format!("title {n}")));
        }
    }

    #[test]
    fn the_items_of_a_request_are_in_its_catalogue_alone() {
        let keys = ItemKeys::default();
        let mut catalog = Catalog::default();
        catalog.upsert(&keys, item("a", "a"), vectors());
        let viewed = keys.intern_for_event(&ItemId::parse("viewed").unwrap());
        let sent = ["viewed", "new"].map(|id| (item(id, id), vectors()));
        let (of_request, rows) = catalog.with_items(&keys, &OfferKey::default(), UnixMillis(0), sent);
        assert_eq!((of_request.item_count(), catalog.item_count(), keys.len()), (3, 1, 2));
        assert_eq!(of_request.key_of(rows[0]), viewed);
        for (row, id) in rows.into_iter().zip(["viewed", "new"]) {
            assert_eq!(of_request.get(row).item.id.as_str(), id);
            assert_eq!(of_request.row_of_key(of_request.key_of(row)), Some(row));
            assert_eq!(catalog.row_of_key(of_request.key_of(row)), None);
        }
    }

    #[test]
    fn a_written_item_has_prepared_values_of_its_new_content() {
        let keys = ItemKeys::default();
        let mut catalog = Catalog::preparing([PreparedField::Number(Field::Price)], UnixMillis(0));
        let priced = |price: i64| {
            let item = Item::titled(ItemId::parse("a").unwrap(), "a");
            Arc::new(Item { price: PriceMicros::new(price * 1_000_000), ..item })
        };
        for price in [2, 5] {
            let row = catalog.upsert(&keys, priced(price), vectors());
            assert_eq!(*catalog.get(row).prepared, [PreparedValue::Number(Some(price as f32))]);
        }
    }

    fn random_item(random: &mut StdRng, id: usize) -> Item {
        let mut item = Item::titled(ItemId::parse(&format!("i{id}")).unwrap(), "title");
        item.brand = ["Acme", "acme", "Öko", ""][random.random_range(0..4)].to_owned();
        item.categories = (0..random.random_range(0..3)).map(|n| format!("C{} > D{}", n, n + id % 2)).collect();
        item.tags = (0..random.random_range(0..3)).map(|_| format!("t{}", random.random_range(0..3))).collect();
        item.price = random.random_bool(0.8).then(|| PriceMicros::new(random.random_range(0..9) * 1_000_000).unwrap());
        item.stock_quantity = [None, Some(0), Some(3)][random.random_range(0..3)];
        item.stated_availability = Availability::ALL.get(random.random_range(0..9)).copied();
        if random.random_bool(0.3) {
            let mut price = || PriceMicros::new(random.random_range(0..9) * 1_000_000);
            (item.sale_price, item.cost) = (price(), price());
            let mut time = || random.random_bool(0.7).then(|| UnixMillis(random.random_range(0..1000)));
            (item.sale_start, item.sale_end) = (time(), time());
        }
        item.created_at = random.random_bool(0.5).then(|| UnixMillis(random.random_range(0..5) * UnixMillis::DAY));
        let values =
            [AttributeValue::Flag(random.random()), AttributeValue::Number(1.0), AttributeValue::Text("red".into())];
        if random.random_bool(0.7) {
            item.attributes.insert("a".to_owned(), values[random.random_range(0..3)].clone());
        }
        item
    }

    /// Thousands of random writes, while sales begin and end, lead to the same matches as one load of the remaining items
    /// at the end.
    #[test]
    fn filters_match_after_many_writes_as_after_a_fresh_load() {
        const ITEMS: usize = 2500;
        let (mut random, keys) = (StdRng::seed_from_u64(1), ItemKeys::default());
        let prepared = || [PreparedField::Number(Field::Price), PreparedField::Number(Field::Margin)];
        let (mut catalog, mut items) = (Catalog::preparing(prepared(), UnixMillis(0)), vec![None; ITEMS]);
        for write in 0..4 * ITEMS {
            let id = if write < ITEMS { write } else { random.random_range(0..ITEMS) };
            let item = random_item(&mut random, id);
            if random.random_bool(0.1) {
                catalog.delete(&keys, &item.id);
                items[id] = None;
            } else {
                catalog.upsert(&keys, Arc::new(item.clone()), vectors());
                items[id] = Some(item);
            }
            if write % 100 == 0 {
                let before = catalog.clone();
                catalog = catalog.at_time(UnixMillis(write as i64 / 20)).unwrap_or(catalog);
                assert_eq!(before.next_price_change() == catalog.next_price_change(), before.time == catalog.time);
            }
        }
        let remaining: Vec<Item> = items.into_iter().flatten().collect();
        let of_items = remaining.iter().map(|item| keys.intern(&item.id)).collect();
        let fresh =
            Catalog::of_items(prepared(), catalog.time(), of_items, remaining, |rows| vec![vectors(); rows.len()]);
        assert!(catalog.row_count() <= ITEMS);
        assert_eq!(catalog.item_count(), fresh.item_count());
        let ids = |catalog: &Catalog, rows: &[u64]| {
            let mut ids: Vec<String> =
                bits::ones(rows, 0).map(|row| catalog.get(Row(row as u32)).item.id.to_string()).collect();
            ids.sort();
            ids
        };
        assert_eq!(ids(&catalog, catalog.offered()), ids(&fresh, fresh.offered()));
        let dated = |catalog: &Catalog| {
            let values = bits::ones(catalog.alive(), 0).map(|row| {
                let row = catalog.get(Row(row as u32));
                (row.item.id.to_string(), row.log_price.to_bits(), format!("{:?}", row.prepared))
            });
            values.collect::<std::collections::BTreeSet<_>>()
        };
        assert_eq!(dated(&catalog), dated(&fresh));
        for text in [
            "brand = \"acme\"",
            "brand != \"acme\"",
            "category = \"c1\"",
            "tags HAS \"t1\"",
            "NOT tags = \"t1\"",
            "price < 3",
            "price >= 8",
            "price != 4",
            "original_price < 5",
            "discount > 0.3",
            "margin < 0",
            "availability IN (\"preorder\", \"out of stock\")",
            "category = \"c1 > d2\"",
            "stock_quantity > 0",
            "in_stock = true",
            "attributes.a = true",
            "attributes.a = 1",
            "attributes.a = \"red\"",
            "create_time < \"1970-01-03T00:00:00Z\"",
        ] {
            let filter = Filter::parse(text).unwrap();
            let (found, expected) =
                (catalog.matching(&filter, catalog.alive()), fresh.matching(&filter, fresh.alive()));
            let (found, expected) = (ids(&catalog, &found), ids(&fresh, &expected));
            assert_eq!(found, expected, "{text}");
        }
    }
}
