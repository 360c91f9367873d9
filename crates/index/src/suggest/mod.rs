//! Completions of a typed prefix.
mod hits;
mod list;
mod match_kind;
mod phrases;

use crate::arrays::{ArrayReader, ArrayWriter, ArraysError, check};
use ahash::AHashMap;
use hits::{CategoryFactors, Hits, category_factor};
use list::{Entry, List, normal};
use lodestone_core::text;
use match_kind::MatchKind;
use parking_lot::{Mutex, RwLock};
use phrases::PHRASE_ITEMS_MIN;
pub use phrases::phrases;
use rayon::prelude::*;
use std::sync::Arc;

/// Maximum queries of a list; beyond it the half with the lower weights is dropped.
const QUERIES_MAX: usize = 20_000;
/// Maximum texts of items of a live list; beyond it the older half is dropped.
const LIVE_TEXTS_MAX: usize = 100_000;
/// Number of fresh texts, which are scanned one by one, at which they are merged into the lists.
const FRESH_MAX: usize = 1024;
const MAGIC: &[u8; 8] = b"LSCOMPL1";

/// A suggested text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Completion {
    pub text: String,
    pub source: CompletionSource,
    /// The words of the text that the typed prefix stands for, in normal form. Differs from the prefix if that has an
    /// error.
    pub prefix: String,
}

/// Returns whether a prefix matches at the start of a text or of one of its words.
pub fn has_prefix(text: &str, prefix: &str) -> bool {
    let typed = normal(prefix);
    !typed.is_empty() && MatchKind::Prefix.of(&normal(text), &typed).is_some()
}

/// The origin of a suggested text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CompletionSource {
    Query,
    Title,
    Category,
    Brand,
    /// A phrase of titles; see [`phrases`]. It is a completion if at least three items have it.
    Phrase,
}

impl CompletionSource {
    /// By discriminant.
    const ALL: [Self; 5] = [Self::Query, Self::Title, Self::Category, Self::Brand, Self::Phrase];
}

/// A text that may be suggested.
#[derive(Debug, Clone, PartialEq)]
pub struct CompletionCandidate {
    pub text: String,
    /// The category that determines the user's affinity to the text; may be empty.
    pub category: String,
    /// Popularity, 0 or more, on a scale that is common to all texts. The score depends on its logarithm.
    pub weight: f32,
    pub source: CompletionSource,
}

/// Texts of one generation (titles, their phrases, categories, brands) and live texts: queries of users and items written
/// since.
///
/// Additions and searches may run concurrently. A search waits at most for the insertion of one text.
pub struct Suggester {
    built: List,
    live: RwLock<Live>,
    /// One addition at a time. Counts the items with phrases of too few items.
    adding: Mutex<RarePhrases>,
}

/// By hash of its normal form: the number of items with a phrase, below [`PHRASE_ITEMS_MIN`]. Most phrases of a catalogue
/// are in one title, so their texts are not kept.
#[derive(Default)]
struct RarePhrases {
    /// The phrases of the built list's items with one item, and with two, ascending.
    built: [Vec<u64>; (PHRASE_ITEMS_MIN - 1) as usize],
    /// The phrases whose number has changed since, with the number.
    changed: AHashMap<u64, u32>,
}

impl RarePhrases {
    /// The same in all versions, because bundles have the hashes.
    fn hash(entry: &Entry) -> u64 {
        text::stable_hash('p', &entry.normal)
    }

    fn of(counts: AHashMap<u64, u32>) -> Self {
        let mut built: [Vec<u64>; (PHRASE_ITEMS_MIN - 1) as usize] = Default::default();
        for (hash, count) in counts {
            // The entries of other phrases count from now on.
            if let Some(hashes) = built.get_mut(count as usize - 1) {
                hashes.push(hash);
            }
        }
        built.iter_mut().for_each(|hashes| hashes.par_sort_unstable());
        Self { built, changed: AHashMap::new() }
    }

    fn built_count(&self, hash: u64) -> u32 {
        let found = (1..).zip(&self.built).find(|(_, hashes)| hashes.binary_search(&hash).is_ok());
        found.map_or(0, |(count, _)| count)
    }

    fn set(&mut self, hash: u64, count: u32) {
        if count == self.built_count(hash) {
            self.changed.remove(&hash);
        } else {
            self.changed.insert(hash, count);
        }
    }

    fn count(&self, hash: u64) -> u32 {
        self.changed.get(&hash).copied().unwrap_or_else(|| self.built_count(hash))
    }

    /// Counts an item of a phrase. Returns the entry, with its items, once they are enough, and forgets the phrase then;
    /// returns other entries at once.
    fn add(&mut self, entry: Entry) -> Option<Entry> {
        if entry.source != CompletionSource::Phrase {
            return Some(entry);
        }
        let hash = Self::hash(&entry);
        let count = self.count(hash) + 1;
        if count < PHRASE_ITEMS_MIN {
            self.set(hash, count);
            return None;
        }
        self.set(hash, 0);
        entry.items.add(PHRASE_ITEMS_MIN - 1);
        Some(entry)
    }

    fn remove(&mut self, entry: &Entry) {
        let hash = Self::hash(entry);
        let count = self.count(hash);
        if count > 0 {
            self.set(hash, count - 1);
        }
    }
}

/// Live texts in the manner of a log-structured merge tree: each list is at least twice as long as the next, so that
/// there are few lists and each text is sorted a few times only.
#[derive(Default)]
struct Live {
    lists: Vec<Arc<List>>,
    /// Texts that are in no list yet, in the order of their addition.
    fresh: Vec<Entry>,
    /// By normal form and source: the index in `fresh`.
    by_normal: AHashMap<(String, CompletionSource), u32>,
}

impl Suggester {
    /// Builds the index of texts in any order, each of one item. Merges texts with the same normal form and source: the
    /// sum of their weights, the spelling and category of the first.
    pub fn build(candidates: impl IntoIterator<Item = CompletionCandidate>) -> Self {
        let mut counts: AHashMap<u64, u32> = AHashMap::new();
        let entries = candidates.into_iter().filter_map(Entry::of).filter(|entry| {
            if entry.source != CompletionSource::Phrase {
                return true;
            }
            let count = counts.entry(RarePhrases::hash(entry)).or_default();
            *count += 1;
            if *count == PHRASE_ITEMS_MIN {
                entry.items.add(PHRASE_ITEMS_MIN - 1);
            }
            *count >= PHRASE_ITEMS_MIN
        });
        let built = List::build(entries);
        Self { built, live: RwLock::default(), adding: Mutex::new(RarePhrases::of(counts)) }
    }

    /// Serializes the index that was built, without what was added since.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = ArrayWriter::new(MAGIC);
        self.built.write(&mut out);
        self.adding.lock().built.iter().for_each(|hashes| out.hashes(hashes));
        out.finish()
    }

    /// Reads the output of [`Suggester::to_bytes`].
    pub fn read(bytes: &[u8]) -> Result<Self, ArraysError> {
        let mut reader = ArrayReader::new(bytes, MAGIC)?;
        let built = List::read(&mut reader)?;
        let mut rare = RarePhrases::default();
        for hashes in &mut rare.built {
            *hashes = reader.hashes()?;
            check(hashes.is_sorted(), "the hashes of phrases are not ascending")?;
        }
        reader.finish()?;
        Ok(Self { built, live: RwLock::default(), adding: Mutex::new(rare) })
    }

    /// Adds a query, or its weight if it is known. The caller decides which queries may be shown to other users.
    pub fn add_query(&self, query: &str, weight: f32) {
        let source = CompletionSource::Query;
        self.add(CompletionCandidate { text: query.to_owned(), category: String::new(), weight, source });
    }

    /// Adds a query, or a text of an item. If a query is known, adds its weight; another known text has one more item.
    pub fn add(&self, candidate: CompletionCandidate) {
        let Some(entry) = Entry::of(candidate) else { return };
        let mut rare = self.adding.lock();
        // A title does not become more popular when its item is written again.
        if entry.source != CompletionSource::Query
            && let Some(known) = self.find(&self.live.read(), &entry)
        {
            known.items.add(1);
            return;
        }
        let Some(entry) = rare.add(entry) else { return };
        let fresh = self.live.write().add(entry);
        if fresh >= FRESH_MAX {
            // The new list is built under a read lock, because sorting takes longer than a search may wait.
            let lists = self.live.read().merged();
            *self.live.write() = Live { lists, ..Live::default() };
        }
    }

    /// Removes a text of an item. It is a completion as long as another item has it. A text that was dropped because
    /// there are too many, and was added again, has only the items since.
    pub fn remove(&self, candidate: CompletionCandidate) {
        let Some(entry) = Entry::of(candidate) else { return };
        let mut rare = self.adding.lock();
        match self.find(&self.live.read(), &entry) {
            Some(known) => known.items.remove_one(),
            None if entry.source == CompletionSource::Phrase => rare.remove(&entry),
            None => {}
        }
    }

    /// Returns the known entry with the same normal form and source.
    fn find<'s>(&'s self, live: &'s Live, entry: &Entry) -> Option<&'s Entry> {
        self.built.find(entry).or_else(|| live.find(entry))
    }

    /// Returns the `count` best completions of `prefix`, best first, with distinct normal forms. `affinity` returns the
    /// user's affinity to a category, 0 (neutral) or more.
    ///
    /// The prefix matches at the start of a text or of a word. If nothing matches, texts that have its words in any
    /// order match, of a script without spaces anywhere, and then texts that are one typing error away. For a prefix of
    /// thousands of texts, only the strongest texts and the strongest of each category are scored.
    pub fn complete(&self, prefix: &str, count: usize, affinity: &dyn Fn(&str) -> f32) -> Vec<Completion> {
        Self::complete_from(&[self], prefix, count, affinity)
    }

    /// [`Suggester::complete`] from the texts of several suggesters.
    pub fn complete_from(
        suggesters: &[&Self],
        prefix: &str,
        count: usize,
        affinity: &dyn Fn(&str) -> f32,
    ) -> Vec<Completion> {
        let typed = normal(prefix);
        if typed.is_empty() || count == 0 {
            return Vec::new();
        }
        let live: Vec<_> = suggesters.iter().map(|suggester| suggester.live.read()).collect();
        let built = suggesters.iter().map(|suggester| &suggester.built);
        let lists = built.chain(live.iter().flat_map(|live| live.lists.iter().map(|list| &**list)));
        let lists: Vec<(&List, CategoryFactors)> =
            lists.map(|list| (list, CategoryFactors::new(affinity, &list.categories))).collect();
        let mut hits = Hits::default();
        for kind in [MatchKind::Prefix, MatchKind::AllWords, MatchKind::ErrorAfterFirst, MatchKind::ErrorAtFirst] {
            for (list, categories) in &lists {
                list.search(kind, &typed, &mut |start, factor| {
                    let entry = &list.entries[start.entry as usize];
                    let category = categories.of(list.category_of[start.entry as usize]);
                    hits.push(entry, start.byte, entry.strength_at(start.byte) * factor * category);
                });
            }
            for entry in live.iter().flat_map(|live| &live.fresh).filter(|entry| entry.is_suggested()) {
                if let Some((byte, factor)) = kind.of(&entry.normal, &typed) {
                    let category = category_factor(affinity(&entry.category));
                    hits.push(entry, byte, entry.strength_at(byte) * factor * category);
                }
            }
            if !hits.is_empty() {
                break;
            }
        }
        hits.into_best(count, &typed)
    }
}

impl Live {
    /// Adds a query, or another text that is not known, and returns the number of fresh texts.
    fn add(&mut self, entry: Entry) -> usize {
        let next = self.fresh.len() as u32;
        let at = *self.by_normal.entry((entry.normal.clone(), entry.source)).or_insert(next);
        match at == next {
            true => self.fresh.push(entry),
            false => self.fresh[at as usize].weight += entry.weight,
        }
        self.fresh.len()
    }

    /// Returns the entry with the same normal form and source. The counts of a query's entries are separate.
    fn find(&self, entry: &Entry) -> Option<&Entry> {
        let fresh = || self.by_normal.get(&(entry.normal.clone(), entry.source)).map(|at| &self.fresh[*at as usize]);
        self.lists.iter().find_map(|list| list.find(entry)).or_else(fresh)
    }

    /// Returns the lists with the fresh texts merged into them. The weights of a query in several merged lists are
    /// summed.
    fn merged(&self) -> Vec<Arc<List>> {
        let (mut lists, mut last) = (self.lists.clone(), self.fresh.clone());
        while let Some(list) = lists.pop_if(|list| list.entries.len() < 2 * last.len()) {
            last = list.entries.iter().cloned().chain(last).collect();
        }
        last.retain(|entry| entry.items.get() > 0);
        lists.push(Arc::new(List::build(within_limits(last).into_iter())));
        lists
    }
}

/// Drops the half of the queries with the lower weights and the older half of the other texts, if there are too many.
fn within_limits(entries: Vec<Entry>) -> Vec<Entry> {
    let (mut queries, mut texts): (Vec<Entry>, Vec<Entry>) =
        entries.into_iter().partition(|entry| entry.source == CompletionSource::Query);
    if queries.len() > QUERIES_MAX {
        queries.sort_by(|a, b| b.weight.total_cmp(&a.weight));
        queries.truncate(QUERIES_MAX / 2);
    }
    if texts.len() > LIVE_TEXTS_MAX {
        texts.drain(..texts.len() - LIVE_TEXTS_MAX / 2);
    }
    texts.extend(queries);
    texts
}

#[cfg(test)]
mod tests {
    use super::{list::SCAN_MAX, *};
    use ahash::AHashSet;
    use proptest::prelude::*;

    fn candidate(text: &str, category: &str, weight: f32, source: CompletionSource) -> CompletionCandidate {
        CompletionCandidate { text: text.to_owned(), category: category.to_owned(), weight, source }
    }

    #[test]
    fn an_index_that_is_read_completes_as_the_one_that_was_written() {
        use CompletionSource::{Phrase, Title};
        // More starts with a common prefix than are scanned, so that there are short lists.
        let titles =
            (0..SCAN_MAX + 10).map(|n| candidate(&format!("Mug {n} ü"), &format!("c{}", n % 3), n as f32, Title));
        let phrases = ["red mug"; 4].into_iter().chain(["tea mug"; 2]).chain(["old mug"]);
        let phrases = phrases.map(|text| candidate(text, "", 1.0, Phrase));
        let built = Suggester::build(titles.chain(phrases));
        let bytes = built.to_bytes();
        let read = Suggester::read(&bytes).unwrap();
        assert!(!built.built.short_lists_is_empty());
        assert_eq!(read.to_bytes(), bytes);
        for suggester in [&built, &read] {
            suggester.add(candidate("tea mug", "", 1.0, Phrase));
            suggester.add(candidate("old mug", "", 1.0, Phrase));
            suggester.remove(candidate("red mug", "", 1.0, Phrase));
        }
        for typed in ["m", "mug", "mug 20", "mgu", "re", "red m", "tea", "old", "ü"] {
            let complete = |suggester: &Suggester| suggester.complete(typed, 20, &|category| category.len() as f32);
            assert_eq!(complete(&read), complete(&built), "{typed}");
        }
        assert_eq!(texts(&read, "tea m"), ["tea mug"], "the third item has the phrase");
        assert!(texts(&read, "old m").is_empty());
        for length in (0..bytes.len()).step_by(5) {
            assert!(Suggester::read(&bytes[..length]).is_err(), "{length} bytes");
        }
    }

    fn shop() -> Suggester {
        use CompletionSource::{Category, Title};
        Suggester::build([
            candidate("Red Retrospot Mug", "Mugs", 50.0, Title),
            candidate("Retro Lamp", "Lamps", 10.0, Title),
            candidate("Mugs", "Mugs", 20.0, Category),
            candidate("Blue  Mug", "Mugs", 5.0, Title),
            candidate("blue mug", "Mugs", 5.0, Title),
            candidate("Chocolate Box", "Food", 5.0, Title),
            candidate("陶瓷马克杯", "杯子", 5.0, Title),
        ])
    }

    fn texts(suggester: &Suggester, typed: &str) -> Vec<String> {
        suggester.complete(typed, 10, &|_| 0.0).into_iter().map(|completion| completion.text).collect()
    }

    #[test]
    fn a_prefix_matches_at_the_start_of_a_text_or_of_a_word() {
        let shop = shop();
        assert_eq!(texts(&shop, "MUG"), ["Mugs", "Red Retrospot Mug", "Blue Mug"]);
        assert_eq!(texts(&shop, "retrospot m"), ["Red Retrospot Mug"]);
        assert_eq!(texts(&shop, "mug re"), ["Red Retrospot Mug"]);
        assert!(texts(&shop, "ug").is_empty());
        assert!(texts(&shop, " ").is_empty());
    }

    #[test]
    fn a_completion_has_the_words_that_the_prefix_stands_for() {
        let shop = shop();
        for (typed, prefix) in
            [("mug", "mugs"), ("retrospto m", "retrospot mug"), ("chcolate b", "chocolate box"), ("lmap", "lamp")]
        {
            assert_eq!(shop.complete(typed, 1, &|_| 0.0)[0].prefix, prefix, "{typed}");
        }
    }

    #[test]
    fn one_typing_error_is_corrected_if_nothing_matches() {
        let shop = shop();
        for typed in ["choclate", "chocolatte", "chocolste", "chcoolate", "hocolate", "xhocolate", "chocolate bx"] {
            assert_eq!(texts(&shop, typed), ["Chocolate Box"], "{typed}");
        }
        assert!(texts(&shop, "chxxlate").is_empty());
    }

    #[test]
    fn a_chinese_prefix_matches_at_any_character() {
        let shop = shop();
        for typed in ["陶瓷", "马克", "杯"] {
            assert_eq!(texts(&shop, typed), ["陶瓷马克杯"], "{typed}");
        }
    }

    #[test]
    fn a_chinese_character_is_missing_or_exchanged_but_never_another() {
        let titles = ["小熊 白色马克杯", "小熊 绿色马克杯", "陶瓷花盆", "小熊 马克杯 白色"];
        let title = |text: &str| candidate(text, "", 1.0, CompletionSource::Title);
        let (built, live) = (Suggester::build(titles.map(title)), Suggester::build([]));
        titles.map(title).into_iter().for_each(|title| live.add(title));
        for shop in [&built, &live] {
            for typed in ["陶花盆", "瓷陶花盆", "陶花瓷盆"] {
                assert_eq!(texts(shop, typed), ["陶瓷花盆"], "{typed}");
            }
            for typed in ["马克杯 红", "红色马克杯", "马克杯 红色", "陶瓷花瓶", "陶磁花盆", "白色马克杯盖"]
            {
                assert!(texts(shop, typed).is_empty(), "{typed}: {:?}", texts(shop, typed));
            }
        }
    }

    #[test]
    fn a_chinese_prefix_of_several_words_matches_texts_that_contain_them_in_any_order() {
        let titles = ["小熊 红色台灯", "小熊 白色台灯", "晨光黑色纯棉毛巾", "晨光 蓝色衬衫 XL", "LED台灯 红色"];
        let title = |text: &str| candidate(text, "", 1.0, CompletionSource::Title);
        let (built, live) = (Suggester::build(titles.map(title)), Suggester::build([]));
        titles.map(title).into_iter().for_each(|title| live.add(title));
        for shop in [&built, &live] {
            for (typed, expected) in [
                ("小熊 台灯", &["小熊 红色台灯", "小熊 白色台灯"][..]),
                ("台灯 小熊 红", &["小熊 红色台灯"]),
                ("台灯 白", &["小熊 白色台灯"]),
                ("毛巾 黑", &["晨光黑色纯棉毛巾"]),
                ("衬衫 蓝色", &["晨光 蓝色衬衫 XL"]),
                ("衬衫 x", &["晨光 蓝色衬衫 XL"]),
                ("红 led", &["LED台灯 红色"]),
                ("led 红", &["LED台灯 红色"]),
                ("毛巾 红", &[]),
                ("le 红", &[]),
            ] {
                let mut found = texts(shop, typed);
                let mut expected: Vec<String> = expected.iter().map(|&text| text.to_owned()).collect();
                found.sort_unstable();
                expected.sort_unstable();
                assert_eq!(found, expected, "{typed}");
            }
        }
    }

    #[test]
    fn affinity_and_popularity_determine_the_order() {
        let shop = shop();
        assert_eq!(texts(&shop, "re")[0], "Red Retrospot Mug");
        let likes_lamps = |category: &str| if category == "Lamps" { 5.0 } else { 0.0 };
        assert_eq!(shop.complete("re", 1, &likes_lamps)[0].text, "Retro Lamp");
    }

    #[test]
    fn an_added_query_is_suggested_once() {
        let shop = shop();
        shop.add_query("Mug  tree", 100.0);
        shop.add_query("blue mug", 1000.0);
        let completions = shop.complete("mug", 10, &|_| 0.0);
        let added = |completion: &&Completion| completion.source == CompletionSource::Query;
        let added: Vec<&str> = completions.iter().filter(added).map(|completion| completion.text.as_str()).collect();
        assert!(added.contains(&"Mug tree"));
        assert_eq!(completions.iter().filter(|completion| completion.text.eq_ignore_ascii_case("blue mug")).count(), 1);
    }

    #[test]
    fn live_texts_are_suggested_like_those_of_the_bundle() {
        let shop = Suggester::build([]);
        for n in 0..3 * FRESH_MAX {
            shop.add(candidate(&format!("Live kettle {n}"), "Kettles", 1.0, CompletionSource::Title));
            shop.add_query("kettle", 1.0);
        }
        assert!(shop.live.read().lists[0].entries.len() >= FRESH_MAX, "fresh texts were merged into a list");
        assert_eq!(texts(&shop, "kettle")[0], "kettle");
        for typed in ["live kettle 5", "kettle 3071", "kettel 3071", "3071 live"] {
            assert!(!texts(&shop, typed).is_empty(), "{typed}");
        }
        assert_eq!(texts(&shop, "live kettle 3071"), ["Live kettle 3071"]);
    }

    #[test]
    fn a_text_is_suggested_as_long_as_an_item_has_it() {
        use CompletionSource::{Category, Title};
        let mug = || candidate("blue MUG", "Mugs", 1.0, Title);
        let shop = shop();
        // Two items of the bundle have the title, and one more is written.
        shop.add(mug());
        for _ in 0..2 {
            shop.remove(mug());
            assert_eq!(texts(&shop, "blue m"), ["Blue Mug"]);
        }
        shop.remove(mug());
        assert!(texts(&shop, "blue m").is_empty());
        // One removal too many, as after a text was dropped.
        shop.remove(mug());
        shop.add(mug());
        assert_eq!(texts(&shop, "blue m"), ["Blue Mug"]);
        shop.remove(candidate("mugs", "", 1.0, Category));
        assert_eq!(texts(&shop, "mugs"), ["Red Retrospot Mug", "Blue Mug"], "one letter away");
        // A query with the words of a removed title stays.
        shop.add_query("retro lamp", 1.0);
        shop.remove(candidate("Retro Lamp", "Lamps", 1.0, Title));
        assert_eq!(shop.complete("retro l", 9, &|_| 0.0)[0].source, CompletionSource::Query);
    }

    #[test]
    fn a_phrase_is_suggested_before_titles_if_enough_items_have_it() {
        use CompletionSource::{Phrase, Title};
        let of_title = |title: &str| -> Vec<CompletionCandidate> {
            let phrases = phrases(title, "").into_iter().map(|text| candidate(&text, "", 1.0, Phrase));
            phrases.chain([candidate(title, "", 1.0, Title)]).collect()
        };
        let titles =
            ["Linen Shirt Green", "Linen Shirt Red", "Oak Linen Shirt", "Linen Cushion Navy", "Linen Cushion Grey"];
        let shop = Suggester::build(titles.into_iter().flat_map(of_title));
        assert_eq!(texts(&shop, "lin")[..2], ["linen", "linen shirt"]);
        assert_eq!(shop.complete("lin", 9, &|_| 0.0)[1].source, Phrase);
        assert!(!texts(&shop, "linen c").contains(&"linen cushion".to_owned()));
        // An item that is written and removed counts like those of the bundle.
        of_title("Linen Cushion Blue").into_iter().for_each(|text| shop.add(text));
        assert_eq!(texts(&shop, "linen c")[0], "linen cushion");
        of_title("Linen Cushion Navy").into_iter().for_each(|text| shop.remove(text));
        assert!(!texts(&shop, "linen c").contains(&"linen cushion".to_owned()));
        of_title("Linen Cushion Pink").into_iter().for_each(|text| shop.add(text));
        assert_eq!(texts(&shop, "linen c")[0], "linen cushion");
        of_title("Linen Cushion Blue").into_iter().for_each(|text| shop.remove(text));
        assert!(!texts(&shop, "linen c").contains(&"linen cushion".to_owned()));
    }

    #[test]
    fn a_phrase_that_users_search_for_is_a_query() {
        let phrase = || candidate("red mug", "", 1.0, CompletionSource::Phrase);
        let shop = Suggester::build((0..100).map(|_| phrase()));
        shop.add_query("Red Mug", 5.0);
        let [found] = &shop.complete("red", 9, &|_| 0.0)[..] else { panic!() };
        assert_eq!((found.text.as_str(), found.source), ("Red Mug", CompletionSource::Query));
    }

    #[test]
    fn live_texts_that_are_removed_leave_the_lists() {
        let live = |n: usize| candidate(&format!("Live kettle {n}"), "Kettles", 1.0, CompletionSource::Title);
        let shop = Suggester::build([]);
        for n in 0..2 * FRESH_MAX {
            shop.add(live(n));
            if n > 0 {
                shop.remove(live(n - 1));
            }
        }
        assert_eq!(texts(&shop, "live"), [format!("Live kettle {}", 2 * FRESH_MAX - 1)]);
        let lists: usize = shop.live.read().lists.iter().map(|list| list.entries.len()).sum();
        assert!(lists <= 2, "{lists}");
        shop.remove(live(2 * FRESH_MAX - 1));
        assert!(texts(&shop, "live").is_empty());
    }

    #[test]
    fn queries_with_low_weights_are_dropped() {
        let shop = Suggester::build([]);
        for n in 0..2 * QUERIES_MAX {
            shop.add_query(&format!("query {n}"), if n % 100 == 0 { 5.0 } else { 1.0 });
        }
        let kept: usize = shop.live.read().lists.iter().map(|list| list.entries.len()).sum();
        assert!(kept < QUERIES_MAX * 3 / 2, "{kept} are kept");
        assert_eq!(texts(&shop, "query 100")[0], "query 100");
    }

    #[test]
    fn affinity_affects_prefixes_of_thousands_of_texts() {
        let titles = (0..3 * SCAN_MAX).map(|n| {
            candidate(&format!("same start {n:05}"), &format!("c{}", n % 500), n as f32, CompletionSource::Title)
        });
        let shop = Suggester::build(titles);
        assert_eq!(texts(&shop, "sa")[0], format!("same start {:05}", 3 * SCAN_MAX - 1));
        let liked = shop.complete("same st", 1, &|category| if category == "c7" { 9.0 } else { 0.0 });
        assert!(liked[0].text.ends_with("07"), "{liked:?}");
    }

    /// Searches many titles by each kind of match while another thread adds queries, of which old ones are dropped.
    #[test]
    fn searches_and_additions_run_concurrently() {
        let words = ["red", "blue", "mug", "lamp", "retro", "box", "chocolate", "garden", "tin", "set"];
        let titles = (0..20_000usize).map(|i| {
            let [a, b, c] = [words[i % 10], words[i / 10 % 10], words[i / 100 % 10]];
            let text = format!("{a} {b} {c} {}{} model{i}", words[i / 1000 % 10], i % 700);
            candidate(&text, &format!("c{}", i % 200), (i % 90) as f32, CompletionSource::Title)
        });
        let shop = Suggester::build(titles);
        std::thread::scope(|scope| {
            let adding = scope.spawn(|| {
                for i in 0..30_000 {
                    shop.add_query(&format!("query {} {i}", words[i % 10]), 1.0);
                }
            });
            while !adding.is_finished() {
                for typed in ["r", "choc", "chocolate ga", "choxolate", "xhocolate", "mug re", "model99"] {
                    let completions = shop.complete(typed, 8, &|category| if category == "c7" { 1.0 } else { 0.0 });
                    assert_eq!(completions.len(), 8, "{typed}");
                }
                assert!(texts(&shop, "zzzzzz").is_empty());
            }
        });
        assert_eq!(texts(&shop, "query").len(), 10);
    }

    proptest! {
        #[test]
        fn sorted_texts_match_like_fresh_texts(
            titles in prop::collection::vec("[ab]{1,4}( [abc]{1,4}){0,2}", 1..12), typed in "[abc]{1,5}( [abc]{1,2})?"
        ) {
            let all = |titles: &[String]| -> Vec<CompletionCandidate> {
                titles.iter().map(|title| candidate(title, "", 1.0, CompletionSource::Title)).collect()
            };
            let (sorted, fresh) = (Suggester::build(all(&titles)), Suggester::build([]));
            all(&titles).into_iter().for_each(|title| fresh.add(title));
            let (sorted, fresh) = (texts(&sorted, &typed), texts(&fresh, &typed));
            prop_assert_eq!(sorted.is_empty(), fresh.is_empty());
            prop_assert!(sorted.iter().all(|text| fresh.contains(text)), "{:?} {:?}", sorted, fresh);
        }

        #[test]
        fn no_prefix_panics_or_returns_a_text_twice(typed in ".{0,30}", count in 0usize..6) {
            let shop = shop();
            shop.add_query(&typed, 1.0);
            let completions = shop.complete(&typed, count, &|_| f32::NAN);
            let distinct: AHashSet<&String> = completions.iter().map(|completion| &completion.text).collect();
            prop_assert!(completions.len() <= count && distinct.len() == completions.len());
        }
    }
}
