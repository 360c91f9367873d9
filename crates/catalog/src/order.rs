//! Orders of items by their fields: the language of `order_by`, and the selection of a page from many rows.
use super::{
    Catalog, Distance, Field, Group,
    filter::{BLOCK_ROWS, Column},
};
use lodestone_core::ids::{ItemKey, Row};
use std::{cmp::Ordering, sync::Arc};

/// Maximum number of keys of an order.
pub const ORDER_KEYS_MAX: usize = 4;
/// Maximum number of values of a position: an order, and whether the item is in stock.
const POSITION_VALUES_MAX: usize = ORDER_KEYS_MAX + 1;
/// Characters of a name in an error.
const SHOWN_CHARS: usize = 40;
/// Minimum number of entries that are collected before the best of them are selected.
const BUFFER_MIN: usize = 1024;

/// The fields that sort items, the first one first. Without keys, no field sorts.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct OrderBy(Vec<SortKey>);

#[derive(Debug, Clone, PartialEq)]
struct SortKey {
    field: Field,
    is_descending: bool,
}

/// A problem of an order.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OrderByError {
    #[error("has {0} keys; the limit is {ORDER_KEYS_MAX}")]
    TooManyKeys(usize),
    #[error("key {0} is empty; a key is a field, then `asc`, `desc` or nothing")]
    EmptyKey(usize),
    #[error(
        "`{0}` is not a field; use item_id, group_id, title, brand, price, original_price, discount, margin, currency, \
         rating, rating_count, stock_quantity, in_stock, availability, create_time, distance(…) or attributes.NAME (1 to 64 \
         of A-Z, a-z, 0-9, _)"
    )]
    UnknownField(String),
    #[error("`{0}` does not sort, because an item may have several values; sort by a field with one value")]
    ListField(String),
    #[error("`{0}` does not sort; use title, brand or a text of attributes.NAME")]
    LongText(String),
    #[error("`{0}` is not a direction; use `asc`, `desc` or nothing, which is `asc`")]
    UnknownDirection(String),
    #[error("`{0}` occurs twice; a field may occur once")]
    RepeatedField(String),
}

impl OrderBy {
    /// Parses a text such as `price desc, attributes.weight asc, title`: 1 to [`ORDER_KEYS_MAX`] fields, each with a
    /// direction or ascending. White space only is the order without keys. Returns all problems.
    pub fn parse(text: &str) -> Result<Self, Vec<OrderByError>> {
        let (mut keys, mut problems): (Vec<SortKey>, Vec<OrderByError>) = (Vec::new(), Vec::new());
        if text.trim().is_empty() {
            return Ok(Self(keys));
        }
        let parts = split_keys(text);
        let count = parts.len();
        if count > ORDER_KEYS_MAX {
            problems.push(OrderByError::TooManyKeys(count));
        }
        for (index, key) in parts.into_iter().take(ORDER_KEYS_MAX).enumerate() {
            match parse_key(index, key) {
                Ok(key) if keys.iter().any(|known| known.field == key.field) => {
                    problems.push(OrderByError::RepeatedField(key.field.to_string()));
                }
                Ok(key) => keys.push(key),
                Err(problem) => problems.push(problem),
            }
        }
        if problems.is_empty() { Ok(Self(keys)) } else { Err(problems) }
    }

    /// Returns the order in which items in stock precede the others, and items of each kind are in this order.
    pub fn in_stock_first(&self) -> Self {
        let in_stock = SortKey { field: Field::InStock, is_descending: true };
        Self(std::iter::once(in_stock).chain(self.0.iter().cloned()).collect())
    }

    /// Returns the fields that sort, the first one first.
    pub fn fields(&self) -> impl Iterator<Item = &Field> {
        self.0.iter().map(|key| &key.field)
    }

    /// Returns true if one of these fields sorts.
    pub fn has_any(&self, is_one: impl Fn(&Field) -> bool) -> bool {
        self.0.iter().any(|key| is_one(&key.field))
    }

    /// Returns whether no field sorts.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn directions<const N: usize>(&self) -> [bool; N] {
        std::array::from_fn(|at| self.0[at].is_descending)
    }
}

/// Splits an order at the commas that are not within parentheses.
fn split_keys(text: &str) -> Vec<&str> {
    let mut is_inside = false;
    let is_end = |c: char| {
        is_inside = (is_inside || c == '(') && c != ')';
        c == ',' && !is_inside
    };
    text.split(is_end).collect()
}

fn parse_key(index: usize, text: &str) -> Result<SortKey, OrderByError> {
    let text = text.trim();
    let end = text.find(')').map_or_else(|| text.find(char::is_whitespace).unwrap_or(text.len()), |close| close + 1);
    let (name, direction) = text.split_at(end);
    if name.is_empty() {
        return Err(OrderByError::EmptyKey(index + 1));
    }
    let field = match Field::parse(name) {
        None => return Err(OrderByError::UnknownField(shown(name))),
        Some(Field::Category | Field::CategoryPath | Field::Tags) => return Err(OrderByError::ListField(shown(name))),
        Some(Field::Description) => return Err(OrderByError::LongText(shown(name))),
        Some(field) => field,
    };
    match direction.split_whitespace().collect::<Vec<&str>>().join(" ").as_str() {
        "" | "asc" => Ok(SortKey { field, is_descending: false }),
        "desc" => Ok(SortKey { field, is_descending: true }),
        other => Err(OrderByError::UnknownDirection(shown(other))),
    }
}

fn shown(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// A value by which items are sorted. Flags precede numbers, and numbers precede texts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum SortValue<'a> {
    Flag(bool),
    Number(f64),
    /// In normal form, except ids.
    Text(TextValue<'a>),
    /// Last in both directions.
    Missing,
}

impl SortValue<'_> {
    /// Compares in one direction.
    fn compare(self, other: Self, is_descending: bool) -> Ordering {
        let ascending = match (self, other) {
            (Self::Missing, Self::Missing) => return Ordering::Equal,
            (Self::Missing, _) => return Ordering::Greater,
            (_, Self::Missing) => return Ordering::Less,
            (Self::Flag(a), Self::Flag(b)) => a.cmp(&b),
            (Self::Number(a), Self::Number(b)) => a.total_cmp(&b),
            (Self::Text(a), Self::Text(b)) => a.cmp(&b),
            (a, b) => a.type_rank().cmp(&b.type_rank()),
        };
        if is_descending { ascending.reverse() } else { ascending }
    }

    /// Returns a number by which values with different numbers compare as by [`SortValue::compare`], so that most
    /// comparisons are of numbers.
    fn prefix(self, is_descending: bool) -> u64 {
        const TYPE: u32 = 62;
        let value = match self {
            Self::Missing => return u64::MAX,
            Self::Flag(flag) => u64::from(flag),
            Self::Number(number) => {
                // The order of the bits is that of `total_cmp` after the sign is inverted, and all bits of a negative
                // one.
                let bits = number.to_bits();
                (bits ^ ((bits as i64 >> 63) as u64 | 1 << 63)) >> (64 - TYPE)
            }
            Self::Text(text) => text.prefix >> (64 - TYPE),
        };
        let ascending = u64::from(self.type_rank()) << TYPE | value;
        if is_descending { (3 << TYPE) - 1 - ascending } else { ascending }
    }

    fn type_rank(self) -> u8 {
        match self {
            Self::Flag(_) => 0,
            Self::Number(_) => 1,
            Self::Text(_) => 2,
            Self::Missing => 3,
        }
    }
}

/// A text with its first bytes as a number, which decides most comparisons without reading the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct TextValue<'a> {
    /// Big-endian, so that numbers are in the order of the texts.
    prefix: u64,
    text: &'a str,
}

impl<'a> TextValue<'a> {
    pub fn new(text: &'a str) -> Self {
        let mut first = [0; 8];
        let count = text.len().min(8);
        first[..count].copy_from_slice(&text.as_bytes()[..count]);
        Self { prefix: u64::from_be_bytes(first), text }
    }
}

/// An owned [`TextValue`].
#[derive(Debug, Clone, PartialEq)]
pub struct SortText {
    prefix: u64,
    text: Arc<str>,
}

impl SortText {
    pub fn new(text: &str) -> Self {
        Self { prefix: TextValue::new(text).prefix, text: text.into() }
    }

    pub fn as_ref(&self) -> TextValue<'_> {
        TextValue { prefix: self.prefix, text: &self.text }
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }

    pub(crate) fn shared(&self) -> Arc<str> {
        self.text.clone()
    }
}

/// An owned [`SortValue`].
#[derive(Debug, Clone, PartialEq)]
pub enum StoredValue {
    Flag(bool),
    Number(f64),
    Text(Box<str>),
    Missing,
}

impl From<SortValue<'_>> for StoredValue {
    fn from(value: SortValue) -> Self {
        match value {
            SortValue::Flag(flag) => Self::Flag(flag),
            SortValue::Number(number) => Self::Number(number),
            SortValue::Text(text) => Self::Text(text.text.into()),
            SortValue::Missing => Self::Missing,
        }
    }
}

impl StoredValue {
    fn as_value(&self) -> SortValue<'_> {
        match self {
            Self::Flag(flag) => SortValue::Flag(*flag),
            Self::Number(number) => SortValue::Number(*number),
            Self::Text(text) => SortValue::Text(TextValue::new(text)),
            Self::Missing => SortValue::Missing,
        }
    }
}

/// The position of an item in an order: its values at the time when it was shown, and its key, which breaks ties.
#[derive(Debug, Clone, PartialEq)]
pub struct Position {
    /// At most [`POSITION_VALUES_MAX`].
    pub values: Vec<StoredValue>,
    pub key: ItemKey,
}

/// The first byte of an encoded value.
mod tag {
    pub(super) const MISSING: u8 = 0;
    pub(super) const FALSE: u8 = 1;
    pub(super) const TRUE: u8 = 2;
    pub(super) const NUMBER: u8 = 3;
    pub(super) const TEXT: u8 = 4;
}

impl Position {
    /// Appends the position as bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.key.0.to_le_bytes());
        for value in &self.values {
            match value {
                StoredValue::Missing => out.push(tag::MISSING),
                StoredValue::Flag(false) => out.push(tag::FALSE),
                StoredValue::Flag(true) => out.push(tag::TRUE),
                StoredValue::Number(number) => {
                    out.push(tag::NUMBER);
                    out.extend_from_slice(&number.to_bits().to_le_bytes());
                }
                StoredValue::Text(text) => {
                    out.push(tag::TEXT);
                    out.extend_from_slice(&(text.len() as u32).to_le_bytes());
                    out.extend_from_slice(text.as_bytes());
                }
            }
        }
    }

    /// Decodes the bytes of [`Position::encode`]; none for other bytes.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (key, mut rest) = bytes.split_first_chunk::<4>()?;
        let mut values = Vec::new();
        while let Some((kind, after)) = rest.split_first() {
            rest = after;
            values.push(match *kind {
                tag::MISSING => StoredValue::Missing,
                tag::FALSE => StoredValue::Flag(false),
                tag::TRUE => StoredValue::Flag(true),
                tag::NUMBER => {
                    let (bits, after) = rest.split_first_chunk::<8>()?;
                    rest = after;
                    StoredValue::Number(f64::from_bits(u64::from_le_bytes(*bits)))
                }
                tag::TEXT => {
                    let (length, after) = rest.split_first_chunk::<4>()?;
                    let (text, after) = after.split_at_checked(u32::from_le_bytes(*length) as usize)?;
                    rest = after;
                    StoredValue::Text(std::str::from_utf8(text).ok()?.into())
                }
                _ => return None,
            });
        }
        (values.len() <= POSITION_VALUES_MAX).then_some(Self { values, key: ItemKey(u32::from_le_bytes(*key)) })
    }
}

/// A part of the entries in their order.
#[derive(Clone, Copy, Default)]
pub struct Part<'p> {
    /// The position behind which the part begins. None: the first entry.
    pub after: Option<&'p Position>,
    /// Entries that are left out before the part.
    pub skip: usize,
    pub count: usize,
    /// Only the first row of each group of this catalogue is an entry. None: every row is one.
    pub one_per_group: Option<&'p Catalog>,
}

/// Rows in order.
#[derive(Debug, Default, PartialEq)]
pub struct Selected {
    pub rows: Vec<(Row, Position)>,
    /// Whether other rows follow.
    pub has_more: bool,
}

/// A row with the values that sort it.
#[derive(Clone, Copy)]
struct SortEntry<'a, const N: usize> {
    /// That of the first value.
    prefix: u64,
    values: [SortValue<'a>; N],
    key: ItemKey,
    row: Row,
}

/// Returns a part of the rows. Each is with a function that returns its value of a sort key: a row that the first value
/// decides is not read further. `is_descending` has the direction of each value; ties are in the order of the keys. One
/// pass over the rows, and memory for `count` of them, or for all with a `skip`.
pub fn select<'a, const N: usize, V: Fn(usize) -> SortValue<'a>>(
    rows: impl Iterator<Item = (Row, V)>,
    key_of: impl Fn(Row) -> ItemKey,
    is_descending: [bool; N],
    Part { after, skip, count, one_per_group }: Part,
) -> Selected {
    let compare = |a: &SortEntry<'a, N>, b: &SortEntry<'a, N>| {
        a.prefix.cmp(&b.prefix).then_with(|| {
            let mut compared = (0..N).map(|at| a.values[at].compare(b.values[at], is_descending[at]));
            compared.find(|ordering| ordering.is_ne()).unwrap_or_else(|| a.key.cmp(&b.key))
        })
    };
    let prefix_of = |value: SortValue| value.prefix(is_descending.first().is_some_and(|first| *first));
    let compare_row = |row: Row, prefix: u64, value: &V, with: &SortEntry<'_, N>| {
        prefix.cmp(&with.prefix).then_with(|| {
            let mut compared = (0..N).map(|at| value(at).compare(with.values[at], is_descending[at]));
            compared.find(|ordering| ordering.is_ne()).unwrap_or_else(|| key_of(row).cmp(&with.key))
        })
    };
    let after: Option<SortEntry<N>> = after.map(|position| {
        let value = |at: usize| position.values.get(at).map_or(SortValue::Missing, StoredValue::as_value);
        SortEntry { prefix: prefix_of(value(0)), values: std::array::from_fn(value), key: position.key, row: Row(0) }
    });
    let is_in_part = |row: Row, prefix: u64, value: &V| {
        after.as_ref().is_none_or(|after| compare_row(row, prefix, value, after).is_gt())
    };
    let entry = |row: Row, prefix: u64, value: V| SortEntry {
        prefix,
        values: std::array::from_fn(value),
        key: key_of(row),
        row,
    };
    // One more, to know whether others follow.
    let wanted = count.saturating_add(1);
    let capacity = wanted.saturating_mul(2).max(BUFFER_MIN);
    let mut best: Vec<SortEntry<'a, N>> = Vec::new();
    let mut worst: Option<SortEntry<'a, N>> = None;
    let mut skippable: Vec<(Row, V)> = Vec::new();
    let mut consider = |row: Row, value: V| {
        let prefix = prefix_of(value(0));
        if worst.as_ref().is_some_and(|worst| compare_row(row, prefix, &value, worst).is_gt())
            || !is_in_part(row, prefix, &value)
        {
            return;
        }
        if skip > 0 {
            skippable.push((row, value));
            return;
        }
        best.push(entry(row, prefix, value));
        if best.len() == capacity {
            best.select_nth_unstable_by(wanted - 1, compare);
            best.truncate(wanted);
            worst = best.last().copied();
        }
    };
    let mut firsts: FirstOfGroups<V> = FirstOfGroups::default();
    for (row, value) in rows {
        match one_per_group.and_then(|catalog| catalog.group_of(row)) {
            None => consider(row, value),
            Some(group) => firsts.add(group, row, value, |(row, value), (known, of_known)| {
                let mut compared = (0..N).map(|at| value(at).compare(of_known(at), is_descending[at]));
                let ordering = compared.find(|ordering| ordering.is_ne());
                ordering.unwrap_or_else(|| key_of(row).cmp(&key_of(known))).is_lt()
            }),
        }
    }
    firsts.rows.into_iter().for_each(|(row, value)| consider(row, value));
    if skip > 0 {
        let removed = narrow(&mut skippable, &key_of, is_descending, skip, count);
        best = skippable.into_iter().map(|(row, value)| entry(row, prefix_of(value(0)), value)).collect();
        let skip = skip - removed;
        if skip >= best.len() {
            return Selected::default();
        }
        best.select_nth_unstable_by(skip, compare);
        best.drain(..skip);
    }
    if best.len() > wanted {
        best.select_nth_unstable_by(wanted - 1, compare);
        best.truncate(wanted);
    }
    best.sort_unstable_by(compare);
    let has_more = best.len() > count;
    best.truncate(count);
    let position = |entry: &SortEntry<N>| {
        let values = entry.values.iter().map(|value| StoredValue::from(*value)).collect();
        (entry.row, Position { values, key: entry.key })
    };
    Selected { rows: best.iter().map(position).collect(), has_more }
}

/// Removes most rows that precede or follow a part, and returns the number of those that precede it. Compares values as
/// numbers: first those of the first key; those of the next key if all remaining rows have equal ones; last the keys of
/// items.
fn narrow<'a, const N: usize, V: Fn(usize) -> SortValue<'a>>(
    rows: &mut Vec<(Row, V)>,
    key_of: impl Fn(Row) -> ItemKey,
    is_descending: [bool; N],
    skip: usize,
    count: usize,
) -> usize {
    let mut removed = 0;
    for (at, is_descending) in is_descending.into_iter().enumerate() {
        let prefixes = rows.iter().map(|(_, value)| value(at).prefix(is_descending)).collect();
        removed += keep_around(rows, prefixes, skip - removed, count);
        let equal = rows.first().map(|(_, value)| value(at));
        if !rows.iter().all(|(_, value)| equal.is_some_and(|equal| equal.compare(value(at), false).is_eq())) {
            return removed;
        }
    }
    let keys = rows.iter().map(|(row, _)| u64::from(key_of(*row).0)).collect();
    removed + keep_around(rows, keys, skip - removed, count)
}

/// Keeps the rows whose numbers are those of a part, in the order of the numbers, or equal to its first or last one.
/// Returns the number of removed rows that precede it.
fn keep_around<T>(rows: &mut Vec<T>, numbers: Vec<u64>, skip: usize, count: usize) -> usize {
    if skip >= rows.len() || numbers.iter().all(|number| *number == numbers[0]) {
        return 0;
    }
    let mut selected = numbers.clone();
    let (_, first, behind) = selected.select_nth_unstable(skip);
    let first = *first;
    let last = if behind.len() > count { *behind.select_nth_unstable(count).1 } else { u64::MAX };
    let preceding = numbers.iter().filter(|number| **number < first).count();
    let mut of_rows = numbers.iter();
    rows.retain(|_| of_rows.next().is_some_and(|number| (first..=last).contains(number)));
    preceding
}

/// The first row of each group, with its values.
struct FirstOfGroups<V> {
    rows: Vec<(Row, V)>,
    /// By group: 1 + the index in `rows`, or 0.
    indices: Vec<u32>,
}

impl<V> Default for FirstOfGroups<V> {
    fn default() -> Self {
        Self { rows: Vec::new(), indices: Vec::new() }
    }
}

impl<V> FirstOfGroups<V> {
    /// Adds a row of a group. `precedes` returns whether the first row precedes the second one.
    fn add(&mut self, group: Group, row: Row, value: V, precedes: impl Fn((Row, &V), (Row, &V)) -> bool) {
        if self.indices.len() <= group.index() {
            self.indices.resize(group.index() + 1, 0);
        }
        match &mut self.indices[group.index()] {
            index @ 0 => {
                self.rows.push((row, value));
                *index = self.rows.len() as u32;
            }
            index => {
                let known = &mut self.rows[*index as usize - 1];
                if precedes((row, &value), (known.0, &known.1)) {
                    *known = (row, value);
                }
            }
        }
    }
}

/// The values of one field in one block. Titles and ids are read from the rows, beginning with the first of the block.
#[derive(Clone, Copy)]
enum FieldValues<'c> {
    Column(Option<&'c Column>),
    Distances(Option<&'c Column>, &'c Distance),
    Titles(&'c Catalog, usize),
    Ids(&'c Catalog, usize),
}

impl<'c> FieldValues<'c> {
    fn get(&self, at: usize) -> SortValue<'c> {
        match self {
            Self::Column(column) => column.map_or(SortValue::Missing, |column| column.value(at)),
            Self::Distances(column, from) => column.map_or(SortValue::Missing, |column| column.distance(at, from)),
            Self::Titles(catalog, first) => match catalog.own(Row((first + at) as u32)).title_normal.as_ref() {
                title if title.text.is_empty() => SortValue::Missing,
                title => SortValue::Text(title),
            },
            Self::Ids(catalog, first) => {
                SortValue::Text(TextValue::new(catalog.own(Row((first + at) as u32)).item.id.as_str()))
            }
        }
    }
}

impl Catalog {
    /// Returns a part of the rows in this order. The rows are ascending. The order has a key.
    pub fn select_by(&self, order: &OrderBy, rows: impl Iterator<Item = Row>, part: Part) -> Selected {
        match order.0.len() {
            0 => Selected::default(),
            1 => self.select_by_keys::<1>(order, rows, part),
            2 => self.select_by_keys::<2>(order, rows, part),
            3 => self.select_by_keys::<3>(order, rows, part),
            4 => self.select_by_keys::<4>(order, rows, part),
            _ => self.select_by_keys::<POSITION_VALUES_MAX>(order, rows, part),
        }
    }

    fn select_by_keys<const N: usize>(&self, order: &OrderBy, rows: impl Iterator<Item = Row>, part: Part) -> Selected {
        let of_block = |block: usize| -> [FieldValues; N] {
            std::array::from_fn(|at| match &order.0[at].field {
                Field::Title => FieldValues::Titles(self, block * BLOCK_ROWS),
                Field::ItemId => FieldValues::Ids(self, block * BLOCK_ROWS),
                field @ Field::Distance(from) => FieldValues::Distances(self.columns(block).column(field), from),
                field => FieldValues::Column(self.columns(block).column(field)),
            })
        };
        let blocks: Vec<[FieldValues; N]> = (0..self.row_count().div_ceil(BLOCK_ROWS)).map(of_block).collect();
        let valued = rows.map(|row| {
            let (values, at) = (&blocks[row.index() / BLOCK_ROWS], row.index() % BLOCK_ROWS);
            (row, move |key: usize| values[key].get(at))
        });
        select(valued, |row| self.key_of(row), order.directions::<N>(), part)
    }

    /// Returns the rank of each row in this order; rows with equal values have equal ranks.
    pub fn ranks_by(&self, order: &OrderBy, rows: &[Row]) -> Vec<u32> {
        let mut distinct = rows.to_vec();
        distinct.sort_unstable();
        distinct.dedup();
        let all = Part { count: distinct.len(), ..Part::default() };
        let sorted = self.select_by(order, distinct.into_iter(), all).rows;
        let (mut ranks, mut rank) = (Vec::with_capacity(all.count), 0);
        for (at, (row, position)) in sorted.iter().enumerate() {
            if at > 0 && sorted[at - 1].1.values != position.values {
                rank += 1;
            }
            ranks.push((*row, rank));
        }
        ranks.sort_unstable();
        let rank = |row: &Row| ranks.binary_search_by_key(row, |(row, _)| *row).map_or(u32::MAX, |at| ranks[at].1);
        rows.iter().map(rank).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{AttributeValue, Item, ItemKeys, ItemVectors};
    use lodestone_core::{
        ids::ItemId,
        text::normalize,
        units::{PriceMicros, UnixMillis},
    };
    use proptest::prelude::*;
    use std::sync::Arc;

    fn catalog(items: &[Item]) -> Catalog {
        let keys = ItemKeys::default();
        let mut catalog = Catalog::default();
        for item in items {
            catalog.upsert(&keys, Arc::new(item.clone()), ItemVectors::new(&[0.0], &[0.0]));
        }
        catalog
    }

    fn problems(text: &str) -> Vec<String> {
        OrderBy::parse(text).unwrap_err().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn every_problem_of_an_order_is_returned() {
        assert!(OrderBy::parse(" \t").unwrap().is_empty());
        let order = OrderBy::parse("price desc,attributes.weight asc , title").unwrap();
        assert_eq!(order.directions::<3>(), [true, false, false]);
        let found = problems("colour, price down, tags, price, price, title");
        assert_eq!(found.len(), 4, "{found:?}");
        assert_eq!(found[0], "has 6 keys; the limit is 4");
        assert!(found[1].starts_with("`colour` is not a field; use item_id, group_id, title"), "{found:?}");
        assert!(found[2].starts_with("`down` is not a direction"), "{found:?}");
        assert!(found[3].starts_with("`tags` does not sort"), "{found:?}");
        assert_eq!(problems("price, price desc"), ["`price` occurs twice; a field may occur once"]);
        assert!(problems("price,")[0].starts_with("key 2 is empty"));
        let near = OrderBy::parse("distance(attributes.branch, 52.5, 13.4) desc, price").unwrap();
        assert_eq!(near.directions::<2>(), [true, false]);
        assert!(problems("distance(attributes.branch, 99, 0)")[0].contains("is not a field"));
        assert!(problems(&"x".repeat(100_000))[0].chars().count() < 300);
        assert!(problems("description")[0].starts_with("`description` does not sort"));
        assert!(OrderBy::parse("attributes.a b c").is_err() && OrderBy::parse("category").is_err());
    }

    prop_compose! {
        fn any_item()(
            number in 0..3u8, price in prop::option::of(0..4i64), brand in "[ABab]{0,2}", title in "[a-cÄ ]{1,4}",
            stock in prop::option::of(0..3u32), created in prop::option::of(0..3i64), weight in 0..8u8,
        ) -> Item {
            let mut item = Item::titled(ItemId::parse(&format!("i{number}")).unwrap(), &title);
            (item.price, item.brand) = (price.and_then(|price| PriceMicros::new(price * 1_000_000)), brand);
            (item.stock_quantity, item.created_at) = (stock, created.map(UnixMillis));
            let weight = match weight {
                0 => Some(AttributeValue::Text("Heavy".to_owned())),
                1 => Some(AttributeValue::Text("light".to_owned())),
                2 => Some(AttributeValue::Flag(true)),
                3 => None,
                weight => Some(AttributeValue::Number(f64::from(weight) - 5.0)),
            };
            item.attributes.extend(weight.map(|weight| ("weight".to_owned(), weight)));
            item
        }
    }

    /// The values of an item by which the reference sorts: the type, a number and a text. None: no value.
    fn reference(item: &Item, field: &str) -> Option<(u8, f64, String)> {
        let number = |number: f64| (1, number, String::new());
        let text = |text: &str| Some((2, 0.0, normalize(text))).filter(|(_, _, text)| !text.is_empty());
        match field {
            "price" => item.price.map(|price| number(price.units())),
            "stock_quantity" => item.stock_quantity.map(|stock| number(f64::from(stock))),
            "create_time" => item.created_at.map(|at| number(at.0 as f64)),
            "brand" => text(&item.brand),
            "title" => text(&item.title),
            "item_id" => Some((2, 0.0, item.id.to_string())),
            "in_stock" => Some((0, f64::from(u8::from(item.is_in_stock())), String::new())),
            _ => match item.attributes.get("weight")? {
                AttributeValue::Flag(flag) => Some((0, f64::from(u8::from(*flag)), String::new())),
                AttributeValue::Number(value) => Some(number(*value)),
                AttributeValue::Text(value) => text(value),
                AttributeValue::Texts(_) | AttributeValue::Time(_) | AttributeValue::GeoPoint(_) => None,
            },
        }
    }

    fn any_value() -> impl Strategy<Value = StoredValue> {
        prop_oneof![
            Just(StoredValue::Missing),
            any::<bool>().prop_map(StoredValue::Flag),
            prop::num::f64::NORMAL.prop_map(StoredValue::Number),
            (-3i8..3).prop_map(|number| StoredValue::Number(f64::from(number))),
            "[a-c]{0,9}".prop_map(|text| StoredValue::Text(text.into())),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn different_prefixes_order_values_as_the_values_do(a in any_value(), b in any_value(), is_descending in any::<bool>()) {
            let (a, b) = (a.as_value(), b.as_value());
            let by_prefix = a.prefix(is_descending).cmp(&b.prefix(is_descending));
            prop_assert!(by_prefix.is_eq() || by_prefix == a.compare(b, is_descending), "{a:?} {b:?}");
        }

        #[test]
        fn pages_by_position_and_by_number_are_those_of_a_sorted_list(
            items in prop::collection::vec(any_item(), 0..40),
            order in prop::collection::vec((prop::sample::select(&[
                "price", "brand", "title", "stock_quantity", "create_time", "item_id", "in_stock", "attributes.weight",
            ][..]), any::<bool>()), 1..5),
            size in 1..9usize, repeats in prop::sample::select(&[1usize, 100][..]),
        ) {
            let mut order: Vec<(&str, bool)> = order;
            order.sort_unstable();
            order.dedup_by_key(|(field, _)| *field);
            let items: Vec<Item> = (0..items.len() * repeats)
                .map(|at| Item { id: ItemId::parse(&format!("i{}", at * 7919 % 10_007)).unwrap(), ..items[at % items.len()].clone() })
                .collect();
            let catalog = catalog(&items);
            let text: Vec<String> =
                order.iter().map(|(field, desc)| format!("{field}{}", if *desc { " desc" } else { "" })).collect();
            let by = OrderBy::parse(&text.join(", ")).unwrap();
            let mut expected: Vec<u32> = (0..items.len() as u32).collect();
            let compare = |a: &u32, b: &u32| {
                let of = |(field, desc): &(&str, bool)| {
                    let [a, b] = [*a, *b].map(|at| reference(&items[at as usize], field));
                    match (a, b) {
                        (Some(a), Some(b)) if *desc => b.partial_cmp(&a).unwrap(),
                        (Some(a), Some(b)) => a.partial_cmp(&b).unwrap(),
                        (a, b) => b.is_some().cmp(&a.is_some()),
                    }
                };
                order.iter().map(of).find(|ordering| ordering.is_ne()).unwrap_or(Ordering::Equal)
            };
            expected.sort_by(compare);
            let rows = || (0..items.len() as u32).map(Row);
            let (mut paged, mut after) = (Vec::new(), None);
            let size = size * repeats;
            loop {
                let page = catalog.select_by(&by, rows(), Part { after: after.as_ref(), skip: 0, count: size, one_per_group: None });
                let numbered = catalog.select_by(&by, rows(), Part { after: None, skip: paged.len(), count: size, one_per_group: None });
                prop_assert_eq!(&page, &numbered);
                after = page.rows.last().map(|(_, position)| position.clone());
                paged.extend(page.rows.iter().map(|(row, _)| row.0));
                prop_assert_eq!(page.has_more, paged.len() < items.len());
                if !page.has_more {
                    break;
                }
                let mut bytes = Vec::new();
                after.as_ref().unwrap().encode(&mut bytes);
                prop_assert_eq!(Position::decode(&bytes), after.clone());
            }
            prop_assert_eq!(&paged, &expected);
            let ranks = catalog.ranks_by(&by, &rows().collect::<Vec<_>>());
            for pair in expected.windows(2) {
                let [a, b] = [pair[0], pair[1]].map(|at| ranks[at as usize]);
                prop_assert_eq!(b - a, u32::from(compare(&pair[0], &pair[1]).is_ne()));
            }
        }

        #[test]
        fn other_bytes_are_no_position(bytes in prop::collection::vec(0..6u8, 0..40)) {
            if let Some(position) = Position::decode(&bytes) {
                let mut encoded = Vec::new();
                position.encode(&mut encoded);
                prop_assert_eq!(encoded, bytes);
            }
        }
    }
}
