//! Import of a shop's file into canonical items and events. `docs/events.md` describes the mapping and the cleaning.
mod catalogue;
mod cells;
mod mapping;
mod report;
mod rows;

use crate::{DatasetError, DatasetEvent};
use ahash::AHashSet;
use catalogue::Catalogue;
use lodestone_core::{
    ids::{ID_BYTES_MAX, ItemId, UserId},
    units::{PriceMicros, UnixMillis},
};
use lodestone_events::EventKind;
pub use mapping::Mapping;
use report::Reason;
pub use report::{Dropped, ImportReport};
use rows::{Row, Rows};
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// The reason why a file cannot be imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("mapping {path}: {message}")]
    Mapping { path: PathBuf, message: String },
    #[error("{path}: `{extension}` is not a format that can be read; use .csv, .jsonl (also .gz, .zst) or .parquet")]
    Format { path: PathBuf, extension: String },
    #[error("{path}: line {line} cannot be read: {message}")]
    Broken { path: PathBuf, line: u64, message: String },
    #[error("{path}: column `{column}` (mapping key `columns.{key}`) is missing; found: {found}")]
    MissingColumn { path: PathBuf, column: String, key: &'static str, found: String },
    #[error("{path}: line {line}, column `{column}`: `{value}` is {problem}")]
    Value { path: PathBuf, line: u64, column: String, value: String, problem: String },
    #[error("{path}: the file has no rows")]
    Empty { path: PathBuf },
    #[error("{path}: cleaning dropped all {rows} rows:\n{report}")]
    NothingLeft { path: PathBuf, rows: u64, report: ImportReport },
    #[error(transparent)]
    Dataset(#[from] DatasetError),
}

/// Reads `input`, cleans it and writes `items.parquet` and `events.parquet` to `out`. Calls `progress` with the number
/// of bytes read and the total number of bytes.
pub fn import(
    mapping: &Mapping,
    input: &Path,
    out: &Path,
    mut progress: impl FnMut(u64, u64),
) -> Result<ImportReport, ImportError> {
    let mut rows = Rows::open(input, mapping)?;
    let mut cleaning = Cleaning::new(mapping, input);
    while let Some(row) = rows.next()? {
        cleaning.take(&row)?;
        if row.line % 4096 == 0 {
            let (done, total) = rows.position();
            progress(done, total);
        }
    }
    let Cleaning { mut events, catalogue, mut report, .. } = cleaning;
    if report.row_count == 0 {
        return Err(ImportError::Empty { path: input.to_owned() });
    }
    if events.is_empty() {
        return Err(ImportError::NothingLeft { path: input.to_owned(), rows: report.row_count, report });
    }
    let items = catalogue.items(&mapping.constants.currency);
    // The lines of an order stay together, because the sort is stable and the order is part of the event id.
    events.sort_by(|a, b| a.at.cmp(&b.at).then_with(|| a.event_id.cmp(&b.event_id)));
    report.item_count = items.len() as u64;
    report.count(&events);
    fs::create_dir_all(out).map_err(|source| ImportError::Io { path: out.to_owned(), source })?;
    crate::write_items(&out.join("items.parquet"), &items)?;
    crate::write_events(&out.join("events.parquet"), &events)?;
    Ok(report)
}

struct Cleaning<'a> {
    mapping: &'a Mapping,
    path: &'a Path,
    seen: AHashSet<u64>,
    hasher: ahash::RandomState,
    events: Vec<DatasetEvent>,
    catalogue: Catalogue,
    report: ImportReport,
}

impl<'a> Cleaning<'a> {
    fn new(mapping: &'a Mapping, path: &'a Path) -> Self {
        Self {
            mapping,
            path,
            seen: AHashSet::new(),
            hasher: ahash::RandomState::with_seeds(1, 2, 3, 4),
            events: Vec::new(),
            catalogue: Catalogue::default(),
            report: ImportReport::default(),
        }
    }

    /// Keeps a row or drops it with a reason. A value that cannot be parsed is an error.
    fn take(&mut self, row: &Row) -> Result<(), ImportError> {
        self.report.row_count += 1;
        if let Err(reason) = self.parse(row)? {
            self.report.drop(reason, row);
        }
        Ok(())
    }

    fn parse(&mut self, row: &Row) -> Result<Result<(), Reason>, ImportError> {
        let clean = &self.mapping.clean;
        if clean.drop_duplicates && !self.seen.insert(self.hasher.hash_one(row.values)) {
            return Ok(Err(Reason::Duplicate));
        }
        let Ok(item) = ItemId::parse(row.item) else { return Ok(Err(Reason::NoItem)) };
        if row.item.chars().take_while(char::is_ascii_digit).count() < clean.item_digits_min {
            return Ok(Err(Reason::NotAProduct));
        }
        let at = self.time(row)?;
        let quantity = self.number(row, row.quantity, "quantity", 1.0)?;
        let price = self.number(row, row.price, "price", f64::NAN)?;
        let order = row.order.to_owned();
        let is_refund = !clean.refund_order_prefix.is_empty() && order.starts_with(&clean.refund_order_prefix);
        if price < clean.price_min {
            return Ok(Err(Reason::Price));
        }
        if quantity == 0.0 || (quantity < 0.0) != is_refund {
            return Ok(Err(Reason::Quantity));
        }
        let kind = match (is_refund, row.kind) {
            (true, _) => EventKind::Refund,
            (false, Some(name)) => EventKind::from_name(name)
                .ok_or_else(|| self.bad(row, &self.mapping.columns.event_type, name, "not an event type"))?,
            (false, None) => self.mapping.constants.event_kind,
        };
        let user = match row.user.trim() {
            "" => None,
            id => Some(
                UserId::signed_in(id)
                    .map_err(|error| self.bad(row, &self.mapping.columns.user, id, &error.to_string()))?,
            ),
        };
        let price = if price.is_nan() { None } else { PriceMicros::new((price * 1e6).round() as i64) };
        self.catalogue.add(&item, row.title, price, at, kind);
        let event_id = match order.is_empty() {
            true => format!("import-{}", row.line),
            false => format!("{}-{}-{}", kind.name(), order, at.0),
        };
        if event_id.len() > ID_BYTES_MAX {
            return Err(self.bad(row, &self.mapping.columns.order, &order, "too long for an id"));
        }
        self.events.push(DatasetEvent {
            event_id,
            user,
            session: String::new(),
            kind,
            at,
            item: Some(item),
            quantity: quantity.abs().min(1e6) as u32,
            price,
            currency: self.mapping.constants.currency.clone(),
            order,
            query: String::new(),
        });
        Ok(Ok(()))
    }

    fn time(&self, row: &Row) -> Result<UnixMillis, ImportError> {
        let clean = &self.mapping.clean;
        let parsed = jiff::civil::DateTime::strptime(&clean.time_format, row.time)
            .and_then(|time| time.in_tz(&clean.time_zone))
            .map(|zoned| UnixMillis(zoned.timestamp().as_millisecond()));
        parsed.map_err(|_| {
            let problem = format!("not a time in the format `{}`", clean.time_format);
            self.bad(row, &self.mapping.columns.time, row.time, &problem)
        })
    }

    fn number(&self, row: &Row, text: &str, key: &str, absent: f64) -> Result<f64, ImportError> {
        let text = text.trim();
        if text.is_empty() {
            return Ok(absent);
        }
        match text.parse::<f64>() {
            Ok(number) if number.is_finite() => Ok(number),
            _ => {
                let columns = &self.mapping.columns;
                let column = if key == "price" { &columns.price } else { &columns.quantity };
                Err(self.bad(row, column, text, "not a number"))
            }
        }
    }

    fn bad(&self, row: &Row, column: &str, value: &str, problem: &str) -> ImportError {
        ImportError::Value {
            path: self.path.to_owned(),
            line: row.line,
            column: column.to_owned(),
            value: value.chars().take(80).collect(),
            problem: problem.to_owned(),
        }
    }
}
