//! Feeds and event exports in the formats that shops have, by the shipped mappings, and what is refused.
use flate2::{Compression, write::GzEncoder};
use lodestone_catalog::{AttributeValue, Availability, GeoPoint, Item, Pricing};
use lodestone_core::{units::UnixMillis, viewer::Platform};
use lodestone_dataset::{
    DatasetEvent,
    import::{
        ImportError, ImportOptions, ImportReport, InventoryReport, LocalInventory, Mapping, SHIPPED, ShopFiles, import,
        read_inventory,
    },
    into_events, read_events, read_items,
};
use proptest::prelude::*;
use std::{fs, io::Write, path::PathBuf};

/// 2026-01-01, the time of the imports.
const NOW: UnixMillis = UnixMillis(1_767_225_600_000);
const OPTIONS: ImportOptions = ImportOptions { now: NOW, items_time: None, allow_shrink: false };

struct Shop {
    directory: tempfile::TempDir,
}

impl Shop {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.directory.path().join(name);
        fs::write(&path, content).unwrap();
        path
    }

    /// Opens a mapping: the name of a shipped one, or the text of a file.
    fn mapping(&self, mapping: &str) -> Result<Mapping, ImportError> {
        match mapping.contains('\n') {
            false => Mapping::open(mapping),
            true => Mapping::open(&self.write("mapping.toml", mapping).display().to_string()),
        }
    }

    fn import_items_with(
        &self,
        mapping: &str,
        name: &str,
        content: impl AsRef<[u8]>,
        options: ImportOptions,
    ) -> Result<(Vec<Item>, ImportReport), ImportError> {
        let (mapping, file) = (self.mapping(mapping)?, self.write(name, content));
        let out = self.directory.path().join("out");
        let files = ShopFiles { events: &[], items: Some(&file) };
        let report = import(&[mapping], files, &out, options, |_, _| {})?;
        Ok((read_items(&out.join("items.parquet")).unwrap(), report))
    }

    fn import_items(
        &self,
        mapping: &str,
        name: &str,
        content: impl AsRef<[u8]>,
    ) -> Result<(Vec<Item>, ImportReport), ImportError> {
        self.import_items_with(mapping, name, content, OPTIONS)
    }

    fn import_events(
        &self,
        mapping: &str,
        files: &[(&str, &str)],
    ) -> Result<(Vec<DatasetEvent>, ImportReport), ImportError> {
        let mapping = self.mapping(mapping)?;
        let files: Vec<PathBuf> = files.iter().map(|(name, content)| self.write(name, content)).collect();
        let out = self.directory.path().join("out");
        let report = import(&[mapping], ShopFiles { events: &files, items: None }, &out, OPTIONS, |_, _| {})?;
        Ok((read_events(&out.join("events.parquet")).unwrap(), report))
    }
}

fn items_of(mapping: &str, name: &str, content: impl AsRef<[u8]>) -> (Vec<Item>, ImportReport) {
    Shop::new().import_items(mapping, name, content).unwrap_or_else(|error| panic!("{error}"))
}

fn refused(mapping: &str, name: &str, content: impl AsRef<[u8]>) -> String {
    let shop = Shop::new();
    let error = shop.import_items(mapping, name, content).expect_err("a feed that cannot be imported").to_string();
    assert!(!shop.directory.path().join("out/items.parquet").exists(), "a partial import was left behind");
    error
}

fn assert_contains(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "`{part}` is missing in: {text}");
    }
}

fn micros(item: &Item) -> (Option<i64>, Option<i64>, &str) {
    let micros = |price: Option<lodestone_core::units::PriceMicros>| price.map(|price| price.micros());
    (micros(item.price), micros(item.original_price), &item.currency)
}

fn text(item: &Item, attribute: &str) -> Option<String> {
    match item.attributes.get(attribute) {
        Some(AttributeValue::Text(text)) => Some(text.clone()),
        other => other.map(|other| format!("{other:?}")),
    }
}

fn dropped(report: &ImportReport) -> Vec<(&str, u64)> {
    report.dropped_items.iter().map(|(name, class)| (*name, class.count)).collect()
}

const GOOGLE_TSV: &str = "id\ttitle\tdescription\tlink\timage_link\tavailability\tprice\tsale_price\t\
                          sale_price_effective_date\tbrand\tproduct_type\titem_group_id\tcolor\n\
    m1\tMug &amp; Saucer\t<p>Holds <b>tea</b></p>\thttps://shop.test/m1\thttps://shop.test/m1.webp\tin_stock\t\
    12.99 EUR\t9.99 EUR\t2025-12-01T00:00+0100/2026-02-01T00:00+0100\tAcme\tHome &gt; Mugs\tmug\tred\n\
    m2\tMug\t\thttps://shop.test/m2\t\tout of stock\t12.99 EUR\t9.99 EUR\t2025-01-01T00:00Z/2025-02-01T00:00Z\t\t\tmug\t\
    blue\n";

#[test]
fn a_google_feed_has_the_same_items_as_tsv_rss_and_atom() {
    let item = |open: &str, close: &str| {
        format!(
            "<{open}><g:id>m1</g:id><title><![CDATA[Mug & Saucer]]></title>\
             <description>&lt;p&gt;Holds &lt;b&gt;tea&lt;/b&gt;&lt;/p&gt;</description>\
             <link>https://shop.test/m1</link><g:image_link>https://shop.test/m1.webp</g:image_link>\
             <g:availability>in_stock</g:availability><g:price>12.99 EUR</g:price><g:sale_price>9.99 EUR</g:sale_price>\
             <g:sale_price_effective_date>2025-12-01T00:00+0100/2026-02-01T00:00+0100</g:sale_price_effective_date>\
             <g:brand>Acme</g:brand><g:product_type>Home &gt; Mugs</g:product_type>\
             <g:shipping><g:country>DE</g:country><g:price>4.90 EUR</g:price></g:shipping>\
             <g:item_group_id>mug</g:item_group_id><g:color>red</g:color></{close}>\n\
             <{open}><g:id>m2</g:id><title>Mug</title><link>https://shop.test/m2</link>\
             <g:availability>out of stock</g:availability><g:price>12.99 EUR</g:price>\
             <g:sale_price>9.99 EUR</g:sale_price>\
             <g:sale_price_effective_date>2025-01-01T00:00Z/2025-02-01T00:00Z</g:sale_price_effective_date>\
             <g:item_group_id>mug</g:item_group_id><g:color>blue</g:color></{close}>\n"
        )
    };
    let rss = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<rss version=\"2.0\" xmlns:g=\"http://base.google.com/ns/1.0\">\
         <channel><title>Shop</title>{}</channel></rss>",
        item("item", "item")
    );
    let atom = format!(
        "<feed xmlns=\"http://www.w3.org/2005/Atom\" xmlns:g=\"http://base.google.com/ns/1.0\"><title>Shop</title>{}\
         </feed>\n",
        item("entry", "entry")
    );
    let (of_tsv, report) = items_of("google-merchant-center", "feed.tsv", GOOGLE_TSV);
    for (name, content) in [("feed.xml", &rss), ("atom.xml", &atom)] {
        let (items, _) = items_of("google-merchant-center", name, content);
        assert_eq!(items, of_tsv, "{name}");
    }
    assert_contains(&report.to_string(), &["optional columns not in the files", "gtin", "2 items"]);
    let [first, second] = &of_tsv[..] else { panic!("{of_tsv:?}") };
    assert_eq!((first.title.as_str(), first.description.as_str()), ("Mug & Saucer", "Holds tea"));
    assert_eq!((first.brand.as_str(), &first.categories[..]), ("Acme", &["Home > Mugs".to_owned()][..]));
    for (item, during, end) in [
        (first, "2026-01-01T00:00:00Z", "2026-01-31T23:00:00Z"),
        (second, "2025-01-31T00:00:00Z", "2025-02-01T00:00:00Z"),
    ] {
        let at = |time: &str| {
            let time = UnixMillis(time.parse::<jiff::Timestamp>().unwrap().as_millisecond());
            let Pricing { price, original_price } = item.price_at(time);
            [price, original_price].map(|price| price.map(|price| price.micros()))
        };
        assert_eq!([at(during), at(end)], [[Some(9_990_000), Some(12_990_000)], [Some(12_990_000), None]]);
    }
    assert_eq!([first, second].map(Item::availability), [Availability::InStock, Availability::OutOfStock]);
    assert_eq!((first.stock_quantity, second.stock_quantity), (None, None));
    assert_eq!((text(first, "color").as_deref(), first.group_id.as_str()), (Some("red"), "mug"));
    assert_eq!(first.values_at, Some(NOW), "a file is not of a later time than now");
    let absent: Vec<String> = first.absent_fields.iter().map(|field| field.name().into_owned()).collect();
    assert_eq!(absent, ["cost_micros", "stock_quantity", "tags", "rating", "rating_count", "create_time", "offers"]);
}

#[test]
fn several_product_types_costs_and_words_of_availability_are_read() {
    let item = |id: &str, more: &str| format!("<item><g:id>{id}</g:id><title>Mug</title>{more}</item>\n");
    let types = "<g:product_type>Home &gt; Mugs</g:product_type><g:product_type>Gifts</g:product_type>\
                 <g:product_type>home&gt;Cups</g:product_type><g:product_type>Gifts</g:product_type>";
    let words = [
        ("in stock", Availability::InStock),
        ("https://schema.org/InStock", Availability::InStock),
        ("PreOrder", Availability::Preorder),
        ("http://schema.org/BackOrder", Availability::Backorder),
        ("onbackorder", Availability::Backorder),
        ("schema.org/SoldOut", Availability::OutOfStock),
        ("Discontinued", Availability::Discontinued),
    ];
    let of_word = |(at, (word, _)): (usize, &(&str, _))| {
        item(&format!("w{at}"), &format!("<g:availability>{word}</g:availability>"))
    };
    let rows: String = words.iter().enumerate().map(of_word).collect();
    let first = format!("{types}<g:price>9 EUR</g:price><g:cost_of_goods_sold>5 EUR</g:cost_of_goods_sold>");
    let bad = [
        ("s1", "<g:availability>soon</g:availability>"),
        (
            "s2",
            "<g:sale_price>1 EUR</g:sale_price><g:sale_price_effective_date>2026-02-01/2026-01-01\
                </g:sale_price_effective_date>",
        ),
    ];
    let bad: String = bad.iter().map(|(id, more)| item(id, more)).collect();
    let feed = format!(
        "<rss xmlns:g=\"http://base.google.com/ns/1.0\"><channel>{}{rows}{bad}</channel></rss>",
        item("m1", &first)
    );
    let (items, report) = items_of("google-merchant-center", "feed.xml", feed);
    assert_eq!(items[0].categories, ["Home > Mugs", "Gifts", "home > Cups"]);
    assert_eq!(items[0].cost.map(|cost| cost.micros()), Some(5_000_000));
    let found: Vec<Option<Availability>> = items[1..].iter().map(|item| item.stated_availability).collect();
    assert_eq!(found, words.map(|(_, availability)| Some(availability)));
    assert_eq!(dropped(&report), [("bad sale period", 1), ("unknown availability", 1)]);
    assert_contains(&report.to_string(), &["column `availability`: `soon` is not an availability that is known"]);
    let own = "[items]\nid = \"id\"\ntitle = \"title\"\navailability = \"state\"\n\
               [items.availability_values]\n\"nicht lieferbar\" = \"out_of_stock\"\n";
    let (items, _) = items_of(own, "feed.csv", "id,title,state\n1,Mug,Nicht Lieferbar\n2,Mug,in stock\n");
    assert_eq!([&items[0], &items[1]].map(Item::is_in_stock), [false, true]);
    let unknown = Shop::new().mapping(&own.replace("out_of_stock", "gone")).unwrap_err().to_string();
    assert_contains(&unknown, &["`gone` is not an availability", "in_stock, backorder"]);
}

#[test]
fn words_in_any_script_are_compared() {
    let mapping = "[items]\nid = \"id\"\ntitle = \"title\"\navailability = \"state\"\n\
                   keep = [{ column = \"kind\", values = [\"ТОВАР\"] }]\n[items.availability_values]\n\
                   \"нет в наличии\" = \"out_of_stock\"\n\"В наличии\" = \"in_stock\"\n\"缺货\" = \"discontinued\"\n";
    let rows = "id,title,state,kind\n1,A,в наличии,товар\n2,B,Нет  в наличии,Товар\n3,C,,товар\n4,D,缺货,товар\n\
                5,E,有货,товар\n6,F,в наличии,услуга\n";
    let (items, report) = items_of(mapping, "feed.csv", rows);
    let found: Vec<Option<Availability>> = items.iter().map(|item| item.stated_availability).collect();
    let [in_stock, out, gone] = [Availability::InStock, Availability::OutOfStock, Availability::Discontinued].map(Some);
    assert_eq!(found, [in_stock, out, None, gone]);
    assert_eq!(dropped(&report), [("row that is no item", 1), ("unknown availability", 1)]);
    let refused = |values: &str| Shop::new().mapping(&format!("{mapping}{values}")).unwrap_err().to_string();
    assert_contains(&refused("\"--\" = \"in_stock\"\n"), &["items.availability_values", "`--`"]);
    assert_contains(&refused("\"в-наличии\" = \"preorder\"\n"), &["items.availability_values", "`в-наличии`"]);
}

#[test]
fn a_sale_whose_end_is_a_date_lasts_until_the_end_of_that_day() {
    let mapping = "extends = \"google-merchant-center\"\n[clean]\ntime_zone = \"Europe/Berlin\"\n";
    let rows = "id,title,price,sale_price,sale_price_effective_date\n1,Mug,9 EUR,5 EUR,2026-11-01/2026-11-30\n\
                2,Mug,9 EUR,5 EUR,2026-10-25/2026-10-25\n3,Mug,9 EUR,5 EUR,2026-11-30T00:00/2026-11-30T12:00\n";
    let (items, _) = items_of(mapping, "feed.csv", rows);
    let period = |item: &Item| [item.sale_start, item.sale_end].map(|at| at.map(|at| at.0 / 3_600_000));
    let hours = |from, to| [Some(from), Some(to)];
    assert_eq!(period(&items[0]), hours(498_191, 498_911), "until 1 December, 00:00 in Berlin");
    assert_eq!(period(&items[1]), hours(498_022, 498_047), "a day of 25 hours");
    assert_eq!(period(&items[2]), hours(498_887, 498_899));
}

#[test]
fn attributes_whose_names_are_lost_or_equal_are_counted() {
    let mapping = "[items]\nid = \"id\"\ntitle = \"title\"\n[items.attributes]\n\"*\" = \"a_*\"\n";
    let rows = "id,title,a_x y,a_x-y,a_颜色\n1,Mug,1,2,red\n2,Mug,,3,\n";
    let (items, report) = items_of(mapping, "feed.csv", rows);
    assert_eq!(items[0].attributes.iter().collect::<Vec<_>>(), [(&"x_y".to_owned(), &AttributeValue::Number(1.0))]);
    assert!(items[1].attributes.is_empty(), "`x-y` is another attribute than `x y`");
    let shown = report.to_string();
    assert_contains(
        &shown,
        &["2 attributes of 2 items dropped, attribute name used twice", "line 2, column `a_x-y`: `x-y`", "x_y"],
    );
    assert_contains(
        &shown,
        &["1 attributes of 1 items dropped, attribute without a name", "line 2, column `a_颜色`: `颜色`", "A-Z"],
    );
    let pairs = "[items]\nid = \"id\"\ntitle = \"title\"\nattribute_pairs = [{ name = \"n1\", value = \"v1\" }, \
                 { name = \"n2\", value = \"v2\" }, { name = \"n3\", value = \"v3\" }]\n[items.attributes]\ncolor = \"Color\"\n";
    let rows = "id,title,n1,v1,n2,v2,n3,v3,Color\n1,Mug,Größe,L,Grüße,hi,尺寸,XL,red\n2,Mug,Color,blue,Größe,,,x,red\n\
                3,Mug,Color,red,Fit,,,,red\n4,Mug,Color,green,color,blue,,,\n";
    let (items, report) = items_of(pairs, "feed.csv", rows);
    let shown = |item: &Item| item.attributes.keys().map(|name| text(item, name).unwrap()).collect::<Vec<_>>();
    assert_eq!(
        items.iter().map(shown).collect::<Vec<_>>(),
        [vec!["red", "L"], vec!["red"], vec!["red"], vec!["green"]]
    );
    let counts: Vec<(&str, u64)> = report.dropped_attributes.iter().map(|(name, class)| (*name, class.count)).collect();
    assert_eq!(counts, [("attribute name used twice", 3), ("attribute without a name", 2)]);
    assert_contains(&report.to_string(), &["column `n2`: `grüße`", "column `n3`: `尺寸`"]);
}

#[test]
fn a_pattern_without_a_column_leaves_attributes_to_the_api() {
    let absent = |mapping: &str, name: &str, rows: &str| {
        let (items, _) = items_of(mapping, name, rows);
        items[0].absent_fields.iter().any(|field| field.name() == "attributes")
    };
    let pattern = format!("{MUGS}attributes = {{ \"*\" = \"attr_*\" }}\n");
    assert!(absent(&pattern, "feed.csv", "id,title\n1,Mug\n"));
    assert!(!absent(&pattern, "feed.csv", "id,title,attr_size\n1,Mug,\n"), "an empty cell is a value");
    assert!(absent(&pattern, "feed.jsonl", "{\"id\": 1, \"title\": \"Mug\"}\n"));
    assert!(!absent(&pattern, "feed.jsonl", "{\"id\": 1, \"title\": \"Mug\", \"attr_size\": null}\n"));
    assert!(absent("icecat", "feed.jsonl", "{\"id\": 1, \"title\": \"Mug\"}\n"));
    let members = format!("{MUGS}attributes = {{ \"*\" = \"specs.*\" }}\n");
    assert!(absent(&members, "feed.jsonl", "{\"id\": 1, \"title\": \"Mug\"}\n"));
    assert!(!absent(&members, "feed.jsonl", "{\"id\": 1, \"title\": \"Mug\", \"specs\": {}}\n"));
}

#[test]
fn ids_that_a_spreadsheet_rounded_are_no_ids() {
    let mapping = format!("{MUGS}group_id = \"group\"\nid_parts = [\"a\", \"b\"]\n");
    let rows = "id,title,group,a,b\n5.01E+12,Mug,,,\n5.01E+12,Lamp,,,\n5E+12,Cup,,,\n\"5,01e+12\",Cup,,,\n1,Cup,5.01E+12,,\n\
                ,Cup,,x,5.01E+12\n5E12,Cup,,,\nE+12,Cup,,,\n";
    let (items, report) = items_of(&mapping, "feed.csv", rows);
    assert_eq!(items.iter().map(|item| item.id.as_str()).collect::<Vec<_>>(), ["5E12", "E+12"]);
    assert_eq!(dropped(&report), [("rounded id", 6)]);
    assert_contains(&report.to_string(), &["line 2", "`5.01E+12`"]);
}

#[test]
fn declared_kinds_of_attributes_are_read_and_other_values_are_dropped() {
    let mapping = "[items]\nid = \"id\"\ntitle = \"title\"\n[items.attributes]\nreleased = \"released\"\n\
                   branch = \"branch\"\ncode = \"code\"\n[items.attribute_kinds]\nreleased = \"time\"\n\
                   branch = \"geo_point\"\ncode = \"text\"\n";
    let rows = "id;title;released;branch;code\n1;A;2026-01-31T12:00:00+01:00;52.5, 13.4;7\n\
                2;B;2026-01-31;POINT(13.4 52.5);8\n3;C;soon;91, 0;9\n";
    let (items, report) = items_of(mapping, "feed.csv", rows);
    let time = |ms| Some(AttributeValue::time(UnixMillis(ms)));
    let released: Vec<_> = items.iter().map(|item| item.attributes.get("released").cloned()).collect();
    assert_eq!(released, [time(1_769_857_200_000), time(1_769_817_600_000), None]);
    let berlin = AttributeValue::GeoPoint(GeoPoint { latitude: 52.5, longitude: 13.4 });
    let branches: Vec<_> = items.iter().map(|item| item.attributes.get("branch").cloned()).collect();
    assert_eq!(branches, [Some(berlin.clone()), Some(berlin), None]);
    assert_eq!(text(&items[2], "code").as_deref(), Some("9"), "a declared text is no number");
    let shown = report.to_string();
    assert_contains(
        &shown,
        &[
            "2 attributes of 1 items dropped, attribute of another kind",
            "line 4, column `branch`: `91, 0` is not a geo_point",
        ],
    );
    let unknown = Shop::new().mapping(&mapping.replace("geo_point", "place")).unwrap_err().to_string();
    assert_contains(&unknown, &["`place`", "geo_point"]);
}

#[test]
fn a_text_of_an_xml_element_may_have_attributes_and_a_value_may_be_an_attribute() {
    let entries = "<entry><g:id>m1</g:id><title type=\"html\">Mug &amp;amp; cup</title><summary type=\"text\">Tea</summary>\
                   <link rel=\"self\" href=\"https://shop.test/feed\"/>\
                   <link rel=\"alternate\" href=\"https://shop.test/m1?a=1&amp;b=2&c=&#51;\"/>\
                   <g:price currency=\"EUR\">9 EUR</g:price></entry>\n\
                   <entry><g:id>m2</g:id><g:structured_title><g:digital_source_type>x</g:digital_source_type>\
                   <g:content>Lamp</g:content></g:structured_title><link href=\"https://shop.test/m2\"/></entry>\n\
                   <entry><g:id>m3</g:id><title>Cup</title><g:title>Red cup</g:title><link>https://shop.test/m3</link>\
                   </entry>\n";
    let feed = format!(
        "<feed xmlns=\"http://www.w3.org/2005/Atom\" xmlns:g=\"http://base.google.com/ns/1.0\">{entries}</feed>"
    );
    let (items, _) = items_of("google-merchant-center", "feed.xml", feed);
    let shown: Vec<(&str, &str)> = items.iter().map(|item| (item.title.as_str(), item.url.as_str())).collect();
    let urls = ["https://shop.test/m1?a=1&b=2&c=3", "https://shop.test/m2", "https://shop.test/m3"];
    assert_eq!(shown, [("Mug & cup", urls[0]), ("Lamp", urls[1]), ("Cup", urls[2])]);
    assert_eq!((items[0].description.as_str(), micros(&items[0])), ("Tea", (Some(9_000_000), None, "EUR")));
    let nested = "<rss><item><id>1</id><title><b>Mug</b></title></item></rss>";
    assert_contains(
        &refused("google-merchant-center", "feed.xml", nested),
        &["line 1", "`title` is not a text", "`title.b`"],
    );
    let bytes = [&b"<rss><item><id>1</id><title a=\"\xff\">Mug</title></item></rss>"[..]].concat();
    assert_contains(&refused("google-merchant-center", "feed.xml", bytes), &["line 1", "UTF-8", "file.encoding"]);
}

#[test]
fn an_xml_row_may_be_an_empty_element() {
    let mapping = "[items]\nid = \"@id\"\ntitle = \"@title\"\n";
    let feed = "<items>\n<item id=\"a\" title=\"Mug\"/>\n<item id=\"b\" title=\"Lamp\"></item><item id=\"c\"/></items>";
    let (items, report) = items_of(mapping, "feed.xml", feed);
    let shown: Vec<(&str, &str)> = items.iter().map(|item| (item.id.as_str(), item.title.as_str())).collect();
    assert_eq!(shown, [("a", "Mug"), ("b", "Lamp")]);
    assert_eq!((report.item_row_count, dropped(&report)), (3, vec![("no title", 1)]));
}

#[test]
fn entities_and_depth_of_xml_are_limited() {
    let feed = |prolog: &str, title: &str| {
        format!("<?xml version=\"1.0\"?>{prolog}<rss><item><id>1</id><title>{title}</title></item></rss>")
    };
    let bomb = "<!DOCTYPE rss [<!ENTITY a \"ha\"><!ENTITY b \"&a;&a;&a;\"><!ENTITY f SYSTEM \"file:///etc/passwd\">]>";
    let (items, _) = items_of("google-merchant-center", "feed.xml", feed(bomb, "Mug &b; &f; caf&eacute; &#233;"));
    assert_eq!(items[0].title, "Mug &b; &f; café é", "entities of the file are not expanded");
    let deep = format!("{}x{}", "<a>".repeat(100), "</a>".repeat(100));
    assert_contains(&refused("google-merchant-center", "feed.xml", feed("", &deep)), &["line 1", "deeper than 32"]);
    for broken in [feed("", "<a></b>"), feed("", "&#xfffffff;"), "<rss><item a=></item></rss>".to_owned()] {
        assert_contains(&refused("google-merchant-center", "feed.xml", broken), &["feed.xml", "line 1"]);
    }
    let latin1 =
        [&b"<?xml version='1.0' encoding='ISO-8859-1'?><rss><item><id>1</id><title>Caf\xe9</title></item></rss>"[..]];
    assert_eq!(items_of("google-merchant-center", "feed.xml", latin1.concat()).0[0].title, "Café");
}

const SHOPIFY: &str = "Handle,Title,Body (HTML),Vendor,Product Category,Type,Tags,Published,Option1 Name,Option1 Value,\
                       Option2 Name,Option2 Value,Variant SKU,Variant Inventory Tracker,Variant Inventory Qty,\
                       Variant Inventory Policy,Variant Price,Variant Compare At Price,Image Src,Variant Image,Status\n\
    shirt,Shirt,<p>Soft.</p>,Acme,Apparel > Shirts,Shirts,\"new, red\",true,Color,Red,Size,M,S-R-M,shopify,3,deny,20.00,\
    25.00,https://cdn.test/1.jpg,,active\n\
    shirt,,,,,,,,,Blue,,L,,shopify,0,continue,20.00,,https://cdn.test/2.jpg,https://cdn.test/blue.jpg,\n\
    shirt,,,,,,,,,,,,,,,,,,https://cdn.test/3.jpg,,\n\
    card,Gift card,,Acme,,,,true,Title,Default Title,,,,,0,deny,10.00,,,,active\n\
    draft,Draft,,Acme,,,,true,Title,Default Title,,,,,0,deny,10.00,,,,draft\n";

#[test]
fn a_shopify_export_has_an_item_for_each_variant() {
    let mapping = "extends = \"shopify\"\n[constants]\ncurrency = \"USD\"\n";
    let (items, report) = items_of(mapping, "products.csv", SHOPIFY);
    let ids: Vec<&str> = items.iter().map(|item| item.id.as_str()).collect();
    assert_eq!(ids, ["S-R-M", "card", "shirt/Blue/L"]);
    let (red, card, blue) = (&items[0], &items[1], &items[2]);
    assert_eq!((red.title.as_str(), blue.title.as_str(), blue.description.as_str()), ("Shirt", "Shirt", "Soft."));
    assert_eq!(
        (micros(red), micros(blue)),
        ((Some(20_000_000), Some(25_000_000), "USD"), (Some(20_000_000), None, "USD"))
    );
    assert_eq!([red, blue, card].map(|item| item.stock_quantity), [Some(3), Some(0), None], "cards are not counted");
    let availabilities = [Availability::InStock, Availability::Backorder, Availability::InStock];
    assert_eq!([red, blue, card].map(Item::availability), availabilities, "sold also without stock");
    assert_eq!((text(blue, "color").as_deref(), text(blue, "size").as_deref()), (Some("Blue"), Some("L")));
    assert_eq!([red, blue, card].map(|item| item.group_id.as_str()), ["shirt", "shirt", "card"]);
    assert_eq!((&red.image_url[..], &blue.image_url[..]), ("https://cdn.test/1.jpg", "https://cdn.test/blue.jpg"));
    assert_eq!(
        (&red.tags[..], &red.categories[..]),
        (&["new", "red"].map(str::to_owned)[..], &["Apparel > Shirts".to_owned()][..])
    );
    assert_eq!(dropped(&report), [("row that is no item", 2)]);
    // The present names of the columns.
    let renamed = [
        ("Handle", "URL handle"),
        ("Body (HTML)", "Description"),
        ("Product Category", "Product category"),
        ("Published", "Published on online store"),
        ("Option1 Name", "Option1 name"),
        ("Option1 Value", "Option1 value"),
        ("Option2 Name", "Option2 name"),
        ("Option2 Value", "Option2 value"),
        ("Variant SKU", "SKU"),
        ("Variant Inventory Tracker", "Inventory tracker"),
        ("Variant Inventory Qty", "Inventory quantity"),
        ("Variant Inventory Policy", "Continue selling when out of stock"),
        ("Variant Price", "Price"),
        ("Variant Compare At Price", "Compare-at price"),
        ("Image Src", "Product image URL"),
        ("Variant Image", "Variant image URL"),
    ];
    let present = renamed.iter().fold(SHOPIFY.to_owned(), |text, (old, new)| text.replacen(old, new, 1));
    assert_eq!(items_of(mapping, "products.csv", present).0, items);
    assert_contains(&refused("shopify", "products.csv", SHOPIFY), &["line 2", "`20.00`", "constants.currency"]);
}

#[test]
fn a_price_names_its_currency_or_the_row_is_dropped() {
    let mapping = "[items]\nid = \"id\"\ntitle = \"title\"\nprice = \"price\"\noriginal_price = \"was\"\n\
                   currency = \"currency\"\n[clean]\ndecimal_separator = \",\"\n";
    let rows = "id;title;price;was;currency\n1;Mug;12,99 EUR;15 EUR;\n2;Mug;€ 1.299,00;;EUR\n3;Mug;5;;usd\n\
                4;Mug;5;;\n5;Mug;5 EUR;;USD\n6;Mug;5 EUR;6 USD;\n7;Mug;$5;;\n8;Mug;;;\n9;Mug;five EUR;;\n\
                10;Mug;5 GPB;;\n11;Mug;5;;XXX\n12;Mug;;;GPB\n";
    let (items, report) = items_of(mapping, "feed.csv", rows);
    let prices: Vec<_> = items.iter().map(|item| (item.id.as_str(), micros(item))).collect();
    assert_eq!(
        prices,
        [
            ("1", (Some(12_990_000), Some(15_000_000), "EUR")),
            ("12", (None, None, "")),
            ("2", (Some(1_299_000_000), None, "EUR")),
            ("3", (Some(5_000_000), None, "USD")),
            ("8", (None, None, "")),
        ]
    );
    assert_eq!(dropped(&report), [("bad currency", 4), ("no currency", 2), ("not a number", 1)]);
    let shown = report.to_string();
    assert_contains(&shown, &["line 5, column `price`: `5` is a price without a currency", "constants.currency"]);
    assert_contains(&shown, &["line 6, column `price`: `5 EUR` is in EUR, and another value of the row is in USD"]);
}

const MUGS: &str = "[items]\nid = \"id\"\ntitle = \"title\"\n";

#[test]
fn a_feed_that_ends_in_the_middle_is_refused_and_the_last_whole_record_is_named() {
    let last = ["ends in the middle of a record", "the last whole record is in line 3, `m2`", "fetch the whole file"];
    let mapping = format!("{MUGS}description = \"text\"\n");
    let csv = "id,title,text\nm1,Mug,a\nm2,Mug,b\n";
    assert_contains(&refused(&mapping, "feed.csv", format!("{csv}m3,Mu")), &last);
    assert_contains(&refused(&mapping, "feed.csv", format!("{csv}m3,Mug,\"An open")), &last);
    assert_contains(&refused(&mapping, "feed.csv", format!("{csv}m3,Mug,\"An open\nquote\n")), &last);
    let json = |id: &str| format!("{{\"id\": \"{id}\", \"title\": \"Mug\", \"text\": \"x\"}}\n");
    let whole = format!("\n{}{}", json("m1"), json("m2"));
    assert_contains(&refused(&mapping, "feed.jsonl", format!("{whole}{}", &json("m3")[..15])), &last);
    let xml = "<rss>\n<item><id>m1</id><title>Mug</title><text>a</text></item>\n<item><id>m2</id><title>Mug</title>\
               <text>b</text></item>\n";
    for rest in ["", "<item><id>m3</id>", "<item><id>m3</id><tit", "<item><!-- "] {
        assert_contains(&refused(&mapping, "feed.xml", format!("{xml}{rest}")), &last);
    }
    assert_contains(&refused(&mapping, "feed.csv", "id,title,text\nm1,Mu"), &["it has no whole record"]);
    // A compressed file without its end.
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    let rows: String = (0..20_000).map(|row| format!("m{row},Mug,{}\n", row * 7919 % 10_007)).collect();
    encoder.write_all(format!("id,title,text\n{rows}").as_bytes()).unwrap();
    let whole = encoder.finish().unwrap();
    let cut = refused(&mapping, "feed.csv.gz", &whole[..whole.len() / 2]);
    assert_contains(&cut, &["feed.csv.gz", "ends in the middle of a record", "the last whole record is in line"]);
    // A record in the middle with too few values is broken, and so is one with too many at the end.
    assert_contains(
        &refused(&mapping, "feed.csv", format!("{csv}m3,Mug\nm4,Mug,c\n")),
        &["line 4", "2 values", "has 3"],
    );
    assert_contains(
        &refused(&mapping, "feed.csv", format!("{csv}m3,Mug,c,d\n")),
        &["line 4 cannot be read", "4 values"],
    );
    // No line break at the end is no problem.
    assert_eq!(items_of(&mapping, "feed.csv", csv.trim_end()).0.len(), 2);
    assert_eq!(items_of(&mapping, "feed.xml", format!("{xml}</rss>")).0.len(), 2);
}

#[test]
fn a_much_smaller_feed_is_refused_unless_it_is_allowed() {
    let shop = Shop::new();
    let feed = |count: usize| format!("id,title\n{}", (0..count).map(|id| format!("m{id},Mug\n")).collect::<String>());
    let (_, report) = shop.import_items(MUGS, "feed.csv", feed(100)).unwrap();
    assert_eq!(report.item_count_before, None);
    let text = shop.import_items(MUGS, "feed.csv", feed(70)).unwrap_err().to_string();
    assert_contains(&text, &["feed.csv", "70 items", "has 100", "30 % fewer", "limit is 20 %", "--allow-shrink"]);
    assert_eq!(read_items(&shop.directory.path().join("out/items.parquet")).unwrap().len(), 100, "nothing changed");
    let allowed = ImportOptions { allow_shrink: true, ..OPTIONS };
    let (items, report) = shop.import_items_with(MUGS, "feed.csv", feed(70), allowed).unwrap();
    assert_eq!((items.len(), report.item_count_before), (70, Some(100)));
    assert_contains(&report.to_string(), &["70 items (100 before)"]);
    shop.import_items(MUGS, "feed.csv", feed(56)).unwrap();
}

#[test]
fn a_column_of_groups_with_more_variants_than_a_product_has_is_refused() {
    let mapping = format!("{MUGS}group_id = \"kind\"\n");
    let feed = |count: usize| -> String {
        let row = |id| format!("m{id},Mug,{}\n", if id % 8 == 7 { "lamp" } else { "mug" });
        format!("id,title,kind\n{}", (0..count).map(row).collect::<String>())
    };
    let shop = Shop::new();
    let text = shop.import_items(&mapping, "feed.csv", feed(16_000)).unwrap_err().to_string();
    assert_contains(&text, &["feed.csv", "`kind`", "14000 items", "`mug`", "the limit is 10000", "group_id"]);
    assert_eq!(shop.import_items(&mapping, "feed.csv", feed(8_000)).unwrap().0.len(), 8_000);
}

#[test]
fn the_time_of_a_file_is_stated_or_its_modification_time() {
    let shop = Shop::new();
    let stated = ImportOptions { items_time: Some(UnixMillis(5)), ..OPTIONS };
    let (items, report) = shop.import_items_with(MUGS, "feed.csv", "id,title\n1,Mug\n", stated).unwrap();
    assert_eq!((items[0].values_at, report.items_time_ms), (Some(UnixMillis(5)), Some(5)));
    let later = ImportOptions { now: UnixMillis(i64::MAX), ..OPTIONS };
    let (items, _) = shop.import_items_with(MUGS, "feed.csv", "id,title\n1,Mug\n", later).unwrap();
    assert!(items[0].values_at.unwrap() > NOW, "the file was written now");
    let ahead = ImportOptions { items_time: Some(UnixMillis(NOW.0 + 1)), ..OPTIONS };
    let error = shop.import_items_with(MUGS, "feed.csv", "id,title\n1,Mug\n", ahead).unwrap_err().to_string();
    assert_contains(&error, &["--items-time 2026-01-01T00:00:00.001Z", "in the future"]);
}

#[test]
fn encodings_are_declared_or_have_a_byte_order_mark() {
    let encoded = |label: &str| format!("{MUGS}[file]\nencoding = \"{label}\"\n");
    let windows = [&b"id;title\n1;Caf\xe9 \x80 5\n"[..]].concat();
    assert_eq!(items_of(&encoded("windows-1252"), "feed.csv", &windows).0[0].title, "Café € 5");
    assert_contains(&refused(MUGS, "feed.csv", &windows), &["line 2", "file.encoding", "`windows-1252`"]);
    assert_contains(
        &refused(MUGS, "feed.jsonl", b"{\"id\": \"1\", \"title\": \"Caf\xe9\"}\n"),
        &["line 1", "file.encoding"],
    );
    let utf16: Vec<u8> = "\u{feff}id,title\n1,杯\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
    assert_eq!(items_of(MUGS, "feed.csv", &utf16).0[0].title, "杯");
    assert_eq!(items_of(MUGS, "feed.txt", "\u{feff}id\ttitle\n1\t杯\n").0[0].title, "杯");
    assert_eq!(items_of(MUGS, "feed.json", "\u{feff}{\"id\": 1, \"title\": \"杯\"}\n").0[0].title, "杯");
    let big_endian: Vec<u8> = "\u{feff}id,title\n1,杯\n".encode_utf16().flat_map(u16::to_be_bytes).collect();
    assert_eq!(items_of(&encoded("utf-16le"), "feed.csv", &big_endian).0[0].title, "杯", "the mark has precedence");
    let shift_jis = [&b"id,title\n1,\x94\x74\n"[..]].concat();
    assert_eq!(items_of(&encoded("shift_jis"), "feed.csv", &shift_jis).0[0].title, "杯");
}

#[test]
fn bytes_that_are_not_of_the_declared_encoding_are_refused() {
    let encoded = |label: &str| format!("{MUGS}[file]\nencoding = \"{label}\"\n");
    let rows = [&b"id,title\n1,Mug\n2,Mug \xff\n3,Mug\n"[..]].concat();
    for label in ["shift_jis", "gbk", "utf-8", "euc-kr"] {
        assert_contains(&refused(&encoded(label), "feed.csv", &rows), &["feed.csv", "line 3", "file.encoding"]);
    }
    let json = [&b"{\"id\": \"1\", \"title\": \"Mug\"}\n{\"id\": \"1\", \"title\": \"Mug \xff\"}\n"[..]].concat();
    for label in ["shift_jis", "utf-8"] {
        assert_contains(&refused(&encoded(label), "feed.jsonl", &json), &["line 2", "file.encoding"]);
    }
    for (label, name) in [("UTF-8", "UTF-8"), ("shift_jis", "Shift_JIS")] {
        let head = format!("<?xml version=\"1.0\" encoding=\"{label}\"?>\n<rss><item><id>1</id>\n<title>Mug ");
        let xml = [head.as_bytes(), b"\xff</title></item></rss>"];
        assert_contains(&refused("google-merchant-center", "feed.xml", xml.concat()), &["feed.xml", "line", name]);
    }
    let lone: Vec<u8> =
        [0xfeff, 0x69, 0x64, 0x2c, 0xd800, 0x0a].iter().flat_map(|unit: &u16| unit.to_le_bytes()).collect();
    assert_contains(&refused(MUGS, "feed.csv", lone), &["line 1", "UTF-16LE"]);
    let cut = [&b"id,title\n1,Mug\n2,\x94"[..]].concat();
    assert_contains(&refused(&encoded("shift_jis"), "feed.csv", cut), &["ends in the middle", "line 2, `1`"]);
}

#[test]
fn a_key_of_the_mapping_that_a_format_does_not_have_is_refused() {
    let rows = format!("{MUGS}[file]\nrows = \"items\"\n");
    assert_contains(&refused(&rows, "feed.csv", "id,title\n1,Mug\n"), &["feed.csv", "file.rows `items`", ".csv"]);
    assert_contains(&refused(&rows, "feed.parquet", "PAR1"), &["feed.parquet", "file.rows `items`"]);
    let encoding = format!("{MUGS}[file]\nencoding = \"gbk\"\n");
    assert_contains(&refused(&encoding, "feed.parquet", "PAR1"), &["feed.parquet", "file.encoding `gbk`"]);
    let mapping = |text: &str| Shop::new().mapping(text).unwrap_err().to_string();
    let filled = format!("{MUGS}fill_down = {{ key = \"id\", columns = [\"title\", \"Brand\"] }}\n");
    assert_contains(&mapping(&filled), &["items.fill_down.columns", "`Brand`"]);
    let own = "extends = \"shopify\"\n[items]\ndescription = \"Text\"\n[constants]\ncurrency = \"EUR\"\n";
    assert!(Shop::new().mapping(own).is_ok(), "columns of the extended mapping may have other names");
    let filled = format!("{own}[items.fill_down]\ncolumns = [\"Tekst\"]\n");
    assert_contains(&mapping(&filled), &["items.fill_down.columns", "`Tekst`"]);
    let empty = format!("{MUGS}keep = [{{ column = \"\", values = [\"x\"] }}]\n");
    assert_contains(&mapping(&empty), &["items.keep", "column"]);
    let valueless = format!("{MUGS}keep = [{{ column = \"a\", values = [] }}]\n");
    assert_contains(&mapping(&valueless), &["items.keep", "values"]);
}

#[test]
fn nested_fields_lists_and_patterns_of_columns_are_read() {
    let mapping = "[items]\nid = [\"sku\", \"legacy.sku\"]\ntitle = \"names[lang=en].text\"\ncategories = \"path[].name\"\n\
                   tags = \"tags\"\nimage_url = \"images.src\"\nprice = \"offer.amount\"\ncurrency = \"offer.currency\"\n\
                   [items.attributes]\n\"*\" = \"specs.*\"\nfirst_tag = \"tags[0]\"\n[file]\nempty_values = [\"n/a\"]\n";
    let rows = "{\"sku\": \"1\", \"names\": [{\"lang\": \"de\", \"text\": \"Becher\"}, {\"lang\": \"en\", \"text\": \"Mug\"}], \
                \"path\": [{\"name\": \"Home\"}, {\"name\": \"A > B\"}], \"tags\": [\"x\", 2], \
                \"images\": [{\"src\": \"/1.png\"}, {\"src\": \"/2.png\"}], \"offer\": {\"amount\": 4.5, \"currency\": \"EUR\"}, \
                \"specs\": {\"Size (cm)\": 12, \"vegan\": true, \"material\": \"n/a\"}}\n\
                {\"legacy\": {\"sku\": \"2\"}, \"names\": [{\"lang\": \"en\", \"text\": \"Cup\"}]}\n";
    let (items, _) = items_of(mapping, "feed.jsonl", rows);
    let (mug, cup) = (&items[0], &items[1]);
    assert_eq!((mug.title.as_str(), cup.id.as_str(), cup.title.as_str()), ("Mug", "2", "Cup"));
    assert_eq!(
        (&mug.categories[..], &mug.tags[..]),
        (&["Home > A > B".to_owned()][..], &["x", "2"].map(str::to_owned)[..])
    );
    assert_eq!((mug.image_url.as_str(), micros(mug)), ("/1.png", (Some(4_500_000), None, "EUR")));
    assert_eq!(mug.attributes["Size__cm_"], AttributeValue::Number(12.0));
    assert_eq!(mug.attributes["vegan"], AttributeValue::Flag(true));
    assert_eq!((text(mug, "first_tag").as_deref(), text(mug, "material")), (Some("x"), None));
    let objects = refused(mapping, "feed.jsonl", "{\"sku\": {\"a\": 1}, \"names\": []}\n");
    assert_contains(&objects, &["line 1", "`sku` is not a text", "`sku.a`"]);
    assert_contains(&refused(mapping, "feed.json", "[{\"sku\": 1}]\n"), &["line 1", "jq -c '.[]'"]);
}

#[test]
fn several_missing_columns_are_named_at_once() {
    let mapping = format!("{MUGS}brand = \"maker\"\nprice = [\"price\", \"cost\"]\n");
    let error = refused(&mapping, "feed.csv", "id,name\n1,Mug\n");
    let parts = ["`title` (mapping key `items.title`)", "`maker`", "`price` or `cost`", "found: id, name"];
    assert_contains(&error, &parts);
    let optional = format!("{mapping}[file]\noptional_columns = true\n");
    let error = refused(&optional, "feed.csv", "id,name\n1,Mug\n");
    assert!(error.contains("items.title") && !error.contains("maker"), "only columns of every row are needed: {error}");
    let (items, report) = items_of(&optional, "feed.csv", "id,title\n1,Mug\n");
    assert_eq!((items.len(), report.missing_columns), (1, vec!["maker".to_owned(), "price".to_owned()]));
}

#[test]
fn an_item_with_too_many_attributes_keeps_the_most_common_ones() {
    let mapping = format!("{MUGS}attributes = {{ \"*\" = \"a_*\" }}\n");
    let member = |name: usize| format!(", \"a_{name:03}\": \"v\"");
    let many: String = (0..130).map(member).collect();
    let few: String = (100..130).map(member).collect();
    let rows = format!("{{\"id\": 1, \"title\": \"Mug\"{many}}}\n{{\"id\": 2, \"title\": \"Mug\"{few}}}\n");
    let (items, report) = items_of(&mapping, "feed.jsonl", rows);
    assert_eq!((items[0].attributes.len(), items[1].attributes.len()), (100, 30));
    assert!((100..130).all(|name| items[0].attributes.contains_key(&format!("{name:03}"))));
    assert_contains(
        &report.to_string(),
        &["30 attributes of 1 items dropped, too many attributes", "first at line 1: item 1, attribute 070"],
    );
}

#[test]
fn an_attribute_that_is_too_long_is_left_out() {
    let mapping = format!("{MUGS}attributes = {{ \"*\" = \"a_*\" }}\n");
    let rows = format!("id,title,a_size,a_fits\n1,Mug,5,{}\n", "x".repeat(1001));
    let (items, report) = items_of(&mapping, "feed.csv", rows);
    assert_eq!(items[0].attributes.keys().collect::<Vec<_>>(), ["size"]);
    let parts = [
        "1 attributes of 1 items dropped, attribute too long",
        "first at line 2, column `a_fits`",
        "1001 characters; the limit is 1000",
    ];
    assert_contains(&report.to_string(), &parts);
    let list = |count: usize| format!("\"a_{count}\": [{}]", vec!["\"v\""; count].join(", "));
    let rows = format!("{{\"id\": 1, \"title\": \"Mug\", {}, {}, \"a_0\": [\"\", \"\"]}}\n", list(50), list(51));
    let (items, report) = items_of(&mapping, "feed.jsonl", rows);
    let texts = AttributeValue::Texts(vec!["v".to_owned(); 50]);
    assert_eq!(items[0].attributes.iter().collect::<Vec<_>>(), [(&"50".to_owned(), &texts)]);
    assert_contains(
        &report.to_string(),
        &["1 attributes of 1 items dropped, attribute too long", "51 entries; the limit is 50"],
    );
}

#[test]
fn the_icecat_mapping_reads_typed_attributes_and_cents() {
    let row = "{\"id\": \"1399\", \"title\": \"HP 80\", \"ean\": [\"0882780756328\", \"1\"], \"short_description\": \"Ink\", \
               \"date_released\": \"2006-07-01T00:00:00Z\", \"supplier\": \"HP\", \"price\": 12595, \
               \"attr_t_type\": \"Original\", \"attr_n_volume\": 175.0, \"attr_b_colour\": true}\n";
    let (items, _) = items_of("icecat", "products.jsonl", row);
    assert_eq!((items[0].brand.as_str(), micros(&items[0])), ("HP", (Some(125_950_000), None, "EUR")));
    assert_eq!(items[0].attributes["volume_value"], AttributeValue::Number(175.0));
    assert_eq!(items[0].attributes["has_colour"], AttributeValue::Flag(true));
    let eans = ["0882780756328", "1"].map(str::to_owned).to_vec();
    assert_eq!(items[0].attributes["ean"], AttributeValue::Texts(eans), "a list of a file is a list");
    assert_eq!(text(&items[0], "type").as_deref(), Some("Original"));
}

#[test]
fn the_icecat_mapping_has_part_numbers_and_several_colours() {
    let row = "{\"id\": \"1\", \"title\": \"Ink\", \"attr_t_oem_code\": \"12A7465, 12A7365\", \
               \"attr_t_product_colour\": \"Black,Silver\"}\n\
               {\"id\": \"2\", \"title\": \"Ink\", \"attr_t_oem_code\": \"C4872A\", \"attr_t_product_colour\": \"Black\"}\n";
    let (items, report) = items_of("icecat", "products.jsonl", row);
    let texts = |texts: &[&str]| AttributeValue::Texts(texts.iter().map(|text| (*text).to_owned()).collect());
    assert_eq!(items[0].attributes["mpn"], texts(&["12A7465", "12A7365"]));
    assert_eq!(items[0].attributes["product_colour"], texts(&["Black", "Silver"]));
    assert_eq!(text(&items[1], "mpn").as_deref(), Some("C4872A"));
    assert_eq!(text(&items[1], "product_colour").as_deref(), Some("Black"));
    assert!(items.iter().all(|item| item.attributes.len() == 2), "a named column is none of its pattern");
    assert!(report.dropped_attributes.is_empty(), "{report}");
}

#[test]
fn attributes_that_the_mapping_names_are_kept_before_those_of_patterns() {
    let mapping = format!(
        "{MUGS}attributes = {{ \"*\" = \"a_*\", part = \"code\" }}\nattribute_separators = {{ part = \"/\" }}\n"
    );
    let many: String = (0..100).map(|name| format!(", \"a_{name:03}\": \"v\"")).collect();
    let rows = format!(
        "{{\"id\": 1, \"title\": \"Mug\", \"code\": \"x / y\"{many}}}\n{{\"id\": 2, \"title\": \"Mug\"{many}}}\n"
    );
    let (items, report) = items_of(&mapping, "feed.jsonl", rows);
    let parts = AttributeValue::Texts(["x", "y"].map(str::to_owned).to_vec());
    assert_eq!((items[0].attributes.len(), &items[0].attributes["part"]), (100, &parts));
    assert_contains(&report.to_string(), &["1 attributes of 1 items dropped, too many", "item 1, attribute 099"]);
    for (separators, problem) in
        [("{ \"a b\" = \",\" }", "`a b` is not a name"), ("{ part = \"\" }", "empty separator")]
    {
        let error = refused(&format!("{MUGS}attribute_separators = {separators}\n"), "feed.csv", "id,title\n1,Mug\n");
        assert_contains(&error, &["items.attribute_separators", problem]);
    }
}

/// Type, user, item, query and event id of events.
fn shown(events: &[DatasetEvent]) -> Vec<(&str, &str, &str, &str)> {
    events
        .iter()
        .map(|event| {
            let user = event.user.as_ref().map_or("", |user| user.as_str());
            (event.kind.name(), user, event.item.as_ref().map_or("", |item| item.as_str()), event.query.as_str())
        })
        .collect()
}

#[test]
fn prices_of_events_have_the_currency_of_their_items_and_others_are_counted() {
    let shop = Shop::new();
    let mapping = shop
        .mapping(
            "[items]\nid = \"id\"\ntitle = \"title\"\nprice = \"price\"\ncurrency = \"currency\"\n[events]\nitem = \"item\"\n\
             time = \"at\"\nuser = \"user\"\norder = \"order\"\nprice = \"price\"\ncurrency = \"currency\"\n\
             event_type = \"type\"\n[file]\noptional_columns = true\n",
        )
        .unwrap();
    let items = shop.write("items.csv", "id,title,price,currency\na,Mug,5,GBP\nb,Cup,6,CNY\nc,Leaflet,,\n");
    let at = "2025-01-01T10:00:00Z";
    let events = shop.write(
        "events.csv",
        format!(
            "item,at,user,order,price,currency,type\na,{at},u,1,5,,purchase\nb,{at},u,2,6,,purchase\nb,{at},u,3,6,USD,purchase\n\
             c,{at},u,4,7,,purchase\nd,{at},u,5,8,,purchase\nd,{at},u,,8,,view\na,{at},u,6,,,purchase\n"
        ),
    );
    let out = shop.directory.path().join("out");
    let files = ShopFiles { events: &[events], items: Some(&items) };
    let report = import(&[mapping], files, &out, OPTIONS, |_, _| {}).unwrap();
    let events = read_events(&out.join("events.parquet")).unwrap();
    let currencies: Vec<&str> = events.iter().map(|event| event.currency.as_str()).collect();
    assert_eq!(currencies, ["GBP", "CNY", "USD", "", "", "", ""]);
    assert_eq!((report.item_currency_count, report.no_currency_count), (2, 2));
    assert_contains(
        &report.to_string(),
        &[
            "2 lines name no currency and have that of their items",
            "2 lines of purchases and refunds have no currency; name",
        ],
    );
}

#[test]
fn a_ga4_export_has_a_row_for_each_item_of_an_event() {
    let event = |name: &str, time: u64, rest: &str| {
        format!("{{\"event_name\": \"{name}\", \"event_timestamp\": \"{time}\", \"user_pseudo_id\": \"p1\"{rest}}}\n")
    };
    let session = "\"event_params\": [{\"key\": \"ga_session_id\", \"value\": {\"int_value\": \"77\"}}, \
                   {\"key\": \"search_term\", \"value\": {\"string_value\": \"red mug\"}}, \
                   {\"key\": \"currency\", \"value\": {\"string_value\": \"EUR\"}}]";
    let items = "\"items\": [{\"item_id\": \"m1\", \"item_name\": \"Red mug\", \"price\": 4.5, \"quantity\": \"2\"}, \
                 {\"item_id\": \"m2\", \"item_name\": \"Blue mug\", \"price\": 5}]";
    let device = |platform: &str, country: &str| {
        format!(
            "\"platform\": \"{platform}\", \"geo\": {{\"country\": \"{country}\"}}, \
             \"device\": {{\"category\": \"mobile\", \"language\": \"de-at\"}}"
        )
    };
    let (app, browser) = (device("IOS", "(not set)"), device("WEB", "Austria"));
    let start = 1_700_000_000_000_000;
    let file = [
        event("page_view", start, ""),
        event("view_search_results", start + 1_000_000, &format!(", {session}, \"items\": []")),
        event("view_item_list", start + 2_000_000, &format!(", {session}, {items}, {app}")),
        event(
            "purchase",
            start + 3_000_000,
            &format!(
                ", \"user_id\": \"anna\", \"ecommerce\": {{\"transaction_id\": \"T1\"}}, {session}, {items}, {browser}"
            ),
        ),
        event("view_item", start + 4_000_000, ", \"items\": [{\"item_id\": \"(not set)\"}]"),
    ];
    let shop = Shop::new();
    let (events, report) = shop.import_events("ga4", &[("events.json", &file.concat())]).unwrap();
    assert_eq!(
        shown(&events),
        [
            ("search", "v:p1", "", "red mug"),
            ("impression", "v:p1", "m1", "red mug"),
            ("impression", "v:p1", "m2", "red mug"),
            ("purchase", "u:anna", "m1", "red mug"),
            ("purchase", "u:anna", "m2", "red mug"),
        ]
    );
    assert_eq!((events[1].event_id == events[2].event_id, events[3].event_id == events[4].event_id), (true, true));
    assert_ne!(events[2].event_id, events[3].event_id);
    let bought = &events[3];
    assert_eq!((bought.order.as_str(), bought.session.as_str(), bought.currency.as_str()), ("T1", "77", "EUR"));
    assert_eq!(bought.context.texts(), ["mobile_web", "AT", "de-at"], "the device of a browser");
    assert_eq!(events[1].context.texts(), ["ios", "", "de-at"]);
    assert_eq!(events[0].context.texts(), ["", "", ""]);
    assert_eq!((bought.quantity.unwrap().units(), bought.price.unwrap().micros()), (2.0, 4_500_000));
    assert_eq!(bought.at, UnixMillis(1_700_000_003_000));
    let reasons: Vec<&str> = report.dropped.keys().copied().collect();
    assert_eq!(reasons, ["ignored event type", "no item"]);
    let items = read_items(&shop.directory.path().join("out/items.parquet")).unwrap();
    assert_eq!((items[0].title.as_str(), micros(&items[0])), ("Red mug", (Some(4_500_000), None, "EUR")));
    assert_eq!(items[0].values_at, None, "an item that only events name is older than every write");
}

#[test]
fn events_of_one_line_are_different_events() {
    let mapping = "[file]\nrows = \"events\"\n[events]\nitem = \"events.sku\"\ntime = \"events.at\"\nvisitor = \"v\"\n\
                   event_type = \"events.kind\"\n";
    let event =
        |kind: &str, sku: &str, at: &str| format!("{{\"kind\": \"{kind}\", \"sku\": \"{sku}\", \"at\": \"{at}\"}}");
    let (first, later) = ("2025-01-01T10:00:00Z", "2025-01-01T10:00:01Z");
    let of_line = [
        event("view", "a", first),
        event("purchase", "b", first),
        event("view", "c", first),
        event("view", "d", later),
    ];
    let line = |visitor: &str| format!("{{\"v\": \"{visitor}\", \"events\": [{}]}}\n", of_line.join(", "));
    let lines = [line("v1"), line("v2")].concat();
    let (events, report) = Shop::new().import_events(mapping, &[("events.jsonl", &lines)]).unwrap();
    let of = |visitor: &str| -> Vec<(&str, &str)> {
        let of_visitor = events.iter().filter(|event| event.user.as_ref().is_some_and(|user| user.as_str() == visitor));
        of_visitor.map(|event| (event.event_id.as_str(), event.kind.name())).collect()
    };
    let first = [("import-1", "view"), ("import-1", "view"), ("import-1.1", "purchase"), ("import-1.3", "view")];
    let mut found = of("v:v1");
    found.sort_unstable();
    assert_eq!(found, first, "only rows of one type and time are one basket");
    assert_eq!((of("v:v2").len(), report.kept_by_type["purchase"], report.kept_by_type["view"]), (4, 2, 6));
    let ids: std::collections::BTreeSet<&str> = events.iter().map(|event| event.event_id.as_str()).collect();
    assert_eq!(ids.len(), 6);

    let mapping = "[events]\nitem = \"sku\"\ntime = \"at\"\nvisitor = \"v\"\nevent_type = \"kind\"\n";
    let row = |kind: &str, visitor: &str| {
        format!("<item><sku>a</sku><at>2025-01-01T10:00:00Z</at><v>{visitor}</v><kind>{kind}</kind></item>")
    };
    let feed = format!("<events>{}{}{}</events>", row("view", "v1"), row("purchase", "v1"), row("view", "v2"));
    let (events, _) = Shop::new().import_events(mapping, &[("events.xml", &feed)]).unwrap();
    let ids: Vec<&str> = events.iter().map(|event| event.event_id.as_str()).collect();
    assert_eq!(ids, ["import-1", "import-1.1", "import-1.2"]);
    assert_eq!(into_events(events).len(), 3, "no purchase is merged into a view");
    let rows = "sku,at,v,kind\ra,2025-01-01,v1,view\rb,2025-01-01,v2,view\r";
    let (events, _) = Shop::new().import_events(mapping, &[("events.csv", rows)]).unwrap();
    assert_ne!(events[0].event_id, events[1].event_id, "lines that end with a carriage return");
}

#[test]
fn ubi_events_have_the_query_of_their_query_id() {
    let queries =
        "{\"query_id\": \"q1\", \"client_id\": \"c1\", \"user_query\": \"red mug\", \"timestamp\": 1700000000000}\n";
    let events = "{\"_source\": {\"action_name\": \"item_click\", \"query_id\": \"q1\", \"client_id\": \"c1\", \"session_id\": \"s1\", \
                  \"timestamp\": \"2023-11-14T22:13:25Z\", \"event_attributes\": {\"object\": {\"object_id\": \"m1\", \
                  \"object_id_field\": \"sku\"}, \"position\": {\"ordinal\": 3}}}}\n\
                  {\"action_name\": \"page_load\", \"client_id\": \"c1\", \"timestamp\": \"2023-11-14T22:13:25Z\"}\n\
                  {\"action_name\": \"add_to_cart\", \"query_id\": \"q9\", \"client_id\": \"c1\", \
                  \"timestamp\": \"2023-11-14T22:13:26Z\", \"event_attributes.object.object_id\": \"m1\"}\n";
    let files = [("ubi_events.jsonl", events), ("ubi_queries.jsonl", queries)];
    let (events, _) = Shop::new().import_events("opensearch-ubi", &files).unwrap();
    assert_eq!(
        shown(&events),
        [("search", "v:c1", "", "red mug"), ("click", "v:c1", "m1", "red mug"), ("add_to_cart", "v:c1", "m1", "")]
    );
    let ids: Vec<&str> = events.iter().map(|event| event.event_id.as_str()).collect();
    assert_eq!(ids, ["import-1-1", "import-1", "import-3"], "lines of two files are different events");
}

#[test]
fn a_clickstream_keeps_its_event_ids() {
    let rows = "event_time,event_id,event_type,product_id,user_id,user_session,price,currency,search_term\n\
                2025-01-01 10:00:00 UTC,e1,view,m1,anna,s1,4.50,EUR,\n\
                2025-01-01 10:00:00 UTC,e1,view,m1,anna,s1,4.50,EUR,\n\
                2025-01-01 10:00:00 UTC,e2,Order Completed,m1,anna,s1,4.50,EUR,\n\
                2025-01-01 10:00:01 UTC,e2,Order Completed,m2,anna,s1,5.50,EUR,\n\
                2025-01-01 10:00:02 UTC,e2,view,m3,anna,s1,5.50,EUR,\n\
                2025-01-01 10:00:02 UTC,e3,Products Searched,,anna,s1,,,mug\n\
                2025-01-01 10:00:02 UTC,e4,view,m3,anna,s1,5.50 GBP,EUR,\n\
                2025-01-01 10:00:02 UTC,e5,view,m3,anna,s1,5.50,Euros,\n\
                2025-01-01 10:00:02 UTC,e6,view,m3,anna,s1,,-,\n";
    let long = format!("2025-01-01 10:00:02 UTC,{},view,m3,anna,s1,5.50,EUR,\n", "e".repeat(200));
    let (events, report) =
        Shop::new().import_events("clickstream", &[("clicks.csv", &format!("{rows}{long}"))]).unwrap();
    let ids: Vec<(&str, i64)> = events.iter().map(|event| (event.event_id.as_str(), event.at.0 % 60_000)).collect();
    assert_eq!(ids, [("e1", 0), ("e2", 0), ("e2", 0), ("e3", 2000), ("e6", 2000)], "rows of one event have its time");
    let reasons: Vec<(&str, u64)> = report.dropped.iter().map(|(name, class)| (*name, class.count)).collect();
    assert_eq!(reasons, [("bad currency", 2), ("bad event id", 1), ("duplicate row", 1), ("event id used twice", 1)]);
}

#[test]
fn items_and_events_may_have_different_mappings() {
    let shop = Shop::new();
    let events = vec![shop.write(
        "clicks.csv",
        "time,event,product_id,visitor_id\n2025-01-01T10:00:00Z,view,m1,v1\n2025-01-01T10:00:00Z,view,m9,v1\n",
    )];
    let items = shop.write("feed.tsv", GOOGLE_TSV);
    let files = ShopFiles { events: &events, items: Some(&items) };
    let out = shop.directory.path().join("out");
    let open = |name: &str| Mapping::open(name).unwrap();
    let mappings = [open("google-merchant-center"), open("clickstream")];
    let report = import(&mappings, files, &out, OPTIONS, |_, _| {}).unwrap();
    assert_eq!((report.item_count, report.item_row_count, report.row_count), (3, 2, 2));
    let error = import(&mappings[..1], files, &out, OPTIONS, |_, _| {}).unwrap_err().to_string();
    assert_contains(&error, &["`events`", "clicks.csv"]);
    let twice = [open("google-merchant-center"), open("icecat"), open("clickstream")];
    let error = import(&twice, files, &out, OPTIONS, |_, _| {}).unwrap_err().to_string();
    assert_contains(&error, &["google-merchant-center and icecat", "`items`"]);
    let error = Mapping::open("magento").unwrap_err().to_string();
    assert_contains(&error, &["magento", "No such file", "google-merchant-center, icecat"]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// A feed that is cut or damaged anywhere is imported or refused; it never panics.
    #[test]
    fn no_content_panics(cut in 0.0..1.0_f64, at in 0.0..1.0_f64, byte in any::<u8>(), format in 0_usize..4) {
        let json = "{\"id\": \"1\", \"title\": \"Mug &amp; <b>cup</b>\", \"price\": \"5 EUR\", \"items\": [{\"item_id\": 1}]}\n";
        let xml = "<?xml version=\"1.0\" encoding=\"utf-8\"?><rss><item><id>1</id><title>Mug &amp; &#233;</title>\
                   <g:price a=\"b\">5 EUR</g:price></item></rss>";
        let (name, whole) = [("f.tsv", GOOGLE_TSV), ("f.jsonl", json), ("f.xml", xml), ("f.csv", SHOPIFY)][format];
        let mut content = whole.as_bytes()[..(whole.len() as f64 * cut) as usize].to_vec();
        if !content.is_empty() {
            let index = (content.len() as f64 * at) as usize;
            content[index] = byte;
        }
        for (mapping, _) in SHIPPED {
            _ = Shop::new().import_items(mapping, name, &content);
        }
    }
}

fn inventory(mapping: &str, name: &str, content: &str) -> Result<(Vec<LocalInventory>, InventoryReport), ImportError> {
    let shop = Shop::new();
    let (mapping, file) = (shop.mapping(mapping)?, shop.write(name, content));
    let options = ImportOptions { items_time: Some(UnixMillis(NOW.0 - 1000)), ..OPTIONS };
    read_inventory(&[mapping], &file, options, |_, _| {})
}

/// Item, place, stock, price in units, currency, sale price in units.
type LocalRow<'a> = (&'a str, &'a str, Option<u32>, Option<i64>, &'a str, Option<i64>);

fn local_row(row: &LocalInventory) -> LocalRow<'_> {
    let units = |price: Option<lodestone_core::units::PriceMicros>| price.map(|price| price.micros() / 1_000_000);
    let LocalInventory { item, place_id, stock_quantity, price, currency, sale_price, .. } = row;
    (item.as_str(), place_id, *stock_quantity, units(*price), currency, units(*sale_price))
}

#[test]
fn a_local_inventory_feed_has_stock_and_prices_of_stores() {
    let tsv = "store code\titemid\tquantity\tprice\tsale price\tsale price effective date\tavailability\n\
               leeds\tmug\t7\t12.00 EUR\t9.00 EUR\t2025-12-24T00:00Z/2026-02-01T00:00Z\tin stock\n\
               york\tmug\t\t13.00 EUR\t\t\ton display to order\n\
               leeds\tlamp\t5\t\t\t\tout of stock\n\
               york\tlamp\t\t30.00 EUR\t20.00 EUR\t\tlimited availability\n";
    let (rows, report) = inventory("google-local-inventory", "stores.tsv", tsv).unwrap();
    let expected: [LocalRow<'_>; 4] = [
        ("mug", "leeds", Some(7), Some(12), "EUR", Some(9)),
        ("mug", "york", Some(1), Some(13), "EUR", None),
        ("lamp", "leeds", Some(0), None, "", None),
        ("lamp", "york", Some(1), Some(30), "EUR", Some(20)),
    ];
    assert_eq!(rows.iter().map(local_row).collect::<Vec<_>>(), expected);
    let ms = |time: &str| time.parse::<jiff::Timestamp>().unwrap().as_millisecond();
    let times: Vec<_> = rows.iter().map(|row| (row.sale_start.map(|at| at.0), row.sale_end.map(|at| at.0))).collect();
    let feed = NOW.0 - 1000;
    assert_eq!(
        times,
        [
            (Some(ms("2025-12-24T00:00:00Z")), Some(ms("2026-02-01T00:00:00Z"))),
            // Ends a sale of an earlier file.
            (None, Some(feed)),
            // Without a price, nothing is said about a sale.
            (None, None),
            (Some(feed), Some(ms("9999-12-30T00:00:00Z"))),
        ]
    );
    assert_eq!((report.row_count, report.kept_count, report.place_count, report.time_ms), (4, 4, 2, feed));

    let csv = "store_code,id,quantity,price\nleeds,mug,7,12.00\n";
    let (rows, report) = inventory("google-local-inventory", "stores.csv", csv).unwrap();
    assert_eq!(local_row(&rows[0]), ("mug", "leeds", Some(7), Some(12), "", None));
    assert_eq!((rows[0].sale_end, report.missing_columns.len()), (None, 3));

    let xml = "<rss xmlns:g=\"http://base.google.com/ns/1.0\"><channel><item><g:store_code>leeds</g:store_code>\
               <g:id>mug</g:id><g:quantity>3</g:quantity><g:price>12 GBP</g:price></item></channel></rss>";
    let mapping = "extends = \"google-local-inventory\"\n[constants]\ncurrency = \"GBP\"\n";
    let (rows, _) = inventory(mapping, "stores.xml", xml).unwrap();
    assert_eq!(local_row(&rows[0]), ("mug", "leeds", Some(3), Some(12), "", None), "the currency of the items");
}

#[test]
fn rows_of_a_local_inventory_feed_with_bad_values_are_left_out_and_counted() {
    let csv = "store_code,id,quantity,price,sale_price,sale_price_effective_date,availability\n\
               leeds,mug,7,12.00 EUR,,,\n\
               leeds,mug,8,12.00 EUR,,,\n\
               ,mug,8,12.00 EUR,,,\n\
               york,,8,12.00 EUR,,,\n\
               york,mug,many,12.00 EUR,,,\n\
               york,mug,,,,,\n\
               york,mug,8,,9.00 EUR,,\n\
               york,mug,8,12.00 EUR,9.00 GBP,,\n\
               york,mug,8,12.00 EUR,9.00 EUR,soon,\n\
               york,mug,8,12.00 EUR,,,perhaps\n";
    let (rows, report) = inventory("google-local-inventory", "stores.csv", csv).unwrap();
    assert_eq!((rows.len(), rows[0].stock_quantity), (1, Some(7)));
    let dropped: Vec<(&str, u64)> = report.dropped.iter().map(|(name, class)| (*name, class.count)).collect();
    let classes = [
        "bad currency",
        "bad sale period",
        "no item",
        "no place",
        "no value",
        "not a number",
        "sale without a price",
        "same item and place",
        "unknown availability",
    ];
    assert_eq!(dropped, classes.map(|name| (name, 1)));
    let unknown = &report.dropped["unknown availability"];
    assert_contains(&unknown.example_problem, &["column `availability`", "`perhaps`"]);
    assert_contains(&report.to_string(), &["10 rows read", "1 kept, of 1 places", "first at line 11"]);

    let none = inventory("google-local-inventory", "stores.csv", "store_code,id\nleeds,mug\n").unwrap_err();
    assert_contains(&none.to_string(), &["no row of the file can be used", "no value"]);
    let missing = inventory("google-local-inventory", "stores.csv", "id,quantity\nmug,1\n").unwrap_err();
    assert_contains(&missing.to_string(), &["store_code", "inventory.place"]);
    let other = inventory("shopify", "stores.csv", csv).unwrap_err();
    assert_contains(&other.to_string(), &["`inventory`"]);
    for (mapping, problem) in [
        ("[inventory]\nid = \"id\"\n", "inventory.place is missing"),
        ("[inventory]\nid = \"id\"\nplace = \"s\"\n", "none of the columns stock, availability and price"),
        ("[inventory]\nid = \"id\"\nplace = \"s\"\nstock = \"q\"\nsale_price = \"p\"\n", "without inventory.price"),
        (
            "[file.empty_values_of]\nplatform = [\"WEB\"]\n[inventory]\nid = \"i\"\nplace = \"s\"\nstock = \"q\"\n",
            "`platform`",
        ),
    ] {
        let error = inventory(mapping, "stores.csv", csv).unwrap_err().to_string();
        assert_contains(&error, &[problem]);
    }
}

#[test]
fn a_value_that_means_nothing_in_one_column_is_a_value_in_the_others() {
    let event = |query: &str, platform: &str, category: &str| {
        format!(
            "{{\"event_timestamp\": \"1764000000000000\", \"event_name\": \"search\", \"user_pseudo_id\": \"v\", \
             \"platform\": \"{platform}\", \"device\": {{\"category\": \"{category}\"}}, \"event_params\": \
             [{{\"key\": \"search_term\", \"value\": {{\"string_value\": \"{query}\"}}}}]}}\n"
        )
    };
    let lines = event("WEB", "WEB", "mobile") + &event("mug", "ANDROID", "mobile");
    let (events, _) = Shop::new().import_events("ga4", &[("events.json", &lines)]).unwrap();
    let mut found: Vec<(String, Option<Platform>)> =
        events.iter().map(|event| (event.query.clone(), event.context.platform)).collect();
    found.sort_by(|left, right| left.0.cmp(&right.0));
    assert_eq!(found[0].0, "WEB");
    assert!(found[0].1.is_some() && found[1].1.is_some() && found[0].1 != found[1].1, "{found:?}");
}

#[test]
fn incentive_events_are_dropped_because_files_have_no_coupons() {
    let rows = "event_time,event_id,event_type,product_id,user_id,user_session,price,currency,search_term\n\
                2025-01-01 10:00:00 UTC,e1,view,m1,anna,s1,4.50,EUR,\n\
                2025-01-01 10:00:01 UTC,e2,incentive_shown,m1,anna,s1,,,\n\
                2025-01-01 10:00:02 UTC,e3,incentive_redeemed,m1,anna,s1,,,\n";
    let (events, report) = Shop::new().import_events("clickstream", &[("clicks.csv", rows)]).unwrap();
    assert_eq!(events.iter().map(|event| event.event_id.as_str()).collect::<Vec<_>>(), ["e1"]);
    let reasons: Vec<(&str, u64)> = report.dropped.iter().map(|(name, class)| (*name, class.count)).collect();
    assert_eq!(reasons, [("no coupon", 2)]);
}
