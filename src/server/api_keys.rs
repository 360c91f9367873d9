//! API keys in a file.
//!
//! A key is 256 random bits, so its SHA-256 is stored and not a slow hash such as Argon2: slowness protects passwords
//! that somebody can guess, and nobody guesses 2²⁵⁶ keys. A slow hash would cost every call milliseconds.
use super::{
    access::Role,
    client::{Client, ClientKind, ClientLimits, Usage},
    watched_text::WatchedText,
};
use lodestone_core::{ids::check_name, toml_error, units::UnixMillis};
use lodestone_pipeline::bundle::read_regular_text;
use parking_lot::{Mutex, RwLock};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::{
    collections::{BTreeSet, HashMap},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};
use subtle::ConstantTimeEq;

/// The prefix of hashes: the algorithm.
const HASH_PREFIX: &str = "sha256:";
/// The prefix of keys, by which scanners of source code recognise them.
pub(super) const KEY_PREFIX: &str = "lodestone_";
const KEY_BYTES: usize = 32;
/// Greatest size of a key file.
const FILE_BYTES_MAX: u64 = 16 << 20;
/// Keys whose names are labels of metrics: the first of the file. The others have [`OTHER_LABEL`] in common.
const LABELS_MAX: usize = 1000;
const OTHER_LABEL: &str = "other";

/// A new key, which is not stored.
pub struct NewKey {
    /// The key for clients.
    pub secret: String,
    /// Its hash for key files.
    pub hash: String,
}

impl NewKey {
    /// Returns the key of random bytes.
    pub fn of(random: [u8; KEY_BYTES]) -> Self {
        let secret = format!("{KEY_PREFIX}{}", hex(&random));
        let hash = format!("{HASH_PREFIX}{:x}", Sha256::digest(&secret));
        Self { secret, hash }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A key file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyFile {
    #[serde(default)]
    keys: Vec<KeyEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyEntry {
    name: String,
    hash: String,
    roles: BTreeSet<Role>,
    /// None: all.
    catalogs: Option<BTreeSet<String>>,
    expires: Option<toml::value::Datetime>,
    requests_per_second: Option<f64>,
    burst: Option<u32>,
    changes_per_day: Option<u64>,
}

struct Key {
    hash: KeyHash,
    expires: Option<UnixMillis>,
    client: Arc<Client>,
}

/// The keys by the first bytes of their hashes. Nobody can choose a key for a prefix of a hash that is of any use, so the
/// time of this lookup reveals nothing; the rest is compared in constant time.
type Keys = HashMap<[u8; 8], Key>;

/// The SHA-256 of a key.
pub(super) type KeyHash = [u8; 32];

/// Returns the key with a hash, if it has not expired.
fn valid_key<'k>(keys: &'k Keys, hash: &KeyHash, now: UnixMillis) -> Option<&'k Key> {
    let key = keys.get(&hash[..8]).filter(|key| bool::from(key.hash.ct_eq(hash)))?;
    key.expires.is_none_or(|expires| now < expires).then_some(key)
}

/// The reason why a key file cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{flag} {path}: {problem}")]
pub struct KeyFileError {
    flag: &'static str,
    path: PathBuf,
    problem: String,
}

/// The keys of a file.
pub struct ApiKeys {
    path: PathBuf,
    /// Of keys without limits of their own.
    limits: ClientLimits,
    keys: RwLock<Arc<Keys>>,
    watched: Mutex<WatchedText>,
}

impl std::fmt::Debug for ApiKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiKeys").field("path", &self.path).finish_non_exhaustive()
    }
}

/// Checks the content of a key file, which `flag` names. Returns the names of its keys.
pub fn check_key_file(flag: &'static str, path: &Path, text: &str) -> Result<BTreeSet<String>, KeyFileError> {
    match parse(text, ClientLimits::default(), &Keys::default()) {
        Ok(keys) => Ok(keys.into_values().map(|key| key.client.name.clone()).collect()),
        Err(problem) => Err(KeyFileError { flag, path: path.to_owned(), problem }),
    }
}

/// Reads the text of a key file, which must be a regular file.
pub fn read_key_file(path: &Path) -> io::Result<String> {
    read_regular_text(path, FILE_BYTES_MAX)
}

impl ApiKeys {
    /// Reads a key file. A file without keys is refused, because the server would answer nobody. `limits` are those of
    /// keys without limits of their own.
    pub fn open(path: &Path, limits: ClientLimits) -> Result<Self, KeyFileError> {
        let text = read(path).map_err(|problem| error_of(path, problem))?;
        let keys = parse_some(&text, limits, &Keys::default()).map_err(|problem| error_of(path, problem))?;
        let watched = Mutex::new(WatchedText::new(text));
        Ok(Self { path: path.to_owned(), limits, keys: RwLock::new(Arc::new(keys)), watched })
    }

    /// Uses the file if it has changed and two calls have read the same content. With an invalid file, or one without
    /// keys, the former keys stay. Keys that stay keep what they have used of their limits.
    pub(super) fn reload(&self) {
        let text = match read(&self.path) {
            Ok(text) => text,
            Err(problem) => {
                let error = error_of(&self.path, problem);
                return tracing::error!(%error, "cannot read the API keys again; the former ones stay");
            }
        };
        let mut watched = self.watched.lock();
        let Some(text) = watched.changed(text) else { return };
        let former = self.keys.read().clone();
        match parse_some(text, self.limits, &former) {
            Ok(keys) => {
                tracing::info!(count = keys.len(), "loaded changed API keys");
                *self.keys.write() = Arc::new(keys);
            }
            Err(problem) => {
                let error = error_of(&self.path, problem);
                tracing::error!(%error, "the changed API keys are invalid; the former ones stay");
            }
        }
    }

    /// Returns the hash and the client of a key that is in the file and has not expired.
    pub(super) fn authenticate(&self, secret: &[u8], now: UnixMillis) -> Option<(KeyHash, Arc<Client>)> {
        let hash: KeyHash = Sha256::digest(secret).into();
        let client = valid_key(&self.keys.read(), &hash, now)?.client.clone();
        Some((hash, client))
    }

    /// Returns true if the key with a hash is in the file and has not expired.
    pub(super) fn is_valid(&self, hash: &KeyHash, now: UnixMillis) -> bool {
        valid_key(&self.keys.read(), hash, now).is_some()
    }
}

/// Returns the error of the file of a server.
fn error_of(path: &Path, problem: String) -> KeyFileError {
    KeyFileError { flag: "--api-keys", path: path.to_owned(), problem }
}

fn read(path: &Path) -> Result<String, String> {
    read_key_file(path).map_err(|error| format!("cannot be read: {error}; check the path and permissions"))
}

/// Parses a file for a server, which would answer nobody without keys.
fn parse_some(text: &str, limits: ClientLimits, former: &Keys) -> Result<Keys, String> {
    let keys = parse(text, limits, former)?;
    match keys.is_empty() {
        true => Err("has no keys; add one with `lodestone key create`".to_owned()),
        false => Ok(keys),
    }
}

/// Parses a file. `former` are the keys whose usage goes on under the same name, also with a new secret.
fn parse(text: &str, limits: ClientLimits, former: &Keys) -> Result<Keys, String> {
    let file: KeyFile = toml::from_str(text).map_err(|error| toml_error::one_line(text, &error))?;
    let used: HashMap<&str, &Arc<Usage>> =
        former.values().map(|key| (key.client.name.as_str(), &key.client.usage)).collect();
    let (mut keys, mut names) = (Keys::new(), BTreeSet::new());
    for (index, entry) in file.keys.into_iter().enumerate() {
        let name = entry.name.clone();
        let label = if index < LABELS_MAX { name.as_str() } else { OTHER_LABEL };
        let usage = |own: ClientLimits| Usage::with_limits(used.get(name.as_str()).copied(), own.or(limits));
        let key = key(entry, label, usage).map_err(|problem| format!("key `{name}`: {problem}"))?;
        if !names.insert(name.clone()) {
            return Err(format!("key `{name}`: there are two keys of this name; rename or remove one"));
        }
        let prefix = *key.hash.first_chunk().expect("a hash has more than 8 bytes");
        if let Some(other) = keys.insert(prefix, key) {
            return Err(format!(
                "key `{name}`: has the hash of key `{}`; every name needs a key of its own",
                other.client.name
            ));
        }
    }
    Ok(keys)
}

fn key(entry: KeyEntry, label: &str, usage: impl FnOnce(ClientLimits) -> Arc<Usage>) -> Result<Key, String> {
    check_key_name(&entry.name)?;
    let digits = entry.hash.strip_prefix(HASH_PREFIX).filter(|digits| digits.len() == 64 && digits.is_ascii());
    let byte = |index: usize| u8::from_str_radix(&digits?[2 * index..2 * index + 2], 16).ok();
    let hash: Option<Vec<u8>> = (0..32).map(byte).collect();
    let hash = hash.and_then(|bytes| bytes.try_into().ok());
    let hash = hash.ok_or("hash: must be `sha256:` and 64 hexadecimal digits, as `lodestone key create` writes it")?;
    if entry.roles.is_empty() {
        return Err("roles: has no role, so the key may call nothing".to_owned());
    }
    if entry.catalogs.as_ref().is_some_and(BTreeSet::is_empty) {
        return Err("catalogs: is empty; leave it out for all catalogues".to_owned());
    }
    for name in entry.catalogs.iter().flatten() {
        check_name(name).map_err(|error| format!("catalogs: {error}"))?;
    }
    let expires = entry.expires.map(|at| {
        let parsed: Result<jiff::Timestamp, _> = at.to_string().parse();
        parsed
            .map(|at| UnixMillis(at.as_millisecond()))
            .map_err(|_| format!("expires: `{at}` has no time zone or no time; write it as 2027-01-31T00:00:00Z"))
    });
    let expires = expires.transpose()?;
    let limits = ClientLimits {
        requests_per_second: entry.requests_per_second,
        burst: entry.burst,
        changes_per_day: entry.changes_per_day,
    };
    let client = Client {
        name: entry.name,
        kind: ClientKind::ApiKey,
        label: label.to_owned(),
        roles: entry.roles,
        catalogs: entry.catalogs,
        usage: usage(limits.check()?),
    };
    Ok(Key { hash, expires, client: Arc::new(client) })
}

/// Checks the name of a key.
pub fn check_key_name(name: &str) -> Result<(), String> {
    check_name(name).map_err(|error| format!("name: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::observation::tests::Log;
    use lodestone_telemetry::Metrics;
    use std::fs;

    fn keys(text: &str) -> Result<Keys, String> {
        parse(text, ClientLimits::default(), &Keys::default())
    }

    #[test]
    fn errors_of_a_changed_file_name_the_flag_and_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keys.toml");
        let hash = NewKey::of([1; 32]).hash;
        fs::write(&path, format!("[[keys]]\nname = \"a\"\nhash = \"{hash}\"\nroles = [\"rank\"]\n")).unwrap();
        let keys = ApiKeys::open(&path, ClientLimits::default()).unwrap();
        let log = Log::default();
        let subscriber = tracing_subscriber::fmt().with_writer(log.clone()).with_ansi(false).finish();
        let _guard = tracing::subscriber::set_default(subscriber);
        fs::write(&path, "keys = 7").unwrap();
        keys.reload();
        keys.reload();
        fs::remove_file(&path).unwrap();
        keys.reload();
        let text = log.text();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{text}");
        for (line, part) in lines.into_iter().zip(["are invalid", "cannot be read"]) {
            assert!(line.contains(&format!("--api-keys {}: ", path.display())) && line.contains(part), "{line}");
        }
    }

    #[test]
    fn a_changed_file_is_used_when_two_reads_are_equal_and_it_has_keys() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keys.toml");
        let hashes = [[1; 32], [2; 32]].map(|random| KeyHash::from(Sha256::digest(NewKey::of(random).secret)));
        let entry = |name: &str, random| {
            let hash = NewKey::of(random).hash;
            format!("[[keys]]\nname = \"{name}\"\nhash = \"{hash}\"\nroles = [\"rank\"]\n")
        };
        let (first, both) = (entry("a", [1; 32]), [entry("a", [1; 32]), entry("b", [2; 32])].concat());
        fs::write(&path, &both).unwrap();
        let keys = ApiKeys::open(&path, ClientLimits::default()).unwrap();
        let valid = || hashes.map(|hash| keys.is_valid(&hash, UnixMillis(0)));
        let read = |text: &str| {
            fs::write(&path, text).unwrap();
            keys.reload();
            valid()
        };
        // A part of a file that is being written, and no keys at all.
        for text in [&*first, &both, "", "", "", "# no keys", "# no keys", "[[keys]", "[[keys]", &both, &both] {
            assert_eq!(read(text), [true, true], "{text}");
        }
        assert_eq!([read(&first), read(&first)], [[true, true], [true, false]]);
        let gone = format!("{first}expires = 1970-01-01T00:00:00Z\n");
        assert_eq!([read(&gone), read(&gone)], [[true, false], [false, false]], "the last key is revoked");
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        let error = ApiKeys::open(&path, ClientLimits::default()).unwrap_err().to_string();
        assert!(error.starts_with("--api-keys ") && error.contains("not a regular file"), "{error}");
    }

    #[test]
    fn a_reload_keeps_what_unchanged_keys_have_used() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keys.toml");
        let (metrics, now) = (Metrics::default(), UnixMillis(0));
        let entry = |name: &str, random: u8, more: &str| {
            let hash = NewKey::of([random; 32]).hash;
            format!("[[keys]]\nname = \"{name}\"\nhash = \"{hash}\"\nroles = [\"rank\"]\n{more}\n")
        };
        // So slow that no request is replenished while the test runs. The key `b` has the default limits.
        let slow = "requests_per_second = 0.001\nburst = 2";
        let default = ClientLimits { requests_per_second: Some(0.002), burst: Some(1), changes_per_day: None };
        let write = |files: &[String]| fs::write(&path, files.concat()).unwrap();
        write(&[entry("a", 1, slow), entry("b", 2, ""), entry("c", 3, slow)]);
        let keys = ApiKeys::open(&path, default).unwrap();
        let is_admitted = |random: u8| {
            let (_, client) = keys.authenticate(NewKey::of([random; 32]).secret.as_bytes(), now).unwrap();
            client.admit_request(&metrics).is_ok()
        };
        assert_eq!([1, 1, 1, 2, 2, 3].map(is_admitted), [true, true, false, true, false, true]);
        // Another role of `a`, and a new secret of `b`; other limits of `c` begin anew.
        let of_events = entry("a", 1, slow).replace("rank", "events");
        write(&[of_events, entry("b", 4, ""), entry("c", 3, &slow.replace("0.001", "0.0011"))]);
        keys.reload();
        keys.reload();
        assert!(keys.authenticate(NewKey::of([2; 32]).secret.as_bytes(), now).is_none());
        assert_eq!([1, 4, 3, 3, 3].map(is_admitted), [false, false, true, true, false]);
    }

    #[test]
    fn labels_of_metrics_are_bounded() {
        let entry = |index: usize| {
            let mut random = [0; 32];
            random[..8].copy_from_slice(&index.to_le_bytes());
            format!("[[keys]]\nname = \"k{index}\"\nhash = \"{}\"\nroles = [\"rank\"]\n", NewKey::of(random).hash)
        };
        let keys = keys(&(0..LABELS_MAX + 5).map(entry).collect::<String>()).unwrap();
        let labels: BTreeSet<&str> = keys.values().map(|key| key.client.label.as_str()).collect();
        assert_eq!(labels.len(), LABELS_MAX + 1);
        assert!(labels.contains("k999") && labels.contains(OTHER_LABEL) && !labels.contains("k1000"));
    }

    #[test]
    fn a_mistake_in_a_key_file_names_the_key_and_the_field() {
        let hash = NewKey::of([1; 32]).hash;
        let entry = |name: &str, more: &str| format!("[[keys]]\nname = \"{name}\"\nhash = \"{hash}\"\n{more}\n");
        let rank = "roles = [\"rank\"]";
        assert_eq!(keys(&entry("a", rank)).unwrap().len(), 1);
        for (text, part) in [
            ("[[keys]".to_owned(), "line 1:"),
            (entry("a", ""), "missing field `roles`"),
            (entry("a", "roles = []"), "key `a`: roles: has no role"),
            (entry("a", "roles = [\"root\"]"), "line 4: unknown variant `root`"),
            (entry("a", "roles = [\"rank\"]\nrequests_per_second = 0"), "key `a`: requests_per_second is 0;"),
            (entry("a", "roles = [\"rank\"]\nburst = 3"), "key `a`: burst needs requests_per_second"),
            (entry("a", "roles = [\"rank\"]\nchanges_per_day = -1"), "line 5: "),
            (entry("a", "roles = [\"rank\"]\nexpire = 1"), "line 5: unknown field `expire`"),
            (entry("a", "roles = [\"rank\"]\nexpires = 2030-01-01"), "key `a`: expires: `2030-01-01` has no"),
            (entry("a", "roles = [\"rank\"]\ncatalogs = []"), "key `a`: catalogs: is empty"),
            (entry("a", "roles = [\"rank\"]\ncatalogs = [\"A B\"]"), "key `a`: catalogs: "),
            (entry("a b", rank), "key `a b`: name: "),
            (entry("a", rank).replace("sha256:", "md5:"), "key `a`: hash: must be"),
            (entry("a", rank).replace(&hash, "sha256:é"), "key `a`: hash: must be"),
            ([entry("a", rank), entry("a", rank)].concat(), "two keys of this name"),
            ([entry("a", rank), entry("b", rank)].concat(), "key `b`: has the hash of key `a`"),
        ] {
            let problem = keys(&text).map(|keys| keys.len()).unwrap_err();
            assert!(problem.contains(part) && !problem.contains('\n'), "{part}: {problem}");
        }
    }
}
