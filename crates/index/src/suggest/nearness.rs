//! How a text may match what is typed.
use lodestone_core::text;

/// Starts inside one text at which a prefix may begin.
pub(super) const STARTS_MAX: usize = 40;
/// A shorter prefix is not corrected: everything is one letter away from it. In characters.
const TYPO_CHARS_MIN: usize = 4;
/// The same for CJK, where a character says more.
const TYPO_CJK_CHARS_MIN: usize = 2;
/// What is left of the strength of a text that has the typed words in another order or with others between them.
pub(super) const HOLDING_FACTOR: f32 = 0.8;
/// What is left of the strength of a text that was mistyped.
pub(super) const ERROR_FACTOR: f32 = 0.5;

/// How a text may match what is typed; the next is tried where nothing does.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Nearness {
    /// The text or a word of it starts so.
    Starting,
    /// It has the words in any order, the last as a prefix.
    Holding,
    /// It would start so with one error mended, which is not in the first character: that is right most of the time.
    ErrorAfterFirst,
    ErrorAtFirst,
}

impl Nearness {
    /// The byte at which a text matches, and the factor of its strength.
    pub(super) fn of(self, normal: &str, typed: &str) -> Option<(u32, f32)> {
        let first = |is_match: &dyn Fn(&str) -> bool| {
            word_starts(normal).into_iter().find(|&byte| is_match(&normal[byte..])).map(|byte| byte as u32)
        };
        match self {
            Self::Starting => Some((first(&|tail| tail.starts_with(typed))?, 1.0)),
            Self::Holding => holds_words(normal, typed).then_some((0, HOLDING_FACTOR)),
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

/// Whether a text has all words of `typed`, the last as a prefix of one.
pub(super) fn holds_words(normal: &str, typed: &str) -> bool {
    let Some((others, last)) = typed.rsplit_once(' ') else { return false };
    others.split(' ').all(|word| normal.split(' ').any(|other| other == word))
        && normal.split(' ').any(|word| word.starts_with(last))
}

/// Whether what is typed is long enough to be corrected.
pub(super) fn may_have_error(typed: &[char]) -> bool {
    let has_cjk = typed.iter().copied().any(text::is_cjk);
    typed.len() >= if has_cjk { TYPO_CJK_CHARS_MIN } else { TYPO_CHARS_MIN }
}

/// The bytes at which words start; each CJK character starts one.
pub(super) fn word_starts(normal: &str) -> Vec<usize> {
    let mut starts = Vec::new();
    let mut before = None;
    for (at, c) in normal.char_indices() {
        let inside = |c: char| c.is_alphanumeric() && !text::is_cjk(c);
        if c.is_alphanumeric() && !(inside(c) && before.is_some_and(|c| inside(c) || c == '\'')) || at == 0 {
            starts.push(at);
        }
        before = Some(c);
    }
    starts.truncate(STARTS_MAX);
    starts
}

/// Whether a beginning of `tail` is one typing error away from `typed`.
fn starts_within_one_error(tail: &str, typed: &[char]) -> bool {
    let mut rest = tail.chars();
    for (i, &c) in typed.iter().enumerate() {
        let here = rest.clone();
        if rest.next() == Some(c) {
            continue;
        }
        let mut after = here.clone();
        let Some(theirs) = after.next() else {
            // The text ends where one more character was typed.
            return i + 1 == typed.len();
        };
        let changed = starts_with(after.clone(), &typed[i + 1..]);
        let added = starts_with(here, &typed[i + 1..]);
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
