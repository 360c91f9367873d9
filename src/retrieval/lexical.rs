//! Search by words: BM25. The only file that names tantivy.
use super::{
    forward::{ForwardIndex, Group},
    hnsw::{TopRows, best_first},
    spelling::Vocabulary,
    synonyms::Synonyms,
};
use crate::{
    catalog::{AttributeValue, Item},
    ids::Row,
    text::{self, TokenKind},
};
use ahash::{AHashMap, AHashSet};
use parking_lot::{Mutex, RwLock};
use rayon::prelude::*;
use tantivy::{
    DocSet, Index, IndexReader, IndexWriter, ReloadPolicy, Searcher, TERMINATED, TantivyDocument, Term,
    indexer::{IndexWriterOptions, LogMergePolicy},
    query::{BooleanQuery, BoostQuery, DisjunctionMaxQuery, EmptyQuery, EnableScoring, Occur, Query, TermQuery},
    schema::{FAST, Field, IndexRecordOption, Schema, TextFieldIndexing, TextOptions},
    tokenizer::{PreTokenizedString, Token},
};

/// Bytes that the writer's arena may fill before it makes a segment; only touched pages count.
const ARENA_BYTES: usize = 64 << 20;
/// Tokens of a query that are searched for; a longer query is cut.
const QUERY_TOKENS_MAX: usize = 48;
/// Terms that a prefix may stand for.
const EXPANSIONS_MAX: usize = 32;
/// Rows that are looked at for an unfinished word: half a catalogue may have a word that starts with one letter, and whoever
/// types does not wait.
const PREFIX_ROWS_MAX: usize = 4000;
/// So many times the wanted rows are scored again, so that a row which BM25 places a little too low can still come up.
const RESCORED_FACTOR: usize = 2;
/// Words of a query that are corrected; each costs a look at the whole vocabulary.
const CORRECTIONS_MAX: usize = 8;
/// The shortest part of a word that was written without its space, in bytes.
const PART_BYTES_MIN: usize = 2;
/// So many items must have two words next to each other, for that a word is taken for the two without their space.
const PAIR_ROWS_MIN: usize = 2;
/// Items that are looked at for that.
const PAIR_ROWS_READ_MAX: usize = 1000;
/// Attributes that identify an item as its id does, in lower case.
const IDENTIFIERS: [&str; 7] = ["sku", "gtin", "ean", "upc", "isbn", "mpn", "asin"];

/// Why words could not be indexed or searched.
#[derive(Debug, thiserror::Error)]
#[error("the index of words failed")]
pub struct LexicalError(#[from] tantivy::TantivyError);

impl From<std::io::Error> for LexicalError {
    fn from(error: std::io::Error) -> Self {
        Self(error.into())
    }
}

/// How many words of the query must match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Match {
    /// Every word.
    All,
    /// At least one.
    Any,
    /// Every word; the last one may be unfinished.
    Prefix,
}

/// What was found for a query.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Matches {
    /// Best first: those whose id or SKU the query is, those that have every word, those that have some. Scores are above
    /// 0, and comparable within each part.
    pub rows: Vec<(Row, f32)>,
    /// So many of the first rows are named by the query: it is their id or SKU.
    pub exact: usize,
    /// So many of the first rows are named by the query or have all of its words.
    pub complete: usize,
}

#[derive(Clone, Copy)]
struct Fields {
    row: Field,
    id: Field,
    title: Field,
    labels: Field,
    description: Field,
}

/// What the words of the catalogue say beside tantivy's index.
#[derive(Default)]
struct Words {
    forward: ForwardIndex,
    vocabulary: Vocabulary,
}

/// Words of items, in memory. Writes and searches may run at the same time.
///
/// Rows are only added: a replaced or deleted item stays until the index is built anew, so the `keep` of a search must
/// refuse dead rows.
pub struct Lexical {
    fields: Fields,
    index: Index,
    reader: IndexReader,
    /// None while nothing is written.
    writer: Mutex<Option<IndexWriter>>,
    words: RwLock<Words>,
    synonyms: Synonyms,
}

/// A query as it is searched.
struct Read {
    normal: String,
    groups: Vec<Group>,
    /// Two CJK characters each; they score, but need not match.
    bigrams: Vec<String>,
}

impl Lexical {
    pub fn new() -> Result<Self, LexicalError> {
        let mut schema = Schema::builder();
        let indexing = TextFieldIndexing::default()
            .set_tokenizer("raw")
            .set_index_option(IndexRecordOption::WithFreqs)
            .set_fieldnorms(true);
        let words = TextOptions::default().set_indexing_options(indexing);
        let fields = Fields {
            row: schema.add_u64_field("row", FAST),
            id: schema.add_text_field("id", words.clone()),
            title: schema.add_text_field("title", words.clone()),
            labels: schema.add_text_field("labels", words.clone()),
            description: schema.add_text_field("description", words),
        };
        let index = Index::create_in_ram(schema.build());
        let reader = index.reader_builder().reload_policy(ReloadPolicy::Manual).try_into()?;
        let (writer, words, synonyms) = (Mutex::default(), RwLock::default(), Synonyms::default());
        Ok(Self { fields, index, reader, writer, words, synonyms })
    }

    /// Starts the writer's threads; they have the priority of the thread that calls.
    fn start_writing(&self) -> Result<IndexWriter, LexicalError> {
        let options = IndexWriterOptions::builder()
            .memory_budget_per_thread(ARENA_BYTES)
            .num_worker_threads(1)
            .num_merge_threads(1)
            .build();
        let writer: IndexWriter = self.index.writer_with_options(options)?;
        let mut merging = LogMergePolicy::default();
        // Each write makes a segment; every segment costs each search a little.
        merging.set_min_num_segments(4);
        writer.set_merge_policy(Box::new(merging));
        Ok(writer)
    }

    /// Ends the writer's threads when they have done their work. The next write starts others.
    pub fn end_writing(&self) -> Result<(), LexicalError> {
        match self.writer.lock().take() {
            Some(writer) => Ok(writer.wait_merging_threads()?),
            None => Ok(()),
        }
    }

    /// What is searched for in the place of a query's words, from now on.
    pub fn set_synonyms(&mut self, synonyms: Synonyms) {
        self.synonyms = synonyms;
    }

    /// Adds rows. They can be found when this returns. A row must not be added twice.
    pub fn upsert(&self, rows: &[(Row, &Item)]) -> Result<(), LexicalError> {
        let texts: Vec<ItemTexts> = rows.par_iter().map(|(_, item)| ItemTexts::of(item)).collect();
        let documents: Vec<TantivyDocument> =
            rows.par_iter().zip(&texts).map(|((row, item), texts)| self.document(*row, item, texts)).collect();
        let mut writing = self.writer.lock();
        let mut writer = match writing.take() {
            Some(writer) => writer,
            None => self.start_writing()?,
        };
        for document in documents {
            writer.add_document(document)?;
        }
        writer.commit()?;
        *writing = Some(writer);
        {
            let mut words = self.words.write();
            for ((row, _), texts) in rows.iter().zip(texts) {
                words.forward.add(*row, ordered(&texts.title), ordered(&texts.labels));
                words.vocabulary.add(texts.written);
            }
        }
        self.reader.reload()?;
        Ok(())
    }

    /// Rows that were added, dead ones too.
    pub fn row_count(&self) -> usize {
        self.reader.searcher().num_docs() as usize
    }

    /// The `count` rows that `keep` lets through and that match the query best, best first, with a score above 0: BM25 over
    /// the fields, and for [`Match::All`] and [`Match::Any`] how much of the query the title has and in which order. Items
    /// that the query names by id or SKU come before all others. A query without words finds nothing else. `keep` is only
    /// asked for rows that match and score well enough. For [`Match::Prefix`] at most [`PREFIX_ROWS_MAX`] matching rows are
    /// looked at.
    pub fn search(
        &self,
        query: &str,
        matching: Match,
        count: usize,
        keep: &dyn Fn(Row) -> bool,
    ) -> Result<Vec<(Row, f32)>, LexicalError> {
        let searcher = self.reader.searcher();
        let normal = text::normalize(query);
        let exact = self.named(&searcher, &normal, count, keep)?;
        let found = match matching {
            Match::Prefix => self.collect_some(&searcher, &*self.prefix_query(&searcher, &normal)?, count, keep)?,
            Match::All | Match::Any => self.scored(&searcher, &self.read(normal), matching, count, keep)?,
        };
        Ok(together(exact, found, count))
    }

    /// The rows that have every word, best first, and after them, where there are fewer than `count`, those that have some.
    pub fn search_all_then_any(
        &self,
        query: &str,
        count: usize,
        keep: &dyn Fn(Row) -> bool,
    ) -> Result<Matches, LexicalError> {
        let searcher = self.reader.searcher();
        let read = self.read(text::normalize(query));
        let exact = self.named(&searcher, &read.normal, count, keep)?;
        let exact_count = exact.len();
        let mut rows = together(exact, self.scored(&searcher, &read, Match::All, count, keep)?, count);
        let complete = rows.len();
        if complete < count {
            rows = together(rows, self.scored(&searcher, &read, Match::Any, count, keep)?, count);
        }
        Ok(Matches { rows, exact: exact_count, complete })
    }

    /// Every row that `keep` lets through and that the query names or that has all of its words; where there is none, every
    /// row that has some. In no order, each once.
    pub fn matching(&self, query: &str, keep: &dyn Fn(Row) -> bool) -> Result<Vec<Row>, LexicalError> {
        let searcher = self.reader.searcher();
        let read = self.read(text::normalize(query));
        let mut rows = self.all_of(&searcher, &*self.query(&read, Match::All), keep)?;
        rows.extend(self.all_of(&searcher, &*self.term(self.fields.id, &read.normal), keep)?);
        if rows.is_empty() {
            rows = self.all_of(&searcher, &*self.query(&read, Match::Any), keep)?;
        }
        rows.sort_unstable();
        rows.dedup();
        Ok(rows)
    }

    /// The query with the words that the catalogue does not have replaced: by two words that were written without their
    /// space, or by the nearest word of titles, brands, categories and tags. None where there is nothing to replace, where the
    /// query is an item's id, or where no row that `keep` lets through would then have all words.
    ///
    /// Codes (with a digit), CJK words, short words and words of the synonyms stay as they are.
    pub fn correct(&self, query: &str, keep: &dyn Fn(Row) -> bool) -> Result<Option<String>, LexicalError> {
        let searcher = self.reader.searcher();
        let normal = text::normalize(query);
        if self.doc_freq(&searcher, self.fields.id, &normal)? > 0 {
            return Ok(None);
        }
        let mut corrected = String::with_capacity(normal.len());
        let mut corrections = 0;
        for piece in normal.split_inclusive(' ') {
            let is_code = piece.bytes().any(|byte| byte.is_ascii_digit());
            for run in runs(piece) {
                let replacement = match is_code || corrections == CORRECTIONS_MAX {
                    true => None,
                    false => self.replacement(&searcher, run)?,
                };
                corrections += usize::from(replacement.is_some());
                corrected.push_str(replacement.as_deref().unwrap_or(run));
            }
        }
        if corrections == 0 || self.search(&corrected, Match::All, 1, keep)?.is_empty() {
            return Ok(None);
        }
        Ok(Some(corrected))
    }

    /// What a word of the query is replaced by; none where it is known or nothing is near.
    fn replacement(&self, searcher: &Searcher, written: &str) -> Result<Option<String>, LexicalError> {
        let [word] = &text::written_words(written)[..] else { return Ok(None) };
        let [token] = &text::tokens(word)[..] else { return Ok(None) };
        let Fields { title, labels, description, .. } = self.fields;
        for field in [title, labels, description] {
            if self.doc_freq(searcher, field, &token.text)? > 0 {
                return Ok(None);
            }
        }
        if self.synonyms.longest_at(&[&token.text]).is_some() {
            return Ok(None);
        }
        if let Some(parts) = self.parts(searcher, word)? {
            return Ok(Some(parts));
        }
        Ok(self.words.read().vocabulary.nearest(word).map(str::to_owned))
    }

    /// The two words that a word is without the space between them, where titles have them next to each other.
    fn parts(&self, searcher: &Searcher, word: &str) -> Result<Option<String>, LexicalError> {
        let mut best: Option<(usize, String)> = None;
        for at in PART_BYTES_MIN..=word.len().saturating_sub(PART_BYTES_MIN) {
            let Some((first, second)) = word.split_at_checked(at) else { continue };
            let tokens = (text::tokens(first), text::tokens(second));
            let ([a], [b]) = (&tokens.0[..], &tokens.1[..]) else { continue };
            let words = self.words.read();
            if words.forward.frequency(&a.text) == 0 || words.forward.frequency(&b.text) == 0 {
                continue;
            }
            let both = [a, b].map(|token| (Occur::Must, self.term(self.fields.title, &token.text)));
            let both = BooleanQuery::new(both.into_iter().collect());
            let read = self.collect(searcher, &both, PAIR_ROWS_READ_MAX, &|_| true)?;
            let pairs = read.iter().filter(|(row, _)| words.forward.has_pair(*row, &a.text, &b.text)).count();
            if pairs >= PAIR_ROWS_MIN && best.as_ref().is_none_or(|(most, _)| pairs > *most) {
                best = Some((pairs, format!("{first} {second}")));
            }
        }
        Ok(best.map(|(_, parts)| parts))
    }

    /// Rows whose id or SKU the query is.
    fn named(
        &self,
        searcher: &Searcher,
        normal: &str,
        count: usize,
        keep: &dyn Fn(Row) -> bool,
    ) -> Result<Vec<(Row, f32)>, LexicalError> {
        if normal.is_empty() || self.doc_freq(searcher, self.fields.id, normal)? == 0 {
            return Ok(Vec::new());
        }
        self.collect(searcher, &*self.term(self.fields.id, normal), count, keep)
    }

    fn scored(
        &self,
        searcher: &Searcher,
        read: &Read,
        matching: Match,
        count: usize,
        keep: &dyn Fn(Row) -> bool,
    ) -> Result<Vec<(Row, f32)>, LexicalError> {
        let query = self.query(read, matching);
        let mut found = self.collect(searcher, &*query, count.saturating_mul(RESCORED_FACTOR), keep)?;
        self.words.read().forward.rescore(&read.groups, &mut found);
        found.sort_unstable_by(best_first);
        found.truncate(count);
        Ok(found)
    }

    /// The `count` best rows of a query.
    fn collect(
        &self,
        searcher: &Searcher,
        query: &dyn Query,
        count: usize,
        keep: &dyn Fn(Row) -> bool,
    ) -> Result<Vec<(Row, f32)>, LexicalError> {
        if count == 0 {
            return Ok(Vec::new());
        }
        let weight = query.weight(EnableScoring::enabled_from_searcher(searcher))?;
        let mut best = TopRows::new(count);
        for segment in searcher.segment_readers() {
            let rows = segment.fast_fields().u64("row")?;
            let threshold = best.threshold().unwrap_or(f32::MIN);
            weight.for_each_pruning(threshold, segment, &mut |document, score| {
                let row = rows.first(document).and_then(|row| u32::try_from(row).ok()).map(Row);
                if let Some(row) = row.filter(|&row| score.is_finite() && best.wants(row, score) && keep(row)) {
                    best.push(row, score);
                }
                best.threshold().unwrap_or(f32::MIN)
            })?;
        }
        Ok(best.into_sorted())
    }

    /// The `count` best of the first [`PREFIX_ROWS_MAX`] rows of a query; each segment gives its share of them.
    fn collect_some(
        &self,
        searcher: &Searcher,
        query: &dyn Query,
        count: usize,
        keep: &dyn Fn(Row) -> bool,
    ) -> Result<Vec<(Row, f32)>, LexicalError> {
        if count == 0 {
            return Ok(Vec::new());
        }
        let weight = query.weight(EnableScoring::enabled_from_searcher(searcher))?;
        let all = searcher.num_docs().max(1) as usize;
        let mut best = TopRows::new(count);
        for segment in searcher.segment_readers() {
            let rows = segment.fast_fields().u64("row")?;
            let mut left = (PREFIX_ROWS_MAX * segment.num_docs() as usize).div_ceil(all);
            let mut scorer = weight.scorer(segment, 1.0)?;
            let mut document = scorer.doc();
            while document != TERMINATED && left > 0 {
                left -= 1;
                let score = scorer.score();
                let row = rows.first(document).and_then(|row| u32::try_from(row).ok()).map(Row);
                if let Some(row) = row.filter(|&row| score.is_finite() && best.wants(row, score) && keep(row)) {
                    best.push(row, score);
                }
                document = scorer.advance();
            }
        }
        Ok(best.into_sorted())
    }

    /// All rows of a query.
    fn all_of(
        &self,
        searcher: &Searcher,
        query: &dyn Query,
        keep: &dyn Fn(Row) -> bool,
    ) -> Result<Vec<Row>, LexicalError> {
        let weight = query.weight(EnableScoring::disabled_from_searcher(searcher))?;
        let mut found = Vec::new();
        for segment in searcher.segment_readers() {
            let rows = segment.fast_fields().u64("row")?;
            weight.for_each_no_score(segment, &mut |documents| {
                let row = |&document: &u32| rows.first(document).and_then(|row| u32::try_from(row).ok()).map(Row);
                found.extend(documents.iter().filter_map(row).filter(|row| keep(*row)));
            })?;
        }
        Ok(found)
    }

    fn document(&self, row: Row, item: &Item, texts: &ItemTexts) -> TantivyDocument {
        let mut document = TantivyDocument::new();
        document.add_u64(self.fields.row, u64::from(row.0));
        document.add_pre_tokenized_text(self.fields.id, tokenized(identifiers(item).into_iter()));
        document.add_pre_tokenized_text(self.fields.title, indexed(&texts.title));
        document.add_pre_tokenized_text(self.fields.labels, indexed(&texts.labels));
        if !texts.description.is_empty() {
            document.add_pre_tokenized_text(self.fields.description, indexed(&texts.description));
        }
        document
    }

    fn read(&self, normal: String) -> Read {
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

    fn query(&self, read: &Read, matching: Match) -> Box<dyn Query> {
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
    fn prefix_query(&self, searcher: &Searcher, normal: &str) -> Result<Box<dyn Query>, LexicalError> {
        let mut tokens = text::tokens(normal);
        tokens.truncate(QUERY_TOKENS_MAX);
        let unfinished = take_last_word(normal, &mut tokens);
        let mut clauses = self.clauses(&self.read_tokens(String::new(), &tokens), Occur::Must);
        if let Some((typed, stemmed)) = unfinished {
            clauses.push((Occur::Must, self.prefix(searcher, &typed, &stemmed)?));
        }
        Ok(if clauses.is_empty() { Box::new(EmptyQuery) } else { Box::new(BooleanQuery::new(clauses)) })
    }

    fn doc_freq(&self, searcher: &Searcher, field: Field, word: &str) -> Result<u64, LexicalError> {
        Ok(searcher.doc_freq(&Term::from_field_text(field, word))?)
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

    fn term(&self, field: Field, word: &str) -> Box<dyn Query> {
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

/// The texts of an item, read once.
struct ItemTexts {
    title: Vec<text::Token>,
    labels: Vec<text::Token>,
    description: Vec<text::Token>,
    /// Words of title and labels as they are written.
    written: Vec<String>,
}

impl ItemTexts {
    fn of(item: &Item) -> Self {
        let mut labels = item.brand.clone();
        for label in item.categories.iter().chain(&item.tags) {
            labels.push_str(" · ");
            labels.push_str(label);
        }
        let mut written = text::written_words(&item.title);
        written.extend(text::written_words(&labels));
        Self {
            title: text::tokens(&item.title),
            labels: text::tokens(&labels),
            description: text::tokens(&item.description),
            written,
        }
    }
}

/// What names an item and no other: its id, and attributes such as its SKU.
fn identifiers(item: &Item) -> Vec<String> {
    let is_identifier = |name: &str| IDENTIFIERS.iter().any(|known| name.eq_ignore_ascii_case(known));
    let attributes = item.attributes.iter().filter(|(name, _)| is_identifier(name)).map(|(_, value)| match value {
        AttributeValue::Text(text) => text::normalize(text),
        // A number of up to 15 digits, such as a GTIN, is written as it was.
        AttributeValue::Number(number) => number.to_string(),
        AttributeValue::Flag(_) => String::new(),
    });
    let mut found: Vec<String> = std::iter::once(text::normalize(item.id.as_str())).chain(attributes).collect();
    found.retain(|text| !text.is_empty());
    found.sort_unstable();
    found.dedup();
    found
}

/// The words of a text in its order, without the bigrams and characters that stand for parts of them.
fn ordered(tokens: &[text::Token]) -> impl Iterator<Item = &str> {
    let is_word = |token: &&text::Token| matches!(token.kind, TokenKind::Word | TokenKind::CjkWord);
    tokens.iter().filter(is_word).map(|token| token.text.as_str())
}

/// The first two words as one ("dish washer"), where titles have it.
fn joined(forward: &ForwardIndex, words: &[&str]) -> Option<String> {
    let [first, second, ..] = words else { return None };
    let is_part = |word: &str| word.len() >= PART_BYTES_MIN && word.bytes().all(|byte| byte.is_ascii_alphabetic());
    let joined = Some([*first, *second].concat()).filter(|_| is_part(first) && is_part(second))?;
    (forward.frequency(&joined) > 0).then_some(joined)
}

/// The pieces of a text: letters, digits and apostrophes, or what is between them.
fn runs(text: &str) -> impl Iterator<Item = &str> {
    let is_inside = |c: char| c.is_alphanumeric() && !text::is_cjk(c) || matches!(c, '\'' | '\u{2019}');
    let mut rest = text;
    std::iter::from_fn(move || {
        let inside = is_inside(rest.chars().next()?);
        let end = rest.find(|c| is_inside(c) != inside).unwrap_or(rest.len());
        let (run, after) = rest.split_at(end);
        rest = after;
        Some(run)
    })
}

/// The first rows, and after them those of the second that are not among them; at most `count`.
fn together(mut first: Vec<(Row, f32)>, second: Vec<(Row, f32)>, count: usize) -> Vec<(Row, f32)> {
    let known: AHashSet<Row> = first.iter().map(|(row, _)| *row).collect();
    first.extend(second.into_iter().filter(|(row, _)| !known.contains(row)));
    first.truncate(count);
    first
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

fn indexed(tokens: &[text::Token]) -> PreTokenizedString {
    tokenized(tokens.iter().map(|token| token.text.clone()))
}

fn tokenized(words: impl Iterator<Item = String>) -> PreTokenizedString {
    let token = |(position, text)| Token { text, position, ..Token::default() };
    PreTokenizedString { text: String::new(), tokens: words.enumerate().map(token).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::ItemId;
    use proptest::prelude::*;
    use rand::{Rng, SeedableRng, rngs::StdRng};
    use std::time::Instant;

    fn index(titles: &[&str]) -> Lexical {
        let items: Vec<Item> = (titles.iter().enumerate())
            .map(|(i, title)| Item::titled(ItemId::parse(&format!("SKU-{i}")).unwrap(), title))
            .collect();
        index_of(&items)
    }

    fn index_of(items: &[Item]) -> Lexical {
        let lexical = Lexical::new().unwrap();
        let rows: Vec<(Row, &Item)> = items.iter().enumerate().map(|(i, item)| (Row(i as u32), item)).collect();
        lexical.upsert(&rows).unwrap();
        lexical
    }

    fn rows(lexical: &Lexical, query: &str, matching: Match) -> Vec<u32> {
        lexical.search(query, matching, 10, &|_| true).unwrap().into_iter().map(|(row, _)| row.0).collect()
    }

    #[test]
    fn all_words_must_match_or_any() {
        let lexical = index(&["Red retrospot mug", "Blue mug", "Red scarf"]);
        assert_eq!(rows(&lexical, "red MUGS", Match::All), [0]);
        let any = rows(&lexical, "red mug", Match::Any);
        assert_eq!((any.len(), any[0]), (3, 0));
        assert!(rows(&lexical, "red bicycle", Match::All).is_empty());
    }

    #[test]
    fn an_unfinished_last_word_matches_as_prefix() {
        let lexical = index(&["Red retrospot mug", "Blue mug", "Wild berries jam"]);
        assert_eq!(rows(&lexical, "red retr", Match::Prefix), [0]);
        for typed in ["b", "be", "wïld berr", "berr", "berri", "berrie", "berries", "wild berries"] {
            assert!(rows(&lexical, typed, Match::Prefix).contains(&2), "{typed}");
        }
        assert!(rows(&lexical, "retr", Match::All).is_empty());
    }

    #[test]
    fn chinese_is_found_by_word_and_by_part() {
        let lexical = index(&["陶瓷马克杯 蓝色 大容量", "红色围巾", "蓝色围巾"]);
        assert_eq!(rows(&lexical, "蓝色马克杯", Match::All), [0]);
        assert_eq!(rows(&lexical, "马克", Match::Prefix), [0]);
        assert_eq!(rows(&lexical, "杯", Match::All), [0]);
        assert_eq!(rows(&lexical, "围巾", Match::Any).len(), 2);
    }

    #[test]
    fn a_title_counts_more_than_a_description_and_labels_count() {
        let mut items = vec![
            Item::titled(ItemId::parse("a").unwrap(), "scarf"),
            Item::titled(ItemId::parse("b").unwrap(), "mug"),
            Item::titled(ItemId::parse("c").unwrap(), "plate"),
        ];
        items[0].description = "goes well with a mug".to_owned();
        items[2].tags = vec!["vegan".to_owned()];
        items[2].brand = "Acme".to_owned();
        let lexical = index_of(&items);
        assert_eq!(rows(&lexical, "mug", Match::All), [1, 0]);
        assert_eq!(rows(&lexical, "acme vegan plate", Match::All), [2]);
    }

    #[test]
    fn an_item_id_finds_its_item_first() {
        let lexical = index(&["sku 1 holder sku-1", "Blue mug"]);
        assert_eq!(rows(&lexical, "sku-1", Match::All)[0], 1);
    }

    #[test]
    fn later_rows_are_found_at_once_and_the_filter_is_kept() {
        let lexical = index(&["red mug", "blue mug"]);
        for i in 2..30 {
            let item = Item::titled(ItemId::parse("x").unwrap(), "green mug");
            lexical.upsert(&[(Row(i), &item)]).unwrap();
            assert_eq!(rows(&lexical, "green mug", Match::All).len(), (i as usize - 1).min(10));
        }
        let odd = lexical.search("mug", Match::Any, 100, &|row| row.0 % 2 == 1).unwrap();
        assert_eq!(odd.len(), 15);
        assert_eq!(lexical.row_count(), 30);
    }

    #[test]
    fn thousands_of_items_are_indexed_and_searched_fast() {
        let mut random = StdRng::seed_from_u64(5);
        let vocabulary: Vec<String> =
            (0..3000).map(|i| format!("{}{}", ["red", "mug", "box", "lam", "tin"][i % 5], i / 5)).collect();
        let mut draw = |count: usize| -> String {
            let word = |random: &mut StdRng| {
                let skewed = random.random::<f32>().powi(3);
                vocabulary[(skewed * 2999.0) as usize].clone()
            };
            (0..count).map(|_| word(&mut random)).collect::<Vec<_>>().join(" ")
        };
        let items: Vec<Item> = (0..4600)
            .map(|i| {
                let mut item = Item::titled(ItemId::parse(&i.to_string()).unwrap(), &draw(6));
                item.categories = vec!["Home".to_owned(), draw(1)];
                item.description = draw(20);
                item
            })
            .collect();
        let started = Instant::now();
        let lexical = index_of(&items);
        eprintln!("index 4600: {:?}", started.elapsed());
        for (query, matching) in [
            ("red0 mug0 box0", Match::Any),
            ("red0 mug0", Match::All),
            ("red0 mu", Match::Prefix),
            ("m", Match::Prefix),
            ("home red0 tin1 lam2", Match::Any),
        ] {
            let started = Instant::now();
            for _ in 0..100 {
                lexical.search(query, matching, 200, &|_| true).unwrap();
            }
            eprintln!("{query} {matching:?}: {:?}", started.elapsed() / 100);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn no_query_is_an_error(query in ".{0,60}", which in 0usize..3) {
            static INDEX: std::sync::OnceLock<Lexical> = std::sync::OnceLock::new();
            let lexical = INDEX.get_or_init(|| index(&["Red mug AND (box)", "蓝色马克杯"]));
            let matching = [Match::All, Match::Any, Match::Prefix][which];
            prop_assert!(lexical.search(&query, matching, 5, &|_| true).is_ok());
        }
    }
}
