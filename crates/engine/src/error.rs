//! Outcomes of writes, and the errors of the engine.
use crate::attributes::AttributeConflicts;
use lodestone_catalog::AttributeKind;
use lodestone_events::{LogError, Outcome, RepeatedLine, StaleField, Written};
use lodestone_pipeline::{
    answers::{AnswerLogError, ReplayError},
    run::RequestField,
    serving::UnknownConfig,
};
use lodestone_rules::{EntryKind, RuleProblem};
use std::time::Duration;

/// The outcome of a written event or item, in the order of the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteOutcome {
    Accepted,
    Duplicate,
    Created,
    Replaced,
    Updated,
    /// The item already has all written values.
    Unchanged,
    /// All fields have later values, or the item was deleted later; nothing changed.
    Stale,
    Deleted,
    /// No such item exists; nothing changed.
    Unknown,
}

impl From<Outcome> for WriteOutcome {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Accepted => Self::Accepted,
            Outcome::Duplicate => Self::Duplicate,
            Outcome::Created => Self::Created,
            Outcome::Replaced => Self::Replaced,
            Outcome::Updated => Self::Updated,
            Outcome::Unchanged => Self::Unchanged,
            Outcome::Stale => Self::Stale,
            Outcome::Deleted => Self::Deleted,
            Outcome::Unknown => Self::Unknown,
        }
    }
}

impl From<Written> for WriteReport {
    fn from(Written { outcomes, repeated_lines, stale_fields, log_position }: Written) -> Self {
        let outcomes = outcomes.into_iter().map(WriteOutcome::from).collect();
        Self { outcomes, repeated_lines, stale_fields, log_position }
    }
}

impl WriteOutcome {
    pub fn name(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Duplicate => "duplicate",
            Self::Created => "created",
            Self::Replaced => "replaced",
            Self::Updated => "updated",
            Self::Unchanged => "unchanged",
            Self::Stale => "stale",
            Self::Deleted => "deleted",
            Self::Unknown => "unknown",
        }
    }
}

/// The outcome of a write.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WriteReport {
    /// In the order of the request.
    pub outcomes: Vec<WriteOutcome>,
    /// Lines of purchases that an earlier event of the same user and order counted. They are not stored.
    pub repeated_lines: Vec<RepeatedLine>,
    /// Written fields of items that keep their later values.
    pub stale_fields: Vec<StaleField>,
    /// The log position that includes all changes.
    pub log_position: u64,
}

/// The reason why a call of the engine failed.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The queue of the workers is full, or takes longer than the time that is left until the deadline.
    #[error("the server has more requests than it can answer in time")]
    Overloaded { retry_after: Duration },
    /// The deadline passed before the answer was ready.
    #[error("the deadline passed before the answer was ready")]
    DeadlineExceeded,
    /// The page token was signed elsewhere, has expired, or belongs to another request.
    #[error("{0}")]
    PageToken(PageTokenError),
    /// The request counts values of an attribute that is declared otherwise.
    #[error("`attributes.{name}` is declared as an attribute whose values facets do not count; see DeclareAttribute")]
    NotFacetable {
        /// Index of the facet in the request.
        index: usize,
        name: String,
    },
    /// The request names a serving configuration that does not exist.
    #[error("{0}")]
    ServingConfig(#[from] UnknownConfig),
    /// A field of the request compares prices in several currencies.
    #[error("compares prices, which are in {}; {}", currencies.join(" and "), choose_currency(*has_viewer, currencies))]
    MixedCurrencies {
        field: RequestField,
        /// Ascending; at least two.
        currencies: Vec<String>,
        /// Whether the request has a viewer, who may choose a currency.
        has_viewer: bool,
    },
    /// The attribution token was signed elsewhere.
    #[error("is not an attribution token of this server")]
    AttributionToken,
    /// The answer was not logged, or its record has been removed.
    #[error(
        "there is no record of this answer: it was not logged, or it is older than the retention of the answer log"
    )]
    AnswerNotFound,
    /// The generation that produced the answer is not loaded.
    #[error("generation {generation} of the answer is not loaded; the current one is {current}")]
    GenerationGone { generation: String, current: String },
    #[error("{0}")]
    Replay(#[from] ReplayError),
    /// The answer log could not be read.
    #[error("the answer log cannot be read")]
    Answers(#[source] AnswerLogError),
    /// The bundle has no loyalty model.
    #[error(
        "bundle {generation} has no loyalty model: {reason}. Serve a bundle that was trained on more events of signed-in \
         users; see docs/loyalty.md"
    )]
    LoyaltyMissing { generation: String, reason: String },
    /// No item of the catalogue has a price and a cost.
    #[error(
        "the objective MARGIN needs costs, and no item of the catalogue has a price and a cost; write `cost_micros` of \
         items first"
    )]
    CostsMissing,
    #[error("`{id}` is the id of a decision about another user or campaign; use a new id")]
    DecisionExists { id: String },
    #[error("the server keeps {limit} decisions about incentives, which is the limit")]
    TooManyDecisions { limit: usize },
    /// The change of a rule, a set of synonyms, a serving configuration or a campaign was refused.
    #[error("{0}")]
    Rule(#[from] RuleError),
    /// The write could not be logged.
    #[error("the write could not be logged")]
    Log(#[source] LogError),
    /// A bug. Its text is logged and never sent to a client.
    #[error("internal error: {0}")]
    Internal(String),
}

fn conflict_text(name: &str, kind: AttributeKind, conflicts: &AttributeConflicts) -> String {
    const NAMED: usize = 3;
    let AttributeConflicts { item_count, items } = conflicts;
    let named: Vec<String> = items.iter().take(NAMED).map(|id| format!("`{id}`")).collect();
    format!(
        "{item_count} items have a value of the attribute `{name}` that is not of the kind {}, such as {}; write those \
         first, or list them with validate_only",
        kind.name(),
        named.join(", ")
    )
}

/// The example is the first of `currencies`.
fn choose_currency(has_viewer: bool, currencies: &[String]) -> String {
    let condition =
        format!("a condition such as `currency = \"{}\"`", currencies.first().map_or("EUR", String::as_str));
    match has_viewer {
        true => format!(
            "choose one by viewer.currency_code, by {condition} in the filter, or for all requests by `lodestone serve \
             --currency`"
        ),
        false => format!("choose one by {condition}"),
    }
}

/// The reason why a change of a rule, a set of synonyms or a serving configuration is refused. Nothing is stored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    #[error("there is a {kind} with the id `{id}` already; use an update to replace it")]
    Exists { kind: EntryKind, id: String },
    #[error("there is no {kind} with the id `{id}`")]
    NotFound { kind: EntryKind, id: String },
    #[error("`{sent}` is not the etag of the {kind} `{id}`, which is `{current}`: it was changed; read it again")]
    Etag { kind: EntryKind, id: String, sent: String, current: String },
    #[error("there would be {count} entries of the kind {kind}; the limit is {limit}")]
    TooMany { kind: EntryKind, count: usize, limit: usize },
    #[error("the rules would have {count} regular expressions; the limit is {limit}")]
    TooManyRegexes { count: usize, limit: usize },
    /// Values that do not fit other entries or the bundle.
    #[error("{} fields of the {kind} are invalid", problems.len())]
    Invalid { kind: EntryKind, problems: Vec<RuleProblem> },
    #[error("the serving configuration `{id}` is part of the file of `serve --serving`; change it there, and restart")]
    ReadOnly { id: String },
    /// Items have values of another kind than that to declare.
    #[error("{}", conflict_text(name, *kind, conflicts))]
    AttributeConflict { name: String, kind: AttributeKind, conflicts: AttributeConflicts },
    #[error("the serving configuration `{id}` cannot be {verb}: {problem}")]
    InUse { id: String, verb: &'static str, problem: String },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PageTokenError {
    #[error("is not a page token of this server")]
    Foreign,
    #[error("belongs to another request; send everything else as in the request that returned it")]
    OtherRequest,
    #[error("has expired; start again from the first page")]
    Expired,
}
