//! Arranges an answer: from scores to slots. The rules apply in this order:
//!
//! 1. **Boosts** multiply the scores of matching candidates.
//! 2. **Order**: best score first, or by the requested field and then by score. Ties keep the order of retrieval.
//! 3. **Diversity** separates similar items. Skipped if a field orders.
//! 4. **Repeats**: the items that the user bought before get their share of the list. Skipped if a field orders.
//! 5. **Interleaving** merges two rankings by team draft.
//! 6. **Pins** leave the organic list and take their slots, always.
//! 7. **Exploration** draws the order of the organic list, see [`Exploration`]. Skipped if a field orders or if two
//!    rankings are interleaved.
//!
//! [`PolicyInput`] contains everything that the rules read, so that a record of an answer replays to the same bits.
use super::{
    CandidateIndex, DraftPick, Exploration, OrganicList, PinSlot, Team, apply_boosts, diversify, mix_repeats,
    place_pins, team_draft,
};
use std::cmp::Ordering;

/// Number of candidates among which diversity selects the next one.
const DIVERSITY_LOOK_AHEAD: usize = 50;

/// The input of the policy.
#[derive(Debug, Clone, Copy)]
pub struct PolicyInput<'a> {
    /// One ranking, or two to interleave.
    pub rankings: &'a [Ranking<'a>],
    pub boost_factors: &'a [f32],
    /// By candidate: bit b is set if boost b matches. Empty without boosts.
    pub boost_masks: &'a [u64],
    /// By candidate: its rank by the requested field; equal fields have equal ranks. Empty: best score first.
    pub field_ranks: &'a [u32],
    /// By candidate: whether the user bought it before. Empty if no ranking has a [`Ranking::repeat_fraction`].
    pub repeats: &'a [bool],
    pub pins: &'a [PinSlot],
    pub exploration: Option<&'a Exploration>,
    /// Seeds all random draws.
    pub seed: u64,
}

/// The scores of one ranking, and what reorders them.
#[derive(Debug, Clone, Copy)]
pub struct Ranking<'a> {
    /// By candidate, finite. A ranking of fewer candidates has the first ones.
    pub scores: &'a [f32],
    /// 0 to 1.
    pub diversity: f32,
    /// Share of the items that the user bought before, 0 to 1. None: as the scores have it.
    pub repeat_fraction: Option<f32>,
}

/// One slot of an arranged answer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Placed {
    pub candidate: CandidateIndex,
    /// The score after boosts, from the ranking that picked it. 0 for a pinned item that is not a candidate.
    pub score: f32,
    pub is_pinned: bool,
    /// The probability of this candidate in this slot, given the candidates (and teams) before it. 1 if nothing is
    /// random.
    pub conditional: f64,
    /// The team in an interleaved answer; none for pins.
    pub team: Option<Team>,
}

/// An arranged answer.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Arranged {
    pub placed: Vec<Placed>,
    /// Indices of the pins that were not placed.
    pub dropped_pins: Vec<usize>,
    /// Whether this answer explores.
    pub explored: bool,
    /// The organic list; empty without exploration.
    pub organic: Vec<OrganicSlot>,
    /// The two interleaved orders; empty without interleaving.
    pub orders: Vec<Vec<u32>>,
}

/// One slot of the organic list.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OrganicSlot {
    pub candidate: CandidateIndex,
    pub score: f32,
    /// From 1.
    pub slot: usize,
}

/// Arranges an answer. `vector_of` returns a candidate's vector of length 1; it is called only with diversity.
pub fn arrange<'v>(input: &PolicyInput, vector_of: impl Fn(CandidateIndex) -> &'v [f32]) -> Arranged {
    let ordered: Vec<Vec<(CandidateIndex, f32)>> =
        input.rankings.iter().map(|ranking| ordered(input, ranking, &vector_of)).collect();
    let list = match &ordered[..] {
        [] => Vec::new(),
        [only] => only.iter().map(|(candidate, score)| Listed::certain(*candidate, *score)).collect(),
        [a, b, ..] => draft(a, b, input.seed),
    };
    let candidates: Vec<CandidateIndex> = list.iter().map(|listed| listed.candidate).collect();
    let placement = place_pins(&candidates, input.pins);
    let slots: Vec<usize> =
        placement.order.iter().enumerate().filter(|(_, (_, pinned))| !pinned).map(|(at, _)| at + 1).collect();
    let pinned: Vec<CandidateIndex> =
        placement.order.iter().filter(|(_, pinned)| *pinned).map(|(candidate, _)| *candidate).collect();
    let (pinned_list, organic): (Vec<Listed>, Vec<Listed>) =
        list.into_iter().partition(|listed| pinned.contains(&listed.candidate));
    let fill = |listed: Vec<Listed>| {
        let mut shown = listed.into_iter();
        let slot = |&(candidate, is_pinned): &(CandidateIndex, bool)| match is_pinned {
            true => {
                let score =
                    pinned_list.iter().find(|listed| listed.candidate == candidate).map_or(0.0, |listed| listed.score);
                Some(Placed { candidate, score, is_pinned, conditional: 1.0, team: None })
            }
            false => shown.next().map(Listed::placed),
        };
        placement.order.iter().filter_map(slot).collect()
    };
    let dropped_pins = placement.dropped.clone();
    let candidates_of = |list: &Vec<(CandidateIndex, f32)>| list.iter().map(|(candidate, _)| candidate.0).collect();
    let orders = if ordered.len() > 1 { ordered.iter().map(candidates_of).collect() } else { Vec::new() };
    let explores = input.field_ranks.is_empty() && ordered.len() == 1;
    let Some(policy) = input.exploration.filter(|_| explores) else {
        return Arranged { placed: fill(organic), dropped_pins, explored: false, organic: Vec::new(), orders };
    };
    let scores: Vec<f32> = organic.iter().map(|listed| listed.score).collect();
    let drawn = policy.draw(OrganicList { scores: &scores, slots: &slots }, input.seed);
    let shown = drawn.order.iter().zip(&drawn.conditionals);
    let shown = shown.map(|(index, conditional)| Listed { conditional: *conditional, ..organic[*index] }).collect();
    let organic_slot = |(listed, slot): (&Listed, &usize)| OrganicSlot {
        candidate: listed.candidate,
        score: listed.score,
        slot: *slot,
    };
    Arranged {
        placed: fill(shown),
        dropped_pins,
        explored: drawn.explored,
        organic: organic.iter().zip(&slots).map(organic_slot).collect(),
        orders,
    }
}

/// One entry of the list before pins.
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

/// Applies rules 1 to 4.
fn ordered<'v>(
    input: &PolicyInput,
    ranking: &Ranking,
    vector_of: &impl Fn(CandidateIndex) -> &'v [f32],
) -> Vec<(CandidateIndex, f32)> {
    let scores = ranking.scores.iter().enumerate();
    let mut scored: Vec<(CandidateIndex, f32)> =
        scores.map(|(candidate, score)| (CandidateIndex(candidate as u32), *score)).collect();
    let matches = |candidate: CandidateIndex, boost: usize| {
        input.boost_masks.get(candidate.index()).is_some_and(|mask| mask >> boost & 1 == 1)
    };
    apply_boosts(&mut scored, input.boost_factors, matches);
    let by_field = |a: CandidateIndex, b: CandidateIndex| match (
        input.field_ranks.get(a.index()),
        input.field_ranks.get(b.index()),
    ) {
        (Some(a), Some(b)) => a.cmp(b),
        _ => Ordering::Equal,
    };
    scored.sort_unstable_by(|a, b| by_field(a.0, b.0).then(b.1.total_cmp(&a.1)).then(a.0.cmp(&b.0)));
    if !input.field_ranks.is_empty() {
        return scored;
    }
    if ranking.diversity > 0.0 {
        scored = diversify(&scored, ranking.diversity, DIVERSITY_LOOK_AHEAD, vector_of);
    }
    match ranking.repeat_fraction {
        Some(fraction) => mix_repeats(&scored, input.repeats, fraction),
        None => scored,
    }
}

/// Applies rule 5. Each pick has the score of its own team.
fn draft(a: &[(CandidateIndex, f32)], b: &[(CandidateIndex, f32)], seed: u64) -> Vec<Listed> {
    let candidates =
        |list: &[(CandidateIndex, f32)]| list.iter().map(|(candidate, _)| *candidate).collect::<Vec<CandidateIndex>>();
    let by_candidate = |list: &[(CandidateIndex, f32)]| {
        let mut list = list.to_vec();
        list.sort_unstable_by_key(|(candidate, _)| *candidate);
        list
    };
    let sorted = [by_candidate(a), by_candidate(b)];
    let picks = team_draft(&candidates(a), &candidates(b), seed);
    let listed = |pick: DraftPick| {
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

    fn input<'a>(rankings: &'a [Ranking<'a>]) -> PolicyInput<'a> {
        PolicyInput {
            rankings,
            boost_factors: &[],
            boost_masks: &[],
            field_ranks: &[],
            repeats: &[],
            pins: &[],
            exploration: None,
            seed: 1,
        }
    }

    fn order(arranged: &Arranged) -> Vec<u32> {
        arranged.placed.iter().map(|placed| placed.candidate.0).collect()
    }

    #[test]
    fn boosts_apply_before_diversity_and_pins_after_both() {
        let ranking = [Ranking { scores: &[0.9, 0.8, 0.7, 0.1], diversity: 0.0, repeat_fraction: None }];
        let plain = input(&ranking);
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
    fn a_field_orders_before_the_score_and_disables_diversity_and_exploration() {
        let ranking = [Ranking { scores: &[0.9, 0.8, 0.7, 0.1], diversity: 1.0, repeat_fraction: None }];
        let exploration = Exploration { temperature: 9.0, first_slot: 1, top: 4, share: 1.0, ..Exploration::default() };
        let by_field = PolicyInput { field_ranks: &[2, 0, 0, 1], exploration: Some(&exploration), ..input(&ranking) };
        for seed in 0..20 {
            let arranged = arrange(&PolicyInput { seed, ..by_field }, vector_of);
            assert_eq!(order(&arranged), [1, 2, 3, 0]);
            assert!(!arranged.explored && arranged.placed.iter().all(|placed| placed.conditional == 1.0));
        }
    }

    #[test]
    fn each_pick_of_a_draft_has_the_score_of_its_team() {
        let rankings = [
            Ranking { scores: &[0.9, 0.5, 0.1], diversity: 0.0, repeat_fraction: None },
            Ranking { scores: &[1.0, 2.0, 3.0], diversity: 0.0, repeat_fraction: None },
        ];
        for seed in 0..20 {
            let arranged = arrange(&PolicyInput { seed, ..input(&rankings) }, vector_of);
            for placed in &arranged.placed {
                let team = usize::from(placed.team == Some(Team::B));
                assert_eq!(placed.score, rankings[team].scores[placed.candidate.index()]);
            }
            assert_eq!(arranged.placed[0].conditional, 0.5);
        }
    }

    proptest! {
        #[test]
        fn each_candidate_appears_once_and_pins_have_their_slots_for_every_seed(
            scores in prop::collection::vec(-10f32..10.0, 0..30), second in any::<bool>(), diversity in 0f32..1.0,
            boosts in prop::collection::vec((0.1f32..5.0, any::<u64>()), 0..3),
            pins in prop::collection::vec((prop::option::of(0u32..40), 1usize..35), 0..6),
            temperature in 0f64..3.0, first_slot in 1usize..6, slots in prop::collection::btree_set(1usize..20, 0..3),
            seeds in prop::collection::vec(any::<u64>(), 3),
        ) {
            let rankings = [Ranking { scores: &scores, diversity, repeat_fraction: None }, Ranking { scores: &scores[..scores.len() / 2], diversity: 0.0, repeat_fraction: None }];
            let factors: Vec<f32> = boosts.iter().map(|boost| boost.0).collect();
            let masks: Vec<u64> = (0..scores.len())
                .map(|at| boosts.iter().enumerate().map(|(b, boost)| (boost.1 >> (at % 32) & 1) << b).sum()).collect();
            let pins: Vec<PinSlot> = pins.into_iter().map(|(candidate, rank)| PinSlot { candidate: candidate.map(CandidateIndex), rank }).collect();
            let exploration = Exploration {
                temperature, first_slot, top: 10, epsilon_slots: slots.into_iter().collect(), epsilon: 0.5, epsilon_candidates: 5, share: 0.8,
            };
            let base = PolicyInput {
                rankings: &rankings[..1 + usize::from(second)], boost_factors: &factors, boost_masks: &masks, field_ranks: &[],
                pins: &pins, exploration: Some(&exploration), repeats: &[], seed: 0,
            };
            let all = |seed| arrange(&PolicyInput { seed, ..base }, vector_of);
            let first = all(seeds[0]);
            for seed in seeds {
                let arranged = all(seed);
                prop_assert_eq!(&arranged, &all(seed), "the same seed produces the same answer");
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
                prop_assert!(arranged.placed.iter().all(|placed| placed.conditional > 0.0 && placed.score.is_finite()));
            }
        }
    }
}
