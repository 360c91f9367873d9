//! Reads and writes Parquet files as batches of typed columns.
use super::DatasetError;
use arrow_array::{Array, ArrayRef, BooleanArray, Float64Array, Int64Array, ListArray, RecordBatch, StringArray};
use arrow_schema::{Field, Schema};
use bytes::Bytes;
use lodestone_events::storage;
use parquet::{
    arrow::{
        ArrowWriter,
        arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder},
    },
    basic::{Compression, ZstdLevel},
    file::{properties::WriterProperties, reader::ChunkReader},
};
use rayon::prelude::*;
use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Number of rows of a row group. Several threads read a file, each another group.
const GROUP_ROWS: usize = 32_768;
/// Number of rows that are read at once.
const BATCH_ROWS: usize = 16_384;

/// One batch of a file, with its path and row offset for error messages.
pub(super) struct Columns<'a> {
    path: &'a Path,
    batch: RecordBatch,
    /// The number of rows of the file before this batch.
    pub first_row: usize,
}

impl Columns<'_> {
    pub(crate) fn len(&self) -> usize {
        self.batch.num_rows()
    }

    fn column(&self, name: &'static str) -> Result<&ArrayRef, DatasetError> {
        self.batch.column_by_name(name).ok_or_else(|| DatasetError::MissingColumn {
            path: self.path.to_owned(),
            column: name,
            found: self.batch.schema().fields().iter().map(|f| f.name().as_str()).collect::<Vec<_>>().join(", "),
        })
    }

    fn typed<T: 'static>(&self, name: &'static str, expected: &'static str) -> Result<&T, DatasetError> {
        let column = self.column(name)?;
        column.as_any().downcast_ref::<T>().ok_or_else(|| DatasetError::WrongType {
            path: self.path.to_owned(),
            column: name,
            found: column.data_type().to_string(),
            expected,
        })
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.batch.column_by_name(name).is_some()
    }

    pub(crate) fn texts(&self, name: &'static str) -> Result<&StringArray, DatasetError> {
        self.typed(name, "text")
    }

    pub(crate) fn integers(&self, name: &'static str) -> Result<&Int64Array, DatasetError> {
        self.typed(name, "64-bit integers")
    }

    pub(crate) fn numbers(&self, name: &'static str) -> Result<&Float64Array, DatasetError> {
        self.typed(name, "64-bit numbers")
    }

    /// Returns the numbers of a column of 64-bit numbers or integers; `None` for a null.
    pub(crate) fn amounts(&self, name: &'static str) -> Result<Vec<Option<f64>>, DatasetError> {
        if let Some(integers) = self.column(name)?.as_any().downcast_ref::<Int64Array>() {
            return Ok(integers.iter().map(|value| value.map(|value| value as f64)).collect());
        }
        Ok(self.numbers(name)?.iter().collect())
    }

    pub(crate) fn flags(&self, name: &'static str) -> Result<&BooleanArray, DatasetError> {
        self.typed(name, "flags")
    }

    pub(crate) fn lists(&self, name: &'static str) -> Result<&ListArray, DatasetError> {
        self.typed(name, "lists of text")
    }

    pub(crate) fn bad(&self, row: usize, column: &'static str, problem: String) -> DatasetError {
        DatasetError::Value { path: self.path.to_owned(), row: self.first_row + row + 1, column, problem }
    }
}

/// Returns the texts of a row of a list column.
pub(super) fn list_texts(lists: &ListArray, row: usize) -> impl Iterator<Item = &str> {
    let texts = lists.values().as_any().downcast_ref::<StringArray>();
    let [start, end] = [row, row + 1].map(|at| lists.value_offsets()[at] as usize);
    texts.into_iter().flat_map(move |texts| (start..end).filter_map(|at| optional(texts, at)))
}

/// Returns the text of a row, or `None` for a null.
pub(super) fn optional(texts: &StringArray, row: usize) -> Option<&str> {
    (!texts.is_null(row)).then(|| texts.value(row))
}

/// Calls `visit` with each batch of a file in order. A file without rows is an error.
pub(super) fn read(
    path: &Path,
    mut visit: impl FnMut(&Columns) -> Result<(), DatasetError>,
) -> Result<(), DatasetError> {
    let (file, metadata) = open(path)?;
    let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(file, metadata);
    match visit_batches(path, builder, 0, &mut visit)? {
        0 => Err(DatasetError::Empty { path: path.to_owned() }),
        _ => Ok(()),
    }
}

/// Returns what `read_batch` appends for each batch of a file with this content, in their order. Reads the row groups on all
/// threads of the current rayon pool. A file without rows is an error.
pub(super) fn read_in_parallel<T: Send>(
    path: &Path,
    content: Bytes,
    read_batch: impl Fn(&Columns, &mut Vec<T>) -> Result<(), DatasetError> + Sync,
) -> Result<Vec<T>, DatasetError> {
    let metadata = metadata_of(path, &content)?;
    let mut row_count = 0;
    let groups = metadata.metadata().row_groups().iter().map(|group| {
        let first_row = row_count;
        row_count += group.num_rows() as usize;
        first_row
    });
    let first_rows: Vec<usize> = groups.collect();
    let read_group = |(group, first_row): (usize, usize)| {
        let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(content.clone(), metadata.clone());
        let mut rows = Vec::new();
        visit_batches(path, builder.with_row_groups(vec![group]), first_row, &mut |columns| {
            rows.reserve(columns.len());
            read_batch(columns, &mut rows)
        })?;
        Ok::<_, DatasetError>(rows)
    };
    let groups: Vec<Vec<T>> =
        first_rows.into_par_iter().enumerate().map(read_group).collect::<Result<_, DatasetError>>()?;
    let mut rows = Vec::with_capacity(groups.iter().map(Vec::len).sum());
    groups.into_iter().for_each(|mut group| rows.append(&mut group));
    if rows.is_empty() { Err(DatasetError::Empty { path: path.to_owned() }) } else { Ok(rows) }
}

fn open(path: &Path) -> Result<(File, ArrowReaderMetadata), DatasetError> {
    let file = File::open(path).map_err(|source| DatasetError::Io { path: path.to_owned(), source })?;
    let metadata = metadata_of(path, &file)?;
    Ok((file, metadata))
}

fn metadata_of(path: &Path, content: &impl ChunkReader) -> Result<ArrowReaderMetadata, DatasetError> {
    let metadata = ArrowReaderMetadata::load(content, ArrowReaderOptions::default());
    metadata.map_err(|error| DatasetError::Parquet { path: path.to_owned(), message: error.to_string() })
}

/// Calls `visit` with each batch of a reader whose first row is `first_row` of the file. Returns the number of rows.
fn visit_batches(
    path: &Path,
    builder: ParquetRecordBatchReaderBuilder<impl ChunkReader + 'static>,
    first_row: usize,
    visit: &mut dyn FnMut(&Columns) -> Result<(), DatasetError>,
) -> Result<usize, DatasetError> {
    let parquet = |message: String| DatasetError::Parquet { path: path.to_owned(), message };
    let mut row_count = 0;
    for batch in builder.with_batch_size(BATCH_ROWS).build().map_err(|error| parquet(error.to_string()))? {
        let batch = batch.map_err(|error| parquet(error.to_string()))?;
        let columns = Columns { path, batch, first_row: first_row + row_count };
        row_count += columns.len();
        visit(&columns)?;
    }
    Ok(row_count)
}

/// Returns the number of rows of a file without reading them.
pub(super) fn count(path: &Path) -> Result<u64, DatasetError> {
    let parquet = |message: String| DatasetError::Parquet { path: path.to_owned(), message };
    let file = File::open(path).map_err(|source| DatasetError::Io { path: path.to_owned(), source })?;
    let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|error| parquet(error.to_string()))?;
    let count = builder.metadata().file_metadata().num_rows();
    u64::try_from(count).map_err(|_| parquet(format!("it states {count} rows")))
}

/// The values of a column.
pub enum Cells {
    Texts(Vec<String>),
    Integers(Vec<i64>),
    Numbers(Vec<Option<f64>>),
    Flags(Vec<bool>),
}

/// Writes named columns of equal length to a file.
pub fn write_table(path: &Path, columns: Vec<(String, Cells)>) -> Result<(), DatasetError> {
    let column = |(name, cells): (String, Cells)| {
        let array: ArrayRef = match cells {
            Cells::Texts(texts) => Arc::new(StringArray::from(texts)),
            Cells::Integers(integers) => Arc::new(Int64Array::from(integers)),
            Cells::Numbers(numbers) => Arc::new(Float64Array::from(numbers)),
            Cells::Flags(flags) => Arc::new(BooleanArray::from(flags)),
        };
        (Field::new(name, array.data_type().clone(), true), array)
    };
    let (fields, arrays): (Vec<Field>, Vec<ArrayRef>) = columns.into_iter().map(column).unzip();
    write(path, Schema::new(fields), arrays)
}

/// Writes named columns of equal length as a comma-separated file with a header.
pub fn write_csv(path: &Path, columns: Vec<(String, Cells)>) -> Result<(), DatasetError> {
    let io = |error: csv::Error| DatasetError::Io { path: path.to_owned(), source: error.into() };
    let file = storage::create_private(path).map_err(|source| DatasetError::Io { path: path.to_owned(), source })?;
    let mut writer = csv::Writer::from_writer(file);
    writer.write_record(columns.iter().map(|(name, _)| name)).map_err(io)?;
    let rows = columns.first().map_or(0, |(_, cells)| cells.len());
    for row in 0..rows {
        writer.write_record(columns.iter().map(|(_, cells)| cells.text(row))).map_err(io)?;
    }
    writer.flush().map_err(|source| DatasetError::Io { path: path.to_owned(), source })
}

impl Cells {
    fn len(&self) -> usize {
        match self {
            Self::Texts(cells) => cells.len(),
            Self::Integers(cells) => cells.len(),
            Self::Numbers(cells) => cells.len(),
            Self::Flags(cells) => cells.len(),
        }
    }

    /// Empty if the cell is null.
    fn text(&self, row: usize) -> String {
        match self {
            Self::Texts(cells) => cells[row].clone(),
            Self::Integers(cells) => cells[row].to_string(),
            Self::Numbers(cells) => cells[row].map_or(String::new(), |number| number.to_string()),
            Self::Flags(cells) => cells[row].to_string(),
        }
    }
}

/// Writes one batch to a private file.
pub(super) fn write(path: &Path, schema: Schema, columns: Vec<ArrayRef>) -> Result<(), DatasetError> {
    write_to(path, storage::create_private, schema, columns)
}

/// Writes one batch to a file that `create` creates.
pub(super) fn write_to(
    path: &Path,
    create: fn(&Path) -> io::Result<File>,
    schema: Schema,
    columns: Vec<ArrayRef>,
) -> Result<(), DatasetError> {
    let file = create(path).map_err(|source| DatasetError::Io { path: path.to_owned(), source })?;
    let mut rows = ParquetRows::of_file(path, file, schema)?;
    rows.write(columns)?;
    rows.finish()
}

/// Writes a file batch by batch.
pub(super) struct ParquetRows {
    path: PathBuf,
    schema: Arc<Schema>,
    writer: ArrowWriter<File>,
    file: File,
}

impl ParquetRows {
    /// Creates a private file: events have user ids.
    pub(crate) fn create(path: &Path, schema: Schema) -> Result<Self, DatasetError> {
        let file = storage::create_private(path);
        Self::of_file(path, file.map_err(|source| DatasetError::Io { path: path.to_owned(), source })?, schema)
    }

    fn of_file(path: &Path, file: File, schema: Schema) -> Result<Self, DatasetError> {
        let io = |source| DatasetError::Io { path: path.to_owned(), source };
        let schema = Arc::new(schema);
        let same = file.try_clone().map_err(io)?;
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::default()))
            .set_max_row_group_row_count(Some(GROUP_ROWS))
            .build();
        let writer = ArrowWriter::try_new(same, schema.clone(), Some(properties));
        let writer = writer.map_err(|e| DatasetError::Parquet { path: path.to_owned(), message: e.to_string() })?;
        Ok(Self { path: path.to_owned(), schema, writer, file })
    }

    pub(crate) fn write(&mut self, columns: Vec<ArrayRef>) -> Result<(), DatasetError> {
        let batch = RecordBatch::try_new(self.schema.clone(), columns).map_err(|e| self.parquet(e.to_string()))?;
        self.writer.write(&batch).map_err(|e| self.parquet(e.to_string()))
    }

    /// Completes the file. On `Ok` it is durable.
    pub(crate) fn finish(mut self) -> Result<(), DatasetError> {
        self.writer.finish().map_err(|e| self.parquet(e.to_string()))?;
        self.file.sync_all().map_err(|source| DatasetError::Io { path: self.path.clone(), source })
    }

    fn parquet(&self, message: String) -> DatasetError {
        DatasetError::Parquet { path: self.path.clone(), message }
    }
}
