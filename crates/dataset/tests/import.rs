//! Errors of `import` contain the file, the line and the column.
use lodestone_dataset::import::{Mapping, import};
use std::{fs, path::PathBuf};

const MAPPING: &str = r#"
[columns]
item = "sku"
time = "when"
user = "customer"
title = "name"
quantity = "pieces"
price = "price"
"#;
const HEADER: &str = "sku,when,customer,name,pieces,price\n";
const ROW: &str = "a1,2010-01-01 10:00:00,c1,red mug,2,1.50\n";

/// Imports a file with this content and returns the error's text. Checks that no files were written.
fn import_error(name: &str, content: &[u8]) -> String {
    let directory = tempfile::tempdir().unwrap();
    let (file, mapping, out) =
        (directory.path().join(name), directory.path().join("mapping.toml"), directory.path().join("out"));
    fs::write(&file, content).unwrap();
    fs::write(&mapping, MAPPING).unwrap();
    let mapping = Mapping::read(&mapping).unwrap();
    let error = import(&mapping, &file, &out, |_, _| {}).expect_err("a file that cannot be imported");
    assert!(!out.join("items.parquet").exists(), "a partial import was left behind");
    let text = error.to_string();
    assert!(text.contains(name), "the name of the file is missing in: {text}");
    text
}

fn assert_contains(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "`{part}` is missing in: {text}");
    }
}

#[test]
fn a_file_without_rows_is_an_error() {
    assert_contains(&import_error("shop.csv", HEADER.as_bytes()), &["no rows"]);
    assert_contains(&import_error("shop.jsonl", b""), &["no rows"]);
}

#[test]
fn the_error_of_a_missing_column_lists_the_existing_ones() {
    let text = import_error("shop.csv", b"sku,customer,name,pieces,price\na1,c1,red mug,2,1.50\n");
    assert_contains(&text, &["`when`", "columns.time", "sku"]);
}

#[test]
fn the_error_of_a_wrong_type_has_line_and_column() {
    let wrong_pieces = format!("{HEADER}{ROW}a2,2010-01-01 10:00:00,c1,blue mug,two,1.50\n");
    assert_contains(&import_error("shop.csv", wrong_pieces.as_bytes()), &["line 3", "`pieces`", "`two`"]);
    let wrong_time = format!("{HEADER}{ROW}a2,yesterday,c1,blue mug,2,1.50\n");
    assert_contains(&import_error("shop.csv", wrong_time.as_bytes()), &["line 3", "`when`", "`yesterday`"]);
    let jsonl =
        br#"{"sku": "a1", "when": "2010-01-01 10:00:00", "customer": "c1", "name": "mug", "pieces": [1], "price": 1}"#;
    assert_contains(&import_error("shop.jsonl", jsonl), &["line 1", "`pieces`"]);
}

#[test]
fn the_error_of_corrupt_compression_has_the_line() {
    let content: String =
        HEADER.to_owned() + &(0..5000).map(|n| ROW.replace("a1", &format!("a{n}"))).collect::<String>();
    let whole = zstd::encode_all(content.as_bytes(), 3).unwrap();
    assert_contains(&import_error("shop.csv.zst", &whole[..whole.len() / 2]), &["line"]);
    assert_contains(&import_error("shop.csv.gz", b"this is no gzip"), &["line"]);
    let mut flipped = whole;
    let middle = flipped.len() / 2;
    flipped[middle..middle + 40].fill(0x55);
    import_error("shop.csv.zst", &flipped);
}

#[test]
fn the_error_of_an_unknown_extension_lists_the_supported_ones() {
    assert_contains(&import_error("shop.xlsx", b"PK"), &["xlsx", ".csv", ".parquet"]);
    assert_contains(&import_error("shop.parquet", b"PAR0 no parquet"), &["shop.parquet"]);
}

#[test]
fn a_valid_file_is_imported_completely() {
    let directory = tempfile::tempdir().unwrap();
    let (file, mapping): (PathBuf, PathBuf) = (directory.path().join("shop.csv"), directory.path().join("m.toml"));
    fs::write(&file, format!("{HEADER}{ROW}")).unwrap();
    fs::write(&mapping, MAPPING).unwrap();
    let report = import(&Mapping::read(&mapping).unwrap(), &file, &directory.path().join("out"), |_, _| {}).unwrap();
    assert_eq!((report.row_count, report.item_count), (1, 1));
}
