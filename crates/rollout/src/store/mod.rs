//! Bundle stores: a directory, or a prefix in an object store.
//!
//! A bundle `NAME` is the directory `NAME` with `manifest.json` and the bundle's other files; it never changes. The
//! file `current` contains the name of the current bundle.
mod directory;
mod files;
mod remote;

use directory::Directory;
use files::{Condition, Failure, Files};
use lodestone_core::{
    error_chain::format_error_chain,
    mask::{mask_url, mask_urls},
};
use lodestone_events::storage;
use lodestone_pipeline::bundle::{Bundle, BundleError, MANIFEST, Manifest, read_regular};
use remote::Remote;
use std::{
    fs, io,
    path::{Path, PathBuf},
};

const CURRENT: &str = "current";
const NAME_BYTES_MAX: usize = 128;

/// The reason why a store operation failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("store {location}: {source}")]
    Access { location: String, source: Failure },
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "`{name}` is not a bundle name: 1 to 128 letters, digits, `.`, `_` and `-`, the first a letter or a digit, not `current`"
    )]
    Name { name: String },
    #[error("store {location} has no bundle `{name}`")]
    Unknown { location: String, name: String },
    #[error("store {location} does not exist or names no current bundle; publish one with `lodestone bundle publish`")]
    Empty { location: String },
    #[error(
        "store {location} has another bundle `{name}`; a bundle never changes, so train or build it under another name"
    )]
    Taken { location: String, name: String },
    #[error("store {location}: another bundle became current since the gate; compare with it and publish again")]
    Moved { location: String },
    #[error("store {location}, bundle `{name}`: {problem}")]
    Manifest { location: String, name: String, problem: String },
    #[error(transparent)]
    Bundle(#[from] BundleError),
}

/// The store's pointer to the current bundle, with the version of the pointer file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pointer {
    pub name: String,
    version: String,
}

/// An open store. Its methods block, and must not be called from a thread of an asynchronous runtime.
pub struct Store {
    /// Without secrets, for messages.
    location: String,
    files: Box<dyn Files>,
    /// The directory of a local store, whose bundles are read in place.
    directory: Option<PathBuf>,
}

impl Store {
    /// Opens a directory, which is created if it does not exist, or a URL: `s3://bucket/path`, `gs://…`, `az://…`.
    /// `options` configure the access, such as `aws_region`.
    pub fn open(location: &str, options: impl IntoIterator<Item = (String, String)>) -> Result<Self, StoreError> {
        let Some(directory) = local_directory(location) else {
            let (files, location) = (Remote::open(location, options), mask_url(location));
            let files = files.map_err(|source| access_error(&location, source))?;
            return Ok(Self { location, files: Box::new(files), directory: None });
        };
        fs::create_dir_all(&directory).map_err(|source| StoreError::Io { path: directory.clone(), source })?;
        let files = Box::new(Directory(directory.clone()));
        Ok(Self { location: location.to_owned(), files, directory: Some(directory) })
    }

    /// Opens a store that has bundles, so that a directory must exist.
    pub fn open_existing(
        location: &str,
        options: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, StoreError> {
        match local_directory(location) {
            Some(directory) if !directory.is_dir() => Err(StoreError::Empty { location: location.to_owned() }),
            _ => Self::open(location, options),
        }
    }

    /// Returns the location without the user, the password and the query of a URL.
    pub fn location(&self) -> &str {
        &self.location
    }

    /// Reads the pointer to the current bundle; none in an empty store.
    pub fn current(&self) -> Result<Option<Pointer>, StoreError> {
        let Some(found) = self.files.get(CURRENT).map_err(|source| self.failed(source))? else { return Ok(None) };
        let name = String::from_utf8_lossy(&found.bytes).trim().to_owned();
        check_name(&name)?;
        Ok(Some(Pointer { name, version: found.version }))
    }

    /// Lists the names of the bundles that have a manifest, in order.
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

    /// Reads a bundle's manifest and none of its other files.
    pub fn manifest(&self, name: &str) -> Result<Manifest, StoreError> {
        let text = self.manifest_bytes(name)?.ok_or_else(|| self.unknown(name))?;
        self.parse_manifest(name, &text)
    }

    /// Returns a local directory with the bundle's files: the store's own, or a copy in `cache`. [`Bundle::open`]
    /// verifies them.
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
        storage::create_private_directory(&partial).map_err(io(partial.clone()))?;
        for file in manifest.files.keys() {
            let path = format!("{name}/{file}");
            if !self.files.download(&path, &partial.join(file)).map_err(|source| self.failed(source))? {
                return Err(BundleError::Missing { path: PathBuf::from(path) }.into());
            }
        }
        storage::replace(&partial.join(MANIFEST), &text).map_err(io(partial.join(MANIFEST)))?;
        let _ = fs::remove_dir_all(&copy);
        storage::rename(&partial, &copy).map_err(io(copy.clone()))?;
        Ok(copy)
    }

    /// Removes the copies in `cache` of bundles for which `is_retained` returns false.
    pub fn drop_copies(&self, cache: &Path, is_retained: impl Fn(&str) -> bool) -> io::Result<()> {
        let entries = match fs::read_dir(cache) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            if !entry.file_name().to_str().is_some_and(&is_retained) {
                fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(())
    }

    /// Verifies a bundle, copies its files into the store, the manifest last, and makes it current. A bundle that the
    /// store has already is only made current. With `seen`, fails with [`StoreError::Moved`] if the pointer has
    /// changed since `seen` was read.
    pub fn publish(&self, bundle: &Path, seen: Option<Option<&Pointer>>) -> Result<Manifest, StoreError> {
        let manifest = Bundle::open(bundle)?.manifest;
        let name = &manifest.name;
        let path = bundle.join(MANIFEST);
        let text = read_regular(&path).map_err(|source| StoreError::Io { path, source })?;
        self.parse_manifest(name, &text)?;
        let taken = || StoreError::Taken { location: self.location.clone(), name: name.clone() };
        match self.manifest_bytes(name)? {
            Some(stored) if stored == text => {}
            Some(_) => return Err(taken()),
            None => {
                for file in manifest.files.keys() {
                    let uploaded = self.files.upload(&bundle.join(file), &format!("{name}/{file}"));
                    uploaded.map_err(|source| self.failed(source))?;
                }
                if !self.put(&format!("{name}/{MANIFEST}"), &text, &Condition::Absent)? {
                    return Err(taken());
                }
            }
        }
        self.point_to(name, seen)?;
        Ok(manifest)
    }

    /// Makes a bundle of the store current; `seen` has the meaning of [`Store::publish`].
    pub fn point_to(&self, name: &str, seen: Option<Option<&Pointer>>) -> Result<(), StoreError> {
        self.manifest_bytes(name)?.ok_or_else(|| self.unknown(name))?;
        let condition = match seen {
            None => Condition::Always,
            Some(None) => Condition::Absent,
            Some(Some(pointer)) => Condition::Unchanged(pointer.version.clone()),
        };
        match self.put(CURRENT, format!("{name}\n").as_bytes(), &condition)? {
            true => Ok(()),
            false => Err(StoreError::Moved { location: self.location.clone() }),
        }
    }

    /// Removes bundles, the oldest first, except the current one and the `retained` newest others. Returns the names of
    /// the removed bundles. Skips bundles without a readable manifest.
    pub fn prune(&self, retained: usize) -> Result<Vec<String>, StoreError> {
        let current = self.current()?.ok_or_else(|| StoreError::Empty { location: self.location.clone() })?;
        let mut others = Vec::new();
        for name in self.names()?.into_iter().filter(|name| *name != current.name) {
            match self.manifest(&name) {
                Ok(manifest) => others.push((manifest.created_ms, name)),
                Err(StoreError::Manifest { .. } | StoreError::Unknown { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        others.sort_unstable();
        others.truncate(others.len().saturating_sub(retained));
        let mut removed = Vec::new();
        for (_, name) in others {
            // It may have become current since the first check.
            if self.current()?.is_none_or(|current| current.name != name) {
                self.files.remove(&name, MANIFEST).map_err(|source| self.failed(source))?;
                removed.push(name);
            }
        }
        Ok(removed)
    }

    fn manifest_bytes(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        check_name(name)?;
        let found = self.files.get(&format!("{name}/{MANIFEST}")).map_err(|source| self.failed(source))?;
        Ok(found.map(|found| found.bytes))
    }

    /// Parses a manifest and checks that it names only plain files and that its name is that of the directory.
    fn parse_manifest(&self, name: &str, text: &[u8]) -> Result<Manifest, StoreError> {
        check_name(name)?;
        let failed =
            |problem: String| StoreError::Manifest { location: self.location.clone(), name: name.to_owned(), problem };
        let manifest = Manifest::parse(text).map_err(|error| failed(error.to_string()))?;
        if manifest.name != name {
            return Err(failed(format!("the manifest belongs to bundle `{}`", manifest.name)));
        }
        match manifest.files.keys().find(|file| check_name(file).is_err()) {
            Some(file) => Err(failed(format!("the manifest has `{file}`, which is not a plain file name"))),
            None => Ok(manifest),
        }
    }

    fn put(&self, path: &str, bytes: &[u8], condition: &Condition) -> Result<bool, StoreError> {
        self.files.put(path, bytes, condition).map_err(|source| self.failed(source))
    }

    fn failed(&self, source: Failure) -> StoreError {
        access_error(&self.location, source)
    }

    fn unknown(&self, name: &str) -> StoreError {
        StoreError::Unknown { location: self.location.clone(), name: name.to_owned() }
    }
}

/// Returns the error of an access, whose causes may state the URL.
fn access_error(location: &str, source: Failure) -> StoreError {
    let text = format_error_chain(&*source);
    let masked = mask_urls(&text);
    let source = if masked == text { source } else { masked.into() };
    StoreError::Access { location: location.to_owned(), source }
}

/// Checks the name of a bundle or of one of its files.
fn check_name(name: &str) -> Result<(), StoreError> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let starts_well = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    match starts_well && name.len() <= NAME_BYTES_MAX && name.bytes().all(is_plain) && name != CURRENT {
        true => Ok(()),
        false => Err(StoreError::Name { name: name.chars().take(NAME_BYTES_MAX).collect() }),
    }
}

/// Returns the directory of a local store; `None` for a URL of a remote one.
fn local_directory(location: &str) -> Option<PathBuf> {
    match location.split_once("://") {
        None => Some(PathBuf::from(location)),
        Some(("file", path)) => Some(PathBuf::from(path)),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lodestone_pipeline::ranking::QueryEncoderKind;

    const KIND: QueryEncoderKind = QueryEncoderKind::HashedTerms { bucket_count: 1 };

    /// Checks the contract of [`Files`].
    fn check_contract(files: &dyn Files) {
        assert!(files.get("current").unwrap().is_none() && files.get("a/b").unwrap().is_none());
        assert!(files.directories().unwrap().is_empty());
        assert!(!files.put("current", b"no", &Condition::Unchanged("never".to_owned())).unwrap_or(false));
        assert!(files.put("current", b"one", &Condition::Absent).unwrap());
        assert!(!files.put("current", b"two", &Condition::Absent).unwrap(), "it exists");
        let one = files.get("current").unwrap().unwrap();
        assert_eq!(one.bytes, b"one");
        assert!(files.put("current", b"two", &Condition::Unchanged(one.version.clone())).unwrap());
        assert!(!files.put("current", b"three", &Condition::Unchanged(one.version)).unwrap(), "it changed");
        assert!(files.put("current", b"four", &Condition::Always).unwrap());
        assert_eq!(files.get("current").unwrap().unwrap().bytes, b"four");
        let work = tempfile::tempdir().unwrap();
        let (from, to) = (work.path().join("from"), work.path().join("to"));
        // More than one part of a multipart upload.
        let large: Vec<u8> = (0..12_000_000_u32).map(|n| (n % 251) as u8).collect();
        fs::write(&from, &large).unwrap();
        files.upload(&from, "bundle/large").unwrap();
        files.upload(&work.path().join("none"), "bundle/none").unwrap_err();
        assert!(!files.download("bundle/none", &to).unwrap() && !to.exists());
        assert!(files.download("bundle/large", &to).unwrap());
        assert!(fs::read(&to).unwrap() == large);
        assert!(files.put("bundle/file", b"five", &Condition::Always).unwrap());
        assert_eq!(files.directories().unwrap(), ["bundle"]);
        files.remove("bundle", "file").unwrap();
        assert!(files.directories().unwrap().is_empty() && files.get("bundle/large").unwrap().is_none());
        assert_eq!(files.get("current").unwrap().unwrap().bytes, b"four");
    }

    #[test]
    fn a_directory_fulfils_the_contract() {
        let location = tempfile::tempdir().unwrap();
        check_contract(&Directory(location.path().to_owned()));
    }

    fn in_memory() -> Remote {
        let objects = std::sync::Arc::new(object_store::memory::InMemory::new());
        Remote::new(objects, object_store::path::Path::from("shop/bundles")).unwrap()
    }

    #[test]
    fn an_object_store_fulfils_the_contract() {
        check_contract(&in_memory());
    }

    #[test]
    fn copies_of_an_object_store_are_complete_and_removed_unless_retained() {
        let cache = tempfile::tempdir().unwrap();
        let store = Store { location: "memory".to_owned(), files: Box::new(in_memory()), directory: None };
        for name in ["a", "b"] {
            let mut manifest = Manifest::new(name.to_owned(), 0, 0, 50, KIND);
            manifest.add_file("words", b"words");
            store
                .put(&format!("{name}/{MANIFEST}"), &serde_json::to_vec(&manifest).unwrap(), &Condition::Absent)
                .unwrap();
            let missing = store.fetch(name, cache.path());
            assert!(matches!(missing, Err(StoreError::Bundle(BundleError::Missing { .. }))), "{missing:?}");
            store.put(&format!("{name}/words"), b"words", &Condition::Absent).unwrap();
            let copy = store.fetch(name, cache.path()).unwrap();
            assert_eq!(fs::read(copy.join("words")).unwrap(), b"words");
        }
        store.drop_copies(cache.path(), |name| name == "b").unwrap();
        let left: Vec<_> = fs::read_dir(cache.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["b"]);
        store.drop_copies(&cache.path().join("none"), |_| true).unwrap();
    }

    #[test]
    fn pruning_retains_the_current_and_the_newest_bundles() {
        let location = tempfile::tempdir().unwrap();
        let store = Store::open(location.path().to_str().unwrap(), []).unwrap();
        assert!(matches!(store.prune(0), Err(StoreError::Empty { .. })));
        // By time, not by name.
        for (name, created_ms) in [("d", 1), ("a", 2), ("c", 3), ("b", 4)] {
            fs::create_dir(location.path().join(name)).unwrap();
            let text = serde_json::to_string(&Manifest::new(name.to_owned(), created_ms, 0, 50, KIND)).unwrap();
            fs::write(location.path().join(name).join(MANIFEST), text).unwrap();
        }
        fs::create_dir(location.path().join("other")).unwrap();
        fs::write(location.path().join("other").join(MANIFEST), "{").unwrap();
        store.point_to("a", None).unwrap();
        assert!(store.prune(3).unwrap().is_empty());
        assert_eq!(store.prune(1).unwrap(), ["d", "c"]);
        assert_eq!(store.names().unwrap(), ["a", "b", "other"]);
        assert_eq!(store.prune(0).unwrap(), ["b"]);
        assert!(store.manifest("a").is_ok());
    }

    #[test]
    fn messages_have_no_secrets_of_the_location() {
        for scheme in ["s3", "unknown", "not a scheme"] {
            let shown = match Store::open(&format!("{scheme}://user:password@bucket/shop?sig=secret"), []) {
                Ok(store) => store.location().to_owned(),
                Err(error) => format_error_chain(&error),
            };
            assert!(shown.contains(&format!("{scheme}://***@bucket/shop?***")), "{shown}");
            assert!(["user", "password", "secret"].iter().all(|secret| !shown.contains(secret)), "{shown}");
        }
    }

    #[test]
    fn names_that_are_paths_are_refused() {
        let location = tempfile::tempdir().unwrap();
        let store = Store::open(location.path().to_str().unwrap(), []).unwrap();
        for name in ["", "..", "../x", "a/b", ".hidden", "current", "a b", &"x".repeat(129)] {
            assert!(matches!(store.manifest(name), Err(StoreError::Name { .. })), "{name}");
        }
        assert!(matches!(store.manifest("unknown"), Err(StoreError::Unknown { .. })));
        assert!(store.current().unwrap().is_none() && store.names().unwrap().is_empty());
        fs::create_dir(location.path().join("x")).unwrap();
        assert!(store.names().unwrap().is_empty(), "a directory without a manifest is not a bundle");
        let text = serde_json::to_string(&Manifest::new("y".to_owned(), 0, 0, 50, KIND)).unwrap();
        fs::write(location.path().join("x").join(MANIFEST), text).unwrap();
        assert!(matches!(store.manifest("x"), Err(StoreError::Manifest { .. })));
        fs::write(location.path().join("x").join(MANIFEST), r#"{"format": 5, "person_encoder": "x"}"#).unwrap();
        let text = store.manifest("x").unwrap_err().to_string();
        assert!(text.contains("has version 5") && text.contains("train again"), "{text}");
    }
}
