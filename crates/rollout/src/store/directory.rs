//! A store in a directory of a local or shared file system.
use super::files::{Condition, Failure, Files, StoredFile};
use lodestone_events::storage;
use lodestone_pipeline::bundle::{read_regular, sha256};
use std::{
    fs,
    io::{self, ErrorKind, Write},
    path::{Path, PathBuf},
};

pub(super) struct Directory(pub PathBuf);

impl Files for Directory {
    fn get(&self, path: &str) -> Result<Option<StoredFile>, Failure> {
        match read_regular(&self.0.join(path)) {
            Ok(bytes) => Ok(Some(StoredFile { version: sha256(&bytes), bytes })),
            Err(error) if [ErrorKind::NotFound, ErrorKind::NotADirectory].contains(&error.kind()) => Ok(None),
            Err(error) => Err(failure(path, error)),
        }
    }

    /// Writes a temporary file and renames it, so that a reader never sees a part of it. A file system has no
    /// conditional replacement: if another process writes between the check and the rename, the later rename wins.
    fn put(&self, path: &str, bytes: &[u8], condition: &Condition) -> Result<bool, Failure> {
        let version = match condition {
            Condition::Always => None,
            Condition::Absent | Condition::Unchanged(_) => self.get(path)?.map(|file| file.version),
        };
        let is_met = match condition {
            Condition::Always => true,
            Condition::Absent => version.is_none(),
            Condition::Unchanged(expected) => version.as_ref() == Some(expected),
        };
        if is_met {
            self.write_atomically(path, |file| file.write_all(bytes)).map_err(|error| failure(path, error))?;
        }
        Ok(is_met)
    }

    fn upload(&self, from: &Path, path: &str) -> Result<(), Failure> {
        let mut source = fs::File::open(from).map_err(|error| failure(&from.to_string_lossy(), error))?;
        let copied = self.write_atomically(path, |file| io::copy(&mut source, file).map(drop));
        copied.map_err(|error| failure(path, error))
    }

    fn download(&self, path: &str, to: &Path) -> Result<bool, Failure> {
        match fs::copy(self.0.join(path), to) {
            Ok(_) => fs::File::open(to).and_then(|file| file.sync_all()).map_err(|error| failure(path, error))?,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(failure(path, error)),
        }
        Ok(true)
    }

    fn directories(&self) -> Result<Vec<String>, Failure> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.0).map_err(|error| failure("", error))? {
            let entry = entry.map_err(|error| failure("", error))?;
            if entry.path().is_dir() {
                names.extend(entry.file_name().into_string());
            }
        }
        Ok(names)
    }

    fn remove(&self, directory: &str, first: &str) -> Result<(), Failure> {
        let path = self.0.join(directory);
        fs::remove_file(path.join(first))
            .and_then(|()| fs::remove_dir_all(&path))
            .map_err(|error| failure(directory, error))
    }
}

impl Directory {
    fn write_atomically(&self, path: &str, write: impl FnOnce(&mut fs::File) -> io::Result<()>) -> io::Result<()> {
        let target = self.0.join(path);
        let parent = target.parent().unwrap_or(&self.0);
        storage::create_directory(parent)?;
        let partial = parent.join(format!(".{}.partial", uuid::Uuid::now_v7()));
        let written = fs::File::create(&partial).and_then(|mut file| {
            write(&mut file)?;
            file.sync_all()?;
            storage::rename(&partial, &target)
        });
        if written.is_err() {
            let _ = fs::remove_file(&partial);
        }
        written
    }
}

fn failure(path: &str, error: io::Error) -> Failure {
    format!("{path}: {error}").into()
}
