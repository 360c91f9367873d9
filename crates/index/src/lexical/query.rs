//! From a query's words to what tantivy looks for.
use super::super::forward::{ForwardIndex, Group};
use super::{Fields, Lexical, LexicalError, Match, PART_BYTES_MIN, document::ordered};
use ahash::AHashMap;
use lodestone_core::text::{self, TokenKind};
use tantivy::{
    Searcher, Term,
    query::{BooleanQuery, BoostQuery, DisjunctionMaxQuery, EmptyQuery, Occur, Query, TermQuery},
    schema::{Field, IndexRecordOption},
};

/// Tokens of a query that are searched for; a longer query is cut.
const QUERY_TOKENS_MAX: usize = 48;
/// Terms that a prefix may stand for.
const EXPANSIONS_MAX: usize = 32;

/// A query as it is searched.
pub(super) struct Read {
    pub normal: String,
    pub groups: Vec<Group>,
    /// Two CJK characters each; they score, but need not match.
    bigrams: Vec<String>,
}

impl Lexical {
    pub(super) fn read(&self, normal: String) -> Read {
        let mut tokens = text::tokens(&normal);
        tokens.truncate(QUERY_TOKENS_MAX);
        self.read_tokens(normal, &tokens)
    }

    fn read_tokens(&self, normal: String, tokens: &[text::Token]) -> Read {
        let words: Vec<&str> = ordered(tokens).collect();
        let forward = &self.words.read().forward;
        let mut groups: Vec<Group> = Vec::with_capacity(words.len());
        let mut at = 0;
        while at < words.len() {
            let (count, alternatives) = match self.synonyms.longest_at(&words[at..]) {
                Some((count, meanings)) => (count, meanings.to_vec()),
                None => match joined(forward, &words[at..]) {
                    Some(joined) => (2, vec![vec![words[at].to_owned(), words[at + 1].to_owned()], vec![joined]]),
                    None => (1, vec![vec![words[at].to_owned()]]),
                },
            };
            at += count;
            let group = Group { alternatives };
            if !groups.contains(&group) {
                groups.push(group);
            }
        }
        let mut bigrams: Vec<String> = Vec::new();
        for token in tokens.iter().filter(|token| token.kind == TokenKind::Bigram) {
            if !bigrams.contains(&token.text) {
                bigrams.push(token.text.clone());
            }
        }
        Read { normal, groups, bigrams }
    }

    pub(super) fn query(&self, read: &Read, matching: Match) -> Box<dyn Query> {
        let mut clauses = self.clauses(read, if matching == Match::Any { Occur::Should } else { Occur::Must });
        match clauses.len() {
            0 => Box::new(EmptyQuery),
            // The plain form lets tantivy skip documents that cannot get in.
            1 => clauses.remove(0).1,
            _ => Box::new(BooleanQuery::new(clauses)),
        }
    }

    fn clauses(&self, read: &Read, occur: Occur) -> Vec<(Occur, Box<dyn Query>)> {
        let groups = read.groups.iter().map(|group| {
            let mut alternatives: Vec<Box<dyn Query>> =
                group.alternatives.iter().map(|words| self.words_query(words, occur)).collect();
            let query = match alternatives.len() {
                1 => alternatives.remove(0),
                _ => Box::new(DisjunctionMaxQuery::new(alternatives)),
            };
            (occur, query)
        });
        let bigrams = read.bigrams.iter().map(|bigram| (Occur::Should, self.word(bigram)));
        groups.chain(bigrams).collect()
    }

    /// All (`Must`) or some (`Should`) of the words of an alternative.
    fn words_query(&self, words: &[String], occur: Occur) -> Box<dyn Query> {
        let mut clauses: Vec<(Occur, Box<dyn Query>)> = (words.iter())
            .map(|word| (occur, if occur == Occur::Must { self.must(word) } else { self.word(word) }))
            .collect();
        if clauses.len() == 1 { clauses.remove(0).1 } else { Box::new(BooleanQuery::new(clauses)) }
    }

    /// All words of what is typed, the last of which may be unfinished.
    pub(super) fn prefix_query(&self, searcher: &Searcher, normal: &str) -> Result<Box<dyn Query>, LexicalError> {
        let mut tokens = text::tokens(normal);
        tokens.truncate(QUERY_TOKENS_MAX);
        let unfinished = take_last_word(normal, &mut tokens);
        let mut clauses = self.clauses(&self.read_tokens(String::new(), &tokens), Occur::Must);
        if let Some((typed, stemmed)) = unfinished {
            clauses.push((Occur::Must, self.prefix(searcher, &typed, &stemmed)?));
        }
        Ok(if clauses.is_empty() { Box::new(EmptyQuery) } else { Box::new(BooleanQuery::new(clauses)) })
    }

    /// A word that must be there. The segmenter may cut the same Chinese characters differently in a title, so the
    /// word also counts as found where all its bigrams are.
    fn must(&self, text: &str) -> Box<dyn Query> {
        let word = self.word(text);
        if !text.chars().all(text::is_cjk) || text.chars().count() < 3 {
            return word;
        }
        let bigrams = text::grams(text, 2).map(|bigram| (Occur::Must, self.word(bigram))).collect();
        Box::new(BooleanQuery::union(vec![word, Box::new(BooleanQuery::new(bigrams))]))
    }

    fn word(&self, word: &str) -> Box<dyn Query> {
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

    /// Titles and labels with a word that starts with `typed`, or that is `stemmed`: indexed words are stemmed.
    fn prefix(&self, searcher: &Searcher, typed: &str, stemmed: &str) -> Result<Box<dyn Query>, LexicalError> {
        let mut clauses: Vec<Box<dyn Query>> = Vec::new();
        for (field, boost) in [(self.fields.title, 3.0), (self.fields.labels, 1.5)] {
            let mut words = expansions(searcher, field, typed)?;
            let stem_is_word = searcher.doc_freq(&Term::from_field_text(field, stemmed))? > 0;
            if stem_is_word && !words.iter().any(|word| word == stemmed) {
                words.push(stemmed.to_owned());
            }
            // "glasse" on the way to "glasses" must still find "glass".
            let mut start = typed;
            while words.is_empty() && typed.len() - start.len() < 2 && start.len() > 3 && start.is_ascii() {
                start = &start[..start.len() - 1];
                words = expansions(searcher, field, start)?;
            }
            clauses.extend(words.iter().map(|word| boosted(self.term(field, word), boost)));
        }
        if clauses.is_empty() {
            return Ok(Box::new(EmptyQuery));
        }
        Ok(Box::new(BooleanQuery::union(clauses)))
    }
}

/// The first two words as one ("dish washer"), where titles have it.
fn joined(forward: &ForwardIndex, words: &[&str]) -> Option<String> {
    let [first, second, ..] = words else { return None };
    let is_part = |word: &str| word.len() >= PART_BYTES_MIN && word.bytes().all(|byte| byte.is_ascii_alphabetic());
    let joined = Some([*first, *second].concat()).filter(|_| is_part(first) && is_part(second))?;
    (forward.frequency(&joined) > 0).then_some(joined)
}

fn boosted(query: Box<dyn Query>, boost: f32) -> Box<dyn Query> {
    Box::new(BoostQuery::new(query, boost))
}

/// The words of a field that start with `prefix`, at most [`EXPANSIONS_MAX`]: the exact one and then the most frequent.
fn expansions(searcher: &Searcher, field: Field, prefix: &str) -> Result<Vec<String>, LexicalError> {
    let mut found: AHashMap<String, u32> = AHashMap::new();
    for segment in searcher.segment_readers() {
        let inverted = segment.inverted_index(field)?;
        let mut stream = inverted.terms().range().ge(prefix.as_bytes()).into_stream()?;
        // Most words are rare; only those that may stay are copied.
        let mut frequent: Vec<(u32, String)> = Vec::with_capacity(EXPANSIONS_MAX + 1);
        while stream.advance() && stream.key().starts_with(prefix.as_bytes()) {
            let frequency = stream.value().doc_freq;
            let is_exact = stream.key() == prefix.as_bytes();
            let is_full = frequent.len() == EXPANSIONS_MAX;
            if is_full && !is_exact && frequent.last().is_some_and(|(least, _)| frequency <= *least) {
                continue;
            }
            if let Ok(word) = std::str::from_utf8(stream.key()) {
                let frequency = if is_exact { u32::MAX } else { frequency };
                let at = frequent.partition_point(|(other, _)| *other >= frequency);
                frequent.insert(at, (frequency, word.to_owned()));
                frequent.truncate(EXPANSIONS_MAX);
            }
        }
        for (frequency, word) in frequent {
            let sum = found.entry(word).or_default();
            *sum = sum.saturating_add(frequency);
        }
    }
    let mut words: Vec<(String, u32)> = found.into_iter().collect();
    words.sort_unstable_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    words.truncate(EXPANSIONS_MAX);
    Ok(words.into_iter().map(|(word, _)| word).collect())
}

/// Takes the unfinished last word off the tokens and gives it as typed and as stemmed. None where the query's last character is
/// CJK, whose bigrams match inside words anyway, or is no part of a word.
fn take_last_word(normal: &str, tokens: &mut Vec<text::Token>) -> Option<(String, String)> {
    let last = normal.chars().next_back()?;
    if !last.is_alphanumeric() || text::is_cjk(last) {
        return None;
    }
    let token = tokens.pop_if(|token| token.kind == TokenKind::Word)?;
    let typed = normal.rsplit(|c: char| !c.is_alphanumeric() || text::is_cjk(c)).next().unwrap_or_default();
    // Indexed words have no accents, so a typed form with some is no prefix of them.
    let typed = if typed.is_ascii() && typed.len() >= token.text.len() { typed } else { &token.text };
    Some((typed.to_owned(), token.text.clone()))
}
