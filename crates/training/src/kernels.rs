//! Numeric kernels: matrix products with the `gemm-f32` crate, and loops that are compiled once for each set of vector
//! instructions and selected at run time. This module contains all unsafe code of the crate.
use gemm_common::Parallelism;
use gemm_f32::gemm::f32::get_gemm_fn;

/// A matrix view of f32; a transpose only swaps the strides.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    values: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> View<'a> {
    /// Views `values` in row-major order.
    pub(crate) fn new(values: &'a [f32], rows: usize, columns: usize) -> Self {
        assert!(values.len() >= rows * columns, "{} numbers for {rows} × {columns}", values.len());
        Self { values, rows, columns, row_stride: columns, column_stride: 1 }
    }

    pub(crate) fn transposed(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }
}

/// Whether a product overwrites its destination or is added to it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Into {
    Replace,
    Add,
}

/// Writes `a · b` to `out` (row-major), or adds it. Runs on the calling thread.
pub(crate) fn matmul(out: &mut [f32], into: Into, a: View, b: View) {
    assert_eq!(a.columns, b.rows, "inner dimensions");
    assert!(out.len() >= a.rows * b.columns, "the output is too small for the product");
    if a.rows == 0 || b.columns == 0 {
        return;
    }
    // The kernels write a column at a time, so the row-major product is computed as its transpose, outᵀ = bᵀ · aᵀ. An
    // output of one column has both orders and stays as it is.
    let (left, right) = if b.columns > 1 { (b.transposed(), a.transposed()) } else { (a, b) };
    let (row_stride, column_stride) = if b.columns > 1 { (1, b.columns as isize) } else { (1, 1) };
    // SAFETY: the views contain rows × columns numbers at their strides; `out` contains `left.rows` × `right.columns`
    // at these strides, and is borrowed mutably.
    unsafe {
        get_gemm_fn()(
            left.rows,
            right.columns,
            left.columns,
            out.as_mut_ptr(),
            column_stride,
            row_stride,
            into == Into::Add,
            left.values.as_ptr(),
            left.column_stride as isize,
            left.row_stride as isize,
            right.values.as_ptr(),
            right.column_stride as isize,
            right.row_stride as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

/// Compiles a function for AVX-512, for AVX2 and for the baseline, and calls the best version that the processor
/// supports. Functions that the body calls must be `#[inline(always)]`, so that they are compiled with the same
/// instructions.
macro_rules! vectorised {
    ($(#[$about:meta])* $visible:vis fn $name:ident($($argument:ident: $type:ty),* $(,)?) $(-> $result:ty)? $body:block) => {
        $(#[$about])*
        $visible fn $name($($argument: $type),*) $(-> $result)? {
            #[inline(always)]
                fn body($($argument: $type),*) $(-> $result)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
                        unsafe fn avx512($($argument: $type),*) $(-> $result)? {
                    body($($argument),*)
                }
                #[target_feature(enable = "avx2,fma")]
                        unsafe fn avx2($($argument: $type),*) $(-> $result)? {
                    body($($argument),*)
                }
                if is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                {
                    // SAFETY: the processor supports these instructions.
                    return unsafe { avx512($($argument),*) };
                }
                if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                    // SAFETY: the processor supports these instructions.
                    return unsafe { avx2($($argument),*) };
                }
            }
            body($($argument),*)
        }
    };
}

/// Numbers in one or two vector registers.
const LANES: usize = 16;

/// Returns e^x for x ≤ 88, within 2 units in the last place; 0 below -87. Cephes' `expf` without branches.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    let x = x.clamp(-87.0, 88.0);
    // Adding and subtracting 1.5 · 2^23 rounds to an integer.
    let shifted = x * std::f32::consts::LOG2_E + 12_582_912.0;
    let whole = shifted - 12_582_912.0;
    let rest = x - whole * 0.693_359_4 + whole * 2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    p = p * rest + 1.398_199_9e-3;
    p = p * rest + 8.333_452e-3;
    p = p * rest + 4.166_579_6e-2;
    p = p * rest + 0.166_666_66;
    p = p * rest + 0.5;
    let p = p * rest * rest + rest + 1.0;
    let power = f32::from_bits((((shifted.to_bits() as i32) << 23).wrapping_add(127 << 23)) as u32);
    p * power
}

#[inline(always)]
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0f32; LANES];
    let (a_lanes, b_lanes) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let mut sum: f32 = a_lanes.remainder().iter().zip(b_lanes.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a_lanes.zip(b_lanes) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    for value in sums {
        sum += value;
    }
    sum
}

#[inline(always)]
pub(crate) fn add_scaled(out: &mut [f32], scale: f32, values: &[f32]) {
    for (out, value) in out.iter_mut().zip(values) {
        *out += scale * value;
    }
}

#[inline(always)]
fn greatest(values: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = values.chunks_exact(LANES);
    let rest = chunks.remainder().iter().fold(f32::NEG_INFINITY, |a, b| if *b > a { *b } else { a });
    for chunk in chunks {
        for lane in 0..LANES {
            lanes[lane] = if chunk[lane] > lanes[lane] { chunk[lane] } else { lanes[lane] };
        }
    }
    lanes.into_iter().fold(rest, f32::max)
}

vectorised! {
    /// Replaces a row of logits by e^(logit - greatest), in place, and returns (greatest, sum).
    pub(crate) fn exponentials(logits: &mut [f32]) -> (f32, f32) {
        let peak = greatest(logits);
        let mut sums = [0.0f32; LANES];
        let mut chunks = logits.chunks_exact_mut(LANES);
        for chunk in &mut chunks {
            for lane in 0..LANES {
                let value = exp(chunk[lane] - peak);
                chunk[lane] = value;
                sums[lane] += value;
            }
        }
        let mut sum = 0.0;
        for value in chunks.into_remainder() {
            *value = exp(*value - peak);
            sum += *value;
        }
        for value in sums {
            sum += value;
        }
        (peak, sum)
    }
}

vectorised! {
    /// Returns the number of values that are at least `limit`.
    pub(crate) fn at_least(values: &[f32], limit: f32) -> usize {
        let mut count = 0u32;
        for value in values {
            count += u32::from(*value >= limit);
        }
        count as usize
    }
}

vectorised! {
    pub(crate) fn scale(values: &mut [f32], by: f32) {
        for value in values {
            *value *= by;
        }
    }
}

vectorised! {
    pub(crate) fn add(out: &mut [f32], values: &[f32]) {
        add_scaled(out, 1.0, values);
    }
}

vectorised! {
    /// Adds `by` × `values` to `out`.
    pub(crate) fn add_multiple(out: &mut [f32], by: f32, values: &[f32]) {
        add_scaled(out, by, values);
    }
}

vectorised! {
    pub(crate) fn multiply(out: &mut [f32], values: &[f32]) {
        for (out, value) in out.iter_mut().zip(values) {
            *out *= value;
        }
    }
}

vectorised! {
    /// Adds `row` to every row of `out`.
    pub(crate) fn add_row(out: &mut [f32], row: &[f32]) {
        for out in out.chunks_exact_mut(row.len()) {
            add_scaled(out, 1.0, row);
        }
    }
}

vectorised! {
    /// Adds every row of `rows` to `out`.
    pub(crate) fn sum_rows(out: &mut [f32], rows: &[f32]) {
        for row in rows.chunks_exact(out.len()) {
            add_scaled(out, 1.0, row);
        }
    }
}

/// Of the sigmoid form of GELU.
pub(crate) const GELU_SHARPNESS: f32 = 1.702;

vectorised! {
    /// Computes x · σ(1.702 x), the sigmoid approximation of GELU (Hendrycks & Gimpel 2016, §2).
    pub(crate) fn gelu(out: &mut [f32], x: &[f32]) {
        for (out, x) in out.iter_mut().zip(x) {
            *out = x / (1.0 + exp(-GELU_SHARPNESS * x));
        }
    }
}

vectorised! {
    /// Replaces the gradient of [`gelu`]'s output by that of its input, in place.
    pub(crate) fn gelu_backward(gradient: &mut [f32], x: &[f32]) {
        for (gradient, x) in gradient.iter_mut().zip(x) {
            let gate = 1.0 / (1.0 + exp(-GELU_SHARPNESS * x));
            *gradient *= gate + GELU_SHARPNESS * x * gate * (1.0 - gate);
        }
    }
}

vectorised! {
    /// The hyperbolic tangent of each number, in place; exact to 2e-7.
    pub(crate) fn tanh(values: &mut [f32]) {
        for value in values {
            *value = 1.0 - 2.0 / (exp(2.0 * *value) + 1.0);
        }
    }
}

vectorised! {
    /// Multiplies the gradient of [`tanh`]'s output `out` into that of its input, in place.
    pub(crate) fn tanh_backward(gradient: &mut [f32], out: &[f32]) {
        for (gradient, out) in gradient.iter_mut().zip(out) {
            *gradient *= 1.0 - out * out;
        }
    }
}

const VARIANCE_FLOOR: f32 = 1e-6;

vectorised! {
    /// Computes the layer norm of each row. `normed` receives the rows before gain and bias, `inverse` 1 / standard
    /// deviation; the backward pass needs both.
    pub(crate) fn layer_norm(out: &mut [f32], normed: &mut [f32], inverse: &mut [f32], x: &[f32], gain: &[f32], bias: &[f32]) {
        let width = gain.len();
        for (row, x) in x.chunks_exact(width).enumerate() {
            let normed = &mut normed[row * width..][..width];
            let out = &mut out[row * width..][..width];
            let mut mean = 0.0;
            for value in x {
                mean += value;
            }
            mean /= width as f32;
            for (normed, x) in normed.iter_mut().zip(x) {
                *normed = x - mean;
            }
            let scale = 1.0 / (dot(normed, normed) / width as f32 + VARIANCE_FLOOR).sqrt();
            inverse[row] = scale;
            for place in 0..width {
                normed[place] *= scale;
                out[place] = normed[place] * gain[place] + bias[place];
            }
        }
    }
}

vectorised! {
    /// Adds the gradients that follow from `dout` to `dx` and to `dgain_dbias` (the gain's gradient, then the bias's).
    /// `scratch` has the length of `gain`.
    pub(crate) fn layer_norm_backward(
        dx: &mut [f32],
        dgain_dbias: &mut [f32],
        dout: &[f32],
        normed: &[f32],
        inverse: &[f32],
        gain: &[f32],
        scratch: &mut [f32],
    ) {
        let width = gain.len();
        let (dgain, dbias) = dgain_dbias.split_at_mut(width);
        let share = 1.0 / width as f32;
        for (row, dout) in dout.chunks_exact(width).enumerate() {
            let normed = &normed[row * width..][..width];
            let dx = &mut dx[row * width..][..width];
            for place in 0..width {
                dgain[place] += dout[place] * normed[place];
                dbias[place] += dout[place];
                scratch[place] = dout[place] * gain[place];
            }
            let along = dot(scratch, normed) * share;
            let mut mean = 0.0;
            for value in scratch.iter() {
                mean += value;
            }
            mean *= share;
            for place in 0..width {
                dx[place] += inverse[row] * (scratch[place] - mean - normed[place] * along);
            }
        }
    }
}

vectorised! {
    /// Scales each row to length 1; `inverse` receives 1 / length.
    pub(crate) fn normalise_rows(rows: &mut [f32], width: usize, inverse: &mut [f32]) {
        for (row, inverse) in rows.chunks_exact_mut(width).zip(inverse) {
            *inverse = 1.0 / (dot(row, row) + 1e-12).sqrt();
            for value in row {
                *value *= *inverse;
            }
        }
    }
}

vectorised! {
    /// Replaces the gradient of normalised rows by that of the rows before [`normalise_rows`], in place.
    pub(crate) fn normalise_rows_backward(gradient: &mut [f32], rows: &[f32], width: usize, inverse: &[f32]) {
        for ((gradient, row), inverse) in gradient.chunks_exact_mut(width).zip(rows.chunks_exact(width)).zip(inverse) {
            let along = dot(gradient, row);
            for (gradient, value) in gradient.iter_mut().zip(row) {
                *gradient = (*gradient - along * value) * inverse;
            }
        }
    }
}

/// Rates of one step of Adam; see [`super::adam::Adam`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct AdamStep {
    /// Learning rate with the bias correction.
    pub rate: f32,
    pub betas: (f32, f32),
    pub epsilon: f32,
    /// Share of the weights that is subtracted.
    pub decay: f32,
}

vectorised! {
    /// One step of Adam (Kingma & Ba 2015, algorithm 1) with decoupled weight decay (Loshchilov & Hutter 2019).
    pub(crate) fn adam(weights: &mut [f32], mean: &mut [f32], square: &mut [f32], gradient: &[f32], step: AdamStep) {
        let AdamStep { rate, betas: (one, two), epsilon, decay } = step;
        for place in 0..weights.len().min(mean.len()).min(square.len()).min(gradient.len()) {
            let g = gradient[place];
            mean[place] = one * mean[place] + (1.0 - one) * g;
            square[place] = two * square[place] + (1.0 - two) * g * g;
            weights[place] -= rate * mean[place] / (square[place].sqrt() + epsilon) + decay * weights[place];
        }
    }
}

/// Layout of the queries, keys and values of one token in a row of three widths.
#[derive(Clone, Copy)]
pub(crate) struct Heads {
    pub width: usize,
    pub count: usize,
}

vectorised! {
    /// Computes the causal attention of one sequence. `qkv` is `[length × 3 width]`; `weights`
    /// `[heads × length × length]` and `out` `[length × width]` are overwritten; `kept` is the dropout mask of the weights,
    /// or empty.
    pub(crate) fn attend(out: &mut [f32], weights: &mut [f32], qkv: &[f32], kept: &[f32], heads: Heads) {
        let (d, head_d) = (heads.width, heads.width / heads.count);
        let length = qkv.len() / (3 * d);
        let scale = 1.0 / (head_d as f32).sqrt();
        out.fill(0.0);
        for head in 0..heads.count {
            let at = head * head_d;
            for to in 0..length {
                let row = &mut weights[(head * length + to) * length..][..length];
                let query = &qkv[to * 3 * d + at..][..head_d];
                let mut peak = f32::NEG_INFINITY;
                for from in 0..=to {
                    row[from] = scale * dot(query, &qkv[from * 3 * d + d + at..][..head_d]);
                    peak = peak.max(row[from]);
                }
                let mut sum = 0.0;
                for value in &mut row[..=to] {
                    *value = exp(*value - peak);
                    sum += *value;
                }
                let read = &mut out[to * d + at..][..head_d];
                for from in 0..=to {
                    row[from] /= sum;
                    let kept = if kept.is_empty() { 1.0 } else { kept[(head * length + to) * length + from] };
                    add_scaled(read, row[from] * kept, &qkv[from * 3 * d + 2 * d + at..][..head_d]);
                }
            }
        }
    }
}

vectorised! {
    /// Adds to `dqkv` the gradient that follows from `dout`; see [`attend`]. `scratch` has at least `length` numbers.
    pub(crate) fn attend_backward(
        dqkv: &mut [f32],
        dout: &[f32],
        weights: &[f32],
        qkv: &[f32],
        kept: &[f32],
        heads: Heads,
        scratch: &mut [f32],
    ) {
        let (d, head_d) = (heads.width, heads.width / heads.count);
        let length = qkv.len() / (3 * d);
        let scale = 1.0 / (head_d as f32).sqrt();
        for head in 0..heads.count {
            let at = head * head_d;
            for to in 0..length {
                let row = &weights[(head * length + to) * length..][..length];
                let dread = &dout[to * d + at..][..head_d];
                let mut along = 0.0;
                for from in 0..=to {
                    let kept = if kept.is_empty() { 1.0 } else { kept[(head * length + to) * length + from] };
                    scratch[from] = kept * dot(dread, &qkv[from * 3 * d + 2 * d + at..][..head_d]);
                    along += scratch[from] * row[from];
                    add_scaled(&mut dqkv[from * 3 * d + 2 * d + at..][..head_d], row[from] * kept, dread);
                }
                for from in 0..=to {
                    let slope = scale * row[from] * (scratch[from] - along);
                    add_scaled(&mut dqkv[to * 3 * d + at..][..head_d], slope, &qkv[from * 3 * d + d + at..][..head_d]);
                    add_scaled(&mut dqkv[from * 3 * d + d + at..][..head_d], slope, &qkv[to * 3 * d + at..][..head_d]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exponential_is_accurate_to_4e_7() {
        for step in -8600..=8800 {
            let x = step as f32 / 100.0;
            let truth = f64::from(x).exp();
            assert!((f64::from(exp(x)) - truth).abs() <= 4e-7 * truth, "{x}: {} {truth}", exp(x));
        }
        assert!(exp(-1000.0) < 1e-37);
    }

    #[test]
    fn the_hyperbolic_tangent_is_exact_enough() {
        for step in -3000..=3000 {
            let x = step as f32 / 100.0;
            let mut out = [x];
            tanh(&mut out);
            assert!((f64::from(out[0]) - f64::from(x).tanh()).abs() <= 2e-7, "{x}: {}", out[0]);
        }
    }

    #[test]
    fn a_product_with_a_transpose_equals_nested_loops() {
        let a: Vec<f32> = (0..6).map(|x| x as f32).collect();
        let b: Vec<f32> = (0..12).map(|x| (x * x) as f32).collect();
        let mut out = vec![1.0; 8];
        matmul(&mut out, Into::Add, View::new(&a, 2, 3), View::new(&b, 4, 3).transposed());
        for i in 0..2 {
            for j in 0..4 {
                let sum: f32 = (0..3).map(|k| a[i * 3 + k] * b[j * 3 + k]).sum();
                assert_eq!(out[i * 4 + j], 1.0 + sum);
            }
        }
    }
}
