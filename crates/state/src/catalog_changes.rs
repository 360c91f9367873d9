//! What the shop changed in its catalogue since the bundles were made, for generations that come later.
use ahash::AHashMap;
use lodestone_catalog::Item;
use lodestone_core::ids::ItemId;
use std::{collections::BTreeMap, sync::Arc};

/// An item's last word: as it was written, or none for a deleted one.
pub type ItemChange = (ItemId, Option<Arc<Item>>);

/// The last change of each item that was written or deleted, in the order of the changes. A generation that has taken all
/// changes up to a version asks for those after it.
#[derive(Default)]
pub struct CatalogChanges {
    by_version: BTreeMap<u64, ItemChange>,
    version_of: AHashMap<ItemId, u64>,
    version: u64,
}

impl CatalogChanges {
    /// Notes a change, which takes the place of the item's earlier one.
    pub fn note(&mut self, (id, item): ItemChange) {
        self.version += 1;
        if let Some(before) = self.version_of.insert(id.clone(), self.version) {
            self.by_version.remove(&before);
        }
        self.by_version.insert(self.version, (id, item));
    }

    /// The version of the last change; 0 before any.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The changes after a version, oldest first, at most `count`, and the version that they lead to.
    pub fn after(&self, version: u64, count: usize) -> (Vec<ItemChange>, u64) {
        let found: Vec<(u64, ItemChange)> = self
            .by_version
            .range(version + 1..)
            .take(count)
            .map(|(version, change)| (*version, change.clone()))
            .collect();
        let reached = match found.len() < count {
            // Versions of changes that were replaced are gone.
            true => self.version,
            false => found.last().map_or(version, |(version, _)| *version),
        };
        (found.into_iter().map(|(_, change)| change).collect(), reached)
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
    fn only_the_last_word_of_an_item_is_kept() {
        let mut changes = CatalogChanges::default();
        changes.note(written("a"));
        changes.note(written("b"));
        changes.note((id("a"), None));
        let (after, reached) = changes.after(0, 10);
        assert_eq!(
            after.iter().map(|(id, item)| (id.to_string(), item.is_some())).collect::<Vec<_>>(),
            [("b".to_owned(), true), ("a".to_owned(), false)]
        );
        assert_eq!(reached, 3);
        assert_eq!(changes.after(3, 10).0.len(), 0);
    }

    #[test]
    fn changes_can_be_taken_in_parts() {
        let mut changes = CatalogChanges::default();
        for text in ["a", "b", "c", "a"] {
            changes.note(written(text));
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
