/// The components of the candidates' scores, by candidate in the order of retrieval.
#[derive(Debug, Clone, Copy)]
pub struct BaseScores<'a> {
    /// `[candidates × heads]`, probabilities. Empty: the ranking model did not run.
    pub heads: &'a [f32],
    /// By head. Empty: the fused scores order.
    pub weights: &'a [f32],
    /// The fused scores of retrieval.
    pub fused: &'a [f32],
    /// Numbers added to the scores, for candidates that precede others regardless of the model. Empty: all 0.
    pub tiers: &'a [u8],
}

impl BaseScores<'_> {
    /// Computes the scores of the first `count` candidates: the weighted sum over the heads, or else the fused score,
    /// plus the tier. None if there are fewer candidates.
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

/// Computes the weighted sum over heads.
pub fn utility(weights: &[f32], probabilities: &[f32]) -> f32 {
    weights.iter().zip(probabilities).map(|(weight, probability)| weight * probability).sum()
}
