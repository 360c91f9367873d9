//! Rows of a Parquet file.
use super::{
    Buffers, Header, RowProblem, Selection, ValueKind,
    cells::{kind_of, write_cell},
};
use crate::import::ImportError;
use std::{fs::File, path::Path};

pub(super) struct ParquetRows {
    reader: parquet::arrow::arrow_reader::ParquetRecordBatchReader,
    header: Header,
    /// The index in the batches, which have the mapped columns only, of each column of the file.
    in_batch: Vec<Option<usize>>,
    kinds: Vec<ValueKind>,
    batch: Option<arrow_array::RecordBatch>,
    row: usize,
}

impl ParquetRows {
    pub(super) fn open(path: &Path, selection: &Selection<'_>) -> Result<Self, ImportError> {
        use parquet::arrow::{ProjectionMask, arrow_reader::ParquetRecordBatchReaderBuilder};
        let io = |source| ImportError::Io { path: path.to_owned(), source };
        let broken = |message: String| ImportError::Broken { path: path.to_owned(), line: 0, message };
        let builder = ParquetRecordBatchReaderBuilder::try_new(File::open(path).map_err(io)?)
            .map_err(|error| broken(error.to_string()))?;
        let fields = builder.schema().fields();
        let names: Vec<String> = fields.iter().map(|field| field.name().clone()).collect();
        let kinds: Vec<ValueKind> = fields.iter().map(|field| kind_of(field.data_type())).collect();
        let header = Header::new(path, names, selection)?;
        let attributes = header.attributes.iter().map(|(index, _)| *index);
        let mut read: Vec<usize> = header.indices.iter().flatten().copied().chain(attributes).collect();
        read.sort_unstable();
        read.dedup();
        let in_batch = (0..kinds.len()).map(|index| read.binary_search(&index).ok()).collect();
        let mask = ProjectionMask::roots(builder.parquet_schema(), read);
        let reader = builder.with_projection(mask).build().map_err(|error| broken(error.to_string()))?;
        Ok(Self { reader, header, in_batch, kinds, batch: None, row: 0 })
    }

    pub(super) fn next(&mut self, line: &mut u64, buffers: &mut Buffers) -> Result<bool, RowProblem> {
        *line += 1;
        while self.batch.as_ref().is_none_or(|batch| self.row == batch.num_rows()) {
            self.row = 0;
            self.batch = match self.reader.next() {
                Some(batch) => Some(batch.map_err(|error| RowProblem::Broken(error.to_string()))?),
                None => return Ok(false),
            };
        }
        let Some(batch) = &self.batch else { return Ok(false) };
        let text = |index: usize| {
            let mut text = String::new();
            if let Some(column) = self.in_batch[index] {
                let name = &self.header.names[index];
                write_cell(&mut text, batch.column(column), self.row)
                    .map_err(|problem| RowProblem::Broken(format!("column `{name}`: {problem}")))?;
            }
            Ok((text, self.kinds[index]))
        };
        for (column, indices) in self.header.indices.iter().enumerate() {
            for index in indices {
                let (text, kind) = text(*index)?;
                buffers.set(column, &text, kind);
            }
        }
        for (index, name) in &self.header.attributes {
            let (text, kind) = text(*index)?;
            buffers.push_attribute(&self.header.names[*index], name, &text, kind);
        }
        self.row += 1;
        Ok(true)
    }

    pub(super) fn columns(&self) -> (&[bool], &[String]) {
        self.header.columns()
    }
}
