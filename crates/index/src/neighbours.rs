//! Sparse item-to-item weights: transitions, co-purchases and other co-occurrence counts.
use lodestone_core::{
    format::OtherVersion,
    ids::{ItemKey, Row},
};
use std::collections::BTreeMap;

const MAGIC: &[u8; 8] = b"LSNEIGH1";

/// The reason why [`Neighbours::from_bytes`] rejects its input.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NeighboursError {
    #[error("does not begin with LSNEIGH1, so it is not a table of neighbours")]
    Magic,
    #[error("{0}")]
    Version(OtherVersion),
    #[error("has {found} bytes; its header requires {expected}")]
    Length { expected: u64, found: u64 },
    #[error("the offset of row {row} is out of order or out of range")]
    Offset { row: usize },
    #[error("the neighbour at {position} is row {neighbour}, but the table has {row_count} rows")]
    Neighbour { position: usize, neighbour: u32, row_count: usize },
    #[error("the weight at {position} is not finite, or is greater than the weight before it in its row")]
    Weight { position: usize },
}

/// Neighbours of each row with their weights, by descending weight, in compressed sparse row (CSR) format.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Neighbours {
    /// `[rows + 1]`: the neighbours of row `r` are at `offsets[r]..offsets[r + 1]`.
    offsets: Vec<u32>,
    rows: Vec<u32>,
    weights: Vec<f32>,
}

impl Neighbours {
    /// Builds the table from weighted pairs (from, to, weight). Sums the weights of equal pairs. Skips pairs with a row
    /// at or above `row_count`, pairs of a row with itself, and weights that are not finite and positive. Each row
    /// keeps its `per_row` greatest weights; equal weights are ordered by row.
    pub fn from_counts(row_count: usize, pairs: impl IntoIterator<Item = (Row, Row, f32)>, per_row: usize) -> Self {
        let mut table: Vec<BTreeMap<u32, f32>> = vec![BTreeMap::new(); row_count];
        for (from, to, weight) in pairs {
            let inside = from.index() < row_count && to.index() < row_count && from != to;
            if inside && weight.is_finite() && weight > 0.0 {
                *table[from.index()].entry(to.0).or_insert(0.0) += weight;
            }
        }
        let mut result = Self { offsets: vec![0], ..Self::default() };
        for row in table {
            let mut best: Vec<(u32, f32)> = row.into_iter().filter(|(_, weight)| weight.is_finite()).collect();
            best.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            best.truncate(per_row);
            result.rows.extend(best.iter().map(|pair| pair.0));
            result.weights.extend(best.iter().map(|pair| pair.1));
            result.offsets.push(u32::try_from(result.rows.len()).expect("fewer than 2^32 pairs fit in memory"));
        }
        result
    }

    /// Converts the table from rows to item keys. `keys` has the key of each row; keys are distinct.
    pub fn by_key(self, keys: &[ItemKey]) -> KeyedNeighbours {
        KeyedNeighbours(self.renumbered(&keys.iter().map(|key| key.0).collect::<Vec<u32>>()))
    }

    /// Renumbers the rows: row `r` becomes `numbers[r]`. Numbers are distinct. A number without a row has no
    /// neighbours.
    ///
    /// # Panics
    /// If `numbers` and the table differ in length.
    pub fn renumbered(self, numbers: &[u32]) -> Self {
        assert_eq!(numbers.len(), self.row_count(), "renumbered needs one number for each row");
        if numbers.iter().enumerate().all(|(row, number)| *number as usize == row) {
            return self;
        }
        const NO_ROW: u32 = u32::MAX;
        let count = numbers.iter().map(|number| *number as usize + 1).max().unwrap_or(0);
        let mut row_of = vec![NO_ROW; count];
        for (row, number) in numbers.iter().enumerate() {
            row_of[*number as usize] = row as u32;
        }
        let mut table = Self {
            offsets: Vec::with_capacity(count + 1),
            rows: Vec::with_capacity(self.rows.len()),
            weights: Vec::with_capacity(self.weights.len()),
        };
        table.offsets.push(0);
        for row in row_of {
            // `of` returns nothing for `NO_ROW`.
            let (neighbours, weights) = self.of(Row(row));
            table.rows.extend(neighbours.iter().map(|neighbour| numbers[*neighbour as usize]));
            table.weights.extend_from_slice(weights);
            table.offsets.push(table.rows.len() as u32);
        }
        table
    }

    pub fn row_count(&self) -> usize {
        self.offsets.len().saturating_sub(1)
    }

    /// Returns the neighbours of a row and their weights, two slices of equal length, by descending weight. Empty for
    /// an unknown row.
    pub fn of(&self, row: Row) -> (&[u32], &[f32]) {
        if row.index() >= self.row_count() {
            return (&[], &[]);
        }
        let range = self.offsets[row.index()] as usize..self.offsets[row.index() + 1] as usize;
        (&self.rows[range.clone()], &self.weights[range])
    }

    /// Serializes the table: magic, row count and pair count as u64, offsets, rows, weights; little endian.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(24 + 4 * (self.row_count() + 1 + 2 * self.rows.len()));
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&(self.row_count() as u64).to_le_bytes());
        bytes.extend_from_slice(&(self.rows.len() as u64).to_le_bytes());
        let offsets: &[u32] = if self.offsets.is_empty() { &[0] } else { &self.offsets };
        for number in offsets.iter().chain(&self.rows) {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        for weight in &self.weights {
            bytes.extend_from_slice(&weight.to_le_bytes());
        }
        bytes
    }

    /// Parses the output of [`Neighbours::to_bytes`]. Checks every offset, row and weight.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, NeighboursError> {
        let body = bytes.strip_prefix(MAGIC).ok_or_else(|| match OtherVersion::of(MAGIC, bytes) {
            Some(version) => NeighboursError::Version(version),
            None => NeighboursError::Magic,
        })?;
        let (Some(row_count), Some(pair_count)) = (u64_at(body, 0), u64_at(body, 8)) else {
            return Err(NeighboursError::Length { expected: 24, found: bytes.len() as u64 });
        };
        let numbers = pair_count.saturating_mul(2).saturating_add(row_count).saturating_add(1);
        let expected = numbers.saturating_mul(4).saturating_add(24);
        if expected != bytes.len() as u64 {
            return Err(NeighboursError::Length { expected, found: bytes.len() as u64 });
        }
        // The length equals that of a slice in memory, so both counts fit into usize.
        let (offsets, rest) = body[16..].split_at(4 * (row_count as usize + 1));
        let (rows, weights) = rest.split_at(4 * pair_count as usize);
        let number = |four: &[u8]| u32::from_le_bytes([four[0], four[1], four[2], four[3]]);
        let table = Self {
            offsets: offsets.chunks_exact(4).map(number).collect(),
            rows: rows.chunks_exact(4).map(number).collect(),
            weights: weights.chunks_exact(4).map(|four| f32::from_bits(number(four))).collect(),
        };
        table.check()?;
        Ok(table)
    }

    fn check(&self) -> Result<(), NeighboursError> {
        let row_count = self.row_count();
        let mut end_before = 0;
        for (row, &end) in self.offsets.iter().enumerate() {
            let wrong = if row == 0 { end != 0 } else { end < end_before || end as usize > self.rows.len() };
            if wrong || row == row_count && end as usize != self.rows.len() {
                return Err(NeighboursError::Offset { row });
            }
            end_before = end;
        }
        if let Some(position) = self.rows.iter().position(|&neighbour| neighbour as usize >= row_count) {
            return Err(NeighboursError::Neighbour { position, neighbour: self.rows[position], row_count });
        }
        if let Some(position) = self.weights.iter().position(|weight| !weight.is_finite()) {
            return Err(NeighboursError::Weight { position });
        }
        for range in self.offsets.windows(2).map(|pair| pair[0] as usize..pair[1] as usize) {
            let start = range.start;
            if let Some(i) = self.weights[range].windows(2).position(|pair| pair[0] < pair[1]) {
                return Err(NeighboursError::Weight { position: start + i + 1 });
            }
        }
        Ok(())
    }
}

/// Neighbours of each item key with their weights, by descending weight.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct KeyedNeighbours(Neighbours);

impl KeyedNeighbours {
    /// Returns a number above all keys of the table.
    pub fn key_count(&self) -> usize {
        self.0.row_count()
    }

    /// Returns the neighbours of an item by descending weight. Empty for an unknown item.
    pub fn of(&self, key: ItemKey) -> impl Iterator<Item = (ItemKey, f32)> {
        let (keys, weights) = self.0.of(Row(key.0));
        keys.iter().copied().map(ItemKey).zip(weights.iter().copied())
    }

    /// Returns the weight of one neighbour of an item, or 0 if it is not a neighbour.
    pub fn weight(&self, key: ItemKey, neighbour: ItemKey) -> f32 {
        let (keys, weights) = self.0.of(Row(key.0));
        keys.iter().position(|key| *key == neighbour.0).map_or(0.0, |index| weights[index])
    }
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    let eight = bytes.get(at..at + 8)?;
    Some(u64::from_le_bytes(eight.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn table() -> Neighbours {
        let pairs = [(0, 1, 2.0), (0, 2, 5.0), (2, 0, 1.0), (0, 1, 4.0), (1, 1, 9.0), (0, 9, 9.0), (0, 3, 0.5)];
        Neighbours::from_counts(4, pairs.map(|(from, to, weight)| (Row(from), Row(to), weight)), 2)
    }

    #[test]
    fn weights_of_equal_pairs_add_up_and_the_greatest_come_first() {
        assert_eq!(table().of(Row(0)), ([1, 2].as_slice(), [6.0, 5.0].as_slice()));
        assert_eq!(table().of(Row(1)).0.len(), 0, "an item is not its own neighbour");
        assert_eq!(table().of(Row(99)).0.len(), 0);
    }

    #[test]
    fn from_bytes_restores_the_table() {
        assert_eq!(Neighbours::from_bytes(&table().to_bytes()), Ok(table()));
        assert_eq!(Neighbours::from_bytes(&Neighbours::default().to_bytes()).unwrap().row_count(), 0);
    }

    #[test]
    fn by_key_keeps_neighbours_and_weights() {
        let by_key = table().by_key(&[7, 0, 3, 4].map(ItemKey));
        let of = |key: u32| by_key.of(ItemKey(key)).map(|(key, weight)| (key.0, weight)).collect::<Vec<_>>();
        assert_eq!(of(7), [(0, 6.0), (3, 5.0)]);
        assert_eq!(of(3), [(7, 1.0)]);
        assert!([0, 1, 4, 9].iter().all(|key| of(*key).is_empty()));
        assert_eq!((by_key.weight(ItemKey(7), ItemKey(3)), by_key.weight(ItemKey(7), ItemKey(9))), (5.0, 0.0));
        assert_eq!(table().renumbered(&[0, 1, 2, 3]), table());
    }

    #[test]
    fn truncated_bytes_are_an_error() {
        let bytes = table().to_bytes();
        for length in 0..bytes.len() {
            assert!(Neighbours::from_bytes(&bytes[..length]).is_err(), "{length} bytes");
        }
    }

    proptest! {
        #[test]
        fn corrupt_bytes_never_panic_and_never_yield_rows_out_of_range(at in 0usize..80, value in any::<u8>()) {
            let mut bytes = table().to_bytes();
            let at = at % bytes.len();
            bytes[at] = value;
            if let Ok(read) = Neighbours::from_bytes(&bytes) {
                for row in 0..read.row_count() as u32 {
                    prop_assert!(read.of(Row(row)).0.iter().all(|&other| (other as usize) < read.row_count()));
                }
            }
        }
    }
}
