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

/// The parts of a candidate's score, which is `(base + match_bonus) × boost_factor`; a negative sum is divided by the
/// factor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ScoreParts {
    /// The weighted sum over the heads; without weights the fused score of retrieval.
    pub base: f32,
    /// The tier.
    pub match_bonus: f32,
    /// The product of the factors of all matching boosts.
    pub boost_factor: f32,
}

impl ScoreParts {
    /// `boost_mask`: bit b is set if boost b matches.
    pub fn with_boosts(self, factors: &[f32], boost_mask: u64) -> Self {
        let matching = factors.iter().enumerate().filter(|(boost, _)| boost_mask >> boost & 1 == 1);
        Self { boost_factor: matching.map(|(_, factor)| factor).product(), ..self }
    }
}

impl BaseScores<'_> {
    /// Returns the parts of a candidate's score, without boosts. None if the candidate does not exist.
    pub fn parts(&self, candidate: usize) -> Option<ScoreParts> {
        let base = match self.heads.is_empty() || self.weights.is_empty() {
            true => *self.fused.get(candidate)?,
            false => utility(self.weights, self.heads.chunks_exact(self.weights.len()).nth(candidate)?),
        };
        let match_bonus = self.tiers.get(candidate).map_or(0.0, |tier| f32::from(*tier));
        Some(ScoreParts { base, match_bonus, boost_factor: 1.0 })
    }

    /// Computes the relevance of the first `count` candidates: the weighted sum over the heads, or else the fused score.
    /// None if there are fewer candidates.
    pub fn relevance(&self, count: usize) -> Option<Vec<f32>> {
        match self.heads.is_empty() || self.weights.is_empty() {
            true => Some(self.fused.get(..count)?.to_vec()),
            false => {
                let heads = self.heads.get(..count.checked_mul(self.weights.len())?)?;
                Some(heads.chunks_exact(self.weights.len()).map(|heads| utility(self.weights, heads)).collect())
            }
        }
    }

    /// Adds the tiers to scores.
    pub fn with_tiers(&self, mut scores: Vec<f32>) -> Vec<f32> {
        for (score, tier) in scores.iter_mut().zip(self.tiers) {
            *score += f32::from(*tier);
        }
        scores
    }

    /// Computes the scores of the first `count` candidates: the relevance plus the tier. None if there are fewer
    /// candidates.
    pub fn scores(&self, count: usize) -> Option<Vec<f32>> {
        if !self.tiers.is_empty() && self.tiers.len() < count {
            return None;
        }
        self.relevance(count).map(|scores| self.with_tiers(scores))
    }
}

/// Computes the weighted sum over heads.
pub fn utility(weights: &[f32], probabilities: &[f32]) -> f32 {
    weights.iter().zip(probabilities).map(|(weight, probability)| weight * probability).sum()
}
