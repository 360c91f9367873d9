//! Conversion of a query's words to tantivy queries.
use super::{
    super::{
        forms::Languages,
        forward::{ForwardIndex, Group},
        function_words,
    },
    Fields, Lexical, LexicalError, MatchMode, QueryText, SCANNED_WORDS_MAX, Words,
    collect::any_of,
    document::ordered,
};
use ahash::AHashMap;
use lodestone_core::text::{self, TokenKind};
use lodestone_rules::MergedSynonyms;
use tantivy::{
    Searcher, Term,
    query::{BooleanQuery, BoostQuery, DisjunctionMaxQuery, EmptyQuery, Occur, Query, TermQuery},
    schema::{Field, IndexRecordOption},
};

/// Tokens of a query that are searched; later tokens are ignored.
const QUERY_TOKENS_MAX: usize = 48;
/// Maximum terms to which a prefix expands.
const EXPANSIONS_MAX: usize = 32;

type Clause = (Occur, Box<dyn Query>);

/// A query after tokenization and expansion of synonyms and compounds.
pub(super) struct ParsedQuery {
    pub normal: String,
    pub groups: Vec<Group>,
    /// Terms that contribute to the score but are optional: bigrams of CJK characters and joined words, so that a title
    /// in the spelling of the query (`dvd-r`) precedes one with the same words (`dvd+r`).
    optional: Vec<String>,
}

impl ParsedQuery {
    /// Returns the words of which a row must have one, and nothing else; none if some rows must have several.
    pub(super) fn alternative_words(&self, matching: MatchMode) -> Option<Vec<&str>> {
        let required: Vec<&Group> = self.groups.iter().filter(|group| !group.is_optional).collect();
        match matching {
            MatchMode::Any => {
                let words = required.into_iter().flat_map(|group| group.alternatives.iter().flatten());
                Some(words.chain(&self.optional).map(String::as_str).collect())
            }
            // Optional words change the score alone.
            MatchMode::All if required.len() == 1 => (required[0].alternatives.iter())
                .map(|words| if let [word] = &words[..] { Some(&**word) } else { None }.filter(|w| !has_parts(w)))
                .collect(),
            MatchMode::All | MatchMode::Prefix => None,
        }
    }
}

/// Returns whether a word also matches by its bigrams.
fn has_parts(word: &str) -> bool {
    word.chars().all(text::is_cjk) && word.chars().count() >= 3
}

impl Lexical {
    /// Parses a query.
    pub(super) fn parse(&self, searcher: &Searcher, query: QueryText) -> Result<ParsedQuery, LexicalError> {
        let normal = text::normalize(query.text);
        let mut tokens = text::tokens(&normal);
        tokens.truncate(QUERY_TOKENS_MAX);
        let mut parsed = self.parse_tokens(query, normal, &tokens);
        if parsed.groups.iter().any(|group| group.is_optional) && !self.has_required_word(searcher, &parsed)? {
            parsed.groups.iter_mut().for_each(|group| group.is_optional = false);
        }
        Ok(parsed)
    }

    /// Returns whether an item has one of the words that are not optional.
    fn has_required_word(&self, searcher: &Searcher, parsed: &ParsedQuery) -> Result<bool, LexicalError> {
        let required = parsed.groups.iter().filter(|group| !group.is_optional);
        for word in required.flat_map(|group| group.alternatives.iter().flatten()) {
            let is_known = self.words.read().forward.frequency(word) > 0;
            if is_known || any_of(searcher, &*self.required_word(word), &|_| true)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Returns the synonyms that apply to a query.
    pub(super) fn synonyms<'a>(&'a self, query: QueryText<'a>) -> MergedSynonyms<'a> {
        MergedSynonyms { of_index: &self.synonyms, others: query.synonyms }
    }

    /// Parses the tokens of a query. Its function words are optional, even if it has no other words.
    fn parse_tokens(&self, query: QueryText, normal: String, tokens: &[text::Token]) -> ParsedQuery {
        let synonyms = self.synonyms(query);
        let sequence: Vec<&str> = ordered(tokens).collect();
        let written = written_by_token(&normal);
        let words = &self.words.read();
        let function_tokens = function_tokens(&words.forms.languages, query.text);
        let mut scans_left = SCANNED_WORDS_MAX;
        let mut groups: Vec<Group> = Vec::with_capacity(sequence.len());
        let mut at = 0;
        while at < sequence.len() {
            let (count, group) = match synonyms.longest_at(&sequence[at..]) {
                Some((count, meanings)) => (count, Group::of(meanings)),
                None => match joined(&words.forward, &sequence[at..]) {
                    Some(joined) => {
                        let apart = sequence[at..at + 2].iter().map(|word| (*word).to_owned()).collect();
                        (2, Group::of(vec![apart, vec![joined]]))
                    }
                    None => {
                        let word = sequence[at];
                        let mut group = words.group(word, written.get(word).map(String::as_str), &mut scans_left);
                        // "in" after a number is a unit.
                        let is_unit = at > 0 && is_quantity(sequence[at - 1]) && text::is_unit(word);
                        // "and" between other words may be a "&" without spaces.
                        let is_between = at > 0 && at + 1 < sequence.len();
                        group.is_optional = !is_unit
                            && (function_tokens.iter().any(|other| other == word)
                                || function_words::is_chinese(word)
                                || is_between && word == "and");
                        (1, group)
                    }
                },
            };
            at += count;
            if !groups.contains(&group) {
                groups.push(group);
            }
        }
        let mut optional: Vec<String> = Vec::new();
        for token in tokens.iter().filter(|token| matches!(token.kind, TokenKind::Bigram | TokenKind::Joined)) {
            if !optional.contains(&token.text) {
                optional.push(token.text.clone());
            }
        }
        ParsedQuery { normal, groups, optional }
    }

    pub(super) fn query(&self, parsed: &ParsedQuery, matching: MatchMode) -> Box<dyn Query> {
        let occur = if matching == MatchMode::Any { Occur::Should } else { Occur::Must };
        let (mut clauses, optional) = self.clauses(parsed, occur);
        if matching == MatchMode::Any && !optional.is_empty() && !clauses.is_empty() {
            let others: Box<dyn Query> = Box::new(BooleanQuery::new(clauses));
            clauses = vec![(Occur::Must, others)];
        }
        clauses.extend(optional);
        match clauses.len() {
            0 => Box::new(EmptyQuery),
            // A single clause without a BooleanQuery lets tantivy skip documents that cannot be among the best.
            1 => clauses.remove(0).1,
            _ => Box::new(BooleanQuery::new(clauses)),
        }
    }

    /// Returns the clauses that decide which rows match, and those of the optional groups, which change the score alone.
    fn clauses(&self, parsed: &ParsedQuery, occur: Occur) -> (Vec<Clause>, Vec<Clause>) {
        let clause = |group: &Group| {
            let alternative = |(at, words): (usize, &Vec<String>)| match group.alternative_weight(at) {
                1.0 => self.words_query(words, occur),
                weight => boosted(self.words_query(words, occur), weight),
            };
            let mut alternatives: Vec<Box<dyn Query>> =
                group.alternatives.iter().enumerate().map(alternative).collect();
            let query = match alternatives.len() {
                1 => alternatives.remove(0),
                _ => Box::new(DisjunctionMaxQuery::new(alternatives)),
            };
            (if group.is_optional { Occur::Should } else { occur }, query)
        };
        let (optional, required): (Vec<&Group>, Vec<&Group>) =
            parsed.groups.iter().partition(|group| group.is_optional);
        let terms = parsed.optional.iter().map(|term| (Occur::Should, self.word(term)));
        (required.into_iter().map(clause).chain(terms).collect(), optional.into_iter().map(clause).collect())
    }

    /// Matches all (`Must`) or some (`Should`) of the words of an alternative.
    fn words_query(&self, words: &[String], occur: Occur) -> Box<dyn Query> {
        let mut clauses: Vec<(Occur, Box<dyn Query>)> = (words.iter())
            .map(|word| (occur, if occur == Occur::Must { self.required_word(word) } else { self.word(word) }))
            .collect();
        if clauses.len() == 1 { clauses.remove(0).1 } else { Box::new(BooleanQuery::new(clauses)) }
    }

    /// Matches all words of a typed text, the last as a prefix.
    pub(super) fn prefix_query(&self, searcher: &Searcher, query: QueryText) -> Result<Box<dyn Query>, LexicalError> {
        let normal = &text::normalize(query.text);
        let mut tokens = text::tokens(normal);
        tokens.truncate(QUERY_TOKENS_MAX);
        let Some((typed, stemmed)) = take_last_word(normal, &mut tokens) else {
            return Ok(self.query(&self.parse(searcher, query)?, MatchMode::All));
        };
        let (mut clauses, optional) = self.clauses(&self.parse_tokens(query, normal.to_owned(), &tokens), Occur::Must);
        clauses.push((Occur::Must, self.prefix(searcher, &typed, &stemmed)?));
        clauses.extend(optional);
        Ok(Box::new(BooleanQuery::new(clauses)))
    }

    /// Matches a word, or all its bigrams if it is a CJK word of three or more characters, because the segmenter may
    /// split the same characters differently in a title.
    fn required_word(&self, text: &str) -> Box<dyn Query> {
        let word = self.word(text);
        if !has_parts(text) {
            return word;
        }
        let bigrams = text::grams(text, 2).map(|bigram| (Occur::Must, self.word(bigram))).collect();
        Box::new(BooleanQuery::union(vec![word, Box::new(BooleanQuery::new(bigrams))]))
    }

    /// Matches a word in any text field, with a boost for each field.
    pub(super) fn word(&self, word: &str) -> Box<dyn Query> {
        let Fields { title, labels, description, .. } = self.fields;
        Box::new(BooleanQuery::union(vec![
            Box::new(BoostQuery::new(self.term(title, word), 3.0)),
            Box::new(BoostQuery::new(self.term(labels, word), 1.5)),
            self.term(description, word),
        ]))
    }

    pub(super) fn term(&self, field: Field, word: &str) -> Box<dyn Query> {
        Box::new(TermQuery::new(Term::from_field_text(field, word), IndexRecordOption::WithFreqs))
    }

    /// Matches titles and labels with a word that starts with `typed` or equals `stemmed`, because indexed words are
    /// stemmed.
    fn prefix(&self, searcher: &Searcher, typed: &str, stemmed: &str) -> Result<Box<dyn Query>, LexicalError> {
        let mut clauses: Vec<Box<dyn Query>> = Vec::new();
        let words = self.words.read();
        // The terms of a segment include those of replaced and deleted documents.
        let is_known = |word: &str| words.forward.frequency(word) > 0;
        for (field, boost) in [(self.fields.title, 3.0), (self.fields.labels, 1.5)] {
            let mut words = expansions(searcher, field, typed, &is_known)?;
            let stem_is_word = searcher.doc_freq(&Term::from_field_text(field, stemmed))? > 0 && is_known(stemmed);
            if stem_is_word && !words.iter().any(|word| word == stemmed) {
                words.push(stemmed.to_owned());
            }
            // "glasse", an unfinished "glasses", must match "glass".
            let mut start = typed;
            while words.is_empty() && typed.len() - start.len() < 2 && start.len() > 3 && start.is_ascii() {
                start = &start[..start.len() - 1];
                words = expansions(searcher, field, start, &is_known)?;
            }
            clauses.extend(words.iter().map(|word| boosted(self.term(field, word), boost)));
        }
        if clauses.is_empty() {
            return Ok(Box::new(EmptyQuery));
        }
        Ok(Box::new(BooleanQuery::union(clauses)))
    }
}

impl Words {
    /// Returns a query's word with the words that may stand for it: its forms, or a frequent word of which it may be a
    /// misspelling. `written` is the word before stemming. Looks for misspellings as long as `scans_left` is not 0.
    fn group(&self, token: &str, written: Option<&str>, scans_left: &mut usize) -> Group {
        let frequency = |token: &str| self.forward.frequency(token);
        let is_known = frequency(token) > 0;
        let bare = token.trim_end_matches(['+', '#']);
        if !is_known && bare.len() < token.len() {
            return Group::of(vec![vec![bare.to_owned()]]);
        }
        let mut group = Group::of(vec![vec![token.to_owned()]]);
        if let Some(written) = written {
            let forms = self.forms.of(written, token, is_known, frequency);
            group.alternatives.extend(forms.into_iter().map(|form| vec![form]));
            let is_scanned = *scans_left > 0 && self.vocabulary.is_rare(written);
            *scans_left -= usize::from(is_scanned);
            let neighbour = if is_scanned { self.vocabulary.frequent_neighbour(written) } else { None };
            let neighbour = neighbour.map(text::tokens).unwrap_or_default();
            if let [neighbour] = &neighbour[..]
                && neighbour.text != token
            {
                group.alternatives.push(vec![neighbour.text.clone()]);
            }
        }
        group
    }
}

/// Returns the tokens of those words of a query that are function words, as they were sent: between white space, so
/// that "in-ear" stays a compound, and with accents, because "für" has the normal form of the English "fur".
fn function_tokens(languages: &Languages, sent: &str) -> Vec<String> {
    let words = sent.split_whitespace().map(str::to_lowercase).filter(|word| languages.has_function_word(word));
    words.flat_map(|word| text::tokens(&word)).map(|token| token.text).collect()
}

/// Returns whether a unit may follow a word: "10", "1/2", and "sq" of "10 sq in".
fn is_quantity(word: &str) -> bool {
    word.starts_with(|c: char| c.is_ascii_digit()) || word == "sq" || word == "cu"
}

/// Maps the tokens of a normalized query to its words before stemming.
fn written_by_token(normal: &str) -> AHashMap<String, String> {
    let written = text::written_words(normal).into_iter().filter_map(|word| match &text::tokens(&word)[..] {
        [token] => Some((token.text.clone(), word)),
        _ => None,
    });
    written.collect()
}

/// Joins the first two words to one ("dish washer" to "dishwasher", "ps 5" to "ps5") if items have it.
fn joined(forward: &ForwardIndex, words: &[&str]) -> Option<String> {
    let [first, second, ..] = words else { return None };
    let is_number = |word: &str| word.bytes().all(|byte| byte.is_ascii_digit());
    let is_part = |word: &str| word.chars().all(|c| c.is_alphanumeric() && !text::is_unspaced(c));
    // "a" is an article, and two numbers are two measures.
    let is_separate = *first == "a" || is_number(first) && is_number(second);
    let joined = Some([*first, *second].concat()).filter(|_| !is_separate && is_part(first) && is_part(second))?;
    (forward.frequency(&joined) > 0).then_some(joined)
}

fn boosted(query: Box<dyn Query>, boost: f32) -> Box<dyn Query> {
    Box::new(BoostQuery::new(query, boost))
}

/// Returns the words of a field that start with `prefix` and pass `keep`, at most [`EXPANSIONS_MAX`]: the exact word,
/// then the most frequent.
fn expansions(
    searcher: &Searcher,
    field: Field,
    prefix: &str,
    keep: &dyn Fn(&str) -> bool,
) -> Result<Vec<String>, LexicalError> {
    let mut frequencies: AHashMap<String, u32> = AHashMap::new();
    for segment in searcher.segment_readers() {
        let inverted = segment.inverted_index(field)?;
        let mut stream = inverted.terms().range().ge(prefix.as_bytes()).into_stream()?;
        // Most words are rare, so only words that may be among the most frequent are copied.
        let mut frequent: Vec<(u32, String)> = Vec::with_capacity(EXPANSIONS_MAX + 1);
        while stream.advance() && stream.key().starts_with(prefix.as_bytes()) {
            let frequency = stream.value().doc_freq;
            let is_exact = stream.key() == prefix.as_bytes();
            let is_full = frequent.len() == EXPANSIONS_MAX;
            if is_full && !is_exact && frequent.last().is_some_and(|(least, _)| frequency <= *least) {
                continue;
            }
            if let Ok(word) = std::str::from_utf8(stream.key())
                && keep(word)
            {
                let frequency = if is_exact { u32::MAX } else { frequency };
                let at = frequent.partition_point(|(other, _)| *other >= frequency);
                frequent.insert(at, (frequency, word.to_owned()));
                frequent.truncate(EXPANSIONS_MAX);
            }
        }
        for (frequency, word) in frequent {
            let sum = frequencies.entry(word).or_default();
            *sum = sum.saturating_add(frequency);
        }
    }
    let mut words: Vec<(String, u32)> = frequencies.into_iter().collect();
    words.sort_unstable_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    words.truncate(EXPANSIONS_MAX);
    Ok(words.into_iter().map(|(word, _)| word).collect())
}

/// Removes the unfinished last word from the tokens and returns it as typed and as stemmed. None if the last character
/// of the query is of a script without spaces, because parts of words match there anyway, or is not part of a word.
fn take_last_word(normal: &str, tokens: &mut Vec<text::Token>) -> Option<(String, String)> {
    let last = normal.chars().next_back()?;
    let is_inside = |c: char| (c.is_alphanumeric() || text::is_combining_mark(c)) && !text::is_unspaced(c);
    if !is_inside(last) {
        return None;
    }
    while tokens.pop_if(|token| token.kind == TokenKind::Joined).is_some() {}
    let token = tokens.pop_if(|token| token.kind == TokenKind::Word)?;
    let typed = normal.rsplit(|c: char| !is_inside(c)).next().unwrap_or_default();
    let typed = if typed.len() >= token.text.len() { typed } else { &token.text };
    Some((typed.to_owned(), token.text.clone()))
}
