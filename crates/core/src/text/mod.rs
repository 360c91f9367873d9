//! Text analysis: normalisation, tokenisation and feature hashing. Training and serving share this code, because a term
//! must have the same representation in both.
mod measures;

use jieba_rs::Jieba;
use std::{collections::HashSet, sync::OnceLock};
use unicode_normalization::{UnicodeNormalization, char::decompose_canonical};

/// The largest number of terms that [`hashed_terms`] returns.
pub const TERMS_MAX: usize = 128;
/// The length at which words are truncated, in characters. Queries do not contain longer words.
pub const WORD_CHARS_MAX: usize = 64;
/// The number of characters of a text that [`hashed_terms`] and [`tokens`] read. The API's limits are lower.
const TEXT_CHARS_MAX: usize = 20_000;

/// The kind of a token, which decides how it must match.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TokenKind {
    /// A stemmed word, delimited by white space or punctuation.
    Word,
    /// A Chinese, Japanese or Korean word from the segmenter.
    CjkWord,
    /// Two adjacent CJK characters that are not already a word.
    Bigram,
    /// One CJK character that is not already a word.
    Character,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Token {
    pub text: String,
    pub kind: TokenKind,
}

/// Returns the normal form: NFKC, lower case, white space and control characters collapsed to single spaces, trimmed.
pub fn normalize(text: &str) -> String {
    let mut normal = String::with_capacity(text.len());
    let mut space_due = false;
    for c in text.nfkc().flat_map(char::to_lowercase) {
        if c.is_whitespace() || c.is_control() {
            space_due = !normal.is_empty();
            continue;
        }
        if space_due {
            normal.push(' ');
            space_due = false;
        }
        normal.push(c);
    }
    normal
}

/// Returns the search tokens of a text in text order, with repetitions. Scripts with spaces yield stemmed words with
/// numbers and units in canonical spelling. CJK text yields the words of the segmenter, then the bigrams and single
/// characters that are not words.
pub fn tokens(text: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    for piece in pieces(&normalize(text), Reading::Searched) {
        match piece {
            Piece::Word(word) => measures::push_word(&word, &mut tokens),
            Piece::Cjk(run) => push_cjk(&run, &mut tokens),
        }
    }
    tokens
}

/// Returns the unstemmed words of scripts with spaces, in lower case and without accents.
pub fn written_words(text: &str) -> Vec<String> {
    pieces(&normalize(text), Reading::Searched).into_iter().filter_map(Piece::into_word).collect()
}

/// Hashes a text's words, the character 3- to 5-grams of its words (with word boundaries), and its CJK characters and
/// bigrams to bucket numbers below `bucket_count`. The result is the same on all machines and in all versions, because
/// trained bundles depend on it. It has at most [`TERMS_MAX`] distinct numbers, in the order words and CJK characters,
/// CJK bigrams, n-grams, and is empty only for an empty text. A `bucket_count` of 0 counts as 1.
pub fn hashed_terms(text: &str, bucket_count: u32) -> Vec<u32> {
    if text.is_empty() {
        return Vec::new();
    }
    let pieces = pieces(&normalize(text), Reading::Hashed);
    let mut terms = Terms { buckets: bucket_count.max(1), seen: HashSet::new(), ids: Vec::with_capacity(TERMS_MAX) };
    for piece in &pieces {
        match piece {
            Piece::Word(word) => terms.push('w', &stem(word)),
            Piece::Cjk(run) => run.chars().for_each(|c| terms.push('c', c.encode_utf8(&mut [0; 4]))),
        }
    }
    for piece in &pieces {
        if let Piece::Cjk(run) = piece {
            grams(run, 2).for_each(|gram| terms.push('b', gram));
        }
    }
    let bounded: Vec<String> = pieces.iter().filter_map(Piece::word).map(|word| format!("^{word}$")).collect();
    for length in 3..=5 {
        for word in &bounded {
            grams(word, length).for_each(|gram| terms.push('g', gram));
        }
    }
    if terms.ids.is_empty() {
        terms.push('t', text);
    }
    terms.ids
}

struct Terms {
    buckets: u32,
    seen: HashSet<u32>,
    ids: Vec<u32>,
}

impl Terms {
    fn push(&mut self, kind: char, term: &str) {
        if self.ids.len() == TERMS_MAX {
            return;
        }
        let id = (stable_hash(kind, term) % u64::from(self.buckets)) as u32;
        if self.seen.insert(id) {
            self.ids.push(id);
        }
    }
}

/// Hashes kind and term by FNV-1a and a finalizer, because the low bits of plain FNV are weak for short terms.
fn stable_hash(kind: char, term: &str) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in std::iter::once(kind as u8).chain(term.bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^ (hash >> 33)
}

enum Piece {
    Word(String),
    Cjk(String),
}

/// The treatment of punctuation between digits.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reading {
    /// All punctuation but the decimal point separates words. Trained bundles depend on it.
    Hashed,
    /// A slash between digits is part of a fraction ("3/4"); quotes after a number mean feet and inches.
    Searched,
}

impl Piece {
    fn into_word(self) -> Option<String> {
        match self {
            Self::Word(word) => Some(word),
            Self::Cjk(_) => None,
        }
    }

    fn word(&self) -> Option<&str> {
        match self {
            Self::Word(word) => Some(word),
            Self::Cjk(_) => None,
        }
    }
}

/// Splits normalised text into words without accents and runs of CJK characters.
fn pieces(normal: &str, reading: Reading) -> Vec<Piece> {
    let chars: Vec<char> = normal.chars().take(TEXT_CHARS_MAX).collect();
    let (mut pieces, mut word, mut run) = (Vec::new(), String::new(), String::new());
    let mut word_chars = 0;
    for (i, &c) in chars.iter().enumerate() {
        if is_cjk(c) {
            flush(&mut word, Piece::Word, &mut pieces);
            run.push(c);
            continue;
        }
        flush(&mut run, Piece::Cjk, &mut pieces);
        if word.is_empty() {
            word_chars = 0;
        }
        if c.is_alphanumeric() {
            if word_chars < WORD_CHARS_MAX {
                word.push(without_accent(c));
                word_chars += 1;
            }
        } else if reading == Reading::Searched && is_fraction(&chars, i) && word_chars < WORD_CHARS_MAX {
            word.push('/');
            word_chars += 1;
        } else if !(is_joiner(&chars, i) || is_combining(c)) {
            flush(&mut word, Piece::Word, &mut pieces);
            if reading == Reading::Searched
                && let Some(unit) = quoted_unit(&chars, i)
            {
                pieces.push(Piece::Word(unit.to_owned()));
            }
        } else if c == '.' && word_chars < WORD_CHARS_MAX {
            word.push(c);
            word_chars += 1;
        }
    }
    flush(&mut word, Piece::Word, &mut pieces);
    flush(&mut run, Piece::Cjk, &mut pieces);
    pieces
}

fn flush(text: &mut String, wrap: impl Fn(String) -> Piece, pieces: &mut Vec<Piece>) {
    if !text.is_empty() {
        pieces.push(wrap(std::mem::take(text)));
    }
}

/// Returns true for an apostrophe inside a word ("women's") or a decimal point inside a number ("1.5l").
fn is_joiner(chars: &[char], i: usize) -> bool {
    let before = i.checked_sub(1).map(|i| chars[i]);
    let (Some(before), Some(&after)) = (before, chars.get(i + 1)) else {
        return false;
    };
    match chars[i] {
        '\'' | '\u{2019}' => before.is_alphabetic() && after.is_alphabetic() && !is_cjk(before) && !is_cjk(after),
        '.' => before.is_ascii_digit() && after.is_ascii_digit(),
        _ => false,
    }
}

/// Returns true for a slash between two digits.
fn is_fraction(chars: &[char], i: usize) -> bool {
    let is_digit = |c: Option<&char>| c.is_some_and(char::is_ascii_digit);
    matches!(chars[i], '/' | '\u{2044}') && is_digit(i.checked_sub(1).map(|i| &chars[i])) && is_digit(chars.get(i + 1))
}

/// Returns the unit that quotes after a number mean: 6' is feet, 6" is inches. Two single primes also mean inches,
/// because NFKC decomposes a double prime into two.
fn quoted_unit(chars: &[char], i: usize) -> Option<&'static str> {
    const SINGLE: [char; 3] = ['\'', '\u{2019}', '\u{2032}'];
    i.checked_sub(1).filter(|before| chars[*before].is_ascii_digit())?;
    match chars[i] {
        '"' | '\u{201d}' => Some("in"),
        c if SINGLE.contains(&c) => match chars.get(i + 1) {
            Some(next) if SINGLE.contains(next) => Some("in"),
            Some(next) if next.is_alphanumeric() => None,
            _ => Some("ft"),
        },
        _ => None,
    }
}

fn is_combining(c: char) -> bool {
    matches!(c, '\u{300}'..='\u{36f}')
}

/// Returns the base letter of an accented Latin letter, and any other character unchanged.
fn without_accent(c: char) -> char {
    if !matches!(c, '\u{c0}'..='\u{24f}' | '\u{1e00}'..='\u{1eff}') {
        return c;
    }
    let mut base = None;
    decompose_canonical(c, |part| {
        base.get_or_insert(part);
    });
    base.unwrap_or(c)
}

/// Returns true for Han, kana and hangul: scripts that do not separate words reliably.
pub fn is_cjk(c: char) -> bool {
    matches!(c,
        '\u{3040}'..='\u{30ff}' | '\u{3400}'..='\u{4dbf}' | '\u{4e00}'..='\u{9fff}' | '\u{ac00}'..='\u{d7a3}'
        | '\u{f900}'..='\u{faff}' | '\u{20000}'..='\u{3134f}' | '\u{3005}' | '\u{3007}')
}

/// Removes the plural ending of an English word. The stemmer is light on purpose, because a wrong stem hides products.
fn stem(word: &str) -> String {
    let length = word.len();
    if length <= 3 || !word.bytes().all(|b| b.is_ascii_lowercase()) {
        return word.to_owned();
    }
    if length > 4
        && let Some(base) = word.strip_suffix("ies").or_else(|| word.strip_suffix("ie"))
    {
        return format!("{base}y");
    }
    for ending in ["sses", "shes", "ches", "xes", "zzes"] {
        if word.ends_with(ending) {
            return word[..length - 2].to_owned();
        }
    }
    if ["ss", "us", "is"].iter().any(|ending| word.ends_with(ending)) {
        return word.to_owned();
    }
    word.strip_suffix('s').unwrap_or(word).to_owned()
}

fn jieba() -> &'static Jieba {
    static JIEBA: OnceLock<Jieba> = OnceLock::new();
    JIEBA.get_or_init(Jieba::new)
}

/// Loads the Chinese dictionary, so that the first request does not wait for it.
pub fn warm_up() {
    jieba();
}

fn push_cjk(run: &str, tokens: &mut Vec<Token>) {
    let first = tokens.len();
    for token in jieba().cut(run, false) {
        let text = measures::cjk_unit(token.word, tokens).unwrap_or(token.word).to_owned();
        tokens.push(Token { text, kind: TokenKind::CjkWord });
    }
    let known: HashSet<String> = tokens[first..].iter().map(|token| token.text.clone()).collect();
    for (length, kind) in [(2, TokenKind::Bigram), (1, TokenKind::Character)] {
        for gram in grams(run, length).filter(|gram| !known.contains(*gram)) {
            tokens.push(Token { text: gram.to_owned(), kind });
        }
    }
}

/// Returns the substrings of `length` characters in text order.
pub fn grams(text: &str, length: usize) -> impl Iterator<Item = &str> {
    let starts: Vec<usize> = text.char_indices().map(|(at, _)| at).chain(std::iter::once(text.len())).collect();
    let count = starts.len().saturating_sub(length);
    (0..count).map(move |i| &text[starts[i]..starts[i + length]])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Returns all tokens but single characters, which only the lexical index uses.
    fn words(text: &str) -> Vec<String> {
        let keep = |token: &Token| token.kind != TokenKind::Character;
        tokens(text).into_iter().filter(keep).map(|token| token.text).collect()
    }

    #[test]
    fn wide_letters_capitals_and_spaces_have_one_normal_form() {
        assert_eq!(normalize("  Ｒｅｄ\t\n MUG "), "red mug");
        assert_eq!(normalize(" \u{3000} "), "");
    }

    #[test]
    fn singular_and_plural_have_the_same_stem() {
        let pairs = [("mugs", "mug"), ("boxes", "box"), ("glasses", "glass"), ("berries", "berry"), ("shoes", "shoe")];
        for (plural, singular) in pairs.into_iter().chain([("cookies", "cookie"), ("watches", "watch")]) {
            assert_eq!(words(plural), words(singular));
        }
        assert_eq!(words("bus gas dress"), ["bus", "gas", "dress"]);
    }

    #[test]
    fn accents_apostrophes_and_decimals_stay_inside_words() {
        assert_eq!(words("Café Women's 1.5L t-shirt."), ["cafe", "women", "1.5", "liter", "t", "shirt"]);
    }

    #[test]
    fn all_spellings_of_a_measure_have_the_same_tokens() {
        for same in ["10 ft. x 8 ft.", "10' x 8'", "10ft by 8feet", "10 foot x 8 foot", "10-ft × 8 ft"] {
            let found: Vec<String> = words(same).into_iter().filter(|word| word != "x").collect();
            assert_eq!(found, ["10", "ft", "8", "ft"], "{same}");
        }
        assert_eq!(words("3/4\" pipe, ½ inch"), ["3/4", "in", "pipe", "1/2", "in"]);
        assert_eq!(words("4x8 18v 2 cu. ft."), ["4", "x", "8", "18", "volt", "2", "cu", "ft"]);
        assert_eq!(words("foot massager, dcd780c2, size l"), ["foot", "massager", "dcd780c2", "size", "l"]);
        assert_eq!(words("500 毫升")[..2], words("500ml"));
        assert_eq!(words("90's style, and/or"), ["90", "s", "style", "and", "or"]);
    }

    #[test]
    fn chinese_text_yields_words_and_bigrams() {
        let found = words("蓝色马克杯 500ml");
        for expected in ["蓝色", "马克", "克杯", "500", "ml"] {
            assert!(found.iter().any(|word| word == expected), "{expected} in {found:?}");
        }
        assert!(tokens("马克杯").iter().any(|token| token.text == "杯"));
    }

    #[test]
    fn hashed_terms_are_stable() {
        assert_eq!(hashed_terms("mug", 1 << 16), hashed_terms(" MUG ", 1 << 16));
        assert_eq!(stable_hash('w', "mug"), 16_922_104_361_630_864_339, "a trained bundle depends on it");
    }

    #[test]
    fn a_misspelling_shares_terms_with_the_correct_word() {
        let (correct, misspelled) = (hashed_terms("chocolate", 1 << 20), hashed_terms("choclate", 1 << 20));
        let shared = correct.iter().filter(|id| misspelled.contains(id)).count();
        assert!(shared * 3 > correct.len(), "{shared} of {}", correct.len());
    }

    proptest! {
        #[test]
        fn hashed_terms_are_bounded_distinct_and_not_empty(text in ".{0,300}", buckets in 0u32..5000) {
            let terms = hashed_terms(&text, buckets);
            prop_assert_eq!(terms.is_empty(), text.is_empty());
            prop_assert!(terms.len() <= TERMS_MAX && terms.iter().all(|&id| id < buckets.max(1)));
            prop_assert_eq!(terms.iter().collect::<HashSet<_>>().len(), terms.len());
        }

        #[test]
        fn normalisation_does_not_change_the_tokens(text in "\\PC{0,80}") {
            prop_assert_eq!(words(&normalize(&text)), words(&text));
        }
    }
}
