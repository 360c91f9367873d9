//! The one thread that writes the log. Writes that wait together share one fsync.
use super::{Change, Deduper, EventLog, LogError};
use crate::ids::EventId;
use crossbeam_channel::{Receiver, Sender, TrySendError};
use std::{
    collections::HashSet,
    iter, mem,
    thread::{self, JoinHandle},
};
use tokio::sync::{oneshot, watch};

/// Writes that may wait; one more is [`LogError::Overloaded`].
const WAITING_MAX: usize = 1024;
/// Changes after which a transaction is closed although more writes wait.
const CHANGES_PER_COMMIT: usize = 16_384;

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
    /// commit at a time, before its write is answered.
    pub fn start(log: EventLog, recent: Deduper, apply: Apply<P>) -> Result<Self, LogError> {
        let (sender, receiver) = crossbeam_channel::bounded(WAITING_MAX);
        let (applied_sender, applied) = watch::channel(log.last_position());
        let state = Thread { log, recent, apply, applied: applied_sender };
        let thread = thread::Builder::new()
            .name("event-log".into())
            .spawn(move || state.run(&receiver))
            .map_err(|error| LogError::Io(std::sync::Arc::new(error.into())))?;
        Ok(Self { batches: Some(sender), applied, thread: Some(thread) })
    }

    /// Stores the changes, all or none, and applies them. On `Ok` they are on the disk and in effect.
    ///
    /// A caller that stops waiting does not take its write back. Fails with [`LogError::Overloaded`] at once if too
    /// many writes wait.
    pub async fn write(&self, changes: Vec<(Change, Option<P>)>) -> Result<Written, LogError> {
        // Encoded here, so that the one thread has less to do.
        let entry = |(change, payload): (Change, Option<P>)| Entry { record: change.encode(), change, payload };
        let (reply, answer) = oneshot::channel();
        let batch = Batch { entries: changes.into_iter().map(entry).collect(), reply };
        let sender = self.batches.as_ref().ok_or(LogError::Closed)?;
        sender.try_send(batch).map_err(|error| match error {
            TrySendError::Full(_) => LogError::Overloaded,
            TrySendError::Disconnected(_) => LogError::Closed,
        })?;
        answer.await.unwrap_or(Err(LogError::Closed))
    }
}

impl<P> Writer<P> {
    /// The position up to which the log is applied.
    pub fn position(&self) -> u64 {
        *self.applied.borrow()
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
    recent: Deduper,
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
        match self.commit(&group, &outcomes) {
            Ok(()) => self.apply_and_answer(group, outcomes),
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
        let mut in_group: HashSet<&EventId, ahash::RandomState> = HashSet::default();
        let mut outcomes = Vec::with_capacity(group.len());
        for batch in group {
            let mut of_batch = Vec::with_capacity(batch.entries.len());
            for entry in &batch.entries {
                let is_new = match &entry.change {
                    Change::Event(event) => !self.recent.contains(&event.id) && in_group.insert(&event.id),
                    Change::Upsert(_) | Change::Delete(_) => true,
                };
                of_batch.push(if is_new { Outcome::Accepted } else { Outcome::Duplicate });
            }
            outcomes.push(of_batch);
        }
        outcomes
    }

    fn commit(&mut self, group: &[Batch<P>], outcomes: &[Vec<Outcome>]) -> Result<(), LogError> {
        let entries = iter::zip(group, outcomes).flat_map(|(batch, outcomes)| iter::zip(&batch.entries, outcomes));
        let accepted = entries.filter(|(_, outcome)| **outcome == Outcome::Accepted);
        let mut records = accepted.map(|(entry, _)| entry.record.as_slice()).peekable();
        if records.peek().is_some() {
            self.log.append(records)?;
        }
        Ok(())
    }

    fn apply_and_answer(&mut self, group: Vec<Batch<P>>, outcomes: Vec<Vec<Outcome>>) {
        let mut position = *self.applied.borrow();
        let mut answers = Vec::with_capacity(group.len());
        let mut stored = Vec::new();
        for (mut batch, outcomes) in iter::zip(group, outcomes) {
            for (entry, outcome) in iter::zip(mem::take(&mut batch.entries), &outcomes) {
                if *outcome == Outcome::Duplicate {
                    continue;
                }
                position += 1;
                if let Change::Event(event) = &entry.change {
                    self.recent.note(&event.id);
                }
                stored.push((position, entry.change, entry.payload));
            }
            answers.push((batch.reply, Written { outcomes, session_version: position }));
        }
        debug_assert_eq!(position, self.log.last_position());
        if !stored.is_empty() {
            (self.apply)(stored);
        }
        self.applied.send_replace(position);
        for (reply, written) in answers {
            // A caller may have stopped waiting.
            let _ = reply.send(Ok(written));
        }
    }
}
