//! Measures spelling correction on the titles of the example shop: how many typing errors it corrects, and how many
//! words that the shop does not have it leaves as they are. `SPELLING_TITLES=FILE`, with a title on each line, measures
//! another shop.
use lodestone_catalog::Item;
use lodestone_core::{
    ids::{ItemId, Row},
    text,
};
use lodestone_index::{Lexical, MatchMode};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use std::collections::{BTreeMap, BTreeSet};

/// Results among which the item must be.
const RESULTS: usize = 10;
/// Errors of each kind.
const ERRORS: usize = 400;
/// Minimum items with a word that is mistyped, and its minimum letters.
const WORD_ITEMS_MIN: usize = 5;
const WORD_CHARS_MIN: usize = 5;
/// Minimum share of the errors of each kind that are corrected. Of additional letters, those before a word of five are not:
/// `iphone` is no misspelling of `phone`.
const CORRECTED_MIN: f64 = 0.94;
/// Minimum share of the unknown words that are left as they are.
const KEPT_MIN: f64 = 0.95;

/// Brands and products; those that the shop has do not count.
const NAMES: &str = "netflix bose lego kindle iphone postage dyson gucci tesla nike adidas prada rolex ikea samsung sony \
    canon xbox nintendo playstation spotify disney barbie pokemon hermes chanel dior zara puma reebok fender gibson yamaha \
    makita bosch philips braun gillette pampers nestle heinz oreo nutella starbucks nespresso fitbit garmin gopro huawei \
    xiaomi lenovo asus acer dell intel nvidia logitech razer corsair kodak nikon leica casio seiko omega swatch fossil \
    levis wrangler converse vans timberland crocs birkenstock lululemon patagonia columbia marmot osprey deuter shimano \
    trek brompton peloton roomba vitamix kitchenaid keurig cuisinart tefal pyrex tupperware ziploc sonos roku hulu \
    audible ebay amazon paypal google alexa facebook whatsapp instagram tiktok hoover shark bissell miele smeg siemens \
    electrolux whirlpool zanussi burberry versace armani lacoste tommy hilfiger hugo boss diesel guess gant barbour \
    moncler balenciaga fendi cartier tiffany pandora swarovski loreal maybelline revlon nivea dove olay clinique lancome \
    estee garnier neutrogena colgate oral sensodyne listerine huggies fisher mattel hasbro playmobil duplo meccano hornby \
    scalextric monopoly scrabble jenga uno frozen minecraft fortnite roblox voucher giftcard delivery refund bicycle \
    trampoline mattress laptop television headphones perfume vitamins protein dogfood aquarium fishing tent canoe kayak \
    skateboard scooter piano violin guitar ukulele drumkit saxophone";

#[expect(clippy::disallowed_methods, reason = "tests have no arguments")]
fn titles() -> Vec<String> {
    if let Ok(file) = std::env::var("SPELLING_TITLES") {
        return std::fs::read_to_string(file).unwrap().lines().map(str::to_owned).collect();
    }
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../data/online-retail/transactions_2009_2010.csv.zst");
    let file = zstd::Decoder::new(std::fs::File::open(file).unwrap()).unwrap();
    let rows = csv::Reader::from_reader(file).into_records().map(Result::unwrap);
    let titles: BTreeMap<String, String> = rows.map(|row| (row[1].to_owned(), row[2].to_owned())).collect();
    titles.into_values().collect()
}

/// Returns a word with one error of a kind.
fn mistyped(word: &str, kind: &str, rng: &mut StdRng) -> String {
    let mut letters: Vec<char> = word.chars().collect();
    let at = rng.random_range(0..letters.len());
    let any = char::from(rng.random_range(b'a'..=b'z'));
    match kind {
        "substitution" => letters[at] = any,
        "insertion" => letters.insert(at, any),
        "repetition" => letters.insert(at, letters[at]),
        "deletion" => _ = letters.remove(at),
        "transposition" => {
            let at = at.min(letters.len() - 2);
            letters.swap(at, at + 1);
        }
        kind => unreachable!("{kind}"),
    }
    letters.into_iter().collect()
}

#[test]
fn typing_errors_are_corrected_and_words_that_the_shop_does_not_have_are_not() {
    let titles = titles();
    let items: Vec<Item> = (titles.iter().enumerate())
        .map(|(n, title)| Item::titled(ItemId::parse(&format!("item-{n}")).unwrap(), title))
        .collect();
    let lexical = Lexical::new().unwrap();
    let rows: Vec<(Row, &Item)> = items.iter().enumerate().map(|(row, item)| (Row(row as u32), item)).collect();
    lexical.upsert(&rows).unwrap();
    let is_known = |word: &str| lexical.has_match(word, &|_| true).unwrap();
    let corrected = |word: &str| lexical.correct(word, &|_| true).unwrap();

    let mut items_with: BTreeMap<String, BTreeSet<u32>> = BTreeMap::new();
    for (row, title) in titles.iter().enumerate() {
        for word in text::written_words(title) {
            if word.bytes().all(|byte| byte.is_ascii_lowercase()) && word.len() >= WORD_CHARS_MIN {
                items_with.entry(word).or_default().insert(row as u32);
            }
        }
    }
    items_with.retain(|_, rows| rows.len() >= WORD_ITEMS_MIN);
    // A word that more items have is typed more often.
    let words: Vec<&str> =
        items_with.iter().flat_map(|(word, rows)| std::iter::repeat_n(word.as_str(), rows.len())).collect();
    let mut too_few = Vec::new();
    for kind in ["substitution", "insertion", "repetition", "deletion", "transposition"] {
        let mut rng = StdRng::seed_from_u64(7);
        let (mut count, mut found) = (0, 0);
        while count < ERRORS {
            let word = *words.choose(&mut rng).unwrap();
            let typed = mistyped(word, kind, &mut rng);
            if is_known(&typed) {
                continue;
            }
            count += 1;
            let query = corrected(&typed).unwrap_or(typed);
            let hits = lexical.search(&query, MatchMode::All, RESULTS, &|_| true).unwrap();
            found += usize::from(hits.iter().any(|(row, _)| items_with[word].contains(&row.0)));
        }
        let share = found as f64 / count as f64;
        println!("{kind}: the word is found within {RESULTS} for {:.1} % of {count} errors", 100.0 * share);
        too_few.extend((share < CORRECTED_MIN).then_some(kind));
    }

    let unknown: Vec<&str> = NAMES.split_whitespace().filter(|name| !is_known(name)).collect();
    let replaced: Vec<String> =
        unknown.iter().filter_map(|name| Some(format!("{name} → {}", corrected(name)?))).collect();
    let kept = 1.0 - replaced.len() as f64 / unknown.len() as f64;
    println!("{:.1} % of {} unknown names are not corrected; {replaced:?} are", 100.0 * kept, unknown.len());
    assert!(too_few.is_empty(), "too few errors are corrected: {too_few:?}");
    assert!(kept >= KEPT_MIN, "{replaced:?}");
    for name in ["netflix", "bose", "lego", "kindle", "iphone", "postage", "barbie", "hermes"] {
        assert!(!unknown.contains(&name) || corrected(name).is_none(), "{name}");
    }
}
