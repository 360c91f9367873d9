//! The durable event log: a write-ahead log of changes at consecutive positions from 1, in append-only segments of
//! about 64 MiB.
//!
//! A change is durable when its append returns. A crash during an append leaves a torn tail, which the next open
//! truncates. Any other damage is an error with file, byte and position, and so is a missing file. `check` finds and
//! repairs damage; `copy` makes a consistent copy; `compact` removes events beyond their retention and replaced item states.
mod check;
mod compact;
mod copy;
mod segment;

use super::{Change, LogError, Quarantined, checkpoint, quarantine};
use crate::{
    directory::{LogDirectory, check_file, following_segment, position_of},
    storage::{FileId, StorageFile},
};
use ahash::AHashSet;
pub use check::{Check, DamagedPart, Repair, check, repair};
pub use compact::{CompactMode, Compacted, Retention, RetentionError, compact};
pub use copy::copy;
use lodestone_core::units::UnixMillis;
use rayon::prelude::*;
use segment::{HEADER_BYTES, Header, HeaderError, PAYLOAD_BYTES_MAX, Segment};
use std::{
    borrow::Cow,
    fs, io,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

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
    directory: LogDirectory,
    /// The last segment.
    tail: Tail,
    last: u64,
    /// The ingestion time of the last change. It never decreases, even if the clock does.
    at_s: u32,
    torn: Option<TornTail>,
    frames: Vec<u8>,
}

struct Tail {
    path: PathBuf,
    file: Box<dyn StorageFile>,
    id: FileId,
    first: u64,
    /// The number of durable bytes. Any bytes after them are left from a failed append.
    length: u64,
    has_failed: bool,
}

impl EventLog {
    /// Opens the log in `directory`, creates the directory if it does not exist, truncates a torn tail and verifies all
    /// checksums. Fails with [`LogError::Damaged`] at the first corrupt record or missing file, and with
    /// [`LogError::EndMissing`] if a checkpoint includes later changes than the log.
    pub fn open(directory: impl Into<LogDirectory>) -> Result<Self, LogError> {
        let directory = directory.into().locked()?;
        let failed = |source: io::Error| LogError::Open { path: directory.path().to_owned(), source: Arc::new(source) };
        let mut paths = directory.segments().map_err(failed)?;
        let interrupted = remove_interrupted(&directory, &mut paths)?;
        let Some((last, sealed)) = paths.split_last() else {
            if directory.is_marked() {
                return Err(no_segments(&directory));
            }
            let tail = Tail::create(&directory, 1)?;
            directory.mark().map_err(failed)?;
            return Self::new(directory, tail, interrupted).checked();
        };
        let first = check_sealed(sealed)?;
        if let Some(previous) = sealed.last() {
            seal(&directory, previous, first)?;
        }
        directory.mark().map_err(failed)?;
        let mut log = Self::new(directory.clone(), Tail::open(&directory, last, first)?, interrupted);
        log.read_tail()?;
        log.checked()
    }

    fn new(directory: LogDirectory, tail: Tail, torn: Option<TornTail>) -> Self {
        Self { directory, last: tail.first - 1, tail, at_s: 0, torn, frames: Vec::new() }
    }

    /// Reads the last segment up to its last whole record, and truncates a torn write after it.
    fn read_tail(&mut self) -> Result<(), LogError> {
        let (path, first) = (self.tail.path.clone(), self.tail.first);
        let segment = Segment::read(&path).map_err(|error| header_error(&path, first, error))?;
        check_first(&path, first, segment.header)?;
        if let Some(end) = segment.header.end {
            return Err(missing_next(&path, end));
        }
        for frame in segment.frames() {
            match frame {
                Ok(frame) => {
                    (self.tail.length, self.at_s, self.last) = (frame.end as u64, frame.at_s, frame.position);
                }
                Err(damage) if damage.is_torn_write() => {
                    let (offset, bytes) = (damage.offset as u64, segment.bytes_from(damage.offset) as u64);
                    self.torn = Some(TornTail { path, offset, bytes });
                    self.tail.file.set_len(offset)?;
                    self.tail.file.sync()?;
                    break;
                }
                Err(damage) => return Err(damaged(&path, &damage)),
            }
        }
        Ok(())
    }

    /// Checks that no checkpoint includes later changes than the log.
    fn checked(self) -> Result<Self, LogError> {
        check_end(self.directory.path(), checkpoint::newest_position(self.directory.path())?, self.last)?;
        Ok(self)
    }

    /// Returns true if a directory has a log, or had one whose segments are missing.
    pub fn exists(directory: &Path) -> bool {
        let directory = LogDirectory::from(directory);
        directory.is_marked() || directory.segments().is_ok_and(|paths| !paths.is_empty())
    }

    /// Returns the directory, locked by this process as long as the log or a clone of the directory exists.
    pub fn directory(&self) -> &LogDirectory {
        &self.directory
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
    /// seconds. Skips quarantined changes. Returns the last position of the log (0 if it is empty).
    pub fn replay(&self, from: u64, mut visit: impl FnMut(u64, UnixMillis, Change)) -> Result<u64, LogError> {
        let skipped = quarantine::positions(self.directory.path())?;
        let visit = |position, at, change| {
            visit(position, at, change);
            ControlFlow::Continue(())
        };
        replay(self.directory.segments()?, from, self.last, visit_applied(skipped, visit))?;
        Ok(self.last)
    }

    /// Records changes that could not be applied, so that every later replay skips them. They are durable on return.
    pub fn quarantine(&self, changes: &[Quarantined]) -> Result<(), LogError> {
        if changes.is_empty() {
            return Ok(());
        }
        let (path, text) = quarantine::with(self.directory.path(), changes)?;
        Ok(self.directory.replace(&path, text.as_bytes())?)
    }

    /// Returns the number of quarantined changes.
    pub(super) fn quarantined_count(&self) -> Result<usize, LogError> {
        Ok(quarantine::positions(self.directory.path())?.len())
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
        let stored = self.store(&frames);
        frames.shrink_to(4 << 20);
        self.frames = frames;
        stored?;
        self.last = last;
        Ok(last)
    }

    fn store(&mut self, frames: &[u8]) -> Result<(), LogError> {
        if self.tail.length >= self.directory.segment_bytes {
            self.begin_segment()?;
        }
        self.tail.append(&self.directory, frames)
    }

    /// Creates the next segment, and then records in the full one that a next one exists.
    fn begin_segment(&mut self) -> Result<(), LogError> {
        self.tail.truncate_failed_append(&self.directory)?;
        self.check_files()?;
        let next = Tail::create(&self.directory, self.last + 1)?;
        // After an error, the next append creates the segment again, which has no frames.
        seal(&self.directory, &self.tail.path, next.first)?;
        self.tail = next;
        Ok(())
    }

    /// Checks that the lock file and the last segment in the directory are those that this process has open. Otherwise
    /// another process may own the log, or the changes would be written to a deleted file.
    pub(super) fn check_files(&self) -> Result<(), LogError> {
        self.tail.check(&self.directory)
    }
}

impl Tail {
    fn create(directory: &LogDirectory, first: u64) -> Result<Self, LogError> {
        let path = directory.segment(first);
        create_segment(directory, &path, Header { first, end: None, is_sparse: false })?;
        Self::open(directory, &path, first)
    }

    fn open(directory: &LogDirectory, path: &Path, first: u64) -> Result<Self, LogError> {
        let file = directory.storage().open(path)?;
        let id = file.id()?;
        Ok(Self { path: path.to_owned(), file, id, first, length: HEADER_BYTES as u64, has_failed: false })
    }

    fn append(&mut self, directory: &LogDirectory, frames: &[u8]) -> Result<(), LogError> {
        self.truncate_failed_append(directory)?;
        let stored = self.file.write_at(frames, self.length).and_then(|()| self.file.sync());
        // Checked after the sync, so that no change is acknowledged that is in a deleted or moved file.
        match stored.map_err(LogError::from).and_then(|()| self.check(directory)) {
            Ok(()) => {
                self.length += frames.len() as u64;
                Ok(())
            }
            Err(error) => {
                // It is unknown whether the frames reached the disk. Truncating now prevents that a restart reads them.
                // If this fails too, the next append tries again.
                self.has_failed = true;
                let _ = self.truncate_failed_append(directory);
                Err(error)
            }
        }
    }

    fn check(&self, directory: &LogDirectory) -> Result<(), LogError> {
        directory.check_lock()?;
        check_file(&self.path, self.id)
    }

    fn truncate_failed_append(&mut self, directory: &LogDirectory) -> Result<(), LogError> {
        if self.has_failed {
            // Opens the file again, because the kernel may not report a second write error on the same descriptor.
            let mut file = directory.storage().open(&self.path).map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => LogError::Displaced { path: self.path.clone() },
                _ => error.into(),
            })?;
            // Another process may have put its own file there.
            if file.id()? != self.id {
                return Err(LogError::Displaced { path: self.path.clone() });
            }
            file.set_len(self.length)?;
            file.sync()?;
            self.file = file;
            self.has_failed = false;
        }
        Ok(())
    }
}

/// Removes the last segment if a crash interrupted its creation: its header is incomplete, and the segment before it
/// does not state that a next one exists.
fn remove_interrupted(directory: &LogDirectory, paths: &mut Vec<PathBuf>) -> Result<Option<TornTail>, LogError> {
    let Some((last, sealed)) = paths.split_last() else { return Ok(None) };
    if !is_interrupted_creation(directory, last, sealed.last())? {
        return Ok(None);
    }
    let torn = TornTail { path: last.clone(), offset: 0, bytes: fs::metadata(last)?.len() };
    directory.storage().remove(last)?;
    directory.sync()?;
    paths.pop();
    Ok(Some(torn))
}

fn is_interrupted_creation(directory: &LogDirectory, last: &Path, previous: Option<&PathBuf>) -> io::Result<bool> {
    if fs::metadata(last)?.len() > HEADER_BYTES as u64 || !matches!(Header::read(last), Err(HeaderError::Damaged(_))) {
        return Ok(false);
    }
    Ok(match previous {
        Some(previous) => !Header::read(previous).is_ok_and(|header| header.end.is_some()),
        None => !directory.is_marked(),
    })
}

/// Creates a segment without frames, durably.
fn create_segment(directory: &LogDirectory, path: &Path, header: Header) -> io::Result<()> {
    let created = directory.storage().create(path).and_then(|mut file| {
        file.write_at(&header.bytes(), 0)?;
        file.sync()
    });
    // The directory entry must be durable too before the first acknowledgement.
    let created = created.and_then(|()| directory.sync());
    if created.is_err() {
        let _ = directory.storage().remove(path);
    }
    created
}

/// Records in a segment that the next one, with the first position `end`, exists. The header is within one sector, so a
/// crash leaves the old header or the new one.
fn seal(directory: &LogDirectory, path: &Path, end: u64) -> Result<(), LogError> {
    let header = Header::read(path).map_err(|error| header_error(path, 1, error))?;
    if header.end.is_none() {
        let mut file = directory.storage().open(path)?;
        file.write_at(&Header { end: Some(end), ..header }.bytes(), 0)?;
        file.sync()?;
    }
    Ok(())
}

/// Reads a log that another process may be writing. Calls `visit` with each change from position `from` on that is
/// complete now and not quarantined, and returns the last position.
pub fn read(directory: &Path, from: u64, mut visit: impl FnMut(u64, UnixMillis, Change)) -> Result<u64, LogError> {
    let last = try_read(directory, from, |position, at, change| {
        visit(position, at, change);
        ControlFlow::Continue(())
    })?;
    Ok(last.unwrap_or(0))
}

/// Reads a log as [`read`] does, until `visit` breaks. Returns the last position, or none after a break.
pub fn try_read(
    directory: &Path,
    from: u64,
    visit: impl FnMut(u64, UnixMillis, Change) -> ControlFlow<()>,
) -> Result<Option<u64>, LogError> {
    let failed = |source: io::Error| LogError::Open { path: directory.to_owned(), source: Arc::new(source) };
    // Listed before the log is read, because a checkpoint never includes changes that the log has not.
    let checkpoint = checkpoint::newest_position(directory).map_err(failed)?;
    let log = LogDirectory::from(directory);
    let paths = log.segments().map_err(failed)?;
    if paths.is_empty() && log.is_marked() {
        return Err(no_segments(&log));
    }
    let last = replay(paths, from, u64::MAX, visit_applied(quarantine::positions(directory)?, visit))?;
    if let Some(last) = last {
        check_end(directory, checkpoint, last)?;
    }
    Ok(last)
}

/// Returns a visitor that skips quarantined changes.
fn visit_applied(
    skipped: AHashSet<u64>,
    mut visit: impl FnMut(u64, UnixMillis, Change) -> ControlFlow<()>,
) -> impl FnMut(u64, UnixMillis, Change) -> ControlFlow<()> {
    move |position, at, change| match skipped.contains(&position) {
        true => ControlFlow::Continue(()),
        false => visit(position, at, change),
    }
}

/// Visits the changes from `from` to `until`. A second thread reads and decodes them while `visit` runs. Returns the
/// last position, or none after a break.
fn replay(
    paths: Vec<PathBuf>,
    from: u64,
    until: u64,
    mut visit: impl FnMut(u64, UnixMillis, Change) -> ControlFlow<()>,
) -> Result<Option<u64>, LogError> {
    let (sender, decoded) = crossbeam_channel::bounded::<Vec<Stamped>>(DECODED_AHEAD);
    thread::scope(|scope| {
        let reading = scope.spawn(move || {
            let mut batch = Vec::with_capacity(DECODED_COUNT);
            let last = decode(paths, from, until, &mut |stamped| {
                batch.push(stamped);
                match batch.len() == DECODED_COUNT {
                    // Sending fails after a break or a panic of `visit`, which end the replay.
                    true => match sender.send(std::mem::replace(&mut batch, Vec::with_capacity(DECODED_COUNT))) {
                        Ok(()) => ControlFlow::Continue(()),
                        Err(_) => ControlFlow::Break(()),
                    },
                    false => ControlFlow::Continue(()),
                }
            });
            let _ = sender.send(batch);
            last
        });
        let broken = decoded.into_iter().flatten().try_for_each(|(position, at, change)| visit(position, at, change));
        let last = reading.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok(last.filter(|_| broken.is_continue()))
    })
}

/// A change with its position and ingestion time.
type Stamped = (u64, UnixMillis, Change);

/// Decodes the changes in order and returns the last position, or none after a break. The tail of the last segment may
/// be torn or still being written.
fn decode(
    mut paths: Vec<PathBuf>,
    from: u64,
    until: u64,
    visit: &mut dyn FnMut(Stamped) -> ControlFlow<()>,
) -> Result<Option<u64>, LogError> {
    let begin = paths.partition_point(|path| position_of(path).is_some_and(|first| first <= from)).saturating_sub(1);
    let (mut index, mut next) = (begin, None);
    while let Some(path) = paths.get(index).cloned() {
        let first = next.unwrap_or(if index == 0 { 1 } else { position_of(&path).unwrap_or(1) });
        let is_last = index + 1 == paths.len();
        let segment = match Segment::read(&path) {
            Err(HeaderError::Damaged(_)) if is_last && fs::metadata(&path)?.len() <= HEADER_BYTES as u64 => {
                return Ok(Some(first - 1));
            }
            read => read.map_err(|error| header_error(&path, first, error))?,
        };
        check_first(&path, first, segment.header)?;
        let mut frames = segment.frames();
        for frame in frames.by_ref() {
            match frame {
                Ok(frame) if (from..=until).contains(&frame.position) => {
                    let at = UnixMillis(i64::from(frame.at_s) * 1000);
                    if visit((frame.position, at, Change::decode(frame.position, frame.payload)?)).is_break() {
                        return Ok(None);
                    }
                }
                Ok(_) => {}
                Err(damage) if segment.header.end.is_none() && is_last && damage.is_torn_write() => {
                    return Ok(Some(damage.position - 1));
                }
                Err(damage) => return Err(damaged(&path, &damage)),
            }
        }
        if let (Some(end), true) = (segment.header.end, is_last) {
            // The writer may have begun a segment after the files were listed.
            let following = following_segment(&path, end);
            if !following.exists() {
                return Err(missing_next(&path, end));
            }
            paths.push(following);
        }
        next = Some(segment.header.end.unwrap_or(frames.next_position()));
        index += 1;
    }
    Ok(Some(next.map_or(0, |next| next - 1)))
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
    let first = position_of(path).unwrap_or(1);
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
    Err(damage(path, first, reason))
}

/// Checks that the newest checkpoint, with its position, does not include later changes than the log.
fn check_end(directory: &Path, checkpoint: Option<(u64, PathBuf)>, last: u64) -> Result<(), LogError> {
    match checkpoint {
        Some((until, path)) if until > last => {
            Err(LogError::EndMissing { log: directory.to_owned(), checkpoint: path, until, last })
        }
        _ => Ok(()),
    }
}

fn missing_next(path: &Path, end: u64) -> LogError {
    damage(path, end, format!("the file that continues the log from position {end} does not exist"))
}

fn no_segments(directory: &LogDirectory) -> LogError {
    damage(directory.path(), 1, "the log had files, and none of them exists")
}

fn damage(path: &Path, position: u64, reason: impl Into<Cow<'static, str>>) -> LogError {
    LogError::Damaged { path: path.to_owned(), offset: 0, position, reason: reason.into() }
}

fn damaged(path: &Path, damage: &segment::Damage) -> LogError {
    let reason = damage.reason.into();
    LogError::Damaged { path: path.to_owned(), offset: damage.offset as u64, position: damage.position, reason }
}

fn header_error(path: &Path, position: u64, error: HeaderError) -> LogError {
    match error {
        HeaderError::Version(version) => LogError::Version { path: path.to_owned(), version },
        HeaderError::Damaged(reason) => damage(path, position, reason),
        HeaderError::Io(source) => LogError::Open { path: path.to_owned(), source: Arc::new(source) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lodestone_catalog::{ItemChange, WriteTime};
    use lodestone_core::ids::ItemId;

    const NOW: UnixMillis = UnixMillis(1_750_000_000_000);

    fn delete(id: &str) -> Change {
        Change::Item(ItemChange::Delete { id: ItemId::parse(id).unwrap(), time: WriteTime::Received(UnixMillis(0)) })
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
        LogDirectory::from(directory).segments().unwrap().pop().unwrap()
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
        log.tail.file.write_at(&frames, log.tail.length).unwrap();
        log.tail.has_failed = true;
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
            log.begin_segment().unwrap();
        }
        drop(log);
        let paths = LogDirectory::from(directory.path()).segments().unwrap();
        assert_eq!(paths.len(), 4);
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
        fs::write(LogDirectory::from(directory.path()).segment(2), b"LDS").unwrap();
        let mut log = EventLog::open(directory.path()).unwrap();
        assert_eq!((log.last_position(), append(&mut log, &[delete("b")])), (1, 2));
        assert_eq!(positions(&log, 1), [1, 2]);
    }

    /// Returns a log of two segments with two changes each, and its files.
    fn two_segments(directory: &Path) -> Vec<PathBuf> {
        let mut log = EventLog::open(directory).unwrap();
        append(&mut log, &[delete("a"), delete("b")]);
        log.begin_segment().unwrap();
        append(&mut log, &[delete("c"), delete("d")]);
        log.directory.segments().unwrap()
    }

    #[test]
    fn a_missing_last_file_is_noticed_without_a_checkpoint_and_its_positions_are_not_used_again() {
        for remains in [None, Some(&b""[..]), Some(&b"LDSTLOG2"[..]), Some(&[0; HEADER_BYTES][..])] {
            let directory = tempfile::tempdir().unwrap();
            let path = two_segments(directory.path()).pop().unwrap();
            match remains {
                None => fs::remove_file(&path).unwrap(),
                Some(bytes) => fs::write(&path, bytes).unwrap(),
            }
            let error = EventLog::open(directory.path()).err().unwrap().to_string();
            assert!(error.contains("position 3"), "{error}");
            assert_eq!(read(directory.path(), 1, |_, _, _| ()).is_err(), remains.is_none());
            let check = check(directory.path()).unwrap();
            assert_eq!((check.damaged.len(), check.damaged[0].positions.clone()), (1, 3..=u64::MAX), "{check:?}");
            repair(directory.path()).unwrap();
            let mut log = EventLog::open(directory.path()).unwrap();
            assert!(append(&mut log, &[delete("e")]) > 1 << 32);
            assert_eq!(positions(&log, 1).len(), 3);
        }
    }

    #[test]
    fn a_log_of_another_version_is_refused_with_both_versions_and_no_repair_touches_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = two_segments(directory.path()).pop().unwrap();
        // Version 1 had a shorter header, so its checksum is at another place.
        let mut earlier = fs::read(&path).unwrap();
        earlier[7] = b'1';
        let sum = crc32c::crc32c(&earlier[..24]);
        earlier[24..28].copy_from_slice(&sum.to_le_bytes());
        for bytes in [&earlier[..], &earlier[..HEADER_BYTES]] {
            fs::write(&path, bytes).unwrap();
            let errors = [
                EventLog::open(directory.path()).err(),
                read(directory.path(), 1, |_, _, _| ()).err(),
                check(directory.path()).err(),
                repair(directory.path()).err(),
            ];
            for error in errors {
                let text = error.unwrap().to_string();
                assert!(text.contains("has version 1") && text.contains("reads version 2"), "{text}");
                assert!(text.contains("events export"), "{text}");
            }
            assert_eq!(fs::read(&path).unwrap(), bytes);
        }
    }

    #[test]
    fn a_damaged_version_is_damage() {
        let directory = tempfile::tempdir().unwrap();
        let path = two_segments(directory.path()).pop().unwrap();
        let mut bytes = fs::read(&path).unwrap();
        bytes[7] ^= 1;
        fs::write(&path, bytes).unwrap();
        assert!(matches!(EventLog::open(directory.path()), Err(LogError::Damaged { .. })));
        assert_eq!(check(directory.path()).unwrap().damaged.len(), 1);
    }

    #[test]
    fn a_log_without_any_of_its_files_is_not_a_new_one() {
        let directory = tempfile::tempdir().unwrap();
        for path in two_segments(directory.path()) {
            fs::remove_file(path).unwrap();
        }
        let error = EventLog::open(directory.path()).err().unwrap().to_string();
        assert!(error.contains("the log had files, and none of them exists"), "{error}");
        assert_eq!(check(directory.path()).unwrap().damaged[0].positions, 1..=u64::MAX);
        repair(directory.path()).unwrap();
        assert!(check(directory.path()).unwrap().damaged.is_empty());
        assert_eq!(EventLog::open(directory.path()).unwrap().last_position(), 1 << 32);
        // The creation of the first file can be interrupted.
        let directory = tempfile::tempdir().unwrap();
        fs::write(LogDirectory::from(directory.path()).segment(1), b"LDS").unwrap();
        assert_eq!(EventLog::open(directory.path()).unwrap().last_position(), 0);
    }

    #[test]
    fn a_checkpoint_ahead_of_the_log_refuses_it_and_is_kept_by_compaction_and_repair() {
        let directory = tempfile::tempdir().unwrap();
        let paths = two_segments(directory.path());
        let writer = checkpoint::CheckpointWriter::create(directory.path(), 4).unwrap();
        writer.finish(4).unwrap();
        // An older copy of the file, as of a backup.
        let last = &paths[1];
        let bytes = fs::read(last).unwrap();
        fs::write(last, &bytes[..HEADER_BYTES + (bytes.len() - HEADER_BYTES) / 2]).unwrap();
        let opened = EventLog::open(directory.path()).err();
        assert!(matches!(opened, Some(LogError::EndMissing { until: 4, last: 3, .. })), "{opened:?}");
        let compacted = compact(directory.path(), &Retention::default(), NOW, CompactMode::Apply).err();
        assert!(matches!(compacted, Some(LogError::EndMissing { .. })), "{compacted:?}");
        assert!(matches!(read(directory.path(), 1, |_, _, _| ()), Err(LogError::EndMissing { .. })));
        let check = check(directory.path()).unwrap();
        assert_eq!((check.damaged.len(), check.damaged[0].positions.clone()), (1, 4..=u64::MAX), "{check:?}");
        let aside = repair(directory.path()).unwrap().set_aside.unwrap();
        assert_eq!(aside.extension().unwrap(), "damaged");
        let log = EventLog::open(directory.path()).unwrap();
        assert!(log.last_position() > 4 && positions(&log, 1) == [1, 2, 3]);
        drop(log);
        // Its state can still be used: the log continues after all positions that it includes.
        fs::rename(&aside, aside.with_extension("")).unwrap();
        assert!(EventLog::open(directory.path()).is_ok());
    }

    #[test]
    fn a_flipped_bit_in_the_last_acknowledged_record_is_damage_and_not_a_torn_write() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = EventLog::open(directory.path()).unwrap();
        append(&mut log, &[delete("a")]);
        append(&mut log, &[delete("b")]);
        drop(log);
        let path = file(directory.path());
        let whole = fs::read(&path).unwrap();
        let begin = HEADER_BYTES + (whole.len() - HEADER_BYTES) / 2;
        for at in begin..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << (at % 8);
            fs::write(&path, &bytes).unwrap();
            let error = EventLog::open(directory.path()).err();
            assert!(matches!(error, Some(LogError::Damaged { position: 2, .. })), "byte {at}: {error:?}");
            assert_eq!(check(directory.path()).unwrap().damaged[0].positions, 2..=2, "byte {at}");
            assert_eq!(fs::read(&path).unwrap(), bytes, "byte {at}: the file was changed");
        }
        repair(directory.path()).unwrap();
        let mut log = EventLog::open(directory.path()).unwrap();
        assert_eq!((append(&mut log, &[delete("c")]), positions(&log, 1)), (3, vec![1, 3]));
    }

    #[test]
    fn files_that_a_crash_left_incomplete_are_removed() {
        let directory = tempfile::tempdir().unwrap();
        drop(EventLog::open(directory.path()).unwrap());
        fs::write(directory.path().join("00000000000000000007.new"), b"part of a checkpoint").unwrap();
        drop(EventLog::open(directory.path()).unwrap());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2);
    }
}
