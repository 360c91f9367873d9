//! A copy of a log that another process may be writing.
use super::{check_first, damaged, header_error, missing_next, no_segments, segment::HEADER_BYTES};
use crate::{
    LogError, checkpoint,
    directory::{LogDirectory, following_segment},
    log::segment::{HeaderError, Segment},
    quarantine,
    storage::{StorageFile, create_private},
};
use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Copies the log in `from` to the new directory `to`, durably, and returns the position of the last change of the copy.
/// The copy has every change that was durable at the call, and possibly later ones, up to its last whole record. The log
/// may be in use; a damaged one is refused.
pub fn copy(from: &Path, to: &Path) -> Result<u64, LogError> {
    let failed = |source: io::Error| LogError::Open { path: from.to_owned(), source: Arc::new(source) };
    let source = LogDirectory::from(from);
    let target = LogDirectory::from(to).locked()?;
    // First, because a checkpoint never includes changes that the log has not.
    copy_checkpoint(from, to).map_err(failed)?;
    let paths = source.segments().map_err(failed)?;
    if paths.is_empty() && source.is_marked() {
        return Err(no_segments(&source));
    }
    let last = copy_segments(paths, &target)?;
    // Last, and only of copied changes: the copy issues the later positions again.
    let mut applied = quarantine::quarantined(from)?;
    applied.retain(|change| change.position <= last);
    if !applied.is_empty() {
        let (path, text) = quarantine::with(to, &applied)?;
        target.replace(&path, text.as_bytes())?;
    }
    target.mark()?;
    target.sync()?;
    Ok(last)
}

/// Copies the newest checkpoint, if there is one. The log's writer removes a checkpoint when a newer one is complete.
fn copy_checkpoint(from: &Path, to: &Path) -> io::Result<()> {
    while let Some((_, path)) = checkpoint::newest_position(from)? {
        let mut file = match fs::File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            file => file?,
        };
        let mut copied = create_private(&to.join(path.file_name().unwrap_or_default()))?;
        io::copy(&mut file, &mut copied)?;
        return copied.sync();
    }
    Ok(())
}

/// Copies segments and those that follow them meanwhile. Returns the last position.
fn copy_segments(mut paths: Vec<PathBuf>, target: &LogDirectory) -> Result<u64, LogError> {
    let (mut index, mut next) = (0, 1);
    while let Some(path) = paths.get(index).cloned() {
        let is_last = index + 1 == paths.len();
        let segment = match Segment::read(&path) {
            // Its creation is in progress, or a crash interrupted it.
            Err(HeaderError::Damaged(_)) if is_last && fs::metadata(&path)?.len() <= HEADER_BYTES as u64 => break,
            read => read.map_err(|error| header_error(&path, next, error))?,
        };
        check_first(&path, next, segment.header)?;
        let mut length = HEADER_BYTES;
        for frame in segment.frames() {
            match frame {
                Ok(frame) => (length, next) = (frame.end, frame.position + 1),
                Err(damage) if segment.header.end.is_none() && is_last && damage.is_torn_write() => break,
                Err(damage) => return Err(damaged(&path, &damage)),
            }
        }
        let mut copied = create_private(&target.segment(segment.header.first))?;
        copied.write_at(segment.first_bytes(length), 0)?;
        copied.sync()?;
        if let Some(end) = segment.header.end {
            next = end;
            // The writer may have begun a segment after the files were listed.
            if is_last {
                let following = following_segment(&path, end);
                if !following.exists() {
                    return Err(missing_next(&path, end));
                }
                paths.push(following);
            }
        }
        index += 1;
    }
    Ok(next - 1)
}
