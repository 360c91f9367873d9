//! Files of a shop: feeds and events in the formats that `import` reads, canonical Parquet files, and the files of the
//! analysis commands.
use crate::files::{in_directory, select, selecting, with_file, written};
use lodestone_catalog::{AttributeValue, Item};
use lodestone_core::{
    ids::{ItemId, UserId},
    units::{PriceMicros, UnixMillis},
};
use lodestone_dataset::{
    Cells, DatasetError, DatasetEvent,
    import::{ImportOptions, Mapping, ShopFiles, import, read_feed, read_inventory},
    read_decisions, read_events, read_incentive_assignment, read_items, read_purchases, read_slots, write_events,
    write_items, write_table,
};
use lodestone_events::EventKind;
use lodestone_experiments::{off_policy, read_answers, read_outcomes};
use std::{fs, path::Path, slice, sync::OnceLock};

/// 2026-01-01.
const NOW: UnixMillis = UnixMillis(1_767_225_600_000);
const OPTIONS: ImportOptions = ImportOptions { now: NOW, items_time: Some(NOW), allow_shrink: true };

#[derive(Clone, Copy)]
enum Content {
    Items,
    Inventory,
    Events,
}

/// A shipped mapping, a file of a format and a valid content. That of Shopify needs a mapping that adds the currency.
type Feed = (&'static str, &'static str, Content, &'static str);

const FEEDS: [Feed; 7] = [
    (
        "google-merchant-center",
        "items.tsv",
        Content::Items,
        "id\ttitle\tprice\tavailability\tproduct_type\tsale_price\n\
         1\tRed mug\t9.99 EUR\tin_stock\tHome > Mugs\t7.99 EUR\n",
    ),
    (
        "google-merchant-center",
        "items.xml",
        Content::Items,
        "<?xml version=\"1.0\" encoding=\"utf-8\"?><rss xmlns:g=\"http://base.google.com/ns/1.0\"><channel><item>\
         <g:id>1</g:id><title>Red &amp; mug</title><g:price>9.99 EUR</g:price><link href=\"https://a.example/1\"/>\
         <description><![CDATA[<b>5</b>]]></description></item></channel></rss>",
    ),
    (
        "google-local-inventory",
        "inventory.csv",
        Content::Inventory,
        "store_code,id,quantity,price,availability\nleeds,1,3,\"9.99 EUR\",in_stock\n",
    ),
    (
        "icecat",
        "items.jsonl",
        Content::Items,
        "{\"id\": 1, \"title\": \"Printer\", \"price\": 19900, \"supplier\": \"Acme\", \"attr_t_oem_code\": \"A1,B2\", \
         \"attr_n_width\": 2.5, \"attr_b_usb\": true, \"date_released\": \"2025-01-31\"}\n",
    ),
    (
        "ga4",
        "events.jsonl",
        Content::Events,
        "{\"event_name\": \"purchase\", \"event_timestamp\": \"1764000000000000\", \"user_pseudo_id\": \"p1\", \
         \"items\": [{\"item_id\": \"a\", \"item_name\": \"Red mug\", \"price\": 9.99, \"quantity\": 2}], \"event_params\": \
         [{\"key\": \"currency\", \"value\": {\"string_value\": \"EUR\"}}]}\n",
    ),
    (
        "clickstream",
        "events.csv",
        Content::Events,
        "item_id;timestamp;user_id;event_type;price;quantity;query\na;2025-01-01T10:00:00Z;u1;purchase;9.99;1;\n\
         ;1764000000000;u1;search;;;\"red mug\"\n",
    ),
    (
        "opensearch-ubi",
        "events.jsonl",
        Content::Events,
        "{\"_source\": {\"action_name\": \"click\", \"timestamp\": \"2025-01-01T10:00:00Z\", \"client_id\": \"c1\", \
         \"event_attributes\": {\"object\": {\"object_id\": \"a\", \"name\": \"Red mug\"}}}}\n",
    ),
];

pub(crate) fn import_seeds() -> Vec<Vec<u8>> {
    FEEDS.iter().enumerate().map(|(number, (_, _, _, content))| selecting(number, content)).collect()
}

fn mapping(number: usize) -> &'static Mapping {
    static MAPPINGS: OnceLock<Vec<Mapping>> = OnceLock::new();
    let open = |(name, _, _, _): &Feed| Mapping::open(name).expect("a shipped mapping");
    &MAPPINGS.get_or_init(|| FEEDS.iter().map(open).collect())[number]
}

pub(crate) fn accepts_import(input: &[u8]) -> bool {
    let Some((number, content)) = select(input, FEEDS.len()) else { return false };
    let (mappings, (_, name, kind, _)) = (slice::from_ref(mapping(number)), FEEDS[number]);
    in_directory(|directory| {
        let path = directory.join(name);
        fs::write(&path, content).expect("the directory is writable");
        match kind {
            Content::Items => read_feed(mappings, &path, OPTIONS, |_, _| {}).is_ok_and(|(items, report)| {
                assert_eq!(items.len() as u64, report.item_count);
                assert_readable(directory, &items);
                true
            }),
            Content::Inventory => read_inventory(mappings, &path, OPTIONS, |_, _| {}).is_ok(),
            Content::Events => {
                let out = directory.join("out");
                let files = ShopFiles { events: slice::from_ref(&path), items: None };
                import(mappings, files, &out, OPTIONS, |_, _| {}).is_ok_and(|_| {
                    read_events(&out.join("events.parquet")).expect("imported events are readable");
                    let items = read_items(&out.join("items.parquet"));
                    // Searches alone name no item.
                    assert!(matches!(items, Ok(_) | Err(DatasetError::Empty { .. })), "imported items are readable");
                    true
                })
            }
        }
    })
}

/// Checks that items can be written to the canonical file and read from it.
fn assert_readable(directory: &Path, items: &[Item]) {
    if !items.is_empty() {
        let path = directory.join("canonical.parquet");
        write_items(&path, items).expect("the directory is writable");
        assert_eq!(read_items(&path).expect("written items are readable").len(), items.len());
    }
}

const ITEMS: usize = 0;
const EVENTS: usize = 1;
const SLOTS: usize = 2;
const ASSIGNMENT: usize = 3;
const FEED: usize = 4;
const PARQUET_FILES: usize = 5;

pub(crate) fn parquet_seeds() -> Vec<Vec<u8>> {
    let mut item = Item::titled(ItemId::parse("a").expect("a valid id"), "Red mug");
    item.categories = vec!["Home > Mugs".to_owned()];
    item.price = PriceMicros::new(9_990_000);
    item.attributes.insert("size".to_owned(), AttributeValue::Number(2.5));
    let user = UserId::signed_in("u-1").expect("a valid id");
    let event = DatasetEvent::of_item("e-1".to_owned(), EventKind::View, Some(user), NOW, item.id.clone());
    let items = written("items.parquet", |path| write_items(path, slice::from_ref(&item)).expect("writable"));
    let events = written("events.parquet", |path| write_events(path, slice::from_ref(&event)).expect("writable"));
    let text = |name: &str, text: &str| (name.to_owned(), Cells::Texts(vec![text.to_owned()]));
    let integer = |name: &str, number| (name.to_owned(), Cells::Integers(vec![number]));
    let number = |name: &str, number| (name.to_owned(), Cells::Numbers(vec![Some(number)]));
    let slots = vec![
        text("answer_id", "1"),
        text("user", "u:u-1"),
        text("session", ""),
        text("item_id", "a"),
        text("experiment", "e"),
        text("arm", "a"),
        integer("time_ms", NOW.0),
        integer("slot", 1),
        integer("organic_slot", 1),
        integer("team", 0),
        number("propensity", 0.5),
        ("is_pinned".to_owned(), Cells::Flags(vec![false])),
    ];
    let assignment =
        vec![text("user_id", "u-1"), text("incentive_id", "ten"), text("reason", "GAIN"), number("propensity", 0.9)];
    let feed =
        vec![text("id", "1"), text("title", "Red mug"), text("availability", "in_stock"), text("price", "9.99 EUR")];
    let table = |columns| written("table.parquet", |path| write_table(path, columns).expect("writable"));
    vec![
        selecting(ITEMS, items),
        selecting(EVENTS, events),
        selecting(SLOTS, table(slots)),
        selecting(ASSIGNMENT, table(assignment)),
        selecting(FEED, table(feed)),
    ]
}

pub(crate) fn accepts_parquet(input: &[u8]) -> bool {
    let Some((file, content)) = select(input, PARQUET_FILES) else { return false };
    with_file("file.parquet", content, |path| match file {
        ITEMS => read_items(path).is_ok(),
        EVENTS => read_events(path).is_ok(),
        SLOTS => read_slots(path).is_ok(),
        ASSIGNMENT => read_incentive_assignment(path).is_ok(),
        // The mapping of the first feed has columns of items.
        _ => read_feed(slice::from_ref(mapping(0)), path, OPTIONS, |_, _| {}).is_ok(),
    })
}

/// Files of analysis commands with a valid content each.
const ANALYSIS_FILES: [(&str, &str); 6] = [
    (
        "answers.jsonl",
        "{\"user\": \"u:1\", \"time_ms\": 1, \"experiment\": \"e\", \"arm\": \"a\"}\n\
         {\"user\": \"u:2\", \"time_ms\": 2, \"experiment\": \"e\", \"answer\": \"1\", \
         \"picks\": [{\"item\": \"a\", \"team\": \"b\"}]}\n",
    ),
    (
        "outcomes.jsonl",
        "{\"user\": \"u:1\", \"time_ms\": 5, \"type\": \"purchase\", \"value\": 9.99, \"currency\": \"EUR\"}\n",
    ),
    ("logged.csv", "item_id,position,click,propensity_score,user_id\na,1,0,0.5,u1\nb,2,1,0.25,u2\n"),
    ("purchases.csv", "customer_id,date,value,currency\nc1,2025-01-31,9.99,EUR\nc1,20250302,-1.5,EUR\n"),
    (
        "purchases.tsv",
        "user\ttimestamp\tprice\tquantity\tinvoice\nc1\t2025-01-31 10:00:00\t2.5\t2\tC1\nc2\t2025-02-01\t1\t1\t2\n",
    ),
    (
        "decisions.csv",
        "user_id,treatment,propensity,purchase,value,cost,age\nu1,none,0.5,0,0,0,30\nu2,ten,0.5,1,9.99,1,40\n",
    ),
];

pub(crate) fn analysis_seeds() -> Vec<Vec<u8>> {
    ANALYSIS_FILES.iter().enumerate().map(|(number, (_, content))| selecting(number, content)).collect()
}

pub(crate) fn accepts_analysis(input: &[u8]) -> bool {
    let Some((number, content)) = select(input, ANALYSIS_FILES.len()) else { return false };
    in_directory(|directory| {
        let path = directory.join(ANALYSIS_FILES[number].0);
        fs::write(&path, content).expect("the directory is writable");
        match number {
            0 => read_answers(&path).is_ok(),
            1 => read_outcomes(&path).is_ok(),
            2 => off_policy::read_file(&path).is_ok(),
            3 | 4 => read_purchases(&path, &mut |_| {}).is_ok(),
            _ => read_decisions(directory).is_ok(),
        }
    })
}
