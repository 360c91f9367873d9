//! API keys: who may call which method on which catalogue.
//!
//! A key is 256 random bits, so its SHA-256 is stored and not a slow hash such as Argon2: slowness protects passwords
//! that somebody can guess, and nobody guesses 2²⁵⁶ keys. A slow hash would cost every call milliseconds.
use super::{
    CATALOG_METADATA, DEFAULT_CATALOG,
    guard::code_name,
    status,
    transport::{is_client_streaming, rpc_of},
};
use http::{HeaderMap, Request, Response, header::AUTHORIZATION};
use http_body::Frame;
use hyper::body::Bytes;
use lodestone_core::{ids::check_name, toml_error, units::UnixMillis};
use lodestone_pipeline::bundle::read_regular_up_to;
use lodestone_telemetry::Metrics;
use parking_lot::{Mutex, RwLock};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::{
    collections::{BTreeSet, HashMap},
    convert::Infallible,
    future::Future,
    io,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};
use subtle::ConstantTimeEq;
use tonic::{Status, body::Body};
use tower::Service;

/// The prefix of hashes: the algorithm.
const HASH_PREFIX: &str = "sha256:";
/// The prefix of keys, by which scanners of source code recognise them.
const KEY_PREFIX: &str = "lodestone_";
const KEY_BYTES: usize = 32;
/// Greatest size of a key file.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// What a key may do. Roles do not include each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Search, Recommend, Rank, Suggest.
    Rank,
    /// Write events.
    Events,
    /// Read and write items and declarations of attributes.
    Catalog,
    /// Rules, synonyms, serving configurations.
    Rules,
    /// Scores of users, incentives and their campaigns.
    Loyalty,
    /// Personal data: logged answers with their users.
    Privacy,
    /// Bundles: activation, canary, rollback.
    Admin,
}

impl Role {
    pub const ALL: [Self; 7] =
        [Self::Rank, Self::Events, Self::Catalog, Self::Rules, Self::Loyalty, Self::Privacy, Self::Admin];

    /// Returns the name in key files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rank => "rank",
            Self::Events => "events",
            Self::Catalog => "catalog",
            Self::Rules => "rules",
            Self::Loyalty => "loyalty",
            Self::Privacy => "privacy",
            Self::Admin => "admin",
        }
    }
}

/// What a method requires.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Requirement {
    /// Nothing: load balancers have no key.
    Nothing,
    /// A valid key of any role.
    AnyKey,
    Role(Role),
}

/// The requirement of every method by service. A test compares it with the descriptors of the proto files.
const METHODS: &[(&str, &[&str], Requirement)] = {
    use Requirement::{AnyKey, Nothing, Role as Of};
    &[
        ("lodestone.v1.RankingService", &["Search", "Recommend", "Rank", "Suggest"], Of(Role::Rank)),
        ("lodestone.v1.EventService", &["WriteEvents", "StreamEvents"], Of(Role::Events)),
        // Its responses have the users of answers.
        ("lodestone.v1.ExplainService", &["ReplayAnswer"], Of(Role::Privacy)),
        (
            "lodestone.v1.CatalogService",
            &[
                "UpsertItems",
                "UpdateItems",
                "SetInventory",
                "DeleteItems",
                "ImportItems",
                "PurgeItems",
                "ListItems",
                "GetItem",
                "DeclareAttribute",
                "DeleteAttributeDeclaration",
                "ListAttributes",
            ],
            Of(Role::Catalog),
        ),
        (
            "lodestone.v1.RuleService",
            &["CreateRule", "GetRule", "ListRules", "UpdateRule", "DeleteRule", "PreviewRule"],
            Of(Role::Rules),
        ),
        (
            "lodestone.v1.SynonymService",
            &["CreateSynonymSet", "GetSynonymSet", "ListSynonymSets", "UpdateSynonymSet", "DeleteSynonymSet"],
            Of(Role::Rules),
        ),
        (
            "lodestone.v1.ServingConfigService",
            &[
                "CreateServingConfig",
                "GetServingConfig",
                "ListServingConfigs",
                "UpdateServingConfig",
                "DeleteServingConfig",
                "PreviewServingConfig",
            ],
            Of(Role::Rules),
        ),
        (
            "lodestone.v1.IncentiveService",
            &[
                "CreateIncentiveCampaign",
                "GetIncentiveCampaign",
                "ListIncentiveCampaigns",
                "UpdateIncentiveCampaign",
                "DeleteIncentiveCampaign",
                "DecideIncentive",
            ],
            Of(Role::Loyalty),
        ),
        ("lodestone.v1.LoyaltyService", &["GetLoyalty", "BatchGetLoyalty", "ListAtRisk"], Of(Role::Loyalty)),
        (
            "lodestone.v1.ModelService",
            &["ListBundles", "ActivateBundle", "RollbackBundle", "SetShadow", "SetCanary"],
            Of(Role::Admin),
        ),
        ("grpc.health.v1.Health", &["Check", "Watch"], Nothing),
        ("grpc.reflection.v1.ServerReflection", &["ServerReflectionInfo"], AnyKey),
        ("grpc.reflection.v1alpha.ServerReflection", &["ServerReflectionInfo"], AnyKey),
    ]
};

/// Returns the requirement of a path, such as `/lodestone.v1.RankingService/Search`. An unknown method needs a key: the
/// response to it says that it does not exist.
fn requirement(path: &str) -> Requirement {
    let Some((service, method)) = path.strip_prefix('/').and_then(|path| path.split_once('/')) else {
        return Requirement::AnyKey;
    };
    let found = METHODS.iter().find(|(name, methods, _)| *name == service && methods.contains(&method));
    found.map_or(Requirement::AnyKey, |(_, _, requirement)| *requirement)
}

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
        let hash = format!("{HASH_PREFIX}{}", hex(&Sha256::digest(&secret)));
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
}

struct Key {
    name: String,
    hash: [u8; 32],
    roles: BTreeSet<Role>,
    catalogs: Option<BTreeSet<String>>,
    expires: Option<UnixMillis>,
}

/// The keys by the first bytes of their hashes. Nobody can choose a key for a prefix of a hash that is of any use, so the
/// time of this lookup reveals nothing; the rest is compared in constant time.
type Keys = HashMap<[u8; 8], Key>;

/// The SHA-256 of a key.
type KeyHash = [u8; 32];

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
    keys: RwLock<Arc<Keys>>,
    seen: Mutex<Seen>,
}

/// The contents of a key file.
#[derive(Default)]
struct Seen {
    /// Of the last read. A content is loaded when two reads return it: between them nothing wrote the file, so it is not
    /// the first part of a file that is being written.
    read: String,
    /// Of the last attempt to load it, so that each content is reported once.
    attempted: String,
}

impl std::fmt::Debug for ApiKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiKeys").field("path", &self.path).finish_non_exhaustive()
    }
}

/// Checks the content of a key file, which `flag` names. Returns the names of its keys.
pub fn check_key_file(flag: &'static str, path: &Path, text: &str) -> Result<BTreeSet<String>, KeyFileError> {
    match parse(text) {
        Ok(keys) => Ok(keys.into_values().map(|key| key.name).collect()),
        Err(problem) => Err(KeyFileError { flag, path: path.to_owned(), problem }),
    }
}

/// Reads the text of a key file, which must be a regular file.
pub fn read_key_file(path: &Path) -> io::Result<String> {
    let bytes = read_regular_up_to(path, FILE_BYTES_MAX)?;
    String::from_utf8(bytes).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "is not UTF-8"))
}

impl ApiKeys {
    /// Reads a key file. A file without keys is refused, because the server would answer nobody.
    pub fn open(path: &Path) -> Result<Self, KeyFileError> {
        let failed = |problem| KeyFileError { flag: "--api-keys", path: path.to_owned(), problem };
        let text = read(path).map_err(failed)?;
        let keys = parse_some(&text).map_err(failed)?;
        let seen = Mutex::new(Seen { read: text.clone(), attempted: text });
        Ok(Self { path: path.to_owned(), keys: RwLock::new(Arc::new(keys)), seen })
    }

    /// Uses the file if it has changed and two calls have read the same content. With an invalid file, or one without
    /// keys, the former keys stay.
    pub(super) fn reload(&self) {
        let text = match read(&self.path) {
            Ok(text) => text,
            Err(problem) => {
                let path = self.path.display();
                return tracing::error!(%path, problem, "cannot read the API keys again; the former ones stay");
            }
        };
        let mut seen = self.seen.lock();
        if seen.read != text {
            seen.read = text;
            return;
        }
        if seen.attempted == text {
            return;
        }
        match parse_some(&text) {
            Ok(keys) => {
                tracing::info!(count = keys.len(), "loaded changed API keys");
                *self.keys.write() = Arc::new(keys);
            }
            Err(problem) => tracing::error!(problem, "the changed API keys are invalid; the former ones stay"),
        }
        seen.attempted = text;
    }

    /// Checks that the key of a call may call a method on a catalogue. Returns its hash; none if the method needs no key.
    fn check(&self, path: &str, headers: &HeaderMap, now: UnixMillis) -> Result<Option<KeyHash>, Status> {
        let requirement = requirement(path);
        if requirement == Requirement::Nothing {
            return Ok(None);
        }
        let sent = headers.get(AUTHORIZATION).ok_or_else(status::api_key_missing)?;
        let secret = bearer(sent.as_bytes()).ok_or_else(status::api_key_missing)?;
        let hash: KeyHash = Sha256::digest(secret).into();
        let keys = self.keys.read().clone();
        let key = valid_key(&keys, &hash, now).ok_or_else(status::api_key_invalid)?;
        let Requirement::Role(role) = requirement else { return Ok(Some(hash)) };
        // The catalogue is checked before it is looked for, so that the status does not depend on its existence.
        let catalog = headers.get(CATALOG_METADATA).map(|value| value.as_bytes()).filter(|name| !name.is_empty());
        let catalog = catalog.unwrap_or(DEFAULT_CATALOG.as_bytes());
        let may_use = |catalogs: &BTreeSet<String>| catalogs.iter().any(|name| name.as_bytes() == catalog);
        if !key.catalogs.as_ref().is_none_or(may_use) {
            tracing::debug!(key = key.name, "an API key may not use a catalogue");
            return Err(status::catalog_denied());
        }
        if !key.roles.contains(&role) {
            tracing::debug!(key = key.name, path, "an API key lacks a role");
            return Err(status::role_missing(role.name()));
        }
        Ok(Some(hash))
    }

    /// Returns true if the key with a hash is in the file and has not expired.
    fn is_valid(&self, hash: &KeyHash, now: UnixMillis) -> bool {
        valid_key(&self.keys.read(), hash, now).is_some()
    }
}

/// The body of a stream of requests. Its key is checked again whenever a part of it arrives, because streams last for
/// hours.
struct AuthorizedBody {
    inner: Body,
    keys: Arc<ApiKeys>,
    hash: KeyHash,
}

impl http_body::Body for AuthorizedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        let frame = ready!(http_body::Body::poll_frame(Pin::new(&mut this.inner), context));
        let is_refused = matches!(&frame, Some(Ok(_))) && !this.keys.is_valid(&this.hash, UnixMillis::now());
        Poll::Ready(if is_refused { Some(Err(status::api_key_invalid())) } else { frame })
    }

    fn is_end_stream(&self) -> bool {
        http_body::Body::is_end_stream(&self.inner)
    }

    fn size_hint(&self) -> http_body::SizeHint {
        http_body::Body::size_hint(&self.inner)
    }
}

/// Returns the key in the header `authorization: Bearer KEY`.
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, key) = value.split_at_checked(b"Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then_some(key.trim_ascii()).filter(|key| !key.is_empty())
}

fn read(path: &Path) -> Result<String, String> {
    read_key_file(path).map_err(|error| format!("cannot be read: {error}; check the path and permissions"))
}

/// Parses a file for a server, which would answer nobody without keys.
fn parse_some(text: &str) -> Result<Keys, String> {
    let keys = parse(text)?;
    match keys.is_empty() {
        true => Err("has no keys; add one with `lodestone key create`".to_owned()),
        false => Ok(keys),
    }
}

fn parse(text: &str) -> Result<Keys, String> {
    let file: KeyFile = toml::from_str(text).map_err(|error| toml_error::one_line(text, &error))?;
    let (mut keys, mut names) = (Keys::new(), BTreeSet::new());
    for entry in file.keys {
        let name = entry.name.clone();
        let key = key(entry).map_err(|problem| format!("key `{name}`: {problem}"))?;
        if !names.insert(name.clone()) {
            return Err(format!("key `{name}`: there are two keys of this name; rename or remove one"));
        }
        let prefix = *key.hash.first_chunk().expect("a hash has more than 8 bytes");
        if let Some(other) = keys.insert(prefix, key) {
            return Err(format!(
                "key `{name}`: has the hash of key `{}`; every name needs a key of its own",
                other.name
            ));
        }
    }
    Ok(keys)
}

fn key(entry: KeyEntry) -> Result<Key, String> {
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
    Ok(Key { name: entry.name, hash, roles: entry.roles, catalogs: entry.catalogs, expires: expires.transpose()? })
}

/// Checks the name of a key.
pub fn check_key_name(name: &str) -> Result<(), String> {
    check_name(name).map_err(|error| format!("name: {error}"))
}

/// The layer that refuses calls without a key that may make them. Without keys it passes every call.
#[derive(Clone)]
pub(super) struct Authorization<S> {
    inner: S,
    keys: Option<Arc<ApiKeys>>,
    metrics: Metrics,
}

impl<S> Authorization<S> {
    pub(super) fn new(inner: S, keys: Option<Arc<ApiKeys>>, metrics: Metrics) -> Self {
        Self { inner, keys, metrics }
    }
}

impl<S> Service<Request<Body>> for Authorization<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        if let Some(keys) = &self.keys {
            let path = request.uri().path();
            let hash = match keys.check(path, request.headers(), UnixMillis::now()) {
                Ok(hash) => hash,
                Err(status) => {
                    self.metrics.refused(rpc_of(path), code_name(status.code()));
                    return Box::pin(std::future::ready(Ok(status.into_http())));
                }
            };
            if let Some(hash) = hash.filter(|_| is_client_streaming(path)) {
                let keys = keys.clone();
                request = request.map(|inner| Body::new(AuthorizedBody { inner, keys, hash }));
            }
            // No service and no log needs the secret.
            request.headers_mut().remove(AUTHORIZATION);
        }
        Box::pin(self.inner.call(request))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::proto::DESCRIPTORS;
    use prost::Message;
    use std::{collections::BTreeMap, fs};
    use tonic::Code;
    use tonic_types::StatusExt;

    const SEARCH: &str = "/lodestone.v1.RankingService/Search";

    fn keys(text: &str) -> Result<Keys, String> {
        parse(text)
    }

    fn api_keys(text: &str) -> ApiKeys {
        let keys = RwLock::new(Arc::new(keys(text).unwrap()));
        ApiKeys { path: PathBuf::new(), keys, seen: Mutex::default() }
    }

    fn headers(authorization: &str, catalog: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        if !authorization.is_empty() {
            headers.insert(AUTHORIZATION, authorization.parse().unwrap());
        }
        headers.insert(CATALOG_METADATA, catalog.parse().unwrap());
        headers
    }

    #[test]
    fn the_table_has_exactly_the_methods_of_the_descriptors() {
        let mut methods = BTreeMap::new();
        use tonic_reflection::pb::{v1, v1alpha};
        let of_server = [tonic_health::pb::FILE_DESCRIPTOR_SET, v1::FILE_DESCRIPTOR_SET, v1alpha::FILE_DESCRIPTOR_SET];
        let sets = of_server.into_iter().chain([DESCRIPTORS]);
        let sets: Vec<_> = sets.map(|bytes| prost_types::FileDescriptorSet::decode(bytes).unwrap()).collect();
        for file in sets.iter().flat_map(|set| &set.file) {
            for service in &file.service {
                let name = format!("{}.{}", file.package(), service.name());
                let names = service.method.iter().map(|method| method.name().to_owned());
                methods.insert(name, names.collect::<BTreeSet<String>>());
            }
        }
        let texts = |names: &[&str]| names.iter().map(ToString::to_string).collect::<BTreeSet<String>>();
        let listed: BTreeMap<_, _> = METHODS.iter().map(|(name, names, _)| (name.to_string(), texts(names))).collect();
        assert_eq!(listed, methods);
        for role in Role::ALL {
            assert!(METHODS.iter().any(|(_, _, of)| *of == Requirement::Role(role)), "{role:?} allows nothing");
        }
    }

    #[test]
    fn a_key_may_call_the_methods_of_its_roles_on_its_catalogues_until_it_expires() {
        let (all, shoes) = (NewKey::of([1; 32]), NewKey::of([2; 32]));
        let file = format!(
            "[[keys]]\nname = \"all\"\nhash = \"{}\"\nroles = [\"rank\", \"admin\"]\n\
             [[keys]]\nname = \"shoes\"\nhash = \"{}\"\nroles = [\"rank\"]\ncatalogs = [\"shoes\"]\n\
             expires = 2030-01-01T00:00:00+01:00\n",
            all.hash, shoes.hash
        );
        let keys = api_keys(&file);
        let end = UnixMillis(1_893_452_400_000);
        let before = UnixMillis(end.0 - 1);
        let denied = Code::PermissionDenied;
        let unknown = Code::Unauthenticated;
        let bearer = |key: &NewKey| format!("Bearer {}", key.secret);
        for (path, authorization, catalog, now, expected) in [
            (SEARCH, bearer(&all), "", end, Ok(())),
            (SEARCH, bearer(&all), "shoes", end, Ok(())),
            (SEARCH, format!("bearer  {}", all.secret), "unknown", end, Ok(())),
            ("/lodestone.v1.ModelService/SetCanary", bearer(&all), "", end, Ok(())),
            ("/lodestone.v1.EventService/WriteEvents", bearer(&all), "", end, Err((denied, "ROLE_MISSING"))),
            ("/lodestone.v1.ModelService/SetCanary", bearer(&shoes), "shoes", before, Err((denied, "ROLE_MISSING"))),
            (SEARCH, bearer(&shoes), "shoes", before, Ok(())),
            (SEARCH, bearer(&shoes), "shoes", end, Err((unknown, "API_KEY_INVALID"))),
            (SEARCH, bearer(&shoes), "", before, Err((denied, "CATALOG_DENIED"))),
            (SEARCH, bearer(&shoes), "unknown", before, Err((denied, "CATALOG_DENIED"))),
            (SEARCH, bearer(&NewKey::of([3; 32])), "shoes", before, Err((unknown, "API_KEY_INVALID"))),
            (SEARCH, all.secret.clone(), "", end, Err((unknown, "API_KEY_MISSING"))),
            (SEARCH, format!("Basic {}", all.secret), "", end, Err((unknown, "API_KEY_MISSING"))),
            (SEARCH, "Bearer ".to_owned(), "", end, Err((unknown, "API_KEY_MISSING"))),
            (SEARCH, String::new(), "", end, Err((unknown, "API_KEY_MISSING"))),
            ("/grpc.health.v1.Health/Check", String::new(), "", end, Ok(())),
            ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", bearer(&shoes), "", before, Ok(())),
            (
                "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
                String::new(),
                "",
                before,
                Err((unknown, "API_KEY_MISSING")),
            ),
            ("/lodestone.v1.RankingService/Unknown", String::new(), "", before, Err((unknown, "API_KEY_MISSING"))),
            ("//", String::new(), "", before, Err((unknown, "API_KEY_MISSING"))),
        ] {
            let checked = keys.check(path, &headers(&authorization, catalog), now);
            let found = checked.map(|_| ()).map_err(|status| {
                assert!(!status.message().contains("unknown`") && !status.message().contains(&all.secret));
                (status.code(), status.get_error_details().error_info().unwrap().reason.clone())
            });
            let expected = expected.map_err(|(code, reason): (Code, &str)| (code, reason.to_owned()));
            assert_eq!(found, expected, "{path} {catalog}");
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
        let keys = ApiKeys::open(&path).unwrap();
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
        let error = ApiKeys::open(&path).unwrap_err().to_string();
        assert!(error.starts_with("--api-keys ") && error.contains("not a regular file"), "{error}");
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

    #[test]
    fn names_of_roles_are_those_of_the_file_and_of_the_command_line() {
        for role in Role::ALL {
            let flag = clap::ValueEnum::to_possible_value(&role).unwrap();
            assert_eq!(flag.get_name(), role.name());
            let parsed: BTreeMap<String, Role> = toml::from_str(&format!("role = \"{}\"", role.name())).unwrap();
            assert_eq!(parsed["role"], role);
        }
    }
}
