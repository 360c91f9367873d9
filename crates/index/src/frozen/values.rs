//! The vectors beside the codes: what the exact score reads.
use super::{
    codes::{Quantizer, ZERO},
    file::Slice,
};
use crate::kernels::{CODE_LINE, Codes, prefetch};
use half::{
    f16,
    slice::{HalfBitsSliceExt, HalfFloatSliceExt},
};

/// How exactly vectors are kept for the score that orders what a walk found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// As given: 4 bytes a number.
    #[default]
    F32,
    /// 11 significant bits: 2 bytes a number. Numbers beyond 65,504 are cut.
    F16,
    /// The code's 8 bits and 4 bits more, all of one step: half a byte a number beside the code. The largest number sets the
    /// step, so a set with far outliers loses recall.
    Int12,
    /// The code alone: nothing beside it. Enough where vectors have hundreds of dimensions, whose errors even out.
    Int8,
}

/// Points' vectors in one precision.
pub(super) struct Values {
    pub precision: Precision,
    pub bytes: Slice<u8>,
}

impl Precision {
    pub const ALL: [Self; 4] = [Self::F32, Self::F16, Self::Int12, Self::Int8];

    /// Bytes of a point beside its code.
    pub fn bytes_per_point(self, dimensions: usize) -> usize {
        match self {
            Self::F32 => 4 * dimensions,
            Self::F16 => 2 * dimensions,
            Self::Int12 => dimensions.next_multiple_of(CODE_LINE) / 2,
            Self::Int8 => 0,
        }
    }

    /// Appends what is kept of a vector, which has this code.
    pub fn encode(self, vector: &[f32], code: &[u8], quantizer: &Quantizer, out: &mut Vec<u8>) {
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
    /// The inner product of the query with a point's vector. `decoded` has room for a code's length.
    ///
    /// # Safety
    /// The machine has the instructions; the point is one of these; the query has the index's dimensions.
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
        // SAFETY: the caller's promise; each side has the index's dimensions.
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

    /// Asks for a point's bytes before they are read.
    #[inline(always)]
    pub(super) fn fetch(&self, point: usize, dimensions: usize) {
        let size = self.precision.bytes_per_point(dimensions);
        let bytes = &self.bytes[point * size..][..size];
        (0..size).step_by(64).for_each(|at| prefetch(bytes[at..].as_ptr()));
    }

    /// Whether all numbers are finite.
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

#[inline(always)]
fn numbers_of(code: &[u8], out: &mut [f32]) {
    for (byte, out) in code.iter().zip(out) {
        *out = f32::from(i16::from(*byte) - i16::from(ZERO));
    }
}

/// 8 bits and 4 bits to numbers of a sixteenth of a step.
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

    proptest! {
        #[test]
        fn what_is_kept_is_near_the_vector(vector in prop::collection::vec(-1.0f32..1.0, 1..200)) {
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
