//! Sorted texts.
use super::{
    Suggestible,
    nearness::{ERROR_FACTOR, HOLDING_FACTOR, Nearness, holds_words, may_have_error, word_starts},
};
use crate::CompletionSource;
use ahash::AHashMap;
use lodestone_core::text;
use std::ops::Range;

/// Characters of a text that are read.
const TEXT_CHARS_MAX: usize = 200;
/// Starts that are looked at for a prefix. A prefix of more starts has a short list of its best.
pub(super) const SCAN_MAX: usize = 2048;
/// Starts of a short list: the best of all, and of each category.
const SHORT_LIST: usize = 256;
const SHORT_LIST_PER_CATEGORY: usize = 2;
/// Characters that are tried in one place of a mistyped prefix.
const TYPO_TRIES_MAX: usize = 128;

#[derive(Clone)]
pub(super) struct Entry {
    pub text: String,
    pub normal: String,
    pub category: String,
    pub weight: f32,
    pub source: CompletionSource,
}

impl Entry {
    /// None for a text without content.
    pub(super) fn of(suggestible: Suggestible) -> Option<Self> {
        let Suggestible { text, category, weight, source } = suggestible;
        let normal = normal(&text);
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        (!normal.is_empty()).then(|| Self { text, normal, category, weight: finite(weight), source })
    }

    /// What it brings before the user is looked at, where the word at `byte` was typed.
    pub(super) fn strength_at(&self, byte: u32) -> f32 {
        strength(self.weight, self.source) * if byte == 0 { 1.0 } else { 0.7 }
    }
}

#[derive(Clone, Copy)]
pub(super) struct Start {
    pub entry: u32,
    pub byte: u32,
}

/// Texts that can be looked up by the beginning of any of their words.
#[derive(Default)]
pub(super) struct List {
    pub entries: Vec<Entry>,
    pub categories: Vec<String>,
    /// By entry: its category.
    pub category_of: Vec<u32>,
    /// Where words start, in the order of the text from there.
    starts: Vec<Start>,
    /// For ranges of more than [`SCAN_MAX`] starts, by begin and end: their best.
    short_lists: AHashMap<(u32, u32), Vec<Start>>,
}

impl List {
    pub(super) fn build(all: impl Iterator<Item = Entry>) -> Self {
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
    pub(super) fn has(&self, entry: &Entry) -> bool {
        let from = self.starts.partition_point(|&start| self.tail(start) < entry.normal.as_str());
        let mut equal = self.starts[from..].iter().take_while(|&&start| self.tail(start) == entry.normal);
        equal.any(|start| start.byte == 0 && self.entries[start.entry as usize].source == entry.source)
    }

    /// Offers the texts that are so near to what is typed, each perhaps several times.
    pub(super) fn look(&self, nearness: Nearness, typed: &str, offer: &mut dyn FnMut(Start, f32)) {
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

pub(super) fn normal(text: &str) -> String {
    let text = text::normalize(text);
    match text.char_indices().nth(TEXT_CHARS_MAX) {
        Some((end, _)) => text[..end].to_owned(),
        None => text,
    }
}

pub(super) fn finite(number: f32) -> f32 {
    if number.is_finite() { number.max(0.0) } else { 0.0 }
}

/// What a text brings before the user is looked at: queries and categories are shorter and wider than titles.
fn strength(weight: f32, source: CompletionSource) -> f32 {
    let factor = match source {
        CompletionSource::Query => 1.3,
        CompletionSource::Category => 1.2,
        CompletionSource::Title => 1.0,
    };
    (0.1 + weight.ln_1p()) * factor
}
