//! Cross-entropy of the next item under a softmax over all items, or over a sample of them.
use super::kernels::{Into, View, add, exponentials, matmul, scale};

/// Rows of logits that are in memory at a time, so that they stay in the cache between the products that make and use them.
const ROWS: usize = 128;

/// What a softmax sees: `hidden` `[targets × width]`, `items` `[items × width]`.
pub struct Softmax<'a> {
    pub hidden: &'a [f32],
    pub items: &'a [f32],
    pub width: usize,
    /// Multiplies every logit.
    pub scale: f32,
    /// Row of `items` that was chosen, for each row of `hidden`.
    pub targets: &'a [u32],
    /// -ln of the probability with which each item is in the sample; added to the logits of all but the target (the logQ
    /// correction: Bengio & Senécal 2008, Yi et al. 2019). Empty: every item is there.
    pub log_q_correction: &'a [f32],
}

impl Softmax<'_> {
    /// Sum over the targets of -ln p(target), times `weight`. Adds the gradients to `dhidden` and `ditems`. The logits of
    /// [`ROWS`] targets exist at a time.
    pub fn loss_and_gradient(&self, dhidden: &mut [f32], ditems: &mut [f32], weight: f32) -> f64 {
        let d = self.width;
        let item_count = self.items.len() / d;
        let items = View::new(self.items, item_count, d);
        let mut logits = vec![0.0f32; ROWS.min(self.targets.len()) * item_count];
        let mut loss = 0.0;
        for (block, targets) in self.targets.chunks(ROWS).enumerate() {
            let hidden = &self.hidden[block * ROWS * d..][..targets.len() * d];
            let rows = View::new(hidden, targets.len(), d);
            let logits = &mut logits[..targets.len() * item_count];
            matmul(logits, Into::Replace, rows, items.transposed());
            for (logits, target) in logits.chunks_exact_mut(item_count).zip(targets) {
                loss += self.row(logits, *target as usize, weight);
            }
            let slopes = View::new(logits, targets.len(), item_count);
            matmul(&mut dhidden[block * ROWS * d..][..targets.len() * d], Into::Add, slopes, items);
            matmul(ditems, Into::Add, slopes.transposed(), rows);
        }
        loss * f64::from(weight)
    }

    /// Turns a row of logits into the gradient with respect to the product; gives -ln p(target).
    fn row(&self, logits: &mut [f32], target: usize, weight: f32) -> f64 {
        if self.scale != 1.0 {
            scale(logits, self.scale);
        }
        let chosen = logits[target];
        if !self.log_q_correction.is_empty() {
            add(logits, self.log_q_correction);
            logits[target] = chosen;
        }
        let (peak, sum) = exponentials(logits);
        scale(logits, self.scale * weight / sum);
        logits[target] -= self.scale * weight;
        f64::from(sum.ln() + peak - chosen)
    }
}
