//! Counterfactual pages: the page that another serving configuration would have shown, from the record of an answer.
use super::{AnswerRecord, RankingRecord, ReplayError, RequestedList};
use crate::{
    policy::{BaseScores, CandidateIndex, ObjectiveFacts, PinSlot, PolicyInput, Ranking, arrange},
    serving::ServingConfig,
};

/// A first page under another configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct CounterfactualPage<'a> {
    pub items: Vec<&'a str>,
    /// Share of the weights of objectives that their limit leaves, 0 to 1. None: no objective applies.
    pub objective_share: Option<f32>,
    /// Relative loss of NDCG against the order by relevance, 0 to 1.
    pub ndcg_loss: f32,
}

impl AnswerRecord {
    /// Returns the items of the first page under this configuration, without its exploration: the same candidates,
    /// ordered by its head weights (the answer's weights for heads that it does not set) and its objectives, or in the
    /// order of retrieval if it does not use the ranker. Boosts, pins and the order-by field stay.
    ///
    /// Fails if the record does not determine the page: a diverse order needs vectors, candidates that were not ranked
    /// have no probabilities, an interleaved answer has no single configuration, and a record without prices or the
    /// user's risk does not have what some objectives read.
    pub fn page_of(&self, config: &ServingConfig) -> Result<Vec<&str>, ReplayError> {
        self.counterfactual_page(config, &self.objective_facts()).map(|page| page.items)
    }

    /// Like [`AnswerRecord::page_of`], with what objectives read from elsewhere.
    pub fn counterfactual_page(
        &self,
        config: &ServingConfig,
        facts: &ObjectiveFacts,
    ) -> Result<CounterfactualPage<'_>, ReplayError> {
        let [shown] = &self.rankings[..] else {
            return Err(ReplayError("the answer was interleaved".to_owned()));
        };
        if config.diversity > 0.0 || shown.diversity > 0.0 {
            return Err(ReplayError("diversity needs the bundle's vectors, which the record does not have".to_owned()));
        }
        // Other lists have no repeat fraction.
        let repeat_fraction = config.repeat_fraction.filter(|_| self.requested_list() == RequestedList::ForYou);
        // Without one in the answer, the record does not have what the user bought before.
        if repeat_fraction.is_some() && shown.repeat_fraction.is_none() {
            return Err(ReplayError("a repeat fraction needs an answer that has one".to_owned()));
        }
        let weights = self.weights_of(config, shown)?;
        let count = (shown.candidate_count as usize).min(self.candidate_count());
        let features = if self.fused.is_empty() { self.feature_matrix()? } else { Vec::new() };
        let fused = self.fused_scores(&features);
        let base = BaseScores { heads: &self.head_values, weights: &weights, fused: &fused, tiers: &self.tiers };
        let incomplete = || ReplayError("scores of some candidates are missing".to_owned());
        let mix = config.objectives.as_ref().filter(|_| !weights.is_empty());
        let blend = match mix {
            Some(mix) if !facts.suffice(mix, count) => {
                return Err(ReplayError("the record does not have the prices or the risk of an objective".to_owned()));
            }
            Some(mix) => Some(self.blend_with(&base, mix, facts, self.slots.len(), count)?),
            None => None,
        };
        let (objective_share, ndcg_loss) =
            (blend.as_ref().map(|blend| blend.share), blend.as_ref().map_or(0.0, |blend| blend.ndcg_loss));
        let scores = match blend {
            Some(blend) => base.with_tiers(blend.scores),
            None => base.scores(count).ok_or_else(incomplete)?,
        };
        let pins: Vec<PinSlot> = self
            .pins
            .iter()
            .map(|pin| PinSlot { candidate: pin.item.map(CandidateIndex), rank: pin.rank as usize })
            .collect();
        let input = PolicyInput {
            rankings: &[Ranking { scores: &scores, diversity: 0.0, repeat_fraction }],
            boost_factors: &self.boost_factors,
            boost_masks: &self.boost_masks,
            field_ranks: &self.field_ranks,
            repeats: &self.repeats,
            pins: &pins,
            exploration: None,
            seed: self.seed,
        };
        let arranged = arrange(&input, |_| &[]);
        let item = |candidate: u32| self.items.get(candidate as usize).map(String::as_str);
        let page = arranged.placed.iter().take(self.slots.len()).map(|placed| item(placed.candidate.0));
        let items = page.collect::<Option<Vec<&str>>>().ok_or_else(incomplete)?;
        Ok(CounterfactualPage { items, objective_share, ndcg_loss })
    }

    /// Returns the weights by head of the record. Empty: the order of retrieval.
    fn weights_of(&self, config: &ServingConfig, shown: &RankingRecord) -> Result<Vec<f32>, ReplayError> {
        // A page that fields order needs no probabilities.
        let is_by_field = self.head_values.is_empty() && !self.field_ranks.is_empty();
        if !config.ranker || is_by_field {
            return Ok(Vec::new());
        }
        if self.head_values.is_empty() || shown.weights.len() != self.heads.len() {
            return Err(ReplayError("the ranking model did not run".to_owned()));
        }
        let weight = |(head, shown): (&String, &f32)| config.head_weights.get(head).copied().unwrap_or(*shown);
        Ok(self.heads.iter().zip(&shown.weights).map(weight).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        answers::{AnswerKind, SlotRecord},
        policy::ObjectiveMix,
    };
    use lodestone_rules::Objective;
    use std::collections::BTreeMap;

    fn record() -> AnswerRecord {
        AnswerRecord {
            items: ["a", "b", "c"].map(str::to_owned).to_vec(),
            candidate_count: 3,
            heads: vec!["click".to_owned(), "purchase".to_owned()],
            head_values: vec![0.9, 0.1, 0.5, 0.2, 0.1, 0.3],
            fused: vec![0.1, 0.3, 0.2],
            rankings: vec![RankingRecord { weights: vec![1.0, 0.0], candidate_count: 3, ..RankingRecord::default() }],
            slots: vec![SlotRecord::default(); 2],
            ..AnswerRecord::default()
        }
    }

    #[test]
    fn a_repeat_fraction_applies_to_the_lists_that_have_one() {
        let unbought = ServingConfig { repeat_fraction: Some(0.0), ..ServingConfig::default() };
        assert_eq!(record().page_of(&unbought).unwrap(), ["a", "b"], "not a list for the user");
        // Field 2, the type, is 1: FOR_YOU.
        let for_you = AnswerRecord { kind: AnswerKind::Recommend as i32, request: vec![0x10, 1], ..record() };
        assert!(for_you.page_of(&unbought).is_err(), "what the user bought before is not recorded");
        let rankings = vec![RankingRecord { repeat_fraction: Some(0.5), ..for_you.rankings[0].clone() }];
        let mixed = AnswerRecord { rankings, repeats: vec![true, false, false], ..for_you };
        assert_eq!(mixed.page_of(&unbought).unwrap(), ["b", "c"]);
        assert_eq!(mixed.page_of(&ServingConfig::default()).unwrap(), ["a", "b"]);
    }

    #[test]
    fn other_weights_produce_another_page() {
        let same = ServingConfig::default();
        let weights = BTreeMap::from([("click".to_owned(), 0.0), ("purchase".to_owned(), 1.0)]);
        let purchases = ServingConfig { head_weights: weights, ..ServingConfig::default() };
        let retrieval = ServingConfig { ranker: false, ..ServingConfig::default() };
        let record = record();
        assert_eq!(record.page_of(&same).unwrap(), ["a", "b"]);
        assert_eq!(record.page_of(&purchases).unwrap(), ["c", "b"]);
        assert_eq!(record.page_of(&retrieval).unwrap(), ["b", "c"]);
        let diverse = ServingConfig { diversity: 0.5, ..ServingConfig::default() };
        assert!(record.page_of(&diverse).is_err());
        let short = AnswerRecord { head_values: vec![0.9], ..record.clone() };
        assert!(short.page_of(&same).is_err() && AnswerRecord::default().page_of(&same).is_err());
    }

    #[test]
    fn objectives_change_the_page_within_their_limit() {
        let mix = |ndcg_loss_max| ServingConfig {
            objectives: Some(ObjectiveMix { weights: vec![(Objective::Revenue, 1.0)], ndcg_loss_max }),
            ..ServingConfig::default()
        };
        let record = record();
        assert!(record.page_of(&mix(1.0)).unwrap_err().0.contains("prices"), "the record has no prices");
        let priced = AnswerRecord { prices: vec![1.0, 1.0, 9.0], ..record.clone() };
        assert_eq!(priced.page_of(&mix(1.0)).unwrap(), ["c", "b"]);
        let facts = ObjectiveFacts { prices: vec![1.0, 1.0, 9.0], ..ObjectiveFacts::default() };
        let bounded = record.counterfactual_page(&mix(0.0), &facts).unwrap();
        assert_eq!((bounded.items, bounded.ndcg_loss), (vec!["a", "b"], 0.0));
        assert!(bounded.objective_share.unwrap() < 1.0);
    }
}
