//! Texts of requests: queries, filters, orders, synonyms and tokens. Bytes that are not UTF-8 become replacement
//! characters.
use lodestone_catalog::{
    AttributeValue, Catalog, Filter, GeoPoint, Item, ItemKeys, ItemVectors, ORDER_KEYS_MAX, OrderBy, Part, Position,
    StoredValue,
};
use lodestone_core::{
    bits,
    ids::{ItemId, ItemKey, Row},
    text,
    units::{PriceMicros, UnixMillis},
};
use lodestone_engine::{EntryKind, ItemsToken, PageToken, TokenKey};
use lodestone_index::{CompletionCandidate, CompletionSource, Lexical, MatchMode, Suggester};
use lodestone_rules::{Synonyms, SynonymsParseError};
use std::{
    cell::RefCell,
    sync::{Arc, OnceLock},
};

const TITLES: [&str; 6] =
    ["Red mug 10 ft", "Chocolate box", "door bell 18 volt", "door bell", "蓝色马克杯 500毫升", "½\" pipe"];

fn inputs(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

fn items() -> Vec<Item> {
    let item = |(n, title): (usize, &&str)| {
        let mut item = Item::titled(ItemId::parse(&format!("SKU-{n}")).expect("a valid id"), title);
        item.attributes.insert("ean".to_owned(), AttributeValue::Text(format!("400{n}")));
        if n % 2 == 0 {
            item.brand = "Acme".to_owned();
            item.categories = vec!["Home > Mugs".to_owned()];
            item.price = PriceMicros::new(1_500_000 * n as i64);
            item.rating = Some(n as f64);
            item.stock_quantity = Some(n as u32);
            item.created_at = Some(UnixMillis(86_400_000 * n as i64));
            item.tags = vec!["new".to_owned(), "sale".to_owned()];
            item.attributes.insert("size".to_owned(), AttributeValue::Number(n as f64 - 2.5));
            item.attributes.insert("organic".to_owned(), AttributeValue::Flag(n > 2));
            let place = GeoPoint::new(52.5, 13.4 + n as f64).expect("degrees");
            item.attributes.insert("place".to_owned(), AttributeValue::GeoPoint(place));
        }
        item
    };
    TITLES.iter().enumerate().map(item).collect()
}

/// An index and completions of a few items in English and Chinese.
fn shop() -> &'static (Lexical, Suggester) {
    static SHOP: OnceLock<(Lexical, Suggester)> = OnceLock::new();
    SHOP.get_or_init(|| {
        let items = items();
        let mut lexical = Lexical::new().expect("an index in memory");
        lexical.set_synonyms(Synonyms::parse("mug, cup, 杯子\nbell => doorbell chime").expect("valid synonyms"));
        let rows: Vec<(Row, &Item)> = items.iter().enumerate().map(|(row, item)| (Row(row as u32), item)).collect();
        lexical.upsert(&rows).expect("an index in memory");
        let suggestible = |title: &&str| CompletionCandidate {
            text: (*title).to_owned(),
            category: "c".to_owned(),
            weight: 1.0,
            source: CompletionSource::Title,
        };
        (lexical, Suggester::build(TITLES.iter().map(suggestible)))
    })
}

fn catalog() -> &'static Catalog {
    static CATALOG: OnceLock<Catalog> = OnceLock::new();
    CATALOG.get_or_init(|| {
        let (mut catalog, keys) = (Catalog::default(), ItemKeys::default());
        for item in items() {
            catalog.upsert(&keys, Arc::new(item), ItemVectors::new(&[], &[]));
        }
        catalog
    })
}

pub(crate) fn query_seeds() -> Vec<Vec<u8>> {
    inputs(&[
        "red mug",
        "choclate bx",
        "doorbell 18v 10ft",
        "马克杯 500毫升",
        "½ pipe SKU-1",
        "\"door\" AND (bell* ~4001)",
    ])
}

pub(crate) fn accepts_query(input: &[u8]) -> bool {
    let (lexical, suggester) = shop();
    let (text, count) = (String::from_utf8_lossy(input), 4);
    let query: &str = &text;
    let odd = |row: Row| row.0 % 2 == 1;
    let matches = lexical.search_all_then_any(query, count, &odd).expect("an index in memory");
    assert!(matches.exact <= matches.complete && matches.complete <= matches.rows.len() && matches.rows.len() <= count);
    assert!(matches.rows.iter().all(|(row, score)| odd(*row) && score.is_finite() && *score > 0.0));
    for matching in [MatchMode::All, MatchMode::Any, MatchMode::Prefix] {
        assert!(lexical.search(query, matching, count, &odd).expect("an index in memory").len() <= count);
    }
    let odd_rows = vec![0xAAAA_AAAA_AAAA_AAAA; lexical.row_count().div_ceil(64)];
    let all = lexical.matching(query, &odd_rows).expect("an index in memory").rows;
    let is_among_all = |(row, _): &(Row, f32)| bits::has(&all, row.index());
    assert!(matches.rows[..matches.complete].iter().all(is_among_all), "rows that match all words");
    if let Some(corrected) = lexical.correct(query, &odd).expect("an index in memory") {
        assert!(corrected != text::normalize(query));
        assert!(!lexical.search(&corrected, MatchMode::All, 1, &odd).expect("an index in memory").is_empty());
    }
    assert!(suggester.complete(query, count, &|_| 1.0).len() <= count);
    let of_users = Suggester::build([]);
    of_users.add_query(query, 1.0);
    assert!(of_users.complete(query, 5, &|_| 0.0).len() <= 5);
    true
}

pub(crate) fn filter_seeds() -> Vec<Vec<u8>> {
    inputs(&[
        "in_stock AND price <= 5.5",
        "NOT (brand = \"Acme\" OR category IN (\"Home > Mugs\", \"a\\\"b\"))",
        "title HAS \"蓝色 mug\" AND tags != \"new\" AND rating_count > 3",
        "attributes.organic AND attributes.size >= -1000.5 AND attributes.ean IN (\"4001\")",
        "distance(attributes.place, 52.5, -13.4) < 2.5 km OR availability = \"preorder\"",
        "create_time >= \"2026-01-31\" AND attributes.since < timestamp(\"2026-01-31T10:00:00Z\")",
        "item_id != \"SKU-1\" AND group_id = \"g\" AND discount > 0.1 AND margin < 2 AND currency = \"EUR\"",
        "stock_quantity = 0 OR original_price > 1 OR category_path = \"Home > Mugs\" OR in_stock = false",
    ])
}

pub(crate) fn accepts_filter(input: &[u8]) -> bool {
    let text = String::from_utf8_lossy(input);
    let filter = match Filter::parse(&text) {
        Ok(filter) => filter,
        Err(error) => {
            assert!(error.position <= text.chars().count(), "{error} of {text:?}");
            return false;
        }
    };
    assert_eq!(Filter::parse(&filter.to_string()).as_ref(), Ok(&filter), "a filter that is formatted and parsed again");
    let catalog = catalog();
    let matching = catalog.matching(&filter, catalog.alive());
    for row in (0..catalog.row_count()).map(|row| Row(row as u32)) {
        assert_eq!(bits::has(&matching, row.index()), catalog.matches(&filter, row), "{filter} by columns and by item");
    }
    true
}

pub(crate) fn order_seeds() -> Vec<Vec<u8>> {
    inputs(&[
        "price desc, title",
        "attributes.size asc, attributes.organic desc, item_id",
        "distance(attributes.place, 52.5, -13.4), rating desc",
        "in_stock, create_time desc, brand, stock_quantity",
    ])
}

pub(crate) fn accepts_order(input: &[u8]) -> bool {
    let text = String::from_utf8_lossy(input);
    let order = match OrderBy::parse(&text) {
        Ok(order) => order,
        Err(problems) => {
            assert!(!problems.is_empty());
            return false;
        }
    };
    assert!(order.fields().count() <= ORDER_KEYS_MAX);
    let catalog = catalog();
    let rows = || (0..catalog.row_count()).map(|row| Row(row as u32));
    if !order.is_empty() {
        let all = catalog.select_by(&order, rows(), Part { count: catalog.row_count(), ..Part::default() });
        assert_eq!(all.rows.len(), catalog.row_count());
        // A page behind a position has the rows that follow it.
        let (_, second) = &all.rows[1];
        let rest = Part { after: Some(second), count: catalog.row_count(), ..Part::default() };
        let of = |selected: &[(Row, Position)]| selected.iter().map(|(row, _)| *row).collect::<Vec<Row>>();
        assert_eq!(of(&catalog.select_by(&order, rows(), rest).rows), of(&all.rows[2..]));
    }
    true
}

pub(crate) fn synonym_seeds() -> Vec<Vec<u8>> {
    inputs(&["sofa, couch\ndoor bell => doorbell, chime\r\n", "# 注释\n马克杯，杯子, mug\n10ft => 10 feet"])
}

pub(crate) fn accepts_synonyms(input: &[u8]) -> bool {
    thread_local! {
        static EMPTY: RefCell<Lexical> = RefCell::new(Lexical::new().expect("an index in memory"));
    }
    let text = String::from_utf8_lossy(input);
    match Synonyms::parse(&text) {
        Ok(synonyms) => EMPTY.with_borrow_mut(|lexical| {
            lexical.set_synonyms(synonyms);
            for query in text.lines().take(3) {
                let found = lexical.search(query, MatchMode::All, 3, &|_| true).expect("an index in memory");
                assert!(found.is_empty(), "the index has no items");
            }
            true
        }),
        Err(SynonymsParseError::Line(line, _)) => {
            assert!((1..=text.lines().count()).contains(&line));
            false
        }
        Err(SynonymsParseError::TooLong(lines)) => {
            assert_eq!(lines, text.lines().count());
            false
        }
    }
}

/// A key whose tokens are the seeds: the fuzzer cannot find a signature.
fn key() -> TokenKey {
    TokenKey::new([7; 32])
}

pub(crate) fn token_seeds() -> Vec<Vec<u8>> {
    let key = key();
    let values = vec![StoredValue::Number(1.5), StoredValue::Text("mug".into()), StoredValue::Missing];
    let after = Position { values, key: ItemKey(3) };
    let mut position = Vec::new();
    after.encode(&mut position);
    let tokens = [
        key.page(&PageToken { slate: [1; 16], offset: 20, after: None }),
        key.page(&PageToken { slate: [1; 16], offset: 0, after: Some(after) }),
        key.items(&ItemsToken { fingerprint: 5, after: ItemId::parse("SKU-1").expect("a valid id") }),
        key.entries(EntryKind::Rule, "summer"),
        key.attributes("size"),
        key.attribution([2; 16]),
        key.completion([2; 16], "red mug"),
    ];
    tokens.into_iter().map(String::into_bytes).chain([position]).collect()
}

/// Parses a token of each kind. The input is also read as a position, which the signature of a page token protects.
pub(crate) fn accepts_token(input: &[u8]) -> bool {
    let (key, text) = (key(), String::from_utf8_lossy(input));
    let parsed = [
        key.parse_page(&text).map(|token| key.page(&token)),
        key.parse_items(&text).map(|token| key.items(&token)),
        key.parse_entries(&text, EntryKind::Rule).map(|after| key.entries(EntryKind::Rule, &after)),
        key.parse_attributes(&text).map(|after| key.attributes(&after)),
        key.parse_attribution(&text).map(|answer| key.attribution(answer)),
        key.parse_completion(&text).map(|(answer, text)| key.completion(answer, &text)),
    ];
    let mut accepted = 0;
    for token in parsed.into_iter().flatten() {
        assert_eq!(token, text, "only the token that was signed is accepted");
        accepted += 1;
    }
    assert!(accepted <= 1, "{text} is a token of {accepted} kinds");
    let position = Position::decode(input);
    if let Some(position) = &position {
        let mut bytes = Vec::new();
        position.encode(&mut bytes);
        assert_eq!(bytes, input, "a position has one encoding");
    }
    accepted == 1 || position.is_some()
}
