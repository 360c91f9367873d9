//! Off-policy evaluation of another order, from logged answers with exploration.
use super::{
    estimate::{EstimateOptions, Estimates, estimate},
    log::{ActionDistribution, Cell, Log, LogRow},
    support::Refusal,
};
use crate::observations::Outcome;
use ahash::AHashMap;
use lodestone_core::units::UnixMillis;
use lodestone_dataset::DatasetSlot;
use lodestone_pipeline::{
    answers::{AnswerKind, AnswerLogError, AnswerRecord, for_each_record},
    serving::ServingConfig,
};
use serde::Serialize;
use std::{fmt, path::Path};

/// The definition of the reward of a slot.
#[derive(Debug, Clone, PartialEq)]
pub struct Reward {
    /// The kind of outcome: `click`, `purchase`, …
    pub kind: String,
    /// True: the sum of the outcomes' values. False: 1 for a slot with such an outcome.
    pub is_value: bool,
    /// Outcomes count until this much after the answer.
    pub window_ms: i64,
}

/// The report of `lodestone evaluate --off-policy`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LoggedReport {
    /// The evaluated order, for the report.
    pub target: String,
    pub answers: usize,
    /// Excluded answers, because their records do not determine the evaluated order.
    pub left_out: usize,
    /// Slots without a pin.
    pub slots: usize,
    /// Slots that show the same item as the evaluated order.
    pub same_slots: usize,
    pub users: usize,
    /// Outcomes of the kind that belong to a slot.
    pub matched: usize,
    /// Outcomes of the kind that belong to no slot.
    pub unmatched: usize,
    /// Reward per slot of the answers as shown.
    pub shown_mean: f64,
    /// Reward per slot of the evaluated order; `None` if the log was refused.
    pub estimates: Option<Estimates>,
    pub refused: Option<String>,
}

/// The slots of answers with the decisions of the evaluated order.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct EvaluatedSlots {
    /// The evaluated order, for the report.
    pub target: String,
    /// The slots of an answer are consecutive.
    pub slots: Vec<DatasetSlot>,
    /// Whether the evaluated order shows the same item in the slot.
    pub is_same: Vec<bool>,
    /// Answers without slots here, because their records do not determine the evaluated order.
    pub left_out: usize,
}

impl EvaluatedSlots {
    /// Evaluates the order without exploration.
    pub fn organic(slots: Vec<DatasetSlot>) -> Self {
        let is_same = slots.iter().map(|slot| slot.organic_slot == slot.slot).collect();
        Self { target: "the order without exploration".to_owned(), slots, is_same, left_out: 0 }
    }
}

/// Samples for propensities that have no closed form.
const PROPENSITY_SAMPLES: usize = 200;

/// Reads the records of a server (`DATA/answers`) and evaluates the order of a serving configuration; see
/// [`AnswerRecord::page_of`]. Leaves out suggestions. Each damaged block of the files counts as one excluded answer.
pub fn answers_under(config: &ServingConfig, directory: &Path) -> Result<EvaluatedSlots, AnswerLogError> {
    let mut evaluated =
        EvaluatedSlots { target: format!("serving configuration {}", config.name), ..EvaluatedSlots::default() };
    let lost = for_each_record(directory, UnixMillis(0), |record| {
        // Suggestions explore nothing, and would take the outcomes of the page that the user chose from.
        if record.kind() == AnswerKind::Suggest {
            return;
        }
        match slots_under(config, &record) {
            Some((slots, is_same)) => {
                evaluated.slots.extend(slots);
                evaluated.is_same.extend(is_same);
            }
            None => evaluated.left_out += 1,
        }
    })?;
    evaluated.left_out += lost.damaged_blocks;
    Ok(evaluated)
}

fn slots_under(config: &ServingConfig, record: &AnswerRecord) -> Option<(Vec<DatasetSlot>, Vec<bool>)> {
    let page = record.page_of(config).ok()?;
    let slots = slots_of(record)?;
    let is_same = slots.iter().zip(&page).map(|(slot, item)| slot.item == **item).collect();
    Some((slots, is_same))
}

/// Returns the slots of a record; none if it is inconsistent.
pub fn slots_of(record: &AnswerRecord) -> Option<Vec<DatasetSlot>> {
    let rows = record.rows(PROPENSITY_SAMPLES).ok()?;
    let slots = rows.into_iter().map(|row| DatasetSlot {
        answer: uuid::Uuid::from_bytes(row.answer).to_string(),
        at: row.at,
        user: row.user,
        session: row.session,
        experiment: row.experiment,
        arm: row.arm,
        slot: row.slot,
        item: row.item,
        propensity: row.propensity.probability,
        organic_slot: row.organic_slot,
        is_pinned: row.is_pinned,
        team: row.team,
    });
    Some(slots.collect())
}

/// Estimates the reward per slot of the evaluated order, and computes the reward of the answers as shown. An outcome
/// belongs to the answer that it names, otherwise to the user's latest earlier answer that shows its item. Pinned slots
/// are excluded, because no order moves them.
pub fn evaluate_answers(
    evaluated: &EvaluatedSlots,
    outcomes: &[Outcome],
    reward: &Reward,
    options: &EstimateOptions,
) -> LoggedReport {
    let slots = &evaluated.slots;
    let (rewards, matched, unmatched) = rewards(slots, outcomes, reward);
    let mut users: AHashMap<&str, u32> = AHashMap::new();
    let mut log = Log::default();
    // The reward model uses the slot only, because the log lacks items that are not on the page.
    let depth = slots.iter().map(|slot| slot.slot).max().unwrap_or(0);
    log.cells = (0..=depth).map(|slot| Cell { action: 0, position: slot }).collect();
    log.distributions =
        (0..=depth).map(|slot| ActionDistribution { cells: vec![slot], probabilities: vec![1.0] }).collect();
    let all = slots.iter().zip(&rewards).zip(&evaluated.is_same);
    for ((slot, reward), is_same) in all.filter(|((slot, _), _)| !slot.is_pinned) {
        let next = users.len() as u32;
        log.rows.push(LogRow {
            user: *users.entry(slot.user.as_str()).or_insert(next),
            cell: slot.slot,
            distribution: slot.slot,
            reward: *reward,
            propensity: slot.propensity,
            target: f64::from(u8::from(*is_same)),
        });
    }
    let estimated = estimate(&log, options);
    LoggedReport {
        target: evaluated.target.clone(),
        left_out: evaluated.left_out,
        answers: slots.chunk_by(|a, b| a.answer == b.answer).count(),
        slots: log.rows.len(),
        same_slots: log.rows.iter().filter(|row| row.target > 0.0).count(),
        users: users.len(),
        matched,
        unmatched,
        shown_mean: log.rows.iter().map(|row| row.reward).sum::<f64>() / log.rows.len().max(1) as f64,
        refused: estimated.as_ref().err().map(Refusal::to_string),
        estimates: estimated.ok(),
    }
}

/// Returns the reward of each slot, and the numbers of matched and unmatched outcomes of the kind.
fn rewards(slots: &[DatasetSlot], outcomes: &[Outcome], reward: &Reward) -> (Vec<f64>, usize, usize) {
    // Times and slots of each user and item.
    let mut shown: AHashMap<(&str, &str), Vec<(UnixMillis, usize)>> = AHashMap::new();
    for (number, slot) in slots.iter().enumerate() {
        shown.entry((slot.user.as_str(), slot.item.as_str())).or_default().push((slot.at, number));
    }
    shown.values_mut().for_each(|shown| shown.sort_unstable());
    let (mut rewards, mut matched, mut unmatched) = (vec![0.0; slots.len()], 0, 0);
    for outcome in outcomes.iter().filter(|outcome| outcome.kind == reward.kind) {
        let belongs = |(at, number): &&(UnixMillis, usize)| {
            *at <= outcome.at
                && outcome.at.0 - at.0 <= reward.window_ms
                && (outcome.answer.is_empty() || outcome.answer == slots[*number].answer)
        };
        let candidates = shown.get(&(outcome.user.as_str(), outcome.item.as_str()));
        match candidates.and_then(|candidates| candidates.iter().rev().find(belongs)) {
            Some((_, number)) if reward.is_value => rewards[*number] += outcome.value.max(0.0),
            Some((_, number)) => rewards[*number] = 1.0,
            None => {
                unmatched += 1;
                continue;
            }
        }
        matched += 1;
    }
    (rewards, matched, unmatched)
}

impl fmt::Display for LoggedReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} answers to {} users, {} slots without a pin, {} of them as in {}; {} answers excluded",
            self.answers, self.users, self.slots, self.same_slots, self.target, self.left_out
        )?;
        writeln!(f, "outcomes: {} belong to a slot, {} to none", self.matched, self.unmatched)?;
        writeln!(f, "as shown: {:.6} per slot", self.shown_mean)?;
        let Some(estimates) = &self.estimates else {
            return writeln!(f, "refused: {}", self.refused.as_deref().unwrap_or("no estimate"));
        };
        let support = &estimates.support;
        writeln!(
            f,
            "{}, {:.0} effective of {} slots, mean weight {:.3}, maximum {:.1}:",
            self.target, support.ess, support.rows, support.weight_mean, support.weight_max
        )?;
        for measure in &estimates.measures {
            let (name, value) = (measure.estimator.name(), measure.value);
            writeln!(f, "  {name:<14} {value:.6} [{:.6}, {:.6}]", measure.low, measure.high)?;
        }
        Ok(())
    }
}
