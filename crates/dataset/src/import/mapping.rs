//! The mapping of a shop's columns, `mapping.toml`.
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

/// The names of the file's columns; empty for a column that the file does not have.
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
    /// Returns mapping keys and column names in the order of the fields of [`super::rows::Row`].
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

/// Values that apply to all rows.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Constants {
    /// The event type if the file has no column for it.
    #[serde(rename = "event_type", deserialize_with = "event_kind")]
    pub event_kind: EventKind,
    /// An ISO 4217 code.
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
        D::Error::custom(format!("`{name}` is not an event type; use one of {}", names.join(", ")))
    })
}

/// Rules for dropping rows and parsing times.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Clean {
    /// The strftime format of the times.
    pub time_format: String,
    /// The IANA time zone of the times.
    pub time_zone: String,
    /// Orders with this prefix are refunds and have quantities below 0. Empty if there are none.
    pub refund_order_prefix: String,
    /// The minimal number of digits at the start of a product's id.
    pub item_digits_min: usize,
    /// Rows with a lower price are dropped.
    pub price_min: f64,
    /// Drop rows that are equal to an earlier row in all mapped columns.
    pub drop_duplicates: bool,
}

impl Default for Clean {
    fn default() -> Self {
        Self {
            time_format: "%Y-%m-%d %H:%M:%S".to_owned(),
            time_zone: "UTC".to_owned(),
            refund_order_prefix: String::new(),
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
            return Err(bad("columns.item and columns.time must not be empty".to_owned()));
        }
        if jiff::tz::TimeZone::get(&mapping.clean.time_zone).is_err() {
            return Err(bad(format!("clean.time_zone `{}` is not an IANA time zone", mapping.clean.time_zone)));
        }
        Ok(mapping)
    }
}
