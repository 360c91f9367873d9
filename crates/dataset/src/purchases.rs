//! Reads the purchases of customers from a text file, for models of repeat purchases.
use crate::decompress;
use ahash::AHashMap;
use jiff::civil::{Date, DateTime, date};
use std::{
    fs::File,
    io::{self, BufRead, BufReader},
    path::{Path, PathBuf},
};

/// Names of each column, in the order of preference. The first that the header has is read.
const CUSTOMER: &[&str] = &["customer", "customer_id", "household_id", "user_id", "user"];
const TIME: &[&str] = &["date", "invoice_date", "transaction_timestamp", "redemption_date", "timestamp", "time"];
const VALUE: &[&str] = &["value", "dollars", "sales_value", "amount", "revenue"];
const PRICE: &[&str] = &["price", "unit_price"];
const QUANTITY: &[&str] = &["quantity", "units", "cds"];
const PRODUCT: &[&str] = &["product_id", "stock_code", "item_id"];
const INVOICE: &[&str] = &["invoice", "invoice_id"];
const CURRENCY: &[&str] = &["currency"];

/// Largest absolute value of a row, in the currency's unit.
const VALUE_MAX: f64 = 1e12;
/// Rows between two calls of the progress callback.
const PROGRESS_ROWS: u64 = 20_000;

/// One row of the file that is a purchase.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DatasetPurchase {
    /// Days since 1970-01-01, in the file's own time zone.
    pub day: i32,
    /// In the file's currency, from 0 to 10^12.
    pub value: f64,
    /// Units, or 1 in files with one row per product, so that a day's sum is its number of products.
    pub units: f64,
}

/// The purchases of a file.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CustomerPurchases {
    /// One list per customer, in the order of the file.
    pub customers: Vec<Vec<DatasetPurchase>>,
    /// The ids of the customers.
    pub ids: Vec<String>,
    /// Number of rows after the header.
    pub rows: u64,
    /// Rows that are refunds or cancellations; they are no purchases.
    pub refunds: u64,
    /// Rows without a customer, which are ignored.
    pub without_customer: u64,
    /// Whether the file has values.
    pub has_values: bool,
}

/// The reason why a file of purchases cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum PurchaseFileError {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{path}: the file has no rows; a header and at least one purchase are needed")]
    Empty { path: PathBuf },
    #[error("{path}: no column for {role}; expected one of {expected}; found: {found}")]
    MissingColumn { path: PathBuf, role: &'static str, expected: String, found: String },
    #[error("{path}: line {line}, column `{column}`: `{value}` is not {limit}")]
    Value { path: PathBuf, line: u64, column: String, value: String, limit: String },
    #[error(
        "{path}: line {line}, column `currency`: `{second}`, but earlier rows have `{first}`; convert the values to one currency or split the file"
    )]
    Currencies { path: PathBuf, line: u64, first: String, second: String },
    #[error("{path}: all {refunds} rows with a customer are refunds or cancellations; at least one purchase is needed")]
    OnlyRefunds { path: PathBuf, refunds: u64 },
    #[error("{path}: none of the {rows} rows has a customer in column `{column}`")]
    NoCustomers { path: PathBuf, rows: u64, column: String },
}

/// Positions of the columns.
struct Columns {
    customer: usize,
    time: usize,
    value: Option<usize>,
    price: Option<usize>,
    quantity: Option<usize>,
    has_products: bool,
    invoice: Option<usize>,
    currency: Option<usize>,
    names: Vec<String>,
}

/// Parses the day of a date or a time. Offsets are not accepted, because days are those of the shop.
pub fn parse_day(text: &str) -> Option<i32> {
    let day: Date = text.parse().ok().or_else(|| text.parse::<DateTime>().ok().map(DateTime::date))?;
    day.since(date(1970, 1, 1)).ok().map(|span| span.get_days())
}

/// Formats days since 1970-01-01 as YYYY-MM-DD.
pub fn format_day(day: i32) -> String {
    let span = jiff::Span::new().try_days(day);
    match span.and_then(|span| date(1970, 1, 1).checked_add(span)) {
        Ok(day) => day.to_string(),
        Err(_) => format!("day {day}"),
    }
}

/// Reads a comma- or tab-separated file with a header: plain, `.gz` or `.zst`. The columns are recognised by their
/// names:
///
/// - the customer: `customer`, `customer_id`, `household_id`, `user_id` or `user`
/// - the time: `date`, `invoice_date`, `transaction_timestamp`, `redemption_date`, `timestamp` or `time`, as YYYYMMDD,
///   YYYY-MM-DD or with a time
/// - the value, optional: `value`, `dollars`, `sales_value`, `amount` or `revenue`, or `price` times `quantity`
/// - the units, optional: `quantity`, `units` or `cds`
/// - optional: `invoice` (a leading `C` is a cancellation), `currency`, and `product_id`, `stock_code` or `item_id`
///
/// A row with a negative value or quantity is a refund. `progress` receives the number of rows read.
pub fn read_purchases(path: &Path, progress: &mut dyn FnMut(u64)) -> Result<CustomerPurchases, PurchaseFileError> {
    let io_error = |source| PurchaseFileError::Io { path: path.to_owned(), source };
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let file = File::open(path).map_err(io_error)?;
    let (_, reader) = decompress(&name, file).map_err(io_error)?;
    read(path, BufReader::new(reader), progress)
}

fn read(
    path: &Path,
    mut reader: impl BufRead,
    progress: &mut dyn FnMut(u64),
) -> Result<CustomerPurchases, PurchaseFileError> {
    let io_error = |source| PurchaseFileError::Io { path: path.to_owned(), source };
    // The delimiter is known from the header's first bytes, which a csv reader cannot give back.
    let start = reader.fill_buf().map_err(io_error)?;
    let header = start.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let delimiter = if header.contains(&b'\t') { b'\t' } else { b',' };
    let mut csv = csv::ReaderBuilder::new().delimiter(delimiter).trim(csv::Trim::All).from_reader(reader);
    let columns = Columns::new(path, csv.headers().map_err(|error| io_error(into_io(error)))?)?;
    let mut purchases = CustomerPurchases {
        has_values: columns.value.is_some() || (columns.price.is_some() && columns.quantity.is_some()),
        ..CustomerPurchases::default()
    };
    let mut numbers: AHashMap<String, usize> = AHashMap::new();
    let mut currency: Option<String> = None;
    let mut record = csv::StringRecord::new();
    while csv.read_record(&mut record).map_err(|error| io_error(into_io(error)))? {
        purchases.rows += 1;
        if purchases.rows.is_multiple_of(PROGRESS_ROWS) {
            progress(purchases.rows);
        }
        let line = record.position().map_or(purchases.rows + 1, csv::Position::line);
        let customer = &record[columns.customer];
        if customer.is_empty() {
            purchases.without_customer += 1;
            continue;
        }
        if let Some(found) = columns.currency.map(|index| &record[index]).filter(|found| !found.is_empty()) {
            let first = currency.get_or_insert_with(|| found.to_owned());
            if first != found {
                let (first, second) = (first.clone(), found.to_owned());
                return Err(PurchaseFileError::Currencies { path: path.to_owned(), line, first, second });
            }
        }
        match columns.purchase(path, line, &record)? {
            None => purchases.refunds += 1,
            Some(purchase) => {
                let number = match numbers.get(customer) {
                    Some(number) => *number,
                    None => {
                        numbers.insert(customer.to_owned(), purchases.customers.len());
                        purchases.customers.push(Vec::new());
                        purchases.ids.push(customer.to_owned());
                        purchases.customers.len() - 1
                    }
                };
                purchases.customers[number].push(purchase);
            }
        }
    }
    if purchases.customers.is_empty() {
        let path = path.to_owned();
        return Err(match (purchases.rows, purchases.refunds) {
            (0, _) => PurchaseFileError::Empty { path },
            (rows, 0) => PurchaseFileError::NoCustomers { path, rows, column: columns.names[columns.customer].clone() },
            (_, refunds) => PurchaseFileError::OnlyRefunds { path, refunds },
        });
    }
    progress(purchases.rows);
    Ok(purchases)
}

fn into_io(error: csv::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

impl Columns {
    fn new(path: &Path, header: &csv::StringRecord) -> Result<Self, PurchaseFileError> {
        let names: Vec<String> =
            header.iter().map(|name| name.trim_start_matches('\u{feff}').to_ascii_lowercase()).collect();
        if names.iter().all(String::is_empty) {
            return Err(PurchaseFileError::Empty { path: path.to_owned() });
        }
        let find = |expected: &[&str]| {
            expected.iter().find_map(|expected| names.iter().position(|name| name.as_str() == *expected))
        };
        let need = |role, expected: &[&str]| {
            find(expected).ok_or_else(|| PurchaseFileError::MissingColumn {
                path: path.to_owned(),
                role,
                expected: expected.join(", "),
                found: names.join(", "),
            })
        };
        Ok(Self {
            customer: need("the customer", CUSTOMER)?,
            time: need("the time", TIME)?,
            value: find(VALUE),
            price: find(PRICE),
            quantity: find(QUANTITY),
            has_products: find(PRODUCT).is_some(),
            invoice: find(INVOICE),
            currency: find(CURRENCY),
            names,
        })
    }

    /// Parses a row. Returns `None` for a refund or a cancellation.
    fn purchase(
        &self,
        path: &Path,
        line: u64,
        record: &csv::StringRecord,
    ) -> Result<Option<DatasetPurchase>, PurchaseFileError> {
        let error = |index: usize, limit: &str| PurchaseFileError::Value {
            path: path.to_owned(),
            line,
            column: self.names[index].clone(),
            value: record[index].to_owned(),
            limit: limit.to_owned(),
        };
        let number = |index: Option<usize>| match index {
            None => Ok(None),
            Some(index) => match record[index].parse::<f64>() {
                Ok(number) if number.is_finite() && number.abs() <= VALUE_MAX => Ok(Some(number)),
                _ => Err(error(index, "a number from -10^12 to 10^12")),
            },
        };
        let day = parse_day(&record[self.time]).ok_or_else(|| {
            error(self.time, "a date such as 2026-11-30 or 20261130, or a time such as 2026-11-30 08:15:00")
        })?;
        let quantity = number(self.quantity)?;
        let value = match number(self.value)? {
            Some(value) => value,
            None => number(self.price)?.zip(quantity).map_or(0.0, |(price, quantity)| price * quantity),
        };
        if value.abs() > VALUE_MAX {
            return Err(error(
                self.price.unwrap_or(self.time),
                "a price whose product with the quantity is at most 10^12",
            ));
        }
        let is_cancelled = self.invoice.is_some_and(|index| record[index].starts_with(['C', 'c']));
        if is_cancelled || value < 0.0 || quantity.is_some_and(|quantity| quantity < 0.0) {
            return Ok(None);
        }
        let units = if self.has_products { 1.0 } else { quantity.unwrap_or(1.0) };
        Ok(Some(DatasetPurchase { day, value, units }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str) -> Result<CustomerPurchases, PurchaseFileError> {
        read(Path::new("file.csv"), text.as_bytes(), &mut |_| {})
    }

    fn message(text: &str) -> String {
        read_text(text).unwrap_err().to_string()
    }

    #[test]
    fn the_three_formats_are_recognised_by_their_columns() {
        let cdnow = read_text("customer\tdate\tcds\tdollars\n00004\t19970101\t2\t29.33\n").unwrap();
        assert_eq!(cdnow.customers, [[DatasetPurchase { day: 9862, value: 29.33, units: 2.0 }]]);
        let retail = read_text(
            "invoice,stock_code,quantity,invoice_date,price,customer_id\n\
             489434,85048,12,2009-12-01 07:45:00,0.5,13085\n\
             C489449,22087,-12,2009-12-01 10:33:00,2.95,13085\n\
             489435,22350,1,2009-12-01 07:46:00,2.55,\n",
        )
        .unwrap();
        assert_eq!(retail.customers, [[DatasetPurchase { day: 14_579, value: 6.0, units: 1.0 }]]);
        assert_eq!((retail.rows, retail.refunds, retail.without_customer, retail.has_values), (3, 1, 1, true));
        let journey = read_text(
            "household_id,product_id,quantity,sales_value,transaction_timestamp\n900,1095275,1,0.5,2017-01-01 11:53:26\n",
        )
        .unwrap();
        assert_eq!(journey.customers, [[DatasetPurchase { day: 17_167, value: 0.5, units: 1.0 }]]);
    }

    #[test]
    fn bad_files_are_reported_with_field_value_and_limit() {
        for (text, expected) in [
            ("", "file.csv: the file has no rows; a header and at least one purchase are needed"),
            ("customer,date\n", "file.csv: the file has no rows; a header and at least one purchase are needed"),
            (
                "name,date\na,b\n",
                "file.csv: no column for the customer; expected one of customer, customer_id, household_id, user_id, \
                 user; found: name, date",
            ),
            (
                "customer,date,value\na,20200101,5\na,2020-13-01,5\n",
                "file.csv: line 3, column `date`: `2020-13-01` is not a date such as 2026-11-30 or 20261130, or a time \
                 such as 2026-11-30 08:15:00",
            ),
            (
                "customer,date,value\na,20200101,1e13\n",
                "file.csv: line 2, column `value`: `1e13` is not a number from -10^12 to 10^12",
            ),
            (
                "customer,date,value,currency\na,20200101,5,EUR\nb,20200102,5,USD\n",
                "file.csv: line 3, column `currency`: `USD`, but earlier rows have `EUR`; convert the values to one \
                 currency or split the file",
            ),
            (
                "customer,date,value\na,20200101,-5\n",
                "file.csv: all 1 rows with a customer are refunds or cancellations; at least one purchase is needed",
            ),
            ("customer,date\n,20200101\n", "file.csv: none of the 1 rows has a customer in column `customer`"),
        ] {
            assert_eq!(message(text), expected);
        }
        assert!(message("customer,date\na\n").contains("found record with 1 fields"));
        assert!(message("customer,date,value\na,20200101,NaN\n").contains("`NaN`"));
    }

    #[test]
    fn one_purchase_of_a_billion_is_read() {
        let read = read_text("customer,date,value\na,20200101,1000000000\n").unwrap();
        assert_eq!(read.customers[0][0].value, 1e9);
    }

    #[test]
    fn days_are_parsed_and_formatted() {
        for (text, day) in [("1970-01-02", 1), ("19691231", -1), ("2009-12-01T07:45:00", 14_579)] {
            assert_eq!(parse_day(text), Some(day), "{text}");
        }
        assert_eq!(parse_day("01/02/2020"), None);
        assert_eq!(format_day(14_579), "2009-12-01");
        assert_eq!(format_day(i32::MAX), format!("day {}", i32::MAX));
    }
}
