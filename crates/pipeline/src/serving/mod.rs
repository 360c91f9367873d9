//! Named serving configurations, and the experiments that select among them.
//!
//! Useful for: options of answers that an operator varies without a new model. Not useful for: options of the request,
//! which take precedence, and trained parameters, which are in the bundle.
mod arms;
mod assign;
mod file;

use crate::{
    policy::{Exploration, ObjectiveMix},
    request::SoldOut,
    retrieve::RetrievalLimits,
};
pub use arms::arm_at;
pub use assign::assign;
use lodestone_core::ids::UserId;
use lodestone_loyalty::TrainedLoyalty;
use lodestone_rules::{self as rules, CompiledServingConfig};
use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

/// The name of the default configuration.
pub const DEFAULT: &str = "default";

/// A named set of ranking options.
#[derive(Debug, Clone, PartialEq)]
pub struct ServingConfig {
    pub name: String,
    /// Identifies the content that was written. Empty: the built-in default.
    pub etag: String,
    /// Number of candidates of each source, 1 to 1,000.
    pub source_candidates: usize,
    /// Number of ranked candidates, 1 to 1,000.
    pub candidates: usize,
    /// Minimum cosine of an item that only the vector search finds for a query, -1 to 1. None: the bundle's.
    pub query_cosine_min: Option<f32>,
    /// The default of requests, 0 to 1.
    pub diversity: f32,
    /// Share of the items that the user bought before in FOR_YOU, 0 to 1. None: as the ranking model has it.
    pub repeat_fraction: Option<f32>,
    /// The default of requests.
    pub sold_out: SoldOut,
    /// Whether the ranking model orders candidates; otherwise the order of retrieval stays.
    pub ranker: bool,
    /// Weights that override those of the bundle, by head.
    pub head_weights: BTreeMap<String, f32>,
    pub exploration: Option<Exploration>,
    /// None: relevance alone orders.
    pub objectives: Option<ObjectiveMix>,
}

impl Default for ServingConfig {
    fn default() -> Self {
        Self {
            name: DEFAULT.to_owned(),
            etag: String::new(),
            source_candidates: 150,
            candidates: 250,
            query_cosine_min: None,
            diversity: 0.0,
            repeat_fraction: None,
            sold_out: SoldOut::Hidden,
            ranker: true,
            head_weights: BTreeMap::new(),
            exploration: None,
            objectives: None,
        }
    }
}

impl ServingConfig {
    /// Returns a validated configuration with the values of `base` where it sets none.
    fn new(compiled: &CompiledServingConfig, base: &Self) -> Self {
        let config = &compiled.config;
        Self {
            name: config.serving_config_id.clone(),
            etag: config.etag.clone(),
            source_candidates: config.source_candidates.map_or(base.source_candidates, |count| count as usize),
            candidates: config.candidates.map_or(base.candidates, |count| count as usize),
            query_cosine_min: config.query_cosine_min.map(|cosine| cosine as f32).or(base.query_cosine_min),
            diversity: config.diversity.map_or(base.diversity, |diversity| diversity as f32),
            repeat_fraction: config.repeat_fraction.map(|fraction| fraction as f32).or(base.repeat_fraction),
            sold_out: match config.sold_out() {
                rules::SoldOut::Unspecified => base.sold_out,
                rules::SoldOut::Hide => SoldOut::Hidden,
                rules::SoldOut::Last => SoldOut::Last,
                rules::SoldOut::Show => SoldOut::Shown,
            },
            ranker: config.ranker.unwrap_or(base.ranker),
            head_weights: config.head_weights.iter().map(|(head, weight)| (head.clone(), *weight as f32)).collect(),
            exploration: config.exploration.as_ref().map(Exploration::from),
            objectives: config.objectives.as_ref().map(ObjectiveMix::from),
        }
    }

    pub fn retrieval_limits(&self) -> RetrievalLimits {
        let Self { source_candidates, candidates, query_cosine_min, .. } = *self;
        RetrievalLimits { per_source: source_candidates, fused: candidates, query_cosine_min }
    }
}

/// A comparison of configurations on live traffic.
#[derive(Debug, Clone, PartialEq)]
pub struct Experiment {
    pub name: String,
    /// Experiments with different salts split users independently.
    pub salt: String,
    pub arms: Arms,
}

/// The arms of an experiment. Configurations are named, because those of the API may change.
#[derive(Debug, Clone, PartialEq)]
pub enum Arms {
    /// Each user has one of several configurations. The sum of the shares is at most 1; other users are outside.
    Split(Vec<Arm>),
    /// The answers of a share of the users are team drafts of two configurations.
    Interleaved { configs: [String; 2], share: f64 },
}

#[derive(Debug, Clone, PartialEq)]
pub struct Arm {
    pub name: String,
    pub config: String,
    /// Above 0, at most 1.
    pub share: f64,
}

impl Experiment {
    /// Returns the names of its configurations.
    pub fn configs(&self) -> Vec<&str> {
        match &self.arms {
            Arms::Split(arms) => arms.iter().map(|arm| arm.config.as_str()).collect(),
            Arms::Interleaved { configs, .. } => configs.iter().map(String::as_str).collect(),
        }
    }
}

/// The arm name of interleaved answers.
pub const INTERLEAVED: &str = "interleaved";

/// The configuration of a request, and the experiment that selected it.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// One configuration, or two to interleave.
    pub configs: Vec<Arc<ServingConfig>>,
    /// The experiment and arm that selected the configuration. None if the request named a configuration or if the
    /// user is in no experiment.
    pub arm: Option<ExperimentArm>,
}

/// An arm and its experiment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExperimentArm {
    pub experiment: String,
    pub arm: String,
}

impl Plan {
    /// Returns the first configuration, whose name the answer reports.
    pub fn main(&self) -> &ServingConfig {
        &self.configs[0]
    }

    /// Returns the maximum of the limits of all configurations, which have the same minimum cosine.
    pub fn retrieval_limits(&self) -> RetrievalLimits {
        let highest = |limit: fn(&ServingConfig) -> usize| {
            self.configs.iter().map(|config| limit(config)).max().unwrap_or_default()
        };
        RetrievalLimits {
            per_source: highest(|config| config.source_candidates),
            fused: highest(|config| config.candidates),
            query_cosine_min: self.main().query_cosine_min,
        }
    }

    /// Returns whether any configuration uses the ranking model.
    pub fn uses_ranker(&self) -> bool {
        self.configs.iter().any(|config| config.ranker)
    }
}

impl Default for Plan {
    fn default() -> Self {
        Self { configs: vec![Arc::default()], arm: None }
    }
}

type Compiled = BTreeMap<String, Arc<CompiledServingConfig>>;

/// The serving file of a server, and the defaults of all configurations.
#[derive(Debug, Clone, PartialEq)]
pub struct Serving {
    /// The built-in configuration, whose values are the defaults of the others.
    base: ServingConfig,
    of_file: Compiled,
    experiments: Arc<[Experiment]>,
}

/// All configurations and experiments of a server at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct ServingSnapshot {
    configs: BTreeMap<String, Arc<ServingConfig>>,
    experiments: Arc<[Experiment]>,
}

/// The reason why a serving file is refused, or a bundle for its configurations.
#[derive(Debug, thiserror::Error)]
pub enum ServingError {
    #[error("serving file {path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("serving file {path}: {}", problems.join("; "))]
    Content { path: PathBuf, problems: Vec<String> },
    #[error("serving file: {}", problems.join("; "))]
    Combined { problems: Vec<String> },
    #[error("configs.{config}.head_weights: the bundle has no head `{head}`; it has {known}")]
    Head { config: String, head: String, known: String },
    #[error(
        "configs.{config}.objectives: {objective} needs the head `{head}`, which the bundle does not have; it has {known}"
    )]
    ObjectiveHead { config: String, objective: &'static str, head: &'static str, known: String },
    #[error("configs.{config}.objectives: loyalty needs a loyalty model, and the bundle has none: {reason}")]
    Loyalty { config: String, reason: String },
}

/// A request named an unknown configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no serving configuration `{name}`; the server has {known}")]
pub struct UnknownConfig {
    pub name: String,
    pub known: String,
}

impl Serving {
    /// Returns a server without a serving file, whose built-in configuration is this one.
    pub fn of(config: ServingConfig) -> Self {
        Self { base: config, of_file: Compiled::new(), experiments: Arc::new([]) }
    }

    /// Reads a serving file. `base` has the defaults of all configurations. Configurations that experiments name and
    /// the file lacks may be those of the API; [`Serving::check`] reports those that are neither.
    pub fn open(path: &Path, base: &ServingConfig) -> Result<Self, ServingError> {
        file::open(path, base)
    }

    /// Returns the configurations of the file.
    pub fn of_file(&self) -> &BTreeMap<String, Arc<CompiledServingConfig>> {
        &self.of_file
    }

    /// Returns the names of the experiments with a configuration.
    pub fn experiments_with<'a>(&'a self, config: &'a str) -> impl Iterator<Item = &'a str> {
        let names_it = move |experiment: &&Experiment| experiment.configs().contains(&config);
        self.experiments.iter().filter(names_it).map(|experiment| experiment.name.as_str())
    }

    /// Returns a configuration with the defaults of this server.
    pub fn resolved(&self, config: &CompiledServingConfig) -> ServingConfig {
        ServingConfig::new(config, &self.base)
    }

    /// Returns the configurations of the file and of the API.
    pub fn snapshot(&self, of_api: &BTreeMap<String, Arc<CompiledServingConfig>>) -> ServingSnapshot {
        let built_in = (self.base.name.clone(), Arc::new(self.base.clone()));
        let named = of_api.iter().chain(&self.of_file);
        let named = named.map(|(name, config)| (name.clone(), Arc::new(ServingConfig::new(config, &self.base))));
        let configs = std::iter::once(built_in).chain(named).collect();
        ServingSnapshot { configs, experiments: self.experiments.clone() }
    }

    /// Checks the file together with the configurations of the API: no name occurs in both, and each configuration that
    /// an experiment names exists and fits it.
    pub fn check(&self, of_api: &BTreeMap<String, Arc<CompiledServingConfig>>) -> Result<(), ServingError> {
        let in_both = self.of_file.keys().filter(|name| of_api.contains_key(*name));
        let mut problems: Vec<String> = in_both
            .map(|name| {
                format!(
                    "configs.{name}: the API has a configuration of this name too; rename this one, or start without \
                     it and delete the other by DeleteServingConfig"
                )
            })
            .collect();
        problems.extend(self.snapshot(of_api).experiment_problems());
        match problems.is_empty() {
            true => Ok(()),
            false => Err(ServingError::Combined { problems }),
        }
    }

    /// Returns whether exploration or experiments of the file vary answers.
    pub fn varies(&self) -> bool {
        let explores = |config: &Arc<CompiledServingConfig>| config.config.exploration.is_some();
        !self.experiments.is_empty() || self.base.exploration.is_some() || self.of_file.values().any(explores)
    }
}

impl ServingSnapshot {
    /// Returns the configuration of this name.
    pub fn config(&self, name: &str) -> Result<&Arc<ServingConfig>, UnknownConfig> {
        self.configs.get(name).ok_or_else(|| UnknownConfig { name: name.to_owned(), known: self.known() })
    }

    fn known(&self) -> String {
        self.configs.keys().map(String::as_str).collect::<Vec<_>>().join(", ")
    }

    /// Selects the configuration of a request: the one that it names, else that of the first experiment with the user,
    /// else the default one.
    pub fn plan(&self, named: &str, user: &UserId) -> Result<Plan, UnknownConfig> {
        if !named.is_empty() {
            return Ok(Plan { configs: vec![self.config(named)?.clone()], arm: None });
        }
        for experiment in self.experiments.iter() {
            let Some(number) = assign(experiment, user) else { continue };
            let (configs, arm) = match &experiment.arms {
                Arms::Split(arms) => (vec![self.config(&arms[number].config)?.clone()], arms[number].name.clone()),
                Arms::Interleaved { configs: [a, b], .. } => {
                    (vec![self.config(a)?.clone(), self.config(b)?.clone()], INTERLEAVED.to_owned())
                }
            };
            return Ok(Plan { configs, arm: Some(ExperimentArm { experiment: experiment.name.clone(), arm }) });
        }
        Ok(Plan { configs: vec![self.config(DEFAULT)?.clone()], arm: None })
    }

    /// Returns what is wrong with the configurations that experiments name, each with the field of the file.
    pub fn experiment_problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for (index, experiment) in self.experiments.iter().enumerate() {
            let named = match &experiment.arms {
                Arms::Split(arms) => {
                    let field = |(number, arm)| (format!("experiments[{index}].arms[{number}].config"), arm);
                    arms.iter().map(|arm| &arm.config).enumerate().map(field).collect::<Vec<_>>()
                }
                Arms::Interleaved { configs, .. } => {
                    configs.iter().map(|name| (format!("experiments[{index}].interleave"), name)).collect()
                }
            };
            for (field, name) in &named {
                if !self.configs.contains_key(*name) {
                    problems.push(format!("{field}: there is no configuration `{name}`; there are {}", self.known()));
                }
            }
            let Arms::Interleaved { configs, .. } = &experiment.arms else { continue };
            let field = format!("experiments[{index}].interleave");
            let known: Vec<&Arc<ServingConfig>> = configs.iter().filter_map(|name| self.configs.get(name)).collect();
            for config in known.iter().filter(|config| config.exploration.is_some()) {
                problems.push(format!("{field}: `{}` explores; interleaved configurations must not", config.name));
            }
            if let [a, b] = known[..]
                && a.query_cosine_min != b.query_cosine_min
            {
                let differ = format!("`{}` and `{}` differ in `query_cosine_min`", a.name, b.name);
                problems.push(format!("{field}: {differ}; one retrieval serves both"));
            }
        }
        problems
    }

    /// Selects the configuration of suggestions: the one that the request names, else the default one. Suggestions are not
    /// recorded, so they neither explore nor take part in experiments.
    pub fn plan_of_suggestions(&self, named: &str) -> Result<Plan, UnknownConfig> {
        let config = self.config(if named.is_empty() { DEFAULT } else { named })?;
        let config = ServingConfig { exploration: None, ..ServingConfig::clone(config) };
        Ok(Plan { configs: vec![Arc::new(config)], arm: None })
    }

    /// Checks that a bundle has all heads for which configurations set weights, and what their objectives need.
    pub fn check_bundle<'a>(
        &self,
        heads: impl Iterator<Item = &'a str> + Clone,
        loyalty: &TrainedLoyalty,
    ) -> Result<(), ServingError> {
        let has = |head: &str| heads.clone().any(|known| known == head);
        let known = || heads.clone().collect::<Vec<_>>().join(", ");
        for config in self.configs.values() {
            if let Some(head) = config.head_weights.keys().find(|head| !has(head)) {
                return Err(ServingError::Head { config: config.name.clone(), head: head.clone(), known: known() });
            }
            let Some(mix) = &config.objectives else { continue };
            for (objective, _) in &mix.weights {
                if let Some(head) = objective.heads().iter().find(|head| !has(head)) {
                    let (config, objective) = (config.name.clone(), objective.name());
                    return Err(ServingError::ObjectiveHead { config, objective, head, known: known() });
                }
            }
            if let (true, TrainedLoyalty::Missing { reason }) = (mix.has(rules::Objective::Loyalty), loyalty) {
                return Err(ServingError::Loyalty { config: config.name.clone(), reason: reason.clone() });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"
        [configs.default]
        diversity = 0.2
        [configs.brave]
        candidates = 400
        query_cosine_min = 0.3
        head_weights = { purchase = 2.0 }
        exploration = { temperature = 0.5, first_slot = 3, epsilon_slots = [8, 16], share = 0.1 }
        [configs.plain]
        ranker = false

        [[experiments]]
        name = "brave"
        arms = [{ name = "control", config = "default", share = 0.25 }, { name = "treatment", config = "brave", share = 0.25 }]
        [[experiments]]
        name = "models"
        interleave = ["default", "plain"]
        share = 0.5
    "#;

    fn parse(text: &str) -> Result<Serving, Vec<String>> {
        file::parse(text, &ServingConfig { source_candidates: 77, ..ServingConfig::default() })
    }

    fn user(number: usize) -> UserId {
        UserId::signed_in(&number.to_string()).unwrap()
    }

    #[test]
    fn configurations_default_to_the_base() {
        let file = parse(FILE).unwrap();
        assert!(file.check(&BTreeMap::new()).is_ok() && file.varies());
        let serving = file.snapshot(&BTreeMap::new());
        let plan = serving.plan("brave", &user(1)).unwrap();
        let brave = plan.main();
        assert_eq!((brave.candidates, brave.source_candidates, brave.diversity), (400, 77, 0.0));
        assert_eq!(plan.retrieval_limits().query_cosine_min, Some(0.3));
        let exploration = brave.exploration.as_ref().unwrap();
        assert_eq!((exploration.first_slot, exploration.top, exploration.epsilon), (3, 20, 1.0));
        assert!(plan.arm.is_none() && brave.etag.len() == 16);
        let error = serving.plan("bold", &user(1)).unwrap_err();
        assert_eq!(error.to_string(), "there is no serving configuration `bold`; the server has brave, default, plain");
    }

    #[test]
    fn users_keep_their_arms_and_shares_hold() {
        let serving = parse(FILE).unwrap().snapshot(&BTreeMap::new());
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for number in 0..20_000 {
            let plan = serving.plan("", &user(number)).unwrap();
            assert_eq!(plan, serving.plan("", &user(number)).unwrap());
            *counts.entry(plan.arm.map_or_else(String::new, |arm| arm.arm)).or_default() += 1;
        }
        // Half of the users are in the first experiment, half of the others in the second.
        for (arm, expected) in [("control", 5000), ("treatment", 5000), (INTERLEAVED, 5000), ("", 5000)] {
            let found = counts[arm];
            assert!(found.abs_diff(expected) < 250, "{found} users have the arm `{arm}`, expected {expected}");
        }
    }

    #[test]
    fn all_mistakes_are_reported_with_their_fields() {
        let problems = parse(
            r#"
            [configs."bad name"]
            candidates = 0
            diversity = 1.5
            repeat_fraction = -0.1
            [configs.x]
            ranker = false
            query_cosine_min = -2.0
            head_weights = { purchase = 1.0 }
            exploration = { temperature = -1.0, first_slot = 0, epsilon_slots = [3, 3], share = 0.0 }
            [configs.y]
            exploration = { share = 0.5 }
            [[experiments]]
            name = "e"
            arms = [{ name = "a", config = "default", share = 0.8 }, { name = "a", config = "default", share = 0.8 }]
            [[experiments]]
            name = "e"
            interleave = ["default", "default"]
            [[experiments]]
            name = "f"
            "#,
        )
        .unwrap_err()
        .join("\n");
        for words in [
            "configs.bad name: `bad name` is not a name",
            "configs.bad name.candidates: is 0; it must be within 1 and 1000",
            "configs.bad name.diversity: is 1.5",
            "configs.bad name.repeat_fraction: is -0.1; it must be within 0 and 1",
            "configs.x.query_cosine_min: is -2; it must be within -1 and 1",
            "configs.x.exploration.temperature: is -1",
            "configs.x.exploration.first_slot: is 0",
            "configs.x.exploration.epsilon_slots: must ascend",
            "configs.x.exploration.share: is 0; it must be above 0",
            "configs.x.head_weights: has no effect",
            "configs.y.exploration: explores nothing",
            "experiments[0].arms: have shares with the sum 1.6",
            "experiments[0].arms[1].name: `a` is the name of two arms",
            "experiments[1].name: `e` is the name of two experiments",
            "experiments[1].interleave: has `default` twice",
            "experiments[2]: needs either `arms` or `interleave`",
        ] {
            assert!(problems.contains(words), "{words} is missing in\n{problems}");
        }
    }

    fn compiled(name: &str) -> (String, Arc<CompiledServingConfig>) {
        let config = rules::ServingConfig { serving_config_id: name.to_owned(), ..Default::default() };
        (name.to_owned(), Arc::new(CompiledServingConfig::new(config).unwrap()))
    }

    #[test]
    fn experiments_name_configurations_of_the_file_and_of_the_api() {
        let serving = parse(
            r#"
            [configs.x]
            query_cosine_min = 0.5
            exploration = { temperature = 1.0 }
            [[experiments]]
            name = "e"
            arms = [{ name = "a", config = "default", share = 0.5 }, { name = "b", config = "of_api", share = 0.5 }]
            [[experiments]]
            name = "f"
            interleave = ["default", "x"]
            "#,
        )
        .unwrap();
        let problems = serving.check(&BTreeMap::from([compiled("x")])).unwrap_err().to_string();
        for words in [
            "configs.x: the API has a configuration of this name too",
            "experiments[0].arms[1].config: there is no configuration `of_api`; there are default, x",
            "experiments[1].interleave: `x` explores",
            "experiments[1].interleave: `default` and `x` differ in `query_cosine_min`",
        ] {
            assert!(problems.contains(words), "{words} is missing in\n{problems}");
        }
        assert_eq!(serving.experiments_with("of_api").collect::<Vec<_>>(), ["e"]);
        assert_eq!(serving.experiments_with("default").collect::<Vec<_>>(), ["e", "f"]);
        let snapshot = serving.snapshot(&BTreeMap::from([compiled("of_api")]));
        let arms: Vec<String> =
            (0..20).map(|number| snapshot.plan("", &user(number)).unwrap().main().name.clone()).collect();
        assert!(arms.contains(&"of_api".to_owned()) && arms.contains(&"default".to_owned()));
    }

    #[test]
    fn an_unknown_field_and_a_wrong_type_are_reported_with_their_line() {
        let unknown = parse("[configs.default]\ndiversty = 0.5\n").unwrap_err().join("");
        assert!(unknown.contains("line 2") && unknown.contains("diversty"), "{unknown}");
        assert!(parse("[configs.default]\ncandidates = \"many\"\n").unwrap_err().join("").contains("line 2"));
    }

    #[test]
    fn a_weight_of_a_head_that_the_bundle_lacks_is_refused() {
        let serving = parse(FILE).unwrap().snapshot(&BTreeMap::new());
        let missing = TrainedLoyalty::Missing { reason: "few events".to_owned() };
        assert!(serving.check_bundle(["purchase", "return"].into_iter(), &missing).is_ok());
        let error = serving.check_bundle(["click"].into_iter(), &missing).unwrap_err();
        assert!(
            error.to_string().contains("configs.brave.head_weights: the bundle has no head `purchase`; it has click")
        );
    }
}
