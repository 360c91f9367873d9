//! Reads the rows of a shop's file in any supported format.
use super::{ImportError, Mapping};
use crate::{decompress, import::cells::write_cell};
use std::{
    fs::File,
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// The mapped columns of one row; empty for columns that the file does not have.
pub(super) struct Row<'a> {
    /// The line in the file, counted from 1 with the header, or the row of a Parquet file.
    pub line: u64,
    pub item: &'a str,
    pub time: &'a str,
    pub order: &'a str,
    pub user: &'a str,
    pub title: &'a str,
    pub quantity: &'a str,
    pub price: &'a str,
    /// `None` if the file has no column for it.
    pub kind: Option<&'a str>,
    pub values: &'a [String; COLUMNS],
}

const COLUMNS: usize = 8;

/// Reads a file row by row.
pub(super) struct Rows {
    path: PathBuf,
    source: Source,
    values: [String; COLUMNS],
    has_kind: bool,
    line: u64,
    read: Arc<AtomicU64>,
    bytes: u64,
}

enum Source {
    Csv { reader: Box<csv::Reader<Box<dyn Read>>>, record: csv::StringRecord, indices: [Option<usize>; COLUMNS] },
    JsonLines { reader: BufReader<Box<dyn Read>>, names: [String; COLUMNS], text: String },
    Parquet(Box<ParquetRows>),
}

/// Counts the bytes read, for the progress bar.
struct Counted<R> {
    inner: R,
    read: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.read.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

impl Rows {
    pub(super) fn open(path: &Path, mapping: &Mapping) -> Result<Self, ImportError> {
        let io = |source| ImportError::Io { path: path.to_owned(), source };
        let file = File::open(path).map_err(io)?;
        let bytes = file.metadata().map_err(io)?.len();
        let read = Arc::new(AtomicU64::new(0));
        let counted = Counted { inner: file, read: read.clone() };
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_lowercase();
        let (name, reader) = decompress(&name, counted).map_err(io)?;
        let source = match name.rsplit('.').next().unwrap_or_default() {
            "csv" => csv_source(path, reader, mapping)?,
            "jsonl" | "ndjson" => Source::JsonLines {
                reader: BufReader::with_capacity(1 << 16, reader),
                names: mapping.columns.all().map(|(_, name)| name.to_owned()),
                text: String::new(),
            },
            "parquet" => Source::Parquet(Box::new(ParquetRows::open(path, mapping)?)),
            extension => {
                return Err(ImportError::Format { path: path.to_owned(), extension: extension.to_owned() });
            }
        };
        Ok(Self {
            path: path.to_owned(),
            source,
            values: Default::default(),
            has_kind: !mapping.columns.event_type.is_empty(),
            line: 0,
            read,
            bytes,
        })
    }

    /// Returns the number of bytes read and the total number of bytes.
    pub(super) fn position(&self) -> (u64, u64) {
        (self.read.load(Ordering::Relaxed), self.bytes)
    }

    pub(super) fn next(&mut self) -> Result<Option<Row<'_>>, ImportError> {
        let broken = |line: u64, message: String| ImportError::Broken { path: self.path.clone(), line, message };
        let has_row = match &mut self.source {
            Source::Csv { reader, record, indices } => {
                let has_row = reader.read_record(record).map_err(|error| {
                    broken(error.position().map_or(self.line + 1, csv::Position::line), error.to_string())
                })?;
                self.line = record.position().map_or(self.line + 1, csv::Position::line);
                for (value, index) in self.values.iter_mut().zip(indices) {
                    value.clear();
                    value.push_str(index.and_then(|index| record.get(index)).unwrap_or_default());
                }
                has_row
            }
            Source::JsonLines { reader, names, text } => {
                text.clear();
                self.line += 1;
                let read = reader.read_line(text).map_err(|error| broken(self.line, error.to_string()))?;
                if read > 0 {
                    read_json(&self.path, self.line, text, names, &mut self.values)?;
                }
                read > 0
            }
            Source::Parquet(rows) => {
                self.line += 1;
                rows.next(&mut self.values)?
            }
        };
        Ok(has_row.then(|| self.row()))
    }

    fn row(&self) -> Row<'_> {
        let [item, time, order, user, title, quantity, price, kind] = &self.values;
        let kind = self.has_kind.then_some(kind.as_str());
        Row { line: self.line, item, time, order, user, title, quantity, price, kind, values: &self.values }
    }
}

fn csv_source(path: &Path, reader: Box<dyn Read>, mapping: &Mapping) -> Result<Source, ImportError> {
    let mut reader = csv::ReaderBuilder::new().from_reader(reader);
    let header = reader.headers().map_err(|error| ImportError::Broken {
        path: path.to_owned(),
        line: 1,
        message: error.to_string(),
    })?;
    if header.is_empty() {
        return Err(ImportError::Empty { path: path.to_owned() });
    }
    let names: Vec<String> = header.iter().map(|name| name.trim_start_matches('\u{feff}').to_owned()).collect();
    let indices = column_indices(path, &names, mapping)?;
    Ok(Source::Csv { reader: Box::new(reader), record: csv::StringRecord::new(), indices })
}

/// Returns the index of each mapped column in the file; `None` for a column that is not mapped.
fn column_indices(path: &Path, names: &[String], mapping: &Mapping) -> Result<[Option<usize>; COLUMNS], ImportError> {
    let mut indices = [None; COLUMNS];
    for (index, (key, column)) in indices.iter_mut().zip(mapping.columns.all()) {
        if column.is_empty() {
            continue;
        }
        *index = names.iter().position(|name| name == column);
        if index.is_none() {
            return Err(ImportError::MissingColumn {
                path: path.to_owned(),
                column: column.to_owned(),
                key,
                found: names.join(", "),
            });
        }
    }
    Ok(indices)
}

fn read_json(
    path: &Path,
    line: u64,
    text: &str,
    names: &[String; COLUMNS],
    values: &mut [String; COLUMNS],
) -> Result<(), ImportError> {
    let broken = |message: String| ImportError::Broken { path: path.to_owned(), line, message };
    let object: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(text).map_err(|error| broken(error.to_string()))?;
    for (index, (value, name)) in values.iter_mut().zip(names).enumerate() {
        value.clear();
        match object.get(name) {
            Some(serde_json::Value::String(text)) => value.push_str(text),
            Some(serde_json::Value::Null) => {}
            Some(other @ (serde_json::Value::Number(_) | serde_json::Value::Bool(_))) => {
                value.push_str(&other.to_string());
            }
            Some(_) => return Err(broken(format!("`{name}` is not a text, a number or a flag"))),
            // Item and time are the first two columns; all rows need them.
            None if index < 2 => return Err(broken(format!("`{name}` is missing"))),
            None => {}
        }
    }
    Ok(())
}

struct ParquetRows {
    path: PathBuf,
    reader: parquet::arrow::arrow_reader::ParquetRecordBatchReader,
    indices: [Option<usize>; COLUMNS],
    batch: Option<arrow_array::RecordBatch>,
    row: usize,
    read: u64,
}

impl ParquetRows {
    fn open(path: &Path, mapping: &Mapping) -> Result<Self, ImportError> {
        use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
        let io = |source| ImportError::Io { path: path.to_owned(), source };
        let broken = |message: String| ImportError::Broken { path: path.to_owned(), line: 0, message };
        let builder = ParquetRecordBatchReaderBuilder::try_new(File::open(path).map_err(io)?)
            .map_err(|error| broken(error.to_string()))?;
        let names: Vec<String> = builder.schema().fields().iter().map(|field| field.name().clone()).collect();
        let indices = column_indices(path, &names, mapping)?;
        let reader = builder.build().map_err(|error| broken(error.to_string()))?;
        Ok(Self { path: path.to_owned(), reader, indices, batch: None, row: 0, read: 0 })
    }

    fn next(&mut self, values: &mut [String; COLUMNS]) -> Result<bool, ImportError> {
        let broken = |line: u64, message: String| ImportError::Broken { path: self.path.clone(), line, message };
        while self.batch.as_ref().is_none_or(|batch| self.row == batch.num_rows()) {
            self.row = 0;
            self.batch = match self.reader.next() {
                Some(batch) => Some(batch.map_err(|error| broken(self.read + 1, error.to_string()))?),
                None => return Ok(false),
            };
        }
        let Some(batch) = &self.batch else { return Ok(false) };
        for (value, index) in values.iter_mut().zip(self.indices) {
            value.clear();
            if let Some(index) = index {
                write_cell(value, batch.column(index), self.row).map_err(|problem| broken(self.read + 1, problem))?;
            }
        }
        self.row += 1;
        self.read += 1;
        Ok(true)
    }
}
