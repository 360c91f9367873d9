//! Where bundles are published: a directory, or a place in an object store.
//!
//! A bundle `NAME` is `NAME/manifest.json` and beside it the bundle's other files; it never changes. The file `current` holds
//! the name of the bundle that is to serve.
mod directory;
#[cfg(feature = "object-store")]
mod remote;

use super::{Bundle, BundleError, MANIFEST, Manifest, write_synced};
use directory::Directory;
use std::{
    fs, io,
    path::{Path, PathBuf},
};

const CURRENT: &str = "current";
const NAME_BYTES_MAX: usize = 128;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Why a store cannot be used, or has not what was asked for.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("store {place}: {source}")]
    Access { place: String, source: Failure },
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "`{name}` is no name of a bundle: 1 to 128 letters, digits, `.`, `_` and `-`, the first a letter or a digit, not `current`"
    )]
    Name { name: String },
    #[error("store {place} has no bundle `{name}`")]
    Unknown { place: String, name: String },
    #[error("store {place} names no current bundle; publish one with `lodestone bundle publish`")]
    Empty { place: String },
    #[error(
        "store {place} has another bundle `{name}`; a bundle never changes, so train or build it under another name"
    )]
    Taken { place: String, name: String },
    #[error("store {place}: another bundle became current meanwhile; judge against it and publish again")]
    Moved { place: String },
    #[error("store {place}, bundle `{name}`: the manifest cannot be read: {problem}")]
    Manifest { place: String, name: String, problem: String },
    #[error(transparent)]
    Bundle(#[from] BundleError),
}

/// Which bundle is to serve, as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pointer {
    pub name: String,
    version: String,
}

/// Files by path, `NAME/FILE` or `FILE`.
trait Files: Send + Sync {
    fn get(&self, path: &str) -> Result<Option<Found>, Failure>;
    /// Puts a file in place whole. False: the condition was not met, and nothing changed.
    fn put(&self, path: &str, bytes: &[u8], when: &When) -> Result<bool, Failure>;
    fn directories(&self) -> Result<Vec<String>, Failure>;
}

struct Found {
    bytes: Vec<u8>,
    version: String,
}

enum When {
    Always,
    Absent,
    Unchanged(String),
}

/// An open store. Its methods block, and must not be called from a thread of an asynchronous runtime.
pub struct Store {
    place: String,
    files: Box<dyn Files>,
    /// Of a store on this machine: its bundles are read where they lie.
    directory: Option<PathBuf>,
}

impl Store {
    /// Opens a directory, which is made if it is not there, or the place of a URL: `s3://bucket/path`, `gs://…`, `az://…`, if the
    /// program was built for it. `options` say how it is accessed, such as `aws_region`.
    pub fn open(place: &str, options: impl IntoIterator<Item = (String, String)>) -> Result<Self, StoreError> {
        let directory = match place.split_once("://") {
            None => PathBuf::from(place),
            Some(("file", path)) => PathBuf::from(path),
            Some(_) => {
                let files = open_remote(place, options);
                let files = files.map_err(|source| StoreError::Access { place: place.to_owned(), source })?;
                return Ok(Self { place: place.to_owned(), files, directory: None });
            }
        };
        fs::create_dir_all(&directory).map_err(|source| StoreError::Io { path: directory.clone(), source })?;
        let files = Box::new(Directory(directory.clone()));
        Ok(Self { place: place.to_owned(), files, directory: Some(directory) })
    }

    pub fn place(&self) -> &str {
        &self.place
    }

    /// The bundle that is to serve; none in an empty store.
    pub fn current(&self) -> Result<Option<Pointer>, StoreError> {
        let Some(found) = self.files.get(CURRENT).map_err(|source| self.failed(source))? else { return Ok(None) };
        let name = String::from_utf8_lossy(&found.bytes).trim().to_owned();
        check_name(&name)?;
        Ok(Some(Pointer { name, version: found.version }))
    }

    /// The names of its bundles, in order: of those whose manifest is there.
    pub fn names(&self) -> Result<Vec<String>, StoreError> {
        let mut names = Vec::new();
        for name in self.files.directories().map_err(|source| self.failed(source))? {
            if check_name(&name).is_ok() && self.manifest_bytes(&name)?.is_some() {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    /// What a bundle says of itself; nothing else of it is read.
    pub fn manifest(&self, name: &str) -> Result<Manifest, StoreError> {
        let text = self.manifest_bytes(name)?.ok_or_else(|| self.unknown(name))?;
        self.parse_manifest(name, &text)
    }

    /// A directory of this machine with the bundle's files: its own, or a copy in `cache`. [`Bundle::open`] verifies them.
    pub fn fetch(&self, name: &str, cache: &Path) -> Result<PathBuf, StoreError> {
        let text = self.manifest_bytes(name)?.ok_or_else(|| self.unknown(name))?;
        let manifest = self.parse_manifest(name, &text)?;
        if let Some(directory) = &self.directory {
            return Ok(directory.join(name));
        }
        let (copy, partial) = (cache.join(name), cache.join(format!("{name}.partial")));
        if fs::read(copy.join(MANIFEST)).is_ok_and(|known| known == text) {
            return Ok(copy);
        }
        let io = |path: PathBuf| move |source| StoreError::Io { path, source };
        let _ = fs::remove_dir_all(&partial);
        fs::create_dir_all(&partial).map_err(io(partial.clone()))?;
        for file in manifest.files.keys() {
            let found = self.files.get(&format!("{name}/{file}")).map_err(|source| self.failed(source))?;
            let found = found.ok_or_else(|| BundleError::Missing { path: PathBuf::from(format!("{name}/{file}")) })?;
            write_synced(&partial.join(file), &found.bytes).map_err(io(partial.join(file)))?;
        }
        write_synced(&partial.join(MANIFEST), &text).map_err(io(partial.join(MANIFEST)))?;
        let _ = fs::remove_dir_all(&copy);
        fs::rename(&partial, &copy).map_err(io(copy.clone()))?;
        Ok(copy)
    }

    /// Verifies a bundle, copies its files into the store, the manifest last, and makes it current. A bundle that is there already
    /// is only made current. With `seen`, fails with [`StoreError::Moved`] if another bundle became current since that was read.
    pub fn publish(&self, bundle: &Path, seen: Option<Option<&Pointer>>) -> Result<Manifest, StoreError> {
        let manifest = Bundle::open(bundle)?.manifest;
        let name = &manifest.name;
        let read = |file: &str| {
            let path = bundle.join(file);
            fs::read(&path).map_err(|source| StoreError::Io { path, source })
        };
        let text = read(MANIFEST)?;
        self.parse_manifest(name, &text)?;
        let taken = || StoreError::Taken { place: self.place.clone(), name: name.clone() };
        match self.manifest_bytes(name)? {
            Some(there) if there == text => {}
            Some(_) => return Err(taken()),
            None => {
                for file in manifest.files.keys() {
                    self.put(&format!("{name}/{file}"), &read(file)?, &When::Always)?;
                }
                if !self.put(&format!("{name}/{MANIFEST}"), &text, &When::Absent)? {
                    return Err(taken());
                }
            }
        }
        self.point_to(name, seen)?;
        Ok(manifest)
    }

    /// Makes a bundle of the store current; `seen` as in [`Store::publish`].
    pub fn point_to(&self, name: &str, seen: Option<Option<&Pointer>>) -> Result<(), StoreError> {
        self.manifest_bytes(name)?.ok_or_else(|| self.unknown(name))?;
        let when = match seen {
            None => When::Always,
            Some(None) => When::Absent,
            Some(Some(pointer)) => When::Unchanged(pointer.version.clone()),
        };
        match self.put(CURRENT, format!("{name}\n").as_bytes(), &when)? {
            true => Ok(()),
            false => Err(StoreError::Moved { place: self.place.clone() }),
        }
    }

    fn manifest_bytes(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        check_name(name)?;
        let found = self.files.get(&format!("{name}/{MANIFEST}")).map_err(|source| self.failed(source))?;
        Ok(found.map(|found| found.bytes))
    }

    /// A manifest, if its names are those of plain files and its own name is the directory's.
    fn parse_manifest(&self, name: &str, text: &[u8]) -> Result<Manifest, StoreError> {
        check_name(name)?;
        let failed =
            |problem: String| StoreError::Manifest { place: self.place.clone(), name: name.to_owned(), problem };
        let manifest: Manifest = serde_json::from_slice(text).map_err(|error| failed(error.to_string()))?;
        if manifest.name != name {
            return Err(failed(format!("it is that of `{}`", manifest.name)));
        }
        match manifest.files.keys().find(|file| check_name(file).is_err()) {
            Some(file) => Err(failed(format!("`{file}` is no name of a file"))),
            None => Ok(manifest),
        }
    }

    fn put(&self, path: &str, bytes: &[u8], when: &When) -> Result<bool, StoreError> {
        self.files.put(path, bytes, when).map_err(|source| self.failed(source))
    }

    fn failed(&self, source: Failure) -> StoreError {
        StoreError::Access { place: self.place.clone(), source }
    }

    fn unknown(&self, name: &str) -> StoreError {
        StoreError::Unknown { place: self.place.clone(), name: name.to_owned() }
    }
}

#[cfg(feature = "object-store")]
fn open_remote(place: &str, options: impl IntoIterator<Item = (String, String)>) -> Result<Box<dyn Files>, Failure> {
    Ok(Box::new(remote::Remote::open(place, options)?))
}

#[cfg(not(feature = "object-store"))]
fn open_remote(_: &str, _: impl IntoIterator<Item = (String, String)>) -> Result<Box<dyn Files>, Failure> {
    Err("this program was built for directories alone; build it with the cargo feature `s3`, `gcs` or `azure`".into())
}

/// A name of a bundle or of one of its files.
fn check_name(name: &str) -> Result<(), StoreError> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let starts_well = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    match starts_well && name.len() <= NAME_BYTES_MAX && name.bytes().all(is_plain) && name != CURRENT {
        true => Ok(()),
        false => Err(StoreError::Name { name: name.chars().take(NAME_BYTES_MAX).collect() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What holds for every kind of store.
    fn conforms(files: &dyn Files) {
        assert!(files.get("current").unwrap().is_none() && files.get("a/b").unwrap().is_none());
        assert!(files.directories().unwrap().is_empty());
        assert!(!files.put("current", b"no", &When::Unchanged("never".to_owned())).unwrap_or(false));
        assert!(files.put("current", b"one", &When::Absent).unwrap());
        assert!(!files.put("current", b"two", &When::Absent).unwrap(), "it is there");
        let one = files.get("current").unwrap().unwrap();
        assert_eq!(one.bytes, b"one");
        assert!(files.put("current", b"two", &When::Unchanged(one.version.clone())).unwrap());
        assert!(!files.put("current", b"three", &When::Unchanged(one.version)).unwrap(), "it changed");
        assert!(files.put("current", b"four", &When::Always).unwrap());
        assert_eq!(files.get("current").unwrap().unwrap().bytes, b"four");
        assert!(files.put("bundle/file", b"five", &When::Always).unwrap());
        assert_eq!(files.directories().unwrap(), ["bundle"]);
    }

    #[test]
    fn a_directory_conforms() {
        let place = tempfile::tempdir().unwrap();
        conforms(&Directory(place.path().to_owned()));
    }

    #[cfg(feature = "object-store")]
    #[test]
    fn an_object_store_conforms() {
        let objects = std::sync::Arc::new(object_store::memory::InMemory::new());
        conforms(&remote::Remote::new(objects, object_store::path::Path::from("shop/bundles")).unwrap());
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        let place = tempfile::tempdir().unwrap();
        let store = Store::open(place.path().to_str().unwrap(), []).unwrap();
        for name in ["", "..", "../x", "a/b", ".hidden", "current", "a b", &"x".repeat(129)] {
            assert!(matches!(store.manifest(name), Err(StoreError::Name { .. })), "{name}");
        }
        assert!(matches!(store.manifest("unknown"), Err(StoreError::Unknown { .. })));
        assert!(store.current().unwrap().is_none() && store.names().unwrap().is_empty());
        fs::create_dir(place.path().join("x")).unwrap();
        assert!(store.names().unwrap().is_empty(), "a directory without a manifest is no bundle");
        let text = serde_json::to_string(&Manifest::new("y".to_owned(), 0, 0, 1)).unwrap();
        fs::write(place.path().join("x").join(MANIFEST), text).unwrap();
        assert!(matches!(store.manifest("x"), Err(StoreError::Manifest { .. })));
    }
}
