//! Spelling correction of query words that no item has.
use super::{
    Lexical, LexicalError, MatchMode, PART_BYTES_MIN, QueryText, SCANNED_WORDS_MAX,
    collect::{any_of, best_of},
};
use lodestone_core::{ids::Row, text};
use lodestone_rules::MergedSynonyms;
use tantivy::{
    Searcher,
    query::{BooleanQuery, Occur},
};

/// Minimum items with two adjacent words for which a joined word is split into the two.
const PAIR_ROWS_MIN: usize = 2;
/// Maximum items that are checked for the two adjacent words.
const PAIR_ROWS_READ_MAX: usize = 1000;

impl Lexical {
    /// Returns the query with its unknown words replaced: by two words if one was written without the space
    /// between them, or by the closest word of titles, brands, categories and tags. None if nothing is replaced, if
    /// the query is an item's id, or if no row that passes `keep` has all words of the corrected query.
    ///
    /// Does not change codes (words with a digit), units, scripts without spaces, short words, function words, forms of
    /// known words and words of the synonyms.
    pub fn correct<'q>(
        &self,
        query: impl Into<QueryText<'q>>,
        keep: &dyn Fn(Row) -> bool,
    ) -> Result<Option<String>, LexicalError> {
        let searcher = self.reader.searcher();
        let query: QueryText = query.into();
        let normal = text::normalize(query.text);
        if any_of(&searcher, &*self.term(self.fields.id, &normal), &|_| true)? {
            return Ok(None);
        }
        // Words that stay are returned as they were sent, with their capitals and accents.
        let sent: Vec<&str> = query.text.split_whitespace().collect();
        let as_sent = sent.iter().map(|word| text::normalize(word)).eq(normal.split(' '));
        let mut corrected: Vec<String> = Vec::new();
        let (mut corrections, mut scans_left) = (0, SCANNED_WORDS_MAX);
        for (at, word) in normal.split(' ').enumerate() {
            let before = corrections;
            let is_code = word.bytes().any(|byte| byte.is_ascii_digit());
            let mut replaced = String::with_capacity(word.len());
            for run in runs(word) {
                let replacement = match is_code || scans_left == 0 {
                    true => None,
                    false => self.replacement(&searcher, run, self.synonyms(query), &mut scans_left)?,
                };
                let replacement = replacement.filter(|replacement| replacement != run);
                corrections += usize::from(replacement.is_some());
                replaced.push_str(replacement.as_deref().unwrap_or(run));
            }
            corrected.push(if as_sent && corrections == before { sent[at].to_owned() } else { replaced });
        }
        let corrected = corrected.join(" ");
        if corrections == 0 || self.search(QueryText { text: &corrected, ..query }, MatchMode::All, 1, keep)?.is_empty()
        {
            return Ok(None);
        }
        Ok(Some(corrected))
    }

    /// Returns the replacement of a query word; none if the word is known or no word is close. Subtracts 1 from
    /// `scans_left`, which must not be 0, unless the word is known.
    fn replacement(
        &self,
        searcher: &Searcher,
        written: &str,
        synonyms: MergedSynonyms,
        scans_left: &mut usize,
    ) -> Result<Option<String>, LexicalError> {
        let [word] = &text::written_words(written)[..] else { return Ok(None) };
        let [token] = &text::tokens(word)[..] else { return Ok(None) };
        // Document frequencies also count documents that were replaced or deleted.
        if any_of(searcher, &*self.word(&token.text), &|_| true)? {
            return Ok(None);
        }
        let has_forms = || {
            let words = self.words.read();
            !words.forms.of(word, &token.text, false, |form| words.forward.frequency(form)).is_empty()
        };
        let is_function_word = self.words.read().forms.languages.has_function_word(word);
        if is_function_word || text::is_unit(word) || synonyms.longest_at(&[&token.text]).is_some() || has_forms() {
            return Ok(None);
        }
        *scans_left -= 1;
        if let Some(parts) = self.parts(searcher, word)? {
            return Ok(Some(parts));
        }
        Ok(self.words.read().vocabulary.correction(word).map(str::to_owned))
    }

    /// Splits a word that was written without a space into the two words that are adjacent in most titles; none if too
    /// few titles have them.
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
            let read = best_of(searcher, &both, PAIR_ROWS_READ_MAX, &|_| true)?;
            let pairs = read.iter().filter(|(row, _)| words.forward.has_pair(*row, &a.text, &b.text)).count();
            if pairs >= PAIR_ROWS_MIN && best.as_ref().is_none_or(|(most, _)| pairs > *most) {
                best = Some((pairs, format!("{first} {second}")));
            }
        }
        Ok(best.map(|(_, parts)| parts))
    }
}

/// Splits a text into alternating runs: word characters (letters with marks, digits, apostrophes; no scripts without
/// spaces) and other characters.
fn runs(text: &str) -> impl Iterator<Item = &str> {
    let is_inside = |c: char| (c.is_alphanumeric() || text::is_combining_mark(c)) && !text::is_unspaced(c) || c == '\'';
    let mut rest = text;
    std::iter::from_fn(move || {
        let inside = is_inside(rest.chars().next()?);
        let end = rest.find(|c| is_inside(c) != inside).unwrap_or(rest.len());
        let (run, after) = rest.split_at(end);
        rest = after;
        Some(run)
    })
}
