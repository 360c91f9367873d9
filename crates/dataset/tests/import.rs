//! Imports of small files: what is kept, what is dropped with which reason, and errors with file, line and column.
use arrow_array::{
    ArrayRef, BinaryArray, Date32Array, Float64Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
    TimestampMillisecondArray,
};
use lodestone_catalog::{AttributeValue, Item};
use lodestone_core::units::{Quantity, UnixMillis};
use lodestone_dataset::{
    DatasetEvent,
    import::{ImportError, ImportOptions, ImportReport, Mapping, ShopFiles, import},
    read_events, read_items,
};
use lodestone_events::EventKind;
use std::{fs, path::PathBuf, sync::Arc};

const MAPPING: &str = r#"
[events]
item = "sku"
time = "when"
user = "customer"
title = "name"
quantity = "pieces"
price = "price"
[constants]
event_type = "purchase"
"#;
const HEADER: &str = "sku,when,customer,name,pieces,price\n";
const ROW: &str = "a1,2010-01-01 10:00:00,c1,red mug,2,1.50\n";
/// 2026-01-01, the time of the imports.
const NOW: UnixMillis = UnixMillis(1_767_225_600_000);
const OPTIONS: ImportOptions = ImportOptions { now: NOW, items_time: None, allow_shrink: false };

/// A directory with files to import.
struct Shop {
    directory: tempfile::TempDir,
}

impl Shop {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn mapping(&self, text: &str) -> Result<Mapping, ImportError> {
        fs::write(self.path("mapping.toml"), text).unwrap();
        Mapping::open(&self.path("mapping.toml").display().to_string())
    }

    fn import(&self, mapping: &str, name: &str, content: &[u8]) -> Result<ImportReport, ImportError> {
        let (mapping, file) = (self.mapping(mapping)?, self.path(name));
        fs::write(&file, content).unwrap();
        let files = ShopFiles { events: &[file], items: None };
        import(&[mapping], files, &self.path("out"), OPTIONS, |_, _| {})
    }

    fn import_items(&self, mapping: &str, name: &str, content: &[u8]) -> Result<ImportReport, ImportError> {
        let (mapping, file) = (self.mapping(mapping)?, self.path(name));
        fs::write(&file, content).unwrap();
        let files = ShopFiles { events: &[], items: Some(&file) };
        import(&[mapping], files, &self.path("out"), OPTIONS, |_, _| {})
    }

    fn events(&self) -> Vec<DatasetEvent> {
        read_events(&self.path("out").join("events.parquet")).unwrap()
    }
}

/// Imports a file with this content and returns the error's text. Checks that no files were written.
fn import_error_with(mapping: &str, name: &str, content: &[u8]) -> String {
    let shop = Shop::new();
    let error = shop.import(mapping, name, content).expect_err("a file that cannot be imported");
    assert!(!shop.path("out").join("items.parquet").exists(), "a partial import was left behind");
    error.to_string()
}

fn import_error(name: &str, content: &[u8]) -> String {
    let text = import_error_with(MAPPING, name, content);
    assert!(text.contains(name), "the name of the file is missing in: {text}");
    text
}

/// Imports a file and returns its events and the report.
fn imported(mapping: &str, name: &str, content: &[u8]) -> (Vec<DatasetEvent>, ImportReport) {
    let shop = Shop::new();
    let report = shop.import(mapping, name, content).unwrap_or_else(|error| panic!("{error}"));
    (shop.events(), report)
}

fn users(events: &[DatasetEvent]) -> Vec<Option<&str>> {
    events.iter().map(|event| event.user.as_ref().map(|user| user.as_str())).collect()
}

fn items(events: &[DatasetEvent]) -> Vec<Option<&str>> {
    events.iter().map(|event| event.item.as_ref().map(|item| item.as_str())).collect()
}

fn quantities(events: &[DatasetEvent]) -> Vec<f64> {
    events.iter().map(|event| event.quantity.map_or(0.0, Quantity::units)).collect()
}

fn dropped(report: &ImportReport) -> Vec<(&str, u64)> {
    report.dropped.iter().map(|(name, class)| (*name, class.count)).collect()
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
    assert_contains(&import_error("shop.jsonl", b"\n\n"), &["no rows"]);
}

#[test]
fn the_error_of_a_missing_column_lists_the_existing_ones() {
    let text = import_error("shop.csv", b"sku,customer,name,pieces,price\na1,c1,red mug,2,1.50\n");
    assert_contains(&text, &["`when`", "events.time", "sku"]);
    let jsonl =
        br#"{"sku": "a1", "when": "2010-01-01 10:00:00", "client": "c1", "name": "mug", "pieces": 1, "price": 1}"#;
    assert_contains(&import_error("shop.jsonl", jsonl), &["`customer`", "events.user", "client"]);
}

#[test]
fn two_columns_of_one_name_are_an_error_that_names_both() {
    let text = import_error("shop.csv", b"sku,when,customer,name,pieces,price,price\na1,2010-01-01,c1,mug,2,1.50,9\n");
    assert_contains(&text, &["columns 6 and 7", "`price`", "events.price"]);
    let jsonl =
        br#"{"sku": "a1", "when": "2010-01-01", "customer": "c1", "name": "m", "pieces": 1, "price": 1, "sku": "b"}"#;
    assert_contains(&import_error("shop.jsonl", jsonl), &["line 1", "`sku` occurs twice"]);
    // A column that the mapping does not use may occur twice.
    let (events, _) = imported(MAPPING, "shop.csv", format!("x,x,{HEADER}1,2,{ROW}").as_bytes());
    assert_eq!(items(&events), [Some("a1")]);
}

#[test]
fn the_error_of_a_wrong_type_has_line_and_column() {
    let wrong_time = format!("{HEADER}{ROW}a2,yesterday,c1,blue mug,2,1.50\n");
    let text = import_error("shop.csv", wrong_time.as_bytes());
    assert_contains(&text, &["line 3", "`when`", "`yesterday`", "1 earlier rows", "clean.time_format"]);
    let other_format = format!("{HEADER}a2,28/11/2010 10:00,c1,blue mug,2,1.50\n");
    let text = import_error("shop.csv", other_format.as_bytes());
    assert_contains(&text, &["line 2", "set clean.time_format", "`iso8601`", "`%d/%m/%Y %H:%M`"]);
    let jsonl =
        br#"{"sku": "a1", "when": "2010-01-01 10:00:00", "customer": "c1", "name": "mug", "pieces": {"count": 1}, "price": 1}"#;
    assert_contains(&import_error("shop.jsonl", jsonl), &["line 1", "`pieces`", "`pieces.count`"]);
    let latin1 = [HEADER.as_bytes(), b"a1,2010-01-01,c1,caf\xe9,1,1\n"].concat();
    assert_contains(&import_error("shop.csv", &latin1), &["line 2", "file.encoding"]);
}

#[test]
fn rows_of_bad_values_are_dropped_and_the_report_names_value_and_limit() {
    let rows = "a2,2010-01-01,c1,mug,two,1.50\na3,2010-01-01,c1,mug,2,free\na4,2010-01-01,c1,mug,2,-1\n\
                a5,2010-01-01,c1,mug,2,2000000000\na6,2010-01-01,c1,mug,2000000,1\na7,,c1,mug,1,1\na8,1980-01-01,c1,mug,1,1\n";
    let long_user = format!("a9,2010-01-01,{},mug,1,1\n", "u".repeat(2000));
    let (events, report) = imported(MAPPING, "shop.csv", format!("{HEADER}{ROW}{rows}{long_user}").as_bytes());
    assert_eq!(items(&events), [Some("a1")]);
    let classes = [
        ("bad quantity", 1),
        ("bad time", 1),
        ("bad user", 1),
        ("no time", 1),
        ("not a number", 2),
        ("price too high", 1),
        ("price too low", 1),
    ];
    assert_eq!(dropped(&report), classes);
    let text = report.to_string();
    for part in [
        "line 3, column `pieces`: `two` is not a number",
        "line 5, column `price`: `-1` is below clean.price_min, 0",
        "line 6, column `price`: `2000000000` is above 1000000000, the highest price",
        "line 7, column `pieces`: `2000000` is above 1000000",
        "line 9, column `when`: `1980-01-01` is before 1990",
    ] {
        assert_contains(&text, &[part]);
    }
    // Nothing is left if the mapping names the wrong column.
    let wrong = import_error_with(
        &MAPPING.replace("price = \"price\"", "price = \"name\""),
        "shop.csv",
        format!("{HEADER}{ROW}").as_bytes(),
    );
    assert_contains(&wrong, &["dropped all 1 rows", "line 2, column `name`: `red mug` is not a number"]);
}

#[test]
fn prices_of_other_notations_need_a_declaration() {
    let prices = |separator: &str, prices: &[&str]| {
        let mapping = format!("{MAPPING}[clean]\ndecimal_separator = \"{separator}\"\n");
        let rows: String = prices
            .iter()
            .enumerate()
            .map(|(at, price)| format!("a{at};2010-01-0{};c1;mug;1;{price}\n", at + 1))
            .collect();
        let shop = Shop::new();
        let report = shop.import(&mapping, "shop.csv", format!("{}{rows}", HEADER.replace(',', ";")).as_bytes())?;
        let micros =
            shop.events().iter().map(|event| event.price.map_or(0, |price| price.micros())).collect::<Vec<_>>();
        Ok::<_, ImportError>((
            micros,
            dropped(&report).iter().map(|(name, count)| (name.to_string(), *count)).collect::<Vec<_>>(),
        ))
    };
    assert_eq!(prices("", &["1,299.00", "12.5"]).unwrap().0, [1_299_000_000, 12_500_000]);
    assert_eq!(prices(",", &["1.299,00", "12,50", "1.299"]).unwrap().0, [1_299_000_000, 12_500_000, 1_299_000_000]);
    assert_eq!(prices(".", &["1.299", "1,299"]).unwrap().0, [1_299_000, 1_299_000_000]);
    let (micros, dropped) = prices(".", &["12,50", "7"]).unwrap();
    assert_eq!((micros, dropped), (vec![7_000_000], vec![("not a number".to_owned(), 1)]));
    for ambiguous in [&["12,50"][..], &["1.299,00"], &["1,299"], &["899", "1.299"]] {
        let text = prices("", ambiguous).unwrap_err().to_string();
        assert_contains(&text, &["`price`", ambiguous[ambiguous.len() - 1], "clean.decimal_separator"]);
    }
    let text = prices(";", &["1"]).unwrap_err().to_string();
    assert_contains(&text, &["clean.decimal_separator", "`;`"]);
}

#[test]
fn a_number_of_json_has_a_decimal_point_whatever_the_mapping_says() {
    let row = |price: &str| {
        format!(
            "{{\"sku\": \"a1\", \"when\": \"2010-01-01\", \"customer\": \"c\", \"name\": \"m\", \"pieces\": 1, \"price\": {price}}}\n"
        )
    };
    let mapping = format!("{MAPPING}[clean]\ndecimal_separator = \",\"\n");
    let (events, _) = imported(&mapping, "shop.jsonl", (row("1.299") + &row("\"1.299,00\"")).as_bytes());
    let prices: Vec<_> = events.iter().map(|event| event.price.map(|price| price.micros())).collect();
    assert_eq!(prices, [Some(1_299_000), Some(1_299_000_000)]);
    imported(MAPPING, "shop.jsonl", row("1.299").as_bytes());
}

#[test]
fn semicolons_and_tabs_are_recognised_by_the_header() {
    for separator in [";", "\t"] {
        let content = format!("\u{feff}{HEADER}{ROW}").replace(',', separator).replace("red mug", "\"red, mug\"");
        for name in ["shop.csv", "shop.tsv"] {
            assert_eq!(items(&imported(MAPPING, name, content.as_bytes()).0), [Some("a1")], "{separator} in {name}");
        }
        let text = import_error("shop.csv", content.replace("customer", "client").as_bytes());
        assert_contains(&text, &["`customer`", "sku, when, client, name"]);
    }
    // The columns decide, not the number of separators.
    let content = format!("a;b;c;d;e;f;g;h,{HEADER}x,{ROW}");
    assert_eq!(items(&imported(MAPPING, "shop.csv", content.as_bytes()).0), [Some("a1")]);
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
    assert_contains(&import_error("shop.xlsx", b"PK"), &["xlsx", ".csv", ".ndjson", ".parquet"]);
    assert_contains(&import_error("shop.parquet", b"PAR0 no parquet"), &["shop.parquet"]);
}

#[test]
fn a_valid_file_is_imported_completely() {
    let (events, report) = imported(MAPPING, "shop.csv", format!("{HEADER}{ROW}").as_bytes());
    assert_eq!((report.row_count, report.item_count, events.len()), (1, 1, 1));
    assert_eq!(events[0].currency, "");
    let quoted = format!("\u{feff}\"sku\",{}{ROW}\n", &HEADER[4..]);
    assert_eq!(items(&imported(MAPPING, "shop.csv", quoted.as_bytes()).0), [Some("a1")], "a byte order mark");
}

#[test]
fn offsets_and_z_may_be_mixed_and_order_the_events() {
    let rows = "late,2024-07-15 22:30:00 -0400,c,m,1,1\nearly,2024-07-16 01:00:00 +0000,c,m,1,1\n\
                first,2024-07-16T00:59:00Z,c,m,1,1\n";
    let (events, _) = imported(MAPPING, "shop.csv", format!("{HEADER}{rows}").as_bytes());
    assert_eq!(items(&events), [Some("first"), Some("early"), Some("late")]);
    assert_eq!(events[2].at, UnixMillis(1_721_097_000_000));
    let format = format!("{MAPPING}[clean]\ntime_format = \"%Y-%m-%d %H:%M:%S %z\"\n");
    let rows = "late,2024-07-15 22:30:00 -0400,c,m,1,1\nearly,2024-07-16 01:00:00 Z,c,m,1,1\n";
    let (events, _) = imported(&format, "shop.csv", format!("{HEADER}{rows}").as_bytes());
    assert_eq!(items(&events), [Some("early"), Some("late")]);
}

#[test]
fn numbers_since_1970_are_times_in_the_declared_unit() {
    for (format, sent) in [("unix_s", "1721097000"), ("unix_ms", "1721097000000"), ("unix_us", "1721097000000000")] {
        let mapping = format!("{MAPPING}[clean]\ntime_format = \"{format}\"\n");
        let (events, _) = imported(&mapping, "shop.csv", format!("{HEADER}a1,{sent},c,m,1,1\n").as_bytes());
        assert_eq!(events[0].at, UnixMillis(1_721_097_000_000), "{format}");
    }
    // A wrong unit is named as such, not imported as a time of the year 56,000 or 1970.
    let mapping = format!("{MAPPING}[clean]\ntime_format = \"unix_s\"\n");
    let text = import_error_with(&mapping, "shop.csv", format!("{HEADER}a1,1721097000000,c,m,1,1\n").as_bytes());
    assert_contains(&text, &["bad time", "unix_ms", "1721097000000"]);
}

#[test]
fn rows_of_impossible_times_are_dropped_with_the_reason() {
    let rows = "a2,9999-12-31 23:59:59,c,m,1,1\na3,1970-01-01,c,m,1,1\na4,2026-01-03,c,m,1,1\na5,2026-01-01 12:00:00,c,m,1,1\n";
    let (events, report) = imported(MAPPING, "shop.csv", format!("{HEADER}{ROW}{rows}").as_bytes());
    assert_eq!(items(&events), [Some("a1"), Some("a5")]);
    assert_eq!(dropped(&report), [("bad time", 3)]);
}

/// Writes a Parquet file with the columns of `MAPPING`: ids as binary data, users as floats.
fn parquet(times: ArrayRef) -> Vec<u8> {
    parquet_of(columns(times))
}

fn columns(times: ArrayRef) -> Vec<(&'static str, ArrayRef)> {
    vec![
        ("sku", Arc::new(BinaryArray::from(vec![&b"a1"[..], &b"a2"[..]]))),
        ("when", times),
        ("customer", Arc::new(Float64Array::from(vec![Some(17850.0), None]))),
        ("name", Arc::new(BinaryArray::from(vec!["tasse à café".as_bytes(), &b"mug"[..]]))),
        ("pieces", Arc::new(Int64Array::from(vec![1, 2]))),
        ("price", Arc::new(Float64Array::from(vec![1.5, 2.0]))),
        ("unused", Arc::new(arrow_array::Time32SecondArray::from(vec![1, 2]))),
    ]
}

fn parquet_of(columns: Vec<(&str, ArrayRef)>) -> Vec<u8> {
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let mut bytes = Vec::new();
    let mut writer = parquet::arrow::ArrowWriter::try_new(&mut bytes, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    bytes
}

#[test]
fn parquet_columns_of_times_binary_texts_and_floats_are_read() {
    let micros = TimestampMicrosecondArray::from(vec![1_721_097_000_000_000, 1_721_097_001_000_000]);
    let millis = TimestampMillisecondArray::from(vec![1_721_097_000_000, 1_721_097_001_000]);
    let times: [(ArrayRef, i64); 4] = [
        (Arc::new(micros.clone().with_timezone("UTC")), 0),
        (Arc::new(micros.with_timezone("Europe/London")), 0),
        (Arc::new(millis.clone().with_timezone("+02:00")), 0),
        // A local time of the mapping's zone, which is four hours behind.
        (Arc::new(millis), 4 * 3_600_000),
    ];
    // The format is that of texts and does not concern Parquet's times.
    let mapping = format!("{MAPPING}[clean]\ntime_format = \"%d/%m/%Y\"\ntime_zone = \"America/New_York\"\n");
    for (times, shift) in times {
        let kind = times.data_type().to_string();
        let shop = Shop::new();
        shop.import(&mapping, "shop.parquet", &parquet(times)).unwrap_or_else(|error| panic!("{kind}: {error}"));
        let events = shop.events();
        assert_eq!(events[0].at, UnixMillis(1_721_097_000_000 + shift), "{kind}");
        assert_eq!((items(&events), users(&events)), (vec![Some("a1"), Some("a2")], vec![Some("u:17850"), None]));
        assert_eq!(read_items(&shop.path("out").join("items.parquet")).unwrap()[0].title, "tasse à café");
    }
}

#[test]
fn a_time_that_the_calendar_does_not_have_drops_its_row() {
    // 9999-12-31 23:59 and the greatest number of each type.
    let last = 253_402_300_740_000;
    let times: [ArrayRef; 5] = [
        Arc::new(TimestampMillisecondArray::from(vec![1_721_097_000_000, last])),
        Arc::new(TimestampMillisecondArray::from(vec![1_721_097_000_000, last]).with_timezone("UTC")),
        Arc::new(TimestampMillisecondArray::from(vec![1_721_097_000_000, i64::MAX])),
        Arc::new(Date32Array::from(vec![19_920, 2_932_896])),
        Arc::new(Date32Array::from(vec![19_920, i32::MIN])),
    ];
    for times in times {
        let kind = format!("{times:?}");
        let shop = Shop::new();
        let report =
            shop.import(MAPPING, "shop.parquet", &parquet(times)).unwrap_or_else(|error| panic!("{kind}: {error}"));
        assert_eq!((items(&shop.events()), dropped(&report)), (vec![Some("a1")], vec![("bad time", 1)]), "{kind}");
    }
}

#[test]
fn a_parquet_time_may_be_of_any_alternative_column() {
    let mapping = MAPPING.replace("time = \"when\"", "time = [\"date\", \"when\"]");
    let mapping = format!("{mapping}[clean]\ntime_format = \"%d/%m/%Y\"\n");
    let mut columns = columns(Arc::new(TimestampMillisecondArray::from(vec![Some(1_721_097_000_000), None])));
    columns.push(("date", Arc::new(StringArray::from(vec![None, Some("16/07/2024")]))));
    let (events, _) = imported(&mapping, "shop.parquet", &parquet_of(columns));
    assert_eq!([events[0].at, events[1].at], [UnixMillis(1_721_088_000_000), UnixMillis(1_721_097_000_000)]);
}

const ORDERS: &str = r#"
[events]
item = "sku"
time = "when"
user = "customer"
order = "order"
quantity = "pieces"
"#;

#[test]
fn the_same_order_number_of_different_customers_is_different_events() {
    let rows = "order,customer,sku,when,pieces\n0001,anna,tea,2024-05-01,1\n0001,bert,beer,2024-05-01,1\n\
                0001,,wine,2024-05-01,1\n0001,anna,cups,2024-05-01,1\n0001,anna,milk,2024-05-02,1\n";
    let (events, _) = imported(ORDERS, "orders.csv", rows.as_bytes());
    let ids: Vec<&str> = events.iter().map(|event| event.event_id.as_str()).collect();
    assert_eq!(items(&events), ["tea", "cups", "beer", "wine", "milk"].map(Some));
    assert_eq!(users(&events), [Some("u:anna"), Some("u:anna"), Some("u:bert"), None, Some("u:anna")]);
    assert_eq!(ids, ["import-2", "import-2", "import-3", "import-4", "import-6"]);
    // Ids of any length identify an event.
    let long = "x".repeat(120);
    let rows = format!("order,customer,sku,when,pieces\n{long},{long},tea,2024-05-01,1\n");
    assert_eq!(imported(ORDERS, "orders.csv", rows.as_bytes()).0.len(), 1);
}

#[test]
fn quantities_of_weights_keep_their_fraction() {
    let rows = "order,customer,sku,when,pieces\n1,a,ham,2024-05-01,0.345\n1,a,rope,2024-05-01,1.9\n1,a,cup,2024-05-01,\n\
                1,a,none,2024-05-01,0.0001\n1,a,much,2024-05-01,2000000\n";
    let (events, report) = imported(ORDERS, "orders.csv", rows.as_bytes());
    assert_eq!(quantities(&events), [0.345, 1.9, 1.0]);
    assert_eq!(dropped(&report), [("bad quantity", 2)]);
}

#[test]
fn a_refund_by_its_type_may_have_either_sign() {
    let mapping = format!("{ORDERS}event_type = \"kind\"\n");
    let rows = "order,customer,sku,when,pieces,kind\n1,a,tea,2024-05-01,2,purchase\n2,a,tea,2024-05-02,-1,refund\n\
                3,a,tea,2024-05-03,1.5,Refund\n4,a,tea,2024-05-04,-1,purchase\n5,a,tea,2024-05-04,0,refund\n";
    let (events, report) = imported(&mapping, "orders.csv", rows.as_bytes());
    assert_eq!(quantities(&events), [2.0, 1.0, 1.5]);
    assert_eq!(report.kept_by_type["refund"], 2);
    assert_eq!(dropped(&report), [("bad quantity", 2)]);
    let mapping = format!("{ORDERS}[clean]\nrefund_order_prefix = \"C\"\n");
    let rows = "order,customer,sku,when,pieces\nC1,a,tea,2024-05-01,-2\nC2,a,tea,2024-05-02,2\n3,a,tea,2024-05-02,1\n";
    let (events, report) = imported(&mapping, "orders.csv", rows.as_bytes());
    assert_eq!(events[0].kind, EventKind::Refund);
    assert_eq!((quantities(&events), dropped(&report)), (vec![2.0, 1.0], vec![("bad quantity", 1)]));
}

#[test]
fn ids_are_trimmed_and_blank_ids_are_none() {
    let rows = "order , customer,sku,when,pieces\n1, anna ,tea ,2024-05-01,1\n1,anna, tea,2024-05-02,1\n2,\u{a0},tea,2024-05-03,1\n\
                3,anna,   ,2024-05-04,1\n";
    let (events, report) = imported(ORDERS, "orders.csv", rows.as_bytes());
    assert_eq!(items(&events), [Some("tea"), Some("tea"), Some("tea")]);
    assert_eq!(users(&events), [Some("u:anna"), Some("u:anna"), None]);
    assert_eq!((report.item_count, dropped(&report)), (1, vec![("no item", 1)]));
}

#[test]
fn ids_that_became_floats_are_whole_again_and_rounded_ones_are_dropped() {
    let rows = "order,customer,sku,when,pieces\n1,17850.0,85123.0,2024-05-01,1\n2.00,17850,85123,2024-05-02,1\n\
                3,17850,v1.0,2024-05-03,1\n4,17850,5.01E+12,2024-05-04,1\n5,1.2E+9,7,2024-05-04,1\n";
    let (events, report) = imported(ORDERS, "orders.csv", rows.as_bytes());
    assert_eq!(items(&events), [Some("85123"), Some("85123"), Some("v1.0")]);
    assert_eq!(users(&events), [Some("u:17850"); 3]);
    assert_eq!(events[1].order, "2");
    assert_eq!(dropped(&report), [("rounded id", 2)]);
    let mapping = format!("{ORDERS}[clean]\nwhole_number_ids = false\n");
    let rows = "order,customer,sku,when,pieces\n1,a,2.0,2024-05-01,1\n";
    assert_eq!(items(&imported(&mapping, "orders.csv", rows.as_bytes()).0), [Some("2.0")]);
}

#[test]
fn keys_of_users_and_a_column_of_visitors_are_read() {
    let mapping = format!("{ORDERS}visitor = \"cookie\"\nsession = \"visit\"\n");
    let rows = "order,customer,sku,when,pieces,cookie,visit\n1,v:anon1,tea,2024-05-01,1,,s1\n2,u:anna,tea,2024-05-02,1,c1,\n\
                3,,tea,2024-05-03,1,c1,s2\n4,,tea,2024-05-04,1,v:c1,\n5,,tea,2024-05-05,1,,\n";
    let (events, _) = imported(&mapping, "orders.csv", rows.as_bytes());
    assert_eq!(users(&events), [Some("v:anon1"), Some("u:anna"), Some("v:c1"), Some("v:c1"), None]);
    assert_eq!(events[0].session, "s1");
}

#[test]
fn contexts_of_viewers_have_tables_and_the_report_names_unknown_values() {
    let mapping = format!(
        "{ORDERS}platform = \"device\"\nregion = \"land\"\nlocale = \"language\"\n\
         [platforms]\nTill = \"store\"\nTV = \"\"\n[regions]\nEIRE = \"IE\"\nUnspecified = \"\"\n"
    );
    let rows = "order,customer,sku,when,pieces,device,land,language\n\
                1,a,tea,2024-05-01,1,Till,EIRE,en_IE\n2,a,tea,2024-05-02,1,TV,Unspecified,\n\
                3,a,tea,2024-05-03,1,Mobile Web,united states,EN\n4,a,tea,2024-05-04,1,toaster,Elbonia,?\n\
                5,a,tea,2024-05-05,1,toaster,de,\n";
    let (events, report) = imported(&mapping, "orders.csv", rows.as_bytes());
    let contexts: Vec<[&str; 3]> = events.iter().map(|event| event.context.texts()).collect();
    let expected = [["store", "IE", "en-IE"], ["", "", ""], ["mobile_web", "US", "en"], ["", "", ""], ["", "DE", ""]];
    assert_eq!(contexts, expected);
    let unknown: Vec<(&str, u64)> =
        report.unknown_context_values.iter().map(|(value, count)| (value.as_str(), *count)).collect();
    assert_eq!(unknown, [("locale: ?", 1), ("platform: toaster", 2), ("region: Elbonia", 1)]);
    assert!(report.to_string().contains("`platform: toaster` 2"), "{report}");
}

const MIXED: &str = r#"
[events]
item = "product_id"
time = "ts"
visitor = "visitor"
event_type = "event"
query = "q"
[event_types]
addtocart = "add_to_cart"
transaction = "purchase"
view_item = "view"
scroll = "ignore"
"#;

#[test]
fn a_file_of_mixed_events_keeps_its_searches() {
    let jsonl = "\u{feff}{\"event\": \"View\", \"product_id\": 7, \"ts\": \"2024-05-01T10:00:00Z\", \"visitor\": \"v\"}\n\
                 \n\
                 {\"event\": \"search\", \"q\": \" red  mug\", \"ts\": \"2024-05-01T11:00:00Z\", \"visitor\": \"v\"}\n\
                 {\"event\": \"search\", \"ts\": \"2024-05-01T12:00:00Z\", \"visitor\": \"v\"}\n\
                 {\"event\": \"view\", \"ts\": \"2024-05-01T13:00:00Z\", \"visitor\": \"v\", \"other\": {\"a\": [1]}}\n   \n";
    let csv = "event,product_id,ts,visitor,q\nView,7,2024-05-01T10:00:00Z,v,\nsearch,,2024-05-01T11:00:00Z,v,\" red  mug\"\n\
               search,,2024-05-01T12:00:00Z,v,\nview,,2024-05-01T13:00:00Z,v,\n";
    for (name, content) in [("events.jsonl", jsonl), ("events.csv", csv)] {
        let (events, report) = imported(MIXED, name, content.as_bytes());
        assert_eq!(items(&events), [Some("7"), None], "{name}");
        assert_eq!(
            (events[1].kind, events[1].query.as_str(), events[1].quantity),
            (EventKind::Search, "red  mug", None)
        );
        assert_eq!(dropped(&report), [("no item", 1), ("no query", 1)]);
    }
}

#[test]
fn event_names_of_other_programs_are_mapped() {
    let without_type =
        "{\"event\": null, \"product_id\": 1, \"ts\": \"2024-05-01\", \"visitor\": \"v\", \"q\": null}\n";
    let names =
        ["view", "View", "view_item", "Add to Cart", "addtocart", "transaction", "scroll", "page_ping", "page_ping"];
    let rows: String = (names.iter().enumerate())
        .map(|(at, name)| format!("{{\"event\": \"{name}\", \"product_id\": {at}, \"ts\": \"2024-05-01\", \"visitor\": \"v\", \"q\": null}}\n"))
        .collect();
    let (events, report) = imported(MIXED, "events.jsonl", (rows + without_type).as_bytes());
    let kinds: Vec<&str> = events.iter().map(|event| event.kind.name()).collect();
    assert_eq!(kinds, ["view", "view", "view", "add_to_cart", "add_to_cart", "purchase"]);
    assert_eq!(dropped(&report), [("ignored event type", 1), ("no event type", 1), ("unknown event type", 2)]);
    assert_eq!(report.unknown_event_types["page_ping"], 2);
    assert!(!report.unknown_event_types.contains_key(""));
    let text = report.to_string();
    assert_contains(&text, &["3 view lines", "1 purchase lines", "event_types", "`page_ping` 2"]);
    let wrong = Shop::new().mapping(&MIXED.replace("\"ignore\"", "\"skip\"")).unwrap_err().to_string();
    assert_contains(&wrong, &["`skip`", "add_to_cart", "`ignore`"]);
}

#[test]
fn a_mapping_without_times_or_event_types_names_the_alternative() {
    let refused = |mapping: &str| Shop::new().mapping(mapping).unwrap_err().to_string();
    assert_contains(&refused("[events]\nitem = \"id\"\ntitle = \"name\"\n"), &["events.time", "--items"]);
    assert_contains(&refused("[events]\nitem = \"id\"\ntime = \"created\"\n"), &["constants.event_type", "items"]);
    assert_contains(&refused("[constants]\n"), &["events", "items"]);
    let shop = Shop::new();
    let error = shop.import_items(MAPPING, "products.csv", b"id,title\n").unwrap_err().to_string();
    assert_contains(&error, &["`items`", "products.csv"]);
}

const PRODUCTS: &str = r#"
[items]
id = "id"
title = "name"
description = "text"
categories = "path"
tags = "labels"
price = "price"
stock = "stock"
created = "since"
[items.attributes]
size = "Size (EU)"
vegan = "vegan"
code = "code"
[constants]
currency = "EUR"
"#;

#[test]
fn a_file_of_products_without_times_of_events_becomes_items() {
    let header = "id,name,text,path,labels,price,stock,since,Size (EU),vegan,code\n";
    let rows = "m1,Red  mug,\"Holds\n tea\",Home > Mugs,\"new, red\",4.95,3,2024-05-01,38,true,007\n\
                m2,Blue mug,,,,,-2,,39.5,FALSE,8\nm3,Ham,,,,9,0.4,,,,\nm1,again,,,,,,,,,\nm4,,,,,,,,,,\n ,no id,,,,,,,,,\n";
    let shop = Shop::new();
    let report = shop.import_items(PRODUCTS, "products.csv", format!("{header}{rows}").as_bytes()).unwrap();
    assert!(!shop.path("out").join("events.parquet").exists(), "no events are made up");
    let items = read_items(&shop.path("out").join("items.parquet")).unwrap();
    assert_eq!(items.iter().map(|item| item.id.as_str()).collect::<Vec<_>>(), ["m1", "m2", "m3"]);
    let mug = &items[0];
    assert_eq!(
        (mug.title.as_str(), mug.description.as_str(), mug.currency.as_str()),
        ("Red mug", "Holds\n tea", "EUR")
    );
    assert_eq!(
        (&mug.categories[..], &mug.tags[..]),
        (&["Home > Mugs".to_owned()][..], &["new", "red"].map(str::to_owned)[..])
    );
    assert_eq!(mug.price.map(|price| price.micros()), Some(4_950_000));
    assert_eq!(items.iter().map(|item| item.stock_quantity).collect::<Vec<_>>(), [Some(3), Some(0), Some(1)]);
    assert_eq!(mug.attributes["size"], AttributeValue::Number(38.0));
    assert_eq!(items[1].attributes["vegan"], AttributeValue::Flag(false));
    assert_eq!(mug.attributes["code"], AttributeValue::Text("007".to_owned()), "a code is no number");
    assert_eq!(items[1].attributes["code"], AttributeValue::Text("8".to_owned()), "an attribute has one type");
    let reasons: Vec<(&str, u64)> = report.dropped_items.iter().map(|(name, class)| (*name, class.count)).collect();
    assert_eq!(reasons, [("no item", 1), ("no title", 1), ("same item", 1)]);
    assert_contains(&report.to_string(), &["6 rows of items read", "3 items"]);
}

#[test]
fn products_have_reduced_prices_ratings_and_links() {
    let mapping = "[items]\nid = \"id\"\ntitle = \"name\"\nprice = \"price\"\noriginal_price = \"was\"\ncurrency = \"currency\"\n\
                   rating = \"stars\"\nrating_count = \"reviews\"\nurl = \"link\"\nimage_url = \"image\"\n";
    let rows = "id,name,price,was,currency,stars,reviews,link,image\n\
                m1,Red mug,4,8,gbp,4.5,12,https://shop.test/m1,/m1.webp\nm2,Blue mug,4,4,EUR,,,,\n\
                m3,Mug,4,,GBP,6,,,\nm4,Mug,4,,GBP,,,javascript:alert(1),\nm5,Mug,4,-1,GBP,,,,\nm6,Mug,4,,pounds,,,,\n\
                m7,Mug,4,,,,,,\n";
    let shop = Shop::new();
    let report = shop.import_items(mapping, "products.csv", rows.as_bytes()).unwrap();
    let items = read_items(&shop.path("out").join("items.parquet")).unwrap();
    let (red, blue) = (&items[0], &items[1]);
    assert_eq!(
        (red.price_at(UnixMillis(0)).discount(), red.rating, red.rating_count),
        (Some(0.5), Some(4.5), Some(12))
    );
    assert_eq!((red.currency.as_str(), blue.currency.as_str()), ("GBP", "EUR"));
    assert_eq!((red.url.as_str(), red.image_url.as_str()), ("https://shop.test/m1", "/m1.webp"));
    assert_eq!(
        (blue.price_at(UnixMillis(0)).discount(), blue.rating, blue.rating_count, blue.url.as_str()),
        (None, None, None, "")
    );
    let dropped: Vec<&str> = report.dropped_items.keys().copied().collect();
    assert_eq!(
        (items.len(), dropped),
        (2, vec!["bad URL", "bad currency", "bad rating", "no currency", "price too low"])
    );
}

#[test]
fn products_keep_their_fields_and_events_add_the_others() {
    let shop = Shop::new();
    let mapping = shop.mapping(&format!("{ORDERS}price = \"paid\"\n{PRODUCTS}")).unwrap();
    let (orders, products) = (shop.path("orders.csv"), shop.path("products.jsonl"));
    fs::write(&orders, "order,customer,sku,when,pieces,paid\n1,a,m1,2024-05-01,1,5\n1,a,old,2024-05-01,1,2\n").unwrap();
    let fields = r#""text": null, "labels": [], "price": null, "stock": 1, "since": "", "Size (EU)": 1, "vegan": "", "code": """#;
    fs::write(&products, format!("{{\"id\": \"m1\", \"name\": \"Mug\", \"path\": [\"Home\", \"A > B\"], {fields}}}\n"))
        .unwrap();
    let files = ShopFiles { events: &[orders], items: Some(&products) };
    let report = import(&[mapping], files, &shop.path("out"), OPTIONS, |_, _| {}).unwrap();
    let items = read_items(&shop.path("out").join("items.parquet")).unwrap();
    assert_eq!((items.len(), report.item_count, shop.events().len()), (2, 2, 2));
    assert_eq!((items[0].title.as_str(), &items[0].categories[..]), ("Mug", &["Home > A > B".to_owned()][..]));
    assert_eq!(items[0].price, None, "an empty cell is a value of the file");
    assert_eq!((items[1].title.as_str(), items[1].price.map(|price| price.micros())), ("old", Some(2_000_000)));
    assert_eq!(items[0].created_at, Some(UnixMillis(1_714_521_600_000)), "of its first event");

    let without = PRODUCTS.replace("price = \"price\"\n", "original_price = \"before\"\ncurrency = \"in\"\n");
    let mapping = shop.mapping(&format!("{ORDERS}price = \"paid\"\n{without}")).unwrap();
    fs::write(
        shop.path("orders.csv"),
        "order,customer,sku,when,pieces,paid\n1,a,m1,2024-05-01,1,5\n1,a,m2,2024-05-01,1,5\n",
    )
    .unwrap();
    let rows = "m1,Mug,,,,,1,,1,,,\nm2,Mug,,,,9,1,,1,,,USD\n";
    fs::write(
        shop.path("products.csv"),
        format!("id,name,text,path,labels,before,stock,since,Size (EU),vegan,code,in\n{rows}"),
    )
    .unwrap();
    let (orders, products) = ([shop.path("orders.csv")], shop.path("products.csv"));
    let files = ShopFiles { events: &orders, items: Some(&products) };
    import(&[mapping], files, &shop.path("out"), OPTIONS, |_, _| {}).unwrap();
    let items = read_items(&shop.path("out").join("items.parquet")).unwrap();
    let price = |item: &Item| (item.price.map(|price| price.micros()), item.currency.clone());
    assert_eq!(price(&items[0]), (Some(5_000_000), "EUR".to_owned()), "the median price if the file has no prices");
    assert_eq!(price(&items[1]), (None, "USD".to_owned()), "another currency than that of the item's other prices");
}

#[test]
fn an_item_of_events_has_the_median_price_of_its_most_frequent_currency_and_a_title() {
    let mapping = format!("{ORDERS}title = \"name\"\nprice = \"paid\"\n");
    let rows = "order,customer,sku,when,pieces,name,paid\n1,a,m1,2024-05-01,1,<br>,1000 JPY\n2,a,m1,2024-05-01,1,&nbsp;,1100 JPY\n\
                3,a,m1,2024-05-01,1,<b></b>,8 EUR\n4,a,m2,2024-05-01,1,Mug<br>red,9 CZK\n5,a,m3,2024-05-01,1,,7 Kč\n\
                6,a,m2,2024-05-01,1,Mug <i>red</i>,8 CZK\n7,a,m2,2024-05-01,1,Cup,8 CZK\n";
    let shop = Shop::new();
    shop.import(&mapping, "orders.csv", rows.as_bytes()).unwrap();
    let items = read_items(&shop.path("out").join("items.parquet")).unwrap();
    let shown: Vec<_> = items
        .iter()
        .map(|item| (item.title.as_str(), item.price.map(|price| price.micros() / 1_000_000), item.currency.as_str()))
        .collect();
    assert_eq!(shown, [("m1", Some(1100), "JPY"), ("Mug red", Some(8), "CZK"), ("m3", Some(7), "CZK")]);
}

#[test]
fn a_rounded_id_of_any_column_of_events_drops_its_row() {
    let mapping = format!("{ORDERS}event_id = \"id\"\nsession = \"visit\"\nquery_id = \"search\"\n");
    let rows = "id,order,customer,sku,when,pieces,visit,search\ne1,1,a,tea,2024-05-01,1,,\n5.01E+12,1,a,tea,2024-05-01,1,,\n\
                e2,5E+12,a,tea,2024-05-01,1,,\ne3,1,5.01e+12,tea,2024-05-01,1,,\ne4,1,u:5.01E+12,tea,2024-05-01,1,,\n\
                e5,1,a,5E+12,2024-05-01,1,,\ne6,1,a,tea,2024-05-01,1,5.01E+12,\ne7,1,a,tea,2024-05-01,1,,5.01E+12\n";
    let (events, report) = imported(&mapping, "orders.csv", rows.as_bytes());
    assert_eq!((events.len(), dropped(&report)), (1, vec![("rounded id", 7)]));
}

#[test]
fn a_product_of_a_bad_value_is_dropped_and_the_others_are_imported() {
    let header = "id,name,text,path,labels,price,stock,since,Size (EU),vegan,code\n";
    let rows =
        "m1,Mug,,,,free,,,,,\nm2,Mug,,,,-3,,,,,\nm3,Mug,,,,1e10,,,,,\nm4,Mug,,,,4.95,many,,,,\nm1,Mug,,,,5.25,,,,,\n";
    let shop = Shop::new();
    let report = shop.import_items(PRODUCTS, "products.csv", format!("{header}{rows}").as_bytes()).unwrap();
    let items = read_items(&shop.path("out").join("items.parquet")).unwrap();
    assert_eq!((items.len(), items[0].price.map(|price| price.micros())), (1, Some(5_250_000)), "the second row of m1");
    let text = report.to_string();
    for part in [
        "2 dropped, not a number",
        "line 2, column `price`: `free` is not a number",
        "line 3, column `price`: `-3` is below clean.price_min, 0",
        "line 4, column `price`: `1e10` is above 1000000000, the highest price",
    ] {
        assert_contains(&text, &[part]);
    }
}

#[test]
fn attributes_follow_the_decimal_separator() {
    let header = "id;name;text;path;labels;price;stock;since;Size (EU);vegan;code\n";
    let mapping = format!("{PRODUCTS}[clean]\ndecimal_separator = \",\"\n");
    let shop = Shop::new();
    let rows = format!("{header}m1;Mug;;;;12,50;;;39,5;;0,5\nm2;Mug;;;;1.299;;;1.500;;0,25\n");
    shop.import_items(&mapping, "products.csv", rows.as_bytes()).unwrap();
    let items = read_items(&shop.path("out").join("items.parquet")).unwrap();
    let sizes: Vec<_> = items.iter().map(|item| item.attributes["size"].clone()).collect();
    assert_eq!(sizes, [AttributeValue::Number(39.5), AttributeValue::Number(1500.0)]);
    assert_eq!(items[1].attributes["code"], AttributeValue::Number(0.25));
    assert_eq!(items[1].price.map(|price| price.micros()), Some(1_299_000_000));
}

#[test]
fn a_product_that_exceeds_a_limit_is_an_error_with_the_limit() {
    let shop = Shop::new();
    let long =
        format!("id,name,text,path,labels,price,stock,since,Size (EU),vegan,code\nm1,{},,,,,,,,,\n", "x".repeat(1001));
    let text = shop.import_items(PRODUCTS, "products.csv", long.as_bytes()).unwrap_err().to_string();
    assert_contains(&text, &["line 2", "`name`", "1001 characters", "1000"]);
    let text = Shop::new().mapping(&PRODUCTS.replace("size =", "\"Size (EU)\" =")).unwrap_err().to_string();
    assert_contains(&text, &["Size (EU)", "A-Z"]);
}
