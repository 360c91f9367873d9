//! Ranks the entries that match a prefix for one user.
use super::{
    Completion, CompletionSource,
    list::{Entry, finite},
    match_kind::STARTS_MAX,
};
use ahash::AHashMap;
use lodestone_core::text;
use std::cell::RefCell;

/// The factors of the categories of a list for one user. Calls `affinity` at most once for each category.
pub(super) struct CategoryFactors<'a> {
    affinity: &'a dyn Fn(&str) -> f32,
    categories: &'a [String],
    known: RefCell<Vec<Option<f32>>>,
}

impl<'a> CategoryFactors<'a> {
    pub(super) fn new(affinity: &'a dyn Fn(&str) -> f32, categories: &'a [String]) -> Self {
        Self { affinity, categories, known: RefCell::new(vec![None; categories.len()]) }
    }

    pub(super) fn of(&self, category: u32) -> f32 {
        let at = category as usize;
        *self.known.borrow_mut()[at].get_or_insert_with(|| category_factor((self.affinity)(&self.categories[at])))
    }
}

/// Converts an affinity to a factor of the score, 1 to 11. An affinity that is negative or not finite counts as 0.
pub(super) fn category_factor(affinity: f32) -> f32 {
    1.0 + finite(affinity).min(10.0)
}

/// Entries that match a prefix, with their scores. A text may occur several times.
#[derive(Default)]
pub(super) struct Hits<'s> {
    /// Scores, and the bytes at which the prefix matches.
    scored: Vec<(f32, u32, &'s Entry)>,
}

impl<'s> Hits<'s> {
    pub(super) fn is_empty(&self) -> bool {
        self.scored.is_empty()
    }

    pub(super) fn push(&mut self, entry: &'s Entry, byte: u32, score: f32) {
        self.scored.push((score, byte, entry));
    }

    /// Returns the `count` best completions of a typed prefix with distinct normal forms, best first.
    pub(super) fn into_best(self, count: usize, typed: &str) -> Vec<Completion> {
        let mut all = self.scored;
        // Of two equally good texts the shorter is closer to the prefix.
        let order = |(a_score, _, a): &(f32, u32, &Entry), (b_score, _, b): &(f32, u32, &Entry)| {
            let by_text = a.normal.len().cmp(&b.normal.len()).then(a.normal.cmp(&b.normal));
            b_score.total_cmp(a_score).then(by_text).then((a.source as u8).cmp(&(b.source as u8)))
        };
        // A text may occur once for each of its words and sources, so more than `count` hits must be sorted.
        let enough = count.saturating_mul(STARTS_MAX * 3);
        if all.len() > enough {
            all.select_nth_unstable_by(enough, order);
            all.truncate(enough);
        }
        all.sort_unstable_by(order);
        let mut best: Vec<(u32, &Entry)> = Vec::with_capacity(count);
        let mut seen: AHashMap<&str, usize> = AHashMap::new();
        for (_, byte, entry) in all {
            match seen.get(entry.normal.as_str()) {
                // A text that users search for is a query, wherever else it comes from.
                Some(&at)
                    if entry.source == CompletionSource::Query && best[at].1.source == CompletionSource::Phrase =>
                {
                    best[at].1 = entry;
                }
                None if best.len() < count => {
                    seen.insert(&entry.normal, best.len());
                    best.push((byte, entry));
                }
                Some(_) | None => {}
            }
        }
        let completion = |(byte, entry): (u32, &Entry)| Completion {
            text: entry.text.clone(),
            source: entry.source,
            prefix: words_of(&entry.normal[byte as usize..], typed).to_owned(),
        };
        best.into_iter().map(completion).collect()
    }
}

/// Returns as many words from the start of `tail` as `typed` has; of a script without spaces, as many characters.
fn words_of<'t>(tail: &'t str, typed: &str) -> &'t str {
    let end = match typed.chars().any(text::is_unspaced) {
        true => tail.char_indices().nth(typed.chars().count()).map(|(end, _)| end),
        false => tail.match_indices(' ').nth(typed.matches(' ').count()).map(|(end, _)| end),
    };
    &tail[..end.unwrap_or(tail.len())]
}
