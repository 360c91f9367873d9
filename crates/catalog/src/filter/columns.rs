//! Columns of the field values of a block of items, so that a filter is evaluated for many items at once.
use super::{Field, Filter, Literal, Node, Operator, Predicate};
use crate::{AttributeValue, Item, counts::ValueCounts, order::SortValue};
use ahash::AHashMap;
use lodestone_core::{bits, text::normalize};
use std::sync::Arc;

/// The number of items of a block.
pub(crate) const BLOCK_ROWS: usize = 1024;

/// One bit for each item of a block.
pub(crate) type Mask = [u64; BLOCK_ROWS / 64];

const NONE: Mask = [0; BLOCK_ROWS / 64];

/// The fields that are a number or a time in every item.
const NUMBERS: [Field; 7] = [
    Field::Price,
    Field::OriginalPrice,
    Field::Discount,
    Field::Rating,
    Field::RatingCount,
    Field::StockQuantity,
    Field::CreateTime,
];

/// The columns of one block. Titles, descriptions and ids have no column, because almost every item has a different
/// value. They are read from the items that the other conditions leave. Snapshots of the catalogue share the columns
/// that did not change.
#[derive(Debug, Clone, Default)]
pub struct Columns {
    category: Arc<Column>,
    brand: Arc<Column>,
    currency: Arc<Column>,
    in_stock: Arc<Column>,
    tags: Arc<Column>,
    /// In the order of [`NUMBERS`].
    numbers: [Arc<Column>; NUMBERS.len()],
    attributes: AHashMap<Box<str>, Arc<Column>>,
}

/// The values of one field in a block. An attribute may be a text in one item and a number in another.
#[derive(Debug, Clone, Default)]
pub(crate) struct Column {
    /// The indices of the items with each text in normal form, ascending.
    labels: AHashMap<Box<str>, Vec<u16>>,
    numbers: Option<Numbers>,
    /// The items with the value true, and the items with any value.
    flags: Option<[Mask; 2]>,
}

/// The number of values that an item may have in a field.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Values {
    /// HAS finds words within the text; `!=` matches only items with a text.
    One,
    /// Categories and tags: HAS compares whole texts; `!=` matches also items without a text.
    Many,
}

impl Values {
    fn of(field: &Field) -> Self {
        match field {
            Field::Category | Field::Tags => Self::Many,
            _ => Self::One,
        }
    }
}

/// The values of one field in a block, by the position of the item. An item has one value at most.
#[derive(Debug, Default)]
pub(crate) struct BlockValues<'c> {
    /// In normal form; empty for items without a text. Empty if no item has a text.
    texts: Vec<&'c str>,
    /// NaN for items without a number.
    numbers: Option<&'c [f64; BLOCK_ROWS]>,
    /// The items with the value true, and the items with any value.
    flags: Option<&'c [Mask; 2]>,
}

impl<'c> BlockValues<'c> {
    /// Returns the value of the item at a position. A text without letters and digits is no value.
    pub(crate) fn get(&self, at: usize) -> SortValue<'c> {
        let text = self.texts.get(at).filter(|text| !text.is_empty());
        let number = || self.numbers.map(|numbers| numbers[at]).filter(|number| !number.is_nan());
        let flag = || {
            let has = |mask: &Mask| mask[at / 64] >> (at % 64) & 1 == 1;
            self.flags.filter(|[_, present]| has(present)).map(|[is_true, _]| has(is_true))
        };
        match text {
            Some(text) => SortValue::Text(text),
            None => number()
                .map(|number| SortValue::Number(number + 0.0))
                .or_else(|| flag().map(SortValue::Flag))
                .unwrap_or(SortValue::Missing),
        }
    }
}

#[derive(Debug, Clone)]
struct Numbers {
    /// One value for each item; NaN, which matches no comparison, for items without a value.
    values: Box<[f64; BLOCK_ROWS]>,
    least: f64,
    most: f64,
}

impl Column {
    pub(crate) fn values(&self) -> BlockValues<'_> {
        let mut texts = Vec::new();
        if !self.labels.is_empty() {
            texts.resize(BLOCK_ROWS, "");
            for (label, items) in &self.labels {
                items.iter().for_each(|at| texts[usize::from(*at)] = &**label);
            }
        }
        let numbers = self.numbers.as_ref().map(|numbers| &*numbers.values);
        BlockValues { texts, numbers, flags: self.flags.as_ref() }
    }

    fn is_empty(&self) -> bool {
        self.labels.is_empty()
            && self.numbers.as_ref().is_none_or(|numbers| numbers.values.iter().all(|value| value.is_nan()))
            && self.flags.is_none_or(|[_, present]| present == NONE)
    }

    fn label(&mut self, at: usize, label: &str) {
        let items = self.labels.entry(normalize(label).into()).or_default();
        if let Err(index) = items.binary_search(&(at as u16)) {
            items.insert(index, at as u16);
        }
    }

    fn remove_label(&mut self, at: usize, label: &str) {
        let label = &*normalize(label);
        let Some(items) = self.labels.get_mut(label) else { return };
        if let Ok(index) = items.binary_search(&(at as u16)) {
            items.remove(index);
        }
        if items.is_empty() {
            self.labels.remove(label);
        }
    }

    /// Removes a number. The range of the column stays, because it only has to contain all values.
    fn remove_number(&mut self, at: usize) {
        if let Some(numbers) = &mut self.numbers {
            numbers.values[at] = f64::NAN;
        }
    }

    fn remove_flag(&mut self, at: usize) {
        for mask in self.flags.iter_mut().flatten() {
            clear(mask, at);
        }
    }

    fn number(&mut self, at: usize, number: f64) {
        let numbers = self.numbers.get_or_insert_with(|| Numbers {
            values: Box::new([f64::NAN; BLOCK_ROWS]),
            least: f64::INFINITY,
            most: f64::NEG_INFINITY,
        });
        numbers.values[at] = number;
        (numbers.least, numbers.most) = (numbers.least.min(number), numbers.most.max(number));
    }

    fn flag(&mut self, at: usize, flag: bool) {
        let [is_true, present] = self.flags.get_or_insert([NONE; 2]);
        clear(is_true, at);
        set(present, at);
        if flag {
            set(is_true, at);
        }
    }

    fn with_label(&self, text: &str) -> Mask {
        let mut mask = NONE;
        self.labels.get(text).into_iter().flatten().for_each(|at| set(&mut mask, *at as usize));
        mask
    }

    /// Adds the values of the items of `among`.
    pub(crate) fn count<'c>(&'c self, among: &Mask, counts: &mut ValueCounts<'c>) {
        let is_whole = *among == [u64::MAX; BLOCK_ROWS / 64];
        for (label, items) in self.labels.iter().filter(|(label, _)| !label.is_empty()) {
            let count = match is_whole {
                true => items.len(),
                false => items.iter().filter(|at| bits::has(among, usize::from(**at))).count(),
            };
            if count > 0 {
                *counts.texts.entry(label).or_default() += count as u64;
            }
        }
        if let Some(numbers) = &self.numbers {
            let values = bits::ones(among, 0).map(|at| numbers.values[at]);
            counts.numbers.extend(values.filter(|value| !value.is_nan()));
        }
        if let Some([is_true, present]) = &self.flags {
            let count = |mask: Mask| bits::count(&and(mask, among), BLOCK_ROWS) as u64;
            counts.flags[1] += count(*is_true);
            counts.flags[0] += count(and_not(*present, is_true));
        }
    }

    /// Returns the items with a text in normal form, ascending.
    pub(crate) fn items_with(&self, normal: &str) -> &[u16] {
        self.labels.get(normal).map(|items| &items[..]).unwrap_or_default()
    }

    fn with_flag(&self, flag: bool) -> Mask {
        self.flags.map_or(NONE, |[is_true, present]| if flag { is_true } else { and_not(present, &is_true) })
    }

    /// Returns the items whose values satisfy the predicate.
    fn matching(&self, predicate: &Predicate, values: Values) -> Mask {
        let equals = |literal: &Literal| match literal {
            Literal::Text(text) => self.with_label(&text.normal),
            Literal::Number(number) => self.compare(Operator::Equal, *number),
            Literal::Flag(flag) => self.with_flag(*flag),
            Literal::Time(at, _) => self.compare(Operator::Equal, *at as f64),
        };
        match predicate {
            Predicate::Compare(Operator::Equal, literal) => equals(literal),
            Predicate::Compare(Operator::Unequal, Literal::Text(text)) if values == Values::Many => {
                and_not([u64::MAX; BLOCK_ROWS / 64], &self.with_label(&text.normal))
            }
            Predicate::Compare(Operator::Unequal, Literal::Text(text)) => {
                // `!=` compares texts only: an item whose value is a number does not match.
                let texts = self.labels.values().flatten().fold(NONE, |mut mask, at| {
                    set(&mut mask, *at as usize);
                    mask
                });
                and_not(texts, &self.with_label(&text.normal))
            }
            Predicate::Compare(Operator::Unequal, Literal::Flag(flag)) => self.with_flag(!flag),
            Predicate::Compare(operator, Literal::Number(number)) => self.compare(*operator, *number),
            Predicate::Compare(operator, Literal::Time(at, _)) => self.compare(*operator, *at as f64),
            Predicate::Compare(..) => NONE,
            Predicate::In(literals) => literals.iter().fold(NONE, |mask, literal| or(mask, &equals(literal))),
            Predicate::Has(text) if values == Values::Many => self.with_label(&text.normal),
            Predicate::Has(text) => {
                let labels = self.labels.keys().filter(|label| text.is_within(label));
                labels.fold(NONE, |mask, label| or(mask, &self.with_label(label)))
            }
        }
    }

    fn compare(&self, operator: Operator, limit: f64) -> Mask {
        let Some(numbers) = &self.numbers else { return NONE };
        // In a sorted catalogue, most blocks are entirely on one side of the limit.
        let (least, most) = (numbers.least, numbers.most);
        let none = match operator {
            Operator::Equal => limit < least || limit > most,
            Operator::Less => least >= limit,
            Operator::LessOrEqual => least > limit,
            Operator::Greater => most <= limit,
            Operator::GreaterOrEqual => most < limit,
            Operator::Unequal => false,
        };
        if none {
            return NONE;
        }
        match operator {
            Operator::Equal => mask_of(&numbers.values, |value| value == limit),
            Operator::Unequal => mask_of(&numbers.values, |value| !value.is_nan() && value != limit),
            Operator::Less => mask_of(&numbers.values, |value| value < limit),
            Operator::LessOrEqual => mask_of(&numbers.values, |value| value <= limit),
            Operator::Greater => mask_of(&numbers.values, |value| value > limit),
            Operator::GreaterOrEqual => mask_of(&numbers.values, |value| value >= limit),
        }
    }
}

impl Columns {
    /// Adds the values of an item at a position that has none.
    pub fn add(&mut self, at: usize, item: &Item) {
        self.change(at, None, item);
    }

    /// Replaces the values of one item. Columns in which both have the same values are not copied.
    pub fn replace(&mut self, at: usize, old: &Item, new: &Item) {
        self.change(at, Some(old), new);
    }

    fn change(&mut self, at: usize, old: Option<&Item>, new: &Item) {
        change_labels(&mut self.category, at, old.map(|old| &old.categories[..]), &new.categories);
        change_labels(&mut self.tags, at, old.map(|old| &old.tags[..]), &new.tags);
        let one = std::slice::from_ref::<String>;
        change_labels(&mut self.brand, at, old.map(|old| one(&old.brand)), one(&new.brand));
        change_labels(&mut self.currency, at, old.map(|old| one(&old.currency)), one(&new.currency));
        if old.is_none_or(|old| old.is_in_stock() != new.is_in_stock()) {
            Arc::make_mut(&mut self.in_stock).flag(at, new.is_in_stock());
        }
        for (field, column) in NUMBERS.iter().zip(&mut self.numbers) {
            let (before, after) = (old.and_then(|old| field.plain_number(old)), field.plain_number(new));
            if before != after {
                let column = Arc::make_mut(column);
                match after {
                    Some(after) => column.number(at, after),
                    None => column.remove_number(at),
                }
            }
        }
        self.change_attributes(at, old, new);
    }

    fn change_attributes(&mut self, at: usize, old: Option<&Item>, new: &Item) {
        for (name, value) in old.into_iter().flat_map(|old| &old.attributes) {
            if new.attributes.get(name) != Some(value)
                && let Some(column) = self.attributes.get_mut(name.as_str())
            {
                let column = Arc::make_mut(column);
                match value {
                    AttributeValue::Text(text) => column.remove_label(at, text),
                    AttributeValue::Number(_) => column.remove_number(at),
                    AttributeValue::Flag(_) => column.remove_flag(at),
                }
                if !new.attributes.contains_key(name) && column.is_empty() {
                    self.attributes.remove(name.as_str());
                }
            }
        }
        for (name, value) in &new.attributes {
            if old.and_then(|old| old.attributes.get(name)) != Some(value) {
                let column = Arc::make_mut(self.attributes.entry(name.as_str().into()).or_default());
                match value {
                    AttributeValue::Text(text) => column.label(at, text),
                    AttributeValue::Number(number) => column.number(at, *number),
                    AttributeValue::Flag(flag) => column.flag(at, *flag),
                }
            }
        }
    }

    /// Returns the names of the attributes that items of the block have.
    pub(crate) fn attribute_names(&self) -> impl Iterator<Item = &str> {
        self.attributes.keys().map(|name| &**name)
    }

    /// Returns the column of a field. None: no item has the attribute, or the field has no column.
    pub(crate) fn column(&self, field: &Field) -> Option<&Column> {
        Some(match field {
            Field::ItemId | Field::Title | Field::Description => return None,
            Field::Category => &self.category,
            Field::Tags => &self.tags,
            Field::Brand => &self.brand,
            Field::Currency => &self.currency,
            Field::InStock => &self.in_stock,
            Field::Attribute(name) => self.attributes.get(name.as_str())?,
            number => &self.numbers[NUMBERS.iter().position(|field| field == number)?],
        })
    }
}

impl Filter {
    /// Returns the items of `among` that match the filter. The result is that of [`Filter::matches`] for each item.
    pub fn mask<'i>(&self, columns: &Columns, item_of: &impl Fn(usize) -> &'i Item, among: Mask) -> Mask {
        self.0.mask(columns, item_of, among)
    }
}

impl Node {
    fn mask<'i>(&self, columns: &Columns, item_of: &impl Fn(usize) -> &'i Item, among: Mask) -> Mask {
        if among == NONE {
            return NONE;
        }
        match self {
            Self::And(nodes) => {
                // Conditions with a column come first, so that the others read fewer items.
                let in_order = by_cost(nodes);
                in_order.fold(among, |left, node| node.mask(columns, item_of, left))
            }
            Self::Or(nodes) => {
                let mut rest = among;
                for node in by_cost(nodes) {
                    rest = and_not(rest, &node.mask(columns, item_of, rest));
                }
                and_not(among, &rest)
            }
            Self::Not(node) => and_not(among, &node.mask(columns, item_of, among)),
            Self::Predicate(field, predicate) if field.has_column() => {
                let column = columns.column(field);
                column.map_or(NONE, |column| and(column.matching(predicate, Values::of(field)), &among))
            }
            Self::Predicate(field, predicate) => {
                let mut mask = NONE;
                bits::ones(&among, 0)
                    .filter(|index| field.matches(predicate, item_of(*index)))
                    .for_each(|index| set(&mut mask, index));
                mask
            }
        }
    }

    fn reads_items(&self) -> bool {
        match self {
            Self::And(nodes) | Self::Or(nodes) => nodes.iter().any(Self::reads_items),
            Self::Not(node) => node.reads_items(),
            Self::Predicate(field, _) => !field.has_column(),
        }
    }
}

/// Orders conditions with a column before those that read items.
fn by_cost(nodes: &[Node]) -> impl Iterator<Item = &Node> {
    nodes.iter().filter(|node| !node.reads_items()).chain(nodes.iter().filter(|node| node.reads_items()))
}

fn mask_of(values: &[f64; BLOCK_ROWS], meets: impl Fn(f64) -> bool) -> Mask {
    let mut mask = NONE;
    for (word, values) in mask.iter_mut().zip(values.chunks_exact(64)) {
        *word = values.iter().enumerate().fold(0, |word, (at, value)| word | u64::from(meets(*value)) << at);
    }
    mask
}

/// Replaces the labels of one item.
fn change_labels(column: &mut Arc<Column>, at: usize, old: Option<&[String]>, new: &[String]) {
    if old == Some(new) {
        return;
    }
    let column = Arc::make_mut(column);
    old.into_iter().flatten().for_each(|label| column.remove_label(at, label));
    new.iter().for_each(|label| column.label(at, label));
}

fn set(mask: &mut Mask, at: usize) {
    mask[at / 64] |= 1 << (at % 64);
}

fn clear(mask: &mut Mask, at: usize) {
    mask[at / 64] &= !(1 << (at % 64));
}

fn and(a: Mask, b: &Mask) -> Mask {
    std::array::from_fn(|at| a[at] & b[at])
}

fn and_not(a: Mask, b: &Mask) -> Mask {
    std::array::from_fn(|at| a[at] & !b[at])
}

fn or(a: Mask, b: &Mask) -> Mask {
    std::array::from_fn(|at| a[at] | b[at])
}
