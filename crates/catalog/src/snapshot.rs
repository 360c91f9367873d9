//! Copy-on-write snapshots of the catalogue. A request reads one snapshot.
use super::{
    Filter, Item, ItemKeys,
    filter::{BLOCK_ROWS, Columns, Mask},
};
use lodestone_core::{
    bits,
    ids::{ItemId, ItemKey, Row},
    units::UnixMillis,
};
use std::sync::Arc;

/// The dimensions of the user space, in which users and items are compared. The dimensions of the query space depend on
/// the query encoder.
pub const VECTOR_DIM: usize = 64;

/// The learned vectors of one item, each of norm 1, in one allocation.
#[derive(Debug, Clone, PartialEq)]
pub struct ItemVectors(Arc<[f32]>);

impl ItemVectors {
    /// Concatenates the vectors. `user_space` has [`VECTOR_DIM`] dimensions, `query_space` those of the query encoder.
    pub fn new(user_space: &[f32], query_space: &[f32]) -> Self {
        assert_eq!(user_space.len(), VECTOR_DIM, "the user space has {VECTOR_DIM} dimensions");
        Self(user_space.iter().chain(query_space).copied().collect())
    }

    /// Returns the vector that is compared with user vectors: `[VECTOR_DIM]`.
    pub fn user_space(&self) -> &[f32] {
        &self.0[..VECTOR_DIM]
    }

    /// Returns the vector that is compared with query vectors: the encoded title.
    pub fn query_space(&self) -> &[f32] {
        &self.0[VECTOR_DIM..]
    }
}

const NO_ROW: u32 = u32::MAX;

/// Items by row. A write creates a snapshot that shares all unchanged chunks with the previous one. The row of a
/// replaced or deleted item stays, marked dead, so that the rows in the ANN graphs stay valid.
#[derive(Clone, Default)]
pub struct Catalog {
    chunks: Vec<Arc<Chunk>>,
    alive: Vec<u64>,
    /// Rows that are alive and in stock.
    offered: Vec<u64>,
    row_of_key: Arc<Vec<u32>>,
    row_count: usize,
    alive_count: usize,
}

#[derive(Clone, Default)]
struct Chunk {
    /// [`BLOCK_ROWS`] rows; fewer in the last chunk.
    rows: Vec<CatalogRow>,
    /// Set when the chunk is full. Its rows no longer change then, because rows are only appended.
    columns: Option<Columns>,
}

/// One item with its vectors and the values that retrieval and features read.
#[derive(Clone)]
pub struct CatalogRow {
    pub item: Arc<Item>,
    pub key: ItemKey,
    pub vectors: ItemVectors,
    /// ln(1 + price); 0 without a price. Copied so that features do not dereference the item.
    pub log_price: f32,
    /// Copied for the same reason.
    pub created_at: Option<UnixMillis>,
}

impl Catalog {
    pub fn row_count(&self) -> usize {
        self.row_count
    }

    /// Returns the number of items that are not deleted or replaced.
    pub fn item_count(&self) -> usize {
        self.alive_count
    }

    /// Returns the content of a row, also of a dead one.
    pub fn get(&self, row: Row) -> &CatalogRow {
        &self.chunks[row.index() / BLOCK_ROWS].rows[row.index() % BLOCK_ROWS]
    }

    /// Returns true for a row of this snapshot whose item was neither replaced nor deleted.
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
        let mut matching = Vec::with_capacity(self.chunks.len() * words);
        for (chunk, among) in self.chunks.iter().zip(among.chunks(words)) {
            let mut mask: Mask = [0; BLOCK_ROWS / 64];
            mask[..among.len()].copy_from_slice(among);
            matching.extend(filter.mask(chunk.columns.as_ref(), &|index| &*chunk.rows[index].item, mask));
        }
        matching
    }

    pub fn row_of_key(&self, key: ItemKey) -> Option<Row> {
        match self.row_of_key.get(key.0 as usize) {
            Some(&row) if row != NO_ROW => Some(Row(row)),
            _ => None,
        }
    }

    pub fn row_of(&self, keys: &ItemKeys, id: &ItemId) -> Option<Row> {
        self.row_of_key(keys.get(id)?)
    }

    /// Adds items and replaces those with the same id. Returns the new rows in the order of `items`.
    pub fn upsert(&mut self, keys: &ItemKeys, items: Vec<(Arc<Item>, ItemVectors)>) -> Vec<Row> {
        let mut rows = Vec::with_capacity(items.len());
        for (item, vectors) in items {
            let key = keys.intern(&item.id);
            self.mark_dead(key);
            let log_price = item.price.map_or(0.0, |price| (price.units() as f32).ln_1p());
            let created_at = item.created_at;
            let row = self.push(CatalogRow { item, key, vectors, log_price, created_at });
            let row_of_key = Arc::make_mut(&mut self.row_of_key);
            if row_of_key.len() <= key.0 as usize {
                row_of_key.resize(key.0 as usize + 1, NO_ROW);
            }
            row_of_key[key.0 as usize] = row.0;
            rows.push(row);
        }
        rows
    }

    /// Deletes an item. Returns false if the item does not exist.
    pub fn delete(&mut self, keys: &ItemKeys, id: &ItemId) -> bool {
        keys.get(id).is_some_and(|key| self.mark_dead(key))
    }

    fn push(&mut self, content: CatalogRow) -> Row {
        if self.row_count.is_multiple_of(BLOCK_ROWS) {
            self.chunks.push(Arc::default());
        }
        let in_stock = content.item.is_in_stock();
        let last = self.chunks.last_mut().expect("a chunk was pushed above");
        let chunk = Arc::make_mut(last);
        chunk.rows.push(content);
        if chunk.rows.len() == BLOCK_ROWS {
            chunk.columns = Some(Columns::of(chunk.rows.iter().map(|row| &*row.item)));
        }
        let row = self.row_count;
        self.row_count += 1;
        self.alive_count += 1;
        if self.alive.len() * 64 <= row {
            self.alive.push(0);
            self.offered.push(0);
        }
        self.alive[row / 64] |= 1 << (row % 64);
        if in_stock {
            self.offered[row / 64] |= 1 << (row % 64);
        }
        Row(row as u32)
    }

    fn mark_dead(&mut self, key: ItemKey) -> bool {
        let Some(row) = self.row_of_key(key) else {
            return false;
        };
        Arc::make_mut(&mut self.row_of_key)[key.0 as usize] = NO_ROW;
        self.offered[row.index() / 64] &= !(1 << (row.index() % 64));
        self.alive[row.index() / 64] &= !(1 << (row.index() % 64));
        self.alive_count -= 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(id: &str, title: &str) -> (Arc<Item>, ItemVectors) {
        let vectors = ItemVectors::new(&[0.0; VECTOR_DIM], &[0.0; VECTOR_DIM]);
        (Arc::new(Item::titled(ItemId::parse(id).unwrap(), title)), vectors)
    }

    fn alive(catalog: &Catalog) -> usize {
        (0..catalog.row_count() as u32).filter(|row| catalog.is_alive(Row(*row))).count()
    }

    #[test]
    fn replacing_an_item_adds_a_row_and_leaves_older_snapshots_unchanged() {
        let keys = ItemKeys::default();
        let mut catalog = Catalog::default();
        let id = ItemId::parse("a").unwrap();
        let before_rows = catalog.upsert(&keys, vec![item("a", "old"), item("b", "other")]);
        let before = catalog.clone();
        let after_rows = catalog.upsert(&keys, vec![item("a", "new")]);

        assert!(!catalog.is_alive(before_rows[0]));
        assert_eq!(catalog.row_of(&keys, &id), Some(after_rows[0]));
        assert_eq!(catalog.item_count(), 2);
        assert_eq!(before.get(before.row_of(&keys, &id).unwrap()).item.title, "old");
        assert!(!before.is_alive(after_rows[0]), "an older snapshot does not contain newer rows");
    }

    #[test]
    fn a_deleted_item_can_be_added_again() {
        let keys = ItemKeys::default();
        let mut catalog = Catalog::default();
        let id = ItemId::parse("a").unwrap();
        catalog.upsert(&keys, vec![item("a", "one")]);
        assert!(catalog.delete(&keys, &id));
        assert!(!catalog.delete(&keys, &id));
        assert_eq!(alive(&catalog), 0);
        catalog.upsert(&keys, vec![item("a", "again")]);
        assert_eq!(alive(&catalog), 1);
    }

    #[test]
    fn rows_beyond_the_first_chunk_are_addressable() {
        let keys = ItemKeys::default();
        let mut catalog = Catalog::default();
        let items = (0..3000).map(|n| item(&format!("i{n}"), &format!("title {n}"))).collect();
        let rows = catalog.upsert(&keys, items);
        for (n, row) in rows.into_iter().enumerate() {
            assert_eq!(catalog.get(row).item.title, format!("title {n}"));
        }
    }
}
