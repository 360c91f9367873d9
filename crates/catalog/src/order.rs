//! Orders of items by their fields: the language of `order_by`, and the selection of a page from many rows.
use super::{
    Catalog, Distance, Field, Group,
    filter::{BLOCK_ROWS, Column, OnlyValues, Texts},
};
use lodestone_core::ids::{ItemKey, Row};
use std::{cell::Cell, cmp::Ordering, sync::Arc};

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
    /// Returns the value of a number, which is NaN for none.
    #[inline]
    pub(crate) fn number(number: f64) -> Self {
        // -0 is equal to 0.
        if number.is_nan() { Self::Missing } else { Self::Number(number + 0.0) }
    }

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
    #[inline]
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

    pub(crate) fn prefix(&self) -> u64 {
        self.prefix
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

/// A row with the values that sort it.
trait SortRow<'a> {
    fn row(&self) -> Row;

    fn value(&self, key: usize) -> SortValue<'a>;

    /// Returns [`SortValue::prefix`] of a value.
    fn prefix(&self, key: usize, is_descending: bool) -> u64 {
        self.value(key).prefix(is_descending)
    }
}

impl<'a, V: Fn(usize) -> SortValue<'a>> SortRow<'a> for (Row, V) {
    fn row(&self) -> Row {
        self.0
    }

    fn value(&self, key: usize) -> SortValue<'a> {
        self.1(key)
    }
}

/// Returns a part of the rows. Each is with a function that returns its value of a sort key: a row that the first value
/// decides is not read further. `is_descending` has the direction of each value; ties are in the order of the keys. One
/// pass over the rows, and memory for `count` of them; with a `skip` for each row that none of those read before it shows to
/// be behind the part.
pub fn select<'a, const N: usize, V: Fn(usize) -> SortValue<'a>>(
    rows: impl Iterator<Item = (Row, V)>,
    key_of: impl Fn(Row) -> ItemKey,
    is_descending: [bool; N],
    part: Part,
) -> Selected {
    select_rows(rows, key_of, is_descending, part)
}

fn select_rows<'a, const N: usize, R: SortRow<'a>>(
    rows: impl Iterator<Item = R>,
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
    let is_first_descending = is_descending.first().is_some_and(|first| *first);
    let compare_row = |row: &R, prefix: u64, with: &SortEntry<'_, N>| {
        prefix.cmp(&with.prefix).then_with(|| {
            let mut compared = (0..N).map(|at| row.value(at).compare(with.values[at], is_descending[at]));
            compared.find(|ordering| ordering.is_ne()).unwrap_or_else(|| key_of(row.row()).cmp(&with.key))
        })
    };
    let after: Option<SortEntry<N>> = after.map(|position| {
        let value = |at: usize| position.values.get(at).map_or(SortValue::Missing, StoredValue::as_value);
        let prefix = value(0).prefix(is_first_descending);
        SortEntry { prefix, values: std::array::from_fn(value), key: position.key, row: Row(0) }
    });
    let entry = |prefix: u64, row: &R| SortEntry {
        prefix,
        values: std::array::from_fn(|at| row.value(at)),
        key: key_of(row.row()),
        row: row.row(),
    };
    // One more, to know whether others follow.
    let wanted = count.saturating_add(1);
    let capacity = wanted.saturating_mul(2).max(BUFFER_MIN);
    let mut best: Vec<SortEntry<'a, N>> = Vec::new();
    let mut worst: Option<SortEntry<'a, N>> = None;
    let mut skippable: Vec<R> = Vec::new();
    // The prefixes of these rows, with their indices. Small entries, which are moved often.
    let mut numbers: Vec<(u64, u32)> = Vec::new();
    let mut numbers_max = skip.saturating_add(wanted).saturating_mul(2);
    // Rows with other prefixes are not in the part. Most rows are left out by these two comparisons.
    let (prefix_min, prefix_max) = (after.as_ref().map_or(0, |after| after.prefix), Cell::new(u64::MAX));
    let mut consider = |prefix: u64, row: R| {
        if worst.as_ref().is_some_and(|worst| compare_row(&row, prefix, worst).is_gt())
            || after.as_ref().is_some_and(|after| compare_row(&row, prefix, after).is_le())
        {
            return;
        }
        if skip > 0 {
            numbers.push((prefix, skippable.len() as u32));
            skippable.push(row);
            if numbers.len() == numbers_max {
                // Rows with equal prefixes stay, so there may be more of them than the part needs.
                if keep_around(&mut numbers, 0, skip.saturating_add(count)).is_some() {
                    prefix_max.set(numbers.iter().map(|(number, _)| *number).max().unwrap_or(u64::MAX));
                }
                numbers_max = numbers_max.max(numbers.len().saturating_mul(2));
            }
            return;
        }
        best.push(entry(prefix, &row));
        if best.len() == capacity {
            best.select_nth_unstable_by(wanted - 1, compare);
            best.truncate(wanted);
            worst = best.last().copied();
            prefix_max.set(best[wanted - 1].prefix);
        }
    };
    let mut consider = |row: R| {
        let prefix = row.prefix(0, is_first_descending);
        if prefix >= prefix_min && prefix <= prefix_max.get() {
            consider(prefix, row);
        }
    };
    let mut firsts: FirstOfGroups<R> = FirstOfGroups::default();
    for row in rows {
        match one_per_group.and_then(|catalog| catalog.group_of(row.row())) {
            None => consider(row),
            Some(group) => firsts.add(group, row, |row, known| {
                let mut compared = (0..N).map(|at| row.value(at).compare(known.value(at), is_descending[at]));
                let ordering = compared.find(|ordering| ordering.is_ne());
                ordering.unwrap_or_else(|| key_of(row.row()).cmp(&key_of(known.row()))).is_lt()
            }),
        }
    }
    firsts.rows.into_iter().for_each(&mut consider);
    if skip > 0 {
        let removed = narrow(&skippable, &mut numbers, &key_of, is_descending, skip, count);
        let rows = numbers.iter().map(|(_, index)| &skippable[*index as usize]);
        best = rows.map(|row| entry(row.prefix(0, is_first_descending), row)).collect();
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

/// Removes most rows that precede or follow a part, and returns the number of those that precede it. `numbers` has rows by
/// their index. Compares values as numbers: first those of the first key, which `numbers` has; those of the next key if all
/// remaining rows have equal ones; last the keys of items.
fn narrow<'a, const N: usize, R: SortRow<'a>>(
    rows: &[R],
    numbers: &mut Vec<(u64, u32)>,
    key_of: impl Fn(Row) -> ItemKey,
    is_descending: [bool; N],
    skip: usize,
    count: usize,
) -> usize {
    let mut removed = 0;
    if skip >= numbers.len() {
        return removed;
    }
    for at in 0..=N {
        if at > 0 {
            for (number, index) in numbers.iter_mut() {
                let row = &rows[*index as usize];
                let key = || u64::from(key_of(row.row()).0);
                *number = is_descending.get(at).map_or_else(key, |is_descending| row.prefix(at, *is_descending));
            }
        }
        removed += keep_around(numbers, skip - removed, count).unwrap_or(0);
        let first = numbers[0];
        if numbers.iter().any(|(number, _)| *number != first.0) {
            return removed;
        }
        // Only a missing value has the greatest number.
        if at < N && first.0 != u64::MAX {
            let value = |index: u32| rows[index as usize].value(at);
            let first = value(first.1);
            if !numbers.iter().all(|(_, index)| first.compare(value(*index), false).is_eq()) {
                return removed;
            }
        }
    }
    removed
}

/// Keeps the entries of a part in the order of their numbers, and those with the number of its first or last one. Returns
/// the number of removed entries that precede it; none if all numbers are equal. The part begins with one of the entries.
fn keep_around(numbers: &mut Vec<(u64, u32)>, skip: usize, count: usize) -> Option<usize> {
    let number = |entry: &(u64, u32)| entry.0;
    let equal = number(&numbers[0]);
    if numbers.iter().all(|entry| number(entry) == equal) {
        return None;
    }
    let (before, first, behind) = numbers.select_nth_unstable_by_key(skip, number);
    let first = number(first);
    let last = match behind.len() > count {
        true => number(behind.select_nth_unstable_by_key(count, number).1),
        false => u64::MAX,
    };
    let preceding = before.iter().filter(|entry| number(entry) < first).count();
    numbers.retain(|entry| (first..=last).contains(&number(entry)));
    Some(preceding)
}

/// The first row of each group.
struct FirstOfGroups<R> {
    rows: Vec<R>,
    /// By group: 1 + the index in `rows`, or 0.
    indices: Vec<u32>,
}

impl<R> Default for FirstOfGroups<R> {
    fn default() -> Self {
        Self { rows: Vec::new(), indices: Vec::new() }
    }
}

impl<R> FirstOfGroups<R> {
    /// Adds a row of a group. `precedes` returns whether the first row precedes the second one.
    fn add(&mut self, group: Group, row: R, precedes: impl Fn(&R, &R) -> bool) {
        if self.indices.len() <= group.index() {
            self.indices.resize(group.index() + 1, 0);
        }
        match &mut self.indices[group.index()] {
            index @ 0 => {
                self.rows.push(row);
                *index = self.rows.len() as u32;
            }
            index => {
                let known = &mut self.rows[*index as usize - 1];
                if precedes(&row, known) {
                    *known = row;
                }
            }
        }
    }
}

/// The values of one field in one block. Titles and ids are read from the rows, beginning with the first of the block.
#[derive(Clone, Copy)]
enum FieldValues<'c> {
    /// No item has a value of another type, nor in the next ones.
    Numbers(&'c [f64; BLOCK_ROWS]),
    Texts(&'c Texts),
    Column(Option<&'c Column>),
    Distances(Option<&'c Column>, &'c Distance),
    Titles(&'c Catalog, usize),
    Ids(&'c Catalog, usize),
}

impl<'c> FieldValues<'c> {
    fn of(catalog: &'c Catalog, field: &'c Field, block: usize) -> Self {
        let column = catalog.columns(block).column(field);
        match field {
            Field::Title => Self::Titles(catalog, block * BLOCK_ROWS),
            Field::ItemId => Self::Ids(catalog, block * BLOCK_ROWS),
            Field::Distance(from) => Self::Distances(column, from),
            _ => match column.map(Column::only) {
                Some(OnlyValues::Numbers(numbers)) => Self::Numbers(numbers),
                Some(OnlyValues::Texts(texts)) => Self::Texts(texts),
                Some(OnlyValues::Mixed) | None => Self::Column(column),
            },
        }
    }

    fn get(&self, at: usize) -> SortValue<'c> {
        match self {
            Self::Numbers(numbers) => SortValue::number(numbers[at]),
            Self::Texts(texts) => texts.value(at),
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

/// A row with the fields of its block.
#[derive(Clone, Copy)]
struct BlockRow<'b, 'c, const N: usize> {
    fields: &'b [FieldValues<'c>; N],
    row: Row,
}

impl<'c, const N: usize> SortRow<'c> for BlockRow<'_, 'c, N> {
    fn row(&self) -> Row {
        self.row
    }

    fn value(&self, key: usize) -> SortValue<'c> {
        self.fields[key].get(self.row.index() % BLOCK_ROWS)
    }

    #[inline]
    fn prefix(&self, key: usize, is_descending: bool) -> u64 {
        match (&self.fields[key], self.row.index() % BLOCK_ROWS) {
            (FieldValues::Numbers(numbers), at) => SortValue::number(numbers[at]).prefix(is_descending),
            (FieldValues::Texts(texts), at) => match texts.prefix(at) {
                0 => texts.value(at).prefix(is_descending),
                prefix => SortValue::Text(TextValue { prefix, text: "" }).prefix(is_descending),
            },
            (fields, at) => fields.get(at).prefix(is_descending),
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
            std::array::from_fn(|at| FieldValues::of(self, &order.0[at].field, block))
        };
        let blocks: Vec<[FieldValues; N]> = (0..self.row_count().div_ceil(BLOCK_ROWS)).map(of_block).collect();
        let rows = rows.map(|row| BlockRow { fields: &blocks[row.index() / BLOCK_ROWS], row });
        select_rows(rows, |row| self.key_of(row), order.directions::<N>(), part)
    }

    /// Returns the value by which a row sorts by its time of creation. Unlike [`Catalog::own`], it reads only the columns, so
    /// that it is fast for many rows.
    pub fn create_time(&self, row: Row) -> SortValue<'_> {
        self.columns(row.index() / BLOCK_ROWS).create_time(row.index() % BLOCK_ROWS)
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

        /// Narrowing is exact for ties, for values of all types, and for numbers that differ in their last bits.
        #[test]
        fn any_part_by_number_is_that_of_a_sorted_list(
            drawn in prop::collection::vec((any_value(), any_value()), 1..60), repeats in 1..40usize,
            is_descending in any::<[bool; 2]>(), skip in 0..2500usize, count in 0..60usize,
        ) {
            let length = drawn.len() * repeats;
            let value = |row: Row, at: usize| match (&drawn[row.index() % drawn.len()], at) {
                ((StoredValue::Number(number), _), 0) => SortValue::Number(f64::from_bits(number.to_bits() ^ u64::from(row.0 % 3))),
                ((first, _), 0) => first.as_value(),
                ((_, second), _) => second.as_value(),
            };
            // Keys in another order than that of the rows.
            let key_of = |row: Row| ItemKey((row.0 * 7919) % 10_007);
            let mut expected: Vec<Row> = (0..length as u32).map(Row).collect();
            expected.sort_by(|a, b| {
                let mut compared = (0..2).map(|at| value(*a, at).compare(value(*b, at), is_descending[at]));
                compared.find(|ordering| ordering.is_ne()).unwrap_or_else(|| key_of(*a).cmp(&key_of(*b)))
            });
            let rows = (0..length as u32).map(|row| (Row(row), move |at: usize| value(Row(row), at)));
            let part = select(rows, key_of, is_descending, Part { skip, count, ..Part::default() });
            let found: Vec<Row> = part.rows.iter().map(|(row, _)| *row).collect();
            let end = (skip + count).min(length);
            prop_assert_eq!(&found[..], &expected[skip.min(length)..end]);
            prop_assert_eq!(part.has_more, end < length && skip < length);
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
            for (at, item) in items.iter().enumerate() {
                let created = item.created_at.map_or(SortValue::Missing, |at| SortValue::Number(at.0 as f64));
                prop_assert_eq!(catalog.create_time(Row(at as u32)), created);
            }
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
