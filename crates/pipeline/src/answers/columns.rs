//! A lossless encoding of feature matrices that compresses well: by column, and within a column by byte plane (all
//! first bytes, then all second bytes, …), because the exponents of one feature are similar.

/// Tag of a column whose rows are all equal: the four bytes of the value follow.
const SAME: u8 = 0;
/// Tag of any other column: four byte planes follow, each with one byte per row.
const VARIES: u8 = 1;

/// Greatest number of values of a matrix that is decoded: four times 1,000 vectors of 4,096 dimensions. A column of equal
/// values has five bytes, so the size of the input does not bound the matrix.
const VALUES_MAX: usize = 1 << 24;

/// Encodes a matrix `[rows × columns]`, row-major.
pub fn encode(matrix: &[f32], column_count: usize) -> Vec<u8> {
    let row_count = matrix.len().checked_div(column_count).unwrap_or(0);
    let mut bytes = Vec::with_capacity(matrix.len() * 4 + column_count);
    let mut column = Vec::with_capacity(row_count);
    for at in 0..column_count {
        column.clear();
        column.extend(matrix.iter().skip(at).step_by(column_count).map(|value| value.to_bits()));
        let Some(&first) = column.first() else { break };
        if column.iter().all(|bits| *bits == first) {
            bytes.push(SAME);
            bytes.extend_from_slice(&first.to_le_bytes());
            continue;
        }
        bytes.push(VARIES);
        for plane in 0..4 {
            bytes.extend(column.iter().map(|bits| (bits >> (8 * plane)) as u8));
        }
    }
    bytes
}

/// Decodes the output of [`encode`]; none if the bytes do not encode a matrix of this shape.
pub fn decode(mut bytes: &[u8], row_count: usize, column_count: usize) -> Option<Vec<f32>> {
    let expected = row_count.checked_mul(column_count).filter(|count| *count <= VALUES_MAX)?;
    if row_count == 0 || column_count > bytes.len() {
        return (bytes.is_empty() && expected == 0).then(Vec::new);
    }
    let mut columns = Vec::with_capacity(column_count);
    for _ in 0..column_count {
        let (tag, rest) = bytes.split_first()?;
        let (content, rest) = match *tag {
            SAME => rest.split_at_checked(4)?,
            VARIES => rest.split_at_checked(row_count.checked_mul(4)?)?,
            _ => return None,
        };
        columns.push((*tag, content));
        bytes = rest;
    }
    if !bytes.is_empty() {
        return None;
    }
    let bits = |tag: u8, content: &[u8], row: usize| {
        let byte =
            |plane: usize| u32::from(if tag == SAME { content[plane] } else { content[plane * row_count + row] });
        byte(0) | byte(1) << 8 | byte(2) << 16 | byte(3) << 24
    };
    let rows = (0..row_count).flat_map(|row| columns.iter().map(move |(tag, content)| (*tag, *content, row)));
    Some(rows.map(|(tag, content, row)| f32::from_bits(bits(tag, content, row))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_column_of_more_values_than_the_limit_is_refused() {
        let same = [SAME, 0, 0, 0, 0];
        assert_eq!(decode(&same, 3, 1), Some(vec![0.0; 3]));
        for (rows, columns) in [(VALUES_MAX + 1, 1), (usize::MAX, 1), (VALUES_MAX / 2 + 1, 2), (usize::MAX, 2)] {
            assert_eq!(decode(&same.repeat(columns), rows, columns), None);
        }
    }

    proptest! {
        #[test]
        fn decoding_restores_every_bit(rows in 0usize..20, columns in 1usize..6, seeds in prop::collection::vec(any::<u32>(), 120)) {
            // Few distinct values, so that some columns are constant; they include NaN and infinities.
            let matrix: Vec<f32> = (0..rows * columns).map(|at| f32::from_bits(seeds[at % (1 + seeds[0] as usize % 7)])).collect();
            let decoded = decode(&encode(&matrix, columns), rows, columns).unwrap();
            prop_assert_eq!(decoded.len(), matrix.len());
            prop_assert!(decoded.iter().zip(&matrix).all(|(a, b)| a.to_bits() == b.to_bits()));
        }

        #[test]
        fn arbitrary_bytes_are_refused_or_decoded_to_the_shape(bytes in prop::collection::vec(any::<u8>(), 0..64), rows in any::<usize>(), columns in any::<usize>()) {
            if let Some(matrix) = decode(&bytes, rows, columns) {
                prop_assert_eq!(matrix.len(), rows * columns);
            }
        }
    }
}
