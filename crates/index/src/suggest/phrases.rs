//! Phrases: short runs of words that the titles of several items have in common.
use crate::function_words;
use lodestone_core::text::{self, TokenKind};

/// Minimum items with a phrase.
pub(super) const PHRASE_ITEMS_MIN: u32 = 3;
/// Maximum words of a phrase.
const WORDS_MAX: usize = 3;
/// Minimum characters of a phrase; in scripts without spaces, where a word is short.
const CHARS_MIN: usize = 3;
const UNSPACED_CHARS_MIN: usize = 2;

/// A word of a run.
struct RunWord {
    text: String,
    /// Its script has no spaces.
    is_unspaced: bool,
    /// It starts within the brand, so that no phrase may start with it.
    starts_in_brand: bool,
    /// It ends within the brand.
    ends_in_brand: bool,
}

/// Returns the phrases of a title, each once: its runs of one to three words, in lower case, without numbers, codes and
/// punctuation between them. They neither start nor end with a function word or a single letter, because these belong to
/// the words before or after them, or within the item's brand. Chinese runs are of the segmenter's words.
pub fn phrases(title: &str, brand: &str) -> Vec<String> {
    let mut phrases = Vec::new();
    let mut run: Vec<RunWord> = Vec::new();
    let is_outside = |c: char| !c.is_alphanumeric() && !text::is_combining_mark(c);
    let normals = |text: &str| -> Vec<String> {
        text.split_whitespace().map(|part| text::normalize(part.trim_matches(is_outside))).collect()
    };
    let (of_title, of_brand) = (normals(title), normals(brand));
    let brand_length = of_brand.len();
    let is_brand = |start: usize| of_title[start..].starts_with(&of_brand);
    // Whether the brand continues from the part before `at` to that at `at`.
    let is_in_brand = |at: usize| (1..brand_length).any(|parts| at >= parts && is_brand(at - parts));
    let brand_text = of_brand.concat();
    let push_phrases = |run: &mut Vec<RunWord>, phrases: &mut Vec<String>| push_phrases(run, &brand_text, phrases);
    for (at, part) in title.split_whitespace().enumerate() {
        let word = part.trim_matches(is_outside);
        if part.starts_with(is_outside) {
            push_phrases(&mut run, &mut phrases);
        }
        let is_plain = |c: char| c.is_alphabetic() || text::is_combining_mark(c) || matches!(c, '-' | '\'' | '’');
        if word.chars().any(text::is_cjk) {
            push_phrases(&mut run, &mut phrases);
            for token in text::tokens(word) {
                match token.kind {
                    TokenKind::Segment if token.text.chars().all(text::is_cjk) => run.push(RunWord {
                        text: token.text,
                        is_unspaced: true,
                        starts_in_brand: false,
                        ends_in_brand: false,
                    }),
                    // They repeat parts of the text.
                    TokenKind::Bigram | TokenKind::Character | TokenKind::Joined | TokenKind::Bare => {}
                    TokenKind::Word | TokenKind::Segment => push_phrases(&mut run, &mut phrases),
                }
            }
            push_phrases(&mut run, &mut phrases);
        } else if !word.is_empty() && word.chars().all(is_plain) && !word.chars().any(text::is_unspaced) {
            run.push(RunWord {
                text: word.to_lowercase(),
                is_unspaced: false,
                starts_in_brand: is_in_brand(at),
                ends_in_brand: is_in_brand(at + 1),
            });
        } else {
            push_phrases(&mut run, &mut phrases);
        }
        if part.ends_with(is_outside) {
            push_phrases(&mut run, &mut phrases);
        }
    }
    push_phrases(&mut run, &mut phrases);
    phrases.sort_unstable();
    phrases.dedup();
    phrases
}

/// Adds the phrases of a run of words and empties the run.
fn push_phrases(run: &mut Vec<RunWord>, brand: &str, phrases: &mut Vec<String>) {
    mark_unspaced_brand(run, brand);
    let is_function =
        |word: &RunWord| function_words::is_any(&word.text) || !word.is_unspaced && word.text.chars().count() == 1;
    for count in 1..=WORDS_MAX {
        for words in run.windows(count) {
            let (first, last) = (&words[0], &words[count - 1]);
            if is_function(first) || is_function(last) || first.starts_in_brand || last.ends_in_brand {
                continue;
            }
            let texts: Vec<&str> = words.iter().map(|word| word.text.as_str()).collect();
            let phrase = texts.join(if first.is_unspaced { "" } else { " " });
            if phrase.chars().count() >= if first.is_unspaced { UNSPACED_CHARS_MIN } else { CHARS_MIN } {
                phrases.push(phrase);
            }
        }
    }
    run.clear();
}

/// Marks the words that start or end within the brand in a run of a script without spaces, where a brand may be several
/// words of the segmenter or a part of one.
fn mark_unspaced_brand(run: &mut [RunWord], brand: &str) {
    if brand.is_empty() || run.first().is_none_or(|word| !word.is_unspaced) {
        return;
    }
    let text: String = run.iter().map(|word| word.text.as_str()).collect();
    let is_in_brand = |at: usize| text.match_indices(brand).any(|(start, _)| start < at && at < start + brand.len());
    let mut start = 0;
    for word in run {
        let end = start + word.text.len();
        (word.starts_in_brand, word.ends_in_brand) = (is_in_brand(start), is_in_brand(end));
        start = end;
    }
}

#[cfg(test)]
mod tests {
    use super::phrases;

    #[test]
    fn phrases_are_runs_of_words_without_codes_and_punctuation() {
        assert_eq!(
            phrases("Bramble Linen Shirt, Green L", ""),
            ["bramble", "bramble linen", "bramble linen shirt", "green", "linen", "linen shirt", "shirt"]
        );
        assert_eq!(phrases("USB 2.0 cable (USB A male)", ""), ["cable", "male", "usb", "usb a male"]);
        assert_eq!(phrases("Box of tea with T-Shirt", ""), ["box", "box of tea", "t-shirt", "tea", "tea with t-shirt"]);
        assert!(phrases("HP8203 4400mAh 12", "").is_empty() && phrases("", "").is_empty());
    }

    #[test]
    fn phrases_neither_start_nor_end_within_the_brand() {
        assert_eq!(
            phrases("Fern Lake Ltd Wool Throw", "Fern Lake LTD"),
            ["fern lake ltd", "throw", "wool", "wool throw"]
        );
        // A brand with punctuation is no phrase.
        assert_eq!(phrases("Moor & Fell Ltd, Wool Throw", "Moor & Fell Ltd"), ["throw", "wool", "wool throw"]);
        // The same word elsewhere in the title, or in a title without the brand.
        assert!(phrases("Linen House Red Linen Shirt", "Linen House").contains(&"linen shirt".to_owned()));
        assert!(phrases("Green Tea", "Tea House").contains(&"green tea".to_owned()));
        assert!(phrases("Linnet Wool Throw", "Linnet").contains(&"linnet wool throw".to_owned()));
        let found = phrases("晨光文具中性笔", "晨光文具");
        assert!(found.contains(&"晨光文具".to_owned()), "{found:?}");
        let has_part = |phrase: &String| phrase.contains("晨光") || phrase.contains("文具");
        assert!(found.iter().all(|phrase| !has_part(phrase) || phrase.contains("晨光文具")), "{found:?}");
    }

    #[test]
    fn chinese_phrases_are_of_segments() {
        let found = phrases("小熊 白色马克杯 350毫升", "");
        assert!(found.contains(&"马克杯".to_owned()) && found.contains(&"白色马克杯".to_owned()), "{found:?}");
    }
}
