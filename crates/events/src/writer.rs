//! The writer thread of the log. Group commit: writes that wait at the same time share one fsync.
use super::{Change, Deduper, EventLog, LogError};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TrySendError};
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

/// The capacity of the queue. A write to a full queue fails with [`LogError::Overloaded`].
const QUEUE_MAX: usize = 1024;
/// The number of changes after which a commit starts although more writes wait.
const CHANGES_PER_COMMIT: usize = 16_384;

/// The longest sleep of a write that waits for queue capacity before it retries.
const RETRY_INTERVAL: Duration = Duration::from_millis(20);

/// The interval in which the writer thread checks the log's files while no write arrives.
const CHECK_INTERVAL: Duration = Duration::from_millis(500);

/// The outcome of one change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Stored and applied.
    Accepted,
    /// An event with this id was already stored; nothing changed.
    Duplicate,
}

/// The outcome of one write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// One outcome for each change, in the same order.
    pub outcomes: Vec<Outcome>,
    /// A log position at which all changes of the write, including duplicates, are stored and applied.
    pub session_version: u64,
}

/// The handle of the log's writer thread. `P` is a payload that accompanies a change to `apply` and is not logged.
/// Dropping the writer blocks until all queued writes are committed.
pub struct Writer<P> {
    batches: Option<Sender<Batch<P>>>,
    applied: watch::Receiver<u64>,
    displaced: watch::Receiver<Option<LogError>>,
    deduper: Arc<Mutex<Deduper>>,
    thread: Option<JoinHandle<()>>,
}

/// Applies the changes of one commit to the state, in ascending order of positions.
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
    /// Starts the thread. The log must have been replayed: `deduper` contains the ids of the replayed events, and
    /// `apply` continues at the log's last position. `apply` receives each stored change once, in log order, one
    /// commit at a time, before the write returns. `clock` provides the ingestion times.
    ///
    /// The thread holds the lock of `deduper` while it applies a commit, so a caller that holds the lock sees the state
    /// at one position.
    pub fn start(
        log: EventLog,
        deduper: Arc<Mutex<Deduper>>,
        clock: fn() -> UnixMillis,
        apply: Apply<P>,
    ) -> Result<Self, LogError> {
        let (sender, receiver) = crossbeam_channel::bounded(QUEUE_MAX);
        let (applied_sender, applied) = watch::channel(log.last_position());
        let (displaced_sender, displaced) = watch::channel(None);
        let state = Thread {
            log,
            deduper: deduper.clone(),
            clock,
            apply,
            applied: applied_sender,
            displaced: displaced_sender,
        };
        let thread = thread::Builder::new()
            .name("event-log".into())
            .spawn(move || state.run(&receiver))
            .map_err(|error| LogError::Io(Arc::new(error)))?;
        Ok(Self { batches: Some(sender), applied, displaced, deduper, thread: Some(thread) })
    }

    /// Stores the changes, all or none, and applies them. On `Ok` they are durable and applied.
    ///
    /// Dropping the future does not cancel the write. Fails immediately with [`LogError::Overloaded`] if the queue is
    /// full.
    pub async fn write(&self, changes: Vec<(Change, Option<P>)>) -> Result<Written, LogError> {
        let (batch, answer) = batch(changes);
        match self.sender()?.try_send(batch) {
            Ok(()) => answer.await.unwrap_or(Err(LogError::Closed)),
            Err(TrySendError::Full(_)) => Err(LogError::Overloaded),
            Err(TrySendError::Disconnected(_)) => Err(LogError::Closed),
        }
    }

    /// Queues a write, and waits while the queue is full. Writes that are queued one after the other are stored in that
    /// order.
    pub async fn queue(&self, changes: Vec<(Change, Option<P>)>) -> Result<QueuedWrite, LogError> {
        let (mut batch, answer) = batch(changes);
        let mut applied = self.positions();
        loop {
            match self.sender()?.try_send(batch) {
                Ok(()) => return Ok(QueuedWrite(answer)),
                Err(TrySendError::Full(unsent)) => batch = unsent,
                Err(TrySendError::Disconnected(_)) => return Err(LogError::Closed),
            }
            // A commit frees capacity and changes the position. The timeout covers a commit that ended before this wait
            // began, and failed commits, which do not change the position.
            let _ = tokio::time::timeout(RETRY_INTERVAL, applied.changed()).await;
        }
    }

    fn sender(&self) -> Result<&Sender<Batch<P>>, LogError> {
        self.batches.as_ref().ok_or(LogError::Closed)
    }
}

/// A write in the queue. Dropping it does not cancel the write.
pub struct QueuedWrite(oneshot::Receiver<Result<Written, LogError>>);

impl QueuedWrite {
    /// Waits until the changes are stored and applied; see [`Writer::write`].
    pub async fn written(self) -> Result<Written, LogError> {
        self.0.await.unwrap_or(Err(LogError::Closed))
    }
}

/// Encodes the changes on the caller's thread, because the writer thread is the bottleneck.
fn batch<P>(changes: Vec<(Change, Option<P>)>) -> (Batch<P>, oneshot::Receiver<Result<Written, LogError>>) {
    let entry = |(change, payload): (Change, Option<P>)| Entry { record: change.encode(), change, payload };
    let (reply, answer) = oneshot::channel();
    (Batch { entries: changes.into_iter().map(entry).collect(), reply }, answer)
}

impl<P> Writer<P> {
    /// Returns the position up to which the log is applied.
    pub fn position(&self) -> u64 {
        *self.applied.borrow()
    }

    /// Returns a receiver of the error [`LogError::Displaced`] while the log refuses all writes because its files are
    /// no longer in their directory. The files are checked at each write, and every 0.5 s without one.
    pub fn displaced(&self) -> watch::Receiver<Option<LogError>> {
        self.displaced.clone()
    }

    /// Returns the number of event ids in the deduplication window.
    pub fn dedupe_id_count(&self) -> usize {
        self.deduper.lock().len()
    }

    /// Returns a receiver of the applied position, to wait for a position by
    /// `wait_for(|position| *position >= wanted)`.
    pub fn positions(&self) -> watch::Receiver<u64> {
        self.applied.clone()
    }
}

impl<P> Drop for Writer<P> {
    fn drop(&mut self) {
        self.batches = None;
        if let Some(thread) = self.thread.take() {
            // After a panic of `apply`, the waiting writes have already failed with `Closed`.
            let _ = thread.join();
        }
    }
}

struct Thread<P> {
    log: EventLog,
    deduper: Arc<Mutex<Deduper>>,
    clock: fn() -> UnixMillis,
    apply: Apply<P>,
    applied: watch::Sender<u64>,
    displaced: watch::Sender<Option<LogError>>,
}

impl<P> Thread<P> {
    fn run(mut self, queue: &Receiver<Batch<P>>) {
        loop {
            let first = match queue.recv_timeout(CHECK_INTERVAL) {
                Ok(first) => first,
                Err(RecvTimeoutError::Timeout) => {
                    let checked = self.log.check_files();
                    self.note_displaced(checked.err());
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let mut size = first.entries.len();
            let mut group = vec![first];
            while size < CHANGES_PER_COMMIT
                && let Ok(batch) = queue.try_recv()
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
        let committed = self.commit(now, &group, &outcomes);
        self.note_displaced(committed.as_ref().err().cloned());
        match committed {
            Ok(()) => self.apply_and_reply(now, group, outcomes),
            Err(error) => {
                for batch in group {
                    // A caller may have stopped waiting.
                    let _ = batch.reply.send(Err(error.clone()));
                }
            }
        }
    }

    fn note_displaced(&self, error: Option<LogError>) {
        let displaced = error.filter(|error| matches!(error, LogError::Displaced { .. }));
        self.displaced.send_if_modified(|current| {
            let is_changed = current.is_some() != displaced.is_some();
            *current = displaced;
            is_changed
        });
    }

    /// Predicts the outcome of each change if the commit succeeds. Does not record event ids yet, because the commit
    /// may fail.
    fn outcomes(&self, group: &[Batch<P>]) -> Vec<Vec<Outcome>> {
        let deduper = self.deduper.lock();
        let mut in_group: HashSet<&EventId, ahash::RandomState> = HashSet::default();
        let mut outcomes = Vec::with_capacity(group.len());
        for batch in group {
            let mut of_batch = Vec::with_capacity(batch.entries.len());
            for entry in &batch.entries {
                let is_new = match &entry.change {
                    Change::Event(event) => !deduper.contains(&event.id) && in_group.insert(&event.id),
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
        match records.peek().is_some() {
            true => self.log.append(now, records).map(drop),
            // A duplicate is acknowledged as stored, too.
            false => self.log.check_files(),
        }
    }

    fn apply_and_reply(&mut self, now: UnixMillis, group: Vec<Batch<P>>, outcomes: Vec<Vec<Outcome>>) {
        let mut position = *self.applied.borrow();
        let mut replies = Vec::with_capacity(group.len());
        let mut stored = Vec::new();
        let mut deduper = self.deduper.lock();
        for (mut batch, outcomes) in iter::zip(group, outcomes) {
            for (entry, outcome) in iter::zip(mem::take(&mut batch.entries), &outcomes) {
                if *outcome == Outcome::Duplicate {
                    continue;
                }
                position += 1;
                if let Change::Event(event) = &entry.change {
                    deduper.insert(&event.id, now);
                }
                stored.push((position, entry.change, entry.payload));
            }
            replies.push((batch.reply, Written { outcomes, session_version: position }));
        }
        debug_assert_eq!(position, self.log.last_position());
        if !stored.is_empty() {
            (self.apply)(stored);
        }
        drop(deduper);
        self.applied.send_replace(position);
        for (reply, written) in replies {
            // A caller may have stopped waiting.
            let _ = reply.send(Ok(written));
        }
    }
}
