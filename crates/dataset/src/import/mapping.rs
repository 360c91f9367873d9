//! The mapping of a shop's columns: a TOML file, or one of those that the binary has. `docs/feeds.md` describes each
//! key.
use super::{ImportError, numbers::Numbers, rows::Encoding, times::Times};
use lodestone_catalog::{AttributeKind, Availability, attribute_name, limits};
use lodestone_core::{
    currency,
    text::plain_name,
    toml_error,
    viewer::{Platform, Region},
};
use lodestone_events::EventKind;
use serde::{Deserialize, Deserializer, de::Error};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// Mappings that the binary has, with their names.
pub const SHIPPED: [(&str, &str); 7] = [
    ("clickstream", include_str!("../../mappings/clickstream.toml")),
    ("ga4", include_str!("../../mappings/ga4.toml")),
    ("google-local-inventory", include_str!("../../mappings/google-local-inventory.toml")),
    ("google-merchant-center", include_str!("../../mappings/google-merchant-center.toml")),
    ("icecat", include_str!("../../mappings/icecat.toml")),
    ("opensearch-ubi", include_str!("../../mappings/opensearch-ubi.toml")),
    ("shopify", include_str!("../../mappings/shopify.toml")),
];

/// The key of a mapping that names the shipped mapping whose keys it changes.
const EXTENDS: &str = "extends";

/// What the files' columns mean, and how rows are cleaned.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mapping {
    /// The file or the name of the mapping, for errors.
    #[serde(skip)]
    pub(super) path: PathBuf,
    /// The columns of a file of events.
    pub events: Option<EventColumns>,
    /// The columns of a file of items.
    pub items: Option<ItemColumns>,
    /// The columns of a file of stock and prices at places.
    pub inventory: Option<InventoryColumns>,
    #[serde(default)]
    pub file: FileFormat,
    #[serde(default)]
    pub constants: Constants,
    /// Event types by their name in the file.
    #[serde(default)]
    pub event_types: BTreeMap<String, MappedType>,
    /// Platforms by their name in the file.
    #[serde(default)]
    pub platforms: BTreeMap<String, MappedPlatform>,
    /// Regions by their name in the file.
    #[serde(default)]
    pub regions: BTreeMap<String, MappedRegion>,
    #[serde(default)]
    pub clean: Clean,
}

/// How the bytes of a file become rows.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FileFormat {
    /// The label of an encoding, such as `windows-1252`. Empty: UTF-8, or UTF-16 with a byte order mark, or the one
    /// that an XML file declares.
    pub encoding: String,
    /// JSON: the member whose array has a row in each entry. XML: the names of the elements that are rows, separated
    /// by `|`. Empty: each JSON object, and the elements `item` and `entry`.
    pub rows: String,
    /// Values that mean that there is none.
    pub empty_values: Vec<String>,
    /// The same for one key of the tables of columns, such as `platform`.
    pub empty_values_of: BTreeMap<String, Vec<String>>,
    /// Only the columns that every row needs must exist; the report names the others that the file does not have.
    pub optional_columns: bool,
}

/// The names that a column may have in a file. Of several, the first one whose value in a row is not empty applies.
/// Without a name, the file does not have the column.
#[derive(Debug, Clone, Default)]
pub struct Names(pub Vec<String>);

impl<'de> Deserialize<'de> for Names {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum OneOrMore {
            One(String),
            More(Vec<String>),
        }
        let names = match OneOrMore::deserialize(deserializer)? {
            OneOrMore::One(name) => vec![name],
            OneOrMore::More(names) => names,
        };
        Ok(Self(names.into_iter().filter(|name| !name.is_empty()).collect()))
    }
}

impl Names {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the names for messages.
    pub(super) fn text(&self) -> String {
        self.0.join("` or `")
    }
}

/// The names of the columns of a file with one row for each item of an event.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EventColumns {
    pub item: Names,
    pub time: Names,
    /// Rows of the same id are one event.
    pub event_id: Names,
    pub order: Names,
    pub user: Names,
    pub visitor: Names,
    pub session: Names,
    pub platform: Names,
    pub region: Names,
    pub locale: Names,
    pub title: Names,
    pub quantity: Names,
    pub price: Names,
    pub currency: Names,
    pub event_type: Names,
    pub query: Names,
    /// Events have the query of the row with the same query id.
    pub query_id: Names,
}

/// The names of the columns of a file with one row for each item.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ItemColumns {
    pub id: Names,
    pub title: Names,
    pub description: Names,
    pub brand: Names,
    /// A path of categories, the widest first, or a list.
    pub categories: Names,
    pub tags: Names,
    /// What a user pays, unless there is a sale price.
    pub price: Names,
    /// What a user pays within the sale period.
    pub sale_price: Names,
    /// Two ISO 8601 times with a slash. Empty: always.
    pub sale_period: Names,
    /// What the shop pays.
    pub cost: Names,
    pub original_price: Names,
    pub currency: Names,
    pub stock: Names,
    pub availability: Names,
    pub rating: Names,
    pub rating_count: Names,
    pub url: Names,
    pub image_url: Names,
    pub created: Names,
    /// Variants of one product have the same group.
    pub group_id: Names,
    /// Columns by the names of their attributes. With a `*` in both, all columns of the pattern.
    pub attributes: BTreeMap<String, Names>,
    /// Kinds of attributes by their names. Others have the kind that all their values allow: flag, number or text.
    pub attribute_kinds: BTreeMap<String, AttributeKind>,
    /// Separators of the values of attributes in one cell, by their names. Others have one value for each cell.
    pub attribute_separators: BTreeMap<String, String>,
    /// Attributes whose names are values of the file.
    pub attribute_pairs: Vec<AttributePair>,
    /// Columns whose values, joined by `/`, are the id of a row without one. The first value must not be empty.
    pub id_parts: Vec<Names>,
    /// Only rows in which each of these columns has one of its values are items.
    pub keep: Vec<Condition>,
    /// The stock is not counted in rows in which one of these columns has one of its values.
    pub stock_not_counted: Vec<Condition>,
    /// Columns that only the first row of a product has.
    pub fill_down: Option<FillDown>,
    /// Availabilities by the file's own values of `availability`, regardless of case, spaces and punctuation.
    pub availability_values: BTreeMap<String, MappedAvailability>,
    /// Rows in which one of these columns has one of its values can be ordered without stock.
    pub backorder: Vec<Condition>,
    /// What the entries of a list of categories are.
    pub category_lists: CategoryLists,
    /// Separates the categories of one cell. Empty: `>`.
    pub category_separator: String,
    /// Separates the tags of one cell. Empty: `,`.
    pub tag_separator: String,
}

/// The names of the columns of a file with one row for each item at a place.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct InventoryColumns {
    pub id: Names,
    /// The code of the store.
    pub place: Names,
    pub stock: Names,
    pub availability: Names,
    /// What a user pays at the place, unless there is a sale price.
    pub price: Names,
    /// What a user pays within the sale period.
    pub sale_price: Names,
    /// Two ISO 8601 times with a slash. Empty: from the time of the file on.
    pub sale_period: Names,
    pub currency: Names,
    /// Availabilities by the file's own values of `availability`, regardless of case, spaces and punctuation.
    pub availability_values: BTreeMap<String, MappedAvailability>,
}

impl InventoryColumns {
    /// Returns the columns in the order of `Field` in `inventory.rs`.
    pub(super) fn all(&self) -> Vec<Column<'_>> {
        vec![
            required("inventory.id", &self.id),
            required("inventory.place", &self.place),
            column("inventory.stock", &self.stock),
            column("inventory.availability", &self.availability),
            column("inventory.price", &self.price),
            column("inventory.sale_price", &self.sale_price),
            column("inventory.sale_period", &self.sale_period),
            column("inventory.currency", &self.currency),
        ]
    }

    fn check(&self) -> Result<(), String> {
        for (key, names) in [("id", &self.id), ("place", &self.place)] {
            if names.is_empty() {
                return Err(format!("inventory.{key} is missing"));
            }
        }
        if self.stock.is_empty() && self.availability.is_empty() && self.price.is_empty() {
            return Err("inventory has none of the columns stock, availability and price".to_owned());
        }
        if !self.sale_price.is_empty() && self.price.is_empty() {
            return Err("inventory.sale_price is set without inventory.price, which it reduces".to_owned());
        }
        if !self.sale_period.is_empty() && self.sale_price.is_empty() {
            return Err("inventory.sale_period is set without inventory.sale_price, to which it belongs".to_owned());
        }
        if !self.availability_values.is_empty() && self.availability.is_empty() {
            let problem = "inventory.availability_values is set without inventory.availability, whose values it maps";
            return Err(problem.to_owned());
        }
        check_availability_values("inventory", &self.availability_values)
    }
}

/// What the entries of a list of categories are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CategoryLists {
    /// The levels of one path, the widest first.
    #[default]
    Levels,
    /// Paths.
    Paths,
}

/// An availability by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MappedAvailability(pub Availability);

impl<'de> Deserialize<'de> for MappedAvailability {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        let names = || Availability::ALL.map(Availability::name).join(", ");
        let unknown = || D::Error::custom(format!("`{name}` is not an availability; use one of {}", names()));
        Availability::parse(&name).map(Self).ok_or_else(unknown)
    }
}

/// Returns the availability of a value of the file, such as `in stock` or `https://schema.org/InStock`; none for an unknown
/// one. `own` are those of the mapping.
pub(super) fn availability_of(own: &BTreeMap<String, MappedAvailability>, value: &str) -> Option<Availability> {
    let word = plain_name(value.rsplit('/').next().unwrap_or_default());
    let mut own = own.iter();
    let own = own.find(|(name, _)| plain_name(name) == plain_name(value)).map(|(_, mapped)| mapped.0);
    let common = || COMMON_AVAILABILITIES.iter().find(|(common, _)| *common == word).map(|(_, mapped)| *mapped);
    own.or_else(|| Availability::parse(&word)).or_else(common)
}

fn check_availability_values(table: &str, values: &BTreeMap<String, MappedAvailability>) -> Result<(), String> {
    let mut words: BTreeMap<String, MappedAvailability> = BTreeMap::new();
    for (value, mapped) in values {
        let word = plain_name(value);
        if word.is_empty() {
            return Err(format!(
                "{table}.availability_values: `{value}` has neither letters nor digits, so no value of the file is it"
            ));
        }
        if words.insert(word, *mapped).is_some_and(|other| other != *mapped) {
            return Err(format!(
                "{table}.availability_values: `{value}` is another entry with another availability, regardless of case, \
                 spaces and punctuation"
            ));
        }
    }
    Ok(())
}

/// The words of Google Merchant Center, schema.org, Meta and WooCommerce, as [`plain_name`]s.
const COMMON_AVAILABILITIES: [(&str, Availability); 15] = [
    ("available", Availability::InStock),
    ("availablefororder", Availability::Backorder),
    ("instoreonly", Availability::InStock),
    ("limitedavailability", Availability::InStock),
    ("madetoorder", Availability::Backorder),
    ("ondisplaytoorder", Availability::Backorder),
    ("onbackorder", Availability::Backorder),
    ("onlineonly", Availability::InStock),
    ("presale", Availability::Preorder),
    ("reserved", Availability::OutOfStock),
    ("soldout", Availability::OutOfStock),
    ("unavailable", Availability::OutOfStock),
    ("yes", Availability::InStock),
    ("no", Availability::OutOfStock),
    ("notavailable", Availability::OutOfStock),
];

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttributePair {
    /// The column with the name of the attribute.
    pub name: Names,
    /// The column with its value.
    pub value: Names,
}

/// A condition on the rows of a file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Condition {
    pub column: Names,
    /// Regardless of case; `*` is any value except an empty one.
    pub values: Vec<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FillDown {
    /// Consecutive rows with the same value in this column are one product.
    pub key: Names,
    /// An empty value in one of these columns is that of the product's rows before.
    pub columns: Vec<String>,
}

/// A mapped column.
#[derive(Debug, Clone, Copy)]
pub(super) struct Column<'a> {
    /// Its key in the mapping.
    pub key: &'static str,
    /// Its names in the file; none if the file does not have it.
    pub names: &'a [String],
    /// Whether every row needs it.
    pub is_required: bool,
}

impl Column<'_> {
    /// Returns whether its key in its table is this one, such as `platform` of `events.platform`.
    pub(super) fn is_key(&self, key: &str) -> bool {
        self.key.split_once('.').is_some_and(|(_, own)| own == key)
    }
}

/// Columns of a pattern with one `*` that become attributes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wildcard<'a> {
    /// The pattern of the attributes' names.
    pub attribute: &'a str,
    /// The parts of the columns' names before and after the `*`.
    pub prefix: &'a str,
    pub suffix: &'a str,
}

impl Wildcard<'_> {
    /// Returns the name of the attribute of a column, with the characters of the column's name; none for a column that
    /// is not of the pattern.
    pub(super) fn name_of(&self, column: &str) -> Option<String> {
        let part = column.strip_prefix(self.prefix)?.strip_suffix(self.suffix)?;
        Some(self.attribute.replacen('*', part, 1))
    }
}

/// Characters of an attribute's name.
const ATTRIBUTE_NAME_CHARS: usize = 64;

/// Returns the text as the name of an attribute, with `_` for characters that names cannot have; none if it has no
/// letter or digit of a name.
pub(super) fn attribute_name_of(text: &str) -> Option<String> {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let name: String =
        text.trim().chars().take(ATTRIBUTE_NAME_CHARS).map(|c| if is_allowed(c) { c } else { '_' }).collect();
    name.chars().any(|c| c.is_ascii_alphanumeric()).then_some(name)
}

fn column<'a>(key: &'static str, names: &'a Names) -> Column<'a> {
    Column { key, names: &names.0, is_required: false }
}

fn required<'a>(key: &'static str, names: &'a Names) -> Column<'a> {
    Column { is_required: true, ..column(key, names) }
}

impl EventColumns {
    /// Returns the columns in the order of `Field` in `events.rs`.
    pub(super) fn all(&self) -> Vec<Column<'_>> {
        vec![
            // A file of searches has no items.
            column("events.item", &self.item),
            required("events.time", &self.time),
            column("events.event_id", &self.event_id),
            column("events.order", &self.order),
            column("events.user", &self.user),
            column("events.visitor", &self.visitor),
            column("events.session", &self.session),
            column("events.platform", &self.platform),
            column("events.region", &self.region),
            column("events.locale", &self.locale),
            column("events.title", &self.title),
            column("events.quantity", &self.quantity),
            column("events.price", &self.price),
            column("events.currency", &self.currency),
            column("events.event_type", &self.event_type),
            column("events.query", &self.query),
            column("events.query_id", &self.query_id),
        ]
    }
}

impl ItemColumns {
    /// Returns the columns in the order of `Field` in `items.rs`.
    pub(super) fn fields(&self) -> Vec<Column<'_>> {
        let id = if self.id_parts.is_empty() { required } else { column };
        vec![
            id("items.id", &self.id),
            required("items.title", &self.title),
            column("items.description", &self.description),
            column("items.brand", &self.brand),
            column("items.categories", &self.categories),
            column("items.tags", &self.tags),
            column("items.price", &self.price),
            column("items.sale_price", &self.sale_price),
            column("items.sale_period", &self.sale_period),
            column("items.cost", &self.cost),
            column("items.original_price", &self.original_price),
            column("items.currency", &self.currency),
            column("items.stock", &self.stock),
            column("items.availability", &self.availability),
            column("items.rating", &self.rating),
            column("items.rating_count", &self.rating_count),
            column("items.url", &self.url),
            column("items.image_url", &self.image_url),
            column("items.created", &self.created),
            column("items.group_id", &self.group_id),
        ]
    }

    /// Returns the attributes of one column each.
    pub(super) fn named_attributes(&self) -> impl Iterator<Item = (&String, Column<'_>)> {
        let named = self.attributes.iter().filter(|(name, _)| !name.contains('*'));
        named.map(|(name, names)| (name, column("items.attributes", names)))
    }

    pub(super) fn wildcards(&self) -> Vec<Wildcard<'_>> {
        let patterns = self.attributes.iter().filter(|(name, _)| name.contains('*'));
        let wildcards = patterns.flat_map(|(attribute, names)| {
            names.0.iter().filter_map(move |name| {
                let (prefix, suffix) = name.split_once('*')?;
                Some(Wildcard { attribute, prefix, suffix })
            })
        });
        wildcards.collect()
    }

    /// Returns the columns of `attribute_pairs`, `id_parts`, `keep`, `stock_not_counted`, `backorder` and `fill_down`,
    /// in this order.
    pub(super) fn auxiliary(&self) -> Vec<Column<'_>> {
        let pairs = self.attribute_pairs.iter().flat_map(|pair| [&pair.name, &pair.value]);
        let key = self.fill_down.iter().map(|fill| column("items.fill_down", &fill.key));
        pairs
            .map(|names| column("items.attribute_pairs", names))
            .chain(self.id_parts.iter().map(|names| column("items.id_parts", names)))
            .chain(self.keep.iter().map(|keep| column("items.keep", &keep.column)))
            .chain(self.stock_not_counted.iter().map(|any| column("items.stock_not_counted", &any.column)))
            .chain(self.backorder.iter().map(|any| column("items.backorder", &any.column)))
            .chain(key)
            .collect()
    }

    /// Returns the first column of `fill_down` that no other key of the mapping names, so that nothing is filled.
    fn unmapped_fill_down(&self) -> Option<&String> {
        let mapped: Vec<Column<'_>> = self
            .fields()
            .into_iter()
            .chain(self.named_attributes().map(|(_, column)| column))
            .chain(self.auxiliary())
            .collect();
        let is_mapped = |name: &&String| mapped.iter().any(|column| column.names.contains(name));
        self.fill_down.iter().flat_map(|fill| &fill.columns).find(|name| !is_mapped(name))
    }

    fn check_conditions(&self) -> Result<(), String> {
        let conditions = [
            ("items.keep", &self.keep),
            ("items.stock_not_counted", &self.stock_not_counted),
            ("items.backorder", &self.backorder),
        ];
        for (key, condition) in
            conditions.iter().flat_map(|(key, conditions)| conditions.iter().map(move |of| (key, of)))
        {
            if condition.column.is_empty() {
                return Err(format!("{key}: a condition has no column"));
            }
            if condition.values.is_empty() {
                return Err(format!("{key}: the condition on `{}` has no values", condition.column.text()));
            }
        }
        if self.attribute_pairs.iter().any(|pair| pair.name.is_empty() || pair.value.is_empty()) {
            return Err("items.attribute_pairs: a pair needs the columns `name` and `value`".to_owned());
        }
        if self.id_parts.iter().any(Names::is_empty) {
            return Err("items.id_parts: a part has no column".to_owned());
        }
        match &self.fill_down {
            Some(fill) if fill.key.is_empty() => Err("items.fill_down: key has no column".to_owned()),
            _ => Ok(()),
        }
    }

    fn check(&self) -> Result<(), String> {
        if self.id.is_empty() && self.id_parts.is_empty() {
            return Err("items.id is missing".to_owned());
        }
        if self.title.is_empty() {
            return Err("items.title is missing".to_owned());
        }
        let count = self.attributes.len();
        if count > limits::ATTRIBUTES {
            return Err(format!("items.attributes has {count} entries; the limit is {}", limits::ATTRIBUTES));
        }
        for (name, columns) in &self.attributes {
            let stars = |text: &str| text.matches('*').count();
            if columns.0.iter().any(|column| stars(column) != stars(name)) || stars(name) > 1 {
                return Err(format!(
                    "items.attributes: `{name}` = `{}`; a pattern has one `*` in the name of the attribute and one in \
                     each of its columns",
                    columns.text()
                ));
            }
            if attribute_name(&format!("attributes.{}", name.replace('*', "x"))).is_none() {
                return Err(format!(
                    "items.attributes: `{name}` is not a name; use 1 to 64 of A-Z a-z 0-9 _, and the file's name of the \
                     column as the value"
                ));
            }
        }
        if let Some(name) =
            self.attribute_kinds.keys().find(|name| attribute_name(&format!("attributes.{name}")).is_none())
        {
            return Err(format!("items.attribute_kinds: `{name}` is not a name; use 1 to 64 of A-Z a-z 0-9 _"));
        }
        for (name, separator) in &self.attribute_separators {
            if attribute_name(&format!("attributes.{name}")).is_none() {
                return Err(format!(
                    "items.attribute_separators: `{name}` is not a name; use 1 to 64 of A-Z a-z 0-9 _"
                ));
            }
            if separator.is_empty() {
                return Err(format!(
                    "items.attribute_separators: `{name}` has an empty separator; set one such as \",\""
                ));
            }
        }
        if !self.sale_period.is_empty() && self.sale_price.is_empty() {
            return Err("items.sale_period is set without items.sale_price, to which it belongs".to_owned());
        }
        if !self.availability_values.is_empty() && self.availability.is_empty() {
            let problem = "items.availability_values is set without items.availability, whose values it maps";
            return Err(problem.to_owned());
        }
        if !self.stock_not_counted.is_empty() && self.stock.is_empty() {
            return Err("items.stock_not_counted is set without items.stock, to which it belongs".to_owned());
        }
        self.check_conditions()?;
        check_availability_values("items", &self.availability_values)
    }
}

/// Values that apply to all rows.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Constants {
    /// The event type of rows without one. None: `purchase` if the file has orders and no column for the type.
    #[serde(rename = "event_type", deserialize_with = "event_kind")]
    pub event_kind: Option<EventKind>,
    /// An ISO 4217 code, of prices without one.
    pub currency: String,
}

/// The meaning of an event type's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MappedType {
    Kind(EventKind),
    /// Rows of this type are dropped.
    Ignored,
}

impl MappedType {
    const IGNORED: &str = "ignore";
}

impl<'de> Deserialize<'de> for MappedType {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        match EventKind::from_name(&name) {
            Some(kind) => Ok(Self::Kind(kind)),
            None if name == Self::IGNORED => Ok(Self::Ignored),
            None => Err(D::Error::custom(format!("{} or `{}`", not_a_type(&name), Self::IGNORED))),
        }
    }
}

/// A platform of the table `platforms`; none for a name that stands for no known platform.
#[derive(Debug, Clone, Copy)]
pub struct MappedPlatform(pub Option<Platform>);

impl<'de> Deserialize<'de> for MappedPlatform {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        match Platform::from_name(&name) {
            None if !name.is_empty() => {
                let names = Platform::ALL.map(Platform::name).join(", ");
                Err(D::Error::custom(format!("`{name}` is not a platform; use one of {names}, or an empty text")))
            }
            platform => Ok(Self(platform)),
        }
    }
}

/// A region of the table `regions`; none for a name that stands for no country.
#[derive(Debug, Clone, Copy)]
pub struct MappedRegion(pub Option<Region>);

impl<'de> Deserialize<'de> for MappedRegion {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let code = String::deserialize(deserializer)?;
        match Region::parse(&code) {
            None if !code.is_empty() => Err(D::Error::custom(format!(
                "`{code}` is not a region; use an ISO 3166-1 code of 2 letters such as GB, or an empty text"
            ))),
            region => Ok(Self(region)),
        }
    }
}

fn event_kind<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<EventKind>, D::Error> {
    let name = String::deserialize(deserializer)?;
    EventKind::from_name(&name).map(Some).ok_or_else(|| D::Error::custom(not_a_type(&name)))
}

fn not_a_type(name: &str) -> String {
    let names: Vec<&str> = EventKind::ALL.iter().map(|kind| kind.name()).collect();
    format!("`{name}` is not an event type; use one of {}", names.join(", "))
}

/// Names of event types in common tools, in lower case without spaces and punctuation: Google Analytics 4, Segment,
/// Adobe, OpenSearch UBI and public data sets. The types' own names are known as well.
const COMMON_TYPES: [(&str, EventKind); 39] = [
    ("viewitem", EventKind::View),
    ("productview", EventKind::View),
    ("productviewed", EventKind::View),
    ("itemview", EventKind::View),
    ("viewproduct", EventKind::View),
    ("detail", EventKind::View),
    ("detailview", EventKind::View),
    ("detailpageview", EventKind::View),
    ("selectitem", EventKind::Click),
    ("productclicked", EventKind::Click),
    ("productclick", EventKind::Click),
    ("itemclick", EventKind::Click),
    ("viewitemlist", EventKind::Impression),
    ("impressions", EventKind::Impression),
    ("productlistviewed", EventKind::Impression),
    ("viewsearchresults", EventKind::Search),
    ("productssearched", EventKind::Search),
    ("searched", EventKind::Search),
    ("viewcategory", EventKind::CategoryView),
    ("categorypageview", EventKind::CategoryView),
    ("cart", EventKind::AddToCart),
    ("addcart", EventKind::AddToCart),
    ("productadded", EventKind::AddToCart),
    ("cartadd", EventKind::AddToCart),
    ("removecart", EventKind::RemoveFromCart),
    ("productremoved", EventKind::RemoveFromCart),
    ("cartremove", EventKind::RemoveFromCart),
    ("addtowishlist", EventKind::Favorite),
    ("wishlist", EventKind::Favorite),
    ("productaddedtowishlist", EventKind::Favorite),
    ("removefromwishlist", EventKind::Unfavorite),
    ("productremovedfromwishlist", EventKind::Unfavorite),
    ("transaction", EventKind::Purchase),
    ("order", EventKind::Purchase),
    ("ordercompleted", EventKind::Purchase),
    ("buy", EventKind::Purchase),
    ("checkoutcompleted", EventKind::Purchase),
    ("orderrefunded", EventKind::Refund),
    ("returned", EventKind::Refund),
];

/// Rules for dropping rows and parsing numbers and times.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Clean {
    /// `iso8601`, `unix_s`, `unix_ms`, `unix_us`, or a strftime format. Of several, the first that a time has.
    pub time_format: Names,
    /// The IANA time zone of times without an offset.
    pub time_zone: String,
    /// Orders with this prefix are refunds and have quantities below 0. Empty if there are none.
    pub refund_order_prefix: String,
    /// The minimal number of digits at the start of a product's id.
    pub item_digits_min: usize,
    /// Rows with a lower price are dropped.
    pub price_min: f64,
    /// The price of a currency's unit in the file: 0.01 for a file in cents.
    pub price_unit: f64,
    /// `.` or `,`; the other one may separate thousands. Empty: the point, as long as no number has two meanings.
    pub decimal_separator: String,
    /// Drop rows that are equal to an earlier row in all mapped columns.
    pub drop_duplicates: bool,
    /// Reads an id such as `17850.0`, which a spreadsheet or data frame made of `17850`, as `17850`.
    pub whole_number_ids: bool,
}

impl Default for Clean {
    fn default() -> Self {
        Self {
            time_format: Names(vec![Times::ISO_8601.to_owned()]),
            time_zone: "UTC".to_owned(),
            refund_order_prefix: String::new(),
            item_digits_min: 0,
            price_min: 0.0,
            price_unit: 1.0,
            decimal_separator: String::new(),
            drop_duplicates: true,
            whole_number_ids: true,
        }
    }
}

impl Mapping {
    /// Returns the shipped mapping of this name, or else reads the file.
    pub fn open(name: &str) -> Result<Self, ImportError> {
        let path = PathBuf::from(name);
        let text = match shipped(name) {
            Some(text) => text.to_owned(),
            None => fs::read_to_string(&path).map_err(|source| {
                let names = SHIPPED.map(|(name, _)| name).join(", ");
                ImportError::NoMapping { path: path.clone(), source, names }
            })?,
        };
        Self::parse(&path, &text)
    }

    fn parse(path: &Path, text: &str) -> Result<Self, ImportError> {
        let bad = |message: String| ImportError::Mapping { path: path.to_owned(), message };
        let one_line = |error: toml::de::Error| bad(toml_error::one_line(text, &error));
        let own: toml::Table = toml::from_str(text).map_err(one_line)?;
        let states_fill_down = own.get("items").and_then(|items| items.get("fill_down")).is_some();
        let mapping: Result<Self, toml::de::Error> = match own.get(EXTENDS) {
            // The error of a file's own text names its line.
            None => toml::from_str(text),
            Some(base) => {
                let base = base.as_str().unwrap_or_default();
                let shipped = shipped(base).ok_or_else(|| {
                    let names = SHIPPED.map(|(name, _)| name).join(", ");
                    bad(format!("{EXTENDS} is `{base}`; it must be one of {names}"))
                })?;
                let mut merged: toml::Table =
                    toml::from_str(shipped).map_err(|error| bad(toml_error::one_line(shipped, &error)))?;
                merge(&mut merged, own);
                merged.remove(EXTENDS);
                merged.try_into()
            }
        };
        let mapping = Self { path: path.to_owned(), ..mapping.map_err(one_line)? };
        mapping.check().map_err(bad)?;
        // A mapping that extends another one may have given its columns other names.
        let unmapped = mapping.items.as_ref().filter(|_| states_fill_down).and_then(ItemColumns::unmapped_fill_down);
        if let Some(name) = unmapped {
            return Err(bad(format!(
                "items.fill_down.columns: `{name}` is the column of no other key of the table items"
            )));
        }
        Ok(mapping)
    }

    fn check(&self) -> Result<(), String> {
        if self.events.is_none() && self.items.is_none() && self.inventory.is_none() {
            return Err(
                "it has neither the table `events`, for a file of events, nor the tables `items` and `inventory`"
                    .to_owned(),
            );
        }
        if let Some(columns) = &self.inventory {
            columns.check()?;
        }
        self.check_empty_values()?;
        if let Some(columns) = &self.events {
            self.check_events(columns)?;
        }
        if let Some(columns) = &self.items {
            columns.check()?;
        }
        let code = &self.constants.currency;
        if !code.is_empty() {
            currency::check(code).map_err(|error| format!("constants.currency {error}"))?;
        }
        let unit = self.clean.price_unit;
        if !(unit > 0.0 && unit <= 1e6) {
            return Err(format!("clean.price_unit is {unit}; it must be above 0 and at most 1000000"));
        }
        Encoding::parse(&self.file.encoding)?;
        Numbers::new(&self.clean)?;
        Times::new(&self.clean).map(|_| ())
    }

    fn check_empty_values(&self) -> Result<(), String> {
        let events = self.events.as_ref().map(EventColumns::all);
        let items = self.items.as_ref().map(ItemColumns::fields);
        let inventory = self.inventory.as_ref().map(InventoryColumns::all);
        let columns: Vec<Column<'_>> = [events, items, inventory].into_iter().flatten().flatten().collect();
        let is_known = |key: &&String| columns.iter().any(|column| column.is_key(key) && !column.names.is_empty());
        match self.file.empty_values_of.keys().find(|key| !is_known(key)) {
            Some(key) => Err(format!("file.empty_values_of: `{key}` is no key of a column that the mapping names")),
            None => Ok(()),
        }
    }

    fn check_events(&self, columns: &EventColumns) -> Result<(), String> {
        if columns.item.is_empty() {
            return Err("events.item is missing".to_owned());
        }
        if columns.time.is_empty() {
            return Err("events.time is missing: each event needs its time. A file of items has none: describe its \
                        columns in the table `items` and import it with --items"
                .to_owned());
        }
        if columns.event_type.is_empty() && self.constants.event_kind.is_none() && columns.order.is_empty() {
            return Err("events.event_type, constants.event_type and events.order are missing, so it does not say \
                        which events the rows are. If each row is bought, set constants.event_type = \"purchase\"; if \
                        each row is an item, describe the columns in the table `items`"
                .to_owned());
        }
        Ok(())
    }

    /// Returns the meaning of an event type's name in the file: the one of the table `event_types`, or else the event
    /// type of that name or of a common name, regardless of letter case, spaces and punctuation. `None` if it is
    /// unknown.
    pub(super) fn type_of(&self, name: &str) -> Option<MappedType> {
        if let Some(mapped) = self.event_types.get(name) {
            return Some(*mapped);
        }
        let name = plain_name(name);
        let own = EventKind::ALL.into_iter().find(|kind| plain_name(kind.name()) == name);
        let common = || COMMON_TYPES.iter().find(|(common, _)| *common == name).map(|(_, kind)| *kind);
        own.or_else(common).map(MappedType::Kind)
    }
}

fn shipped(name: &str) -> Option<&'static str> {
    SHIPPED.iter().find(|(known, _)| *known == name).map(|(_, text)| *text)
}

/// Replaces values of a table by those of another one; tables in both are merged.
fn merge(base: &mut toml::Table, changes: toml::Table) {
    for (key, change) in changes {
        match (base.get_mut(&key), change) {
            (Some(toml::Value::Table(base)), toml::Value::Table(change)) => merge(base, change),
            (_, change) => _ = base.insert(key, change),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shipped_mapping_is_valid_and_can_be_extended() {
        for (name, _) in SHIPPED {
            Mapping::open(name).unwrap_or_else(|error| panic!("{name}: {error}"));
            let changed = format!("extends = \"{name}\"\n[constants]\ncurrency = \"EUR\"\n[clean]\nprice_min = 0.5\n");
            let mapping = Mapping::parse(Path::new("own.toml"), &changed).unwrap();
            assert_eq!((mapping.constants.currency.as_str(), mapping.clean.price_min), ("EUR", 0.5), "{name}");
        }
    }

    #[test]
    fn errors_of_mappings_name_the_key() {
        let refused = |text: &str| Mapping::parse(Path::new("own.toml"), text).unwrap_err().to_string();
        let items = "[items]\nid = \"id\"\ntitle = \"title\"\n";
        for (text, part) in [
            ("extends = \"magento\"\n".to_owned(), "`magento`; it must be one of clickstream, ga4"),
            (format!("{items}colour = \"c\"\n"), "unknown field `colour`"),
            (format!("{items}attributes = {{ \"*\" = \"a\" }}\n"), "one `*`"),
            (format!("{items}sale_period = \"p\"\n"), "items.sale_price"),
            (format!("{items}availability_values = {{ soon = \"preorder\" }}\n"), "items.availability"),
            (format!("{items}stock_not_counted = [{{ column = \"a\", values = [\"\"] }}]\n"), "items.stock"),
            (format!("{items}[file]\nencoding = \"latin-99\"\n"), "`latin-99`"),
            (format!("{items}[clean]\nprice_unit = 0.0\n"), "clean.price_unit is 0"),
            (format!("{items}[constants]\ncurrency = \"Euro\"\n"), "`Euro`"),
            (format!("{items}[platforms]\ntv = \"television\"\n"), "`television` is not a platform; use one of web, "),
            (format!("{items}[regions]\nEIRE = \"Ireland\"\n"), "`Ireland` is not a region"),
            ("[items]\ntitle = \"title\"\n".to_owned(), "items.id is missing"),
            (format!("{items}price = 5\n"), "line 4: "),
            ("extends = \"shopify\"\n[items]\nprice = 5\n".to_owned(), "in `items.price`"),
        ] {
            assert!(
                refused(&text).contains(part) && !refused(&text).contains('\n'),
                "`{part}` is missing in: {}",
                refused(&text)
            );
        }
    }

    #[test]
    fn common_names_are_in_their_normal_form_and_known() {
        for (name, kind) in COMMON_TYPES {
            assert_eq!(plain_name(name), name);
            assert!(EventKind::ALL.iter().all(|kind| plain_name(kind.name()) != name), "{name} is known already");
            assert_eq!(COMMON_TYPES.iter().filter(|(other, _)| *other == name).count(), 1, "{name} {kind:?}");
        }
    }

    #[test]
    fn names_of_columns_become_names_of_attributes() {
        let wildcard = Wildcard { attribute: "has_*", prefix: "attr_b_", suffix: "" };
        let name = wildcard.name_of("attr_b_usb 2.0 (front)");
        assert_eq!(name.as_deref().and_then(attribute_name_of).as_deref(), Some("has_usb_2_0__front_"));
        assert_eq!(wildcard.name_of("attr_t_colour"), None);
        assert_eq!(attribute_name_of("Größe").as_deref(), Some("Gr__e"));
        assert_eq!(attribute_name_of("尺寸"), None);
        assert_eq!(attribute_name_of(&"x".repeat(90)).map(|name| name.len()), Some(64));
    }
}
