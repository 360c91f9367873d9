//! A store in a directory of this machine, or of a file system that several machines share.
use super::{Failure, Files, Found, When};
use crate::bundle::sha256;
use std::{
    fs,
    io::{self, ErrorKind, Write},
    path::PathBuf,
};

pub struct Directory(pub PathBuf);

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
            self.replace(path, bytes).map_err(|error| told(path, error))?;
        }
        Ok(is_met)
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
}

impl Directory {
    fn replace(&self, path: &str, bytes: &[u8]) -> io::Result<()> {
        let target = self.0.join(path);
        let parent = target.parent().unwrap_or(&self.0);
        fs::create_dir_all(parent)?;
        let partial = parent.join(format!(".{}.partial", uuid::Uuid::now_v7()));
        let written = fs::File::create(&partial).and_then(|mut file| {
            file.write_all(bytes)?;
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
