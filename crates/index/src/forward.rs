//! The words of each item in their order, by which the best rows of BM25 are scored again.
use ahash::AHashMap;
use lodestone_core::ids::Row;

/// Between a title and the labels behind it: no word.
const BREAK: u32 = u32::MAX;
/// What a row whose title has all words of the query gets on top of its BM25 score, as a share of it; a row whose title has
/// some gets their share by inverse document frequency.
const COVERAGE_WEIGHT: f32 = 2.0;
/// What two neighbours of the query that are neighbours in the title bring, in units of BM25 with the boost of titles.
const PAIR_WEIGHT: f32 = 6.0;

/// What one place of a query may be: each alternative is a list of words. Most groups are one word.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Group {
    pub alternatives: Vec<Vec<String>>,
}

/// A forward index: row → words of its title and labels. 4 bytes a word.
#[derive(Default)]
pub(crate) struct ForwardIndex {
    ids: AHashMap<Box<str>, u32>,
    /// By word: rows that have it.
    row_counts: Vec<u32>,
    words: Vec<u32>,
    /// By row: where its words end; they begin where those of the row before end.
    spans: Vec<(u32, u32)>,
    row_count: usize,
}

impl ForwardIndex {
    /// Adds a row, once.
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
        let mut distinct: Vec<u32> = self.words[start..].iter().copied().filter(|word| *word != BREAK).collect();
        distinct.sort_unstable();
        distinct.dedup();
        for word in distinct {
            self.row_counts[word as usize] += 1;
        }
        if self.spans.len() <= row.index() {
            self.spans.resize(row.index() + 1, (0, 0));
        }
        self.spans[row.index()] = (start as u32, self.words.len() as u32);
        self.row_count += 1;
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

    /// Rows that have the word.
    pub(crate) fn frequency(&self, word: &str) -> u32 {
        self.ids.get(word).map_or(0, |&id| self.row_counts[id as usize])
    }

    /// Whether `second` stands right behind `first` in the row.
    pub(crate) fn has_pair(&self, row: Row, first: &str, second: &str) -> bool {
        let (Some(&first), Some(&second)) = (self.ids.get(first), self.ids.get(second)) else { return false };
        self.of(row).windows(2).any(|pair| pair == [first, second])
    }

    fn of(&self, row: Row) -> &[u32] {
        let (start, end) = self.spans.get(row.index()).copied().unwrap_or_default();
        &self.words[start as usize..end as usize]
    }

    /// Robertson's inverse document frequency, as in BM25.
    fn inverse_frequency(&self, word: &str) -> f32 {
        let (rows, with) = (self.row_count as f32, self.frequency(word) as f32);
        ((rows - with + 0.5) / (with + 0.5) + 1.0).ln().max(0.0)
    }

    /// Scores rows again, in place: BM25 knows neither how much of the query a title has nor the order of words.
    pub(crate) fn rescore(&self, groups: &[Group], found: &mut [(Row, f32)]) {
        let sought: Vec<Sought> = groups.iter().map(|group| self.seek(group)).collect();
        let whole: f32 = sought.iter().map(|group| group.weight).sum();
        if whole <= 0.0 {
            return;
        }
        for (row, score) in found {
            let words = self.of(*row);
            let covered: f32 = sought.iter().map(|group| group.weight * group.share_in(words)).sum();
            let pairs = words.windows(2).filter(|pair| is_sought(&sought, pair[0], pair[1])).count();
            *score = *score * (1.0 + COVERAGE_WEIGHT * covered / whole) + PAIR_WEIGHT * pairs.min(groups.len()) as f32;
        }
    }

    fn seek(&self, group: &Group) -> Sought {
        let alternatives: Vec<Vec<(u32, f32)>> = (group.alternatives.iter())
            .map(|words| {
                let sought = |word: &String| {
                    // A word that no row has is no word of any row either, but it counts in what is not covered.
                    let id = self.ids.get(word.as_str()).copied().unwrap_or(BREAK);
                    (id, self.inverse_frequency(word))
                };
                words.iter().map(sought).collect()
            })
            .collect();
        let weight = |words: &Vec<(u32, f32)>| words.iter().map(|(_, weight)| weight).sum::<f32>();
        let lightest = alternatives.iter().map(weight).fold(f32::INFINITY, f32::min);
        Sought { weight: if lightest.is_finite() { lightest } else { 0.0 }, alternatives }
    }
}

/// A group as the forward index knows it.
struct Sought {
    /// Inverse document frequency of its most frequent alternative.
    weight: f32,
    /// Words with their inverse document frequency.
    alternatives: Vec<Vec<(u32, f32)>>,
}

impl Sought {
    /// How much of the alternative that is there most is there, 0 to 1.
    fn share_in(&self, row: &[u32]) -> f32 {
        let share = |words: &Vec<(u32, f32)>| {
            let (mut there, mut whole) = (0.0, f32::MIN_POSITIVE);
            for &(word, weight) in words {
                whole += weight;
                if word != BREAK && row.contains(&word) {
                    there += weight;
                }
            }
            there / whole
        };
        self.alternatives.iter().map(share).fold(0.0, f32::max)
    }
}

/// Whether two words follow each other in the query: in an alternative, or from one group to the next.
fn is_sought(groups: &[Sought], first: u32, second: u32) -> bool {
    if first == BREAK || second == BREAK {
        return false;
    }
    let within = |words: &Vec<(u32, f32)>| words.windows(2).any(|pair| pair[0].0 == first && pair[1].0 == second);
    let ends = |group: &Sought| group.alternatives.iter().any(|words| words.last().is_some_and(|w| w.0 == first));
    let begins = |group: &Sought| group.alternatives.iter().any(|words| words.first().is_some_and(|w| w.0 == second));
    groups.iter().any(|group| group.alternatives.iter().any(within))
        || groups.windows(2).any(|pair| ends(&pair[0]) && begins(&pair[1]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(words: &str) -> Group {
        Group { alternatives: words.split('|').map(|words| words.split(' ').map(str::to_owned).collect()).collect() }
    }

    fn order(titles: &[&str], query: &[&str]) -> Vec<u32> {
        let mut index = ForwardIndex::default();
        for (row, title) in titles.iter().enumerate() {
            index.add(Row(row as u32), title.split(' '), std::iter::empty());
        }
        let mut found: Vec<(Row, f32)> = (0..titles.len()).map(|row| (Row(row as u32), 10.0)).collect();
        index.rescore(&query.iter().map(|words| group(words)).collect::<Vec<_>>(), &mut found);
        found.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        found.into_iter().map(|(row, _)| row.0).collect()
    }

    #[test]
    fn titles_with_more_of_the_query_in_its_order_come_first() {
        assert_eq!(order(&["red box", "mug red", "red mug"], &["red", "mug"]), [2, 1, 0]);
        assert_eq!(order(&["kettle", "doorbell", "door bell"], &["door bell|doorbell"])[2], 0);
        assert_eq!(order(&["a", "b"], &["unknown"]), [0, 1]);
    }

    #[test]
    fn labels_are_words_but_no_neighbours_of_the_title() {
        let mut index = ForwardIndex::default();
        index.add(Row(3), "red mug".split(' '), "acme".split(' '));
        assert!(index.has_pair(Row(3), "red", "mug"));
        assert!(!index.has_pair(Row(3), "mug", "acme"));
        assert!(!index.has_pair(Row(0), "red", "mug") && !index.has_pair(Row(99), "red", "mug"));
        assert_eq!(index.frequency("acme"), 1);
    }
}
