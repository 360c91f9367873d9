//! Earlier histories with an inverted index by item, for recommendations from the histories that share items with a
//! user's (V-SKNN and STAN: Ludewig & Jannach 2018, Garg et al. 2019).
use lodestone_core::{
    format::OtherVersion,
    ids::{ItemKey, Row},
};
use std::cell::RefCell;

const MAGIC: &[u8; 8] = b"LSHISTO1";

/// Most histories that are kept, those with the latest events.
const HISTORIES_MAX: usize = 200_000;
/// Most items that are kept of a history, the latest ones.
const HISTORY_ITEMS_MAX: usize = 50;
/// Histories that are read for one item, the latest ones.
const POSTINGS_MAX: usize = 300;
/// Histories whose items are scored, the most similar ones.
const SIMILAR_MAX: usize = 100;

/// The reason why [`Histories::from_bytes`] rejects its input.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HistoriesError {
    #[error("does not begin with LSHISTO1, so it does not contain histories")]
    Magic,
    #[error("{0}")]
    Version(OtherVersion),
    #[error("has {found} bytes; its header requires {expected}")]
    Length { expected: u64, found: u64 },
    #[error("the offset of history {history} is out of order or out of range")]
    Offset { history: usize },
    #[error("the item at {position} is row {row}, but there are {row_count} rows")]
    Row { position: usize, row: u32, row_count: usize },
}

/// Histories as rows of the item table, in the order of their last events, in compressed sparse row (CSR) format.
#[derive(Debug, Clone, PartialEq)]
pub struct Histories {
    row_count: usize,
    /// `[histories + 1]`
    offsets: Vec<u32>,
    rows: Vec<u32>,
}

impl Histories {
    /// Keeps the latest [`HISTORIES_MAX`] histories with at least two items and the latest [`HISTORY_ITEMS_MAX`] items
    /// of each. `histories` are in the order of their last events, their items in time order and below `row_count`.
    pub fn new(row_count: usize, histories: &[Vec<u32>]) -> Self {
        let mut kept = Self { row_count, offsets: vec![0], rows: Vec::new() };
        let of_pairs: Vec<&Vec<u32>> = histories.iter().filter(|history| history.len() > 1).collect();
        for history in &of_pairs[of_pairs.len().saturating_sub(HISTORIES_MAX)..] {
            kept.rows.extend_from_slice(&history[history.len().saturating_sub(HISTORY_ITEMS_MAX)..]);
            kept.offsets.push(kept.rows.len() as u32);
        }
        kept
    }

    pub fn row_count(&self) -> usize {
        self.row_count
    }

    /// Serializes the histories: magic, number of rows, histories and items as u64, offsets, items; little endian.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        for count in [self.row_count, self.offsets.len() - 1, self.rows.len()] {
            bytes.extend_from_slice(&(count as u64).to_le_bytes());
        }
        self.offsets.iter().chain(&self.rows).for_each(|number| bytes.extend_from_slice(&number.to_le_bytes()));
        bytes
    }

    /// Parses the output of [`Histories::to_bytes`]. Checks every offset and row.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, HistoriesError> {
        let body = bytes.strip_prefix(MAGIC).ok_or_else(|| match OtherVersion::of(MAGIC, bytes) {
            Some(version) => HistoriesError::Version(version),
            None => HistoriesError::Magic,
        })?;
        let count = |at: usize| {
            let eight = body.get(8 * at..8 * at + 8)?;
            Some(u64::from_le_bytes(eight.try_into().ok()?))
        };
        let (Some(row_count), Some(histories), Some(items)) = (count(0), count(1), count(2)) else {
            return Err(HistoriesError::Length { expected: 32, found: bytes.len() as u64 });
        };
        let numbers = histories.saturating_add(items).saturating_add(1);
        let expected = numbers.saturating_mul(4).saturating_add(32);
        if expected != bytes.len() as u64 {
            return Err(HistoriesError::Length { expected, found: bytes.len() as u64 });
        }
        let number = |four: &[u8]| u32::from_le_bytes([four[0], four[1], four[2], four[3]]);
        let (offsets, rows) = body[24..].split_at(4 * (histories as usize + 1));
        let parsed = Self {
            row_count: row_count as usize,
            offsets: offsets.chunks_exact(4).map(number).collect(),
            rows: rows.chunks_exact(4).map(number).collect(),
        };
        parsed.check()?;
        Ok(parsed)
    }

    fn check(&self) -> Result<(), HistoriesError> {
        let ends = self.offsets.first() == Some(&0) && self.offsets.last() == Some(&(self.rows.len() as u32));
        let descent = self.offsets.windows(2).position(|pair| pair[0] > pair[1]);
        if let Some(history) = descent.or((!ends).then_some(self.offsets.len() - 1)) {
            return Err(HistoriesError::Offset { history });
        }
        match self.rows.iter().position(|row| *row as usize >= self.row_count) {
            Some(position) => {
                Err(HistoriesError::Row { position, row: self.rows[position], row_count: self.row_count })
            }
            None => Ok(()),
        }
    }

    /// Renumbers the rows: row `r` becomes `numbers[r]`, below the number of rows.
    ///
    /// # Panics
    /// If `numbers` has fewer numbers than there are rows.
    pub fn renumbered(mut self, numbers: &[u32]) -> Self {
        self.rows.iter_mut().for_each(|row| *row = numbers[Row(*row).index()]);
        self
    }

    /// Builds the index. `keys` has the key of each row.
    ///
    /// # Panics
    /// If `keys` has fewer keys than there are rows.
    pub fn by_key(self, keys: &[ItemKey]) -> SimilarHistories {
        let keys_of: Vec<u32> = self.rows.iter().map(|row| keys[Row(*row).index()].0).collect();
        let key_count = keys.iter().map(|key| key.0 as usize + 1).max().unwrap_or(0);
        let mut similar = SimilarHistories {
            offsets: self.offsets,
            keys: keys_of,
            posting_offsets: vec![0; key_count + 1],
            postings: Vec::new(),
            rarity: Vec::new(),
        };
        similar.index(key_count);
        similar
    }
}

/// Histories with an inverted index by item.
#[derive(Debug, Clone)]
pub struct SimilarHistories {
    offsets: Vec<u32>,
    keys: Vec<u32>,
    /// `[keys + 1]`
    posting_offsets: Vec<u32>,
    /// The histories with each item, the latest first, each once.
    postings: Vec<u32>,
    /// By item: ln(histories / histories with the item), at least 0.1.
    rarity: Vec<f32>,
}

/// Scores of histories and marks of items, kept for the next request of the thread.
#[derive(Default)]
struct Scratch {
    /// By history; 0 for those that are not in `touched`.
    similarity: Vec<f32>,
    touched: Vec<u32>,
    /// By key: whether the item is in the user's history.
    is_known: Vec<bool>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl SimilarHistories {
    fn index(&mut self, key_count: usize) {
        let histories = self.offsets.len() - 1;
        let mut of_key: Vec<Vec<u32>> = vec![Vec::new(); key_count];
        for history in (0..histories as u32).rev() {
            for key in self.history(history) {
                let postings = &mut of_key[*key as usize];
                if postings.last() != Some(&history) {
                    postings.push(history);
                }
            }
        }
        let rarity = |postings: &Vec<u32>| (histories as f32 / postings.len().max(1) as f32).ln().max(0.1);
        self.rarity = of_key.iter().map(rarity).collect();
        for (key, postings) in of_key.into_iter().enumerate() {
            self.postings.extend(postings.into_iter().take(POSTINGS_MAX));
            self.posting_offsets[key + 1] = self.postings.len() as u32;
        }
    }

    fn history(&self, history: u32) -> &[u32] {
        &self.keys[self.offsets[history as usize] as usize..self.offsets[history as usize + 1] as usize]
    }

    fn postings(&self, key: ItemKey) -> &[u32] {
        match self.posting_offsets.get(key.0 as usize..key.0 as usize + 2) {
            Some(range) => &self.postings[range[0] as usize..range[1] as usize],
            None => &[],
        }
    }

    /// Returns a number above all keys.
    pub fn key_count(&self) -> usize {
        self.rarity.len()
    }

    /// Calls `add` with the items of the histories that are most similar to one with these items and weights, and
    /// their scores: the similarity, with more weight the closer the item is to the latest shared one.
    pub fn score(&self, query: impl Iterator<Item = (ItemKey, f32)> + Clone, mut add: impl FnMut(ItemKey, f32)) {
        let mut scratch = SCRATCH.take();
        let Scratch { similarity, touched, is_known } = &mut scratch;
        similarity.resize(similarity.len().max(self.offsets.len()), 0.0);
        is_known.resize(is_known.len().max(self.key_count()), false);
        let known = || query.clone().filter(|(key, _)| (key.0 as usize) < self.key_count());
        for (key, weight) in known() {
            is_known[key.0 as usize] = true;
            for history in self.postings(key) {
                let sum = &mut similarity[*history as usize];
                if *sum == 0.0 {
                    touched.push(*history);
                }
                *sum += weight * self.rarity[key.0 as usize];
            }
        }
        // Equal similarities in the order of the latest histories.
        let order = |a: &u32, b: &u32| similarity[*b as usize].total_cmp(&similarity[*a as usize]).then(b.cmp(a));
        let mut best = touched.clone();
        if best.len() > SIMILAR_MAX {
            best.select_nth_unstable_by(SIMILAR_MAX, order);
            best.truncate(SIMILAR_MAX);
        }
        best.sort_unstable_by(order);
        for history in best {
            let items = self.history(history);
            let weight = similarity[history as usize] / (items.len() as f32).sqrt();
            let shared = items.iter().rposition(|key| is_known[*key as usize]).unwrap_or(0);
            for (position, key) in items.iter().enumerate() {
                add(ItemKey(*key), weight / (1.0 + 0.5 * position.abs_diff(shared) as f32));
            }
        }
        touched.drain(..).for_each(|history| similarity[history as usize] = 0.0);
        known().for_each(|(key, _)| is_known[key.0 as usize] = false);
        SCRATCH.set(scratch);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn histories() -> Histories {
        Histories::new(6, &[vec![0, 1, 2], vec![3], vec![0, 4], vec![2, 5]])
    }

    fn scores(query: &[u32]) -> BTreeMap<u32, f32> {
        let index = histories().by_key(&[0, 1, 2, 3, 4, 5].map(ItemKey));
        let mut found = BTreeMap::new();
        let query = query.iter().map(|key| (ItemKey(*key), 1.0));
        index.score(query, |key, score| *found.entry(key.0).or_insert(0.0) += score);
        found
    }

    #[test]
    fn items_of_histories_with_the_same_items_are_scored() {
        let rarity = |count: f32| (3.0 / count).ln();
        let found = scores(&[0]);
        assert_eq!(found.keys().copied().collect::<Vec<u32>>(), [0, 1, 2, 4]);
        let [long, short] = [rarity(2.0) / 3f32.sqrt(), rarity(2.0) / 2f32.sqrt()];
        for (key, expected) in [(1, long / 1.5), (2, long / 2.0), (4, short / 1.5)] {
            assert!((found[&key] - expected).abs() < 1e-6, "{key}: {} instead of {expected}", found[&key]);
        }
        assert!(scores(&[3]).is_empty(), "a history of one item says nothing");
        assert!(scores(&[9]).is_empty() && scores(&[]).is_empty());
        assert_eq!(scores(&[0]), found, "nothing stays from the request before");
    }

    #[test]
    fn from_bytes_restores_the_histories_and_rejects_others() {
        let bytes = histories().to_bytes();
        assert_eq!(Histories::from_bytes(&bytes), Ok(histories()));
        assert_eq!(Histories::from_bytes(b"something else"), Err(HistoriesError::Magic));
        let cut = Histories::from_bytes(&bytes[..bytes.len() - 4]);
        assert!(matches!(cut, Err(HistoriesError::Length { .. })), "{cut:?}");
        let changed = |at: usize, value: u8| {
            let mut bytes = bytes.clone();
            bytes[at] = value;
            Histories::from_bytes(&bytes)
        };
        assert!(matches!(changed(36, 200), Err(HistoriesError::Offset { .. })));
        let last = bytes.len() - 4;
        assert_eq!(changed(last, 6), Err(HistoriesError::Row { position: 6, row: 6, row_count: 6 }));
    }
}
