//! What `import` says of files that it cannot take: the file, the line, the column.
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

/// Imports a file with this content and gives the error's text. Nothing may have been written.
fn refused(name: &str, content: &[u8]) -> String {
    let directory = tempfile::tempdir().unwrap();
    let (file, mapping, out) =
        (directory.path().join(name), directory.path().join("mapping.toml"), directory.path().join("out"));
    fs::write(&file, content).unwrap();
    fs::write(&mapping, MAPPING).unwrap();
    let mapping = Mapping::read(&mapping).unwrap();
    let error = import(&mapping, &file, &out, |_, _| {}).expect_err("a file that cannot be imported");
    assert!(!out.join("items.parquet").exists(), "half an import was left behind");
    let text = error.to_string();
    assert!(text.contains(name), "the file is not named in: {text}");
    text
}

fn contains(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "`{word}` is missing in: {text}");
    }
}

#[test]
fn a_file_without_rows_is_refused() {
    contains(&refused("shop.csv", HEADER.as_bytes()), &["no rows"]);
    contains(&refused("shop.jsonl", b""), &["no rows"]);
}

#[test]
fn a_missing_column_is_named_with_those_that_are_there() {
    let text = refused("shop.csv", b"sku,customer,name,pieces,price\na1,c1,red mug,2,1.50\n");
    contains(&text, &["`when`", "columns.time", "sku"]);
}

#[test]
fn a_wrong_type_is_named_with_line_and_column() {
    let wrong_pieces = format!("{HEADER}{ROW}a2,2010-01-01 10:00:00,c1,blue mug,two,1.50\n");
    contains(&refused("shop.csv", wrong_pieces.as_bytes()), &["line 3", "`pieces`", "`two`"]);
    let wrong_time = format!("{HEADER}{ROW}a2,yesterday,c1,blue mug,2,1.50\n");
    contains(&refused("shop.csv", wrong_time.as_bytes()), &["line 3", "`when`", "`yesterday`"]);
    let jsonl =
        br#"{"sku": "a1", "when": "2010-01-01 10:00:00", "customer": "c1", "name": "mug", "pieces": [1], "price": 1}"#;
    contains(&refused("shop.jsonl", jsonl), &["line 1", "`pieces`"]);
}

#[test]
fn broken_compression_is_refused_with_the_line_that_was_reached() {
    let content: String =
        HEADER.to_owned() + &(0..5000).map(|n| ROW.replace("a1", &format!("a{n}"))).collect::<String>();
    let whole = zstd::encode_all(content.as_bytes(), 3).unwrap();
    contains(&refused("shop.csv.zst", &whole[..whole.len() / 2]), &["line"]);
    contains(&refused("shop.csv.gz", b"this is no gzip"), &["line"]);
    let mut flipped = whole;
    let middle = flipped.len() / 2;
    flipped[middle..middle + 40].fill(0x55);
    refused("shop.csv.zst", &flipped);
}

#[test]
fn an_unknown_ending_is_refused_with_those_that_are_read() {
    contains(&refused("shop.xlsx", b"PK"), &["xlsx", ".csv", ".parquet"]);
    contains(&refused("shop.parquet", b"PAR0 no parquet"), &["shop.parquet"]);
}

#[test]
fn a_good_file_is_taken_whole() {
    let directory = tempfile::tempdir().unwrap();
    let (file, mapping): (PathBuf, PathBuf) = (directory.path().join("shop.csv"), directory.path().join("m.toml"));
    fs::write(&file, format!("{HEADER}{ROW}")).unwrap();
    fs::write(&mapping, MAPPING).unwrap();
    let report = import(&Mapping::read(&mapping).unwrap(), &file, &directory.path().join("out"), |_, _| {}).unwrap();
    assert_eq!((report.row_count, report.item_count), (1, 1));
}
