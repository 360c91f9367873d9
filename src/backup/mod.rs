//! Backups of a data directory, which a server may be using, and their restoration.
//!
//! ```text
//! BACKUPS/20261201T014700Z/backup.json   the manifest: size, sum and permissions of every file, and the log's position
//! BACKUPS/20261201T014700Z/backup.json.sha256   the sum of the manifest, as `sha256sum` writes it
//! BACKUPS/20261201T014700Z/data/...      the files
//! ```
//!
//! A backup is made under another name and renamed when it is complete and durable. Files of a data directory are
//! appended to, or replaced as a whole, so that a copy of any of them is valid at any time; the event log, which has
//! several files and a checkpoint, is copied by [`log::copy`].
use lodestone_engine::{ITEM_VECTORS, LOG, LogMissing, event_log};
use lodestone_events::{
    EventLog, LogError,
    log::{self, Check},
    storage::{self, FileSystem, Storage},
};
use lodestone_pipeline::bundle::{length_of_regular, read_regular_up_to};
use lodestone_rollout::BUNDLE_COPIES;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::unix::fs::PermissionsExt,
    path::{Component, Path, PathBuf},
};

#[cfg(test)]
mod tests;

const MANIFEST: &str = "backup.json";
const MANIFEST_SUM: &str = "backup.json.sha256";
const DATA: &str = "data";
/// The prefix of the name of a backup that is not complete.
const INCOMPLETE: &str = ".incomplete-";
/// The directory of a restoration that is not complete, in the data directory.
const RESTORING: &str = ".restoring";
/// The work of a retrain in the data directory.
pub(crate) const RETRAIN: &str = "retrain";
/// A directory that file systems create at their root.
const LOST_AND_FOUND: &str = "lost+found";
/// The version of the manifest and of the layout.
const FORMAT: u32 = 1;
/// Data directories are two to four deep.
const DEPTH_MAX: usize = 16;
const BUFFER_BYTES: usize = 1 << 20;
/// About 5 million files.
const MANIFEST_BYTES_MAX: u64 = 1 << 30;
const MANIFEST_SUM_BYTES_MAX: u64 = 1 << 10;

/// The reason why there is no backup, or why one cannot be restored.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    LogMissing(#[from] LogMissing),
    #[error("--out {out} is in the data directory {data}; choose a directory of another volume")]
    InData { out: PathBuf, data: PathBuf },
    #[error("{path} exists; wait a second")]
    Exists { path: PathBuf },
    #[error("{path} {problem}")]
    File { path: PathBuf, problem: String },
    #[error("{path} is no backup: {problem}")]
    Manifest { path: PathBuf, problem: String },
    #[error("{path} is not as it was backed up: {problem}; restore another backup")]
    Damaged { path: PathBuf, problem: String },
    #[error("--data {data} has {found}; restore to a directory that is empty or does not exist")]
    NotEmpty { data: PathBuf, found: String },
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> BackupError {
    let path = path.to_owned();
    move |source| BackupError::Io { path, source }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    format: u32,
    /// The version of the program that made the backup.
    version: String,
    /// The position of the last change of the log of the data directory.
    position: u64,
    files: Vec<FileEntry>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileEntry {
    /// Relative to the data directory.
    path: PathBuf,
    bytes: u64,
    /// In hexadecimal digits.
    sha256: String,
    /// Permissions.
    mode: u32,
}

impl Manifest {
    /// Reads the manifest of a backup. Its paths lead to files below a directory.
    fn read(backup: &Path) -> Result<Self, BackupError> {
        let path = backup.join(MANIFEST);
        let failed = |problem: String| BackupError::Manifest { path: backup.to_owned(), problem };
        let bytes =
            read_regular_up_to(&path, MANIFEST_BYTES_MAX).map_err(|error| failed(format!("{MANIFEST}: {error}")))?;
        // Only the version, because the fields of another one may differ.
        let version: Version =
            serde_json::from_slice(&bytes).map_err(|error| failed(format!("{MANIFEST}: {error}")))?;
        if version.format != FORMAT {
            let problem = format!("it has version {}; this program reads version {FORMAT}", version.format);
            return Err(failed(problem));
        }
        let sum = read_regular_up_to(&backup.join(MANIFEST_SUM), MANIFEST_SUM_BYTES_MAX)
            .map_err(|error| failed(format!("{MANIFEST_SUM}: {error}")))?;
        if sum != manifest_sum(&bytes).as_bytes() {
            let problem = format!("its SHA-256 differs from that in {MANIFEST_SUM}");
            return Err(BackupError::Damaged { path, problem });
        }
        let manifest: Self = serde_json::from_slice(&bytes).map_err(|error| failed(format!("{MANIFEST}: {error}")))?;
        let leads_out = |file: &&FileEntry| {
            file.path.as_os_str().is_empty() || !file.path.components().all(|part| matches!(part, Component::Normal(_)))
        };
        match manifest.files.iter().find(leads_out) {
            Some(file) => Err(failed(format!("{MANIFEST} has the path `{}`", file.path.display()))),
            None => Ok(manifest),
        }
    }
}

/// Returns the content of [`MANIFEST_SUM`] for a manifest.
fn manifest_sum(manifest: &[u8]) -> String {
    format!("{:x}  {MANIFEST}\n", Sha256::digest(manifest))
}

#[derive(Deserialize)]
struct Version {
    format: u32,
}

/// A backup that was made, verified or restored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// The backup, or the restored data directory.
    pub path: PathBuf,
    pub file_count: usize,
    pub bytes: u64,
    /// The position of the last change in the log.
    pub position: u64,
    /// The names of older backups that were removed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub removed: Vec<String>,
}

impl Summary {
    fn of(path: PathBuf, manifest: &Manifest) -> Self {
        let bytes = manifest.files.iter().map(|file| file.bytes).sum();
        Self { path, file_count: manifest.files.len(), bytes, position: manifest.position, removed: Vec::new() }
    }
}

/// Checks that `data` is a data directory, and that backups in `backups` would not be copied into themselves.
pub fn check(data: &Path, backups: &Path) -> Result<(), BackupError> {
    event_log(data)?;
    check_outside(data, backups)
}

/// Copies the data directory `data` to the new directory `name` in `backups`. Afterwards removes the oldest backups
/// beyond `keep`. The caller ensures that no other backup is made in `backups`.
pub fn create(data: &Path, backups: &Path, name: &str, keep: Option<usize>) -> Result<Summary, BackupError> {
    check(data, backups)?;
    storage::create_private_directory(backups).map_err(io_error(backups))?;
    remove_incomplete(backups)?;
    let path = backups.join(name);
    if path.exists() {
        return Err(BackupError::Exists { path });
    }
    let work = backups.join(format!("{INCOMPLETE}{name}"));
    let made = copy_data(data, &work).and_then(|manifest| {
        storage::rename(&work, &path).map_err(io_error(&path))?;
        Ok(manifest)
    });
    if made.is_err() {
        // A part of a backup is of no use. The next one removes it if this fails.
        let _ = fs::remove_dir_all(&work);
    }
    let manifest = made?;
    let removed = keep.map_or(Ok(Vec::new()), |keep| prune(backups, keep, name))?;
    Ok(Summary { removed, ..Summary::of(path, &manifest) })
}

/// Compares all files of a backup with its manifest.
pub fn verify(backup: &Path) -> Result<Summary, BackupError> {
    let manifest = Manifest::read(backup)?;
    for file in &manifest.files {
        copy_verified(file, &backup.join(DATA), (&mut io::sink(), backup))?;
    }
    Ok(Summary::of(backup.to_owned(), &manifest))
}

/// Writes the files of a backup to the data directory `data`, which must be empty or must not exist. All files are verified
/// before the first of them is in place, and the event log is the last one: without it, no server starts.
pub fn restore(backup: &Path, data: &Path) -> Result<Summary, BackupError> {
    let manifest = Manifest::read(backup)?;
    let exists = data.exists();
    if exists && let Some(found) = first_entry(data)? {
        return Err(BackupError::NotEmpty { data: data.to_owned(), found });
    }
    storage::create_private_directory(data).map_err(io_error(data))?;
    let work = data.join(RESTORING);
    let restored = restore_files(backup, &manifest, &work).and_then(|()| put_in_place(&work, data));
    if let Err(error) = restored {
        let _ = fs::remove_dir_all(&work);
        if !exists {
            let _ = fs::remove_dir(data);
        }
        return Err(error);
    }
    Ok(Summary::of(data.to_owned(), &manifest))
}

/// Checks that the backups are not copied into themselves.
fn check_outside(data: &Path, backups: &Path) -> Result<(), BackupError> {
    let data = data.canonicalize().map_err(io_error(data))?;
    // The nearest existing directory: the others are created.
    let mut above = std::path::absolute(backups).map_err(io_error(backups))?;
    let out = loop {
        match above.canonicalize() {
            Ok(found) => break found,
            Err(_) if above.pop() => {}
            Err(source) => return Err(BackupError::Io { path: backups.to_owned(), source }),
        }
    };
    match out.starts_with(&data) {
        true => Err(BackupError::InData { out: backups.to_owned(), data }),
        false => Ok(()),
    }
}

/// Removes what interrupted backups left.
fn remove_incomplete(backups: &Path) -> Result<(), BackupError> {
    for name in names(backups)?.iter().filter(|name| name.starts_with(INCOMPLETE)) {
        let path = backups.join(name);
        fs::remove_dir_all(&path).map_err(io_error(&path))?;
    }
    Ok(())
}

/// Removes the oldest backups beyond `keep`, which counts the one that was just made: `made` stays, whatever its name.
/// Directories and files whose names are not times stay too.
fn prune(backups: &Path, keep: usize, made: &str) -> Result<Vec<String>, BackupError> {
    let is_other_backup = |name: &String| name != made && is_time(name) && backups.join(name).join(MANIFEST).is_file();
    // The order of names is the order of time.
    let mut old: Vec<String> = names(backups)?.into_iter().filter(is_other_backup).collect();
    old.truncate((old.len() + 1).saturating_sub(keep.max(1)));
    for name in &old {
        let path = backups.join(name);
        // If the removal is interrupted, the next backup completes it.
        let removed = backups.join(format!("{INCOMPLETE}{name}"));
        storage::rename(&path, &removed).and_then(|()| fs::remove_dir_all(&removed)).map_err(io_error(&path))?;
    }
    Ok(old)
}

/// Returns true for a name of the form `YYYYMMDDTHHMMSSZ`.
fn is_time(name: &str) -> bool {
    let form = b"00000000T000000Z";
    let fits = |(byte, expected): (u8, &u8)| if *expected == b'0' { byte.is_ascii_digit() } else { byte == *expected };
    name.len() == form.len() && name.bytes().zip(form).all(fits)
}

/// Returns the names in a directory in order.
fn names(directory: &Path) -> Result<Vec<String>, BackupError> {
    let failed = |source| BackupError::Io { path: directory.to_owned(), source };
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let shown = name.to_string_lossy().into_owned();
        let problem = || "has a name that is not UTF-8; remove or rename it".to_owned();
        names.push(
            name.into_string().map_err(|_| BackupError::File { path: directory.join(shown), problem: problem() })?,
        );
    }
    names.sort();
    Ok(names)
}

/// Returns the name of an entry of a directory that is not one of its file system.
fn first_entry(directory: &Path) -> Result<Option<String>, BackupError> {
    Ok(names(directory)?.into_iter().find(|name| name != LOST_AND_FOUND))
}

/// Copies all files of a data directory to `work`, with a manifest, durably.
fn copy_data(data: &Path, work: &Path) -> Result<Manifest, BackupError> {
    let target = work.join(DATA);
    storage::create_private_directory(&target).map_err(io_error(&target))?;
    let mut copier = Copier { data, target: &target, files: Vec::new(), position: 0 };
    copier.copy_directory(Path::new(""), 0)?;
    let Copier { files, position, .. } = copier;
    let manifest = Manifest { format: FORMAT, version: env!("CARGO_PKG_VERSION").to_owned(), position, files };
    sync_directories(&target).map_err(io_error(&target))?;
    let text = serde_json::to_vec_pretty(&manifest).map_err(io::Error::other).map_err(io_error(work))?;
    storage::replace(&work.join(MANIFEST_SUM), manifest_sum(&text).as_bytes()).map_err(io_error(work))?;
    storage::replace(&work.join(MANIFEST), &text).map_err(io_error(work))?;
    Ok(manifest)
}

struct Copier<'a> {
    data: &'a Path,
    target: &'a Path,
    files: Vec<FileEntry>,
    /// The position of the log at the top of the data directory.
    position: u64,
}

impl Copier<'_> {
    /// Copies a directory, whose path is relative to the data directory. Files come first, so that the pointer of a store
    /// is not newer than its bundles.
    fn copy_directory(&mut self, directory: &Path, depth: usize) -> Result<(), BackupError> {
        let from = self.data.join(directory);
        if depth > DEPTH_MAX {
            let problem =
                format!("is more than {DEPTH_MAX} directories deep; remove what is no part of a data directory");
            return Err(BackupError::File { path: from, problem });
        }
        let to = self.target.join(directory);
        storage::create_private_directory(&to).map_err(io_error(&to))?;
        let mut below = Vec::new();
        let is_data = EventLog::exists(&from.join(LOG));
        for name in names(&from)? {
            let path = directory.join(&name);
            // Of a link itself: what it leads to is outside the data directory, or is backed up already.
            let metadata = match fs::symlink_metadata(from.join(&name)) {
                // The server removes old files while this command runs.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                found => found.map_err(io_error(&from.join(&name)))?,
            };
            if is_left_out(&name, is_data) {
                continue;
            }
            match (metadata.is_dir(), metadata.is_file()) {
                (true, _) => below.push((name, path)),
                (_, true) => self.copy_file(&path)?,
                _ if metadata.is_symlink() => {
                    let problem =
                        "is a symbolic link; replace it with the file or directory that it leads to".to_owned();
                    return Err(BackupError::File { path: from.join(name), problem });
                }
                _ => return Err(BackupError::File { path: from.join(name), problem: "is no regular file".to_owned() }),
            }
        }
        for (name, path) in below {
            match is_data && name == LOG {
                true => self.copy_log(&path)?,
                false => self.copy_directory(&path, depth + 1)?,
            }
        }
        Ok(())
    }

    fn copy_file(&mut self, path: &Path) -> Result<(), BackupError> {
        let (from, to) = (self.data.join(path), self.target.join(path));
        let mut source = match File::open(&from) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            file => file.map_err(io_error(&from))?,
        };
        let permissions = source.metadata().map_err(io_error(&from))?.permissions();
        let mut target = storage::create_private(&to).map_err(io_error(&to))?;
        let (bytes, sha256) = copy_hashed((&mut source, &from), (&mut target, &to))?;
        let mode = permissions.mode() & 0o777;
        target
            .set_permissions(fs::Permissions::from_mode(mode))
            .and_then(|()| target.sync_all())
            .map_err(io_error(&to))?;
        self.files.push(FileEntry { path: path.to_owned(), bytes, sha256, mode });
        Ok(())
    }

    /// Copies an event log and verifies the copy, because a backup of a damaged log cannot be restored.
    fn copy_log(&mut self, path: &Path) -> Result<(), BackupError> {
        let to = self.target.join(path);
        let position = log::copy(&self.data.join(path), &to)?;
        let Check { damaged, torn, last_position, .. } = log::check(&to)?;
        if let Some(part) = damaged.first() {
            let (offset, position, reason) = (part.offset, *part.positions.start(), part.reason.clone());
            return Err(LogError::Damaged { path: part.path.clone(), offset, position, reason }.into());
        }
        if torn.is_some() || last_position != position {
            let problem = format!("has the positions up to {last_position} instead of {position}");
            return Err(BackupError::File { path: to, problem });
        }
        if path == Path::new(LOG) {
            self.position = position;
        }
        for name in names(&to)? {
            let file = to.join(&name);
            let mut source = File::open(&file).map_err(io_error(&file))?;
            let mode = source.metadata().map_err(io_error(&file))?.permissions().mode() & 0o777;
            let (bytes, sha256) = copy_hashed((&mut source, &file), (&mut io::sink(), &file))?;
            self.files.push(FileEntry { path: path.join(name), bytes, sha256, mode });
        }
        Ok(())
    }
}

/// Returns true for what the server creates again, and for what is not complete. `is_data`: the directory is a data
/// directory, not one below it.
fn is_left_out(name: &str, is_data: bool) -> bool {
    name == LOST_AND_FOUND
        || Path::new(name).extension().is_some_and(|extension| extension == "new")
        || is_data && [ITEM_VECTORS, BUNDLE_COPIES, RETRAIN, RESTORING].contains(&name)
}

/// Copies the rest of a file, each with its path for errors. Returns the number of its bytes and their SHA-256.
fn copy_hashed(source: (&mut File, &Path), target: (&mut dyn Write, &Path)) -> Result<(u64, String), BackupError> {
    let (mut buffer, mut hash, mut bytes) = (vec![0; BUFFER_BYTES], Sha256::new(), 0);
    loop {
        let count = match source.0.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            read => read.map_err(io_error(source.1))?,
        };
        if count == 0 {
            return Ok((bytes, format!("{:x}", hash.finalize())));
        }
        hash.update(&buffer[..count]);
        target.0.write_all(&buffer[..count]).map_err(io_error(target.1))?;
        bytes += count as u64;
    }
}

/// Copies a file of a backup and compares it with the manifest.
fn copy_verified(file: &FileEntry, files: &Path, target: (&mut dyn Write, &Path)) -> Result<(), BackupError> {
    let path = files.join(&file.path);
    let damaged = |problem: String| BackupError::Damaged { path: path.clone(), problem };
    let found = length_of_regular(&path).map_err(|error| damaged(format!("it {error}")))?;
    // Before the copy, so that a file that grew is not copied.
    if found != file.bytes {
        return Err(damaged(format!("it has {found} bytes instead of {}", file.bytes)));
    }
    let mut source = File::open(&path).map_err(io_error(&path))?;
    let (bytes, sha256) = copy_hashed((&mut source, &path), target)?;
    match (bytes == file.bytes, sha256 == file.sha256) {
        (false, _) => Err(damaged(format!("it has {bytes} bytes instead of {}", file.bytes))),
        (_, false) => Err(damaged("its SHA-256 differs from that in the manifest".to_owned())),
        _ => Ok(()),
    }
}

/// Writes all files of a backup below `work`, durably.
fn restore_files(backup: &Path, manifest: &Manifest, work: &Path) -> Result<(), BackupError> {
    storage::create_private_directory(work).map_err(io_error(work))?;
    for file in &manifest.files {
        let to = work.join(&file.path);
        let directory = to.parent().unwrap_or(work);
        storage::create_private_directory(directory).map_err(io_error(directory))?;
        let mut target = storage::create_private(&to).map_err(io_error(&to))?;
        copy_verified(file, &backup.join(DATA), (&mut target, &to))?;
        let permissions = fs::Permissions::from_mode(file.mode & 0o777);
        target.set_permissions(permissions).and_then(|()| target.sync_all()).map_err(io_error(&to))?;
    }
    sync_directories(work).map_err(io_error(work))
}

/// Moves the files of a restoration to the data directory, the event log last.
fn put_in_place(work: &Path, data: &Path) -> Result<(), BackupError> {
    let mut entries = names(work)?;
    entries.sort_by_key(|name| name == LOG);
    for name in entries {
        let to = data.join(&name);
        storage::rename(&work.join(&name), &to).map_err(io_error(&to))?;
    }
    fs::remove_dir(work).and_then(|()| FileSystem.sync_directory(data)).map_err(io_error(work))
}

/// Makes the entries of a directory and of those below it durable.
fn sync_directories(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_directories(&entry.path())?;
        }
    }
    FileSystem.sync_directory(directory)
}
