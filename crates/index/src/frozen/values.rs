//! Stored vectors, from which exact scores are computed.
use super::{
    codes::{Quantizer, ZERO},
    storage::Slice,
};
use crate::kernels::{CODE_LINE, Codes, prefetch};
use half::{
    f16,
    slice::{HalfBitsSliceExt, HalfFloatSliceExt},
};
use std::str::FromStr;

/// The precision of stored vectors, from which the results of a search are scored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// IEEE single precision: 4 bytes per number.
    #[default]
    F32,
    /// IEEE half precision, 11 significant bits: 2 bytes per number. Numbers beyond ±65,504 are clipped.
    F16,
    /// Fixed point of 12 bits, the code's 8 bits and 4 more: half a byte per number in addition to the code. The
    /// greatest number determines the step, so vectors with extreme outliers lose recall.
    Int12,
    /// The code alone, without additional bytes. Sufficient for vectors of hundreds of dimensions, because their
    /// quantization errors average out.
    Int8,
}

/// A text that is not the name of a [`Precision`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no precision `{0}`; use one of {names}", names = Precision::ALL.map(Precision::name).join(", "))]
pub struct UnknownPrecision(pub String);

impl FromStr for Precision {
    type Err = UnknownPrecision;

    fn from_str(name: &str) -> Result<Self, UnknownPrecision> {
        let known = Self::ALL.into_iter().find(|precision| precision.name() == name);
        known.ok_or_else(|| UnknownPrecision(name.to_owned()))
    }
}

/// The vectors of all points in one precision.
pub(super) struct Values {
    pub precision: Precision,
    /// `[points × bytes_per_point]`.
    pub bytes: Slice<u8>,
}

impl Precision {
    /// All precisions. The file format stores the index in this array.
    pub const ALL: [Self; 4] = [Self::F32, Self::F16, Self::Int12, Self::Int8];

    /// Returns the name, which [`Precision::from_str`] parses.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Int12 => "int12",
            Self::Int8 => "int8",
        }
    }

    /// Returns the bytes of a point in addition to its code.
    pub(super) fn bytes_per_point(self, dimensions: usize) -> usize {
        match self {
            Self::F32 => 4 * dimensions,
            Self::F16 => 2 * dimensions,
            Self::Int12 => dimensions.next_multiple_of(CODE_LINE) / 2,
            Self::Int8 => 0,
        }
    }

    /// Appends the bytes of a vector. `code` is its code.
    pub(super) fn encode(self, vector: &[f32], code: &[u8], quantizer: &Quantizer, out: &mut Vec<u8>) {
        match self {
            Self::F32 => out.extend_from_slice(bytemuck::cast_slice(vector)),
            Self::F16 => {
                let halves = vector.iter().map(|value| f16::from_f32(value.clamp(-65_504.0, 65_504.0)));
                halves.for_each(|half| out.extend_from_slice(&half.to_le_bytes()));
            }
            Self::Int12 => {
                let rest = |at: usize| {
                    let Some(value) = vector.get(at) else { return 8 };
                    let fine = (value / quantizer.step * 16.0).round() as i32;
                    ((fine - 16 * (i32::from(code[at]) - i32::from(ZERO))).clamp(-8, 7) + 8) as u8
                };
                for line in (0..code.len()).step_by(CODE_LINE) {
                    let half = CODE_LINE / 2;
                    out.extend((line..line + half).map(|at| rest(at) | rest(at + half) << 4));
                }
            }
            Self::Int8 => {}
        }
    }
}

impl Values {
    /// Returns the inner product of the query with a point's vector. `decoded` is a buffer of a code's length.
    ///
    /// # Safety
    /// The CPU supports the instructions of `C`; `point` is below the point count; `query` has the index's dimensions.
    #[inline(always)]
    pub(super) unsafe fn dot<C: Codes>(
        &self,
        query: &[f32],
        point: usize,
        codes: &[u8],
        quantizer: &Quantizer,
        decoded: &mut [f32],
    ) -> f32 {
        let size = self.precision.bytes_per_point(quantizer.dimensions);
        let bytes = &self.bytes[point * size..][..size];
        // SAFETY: guaranteed by the caller; both slices have the index's dimensions.
        unsafe {
            match self.precision {
                Precision::F32 => C::dot(query, bytemuck::cast_slice(bytes)),
                Precision::F16 => {
                    let decoded = &mut decoded[..quantizer.dimensions];
                    bytemuck::cast_slice::<u8, u16>(bytes).reinterpret_cast::<f16>().convert_to_f32_slice(decoded);
                    C::dot(query, decoded)
                }
                Precision::Int12 => {
                    let length = quantizer.length();
                    join_12(&codes[point * length..][..length], bytes, decoded);
                    C::dot(query, &decoded[..quantizer.dimensions]) * (quantizer.step / 16.0)
                }
                Precision::Int8 => {
                    let code = &codes[point * quantizer.length()..][..quantizer.dimensions];
                    let decoded = &mut decoded[..quantizer.dimensions];
                    numbers_of(code, decoded);
                    C::dot(query, decoded) * quantizer.step
                }
            }
        }
    }

    /// Returns a point's vector, `[dimensions]`.
    pub(super) fn decode(&self, point: usize, codes: &[u8], quantizer: &Quantizer) -> Vec<f32> {
        let size = self.precision.bytes_per_point(quantizer.dimensions);
        let bytes = &self.bytes[point * size..][..size];
        match self.precision {
            Precision::F32 => bytemuck::pod_collect_to_vec(bytes),
            Precision::F16 => bytemuck::cast_slice::<u8, u16>(bytes).reinterpret_cast::<f16>().to_f32_vec(),
            Precision::Int12 => {
                let length = quantizer.length();
                let mut decoded = vec![0.0; length];
                join_12(&codes[point * length..][..length], bytes, &mut decoded);
                decoded.truncate(quantizer.dimensions);
                decoded.iter_mut().for_each(|value| *value *= quantizer.step / 16.0);
                decoded
            }
            Precision::Int8 => {
                let mut decoded = vec![0.0; quantizer.dimensions];
                numbers_of(&codes[point * quantizer.length()..][..quantizer.dimensions], &mut decoded);
                decoded.iter_mut().for_each(|value| *value *= quantizer.step);
                decoded
            }
        }
    }

    /// Prefetches a point's bytes.
    #[inline(always)]
    pub(super) fn fetch(&self, point: usize, dimensions: usize) {
        let size = self.precision.bytes_per_point(dimensions);
        let bytes = &self.bytes[point * size..][..size];
        (0..size).step_by(64).for_each(|at| prefetch(bytes[at..].as_ptr()));
    }

    /// Returns true if all numbers are finite.
    pub(super) fn are_finite(&self) -> bool {
        match self.precision {
            Precision::F32 => bytemuck::cast_slice::<u8, f32>(&self.bytes).iter().all(|value| value.is_finite()),
            Precision::F16 => {
                let halves = bytemuck::cast_slice::<u8, u16>(&self.bytes);
                halves.reinterpret_cast::<f16>().iter().all(|value| value.is_finite())
            }
            Precision::Int12 | Precision::Int8 => true,
        }
    }
}

/// Decodes a code to numbers in steps.
#[inline(always)]
fn numbers_of(code: &[u8], out: &mut [f32]) {
    for (byte, out) in code.iter().zip(out) {
        *out = f32::from(i16::from(*byte) - i16::from(ZERO));
    }
}

/// Joins 8 bits of the code and 4 bits of `rests` to numbers in sixteenths of a step.
#[inline(always)]
fn join_12(code: &[u8], rests: &[u8], out: &mut [f32]) {
    const HALF: usize = CODE_LINE / 2;
    const MIDDLE: i32 = 16 * ZERO as i32 + 8;
    let lines = code.as_chunks::<CODE_LINE>().0.iter().zip(rests.as_chunks::<HALF>().0);
    for ((code, rests), out) in lines.zip(out.as_chunks_mut::<CODE_LINE>().0) {
        for at in 0..HALF {
            out[at] = (i32::from(code[at]) * 16 + i32::from(rests[at] & 15) - MIDDLE) as f32;
        }
        for at in 0..HALF {
            out[HALF + at] = (i32::from(code[HALF + at]) * 16 + i32::from(rests[at] >> 4) - MIDDLE) as f32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_parse_and_an_unknown_name_is_an_error() {
        assert!(Precision::ALL.into_iter().all(|precision| precision.name().parse() == Ok(precision)));
        let error = "f64".parse::<Precision>().unwrap_err();
        assert_eq!(error.to_string(), "there is no precision `f64`; use one of f32, f16, int12, int8");
    }

    proptest! {
        #[test]
        fn decoded_vectors_are_within_the_error_of_their_precision(vector in prop::collection::vec(-1.0f32..1.0, 1..200)) {
            let quantizer = Quantizer { dimensions: vector.len(), step: 1.0 / 127.0 };
            let mut code = vec![ZERO; quantizer.length()];
            quantizer.encode(&vector, &mut code);
            for (precision, error) in [(Precision::F32, 0.0), (Precision::F16, 6e-4), (Precision::Int12, 1.01 / 127.0 / 16.0), (Precision::Int8, 0.51 / 127.0)] {
                let mut bytes = Vec::new();
                precision.encode(&vector, &code, &quantizer, &mut bytes);
                prop_assert_eq!(bytes.len(), precision.bytes_per_point(vector.len()));
                let values = Values { precision, bytes: bytes.into() };
                let back = values.decode(0, &code, &quantizer);
                prop_assert_eq!(back.len(), vector.len());
                for (a, b) in vector.iter().zip(&back) {
                    prop_assert!((a - b).abs() <= error, "{:?}: {} became {}", precision, a, b);
                }
                prop_assert!(values.are_finite());
            }
        }
    }
}
