//! Thread scheduling by the operating system. The only file of this crate with unsafe code.
#![allow(unsafe_code)]
pub use os::be_nice;
pub(crate) use os::*;

#[cfg(target_os = "linux")]
mod os {
    use libc::{SCHED_IDLE, cpu_set_t, pid_t, sched_param};
    use std::{fs, mem};

    pub(crate) fn use_idle_priority() {
        let none = sched_param { sched_priority: 0 };
        // SAFETY: the call reads one struct that outlives it; 0 is the calling thread.
        let _ = unsafe { libc::sched_setscheduler(0, SCHED_IDLE, &raw const none) };
    }

    /// The nice value of the current thread, and whether it only runs on idle cores.
    #[cfg(test)]
    pub(crate) fn priority() -> (i32, bool) {
        // SAFETY: both calls take numbers; 0 is the calling thread.
        unsafe { (libc::getpriority(libc::PRIO_PROCESS, 0), libc::sched_getscheduler(0) == SCHED_IDLE) }
    }

    #[cfg(test)]
    pub(crate) fn current_thread() -> pid_t {
        // SAFETY: the call takes no argument.
        unsafe { libc::gettid() }
    }

    /// Sets the nice value of the current thread, if that is a higher one.
    pub fn be_nice(value: i32) {
        // SAFETY: the call takes numbers; 0 is the calling thread.
        let _ = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, value) };
    }

    pub(crate) fn idle_priority_threads() -> impl Iterator<Item = pid_t> {
        let threads = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
        let ids = threads.filter_map(|thread| thread.file_name().to_str()?.parse().ok());
        // SAFETY: the call takes a number; for a thread that has ended it returns an error, which equals no policy.
        ids.filter(|id: &pid_t| unsafe { libc::sched_getscheduler(*id) } == SCHED_IDLE)
    }

    /// Returns the cores that a thread may use; 0 is the calling thread.
    pub(crate) fn cores_of(thread: pid_t) -> Vec<usize> {
        // SAFETY: all-zero bytes are a valid set of cores, and the call fills it within its size.
        unsafe {
            let mut set: cpu_set_t = mem::zeroed();
            libc::sched_getaffinity(thread, size_of::<cpu_set_t>(), &raw mut set);
            (0..libc::CPU_SETSIZE as usize).filter(|core| libc::CPU_ISSET(*core, &set)).collect()
        }
    }

    pub(crate) fn pin_thread(thread: pid_t, cores: &[usize]) {
        // SAFETY: all-zero bytes are a valid set of cores, which the call only reads. The errors for a thread that has
        // ended and for a core that went offline are ignored.
        unsafe {
            let mut set: cpu_set_t = mem::zeroed();
            cores.iter().for_each(|core| libc::CPU_SET(*core, &mut set));
            libc::sched_setaffinity(thread, size_of::<cpu_set_t>(), &raw const set);
        }
    }
}

/// Other systems ignore the priority.
#[cfg(not(target_os = "linux"))]
mod os {
    pub fn use_idle_priority() {}

    pub fn be_nice(_value: i32) {}

    pub fn idle_priority_threads() -> impl Iterator<Item = i32> {
        std::iter::empty()
    }

    pub fn cores_of(_thread: i32) -> Vec<usize> {
        Vec::new()
    }

    pub fn pin_thread(_thread: i32, _cores: &[usize]) {}
}
