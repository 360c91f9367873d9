//! Parses the file of `lodestone serve --serving FILE`; `docs/serving.md` describes it.
use super::{Arm, Arms, Compiled, Experiment, Serving, ServingConfig, ServingError};
use crate::bundle::read_regular_text;
use lodestone_core::{ids::check_name, toml_error};
use lodestone_rules::{
    self as rules, CompiledServingConfig, Objective, ObjectiveWeight, RankingObjectives, SoldOut, limits,
};
use serde::Deserialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Display,
    path::Path,
    sync::Arc,
};

const SALT_BYTES_MAX: usize = 128;
const EXPERIMENTS_MAX: usize = 20;
const ARMS_MAX: usize = 20;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    configs: BTreeMap<String, ConfigTable>,
    #[serde(default)]
    experiments: Vec<ExperimentTable>,
}

/// A configuration without its name. The fields are those of `lodestone.v1.ServingConfig`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ConfigTable {
    source_candidates: Option<i32>,
    candidates: Option<i32>,
    query_cosine_min: Option<f64>,
    diversity: Option<f64>,
    repeat_fraction: Option<f64>,
    sold_out: Option<String>,
    ranker: Option<bool>,
    #[serde(default)]
    head_weights: BTreeMap<String, f64>,
    exploration: Option<ExplorationTable>,
    objectives: Option<ObjectivesTable>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ObjectivesTable {
    weights: BTreeMap<String, f64>,
    ndcg_loss_max: Option<f64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ExplorationTable {
    #[serde(default)]
    temperature: f64,
    first_slot: Option<i32>,
    top: Option<i32>,
    #[serde(default)]
    epsilon_slots: Vec<i32>,
    epsilon: Option<f64>,
    epsilon_candidates: Option<i32>,
    share: Option<f64>,
}

impl From<ExplorationTable> for rules::Exploration {
    fn from(table: ExplorationTable) -> Self {
        let ExplorationTable { temperature, first_slot, top, epsilon_slots, epsilon, epsilon_candidates, share } =
            table;
        Self { temperature, first_slot, top, epsilon_slots, epsilon, epsilon_candidates, share }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ExperimentTable {
    name: String,
    salt: Option<String>,
    arms: Option<Vec<ArmTable>>,
    interleave: Option<Vec<String>>,
    share: Option<f64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ArmTable {
    name: String,
    config: String,
    share: f64,
}

/// Reads the file and checks every value. `base` has the defaults of all configurations.
pub(super) fn open(path: &Path, base: &ServingConfig) -> Result<Serving, ServingError> {
    let text =
        read_regular_text(path, u64::MAX).map_err(|source| ServingError::Io { path: path.to_owned(), source })?;
    parse(&text, base).map_err(|problems| ServingError::Content { path: path.to_owned(), problems })
}

/// Parses the text. Reports all mistakes at once.
pub(super) fn parse(text: &str, base: &ServingConfig) -> Result<Serving, Vec<String>> {
    let file: File = toml::from_str(text).map_err(|error| vec![toml_error::one_line(text, &error)])?;
    let mut problems = Problems::default();
    problems.within("configs", file.configs.len(), 0, limits::SERVING_CONFIGS);
    problems.within("experiments", file.experiments.len(), 0, EXPERIMENTS_MAX);
    let mut of_file = Compiled::new();
    for (name, table) in file.configs {
        if let Some(config) = problems.config(&name, table) {
            of_file.insert(name, Arc::new(config));
        }
    }
    let mut names = BTreeSet::new();
    let mut experiments = Vec::new();
    for (index, table) in file.experiments.into_iter().enumerate() {
        if !names.insert(table.name.clone()) {
            problems
                .add(format!("experiments[{index}].name"), format!("`{}` is the name of two experiments", table.name));
        }
        experiments.extend(problems.experiment(index, table));
    }
    match problems.0.is_empty() {
        true => Ok(Serving { base: base.clone(), of_file, experiments: experiments.into() }),
        false => Err(problems.0),
    }
}

/// The mistakes of a file, each with its field.
#[derive(Default)]
struct Problems(Vec<String>);

impl Problems {
    fn add(&mut self, field: impl Display, problem: impl Display) {
        self.0.push(format!("{field}: {problem}"));
    }

    fn within<T: PartialOrd + Display>(&mut self, field: impl Display, value: T, least: T, most: T) {
        if !(least <= value && value <= most) {
            self.add(field, format!("is {value}; it must be within {least} and {most}"));
        }
    }

    fn name(&mut self, field: impl Display, name: &str) {
        if let Err(error) = check_name(name) {
            self.add(field, error.to_string());
        }
    }

    /// Validates a configuration as the API does.
    fn config(&mut self, name: &str, table: ConfigTable) -> Option<CompiledServingConfig> {
        let sold_out = match table.sold_out.as_deref() {
            None => SoldOut::Unspecified,
            Some("hide") => SoldOut::Hide,
            Some("last") => SoldOut::Last,
            Some("show") => SoldOut::Show,
            Some(other) => {
                let problem = format!("is `{other}`; it must be `hide`, `last` or `show`");
                self.add(format!("configs.{name}.sold_out"), problem);
                SoldOut::Unspecified
            }
        };
        let objectives = table.objectives.map(|table| self.objectives(name, table));
        let config = rules::ServingConfig {
            serving_config_id: name.to_owned(),
            source_candidates: table.source_candidates,
            candidates: table.candidates,
            query_cosine_min: table.query_cosine_min,
            diversity: table.diversity,
            repeat_fraction: table.repeat_fraction,
            sold_out: sold_out.into(),
            ranker: table.ranker,
            head_weights: table.head_weights,
            exploration: table.exploration.map(Into::into),
            objectives,
            ..rules::ServingConfig::default()
        };
        let compiled = CompiledServingConfig::new(config).map_err(|problems| {
            for rules::RuleProblem { field, description, .. } in problems {
                match field.as_str() {
                    "serving_config_id" => self.name(format!("configs.{name}"), name),
                    field => self.add(format!("configs.{name}.{field}"), description),
                }
            }
        });
        compiled.ok()
    }

    fn objectives(&mut self, config: &str, table: ObjectivesTable) -> RankingObjectives {
        let mut weights = Vec::with_capacity(table.weights.len());
        for (name, weight) in table.weights {
            match Objective::ALL.into_iter().find(|objective| objective.name() == name) {
                Some(objective) => weights.push(ObjectiveWeight { objective: objective.into(), weight }),
                None => {
                    let known = Objective::ALL.map(Objective::name).join(", ");
                    let problem = format!("is not an objective; use {known}");
                    self.add(format!("configs.{config}.objectives.weights.{name}"), problem);
                }
            }
        }
        RankingObjectives { weights, ndcg_loss_max: table.ndcg_loss_max }
    }

    fn experiment(&mut self, index: usize, table: ExperimentTable) -> Option<Experiment> {
        let at = |field: &str| format!("experiments[{index}].{field}");
        self.name(at("name"), &table.name);
        let salt = table.salt.unwrap_or_else(|| table.name.clone());
        if salt.len() > SALT_BYTES_MAX {
            self.add(at("salt"), format!("has {} bytes; the limit is {SALT_BYTES_MAX}", salt.len()));
        }
        let arms = match (table.arms, table.interleave) {
            (Some(arms), None) => {
                if table.share.is_some() {
                    self.add(at("share"), "goes with `interleave`; arms have shares of their own");
                }
                self.split(&at, arms)
            }
            (None, Some(names)) => self.interleaved(&at, &names, table.share.unwrap_or(1.0))?,
            _ => {
                self.add(format!("experiments[{index}]"), "needs either `arms` or `interleave`");
                return None;
            }
        };
        Some(Experiment { name: table.name, salt, arms })
    }

    fn split(&mut self, at: &dyn Fn(&str) -> String, tables: Vec<ArmTable>) -> Arms {
        self.within(at("arms (their number)"), tables.len(), 2, ARMS_MAX);
        let sum: f64 = tables.iter().map(|arm| arm.share).sum();
        if sum > 1.0 + 1e-9 {
            self.add(at("arms"), format!("have shares with the sum {sum}; it must be at most 1"));
        }
        let (mut names, mut arms) = (BTreeSet::new(), Vec::new());
        for (number, table) in tables.into_iter().enumerate() {
            let field = |field: &str| at(&format!("arms[{number}].{field}"));
            self.name(field("name"), &table.name);
            if !names.insert(table.name.clone()) {
                self.add(field("name"), format!("`{}` is the name of two arms", table.name));
            }
            if !(table.share > 0.0 && table.share <= 1.0) {
                self.add(field("share"), format!("is {}; it must be above 0 and at most 1", table.share));
            }
            arms.push(Arm { name: table.name, config: table.config, share: table.share });
        }
        Arms::Split(arms)
    }

    fn interleaved(&mut self, at: &dyn Fn(&str) -> String, names: &[String], share: f64) -> Option<Arms> {
        if !(share > 0.0 && share <= 1.0) {
            self.add(at("share"), format!("is {share}; it must be above 0 and at most 1"));
        }
        let [a, b] = names else {
            self.add(at("interleave"), format!("has {} entries; two configurations are needed", names.len()));
            return None;
        };
        if a == b {
            self.add(at("interleave"), format!("has `{a}` twice; two different configurations are needed"));
        }
        Some(Arms::Interleaved { configs: [a.clone(), b.clone()], share })
    }
}
