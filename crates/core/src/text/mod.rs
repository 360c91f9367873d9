//! Text analysis: normalisation, tokenisation and feature hashing. Training and serving share this code, because a term
//! must have the same representation in both.
mod measures;
mod normal;
mod personal;
mod stem;

use jieba_rs::Jieba;
pub use measures::is_unit;
pub use normal::{decode_entities, normalize};
pub use personal::has_personal_data;
use std::{collections::HashSet, sync::OnceLock};
use stem::stem;
pub use unicode_normalization::char::is_combining_mark;

/// The largest number of terms that [`hashed_terms`] returns.
pub const TERMS_MAX: usize = 128;
/// The length at which words are truncated, in characters. Queries do not contain longer words.
pub const WORD_CHARS_MAX: usize = 64;
/// The number of characters of a text that [`hashed_terms`] and [`tokens`] read. The API's limits are lower.
const TEXT_CHARS_MAX: usize = 20_000;
/// Maximum words with hyphens that are joined to one.
const HYPHENATED_MAX: usize = 4;

/// Returns a name in lower case without spaces and punctuation, so that spellings such as `Out of Stock` and
/// `out_of_stock` are equal.
pub fn plain_name(text: &str) -> String {
    text.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

/// The kind of a token, which decides how it must match.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TokenKind {
    /// A stemmed word, delimited by white space or punctuation.
    Word,
    /// A part of a text without spaces: a Chinese, Japanese or Korean word from the segmenter, or two adjacent
    /// letters (with their marks) of Thai, Lao, Khmer or Burmese.
    Segment,
    /// Two adjacent CJK characters that are not already a word.
    Bigram,
    /// One letter of a script without spaces that is not already a segment.
    Character,
    /// The preceding words as one: words with a hyphen ("t-shirt", "tshirt"), letters and digits ("ps 5", "ps5").
    Joined,
    /// The preceding word without its symbols: "c" of "c++".
    Bare,
}

impl TokenKind {
    /// Returns true for the tokens that make up the text; the others repeat parts of them.
    pub fn is_sequential(self) -> bool {
        matches!(self, Self::Word | Self::Segment)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Token {
    pub text: String,
    pub kind: TokenKind,
}

/// Returns the search tokens of a text in text order, with repetitions. Scripts with spaces yield stemmed words with
/// numbers and units in canonical spelling, and joined words after their parts. CJK text yields the words of the
/// segmenter, then the bigrams and single characters that are not words.
pub fn tokens(text: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let pieces = pieces(&normalize(text), Reading::Searched);
    for (at, piece) in pieces.iter().enumerate() {
        match piece.script {
            Script::Spaced => {
                measures::push_word(&piece.text, &mut tokens);
                push_joined(&pieces[..=at], &mut tokens);
            }
            Script::Cjk => push_cjk(&piece.text, &mut tokens),
            Script::SoutheastAsian => push_letters(&piece.text, &mut tokens),
        }
    }
    tokens
}

/// Returns the unstemmed words of scripts with spaces, in normal form.
pub fn written_words(text: &str) -> Vec<String> {
    let pieces = pieces(&normalize(text), Reading::Searched).into_iter();
    pieces.filter(|piece| piece.script == Script::Spaced).map(|piece| piece.text).collect()
}

/// Returns words that are written with a hyphen as one: "tshirt" of "T-Shirt".
pub fn written_compounds(text: &str) -> Vec<String> {
    let pieces = pieces(&normalize(text), Reading::Searched);
    (0..pieces.len()).flat_map(|at| hyphenated(&pieces[..=at])).collect()
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
        match piece.script {
            Script::Spaced => terms.push('w', &stem(&piece.text)),
            Script::Cjk | Script::SoutheastAsian => {
                piece.text.chars().for_each(|c| terms.push('c', c.encode_utf8(&mut [0; 4])));
            }
        }
    }
    for piece in pieces.iter().filter(|piece| piece.script != Script::Spaced) {
        grams(&piece.text, 2).for_each(|gram| terms.push('b', gram));
    }
    let words = pieces.iter().filter(|piece| piece.script == Script::Spaced);
    let bounded: Vec<String> = words.map(|piece| format!("^{}$", piece.text)).collect();
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

/// Hashes kind and term by FNV-1a and a finalizer, because the low bits of plain FNV are weak for short terms. The same on
/// all machines and in all versions, because bundles depend on it.
pub fn stable_hash(kind: char, term: &str) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in std::iter::once(kind as u8).chain(term.bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^ (hash >> 33)
}

/// A word, or a run of characters of a script without spaces.
#[derive(Debug, Default)]
struct Piece {
    text: String,
    script: Script,
    gap: Gap,
}

/// What separates a piece from the one before.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Gap {
    /// Punctuation, or nothing.
    #[default]
    Other,
    Space,
    Hyphen,
}

impl Gap {
    /// Returns the gap that the character at an index forms between two letters or digits.
    fn at(chars: &[char], i: usize) -> Self {
        let is_inside = |c: Option<&char>| c.is_some_and(|c| c.is_alphanumeric() || is_combining_mark(*c));
        if !is_inside(i.checked_sub(1).map(|i| &chars[i])) || !is_inside(chars.get(i + 1)) {
            return Self::Other;
        }
        match chars[i] {
            ' ' => Self::Space,
            '-' => Self::Hyphen,
            _ => Self::Other,
        }
    }
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Script {
    #[default]
    Spaced,
    Cjk,
    SoutheastAsian,
}

impl Script {
    fn of(c: char) -> Self {
        if is_cjk(c) {
            Self::Cjk
        } else if is_southeast_asian(c) && (c.is_alphabetic() || is_combining_mark(c)) {
            Self::SoutheastAsian
        } else {
            Self::Spaced
        }
    }
}

/// The treatment of punctuation between digits.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reading {
    /// All punctuation but the decimal point separates words. Trained bundles depend on it.
    Hashed,
    /// A slash between digits is part of a fraction ("3/4"); quotes after a number mean feet and inches; symbols
    /// after a letter are part of the word ("c++").
    Searched,
}

/// Splits normalised text into words and runs of scripts without spaces.
fn pieces(normal: &str, reading: Reading) -> Vec<Piece> {
    let chars: Vec<char> = normal.chars().take(TEXT_CHARS_MAX).collect();
    let (mut pieces, mut piece) = (Vec::new(), Piece::default());
    let mut word_chars = 0;
    for (i, &c) in chars.iter().enumerate() {
        let script = Script::of(c);
        if script != piece.script {
            flush(&mut piece, &mut pieces);
            piece.script = script;
        }
        if script != Script::Spaced {
            piece.text.push(c);
            continue;
        }
        if piece.text.is_empty() {
            word_chars = 0;
        }
        let has_room = word_chars < WORD_CHARS_MAX;
        let is_inside = c.is_alphanumeric()
            || is_combining_mark(c) && !piece.text.is_empty()
            || c == '.' && is_joiner(&chars, i)
            || reading == Reading::Searched && (is_fraction(&chars, i) || is_symbol(&chars, i, &piece.text));
        if is_inside {
            if has_room {
                piece.text.push(c);
                word_chars += 1;
            }
        } else if !is_joiner(&chars, i) {
            flush(&mut piece, &mut pieces);
            if reading == Reading::Searched
                && let Some(unit) = quoted_unit(&chars, i)
            {
                pieces.push(Piece { text: unit.to_owned(), ..Piece::default() });
            }
            piece.gap = Gap::at(&chars, i);
        }
    }
    flush(&mut piece, &mut pieces);
    pieces
}

fn flush(piece: &mut Piece, pieces: &mut Vec<Piece>) {
    let piece = std::mem::take(piece);
    if !piece.text.is_empty() {
        pieces.push(piece);
    }
}

/// Returns true for symbols at the end of a word that distinguish products: "c++", "c#".
fn is_symbol(chars: &[char], i: usize, word: &str) -> bool {
    let is_symbol = |c: &char| matches!(c, '+' | '#');
    if word.is_empty() || !is_symbol(&chars[i]) {
        return false;
    }
    // The first symbol of a run decides for the others, so that a run is read once.
    word.ends_with(|c| is_symbol(&c))
        || word.ends_with(char::is_alphabetic)
            && chars[i..].iter().find(|c| !is_symbol(c)).is_none_or(|c| !c.is_alphanumeric())
}

/// Returns true for an apostrophe inside a word ("women's", which becomes "womens") or a decimal point inside a number
/// ("1.5l").
fn is_joiner(chars: &[char], i: usize) -> bool {
    let before = i.checked_sub(1).map(|i| chars[i]);
    let (Some(before), Some(&after)) = (before, chars.get(i + 1)) else {
        return false;
    };
    match chars[i] {
        '\'' => [before, after].iter().all(|c| c.is_alphabetic() && !is_unspaced(*c)),
        '.' => before.is_ascii_digit() && after.is_ascii_digit(),
        _ => false,
    }
}

/// Returns true for a slash between two digits.
fn is_fraction(chars: &[char], i: usize) -> bool {
    let is_digit = |c: Option<&char>| c.is_some_and(char::is_ascii_digit);
    chars[i] == '/' && is_digit(i.checked_sub(1).map(|i| &chars[i])) && is_digit(chars.get(i + 1))
}

/// Returns the unit that quotes after a number mean: 6' is feet, 6" is inches. Two single quotes also mean inches,
/// because the normal form of a double prime is two.
fn quoted_unit(chars: &[char], i: usize) -> Option<&'static str> {
    i.checked_sub(1).filter(|before| chars[*before].is_ascii_digit())?;
    match (chars[i], chars.get(i + 1)) {
        ('"', _) | ('\'', Some('\'')) => Some("in"),
        ('\'', Some(next)) if next.is_alphanumeric() => None,
        ('\'', _) => Some("ft"),
        _ => None,
    }
}

/// Returns true for Han, kana and hangul: scripts that do not separate words reliably.
pub fn is_cjk(c: char) -> bool {
    matches!(c,
        '\u{3040}'..='\u{30ff}' | '\u{3400}'..='\u{4dbf}' | '\u{4e00}'..='\u{9fff}' | '\u{ac00}'..='\u{d7a3}'
        | '\u{f900}'..='\u{faff}' | '\u{20000}'..='\u{3134f}' | '\u{3005}' | '\u{3007}')
}

/// Returns true for Thai, Lao, Burmese and Khmer, which are written without spaces between words.
fn is_southeast_asian(c: char) -> bool {
    matches!(c,
        '\u{e00}'..='\u{eff}' | '\u{1000}'..='\u{109f}' | '\u{1780}'..='\u{17ff}' | '\u{19e0}'..='\u{19ff}'
        | '\u{a9e0}'..='\u{a9ff}' | '\u{aa60}'..='\u{aa7f}')
}

/// Returns true for scripts that do not separate words reliably: a word may begin at any letter.
pub fn is_unspaced(c: char) -> bool {
    is_cjk(c) || is_southeast_asian(c)
}

/// Pushes the joined forms that end with the last piece.
fn push_joined(pieces: &[Piece], tokens: &mut Vec<Token>) {
    let joined = hyphenated(pieces).into_iter().chain(spaced(pieces));
    let joined = joined.filter(|word| !measures::is_measure(word));
    tokens.extend(joined.map(|word| Token { text: stem(&word), kind: TokenKind::Joined }));
}

/// Returns the last piece with the one before, and with all before that hyphens connect, as one word.
fn hyphenated(pieces: &[Piece]) -> Vec<String> {
    // More pieces are not joined, so further ones need not be counted.
    let last = pieces.iter().rev().take(HYPHENATED_MAX);
    let connected = 1 + last.take_while(|piece| piece.gap == Gap::Hyphen).count();
    let is_word = |piece: &Piece| piece.script == Script::Spaced;
    let mut counts = vec![2, connected];
    counts.dedup();
    counts.retain(|count| (2..=connected.min(HYPHENATED_MAX)).contains(count));
    let lasts = counts.into_iter().map(|count| &pieces[pieces.len() - count..]);
    lasts
        .filter(|last| last.iter().all(is_word))
        .map(|last| last.iter().map(|piece| piece.text.as_str()).collect())
        .collect()
}

/// Returns two pieces that a space separates and that are often written as one word: letters and a short number
/// ("ps 5", "3 d"), a letter and a word ("t shirt").
fn spaced(pieces: &[Piece]) -> Option<String> {
    let [.., before, last] = pieces else { return None };
    let is_number = |text: &str| text.len() <= 4 && text.bytes().all(|byte| byte.is_ascii_digit());
    let is_word = |text: &str| text.chars().all(char::is_alphabetic) && !is_unit(text);
    let (a, b) = (before.text.as_str(), last.text.as_str());
    // "a" is an article, and "s" is left of an apostrophe.
    let is_letter =
        |text: &str| text.len() == 1 && text.bytes().all(|b| b.is_ascii_lowercase() && b != b'a' && b != b's');
    let is_joined = is_word(a) && is_number(b)
        || is_number(a) && is_word(b) && b.chars().count() <= 2
        || is_letter(a) && is_word(b) && b.chars().count() >= 3;
    (is_joined && last.gap == Gap::Space).then(|| [a, b].concat())
}

/// Pushes the letters of a script without spaces in pairs, and each letter. Marks belong to the letter before them.
fn push_letters(run: &str, tokens: &mut Vec<Token>) {
    let starts = run.char_indices().filter(|(at, c)| *at == 0 || !is_combining_mark(*c)).map(|(at, _)| at);
    let bounds: Vec<usize> = starts.chain([run.len()]).collect();
    let part = |count: usize, kind| {
        let parts = bounds.windows(count + 1).map(|bounds| run[bounds[0]..bounds[count]].to_owned());
        parts.map(move |text| Token { text, kind }).collect::<Vec<Token>>()
    };
    match bounds.len() {
        2 => tokens.extend(part(1, TokenKind::Segment)),
        _ => tokens.extend(part(2, TokenKind::Segment).into_iter().chain(part(1, TokenKind::Character))),
    }
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
        tokens.push(Token { text, kind: TokenKind::Segment });
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

    /// Returns the tokens that are words, segments or bigrams.
    fn words(text: &str) -> Vec<String> {
        let keep = |token: &Token| token.kind.is_sequential() || token.kind == TokenKind::Bigram;
        tokens(text).into_iter().filter(keep).map(|token| token.text).collect()
    }

    fn of_kind(text: &str, kind: TokenKind) -> Vec<String> {
        tokens(text).into_iter().filter(|token| token.kind == kind).map(|token| token.text).collect()
    }

    #[test]
    fn accents_apostrophes_and_decimals_stay_inside_words() {
        assert_eq!(words("Café Women's 1.5L t-shirt."), ["cafe", "woman", "1.5", "liter", "t", "shirt"]);
    }

    #[test]
    fn words_written_with_a_hyphen_or_a_number_are_also_one_word() {
        assert_eq!(of_kind("T-Shirts, Wi-Fi – PS 5, t shirt", TokenKind::Joined), ["tshirt", "wifi", "ps5", "tshirt"]);
        assert_eq!(of_kind("iPhone-15 3 D, ABC-123-X", TokenKind::Joined), ["iphone15", "3d", "abc123", "abc123x"]);
        assert_eq!(of_kind("10-ft 4 x 8, 8 ounces, salt - pepper, 蓝-色", TokenKind::Joined), [""; 0]);
        assert_eq!(written_compounds("Blue T-Shirt"), ["tshirt"]);
    }

    #[test]
    fn symbols_that_distinguish_products_are_part_of_the_word() {
        assert_eq!(words("C++ for C# (and F#)"), ["c++", "for", "c#", "and", "f#"]);
        assert_eq!(of_kind("C++ C#", TokenKind::Bare), ["c", "c"]);
        assert_eq!(words("#1 18+ e+b c#5"), ["1", "18", "e", "b", "c", "5"]);
    }

    #[test]
    fn marks_are_part_of_the_word() {
        assert_eq!(words("क्रिकेट बैट"), ["क्रिकेट", "बैट"]);
    }

    #[test]
    fn texts_of_southeast_asia_yield_pairs_of_letters() {
        assert_eq!(words("แก้วกาแฟ 2"), ["แก้", "ก้ว", "วก", "กา", "าแ", "แฟ", "2"]);
        for (text, part) in [("แก้วกาแฟ", "กาแฟ"), ("ຈອກກາເຟ", "ກາເຟ"), ("ពែងកាហ្វេ", "ពែង"), ("ကော်ဖီခွက်", "ခွက်")]
        {
            let (whole, part) = (words(text), words(part));
            assert!(!part.is_empty() && part.iter().all(|pair| whole.contains(pair)), "{text}");
        }
        assert_eq!(of_kind("แก้ว", TokenKind::Character), ["แ", "ก้", "ว"]);
        assert_eq!(words("ก"), ["ก"]);
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
