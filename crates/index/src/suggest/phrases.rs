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

/// Returns the phrases of a title, each once: its runs of one to three words, in lower case, without numbers, codes and
/// punctuation between them. They neither start nor end with a function word or a single letter, because these belong to
/// the words before or after them. Chinese runs are of the segmenter's words.
pub fn phrases(title: &str) -> Vec<String> {
    let mut phrases = Vec::new();
    let mut run: Vec<(String, bool)> = Vec::new();
    for part in title.split_whitespace() {
        let is_outside = |c: char| !c.is_alphanumeric() && !text::is_combining_mark(c);
        let word = part.trim_matches(is_outside);
        if part.starts_with(is_outside) {
            push_phrases(&mut run, &mut phrases);
        }
        let is_plain = |c: char| c.is_alphabetic() || text::is_combining_mark(c) || matches!(c, '-' | '\'' | '’');
        if word.chars().any(text::is_cjk) {
            push_phrases(&mut run, &mut phrases);
            for token in text::tokens(word) {
                match token.kind {
                    TokenKind::Segment if token.text.chars().all(text::is_cjk) => run.push((token.text, true)),
                    // They repeat parts of the text.
                    TokenKind::Bigram | TokenKind::Character | TokenKind::Joined | TokenKind::Bare => {}
                    TokenKind::Word | TokenKind::Segment => push_phrases(&mut run, &mut phrases),
                }
            }
            push_phrases(&mut run, &mut phrases);
        } else if !word.is_empty() && word.chars().all(is_plain) && !word.chars().any(text::is_unspaced) {
            run.push((word.to_lowercase(), false));
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

/// Adds the phrases of a run of words, each with whether its script has no spaces, and empties the run.
fn push_phrases(run: &mut Vec<(String, bool)>, phrases: &mut Vec<String>) {
    let is_function = |(word, is_unspaced): &(String, bool)| {
        function_words::is_any(word) || !is_unspaced && word.chars().count() == 1
    };
    for count in 1..=WORDS_MAX {
        for words in run.windows(count) {
            if is_function(&words[0]) || is_function(&words[count - 1]) {
                continue;
            }
            let is_unspaced = words[0].1;
            let texts: Vec<&str> = words.iter().map(|(word, _)| word.as_str()).collect();
            let phrase = texts.join(if is_unspaced { "" } else { " " });
            if phrase.chars().count() >= if is_unspaced { UNSPACED_CHARS_MIN } else { CHARS_MIN } {
                phrases.push(phrase);
            }
        }
    }
    run.clear();
}

#[cfg(test)]
mod tests {
    use super::phrases;

    #[test]
    fn phrases_are_runs_of_words_without_codes_and_punctuation() {
        assert_eq!(
            phrases("Bramble Linen Shirt, Green L"),
            ["bramble", "bramble linen", "bramble linen shirt", "green", "linen", "linen shirt", "shirt"]
        );
        assert_eq!(phrases("USB 2.0 cable (USB A male)"), ["cable", "male", "usb", "usb a male"]);
        assert_eq!(phrases("Box of tea with T-Shirt"), ["box", "box of tea", "t-shirt", "tea", "tea with t-shirt"]);
        assert!(phrases("HP8203 4400mAh 12").is_empty() && phrases("").is_empty());
    }

    #[test]
    fn chinese_phrases_are_of_segments() {
        let found = phrases("小熊 白色马克杯 350毫升");
        assert!(found.contains(&"马克杯".to_owned()) && found.contains(&"白色马克杯".to_owned()), "{found:?}");
    }
}
