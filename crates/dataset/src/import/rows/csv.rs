//! Rows of separated values.
use super::{Buffers, Header, RowProblem, Selection, ValueKind};
use crate::import::ImportError;
use csv::StringRecord;
use std::{
    io::{self, BufRead, BufReader, Read},
    path::Path,
};

/// The separators of columns that are recognised by the header.
const SEPARATORS: [u8; 3] = [b',', b';', b'\t'];
/// Greatest length of a header, in bytes, whose separator is recognised.
const HEADER_BYTES_MAX: u64 = 1 << 20;
/// The record after the last one of the file. It becomes part of a value whose quotes do not end.
const END: &str = "\u{1c}end of file\u{1c}";

pub(super) struct Csv {
    reader: csv::Reader<Box<dyn Read>>,
    header: Header,
    record: StringRecord,
}

impl Csv {
    pub(super) fn open(path: &Path, reader: Box<dyn Read>, selection: &Selection<'_>) -> Result<Self, ImportError> {
        let broken = |problem: RowProblem| {
            let (RowProblem::Broken(message) | RowProblem::Truncated(message)) = problem;
            ImportError::Broken { path: path.to_owned(), line: 1, message }
        };
        let mut reader = BufReader::new(reader);
        let mut first_line = Vec::new();
        let read = reader.by_ref().take(HEADER_BYTES_MAX).read_until(b'\n', &mut first_line);
        read.map_err(|error| broken(RowProblem::of_io(&error)))?;
        let separator = separator(&first_line, selection);
        let content = io::Cursor::new(first_line).chain(reader).chain(io::Cursor::new(format!("\n{END}\n")));
        let content: Box<dyn Read> = Box::new(content);
        let mut reader = csv::ReaderBuilder::new().delimiter(separator).flexible(true).from_reader(content);
        let header = reader.headers().map_err(|error| broken(problem_of(&error)))?;
        if header.is_empty() || is_end(header) {
            return Err(ImportError::Empty { path: path.to_owned() });
        }
        let header = Header::new(path, names(header), selection)?;
        Ok(Self { reader, header, record: StringRecord::new() })
    }

    pub(super) fn next(&mut self, line: &mut u64, buffers: &mut Buffers) -> Result<bool, RowProblem> {
        let read = self.reader.read_record(&mut self.record);
        *line = match &read {
            Ok(_) => self.record.position().map_or(*line + 1, csv::Position::line),
            Err(error) => error.position().map_or(*line + 1, csv::Position::line),
        };
        if !read.map_err(|error| problem_of(&error))? || is_end(&self.record) {
            return Ok(false);
        }
        if self.record.iter().any(|value| value.contains(END)) {
            return Err(RowProblem::Truncated("a value in quotes does not end".to_owned()));
        }
        let (found, expected) = (self.record.len(), self.header.names.len());
        if found != expected {
            let message = format!("it has {found} values, and the header has {expected}");
            let mut next = StringRecord::new();
            let is_last = found < expected && self.reader.read_record(&mut next).is_ok_and(|_| is_end(&next));
            return Err(if is_last { RowProblem::Truncated(message) } else { RowProblem::Broken(message) });
        }
        for (column, indices) in self.header.indices.iter().enumerate() {
            for index in indices {
                buffers.set(column, self.record.get(*index).unwrap_or_default(), ValueKind::Text);
            }
        }
        for (index, name) in &self.header.attributes {
            let text = self.record.get(*index).unwrap_or_default();
            buffers.push_attribute(&self.header.names[*index], name, text, ValueKind::Text);
        }
        Ok(true)
    }

    pub(super) fn columns(&self) -> (&[bool], &[String]) {
        self.header.columns()
    }
}

fn is_end(record: &StringRecord) -> bool {
    record.len() == 1 && record.get(0) == Some(END)
}

fn names(header: &StringRecord) -> Vec<String> {
    header.iter().map(|name| name.trim().to_owned()).collect()
}

/// Returns the separator with which the header has the most of the mapped columns, and the most columns.
fn separator(first_line: &[u8], selection: &Selection<'_>) -> u8 {
    let found = |separator: u8| {
        let mut reader = csv::ReaderBuilder::new().delimiter(separator).from_reader(first_line);
        let Ok(header) = reader.headers() else { return (0, 0) };
        let names = names(header);
        let is_found = |column: &&super::Column<'_>| column.names.iter().any(|name| names.contains(name));
        (selection.columns.iter().filter(is_found).count(), names.len())
    };
    // The first of equal ones.
    SEPARATORS.into_iter().rev().max_by_key(|separator| found(*separator)).unwrap_or(b',')
}

fn problem_of(error: &csv::Error) -> RowProblem {
    match error.kind() {
        csv::ErrorKind::Utf8 { .. } => RowProblem::Broken(format!(
            "{error}; set file.encoding in the mapping to the encoding of the file, such as `windows-1252`"
        )),
        csv::ErrorKind::Io(error) => RowProblem::of_io(error),
        _ => RowProblem::Broken(error.to_string()),
    }
}
