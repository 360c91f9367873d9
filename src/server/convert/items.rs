//! Validates and converts items.
use super::currency;
use crate::server::{proto, violations::Violations};
use lodestone_catalog::{AttributeValue, Item, limits};
use lodestone_core::{
    ids::ItemId,
    units::{PriceMicros, UnixMillis},
};
use std::{
    collections::BTreeMap,
    fmt::{self, Display},
    ops::RangeInclusive,
};

/// The range of `create_time`: the years 1 to 9999, as `google.protobuf.Timestamp` defines it, in seconds since 1970.
const CREATE_TIME_S: RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;

/// Converts an item. Returns None if there are violations. `created_at` is none if the request does not set it.
pub(crate) fn item(violations: &mut Violations, path: impl Display, item: &proto::Item) -> Option<Item> {
    let before = violations.found.len();
    let path = &path;
    let field = |name: &'static str| fmt::from_fn(move |f| write!(f, "{path}.{name}"));
    let id = violations.keep(field("item_id"), ItemId::parse(&item.item_id));
    if item.title.trim().is_empty() {
        violations.add(field("title"), "is empty; it must have 1 to 1,000 characters");
    }
    violations.characters(field("title"), &item.title, limits::TITLE_CHARS);
    violations.characters(field("description"), &item.description, limits::DESCRIPTION_CHARS);
    categories(violations, field("categories"), &item.categories);
    violations.characters(field("brand"), &item.brand, limits::NAME_CHARS);
    let price = price(violations, field("price_micros"), item.price_micros);
    let currency = currency(violations, field("currency_code"), &item.currency_code);
    // A shop that sells more than it has counts below 0.
    let stock = item.stock_quantity.map(|stock| stock.max(0));
    let stock_max = limits::STOCK;
    if let Some(stock) = stock.filter(|stock| *stock > stock_max.into()) {
        violations.add(field("stock_quantity"), format!("is {stock}; it must be at most {stock_max}"));
    }
    violations.count(field("tags"), item.tags.len(), limits::TAGS);
    for (index, tag) in item.tags.iter().take(limits::TAGS).enumerate() {
        violations.characters(format_args!("{path}.tags[{index}]"), tag, limits::TAG_CHARS);
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
        stock_quantity: stock.map(|stock| stock as u32),
        tags: item.tags.clone(),
        attributes,
        created_at: item.create_time.as_ref().map(|time| UnixMillis(time.seconds.saturating_mul(1000))),
        ..Item::titled(id?, "")
    })
}

pub(crate) fn categories(violations: &mut Violations, field: impl Display, categories: &[String]) {
    violations.count(&field, categories.len(), limits::CATEGORY_LEVELS);
    for (index, category) in categories.iter().take(limits::CATEGORY_LEVELS).enumerate() {
        violations.characters(format_args!("{field}[{index}]"), category, limits::NAME_CHARS);
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
                violations.add(path, "has no value; set text, number or flag");
                continue;
            }
            Some(Kind::Text(text)) => {
                violations.characters(&path, text, limits::TEXT_CHARS);
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
            stock_quantity: Some(i64::from(limits::STOCK) + 1),
            currency_code: "pounds".into(),
            attributes: [("weight".to_owned(), number)].into(),
            create_time: Some(prost_types::Timestamp { seconds: i64::MIN, nanos: 0 }),
            ..Default::default()
        };
        let mut violations = Violations::default();
        assert!(item(&mut violations, "items[0]", &sent).is_none());
        assert_eq!(violations.found.len(), 7, "{violations:?}");
    }

    #[test]
    fn a_negative_stock_is_sold_out() {
        let sent =
            proto::Item { item_id: "a".into(), title: "A".into(), stock_quantity: Some(-3), ..Default::default() };
        let mut violations = Violations::default();
        let item = item(&mut violations, "items[0]", &sent).unwrap();
        assert_eq!((item.stock_quantity, item.is_in_stock()), (Some(0), false));
    }
}
