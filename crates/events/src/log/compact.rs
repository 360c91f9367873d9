//! Compaction: removes events beyond their retention and replaced item states from a log that no process has open.
use super::{
    EventLog,
    check::put_open_segment,
    check_end, damaged, header_error,
    segment::{self, Header, Segment},
};
use crate::{
    Change, DEDUPE_DAYS, EventKind, LogError, checkpoint,
    directory::{LogDirectory, position_of},
};
use ahash::AHashMap;
use lodestone_core::{ids::ItemId, units::UnixMillis};
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
    /// Dropped item states, which later states replaced.
    pub item_states: u64,
    pub kept: u64,
    pub bytes_before: u64,
    pub bytes_after: u64,
}

/// Rewrites the log's files without the events that `retention` drops and without replaced item states. Positions do
/// not change. Checkpoints are removed because they include dropped events; the next startup folds the rest of the log.
pub fn compact(
    directory: impl Into<LogDirectory>,
    retention: &Retention,
    now: UnixMillis,
    mode: CompactMode,
) -> Result<Compacted, LogError> {
    // Fails for a damaged log before anything is dropped, and truncates a torn write.
    let log = EventLog::open(directory)?;
    let directory = log.directory();
    let last_states = last_states(&log)?;
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
        let (mut frames, mut kept, mut dropped) = (segment.frames(), Vec::new(), 0u64);
        for frame in frames.by_ref() {
            let frame = frame.map_err(|damage| damaged(path, &damage))?;
            let change = Change::decode(frame.position, frame.payload)?;
            let stored = UnixMillis(i64::from(frame.at_s) * 1000);
            if compacted.drops(&change, frame.position, retention, &last_states, stored, now) {
                dropped += 1;
            } else {
                compacted.kept += 1;
                segment::put_frame(&mut kept, frame.position, frame.at_s, true, frame.payload);
            }
        }
        compacted.bytes_before += segment.len() as u64;
        if dropped == 0 {
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

impl Compacted {
    /// Returns true if a change is dropped, and counts it in that case.
    fn drops(
        &mut self,
        change: &Change,
        position: u64,
        retention: &Retention,
        last_states: &AHashMap<ItemId, u64>,
        stored: UnixMillis,
        now: UnixMillis,
    ) -> bool {
        if let Change::Event(event) = change {
            let drops = retention.drops(event.kind, event.at, stored, now);
            *self.events.entry(event.kind).or_default() += u64::from(drops);
            return drops;
        }
        let is_replaced = change.item_id().is_some_and(|id| last_states.get(id).is_some_and(|last| *last > position));
        self.item_states += u64::from(is_replaced);
        is_replaced
    }
}

/// Returns the position of each item's last state.
fn last_states(log: &EventLog) -> Result<AHashMap<ItemId, u64>, LogError> {
    let mut last = AHashMap::new();
    log.replay(1, |position, _, change| {
        if let Some(id) = change.item_id() {
            last.insert(id.clone(), position);
        }
    })?;
    Ok(last)
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
