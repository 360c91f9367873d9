//! The fold of the changes of rules, synonyms, serving configurations, declared attributes and campaigns of incentives.
use crate::{
    attributes::CompiledAttribute,
    campaign::CompiledCampaign,
    compiled::{CompiledRule, CompiledSynonyms, RuleProblem, limits},
    conditions::ConditionIndex,
    data::{AttributeDeclaration, IncentiveCampaign, Rule, ServingConfig, SynonymSet},
    serving_config::CompiledServingConfig,
    snapshot::RuleSnapshot,
    synonyms::Synonyms,
};
use std::{cmp::Reverse, collections::BTreeMap, fmt, sync::Arc};

/// A kind of entry that the shop maintains by its id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EntryKind {
    Rule,
    SynonymSet,
    ServingConfig,
    /// The declaration of an attribute, by its name.
    Attribute,
    IncentiveCampaign,
}

impl EntryKind {
    /// Returns how many entries of the kind the shop may have.
    pub fn count_max(self) -> usize {
        match self {
            Self::Rule | Self::SynonymSet => limits::ENTRIES,
            Self::ServingConfig => limits::SERVING_CONFIGS,
            Self::Attribute => limits::ATTRIBUTES,
            Self::IncentiveCampaign => limits::CAMPAIGNS,
        }
    }
}

impl fmt::Display for EntryKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rule => "rule",
            Self::SynonymSet => "set of synonyms",
            Self::ServingConfig => "serving configuration",
            Self::Attribute => "attribute declaration",
            Self::IncentiveCampaign => "campaign of incentives",
        })
    }
}

/// A change of a rule, a set of synonyms, a serving configuration, a declared attribute or a campaign of incentives, as the log stores it.
#[derive(Debug, Clone, PartialEq)]
pub enum RuleChange {
    /// Adds a rule or replaces it.
    PutRule(Rule),
    DeleteRule(String),
    /// Adds a set or replaces it.
    PutSynonyms(SynonymSet),
    DeleteSynonyms(String),
    /// Adds a configuration or replaces it.
    PutServingConfig(ServingConfig),
    DeleteServingConfig(String),
    /// Adds a declaration or replaces it.
    PutAttribute(AttributeDeclaration),
    DeleteAttribute(String),
    /// Adds a campaign or replaces it.
    PutCampaign(IncentiveCampaign),
    DeleteCampaign(String),
}

impl RuleChange {
    /// Returns the id of the entry.
    pub fn id(&self) -> &str {
        match self {
            Self::PutRule(rule) => &rule.rule_id,
            Self::PutSynonyms(set) => &set.synonym_set_id,
            Self::PutServingConfig(config) => &config.serving_config_id,
            Self::PutAttribute(declaration) => &declaration.name,
            Self::PutCampaign(campaign) => &campaign.campaign_id,
            Self::DeleteRule(id)
            | Self::DeleteSynonyms(id)
            | Self::DeleteServingConfig(id)
            | Self::DeleteAttribute(id)
            | Self::DeleteCampaign(id) => id,
        }
    }

    /// Returns `put_rule`, `delete_rule`, `put_synonyms` and so on.
    pub fn kind_name(&self) -> &'static str {
        match self {
            Self::PutRule(_) => "put_rule",
            Self::DeleteRule(_) => "delete_rule",
            Self::PutSynonyms(_) => "put_synonyms",
            Self::DeleteSynonyms(_) => "delete_synonyms",
            Self::PutServingConfig(_) => "put_serving_config",
            Self::DeleteServingConfig(_) => "delete_serving_config",
            Self::PutAttribute(_) => "put_attribute",
            Self::DeleteAttribute(_) => "delete_attribute",
            Self::PutCampaign(_) => "put_incentive_campaign",
            Self::DeleteCampaign(_) => "delete_incentive_campaign",
        }
    }

    /// Returns the kind of the entry.
    pub fn entry_kind(&self) -> EntryKind {
        match self {
            Self::PutRule(_) | Self::DeleteRule(_) => EntryKind::Rule,
            Self::PutSynonyms(_) | Self::DeleteSynonyms(_) => EntryKind::SynonymSet,
            Self::PutServingConfig(_) | Self::DeleteServingConfig(_) => EntryKind::ServingConfig,
            Self::PutAttribute(_) | Self::DeleteAttribute(_) => EntryKind::Attribute,
            Self::PutCampaign(_) | Self::DeleteCampaign(_) => EntryKind::IncentiveCampaign,
        }
    }

    /// Returns whether the change deletes.
    pub fn is_deletion(&self) -> bool {
        matches!(
            self,
            Self::DeleteRule(_)
                | Self::DeleteSynonyms(_)
                | Self::DeleteServingConfig(_)
                | Self::DeleteAttribute(_)
                | Self::DeleteCampaign(_)
        )
    }
}

/// All rules, synonyms, serving configurations, declared attributes and campaigns of incentives.
#[derive(Debug, Default)]
pub struct RuleBook {
    rules: BTreeMap<String, Arc<CompiledRule>>,
    synonym_sets: BTreeMap<String, Arc<CompiledSynonyms>>,
    serving_configs: BTreeMap<String, Arc<CompiledServingConfig>>,
    attributes: BTreeMap<String, Arc<CompiledAttribute>>,
    campaigns: BTreeMap<String, Arc<CompiledCampaign>>,
}

impl RuleBook {
    /// Applies a change. An error is the reason why the entry is not valid; nothing changed then.
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
            RuleChange::PutServingConfig(config) => {
                let compiled = CompiledServingConfig::new(config).map_err(joined)?;
                self.serving_configs.insert(compiled.id().to_owned(), Arc::new(compiled));
            }
            RuleChange::PutCampaign(campaign) => {
                let compiled = CompiledCampaign::new(campaign).map_err(joined)?;
                self.campaigns.insert(compiled.id().to_owned(), Arc::new(compiled));
            }
            RuleChange::DeleteRule(id) => _ = self.rules.remove(&id),
            RuleChange::DeleteSynonyms(id) => _ = self.synonym_sets.remove(&id),
            RuleChange::DeleteServingConfig(id) => _ = self.serving_configs.remove(&id),
            RuleChange::PutAttribute(declaration) => {
                let compiled = CompiledAttribute::new(declaration).map_err(joined)?;
                self.attributes.insert(compiled.name().to_owned(), Arc::new(compiled));
            }
            RuleChange::DeleteAttribute(name) => _ = self.attributes.remove(&name),
            RuleChange::DeleteCampaign(id) => _ = self.campaigns.remove(&id),
        }
        Ok(())
    }

    /// Returns changes that lead from no entries to this state.
    pub fn changes(&self) -> Vec<RuleChange> {
        let rules = self.rules.values().map(|rule| RuleChange::PutRule(rule.stored()));
        let synonyms = self.synonym_sets.values().map(|set| RuleChange::PutSynonyms(set.stored()));
        let configs = self.serving_configs.values().map(|config| RuleChange::PutServingConfig(config.stored()));
        let attributes = self.attributes.values().map(|attribute| RuleChange::PutAttribute(attribute.stored()));
        let campaigns = self.campaigns.values().map(|campaign| RuleChange::PutCampaign(campaign.stored()));
        rules.chain(synonyms).chain(configs).chain(attributes).chain(campaigns).collect()
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
            serving_configs: self.serving_configs.clone(),
            attributes: self.attributes.clone(),
            campaigns: self.campaigns.clone(),
            ordered,
        })
    }
}

fn joined(problems: Vec<RuleProblem>) -> String {
    let texts = problems.into_iter().map(|problem| format!("{}: {}", problem.field, problem.description));
    texts.collect::<Vec<_>>().join("; ")
}
