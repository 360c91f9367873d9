//! The durable event log: a write-ahead log of changes at consecutive positions from 1, in append-only segments of
//! about 64 MiB.
//!
//! A change is durable when its append returns. A crash during an append leaves a torn tail, which the next open
//! truncates. Any other damage is an error with file, byte and position. `check` finds and repairs damage; `compact`
//! removes events beyond their retention and replaced item states.
mod check;
mod compact;
mod segment;

use super::{Change, LogError};
pub use check::{Check, DamagedPart, Repair, check, repair};
pub use compact::{CompactMode, Compacted, Retention, RetentionError, compact};
use lodestone_core::units::UnixMillis;
use rayon::prelude::*;
use segment::{HEADER_BYTES, Header, PAYLOAD_BYTES_MAX, Segment};
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

/// The size after which a segment takes no more writes.
const SEGMENT_BYTES: u64 = 64 << 20;
const LOCK: &str = "lock";
/// The number of changes that a replay passes between threads at once, and the number of such batches that may wait.
const DECODED_COUNT: usize = 2048;
const DECODED_AHEAD: usize = 8;

/// The bytes that an open removed from the end of the log: part of a write that a crash interrupted and that was never
/// acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TornTail {
    pub path: PathBuf,
    /// The new length of the file.
    pub offset: u64,
    pub bytes: u64,
}

/// An open log. A lock file ensures that only one process has it open.
pub struct EventLog {
    directory: PathBuf,
    /// The last segment; `None` if the next append creates a segment.
    tail: Option<Tail>,
    last: u64,
    /// The ingestion time of the last change. It never decreases, even if the clock does.
    at_s: u32,
    torn: Option<TornTail>,
    frames: Vec<u8>,
    _lock: File,
}

struct Tail {
    path: PathBuf,
    file: File,
    /// The number of durable bytes. Any bytes after them are left from a failed append.
    length: u64,
    has_failed: bool,
}

impl EventLog {
    /// Opens the log in `directory`, creates the directory if it does not exist, truncates a torn tail and verifies all
    /// checksums. Fails with [`LogError::Damaged`] at the first corrupt record.
    pub fn open(directory: &Path) -> Result<Self, LogError> {
        let failed = |source: io::Error| LogError::Open { path: directory.to_owned(), source: Arc::new(source) };
        fs::create_dir_all(directory).map_err(failed)?;
        let lock = lock(directory)?;
        let mut log = Self {
            directory: directory.to_owned(),
            tail: None,
            last: 0,
            at_s: 0,
            torn: None,
            frames: Vec::new(),
            _lock: lock,
        };
        let paths = segments(directory).map_err(failed)?;
        if let Some((last, sealed)) = paths.split_last() {
            let end = check_sealed(sealed)?;
            log.open_tail(last, end)?;
        }
        Ok(log)
    }

    /// Opens the last segment, whose first position must be `first`.
    fn open_tail(&mut self, path: &Path, first: u64) -> Result<(), LogError> {
        let segment = match Segment::read(path) {
            Ok(segment) => segment,
            Err(Ok(_)) if fs::metadata(path)?.len() <= HEADER_BYTES as u64 => {
                // The process crashed while it created the file, which has no record.
                let bytes = fs::metadata(path)?.len();
                fs::remove_file(path)?;
                self.torn = Some(TornTail { path: path.to_owned(), offset: 0, bytes });
                self.last = first - 1;
                return Ok(());
            }
            Err(error) => return Err(header_error(path, first, error)),
        };
        check_first(path, first, segment.header)?;
        let mut frames = segment.frames();
        let mut length = HEADER_BYTES;
        for frame in frames.by_ref() {
            match frame {
                Ok(frame) => (length, self.at_s) = (frame.end, frame.at_s),
                Err(damage) if damage.is_torn_tail() => {
                    let bytes = segment.bytes_from(damage.offset) as u64;
                    self.torn = Some(TornTail { path: path.to_owned(), offset: damage.offset as u64, bytes });
                    self.last = damage.position - 1;
                    let file = OpenOptions::new().write(true).open(path)?;
                    file.set_len(damage.offset as u64)?;
                    file.sync_all()?;
                    return self.append_to(path, segment.header, damage.offset as u64);
                }
                Err(damage) => return Err(damaged(path, &damage)),
            }
        }
        self.last = segment.header.end.unwrap_or(frames.next_position()) - 1;
        self.append_to(path, segment.header, length as u64)
    }

    fn append_to(&mut self, path: &Path, header: Header, length: u64) -> Result<(), LogError> {
        if header.end.is_none() {
            let file = OpenOptions::new().append(true).open(path)?;
            self.tail = Some(Tail { path: path.to_owned(), file, length, has_failed: false });
        }
        Ok(())
    }

    /// Returns the position of the last change; 0 for an empty log.
    pub fn last_position(&self) -> u64 {
        self.last
    }

    /// Returns the torn tail that the open removed.
    pub fn torn_tail(&self) -> Option<&TornTail> {
        self.torn.as_ref()
    }

    /// Calls `visit` with each change from position `from` on, in order, with its position and ingestion time in whole
    /// seconds. Returns the last position of the log (0 if it is empty).
    pub fn replay(&self, from: u64, visit: impl FnMut(u64, UnixMillis, Change)) -> Result<u64, LogError> {
        replay(&segments(&self.directory)?, from, self.last, visit)?;
        Ok(self.last)
    }

    /// Appends encoded changes, all or none, with the ingestion time `now`. Returns the new last position; the changes
    /// are durable then. After an error, the log contains none of them, even after a restart, unless the process
    /// ends before it could truncate the file.
    pub(super) fn append<'a>(
        &mut self,
        now: UnixMillis,
        records: impl Iterator<Item = &'a [u8]>,
    ) -> Result<u64, LogError> {
        self.at_s = self.at_s.max(now.seconds_u32());
        let mut frames = std::mem::take(&mut self.frames);
        frames.clear();
        let mut last = self.last;
        for record in records {
            if record.is_empty() || record.len() > PAYLOAD_BYTES_MAX {
                return Err(LogError::TooLarge { bytes: record.len(), limit: PAYLOAD_BYTES_MAX });
            }
            last += 1;
            segment::put_frame(&mut frames, last, self.at_s, last == self.last + 1, record);
        }
        let stored = self.tail().and_then(|tail| tail.append(&frames));
        frames.shrink_to(4 << 20);
        self.frames = frames;
        stored?;
        self.last = last;
        Ok(last)
    }

    /// Returns the segment for the next write.
    fn tail(&mut self) -> Result<&mut Tail, LogError> {
        let is_full = self.tail.as_ref().is_some_and(|tail| tail.length >= SEGMENT_BYTES);
        if let (true, Some(tail)) = (is_full, &mut self.tail) {
            tail.truncate_failed_append()?;
            self.tail = None;
        }
        match &mut self.tail {
            Some(tail) => Ok(tail),
            none => Ok(none.insert(Tail::create(&self.directory, self.last + 1)?)),
        }
    }
}

impl Tail {
    fn create(directory: &Path, first: u64) -> Result<Self, LogError> {
        let path = directory.join(segment_name(first));
        let created = write_and_sync(&path, &Header { first, end: None }.bytes());
        if let Err(error) = created {
            let _ = fs::remove_file(&path);
            return Err(error.into());
        }
        // The directory entry must be durable too before the first acknowledgement.
        sync_directory(directory)?;
        let file = OpenOptions::new().append(true).open(&path)?;
        Ok(Self { path, file, length: HEADER_BYTES as u64, has_failed: false })
    }

    fn append(&mut self, frames: &[u8]) -> Result<(), LogError> {
        self.truncate_failed_append()?;
        let stored = self.file.write_all(frames).and_then(|()| self.file.sync_data());
        match stored {
            Ok(()) => {
                self.length += frames.len() as u64;
                Ok(())
            }
            Err(error) => {
                // It is unknown whether the frames reached the disk. Truncating now prevents that a restart reads them.
                // If this fails too, the next append tries again.
                self.has_failed = true;
                let _ = self.truncate_failed_append();
                Err(error.into())
            }
        }
    }

    fn truncate_failed_append(&mut self) -> Result<(), LogError> {
        if self.has_failed {
            // Reopens the file, because the kernel may not report a second write error on the same descriptor.
            self.file = OpenOptions::new().append(true).open(&self.path)?;
            self.file.set_len(self.length)?;
            self.file.sync_all()?;
            self.has_failed = false;
        }
        Ok(())
    }
}

/// Reads a log that another process may be writing. Calls `visit` with each change from position `from` on that is
/// complete now, and returns the last position.
pub fn read(directory: &Path, from: u64, visit: impl FnMut(u64, UnixMillis, Change)) -> Result<u64, LogError> {
    let failed = |source: io::Error| LogError::Open { path: directory.to_owned(), source: Arc::new(source) };
    replay(&segments(directory).map_err(failed)?, from, u64::MAX, visit)
}

/// Visits the changes from `from` to `until`. A second thread reads and decodes them while `visit` runs.
fn replay(
    paths: &[PathBuf],
    from: u64,
    until: u64,
    mut visit: impl FnMut(u64, UnixMillis, Change),
) -> Result<u64, LogError> {
    let (sender, decoded) = crossbeam_channel::bounded::<Vec<Stamped>>(DECODED_AHEAD);
    thread::scope(|scope| {
        let reading = scope.spawn(move || {
            let mut batch = Vec::with_capacity(DECODED_COUNT);
            let last = decode(paths, from, until, &mut |stamped| {
                batch.push(stamped);
                if batch.len() == DECODED_COUNT {
                    // Sending fails only after a panic of `visit`, which ends the replay.
                    let _ = sender.send(std::mem::replace(&mut batch, Vec::with_capacity(DECODED_COUNT)));
                }
            });
            let _ = sender.send(batch);
            last
        });
        for (position, at, change) in decoded.into_iter().flatten() {
            visit(position, at, change);
        }
        reading.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// A change with its position and ingestion time.
type Stamped = (u64, UnixMillis, Change);

/// Decodes the changes in order and returns the last position. The tail of the last segment may be torn or still being
/// written.
fn decode(paths: &[PathBuf], from: u64, until: u64, visit: &mut dyn FnMut(Stamped)) -> Result<u64, LogError> {
    let begin = paths.partition_point(|path| first_position(path).is_some_and(|first| first <= from));
    let mut next = None;
    for (index, path) in paths.iter().enumerate().skip(begin.saturating_sub(1)) {
        let first = next.unwrap_or(if index == 0 { 1 } else { first_position(path).unwrap_or(1) });
        let is_last = index + 1 == paths.len();
        let segment = match Segment::read(path) {
            Err(Ok(_)) if is_last => break,
            read => read.map_err(|error| header_error(path, first, error))?,
        };
        check_first(path, first, segment.header)?;
        let mut frames = segment.frames();
        for frame in frames.by_ref() {
            match frame {
                Ok(frame) if (from..=until).contains(&frame.position) => {
                    let at = UnixMillis(i64::from(frame.at_s) * 1000);
                    visit((frame.position, at, Change::decode(frame.position, frame.payload)?));
                }
                Ok(_) => {}
                Err(damage) if is_last && damage.is_torn_tail() => return Ok(damage.position - 1),
                Err(damage) => return Err(damaged(path, &damage)),
            }
        }
        next = Some(segment.header.end.unwrap_or(frames.next_position()));
    }
    Ok(next.map_or(0, |next| next - 1))
}

/// Verifies all segments but the last in parallel. Returns the position after them.
fn check_sealed(paths: &[PathBuf]) -> Result<u64, LogError> {
    let ends: Vec<(Header, u64)> = paths.par_iter().map(|path| check_one(path)).collect::<Result<_, _>>()?;
    let mut next = 1;
    for (path, (header, end)) in paths.iter().zip(ends) {
        check_first(path, next, header)?;
        next = end;
    }
    Ok(next)
}

fn check_one(path: &Path) -> Result<(Header, u64), LogError> {
    let first = first_position(path).unwrap_or(1);
    let segment = Segment::read(path).map_err(|error| header_error(path, first, error))?;
    let mut frames = segment.frames();
    if let Some(damage) = frames.find_map(Result::err) {
        return Err(damaged(path, &damage));
    }
    Ok((segment.header, segment.header.end.unwrap_or(frames.next_position())))
}

fn check_first(path: &Path, first: u64, header: Header) -> Result<(), LogError> {
    if header.first == first {
        return Ok(());
    }
    let reason = match header.first > first {
        true => format!("positions {first} to {} are missing: a file of the log does not exist", header.first - 1),
        false => format!("the file starts with position {}, which an earlier file already has", header.first),
    };
    Err(LogError::Damaged { path: path.to_owned(), offset: 0, position: first, reason: reason.into() })
}

fn damaged(path: &Path, damage: &segment::Damage) -> LogError {
    let reason = damage.reason.into();
    LogError::Damaged { path: path.to_owned(), offset: damage.offset as u64, position: damage.position, reason }
}

fn header_error(path: &Path, position: u64, error: Result<&'static str, io::Error>) -> LogError {
    match error {
        Ok(reason) => LogError::Damaged { path: path.to_owned(), offset: 0, position, reason: reason.into() },
        Err(source) => LogError::Open { path: path.to_owned(), source: Arc::new(source) },
    }
}

/// Takes the lock that a process holds while it has the log open.
fn lock(directory: &Path) -> Result<File, LogError> {
    let path = directory.join(LOCK);
    let failed = |source: io::Error| LogError::Open { path: path.clone(), source: Arc::new(source) };
    let file = OpenOptions::new().create(true).append(true).open(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(LogError::InUse { path: directory.to_owned() }),
        Err(fs::TryLockError::Error(error)) => Err(failed(error)),
    }
}

fn segment_name(first: u64) -> String {
    format!("{first:020}.log")
}

/// Returns the first position according to the segment's file name.
fn first_position(path: &Path) -> Option<u64> {
    path.file_stem()?.to_str()?.parse().ok()
}

/// Returns the paths of the segments in the order of their positions.
fn segments(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "log") && first_position(&path).is_some() {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn write_and_sync(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Replaces the content of a file atomically: after a crash, the file has either the old or the new content.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    write_and_sync(&new, bytes)?;
    fs::rename(&new, path)?;
    path.parent().map_or(Ok(()), sync_directory)
}

#[cfg(test)]
mod tests {
    use super::*;
    use lodestone_core::ids::ItemId;

    const NOW: UnixMillis = UnixMillis(1_750_000_000_000);

    fn delete(id: &str) -> Change {
        Change::Delete(ItemId::parse(id).unwrap())
    }

    fn append(log: &mut EventLog, changes: &[Change]) -> u64 {
        let records: Vec<Vec<u8>> = changes.iter().map(Change::encode).collect();
        log.append(NOW, records.iter().map(Vec::as_slice)).unwrap()
    }

    fn positions(log: &EventLog, from: u64) -> Vec<u64> {
        let mut positions = Vec::new();
        log.replay(from, |position, at, _| {
            assert_eq!(at, NOW);
            positions.push(position);
        })
        .unwrap();
        positions
    }

    /// Returns the path of the log's only segment.
    fn file(directory: &Path) -> PathBuf {
        segments(directory).unwrap().pop().unwrap()
    }

    #[test]
    fn positions_continue_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = EventLog::open(&directory.path().join("created")).unwrap();
        assert_eq!(log.replay(0, |_, _, _| panic!("the log is empty")).unwrap(), 0);
        assert_eq!(append(&mut log, &[delete("a"), delete("b")]), 2);
        drop(log);
        let mut log = EventLog::open(&directory.path().join("created")).unwrap();
        assert_eq!(log.last_position(), 2);
        assert_eq!(append(&mut log, &[delete("c")]), 3);
        assert_eq!(positions(&log, 0), [1, 2, 3]);
        assert_eq!(positions(&log, 3), [3]);
        assert_eq!(positions(&log, 4), [0; 0]);
    }

    #[test]
    fn the_error_of_an_unreadable_record_has_its_position() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = EventLog::open(directory.path()).unwrap();
        append(&mut log, &[delete("a")]);
        log.append(NOW, [[1u8, 255].as_slice()].into_iter()).unwrap();
        let error = log.replay(1, |_, _, _| ()).unwrap_err();
        assert!(matches!(error, LogError::Corrupt { position: 2, .. }), "{error}");
    }

    #[test]
    fn a_failed_append_is_truncated_before_the_next_one() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = EventLog::open(directory.path()).unwrap();
        append(&mut log, &[delete("a"), delete("b")]);
        // Simulates an append that failed although its frames reached the disk.
        let mut frames = Vec::new();
        segment::put_frame(&mut frames, 3, 0, true, &delete("c").encode());
        let tail = log.tail.as_mut().unwrap();
        tail.file.write_all(&frames).unwrap();
        tail.has_failed = true;
        assert_eq!(append(&mut log, &[delete("d")]), 3);
        let mut changes = Vec::new();
        log.replay(1, |_, _, change| changes.push(change)).unwrap();
        assert_eq!(changes, [delete("a"), delete("b"), delete("d")]);
    }

    #[test]
    fn an_open_log_cannot_be_opened_again_but_can_be_read() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = EventLog::open(directory.path()).unwrap();
        append(&mut log, &[delete("a")]);
        assert!(matches!(EventLog::open(directory.path()), Err(LogError::InUse { .. })));
        assert_eq!(read(directory.path(), 1, |_, _, _| ()).unwrap(), 1);
    }

    #[test]
    fn a_torn_tail_is_truncated_to_the_last_complete_record_and_reported() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = EventLog::open(directory.path()).unwrap();
        append(&mut log, &[delete("a"), delete("b"), delete("c")]);
        drop(log);
        let path = file(directory.path());
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() - 3]).unwrap();
        let mut log = EventLog::open(directory.path()).unwrap();
        let torn = log.torn_tail().unwrap().clone();
        assert_eq!((log.last_position(), torn.offset + torn.bytes), (2, bytes.len() as u64 - 3));
        assert_eq!(append(&mut log, &[delete("d")]), 3);
        assert_eq!(positions(&log, 1), [1, 2, 3]);
        drop(log);
        assert_eq!(EventLog::open(directory.path()).unwrap().torn_tail(), None);
    }

    #[test]
    fn the_error_of_damage_in_the_middle_has_byte_and_position() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = EventLog::open(directory.path()).unwrap();
        append(&mut log, &[delete("a"), delete("b"), delete("c")]);
        drop(log);
        let path = file(directory.path());
        let mut bytes = fs::read(&path).unwrap();
        let second = HEADER_BYTES + (bytes.len() - HEADER_BYTES) / 3;
        bytes[second + 1] ^= 4;
        fs::write(&path, bytes).unwrap();
        let error = EventLog::open(directory.path()).err().unwrap();
        let LogError::Damaged { position: 2, offset, .. } = &error else { panic!("{error}") };
        assert_eq!(*offset, second as u64);
        assert!(error.to_string().contains(&format!("byte {second}, position 2")), "{error}");
    }

    #[test]
    fn the_error_of_a_missing_file_has_the_missing_positions() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = EventLog::open(directory.path()).unwrap();
        for name in ["a", "b", "c"] {
            append(&mut log, &[delete(name), delete(name)]);
            // The next write creates a file.
            log.tail = None;
        }
        drop(log);
        let paths = segments(directory.path()).unwrap();
        assert_eq!(paths.len(), 3);
        assert_eq!(EventLog::open(directory.path()).unwrap().last_position(), 6);
        fs::remove_file(&paths[1]).unwrap();
        let error = EventLog::open(directory.path()).err().unwrap();
        assert!(error.to_string().contains("positions 3 to 4 are missing"), "{error}");
    }

    #[test]
    fn a_last_file_without_a_complete_header_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = EventLog::open(directory.path()).unwrap();
        append(&mut log, &[delete("a")]);
        drop(log);
        fs::write(directory.path().join(segment_name(2)), b"LDS").unwrap();
        let mut log = EventLog::open(directory.path()).unwrap();
        assert_eq!((log.last_position(), append(&mut log, &[delete("b")])), (1, 2));
        assert_eq!(positions(&log, 1), [1, 2]);
    }
}
