//! Completions of what a person is typing.
use crate::{
    engine::{Completion, CompletionSource},
    text,
};
use ahash::{AHashMap, AHashSet};
use parking_lot::{Mutex, RwLock};
use std::{cell::RefCell, ops::Range, sync::Arc};

/// Queries of a list at most; then the lighter half goes.
const QUERIES_MAX: usize = 20_000;
/// Texts of items that came in since the start, of a list at most; then the older half goes.
const LIVE_TEXTS_MAX: usize = 100_000;
/// New texts that are looked through one by one, before they are sorted among the others.
const FRESH_MAX: usize = 1024;
/// Characters of a text that are read.
const TEXT_CHARS_MAX: usize = 200;
/// Starts inside one text at which a prefix may begin.
const STARTS_MAX: usize = 40;
/// Starts that are looked at for a prefix. A prefix of more starts has a short list of its best.
const SCAN_MAX: usize = 2048;
/// Starts of a short list: the best of all, and of each category.
const SHORT_LIST: usize = 256;
const SHORT_LIST_PER_CATEGORY: usize = 2;
/// A shorter prefix is not corrected: everything is one letter away from it. In characters.
const TYPO_CHARS_MIN: usize = 4;
/// The same for CJK, where a character says more.
const TYPO_CJK_CHARS_MIN: usize = 2;
/// Characters that are tried in one place of a mistyped prefix.
const TYPO_TRIES_MAX: usize = 128;

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

/// Texts that were there from the start (titles, categories and brands of one generation), and what came since: queries that
/// people send, items that are written.
/// Texts may be added while others ask; an answer never waits for more than a text to be put down.
pub struct Suggester {
    built: List,
    live: RwLock<Live>,
    /// One addition at a time.
    adding: Mutex<()>,
}

/// What came since the start, as a log-structured merge tree keeps it: each list is at least twice as long as the next, so
/// that there are few of them and a text is sorted a few times only.
#[derive(Default)]
struct Live {
    lists: Vec<Arc<List>>,
    /// In no list yet, in the order in which they came.
    fresh: Vec<Entry>,
    by_normal: AHashMap<(String, CompletionSource), u32>,
}

/// Texts that can be looked up by the beginning of any of their words.
#[derive(Default)]
struct List {
    entries: Vec<Entry>,
    categories: Vec<String>,
    /// By entry: its category.
    category_of: Vec<u32>,
    /// Where words start, in the order of the text from there.
    starts: Vec<Start>,
    /// For ranges of more than [`SCAN_MAX`] starts, by begin and end: their best.
    short_lists: AHashMap<(u32, u32), Vec<Start>>,
}

#[derive(Clone)]
struct Entry {
    text: String,
    normal: String,
    category: String,
    weight: f32,
    source: CompletionSource,
}

impl Entry {
    /// None for a text without content.
    fn of(suggestible: Suggestible) -> Option<Self> {
        let Suggestible { text, category, weight, source } = suggestible;
        let normal = normal(&text);
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        (!normal.is_empty()).then(|| Self { text, normal, category, weight: finite(weight), source })
    }

    /// What it brings before the person is looked at, where the word at `byte` was typed.
    fn strength_at(&self, byte: u32) -> f32 {
        strength(self.weight, self.source) * if byte == 0 { 1.0 } else { 0.7 }
    }
}

#[derive(Clone, Copy)]
struct Start {
    entry: u32,
    byte: u32,
}

impl Suggester {
    /// Takes texts in any order. Texts with the same normal form and source count once, with the sum of their weights,
    /// in the spelling and category of the first.
    pub fn build(suggestibles: impl IntoIterator<Item = Suggestible>) -> Self {
        let built = List::build(suggestibles.into_iter().filter_map(Entry::of));
        Self { built, live: RwLock::default(), adding: Mutex::default() }
    }

    /// Notes that a query was sent; `weight` adds up. The caller decides which queries may be shown to others.
    pub fn add_query(&self, query: &str, weight: f32) {
        let source = CompletionSource::Query;
        self.add(Suggestible { text: query.to_owned(), category: String::new(), weight, source });
    }

    /// Adds a text, or its weight where it was added before.
    pub fn add(&self, suggestible: Suggestible) {
        let Some(entry) = Entry::of(suggestible) else { return };
        let _one = self.adding.lock();
        // A written item's title is not more popular because it is written again.
        let is_counted = entry.source == CompletionSource::Query;
        if !is_counted && (self.built.has(&entry) || self.live.read().lists.iter().any(|list| list.has(&entry))) {
            return;
        }
        let fresh = self.live.write().add(entry);
        if fresh >= FRESH_MAX {
            // The new list is made while others ask: sorting takes longer than an answer may.
            let lists = self.live.read().merged();
            *self.live.write() = Live { lists, ..Live::default() };
        }
    }

    /// Queries that were sent since the start, with their weights: to be added again by [`Suggester::add_query`].
    pub fn queries(&self) -> Vec<(String, f32)> {
        let live = self.live.read();
        let listed = live.lists.iter().flat_map(|list| &list.entries);
        let queries = listed.chain(&live.fresh).filter(|entry| entry.source == CompletionSource::Query);
        queries.map(|entry| (entry.text.clone(), entry.weight)).collect()
    }

    /// The `count` best completions of `prefix`, best first, no two alike in normal form. `affinity` says how much the
    /// person likes a category, 0 (no more than others) or more.
    ///
    /// The prefix may be that of the text or of a word inside it. Where nothing starts so, texts that hold its words in
    /// any order are given, and then those that are one typing error away. Of a prefix that thousands of texts have, the
    /// strongest and the strongest of each category are looked at.
    pub fn complete(&self, prefix: &str, count: usize, affinity: &dyn Fn(&str) -> f32) -> Vec<Completion> {
        Self::complete_from(&[self], prefix, count, affinity)
    }

    /// [`Suggester::complete`] from the texts of several.
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
        let lists: Vec<(&List, Lift)> = lists.map(|list| (list, Lift::new(affinity, &list.categories))).collect();
        let mut found = Found::default();
        for nearness in [Nearness::Starting, Nearness::Holding, Nearness::ErrorAfterFirst, Nearness::ErrorAtFirst] {
            for (list, lift) in &lists {
                list.look(nearness, &typed, &mut |start, factor| {
                    let entry = &list.entries[start.entry as usize];
                    let lift = lift.of(list.category_of[start.entry as usize]);
                    found.offer(entry, entry.strength_at(start.byte) * factor * lift);
                });
            }
            for entry in live.iter().flat_map(|live| &live.fresh) {
                if let Some((byte, factor)) = nearness.of(&entry.normal, &typed) {
                    found.offer(entry, entry.strength_at(byte) * factor * lift_of(affinity(&entry.category)));
                }
            }
            if !found.is_empty() {
                break;
            }
        }
        found.into_best(count)
    }
}

impl Live {
    /// Gives the number of texts that are in no list.
    fn add(&mut self, entry: Entry) -> usize {
        let next = self.fresh.len() as u32;
        let at = *self.by_normal.entry((entry.normal.clone(), entry.source)).or_insert(next);
        match at == next {
            true => self.fresh.push(entry),
            false if entry.source == CompletionSource::Query => self.fresh[at as usize].weight += entry.weight,
            false => {}
        }
        self.fresh.len()
    }

    /// The lists with the fresh texts among them. Weights of a query that is in several lists add up when these merge.
    fn merged(&self) -> Vec<Arc<List>> {
        let (mut lists, mut last) = (self.lists.clone(), self.fresh.clone());
        while let Some(list) = lists.pop_if(|list| list.entries.len() < 2 * last.len()) {
            last = list.entries.iter().cloned().chain(last).collect();
        }
        lists.push(Arc::new(List::build(within_limits(last).into_iter())));
        lists
    }
}

/// Without the lighter half of too many queries and the older half of too many other texts.
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

/// How a text may match what is typed; the next is tried where nothing does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Nearness {
    /// The text or a word of it starts so.
    Starting,
    /// It has the words in any order, the last as a prefix.
    Holding,
    /// It would start so with one error mended, which is not in the first character: that is right most of the time.
    ErrorAfterFirst,
    ErrorAtFirst,
}

impl Nearness {
    /// The byte at which a text matches, and the factor of its strength.
    fn of(self, normal: &str, typed: &str) -> Option<(u32, f32)> {
        let first = |is_match: &dyn Fn(&str) -> bool| {
            word_starts(normal).into_iter().find(|&byte| is_match(&normal[byte..])).map(|byte| byte as u32)
        };
        match self {
            Self::Starting => Some((first(&|tail| tail.starts_with(typed))?, 1.0)),
            Self::Holding => holds_words(normal, typed).then_some((0, HOLDING_FACTOR)),
            Self::ErrorAfterFirst | Self::ErrorAtFirst => {
                let chars: Vec<char> = typed.chars().collect();
                if !may_have_error(&chars) {
                    return None;
                }
                Some((first(&|tail| starts_within_one_error(tail, &chars))?, ERROR_FACTOR))
            }
        }
    }
}

/// What is left of the strength of a text that has the typed words in another order or with others between them.
const HOLDING_FACTOR: f32 = 0.8;
/// What is left of the strength of a text that was mistyped.
const ERROR_FACTOR: f32 = 0.5;

impl List {
    fn build(all: impl Iterator<Item = Entry>) -> Self {
        let mut entries: Vec<Entry> = Vec::new();
        let mut known: AHashMap<(String, CompletionSource), usize> = AHashMap::new();
        for entry in all {
            let at = *known.entry((entry.normal.clone(), entry.source)).or_insert(entries.len());
            match entries.get_mut(at) {
                Some(first) => first.weight += entry.weight,
                None => entries.push(entry),
            }
        }
        let (mut categories, mut category_ids) = (Vec::new(), AHashMap::new());
        let category_of = entries.iter().map(|entry| {
            *category_ids.entry(entry.category.as_str()).or_insert_with(|| {
                categories.push(entry.category.clone());
                categories.len() as u32 - 1
            })
        });
        let category_of = category_of.collect();
        let mut starts: Vec<Start> = (entries.iter().enumerate())
            .flat_map(|(i, entry)| {
                word_starts(&entry.normal).into_iter().map(move |byte| Start { entry: i as u32, byte: byte as u32 })
            })
            .collect();
        let tail = |start: &Start| &entries[start.entry as usize].normal[start.byte as usize..];
        starts.sort_unstable_by(|a, b| tail(a).cmp(tail(b)).then(a.entry.cmp(&b.entry)));
        let mut list = Self { entries, categories, category_of, starts, short_lists: AHashMap::new() };
        list.make_short_lists();
        list
    }

    /// Makes the short list of each prefix that has more starts than are looked at. Of those at most one for each range: a
    /// longer prefix of the same texts has the same.
    fn make_short_lists(&mut self) {
        let is_long = |range: &Range<usize>| range.len() > SCAN_MAX;
        let mut waiting: Vec<Range<usize>> = std::iter::once(0..self.starts.len()).filter(is_long).collect();
        while let Some(range) = waiting.pop() {
            self.short_lists.insert((range.start as u32, range.end as u32), self.best_of(range.clone()));
            let (first, last) = (self.tail(self.starts[range.start]), self.tail(self.starts[range.end - 1]));
            let mut same = first.bytes().zip(last.bytes()).take_while(|(a, b)| a == b).count();
            while !first.is_char_boundary(same) {
                same -= 1;
            }
            waiting.extend(self.by_next_char(&range, same).map(|(_, next)| next).filter(is_long));
        }
    }

    /// The strongest starts of a range, and the strongest of each category.
    fn best_of(&self, range: Range<usize>) -> Vec<Start> {
        let mut sorted: Vec<Start> = self.starts[range].to_vec();
        let key = |start: &Start| {
            let entry = &self.entries[start.entry as usize];
            (entry.strength_at(start.byte), entry.normal.len())
        };
        sorted.sort_by(|a, b| {
            let ((a_strength, a_length), (b_strength, b_length)) = (key(a), key(b));
            b_strength.total_cmp(&a_strength).then(a_length.cmp(&b_length))
        });
        let mut taken: AHashMap<u32, usize> = AHashMap::new();
        let mut best = Vec::new();
        for (place, start) in sorted.into_iter().enumerate() {
            let of_category = taken.entry(self.category_of[start.entry as usize]).or_default();
            if place < SHORT_LIST || *of_category < SHORT_LIST_PER_CATEGORY {
                *of_category += 1;
                best.push(start);
            }
            if best.len() == SCAN_MAX {
                break;
            }
        }
        best
    }

    fn tail(&self, start: Start) -> &str {
        &self.entries[start.entry as usize].normal[start.byte as usize..]
    }

    /// The starts in `within`, whose texts have the same first bytes, at which the text goes on with `typed`.
    fn range_in(&self, within: Range<usize>, typed: &str) -> Range<usize> {
        let starts = &self.starts[within.clone()];
        let from = starts.partition_point(|&start| self.tail(start) < typed);
        let length = starts[from..].partition_point(|&start| self.tail(start).starts_with(typed));
        within.start + from..within.start + from + length
    }

    fn range(&self, typed: &str) -> Range<usize> {
        self.range_in(0..self.starts.len(), typed)
    }

    /// The starts of a range of one prefix, or their best where there are too many.
    fn few(&self, range: Range<usize>) -> &[Start] {
        match self.short_lists.get(&(range.start as u32, range.end as u32)) {
            Some(best) => best,
            None => &self.starts[range.start..range.end.min(range.start + SCAN_MAX)],
        }
    }

    /// Whether there is an entry with this normal form and source.
    fn has(&self, entry: &Entry) -> bool {
        let from = self.starts.partition_point(|&start| self.tail(start) < entry.normal.as_str());
        let mut equal = self.starts[from..].iter().take_while(|&&start| self.tail(start) == entry.normal);
        equal.any(|start| start.byte == 0 && self.entries[start.entry as usize].source == entry.source)
    }

    /// Offers the texts that are so near to what is typed, each perhaps several times.
    fn look(&self, nearness: Nearness, typed: &str, offer: &mut dyn FnMut(Start, f32)) {
        let char_count = typed.chars().count();
        match nearness {
            Nearness::Starting => self.starting_with(typed, offer),
            Nearness::Holding => self.holding_words(typed, offer),
            Nearness::ErrorAfterFirst => self.one_error_away(typed, 1..char_count, offer),
            Nearness::ErrorAtFirst => self.one_error_away(typed, 0..1, offer),
        }
    }

    fn starting_with(&self, typed: &str, offer: &mut dyn FnMut(Start, f32)) {
        for &start in self.few(self.range(typed)) {
            offer(start, 1.0);
        }
    }

    /// Texts that hold all words of `typed`, the last as a prefix.
    fn holding_words(&self, typed: &str, offer: &mut dyn FnMut(Start, f32)) {
        // The rarest word leaves the least to look at.
        let rarest = typed.split(' ').map(|word| self.range(word)).min_by_key(Range::len).unwrap_or(0..0);
        for &start in self.few(rarest) {
            if holds_words(&self.entries[start.entry as usize].normal, typed) {
                offer(Start { byte: 0, ..start }, HOLDING_FACTOR);
            }
        }
    }

    /// Texts that `typed` would start with one character changed, added, left out, or two exchanged at some of its places.
    /// Each way of it is looked up: O(characters × characters that may stand there × log starts).
    fn one_error_away(&self, typed: &str, places: Range<usize>, offer: &mut dyn FnMut(Start, f32)) {
        let chars: Vec<char> = typed.chars().collect();
        if !may_have_error(&chars) {
            return;
        }
        let mut left = 4 * SCAN_MAX;
        let mut look = |within: &Range<usize>, meant: String| {
            let found = self.few(self.range_in(within.clone(), &meant));
            for &start in found.iter().take(left) {
                offer(start, ERROR_FACTOR);
            }
            left = left.saturating_sub(found.len());
        };
        let text = |parts: [&[char]; 3]| parts.concat().into_iter().collect::<String>();
        for at in places {
            let (before, after) = chars.split_at(at);
            let within = self.range(&text([before, &[], &[]]));
            if within.is_empty() {
                break;
            }
            look(&within, text([before, &after[1..], &[]]));
            if let [first, second, rest @ ..] = after
                && first != second
            {
                look(&within, text([before, &[*second, *first], rest]));
            }
            // Every CJK character starts a word, so a wrong first one was looked for as one too many.
            if at == 0 && text::is_cjk(chars[0]) {
                continue;
            }
            let offset = before.iter().map(|c| c.len_utf8()).sum();
            for (meant, part) in self.by_next_char(&within, offset).take(TYPO_TRIES_MAX) {
                if meant != after[0] {
                    look(&part, text([before, &[meant], &after[1..]]));
                    look(&part, text([before, &[meant], after]));
                }
            }
        }
    }

    /// The parts of a range by the character that the texts have at a byte behind the start; texts that end there are left
    /// out.
    fn by_next_char(&self, range: &Range<usize>, offset: usize) -> impl Iterator<Item = (char, Range<usize>)> {
        let next = move |start: Start| self.tail(start)[offset..].chars().next();
        let mut rest = range.clone();
        rest.start += self.starts[rest.clone()].partition_point(|&start| next(start).is_none());
        std::iter::from_fn(move || {
            let c = next(*self.starts[rest.clone()].first()?)?;
            let end = rest.start + self.starts[rest.clone()].partition_point(|&start| next(start) <= Some(c));
            let part = rest.start..end;
            rest.start = end;
            Some((c, part))
        })
    }
}

/// Whether a text has all words of `typed`, the last as a prefix of one.
fn holds_words(normal: &str, typed: &str) -> bool {
    let Some((others, last)) = typed.rsplit_once(' ') else { return false };
    others.split(' ').all(|word| normal.split(' ').any(|other| other == word))
        && normal.split(' ').any(|word| word.starts_with(last))
}

/// Whether what is typed is long enough to be corrected.
fn may_have_error(typed: &[char]) -> bool {
    let has_cjk = typed.iter().copied().any(text::is_cjk);
    typed.len() >= if has_cjk { TYPO_CJK_CHARS_MIN } else { TYPO_CHARS_MIN }
}

/// How much a person likes each category, asked once.
struct Lift<'a> {
    affinity: &'a dyn Fn(&str) -> f32,
    categories: &'a [String],
    known: RefCell<Vec<Option<f32>>>,
}

impl<'a> Lift<'a> {
    fn new(affinity: &'a dyn Fn(&str) -> f32, categories: &'a [String]) -> Self {
        Self { affinity, categories, known: RefCell::new(vec![None; categories.len()]) }
    }

    fn of(&self, category: u32) -> f32 {
        let at = category as usize;
        *self.known.borrow_mut()[at].get_or_insert_with(|| lift_of((self.affinity)(&self.categories[at])))
    }
}

fn lift_of(affinity: f32) -> f32 {
    1.0 + finite(affinity).min(10.0)
}

/// Candidates; a text may be among them several times.
#[derive(Default)]
struct Found<'s> {
    listed: Vec<(f32, &'s Entry)>,
}

impl<'s> Found<'s> {
    fn is_empty(&self) -> bool {
        self.listed.is_empty()
    }

    fn offer(&mut self, entry: &'s Entry, score: f32) {
        self.listed.push((score, entry));
    }

    fn into_best(self, count: usize) -> Vec<Completion> {
        let mut all = self.listed;
        // The shorter of two equally good texts is nearer to what was typed.
        let order = |(a_score, a): &(f32, &Entry), (b_score, b): &(f32, &Entry)| {
            let by_text = a.normal.len().cmp(&b.normal.len()).then(a.normal.cmp(&b.normal));
            b_score.total_cmp(a_score).then(by_text).then((a.source as u8).cmp(&(b.source as u8)))
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
            .filter(|(_, entry)| seen.insert(entry.normal.as_str()))
            .take(count)
            .map(|(_, entry)| Completion { text: entry.text.clone(), source: entry.source })
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
    fn texts_that_come_later_complete_as_those_of_the_bundle() {
        let shop = Suggester::build([]);
        for n in 0..3 * FRESH_MAX {
            shop.add(suggestible(&format!("Live kettle {n}"), "Kettles", 1.0, CompletionSource::Title));
            shop.add_query("kettle", 1.0);
        }
        assert!(shop.live.read().lists[0].entries.len() >= FRESH_MAX, "they were sorted");
        assert_eq!(texts(&shop, "kettle")[0], "kettle");
        for typed in ["live kettle 5", "kettle 3071", "kettel 3071", "3071 live"] {
            assert!(!texts(&shop, typed).is_empty(), "{typed}");
        }
        assert_eq!(texts(&shop, "live kettle 3071"), ["Live kettle 3071"]);
    }

    #[test]
    fn the_lighter_queries_are_forgotten() {
        let shop = Suggester::build([]);
        for n in 0..2 * QUERIES_MAX {
            shop.add_query(&format!("query {n}"), if n % 100 == 0 { 5.0 } else { 1.0 });
        }
        let kept: usize = shop.live.read().lists.iter().map(|list| list.entries.len()).sum();
        assert!(kept < QUERIES_MAX * 3 / 2, "{kept} are kept");
        assert_eq!(texts(&shop, "query 100")[0], "query 100");
    }

    #[test]
    fn a_prefix_of_thousands_of_texts_still_shows_what_the_person_likes() {
        let titles = (0..3 * SCAN_MAX).map(|n| {
            suggestible(&format!("same start {n:05}"), &format!("c{}", n % 500), n as f32, CompletionSource::Title)
        });
        let shop = Suggester::build(titles);
        assert_eq!(texts(&shop, "sa")[0], format!("same start {:05}", 3 * SCAN_MAX - 1));
        let liked = shop.complete("same st", 1, &|category| if category == "c7" { 9.0 } else { 0.0 });
        assert!(liked[0].text.ends_with("07"), "{liked:?}");
    }

    /// A hundred thousand titles, asked with every kind of prefix, while queries come in and old ones are forgotten.
    #[test]
    fn a_hundred_thousand_titles_complete_without_a_stall() {
        let words = ["red", "blue", "mug", "lamp", "retro", "box", "chocolate", "garden", "tin", "set"];
        let titles = (0..100_000usize).map(|i| {
            let [a, b, c] = [words[i % 10], words[i / 10 % 10], words[i / 100 % 10]];
            let text = format!("{a} {b} {c} {}{} model{i}", words[i / 1000 % 10], i % 700);
            suggestible(&text, &format!("c{}", i % 200), (i % 90) as f32, CompletionSource::Title)
        });
        let shop = Suggester::build(titles);
        let mut times: Vec<std::time::Duration> = Vec::new();
        std::thread::scope(|scope| {
            let adding = scope.spawn(|| {
                for i in 0..60_000 {
                    shop.add_query(&format!("query {} {i}", words[i % 10]), 1.0);
                }
            });
            while !adding.is_finished() || times.len() < 2_000 {
                for typed in
                    ["r", "choc", "chocolate ga", "choxolate", "xhocolate", "zzzzzz", "mug re", "model99", "que"]
                {
                    let started = Instant::now();
                    shop.complete(typed, 8, &|category| if category == "c7" { 1.0 } else { 0.0 });
                    times.push(started.elapsed());
                }
            }
        });
        times.sort_unstable();
        let (p99, slowest) = (times[times.len() * 99 / 100], times[times.len() - 1]);
        eprintln!("{} completions of 100,000 titles: p99 {p99:?}, slowest {slowest:?}", times.len());
        // The goal is 2 ms; a machine that runs many tests at once takes turns.
        assert!(p99.as_millis() < 20, "p99 {p99:?}");
    }

    proptest! {
        #[test]
        fn sorted_texts_are_found_as_by_looking_at_each(
            titles in prop::collection::vec("[ab]{1,4}( [abc]{1,4}){0,2}", 1..12), typed in "[abc]{1,5}( [abc]{1,2})?"
        ) {
            let all = |titles: &[String]| -> Vec<Suggestible> {
                titles.iter().map(|title| suggestible(title, "", 1.0, CompletionSource::Title)).collect()
            };
            let (sorted, fresh) = (Suggester::build(all(&titles)), Suggester::build([]));
            all(&titles).into_iter().for_each(|title| fresh.add(title));
            let (sorted, fresh) = (texts(&sorted, &typed), texts(&fresh, &typed));
            prop_assert_eq!(sorted.is_empty(), fresh.is_empty());
            prop_assert!(sorted.iter().all(|text| fresh.contains(text)), "{:?} {:?}", sorted, fresh);
        }

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
