use super::CandidateIndex;
use lodestone_index::dot;

/// Reorders `scored`, best first, by maximal marginal relevance (Carbonell and Goldstein 1998), which separates similar
/// items. The next candidate is the one with the highest `(1 - strength) * relevance - strength * similarity`.
/// Relevance is the score scaled to 0 to 1 over the list. Similarity is the highest inner product with a placed
/// candidate, at least 0.
///
/// `strength` is 0 (the order stays) to 1. Each step selects among the first `look_ahead` (at least 1) remaining
/// candidates, so a candidate rises by less than `look_ahead` ranks. Scores do not change. Vectors have length 1;
/// vectors of different dimensions have similarity 0.
pub fn diversify<'v>(
    scored: &[(CandidateIndex, f32)],
    strength: f32,
    look_ahead: usize,
    vector_of: impl Fn(CandidateIndex) -> &'v [f32],
) -> Vec<(CandidateIndex, f32)> {
    let strength = if strength.is_nan() { 0.0 } else { strength.clamp(0.0, 1.0) };
    if strength == 0.0 || scored.len() < 3 {
        return scored.to_vec();
    }
    let mut left: Vec<Candidate<'v>> = candidates(scored, vector_of);
    let mut placed: Vec<Candidate<'v>> = Vec::with_capacity(left.len());
    while !left.is_empty() {
        let window = look_ahead.max(1).min(left.len());
        let mut best = (0, f32::NEG_INFINITY);
        for (i, candidate) in left[..window].iter_mut().enumerate() {
            candidate.compare_with(&placed);
            let value = (1.0 - strength) * candidate.relevance - strength * candidate.similarity;
            if value > best.1 {
                best = (i, value);
            }
        }
        placed.push(left.remove(best.0));
    }
    placed.into_iter().map(|candidate| (candidate.candidate, candidate.score)).collect()
}

struct Candidate<'v> {
    candidate: CandidateIndex,
    score: f32,
    relevance: f32,
    vector: &'v [f32],
    /// The highest similarity to the first `compared` placed candidates, so that each pair is compared once.
    similarity: f32,
    compared: usize,
}

impl Candidate<'_> {
    fn compare_with(&mut self, placed: &[Candidate<'_>]) {
        for other in &placed[self.compared..] {
            if other.vector.len() == self.vector.len() {
                let similarity = dot(self.vector, other.vector);
                // `max` ignores a NaN.
                self.similarity = self.similarity.max(similarity);
            }
        }
        self.compared = placed.len();
    }
}

fn candidates<'v>(
    scored: &[(CandidateIndex, f32)],
    vector_of: impl Fn(CandidateIndex) -> &'v [f32],
) -> Vec<Candidate<'v>> {
    let finite = || scored.iter().map(|pair| f64::from(pair.1)).filter(|score| score.is_finite());
    let (lowest, highest) = (finite().fold(f64::INFINITY, f64::min), finite().fold(f64::NEG_INFINITY, f64::max));
    let relevance = |score: f32| match f64::from(score) {
        score if !score.is_finite() => 0.0,
        _ if highest <= lowest => 1.0,
        score => ((score - lowest) / (highest - lowest)) as f32,
    };
    (scored.iter())
        .map(|&(candidate, score)| Candidate {
            candidate,
            score,
            relevance: relevance(score),
            vector: vector_of(candidate),
            similarity: 0.0,
            compared: 0,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const VECTORS: [[f32; 2]; 4] = [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.6, 0.8]];

    fn vector_of(candidate: CandidateIndex) -> &'static [f32] {
        &VECTORS[candidate.index() % 4]
    }

    fn candidates(scored: &[(CandidateIndex, f32)]) -> Vec<u32> {
        scored.iter().map(|pair| pair.0.0).collect()
    }

    #[test]
    fn equal_items_are_separated() {
        let scored =
            [(CandidateIndex(0), 1.0), (CandidateIndex(1), 0.9), (CandidateIndex(2), 0.8), (CandidateIndex(3), 0.1)];
        assert_eq!(candidates(&diversify(&scored, 0.5, 10, vector_of)), [0, 2, 1, 3]);
        assert_eq!(diversify(&scored, 0.0, 10, vector_of), scored);
        assert_eq!(diversify(&scored, 0.9, 1, vector_of), scored, "with no look-ahead nothing moves");
    }

    proptest! {
        #[test]
        fn each_candidate_appears_once_and_rises_by_less_than_the_look_ahead(
            scores in prop::collection::vec(any::<f32>(), 0..40), strength in any::<f32>(), look_ahead in 0usize..50,
        ) {
            let mut scored: Vec<(CandidateIndex, f32)> = scores.iter().enumerate().map(|(i, &s)| (CandidateIndex(i as u32), s)).collect();
            scored.sort_by(|a, b| b.1.total_cmp(&a.1));
            let result = diversify(&scored, strength, look_ahead, vector_of);
            let (mut before, mut after) = (candidates(&scored), candidates(&result));
            for (index, candidate) in after.iter().enumerate() {
                let old = before.iter().position(|other| other == candidate).unwrap();
                prop_assert!(old < index + look_ahead.max(1));
            }
            before.sort_unstable();
            after.sort_unstable();
            prop_assert_eq!(before, after);
        }
    }
}
