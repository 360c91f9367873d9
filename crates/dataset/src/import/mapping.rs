//! The mapping of a shop's columns, `mapping.toml`.
use super::{ImportError, numbers::Numbers, times::Times};
use lodestone_catalog::{attribute_name, limits};
use lodestone_events::EventKind;
use serde::{Deserialize, Deserializer, de::Error};
use std::{collections::BTreeMap, fs, path::Path};

/// What the files' columns mean, and how rows are cleaned. `docs/events.md` describes each key.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mapping {
    /// The columns of a file of events.
    pub columns: Option<EventColumns>,
    /// The columns of a file of products.
    pub products: Option<ProductColumns>,
    #[serde(default)]
    pub constants: Constants,
    /// Event types by their name in the file.
    #[serde(default)]
    pub event_types: BTreeMap<String, MappedType>,
    #[serde(default)]
    pub clean: Clean,
}

/// The names of the columns of a file with one row for each item of an event; empty for a column that the file does
/// not have.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EventColumns {
    pub item: String,
    pub time: String,
    pub order: String,
    pub user: String,
    pub visitor: String,
    pub session: String,
    pub title: String,
    pub quantity: String,
    pub price: String,
    pub event_type: String,
    pub query: String,
}

/// The names of the columns of a file with one row for each product; empty for a column that the file does not have.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProductColumns {
    pub id: String,
    pub title: String,
    pub description: String,
    pub brand: String,
    /// The path of categories, the widest first.
    pub categories: String,
    pub tags: String,
    pub price: String,
    pub original_price: String,
    pub currency: String,
    pub stock: String,
    pub rating: String,
    pub rating_count: String,
    pub url: String,
    pub image_url: String,
    pub created: String,
    /// Columns by the names of their attributes.
    pub attributes: BTreeMap<String, String>,
    /// Separates the categories of one cell. Empty: `>`.
    pub category_separator: String,
    /// Separates the tags of one cell. Empty: `,`.
    pub tag_separator: String,
}

/// A mapped column: its key in the mapping and its name in the file. An empty name is no column.
pub(super) type Column<'a> = (&'static str, &'a str);

impl EventColumns {
    /// Returns the columns in the order of `Field` in `events.rs`.
    pub(super) fn all(&self) -> Vec<Column<'_>> {
        vec![
            ("columns.item", &self.item),
            ("columns.time", &self.time),
            ("columns.order", &self.order),
            ("columns.user", &self.user),
            ("columns.visitor", &self.visitor),
            ("columns.session", &self.session),
            ("columns.title", &self.title),
            ("columns.quantity", &self.quantity),
            ("columns.price", &self.price),
            ("columns.event_type", &self.event_type),
            ("columns.query", &self.query),
        ]
    }
}

impl ProductColumns {
    /// Returns the columns in the order of `Field` in `products.rs`, and then the attributes.
    pub(super) fn all(&self) -> Vec<Column<'_>> {
        let mut columns: Vec<Column<'_>> = vec![
            ("products.id", &self.id),
            ("products.title", &self.title),
            ("products.description", &self.description),
            ("products.brand", &self.brand),
            ("products.categories", &self.categories),
            ("products.tags", &self.tags),
            ("products.price", &self.price),
            ("products.original_price", &self.original_price),
            ("products.currency", &self.currency),
            ("products.stock", &self.stock),
            ("products.rating", &self.rating),
            ("products.rating_count", &self.rating_count),
            ("products.url", &self.url),
            ("products.image_url", &self.image_url),
            ("products.created", &self.created),
        ];
        columns.extend(self.attributes.values().map(|name| ("products.attributes", name.as_str())));
        columns
    }
}

/// Values that apply to all rows.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Constants {
    /// The event type if the file has no column for it. None: `purchase` if the file has orders.
    #[serde(rename = "event_type", deserialize_with = "event_kind")]
    pub event_kind: Option<EventKind>,
    /// An ISO 4217 code.
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

fn event_kind<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<EventKind>, D::Error> {
    let name = String::deserialize(deserializer)?;
    EventKind::from_name(&name).map(Some).ok_or_else(|| D::Error::custom(not_a_type(&name)))
}

fn not_a_type(name: &str) -> String {
    let names: Vec<&str> = EventKind::ALL.iter().map(|kind| kind.name()).collect();
    format!("`{name}` is not an event type; use one of {}", names.join(", "))
}

/// Rules for dropping rows and parsing times.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Clean {
    /// `iso8601`, `unix_s`, `unix_ms`, `unix_us`, or a strftime format.
    pub time_format: String,
    /// The IANA time zone of times without an offset.
    pub time_zone: String,
    /// Orders with this prefix are refunds and have quantities below 0. Empty if there are none.
    pub refund_order_prefix: String,
    /// The minimal number of digits at the start of a product's id.
    pub item_digits_min: usize,
    /// Rows with a lower price are dropped.
    pub price_min: f64,
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
            time_format: Times::ISO_8601.to_owned(),
            time_zone: "UTC".to_owned(),
            refund_order_prefix: String::new(),
            item_digits_min: 0,
            price_min: 0.0,
            decimal_separator: String::new(),
            drop_duplicates: true,
            whole_number_ids: true,
        }
    }
}

impl Mapping {
    pub fn read(path: &Path) -> Result<Self, ImportError> {
        let text = fs::read_to_string(path).map_err(|source| ImportError::Io { path: path.to_owned(), source })?;
        let bad = |message: String| ImportError::Mapping { path: path.to_owned(), message };
        let mapping: Self = toml::from_str(&text).map_err(|error| bad(error.to_string()))?;
        mapping.check().map_err(bad)?;
        Ok(mapping)
    }

    fn check(&self) -> Result<(), String> {
        if self.columns.is_none() && self.products.is_none() {
            return Err("it has neither the table `columns`, for a file of events, nor the table `products`".to_owned());
        }
        if let Some(columns) = &self.columns {
            self.check_events(columns)?;
        }
        if let Some(products) = &self.products {
            for (key, name) in [("id", &products.id), ("title", &products.title)] {
                if name.is_empty() {
                    return Err(format!("products.{key} is missing"));
                }
            }
            if products.attributes.len() > limits::ATTRIBUTES {
                let count = products.attributes.len();
                return Err(format!("products.attributes has {count} entries; the limit is {}", limits::ATTRIBUTES));
            }
            if let Some(name) =
                products.attributes.keys().find(|name| attribute_name(&format!("attributes.{name}")).is_none())
            {
                return Err(format!(
                    "products.attributes: `{name}` is not a name; use 1 to 64 of A-Z a-z 0-9 _, and the file's name of \
                     the column as the value"
                ));
            }
        }
        let currency = &self.constants.currency;
        let is_code = currency.len() == 3 && currency.bytes().all(|byte| byte.is_ascii_alphabetic());
        if !currency.is_empty() && !is_code {
            return Err(format!("constants.currency `{currency}` is not an ISO 4217 code, such as EUR"));
        }
        Numbers::new(&self.clean)?;
        Times::new(&self.clean).map(|_| ())
    }

    fn check_events(&self, columns: &EventColumns) -> Result<(), String> {
        if columns.item.is_empty() {
            return Err("columns.item is missing".to_owned());
        }
        if columns.time.is_empty() {
            return Err(
                "columns.time is missing: each event needs its time. A file of products has none: describe its \
                        columns in the table `products` and import it with --products"
                    .to_owned(),
            );
        }
        if columns.event_type.is_empty() && self.constants.event_kind.is_none() && columns.order.is_empty() {
            return Err("columns.event_type, constants.event_type and columns.order are missing, so it does not say \
                        which events the rows are. If each row is bought, set constants.event_type = \"purchase\"; if \
                        each row is a product, describe the columns in the table `products`"
                .to_owned());
        }
        Ok(())
    }

    /// Returns the meaning of an event type's name in the file: the one of the table `event_types`, or else the event
    /// type of that name regardless of letter case, spaces and punctuation. `None` if it is unknown.
    pub(super) fn type_of(&self, name: &str) -> Option<MappedType> {
        if let Some(mapped) = self.event_types.get(name) {
            return Some(*mapped);
        }
        let plain = |name: &str| -> String {
            name.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
        };
        let name = plain(name);
        EventKind::ALL.into_iter().find(|kind| plain(kind.name()) == name).map(MappedType::Kind)
    }
}
