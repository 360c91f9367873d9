//! The durable log: positions from 1 without gaps, each with one change. The only file that names redb.
use super::Change;
use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};
use std::{
    borrow::Cow,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

const FILE_NAME: &str = "events.redb";
const RECORDS: TableDefinition<u64, &[u8]> = TableDefinition::new("records");
/// The log is written at its end and read from its start once, so a small page cache does.
const CACHE_BYTES: usize = 64 << 20;

/// Why the log cannot be read or written. Cheap to clone: one failure answers every waiting write.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LogError {
    #[error("cannot open the event log {path}: {source}")]
    Open { path: PathBuf, source: Arc<redb::Error> },
    #[error("the event log is corrupt at position {position}: {reason}")]
    Corrupt { position: u64, reason: Cow<'static, str> },
    /// Nothing of the write was stored; it can be tried again when there is room.
    #[error("there is no room left on the event log's disk")]
    Full,
    /// Too many writes wait already; nothing of this one was stored.
    #[error("more writes are waiting than the event log can take")]
    Overloaded,
    /// The writer has stopped.
    #[error("the event log is closed")]
    Closed,
    #[error("the event log failed: {0}")]
    Io(#[source] Arc<redb::Error>),
}

impl LogError {
    fn from_redb(error: impl Into<redb::Error>) -> Self {
        match error.into() {
            redb::Error::Io(error)
                if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) =>
            {
                Self::Full
            }
            error => Self::Io(Arc::new(error)),
        }
    }
}

/// An open log. One process at a time.
pub struct EventLog {
    path: PathBuf,
    /// None after a failure, until the next append opens it again.
    database: Option<Database>,
    last: u64,
}

impl EventLog {
    /// Opens the log in `directory`, which is made if it is not there. After a crash this repairs the file first.
    pub fn open(directory: &Path) -> Result<Self, LogError> {
        let path = directory.join(FILE_NAME);
        let failed = |error: redb::Error| LogError::Open { path: path.clone(), source: Arc::new(error) };
        fs::create_dir_all(directory).map_err(|error| failed(error.into()))?;
        let database = open_database(&path).map_err(failed)?;
        // The file's name must be on the disk too before the first acknowledgement.
        File::open(directory).and_then(|directory| directory.sync_all()).map_err(|error| failed(error.into()))?;
        let last = last_position(&database).map_err(failed)?;
        Ok(Self { path, database: Some(database), last })
    }

    /// The position of the last change; 0 for an empty log.
    pub fn last_position(&self) -> u64 {
        self.last
    }

    /// Gives every change from position `from` on, in order, and returns the log's last position (0: empty).
    /// Fails with [`LogError::Corrupt`] at the first record that cannot be read or is missing.
    pub fn replay(&self, from: u64, mut give: impl FnMut(u64, Change)) -> Result<u64, LogError> {
        let database = self.database.as_ref().ok_or(LogError::Closed)?;
        let transaction = database.begin_read().map_err(LogError::from_redb)?;
        let records = transaction.open_table(RECORDS).map_err(LogError::from_redb)?;
        let mut expected = from.max(1);
        #[allow(clippy::explicit_counter_loop)] // `expected` is also the start of the range
        for record in records.range(expected..).map_err(LogError::from_redb)? {
            let (position, bytes) = record.map_err(LogError::from_redb)?;
            if position.value() != expected {
                return Err(LogError::Corrupt { position: expected, reason: "the record is missing".into() });
            }
            give(expected, Change::decode(expected, bytes.value())?);
            expected += 1;
        }
        Ok(self.last)
    }

    /// Stores encoded changes at the positions after the last one, all or none. On `Ok` they are on the disk.
    /// Returns the new last position. After an error none of them is in the log, nor will be after a restart, unless
    /// the process ends before the log could be opened again.
    pub(super) fn append<'a>(&mut self, records: impl Iterator<Item = &'a [u8]>) -> Result<u64, LogError> {
        self.reopen_after_failure()?;
        let database = self.database.as_ref().ok_or(LogError::Closed)?;
        match append_records(database, self.last, records) {
            Ok(last) => {
                self.last = last;
                Ok(last)
            }
            Err(error) => {
                // redb takes no more writes after a failed one; whether this one reached the disk is not known.
                self.database = None;
                // At once, so that a restart does not meet it; if this fails too, the next append tries again.
                let _ = self.reopen_after_failure();
                Err(LogError::from_redb(error))
            }
        }
    }

    fn reopen_after_failure(&mut self) -> Result<(), LogError> {
        if self.database.is_none() {
            let database = open_database(&self.path).map_err(LogError::from_redb)?;
            drop_after(&database, self.last).map_err(LogError::from_redb)?;
            self.database = Some(database);
        }
        Ok(())
    }
}

fn open_database(path: &Path) -> Result<Database, redb::Error> {
    let database = Database::builder().set_cache_size(CACHE_BYTES).create(path)?;
    // Makes the table, so that a reader of a new log finds one.
    let transaction = database.begin_write()?;
    transaction.open_table(RECORDS)?;
    transaction.commit()?;
    Ok(database)
}

fn last_position(database: &Database) -> Result<u64, redb::Error> {
    let records = database.begin_read()?.open_table(RECORDS)?;
    let last = records.last()?;
    Ok(last.map_or(0, |(position, _)| position.value()))
}

fn append_records<'a>(
    database: &Database,
    mut last: u64,
    encoded: impl Iterator<Item = &'a [u8]>,
) -> Result<u64, redb::Error> {
    let mut transaction = database.begin_write()?;
    transaction.set_durability(Durability::Immediate)?;
    {
        let mut records = transaction.open_table(RECORDS)?;
        for bytes in encoded {
            last += 1;
            records.insert(last, bytes)?;
        }
    }
    transaction.commit()?;
    Ok(last)
}

/// Removes what an append of unknown fate left behind.
fn drop_after(database: &Database, last: u64) -> Result<(), redb::Error> {
    if last_position(database)? <= last {
        return Ok(());
    }
    let transaction = database.begin_write()?;
    transaction.open_table(RECORDS)?.retain_in(last + 1.., |_, _| false)?;
    transaction.commit()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::ItemId;

    fn delete(id: &str) -> Change {
        Change::Delete(ItemId::parse(id).unwrap())
    }

    fn append(log: &mut EventLog, changes: &[Change]) -> u64 {
        let records: Vec<Vec<u8>> = changes.iter().map(Change::encode).collect();
        log.append(records.iter().map(Vec::as_slice)).unwrap()
    }

    fn positions(log: &EventLog, from: u64) -> Vec<u64> {
        let mut positions = Vec::new();
        log.replay(from, |position, _| positions.push(position)).unwrap();
        positions
    }

    #[test]
    fn positions_go_on_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = EventLog::open(&directory.path().join("made")).unwrap();
        assert_eq!(log.replay(0, |_, _| panic!("the log is empty")).unwrap(), 0);
        assert_eq!(append(&mut log, &[delete("a"), delete("b")]), 2);
        drop(log);
        let mut log = EventLog::open(&directory.path().join("made")).unwrap();
        assert_eq!(log.last_position(), 2);
        assert_eq!(append(&mut log, &[delete("c")]), 3);
        assert_eq!(positions(&log, 0), [1, 2, 3]);
        assert_eq!(positions(&log, 3), [3]);
        assert_eq!(positions(&log, 4), [0; 0]);
    }

    #[test]
    fn a_bad_record_is_named_by_its_position() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = EventLog::open(directory.path()).unwrap();
        append(&mut log, &[delete("a")]);
        log.append([[1u8, 255].as_slice()].into_iter()).unwrap();
        let error = log.replay(1, |_, _| ()).unwrap_err();
        assert!(matches!(error, LogError::Corrupt { position: 2, .. }), "{error}");
    }

    #[test]
    fn a_write_of_unknown_fate_is_taken_back() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = EventLog::open(directory.path()).unwrap();
        append(&mut log, &[delete("a"), delete("b"), delete("c")]);
        // As if the last two had been refused, although they reached the disk.
        log.database = None;
        log.last = 1;
        assert_eq!(append(&mut log, &[delete("d")]), 2);
        let mut changes = Vec::new();
        log.replay(1, |_, change| changes.push(change)).unwrap();
        assert_eq!(changes, [delete("a"), delete("d")]);
    }

    #[test]
    fn a_log_that_is_open_elsewhere_is_not_opened() {
        let directory = tempfile::tempdir().unwrap();
        let _log = EventLog::open(directory.path()).unwrap();
        assert!(matches!(EventLog::open(directory.path()), Err(LogError::Open { .. })));
    }
}
