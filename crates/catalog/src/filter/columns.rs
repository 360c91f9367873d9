//! Columns of the field values of a block of items, so that a filter is evaluated for many items at once.
use super::{Distance, Field, Filter, Literal, Node, Operator, Predicate, path_normal};
use crate::{
    AttributeKind, AttributeValue, Availability, GeoPoint, Item, OfferKey,
    counts::ValueCounts,
    groups::BlockGroups,
    item::{Pricing, category_levels, margin, upper_paths},
    offers::OfferRows,
    order::{SortText, SortValue},
    prepared::hash,
};
use ahash::AHashMap;
use lodestone_core::{
    bits,
    text::normalize,
    units::{PriceMicros, UnixMillis},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, LazyLock},
};

/// The number of items of a block.
pub(crate) const BLOCK_ROWS: usize = 1024;

/// One bit for each item of a block.
pub(crate) type Mask = [u64; BLOCK_ROWS / 64];

const NONE: Mask = [0; BLOCK_ROWS / 64];
/// The number of indices that take as much memory as a mask.
const SPARSE_MAX: usize = size_of::<Mask>() / size_of::<u16>();

/// The fields that are a number in every item, or a time.
const NUMBERS: [Field; 8] = [
    Field::Price,
    Field::OriginalPrice,
    Field::Discount,
    Field::Margin,
    Field::Rating,
    Field::RatingCount,
    Field::StockQuantity,
    Field::CreateTime,
];
/// The index of [`Field::CreateTime`] in [`NUMBERS`].
const CREATE_TIME: usize = 7;

/// The columns of one block. Titles, descriptions and ids have no column, because almost every item has a different
/// value. They are read from the items that the other conditions leave. Snapshots of the catalogue share the columns
/// that did not change.
#[derive(Debug, Clone, Default)]
pub struct Columns {
    group_id: Arc<Column>,
    category: Arc<LabelColumn>,
    category_path: Arc<LabelColumn>,
    brand: Arc<Column>,
    currency: Arc<Column>,
    in_stock: Arc<Column>,
    availability: Arc<Column>,
    tags: Arc<LabelColumn>,
    /// In the order of [`NUMBERS`].
    numbers: [Arc<Column>; NUMBERS.len()],
    attributes: Arc<AHashMap<Box<str>, Arc<Column>>>,
    /// By key.
    offers: Arc<AHashMap<OfferKey, Arc<OfferRows>>>,
    /// What the shop pays, in micros: the margin of a price of an offer follows from it.
    costs: Arc<Option<Numbers>>,
    /// The stated availability of each item: what the stock of an offer means follows from it. None: no item has one.
    stated_availability: Arc<Option<Box<[Option<Availability>; BLOCK_ROWS]>>>,
}

/// The labels of paths of categories, which many items share.
#[derive(Default)]
pub(crate) struct CategoryLabels {
    of_path: AHashMap<Box<str>, LabelsOfPath>,
}

/// The distinct names of the levels of a path and the paths up to each level, in normal form.
struct LabelsOfPath {
    names: Vec<String>,
    paths: Vec<String>,
}

impl CategoryLabels {
    /// Paths that are kept.
    const PATHS_MAX: usize = 10_000;

    fn of(&mut self, path: &str) -> &LabelsOfPath {
        if !self.of_path.contains_key(path) {
            if self.of_path.len() == Self::PATHS_MAX {
                self.of_path.clear();
            }
            let names = category_levels(path).map(normalize).collect();
            self.of_path
                .insert(path.into(), LabelsOfPath { names, paths: upper_paths(path).map(path_normal).collect() });
        }
        &self.of_path[path]
    }
}

/// The texts of a field with several values for each item.
#[derive(Debug, Clone, Default)]
struct LabelColumn {
    /// The items with each text in normal form.
    items: AHashMap<Box<str>, Items>,
}

/// Items of a block; never none.
#[derive(Debug, Clone)]
enum Items {
    /// The indices of at most [`SPARSE_MAX`] items, ascending.
    Sparse(Vec<u16>),
    Dense(Box<Mask>),
}

/// The values of a field with one value for each item. An attribute may be a text in one item and a number in another.
#[derive(Debug, Clone, Default)]
pub(crate) struct Column {
    texts: Option<Box<Texts>>,
    numbers: Option<Numbers>,
    /// In milliseconds since 1970.
    times: Option<Numbers>,
    /// NaN for items without a place.
    points: Option<Box<[GeoPoint; BLOCK_ROWS]>>,
    /// The items with the value true, and the items with any value.
    flags: Option<[Mask; 2]>,
    /// Items with several texts.
    lists: Option<Box<LabelColumn>>,
}

/// Texts as numbers, so that texts of many items are compared and counted without reading them.
#[derive(Debug, Clone)]
pub(crate) struct Texts {
    /// For each item 1 + the index of its text, which may be empty, or 0 without a text.
    codes: [u16; BLOCK_ROWS],
    known: Vec<KnownText>,
    /// By code: the first bytes of the text, so that most texts are compared with few reads; 0 for the code 0.
    prefixes: Vec<u64>,
    index_of: AHashMap<Arc<str>, u16>,
    /// Indices of texts that no item has any more.
    free: Vec<u16>,
}

/// The values of a column by which items sort.
pub(crate) enum OnlyValues<'c> {
    /// NaN for items without a value.
    Numbers(&'c [f64; BLOCK_ROWS]),
    Texts(&'c Texts),
    /// Flags, or values of several types.
    Mixed,
}

#[derive(Debug, Clone)]
struct KnownText {
    text: SortText,
    /// Equal for equal texts in all blocks.
    hash: u64,
    item_count: u16,
    /// How all of its items write it. None: they differ, or it is not known.
    spelling: Option<Arc<str>>,
}

#[derive(Debug, Clone)]
struct Numbers {
    /// One value for each item; NaN, which matches no comparison, for items without a value.
    values: Box<[f64; BLOCK_ROWS]>,
    least: f64,
    most: f64,
}

const NO_POINT: GeoPoint = GeoPoint { latitude: f64::NAN, longitude: f64::NAN };

impl Numbers {
    fn set(numbers: &mut Option<Self>, at: usize, number: f64) {
        let numbers = numbers.get_or_insert_with(|| Self {
            values: Box::new([f64::NAN; BLOCK_ROWS]),
            least: f64::INFINITY,
            most: f64::NEG_INFINITY,
        });
        numbers.values[at] = number;
        (numbers.least, numbers.most) = (numbers.least.min(number), numbers.most.max(number));
    }

    /// Removes a value. The range stays, because it only has to contain all values.
    fn remove(numbers: &mut Option<Self>, at: usize) {
        if let Some(numbers) = numbers {
            numbers.values[at] = f64::NAN;
        }
    }

    fn get(numbers: &Option<Self>, at: usize) -> Option<f64> {
        numbers.as_ref().map(|numbers| numbers.values[at]).filter(|number| !number.is_nan())
    }

    fn is_empty(numbers: &Option<Self>) -> bool {
        numbers.as_ref().is_none_or(|numbers| numbers.values.iter().all(|value| value.is_nan()))
    }

    fn compare(numbers: &Option<Self>, operator: Operator, limit: f64) -> Mask {
        let Some(numbers) = numbers else { return NONE };
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

impl LabelColumn {
    /// Adds a label in normal form.
    fn insert(&mut self, at: usize, label: &str) {
        match self.items.get_mut(label) {
            Some(items) => items.insert(at),
            None => _ = self.items.insert(label.into(), Items::Sparse(vec![at as u16])),
        }
    }

    fn remove(&mut self, at: usize, label: &str) {
        if let Some(items) = self.items.get_mut(label)
            && items.remove_is_last(at)
        {
            self.items.remove(label);
        }
    }

    fn with_text(&self, normal: &str) -> Mask {
        self.items.get(normal).map_or(NONE, Items::mask)
    }

    /// Returns the items with a text that meets a condition.
    fn with(&self, meets: impl Fn(&str) -> bool) -> Mask {
        let items = self.items.iter().filter(|(label, _)| meets(label));
        items.fold(NONE, |mask, (_, items)| or(mask, &items.mask()))
    }

    /// Returns the items whose texts satisfy the predicate: HAS compares whole texts, and `!=` matches also items
    /// without a text.
    fn matching(&self, predicate: &Predicate) -> Mask {
        let equals = |literal: &Literal| match literal {
            Literal::Text(text) => self.with_text(&text.normal),
            _ => NONE,
        };
        match predicate {
            Predicate::Compare(Operator::Equal, literal) => equals(literal),
            Predicate::Compare(Operator::Unequal, Literal::Text(text)) => {
                and_not([u64::MAX; BLOCK_ROWS / 64], &self.with_text(&text.normal))
            }
            Predicate::Compare(..) => NONE,
            Predicate::In(literals) => literals.iter().fold(NONE, |mask, literal| or(mask, &equals(literal))),
            Predicate::Has(text) => self.with_text(&text.normal),
        }
    }

    fn count<'c>(&'c self, among: &Mask, counts: &mut ValueCounts<'c>) {
        for (label, items) in self.items.iter().filter(|(label, _)| !label.is_empty()) {
            counts.add_text(hash(&**label), label, items.count(among));
        }
    }

    fn count_groups<'c>(&'c self, among: &Mask, groups: BlockGroups, counts: &mut ValueCounts<'c>) {
        for (label, items) in self.items.iter().filter(|(label, _)| !label.is_empty()) {
            let hash = hash(&**label);
            for (_, group) in groups.of(&and(items.mask(), among)) {
                counts.add_text_of_group(hash, label, group);
            }
        }
    }
}

impl Items {
    fn insert(&mut self, at: usize) {
        match self {
            Self::Dense(mask) => set(mask, at),
            Self::Sparse(items) => {
                if let Err(index) = items.binary_search(&(at as u16)) {
                    items.insert(index, at as u16);
                }
                if items.len() > SPARSE_MAX {
                    *self = Self::Dense(Box::new(self.mask()));
                }
            }
        }
    }

    /// Removes an item, and returns whether none is left.
    fn remove_is_last(&mut self, at: usize) -> bool {
        match self {
            Self::Dense(mask) => {
                clear(mask, at);
                **mask == NONE
            }
            Self::Sparse(items) => {
                if let Ok(index) = items.binary_search(&(at as u16)) {
                    items.remove(index);
                }
                items.is_empty()
            }
        }
    }

    fn mask(&self) -> Mask {
        match self {
            Self::Dense(mask) => **mask,
            Self::Sparse(items) => {
                let mut mask = NONE;
                items.iter().for_each(|at| set(&mut mask, usize::from(*at)));
                mask
            }
        }
    }

    /// Returns the number of items that are in `among` too.
    fn count(&self, among: &Mask) -> u64 {
        match self {
            Self::Dense(mask) => bits::count(&and(**mask, among), BLOCK_ROWS) as u64,
            Self::Sparse(items) => items.iter().filter(|at| bits::has(among, usize::from(**at))).count() as u64,
        }
    }
}

impl Default for Texts {
    fn default() -> Self {
        Self {
            codes: [0; BLOCK_ROWS],
            known: Vec::new(),
            prefixes: vec![0],
            index_of: AHashMap::new(),
            free: Vec::new(),
        }
    }
}

impl Texts {
    /// Sets a text in normal form. `written`: as its item writes it; none if that is not known.
    fn insert(&mut self, at: usize, normal: &str, written: Option<&str>) {
        self.remove(at);
        let index = match self.index_of.get(normal) {
            Some(index) => *index,
            None => self.create(normal, written),
        };
        let known = &mut self.known[usize::from(index)];
        known.item_count += 1;
        if known.spelling.as_deref() != written {
            known.spelling = None;
        }
        self.codes[at] = index + 1;
    }

    fn create(&mut self, normal: &str, written: Option<&str>) -> u16 {
        let text = SortText::new(normal);
        let shared = text.shared();
        let spelling = written.map(|written| if written == normal { shared.clone() } else { written.into() });
        let prefix = text.prefix();
        let known = KnownText { text, hash: hash(normal), item_count: 0, spelling };
        let index = match self.free.pop() {
            Some(index) => {
                self.known[usize::from(index)] = known;
                self.prefixes[usize::from(index) + 1] = prefix;
                index
            }
            None => {
                self.known.push(known);
                self.prefixes.push(prefix);
                (self.known.len() - 1) as u16
            }
        };
        self.index_of.insert(shared, index);
        index
    }

    fn remove(&mut self, at: usize) {
        let Some(index) = std::mem::take(&mut self.codes[at]).checked_sub(1) else { return };
        let known = &mut self.known[usize::from(index)];
        known.item_count -= 1;
        if known.item_count == 0 {
            self.index_of.remove(known.text.as_str());
            self.free.push(index);
        }
    }

    fn get(&self, at: usize) -> Option<&SortText> {
        self.known(at).map(|known| &known.text)
    }

    fn known(&self, at: usize) -> Option<&KnownText> {
        let index = self.codes[at].checked_sub(1)?;
        Some(&self.known[usize::from(index)])
    }

    /// Returns the first bytes of an item's text as [`SortText`] has them. 0: no text, an empty one, or one of zeros.
    #[inline]
    pub(crate) fn prefix(&self, at: usize) -> u64 {
        self.prefixes[usize::from(self.codes[at])]
    }

    /// Returns the value by which an item sorts. A text whose normal form is empty is no value.
    pub(crate) fn value(&self, at: usize) -> SortValue<'_> {
        match self.get(at) {
            Some(text) if !text.as_str().is_empty() => SortValue::Text(text.as_ref()),
            _ => SortValue::Missing,
        }
    }

    fn with_text(&self, normal: &str) -> Mask {
        self.index_of.get(normal).map_or(NONE, |index| {
            let code = index + 1;
            mask_of(&self.codes, |of| of == code)
        })
    }

    /// Returns the items with a text that meets a condition.
    fn with(&self, meets: impl Fn(&str) -> bool) -> Mask {
        let of_code: Vec<bool> = std::iter::once(false)
            .chain(self.known.iter().map(|known| known.item_count > 0 && meets(known.text.as_str())))
            .collect();
        mask_of(&self.codes, |code| of_code[usize::from(code)])
    }

    fn count<'c>(&'c self, among: &Mask, counts: &mut ValueCounts<'c>) {
        let mut of_code = vec![0u32; self.known.len() + 1];
        bits::ones(among, 0).for_each(|at| of_code[usize::from(self.codes[at])] += 1);
        let counted = self.known.iter().zip(&of_code[1..]).filter(|(known, _)| !known.text.as_str().is_empty());
        for (known, count) in counted {
            counts.add_text(known.hash, known.text.as_str(), u64::from(*count));
        }
    }
}

impl Column {
    /// Returns the value of the item at a position. A text whose normal form is empty is no value.
    pub(crate) fn value(&self, at: usize) -> SortValue<'_> {
        if let Some(texts) = &self.texts
            && let text @ SortValue::Text(_) = texts.value(at)
        {
            return text;
        }
        let number = Numbers::get(&self.numbers, at).or_else(|| Numbers::get(&self.times, at));
        if let Some(number) = number {
            return SortValue::number(number);
        }
        let flag = || {
            let [is_true, present] = self.flags.as_ref()?;
            bits::has(present, at).then(|| SortValue::Flag(bits::has(is_true, at)))
        };
        flag().unwrap_or(SortValue::Missing)
    }

    /// Returns the values by which items sort if they are of one type.
    pub(crate) fn only(&self) -> OnlyValues<'_> {
        match self {
            Self { texts: None, numbers: Some(numbers), times: None, flags: None, .. }
            | Self { texts: None, numbers: None, times: Some(numbers), flags: None, .. } => {
                OnlyValues::Numbers(&numbers.values)
            }
            Self { texts: Some(texts), numbers: None, times: None, flags: None, .. } => OnlyValues::Texts(texts),
            _ => OnlyValues::Mixed,
        }
    }

    /// Returns the distance of the item's location; missing without a location.
    pub(crate) fn distance(&self, at: usize, from: &Distance) -> SortValue<'_> {
        let point = self.points.as_ref().map(|points| points[at]).filter(|point| !point.latitude.is_nan());
        point.map_or(SortValue::Missing, |point| SortValue::Number(from.to(point)))
    }

    fn is_empty(&self) -> bool {
        self.texts.as_ref().is_none_or(|texts| texts.index_of.is_empty())
            && Numbers::is_empty(&self.numbers)
            && Numbers::is_empty(&self.times)
            && self.points.as_ref().is_none_or(|points| points.iter().all(|point| point.latitude.is_nan()))
            && self.flags.is_none_or(|[_, present]| present == NONE)
            && self.lists.as_ref().is_none_or(|lists| lists.items.is_empty())
    }

    /// Returns the items whose value is of a kind.
    pub(crate) fn of_kind(&self, kind: AttributeKind) -> Mask {
        let present = |numbers: &Option<Numbers>| {
            numbers.as_ref().map_or(NONE, |numbers| mask_of(&numbers.values, |value| !value.is_nan()))
        };
        match kind {
            AttributeKind::Text => {
                let texts = self.texts.as_ref().map_or(NONE, |texts| mask_of(&texts.codes, |code| code > 0));
                self.lists.as_ref().map_or(texts, |lists| or(texts, &lists.with(|_| true)))
            }
            AttributeKind::Number => present(&self.numbers),
            AttributeKind::Flag => self.flags.map_or(NONE, |[_, present]| present),
            AttributeKind::Time => present(&self.times),
            AttributeKind::GeoPoint => {
                self.points.as_ref().map_or(NONE, |points| mask_of(points, |point| !point.latitude.is_nan()))
            }
        }
    }

    /// Returns the items with a value of any kind.
    fn present(&self) -> Mask {
        AttributeKind::ALL.iter().fold(NONE, |mask, kind| or(mask, &self.of_kind(*kind)))
    }

    /// Returns the items with a value by which they sort: one text, number, flag or time.
    pub(crate) fn sortable(&self) -> Mask {
        let kinds = [AttributeKind::Number, AttributeKind::Flag, AttributeKind::Time].map(|kind| self.of_kind(kind));
        let texts = self.texts.as_ref().map_or(NONE, |texts| texts.with(|text| !text.is_empty()));
        kinds.iter().fold(texts, or)
    }

    fn has_text(&self, at: usize, normal: &str) -> bool {
        self.texts.as_ref().and_then(|texts| texts.get(at)).is_some_and(|text| text.as_str() == normal)
    }

    /// Sets a text in normal form. `written`: as its item writes it; none if that is not known.
    fn text(&mut self, at: usize, normal: &str, written: Option<&str>) {
        self.texts.get_or_insert_default().insert(at, normal, written);
    }

    fn list(&mut self, at: usize, texts: &[String]) {
        let lists = self.lists.get_or_insert_default();
        texts.iter().for_each(|text| lists.insert(at, &normalize(text)));
    }

    fn remove_list(&mut self, at: usize, texts: &[String]) {
        if let Some(lists) = &mut self.lists {
            texts.iter().for_each(|text| lists.remove(at, &normalize(text)));
        }
    }

    fn remove_text(&mut self, at: usize) {
        if let Some(texts) = &mut self.texts {
            texts.remove(at);
        }
    }

    fn point(&mut self, at: usize, point: GeoPoint) {
        self.points.get_or_insert_with(|| Box::new([NO_POINT; BLOCK_ROWS]))[at] = point;
    }

    fn remove_point(&mut self, at: usize) {
        if let Some(points) = &mut self.points {
            points[at] = NO_POINT;
        }
    }

    fn remove_flag(&mut self, at: usize) {
        for mask in self.flags.iter_mut().flatten() {
            clear(mask, at);
        }
    }

    fn flag(&mut self, at: usize, flag: bool) {
        let [is_true, present] = self.flags.get_or_insert([NONE; 2]);
        clear(is_true, at);
        set(present, at);
        if flag {
            set(is_true, at);
        }
    }

    /// Adds the values of the items of `among`.
    fn count<'c>(&'c self, among: &Mask, counts: &mut ValueCounts<'c>) {
        if let Some(texts) = &self.texts {
            texts.count(among, counts);
        }
        if let Some(lists) = &self.lists {
            lists.count(among, counts);
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

    /// Adds the values of the groups whose items are in `among`.
    fn count_groups<'c>(&'c self, among: &Mask, groups: BlockGroups, counts: &mut ValueCounts<'c>) {
        if let Some(lists) = &self.lists {
            lists.count_groups(among, groups, counts);
        }
        for (at, group) in groups.of(among) {
            match self.value(at) {
                // Times are not counted.
                SortValue::Number(_) if Numbers::get(&self.numbers, at).is_none() => {}
                SortValue::Number(number) => counts.group_numbers.push((number, group)),
                SortValue::Flag(flag) => counts.add_flag_of_group(flag, group),
                SortValue::Text(_) => {
                    if let Some(known) = self.texts.as_ref().and_then(|texts| texts.known(at)) {
                        counts.add_text_of_group(known.hash, known.text.as_str(), group);
                    }
                }
                SortValue::Missing => {}
            }
        }
    }

    fn with_text(&self, normal: &str) -> Mask {
        let texts = self.texts.as_ref().map_or(NONE, |texts| texts.with_text(normal));
        self.lists.as_ref().map_or(texts, |lists| or(texts, &lists.with_text(normal)))
    }

    /// Returns how all items write a text in normal form; none if they differ, if it is not known, or if some items have
    /// several texts.
    fn spelling(&self, normal: &str) -> Option<&str> {
        let texts = self.texts.as_ref().filter(|_| self.lists.is_none())?;
        texts.known[usize::from(*texts.index_of.get(normal)?)].spelling.as_deref()
    }

    fn with_flag(&self, flag: bool) -> Mask {
        self.flags.map_or(NONE, |[is_true, present]| if flag { is_true } else { and_not(present, &is_true) })
    }

    /// Returns the items whose values satisfy the predicate: HAS finds words within a text, and `!=` matches only items
    /// with a value of the same type.
    fn matching(&self, predicate: &Predicate) -> Mask {
        let equals = |literal: &Literal| match literal {
            Literal::Text(text) => self.with_text(&text.normal),
            Literal::Number(number) => Numbers::compare(&self.numbers, Operator::Equal, *number),
            Literal::Flag(flag) => self.with_flag(*flag),
            Literal::Time(at, _) => Numbers::compare(&self.times, Operator::Equal, *at as f64),
        };
        let with = |meets: &dyn Fn(&str) -> bool| self.texts.as_ref().map_or(NONE, |texts| texts.with(meets));
        let of_lists = |meets: &dyn Fn(&str) -> bool| self.lists.as_ref().map_or(NONE, |lists| lists.with(meets));
        match predicate {
            Predicate::Compare(Operator::Equal, literal) => equals(literal),
            Predicate::Compare(Operator::Unequal, Literal::Text(text)) => {
                // All texts of a list differ, and none is empty, as for a single text.
                let lists = and_not(of_lists(&|_| true), &of_lists(&|other| other.is_empty() || other == text.normal));
                or(with(&|other| !other.is_empty() && other != text.normal), &lists)
            }
            Predicate::Compare(Operator::Unequal, Literal::Flag(flag)) => self.with_flag(!flag),
            Predicate::Compare(operator, Literal::Number(number)) => {
                Numbers::compare(&self.numbers, *operator, *number)
            }
            Predicate::Compare(operator, Literal::Time(at, _)) => Numbers::compare(&self.times, *operator, *at as f64),
            Predicate::Compare(..) => NONE,
            Predicate::In(literals) => literals.iter().fold(NONE, |mask, literal| or(mask, &equals(literal))),
            Predicate::Has(text) => or(with(&|other| text.is_within(other)), &of_lists(&|other| text.is_within(other))),
        }
    }

    /// Returns the items whose distance satisfies the predicate.
    fn within(&self, from: &Distance, predicate: &Predicate) -> Mask {
        let meets = |point: GeoPoint| !point.latitude.is_nan() && predicate.matches_number(from.to(point));
        self.points.as_ref().map_or(NONE, |points| mask_of(points, meets))
    }
}

impl Columns {
    /// Adds the values that an item has at a time, at a position that has none. `labels` are those of earlier items.
    pub(crate) fn add(&mut self, at: usize, item: &Item, time: UnixMillis, labels: &mut CategoryLabels) {
        let [names, paths] = [&mut self.category, &mut self.category_path].map(Arc::make_mut);
        for path in &item.categories {
            let of_path = labels.of(path);
            of_path.names.iter().for_each(|label| names.insert(at, label));
            of_path.paths.iter().for_each(|label| paths.insert(at, label));
        }
        self.change(at, None, (item, time));
    }

    /// Replaces the values that an item has at a time by those of an item and a time. Columns in which both have the
    /// same values are not copied.
    pub fn replace(&mut self, at: usize, old: (&Item, UnixMillis), new: (&Item, UnixMillis)) {
        if old.0.categories != new.0.categories {
            let names = |item: &Item| item.category_names().into_iter().map(normalize).collect();
            change_labels(&mut self.category, at, Some(names(old.0)), names(new.0));
            let paths = |item: &Item| item.category_paths().into_iter().map(path_normal).collect();
            change_labels(&mut self.category_path, at, Some(paths(old.0)), paths(new.0));
        }
        self.change(at, Some(old), new);
    }

    /// Changes all columns but those of categories.
    fn change(&mut self, at: usize, dated: Option<(&Item, UnixMillis)>, (new, time): (&Item, UnixMillis)) {
        let old = dated.map(|(old, _)| old);
        if old.map(|old| &old.tags) != Some(&new.tags) {
            let normal = |item: &Item| item.tags.iter().map(|tag| normalize(tag)).collect();
            change_labels(&mut self.tags, at, old.map(normal), normal(new));
        }
        if old.map(|old| &*old.group_id) != Some(&*new.group_id) {
            // Ids are compared exactly.
            Arc::make_mut(&mut self.group_id).text(at, &new.group_id, Some(&*new.group_id));
        }
        change_text(&mut self.brand, at, old.map(|old| &*old.brand), &new.brand);
        change_text(&mut self.currency, at, old.map(|old| &*old.currency), &new.currency);
        if old.is_none_or(|old| old.is_in_stock() != new.is_in_stock()) {
            Arc::make_mut(&mut self.in_stock).flag(at, new.is_in_stock());
        }
        let availability = new.availability();
        if old.map(Item::availability) != Some(availability) {
            let (normal, written) = (availability_normal(availability), availability.name());
            Arc::make_mut(&mut self.availability).text(at, normal, Some(written));
        }
        for (field, column) in NUMBERS.iter().zip(&mut self.numbers) {
            let before = dated.and_then(|(old, time)| field.plain_number(old, time));
            let after = field.plain_number(new, time);
            if before != after {
                let column = Arc::make_mut(column);
                let values = if *field == Field::CreateTime { &mut column.times } else { &mut column.numbers };
                match after {
                    Some(after) => Numbers::set(values, at, after),
                    None => Numbers::remove(values, at),
                }
            }
        }
        let cost = |item: &Item| item.cost.map(|cost| cost.micros() as f64);
        if old.and_then(cost) != cost(new) {
            let costs = Arc::make_mut(&mut self.costs);
            match cost(new) {
                Some(cost) => Numbers::set(costs, at, cost),
                None => Numbers::remove(costs, at),
            }
        }
        if old.and_then(|old| old.stated_availability) != new.stated_availability {
            let stated = Arc::make_mut(&mut self.stated_availability);
            stated.get_or_insert_with(|| Box::new([None; BLOCK_ROWS]))[at] = new.stated_availability;
        }
        self.change_attributes(at, old, new);
        self.change_offers(at, old, new);
    }

    fn change_offers(&mut self, at: usize, old: Option<&Item>, new: &Item) {
        let old = old.map_or(&[][..], |old| &old.offers);
        if old == new.offers {
            return;
        }
        let by_key = Arc::make_mut(&mut self.offers);
        for offer in old.iter().filter(|offer| !new.offers.contains(offer)) {
            if let Some(rows) = by_key.get_mut(&offer.key) {
                Arc::make_mut(rows).remove(at);
                if rows.is_empty() {
                    by_key.remove(&offer.key);
                }
            }
        }
        for offer in new.offers.iter().filter(|offer| !old.contains(offer)) {
            match by_key.get_mut(&offer.key) {
                Some(rows) => Arc::make_mut(rows).set(at, offer),
                None => {
                    let mut rows = OfferRows::default();
                    rows.set(at, offer);
                    by_key.insert(offer.key.clone(), Arc::new(rows));
                }
            }
        }
    }

    /// Returns the offers of the items, by key.
    pub(crate) fn offers(&self) -> impl Iterator<Item = (&OfferKey, &Arc<OfferRows>)> {
        self.offers.iter()
    }

    /// Sets the prices of an item to those of an offer. `currency` is its code in normal form; none for that of the
    /// item.
    pub(crate) fn set_price(&mut self, at: usize, pricing: Pricing, currency: Option<&str>) {
        // The cost is in the currency of the item.
        let is_of_cost = currency.is_none_or(|code| self.currency.has_text(at, code));
        let cost = Numbers::get(&self.costs, at).filter(|_| is_of_cost).and_then(|cost| PriceMicros::new(cost as i64));
        let margin = pricing.price.zip(cost).map(|(price, cost)| margin(price, cost));
        self.set_number(&Field::Price, at, pricing.price.map(|price| price.units()));
        self.set_number(&Field::OriginalPrice, at, pricing.original_price.map(|price| price.units()));
        self.set_number(&Field::Discount, at, pricing.discount());
        self.set_number(&Field::Margin, at, margin);
        if let Some(currency) = currency {
            set_text(&mut self.currency, at, currency, None);
        }
    }

    /// Removes the prices of an item.
    pub(crate) fn remove_price(&mut self, at: usize) {
        for field in [Field::Price, Field::OriginalPrice, Field::Discount, Field::Margin] {
            self.set_number(&field, at, None);
        }
        set_text(&mut self.currency, at, "", None);
    }

    /// Sets the stock of an item to that of an offer.
    pub(crate) fn set_stock(&mut self, at: usize, stock: u32) {
        self.set_number(&Field::StockQuantity, at, Some(f64::from(stock)));
        let stated = self.stated_availability.as_ref().as_ref().and_then(|stated| stated[at]);
        let availability = Availability::of(stated, Some(stock));
        set_text(&mut self.availability, at, availability_normal(availability), Some(availability.name()));
        let in_stock = availability.is_in_stock();
        if self.in_stock.value(at) != SortValue::Flag(in_stock) {
            Arc::make_mut(&mut self.in_stock).flag(at, in_stock);
        }
    }

    /// Returns the value by which an item sorts by its time of creation.
    pub(crate) fn create_time(&self, at: usize) -> SortValue<'_> {
        self.numbers[CREATE_TIME].value(at)
    }

    /// Returns the items in stock.
    pub(crate) fn in_stock(&self) -> Mask {
        self.in_stock.with_flag(true)
    }

    /// Returns the items with a currency, whose code is in normal form.
    pub(crate) fn in_currency(&self, normal: &str) -> Mask {
        self.currency.with_text(normal)
    }

    /// Adds the currencies, in normal form, of the items of `among` that have a price.
    pub(crate) fn add_price_currencies<'c>(&'c self, among: &[u64], currencies: &mut BTreeSet<&'c str>) {
        let Some(texts) = &self.currency.texts else { return };
        let known = || texts.known.iter().filter(|known| known.item_count > 0 && !known.text.as_str().is_empty());
        if known().all(|known| currencies.contains(known.text.as_str())) {
            return;
        }
        let price = self.column(&Field::Price);
        for at in bits::ones(among, 0) {
            let is_priced = || price.is_some_and(|price| price.value(at) != SortValue::Missing);
            if let Some(text) = texts.get(at).map(SortText::as_str)
                && !text.is_empty()
                && !currencies.contains(text)
                && is_priced()
            {
                currencies.insert(text);
            }
        }
    }

    /// Adds the margin shares, (price − cost) / price, of the items in a bit set to a sum and their number to a count.
    pub(crate) fn add_margin_shares(&self, among: &[u64], sum: &mut f64, count: &mut usize) {
        let number =
            |field: &Field| NUMBERS.iter().position(|of| of == field).map(|index| &self.numbers[index].numbers);
        let (Some(prices), Some(margins)) = (number(&Field::Price), number(&Field::Margin)) else { return };
        if margins.is_none() {
            return;
        }
        for at in bits::ones(among, 0) {
            let share = Numbers::get(margins, at).zip(Numbers::get(prices, at).filter(|price| *price > 0.0));
            if let Some((margin, price)) = share {
                *sum += margin / price;
                *count += 1;
            }
        }
    }

    /// Sets a number or removes it. A column that has the value already is not copied.
    fn set_number(&mut self, field: &Field, at: usize, number: Option<f64>) {
        let Some(column) = NUMBERS.iter().position(|of| of == field).map(|index| &mut self.numbers[index]) else {
            return;
        };
        match number {
            _ if Numbers::get(&column.numbers, at) == number => {}
            Some(number) => Numbers::set(&mut Arc::make_mut(column).numbers, at, number),
            None => Numbers::remove(&mut Arc::make_mut(column).numbers, at),
        }
    }

    fn change_attributes(&mut self, at: usize, old: Option<&Item>, new: &Item) {
        if old.map_or(&BTreeMap::new(), |old| &old.attributes) == &new.attributes {
            return;
        }
        let attributes = Arc::make_mut(&mut self.attributes);
        for (name, value) in old.into_iter().flat_map(|old| &old.attributes) {
            if new.attributes.get(name) != Some(value)
                && let Some(column) = attributes.get_mut(name.as_str())
            {
                let column = Arc::make_mut(column);
                match value {
                    AttributeValue::Text(_) => column.remove_text(at),
                    AttributeValue::Texts(texts) => column.remove_list(at, texts),
                    AttributeValue::Number(_) => Numbers::remove(&mut column.numbers, at),
                    AttributeValue::Flag(_) => column.remove_flag(at),
                    AttributeValue::Time(_) => Numbers::remove(&mut column.times, at),
                    AttributeValue::GeoPoint(_) => column.remove_point(at),
                }
                if !new.attributes.contains_key(name) && column.is_empty() {
                    attributes.remove(name.as_str());
                }
            }
        }
        for (name, value) in &new.attributes {
            if old.and_then(|old| old.attributes.get(name)) != Some(value) {
                let column = match attributes.get_mut(name.as_str()) {
                    Some(column) => column,
                    None => attributes.entry(name.as_str().into()).or_default(),
                };
                let column = Arc::make_mut(column);
                match value {
                    AttributeValue::Text(text) => column.text(at, &normalize(text), Some(&**text)),
                    AttributeValue::Texts(texts) => column.list(at, texts),
                    AttributeValue::Number(number) => Numbers::set(&mut column.numbers, at, *number),
                    AttributeValue::Flag(flag) => column.flag(at, *flag),
                    AttributeValue::Time(time) => Numbers::set(&mut column.times, at, time.time_ms as f64),
                    AttributeValue::GeoPoint(point) => column.point(at, *point),
                }
            }
        }
    }

    /// Returns the column of a field with one value for each item. None: no item has the attribute, or the field has no
    /// such column.
    pub(crate) fn column(&self, field: &Field) -> Option<&Column> {
        Some(match field {
            Field::GroupId => &self.group_id,
            Field::Brand => &self.brand,
            Field::Currency => &self.currency,
            Field::InStock => &self.in_stock,
            Field::Availability => &self.availability,
            Field::Attribute(name) | Field::Distance(Distance { attribute: name, .. }) => {
                self.attributes.get(name.as_str())?
            }
            field => &self.numbers[NUMBERS.iter().position(|number| number == field)?],
        })
    }

    /// Returns the attributes of the items, and for each kind the items that have a value of it.
    pub(crate) fn attribute_kinds(&self) -> impl Iterator<Item = (&str, [Mask; AttributeKind::ALL.len()])> {
        self.attributes.iter().map(|(name, column)| (&**name, AttributeKind::ALL.map(|kind| column.of_kind(kind))))
    }

    /// Returns the names of the attributes, also of deleted items.
    pub(crate) fn attribute_names(&self) -> impl Iterator<Item = &str> {
        self.attributes.keys().map(|name| &**name)
    }

    fn labels(&self, field: &Field) -> Option<&LabelColumn> {
        match field {
            Field::Category => Some(&self.category),
            Field::CategoryPath => Some(&self.category_path),
            Field::Tags => Some(&self.tags),
            _ => None,
        }
    }

    fn matching(&self, field: &Field, predicate: &Predicate) -> Mask {
        if let Some(labels) = self.labels(field) {
            return labels.matching(predicate);
        }
        let column = self.column(field);
        let matching = column.map_or(NONE, |column| match field {
            Field::Distance(from) => column.within(from, predicate),
            _ => column.matching(predicate),
        });
        // An item without the attribute is one with an empty text.
        if matches!(field, Field::Attribute(_)) && predicate.matches_normal("") {
            return or(matching, &and_not([u64::MAX; BLOCK_ROWS / 64], &column.map_or(NONE, Column::present)));
        }
        matching
    }

    /// Adds the values of a field of the items of `among`.
    pub(crate) fn count<'c>(&'c self, field: &Field, among: &Mask, counts: &mut ValueCounts<'c>) {
        match self.labels(field) {
            Some(labels) => labels.count(among, counts),
            None => _ = self.column(field).map(|column| column.count(among, counts)),
        }
    }

    /// Adds the values of a field of the groups whose items are in `among`.
    pub(crate) fn count_groups<'c>(
        &'c self,
        field: &Field,
        among: &Mask,
        groups: BlockGroups,
        counts: &mut ValueCounts<'c>,
    ) {
        match self.labels(field) {
            Some(labels) => labels.count_groups(among, groups, counts),
            None => _ = self.column(field).map(|column| column.count_groups(among, groups, counts)),
        }
    }

    /// Returns the items with a text in normal form, and how all of them write it; none if they differ, or if only the
    /// items tell.
    pub(crate) fn with_text(&self, field: &Field, normal: &str) -> (Mask, Option<&str>) {
        match self.labels(field) {
            Some(labels) => (labels.with_text(normal), None),
            None => {
                self.column(field).map_or((NONE, None), |column| (column.with_text(normal), column.spelling(normal)))
            }
        }
    }
}

impl Filter {
    /// Returns the items of `among` that match the filter. The result is that of [`Filter::matches`] for each item at the
    /// time of the columns.
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
            Self::Predicate(field, predicate) if field.has_column() => and(columns.matching(field, predicate), &among),
            Self::Predicate(field, predicate) => {
                let mut mask = NONE;
                bits::ones(&among, 0)
                    // A field without a column does not depend on the time.
                    .filter(|index| field.matches(predicate, item_of(*index), UnixMillis(0)))
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

fn mask_of<T: Copy>(values: &[T; BLOCK_ROWS], meets: impl Fn(T) -> bool) -> Mask {
    let mut mask = NONE;
    for (word, values) in mask.iter_mut().zip(values.as_chunks::<64>().0) {
        // Comparisons that set bytes use vector instructions, unlike those that set bits.
        let met: [u8; 64] = std::array::from_fn(|at| u8::from(meets(values[at])));
        for (byte, met) in met.as_chunks::<8>().0.iter().enumerate() {
            // The product has the lowest bits of the eight bytes in its highest byte.
            let bits = u64::from_le_bytes(*met).wrapping_mul(0x0102_0408_1020_4080) >> 56;
            *word |= bits << (8 * byte);
        }
    }
    mask
}

/// Replaces the labels of one item.
fn change_labels(column: &mut Arc<LabelColumn>, at: usize, old: Option<Vec<String>>, new: Vec<String>) {
    let column = Arc::make_mut(column);
    old.into_iter().flatten().for_each(|label| column.remove(at, &label));
    new.iter().for_each(|label| column.insert(at, label));
}

/// Sets the text of one item to a normal form. A column that has it already is not copied.
fn set_text(column: &mut Arc<Column>, at: usize, normal: &str, written: Option<&str>) {
    if !column.has_text(at, normal) {
        Arc::make_mut(column).text(at, normal, written);
    }
}

/// Returns the normal form of the name of an availability.
fn availability_normal(availability: Availability) -> &'static str {
    static NORMALS: LazyLock<[String; Availability::ALL.len()]> =
        LazyLock::new(|| Availability::ALL.map(|availability| normalize(availability.name())));
    // `ALL` is in the order of the declaration.
    &NORMALS[availability as usize]
}

/// Replaces the text of one item.
fn change_text(column: &mut Arc<Column>, at: usize, old: Option<&str>, new: &str) {
    if old != Some(new) {
        Arc::make_mut(column).text(at, &normalize(new), Some(new));
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use lodestone_core::ids::ItemId;
    use proptest::prelude::*;

    #[test]
    fn texts_that_replace_others_have_their_own_first_bytes() {
        let branded = |brand: &str| {
            let item = Item::titled(ItemId::parse("a").unwrap(), "a");
            Item { brand: brand.to_owned(), ..item }
        };
        let (mut columns, at) = (Columns::default(), UnixMillis(0));
        let mut known = branded("Zeta");
        columns.add(5, &known, at, &mut CategoryLabels::default());
        for brand in ["Acme", "", "Zenith & Co", "Acme"] {
            let new = branded(brand);
            columns.replace(5, (&known, at), (&new, at));
            let OnlyValues::Texts(texts) = columns.brand.only() else { panic!("the column has texts alone") };
            assert_eq!(texts.prefix(5), SortText::new(&normalize(brand)).prefix(), "{brand}");
            assert_eq!(texts.prefix(4), 0);
            known = new;
        }
    }

    proptest! {
        #[test]
        fn a_mask_has_the_items_whose_values_meet_a_condition(drawn in prop::collection::vec(0..4u8, BLOCK_ROWS)) {
            let numbers: [f64; BLOCK_ROWS] = std::array::from_fn(|at| if drawn[at] == 0 { f64::NAN } else { f64::from(drawn[at]) });
            let codes: [u16; BLOCK_ROWS] = std::array::from_fn(|at| u16::from(drawn[at]));
            let with = |meets: &dyn Fn(u8) -> bool| (0..BLOCK_ROWS).filter(|at| meets(drawn[*at])).collect::<Vec<_>>();
            let of = |mask: Mask| bits::ones(&mask, 0).collect::<Vec<_>>();
            prop_assert_eq!(of(mask_of(&codes, |code| code == 2)), with(&|drawn| drawn == 2));
            prop_assert_eq!(of(mask_of(&numbers, |number| number < 3.0)), with(&|drawn| (1..3).contains(&drawn)));
        }
    }
}
