//! Search by words: BM25. The only room that names tantivy.
mod collect;
mod correct;
mod document;
mod query;

use super::{forward::ForwardIndex, hnsw::best_first, spelling::Vocabulary, synonyms::Synonyms};
use ahash::AHashSet;
use collect::{all_of, best_of, best_of_some};
use document::{ItemTexts, ordered};
use lodestone_catalog::Item;
use lodestone_core::{ids::Row, text};
use parking_lot::{Mutex, RwLock};
use query::Read;
use rayon::prelude::*;
use tantivy::{
    Index, IndexReader, IndexWriter, ReloadPolicy, Searcher, TantivyDocument, Term,
    indexer::{IndexWriterOptions, LogMergePolicy},
    schema::{FAST, Field, IndexRecordOption, Schema, TextFieldIndexing, TextOptions},
};

/// Bytes that the writer's arena may fill before it makes a segment; only touched pages count.
const ARENA_BYTES: usize = 64 << 20;
/// So many times the wanted rows are scored again, so that a row which BM25 places a little too low can still come up.
const RESCORED_FACTOR: usize = 2;
/// The shortest part of a word that was written without its space, in bytes.
const PART_BYTES_MIN: usize = 2;

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
    /// asked for rows that match and score well enough. For [`Match::Prefix`] only some thousands of the matching
    /// rows are looked at.
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
            Match::Prefix => best_of_some(&searcher, &*self.prefix_query(&searcher, &normal)?, count, keep)?,
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
        let mut rows = all_of(&searcher, &*self.query(&read, Match::All), keep)?;
        rows.extend(all_of(&searcher, &*self.term(self.fields.id, &read.normal), keep)?);
        if rows.is_empty() {
            rows = all_of(&searcher, &*self.query(&read, Match::Any), keep)?;
        }
        rows.sort_unstable();
        rows.dedup();
        Ok(rows)
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
        best_of(searcher, &*self.term(self.fields.id, normal), count, keep)
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
        let mut found = best_of(searcher, &*query, count.saturating_mul(RESCORED_FACTOR), keep)?;
        self.words.read().forward.rescore(&read.groups, &mut found);
        found.sort_unstable_by(best_first);
        found.truncate(count);
        Ok(found)
    }

    fn doc_freq(&self, searcher: &Searcher, field: Field, word: &str) -> Result<u64, LexicalError> {
        Ok(searcher.doc_freq(&Term::from_field_text(field, word))?)
    }
}

/// The first rows, and after them those of the second that are not among them; at most `count`.
fn together(mut first: Vec<(Row, f32)>, second: Vec<(Row, f32)>, count: usize) -> Vec<(Row, f32)> {
    let known: AHashSet<Row> = first.iter().map(|(row, _)| *row).collect();
    first.extend(second.into_iter().filter(|(row, _)| !known.contains(row)));
    first.truncate(count);
    first
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
