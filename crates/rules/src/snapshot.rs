//! An immutable view of all rules, synonyms, serving configurations and declared attributes, of which a request loads one.
use crate::{
    attributes::CompiledAttribute,
    campaign::CompiledCampaign,
    compiled::{CompiledRule, CompiledSynonyms, limits},
    conditions::{ConditionIndex, RequestFacts, check_regex_bytes},
    serving_config::CompiledServingConfig,
    synonyms::Synonyms,
};
use std::{collections::BTreeMap, sync::Arc};

/// All rules, synonyms, serving configurations and declared attributes at one moment.
#[derive(Default)]
pub struct RuleSnapshot {
    pub rules: BTreeMap<String, Arc<CompiledRule>>,
    pub synonym_sets: BTreeMap<String, Arc<CompiledSynonyms>>,
    /// Those of the API, without those of the serving file.
    pub serving_configs: BTreeMap<String, Arc<CompiledServingConfig>>,
    /// Declared attributes by their names.
    pub attributes: BTreeMap<String, Arc<CompiledAttribute>>,
    pub campaigns: BTreeMap<String, Arc<CompiledCampaign>>,
    /// The meanings of all sets.
    pub synonyms: Arc<Synonyms>,
    /// Highest priority first, then by id.
    pub(crate) ordered: Vec<Arc<CompiledRule>>,
    pub(crate) index: ConditionIndex,
}

/// The limit that the regular expressions of all rules exceed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RegexLimit {
    /// Their number is above [`limits::REGEXES`].
    Count(usize),
    /// They have more than [`limits::REGEX_SET_BYTES`] when compiled.
    Bytes,
}

impl RuleSnapshot {
    /// Returns a snapshot that has one rule. Fails if its regular expressions do not compile.
    pub fn of(rule: CompiledRule) -> Result<Self, String> {
        let rule = Arc::new(rule);
        let ordered = vec![rule.clone()];
        Ok(Self {
            index: ConditionIndex::build(&ordered, &ConditionIndex::default())?,
            rules: BTreeMap::from([(rule.id().to_owned(), rule)]),
            ordered,
            ..Self::default()
        })
    }

    /// Returns the rules that apply to a request, in their order; at most the first [`limits::APPLIED`].
    pub fn applying<'a>(&'a self, facts: &'a RequestFacts) -> impl Iterator<Item = &'a Arc<CompiledRule>> {
        let found = self.index.find(facts).into_iter().filter_map(|number| self.ordered.get(number as usize));
        found.filter(|rule| rule.applies_except_query(facts)).take(limits::APPLIED)
    }

    /// Returns whether an attribute is declared, and not as one that facets count.
    pub fn refuses_facets_of(&self, attribute: &str) -> bool {
        self.attributes.get(attribute).is_some_and(|known| !known.declaration.facetable)
    }

    /// Returns whether there is no rule.
    pub fn has_no_rules(&self) -> bool {
        self.ordered.is_empty()
    }

    /// Checks the regular expressions of all rules, with `new` in place of the rule with its id, against the limits of
    /// all of them together.
    pub fn check_regexes(&self, new: &CompiledRule) -> Result<(), RegexLimit> {
        if new.regexes().next().is_none() {
            return Ok(());
        }
        let others = self.rules.values().filter(|rule| rule.id() != new.id());
        let all: Vec<&str> = others.flat_map(|rule| rule.regexes()).chain(new.regexes()).collect();
        match all.len() {
            count if count > limits::REGEXES => Err(RegexLimit::Count(count)),
            _ => check_regex_bytes(&all).map_err(|_| RegexLimit::Bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Boost, QueryCondition, QueryConditionKind, Rule, RuleAction, RuleActionKind, RuleBook, RuleChange,
        RuleCondition, RuleRequestType,
    };
    use lodestone_core::{text::normalize, units::UnixMillis};
    use proptest::prelude::*;
    use prost_types::Timestamp;
    use std::time::Instant;

    fn action() -> RuleAction {
        let boost = Boost { filter: "in_stock".to_owned(), factor: 2.0 };
        RuleAction { action: Some(RuleActionKind::Boost(boost)) }
    }

    fn rule(id: String, priority: i32, condition: RuleCondition) -> Rule {
        Rule { rule_id: id, priority, condition: Some(condition), actions: vec![action()], ..Rule::default() }
    }

    fn snapshot(rules: impl IntoIterator<Item = Rule>) -> RuleSnapshot {
        let mut book = RuleBook::default();
        rules.into_iter().for_each(|rule| book.apply(RuleChange::PutRule(rule)).unwrap());
        book.snapshot(&RuleSnapshot::default()).unwrap()
    }

    fn query(kind: QueryConditionKind) -> QueryCondition {
        QueryCondition { kind: Some(kind) }
    }

    /// Texts of few words, so that conditions hold for many queries.
    fn text() -> impl Strategy<Value = String> {
        prop::collection::vec(prop::sample::select(vec!["red", "mug", "mugs", "Ré", "杯", "杯子", "a-b", "7"]), 1..4)
            .prop_flat_map(|words| prop::sample::select(vec![words.join(" "), words.join("")]))
    }

    fn condition() -> impl Strategy<Value = RuleCondition> {
        let kind = prop_oneof![
            text().prop_map(QueryConditionKind::Exact),
            text().prop_map(QueryConditionKind::Prefix),
            text().prop_map(QueryConditionKind::Contains),
            prop::sample::select(vec!["^red", "mugs?$", r"\d", "m.g", "(red|杯) ?mug", ".*"])
                .prop_map(|pattern| QueryConditionKind::Regex(pattern.to_owned())),
        ];
        let names = |names: Vec<&'static str>| prop::collection::vec(prop::sample::select(names), 0..3);
        let numbers = |last| prop::collection::vec(1..=last, 0..3);
        let time = || prop::option::weighted(0.3, 0i64..20);
        let texts = (names(vec!["Mugs", "LAMPS"]), names(vec!["vip", "trade"]), names(vec!["default", "explore"]));
        (prop::collection::vec(kind, 0..3), texts, (numbers(6), numbers(3)), (time(), time())).prop_map(
            |(kinds, (categories, audiences, serving_configs), (platforms, request_types), (start, end))| {
                let texts = |names: Vec<&str>| names.into_iter().map(str::to_owned).collect();
                let time = |seconds: i64| Timestamp { seconds, nanos: 0 };
                RuleCondition {
                    queries: kinds.into_iter().map(query).collect(),
                    categories: texts(categories),
                    audiences: texts(audiences),
                    platforms,
                    request_types,
                    start_time: start.map(time),
                    end_time: end.filter(|end| start.is_none_or(|start| start < *end)).map(time),
                    serving_configs: texts(serving_configs),
                }
            },
        )
    }

    proptest! {
        #[test]
        fn the_index_finds_the_rules_that_a_scan_of_all_finds(
            conditions in prop::collection::vec((condition(), -2i32..3), 0..30),
            requests in prop::collection::vec((prop::option::of(text()), any::<bool>(), any::<bool>(), 0i32..7, 0i64..20, any::<bool>()), 1..8),
        ) {
            let rules: Vec<Rule> = conditions.into_iter().enumerate()
                .map(|(number, (condition, priority))| rule(format!("r{number}"), priority, condition)).collect();
            let snapshot = snapshot(rules);
            for (query, is_in_category, has_audience, platform, second, recommends) in requests {
                let query = query.map(|query| normalize(&query));
                let categories = [if is_in_category { "mugs" } else { "lamps" }];
                let audiences = ["vip".to_owned()];
                let facts = RequestFacts {
                    request_type: match (&query, recommends) {
                        (Some(_), _) => RuleRequestType::Search,
                        (None, false) => RuleRequestType::Browse,
                        (None, true) => RuleRequestType::Recommend,
                    },
                    query: query.as_deref(),
                    categories: &categories,
                    audiences: if has_audience { &audiences } else { &[] },
                    platform,
                    serving_config: if is_in_category { "default" } else { "explore" },
                    at: UnixMillis(second * 1000),
                };
                let found: Vec<&str> = snapshot.applying(&facts).map(|rule| rule.id()).collect();
                let mut scanned: Vec<&CompiledRule> = snapshot.rules.values().map(Arc::as_ref).filter(|rule| rule.applies(&facts)).collect();
                scanned.sort_by(|a, b| b.rule.priority.cmp(&a.rule.priority).then(a.id().cmp(b.id())));
                prop_assert_eq!(found, scanned.iter().map(|rule| rule.id()).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn a_text_is_contained_as_whole_words() {
        let contains = |text: &str| query(QueryConditionKind::Contains(text.to_owned()));
        let condition = |text: &str| RuleCondition { queries: vec![contains(text)], ..RuleCondition::default() };
        let snapshot =
            snapshot(["Ring", "gold ring", "杯"].map(|text| rule(text.len().to_string(), 0, condition(text))));
        let found = |query: &str| {
            let query = normalize(query);
            let facts = RequestFacts {
                request_type: RuleRequestType::Search,
                query: Some(&query),
                categories: &[],
                audiences: &[],
                platform: 0,
                serving_config: "default",
                at: UnixMillis(0),
            };
            snapshot.applying(&facts).map(|rule| rule.id().to_owned()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!((found("spring"), found("a RING!"), found("gold  ring 2")), ("".into(), "4".into(), "4 9".into()));
        assert_eq!(found("马克杯子"), "3", "a script without spaces has words of any letters");
    }

    /// Prints the time of finding 20 of 10,000 rules, with
    /// `cargo test --release --workspace -- --ignored --nocapture time_of_20_active_rules`.
    #[test]
    #[ignore = "a measurement"]
    fn time_of_20_active_rules_of_10_000() {
        let word = |number: usize| format!("word{number} thing{}", number % 700);
        let rules = (0..10_000).map(|number| {
            let queries = match number % 20 {
                // 20 rules that apply: 5 of each kind.
                _ if number < 20 => match number % 4 {
                    0 => vec![QueryConditionKind::Exact("red mug 42".into())],
                    1 => vec![QueryConditionKind::Prefix("red mu".into())],
                    2 => vec![QueryConditionKind::Contains("mug".into())],
                    _ => vec![QueryConditionKind::Regex("^red .*4".into())],
                },
                0..7 => vec![QueryConditionKind::Exact(word(number))],
                7..12 => vec![QueryConditionKind::Prefix(word(number))],
                12..18 => vec![QueryConditionKind::Contains(word(number))],
                18 => Vec::new(),
                _ if number % 40 == 19 => vec![QueryConditionKind::Regex(format!("^(word|thing){number} ?[a-z]*$"))],
                _ => vec![QueryConditionKind::Exact(word(number))],
            };
            let categories = if queries.is_empty() { vec![format!("category {number}")] } else { Vec::new() };
            let queries = queries.into_iter().map(query).collect();
            rule(format!("r{number}"), 0, RuleCondition { queries, categories, ..RuleCondition::default() })
        });
        let begun = Instant::now();
        let mut book = RuleBook::default();
        rules.into_iter().for_each(|rule| book.apply(RuleChange::PutRule(rule)).unwrap());
        let compiled = begun.elapsed();
        let begun = Instant::now();
        let snapshot = book.snapshot(&RuleSnapshot::default()).unwrap();
        let built = begun.elapsed();
        book.apply(RuleChange::PutRule(rule("r9000".into(), 1, RuleCondition::default()))).unwrap();
        let begun = Instant::now();
        let rebuilt = book.snapshot(&snapshot).unwrap();
        println!(
            "10,000 rules compile in {compiled:?}, their index is built in {built:?}, after a change in {:?}",
            begun.elapsed()
        );
        drop(rebuilt);
        for query in
            ["red mug 42", "red mug 42 and a longer text of about eighty characters, as shoppers rarely write", "lamp"]
        {
            let normal = normalize(query);
            let facts = RequestFacts {
                request_type: RuleRequestType::Search,
                query: Some(&normal),
                categories: &["mugs"],
                audiences: &[],
                platform: 1,
                serving_config: "default",
                at: UnixMillis(0),
            };
            let count = snapshot.applying(&facts).count();
            let begun = Instant::now();
            let repeats = 20_000;
            let sum: usize = (0..repeats).map(|_| snapshot.applying(std::hint::black_box(&facts)).count()).sum();
            println!("`{query}`: {count} rules apply, {:?} each", begun.elapsed() / repeats);
            assert_eq!(sum, count * repeats as usize);
        }
    }
}
