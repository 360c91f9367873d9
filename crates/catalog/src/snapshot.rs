//! The catalogue as one request sees it.
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

/// Dimensions of the space of users and items; that of queries has those of its encoder.
pub const VECTOR_DIM: usize = 64;

/// The learned vectors of one item, each of length 1. In one piece, so that an item is one place in memory.
#[derive(Debug, Clone, PartialEq)]
pub struct ItemVectors(Arc<[f32]>);

impl ItemVectors {
    /// `user_space` has [`VECTOR_DIM`] numbers, `query_space` as many as the query encoder gives.
    pub fn new(user_space: &[f32], query_space: &[f32]) -> Self {
        assert_eq!(user_space.len(), VECTOR_DIM, "the user's space has {VECTOR_DIM} dimensions");
        Self(user_space.iter().chain(query_space).copied().collect())
    }

    /// In the space of the user's vector: `[VECTOR_DIM]`.
    pub fn user_space(&self) -> &[f32] {
        &self.0[..VECTOR_DIM]
    }

    /// In the space of the query's vector: the encoded title.
    pub fn query_space(&self) -> &[f32] {
        &self.0[VECTOR_DIM..]
    }
}

const NO_ROW: u32 = u32::MAX;

/// Items by row. A write makes a new snapshot that shares all but the touched chunks; a replaced or deleted item
/// leaves its row behind, dead, so that rows of the graphs stay true.
#[derive(Clone, Default)]
pub struct Catalog {
    chunks: Vec<Arc<Chunk>>,
    alive: Vec<u64>,
    /// Alive and in stock.
    offered: Vec<u64>,
    row_of_key: Arc<Vec<u32>>,
    row_count: usize,
    alive_count: usize,
}

#[derive(Clone, Default)]
struct Chunk {
    /// [`BLOCK_ROWS`], in the last chunk fewer.
    rows: Vec<CatalogRow>,
    /// Of a full chunk: rows are only added, so they do not change any more.
    columns: Option<Columns>,
}

/// One item with what retrieval and features read of it.
#[derive(Clone)]
pub struct CatalogRow {
    pub item: Arc<Item>,
    pub key: ItemKey,
    pub vectors: ItemVectors,
    /// ln(1 + price); 0 without a price. Here, and the time too, so that features need not fetch the item.
    pub log_price: f32,
    pub created_at: Option<UnixMillis>,
}

impl Catalog {
    pub fn row_count(&self) -> usize {
        self.row_count
    }

    /// Items that are not deleted or replaced.
    pub fn item_count(&self) -> usize {
        self.alive_count
    }

    /// The row's content, also of a dead row.
    pub fn get(&self, row: Row) -> &CatalogRow {
        &self.chunks[row.index() / BLOCK_ROWS].rows[row.index() % BLOCK_ROWS]
    }

    /// True for a row of this snapshot whose item was neither replaced nor deleted since.
    pub fn is_alive(&self, row: Row) -> bool {
        bits::has(&self.alive, row.index())
    }

    /// One bit for each row: is it alive?
    pub fn alive(&self) -> &[u64] {
        &self.alive
    }

    /// Alive and in stock.
    pub fn is_offered(&self, row: Row) -> bool {
        bits::has(&self.offered, row.index())
    }

    /// One bit for each row: is it alive and in stock?
    pub fn offered(&self) -> &[u64] {
        &self.offered
    }

    /// Those of `among`, one bit for each row, whose items meet the filter.
    pub fn matching(&self, filter: &Filter, among: &[u64]) -> Vec<u64> {
        let words = BLOCK_ROWS / 64;
        let mut met = Vec::with_capacity(self.chunks.len() * words);
        for (chunk, among) in self.chunks.iter().zip(among.chunks(words)) {
            let mut mask: Mask = [0; BLOCK_ROWS / 64];
            mask[..among.len()].copy_from_slice(among);
            met.extend(filter.mask(chunk.columns.as_ref(), &|at| &*chunk.rows[at].item, mask));
        }
        met
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

    /// Adds items, or replaces those with the same id. Gives the rows that they got, in order.
    pub fn upsert(&mut self, keys: &ItemKeys, items: Vec<(Arc<Item>, ItemVectors)>) -> Vec<Row> {
        let mut rows = Vec::with_capacity(items.len());
        for (item, vectors) in items {
            let key = keys.intern(&item.id);
            self.kill(key);
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

    /// Deletes an item. False where there is none.
    pub fn delete(&mut self, keys: &ItemKeys, id: &ItemId) -> bool {
        keys.get(id).is_some_and(|key| self.kill(key))
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

    fn kill(&mut self, key: ItemKey) -> bool {
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
    fn a_replaced_item_gets_a_new_row_and_the_old_snapshot_keeps_the_old_one() {
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
        assert!(!before.is_alive(after_rows[0]), "an older snapshot does not know newer rows");
    }

    #[test]
    fn a_deleted_item_is_gone_and_can_come_back() {
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
    fn many_rows_stay_addressable() {
        let keys = ItemKeys::default();
        let mut catalog = Catalog::default();
        let items = (0..3000).map(|n| item(&format!("i{n}"), &format!("title {n}"))).collect();
        let rows = catalog.upsert(&keys, items);
        for (n, row) in rows.into_iter().enumerate() {
            assert_eq!(catalog.get(row).item.title, format!("title {n}"));
        }
    }
}
