//! The normal form of texts. Texts that a shopper takes for the same have one normal form: titles, queries, synonyms,
//! completions, identifiers, facets and filters are all compared by it.
use std::{borrow::Cow, sync::OnceLock};
use unicode_normalization::UnicodeNormalization;

/// How often HTML entities are decoded, because exports of shops escape them repeatedly ("&amp;eacute;").
const ENTITY_ROUNDS_MAX: usize = 3;

/// Combining marks that are ignored: accents of Latin, Greek and Cyrillic, points of Hebrew, vowel marks of Arabic and
/// Syriac. Marks of other scripts are letters' parts: vowels of Indic scripts, sound marks of kana.
const IGNORED_MARKS: &[(char, char)] = &[
    // Without the iota subscript, whose capital is a letter.
    ('\u{300}', '\u{344}'),
    ('\u{346}', '\u{36f}'),
    ('\u{483}', '\u{487}'),
    ('\u{591}', '\u{5bd}'),
    ('\u{5bf}', '\u{5bf}'),
    ('\u{5c1}', '\u{5c2}'),
    ('\u{5c4}', '\u{5c5}'),
    ('\u{5c7}', '\u{5c7}'),
    ('\u{610}', '\u{61a}'),
    // A line that stretches Arabic words.
    ('\u{640}', '\u{640}'),
    ('\u{64b}', '\u{65f}'),
    ('\u{670}', '\u{670}'),
    ('\u{6d6}', '\u{6dc}'),
    ('\u{6df}', '\u{6e4}'),
    ('\u{6e7}', '\u{6e8}'),
    ('\u{6ea}', '\u{6ed}'),
    ('\u{711}', '\u{711}'),
    ('\u{730}', '\u{74a}'),
    ('\u{8ca}', '\u{8e1}'),
    ('\u{8e3}', '\u{8ff}'),
    ('\u{1ab0}', '\u{1aff}'),
    ('\u{1dc0}', '\u{1dff}'),
    ('\u{20d0}', '\u{20ff}'),
    ('\u{fe20}', '\u{fe2f}'),
];

/// Unicode's Default_Ignorable_Code_Point: soft hyphens, joiners, direction marks, variation selectors.
const IGNORABLE: &[(char, char)] = &[
    ('\u{ad}', '\u{ad}'),
    ('\u{34f}', '\u{34f}'),
    ('\u{61c}', '\u{61c}'),
    ('\u{115f}', '\u{1160}'),
    ('\u{17b4}', '\u{17b5}'),
    ('\u{180b}', '\u{180f}'),
    ('\u{200b}', '\u{200f}'),
    ('\u{202a}', '\u{202e}'),
    ('\u{2060}', '\u{206f}'),
    ('\u{3164}', '\u{3164}'),
    ('\u{fe00}', '\u{fe0f}'),
    ('\u{feff}', '\u{feff}'),
    ('\u{ffa0}', '\u{ffa0}'),
    ('\u{fff0}', '\u{fff8}'),
    ('\u{1bca0}', '\u{1bca3}'),
    ('\u{1d173}', '\u{1d17a}'),
    ('\u{e0000}', '\u{e0fff}'),
];

/// Characters that Unicode does not decompose but shoppers write otherwise, in lower case: letters with strokes and
/// ligatures (as in CLDR's Latin-ASCII), forms of Arabic letters, and typographic punctuation. Sorted.
const REPLACED: &[(char, &str)] = &[
    ('`', "'"),
    ('×', "x"),
    ('æ', "ae"),
    ('ð', "d"),
    ('ø', "o"),
    ('þ', "th"),
    ('đ', "d"),
    ('ħ', "h"),
    ('ł', "l"),
    ('ŋ', "n"),
    ('œ', "oe"),
    ('ŧ', "t"),
    ('ƀ', "b"),
    ('ƒ', "f"),
    ('ƚ', "l"),
    ('ƶ', "z"),
    ('ǥ', "g"),
    ('ȼ', "c"),
    ('ɇ', "e"),
    ('ɉ', "j"),
    ('ɍ', "r"),
    ('ɏ', "y"),
    ('ɓ', "b"),
    ('ɔ', "o"),
    ('ɖ', "d"),
    ('ɗ', "d"),
    ('ə', "e"),
    ('ɛ', "e"),
    ('ɨ', "i"),
    ('ʉ', "u"),
    ('ʹ', "'"),
    ('ʻ', "'"),
    ('ʼ', "'"),
    // Alef maksura and teh marbuta; Persian kaf and yeh.
    ('ة', "ه"),
    ('ى', "ي"),
    ('ک', "ك"),
    ('ی', "ي"),
    ('‐', "-"),
    ('‒', "-"),
    ('–', "-"),
    ('—', "-"),
    ('―', "-"),
    ('‘', "'"),
    ('’', "'"),
    ('‚', "'"),
    ('‛', "'"),
    ('“', "\""),
    ('”', "\""),
    ('„', "\""),
    ('‟', "\""),
    ('′', "'"),
    ('⁄', "/"),
    ('−', "-"),
];

/// The zeros of Unicode's decimal digits that do not decompose to ASCII; the digits 1 to 9 follow each. Sorted.
const ZEROS: &[u32] = &[
    0x660, 0x6f0, 0x7c0, 0x966, 0x9e6, 0xa66, 0xae6, 0xb66, 0xbe6, 0xc66, 0xce6, 0xd66, 0xde6, 0xe50, 0xed0, 0xf20,
    0x1040, 0x1090, 0x17e0, 0x1810, 0x1946, 0x19d0, 0x1a80, 0x1a90, 0x1b50, 0x1bb0, 0x1c40, 0x1c50, 0xa620, 0xa8d0,
    0xa900, 0xa9d0, 0xa9f0, 0xaa50, 0xabf0, 0x104a0, 0x10d30, 0x11066, 0x110f0, 0x11136, 0x111d0, 0x112f0, 0x11450,
    0x114d0, 0x11650, 0x116c0, 0x11730, 0x118e0, 0x11950, 0x11c50, 0x11d50, 0x11da0, 0x16a60, 0x16ac0, 0x16b50,
    0x1e140, 0x1e2f0, 0x1e950,
];

/// Returns the normal form of a text:
///
/// 1. HTML entities are decoded; trademark signs are removed; `&` becomes the word "and".
/// 2. Compatibility decomposition (NFKD): full-width letters, ligatures, superscripts and fractions become plain ones.
/// 3. Invisible characters and accents are removed (but not the vowel and sound marks of Indic scripts and kana).
/// 4. Full case folding ("ß" becomes "ss", a final sigma a sigma), letters with strokes become plain ones, all decimal
///    digits ASCII, traditional Chinese characters simplified, typographic quotes and dashes ASCII.
/// 5. Composition (NFC); white space and control characters collapse to single spaces, trimmed.
///
/// The normal form of a normal form is itself.
pub fn normalize(text: &str) -> String {
    let has_entities = text.contains('&') && text.contains(';');
    if text.is_ascii() && !has_entities {
        return normalize_ascii(text);
    }
    let mut normal = Normal { text: String::with_capacity(text.len()), space_due: false };
    // Canonical order first: the iota subscript, a mark that becomes a letter, comes after other marks.
    for c in decode_entities(text).nfd() {
        match c {
            '\u{2122}' | '\u{2120}' | '\u{ae}' | '\u{a9}' | '\u{2117}' => normal.space_due = true,
            // An acute accent decomposes to a space with a mark, but is typed as an apostrophe.
            '\u{b4}' | '\u{1ffd}' => normal.push('\''),
            _ => {
                if is_fraction_sign(c) && normal.text.ends_with(|c: char| c.is_ascii_digit()) {
                    normal.push(' ');
                }
                std::iter::once(c).nfkd().for_each(|part| normal.push_folded(part));
            }
        }
    }
    match normal.text.is_ascii() {
        true => normal.text,
        // Decomposed again, because marks that were sent separately may be in another order.
        false => normal.text.nfd().nfc().collect(),
    }
}

/// Returns the normal form of an ASCII text without entities: most texts of most catalogues.
fn normalize_ascii(text: &str) -> String {
    let (mut normal, mut space_due) = (Vec::with_capacity(text.len()), false);
    for byte in text.bytes() {
        if byte == b' ' || byte.is_ascii_control() {
            space_due = true;
            continue;
        }
        if (space_due || byte == b'&') && !normal.is_empty() {
            normal.push(b' ');
        }
        space_due = byte == b'&';
        match byte {
            b'&' => normal.extend(b"and"),
            b'`' => normal.push(b'\''),
            _ => normal.push(byte.to_ascii_lowercase()),
        }
    }
    String::from_utf8(normal).expect("ASCII is UTF-8")
}

/// A normal form under construction.
struct Normal {
    text: String,
    space_due: bool,
}

impl Normal {
    fn push(&mut self, c: char) {
        if c.is_whitespace() || c.is_control() {
            self.space_due = true;
            return;
        }
        if std::mem::take(&mut self.space_due) && !self.text.is_empty() {
            self.text.push(' ');
        }
        self.text.push(c);
    }

    /// Pushes the folded form of a decomposed character.
    fn push_folded(&mut self, c: char) {
        if c.is_ascii() && c != '&' && c != '`' {
            self.push(c.to_ascii_lowercase());
        } else if c == '&' {
            " and ".chars().for_each(|c| self.push(c));
        } else if !is_in(IGNORABLE, c) && !is_in(IGNORED_MARKS, c) {
            // Lower case of upper case is full case folding, also for letters whose capital is several letters.
            for c in c.to_lowercase().flat_map(char::to_uppercase).flat_map(char::to_lowercase) {
                self.push_replaced(c);
            }
        }
    }

    fn push_replaced(&mut self, c: char) {
        if let Ok(at) = REPLACED.binary_search_by_key(&c, |(from, _)| *from) {
            REPLACED[at].1.chars().for_each(|c| self.push(c));
        } else if let Some(digit) = digit(c) {
            self.push(digit);
        } else {
            self.push(simplified(c));
        }
    }
}

/// Decodes HTML entities, also repeatedly escaped ones.
pub fn decode_entities(text: &str) -> Cow<'_, str> {
    let mut text = Cow::Borrowed(text);
    for _ in 0..ENTITY_ROUNDS_MAX {
        if !text.contains('&') {
            break;
        }
        match html_escape::decode_html_entities(&text) {
            Cow::Owned(decoded) if decoded != text => text = Cow::Owned(decoded),
            _ => break,
        }
    }
    text
}

fn is_in(ranges: &[(char, char)], c: char) -> bool {
    let after = ranges.partition_point(|(first, _)| *first <= c);
    after > 0 && c <= ranges[after - 1].1
}

/// Returns true for a character such as "½".
fn is_fraction_sign(c: char) -> bool {
    matches!(c, '\u{bc}'..='\u{be}' | '\u{2150}'..='\u{215e}' | '\u{2189}')
}

/// Returns the ASCII digit of a decimal digit of another script.
fn digit(c: char) -> Option<char> {
    let zero = ZEROS[..ZEROS.partition_point(|zero| *zero <= c as u32)].last()?;
    char::from_digit(c as u32 - zero, 10)
}

/// Returns the simplified form of a traditional Chinese character, and any other character unchanged.
fn simplified(c: char) -> char {
    static PAIRS: OnceLock<Vec<(char, char)>> = OnceLock::new();
    if !super::is_cjk(c) {
        return c;
    }
    let pairs = PAIRS.get_or_init(|| {
        let lines = include_str!("simplified.txt").lines().filter(|line| !line.starts_with('#'));
        lines.filter_map(|line| line.chars().next().zip(line.chars().nth(1))).collect()
    });
    pairs.binary_search_by_key(&c, |(from, _)| *from).map_or(c, |at| pairs[at].1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all_chars() -> impl Iterator<Item = char> {
        (0..=u32::from(char::MAX)).filter_map(char::from_u32)
    }

    #[test]
    fn texts_that_a_shopper_takes_for_the_same_have_one_normal_form() {
        for (same, normal) in [
            (&["  Ｒｅｄ\t\n MUG ", "red mug", "ｒｅｄ　ｍｕｇ"][..], "red mug"),
            (&["Blokko™", "BLOKKO®", "blokko", "Blokko&trade;", "blokko&#174;"], "blokko"),
            (&["Ёлка", "елка", "ЕЛКА", "е\u{308}лка"], "елка"),
            (&["ΚΟΥΠΑ", "κούπα", "Κούπα"], "κουπα"),
            (&["ΠΟΤΗΡΙΟΣ", "ποτηριος", "ποτηριοσ"], "ποτηριοσ"),
            (&["Straßenschuhe", "STRASSENSCHUHE", "STRAẞENSCHUHE"], "strassenschuhe"),
            (&["Smørbrød", "SMORBROD", "smo\u{338}rbrod"], "smorbrod"),
            (&["Kaffee\u{ad}becher", "kaffeebecher", "Kaffee&shy;becher", "kaffee\u{200b}becher"], "kaffeebecher"),
            (&["caf&eacute;", "café", "cafe\u{301}", "CAF&Eacute;", "caf&amp;eacute;", "caf&#xe9;"], "cafe"),
            (&["Black & Decker", "black and decker", "Black&amp;Decker", "BLACK＆DECKER"], "black and decker"),
            (&["Women’s", "women's", "WOMEN´S", "women`s"], "women's"),
            (&["Wi‑Fi", "wi-fi", "WI–FI", "wi−fi"], "wi-fi"),
            (&["1½ in", "1 1/2 IN", "1 ½ in"], "1 1/2 in"),
            (&["٣٤", "३४", "๓๔", "３４", "34"], "34"),
            (&["臺燈", "台灯", "臺灯"], "台灯"),
            (&["ｶﾞﾗｽ", "ガラス", "カ\u{3099}ラス"], "ガラス"),
            (&["أحذية", "احذية", "أَحْذِيَة", "احـذيه"], "احذيه"),
            (&["İstanbul ışık", "istanbul isik"], "istanbul isik"),
            (&["강남", "강남".nfd().collect::<String>().as_str()], "강남"),
            (&["क\u{94d}रि", "क\u{94d}\u{200d}रि"], "क\u{94d}रि"),
            (&[" \u{3000} ", "\u{ad}", "™"], ""),
        ] {
            for text in same {
                assert_eq!(normalize(text), normal, "{text}");
            }
        }
        assert_ne!(normalize("か"), normalize("が"), "a sound mark is another letter");
    }

    proptest! {
        /// A character that is not ASCII, and leaves nothing, chooses the general way.
        #[test]
        fn the_short_way_of_ascii_texts_returns_the_same(text in "[ -:<-~\t\n\u{0}\u{7f}]{0,30}") {
            prop_assert_eq!(normalize(&text), normalize(&format!("{text}\u{ad}")), "{:?}", text);
        }
    }

    /// All scripts with case and all characters with several encodings, because the tables above must not miss one.
    #[test]
    fn case_and_composition_of_any_character_make_no_difference() {
        for c in all_chars().filter(|c| !matches!(c, '™' | '℠' | '´' | '\u{1ffd}')) {
            let (text, normal) = (c.to_string(), normalize(&c.to_string()));
            assert_eq!(normalize(&normal), normal, "{c:?} again");
            let others: [String; 6] = [
                text.to_uppercase(),
                text.to_lowercase(),
                text.nfd().collect(),
                text.nfc().collect(),
                text.nfkd().collect(),
                text.nfkc().collect(),
            ];
            for other in others {
                assert_eq!(normalize(&other), normal, "{c:?} and {other:?}");
            }
        }
    }

    #[test]
    fn the_tables_are_sorted_and_their_results_are_normal() {
        assert!(REPLACED.is_sorted_by_key(|(from, _)| *from) && ZEROS.is_sorted());
        assert!([IGNORED_MARKS, IGNORABLE].iter().all(|ranges| ranges.is_sorted()));
        for (_, to) in REPLACED {
            assert_eq!(normalize(to), *to);
        }
        let pairs = include_str!("simplified.txt").lines().filter(|line| !line.starts_with('#'));
        assert!(pairs.clone().count() > 4000 && pairs.clone().is_sorted());
        for pair in pairs {
            let [from, to] = pair.chars().collect::<Vec<char>>()[..] else { panic!("{pair}") };
            assert_eq!(normalize(&from.to_string()), to.to_string(), "{pair}");
        }
        let digits: String =
            ZEROS.iter().flat_map(|zero| (0..10).filter_map(move |n| char::from_u32(zero + n))).collect();
        assert_eq!(normalize(&digits), "0123456789".repeat(ZEROS.len()));
    }

    #[test]
    fn marks_may_be_sent_in_any_order() {
        assert_eq!(normalize("ᾀ\u{1e01b}"), normalize("α\u{313}\u{1e01b}\u{345}"));
    }

    proptest! {
        #[test]
        fn a_normal_form_is_its_own_normal_form(text in "\\PC{0,80}|[&a-z;#0-9\u{300}-\u{310}ßΣ™ ½-]{0,30}") {
            let normal = normalize(&text);
            prop_assert_eq!(normalize(&normal), normal.clone());
            prop_assert_eq!(normalize(&text.nfd().collect::<String>()), normal.clone());
            prop_assert_eq!(normal.trim(), &normal);
        }
    }
}
