//! The lexical index: BM25 with rescoring, prefix search and spelling correction. The only user of tantivy.
mod collect;
mod correct;
mod document;
mod file;
mod query;

use super::{
    forms::{Forms, Languages},
    forward::ForwardIndex,
    hnsw::best_first,
    spelling::Vocabulary,
};
use ahash::AHashSet;
use collect::{add_rows_of, any_of, best_of, best_of_some, scores_of};
use document::{ItemTexts, has_equal_texts, has_texts, joined, ordered};
pub use file::LexicalFileError;
use lodestone_catalog::Item;
use lodestone_core::{bits, ids::Row, text};
use lodestone_rules::Synonyms;
use parking_lot::{Mutex, RwLock};
use query::ParsedQuery;
use rayon::prelude::*;
use std::sync::Arc;
use tantivy::{
    Directory, Index, IndexBuilder, IndexReader, IndexWriter, ReloadPolicy, Searcher, TantivyDocument, Term,
    directory::{RamDirectory, WatchCallback, WatchHandle},
    indexer::{IndexWriterOptions, LogMergePolicy, MergePolicy},
    query::Query,
    schema::{FAST, Field, INDEXED, IndexRecordOption, Schema, TextFieldIndexing, TextOptions},
};

/// Memory budget of the writer before it flushes a segment, in bytes. Only touched pages take memory.
const ARENA_BYTES: usize = 64 << 20;
/// Rows that are rescored, as a multiple of the requested count, so that rows that BM25 ranks slightly too low can
/// rise.
const RESCORED_FACTOR: usize = 2;
/// Share of replaced or deleted documents at which a segment is rewritten without them. Until then they count in the
/// document frequencies of BM25.
const DEAD_SHARE_MAX: f32 = 0.1;
/// Maximum words of a query for which the whole vocabulary is scanned: for corrections, and for neighbours of rare
/// words.
const SCANNED_WORDS_MAX: usize = 8;
/// Number of rows that are indexed again at once when the searchable attributes change.
const REINDEXED_AT_ONCE: usize = 4096;
/// Minimum bytes of each part of a compound that is split or joined.
const PART_BYTES_MIN: usize = 2;

/// An error of tantivy.
#[derive(Debug, thiserror::Error)]
#[error("the lexical index failed")]
pub struct LexicalError(#[from] tantivy::TantivyError);

impl From<std::io::Error> for LexicalError {
    fn from(error: std::io::Error) -> Self {
        Self(error.into())
    }
}

/// The words of a query that a row must have. Function words ("a", "with") do not count if an item has another word of
/// the query; they change the score alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MatchMode {
    /// Every word.
    All,
    /// At least one.
    Any,
    /// Every word; the last word may be a prefix, and always counts.
    Prefix,
}

/// The part of a query that the rows of [`Lexical::matching`] match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MatchScope {
    /// Their id or SKU is the query, and nothing else is meant.
    Identifier,
    /// They have every word, or their id or SKU is the query.
    AllWords,
    /// They have at least one word; no row has all of them.
    SomeWords,
}

impl MatchScope {
    /// The words that a row must have, unless its id or SKU is the query.
    fn words(self) -> Option<MatchMode> {
        match self {
            Self::Identifier => None,
            Self::AllWords => Some(MatchMode::All),
            Self::SomeWords => Some(MatchMode::Any),
        }
    }
}

/// All rows that match a query, as bit sets over rows.
#[derive(Debug)]
pub struct MatchingRows {
    pub rows: Vec<u64>,
    /// The rows whose id or SKU is the query.
    pub exact: Vec<u64>,
    pub scope: MatchScope,
}

/// The rows that match a query, in three parts: exact matches, rows with every word, rows with some words.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Matches {
    /// The three parts, each best first. Scores are positive and comparable within a part.
    pub rows: Vec<(Row, f32)>,
    /// Length of the first part: rows whose id or SKU is the query.
    pub exact: usize,
    /// Length of the first two parts: exact matches and rows with every word.
    pub complete: usize,
    /// If no row has every word: by row, the share of the query's words that its title and labels have, 0 to 1,
    /// weighted by rarity. Otherwise empty.
    pub coverage: Vec<f32>,
}

impl Matches {
    /// Returns whether the query is an identifier and nothing else: all rows are exact matches.
    pub fn is_identifier(&self) -> bool {
        self.exact > 0 && self.exact == self.rows.len()
    }

    /// Adds the matches of the same query among fewer rows, which may be further ones. Rows with some words are added only
    /// if no row has every word.
    pub fn merge(&mut self, others: Self) {
        let known: AHashSet<Row> = self.rows.iter().map(|(row, _)| *row).collect();
        let is_new = |(row, _): &(Row, f32)| !known.contains(row);
        if self.complete > 0 {
            let partial = self.rows.split_off(self.complete);
            self.rows.extend(others.rows[..others.complete].iter().filter(|row| is_new(row)));
            self.rows[self.exact..].sort_unstable_by(best_first);
            self.complete = self.rows.len();
            self.rows.extend(partial);
            return;
        }
        let with_coverage = |of: Self| of.rows.into_iter().zip(of.coverage);
        let further = with_coverage(others).filter(|(row, _)| is_new(row));
        let mut all: Vec<((Row, f32), f32)> = with_coverage(std::mem::take(self)).chain(further).collect();
        all.sort_unstable_by(|a, b| best_first(&a.0, &b.0));
        (self.rows, self.coverage) = all.into_iter().unzip();
    }
}

#[derive(Clone, Copy)]
struct Fields {
    row: Field,
    id: Field,
    title: Field,
    labels: Field,
    description: Field,
}

/// Indexes of words in addition to tantivy's, for rescoring and spelling correction.
#[derive(Default)]
struct Words {
    forward: ForwardIndex,
    vocabulary: Vocabulary,
    forms: Forms,
}

/// A change of the item of a row.
#[derive(Debug, Clone, Copy)]
pub struct RowChange<'i> {
    pub row: Row,
    /// The item that the index has for the row; none if it has none.
    pub old: Option<&'i Item>,
    /// The row's new item; none removes the row.
    pub new: Option<&'i Item>,
}

impl RowChange<'_> {
    /// Returns true if the indexed texts differ.
    fn changes_texts(&self, searchable: &[String]) -> bool {
        match (self.old, self.new) {
            (Some(old), Some(new)) => !has_equal_texts(old, new, searchable),
            (old, new) => old.is_some() || new.is_some(),
        }
    }
}

/// A query, and synonyms that apply to it in addition to those of the index.
#[derive(Clone, Copy)]
pub struct QueryText<'a> {
    pub text: &'a str,
    pub synonyms: &'a [Arc<Synonyms>],
}

impl<'a> From<&'a str> for QueryText<'a> {
    fn from(text: &'a str) -> Self {
        Self { text, synonyms: &[] }
    }
}

impl<'a> From<&'a String> for QueryText<'a> {
    fn from(text: &'a String) -> Self {
        text.as_str().into()
    }
}

/// A lexical index of items, in memory. Writes and searches may run concurrently.
pub struct Lexical {
    fields: Fields,
    /// Attributes whose texts are searched, ascending.
    searchable: RwLock<Arc<[String]>>,
    index: Index,
    /// The files of the index.
    files: RamDirectory,
    reader: IndexReader,
    /// Held while the reader reloads, so that an earlier state never replaces a later one.
    reloading: Arc<Mutex<()>>,
    /// Reloads the reader after merges, as long as it exists.
    _merges: WatchHandle,
    /// None until the first write and after [`Lexical::end_writing`].
    writer: Mutex<Option<IndexWriter>>,
    words: RwLock<Words>,
    synonyms: Synonyms,
}

impl Lexical {
    /// Creates an empty index.
    pub fn new() -> Result<Self, LexicalError> {
        Self::open(RamDirectory::create())
    }

    /// Opens the index of a directory, without its words; creates one in an empty directory.
    fn open(files: RamDirectory) -> Result<Self, LexicalError> {
        let mut schema = Schema::builder();
        let indexing = TextFieldIndexing::default()
            .set_tokenizer("raw")
            .set_index_option(IndexRecordOption::WithFreqs)
            .set_fieldnorms(true);
        let words = TextOptions::default().set_indexing_options(indexing);
        let fields = Fields {
            row: schema.add_u64_field("row", FAST | INDEXED),
            id: schema.add_text_field("id", words.clone()),
            title: schema.add_text_field("title", words.clone()),
            labels: schema.add_text_field("labels", words.clone()),
            description: schema.add_text_field("description", words),
        };
        let index = IndexBuilder::new().schema(schema.build()).open_or_create(files.clone())?;
        let reader: IndexReader = index.reader_builder().reload_policy(ReloadPolicy::Manual).try_into()?;
        let reloading = Arc::new(Mutex::new(()));
        let (merged, lock) = (reader.clone(), reloading.clone());
        // Also a background merge, which removes dead documents, becomes visible. An error is that of the next refresh.
        let merges = index.directory().watch(WatchCallback::new(move || {
            let _lock = lock.lock();
            let _ = merged.reload();
        }))?;
        let (writer, words, synonyms) = (Mutex::default(), RwLock::default(), Synonyms::default());
        Ok(Self {
            fields,
            searchable: RwLock::new(Arc::default()),
            index,
            files,
            reader,
            reloading,
            _merges: merges,
            writer,
            words,
            synonyms,
        })
    }

    /// Starts the threads of the writer. They inherit the priority of the calling thread. `arena_bytes` is the memory
    /// budget of the writer before it flushes a segment.
    fn start_writing(&self, arena_bytes: usize, merging: Box<dyn MergePolicy>) -> Result<IndexWriter, LexicalError> {
        let options = IndexWriterOptions::builder()
            .memory_budget_per_thread(arena_bytes)
            .num_worker_threads(1)
            .num_merge_threads(1)
            .build();
        let writer: IndexWriter = self.index.writer_with_options(options)?;
        writer.set_merge_policy(merging);
        Ok(writer)
    }

    /// Waits for the writer's threads to finish and stops them. The next write starts new threads.
    pub fn end_writing(&self) -> Result<(), LexicalError> {
        match self.writer.lock().take() {
            Some(writer) => Ok(writer.wait_merging_threads()?),
            None => Ok(()),
        }
    }

    /// Sets the synonyms of all later queries.
    pub fn set_synonyms(&mut self, synonyms: Synonyms) {
        self.synonyms = synonyms;
    }

    /// Sets the attributes whose texts are searched as brands and categories are. `items` are all rows of the index; those
    /// with a text that begins or ends to be searched are indexed again. Nothing else may write meanwhile, and after an
    /// error the index contradicts the items.
    pub fn set_searchable<'i>(
        &self,
        attributes: Vec<String>,
        items: impl Iterator<Item = (Row, &'i Item)>,
    ) -> Result<(), LexicalError> {
        let before = self.searchable();
        let changed = |name: &&String| before.contains(name) != attributes.contains(name);
        let names: Vec<&String> = before.iter().chain(&attributes).filter(changed).collect();
        let mut rows = items.filter(|(_, item)| names.iter().any(|name| has_texts(item, name))).peekable();
        while rows.peek().is_some() {
            let part = rows.by_ref().take(REINDEXED_AT_ONCE);
            let changes: Vec<RowChange> =
                part.map(|(row, item)| RowChange { row, old: Some(item), new: Some(item) }).collect();
            self.replace(&changes.iter().collect::<Vec<_>>(), &before, &attributes)?;
        }
        *self.searchable.write() = attributes.into();
        self.refresh()
    }

    /// Returns the attributes whose texts are searched.
    pub fn searchable(&self) -> Arc<[String]> {
        self.searchable.read().clone()
    }

    /// Sets the languages of the items' texts. The index must be empty.
    pub fn set_languages(&mut self, languages: Languages) {
        self.words.get_mut().forms.languages = languages;
    }

    /// Adds rows that the index does not have. Searches that start after the return see them.
    pub fn upsert(&self, rows: &[(Row, &Item)]) -> Result<(), LexicalError> {
        let changes: Vec<RowChange> =
            rows.iter().map(|(row, item)| RowChange { row: *row, old: None, new: Some(item) }).collect();
        self.apply(&changes)?;
        self.refresh()
    }

    /// Makes all applied changes visible to searches that start after the return.
    pub fn refresh(&self) -> Result<(), LexicalError> {
        let _lock = self.reloading.lock();
        Ok(self.reader.reload()?)
    }

    /// Adds, replaces and removes rows, all or none. Searches see the changes after [`Lexical::refresh`]. Changes that
    /// leave the indexed texts as they are cost nothing.
    pub fn apply(&self, changes: &[RowChange]) -> Result<(), LexicalError> {
        let searchable = self.searchable();
        let changes: Vec<&RowChange> = changes.iter().filter(|change| change.changes_texts(&searchable)).collect();
        if changes.is_empty() {
            return Ok(());
        }
        self.replace(&changes, &searchable, &searchable)
    }

    /// Replaces the texts of rows, all or none. `before` and `after` are the searchable attributes of the old and of the
    /// new texts.
    fn replace(&self, changes: &[&RowChange], before: &[String], after: &[String]) -> Result<(), LexicalError> {
        let texts: Vec<[Option<ItemTexts>; 2]> = changes
            .par_iter()
            .map(|change| {
                [(change.old, before), (change.new, after)]
                    .map(|(item, searchable)| item.map(|item| ItemTexts::of(item, searchable)))
            })
            .collect();
        let document = |(change, texts): (&&RowChange, &[Option<ItemTexts>; 2])| {
            Some(self.document(change.row, change.new?, texts[1].as_ref()?))
        };
        let documents: Vec<Option<TantivyDocument>> = changes.par_iter().zip(&texts).map(document).collect();
        let mut writing = self.writer.lock();
        // Taken, because an error or a panic must drop the writer and with it the changes that are not committed.
        let mut writer = match writing.take() {
            Some(writer) => writer,
            None => self.start_writing(ARENA_BYTES, merge_policy())?,
        };
        for (change, document) in changes.iter().zip(documents) {
            if change.old.is_some() {
                writer.delete_term(Term::from_field_u64(self.fields.row, u64::from(change.row.0)));
            }
            if let Some(document) = document {
                writer.add_document(document)?;
            }
        }
        writer.commit()?;
        *writing = Some(writer);
        self.words.write().apply(changes, texts);
        Ok(())
    }

    /// Returns the number of rows.
    pub fn row_count(&self) -> usize {
        self.reader.searcher().num_docs() as usize
    }

    /// Returns the number of documents in the segments, including replaced and deleted ones, which still count in the
    /// document frequencies.
    pub fn document_count(&self) -> usize {
        self.reader.searcher().segment_readers().iter().map(|segment| segment.max_doc() as usize).sum()
    }

    /// Returns the `count` best rows that match the query and pass `keep`, best first, with positive scores. The score
    /// is BM25 over the fields; for [`MatchMode::All`] and [`MatchMode::Any`] it includes coverage and order of the
    /// query's words. Items whose id or SKU is the query come first; a query without words matches only these.
    /// Calls `keep` only for rows that match with a sufficient score. [`MatchMode::Prefix`] scores only some
    /// thousands of the matching rows.
    pub fn search<'q>(
        &self,
        query: impl Into<QueryText<'q>>,
        matching: MatchMode,
        count: usize,
        keep: &dyn Fn(Row) -> bool,
    ) -> Result<Vec<(Row, f32)>, LexicalError> {
        let searcher = self.reader.searcher();
        let query: QueryText = query.into();
        let exact = self.exact_matches(&searcher, &text::normalize(query.text), count, keep)?;
        let hits = match matching {
            MatchMode::Prefix => best_of_some(&searcher, &*self.prefix_query(&searcher, query)?, count, keep)?,
            MatchMode::All | MatchMode::Any => {
                self.scored(&searcher, &self.parse(&searcher, query)?, matching, count, keep)?
            }
        };
        Ok(append_distinct(exact, hits, count))
    }

    /// Returns exact matches and the rows with every word. If these are fewer than `count`, appends rows with some
    /// words. An identifier matches alone: exact matches of a query with a digit, or whose words no other row has.
    pub fn search_all_then_any<'q>(
        &self,
        query: impl Into<QueryText<'q>>,
        count: usize,
        keep: &dyn Fn(Row) -> bool,
    ) -> Result<Matches, LexicalError> {
        let searcher = self.reader.searcher();
        let parsed = self.parse(&searcher, query.into())?;
        let exact = self.exact_matches(&searcher, &parsed.normal, count, keep)?;
        let exact_count = exact.len();
        if exact_count > 0 && has_digit(&parsed.normal) {
            return Ok(Matches { rows: exact, exact: exact_count, complete: exact_count, coverage: Vec::new() });
        }
        let mut rows = append_distinct(exact, self.scored(&searcher, &parsed, MatchMode::All, count, keep)?, count);
        let complete = rows.len();
        if complete < count && !(exact_count > 0 && complete == exact_count) {
            rows = append_distinct(rows, self.scored(&searcher, &parsed, MatchMode::Any, count, keep)?, count);
        }
        let coverage = match complete {
            0 => self.words.read().forward.coverage(&parsed.groups, rows.iter().map(|(row, _)| *row)),
            _ => Vec::new(),
        };
        Ok(Matches { rows, exact: exact_count, complete, coverage })
    }

    /// Returns the rows of a bit set that match the query. The scope is the first in the order of [`MatchScope`] in which
    /// a row matches, as in [`Lexical::search_all_then_any`].
    pub fn matching<'q>(&self, query: impl Into<QueryText<'q>>, among: &[u64]) -> Result<MatchingRows, LexicalError> {
        let searcher = self.reader.searcher();
        let parsed = self.parse(&searcher, query.into())?;
        let rows_in = |scope: MatchScope| self.rows_in(&searcher, &parsed, scope, among);
        let exact = rows_in(MatchScope::Identifier)?;
        if !bits::is_empty(&exact) && has_digit(&parsed.normal) {
            return Ok(MatchingRows { rows: exact.clone(), exact, scope: MatchScope::Identifier });
        }
        let rows = rows_in(MatchScope::AllWords)?;
        if !bits::is_empty(&rows) {
            return Ok(MatchingRows { rows, exact, scope: MatchScope::AllWords });
        }
        Ok(MatchingRows { rows: rows_in(MatchScope::SomeWords)?, exact, scope: MatchScope::SomeWords })
    }

    /// Returns the rows of a bit set that match the query in this scope.
    pub fn matching_in<'q>(
        &self,
        query: impl Into<QueryText<'q>>,
        scope: MatchScope,
        among: &[u64],
    ) -> Result<Vec<u64>, LexicalError> {
        let searcher = self.reader.searcher();
        self.rows_in(&searcher, &self.parse(&searcher, query.into())?, scope, among)
    }

    fn rows_in(
        &self,
        searcher: &Searcher,
        parsed: &ParsedQuery,
        scope: MatchScope,
        among: &[u64],
    ) -> Result<Vec<u64>, LexicalError> {
        let mut rows = vec![0; among.len()];
        let mut add = |query: Box<dyn Query>| add_rows_of(searcher, &*query, among, &mut rows);
        add(self.term(self.fields.id, &parsed.normal))?;
        match scope.words().map(|matching| (matching, parsed.alternative_words(matching))) {
            None => {}
            // One list of documents after the other is read faster than all at once in the order of documents.
            Some((_, Some(words))) => {
                let Fields { title, labels, description, .. } = self.fields;
                for (word, field) in
                    words.into_iter().flat_map(|word| [title, labels, description].map(|of| (word, of)))
                {
                    add(self.term(field, word))?;
                }
            }
            Some((matching, None)) => add(self.query(parsed, matching))?,
        }
        Ok(rows)
    }

    /// Returns the rows of [`Lexical::matching_in`] with their scores: BM25 over the fields, without the rescoring of
    /// [`Lexical::search`].
    pub fn scores_in<'q>(
        &self,
        query: impl Into<QueryText<'q>>,
        scope: MatchScope,
        keep: &dyn Fn(Row) -> bool,
    ) -> Result<Vec<(Row, f32)>, LexicalError> {
        let searcher = self.reader.searcher();
        let parsed = self.parse(&searcher, query.into())?;
        let mut scored = scores_of(&searcher, &*self.term(self.fields.id, &parsed.normal), keep)?;
        if let Some(words) = scope.words() {
            scored.extend(scores_of(&searcher, &*self.query(&parsed, words), keep)?);
        }
        scored.sort_unstable_by(|a, b| a.0.cmp(&b.0).then(b.1.total_cmp(&a.1)));
        scored.dedup_by_key(|(row, _)| *row);
        Ok(scored)
    }

    /// Returns whether a row that passes `keep` is an exact match or has every word of the query.
    pub fn has_match<'q>(
        &self,
        query: impl Into<QueryText<'q>>,
        keep: &dyn Fn(Row) -> bool,
    ) -> Result<bool, LexicalError> {
        let searcher = self.reader.searcher();
        let parsed = self.parse(&searcher, query.into())?;
        Ok(any_of(&searcher, &*self.query(&parsed, MatchMode::All), keep)?
            || any_of(&searcher, &*self.term(self.fields.id, &parsed.normal), keep)?)
    }

    /// Returns rows whose id or SKU is the query.
    fn exact_matches(
        &self,
        searcher: &Searcher,
        normal: &str,
        count: usize,
        keep: &dyn Fn(Row) -> bool,
    ) -> Result<Vec<(Row, f32)>, LexicalError> {
        if normal.is_empty() || self.doc_freq(searcher, self.fields.id, normal)? == 0 {
            return Ok(Vec::new());
        }
        best_of(searcher, &*self.term(self.fields.id, normal), count, keep)
    }

    /// Returns the best rows by BM25 after rescoring.
    fn scored(
        &self,
        searcher: &Searcher,
        parsed: &ParsedQuery,
        matching: MatchMode,
        count: usize,
        keep: &dyn Fn(Row) -> bool,
    ) -> Result<Vec<(Row, f32)>, LexicalError> {
        let query = self.query(parsed, matching);
        let mut hits = best_of(searcher, &*query, count.saturating_mul(RESCORED_FACTOR), keep)?;
        self.words.read().forward.rescore(&parsed.groups, &mut hits);
        hits.sort_unstable_by(best_first);
        hits.truncate(count);
        Ok(hits)
    }

    fn doc_freq(&self, searcher: &Searcher, field: Field, word: &str) -> Result<u64, LexicalError> {
        Ok(searcher.doc_freq(&Term::from_field_text(field, word))?)
    }
}

impl Words {
    fn apply(&mut self, changes: &[&RowChange], texts: Vec<[Option<ItemTexts>; 2]>) {
        for (change, [old, new]) in changes.iter().zip(texts) {
            if let Some(old) = old {
                self.forward.remove(change.row);
                for word in self.vocabulary.remove(old.written) {
                    self.forms.remove(&word);
                }
            }
            if let Some(new) = new {
                let labels = ordered(&new.labels).chain(joined(&new.title)).chain(joined(&new.labels));
                self.forward.add(change.row, ordered(&new.title), labels);
                for word in self.vocabulary.add(new.written) {
                    self.forms.add(&word);
                }
            }
        }
    }
}

/// Returns the merge policy of an index that takes writes.
fn merge_policy() -> Box<dyn MergePolicy> {
    let mut merging = LogMergePolicy::default();
    // Each write creates a segment, and each segment adds to the cost of every search.
    merging.set_min_num_segments(4);
    merging.set_del_docs_ratio_before_merge(DEAD_SHARE_MAX);
    Box::new(merging)
}

/// Appends the rows of `second` that are not in `first`, up to `count` rows in total.
fn append_distinct(mut first: Vec<(Row, f32)>, second: Vec<(Row, f32)>, count: usize) -> Vec<(Row, f32)> {
    let known: AHashSet<Row> = first.iter().map(|(row, _)| *row).collect();
    first.extend(second.into_iter().filter(|(row, _)| !known.contains(row)));
    first.truncate(count);
    first
}

/// Returns whether a text has a digit. An identifier without one (`post`) may be a word of other items.
fn has_digit(text: &str) -> bool {
    text.bytes().any(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;
    use lodestone_core::ids::ItemId;
    use proptest::prelude::*;

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

    fn rows(lexical: &Lexical, query: &str, matching: MatchMode) -> Vec<u32> {
        lexical.search(query, matching, 10, &|_| true).unwrap().into_iter().map(|(row, _)| row.0).collect()
    }

    #[test]
    fn match_all_requires_every_word_and_match_any_one() {
        let lexical = index(&["Red retrospot mug", "Blue mug", "Red scarf"]);
        assert_eq!(rows(&lexical, "red MUGS", MatchMode::All), [0]);
        let any = rows(&lexical, "red mug", MatchMode::Any);
        assert_eq!((any.len(), any[0]), (3, 0));
        assert!(rows(&lexical, "red bicycle", MatchMode::All).is_empty());
    }

    #[test]
    fn an_unfinished_last_word_matches_as_a_prefix() {
        let lexical = index(&["Red retrospot mug", "Blue mug", "Wild berries jam"]);
        assert_eq!(rows(&lexical, "red retr", MatchMode::Prefix), [0]);
        for typed in ["b", "be", "wïld berr", "berr", "berri", "berrie", "berries", "wild berries"] {
            assert!(rows(&lexical, typed, MatchMode::Prefix).contains(&2), "{typed}");
        }
        assert!(rows(&lexical, "retr", MatchMode::All).is_empty());
    }

    #[test]
    fn chinese_matches_by_words_and_parts_of_words() {
        let lexical = index(&["陶瓷马克杯 蓝色 大容量", "红色围巾", "蓝色围巾"]);
        assert_eq!(rows(&lexical, "蓝色马克杯", MatchMode::All), [0]);
        assert_eq!(rows(&lexical, "马克", MatchMode::Prefix), [0]);
        assert_eq!(rows(&lexical, "杯", MatchMode::All), [0]);
        assert_eq!(rows(&lexical, "围巾", MatchMode::Any).len(), 2);
    }

    #[test]
    fn titles_score_above_descriptions_and_labels_are_indexed() {
        let mut items = vec![
            Item::titled(ItemId::parse("a").unwrap(), "scarf"),
            Item::titled(ItemId::parse("b").unwrap(), "mug"),
            Item::titled(ItemId::parse("c").unwrap(), "plate"),
        ];
        items[0].description = "goes well with a mug".to_owned();
        items[2].tags = vec!["vegan".to_owned()];
        items[2].brand = "Acme".to_owned();
        let lexical = index_of(&items);
        assert_eq!(rows(&lexical, "mug", MatchMode::All), [1, 0]);
        assert_eq!(rows(&lexical, "acme vegan plate", MatchMode::All), [2]);
    }

    #[test]
    fn an_item_whose_id_is_the_query_comes_first() {
        let lexical = index(&["sku 1 holder sku-1", "Blue mug"]);
        assert_eq!(rows(&lexical, "sku-1", MatchMode::All)[0], 1);
    }

    #[test]
    fn titles_in_the_spelling_of_the_query_come_first() {
        let lexical = index(&["Verbatim DVD+R 16x", "Verbatim DVD-R 16x", "Verbatim CD-R 52x", "Other DVD+R box"]);
        assert_eq!(rows(&lexical, "dvd-r", MatchMode::All)[0], 1);
    }

    #[test]
    fn the_id_of_a_group_finds_its_variants_and_that_of_a_variant_comes_first() {
        let variant = |id: &str, group: &str| Item {
            group_id: group.to_owned(),
            ..Item::titled(ItemId::parse(id).unwrap(), "Linen shirt")
        };
        let lexical = index_of(&[
            variant("ST001-red", "ST001"),
            variant("ST001-blue", "ST001"),
            variant("x", "st7"),
            variant("st7", "st7"),
        ]);
        let mut found = rows(&lexical, "st001", MatchMode::All);
        found.sort_unstable();
        assert_eq!(found, [0, 1]);
        assert_eq!(rows(&lexical, "st7", MatchMode::All), [3, 2]);
    }

    #[test]
    fn an_identifier_matches_alone_unless_it_is_a_word_of_other_items() {
        let lexical = index(&["Red lamp", "Spare part for SKU-0", "Blue lamp"]);
        let all = |query: &str| lexical.search_all_then_any(query, 10, &|_| true).unwrap();
        let matches = all("sku-0");
        assert_eq!(matches.rows.iter().map(|(row, _)| row.0).collect::<Vec<_>>(), [0]);
        assert!(matches.is_identifier() && !all("lamp").is_identifier());
        assert_eq!(lexical.matching("SKU-0", &[u64::MAX]).unwrap().rows, [1]);
        // The identifier of one item is a word of another one.
        let mut post = Item::titled(ItemId::parse("post").unwrap(), "Carriage");
        post.description = "charge for carriage".to_owned();
        lexical.upsert(&[(Row(3), &post), (Row(4), &Item::titled(ItemId::parse("b").unwrap(), "Post box"))]).unwrap();
        let matches = all("post");
        assert_eq!(matches.rows.iter().map(|(row, _)| row.0).collect::<Vec<_>>(), [3, 4]);
        assert!(!matches.is_identifier());
    }

    #[test]
    fn added_rows_are_searchable_immediately_and_the_filter_is_respected() {
        let lexical = index(&["red mug", "blue mug"]);
        for i in 2..30 {
            let item = Item::titled(ItemId::parse("x").unwrap(), "green mug");
            lexical.upsert(&[(Row(i), &item)]).unwrap();
            assert_eq!(rows(&lexical, "green mug", MatchMode::All).len(), (i as usize - 1).min(10));
        }
        let odd = lexical.search("mug", MatchMode::Any, 100, &|row| row.0 % 2 == 1).unwrap();
        assert_eq!(odd.len(), 15);
        assert_eq!(lexical.row_count(), 30);
    }

    #[test]
    fn texts_of_attributes_are_found_from_when_they_are_searchable_until_they_are_not() {
        use lodestone_catalog::AttributeValue;
        let glazed = |number: usize, glaze: &str| {
            let mut item = Item::titled(ItemId::parse(&format!("SKU-{number}")).unwrap(), "vase");
            item.attributes.insert("glaze".to_owned(), AttributeValue::Text(glaze.to_owned()));
            item.attributes.insert("weight".to_owned(), AttributeValue::Number(3.0));
            item
        };
        // More than are indexed again at once.
        const COUNT: usize = REINDEXED_AT_ONCE + 10;
        let items: Vec<Item> =
            (0..COUNT).map(|number| glazed(number, if number % 2 == 0 { "celadon" } else { "tenmoku" })).collect();
        let lexical = index_of(&items);
        let rows = || items.iter().enumerate().map(|(row, item)| (Row(row as u32), item));
        let found = |query: &str| lexical.search(query, MatchMode::All, COUNT, &|_| true).unwrap().len();
        assert_eq!((found("celadon"), found("vase")), (0, COUNT));
        lexical.set_searchable(vec!["glaze".to_owned(), "weight".to_owned()], rows()).unwrap();
        assert_eq!((found("celadon vase"), found("tenmoku"), lexical.row_count()), (COUNT / 2, COUNT / 2, COUNT));
        let corrected = lexical.correct("celadn", &|_| true).unwrap();
        assert_eq!(corrected.as_deref(), Some("celadon"), "the vocabulary has the words too");
        // Later changes know the texts.
        let changed = glazed(0, "tenmoku");
        let change = RowChange { row: Row(0), old: Some(&items[0]), new: Some(&changed) };
        lexical.apply(&[change]).unwrap();
        lexical.refresh().unwrap();
        assert_eq!((found("celadon"), found("tenmoku")), (COUNT / 2 - 1, COUNT / 2 + 1));
        let now = rows().map(|(row, item)| (row, if row == Row(0) { &changed } else { item }));
        lexical.set_searchable(Vec::new(), now).unwrap();
        assert_eq!((found("celadon"), found("tenmoku"), found("vase")), (0, 0, COUNT));
        assert_eq!(lexical.correct("celadn", &|_| true).unwrap(), None);
    }

    /// Returns the titles that have every word of a query, sorted.
    fn titles_of<'t>(lexical: &Lexical, titles: &[&'t str], query: &str) -> Vec<&'t str> {
        let mut rows = rows(lexical, query, MatchMode::All);
        rows.sort_unstable();
        rows.into_iter().map(|row| titles[row as usize]).collect()
    }

    #[test]
    fn texts_that_a_shopper_takes_for_the_same_find_the_same_items() {
        let titles = [
            "Blokko™ building set",
            "Ёлка искусственная",
            "ΚΟΥΠΑ καφέ",
            "Straßenschuhe",
            "Smørbrød plate",
            "Kaffee\u{ad}becher",
            "caf&eacute; cr&egrave;me",
            "PS5 console",
            "PS 5 controller",
            "iPhone15 Pro",
            "iPhone 15 Pro case",
            "T-Shirt blue",
            "tshirt red",
            "T shirt green",
            "Wi-Fi router",
            "Black & Decker drill",
            "Learning C++ fast",
            "Learning C# fast",
            "แก้วกาแฟเซรามิก",
            "陶瓷檯燈",
        ];
        let lexical = index(&titles);
        for (queries, found) in [
            (&["blokko", "BLOKKO®", "blokko set"][..], &["Blokko™ building set"][..]),
            (&["елка", "ЁЛКА"], &["Ёлка искусственная"]),
            (&["κούπα", "κουπα", "Κούπα"], &["ΚΟΥΠΑ καφέ"]),
            (&["strassenschuhe", "STRAẞENSCHUHE"], &["Straßenschuhe"]),
            (&["smorbrod", "smørbrød"], &["Smørbrød plate"]),
            (&["kaffeebecher"], &["Kaffee\u{ad}becher"]),
            (&["café", "cafe creme", "cafe\u{301}"], &["caf&eacute; cr&egrave;me"]),
            (&["ps5", "PS 5", "ps-5"], &["PS5 console", "PS 5 controller"]),
            (&["iphone15 pro", "iPhone 15 Pro", "iphone-15 pro"], &["iPhone15 Pro", "iPhone 15 Pro case"]),
            (&["tshirt", "T-Shirt", "t shirts", "t–shirt"], &["T-Shirt blue", "tshirt red", "T shirt green"]),
            (&["wifi", "wi-fi", "WI FI router"], &["Wi-Fi router"]),
            (&["black and decker", "black & decker", "black decker", "black&amp;decker"], &["Black & Decker drill"]),
            (&["c++"], &["Learning C++ fast"]),
            (&["c#", "C# learning"], &["Learning C# fast"]),
            (&["learning c"], &["Learning C++ fast", "Learning C# fast"]),
            (&["กาแฟ", "แก้ว", "เซรามิก แก้ว"], &["แก้วกาแฟเซรามิก"]),
            (&["กาแฝ"], &[]),
            (&["台灯", "臺燈", "檯燈"], &["陶瓷檯燈"]),
        ] {
            for query in queries {
                assert_eq!(titles_of(&lexical, &titles, query), found, "{query}");
                assert_eq!(lexical.correct(*query, &|_| true).unwrap(), None, "{query}");
            }
        }
    }

    #[test]
    fn forms_of_known_words_are_found_and_not_corrected() {
        let titles = [
            "Wool scarf",
            "Silk scarf",
            "Fish scales",
            "Camera lens",
            "Gel pens",
            "Bread knife",
            "Oak shelf",
            "Three shelves",
            "Sweet potatoes",
            "Rotator cuff",
            "Steam cleaner",
            "Padded envelopes",
        ];
        let lexical = index(&titles);
        for (query, found) in [
            ("scarves", &["Wool scarf", "Silk scarf"][..]),
            ("lens", &["Camera lens"]),
            ("lenses", &["Camera lens"]),
            ("knives", &["Bread knife"]),
            ("shelves", &["Oak shelf", "Three shelves"]),
            ("potato", &["Sweet potatoes"]),
            ("steaming", &["Steam cleaner"]),
            ("padding", &["Padded envelopes"]),
        ] {
            assert_eq!(lexical.correct(query, &|_| true).unwrap(), None, "{query}");
            assert_eq!(titles_of(&lexical, &titles, query), found, "{query}");
        }
        assert_eq!(lexical.correct("Camerra", &|_| true).unwrap().as_deref(), Some("camera"));
    }

    #[test]
    fn forms_of_other_languages_are_found_if_the_language_is_set() {
        let titles = ["Blaue Tasse", "Sechs Tassen", "Rote Teller"];
        let items: Vec<Item> = titles.iter().map(|title| Item::titled(ItemId::parse("x").unwrap(), title)).collect();
        for (languages, found) in [("en", &["Blaue Tasse"][..]), ("de,en", &["Blaue Tasse", "Sechs Tassen"])] {
            let mut lexical = Lexical::new().unwrap();
            lexical.set_languages(languages.parse().unwrap());
            let rows: Vec<(Row, &Item)> = items.iter().enumerate().map(|(i, item)| (Row(i as u32), item)).collect();
            lexical.upsert(&rows).unwrap();
            assert_eq!(titles_of(&lexical, &titles, "tasse"), found, "{languages}");
        }
    }

    #[test]
    fn a_frequent_neighbour_of_a_rare_word_is_found_after_it() {
        let mut titles = vec!["Silk flowers"; 12];
        titles.extend(["Easter flowrs", "Easter flowers"]);
        let lexical = index(&titles);
        let found = rows(&lexical, "easter flowrs", MatchMode::All);
        assert_eq!(found, [12, 13]);
        assert_eq!(rows(&lexical, "flowrs", MatchMode::All)[0], 12);
        assert_eq!(lexical.correct("flowrs", &|_| true).unwrap(), None);
    }

    #[test]
    fn a_query_of_many_rare_or_unknown_words_scans_the_vocabulary_a_limited_number_of_times() {
        let letter = |n: usize| char::from(b'a' + n as u8);
        let rare: Vec<String> = (0..20).map(|n| format!("zibbl{}wump", letter(n))).collect();
        let lexical = index(&[&rare.join(" "), "Blue mug"]);
        let scans = || std::mem::take(lexical.words.write().vocabulary.scans.get_mut());
        rows(&lexical, &rare.join(" "), MatchMode::All);
        assert_eq!(scans(), SCANNED_WORDS_MAX);
        let unknown: Vec<String> = (0..20).map(|n| format!("krzt{}{}vnq", letter(n), letter(n))).collect();
        assert_eq!(lexical.correct(&unknown.join(" "), &|_| true).unwrap(), None);
        assert_eq!(scans(), SCANNED_WORDS_MAX);
    }

    #[test]
    fn the_words_of_removed_rows_do_not_hide_other_words_from_a_prefix() {
        // So many rows that the segment is not rewritten, and keeps the term "glassed".
        let titles = ["Glassed lamp", "Glass lamp"].into_iter().chain(std::iter::repeat_n("Oak shelf", 40));
        let items: Vec<Item> =
            titles.map(|title| Item::titled(ItemId::parse(&title.replace(' ', "-")).unwrap(), title)).collect();
        let lexical = index_of(&items);
        assert_eq!(rows(&lexical, "glasse", MatchMode::Prefix), [0]);
        lexical.apply(&[RowChange { row: Row(0), old: Some(&items[0]), new: None }]).unwrap();
        lexical.refresh().unwrap();
        assert_eq!(lexical.document_count(), 42);
        assert_eq!(rows(&lexical, "glasse", MatchMode::Prefix), [1]);
    }

    #[test]
    fn corrections_keep_units_and_the_other_words_as_they_were_sent() {
        let mut titles = vec!["Bounces castle"; 5];
        titles.extend(["Cup 8 oz", "Café Straße chocolate"]);
        let lexical = index(&titles);
        for query in ["8 ounces", "8 ounce cup", "cafe strasse", "CAFÉ"] {
            assert_eq!(lexical.correct(query, &|_| true).unwrap(), None, "{query}");
        }
        assert_eq!(lexical.correct(" Straße  choclate", &|_| true).unwrap().as_deref(), Some("Straße chocolate"));
    }

    #[test]
    fn coverage_is_returned_if_no_row_has_every_word() {
        let lexical = index(&["Easter basket of straw", "Bag of marbles", "Bag of pegs", "Bag of tricks"]);
        let relaxed = lexical.search_all_then_any("easter bicycle bag", 10, &|_| true).unwrap();
        assert_eq!((relaxed.complete, relaxed.rows[0].0, relaxed.rows.len()), (0, Row(0), 4));
        assert_eq!(relaxed.coverage.len(), 4);
        assert!(relaxed.coverage[0] > 3.0 * relaxed.coverage[1] && relaxed.coverage[1] > 0.0, "{relaxed:?}");
        assert!(lexical.search_all_then_any("bag", 10, &|_| true).unwrap().coverage.is_empty());
        assert!(lexical.has_match("bag of pegs", &|_| true).unwrap());
        assert!(!lexical.has_match("bag of pegs", &|row| row.0 != 2).unwrap());
        assert!(
            lexical.has_match("sku-1", &|_| true).unwrap() && !lexical.has_match("bag bicycle", &|_| true).unwrap()
        );
    }

    #[test]
    fn function_words_are_neither_required_nor_sufficient() {
        let mut items: Vec<Item> = ["Blue mug", "Red mug handle", "Linen shirt", "Shirt for men", "Men shirt", "Vase"]
            .iter()
            .enumerate()
            .map(|(i, title)| Item::titled(ItemId::parse(&format!("SKU-{i}")).unwrap(), title))
            .collect();
        items[2].description = "a shirt with a collar".to_owned();
        items[5].description = "a vase with a stoneware glaze".to_owned();
        let lexical = index_of(&items);
        let sorted = |query: &str, matching: MatchMode| {
            let mut found = rows(&lexical, query, matching);
            found.sort_unstable();
            found
        };
        for (query, plain) in [
            ("a mug", "mug"),
            ("A Mug", "mug"),
            ("the mug with a handle", "mug handle"),
            ("shirt for men", "shirt men"),
            ("a stoneware", "stoneware"),
            ("mug and bicycle", "mug bicycle"),
            ("of the mug from", "mug"),
        ] {
            for matching in [MatchMode::All, MatchMode::Any] {
                assert_eq!(sorted(query, matching), sorted(plain, matching), "{query} {matching:?}");
            }
            let both = [query, plain].map(|query| lexical.matching(query, &[u64::MAX]).unwrap());
            assert_eq!((&both[0].rows, both[0].scope), (&both[1].rows, both[1].scope), "{query}");
            let scored = [query, plain].map(|query| {
                let mut found = lexical.scores_in(query, both[0].scope, &|_| true).unwrap();
                found.iter_mut().for_each(|(_, score)| *score = 0.0);
                found
            });
            assert_eq!(scored[0], scored[1], "{query}");
        }
        assert_eq!(sorted("mug", MatchMode::All), [0, 1]);
        assert_eq!(sorted("shirt for men", MatchMode::All), [3, 4]);
        assert_eq!(rows(&lexical, "shirt for men", MatchMode::All)[0], 3, "the words count for the score");
        let [with, without] = ["a bicycle mug", "bicycle mug"]
            .map(|query| lexical.search_all_then_any(query, 10, &|_| true).unwrap().coverage);
        assert!(!with.is_empty() && with == without, "{with:?} {without:?}");
    }

    #[test]
    fn function_words_count_without_another_known_word_and_while_they_are_typed() {
        let items = [
            "The Who",
            "Over the top",
            "Toy van",
            "Toy car",
            "In-ear phones",
            "Pan 10 in",
            "Pan 10 cm",
            "Pipe 1/2 in",
            "Pipe 1/2 ft",
        ];
        let lexical = index(&items);
        assert_eq!(rows(&lexical, "the", MatchMode::All).len(), 2);
        assert_eq!(rows(&lexical, "the of", MatchMode::Any).len(), 2);
        assert_eq!(rows(&lexical, "the zzyzx", MatchMode::Any).len(), 2, "no other word is known");
        assert!(rows(&lexical, "the zzyzx", MatchMode::All).is_empty());
        assert_eq!(rows(&lexical, "over the", MatchMode::Prefix), [1]);
        assert!(rows(&lexical, "toy the", MatchMode::Prefix).is_empty(), "the last word is being typed");
        assert_eq!(rows(&lexical, "the toy v", MatchMode::Prefix), [2]);
        assert_eq!(rows(&lexical, "a to", MatchMode::Prefix).len(), 3);
        assert_eq!(rows(&lexical, "toy van", MatchMode::All), [2], "a function word of another language");
        assert_eq!(rows(&lexical, "in-ear phones", MatchMode::All), [4]);
        assert_eq!(rows(&lexical, "pan 10 in", MatchMode::All), [5], "a unit");
        assert_eq!(rows(&lexical, "pipe 1/2 in", MatchMode::All), [7], "a unit");
        assert_eq!(rows(&lexical, "toy with car", MatchMode::All), [3], "no item has the function word");
        assert_eq!(lexical.correct("toy with car", &|_| true).unwrap(), None);
    }

    #[test]
    fn function_words_are_those_of_the_languages() {
        let titles = ["Tasse Kinder", "Fur coat", "Wool coat", "红色 杯子"];
        let items: Vec<Item> = titles.iter().map(|title| Item::titled(ItemId::parse("x").unwrap(), title)).collect();
        let rows: Vec<(Row, &Item)> = items.iter().enumerate().map(|(i, item)| (Row(i as u32), item)).collect();
        for (languages, found) in [("en", &[] as &[&str]), ("de,en", &["Tasse Kinder"])] {
            let mut lexical = Lexical::new().unwrap();
            lexical.set_languages(languages.parse().unwrap());
            lexical.upsert(&rows).unwrap();
            assert_eq!(titles_of(&lexical, &titles, "Tasse für Kinder"), found, "{languages}");
            assert_eq!(titles_of(&lexical, &titles, "fur coat"), ["Fur coat"], "the English word");
            assert_eq!(titles_of(&lexical, &titles, "红色 的 杯子"), ["红色 杯子"]);
        }
    }

    #[test]
    fn the_matches_of_some_rows_join_the_first_matches_in_order() {
        let titles: Vec<String> = (0..30)
            .map(|n| format!("laptop {} {}", ["sleeve", "notebook"][usize::from(n % 3 == 0)], "x ".repeat(n)))
            .collect();
        let lexical = index(&titles.iter().map(String::as_str).collect::<Vec<_>>());
        for query in ["laptop", "laptop bicycle"] {
            let search =
                |count: usize, keep: &dyn Fn(Row) -> bool| lexical.search_all_then_any(query, count, keep).unwrap();
            let (all, is_notebook) = (search(30, &|_| true), |row: Row| row.0.is_multiple_of(3));
            let mut merged = search(4, &|_| true);
            let first: AHashSet<Row> = merged.rows.iter().map(|(row, _)| *row).collect();
            merged.merge(search(30, &is_notebook));
            let expected = all.rows.iter().enumerate().filter(|(_, (row, _))| first.contains(row) || is_notebook(*row));
            let (at, rows): (Vec<usize>, Vec<(Row, f32)>) = expected.unzip();
            assert_eq!(merged.rows, rows, "{query}");
            assert_eq!(merged.complete, if all.complete > 0 { rows.len() } else { 0 });
            let coverage = at.iter().filter_map(|at| all.coverage.get(*at).copied()).collect::<Vec<f32>>();
            assert_eq!(merged.coverage, coverage);
        }
    }

    /// Returns the scores of a query by row.
    fn scores(lexical: &Lexical, query: &str) -> Vec<(Row, f32)> {
        let mut hits = lexical.search(query, MatchMode::Any, 100, &|_| true).unwrap();
        hits.sort_by_key(|(row, _)| *row);
        hits
    }

    #[test]
    fn many_replacements_of_the_same_rows_leave_the_index_as_a_fresh_one() {
        let titles = |round: usize| -> Vec<Item> {
            let title =
                |n: usize| format!("{} mug round{round} {}", ["red", "blue"][n % 2], ["chocolate", "tea"][n % 3 / 2]);
            (0..30).map(|n| Item::titled(ItemId::parse(&format!("i{n}")).unwrap(), &title(n))).collect()
        };
        let (first, mut before) = (index_of(&titles(0)), titles(0));
        for round in 1..=60 {
            let after = titles(round % 7);
            let change = |n: usize| RowChange { row: Row(n as u32), old: Some(&before[n]), new: Some(&after[n]) };
            first.apply(&(0..30).map(change).collect::<Vec<_>>()).unwrap();
            first.refresh().unwrap();
            before = after;
        }
        let fresh = index_of(&before);
        assert_eq!((first.row_count(), fresh.row_count()), (30, 30));
        for query in ["red mug", "tea", "chocolate blue mug"] {
            assert_eq!(scores(&first, query), scores(&fresh, query), "{query}");
        }
        assert!(scores(&first, "round1").is_empty(), "a replaced title is not found");
        let corrected = |lexical: &Lexical| lexical.correct("chocolatte mug", &|_| true).unwrap();
        assert_eq!(corrected(&first), corrected(&fresh));
        let words = (first.words.read(), fresh.words.read());
        assert_eq!(words.0.vocabulary.counts(), words.1.vocabulary.counts());
        assert_eq!(words.0.forms.counts(), words.1.forms.counts());
    }

    #[test]
    fn a_removed_row_is_not_found_and_its_words_are_no_corrections() {
        let items = ["chocolate box", "blue mug"].map(|title| Item::titled(ItemId::parse(title).unwrap(), title));
        let lexical = index_of(&items);
        assert_eq!(lexical.correct("choclate", &|_| true).unwrap().as_deref(), Some("chocolate"));
        lexical.apply(&[RowChange { row: Row(0), old: Some(&items[0]), new: None }]).unwrap();
        lexical.refresh().unwrap();
        assert_eq!(lexical.correct("choclate", &|_| true).unwrap(), None);
        assert_eq!(lexical.row_count(), 1);
        for matching in [MatchMode::All, MatchMode::Any, MatchMode::Prefix] {
            assert!(rows(&lexical, "chocolate", matching).is_empty());
        }
        assert_eq!(lexical.matching("chocolate", &[u64::MAX]).unwrap().rows, [0]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn no_query_is_an_error(query in ".{0,60}", which in 0usize..3) {
            static INDEX: std::sync::OnceLock<Lexical> = std::sync::OnceLock::new();
            let lexical = INDEX.get_or_init(|| index(&["Red mug AND (box)", "蓝色马克杯"]));
            let matching = [MatchMode::All, MatchMode::Any, MatchMode::Prefix][which];
            prop_assert!(lexical.search(&query, matching, 5, &|_| true).is_ok());
        }
    }
}
