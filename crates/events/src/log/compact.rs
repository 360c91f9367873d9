//! Compaction: removes events beyond their retention and replaced values of items from a log that no process has open.
use super::{
    EventLog,
    check::put_open_segment,
    check_end, damaged, header_error,
    segment::{self, Header, PAYLOAD_BYTES_MAX, Segment},
};
use crate::{
    Change, DEDUPE_DAYS, EventKind, LogError, checkpoint,
    directory::{LogDirectory, position_of},
};
use ahash::AHashMap;
use lodestone_catalog::ItemState;
use lodestone_core::{ids::ItemId, units::UnixMillis};
use lodestone_rules::EntryKind;
use std::collections::BTreeMap;

/// Retention periods by event type. Events of other types are kept forever.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Retention {
    days: BTreeMap<EventKind, u32>,
}

/// The reason why a text is not a valid retention.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RetentionError {
    #[error("`{0}` is not a retention; write TYPE=DAYSd, such as impression=30d")]
    Form(String),
    #[error("`{0}` is not an event type; the types are {types}", types = EventKind::ALL.map(EventKind::name).join(", "))]
    Kind(String),
    #[error("{kind}={days}d is shorter than the deduplication window of {DEDUPE_DAYS} days")]
    TooShort { kind: &'static str, days: u32 },
}

impl Retention {
    /// Parses and adds a retention such as `impression=30d`.
    pub fn add(&mut self, text: &str) -> Result<(), RetentionError> {
        let form = || RetentionError::Form(text.to_owned());
        let (kind, days) = text.split_once('=').ok_or_else(form)?;
        let days: u32 = days.strip_suffix('d').and_then(|days| days.parse().ok()).ok_or_else(form)?;
        let kind = EventKind::from_name(kind).ok_or_else(|| RetentionError::Kind(kind.to_owned()))?;
        if days < DEDUPE_DAYS {
            return Err(RetentionError::TooShort { kind: kind.name(), days });
        }
        self.days.insert(kind, days);
        Ok(())
    }

    pub fn is_empty(&self) -> bool {
        self.days.is_empty()
    }

    /// Returns true if both the event time and the ingestion time are beyond the retention of the event's type.
    fn drops(&self, kind: EventKind, at: UnixMillis, stored: UnixMillis, now: UnixMillis) -> bool {
        self.days.get(&kind).is_some_and(|days| at.max(stored).0 < now.0 - i64::from(*days) * UnixMillis::DAY)
    }
}

/// The effect of [`compact`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CompactMode {
    /// Rewrites the files.
    Apply,
    /// Only counts.
    DryRun,
}

/// The counts of a compaction.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Compacted {
    /// Dropped events by type.
    pub events: BTreeMap<EventKind, u64>,
    /// Dropped changes of items whose values later changes replaced.
    pub item_changes: u64,
    /// Dropped changes of entries (rules, synonyms, serving configurations, declared attributes, campaigns) that later
    /// changes replaced.
    pub rule_changes: u64,
    pub kept: u64,
    pub bytes_before: u64,
    pub bytes_after: u64,
}

/// Rewrites the log's files without the events that `retention` drops, and with as few changes of each item as its
/// state needs. Positions of events do not change. Checkpoints are removed because they include dropped events; the
/// next startup folds the rest of the log.
pub fn compact(
    directory: impl Into<LogDirectory>,
    retention: &Retention,
    now: UnixMillis,
    mode: CompactMode,
) -> Result<Compacted, LogError> {
    // Fails for a damaged log before anything is dropped, and truncates a torn write.
    let log = EventLog::open(directory)?;
    let directory = log.directory();
    let fates = fates(&log)?;
    if mode == CompactMode::Apply {
        // The checkpoint can be the only evidence that the end of the log is missing.
        check_end(directory.path(), checkpoint::newest_until(directory.path())?, log.last_position())?;
        checkpoint::remove(directory)?;
    }
    let mut compacted = Compacted::default();
    let paths = directory.segments()?;
    for path in &paths {
        let first = position_of(path).unwrap_or(1);
        let segment = Segment::read(path).map_err(|error| header_error(path, first, error))?;
        let (mut frames, mut kept, mut is_changed) = (segment.frames(), Vec::new(), false);
        for frame in frames.by_ref() {
            let frame = frame.map_err(|damage| damaged(path, &damage))?;
            let change = Change::decode(frame.position, frame.payload)?;
            let stored = UnixMillis(i64::from(frame.at_s) * 1000);
            let fate = match &change {
                Change::Event(event) => {
                    // A redemption of a decision counts for the budget of its campaign for good.
                    let is_redemption = event.kind == EventKind::IncentiveRedeemed && !event.coupon.is_empty();
                    let drops = !is_redemption && retention.drops(event.kind, event.at, stored, now);
                    *compacted.events.entry(event.kind).or_default() += u64::from(drops);
                    if drops { &Fate::Dropped } else { &Fate::Kept }
                }
                // All decisions count for limits and budgets.
                Change::Decision(_) => &Fate::Kept,
                Change::Item(_) | Change::Rule(_) => fates.get(&frame.position).unwrap_or(&Fate::Kept),
            };
            is_changed |= !matches!(fate, Fate::Kept);
            match fate {
                Fate::Dropped => match change {
                    Change::Event(_) | Change::Decision(_) => {}
                    Change::Item(_) => compacted.item_changes += 1,
                    Change::Rule(_) => compacted.rule_changes += 1,
                },
                Fate::Kept => segment::put_frame(&mut kept, frame.position, frame.at_s, true, frame.payload),
                Fate::Rewritten(bytes) => segment::put_frame(&mut kept, frame.position, frame.at_s, true, bytes),
            }
            compacted.kept += u64::from(!matches!(fate, Fate::Dropped));
        }
        compacted.bytes_before += segment.len() as u64;
        if !is_changed {
            compacted.bytes_after += segment.len() as u64;
            continue;
        }
        let end = segment.header.end.unwrap_or(frames.next_position());
        let mut bytes = Header { first: segment.header.first, end: Some(end), is_sparse: true }.bytes().to_vec();
        bytes.append(&mut kept);
        compacted.bytes_after += bytes.len() as u64;
        if mode == CompactMode::Apply {
            // A compacted file takes no more writes, and states that a next one exists.
            if segment.header.end.is_none() {
                put_open_segment(directory, end)?;
            }
            directory.replace(path, &bytes)?;
        }
    }
    Ok(compacted)
}

/// What becomes of a change.
enum Fate {
    Kept,
    Dropped,
    /// The record that takes its place.
    Rewritten(Vec<u8>),
}

/// An item's changes in the log.
#[derive(Default)]
struct ItemHistory {
    positions: Vec<u64>,
    state: Option<ItemState>,
}

/// Returns what becomes of changes of items and rules, by position. The last changes of each item become changes that
/// lead to its state; the last change of a rule, a set of synonyms or a serving configuration is kept unless it deletes
/// it. Earlier ones are dropped. Changes that are missing here are kept, such as quarantined ones.
fn fates(log: &EventLog) -> Result<AHashMap<u64, Fate>, LogError> {
    let mut histories: AHashMap<ItemId, ItemHistory> = AHashMap::new();
    // The last change of each rule, set and configuration.
    let mut rules: AHashMap<(EntryKind, String), u64> = AHashMap::new();
    let mut fates = AHashMap::new();
    log.replay(1, |position, _, change| match change {
        Change::Event(_) | Change::Decision(_) => {}
        Change::Item(change) => {
            let history = histories.entry(change.id().clone()).or_default();
            history.positions.push(position);
            ItemState::apply(&mut history.state, &change);
        }
        Change::Rule(change) => {
            if let Some(before) = rules.insert((change.entry_kind(), change.id().to_owned()), position) {
                fates.insert(before, Fate::Dropped);
            }
            if change.is_deletion() {
                fates.insert(position, Fate::Dropped);
            }
        }
    })?;
    for (id, ItemHistory { positions, state }) in histories {
        let changes = state.map(|state| state.changes(&id)).unwrap_or_default();
        // A state has no more changes than the item had.
        let Some(dropped) = positions.len().checked_sub(changes.len()).filter(|dropped| *dropped > 0) else { continue };
        let rewritten: Vec<Vec<u8>> = changes.into_iter().map(|change| Change::Item(change).encode()).collect();
        if rewritten.iter().any(|record| record.len() > PAYLOAD_BYTES_MAX) {
            // Together, the changes do not fit into one record.
            continue;
        }
        fates.extend(positions[..dropped].iter().map(|position| (*position, Fate::Dropped)));
        fates.extend(positions[dropped..].iter().copied().zip(rewritten.into_iter().map(Fate::Rewritten)));
    }
    Ok(fates)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_retention_has_a_type_and_days() {
        let mut retention = Retention::default();
        assert_eq!(retention.add("impression=30d"), Ok(()));
        assert!(retention.drops(EventKind::Impression, UnixMillis(0), UnixMillis(0), UnixMillis(31 * UnixMillis::DAY)));
        // The period of a late event starts at its ingestion time.
        assert!(!retention.drops(
            EventKind::Impression,
            UnixMillis(0),
            UnixMillis(30 * UnixMillis::DAY),
            UnixMillis(31 * UnixMillis::DAY)
        ));
        assert!(!retention.drops(EventKind::View, UnixMillis(0), UnixMillis(0), UnixMillis(31 * UnixMillis::DAY)));
        for wrong in ["impression", "impression=30", "impression=-1d", "impresion=30d", "view=6d"] {
            assert!(retention.add(wrong).is_err(), "{wrong}");
        }
    }
}
