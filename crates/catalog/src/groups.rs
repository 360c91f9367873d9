//! Groups of items: the variants of one product, such as the sizes of a shirt.
use crate::{
    Catalog, ItemKeys,
    filter::{BLOCK_ROWS, Mask},
};
use dashmap::DashMap;
use lodestone_core::{
    bits,
    ids::{ItemId, Row},
};
use std::sync::Arc;

/// Groups of one chunk, which a new or a deleted variant copies.
const CHUNK_GROUPS: usize = 256;
/// The number of a row without a group.
const NO_GROUP: u32 = u32::MAX;

/// The number of a group within one catalogue and its later snapshots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Group(u32);

impl Group {
    /// The number, from 0.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// The groups of a catalogue's rows. Snapshots share the chunks and blocks that did not change.
#[derive(Clone, Default)]
pub(crate) struct Groups {
    /// By id. A group keeps its number when its last variant is deleted, as an item keeps its row.
    numbers: Arc<DashMap<Box<str>, Group, ahash::RandomState>>,
    /// [`CHUNK_GROUPS`] groups each: the rows of a group that are not deleted, in the order of their addition.
    rows: Vec<Arc<Vec<Arc<[Row]>>>>,
    /// By block of rows: the number of each row's group. None: no row of the block has one.
    of_rows: Vec<Option<Arc<[u32; BLOCK_ROWS]>>>,
    /// Rows that are not deleted and have a group.
    row_count: usize,
}

impl Groups {
    /// Sets the group of a row; none if it has no group or is deleted.
    pub(crate) fn set(&mut self, row: Row, id: Option<&str>) {
        let new = id.filter(|id| !id.is_empty()).map(|id| self.number(id));
        let old = self.of(row);
        if old == new {
            return;
        }
        if let Some(old) = old {
            self.change(old, |rows| rows.retain(|other| *other != row));
            self.row_count -= 1;
        }
        if let Some(new) = new {
            self.change(new, |rows| rows.push(row));
            self.row_count += 1;
        }
        let block = row.index() / BLOCK_ROWS;
        if self.of_rows.len() <= block {
            self.of_rows.resize(block + 1, None);
        }
        let numbers = self.of_rows[block].get_or_insert_with(|| Arc::new([NO_GROUP; BLOCK_ROWS]));
        Arc::make_mut(numbers)[row.index() % BLOCK_ROWS] = new.map_or(NO_GROUP, |group| group.0);
    }

    /// Returns the number of a group, and creates it if it does not exist.
    fn number(&self, id: &str) -> Group {
        if let Some(group) = self.numbers.get(id) {
            return *group;
        }
        // One thread at a time writes to a catalogue, so that the number is still free.
        let next = Group(self.numbers.len() as u32);
        *self.numbers.entry(id.into()).or_insert(next)
    }

    fn change(&mut self, group: Group, change: impl FnOnce(&mut Vec<Row>)) {
        let (chunk, at) = (group.index() / CHUNK_GROUPS, group.index() % CHUNK_GROUPS);
        if self.rows.len() <= chunk {
            self.rows.resize_with(chunk + 1, Arc::default);
        }
        let groups = Arc::make_mut(&mut self.rows[chunk]);
        if groups.len() <= at {
            groups.resize_with(at + 1, || Arc::from([]));
        }
        let mut rows = groups[at].to_vec();
        change(&mut rows);
        groups[at] = rows.into();
    }

    fn of(&self, row: Row) -> Option<Group> {
        group_at(self.of_block(row.index() / BLOCK_ROWS)?, row.index() % BLOCK_ROWS)
    }

    fn of_block(&self, block: usize) -> Option<&[u32; BLOCK_ROWS]> {
        self.of_rows.get(block)?.as_deref()
    }
}

fn group_at(numbers: &[u32; BLOCK_ROWS], at: usize) -> Option<Group> {
    Some(Group(numbers[at])).filter(|group| group.0 != NO_GROUP)
}

/// The groups of the rows of a block.
#[derive(Clone, Copy)]
pub(crate) struct BlockGroups<'c>(&'c [u32; BLOCK_ROWS]);

impl BlockGroups<'_> {
    pub(crate) fn get(self, at: usize) -> Option<Group> {
        group_at(self.0, at)
    }

    /// Returns the rows of a mask that have a group, with their groups.
    pub(crate) fn of(self, mask: &Mask) -> impl Iterator<Item = (usize, Group)> {
        bits::ones(mask, 0).filter_map(move |at| Some((at, self.get(at)?)))
    }
}

impl Catalog {
    /// Returns true if an item that is not deleted has a group.
    pub fn has_groups(&self) -> bool {
        self.groups.row_count > 0
    }

    /// Returns the group of a row; none for one that is deleted.
    pub fn group_of(&self, row: Row) -> Option<Group> {
        self.groups.of(row)
    }

    /// Returns the group with an id; none if no item of this catalogue ever had it.
    pub fn group_named(&self, id: &str) -> Option<Group> {
        self.groups.numbers.get(id).map(|group| *group)
    }

    /// Returns the rows of a group that are not deleted, in the order in which the items were added.
    pub fn rows_of_group(&self, group: Group) -> &[Row] {
        let chunk = self.groups.rows.get(group.index() / CHUNK_GROUPS);
        chunk.and_then(|groups| groups.get(group.index() % CHUNK_GROUPS)).map_or(&[], |rows| rows)
    }

    /// Returns the rows that an id names: the item's or, if there is no such item, those of the group's variants.
    pub fn named_rows(&self, keys: &ItemKeys, id: &ItemId) -> impl Iterator<Item = Row> + use<'_> {
        let item = self.row_of(keys, id);
        let group = if item.is_none() { self.group_named(id.as_str()) } else { None };
        let rows = group.map_or(&[][..], |group| self.rows_of_group(group));
        item.into_iter().chain(rows.iter().copied())
    }

    /// Returns the rows of a row's group, or the row itself if it has none.
    pub fn variants_of(&self, row: Row) -> impl Iterator<Item = Row> + '_ {
        let group = self.group_of(row);
        let rows = group.map_or(&[][..], |group| self.rows_of_group(group));
        rows.iter().copied().chain(group.is_none().then_some(row))
    }

    /// Returns the number of products among the rows of a bit set: all variants of a group are one.
    pub fn product_count(&self, among: &[u64]) -> usize {
        let mut seen = SeenGroups::default();
        let mut count = 0;
        for (block, words) in among.chunks(BLOCK_ROWS / 64).enumerate() {
            count += match self.block_groups(block) {
                None => bits::count(words, words.len() * 64),
                Some(groups) => {
                    bits::ones(words, 0).filter(|at| groups.get(*at).is_none_or(|group| seen.add(group))).count()
                }
            };
        }
        count
    }

    pub(crate) fn block_groups(&self, block: usize) -> Option<BlockGroups<'_>> {
        self.groups.of_block(block).map(BlockGroups)
    }
}

/// A set of groups.
#[derive(Debug, Default)]
pub struct SeenGroups(Vec<u64>);

impl SeenGroups {
    /// Adds a group. Returns whether it was not in the set.
    pub fn add(&mut self, group: Group) -> bool {
        let (word, bit) = (group.index() / 64, 1 << (group.index() % 64));
        if self.0.len() <= word {
            self.0.resize(word + 1, 0);
        }
        let is_new = self.0[word] & bit == 0;
        self.0[word] |= bit;
        is_new
    }
}

/// Splits a mask into the rows without and with a group.
pub(crate) fn split(groups: BlockGroups, mask: &Mask) -> (Mask, Mask) {
    let (mut single, mut grouped) = (*mask, [0; BLOCK_ROWS / 64]);
    for (at, _) in groups.of(mask) {
        single[at / 64] &= !(1 << (at % 64));
        grouped[at / 64] |= 1 << (at % 64);
    }
    (single, grouped)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Field, Item, ItemKeys, ItemVectors, OrderBy, Part};
    use lodestone_core::{ids::ItemId, units::PriceMicros};
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};

    fn id(number: usize) -> ItemId {
        ItemId::parse(&format!("i{number}")).unwrap()
    }

    /// An item by number, in one of a few groups or none, with one of a few brands and prices.
    fn item(number: usize, group: usize, brand: usize, price: i64) -> Item {
        Item {
            group_id: ["", "a", "b", "c"][group].to_owned(),
            brand: ["Acme", "acme", "Zeta"][brand].to_owned(),
            price: PriceMicros::new(price * 1_000_000),
            ..Item::titled(id(number), "title")
        }
    }

    proptest! {
        /// Random writes and deletions over several blocks: everything that counts products agrees with a count of the
        /// remaining items.
        #[test]
        fn products_are_counted_once(
            writes in prop::collection::vec((0usize..1500, 0usize..4, 0usize..3, 0i64..6, prop::bool::weighted(0.2)), 1..400),
            is_descending in any::<bool>(),
        ) {
            let (keys, mut catalog, mut items) = (ItemKeys::default(), Catalog::default(), BTreeMap::new());
            // Ungrouped items fill the first block.
            for number in 0..1024 {
                catalog.upsert(&keys, Arc::new(item(number, 0, 0, 9)), ItemVectors::new(&[], &[]));
                items.insert(number, item(number, 0, 0, 9));
            }
            for (number, group, brand, price, is_deleted) in writes {
                if is_deleted {
                    catalog.delete(&keys, &id(number));
                    items.remove(&number);
                } else {
                    catalog.upsert(&keys, Arc::new(item(number, group, brand, price)), ItemVectors::new(&[], &[]));
                    items.insert(number, item(number, group, brand, price));
                }
            }
            let product = |item: &Item| if item.group_id.is_empty() { item.id.to_string() } else { item.group_id.clone() };
            let distinct = |is_counted: &dyn Fn(&&Item) -> bool| {
                items.values().filter(is_counted).map(product).collect::<BTreeSet<String>>().len()
            };
            prop_assert_eq!(catalog.product_count(catalog.alive()), distinct(&|_| true));
            prop_assert_eq!(catalog.has_groups(), items.values().any(|item| !item.group_id.is_empty()));
            for name in ["a", "b", "c"] {
                let rows = catalog.group_named(name).map_or(&[][..], |group| catalog.rows_of_group(group));
                let mut found: Vec<String> = rows.iter().map(|row| catalog.get(*row).item.id.to_string()).collect();
                found.sort();
                let of_group = items.values().filter(|item| item.group_id == name);
                let mut expected: Vec<String> = of_group.map(|item| item.id.to_string()).collect();
                expected.sort();
                prop_assert_eq!(found, expected);
            }
            let brands = catalog.count_values(&Field::parse("brand").unwrap(), catalog.alive(), true);
            for (text, count) in brands.texts() {
                prop_assert_eq!(count as usize, distinct(&|item| item.brand.to_lowercase() == text));
            }
            let order = OrderBy::parse(if is_descending { "price desc" } else { "price" }).unwrap();
            let rows = || bits::ones(catalog.alive(), 0).map(|row| Row(row as u32));
            let part = Part { count: items.len(), one_per_group: Some(&catalog), ..Part::default() };
            let selected = catalog.select_by(&order, rows(), part).rows;
            prop_assert_eq!(selected.len(), distinct(&|_| true));
            for (row, _) in selected {
                let shown = &catalog.get(row).item;
                let prices = items.values().filter(|item| product(item) == product(shown)).map(|item| item.price);
                prop_assert_eq!(shown.price, if is_descending { prices.max() } else { prices.min() }.unwrap());
            }
        }
    }
}
