//! Merchandising rules, synonyms and serving configurations as data.
//!
//! A [`Rule`], a [`SynonymSet`] and a [`ServingConfig`] are the messages of the API, which the log stores.
//! [`CompiledRule`], [`CompiledSynonyms`] and [`CompiledServingConfig`] are their validated forms. [`RuleBook`] is the fold of their changes; it publishes immutable
//! [`RuleSnapshot`]s, of which a request loads one. The pipeline merges the actions of the rules that apply into the
//! request.
#![forbid(unsafe_code)]
mod book;
mod compiled;
mod conditions;
mod data;
mod serving_config;
mod snapshot;
mod synonyms;

pub use book::{EntryKind, RuleBook, RuleChange};
pub use compiled::{Action, CompiledRule, CompiledSynonyms, RuleProblem, limits};
pub use conditions::RequestFacts;
pub use data::{
    Boost, Exploration, Pin, QueryCondition, QueryConditionKind, Rule, RuleAction, RuleActionKind, RuleCondition,
    RuleRequestType, ServingConfig, SoldOut, SynonymSet, SynonymTerms,
};
pub use serving_config::CompiledServingConfig;
pub use snapshot::{RegexLimit, RuleSnapshot};
pub use synonyms::{MergedSynonyms, ParseError as SynonymsParseError, Synonyms, SynonymsError, SynonymsProblem, Terms};
