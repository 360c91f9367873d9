//! The directory of a log: its files by name, and the lock of the process that has the log open.
use crate::{
    LogError,
    storage::{self, FileId, FileSystem, Storage},
};
use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

/// The size after which a segment takes no more writes.
const SEGMENT_BYTES: u64 = 64 << 20;
const SEGMENT_EXTENSION: &str = "log";
const LOCK: &str = "lock";
/// The content of the lock file once the log has a segment. So a directory whose segments were all removed differs from
/// a new one.
const HAS_SEGMENTS: &[u8] = b"This log has segments: files with the extension .log.\n";
/// The extension of a file that is not complete.
const NEW: &str = "new";

/// The directory of a log, and the storage that changes its files. A path converts to a directory of the file system.
#[derive(Clone)]
pub struct LogDirectory {
    path: PathBuf,
    storage: Arc<dyn Storage>,
    pub(crate) segment_bytes: u64,
    /// Present while this process has the log open. Released with the last clone.
    lock: Option<Arc<Lock>>,
}

struct Lock {
    path: PathBuf,
    file: File,
    id: FileId,
}

impl From<&Path> for LogDirectory {
    fn from(path: &Path) -> Self {
        Self::with_storage(path, Arc::new(FileSystem), SEGMENT_BYTES)
    }
}

impl From<&PathBuf> for LogDirectory {
    fn from(path: &PathBuf) -> Self {
        Self::from(path.as_path())
    }
}

impl From<&Self> for LogDirectory {
    fn from(directory: &Self) -> Self {
        directory.clone()
    }
}

impl LogDirectory {
    /// Returns a directory whose files another storage changes. `segment_bytes` is the size after which a segment takes
    /// no more writes.
    pub fn with_storage(path: &Path, storage: Arc<dyn Storage>, segment_bytes: u64) -> Self {
        Self { path: path.to_owned(), storage, segment_bytes, lock: None }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn storage(&self) -> &dyn Storage {
        &*self.storage
    }

    /// Creates the directory if it does not exist, and takes the lock, which only one process can hold. Removes files
    /// that a crash left incomplete.
    pub(crate) fn locked(mut self) -> Result<Self, LogError> {
        let path = self.path.join(LOCK);
        let failed = |source: io::Error| LogError::Open { path: path.clone(), source: Arc::new(source) };
        storage::create_private_directory(&self.path).map_err(failed)?;
        let file = storage::append_private(&path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Err(LogError::InUse { path: self.path }),
            Err(fs::TryLockError::Error(error)) => return Err(failed(error)),
        }
        let id = FileId::of_file(&file).map_err(failed)?;
        // Fails if the file was removed before it was locked.
        check_file(&path, id)?;
        for path in self.files(NEW).map_err(failed)? {
            self.storage.remove(&path).map_err(failed)?;
        }
        self.lock = Some(Arc::new(Lock { path, file, id }));
        Ok(self)
    }

    /// Returns true if a process holds the lock. Creates nothing.
    pub fn is_in_use(&self) -> io::Result<bool> {
        let file = match fs::File::open(self.path.join(LOCK)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            file => file?,
        };
        // Released when the file is closed.
        match file.try_lock() {
            Ok(()) => Ok(false),
            Err(fs::TryLockError::WouldBlock) => Ok(true),
            Err(fs::TryLockError::Error(error)) => Err(error),
        }
    }

    /// Checks that the lock file in the directory is still the one that this process has locked.
    pub(crate) fn check_lock(&self) -> Result<(), LogError> {
        self.lock.as_ref().map_or(Ok(()), |lock| check_file(&lock.path, lock.id))
    }

    /// Returns true if the lock file states that the log has segments.
    pub(crate) fn is_marked(&self) -> bool {
        fs::metadata(self.path.join(LOCK)).is_ok_and(|lock| lock.len() > 0)
    }

    /// States in the lock file that the log has segments. They must be durable.
    pub(crate) fn mark(&self) -> io::Result<()> {
        let Some(lock) = &self.lock else { return Ok(()) };
        if lock.file.metadata()?.len() == 0 {
            (&lock.file).write_all(HAS_SEGMENTS)?;
            lock.file.sync_all()?;
        }
        Ok(())
    }

    /// Returns the paths of the segments in the order of their positions.
    pub(crate) fn segments(&self) -> io::Result<Vec<PathBuf>> {
        let mut paths = self.files(SEGMENT_EXTENSION)?;
        paths.retain(|path| position_of(path).is_some());
        Ok(paths)
    }

    /// Returns the path of the segment with this first position.
    pub(crate) fn segment(&self, first: u64) -> PathBuf {
        self.path.join(file_name(first, SEGMENT_EXTENSION))
    }

    /// Returns the files with an extension, sorted by name.
    pub(crate) fn files(&self, extension: &str) -> io::Result<Vec<PathBuf>> {
        let mut paths = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let path = entry?.path();
            if path.extension().is_some_and(|found| found == extension) {
                paths.push(path);
            }
        }
        paths.sort();
        Ok(paths)
    }

    pub(crate) fn sync(&self) -> io::Result<()> {
        self.storage.sync_directory(&self.path)
    }

    /// Creates a file, or replaces its content, atomically and durably.
    pub(crate) fn replace(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let new = path.with_extension(NEW);
        let mut file = self.storage.create(&new)?;
        file.write_at(bytes, 0)?;
        file.sync()?;
        self.storage.rename(&new, path)?;
        self.sync()
    }
}

/// Checks that a path names the file with this id.
pub(crate) fn check_file(path: &Path, id: FileId) -> Result<(), LogError> {
    match FileId::of_path(path) {
        Ok(found) if found == id => Ok(()),
        Err(error) if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Err(error.into())
        }
        _ => Err(LogError::Displaced { path: path.to_owned() }),
    }
}

/// Returns the name of a segment or checkpoint, in whose order the files are in the order of their positions.
pub(crate) fn file_name(position: u64, extension: &str) -> String {
    format!("{position:020}.{extension}")
}

/// Returns the path of the segment with this first position in the directory of another one.
pub(crate) fn following_segment(path: &Path, first: u64) -> PathBuf {
    path.with_file_name(file_name(first, SEGMENT_EXTENSION))
}

/// Returns the position in the name of a segment or checkpoint.
pub(crate) fn position_of(path: &Path) -> Option<u64> {
    path.file_stem()?.to_str()?.parse().ok()
}
