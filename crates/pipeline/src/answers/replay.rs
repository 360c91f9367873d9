//! An answer made once more from its record: the ranking model and every rule, on what they were given then.
use super::{
    columns,
    record::{AnswerRecord, ExplorationRecord, RankingRecord, SlotRecord},
};
use crate::{
    features::FEATURES,
    policy::{
        Arranged, Base, CandidateIndex, Exploration, Marginal, Organic, PinSlot, PolicyInput, Random, Ranking, Team,
        arrange, place_pins, team_draft,
    },
};
use sha2::{Digest, Sha256};

/// Why a record cannot be made into an answer: it is damaged, or something that it rests on is missing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the record of the answer cannot be replayed: {0}")]
pub struct ReplayError(pub String);

/// What a replay needs of a generation.
pub trait Generation {
    /// Probabilities `[rows × heads]` of features `[rows × feature_count]`.
    fn probabilities(&mut self, features: &[f32]) -> Result<Vec<f32>, ReplayError>;
    /// The vector of a row of the bundle in the query's space.
    fn vector(&self, bundle_row: u32) -> Option<&[f32]>;
}

/// An answer made once more.
#[derive(Debug, Clone, PartialEq)]
pub struct Replayed {
    pub arranged: Arranged,
    /// What differs first from what was shown; none: nothing, to the bit.
    pub difference: Option<String>,
}

/// Runs the ranking model on the recorded features, arranges, and compares with what was shown: the probabilities of the
/// heads, every slot of the first page with its score and probability, and the sum over all pages.
pub fn replay(record: &AnswerRecord, generation: &mut dyn Generation) -> Result<Replayed, ReplayError> {
    let features = record.feature_matrix()?;
    let mut difference = None;
    let heads = match record.head_values.is_empty() {
        true => Vec::new(),
        false => generation.probabilities(&features)?,
    };
    if let Some(at) = first_difference(&heads, &record.head_values) {
        let head_count = record.heads.len().max(1);
        let (candidate, head) = (at / head_count, at % head_count);
        difference = Some(format!(
            "the ranking model gives `{}` the {} probability {:?} and gave it {:?}",
            record.items.get(candidate).map_or("", String::as_str),
            record.heads.get(head).map_or("", String::as_str),
            heads.get(at),
            record.head_values.get(at),
        ));
    }
    let arranged = record.arrange(&heads, &record.fused_scores(&features), generation)?;
    let difference = difference.or_else(|| record.compare(&arranged));
    Ok(Replayed { arranged, difference })
}

fn first_difference(new: &[f32], old: &[f32]) -> Option<usize> {
    let equal = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits();
    let at = new.iter().zip(old).position(|pair| !equal(pair)).unwrap_or(new.len().min(old.len()));
    (at < new.len().max(old.len())).then_some(at)
}

/// The seed of everything that an answer draws.
pub fn seed_of(id: &[u8]) -> u64 {
    first_bytes(&Sha256::new().chain_update(b"lodestone answer").chain_update(id).finalize())
}

/// The first 8 bytes of the SHA-256 of a request.
pub fn digest(sent: &[u8]) -> u64 {
    first_bytes(&Sha256::digest(sent))
}

fn first_bytes(digest: &[u8]) -> u64 {
    digest.iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// A sum over all places of a slate: items, scores and probabilities, to the bit.
pub fn slate_sum<'a>(places: impl Iterator<Item = (&'a str, f32, f64)>) -> u64 {
    let mut hash = Sha256::new();
    for (item, score, conditional) in places {
        hash.update((item.len() as u64).to_le_bytes());
        hash.update(item);
        hash.update(score.to_bits().to_le_bytes());
        hash.update(conditional.to_bits().to_le_bytes());
    }
    first_bytes(&hash.finalize())
}

impl From<&Exploration> for ExplorationRecord {
    fn from(policy: &Exploration) -> Self {
        Self {
            temperature: policy.temperature,
            first_slot: policy.first_slot as u32,
            top: policy.top as u32,
            epsilon_slots: policy.epsilon_slots.iter().map(|slot| *slot as u32).collect(),
            epsilon: policy.epsilon,
            epsilon_candidates: policy.epsilon_candidates as u32,
            share: policy.share,
        }
    }
}

impl ExplorationRecord {
    fn policy(&self) -> Exploration {
        Exploration {
            temperature: self.temperature,
            first_slot: self.first_slot as usize,
            top: self.top as usize,
            epsilon_slots: self.epsilon_slots.iter().map(|slot| *slot as usize).collect(),
            epsilon: self.epsilon,
            epsilon_candidates: self.epsilon_candidates as usize,
            share: self.share,
        }
    }
}

impl AnswerRecord {
    pub fn candidate_count(&self) -> usize {
        (self.candidate_count as usize).min(self.items.len())
    }

    pub(super) fn feature_matrix(&self) -> Result<Vec<f32>, ReplayError> {
        columns::decode(&self.features, self.candidate_count(), self.feature_count as usize)
            .ok_or_else(|| ReplayError("its features cannot be read".to_owned()))
    }

    /// Arranges the answer from probabilities of the heads, `[candidates × heads]`.
    fn arrange(&self, heads: &[f32], fused: &[f32], generation: &dyn Generation) -> Result<Arranged, ReplayError> {
        let scores = self.rankings.iter().map(|ranking| self.scores(ranking, heads, fused));
        let scores = scores.collect::<Result<Vec<Vec<f32>>, ReplayError>>()?;
        let of = |(record, scores): (&RankingRecord, _)| Ranking { scores, diversity: record.diversity };
        let rankings: Vec<Ranking> = self.rankings.iter().zip(scores.iter().map(Vec::as_slice)).map(of).collect();
        let is_diverse = self.field_ranks.is_empty() && rankings.iter().any(|ranking| ranking.diversity > 0.0);
        let vectors = if is_diverse { self.vectors(generation)? } else { Vec::new() };
        let pins = self.pin_slots();
        let exploration = self.exploration.as_ref().map(ExplorationRecord::policy);
        let given = PolicyInput {
            rankings: &rankings,
            boost_factors: &self.boost_factors,
            boost_masks: &self.boost_masks,
            field_ranks: &self.field_ranks,
            pins: &pins,
            exploration: exploration.as_ref(),
            seed: self.seed,
        };
        Ok(arrange(&given, |candidate| vectors.get(candidate.index()).map_or(&[][..], Vec::as_slice)))
    }

    fn pin_slots(&self) -> Vec<PinSlot> {
        self.pins
            .iter()
            .map(|pin| PinSlot { candidate: pin.item.map(CandidateIndex), rank: pin.rank as usize })
            .collect()
    }

    /// The fused scores of retrieval, which are a feature.
    pub(super) fn fused_scores(&self, features: &[f32]) -> Vec<f32> {
        let column = FEATURES.iter().position(|name| *name == "retrieval_score").unwrap_or_default();
        match self.fused.is_empty() {
            true => features.iter().copied().skip(column).step_by((self.feature_count as usize).max(1)).collect(),
            false => self.fused.clone(),
        }
    }

    fn scores(&self, ranking: &RankingRecord, heads: &[f32], fused: &[f32]) -> Result<Vec<f32>, ReplayError> {
        let count = (ranking.candidate_count as usize).min(self.candidate_count());
        let base = Base { heads, weights: &ranking.weights, fused, tiers: &self.tiers };
        base.scores(count).ok_or_else(|| ReplayError("it lacks scores of some candidates".to_owned()))
    }

    /// Vectors of the candidates in the query's space.
    fn vectors(&self, generation: &dyn Generation) -> Result<Vec<Vec<f32>>, ReplayError> {
        let damaged = || ReplayError("its vectors cannot be read".to_owned());
        let dimensions = self.vector_dimensions as usize;
        let live_count = self.vector_rows.iter().filter(|row| **row == 0).count();
        let live = columns::decode(&self.live_vectors, live_count, dimensions).ok_or_else(damaged)?;
        let mut live = live.chunks_exact(dimensions.max(1));
        let vector = |row: &u32| match row.checked_sub(1) {
            None => live.next().map(<[f32]>::to_vec).ok_or_else(damaged),
            Some(row) => {
                let vector = generation.vector(row).map(<[f32]>::to_vec);
                vector.ok_or_else(|| ReplayError(format!("the bundle has no row {row}")))
            }
        };
        self.vector_rows.iter().map(vector).collect()
    }

    /// What differs first between an arranged answer and what was shown.
    fn compare(&self, arranged: &Arranged) -> Option<String> {
        let name =
            |item: u32| self.items.get(item as usize).map_or("an item that is not in the record", String::as_str);
        for (at, slot) in self.slots.iter().enumerate() {
            let Some(place) = arranged.placed.get(at) else {
                return Some(format!("slot {}: nothing, and `{}` was shown", at + 1, name(slot.item)));
            };
            if place.candidate.0 != slot.item {
                let (new, old) = (name(place.candidate.0), name(slot.item));
                return Some(format!("slot {}: `{new}`, and `{old}` was shown", at + 1));
            }
            if place.score.to_bits() != slot.score.to_bits() {
                return Some(format!("slot {}: the score {:?}, and it was {:?}", at + 1, place.score, slot.score));
            }
            if place.conditional.to_bits() != slot.conditional.to_bits() {
                let (new, old) = (place.conditional, slot.conditional);
                return Some(format!("slot {}: the probability {new:?}, and it was {old:?}", at + 1));
            }
            if (place.is_pinned, team_number(place.team)) != (slot.is_pinned, slot.team) {
                return Some(format!("slot {}: another rule placed it", at + 1));
            }
        }
        let places = arranged.placed.iter().map(|place| (name(place.candidate.0), place.score, place.conditional));
        if arranged.placed.len() != self.slate_size as usize || slate_sum(places) != self.slate_sum {
            return Some("a later page".to_owned());
        }
        None
    }

    /// By slot of the first page: the probability that the policy shows this item in this slot, and the slot that it would
    /// have without exploration.
    ///
    /// Exact where nothing is random and for the first random slot; else of `sample_count` samples, with its standard error.
    pub fn propensities(&self, sample_count: usize) -> Result<Vec<Propensity>, ReplayError> {
        let certain = |at: usize| Propensity {
            marginal: Marginal { probability: 1.0, standard_error: 0.0 },
            organic_slot: at + 1,
        };
        let found: Option<Vec<Propensity>> = match (&self.rankings[..], &self.exploration) {
            ([a, b], _) => return Ok(self.draft_propensities(&a.order, &b.order, sample_count)),
            (_, Some(exploration)) if !self.organic_items.is_empty() => {
                let mut drawn = self.drawn_propensities(&exploration.policy(), sample_count).into_iter().flatten();
                let of =
                    |(at, slot): (usize, &SlotRecord)| if slot.is_pinned { Some(certain(at)) } else { drawn.next() };
                self.slots.iter().enumerate().map(of).collect()
            }
            _ => Some((0..self.slots.len()).map(certain).collect()),
        };
        found.ok_or_else(|| ReplayError("its slots do not fit the list before exploration".to_owned()))
    }

    /// Of the slots without a pin; none where the record does not fit together.
    fn drawn_propensities(&self, policy: &Exploration, sample_count: usize) -> Option<Vec<Propensity>> {
        let is_free = |slot: &usize| !self.pinned_slots.contains(&(*slot as u32));
        let slots: Vec<usize> = (1..).filter(is_free).take(self.organic_items.len()).collect();
        let organic_place = |slot: &SlotRecord| self.organic_items.iter().position(|item| *item == slot.item);
        let shown = self.slots.iter().filter(|slot| !slot.is_pinned);
        let order: Vec<usize> = shown.map(organic_place).collect::<Option<_>>()?;
        let organic = Organic { scores: self.organic_scores.get(..slots.len())?, slots: &slots };
        // Not the seed of the answer itself, whose prefix is the shown one.
        let marginals = policy.marginals(organic, &order, sample_count, !self.seed);
        let propensity = |(marginal, place): (Marginal, &usize)| Propensity { marginal, organic_slot: slots[*place] };
        Some(marginals.into_iter().zip(&order).map(propensity).collect())
    }

    /// Of interleaved answers: how often drafts with other coins show the same item in the same slot; the answer itself is one
    /// of the samples, so that nothing that was shown has probability 0.
    fn draft_propensities(&self, a: &[u32], b: &[u32], sample_count: usize) -> Vec<Propensity> {
        let pinned: Vec<u32> = place_pins(&[], &self.pin_slots()).order.iter().map(|(row, _)| row.0).collect();
        let rows = |order: &[u32]| order.iter().copied().map(CandidateIndex).collect::<Vec<CandidateIndex>>();
        let (a, b) = (rows(a), rows(b));
        let mut seeds = Random::new(!self.seed);
        let mut counts = vec![1usize; self.slots.len()];
        let sample_count = sample_count.max(2);
        for _ in 1..sample_count {
            let drafted = team_draft(&a, &b, seeds.bits());
            let mut organic = drafted.iter().map(|pick| pick.candidate.0).filter(|item| !pinned.contains(item));
            for (count, slot) in counts.iter_mut().zip(&self.slots) {
                *count += usize::from(slot.is_pinned || organic.next() == Some(slot.item));
            }
        }
        let propensity = |(at, count): (usize, usize)| {
            let probability = count as f64 / sample_count as f64;
            let standard_error = (probability * (1.0 - probability) / sample_count as f64).sqrt();
            Propensity { marginal: Marginal { probability, standard_error }, organic_slot: at + 1 }
        };
        counts.into_iter().enumerate().map(propensity).collect()
    }
}

/// How likely a slot's item was there.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Propensity {
    pub marginal: Marginal,
    /// The slot of the item without exploration, from 1.
    pub organic_slot: usize,
}

/// As slots of records say it.
pub fn team_number(team: Option<Team>) -> u32 {
    match team {
        None => 0,
        Some(Team::A) => 1,
        Some(Team::B) => 2,
    }
}
