//! The report of an import.
use super::rows::Row;
use crate::DatasetEvent;
use lodestone_events::EventKind;
use serde::Serialize;
use std::{collections::BTreeMap, fmt};

#[derive(Debug, Clone, Default, Serialize)]
pub struct ImportReport {
    pub row_count: u64,
    pub kept_count: u64,
    pub item_count: u64,
    pub user_count: u64,
    pub purchase_count: u64,
    pub refund_count: u64,
    /// Rows without a user. They are kept as anonymous baskets.
    pub anonymous_row_count: u64,
    pub dropped: BTreeMap<&'static str, Dropped>,
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
    NoItem,
    NotAProduct,
    Price,
    Quantity,
}

impl Reason {
    /// Returns the name of the class and its explanation.
    fn description(self) -> (&'static str, &'static str) {
        match self {
            Self::Duplicate => ("duplicate row", "equal to an earlier row in every mapped column"),
            Self::NoItem => ("no item", "the item's id is empty or not valid"),
            Self::NotAProduct => ("not a product", "the item's id has too few digits: postage, fees, corrections"),
            Self::Price => ("bad price", "the price is below clean.price_min"),
            Self::Quantity => ("bad quantity", "0, below 0 in a purchase, or above 0 in a refund"),
        }
    }
}

impl ImportReport {
    pub(super) fn drop(&mut self, reason: Reason, row: &Row) {
        let (name, why) = reason.description();
        let class = self.dropped.entry(name).or_default();
        if class.row_count == 0 {
            (class.why, class.example_line) = (why, row.line);
            class.example = row.values.join(" | ").chars().take(100).collect();
        }
        class.row_count += 1;
    }

    pub(super) fn count(&mut self, events: &[DatasetEvent]) {
        let kind = |kind| events.iter().filter(|event| event.kind == kind).count() as u64;
        let users: ahash::AHashSet<_> = events.iter().filter_map(|event| event.user.as_ref()).collect();
        self.kept_count = events.len() as u64;
        self.user_count = users.len() as u64;
        self.purchase_count = kind(EventKind::Purchase);
        self.refund_count = kind(EventKind::Refund);
        self.anonymous_row_count = events.iter().filter(|event| event.user.is_none()).count() as u64;
    }
}

impl fmt::Display for ImportReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:>10} rows read", self.row_count)?;
        writeln!(
            f,
            "{:>10} kept: {} purchase lines, {} refund lines, {} of them without a user",
            self.kept_count, self.purchase_count, self.refund_count, self.anonymous_row_count
        )?;
        writeln!(f, "{:>10} items, {} users", self.item_count, self.user_count)?;
        for (name, class) in &self.dropped {
            writeln!(f, "{:>10} dropped, {name}: {}", class.row_count, class.why)?;
            writeln!(f, "{:>10} first at line {}: {}", "", class.example_line, class.example)?;
        }
        Ok(())
    }
}
