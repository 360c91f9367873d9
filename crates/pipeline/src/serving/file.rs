//! Parses the file of `lodestone serve --serving FILE`; `docs/serving.md` describes it.
use super::{Arm, Arms, Experiment, Serving, ServingConfig, ServingError};
use crate::{
    policy::{EXPLORED_MAX, Exploration},
    request::SoldOut,
};
use serde::Deserialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Display,
    fs,
    path::Path,
    sync::Arc,
};

/// Maximum number of candidates of a source, and of ranked candidates.
const CANDIDATES_MAX: usize = 1000;
/// The last slot of the largest page.
const SLOT_MAX: usize = 200;
const EPSILON_SLOTS_MAX: usize = 20;
const NAME_BYTES_MAX: usize = 64;
const SALT_BYTES_MAX: usize = 128;
const CONFIGS_MAX: usize = 100;
const EXPERIMENTS_MAX: usize = 20;
const ARMS_MAX: usize = 20;
const TEMPERATURE_MAX: f64 = 10.0;
const WEIGHT_MAX: f32 = 1000.0;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    configs: BTreeMap<String, ConfigTable>,
    #[serde(default)]
    experiments: Vec<ExperimentTable>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ConfigTable {
    source_candidates: Option<usize>,
    candidates: Option<usize>,
    query_cosine_min: Option<f32>,
    diversity: Option<f32>,
    repeat_fraction: Option<f32>,
    sold_out: Option<String>,
    ranker: Option<bool>,
    #[serde(default)]
    head_weights: BTreeMap<String, f32>,
    exploration: Option<ExplorationTable>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ExplorationTable {
    #[serde(default)]
    temperature: f64,
    #[serde(default = "first")]
    first_slot: usize,
    #[serde(default = "top")]
    top: usize,
    #[serde(default)]
    epsilon_slots: Vec<usize>,
    #[serde(default = "whole")]
    epsilon: f64,
    #[serde(default = "top")]
    epsilon_candidates: usize,
    #[serde(default = "whole")]
    share: f64,
}

fn first() -> usize {
    1
}

fn top() -> usize {
    20
}

fn whole() -> f64 {
    1.0
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
    let text = fs::read_to_string(path).map_err(|source| ServingError::Io { path: path.to_owned(), source })?;
    parse(&text, base).map_err(|problems| ServingError::Content { path: path.to_owned(), problems })
}

/// Parses the text. Reports all mistakes at once.
pub(super) fn parse(text: &str, base: &ServingConfig) -> Result<Serving, Vec<String>> {
    let file: File = toml::from_str(text).map_err(|error| vec![error.to_string().trim_end().to_owned()])?;
    let mut problems = Problems::default();
    problems.within("configs", file.configs.len(), 0, CONFIGS_MAX);
    problems.within("experiments", file.experiments.len(), 0, EXPERIMENTS_MAX);
    let mut configs = BTreeMap::from([(base.name.clone(), Arc::new(base.clone()))]);
    for (name, table) in file.configs {
        let config = problems.config(&name, table, base);
        configs.insert(name, Arc::new(config));
    }
    let mut names = BTreeSet::new();
    let mut experiments = Vec::new();
    for (index, table) in file.experiments.into_iter().enumerate() {
        if !names.insert(table.name.clone()) {
            problems
                .add(format!("experiments[{index}].name"), format!("`{}` is the name of two experiments", table.name));
        }
        experiments.extend(problems.experiment(index, table, &configs));
    }
    match problems.0.is_empty() {
        true => Ok(Serving { default: base.name.clone(), configs, experiments }),
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
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-' || byte == b'.';
        if !(1..=NAME_BYTES_MAX).contains(&name.len()) || !name.bytes().all(is_plain) {
            self.add(
                field,
                format!(
                    "`{name}` is not a name of 1 to {NAME_BYTES_MAX} characters of A-Z, a-z, 0-9, `_`, `-` and `.`"
                ),
            );
        }
    }

    fn config(&mut self, name: &str, table: ConfigTable, base: &ServingConfig) -> ServingConfig {
        let at = |field: &str| format!("configs.{name}.{field}");
        self.name(format!("configs.{name}"), name);
        let config = ServingConfig {
            name: name.to_owned(),
            source_candidates: table.source_candidates.unwrap_or(base.source_candidates),
            candidates: table.candidates.unwrap_or(base.candidates),
            query_cosine_min: table.query_cosine_min.or(base.query_cosine_min),
            diversity: table.diversity.unwrap_or(base.diversity),
            repeat_fraction: table.repeat_fraction.or(base.repeat_fraction),
            sold_out: self.sold_out(&at("sold_out"), table.sold_out.as_deref(), base.sold_out),
            ranker: table.ranker.unwrap_or(base.ranker),
            head_weights: table.head_weights,
            exploration: table.exploration.map(|table| self.exploration(&at("exploration"), table)),
        };
        self.within(at("source_candidates"), config.source_candidates, 1, CANDIDATES_MAX);
        self.within(at("candidates"), config.candidates, 1, CANDIDATES_MAX);
        if let Some(cosine_min) = config.query_cosine_min {
            self.within(at("query_cosine_min"), cosine_min, -1.0, 1.0);
        }
        self.within(at("diversity"), config.diversity, 0.0, 1.0);
        if let Some(fraction) = config.repeat_fraction {
            self.within(at("repeat_fraction"), fraction, 0.0, 1.0);
        }
        for (head, weight) in &config.head_weights {
            self.within(at(&format!("head_weights.{head}")), *weight, -WEIGHT_MAX, WEIGHT_MAX);
        }
        if !config.ranker && !config.head_weights.is_empty() {
            self.add(at("head_weights"), "has no effect if `ranker` is false");
        }
        config
    }

    fn sold_out(&mut self, at: &str, name: Option<&str>, base: SoldOut) -> SoldOut {
        let Some(name) = name else { return base };
        SoldOut::parse(name).unwrap_or_else(|| {
            self.add(at, format!("is `{name}`; it must be `hide`, `last` or `show`"));
            base
        })
    }

    fn exploration(&mut self, at: &str, table: ExplorationTable) -> Exploration {
        self.within(format!("{at}.temperature"), table.temperature, 0.0, TEMPERATURE_MAX);
        self.within(format!("{at}.first_slot"), table.first_slot, 1, SLOT_MAX);
        self.within(format!("{at}.top"), table.top, 1, EXPLORED_MAX);
        self.within(format!("{at}.epsilon"), table.epsilon, 0.0, 1.0);
        self.within(format!("{at}.epsilon_candidates"), table.epsilon_candidates, 1, EXPLORED_MAX);
        self.within(format!("{at}.epsilon_slots (their number)"), table.epsilon_slots.len(), 0, EPSILON_SLOTS_MAX);
        for slot in &table.epsilon_slots {
            self.within(format!("{at}.epsilon_slots"), *slot, 1, SLOT_MAX);
        }
        if table.epsilon_slots.windows(2).any(|pair| pair[0] >= pair[1]) {
            self.add(format!("{at}.epsilon_slots"), "must ascend");
        }
        if !(table.share > 0.0 && table.share <= 1.0) {
            self.add(format!("{at}.share"), format!("is {}; it must be above 0 and at most 1", table.share));
        }
        if table.temperature == 0.0 && (table.epsilon_slots.is_empty() || table.epsilon == 0.0) {
            self.add(at, "explores nothing: set `temperature` above 0, or `epsilon_slots`, or leave it out");
        }
        Exploration {
            temperature: table.temperature,
            first_slot: table.first_slot,
            top: table.top,
            epsilon_slots: table.epsilon_slots,
            epsilon: table.epsilon,
            epsilon_candidates: table.epsilon_candidates,
            share: table.share,
        }
    }

    fn experiment(
        &mut self,
        index: usize,
        table: ExperimentTable,
        configs: &BTreeMap<String, Arc<ServingConfig>>,
    ) -> Option<Experiment> {
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
                self.split(&at, arms, configs)?
            }
            (None, Some(names)) => self.interleaved(&at, &names, table.share.unwrap_or(1.0), configs)?,
            _ => {
                self.add(format!("experiments[{index}]"), "needs either `arms` or `interleave`");
                return None;
            }
        };
        Some(Experiment { name: table.name, salt, arms })
    }

    fn split(
        &mut self,
        at: &dyn Fn(&str) -> String,
        tables: Vec<ArmTable>,
        configs: &BTreeMap<String, Arc<ServingConfig>>,
    ) -> Option<Arms> {
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
            let config = self.known(field("config"), &table.config, configs)?;
            arms.push(Arm { name: table.name, config, share: table.share });
        }
        Some(Arms::Split(arms))
    }

    fn interleaved(
        &mut self,
        at: &dyn Fn(&str) -> String,
        names: &[String],
        share: f64,
        configs: &BTreeMap<String, Arc<ServingConfig>>,
    ) -> Option<Arms> {
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
        let mut config = |name: &str| {
            let config = self.known(at("interleave"), name, configs)?;
            if config.exploration.is_some() {
                self.add(at("interleave"), format!("`{name}` explores; interleaved configurations must not"));
            }
            Some(config)
        };
        let configs = [config(a)?, config(b)?];
        if configs[0].query_cosine_min != configs[1].query_cosine_min {
            let problem = format!("`{a}` and `{b}` differ in `query_cosine_min`; one retrieval serves both");
            self.add(at("interleave"), problem);
        }
        Some(Arms::Interleaved { configs, share })
    }

    fn known(
        &mut self,
        field: String,
        name: &str,
        configs: &BTreeMap<String, Arc<ServingConfig>>,
    ) -> Option<Arc<ServingConfig>> {
        let found = configs.get(name).cloned();
        if found.is_none() {
            let known = configs.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
            self.add(field, format!("there is no configuration `{name}`; the file has {known}"));
        }
        found
    }
}
