//! An item as the shop describes it.
use crate::{FieldSet, Offer};
use lodestone_core::{
    ids::ItemId,
    text::plain_name,
    units::{PriceMicros, UnixMillis},
};
use serde::{Deserialize, Deserializer, de};
use std::{collections::BTreeMap, fmt, sync::Arc};

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
    /// Paths of categories such as `Home > Kitchen > Mugs`, each in the form of [`category_path`]; the first is the
    /// primary one.
    pub categories: Vec<String>,
    pub brand: String,
    /// What a user pays outside the interval of the sale price. [`Item::price_at`] has the price of a time.
    pub price: Option<PriceMicros>,
    /// The price before a reduction, outside that interval.
    pub original_price: Option<PriceMicros>,
    /// What a user pays from `sale_start`, inclusive, to `sale_end`, exclusive.
    pub sale_price: Option<PriceMicros>,
    /// None: since ever.
    pub sale_start: Option<UnixMillis>,
    /// None: forever.
    pub sale_end: Option<UnixMillis>,
    /// What the shop pays. Users do not see it.
    pub cost: Option<PriceMicros>,
    /// An ISO 4217 code; empty for the shop's currency.
    pub currency: String,
    /// `None` if the shop does not track stock.
    pub stock_quantity: Option<u32>,
    /// As the shop states. [`Item::availability`] combines it with the stock.
    pub stated_availability: Option<Availability>,
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
    /// Values for some viewers instead of those above, ascending by key, each key once.
    pub offers: Vec<Offer>,
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
    pub const CATEGORY_PATHS: usize = 10;
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
    /// Offers of an item.
    pub const OFFERS: usize = 200;
    /// Variants of a group.
    pub const VARIANTS: usize = 10_000;
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

/// Separates the levels of a path of categories.
pub(crate) const PATH_SEPARATOR: &str = " > ";

/// Returns the levels of a path of categories such as `Home > Kitchen`.
pub fn category_levels(path: &str) -> impl Iterator<Item = &str> {
    path.split('>').map(str::trim).filter(|level| !level.is_empty())
}

/// Returns the path and the paths above it, the shortest first, such as `Home` and `Home > Kitchen`.
pub(crate) fn upper_paths(path: &str) -> impl Iterator<Item = &str> {
    let ends = path.match_indices(PATH_SEPARATOR).map(|(at, _)| at).chain([path.len()]);
    ends.map(move |end| &path[..end])
}

/// Returns a path of categories with one space on each side of every `>`, without empty levels.
pub fn category_path(path: &str) -> String {
    category_levels(path).collect::<Vec<_>>().join(PATH_SEPARATOR)
}

/// Whether and how an item can be bought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Availability {
    InStock,
    /// Can be bought without stock.
    Backorder,
    /// Can be bought before it is released.
    Preorder,
    OutOfStock,
    /// Sold out forever.
    Discontinued,
}

impl Availability {
    pub const ALL: [Self; 5] = [Self::InStock, Self::Backorder, Self::Preorder, Self::OutOfStock, Self::Discontinued];

    /// Returns what a stated availability and a stock mean together. A stock of 0 is sold out unless the item can be
    /// ordered in advance, and what can be ordered without stock is in stock while there is some.
    pub(crate) fn of(stated: Option<Self>, stock_quantity: Option<u32>) -> Self {
        match (stated, stock_quantity) {
            (Some(stated @ (Self::Preorder | Self::OutOfStock | Self::Discontinued)), _) => stated,
            (Some(Self::Backorder), None | Some(0)) => Self::Backorder,
            (None | Some(Self::InStock), Some(0)) => Self::OutOfStock,
            (None | Some(Self::InStock | Self::Backorder), _) => Self::InStock,
        }
    }

    /// Returns true if an item can be bought.
    pub fn is_in_stock(self) -> bool {
        !matches!(self, Self::OutOfStock | Self::Discontinued)
    }

    /// Returns the name in filters and files, such as `in_stock`.
    pub fn name(self) -> &'static str {
        match self {
            Self::InStock => "in_stock",
            Self::Backorder => "backorder",
            Self::Preorder => "preorder",
            Self::OutOfStock => "out_of_stock",
            Self::Discontinued => "discontinued",
        }
    }

    /// Parses a name, regardless of letter case, spaces and punctuation.
    pub fn parse(name: &str) -> Option<Self> {
        let exact = Self::ALL.into_iter().find(|availability| availability.name() == name);
        exact.or_else(|| {
            let name = plain_name(name);
            Self::ALL.into_iter().find(|availability| plain_name(availability.name()) == name)
        })
    }
}

/// Returns what remains of a price above a cost in the same currency, in its unit.
pub(crate) fn margin(price: PriceMicros, cost: PriceMicros) -> f64 {
    (price.micros() - cost.micros()) as f64 / 1e6
}

/// What a user pays at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pricing {
    pub price: Option<PriceMicros>,
    /// The price before a reduction.
    pub original_price: Option<PriceMicros>,
}

impl Pricing {
    /// Returns by which share of the original price the price is reduced, above 0 and at most 1; none without a
    /// reduction.
    pub fn discount(&self) -> Option<f64> {
        let (price, original) = (self.price?.micros(), self.original_price?.micros());
        let share = (original - price) as f64 / original as f64;
        // Rounded, so that a fifth off is 0.2 as written in a filter.
        (original > price).then(|| (share * DISCOUNT_STEPS).round() / DISCOUNT_STEPS)
    }
}

/// A price that a user pays for some time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Sale {
    pub(crate) price: Option<PriceMicros>,
    /// Inclusive. None: since ever.
    pub(crate) start: Option<UnixMillis>,
    /// Exclusive. None: forever.
    pub(crate) end: Option<UnixMillis>,
}

impl Sale {
    /// Returns the sale price if it applies at a time. One that is not below the regular price reduces nothing.
    fn price_at(&self, at: UnixMillis, regular: Option<PriceMicros>) -> Option<PriceMicros> {
        let has_begun = self.start.is_none_or(|start| start <= at);
        let is_over = self.end.is_some_and(|end| end <= at);
        self.price.filter(|sale| has_begun && !is_over && regular.is_none_or(|regular| *sale < regular))
    }

    /// Returns what a user pays at a time who otherwise pays `regular`.
    pub(crate) fn pricing_at(&self, at: UnixMillis, regular: Pricing) -> Pricing {
        match self.price_at(at, regular.price) {
            Some(sale) => Pricing { price: Some(sale), original_price: regular.price },
            None => regular,
        }
    }

    /// Returns the first time after `at` at which the sale begins or ends; none if it never does.
    pub(crate) fn next_change(&self, at: UnixMillis) -> Option<UnixMillis> {
        self.price?;
        [self.start, self.end].into_iter().flatten().filter(|change| *change > at).min()
    }
}

#[derive(Debug, Clone, PartialEq, serde::Serialize)]
#[serde(untagged)]
pub enum AttributeValue {
    Flag(bool),
    /// Finite.
    Number(f64),
    Text(String),
    /// Several values, 1 to [`limits::ATTRIBUTE_TEXTS`], such as the materials of a jacket.
    Texts(Vec<String>),
    Time(AttributeTime),
    GeoPoint(GeoPoint),
}

/// By the kind of the value. What serde derives tries each variant in turn, and formats an error for each that does not
/// match, which takes most of the time of reading items.
impl<'de> Deserialize<'de> for AttributeValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AttributeValueVisitor)
    }
}

struct AttributeValueVisitor;

impl<'de> de::Visitor<'de> for AttributeValueVisitor {
    type Value = AttributeValue;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a flag, a number, a text, a list of texts, a time or a location")
    }

    fn visit_bool<E: de::Error>(self, flag: bool) -> Result<AttributeValue, E> {
        Ok(AttributeValue::Flag(flag))
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<AttributeValue, E> {
        Ok(AttributeValue::Number(number))
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<AttributeValue, E> {
        Ok(AttributeValue::Number(number as f64))
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<AttributeValue, E> {
        Ok(AttributeValue::Number(number as f64))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<AttributeValue, E> {
        Ok(AttributeValue::Text(text.to_owned()))
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, texts: A) -> Result<AttributeValue, A::Error> {
        Deserialize::deserialize(de::value::SeqAccessDeserializer::new(texts)).map(AttributeValue::Texts)
    }

    fn visit_map<A: de::MapAccess<'de>>(self, fields: A) -> Result<AttributeValue, A::Error> {
        /// The fields of [`AttributeTime`] and [`GeoPoint`].
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Fields {
            time_ms: Option<i64>,
            latitude: Option<f64>,
            longitude: Option<f64>,
        }
        let Fields { time_ms, latitude, longitude } =
            Deserialize::deserialize(de::value::MapAccessDeserializer::new(fields))?;
        match (time_ms, latitude, longitude) {
            (Some(time_ms), None, None) => Ok(AttributeValue::Time(AttributeTime { time_ms })),
            (None, Some(latitude), Some(longitude)) => Ok(AttributeValue::GeoPoint(GeoPoint { latitude, longitude })),
            _ => Err(de::Error::custom("an attribute has either time_ms, or latitude and longitude")),
        }
    }
}

impl AttributeValue {
    pub fn time(at: UnixMillis) -> Self {
        Self::Time(AttributeTime { time_ms: at.0 })
    }

    pub fn kind(&self) -> AttributeKind {
        match self {
            Self::Flag(_) => AttributeKind::Flag,
            Self::Number(_) => AttributeKind::Number,
            Self::Text(_) | Self::Texts(_) => AttributeKind::Text,
            Self::Time(_) => AttributeKind::Time,
            Self::GeoPoint(_) => AttributeKind::GeoPoint,
        }
    }
}

/// The kind of an attribute's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttributeKind {
    /// One or several texts.
    Text,
    Number,
    Flag,
    Time,
    GeoPoint,
}

impl AttributeKind {
    pub const ALL: [Self; 5] = [Self::Text, Self::Number, Self::Flag, Self::Time, Self::GeoPoint];

    /// Returns the name in files, such as `geo_point`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Number => "number",
            Self::Flag => "flag",
            Self::Time => "time",
            Self::GeoPoint => "geo_point",
        }
    }
}

/// A time in milliseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttributeTime {
    pub time_ms: i64,
}

/// A location on the earth, in degrees.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GeoPoint {
    /// -90 to 90.
    pub latitude: f64,
    /// -180 to 180.
    pub longitude: f64,
}

impl GeoPoint {
    /// The earth's mean radius in metres.
    const RADIUS: f64 = 6_371_008.8;

    /// Returns None for numbers out of their ranges.
    pub fn new(latitude: f64, longitude: f64) -> Option<Self> {
        let is_valid = (-90.0..=90.0).contains(&latitude) && (-180.0..=180.0).contains(&longitude);
        is_valid.then_some(Self { latitude, longitude })
    }

    /// Returns the distance on a sphere in metres (haversine formula), which differs from that on the earth by less than
    /// 0.6 %.
    pub fn distance(self, other: Self) -> f64 {
        let half = |degrees: f64| (degrees.to_radians() / 2.0).sin().powi(2);
        let cosines = self.latitude.to_radians().cos() * other.latitude.to_radians().cos();
        let square = half(self.latitude - other.latitude) + cosines * half(self.longitude - other.longitude);
        2.0 * Self::RADIUS * square.sqrt().min(1.0).asin()
    }
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
            sale_price: None,
            sale_start: None,
            sale_end: None,
            cost: None,
            currency: String::new(),
            stock_quantity: None,
            stated_availability: None,
            tags: Vec::new(),
            rating: None,
            rating_count: None,
            url: String::new(),
            image_url: String::new(),
            attributes: BTreeMap::new(),
            created_at: None,
            offers: Vec::new(),
            values_at: None,
            absent_fields: FieldSet::default(),
        }
    }

    /// Returns what the stated availability and the stock mean together.
    pub fn availability(&self) -> Availability {
        Availability::of(self.stated_availability, self.stock_quantity)
    }

    /// Returns true if the item can be bought.
    pub fn is_in_stock(&self) -> bool {
        self.availability().is_in_stock()
    }

    fn sale(&self) -> Sale {
        Sale { price: self.sale_price, start: self.sale_start, end: self.sale_end }
    }

    /// Returns the sale price if it applies at a time.
    fn sale_at(&self, at: UnixMillis) -> Option<PriceMicros> {
        self.sale().price_at(at, self.price)
    }

    /// Returns what a user pays at a time. Everything that reads a price takes it from here.
    pub fn price_at(&self, at: UnixMillis) -> Pricing {
        self.sale().pricing_at(at, Pricing { price: self.price, original_price: self.original_price })
    }

    /// Returns the first time after `at` at which [`Item::price_at`] may change, of the item itself or as some viewer sees
    /// it; none if it never does.
    pub fn next_price_change(&self, at: UnixMillis) -> Option<UnixMillis> {
        let of_offers = self.offers.iter().filter_map(|offer| offer.sale().next_change(at));
        of_offers.chain(self.sale().next_change(at)).min()
    }

    /// Returns what remains of the price of a time above the cost, in the currency's unit; below 0 for an item that is
    /// sold below its cost.
    pub fn margin_at(&self, at: UnixMillis) -> Option<f64> {
        Some(margin(self.price_at(at).price?, self.cost?))
    }

    /// Returns ln(1 + price) at a time; 0 without a price.
    pub(crate) fn log_price_at(&self, at: UnixMillis) -> f32 {
        self.price_at(at).price.map_or(0.0, |price| (price.units() as f32).ln_1p())
    }

    /// Returns the item as users see it at a time: with the price of the time, with a sale only while it lasts, and
    /// without the cost.
    pub fn shown_at(self: &Arc<Self>, at: UnixMillis) -> Arc<Self> {
        if self.sale_price.is_none() && self.cost.is_none() && self.sale_start.is_none() && self.sale_end.is_none() {
            return self.clone();
        }
        let Pricing { price, original_price } = self.price_at(at);
        let mut shown = Self { price, original_price, cost: None, ..Self::clone(self) };
        if self.sale_at(at).is_none() {
            (shown.sale_price, shown.sale_start, shown.sale_end) = (None, None, None);
        }
        Arc::new(shown)
    }

    /// Returns the levels of the primary path of categories, from the most general one.
    pub fn primary_category(&self) -> impl Iterator<Item = &str> {
        self.categories.first().into_iter().flat_map(|path| category_levels(path))
    }

    /// Returns the distinct names of the levels of all paths of categories, in their order.
    pub fn category_names(&self) -> Vec<&str> {
        let mut names = Vec::new();
        for name in self.categories.iter().flat_map(|path| category_levels(path)) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names
    }

    /// Returns the distinct paths of categories up to each level, such as `Home` and `Home > Kitchen`.
    pub fn category_paths(&self) -> Vec<&str> {
        let mut paths = Vec::new();
        for upper in self.categories.iter().flat_map(|path| upper_paths(path)) {
            if !paths.contains(&upper) {
                paths.push(upper);
            }
        }
        paths
    }

    /// Returns the input of a sentence encoder: the brand unless the title contains it, the title and the description.
    pub fn sentence(&self) -> String {
        let brand = if self.title.contains(&self.brand) { "" } else { &self.brand };
        [brand, &self.title, &self.description].join(" ").trim().to_owned()
    }

    /// Returns the text of title, brand, categories and tags, for lexical retrieval.
    pub fn search_text(&self) -> String {
        let mut text = self.title.clone();
        let tags = self.tags.iter().map(String::as_str);
        for part in std::iter::once(&*self.brand).chain(self.category_names()).chain(tags) {
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

    fn bare() -> Item {
        Item::titled(ItemId::parse("a").unwrap(), "a")
    }

    #[test]
    fn a_discount_is_the_number_that_a_filter_has() {
        for percent in 1..100 {
            let (price, original_price) = (PriceMicros::new((100 - percent) * 139_300), PriceMicros::new(13_930_000));
            assert_eq!(Pricing { price, original_price }.discount(), format!("0.{percent:02}").parse().ok());
        }
    }

    #[test]
    fn a_stated_availability_and_the_stock_mean_one_availability() {
        use Availability::{Backorder, Discontinued, InStock, OutOfStock, Preorder};
        // Without a stock, with a stock of 0, and with a greater one.
        for (stated, expected) in [
            (None, [InStock, OutOfStock, InStock]),
            (Some(InStock), [InStock, OutOfStock, InStock]),
            (Some(Backorder), [Backorder, Backorder, InStock]),
            (Some(Preorder), [Preorder; 3]),
            (Some(OutOfStock), [OutOfStock; 3]),
            (Some(Discontinued), [Discontinued; 3]),
        ] {
            let found = [None, Some(0), Some(7)].map(|stock_quantity| {
                let item = Item { stated_availability: stated, stock_quantity, ..bare() };
                assert_eq!(item.is_in_stock(), !matches!(item.availability(), OutOfStock | Discontinued));
                item.availability()
            });
            assert_eq!(found, expected, "{stated:?}");
        }
        for availability in Availability::ALL {
            assert_eq!(Availability::parse(availability.name()), Some(availability));
        }
    }

    #[test]
    fn a_sale_price_that_is_not_below_the_price_does_not_apply() {
        let units = |units: i64| PriceMicros::new(units * 1_000_000);
        let item = |sale: i64| Item {
            price: units(8),
            sale_price: units(sale),
            ..Item::titled(ItemId::parse("lamp").unwrap(), "Lamp")
        };
        let paid = |sale: i64| item(sale).price_at(UnixMillis(0));
        assert_eq!(paid(9), Pricing { price: units(8), original_price: None });
        assert_eq!(paid(8), Pricing { price: units(8), original_price: None });
        assert_eq!(paid(7), Pricing { price: units(7), original_price: units(8) });
        assert_eq!(Arc::new(item(9)).shown_at(UnixMillis(0)).sale_price, None);
    }

    #[test]
    fn a_sale_price_applies_from_its_start_until_its_end() {
        let units = |price: i64| PriceMicros::new(price * 1_000_000);
        let item = Item {
            price: units(10),
            original_price: units(12),
            sale_price: units(8),
            sale_start: Some(UnixMillis(100)),
            sale_end: Some(UnixMillis(200)),
            cost: units(9),
            ..bare()
        };
        let at = |time: i64| item.price_at(UnixMillis(time));
        let (regular, sale) = (
            Pricing { price: units(10), original_price: units(12) },
            Pricing { price: units(8), original_price: units(10) },
        );
        assert_eq!([99, 100, 199, 200].map(at), [regular, sale, sale, regular]);
        let changes =
            [0, 99, 100, 199, 200].map(|time| item.next_price_change(UnixMillis(time)).map(|change| change.0));
        assert_eq!(changes, [Some(100), Some(100), Some(200), Some(200), None]);
        assert_eq!([0, 100].map(|time| item.margin_at(UnixMillis(time))), [Some(1.0), Some(-1.0)]);
        let shown = [99, 100].map(|time| Arc::new(item.clone()).shown_at(UnixMillis(time)));
        assert_eq!(
            shown.each_ref().map(|shown| (shown.price, shown.sale_price, shown.cost)),
            [(units(10), None, None), (units(8), units(8), None)]
        );
        let open = Item { sale_start: None, sale_end: None, ..item.clone() };
        assert_eq!((open.price_at(UnixMillis(i64::MAX)), open.next_price_change(UnixMillis(0))), (sale, None));
        let empty = Item { sale_start: item.sale_end, sale_end: item.sale_start, ..item.clone() };
        assert_eq!([0, 150, 300].map(|time| empty.price_at(UnixMillis(time))), [regular; 3]);
    }

    #[test]
    fn distances_are_those_on_a_sphere() {
        let point = |latitude, longitude| GeoPoint::new(latitude, longitude).unwrap();
        let (berlin, paris) = (point(52.520_008, 13.404_954), point(48.856_613, 2.352_222));
        assert!((berlin.distance(paris) - 877_500.0).abs() < 1000.0, "{}", berlin.distance(paris));
        assert_eq!((berlin.distance(berlin), berlin.distance(paris)), (0.0, paris.distance(berlin)));
        let half_way = point(0.0, -90.0).distance(point(0.0, 90.0));
        assert!((half_way - GeoPoint::RADIUS * std::f64::consts::PI).abs() < 1.0);
        assert!(point(0.0, 179.9).distance(point(0.0, -179.9)) < 23_000.0, "across the date line");
        for outside in [(90.1, 0.0), (0.0, -180.1), (f64::NAN, 0.0)] {
            assert_eq!(GeoPoint::new(outside.0, outside.1), None);
        }
    }

    #[test]
    fn an_item_is_in_every_level_of_each_path() {
        let item = Item { categories: vec!["Home > Mugs".into(), "Home > Gifts > Mugs".into()], ..bare() };
        assert_eq!(item.category_names(), ["Home", "Mugs", "Gifts"]);
        assert_eq!(item.category_paths(), ["Home", "Home > Mugs", "Home > Gifts", "Home > Gifts > Mugs"]);
        assert_eq!(item.primary_category().collect::<Vec<_>>(), ["Home", "Mugs"]);
        assert_eq!(category_path(" Home>Mugs & cups > "), "Home > Mugs & cups");
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
