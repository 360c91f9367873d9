//! Cells of a shop's Parquet file as text, as if the file were CSV.
use super::ValueKind;
use arrow_array::{
    Array, ArrowPrimitiveType,
    cast::AsArray,
    types::{
        ArrowDictionaryKeyType, Date32Type, Date64Type, Decimal128Type, Float32Type, Float64Type, Int8Type, Int16Type,
        Int32Type, Int64Type, TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType,
        TimestampSecondType, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
    },
};
use arrow_schema::{DataType, TimeUnit};
use jiff::{
    SignedDuration,
    civil::{Date, DateTime},
};
use std::fmt::{Display, Write};

/// Separates the entries of a JSON or Parquet list in its text.
pub(in crate::import) const LIST_SEPARATOR: char = '\u{1f}';

/// Returns the kind of the values of a type.
pub(super) fn kind_of(data_type: &DataType) -> ValueKind {
    match data_type {
        DataType::Timestamp(..) | DataType::Date32 | DataType::Date64 => ValueKind::Time,
        DataType::Dictionary(_, values) => kind_of(values),
        numeric if numeric.is_numeric() => ValueKind::Number,
        _ => ValueKind::Text,
    }
}

/// Appends the value of a cell: numbers in decimal notation, dates as `2026-11-28`, times as `2026-11-28T09:30:00`,
/// with `Z` if the column has a time zone, lists of text with [`LIST_SEPARATOR`]. A missing value appends nothing, and a
/// time that the calendar does not have its number.
/// Binary data must be UTF-8, because some programs write texts without marking them as such. Other nested types are
/// errors.
pub(super) fn write_cell(out: &mut String, array: &dyn Array, row: usize) -> Result<(), String> {
    if array.is_null(row) {
        return Ok(());
    }
    match array.data_type() {
        DataType::Utf8 => out.push_str(array.as_string::<i32>().value(row)),
        DataType::LargeUtf8 => out.push_str(array.as_string::<i64>().value(row)),
        DataType::Utf8View => out.push_str(array.as_string_view().value(row)),
        DataType::Binary => write_bytes(out, array.as_binary::<i32>().value(row))?,
        DataType::LargeBinary => write_bytes(out, array.as_binary::<i64>().value(row))?,
        DataType::BinaryView => write_bytes(out, array.as_binary_view().value(row))?,
        DataType::Boolean => write_value(out, array.as_boolean().value(row)),
        DataType::Int8 => write_number::<Int8Type>(out, array, row),
        DataType::Int16 => write_number::<Int16Type>(out, array, row),
        DataType::Int32 => write_number::<Int32Type>(out, array, row),
        DataType::Int64 => write_number::<Int64Type>(out, array, row),
        DataType::UInt8 => write_number::<UInt8Type>(out, array, row),
        DataType::UInt16 => write_number::<UInt16Type>(out, array, row),
        DataType::UInt32 => write_number::<UInt32Type>(out, array, row),
        DataType::UInt64 => write_number::<UInt64Type>(out, array, row),
        DataType::Float32 => write_number::<Float32Type>(out, array, row),
        DataType::Float64 => write_number::<Float64Type>(out, array, row),
        DataType::Decimal128(_, _) => out.push_str(&array.as_primitive::<Decimal128Type>().value_as_string(row)),
        DataType::Date32 => write_date(out, array.as_primitive::<Date32Type>().value(row)),
        DataType::Date64 => {
            let ms = array.as_primitive::<Date64Type>().value(row);
            write_time(out, i128::from(ms) * 1_000_000, false);
        }
        DataType::Timestamp(unit, zone) => write_time(out, nanoseconds(array, *unit, row), zone.is_some()),
        DataType::List(_) => write_list(out, array.as_list::<i32>().value(row).as_ref())?,
        DataType::LargeList(_) => write_list(out, array.as_list::<i64>().value(row).as_ref())?,
        DataType::Dictionary(key, _) => return write_dictionary(out, array, key, row),
        other => return Err(format!("a column of type {other} cannot be imported")),
    }
    Ok(())
}

fn write_value(out: &mut String, value: impl Display) {
    write!(out, "{value}").expect("a String accepts every text");
}

fn write_number<T: ArrowPrimitiveType>(out: &mut String, array: &dyn Array, row: usize)
where
    T::Native: Display,
{
    write_value(out, array.as_primitive::<T>().value(row));
}

fn write_bytes(out: &mut String, bytes: &[u8]) -> Result<(), String> {
    let text = str::from_utf8(bytes).map_err(|_| "the binary data are not UTF-8 text")?;
    out.push_str(text);
    Ok(())
}

fn write_list(out: &mut String, entries: &dyn Array) -> Result<(), String> {
    for entry in 0..entries.len() {
        if entry > 0 {
            out.push(LIST_SEPARATOR);
        }
        write_cell(out, entries, entry)?;
    }
    Ok(())
}

fn write_date(out: &mut String, days: i32) {
    let since = SignedDuration::from_hours(i64::from(days) * 24);
    match Date::constant(1970, 1, 1).checked_add(since) {
        Ok(date) => write_value(out, date),
        Err(_) => write_value(out, days),
    }
}

/// Nanoseconds since 1970 of a timestamp.
fn nanoseconds(array: &dyn Array, unit: TimeUnit, row: usize) -> i128 {
    match unit {
        TimeUnit::Second => i128::from(array.as_primitive::<TimestampSecondType>().value(row)) * 1_000_000_000,
        TimeUnit::Millisecond => i128::from(array.as_primitive::<TimestampMillisecondType>().value(row)) * 1_000_000,
        TimeUnit::Microsecond => i128::from(array.as_primitive::<TimestampMicrosecondType>().value(row)) * 1000,
        TimeUnit::Nanosecond => i128::from(array.as_primitive::<TimestampNanosecondType>().value(row)),
    }
}

/// A column without a time zone has local times, which the mapping's time zone turns into moments.
fn write_time(out: &mut String, nanoseconds: i128, has_zone: bool) {
    let (seconds, rest) = (nanoseconds.div_euclid(1_000_000_000), nanoseconds.rem_euclid(1_000_000_000));
    // Milliseconds fit in 64 bits in every unit, so seconds do.
    let since = SignedDuration::new(seconds as i64, rest as i32);
    match DateTime::constant(1970, 1, 1, 0, 0, 0, 0).checked_add(since) {
        Ok(time) if has_zone => write_value(out, format_args!("{time}Z")),
        Ok(time) => write_value(out, time),
        Err(_) => write_value(out, nanoseconds),
    }
}

fn write_dictionary(out: &mut String, array: &dyn Array, key: &DataType, row: usize) -> Result<(), String> {
    match key {
        DataType::Int8 => write_entry::<Int8Type>(out, array, row),
        DataType::Int16 => write_entry::<Int16Type>(out, array, row),
        DataType::Int32 => write_entry::<Int32Type>(out, array, row),
        DataType::Int64 => write_entry::<Int64Type>(out, array, row),
        DataType::UInt8 => write_entry::<UInt8Type>(out, array, row),
        DataType::UInt16 => write_entry::<UInt16Type>(out, array, row),
        DataType::UInt32 => write_entry::<UInt32Type>(out, array, row),
        DataType::UInt64 => write_entry::<UInt64Type>(out, array, row),
        other => Err(format!("a dictionary with keys of type {other} cannot be imported")),
    }
}

fn write_entry<K: ArrowDictionaryKeyType>(out: &mut String, array: &dyn Array, row: usize) -> Result<(), String> {
    let dictionary = array.as_dictionary::<K>();
    match dictionary.key(row) {
        Some(key) => write_cell(out, dictionary.values().as_ref(), key),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow_array::{
        BinaryArray, BooleanArray, Date32Array, Decimal128Array, DictionaryArray, Float64Array, Int64Array,
        StringArray, TimestampMillisecondArray, UInt8Array,
    };

    fn text(array: &dyn Array, row: usize) -> String {
        let mut out = String::new();
        write_cell(&mut out, array, row).unwrap();
        out
    }

    #[test]
    fn cells_read_as_their_csv_text() {
        assert_eq!(text(&StringArray::from(vec![Some("杯"), None]), 0), "杯");
        assert_eq!(text(&StringArray::from(vec![Some("a"), None]), 1), "", "a missing value is empty");
        assert_eq!(text(&Int64Array::from(vec![-12]), 0), "-12");
        assert_eq!(text(&UInt8Array::from(vec![255]), 0), "255");
        assert_eq!(text(&Float64Array::from(vec![2.5, 17850.0]), 1), "17850", "an id that became a float");
        assert_eq!(text(&BinaryArray::from(vec!["杯".as_bytes()]), 0), "杯");
        assert_eq!(text(&BooleanArray::from(vec![true]), 0), "true");
        let decimal = Decimal128Array::from(vec![-1250]).with_precision_and_scale(10, 2).unwrap();
        assert_eq!(text(&decimal, 0), "-12.50");
        assert_eq!(text(&Date32Array::from(vec![20_785]), 0), "2026-11-28");
        let time = TimestampMillisecondArray::from(vec![1_795_858_200_000]);
        assert_eq!(text(&time, 0), "2026-11-28T09:30:00");
        assert_eq!(text(&time.with_timezone("UTC"), 0), "2026-11-28T09:30:00Z");
        let dictionary: DictionaryArray<Int8Type> = vec!["x", "y", "x"].into_iter().collect();
        assert_eq!(text(&dictionary, 1), "y");
    }

    #[test]
    fn an_unsupported_type_is_named() {
        let array = arrow_array::Time32SecondArray::from(vec![5]);
        let error = write_cell(&mut String::new(), &array, 0).unwrap_err();
        assert!(error.contains("Time32"), "{error}");
        let error = write_cell(&mut String::new(), &BinaryArray::from(vec![&b"\xff\xfe"[..]]), 0).unwrap_err();
        assert!(error.contains("UTF-8"), "{error}");
    }
}
