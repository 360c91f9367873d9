//! Team-draft interleaving of two rankings (Radlinski, Kurup and Joachims 2008).
use super::CandidateIndex;
use super::Random;
use ahash::AHashSet;

/// Whose pick a place of an interleaved answer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Team {
    A,
    B,
}

/// One place of an interleaved list.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Drafted {
    pub candidate: CandidateIndex,
    pub team: Team,
    /// Of this candidate here, given the candidates and teams before it.
    pub conditional: f64,
}

/// Two rankings in one list, each candidate once. In each round a coin says who picks first; either team picks its best candidate that is
/// left, and one whose ranking is used up leaves its pick to the other.
pub fn team_draft(a: &[CandidateIndex], b: &[CandidateIndex], seed: u64) -> Vec<Drafted> {
    let mut random = Random::new(seed);
    let mut taken = AHashSet::with_capacity(a.len() + b.len());
    let (mut next_a, mut next_b) = (0, 0);
    let mut drafted = Vec::with_capacity(a.len().max(b.len()));
    // Set in the second half of a round: whose turn it is.
    let mut due: Option<Team> = None;
    loop {
        while a.get(next_a).is_some_and(|candidate| taken.contains(candidate)) {
            next_a += 1;
        }
        while b.get(next_b).is_some_and(|candidate| taken.contains(candidate)) {
            next_b += 1;
        }
        let toss = due.is_none();
        let turn = due.take().unwrap_or_else(|| if random.unit() < 0.5 { Team::A } else { Team::B });
        let (candidate, team) = match (turn, a.get(next_a), b.get(next_b)) {
            (_, None, None) => return drafted,
            (Team::A, Some(candidate), _) | (Team::B, Some(candidate), None) => (*candidate, Team::A),
            (Team::B, _, Some(candidate)) | (Team::A, None, Some(candidate)) => (*candidate, Team::B),
        };
        let either = matches!((a.get(next_a), b.get(next_b)), (Some(a), Some(b)) if a != b);
        drafted.push(Drafted { candidate, team, conditional: if toss && either { 0.5 } else { 1.0 } });
        taken.insert(candidate);
        if toss {
            due = Some(if turn == Team::A { Team::B } else { Team::A });
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
    fn either_ranking_leads_half_of_the_time() {
        let (a, b) = (candidates(&[1, 2, 3]), candidates(&[2, 1, 3]));
        let leads = (0..2000)
            .filter(|seed| team_draft(&a, &b, Random::new(*seed).bits())[0].candidate == CandidateIndex(1))
            .count();
        assert!((900..1100).contains(&leads), "{leads} of 2000");
    }

    proptest! {
        #[test]
        fn nobody_is_lost_or_doubled_and_teams_are_even(
            a in prop::collection::btree_set(0u32..40, 0..30), b in prop::collection::btree_set(0u32..40, 0..30), seed in any::<u64>(),
        ) {
            let (a, b): (Vec<CandidateIndex>, Vec<CandidateIndex>) = (a.into_iter().map(CandidateIndex).collect(), b.into_iter().rev().map(CandidateIndex).collect());
            let drafted = team_draft(&a, &b, seed);
            let shown: BTreeSet<CandidateIndex> = drafted.iter().map(|place| place.candidate).collect();
            prop_assert_eq!(shown.len(), drafted.len());
            prop_assert_eq!(shown, a.iter().chain(&b).copied().collect::<BTreeSet<CandidateIndex>>());
            // While both have candidates, no team is ahead by more than one pick.
            let (mut ahead, mut both) = (0i32, drafted.len());
            for (place, picked) in drafted.iter().enumerate() {
                let left = |list: &[CandidateIndex]| list.iter().any(|candidate| !drafted[..place].iter().any(|other| other.candidate == *candidate));
                if !left(&a) || !left(&b) {
                    both = place;
                    break;
                }
                ahead += if picked.team == Team::A { 1 } else { -1 };
                prop_assert!(ahead.abs() <= 1);
            }
            prop_assert!(both <= drafted.len());
        }
    }
}
