//! Replays of logged answers: runs the ranking model and the policy again on the record's inputs.
use super::{
    columns,
    record::{AnswerRecord, ExplorationRecord, RankingRecord, SlotRecord},
};
use crate::{
    features::FEATURES,
    policy::{
        Arranged, BaseScores, Blend, BlendInput, CandidateIndex, Exploration, HeadColumns, Marginal, ObjectiveFacts,
        ObjectiveMix, OrganicList, PinSlot, PolicyInput, Random, Ranking, ScoreParts, Team, arrange, blend, place_pins,
        team_draft,
    },
};
use sha2::{Digest, Sha256};

/// The reason why a record cannot be replayed: it is damaged, or a part that it depends on is missing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the record of the answer cannot be replayed: {0}")]
pub struct ReplayError(pub String);

/// The models and vectors of a generation that a replay needs.
pub trait ReplayModels {
    /// Computes probabilities `[rows × heads]` of features `[rows × feature_count]`.
    fn probabilities(&mut self, features: &[f32]) -> Result<Vec<f32>, ReplayError>;
    /// Returns the query-space vector of a bundle row.
    fn vector(&self, bundle_row: u32) -> Option<&[f32]>;
}

/// A replayed answer.
#[derive(Debug, Clone, PartialEq)]
pub struct ReplayedAnswer {
    pub arranged: Arranged,
    /// The first difference from the shown answer; none if they are bit-equal.
    pub difference: Option<String>,
}

/// Runs the ranking model on the recorded features, arranges the answer, and compares it with the shown one: the
/// probabilities of the heads, every slot of the first page with its score and probability, and the checksum of all
/// pages.
pub fn replay(record: &AnswerRecord, models: &mut dyn ReplayModels) -> Result<ReplayedAnswer, ReplayError> {
    let features = record.feature_matrix()?;
    let mut difference = None;
    let heads = match record.head_values.is_empty() {
        true => Vec::new(),
        false => models.probabilities(&features)?,
    };
    if let Some(at) = first_difference(&heads, &record.head_values) {
        let head_count = record.heads.len().max(1);
        let (candidate, head) = (at / head_count, at % head_count);
        difference = Some(format!(
            "`{}` has the {} probability {:?} and had {:?}",
            record.items.get(candidate).map_or("", String::as_str),
            record.heads.get(head).map_or("", String::as_str),
            heads.get(at),
            record.head_values.get(at),
        ));
    }
    let arranged = record.arrange(&heads, &record.fused_scores(&features), models)?;
    let difference = difference.or_else(|| record.compare(&arranged));
    Ok(ReplayedAnswer { arranged, difference })
}

fn first_difference(new: &[f32], old: &[f32]) -> Option<usize> {
    let equal = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits();
    let at = new.iter().zip(old).position(|pair| !equal(pair)).unwrap_or(new.len().min(old.len()));
    (at < new.len().max(old.len())).then_some(at)
}

/// Returns the seed of all random draws of an answer.
pub fn seed_of(id: &[u8]) -> u64 {
    first_bytes(&Sha256::new().chain_update(b"lodestone answer").chain_update(id).finalize())
}

/// Returns the first 8 bytes of the SHA-256 of a request.
pub fn digest(message: &[u8]) -> u64 {
    first_bytes(&Sha256::digest(message))
}

fn first_bytes(digest: &[u8]) -> u64 {
    digest.iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// Returns a checksum of all slots of a slate: items, scores and conditional probabilities, bit by bit.
pub fn slate_checksum<'a>(slots: impl Iterator<Item = (&'a str, f32, f64)>) -> u64 {
    let mut hash = Sha256::new();
    for (item, score, conditional) in slots {
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
            .ok_or_else(|| ReplayError("the features cannot be decoded".to_owned()))
    }

    /// Arranges the answer from the probabilities of the heads, `[candidates × heads]`.
    fn arrange(&self, heads: &[f32], fused: &[f32], models: &dyn ReplayModels) -> Result<Arranged, ReplayError> {
        let scores = self.rankings.iter().map(|ranking| self.scores(ranking, heads, fused));
        let scores = scores.collect::<Result<Vec<Vec<f32>>, ReplayError>>()?;
        let of = |(record, scores): (&RankingRecord, _)| Ranking {
            scores,
            diversity: record.diversity,
            repeat_fraction: record.repeat_fraction,
        };
        let rankings: Vec<Ranking> = self.rankings.iter().zip(scores.iter().map(Vec::as_slice)).map(of).collect();
        let is_diverse = self.field_ranks.is_empty() && rankings.iter().any(|ranking| ranking.diversity > 0.0);
        let vectors = if is_diverse { self.vectors(models)? } else { Vec::new() };
        let pins = self.pin_slots();
        let exploration = self.exploration.as_ref().map(ExplorationRecord::policy);
        let input = PolicyInput {
            rankings: &rankings,
            boost_factors: &self.boost_factors,
            boost_masks: &self.boost_masks,
            field_ranks: &self.field_ranks,
            repeats: &self.repeats,
            pins: &pins,
            exploration: exploration.as_ref(),
            seed: self.seed,
        };
        Ok(arrange(&input, |candidate| vectors.get(candidate.index()).map_or(&[][..], Vec::as_slice)))
    }

    fn pin_slots(&self) -> Vec<PinSlot> {
        self.pins
            .iter()
            .map(|pin| PinSlot { candidate: pin.item.map(CandidateIndex), rank: pin.rank as usize })
            .collect()
    }

    /// Returns the fused scores of retrieval, which are also a feature.
    pub(super) fn fused_scores(&self, features: &[f32]) -> Vec<f32> {
        let column = FEATURES.iter().position(|name| *name == "retrieval_score").unwrap_or_default();
        match self.fused.is_empty() {
            true => features.iter().copied().skip(column).step_by((self.feature_count as usize).max(1)).collect(),
            false => self.fused.clone(),
        }
    }

    /// Returns the parts of a slot's score, whose candidate was picked by the ranking of `team`. None for a pin that is
    /// no candidate, and for a damaged record.
    pub fn score_parts(&self, candidate: CandidateIndex, team: Option<Team>) -> Option<ScoreParts> {
        let at = candidate.index();
        let ranking = self.rankings.get(usize::from(team == Some(Team::B)))?;
        if at >= self.candidate_count() {
            return None;
        }
        let fused = match self.head_values.is_empty() || ranking.weights.is_empty() {
            false => Vec::new(),
            true if self.fused.is_empty() => self.fused_scores(&self.feature_matrix().ok()?),
            true => self.fused.clone(),
        };
        let base =
            BaseScores { heads: &self.head_values, weights: &ranking.weights, fused: &fused, tiers: &self.tiers };
        let parts = base.parts(at)?;
        let blended = match ranking.objectives.is_some() {
            true => {
                self.blend(ranking, &self.head_values, &fused).ok()?.and_then(|blend| blend.scores.get(at).copied())
            }
            false => None,
        };
        let parts = ScoreParts { base: blended.unwrap_or(parts.base), ..parts };
        Some(parts.with_boosts(&self.boost_factors, self.boost_masks.get(at).copied().unwrap_or(0)))
    }

    pub(super) fn scores(
        &self,
        ranking: &RankingRecord,
        heads: &[f32],
        fused: &[f32],
    ) -> Result<Vec<f32>, ReplayError> {
        let count = (ranking.candidate_count as usize).min(self.candidate_count());
        let base = BaseScores { heads, weights: &ranking.weights, fused, tiers: &self.tiers };
        let scores = match self.blend(ranking, heads, fused)? {
            Some(blend) => Some(base.with_tiers(blend.scores)),
            None => base.scores(count),
        };
        scores.ok_or_else(|| ReplayError("scores of some candidates are missing".to_owned()))
    }

    /// Returns what the objectives of the answer read.
    pub(super) fn objective_facts(&self) -> ObjectiveFacts {
        let Self { prices, margins, return_risk, .. } = self;
        ObjectiveFacts { prices: prices.clone(), margins: margins.clone(), return_risk: *return_risk }
    }

    /// Blends the relevance of a ranking with its objectives; none if it has no objectives.
    fn blend(&self, ranking: &RankingRecord, heads: &[f32], fused: &[f32]) -> Result<Option<Blend>, ReplayError> {
        let Some(objectives) = &ranking.objectives else { return Ok(None) };
        let count = (ranking.candidate_count as usize).min(self.candidate_count());
        let base = BaseScores { heads, weights: &ranking.weights, fused, tiers: &self.tiers };
        let weights = objectives.weights.iter().map(|of| (of.objective(), of.weight)).collect();
        let mix = ObjectiveMix { weights, ndcg_loss_max: objectives.ndcg_loss_max };
        self.blend_with(&base, &mix, &self.objective_facts(), objectives.slots as usize, count).map(Some)
    }

    /// Blends the relevance of the first `count` candidates with objectives.
    pub(super) fn blend_with(
        &self,
        base: &BaseScores,
        mix: &ObjectiveMix,
        facts: &ObjectiveFacts,
        slots: usize,
        count: usize,
    ) -> Result<Blend, ReplayError> {
        let incomplete = || ReplayError("scores of some candidates are missing".to_owned());
        let relevance = base.relevance(count).filter(|_| !base.heads.is_empty()).ok_or_else(incomplete)?;
        let columns = HeadColumns::new(self.heads.iter().map(String::as_str));
        let input = BlendInput { mix, facts, columns, heads: base.heads, tiers: base.tiers, slots };
        Ok(blend(relevance, &input))
    }

    /// Returns the query-space vectors of the candidates.
    fn vectors(&self, models: &dyn ReplayModels) -> Result<Vec<Vec<f32>>, ReplayError> {
        let damaged = || ReplayError("the vectors cannot be decoded".to_owned());
        let dimensions = self.vector_dimensions as usize;
        let live_count = self.vector_rows.iter().filter(|row| **row == 0).count();
        let live = columns::decode(&self.live_vectors, live_count, dimensions).ok_or_else(damaged)?;
        let mut live = live.chunks_exact(dimensions.max(1));
        let vector = |row: &u32| match row.checked_sub(1) {
            None => live.next().map(<[f32]>::to_vec).ok_or_else(damaged),
            Some(row) => {
                let vector = models.vector(row).map(<[f32]>::to_vec);
                vector.ok_or_else(|| ReplayError(format!("the bundle has no row {row}")))
            }
        };
        self.vector_rows.iter().map(vector).collect()
    }

    /// Describes the first difference between an arranged answer and the shown one.
    fn compare(&self, arranged: &Arranged) -> Option<String> {
        let name =
            |item: u32| self.items.get(item as usize).map_or("an item that is not in the record", String::as_str);
        for (at, slot) in self.slots.iter().enumerate() {
            let Some(placed) = arranged.placed.get(at) else {
                return Some(format!("slot {}: no item, but `{}` was shown", at + 1, name(slot.item)));
            };
            if placed.candidate.0 != slot.item {
                let (new, old) = (name(placed.candidate.0), name(slot.item));
                return Some(format!("slot {}: `{new}`, but `{old}` was shown", at + 1));
            }
            if placed.score.to_bits() != slot.score.to_bits() {
                return Some(format!("slot {}: score {:?}, but it was {:?}", at + 1, placed.score, slot.score));
            }
            if placed.conditional.to_bits() != slot.conditional.to_bits() {
                let (new, old) = (placed.conditional, slot.conditional);
                return Some(format!("slot {}: probability {new:?}, but it was {old:?}", at + 1));
            }
            if (placed.is_pinned, team_number(placed.team)) != (slot.is_pinned, slot.team) {
                return Some(format!("slot {}: the pin or team differs", at + 1));
            }
        }
        let slots = arranged.placed.iter().map(|placed| (name(placed.candidate.0), placed.score, placed.conditional));
        if arranged.placed.len() != self.slate_size as usize || slate_checksum(slots) != self.slate_checksum {
            return Some("a later page differs".to_owned());
        }
        None
    }

    /// Computes, by slot of the first page, the probability that the policy shows this item in this slot, and the slot
    /// that the item would have without exploration.
    ///
    /// The probability is exact for slots that are not random and for the first random slot. Otherwise it is estimated
    /// from `sample_count` samples and has a standard error.
    pub fn propensities(&self, sample_count: usize) -> Result<Vec<Propensity>, ReplayError> {
        let certain = |at: usize| Propensity {
            marginal: Marginal { probability: 1.0, standard_error: 0.0 },
            organic_slot: at + 1,
        };
        let propensities: Option<Vec<Propensity>> = match (&self.rankings[..], &self.exploration) {
            ([a, b], _) => return Ok(self.draft_propensities(&a.order, &b.order, sample_count)),
            (_, Some(exploration)) if !self.organic_items.is_empty() => {
                let mut drawn = self.drawn_propensities(&exploration.policy(), sample_count).into_iter().flatten();
                let of =
                    |(at, slot): (usize, &SlotRecord)| if slot.is_pinned { Some(certain(at)) } else { drawn.next() };
                self.slots.iter().enumerate().map(of).collect()
            }
            _ => Some((0..self.slots.len()).map(certain).collect()),
        };
        propensities.ok_or_else(|| ReplayError("the slots do not match the organic list".to_owned()))
    }

    /// Estimates, by slot of the first page, the probabilities with which the policy shows its item in each slot of the
    /// page: the element `k` is that of slot `k + 1`. They are empty for pinned slots, and for all slots if the
    /// configuration does not explore or the answer was interleaved. See [`Exploration::page_probabilities`].
    pub fn slot_probabilities(&self, sample_count: usize) -> Result<Vec<Vec<f32>>, ReplayError> {
        let mut by_slot = vec![Vec::new(); self.slots.len()];
        let Some(exploration) = self.exploration.as_ref().filter(|_| !self.organic_items.is_empty()) else {
            return Ok(by_slot);
        };
        let inconsistent = || ReplayError("the slots do not match the organic list".to_owned());
        let (order, slots) = self.drawn_order().ok_or_else(inconsistent)?;
        let scores = self.organic_scores.get(..slots.len()).ok_or_else(inconsistent)?;
        let organic = OrganicList { scores, slots: &slots };
        let policy = exploration.policy();
        let mut drawn = policy.page_probabilities(organic, &order, sample_count, !self.seed).into_iter();
        for (_, probabilities) in self.slots.iter().zip(&mut by_slot).filter(|(slot, _)| !slot.is_pinned) {
            let of_positions = drawn.next().ok_or_else(inconsistent)?;
            *probabilities = vec![0.0; self.slots.len()];
            for (position, probability) in of_positions.into_iter().enumerate() {
                if let Some(of_slot) = slots.get(position).and_then(|slot| probabilities.get_mut(slot - 1)) {
                    *of_slot = probability;
                }
            }
        }
        Ok(by_slot)
    }

    /// Returns the slot of each organic index, ascending. Pins have the others.
    pub(super) fn organic_slots(&self) -> Vec<usize> {
        let is_free = |slot: &usize| !self.pinned_slots.contains(&(*slot as u32));
        (1..).filter(is_free).take(self.organic_items.len()).collect()
    }

    /// Returns the organic index of each slot without a pin, and the slot of each organic index; none if the record is
    /// inconsistent.
    fn drawn_order(&self) -> Option<(Vec<usize>, Vec<usize>)> {
        let slots = self.organic_slots();
        let organic_index = |slot: &SlotRecord| self.organic_items.iter().position(|item| *item == slot.item);
        let shown = self.slots.iter().filter(|slot| !slot.is_pinned);
        Some((shown.map(organic_index).collect::<Option<_>>()?, slots))
    }

    /// Computes the propensities of the slots without a pin; none if the record is inconsistent.
    fn drawn_propensities(&self, policy: &Exploration, sample_count: usize) -> Option<Vec<Propensity>> {
        let (order, slots) = self.drawn_order()?;
        let organic = OrganicList { scores: self.organic_scores.get(..slots.len())?, slots: &slots };
        // Not the seed of the answer itself, which would draw the shown order.
        let marginals = policy.marginals(organic, &order, sample_count, !self.seed);
        let propensity = |(marginal, index): (Marginal, &usize)| Propensity { marginal, organic_slot: slots[*index] };
        Some(marginals.into_iter().zip(&order).map(propensity).collect())
    }

    /// Estimates the propensities of an interleaved answer: the share of drafts with other coin flips that show the
    /// same item in the same slot. The answer itself is one of the samples, so that no shown item has probability
    /// 0.
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

/// The propensity of a slot's item.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Propensity {
    pub marginal: Marginal,
    /// The slot of the item without exploration, from 1.
    pub organic_slot: usize,
}

/// Encodes a team as in [`SlotRecord::team`].
pub fn team_number(team: Option<Team>) -> u32 {
    match team {
        None => 0,
        Some(Team::A) => 1,
        Some(Team::B) => 2,
    }
}
