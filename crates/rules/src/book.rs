//! The fold of the changes of rules and synonyms.
use crate::{
    compiled::{CompiledRule, CompiledSynonyms, RuleProblem},
    conditions::ConditionIndex,
    data::{Rule, SynonymSet},
    snapshot::RuleSnapshot,
    synonyms::Synonyms,
};
use std::{cmp::Reverse, collections::BTreeMap, sync::Arc};

/// A change of a rule or a set of synonyms, as the log stores it.
#[derive(Debug, Clone, PartialEq)]
pub enum RuleChange {
    /// Adds a rule or replaces it.
    PutRule(Rule),
    DeleteRule(String),
    /// Adds a set or replaces it.
    PutSynonyms(SynonymSet),
    DeleteSynonyms(String),
}

impl RuleChange {
    /// Returns the id of the rule or of the set.
    pub fn id(&self) -> &str {
        match self {
            Self::PutRule(rule) => &rule.rule_id,
            Self::PutSynonyms(set) => &set.synonym_set_id,
            Self::DeleteRule(id) | Self::DeleteSynonyms(id) => id,
        }
    }

    /// Returns `put_rule`, `delete_rule`, `put_synonyms` or `delete_synonyms`.
    pub fn kind_name(&self) -> &'static str {
        match self {
            Self::PutRule(_) => "put_rule",
            Self::DeleteRule(_) => "delete_rule",
            Self::PutSynonyms(_) => "put_synonyms",
            Self::DeleteSynonyms(_) => "delete_synonyms",
        }
    }

    /// Returns whether the change is of a rule, not of a set of synonyms.
    pub fn is_of_rule(&self) -> bool {
        matches!(self, Self::PutRule(_) | Self::DeleteRule(_))
    }

    /// Returns whether the change deletes.
    pub fn is_deletion(&self) -> bool {
        matches!(self, Self::DeleteRule(_) | Self::DeleteSynonyms(_))
    }
}

/// All rules and synonyms.
#[derive(Debug, Default)]
pub struct RuleBook {
    rules: BTreeMap<String, Arc<CompiledRule>>,
    synonym_sets: BTreeMap<String, Arc<CompiledSynonyms>>,
}

impl RuleBook {
    /// Applies a change. An error is the reason why the rule is not valid; nothing changed then.
    pub fn apply(&mut self, change: RuleChange) -> Result<(), String> {
        match change {
            RuleChange::PutRule(rule) => {
                let compiled = CompiledRule::new(rule).map_err(joined)?;
                self.rules.insert(compiled.id().to_owned(), Arc::new(compiled));
            }
            RuleChange::PutSynonyms(set) => {
                let compiled = CompiledSynonyms::new(set).map_err(joined)?;
                self.synonym_sets.insert(compiled.id().to_owned(), Arc::new(compiled));
            }
            RuleChange::DeleteRule(id) => _ = self.rules.remove(&id),
            RuleChange::DeleteSynonyms(id) => _ = self.synonym_sets.remove(&id),
        }
        Ok(())
    }

    /// Returns changes that lead from no rules to this state.
    pub fn changes(&self) -> Vec<RuleChange> {
        let rules = self.rules.values().map(|rule| RuleChange::PutRule(rule.stored()));
        rules.chain(self.synonym_sets.values().map(|set| RuleChange::PutSynonyms(set.stored()))).collect()
    }

    /// Returns the state. Takes the parts of `before` that did not change.
    pub fn snapshot(&self, before: &RuleSnapshot) -> Result<RuleSnapshot, String> {
        let mut ordered: Vec<Arc<CompiledRule>> = self.rules.values().cloned().collect();
        ordered.sort_by_key(|rule| Reverse(rule.rule.priority));
        let is_same = |set: (&Arc<CompiledSynonyms>, &Arc<CompiledSynonyms>)| Arc::ptr_eq(set.0, set.1);
        let has_same_synonyms = self.synonym_sets.len() == before.synonym_sets.len()
            && self.synonym_sets.values().zip(before.synonym_sets.values()).all(is_same);
        Ok(RuleSnapshot {
            synonyms: match has_same_synonyms {
                true => before.synonyms.clone(),
                false => Arc::new(Synonyms::of(self.synonym_sets.values().map(|set| &set.terms))),
            },
            index: ConditionIndex::build(&ordered, &before.index)?,
            rules: self.rules.clone(),
            synonym_sets: self.synonym_sets.clone(),
            ordered,
        })
    }
}

fn joined(problems: Vec<RuleProblem>) -> String {
    let texts = problems.into_iter().map(|problem| format!("{}: {}", problem.field, problem.description));
    texts.collect::<Vec<_>>().join("; ")
}
