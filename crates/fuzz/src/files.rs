//! Inputs of parsers that read files.
use std::{
    fs,
    path::{Path, PathBuf},
};

thread_local! {
    /// Removed when the thread ends.
    static DIRECTORY: tempfile::TempDir = tempfile::tempdir().expect("the directory of temporary files is writable");
}

/// Writes a file of this name and calls `read` with its path.
pub(crate) fn with_file<T>(name: &str, content: &[u8], read: impl FnOnce(&Path) -> T) -> T {
    DIRECTORY.with(|directory| {
        let path = directory.path().join(name);
        fs::write(&path, content).expect("the directory is writable");
        read(&path)
    })
}

/// Calls `read` with an empty directory, which is removed afterwards.
pub(crate) fn in_directory<T>(read: impl FnOnce(&Path) -> T) -> T {
    DIRECTORY.with(|directory| {
        let path: PathBuf = directory.path().join("directory");
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).expect("the directory is writable");
        read(&path)
    })
}

/// Returns the content of a file that `write` writes.
pub(crate) fn written(name: &str, write: impl FnOnce(&Path)) -> Vec<u8> {
    in_directory(|directory| {
        let path = directory.join(name);
        write(&path);
        fs::read(path).expect("the file was written")
    })
}

/// Splits the first byte off, which selects one of `count` parsers.
pub(crate) fn select(input: &[u8], count: usize) -> Option<(usize, &[u8])> {
    let (first, rest) = input.split_first()?;
    Some((usize::from(*first) % count, rest))
}

/// Returns the input that selects a parser.
pub(crate) fn selecting(selected: usize, content: impl AsRef<[u8]>) -> Vec<u8> {
    let mut input = vec![selected as u8];
    input.extend_from_slice(content.as_ref());
    input
}
