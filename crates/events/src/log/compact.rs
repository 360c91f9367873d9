//! Drops what is no longer wanted from a log that nobody has open.
use super::{
    LogError, damaged, header_error, lock, replace,
    segment::{self, Header, Segment},
    segments,
};
use crate::{Change, DEDUPE_DAYS, EventKind, checkpoint};
use ahash::AHashMap;
use lodestone_core::{ids::ItemId, units::UnixMillis};
use std::{collections::BTreeMap, path::Path};

/// How long events are kept, by type. Types that are not named are kept forever.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Retention {
    days: BTreeMap<EventKind, u32>,
}

/// Why a retention is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeepError {
    #[error("`{0}` is no retention; write TYPE=DAYSd, such as impression=30d")]
    Form(String),
    #[error("`{0}` is no event type; the types are {types}", types = EventKind::ALL.map(EventKind::name).join(", "))]
    Kind(String),
    #[error("{kind}={days}d is shorter than the {DEDUPE_DAYS} days for which event ids are remembered")]
    TooShort { kind: &'static str, days: u32 },
}

impl Retention {
    /// Takes `impression=30d`.
    pub fn add(&mut self, text: &str) -> Result<(), KeepError> {
        let form = || KeepError::Form(text.to_owned());
        let (kind, days) = text.split_once('=').ok_or_else(form)?;
        let days: u32 = days.strip_suffix('d').and_then(|days| days.parse().ok()).ok_or_else(form)?;
        let kind = EventKind::from_name(kind).ok_or_else(|| KeepError::Kind(kind.to_owned()))?;
        if days < DEDUPE_DAYS {
            return Err(KeepError::TooShort { kind: kind.name(), days });
        }
        self.days.insert(kind, days);
        Ok(())
    }

    pub fn is_empty(&self) -> bool {
        self.days.is_empty()
    }

    /// Whether an event is older than its type is kept, both since it happened and since it was stored.
    fn drops(&self, kind: EventKind, at: UnixMillis, stored: UnixMillis, now: UnixMillis) -> bool {
        self.days.get(&kind).is_some_and(|days| at.max(stored).0 < now.0 - i64::from(*days) * UnixMillis::DAY)
    }
}

/// What was dropped, or would be.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Compacted {
    /// Dropped events by type.
    pub events: BTreeMap<EventKind, u64>,
    /// States of items that a later one replaced.
    pub item_states: u64,
    pub kept: u64,
    pub bytes_before: u64,
    pub bytes_after: u64,
}

/// Writes the log's files again without the events that `retention` drops and without the states of items that a later
/// one replaced. Positions stay as they are. The state is then what the rest of the log gives; checkpoints go, since they
/// hold more. `is_trial`: only counts.
pub fn compact(
    directory: &Path,
    retention: &Retention,
    now: UnixMillis,
    is_trial: bool,
) -> Result<Compacted, LogError> {
    let _lock = lock(directory)?;
    // Cuts a torn tail, and refuses a damaged log, before anything is dropped.
    let last_states = last_states(directory)?;
    if !is_trial {
        checkpoint::remove(directory)?;
    }
    let mut compacted = Compacted::default();
    let paths = segments(directory)?;
    for path in &paths {
        let first = super::first_position(path).unwrap_or(1);
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
        let mut bytes = Header { first: segment.header.first, end: Some(end) }.bytes().to_vec();
        bytes.append(&mut kept);
        compacted.bytes_after += bytes.len() as u64;
        if !is_trial {
            replace(path, &bytes)?;
        }
    }
    Ok(compacted)
}

impl Compacted {
    /// Whether a change goes; counts it then.
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

/// The position of each item's last state.
fn last_states(directory: &Path) -> Result<AHashMap<ItemId, u64>, LogError> {
    let mut last = AHashMap::new();
    super::read(directory, 1, |position, _, change| {
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
    fn a_retention_names_a_type_and_days() {
        let mut retention = Retention::default();
        assert_eq!(retention.add("impression=30d"), Ok(()));
        assert!(retention.drops(EventKind::Impression, UnixMillis(0), UnixMillis(0), UnixMillis(31 * UnixMillis::DAY)));
        // Late events stay as long as any other.
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
