//! A store in a directory of this machine, or of a file system that several machines share.
use super::{Failure, Files, Found, When};
use lodestone_pipeline::bundle::sha256;
use std::{
    fs,
    io::{self, ErrorKind, Write},
    path::{Path, PathBuf},
};

pub(super) struct Directory(pub PathBuf);

impl Files for Directory {
    fn get(&self, path: &str) -> Result<Option<Found>, Failure> {
        match fs::read(self.0.join(path)) {
            Ok(bytes) => Ok(Some(Found { version: sha256(&bytes), bytes })),
            Err(error) if [ErrorKind::NotFound, ErrorKind::NotADirectory].contains(&error.kind()) => Ok(None),
            Err(error) => Err(told(path, error)),
        }
    }

    /// Writes beside the file's place and moves it there, so that a reader never sees half of it. A file system has no
    /// conditional replacement: between the look and the move another may write, and the later one wins.
    fn put(&self, path: &str, bytes: &[u8], when: &When) -> Result<bool, Failure> {
        let there = match when {
            When::Always => None,
            When::Absent | When::Unchanged(_) => self.get(path)?.map(|found| found.version),
        };
        let is_met = match when {
            When::Always => true,
            When::Absent => there.is_none(),
            When::Unchanged(version) => there.as_ref() == Some(version),
        };
        if is_met {
            self.place(path, |file| file.write_all(bytes)).map_err(|error| told(path, error))?;
        }
        Ok(is_met)
    }

    fn upload(&self, from: &Path, path: &str) -> Result<(), Failure> {
        let mut source = fs::File::open(from).map_err(|error| told(&from.to_string_lossy(), error))?;
        let copied = self.place(path, |file| io::copy(&mut source, file).map(drop));
        copied.map_err(|error| told(path, error))
    }

    fn download(&self, path: &str, to: &Path) -> Result<bool, Failure> {
        match fs::copy(self.0.join(path), to) {
            Ok(_) => fs::File::open(to).and_then(|file| file.sync_all()).map_err(|error| told(path, error))?,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(told(path, error)),
        }
        Ok(true)
    }

    fn directories(&self) -> Result<Vec<String>, Failure> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.0).map_err(|error| told("", error))? {
            let entry = entry.map_err(|error| told("", error))?;
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
            .map_err(|error| told(directory, error))
    }
}

impl Directory {
    fn place(&self, path: &str, write: impl FnOnce(&mut fs::File) -> io::Result<()>) -> io::Result<()> {
        let target = self.0.join(path);
        let parent = target.parent().unwrap_or(&self.0);
        fs::create_dir_all(parent)?;
        let partial = parent.join(format!(".{}.partial", uuid::Uuid::now_v7()));
        let written = fs::File::create(&partial).and_then(|mut file| {
            write(&mut file)?;
            file.sync_all()?;
            fs::rename(&partial, &target)
        });
        if written.is_err() {
            let _ = fs::remove_file(&partial);
        }
        written?;
        fs::File::open(parent)?.sync_all()
    }
}

fn told(path: &str, error: io::Error) -> Failure {
    format!("{path}: {error}").into()
}
