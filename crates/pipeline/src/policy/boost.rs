use super::CandidateIndex;

/// Multiplies the score of each candidate by the factors of all matching boosts, and sorts best first; equal scores
/// keep their order. A negative score is divided, so that a factor above 1 always raises it. Factors that are not
/// finite and positive have no effect. Finite scores stay finite. `matches` receives a candidate and an index in
/// `factors`.
pub fn apply_boosts(
    scored: &mut [(CandidateIndex, f32)],
    factors: &[f32],
    matches: impl Fn(CandidateIndex, usize) -> bool,
) {
    if factors.is_empty() {
        return;
    }
    for (candidate, score) in scored.iter_mut() {
        let usable = |(_, factor): &(usize, f32)| factor.is_finite() && *factor > 0.0;
        for (boost, factor) in factors.iter().copied().enumerate().filter(usable) {
            if matches(*candidate, boost) {
                let boosted = if *score >= 0.0 { *score * factor } else { *score / factor };
                *score = if score.is_finite() { boosted.clamp(f32::MIN, f32::MAX) } else { *score };
            }
        }
    }
    scored.sort_by(|a, b| b.1.total_cmp(&a.1));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The first boost matches candidates 0 and 2, the second candidate 2.
    fn matches(candidate: CandidateIndex, boost: usize) -> bool {
        candidate.0 == 2 || (candidate.0 == 0 && boost == 0)
    }

    #[test]
    fn a_boost_raises_matching_candidates_and_boosts_multiply() {
        let mut scored = vec![(CandidateIndex(1), 1.0), (CandidateIndex(0), 0.4), (CandidateIndex(2), 0.3)];
        apply_boosts(&mut scored, &[2.0, 2.0], matches);
        assert_eq!(scored, [(CandidateIndex(2), 1.2), (CandidateIndex(1), 1.0), (CandidateIndex(0), 0.8)]);
    }

    #[test]
    fn a_factor_above_one_raises_a_negative_score() {
        let mut scored = vec![(CandidateIndex(1), -1.0), (CandidateIndex(0), -1.5)];
        apply_boosts(&mut scored, &[2.0], matches);
        assert_eq!(scored[0].0, CandidateIndex(0));
    }

    proptest! {
        #[test]
        fn each_candidate_appears_once(scores in prop::collection::vec(-1e30f32..1e30, 3), factor in any::<f32>()) {
            let mut scored: Vec<(CandidateIndex, f32)> = scores.iter().enumerate().map(|(i, &s)| (CandidateIndex(i as u32), s)).collect();
            apply_boosts(&mut scored, &[factor], matches);
            let mut candidates: Vec<u32> = scored.iter().map(|pair| pair.0.0).collect();
            prop_assert!(scored.windows(2).all(|pair| pair[0].1 >= pair[1].1));
            prop_assert!(scored.iter().all(|pair| pair.1.is_finite()));
            candidates.sort_unstable();
            prop_assert_eq!(candidates, vec![0, 1, 2]);
        }
    }
}
