//! Verification of a log, and a repair that keeps all complete records.
use super::{
    TornTail, check_first, create_segment, header_error,
    segment::{self, Frame, HEADER_BYTES, Header, HeaderError, Segment},
};
use crate::{
    Change, LogError, checkpoint,
    directory::{LogDirectory, position_of},
};
use ahash::AHashSet;
use std::{
    borrow::Cow,
    collections::BTreeMap,
    fs,
    ops::RangeInclusive,
    path::{Path, PathBuf},
};

/// The number of positions that a repair leaves empty if the end of the log is missing and nothing states how many
/// positions it had: more than the files of any log that was lost.
const POSITIONS_SKIPPED: u64 = 1 << 32;

/// The result of verifying a log.
#[derive(Debug, Default)]
pub struct Check {
    pub files: usize,
    pub bytes: u64,
    /// The number of complete records.
    pub records: u64,
    /// Complete records by [`Change::kind_name`].
    pub by_kind: BTreeMap<&'static str, u64>,
    pub last_position: u64,
    /// The number of positions whose records `compact` or an earlier repair removed.
    pub absent: u64,
    /// Part of an interrupted write, or of one in progress. The next open truncates it.
    pub torn: Option<TornTail>,
    /// The parts that a repair would drop.
    pub damaged: Vec<DamagedPart>,
}

/// A part of the log that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DamagedPart {
    pub path: PathBuf,
    /// The offset and number of the damaged bytes; 0 bytes if a complete file or record is missing.
    pub offset: u64,
    pub bytes: u64,
    /// The positions whose records are lost; empty if only a header is damaged. Up to `u64::MAX` if the end of the log
    /// is missing, because the number of its records is unknown.
    pub positions: RangeInclusive<u64>,
    pub reason: Cow<'static, str>,
}

/// The result of a repair.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Repair {
    /// Files that were rewritten without their damaged parts. The old content of each is in a file with the extension
    /// `.damaged`.
    pub rewritten: Vec<PathBuf>,
    /// Empty files that replace missing ones.
    pub made: Vec<PathBuf>,
    /// The checkpoint that may include lost records, under its new name with the extension `.damaged`.
    pub set_aside: Option<PathBuf>,
}

/// One verified file.
struct Examined {
    path: PathBuf,
    segment: Segment,
    /// The offsets of the frames to keep.
    kept: AHashSet<usize>,
    /// The position after the last one of this file.
    end: u64,
    torn: Option<TornTail>,
    parts: Vec<DamagedPart>,
    by_kind: BTreeMap<&'static str, u64>,
}

/// Verifies the whole log, which may be in use. Returns damage as part of the result, not as an error.
pub fn check(directory: &Path) -> Result<Check, LogError> {
    let directory = LogDirectory::from(directory);
    // Read before the log, because a checkpoint never includes changes that the log has not.
    let checkpoint = checkpoint::newest_until(directory.path())?;
    let (mut check, mut end) = (Check::default(), None);
    for (path, following) in files(&directory)? {
        let Some(file) = examine(&path, following)? else { continue };
        check.damaged.extend(gap_before(&file, expected(end)));
        check.files += 1;
        check.bytes += file.segment.len() as u64;
        check.records += file.kept.len() as u64;
        for (kind, count) in file.by_kind {
            *check.by_kind.entry(kind).or_default() += count;
        }
        let lost: u64 = file.parts.iter().map(|part| count(&part.positions)).sum();
        let all = file.end - file.segment.header.first;
        check.absent += all.saturating_sub(lost + file.kept.len() as u64);
        check.last_position = file.end - 1;
        check.torn = file.torn;
        check.damaged.extend(file.parts);
        end = Some(LogEnd { position: file.end, has_next: file.segment.header.end.is_some() });
    }
    check.damaged.extend(missing_end(&directory, end, checkpoint.as_ref()));
    Ok(check)
}

/// Rewrites each damaged file without its damaged parts, and continues the log after a missing end. Lost positions stay
/// empty and are not reused. Checkpoints are set aside because they may include lost records. A log that does not exist
/// is one whose files are all missing. Call [`check`] first to see the records that a repair drops.
pub fn repair(directory: impl Into<LogDirectory>) -> Result<Repair, LogError> {
    let directory = directory.into().locked()?;
    let checkpoint = checkpoint::newest_until(directory.path())?;
    let mut repair = Repair::default();
    let (mut end, mut last_torn, mut rewritten) = (None, None, Vec::new());
    for (path, following) in files(&directory)? {
        let Some(file) = examine(&path, following)? else { continue };
        if let Some(gap) = gap_before(&file, expected(end)).filter(|gap| !gap.positions.is_empty()) {
            repair.made.push(put_gap(&directory, *gap.positions.start(), *gap.positions.end() + 1)?);
        }
        end = Some(LogEnd { position: file.end, has_next: file.segment.header.end.is_some() });
        last_torn = file.torn.is_some().then(|| path.clone());
        if !file.parts.is_empty() {
            rewritten.push(path);
        }
    }
    let next = expected(end);
    // A checkpoint can be the only evidence of a missing end, so it is set aside after the end is repaired.
    if end.is_none() || missing_end(&directory, end, checkpoint.as_ref()).is_some() {
        let until = checkpoint.map_or(next, |(until, _)| next.max(until + 1)) + POSITIONS_SKIPPED;
        put_open_segment(&directory, until)?;
        repair.made.push(put_gap(&directory, next, until)?);
        // A torn write is truncated at the end of the log only.
        rewritten.extend(last_torn.filter(|path| !rewritten.contains(path)));
    } else if !rewritten.is_empty() {
        // A rewritten file takes no more writes.
        if end.is_some_and(|end| !end.has_next) {
            put_open_segment(&directory, next)?;
        }
        rewritten.extend(last_torn.filter(|path| !rewritten.contains(path)));
    }
    repair.set_aside = checkpoint::set_aside(&directory)?;
    for path in rewritten {
        rewrite(&directory, &path)?;
        repair.rewritten.push(path);
    }
    directory.mark()?;
    Ok(repair)
}

/// The end of the log according to its last file.
#[derive(Clone, Copy)]
struct LogEnd {
    /// The position after the last one.
    position: u64,
    /// The file states that a next one exists.
    has_next: bool,
}

/// Returns the first position of the next file.
fn expected(end: Option<LogEnd>) -> u64 {
    end.map_or(1, |end| end.position)
}

/// Writes a segment without records for the positions from `first` to `end`, exclusive.
fn put_gap(directory: &LogDirectory, first: u64, end: u64) -> Result<PathBuf, LogError> {
    let path = directory.segment(first);
    directory.replace(&path, &Header { first, end: Some(end), is_sparse: true }.bytes())?;
    Ok(path)
}

/// Creates the segment for the next writes.
pub(super) fn put_open_segment(directory: &LogDirectory, first: u64) -> Result<(), LogError> {
    Ok(create_segment(directory, &directory.segment(first), Header { first, end: None, is_sparse: false })?)
}

/// Rewrites a file without its damaged parts, and keeps the old content under another name.
fn rewrite(directory: &LogDirectory, path: &Path) -> Result<(), LogError> {
    let following = files(directory)?.into_iter().find(|(file, _)| file == path).and_then(|(_, following)| following);
    let Some(file) = examine(path, following)? else { return Ok(()) };
    directory.replace(&path.with_extension("damaged"), &fs::read(path)?)?;
    directory.replace(path, &file.without_damage(following))?;
    Ok(())
}

impl Examined {
    /// Returns the content without damage. Without a `following` segment the file stays open for writes.
    fn without_damage(&self, following: Option<u64>) -> Vec<u8> {
        let header = Header { first: self.segment.header.first, end: following, is_sparse: following.is_some() };
        let mut bytes = header.bytes().to_vec();
        for frame in self.segment.frames().flatten() {
            if self.kept.contains(&frame.offset) {
                segment::put_frame(&mut bytes, frame.position, frame.at_s, true, frame.payload);
            }
        }
        bytes
    }
}

fn count(positions: &RangeInclusive<u64>) -> u64 {
    if positions.is_empty() { 0 } else { positions.end() - positions.start() + 1 }
}

/// Returns the segments, each with the first position of the following one.
fn files(directory: &LogDirectory) -> Result<Vec<(PathBuf, Option<u64>)>, LogError> {
    let failed = |source| LogError::Open { path: directory.path().to_owned(), source: std::sync::Arc::new(source) };
    let paths = directory.segments().map_err(failed)?;
    let following = paths.iter().skip(1).map(|path| position_of(path)).chain([None]);
    Ok(paths.iter().cloned().zip(following).collect())
}

/// Returns the damage of files that are missing before a file.
fn gap_before(file: &Examined, expected: u64) -> Option<DamagedPart> {
    let first = file.segment.header.first;
    let reason = match check_first(&file.path, expected, file.segment.header).err()? {
        LogError::Damaged { reason, .. } => reason,
        error => error.to_string().into(),
    };
    Some(DamagedPart {
        path: file.path.clone(),
        offset: 0,
        bytes: 0,
        positions: expected..=first.saturating_sub(1),
        reason,
    })
}

/// Returns the damage of a missing end: a checkpoint includes later changes, or the last file states that a next one
/// exists, or no file of a log exists.
fn missing_end(
    directory: &LogDirectory,
    end: Option<LogEnd>,
    checkpoint: Option<&(u64, PathBuf)>,
) -> Option<DamagedPart> {
    let next = expected(end);
    let path = directory.segment(next);
    let (path, reason) = match (checkpoint, end) {
        (Some((until, checkpoint)), _) if *until >= next => {
            let lacking = until - next + 1;
            let reason =
                format!("it includes changes up to position {until}; the log lacks at least {lacking} of them");
            (checkpoint.clone(), reason.into())
        }
        // The writer may have begun the next file after the files were listed.
        (_, Some(end)) if end.has_next && Header::read(&path).is_err() => {
            (path, "the file, which continues the log, does not exist or has no header".into())
        }
        (_, None) if directory.is_marked() => {
            (path, "the log had files, and this one does not exist or has no header".into())
        }
        _ => return None,
    };
    Some(DamagedPart { path, offset: 0, bytes: 0, positions: next..=u64::MAX, reason })
}

/// Verifies one file. `following` is the first position of the next file. Returns `None` for a file whose creation a
/// crash interrupted, and for one that lost its header and is repaired as if it did not exist.
fn examine(path: &Path, following: Option<u64>) -> Result<Option<Examined>, LogError> {
    let first = position_of(path).unwrap_or(1);
    let (segment, header_problem) = match Segment::read(path) {
        Ok(segment) => (segment, None),
        Err(HeaderError::Damaged(_)) if following.is_none() && fs::metadata(path)?.len() <= HEADER_BYTES as u64 => {
            return Ok(None);
        }
        Err(HeaderError::Damaged(reason)) => (Segment::salvage(path, first)?, Some(reason)),
        Err(error) => return Err(header_error(path, first, error)),
    };
    let part = |offset: usize, end: usize, positions, reason: Cow<'static, str>| DamagedPart {
        path: path.to_owned(),
        offset: offset as u64,
        bytes: (end - offset) as u64,
        positions,
        reason,
    };
    let (mut kept, mut parts, mut by_kind, mut torn) = (AHashSet::new(), Vec::new(), BTreeMap::new(), None);
    if let Some(reason) = header_problem {
        #[expect(clippy::reversed_empty_ranges, reason = "the empty range means that no position is lost")]
        parts.push(part(0, HEADER_BYTES.min(segment.len()), 1..=0, reason.into()));
    }
    let mut frames = segment.frames();
    for frame in frames.by_ref() {
        match frame {
            Ok(frame) => match Change::decode(frame.position, frame.payload) {
                Ok(change) => {
                    *by_kind.entry(change.kind_name()).or_default() += 1;
                    kept.insert(frame.offset);
                }
                Err(error) => parts.push(unreadable(&part, &frame, error)),
            },
            Err(damage) if following.is_none() && segment.header.end.is_none() && damage.is_torn_write() => {
                let bytes = segment.bytes_from(damage.offset) as u64;
                torn = Some(TornTail { path: path.to_owned(), offset: damage.offset as u64, bytes });
                let end = damage.position;
                return Ok(Some(Examined { path: path.to_owned(), end, torn, parts, by_kind, kept, segment }));
            }
            Err(damage) => {
                let next = damage.next_position.or(following).unwrap_or(damage.position + damage.positions_max());
                let positions = damage.position..=next.saturating_sub(1);
                parts.push(part(damage.offset, damage.end, positions, damage.reason.into()));
            }
        }
    }
    let end = segment.header.end.or(following.filter(|_| !parts.is_empty())).unwrap_or(frames.next_position());
    Ok(Some(Examined { path: path.to_owned(), end, torn, parts, by_kind, kept, segment }))
}

fn unreadable(
    part: &impl Fn(usize, usize, RangeInclusive<u64>, Cow<'static, str>) -> DamagedPart,
    frame: &Frame,
    error: LogError,
) -> DamagedPart {
    let reason = match error {
        LogError::Corrupt { reason, .. } => reason,
        error => error.to_string().into(),
    };
    part(frame.offset, frame.end, frame.position..=frame.position, reason)
}
