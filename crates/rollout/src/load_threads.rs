//! Threads that load bundles: their work gives way to answers, and yet ends.
use crate::scheduler;
use crossbeam_channel::{RecvTimeoutError, Sender};
use rayon::{ThreadPool, ThreadPoolBuilder};
use sha2::{Digest, Sha256};
use std::{
    io,
    thread::{self, JoinHandle},
    time::Duration,
};

/// How long a thread of lower priority stays on a core while they are moved.
const STAY: Duration = Duration::from_millis(2);

/// Bytes that are summed to see whether a core is ever idle: about ten milliseconds of one. Linux lets a thread that has waited run
/// for some milliseconds even where none is.
const PROBE_BYTES: usize = 16 << 20;
/// Where that takes longer, no core is.
const PROBE_MAX: Duration = Duration::from_millis(250);
/// Nice value of the threads that work where no core is ever idle: a tenth of the weight of one that answers.
const NICE: i32 = 10;

/// Threads that load.
pub struct LoadThreads {
    /// Work only where a core is idle.
    idle: Option<ThreadPool>,
    /// Work in any case.
    sure: ThreadPool,
}

impl LoadThreads {
    /// All cores, where nothing answers yet.
    pub fn alone() -> io::Result<Self> {
        Ok(Self { idle: None, sure: ThreadPoolBuilder::new().build().map_err(io::Error::other)? })
    }

    /// Half of the cores, beside answers.
    pub fn beside_answers() -> io::Result<Self> {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let pool = |start: fn()| {
            let pool = ThreadPoolBuilder::new().num_threads((cores / 2).max(1)).thread_name(|_| "load".into());
            pool.start_handler(move |_| start()).build().map_err(io::Error::other)
        };
        Ok(Self { idle: Some(pool(lower_priority)?), sure: pool(|| scheduler::be_nice(NICE))? })
    }

    /// Does a part of a load. Each part looks anew whether idle cores are to be had: a server whose cores never are must get its
    /// new bundle too.
    pub fn install<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        match &self.idle {
            Some(idle) if is_ever_idle(idle) => idle.install(work),
            _ => self.sure.install(work),
        }
    }

    /// Does something that nothing waits for.
    pub fn spawn(&self, work: impl FnOnce() + Send + 'static) {
        self.idle.as_ref().unwrap_or(&self.sure).spawn(work);
    }
}

fn is_ever_idle(idle: &ThreadPool) -> bool {
    let (done, found) = crossbeam_channel::bounded(1);
    idle.spawn(move || {
        let (mut sum, part) = (Sha256::new(), [0; 4096]);
        (0..PROBE_BYTES / part.len()).for_each(|_| sum.update(part));
        std::hint::black_box(sum.finalize());
        // Nobody listens where it took too long.
        let _ = done.send(());
    });
    found.recv_timeout(PROBE_MAX).is_ok()
}

/// Moves the process's threads of lower priority from core to core until what it gives is dropped. Linux interrupts such a thread for
/// another that wakes on its core, but for one that waits behind others on the next core only after tens of milliseconds: that
/// one comes over at once where a core has nothing to do, and this thread is something. The core that it has just left has
/// nothing to do.
pub(crate) fn keep_moving() -> Moving {
    let (end, ended) = crossbeam_channel::bounded::<()>(0);
    let moving = thread::Builder::new().name("move".into()).spawn(move || {
        let cores = scheduler::cores_of(0);
        let goes_on = || ended.recv_timeout(STAY) == Err(RecvTimeoutError::Timeout);
        for turn in (0..).take_while(|_| !cores.is_empty() && goes_on()) {
            for (index, thread) in scheduler::threads_of_lower_priority().enumerate() {
                let core = (turn + index) % cores.len();
                scheduler::stay_on(thread, &cores[core..=core]);
            }
        }
        scheduler::threads_of_lower_priority().for_each(|thread| scheduler::stay_on(thread, &cores));
    });
    Moving { end: Some(end), moving: moving.ok() }
}

/// Threads that are moved.
pub(crate) struct Moving {
    end: Option<Sender<()>>,
    moving: Option<JoinHandle<()>>,
}

impl Drop for Moving {
    fn drop(&mut self) {
        drop(self.end.take());
        self.moving.take().map(JoinHandle::join);
    }
}

/// The present thread gets a core only where others leave one, and gives it back at once: an answer that comes interrupts it.
/// A nice value alone would let it end its time slice first, which is longer than an answer takes.
pub(crate) fn lower_priority() {
    scheduler::lower_priority();
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

    #[test]
    fn work_is_done_where_no_core_is_idle() {
        let threads = LoadThreads::beside_answers().unwrap();
        let end = Arc::new(AtomicBool::new(false));
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let busy: Vec<_> = (0..4 * cores)
            .map(|_| {
                let end = end.clone();
                thread::spawn(move || while !end.load(Ordering::Relaxed) {})
            })
            .collect();
        // The kernel may find an idle moment yet; not again and again.
        let found = (0..20).map(|_| threads.install(scheduler::priority)).find(|(_, is_idle)| !is_idle);
        end.store(true, Ordering::Relaxed);
        busy.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(found, Some((NICE, false)));
        assert_eq!(LoadThreads::alone().unwrap().install(scheduler::priority), (0, false));
    }

    #[test]
    fn a_thread_of_lower_priority_is_on_each_core_in_turn_and_then_on_any() {
        let (end, ended) = crossbeam_channel::bounded::<()>(0);
        let (id, found) = crossbeam_channel::bounded(1);
        let waiting = thread::spawn(move || {
            lower_priority();
            id.send(scheduler::current_thread()).unwrap();
            ended.recv().unwrap_err()
        });
        let (thread, all) = (found.recv().unwrap(), scheduler::cores_of(0));
        let moving = keep_moving();
        let (mut seen, begun) = (BTreeSet::new(), Instant::now());
        while seen.len() < all.len() && begun.elapsed() < Duration::from_secs(20) {
            if let [core] = scheduler::cores_of(thread)[..] {
                seen.insert(core);
            }
        }
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), all);
        drop(moving);
        assert_eq!(scheduler::cores_of(thread), all);
        drop(end);
        waiting.join().unwrap();
    }
}
