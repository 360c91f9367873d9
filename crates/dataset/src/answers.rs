//! answers.parquet: one row for each slot that was shown, as `lodestone answers export` writes it.
use super::{DatasetError, columns};
use lodestone_core::units::UnixMillis;
use std::path::Path;

/// One shown item of an answer.
#[derive(Debug, Clone, PartialEq)]
pub struct DatasetSlot {
    pub answer: String,
    pub at: UnixMillis,
    /// `u:` and the user, or `v:` and the visitor.
    pub user: String,
    /// Empty: no experiment.
    pub experiment: String,
    pub arm: String,
    /// From 1.
    pub slot: u32,
    pub item: String,
    /// Above 0, at most 1: of this item in this slot.
    pub propensity: f64,
    /// The slot that the item would have had without exploration, from 1.
    pub organic_slot: u32,
    pub is_pinned: bool,
    /// Of interleaved answers 1 or 2; otherwise 0.
    pub team: u32,
}

/// Reads slots in order.
pub fn read_slots(path: &Path) -> Result<Vec<DatasetSlot>, DatasetError> {
    let mut slots = Vec::new();
    columns::read(path, |columns| {
        let (answers, users, items) = (columns.texts("answer_id")?, columns.texts("user")?, columns.texts("item_id")?);
        let (experiments, arms) = (columns.texts("experiment")?, columns.texts("arm")?);
        let (times, numbers) = (columns.integers("time_ms")?, columns.integers("slot")?);
        let (organic, teams) = (columns.integers("organic_slot")?, columns.integers("team")?);
        let (propensities, pinned) = (columns.numbers("propensity")?, columns.flags("is_pinned")?);
        for row in 0..columns.len() {
            let small = |column: &'static str, number: i64| {
                u32::try_from(number).map_err(|_| columns.bad(row, column, format!("{number} is out of range")))
            };
            let propensity = propensities.value(row);
            if !(propensity > 0.0 && propensity <= 1.0) {
                let problem = format!("{propensity} is not above 0 and at most 1");
                return Err(columns.bad(row, "propensity", problem));
            }
            slots.push(DatasetSlot {
                answer: answers.value(row).to_owned(),
                at: UnixMillis(times.value(row)),
                user: users.value(row).to_owned(),
                experiment: experiments.value(row).to_owned(),
                arm: arms.value(row).to_owned(),
                slot: small("slot", numbers.value(row))?,
                item: items.value(row).to_owned(),
                propensity,
                organic_slot: small("organic_slot", organic.value(row))?,
                is_pinned: pinned.value(row),
                team: small("team", teams.value(row))?,
            });
        }
        Ok(())
    })?;
    Ok(slots)
}
