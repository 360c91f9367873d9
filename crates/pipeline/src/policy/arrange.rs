//! The order of an answer, from scores to places. The rules apply in this order:
//!
//! 1. **Boosts** multiply the scores of what they match.
//! 2. The **order**: best score first, or by the field that was asked for, then by score; equals in the order of retrieval.
//! 3. **Diversity** parts what is alike. Not where a field orders.
//! 4. **Interleaving**: two rankings become one by team draft.
//! 5. **Pins** leave the organic list and get their slots, always.
//! 6. **Exploration** draws the organic list anew; see [`Exploration`]. Not where a field orders, and not where two rankings
//!    are interleaved.
//!
//! Everything that the rules read is in [`PolicyInput`], so that an answer can be arranged once more from its record, to the bit.
use super::CandidateIndex;
use super::{Exploration, Organic, PinSlot, Team, apply_boosts, diversify, place_pins, team_draft};
use std::cmp::Ordering;

/// How far down diversity looks for a candidate that is less alike.
const DIVERSITY_LOOK_AHEAD: usize = 50;

/// What an answer is arranged from. Candidates are named by their places in retrieval's list, from 0, here and in the
/// [`CandidateIndex`]s of this room; higher numbers are pinned items that are no candidates.
#[derive(Debug, Clone, Copy)]
pub struct PolicyInput<'a> {
    /// One ranking, or two that are interleaved.
    pub rankings: &'a [Ranking<'a>],
    pub boost_factors: &'a [f32],
    /// By candidate: bit b is set where boost b matches. Empty without boosts.
    pub boost_masks: &'a [u32],
    /// By candidate: its place by the field that was asked for; equal fields have equal places. Empty: best score first.
    pub field_ranks: &'a [u32],
    pub pins: &'a [PinSlot],
    pub exploration: Option<&'a Exploration>,
    /// Of everything that is drawn.
    pub seed: u64,
}

/// What one ranking says.
#[derive(Debug, Clone, Copy)]
pub struct Ranking<'a> {
    /// By candidate; a ranking of fewer candidates has the first ones. Finite.
    pub scores: &'a [f32],
    /// 0 to 1.
    pub diversity: f32,
}

/// One place of an arranged answer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Placed {
    pub candidate: CandidateIndex,
    /// After boosts, of the ranking whose pick it is; of a pinned item that is no candidate 0.
    pub score: f32,
    pub is_pinned: bool,
    /// The probability that this stands here, given what stands before it (and the teams before it). 1 where nothing is random.
    pub conditional: f64,
    /// Of interleaved answers, but for pins.
    pub team: Option<Team>,
}

#[derive(Debug, Clone, PartialEq, Default)]
pub struct Arranged {
    pub placed: Vec<Placed>,
    /// Which of the pins were not placed, as places in the list of pins.
    pub dropped_pins: Vec<usize>,
    /// Whether this answer was one that explores.
    pub explored: bool,
    /// What exploration started from; empty where nothing explores.
    pub organic: Vec<OrganicPlace>,
    /// The two orders that were interleaved; empty where none were.
    pub orders: Vec<Vec<u32>>,
}

/// One place of the list before exploration.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OrganicPlace {
    pub candidate: CandidateIndex,
    pub score: f32,
    /// From 1.
    pub slot: usize,
}

/// Arranges an answer. `vector_of` gives candidates' vectors of length 1, and is asked only where there is diversity.
pub fn arrange<'v>(given: &PolicyInput, vector_of: impl Fn(CandidateIndex) -> &'v [f32]) -> Arranged {
    let ordered: Vec<Vec<(CandidateIndex, f32)>> =
        given.rankings.iter().map(|ranking| ordered(given, ranking, &vector_of)).collect();
    let list = match &ordered[..] {
        [] => Vec::new(),
        [only] => only.iter().map(|(candidate, score)| Listed::certain(*candidate, *score)).collect(),
        [a, b, ..] => drafted(a, b, given.seed),
    };
    let candidates: Vec<CandidateIndex> = list.iter().map(|listed| listed.candidate).collect();
    let placement = place_pins(&candidates, given.pins);
    let slots: Vec<usize> =
        placement.order.iter().enumerate().filter(|(_, (_, pinned))| !pinned).map(|(at, _)| at + 1).collect();
    let pinned: Vec<CandidateIndex> =
        placement.order.iter().filter(|(_, pinned)| *pinned).map(|(candidate, _)| *candidate).collect();
    let (pinned_list, organic): (Vec<Listed>, Vec<Listed>) =
        list.into_iter().partition(|listed| pinned.contains(&listed.candidate));
    let places = |listed: Vec<Listed>| {
        let mut shown = listed.into_iter();
        let place = |&(candidate, is_pinned): &(CandidateIndex, bool)| match is_pinned {
            true => {
                let score =
                    pinned_list.iter().find(|listed| listed.candidate == candidate).map_or(0.0, |listed| listed.score);
                Some(Placed { candidate, score, is_pinned, conditional: 1.0, team: None })
            }
            false => shown.next().map(Listed::placed),
        };
        placement.order.iter().filter_map(place).collect()
    };
    let dropped_pins = placement.dropped.clone();
    let candidates_of = |list: &Vec<(CandidateIndex, f32)>| list.iter().map(|(candidate, _)| candidate.0).collect();
    let orders = if ordered.len() > 1 { ordered.iter().map(candidates_of).collect() } else { Vec::new() };
    let explores = given.field_ranks.is_empty() && ordered.len() == 1;
    let Some(policy) = given.exploration.filter(|_| explores) else {
        return Arranged { placed: places(organic), dropped_pins, explored: false, organic: Vec::new(), orders };
    };
    let scores: Vec<f32> = organic.iter().map(|listed| listed.score).collect();
    let drawn = policy.draw(Organic { scores: &scores, slots: &slots }, given.seed);
    let shown = drawn.order.iter().zip(&drawn.conditionals);
    let shown = shown.map(|(place, conditional)| Listed { conditional: *conditional, ..organic[*place] }).collect();
    let place = |(listed, slot): (&Listed, &usize)| OrganicPlace {
        candidate: listed.candidate,
        score: listed.score,
        slot: *slot,
    };
    Arranged {
        placed: places(shown),
        dropped_pins,
        explored: drawn.explored,
        organic: organic.iter().zip(&slots).map(place).collect(),
        orders,
    }
}

/// One place of the list before pins.
#[derive(Debug, Clone, Copy)]
struct Listed {
    candidate: CandidateIndex,
    score: f32,
    team: Option<Team>,
    conditional: f64,
}

impl Listed {
    fn certain(candidate: CandidateIndex, score: f32) -> Self {
        Self { candidate, score, team: None, conditional: 1.0 }
    }

    fn placed(self) -> Placed {
        Placed {
            candidate: self.candidate,
            score: self.score,
            is_pinned: false,
            conditional: self.conditional,
            team: self.team,
        }
    }
}

/// Rules 1 to 3.
fn ordered<'v>(
    given: &PolicyInput,
    ranking: &Ranking,
    vector_of: &impl Fn(CandidateIndex) -> &'v [f32],
) -> Vec<(CandidateIndex, f32)> {
    let scores = ranking.scores.iter().enumerate();
    let mut scored: Vec<(CandidateIndex, f32)> =
        scores.map(|(candidate, score)| (CandidateIndex(candidate as u32), *score)).collect();
    let matches = |candidate: CandidateIndex, boost: usize| {
        given.boost_masks.get(candidate.index()).is_some_and(|mask| mask >> boost & 1 == 1)
    };
    apply_boosts(&mut scored, given.boost_factors, matches);
    let by_field = |a: CandidateIndex, b: CandidateIndex| match (
        given.field_ranks.get(a.index()),
        given.field_ranks.get(b.index()),
    ) {
        (Some(a), Some(b)) => a.cmp(b),
        _ => Ordering::Equal,
    };
    scored.sort_unstable_by(|a, b| by_field(a.0, b.0).then(b.1.total_cmp(&a.1)).then(a.0.cmp(&b.0)));
    match ranking.diversity > 0.0 && given.field_ranks.is_empty() {
        true => diversify(&scored, ranking.diversity, DIVERSITY_LOOK_AHEAD, &vector_of),
        false => scored,
    }
}

/// Rule 4. Each pick has the score that its own team gives it.
fn drafted(a: &[(CandidateIndex, f32)], b: &[(CandidateIndex, f32)], seed: u64) -> Vec<Listed> {
    let candidates =
        |list: &[(CandidateIndex, f32)]| list.iter().map(|(candidate, _)| *candidate).collect::<Vec<CandidateIndex>>();
    let by_candidate = |list: &[(CandidateIndex, f32)]| {
        let mut list = list.to_vec();
        list.sort_unstable_by_key(|(candidate, _)| *candidate);
        list
    };
    let sorted = [by_candidate(a), by_candidate(b)];
    let picks = team_draft(&candidates(a), &candidates(b), seed);
    let listed = |pick: super::Drafted| {
        let list = &sorted[usize::from(pick.team == Team::B)];
        let score =
            list.binary_search_by_key(&pick.candidate, |(candidate, _)| *candidate).map_or(0.0, |at| list[at].1);
        Listed { candidate: pick.candidate, score, team: Some(pick.team), conditional: pick.conditional }
    };
    picks.into_iter().map(listed).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const VECTORS: [[f32; 2]; 4] = [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.6, 0.8]];

    fn vector_of(candidate: CandidateIndex) -> &'static [f32] {
        &VECTORS[candidate.index() % 4]
    }

    fn given<'a>(rankings: &'a [Ranking<'a>]) -> PolicyInput<'a> {
        PolicyInput {
            rankings,
            boost_factors: &[],
            boost_masks: &[],
            field_ranks: &[],
            pins: &[],
            exploration: None,
            seed: 1,
        }
    }

    fn order(arranged: &Arranged) -> Vec<u32> {
        arranged.placed.iter().map(|place| place.candidate.0).collect()
    }

    #[test]
    fn a_boost_comes_before_diversity_and_a_pin_after_both() {
        let ranking = [Ranking { scores: &[0.9, 0.8, 0.7, 0.1], diversity: 0.0 }];
        let plain = given(&ranking);
        assert_eq!(order(&arrange(&plain, vector_of)), [0, 1, 2, 3]);
        let boosted = PolicyInput { boost_factors: &[2.0], boost_masks: &[0, 0, 1, 0], ..plain };
        assert_eq!(order(&arrange(&boosted, vector_of)), [2, 0, 1, 3]);
        let diverse = [Ranking { diversity: 0.5, ..ranking[0] }];
        assert_eq!(order(&arrange(&PolicyInput { rankings: &diverse, ..plain }, vector_of)), [0, 2, 1, 3]);
        assert_eq!(order(&arrange(&PolicyInput { rankings: &diverse, ..boosted }, vector_of)), [2, 0, 1, 3]);
        let pins = [
            PinSlot { candidate: Some(CandidateIndex(3)), rank: 2 },
            PinSlot { candidate: Some(CandidateIndex(9)), rank: 1 },
        ];
        let pinned = arrange(&PolicyInput { rankings: &diverse, pins: &pins, ..boosted }, vector_of);
        assert_eq!(order(&pinned), [9, 3, 2, 0, 1]);
        assert_eq!((pinned.placed[0].score, pinned.placed[1].score), (0.0, 0.1));
    }

    #[test]
    fn a_field_orders_before_the_score_and_stops_diversity_and_exploration() {
        let ranking = [Ranking { scores: &[0.9, 0.8, 0.7, 0.1], diversity: 1.0 }];
        let exploration = Exploration { temperature: 9.0, first_slot: 1, top: 4, share: 1.0, ..Exploration::default() };
        let asked = PolicyInput { field_ranks: &[2, 0, 0, 1], exploration: Some(&exploration), ..given(&ranking) };
        for seed in 0..20 {
            let arranged = arrange(&PolicyInput { seed, ..asked }, vector_of);
            assert_eq!(order(&arranged), [1, 2, 3, 0]);
            assert!(!arranged.explored && arranged.placed.iter().all(|place| place.conditional == 1.0));
        }
    }

    #[test]
    fn each_pick_of_a_draft_has_its_own_teams_score() {
        let rankings = [
            Ranking { scores: &[0.9, 0.5, 0.1], diversity: 0.0 },
            Ranking { scores: &[1.0, 2.0, 3.0], diversity: 0.0 },
        ];
        for seed in 0..20 {
            let arranged = arrange(&PolicyInput { seed, ..given(&rankings) }, vector_of);
            for place in &arranged.placed {
                let team = usize::from(place.team == Some(Team::B));
                assert_eq!(place.score, rankings[team].scores[place.candidate.index()]);
            }
            assert_eq!(arranged.placed[0].conditional, 0.5);
        }
    }

    proptest! {
        #[test]
        fn nobody_is_lost_or_doubled_and_pins_keep_their_slots_whatever_is_drawn(
            scores in prop::collection::vec(-10f32..10.0, 0..30), second in any::<bool>(), diversity in 0f32..1.0,
            boosts in prop::collection::vec((0.1f32..5.0, any::<u32>()), 0..3),
            pins in prop::collection::vec((prop::option::of(0u32..40), 1usize..35), 0..6),
            temperature in 0f64..3.0, first_slot in 1usize..6, slots in prop::collection::btree_set(1usize..20, 0..3),
            seeds in prop::collection::vec(any::<u64>(), 3),
        ) {
            let rankings = [Ranking { scores: &scores, diversity }, Ranking { scores: &scores[..scores.len() / 2], diversity: 0.0 }];
            let factors: Vec<f32> = boosts.iter().map(|boost| boost.0).collect();
            let masks: Vec<u32> = (0..scores.len())
                .map(|at| boosts.iter().enumerate().map(|(b, boost)| (boost.1 >> (at % 32) & 1) << b).sum()).collect();
            let pins: Vec<PinSlot> = pins.into_iter().map(|(candidate, rank)| PinSlot { candidate: candidate.map(CandidateIndex), rank }).collect();
            let exploration = Exploration {
                temperature, first_slot, top: 10, epsilon_slots: slots.into_iter().collect(), epsilon: 0.5, epsilon_candidates: 5, share: 0.8,
            };
            let base = PolicyInput {
                rankings: &rankings[..1 + usize::from(second)], boost_factors: &factors, boost_masks: &masks, field_ranks: &[],
                pins: &pins, exploration: Some(&exploration), seed: 0,
            };
            let all = |seed| arrange(&PolicyInput { seed, ..base }, vector_of);
            let first = all(seeds[0]);
            for seed in seeds {
                let arranged = all(seed);
                prop_assert_eq!(&arranged, &all(seed), "the same seed gives the same answer");
                let candidates: BTreeSet<u32> = order(&arranged).into_iter().collect();
                prop_assert_eq!(candidates.len(), arranged.placed.len());
                prop_assert!((0..scores.len() as u32).all(|candidate| candidates.contains(&candidate)));
                for (one, other) in first.placed.iter().zip(&arranged.placed) {
                    prop_assert_eq!(one.is_pinned, other.is_pinned);
                    if one.is_pinned {
                        prop_assert_eq!((one.candidate, one.conditional), (other.candidate, other.conditional));
                        prop_assert_eq!(one.conditional, 1.0);
                    }
                }
                prop_assert!(arranged.placed.iter().all(|place| place.conditional > 0.0 && place.score.is_finite()));
            }
        }
    }
}
