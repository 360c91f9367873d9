//! What a shop's columns mean: `mapping.toml`.
use super::ImportError;
use lodestone_events::EventKind;
use serde::{Deserialize, Deserializer, de::Error};
use std::{fs, path::Path};

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mapping {
    pub columns: Columns,
    #[serde(default)]
    pub constants: Constants,
    #[serde(default)]
    pub clean: Clean,
}

/// Names of the file's columns. Empty: the file has none.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Columns {
    pub item: String,
    pub time: String,
    #[serde(default)]
    pub order: String,
    #[serde(default)]
    pub user: String,
    #[serde(default)]
    pub title: String,
    #[serde(default)]
    pub quantity: String,
    #[serde(default)]
    pub price: String,
    #[serde(default)]
    pub event_type: String,
}

impl Columns {
    /// Keys and columns, in the order of [`super::rows::Row`]'s fields.
    pub fn all(&self) -> [(&'static str, &str); 8] {
        [
            ("item", &self.item),
            ("time", &self.time),
            ("order", &self.order),
            ("user", &self.user),
            ("title", &self.title),
            ("quantity", &self.quantity),
            ("price", &self.price),
            ("event_type", &self.event_type),
        ]
    }
}

/// What holds for every row.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Constants {
    /// The event type where there is no column for it.
    #[serde(rename = "event_type", deserialize_with = "event_kind")]
    pub event_kind: EventKind,
    /// ISO 4217.
    pub currency: String,
}

impl Default for Constants {
    fn default() -> Self {
        Self { event_kind: EventKind::Purchase, currency: String::new() }
    }
}

fn event_kind<'de, D: Deserializer<'de>>(deserializer: D) -> Result<EventKind, D::Error> {
    let name = String::deserialize(deserializer)?;
    EventKind::from_name(&name).ok_or_else(|| {
        let names: Vec<&str> = EventKind::ALL.iter().map(|kind| kind.name()).collect();
        D::Error::custom(format!("`{name}` is no event type; use one of {}", names.join(", ")))
    })
}

/// What is dropped, and how times are read.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Clean {
    /// strftime form of the times.
    pub time_format: String,
    /// IANA name of the times' zone.
    pub time_zone: String,
    /// An order that starts so gives goods back, with quantities below 0. Empty: none does.
    pub return_order_prefix: String,
    /// Digits that a product's id starts with at least.
    pub item_digits_min: usize,
    /// Rows with a lower price are dropped.
    pub price_min: f64,
    /// Rows that are equal in every mapped column to an earlier one are dropped.
    pub drop_duplicates: bool,
}

impl Default for Clean {
    fn default() -> Self {
        Self {
            time_format: "%Y-%m-%d %H:%M:%S".to_owned(),
            time_zone: "UTC".to_owned(),
            return_order_prefix: String::new(),
            item_digits_min: 0,
            price_min: 0.0,
            drop_duplicates: true,
        }
    }
}

impl Mapping {
    pub fn read(path: &Path) -> Result<Self, ImportError> {
        let text = fs::read_to_string(path).map_err(|source| ImportError::Io { path: path.to_owned(), source })?;
        let bad = |message: String| ImportError::Mapping { path: path.to_owned(), message };
        let mapping: Self = toml::from_str(&text).map_err(|error| bad(error.to_string()))?;
        if mapping.columns.item.is_empty() || mapping.columns.time.is_empty() {
            return Err(bad("columns.item and columns.time must be named".to_owned()));
        }
        if jiff::tz::TimeZone::get(&mapping.clean.time_zone).is_err() {
            return Err(bad(format!("clean.time_zone `{}` is no IANA time zone", mapping.clean.time_zone)));
        }
        Ok(mapping)
    }
}
