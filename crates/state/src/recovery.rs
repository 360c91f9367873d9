//! The state at the start: a checkpoint, or else the imported history; then the log.
use crate::{
    LiveState,
    checkpoints::{self, Origin},
};
use lodestone_core::{ids::ItemKey, units::UnixMillis};
use lodestone_dataset::{self as dataset, DatasetError};
use lodestone_events::{Change, Deduper, EventLog, LogError};
use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

/// The state with what its next checkpoint must know.
pub struct RecoveredState {
    pub state: Arc<LiveState>,
    pub recent: Deduper,
    pub origin: Origin,
    /// Of the checkpoint that was used; 0: none was.
    pub checkpoint: u64,
}

/// Where the state is recovered from.
pub struct RecoveryOptions<'a> {
    /// Directory of the log and its checkpoints.
    pub directory: &'a Path,
    /// The imported events; the file may be missing.
    pub history: &'a Path,
    /// Shifts the imported events so that the last one happens at this time: for demonstrations with old data. Checkpoints are
    /// not used then, because the shifted state depends on the time of the start.
    pub history_end: Option<UnixMillis>,
    /// Event ids remembered for deduplication at most.
    pub dedupe_ids_max: usize,
}

/// Why the state cannot be recovered.
#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    #[error(transparent)]
    Log(#[from] LogError),
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
    let begin = || (new_state(), Deduper::with_capacity(options.dedupe_ids_max));
    let (mut state, mut recent) = begin();
    let restored = match options.history_end {
        Some(_) => Ok(None),
        None => checkpoints::restore(options.directory, origin, log.last_position(), &state, &mut recent),
    };
    let checkpoint = restored.unwrap_or_else(|error| {
        tracing::warn!(%error, "the log's checkpoint is not used; its whole log is read");
        (state, recent) = begin();
        None
    });
    match checkpoint {
        Some(position) => tracing::info!(position, users = state.users.len(), "read the checkpoint"),
        None => fold_history(&state, options)?,
    }
    replay(&state, log, &mut recent, checkpoint.unwrap_or(0))?;
    tracing::info!(position = log.last_position(), seconds = begun.elapsed().as_secs_f64(), "folded what is known");
    Ok(RecoveredState { state, recent, origin, checkpoint: checkpoint.unwrap_or(0) })
}

fn origin(history: &Path) -> Result<Origin, RecoveryError> {
    if !history.exists() {
        return Ok(Origin::default());
    }
    let bytes = fs::read(history).map_err(|source| RecoveryError::Io { path: history.to_owned(), source })?;
    Ok(Origin { bytes: bytes.len() as u64, crc32c: crc32c::crc32c(&bytes) })
}

/// What was imported is the state before the log's first position.
fn fold_history(state: &LiveState, options: &RecoveryOptions) -> Result<(), RecoveryError> {
    if !options.history.exists() {
        return Ok(());
    }
    let mut events = dataset::into_events(dataset::read_events(options.history)?);
    let last = events.iter().map(|event| event.at.0).max().unwrap_or(0);
    let shift = options.history_end.map_or(0, |end| end.0 - last);
    for event in &mut events {
        event.at.0 += shift;
        state.apply_event(0, event);
    }
    tracing::info!(events = events.len(), "folded the imported history");
    Ok(())
}

/// Folds the log after a position. Users may be ahead of it: they were taken down while writes went on.
fn replay(state: &LiveState, log: &EventLog, recent: &mut Deduper, after: u64) -> Result<(), RecoveryError> {
    let mut catalogue = state.catalogue.lock();
    log.replay(after + 1, |position, at, change| {
        match change {
            Change::Event(event) => {
                recent.insert(&event.id, at);
                state.replay_event(position, &event, after > 0);
            }
            Change::Upsert(item) => catalogue.note((item.id.clone(), Some(Arc::new(*item)))),
            Change::Delete(id) => catalogue.note((id, None)),
        }
        state.note_position(position);
    })?;
    Ok(())
}

/// A state that gives the items of a bundle the keys 0, 1, 2, …, so that the bundle's tables need no other.
pub fn state_of_items<'a>(items: impl Iterator<Item = &'a lodestone_core::ids::ItemId>) -> Arc<LiveState> {
    let state = LiveState::default();
    for (index, item) in items.enumerate() {
        let key = state.keys.intern(item);
        debug_assert_eq!(key, ItemKey(index as u32));
    }
    Arc::new(state)
}
