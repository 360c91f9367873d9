//! The rows of a shop's file.
use super::{
    ImportError,
    cells::{LIST_SEPARATOR, is_time, write_cell},
    mapping::Column,
};
use crate::decompress;
use arrow_schema::DataType;
use serde::de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, Visitor};
use std::{
    fmt,
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// The mapped columns of one row.
pub(super) struct Row<'a> {
    /// The line in the file, counted from 1 with the header, or the row of a Parquet file.
    pub line: u64,
    /// The columns in the order of the mapping, without white space around them; empty for columns that the file does
    /// not have.
    pub values: &'a [String],
    /// Whether the file's format has the value as a number, with a decimal point, and not as a text.
    pub numbers: &'a [bool],
}

/// Reads a file row by row.
pub(super) struct Rows {
    path: PathBuf,
    source: Source,
    values: Vec<String>,
    numbers: Vec<bool>,
    line: u64,
    read: Arc<AtomicU64>,
    bytes: u64,
}

enum Source {
    Csv { reader: Box<csv::Reader<Box<dyn Read>>>, record: csv::StringRecord, indices: Vec<Option<usize>> },
    JsonLines(JsonLines),
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
    pub(super) fn open(path: &Path, columns: &[Column<'_>]) -> Result<Self, ImportError> {
        let io = |source| ImportError::Io { path: path.to_owned(), source };
        let file = File::open(path).map_err(io)?;
        let bytes = file.metadata().map_err(io)?.len();
        let read = Arc::new(AtomicU64::new(0));
        let counted = Counted { inner: file, read: read.clone() };
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_lowercase();
        let (name, reader) = decompress(&name, counted).map_err(io)?;
        let source = match name.rsplit('.').next().unwrap_or_default() {
            "csv" | "tsv" => csv_source(path, reader, columns)?,
            "jsonl" | "ndjson" => Source::JsonLines(JsonLines::new(reader, columns)),
            "parquet" => Source::Parquet(Box::new(ParquetRows::open(path, columns)?)),
            extension => {
                return Err(ImportError::Format { path: path.to_owned(), extension: extension.to_owned() });
            }
        };
        let (values, numbers) = (vec![String::new(); columns.len()], vec![false; columns.len()]);
        Ok(Self { path: path.to_owned(), source, values, numbers, line: 0, read, bytes })
    }

    /// Returns the number of bytes read and the total number of bytes.
    pub(super) fn position(&self) -> (u64, u64) {
        (self.read.load(Ordering::Relaxed), self.bytes)
    }

    /// Returns whether a column has Parquet's type of times. Their text is in ISO 8601.
    pub(super) fn is_time(&self, column: usize) -> bool {
        matches!(&self.source, Source::Parquet(rows) if rows.times[column])
    }

    pub(super) fn next(&mut self) -> Result<Option<Row<'_>>, ImportError> {
        let broken = |line: u64, message: String| ImportError::Broken { path: self.path.clone(), line, message };
        let has_row = match &mut self.source {
            Source::Csv { reader, record, indices } => {
                let has_row = reader.read_record(record).map_err(|error| {
                    broken(error.position().map_or(self.line + 1, csv::Position::line), csv_message(&error))
                })?;
                self.line = record.position().map_or(self.line + 1, csv::Position::line);
                for (value, index) in self.values.iter_mut().zip(indices) {
                    set(value, index.and_then(|index| record.get(index)).unwrap_or_default());
                }
                has_row
            }
            Source::JsonLines(lines) => lines.next(&self.path, &mut self.line, &mut self.values, &mut self.numbers)?,
            Source::Parquet(rows) => {
                self.line += 1;
                self.numbers.copy_from_slice(&rows.numbers);
                rows.next(&mut self.values)?
            }
        };
        Ok(has_row.then(|| Row { line: self.line, values: &self.values, numbers: &self.numbers }))
    }
}

/// Sets a value without the white space around it.
fn set(value: &mut String, text: &str) {
    value.clear();
    value.push_str(text.trim());
}

/// The separators of columns that are recognised by the header.
const SEPARATORS: [u8; 3] = [b',', b';', b'\t'];
/// Greatest length of a header, in bytes, whose separator is recognised.
const HEADER_BYTES_MAX: u64 = 1 << 20;

fn csv_source(path: &Path, reader: Box<dyn Read>, columns: &[Column<'_>]) -> Result<Source, ImportError> {
    let mut reader = BufReader::new(reader);
    let mut first_line = Vec::new();
    reader.by_ref().take(HEADER_BYTES_MAX).read_until(b'\n', &mut first_line).map_err(|error| ImportError::Broken {
        path: path.to_owned(),
        line: 1,
        message: error.to_string(),
    })?;
    let separator = separator(&first_line, columns);
    let reader: Box<dyn Read> = Box::new(io::Cursor::new(first_line).chain(reader));
    let mut reader = csv::ReaderBuilder::new().delimiter(separator).from_reader(reader);
    let header = reader.headers().map_err(|error| ImportError::Broken {
        path: path.to_owned(),
        line: 1,
        message: csv_message(&error),
    })?;
    if header.is_empty() {
        return Err(ImportError::Empty { path: path.to_owned() });
    }
    let names: Vec<String> = header.iter().map(|name| name.trim_start_matches(BOM).trim().to_owned()).collect();
    let indices = column_indices(path, &names, columns)?;
    Ok(Source::Csv { reader: Box::new(reader), record: csv::StringRecord::new(), indices })
}

/// Returns the separator with which the header has the most of the mapped columns, and the most columns.
fn separator(first_line: &[u8], columns: &[Column<'_>]) -> u8 {
    let found = |separator: u8| {
        let mut reader = csv::ReaderBuilder::new().delimiter(separator).from_reader(first_line);
        let Ok(header) = reader.headers() else { return (0, 0) };
        let names: Vec<&str> = header.iter().map(|name| name.trim_start_matches(BOM).trim()).collect();
        let mapped = columns.iter().filter(|(_, column)| !column.is_empty() && names.contains(column)).count();
        (mapped, names.len())
    };
    // The first of equal ones.
    SEPARATORS.into_iter().rev().max_by_key(|separator| found(*separator)).unwrap_or(b',')
}

fn csv_message(error: &csv::Error) -> String {
    match error.kind() {
        csv::ErrorKind::Utf8 { .. } => format!("{error}; convert the file to UTF-8"),
        _ => error.to_string(),
    }
}

/// The byte order mark, with which some programs begin files in UTF-8.
const BOM: char = '\u{feff}';

/// Returns the index of each mapped column in the file; `None` for a column that is not mapped.
fn column_indices(path: &Path, names: &[String], columns: &[Column<'_>]) -> Result<Vec<Option<usize>>, ImportError> {
    let index = |(key, column): &Column<'_>| {
        if column.is_empty() {
            return Ok(None);
        }
        let mut found = names.iter().enumerate().filter(|(_, name)| name == column).map(|(index, _)| index);
        let first = found.next().ok_or_else(|| missing(path, key, column, names))?;
        match found.next() {
            None => Ok(Some(first)),
            Some(second) => Err(ImportError::TwoColumns {
                path: path.to_owned(),
                column: (*column).to_owned(),
                key,
                first: first + 1,
                second: second + 1,
            }),
        }
    };
    columns.iter().map(index).collect()
}

fn missing(path: &Path, key: &'static str, column: &str, names: &[String]) -> ImportError {
    let found = names.join(", ");
    ImportError::MissingColumn { path: path.to_owned(), column: column.to_owned(), key, found }
}

/// A file with a JSON object in each line.
struct JsonLines {
    reader: BufReader<Box<dyn Read>>,
    columns: Vec<(&'static str, String)>,
    /// Whether any line so far has the column.
    found: Vec<bool>,
    /// The names in the first line, for the error of a missing column.
    first_names: Option<Vec<String>>,
    text: String,
}

impl JsonLines {
    fn new(reader: Box<dyn Read>, columns: &[Column<'_>]) -> Self {
        Self {
            reader: BufReader::with_capacity(1 << 16, reader),
            columns: columns.iter().map(|(key, name)| (*key, (*name).to_owned())).collect(),
            found: columns.iter().map(|(_, name)| name.is_empty()).collect(),
            first_names: None,
            text: String::new(),
        }
    }

    /// Reads the next line that is not blank. A line need not have each column, but some line must: a name that no line
    /// has is a mistake in the mapping.
    fn next(
        &mut self,
        path: &Path,
        line: &mut u64,
        values: &mut [String],
        numbers: &mut [bool],
    ) -> Result<bool, ImportError> {
        loop {
            *line += 1;
            self.text.clear();
            let broken = |message: String| ImportError::Broken { path: path.to_owned(), line: *line, message };
            if self.reader.read_line(&mut self.text).map_err(|error| broken(error.to_string()))? == 0 {
                self.check_columns(path)?;
                return Ok(false);
            }
            let text = if *line == 1 { self.text.trim_start_matches(BOM) } else { &self.text };
            if text.trim().is_empty() {
                continue;
            }
            if self.first_names.is_none() {
                let object: serde_json::Map<String, serde_json::Value> =
                    serde_json::from_str(text).map_err(|error| broken(error.to_string()))?;
                self.first_names = Some(object.keys().cloned().collect());
            }
            values.iter_mut().for_each(String::clear);
            numbers.fill(false);
            let object = JsonObject { columns: &self.columns, found: &mut self.found, values, numbers };
            let mut deserializer = serde_json::Deserializer::from_str(text);
            object.deserialize(&mut deserializer).map_err(|error| broken(error.to_string()))?;
            deserializer.end().map_err(|error| broken(error.to_string()))?;
            return Ok(true);
        }
    }

    fn check_columns(&self, path: &Path) -> Result<(), ImportError> {
        let Some(first_names) = &self.first_names else { return Ok(()) };
        match self.columns.iter().zip(&self.found).find(|(_, found)| !**found) {
            None => Ok(()),
            Some(((key, name), _)) => Err(missing(path, key, name, first_names)),
        }
    }
}

/// Takes the mapped columns from a JSON object.
struct JsonObject<'a> {
    columns: &'a [(&'static str, String)],
    found: &'a mut [bool],
    values: &'a mut [String],
    numbers: &'a mut [bool],
}

impl<'de> DeserializeSeed<'de> for JsonObject<'_> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for JsonObject<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut taken: Vec<String> = Vec::with_capacity(self.columns.len());
        while let Some(name) = map.next_key::<String>()? {
            if !self.columns.iter().any(|(_, column)| *column == name) {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            if taken.contains(&name) {
                return Err(A::Error::custom(format!("`{name}` occurs twice")));
            }
            let value: serde_json::Value = map.next_value()?;
            let is_number = value.is_number();
            let text = json_text(&name, value).map_err(A::Error::custom)?;
            for (index, _) in self.columns.iter().enumerate().filter(|(_, (_, column))| *column == name) {
                set(&mut self.values[index], &text);
                self.found[index] = true;
                self.numbers[index] = is_number;
            }
            taken.push(name);
        }
        Ok(())
    }
}

fn json_text(name: &str, value: serde_json::Value) -> Result<String, String> {
    use serde_json::Value;
    match value {
        Value::String(text) => Ok(text),
        Value::Null => Ok(String::new()),
        Value::Number(_) | Value::Bool(_) => Ok(value.to_string()),
        Value::Array(entries) if entries.iter().all(Value::is_string) => {
            let texts: Vec<&str> = entries.iter().filter_map(Value::as_str).collect();
            Ok(texts.join(&LIST_SEPARATOR.to_string()))
        }
        Value::Array(_) | Value::Object(_) => {
            Err(format!("`{name}` is not a text, a number, a flag or a list of texts"))
        }
    }
}

struct ParquetRows {
    path: PathBuf,
    reader: parquet::arrow::arrow_reader::ParquetRecordBatchReader,
    /// Indices in the batches, which have the mapped columns only.
    indices: Vec<Option<usize>>,
    times: Vec<bool>,
    numbers: Vec<bool>,
    batch: Option<arrow_array::RecordBatch>,
    row: usize,
    read: u64,
}

impl ParquetRows {
    fn open(path: &Path, columns: &[Column<'_>]) -> Result<Self, ImportError> {
        use parquet::arrow::{ProjectionMask, arrow_reader::ParquetRecordBatchReaderBuilder};
        let io = |source| ImportError::Io { path: path.to_owned(), source };
        let broken = |message: String| ImportError::Broken { path: path.to_owned(), line: 0, message };
        let builder = ParquetRecordBatchReaderBuilder::try_new(File::open(path).map_err(io)?)
            .map_err(|error| broken(error.to_string()))?;
        let names: Vec<String> = builder.schema().fields().iter().map(|field| field.name().clone()).collect();
        let in_file = column_indices(path, &names, columns)?;
        let types = builder.schema().fields();
        let are = |is: fn(&DataType) -> bool| -> Vec<bool> {
            in_file.iter().map(|index| index.is_some_and(|index| is(types[index].data_type()))).collect()
        };
        let (times, numbers) = (are(is_time), are(DataType::is_numeric));
        let mut read: Vec<usize> = in_file.iter().copied().flatten().collect();
        read.sort_unstable();
        read.dedup();
        let indices = in_file.iter().map(|index| index.and_then(|index| read.binary_search(&index).ok())).collect();
        let mask = ProjectionMask::roots(builder.parquet_schema(), read);
        let reader = builder.with_projection(mask).build().map_err(|error| broken(error.to_string()))?;
        Ok(Self { path: path.to_owned(), reader, indices, times, numbers, batch: None, row: 0, read: 0 })
    }

    fn next(&mut self, values: &mut [String]) -> Result<bool, ImportError> {
        let broken = |line: u64, message: String| ImportError::Broken { path: self.path.clone(), line, message };
        while self.batch.as_ref().is_none_or(|batch| self.row == batch.num_rows()) {
            self.row = 0;
            self.batch = match self.reader.next() {
                Some(batch) => Some(batch.map_err(|error| broken(self.read + 1, error.to_string()))?),
                None => return Ok(false),
            };
        }
        let Some(batch) = &self.batch else { return Ok(false) };
        let mut text = String::new();
        for (value, index) in values.iter_mut().zip(&self.indices) {
            text.clear();
            if let Some(index) = *index {
                let name = batch.schema_ref().field(index).name();
                write_cell(&mut text, batch.column(index), self.row)
                    .map_err(|problem| broken(self.read + 1, format!("column `{name}`: {problem}")))?;
            }
            set(value, &text);
        }
        self.row += 1;
        self.read += 1;
        Ok(true)
    }
}
