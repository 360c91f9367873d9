//! The inverse of a dense symmetric matrix.
use crate::kernels::{Into, View, matmul};
use rayon::prelude::*;

/// Rows and columns that are eliminated in one step, so that nearly all of the work is matrix products.
const BLOCK: usize = 128;

/// Inverts a symmetric positive definite matrix `[n × n]` in place, by block Gauss–Jordan elimination: 2n³ operations.
/// Such a matrix needs no pivoting (Golub & Van Loan, Matrix Computations, 4.2). Returns false if it is not positive
/// definite to working precision; the values are then undefined.
pub(crate) fn invert(matrix: &mut [f32], n: usize) -> bool {
    assert_eq!(matrix.len(), n * n, "a square matrix");
    for start in (0..n).step_by(BLOCK) {
        let width = BLOCK.min(n - start);
        let Some(pivot) = inverse_block(matrix, n, start, width) else { return false };
        // With the block column C and the block row R: A -= C · P · R, where P is the pivot's inverse.
        let mut negated = vec![0.0; n * width];
        for (row, out) in negated.chunks_exact_mut(width).enumerate() {
            let values = &mut matrix[row * n + start..][..width];
            if !(start..start + width).contains(&row) {
                out.iter_mut().zip(values.iter()).for_each(|(out, value)| *out = -value);
            }
            values.fill(0.0);
        }
        let mut row_block = matrix[start * n..(start + width) * n].to_vec();
        (0..width).for_each(|diagonal| row_block[diagonal * n + start + diagonal] = 1.0);
        let mut eliminated = vec![0.0; width * n];
        matmul(&mut eliminated, Into::Replace, View::new(&pivot, width, width), View::new(&row_block, width, n));
        matrix.par_chunks_mut(n * BLOCK).zip(negated.par_chunks(width * BLOCK)).for_each(|(rows, factors)| {
            let factors = View::new(factors, factors.len() / width, width);
            matmul(rows, Into::Add, factors, View::new(&eliminated, width, n));
        });
        matrix[start * n..(start + width) * n].copy_from_slice(&eliminated);
    }
    true
}

/// Returns the inverse of a diagonal block by Gauss–Jordan elimination, or `None` if a pivot is not positive.
fn inverse_block(matrix: &[f32], n: usize, start: usize, width: usize) -> Option<Vec<f32>> {
    let mut block: Vec<f64> =
        (0..width).flat_map(|row| matrix[(start + row) * n + start..][..width].iter().map(|v| f64::from(*v))).collect();
    for step in 0..width {
        let pivot = block[step * width + step];
        if !(pivot > 0.0 && pivot.is_finite()) {
            return None;
        }
        block[step * width + step] = 1.0;
        block[step * width..(step + 1) * width].iter_mut().for_each(|value| *value /= pivot);
        let pivot_row = block[step * width..(step + 1) * width].to_vec();
        for row in (0..width).filter(|row| *row != step) {
            let factor = std::mem::take(&mut block[row * width + step]);
            let values = &mut block[row * width..(row + 1) * width];
            values.iter_mut().zip(&pivot_row).for_each(|(value, pivot)| *value -= factor * pivot);
        }
    }
    Some(block.into_iter().map(|value| value as f32).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng, rngs::StdRng};

    /// Returns XᵀX + 1 for a random X `[n × n]`.
    fn positive_definite(n: usize) -> Vec<f32> {
        let mut rng = StdRng::seed_from_u64(1);
        let x: Vec<f32> = (0..n * n).map(|_| rng.random_range(-1.0..1.0)).collect();
        let mut product = vec![0.0; n * n];
        matmul(&mut product, Into::Replace, View::new(&x, n, n).transposed(), View::new(&x, n, n));
        (0..n).for_each(|diagonal| product[diagonal * n + diagonal] += 1.0);
        product
    }

    #[test]
    fn a_matrix_times_its_inverse_is_the_identity() {
        for n in [1, 7, BLOCK, BLOCK + 1, 3 * BLOCK - 5] {
            let matrix = positive_definite(n);
            let mut inverse = matrix.clone();
            assert!(invert(&mut inverse, n));
            let mut product = vec![0.0; n * n];
            matmul(&mut product, Into::Replace, View::new(&matrix, n, n), View::new(&inverse, n, n));
            for (index, value) in product.iter().enumerate() {
                let expected = f32::from(u8::from(index / n == index % n));
                assert!((value - expected).abs() < 2e-3, "n {n}: {value} at {} × {}", index / n, index % n);
            }
        }
    }

    #[test]
    fn a_matrix_that_is_not_positive_definite_is_refused() {
        assert!(!invert(&mut [1.0, 2.0, 2.0, 1.0], 2));
        assert!(!invert(&mut [0.0], 1));
        assert!(!invert(&mut [f32::NAN], 1));
    }
}
