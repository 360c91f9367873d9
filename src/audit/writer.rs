//! Writes the audit log.
use super::{
    entry::{Entry, EntryKind, FIRST_HASH, file_name, files},
    reader::AuditError,
};
use lodestone_core::units::UnixMillis;
use lodestone_events::storage::{self, FileId, FileSystem, Storage};
use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};
use tokio::sync::{mpsc, oneshot};

/// Calls that wait for the log. Further ones wait for a place.
const QUEUE_MAX: usize = 256;
/// Greatest length of a text of a line in characters.
const TEXT_CHARS_MAX: usize = 256;
/// Bytes at the end of a file that have its last line.
const TAIL_BYTES: u64 = 64 << 10;

/// Size of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AuditSettings {
    /// A file that would be larger is followed by another one.
    pub file_bytes_max: u64,
    /// The oldest file is removed if there are more.
    pub files_max: usize,
}

impl Default for AuditSettings {
    fn default() -> Self {
        Self { file_bytes_max: 64 << 20, files_max: 32 }
    }
}

/// A call for the audit log.
#[derive(Debug, Clone, Default)]
pub struct Call {
    pub client: String,
    pub client_kind: &'static str,
    pub method: &'static str,
    pub catalog: String,
    pub resource: String,
    pub request_id: String,
    /// The call asks to change nothing.
    pub dry_run: bool,
}

/// A line that is to be written.
struct Job {
    call: Call,
    kind: EntryKind,
    status: &'static str,
    begin: u64,
    /// Receives the sequence of the line.
    written: oneshot::Sender<io::Result<u64>>,
}

/// The audit log of a server. A thread writes it; lines that wait at the same time share a sync.
pub struct AuditLog {
    jobs: mpsc::Sender<Job>,
}

impl std::fmt::Debug for AuditLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AuditLog").finish_non_exhaustive()
    }
}

impl AuditLog {
    /// Opens the log in a directory, which is created if it does not exist. A line that a crash cut is removed: its call was
    /// not answered.
    pub fn open(directory: &Path, settings: AuditSettings) -> Result<Self, AuditError> {
        let mut chain = Chain::open(directory, settings)?;
        let (jobs, mut waiting) = mpsc::channel::<Job>(QUEUE_MAX);
        let run = move || {
            while let Some(first) = waiting.blocking_recv() {
                let mut batch = vec![first];
                while let Ok(next) = waiting.try_recv() {
                    batch.push(next);
                }
                write_batch(&mut chain, batch);
            }
        };
        std::thread::Builder::new()
            .name("audit".to_owned())
            .spawn(run)
            .map_err(|error| AuditError::new(directory, format!("its thread cannot be started: {error}")))?;
        Ok(Self { jobs })
    }

    /// Writes a line and returns its sequence, when it is durable; one with the kind `call` when it is written.
    pub async fn write(&self, call: Call, kind: EntryKind, status: &'static str, begin: u64) -> io::Result<u64> {
        let (written, sequence) = oneshot::channel();
        let ended = || io::Error::other("the thread of the audit log has ended");
        self.jobs.send(Job { call, kind, status, begin, written }).await.map_err(|_| ended())?;
        sequence.await.unwrap_or_else(|_| Err(ended()))
    }
}

/// Writes lines, and syncs them if one must be durable. All succeed or none.
fn write_batch(chain: &mut Chain, batch: Vec<Job>) {
    let now = UnixMillis::now();
    let result = chain.append(&batch, now);
    if let Err(error) = &result {
        tracing::error!(
            %error,
            directory = %chain.directory.display(),
            "the audit log cannot be written; calls are refused. Free disk space; restart the server if files of the log \
             were removed or replaced"
        );
    }
    for (index, job) in batch.into_iter().enumerate() {
        let of_job = match &result {
            Ok(first) => Ok(first + index as u64),
            Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
        };
        // Fails if the caller has gone.
        let _ = job.written.send(of_job);
    }
}

/// The last file of the log.
struct Open {
    path: PathBuf,
    file: File,
    /// Of its complete lines.
    bytes: u64,
    /// A failed write may have left more bytes.
    is_dirty: bool,
}

impl Open {
    /// Removes what a failed write or a crash left after the complete lines. At once, because a reader of the file, and
    /// of the next one, takes the rest for a changed line.
    fn cut(&mut self) -> io::Result<()> {
        if self.is_dirty {
            self.file.set_len(self.bytes)?;
            self.file.sync_data()?;
            self.is_dirty = false;
        }
        Ok(())
    }
}

/// The end of the log.
struct Chain {
    directory: PathBuf,
    settings: AuditSettings,
    /// None: the next line begins a file.
    open: Option<Open>,
    /// Of the next line.
    sequence: u64,
    previous: String,
}

impl Chain {
    fn open(directory: &Path, settings: AuditSettings) -> Result<Self, AuditError> {
        let unreadable = |error: io::Error| AuditError::new(directory, format!("cannot be opened: {error}"));
        storage::create_private_directory(directory).map_err(unreadable)?;
        let mut chain = Self {
            directory: directory.to_owned(),
            settings,
            open: None,
            sequence: 1,
            previous: FIRST_HASH.to_owned(),
        };
        for path in files(directory).map_err(unreadable)?.into_iter().rev() {
            let damaged = |problem: String| AuditError::new(&path, problem);
            let (last, bytes) = last_line(&path).map_err(|error| damaged(format!("cannot be read: {error}")))?;
            let file = storage::append_private(&path).map_err(|error| damaged(format!("cannot be opened: {error}")))?;
            let is_dirty = file.metadata().map_err(unreadable)?.len() != bytes;
            if is_dirty {
                tracing::warn!(file = %path.display(), "removing the incomplete last line of the audit log");
            }
            let mut opened = Open { path: path.clone(), file, bytes, is_dirty };
            let Some(last) = last else {
                // A crash came between the creation of a file and its first line.
                fs::remove_file(&path).map_err(unreadable)?;
                continue;
            };
            let (entry, hash) = Entry::parse(&last).map_err(|problem| {
                let remedy = "see `lodestone audit verify`; to begin another log, move the directory away";
                damaged(format!("its last line {problem}; {remedy}"))
            })?;
            opened.cut().map_err(|error| damaged(format!("cannot be shortened to its last line: {error}")))?;
            (chain.sequence, chain.previous, chain.open) = (entry.sequence + 1, hash, Some(opened));
            break;
        }
        Ok(chain)
    }

    /// Appends the lines of jobs. Returns the sequence of the first one. After an error the log is as before.
    fn append(&mut self, batch: &[Job], now: UnixMillis) -> io::Result<u64> {
        let first = self.sequence;
        let (mut sequence, mut previous, mut text) = (first, self.previous.clone(), String::new());
        for job in batch {
            let entry = entry(job, sequence, now, previous);
            let (line, hash) = entry.line()?;
            text.extend([line.as_str(), "\n"]);
            (sequence, previous) = (sequence + 1, hash);
        }
        let needs_sync = batch.iter().any(|job| job.kind != EntryKind::Call);
        self.write(&text, needs_sync)?;
        (self.sequence, self.previous) = (sequence, previous);
        Ok(first)
    }

    fn write(&mut self, text: &str, needs_sync: bool) -> io::Result<()> {
        let bytes = text.len() as u64;
        let is_full = |open: &Open| open.bytes > 0 && open.bytes + bytes > self.settings.file_bytes_max;
        if self.open.as_ref().is_none_or(is_full) {
            self.begin_file()?;
        }
        let Some(open) = &mut self.open else { return Err(io::Error::other("there is no file")) };
        // The lines of a removed file would be lost.
        let remedy = "put it back, or restart the server, which continues with the files that are left";
        let in_place = FileId::of_path(&open.path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                io::Error::new(error.kind(), format!("{} was removed; {remedy}", open.path.display()))
            }
            _ => error,
        })?;
        if in_place != FileId::of_file(&open.file)? {
            return Err(io::Error::other(format!("{} was replaced; {remedy}", open.path.display())));
        }
        open.cut()?;
        open.is_dirty = true;
        let written = open.file.write_all(text.as_bytes());
        if let Err(error) = written.and_then(|()| if needs_sync { open.file.sync_data() } else { Ok(()) }) {
            if let Err(error) = open.cut() {
                let file = open.path.display();
                tracing::error!(%error, %file, "an incomplete line of the audit log stays until the next one");
            }
            return Err(error);
        }
        (open.is_dirty, open.bytes) = (false, open.bytes + bytes);
        Ok(())
    }

    /// Begins another file, and removes the oldest ones.
    fn begin_file(&mut self) -> io::Result<()> {
        if let Some(open) = &mut self.open {
            open.cut()?;
            open.file.sync_data()?;
        }
        let path = self.directory.join(file_name(self.sequence));
        let file = storage::append_private(&path)?;
        // A file of this name has no line that was acknowledged.
        if let Err(error) = file.set_len(0).and_then(|()| FileSystem.sync_directory(&self.directory)) {
            // Lines go on in the former file, and an empty file between two others would be a violation.
            let _ = fs::remove_file(&path);
            return Err(error);
        }
        self.open = Some(Open { path, file, bytes: 0, is_dirty: false });
        let files = files(&self.directory)?;
        let excess = files.len().saturating_sub(self.settings.files_max.max(1));
        for path in &files[..excess] {
            fs::remove_file(path)?;
        }
        Ok(())
    }
}

fn entry(job: &Job, sequence: u64, now: UnixMillis, previous: String) -> Entry {
    let Call { client, client_kind, method, catalog, resource, request_id, dry_run } = &job.call;
    let shortened = |text: &str| match text.char_indices().nth(TEXT_CHARS_MAX) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    };
    Entry {
        sequence,
        time: now.to_string(),
        kind: job.kind,
        client: client.clone(),
        client_kind: (*client_kind).to_owned(),
        method: (*method).to_owned(),
        catalog: catalog.clone(),
        resource: shortened(resource),
        status: job.status.to_owned(),
        request_id: shortened(request_id),
        begin: job.begin,
        dry_run: *dry_run,
        previous,
    }
}

/// Returns the last complete line of a file and the number of bytes up to its end. None: there is no complete line.
fn last_line(path: &Path) -> io::Result<(Option<String>, u64)> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let start = length.saturating_sub(TAIL_BYTES);
    file.seek(SeekFrom::Start(start))?;
    let mut tail = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut tail)?;
    let Some(end) = tail.iter().rposition(|byte| *byte == b'\n') else {
        return match start {
            0 => Ok((None, 0)),
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "has a line that is too long")),
        };
    };
    let begin = tail[..end].iter().rposition(|byte| *byte == b'\n').map_or(0, |before| before + 1);
    let line = String::from_utf8(tail[begin..end].to_vec());
    let line = line.map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "is not UTF-8"))?;
    Ok((Some(line), start + end as u64 + 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::{read, verify};
    use std::os::unix::fs::PermissionsExt;

    fn call(resource: &str) -> Call {
        Call {
            client: "shop".to_owned(),
            client_kind: "api_key",
            method: "RuleService/CreateRule",
            resource: resource.to_owned(),
            ..Call::default()
        }
    }

    async fn write(log: &AuditLog, resource: &str) -> io::Result<u64> {
        log.write(call(resource), EntryKind::Begin, "", 0).await
    }

    #[tokio::test]
    async fn lines_are_chained_over_files_and_restarts() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit");
        // Each line has a file of its own.
        let settings = AuditSettings { file_bytes_max: 1, files_max: 4 };
        for run in 0..3 {
            let log = AuditLog::open(&path, settings).unwrap();
            let first = write(&log, "a").await.unwrap();
            assert_eq!(first, 2 * run + 1);
            let ended = log.write(call(&"é".repeat(1000)), EntryKind::End, "OK", first).await;
            assert_eq!(ended.unwrap(), first + 1);
        }
        let verification = verify(&path, None).unwrap();
        assert!(verification.violation.is_none() && !verification.begins_the_log, "{verification:?}");
        assert_eq!((verification.file_count, verification.first, verification.last), (4, 3, 6));
        let entries = read(&path, None, usize::MAX).unwrap();
        let last = entries.last().unwrap();
        assert_eq!((last.kind, last.begin, last.status.as_str()), (EntryKind::End, 5, "OK"));
        assert_eq!(last.resource.chars().count(), TEXT_CHARS_MAX + 1);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        for file in files(&path).unwrap() {
            assert_eq!(fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600);
        }
    }

    #[tokio::test]
    async fn concurrent_lines_are_all_written_in_one_chain() {
        let directory = tempfile::tempdir().unwrap();
        let log = AuditLog::open(directory.path(), AuditSettings { file_bytes_max: 3000, files_max: 1000 }).unwrap();
        let writes = (0..200).map(|index| write(&log, if index % 2 == 0 { "even" } else { "odd" }));
        let mut sequences: Vec<u64> =
            futures_util::future::join_all(writes).await.into_iter().map(Result::unwrap).collect();
        sequences.sort_unstable();
        assert!(sequences.into_iter().eq(1..=200));
        let verification = verify(directory.path(), None).unwrap();
        assert!(verification.violation.is_none() && verification.begins_the_log);
        assert_eq!(verification.last, 200);
    }

    #[tokio::test]
    async fn a_line_that_a_crash_cut_is_removed_and_a_damaged_last_line_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let log = AuditLog::open(directory.path(), AuditSettings::default()).unwrap();
        write(&log, "a").await.unwrap();
        drop(log);
        let file = files(directory.path()).unwrap().remove(0);
        let complete = fs::read(&file).unwrap();
        fs::write(&file, [&complete[..], b"{\"sequence\":2,"].concat()).unwrap();
        // A file without a line.
        fs::write(directory.path().join(file_name(2)), "").unwrap();
        let log = AuditLog::open(directory.path(), AuditSettings::default()).unwrap();
        assert_eq!(write(&log, "b").await.unwrap(), 2);
        assert!(fs::read(&file).unwrap().starts_with(&complete));
        assert!(verify(directory.path(), None).unwrap().violation.is_none());
        drop(log);
        let damaged = fs::read_to_string(&file).unwrap().replace("\"b\"", "\"c\"");
        fs::write(&file, damaged).unwrap();
        let error = AuditLog::open(directory.path(), AuditSettings::default()).unwrap_err().to_string();
        assert!(error.contains("its last line has a hash") && error.contains("lodestone audit verify"), "{error}");
    }

    #[tokio::test]
    async fn an_incomplete_line_is_removed_before_the_next_file_begins() {
        let directory = tempfile::tempdir().unwrap();
        // Each line has a file of its own.
        let settings = AuditSettings { file_bytes_max: 1, files_max: 100 };
        let log = AuditLog::open(directory.path(), settings).unwrap();
        write(&log, "a").await.unwrap();
        drop(log);
        let is_valid = || verify(directory.path(), None).unwrap().violation.is_none();
        let first = files(directory.path()).unwrap().remove(0);
        let complete = fs::read(&first).unwrap();
        // A crash cut a line.
        fs::write(&first, [&complete[..], b"{\"sequence\":2,"].concat()).unwrap();
        let mut chain = Chain::open(directory.path(), settings).unwrap();
        assert_eq!(fs::read(&first).unwrap(), complete);
        let (written, _receiver) = oneshot::channel();
        let job = Job { call: call("b"), kind: EntryKind::Begin, status: "", begin: 0, written };
        assert_eq!(chain.append(std::slice::from_ref(&job), UnixMillis::now()).unwrap(), 2);
        assert!(is_valid());
        // A write failed within a line, and its rest could not be removed.
        let open = chain.open.as_mut().unwrap();
        open.file.write_all(b"{\"sequence\":3,").unwrap();
        open.is_dirty = true;
        assert_eq!(chain.append(std::slice::from_ref(&job), UnixMillis::now()).unwrap(), 3);
        assert!(is_valid());
        assert_eq!(verify(directory.path(), None).unwrap().file_count, 3);
    }

    #[tokio::test]
    async fn a_line_that_cannot_be_written_fails_and_the_chain_goes_on_later() {
        let directory = tempfile::tempdir().unwrap();
        let (path, aside) = (directory.path().join("audit"), directory.path().join("aside"));
        let log = AuditLog::open(&path, AuditSettings::default()).unwrap();
        write(&log, "a").await.unwrap();
        fs::rename(&path, &aside).unwrap();
        let error = write(&log, "lost").await.unwrap_err().to_string();
        assert!(error.contains("was removed; put it back, or restart the server"), "{error}");
        assert!(log.write(call("lost"), EntryKind::Call, "OK", 0).await.is_err());
        fs::rename(&aside, &path).unwrap();
        assert_eq!(write(&log, "b").await.unwrap(), 2);
        assert!(verify(&path, None).unwrap().violation.is_none());
        assert!(read(&path, None, usize::MAX).unwrap().iter().all(|entry| entry.resource != "lost"));
    }

    #[tokio::test]
    async fn a_restart_begins_a_log_whose_only_file_was_removed() {
        let directory = tempfile::tempdir().unwrap();
        let log = AuditLog::open(directory.path(), AuditSettings::default()).unwrap();
        write(&log, "a").await.unwrap();
        let file = files(directory.path()).unwrap().remove(0);
        fs::remove_file(&file).unwrap();
        assert!(write(&log, "lost").await.is_err());
        fs::write(&file, "another file").unwrap();
        let error = write(&log, "lost").await.unwrap_err().to_string();
        assert!(error.contains("was replaced; put it back, or restart the server"), "{error}");
        fs::remove_file(&file).unwrap();
        drop(log);
        let log = AuditLog::open(directory.path(), AuditSettings::default()).unwrap();
        assert_eq!(write(&log, "b").await.unwrap(), 1);
        assert!(verify(directory.path(), None).unwrap().violation.is_none());
    }
}
