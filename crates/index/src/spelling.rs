//! Spelling correction from the vocabulary of the catalogue.
use crate::arrays::{ArrayReader, ArrayWriter, ArraysError, check};
use ahash::AHashMap;
use lodestone_core::text;

/// Minimum characters of a word that is corrected, because many words are one edit away from a shorter one.
const CHARS_MIN: usize = 4;
/// Minimum characters of a word that may have two errors; a shorter word may have one.
const TWO_ERRORS_CHARS_MIN: usize = 8;
/// Minimum characters of a word that may be its correction and any letter before it. With fewer (`iphone`, `phone`),
/// the additional letter must be the same as the next one or a key next to it.
const ADDED_FIRST_CHARS_MIN: usize = 7;
/// Minimum characters of a word that may be its correction and any letter after it. With fewer (`lego`, `leg`), the
/// additional letter must repeat the last one.
const ADDED_LAST_CHARS_MIN: usize = 6;
/// Minimum characters of a word that may have any other letter than its correction. With fewer, it must be that of a
/// key next to it, and not the first, because many words of four letters are one letter apart.
const OTHER_LETTER_CHARS_MIN: usize = 5;
/// Maximum characters of a word that is corrected only to words of [`FREQUENT_MIN`] items.
const SHORT_CHARS_MAX: usize = 5;
/// Minimum items with the correction of a short word.
const FREQUENT_MIN: u32 = 3;
/// The rows of a keyboard with Latin letters, from its left end. A row starts a fraction of a key right of the one above.
const KEYBOARD_ROWS: [(&str, f32); 3] = [("qwertyuiop", 0.0), ("asdfghjkl", 0.25), ("zxcvbnm", 0.75)];
/// Minimum characters of a correction.
const TARGET_CHARS_MIN: usize = 3;
/// Maximum items with a word that may be a misspelling of the catalogue.
const RARE_MAX: u32 = 2;
/// Minimum characters of such a word, because many short words are one error apart.
const NEIGHBOUR_CHARS_MIN: usize = 5;
/// Minimum ratio of the frequencies of the correct word and its misspelling.
const NEIGHBOUR_RATIO_MIN: u32 = 5;
/// Cost of an error, in units of the logarithm of the word's frequency.
const ERROR_COST: f32 = 4.0;
/// Additional cost of another first letter, because the first letter is rarely wrong.
const FIRST_LETTER_COST: f32 = 2.0;

/// Words with their frequencies. Excludes numbers, codes (words with a digit) and scripts without spaces, because the
/// closest code is another product, and a CJK word with one other character is another word.
#[derive(Default)]
pub(crate) struct Vocabulary {
    words: Vec<Word>,
    by_text: AHashMap<Box<str>, u32>,
    /// Number of scans so far.
    #[cfg(test)]
    pub scans: std::sync::atomic::AtomicUsize,
}

struct Word {
    /// Letters of the word, each hashed to one of 32 bits: a filter that rejects most words.
    letters: u32,
    char_count: u8,
    frequency: u32,
    text: Box<str>,
}

impl Word {
    fn of(text: Box<str>, frequency: u32) -> Self {
        Self { letters: letters(&text), char_count: text.chars().count() as u8, frequency, text }
    }
}

impl Vocabulary {
    /// Writes the words with their frequencies.
    pub(crate) fn write(&self, out: &mut ArrayWriter) {
        out.texts(self.texts());
        out.numbers(self.words.iter().map(|word| word.frequency));
    }

    /// Reads the output of [`Vocabulary::write`] for an index of `row_count` rows.
    pub(crate) fn read(reader: &mut ArrayReader, row_count: usize) -> Result<Self, ArraysError> {
        let (texts, frequencies) = (reader.texts()?, reader.numbers()?);
        check(texts.len() == frequencies.len(), "the frequencies are not those of the vocabulary")?;
        let is_possible = |frequency: &u32| (1..=row_count).contains(&(*frequency as usize));
        check(
            frequencies.iter().all(is_possible),
            "a frequency of the vocabulary is not between 1 and the number of items",
        )?;
        let words: Vec<Word> =
            texts.into_iter().zip(frequencies).map(|(text, count)| Word::of(text.into(), count)).collect();
        let mut by_text = AHashMap::with_capacity(words.len());
        by_text.extend(words.iter().zip(0..).map(|(word, at)| (word.text.clone(), at)));
        check(by_text.len() == words.len(), "a word of the vocabulary occurs twice")?;
        Ok(Self {
            words,
            by_text,
            #[cfg(test)]
            scans: Default::default(),
        })
    }

    /// Returns the words.
    pub(crate) fn texts(&self) -> impl ExactSizeIterator<Item = &str> + Clone {
        self.words.iter().map(|word| &*word.text)
    }

    /// Counts each distinct word of a text once. Returns the words that were unknown.
    pub(crate) fn add(&mut self, mut words: Vec<String>) -> Vec<String> {
        words.sort_unstable();
        words.dedup();
        words.retain(|word| is_plain(word));
        words.retain(|word| {
            match self.by_text.get(word.as_str()) {
                Some(&at) => self.words[at as usize].frequency += 1,
                None => {
                    let text: Box<str> = word.as_str().into();
                    self.by_text.insert(text.clone(), self.words.len() as u32);
                    self.words.push(Word::of(text, 1));
                    return true;
                }
            }
            false
        });
        words
    }

    /// Removes a text that was added. A word of no other text is forgotten. Returns the forgotten words.
    pub(crate) fn remove(&mut self, mut words: Vec<String>) -> Vec<String> {
        words.sort_unstable();
        words.dedup();
        words.retain(|word| {
            let Some(&at) = self.by_text.get(word.as_str()) else { return false };
            let known = &mut self.words[at as usize];
            known.frequency -= 1;
            if known.frequency > 0 {
                return false;
            }
            self.by_text.remove(word.as_str());
            self.words.swap_remove(at as usize);
            if let Some(moved) = self.words.get(at as usize) {
                self.by_text.insert(moved.text.clone(), at);
            }
            true
        });
        words
    }

    /// Returns the words with their frequencies, sorted.
    #[cfg(test)]
    pub(crate) fn counts(&self) -> Vec<(&str, u32)> {
        let mut counts: Vec<_> = self.words.iter().map(|word| (&*word.text, word.frequency)).collect();
        counts.sort_unstable();
        counts
    }

    /// Returns the most likely correction of an unknown word, by the logarithm of the frequency minus a cost for each
    /// error (Damerau-Levenshtein: a letter changed, added or left out, or two neighbours exchanged) and for
    /// another first letter: a noisy channel (Kernighan, Church & Gale 1990) with a prior of each known word. None for
    /// short words, codes and scripts without spaces, and if no word is close.
    ///
    /// An unknown word may also be right, and name something that the catalogue does not have. So the correction must
    /// be a likely error of the word; see [`is_likely_error`].
    pub(crate) fn correction(&self, word: &str) -> Option<&str> {
        let chars: Vec<char> = word.chars().collect();
        if chars.len() < CHARS_MIN {
            return None;
        }
        let errors_max = if chars.len() >= TWO_ERRORS_CHARS_MIN { 2 } else { 1 };
        let frequency_min = if chars.len() <= SHORT_CHARS_MAX { FREQUENT_MIN } else { 1 };
        let is_frequent = |other: &Word| other.frequency >= frequency_min;
        self.closest(word, errors_max, is_frequent, |other, errors| is_likely_error(&chars, &other.text, errors))
    }

    /// Returns a frequent word that is one error away from a word of few items, which may be a misspelling in the
    /// catalogue itself; none if the word is frequent or has no such neighbour.
    pub(crate) fn frequent_neighbour(&self, word: &str) -> Option<&str> {
        if !self.is_rare(word) {
            return None;
        }
        let frequency = self.frequency(word);
        let is_frequent = |other: &Word| {
            other.frequency >= NEIGHBOUR_RATIO_MIN * frequency && other.text.chars().next() == word.chars().next()
        };
        self.closest(word, 1, is_frequent, |_, _| true)
    }

    /// Returns whether a word has few items, and so may be a misspelling in the catalogue.
    pub(crate) fn is_rare(&self, word: &str) -> bool {
        (1..=RARE_MAX).contains(&self.frequency(word)) && word.chars().count() >= NEIGHBOUR_CHARS_MIN
    }

    /// Returns the number of texts that have a word.
    pub(crate) fn frequency(&self, word: &str) -> u32 {
        self.by_text.get(word).map_or(0, |at| self.words[*at as usize].frequency)
    }

    /// Returns the word with the best score among those that are candidates, have at most `errors_max` errors, and are
    /// likely with their number of errors. O(vocabulary), but comparing two numbers rejects most words.
    fn closest(
        &self,
        word: &str,
        errors_max: usize,
        is_candidate: impl Fn(&Word) -> bool,
        is_likely: impl Fn(&Word, usize) -> bool,
    ) -> Option<&str> {
        if !is_plain(word) {
            return None;
        }
        #[cfg(test)]
        self.scans.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let chars: Vec<char> = word.chars().collect();
        let letters = letters(word);
        let mut best: Option<(f32, &Word)> = None;
        for other in &self.words {
            let count = usize::from(other.char_count);
            let far = |a: u32, b: u32| (a & !b).count_ones() as usize > errors_max;
            let is_far =
                count.abs_diff(chars.len()) > errors_max || far(letters, other.letters) || far(other.letters, letters);
            if is_far || count < TARGET_CHARS_MIN || !is_candidate(other) {
                continue;
            }
            let Some(errors) =
                errors_within(&chars, &other.text, errors_max).filter(|errors| is_likely(other, *errors))
            else {
                continue;
            };
            let same_first = other.text.starts_with(chars[0]);
            let score = (other.frequency as f32).ln()
                - ERROR_COST * errors as f32
                - if same_first { 0.0 } else { FIRST_LETTER_COST };
            let is_better = best
                .is_none_or(|(best_score, best)| score > best_score || score == best_score && other.text < best.text);
            if is_better {
                best = Some((score, other));
            }
        }
        best.map(|(_, word)| &*word.text)
    }
}

/// Returns whether a typed word of a number of errors, at least one, is likely meant to be a known word, and not another
/// word:
///
/// - The first letter is right, because it rarely is wrong. In a word of one error it may also be left out or exchanged
///   with the second; in a longer word, it may be another one, or one more.
/// - The end of a word tells it from a shorter one, so a known word is no correction of a short one that continues it.
/// - In the shortest words, a wrong letter is that of a key next to the right one.
fn is_likely_error(typed: &[char], known: &str, errors: usize) -> bool {
    let known: Vec<char> = known.chars().collect();
    let is_first_right = typed[0] == known[0];
    if errors > 1 {
        return is_first_right;
    }
    let starts_like = typed.iter().zip(&known).take_while(|(a, b)| a == b).count();
    match typed.len().cmp(&known.len()) {
        // Left out.
        std::cmp::Ordering::Less => true,
        std::cmp::Ordering::Greater if starts_like == known.len() => {
            typed.len() >= ADDED_LAST_CHARS_MIN || typed[starts_like] == known[starts_like - 1]
        }
        std::cmp::Ordering::Greater => {
            is_first_right || typed.len() >= ADDED_FIRST_CHARS_MIN || are_adjacent_keys(typed[0], typed[1])
        }
        std::cmp::Ordering::Equal => {
            let is_exchanged = typed.get(starts_like) == known.get(starts_like + 1);
            let is_exchanged = is_exchanged && typed.get(starts_like + 1) == known.get(starts_like);
            is_exchanged
                || typed.len() >= OTHER_LETTER_CHARS_MIN
                || is_first_right && are_adjacent_keys(typed[starts_like], known[starts_like])
        }
    }
}

/// Returns whether two keys of a keyboard with Latin letters touch. A letter with a mark, or of another script, has no key
/// here.
fn are_adjacent_keys(a: char, b: char) -> bool {
    let position = |key: char| {
        KEYBOARD_ROWS.iter().enumerate().find_map(|(row, (keys, left))| Some((row, keys.find(key)? as f32 + left)))
    };
    match (position(a), position(b)) {
        (Some((a_row, a_at)), Some((b_row, b_at))) => a_row.abs_diff(b_row) <= 1 && (a_at - b_at).abs() <= 1.0,
        _ => false,
    }
}

/// Returns true if a word has only letters with their marks, of a script with spaces.
fn is_plain(word: &str) -> bool {
    word.chars().all(|c| (c.is_alphabetic() || text::is_combining_mark(c)) && !text::is_unspaced(c)) && !word.is_empty()
}

fn letters(word: &str) -> u32 {
    word.chars().fold(0, |letters, c| letters | 1 << (c as u32 % 32))
}

/// Returns the optimal string alignment distance if it is at most `errors_max`.
fn errors_within(word: &[char], other: &str, errors_max: usize) -> Option<usize> {
    let other: Vec<char> = other.chars().collect();
    let mut rows = [vec![0; other.len() + 1], (0..=other.len()).collect::<Vec<usize>>(), vec![0; other.len() + 1]];
    for i in 1..=word.len() {
        let [before, last, row] = &mut rows;
        row[0] = i;
        for j in 1..=other.len() {
            let changed = last[j - 1] + usize::from(word[i - 1] != other[j - 1]);
            row[j] = changed.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && word[i - 1] == other[j - 2] && word[i - 2] == other[j - 1] {
                row[j] = row[j].min(before[j - 2] + 1);
            }
        }
        if row.iter().all(|errors| *errors > errors_max) {
            return None;
        }
        rows.rotate_left(1);
    }
    Some(rows[1][other.len()]).filter(|errors| *errors <= errors_max)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn vocabulary(texts: &[&str]) -> Vocabulary {
        let mut vocabulary = Vocabulary::default();
        for text in texts {
            vocabulary.add(text::written_words(text));
        }
        vocabulary
    }

    #[test]
    fn the_correction_is_close_and_frequent() {
        let known = vocabulary(&[
            "Chocolate box",
            "chocolate tin",
            "Chocolates",
            "Café crème",
            "door",
            "oak door",
            "red door",
            "floor mat",
            "moor",
            "crème brulée",
            "crème fraîche",
        ]);
        for (typed, correction) in [
            ("choclate", "chocolate"),
            ("chcoolate", "chocolate"),
            ("chocolattte", "chocolate"),
            ("xhocolate", "chocolate"),
            ("dooor", "door"),
            ("creme", "creme"),
        ] {
            assert_eq!(known.correction(typed), Some(correction), "{typed}");
        }
        assert_eq!(known.correction("chxcxlxte"), None);
    }

    #[test]
    fn a_file_with_an_impossible_frequency_is_an_error() {
        let read = |frequencies: [u32; 2]| -> Result<(), ArraysError> {
            let mut out = ArrayWriter::new(b"LSTESTS1");
            out.texts(["red", "mug"].into_iter());
            out.numbers(frequencies.into_iter());
            let bytes = out.finish();
            Vocabulary::read(&mut ArrayReader::new(&bytes, b"LSTESTS1")?, 2).map(drop)
        };
        read([1, 2]).unwrap();
        for frequencies in [[0, 2], [1, 3], [1, u32::MAX]] {
            assert!(matches!(read(frequencies), Err(ArraysError::Content(_))), "{frequencies:?}");
        }
    }

    #[test]
    fn a_word_that_is_more_likely_another_one_is_not_corrected() {
        let mut texts = vec!["base leg legs phone single cottage neoflex cane bike"; 3];
        texts.push("shelf");
        let known = vocabulary(&texts);
        for typed in ["bose", "lego", "iphone", "kindle", "postage", "netflix", "nike", "canoes", "shrlf"] {
            assert_eq!(known.correction(typed), None, "{typed}");
        }
        for (typed, correction) in [
            ("pohne", "phone"),
            ("hpone", "phone"),
            ("hone", "phone"),
            ("pphone", "phone"),
            ("ophone", "phone"),
            ("phonee", "phone"),
            ("ohone", "phone"),
            ("legg", "leg"),
            ("bikw", "bike"),
            ("xcottage", "cottage"),
            ("cottagex", "cottage"),
        ] {
            assert_eq!(known.correction(typed), Some(correction), "{typed}");
        }
    }

    #[test]
    fn codes_short_words_and_chinese_are_not_corrected() {
        let known = vocabulary(&["DCD780 drill", "cat box", "蓝色马克杯"]);
        for typed in ["dcd781", "cst", "马可杯", "1234", "", "🦆"] {
            assert_eq!(known.correction(typed), None, "{typed}");
        }
    }

    #[test]
    fn a_rare_word_has_a_frequent_neighbour() {
        let mut texts = vec!["Silk flowers"; 10];
        texts.extend(["Easter flowrs", "Easter basket", "slik box", "rare bluers", "rare bluerz"]);
        let known = vocabulary(&texts);
        assert_eq!(known.frequent_neighbour("flowrs"), Some("flowers"));
        for word in ["flowers", "unknown", "slik", "bluers", "easter"] {
            assert_eq!(known.frequent_neighbour(word), None, "{word}");
        }
    }

    /// Computes the distance by its recursive definition.
    fn errors(a: &[char], b: &[char]) -> usize {
        match (a, b) {
            ([], rest) | (rest, []) => rest.len(),
            ([.., x], [.., y]) => {
                let (a_less, b_less) = (&a[..a.len() - 1], &b[..b.len() - 1]);
                let mut fewest = errors(a_less, b_less) + usize::from(x != y);
                fewest = fewest.min(errors(a_less, b) + 1).min(errors(a, b_less) + 1);
                if let ([.., p, _], [.., q, _]) = (a, b)
                    && p == y
                    && q == x
                {
                    fewest = fewest.min(errors(&a[..a.len() - 2], &b[..b.len() - 2]) + 1);
                }
                fewest
            }
        }
    }

    proptest! {
        #[test]
        fn the_distance_matches_its_recursive_definition(a in "[abc]{0,6}", b in "[abc]{0,6}", most in 0usize..4) {
            let (chars, other): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
            let expected = errors(&chars, &other);
            prop_assert_eq!(errors_within(&chars, &b, most), Some(expected).filter(|errors| *errors <= most));
        }
    }
}
