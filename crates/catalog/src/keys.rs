//! Interning of item ids.
use dashmap::DashMap;
use lodestone_core::ids::{ItemId, ItemKey};
use parking_lot::RwLock;
use rayon::prelude::*;

/// Interns item ids as numbers. User histories store the numbers, because 4 bytes are smaller than a string.
///
/// The key of an item of a catalogue stays until the process ends. The key of an item that only events name can be
/// released. It names no item then, and becomes the key of another item only after [`ItemKeys::reuse_released`], so
/// that copies of it expire meanwhile.
#[derive(Default)]
pub struct ItemKeys {
    keys: DashMap<ItemId, ItemKey, ahash::RandomState>,
    slots: RwLock<Slots>,
}

#[derive(Default)]
struct Slots {
    /// By key.
    of_key: Vec<Slot>,
    /// Keys without an item, whose slots still have the id.
    released: Vec<ItemKey>,
    /// Keys that may be reused.
    free: Vec<ItemKey>,
}

struct Slot {
    id: Option<ItemId>,
    is_of_catalogue: bool,
}

impl ItemKeys {
    /// Returns the key of an item of a catalogue, and creates it if it does not exist.
    pub fn intern(&self, id: &ItemId) -> ItemKey {
        if let Some(key) = self.key_of_catalogue(id) {
            return key;
        }
        let entry = self.keys.entry(id.clone());
        let mut slots = self.slots.write();
        let key = *entry.or_insert_with(|| slots.create(id));
        slots.of_key[key.0 as usize].is_of_catalogue = true;
        key
    }

    /// Returns the keys of items of a catalogue, as [`ItemKeys::intern`] of each in their order.
    pub fn intern_all<'i>(&self, ids: impl IndexedParallelIterator<Item = &'i ItemId>) -> Vec<ItemKey> {
        let known: Vec<(&ItemId, Option<ItemKey>)> = ids.map(|id| (id, self.key_of_catalogue(id))).collect();
        known.into_iter().map(|(id, key)| key.unwrap_or_else(|| self.intern(id))).collect()
    }

    /// Returns the key of an item if it is known to be one of a catalogue.
    fn key_of_catalogue(&self, id: &ItemId) -> Option<ItemKey> {
        let key = self.keys.get(id)?;
        self.slots.read().of_key[key.0 as usize].is_of_catalogue.then_some(*key)
    }

    /// Returns the key of an item of an event, and creates it if it does not exist. It lasts until
    /// [`ItemKeys::release`].
    pub fn intern_for_event(&self, id: &ItemId) -> ItemKey {
        if let Some(key) = self.keys.get(id) {
            return *key;
        }
        *self.keys.entry(id.clone()).or_insert_with(|| self.slots.write().create(id))
    }

    pub fn get(&self, id: &ItemId) -> Option<ItemKey> {
        self.keys.get(id).map(|key| *key)
    }

    /// Returns the id of a key; none if the key was released some time ago.
    pub fn id(&self, key: ItemKey) -> Option<ItemId> {
        self.slots.read().of_key.get(key.0 as usize)?.id.clone()
    }

    /// Releases a key that no state holds, unless its item is one of a catalogue.
    pub fn release(&self, key: ItemKey) {
        let Some(id) = self.id(key) else { return };
        // The lock of the map is taken before that of the slots, as in `intern`.
        self.keys.remove_if(&id, |_, of_id| {
            let mut slots = self.slots.write();
            let is_released = *of_id == key && !slots.of_key[key.0 as usize].is_of_catalogue;
            if is_released {
                slots.released.push(key);
            }
            is_released
        });
    }

    /// Lets the keys that are released now become the keys of other items.
    pub fn reuse_released(&self) {
        let mut slots = self.slots.write();
        for key in std::mem::take(&mut slots.released) {
            slots.of_key[key.0 as usize].id = None;
            slots.free.push(key);
        }
    }

    /// Returns the number of keys, including those without an item.
    pub fn key_count(&self) -> usize {
        self.slots.read().of_key.len()
    }

    /// Returns the number of items that have a key.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }
}

impl Slots {
    fn create(&mut self, id: &ItemId) -> ItemKey {
        let slot = Slot { id: Some(id.clone()), is_of_catalogue: false };
        if let Some(key) = self.free.pop() {
            self.of_key[key.0 as usize] = slot;
            return key;
        }
        let key = ItemKey(u32::try_from(self.of_key.len()).expect("fewer than 2^32 items fit in memory"));
        self.of_key.push(slot);
        key
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> ItemId {
        ItemId::parse(text).unwrap()
    }

    #[test]
    fn an_id_keeps_its_key() {
        let keys = ItemKeys::default();
        let first = keys.intern(&id("a"));
        assert_ne!(first, keys.intern_for_event(&id("b")));
        assert_eq!((keys.intern(&id("a")), keys.intern_for_event(&id("a"))), (first, first));
        assert_eq!(keys.id(first), Some(id("a")));
        assert_eq!(keys.get(&id("c")), None);
        let ids = ["c", "b", "a", "d"].map(id);
        let all = keys.intern_all(ids.par_iter());
        assert_eq!(all, [2, 1, 0, 3].map(ItemKey), "in their order, whichever threads look them up");
        assert_eq!(all, ids.each_ref().map(|id| keys.intern(id)));
    }

    #[test]
    fn released_keys_are_reused_later_and_items_of_the_catalogue_keep_theirs() {
        let keys = ItemKeys::default();
        let (event, catalogue) = (keys.intern_for_event(&id("event")), keys.intern_for_event(&id("both")));
        keys.intern(&id("both"));
        keys.release(event);
        keys.release(catalogue);
        assert_eq!((keys.get(&id("event")), keys.get(&id("both"))), (None, Some(catalogue)));
        assert_eq!(keys.id(event), Some(id("event")), "a copy of the key may still be read");
        assert_ne!(keys.intern_for_event(&id("new")), event);
        keys.reuse_released();
        assert_eq!(keys.id(event), None);
        assert_eq!(keys.intern_for_event(&id("newer")), event);
        assert_eq!((keys.len(), keys.key_count()), (3, 3));
    }
}
