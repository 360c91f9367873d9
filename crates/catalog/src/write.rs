//! Writes of items: of all fields or of some, each as of a time. The newest value of each field remains, in whichever
//! order the writes arrive.
use crate::{Item, OfferField, OfferKey, attribute_name, offers};
use lodestone_core::{ids::ItemId, units::UnixMillis};
use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// A field of an item that a write sets.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum ItemField {
    GroupId,
    Title,
    Description,
    Categories,
    Brand,
    Price,
    OriginalPrice,
    SalePrice,
    SaleStart,
    SaleEnd,
    Cost,
    Currency,
    StockQuantity,
    Availability,
    Tags,
    Rating,
    RatingCount,
    Url,
    ImageUrl,
    /// All attributes: those that the write does not have are removed.
    Attributes,
    /// One attribute. It is removed if the write does not have it.
    Attribute(String),
    CreateTime,
    /// All offers: those that the write does not have are removed.
    Offers,
    /// One value of an offer. It is removed if the write does not have it.
    Offer(OfferKey, OfferField),
}

/// A name that is not one of an item's fields.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("is not a field of an item; use {}, or attributes.NAME", FIELDS.map(|(name, _)| name).join(", "))]
pub struct UnknownItemField;

const FIELDS: [(&str, ItemField); 22] = [
    ("group_id", ItemField::GroupId),
    ("title", ItemField::Title),
    ("description", ItemField::Description),
    ("categories", ItemField::Categories),
    ("brand", ItemField::Brand),
    ("price_micros", ItemField::Price),
    ("original_price_micros", ItemField::OriginalPrice),
    ("sale_price_micros", ItemField::SalePrice),
    ("sale_start_time", ItemField::SaleStart),
    ("sale_end_time", ItemField::SaleEnd),
    ("cost_micros", ItemField::Cost),
    ("currency_code", ItemField::Currency),
    ("stock_quantity", ItemField::StockQuantity),
    ("availability", ItemField::Availability),
    ("tags", ItemField::Tags),
    ("rating", ItemField::Rating),
    ("rating_count", ItemField::RatingCount),
    ("url", ItemField::Url),
    ("image_url", ItemField::ImageUrl),
    ("attributes", ItemField::Attributes),
    ("create_time", ItemField::CreateTime),
    ("offers", ItemField::Offers),
];

impl ItemField {
    /// Parses a name as in the API, such as `price_micros` or `attributes.size`.
    pub fn parse(name: &str) -> Result<Self, UnknownItemField> {
        let attribute = || attribute_name(name).map(|name| Self::Attribute(name.to_owned()));
        let named = FIELDS.iter().find(|(known, _)| *known == name).map(|(_, field)| field.clone());
        named.or_else(attribute).ok_or(UnknownItemField)
    }

    /// Returns the name that [`ItemField::parse`] reads; that of a value of an offer is only for people.
    pub fn name(&self) -> Cow<'static, str> {
        match self {
            Self::Attribute(name) => format!("attributes.{name}").into(),
            Self::Offer(key, field) => offers::field_name(key, *field),
            field => FIELDS.iter().find(|(_, known)| known == field).map_or("", |(name, _)| name).into(),
        }
    }

    /// Returns true for a field whose text an encoder may read.
    pub fn is_encoded(&self) -> bool {
        matches!(self, Self::Title | Self::Description | Self::Categories | Self::Brand | Self::Tags)
    }

    fn copy(&self, from: &Item, to: &mut Item) {
        match self {
            Self::GroupId => to.group_id.clone_from(&from.group_id),
            Self::Title => to.title.clone_from(&from.title),
            Self::Description => to.description.clone_from(&from.description),
            Self::Categories => to.categories.clone_from(&from.categories),
            Self::Brand => to.brand.clone_from(&from.brand),
            Self::Price => to.price = from.price,
            Self::OriginalPrice => to.original_price = from.original_price,
            Self::SalePrice => to.sale_price = from.sale_price,
            Self::SaleStart => to.sale_start = from.sale_start,
            Self::SaleEnd => to.sale_end = from.sale_end,
            Self::Cost => to.cost = from.cost,
            Self::Currency => to.currency.clone_from(&from.currency),
            Self::StockQuantity => to.stock_quantity = from.stock_quantity,
            Self::Availability => to.stated_availability = from.stated_availability,
            Self::Tags => to.tags.clone_from(&from.tags),
            Self::Rating => to.rating = from.rating,
            Self::RatingCount => to.rating_count = from.rating_count,
            Self::Url => to.url.clone_from(&from.url),
            Self::ImageUrl => to.image_url.clone_from(&from.image_url),
            Self::Attributes => to.attributes.clone_from(&from.attributes),
            Self::Attribute(name) => match from.attributes.get(name) {
                Some(value) => _ = to.attributes.insert(name.clone(), value.clone()),
                None => _ = to.attributes.remove(name),
            },
            Self::CreateTime => to.created_at = from.created_at,
            Self::Offers => to.offers.clone_from(&from.offers),
            Self::Offer(key, field) => from.copy_offer_value(key, *field, to),
        }
    }

    /// Returns the field of which this one is a part: all attributes, or all offers.
    fn whole(&self) -> Option<Self> {
        match self {
            Self::Attribute(_) => Some(Self::Attributes),
            Self::Offer(..) => Some(Self::Offers),
            _ => None,
        }
    }
}

/// A set of fields of an item. One attribute belongs to it with [`ItemField::Attributes`], and a value of an offer with
/// [`ItemField::Offers`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FieldSet(u32);

impl FieldSet {
    pub fn insert(&mut self, field: &ItemField) {
        self.0 |= Self::bit(field);
    }

    pub fn contains(self, field: &ItemField) -> bool {
        self.0 & Self::bit(field) != 0
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub fn iter(self) -> impl Iterator<Item = ItemField> {
        FIELDS.into_iter().map(|(_, field)| field).filter(move |field| self.contains(field))
    }

    /// Returns the fields that are not in the set.
    pub fn others(self) -> impl Iterator<Item = ItemField> {
        FIELDS.into_iter().map(|(_, field)| field).filter(move |field| !self.contains(field))
    }

    fn bit(field: &ItemField) -> u32 {
        let whole = field.whole();
        let whole = whole.as_ref().unwrap_or(field);
        FIELDS.iter().position(|(_, known)| known == whole).map_or(0, |index| 1 << index)
    }
}

impl Item {
    /// Returns an item with this id and these fields; others are empty.
    pub fn with_only(&self, fields: &BTreeSet<ItemField>) -> Self {
        let mut item = Self::titled(self.id.clone(), "");
        fields.iter().for_each(|field| field.copy(self, &mut item));
        item
    }
}

/// The fields of items that a response has. The id is always among them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReadMask {
    All,
    Some(BTreeSet<ItemField>),
}

impl ReadMask {
    /// Returns the item with the fields of the mask.
    pub fn of(&self, item: &Arc<Item>) -> Arc<Item> {
        match self {
            Self::All => item.clone(),
            Self::Some(fields) => Arc::new(item.with_only(fields)),
        }
    }
}

/// A change of an item.
#[derive(Debug, Clone, PartialEq)]
pub enum ItemChange {
    Write(Box<ItemWrite>),
    /// Deletes the item. As of a stated time only if it has no later value.
    Delete {
        id: ItemId,
        time: WriteTime,
    },
}

impl ItemChange {
    pub fn id(&self) -> &ItemId {
        match self {
            Self::Write(write) => &write.item.id,
            Self::Delete { id, .. } => id,
        }
    }

    /// Returns `upsert_item`, `update_item` or `delete_item`, for counts.
    pub fn kind_name(&self) -> &'static str {
        match self {
            Self::Write(write) if write.fields == WrittenFields::All => "upsert_item",
            Self::Write(_) => "update_item",
            Self::Delete { .. } => "delete_item",
        }
    }
}

/// A write of some or all fields of an item.
#[derive(Debug, Clone, PartialEq)]
pub struct ItemWrite {
    /// The written values. Fields that are not written are not read.
    pub item: Item,
    pub fields: WrittenFields,
    pub time: WriteTime,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WrittenFields {
    /// Creates the item if it does not exist.
    All,
    /// Changes the item if it exists.
    Some(BTreeSet<ItemField>),
}

/// The time of a write's values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteTime {
    /// The time at which they were true, as the shop states. Fields with later values keep them.
    Stated(UnixMillis),
    /// The time at which the write was received. It has the newest values of its item, also if a stated time is later.
    Received(UnixMillis),
}

impl ItemWrite {
    /// Returns a write of all fields.
    pub fn of_all(item: Item, time: WriteTime) -> Self {
        Self { item, fields: WrittenFields::All, time }
    }

    /// Returns the item after this write alone; none for some fields of an item that is not known.
    pub fn content(&self, known: Option<&Item>) -> Option<Item> {
        match &self.fields {
            WrittenFields::All => Some(self.item.clone()),
            WrittenFields::Some(fields) => {
                let mut content = known?.clone();
                fields.iter().for_each(|field| field.copy(&self.item, &mut content));
                Some(content)
            }
        }
    }

    /// Returns true if a known item already has all written values, of whichever times.
    pub fn is_content_of(&self, known: &Item) -> bool {
        let content = self.content(Some(known));
        let of_file = |content| Item { values_at: known.values_at, absent_fields: known.absent_fields, ..content };
        content.is_some_and(|content| of_file(content) == *known)
    }

    /// Returns true if a file of the shop had values of a later time than the write for all its fields.
    pub fn is_older_than(&self, known: &Item) -> bool {
        let (WriteTime::Stated(time), Some(of_file)) = (self.time, known.values_at) else { return false };
        time < of_file
            && match &self.fields {
                // A file never has offers, and a write without any has none to add.
                WrittenFields::All => {
                    known.absent_fields.iter().all(|field| field == ItemField::Offers && self.item.offers.is_empty())
                }
                WrittenFields::Some(fields) => !fields.iter().any(|field| known.absent_fields.contains(field)),
            }
    }

    /// Returns the write without its stale fields: those of which the state of the item, or the file of `known`, its
    /// content in a catalogue, has a later value. None if nothing is left.
    pub fn without_stale(&self, state: Option<&ItemState>, known: Option<&Item>) -> Option<Cow<'_, Self>> {
        if state.is_some_and(|state| state.is_stale(self)) || known.is_some_and(|known| self.is_older_than(known)) {
            return None;
        }
        let (WrittenFields::Some(fields), WriteTime::Stated(time)) = (&self.fields, self.time) else {
            return Some(Cow::Borrowed(self));
        };
        let later_file = known.filter(|known| known.values_at > Some(time));
        let is_fresh = |field: &&ItemField| {
            !matches!(state, Some(ItemState::Written(written)) if written.is_later(field, time))
                && later_file.is_none_or(|known| known.absent_fields.contains(field))
        };
        let fresh = || fields.iter().filter(is_fresh);
        match fresh().count() {
            0 => None,
            count if count == fields.len() => Some(Cow::Borrowed(self)),
            _ => Some(Cow::Owned(Self { fields: WrittenFields::Some(fresh().cloned().collect()), ..self.clone() })),
        }
    }

    /// Returns true if the write may change a text that an encoder reads.
    pub fn sets_encoded_text(&self) -> bool {
        match &self.fields {
            WrittenFields::All => true,
            WrittenFields::Some(fields) => fields.iter().any(ItemField::is_encoded),
        }
    }
}

/// The effect of a change on the state of its item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WriteEffect {
    Applied {
        /// Written fields that keep their later values.
        stale: Vec<ItemField>,
    },
    /// All fields have later values, or the item was deleted later. Nothing changed.
    Stale,
}

/// What is known of an item after writes: the newest value of each field with its time, or its deletion.
#[derive(Debug, Clone, PartialEq)]
pub enum ItemState {
    Written(WrittenItem),
    Deleted { at: UnixMillis },
}

#[derive(Debug, Clone, PartialEq)]
pub struct WrittenItem {
    /// The values of the written fields; empty in others.
    item: Arc<Item>,
    /// The time of the last write of all fields. None: fields without a time of their own were never written.
    all_at: Option<UnixMillis>,
    /// The time of a deletion since which only some fields were written. A catalogue whose file is of a later time has
    /// the item, others do not.
    deleted_at: Option<UnixMillis>,
    /// The times of fields that were written on their own after that.
    times: BTreeMap<ItemField, UnixMillis>,
}

impl ItemState {
    /// Applies a change to the state of its item; `state` is none for an item without changes.
    pub fn apply(state: &mut Option<Self>, change: &ItemChange) -> WriteEffect {
        match change {
            ItemChange::Write(write) => Self::write(state, write),
            ItemChange::Delete { time, .. } => {
                let (WriteTime::Stated(at) | WriteTime::Received(at)) = time;
                if matches!(time, WriteTime::Stated(_)) && state.as_ref().and_then(Self::newest) > Some(*at) {
                    return WriteEffect::Stale;
                }
                // A deletion is later than everything before it, also than a stated time ahead of the clock. One of
                // what is already deleted moves it to no earlier time.
                let least = match state {
                    Some(Self::Written(written)) => {
                        written.newest().map(|newest| UnixMillis(newest.0.saturating_add(1)))
                    }
                    Some(Self::Deleted { at }) => Some(*at),
                    None => None,
                };
                *state = Some(Self::Deleted { at: least.map_or(*at, |least| least.max(*at)) });
                WriteEffect::Applied { stale: Vec::new() }
            }
        }
    }

    fn write(state: &mut Option<Self>, write: &ItemWrite) -> WriteEffect {
        match &mut *state {
            Some(known) if known.is_stale(write) => WriteEffect::Stale,
            Some(Self::Written(written)) => written.write(write),
            None | Some(Self::Deleted { .. }) => {
                let deleted_at = match state {
                    Some(Self::Deleted { at }) => Some(*at),
                    _ => None,
                };
                let mut written = WrittenItem {
                    item: Arc::new(Item::titled(write.item.id.clone(), "")),
                    all_at: None,
                    deleted_at,
                    times: BTreeMap::new(),
                };
                let effect = written.write(write);
                *state = Some(Self::Written(written));
                effect
            }
        }
    }

    /// Returns true if all fields of the write have later values, or if the item was deleted later.
    pub fn is_stale(&self, write: &ItemWrite) -> bool {
        let WriteTime::Stated(time) = write.time else { return false };
        match (self, &write.fields) {
            (Self::Deleted { at }, _) => *at > time,
            (Self::Written(written), WrittenFields::All) => written.all_at.max(written.deleted_at) > Some(time),
            (Self::Written(written), WrittenFields::Some(fields)) => {
                fields.iter().all(|field| written.is_later(field, time))
            }
        }
    }

    /// Returns how many attributes have a value or a time of their own.
    pub fn attribute_count(&self) -> usize {
        match self {
            Self::Deleted { .. } => 0,
            Self::Written(WrittenItem { item, times, .. }) => {
                let is_removed = |name: &&String| !item.attributes.contains_key(*name);
                let named = times.keys().filter_map(|field| match field {
                    ItemField::Attribute(name) => Some(name),
                    _ => None,
                });
                item.attributes.len() + named.filter(is_removed).count()
            }
        }
    }

    /// Returns the values of the written fields, with empty ones in others; none of a deleted item.
    pub fn values(&self) -> Option<&Arc<Item>> {
        match self {
            Self::Deleted { .. } => None,
            Self::Written(written) => Some(&written.item),
        }
    }

    /// Returns the latest time of its values or of its deletion.
    pub fn newest(&self) -> Option<UnixMillis> {
        match self {
            Self::Deleted { at } => Some(*at),
            Self::Written(written) => written.newest(),
        }
    }

    /// Returns the content of the item in a catalogue that has `known` before the writes; none if the item does not
    /// exist. Writes and deletions from before the time of `known` ([`Item::values_at`]) do not count, because a file
    /// that was made later has the item, except for fields that the file does not have. `known` may already contain
    /// the effect of some of the writes.
    pub fn content(&self, known: Option<&Item>) -> Option<Arc<Item>> {
        let of_file = known.and_then(|known| known.values_at);
        let counts = |at: &UnixMillis| of_file.is_none_or(|of_file| *at >= of_file);
        match self {
            Self::Deleted { at } if counts(at) => None,
            Self::Deleted { .. } => known.cloned().map(Arc::new),
            Self::Written(WrittenItem { item, all_at: Some(at), .. }) if counts(at) => Some(item.clone()),
            Self::Written(WrittenItem { deleted_at: Some(at), .. }) if counts(at) => None,
            Self::Written(WrittenItem { item, all_at, times, .. }) => {
                let mut content = known?.clone();
                let absent = content.absent_fields;
                if all_at.is_some() {
                    absent.iter().for_each(|field| field.copy(item, &mut content));
                }
                let later = times.iter().filter(|(field, at)| counts(at) || absent.contains(field));
                later.for_each(|(field, _)| field.copy(item, &mut content));
                Some(Arc::new(content))
            }
        }
    }

    /// Returns true if the known values of the written fields are those of the write.
    pub fn has_values_of(&self, write: &ItemWrite) -> bool {
        let Self::Written(written) = self else { return false };
        match &write.fields {
            WrittenFields::All => written.all_at.is_some() && *written.item == write.item,
            WrittenFields::Some(fields) => {
                fields.iter().all(|field| written.time_of(field).is_some())
                    && written.item.with_only(fields) == write.item.with_only(fields)
            }
        }
    }

    /// Returns changes that lead from no state to this one, in order.
    pub fn changes(&self, id: &ItemId) -> Vec<ItemChange> {
        match self {
            Self::Deleted { at } => vec![ItemChange::Delete { id: id.clone(), time: WriteTime::Received(*at) }],
            Self::Written(written) => {
                let deletion =
                    written.deleted_at.map(|at| ItemChange::Delete { id: id.clone(), time: WriteTime::Received(at) });
                let writes = written.writes().map(|write| ItemChange::Write(Box::new(write)));
                deletion.into_iter().chain(writes).collect()
            }
        }
    }
}

impl WrittenItem {
    fn writes(&self) -> impl Iterator<Item = ItemWrite> + '_ {
        let all = self.all_at.map(|at| ItemWrite::of_all((*self.item).clone(), WriteTime::Stated(at)));
        let mut by_time: BTreeMap<UnixMillis, BTreeSet<ItemField>> = BTreeMap::new();
        for (field, at) in &self.times {
            by_time.entry(*at).or_default().insert(field.clone());
        }
        let some = by_time.into_iter().map(|(at, fields)| {
            let item = self.item.with_only(&fields);
            ItemWrite { item, fields: WrittenFields::Some(fields), time: WriteTime::Stated(at) }
        });
        all.into_iter().chain(some)
    }

    fn newest(&self) -> Option<UnixMillis> {
        self.all_at.into_iter().chain(self.deleted_at).chain(self.times.values().copied()).max()
    }

    /// Returns the time of a field's value; none if it was never written.
    fn time_of(&self, field: &ItemField) -> Option<UnixMillis> {
        let whole = field.whole().and_then(|whole| self.times.get(&whole));
        [self.all_at, self.times.get(field).copied(), whole.copied()].into_iter().flatten().max()
    }

    /// Returns true if a field has a value of a later time, or if the item was deleted later.
    fn is_later(&self, field: &ItemField, time: UnixMillis) -> bool {
        self.time_of(field).max(self.deleted_at) > Some(time)
    }

    fn write(&mut self, write: &ItemWrite) -> WriteEffect {
        let at = match write.time {
            WriteTime::Stated(at) => at,
            WriteTime::Received(at) => self.newest().map_or(at, |newest| newest.max(at)),
        };
        match &write.fields {
            WrittenFields::All => self.write_all(&write.item, at),
            WrittenFields::Some(fields) => self.write_some(&write.item, fields, at),
        }
    }

    fn write_all(&mut self, item: &Item, at: UnixMillis) -> WriteEffect {
        self.times.retain(|_, time| *time > at);
        let mut content = item.clone();
        self.times.keys().for_each(|field| field.copy(&self.item, &mut content));
        self.item = Arc::new(content);
        (self.all_at, self.deleted_at) = (Some(at), None);
        WriteEffect::Applied { stale: self.times.keys().cloned().collect() }
    }

    fn write_some(&mut self, item: &Item, fields: &BTreeSet<ItemField>, at: UnixMillis) -> WriteEffect {
        let is_stale = |field: &&ItemField| self.is_later(field, at);
        let (stale, fresh): (Vec<&ItemField>, Vec<&ItemField>) = fields.iter().partition(is_stale);
        let mut stale: Vec<ItemField> = stale.into_iter().cloned().collect();
        let mut content = (*self.item).clone();
        for field in fresh {
            field.copy(item, &mut content);
            let is_part = |other: &ItemField| other.whole().as_ref() == Some(field);
            if matches!(field, ItemField::Attributes | ItemField::Offers) {
                self.times.retain(|other, time| !is_part(other) || *time > at);
                for later in self.times.keys().filter(|other| is_part(other)) {
                    later.copy(&self.item, &mut content);
                    if !stale.contains(later) {
                        stale.push(later.clone());
                    }
                }
            }
            self.times.insert(field.clone(), at);
        }
        self.item = Arc::new(content);
        WriteEffect::Applied { stale }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{AttributeValue, Offer};
    use lodestone_core::units::PriceMicros;
    use proptest::prelude::*;

    fn id() -> ItemId {
        ItemId::parse("a").unwrap()
    }

    /// Fields whose values the tests write. A value is a number, and tells which write it is of.
    const WRITTEN: [&str; 8] =
        ["title", "price_micros", "attributes", "attributes.x", "attributes.y", "offers", "price at x", "stock at x"];

    fn place(name: &str) -> OfferKey {
        OfferKey { place_id: name.into(), ..OfferKey::default() }
    }

    /// An item with these attributes, and with offers at the places of these names.
    fn item(value: i64, attributes: &[&str]) -> Item {
        let number = |name: &&str| ((*name).to_owned(), AttributeValue::Number(value as f64));
        let offer = |name: &&str| Offer {
            price: PriceMicros::new(value),
            stock_quantity: Some(value as u32),
            ..Offer::new(place(name))
        };
        Item {
            price: PriceMicros::new(value),
            attributes: attributes.iter().map(number).collect(),
            offers: attributes.iter().map(offer).collect(),
            ..Item::titled(id(), &value.to_string())
        }
    }

    fn fields(names: &[&str]) -> WrittenFields {
        let field = |name: &&str| match *name {
            "price at x" => ItemField::Offer(place("x"), OfferField::Price),
            "stock at x" => ItemField::Offer(place("x"), OfferField::StockQuantity),
            name => ItemField::parse(name).unwrap(),
        };
        WrittenFields::Some(names.iter().map(field).collect())
    }

    fn stated(at: i64) -> WriteTime {
        WriteTime::Stated(UnixMillis(at))
    }

    fn state_after<'w>(writes: impl IntoIterator<Item = &'w ItemWrite>) -> Option<ItemState> {
        let mut state = None;
        writes.into_iter().for_each(|write| _ = ItemState::write(&mut state, write));
        state
    }

    #[test]
    fn a_deletion_as_of_a_time_leaves_later_values() {
        let write = |at: i64| {
            let time = WriteTime::Received(UnixMillis(at));
            ItemChange::Write(Box::new(ItemWrite::of_all(Item::titled(id(), "title"), time)))
        };
        let delete = |at: i64| ItemChange::Delete { id: id(), time: WriteTime::Stated(UnixMillis(at)) };
        let mut state = None;
        ItemState::apply(&mut state, &write(50));
        let before = state.clone();
        assert_eq!(ItemState::apply(&mut state, &delete(49)), WriteEffect::Stale);
        assert_eq!(state, before);
        ItemState::apply(&mut state, &delete(50));
        assert!(matches!(state, Some(ItemState::Deleted { .. })));
    }

    #[test]
    fn names_are_parsed_as_written() {
        for (name, field) in FIELDS {
            assert_eq!((ItemField::parse(name), &*field.name()), (Ok(field.clone()), name));
        }
        assert_eq!(ItemField::parse("attributes.size"), Ok(ItemField::Attribute("size".into())));
        assert_eq!(ItemField::Attribute("size".into()).name(), "attributes.size");
        for unknown in ["", "item_id", "Title", "price", "attributes.", "attributes.a b"] {
            assert_eq!(ItemField::parse(unknown), Err(UnknownItemField), "{unknown}");
        }
    }

    #[test]
    fn a_field_with_a_later_value_keeps_it_and_is_named() {
        let mut state = state_after([&ItemWrite::of_all(item(1, &["x"]), stated(10))]);
        let price = ItemWrite { item: item(2, &[]), fields: fields(&["price_micros"]), time: stated(30) };
        assert_eq!(ItemState::write(&mut state, &price), WriteEffect::Applied { stale: vec![] });
        let late = ItemWrite { item: item(3, &[]), fields: fields(&["price_micros", "title"]), time: stated(20) };
        assert_eq!(ItemState::write(&mut state, &late), WriteEffect::Applied { stale: vec![ItemField::Price] });
        assert_eq!(ItemState::write(&mut state, &late), WriteEffect::Applied { stale: vec![ItemField::Price] });
        let feed = ItemWrite::of_all(item(4, &[]), stated(25));
        assert_eq!(ItemState::write(&mut state, &feed), WriteEffect::Applied { stale: vec![ItemField::Price] });
        assert_eq!(ItemState::write(&mut state, &late), WriteEffect::Stale);
        let content = state.clone().unwrap().content(None).unwrap();
        assert_eq!((content.title.as_str(), content.price), ("4", PriceMicros::new(2)));
        let unstated = ItemWrite { time: WriteTime::Received(UnixMillis(5)), ..price };
        assert_eq!(ItemState::write(&mut state, &unstated), WriteEffect::Applied { stale: vec![] });
        assert_eq!(ItemState::write(&mut state, &ItemWrite::of_all(item(5, &[]), stated(24))), WriteEffect::Stale);
    }

    #[test]
    fn some_fields_do_not_bring_a_deleted_item_back_and_an_earlier_write_is_stale() {
        let mut state = Some(ItemState::Deleted { at: UnixMillis(10) });
        let early = ItemWrite { item: item(1, &[]), fields: fields(&["title"]), time: stated(9) };
        assert_eq!(ItemState::write(&mut state, &early), WriteEffect::Stale);
        let some = ItemWrite { item: item(1, &[]), fields: fields(&["title"]), time: stated(20) };
        assert_eq!(ItemState::write(&mut state, &some), WriteEffect::Applied { stale: vec![] });
        assert_eq!(ItemState::write(&mut state, &early), WriteEffect::Stale);
        assert_eq!(ItemState::write(&mut state, &ItemWrite::of_all(item(1, &[]), stated(9))), WriteEffect::Stale);
        assert_eq!(state.as_ref().unwrap().content(Some(&item(0, &[]))), None);
        let again = ItemWrite::of_all(item(2, &[]), stated(21));
        assert_eq!(ItemState::write(&mut state, &again), WriteEffect::Applied { stale: vec![] });
        assert_eq!(*state.unwrap().content(None).unwrap(), item(2, &[]));
    }

    #[test]
    fn a_deletion_is_later_than_what_it_deletes() {
        // The shop's clock is ahead.
        let ahead = ItemWrite::of_all(item(1, &[]), stated(100));
        let mut state = state_after([&ahead]);
        ItemState::apply(&mut state, &ItemChange::Delete { id: id(), time: WriteTime::Received(UnixMillis(50)) });
        assert_eq!(ItemState::write(&mut state, &ahead), WriteEffect::Stale, "a repeated message");
        assert_eq!(state.as_ref().unwrap().content(Some(&item(0, &[]))), None);
    }

    #[test]
    fn a_second_deletion_does_not_bring_an_older_write_back() {
        let ahead = ItemWrite::of_all(item(1, &[]), stated(100));
        let mut state = state_after([&ahead]);
        let deletion = ItemChange::Delete { id: id(), time: WriteTime::Received(UnixMillis(50)) };
        for _ in 0..2 {
            ItemState::apply(&mut state, &deletion);
            assert_eq!(ItemState::write(&mut state, &ahead), WriteEffect::Stale);
        }
    }

    #[test]
    fn all_attributes_keep_the_later_ones() {
        let later = ItemWrite { item: item(9, &["x"]), fields: fields(&["attributes.x"]), time: stated(9) };
        let mut state = state_after([&ItemWrite::of_all(item(1, &["x", "y"]), stated(1)), &later]);
        let both = fields(&["attributes", "attributes.x"]);
        let effect = ItemState::write(&mut state, &ItemWrite { item: item(5, &["z"]), fields: both, time: stated(5) });
        assert_eq!(effect, WriteEffect::Applied { stale: vec![ItemField::Attribute("x".into())] });
        let content = state.as_ref().unwrap().content(None).unwrap();
        assert_eq!(content.attributes.keys().collect::<Vec<_>>(), ["x", "z"]);
        let removed =
            ItemWrite { item: item(10, &[]), fields: fields(&["attributes.z", "attributes.w"]), time: stated(10) };
        ItemState::write(&mut state, &removed);
        assert_eq!(state.unwrap().attribute_count(), 3, "x has a value, z and w have the time of their removal");
    }

    #[test]
    fn some_fields_change_the_item_of_each_catalogue() {
        let write =
            ItemWrite { item: item(2, &["y"]), fields: fields(&["attributes.x", "attributes.y"]), time: stated(1) };
        let state = state_after([&write]).unwrap();
        let content = state.content(Some(&item(1, &["x", "z"]))).unwrap();
        let attributes: Vec<(&str, &AttributeValue)> =
            content.attributes.iter().map(|(name, value)| (name.as_str(), value)).collect();
        assert_eq!(attributes, [("y", &AttributeValue::Number(2.0)), ("z", &AttributeValue::Number(1.0))]);
        assert_eq!(content.title, "1");
        assert_eq!(state.content(Some(&content)).as_ref(), Some(&content), "applying it again changes nothing");
        assert_eq!(state.content(None), None);
    }

    #[test]
    fn each_value_of_an_offer_has_a_time_of_its_own() {
        let mut state = state_after([&ItemWrite::of_all(item(1, &["x", "y"]), stated(10))]);
        let mut write = |value, names: &[&str], at| {
            ItemState::write(
                &mut state,
                &ItemWrite { item: item(value, &["x"]), fields: fields(names), time: stated(at) },
            )
        };
        let price = ItemField::Offer(place("x"), OfferField::Price);
        assert_eq!(write(2, &["price at x"], 30), WriteEffect::Applied { stale: vec![] });
        assert_eq!(write(3, &["price at x"], 20), WriteEffect::Stale);
        assert_eq!(write(4, &["price at x", "stock at x"], 20), WriteEffect::Applied { stale: vec![price.clone()] });
        let all = ItemState::write(&mut state, &ItemWrite::of_all(item(5, &["y"]), stated(25)));
        assert_eq!(
            all,
            WriteEffect::Applied { stale: vec![price.clone()] },
            "the later price stays, the stock is removed"
        );
        let content = state.as_ref().unwrap().content(None).unwrap();
        let at_x = Offer { price: PriceMicros::new(2), ..Offer::new(place("x")) };
        let at_y = Offer { price: PriceMicros::new(5), stock_quantity: Some(5), ..Offer::new(place("y")) };
        assert_eq!(content.offers, [at_x, at_y.clone()]);
        assert_eq!(price.name(), "offers[place_id=x].price_micros");
        let none = ItemWrite { item: item(6, &[]), fields: fields(&["price at x"]), time: stated(40) };
        assert_eq!(ItemState::write(&mut state, &none), WriteEffect::Applied { stale: vec![] });
        assert_eq!(state.unwrap().content(None).unwrap().offers, [at_y], "an offer without values is removed");
    }

    /// An item of a file of the shop.
    fn in_file(value: i64, at: i64) -> Item {
        Item { values_at: Some(UnixMillis(at)), ..item(value, &["x"]) }
    }

    #[test]
    fn a_later_file_wins_over_writes_and_loses_to_later_ones() {
        let price =
            |value, at| ItemWrite { item: item(value, &[]), fields: fields(&["price_micros"]), time: stated(at) };
        let mut state = state_after([&ItemWrite::of_all(item(1, &[]), stated(10)), &price(2, 30)]);
        let shown = |state: &Option<ItemState>, file: &Item| {
            let content = state.as_ref().unwrap().content(Some(file))?;
            Some((content.title.clone(), content.price.map(PriceMicros::micros)?))
        };
        let of = |title: &str, price| Some((title.to_owned(), price));
        assert_eq!(shown(&state, &in_file(7, 9)), of("1", 2), "the file is older than all writes");
        assert_eq!(shown(&state, &in_file(7, 20)), of("7", 2), "only the price was written after the file");
        assert_eq!(shown(&state, &in_file(7, 31)), of("7", 7), "the file is the latest");
        assert_eq!(shown(&state, &item(7, &[])), of("1", 2), "an item without a time is older than all writes");
        assert!(price(3, 30).is_older_than(&in_file(7, 31)) && !price(3, 31).is_older_than(&in_file(7, 31)));

        ItemState::apply(&mut state, &ItemChange::Delete { id: id(), time: WriteTime::Received(UnixMillis(40)) });
        assert_eq!(shown(&state, &in_file(7, 40)), None);
        assert_eq!(shown(&state, &in_file(7, 41)), of("7", 7), "a file that was made after the deletion has the item");
        ItemState::write(&mut state, &price(8, 50));
        assert_eq!(shown(&state, &in_file(7, 41)), of("7", 8), "and takes later prices");
        assert_eq!(shown(&state, &in_file(7, 40)), None, "which bring it back to no other catalogue");
        let mut restored = None;
        let changes = state.as_ref().unwrap().changes(&id());
        changes.iter().for_each(|change| _ = ItemState::apply(&mut restored, change));
        assert_eq!(restored, state);
    }

    #[test]
    fn a_write_without_its_stale_fields_has_those_that_take_effect() {
        let price = |at| ItemWrite { item: item(2, &[]), fields: fields(&["price_micros"]), time: stated(at) };
        let state = state_after([&ItemWrite::of_all(item(1, &["x"]), stated(10)), &price(30)]);
        let both = |at| ItemWrite { fields: fields(&["title", "price_micros"]), ..price(at) };
        let part = |write: &ItemWrite, known: Option<&Item>| {
            write.without_stale(state.as_ref(), known).map(|part| part.into_owned().fields)
        };
        let (title, all) = (fields(&["title"]), fields(&["title", "price_micros"]));
        assert_eq!(part(&both(9), None), None);
        assert_eq!(part(&both(20), None), Some(title.clone()));
        assert_eq!(part(&both(30), None), Some(all.clone()));
        assert_eq!(part(&ItemWrite { time: WriteTime::Received(UnixMillis(9)), ..both(0) }, None), Some(all.clone()));
        let mut absent = FieldSet::default();
        absent.insert(&ItemField::Title);
        let file = Item { absent_fields: absent, ..in_file(7, 50) };
        assert_eq!(part(&both(40), Some(&file)), Some(title));
        assert_eq!(part(&both(40), Some(&in_file(7, 50))), None, "the file has both");
        assert_eq!(part(&both(50), Some(&file)), Some(all));
        assert_eq!(part(&ItemWrite::of_all(item(3, &[]), stated(9)), None), None);
        assert_eq!(part(&ItemWrite::of_all(item(3, &[]), stated(20)), None), Some(WrittenFields::All));
    }

    #[test]
    fn fields_that_a_file_does_not_have_are_those_of_the_api() {
        let mut absent = FieldSet::default();
        [ItemField::Price, ItemField::Attributes].iter().for_each(|field| absent.insert(field));
        assert!(absent.contains(&ItemField::Attribute("x".into())) && !absent.contains(&ItemField::Title));
        assert_eq!(absent.iter().collect::<Vec<_>>(), [ItemField::Price, ItemField::Attributes]);
        assert_eq!(absent.others().count(), FIELDS.len() - 2);
        let file = Item { absent_fields: absent, attributes: BTreeMap::new(), ..in_file(7, 20) };
        let names = |state: &Option<ItemState>| {
            let content = state.as_ref().unwrap().content(Some(&file)).unwrap();
            let attributes: Vec<String> = content.attributes.keys().cloned().collect();
            (content.title.clone(), content.price.map(PriceMicros::micros), attributes.join(" "))
        };
        let all = ItemWrite::of_all(item(1, &["x"]), stated(10));
        let mut state = state_after([&all]);
        assert_eq!(names(&state), ("7".to_owned(), Some(1), "x".to_owned()));
        let some = fields(&["title", "price_micros", "attributes.y"]);
        let some = ItemWrite { item: item(2, &["y"]), fields: some, time: stated(15) };
        ItemState::write(&mut state, &some);
        assert_eq!(names(&state), ("7".to_owned(), Some(2), "x y".to_owned()));
        assert_eq!(names(&state_after([&some])), ("7".to_owned(), Some(2), "y".to_owned()));
        assert!(!all.is_older_than(&file) && !some.is_older_than(&file), "some of their fields count");
        let title = ItemWrite { item: item(3, &[]), fields: fields(&["title"]), time: stated(15) };
        assert!(title.is_older_than(&file));
    }

    fn writes() -> impl Strategy<Value = Vec<ItemWrite>> {
        let names = proptest::sample::subsequence(WRITTEN.to_vec(), 0..=WRITTEN.len());
        let attributes = proptest::sample::subsequence(vec!["x", "y", "z"], 0..=3);
        proptest::collection::vec((names, attributes), 1..9).prop_map(|writes| {
            // Times are distinct, because of two writes of one time the last to arrive remains.
            let write = |(at, (names, attributes)): (i64, (Vec<&str>, Vec<&str>))| ItemWrite {
                item: item(at, &attributes),
                fields: if names.is_empty() { WrittenFields::All } else { fields(&names) },
                time: stated(at),
            };
            (1..).zip(writes).map(write).collect()
        })
    }

    /// Writes and deletions in an order of arrival that is not that of their times.
    fn changes() -> impl Strategy<Value = Vec<ItemChange>> {
        let received = proptest::collection::vec((any::<proptest::sample::Index>(), 0..12_i64), 1..6);
        (writes(), received, any::<u64>()).prop_map(|(mut writes, deletions, seed)| {
            use rand::{SeedableRng, seq::SliceRandom};
            writes.shuffle(&mut rand::rngs::StdRng::seed_from_u64(seed));
            let mut changes: Vec<ItemChange> =
                writes.into_iter().map(|write| ItemChange::Write(Box::new(write))).collect();
            for (position, at) in deletions {
                let deletion = ItemChange::Delete { id: id(), time: WriteTime::Received(UnixMillis(at)) };
                changes.insert(position.index(changes.len() + 1), deletion);
            }
            changes
        })
    }

    proptest! {
        /// A deletion is later than all that arrived before it, whatever the clocks say, and never moves back.
        #[test]
        fn a_deletion_is_later_than_everything_before_it(changes in changes()) {
            let (mut state, mut newest) = (None, None);
            for (index, change) in changes.iter().enumerate() {
                ItemState::apply(&mut state, change);
                let ItemChange::Delete { .. } = change else { continue };
                let deleted = state.clone().unwrap();
                prop_assert_eq!(deleted.content(Some(&item(0, &[]))), None);
                prop_assert!(deleted.newest() >= newest, "{:?} after {:?}", deleted.newest(), newest);
                newest = deleted.newest();
                for earlier in &changes[..index] {
                    if let ItemChange::Write(write) = earlier {
                        prop_assert!(deleted.is_stale(write), "{write:?}");
                    }
                }
            }
        }

        /// Writes that arrive in any order have the effect of those in the order of their times.
        #[test]
        fn the_newest_value_of_each_field_remains(writes in writes(), seed in any::<u64>()) {
            use rand::{SeedableRng, seq::SliceRandom};
            let mut shuffled = writes.clone();
            shuffled.shuffle(&mut rand::rngs::StdRng::seed_from_u64(seed));
            let known = item(0, &["x", "y", "z"]);
            let content = |writes: &[ItemWrite]| state_after(writes).unwrap().content(Some(&known));
            prop_assert_eq!(content(&shuffled), content(&writes));
        }

        #[test]
        fn the_changes_of_a_state_lead_to_it(changes in changes()) {
            let (mut state, mut restored) = (None, None);
            changes.iter().for_each(|change| _ = ItemState::apply(&mut state, change));
            state.iter().flat_map(|state| state.changes(&id())).for_each(|change| {
                ItemState::apply(&mut restored, &change);
            });
            prop_assert_eq!(restored, state);
        }
    }
}
