//! Finds the rules that compete for a rank: of several pins of one rank, the first that can be placed is placed.
use crate::{
    compiled::{Action, CompiledRule, QueryTest},
    conditions::is_whole,
    data::{RuleCondition, RuleRequestType},
    snapshot::RuleSnapshot,
};
use lodestone_core::units::UnixMillis;
use std::sync::Arc;

impl RuleSnapshot {
    /// Returns the other rules, in the order of their ids, that pin a rank which a rule pins too, have not ended at `now`,
    /// and apply to requests to which the rule applies. Conditions on queries are compared by their normal forms: a request
    /// that has two words of which no condition has both is not found.
    pub fn competing_pins<'s>(
        &'s self,
        rule: &'s CompiledRule,
        rank: usize,
        now: UnixMillis,
    ) -> impl Iterator<Item = &'s Arc<CompiledRule>> {
        let pins_rank = move |other: &CompiledRule| {
            other.actions.iter().any(|action| matches!(action, Action::Pin { rank: of, .. } if *of == rank))
        };
        let others = self.rules.values().filter(move |other| other.id() != rule.id());
        others.filter(move |other| pins_rank(other) && !other.has_ended(now) && rule.shares_requests_with(other))
    }
}

impl CompiledRule {
    /// Returns whether both rules apply to some request, as far as the normal forms of their conditions on queries show it.
    fn shares_requests_with(&self, other: &Self) -> bool {
        let unset = RuleCondition::default();
        let [of, of_other] = [self, other].map(|rule| rule.rule.condition.as_ref().unwrap_or(&unset));
        let queries_meet = self.queries.is_empty()
            || other.queries.is_empty()
            || self.queries.iter().any(|test| other.queries.iter().any(|other| test.meets(other)));
        // Only a search has a query.
        let searches = [RuleRequestType::Search as i32];
        let types = |rule: &Self, of: &RuleCondition| match rule.queries.is_empty() {
            true => of.request_types.clone(),
            false => searches.to_vec(),
        };
        queries_meet
            && self.dates_meet(other)
            && meet(&types(self, of), &types(other, of_other))
            && meet(&self.categories, &other.categories)
            && meet(&of.audiences, &of_other.audiences)
            && meet(&of.platforms, &of_other.platforms)
            && meet(&of.serving_configs, &of_other.serving_configs)
    }
}

/// Returns whether two lists of alternatives have a common one. An empty list is no condition.
fn meet<T: PartialEq>(one: &[T], other: &[T]) -> bool {
    one.is_empty() || other.is_empty() || one.iter().any(|entry| other.contains(entry))
}

impl QueryTest {
    /// Returns whether a query that the text of one of both tests names meets the other one too.
    fn meets(&self, other: &Self) -> bool {
        self == other || self.holds_for_text_of(other) || other.holds_for_text_of(self)
    }

    fn holds_for_text_of(&self, other: &Self) -> bool {
        let (Self::Exact(query) | Self::Prefix(query) | Self::Contains(query)) = other else { return false };
        match self {
            Self::Exact(text) => query == text,
            Self::Prefix(text) => query.starts_with(text.as_str()),
            Self::Contains(text) => {
                query.match_indices(text.as_str()).any(|(at, found)| is_whole(query, at, at + found.len()))
            }
            Self::Regex(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Pin, QueryCondition, QueryConditionKind, Rule, RuleAction, RuleActionKind};
    use prost_types::Timestamp;

    const NOW: UnixMillis = UnixMillis(1_790_000_000_000);

    fn rule(id: &str, condition: RuleCondition, rank: i32) -> Rule {
        let pin = RuleActionKind::Pin(Pin { item_id: format!("item-{id}"), rank });
        let actions = vec![RuleAction { action: Some(pin) }];
        Rule { rule_id: id.to_owned(), condition: Some(condition), actions, ..Rule::default() }
    }

    fn query(kind: QueryConditionKind) -> RuleCondition {
        RuleCondition { queries: vec![QueryCondition { kind: Some(kind) }], ..RuleCondition::default() }
    }

    fn at(seconds: i64) -> Option<Timestamp> {
        Some(Timestamp { seconds: NOW.0 / 1000 + seconds, nanos: 0 })
    }

    /// Whether two rules that pin one rank compete.
    fn compete(one: RuleCondition, other: RuleCondition) -> bool {
        let snapshot = RuleSnapshot::of(CompiledRule::new(rule("other", other, 2)).unwrap()).unwrap();
        let one = CompiledRule::new(rule("one", one, 2)).unwrap();
        let both = snapshot.competing_pins(&one, 2, NOW).count();
        assert_eq!(snapshot.competing_pins(&one, 3, NOW).count(), 0, "no rule pins this rank");
        assert_eq!(snapshot.competing_pins(snapshot.rules["other"].as_ref(), 2, NOW).count(), 0, "nor with itself");
        both == 1
    }

    #[test]
    fn pins_of_one_rank_compete_if_a_request_meets_both_conditions() {
        use QueryConditionKind::{Contains, Exact, Prefix, Regex};
        let of = |kind: fn(String) -> QueryConditionKind, text: &str| query(kind(text.to_owned()));
        for (one, other, expected) in [
            (RuleCondition::default(), RuleCondition::default(), true),
            (of(Exact, "heart"), RuleCondition::default(), true),
            (of(Exact, "Heart"), of(Exact, "heart"), true),
            (of(Exact, "Mug "), of(Exact, "mug"), true),
            (of(Prefix, " RED  Mug"), of(Prefix, "red mug"), true),
            (of(Contains, "Black & Mug"), of(Exact, "big black and mug"), true),
            (of(Exact, "heart"), of(Exact, "hearts"), false),
            (of(Exact, "red heart"), of(Contains, "heart"), true),
            (of(Exact, "red hearts"), of(Contains, "heart"), false),
            (of(Prefix, "hea"), of(Exact, "heart"), true),
            (of(Prefix, "hea"), of(Prefix, "heart"), true),
            (of(Prefix, "hea"), of(Prefix, "mug"), false),
            (of(Contains, "red heart"), of(Contains, "heart"), true),
            (of(Contains, "mug"), of(Contains, "heart"), false),
            (of(Regex, "^h"), of(Regex, "^h"), true),
            (of(Regex, "^h"), of(Exact, "heart"), false),
        ] {
            assert_eq!(compete(one.clone(), other.clone()), expected, "{one:?} {other:?}");
            assert_eq!(compete(other, one), expected);
        }
    }

    #[test]
    fn conditions_that_exclude_each_other_do_not_compete() {
        let unset = RuleCondition::default;
        let (search, browse) = (RuleRequestType::Search as i32, RuleRequestType::Browse as i32);
        let mugs = || RuleCondition { categories: vec!["Mugs".to_owned()], ..unset() };
        let of_query = || query(QueryConditionKind::Exact("heart".to_owned()));
        for (one, other, expected) in [
            (mugs(), RuleCondition { categories: vec!["lamps".to_owned(), "MUGS".to_owned()], ..unset() }, true),
            (mugs(), RuleCondition { categories: vec!["Lamps".to_owned()], ..unset() }, false),
            (RuleCondition { platforms: vec![1, 2], ..unset() }, RuleCondition { platforms: vec![2], ..unset() }, true),
            (RuleCondition { platforms: vec![1], ..unset() }, RuleCondition { platforms: vec![2], ..unset() }, false),
            (of_query(), RuleCondition { request_types: vec![search], ..unset() }, true),
            (of_query(), RuleCondition { request_types: vec![browse], ..unset() }, false),
            (
                RuleCondition { audiences: vec!["wholesale".to_owned()], ..unset() },
                RuleCondition { audiences: vec!["staff".to_owned()], ..unset() },
                false,
            ),
            (RuleCondition { end_time: at(60), ..unset() }, RuleCondition { start_time: at(30), ..unset() }, true),
            (RuleCondition { end_time: at(60), ..unset() }, RuleCondition { start_time: at(60), ..unset() }, false),
            (unset(), RuleCondition { end_time: at(-1), ..unset() }, false),
        ] {
            assert_eq!(compete(one.clone(), other.clone()), expected, "{one:?} {other:?}");
        }
    }
}
