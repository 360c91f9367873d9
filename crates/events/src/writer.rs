//! The one thread that writes the log. Writes that wait together share one fsync.
use super::{Change, Deduper, EventLog, LogError};
use crossbeam_channel::{Receiver, Sender, TrySendError};
use lodestone_core::{ids::EventId, units::UnixMillis};
use parking_lot::Mutex;
use std::{
    collections::HashSet,
    iter, mem,
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};
use tokio::sync::{oneshot, watch};

/// Writes that may wait; one more is [`LogError::Overloaded`].
const WAITING_MAX: usize = 1024;
/// Changes after which a transaction is closed although more writes wait.
const CHANGES_PER_COMMIT: usize = 16_384;

/// How long a write that waits for room sleeps at most before it looks again.
const ROOM_LOOKED_FOR: Duration = Duration::from_millis(20);

/// What became of one change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Stored and applied.
    Accepted,
    /// An event with this id was stored before; nothing changed.
    Duplicate,
}

/// What became of one write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// One for each change, in their order.
    pub outcomes: Vec<Outcome>,
    /// A log position at which all of them, duplicates too, are stored and applied.
    pub session_version: u64,
}

/// The log's writer. `P` is a payload that travels with a change to `apply` and is not logged.
/// Dropping it writes what waits and blocks until that is done.
pub struct Writer<P> {
    batches: Option<Sender<Batch<P>>>,
    applied: watch::Receiver<u64>,
    recent: Arc<Mutex<Deduper>>,
    thread: Option<JoinHandle<()>>,
}

/// Puts the changes of one commit into effect; positions rise.
pub type Apply<P> = Box<dyn FnMut(Vec<(u64, Change, Option<P>)>) + Send>;

struct Batch<P> {
    entries: Vec<Entry<P>>,
    reply: oneshot::Sender<Result<Written, LogError>>,
}

struct Entry<P> {
    change: Change,
    payload: Option<P>,
    record: Vec<u8>,
}

impl<P: Send + 'static> Writer<P> {
    /// Starts the thread on a log that was replayed: `recent` holds what the replay noted, and `apply` goes on from the
    /// log's last position. `apply` gets each stored change once, in the log's order, a
    /// commit at a time, before its write is answered. `clock` gives the times of the changes.
    ///
    /// `recent` is held while changes are noted and applied: who holds it sees the state of one position.
    pub fn start(
        log: EventLog,
        recent: Arc<Mutex<Deduper>>,
        clock: fn() -> UnixMillis,
        apply: Apply<P>,
    ) -> Result<Self, LogError> {
        let (sender, receiver) = crossbeam_channel::bounded(WAITING_MAX);
        let (applied_sender, applied) = watch::channel(log.last_position());
        let remembered = recent.clone();
        let state = Thread { log, recent, clock, apply, applied: applied_sender };
        let thread = thread::Builder::new()
            .name("event-log".into())
            .spawn(move || state.run(&receiver))
            .map_err(|error| LogError::Io(Arc::new(error)))?;
        Ok(Self { batches: Some(sender), applied, recent: remembered, thread: Some(thread) })
    }

    /// Stores the changes, all or none, and applies them. On `Ok` they are on the disk and in effect.
    ///
    /// A caller that stops waiting does not take its write back. Fails with [`LogError::Overloaded`] at once if too
    /// many writes wait.
    pub async fn write(&self, changes: Vec<(Change, Option<P>)>) -> Result<Written, LogError> {
        let (batch, answer) = batch(changes);
        match self.sender()?.try_send(batch) {
            Ok(()) => answer.await.unwrap_or(Err(LogError::Closed)),
            Err(TrySendError::Full(_)) => Err(LogError::Overloaded),
            Err(TrySendError::Disconnected(_)) => Err(LogError::Closed),
        }
    }

    /// As [`Writer::write`], but waits where that fails with [`LogError::Overloaded`].
    pub async fn write_when_there_is_room(&self, changes: Vec<(Change, Option<P>)>) -> Result<Written, LogError> {
        let (mut batch, answer) = batch(changes);
        let mut applied = self.positions();
        loop {
            match self.sender()?.try_send(batch) {
                Ok(()) => return answer.await.unwrap_or(Err(LogError::Closed)),
                Err(TrySendError::Full(unsent)) => batch = unsent,
                Err(TrySendError::Disconnected(_)) => return Err(LogError::Closed),
            }
            // A commit makes room. It may have done so before this waits, and a failed one tells nobody.
            let _ = tokio::time::timeout(ROOM_LOOKED_FOR, applied.changed()).await;
        }
    }

    fn sender(&self) -> Result<&Sender<Batch<P>>, LogError> {
        self.batches.as_ref().ok_or(LogError::Closed)
    }
}

/// Encoded by the caller, so that the one thread has less to do.
fn batch<P>(changes: Vec<(Change, Option<P>)>) -> (Batch<P>, oneshot::Receiver<Result<Written, LogError>>) {
    let entry = |(change, payload): (Change, Option<P>)| Entry { record: change.encode(), change, payload };
    let (reply, answer) = oneshot::channel();
    (Batch { entries: changes.into_iter().map(entry).collect(), reply }, answer)
}

impl<P> Writer<P> {
    /// The position up to which the log is applied.
    pub fn position(&self) -> u64 {
        *self.applied.borrow()
    }

    /// Event ids that are remembered.
    pub fn remembered_ids(&self) -> usize {
        self.recent.lock().len()
    }

    /// The applied position as it moves, to wait for one: `wait_for(|position| *position >= wanted)`.
    pub fn positions(&self) -> watch::Receiver<u64> {
        self.applied.clone()
    }
}

impl<P> Drop for Writer<P> {
    fn drop(&mut self) {
        self.batches = None;
        if let Some(thread) = self.thread.take() {
            // A panic of `apply` has answered the waiting writes with Closed; there is nothing else to do about it.
            let _ = thread.join();
        }
    }
}

struct Thread<P> {
    log: EventLog,
    recent: Arc<Mutex<Deduper>>,
    clock: fn() -> UnixMillis,
    apply: Apply<P>,
    applied: watch::Sender<u64>,
}

impl<P> Thread<P> {
    fn run(mut self, waiting: &Receiver<Batch<P>>) {
        while let Ok(first) = waiting.recv() {
            let mut size = first.entries.len();
            let mut group = vec![first];
            while size < CHANGES_PER_COMMIT
                && let Ok(batch) = waiting.try_recv()
            {
                size += batch.entries.len();
                group.push(batch);
            }
            self.write(group);
        }
    }

    fn write(&mut self, group: Vec<Batch<P>>) {
        let outcomes = self.outcomes(&group);
        let now = (self.clock)();
        match self.commit(now, &group, &outcomes) {
            Ok(()) => self.apply_and_answer(now, group, outcomes),
            Err(error) => {
                for batch in group {
                    // A caller may have stopped waiting.
                    let _ = batch.reply.send(Err(error.clone()));
                }
            }
        }
    }

    /// What will become of each batch's changes if the commit succeeds. Notes nothing, since it may not.
    fn outcomes(&self, group: &[Batch<P>]) -> Vec<Vec<Outcome>> {
        let recent = self.recent.lock();
        let mut in_group: HashSet<&EventId, ahash::RandomState> = HashSet::default();
        let mut outcomes = Vec::with_capacity(group.len());
        for batch in group {
            let mut of_batch = Vec::with_capacity(batch.entries.len());
            for entry in &batch.entries {
                let is_new = match &entry.change {
                    Change::Event(event) => !recent.contains(&event.id) && in_group.insert(&event.id),
                    Change::Upsert(_) | Change::Delete(_) => true,
                };
                of_batch.push(if is_new { Outcome::Accepted } else { Outcome::Duplicate });
            }
            outcomes.push(of_batch);
        }
        outcomes
    }

    fn commit(&mut self, now: UnixMillis, group: &[Batch<P>], outcomes: &[Vec<Outcome>]) -> Result<(), LogError> {
        let entries = iter::zip(group, outcomes).flat_map(|(batch, outcomes)| iter::zip(&batch.entries, outcomes));
        let accepted = entries.filter(|(_, outcome)| **outcome == Outcome::Accepted);
        let mut records = accepted.map(|(entry, _)| entry.record.as_slice()).peekable();
        if records.peek().is_some() {
            self.log.append(now, records)?;
        }
        Ok(())
    }

    fn apply_and_answer(&mut self, now: UnixMillis, group: Vec<Batch<P>>, outcomes: Vec<Vec<Outcome>>) {
        let mut position = *self.applied.borrow();
        let mut answers = Vec::with_capacity(group.len());
        let mut stored = Vec::new();
        let mut recent = self.recent.lock();
        for (mut batch, outcomes) in iter::zip(group, outcomes) {
            for (entry, outcome) in iter::zip(mem::take(&mut batch.entries), &outcomes) {
                if *outcome == Outcome::Duplicate {
                    continue;
                }
                position += 1;
                if let Change::Event(event) = &entry.change {
                    recent.note(&event.id, now);
                }
                stored.push((position, entry.change, entry.payload));
            }
            answers.push((batch.reply, Written { outcomes, session_version: position }));
        }
        debug_assert_eq!(position, self.log.last_position());
        if !stored.is_empty() {
            (self.apply)(stored);
        }
        drop(recent);
        self.applied.send_replace(position);
        for (reply, written) in answers {
            // A caller may have stopped waiting.
            let _ = reply.send(Ok(written));
        }
    }
}
