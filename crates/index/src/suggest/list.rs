//! An immutable prefix index: the word starts of all texts, sorted by the text from there.
use super::{
    CompletionCandidate, CompletionSource,
    match_kind::{ALL_WORDS_FACTOR, ERROR_FACTOR, MatchKind, has_all_words, may_be_wrong, may_have_error, word_starts},
    phrases::PHRASE_ITEMS_MIN,
};
use crate::arrays::{ArrayReader, ArrayWriter, ArraysError, check};
use ahash::AHashMap;
use lodestone_core::text;
use rayon::prelude::*;
use std::{
    ops::Range,
    sync::atomic::{AtomicU32, Ordering},
};

/// Characters of a text that are indexed.
const TEXT_CHARS_MAX: usize = 200;
/// Maximum number of starts that a query scores. A prefix with more starts has a precomputed short list of the
/// strongest.
pub(super) const SCAN_MAX: usize = 2048;
/// Number of the strongest starts in a short list.
const SHORT_LIST: usize = 256;
/// Number of the strongest starts of each category in a short list.
const SHORT_LIST_PER_CATEGORY: usize = 2;
/// Maximum number of characters that are tried at one position of a mistyped prefix.
const TYPO_TRIES_MAX: usize = 128;

/// An indexed text.
#[derive(Clone)]
pub(super) struct Entry {
    pub text: String,
    pub normal: String,
    pub category: String,
    pub weight: f32,
    pub source: CompletionSource,
    /// The items that have the text. A query has no items and is not removed.
    pub items: ItemCount,
}

/// The number of items that have a text. Changed by one thread at a time, also in lists that are searched meanwhile.
pub(super) struct ItemCount(AtomicU32);

impl ItemCount {
    fn of(count: u32) -> Self {
        Self(AtomicU32::new(count))
    }

    pub(super) fn get(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }

    pub(super) fn add(&self, count: u32) {
        self.0.store(self.get().saturating_add(count), Ordering::Relaxed);
    }

    pub(super) fn remove_one(&self) {
        self.0.store(self.get().saturating_sub(1), Ordering::Relaxed);
    }
}

impl Clone for ItemCount {
    fn clone(&self) -> Self {
        Self::of(self.get())
    }
}

impl Entry {
    /// Normalizes a text. None if its normal form is empty.
    pub(super) fn of(candidate: CompletionCandidate) -> Option<Self> {
        let CompletionCandidate { text, category, weight, source } = candidate;
        let normal = normal(&text);
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        let (weight, items) = (finite(weight), ItemCount::of(1));
        (!normal.is_empty()).then_some(Self { text, normal, category, weight, source, items })
    }

    /// Returns false if no item has the text any more, or too few have the phrase.
    pub(super) fn is_suggested(&self) -> bool {
        let items_min = if self.source == CompletionSource::Phrase { PHRASE_ITEMS_MIN } else { 1 };
        self.items.get() >= items_min
    }

    /// Returns the score without personalization for a prefix that matches at `byte`.
    pub(super) fn strength_at(&self, byte: u32) -> f32 {
        // A phrase is as popular as it is frequent, also in items that were written since.
        let weight = if self.source == CompletionSource::Phrase { self.items.get() as f32 } else { self.weight };
        strength(weight, self.source) * if byte == 0 { 1.0 } else { 0.7 }
    }
}

/// A word start in an entry.
#[derive(Clone, Copy)]
pub(super) struct Start {
    pub entry: u32,
    pub byte: u32,
}

/// Texts that can be searched by the prefix of any of their words.
#[derive(Default)]
pub(super) struct List {
    pub entries: Vec<Entry>,
    pub categories: Vec<String>,
    /// By entry: the index of its category.
    pub category_of: Vec<u32>,
    /// Word starts of all entries, sorted by the text from there.
    starts: Vec<Start>,
    /// The strongest starts of each range of more than [`SCAN_MAX`] starts with a common prefix. The key is the range.
    short_lists: AHashMap<(u32, u32), Vec<Start>>,
}

impl List {
    /// Sums the weights and items of entries with the same normal form and source, and keeps the first of them.
    pub(super) fn build(all: impl Iterator<Item = Entry>) -> Self {
        let mut entries: Vec<Entry> = Vec::new();
        let mut known: AHashMap<(String, CompletionSource), usize> = AHashMap::new();
        for entry in all {
            let at = *known.entry((entry.normal.clone(), entry.source)).or_insert(entries.len());
            match entries.get_mut(at) {
                Some(first) => {
                    first.weight += entry.weight;
                    first.items.add(entry.items.get());
                }
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
        starts.par_sort_unstable_by(|a, b| tail(a).cmp(tail(b)).then(a.entry.cmp(&b.entry)));
        let mut list = Self { entries, categories, category_of, starts, short_lists: AHashMap::new() };
        list.build_short_lists();
        list
    }

    /// Writes the list.
    pub(super) fn write(&self, out: &mut ArrayWriter) {
        let entries = self.entries.iter();
        out.texts(self.categories.iter().map(String::as_str));
        out.texts(entries.clone().map(|entry| entry.text.as_str()));
        out.texts(entries.clone().map(|entry| entry.normal.as_str()));
        out.numbers(self.category_of.iter().copied());
        out.numbers(entries.clone().map(|entry| entry.weight.to_bits()));
        out.numbers(entries.clone().map(|entry| entry.source as u32));
        out.numbers(entries.map(|entry| entry.items.get()));
        let write_starts = |out: &mut ArrayWriter, starts: &[Start]| {
            out.numbers(starts.iter().map(|start| start.entry));
            out.numbers(starts.iter().map(|start| start.byte));
        };
        write_starts(out, &self.starts);
        let mut short_lists: Vec<_> = self.short_lists.iter().collect();
        short_lists.sort_unstable_by_key(|(range, _)| **range);
        out.numbers(short_lists.iter().map(|(range, _)| range.0));
        out.numbers(short_lists.iter().map(|(range, _)| range.1));
        out.numbers(short_lists.iter().map(|(_, starts)| starts.len() as u32));
        write_starts(out, &short_lists.iter().flat_map(|(_, starts)| starts.iter().copied()).collect::<Vec<Start>>());
    }

    /// Reads the output of [`List::write`]. Checks all indices, and not the order of the starts: another one would only
    /// find other texts.
    pub(super) fn read(reader: &mut ArrayReader) -> Result<Self, ArraysError> {
        let categories: Vec<String> = reader.texts()?.into_iter().map(str::to_owned).collect();
        let (texts, normals, category_of) = (reader.texts()?, reader.texts()?, reader.numbers()?);
        let (weights, sources, items) = (reader.numbers()?, reader.numbers()?, reader.numbers()?);
        let count = texts.len();
        let lengths = [normals.len(), category_of.len(), weights.len(), sources.len(), items.len()];
        check(lengths == [count; 5], "the columns of its texts differ in length")?;
        let is_category = |category: &u32| (*category as usize) < categories.len();
        check(category_of.par_iter().all(is_category), "a category is out of range")?;
        let entry = |at: usize| {
            let weight = f32::from_bits(weights[at]);
            let source = CompletionSource::ALL.get(sources[at] as usize).copied();
            check(weight.is_finite() && source.is_some(), "a weight or a source is invalid")?;
            Ok(Entry {
                text: texts[at].to_owned(),
                normal: normals[at].to_owned(),
                category: categories[category_of[at] as usize].clone(),
                weight,
                source: source.unwrap_or(CompletionSource::Title),
                items: ItemCount::of(items[at]),
            })
        };
        let entries: Vec<Entry> = (0..count).into_par_iter().map(entry).collect::<Result<_, ArraysError>>()?;
        let read_starts = |reader: &mut ArrayReader| {
            let (of_entries, bytes) = (reader.numbers()?, reader.numbers()?);
            check(of_entries.len() == bytes.len(), "the columns of its word starts differ in length")?;
            let start = |(entry, byte): (u32, u32)| Start { entry, byte };
            let starts: Vec<Start> = of_entries.into_par_iter().zip(bytes).map(start).collect();
            let is_inside = |start: &Start| {
                entries.get(start.entry as usize).is_some_and(|of| of.normal.is_char_boundary(start.byte as usize))
            };
            check(starts.par_iter().all(is_inside), "a word start is out of range")?;
            Ok::<_, ArraysError>(starts)
        };
        let starts = read_starts(reader)?;
        let (froms, tos, lengths) = (reader.numbers()?, reader.numbers()?, reader.numbers()?);
        let mut of_short_lists = read_starts(reader)?.into_iter();
        let total: u64 = lengths.iter().map(|length| u64::from(*length)).sum();
        let matches =
            froms.len() == lengths.len() && tos.len() == lengths.len() && total == of_short_lists.len() as u64;
        check(matches, "the columns of its short lists differ in length")?;
        let ranges = froms.into_iter().zip(tos).zip(lengths);
        let short_lists =
            ranges.map(|(range, length)| (range, of_short_lists.by_ref().take(length as usize).collect())).collect();
        Ok(Self { entries, categories, category_of, starts, short_lists })
    }

    /// Builds the short list of each prefix with more than [`SCAN_MAX`] starts, one for each range, because a longer
    /// prefix of the same starts has the same list.
    fn build_short_lists(&mut self) {
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

    /// Returns the strongest starts of a range and the strongest of each category.
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
        for (rank, start) in sorted.into_iter().enumerate() {
            let of_category = taken.entry(self.category_of[start.entry as usize]).or_default();
            if rank < SHORT_LIST || *of_category < SHORT_LIST_PER_CATEGORY {
                *of_category += 1;
                best.push(start);
            }
            if best.len() == SCAN_MAX {
                break;
            }
        }
        best
    }

    #[cfg(test)]
    pub(super) fn short_lists_is_empty(&self) -> bool {
        self.short_lists.is_empty()
    }

    /// Returns the text from a start.
    fn tail(&self, start: Start) -> &str {
        &self.entries[start.entry as usize].normal[start.byte as usize..]
    }

    /// Returns the starts in `within` whose text begins with `typed`.
    fn range_in(&self, within: Range<usize>, typed: &str) -> Range<usize> {
        let starts = &self.starts[within.clone()];
        let from = starts.partition_point(|&start| self.tail(start) < typed);
        let length = starts[from..].partition_point(|&start| self.tail(start).starts_with(typed));
        within.start + from..within.start + from + length
    }

    fn range(&self, typed: &str) -> Range<usize> {
        self.range_in(0..self.starts.len(), typed)
    }

    /// Returns the starts of the range of a prefix, or its short list if it has one.
    fn few(&self, range: Range<usize>) -> &[Start] {
        match self.short_lists.get(&(range.start as u32, range.end as u32)) {
            Some(best) => best,
            None => &self.starts[range.start..range.end.min(range.start + SCAN_MAX)],
        }
    }

    /// Returns the entry with the same normal form and source.
    pub(super) fn find(&self, entry: &Entry) -> Option<&Entry> {
        let from = self.starts.partition_point(|&start| self.tail(start) < entry.normal.as_str());
        let equal = self.starts[from..].iter().take_while(|&&start| self.tail(start) == entry.normal);
        let mut whole = equal.filter(|start| start.byte == 0).map(|start| &self.entries[start.entry as usize]);
        whole.find(|known| known.source == entry.source)
    }

    /// Calls `hit` with each start that matches `typed` and the factor of its strength, except those of removed texts.
    /// A start may occur several times.
    pub(super) fn search(&self, kind: MatchKind, typed: &str, hit: &mut dyn FnMut(Start, f32)) {
        let char_count = typed.chars().count();
        let hit = &mut |start: Start, factor: f32| {
            if self.entries[start.entry as usize].is_suggested() {
                hit(start, factor);
            }
        };
        match kind {
            MatchKind::Prefix => self.search_prefix(typed, hit),
            MatchKind::AllWords => self.search_all_words(typed, hit),
            MatchKind::ErrorAfterFirst => self.search_one_error(typed, 1..char_count, hit),
            MatchKind::ErrorAtFirst => self.search_one_error(typed, 0..1, hit),
        }
    }

    fn search_prefix(&self, typed: &str, hit: &mut dyn FnMut(Start, f32)) {
        for &start in self.few(self.range(typed)) {
            hit(start, 1.0);
        }
    }

    /// Searches texts that have all words of `typed`, the last as a prefix.
    fn search_all_words(&self, typed: &str, hit: &mut dyn FnMut(Start, f32)) {
        // The rarest word has the fewest starts to check.
        let rarest = typed.split(' ').map(|word| self.range(word)).min_by_key(Range::len).unwrap_or(0..0);
        for &start in self.few(rarest) {
            if has_all_words(&self.entries[start.entry as usize].normal, typed) {
                hit(Start { byte: 0, ..start }, ALL_WORDS_FACTOR);
            }
        }
    }

    /// Searches texts with a prefix that is one edit away from `typed` at one of `positions`: a character changed or
    /// added, unless it is right ([`may_be_wrong`]), or left out, or two neighbours exchanged. Searches each corrected
    /// prefix: O(positions × characters that texts have there × log starts).
    fn search_one_error(&self, typed: &str, positions: Range<usize>, hit: &mut dyn FnMut(Start, f32)) {
        let chars: Vec<char> = typed.chars().collect();
        if !may_have_error(&chars) {
            return;
        }
        let mut left = 4 * SCAN_MAX;
        let mut search = |within: &Range<usize>, corrected: String| {
            let starts = self.few(self.range_in(within.clone(), &corrected));
            for &start in starts.iter().take(left) {
                hit(start, ERROR_FACTOR);
            }
            left = left.saturating_sub(starts.len());
        };
        let text = |parts: [&[char]; 3]| parts.concat().into_iter().collect::<String>();
        for at in positions {
            let (before, after) = chars.split_at(at);
            let within = self.range(&text([before, &[], &[]]));
            if within.is_empty() {
                break;
            }
            let may_be_wrong = may_be_wrong(after[0]);
            if may_be_wrong {
                search(&within, text([before, &after[1..], &[]]));
            }
            if let [first, second, rest @ ..] = after
                && first != second
            {
                search(&within, text([before, &[*second, *first], rest]));
            }
            // Every letter of a script without spaces starts a word, so the search without the first letter covers a
            // wrong one.
            if at == 0 && text::is_unspaced(chars[0]) {
                continue;
            }
            let offset = before.iter().map(|c| c.len_utf8()).sum();
            for (corrected, part) in self.by_next_char(&within, offset).take(TYPO_TRIES_MAX) {
                if corrected != after[0] {
                    if may_be_wrong {
                        search(&part, text([before, &[corrected], &after[1..]]));
                    }
                    search(&part, text([before, &[corrected], after]));
                }
            }
        }
    }

    /// Splits a range by the character at a byte offset from the start. Skips texts that end there.
    fn by_next_char(&self, range: &Range<usize>, offset: usize) -> impl Iterator<Item = (char, Range<usize>)> {
        let next = move |start: Start| self.tail(start).get(offset..)?.chars().next();
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

/// Returns the normal form of a text, at most [`TEXT_CHARS_MAX`] characters.
pub(super) fn normal(text: &str) -> String {
    let text = text::normalize(text);
    match text.char_indices().nth(TEXT_CHARS_MAX) {
        Some((end, _)) => text[..end].to_owned(),
        None => text,
    }
}

/// Returns a number that is finite and not negative; otherwise 0.
pub(super) fn finite(number: f32) -> f32 {
    if number.is_finite() { number.max(0.0) } else { 0.0 }
}

/// Returns the score of a text without personalization. Queries, categories and brands have a higher factor, because
/// they are shorter and more general than titles. Phrases have a lower one, because hundreds of items may have them and a
/// few users are better evidence.
fn strength(weight: f32, source: CompletionSource) -> f32 {
    let factor = match source {
        CompletionSource::Query => 1.3,
        CompletionSource::Category | CompletionSource::Brand => 1.2,
        CompletionSource::Phrase => 0.7,
        CompletionSource::Title => 1.0,
    };
    (0.1 + weight.ln_1p()) * factor
}
