//! One at a time: a lock that ends with its process and tells who holds it.
use anyhow::Context;
use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{Read, Seek, SeekFrom, Write},
    path::Path,
};

/// A lock that is held until this is dropped, or the process ends in whatever way: the operating system keeps it, so none is left
/// behind.
#[derive(Debug)]
pub(super) struct Lock {
    file: File,
}

/// What became of an attempt.
#[derive(Debug)]
pub(super) enum Attempt {
    Taken(Lock),
    /// Who holds it, and since when; in words.
    Held(String),
}

impl Lock {
    /// Takes the lock of a file, which is made where there is none, and writes into it who holds it. Does not wait.
    pub(super) fn attempt(path: &Path) -> anyhow::Result<Attempt> {
        let told = || path.display().to_string();
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).with_context(told)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut owner = String::new();
                // The other may be between taking it and telling; then it is nameless.
                let _ = file.read_to_string(&mut owner);
                let age =
                    file.metadata().and_then(|metadata| metadata.modified()).ok().and_then(|at| at.elapsed().ok());
                let age = age.map_or(String::new(), |age| format!(", for {} s", age.as_secs()));
                let owner =
                    if owner.trim().is_empty() { "another process".to_owned() } else { owner.trim().to_owned() };
                return Ok(Attempt::Held(format!("{owner}{age}")));
            }
            Err(TryLockError::Error(error)) => return Err(error).with_context(told),
        }
        let owner = format!("process {} on {}\n", std::process::id(), host());
        file.set_len(0)
            .and_then(|()| file.seek(SeekFrom::Start(0)))
            .and_then(|_| file.write_all(owner.as_bytes()))
            .with_context(told)?;
        Ok(Attempt::Taken(Self { file }))
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // A file that is not locked says nothing of an owner.
        let _ = self.file.set_len(0);
        let _ = self.file.unlock();
    }
}

fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    if name.trim().is_empty() { "this machine".to_owned() } else { name.trim().to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_held_once_and_tells_its_owner() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.lock");
        let Attempt::Taken(lock) = Lock::attempt(&path).unwrap() else { panic!("nobody holds it") };
        let Attempt::Held(owner) = Lock::attempt(&path).unwrap() else { panic!("it is held") };
        assert!(owner.contains(&format!("process {}", std::process::id())) && owner.ends_with(" s"), "{owner}");
        drop(lock);
        assert!(matches!(Lock::attempt(&path).unwrap(), Attempt::Taken(_)));
        assert!(Lock::attempt(&directory.path().join("none/x.lock")).is_err());
    }
}
