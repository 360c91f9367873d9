//! Reads logged decisions about incentives with their outcomes, for the comparison of policies.
use crate::decompress;
use ahash::AHashMap;
use arrow_array::{
    Array, ArrayRef, BooleanArray, Float32Array, Float64Array, Int8Array, Int16Array, Int32Array, Int64Array,
    LargeStringArray, StringArray, UInt8Array, UInt16Array, UInt32Array, UInt64Array,
};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use std::{
    fs::File,
    io::{BufReader, Read},
    path::{Path, PathBuf},
};

/// Names of the file in a data directory; the first that exists is read.
const FILES: [&str; 4] = ["decisions.parquet", "decisions.csv", "decisions.csv.gz", "decisions.csv.zst"];
const USER: &str = "user_id";
const TREATMENT: &str = "treatment";
const PROPENSITY: &str = "propensity";
const PURCHASE: &str = "purchase";
const VALUE: &str = "value";
const COST: &str = "cost";
const CURRENCY: &str = "currency";
const REQUIRED: [&str; 6] = [USER, TREATMENT, PROPENSITY, PURCHASE, VALUE, COST];
/// The treatment without an incentive.
const NONE: &str = "none";
/// Largest value and cost, in the currency's unit.
const AMOUNT_MAX: f64 = 1e12;

/// One decision.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DecisionRow {
    /// Position in the order in which users appear.
    pub user: u32,
    /// 0: none; otherwise the position in `incentives`, counted from 1.
    pub treatment: usize,
    pub propensity: f64,
    pub has_purchase: bool,
    /// In the currency's unit.
    pub value: f64,
    pub cost: f64,
}

/// The decisions of a file.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Decisions {
    /// Names of the features: all other columns.
    pub features: Vec<String>,
    /// Names of the treatments other than `none`, sorted.
    pub incentives: Vec<String>,
    /// Empty if the file has no currency.
    pub currency: String,
    pub user_count: usize,
    /// With the features of each row.
    pub rows: Vec<(DecisionRow, Vec<f64>)>,
}

/// The reason why a file of decisions cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum DecisionFileError {
    #[error("{directory}: none of the files {} exists", FILES.join(", "))]
    NoFile { directory: PathBuf },
    #[error("{path}: {message}")]
    Read { path: PathBuf, message: String },
    #[error("{path}: the file has no rows; a header and at least one decision are needed")]
    Empty { path: PathBuf },
    #[error("{path}: column `{column}` is missing; needed: {}; found: {found}", REQUIRED.join(", "))]
    MissingColumn { path: PathBuf, column: &'static str, found: String },
    #[error("{path}: column `{column}` has the type {found}; expected text, integers, 32- or 64-bit numbers, or flags")]
    ColumnType { path: PathBuf, column: String, found: String },
    #[error("{path}: row {row}, column `{column}`: `{value}` is not {limit}")]
    Value { path: PathBuf, row: usize, column: String, value: String, limit: String },
}

/// Reads the decisions of a data directory: `decisions.parquet`, or `decisions.csv` (also `.gz` or `.zst`) with a header.
///
/// Columns: `user_id` (text); `treatment`: the name of the incentive, or `none`; `propensity`: the probability of this
/// treatment when it was chosen, 0.001 to 1; `purchase`: 0 or 1 within the horizon; `value` of its purchases and `cost`
/// of its incentive, 0 if it was not redeemed, in the currency's unit; optional `currency`, the same in all rows. All
/// other columns are features, which are numbers and known before the decision.
pub fn read_decisions(directory: &Path) -> Result<Decisions, DecisionFileError> {
    let path = FILES.iter().map(|name| directory.join(name)).find(|path| path.exists());
    let path = path.ok_or_else(|| DecisionFileError::NoFile { directory: directory.to_owned() })?;
    let error = |message: String| DecisionFileError::Read { path: path.clone(), message };
    let file = File::open(&path).map_err(|source| error(source.to_string()))?;
    match path.extension().is_some_and(|extension| extension == "parquet") {
        true => {
            let reader = ParquetRecordBatchReaderBuilder::try_new(file).and_then(|builder| builder.build());
            let mut table: Option<Table> = None;
            for batch in reader.map_err(|source| error(source.to_string()))? {
                let batch = batch.map_err(|source| error(source.to_string()))?;
                let names: Vec<String> = batch.schema().fields().iter().map(|field| field.name().clone()).collect();
                let cells = |(name, column): (&String, &ArrayRef)| {
                    cells(column).ok_or_else(|| DecisionFileError::ColumnType {
                        path: path.clone(),
                        column: name.clone(),
                        found: column.data_type().to_string(),
                    })
                };
                let cells = names.iter().zip(batch.columns()).map(cells).collect::<Result<Vec<_>, _>>()?;
                if table.is_none() {
                    table = Some(Table::new(&path, names)?);
                }
                if let Some(table) = &mut table {
                    for row in 0..batch.num_rows() {
                        let record: Vec<&str> = cells.iter().map(|column| column[row].as_str()).collect();
                        table.add(&record)?;
                    }
                }
            }
            table.ok_or_else(|| DecisionFileError::Empty { path: path.clone() })?.finish()
        }
        false => {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let (_, reader) = decompress(&name, file).map_err(|source| error(source.to_string()))?;
            read_csv(&path, BufReader::new(reader))
        }
    }
}

fn read_csv(path: &Path, reader: impl Read) -> Result<Decisions, DecisionFileError> {
    let error = |source: csv::Error| DecisionFileError::Read { path: path.to_owned(), message: source.to_string() };
    let mut csv = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(reader);
    let names = csv.headers().map_err(error)?.iter();
    let names: Vec<String> = names.map(|name| name.trim_start_matches('\u{feff}').to_owned()).collect();
    if names.iter().all(String::is_empty) {
        return Err(DecisionFileError::Empty { path: path.to_owned() });
    }
    let mut table = Table::new(path, names)?;
    let mut record = csv::StringRecord::new();
    while csv.read_record(&mut record).map_err(error)? {
        table.add(&record.iter().collect::<Vec<_>>())?;
    }
    table.finish()
}

/// Returns the texts of a Parquet column, in the form of a CSV file. None if it has another type.
fn cells(column: &dyn Array) -> Option<Vec<String>> {
    fn texts<T: ToString>(values: impl Iterator<Item = Option<T>>) -> Vec<String> {
        values.map(|value| value.map_or(String::new(), |value| value.to_string())).collect()
    }
    macro_rules! first_of {
        ($($array:ty),*) => {
            $(if let Some(column) = column.as_any().downcast_ref::<$array>() {
                return Some(texts(column.iter()));
            })*
        };
    }
    first_of!(StringArray, LargeStringArray, Float64Array, Float32Array);
    first_of!(Int64Array, Int32Array, Int16Array, Int8Array, UInt64Array, UInt32Array, UInt16Array, UInt8Array);
    column.as_any().downcast_ref::<BooleanArray>().map(|column| texts(column.iter().map(|flag| flag.map(u8::from))))
}

/// The rows that were read so far.
struct Table<'a> {
    path: &'a Path,
    names: Vec<String>,
    /// Positions of the columns of [`REQUIRED`].
    required: [usize; 6],
    currency: Option<usize>,
    features: Vec<usize>,
    users: AHashMap<String, u32>,
    treatments: AHashMap<String, usize>,
    /// In the order in which they appear.
    incentives: Vec<String>,
    decisions: Decisions,
}

impl<'a> Table<'a> {
    fn new(path: &'a Path, names: Vec<String>) -> Result<Self, DecisionFileError> {
        let position = |wanted: &str| names.iter().position(|name| name == wanted);
        let mut required = [0; 6];
        for (position_of, column) in required.iter_mut().zip(REQUIRED) {
            *position_of = position(column).ok_or_else(|| DecisionFileError::MissingColumn {
                path: path.to_owned(),
                column,
                found: names.join(", "),
            })?;
        }
        let currency = position(CURRENCY);
        let is_feature = |index: &usize| !required.contains(index) && currency != Some(*index);
        let features: Vec<usize> = (0..names.len()).filter(is_feature).collect();
        let decisions = Decisions {
            features: features.iter().map(|index| names[*index].clone()).collect(),
            ..Decisions::default()
        };
        Ok(Self {
            path,
            required,
            currency,
            features,
            users: AHashMap::new(),
            treatments: AHashMap::from_iter([(NONE.to_owned(), 0)]),
            incentives: Vec::new(),
            decisions,
            names,
        })
    }

    fn add(&mut self, record: &[&str]) -> Result<(), DecisionFileError> {
        let row = self.decisions.rows.len() + 1;
        let bad = |index: usize, limit: &str| DecisionFileError::Value {
            path: self.path.to_owned(),
            row,
            column: self.names[index].clone(),
            value: record[index].to_owned(),
            limit: limit.to_owned(),
        };
        let number = |index: usize, range: std::ops::RangeInclusive<f64>, limit: &str| {
            let value = record[index].parse::<f64>().ok().filter(|value| range.contains(value));
            value.ok_or_else(|| bad(index, limit))
        };
        let [user, treatment, propensity, purchase, value, cost] = self.required;
        if record[user].is_empty() {
            return Err(bad(user, "the id of a user"));
        }
        if record[treatment].is_empty() {
            return Err(bad(treatment, "the name of an incentive, or `none`"));
        }
        if let Some(index) = self.currency {
            match self.decisions.currency.as_str() {
                "" if row == 1 => self.decisions.currency = record[index].to_owned(),
                first if first != record[index] => {
                    return Err(bad(index, &format!("`{first}`, the currency of the first row; convert the values")));
                }
                _ => {}
            }
        }
        let row = DecisionRow {
            user: 0,
            treatment: 0,
            propensity: number(propensity, 0.001..=1.0, "a probability from 0.001 to 1")?,
            has_purchase: match record[purchase] {
                "0" | "0.0" | "false" => false,
                "1" | "1.0" | "true" => true,
                _ => return Err(bad(purchase, "0 or 1")),
            },
            value: number(value, 0.0..=AMOUNT_MAX, "a number from 0 to 10^12")?,
            cost: number(cost, 0.0..=AMOUNT_MAX, "a number from 0 to 10^12")?,
        };
        if record[treatment] == NONE && row.cost > 0.0 {
            return Err(bad(cost, "0 although the treatment is `none`"));
        }
        let feature = |index: &usize| number(*index, f64::MIN..=f64::MAX, "a finite number; it is a feature");
        let features = self.features.iter().map(feature).collect::<Result<Vec<_>, _>>()?;
        let next_user = self.users.len() as u32;
        let user = *self.users.entry(record[user].to_owned()).or_insert(next_user);
        let treatment = match self.treatments.get(record[treatment]) {
            Some(number) => *number,
            None => {
                self.incentives.push(record[treatment].to_owned());
                self.treatments.insert(record[treatment].to_owned(), self.incentives.len());
                self.incentives.len()
            }
        };
        self.decisions.rows.push((DecisionRow { user, treatment, ..row }, features));
        Ok(())
    }

    fn finish(mut self) -> Result<Decisions, DecisionFileError> {
        if self.decisions.rows.is_empty() {
            return Err(DecisionFileError::Empty { path: self.path.to_owned() });
        }
        let mut order: Vec<usize> = (0..self.incentives.len()).collect();
        order.sort_by(|left, right| self.incentives[*left].cmp(&self.incentives[*right]));
        let mut numbers = vec![0; self.incentives.len() + 1];
        order.iter().enumerate().for_each(|(sorted, appeared)| numbers[appeared + 1] = sorted + 1);
        for (row, _) in &mut self.decisions.rows {
            row.treatment = numbers[row.treatment];
        }
        self.decisions.incentives = order.into_iter().map(|index| self.incentives[index].clone()).collect();
        self.decisions.user_count = self.users.len();
        self.decisions.rows.sort_by_key(|(row, _)| row.user);
        Ok(self.decisions)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Cells, columns, write_table};
    use arrow_array::Date32Array;
    use arrow_schema::{Field, Schema};
    use std::sync::Arc;

    const HEADER: &str = "user_id,treatment,propensity,purchase,value,cost,currency,recency_days\n";

    fn read_text(rows: &str) -> Result<Decisions, DecisionFileError> {
        read_csv(Path::new("decisions.csv"), format!("{HEADER}{rows}").as_bytes())
    }

    #[test]
    fn both_formats_have_the_same_rows() {
        let read =
            read_text("b,percent,0.5,1,20.5,2,EUR,3\na,none,0.5,0,0,0,EUR,9\nb,gift,0.25,0,0,0,EUR,4\n").unwrap();
        assert_eq!(read.incentives, ["gift", "percent"]);
        assert_eq!(
            (read.features.as_slice(), read.currency.as_str(), read.user_count),
            (&["recency_days".to_owned()][..], "EUR", 2)
        );
        assert_eq!(
            read.rows.iter().map(|(row, _)| (row.user, row.treatment)).collect::<Vec<_>>(),
            [(0, 2), (0, 1), (1, 0)]
        );
        let directory = tempfile::tempdir().unwrap();
        let texts = |of: [&str; 3]| Cells::Texts(of.map(str::to_owned).into());
        let numbers = |of: [f64; 3]| Cells::Numbers(of.map(Some).into());
        let columns = [
            ("user_id", texts(["b", "a", "b"])),
            ("treatment", texts(["percent", "none", "gift"])),
            ("propensity", numbers([0.5, 0.5, 0.25])),
            ("purchase", Cells::Flags(vec![true, false, false])),
            ("value", numbers([20.5, 0.0, 0.0])),
            ("cost", Cells::Integers(vec![2, 0, 0])),
            ("currency", texts(["EUR"; 3])),
            ("recency_days", Cells::Integers(vec![3, 9, 4])),
        ];
        let columns = columns.into_iter().map(|(name, cells)| (name.to_owned(), cells)).collect();
        write_table(&directory.path().join("decisions.parquet"), columns).unwrap();
        assert_eq!(read_decisions(directory.path()).unwrap(), read);
    }

    #[test]
    fn bad_files_are_reported_with_field_value_and_limit() {
        for (rows, expected) in [
            ("", "decisions.csv: the file has no rows; a header and at least one decision are needed"),
            ("a,none,0,0,0,0,EUR,1\n", "row 1, column `propensity`: `0` is not a probability from 0.001 to 1"),
            ("a,none,NaN,0,0,0,EUR,1\n", "row 1, column `propensity`: `NaN` is not a probability from 0.001 to 1"),
            ("a,none,1,2,0,0,EUR,1\n", "row 1, column `purchase`: `2` is not 0 or 1"),
            ("a,x,1,1,-3,0,EUR,1\n", "row 1, column `value`: `-3` is not a number from 0 to 10^12"),
            ("a,none,1,1,3,1,EUR,1\n", "row 1, column `cost`: `1` is not 0 although the treatment is `none`"),
            ("a,x,1,1,3,1,EUR,far\n", "row 1, column `recency_days`: `far` is not a finite number; it is a feature"),
            (
                "a,x,1,1,3,1,EUR,1\nb,x,1,1,3,1,USD,1\n",
                "row 2, column `currency`: `USD` is not `EUR`, the currency of the first row; convert the values",
            ),
        ] {
            let message = read_text(rows).unwrap_err().to_string();
            assert!(message.ends_with(expected), "{message}");
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("decisions.parquet");
        let of_type = |array: ArrayRef| {
            let schema = Schema::new(vec![Field::new("recency_days", array.data_type().clone(), true)]);
            columns::write(&path, schema, vec![array]).unwrap();
            read_decisions(directory.path()).unwrap_err().to_string()
        };
        let message = of_type(Arc::new(Date32Array::from(vec![1])));
        let expected =
            "column `recency_days` has the type Date32; expected text, integers, 32- or 64-bit numbers, or flags";
        assert!(message.ends_with(expected), "{message}");
        let message = of_type(Arc::new(Int8Array::from(vec![1])));
        assert!(message.contains("column `user_id` is missing"), "{message}");
        let message = read_csv(Path::new("decisions.csv"), "user_id,treatment\n".as_bytes()).unwrap_err().to_string();
        assert!(message.contains("column `propensity` is missing"), "{message}");
        let directory = tempfile::tempdir().unwrap();
        let message = read_decisions(directory.path()).unwrap_err().to_string();
        assert!(message.contains("none of the files decisions.parquet"), "{message}");
    }
}
