//! Validated rules and synonyms. All mistakes of a rule are reported together.
use crate::{
    data::{Pin, QueryConditionKind, Rule, RuleActionKind, RuleCondition, RuleRequestType, SynonymSet, SynonymTerms},
    synonyms::{Synonyms, Terms},
};
use lodestone_catalog::{Filter, FilterError, is_url, path_normal};
use lodestone_core::{
    ids::{ItemId, check_name},
    text::{normalize, tokens},
    units::UnixMillis,
};
use prost::Message;
use prost_types::Timestamp;
use regex::RegexBuilder;
use sha2::{Digest, Sha256};
use std::{collections::BTreeMap, fmt::Display, sync::Arc};

/// Limits of rules.
pub mod limits {
    /// Rules, and sets of synonyms.
    pub const ENTRIES: usize = 10_000;
    /// Regular expressions in all rules. Together they are one automaton, whose states grow with their number.
    pub const REGEXES: usize = 500;
    /// Characters of a regular expression.
    pub const REGEX_CHARS: usize = 500;
    /// Bytes of a compiled regular expression.
    pub const REGEX_BYTES: usize = 256 << 10;
    /// Bytes of all regular expressions together when compiled. The time of a query is at most proportional to them and to
    /// its length.
    pub const REGEX_SET_BYTES: usize = 1 << 20;
    /// Characters of the longest query that is compared with regular expressions.
    pub const REGEX_QUERY_CHARS: usize = 200;
    /// Groups and repetitions of a regular expression that may be nested.
    pub const REGEX_DEPTH: u32 = 50;
    pub const TITLE_CHARS: usize = 200;
    /// The greatest absolute priority.
    pub const PRIORITY: i32 = 1000;
    /// Entries of each list of a condition.
    pub const CONDITIONS: usize = 100;
    /// Characters of the text of a query condition, and of a category.
    pub const CONDITION_CHARS: usize = 200;
    pub const AUDIENCE_BYTES: usize = 64;
    /// Actions of a rule.
    pub const ACTIONS: usize = 20;
    pub const BANNER_CHARS: usize = 10_000;
    pub const QUERY_CHARS: usize = 1000;
    /// The last rank of a pin.
    pub const RANK: i32 = 200;
    /// The factor of a boost. Far below the least it would be 0 as a number of 32 bits.
    pub const FACTOR: std::ops::RangeInclusive<f64> = 1e-6..=100.0;
    /// The factor of buried items.
    pub const BURY_FACTOR: f32 = 0.01;
    /// The last number of `lodestone.v1.Platform`.
    pub const PLATFORM: i32 = 6;
    /// Rules that apply to one request.
    pub const APPLIED: usize = 100;
    /// Serving configurations, of the API and of the file each.
    pub const SERVING_CONFIGS: usize = 100;
    /// Candidates of a source, and ranked candidates.
    pub const CANDIDATES: i32 = 1000;
    /// The last organic rank that exploration may show earlier.
    pub const EXPLORED: i32 = 250;
    /// Slots that exploration fills at random.
    pub const EPSILON_SLOTS: usize = 20;
    pub const TEMPERATURE: f64 = 10.0;
    /// Weights of heads of a serving configuration.
    pub const HEADS: usize = 64;
    /// Declared attributes.
    pub const ATTRIBUTES: usize = 1000;
    /// The greatest absolute weight of a head.
    pub const HEAD_WEIGHT: f64 = 1000.0;
    /// Campaigns of incentives.
    pub const CAMPAIGNS: usize = 100;
    /// Incentives of a campaign.
    pub const INCENTIVES: usize = 20;
    /// The greatest amount, in millionths of the currency's unit.
    pub const AMOUNT_MICROS: i64 = 1_000_000_000_000_000;
}

/// Seconds since 1970 of the years 1 to 9999, as `google.protobuf.Timestamp` defines them.
const TIMESTAMP_S: std::ops::RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;

/// An invalid field of a rule, a set of synonyms or a serving configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleProblem {
    /// Path of the field in the message, such as `actions[2].redirect_url`.
    pub field: String,
    /// The value, what is wrong with it, and the limit.
    pub description: String,
    /// The name of a field of items that does not exist, if a filter names one.
    pub unknown_field: Option<String>,
}

impl RuleProblem {
    pub fn new(field: impl Display, description: impl Into<String>) -> Self {
        Self { field: field.to_string(), description: description.into(), unknown_field: None }
    }
}

/// A validated rule.
#[derive(Debug, Clone)]
pub struct CompiledRule {
    /// With its etag.
    pub rule: Rule,
    pub(crate) queries: Vec<QueryTest>,
    /// In normal form.
    pub(crate) categories: Vec<String>,
    /// Inclusive.
    start: Option<UnixMillis>,
    /// Exclusive.
    end: Option<UnixMillis>,
    /// In the order of the rule.
    pub actions: Vec<Action>,
}

/// A condition on the normal form of a query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum QueryTest {
    Exact(String),
    Prefix(String),
    Contains(String),
    Regex(String),
}

/// A validated action.
#[derive(Debug, Clone)]
pub enum Action {
    Pin {
        item: ItemId,
        rank: usize,
    },
    /// Also of buried items.
    Boost {
        filter: Filter,
        factor: f32,
    },
    /// Only items that match are shown.
    Restrict(Filter),
    Redirect(String),
    Banner(String),
    ReplaceQuery(String),
    AddSynonyms(Arc<Synonyms>),
}

/// A validated set of synonyms.
#[derive(Debug, Clone)]
pub struct CompiledSynonyms {
    /// With its etag.
    pub set: SynonymSet,
    pub terms: Arc<Terms>,
}

/// Collects mistakes.
#[derive(Default)]
pub(crate) struct Problems(pub(crate) Vec<RuleProblem>);

impl Problems {
    pub(crate) fn add(&mut self, field: impl Display, description: impl Into<String>) {
        self.0.push(RuleProblem::new(field, description));
    }

    /// Adds a mistake if there are more than `limit` entries.
    pub(crate) fn count(&mut self, field: impl Display, count: usize, limit: usize) {
        if count > limit {
            self.add(field, format!("has {count} entries; the limit is {limit}"));
        }
    }

    /// Adds a mistake if a value is not within two others; also if it is not a number.
    pub(crate) fn within<T: PartialOrd + Display>(&mut self, field: impl Display, value: T, least: T, most: T) {
        if !(least <= value && value <= most) {
            self.add(field, format!("is {value}; it must be within {least} and {most}"));
        }
    }

    /// Adds a mistake if a text does not have 1 to `limit` characters, or only white space.
    fn text(&mut self, field: impl Display, text: &str, limit: usize) {
        let count = if text.len() <= limit { text.len() } else { text.chars().count() };
        if text.trim().is_empty() {
            self.add(field, format!("is empty; it must have 1 to {limit} characters"));
        } else if count > limit {
            self.add(field, format!("has {count} characters; the limit is {limit}"));
        }
    }

    /// Returns the normal form of a text.
    fn normal(&mut self, field: impl Display, text: &str, limit: usize) -> String {
        let before = self.0.len();
        self.text(&field, text, limit);
        if self.0.len() > before {
            return String::new();
        }
        let normal = normalize(text);
        if normal.is_empty() {
            self.add(field, format!("`{}` has no letter, digit or sign", shortened(text)));
        }
        normal
    }

    fn filter(&mut self, field: impl Display, text: &str) -> Option<Filter> {
        if text.trim().is_empty() {
            self.add(field, "is empty; it must select items");
            return None;
        }
        let invalid = |error: FilterError| {
            let unknown_field = error.unknown_field.clone();
            self.0.push(RuleProblem { unknown_field, ..RuleProblem::new(field, error.to_string()) });
        };
        Filter::parse(text).map_err(invalid).ok()
    }

    pub(crate) fn time(&mut self, field: impl Display, time: Option<&Timestamp>) -> Option<UnixMillis> {
        let time = time?;
        if !TIMESTAMP_S.contains(&time.seconds) || !(0..1_000_000_000).contains(&time.nanos) {
            let description = format!(
                "is {} s and {} ns since 1970; it must be within the years 1 and 9999, and have 0 to 999,999,999 ns",
                time.seconds, time.nanos
            );
            self.add(field, description);
            return None;
        }
        Some(UnixMillis(time.seconds * 1000 + i64::from(time.nanos) / 1_000_000))
    }

    pub(crate) fn id(&mut self, field: &str, id: &str) {
        if let Err(error) = check_name(id) {
            self.add(field, error.to_string());
        }
    }
}

/// Truncates a value for a message to 40 characters.
fn shortened(text: &str) -> String {
    match text.char_indices().nth(40) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// Returns the etag of an encoded message: 16 hexadecimal digits of its SHA-256.
pub(crate) fn etag(message: &impl Message) -> String {
    Sha256::digest(message.encode_to_vec()).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

impl CompiledRule {
    /// Validates a rule and sets its etag. Returns all mistakes.
    pub fn new(mut rule: Rule) -> Result<Self, Vec<RuleProblem>> {
        let mut problems = Problems::default();
        problems.id("rule_id", &rule.rule_id);
        if rule.title.chars().count() > limits::TITLE_CHARS {
            let count = rule.title.chars().count();
            problems.add("title", format!("has {count} characters; the limit is {}", limits::TITLE_CHARS));
        }
        let limit = limits::PRIORITY;
        if !(-limit..=limit).contains(&rule.priority) {
            problems.add("priority", format!("is {}; it must be within -{limit} and {limit}", rule.priority));
        }
        let unset = RuleCondition::default();
        let condition = rule.condition.as_ref().unwrap_or(&unset);
        let queries = queries(&mut problems, condition);
        let categories = categories(&mut problems, &condition.categories);
        lists(&mut problems, condition);
        let start = problems.time("condition.start_time", condition.start_time.as_ref());
        let end = problems.time("condition.end_time", condition.end_time.as_ref());
        if let (Some(start), Some(end)) = (start, end)
            && start >= end
        {
            let description = format!("is {} ms since 1970, not after the start_time {}", end.0, start.0);
            problems.add("condition.end_time", description);
        }
        let actions = actions(&mut problems, &rule, !condition.queries.is_empty());
        match problems.0.is_empty() {
            false => Err(problems.0),
            true => {
                rule.etag.clear();
                rule.etag = etag(&rule);
                Ok(Self { rule, queries, categories, start, end, actions })
            }
        }
    }

    pub fn id(&self) -> &str {
        &self.rule.rule_id
    }

    /// Returns the rule as the log stores it.
    pub fn stored(&self) -> Rule {
        Rule { etag: String::new(), ..self.rule.clone() }
    }

    /// Returns the rule without start and end.
    pub fn without_dates(self) -> Self {
        Self { start: None, end: None, ..self }
    }

    /// Returns whether the rule applies at a time.
    pub(crate) fn is_current(&self, at: UnixMillis) -> bool {
        self.start.is_none_or(|start| start <= at) && self.end.is_none_or(|end| at < end)
    }

    /// Returns whether the rule does not apply from a time on.
    pub(crate) fn has_ended(&self, at: UnixMillis) -> bool {
        self.end.is_some_and(|end| end <= at)
    }

    /// Returns whether there is a time at which both rules apply.
    pub(crate) fn dates_meet(&self, other: &Self) -> bool {
        let precedes = |one: &Self, other: &Self| one.end.zip(other.start).is_some_and(|(end, start)| end <= start);
        !precedes(self, other) && !precedes(other, self)
    }

    /// Returns the serving configurations that its condition names.
    pub fn serving_configs(&self) -> &[String] {
        self.rule.condition.as_ref().map_or(&[], |condition| &condition.serving_configs)
    }

    /// Returns its regular expressions.
    pub(crate) fn regexes(&self) -> impl Iterator<Item = &str> {
        self.queries.iter().filter_map(|query| match query {
            QueryTest::Regex(pattern) => Some(pattern.as_str()),
            _ => None,
        })
    }
}

fn queries(problems: &mut Problems, condition: &RuleCondition) -> Vec<QueryTest> {
    problems.count("condition.queries", condition.queries.len(), limits::CONDITIONS);
    let mut tests = Vec::new();
    for (index, query) in condition.queries.iter().take(limits::CONDITIONS).enumerate() {
        let field = |kind: &str| format!("condition.queries[{index}].{kind}");
        let chars = limits::CONDITION_CHARS;
        tests.push(match &query.kind {
            None => {
                let description = "is empty; set exact, prefix, contains or regex";
                problems.add(format_args!("condition.queries[{index}]"), description);
                continue;
            }
            Some(QueryConditionKind::Exact(text)) => QueryTest::Exact(problems.normal(field("exact"), text, chars)),
            Some(QueryConditionKind::Prefix(text)) => QueryTest::Prefix(problems.normal(field("prefix"), text, chars)),
            Some(QueryConditionKind::Contains(text)) => {
                QueryTest::Contains(problems.normal(field("contains"), text, chars))
            }
            Some(QueryConditionKind::Regex(pattern)) => {
                let before = problems.0.len();
                problems.text(field("regex"), pattern, limits::REGEX_CHARS);
                if problems.0.len() == before
                    && let Err(error) = regex(pattern)
                {
                    problems.add(field("regex"), error);
                }
                QueryTest::Regex(pattern.clone())
            }
        });
    }
    tests
}

/// Checks that a regular expression compiles within its limits.
fn regex(pattern: &str) -> Result<(), String> {
    let built = RegexBuilder::new(pattern).size_limit(limits::REGEX_BYTES).nest_limit(limits::REGEX_DEPTH).build();
    built.map(drop).map_err(|error| match error {
        regex::Error::CompiledTooBig(bytes) => {
            format!("`{}` has more than {bytes} bytes when compiled; use fewer repetitions", shortened(pattern))
        }
        // The message shows the place in several lines.
        error => {
            let reason = error.to_string();
            let reason = reason.lines().last().unwrap_or_default();
            let reason = reason.strip_prefix("error: ").unwrap_or(reason);
            format!("`{}` is not a regular expression: {reason}", shortened(pattern))
        }
    })
}

/// Returns the normal forms of categories, each of one level or a path.
fn categories(problems: &mut Problems, names: &[String]) -> Vec<String> {
    problems.count("condition.categories", names.len(), limits::CONDITIONS);
    for (index, name) in names.iter().take(limits::CONDITIONS).enumerate() {
        let field = format!("condition.categories[{index}]");
        let before = problems.0.len();
        problems.normal(&field, name, limits::CONDITION_CHARS);
        if problems.0.len() == before && name.split('>').any(|level| normalize(level).is_empty()) {
            let description = format!("`{}` has an empty level; single `>` separate levels", shortened(name));
            problems.add(&field, description);
        }
    }
    names.iter().take(limits::CONDITIONS).map(|name| path_normal(name)).collect()
}

fn lists(problems: &mut Problems, condition: &RuleCondition) {
    problems.count("condition.audiences", condition.audiences.len(), limits::CONDITIONS);
    for (index, audience) in condition.audiences.iter().take(limits::CONDITIONS).enumerate() {
        if audience.is_empty() || audience.len() > limits::AUDIENCE_BYTES {
            let description = format!("has {} bytes; it must have 1 to {}", audience.len(), limits::AUDIENCE_BYTES);
            problems.add(format_args!("condition.audiences[{index}]"), description);
        }
    }
    let of_enum = |problems: &mut Problems, field: &str, numbers: &[i32], last: i32, name: &str| {
        problems.count(field, numbers.len(), limits::CONDITIONS);
        for (index, number) in numbers.iter().take(limits::CONDITIONS).enumerate() {
            if !(1..=last).contains(number) {
                let description = format!("{number} is not a {name}; use 1 to {last}");
                problems.add(format_args!("{field}[{index}]"), description);
            }
        }
    };
    problems.count("condition.serving_configs", condition.serving_configs.len(), limits::CONDITIONS);
    of_enum(problems, "condition.platforms", &condition.platforms, limits::PLATFORM, "Platform");
    let last = RuleRequestType::Suggest as i32;
    of_enum(problems, "condition.request_types", &condition.request_types, last, "RuleRequestType");
}

fn actions(problems: &mut Problems, rule: &Rule, has_queries: bool) -> Vec<Action> {
    if rule.actions.is_empty() {
        problems.add("actions", format!("is empty; a rule has 1 to {} actions", limits::ACTIONS));
    }
    problems.count("actions", rule.actions.len(), limits::ACTIONS);
    let (mut actions, mut firsts) = (Vec::new(), BTreeMap::new());
    for (index, action) in rule.actions.iter().take(limits::ACTIONS).enumerate() {
        let Some(kind) = &action.action else {
            problems.add(format_args!("actions[{index}]"), "is empty; set one of its fields");
            continue;
        };
        let name = action_name(kind);
        let field = format!("actions[{index}].{name}");
        if let RuleActionKind::RedirectUrl(_) | RuleActionKind::ReplaceQuery(_) = kind
            && let Some(first) = firsts.insert(name, index)
        {
            problems.add(&field, format!("is the second one, after that of actions[{first}]; a rule has one"));
        }
        if let RuleActionKind::ReplaceQuery(_) | RuleActionKind::AddSynonyms(_) = kind
            && !has_queries
        {
            problems.add(&field, "needs condition.queries, because it would change every query");
        }
        if let RuleActionKind::Pin(pin) = kind {
            repeated_pin(problems, &field, pin, &rule.actions[..index]);
        }
        actions.extend(self::action(problems, &field, kind));
    }
    actions
}

fn action_name(kind: &RuleActionKind) -> &'static str {
    match kind {
        RuleActionKind::Pin(_) => "pin",
        RuleActionKind::Boost(_) => "boost",
        RuleActionKind::Bury(_) => "bury",
        RuleActionKind::Hide(_) => "hide",
        RuleActionKind::Filter(_) => "filter",
        RuleActionKind::RedirectUrl(_) => "redirect_url",
        RuleActionKind::Banner(_) => "banner",
        RuleActionKind::ReplaceQuery(_) => "replace_query",
        RuleActionKind::AddSynonyms(_) => "add_synonyms",
    }
}

/// Adds a mistake if an earlier pin of the rule has the rank or the item.
fn repeated_pin(problems: &mut Problems, field: &str, pin: &Pin, before: &[crate::data::RuleAction]) {
    for (first, action) in before.iter().enumerate() {
        let Some(RuleActionKind::Pin(other)) = &action.action else { continue };
        if other.rank == pin.rank {
            let description = format!("is {}, the rank of actions[{first}]; a rank takes one pin", pin.rank);
            problems.add(format_args!("{field}.rank"), description);
        }
        if other.item_id == pin.item_id {
            let id = shortened(&pin.item_id);
            let description = format!("is `{id}`, the item of actions[{first}]; an item takes one pin");
            problems.add(format_args!("{field}.item_id"), description);
        }
    }
}

fn action(problems: &mut Problems, field: &str, kind: &RuleActionKind) -> Option<Action> {
    Some(match kind {
        RuleActionKind::Pin(pin) => {
            let item = ItemId::parse(&pin.item_id);
            let item = item.map_err(|error| problems.add(format_args!("{field}.item_id"), error.to_string())).ok();
            if !(1..=limits::RANK).contains(&pin.rank) {
                let description = format!("is {}; it must be within 1 and {}", pin.rank, limits::RANK);
                problems.add(format_args!("{field}.rank"), description);
            }
            Action::Pin { item: item?, rank: pin.rank.max(1) as usize }
        }
        RuleActionKind::Boost(boost) => {
            if !limits::FACTOR.contains(&boost.factor) {
                let description = format!("is {}; it must be within 0.000001 and 100", boost.factor);
                problems.add(format_args!("{field}.factor"), description);
            }
            let filter = problems.filter(format_args!("{field}.filter"), &boost.filter)?;
            Action::Boost { filter, factor: boost.factor as f32 }
        }
        RuleActionKind::Bury(filter) => {
            Action::Boost { filter: problems.filter(field, filter)?, factor: limits::BURY_FACTOR }
        }
        RuleActionKind::Hide(filter) => Action::Restrict(problems.filter(field, filter)?.negated()),
        RuleActionKind::Filter(filter) => Action::Restrict(problems.filter(field, filter)?),
        RuleActionKind::RedirectUrl(url) => {
            problems.text(field, url, lodestone_catalog::limits::URL_CHARS);
            if !url.is_empty() && !is_url(url) {
                let problem = "is neither an http or https URL without spaces nor a path that begins with one /";
                problems.add(field, format!("`{}` {problem}", shortened(url)));
            }
            Action::Redirect(url.clone())
        }
        RuleActionKind::Banner(payload) => {
            problems.text(field, payload, limits::BANNER_CHARS);
            Action::Banner(payload.clone())
        }
        RuleActionKind::ReplaceQuery(query) => {
            let before = problems.0.len();
            problems.text(field, query, limits::QUERY_CHARS);
            if problems.0.len() == before && !tokens(query).iter().any(|token| token.kind.is_sequential()) {
                problems.add(field, format!("`{}` has no word, and would find nothing", shortened(query)));
            }
            Action::ReplaceQuery(query.clone())
        }
        RuleActionKind::AddSynonyms(synonyms) => {
            let terms = terms(problems, field, synonyms)?;
            Action::AddSynonyms(Arc::new(Synonyms::of([&Arc::new(terms)])))
        }
    })
}

/// Parses terms. Returns none if there are mistakes.
fn terms(problems: &mut Problems, field: &str, synonyms: &SynonymTerms) -> Option<Terms> {
    let parsed = Terms::parse(&synonyms.terms, &synonyms.replacements);
    let description = |(at, problem): (crate::synonyms::TermAt, crate::synonyms::SynonymsProblem)| {
        problems.add(format_args!("{field}.{at}"), problem.to_string());
    };
    parsed.map_err(|found| found.into_iter().for_each(description)).ok()
}

impl CompiledSynonyms {
    /// Validates a set and sets its etag. Returns all mistakes.
    pub fn new(mut set: SynonymSet) -> Result<Self, Vec<RuleProblem>> {
        let mut problems = Problems::default();
        problems.id("synonym_set_id", &set.synonym_set_id);
        let terms = match &set.synonyms {
            Some(synonyms) => terms(&mut problems, "synonyms", synonyms),
            None => {
                problems.add("synonyms", "is missing; set its terms");
                None
            }
        };
        match terms.filter(|_| problems.0.is_empty()) {
            None => Err(problems.0),
            Some(terms) => {
                set.etag.clear();
                set.etag = etag(&set);
                Ok(Self { set, terms: Arc::new(terms) })
            }
        }
    }

    pub fn id(&self) -> &str {
        &self.set.synonym_set_id
    }

    /// Returns the set as the log stores it.
    pub fn stored(&self) -> SynonymSet {
        SynonymSet { etag: String::new(), ..self.set.clone() }
    }
}
