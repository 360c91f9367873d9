//! Team-draft interleaving of two rankings (Radlinski, Kurup and Joachims 2008).
use super::{CandidateIndex, Random};
use ahash::AHashSet;

/// The ranking that picked a slot of an interleaved answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Team {
    A,
    B,
}

/// One slot of an interleaved list.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DraftPick {
    pub candidate: CandidateIndex,
    pub team: Team,
    /// The probability of this candidate in this slot, given the candidates and teams before it.
    pub conditional: f64,
}

/// Merges two rankings into one list that contains each candidate once. In each round a coin flip decides which team
/// picks first. Each team picks its best remaining candidate; a team without one leaves its pick to the other.
pub fn team_draft(a: &[CandidateIndex], b: &[CandidateIndex], seed: u64) -> Vec<DraftPick> {
    let mut random = Random::new(seed);
    let mut taken = AHashSet::with_capacity(a.len() + b.len());
    let (mut next_a, mut next_b) = (0, 0);
    let mut drafted = Vec::with_capacity(a.len().max(b.len()));
    // The team that picks second in the current round; none at the start of a round.
    let mut second: Option<Team> = None;
    loop {
        while a.get(next_a).is_some_and(|candidate| taken.contains(candidate)) {
            next_a += 1;
        }
        while b.get(next_b).is_some_and(|candidate| taken.contains(candidate)) {
            next_b += 1;
        }
        let is_first = second.is_none();
        let turn = second.take().unwrap_or_else(|| if random.unit() < 0.5 { Team::A } else { Team::B });
        let (candidate, team) = match (turn, a.get(next_a), b.get(next_b)) {
            (_, None, None) => return drafted,
            (Team::A, Some(candidate), _) | (Team::B, Some(candidate), None) => (*candidate, Team::A),
            (Team::B, _, Some(candidate)) | (Team::A, None, Some(candidate)) => (*candidate, Team::B),
        };
        let is_random = is_first && matches!((a.get(next_a), b.get(next_b)), (Some(a), Some(b)) if a != b);
        drafted.push(DraftPick { candidate, team, conditional: if is_random { 0.5 } else { 1.0 } });
        taken.insert(candidate);
        if is_first {
            second = Some(if turn == Team::A { Team::B } else { Team::A });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn candidates(numbers: &[u32]) -> Vec<CandidateIndex> {
        numbers.iter().copied().map(CandidateIndex).collect()
    }

    #[test]
    fn each_ranking_picks_first_half_of_the_time() {
        let (a, b) = (candidates(&[1, 2, 3]), candidates(&[2, 1, 3]));
        let leads = (0..2000)
            .filter(|seed| team_draft(&a, &b, Random::new(*seed).bits())[0].candidate == CandidateIndex(1))
            .count();
        assert!((900..1100).contains(&leads), "{leads} of 2000");
    }

    proptest! {
        #[test]
        fn each_candidate_appears_once_and_teams_are_balanced(
            a in prop::collection::btree_set(0u32..40, 0..30), b in prop::collection::btree_set(0u32..40, 0..30), seed in any::<u64>(),
        ) {
            let (a, b): (Vec<CandidateIndex>, Vec<CandidateIndex>) = (a.into_iter().map(CandidateIndex).collect(), b.into_iter().rev().map(CandidateIndex).collect());
            let drafted = team_draft(&a, &b, seed);
            let shown: BTreeSet<CandidateIndex> = drafted.iter().map(|pick| pick.candidate).collect();
            prop_assert_eq!(shown.len(), drafted.len());
            prop_assert_eq!(shown, a.iter().chain(&b).copied().collect::<BTreeSet<CandidateIndex>>());
            // While both have candidates, no team is ahead by more than one pick.
            let (mut ahead, mut both) = (0i32, drafted.len());
            for (index, picked) in drafted.iter().enumerate() {
                let left = |list: &[CandidateIndex]| list.iter().any(|candidate| !drafted[..index].iter().any(|other| other.candidate == *candidate));
                if !left(&a) || !left(&b) {
                    both = index;
                    break;
                }
                ahead += if picked.team == Team::A { 1 } else { -1 };
                prop_assert!(ahead.abs() <= 1);
            }
            prop_assert!(both <= drafted.len());
        }
    }
}
