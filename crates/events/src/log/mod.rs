//! The durable log: changes at positions that rise from 1, in files of some 64 MiB that are only appended to.
//!
//! A change is on the disk when its append returns. A crash in the middle of an append leaves a torn tail, which the next
//! opening cuts; any other damage is refused with file, byte and position. `check` finds and repairs damage, `compact`
//! drops what is no longer wanted.
mod check;
mod compact;
mod segment;

pub use check::{Check, DamagedPart, Repair, check, repair};
pub use compact::{Compacted, KeepError, Retention, compact};

use super::Change;
use lodestone_core::units::UnixMillis;
use rayon::prelude::*;
use segment::{HEADER_BYTES, Header, PAYLOAD_BYTES_MAX, Segment};
use std::{
    borrow::Cow,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

/// A segment takes no more writes beyond this.
const SEGMENT_BYTES: u64 = 64 << 20;
const LOCK: &str = "lock";
/// Changes that are handed over together in a replay, and such hands that may wait.
const DECODED_COUNT: usize = 2048;
const DECODED_AHEAD: usize = 8;

/// Why the log cannot be read or written. Cheap to clone: one failure answers every waiting write.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LogError {
    #[error("cannot open the event log {path}: {source}")]
    Open { path: PathBuf, source: Arc<io::Error> },
    #[error("another process has the event log {path} open")]
    InUse { path: PathBuf },
    /// Bytes are not what was written. Nothing is served from such a log before it is repaired.
    #[error(
        "the event log is damaged in {path} at byte {offset}, position {position}: {reason}; `lodestone events verify` \
         tells what a repair would drop"
    )]
    Damaged { path: PathBuf, offset: u64, position: u64, reason: Cow<'static, str> },
    /// The bytes are as they were written, but this program cannot read them.
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
    #[error("a record of {bytes} bytes is larger than the event log takes")]
    TooLarge { bytes: usize },
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

/// What an opening cut from the log's end: the rest of a write that a crash interrupted. It was never acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TornTail {
    pub path: PathBuf,
    /// Where the file ends now.
    pub offset: u64,
    pub bytes: u64,
}

/// An open log. One process at a time.
pub struct EventLog {
    directory: PathBuf,
    /// The last segment. None: the next append begins a new one.
    tail: Option<Tail>,
    last: u64,
    /// When the last change was stored. Does not go back, whatever the clock does.
    at_s: u32,
    torn: Option<TornTail>,
    frames: Vec<u8>,
    _lock: File,
}

struct Tail {
    path: PathBuf,
    file: File,
    /// Bytes that are durable. More of the file is left from a failed append.
    length: u64,
    has_failed: bool,
}

impl EventLog {
    /// Opens the log in `directory`, which is made if it is not there, cuts a torn tail and checks every byte.
    /// Fails with [`LogError::Damaged`] at the first byte that is not as it was written.
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
                // A crash while it was made: it never had a record.
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

    /// The position of the last change; 0 for an empty log.
    pub fn last_position(&self) -> u64 {
        self.last
    }

    /// What the opening cut.
    pub fn torn_tail(&self) -> Option<&TornTail> {
        self.torn.as_ref()
    }

    /// Gives every change from position `from` on, in order, with the time at which it was stored, in whole seconds, and
    /// returns the log's last position (0: empty).
    pub fn replay(&self, from: u64, give: impl FnMut(u64, UnixMillis, Change)) -> Result<u64, LogError> {
        replay(&segments(&self.directory)?, from, self.last, give)?;
        Ok(self.last)
    }

    /// Stores encoded changes at the positions after the last one, all or none. On `Ok` they are on the disk.
    /// `now` is their time. Returns the new last position. After an error none of them is in the log, nor will be after a
    /// restart, unless the process ends before the file could be cut back.
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
                return Err(LogError::TooLarge { bytes: record.len() });
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

    /// The segment that takes the next write.
    fn tail(&mut self) -> Result<&mut Tail, LogError> {
        let is_full = self.tail.as_ref().is_some_and(|tail| tail.length >= SEGMENT_BYTES);
        if let (true, Some(tail)) = (is_full, &mut self.tail) {
            tail.cut_failure()?;
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
        let made = write_whole(&path, &Header { first, end: None }.bytes());
        if let Err(error) = made {
            let _ = fs::remove_file(&path);
            return Err(error.into());
        }
        // The file's name must be on the disk too before the first acknowledgement.
        sync_directory(directory)?;
        let file = OpenOptions::new().append(true).open(&path)?;
        Ok(Self { path, file, length: HEADER_BYTES as u64, has_failed: false })
    }

    fn append(&mut self, frames: &[u8]) -> Result<(), LogError> {
        self.cut_failure()?;
        let stored = self.file.write_all(frames).and_then(|()| self.file.sync_data());
        match stored {
            Ok(()) => {
                self.length += frames.len() as u64;
                Ok(())
            }
            Err(error) => {
                // Whether it reached the disk is not known. Cut at once, so that a restart does not meet it; if this fails
                // too, the next append tries again.
                self.has_failed = true;
                let _ = self.cut_failure();
                Err(error.into())
            }
        }
    }

    fn cut_failure(&mut self) -> Result<(), LogError> {
        if self.has_failed {
            // Opened anew: a file that failed once may not tell of its next failure.
            self.file = OpenOptions::new().append(true).open(&self.path)?;
            self.file.set_len(self.length)?;
            self.file.sync_all()?;
            self.has_failed = false;
        }
        Ok(())
    }
}

/// Reads a log that another process may be writing: gives every change from position `from` on that is whole now, and
/// returns the last position.
pub fn read(directory: &Path, from: u64, give: impl FnMut(u64, UnixMillis, Change)) -> Result<u64, LogError> {
    let failed = |source: io::Error| LogError::Open { path: directory.to_owned(), source: Arc::new(source) };
    replay(&segments(directory).map_err(failed)?, from, u64::MAX, give)
}

/// Gives the changes from `from` to `until`. They are read and decoded on a thread of its own, while `give` runs.
fn replay(
    paths: &[PathBuf],
    from: u64,
    until: u64,
    mut give: impl FnMut(u64, UnixMillis, Change),
) -> Result<u64, LogError> {
    let (sender, decoded) = crossbeam_channel::bounded::<Vec<Stamped>>(DECODED_AHEAD);
    thread::scope(|scope| {
        let reading = scope.spawn(move || {
            let mut some = Vec::with_capacity(DECODED_COUNT);
            let last = decode(paths, from, until, &mut |stamped| {
                some.push(stamped);
                if some.len() == DECODED_COUNT {
                    // It fails where `give` panicked, which ends this too.
                    let _ = sender.send(std::mem::replace(&mut some, Vec::with_capacity(DECODED_COUNT)));
                }
            });
            let _ = sender.send(some);
            last
        });
        for (position, at, change) in decoded.into_iter().flatten() {
            give(position, at, change);
        }
        reading.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// A change with its position and the time at which it was stored.
type Stamped = (u64, UnixMillis, Change);

/// Decodes in order; the tail of the last segment may be torn or being written. Gives the last position.
fn decode(paths: &[PathBuf], from: u64, until: u64, give: &mut dyn FnMut(Stamped)) -> Result<u64, LogError> {
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
                    give((frame.position, at, Change::decode(frame.position, frame.payload)?));
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

/// Checks all segments but the last on all cores, and gives the position that follows them.
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
        true => format!("positions {first} to {} are missing: a file of the log is gone", header.first - 1),
        false => format!("it begins with position {} a second time", header.first),
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

/// Held while a process writes the log.
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

/// The first position that a segment's name says.
fn first_position(path: &Path) -> Option<u64> {
    path.file_stem()?.to_str()?.parse().ok()
}

/// The segments' files in the order of their positions.
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

fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Puts `bytes` in place of a file, so that a crash leaves either the old or the new one.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    write_whole(&new, bytes)?;
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

    /// The file of the log's only segment.
    fn file(directory: &Path) -> PathBuf {
        segments(directory).unwrap().pop().unwrap()
    }

    #[test]
    fn positions_go_on_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = EventLog::open(&directory.path().join("made")).unwrap();
        assert_eq!(log.replay(0, |_, _, _| panic!("the log is empty")).unwrap(), 0);
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
        log.append(NOW, [[1u8, 255].as_slice()].into_iter()).unwrap();
        let error = log.replay(1, |_, _, _| ()).unwrap_err();
        assert!(matches!(error, LogError::Corrupt { position: 2, .. }), "{error}");
    }

    #[test]
    fn a_write_of_unknown_fate_is_taken_back() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = EventLog::open(directory.path()).unwrap();
        append(&mut log, &[delete("a"), delete("b")]);
        // As if a write had been refused, although it reached the disk.
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
    fn a_log_that_is_open_elsewhere_is_not_opened_but_read() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = EventLog::open(directory.path()).unwrap();
        append(&mut log, &[delete("a")]);
        assert!(matches!(EventLog::open(directory.path()), Err(LogError::InUse { .. })));
        assert_eq!(read(directory.path(), 1, |_, _, _| ()).unwrap(), 1);
    }

    #[test]
    fn a_torn_tail_is_cut_to_the_last_whole_record_and_told() {
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
    fn damage_in_the_middle_is_refused_with_its_byte_and_position() {
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
    fn a_missing_file_is_refused_with_the_positions_that_are_gone() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = EventLog::open(directory.path()).unwrap();
        for name in ["a", "b", "c"] {
            append(&mut log, &[delete(name), delete(name)]);
            // The next write begins a new file.
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
    fn a_file_without_a_whole_header_at_the_end_is_removed() {
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
