//! Verification of a log, and a repair that keeps all complete records.
use super::{
    TornTail, check_first, header_error, lock, replace,
    segment::{self, Frame, HEADER_BYTES, Header, Segment},
    segment_name, segments,
};
use crate::{Change, LogError, checkpoint};
use ahash::AHashSet;
use std::{
    borrow::Cow,
    collections::BTreeMap,
    fs,
    ops::RangeInclusive,
    path::{Path, PathBuf},
};

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
    /// The positions whose records are lost; empty if only a header is damaged.
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
    let mut check = Check::default();
    examine_all(directory, |gap, file| {
        check.damaged.extend(gap.cloned());
        let Some(file) = file else { return Ok(()) };
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
        Ok(())
    })?;
    Ok(check)
}

/// Rewrites each damaged file without its damaged parts. Lost positions stay empty and are not reused. Checkpoints are
/// removed because they may include lost records. Call [`check`] first to see the records that a repair drops.
pub fn repair(directory: &Path) -> Result<Repair, LogError> {
    let _lock = lock(directory)?;
    checkpoint::remove(directory)?;
    let mut repair = Repair::default();
    examine_all(directory, |gap, file| {
        if let Some(gap) = gap.filter(|gap| !gap.positions.is_empty()) {
            let (first, last) = (*gap.positions.start(), *gap.positions.end());
            let path = directory.join(segment_name(first));
            replace(&path, &Header { first, end: Some(last + 1) }.bytes())?;
            repair.made.push(path);
        }
        if let Some(file) = file.filter(|file| !file.parts.is_empty()) {
            fs::copy(&file.path, file.path.with_extension("damaged"))?;
            replace(&file.path, &file.without_damage())?;
            repair.rewritten.push(file.path);
        }
        Ok(())
    })?;
    Ok(repair)
}

impl Examined {
    fn without_damage(&self) -> Vec<u8> {
        let header = Header { first: self.segment.header.first, end: Some(self.end) };
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

/// Calls `visit` with each file in order, together with the gap before it if files are missing there.
fn examine_all(
    directory: &Path,
    mut visit: impl FnMut(Option<&DamagedPart>, Option<Examined>) -> Result<(), LogError>,
) -> Result<(), LogError> {
    let failed = |source| LogError::Open { path: directory.to_owned(), source: std::sync::Arc::new(source) };
    let paths = segments(directory).map_err(failed)?;
    let mut expected = 1;
    for (index, path) in paths.iter().enumerate() {
        let following = paths.get(index + 1).and_then(|path| super::first_position(path));
        let Some(examined) = examine(path, following)? else { continue };
        let first = examined.segment.header.first;
        let gap = check_first(path, expected, examined.segment.header).err().map(|error| DamagedPart {
            path: path.clone(),
            offset: 0,
            bytes: 0,
            positions: expected..=first.saturating_sub(1),
            reason: match error {
                LogError::Damaged { reason, .. } => reason,
                error => error.to_string().into(),
            },
        });
        expected = examined.end;
        visit(gap.as_ref(), Some(examined))?;
    }
    Ok(())
}

/// Verifies one file. `following` is the first position of the next file. Returns `None` for a file whose creation a
/// crash interrupted.
fn examine(path: &Path, following: Option<u64>) -> Result<Option<Examined>, LogError> {
    let first = super::first_position(path).unwrap_or(1);
    let (segment, header_problem) = match Segment::read(path) {
        Ok(segment) => (segment, None),
        Err(Ok(_)) if following.is_none() && fs::metadata(path)?.len() <= HEADER_BYTES as u64 => return Ok(None),
        Err(Ok(reason)) => (Segment::salvage(path, first)?, Some(reason)),
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
    while let Some(frame) = frames.next() {
        match frame {
            Ok(frame) => match Change::decode(frame.position, frame.payload) {
                Ok(change) => {
                    *by_kind.entry(change.kind_name()).or_default() += 1;
                    kept.insert(frame.offset);
                }
                Err(error) => parts.push(unreadable(&part, &frame, error)),
            },
            Err(damage) if following.is_none() && header_problem.is_none() && damage.is_torn_tail() => {
                let bytes = segment.bytes_from(damage.offset) as u64;
                torn = Some(TornTail { path: path.to_owned(), offset: damage.offset as u64, bytes });
                let end = damage.position;
                return Ok(Some(Examined { path: path.to_owned(), end, torn, parts, by_kind, kept, segment }));
            }
            Err(damage) => {
                let next =
                    if damage.is_followed { frames.next_position() } else { following.unwrap_or(damage.position) };
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
