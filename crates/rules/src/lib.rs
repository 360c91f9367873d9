//! Merchandising rules, synonyms, serving configurations and declared attributes as data.
//!
//! A [`Rule`], a [`SynonymSet`], a [`ServingConfig`] and an [`AttributeDeclaration`] are the messages of the API, which the
//! log stores. [`CompiledRule`], [`CompiledSynonyms`], [`CompiledServingConfig`] and [`CompiledAttribute`] are their
//! validated forms. [`RuleBook`] is the fold of their changes; it publishes immutable
//! [`RuleSnapshot`]s, of which a request loads one. The pipeline merges the actions of the rules that apply into the
//! request.
#![forbid(unsafe_code)]
mod attributes;
mod book;
mod campaign;
mod compiled;
mod conditions;
mod data;
mod overlap;
mod serving_config;
mod snapshot;
mod synonyms;

pub use attributes::{CompiledAttribute, searchable_attributes};
pub use book::{EntryKind, RuleBook, RuleChange};
pub use campaign::{CompiledCampaign, NO_INCENTIVE};
pub use compiled::{Action, CompiledRule, CompiledSynonyms, RuleProblem, limits};
pub use conditions::RequestFacts;
pub use data::{
    AttributeDeclaration, Benefit, Boost, Exploration, Incentive, IncentiveAllocation, IncentiveCampaign, Objective,
    ObjectiveWeight, Pin, QueryCondition, QueryConditionKind, RankingObjectives, Rule, RuleAction, RuleActionKind,
    RuleCondition, RuleRequestType, ServingConfig, SoldOut, SynonymSet, SynonymTerms,
};
pub use serving_config::CompiledServingConfig;
pub use snapshot::{RegexLimit, RuleSnapshot};
pub use synonyms::{MergedSynonyms, ParseError as SynonymsParseError, Synonyms, SynonymsError, SynonymsProblem, Terms};
