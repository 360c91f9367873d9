//! Threads that load bundles. They run at low priority, so that answers are not delayed, but must not starve.
use crate::scheduler;
use crossbeam_channel::{RecvTimeoutError, Sender};
use rayon::{ThreadPool, ThreadPoolBuilder};
use sha2::{Digest, Sha256};
use std::{
    io,
    thread::{self, JoinHandle},
    time::Duration,
};

/// Interval at which idle-priority threads move to another core.
const STAY: Duration = Duration::from_millis(2);

/// Number of bytes that a probe hashes to find out whether a core is ever idle: about ten milliseconds of work. It must
/// be more than a few milliseconds, because Linux lets a thread that has waited run for that long even if no core is
/// idle.
const PROBE_BYTES: usize = 16 << 20;
/// If the probe takes longer, no core is considered idle.
const PROBE_MAX: Duration = Duration::from_millis(250);
/// Nice value of the threads that run if no core is ever idle: a tenth of the scheduler weight of an answering thread, whose
/// nice value is 5.
const NICE: i32 = 15;

/// Thread pools for loading bundles.
pub struct LoadThreads {
    /// Runs only on idle cores.
    idle: Option<ThreadPool>,
    /// Runs even if no core is idle.
    guaranteed: ThreadPool,
}

impl LoadThreads {
    /// Uses all cores at normal priority, for startup.
    pub fn exclusive() -> io::Result<Self> {
        Ok(Self { idle: None, guaranteed: ThreadPoolBuilder::new().build().map_err(io::Error::other)? })
    }

    /// Uses half of the cores at low priority, while other threads answer requests.
    pub fn background() -> io::Result<Self> {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let pool = |start: fn()| {
            let pool = ThreadPoolBuilder::new().num_threads((cores / 2).max(1)).thread_name(|_| "load".into());
            pool.start_handler(move |_| start()).build().map_err(io::Error::other)
        };
        Ok(Self { idle: Some(pool(use_idle_priority)?), guaranteed: pool(|| scheduler::be_nice(NICE))? })
    }

    /// Runs one step of a load. Each step probes again for an idle core, because a load must also end on a server
    /// without idle cores.
    pub fn install<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        match &self.idle {
            Some(idle) if is_ever_idle(idle) => idle.install(work),
            _ => self.guaranteed.install(work),
        }
    }

    /// Runs work whose end nothing waits for.
    pub fn spawn(&self, work: impl FnOnce() + Send + 'static) {
        self.idle.as_ref().unwrap_or(&self.guaranteed).spawn(work);
    }
}

fn is_ever_idle(idle: &ThreadPool) -> bool {
    let (done, found) = crossbeam_channel::bounded(1);
    idle.spawn(move || {
        let (mut sum, part) = (Sha256::new(), [0; 4096]);
        (0..PROBE_BYTES / part.len()).for_each(|_| sum.update(part));
        std::hint::black_box(sum.finalize());
        // Fails if the probe took longer than `PROBE_MAX`.
        let _ = done.send(());
    });
    found.recv_timeout(PROBE_MAX).is_ok()
}

/// Moves the idle-priority threads of this process from core to core until the result is dropped.
///
/// Linux preempts an idle-priority thread at once for a thread that wakes on its core. A thread that waits in the queue
/// of another core, however, is balanced to this core only after tens of milliseconds, because the core does not count
/// as idle. The core that the idle-priority thread has just left does count as idle, so a waiting thread moves there at
/// once.
pub(crate) fn migrate_idle_threads() -> ThreadMigration {
    let (end, ended) = crossbeam_channel::bounded::<()>(0);
    let thread = thread::Builder::new().name("move".into()).spawn(move || {
        let cores = scheduler::cores_of(0);
        let continues = || ended.recv_timeout(STAY) == Err(RecvTimeoutError::Timeout);
        for turn in (0..).take_while(|_| !cores.is_empty() && continues()) {
            for (index, thread) in scheduler::idle_priority_threads().enumerate() {
                let core = (turn + index) % cores.len();
                scheduler::pin_thread(thread, &cores[core..=core]);
            }
        }
        scheduler::idle_priority_threads().for_each(|thread| scheduler::pin_thread(thread, &cores));
    });
    ThreadMigration { end: Some(end), thread: thread.ok() }
}

/// A running migration; it ends when this value is dropped.
pub(crate) struct ThreadMigration {
    end: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for ThreadMigration {
    fn drop(&mut self) {
        drop(self.end.take());
        self.thread.take().map(JoinHandle::join);
    }
}

/// Restricts the current thread to idle cores: any thread that wakes preempts it at once. A nice value alone would let
/// it finish its time slice, which is longer than an answer takes.
pub(crate) fn use_idle_priority() {
    scheduler::use_idle_priority();
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use std::{
        collections::BTreeSet,
        sync::{
            Arc,
            atomic::{AtomicBool, Ordering},
        },
        time::Instant,
    };

    fn spawn<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        thread::Builder::new().name("test".into()).spawn(body).unwrap()
    }

    #[test]
    fn work_ends_if_no_core_is_idle() {
        let threads = LoadThreads::background().unwrap();
        let end = Arc::new(AtomicBool::new(false));
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let busy: Vec<_> = (0..4 * cores)
            .map(|_| {
                let end = end.clone();
                spawn(move || while !end.load(Ordering::Relaxed) {})
            })
            .collect();
        // The kernel may find a core idle for a moment, but not 20 times.
        let found = (0..20).map(|_| threads.install(scheduler::priority)).find(|(_, is_idle)| !is_idle);
        end.store(true, Ordering::Relaxed);
        busy.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(found, Some((NICE, false)));
        assert_eq!(LoadThreads::exclusive().unwrap().install(scheduler::priority), (0, false));
    }

    #[test]
    fn an_idle_priority_thread_visits_each_core_and_is_then_free_to_use_all() {
        let (end, ended) = crossbeam_channel::bounded::<()>(0);
        let (id, found) = crossbeam_channel::bounded(1);
        let waiting = spawn(move || {
            use_idle_priority();
            id.send(scheduler::current_thread()).unwrap();
            ended.recv().unwrap_err()
        });
        let (thread, all) = (found.recv().unwrap(), scheduler::cores_of(0));
        let migration = migrate_idle_threads();
        let (mut seen, begun) = (BTreeSet::new(), Instant::now());
        while seen.len() < all.len() && begun.elapsed() < Duration::from_secs(20) {
            if let [core] = scheduler::cores_of(thread)[..] {
                seen.insert(core);
            }
        }
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), all);
        drop(migration);
        assert_eq!(scheduler::cores_of(thread), all);
        drop(end);
        waiting.join().unwrap();
    }
}
