//! Errors of the event log.
use lodestone_core::format::OtherVersion;
use std::{borrow::Cow, fmt, io, path::PathBuf, sync::Arc};

/// The reason why the log cannot be read or written. Cheap to clone, because one failure fails all waiting writes.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LogError {
    #[error("cannot open the event log {path}: {source}")]
    Open { path: PathBuf, source: Arc<io::Error> },
    #[error("another process has the event log {path} open")]
    InUse { path: PathBuf },
    #[error(
        "the event log file {path} {version}; export its events with the version of lodestone that wrote it \
         (`lodestone events export`), and start with a new data directory"
    )]
    Version { path: PathBuf, version: OtherVersion },
    /// The file contains bytes that were not written so. The server does not start with such a log before it is
    /// repaired.
    #[error(
        "the event log is damaged in {path} at byte {offset}, position {position}: {reason}; `lodestone events verify` \
         lists the records that a repair would drop"
    )]
    Damaged { path: PathBuf, offset: u64, position: u64, reason: Cow<'static, str> },
    /// A checkpoint includes changes that the log does not have. The server does not start with such a log before it is
    /// repaired.
    #[error(
        "the event log {log} ends at position {last}, but {checkpoint} includes changes up to position {until}: a file \
         of the log is missing, or older than the checkpoint; put it back, or go on without those changes by \
         `lodestone events verify --repair`"
    )]
    EndMissing { log: PathBuf, checkpoint: PathBuf, until: u64, last: u64 },
    /// A file of the open log is no longer the one in its directory. Nothing of the write was stored.
    #[error(
        "{path} is no longer the file of the event log that this process has open: it was removed, moved or replaced. \
         If it was moved, move it back, and writes continue. If it was deleted, restart the server: put a backup of \
         the directory in its place, or go on without the lost records by `lodestone events verify --repair`"
    )]
    Displaced { path: PathBuf },
    /// The bytes are as they were written, but this program cannot decode them.
    #[error("the event log is corrupt at position {position}: {reason}")]
    Corrupt { position: u64, reason: Cow<'static, str> },
    /// Nothing of the write was stored. The caller can retry when the disk has space.
    #[error("the disk of the event log is full, or a limit of file sizes is reached")]
    Full,
    /// The queue of writes is full. Nothing of the write was stored.
    #[error("too many writes wait for the event log; retry later")]
    Overloaded,
    /// The writer has ended.
    #[error("the event log is closed")]
    Closed,
    /// Some changes of the write are stored, but could not be applied. The other changes are in effect.
    #[error("{} and quarantined; the other changes of the write are in effect", join(changes))]
    Quarantined { changes: Arc<[Quarantined]> },
    /// It is unknown which changes of the write are in effect; a restart applies them.
    #[error("changes could not be applied, and the server takes no more writes before a restart: {reason}")]
    Stopping { reason: Arc<str> },
    /// An earlier write stopped the writer.
    #[error("the server takes no more writes after an earlier failure; restart it")]
    Stopped,
    #[error("a record of {bytes} bytes exceeds the event log's limit of {limit} bytes")]
    TooLarge { bytes: usize, limit: usize },
    #[error("the event log failed: {0}")]
    Io(#[source] Arc<io::Error>),
}

impl From<io::Error> for LogError {
    fn from(error: io::Error) -> Self {
        use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        match error.kind() {
            StorageFull | QuotaExceeded | FileTooLarge => Self::Full,
            _ => Self::Io(Arc::new(error)),
        }
    }
}

fn join(changes: &[Quarantined]) -> String {
    let named: Vec<String> = changes.iter().take(10).map(ToString::to_string).collect();
    match changes.len() > named.len() {
        true => {
            format!("{} changes could not be applied, among them {}, which are logged", changes.len(), named.join(", "))
        }
        false => format!("could not be applied: {}, which is logged", named.join(", ")),
    }
}

/// A change of the log that could not be applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quarantined {
    pub position: u64,
    /// See [`Change::kind_name`](crate::Change::kind_name).
    pub kind: String,
    /// See [`Change::id`](crate::Change::id).
    pub id: String,
    pub reason: String,
}

impl fmt::Display for Quarantined {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} `{}` at position {}", self.kind, self.id, self.position)
    }
}
