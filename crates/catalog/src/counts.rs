//! Counts of the values of a field over many rows, from columns.
use crate::{
    AttributeKind, AttributeValue, Catalog, Field, Item,
    filter::{BLOCK_ROWS, Column, Mask},
    groups::{Group, split},
    prepared::hash,
};
use ahash::{AHashMap, AHashSet};
use lodestone_core::{
    bits,
    ids::{ItemId, Row},
};
use std::{cmp::Reverse, collections::BTreeMap};

/// Rows whose spelling of a text is compared.
const SPELLING_ROWS: usize = 50;
/// Blocks whose attributes are named, so that a catalogue of a million items takes milliseconds.
const NAME_BLOCKS: usize = 64;
/// Rows whose attributes are counted.
const ATTRIBUTE_ROWS: usize = 512;
const WORDS: usize = BLOCK_ROWS / 64;

/// How often the values of a field occur.
#[derive(Debug, Default, PartialEq)]
pub struct ValueCounts<'c> {
    /// By the hash of a text.
    texts: AHashMap<u64, (&'c str, u64)>,
    /// Items with the flags false and true.
    pub flags: [u64; 2],
    /// The numbers of items that count each.
    pub numbers: Vec<f64>,
    /// The numbers of items with groups that count once.
    pub group_numbers: Vec<(f64, Group)>,
    /// The hashes of values that were counted for a group.
    counted: AHashSet<(u64, Group)>,
}

impl<'c> ValueCounts<'c> {
    /// Adds items with a text in normal form. Texts with equal hashes are equal.
    pub(crate) fn add_text(&mut self, hash: u64, text: &'c str, count: u64) {
        if count > 0 {
            self.texts.entry(hash).or_insert((text, 0)).1 += count;
        }
    }

    /// Adds an item of a group with a text, unless the group has the text already.
    pub(crate) fn add_text_of_group(&mut self, hash: u64, text: &'c str, group: Group) {
        if self.counted.insert((hash, group)) {
            self.add_text(hash, text, 1);
        }
    }

    /// Does the same for a flag.
    pub(crate) fn add_flag_of_group(&mut self, flag: bool, group: Group) {
        // A text `true` is the same value.
        if self.counted.insert((hash(if flag { "true" } else { "false" }), group)) {
            self.flags[usize::from(flag)] += 1;
        }
    }

    /// Returns each text in normal form, which is not empty, with its number of items, in no order.
    pub fn texts(&self) -> impl Iterator<Item = (&'c str, u64)> {
        self.texts.values().copied()
    }
}

/// The items whose values of an attribute are of one kind.
#[derive(Debug, Clone, PartialEq)]
pub struct AttributeKindCount {
    pub kind: AttributeKind,
    pub item_count: usize,
    /// One of them.
    pub example: ItemId,
}

impl Catalog {
    /// Returns the kinds of the values of each attribute, the most frequent first; only those that occur.
    pub fn attribute_kinds(&self) -> BTreeMap<String, Vec<AttributeKindCount>> {
        // By attribute and kind: the number of items, and the first row.
        let mut found: BTreeMap<&str, [(usize, Option<Row>); AttributeKind::ALL.len()]> = BTreeMap::new();
        for (block, alive) in masks(self.alive()) {
            for (name, kinds) in self.columns(block).attribute_kinds() {
                for (known, mut mask) in found.entry(name).or_default().iter_mut().zip(kinds) {
                    mask.iter_mut().zip(alive).for_each(|(of_kind, alive)| *of_kind &= alive);
                    known.0 += bits::count(&mask, BLOCK_ROWS);
                    known.1 = known.1.or(bits::ones(&mask, 0).next().map(|at| Row((block * BLOCK_ROWS + at) as u32)));
                }
            }
        }
        let counted = |(kind, (item_count, row)): (AttributeKind, (usize, Option<Row>))| {
            Some(AttributeKindCount { kind, item_count, example: self.get(row?).item.id.clone() })
        };
        let kinds = found.into_iter().map(|(name, kinds)| {
            let mut kinds: Vec<_> = AttributeKind::ALL.into_iter().zip(kinds).filter_map(counted).collect();
            kinds.sort_by_key(|kind| Reverse(kind.item_count));
            (name.to_owned(), kinds)
        });
        kinds.filter(|(_, kinds)| !kinds.is_empty()).collect()
    }

    /// Returns true if an item has this attribute.
    pub fn has_attribute(&self, name: &str) -> bool {
        self.has_attribute_of(name, |_| true)
    }

    /// Returns true if an item has a value of this attribute whose kind is wanted.
    pub fn has_attribute_of(&self, name: &str, is_wanted: impl Fn(AttributeKind) -> bool) -> bool {
        let field = Field::Attribute(name.to_owned());
        masks(self.alive()).any(|(block, alive)| {
            self.columns(block).column(&field).is_some_and(|column| {
                AttributeKind::ALL
                    .into_iter()
                    .filter(|kind| is_wanted(*kind))
                    .any(|kind| column.of_kind(kind).iter().zip(alive).any(|(of_kind, alive)| of_kind & alive != 0))
            })
        })
    }

    /// Returns true if an item has a value of this attribute by which it sorts. Items with several texts have none.
    pub fn has_sortable_attribute(&self, name: &str) -> bool {
        let field = Field::Attribute(name.to_owned());
        masks(self.alive()).any(|(block, alive)| {
            let sortable = self.columns(block).column(&field).map(Column::sortable);
            sortable.is_some_and(|sortable| sortable.iter().zip(alive).any(|(sortable, alive)| sortable & alive != 0))
        })
    }

    /// Returns the kinds of the values that items have of an attribute.
    pub fn kinds_of_attribute(&self, name: &str) -> Vec<AttributeKind> {
        let kinds = AttributeKind::ALL.into_iter();
        kinds.filter(|kind| self.has_attribute_of(name, |wanted| wanted == *kind)).collect()
    }

    /// Returns the names of attributes in at most [`NAME_BLOCKS`] blocks at equal distances, also of deleted items.
    pub fn attribute_names(&self) -> AHashSet<&str> {
        let blocks = self.alive().len().div_ceil(WORDS);
        let names = (0..blocks)
            .step_by(blocks.div_ceil(NAME_BLOCKS).max(1))
            .flat_map(|block| self.columns(block).attribute_names());
        names.collect()
    }

    /// Returns the rows that have a value of an attribute of another kind, ascending.
    pub fn rows_with_other_kind(&self, attribute: &str, kind: AttributeKind) -> Vec<Row> {
        let mut rows = Vec::new();
        for (block, alive) in masks(self.alive()) {
            let kinds = self.columns(block).attribute_kinds().find(|(name, _)| *name == attribute);
            let Some((_, kinds)) = kinds else { continue };
            let mut others: Mask = [0; BLOCK_ROWS / 64];
            for (_, mask) in AttributeKind::ALL.into_iter().zip(kinds).filter(|(of, _)| *of != kind) {
                others.iter_mut().zip(mask).zip(alive).for_each(|((other, mask), alive)| *other |= mask & alive);
            }
            rows.extend(bits::ones(&others, 0).map(|at| Row((block * BLOCK_ROWS + at) as u32)));
        }
        rows
    }

    /// Counts the values of a field of the rows in a bit set. An item with several texts counts once for each normal
    /// form. Fields without columns ([`Field::ItemId`], [`Field::Title`], [`Field::Description`]) have none.
    /// `one_per_group`: items of a group with the same value count once.
    pub fn count_values(&self, field: &Field, among: &[u64], one_per_group: bool) -> ValueCounts<'_> {
        let mut counts = ValueCounts::default();
        for (block, mask) in masks(among) {
            let columns = self.columns(block);
            match self.block_groups(block).filter(|_| one_per_group) {
                None => columns.count(field, &mask, &mut counts),
                Some(groups) => {
                    let (single, grouped) = split(groups, &mask);
                    columns.count(field, &single, &mut counts);
                    columns.count_groups(field, &grouped, groups, &mut counts);
                }
            }
        }
        counts
    }

    /// Returns the attributes of rows in a bit set that are wanted, that of the most rows first, at most `count`. Of many
    /// rows, about [`ATTRIBUTE_ROWS`] at equal distances decide.
    pub fn frequent_attributes(&self, among: &[u64], count: usize, is_wanted: impl Fn(&str) -> bool) -> Vec<&str> {
        let distance = bits::count(among, among.len() * 64).div_ceil(ATTRIBUTE_ROWS).max(1);
        let mut counts: AHashMap<&str, usize> = AHashMap::new();
        for row in bits::ones(among, 0).step_by(distance) {
            let attributes = self.own(Row(row as u32)).item.attributes.keys();
            attributes.for_each(|name| *counts.entry(name).or_default() += 1);
        }
        let mut names: Vec<(&str, usize)> = counts.into_iter().filter(|(name, _)| is_wanted(name)).collect();
        names.sort_unstable_by_key(|(name, rows)| (Reverse(*rows), *name));
        names.into_iter().take(count).map(|(name, _)| name).collect()
    }

    /// Returns the spelling that most of the first items in a bit set use for a text of a field; the normal form if
    /// none has it.
    pub fn spelling(&self, field: &Field, normal: &str, among: &[u64]) -> String {
        let (mut spellings, mut left) = (AHashMap::<&str, usize>::new(), SPELLING_ROWS);
        for (block, mask) in masks(among) {
            let (mut with_text, spelling) = self.columns(block).with_text(field, normal);
            with_text.iter_mut().zip(mask).for_each(|(with_text, among)| *with_text &= among);
            let count = bits::count(&with_text, BLOCK_ROWS).min(left);
            match spelling {
                // No item has to be read.
                Some(spelling) if count > 0 => *spellings.entry(spelling).or_default() += count,
                _ => {
                    for at in bits::ones(&with_text, 0).take(count) {
                        let row = Row((block * BLOCK_ROWS + at) as u32);
                        let known = |text: &&str| spellings.contains_key(text) || field.normal(text) == normal;
                        if let Some(text) = texts(&self.get(row).item, field).find(known) {
                            *spellings.entry(text).or_default() += 1;
                        }
                    }
                }
            }
            left -= count;
            if left == 0 {
                break;
            }
        }
        let most = spellings.into_iter().max_by(|a, b| a.1.cmp(&b.1).then(b.0.cmp(a.0)));
        most.map_or(normal, |(text, _)| text).to_owned()
    }
}

/// Returns the blocks in which a bit set has rows.
fn masks(among: &[u64]) -> impl Iterator<Item = (usize, Mask)> {
    among.chunks(WORDS).enumerate().filter(|(_, words)| words.iter().any(|word| *word != 0)).map(|(block, words)| {
        let mut mask: Mask = [0; WORDS];
        mask[..words.len()].copy_from_slice(words);
        (block, mask)
    })
}

/// Returns the texts of a field with a column.
fn texts<'i>(item: &'i Item, field: &Field) -> impl Iterator<Item = &'i str> {
    let names = match field {
        Field::Category => item.category_names(),
        Field::CategoryPath => item.category_paths(),
        Field::Availability => vec![item.availability().name()],
        _ => Vec::new(),
    };
    let texts: &[String] = match field {
        Field::Tags => &item.tags,
        Field::Brand => std::slice::from_ref(&item.brand),
        Field::Currency => std::slice::from_ref(&item.currency),
        Field::Attribute(name) => match item.attributes.get(name) {
            Some(AttributeValue::Text(text)) => std::slice::from_ref(text),
            Some(AttributeValue::Texts(texts)) => texts,
            _ => &[],
        },
        _ => &[],
    };
    texts.iter().map(String::as_str).chain(names)
}
