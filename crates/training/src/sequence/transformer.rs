//! A causal pre-norm transformer over packed sequences (SASRec: Kang & McAuley 2018; pre-norm: Xiong et al. 2020), with
//! hand-written forward and backward passes. Sequences are concatenated, so that nothing is computed for padding.
use crate::{
    kernels::{
        Heads, add, add_scaled, attend, attend_backward, gelu, gelu_backward, layer_norm, layer_norm_backward, multiply,
    },
    layers::{linear, linear_backward},
};
use std::ops::Range;

/// Sizes of the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Dimensions of an item vector; a multiple of `heads`.
    pub width: usize,
    pub heads: usize,
    pub blocks: usize,
    /// Most events of a sequence.
    pub positions: usize,
    /// Number of kinds of events; 0: the model reads neither kinds nor the time between events.
    pub kinds: usize,
}

/// Width of the feed-forward layers, as a multiple of the width of an item vector.
pub(crate) const FFN_FACTOR: usize = 4;

/// Ranges of the weights of one block. A range contains gain and bias, or matrix and bias, in this order.
#[derive(Debug, Clone)]
struct BlockLayout {
    norm: Range<usize>,
    qkv: Range<usize>,
    attended: Range<usize>,
    norm_ffn: Range<usize>,
    ffn_in: Range<usize>,
    ffn_out: Range<usize>,
}

/// Ranges of the weights in the flat vector of all weights except the item table.
#[derive(Debug, Clone)]
pub(crate) struct WeightLayout {
    shape: Shape,
    positions: Range<usize>,
    blocks: Vec<BlockLayout>,
    norm: Range<usize>,
    /// `[kinds × width]`.
    kinds: Range<usize>,
    /// `[width]`, multiplied by the gap before a token.
    gap: Range<usize>,
}

impl WeightLayout {
    pub(crate) fn new(shape: Shape) -> Self {
        let d = shape.width;
        let mut end = 0;
        let mut take = |count: usize| {
            end += count;
            end - count..end
        };
        let positions = take(shape.positions * d);
        let blocks = (0..shape.blocks).map(|_| BlockLayout {
            norm: take(2 * d),
            qkv: take(d * 3 * d + 3 * d),
            attended: take(d * d + d),
            norm_ffn: take(2 * d),
            ffn_in: take(d * FFN_FACTOR * d + FFN_FACTOR * d),
            ffn_out: take(FFN_FACTOR * d * d + d),
        });
        let blocks = blocks.collect();
        let norm = take(2 * d);
        let (kinds, gap) = (take(shape.kinds * d), take(d.min(shape.kinds * d)));
        Self { shape, positions, blocks, norm, kinds, gap }
    }

    pub(crate) fn weight_count(&self) -> usize {
        self.gap.end
    }

    /// Returns initial weights: gains 1, biases 0, all others from `normal` with standard deviation 0.02.
    pub(crate) fn starting_weights(&self, mut normal: impl FnMut() -> f32) -> Vec<f32> {
        let d = self.shape.width;
        let mut weights = vec![0.0; self.weight_count()];
        weights[self.positions.clone()].fill_with(|| 0.02 * normal());
        for block in &self.blocks {
            for (range, inputs, outputs) in [
                (&block.qkv, d, 3 * d),
                (&block.attended, d, d),
                (&block.ffn_in, d, FFN_FACTOR * d),
                (&block.ffn_out, FFN_FACTOR * d, d),
            ] {
                weights[range.start..range.start + inputs * outputs].fill_with(|| 0.02 * normal());
            }
            weights[block.norm.start..block.norm.start + d].fill(1.0);
            weights[block.norm_ffn.start..block.norm_ffn.start + d].fill(1.0);
        }
        weights[self.norm.start..self.norm.start + d].fill(1.0);
        weights[self.kinds.start..self.gap.end].fill_with(|| 0.02 * normal());
        weights
    }
}

/// The weights of one block. A gain is followed by its bias, and a matrix (`[inputs × outputs]`) by its bias.
pub struct BlockWeights<'a> {
    pub norm: &'a [f32],
    /// The concatenated columns of queries, keys and values.
    pub qkv: &'a [f32],
    pub attended: &'a [f32],
    pub norm_ffn: &'a [f32],
    pub ffn_in: &'a [f32],
    pub ffn_out: &'a [f32],
}

/// All weights except the item table, by name.
pub struct NamedWeights<'a> {
    /// `[positions × width]`; the last row is that of the latest event.
    pub positions: &'a [f32],
    /// `[kinds × width]`
    pub kinds: &'a [f32],
    /// `[width]`
    pub gap: &'a [f32],
    pub blocks: Vec<BlockWeights<'a>>,
    pub norm: &'a [f32],
}

impl WeightLayout {
    pub(crate) fn named<'a>(&self, weights: &'a [f32]) -> NamedWeights<'a> {
        let of = |range: &Range<usize>| &weights[range.clone()];
        let block = |layout: &BlockLayout| BlockWeights {
            norm: of(&layout.norm),
            qkv: of(&layout.qkv),
            attended: of(&layout.attended),
            norm_ffn: of(&layout.norm_ffn),
            ffn_in: of(&layout.ffn_in),
            ffn_out: of(&layout.ffn_out),
        };
        NamedWeights {
            positions: of(&self.positions),
            kinds: of(&self.kinds),
            gap: of(&self.gap),
            blocks: self.blocks.iter().map(block).collect(),
            norm: of(&self.norm),
        }
    }
}

/// Concatenated sequences.
#[derive(Debug, Clone, Default)]
pub(crate) struct Packed {
    /// Index of the first token of each sequence, and the end of the last one.
    pub starts: Vec<usize>,
    /// Rows of the item matrix.
    pub items: Vec<u32>,
    /// Position of each token, aligned at the end: the latest token of a sequence has the greatest,
    /// [`Shape::positions`]
    /// - 1.
    pub positions: Vec<u32>,
    /// Below [`Shape::kinds`].
    pub kinds: Vec<u8>,
    pub gaps: Vec<f32>,
}

/// The events of a history as input of the encoder, oldest first.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tokens<'a> {
    pub items: &'a [u32],
    /// Kinds of the events; empty: unknown.
    pub kinds: &'a [u8],
    /// ln(1 + days) since the previous event, 0 for the first; empty: unknown.
    pub gaps: &'a [f32],
}

impl<'a> From<&'a [u32]> for Tokens<'a> {
    fn from(items: &'a [u32]) -> Self {
        Self { items, ..Self::default() }
    }
}

impl<'a> Tokens<'a> {
    /// Returns the latest `count` events.
    pub fn latest(self, count: usize) -> Self {
        let cut = self.items.len().saturating_sub(count);
        let rest = |length: usize| cut.min(length);
        Self {
            items: &self.items[cut..],
            kinds: &self.kinds[rest(self.kinds.len())..],
            gaps: &self.gaps[rest(self.gaps.len())..],
        }
    }
}

impl Packed {
    /// Adds a sequence with `items` as rows of the item matrix; `tokens.items` is ignored.
    pub(crate) fn push(&mut self, items: impl ExactSizeIterator<Item = u32>, tokens: Tokens, shape: Shape) {
        if self.starts.is_empty() {
            self.starts.push(0);
        }
        let length = items.len();
        assert!(length <= shape.positions, "{length} events, {} positions", shape.positions);
        self.positions.extend((shape.positions - length..shape.positions).map(|position| position as u32));
        self.items.extend(items);
        if shape.kinds > 0 {
            let begin = self.kinds.len();
            self.kinds.extend(tokens.kinds.iter().map(|kind| (*kind).min(shape.kinds as u8 - 1)));
            self.gaps.extend_from_slice(tokens.gaps);
            self.kinds.resize(begin + length, 0);
            self.gaps.resize(begin + length, 0.0);
            self.gaps[begin..].iter_mut().take(1).for_each(|gap| *gap = 0.0);
        }
        self.starts.push(self.items.len());
    }

    pub(crate) fn sequences(&self) -> impl Iterator<Item = Range<usize>> {
        self.starts.windows(2).map(|two| two[0]..two[1])
    }

    pub(crate) fn tokens(&self) -> usize {
        self.items.len()
    }
}

/// Dropout masks: factors of 0 or 1 / (1 - rate). Empty for a rate of 0.
#[derive(Debug, Default)]
struct DropoutMasks {
    input: Vec<f32>,
    /// For each block: attention weights, attention output, hidden units, feed-forward output.
    blocks: Vec<[Vec<f32>; 4]>,
}

/// Dropout rates.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dropout {
    pub hidden: f32,
    pub attention: f32,
}

impl Dropout {
    pub const NONE: Self = Self { hidden: 0.0, attention: 0.0 };
}

/// A fast stream of random bits (xorshift64*, Vigna 2016).
#[derive(Debug, Clone)]
pub(crate) struct Bits(pub u64);

impl Bits {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// Returns a mask of `count` factors: 0 with probability `rate`, otherwise 1 / (1 - rate). Empty for a rate of 0.
    fn mask(&mut self, count: usize, rate: f32) -> Vec<f32> {
        if rate == 0.0 {
            return Vec::new();
        }
        let (limit, scale) = ((f64::from(rate) * 65536.0) as u64, 1.0 / (1.0 - rate));
        let mut mask = Vec::with_capacity(count + 3);
        while mask.len() < count {
            let bits = self.next();
            mask.extend((0..4).map(|part| if (bits >> (16 * part)) & 0xffff < limit { 0.0 } else { scale }));
        }
        mask.truncate(count);
        mask
    }
}

/// One block with the inputs that its forward and backward passes share.
#[derive(Clone, Copy)]
struct Block<'a> {
    layout: &'a BlockLayout,
    weights: &'a [f32],
    batch: &'a Packed,
    /// The range of each sequence in the attention weights.
    attention_ranges: &'a [Range<usize>],
    /// Attention weights, attention output, hidden units, feed-forward output.
    masks: &'a [Vec<f32>; 4],
}

/// The output of a layer norm, and the values that its backward pass needs.
#[derive(Debug, Default)]
struct Normed {
    out: Vec<f32>,
    normed: Vec<f32>,
    inverse: Vec<f32>,
}

/// The activations of one block.
#[derive(Debug, Default)]
struct BlockTrace {
    norm: Normed,
    qkv: Vec<f32>,
    weights: Vec<f32>,
    read: Vec<f32>,
    norm_ffn: Normed,
    before_gelu: Vec<f32>,
    hidden: Vec<f32>,
}

/// The activations of a forward pass, which the backward pass needs.
#[derive(Debug, Default)]
pub(crate) struct Trace {
    masks: DropoutMasks,
    blocks: Vec<BlockTrace>,
    norm: Normed,
}

impl Trace {
    /// Returns the encoder's output at every token: `[tokens × width]`.
    pub(crate) fn out(&self) -> &[f32] {
        &self.norm.out
    }
}

/// Returns the range of each sequence in the attention weights, of which there are heads × Σ length².
fn attention_ranges(batch: &Packed, heads: usize) -> Vec<Range<usize>> {
    let mut end = 0;
    let ranges = batch.sequences().map(|tokens| {
        end += heads * tokens.len() * tokens.len();
        end - heads * tokens.len() * tokens.len()..end
    });
    ranges.collect()
}

fn norm_rows(x: &[f32], gain_and_bias: &[f32]) -> Normed {
    let (gain, bias) = gain_and_bias.split_at(gain_and_bias.len() / 2);
    let rows = x.len() / gain.len();
    let mut norm = Normed { out: vec![0.0; x.len()], normed: vec![0.0; x.len()], inverse: vec![0.0; rows] };
    layer_norm(&mut norm.out, &mut norm.normed, &mut norm.inverse, x, gain, bias);
    norm
}

fn norm_rows_backward(dx: &mut [f32], gradient: &mut [f32], dout: &[f32], norm: &Normed, gain_and_bias: &[f32]) {
    let d = gain_and_bias.len() / 2;
    layer_norm_backward(dx, gradient, dout, &norm.normed, &norm.inverse, &gain_and_bias[..d], &mut vec![0.0; d]);
}

fn drop_out(values: &mut [f32], mask: &[f32]) {
    if !mask.is_empty() {
        multiply(values, mask);
    }
}

impl WeightLayout {
    /// Encodes every prefix of every sequence. `items` is `[rows × width]`; `bits` draws the dropout masks.
    pub(crate) fn forward(
        &self,
        weights: &[f32],
        items: &[f32],
        batch: &Packed,
        dropout: Dropout,
        bits: &mut Bits,
    ) -> Trace {
        let (d, tokens) = (self.shape.width, batch.tokens());
        let mut x = vec![0.0; tokens * d];
        let table = &weights[self.positions.clone()];
        for (token, x) in x.chunks_exact_mut(d).enumerate() {
            x.copy_from_slice(&items[batch.items[token] as usize * d..][..d]);
            add(x, &table[batch.positions[token] as usize * d..][..d]);
        }
        if self.shape.kinds > 0 {
            let (kinds, gap) = (&weights[self.kinds.clone()], &weights[self.gap.clone()]);
            for (token, x) in x.chunks_exact_mut(d).enumerate() {
                add(x, &kinds[usize::from(batch.kinds[token]) * d..][..d]);
                add_scaled(x, batch.gaps[token], gap);
            }
        }
        let mut trace = Trace::default();
        trace.masks.input = bits.mask(tokens * d, dropout.hidden);
        drop_out(&mut x, &trace.masks.input);
        let attention_ranges = attention_ranges(batch, self.shape.heads);
        let weight_count = attention_ranges.last().map_or(0, |range| range.end);
        for layout in &self.blocks {
            let masks = [
                bits.mask(weight_count, dropout.attention),
                bits.mask(tokens * d, dropout.hidden),
                bits.mask(tokens * FFN_FACTOR * d, dropout.hidden),
                bits.mask(tokens * d, dropout.hidden),
            ];
            let block = Block { layout, weights, batch, attention_ranges: &attention_ranges, masks: &masks };
            trace.blocks.push(self.block_forward(&block, &mut x));
            trace.masks.blocks.push(masks);
        }
        trace.norm = norm_rows(&x, &weights[self.norm.clone()]);
        trace
    }

    fn block_forward(&self, block: &Block, x: &mut [f32]) -> BlockTrace {
        let Block { layout, weights, batch, attention_ranges, masks } = *block;
        let d = self.shape.width;
        let heads = Heads { width: d, count: self.shape.heads };
        let norm = norm_rows(x, &weights[layout.norm.clone()]);
        let qkv = linear(&norm.out, d, &weights[layout.qkv.clone()]);
        let mut attention = vec![0.0; attention_ranges.last().map_or(0, |range| range.end)];
        let mut read = vec![0.0; x.len()];
        for (tokens, cells) in batch.sequences().zip(attention_ranges) {
            let mask = if masks[0].is_empty() { &[][..] } else { &masks[0][cells.clone()] };
            attend(
                &mut read[tokens.start * d..tokens.end * d],
                &mut attention[cells.clone()],
                &qkv[tokens.start * 3 * d..tokens.end * 3 * d],
                mask,
                heads,
            );
        }
        let mut attended = linear(&read, d, &weights[layout.attended.clone()]);
        drop_out(&mut attended, &masks[1]);
        add(x, &attended);
        let norm_ffn = norm_rows(x, &weights[layout.norm_ffn.clone()]);
        let before_gelu = linear(&norm_ffn.out, d, &weights[layout.ffn_in.clone()]);
        let mut hidden = vec![0.0; before_gelu.len()];
        gelu(&mut hidden, &before_gelu);
        drop_out(&mut hidden, &masks[2]);
        let mut out = linear(&hidden, FFN_FACTOR * d, &weights[layout.ffn_out.clone()]);
        drop_out(&mut out, &masks[3]);
        add(x, &out);
        BlockTrace { norm, qkv, weights: attention, read, norm_ffn, before_gelu, hidden }
    }

    /// The backward pass: adds to `gradient` (the shape of `weights`) and `ditems` (the shape of `items`) the gradients
    /// that follow from the output's gradient `dout` `[tokens × width]`.
    pub(crate) fn backward(
        &self,
        gradient: &mut [f32],
        ditems: &mut [f32],
        dout: &[f32],
        weights: &[f32],
        batch: &Packed,
        trace: &Trace,
    ) {
        let d = self.shape.width;
        let mut dx = vec![0.0; dout.len()];
        norm_rows_backward(&mut dx, &mut gradient[self.norm.clone()], dout, &trace.norm, &weights[self.norm.clone()]);
        let attention_ranges = attention_ranges(batch, self.shape.heads);
        for (index, layout) in self.blocks.iter().enumerate().rev() {
            let masks = &trace.masks.blocks[index];
            let block = Block { layout, weights, batch, attention_ranges: &attention_ranges, masks };
            self.block_backward(&block, &trace.blocks[index], gradient, &mut dx);
        }
        drop_out(&mut dx, &trace.masks.input);
        let table = &mut gradient[self.positions.clone()];
        for (token, dx) in dx.chunks_exact(d).enumerate() {
            add(&mut ditems[batch.items[token] as usize * d..][..d], dx);
            add(&mut table[batch.positions[token] as usize * d..][..d], dx);
        }
        if self.shape.kinds > 0 {
            for (token, dx) in dx.chunks_exact(d).enumerate() {
                let kind = self.kinds.start + usize::from(batch.kinds[token]) * d;
                add(&mut gradient[kind..kind + d], dx);
                add_scaled(&mut gradient[self.gap.clone()], batch.gaps[token], dx);
            }
        }
    }

    /// Replaces `dx`, the gradient of the block's output, by that of its input, and adds to `gradient`.
    fn block_backward(&self, block: &Block, trace: &BlockTrace, gradient: &mut [f32], dx: &mut [f32]) {
        let Block { layout, weights, batch, attention_ranges, masks } = *block;
        let d = self.shape.width;
        let heads = Heads { width: d, count: self.shape.heads };
        let mut dout = dx.to_vec();
        drop_out(&mut dout, &masks[3]);
        let range = layout.ffn_out.clone();
        let mut dhidden =
            linear_backward(&mut gradient[range.clone()], &dout, &trace.hidden, FFN_FACTOR * d, &weights[range]);
        drop_out(&mut dhidden, &masks[2]);
        gelu_backward(&mut dhidden, &trace.before_gelu);
        let range = layout.ffn_in.clone();
        let dnorm = linear_backward(&mut gradient[range.clone()], &dhidden, &trace.norm_ffn.out, d, &weights[range]);
        let range = layout.norm_ffn.clone();
        norm_rows_backward(dx, &mut gradient[range.clone()], &dnorm, &trace.norm_ffn, &weights[range]);

        let mut dattended = dx.to_vec();
        drop_out(&mut dattended, &masks[1]);
        let range = layout.attended.clone();
        let dread = linear_backward(&mut gradient[range.clone()], &dattended, &trace.read, d, &weights[range]);
        let mut dqkv = vec![0.0; trace.qkv.len()];
        let mut scratch = vec![0.0; self.shape.positions];
        for (tokens, cells) in batch.sequences().zip(attention_ranges) {
            let mask = if masks[0].is_empty() { &[][..] } else { &masks[0][cells.clone()] };
            attend_backward(
                &mut dqkv[tokens.start * 3 * d..tokens.end * 3 * d],
                &dread[tokens.start * d..tokens.end * d],
                &trace.weights[cells.clone()],
                &trace.qkv[tokens.start * 3 * d..tokens.end * 3 * d],
                mask,
                heads,
                &mut scratch,
            );
        }
        let range = layout.qkv.clone();
        let dnorm = linear_backward(&mut gradient[range.clone()], &dqkv, &trace.norm.out, d, &weights[range]);
        let range = layout.norm.clone();
        norm_rows_backward(dx, &mut gradient[range.clone()], &dnorm, &trace.norm, &weights[range]);
    }
}
