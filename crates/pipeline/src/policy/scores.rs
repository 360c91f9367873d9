/// What candidates' scores are made of, by candidate in retrieval's order.
#[derive(Debug, Clone, Copy)]
pub struct Base<'a> {
    /// `[candidates × heads]`, probabilities. Empty: the ranking model was not run.
    pub heads: &'a [f32],
    /// By head. Empty: the order is that of retrieval.
    pub weights: &'a [f32],
    /// The fused scores of retrieval.
    pub fused: &'a [f32],
    /// What is added, for candidates that come before others whatever the model says. Empty: nothing.
    pub tiers: &'a [u8],
}

impl Base<'_> {
    /// The scores of the first `count` candidates: the weighted sum over the heads, or the fused score of retrieval, and the
    /// tier. None where there are not so many.
    pub fn scores(&self, count: usize) -> Option<Vec<f32>> {
        let mut scores: Vec<f32> = match self.heads.is_empty() || self.weights.is_empty() {
            true => self.fused.get(..count)?.to_vec(),
            false => {
                let heads = self.heads.get(..count.checked_mul(self.weights.len())?)?;
                heads.chunks_exact(self.weights.len()).map(|heads| utility(self.weights, heads)).collect()
            }
        };
        if !self.tiers.is_empty() {
            for (score, tier) in scores.iter_mut().zip(self.tiers.get(..count)?) {
                *score += f32::from(*tier);
            }
        }
        Some(scores)
    }
}

/// The weighted sum over heads.
pub fn utility(weights: &[f32], probabilities: &[f32]) -> f32 {
    weights.iter().zip(probabilities).map(|(weight, probability)| weight * probability).sum()
}
