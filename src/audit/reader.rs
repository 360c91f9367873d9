//! Reads and verifies the audit log.
use super::entry::{Entry, FIRST_HASH, files, first_sequence};
use lodestone_core::units::UnixMillis;
use serde::Serialize;
use std::{
    collections::VecDeque,
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::{Path, PathBuf},
};

/// Greatest length of a line in bytes.
const LINE_BYTES_MAX: u64 = 64 << 10;

/// The reason why an audit log cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("audit log {path}: {problem}")]
pub struct AuditError {
    path: PathBuf,
    problem: String,
}

impl AuditError {
    pub(super) fn new(path: &Path, problem: String) -> Self {
        Self { path: path.to_owned(), problem }
    }
}

/// The first line that does not fit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Violation {
    pub file: PathBuf,
    /// 1 is the first one of the file.
    pub line: u64,
    pub problem: String,
}

/// The outcome of a verification.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verification {
    pub file_count: usize,
    pub line_count: u64,
    /// The sequence of the first line; 0 without lines.
    pub first: u64,
    /// The sequence of the last line that fits.
    pub last: u64,
    /// The hash of the last line that fits.
    pub last_hash: String,
    /// Whether the first line is the first of the log, and not one after files that were removed.
    pub begins_the_log: bool,
    /// Whether the last file ends with a part of a line: a server writes, or a crash cut it.
    pub has_incomplete_line: bool,
    /// None: all lines fit.
    pub violation: Option<Violation>,
    /// The sequence of the line with the expected hash. None: there is none, or none was given.
    pub expected_at: Option<u64>,
}

/// A line of a file.
struct Line {
    text: String,
    is_complete: bool,
}

/// Calls `visit` with each line of a file and its number, until it returns false.
fn visit_lines(path: &Path, mut visit: impl FnMut(u64, Line) -> bool) -> Result<(), AuditError> {
    let failed = |error: io::Error| AuditError::new(path, format!("cannot be read: {error}"));
    let mut reader = BufReader::new(File::open(path).map_err(failed)?);
    for number in 1.. {
        let mut bytes = Vec::new();
        let read = reader.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut bytes).map_err(failed)?;
        if read == 0 {
            return Ok(());
        }
        let is_complete = bytes.pop_if(|last| *last == b'\n').is_some();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        // A line that is too long is none of the log.
        if !visit(number, Line { text, is_complete: is_complete || read as u64 == LINE_BYTES_MAX }) {
            return Ok(());
        }
    }
    Ok(())
}

fn files_of(directory: &Path) -> Result<Vec<PathBuf>, AuditError> {
    let failed =
        |error| AuditError::new(directory, format!("cannot be read: {error}; name the data directory of a server"));
    files(directory).map_err(failed)
}

/// Checks that each line fits its hash and the line before, and that each file begins with the line of its name: the limit
/// removes only whole files. `expected` is the hash of a line that was kept elsewhere.
pub fn verify(directory: &Path, expected: Option<&str>) -> Result<Verification, AuditError> {
    let files = files_of(directory)?;
    let mut found = Verification {
        file_count: files.len(),
        line_count: 0,
        first: 0,
        last: 0,
        last_hash: FIRST_HASH.to_owned(),
        begins_the_log: true,
        has_incomplete_line: false,
        violation: None,
        expected_at: expected.filter(|hash| *hash == FIRST_HASH).map(|_| 0),
    };
    for (index, file) in files.iter().enumerate() {
        let is_last = index + 1 == files.len();
        let wrong = |line: u64, problem: String| Some(Violation { file: file.clone(), line, problem });
        let Some(named) = first_sequence(file) else {
            found.violation = wrong(1, "is in a file whose name does not state a first line".to_owned());
            break;
        };
        let (mut has_line, before) = (false, found.last);
        visit_lines(file, |number, line| {
            if !line.is_complete && is_last {
                found.has_incomplete_line = true;
                return false;
            }
            let begins = (!has_line).then_some(named);
            has_line = true;
            match fitting(&line, &found, begins) {
                Ok((entry, hash)) => {
                    if found.line_count == 0 {
                        found.first = entry.sequence;
                        found.begins_the_log = entry.previous == FIRST_HASH;
                    }
                    found.line_count += 1;
                    if expected == Some(hash.as_str()) {
                        found.expected_at = Some(entry.sequence);
                    }
                    (found.last, found.last_hash) = (entry.sequence, hash);
                    true
                }
                Err(problem) => {
                    found.violation = wrong(number, problem);
                    false
                }
            }
        })?;
        // A crash may come before the first line of the last file, whose name then follows the last line.
        if !(has_line || is_last && before.checked_add(1) == Some(named)) {
            found.violation = wrong(1, format!("is missing or incomplete; by the name of the file it is {named}"));
        }
        if found.violation.is_some() {
            break;
        }
    }
    Ok(found)
}

/// Returns the entry of a line that fits those before, and its hash. `begins` is the sequence of the first line of a file by
/// the file's name.
fn fitting(line: &Line, before: &Verification, begins: Option<u64>) -> Result<(Entry, String), String> {
    if !line.is_complete {
        return Err("is incomplete, and another file follows".to_owned());
    }
    let (entry, hash) = Entry::parse(&line.text)?;
    let is_first = before.line_count == 0;
    if !is_first && entry.previous != before.last_hash {
        return Err(format!("does not follow the line before, whose hash is {}", before.last_hash));
    }
    // The chain begins with the zeros once.
    let is_begin = entry.previous == FIRST_HASH;
    let expected = if is_first { entry.sequence } else { before.last.saturating_add(1) };
    if entry.sequence != expected || is_begin != (entry.sequence == 1) {
        return Err(format!("has the sequence {} after {}", entry.sequence, before.last));
    }
    if let Some(named) = begins.filter(|named| *named != entry.sequence) {
        return Err(format!("has the sequence {}; by the name of the file it is {named}", entry.sequence));
    }
    Ok((entry, hash))
}

/// Returns the last `count_max` lines after a time, the earliest first. Fails at a line that is none of an audit log.
pub fn read(directory: &Path, since: Option<UnixMillis>, count_max: usize) -> Result<Vec<Entry>, AuditError> {
    let mut entries = VecDeque::new();
    for file in files_of(directory)? {
        let mut problem = None;
        visit_lines(&file, |number, line| {
            if !line.is_complete {
                return false;
            }
            match Entry::parse(&line.text) {
                Ok((entry, _)) => {
                    let at = UnixMillis::parse(&entry.time);
                    if since.is_none_or(|since| at.is_none_or(|at| at >= since)) {
                        entries.push_back(entry);
                    }
                    if entries.len() > count_max {
                        entries.pop_front();
                    }
                    true
                }
                Err(text) => {
                    problem = Some(format!("line {number} {text}; see `lodestone audit verify`"));
                    false
                }
            }
        })?;
        if let Some(problem) = problem {
            return Err(AuditError::new(&file, problem));
        }
    }
    Ok(entries.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::{AuditLog, AuditSettings, Call, EntryKind};
    use std::fs;

    /// Writes a log of 9 lines in files of 3 lines, and returns its lines.
    async fn log(directory: &Path) -> Vec<String> {
        let log = AuditLog::open(directory, AuditSettings { file_bytes_max: 1300, files_max: 10 }).unwrap();
        for index in 0..9 {
            let call = Call { resource: format!("r{index}"), client_kind: "none", method: "A/B", ..Call::default() };
            log.write(call, EntryKind::Begin, "", 0).await.unwrap();
        }
        drop(log);
        let files = files(directory).unwrap();
        assert_eq!(files.len(), 3);
        let texts = files.iter().map(|file| fs::read_to_string(file).unwrap());
        texts.flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>()).collect()
    }

    /// Replaces the lines of the log by others, 3 in each file.
    fn replace(directory: &Path, lines: &[String]) {
        let files = files(directory).unwrap();
        for (index, file) in files.iter().enumerate() {
            let of_file = lines.iter().skip(3 * index).take(if index == 2 { usize::MAX } else { 3 });
            fs::write(file, of_file.map(|line| format!("{line}\n")).collect::<String>()).unwrap();
        }
    }

    #[tokio::test]
    async fn the_first_line_that_does_not_fit_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let lines = log(path).await;
        let whole = verify(path, None).unwrap();
        assert!(whole.violation.is_none() && whole.begins_the_log && !whole.has_incomplete_line, "{whole:?}");
        assert_eq!((whole.line_count, whole.first, whole.last), (9, 1, 9));
        let mut swapped = lines.clone();
        swapped.swap(4, 5);
        let mut inserted = lines.clone();
        inserted.insert(7, lines[2].clone());
        let mut removed = lines.clone();
        removed.remove(1);
        let mut changed = lines.clone();
        changed[5] = lines[5].replace("r5", "r6");
        // Whoever changes a line can compute its hash again, and not that of the next line without changing it too.
        let mut hashed = lines.clone();
        let (entry, _) = Entry::parse(&lines[3]).unwrap();
        hashed[3] = Entry { client: "nobody".to_owned(), ..entry }.line().unwrap().0;
        for (changed, file, line, part) in [
            (swapped, 1, 2, "does not follow the line before"),
            (inserted, 2, 2, "does not follow the line before"),
            (removed, 0, 2, "does not follow the line before"),
            (changed, 1, 3, "has a hash that does not fit"),
            (hashed, 1, 2, "does not follow the line before"),
        ] {
            replace(path, &changed);
            let violation = verify(path, None).unwrap().violation.unwrap();
            assert_eq!((&violation.file, violation.line), (&files(path).unwrap()[file], line), "{violation:?}");
            assert!(violation.problem.contains(part), "{violation:?}");
        }
        replace(path, &lines);
        let cut = fs::read(&files(path).unwrap()[0]).unwrap();
        fs::write(&files(path).unwrap()[0], &cut[..cut.len() - 1]).unwrap();
        assert!(verify(path, None).unwrap().violation.unwrap().problem.contains("is incomplete"));
    }

    #[tokio::test]
    async fn lines_that_were_cut_at_the_beginning_of_a_file_are_found_by_its_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let lines = log(path).await;
        let files = files(path).unwrap();
        let kept = verify(path, None).unwrap().last_hash;
        let write = |file: &Path, lines: &[String]| {
            fs::write(file, lines.iter().map(|line| format!("{line}\n")).collect::<String>()).unwrap();
        };
        let violation = |file: &Path| {
            let found = verify(path, Some(&kept)).unwrap().violation.unwrap();
            assert_eq!((found.file.as_path(), found.line), (file, 1), "{found:?}");
            found.problem
        };
        // The first lines of the log.
        write(&files[0], &lines[2..3]);
        assert!(violation(&files[0]).contains("has the sequence 3; by the name of the file it is 1"));
        // All lines of the first file, which stays.
        write(&files[0], &[]);
        assert!(violation(&files[0]).contains("is missing or incomplete; by the name of the file it is 1"));
        // The first lines of the first file that is left.
        fs::remove_file(&files[0]).unwrap();
        write(&files[1], &lines[4..6]);
        assert!(violation(&files[1]).contains("has the sequence 5; by the name of the file it is 4"));
        // Under the name of a log without the former lines, it is like one whose oldest files were removed.
        let renamed = path.join(crate::audit::entry::file_name(5));
        fs::rename(&files[1], &renamed).unwrap();
        let rest = verify(path, Some(&kept)).unwrap();
        assert!(rest.violation.is_none() && !rest.begins_the_log && rest.first == 5, "{rest:?}");
        assert_eq!(rest.expected_at, Some(9));
        // The last file without a line may be new, but not if lines before it are missing.
        write(&files[2], &[]);
        let rest = verify(path, None).unwrap();
        assert!(rest.violation.is_none() && rest.last == 6, "{rest:?}");
        let other = path.join("audit-0.jsonl");
        fs::rename(&renamed, &other).unwrap();
        assert!(verify(path, None).unwrap().violation.unwrap().problem.contains("does not state a first line"));
        fs::remove_file(&other).unwrap();
        assert!(violation(&files[2]).contains("by the name of the file it is 7"));
    }

    #[tokio::test]
    async fn a_hash_that_is_kept_elsewhere_shows_a_cut_or_rewritten_log() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let lines = log(path).await;
        let kept = verify(path, None).unwrap().last_hash;
        assert_eq!(verify(path, Some(&kept)).unwrap().expected_at, Some(9));
        let earlier = Entry::parse(&lines[4]).unwrap().1;
        assert_eq!(verify(path, Some(&earlier)).unwrap().expected_at, Some(5));
        // The last two lines are cut: the rest fits.
        replace(path, &lines[..7]);
        let cut = verify(path, Some(&kept)).unwrap();
        assert!(cut.violation.is_none() && cut.expected_at.is_none() && cut.last == 7, "{cut:?}");
        // Without the first file the chain begins later.
        fs::remove_file(&files(path).unwrap()[0]).unwrap();
        let rest = verify(path, None).unwrap();
        assert!(rest.violation.is_none() && !rest.begins_the_log && rest.first == 4, "{rest:?}");
    }

    #[tokio::test]
    async fn lines_are_read_since_a_time_and_up_to_a_number() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        log(path).await;
        let resources = |since, count_max| -> Vec<String> {
            read(path, since, count_max).unwrap().into_iter().map(|entry| entry.resource).collect()
        };
        assert_eq!(resources(None, 2), ["r7", "r8"]);
        assert_eq!(resources(Some(UnixMillis(0)), usize::MAX).len(), 9);
        assert!(resources(Some(UnixMillis(UnixMillis::now().0 + 60_000)), usize::MAX).is_empty());
        assert!(read(&path.join("missing"), None, 1).unwrap_err().to_string().contains("name the data directory"));
    }
}
