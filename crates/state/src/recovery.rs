//! The state at the start: a checkpoint, or else the imported history; then the log.
use super::{checkpoints::{self, Origin}, live::Live};
use lodestone_engine::open::OpenError;
use lodestone_dataset as dataset;
use lodestone_events::{Change, Deduper, EventLog};
use lodestone_core::{ids::ItemKey, units::UnixMillis};
use std::{fs, path::Path, sync::Arc, time::Instant};

/// The state with what its next checkpoint must know.
pub struct Folded {
    pub live: Arc<Live>,
    pub recent: Deduper,
    pub origin: Origin,
    /// Of the checkpoint that was used; 0: none was.
    pub checkpoint: u64,
}

/// Folds what is in the data directory. `new_live` gives a state in which nobody is known. `history`: the imported events, if
/// there are any. `history_ends_now`: they move with the clock, and no checkpoint is used.
pub fn fold(
    new_live: &dyn Fn() -> Arc<Live>,
    log: &EventLog,
    directory: &Path,
    history: &Path,
    history_ends_now: bool,
    dedupe_ids_max: usize,
) -> Result<Folded, OpenError> {
    let begun = Instant::now();
    let origin = origin(history)?;
    let begin = || (new_live(), Deduper::with_capacity(dedupe_ids_max));
    let (mut live, mut recent) = begin();
    let restored = match history_ends_now {
        true => Ok(None),
        false => checkpoints::restore(directory, origin, log.last_position(), &live, &mut recent),
    };
    let checkpoint = restored.unwrap_or_else(|error| {
        tracing::warn!(%error, "the log's checkpoint is not used; its whole log is read");
        (live, recent) = begin();
        None
    });
    match checkpoint {
        Some(position) => tracing::info!(position, people = live.people.len(), "read the checkpoint"),
        None => fold_history(&live, history, history_ends_now)?,
    }
    replay(&live, log, &mut recent, checkpoint.unwrap_or(0))?;
    tracing::info!(position = log.last_position(), seconds = begun.elapsed().as_secs_f64(), "folded what is known");
    Ok(Folded { live, recent, origin, checkpoint: checkpoint.unwrap_or(0) })
}

fn origin(history: &Path) -> Result<Origin, OpenError> {
    if !history.exists() {
        return Ok(Origin::default());
    }
    let bytes = fs::read(history).map_err(|source| OpenError::Io { path: history.to_owned(), source })?;
    Ok(Origin { bytes: bytes.len() as u64, crc32c: crc32c::crc32c(&bytes) })
}

/// What was imported is the state before the log's first position.
fn fold_history(live: &Live, path: &Path, ends_now: bool) -> Result<(), OpenError> {
    if !path.exists() {
        return Ok(());
    }
    let mut events = dataset::into_events(dataset::read_events(path)?);
    let last = events.iter().map(|event| event.at.0).max().unwrap_or(0);
    let shift = if ends_now { UnixMillis::now().0 - last } else { 0 };
    for event in &mut events {
        event.at.0 += shift;
        live.apply_event(0, event);
    }
    tracing::info!(events = events.len(), "folded the imported history");
    Ok(())
}

/// Folds the log after a position. Persons may be ahead of it: they were taken down while writes went on.
fn replay(live: &Live, log: &EventLog, recent: &mut Deduper, after: u64) -> Result<(), OpenError> {
    let mut catalogue = live.catalogue.lock();
    log.replay(after + 1, |position, at, change| {
        match change {
            Change::Event(event) => {
                recent.note(&event.id, at);
                live.replay_event(position, &event, after > 0);
            }
            Change::Upsert(item) => catalogue.note((item.id.clone(), Some(Arc::new(*item)))),
            Change::Delete(id) => catalogue.note((id, None)),
        }
        live.note_position(position);
    })?;
    Ok(())
}

/// A state that gives the items of a bundle the keys 0, 1, 2, …, so that the bundle's tables need no other.
pub fn live_of<'a>(items: impl Iterator<Item = &'a lodestone_core::ids::ItemId>) -> Arc<Live> {
    let live = Live::default();
    for (index, item) in items.enumerate() {
        let key = live.keys.intern(item);
        debug_assert_eq!(key, ItemKey(index as u32));
    }
    Arc::new(live)
}
