//! Vectors as bytes: what the walk reads. A quarter of f32, so that more of them fit into a cache line and a cache.
use crate::kernels::CODE_LINE;
use rayon::prelude::*;

/// Of the values, what a code can hold. The largest may lie in the few dimensions that matter most: cutting 0.5 % of them
/// took recall from 0.98 to 0.91. But a handful of outliers must not make the steps of all others coarse.
const HELD_SHARE: f64 = 0.99999;
/// Values that are looked at to find the scale.
const SAMPLE: usize = 1 << 20;
/// The byte of 0: codes are unsigned, since the instructions multiply unsigned by signed.
pub(super) const ZERO: u8 = 128;

/// How numbers become bytes: `byte = round(value / step) + 128`, one step for all dimensions, so that inner products of
/// codes are inner products of vectors but for a factor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Quantizer {
    pub dimensions: usize,
    pub step: f32,
}

impl Quantizer {
    /// For vectors of `dimensions` numbers one after the other, all finite. `holds_all`: no number is cut.
    pub fn of(vectors: &[f32], dimensions: usize, holds_all: bool) -> Self {
        if holds_all {
            let largest = vectors.par_iter().map(|value| value.abs()).reduce(|| 0.0, f32::max);
            return Self { dimensions, step: if largest > 0.0 { largest / 127.0 } else { 1.0 } };
        }
        let stride = vectors.len().div_ceil(SAMPLE).max(1);
        let mut sizes: Vec<f32> = vectors.iter().step_by(stride).map(|value| value.abs()).collect();
        let held = ((sizes.len() as f64 * HELD_SHARE) as usize).min(sizes.len().saturating_sub(1));
        let largest = if sizes.is_empty() { 1.0 } else { *sizes.select_nth_unstable_by(held, f32::total_cmp).1 };
        // A sparse set has mostly zeros; then the largest of all must do.
        let largest = if largest > 0.0 { largest } else { sizes.iter().copied().fold(0.0, f32::max) };
        Self { dimensions, step: if largest > 0.0 { largest / 127.0 } else { 1.0 } }
    }

    /// Bytes of a code: the dimensions, padded to whole lines.
    pub fn length(&self) -> usize {
        self.dimensions.next_multiple_of(CODE_LINE)
    }

    /// Writes the code of a vector; what is beyond its dimensions is left alone.
    pub fn encode(&self, vector: &[f32], code: &mut [u8]) {
        for (value, byte) in vector.iter().zip(code) {
            *byte = (value / self.step).round().clamp(-127.0, 127.0) as i16 as u8 ^ ZERO;
        }
    }

    /// A query as signed bytes with a scale of its own; only the order of its inner products counts.
    pub fn query(&self, vector: &[f32], out: &mut Vec<i8>) {
        let largest = vector.iter().map(|value| value.abs()).fold(0.0, f32::max);
        let step = if largest > 0.0 { largest / 127.0 } else { 1.0 };
        out.clear();
        out.resize(self.length(), 0);
        for (value, byte) in vector.iter().zip(out.iter_mut()) {
            *byte = (value / step).round() as i8;
        }
    }
}

/// A code as a query: its signed bytes.
pub(super) fn signed(code: &[u8], out: &mut [i8]) {
    for (byte, out) in code.iter().zip(out) {
        *out = (byte ^ ZERO) as i8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_code_is_near_its_vector(vector in prop::collection::vec(-1.0f32..1.0, 1..100)) {
            let quantizer = Quantizer { dimensions: vector.len(), step: 1.0 / 127.0 };
            let mut code = vec![ZERO; quantizer.length()];
            quantizer.encode(&vector, &mut code);
            let mut back = vec![0; code.len()];
            signed(&code, &mut back);
            for (value, byte) in vector.iter().zip(&back) {
                prop_assert!((value - f32::from(*byte) * quantizer.step).abs() <= quantizer.step * 0.51);
            }
            prop_assert!(back[vector.len()..].iter().all(|byte| *byte == 0));
        }
    }
}
