//! The changes of a log that could not be applied. They stay in the log, and every reader of its changes skips them.
//!
//! The file has one line for each change: position, kind of the change, id of the event or item, and the reason,
//! separated by tabs. Without the file, a replay tries the changes again.
use super::{LogError, Quarantined};
use ahash::AHashSet;
use std::{
    any::Any,
    fs, io,
    path::{Path, PathBuf},
};

const FILE: &str = "quarantine";

/// Returns the quarantined changes of the log in `directory`, in the order of their positions. Fails with
/// [`LogError::Damaged`] if the file is not one that this program wrote.
pub fn quarantined(directory: &Path) -> Result<Vec<Quarantined>, LogError> {
    let path = path(directory);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let line = |(number, line): (usize, &str)| {
        parse(line).ok_or_else(|| LogError::Damaged {
            path: path.clone(),
            offset: 0,
            position: 0,
            reason: format!("line {} is not position, kind, id and reason", number + 1).into(),
        })
    };
    text.lines().enumerate().map(line).collect()
}

/// Returns the text of the file with further changes.
pub(super) fn with(directory: &Path, new: &[Quarantined]) -> Result<(PathBuf, String), LogError> {
    let mut all = quarantined(directory)?;
    all.extend_from_slice(new);
    all.sort_by_key(|change| change.position);
    let line = |change: &Quarantined| {
        let plain = |text: &str| text.replace(char::is_control, " ");
        format!("{}\t{}\t{}\t{}\n", change.position, plain(&change.kind), plain(&change.id), plain(&change.reason))
    };
    Ok((path(directory), all.iter().map(line).collect()))
}

/// Returns the positions of the quarantined changes.
pub(super) fn positions(directory: &Path) -> Result<AHashSet<u64>, LogError> {
    Ok(quarantined(directory)?.into_iter().map(|change| change.position).collect())
}

fn path(directory: &Path) -> PathBuf {
    directory.join(FILE)
}

fn parse(line: &str) -> Option<Quarantined> {
    let mut parts = line.splitn(4, '\t').map(str::to_owned);
    let position = parts.next()?.parse().ok()?;
    Some(Quarantined { position, kind: parts.next()?, id: parts.next()?, reason: parts.next()? })
}

/// Returns the message of a panic.
pub fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("a panic: {}", text.unwrap_or("without a message"))
}
