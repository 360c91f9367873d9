//! Cross-entropy of target items under a softmax over all items, or over a sample of them.
use super::kernels::{Into, View, add, exponentials, matmul, scale};

/// Rows of logits computed at a time, so that they stay in the cache between the matrix products that produce and
/// consume them.
const ROWS: usize = 128;

/// The targets of several predictions: rows of the item matrix with shares. The sum of the shares weights a prediction.
#[derive(Debug, Clone)]
pub(crate) struct Targets {
    /// Index of the first target of each prediction, and the end of the last one's.
    starts: Vec<usize>,
    items: Vec<(u32, f32)>,
}

impl Default for Targets {
    fn default() -> Self {
        Self { starts: vec![0], items: Vec::new() }
    }
}

impl Targets {
    /// Adds a prediction.
    pub(crate) fn push(&mut self, items: impl Iterator<Item = (u32, f32)>) {
        self.items.extend(items);
        self.starts.push(self.items.len());
    }

    /// Returns the number of predictions.
    pub(crate) fn count(&self) -> usize {
        self.starts.len() - 1
    }

    pub(crate) fn of(&self, prediction: usize) -> &[(u32, f32)] {
        &self.items[self.starts[prediction]..self.starts[prediction + 1]]
    }

    /// Returns the sum of all shares.
    pub(crate) fn weight(&self) -> f32 {
        self.items.iter().map(|(_, share)| share).sum()
    }
}

/// Input of a softmax: `hidden` `[predictions × width]`, `items` `[items × width]`.
pub(crate) struct Softmax<'a> {
    pub hidden: &'a [f32],
    pub items: &'a [f32],
    pub width: usize,
    /// Multiplies every logit.
    pub scale: f32,
    /// The targets of each row of `hidden`.
    pub targets: &'a Targets,
    /// -ln of each item's probability of being in the sample; added to the logits of all items but the target (the
    /// logQ correction: Bengio & Senécal 2008, Yi et al. 2019). Empty for the full softmax.
    pub log_q_correction: &'a [f32],
}

impl Softmax<'_> {
    /// Returns the sum over the targets of share × -ln p(target), times `weight`, and adds the gradients to `dhidden`
    /// and `ditems`. Computes the logits of [`ROWS`] predictions at a time.
    pub(crate) fn loss_and_gradient(&self, dhidden: &mut [f32], ditems: &mut [f32], weight: f32) -> f64 {
        let d = self.width;
        let item_count = self.items.len() / d;
        let items = View::new(self.items, item_count, d);
        let count = self.targets.count();
        let mut logits = vec![0.0f32; ROWS.min(count) * item_count];
        let (mut loss, mut scratch) = (0.0, Vec::new());
        for begin in (0..count).step_by(ROWS) {
            let size = ROWS.min(count - begin);
            let rows = View::new(&self.hidden[begin * d..][..size * d], size, d);
            let logits = &mut logits[..size * item_count];
            matmul(logits, Into::Replace, rows, items.transposed());
            for (row, logits) in logits.chunks_exact_mut(item_count).enumerate() {
                loss += self.row(logits, self.targets.of(begin + row), weight, &mut scratch);
            }
            let slopes = View::new(logits, size, item_count);
            matmul(&mut dhidden[begin * d..][..size * d], Into::Add, slopes, items);
            matmul(ditems, Into::Add, slopes.transposed(), rows);
        }
        loss * f64::from(weight)
    }

    /// Returns the sum over the targets of share × -ln p(target).
    pub(crate) fn loss(&self) -> f64 {
        let (d, count) = (self.width, self.targets.count());
        let item_count = self.items.len() / d;
        let (mut logits, mut scratch) = (vec![0.0f32; count * item_count], Vec::new());
        let items = View::new(self.items, item_count, d);
        matmul(&mut logits, Into::Replace, View::new(self.hidden, count, d), items.transposed());
        let rows = logits.chunks_exact_mut(item_count).enumerate();
        rows.map(|(row, logits)| self.row(logits, self.targets.of(row), 1.0, &mut scratch)).sum()
    }

    /// Replaces a row of dot products by the loss's gradient with respect to them, and returns the sum of
    /// share × -ln p(target). `target_logits` is scratch memory.
    fn row(&self, logits: &mut [f32], targets: &[(u32, f32)], weight: f32, target_logits: &mut Vec<f32>) -> f64 {
        if self.scale != 1.0 {
            scale(logits, self.scale);
        }
        target_logits.clear();
        target_logits.extend(targets.iter().map(|(target, _)| logits[*target as usize]));
        if !self.log_q_correction.is_empty() {
            add(logits, self.log_q_correction);
            targets.iter().zip(target_logits.iter()).for_each(|((target, _), logit)| logits[*target as usize] = *logit);
        }
        let (peak, sum) = exponentials(logits);
        let whole: f32 = targets.iter().map(|(_, share)| share).sum();
        scale(logits, self.scale * weight * whole / sum);
        let mut loss = f64::from(whole * (sum.ln() + peak));
        for ((target, share), logit) in targets.iter().zip(target_logits.iter()) {
            logits[*target as usize] -= self.scale * weight * share;
            loss -= f64::from(share * logit);
        }
        loss
    }
}
