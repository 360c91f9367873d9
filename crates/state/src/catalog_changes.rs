//! Catalogue changes since the bundles were trained, for generations that load later.
use ahash::AHashMap;
use lodestone_catalog::{ItemChange, ItemState, WriteEffect};
use lodestone_core::ids::ItemId;
use std::collections::BTreeMap;

/// The state of each item that was written or deleted, in the order of the last changes. A generation that has applied
/// all changes up to a version fetches those after it.
#[derive(Default)]
pub struct CatalogChanges {
    by_version: BTreeMap<u64, (ItemId, ItemState)>,
    version_of: AHashMap<ItemId, u64>,
    version: u64,
}

impl CatalogChanges {
    /// Applies a change to the state of its item.
    pub fn apply(&mut self, change: &ItemChange) -> WriteEffect {
        let mut state = self.state(change.id()).cloned();
        let effect = ItemState::apply(&mut state, change);
        if let (WriteEffect::Applied { .. }, Some(state)) = (&effect, state) {
            self.set(change.id().clone(), state);
        }
        effect
    }

    /// Replaces the state of an item.
    pub fn set(&mut self, id: ItemId, state: ItemState) {
        self.version += 1;
        if let Some(before) = self.version_of.insert(id.clone(), self.version) {
            self.by_version.remove(&before);
        }
        self.by_version.insert(self.version, (id, state));
    }

    /// Returns the state of an item; none without a change.
    pub fn state(&self, id: &ItemId) -> Option<&ItemState> {
        self.by_version.get(self.version_of.get(id)?).map(|(_, state)| state)
    }

    /// Returns the version of the last change, or 0 if there is none.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Returns the states of items that changed after a version, the one that changed first before others, at most
    /// `count`, and the version after applying them.
    pub fn after(&self, version: u64, count: usize) -> (Vec<(ItemId, ItemState)>, u64) {
        let changes: Vec<(u64, &(ItemId, ItemState))> =
            self.by_version.range(version + 1..).take(count).map(|(version, changed)| (*version, changed)).collect();
        let reached = match changes.len() < count {
            // A replaced state has no entry, so the last version may have none.
            true => self.version,
            false => changes.last().map_or(version, |(version, _)| *version),
        };
        (changes.into_iter().map(|(_, changed)| changed.clone()).collect(), reached)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lodestone_catalog::{Item, ItemWrite, WriteTime};
    use lodestone_core::units::UnixMillis;

    fn id(id: &str) -> ItemId {
        ItemId::parse(id).unwrap()
    }

    fn written(text: &str) -> ItemChange {
        let time = WriteTime::Received(UnixMillis(1));
        ItemChange::Write(Box::new(ItemWrite::of_all(Item::titled(id(text), text), time)))
    }

    #[test]
    fn only_the_last_state_of_an_item_remains() {
        let mut changes = CatalogChanges::default();
        changes.apply(&written("a"));
        changes.apply(&written("b"));
        changes.apply(&ItemChange::Delete { id: id("a"), time: WriteTime::Received(UnixMillis(2)) });
        let (after, reached) = changes.after(0, 10);
        let exists = |(id, state): &(ItemId, ItemState)| (id.to_string(), state.content(None).is_some());
        assert_eq!(after.iter().map(exists).collect::<Vec<_>>(), [("b".to_owned(), true), ("a".to_owned(), false)]);
        assert_eq!(reached, 3);
        assert_eq!(changes.state(&id("a")), Some(&ItemState::Deleted { at: UnixMillis(2) }));
        assert_eq!(changes.state(&id("c")), None);
        assert_eq!(changes.after(3, 10).0.len(), 0);
    }

    #[test]
    fn changes_are_returned_in_parts() {
        let mut changes = CatalogChanges::default();
        for text in ["a", "b", "c", "a"] {
            changes.apply(&written(text));
        }
        let (mut version, mut taken) = (0, Vec::new());
        while version < changes.version() {
            let (part, reached) = changes.after(version, 2);
            taken.extend(part.into_iter().map(|(id, _)| id.to_string()));
            version = reached;
        }
        assert_eq!(taken, ["b", "c", "a"]);
    }
}
