//! Values that a catalogue computes when an item is written, so that ranking reads numbers instead of texts.
use super::{AttributeValue, Field, Filter, Item};
use ahash::RandomState;
use lodestone_core::{text::normalize, units::UnixMillis};

/// A value to compute for each item.
#[derive(Debug, Clone, PartialEq)]
pub enum PreparedField {
    /// A number, or a flag as 1 or 0.
    Number(Field),
    /// The values by which items are alike: texts in normal form, each prefix of the path of categories, flags, and
    /// numbers in bands.
    Labels(Field),
    /// 1 if the item matches, otherwise 0.
    Match(Filter),
}

/// The value of a [`PreparedField`] of one item.
#[derive(Debug, Clone, PartialEq)]
pub enum PreparedValue {
    /// None if the item has no number in the field.
    Number(Option<f32>),
    /// Hashes of the labels; empty if the item has none. Only for comparison within one process.
    Labels(Box<[u64]>),
}

/// Bands of numbers for each doubling.
const BANDS_PER_DOUBLING: f64 = 2.0;

impl PreparedField {
    /// Returns true if offers may change the value.
    pub(crate) fn reads_offers(&self) -> bool {
        match self {
            Self::Number(field) | Self::Labels(field) => field.is_of_offers(),
            Self::Match(filter) => filter.has_any(Field::is_of_offers),
        }
    }

    /// Returns the value of an item at a time.
    pub fn of(&self, item: &Item, at: UnixMillis) -> PreparedValue {
        match self {
            Self::Number(field) => PreparedValue::Number(field.number(item, at).map(|number| number as f32)),
            Self::Labels(field) => PreparedValue::Labels(labels(field, item, at)),
            Self::Match(filter) => PreparedValue::Number(Some(f32::from(u8::from(filter.matches(item, at))))),
        }
    }
}

impl PreparedValue {
    /// Returns true if the item has no value in the field.
    pub fn is_missing(&self) -> bool {
        match self {
            Self::Number(number) => number.is_none(),
            Self::Labels(labels) => labels.is_empty(),
        }
    }
}

impl Field {
    /// Returns a numeric value, or a flag as 1 or 0.
    fn number(&self, item: &Item, at: UnixMillis) -> Option<f64> {
        match self {
            Self::InStock => Some(f64::from(u8::from(item.is_in_stock()))),
            Self::Attribute(name) => match item.attributes.get(name)? {
                AttributeValue::Number(number) => Some(*number),
                AttributeValue::Flag(flag) => Some(f64::from(u8::from(*flag))),
                AttributeValue::Text(_) | AttributeValue::Texts(_) => None,
                AttributeValue::Time(_) | AttributeValue::GeoPoint(_) => None,
            },
            Self::CreateTime => None,
            field => field.plain_number(item, at),
        }
    }
}

fn labels(field: &Field, item: &Item, at: UnixMillis) -> Box<[u64]> {
    let texts = |texts: &[String]| texts.iter().filter_map(|text| text_label(text)).collect();
    match field {
        Field::Category | Field::CategoryPath => {
            let mut path = String::new();
            let levels = item.primary_category().map(|level| {
                path.push_str(&normalize(level));
                path.push('\n');
                hash(&path)
            });
            levels.collect()
        }
        Field::Tags => texts(&item.tags),
        Field::Brand => text_label(&item.brand).into_iter().collect(),
        Field::Currency => text_label(&item.currency).into_iter().collect(),
        Field::Attribute(name) => match item.attributes.get(name) {
            Some(AttributeValue::Text(text)) => text_label(text).into_iter().collect(),
            Some(AttributeValue::Texts(values)) => texts(values),
            Some(AttributeValue::Flag(flag)) => Box::new([hash(flag)]),
            Some(AttributeValue::Number(number)) => Box::new([hash(&band(*number))]),
            Some(AttributeValue::Time(_) | AttributeValue::GeoPoint(_)) | None => Box::default(),
        },
        Field::InStock => Box::new([hash(&item.is_in_stock())]),
        Field::Availability => text_label(item.availability().name()).into_iter().collect(),
        field => field.number(item, at).map(|number| hash(&band(number))).into_iter().collect(),
    }
}

/// Returns the label of a text; none for a text whose normal form is empty.
fn text_label(text: &str) -> Option<u64> {
    let normal = normalize(text);
    (!normal.is_empty()).then(|| hash(&normal))
}

/// Returns the sign and the band of a number, two for each doubling.
fn band(number: f64) -> (i8, i32) {
    match number.abs() {
        0.0 => (0, 0),
        size => (number.signum() as i8, (size.log2() * BANDS_PER_DOUBLING).floor() as i32),
    }
}

/// Returns a hash that is equal for equal labels within one process.
pub(crate) fn hash(label: &(impl std::hash::Hash + ?Sized)) -> u64 {
    RandomState::with_seeds(1, 2, 3, 4).hash_one(label)
}

#[cfg(test)]
mod tests {
    use super::*;
    use lodestone_core::{ids::ItemId, units::PriceMicros};

    fn item(categories: &[&str], price: i64) -> Item {
        let mut item = Item::titled(ItemId::parse("a").unwrap(), "a");
        item.categories = vec![categories.join(" > ")];
        item.price = PriceMicros::new(price * 1_000_000);
        item
    }

    fn labels_of(field: &str, item: &Item) -> Vec<u64> {
        labels(&Field::parse(field).unwrap(), item, UnixMillis(0)).to_vec()
    }

    #[test]
    fn categories_are_alike_up_to_the_level_at_which_their_paths_part() {
        let cheese = labels_of("category", &item(&["Food", "Dairy", "Cheese"], 1));
        let milk = labels_of("category", &item(&["food", "DAIRY", "Milk"], 1));
        let pet = labels_of("category", &item(&["Pets", "Dairy"], 1));
        assert_eq!(cheese[..2], milk[..2]);
        assert!(cheese[2] != milk[2] && !cheese.contains(&pet[1]), "the same name below another category");
    }

    #[test]
    fn numbers_are_alike_in_bands_of_half_a_doubling() {
        let price = |price: i64| labels_of("price", &item(&[], price));
        assert!(price(8) == price(11) && price(8) != price(12) && price(8) != price(7));
        assert!(price(0).len() == 1 && price(0) != price(1));
        assert!(labels_of("brand", &item(&[], 1)).is_empty(), "an empty brand is no brand");
    }

    #[test]
    fn numbers_and_flags_of_attributes_are_numbers() {
        let mut item = item(&[], 3);
        item.attributes.insert("rating".to_owned(), AttributeValue::Number(4.5));
        item.attributes.insert("vegan".to_owned(), AttributeValue::Flag(true));
        item.attributes.insert("size".to_owned(), AttributeValue::Text("M".to_owned()));
        let number = |field: &str| match PreparedField::Number(Field::parse(field).unwrap()).of(&item, UnixMillis(0)) {
            PreparedValue::Number(number) => number,
            PreparedValue::Labels(_) => None,
        };
        let fields = ["attributes.rating", "attributes.vegan", "attributes.size", "attributes.none", "price"];
        assert_eq!(fields.map(number), [Some(4.5), Some(1.0), None, None, Some(3.0)]);
        let dear = PreparedField::Match(Filter::parse("price > 2").unwrap());
        assert_eq!(dear.of(&item, UnixMillis(0)), PreparedValue::Number(Some(1.0)));
    }
}
