//! Search by words: BM25. The only file that names tantivy.
use super::hnsw::TopRows;
use crate::{
    catalog::Item,
    ids::Row,
    text::{self, TokenKind},
};
use ahash::AHashSet;
use parking_lot::Mutex;
use rayon::prelude::*;
use std::collections::BTreeSet;
use tantivy::{
    Index, IndexReader, IndexWriter, ReloadPolicy, Searcher, TantivyDocument, Term,
    indexer::{IndexWriterOptions, LogMergePolicy},
    query::{BooleanQuery, BoostQuery, ConstScoreQuery, EmptyQuery, EnableScoring, Occur, Query, TermQuery},
    schema::{FAST, Field, IndexRecordOption, Schema, TextFieldIndexing, TextOptions},
    tokenizer::{PreTokenizedString, Token},
};

/// Bytes that the writer's arena may fill before it makes a segment; only touched pages count.
const ARENA_BYTES: usize = 64 << 20;
/// Tokens of a query that are searched for; a longer query is cut.
const QUERY_TOKENS_MAX: usize = 48;
/// Terms that a prefix may stand for.
const EXPANSIONS_MAX: usize = 32;
/// What a query that is an item's id gives that item: more than any sum of words.
const ID_SCORE: f32 = 1000.0;

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

#[derive(Clone, Copy)]
struct Fields {
    row: Field,
    id: Field,
    title: Field,
    labels: Field,
    description: Field,
}

/// Words of items, in memory. Writes and searches may run at the same time.
///
/// Rows are only added: a replaced or deleted item stays until the index is built anew, so the `keep` of a search must
/// refuse dead rows.
pub struct Lexical {
    fields: Fields,
    reader: IndexReader,
    writer: Mutex<IndexWriter>,
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
        let options = IndexWriterOptions::builder()
            .memory_budget_per_thread(ARENA_BYTES)
            .num_worker_threads(1)
            .num_merge_threads(1)
            .build();
        let writer: IndexWriter = index.writer_with_options(options)?;
        let mut merging = LogMergePolicy::default();
        // Each write makes a segment; every segment costs each search a little.
        merging.set_min_num_segments(4);
        writer.set_merge_policy(Box::new(merging));
        let reader = index.reader_builder().reload_policy(ReloadPolicy::Manual).try_into()?;
        Ok(Self { fields, reader, writer: Mutex::new(writer) })
    }

    /// Adds rows. They can be found when this returns. A row must not be added twice.
    pub fn upsert(&self, rows: &[(Row, &Item)]) -> Result<(), LexicalError> {
        let documents: Vec<TantivyDocument> = rows.par_iter().map(|(row, item)| self.document(*row, item)).collect();
        let mut writer = self.writer.lock();
        for document in documents {
            writer.add_document(document)?;
        }
        writer.commit()?;
        self.reader.reload()?;
        Ok(())
    }

    /// Rows that were added, dead ones too.
    pub fn row_count(&self) -> usize {
        self.reader.searcher().num_docs() as usize
    }

    /// The `count` rows that `keep` lets through and that match the query best, best first, with their BM25 score
    /// (above 0). A query without words finds nothing. `keep` is only asked for rows that match and score well enough.
    pub fn search(
        &self,
        query: &str,
        matching: Match,
        count: usize,
        keep: &dyn Fn(Row) -> bool,
    ) -> Result<Vec<(Row, f32)>, LexicalError> {
        let searcher = self.reader.searcher();
        let query = self.query(&searcher, query, matching)?;
        if count == 0 {
            return Ok(Vec::new());
        }
        let weight = query.weight(EnableScoring::enabled_from_searcher(&searcher))?;
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

    /// The rows that have every word, best first, and after them, where there are fewer than `count`, those that have some.
    /// The second value is the number of the former.
    pub fn search_all_then_any(
        &self,
        query: &str,
        count: usize,
        keep: &dyn Fn(Row) -> bool,
    ) -> Result<(Vec<(Row, f32)>, usize), LexicalError> {
        let mut found = self.search(query, Match::All, count, keep)?;
        let complete = found.len();
        if complete < count {
            let known: AHashSet<Row> = found.iter().map(|(row, _)| *row).collect();
            let partial = self.search(query, Match::Any, count, keep)?;
            found.extend(partial.into_iter().filter(|(row, _)| !known.contains(row)));
            found.truncate(count);
        }
        Ok((found, complete))
    }

    fn document(&self, row: Row, item: &Item) -> TantivyDocument {
        let mut document = TantivyDocument::new();
        document.add_u64(self.fields.row, u64::from(row.0));
        document.add_pre_tokenized_text(self.fields.id, tokenized(std::iter::once(text::normalize(item.id.as_str()))));
        document.add_pre_tokenized_text(self.fields.title, indexed(&item.title));
        let mut labels = item.brand.clone();
        for label in item.categories.iter().chain(&item.tags) {
            labels.push_str(" · ");
            labels.push_str(label);
        }
        document.add_pre_tokenized_text(self.fields.labels, indexed(&labels));
        if !item.description.is_empty() {
            document.add_pre_tokenized_text(self.fields.description, indexed(&item.description));
        }
        document
    }

    fn query(&self, searcher: &Searcher, query: &str, matching: Match) -> Result<Box<dyn Query>, LexicalError> {
        let normal = text::normalize(query);
        let mut tokens = text::tokens(&normal);
        tokens.truncate(QUERY_TOKENS_MAX);
        if tokens.is_empty() && normal.is_empty() {
            return Ok(Box::new(EmptyQuery));
        }
        let unfinished = match matching {
            Match::Prefix => take_last_word(&normal, &mut tokens),
            Match::All | Match::Any => None,
        };
        let mut seen = BTreeSet::new();
        let mut clauses: Vec<(Occur, Box<dyn Query>)> = Vec::new();
        for token in tokens.iter().filter(|token| seen.insert((token.text.as_str(), token.kind == TokenKind::Bigram))) {
            let is_word = matches!(token.kind, TokenKind::Word | TokenKind::CjkWord);
            match (matching, is_word) {
                (_, false) if token.kind == TokenKind::Character => {}
                (Match::Any, _) | (_, false) => clauses.push((Occur::Should, self.word(&token.text))),
                (_, true) => clauses.push((Occur::Must, self.must(token))),
            }
        }
        if let Some((typed, stemmed)) = unfinished {
            clauses.push((Occur::Must, self.prefix(searcher, &typed, &stemmed)?));
        }
        let by_id: Box<dyn Query> = Box::new(ConstScoreQuery::new(self.term(self.fields.id, &normal), ID_SCORE));
        if clauses.is_empty() {
            return Ok(by_id);
        }
        let by_words: Box<dyn Query> = Box::new(BooleanQuery::new(clauses));
        if !self.has_id(searcher, &normal)? {
            // The plain form lets tantivy skip documents that cannot get in.
            return Ok(by_words);
        }
        Ok(Box::new(BooleanQuery::new(vec![(Occur::Should, by_words), (Occur::Should, by_id)])))
    }

    fn has_id(&self, searcher: &Searcher, normal: &str) -> Result<bool, LexicalError> {
        Ok(searcher.doc_freq(&Term::from_field_text(self.fields.id, normal))? > 0)
    }

    /// A word that must be there. The segmenter may cut the same Chinese characters differently in a title, so the
    /// word also counts as found where all its bigrams are.
    fn must(&self, token: &text::Token) -> Box<dyn Query> {
        let word = self.word(&token.text);
        if token.kind != TokenKind::CjkWord || token.text.chars().count() < 3 {
            return word;
        }
        let bigrams = text::grams(&token.text, 2).map(|bigram| (Occur::Must, self.word(bigram))).collect();
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

fn boosted(query: Box<dyn Query>, boost: f32) -> Box<dyn Query> {
    Box::new(BoostQuery::new(query, boost))
}

/// The words of a field that start with `prefix`, at most [`EXPANSIONS_MAX`]: the exact one and then the most frequent.
fn expansions(searcher: &Searcher, field: Field, prefix: &str) -> Result<Vec<String>, LexicalError> {
    let mut found: std::collections::BTreeMap<String, u32> = std::collections::BTreeMap::new();
    for segment in searcher.segment_readers() {
        let inverted = segment.inverted_index(field)?;
        let mut stream = inverted.terms().range().ge(prefix.as_bytes()).into_stream()?;
        while stream.advance() && stream.key().starts_with(prefix.as_bytes()) {
            if let Ok(word) = std::str::from_utf8(stream.key()) {
                *found.entry(word.to_owned()).or_insert(0) += stream.value().doc_freq;
            }
        }
    }
    let mut words: Vec<(String, u32)> = found.into_iter().collect();
    words.sort_by_key(|(word, frequency)| (word != prefix, std::cmp::Reverse(*frequency)));
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

fn indexed(text: &str) -> PreTokenizedString {
    tokenized(text::tokens(text).into_iter().map(|token| token.text))
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
