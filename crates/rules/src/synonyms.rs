//! Synonyms of a shop; `docs/search.md` describes the file format.
use ahash::{AHashMap, AHashSet};
use lodestone_core::text;
use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Maximum lines of a file.
const LINES_MAX: usize = 100_000;
/// Maximum characters of a line.
const LINE_CHARS_MAX: usize = 10_000;
/// Maximum terms on each side of the arrow of a line.
const TERMS_MAX: usize = 64;
/// Maximum words of a term.
const TERM_WORDS_MAX: usize = 8;
/// Maximum meanings of a term in all lines of a file, or in all sets of the API. A search has all of them as alternatives.
const MEANINGS_MAX: usize = 256;

/// The meanings of terms: the alternatives that are searched in place of a term.
#[derive(Debug, Default, Clone)]
pub struct Synonyms {
    /// The sets with a term, each with its index in them, by its [`key`].
    by_term: AHashMap<String, Vec<SetTerm>>,
    /// Upper bound of the number of words of the longest term.
    longest: usize,
}

/// A set, and the index of one of its terms.
type SetTerm = (Arc<Terms>, usize);

/// The reason why a file of synonyms is rejected.
#[derive(Debug, thiserror::Error)]
pub enum SynonymsError {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{path}: line {line}: {problem}")]
    Line { path: PathBuf, line: usize, problem: SynonymsProblem },
    #[error("{path}: has {lines} lines; the limit is {LINES_MAX}")]
    TooLong { path: PathBuf, lines: usize },
}

/// The mistake in a line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SynonymsProblem {
    #[error("has {0} characters; the limit is {LINE_CHARS_MAX}")]
    LineTooLong(usize),
    #[error("has more than one `=>`")]
    TwoArrows,
    #[error("has a single term: write `a, b` or `a => b`")]
    SingleTerm,
    #[error("has {0} terms; without replacements it must have at least 2")]
    TooFewTerms(usize),
    #[error("has an empty term; terms are separated by single commas")]
    EmptyTerm,
    #[error("has {0} terms on one side; the limit is {TERMS_MAX}")]
    TooManyTerms(usize),
    #[error("`{0}` has no letter or digit")]
    NoWord(String),
    #[error("`{term}` has {words} words; the limit is {TERM_WORDS_MAX}")]
    TermTooLong { term: String, words: usize },
    #[error("`{term}` would have {count} meanings in all; the limit is {MEANINGS_MAX}")]
    TooManyMeanings { term: String, count: usize },
}

impl Synonyms {
    /// Reads and parses a file.
    pub fn open(path: &Path) -> Result<Self, SynonymsError> {
        let text = fs::read_to_string(path).map_err(|source| SynonymsError::Io { path: path.to_owned(), source })?;
        Self::parse(&text).map_err(|error| match error {
            ParseError::Line(line, problem) => SynonymsError::Line { path: path.to_owned(), line, problem },
            ParseError::TooLong(lines) => SynonymsError::TooLong { path: path.to_owned(), lines },
        })
    }

    /// Parses lines `a, b, c` (each term is searched as all of them) and `a, b => c, d` (a term on the left is searched
    /// as the terms on the right and no longer as itself). A line that begins with `#` is a comment. A term on
    /// several lines has all their meanings.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let lines = text.lines().count();
        if lines > LINES_MAX {
            return Err(ParseError::TooLong(lines));
        }
        let mut synonyms = Self::default();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim_start_matches('\u{feff}').trim();
            if !line.is_empty() && !line.starts_with('#') {
                synonyms.add(line).map_err(|problem| ParseError::Line(number + 1, problem))?;
            }
        }
        Ok(synonyms)
    }

    /// Returns the meanings of several sets of terms.
    pub fn of<'a>(sets: impl IntoIterator<Item = &'a Arc<Terms>>) -> Self {
        let mut synonyms = Self::default();
        sets.into_iter().for_each(|terms| synonyms.insert(terms));
        synonyms
    }

    /// Returns the error of a term that would have more than [`MEANINGS_MAX`] meanings with this set in place of
    /// another one.
    pub fn check_meanings(&self, terms: &Terms, replaced: Option<&Arc<Terms>>) -> Result<(), SynonymsProblem> {
        for term in &terms.left {
            let others = self.by_term.get(&key(term)).map_or(&[][..], Vec::as_slice);
            let others = others.iter().map(|(other, _)| other);
            let others = others.filter(|other| replaced.is_none_or(|replaced| !Arc::ptr_eq(other, replaced)));
            let count = others.map(|other| other.meaning_count()).sum::<usize>() + terms.meaning_count();
            if count > MEANINGS_MAX {
                return Err(SynonymsProblem::TooManyMeanings { term: term.join(" "), count });
            }
        }
        Ok(())
    }

    fn add(&mut self, line: &str) -> Result<(), SynonymsProblem> {
        let char_count = line.chars().count();
        if char_count > LINE_CHARS_MAX {
            return Err(SynonymsProblem::LineTooLong(char_count));
        }
        let mut sides = line.split("=>");
        let left = terms(sides.next().unwrap_or_default())?;
        let right = sides.next().map(terms).transpose()?;
        if sides.next().is_some() {
            return Err(SynonymsProblem::TwoArrows);
        }
        if right.is_none() && left.len() < 2 {
            return Err(SynonymsProblem::SingleTerm);
        }
        let terms = Arc::new(Terms { left, right });
        self.check_meanings(&terms, None)?;
        self.insert(&terms);
        Ok(())
    }

    fn insert(&mut self, terms: &Arc<Terms>) {
        for (index, term) in terms.left.iter().enumerate() {
            // A CJK word may be split into its characters.
            let words = term.iter().map(|word| if word.starts_with(text::is_cjk) { word.chars().count() } else { 1 });
            self.longest = self.longest.max(words.sum());
            let sets = self.by_term.entry(key(term)).or_default();
            // A set may name a term twice.
            if !sets.last().is_some_and(|(last, _)| Arc::ptr_eq(last, terms)) {
                sets.push((terms.clone(), index));
            }
        }
    }

    pub fn is_empty(&self) -> bool {
        self.by_term.is_empty()
    }

    /// Returns the longest term at the start of `words`: its number of words, and the sets that have it.
    fn longest_at(&self, words: &[&str]) -> Option<(usize, &[SetTerm])> {
        let longest = words.len().min(self.longest);
        (1..=longest).rev().find_map(|count| Some((count, self.by_term.get(&key(&words[..count]))?.as_slice())))
    }
}

/// The synonyms of an index, of the shop's sets and of rules, as one.
#[derive(Clone, Copy)]
pub struct MergedSynonyms<'a> {
    pub of_index: &'a Synonyms,
    pub others: &'a [Arc<Synonyms>],
}

impl MergedSynonyms<'_> {
    /// Returns the longest term at the start of `words` in any of them: its number of words, and its meanings in all of
    /// them, each a list of words; at most [`MEANINGS_MAX`].
    pub fn longest_at(&self, words: &[&str]) -> Option<(usize, Vec<Vec<String>>)> {
        let all = || self.others.iter().map(Arc::as_ref).chain([self.of_index]);
        let found: Vec<(usize, &[SetTerm])> = all().filter_map(|synonyms| synonyms.longest_at(words)).collect();
        let longest = found.iter().map(|(count, _)| *count).max()?;
        let sets = found.iter().filter(|(count, _)| *count == longest).flat_map(|(_, sets)| *sets);
        let mut seen = AHashSet::new();
        let meanings = sets.flat_map(|(set, index)| set.meanings(*index)).filter(|meaning| seen.insert(*meaning));
        Some((longest, meanings.take(MEANINGS_MAX).cloned().collect()))
    }
}

/// Terms with the same meaning, each a list of words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terms {
    left: Vec<Vec<String>>,
    /// None: each term on the left is searched as all of them. Otherwise it is searched as one of these.
    right: Option<Vec<Vec<String>>>,
}

/// A term, or a list of terms, of a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TermAt {
    /// `terms` or `replacements`.
    List(&'static str),
    /// The index in one of the lists.
    Entry(&'static str, usize),
}

impl fmt::Display for TermAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::List(list) => f.write_str(list),
            Self::Entry(list, index) => write!(f, "{list}[{index}]"),
        }
    }
}

impl Terms {
    /// Number of meanings of each term; a meaning that is named twice counts twice.
    fn meaning_count(&self) -> usize {
        self.right.as_ref().unwrap_or(&self.left).len()
    }

    /// Returns the meanings of the term with this index.
    fn meanings(&self, index: usize) -> impl Iterator<Item = &Vec<String>> {
        // The typed term is the first alternative of its group.
        let own = if self.right.is_none() { self.left.get(index) } else { None };
        own.into_iter().chain(self.right.as_ref().unwrap_or(&self.left))
    }

    /// Parses terms and their replacements. Returns all mistakes.
    pub fn parse(terms: &[String], replacements: &[String]) -> Result<Self, Vec<(TermAt, SynonymsProblem)>> {
        let mut problems = Vec::new();
        let mut list = |name: &'static str, texts: &[String]| -> Vec<Vec<String>> {
            if texts.len() > TERMS_MAX {
                problems.push((TermAt::List(name), SynonymsProblem::TooManyTerms(texts.len())));
            }
            let mut parsed = Vec::new();
            for (index, text) in texts.iter().take(TERMS_MAX).enumerate() {
                match checked_term(text) {
                    Ok(words) => parsed.push(words),
                    Err(problem) => problems.push((TermAt::Entry(name, index), problem)),
                }
            }
            parsed
        };
        let (left, right) = (list("terms", terms), list("replacements", replacements));
        if terms.is_empty() || replacements.is_empty() && terms.len() < 2 {
            problems.push((TermAt::List("terms"), SynonymsProblem::TooFewTerms(terms.len())));
        }
        match problems.is_empty() {
            true => Ok(Self { left, right: (!replacements.is_empty()).then_some(right) }),
            false => Err(problems),
        }
    }
}

/// Tokenizes a term of the API, which has the limits of a line in a file.
fn checked_term(text: &str) -> Result<Vec<String>, SynonymsProblem> {
    let char_count = text.chars().count();
    match char_count {
        0 => Err(SynonymsProblem::NoWord(String::new())),
        1..=LINE_CHARS_MAX => term(text),
        _ => Err(SynonymsProblem::LineTooLong(char_count)),
    }
}

/// The reason why a text of synonyms is rejected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ParseError {
    /// The number of the line, from 1, and its mistake.
    Line(usize, SynonymsProblem),
    /// The number of lines.
    TooLong(usize),
}

fn terms(side: &str) -> Result<Vec<Vec<String>>, SynonymsProblem> {
    let texts: Vec<&str> = side.split([',', '，']).map(str::trim).collect();
    if texts.len() > TERMS_MAX {
        return Err(SynonymsProblem::TooManyTerms(texts.len()));
    }
    texts.into_iter().map(term).collect()
}

/// Tokenizes a term like a query.
fn term(text: &str) -> Result<Vec<String>, SynonymsProblem> {
    if text.is_empty() {
        return Err(SynonymsProblem::EmptyTerm);
    }
    let tokens = text::tokens(text).into_iter().filter(|token| token.kind.is_sequential());
    let words: Vec<String> = tokens.map(|token| token.text).collect();
    // A word of Thai and other scripts that have pairs of letters instead of words may have many pairs.
    let is_pair = |word: &&String| word.starts_with(|c| text::is_unspaced(c) && !text::is_cjk(c));
    match words.iter().filter(|word| !is_pair(word)).count() {
        0 if words.is_empty() => Err(SynonymsProblem::NoWord(text.chars().take(40).collect())),
        0..=TERM_WORDS_MAX => Ok(words),
        words => Err(SynonymsProblem::TermTooLong { term: text.chars().take(40).collect(), words }),
    }
}

/// Joins words to the key of a term. There is no space between CJK words, because the segmenter may split the same
/// characters differently in a longer text.
fn key<T: AsRef<str>>(words: &[T]) -> String {
    let mut key = String::new();
    for word in words.iter().map(AsRef::as_ref) {
        let is_cjk = |c: Option<char>| c.is_some_and(text::is_cjk);
        let is_joined = is_cjk(key.chars().next_back()) && is_cjk(word.chars().next());
        if !key.is_empty() && !is_joined {
            key.push(' ');
        }
        key.push_str(word);
    }
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    fn longest_at(synonyms: &Synonyms, words: &[&str]) -> Option<(usize, Vec<String>)> {
        let (count, meanings) = MergedSynonyms { of_index: synonyms, others: &[] }.longest_at(words)?;
        Some((count, meanings.iter().map(|words| words.join(" ")).collect()))
    }

    #[test]
    fn comma_separated_terms_are_equivalent_and_an_arrow_is_directed() {
        let synonyms =
            Synonyms::parse("# colours\n\nsofa, couch, Settees\ntv stand => television table, cabinet\n").unwrap();
        let all = |first: &str, second: &str, third: &str| vec![first.to_owned(), second.to_owned(), third.to_owned()];
        assert_eq!(longest_at(&synonyms, &["couch", "blue"]), Some((1, all("couch", "sofa", "settee"))));
        let (count, meanings) = longest_at(&synonyms, &["tv", "stand"]).unwrap();
        assert_eq!((count, meanings.as_slice()), (2, &["television table".to_owned(), "cabinet".to_owned()][..]));
        assert_eq!(longest_at(&synonyms, &["tv"]), None);
        assert_eq!(longest_at(&synonyms, &["cabinet"]), None);
    }

    #[test]
    fn chinese_terms_match_with_any_segmentation() {
        let synonyms = Synonyms::parse("马克杯，水杯, mug").unwrap();
        for words in [&["马克杯"][..], &["马克", "杯"]] {
            let (count, meanings) = longest_at(&synonyms, words).unwrap();
            assert_eq!(count, words.len());
            assert!(meanings.contains(&"mug".to_owned()));
        }
    }

    #[test]
    fn terms_are_compared_in_normal_form() {
        let synonyms =
            Synonyms::parse("STRAẞE & Weg, caf&eacute;\n檯燈 => lamp\nรองเท้าผ้าใบ, sneakers\nc++, cpp\n").unwrap();
        for (query, count, meaning) in [
            ("strasse and weg", 3, "cafe"),
            ("Café", 1, "strasse and weg"),
            ("台灯", 1, "lamp"),
            ("รองเท้าผ้าใบ", 9, "sneaker"),
            ("C++", 1, "cpp"),
        ] {
            let tokens = text::tokens(query).into_iter().filter(|token| token.kind.is_sequential());
            let words: Vec<String> = tokens.map(|token| token.text).collect();
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            let (found, meanings) = longest_at(&synonyms, &words).unwrap_or_else(|| panic!("{query}: {words:?}"));
            assert_eq!((found, meanings.contains(&meaning.to_owned())), (count, true), "{query}: {meanings:?}");
        }
    }

    #[test]
    fn an_invalid_line_is_reported_with_its_number() {
        use SynonymsProblem::*;
        for (text, line, problem) in [
            ("a, b\na => b => c", 2, TwoArrows),
            ("alone", 1, SingleTerm),
            ("a,,b", 1, EmptyTerm),
            ("a =>", 1, EmptyTerm),
            ("=> b", 1, EmptyTerm),
            ("\n\n!, b", 3, NoWord("!".to_owned())),
            ("a, b c d e f g h i j", 1, TermTooLong { term: "b c d e f g h i j".to_owned(), words: 9 }),
        ] {
            assert_eq!(Synonyms::parse(text).unwrap_err(), ParseError::Line(line, problem), "{text}");
        }
        let many = vec!["a"; 65].join(",");
        assert_eq!(Synonyms::parse(&many).unwrap_err(), ParseError::Line(1, TooManyTerms(65)));
        let line = |n: usize| {
            let words: Vec<String> = (0..63).map(|word| format!("w{n}n{word}")).collect();
            format!("heart, {}", words.join(","))
        };
        let lines = |count: usize| (0..count).map(line).collect::<Vec<_>>().join("\n");
        let four = longest_at(&Synonyms::parse(&lines(4)).unwrap(), &["heart"]);
        assert_eq!(four.unwrap().1.len(), 4 * 63 + 1);
        let problem = TooManyMeanings { term: "heart".to_owned(), count: 320 };
        assert_eq!(Synonyms::parse(&lines(5)).unwrap_err(), ParseError::Line(5, problem));
        let long = format!("a, {}", "b".repeat(10_000));
        assert_eq!(Synonyms::parse(&long).unwrap_err(), ParseError::Line(1, LineTooLong(10_003)));
    }
}
