//! What of a log is whole, and a repair that keeps it.
use super::{
    LogError, TornTail, check_first, header_error, lock, replace,
    segment::{self, Frame, HEADER_BYTES, Header, Segment},
    segment_name, segments,
};
use crate::{Change, checkpoint};
use ahash::AHashSet;
use std::{
    borrow::Cow,
    collections::BTreeMap,
    fs,
    ops::RangeInclusive,
    path::{Path, PathBuf},
};

/// What a look at every byte found.
#[derive(Debug, Default)]
pub struct Check {
    pub files: usize,
    pub bytes: u64,
    /// Whole records.
    pub records: u64,
    /// Whole records by what they say: the names of event types, `upsert_item`, `delete_item` and so on.
    pub by_kind: BTreeMap<&'static str, u64>,
    pub last_position: u64,
    /// Positions without a record that `compact` or an earlier repair took.
    pub absent: u64,
    /// The rest of an interrupted write, or one that is under way. The next opening cuts it.
    pub torn: Option<TornTail>,
    /// What a repair would drop.
    pub damaged: Vec<DamagedPart>,
}

/// A part of the log that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DamagedPart {
    pub path: PathBuf,
    /// The damaged bytes. Empty where a whole file or record is gone.
    pub offset: u64,
    pub bytes: u64,
    /// The positions whose records are lost; empty where only a header is damaged.
    pub positions: RangeInclusive<u64>,
    pub reason: Cow<'static, str>,
}

/// What a repair did.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Repair {
    /// Files that were written again without their damaged parts; the old one stays beside each as `.damaged`.
    pub rewritten: Vec<PathBuf>,
    /// Empty files in the places of those that are gone.
    pub made: Vec<PathBuf>,
}

/// One file with what of it is whole.
struct Examined {
    path: PathBuf,
    segment: Segment,
    /// Where the frames begin that stay.
    kept: AHashSet<usize>,
    /// The position after this file.
    end: u64,
    torn: Option<TornTail>,
    parts: Vec<DamagedPart>,
    by_kind: BTreeMap<&'static str, u64>,
}

/// Looks at every byte of the log; it may be in use. Damage is no error here.
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

/// Writes each damaged file again without its damaged parts. Positions that are lost stay empty; none is used again.
/// Checkpoints go, since they may hold what was lost. Call [`check`] first to see what it will drop.
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

/// Gives each file in order, and before it the gap, if files are missing there.
fn examine_all(
    directory: &Path,
    mut give: impl FnMut(Option<&DamagedPart>, Option<Examined>) -> Result<(), LogError>,
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
        give(gap.as_ref(), Some(examined))?;
    }
    Ok(())
}

/// None for a file that a crash left while it was made. `following` is the first position of the next file.
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
        #[allow(clippy::reversed_empty_ranges)] // no position is lost
        parts.push(part(0, HEADER_BYTES.min(segment.len()), 1..=0, reason.into()));
    }
    let mut frames = segment.frames();
    while let Some(found) = frames.next() {
        match found {
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
