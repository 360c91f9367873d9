//! Threads whose work gives way to answers, however long it takes.
use crossbeam_channel::{RecvTimeoutError, Sender};
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::{
    io,
    thread::{self, JoinHandle},
    time::Duration,
};

/// How long a thread of lower priority stays on a core while they are moved.
const STAY: Duration = Duration::from_millis(2);

/// A pool of threads in the background: half of the cores.
pub fn pool() -> io::Result<ThreadPool> {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let pool = ThreadPoolBuilder::new().num_threads((cores / 2).max(1)).thread_name(|_| "load".into());
    pool.start_handler(|_| lower_priority()).build().map_err(io::Error::other)
}

/// Moves the process's threads of lower priority from core to core until what it gives is dropped. Linux interrupts such a thread for
/// another that wakes on its core, but for one that waits behind others on the next core only after tens of milliseconds: that
/// one comes over at once where a core has nothing to do, and this thread is something. The core that it has just left has
/// nothing to do.
pub fn keep_moving() -> Moving {
    let (end, ended) = crossbeam_channel::bounded::<()>(0);
    let moving = thread::Builder::new().name("move".into()).spawn(move || {
        let cores = os::cores_of(0);
        let goes_on = || ended.recv_timeout(STAY) == Err(RecvTimeoutError::Timeout);
        for turn in (0..).take_while(|_| !cores.is_empty() && goes_on()) {
            for (index, thread) in os::threads_of_lower_priority().enumerate() {
                let core = (turn + index) % cores.len();
                os::stay_on(thread, &cores[core..=core]);
            }
        }
        os::threads_of_lower_priority().for_each(|thread| os::stay_on(thread, &cores));
    });
    Moving { end: Some(end), moving: moving.ok() }
}

/// Threads that are moved.
pub struct Moving {
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
pub fn lower_priority() {
    os::lower_priority();
}

#[cfg(target_os = "linux")]
mod os {
    use libc::{SCHED_IDLE, cpu_set_t, pid_t, sched_param};
    use std::{fs, mem};

    pub fn lower_priority() {
        let none = sched_param { sched_priority: 0 };
        // SAFETY: the call reads one struct that outlives it; 0 is the thread that calls.
        let _ = unsafe { libc::sched_setscheduler(0, SCHED_IDLE, &raw const none) };
    }

    pub fn threads_of_lower_priority() -> impl Iterator<Item = pid_t> {
        let threads = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
        let ids = threads.filter_map(|thread| thread.file_name().to_str()?.parse().ok());
        // SAFETY: it takes a number; of a thread that is gone it gives an error, which is no policy.
        ids.filter(|id: &pid_t| unsafe { libc::sched_getscheduler(*id) } == SCHED_IDLE)
    }

    /// The cores that a thread may use; 0: the present one.
    pub fn cores_of(thread: pid_t) -> Vec<usize> {
        // SAFETY: a set of cores is plain numbers, which the call fills within its size.
        unsafe {
            let mut set: cpu_set_t = mem::zeroed();
            libc::sched_getaffinity(thread, size_of::<cpu_set_t>(), &raw mut set);
            (0..libc::CPU_SETSIZE as usize).filter(|core| libc::CPU_ISSET(*core, &set)).collect()
        }
    }

    pub fn stay_on(thread: pid_t, cores: &[usize]) {
        // SAFETY: a set of cores is plain numbers, which the call reads; a thread that is gone or a core that was taken away is an
        // error that does not matter.
        unsafe {
            let mut set: cpu_set_t = mem::zeroed();
            cores.iter().for_each(|core| libc::CPU_SET(*core, &mut set));
            libc::sched_setaffinity(thread, size_of::<cpu_set_t>(), &raw const set);
        }
    }
}

/// Elsewhere the threads are like all others.
#[cfg(not(target_os = "linux"))]
mod os {
    pub fn lower_priority() {}

    pub fn threads_of_lower_priority() -> impl Iterator<Item = i32> {
        std::iter::empty()
    }

    pub fn cores_of(_thread: i32) -> Vec<usize> {
        Vec::new()
    }

    pub fn stay_on(_thread: i32, _cores: &[usize]) {}
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use std::{collections::BTreeSet, time::Instant};

    #[test]
    fn a_thread_of_lower_priority_is_on_each_core_in_turn_and_then_on_any() {
        let (end, ended) = crossbeam_channel::bounded::<()>(0);
        let (id, found) = crossbeam_channel::bounded(1);
        let waiting = thread::spawn(move || {
            lower_priority();
            // SAFETY: it takes nothing.
            id.send(unsafe { libc::gettid() }).unwrap();
            ended.recv().unwrap_err()
        });
        let (thread, all) = (found.recv().unwrap(), os::cores_of(0));
        let moving = keep_moving();
        let (mut seen, begun) = (BTreeSet::new(), Instant::now());
        while seen.len() < all.len() && begun.elapsed() < Duration::from_secs(20) {
            if let [core] = os::cores_of(thread)[..] {
                seen.insert(core);
            }
        }
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), all);
        drop(moving);
        assert_eq!(os::cores_of(thread), all);
        drop(end);
        waiting.join().unwrap();
    }
}
