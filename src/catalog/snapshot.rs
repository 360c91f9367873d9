//! The catalogue as one request sees it.
use super::{Item, ItemKeys};
use crate::ids::{ItemId, ItemKey, Row};
use std::sync::Arc;

/// Dimensions of every learned vector: items, persons, queries.
pub const VECTOR_DIM: usize = 64;

/// The learned vectors of one item, each of [`VECTOR_DIM`] and length 1.
#[derive(Debug, Clone, PartialEq)]
pub struct ItemVectors {
    /// In the space of the person's vector.
    pub person_space: Vec<f32>,
    /// In the space of the query's vector: the encoded title.
    pub query_space: Vec<f32>,
}

const ROWS_PER_CHUNK: usize = 1024;
const NO_ROW: u32 = u32::MAX;

/// Items by row. A write makes a new snapshot that shares all but the touched chunks; a replaced or deleted item
/// leaves its row behind, dead, so that rows of the graphs stay true.
#[derive(Clone, Default)]
pub struct Catalog {
    chunks: Vec<Arc<Vec<CatalogRow>>>,
    alive: Vec<u64>,
    row_of_key: Arc<Vec<u32>>,
    row_count: usize,
    alive_count: usize,
}

/// One item with what retrieval and features read of it.
#[derive(Clone)]
pub struct CatalogRow {
    pub item: Arc<Item>,
    pub key: ItemKey,
    pub vectors: Arc<ItemVectors>,
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
        &self.chunks[row.index() / ROWS_PER_CHUNK][row.index() % ROWS_PER_CHUNK]
    }

    /// True for a row of this snapshot whose item was neither replaced nor deleted since.
    pub fn is_alive(&self, row: Row) -> bool {
        self.alive.get(row.index() / 64).is_some_and(|word| word >> (row.index() % 64) & 1 == 1)
    }

    /// Alive and in stock.
    pub fn is_offered(&self, row: Row) -> bool {
        self.is_alive(row) && self.get(row).item.is_in_stock()
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

    /// All alive rows.
    pub fn rows(&self) -> impl Iterator<Item = Row> + '_ {
        (0..self.row_count as u32).map(Row).filter(|&row| self.is_alive(row))
    }

    /// Adds items, or replaces those with the same id. Gives the rows that they got, in order.
    pub fn upsert(&mut self, keys: &ItemKeys, items: Vec<(Arc<Item>, Arc<ItemVectors>)>) -> Vec<Row> {
        let mut rows = Vec::with_capacity(items.len());
        for (item, vectors) in items {
            let key = keys.intern(&item.id);
            self.kill(key);
            let row = self.push(CatalogRow { item, key, vectors });
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
        if self.row_count.is_multiple_of(ROWS_PER_CHUNK) {
            self.chunks.push(Arc::new(Vec::with_capacity(ROWS_PER_CHUNK)));
        }
        let last = self.chunks.last_mut().expect("a chunk was pushed above");
        Arc::make_mut(last).push(content);
        let row = self.row_count;
        self.row_count += 1;
        self.alive_count += 1;
        if self.alive.len() * 64 <= row {
            self.alive.push(0);
        }
        self.alive[row / 64] |= 1 << (row % 64);
        Row(row as u32)
    }

    fn kill(&mut self, key: ItemKey) -> bool {
        let Some(row) = self.row_of_key(key) else {
            return false;
        };
        Arc::make_mut(&mut self.row_of_key)[key.0 as usize] = NO_ROW;
        self.alive[row.index() / 64] &= !(1 << (row.index() % 64));
        self.alive_count -= 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(id: &str, title: &str) -> (Arc<Item>, Arc<ItemVectors>) {
        let vectors = ItemVectors { person_space: vec![0.0; VECTOR_DIM], query_space: vec![0.0; VECTOR_DIM] };
        (Arc::new(Item::titled(ItemId::parse(id).unwrap(), title)), Arc::new(vectors))
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
        assert_eq!(catalog.rows().count(), 0);
        catalog.upsert(&keys, vec![item("a", "again")]);
        assert_eq!(catalog.rows().count(), 1);
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
