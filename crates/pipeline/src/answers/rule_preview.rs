//! The page that an answer would have shown with one more rule, from its record.
use super::{AnswerRecord, ReplayError};
use crate::policy::{CandidateIndex, PinSlot, PolicyInput, Ranking, arrange};

/// The effect of a rule on the items of a record.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RuleOnRecord {
    /// By item of the record: whether the rule hides it. Shorter: the others are not hidden.
    pub hidden: Vec<bool>,
    /// Factors, each with the candidates to which it applies. Shorter: not to the others.
    pub boosts: Vec<(f32, Vec<bool>)>,
    /// Items that may be shown, with their ranks. They come after the pins of the record.
    pub pins: Vec<(String, usize)>,
}

/// The first page with and without a rule, both without exploration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PreviewedPage {
    pub before: Vec<String>,
    pub after: Vec<String>,
    /// By slot of the page: whether the logged policy could show the item of `after` there.
    pub is_supported: Vec<bool>,
}

impl PreviewedPage {
    /// Returns the number of slots with another item, or with none.
    pub fn changed_slot_count(&self) -> usize {
        let is_same = |at: usize| self.before.get(at) == self.after.get(at);
        (0..self.before.len().max(self.after.len())).filter(|at| !is_same(*at)).count()
    }
}

impl AnswerRecord {
    /// Applies a rule to the record. Fails if the record does not determine the page: an interleaved answer has no
    /// single order, and a diverse order depends on vectors.
    pub fn with_rule(&self, rule: &RuleOnRecord) -> Result<PreviewedPage, ReplayError> {
        let [ranking] = &self.rankings[..] else {
            return Err(ReplayError("the answer was interleaved".to_owned()));
        };
        if ranking.diversity > 0.0 && self.field_ranks.is_empty() {
            return Err(ReplayError("diversity needs the bundle's vectors, which the record does not have".to_owned()));
        }
        if self.slots.is_empty() {
            return Err(ReplayError("the answer has no results on a first page".to_owned()));
        }
        if self.boost_factors.len() + rule.boosts.len() > 64 {
            return Err(ReplayError("the answer has too many boosts".to_owned()));
        }
        let features = if self.fused.is_empty() { self.feature_matrix()? } else { Vec::new() };
        let scores = self.scores(ranking, &self.head_values, &self.fused_scores(&features))?;
        let (before, after) = (self.page_with(&scores, &RuleOnRecord::default()), self.page_with(&scores, rule));
        let is_supported = after.iter().enumerate();
        let is_supported = is_supported.map(|(at, item)| before.get(at) == Some(item) || self.can_draw(at + 1, item));
        Ok(PreviewedPage { is_supported: is_supported.collect(), before, after })
    }

    /// Returns the items of the first page with a rule and without exploration. `scores` are those of the candidates.
    fn page_with(&self, scores: &[f32], rule: &RuleOnRecord) -> Vec<String> {
        let is_hidden = |item: usize| rule.hidden.get(item).copied().unwrap_or(false);
        let kept: Vec<usize> = (0..scores.len()).filter(|candidate| !is_hidden(*candidate)).collect();
        fn at<T: Copy>(values: &[T], kept: &[usize]) -> Vec<T> {
            kept.iter().filter_map(|candidate| values.get(*candidate).copied()).collect()
        }
        let boosted = |candidate: usize| {
            let recorded = self.boost_masks.get(candidate).copied().unwrap_or(0);
            let of_rule =
                rule.boosts.iter().enumerate().filter(|(_, (_, applies))| applies.get(candidate) == Some(&true));
            of_rule.fold(recorded, |mask, (boost, _)| mask | 1 << (self.boost_factors.len() + boost))
        };
        let factors = self.boost_factors.iter().copied().chain(rule.boosts.iter().map(|(factor, _)| *factor));
        let mut items: Vec<&str> =
            kept.iter().map(|candidate| self.items.get(*candidate).map_or("", String::as_str)).collect();
        let mut pins: Vec<PinSlot> = Vec::with_capacity(self.pins.len() + rule.pins.len());
        let recorded = self.pins.iter().map(|pin| {
            let item = pin.item.map(|item| item as usize).filter(|item| !is_hidden(*item));
            (item.and_then(|item| self.items.get(item)).map(String::as_str), pin.rank as usize)
        });
        let of_rule = rule.pins.iter().map(|(item, rank)| (Some(item.as_str()), *rank));
        for (name, rank) in recorded.chain(of_rule) {
            let candidate = name.map(|name| {
                let index = items.iter().position(|other| *other == name).unwrap_or(items.len());
                if index == items.len() {
                    items.push(name);
                }
                CandidateIndex(index as u32)
            });
            pins.push(PinSlot { candidate, rank });
        }
        let (scores, field_ranks, repeats) =
            (at(scores, &kept), at(&self.field_ranks, &kept), at(&self.repeats, &kept));
        let input = PolicyInput {
            rankings: &[Ranking {
                scores: &scores,
                diversity: 0.0,
                repeat_fraction: self.rankings.first().and_then(|ranking| ranking.repeat_fraction),
            }],
            boost_factors: &factors.collect::<Vec<f32>>(),
            boost_masks: &kept.iter().map(|candidate| boosted(*candidate)).collect::<Vec<u64>>(),
            field_ranks: &field_ranks,
            repeats: &repeats,
            pins: &pins,
            exploration: None,
            seed: self.seed,
        };
        let arranged = arrange(&input, |_| &[]);
        let name = |index: usize| items.get(index).map_or(String::new(), |name| (*name).to_owned());
        arranged.placed.iter().take(self.slots.len()).map(|placed| name(placed.candidate.index())).collect()
    }

    /// Returns whether the exploration of the answer may show an item in a slot, from 1.
    fn can_draw(&self, slot: usize, item: &str) -> bool {
        let Some(exploration) = self.exploration.as_ref().filter(|exploration| exploration.share > 0.0) else {
            return false;
        };
        let is_item = |organic: &u32| self.items.get(*organic as usize).is_some_and(|name| name == item);
        let Some(index) = self.organic_items.iter().position(is_item) else { return false };
        let slots = self.organic_slots();
        let Ok(position) = slots.binary_search(&slot) else { return false };
        let begin = slots.partition_point(|slot| *slot < exploration.first_slot as usize);
        let window = begin..begin + exploration.top as usize;
        let is_in_window = exploration.temperature > 0.0 && window.contains(&position) && window.contains(&index);
        let is_epsilon_slot = exploration.epsilon > 0.0 && exploration.epsilon_slots.contains(&(slot as u32));
        is_in_window || is_epsilon_slot && index < position + exploration.epsilon_candidates as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answers::{ExplorationRecord, PinRecord, RankingRecord, SlotRecord};

    fn record() -> AnswerRecord {
        AnswerRecord {
            items: ["a", "b", "c", "d", "pin"].map(str::to_owned).to_vec(),
            candidate_count: 4,
            fused: vec![0.4, 0.3, 0.2, 0.1],
            rankings: vec![RankingRecord { candidate_count: 4, ..RankingRecord::default() }],
            slots: vec![SlotRecord::default(); 3],
            organic_items: vec![0, 1, 2, 3],
            ..AnswerRecord::default()
        }
    }

    #[test]
    fn a_rule_hides_boosts_and_pins() {
        let record = record();
        let hiding = RuleOnRecord { hidden: vec![true], ..RuleOnRecord::default() };
        let page = record.with_rule(&hiding).unwrap();
        assert_eq!((page.before.join(""), page.after.join("")), ("abc".into(), "bcd".into()));
        assert_eq!(page.changed_slot_count(), 3);
        let boosting = RuleOnRecord { boosts: vec![(10.0, vec![false, false, true])], ..RuleOnRecord::default() };
        assert_eq!(record.with_rule(&boosting).unwrap().after.join(""), "cab");
        let pinning = RuleOnRecord { pins: vec![("x".into(), 1), ("b".into(), 3)], ..RuleOnRecord::default() };
        assert_eq!(record.with_rule(&pinning).unwrap().after.join(""), "xab");
        let pinned = AnswerRecord { pins: vec![PinRecord { item: Some(4), rank: 1 }], ..record.clone() };
        let page = pinned.with_rule(&pinning).unwrap();
        assert_eq!((page.before.join(""), page.after.join("")), ("pinab".into(), "pinab".into()), "the rank is taken");
        let short = RuleOnRecord { hidden: vec![true, true], ..RuleOnRecord::default() };
        let page = record.with_rule(&short).unwrap();
        assert_eq!((page.after.join(""), page.changed_slot_count()), ("cd".into(), 3));
    }

    #[test]
    fn only_exploration_supports_another_item() {
        let swap = RuleOnRecord { boosts: vec![(2.0, vec![false, true])], ..RuleOnRecord::default() };
        let plain = record().with_rule(&swap).unwrap();
        assert_eq!((plain.after.join(""), plain.is_supported), ("bac".into(), vec![false, false, true]));
        let drawn = ExplorationRecord { temperature: 1.0, first_slot: 1, top: 2, share: 0.5, ..Default::default() };
        let explored = AnswerRecord { exploration: Some(drawn), ..record() };
        assert_eq!(explored.with_rule(&swap).unwrap().is_supported, [true; 3]);
        let later = RuleOnRecord { boosts: vec![(9.0, vec![false, false, true])], ..RuleOnRecord::default() };
        let page = explored.with_rule(&later).unwrap();
        assert_eq!((page.after.join(""), page.is_supported), ("cab".into(), vec![false, true, false]));
    }

    #[test]
    fn a_record_that_does_not_determine_the_page_is_refused() {
        let rule = RuleOnRecord::default();
        let diverse = RankingRecord { diversity: 0.5, ..record().rankings[0].clone() };
        for undetermined in [
            AnswerRecord { rankings: vec![diverse], ..record() },
            AnswerRecord { rankings: vec![RankingRecord::default(); 2], ..record() },
            AnswerRecord { slots: Vec::new(), ..record() },
            AnswerRecord { fused: vec![0.1], ..record() },
        ] {
            assert!(undetermined.with_rule(&rule).is_err());
        }
    }
}
