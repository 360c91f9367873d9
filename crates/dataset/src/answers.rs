//! Reads `answers.parquet`, which `lodestone answers export` writes with one row for each shown slot.
use super::{DatasetError, columns};
use lodestone_core::units::UnixMillis;
use std::path::Path;

/// One item that an answer showed.
#[derive(Debug, Clone, PartialEq)]
pub struct DatasetSlot {
    pub answer: String,
    pub at: UnixMillis,
    /// `u:` and the user id, or `v:` and the visitor id.
    pub user: String,
    /// The session id of the request; empty if it had none.
    pub session: String,
    /// Empty if the answer belongs to no experiment.
    pub experiment: String,
    pub arm: String,
    /// Counted from 1.
    pub slot: u32,
    pub item: String,
    /// The probability of this item in this slot, above 0 and at most 1.
    pub propensity: f64,
    /// The slot that the item would have without exploration, counted from 1.
    pub organic_slot: u32,
    pub is_pinned: bool,
    /// 1 or 2 in interleaved answers; otherwise 0.
    pub team: u32,
}

/// The kind of answers that suggest products while a user types.
const SUGGEST: &str = "suggest";

/// Reads the slots in file order, without those of suggestions: they explore nothing, and would take the outcomes of the page
/// that the user chose from. A file without the column `kind` has none.
pub fn read_slots(path: &Path) -> Result<Vec<DatasetSlot>, DatasetError> {
    let mut slots = Vec::new();
    columns::read(path, |columns| {
        let (answers, users, items) = (columns.texts("answer_id")?, columns.texts("user")?, columns.texts("item_id")?);
        let sessions = columns.texts("session")?;
        let (experiments, arms) = (columns.texts("experiment")?, columns.texts("arm")?);
        let (times, numbers) = (columns.integers("time_ms")?, columns.integers("slot")?);
        let (organic, teams) = (columns.integers("organic_slot")?, columns.integers("team")?);
        let (propensities, pinned) = (columns.numbers("propensity")?, columns.flags("is_pinned")?);
        let kinds = if columns.has("kind") { Some(columns.texts("kind")?) } else { None };
        for row in 0..columns.len() {
            if kinds.is_some_and(|kinds| kinds.value(row) == SUGGEST) {
                continue;
            }
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
                session: sessions.value(row).to_owned(),
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
