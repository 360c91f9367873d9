//! Counts of the values of a field over many rows, from columns.
use crate::{
    AttributeValue, Catalog, Field, Item,
    filter::{BLOCK_ROWS, Mask},
};
use ahash::AHashMap;
use lodestone_core::{bits, ids::Row, text::normalize};

/// Rows whose spelling of a text is compared.
const SPELLING_ROWS: usize = 50;
const WORDS: usize = BLOCK_ROWS / 64;

/// How often the values of a field occur.
#[derive(Debug, Default, PartialEq)]
pub struct ValueCounts<'c> {
    /// Items with each text, by its normal form, which is not empty.
    pub texts: AHashMap<&'c str, u64>,
    /// Items with the flags false and true.
    pub flags: [u64; 2],
    /// The numbers of all items.
    pub numbers: Vec<f64>,
}

impl Catalog {
    /// Counts the values of a field of the rows in a bit set. An item with several texts counts once for each normal
    /// form. Fields without columns ([`Field::ItemId`], [`Field::Title`], [`Field::Description`]) have none.
    pub fn count_values(&self, field: &Field, among: &[u64]) -> ValueCounts<'_> {
        let mut counts = ValueCounts::default();
        for (block, mask) in masks(among) {
            if let Some(column) = self.columns(block).column(field) {
                column.count(&mask, &mut counts);
            }
        }
        counts
    }

    /// Returns the spelling that most of the first items in a bit set use for a text of a field; the normal form if
    /// none has it.
    pub fn spelling(&self, field: &Field, normal: &str, among: &[u64]) -> String {
        let mut spellings: AHashMap<&str, usize> = AHashMap::new();
        let rows = masks(among).flat_map(|(block, mask)| {
            let items = self.columns(block).column(field).map(|column| column.items_with(normal)).unwrap_or_default();
            let items = items.iter().map(|at| usize::from(*at)).filter(move |at| bits::has(&mask, *at));
            items.map(move |at| Row((block * BLOCK_ROWS + at) as u32))
        });
        for row in rows.take(SPELLING_ROWS) {
            let known = |text: &&str| spellings.contains_key(*text) || normalize(text) == normal;
            if let Some(text) = texts(&self.get(row).item, field).find(known) {
                *spellings.entry(text).or_default() += 1;
            }
        }
        let most = spellings.into_iter().max_by(|a, b| a.1.cmp(&b.1).then(b.0.cmp(a.0)));
        most.map_or_else(|| normal.to_owned(), |(text, _)| text.to_owned())
    }

    /// Returns the names of all attributes of items in the blocks of a bit set, each once, in no order.
    pub fn attribute_names(&self, among: &[u64]) -> Vec<&str> {
        let names = masks(among).flat_map(|(block, _)| self.columns(block).attribute_names());
        let distinct: ahash::AHashSet<&str> = names.collect();
        distinct.into_iter().collect()
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
    let texts: &[String] = match field {
        Field::Category => &item.categories,
        Field::Tags => &item.tags,
        Field::Brand => std::slice::from_ref(&item.brand),
        Field::Currency => std::slice::from_ref(&item.currency),
        Field::Attribute(name) => match item.attributes.get(name) {
            Some(AttributeValue::Text(text)) => std::slice::from_ref(text),
            _ => &[],
        },
        _ => &[],
    };
    texts.iter().map(String::as_str)
}
