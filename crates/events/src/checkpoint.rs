//! Checkpoint files. A checkpoint contains the state at one position of the log, so that startup replays only the later
//! events.
//!
//! The file is in the directory of the log's segments. It is written under a temporary name and renamed when it is
//! complete. CRC-32C checksums cover every part. This module does not interpret the parts; `lodestone-state` defines
//! their contents.
//!
//! ```text
//! "LDSTCKP8", position u64, then parts:
//! length of the content u32, CRC-32C of length, kind and content u32, kind u8, content
//! the last part: kind 0, the number of the other parts u64, the largest position of an event that they include u64
//! ```
use super::{
    LogError,
    directory::{LogDirectory, file_name, position_of},
    storage::StorageFile,
};
use lodestone_core::format::OtherVersion;
use std::{
    fs::File,
    io::{self, BufReader, Read},
    path::{Path, PathBuf},
};

const MAGIC: &[u8; 8] = b"LDSTCKP8";
const EXTENSION: &str = "checkpoint";
const END: u8 = 0;
const PART_BYTES_MAX: usize = 64 << 20;
const BUFFER_BYTES: usize = 1 << 20;
/// The number of bytes after which a checkpoint in progress is synced to the disk.
const SYNC_BYTES: u64 = 4 << 20;

/// The reason why a checkpoint cannot be used. A replay of the whole log yields the same state, but takes longer.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    #[error("the file {0}; the next checkpoint replaces it")]
    Version(OtherVersion),
    #[error("the file is damaged at byte {offset}: {reason}")]
    Damaged { offset: u64, reason: &'static str },
    /// The log lacks changes; see [`LogError::EndMissing`].
    #[error("{path} includes events up to position {until}, but the log ends at {last}")]
    Ahead { path: PathBuf, until: u64, last: u64 },
    #[error("the state is based on another imported history")]
    OtherHistory,
    #[error("a part of kind {kind} cannot be read: {reason}")]
    Content { kind: u8, reason: String },
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Writes a checkpoint. Dropping the writer before [`CheckpointWriter::finish`] removes the incomplete file.
pub struct CheckpointWriter {
    directory: LogDirectory,
    file: Box<dyn StorageFile>,
    path: PathBuf,
    /// The content after `written` bytes of the file.
    buffer: Vec<u8>,
    written: u64,
    synced: u64,
    parts: u64,
    is_finished: bool,
}

impl CheckpointWriter {
    /// Creates the file for the state at `position` of the log. Fails if this process has locked the directory and its
    /// lock file was moved or replaced, because another process may own the log then.
    pub fn create(directory: impl Into<LogDirectory>, position: u64) -> io::Result<Self> {
        let directory = directory.into();
        directory.check_lock().map_err(io::Error::other)?;
        let path = directory.path().join(file_name(position, EXTENSION));
        let file = directory.storage().create(&path.with_extension("new"))?;
        let mut buffer = Vec::with_capacity(2 * BUFFER_BYTES);
        buffer.extend_from_slice(MAGIC);
        buffer.extend_from_slice(&position.to_le_bytes());
        Ok(Self { directory, file, path, buffer, written: 0, synced: 0, parts: 0, is_finished: false })
    }

    /// Appends a part. `kind` must be above 0.
    pub fn put(&mut self, kind: u8, content: &[u8]) -> io::Result<()> {
        self.parts += 1;
        put(&mut self.buffer, kind, content)?;
        if self.buffer.len() >= BUFFER_BYTES {
            self.flush()?;
        }
        if self.written - self.synced >= SYNC_BYTES {
            // A sync of the log waits for all data written before it, so syncing small amounts keeps commits fast.
            self.file.sync()?;
            self.synced = self.written;
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.write_at(&self.buffer, self.written)?;
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    /// Completes the checkpoint and removes older ones. `until` is the largest position of an event that any part may
    /// include.
    pub fn finish(mut self, until: u64) -> io::Result<()> {
        let mut end = self.parts.to_le_bytes().to_vec();
        end.extend_from_slice(&until.to_le_bytes());
        put(&mut self.buffer, END, &end)?;
        self.flush()?;
        self.file.sync()?;
        self.directory.check_lock().map_err(io::Error::other)?;
        self.directory.storage().rename(&self.path.with_extension("new"), &self.path)?;
        self.is_finished = true;
        self.directory.sync()?;
        for (_, path) in checkpoints(self.directory.path())? {
            if path != self.path {
                self.directory.storage().remove(&path)?;
            }
        }
        Ok(())
    }
}

impl Drop for CheckpointWriter {
    fn drop(&mut self) {
        if !self.is_finished {
            let _ = self.directory.storage().remove(&self.path.with_extension("new"));
        }
    }
}

fn put(buffer: &mut Vec<u8>, kind: u8, content: &[u8]) -> io::Result<()> {
    let length = u32::try_from(content.len()).ok().filter(|length| *length as usize <= PART_BYTES_MAX);
    let length = length.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "a part is too large"))?;
    let length = length.to_le_bytes();
    let sum = sum(length, kind, content);
    for part in [&length[..], &sum.to_le_bytes(), &[kind], content] {
        buffer.extend_from_slice(part);
    }
    Ok(())
}

fn sum(length: [u8; 4], kind: u8, content: &[u8]) -> u32 {
    [&length[..], &[kind], content].into_iter().fold(0, crc32c::crc32c_append)
}

/// A complete checkpoint whose checksums were verified.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    path: PathBuf,
    /// The position of the state. The replay of the log starts after it.
    pub position: u64,
    /// No part includes an event of a later position.
    pub until: u64,
    pub bytes: u64,
}

impl Checkpoint {
    /// Finds and verifies the newest checkpoint of a log. Returns `None` if the log has no checkpoint.
    pub fn newest(directory: &Path) -> Result<Option<Self>, CheckpointError> {
        let Some((position, path)) = checkpoints(directory)?.pop() else { return Ok(None) };
        let mut end = None;
        let mut parts = 0;
        let (header_position, bytes) = each_part(&path, &mut |kind, content| {
            match kind {
                END => end = Some(content.to_vec()),
                _ => parts += 1,
            }
            Ok(())
        })?;
        let truncated = CheckpointError::Damaged { offset: bytes, reason: "the file is truncated" };
        let end = end.filter(|end| end.len() == 16 && header_position == position).ok_or(truncated)?;
        let number = |offset: usize| u64::from_le_bytes(end[offset..offset + 8].try_into().expect("eight bytes"));
        if number(0) != parts {
            return Err(CheckpointError::Damaged { offset: bytes, reason: "parts are missing" });
        }
        Ok(Some(Self { path, position, until: number(8), bytes }))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Calls `visit` with the kind and content of each part in file order.
    pub fn each_part(
        &self,
        mut visit: impl FnMut(u8, &[u8]) -> Result<(), CheckpointError>,
    ) -> Result<(), CheckpointError> {
        each_part(&self.path, &mut |kind, content| if kind == END { Ok(()) } else { visit(kind, content) }).map(drop)
    }
}

/// Called with the kind and content of a part.
type VisitPart<'a> = dyn FnMut(u8, &[u8]) -> Result<(), CheckpointError> + 'a;

/// Visits all parts, including the last one. Returns the position in the file's header and the length of the file.
fn each_part(path: &Path, visit: &mut VisitPart) -> Result<(u64, u64), CheckpointError> {
    let file = File::open(path)?;
    let bytes = file.metadata()?.len();
    let mut file = BufReader::with_capacity(BUFFER_BYTES, file);
    let mut head = [0; 16];
    let damaged = |offset: u64, reason| CheckpointError::Damaged { offset, reason };
    if bytes < 16 {
        return Err(damaged(bytes, "the file is truncated"));
    }
    file.read_exact(&mut head)?;
    if let Some(version) = OtherVersion::of(MAGIC, &head) {
        return Err(CheckpointError::Version(version));
    }
    if &head[..8] != MAGIC {
        return Err(damaged(0, "the file is not a checkpoint"));
    }
    let position = u64::from_le_bytes(head[8..].try_into().expect("eight bytes"));
    let (mut offset, mut content) = (16u64, Vec::new());
    while offset < bytes {
        let mut head = [0; 9];
        if bytes - offset < 9 {
            return Err(damaged(offset, "the file is truncated"));
        }
        file.read_exact(&mut head)?;
        let length: [u8; 4] = head[..4].try_into().expect("four bytes");
        let count = u32::from_le_bytes(length) as usize;
        if count > PART_BYTES_MAX || bytes - offset - 9 < count as u64 {
            return Err(damaged(offset, "the length of a part is out of range"));
        }
        content.resize(count, 0);
        file.read_exact(&mut content)?;
        if sum(length, head[8], &content).to_le_bytes() != head[4..8] {
            return Err(damaged(offset, "the checksum of a part does not match"));
        }
        visit(head[8], &content)?;
        offset += 9 + count as u64;
    }
    Ok((position, bytes))
}

/// Removes all checkpoints of a log, so that the next startup replays the log from its first position.
pub fn remove(directory: impl Into<LogDirectory>) -> Result<(), LogError> {
    let directory = directory.into();
    for (_, path) in checkpoints(directory.path())? {
        directory.storage().remove(&path)?;
    }
    Ok(directory.sync()?)
}

/// Renames all checkpoints of a log, so that they are not used and not lost. Returns the new path of the newest one.
pub(crate) fn set_aside(directory: &LogDirectory) -> io::Result<Option<PathBuf>> {
    let mut newest = None;
    for (_, path) in checkpoints(directory.path())? {
        let aside = path.with_extension(format!("{EXTENSION}.damaged"));
        directory.storage().rename(&path, &aside)?;
        newest = Some(aside);
    }
    directory.sync()?;
    Ok(newest)
}

/// Returns the position in the name of the newest checkpoint, and its path. The content is not read.
pub(crate) fn newest_position(directory: &Path) -> io::Result<Option<(u64, PathBuf)>> {
    Ok(checkpoints(directory)?.pop())
}

/// Returns the last position that the newest checkpoint includes, and its path. If the content cannot be read, it is
/// the position in the name.
pub(crate) fn newest_until(directory: &Path) -> io::Result<Option<(u64, PathBuf)>> {
    let named = newest_position(directory)?;
    Ok(match Checkpoint::newest(directory) {
        Ok(Some(checkpoint)) => Some((checkpoint.until, checkpoint.path)),
        _ => named,
    })
}

/// Returns the positions and paths of all checkpoints, the newest last.
fn checkpoints(directory: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let paths = LogDirectory::from(directory).files(EXTENSION)?;
    Ok(paths.into_iter().filter_map(|path| Some((position_of(&path)?, path))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn write(directory: &Path, position: u64, parts: &[(u8, &[u8])]) {
        let mut writer = CheckpointWriter::create(directory, position).unwrap();
        parts.iter().for_each(|(kind, content)| writer.put(*kind, content).unwrap());
        writer.finish(position + 3).unwrap();
    }

    #[test]
    fn finishing_a_checkpoint_replaces_older_ones() {
        let directory = tempfile::tempdir().unwrap();
        assert!(Checkpoint::newest(directory.path()).unwrap().is_none());
        write(directory.path(), 7, &[(1, b"old")]);
        write(directory.path(), 90, &[(1, b"a"), (2, b""), (1, b"b")]);
        // An unfinished checkpoint leaves no file.
        drop(CheckpointWriter::create(directory.path(), 100).unwrap());
        let checkpoint = Checkpoint::newest(directory.path()).unwrap().unwrap();
        assert_eq!((checkpoint.position, checkpoint.until), (90, 93));
        let mut parts = Vec::new();
        checkpoint
            .each_part(|kind, content| {
                parts.push((kind, content.to_vec()));
                Ok(())
            })
            .unwrap();
        assert_eq!(parts, [(1, b"a".to_vec()), (2, Vec::new()), (1, b"b".to_vec())]);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn any_changed_or_missing_byte_is_detected() {
        let directory = tempfile::tempdir().unwrap();
        write(directory.path(), 7, &[(1, b"some content"), (2, b"more")]);
        let (_, path) = checkpoints(directory.path()).unwrap().pop().unwrap();
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut changed = whole.clone();
            changed[at] ^= 16;
            fs::write(&path, &changed).unwrap();
            assert!(Checkpoint::newest(directory.path()).is_err(), "byte {at}");
            fs::write(&path, &whole[..at]).unwrap();
            assert!(Checkpoint::newest(directory.path()).is_err(), "truncated at {at}");
        }
    }
}
