//! Matching of one text with a typed prefix.
use lodestone_catalog::is_word_boundary;
use lodestone_core::text;

/// Word starts of one text at which a prefix may match.
pub(super) const STARTS_MAX: usize = 40;
/// Minimum characters of a prefix that is corrected, because almost every text is one edit away from a shorter one.
const TYPO_CHARS_MIN: usize = 4;
/// The same for CJK, where a character carries more information.
const TYPO_CJK_CHARS_MIN: usize = 2;
/// Factor of the strength of a text that has the typed words in another order or with others between them.
pub(super) const ALL_WORDS_FACTOR: f32 = 0.8;
/// Factor of the strength of a text that matches after a correction.
pub(super) const ERROR_FACTOR: f32 = 0.5;

/// Kinds of matches, from strict to loose. A kind is tried only if no text matches by a stricter one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum MatchKind {
    /// The prefix matches at the start of the text or of a word.
    Prefix,
    /// The text has all words in any order, the last as a prefix.
    AllWords,
    /// The prefix matches after the correction of one error that is not in the first character, which is rarely wrong.
    ErrorAfterFirst,
    /// The prefix matches after the correction of its first character.
    ErrorAtFirst,
}

impl MatchKind {
    /// Returns the byte at which a text matches, and the factor of its strength; none if the text does not match.
    pub(super) fn of(self, normal: &str, typed: &str) -> Option<(u32, f32)> {
        let first = |is_match: &dyn Fn(&str) -> bool| {
            word_starts(normal).into_iter().find(|&byte| is_match(&normal[byte..])).map(|byte| byte as u32)
        };
        match self {
            Self::Prefix => Some((first(&|tail| tail.starts_with(typed))?, 1.0)),
            Self::AllWords => has_all_words(normal, typed).then_some((0, ALL_WORDS_FACTOR)),
            Self::ErrorAfterFirst | Self::ErrorAtFirst => {
                let chars: Vec<char> = typed.chars().collect();
                if !may_have_error(&chars) {
                    return None;
                }
                let is_first_right = self == Self::ErrorAfterFirst;
                let is_match =
                    |tail: &str| tail.starts_with(chars[0]) == is_first_right && starts_within_one_error(tail, &chars);
                Some((first(&is_match)?, ERROR_FACTOR))
            }
        }
    }
}

/// Returns true if a text has all words of `typed`, the last as a prefix of a word. False if `typed` is a single word.
pub(super) fn has_all_words(normal: &str, typed: &str) -> bool {
    let Some((others, last)) = typed.rsplit_once(' ') else { return false };
    has_word(normal, last, true) && others.split(' ').all(|word| has_word(normal, word, false))
}

/// Returns true if a text has a word, or one that begins with it. Every letter of a script without spaces has word
/// boundaries on both sides.
fn has_word(normal: &str, word: &str, is_prefix: bool) -> bool {
    normal.match_indices(word).any(|(at, found)| {
        let (before, after) = (&normal[..at], &normal[at + found.len()..]);
        is_word_boundary(before.chars().next_back(), found.chars().next())
            && (is_prefix || is_word_boundary(found.chars().next_back(), after.chars().next()))
    })
}

/// Returns true if a typed character may be wrong or too many. A CJK character is a word or half of one, and another one
/// is another word: red instead of white.
pub(super) fn may_be_wrong(typed: char) -> bool {
    !text::is_cjk(typed)
}

/// Returns true if a prefix is long enough to be corrected.
pub(super) fn may_have_error(typed: &[char]) -> bool {
    let has_cjk = typed.iter().copied().any(text::is_cjk);
    typed.len() >= if has_cjk { TYPO_CJK_CHARS_MIN } else { TYPO_CHARS_MIN }
}

/// Returns the bytes at which words start, at most [`STARTS_MAX`]. Each letter of a script without spaces starts a
/// word.
pub(super) fn word_starts(normal: &str) -> Vec<usize> {
    let mut starts = Vec::new();
    let mut before = None;
    for (at, c) in normal.char_indices() {
        let inside = |c: char| c.is_alphanumeric() && !text::is_unspaced(c);
        let is_mark = text::is_combining_mark(c);
        if c.is_alphanumeric() && !is_mark && !(inside(c) && before.is_some_and(|c| inside(c) || c == '\'')) || at == 0
        {
            starts.push(at);
        }
        if is_mark {
            continue;
        }
        before = Some(c);
    }
    starts.truncate(STARTS_MAX);
    starts
}

/// Returns true if a prefix of `tail` is at most one edit away from `typed`: a character changed or added, unless it is
/// right ([`may_be_wrong`]), or left out, or two neighbours exchanged.
fn starts_within_one_error(tail: &str, typed: &[char]) -> bool {
    let mut rest = tail.chars();
    for (i, &c) in typed.iter().enumerate() {
        let here = rest.clone();
        if rest.next() == Some(c) {
            continue;
        }
        let mut after = here.clone();
        let Some(theirs) = after.next() else {
            // The text ends here; at most one typed character may remain.
            return i + 1 == typed.len() && may_be_wrong(c);
        };
        let changed = may_be_wrong(c) && starts_with(after.clone(), &typed[i + 1..]);
        let added = may_be_wrong(c) && starts_with(here, &typed[i + 1..]);
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
