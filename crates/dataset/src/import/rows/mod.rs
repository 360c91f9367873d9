//! The rows of a shop's file, whichever format it has.
mod cells;
mod csv;
mod encoding;
mod json;
mod parquet;
mod tree;
mod xml;

use super::{
    ImportError,
    mapping::{Column, FileFormat, Wildcard},
};
use crate::decompress;
pub(super) use cells::LIST_SEPARATOR;
pub(super) use encoding::Encoding;
use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// Greatest size of one row in bytes, so that memory is bounded whatever a file contains.
const ROW_BYTES_MAX: u64 = 64 << 20;

/// The mapped columns of one row.
pub(super) struct Row<'a> {
    /// The line in the file, counted from 1 with the header, or the row of a Parquet file.
    pub line: u64,
    /// Number of rows before it that begin in the same line.
    pub index_in_line: u64,
    /// Whether the rows of its line are entries of one JSON object.
    pub is_entry: bool,
    /// The columns in the order of the mapping, without white space around them; empty for columns that the file does
    /// not have.
    pub values: &'a [String],
    pub kinds: &'a [ValueKind],
    /// The attributes of the mapping's patterns of columns, without empty ones.
    pub attributes: &'a [NamedValue],
}

/// What a value is in the file's format.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum ValueKind {
    #[default]
    Text,
    /// With a decimal point.
    Number,
    /// Parquet's type of times and dates. Its text is in ISO 8601, or a number if the calendar does not have the time.
    Time,
}

/// A column that a pattern of the mapping makes an attribute.
#[derive(Debug, Clone)]
pub(super) struct NamedValue {
    pub column: String,
    /// The name of the attribute before [`attribute_name_of`](super::mapping::attribute_name_of).
    pub name: String,
    pub text: String,
    pub kind: ValueKind,
}

/// What is read of a file.
pub(super) struct Selection<'a> {
    pub columns: Vec<Column<'a>>,
    pub wildcards: Vec<Wildcard<'a>>,
    pub format: &'a FileFormat,
}

/// Reads a file row by row.
pub(super) struct Rows<'a> {
    path: PathBuf,
    selection: Selection<'a>,
    source: Source,
    buffers: Buffers,
    line: u64,
    index_in_line: u64,
    /// The last row that was read: its line and the value of its first column.
    last: Option<(u64, String)>,
    read: Arc<AtomicU64>,
    of_row: Arc<AtomicU64>,
    bytes: u64,
}

/// The values of the current row.
struct Buffers {
    values: Vec<String>,
    kinds: Vec<ValueKind>,
    attributes: Vec<NamedValue>,
    empty_values: Vec<String>,
    /// The same by column.
    empty_values_of: Vec<Vec<String>>,
}

enum Source {
    Csv(Box<csv::Csv>),
    JsonLines(Box<json::JsonLines>),
    Xml(Box<xml::Xml>),
    Parquet(Box<parquet::ParquetRows>),
}

/// The reason why the next row cannot be read.
#[derive(Debug)]
enum RowProblem {
    /// The file ends within the row.
    Truncated(String),
    Broken(String),
}

impl RowProblem {
    fn of_io(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Truncated(error.to_string()),
            _ => Self::Broken(error.to_string()),
        }
    }
}

/// Counts the bytes that are read.
struct Counted<R> {
    inner: R,
    count: Arc<AtomicU64>,
    max: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)? as u64;
        if self.count.fetch_add(count, Ordering::Relaxed) + count > self.max {
            return Err(io::Error::other(format!("the row has more than {} MiB, the limit", self.max >> 20)));
        }
        Ok(count as usize)
    }
}

impl<'a> Rows<'a> {
    pub(super) fn open(path: &Path, selection: Selection<'a>) -> Result<Self, ImportError> {
        let io = |source| ImportError::Io { path: path.to_owned(), source };
        let file = File::open(path).map_err(io)?;
        let bytes = file.metadata().map_err(io)?.len();
        let (read, of_row) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let counted = Counted { inner: file, count: read.clone(), max: u64::MAX };
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_lowercase();
        let (name, reader) = decompress(&name, counted).map_err(io)?;
        let extension = name.rsplit('.').next().unwrap_or_default();
        let text = |reader: Box<dyn Read>| -> Result<Box<dyn Read>, ImportError> {
            let (encoding, reader) = match selection.format.encoding.as_str() {
                "" if extension == "xml" => xml::declared_encoding(reader).map_err(io)?,
                label => (label.to_owned(), reader),
            };
            let bad = |message| ImportError::Encoding { path: path.to_owned(), message };
            let decoded = Encoding::parse(&encoding).map_err(bad)?.decode(reader);
            Ok(Box::new(Counted { inner: decoded, count: of_row.clone(), max: ROW_BYTES_MAX }))
        };
        let FileFormat { rows, encoding, .. } = selection.format;
        for (key, value, extensions) in
            [("file.rows", rows, &["csv", "tsv", "txt", "parquet"][..]), ("file.encoding", encoding, &["parquet"][..])]
        {
            if !value.is_empty() && extensions.contains(&extension) {
                let (path, extension) = (path.to_owned(), extension.to_owned());
                return Err(ImportError::FileKey { path, key, value: value.clone(), extension });
            }
        }
        let source = match extension {
            "csv" | "tsv" | "txt" => Source::Csv(Box::new(csv::Csv::open(path, text(reader)?, &selection)?)),
            "jsonl" | "ndjson" | "json" => Source::JsonLines(Box::new(json::JsonLines::new(text(reader)?, &selection))),
            "xml" => Source::Xml(Box::new(xml::Xml::new(text(reader)?, &selection))),
            "parquet" => Source::Parquet(Box::new(parquet::ParquetRows::open(path, &selection)?)),
            extension => {
                return Err(ImportError::Format { path: path.to_owned(), extension: extension.to_owned() });
            }
        };
        let count = selection.columns.len();
        let buffers = Buffers {
            values: vec![String::new(); count],
            kinds: vec![ValueKind::Text; count],
            attributes: Vec::new(),
            empty_values: selection.format.empty_values.clone(),
            empty_values_of: selection.columns.iter().map(|column| empty_values_of(column, selection.format)).collect(),
        };
        let path = path.to_owned();
        Ok(Self { path, selection, source, buffers, line: 0, index_in_line: 0, last: None, read, of_row, bytes })
    }

    /// Returns the number of bytes read and the total number of bytes.
    pub(super) fn position(&self) -> (u64, u64) {
        (self.read.load(Ordering::Relaxed), self.bytes)
    }

    pub(super) fn next(&mut self) -> Result<Option<Row<'_>>, ImportError> {
        self.of_row.store(0, Ordering::Relaxed);
        self.buffers.clear();
        let next = match &mut self.source {
            Source::Csv(rows) => rows.next(&mut self.line, &mut self.buffers),
            Source::JsonLines(rows) => rows.next(&self.selection, &mut self.line, &mut self.buffers),
            Source::Xml(rows) => rows.next(&self.selection, &mut self.line, &mut self.buffers),
            Source::Parquet(rows) => rows.next(&mut self.line, &mut self.buffers),
        };
        let (path, line) = (self.path.clone(), self.line);
        match next {
            Ok(false) => Ok(None),
            Ok(true) => {
                let id = self.buffers.values.first().map_or("", String::as_str);
                self.index_in_line = match &self.last {
                    Some((last_line, _)) if *last_line == line => self.index_in_line + 1,
                    _ => 0,
                };
                match &mut self.last {
                    Some((last_line, last_id)) => {
                        *last_line = line;
                        id.clone_into(last_id);
                    }
                    None => self.last = Some((line, id.to_owned())),
                }
                let is_entry = matches!(self.source, Source::JsonLines(_)) && !self.selection.format.rows.is_empty();
                let Buffers { values, kinds, attributes, .. } = &self.buffers;
                Ok(Some(Row { line, index_in_line: self.index_in_line, is_entry, values, kinds, attributes }))
            }
            Err(RowProblem::Broken(message)) => Err(ImportError::Broken { path, line, message }),
            Err(RowProblem::Truncated(message)) => {
                let last = match &self.last {
                    Some((line, id)) => format!("the last whole record is in line {line}, `{id}`"),
                    None => "it has no whole record".to_owned(),
                };
                Err(ImportError::Truncated { path, line, message, last })
            }
        }
    }

    /// Returns whether the file has each mapped column, and then whether it has one of each pattern, after all rows.
    pub(super) fn found(&self) -> &[bool] {
        self.columns().0
    }

    fn columns(&self) -> (&[bool], &[String]) {
        match &self.source {
            Source::Csv(rows) => rows.columns(),
            Source::JsonLines(rows) => rows.columns(),
            Source::Xml(rows) => rows.columns(),
            Source::Parquet(rows) => rows.columns(),
        }
    }

    /// Returns the mapped columns that the file does not have, after all rows. One that every row needs is an error,
    /// and so is any other unless the mapping makes columns optional.
    pub(super) fn missing_columns(&self) -> Result<Vec<String>, ImportError> {
        let (found, existing) = self.columns();
        let is_missing = |(column, found): &(&Column<'_>, &bool)| !**found && !column.names.is_empty();
        let missing: Vec<&Column<'_>> =
            self.selection.columns.iter().zip(found).filter(is_missing).map(|(column, _)| column).collect();
        let refused: Vec<String> = missing
            .iter()
            .filter(|column| column.is_required || !self.selection.format.optional_columns)
            .map(|column| format!("`{}` (mapping key `{}`)", column.names.join("` or `"), column.key))
            .collect();
        if !refused.is_empty() {
            return Err(ImportError::MissingColumns {
                path: self.path.clone(),
                columns: refused.join(", "),
                found: shortened(existing),
            });
        }
        let mut names: Vec<String> = missing.iter().filter_map(|column| column.names.first().cloned()).collect();
        names.dedup();
        Ok(names)
    }
}

/// Returns the values that mean that there is none only in a column.
fn empty_values_of(column: &Column<'_>, format: &FileFormat) -> Vec<String> {
    let of_column = format.empty_values_of.iter().filter(|(key, _)| column.is_key(key));
    of_column.flat_map(|(_, values)| values).cloned().collect()
}

/// Characters of a message's list of names.
const NAMES_CHARS_MAX: usize = 1000;

fn shortened(names: &[String]) -> String {
    let text = names.join(", ");
    match text.char_indices().nth(NAMES_CHARS_MAX) {
        Some((at, _)) => format!("{} …", &text[..at]),
        None => text,
    }
}

impl Buffers {
    fn clear(&mut self) {
        self.values.iter_mut().for_each(String::clear);
        self.kinds.fill(ValueKind::Text);
        self.attributes.clear();
    }

    /// Returns the value of a text, without the white space around it; none for one that means that there is none.
    fn value_of<'t>(&self, text: &'t str) -> Option<&'t str> {
        let text = text.trim();
        (!text.is_empty() && !self.empty_values.iter().any(|empty| empty == text)).then_some(text)
    }

    /// Sets a column, unless one of its earlier names has a value.
    fn set(&mut self, column: usize, text: &str, kind: ValueKind) {
        if self.values[column].is_empty()
            && let Some(value) = self.value_of(text)
            && !self.empty_values_of[column].iter().any(|empty| empty == value)
        {
            value.clone_into(&mut self.values[column]);
            self.kinds[column] = kind;
        }
    }

    fn push_attribute(&mut self, column: &str, name: &str, text: &str, kind: ValueKind) {
        if let Some(text) = self.value_of(text).map(str::to_owned) {
            self.attributes.push(NamedValue { column: column.to_owned(), name: name.to_owned(), text, kind });
        }
    }
}

/// The columns of a file with a header.
struct Header {
    names: Vec<String>,
    /// The indices in the file of each mapped column's names, in their order.
    indices: Vec<Vec<usize>>,
    /// Indices of columns of patterns, with the names of their attributes.
    attributes: Vec<(usize, String)>,
    /// Whether the file has each mapped column, and then whether it has one of each pattern.
    found: Vec<bool>,
}

impl Header {
    /// Looks the mapped columns up. A column that is there twice is an error.
    fn new(path: &Path, names: Vec<String>, selection: &Selection<'_>) -> Result<Self, ImportError> {
        let mut indices = Vec::with_capacity(selection.columns.len());
        for column in &selection.columns {
            let mut of_column = Vec::new();
            for wanted in column.names {
                let mut found = names.iter().enumerate().filter(|(_, name)| *name == wanted).map(|(index, _)| index);
                of_column.extend(found.next());
                if let (Some(first), Some(second)) = (of_column.last(), found.next()) {
                    return Err(ImportError::TwoColumns {
                        path: path.to_owned(),
                        column: wanted.clone(),
                        key: column.key,
                        first: first + 1,
                        second: second + 1,
                    });
                }
            }
            indices.push(of_column);
        }
        let mut found: Vec<bool> = indices.iter().map(|indices| !indices.is_empty()).collect();
        let mut attributes = Vec::new();
        for wildcard in &selection.wildcards {
            let of_pattern = |(index, name): (usize, &String)| Some((index, wildcard.name_of(name)?));
            let before = attributes.len();
            attributes.extend(names.iter().enumerate().filter_map(of_pattern));
            found.push(attributes.len() > before);
        }
        Ok(Self { names, indices, attributes, found })
    }

    fn columns(&self) -> (&[bool], &[String]) {
        (&self.found, &self.names)
    }
}
