//! Feature matrices as bytes that compress well: by column, and of a column that varies all first bytes, then all second
//! bytes, and so on (the exponents of one feature are much alike). To the bit.

/// A column whose rows are all equal: its four bytes follow.
const SAME: u8 = 0;
/// A column that varies: four planes of a byte for each row follow.
const VARIES: u8 = 1;

/// The bytes of a matrix `[rows × columns]`, row-major.
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

/// The matrix of what [`encode`] gave; none where the bytes are not those of such a matrix.
pub fn decode(mut bytes: &[u8], row_count: usize, column_count: usize) -> Option<Vec<f32>> {
    // Every column has at least five bytes, so what is reserved is bounded by what was read.
    let expected = row_count.checked_mul(column_count)?;
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

    proptest! {
        #[test]
        fn every_bit_comes_back(rows in 0usize..20, columns in 1usize..6, seeds in prop::collection::vec(any::<u32>(), 120)) {
            // Few different values, so that some columns do not vary; NaN and infinities among them.
            let matrix: Vec<f32> = (0..rows * columns).map(|at| f32::from_bits(seeds[at % (1 + seeds[0] as usize % 7)])).collect();
            let back = decode(&encode(&matrix, columns), rows, columns).unwrap();
            prop_assert_eq!(back.len(), matrix.len());
            prop_assert!(back.iter().zip(&matrix).all(|(a, b)| a.to_bits() == b.to_bits()));
        }

        #[test]
        fn other_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..64), rows in any::<usize>(), columns in any::<usize>()) {
            if let Some(matrix) = decode(&bytes, rows, columns) {
                prop_assert_eq!(matrix.len(), rows * columns);
            }
        }
    }
}
