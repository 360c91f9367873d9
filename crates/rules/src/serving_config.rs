//! Validated serving configurations. All mistakes of a configuration are reported together.
use crate::{
    compiled::{Problems, RuleProblem, etag, limits},
    data::{Exploration, Objective, RankingObjectives, ServingConfig, SoldOut},
};

/// A validated serving configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct CompiledServingConfig {
    /// With its etag.
    pub config: ServingConfig,
}

impl CompiledServingConfig {
    /// Validates a configuration and sets its etag. Returns all mistakes.
    pub fn new(mut config: ServingConfig) -> Result<Self, Vec<RuleProblem>> {
        let mut problems = Problems::default();
        problems.id("serving_config_id", &config.serving_config_id);
        let mut within = |field: &str, value: Option<f64>, least: f64, most: f64| {
            value.into_iter().for_each(|value| problems.within(field, value, least, most));
        };
        let candidates = f64::from(limits::CANDIDATES);
        within("source_candidates", config.source_candidates.map(f64::from), 1.0, candidates);
        within("candidates", config.candidates.map(f64::from), 1.0, candidates);
        within("query_cosine_min", config.query_cosine_min, -1.0, 1.0);
        within("diversity", config.diversity, 0.0, 1.0);
        within("repeat_fraction", config.repeat_fraction, 0.0, 1.0);
        if SoldOut::try_from(config.sold_out).is_err() {
            problems
                .add("sold_out", format!("{} is not a SoldOut; use 1 to {}", config.sold_out, SoldOut::Show as i32));
        }
        problems.count("head_weights", config.head_weights.len(), limits::HEADS);
        for (head, weight) in config.head_weights.iter().take(limits::HEADS) {
            problems.within(format_args!("head_weights.{head}"), *weight, -limits::HEAD_WEIGHT, limits::HEAD_WEIGHT);
        }
        if config.ranker == Some(false) && !config.head_weights.is_empty() {
            problems.add("head_weights", "has no effect if `ranker` is false");
        }
        if let Some(objectives) = &config.objectives {
            self::objectives(&mut problems, objectives);
            if config.ranker == Some(false) {
                problems.add("objectives", "has no effect if `ranker` is false");
            }
        }
        if let Some(exploration) = &config.exploration {
            self::exploration(&mut problems, exploration);
        }
        match problems.0.is_empty() {
            false => Err(problems.0),
            true => {
                config.etag.clear();
                config.etag = etag(&config);
                Ok(Self { config })
            }
        }
    }

    pub fn id(&self) -> &str {
        &self.config.serving_config_id
    }

    /// Returns the configuration as the log stores it.
    pub fn stored(&self) -> ServingConfig {
        ServingConfig { etag: String::new(), ..self.config.clone() }
    }
}

fn exploration(problems: &mut Problems, exploration: &Exploration) {
    let at = |field: &'static str| format!("exploration.{field}");
    // The last slot of the largest page.
    let (slot_max, explored_max) = (limits::RANK, limits::EXPLORED);
    let whole = |problems: &mut Problems, field, value: Option<i32>, most| {
        value.into_iter().for_each(|value| problems.within(at(field), value, 1, most));
    };
    problems.within(at("temperature"), exploration.temperature, 0.0, limits::TEMPERATURE);
    whole(problems, "first_slot", exploration.first_slot, slot_max);
    whole(problems, "top", exploration.top, explored_max);
    whole(problems, "epsilon_candidates", exploration.epsilon_candidates, explored_max);
    if let Some(epsilon) = exploration.epsilon {
        problems.within(at("epsilon"), epsilon, 0.0, 1.0);
    }
    let slots = &exploration.epsilon_slots;
    problems.count(at("epsilon_slots"), slots.len(), limits::EPSILON_SLOTS);
    for (index, slot) in slots.iter().take(limits::EPSILON_SLOTS).enumerate() {
        problems.within(format_args!("exploration.epsilon_slots[{index}]"), *slot, 1, slot_max);
    }
    if slots.windows(2).any(|pair| pair[0] >= pair[1]) {
        problems.add(at("epsilon_slots"), "must ascend");
    }
    if let Some(share) = exploration.share
        && !(share > 0.0 && share <= 1.0)
    {
        problems.add(at("share"), format!("is {share}; it must be above 0 and at most 1"));
    }
    if exploration.temperature == 0.0 && (slots.is_empty() || exploration.epsilon == Some(0.0)) {
        problems.add("exploration", "explores nothing: set `temperature` above 0, or `epsilon_slots`, or leave it out");
    }
}

fn objectives(problems: &mut Problems, objectives: &RankingObjectives) {
    let known = Objective::ALL.len();
    let weights = &objectives.weights;
    problems.count("objectives.weights", weights.len(), known);
    for (index, of) in weights.iter().take(known).enumerate() {
        let at = |field: &str| format!("objectives.weights[{index}].{field}");
        match Objective::try_from(of.objective) {
            Ok(Objective::Unspecified) => problems.add(at("objective"), "is not set; set it to an Objective"),
            Ok(_) if weights[..index].iter().any(|earlier| earlier.objective == of.objective) => {
                problems.add(at("objective"), "has an earlier weight; each objective has one");
            }
            Ok(_) => {}
            Err(_) => {
                problems.add(at("objective"), format!("{} is not an Objective; use 1 to {known}", of.objective));
            }
        }
        problems.within(at("weight"), of.weight, 0.0, 1.0);
    }
    let sum: f64 = weights.iter().map(|of| of.weight).sum();
    // The sum of weights such as 0.7, 0.2 and 0.1 is not exact.
    if !(sum > 0.0 && sum <= 1.0 + 1e-9) {
        problems.add(
            "objectives.weights",
            format!("have the sum {sum}; it must be above 0 and at most 1, because relevance has the rest"),
        );
    }
    if let Some(loss) = objectives.ndcg_loss_max {
        problems.within("objectives.ndcg_loss_max", loss, 0.0, 1.0);
    }
}
