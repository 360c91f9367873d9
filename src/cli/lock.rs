//! An exclusive lock file that names its owner and ends with its process.
use anyhow::Context;
use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{Read, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

/// A lock, held until this value is dropped or the process ends for any reason: the operating system releases it.
#[derive(Debug)]
pub(crate) struct Lock {
    file: File,
}

/// Result of [`Lock::attempt`].
#[derive(Debug)]
pub(crate) enum Attempt {
    Taken(Lock),
    /// Describes the owner and the age of the lock.
    Held(String),
}

impl Lock {
    /// Takes the lock of a file, which is created if it does not exist, and writes the owner into it. Does not wait.
    pub(crate) fn attempt(path: &Path) -> anyhow::Result<Attempt> {
        let shown = || path.display().to_string();
        // Private like the backups and the data that it guards.
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let mut file = options.open(path).with_context(shown)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut owner = String::new();
                // Empty if the owner has taken the lock and not yet written its name.
                let _ = file.read_to_string(&mut owner);
                let age =
                    file.metadata().and_then(|metadata| metadata.modified()).ok().and_then(|at| at.elapsed().ok());
                let age = age.map_or(String::new(), |age| format!(", for {} s", age.as_secs()));
                let owner =
                    if owner.trim().is_empty() { "another process".to_owned() } else { owner.trim().to_owned() };
                return Ok(Attempt::Held(format!("{owner}{age}")));
            }
            Err(TryLockError::Error(error)) => return Err(error).with_context(shown),
        }
        let owner = format!("process {} on {}\n", std::process::id(), host());
        file.set_len(0)
            .and_then(|()| file.seek(SeekFrom::Start(0)))
            .and_then(|_| file.write_all(owner.as_bytes()))
            .with_context(shown)?;
        Ok(Attempt::Taken(Self { file }))
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // The file of a released lock names no owner.
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
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_lock_is_exclusive_and_names_its_owner() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.lock");
        let Attempt::Taken(lock) = Lock::attempt(&path).unwrap() else { panic!("the lock is free") };
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let Attempt::Held(owner) = Lock::attempt(&path).unwrap() else { panic!("the lock is held") };
        assert!(owner.contains(&format!("process {}", std::process::id())) && owner.ends_with(" s"), "{owner}");
        drop(lock);
        assert!(matches!(Lock::attempt(&path).unwrap(), Attempt::Taken(_)));
        assert!(Lock::attempt(&directory.path().join("none/x.lock")).is_err());
    }
}
