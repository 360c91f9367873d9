//! The file operations that every kind of store provides.
use std::path::Path;

pub(super) type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Files by path, `NAME/FILE` or `FILE`. Writes are atomic: a reader never sees a part of a file.
pub(super) trait Files: Send + Sync {
    /// Reads a small file; none if it does not exist.
    fn get(&self, path: &str) -> Result<Option<StoredFile>, Failure>;
    /// Writes a small file. Returns false, and changes nothing, if the condition is not met.
    fn put(&self, path: &str, bytes: &[u8], condition: &Condition) -> Result<bool, Failure>;
    /// Copies a local file of any size into the store.
    fn upload(&self, from: &Path, path: &str) -> Result<(), Failure>;
    /// Copies a file of any size to a local path. Returns false if the file does not exist.
    fn download(&self, path: &str, to: &Path) -> Result<bool, Failure>;
    fn directories(&self) -> Result<Vec<String>, Failure>;
    /// Removes a directory with its files, the file `first` before the others.
    fn remove(&self, directory: &str, first: &str) -> Result<(), Failure>;
}

pub(super) struct StoredFile {
    pub bytes: Vec<u8>,
    /// Changes with the content.
    pub version: String,
}

/// A condition on a file's state before a write.
pub(super) enum Condition {
    Always,
    Absent,
    /// The file has this version.
    Unchanged(String),
}
