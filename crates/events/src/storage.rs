//! Changes of files that must survive a power loss: written, synced, and their directory entries synced too.
//!
//! The log and its checkpoints change files through [`Storage`]. [`FileSystem`] is the program's implementation. The
//! power-loss tests have another one, which drops or tears what was not synced.
use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::Path,
};

/// Permissions of the files of a data directory: they contain user ids, histories and keys, so only the owner reads and
/// writes them.
const PRIVATE_FILE: u32 = 0o600;
/// Permissions of a data directory and of the directories in it.
const PRIVATE_DIRECTORY: u32 = 0o700;
/// Permissions that the umask reduces.
const ANY_DIRECTORY: u32 = 0o777;

/// A file system. A change is durable only after the sync of its file or of its directory.
pub trait Storage: Send + Sync {
    /// Creates a file, or truncates an existing one to 0 bytes.
    fn create(&self, path: &Path) -> io::Result<Box<dyn StorageFile>>;
    /// Opens an existing file for writing.
    fn open(&self, path: &Path) -> io::Result<Box<dyn StorageFile>>;
    /// Renames a file and replaces an existing one atomically.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Makes created, renamed and removed entries of a directory durable.
    fn sync_directory(&self, path: &Path) -> io::Result<()>;
}

/// A file that is open for writing.
pub trait StorageFile: Send {
    /// Writes all bytes at a byte offset, and extends the file if necessary.
    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()>;
    fn set_len(&mut self, length: u64) -> io::Result<()>;
    /// Makes content and length durable.
    fn sync(&mut self) -> io::Result<()>;
    fn id(&self) -> io::Result<FileId>;
}

/// Identifies a file independently of its path: device and inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    /// Returns the id of the file that a path names now.
    pub fn of_path(path: &Path) -> io::Result<Self> {
        Ok(Self::of(&fs::metadata(path)?))
    }

    pub fn of_file(file: &File) -> io::Result<Self> {
        Ok(Self::of(&file.metadata()?))
    }

    fn of(metadata: &fs::Metadata) -> Self {
        Self { device: metadata.dev(), inode: metadata.ino() }
    }
}

/// The file system of the operating system.
#[derive(Debug, Clone, Copy, Default)]
pub struct FileSystem;

impl Storage for FileSystem {
    fn create(&self, path: &Path) -> io::Result<Box<dyn StorageFile>> {
        Ok(Box::new(create_private(path)?))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn StorageFile>> {
        Ok(Box::new(OpenOptions::new().write(true).open(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }
}

impl StorageFile for File {
    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn set_len(&mut self, length: u64) -> io::Result<()> {
        File::set_len(self, length)
    }

    fn sync(&mut self) -> io::Result<()> {
        // Includes the length, but not the times.
        self.sync_data()
    }

    fn id(&self) -> io::Result<FileId> {
        FileId::of_file(self)
    }
}

/// Creates a file that only its owner reads and writes, or truncates an existing one and makes it private.
pub fn create_private(path: &Path) -> io::Result<File> {
    make_private(OpenOptions::new().write(true).create(true).truncate(true).mode(PRIVATE_FILE).open(path)?)
}

/// Opens a file for appending, and creates it if it does not exist. Only its owner reads and writes it.
pub fn append_private(path: &Path) -> io::Result<File> {
    make_private(OpenOptions::new().append(true).create(true).mode(PRIVATE_FILE).open(path)?)
}

/// Takes the permissions of an existing file from all but its owner.
fn make_private(file: File) -> io::Result<File> {
    let metadata = file.metadata()?;
    // The permissions of a device or a pipe belong to the system.
    if metadata.is_file() && metadata.permissions().mode() & 0o777 & !PRIVATE_FILE != 0 {
        file.set_permissions(fs::Permissions::from_mode(PRIVATE_FILE))?;
    }
    Ok(file)
}

/// Creates a directory that only its owner enters, and the missing directories above it, durably. Keeps the permissions
/// of directories that exist: the operator set them, for example for the group of a volume.
pub fn create_private_directory(path: &Path) -> io::Result<()> {
    create_missing(path, PRIVATE_DIRECTORY)
}

/// Creates a directory and the missing directories above it, durably, with the permissions of the umask.
pub fn create_directory(path: &Path) -> io::Result<()> {
    create_missing(path, ANY_DIRECTORY)
}

fn create_missing(path: &Path, mode: u32) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    create_missing(above(path), mode)?;
    match DirBuilder::new().mode(mode).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    FileSystem.sync_directory(above(path))
}

/// Renames a file or a complete directory durably. The content of files must be synced.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    if from.is_dir() {
        FileSystem.sync_directory(from)?;
    }
    fs::rename(from, to)?;
    FileSystem.sync_directory(above(to))
}

/// Returns the directory that contains a path.
fn above(path: &Path) -> &Path {
    path.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Replaces or creates a private file atomically and durably: after a crash it has either the old or the new content.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    // A file that an earlier crash left may have other permissions.
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            let problem = format!("{} cannot be removed: {error}", new.display());
            return Err(io::Error::new(error.kind(), problem));
        }
        _ => {}
    }
    let written = OpenOptions::new().write(true).create_new(true).mode(PRIVATE_FILE).open(&new).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    let replaced = written.and_then(|()| rename(&new, path));
    if replaced.is_err() {
        // A part of the file is of no use.
        let _ = fs::remove_file(&new);
    }
    replaced
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_file_has_its_content_and_permissions() {
        let directory = tempfile::tempdir().unwrap();
        let below = directory.path().join("a").join("b");
        create_directory(&below).unwrap();
        create_directory(&below).unwrap();
        let path = below.join("x.key");
        // Left by a crash, with permissions of another program version.
        fs::write(below.join("x.key.new"), b"partial").unwrap();
        replace(&path, b"first").unwrap();
        replace(&path, b"second").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"second");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(&below).unwrap().count(), 1);
        assert!(replace(&below.join("none").join("x"), b"").is_err());
        fs::create_dir(below.join("x.key.new")).unwrap();
        let error = replace(&path, b"third").unwrap_err().to_string();
        assert!(error.contains("x.key.new cannot be removed"), "{error}");
    }

    #[test]
    fn files_and_directories_are_private_also_if_they_were_not() {
        let directory = tempfile::tempdir().unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let below = directory.path().join("a").join("b");
        create_private_directory(&below).unwrap();
        assert_eq!((mode(&below), mode(above(&below))), (0o700, 0o700));
        for create in [create_private, append_private] {
            let (new, old) = (below.join("new"), below.join("old"));
            fs::write(&old, b"of an earlier version").unwrap();
            fs::set_permissions(&old, fs::Permissions::from_mode(0o664)).unwrap();
            for path in [new, old] {
                drop(create(&path).unwrap());
                assert_eq!(mode(&path), 0o600);
                fs::remove_file(&path).unwrap();
            }
        }
        // The group of a volume keeps its access.
        fs::set_permissions(&below, fs::Permissions::from_mode(0o770)).unwrap();
        create_private_directory(&below).unwrap();
        assert_eq!(mode(&below), 0o770);
    }
}
