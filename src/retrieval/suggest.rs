//! Completions of what a person is typing.
use crate::{
    engine::{Completion, CompletionSource},
    text,
};
use ahash::{AHashMap, AHashSet};
use parking_lot::RwLock;
use std::{cell::RefCell, collections::BTreeSet, ops::Bound};

/// Queries that are kept at most; then the lighter half goes.
const QUERIES_MAX: usize = 20_000;
/// Characters of a text that are read.
const TEXT_CHARS_MAX: usize = 200;
/// Starts inside one text at which a prefix may begin.
const STARTS_MAX: usize = 40;
/// A shorter prefix is not corrected: everything is one letter away from it. In characters.
const TYPO_CHARS_MIN: usize = 4;
/// The same for CJK, where a character says more.
const TYPO_CJK_CHARS_MIN: usize = 2;

/// A text that may be suggested.
#[derive(Debug, Clone, PartialEq)]
pub struct Suggestible {
    pub text: String,
    /// The category by which the person's affinity is asked; may be empty.
    pub category: String,
    /// How popular it is, 0 or more, on any scale that is the same for all: its logarithm counts.
    pub weight: f32,
    pub source: CompletionSource,
}

/// Titles, categories and brands of one generation, and the queries that people send. Queries may be added while
/// others ask.
pub struct Suggester {
    entries: Vec<Entry>,
    categories: Vec<String>,
    /// Where words start, in the order of the text from there.
    starts: Vec<Start>,
    queries: RwLock<Queries>,
}

struct Entry {
    text: String,
    normal: String,
    category: u32,
    strength: f32,
    source: CompletionSource,
}

#[derive(Clone, Copy)]
struct Start {
    entry: u32,
    byte: u32,
}

#[derive(Default)]
struct Queries {
    /// Text as it is shown, and how often it was sent.
    entries: Vec<(String, f32)>,
    by_normal: AHashMap<String, u32>,
    /// The normal text from the start of each word, with the query.
    starts: BTreeSet<(String, u32)>,
}

impl Suggester {
    /// Takes texts in any order. Texts with the same normal form and source count once, with the sum of their weights,
    /// in the spelling and category of the first.
    pub fn build(suggestibles: impl IntoIterator<Item = Suggestible>) -> Self {
        let mut entries: Vec<Entry> = Vec::new();
        let mut known: AHashMap<(String, CompletionSource), usize> = AHashMap::new();
        let mut weights: Vec<f32> = Vec::new();
        let (mut categories, mut category_ids) = (Vec::new(), AHashMap::new());
        for suggestible in suggestibles {
            let normal = normal(&suggestible.text);
            let weight = finite(suggestible.weight);
            if normal.is_empty() {
                continue;
            }
            if let Some(&at) = known.get(&(normal.clone(), suggestible.source)) {
                weights[at] += weight;
                continue;
            }
            let category = *category_ids.entry(suggestible.category.clone()).or_insert_with(|| {
                categories.push(suggestible.category.clone());
                categories.len() as u32 - 1
            });
            known.insert((normal.clone(), suggestible.source), entries.len());
            weights.push(weight);
            let text = suggestible.text.split_whitespace().collect::<Vec<_>>().join(" ");
            entries.push(Entry { text, normal, category, strength: 0.0, source: suggestible.source });
        }
        for (entry, weight) in entries.iter_mut().zip(weights) {
            entry.strength = strength(weight, entry.source);
        }
        let mut starts: Vec<Start> = (entries.iter().enumerate())
            .flat_map(|(i, entry)| {
                word_starts(&entry.normal).into_iter().map(move |byte| Start { entry: i as u32, byte: byte as u32 })
            })
            .collect();
        let tail = |start: &Start| &entries[start.entry as usize].normal[start.byte as usize..];
        starts.sort_unstable_by(|a, b| tail(a).cmp(tail(b)).then(a.entry.cmp(&b.entry)));
        Self { entries, categories, starts, queries: RwLock::default() }
    }

    /// Notes that a query was sent; `weight` adds up. The caller decides which queries may be shown to others.
    pub fn add_query(&self, query: &str, weight: f32) {
        let normal = normal(query);
        if !normal.is_empty() {
            self.queries.write().add(query, normal, finite(weight));
        }
    }

    /// The `count` best completions of `prefix`, best first, no two alike in normal form. `affinity` says how much the
    /// person likes a category, 0 (no more than others) or more; it is asked at most once for each category.
    ///
    /// The prefix may be that of the text or of a word inside it. Where nothing starts so, texts that hold its words in
    /// any order are given, and then those that are one typing error away.
    pub fn complete(&self, prefix: &str, count: usize, affinity: &dyn Fn(&str) -> f32) -> Vec<Completion> {
        let typed = normal(prefix);
        if typed.is_empty() || count == 0 {
            return Vec::new();
        }
        let lift =
            Lift { affinity, categories: &self.categories, known: RefCell::new(vec![None; self.categories.len()]) };
        let mut found = Found::default();
        self.starting_with(&typed, &lift, &mut found);
        self.queries.read().starting_with(&typed, &mut found);
        if found.is_empty() {
            self.holding_words(&typed, &lift, &mut found);
        }
        if found.is_empty() {
            self.one_error_away(&typed, &lift, &mut found);
        }
        found.into_best(count)
    }

    fn tail(&self, start: Start) -> &str {
        &self.entries[start.entry as usize].normal[start.byte as usize..]
    }

    /// The starts at which the text goes on with `typed`.
    fn range(&self, typed: &str) -> &[Start] {
        let from = self.starts.partition_point(|&start| self.tail(start) < typed);
        let length = self.starts[from..].partition_point(|&start| self.tail(start).starts_with(typed));
        &self.starts[from..from + length]
    }

    fn offer<'s>(&'s self, start: Start, factor: f32, lift: &Lift<'_>, found: &mut Found<'s>) {
        let entry = &self.entries[start.entry as usize];
        let place = if start.byte == 0 { 1.0 } else { 0.7 };
        let score = entry.strength * place * factor * lift.of(entry.category);
        found.offer(&entry.normal, &entry.text, entry.source, score);
    }

    fn starting_with<'s>(&'s self, typed: &str, lift: &Lift<'_>, found: &mut Found<'s>) {
        for &start in self.range(typed) {
            self.offer(start, 1.0, lift, found);
        }
    }

    /// Texts that hold all words of `typed`, the last as a prefix.
    fn holding_words<'s>(&'s self, typed: &str, lift: &Lift<'_>, found: &mut Found<'s>) {
        let Some((others, last)) = typed.rsplit_once(' ') else {
            return;
        };
        for &start in self.range(last) {
            let normal = &self.entries[start.entry as usize].normal;
            if others.split(' ').all(|word| normal.split(' ').any(|other| other == word)) {
                self.offer(start, 0.8, lift, found);
            }
        }
    }

    /// Texts that `typed` would start with one character changed, added, left out, or two exchanged.
    fn one_error_away<'s>(&'s self, typed: &str, lift: &Lift<'_>, found: &mut Found<'s>) {
        let chars: Vec<char> = typed.chars().collect();
        let has_cjk = chars.iter().copied().any(text::is_cjk);
        if chars.len() < if has_cjk { TYPO_CJK_CHARS_MIN } else { TYPO_CHARS_MIN } {
            return;
        }
        // The first character is right most of the time, and then only a small part has to be looked at.
        let same_first = self.range(chars[0].encode_utf8(&mut [0; 4]));
        for range in [same_first, &self.starts] {
            for &start in range.iter().filter(|&&start| starts_within_one_error(self.tail(start), &chars)) {
                self.offer(start, 0.5, lift, found);
            }
            if !found.is_empty() {
                return;
            }
        }
    }
}

impl Queries {
    fn add(&mut self, text: &str, normal: String, weight: f32) {
        if let Some(&at) = self.by_normal.get(&normal) {
            self.entries[at as usize].1 += weight;
            return;
        }
        if self.entries.len() >= QUERIES_MAX {
            self.forget_lighter_half();
        }
        let id = self.entries.len() as u32;
        for start in word_starts(&normal) {
            self.starts.insert((normal[start..].to_owned(), id));
        }
        self.entries.push((text.split_whitespace().collect::<Vec<_>>().join(" "), weight));
        self.by_normal.insert(normal, id);
    }

    fn forget_lighter_half(&mut self) {
        let mut entries = std::mem::take(self).entries;
        entries.sort_by(|a, b| b.1.total_cmp(&a.1));
        entries.truncate(QUERIES_MAX / 2);
        for (text, weight) in entries {
            let normal = normal(&text);
            self.add(&text, normal, weight);
        }
    }

    fn starting_with(&self, typed: &str, found: &mut Found<'_>) {
        let from = (Bound::Included((typed.to_owned(), 0)), Bound::Unbounded);
        for (tail, id) in self.starts.range(from).take_while(|(tail, _)| tail.starts_with(typed)) {
            let (text, weight) = &self.entries[*id as usize];
            let normal = normal(text);
            let place = if tail.len() == normal.len() { 1.0 } else { 0.7 };
            let score = strength(*weight, CompletionSource::Query) * place;
            found.offer_owned(normal, text, score);
        }
    }
}

/// How much a person likes each category, asked once.
struct Lift<'a> {
    affinity: &'a dyn Fn(&str) -> f32,
    categories: &'a [String],
    known: RefCell<Vec<Option<f32>>>,
}

impl Lift<'_> {
    fn of(&self, category: u32) -> f32 {
        let at = category as usize;
        *self.known.borrow_mut()[at]
            .get_or_insert_with(|| 1.0 + finite((self.affinity)(&self.categories[at])).min(10.0))
    }
}

/// Candidates, the best for each normal form.
#[derive(Default)]
struct Found<'s> {
    listed: Vec<(f32, &'s str, &'s str, CompletionSource)>,
    queries: Vec<(f32, String, String)>,
}

impl<'s> Found<'s> {
    fn is_empty(&self) -> bool {
        self.listed.is_empty() && self.queries.is_empty()
    }

    fn offer(&mut self, normal: &'s str, text: &'s str, source: CompletionSource, score: f32) {
        self.listed.push((score, normal, text, source));
    }

    fn offer_owned(&mut self, normal: String, text: &str, score: f32) {
        self.queries.push((score, normal, text.to_owned()));
    }

    fn into_best(self, count: usize) -> Vec<Completion> {
        let queries = (self.queries.iter())
            .map(|(score, normal, text)| (*score, normal.as_str(), text.as_str(), CompletionSource::Query));
        let mut all: Vec<_> = self.listed.iter().copied().chain(queries).collect();
        // The shorter of two equally good texts is nearer to what was typed.
        let order = |a: &(f32, &str, &str, CompletionSource), b: &(f32, &str, &str, CompletionSource)| {
            b.0.total_cmp(&a.0).then(a.1.len().cmp(&b.1.len())).then(a.1.cmp(b.1)).then((a.3 as u8).cmp(&(b.3 as u8)))
        };
        // A text may be listed once for each of its words and sources, so some more than `count` must be sorted.
        let enough = count.saturating_mul(STARTS_MAX * 3);
        if all.len() > enough {
            all.select_nth_unstable_by(enough, order);
            all.truncate(enough);
        }
        all.sort_unstable_by(order);
        let mut seen = AHashSet::new();
        (all.into_iter())
            .filter(|&(_, normal, _, _)| seen.insert(normal))
            .take(count)
            .map(|(_, _, text, source)| Completion { text: text.to_owned(), source })
            .collect()
    }
}

fn normal(text: &str) -> String {
    let text = text::normalize(text);
    match text.char_indices().nth(TEXT_CHARS_MAX) {
        Some((end, _)) => text[..end].to_owned(),
        None => text,
    }
}

fn finite(number: f32) -> f32 {
    if number.is_finite() { number.max(0.0) } else { 0.0 }
}

/// What a text brings before the person is looked at: queries and categories are shorter and wider than titles.
fn strength(weight: f32, source: CompletionSource) -> f32 {
    let factor = match source {
        CompletionSource::Query => 1.3,
        CompletionSource::Category => 1.2,
        CompletionSource::Title => 1.0,
    };
    (0.1 + weight.ln_1p()) * factor
}

/// The bytes at which words start; each CJK character starts one.
fn word_starts(normal: &str) -> Vec<usize> {
    let mut starts = Vec::new();
    let mut before = None;
    for (at, c) in normal.char_indices() {
        let inside = |c: char| c.is_alphanumeric() && !text::is_cjk(c);
        if c.is_alphanumeric() && !(inside(c) && before.is_some_and(|c| inside(c) || c == '\'')) || at == 0 {
            starts.push(at);
        }
        before = Some(c);
    }
    starts.truncate(STARTS_MAX);
    starts
}

/// Whether a beginning of `tail` is one typing error away from `typed`.
fn starts_within_one_error(tail: &str, typed: &[char]) -> bool {
    let mut rest = tail.chars();
    for (i, &c) in typed.iter().enumerate() {
        let here = rest.clone();
        if rest.next() == Some(c) {
            continue;
        }
        let mut after = here.clone();
        let Some(theirs) = after.next() else {
            // The text ends where one more character was typed.
            return i + 1 == typed.len();
        };
        let changed = starts_with(after.clone(), &typed[i + 1..]);
        let added = starts_with(here, &typed[i + 1..]);
        let left_out = starts_with(after.clone(), &typed[i..]);
        let exchanged =
            typed.get(i + 1) == Some(&theirs) && after.next() == Some(c) && starts_with(after, &typed[i + 2..]);
        return changed || added || left_out || exchanged;
    }
    true
}

fn starts_with(mut text: std::str::Chars<'_>, typed: &[char]) -> bool {
    typed.iter().all(|&c| text.next() == Some(c))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Instant;

    fn suggestible(text: &str, category: &str, weight: f32, source: CompletionSource) -> Suggestible {
        Suggestible { text: text.to_owned(), category: category.to_owned(), weight, source }
    }

    fn shop() -> Suggester {
        use CompletionSource::{Category, Title};
        Suggester::build([
            suggestible("Red Retrospot Mug", "Mugs", 50.0, Title),
            suggestible("Retro Lamp", "Lamps", 10.0, Title),
            suggestible("Mugs", "Mugs", 20.0, Category),
            suggestible("Blue  Mug", "Mugs", 5.0, Title),
            suggestible("blue mug", "Mugs", 5.0, Title),
            suggestible("Chocolate Box", "Food", 5.0, Title),
            suggestible("陶瓷马克杯", "杯子", 5.0, Title),
        ])
    }

    fn texts(suggester: &Suggester, typed: &str) -> Vec<String> {
        suggester.complete(typed, 10, &|_| 0.0).into_iter().map(|completion| completion.text).collect()
    }

    #[test]
    fn a_prefix_of_the_text_or_of_an_inner_word_completes() {
        let shop = shop();
        assert_eq!(texts(&shop, "MUG"), ["Mugs", "Red Retrospot Mug", "Blue Mug"]);
        assert_eq!(texts(&shop, "retrospot m"), ["Red Retrospot Mug"]);
        assert_eq!(texts(&shop, "mug re"), ["Red Retrospot Mug"]);
        assert!(texts(&shop, "ug").is_empty());
        assert!(texts(&shop, " ").is_empty());
    }

    #[test]
    fn one_typing_error_is_forgiven_when_nothing_matches() {
        let shop = shop();
        for typed in ["choclate", "chocolatte", "chocolste", "chcoolate", "hocolate", "xhocolate", "chocolate bx"] {
            assert_eq!(texts(&shop, typed), ["Chocolate Box"], "{typed}");
        }
        assert!(texts(&shop, "chxxlate").is_empty());
    }

    #[test]
    fn chinese_completes_from_any_character() {
        let shop = shop();
        for typed in ["陶瓷", "马克", "马克林", "马可杯"] {
            assert_eq!(texts(&shop, typed), ["陶瓷马克杯"], "{typed}");
        }
    }

    #[test]
    fn affinity_and_popularity_decide_the_order() {
        let shop = shop();
        assert_eq!(texts(&shop, "re")[0], "Red Retrospot Mug");
        let likes_lamps = |category: &str| if category == "Lamps" { 5.0 } else { 0.0 };
        assert_eq!(shop.complete("re", 1, &likes_lamps)[0].text, "Retro Lamp");
    }

    #[test]
    fn queries_are_learned_and_shown_once() {
        let shop = shop();
        shop.add_query("Mug  tree", 100.0);
        shop.add_query("blue mug", 1000.0);
        let found = shop.complete("mug", 10, &|_| 0.0);
        assert!(found.contains(&Completion { text: "Mug tree".to_owned(), source: CompletionSource::Query }));
        assert_eq!(found.iter().filter(|completion| completion.text.eq_ignore_ascii_case("blue mug")).count(), 1);
    }

    #[test]
    fn thousands_of_titles_complete_fast() {
        let words = ["red", "blue", "mug", "lamp", "retro", "box", "chocolate", "garden", "tin", "set"];
        let titles = (0..5000usize).map(|i| {
            let text = format!(
                "{} {} {} {} model{i}",
                words[i % 10],
                words[i / 10 % 10],
                words[i / 100 % 10],
                words[i / 7 % 10]
            );
            suggestible(&text, &format!("c{}", i % 200), (i % 90) as f32, CompletionSource::Title)
        });
        let started = Instant::now();
        let suggester = Suggester::build(titles);
        eprintln!("build 5000: {:?}", started.elapsed());
        for i in 0..5000 {
            suggester.add_query(&format!("query {} {i}", words[i % 10]), 1.0);
        }
        for typed in ["c", "choc", "chocolate ga", "choxolate", "xhocolate", "zzzzzz", "mug re"] {
            let started = Instant::now();
            for _ in 0..50 {
                suggester.complete(typed, 8, &|_| 0.5);
            }
            eprintln!("{typed}: {:?}", started.elapsed() / 50);
        }
    }

    proptest! {
        #[test]
        fn no_prefix_panics_or_gives_a_text_twice(typed in ".{0,30}", count in 0usize..6) {
            let shop = shop();
            shop.add_query(&typed, 1.0);
            let found = shop.complete(&typed, count, &|_| f32::NAN);
            let distinct: AHashSet<&String> = found.iter().map(|completion| &completion.text).collect();
            prop_assert!(found.len() <= count && distinct.len() == found.len());
        }
    }
}
