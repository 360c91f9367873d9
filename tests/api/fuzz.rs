//! Texts from outside: queries, filters, lists of synonyms, page tokens. Each is answered or refused with an error that
//! states the position or the line; nothing panics, and accepted texts keep the invariants of their type.
//!
//! An ordinary run tries [`CASES`] texts of each kind. `FUZZ_SECONDS=60 cargo test --release --test api fuzz::` tries
//! each kind for 60 s, from a new seed each time (`make fuzz`). A text that fails is reduced and printed.
use crate::support::number_setting;
use lodestone_catalog::{AttributeValue, Filter, Item};
use lodestone_core::{
    ids::{ItemId, Row},
    text,
    units::UnixMillis,
};
use lodestone_engine::{PageToken, TokenKey};
use lodestone_index::{CompletionCandidate, CompletionSource, Lexical, MatchMode, Suggester};
use lodestone_rules::{Synonyms, SynonymsParseError};
use proptest::{
    prelude::*,
    test_runner::{Config, TestCaseError, TestRunner},
};
use std::{
    sync::OnceLock,
    time::{Duration, Instant},
};

/// Cases between two readings of the clock.
const CASES: u32 = 256;

/// Tries texts for `FUZZ_SECONDS` seconds, at least [`CASES`] of them. Panics with the reduced text if `check` fails.
fn fuzz<S: Strategy>(texts: S, check: impl Fn(S::Value) -> Result<(), TestCaseError>) {
    let end = Instant::now() + Duration::from_secs(number_setting("FUZZ_SECONDS", 0) as u64);
    let mut runner = TestRunner::new(Config { cases: CASES, failure_persistence: None, ..Config::default() });
    loop {
        if let Err(error) = runner.run(&texts, &check) {
            panic!("{error}");
        }
        if Instant::now() >= end {
            return;
        }
    }
}

/// Generates texts from `pieces` and arbitrary characters, and sometimes a very long one.
fn texts(pieces: &'static [&'static str]) -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        6 => prop::sample::select(pieces).prop_map(str::to_owned),
        2 => any::<char>().prop_map(String::from),
        1 => "\\PC{0,8}",
    ];
    prop_oneof![
        8 => prop::collection::vec(piece.clone(), 0..14).prop_map(|pieces| pieces.concat()),
        2 => any::<String>(),
        1 => (piece, 0usize..10_000).prop_map(|(piece, times)| piece.repeat(times / piece.len().max(1))),
    ]
}

/// Pieces of queries.
const WORDS: &[&str] = &[
    "red",
    "mug",
    "chocolate",
    "choclate",
    "doorbell",
    "door",
    "bell",
    " ",
    " ",
    " ",
    "-",
    "'",
    "\"",
    "/",
    "½",
    ".",
    "10",
    "3/4",
    "ft",
    "feet",
    "18v",
    "4x8",
    "蓝色",
    "马克杯",
    "毫升",
    "🦆",
    "\u{200d}",
    "\u{301}",
    "\u{0}",
    "SKU-1",
    "sku-1",
    "ﬁ",
    "Ⅻ",
    "ß",
    "İ",
    "\u{202e}",
    "AND",
    "(",
    "*",
    "~",
    "^",
    "\\",
];

/// An index and completions of six titles in English and Chinese.
fn shop() -> &'static (Lexical, Suggester) {
    static SHOP: OnceLock<(Lexical, Suggester)> = OnceLock::new();
    SHOP.get_or_init(|| {
        let titles =
            ["Red mug 10 ft", "Chocolate box", "door bell 18 volt", "door bell", "蓝色马克杯 500毫升", "½\" pipe"];
        let items: Vec<Item> = (titles.iter().enumerate())
            .map(|(n, title)| {
                let mut item = Item::titled(ItemId::parse(&format!("SKU-{n}")).unwrap(), title);
                item.brand = "Acme".to_owned();
                item.attributes.insert("ean".to_owned(), AttributeValue::Text(format!("400{n}")));
                item
            })
            .collect();
        let mut lexical = Lexical::new().unwrap();
        lexical.set_synonyms(Synonyms::parse("mug, cup, 杯子\nbell => doorbell chime").unwrap());
        let rows: Vec<(Row, &Item)> = items.iter().enumerate().map(|(row, item)| (Row(row as u32), item)).collect();
        lexical.upsert(&rows).unwrap();
        let source = CompletionSource::Title;
        let suggestible = |title: &&str| CompletionCandidate {
            text: (*title).to_owned(),
            category: "c".to_owned(),
            weight: 1.0,
            source,
        };
        (lexical, Suggester::build(titles.iter().map(suggestible)))
    })
}

#[test]
fn any_query_is_answered() {
    let (lexical, suggester) = shop();
    fuzz((texts(WORDS), 0usize..9), |(query, count)| {
        let odd = |row: Row| row.0 % 2 == 1;
        let matches = lexical.search_all_then_any(&query, count, &odd).unwrap();
        prop_assert!(matches.exact <= matches.complete && matches.complete <= matches.rows.len());
        prop_assert!(matches.rows.len() <= count);
        prop_assert!(matches.rows.iter().all(|(row, score)| odd(*row) && score.is_finite() && *score > 0.0));
        for matching in [MatchMode::All, MatchMode::Any, MatchMode::Prefix] {
            prop_assert!(lexical.search(&query, matching, count, &odd).unwrap().len() <= count);
        }
        let odd_rows = vec![0xAAAA_AAAA_AAAA_AAAA; lexical.row_count().div_ceil(64)];
        let all = lexical.matching(&query, &odd_rows).unwrap().rows;
        let is_among_all = |(row, _): &(Row, f32)| lodestone_core::bits::has(&all, row.index());
        prop_assert!(matches.rows[..matches.complete].iter().all(is_among_all), "rows that match all words");
        if let Some(corrected) = lexical.correct(&query, &odd).unwrap() {
            prop_assert!(corrected != text::normalize(&query));
            prop_assert!(!lexical.search(&corrected, MatchMode::All, 1, &odd).unwrap().is_empty());
        }
        prop_assert!(suggester.complete(&query, count, &|_| 1.0).len() <= count);
        Ok(())
    });
}

#[test]
fn any_text_may_be_added_to_the_completions() {
    let suggester = Suggester::build([]);
    fuzz((texts(WORDS), texts(WORDS)), |(query, typed)| {
        suggester.add_query(&query, 1.0);
        prop_assert!(suggester.complete(&typed, 5, &|_| 0.0).len() <= 5);
        Ok(())
    });
}

/// Pieces of filters.
const FILTERS: &[&str] = &[
    "price",
    "brand",
    "category",
    "tags",
    "in_stock",
    "create_time",
    "item_id",
    "attributes.size",
    "attributes.",
    "availability",
    "margin",
    "distance(attributes.a, 1, -2.5)",
    "distance(",
    " km",
    " m",
    "timestamp(",
    "\"Home > Mugs\"",
    "\"preorder\"",
    " ",
    " ",
    " AND ",
    " OR ",
    "NOT ",
    "(",
    ")",
    "=",
    "!=",
    "<",
    "<=",
    ">",
    ">=",
    " IN ",
    " HAS ",
    ",",
    "\"",
    "\"Acme\"",
    "\"a\\\"b\"",
    "\\",
    "5",
    "-1",
    "1e400",
    "0.5",
    "true",
    "false",
    "\"2026-01-31\"",
    "\"2026-02-31T25:00:00Z\"",
    "蓝色",
    "🦆",
];

#[test]
fn any_filter_is_parsed_or_refused_with_a_position() {
    let item = Item::titled(ItemId::parse("a").unwrap(), "Red mug");
    fuzz(texts(FILTERS), |text| {
        match Filter::parse(&text) {
            Ok(filter) => {
                filter.matches(&item, UnixMillis(0));
                prop_assert_eq!(
                    Filter::parse(&filter.to_string()).unwrap(),
                    filter,
                    "a filter that is formatted and parsed again"
                );
            }
            Err(error) => prop_assert!(error.position <= text.chars().count(), "{} of {:?}", error, text),
        }
        Ok(())
    });
}

/// Pieces of lists of synonyms.
const SYNONYMS: &[&str] = &[
    "sofa",
    "couch",
    "door bell",
    "马克杯",
    "杯",
    "，",
    ",",
    ",",
    "=>",
    "=>",
    "\n",
    "\r\n",
    "#",
    " ",
    "10ft",
    "\u{feff}",
    "🦆",
];

#[test]
fn any_list_of_synonyms_is_parsed_or_refused_with_a_line() {
    fuzz((texts(SYNONYMS), texts(WORDS)), |(text, query)| {
        match Synonyms::parse(&text) {
            Ok(synonyms) => {
                let mut lexical = Lexical::new().unwrap();
                lexical.set_synonyms(synonyms);
                prop_assert!(lexical.search(&query, MatchMode::All, 3, &|_| true).unwrap().is_empty());
            }
            Err(SynonymsParseError::Line(line, _)) => prop_assert!((1..=text.lines().count()).contains(&line)),
            Err(SynonymsParseError::TooLong(lines)) => prop_assert_eq!(lines, text.lines().count()),
        }
        Ok(())
    });
}

#[test]
fn only_page_tokens_of_the_same_key_are_accepted() {
    let key = TokenKey::new([7; 32]);
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<char>()), 0..3);
    fuzz((any::<[u8; 16]>(), any::<u32>(), changes, texts(WORDS)), |(slate, offset, changes, text)| {
        let page = PageToken { slate, offset, after: None };
        let own = key.page(&page);
        prop_assert_eq!(key.parse_page(&own), Some(page));
        let mut changed: Vec<char> = own.chars().collect();
        for (at, c) in changes {
            changed[at.index(own.len())] = c;
        }
        let changed: String = changed.into_iter().collect();
        prop_assert_eq!(key.parse_page(&changed).is_some(), changed == own);
        prop_assert_eq!(key.parse_page(&text), None);
        prop_assert!(key.parse_attribution(&text).is_none());
        Ok(())
    });
}
