//! The parts of a shown score, from the record of an answer.
use super::{AnswerRecord, SlotRecord, SourceRecord, team_number};
use crate::policy::{CandidateIndex, Team, utility};

/// How a slot's score came about: the sum over the heads (or else the score of retrieval), changed by objectives, plus the tier, times the
/// factors of the matching boosts, or divided by them if the sum is negative.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct SlotExplanation {
    pub heads: Vec<HeadPart>,
    /// The fused score of retrieval, if the ranking model did not order the answer.
    pub retrieval: Option<f32>,
    /// The change of the sum over the heads by objectives; none if no objective applied.
    pub objectives: Option<f32>,
    /// See [`AnswerRecord::tiers`].
    pub tier: u8,
    pub boosts: Vec<f32>,
    /// The sources that found the item, in the order of the record.
    pub sources: Vec<SourcePart>,
}

/// The contribution of one head: weight times probability.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct HeadPart {
    pub name: String,
    pub weight: f32,
    pub probability: f32,
}

#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct SourcePart {
    pub name: String,
    /// Among the source's hits that are candidates, from 1.
    pub rank: usize,
    /// The source's own score.
    pub score: f32,
}

impl AnswerRecord {
    /// Explains a slot's score; none for a pinned item that is not a candidate, or if the record is inconsistent.
    pub fn explain_slot(&self, slot: &SlotRecord) -> Option<SlotExplanation> {
        let candidate = slot.item as usize;
        let team = (slot.team == team_number(Some(Team::B))).then_some(Team::B);
        let parts = self.score_parts(CandidateIndex(slot.item), team)?;
        let ranking = self.rankings.get(usize::from(team.is_some()))?;
        let probabilities = match ranking.weights.is_empty() {
            true => None,
            false => self.head_values.chunks_exact(ranking.weights.len()).nth(candidate),
        };
        let head = |((name, weight), probability): ((&String, &f32), &f32)| HeadPart {
            name: name.clone(),
            weight: *weight,
            probability: *probability,
        };
        let heads = self.heads.iter().zip(&ranking.weights).zip(probabilities.unwrap_or_default()).map(head);
        let mask = self.boost_masks.get(candidate).copied().unwrap_or(0);
        let boosts = self.boost_factors.iter().enumerate().filter(|(boost, _)| mask >> boost & 1 == 1);
        let source = |source: &SourceRecord| {
            let position = source.candidates.iter().position(|found| *found == slot.item)?;
            Some(SourcePart { name: source.name.clone(), rank: position + 1, score: *source.scores.get(position)? })
        };
        Some(SlotExplanation {
            heads: heads.collect(),
            retrieval: probabilities.is_none().then_some(parts.base),
            objectives: ranking
                .objectives
                .as_ref()
                .map(|_| parts.base - probabilities.map_or(0.0, |heads| utility(&ranking.weights, heads))),
            tier: self.tiers.get(candidate).copied().unwrap_or(0),
            boosts: boosts.map(|(_, factor)| *factor).collect(),
            sources: self.sources.iter().filter_map(source).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answers::RankingRecord;

    #[test]
    fn the_parts_of_a_score_make_the_score() {
        let slot = |item, score| SlotRecord { item, score, ..SlotRecord::default() };
        let total = |record: &AnswerRecord, item| {
            let parts = record.score_parts(CandidateIndex(item), None).unwrap();
            (parts.base + parts.match_bonus) * parts.boost_factor
        };
        let found = SourceRecord {
            name: "lexical".into(),
            candidates: vec![1, 0],
            scores: vec![7.5, 3.0],
            ..Default::default()
        };
        let record = AnswerRecord {
            items: ["a", "b", "pin"].map(str::to_owned).to_vec(),
            candidate_count: 2,
            heads: vec!["click".to_owned(), "purchase".to_owned()],
            head_values: vec![0.5, 0.1, 0.2, 0.3],
            rankings: vec![RankingRecord { weights: vec![1.0, 2.0], candidate_count: 2, ..RankingRecord::default() }],
            tiers: vec![0, 1],
            boost_factors: vec![2.0, 0.5],
            boost_masks: vec![2, 1],
            fused: vec![0.02, 0.01],
            sources: vec![found],
            ..AnswerRecord::default()
        };
        // (0.2 + 2 × 0.3 + tier 1) × 2 and (0.5 + 2 × 0.1) × 0.5
        for (item, score) in [(1, 3.6), (0, 0.35)] {
            assert!((total(&record, item) - score).abs() < 1e-6, "{:?}", record.explain_slot(&slot(item, score)));
        }
        let parts = record.explain_slot(&slot(0, 0.35)).unwrap();
        assert_eq!(parts.sources, [SourcePart { name: "lexical".into(), rank: 2, score: 3.0 }]);
        assert_eq!((parts.heads[1].weight, parts.boosts), (2.0, vec![0.5]));
        let unranked = AnswerRecord { head_values: Vec::new(), ..record.clone() };
        assert!((total(&unranked, 1) - 2.02).abs() < 1e-6);
        assert_eq!(unranked.explain_slot(&slot(1, 2.02)).unwrap().retrieval, Some(0.01));
        assert!(record.explain_slot(&slot(2, 0.0)).is_none(), "a pin that is no candidate has no score");
        assert!(record.explain_slot(&slot(9, 0.0)).is_none());
    }
}
