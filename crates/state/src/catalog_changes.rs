//! Catalogue changes since the bundles were trained, for generations that load later.
use ahash::AHashMap;
use lodestone_catalog::Item;
use lodestone_core::ids::ItemId;
use std::{collections::BTreeMap, sync::Arc};

/// The last change of an item: its new content, or none if it was deleted.
pub type ItemChange = (ItemId, Option<Arc<Item>>);

/// The last change of each item that was written or deleted, in the order of the changes. A generation that has applied
/// all changes up to a version fetches those after it.
#[derive(Default)]
pub struct CatalogChanges {
    by_version: BTreeMap<u64, ItemChange>,
    version_of: AHashMap<ItemId, u64>,
    version: u64,
}

impl CatalogChanges {
    /// Records a change, which replaces the item's earlier change.
    pub fn record(&mut self, (id, item): ItemChange) {
        self.version += 1;
        if let Some(before) = self.version_of.insert(id.clone(), self.version) {
            self.by_version.remove(&before);
        }
        self.by_version.insert(self.version, (id, item));
    }

    /// Returns the last change of an item: its content, or none if it was deleted. None without a change.
    pub fn last(&self, id: &ItemId) -> Option<Option<&Item>> {
        let (_, item) = self.by_version.get(self.version_of.get(id)?)?;
        Some(item.as_deref())
    }

    /// Returns the version of the last change, or 0 if there is none.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Returns the changes after a version, oldest first, at most `count`, and the version after applying them.
    pub fn after(&self, version: u64, count: usize) -> (Vec<ItemChange>, u64) {
        let changes: Vec<(u64, ItemChange)> = self
            .by_version
            .range(version + 1..)
            .take(count)
            .map(|(version, change)| (*version, change.clone()))
            .collect();
        let reached = match changes.len() < count {
            // A replaced change has no entry, so the last version may have none.
            true => self.version,
            false => changes.last().map_or(version, |(version, _)| *version),
        };
        (changes.into_iter().map(|(_, change)| change).collect(), reached)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(id: &str) -> ItemId {
        ItemId::parse(id).unwrap()
    }

    fn written(text: &str) -> ItemChange {
        (id(text), Some(Arc::new(Item::titled(id(text), text))))
    }

    #[test]
    fn only_the_last_change_of_an_item_remains() {
        let mut changes = CatalogChanges::default();
        changes.record(written("a"));
        changes.record(written("b"));
        changes.record((id("a"), None));
        let (after, reached) = changes.after(0, 10);
        assert_eq!(
            after.iter().map(|(id, item)| (id.to_string(), item.is_some())).collect::<Vec<_>>(),
            [("b".to_owned(), true), ("a".to_owned(), false)]
        );
        assert_eq!(reached, 3);
        assert_eq!(changes.last(&id("b")).map(|item| item.map(|item| item.title.as_str())), Some(Some("b")));
        assert_eq!((changes.last(&id("a")), changes.last(&id("c"))), (Some(None), None));
        assert_eq!(changes.after(3, 10).0.len(), 0);
    }

    #[test]
    fn changes_are_returned_in_parts() {
        let mut changes = CatalogChanges::default();
        for text in ["a", "b", "c", "a"] {
            changes.record(written(text));
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
