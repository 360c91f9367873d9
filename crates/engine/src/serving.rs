//! Serving configurations: those in effect, and changes of those of the API.
use crate::{
    engine::Engine,
    error::{EngineError, RuleError},
    loyalty::model_of,
    rules::{PutMode, Target},
};
use lodestone_pipeline::serving::{DEFAULT, Serving, ServingSnapshot};
use lodestone_rules::{
    CompiledRule, CompiledServingConfig, EntryKind, Objective, RankingObjectives, RuleChange, RuleProblem,
    RuleSnapshot, ServingConfig, limits,
};
use prost_types::Timestamp;
use std::{collections::BTreeMap, sync::Arc};

/// The place that defines a serving configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServingConfigSource {
    /// The file of `serve --serving`.
    File,
    Api,
}

/// A serving configuration and the place that defines it.
#[derive(Debug, Clone)]
pub struct ServingConfigEntry {
    pub config: Arc<CompiledServingConfig>,
    pub source: ServingConfigSource,
}

/// The configurations of the file and of the API, for the entries of the API from which they were built.
pub(crate) struct ServingCache {
    rules: Arc<RuleSnapshot>,
    serving: Arc<ServingSnapshot>,
}

impl ServingCache {
    pub(crate) fn new(serving: &Serving, rules: Arc<RuleSnapshot>) -> Self {
        Self { serving: Arc::new(serving.snapshot(&rules.serving_configs)), rules }
    }
}

impl Engine {
    /// Returns the configurations and experiments that are in effect.
    pub(crate) fn serving(&self) -> Arc<ServingSnapshot> {
        let rules = self.rules();
        let cached = self.serving_cache.load();
        if Arc::ptr_eq(&cached.rules, &rules) {
            return cached.serving.clone();
        }
        let cache = ServingCache::new(&self.serving, rules);
        let serving = cache.serving.clone();
        self.serving_cache.store(Arc::new(cache));
        serving
    }

    /// Returns all configurations by name, without the built-in default.
    pub fn serving_configs(&self) -> BTreeMap<String, Arc<ServingConfigEntry>> {
        let entry = |source| {
            move |(name, config): (&String, &Arc<CompiledServingConfig>)| {
                (name.clone(), Arc::new(ServingConfigEntry { config: config.clone(), source }))
            }
        };
        let rules = self.rules();
        let of_api = rules.serving_configs.iter().map(entry(ServingConfigSource::Api));
        of_api.chain(self.serving.of_file().iter().map(entry(ServingConfigSource::File))).collect()
    }

    /// Writes a valid serving configuration, whose times and etag are set here.
    pub async fn put_serving_config(
        &self,
        config: ServingConfig,
        mode: PutMode,
    ) -> Result<(Arc<CompiledServingConfig>, u64), EngineError> {
        self.check_objectives(&config)?;
        let id = config.serving_config_id.clone();
        let change = |rules: &RuleSnapshot, now: Timestamp| {
            let id = &id;
            let is_of_file = mode == PutMode::Create && self.serving.of_file().contains_key(id);
            if is_of_file {
                return Err(RuleError::Exists { kind: EntryKind::ServingConfig, id: id.clone() });
            }
            let known = self.serving_config_etag(rules, id)?;
            Target { kind: EntryKind::ServingConfig, id, count: rules.serving_configs.len() }.check(known, &mode)?;
            let known = rules.serving_configs.get(id).map(|known| &known.config);
            let create_time = known.map_or(Some(now), |known| known.create_time);
            let config = ServingConfig { create_time, update_time: Some(now), etag: String::new(), ..config };
            checked(EntryKind::ServingConfig, self.config_problems(&config))?;
            let invalid = |problems| RuleError::Invalid { kind: EntryKind::ServingConfig, problems };
            let compiled = CompiledServingConfig::new(config.clone()).map_err(invalid)?;
            self.check_experiments(rules, id, Some(compiled))?;
            Ok(RuleChange::PutServingConfig(config))
        };
        let (rules, position) = self.write_rules(change).await?;
        let written = rules.serving_configs.get(&id).cloned();
        let lost = || EngineError::Internal(format!("the serving configuration {id} is not in effect after its write"));
        Ok((written.ok_or_else(lost)?, position))
    }

    /// Returns the etag of a configuration of the API; none if there is no such one. Refuses that of the file.
    pub(crate) fn serving_config_etag<'a>(
        &self,
        rules: &'a RuleSnapshot,
        id: &str,
    ) -> Result<Option<&'a str>, RuleError> {
        match self.serving.of_file().contains_key(id) {
            true => Err(RuleError::ReadOnly { id: id.to_owned() }),
            false => Ok(rules.serving_configs.get(id).map(|known| known.config.etag.as_str())),
        }
    }

    /// Returns the heads that a bundle in memory does not have, as fields of a configuration, and objectives that compare
    /// prices of several currencies. Bundles that are kept for a rollback count, because a rollback checks nothing.
    pub fn config_problems(&self, config: &ServingConfig) -> Vec<RuleProblem> {
        let routes = self.generations.routes();
        let lacking = |head: &str| {
            let loaded = routes.loaded().find(|loaded| !loaded.head_names().any(|known| known == head))?;
            Some((loaded.name().to_owned(), loaded.head_names().collect::<Vec<_>>().join(", ")))
        };
        let mut problems = Vec::new();
        for head in config.head_weights.keys().take(limits::HEADS) {
            if let Some((bundle, known)) = lacking(head) {
                let description = format!("the bundle {bundle} has no head of this name; it has {known}");
                problems.push(RuleProblem::new(format_args!("head_weights.{head}"), description));
            }
        }
        let compares_prices =
            config.objectives.iter().flat_map(RankingObjectives::weighted).any(|(_, of)| of.is_of_prices());
        let catalog = routes.current.generation.catalog.load();
        let currencies = if compares_prices { catalog.price_currencies(catalog.alive()) } else { Vec::new() };
        for (index, objective) in config.objectives.iter().flat_map(RankingObjectives::weighted) {
            let field = format!("objectives.weights[{index}].objective");
            for head in objective.heads() {
                if let Some((bundle, known)) = lacking(head) {
                    let description =
                        format!("needs the head `{head}`, which the bundle {bundle} does not have; it has {known}");
                    problems.push(RuleProblem::new(&field, description));
                }
            }
            if objective.is_of_prices() && currencies.len() > 1 {
                let description = format!(
                    "compares prices, and those of the items are in {}; give the items prices in one currency, and \
                     prices in others as offers",
                    currencies.join(" and ")
                );
                problems.push(RuleProblem::new(field, description));
            }
        }
        problems
    }

    /// Refuses objectives for which a bundle in memory or the catalogue lacks the data.
    pub fn check_objectives(&self, config: &ServingConfig) -> Result<(), EngineError> {
        let routes = self.generations.routes();
        // Not the kept share: the costs may have been written just now.
        let has_costs = || routes.current.generation.catalog.load().mean_margin_share().is_some();
        for (_, objective) in config.objectives.iter().flat_map(RankingObjectives::weighted) {
            match objective {
                Objective::Loyalty => routes.loaded().try_for_each(|loaded| model_of(loaded).map(drop))?,
                Objective::Margin if !has_costs() => return Err(EngineError::CostsMissing),
                _ => {}
            }
        }
        Ok(())
    }

    /// Checks that the experiments stay valid if a configuration of the API gets this content, or none.
    fn check_experiments(
        &self,
        rules: &RuleSnapshot,
        id: &str,
        content: Option<CompiledServingConfig>,
    ) -> Result<(), RuleError> {
        if self.serving.experiments_with(id).next().is_none() {
            return Ok(());
        }
        let verb = if content.is_some() { "changed in this way" } else { "deleted" };
        let mut configs = rules.serving_configs.clone();
        configs.remove(id);
        configs.extend(content.map(|content| (id.to_owned(), Arc::new(content))));
        match &self.serving.snapshot(&configs).experiment_problems()[..] {
            [] => Ok(()),
            problems => Err(RuleError::InUse { id: id.to_owned(), verb, problem: problems.join("; ") }),
        }
    }

    /// Checks that neither an experiment nor a rule needs a configuration.
    pub(crate) fn check_unused(&self, rules: &RuleSnapshot, id: &str) -> Result<(), RuleError> {
        if id == DEFAULT {
            // The built-in one takes its place.
            return self.check_experiments(rules, id, None);
        }
        let experiments = self.serving.experiments_with(id).map(|name| format!("the experiment `{name}`"));
        let names_it = |rule: &&Arc<CompiledRule>| rule.serving_configs().iter().any(|name| name == id);
        let rules = rules.rules.values().filter(names_it).map(|rule| format!("the rule `{}`", rule.id()));
        let users: Vec<String> = experiments.chain(rules).collect();
        match users.is_empty() {
            true => Ok(()),
            false => {
                let problem = format!("it is used by {}", users.join(", "));
                Err(RuleError::InUse { id: id.to_owned(), verb: "deleted", problem })
            }
        }
    }

    /// Returns the serving configurations that do not exist, as fields of a rule whose condition names them.
    pub fn named_config_problems(&self, names: &[String]) -> Vec<RuleProblem> {
        let serving = self.serving();
        let problem = |(index, name): (usize, &String)| {
            let description = serving.config(name).err()?.to_string();
            Some(RuleProblem::new(format_args!("condition.serving_configs[{index}]"), description))
        };
        names.iter().enumerate().filter_map(problem).collect()
    }
}

/// Refuses an entry with mistakes.
pub(crate) fn checked(kind: EntryKind, problems: Vec<RuleProblem>) -> Result<(), RuleError> {
    if problems.is_empty() { Ok(()) } else { Err(RuleError::Invalid { kind, problems }) }
}
