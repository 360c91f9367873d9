//! Interning of item ids.
use dashmap::DashMap;
use lodestone_core::ids::{ItemId, ItemKey};
use parking_lot::RwLock;

/// Interns item ids as numbers that stay valid until the process ends. User histories store the numbers, because 4
/// bytes are smaller than a string.
#[derive(Default)]
pub struct ItemKeys {
    keys: DashMap<ItemId, ItemKey, ahash::RandomState>,
    ids: RwLock<Vec<ItemId>>,
}

impl ItemKeys {
    /// Returns the key of an item, and creates it if it does not exist.
    pub fn intern(&self, id: &ItemId) -> ItemKey {
        if let Some(key) = self.keys.get(id) {
            return *key;
        }
        *self.keys.entry(id.clone()).or_insert_with(|| {
            let mut ids = self.ids.write();
            let key = ItemKey(u32::try_from(ids.len()).expect("fewer than 2^32 items fit in memory"));
            ids.push(id.clone());
            key
        })
    }

    pub fn get(&self, id: &ItemId) -> Option<ItemKey> {
        self.keys.get(id).map(|key| *key)
    }

    /// Returns the id of a key. The key must come from this interner.
    pub fn id(&self, key: ItemKey) -> ItemId {
        self.ids.read()[key.0 as usize].clone()
    }

    pub fn len(&self) -> usize {
        self.ids.read().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_keeps_its_key() {
        let keys = ItemKeys::default();
        let (a, b) = (ItemId::parse("a").unwrap(), ItemId::parse("b").unwrap());
        let first = keys.intern(&a);
        assert_ne!(first, keys.intern(&b));
        assert_eq!(first, keys.intern(&a));
        assert_eq!(keys.id(first), a);
        assert_eq!(keys.get(&ItemId::parse("c").unwrap()), None);
    }
}
