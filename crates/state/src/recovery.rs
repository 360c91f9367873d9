//! Recovery on startup: restores a checkpoint, or folds the imported history; then folds the log.
use crate::{
    LiveState, ReplayBase, Searches, StateLimits,
    checkpoints::{self, Origin},
};
use lodestone_core::{
    faults,
    ids::{ItemId, ItemKey},
    units::UnixMillis,
};
use lodestone_dataset::{self as dataset, DatasetError};
use lodestone_events::{
    Change, DEDUPE_DAYS, Deduper, Event, EventLog, LogError, Quarantined, checkpoint::CheckpointError, panic_message,
    quarantined,
};
use std::{
    fs, io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

/// A recovered state, with the inputs of its next checkpoint.
pub struct RecoveredState {
    pub state: Arc<LiveState>,
    /// The event ids that are remembered for deduplication.
    pub recent: Deduper,
    pub origin: Origin,
    /// Log position of the restored checkpoint; 0 if there was none.
    pub checkpoint: u64,
}

/// The sources of a recovery.
pub struct RecoveryOptions<'a> {
    /// The directory of the log and its checkpoints.
    pub directory: &'a Path,
    /// The file of imported events; it may be missing.
    pub history: &'a Path,
    /// Shifts the imported events so that the last one happens at this time, for demonstrations with old data.
    /// Checkpoints are not used then, because the shifted state depends on the time of the startup.
    pub history_end: Option<UnixMillis>,
    /// Maximum number of event ids that are remembered for deduplication.
    pub dedupe_ids_max: usize,
}

/// The reason why a state cannot be recovered.
#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error("the rules cannot be applied: {0}")]
    Rules(String),
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
}

/// Restores the latest checkpoint, or folds the imported history if there is none, and then folds the rest of the log.
/// `new_state` returns an empty state.
pub fn recover(
    log: &EventLog,
    options: &RecoveryOptions,
    new_state: &dyn Fn() -> Arc<LiveState>,
) -> Result<RecoveredState, RecoveryError> {
    let begun = Instant::now();
    let origin = origin(options.history)?;
    let empty = || (new_state(), Deduper::with_capacity(options.dedupe_ids_max));
    let (mut state, mut deduper) = empty();
    let restored = match options.history_end {
        Some(_) => Ok(None),
        None => checkpoints::restore(options.directory, origin, log.last_position(), &state, &mut deduper),
    };
    let checkpoint = match restored {
        Ok(checkpoint) => checkpoint,
        // The checkpoint is the only evidence of the changes that the log lacks.
        Err(CheckpointError::Ahead { path, until, last }) => {
            let log = options.directory.to_owned();
            return Err(LogError::EndMissing { log, checkpoint: path, until, last }.into());
        }
        Err(error) => {
            tracing::warn!(%error, "cannot use the checkpoint; the whole log is replayed");
            (state, deduper) = empty();
            None
        }
    };
    match checkpoint {
        Some(position) => tracing::info!(position, users = state.users.len(), "restored the checkpoint"),
        None => fold_history(&state, &mut deduper, options)?,
    }
    let new = replay(&state, log, &mut deduper, checkpoint)?;
    log.quarantine(&new)?;
    state.publish_rules().map_err(RecoveryError::Rules)?;
    if checkpoint.is_some() {
        state.release_unused_keys();
    }
    for change in quarantined(options.directory)? {
        let (position, kind, id, reason) = (change.position, change.kind, change.id, change.reason);
        tracing::warn!(position, kind, id, reason, "skipped a quarantined change");
    }
    tracing::info!(position = log.last_position(), seconds = begun.elapsed().as_secs_f64(), "recovered the state");
    Ok(RecoveredState { state, recent: deduper, origin, checkpoint: checkpoint.unwrap_or(0) })
}

fn origin(history: &Path) -> Result<Origin, RecoveryError> {
    if !history.exists() {
        return Ok(Origin::default());
    }
    let bytes = fs::read(history).map_err(|source| RecoveryError::Io { path: history.to_owned(), source })?;
    Ok(Origin { bytes: bytes.len() as u64, crc32c: crc32c::crc32c(&bytes) })
}

/// Folds the imported history as the state before the first log position.
fn fold_history(state: &LiveState, deduper: &mut Deduper, options: &RecoveryOptions) -> Result<(), RecoveryError> {
    if !options.history.exists() {
        return Ok(());
    }
    let mut events = dataset::into_events(dataset::read_events(options.history)?);
    let last = events.iter().map(|event| event.at.0).max().unwrap_or(0);
    let shift = options.history_end.map_or(0, |end| end.0 - last);
    for event in &mut events {
        event.at.0 += shift;
        state.apply_event(0, event);
        // An order that was imported counts once if the shop's server also writes it.
        if event.at.0 >= last + shift - i64::from(DEDUPE_DAYS) * UnixMillis::DAY {
            deduper.insert_order_lines(event, event.at);
        }
    }
    tracing::info!(events = events.len(), "folded the imported history");
    Ok(())
}

/// Folds the log after the checkpoint's position, or the whole log. Returns the changes that could not be folded.
fn replay(
    state: &LiveState,
    log: &EventLog,
    deduper: &mut Deduper,
    checkpoint: Option<u64>,
) -> Result<Vec<Quarantined>, RecoveryError> {
    let base = if checkpoint.is_some_and(|position| position > 0) { ReplayBase::Checkpoint } else { ReplayBase::Empty };
    let mut catalogue = state.catalogue.lock();
    let mut failures = Vec::new();
    log.replay(checkpoint.unwrap_or(0) + 1, |position, at, change| {
        match change {
            Change::Event(event) => match replay_event(state, position, &event, base) {
                Ok(()) => deduper.insert_event(&event, at),
                Err(reason) => failures.push(Quarantined {
                    position,
                    kind: event.kind.name().to_owned(),
                    id: event.id.to_string(),
                    reason,
                }),
            },
            Change::Item(change) => _ = catalogue.apply(&change),
            Change::Decision(decision) => state.apply_decision(decision),
            Change::Rule(change) => {
                let (kind, id) = (change.kind_name().to_owned(), change.id().to_owned());
                if let Err(reason) = state.apply_rule(change) {
                    failures.push(Quarantined { position, kind, id, reason });
                }
            }
        }
        state.advance_position(position);
    })?;
    // The last changes may be quarantined.
    state.advance_position(log.last_position());
    Ok(failures)
}

/// Folds an event; returns the message of a panic.
fn replay_event(state: &LiveState, position: u64, event: &Event, base: ReplayBase) -> Result<(), String> {
    let fold = AssertUnwindSafe(|| {
        faults::check("replay", [event.id.as_str()]).map_err(|fault| fault.to_string())?;
        state.replay_event(position, event, base);
        Ok(())
    });
    catch_unwind(fold).unwrap_or_else(|panic| Err(panic_message(&*panic)))
}

/// Returns an empty state in which the items have the keys 0, 1, 2, …, so that keys equal rows of the bundle's tables.
/// `searches` decides which searches become completions.
pub fn state_with_items<'a>(
    items: impl Iterator<Item = &'a ItemId>,
    searches: Searches,
    limits: StateLimits,
) -> Arc<LiveState> {
    let state = LiveState::new(searches, limits);
    for (index, item) in items.enumerate() {
        let key = state.keys.intern(item);
        debug_assert_eq!(key, ItemKey(index as u32));
    }
    Arc::new(state)
}
