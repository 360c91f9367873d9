//! What the order without exploration would have earned, from answers that explored.
use super::{Cell, Choice, EstimateOptions, Estimates, Log, LogRow, Refusal, estimate};
use crate::{dataset::DatasetSlot, experiments::Outcome, units::UnixMillis};
use ahash::AHashMap;
use serde::Serialize;
use std::fmt;

/// What counts as a reward.
#[derive(Debug, Clone, PartialEq)]
pub struct Reward {
    /// The kind of outcome: `click`, `purchase`, …
    pub kind: String,
    /// True: what it was worth. False: 1 for a slot with such an outcome.
    pub is_value: bool,
    /// Counts for so long after the answer.
    pub window_ms: i64,
}

/// What `lodestone evaluate --off-policy` prints.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OrganicReport {
    pub answers: usize,
    /// Slots without a pin.
    pub slots: usize,
    /// Those that showed what they would have shown without exploration.
    pub organic_slots: usize,
    pub persons: usize,
    /// Outcomes of the kind that belong to a slot, and those that belong to none.
    pub matched: usize,
    pub unmatched: usize,
    /// Reward per slot of what was shown.
    pub shown_mean: f64,
    /// Of the order without exploration, per slot; nothing where the log was refused.
    pub estimates: Option<Estimates>,
    pub refused: Option<String>,
}

/// Estimates what the order without exploration earns per slot, beside what the explored answers earned. An outcome
/// belongs to the answer that it names, else to the person's latest answer before it that shows its item. Slots with a pin
/// are left out: no order moves them.
pub fn organic(
    slots: &[DatasetSlot],
    outcomes: &[Outcome],
    reward: &Reward,
    options: &EstimateOptions,
) -> OrganicReport {
    let (rewards, matched, unmatched) = rewards(slots, outcomes, reward);
    let mut persons: AHashMap<&str, u32> = AHashMap::new();
    let mut log = Log::default();
    // The reward model knows slots only: which item would have been there is not in the log where it left the page.
    let depth = slots.iter().map(|slot| slot.slot).max().unwrap_or(0);
    log.cells = (0..=depth).map(|slot| Cell { action: 0, position: slot }).collect();
    log.choices = (0..=depth).map(|slot| Choice { cells: vec![slot], probabilities: vec![1.0] }).collect();
    for (slot, reward) in slots.iter().zip(&rewards).filter(|(slot, _)| !slot.is_pinned) {
        let next = persons.len() as u32;
        log.rows.push(LogRow {
            person: *persons.entry(slot.person.as_str()).or_insert(next),
            cell: slot.slot,
            choice: slot.slot,
            reward: *reward,
            propensity: slot.propensity,
            target: f64::from(u8::from(slot.organic_slot == slot.slot)),
        });
    }
    let estimated = estimate(&log, options);
    OrganicReport {
        answers: slots.chunk_by(|a, b| a.answer == b.answer).count(),
        slots: log.rows.len(),
        organic_slots: log.rows.iter().filter(|row| row.target > 0.0).count(),
        persons: persons.len(),
        matched,
        unmatched,
        shown_mean: log.rows.iter().map(|row| row.reward).sum::<f64>() / log.rows.len().max(1) as f64,
        refused: estimated.as_ref().err().map(Refusal::to_string),
        estimates: estimated.ok(),
    }
}

/// The reward of each slot, and how many outcomes of the kind belong to a slot and to none.
fn rewards(slots: &[DatasetSlot], outcomes: &[Outcome], reward: &Reward) -> (Vec<f64>, usize, usize) {
    // By person and item: when it was shown, and where.
    let mut shown: AHashMap<(&str, &str), Vec<(UnixMillis, usize)>> = AHashMap::new();
    for (number, slot) in slots.iter().enumerate() {
        shown.entry((slot.person.as_str(), slot.item.as_str())).or_default().push((slot.at, number));
    }
    shown.values_mut().for_each(|shown| shown.sort_unstable());
    let (mut rewards, mut matched, mut unmatched) = (vec![0.0; slots.len()], 0, 0);
    for outcome in outcomes.iter().filter(|outcome| outcome.kind == reward.kind) {
        let belongs = |(at, number): &&(UnixMillis, usize)| {
            *at <= outcome.at
                && outcome.at.0 - at.0 <= reward.window_ms
                && (outcome.answer.is_empty() || outcome.answer == slots[*number].answer)
        };
        let candidates = shown.get(&(outcome.person.as_str(), outcome.item.as_str()));
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

impl fmt::Display for OrganicReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} answers to {} persons, {} slots without a pin, {} of them as without exploration",
            self.answers, self.persons, self.slots, self.organic_slots
        )?;
        writeln!(f, "outcomes: {} belong to a slot, {} to none", self.matched, self.unmatched)?;
        writeln!(f, "as shown, with exploration: {:.6} per slot", self.shown_mean)?;
        let Some(estimates) = &self.estimates else {
            return writeln!(f, "refused: {}", self.refused.as_deref().unwrap_or("no estimate"));
        };
        let support = &estimates.support;
        writeln!(
            f,
            "without exploration, {:.0} effective of {} slots, weights' mean {:.3}, greatest {:.1}:",
            support.ess, support.rows, support.weight_mean, support.weight_max
        )?;
        for measure in &estimates.measures {
            let (name, value) = (measure.estimator.name(), measure.value);
            writeln!(f, "  {name:<14} {value:.6} [{:.6}, {:.6}]", measure.low, measure.high)?;
        }
        Ok(())
    }
}
