//! Function words: articles, prepositions and conjunctions, which say nothing about an item.
use frostem::Algorithm;

/// Words in lower case, with their accents.
type FunctionWords = &'static [&'static str];

const ENGLISH: FunctionWords =
    &["a", "an", "and", "at", "by", "for", "from", "in", "of", "on", "or", "the", "to", "with", "without"];
const GERMAN: FunctionWords =
    &["aus", "das", "der", "die", "für", "im", "in", "mit", "ohne", "und", "von", "zum", "zur"];
const FRENCH: FunctionWords = &[
    "au", "aux", "avec", "de", "des", "du", "en", "et", "la", "le", "les", "ou", "par", "pour", "sans", "sur", "un",
    "une",
];
const SPANISH: FunctionWords = &["con", "de", "del", "el", "en", "la", "los", "para", "por", "sin", "un", "y"];
const DUTCH: FunctionWords = &["de", "een", "en", "het", "in", "met", "van", "voor"];
/// Words of the segmenter.
const CHINESE: FunctionWords = &["的", "和", "与"];

/// Returns the function words of a language; none if they are not known.
pub(crate) fn of(language: Algorithm) -> FunctionWords {
    match language {
        Algorithm::English => ENGLISH,
        Algorithm::German => GERMAN,
        Algorithm::French => FRENCH,
        Algorithm::Spanish => SPANISH,
        Algorithm::Dutch => DUTCH,
        _ => &[],
    }
}

/// Returns whether a Chinese word is a function word. It is one in every shop, because no other language has it.
pub(crate) fn is_chinese(word: &str) -> bool {
    CHINESE.contains(&word)
}

/// Returns whether a word is a function word of any language.
pub(crate) fn is_any(word: &str) -> bool {
    [ENGLISH, GERMAN, FRENCH, SPANISH, DUTCH, CHINESE].iter().any(|words| words.contains(&word))
}
