//! SIMD kernels: inner products of floats and of codes, and the operations of a graph search.
//!
//! The instruction set is chosen at run time, because the binary is built for the oldest CPU of its architecture. All
//! SIMD of the project is here.
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// Returns the inner product of two slices. Ignores the elements of the longer slice beyond the length of the shorter.
///
/// The order of the additions depends on the CPU, so results agree to about 1e-6 of the sum of magnitudes.
#[inline]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let length = a.len().min(b.len());
    let (a, b) = (&a[..length], &b[..length]);
    #[cfg(target_arch = "x86_64")]
    {
        // SAFETY: each path runs only if the CPU supports its instructions. std caches the detection. Lengths are
        // equal.
        if is_x86_feature_detected!("avx512f") {
            return unsafe { dot_avx512(a, b) };
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return unsafe { dot_avx2(a, b) };
        }
    }
    // Every aarch64 CPU has NEON, to which the compiler vectorizes the portable loop.
    dot_plain(a, b)
}

/// Keeps sixteen independent sums, so that the compiler vectorizes the loop.
pub(crate) fn dot_plain(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0_f32; 16];
    let (a_chunks, a_rest) = a.as_chunks::<16>();
    let (b_chunks, b_rest) = b.as_chunks::<16>();
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for lane in 0..16 {
            sums[lane] += a[lane] * b[lane];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}

/// Maximum number of vectors in [`LaneVectors`].
pub const LANES: usize = 16;

/// Up to [`LANES`] vectors of one length in a layout by dimension. One pass over another vector computes its inner
/// products with all of them, twice as fast as separate calls of [`dot`].
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LaneVectors {
    /// `[dimensions × LANES]`.
    by_dimension: Vec<[f32; LANES]>,
}

impl LaneVectors {
    /// Copies the first [`LANES`] of the vectors, each of which has `dimensions` numbers.
    pub fn new<'v>(dimensions: usize, vectors: impl Iterator<Item = &'v [f32]>) -> Self {
        let mut by_dimension = vec![[0.0; LANES]; dimensions];
        for (lane, vector) in vectors.take(LANES).enumerate() {
            for (lanes, value) in by_dimension.iter_mut().zip(vector) {
                lanes[lane] = *value;
            }
        }
        Self { by_dimension }
    }

    /// Returns the inner product with each vector; 0 in unused lanes.
    #[inline]
    pub fn dots(&self, vector: &[f32]) -> [f32; LANES] {
        #[cfg(target_arch = "x86_64")]
        {
            // SAFETY: each path runs only if the CPU supports its instructions.
            if is_x86_feature_detected!("avx512f") {
                return unsafe { lane_dots_avx512(&self.by_dimension, vector) };
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                return unsafe { lane_dots_avx2(&self.by_dimension, vector) };
            }
        }
        lane_dots(&self.by_dimension, vector)
    }
}

/// Keeps four independent sums for each lane. The compiler vectorizes it for the target features of the caller.
#[inline(always)]
fn lane_dots(matrix: &[[f32; LANES]], vector: &[f32]) -> [f32; LANES] {
    let mut sums = [[0.0f32; LANES]; 4];
    let (matrix_fours, matrix_rest) = matrix.as_chunks::<4>();
    let (vector_fours, vector_rest) = vector.as_chunks::<4>();
    for (rows, values) in matrix_fours.iter().zip(vector_fours) {
        for part in 0..4 {
            for lane in 0..LANES {
                sums[part][lane] += rows[part][lane] * values[part];
            }
        }
    }
    for (row, value) in matrix_rest.iter().zip(vector_rest) {
        for lane in 0..LANES {
            sums[0][lane] += row[lane] * value;
        }
    }
    std::array::from_fn(|lane| (sums[0][lane] + sums[1][lane]) + (sums[2][lane] + sums[3][lane]))
}

/// # Safety
/// The CPU supports AVX-512F.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn lane_dots_avx512(matrix: &[[f32; LANES]], vector: &[f32]) -> [f32; LANES] {
    lane_dots(matrix, vector)
}

/// # Safety
/// The CPU supports AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn lane_dots_avx2(matrix: &[[f32; LANES]], vector: &[f32]) -> [f32; LANES] {
    lane_dots(matrix, vector)
}

/// # Safety
/// The CPU supports AVX-512F, and both slices have the same length.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn dot_avx512(a: &[f32], b: &[f32]) -> f32 {
    // SAFETY: guaranteed by the caller.
    unsafe { dot_wide(a, b) }
}

/// [`dot_avx512`], inlined into functions that are compiled for AVX-512F.
///
/// # Safety
/// The CPU supports AVX-512F, and both slices have the same length.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn dot_wide(a: &[f32], b: &[f32]) -> f32 {
    debug_assert_eq!(a.len(), b.len());
    let mut at = 0;
    // SAFETY: every load stays within `a.len()` elements; the masked load reads only the remaining lanes.
    unsafe {
        let (mut first, mut second) = (_mm512_setzero_ps(), _mm512_setzero_ps());
        while at + 32 <= a.len() {
            first = _mm512_fmadd_ps(_mm512_loadu_ps(a.as_ptr().add(at)), _mm512_loadu_ps(b.as_ptr().add(at)), first);
            let next = at + 16;
            second =
                _mm512_fmadd_ps(_mm512_loadu_ps(a.as_ptr().add(next)), _mm512_loadu_ps(b.as_ptr().add(next)), second);
            at += 32;
        }
        while at < a.len() {
            let lanes = (a.len() - at).min(16);
            let mask = (0xFFFF_u32 >> (16 - lanes)) as u16;
            let (a, b) =
                (_mm512_maskz_loadu_ps(mask, a.as_ptr().add(at)), _mm512_maskz_loadu_ps(mask, b.as_ptr().add(at)));
            first = _mm512_fmadd_ps(a, b, first);
            at += lanes;
        }
        _mm512_reduce_add_ps(_mm512_add_ps(first, second))
    }
}

/// # Safety
/// The CPU supports AVX2 and FMA, and both slices have the same length.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn dot_avx2(a: &[f32], b: &[f32]) -> f32 {
    debug_assert_eq!(a.len(), b.len());
    let mut sums = [_mm256_setzero_ps(); 4];
    let mut at = 0;
    // SAFETY: every load stays within `a.len()` elements.
    unsafe {
        while at + 32 <= a.len() {
            for (lane, sum) in sums.iter_mut().enumerate() {
                let (a, b) = (a.as_ptr().add(at + 8 * lane), b.as_ptr().add(at + 8 * lane));
                *sum = _mm256_fmadd_ps(_mm256_loadu_ps(a), _mm256_loadu_ps(b), *sum);
            }
            at += 32;
        }
        while at + 8 <= a.len() {
            let (a, b) = (_mm256_loadu_ps(a.as_ptr().add(at)), _mm256_loadu_ps(b.as_ptr().add(at)));
            sums[0] = _mm256_fmadd_ps(a, b, sums[0]);
            at += 8;
        }
    }
    let sum = _mm256_add_ps(_mm256_add_ps(sums[0], sums[1]), _mm256_add_ps(sums[2], sums[3]));
    let half = _mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps::<1>(sum));
    let quarter = _mm_add_ps(half, _mm_movehl_ps(half, half));
    let whole = _mm_add_ss(quarter, _mm_shuffle_ps::<1>(quarter, quarter));
    let rest: f32 = a[at..].iter().zip(&b[at..]).map(|(a, b)| a * b).sum();
    _mm_cvtss_f32(whole) + rest
}

/// Bytes of a line of a code. Codes are padded to whole lines, so that no kernel processes a remainder.
pub(crate) const CODE_LINE: usize = 64;

/// The inner loops of a search over codes, for one instruction set. The methods are inlined into functions that
/// [`with_codes`] compiles for that instruction set.
pub(crate) trait Codes {
    /// Computes inner products of a query with codes. `query` has whole lines of [`CODE_LINE`] signed bytes. The code
    /// of `ids[i]` begins at `codes + ids[i] * query.len()`. Writes `sum(query * code)` to `out[i]`, with the code
    /// as unsigned bytes.
    ///
    /// # Safety
    /// Every id is within the codes, `out` is as long as `ids`, and the CPU supports the instructions.
    unsafe fn dots(query: &[i8], codes: *const u8, ids: &[u32], out: &mut [i32]);

    /// Returns the inner product of two slices of the same length.
    ///
    /// # Safety
    /// Both slices have the same length, and the CPU supports the instructions.
    unsafe fn dot(a: &[f32], b: &[f32]) -> f32;

    /// Writes the ids whose bit is not set to `out`, in order, and returns their number. Does not set bits. Stops at
    /// `u32::MAX`, with which lists are padded.
    ///
    /// # Safety
    /// `bits` has a bit for every id, `out` is longer than `ids` by 16, and the CPU supports the instructions.
    unsafe fn unset(ids: &[u32], bits: &[u32], out: &mut [u32]) -> usize;

    /// Unpacks ids of three bytes each, little endian; 0xFFFFFF becomes `u32::MAX`.
    ///
    /// # Safety
    /// `out` is at least a third as long as `bytes`, and the CPU supports the instructions.
    unsafe fn unpack_24(bytes: &[u8], out: &mut [u32]);

    /// Inserts a number into a sorted list of `length` numbers and returns its index.
    ///
    /// # Safety
    /// `list` points to the first number and has a capacity of `length + 1`; the 8 numbers before it are 0; and the CPU
    /// supports the instructions.
    unsafe fn insert(list: *mut u64, length: usize, number: u64) -> usize;
}

/// The instruction sets that have kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum InstructionSet {
    /// AVX-512 with VNNI.
    #[cfg(target_arch = "x86_64")]
    Vnni,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// The baseline of the architecture; on aarch64 it includes NEON.
    Plain,
}

impl InstructionSet {
    /// Returns the fastest that this CPU supports.
    pub(crate) fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            let has_avx2 = is_x86_feature_detected!("avx2");
            let has_avx512 = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw");
            if has_avx2 && has_avx512 && is_x86_feature_detected!("avx512vnni") {
                return Self::Vnni;
            }
            if has_avx2 {
                return Self::Avx2;
            }
        }
        Self::Plain
    }
}

/// Returns its argument. Attributes on closures, such as `inline`, are allowed in argument position only.
#[inline(always)]
pub(crate) fn inlined<F>(closure: F) -> F {
    closure
}

/// Runs `$body`, compiled for `$instructions`, with `$codes` as their implementation of [`Codes`]. The body must not
/// move its captures, because a closure that is called by value goes through an adapter that is not inlined, and then
/// the kernels are not inlined either.
macro_rules! with_codes {
    ($instructions:expr, |$codes:ident| $body:expr) => {{
        match $instructions {
            #[cfg(target_arch = "x86_64")]
            $crate::kernels::InstructionSet::Vnni => {
                #[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx512vl,avx2,bmi1,bmi2,popcnt,lzcnt")]
                unsafe fn run<R>(mut body: impl FnMut() -> R) -> R {
                    body()
                }
                type $codes = $crate::kernels::Vnni;
                let body = $crate::kernels::inlined(
                    #[inline(always)]
                    || $body,
                );
                // SAFETY: `InstructionSet::detect` detected these instructions.
                unsafe { run(body) }
            }
            #[cfg(target_arch = "x86_64")]
            $crate::kernels::InstructionSet::Avx2 => {
                #[target_feature(enable = "avx2")]
                unsafe fn run<R>(mut body: impl FnMut() -> R) -> R {
                    body()
                }
                type $codes = $crate::kernels::Plain;
                let body = $crate::kernels::inlined(
                    #[inline(always)]
                    || $body,
                );
                // SAFETY: `InstructionSet::detect` detected these instructions.
                unsafe { run(body) }
            }
            $crate::kernels::InstructionSet::Plain => {
                type $codes = $crate::kernels::Plain;
                $body
            }
        }
    }};
}
pub(crate) use with_codes;

/// Portable loops that the compiler vectorizes, with wider registers for AVX2. (The 8-bit products of AVX2 saturate.)
pub(crate) struct Plain;

impl Codes for Plain {
    #[inline(always)]
    unsafe fn dots(query: &[i8], codes: *const u8, ids: &[u32], out: &mut [i32]) {
        for (id, out) in ids.iter().zip(out) {
            // SAFETY: guaranteed by the caller.
            let code = unsafe { std::slice::from_raw_parts(codes.add(*id as usize * query.len()), query.len()) };
            *out = query.iter().zip(code).map(|(q, c)| i32::from(*q) * i32::from(*c)).sum();
        }
    }

    #[inline(always)]
    unsafe fn dot(a: &[f32], b: &[f32]) -> f32 {
        dot_plain(a, b)
    }

    #[inline(always)]
    unsafe fn unset(ids: &[u32], bits: &[u32], out: &mut [u32]) -> usize {
        let mut length = 0;
        for &id in ids.iter().take_while(|id| **id != u32::MAX) {
            out[length] = id;
            length += usize::from(bits[id as usize / 32] >> (id % 32) & 1 == 0);
        }
        length
    }

    #[inline(always)]
    unsafe fn unpack_24(bytes: &[u8], out: &mut [u32]) {
        for (bytes, out) in bytes.as_chunks::<3>().0.iter().zip(out) {
            let id = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], 0]);
            *out = if id == 0xFF_FFFF { u32::MAX } else { id };
        }
    }

    #[inline(always)]
    unsafe fn insert(list: *mut u64, length: usize, number: u64) -> usize {
        // SAFETY: the caller guarantees a capacity of `length + 1`.
        let list = unsafe { std::slice::from_raw_parts_mut(list, length + 1) };
        let at = list[..length].partition_point(|other| *other < number);
        list.copy_within(at..length, at + 1);
        list[at] = number;
        at
    }
}

/// AVX-512 with VNNI, which computes 64 products in one instruction.
#[cfg(target_arch = "x86_64")]
pub(crate) struct Vnni;

#[cfg(target_arch = "x86_64")]
impl Codes for Vnni {
    /// Processes four codes at a time and reduces their sums together.
    #[inline(always)]
    unsafe fn dots(query: &[i8], codes: *const u8, ids: &[u32], out: &mut [i32]) {
        let length = query.len();
        let lines = length / CODE_LINE;
        let query = query.as_ptr();
        let (fours, rest) = ids.as_chunks::<4>();
        let (out_fours, out_rest) = out[..ids.len()].as_chunks_mut::<4>();
        // SAFETY: every load is one line of the query or of a code whose id is valid, as the caller guarantees.
        unsafe {
            for (ids, out) in fours.iter().zip(out_fours) {
                let mut sums = [_mm512_setzero_si512(); 4];
                for line in 0..lines {
                    let q = _mm512_loadu_si512(query.add(line * CODE_LINE).cast());
                    for (sum, id) in sums.iter_mut().zip(ids) {
                        let code = codes.add(*id as usize * length + line * CODE_LINE);
                        *sum = _mm512_dpbusd_epi32(*sum, _mm512_loadu_si512(code.cast()), q);
                    }
                }
                let half = |sum| _mm256_add_epi32(_mm512_castsi512_si256(sum), _mm512_extracti64x4_epi64::<1>(sum));
                let low = _mm256_hadd_epi32(half(sums[0]), half(sums[1]));
                let high = _mm256_hadd_epi32(half(sums[2]), half(sums[3]));
                let folded = _mm256_hadd_epi32(low, high);
                let whole = _mm_add_epi32(_mm256_castsi256_si128(folded), _mm256_extracti128_si256::<1>(folded));
                _mm_storeu_si128(out.as_mut_ptr().cast(), whole);
            }
            for (id, out) in rest.iter().zip(out_rest) {
                let mut sum = _mm512_setzero_si512();
                for line in 0..lines {
                    let q = _mm512_loadu_si512(query.add(line * CODE_LINE).cast());
                    let code = codes.add(*id as usize * length + line * CODE_LINE);
                    sum = _mm512_dpbusd_epi32(sum, _mm512_loadu_si512(code.cast()), q);
                }
                *out = _mm512_reduce_add_epi32(sum);
            }
        }
    }

    #[inline(always)]
    unsafe fn dot(a: &[f32], b: &[f32]) -> f32 {
        // SAFETY: guaranteed by the caller.
        unsafe { dot_wide(a, b) }
    }

    /// Processes sixteen ids at a time without a branch for each.
    #[inline(always)]
    unsafe fn unset(ids: &[u32], bits: &[u32], out: &mut [u32]) -> usize {
        let mut length = 0;
        // SAFETY: masked loads stay within the ids and gathers within the bits. `out` has 16 elements more than `ids`,
        // so a store of a whole register stays within it.
        unsafe {
            let none = _mm512_set1_epi32(-1);
            for chunk in ids.chunks(16) {
                let lanes = (0xFFFF_u32 >> (16 - chunk.len())) as u16;
                let id = _mm512_mask_loadu_epi32(none, lanes, chunk.as_ptr().cast());
                let there = _mm512_cmpneq_epi32_mask(id, none);
                let word = _mm512_srli_epi32::<5>(id);
                let words = _mm512_mask_i32gather_epi32::<4>(none, there, word, bits.as_ptr().cast());
                let bit = _mm512_sllv_epi32(_mm512_set1_epi32(1), _mm512_and_si512(id, _mm512_set1_epi32(31)));
                let unset = _mm512_mask_testn_epi32_mask(there, words, bit);
                _mm512_storeu_si512(out.as_mut_ptr().add(length).cast(), _mm512_maskz_compress_epi32(unset, id));
                length += unset.count_ones() as usize;
                if there != 0xFFFF {
                    break;
                }
            }
        }
        length
    }

    #[inline(always)]
    unsafe fn unpack_24(bytes: &[u8], out: &mut [u32]) {
        // SAFETY: the masked loads stay within the bytes, the stores within a third of them.
        unsafe {
            // Spreads twelve bytes to each lane of sixteen, then widens three bytes to four in each lane.
            let spread = _mm512_setr_epi32(0, 1, 2, 0, 3, 4, 5, 0, 6, 7, 8, 0, 9, 10, 11, 0);
            let widen = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 2, -1, 3, 4, 5, -1, 6, 7, 8, -1, 9, 10, 11, -1));
            let none = _mm512_set1_epi32(0xFF_FFFF);
            for (bytes, out) in bytes.chunks(48).zip(out.chunks_mut(16)) {
                let ids = bytes.len() / 3;
                let packed = _mm512_maskz_loadu_epi8(u64::MAX >> (64 - bytes.len()), bytes.as_ptr().cast());
                let id = _mm512_shuffle_epi8(_mm512_permutexvar_epi32(spread, packed), widen);
                let id = _mm512_mask_set1_epi32(id, _mm512_cmpeq_epi32_mask(id, none), -1);
                let lanes = (0xFFFF_u32 >> (16 - ids)) as u16;
                _mm512_mask_storeu_epi32(out.as_mut_ptr().cast(), lanes, id);
            }
        }
    }

    /// Moves eight numbers at a time until it reaches the index of the new number.
    #[inline(always)]
    unsafe fn insert(list: *mut u64, length: usize, number: u64) -> usize {
        // SAFETY: the zeros before the list are not greater than any number, so the loop ends within them.
        unsafe {
            let new = _mm512_set1_epi64(number as i64);
            let mut at = length as isize - 8;
            loop {
                let numbers = _mm512_loadu_si512(list.offset(at).cast());
                let greater = _mm512_cmpgt_epu64_mask(numbers, new);
                _mm512_mask_storeu_epi64(list.offset(at + 1).cast(), greater, numbers);
                if greater != 0xFF {
                    let index = at + 8 - greater.count_ones() as isize;
                    *list.offset(index) = number;
                    return index as usize;
                }
                at -= 8;
            }
        }
    }
}

/// Loads a cache line that will be read soon.
#[inline(always)]
pub(crate) fn prefetch(pointer: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch never faults, for any address; every x86_64 CPU supports SSE.
    unsafe {
        _mm_prefetch::<_MM_HINT_T0>(pointer.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = pointer;
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_path_matches_the_exact_sum(pairs in prop::collection::vec((-10f32..10.0, -10f32..10.0), 0..400)) {
            let (a, b): (Vec<f32>, Vec<f32>) = pairs.into_iter().unzip();
            let exact: f64 = a.iter().zip(&b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            let size: f64 = a.iter().zip(&b).map(|(a, b)| f64::from((a * b).abs())).sum();
            let close = |actual: f32| (f64::from(actual) - exact).abs() <= 1e-5 * size + 1e-6;
            prop_assert!(close(dot(&a, &b)) && close(dot_plain(&a, &b)));
            #[cfg(target_arch = "x86_64")]
            {
                // SAFETY: the CPU supports the instructions, and the lengths are equal.
                if is_x86_feature_detected!("avx512f") {
                    let actual = unsafe { dot_avx512(&a, &b) };
                    prop_assert!(close(actual));
                }
                if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                    let actual = unsafe { dot_avx2(&a, &b) };
                    prop_assert!(close(actual));
                }
            }
        }
    }

    proptest! {
        #[test]
        fn lane_products_match_dot(
            vectors in prop::collection::vec(prop::collection::vec(-10f32..10.0, 21), 1..20), of in 0usize..100,
        ) {
            let vector = &vectors[of % vectors.len()];
            let lanes = LaneVectors::new(21, vectors.iter().map(Vec::as_slice));
            let (actual, plain) = (lanes.dots(vector), lane_dots(&lanes.by_dimension, vector));
            for lane in 0..LANES {
                let expected = vectors.get(lane).map_or(0.0, |other| dot_plain(vector, other));
                prop_assert!((actual[lane] - expected).abs() < 1e-2 && (plain[lane] - expected).abs() < 1e-2);
            }
        }
    }

    /// Returns the result of the portable path. Asserts that all other paths of this CPU have the same result.
    fn same_on_every_path<R: PartialEq + std::fmt::Debug>(work: impl Fn(InstructionSet) -> R) -> R {
        let expected = work(InstructionSet::Plain);
        assert_eq!(work(InstructionSet::detect()), expected);
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") {
            assert_eq!(work(InstructionSet::Avx2), expected);
        }
        expected
    }

    proptest! {
        #[test]
        fn every_path_computes_the_same_products(lines in 1usize..7, rows in 1usize..20, seed in any::<u64>()) {
            use rand::{Rng, SeedableRng, rngs::StdRng};
            let mut random = StdRng::seed_from_u64(seed);
            let length = lines * CODE_LINE;
            let query: Vec<i8> = (0..length).map(|_| random.random()).collect();
            let codes: Vec<u8> = (0..rows * length).map(|_| random.random()).collect();
            let ids: Vec<u32> = (0..rows * 2).map(|_| random.random_range(0..rows as u32)).collect();
            let actual = same_on_every_path(|instructions| {
                let mut out = vec![0; ids.len()];
                // SAFETY: ids are below `rows`.
                with_codes!(instructions, |C| unsafe { C::dots(&query, codes.as_ptr(), &ids, &mut out) });
                out
            });
            for (id, actual) in ids.iter().zip(actual) {
                let code = &codes[*id as usize * length..][..length];
                let expected: i32 = query.iter().zip(code).map(|(q, c)| i32::from(*q) * i32::from(*c)).sum();
                prop_assert_eq!(actual, expected);
            }
        }

        #[test]
        fn every_path_unpacks_the_same_ids(ids in prop::collection::vec(prop_oneof![0u32..0xFF_FFFF, Just(u32::MAX)], 0..70)) {
            let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()[..3].to_vec()).collect();
            let actual = same_on_every_path(|instructions| {
                let mut out = vec![7; ids.len() + 1];
                // SAFETY: `out` is longer than `ids`.
                with_codes!(instructions, |C| unsafe { C::unpack_24(&bytes, &mut out) });
                out
            });
            prop_assert_eq!((&actual[..ids.len()], actual[ids.len()]), (&ids[..], 7));
        }

        #[test]
        fn every_path_finds_the_same_unset_bits(
            ids in prop::collection::vec(0u32..640, 0..70), end in 0usize..70, bits in prop::collection::vec(any::<u32>(), 20),
        ) {
            let mut ids = ids;
            ids.iter_mut().skip(end).for_each(|id| *id = u32::MAX);
            let actual = same_on_every_path(|instructions| {
                let mut out = vec![0; ids.len() + 16];
                // SAFETY: there are 640 bits, and `out` has 16 elements more than `ids`.
                let count = with_codes!(instructions, |C| unsafe { C::unset(&ids, &bits, &mut out) });
                out.truncate(count);
                out
            });
            let plain: Vec<u32> = ids.iter().copied().take_while(|id| *id != u32::MAX)
                .filter(|id| bits[*id as usize / 32] >> (id % 32) & 1 == 0).collect();
            prop_assert_eq!(actual, plain);
        }

        #[test]
        fn every_path_inserts_in_order(numbers in prop::collection::vec(1u64..200, 0..60)) {
            let actual = same_on_every_path(|instructions| {
                let mut list = vec![0u64; 8 + numbers.len() + 8];
                let mut indexes = Vec::new();
                for (length, &number) in numbers.iter().enumerate() {
                    // SAFETY: the list begins with 8 zeros and has a capacity for all numbers.
                    indexes.push(with_codes!(instructions, |C| unsafe { C::insert(list.as_mut_ptr().add(8), length, number) }));
                }
                let list = list[8..8 + numbers.len()].to_vec();
                (list, indexes.len())
            });
            let mut sorted = numbers.clone();
            sorted.sort_unstable();
            prop_assert_eq!(&actual.0, &sorted);
        }
    }
}
