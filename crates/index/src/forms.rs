//! Inflected forms: the words of the catalogue that share a stem with a query's word.
use crate::function_words;
use ahash::AHashMap;
use frostem::{Algorithm, Stemmer};
use lodestone_core::text::{self, Token};
use std::{collections::hash_map::Entry, fmt, str::FromStr};

/// Maximum forms of a word that are searched.
const FORMS_MAX: usize = 8;

/// The languages of a shop's texts, whose inflections are known.
#[derive(Clone)]
pub struct Languages(Vec<Stemmer>);

/// The reason why a text is not a list of languages.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{name}` is not a language that can be stemmed; the languages are {LANGUAGES}")]
pub struct UnknownLanguage {
    name: String,
}

const LANGUAGES: &str = "ar, da, de, el, en, es, fi, fr, hu, it, nl, no, pl, pt, ro, ru, sv, tr";

impl Default for Languages {
    /// English.
    fn default() -> Self {
        Self(vec![Stemmer::new(Algorithm::English)])
    }
}

impl FromStr for Languages {
    type Err = UnknownLanguage;

    /// Parses ISO 639-1 codes separated by commas, such as `en,de`.
    fn from_str(text: &str) -> Result<Self, UnknownLanguage> {
        let stemmer = |name: &str| {
            let unknown = || UnknownLanguage { name: name.to_owned() };
            let is_known = LANGUAGES.split(", ").any(|known| known == name);
            Stemmer::try_from_name(name).ok().filter(|_| is_known).ok_or_else(unknown)
        };
        text.split(',').map(|name| stemmer(name.trim())).collect::<Result<Vec<Stemmer>, _>>().map(Self)
    }
}

impl fmt::Debug for Languages {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|stemmer| stemmer.algorithm())).finish()
    }
}

impl Languages {
    /// Returns the stems of a word in normal form, with the index of the language.
    fn stems(&self, word: &str) -> impl Iterator<Item = Stem> {
        let stem = |(at, stemmer): (usize, &Stemmer)| (at as u8, stemmer.stem(word).into_owned().into_boxed_str());
        self.0.iter().enumerate().map(stem)
    }

    /// Returns whether a word in lower case, with its accents, is a function word of a language.
    pub(crate) fn has_function_word(&self, word: &str) -> bool {
        self.0.iter().any(|stemmer| function_words::of(stemmer.algorithm()).contains(&word))
    }

    /// Returns whether a language has forms that the tokens of a text do not merge. Tokens merge English plurals, and
    /// more lowers the quality of an English search; see `docs/benchmarks.md`.
    fn has_more_forms(&self, language: u8) -> bool {
        self.0[usize::from(language)].algorithm() != Algorithm::English
    }
}

type Stem = (u8, Box<str>);

/// The catalogue's words by stem.
#[derive(Default)]
pub(crate) struct Forms {
    pub languages: Languages,
    by_stem: AHashMap<Stem, Vec<Box<str>>>,
}

impl Forms {
    /// No words of texts in these languages.
    pub(crate) fn new(languages: Languages) -> Self {
        Self { languages, ..Self::default() }
    }

    /// Adds a word in normal form that is new to the catalogue.
    pub(crate) fn add(&mut self, word: &str) {
        for stem in self.languages.stems(word) {
            self.by_stem.entry(stem).or_default().push(word.into());
        }
    }

    /// Removes a word that no item has any more.
    pub(crate) fn remove(&mut self, word: &str) {
        for stem in self.languages.stems(word) {
            if let Entry::Occupied(mut entry) = self.by_stem.entry(stem) {
                entry.get_mut().retain(|known| **known != *word);
                if entry.get().is_empty() {
                    entry.remove();
                }
            }
        }
    }

    /// Returns the number of stems and words, each word once for each of its stems.
    #[cfg(test)]
    pub(crate) fn counts(&self) -> (usize, usize) {
        (self.by_stem.len(), self.by_stem.values().map(Vec::len).sum())
    }

    /// Returns the tokens of a word's forms other than its own, the most frequent first: of a known word only in
    /// languages whose inflections the tokens do not merge. `frequency` returns the number of items with a token.
    pub(crate) fn of(&self, word: &str, token: &str, is_known: bool, frequency: impl Fn(&str) -> u32) -> Vec<String> {
        let mut forms: Vec<(u32, String)> = Vec::new();
        for stem in self.languages.stems(word).filter(|stem| !is_known || self.languages.has_more_forms(stem.0)) {
            for other in self.by_stem.get(&stem).into_iter().flatten() {
                let [Token { text: form, .. }] = &text::tokens(other)[..] else { continue };
                if form != token && frequency(form) > 0 && !forms.iter().any(|(_, known)| known == form) {
                    forms.push((frequency(form), form.clone()));
                }
            }
        }
        forms.sort_unstable_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
        forms.truncate(FORMS_MAX);
        forms.into_iter().map(|(_, form)| form).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forms(languages: &str, words: &[&str]) -> Forms {
        let mut forms = Forms { languages: languages.parse().unwrap(), ..Forms::default() };
        words.iter().for_each(|word| forms.add(word));
        forms
    }

    #[test]
    fn forms_share_a_stem_in_one_of_the_languages() {
        let german = forms("en, de", &["tasse", "tassen", "becher", "painted"]);
        assert_eq!(german.of("tasse", "tasse", true, |_| 1), ["tassen"]);
        assert_eq!(german.of("bechern", "bechern", false, |_| 1), ["becher"]);
        assert_eq!(german.of("painting", "painting", false, |_| 1), ["painted"]);
        assert!(german.of("painting", "painting", true, |_| 1).is_empty(), "a known English word");
        assert!(german.of("tasse", "tasse", true, |_| 0).is_empty(), "no item has the form any more");
    }

    #[test]
    fn words_that_come_and_go_leave_nothing() {
        let mut changed = forms("en,de", &["tasse", "teller"]);
        for _ in 0..10 {
            changed.add("tassen");
            changed.remove("tassen");
            changed.remove("unknown");
        }
        assert_eq!(changed.counts(), forms("en,de", &["tasse", "teller"]).counts());
        changed.remove("tasse");
        changed.remove("teller");
        assert_eq!(changed.counts(), (0, 0));
    }

    #[test]
    fn languages_are_parsed_or_refused() {
        let all: Languages = LANGUAGES.parse().unwrap();
        assert_eq!(all.0.len(), 18);
        for text in ["", "en,", "xx", "porter", "EN"] {
            let error = text.parse::<Languages>().unwrap_err().to_string();
            assert!(error.contains("the languages are ar, da"), "{error}");
        }
    }
}
