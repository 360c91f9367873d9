//! JSON Web Tokens (RFC 7519) that an identity provider signs, and its JSON Web Key Set (RFC 7517).
//!
//! Only signatures with public keys are accepted: with a shared secret, whoever can verify a token can also make one.
use super::{
    access::Role,
    client::{Client, ClientKind, ClientLimits, Usage},
    watched_text::WatchedText,
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{
    Algorithm, DecodingKey, Validation, decode, decode_header,
    errors::ErrorKind,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyOperations, PublicKeyUse},
};
use lodestone_core::{error_chain::format_error_chain, mask::mask_url, units::UnixMillis};
use lodestone_pipeline::bundle::read_regular_up_to;
use moka::sync::Cache;
use parking_lot::{Mutex, RwLock};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeSet,
    fmt,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};
use url::{Host, Url};

/// Difference of the clocks of the identity provider and of the server that is tolerated, in milliseconds.
const LEEWAY_MS: i64 = 60_000;
/// Greatest size of a key set.
const KEY_SET_BYTES_MAX: usize = 1 << 20;
/// Greatest number of keys in a set.
const KEYS_MAX: usize = 100;
/// Least length of the modulus of an RSA key (NIST SP 800-131A, RFC 7518 section 3.3), in bits.
const RSA_BITS_MIN: usize = 2048;
/// Greatest length of the subject of a token, in bytes.
const SUBJECT_BYTES_MAX: usize = 256;
/// Verified tokens that are remembered until they expire, so that a call costs a hash instead of a signature.
const VERIFIED_MAX: u64 = 20_000;
/// Time after which a token without calls is verified again.
const VERIFIED_IDLE: Duration = Duration::from_secs(600);
/// Subjects whose usage is remembered.
const SUBJECTS_MAX: u64 = 100_000;
/// Quotas are per day, so that a subject without calls for this long has used nothing.
const SUBJECT_IDLE: Duration = Duration::from_secs(86_400);
/// Time for a download of a key set.
const DOWNLOAD_MAX: Duration = Duration::from_secs(10);
/// The label of all tokens in metrics, because there may be many subjects.
const LABEL: &str = "jwt";

/// The place of a key set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeySetLocation {
    File(PathBuf),
    Url(Url),
}

impl KeySetLocation {
    /// Parses a path or a URL with https; http only on the same machine.
    pub fn parse(text: &str) -> Result<Self, String> {
        if !text.contains("://") {
            return Ok(Self::File(text.into()));
        }
        let url = Url::parse(text).map_err(|error| format!("is not a URL: {error}"))?;
        let is_loopback = match url.host() {
            Some(Host::Domain(name)) => name == "localhost",
            Some(Host::Ipv4(address)) => address.is_loopback(),
            Some(Host::Ipv6(address)) => address.is_loopback(),
            None => false,
        };
        if url.scheme() != "https" && !(url.scheme() == "http" && is_loopback) {
            return Err(
                "must be a file or begin with https://, because whoever changes the keys on the way makes tokens; \
                        http:// is for 127.0.0.1 and localhost"
                    .to_owned(),
            );
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err("has a user or a password; a key set is public, remove them".to_owned());
        }
        Ok(Self::Url(url))
    }
}

impl fmt::Display for KeySetLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            // A query may have a secret.
            Self::Url(url) => write!(f, "{}", mask_url(url.as_str())),
        }
    }
}

/// What tokens must be like.
#[derive(Debug, Clone)]
pub struct JwtSettings {
    pub key_set: KeySetLocation,
    /// The claim `iss` of every token.
    pub issuer: String,
    /// A value of the claim `aud` of every token.
    pub audience: String,
    /// The claim with the roles: its name, or a JSON pointer that begins with `/`.
    pub roles_claim: String,
    /// The claim with the catalogues, likewise. Tokens without it may use all.
    pub catalogs_claim: String,
    /// Of every subject.
    pub limits: ClientLimits,
    /// Time between downloads of a key set from a URL.
    pub refresh: Duration,
    /// Least time between downloads because of tokens whose key is not in the set.
    pub refresh_unknown_key: Duration,
}

impl JwtSettings {
    pub const REFRESH: Duration = Duration::from_secs(300);
    pub const REFRESH_UNKNOWN_KEY: Duration = Duration::from_secs(60);
}

/// The reason why tokens cannot be used: one line with the flag, the place and the remedy.
#[derive(Debug, thiserror::Error)]
#[error("--jwt-jwks {location}: {problem}")]
pub struct KeySetError {
    location: String,
    problem: String,
}

/// Why a token is refused. Messages are for its sender; those after [`TokenProblem::Signature`] concern signed tokens only.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum TokenProblem {
    #[error(
        "is no JSON Web Token with a valid header; the algorithms are RS256, RS384, RS512, PS256, PS384, PS512, ES256, \
         ES384 and EdDSA"
    )]
    Malformed,
    #[error("has an algorithm that its key does not have, or none with a public key")]
    Algorithm,
    #[error("names no key of the key set")]
    UnknownKey,
    #[error("names an RSA key of less than {} bits; the identity provider must sign with a longer one", RSA_BITS_MIN)]
    ShortKey,
    #[error("has an invalid signature")]
    Signature,
    #[error("has expired")]
    Expired,
    #[error("is not valid yet; check the clocks")]
    NotYetValid,
    #[error("is of another issuer")]
    Issuer,
    #[error("is for another audience")]
    Audience,
    #[error("lacks the claim `{0}`, or it has another type than it must have")]
    Claim(String),
}

/// A key of a set.
struct VerificationKey {
    id: Option<String>,
    algorithms: Vec<Algorithm>,
    key: DecodingKey,
    /// An RSA key of less than [`RSA_BITS_MIN`] bits.
    is_short: bool,
    /// SHA-256 of the public key, because another key may have the same id.
    thumbprint: [u8; 32],
}

/// The keys of a set that verify signatures.
struct VerificationKeys {
    /// Different for each set of a process.
    version: u64,
    keys: Vec<VerificationKey>,
    /// The ids of RSA keys that are too short, which verify nothing.
    short: Vec<Option<String>>,
}

impl VerificationKeys {
    /// Returns the keys for a token's header: several keys may have the same id. A token without a key id has the only key
    /// of the set.
    fn find(&self, id: Option<&str>, algorithm: Algorithm) -> Result<Vec<&VerificationKey>, TokenProblem> {
        let named = |key: &&VerificationKey| match id {
            Some(id) => key.id.as_deref() == Some(id),
            None => self.keys.len() == 1,
        };
        let mut named = self.keys.iter().filter(named).peekable();
        let is_short = || id.is_some() && self.short.iter().any(|short| short.as_deref() == id);
        named.peek().ok_or_else(|| if is_short() { TokenProblem::ShortKey } else { TokenProblem::UnknownKey })?;
        let found: Vec<&VerificationKey> = named.filter(|key| key.algorithms.contains(&algorithm)).collect();
        if found.is_empty() { Err(TokenProblem::Algorithm) } else { Ok(found) }
    }

    /// Logs the keys of a set that are not used.
    fn report_short(&self, key_set: &KeySetLocation) {
        if !self.short.is_empty() {
            let ids: Vec<&str> = self.short.iter().map(|id| id.as_deref().unwrap_or("without an id")).collect();
            tracing::warn!(
                "--jwt-jwks {key_set}: RSA keys of less than {RSA_BITS_MIN} bits are not used, and tokens that they sign are \
                 refused: {}",
                ids.join(", ")
            );
        }
    }
}

/// A token whose signature and claims were verified.
pub(super) struct VerifiedToken {
    pub(super) client: Arc<Client>,
    /// With the leeway.
    expires: UnixMillis,
    /// Of the key that verified it.
    key_thumbprint: [u8; 32],
    keys_version: u64,
}

/// Verifies tokens.
pub struct Jwt {
    settings: JwtSettings,
    keys: RwLock<Arc<VerificationKeys>>,
    /// By the SHA-256 of the token, whose comparison reveals nothing of use about a token.
    verified: Cache<[u8; 32], Arc<VerifiedToken>>,
    /// By subject.
    usages: Cache<String, Arc<Usage>>,
    watched: Mutex<WatchedText>,
    /// The time of the last download. Held during a download, so that there is one at a time.
    downloaded: tokio::sync::Mutex<Instant>,
}

impl fmt::Debug for Jwt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Jwt").field("key_set", &self.settings.key_set.to_string()).finish_non_exhaustive()
    }
}

impl Jwt {
    /// Reads or downloads the key set.
    pub async fn open(settings: JwtSettings) -> Result<Self, KeySetError> {
        let failed = |problem| KeySetError { location: settings.key_set.to_string(), problem };
        let text = match &settings.key_set {
            KeySetLocation::File(_) => settings.read(),
            KeySetLocation::Url(url) => download(url).await,
        };
        let text = text.map_err(failed)?;
        let keys = parse(&text, 0).map_err(failed)?;
        keys.report_short(&settings.key_set);
        Ok(Self {
            keys: RwLock::new(Arc::new(keys)),
            verified: Cache::builder()
                .max_capacity(VERIFIED_MAX)
                .time_to_idle(VERIFIED_IDLE)
                // The usage of a subject must not expire while its token is in use.
                .time_to_live(SUBJECT_IDLE / 2)
                .build(),
            usages: Cache::builder().max_capacity(SUBJECTS_MAX).time_to_idle(SUBJECT_IDLE).build(),
            watched: Mutex::new(WatchedText::new(text)),
            downloaded: tokio::sync::Mutex::new(Instant::now()),
            settings,
        })
    }

    /// Reads the file again, or downloads the set if its time has come. With an invalid one the former keys stay.
    pub(super) async fn reload(&self) {
        match &self.settings.key_set {
            KeySetLocation::File(_) => {
                let settings = self.settings.clone();
                // Files may be far away.
                let read = tokio::task::spawn_blocking(move || settings.read()).await;
                match read.unwrap_or_else(|error| Err(error.to_string())) {
                    Ok(text) => self.load(|watched| watched.changed(text)),
                    Err(problem) => self.report(&problem),
                }
            }
            KeySetLocation::Url(_) => self.refresh(self.settings.refresh).await,
        }
    }

    /// Downloads the set because of a token whose key it does not have, unless that has just happened.
    pub(super) async fn refresh_for_unknown_key(&self) {
        self.refresh(self.settings.refresh_unknown_key).await;
    }

    async fn refresh(&self, age_min: Duration) {
        let KeySetLocation::Url(url) = &self.settings.key_set else { return };
        let mut downloaded = self.downloaded.lock().await;
        if downloaded.elapsed() < age_min {
            return;
        }
        // Also after a failure, so that an unavailable provider is not asked for every call.
        *downloaded = Instant::now();
        match download(url).await {
            Ok(text) => {
                self.load(|watched| watched.complete(text));
            }
            Err(problem) => self.report(&problem),
        }
    }

    fn report(&self, problem: &str) {
        let error = self.error(problem);
        tracing::error!(%error, "cannot read the keys of tokens again; the former ones stay");
    }

    fn error(&self, problem: &str) -> KeySetError {
        KeySetError { location: self.settings.key_set.to_string(), problem: problem.to_owned() }
    }

    fn load(&self, content: impl FnOnce(&mut WatchedText) -> Option<&str>) {
        let mut watched = self.watched.lock();
        let Some(text) = content(&mut watched) else { return };
        let version = self.keys.read().version + 1;
        match parse(text, version) {
            Ok(keys) => {
                tracing::info!(count = keys.keys.len(), "loaded changed keys of tokens");
                keys.report_short(&self.settings.key_set);
                *self.keys.write() = Arc::new(keys);
            }
            Err(problem) => {
                let error = self.error(&problem);
                tracing::error!(%error, "the changed keys of tokens are invalid; the former ones stay");
            }
        }
    }

    /// Returns the client of a token.
    pub(super) fn authenticate(&self, token: &[u8], now: UnixMillis) -> Result<Arc<VerifiedToken>, TokenProblem> {
        let hash: [u8; 32] = Sha256::digest(token).into();
        let keys = self.keys.read().clone();
        // After a change of the set every token is verified again.
        if let Some(found) = self.verified.get(&hash).filter(|found| found.keys_version == keys.version) {
            return if now < found.expires { Ok(found) } else { Err(TokenProblem::Expired) };
        }
        let verified = Arc::new(self.verify(token, &keys, now)?);
        self.verified.insert(hash, verified.clone());
        Ok(verified)
    }

    /// Checks a token again that was valid when a stream began.
    pub(super) fn check_again(&self, token: &VerifiedToken, now: UnixMillis) -> Result<(), TokenProblem> {
        let keys = self.keys.read();
        let has_key = || keys.keys.iter().any(|key| key.thumbprint == token.key_thumbprint);
        match (now < token.expires, token.keys_version == keys.version || has_key()) {
            (false, _) => Err(TokenProblem::Expired),
            (true, false) => Err(TokenProblem::UnknownKey),
            (true, true) => Ok(()),
        }
    }

    fn verify(&self, token: &[u8], keys: &VerificationKeys, now: UnixMillis) -> Result<VerifiedToken, TokenProblem> {
        let header = decode_header(token).map_err(|_| TokenProblem::Malformed)?;
        let named = keys.find(header.kid.as_deref(), header.alg)?;
        let mut validation = Validation::new(header.alg);
        validation.set_issuer(&[&self.settings.issuer]);
        validation.set_audience(&[&self.settings.audience]);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        // Checked below, because a remembered token is checked in the same way.
        validation.validate_exp = false;
        let verify_with = |key: &VerificationKey| {
            let decoded = decode::<Map<String, Value>>(token, &key.key, &validation).map_err(problem_of);
            decoded.map(|decoded| (decoded.claims, key.thumbprint))
        };
        let is_of_key = |result: &Result<_, TokenProblem>| !matches!(result, Err(TokenProblem::Signature));
        let verified = named.into_iter().map(verify_with).find(is_of_key);
        let (claims, key_thumbprint) = verified.ok_or(TokenProblem::Signature)??;
        let seconds = |name: &str| claims.get(name).map(|value| value.as_f64().ok_or(claim(name))).transpose();
        let expires = seconds("exp")?.ok_or_else(|| claim("exp"))?;
        // The conversion saturates.
        let expires = UnixMillis(((expires * 1e3) as i64).saturating_add(LEEWAY_MS));
        if now >= expires {
            return Err(TokenProblem::Expired);
        }
        if seconds("nbf")?.is_some_and(|begins| ((begins * 1e3) as i64).saturating_sub(LEEWAY_MS) > now.0) {
            return Err(TokenProblem::NotYetValid);
        }
        let client = Arc::new(self.client(&claims)?);
        Ok(VerifiedToken { client, expires, key_thumbprint, keys_version: keys.version })
    }

    fn client(&self, claims: &Map<String, Value>) -> Result<Client, TokenProblem> {
        let subject = claims.get("sub").and_then(Value::as_str);
        let is_name =
            |subject: &&str| (1..=SUBJECT_BYTES_MAX).contains(&subject.len()) && !subject.contains(char::is_control);
        let subject = subject.filter(is_name).ok_or_else(|| claim("sub"))?;
        let roles = names(claims, &self.settings.roles_claim)?.unwrap_or_default();
        let usage = || Arc::new(Usage::new(self.settings.limits));
        Ok(Client {
            name: subject.to_owned(),
            kind: ClientKind::Token,
            label: LABEL.to_owned(),
            // Other applications of the provider have other roles.
            roles: Role::ALL.into_iter().filter(|role| roles.contains(role.name())).collect(),
            catalogs: names(claims, &self.settings.catalogs_claim)?,
            usage: self.usages.get_with_by_ref(subject, usage),
        })
    }
}

fn claim(name: &str) -> TokenProblem {
    TokenProblem::Claim(name.to_owned())
}

/// Returns the names in a claim: an array of strings, or one string with spaces like the claim `scope`. None: there is no
/// such claim.
fn names(claims: &Map<String, Value>, name: &str) -> Result<Option<BTreeSet<String>>, TokenProblem> {
    let found = match name.strip_prefix('/').map(|path| path.split('/').map(unescaped)) {
        None => claims.get(name),
        Some(mut path) => {
            let first = path.next().and_then(|first| claims.get(&first));
            path.fold(first, |value, key| value.and_then(|value| value.get(&key)))
        }
    };
    match found {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.split_whitespace().map(str::to_owned).collect())),
        Some(Value::Array(values)) => {
            let texts = values.iter().map(|value| value.as_str().map(str::to_owned));
            texts.collect::<Option<_>>().map(Some).ok_or_else(|| claim(name))
        }
        Some(_) => Err(claim(name)),
    }
}

/// Returns a part of a JSON pointer (RFC 6901) without its escapes.
fn unescaped(part: &str) -> String {
    part.replace("~1", "/").replace("~0", "~")
}

fn problem_of(error: jsonwebtoken::errors::Error) -> TokenProblem {
    match error.into_kind() {
        ErrorKind::InvalidIssuer => TokenProblem::Issuer,
        ErrorKind::InvalidAudience => TokenProblem::Audience,
        ErrorKind::MissingRequiredClaim(name) | ErrorKind::InvalidClaimFormat(name) => TokenProblem::Claim(name),
        ErrorKind::InvalidAlgorithm | ErrorKind::UnsupportedAlgorithm => TokenProblem::Algorithm,
        ErrorKind::InvalidToken | ErrorKind::Base64(_) | ErrorKind::Json(_) | ErrorKind::Utf8(_) => {
            TokenProblem::Malformed
        }
        _ => TokenProblem::Signature,
    }
}

impl JwtSettings {
    /// Reads the file of the key set.
    fn read(&self) -> Result<String, String> {
        let KeySetLocation::File(path) = &self.key_set else { return Err("is not a file".to_owned()) };
        let bytes = read_regular_up_to(path, KEY_SET_BYTES_MAX as u64)
            .map_err(|error| format!("cannot be read: {error}; check the path and permissions"))?;
        String::from_utf8(bytes).map_err(|_| "is not UTF-8".to_owned())
    }
}

/// Downloads a key set. Redirects are not followed, because they may lead away from https.
async fn download(url: &Url) -> Result<String, String> {
    let builder = reqwest::Client::builder()
        .timeout(DOWNLOAD_MAX)
        .redirect(reqwest::redirect::Policy::none())
        // A connection would not outlive the runtime of a check at startup.
        .pool_max_idle_per_host(0);
    let builder = match url.scheme() {
        // On this machine: without a proxy, and without the authorities of the system, which may have none.
        "http" => builder.no_proxy().tls_certs_only([]),
        _ => builder.https_only(true),
    };
    let client = builder.build().map_err(|error| {
        format!(
            "cannot be downloaded: {}; install the certificates of authorities, such as ca-certificates",
            format_error_chain(&error)
        )
    })?;
    let failed = |error: reqwest::Error| {
        format!("cannot be downloaded: {}; check the URL and the network", format_error_chain(&error.without_url()))
    };
    let mut response = client.get(url.clone()).send().await.map_err(failed)?;
    let status = response.status();
    if !status.is_success() {
        return Err(format!("cannot be downloaded: the server answers {status}; check the URL"));
    }
    let mut bytes = Vec::new();
    while let Some(part) = response.chunk().await.map_err(failed)? {
        bytes.extend_from_slice(&part);
        if bytes.len() > KEY_SET_BYTES_MAX {
            return Err(format!("has more than {KEY_SET_BYTES_MAX} bytes"));
        }
    }
    String::from_utf8(bytes).map_err(|_| "is not UTF-8".to_owned())
}

/// Parses a key set. Keys for other purposes, such as encryption, are left out.
fn parse(text: &str, version: u64) -> Result<VerificationKeys, String> {
    let set: Value = serde_json::from_str(text).map_err(|error| format!("is not JSON: {error}"))?;
    let Some(Value::Array(entries)) = set.get("keys") else {
        return Err("is no JSON Web Key Set: it has no array `keys`".to_owned());
    };
    if entries.len() > KEYS_MAX {
        return Err(format!("has {} keys; the limit is {KEYS_MAX}", entries.len()));
    }
    let (short, keys): (Vec<_>, Vec<_>) = entries.iter().filter_map(verification_key).partition(|key| key.is_short);
    if keys.is_empty() {
        let of_short = match short.len() {
            0 => String::new(),
            count => format!(" ({count} RSA keys are shorter)"),
        };
        return Err(format!(
            "none of its {} keys verifies signatures; it needs a P-256, P-384 or Ed25519 key, or an RSA key of at least \
             {RSA_BITS_MIN} bits{of_short}",
            entries.len()
        ));
    }
    Ok(VerificationKeys { version, keys, short: short.into_iter().map(|key| key.id).collect() })
}

/// Returns the length of a big-endian integer in bits.
fn bit_length(bytes: &[u8]) -> usize {
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    let significant = &bytes[zeros..];
    significant.first().map_or(0, |first| 8 * significant.len() - first.leading_zeros() as usize)
}

/// Returns a public key that verifies signatures. None: the entry is another one.
fn verification_key(entry: &Value) -> Option<VerificationKey> {
    let jwk: Jwk = serde_json::from_value(entry.clone()).ok()?;
    if jwk.common.public_key_use.as_ref().is_some_and(|of| *of != PublicKeyUse::Signature) {
        return None;
    }
    if jwk.common.key_operations.as_ref().is_some_and(|of| !of.contains(&KeyOperations::Verify)) {
        return None;
    }
    let of_type: &[Algorithm] = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => &[
            Algorithm::RS256,
            Algorithm::RS384,
            Algorithm::RS512,
            Algorithm::PS256,
            Algorithm::PS384,
            Algorithm::PS512,
        ],
        AlgorithmParameters::EllipticCurve(of) if of.curve == EllipticCurve::P256 => &[Algorithm::ES256],
        AlgorithmParameters::EllipticCurve(of) if of.curve == EllipticCurve::P384 => &[Algorithm::ES384],
        AlgorithmParameters::OctetKeyPair(of) if of.curve == EllipticCurve::Ed25519 => &[Algorithm::EdDSA],
        // Shared secrets among them.
        _ => return None,
    };
    let algorithms: Vec<Algorithm> = match jwk.common.key_algorithm {
        None => of_type.to_vec(),
        Some(stated) => of_type.iter().copied().filter(|of| Algorithm::try_from(stated).ok() == Some(*of)).collect(),
    };
    if algorithms.is_empty() {
        return None;
    }
    let key = DecodingKey::from_jwk(&jwk).ok()?;
    let is_short = match &jwk.algorithm {
        // The library has decoded it.
        AlgorithmParameters::RSA(of) => {
            URL_SAFE_NO_PAD.decode(&of.n).map_or(0, |modulus| bit_length(&modulus)) < RSA_BITS_MIN
        }
        _ => false,
    };
    // The type and the public numbers, in the order of the library's fields.
    let thumbprint = Sha256::digest(serde_json::to_vec(&jwk.algorithm).ok()?).into();
    Some(VerificationKey { id: jwk.common.key_id, algorithms, key, is_short, thumbprint })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::server::observation::tests::Log;
    use jsonwebtoken::{EncodingKey, Header, encode};
    use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PKCS_RSA_SHA256};
    use serde_json::json;
    use std::fs;

    const NOW: UnixMillis = UnixMillis(1_800_000_000_000);
    const NOW_S: i64 = NOW.0 / 1000;

    /// Returns PKCS #8 v1 of an Ed25519 key: the library reads public keys of it alone, and the generator writes v2, which
    /// appends the public key.
    fn ed25519_der(pair: &KeyPair) -> Vec<u8> {
        [&[0x30, 0x2e, 0x02, 0x01, 0x00], &pair.serialized_der()[5..48]].concat()
    }

    /// A key of an identity provider.
    struct Signer {
        algorithm: Algorithm,
        key: EncodingKey,
        id: &'static str,
    }

    impl Signer {
        fn new(algorithm: Algorithm, id: &'static str) -> Self {
            let der = |of| KeyPair::generate_for(of).unwrap().serialize_der();
            let key = match algorithm {
                Algorithm::ES256 => EncodingKey::from_ec_der(&der(&PKCS_ECDSA_P256_SHA256)),
                Algorithm::ES384 => EncodingKey::from_ec_der(&der(&PKCS_ECDSA_P384_SHA384)),
                Algorithm::EdDSA => {
                    EncodingKey::from_ed_der(&ed25519_der(&KeyPair::generate_for(&PKCS_ED25519).unwrap()))
                }
                // PKCS #8 of a key of 2,048 bits has 26 bytes before the PKCS #1 that the library reads.
                _ => EncodingKey::from_rsa_der(&der(&PKCS_RSA_SHA256)[26..]),
            };
            Self { algorithm, key, id }
        }

        /// Returns the public key for a set.
        fn jwk(&self) -> Value {
            let mut jwk = Jwk::from_encoding_key(&self.key, self.algorithm).unwrap();
            jwk.common.key_id = Some(self.id.to_owned());
            let mut value = serde_json::to_value(jwk).unwrap();
            if let Some(fields) = value.as_object_mut() {
                // As of most providers: a key of one type verifies its algorithms.
                fields.remove("alg");
            }
            value
        }

        fn sign(&self, claims: &Value) -> String {
            let header = Header { kid: Some(self.id.to_owned()), ..Header::new(self.algorithm) };
            encode(&header, claims, &self.key).unwrap()
        }
    }

    fn key_set(signers: &[&Signer]) -> String {
        json!({"keys": signers.iter().map(|signer| signer.jwk()).collect::<Vec<_>>()}).to_string()
    }

    fn claims() -> Value {
        json!({
            "iss": "https://id.shop.test/",
            "aud": ["other", "lodestone"],
            "sub": "feed",
            "exp": NOW_S + 300,
            "lodestone_roles": ["rank", "catalog", "of-another-application"],
        })
    }

    /// Returns claims with one of them replaced.
    fn with(name: &str, value: Value) -> Value {
        let mut claims = claims();
        claims[name] = value;
        claims
    }

    fn settings(path: &std::path::Path) -> JwtSettings {
        JwtSettings {
            key_set: KeySetLocation::File(path.to_owned()),
            issuer: "https://id.shop.test/".to_owned(),
            audience: "lodestone".to_owned(),
            roles_claim: "lodestone_roles".to_owned(),
            catalogs_claim: "lodestone_catalogs".to_owned(),
            limits: ClientLimits::default(),
            refresh: JwtSettings::REFRESH,
            refresh_unknown_key: JwtSettings::REFRESH_UNKNOWN_KEY,
        }
    }

    /// Returns a verifier of a key set in a file.
    async fn open(text: &str) -> (tempfile::TempDir, Jwt) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("jwks.json");
        fs::write(&path, text).unwrap();
        let jwt = Jwt::open(settings(&path)).await.unwrap();
        (directory, jwt)
    }

    /// Returns a verifier and a token that is valid for the next minutes.
    pub(crate) async fn of_one_token(roles: &str) -> (Jwt, String) {
        let signer = Signer::new(Algorithm::ES256, "key-1");
        let (_directory, jwt) = open(&key_set(&[&signer])).await;
        let mut claims = with("exp", json!(UnixMillis::now().0 / 1000 + 300));
        claims["lodestone_roles"] = serde_json::from_str(roles).unwrap();
        (jwt, signer.sign(&claims))
    }

    fn problem(jwt: &Jwt, token: &str) -> Option<TokenProblem> {
        jwt.authenticate(token.as_bytes(), NOW).err()
    }

    #[tokio::test]
    async fn tokens_of_all_asymmetric_algorithms_are_accepted() {
        use Algorithm::{ES256, ES384, EdDSA, PS256, PS384, PS512, RS256, RS384, RS512};
        for algorithm in [RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, EdDSA] {
            let signer = Signer::new(algorithm, "key-1");
            let (_directory, jwt) = open(&key_set(&[&signer])).await;
            let token = signer.sign(&claims());
            let client = jwt.authenticate(token.as_bytes(), NOW).unwrap().client.clone();
            assert_eq!((client.name.as_str(), client.kind, client.label.as_str()), ("feed", ClientKind::Token, "jwt"));
            assert!(client.has(Role::Rank) && client.has(Role::Catalog) && client.roles.len() == 2);
            assert!(client.may_use(b"anything"));
            // Another signature, another content.
            let (head, signature) = token.rsplit_once('.').unwrap();
            let other = signer.sign(&with("sub", json!("admin")));
            let other = other.rsplit_once('.').unwrap().0;
            assert_eq!(problem(&jwt, &format!("{other}.{signature}")), Some(TokenProblem::Signature));
            assert_eq!(problem(&jwt, &format!("{head}.")), Some(TokenProblem::Signature), "{algorithm:?}");
        }
    }

    #[tokio::test]
    async fn forged_and_unsuitable_tokens_are_refused_with_their_problem() {
        let (signer, stranger) = (Signer::new(Algorithm::RS256, "key-1"), Signer::new(Algorithm::RS256, "key-1"));
        let unknown = Signer::new(Algorithm::ES256, "key-2");
        let (_directory, jwt) = open(&key_set(&[&signer])).await;
        let text = |value: &Value| base64_url(value.to_string().as_bytes());
        let none =
            |algorithm: &str| format!("{}.{}.", text(&json!({"alg": algorithm, "kid": "key-1"})), text(&claims()));
        // A secret that everybody knows: the public key.
        let jwk = signer.jwk();
        let modulus = jwk["n"].as_str().unwrap();
        let with_secret = |secret: &[u8]| {
            let header = Header { kid: Some("key-1".to_owned()), ..Header::new(Algorithm::HS256) };
            encode(&header, &claims(), &EncodingKey::from_secret(secret).unwrap()).unwrap()
        };
        let claim = |name: &str| TokenProblem::Claim(name.to_owned());
        for (token, expected) in [
            (none("none"), TokenProblem::Malformed),
            (none("None"), TokenProblem::Malformed),
            (none("RS256"), TokenProblem::Signature),
            (none("HS256"), TokenProblem::Algorithm),
            (with_secret(modulus.as_bytes()), TokenProblem::Algorithm),
            (with_secret(jwk.to_string().as_bytes()), TokenProblem::Algorithm),
            (stranger.sign(&claims()), TokenProblem::Signature),
            (unknown.sign(&claims()), TokenProblem::UnknownKey),
            (signer.sign(&with("iss", json!("https://id.shop.test"))), TokenProblem::Issuer),
            (signer.sign(&with("aud", json!("other"))), TokenProblem::Audience),
            (signer.sign(&with("aud", json!([]))), TokenProblem::Audience),
            (signer.sign(&with("iss", Value::Null)), claim("iss")),
            (signer.sign(&with("aud", Value::Null)), claim("aud")),
            (signer.sign(&with("exp", Value::Null)), claim("exp")),
            (signer.sign(&with("exp", json!("tomorrow"))), claim("exp")),
            (signer.sign(&with("sub", Value::Null)), claim("sub")),
            (signer.sign(&with("sub", json!(""))), claim("sub")),
            (signer.sign(&with("sub", json!("a\nb"))), claim("sub")),
            (signer.sign(&with("sub", json!("s".repeat(257)))), claim("sub")),
            (signer.sign(&with("lodestone_roles", json!(7))), claim("lodestone_roles")),
            (signer.sign(&with("lodestone_catalogs", json!([7]))), claim("lodestone_catalogs")),
            (String::new(), TokenProblem::Malformed),
            ("a.b.c".to_owned(), TokenProblem::Malformed),
            ("é.é.é".to_owned(), TokenProblem::Malformed),
            (format!("{}.x", signer.sign(&claims())), TokenProblem::Malformed),
        ] {
            assert_eq!(problem(&jwt, &token), Some(expected), "{token}");
        }
        assert!(jwt.authenticate(&[0xff, b'.', 0xff, b'.', 0xff], NOW).is_err());
        assert_eq!(problem(&jwt, &signer.sign(&claims())), None);
    }

    fn base64_url(bytes: &[u8]) -> String {
        const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        let mut text = String::new();
        for part in bytes.chunks(3) {
            let bits = part.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - part.len()));
            let digit = |index: usize| char::from(DIGITS[(bits >> (18 - 6 * index)) as usize & 63]);
            text.extend((0..=part.len()).map(digit));
        }
        text
    }

    #[tokio::test]
    async fn tokens_are_valid_between_their_times_and_a_minute_of_difference() {
        let signer = Signer::new(Algorithm::ES256, "key-1");
        let (_directory, jwt) = open(&key_set(&[&signer])).await;
        let expired = Some(TokenProblem::Expired);
        let early = Some(TokenProblem::NotYetValid);
        for (claim, seconds, expected) in [
            ("exp", json!(NOW_S + 1), None),
            ("exp", json!(NOW_S - 59), None),
            ("exp", json!(NOW_S as f64 - 59.5), None),
            ("exp", json!(NOW_S - 60), expired.clone()),
            ("exp", json!(0), expired.clone()),
            ("exp", json!(1e300), Some(TokenProblem::Claim("exp".to_owned()))),
            ("nbf", json!(NOW_S), None),
            ("nbf", json!(NOW_S + 60), None),
            ("nbf", json!(NOW_S + 61), early.clone()),
            ("nbf", json!(u64::MAX), early),
            ("nbf", json!("soon"), Some(TokenProblem::Claim("nbf".to_owned()))),
        ] {
            assert_eq!(problem(&jwt, &signer.sign(&with(claim, seconds.clone()))), expected, "{claim} {seconds}");
        }
        // A remembered token expires too.
        let token = signer.sign(&claims());
        let after = |seconds: i64| jwt.authenticate(token.as_bytes(), UnixMillis(NOW.0 + seconds * 1000)).err();
        assert_eq!([after(0), after(359), after(360)], [None, None, expired.clone()]);
        let verified = jwt.authenticate(token.as_bytes(), NOW).unwrap();
        assert_eq!(jwt.check_again(&verified, UnixMillis(NOW.0 + 360_000)).err(), expired);
        assert!(Arc::ptr_eq(&verified, &jwt.authenticate(token.as_bytes(), NOW).unwrap()), "it is remembered");
    }

    #[tokio::test]
    async fn roles_and_catalogues_are_read_from_claims() {
        let signer = Signer::new(Algorithm::ES256, "key-1");
        let (_directory, mut jwt) = open(&key_set(&[&signer])).await;
        let mut client = |roles_claim: &str, name: &str, value: Value| {
            roles_claim.clone_into(&mut jwt.settings.roles_claim);
            jwt.authenticate(signer.sign(&with(name, value)).as_bytes(), NOW).unwrap().client.clone()
        };
        let scope = client("scope", "scope", json!("openid rank  admin ranks"));
        assert_eq!(scope.roles, BTreeSet::from([Role::Rank, Role::Admin]));
        let nested = client("/realm_access/roles", "realm_access", json!({"roles": ["events"]}));
        assert_eq!(nested.roles, BTreeSet::from([Role::Events]));
        let escaped = client("/https:~1~1shop.test~1roles", "https://shop.test/roles", json!(["rules"]));
        assert_eq!(escaped.roles, BTreeSet::from([Role::Rules]));
        assert!(client("missing", "x", json!(1)).roles.is_empty());
        let shoes = client("lodestone_roles", "lodestone_catalogs", json!(["shoes", "hats"]));
        assert!(shoes.may_use(b"shoes") && shoes.may_use(b"hats") && !shoes.may_use(b"default"));
        assert!(!client("lodestone_roles", "lodestone_catalogs", json!([])).may_use(b"default"));
    }

    #[tokio::test]
    async fn a_rotated_key_set_verifies_every_token_again() {
        let (old, new) = (Signer::new(Algorithm::ES256, "old"), Signer::new(Algorithm::EdDSA, "new"));
        let (directory, jwt) = open(&key_set(&[&old])).await;
        let (of_old, of_new) = (old.sign(&claims()), new.sign(&claims()));
        let stream = jwt.authenticate(of_old.as_bytes(), NOW).unwrap();
        let problems = || [problem(&jwt, &of_old), problem(&jwt, &of_new)];
        let unknown = Some(TokenProblem::UnknownKey);
        let rotate = async |text: &str| {
            fs::write(directory.path().join("jwks.json"), text).unwrap();
            // A content is used when two reads return it.
            jwt.reload().await;
            jwt.reload().await;
        };
        assert_eq!(problems(), [None, unknown.clone()]);
        rotate(&key_set(&[&old, &new])).await;
        assert_eq!(problems(), [None, None]);
        assert!(jwt.check_again(&stream, NOW).is_ok());
        for invalid in ["", "{}", "{\"keys\": []}", "{\"keys\": [{\"kty\": \"oct\", \"k\": \"c2VjcmV0\"}]}"] {
            rotate(invalid).await;
            assert_eq!(problems(), [None, None], "{invalid}");
        }
        rotate(&key_set(&[&new])).await;
        assert_eq!(problems(), [unknown.clone(), None]);
        assert_eq!(jwt.check_again(&stream, NOW).err(), unknown);
    }

    /// Returns an RSA key with a modulus of a number of bits, a multiple of 8.
    fn rsa_jwk(id: &str, bits: usize) -> Value {
        json!({"kty": "RSA", "kid": id, "e": "AQAB", "n": base64_url(&vec![0x81; bits / 8])})
    }

    #[tokio::test]
    async fn short_rsa_keys_verify_nothing() {
        for (bytes, bits) in
            [(vec![], 0), (vec![0, 0], 0), (vec![1], 1), (vec![0, 0x80, 0], 16), (vec![0x7f, 0xff], 15)]
        {
            assert_eq!(bit_length(&bytes), bits, "{bytes:?}");
        }
        let set = |keys: &[Value]| json!({"keys": keys}).to_string();
        for bits in [1024, 2040] {
            let problem = parse(&set(&[rsa_jwk("short", bits)]), 0).err().unwrap();
            assert!(problem.contains("at least 2048 bits (1 RSA keys are shorter)"), "{problem}");
        }
        assert!(parse(&set(&[rsa_jwk("long", 2048)]), 0).is_ok());
        let log = Log::default();
        let subscriber = tracing_subscriber::fmt().with_writer(log.clone()).with_ansi(false).finish();
        let _guard = tracing::subscriber::set_default(subscriber);
        let signer = Signer::new(Algorithm::ES256, "key-1");
        let (directory, jwt) = open(&set(&[rsa_jwk("short", 1024), signer.jwk()])).await;
        assert!(log.text().contains("less than 2048 bits are not used") && log.text().contains(": short"));
        let text = |value: &Value| base64_url(value.to_string().as_bytes());
        let token = format!("{}.{}.AA", text(&json!({"alg": "RS256", "kid": "short"})), text(&claims()));
        assert_eq!(problem(&jwt, &token), Some(TokenProblem::ShortKey));
        assert!(TokenProblem::ShortKey.to_string().contains("an RSA key of less than 2048 bits"));
        assert_eq!(problem(&jwt, &signer.sign(&claims())), None);
        // A set with such keys alone is not used, and its error names the flag and the file.
        let path = directory.path().join("jwks.json");
        fs::write(&path, set(&[rsa_jwk("key-1", 1024)])).unwrap();
        jwt.reload().await;
        jwt.reload().await;
        assert_eq!(problem(&jwt, &signer.sign(&claims())), None);
        fs::remove_file(&path).unwrap();
        jwt.reload().await;
        let text = log.text();
        let lines: Vec<&str> = text.lines().filter(|line| line.contains("ERROR")).collect();
        assert_eq!(lines.len(), 2, "{text}");
        for (line, part) in lines.into_iter().zip(["are shorter", "cannot be read"]) {
            assert!(line.contains(&format!("--jwt-jwks {}: ", path.display())) && line.contains(part), "{line}");
        }
    }

    #[tokio::test]
    async fn a_stream_ends_with_the_key_that_verified_its_token() {
        let (first, second) = (Signer::new(Algorithm::ES256, "key-1"), Signer::new(Algorithm::ES256, "key-1"));
        let other = Signer::new(Algorithm::ES384, "key-2");
        let (directory, jwt) = open(&key_set(&[&first])).await;
        let without_id = encode(&Header::new(Algorithm::ES256), &claims(), &first.key).unwrap();
        let streams = [first.sign(&claims()), without_id];
        let streams = streams.map(|token| jwt.authenticate(token.as_bytes(), NOW).unwrap());
        let problems = || streams.each_ref().map(|stream| jwt.check_again(stream, NOW).err());
        let rotate = async |text: &str| {
            fs::write(directory.path().join("jwks.json"), text).unwrap();
            // A content is used when two reads return it.
            jwt.reload().await;
            jwt.reload().await;
        };
        rotate(&key_set(&[&other, &first])).await;
        assert_eq!(problems(), [None, None]);
        // Another key with the same id, and no key with it.
        for signers in [&[&second][..], &[&other]] {
            rotate(&key_set(signers)).await;
            assert_eq!(problems(), [Some(TokenProblem::UnknownKey), Some(TokenProblem::UnknownKey)]);
        }
    }

    #[tokio::test]
    async fn all_keys_with_the_id_of_a_token_may_have_signed_it() {
        let signers = [(); 2].map(|()| Signer::new(Algorithm::ES256, "key-1"));
        let stranger = Signer::new(Algorithm::ES256, "key-1");
        let (_directory, jwt) = open(&key_set(&[&signers[0], &signers[1]])).await;
        for signer in &signers {
            assert_eq!(problem(&jwt, &signer.sign(&claims())), None);
            assert_eq!(problem(&jwt, &signer.sign(&with("aud", json!("other")))), Some(TokenProblem::Audience));
        }
        assert_eq!(problem(&jwt, &stranger.sign(&claims())), Some(TokenProblem::Signature));
    }

    #[test]
    fn a_key_set_has_the_public_keys_of_signatures_only() {
        let signer = Signer::new(Algorithm::RS256, "key-1");
        let with = |name: &str, value: Value| {
            let mut jwk = signer.jwk();
            jwk[name] = value;
            jwk
        };
        let algorithms = |jwk: Value| verification_key(&jwk).map(|key| key.algorithms);
        assert_eq!(algorithms(signer.jwk()).unwrap().len(), 6);
        assert_eq!(algorithms(with("alg", json!("PS256"))), Some(vec![Algorithm::PS256]));
        assert_eq!(algorithms(with("use", json!("sig"))).unwrap().len(), 6);
        assert_eq!(algorithms(with("key_ops", json!(["verify", "wrapKey"]))).unwrap().len(), 6);
        for other in [
            with("alg", json!("RSA-OAEP")),
            with("alg", json!("HS256")),
            with("use", json!("enc")),
            with("key_ops", json!(["encrypt"])),
            with("key_ops", json!([])),
        ] {
            assert_eq!(algorithms(other.clone()), None, "{other}");
        }
        assert_eq!(algorithms(json!({"kty": "oct", "k": "c2VjcmV0", "alg": "HS256"})), None);
        assert_eq!(algorithms(json!({"kty": "EC", "crv": "P-521", "x": "AA", "y": "AA"})), None);
        for (text, part) in [
            ("[", "is not JSON"),
            ("[]", "no array `keys`"),
            ("{\"keys\": [7]}", "none of its 1 keys"),
            (&json!({"keys": vec![0; 101]}).to_string(), "has 101 keys; the limit is 100"),
        ] {
            let problem = parse(text, 0).err().unwrap();
            assert!(problem.contains(part), "{problem}");
        }
    }

    #[test]
    fn key_sets_are_files_or_encrypted() {
        let parse = KeySetLocation::parse;
        assert_eq!(parse("dir/jwks.json").unwrap(), KeySetLocation::File("dir/jwks.json".into()));
        for url in ["https://id.shop.test/jwks", "http://127.0.0.1:8080/jwks", "http://localhost/", "http://[::1]/"] {
            assert!(matches!(parse(url).unwrap(), KeySetLocation::Url(_)), "{url}");
        }
        for (url, part) in [
            ("http://id.shop.test/jwks", "https://"),
            ("ftp://127.0.0.1/jwks", "https://"),
            ("https://user:secret@id.shop.test/", "has a user"),
            ("https://", "is not a URL"),
        ] {
            let problem = parse(url).unwrap_err();
            assert!(problem.contains(part) && !problem.contains("secret@"), "{problem}");
        }
        assert_eq!(parse("https://id.shop.test/a?key=b").unwrap().to_string(), "https://id.shop.test/a?***");
    }
}
