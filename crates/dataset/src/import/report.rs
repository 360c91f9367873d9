//! The report of an import.
use crate::DatasetEvent;
use serde::Serialize;
use std::{collections::BTreeMap, fmt};

/// Number of unknown event types that a report names.
const UNKNOWN_TYPES_MAX: usize = 20;

#[derive(Debug, Clone, Default, Serialize)]
pub struct ImportReport {
    /// Rows of the file of products.
    pub product_row_count: u64,
    /// Rows of the file of events.
    pub row_count: u64,
    pub kept_count: u64,
    /// Kept rows by event type.
    pub kept_by_type: BTreeMap<&'static str, u64>,
    /// Kept rows without a user. They are kept as anonymous baskets.
    pub anonymous_row_count: u64,
    pub item_count: u64,
    pub user_count: u64,
    pub dropped: BTreeMap<&'static str, Dropped>,
    pub dropped_products: BTreeMap<&'static str, Dropped>,
    /// Rows by unknown event type; at most 20 types.
    pub unknown_event_types: BTreeMap<String, u64>,
}

/// One class of dropped rows.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Dropped {
    pub row_count: u64,
    pub why: &'static str,
    /// The line of the first dropped row of the class.
    pub example_line: u64,
    pub example: String,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Reason {
    Duplicate,
    UnknownType,
    IgnoredType,
    RoundedId,
    NoItem,
    NoQuery,
    NotAProduct,
    Time,
    Price,
    Quantity,
    SameProduct,
    NoTitle,
}

impl Reason {
    /// Returns the name of the class and its explanation.
    fn description(self) -> (&'static str, &'static str) {
        match self {
            Self::Duplicate => ("duplicate row", "equal to an earlier row in every mapped column"),
            Self::UnknownType => {
                ("unknown event type", "map it in the table event_types to one of docs/events.md, or to \"ignore\"")
            }
            Self::IgnoredType => ("ignored event type", "the table event_types says so"),
            Self::RoundedId => {
                ("rounded id", "a spreadsheet wrote an id such as 5.01E+12, without its last digits; export it as text")
            }
            Self::NoItem => ("no item", "the item's id is empty or not valid"),
            Self::NoQuery => {
                ("no query", "a search without its text (columns.query), or with more than 1,000 characters")
            }
            Self::NotAProduct => ("not a product", "the item's id has too few digits: postage, fees, corrections"),
            Self::Time => {
                ("bad time", "before 1990 or more than a day ahead; for numbers see clean.time_format, such as unix_ms")
            }
            Self::Price => ("bad price", "below clean.price_min, or above 10^9"),
            Self::Quantity => ("bad quantity", "0, above 1,000,000, below 0 in a purchase, or above 0 in a refund"),
            Self::SameProduct => ("same product", "an earlier row has the same id"),
            Self::NoTitle => ("no title", "the title is empty"),
        }
    }
}

fn count(classes: &mut BTreeMap<&'static str, Dropped>, reason: Reason, line: u64, example: &str) {
    let (name, why) = reason.description();
    let class = classes.entry(name).or_default();
    if class.row_count == 0 {
        (class.why, class.example_line) = (why, line);
        class.example = example.chars().take(100).collect();
    }
    class.row_count += 1;
}

impl ImportReport {
    pub(super) fn drop(&mut self, reason: Reason, line: u64, example: &str) {
        count(&mut self.dropped, reason, line, example);
    }

    pub(super) fn drop_product(&mut self, reason: Reason, line: u64, example: &str) {
        count(&mut self.dropped_products, reason, line, example);
    }

    pub(super) fn unknown_type(&mut self, name: &str) {
        let name: String = name.chars().take(80).collect();
        if self.unknown_event_types.len() < UNKNOWN_TYPES_MAX || self.unknown_event_types.contains_key(&name) {
            *self.unknown_event_types.entry(name).or_insert(0) += 1;
        }
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
        if self.product_row_count > 0 {
            writeln!(f, "{:>10} rows of products read", self.product_row_count)?;
        }
        write_dropped(f, &self.dropped_products)?;
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
        writeln!(f, "{:>10} items, {} users", self.item_count, self.user_count)?;
        write_dropped(f, &self.dropped)?;
        let types: Vec<String> =
            self.unknown_event_types.iter().map(|(name, count)| format!("`{name}` {count}")).collect();
        match types.is_empty() {
            true => Ok(()),
            false => writeln!(f, "{:>10} unknown event types: {}", "", types.join(", ")),
        }
    }
}

fn write_dropped(f: &mut fmt::Formatter<'_>, classes: &BTreeMap<&'static str, Dropped>) -> fmt::Result {
    for (name, class) in classes {
        writeln!(f, "{:>10} dropped, {name}: {}", class.row_count, class.why)?;
        writeln!(f, "{:>10} first at line {}: {}", "", class.example_line, class.example)?;
    }
    Ok(())
}
