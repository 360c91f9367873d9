//! A causal pre-norm transformer over packed sequences (SASRec: Kang & McAuley 2018; the norm before each part: Xiong et al.
//! 2020), forward and backward by hand. Sequences lie one after the other, so nothing is computed for padding.
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
    /// Numbers of an item vector; a multiple of `heads`.
    pub width: usize,
    pub heads: usize,
    pub blocks: usize,
    /// Longest sequence.
    pub positions: usize,
    /// Kinds of events that are told apart, and with them the time between events; 0: neither is read.
    pub kinds: usize,
}

/// Hidden units of a feed-forward part for each number of an item vector.
pub(crate) const FFN_FACTOR: usize = 4;

/// Where the weights of one block lie. Gains and biases, and matrices and biases, follow each other.
#[derive(Debug, Clone)]
struct BlockPlaces {
    norm: Range<usize>,
    qkv: Range<usize>,
    attended: Range<usize>,
    norm_ffn: Range<usize>,
    ffn_in: Range<usize>,
    ffn_out: Range<usize>,
}

/// Where each weight lies in the flat vector of all weights but the item table.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    shape: Shape,
    positions: Range<usize>,
    blocks: Vec<BlockPlaces>,
    norm: Range<usize>,
    /// `[kinds × width]`.
    kinds: Range<usize>,
    /// What a token gets for each unit of the time since the event before it.
    gap: Range<usize>,
}

impl Places {
    pub(crate) fn new(shape: Shape) -> Self {
        let d = shape.width;
        let mut end = 0;
        let mut take = |count: usize| {
            end += count;
            end - count..end
        };
        let positions = take(shape.positions * d);
        let blocks = (0..shape.blocks).map(|_| BlockPlaces {
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

    /// Gains 1, biases 0, the rest from `normal` times 0.02.
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

/// The weights of one block. Gains are followed by biases, and matrices (`[inputs × outputs]`) by theirs.
pub struct BlockWeights<'a> {
    pub norm: &'a [f32],
    /// Queries, keys and values beside each other.
    pub qkv: &'a [f32],
    pub attended: &'a [f32],
    pub norm_ffn: &'a [f32],
    pub ffn_in: &'a [f32],
    pub ffn_out: &'a [f32],
}

/// All weights but the item table, by their meaning.
pub struct NamedWeights<'a> {
    /// `[positions × width]`, the latest event's last.
    pub positions: &'a [f32],
    /// `[kinds × width]`
    pub kinds: &'a [f32],
    /// `[width]`
    pub gap: &'a [f32],
    pub blocks: Vec<BlockWeights<'a>>,
    pub norm: &'a [f32],
}

impl Places {
    pub(crate) fn named<'a>(&self, weights: &'a [f32]) -> NamedWeights<'a> {
        let of = |range: &Range<usize>| &weights[range.clone()];
        let block = |places: &BlockPlaces| BlockWeights {
            norm: of(&places.norm),
            qkv: of(&places.qkv),
            attended: of(&places.attended),
            norm_ffn: of(&places.norm_ffn),
            ffn_in: of(&places.ffn_in),
            ffn_out: of(&places.ffn_out),
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

/// Sequences one after the other.
#[derive(Debug, Clone, Default)]
pub(crate) struct Packed {
    /// Where each sequence begins, and the end of the last.
    pub starts: Vec<usize>,
    /// Rows of the item matrix.
    pub items: Vec<u32>,
    /// Place from the end of its sequence, counted so that the latest has the greatest: `[tokens]`, below
    /// [`Shape::positions`].
    pub positions: Vec<u32>,
    /// Below [`Shape::kinds`].
    pub kinds: Vec<u8>,
    pub gaps: Vec<f32>,
}

/// The events of a history that an encoder reads, oldest first.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tokens<'a> {
    pub items: &'a [u32],
    /// Kinds of the events; empty: not known.
    pub kinds: &'a [u8],
    /// ln(1 + days) since the event before, 0 for the first; empty: not known.
    pub gaps: &'a [f32],
}

impl<'a> From<&'a [u32]> for Tokens<'a> {
    fn from(items: &'a [u32]) -> Self {
        Self { items, ..Self::default() }
    }
}

impl<'a> Tokens<'a> {
    /// The latest `count`. The first of them has no event before it.
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
    /// Adds a sequence whose items are rows of the item matrix: `items` in place of `tokens.items`.
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

/// Scales of what dropout keeps: 0 or 1 / (1 - rate). Empty where nothing is dropped.
#[derive(Debug, Default)]
struct Kept {
    input: Vec<f32>,
    /// By block: attention weights, attention's output, hidden units, feed-forward's output.
    blocks: Vec<[Vec<f32>; 4]>,
}

/// Shares of units that are left out of a step.
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

    /// `count` scales: 0 with probability `rate`, else 1 / (1 - rate). Empty for a rate of 0.
    fn kept(&mut self, count: usize, rate: f32) -> Vec<f32> {
        if rate == 0.0 {
            return Vec::new();
        }
        let (limit, scale) = ((f64::from(rate) * 65536.0) as u64, 1.0 / (1.0 - rate));
        let mut kept = Vec::with_capacity(count + 3);
        while kept.len() < count {
            let bits = self.next();
            kept.extend((0..4).map(|part| if (bits >> (16 * part)) & 0xffff < limit { 0.0 } else { scale }));
        }
        kept.truncate(count);
        kept
    }
}

/// A row norm's output, and what its way back needs.
#[derive(Debug, Default)]
struct Normed {
    out: Vec<f32>,
    normed: Vec<f32>,
    inverse: Vec<f32>,
}

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

/// What the way forward leaves for the way back.
#[derive(Debug, Default)]
pub(crate) struct Trace {
    kept: Kept,
    blocks: Vec<BlockTrace>,
    norm: Normed,
}

impl Trace {
    /// The encoder's output at every token: `[tokens × width]`.
    pub(crate) fn out(&self) -> &[f32] {
        &self.norm.out
    }
}

/// Numbers of all attention weights: heads × Σ length².
fn weight_places(batch: &Packed, heads: usize) -> Vec<Range<usize>> {
    let mut end = 0;
    let places = batch.sequences().map(|tokens| {
        end += heads * tokens.len() * tokens.len();
        end - heads * tokens.len() * tokens.len()..end
    });
    places.collect()
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

fn drop_out(values: &mut [f32], kept: &[f32]) {
    if !kept.is_empty() {
        multiply(values, kept);
    }
}

impl Places {
    /// Encodes every prefix of every sequence. `items` `[rows × width]`; `bits` draws what dropout leaves out.
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
        trace.kept.input = bits.kept(tokens * d, dropout.hidden);
        drop_out(&mut x, &trace.kept.input);
        let weight_places = weight_places(batch, self.shape.heads);
        let weight_count = weight_places.last().map_or(0, |range| range.end);
        for places in &self.blocks {
            let kept = [
                bits.kept(weight_count, dropout.attention),
                bits.kept(tokens * d, dropout.hidden),
                bits.kept(tokens * FFN_FACTOR * d, dropout.hidden),
                bits.kept(tokens * d, dropout.hidden),
            ];
            trace.blocks.push(self.block_forward(weights, places, &mut x, batch, &weight_places, &kept));
            trace.kept.blocks.push(kept);
        }
        trace.norm = norm_rows(&x, &weights[self.norm.clone()]);
        trace
    }

    fn block_forward(
        &self,
        weights: &[f32],
        places: &BlockPlaces,
        x: &mut [f32],
        batch: &Packed,
        weight_places: &[Range<usize>],
        kept: &[Vec<f32>; 4],
    ) -> BlockTrace {
        let d = self.shape.width;
        let heads = Heads { width: d, count: self.shape.heads };
        let norm = norm_rows(x, &weights[places.norm.clone()]);
        let qkv = linear(&norm.out, d, &weights[places.qkv.clone()]);
        let mut attention = vec![0.0; weight_places.last().map_or(0, |range| range.end)];
        let mut read = vec![0.0; x.len()];
        for (tokens, cells) in batch.sequences().zip(weight_places) {
            let kept = if kept[0].is_empty() { &[][..] } else { &kept[0][cells.clone()] };
            attend(
                &mut read[tokens.start * d..tokens.end * d],
                &mut attention[cells.clone()],
                &qkv[tokens.start * 3 * d..tokens.end * 3 * d],
                kept,
                heads,
            );
        }
        let mut attended = linear(&read, d, &weights[places.attended.clone()]);
        drop_out(&mut attended, &kept[1]);
        add(x, &attended);
        let norm_ffn = norm_rows(x, &weights[places.norm_ffn.clone()]);
        let before_gelu = linear(&norm_ffn.out, d, &weights[places.ffn_in.clone()]);
        let mut hidden = vec![0.0; before_gelu.len()];
        gelu(&mut hidden, &before_gelu);
        drop_out(&mut hidden, &kept[2]);
        let mut out = linear(&hidden, FFN_FACTOR * d, &weights[places.ffn_out.clone()]);
        drop_out(&mut out, &kept[3]);
        add(x, &out);
        BlockTrace { norm, qkv, weights: attention, read, norm_ffn, before_gelu, hidden }
    }

    /// Adds to `gradient` (as `weights`) and `ditems` (as `items`) what `dout` `[tokens × width]` asks of them.
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
        let weight_places = weight_places(batch, self.shape.heads);
        for (index, places) in self.blocks.iter().enumerate().rev() {
            let (block, kept) = (&trace.blocks[index], &trace.kept.blocks[index]);
            self.block_backward(gradient, weights, places, &mut dx, batch, &weight_places, block, kept);
        }
        drop_out(&mut dx, &trace.kept.input);
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

    #[allow(clippy::too_many_arguments)]
    fn block_backward(
        &self,
        gradient: &mut [f32],
        weights: &[f32],
        places: &BlockPlaces,
        dx: &mut [f32],
        batch: &Packed,
        weight_places: &[Range<usize>],
        block: &BlockTrace,
        kept: &[Vec<f32>; 4],
    ) {
        let d = self.shape.width;
        let heads = Heads { width: d, count: self.shape.heads };
        let mut dout = dx.to_vec();
        drop_out(&mut dout, &kept[3]);
        let range = places.ffn_out.clone();
        let mut dhidden =
            linear_backward(&mut gradient[range.clone()], &dout, &block.hidden, FFN_FACTOR * d, &weights[range]);
        drop_out(&mut dhidden, &kept[2]);
        gelu_backward(&mut dhidden, &block.before_gelu);
        let range = places.ffn_in.clone();
        let dnorm = linear_backward(&mut gradient[range.clone()], &dhidden, &block.norm_ffn.out, d, &weights[range]);
        let range = places.norm_ffn.clone();
        norm_rows_backward(dx, &mut gradient[range.clone()], &dnorm, &block.norm_ffn, &weights[range]);

        let mut dattended = dx.to_vec();
        drop_out(&mut dattended, &kept[1]);
        let range = places.attended.clone();
        let dread = linear_backward(&mut gradient[range.clone()], &dattended, &block.read, d, &weights[range]);
        let mut dqkv = vec![0.0; block.qkv.len()];
        let mut scratch = vec![0.0; self.shape.positions];
        for (tokens, cells) in batch.sequences().zip(weight_places) {
            let kept = if kept[0].is_empty() { &[][..] } else { &kept[0][cells.clone()] };
            attend_backward(
                &mut dqkv[tokens.start * 3 * d..tokens.end * 3 * d],
                &dread[tokens.start * d..tokens.end * d],
                &block.weights[cells.clone()],
                &block.qkv[tokens.start * 3 * d..tokens.end * 3 * d],
                kept,
                heads,
                &mut scratch,
            );
        }
        let range = places.qkv.clone();
        let dnorm = linear_backward(&mut gradient[range.clone()], &dqkv, &block.norm.out, d, &weights[range]);
        let range = places.norm.clone();
        norm_rows_backward(dx, &mut gradient[range.clone()], &dnorm, &block.norm, &weights[range]);
    }
}
