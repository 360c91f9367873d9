//! Import of a shop's files into canonical items and events. `docs/events.md` describes the mapping and the cleaning.
mod catalogue;
mod cells;
mod events;
mod mapping;
mod numbers;
mod products;
mod report;
mod rows;
mod times;

use crate::DatasetError;
use catalogue::Catalogue;
use events::EventCleaning;
use lodestone_core::units::UnixMillis;
pub use mapping::Mapping;
use numbers::Numbers;
pub use report::{Dropped, ImportReport};
use std::{
    fs, io,
    path::{Path, PathBuf},
};
use times::Times;

/// The reason why a file cannot be imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("mapping {path}: {message}")]
    Mapping { path: PathBuf, message: String },
    #[error("the mapping has no table `{table}`, which describes the columns of {path}")]
    MissingTable { path: PathBuf, table: &'static str },
    #[error("{path}: `{extension}` is not a format that can be read; use .csv, .jsonl (also .gz, .zst) or .parquet")]
    Format { path: PathBuf, extension: String },
    #[error("{path}: line {line} cannot be read: {message}")]
    Broken { path: PathBuf, line: u64, message: String },
    #[error("{path}: column `{column}` (mapping key `{key}`) is missing; found: {found}")]
    MissingColumn { path: PathBuf, column: String, key: &'static str, found: String },
    #[error(
        "{path}: columns {first} and {second} both have the name `{column}` (mapping key `{key}`); rename the one that \
         is not meant"
    )]
    TwoColumns { path: PathBuf, column: String, key: &'static str, first: usize, second: usize },
    #[error("{path}: line {line}, {value}")]
    Value { path: PathBuf, line: u64, value: ValueError },
    #[error("{path}: the file has no rows")]
    Empty { path: PathBuf },
    #[error("{path}: cleaning dropped all {rows} rows:\n{report}")]
    NothingLeft { path: PathBuf, rows: u64, report: Box<ImportReport> },
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

/// The files of a shop. At least one is necessary.
#[derive(Debug, Clone, Copy, Default)]
pub struct ShopFiles<'a> {
    /// One row for each item of an event.
    pub events: Option<&'a Path>,
    /// One row for each product.
    pub products: Option<&'a Path>,
}

/// Reads the shop's files, cleans them, and writes `items.parquet` and `events.parquet` to `out`. Without events it
/// writes `items.parquet` only. Items of events that the products do not have are derived from the events. Calls
/// `progress` with the number of bytes read and the total number of bytes of the current file. `now` bounds the times
/// of events.
pub fn import(
    mapping: &Mapping,
    files: ShopFiles<'_>,
    out: &Path,
    now: UnixMillis,
    mut progress: impl FnMut(u64, u64),
) -> Result<ImportReport, ImportError> {
    let (mut report, mut catalogue) = (ImportReport::default(), Catalogue::default());
    let mut products = Vec::new();
    if let Some(path) = files.products {
        let columns = mapping.products.as_ref().ok_or_else(|| missing_table(path, "products"))?;
        products = products::read(mapping, columns, path, &mut report, &mut progress)?;
    }
    let mut events = Vec::new();
    if let Some(path) = files.events {
        let columns = mapping.columns.as_ref().ok_or_else(|| missing_table(path, "columns"))?;
        let cleaning = EventCleaning::new(mapping, columns, now)?;
        events = cleaning.read(path, &mut catalogue, &mut report, &mut progress)?;
        if events.is_empty() {
            let rows = report.row_count;
            return Err(ImportError::NothingLeft { path: path.to_owned(), rows, report: Box::new(report) });
        }
    }
    let items = catalogue.items(products, &mapping.constants.currency);
    report.item_count = items.len() as u64;
    report.count(&events);
    fs::create_dir_all(out).map_err(|source| ImportError::Io { path: out.to_owned(), source })?;
    // Both files are complete before one replaces an older one.
    replace(
        &out.join("items.parquet"),
        |path| crate::write_items(path, &items),
        || match files.events {
            Some(_) => replace(&out.join("events.parquet"), |path| crate::write_events(path, &events), || Ok(())),
            None => Ok(()),
        },
    )?;
    Ok(report)
}

fn missing_table(path: &Path, table: &'static str) -> ImportError {
    ImportError::MissingTable { path: path.to_owned(), table }
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
        let bad = |message| ImportError::Mapping { path: PathBuf::from("mapping.toml"), message };
        let numbers = Numbers::new(&mapping.clean).map_err(bad)?;
        Ok(Self { numbers, times: Times::new(&mapping.clean).map_err(bad)? })
    }

    /// Checks, after all rows, that the numbers have one meaning.
    fn finish(self, path: &Path) -> Result<(), ImportError> {
        match self.numbers.ambiguous() {
            Some((line, error)) => Err(error.at(path, line)),
            None => Ok(()),
        }
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
