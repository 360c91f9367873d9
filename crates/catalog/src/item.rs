//! An item as the shop describes it.
use crate::FieldSet;
use lodestone_core::{
    ids::ItemId,
    units::{PriceMicros, UnixMillis},
};
use std::collections::BTreeMap;

/// A product. The server's conversion of requests and the import check its limits.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    pub id: ItemId,
    /// The product of which the item is a variant: equal in all variants, in the form of an [`ItemId`]. Empty: the
    /// item is the only one.
    pub group_id: String,
    /// 1 to 1,000 characters.
    pub title: String,
    /// At most 20,000 characters.
    pub description: String,
    /// The path of categories from the most general one; at most 10 levels.
    pub categories: Vec<String>,
    pub brand: String,
    /// What a user pays.
    pub price: Option<PriceMicros>,
    /// The price before a reduction.
    pub original_price: Option<PriceMicros>,
    /// An ISO 4217 code; empty for the shop's currency.
    pub currency: String,
    /// `None` if the shop does not track stock; `Some(0)` if the item is sold out.
    pub stock_quantity: Option<u32>,
    pub tags: Vec<String>,
    /// The mean of the users' ratings, 0 to [`limits::RATING`].
    pub rating: Option<f64>,
    pub rating_count: Option<u32>,
    /// The page of the item: empty, or see [`is_url`].
    pub url: String,
    /// The same for its image.
    pub image_url: String,
    pub attributes: BTreeMap<String, AttributeValue>,
    pub created_at: Option<UnixMillis>,
    /// The time at which a file of the shop had these values. Values that the API wrote earlier do not change them.
    /// `None` for an item that the API wrote, or that only events name: every write changes it.
    pub values_at: Option<UnixMillis>,
    /// The fields that this file does not have. Values that the API wrote apply to them, whatever their time.
    pub absent_fields: FieldSet,
}

/// The greatest sizes of an item's fields.
pub mod limits {
    pub const TITLE_CHARS: usize = 1000;
    pub const DESCRIPTION_CHARS: usize = 20_000;
    pub const CATEGORY_LEVELS: usize = 10;
    /// Characters of a brand or a category.
    pub const NAME_CHARS: usize = 200;
    pub const TAGS: usize = 50;
    pub const TAG_CHARS: usize = 100;
    pub const ATTRIBUTES: usize = 100;
    /// Texts of an attribute with several values.
    pub const ATTRIBUTE_TEXTS: usize = 50;
    /// Characters of an attribute's text.
    pub const TEXT_CHARS: usize = 1000;
    pub const STOCK: u32 = 1_000_000_000;
    pub const RATING: f64 = 5.0;
    pub const RATING_COUNT: u32 = 1_000_000_000;
    pub const URL_CHARS: usize = 2000;
}

/// Discounts are rounded to this part.
const DISCOUNT_STEPS: f64 = 1e6;

/// Returns true for an http or https URL with a host, or a path, without white space, so that a page that shows it as a
/// link cannot run a script, and a path leads to no other host.
pub fn is_url(text: &str) -> bool {
    let host = ["https://", "http://"].iter().find_map(|scheme| text.strip_prefix(scheme));
    let is_located = match host {
        Some(host) => host.starts_with(|c: char| c.is_alphanumeric() || c == '['),
        None => text.starts_with('/') && !text.starts_with("//"),
    };
    is_located && !text.chars().any(|c| c.is_whitespace() || c.is_control() || c == '\\')
}

#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(untagged)]
pub enum AttributeValue {
    Flag(bool),
    /// Finite.
    Number(f64),
    Text(String),
    /// Several values, 1 to [`limits::ATTRIBUTE_TEXTS`], such as the materials of a jacket.
    Texts(Vec<String>),
}

impl Item {
    /// Returns an item with a title whose other fields are empty.
    pub fn titled(id: ItemId, title: &str) -> Self {
        Self {
            id,
            group_id: String::new(),
            title: title.to_owned(),
            description: String::new(),
            categories: Vec::new(),
            brand: String::new(),
            price: None,
            original_price: None,
            currency: String::new(),
            stock_quantity: None,
            tags: Vec::new(),
            rating: None,
            rating_count: None,
            url: String::new(),
            image_url: String::new(),
            attributes: BTreeMap::new(),
            created_at: None,
            values_at: None,
            absent_fields: FieldSet::default(),
        }
    }

    pub fn is_in_stock(&self) -> bool {
        self.stock_quantity != Some(0)
    }

    /// Returns the path of categories up to each level, such as `Home` and `Home > Kitchen`.
    pub fn category_paths(&self) -> impl Iterator<Item = String> + '_ {
        (1..=self.categories.len()).map(|levels| self.categories[..levels].join(" > "))
    }

    /// Returns by which share of the original price the price is reduced, above 0 and at most 1; none without a
    /// reduction.
    pub fn discount(&self) -> Option<f64> {
        let (price, original) = (self.price?.micros(), self.original_price?.micros());
        let share = (original - price) as f64 / original as f64;
        // Rounded, so that a fifth off is 0.2 as written in a filter.
        (original > price).then(|| (share * DISCOUNT_STEPS).round() / DISCOUNT_STEPS)
    }

    /// Returns the input of a sentence encoder: the brand unless the title contains it, the title and the description.
    pub fn sentence(&self) -> String {
        let brand = if self.title.contains(&self.brand) { "" } else { &self.brand };
        [brand, &self.title, &self.description].join(" ").trim().to_owned()
    }

    /// Returns the text of title, brand, categories and tags, for lexical retrieval.
    pub fn search_text(&self) -> String {
        let mut text = self.title.clone();
        for part in std::iter::once(&self.brand).chain(&self.categories).chain(&self.tags) {
            if !part.is_empty() {
                text.push(' ');
                text.push_str(part);
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_discount_is_the_number_that_a_filter_has() {
        for percent in 1..100 {
            let item = Item {
                price: PriceMicros::new((100 - percent) * 139_300),
                original_price: PriceMicros::new(13_930_000),
                ..Item::titled(ItemId::parse("a").unwrap(), "a")
            };
            assert_eq!(item.discount(), format!("0.{percent:02}").parse().ok());
        }
    }

    #[test]
    fn a_url_has_a_host_and_a_path_has_none() {
        for good in ["https://shop.test/a?b=c#d", "http://[::1]/", "/a/b.webp", "https://商店.test/杯"] {
            assert!(is_url(good), "{good}");
        }
        for bad in
            ["", "//evil.test/a", "https://", "http:///a", "javascript:alert(1)", "/a b", "/\\evil.test", "a.webp"]
        {
            assert!(!is_url(bad), "{bad}");
        }
    }
}
