//! Import of a shop's files into canonical items and events. `docs/feeds.md` describes the mapping and the cleaning.
mod catalogue;
mod context;
mod currency;
mod events;
mod inventory;
mod items;
mod mapping;
mod numbers;
mod report;
mod rows;
mod text;
mod times;

use crate::{DatasetError, DatasetEvent};
use catalogue::Catalogue;
use events::EventCleaning;
pub use inventory::LocalInventory;
use lodestone_catalog::Item;
use lodestone_core::units::{PriceMicros, UnixMillis};
use lodestone_events::{EventKind, storage};
pub use mapping::{Mapping, SHIPPED};
use numbers::{Cell, Numbers};
pub use report::{Dropped, ImportReport, InventoryReport};
use report::{Reason, RowError};
use std::{
    fs, io,
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};
use times::Times;

/// The greatest share of items that may disappear with a new file unless the caller allows it.
pub const SHRINK_MAX: f64 = 0.2;

/// The reason why a file cannot be imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("mapping {path}: {message}")]
    Mapping { path: PathBuf, message: String },
    #[error("mapping {path}: {source}; a mapping is a file, or one of {names}")]
    NoMapping { path: PathBuf, source: io::Error, names: String },
    #[error("no mapping has the table `{table}`, which describes the columns of {path}")]
    MissingTable { path: PathBuf, table: &'static str },
    #[error("the mappings {first} and {second} both have the table `{table}`; name one of them")]
    TwoTables { first: PathBuf, second: PathBuf, table: &'static str },
    #[error(
        "{path}: `{extension}` is not a format that can be read; use .csv, .tsv, .txt, .jsonl, .ndjson, .json or .xml (also .gz, .zst), or .parquet"
    )]
    Format { path: PathBuf, extension: String },
    #[error("{path}: {message}")]
    Encoding { path: PathBuf, message: String },
    #[error("{path}: {key} `{value}` is set in the mapping, and a .{extension} file has none; remove it")]
    FileKey { path: PathBuf, key: &'static str, value: String, extension: String },
    #[error("{path}: line {line} cannot be read: {message}")]
    Broken { path: PathBuf, line: u64, message: String },
    #[error(
        "{path}: the file ends in the middle of a record, in line {line}: {message}; {last}. Nothing was imported; fetch \
         the whole file"
    )]
    Truncated { path: PathBuf, line: u64, message: String, last: String },
    #[error("{path}: these columns are missing: {columns}; found: {found}")]
    MissingColumns { path: PathBuf, columns: String, found: String },
    #[error(
        "{path}: columns {first} and {second} both have the name `{column}` (mapping key `{key}`); rename the one that \
         is not meant"
    )]
    TwoColumns { path: PathBuf, column: String, key: &'static str, first: usize, second: usize },
    #[error("{path}: line {line}, {value}")]
    Value { path: PathBuf, line: u64, value: ValueError },
    #[error(
        "{path}: column `{column}`: {count} items have the group `{group}`; the limit is {limit} variants of a product. If \
         the column does not name products, leave group_id out of the mapping"
    )]
    LargeGroup { path: PathBuf, column: String, group: String, count: usize, limit: usize },
    #[error("{path}: the file has no rows")]
    Empty { path: PathBuf },
    #[error("{path}: cleaning dropped all {rows} rows:\n{report}")]
    NothingLeft { path: PathBuf, rows: u64, report: Box<ImportReport> },
    #[error("{path}: no row of the file can be used:\n{report}")]
    NoInventory { path: PathBuf, report: Box<InventoryReport> },
    #[error("{path}: {0}", shrink)]
    Shrink { path: PathBuf, shrink: Shrink, report: Box<ImportReport> },
    #[error("--items-time {time} is in the future; the values of items cannot be of a later time than now")]
    FutureTime { time: UnixMillis },
    #[error(transparent)]
    Dataset(#[from] DatasetError),
}

/// A value that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("column `{column}`: `{value}` is {problem}")]
pub struct ValueError {
    column: String,
    value: String,
    problem: String,
}

impl ValueError {
    fn new(column: &str, value: &str, problem: &str) -> Self {
        Self { column: column.to_owned(), value: value.chars().take(80).collect(), problem: problem.to_owned() }
    }

    fn at(self, path: &Path, line: u64) -> ImportError {
        ImportError::Value { path: path.to_owned(), line, value: self }
    }
}

/// A catalogue that a new file would make much smaller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "it has {after} items, and the catalogue has {before}: {} % fewer, and the limit is {} %. If these items are really \
     no longer sold, repeat the command with --allow-shrink",
    percent(1.0 - *.after as f64 / (*.before).max(1) as f64), percent(SHRINK_MAX)
)]
pub struct Shrink {
    pub before: u64,
    pub after: u64,
}

fn percent(share: f64) -> f64 {
    (share * 1000.0).round() / 10.0
}

impl Shrink {
    /// Compares the number of items with the one before. An error if more than [`SHRINK_MAX`] of them disappear.
    pub fn check(before: u64, after: u64) -> Result<(), Self> {
        match (after as f64) < before as f64 * (1.0 - SHRINK_MAX) {
            true => Err(Self { before, after }),
            false => Ok(()),
        }
    }
}

/// The files of a shop. At least one is necessary.
#[derive(Debug, Clone, Copy, Default)]
pub struct ShopFiles<'a> {
    /// One row for each item of an event.
    pub events: &'a [PathBuf],
    /// One row for each item.
    pub items: Option<&'a Path>,
}

/// How files are imported.
#[derive(Debug, Clone, Copy)]
pub struct ImportOptions {
    /// Bounds the times of events.
    pub now: UnixMillis,
    /// The time at which the items had the values of their file. None: the file's modification time.
    pub items_time: Option<UnixMillis>,
    /// Replaces a catalogue by a much smaller one.
    pub allow_shrink: bool,
}

/// Reads the shop's files, cleans them, and writes `items.parquet` and `events.parquet` to `out`. Without events it
/// writes `items.parquet` only. Items of events that the file of items does not have are derived from the events. Calls
/// `progress` with the number of bytes read and the total number of bytes of the current file.
pub fn import(
    mappings: &[Mapping],
    files: ShopFiles<'_>,
    out: &Path,
    options: ImportOptions,
    mut progress: impl FnMut(u64, u64),
) -> Result<ImportReport, ImportError> {
    let (mut report, mut catalogue) = (ImportReport::default(), Catalogue::default());
    let mut feed = Vec::new();
    if let Some(path) = files.items {
        feed = read_items_file(mappings, path, options, &mut report, &mut progress)?;
    }
    let mut events = Vec::new();
    if let Some(first) = files.events.first() {
        let mapping = with_table(mappings, first, "events", |mapping| mapping.events.is_some())?;
        let mut cleaning = EventCleaning::new(mapping, options.now)?;
        for path in files.events {
            cleaning.read(path, &mut catalogue, &mut report, &mut progress)?;
        }
        events = cleaning.finish();
        if events.is_empty() {
            let rows = report.row_count;
            return Err(ImportError::NothingLeft { path: first.clone(), rows, report: Box::new(report) });
        }
    }
    let currency = mappings.iter().map(|mapping| mapping.constants.currency.as_str()).find(|code| !code.is_empty());
    let items = catalogue.items(feed, currency.unwrap_or_default());
    report.item_count = items.len() as u64;
    set_currencies(&mut events, &items, &mut report);
    report.count(&events);
    let items_path = out.join("items.parquet");
    if items_path.exists() {
        let before = crate::items::count_items(&items_path)?;
        report.item_count_before = Some(before);
        if let (Err(shrink), false) = (Shrink::check(before, report.item_count), options.allow_shrink) {
            let path = files.items.or(files.events.first().map(PathBuf::as_path)).unwrap_or(out).to_owned();
            return Err(ImportError::Shrink { path, shrink, report: Box::new(report) });
        }
    }
    storage::create_private_directory(out).map_err(|source| ImportError::Io { path: out.to_owned(), source })?;
    // Both files are complete before one replaces an older one.
    replace(
        &items_path,
        |path| crate::write_items(path, &items),
        || match files.events {
            [] => Ok(()),
            _ => replace(&out.join("events.parquet"), |path| crate::write_events(path, &events), || Ok(())),
        },
    )?;
    Ok(report)
}

/// Sets the currency of lines with a price that name none to that of their items. Counts the lines of purchases and
/// refunds whose items have none either.
fn set_currencies(events: &mut [DatasetEvent], items: &[Item], report: &mut ImportReport) {
    let is_unknown = |event: &&mut DatasetEvent| event.price.is_some() && event.currency.is_empty();
    for event in events.iter_mut().filter(is_unknown) {
        let item = event.item.as_ref().and_then(|id| items.binary_search_by(|item| item.id.cmp(id)).ok());
        match item.map(|index| &items[index].currency).filter(|currency| !currency.is_empty()) {
            Some(currency) => {
                event.currency.clone_from(currency);
                report.item_currency_count += 1;
            }
            None if matches!(event.kind, EventKind::Purchase | EventKind::Refund) => report.no_currency_count += 1,
            None => {}
        }
    }
}

/// Reads and cleans a file of items. Returns the items in the order of the file, as of the time of the file.
pub fn read_feed(
    mappings: &[Mapping],
    path: &Path,
    options: ImportOptions,
    mut progress: impl FnMut(u64, u64),
) -> Result<(Vec<Item>, ImportReport), ImportError> {
    let mut report = ImportReport::default();
    let items = read_items_file(mappings, path, options, &mut report, &mut progress)?;
    report.item_count = items.len() as u64;
    Ok((items, report))
}

/// Reads and cleans a local inventory feed. Returns its rows in the order of the file, as of the time of the file.
pub fn read_inventory(
    mappings: &[Mapping],
    path: &Path,
    options: ImportOptions,
    mut progress: impl FnMut(u64, u64),
) -> Result<(Vec<LocalInventory>, InventoryReport), ImportError> {
    let mapping = with_table(mappings, path, "inventory", |mapping| mapping.inventory.is_some())?;
    let time = items_time(path, options)?;
    let mut report = InventoryReport { time_ms: time.0, ..InventoryReport::default() };
    let inventory = inventory::read(mapping, path, time, &mut report, &mut progress)?;
    Ok((inventory, report))
}

fn read_items_file(
    mappings: &[Mapping],
    path: &Path,
    options: ImportOptions,
    report: &mut ImportReport,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Vec<Item>, ImportError> {
    let mapping = with_table(mappings, path, "items", |mapping| mapping.items.is_some())?;
    let time = items_time(path, options)?;
    report.items_time_ms = Some(time.0);
    items::read(mapping, path, time, report, progress)
}

/// Returns the time of the values of a file of items. The clock of a file server may be ahead, so a modification time
/// after now is now.
fn items_time(path: &Path, options: ImportOptions) -> Result<UnixMillis, ImportError> {
    if let Some(time) = options.items_time {
        return if time > options.now { Err(ImportError::FutureTime { time }) } else { Ok(time) };
    }
    let modified = fs::metadata(path).and_then(|file| file.modified());
    let modified = modified.map_err(|source| ImportError::Io { path: path.to_owned(), source })?;
    let since = modified.duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(UnixMillis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX)).min(options.now))
}

/// Returns the only mapping with a table.
fn with_table<'m>(
    mappings: &'m [Mapping],
    path: &Path,
    table: &'static str,
    has_table: impl Fn(&Mapping) -> bool,
) -> Result<&'m Mapping, ImportError> {
    let mut with = mappings.iter().filter(|mapping| has_table(mapping));
    match (with.next(), with.next()) {
        (None, _) => Err(ImportError::MissingTable { path: path.to_owned(), table }),
        (Some(mapping), None) => Ok(mapping),
        (Some(first), Some(second)) => {
            Err(ImportError::TwoTables { first: first.path.clone(), second: second.path.clone(), table })
        }
    }
}

/// Writes a file under another name, runs `then`, and renames the file to `path`.
fn replace(
    path: &Path,
    write: impl FnOnce(&Path) -> Result<(), DatasetError>,
    then: impl FnOnce() -> Result<(), ImportError>,
) -> Result<(), ImportError> {
    let new = path.with_extension("parquet.new");
    write(&new)?;
    then()?;
    fs::rename(&new, path).map_err(|source| ImportError::Io { path: path.to_owned(), source })
}

/// The formats of the numbers and times in a file.
struct Formats {
    numbers: Numbers,
    times: Times,
}

impl Formats {
    fn new(mapping: &Mapping) -> Result<Self, ImportError> {
        let bad = |message| ImportError::Mapping { path: mapping.path.clone(), message };
        let numbers = Numbers::new(&mapping.clean).map_err(bad)?;
        Ok(Self { numbers, times: Times::new(&mapping.clean).map_err(bad)? })
    }

    /// Returns a price, and the currency that its text names.
    fn price(&mut self, cell: Cell, clean: &mapping::Clean) -> Result<(Option<PriceMicros>, Option<String>), RowError> {
        let currency::PriceText { number, currency } = currency::split(cell.text)
            .map_err(|error| RowError::dropped(Reason::Currency, cell.column, cell.text, &error.problem()))?;
        let Some(value) = self.numbers.parse(Cell { text: number, ..cell })? else { return Ok((None, None)) };
        Ok((Some(numbers::price(value, cell.column, cell.text, clean)?), currency))
    }

    /// Returns the first moments of a sale and after it; none without a text.
    fn sale_period(&self, column: &str, text: &str) -> Result<Option<(UnixMillis, UnixMillis)>, RowError> {
        if text.is_empty() {
            return Ok(None);
        }
        match self.times.parse_period(text).filter(|(from, to)| from < to) {
            Some(period) => Ok(Some(period)),
            None => {
                let problem = "not two ISO 8601 times with a slash between them, the later one last";
                Err(RowError::dropped(Reason::SalePeriod, column, text, problem))
            }
        }
    }

    /// Checks, after all rows, that the numbers have one meaning.
    fn finish(self, path: &Path) -> Result<(), ImportError> {
        match self.numbers.ambiguous() {
            Some((line, error)) => Err(error.at(path, line)),
            None => Ok(()),
        }
    }
}

/// Checks that an id is not a long number that a spreadsheet wrote in scientific notation, which loses its last digits:
/// `5.01E+12`.
fn check_id(column: &mapping::Names, text: &str) -> Result<(), RowError> {
    let are_digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let is_rounded = text.split_once("E+").or_else(|| text.split_once("e+")).is_some_and(|(mantissa, exponent)| {
        let (whole, fraction) = mantissa.split_once(['.', ',']).unwrap_or((mantissa, "0"));
        are_digits(whole) && are_digits(fraction) && are_digits(exponent)
    });
    match is_rounded {
        true => Err(RowError::dropped(Reason::RoundedId, &column.text(), text, "without its last digits")),
        false => Ok(()),
    }
}

/// Returns the id that a text names: a whole number that a spreadsheet or data frame made a float loses its fraction.
fn id_text<'t>(text: &'t str, clean: &mapping::Clean) -> &'t str {
    let are = |text: &str, wanted: fn(u8) -> bool| !text.is_empty() && text.bytes().all(wanted);
    match text.split_once('.') {
        Some((whole, fraction))
            if clean.whole_number_ids
                && are(whole, |byte| byte.is_ascii_digit())
                && are(fraction, |byte| byte == b'0') =>
        {
            whole
        }
        _ => text,
    }
}
