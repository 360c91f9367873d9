//! The index of conditions: finds the rules that apply to a request without a look at the others.
use crate::{
    compiled::{CompiledRule, QueryTest, limits},
    data::RuleRequestType,
};
use ahash::AHashMap;
use aho_corasick::{AhoCorasick, AhoCorasickKind, MatchKind};
use lodestone_catalog::is_word_boundary;
use lodestone_core::units::UnixMillis;
use regex::{RegexSet, RegexSetBuilder};
use std::sync::Arc;

/// The properties of a request on which rules have conditions.
#[derive(Debug, Clone, Copy)]
pub struct RequestFacts<'a> {
    pub request_type: RuleRequestType,
    /// The normal form of the query as it was sent. None: no query.
    pub query: Option<&'a str>,
    /// The normal forms of the categories that the filter selects.
    pub categories: &'a [&'a str],
    pub audiences: &'a [String],
    /// The number of `lodestone.v1.Platform`; 0: unknown.
    pub platform: i32,
    pub serving_config: &'a str,
    pub at: UnixMillis,
}

impl CompiledRule {
    /// Returns whether all conditions but those on the query hold.
    pub(crate) fn applies_except_query(&self, facts: &RequestFacts) -> bool {
        let Some(condition) = &self.rule.condition else { return true };
        let is_listed = |numbers: &[i32], number: i32| numbers.is_empty() || numbers.contains(&number);
        let has_category = || self.categories.iter().any(|category| facts.categories.contains(&category.as_str()));
        let has_audience = || condition.audiences.iter().any(|audience| facts.audiences.contains(audience));
        let has_config = || condition.serving_configs.iter().any(|config| config == facts.serving_config);
        is_listed(&condition.request_types, facts.request_type as i32)
            && is_listed(&condition.platforms, facts.platform)
            && self.is_current(facts.at)
            && (self.categories.is_empty() || has_category())
            && (condition.audiences.is_empty() || has_audience())
            && (condition.serving_configs.is_empty() || has_config())
    }

    /// Returns whether the rule applies, without an index.
    #[cfg(test)]
    pub(crate) fn applies(&self, facts: &RequestFacts) -> bool {
        let holds = |test: &QueryTest, query: &str| match test {
            QueryTest::Exact(text) => query == text,
            QueryTest::Prefix(text) => query.starts_with(text.as_str()),
            QueryTest::Contains(text) => {
                query.match_indices(text.as_str()).any(|(at, found)| is_whole(query, at, at + found.len()))
            }
            QueryTest::Regex(pattern) => {
                is_short(query) && regex::Regex::new(pattern).is_ok_and(|regex| regex.is_match(query))
            }
        };
        let has_query = || facts.query.is_some_and(|query| self.queries.iter().any(|test| holds(test, query)));
        (self.queries.is_empty() || has_query()) && self.applies_except_query(facts)
    }
}

/// Returns whether a query is compared with regular expressions.
fn is_short(query: &str) -> bool {
    query.chars().nth(limits::REGEX_QUERY_CHARS).is_none()
}

/// Checks that expressions, which are each within their limit, are within [`limits::REGEX_SET_BYTES`].
pub(crate) fn check_regex_bytes(patterns: &[&str]) -> Result<(), regex::Error> {
    let mut builder = RegexSetBuilder::new(patterns);
    builder.size_limit(limits::REGEX_SET_BYTES).nest_limit(limits::REGEX_DEPTH).build().map(drop)
}

/// Returns whether a part of a text begins and ends at word boundaries.
pub(crate) fn is_whole(text: &str, begin: usize, end: usize) -> bool {
    let boundary = |at: usize| is_word_boundary(text[..at].chars().next_back(), text[at..].chars().next());
    boundary(begin) && boundary(end)
}

/// Finds rules by one of their conditions: those on the query, otherwise on the category, otherwise on the audience.
/// Rules are numbers in the order of priority.
#[derive(Default)]
pub(crate) struct ConditionIndex {
    exact: AHashMap<String, Vec<u32>>,
    prefixes: Prefixes,
    contains: Option<Contains>,
    regexes: Option<Regexes>,
    categories: AHashMap<String, Vec<u32>>,
    audiences: AHashMap<String, Vec<u32>>,
    /// Rules without any of these conditions.
    others: Vec<u32>,
}

/// Prefixes in ascending order.
#[derive(Default)]
struct Prefixes(Vec<Prefix>);

struct Prefix {
    text: String,
    rules: Vec<u32>,
    /// The index of the longest other prefix with which this one begins.
    parent: Option<usize>,
}

struct Contains {
    patterns: Arc<[String]>,
    automaton: Arc<AhoCorasick>,
    /// By pattern.
    rules: Vec<Vec<u32>>,
}

struct Regexes {
    patterns: Arc<[String]>,
    set: Arc<RegexSet>,
    /// By pattern.
    rules: Vec<Vec<u32>>,
}

impl ConditionIndex {
    /// Builds the index of rules in the order of priority. Takes the automata of `before` if their patterns are the
    /// same, because they take most of the time.
    pub(crate) fn build(rules: &[Arc<CompiledRule>], before: &Self) -> Result<Self, String> {
        let mut index = Self::default();
        let (mut prefixes, mut contains, mut regexes) = (AHashMap::new(), AHashMap::new(), AHashMap::new());
        for (number, rule) in (0u32..).zip(rules) {
            for test in &rule.queries {
                let (table, text) = match test {
                    QueryTest::Exact(text) => (&mut index.exact, text),
                    QueryTest::Prefix(text) => (&mut prefixes, text),
                    QueryTest::Contains(text) => (&mut contains, text),
                    QueryTest::Regex(pattern) => (&mut regexes, pattern),
                };
                table.entry(text.clone()).or_default().push(number);
            }
            let audiences = rule.rule.condition.as_ref().map_or(&[][..], |condition| &condition.audiences);
            if !rule.queries.is_empty() {
                continue;
            }
            let (table, names) = match (rule.categories.is_empty(), audiences.is_empty()) {
                (false, _) => (&mut index.categories, &rule.categories[..]),
                (true, false) => (&mut index.audiences, audiences),
                (true, true) => {
                    index.others.push(number);
                    continue;
                }
            };
            names.iter().for_each(|name| table.entry(name.clone()).or_default().push(number));
        }
        index.prefixes = Prefixes::of(prefixes);
        index.contains = Contains::of(contains, before.contains.as_ref())?;
        index.regexes = Regexes::of(regexes, before.regexes.as_ref())?;
        Ok(index)
    }

    /// Returns the numbers of the rules of which a condition in the index holds, ascending.
    pub(crate) fn find(&self, facts: &RequestFacts) -> Vec<u32> {
        let mut found = self.others.clone();
        let mut add = |rules: Option<&Vec<u32>>| found.extend(rules.into_iter().flatten());
        facts.categories.iter().for_each(|category| add(self.categories.get(*category)));
        facts.audiences.iter().for_each(|audience| add(self.audiences.get(audience)));
        if let Some(query) = facts.query {
            add(self.exact.get(query));
            self.prefixes.of_text(query).for_each(|prefix| add(Some(&prefix.rules)));
            if let Some(Contains { automaton, rules, .. }) = &self.contains {
                let matches = automaton.find_overlapping_iter(query);
                let whole = matches.filter(|found| is_whole(query, found.start(), found.end()));
                whole.for_each(|found| add(rules.get(found.pattern().as_usize())));
            }
            if let Some(Regexes { set, rules, .. }) = self.regexes.as_ref().filter(|_| is_short(query)) {
                set.matches(query).into_iter().for_each(|pattern| add(rules.get(pattern)));
            }
        }
        found.sort_unstable();
        found.dedup();
        found
    }
}

/// Returns the entries of a table in the order of their texts.
fn sorted(table: AHashMap<String, Vec<u32>>) -> (Vec<String>, Vec<Vec<u32>>) {
    let mut entries: Vec<(String, Vec<u32>)> = table.into_iter().collect();
    entries.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    entries.into_iter().unzip()
}

impl Prefixes {
    fn of(table: AHashMap<String, Vec<u32>>) -> Self {
        let (texts, rules) = sorted(table);
        let mut prefixes: Vec<Prefix> = Vec::with_capacity(texts.len());
        // The entries with which the last one begins, the longest last.
        let mut open: Vec<usize> = Vec::new();
        for (index, (text, rules)) in texts.into_iter().zip(rules).enumerate() {
            while open.pop_if(|at| !text.starts_with(prefixes[*at].text.as_str())).is_some() {}
            prefixes.push(Prefix { text, rules, parent: open.last().copied() });
            open.push(index);
        }
        Self(prefixes)
    }

    /// Returns the prefixes with which a text begins. The greatest entry that is not above the text begins with all of
    /// them.
    fn of_text<'a>(&'a self, text: &'a str) -> impl Iterator<Item = &'a Prefix> {
        let last = self.0.partition_point(|prefix| prefix.text.as_str() <= text).checked_sub(1);
        let chain = std::iter::successors(last, |at| self.0[*at].parent).map(|at| &self.0[at]);
        chain.filter(move |prefix| text.starts_with(prefix.text.as_str()))
    }
}

impl Contains {
    fn of(table: AHashMap<String, Vec<u32>>, before: Option<&Self>) -> Result<Option<Self>, String> {
        if table.is_empty() {
            return Ok(None);
        }
        let (patterns, rules) = sorted(table);
        if let Some(before) = before.filter(|before| *before.patterns == *patterns) {
            let (patterns, automaton) = (before.patterns.clone(), before.automaton.clone());
            return Ok(Some(Self { patterns, automaton, rules }));
        }
        let builder = &mut AhoCorasick::builder();
        let builder = builder.match_kind(MatchKind::Standard).kind(Some(AhoCorasickKind::ContiguousNFA));
        let automaton = builder.build(&patterns).map_err(|error| error.to_string())?;
        Ok(Some(Self { patterns: patterns.into(), automaton: Arc::new(automaton), rules }))
    }
}

impl Regexes {
    fn of(table: AHashMap<String, Vec<u32>>, before: Option<&Self>) -> Result<Option<Self>, String> {
        if table.is_empty() {
            return Ok(None);
        }
        let (patterns, rules) = sorted(table);
        if let Some(before) = before.filter(|before| *before.patterns == *patterns) {
            let (patterns, set) = (before.patterns.clone(), before.set.clone());
            return Ok(Some(Self { patterns, set, rules }));
        }
        let mut builder = RegexSetBuilder::new(&patterns);
        // Writes check a smaller limit. A rule that the log has must not stop a replay.
        builder.size_limit(2 * limits::REGEXES * limits::REGEX_BYTES).nest_limit(limits::REGEX_DEPTH);
        let set = builder.build().map_err(|error| error.to_string())?;
        Ok(Some(Self { patterns: patterns.into(), set: Arc::new(set), rules }))
    }
}
