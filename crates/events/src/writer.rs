//! The writer thread of the log. Group commit: writes that wait at the same time share one fsync.
//!
//! A change that cannot be applied is quarantined: its write fails, and a replay skips it. The writer continues with
//! the next write. It stops only if it does not know which changes are in effect.
use super::{Change, Deduper, EventLog, LogError, Quarantined, panic_message};
use ahash::{AHashMap, AHashSet};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TrySendError};
use lodestone_catalog::{ItemChange, ItemField};
use lodestone_core::{ids::ItemId, units::UnixMillis};
use parking_lot::Mutex;
use std::{
    iter, mem,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
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
    /// An event with this id, or all lines of its order, were already stored; nothing changed.
    Duplicate,
    /// The item is new.
    Created,
    Replaced,
    /// Some fields are written.
    Updated,
    /// The item already has all written values. Not stored again, unless their time is stated.
    Unchanged,
    /// All fields have later values, or the item was deleted later; nothing changed.
    Stale,
    Deleted,
    /// The item to change or to delete does not exist; nothing is stored.
    Unknown,
}

/// The outcome of one write.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Written {
    /// One outcome for each change, in the same order.
    pub outcomes: Vec<Outcome>,
    /// Order lines that an earlier event counted. They are not stored.
    pub repeated_lines: Vec<RepeatedLine>,
    /// Written fields of items that keep their later values.
    pub stale_fields: Vec<StaleField>,
    /// A log position at which all changes of the write, including duplicates, are stored and applied.
    pub log_position: u64,
}

/// A line of a purchase whose user, order and item an earlier event counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RepeatedLine {
    /// Index of the event in the write.
    pub change: usize,
    /// Index of the line in the event.
    pub line: usize,
}

/// A field of an [`Outcome::Replaced`] or [`Outcome::Updated`] item that keeps its value, which is of a later time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StaleField {
    /// Index of the item's change in the write.
    pub change: usize,
    pub field: ItemField,
}

/// The effects of applied changes.
#[derive(Debug, Default)]
pub struct Applied {
    /// The outcomes by position; a change without one is [`Outcome::Accepted`].
    pub outcomes: AHashMap<u64, Outcome>,
    /// By position, the written fields of an item that keep their later values.
    pub stale_fields: AHashMap<u64, Vec<ItemField>>,
    /// The changes that could not be applied. Nothing of them is in effect.
    pub failures: Vec<Quarantined>,
    /// The reason why no further change can be applied, such as an index that could not be restored.
    pub stop: Option<String>,
}

/// The handle of the log's writer thread. `P` is a payload that accompanies a change to `apply` and is not logged.
/// Dropping the writer blocks until all queued writes are committed.
pub struct Writer<P> {
    batches: Option<Sender<Batch<P>>>,
    applied: watch::Receiver<u64>,
    displaced: watch::Receiver<Option<LogError>>,
    is_stopped: watch::Receiver<bool>,
    /// Number of quarantined changes of the log.
    quarantined: Arc<AtomicUsize>,
    deduper: Arc<Mutex<Deduper>>,
    thread: Option<JoinHandle<()>>,
}

/// The state that is folded from the log. A closure is a fold that knows no items: of their changes, only repetitions
/// within one write are not stored.
///
/// The writer holds the lock of its deduper during [`Fold::apply`] and until [`Fold::stop`] has returned.
pub trait Fold<P>: Send {
    /// Applies the changes of one commit, in ascending order of positions. A panic stops the writer, because it leaves
    /// open which changes are in effect.
    fn apply(&mut self, changes: Vec<(u64, Change, Option<P>)>) -> Applied;

    /// Returns the outcome of an item's change if it would change nothing. Such a change is not stored.
    fn outcome_without_effect(&self, _change: &ItemChange) -> Option<Outcome> {
        None
    }

    /// Called when the writer stops because the state lacks stored changes, or because those that could not be applied
    /// could not be quarantined.
    fn stop(&mut self, _reason: &str) {}
}

impl<P, F: FnMut(Vec<(u64, Change, Option<P>)>) -> Applied + Send> Fold<P> for F {
    fn apply(&mut self, changes: Vec<(u64, Change, Option<P>)>) -> Applied {
        self(changes)
    }
}

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
    /// `fold` continues at the log's last position. `fold` receives each stored change once, in log order, one
    /// commit at a time, before the write returns. `clock` provides the ingestion times.
    ///
    /// The thread holds the lock of `deduper` while it applies a commit and quarantines its failures, so a caller that
    /// holds the lock sees the state at one position.
    pub fn start(
        log: EventLog,
        deduper: Arc<Mutex<Deduper>>,
        clock: fn() -> UnixMillis,
        fold: Box<dyn Fold<P>>,
    ) -> Result<Self, LogError> {
        let (sender, receiver) = crossbeam_channel::bounded(QUEUE_MAX);
        let (applied_sender, applied) = watch::channel(log.last_position());
        let (displaced_sender, displaced) = watch::channel(None);
        let (stopped_sender, is_stopped) = watch::channel(false);
        let quarantined = Arc::new(AtomicUsize::new(log.quarantined_count()?));
        let state = Thread {
            log,
            deduper: deduper.clone(),
            clock,
            fold,
            applied: applied_sender,
            displaced: displaced_sender,
            is_stopped: stopped_sender,
            quarantined: quarantined.clone(),
        };
        let thread = thread::Builder::new()
            .name("event-log".into())
            .spawn(move || state.run(&receiver))
            .map_err(|error| LogError::Io(Arc::new(error)))?;
        Ok(Self { batches: Some(sender), applied, displaced, is_stopped, quarantined, deduper, thread: Some(thread) })
    }

    /// Stores the changes, all or none, and applies them. On `Ok` they are durable and applied. On
    /// [`LogError::Quarantined`] all are durable, and all but the quarantined ones are applied.
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

    /// Returns the number of changes of the log that could not be applied and are skipped.
    pub fn quarantined_count(&self) -> usize {
        self.quarantined.load(Ordering::Relaxed)
    }

    /// Returns a receiver of the applied position, to wait for a position by
    /// `wait_for(|position| *position >= wanted)`.
    pub fn positions(&self) -> watch::Receiver<u64> {
        self.applied.clone()
    }

    /// Returns a receiver that becomes true when the writer takes no more writes, or whose sender is dropped then.
    pub fn is_stopped(&self) -> watch::Receiver<bool> {
        self.is_stopped.clone()
    }
}

impl<P> Drop for Writer<P> {
    fn drop(&mut self) {
        self.batches = None;
        if let Some(thread) = self.thread.take() {
            // After a panic of the thread, the waiting writes have already failed with `Closed`.
            let _ = thread.join();
        }
    }
}

struct Thread<P> {
    log: EventLog,
    deduper: Arc<Mutex<Deduper>>,
    clock: fn() -> UnixMillis,
    fold: Box<dyn Fold<P>>,
    applied: watch::Sender<u64>,
    displaced: watch::Sender<Option<LogError>>,
    is_stopped: watch::Sender<bool>,
    quarantined: Arc<AtomicUsize>,
}

/// The outcomes of a group of writes if its commit succeeds.
#[derive(Default)]
struct Predicted {
    /// By batch and change.
    outcomes: Vec<Vec<Outcome>>,
    /// By batch.
    repeated_lines: Vec<Vec<RepeatedLine>>,
}

/// The items that the changes of a group are about.
#[derive(Default)]
struct ChangedItems {
    of_earlier_batches: AHashSet<ItemId>,
    /// The index of the last stored change of each item of the batch.
    of_batch: AHashMap<ItemId, usize>,
}

impl ChangedItems {
    fn begin_batch(&mut self) {
        self.of_earlier_batches.extend(self.of_batch.drain().map(|(id, _)| id));
    }

    /// Predicts the outcome of an item's change: [`Outcome::Accepted`] if it is to be stored. After a change of the
    /// same item in an earlier batch it is stored in any case, because that change may fail without this one.
    fn predict<P>(&mut self, batch: &[Entry<P>], index: usize, fold: &dyn Fold<P>) -> Outcome {
        let Change::Item(change) = &batch[index].change else { return Outcome::Accepted };
        let id = change.id();
        let without_effect = match self.of_batch.get(id) {
            Some(earlier) => (batch[*earlier].change == batch[index].change).then(|| repeated_outcome(change)),
            None if self.of_earlier_batches.contains(id) => None,
            None => fold.outcome_without_effect(change),
        };
        without_effect.unwrap_or_else(|| {
            self.of_batch.insert(id.clone(), index);
            Outcome::Accepted
        })
    }
}

/// The outcome of a change that repeats the one before it.
fn repeated_outcome(change: &ItemChange) -> Outcome {
    match change {
        ItemChange::Write(_) => Outcome::Unchanged,
        ItemChange::Delete { .. } => Outcome::Unknown,
    }
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
            let is_stopped = *self.is_stopped.borrow();
            match is_stopped {
                true => refuse(group, &LogError::Stopped),
                false => self.write(group),
            }
        }
    }

    fn write(&mut self, mut group: Vec<Batch<P>>) {
        let predicted = self.predict(&mut group);
        let now = (self.clock)();
        let committed = self.commit(now, &group, &predicted.outcomes);
        self.note_displaced(committed.as_ref().err().cloned());
        match committed {
            Ok(()) => self.apply_and_reply(now, group, predicted),
            Err(error) => refuse(group, &error),
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

    /// Predicts the outcome of each change if the commit succeeds, and removes repeated order lines from the changes.
    /// Does not record ids yet, because the commit may fail.
    fn predict(&self, group: &mut [Batch<P>]) -> Predicted {
        let deduper = self.deduper.lock();
        let mut in_group: AHashSet<u64> = AHashSet::new();
        let mut changed_items = ChangedItems::default();
        let mut predicted = Predicted::default();
        for batch in group {
            let (mut outcomes, mut repeated_lines) = (Vec::with_capacity(batch.entries.len()), Vec::new());
            changed_items.begin_batch();
            for change in 0..batch.entries.len() {
                let is_known = |hash: u64| deduper.contains_hash(hash) || in_group.contains(&hash);
                let item_outcome = changed_items.predict(&batch.entries, change, &*self.fold);
                let entry = &mut batch.entries[change];
                let Change::Event(event) = &mut entry.change else {
                    outcomes.push(item_outcome);
                    continue;
                };
                if is_known(Deduper::hash_of(&event.id)) {
                    outcomes.push(Outcome::Duplicate);
                    continue;
                }
                let repeated: Vec<usize> = Deduper::order_line_hashes(event)
                    .enumerate()
                    .filter(|(_, hash)| is_known(*hash))
                    .map(|(line, _)| line)
                    .collect();
                repeated_lines.extend(repeated.iter().map(|line| RepeatedLine { change, line: *line }));
                if !repeated.is_empty() && repeated.len() == event.lines.len() {
                    outcomes.push(Outcome::Duplicate);
                    continue;
                }
                if !repeated.is_empty() {
                    let mut line = 0..;
                    event.lines.retain(|_| line.next().is_some_and(|line| !repeated.contains(&line)));
                    entry.record = Change::encode_event(event);
                }
                in_group.extend(Deduper::hashes_of(event));
                outcomes.push(Outcome::Accepted);
            }
            predicted.outcomes.push(outcomes);
            predicted.repeated_lines.push(repeated_lines);
        }
        predicted
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

    fn apply_and_reply(&mut self, now: UnixMillis, mut group: Vec<Batch<P>>, predicted: Predicted) {
        let first = *self.applied.borrow() + 1;
        let (mut stored, mut hashes) = (Vec::new(), Vec::new());
        for (batch, outcomes) in iter::zip(&mut group, &predicted.outcomes) {
            for (entry, outcome) in iter::zip(mem::take(&mut batch.entries), outcomes) {
                if *outcome != Outcome::Accepted {
                    continue;
                }
                let position = first + stored.len() as u64;
                if let Change::Event(event) = &entry.change {
                    hashes.extend(Deduper::hashes_of(event).map(|hash| (position, hash)));
                }
                stored.push((position, entry.change, entry.payload));
            }
        }
        let last = first - 1 + stored.len() as u64;
        debug_assert_eq!(last, self.log.last_position());
        let applied = match stored.is_empty() {
            true => Applied::default(),
            false => match self.apply_stored(now, stored, &hashes) {
                Ok(applied) => applied,
                Err(error) => {
                    self.is_stopped.send_replace(true);
                    return refuse(group, &error);
                }
            },
        };
        self.applied.send_replace(last);
        reply(group, predicted, &applied, first);
    }

    /// Applies the changes, records the ids of the applied events, and quarantines the changes that failed. After an
    /// error it is unknown which changes are in effect.
    fn apply_stored(
        &mut self,
        now: UnixMillis,
        stored: Vec<(u64, Change, Option<P>)>,
        hashes: &[(u64, u64)],
    ) -> Result<Applied, LogError> {
        // Held to the end, so that no checkpoint is taken before the failures are quarantined or the fold is stopped.
        let mut deduper = self.deduper.lock();
        let applied = catch_unwind(AssertUnwindSafe(|| self.fold.apply(stored)))
            .unwrap_or_else(|panic| Applied { stop: Some(panic_message(&*panic)), ..Applied::default() });
        // A quarantined event is not remembered, so that it can be sent again to a program that can apply it.
        let failed: AHashSet<u64> = applied.failures.iter().map(|failure| failure.position).collect();
        for (position, hash) in hashes {
            if !failed.contains(position) {
                deduper.insert_hash(*hash, now);
            }
        }
        let quarantined = self.log.quarantine(&applied.failures);
        let not_recorded = quarantined.err().map(|error| format!("changes could not be quarantined: {error}"));
        if not_recorded.is_none() {
            self.quarantined.fetch_add(applied.failures.len(), Ordering::Relaxed);
        }
        match applied.stop.clone().or(not_recorded) {
            Some(reason) => {
                self.fold.stop(&reason);
                Err(LogError::Stopping { reason: reason.into() })
            }
            None => Ok(applied),
        }
    }
}

/// Fails the writes of a group.
fn refuse<P>(group: Vec<Batch<P>>, error: &LogError) {
    for batch in group {
        // A caller may have stopped waiting.
        let _ = batch.reply.send(Err(error.clone()));
    }
}

/// Replies to the writes of a group whose first stored change has the position `first`.
fn reply<P>(group: Vec<Batch<P>>, predicted: Predicted, applied: &Applied, first: u64) {
    let mut position = first - 1;
    let results = iter::zip(predicted.outcomes, predicted.repeated_lines);
    for (batch, (mut outcomes, repeated_lines)) in iter::zip(group, results) {
        let begin = position;
        let mut stale_fields = Vec::new();
        let stored = outcomes.iter_mut().enumerate().filter(|(_, outcome)| **outcome == Outcome::Accepted);
        for (change, outcome) in stored {
            position += 1;
            *outcome = applied.outcomes.get(&position).copied().unwrap_or(Outcome::Accepted);
            let fields = applied.stale_fields.get(&position).into_iter().flatten();
            stale_fields.extend(fields.map(|field| StaleField { change, field: field.clone() }));
        }
        let is_of_batch = |failure: &&Quarantined| failure.position > begin && failure.position <= position;
        let failures: Vec<Quarantined> = applied.failures.iter().filter(is_of_batch).cloned().collect();
        let result = match failures.is_empty() {
            true => Ok(Written { outcomes, repeated_lines, stale_fields, log_position: position }),
            false => Err(LogError::Quarantined { changes: failures.into() }),
        };
        // A caller may have stopped waiting.
        let _ = batch.reply.send(result);
    }
}
