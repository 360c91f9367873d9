//! Cross-entropy of the next item under a softmax over all items, or over a sample of them.
use super::kernels::{Into, View, add, exponentials, matmul, scale};

/// Rows of logits that are in memory at a time, so that they stay in the cache between the products that make and use them.
const ROWS: usize = 128;

/// What was chosen at each of some moments: rows of the item matrix with shares. A moment counts as much as its shares sum to.
#[derive(Debug, Clone)]
pub(crate) struct Targets {
    /// Where each moment's choices begin, and the end of the last.
    starts: Vec<usize>,
    chosen: Vec<(u32, f32)>,
}

impl Default for Targets {
    fn default() -> Self {
        Self { starts: vec![0], chosen: Vec::new() }
    }
}

impl Targets {
    /// Adds a moment.
    pub(crate) fn push(&mut self, chosen: impl Iterator<Item = (u32, f32)>) {
        self.chosen.extend(chosen);
        self.starts.push(self.chosen.len());
    }

    /// Moments.
    pub(crate) fn count(&self) -> usize {
        self.starts.len() - 1
    }

    pub(crate) fn of(&self, moment: usize) -> &[(u32, f32)] {
        &self.chosen[self.starts[moment]..self.starts[moment + 1]]
    }

    /// Sum of all shares.
    pub(crate) fn weight(&self) -> f32 {
        self.chosen.iter().map(|(_, share)| share).sum()
    }
}

/// Input of a softmax: `hidden` `[targets × width]`, `items` `[items × width]`.
pub(crate) struct Softmax<'a> {
    pub hidden: &'a [f32],
    pub items: &'a [f32],
    pub width: usize,
    /// Multiplies every logit.
    pub scale: f32,
    /// What was chosen, for each row of `hidden`.
    pub targets: &'a Targets,
    /// -ln of the probability with which each item is in the sample; added to the logits of all but the target (the logQ
    /// correction: Bengio & Senécal 2008, Yi et al. 2019). Empty: every item is there.
    pub log_q_correction: &'a [f32],
}

impl Softmax<'_> {
    /// Sum over the targets of share × -ln p(target), times `weight`. Adds the gradients to `dhidden` and `ditems`. The logits
    /// of [`ROWS`] moments exist at a time.
    pub(crate) fn loss_and_gradient(&self, dhidden: &mut [f32], ditems: &mut [f32], weight: f32) -> f64 {
        let d = self.width;
        let item_count = self.items.len() / d;
        let items = View::new(self.items, item_count, d);
        let count = self.targets.count();
        let mut logits = vec![0.0f32; ROWS.min(count) * item_count];
        let (mut loss, mut chosen) = (0.0, Vec::new());
        for begin in (0..count).step_by(ROWS) {
            let size = ROWS.min(count - begin);
            let rows = View::new(&self.hidden[begin * d..][..size * d], size, d);
            let logits = &mut logits[..size * item_count];
            matmul(logits, Into::Replace, rows, items.transposed());
            for (place, logits) in logits.chunks_exact_mut(item_count).enumerate() {
                loss += self.row(logits, self.targets.of(begin + place), weight, &mut chosen);
            }
            let slopes = View::new(logits, size, item_count);
            matmul(&mut dhidden[begin * d..][..size * d], Into::Add, slopes, items);
            matmul(ditems, Into::Add, slopes.transposed(), rows);
        }
        loss * f64::from(weight)
    }

    /// Sum over the targets of share × -ln p(target).
    pub(crate) fn loss(&self) -> f64 {
        let (d, count) = (self.width, self.targets.count());
        let item_count = self.items.len() / d;
        let (mut logits, mut chosen) = (vec![0.0f32; count * item_count], Vec::new());
        let items = View::new(self.items, item_count, d);
        matmul(&mut logits, Into::Replace, View::new(self.hidden, count, d), items.transposed());
        let rows = logits.chunks_exact_mut(item_count).enumerate();
        rows.map(|(moment, logits)| self.row(logits, self.targets.of(moment), 1.0, &mut chosen)).sum()
    }

    /// Turns a row of logits into the gradient with respect to the product; gives the sum of share × -ln p(target). `chosen`
    /// is room for the targets' logits.
    fn row(&self, logits: &mut [f32], targets: &[(u32, f32)], weight: f32, chosen: &mut Vec<f32>) -> f64 {
        if self.scale != 1.0 {
            scale(logits, self.scale);
        }
        chosen.clear();
        chosen.extend(targets.iter().map(|(target, _)| logits[*target as usize]));
        if !self.log_q_correction.is_empty() {
            add(logits, self.log_q_correction);
            targets.iter().zip(chosen.iter()).for_each(|((target, _), logit)| logits[*target as usize] = *logit);
        }
        let (peak, sum) = exponentials(logits);
        let whole: f32 = targets.iter().map(|(_, share)| share).sum();
        scale(logits, self.scale * weight * whole / sum);
        let mut loss = f64::from(whole * (sum.ln() + peak));
        for ((target, share), logit) in targets.iter().zip(chosen.iter()) {
            logits[*target as usize] -= self.scale * weight * share;
            loss -= f64::from(share * logit);
        }
        loss
    }
}
