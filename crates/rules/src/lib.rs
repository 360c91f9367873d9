//! Merchandising rules and synonyms as data.
//!
//! A [`Rule`] and a [`SynonymSet`] are the messages of the API, which the log stores. [`CompiledRule`] and
//! [`CompiledSynonyms`] are their validated forms. [`RuleBook`] is the fold of their changes; it publishes immutable
//! [`RuleSnapshot`]s, of which a request loads one. The pipeline merges the actions of the rules that apply into the
//! request.
#![forbid(unsafe_code)]
mod book;
mod compiled;
mod conditions;
mod data;
mod snapshot;
mod synonyms;

pub use book::{RuleBook, RuleChange};
pub use compiled::{Action, CompiledRule, CompiledSynonyms, RuleProblem, limits};
pub use conditions::RequestFacts;
pub use data::{
    Boost, Pin, QueryCondition, QueryConditionKind, Rule, RuleAction, RuleActionKind, RuleCondition, RuleRequestType,
    SynonymSet, SynonymTerms,
};
pub use snapshot::RuleSnapshot;
pub use synonyms::{MergedSynonyms, ParseError as SynonymsParseError, Synonyms, SynonymsError, SynonymsProblem, Terms};
