//! Writes and reads rules, sets of synonyms and serving configurations.
use crate::{
    engine::Engine,
    error::{EngineError, PageTokenError, RuleError},
    serving,
};
use lodestone_core::units::UnixMillis;
use lodestone_events::Change;
use lodestone_rules::{
    CompiledRule, CompiledSynonyms, EntryKind, RegexLimit, Rule, RuleChange, RuleProblem, RuleSnapshot, SynonymSet,
    limits,
};
use lodestone_telemetry::call;
use prost_types::Timestamp;
use std::{
    collections::BTreeMap,
    ops::Bound::{Excluded, Unbounded},
    sync::Arc,
};

/// How an entry is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PutMode {
    Create,
    /// Replaces the entry with this etag. Empty: whatever it contains.
    Update {
        etag: String,
    },
}

/// The entries after a write, and the log position of the write.
pub(crate) type RulesWritten = (Arc<RuleSnapshot>, u64);

impl Engine {
    /// Returns the rules, sets of synonyms and serving configurations of the API that are in effect.
    pub fn rules(&self) -> Arc<RuleSnapshot> {
        self.generations.state.rules()
    }

    /// Writes a valid rule, whose times and etag are set here.
    pub async fn put_rule(&self, rule: CompiledRule, mode: PutMode) -> Result<(Arc<CompiledRule>, u64), EngineError> {
        let id = rule.id();
        let change = |rules: &RuleSnapshot, now: Timestamp| {
            let known = rules.rules.get(id).map(|known| &known.rule);
            let target = Target { kind: EntryKind::Rule, id, count: rules.rules.len() };
            target.check(known.map(|known| known.etag.as_str()), &mode)?;
            let create_time = known.map_or(Some(now), |known| known.create_time);
            serving::checked(EntryKind::Rule, self.named_config_problems(rule.serving_configs()))?;
            match rules.check_regexes(&rule) {
                Ok(()) => Ok(RuleChange::PutRule(Rule { create_time, update_time: Some(now), ..rule.stored() })),
                Err(RegexLimit::Count(count)) => Err(RuleError::TooManyRegexes { count, limit: limits::REGEXES }),
                Err(RegexLimit::Bytes) => {
                    let description = format!(
                        "the regular expressions of all rules would have more than {} bytes when compiled; use fewer \
                         repetitions and classes such as \\w",
                        limits::REGEX_SET_BYTES
                    );
                    Err(invalid(EntryKind::Rule, "condition.queries", description))
                }
            }
        };
        let (rules, position) = self.write_rules(change).await?;
        let written = rules.rules.get(id).cloned();
        let lost = || EngineError::Internal(format!("the rule {id} is not in effect after its write"));
        Ok((written.ok_or_else(lost)?, position))
    }

    /// Writes a valid set of synonyms, whose times and etag are set here.
    pub async fn put_synonyms(
        &self,
        set: CompiledSynonyms,
        mode: PutMode,
    ) -> Result<(Arc<CompiledSynonyms>, u64), EngineError> {
        let id = set.id();
        let change = |rules: &RuleSnapshot, now: Timestamp| {
            let known = rules.synonym_sets.get(id);
            let target = Target { kind: EntryKind::SynonymSet, id, count: rules.synonym_sets.len() };
            target.check(known.map(|known| known.set.etag.as_str()), &mode)?;
            let create_time = known.map_or(Some(now), |known| known.set.create_time);
            let checked = rules.synonyms.check_meanings(&set.terms, known.map(|known| &known.terms));
            checked.map_err(|problem| invalid(EntryKind::SynonymSet, "synonyms.terms", problem.to_string()))?;
            Ok(RuleChange::PutSynonyms(SynonymSet { create_time, update_time: Some(now), ..set.stored() }))
        };
        let (rules, position) = self.write_rules(change).await?;
        let written = rules.synonym_sets.get(id).cloned();
        let lost = || EngineError::Internal(format!("the synonyms {id} are not in effect after their write"));
        Ok((written.ok_or_else(lost)?, position))
    }

    /// Deletes an entry with this etag, or whatever it contains if the etag is empty. Returns the log position.
    pub async fn delete_entry(&self, kind: EntryKind, id: String, etag: String) -> Result<u64, EngineError> {
        let change = |rules: &RuleSnapshot, _| {
            let known = match kind {
                EntryKind::Rule => rules.rules.get(&id).map(|known| known.rule.etag.as_str()),
                EntryKind::SynonymSet => rules.synonym_sets.get(&id).map(|known| known.set.etag.as_str()),
                EntryKind::ServingConfig => self.serving_config_etag(rules, &id)?,
                EntryKind::Attribute => rules.attributes.get(&id).map(|known| known.declaration.etag.as_str()),
                EntryKind::IncentiveCampaign => rules.campaigns.get(&id).map(|known| known.campaign.etag.as_str()),
            };
            Target { kind, id: &id, count: 0 }.check(known, &PutMode::Update { etag })?;
            Ok(match kind {
                EntryKind::Rule => RuleChange::DeleteRule(id.clone()),
                EntryKind::SynonymSet => RuleChange::DeleteSynonyms(id.clone()),
                EntryKind::ServingConfig => {
                    self.check_unused(rules, &id)?;
                    RuleChange::DeleteServingConfig(id.clone())
                }
                EntryKind::Attribute => RuleChange::DeleteAttribute(id.clone()),
                EntryKind::IncentiveCampaign => RuleChange::DeleteCampaign(id.clone()),
            })
        };
        let (_, position) = self.write_rules(change).await?;
        match kind {
            EntryKind::Rule => self.metrics.forget_rule(&id),
            EntryKind::ServingConfig => self.metrics.forget_serving_config(&id),
            EntryKind::IncentiveCampaign => self.metrics.retain_incentives(&id, |_| false),
            EntryKind::SynonymSet | EntryKind::Attribute => {}
        }
        Ok(position)
    }

    /// Returns entries of a list after the last one of the page before, whose token may be empty.
    pub fn entries_after<T>(
        &self,
        entries: &BTreeMap<String, Arc<T>>,
        kind: EntryKind,
        token: &str,
        count: usize,
    ) -> Result<Vec<Arc<T>>, EngineError> {
        let begin = match token {
            "" => Unbounded,
            token => {
                let after = self.tokens.parse_entries(token, kind);
                Excluded(after.ok_or(EngineError::PageToken(PageTokenError::Foreign))?)
            }
        };
        Ok(entries.range((begin, Unbounded)).take(count).map(|(_, entry)| entry.clone()).collect())
    }

    /// Returns the token of the page that begins after an entry.
    pub fn entries_token(&self, kind: EntryKind, after: &str) -> String {
        self.tokens.entries(kind, after)
    }

    /// Writes the change that `change` returns for the current entries. No other change of entries comes between.
    pub(crate) async fn write_rules(
        &self,
        change: impl FnOnce(&RuleSnapshot, Timestamp) -> Result<RuleChange, RuleError>,
    ) -> Result<RulesWritten, EngineError> {
        self.write_rules_holding(change, ()).await
    }

    /// The same, and drops `held` when the change is in effect.
    pub(crate) async fn write_rules_holding(
        &self,
        change: impl FnOnce(&RuleSnapshot, Timestamp) -> Result<RuleChange, RuleError>,
        held: impl Send + 'static,
    ) -> Result<RulesWritten, EngineError> {
        let guard = self.rule_writes.clone().lock_owned().await;
        let now = UnixMillis::now().0;
        let now = Timestamp { seconds: now.div_euclid(1000), nanos: (now.rem_euclid(1000) * 1_000_000) as i32 };
        let change = Change::Rule(change(&self.rules(), now)?);
        let queued = self.writer.queue(vec![(change, None)]).await.map_err(EngineError::Log)?;
        let state = self.generations.state.clone();
        // In a task of its own, because a caller that stops waiting must not release the guard before the change is in
        // effect.
        let written = call::spawn(async move {
            let written = call::timed("write", queued.written()).await;
            let rules = state.rules();
            drop(guard);
            drop(held);
            Ok((rules, written?.log_position))
        });
        let written = written.await.map_err(|error| EngineError::Internal(error.to_string()))?;
        written.map_err(EngineError::Log)
    }
}

/// Returns the error of a field that does not fit the other entries.
pub(crate) fn invalid(kind: EntryKind, field: &str, description: String) -> RuleError {
    RuleError::Invalid { kind, problems: vec![RuleProblem::new(field, description)] }
}

/// The entry that a write is about.
pub(crate) struct Target<'a> {
    pub(crate) kind: EntryKind,
    pub(crate) id: &'a str,
    /// Number of entries of the kind before the write.
    pub(crate) count: usize,
}

impl Target<'_> {
    /// Checks a write against the etag of the entry; none if it does not exist.
    pub(crate) fn check(&self, current: Option<&str>, mode: &PutMode) -> Result<(), RuleError> {
        let (kind, id) = (self.kind, self.id.to_owned());
        match (mode, current) {
            (PutMode::Create, Some(_)) => Err(RuleError::Exists { kind, id }),
            (PutMode::Create, None) if self.count >= kind.count_max() => {
                Err(RuleError::TooMany { kind, count: self.count + 1, limit: kind.count_max() })
            }
            (PutMode::Create, None) => Ok(()),
            (PutMode::Update { .. }, None) => Err(RuleError::NotFound { kind, id }),
            (PutMode::Update { etag }, Some(current)) if !etag.is_empty() && etag != current => {
                Err(RuleError::Etag { kind, id, sent: etag.clone(), current: current.to_owned() })
            }
            (PutMode::Update { .. }, Some(_)) => Ok(()),
        }
    }
}
