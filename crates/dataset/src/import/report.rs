//! The report of an import.
use super::{ValueError, rows::Row};
use crate::DatasetEvent;
use lodestone_core::units::UnixMillis;
use serde::Serialize;
use std::{collections::BTreeMap, fmt};

/// Number of unknown event types, and of unknown values of a viewer's context, that a report names.
const UNKNOWN_NAMES_MAX: usize = 20;

#[derive(Debug, Clone, Default, Serialize)]
pub struct ImportReport {
    /// Rows of the file of items.
    pub item_row_count: u64,
    /// Rows of the files of events.
    pub row_count: u64,
    pub kept_count: u64,
    /// Kept rows by event type.
    pub kept_by_type: BTreeMap<&'static str, u64>,
    /// Kept rows without a user. They are kept as anonymous baskets.
    pub anonymous_row_count: u64,
    /// Kept rows whose price has the currency of their item, because they name none.
    pub item_currency_count: u64,
    /// Kept rows of purchases and refunds whose price has no currency.
    pub no_currency_count: u64,
    pub item_count: u64,
    pub user_count: u64,
    pub dropped: BTreeMap<&'static str, Dropped>,
    pub dropped_items: BTreeMap<&'static str, Dropped>,
    /// Rows by unknown event type; at most 20 types.
    pub unknown_event_types: BTreeMap<String, u64>,
    /// Kept rows by value of a platform, region or locale that is not known, with the key of its column, such as
    /// `platform: toaster`; at most 20 values. The rows are without it.
    pub unknown_context_values: BTreeMap<String, u64>,
    /// Optional columns of the mapping that the files do not have, by their first names.
    pub missing_columns: Vec<String>,
    /// Items of the catalogue before this import; none without one.
    pub item_count_before: Option<u64>,
    /// Time of the items' values, in ms since 1970: of the file of items. None without one.
    pub items_time_ms: Option<i64>,
    /// Attributes that their items are without.
    pub dropped_attributes: BTreeMap<&'static str, Dropped>,
}

/// One class of dropped rows or attributes.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Dropped {
    pub count: u64,
    /// Rows that the class concerns. A row may be without several attributes.
    pub row_count: u64,
    pub why: &'static str,
    /// The line of the first row of the class.
    pub example_line: u64,
    pub example: String,
    /// Its column, value and limit; empty if no single value is the reason.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub example_problem: String,
    #[serde(skip)]
    last_row: (u64, u64),
}

/// The reason why a row is not imported.
#[derive(Debug)]
pub(super) enum RowError {
    /// The row is dropped and counted. One value may be the reason.
    Dropped { reason: Reason, value: Option<ValueError> },
    /// The mapping does not describe the file, so the import ends.
    Mapping(ValueError),
}

impl RowError {
    pub(super) fn dropped(reason: Reason, column: &str, value: &str, problem: &str) -> Self {
        Self::Dropped { reason, value: Some(ValueError::new(column, value, problem)) }
    }
}

impl From<Reason> for RowError {
    fn from(reason: Reason) -> Self {
        Self::Dropped { reason, value: None }
    }
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Reason {
    Duplicate,
    NoType,
    UnknownType,
    IgnoredType,
    RoundedId,
    NoItem,
    NoQuery,
    NoCoupon,
    NotAProduct,
    NoTime,
    Time,
    NotANumber,
    PriceTooLow,
    PriceTooHigh,
    Currency,
    NoCurrency,
    SalePeriod,
    Availability,
    NotKept,
    GroupId,
    EventId,
    EventIdReused,
    Rating,
    Url,
    Quantity,
    User,
    SameItem,
    NoTitle,
    TooLong,
    AttributeTooLong,
    AttributeKind,
    AttributeName,
    AttributeNameTwice,
    TooManyAttributes,
    NoPlace,
    SamePlace,
    SaleWithoutPrice,
    NoValue,
    LocalAvailability,
}

impl Reason {
    /// Returns the name of the class and its explanation.
    fn description(self) -> (&'static str, &'static str) {
        match self {
            Self::Duplicate => ("duplicate row", "equal to an earlier row in every mapped column"),
            Self::NoType => ("no event type", "the column of events.event_type is empty in these rows"),
            Self::UnknownType => {
                ("unknown event type", "map it in the table event_types to one of docs/events.md, or to \"ignore\"")
            }
            Self::IgnoredType => ("ignored event type", "the table event_types says so"),
            Self::RoundedId => {
                ("rounded id", "a spreadsheet wrote an id such as 5.01E+12, without its last digits; export it as text")
            }
            Self::NoItem => ("no item", "the item's id is empty or not valid"),
            Self::NoQuery => {
                ("no query", "a search without its text (events.query), or with more than 1,000 characters")
            }
            Self::NoCoupon => {
                ("no coupon", "files have no coupon ids, without which incentive events count nowhere; use WriteEvents")
            }
            Self::NotAProduct => ("not a product", "the item's id has too few digits: postage, fees, corrections"),
            Self::NoTime => ("no time", "the column of times is empty in these rows"),
            Self::Time => {
                ("bad time", "before 1990 or more than a day ahead; for numbers see clean.time_format, such as unix_ms")
            }
            Self::NotANumber => ("not a number", "a price, quantity, stock or rating is not a number"),
            Self::PriceTooLow => ("price too low", "below clean.price_min"),
            Self::PriceTooHigh => ("price too high", "above 1,000,000,000"),
            Self::Currency => {
                ("bad currency", "not an ISO 4217 code in use, or the prices of an item have different ones")
            }
            Self::NoCurrency => ("no currency", "a price whose row names no currency; constants.currency is a default"),
            Self::SalePeriod => {
                ("bad sale period", "not two ISO 8601 times with a slash between them, the later one last")
            }
            Self::Availability => (
                "unknown availability",
                "map it in the table items.availability_values, such as lieferbar = \"in_stock\"",
            ),
            Self::NotKept => ("row that is no item", "items.keep of the mapping says so"),
            Self::GroupId => ("bad group", "the product of the variant is no id: at most 128 bytes"),
            Self::EventId => ("bad event id", "empty, or longer than 128 bytes"),
            Self::EventIdReused => ("event id used twice", "an earlier row has the same id and another user or type"),
            Self::Rating => ("bad rating", "below 0 or above 5"),
            Self::Url => ("bad URL", "neither an http or https URL without spaces nor a path that begins with one /"),
            Self::Quantity => ("bad quantity", "0, above 1,000,000, below 0 in a purchase, or above 0 in a refund"),
            Self::User => ("bad user", "the id of a user or visitor is not valid"),
            Self::SameItem => ("same item", "an earlier row has the same id"),
            Self::NoTitle => ("no title", "the title is empty"),
            Self::TooLong => ("too long", "a text or a list exceeds its limit"),
            Self::AttributeKind => {
                ("attribute of another kind", "items.attribute_kinds declares the kind of its values")
            }
            Self::AttributeName => {
                ("attribute without a name", "its name has none of A-Z a-z 0-9; name its column in items.attributes")
            }
            Self::AttributeNameTwice => (
                "attribute name used twice",
                "names of attributes have A-Z a-z 0-9 _; others become _, so two of the file are one: name their columns \
                 in items.attributes",
            ),
            Self::AttributeTooLong => ("attribute too long", "the item is imported without it"),
            Self::NoPlace => ("no place", "the store's code is empty or no id: at most 128 bytes"),
            Self::SamePlace => ("same item and place", "an earlier row has the same id and store code"),
            Self::SaleWithoutPrice => ("sale without a price", "a sale price reduces the price of the same row"),
            Self::NoValue => ("no value", "neither a stock, an availability nor a price"),
            Self::LocalAvailability => (
                "unknown availability",
                "map it in the table inventory.availability_values, such as lieferbar = \"in_stock\"",
            ),
            Self::TooManyAttributes => (
                "too many attributes",
                "an item has at most 100: those that the mapping names, and those that the most items have",
            ),
        }
    }
}

/// Counts a dropped row, or returns the value for which the import ends.
fn count(classes: &mut BTreeMap<&'static str, Dropped>, error: RowError, row: &Row) -> Result<(), ValueError> {
    let (reason, value) = match error {
        RowError::Dropped { reason, value } => (reason, value),
        RowError::Mapping(value) => return Err(value),
    };
    let (name, why) = reason.description();
    let class = classes.entry(name).or_default();
    if class.count == 0 {
        (class.why, class.example_line) = (why, row.line);
        class.example = row.values.join(" | ").chars().take(100).collect();
        class.example_problem = value.map_or_else(String::new, |value| value.to_string());
    }
    class.count += 1;
    let of_row = (row.line, row.index_in_line);
    class.row_count += u64::from(class.last_row != of_row);
    class.last_row = of_row;
    Ok(())
}

/// Counts a name, unless the report has enough others.
fn count_name(counts: &mut BTreeMap<String, u64>, name: String) {
    if counts.len() < UNKNOWN_NAMES_MAX || counts.contains_key(&name) {
        *counts.entry(name).or_insert(0) += 1;
    }
}

impl ImportReport {
    /// Counts a dropped row of events, or returns the value for which the import ends.
    pub(super) fn drop(&mut self, error: RowError, row: &Row) -> Result<(), ValueError> {
        count(&mut self.dropped, error, row)
    }

    /// The same for a row of items.
    pub(super) fn drop_item(&mut self, error: RowError, row: &Row) -> Result<(), ValueError> {
        count(&mut self.dropped_items, error, row)
    }

    /// Counts an attribute that its item is without.
    pub(super) fn drop_attribute(&mut self, error: RowError, row: &Row) -> Result<(), ValueError> {
        count(&mut self.dropped_attributes, error, row)
    }

    /// Counts attributes of an item with too many, of which `name` is one.
    pub(super) fn drop_attributes(&mut self, too_many: u64, line: u64, id: &str, name: &str) {
        let (reason, why) = Reason::TooManyAttributes.description();
        let class = self.dropped_attributes.entry(reason).or_default();
        if class.count == 0 {
            (class.why, class.example_line, class.example) = (why, line, format!("item {id}, attribute {name}"));
        }
        class.count += too_many;
        class.row_count += 1;
    }

    pub(super) fn unknown_type(&mut self, name: &str) {
        count_name(&mut self.unknown_event_types, name.chars().take(80).collect());
    }

    /// Counts a value that leaves its row without a platform, region or locale.
    pub(super) fn unknown_context_value(&mut self, key: &str, value: &str) {
        let value: String = value.chars().take(80).collect();
        count_name(&mut self.unknown_context_values, format!("{key}: {value}"));
    }

    pub(super) fn count(&mut self, events: &[DatasetEvent]) {
        let users: ahash::AHashSet<_> = events.iter().filter_map(|event| event.user.as_ref()).collect();
        self.kept_count = events.len() as u64;
        self.user_count = users.len() as u64;
        for event in events {
            *self.kept_by_type.entry(event.kind.name()).or_insert(0) += 1;
        }
        self.anonymous_row_count = events.iter().filter(|event| event.user.is_none()).count() as u64;
    }
}

impl fmt::Display for ImportReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.item_row_count > 0 {
            writeln!(f, "{:>10} rows of items read", self.item_row_count)?;
        }
        write_dropped(f, &self.dropped_items, |class| class.count.to_string())?;
        if self.row_count > 0 {
            writeln!(f, "{:>10} rows read", self.row_count)?;
            let kept: Vec<String> =
                self.kept_by_type.iter().map(|(name, count)| format!("{count} {name} lines")).collect();
            let anonymous = self.anonymous_row_count;
            match kept.is_empty() {
                true => writeln!(f, "{:>10} kept", self.kept_count)?,
                false => writeln!(
                    f,
                    "{:>10} kept: {}, {anonymous} of them without a user",
                    self.kept_count,
                    kept.join(", ")
                )?,
            }
        }
        if self.item_currency_count > 0 {
            writeln!(f, "{:>10} lines name no currency and have that of their items", self.item_currency_count)?;
        }
        if self.no_currency_count > 0 {
            writeln!(
                f,
                "{:>10} lines of purchases and refunds have no currency; name their column as events.currency, or set \
                 constants.currency",
                self.no_currency_count
            )?;
        }
        write!(f, "{:>10} items", self.item_count)?;
        if let Some(before) = self.item_count_before {
            write!(f, " ({before} before)")?;
        }
        writeln!(f, ", {} users", self.user_count)?;
        if let Some(time) = self.items_time_ms.map(UnixMillis) {
            writeln!(f, "{:>10} values of items as of {time}", "")?;
        }
        write_dropped(f, &self.dropped, |class| class.count.to_string())?;
        write_dropped(f, &self.dropped_attributes, |class| {
            format!("{} attributes of {} items", class.count, class.row_count)
        })?;
        if !self.missing_columns.is_empty() {
            writeln!(f, "{:>10} optional columns not in the files: {}", "", self.missing_columns.join(", "))?;
        }
        for (what, names) in [
            ("event types", &self.unknown_event_types),
            ("values of platform, region and locale", &self.unknown_context_values),
        ] {
            let counted: Vec<String> = names.iter().map(|(name, count)| format!("`{name}` {count}")).collect();
            if !counted.is_empty() {
                writeln!(f, "{:>10} unknown {what}: {}", "", counted.join(", "))?;
            }
        }
        Ok(())
    }
}

/// The report of a local inventory feed.
#[derive(Debug, Clone, Default, Serialize)]
pub struct InventoryReport {
    pub row_count: u64,
    pub kept_count: u64,
    /// Different places of the kept rows.
    pub place_count: u64,
    pub dropped: BTreeMap<&'static str, Dropped>,
    /// Optional columns of the mapping that the file does not have, by their first names.
    pub missing_columns: Vec<String>,
    /// Time of the values, in ms since 1970.
    pub time_ms: i64,
}

impl InventoryReport {
    /// Counts a dropped row, or returns the value for which the import ends.
    pub(super) fn drop(&mut self, error: RowError, row: &Row) -> Result<(), ValueError> {
        count(&mut self.dropped, error, row)
    }
}

impl fmt::Display for InventoryReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:>10} rows read", self.row_count)?;
        write_dropped(f, &self.dropped, |class| class.count.to_string())?;
        writeln!(f, "{:>10} kept, of {} places", self.kept_count, self.place_count)?;
        writeln!(f, "{:>10} values as of {}", "", UnixMillis(self.time_ms))?;
        if !self.missing_columns.is_empty() {
            writeln!(f, "{:>10} optional columns not in the file: {}", "", self.missing_columns.join(", "))?;
        }
        Ok(())
    }
}

fn write_dropped(
    f: &mut fmt::Formatter<'_>,
    classes: &BTreeMap<&'static str, Dropped>,
    what: impl Fn(&Dropped) -> String,
) -> fmt::Result {
    for (name, class) in classes {
        writeln!(f, "{:>10} dropped, {name}: {}", what(class), class.why)?;
        match class.example_problem.is_empty() {
            true => writeln!(f, "{:>10} first at line {}: {}", "", class.example_line, class.example)?,
            false => writeln!(
                f,
                "{:>10} first at line {}, {}; the row: {}",
                "", class.example_line, class.example_problem, class.example
            )?,
        }
    }
    Ok(())
}
