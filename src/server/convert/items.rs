//! Validates and converts items.
use super::{
    attribute_declaration_to_proto, currency,
    events::{nanos, time},
    filters::filter,
    requests::fingerprint,
    viewer::region,
};
use crate::server::{proto, violations::Violations};
use lodestone_catalog::{
    AttributeKind, AttributeKindCount, AttributeValue, Availability, Filter, GeoPoint, Item, ItemField, ItemWrite,
    Offer, OfferField, OfferKey, ReadMask, WriteTime, WrittenFields, category_levels, category_path, is_url, limits,
};
use lodestone_core::{
    ids::ItemId,
    units::{PriceMicros, UnixMillis},
};
use lodestone_rules::CompiledAttribute;
use prost::Message;
use prost_types::FieldMask;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::{self, Display},
    ops::RangeInclusive,
    sync::Arc,
    time::Duration,
};

/// Greatest number of fields in a mask: all fields, and all attributes by name.
const MASK_MAX: usize = 22 + limits::ATTRIBUTES;

/// Number of listed items per page.
const LIST_SIZE_DEFAULT: usize = 100;
const LIST_SIZE_MAX: usize = 1000;

/// The range of the times of an item: the years 1 to 9999, as `google.protobuf.Timestamp` defines it, in seconds since
/// 1970.
const TIME_S: RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;

/// The server's clock and how far a stated time may be ahead of it.
#[derive(Clone, Copy)]
pub(crate) struct Clock {
    pub(crate) now: UnixMillis,
    pub(crate) ahead_max: Duration,
}

impl Clock {
    /// Validates the time of a write.
    pub(crate) fn write_time(
        self,
        violations: &mut Violations,
        field: impl Display,
        sent: Option<&prost_types::Timestamp>,
    ) -> WriteTime {
        match sent {
            None => WriteTime::Received(self.now),
            Some(_) => WriteTime::Stated(time(violations, field, sent, self.now, Some(self.ahead_max))),
        }
    }
}

/// Converts a change of some fields of an item. Returns None if there are violations.
pub(crate) fn item_update(
    violations: &mut Violations,
    path: impl Display,
    update: &proto::ItemUpdate,
    clock: Clock,
) -> Option<ItemWrite> {
    let before = violations.found.len();
    let unset = proto::Item::default();
    let sent = update.item.as_ref().unwrap_or(&unset);
    let names = mask_names(update.update_mask.as_ref());
    if names.is_empty() {
        violations.add(format_args!("{path}.update_mask"), "is empty; name the fields to set");
    }
    let fields = update_mask(violations, format_args!("{path}.update_mask"), names);
    let item = item_with_only(violations, format_args!("{path}.item"), sent, &fields);
    let time = clock.write_time(violations, format_args!("{path}.update_time"), update.update_time.as_ref());
    let item = item.filter(|_| violations.found.len() == before)?;
    Some(ItemWrite { item, fields: WrittenFields::Some(fields), time })
}

/// Converts stock and price of an item. Returns None if there are violations.
pub(crate) fn inventory(
    violations: &mut Violations,
    path: impl Display,
    inventory: &proto::Inventory,
    clock: Clock,
) -> Option<ItemWrite> {
    if inventory.offer_key.is_some() {
        return offer_inventory(violations, path, inventory, clock);
    }
    let before = violations.found.len();
    let mut fields = BTreeSet::new();
    fields.extend(inventory.stock_quantity.map(|_| ItemField::StockQuantity));
    fields.extend(inventory.price_micros.map(|_| ItemField::Price));
    fields.extend(inventory.original_price_micros.map(|_| ItemField::OriginalPrice));
    fields.extend((inventory.availability != 0).then_some(ItemField::Availability));
    fields.extend(inventory.sale_price_micros.map(|_| ItemField::SalePrice));
    fields.extend(inventory.sale_start_time.map(|_| ItemField::SaleStart));
    fields.extend(inventory.sale_end_time.map(|_| ItemField::SaleEnd));
    fields.extend((!inventory.currency_code.is_empty()).then_some(ItemField::Currency));
    if fields.is_empty() {
        let problem = "has nothing to set; set stock_quantity, availability, price_micros, original_price_micros, \
                       sale_price_micros, sale_start_time or sale_end_time";
        violations.add(&path, problem);
    }
    if inventory.price_micros.is_none() && !inventory.currency_code.is_empty() {
        violations.add(format_args!("{path}.currency_code"), "needs a price_micros");
    }
    let sent = proto::Item {
        item_id: inventory.item_id.clone(),
        stock_quantity: inventory.stock_quantity,
        price_micros: inventory.price_micros,
        original_price_micros: inventory.original_price_micros,
        availability: inventory.availability,
        currency_code: inventory.currency_code.clone(),
        sale_price_micros: inventory.sale_price_micros,
        sale_start_time: inventory.sale_start_time,
        sale_end_time: inventory.sale_end_time,
        ..proto::Item::default()
    };
    let item = item(violations, &path, &sent, false);
    let time = clock.write_time(violations, format_args!("{path}.update_time"), inventory.update_time.as_ref());
    let item = item.filter(|_| violations.found.len() == before)?;
    Some(ItemWrite { item, fields: WrittenFields::Some(fields), time })
}

/// Converts stock and price of an offer. Returns None if there are violations.
fn offer_inventory(
    violations: &mut Violations,
    path: impl Display,
    inventory: &proto::Inventory,
    clock: Clock,
) -> Option<ItemWrite> {
    let before = violations.found.len();
    let id = violations.keep(format_args!("{path}.item_id"), ItemId::parse(&inventory.item_id));
    if !inventory.currency_code.is_empty() {
        let problem =
            "must be empty, because the prices of an offer are in offer_key.currency_code or in the item's currency";
        violations.add(format_args!("{path}.currency_code"), problem);
    }
    if inventory.availability != 0 {
        let problem = "must not be set, because that of the item holds for all viewers; set it without offer_key";
        violations.add(format_args!("{path}.availability"), problem);
    }
    let sent = proto::Offer {
        key: inventory.offer_key.clone(),
        price_micros: inventory.price_micros,
        original_price_micros: inventory.original_price_micros,
        stock_quantity: inventory.stock_quantity,
        sale_price_micros: inventory.sale_price_micros,
        sale_start_time: inventory.sale_start_time,
        sale_end_time: inventory.sale_end_time,
    };
    let offer = offer(violations, &path, "offer_key", &sent);
    let time = clock.write_time(violations, format_args!("{path}.update_time"), inventory.update_time.as_ref());
    let (id, offer) = id.zip(offer.filter(|_| violations.found.len() == before))?;
    let fields = OfferField::ALL.into_iter().filter(|field| offer.has(*field));
    let fields = fields.map(|field| ItemField::Offer(offer.key.clone(), field)).collect();
    let item = Item { offers: vec![offer], ..Item::titled(id, "") };
    Some(ItemWrite { item, fields: WrittenFields::Some(fields), time })
}

/// A validated request of ListItems.
pub(crate) struct ItemsRequest {
    pub(crate) filter: Option<Filter>,
    pub(crate) count: usize,
    pub(crate) token: String,
    /// Of the filter.
    pub(crate) fingerprint: u64,
    /// The fields to return.
    pub(crate) read_mask: ReadMask,
}

/// Validates the size of a page of a list.
pub(crate) fn list_size(violations: &mut Violations, size: i32) -> usize {
    violations.size("page_size", size, LIST_SIZE_DEFAULT, LIST_SIZE_MAX)
}

pub(crate) fn list_items(violations: &mut Violations, request: proto::ListItemsRequest) -> ItemsRequest {
    let expression = request.filter_expression.as_ref();
    let mut filters = request.filter.clone().into_bytes();
    filters.push(0);
    filters.extend(expression.map(Message::encode_to_vec).unwrap_or_default());
    ItemsRequest {
        filter: filter(violations, "filter", &request.filter, expression),
        count: list_size(violations, request.page_size),
        token: request.page_token,
        fingerprint: fingerprint(&filters),
        read_mask: read_mask(violations, "read_mask", request.read_mask.as_ref()).unwrap_or(ReadMask::All),
    }
}

/// Parses the mask of the items of a response; none if it is absent or empty. `*` names all fields.
pub(crate) fn read_mask(violations: &mut Violations, path: impl Display, sent: Option<&FieldMask>) -> Option<ReadMask> {
    let names = mask_names(sent);
    if names.is_empty() {
        return None;
    }
    // The id is returned in any case.
    let fields = mask(violations, path, names, |name| name == "item_id" || name == "*");
    Some(if names.iter().any(|name| name == "*") { ReadMask::All } else { ReadMask::Some(fields) })
}

fn mask_names(mask: Option<&FieldMask>) -> &[String] {
    mask.map(|mask| &mask.paths[..]).unwrap_or_default()
}

/// Parses the names of the fields that a write sets.
pub(crate) fn update_mask(violations: &mut Violations, path: impl Display, names: &[String]) -> BTreeSet<ItemField> {
    mask(violations, path, names, |_| false)
}

/// Parses the names of a mask, without those that `is_skipped`.
fn mask(
    violations: &mut Violations,
    path: impl Display,
    names: &[String],
    is_skipped: impl Fn(&str) -> bool,
) -> BTreeSet<ItemField> {
    violations.count(&path, names.len(), MASK_MAX);
    let parse = |(index, name): (usize, &String)| {
        let parsed = ItemField::parse(name).map_err(|error| format!("`{}` {error}", super::shortened(name)));
        violations.keep(format_args!("{path}.paths[{index}]"), parsed)
    };
    names.iter().take(MASK_MAX).enumerate().filter(|(_, name)| !is_skipped(name)).filter_map(parse).collect()
}

/// Returns an item with these fields of another one.
fn masked(item: &proto::Item, fields: &BTreeSet<ItemField>) -> proto::Item {
    let mut masked = proto::Item { item_id: item.item_id.clone(), ..proto::Item::default() };
    for field in fields {
        match field {
            ItemField::GroupId => masked.group_id.clone_from(&item.group_id),
            ItemField::Title => masked.title.clone_from(&item.title),
            ItemField::Description => masked.description.clone_from(&item.description),
            ItemField::Categories => masked.categories.clone_from(&item.categories),
            ItemField::Brand => masked.brand.clone_from(&item.brand),
            ItemField::Price => masked.price_micros = item.price_micros,
            ItemField::OriginalPrice => masked.original_price_micros = item.original_price_micros,
            ItemField::SalePrice => masked.sale_price_micros = item.sale_price_micros,
            ItemField::SaleStart => masked.sale_start_time = item.sale_start_time,
            ItemField::SaleEnd => masked.sale_end_time = item.sale_end_time,
            ItemField::Cost => masked.cost_micros = item.cost_micros,
            ItemField::Currency => masked.currency_code.clone_from(&item.currency_code),
            ItemField::StockQuantity => masked.stock_quantity = item.stock_quantity,
            ItemField::Availability => masked.availability = item.availability,
            ItemField::Tags => masked.tags.clone_from(&item.tags),
            ItemField::Rating => masked.rating = item.rating,
            ItemField::RatingCount => masked.rating_count = item.rating_count,
            ItemField::Url => masked.url.clone_from(&item.url),
            ItemField::ImageUrl => masked.image_url.clone_from(&item.image_url),
            ItemField::Attributes => masked.attributes.clone_from(&item.attributes),
            ItemField::Attribute(name) => {
                let sent = item.attributes.get(name).map(|value| (name.clone(), value.clone()));
                masked.attributes.extend(sent);
            }
            ItemField::CreateTime => masked.create_time = item.create_time,
            // No mask names one value of an offer.
            ItemField::Offers | ItemField::Offer(..) => masked.offers.clone_from(&item.offers),
        }
    }
    masked
}

/// Converts some fields of an item; the others are not read. Returns None if there are violations.
pub(crate) fn item_with_only(
    violations: &mut Violations,
    path: impl Display,
    sent: &proto::Item,
    fields: &BTreeSet<ItemField>,
) -> Option<Item> {
    item(violations, path, &masked(sent, fields), fields.contains(&ItemField::Title))
}

/// Converts an item. Returns None if there are violations. `created_at` is none if the request does not set it.
pub(crate) fn item(
    violations: &mut Violations,
    path: impl Display,
    item: &proto::Item,
    needs_title: bool,
) -> Option<Item> {
    let before = violations.found.len();
    let path = &path;
    let field = |name: &'static str| fmt::from_fn(move |f| write!(f, "{path}.{name}"));
    let id = violations.keep(field("item_id"), ItemId::parse(&item.item_id));
    if !item.group_id.is_empty() {
        violations.keep(field("group_id"), ItemId::parse(&item.group_id));
    }
    if needs_title && item.title.trim().is_empty() {
        violations.add(field("title"), "is empty; it must have 1 to 1,000 characters");
    }
    violations.characters(field("title"), &item.title, limits::TITLE_CHARS);
    violations.characters(field("description"), &item.description, limits::DESCRIPTION_CHARS);
    let categories = categories(violations, field("categories"), &item.categories);
    violations.characters(field("brand"), &item.brand, limits::NAME_CHARS);
    let price = price(violations, field("price_micros"), item.price_micros);
    let original_price = self::price(violations, field("original_price_micros"), item.original_price_micros);
    let sale_price = self::price(violations, field("sale_price_micros"), item.sale_price_micros);
    let [sale_start, sale_end] = sale_times(violations, path, &item.sale_start_time, &item.sale_end_time);
    let cost = self::price(violations, field("cost_micros"), item.cost_micros);
    let currency = currency(violations, field("currency_code"), &item.currency_code);
    let stated_availability = availability(violations, field("availability"), item.availability);
    if let Some(rating) = item.rating.filter(|rating| !(0.0..=limits::RATING).contains(rating)) {
        violations.add(field("rating"), format!("is {rating}; it must be within 0 and {}", limits::RATING));
    }
    let rating_count =
        item.rating_count.and_then(|count| u32::try_from(count).ok()).filter(|c| *c <= limits::RATING_COUNT);
    if let (Some(count), None) = (item.rating_count, rating_count) {
        violations.add(field("rating_count"), format!("is {count}; it must be within 0 and {}", limits::RATING_COUNT));
    }
    url(violations, field("url"), &item.url);
    url(violations, field("image_url"), &item.image_url);
    let stock_quantity = stock(violations, field("stock_quantity"), item.stock_quantity);
    let offers = offers(violations, field("offers"), &item.offers);
    violations.count(field("tags"), item.tags.len(), limits::TAGS);
    for (index, tag) in item.tags.iter().take(limits::TAGS).enumerate() {
        violations.characters(format_args!("{path}.tags[{index}]"), tag, limits::TAG_CHARS);
    }
    let attributes = attributes(violations, field("attributes"), &item.attributes);
    let created_at = item_time(violations, field("create_time"), item.create_time.as_ref());
    if violations.found.len() > before {
        return None;
    }
    Some(Item {
        group_id: item.group_id.clone(),
        title: item.title.clone(),
        description: item.description.clone(),
        categories,
        brand: item.brand.clone(),
        price,
        sale_price,
        sale_start,
        sale_end,
        cost,
        stated_availability,
        currency,
        stock_quantity,
        offers,
        tags: item.tags.clone(),
        original_price,
        rating: item.rating,
        rating_count,
        url: item.url.clone(),
        image_url: item.image_url.clone(),
        attributes,
        created_at,
        ..Item::titled(id?, "")
    })
}

fn url(violations: &mut Violations, field: impl Display, url: &str) {
    violations.characters(&field, url, limits::URL_CHARS);
    if !url.is_empty() && !is_url(url) {
        let problem = "is neither an http or https URL without spaces nor a path that begins with one /";
        violations.add(field, format!("`{}` {problem}", super::shortened(url)));
    }
}

/// Validates paths of categories, and returns them in the form of [`category_path`].
pub(crate) fn categories(violations: &mut Violations, field: impl Display, paths: &[String]) -> Vec<String> {
    violations.count(&field, paths.len(), limits::CATEGORY_PATHS);
    for (index, path) in paths.iter().take(limits::CATEGORY_PATHS).enumerate() {
        let field = format_args!("{field}[{index}]");
        let levels = category_levels(path).count();
        if levels == 0 {
            violations.add(field, "is empty; write the path of a category, such as `Home > Kitchen`");
        }
        if levels > limits::CATEGORY_LEVELS {
            violations.add(field, format!("has {levels} levels; the limit is {}", limits::CATEGORY_LEVELS));
        }
        category_levels(path).for_each(|level| violations.characters(field, level, limits::NAME_CHARS));
    }
    paths.iter().map(|path| category_path(path)).collect()
}

/// Validates a time of an item.
fn item_time(
    violations: &mut Violations,
    field: impl Display,
    sent: Option<&prost_types::Timestamp>,
) -> Option<UnixMillis> {
    let time = sent?;
    nanos(violations, &field, time);
    if !TIME_S.contains(&time.seconds) {
        let description = format!("is {} s since 1970; it must be within the years 1 and 9999", time.seconds);
        violations.add(field, description);
        return None;
    }
    Some(UnixMillis(time.seconds * 1000 + i64::from(time.nanos) / 1_000_000))
}

fn availability(violations: &mut Violations, field: impl Display, sent: i32) -> Option<Availability> {
    match proto::Availability::try_from(sent) {
        Ok(proto::Availability::Unspecified) => None,
        Ok(proto::Availability::InStock) => Some(Availability::InStock),
        Ok(proto::Availability::Backorder) => Some(Availability::Backorder),
        Ok(proto::Availability::Preorder) => Some(Availability::Preorder),
        Ok(proto::Availability::OutOfStock) => Some(Availability::OutOfStock),
        Ok(proto::Availability::Discontinued) => Some(Availability::Discontinued),
        Err(_) => {
            violations.add(field, format!("{sent} is not an Availability"));
            None
        }
    }
}

fn stock(violations: &mut Violations, field: impl Display, pieces: Option<i64>) -> Option<u32> {
    // A shop that sells more than it has counts below 0.
    let pieces = pieces?.max(0);
    let stock = u32::try_from(pieces).ok().filter(|stock| *stock <= limits::STOCK);
    if stock.is_none() {
        violations.add(field, format!("is {pieces}; it must be at most {}", limits::STOCK));
    }
    stock
}

/// Converts the offers of an item, in the order of their keys.
fn offers(violations: &mut Violations, field: impl Display, sent: &[proto::Offer]) -> Vec<Offer> {
    violations.count(&field, sent.len(), limits::OFFERS);
    let mut indices: BTreeMap<OfferKey, usize> = BTreeMap::new();
    let mut offers = Vec::new();
    for (index, sent) in sent.iter().take(limits::OFFERS).enumerate() {
        let path = format!("{field}[{index}]");
        let Some(offer) = offer(violations, &path, "key", sent) else { continue };
        offer_prices(violations, &path, &offer, |_| true);
        match indices.get(&offer.key) {
            Some(first) => {
                violations.add(format_args!("{path}.key"), format!("is that of offers[{first}]; a key has one offer"))
            }
            None => _ = indices.insert(offer.key.clone(), index),
        }
        offers.push(offer);
    }
    offers.sort_by(|a, b| a.key.cmp(&b.key));
    offers
}

/// Validates that an offer has the price that its original price and its sale price need, if a request `sets` them.
fn offer_prices(violations: &mut Violations, path: impl Display, offer: &Offer, sets: impl Fn(OfferField) -> bool) {
    if offer.price.is_some() {
        return;
    }
    for field in [OfferField::OriginalPrice, OfferField::SalePrice] {
        if offer.has(field) && sets(field) {
            violations.add(format_args!("{path}.{}", field.name()), "needs a price_micros of the same offer");
        }
    }
}

/// Validates values that a write of some fields sets, together with those that it leaves: `content` is the item
/// afterwards. Each is valid by itself.
pub(crate) fn merged_prices(violations: &mut Violations, path: impl Display, write: &ItemWrite, content: &Item) {
    let WrittenFields::Some(fields) = &write.fields else { return };
    if fields.contains(&ItemField::SaleStart) || fields.contains(&ItemField::SaleEnd) {
        sale_order(violations, &path, content.sale_start, content.sale_end);
    }
    for offer in &content.offers {
        let sets = |value: OfferField| {
            let is_set =
                |field: &ItemField| matches!(field, ItemField::Offer(key, of) if *of == value && *key == offer.key);
            fields.iter().any(is_set)
        };
        offer_prices(violations, &path, offer, sets);
        if sets(OfferField::SaleStart) || sets(OfferField::SaleEnd) {
            sale_order(violations, &path, offer.sale_start, offer.sale_end);
        }
    }
}

/// Converts an offer whose key is in the field `key_name`. Returns None if there are violations.
fn offer(
    violations: &mut Violations,
    path: impl Display,
    key_name: &'static str,
    sent: &proto::Offer,
) -> Option<Offer> {
    let before = violations.found.len();
    let key = offer_key(violations, format_args!("{path}.{key_name}"), sent.key.as_ref());
    let [sale_start, sale_end] = sale_times(violations, &path, &sent.sale_start_time, &sent.sale_end_time);
    let offer = Offer {
        price: price(violations, format_args!("{path}.price_micros"), sent.price_micros),
        original_price: price(violations, format_args!("{path}.original_price_micros"), sent.original_price_micros),
        stock_quantity: stock(violations, format_args!("{path}.stock_quantity"), sent.stock_quantity),
        sale_price: price(violations, format_args!("{path}.sale_price_micros"), sent.sale_price_micros),
        sale_start,
        sale_end,
        key,
    };
    let is_empty = [sent.price_micros, sent.original_price_micros, sent.stock_quantity, sent.sale_price_micros]
        .iter()
        .all(Option::is_none);
    if is_empty && sent.sale_start_time.is_none() && sent.sale_end_time.is_none() {
        violations.add(&path, "has no value; set price_micros, stock_quantity or sale_price_micros");
    }
    if sent.stock_quantity.is_some() && !offer.key.currency.is_empty() {
        let problem = format!(
            "must be absent, because stock has no currency; set it in an offer without {key_name}.currency_code"
        );
        violations.add(format_args!("{path}.stock_quantity"), problem);
    }
    (violations.found.len() == before).then_some(offer)
}

/// Validates the start and the end of a sale.
fn sale_times(
    violations: &mut Violations,
    path: &impl Display,
    start: &Option<prost_types::Timestamp>,
    end: &Option<prost_types::Timestamp>,
) -> [Option<UnixMillis>; 2] {
    let start = item_time(violations, format_args!("{path}.sale_start_time"), start.as_ref());
    let end = item_time(violations, format_args!("{path}.sale_end_time"), end.as_ref());
    sale_order(violations, path, start, end);
    [start, end]
}

/// Validates that a sale ends after its start.
fn sale_order(violations: &mut Violations, path: &impl Display, start: Option<UnixMillis>, end: Option<UnixMillis>) {
    if let (Some(start), Some(end)) = (start, end)
        && end <= start
    {
        violations.add(format_args!("{path}.sale_end_time"), format!("is {end}, not after sale_start_time, {start}"));
    }
}

fn offer_key(violations: &mut Violations, field: impl Display, sent: Option<&proto::OfferKey>) -> OfferKey {
    let unset = proto::OfferKey::default();
    let key = offer_key_fields(violations, &field, sent.unwrap_or(&unset));
    if sent.is_none_or(|sent| *sent == unset) {
        violations.add(field, "is empty; set place_id, region_code, customer_group or currency_code");
    }
    key
}

/// Converts the fields of a key, of which each may be empty.
pub(super) fn offer_key_fields(violations: &mut Violations, path: impl Display, sent: &proto::OfferKey) -> OfferKey {
    for (name, text) in [("place_id", &sent.place_id), ("customer_group", &sent.customer_group)] {
        if !text.is_empty() {
            // An id of a place has the form of that of an item.
            violations.keep(format_args!("{path}.{name}"), ItemId::parse(text));
        }
    }
    OfferKey {
        place_id: sent.place_id.as_str().into(),
        region_code: region(violations, format_args!("{path}.region_code"), &sent.region_code).into(),
        customer_group: sent.customer_group.as_str().into(),
        currency: currency(violations, format_args!("{path}.currency_code"), &sent.currency_code).into(),
    }
}

pub(crate) fn price(violations: &mut Violations, field: impl Display, micros: Option<i64>) -> Option<PriceMicros> {
    let micros = micros?;
    let price = PriceMicros::new(micros);
    if price.is_none() {
        violations.add(field, format!("is {micros}; it must be within 0 and {}", PriceMicros::MAX));
    }
    price
}

fn attributes(
    violations: &mut Violations,
    field: impl Display,
    sent: &std::collections::HashMap<String, proto::AttributeValue>,
) -> BTreeMap<String, AttributeValue> {
    use proto::attribute_value::Kind;
    violations.count(&field, sent.len(), limits::ATTRIBUTES);
    let mut attributes = BTreeMap::new();
    for (name, value) in sent.iter().take(limits::ATTRIBUTES) {
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if !(1..=64).contains(&name.len()) || !name.chars().all(is_name) {
            violations.add(
                format_args!("{field}[{}]", super::shortened(name)),
                "is not a valid name; use 1 to 64 of A-Z a-z 0-9 _",
            );
        }
        let path = format!("{field}[{}]", super::shortened(name));
        let value = match &value.kind {
            None => {
                violations.add(path, "has no value; set text, texts, number, flag, time or geo_point");
                continue;
            }
            Some(Kind::Text(text)) => {
                violations.characters(&path, text, limits::TEXT_CHARS);
                AttributeValue::Text(text.clone())
            }
            Some(Kind::Texts(list)) => {
                if list.texts.is_empty() {
                    violations.add(&path, "has no text; set 1 to 50, or leave the attribute out");
                }
                violations.count(&path, list.texts.len(), limits::ATTRIBUTE_TEXTS);
                for (index, text) in list.texts.iter().take(limits::ATTRIBUTE_TEXTS).enumerate() {
                    violations.characters(format_args!("{path}.texts[{index}]"), text, limits::TEXT_CHARS);
                }
                AttributeValue::Texts(list.texts.clone())
            }
            Some(Kind::Number(number)) => {
                if !number.is_finite() {
                    violations.add(path, format!("is {number}; it must be finite"));
                }
                AttributeValue::Number(*number)
            }
            Some(Kind::Flag(flag)) => AttributeValue::Flag(*flag),
            Some(Kind::Time(time)) => match item_time(violations, &path, Some(time)) {
                Some(time) => AttributeValue::time(time),
                None => continue,
            },
            Some(Kind::GeoPoint(proto::GeoPoint { latitude, longitude })) => {
                let Some(point) = GeoPoint::new(*latitude, *longitude) else {
                    let range = "the latitude must be within -90 and 90, the longitude within -180 and 180";
                    violations.add(path, format!("is {latitude}, {longitude}; {range}"));
                    continue;
                };
                AttributeValue::GeoPoint(point)
            }
        };
        attributes.insert(name.clone(), value);
    }
    attributes
}

/// Converts the kinds of an attribute's values.
pub(crate) fn attribute_kinds(
    (name, kinds): (String, Vec<AttributeKindCount>),
    declared: &BTreeMap<String, Arc<CompiledAttribute>>,
) -> proto::AttributeKinds {
    let kind = |AttributeKindCount { kind, item_count, example }: AttributeKindCount| proto::AttributeKindCount {
        kind: match kind {
            AttributeKind::Text => proto::AttributeKind::Text,
            AttributeKind::Number => proto::AttributeKind::Number,
            AttributeKind::Flag => proto::AttributeKind::Flag,
            AttributeKind::Time => proto::AttributeKind::Time,
            AttributeKind::GeoPoint => proto::AttributeKind::GeoPoint,
        }
        .into(),
        item_count: item_count as i64,
        example_item_id: example.to_string(),
    };
    let declaration = declared.get(&name).map(|attribute| attribute_declaration_to_proto(attribute));
    proto::AttributeKinds { name, kinds: kinds.into_iter().map(kind).collect(), declaration }
}

/// Adds a violation for each written attribute whose value is not of the declared kind, and returns false then. `path` is
/// that of the item.
pub(crate) fn check_attribute_kinds(
    violations: &mut Violations,
    path: impl Display,
    write: &ItemWrite,
    declared: &BTreeMap<String, Arc<CompiledAttribute>>,
) -> bool {
    let before = violations.found.len();
    let is_written = |name: &str| match &write.fields {
        WrittenFields::All => true,
        WrittenFields::Some(fields) => {
            fields.contains(&ItemField::Attributes) || fields.contains(&ItemField::Attribute(name.to_owned()))
        }
    };
    for (name, value) in &write.item.attributes {
        let Some(known) = declared.get(name).filter(|known| known.kind != value.kind() && is_written(name)) else {
            continue;
        };
        let shown = match value {
            AttributeValue::Flag(flag) => flag.to_string(),
            AttributeValue::Number(number) => number.to_string(),
            AttributeValue::Text(text) => format!("`{}`", super::shortened(text)),
            AttributeValue::Texts(texts) => format!("`{}`", super::shortened(&texts.join("`, `"))),
            AttributeValue::Time(time) => super::timestamp(UnixMillis(time.time_ms)).to_string(),
            AttributeValue::GeoPoint(GeoPoint { latitude, longitude }) => format!("{latitude}, {longitude}"),
        };
        let (found, wanted) = (value.kind().name(), known.kind.name());
        let problem = format!("is {shown}, of the kind {found}; the attribute `{name}` is declared as {wanted}");
        violations.add(format_args!("{path}.attributes[{name}]"), problem);
    }
    violations.found.len() == before
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_violations_of_an_item_are_returned() {
        let number = proto::AttributeValue { kind: Some(proto::attribute_value::Kind::Number(f64::NAN)) };
        let sent = proto::Item {
            price_micros: Some(-1),
            stock_quantity: Some(i64::from(limits::STOCK) + 1),
            currency_code: "pounds".into(),
            rating: Some(f64::NAN),
            rating_count: Some(-1),
            url: "javascript:alert(1)".into(),
            image_url: "https://shop.test/a b".into(),
            attributes: [("weight".to_owned(), number)].into(),
            create_time: Some(prost_types::Timestamp { seconds: i64::MIN, nanos: 0 }),
            group_id: "a\nb".into(),
            availability: 9,
            sale_price_micros: Some(-1),
            sale_start_time: Some(prost_types::Timestamp { seconds: 10, nanos: 0 }),
            sale_end_time: Some(prost_types::Timestamp { seconds: 10, nanos: 0 }),
            cost_micros: Some(i64::MAX),
            categories: vec![" > ".into(), format!("a > {}", "b".repeat(201)), "a>".repeat(11)],
            ..Default::default()
        };
        let mut violations = Violations::default();
        assert!(item(&mut violations, "items[0]", &sent, true).is_none());
        assert_eq!(violations.found.len(), 19, "{violations:?}");
    }

    #[test]
    fn a_negative_stock_is_sold_out() {
        let sent =
            proto::Item { item_id: "a".into(), title: "A".into(), stock_quantity: Some(-3), ..Default::default() };
        let mut violations = Violations::default();
        let item = item(&mut violations, "items[0]", &sent, true).unwrap();
        assert_eq!((item.stock_quantity, item.is_in_stock()), (Some(0), false));
    }
}
