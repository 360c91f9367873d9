//! A forward index, from which the best rows of BM25 are rescored by coverage and order of words.
use crate::arrays::{ArrayReader, ArrayWriter, ArraysError, check};
use ahash::AHashMap;
use lodestone_core::ids::Row;

/// Separates the words of a title from those of the labels; also the id of an unknown word in a query.
const BREAK: u32 = u32::MAX;
/// Bonus of a row that has all words of the query, as a factor of its BM25 score. A row that has some of the words gets
/// their share by inverse document frequency.
const COVERAGE_WEIGHT: f32 = 2.0;
/// Bonus of two words that are adjacent in the query and in the row, in units of BM25 with the boost of titles.
const PAIR_WEIGHT: f32 = 6.0;

/// Weight of a form of a query's word, or of the word of which it may be a misspelling.
const FORM_WEIGHT: f32 = 0.6;

/// One position of a query with its alternatives, each a list of words. Most groups have one alternative of one word.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Group {
    pub alternatives: Vec<Vec<String>>,
    /// The number of first alternatives that mean the same as the query; the others are forms of its word.
    pub equal_count: usize,
    /// The group changes the score alone: a row needs another group to match, and no alternative of this one to have all
    /// words of the query.
    pub is_optional: bool,
}

impl Group {
    /// A group of equivalent alternatives.
    pub(crate) fn of(alternatives: Vec<Vec<String>>) -> Self {
        Self { equal_count: alternatives.len(), alternatives, is_optional: false }
    }

    /// Returns the weight of the alternative at an index.
    pub(crate) fn alternative_weight(&self, at: usize) -> f32 {
        if at < self.equal_count { 1.0 } else { FORM_WEIGHT }
    }
}

/// Words of the title and labels of each row, in their order. Takes 4 bytes for each word.
#[derive(Default)]
pub(crate) struct ForwardIndex {
    ids: AHashMap<Box<str>, u32>,
    /// By word id: the number of rows that have the word.
    row_counts: Vec<u32>,
    /// Word ids of all rows.
    words: Vec<u32>,
    /// By row: start and end of its words in `words`.
    spans: Vec<(u32, u32)>,
    row_count: usize,
    /// Number of words in `words` that belong to no row.
    dead_count: usize,
}

/// Minimum number of dead words for a compaction.
const DEAD_WORDS_MIN: usize = 4096;

impl ForwardIndex {
    /// Adds a row that the index does not have.
    pub(crate) fn add<'a>(
        &mut self,
        row: Row,
        title: impl Iterator<Item = &'a str>,
        labels: impl Iterator<Item = &'a str>,
    ) {
        let start = self.words.len();
        for word in title {
            let id = self.intern(word);
            self.words.push(id);
        }
        self.words.push(BREAK);
        for word in labels {
            let id = self.intern(word);
            self.words.push(id);
        }
        for word in distinct(&self.words[start..]) {
            self.row_counts[word as usize] += 1;
        }
        if self.spans.len() <= row.index() {
            self.spans.resize(row.index() + 1, (0, 0));
        }
        self.spans[row.index()] = (start as u32, self.words.len() as u32);
        self.row_count += 1;
    }

    /// Removes a row that the index has.
    pub(crate) fn remove(&mut self, row: Row) {
        for word in distinct(self.of(row)) {
            self.row_counts[word as usize] -= 1;
        }
        self.dead_count += self.of(row).len();
        self.spans[row.index()] = (0, 0);
        self.row_count -= 1;
        if self.dead_count >= DEAD_WORDS_MIN && self.dead_count > self.words.len() / 2 {
            self.compact();
        }
    }

    /// Drops the words that belong to no row.
    fn compact(&mut self) {
        let mut texts: Vec<Box<str>> = vec![Box::default(); self.row_counts.len()];
        self.ids.drain().for_each(|(text, id)| texts[id as usize] = text);
        let old_counts = std::mem::take(&mut self.row_counts);
        let mut new_ids = vec![BREAK; old_counts.len()];
        for (id, text) in texts.into_iter().enumerate().filter(|(id, _)| old_counts[*id] > 0) {
            new_ids[id] = self.row_counts.len() as u32;
            self.ids.insert(text, new_ids[id]);
            self.row_counts.push(old_counts[id]);
        }
        self.ids.shrink_to_fit();
        let mut words = Vec::with_capacity(self.words.len() - self.dead_count);
        for (start, end) in &mut self.spans {
            let begin = words.len() as u32;
            let of_row = &self.words[*start as usize..*end as usize];
            words.extend(of_row.iter().map(|word| if *word == BREAK { BREAK } else { new_ids[*word as usize] }));
            (*start, *end) = (begin, words.len() as u32);
        }
        self.words = words;
        self.dead_count = 0;
    }

    fn intern(&mut self, word: &str) -> u32 {
        if let Some(&id) = self.ids.get(word) {
            return id;
        }
        let id = self.row_counts.len() as u32;
        self.ids.insert(word.into(), id);
        self.row_counts.push(0);
        id
    }

    /// Writes the words by id with the number of their rows, and the word ids of each row.
    pub(crate) fn write(&self, out: &mut ArrayWriter) {
        let mut texts: Vec<&str> = vec![""; self.row_counts.len()];
        self.ids.iter().for_each(|(text, id)| texts[*id as usize] = text);
        out.texts(texts.into_iter());
        out.numbers(self.row_counts.iter().copied());
        out.numbers(self.spans.iter().map(|(start, end)| end - start));
        let words: Vec<u32> = (0..self.spans.len()).flat_map(|row| self.of(Row(row as u32))).copied().collect();
        out.numbers(words.into_iter());
    }

    /// Reads the output of [`ForwardIndex::write`] for an index of `row_count` rows without removed ones.
    pub(crate) fn read(reader: &mut ArrayReader, row_count: usize) -> Result<Self, ArraysError> {
        let (texts, row_counts) = (reader.texts()?, reader.numbers()?);
        let (lengths, words) = (reader.numbers()?, reader.numbers()?);
        // A row has at least the word id between title and labels.
        check(lengths.len() == row_count && !lengths.contains(&0), "its rows are not those of the items")?;
        check(words.iter().all(|word| (*word as usize) < texts.len() || *word == BREAK), "a word id is out of range")?;
        let mut ids = AHashMap::with_capacity(texts.len());
        ids.extend(texts.iter().zip(0..).map(|(text, id)| (Box::from(*text), id)));
        check(ids.len() == texts.len(), "a word occurs twice")?;
        let mut end = 0u32;
        let mut spans = Vec::with_capacity(lengths.len());
        for length in &lengths {
            let start = end;
            end = start.saturating_add(*length);
            spans.push((start, end));
        }
        check(end as usize == words.len(), "the lengths of the rows are not those of their words")?;
        let mut counted = vec![0; texts.len()];
        let mut last_rows = vec![u32::MAX; texts.len()];
        for (row, (start, end)) in (0u32..).zip(&spans) {
            for word in words[*start as usize..*end as usize].iter().filter(|word| **word != BREAK) {
                let word = *word as usize;
                counted[word] += u32::from(last_rows[word] != row);
                last_rows[word] = row;
            }
        }
        check(row_counts == counted, "the counts of its words are not those of its rows")?;
        Ok(Self { ids, row_counts, words, spans, row_count, dead_count: 0 })
    }

    /// Returns the number of rows that have the word.
    pub(crate) fn frequency(&self, word: &str) -> u32 {
        self.ids.get(word).map_or(0, |&id| self.row_counts[id as usize])
    }

    /// Returns true if `second` follows `first` immediately in the row.
    pub(crate) fn has_pair(&self, row: Row, first: &str, second: &str) -> bool {
        let (Some(&first), Some(&second)) = (self.ids.get(first), self.ids.get(second)) else { return false };
        self.of(row).windows(2).any(|pair| pair == [first, second])
    }

    fn of(&self, row: Row) -> &[u32] {
        let (start, end) = self.spans.get(row.index()).copied().unwrap_or_default();
        &self.words[start as usize..end as usize]
    }

    /// Returns Robertson's inverse document frequency, as in BM25.
    fn inverse_frequency(&self, word: &str) -> f32 {
        let (rows, with) = (self.row_count as f32, self.frequency(word) as f32);
        ((rows - with + 0.5) / (with + 0.5) + 1.0).ln().max(0.0)
    }

    /// Adds bonuses for coverage and order of the query's words to the scores, because BM25 considers neither.
    pub(crate) fn rescore(&self, groups: &[Group], hits: &mut [(Row, f32)]) {
        let groups: Vec<WeightedGroup> = groups.iter().map(|group| self.weighted(group)).collect();
        for (row, score) in hits {
            let words = self.of(*row);
            let pairs = words.windows(2).filter(|pair| is_adjacent(&groups, pair[0], pair[1])).count();
            *score = *score * (1.0 + COVERAGE_WEIGHT * coverage(&groups, words))
                + PAIR_WEIGHT * pairs.min(groups.len()) as f32;
        }
    }

    /// Returns the share of the query's words, weighted by inverse document frequency, that each row has in its title
    /// or labels, 0 to 1.
    pub(crate) fn coverage(&self, groups: &[Group], rows: impl Iterator<Item = Row>) -> Vec<f32> {
        let groups: Vec<WeightedGroup> = groups.iter().map(|group| self.weighted(group)).collect();
        rows.map(|row| coverage(&groups, self.of(row))).collect()
    }

    fn weighted(&self, group: &Group) -> WeightedGroup {
        let alternatives: Vec<Vec<(u32, f32)>> = (group.alternatives.iter())
            .map(|words| {
                let weighted = |word: &String| {
                    // A word that no row has matches no word, but its weight reduces the coverage.
                    let id = self.ids.get(word.as_str()).copied().unwrap_or(BREAK);
                    (id, self.inverse_frequency(word))
                };
                words.iter().map(weighted).collect()
            })
            .collect();
        let weight = |words: &Vec<(u32, f32)>| words.iter().map(|(_, weight)| weight).sum::<f32>();
        let lightest = alternatives.iter().map(weight).fold(f32::INFINITY, f32::min);
        let factors = (0..alternatives.len()).map(|at| group.alternative_weight(at)).collect();
        let counts = lightest.is_finite() && !group.is_optional;
        WeightedGroup { weight: if counts { lightest } else { 0.0 }, alternatives, factors }
    }
}

/// Returns the distinct words of a row.
fn distinct(words: &[u32]) -> Vec<u32> {
    let mut distinct: Vec<u32> = words.iter().copied().filter(|word| *word != BREAK).collect();
    distinct.sort_unstable();
    distinct.dedup();
    distinct
}

/// A group with word ids and inverse document frequencies.
struct WeightedGroup {
    /// Sum of the inverse document frequencies of the alternative with the least sum; 0 if the group is optional.
    weight: f32,
    /// Word ids with their inverse document frequencies.
    alternatives: Vec<Vec<(u32, f32)>>,
    /// By alternative.
    factors: Vec<f32>,
}

/// Returns the weighted share of the groups that a row has, 0 to 1.
fn coverage(groups: &[WeightedGroup], row: &[u32]) -> f32 {
    let whole: f32 = groups.iter().map(|group| group.weight).sum();
    let covered: f32 = groups.iter().map(|group| group.weight * group.share_in(row)).sum();
    if whole > 0.0 { covered / whole } else { 0.0 }
}

impl WeightedGroup {
    /// Returns the weighted share of words in the row, 0 to 1, of the alternative with the greatest share.
    fn share_in(&self, row: &[u32]) -> f32 {
        let share = |words: &Vec<(u32, f32)>| {
            let (mut present, mut whole) = (0.0, f32::MIN_POSITIVE);
            for &(word, weight) in words {
                whole += weight;
                if word != BREAK && row.contains(&word) {
                    present += weight;
                }
            }
            present / whole
        };
        let shares = self.alternatives.iter().zip(&self.factors).map(|(words, factor)| factor * share(words));
        shares.fold(0.0, f32::max)
    }
}

/// Returns true if two words are adjacent in the query, within an alternative or across two groups.
fn is_adjacent(groups: &[WeightedGroup], first: u32, second: u32) -> bool {
    if first == BREAK || second == BREAK {
        return false;
    }
    let within = |words: &Vec<(u32, f32)>| words.windows(2).any(|pair| pair[0].0 == first && pair[1].0 == second);
    let ends =
        |group: &WeightedGroup| group.alternatives.iter().any(|words| words.last().is_some_and(|w| w.0 == first));
    let begins =
        |group: &WeightedGroup| group.alternatives.iter().any(|words| words.first().is_some_and(|w| w.0 == second));
    groups.iter().any(|group| group.alternatives.iter().any(within))
        || groups.windows(2).any(|pair| ends(&pair[0]) && begins(&pair[1]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(words: &str) -> Group {
        Group::of(words.split('|').map(|words| words.split(' ').map(str::to_owned).collect()).collect())
    }

    fn order(titles: &[&str], query: &[&str]) -> Vec<u32> {
        let mut index = ForwardIndex::default();
        for (row, title) in titles.iter().enumerate() {
            index.add(Row(row as u32), title.split(' '), std::iter::empty());
        }
        let mut hits: Vec<(Row, f32)> = (0..titles.len()).map(|row| (Row(row as u32), 10.0)).collect();
        index.rescore(&query.iter().map(|words| group(words)).collect::<Vec<_>>(), &mut hits);
        hits.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        hits.into_iter().map(|(row, _)| row.0).collect()
    }

    #[test]
    fn coverage_and_word_order_determine_the_order() {
        assert_eq!(order(&["red box", "mug red", "red mug"], &["red", "mug"]), [2, 1, 0]);
        assert_eq!(order(&["kettle", "doorbell", "door bell"], &["door bell|doorbell"])[2], 0);
        assert_eq!(order(&["a", "b"], &["unknown"]), [0, 1]);
    }

    #[test]
    fn replaced_rows_leave_no_counts_and_little_memory() {
        let mut index = ForwardIndex::default();
        let add = |index: &mut ForwardIndex, row: usize, round: usize| {
            let title = format!("red mug word{round}x{row}");
            index.add(Row(row as u32), title.split(' '), "acme".split(' '));
        };
        (0..100).for_each(|row| add(&mut index, row, 0));
        for round in 1..200 {
            for row in 0..100 {
                index.remove(Row(row as u32));
                add(&mut index, row, round);
            }
        }
        assert_eq!((index.frequency("red"), index.frequency("word0x7"), index.frequency("word199x7")), (100, 0, 1));
        assert!(index.has_pair(Row(7), "mug", "word199x7"));
        let limit = 2 * DEAD_WORDS_MIN + 1000;
        assert!(index.words.len() < limit && index.ids.len() < limit, "{} {}", index.words.len(), index.ids.len());
    }

    #[test]
    fn a_file_whose_numbers_contradict_each_other_is_an_error() {
        let read = |row_count: usize, numbers: [&[u32]; 3]| -> Result<(), ArraysError> {
            let mut out = ArrayWriter::new(b"LSTESTS1");
            out.texts(["red", "mug"].into_iter());
            numbers.iter().for_each(|numbers| out.numbers(numbers.iter().copied()));
            let bytes = out.finish();
            ForwardIndex::read(&mut ArrayReader::new(&bytes, b"LSTESTS1")?, row_count).map(drop)
        };
        let (counts, lengths, words) = ([2, 1], [3, 3], [0, 1, BREAK, 0, BREAK, 0]);
        read(2, [&counts, &lengths, &words]).unwrap();
        for (row_count, numbers) in [
            (1, [&counts[..], &lengths[..], &words[..]]),
            (3, [&counts, &lengths, &words]),
            (2, [&counts, &[6, 0], &words]),
            (2, [&counts, &[3, 2], &words]),
            (2, [&counts, &[3, u32::MAX], &words]),
            (2, [&[1, 1], &lengths, &words]),
            (2, [&[3, 1], &lengths, &words]),
            (2, [&[2, 1, 0], &lengths, &words]),
            (2, [&[2], &lengths, &words]),
            (2, [&counts, &lengths, &[0, 1, BREAK, 0, BREAK, 2]]),
        ] {
            assert!(matches!(read(row_count, numbers), Err(ArraysError::Content(_))), "{row_count} {numbers:?}");
        }
    }

    #[test]
    fn labels_are_indexed_but_not_adjacent_to_the_title() {
        let mut index = ForwardIndex::default();
        index.add(Row(3), "red mug".split(' '), "acme".split(' '));
        assert!(index.has_pair(Row(3), "red", "mug"));
        assert!(!index.has_pair(Row(3), "mug", "acme"));
        assert!(!index.has_pair(Row(0), "red", "mug") && !index.has_pair(Row(99), "red", "mug"));
        assert_eq!(index.frequency("acme"), 1);
    }
}
