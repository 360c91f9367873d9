//! Validates and converts items.
use super::{TEXT_CHARS_MAX, currency};
use crate::server::{proto, violations::Violations};
use lodestone_catalog::{AttributeValue, Item};
use lodestone_core::{
    ids::ItemId,
    units::{PriceMicros, UnixMillis},
};
use std::{
    collections::BTreeMap,
    fmt::{self, Display},
    ops::RangeInclusive,
};

const DESCRIPTION_CHARS_MAX: usize = 20_000;
const CATEGORY_LEVELS_MAX: usize = 10;
const NAME_CHARS_MAX: usize = 200;
const TAGS_MAX: usize = 50;
const TAG_CHARS_MAX: usize = 100;
const ATTRIBUTES_MAX: usize = 100;
const STOCK_MAX: i64 = 1_000_000_000;

/// The range of `create_time`: the years 1 to 9999, as `google.protobuf.Timestamp` defines it, in seconds since 1970.
const CREATE_TIME_S: RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;

/// Converts an item. Returns None if there are violations.
pub(crate) fn item(violations: &mut Violations, path: impl Display, item: &proto::Item) -> Option<Item> {
    let before = violations.found.len();
    let path = &path;
    let field = |name: &'static str| fmt::from_fn(move |f| write!(f, "{path}.{name}"));
    let id = violations.keep(field("item_id"), ItemId::parse(&item.item_id));
    if item.title.trim().is_empty() {
        violations.add(field("title"), "is empty; it must have 1 to 1,000 characters");
    }
    violations.characters(field("title"), &item.title, TEXT_CHARS_MAX);
    violations.characters(field("description"), &item.description, DESCRIPTION_CHARS_MAX);
    categories(violations, field("categories"), &item.categories);
    violations.characters(field("brand"), &item.brand, NAME_CHARS_MAX);
    let price = price(violations, field("price_micros"), item.price_micros);
    let currency = currency(violations, field("currency_code"), &item.currency_code);
    if let Some(stock) = item.stock_quantity.filter(|stock| !(0..=STOCK_MAX).contains(stock)) {
        violations.add(field("stock_quantity"), format!("is {stock}; it must be within 0 and {STOCK_MAX}"));
    }
    violations.count(field("tags"), item.tags.len(), TAGS_MAX);
    for (index, tag) in item.tags.iter().take(TAGS_MAX).enumerate() {
        violations.characters(format_args!("{path}.tags[{index}]"), tag, TAG_CHARS_MAX);
    }
    let attributes = attributes(violations, field("attributes"), &item.attributes);
    if let Some(time) = item.create_time.as_ref().filter(|time| !CREATE_TIME_S.contains(&time.seconds)) {
        let description = format!("is {} s since 1970; it must be within the years 1 and 9999", time.seconds);
        violations.add(field("create_time"), description);
    }
    if violations.found.len() > before {
        return None;
    }
    Some(Item {
        title: item.title.clone(),
        description: item.description.clone(),
        categories: item.categories.clone(),
        brand: item.brand.clone(),
        price,
        currency,
        stock_quantity: item.stock_quantity.map(|stock| stock as u32),
        tags: item.tags.clone(),
        attributes,
        created_at: item.create_time.as_ref().map(|time| UnixMillis(time.seconds.saturating_mul(1000))),
        ..Item::titled(id?, "")
    })
}

pub(crate) fn categories(violations: &mut Violations, field: impl Display, categories: &[String]) {
    violations.count(&field, categories.len(), CATEGORY_LEVELS_MAX);
    for (index, category) in categories.iter().take(CATEGORY_LEVELS_MAX).enumerate() {
        violations.characters(format_args!("{field}[{index}]"), category, NAME_CHARS_MAX);
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
    violations.count(&field, sent.len(), ATTRIBUTES_MAX);
    let mut attributes = BTreeMap::new();
    for (name, value) in sent.iter().take(ATTRIBUTES_MAX) {
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
                violations.add(path, "has no value; set text, number or flag");
                continue;
            }
            Some(Kind::Text(text)) => {
                violations.characters(&path, text, TEXT_CHARS_MAX);
                AttributeValue::Text(text.clone())
            }
            Some(Kind::Number(number)) => {
                if !number.is_finite() {
                    violations.add(path, format!("is {number}; it must be finite"));
                }
                AttributeValue::Number(*number)
            }
            Some(Kind::Flag(flag)) => AttributeValue::Flag(*flag),
        };
        attributes.insert(name.clone(), value);
    }
    attributes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_violations_of_an_item_are_returned() {
        let number = proto::AttributeValue { kind: Some(proto::attribute_value::Kind::Number(f64::NAN)) };
        let sent = proto::Item {
            price_micros: Some(-1),
            stock_quantity: Some(-1),
            currency_code: "pounds".into(),
            attributes: [("weight".to_owned(), number)].into(),
            create_time: Some(prost_types::Timestamp { seconds: i64::MIN, nanos: 0 }),
            ..Default::default()
        };
        let mut violations = Violations::default();
        assert!(item(&mut violations, "items[0]", &sent).is_none());
        assert_eq!(violations.found.len(), 7, "{violations:?}");
    }
}
