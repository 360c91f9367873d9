//! Parsers of paths. They run before the work begins, because it may take hours.
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Parses the path of a directory that the command reads.
pub(crate) fn existing_directory(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    match fs::metadata(&path) {
        Ok(found) if found.is_dir() => Ok(path),
        Ok(_) => Err("is not a directory".to_owned()),
        Err(error) => Err(format!("the directory cannot be read: {error}")),
    }
}

/// Parses the path of a file that is written at the end. Its directory must exist.
pub(crate) fn new_file(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    match fs::metadata(&path) {
        Ok(found) if found.is_dir() => return Err("is a directory; expected a file".to_owned()),
        // Opening a pipe may wait for its reader.
        Ok(found) if !found.is_file() => {}
        Ok(_) => {
            fs::OpenOptions::new().append(true).open(&path).map_err(|error| format!("cannot be written: {error}"))?;
        }
        Err(_) => {
            let directory = parent(&path);
            if !directory.is_dir() {
                return Err(format!("the directory {} does not exist", directory.display()));
            }
            check_writable(directory)?;
        }
    }
    Ok(path)
}

/// Parses the path of a directory that the command creates, with its missing parents.
pub(crate) fn new_directory(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    check_new_directory(&path)?;
    Ok(path)
}

pub(crate) fn check_new_directory(path: &Path) -> Result<(), String> {
    match fs::symlink_metadata(path) {
        Ok(_) => Err("exists; choose another directory or remove it".to_owned()),
        Err(_) => check_creatable(path),
    }
}

/// Parses the path of a directory for the command's files. It is created, with its missing parents, if it does not
/// exist.
pub(crate) fn output_directory(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    match fs::metadata(&path) {
        Ok(found) if found.is_dir() => check_writable(&path)?,
        Ok(_) => return Err("is a file; expected a directory".to_owned()),
        Err(_) => check_creatable(&path)?,
    }
    Ok(path)
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

/// Checks that the nearest existing parent of a path is a directory in which it can be created.
fn check_creatable(path: &Path) -> Result<(), String> {
    let mut directory = parent(path);
    while fs::symlink_metadata(directory).is_err() && directory != parent(directory) {
        directory = parent(directory);
    }
    match directory.is_dir() {
        true => check_writable(directory),
        false => Err(format!("{} is not a directory", directory.display())),
    }
}

/// Checks that the directory takes new entries. The permissions alone do not say so: the file system may be read-only.
fn check_writable(directory: &Path) -> Result<(), String> {
    let probe = directory.join(format!(".lodestone-{}", std::process::id()));
    fs::create_dir(&probe)
        .and_then(|()| fs::remove_dir(&probe))
        .map_err(|error| format!("the directory {} cannot be written: {error}", directory.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory in which even root creates nothing.
    const NOT_WRITABLE: &str = "/proc";

    fn assert_refused(parsed: Result<PathBuf, String>, part: &str) {
        let problem = parsed.unwrap_err();
        assert!(problem.contains(part), "`{part}` is missing in: {problem}");
    }

    #[test]
    fn a_file_needs_a_directory_that_exists_and_can_be_written() {
        let directory = tempfile::tempdir().unwrap();
        let text = |name: &str| directory.path().join(name).display().to_string();
        assert!(new_file(&text("new.json")).is_ok() && new_file("new.json").is_ok() && new_file("/dev/null").is_ok());
        assert_refused(new_file(&text("")), "is a directory");
        assert_refused(new_file(&text("none/new.json")), "none does not exist");
        assert_refused(new_file(&format!("{NOT_WRITABLE}/new.json")), "/proc cannot be written");
        fs::write(text("old.json"), "old").unwrap();
        assert!(new_file(&text("old.json")).is_ok());
        assert_eq!(fs::read(text("old.json")).unwrap(), b"old", "the check changes no file");
    }

    #[test]
    fn a_new_directory_must_not_exist_and_its_missing_parents_can_be_created() {
        let directory = tempfile::tempdir().unwrap();
        let text = |name: &str| directory.path().join(name).display().to_string();
        assert!(new_directory(&text("new")).is_ok() && new_directory(&text("a/b/new")).is_ok());
        assert_refused(new_directory(&text("")), "exists");
        fs::write(text("file"), "").unwrap();
        assert_refused(new_directory(&text("file")), "exists");
        assert_refused(new_directory(&text("file/new")), "file is not a directory");
        assert_refused(new_directory(&format!("{NOT_WRITABLE}/a/new")), "/proc cannot be written");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "the check leaves nothing behind");
    }

    #[test]
    fn a_directory_of_files_may_exist() {
        let directory = tempfile::tempdir().unwrap();
        let text = |name: &str| directory.path().join(name).display().to_string();
        assert!(output_directory(&text("")).is_ok() && output_directory(&text("a/b")).is_ok());
        fs::write(text("file"), "").unwrap();
        assert_refused(output_directory(&text("file")), "is a file");
        assert_refused(output_directory(NOT_WRITABLE), "/proc cannot be written");
    }
}
