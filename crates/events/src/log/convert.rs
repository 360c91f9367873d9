//! Takes over the log of a version that kept it in redb. The only file that names redb.
use super::{LogError, SEGMENT_BYTES, replace, segment, segment_name, segments, sync_directory};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use segment::Header;
use std::{fs, io, path::Path, time::UNIX_EPOCH};

const OLD: &str = "events.redb";
const CONVERTED: &str = "events.redb.converted";
const RECORDS: TableDefinition<u64, &[u8]> = TableDefinition::new("records");

/// Writes the records of `events.redb` as segments and renames the file, which nobody needs any more. Until it is renamed,
/// a conversion that was interrupted begins anew. Does nothing where there is no such file.
pub(super) fn convert(directory: &Path) -> Result<(), LogError> {
    let path = directory.join(OLD);
    if !path.exists() {
        return Ok(());
    }
    let failed = |reason: String| LogError::Convert { path: path.clone(), reason };
    for part in segments(directory)? {
        fs::remove_file(part)?;
    }
    // When each record was stored is not known; its id is remembered a few days longer than need be.
    let changed = fs::metadata(&path).and_then(|file| file.modified())?;
    let at_s = changed.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as u32);
    write_segments(&path, directory, at_s).map_err(|error| failed(error.to_string()))?;
    fs::rename(&path, directory.join(CONVERTED))?;
    sync_directory(directory)?;
    Ok(())
}

fn write_segments(path: &Path, directory: &Path, at_s: u32) -> Result<(), redb::Error> {
    let database = Database::open(path)?;
    let records = database.begin_read()?.open_table(RECORDS)?;
    let (mut first, mut bytes) = (1, Header { first: 1, end: None }.bytes().to_vec());
    for (expected, record) in (1..).zip(records.iter()?) {
        let (position, payload) = record?;
        if position.value() != expected {
            let message = format!("the record at position {expected} is missing");
            return Err(io::Error::new(io::ErrorKind::InvalidData, message).into());
        }
        if bytes.len() as u64 >= SEGMENT_BYTES {
            replace(&directory.join(segment_name(first)), &bytes)?;
            (first, bytes) = (expected, Header { first: expected, end: None }.bytes().to_vec());
        }
        segment::put_frame(&mut bytes, expected, at_s, true, payload.value());
    }
    replace(&directory.join(segment_name(first)), &bytes)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::EventLog;
    use super::*;
    use crate::Change;
    use lodestone_core::ids::ItemId;

    #[test]
    fn an_old_log_is_taken_over_with_its_positions() {
        let directory = tempfile::tempdir().unwrap();
        let database = Database::create(directory.path().join(OLD)).unwrap();
        let transaction = database.begin_write().unwrap();
        let changes: Vec<Change> = ["a", "b"].map(|id| Change::Delete(ItemId::parse(id).unwrap())).into();
        {
            let mut records = transaction.open_table(RECORDS).unwrap();
            for (position, change) in (1..).zip(&changes) {
                records.insert(position, change.encode().as_slice()).unwrap();
            }
        }
        transaction.commit().unwrap();
        drop(database);
        for _ in 0..2 {
            let log = EventLog::open(directory.path()).unwrap();
            let mut read = Vec::new();
            assert_eq!(log.replay(1, |_, _, change| read.push(change)).unwrap(), 2);
            assert_eq!(read, changes);
        }
        assert!(!directory.path().join(OLD).exists());
    }
}
