//! Standardised inputs of regressions.
use serde::{Deserialize, Serialize};

/// Standardised inputs are clipped here, so that an unusual user cannot move a score without limit.
pub(crate) const INPUT_MAX: f64 = 5.0;

/// Means and scales of inputs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Standardisation {
    mean: Vec<f64>,
    scale: Vec<f64>,
}

impl Standardisation {
    /// Returns the means and the standard deviations of rows, each of `columns` numbers.
    pub(crate) fn of<'a>(rows: impl ExactSizeIterator<Item = &'a [f64]> + Clone, columns: usize) -> Self {
        let count = rows.len().max(1) as f64;
        let (mut mean, mut scale) = (vec![0.0; columns], vec![0.0; columns]);
        for row in rows.clone() {
            mean.iter_mut().zip(row).for_each(|(sum, input)| *sum += input / count);
        }
        for row in rows {
            let squares = row.iter().zip(&mean).map(|(input, mean)| (input - mean) * (input - mean) / count);
            scale.iter_mut().zip(squares).for_each(|(sum, square)| *sum += square);
        }
        // A constant input distinguishes no rows, and must not move the score of a row with another value.
        scale.iter_mut().for_each(|of| *of = if *of > 1e-18 { of.sqrt() } else { f64::MAX.sqrt() });
        Self { mean, scale }
    }

    /// Returns the constant 1 and the standardised inputs, clipped to ±`limit`.
    pub(crate) fn apply(&self, inputs: &[f64], limit: f64) -> Vec<f64> {
        let of = inputs.iter().zip(self.mean.iter().zip(&self.scale));
        let of = of.map(|(input, (mean, scale))| ((input - mean) / scale).clamp(-limit, limit));
        std::iter::once(1.0).chain(of).collect()
    }

    /// Checks the sizes and numbers of a decoded value.
    pub(crate) fn check(&self, input_count: usize) -> bool {
        self.mean.len() == input_count
            && self.scale.len() == input_count
            && self.mean.iter().all(|mean| mean.is_finite())
            && self.scale.iter().all(|scale| scale.is_finite() && *scale > 0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_have_mean_0_and_scale_1_and_constant_ones_never_count() {
        let rows = [[1.0, 7.0], [3.0, 7.0], [5.0, 7.0], [7.0, 7.0]];
        let of = Standardisation::of(rows.iter().map(<[f64; 2]>::as_slice), 2);
        let applied: Vec<Vec<f64>> = rows.iter().map(|row| of.apply(row, INPUT_MAX)).collect();
        assert!(applied.iter().all(|row| row[0] == 1.0 && row[2] == 0.0), "{applied:?}");
        assert!(applied.iter().map(|row| row[1]).sum::<f64>().abs() < 1e-12);
        assert!((applied.iter().map(|row| row[1] * row[1]).sum::<f64>() - 4.0).abs() < 1e-12);
        let unusual = of.apply(&[1e9, 1e9], INPUT_MAX);
        assert!(unusual[1] == INPUT_MAX && unusual[2].abs() < 1e-100, "{unusual:?}");
        assert!(of.apply(&[1e9, 7.0], f64::INFINITY)[1] > 1e8);
        assert!(of.check(2) && !of.check(3));
        assert!(Standardisation::of(std::iter::empty::<&[f64]>(), 1).check(1));
    }
}
