//! TLS of the server, with certificates that are replaced while it runs.
use lodestone_core::units::UnixMillis;
use lodestone_pipeline::bundle::read_regular_up_to;
use parking_lot::{Mutex, RwLock};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        self, RootCertStore, ServerConfig,
        crypto::{CryptoProvider, aws_lc_rs},
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
        server::WebPkiClientVerifier,
    },
};
use x509_cert::der::Decode;

/// The only protocol above TLS: HTTP/2.
const ALPN: &[u8] = b"h2";

/// The PEM files of TLS.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// The server's certificate, followed by the intermediate ones.
    pub certificate: PathBuf,
    /// The private key of the certificate: PKCS #8, PKCS #1 or SEC 1, not encrypted.
    pub key: PathBuf,
    /// The authorities of clients' certificates. None: clients need no certificate.
    pub client_ca: Option<PathBuf>,
}

/// The reason why TLS cannot be used: one line with the flag, the file and the remedy.
#[derive(Debug, thiserror::Error)]
#[error("{flag} {path}: {problem}")]
pub struct TlsError {
    flag: &'static str,
    path: PathBuf,
    problem: String,
}

const CERT: &str = "--tls-cert";
const KEY: &str = "--tls-key";
const CLIENT_CA: &str = "--tls-client-ca";
/// Greatest size of a file.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// The content of the files.
type Contents = [Vec<u8>; 3];

/// TLS with the certificates of the last valid content of the files.
pub struct Tls {
    files: TlsFiles,
    acceptor: RwLock<TlsAcceptor>,
    /// Of the first certificate in `acceptor` that expires.
    expiry: Mutex<Option<UnixMillis>>,
    attempt: Mutex<Attempt>,
}

/// The last attempt to load the files.
struct Attempt {
    contents: Contents,
    /// Whether it failed, which may depend on the time: a certificate that is not valid yet.
    failed: bool,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("files", &self.files).finish_non_exhaustive()
    }
}

impl Tls {
    /// Reads and checks the files.
    pub fn open(files: TlsFiles) -> Result<Self, TlsError> {
        let contents = read(&files)?;
        let acceptor = RwLock::new(acceptor(&files, &contents, UnixMillis::now())?);
        let expiry = Mutex::new(first_expiry(&contents));
        Ok(Self { files, acceptor, expiry, attempt: Mutex::new(Attempt { contents, failed: false }) })
    }

    /// Returns true if clients need a certificate.
    pub fn verifies_clients(&self) -> bool {
        self.files.client_ca.is_some()
    }

    /// Returns the time at which the first of the certificates in use expires, those of clients' authorities included.
    pub fn expiry(&self) -> Option<UnixMillis> {
        *self.expiry.lock()
    }

    pub(super) fn acceptor(&self) -> TlsAcceptor {
        self.acceptor.read().clone()
    }

    /// Uses the files for later connections if they have changed. With invalid files the former certificates stay, and
    /// the files are tried again each time; the log has each content once.
    pub(super) fn reload(&self) {
        self.reload_at(UnixMillis::now());
    }

    /// Returns true if the files are loaded.
    fn reload_at(&self, now: UnixMillis) -> bool {
        let contents = match read(&self.files) {
            Ok(contents) => contents,
            Err(error) => {
                tracing::error!(%error, "cannot read the certificates again; the former ones stay");
                return false;
            }
        };
        let mut attempt = self.attempt.lock();
        let is_new = attempt.contents != contents;
        if !is_new && !attempt.failed {
            return true;
        }
        let loaded = acceptor(&self.files, &contents, now);
        let expiry = first_expiry(&contents);
        *attempt = Attempt { contents, failed: loaded.is_err() };
        match loaded {
            Ok(acceptor) => {
                *self.acceptor.write() = acceptor;
                *self.expiry.lock() = expiry;
                tracing::info!(certificate = %self.files.certificate.display(), "loaded changed certificates");
            }
            // Usual while the certificate is replaced already and its key not yet.
            Err(error) if is_new => {
                tracing::warn!(%error, "the changed certificates are invalid; the former ones stay until they are valid");
            }
            Err(_) => {}
        }
        !attempt.failed
    }
}

fn read(files: &TlsFiles) -> Result<Contents, TlsError> {
    let client_ca = files.client_ca.as_deref().map(|path| read_file(CLIENT_CA, path)).transpose()?;
    Ok([read_file(CERT, &files.certificate)?, read_file(KEY, &files.key)?, client_ca.unwrap_or_default()])
}

fn read_file(flag: &'static str, path: &Path) -> Result<Vec<u8>, TlsError> {
    let unreadable = |error| problem(flag, path, format!("cannot be read: {error}; check the path and permissions"));
    read_regular_up_to(path, FILE_BYTES_MAX).map_err(unreadable)
}

/// Reads the PEM file of a flag with the authorities of another server's certificate, and checks it.
pub fn read_authorities(flag: &'static str, path: &Path) -> Result<Vec<u8>, TlsError> {
    let pem = read_file(flag, path)?;
    certificates(flag, path, &pem, UnixMillis::now())?;
    Ok(pem)
}

fn problem(flag: &'static str, path: &Path, problem: impl Into<String>) -> TlsError {
    TlsError { flag, path: path.to_owned(), problem: problem.into() }
}

fn acceptor(
    files: &TlsFiles,
    [certificate, key, client_ca]: &Contents,
    now: UnixMillis,
) -> Result<TlsAcceptor, TlsError> {
    // Named, because a process may have several implementations compiled in.
    let provider = Arc::new(aws_lc_rs::default_provider());
    let chain = certificates(CERT, &files.certificate, certificate, now)?;
    let of_key = |text: String| problem(KEY, &files.key, text);
    let key = PrivateKeyDer::from_pem_slice(key)
        .map_err(|error| of_key(format!("has no private key in PEM ({error}); it must not be encrypted")))?;
    let builder = ServerConfig::builder_with_provider(provider.clone());
    let builder = builder.with_safe_default_protocol_versions().map_err(|error| of_key(error.to_string()))?;
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => builder.with_client_cert_verifier(client_verifier(path, client_ca, provider, now)?),
    };
    let mut config = builder.with_single_cert(chain, key).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => of_key(format!(
            "is not the key of the certificate {}; give both files of one pair",
            files.certificate.display()
        )),
        error => of_key(format!("cannot be used with {}: {error}", files.certificate.display())),
    })?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn client_verifier(
    path: &Path,
    pem: &[u8],
    provider: Arc<CryptoProvider>,
    now: UnixMillis,
) -> Result<Arc<dyn rustls::server::danger::ClientCertVerifier>, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(CLIENT_CA, path, pem, now)? {
        roots.add(certificate).map_err(|error| problem(CLIENT_CA, path, format!("is no authority: {error}")))?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
    verifier.map_err(|error| problem(CLIENT_CA, path, error.to_string()))
}

/// Returns the time at which the first of the certificates expires.
fn first_expiry([certificate, _, client_ca]: &Contents) -> Option<UnixMillis> {
    let ders = [certificate, client_ca].into_iter().flat_map(|pem| CertificateDer::pem_slice_iter(pem).flatten());
    let parsed = ders.filter_map(|der| x509_cert::Certificate::from_der(&der).ok());
    parsed.map(|certificate| expiry(&certificate)).min()
}

fn expiry(certificate: &x509_cert::Certificate) -> UnixMillis {
    UnixMillis(certificate.tbs_certificate.validity.not_after.to_unix_duration().as_millis() as i64)
}

/// Parses the certificates of a PEM file, which must be valid at `now`.
fn certificates(
    flag: &'static str,
    path: &Path,
    pem: &[u8],
    now: UnixMillis,
) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let parsed: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let chain = parsed.map_err(|error| problem(flag, path, format!("is not a PEM file: {error}")))?;
    if chain.is_empty() {
        return Err(problem(flag, path, "has no certificate in PEM (-----BEGIN CERTIFICATE-----)"));
    }
    for (index, der) in chain.iter().enumerate() {
        let number = index + 1;
        let parsed = x509_cert::Certificate::from_der(der)
            .map_err(|error| problem(flag, path, format!("certificate {number} cannot be parsed: {error}")))?;
        let (validity, end) = (&parsed.tbs_certificate.validity, expiry(&parsed));
        let begin = UnixMillis(validity.not_before.to_unix_duration().as_millis() as i64);
        if now > end {
            let text = format!("certificate {number} expired at {end}; renew it");
            return Err(problem(flag, path, text));
        }
        if now < begin {
            let text = format!("certificate {number} is valid from {begin} on; check the clock, or wait");
            return Err(problem(flag, path, text));
        }
    }
    Ok(chain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};
    use std::fs;

    struct Pair {
        certificate: String,
        key: String,
    }

    /// Returns a certificate that is valid from 2020 until a year, and its key.
    fn pair(last_year: i32) -> Pair {
        pair_between(2020, last_year)
    }

    fn pair_between(first_year: i32, last_year: i32) -> Pair {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        (params.not_before, params.not_after) = (date_time_ymd(first_year, 1, 1), date_time_ymd(last_year, 1, 1));
        Pair { certificate: params.self_signed(&key).unwrap().pem(), key: key.serialize_pem() }
    }

    #[test]
    fn a_certificate_that_is_not_valid_yet_is_tried_again() {
        let directory = tempfile::tempdir().unwrap();
        let (certificate, key) = (directory.path().join("certificate.pem"), directory.path().join("key.pem"));
        let write = |pair: &Pair| {
            fs::write(&certificate, &pair.certificate).unwrap();
            fs::write(&key, &pair.key).unwrap();
        };
        write(&pair(2100));
        let tls = Tls::open(TlsFiles { certificate: certificate.clone(), key: key.clone(), client_ca: None }).unwrap();
        let now = UnixMillis::now();
        assert!(tls.reload_at(now));
        let first_of = |year: i16| {
            let day = jiff::civil::date(year, 1, 1).to_zoned(jiff::tz::TimeZone::UTC).unwrap();
            Some(UnixMillis(day.timestamp().as_millisecond()))
        };
        assert_eq!(tls.expiry(), first_of(2100));
        write(&pair_between(2090, 2098));
        let in_2095: jiff::Timestamp = "2095-01-01T00:00:00Z".parse().unwrap();
        let in_2095 = UnixMillis(in_2095.as_millisecond());
        assert!(!tls.reload_at(now) && !tls.reload_at(now), "the former certificate stays");
        assert_eq!(tls.expiry(), first_of(2100), "that of the certificate in use");
        assert!(tls.reload_at(in_2095), "the same files are valid now");
        assert_eq!(tls.expiry(), first_of(2098));
        // The key of another certificate, until both are replaced.
        let other = pair(2100);
        fs::write(&key, &other.key).unwrap();
        assert!(!tls.reload_at(now));
        write(&other);
        assert!(tls.reload_at(now));
    }

    #[test]
    fn a_mistake_names_the_flag_the_file_and_the_remedy() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = directory.path().join(name);
            fs::write(&path, text).unwrap();
            path
        };
        let (valid, other, expired) = (pair(2100), pair(2100), pair(2021));
        let certificate = file("certificate.pem", &valid.certificate);
        let key = file("key.pem", &valid.key);
        let files = |certificate: &Path, key: &Path, client_ca: Option<&Path>| {
            let (certificate, key) = (certificate.to_owned(), key.to_owned());
            Tls::open(TlsFiles { certificate, key, client_ca: client_ca.map(Path::to_owned) })
        };
        assert!(!files(&certificate, &key, None).unwrap().verifies_clients());
        // 2100-01-01.
        assert_eq!(files(&certificate, &key, None).unwrap().expiry(), Some(UnixMillis(4_102_444_800_000)));
        assert!(files(&certificate, &key, Some(&certificate)).unwrap().verifies_clients());
        let none = directory.path().join("none.pem");
        let (expired_certificate, expired_key) = (file("old.pem", &expired.certificate), file("old.key", &expired.key));
        let (other_key, text) = (file("other.key", &other.key), file("text.pem", "no certificate"));
        for (opened, parts) in [
            (files(&none, &key, None), ["--tls-cert", "none.pem", "cannot be read"]),
            (files(&certificate, &none, None), ["--tls-key", "none.pem", "cannot be read"]),
            (files(&certificate, &key, Some(&none)), ["--tls-client-ca", "none.pem", "cannot be read"]),
            (files(&text, &key, None), ["--tls-cert", "text.pem", "has no certificate in PEM"]),
            (files(&certificate, &text, None), ["--tls-key", "text.pem", "has no private key in PEM"]),
            (files(&certificate, &other_key, None), ["--tls-key", "other.key", "is not the key of the certificate"]),
            (files(&expired_certificate, &expired_key, None), ["--tls-cert", "old.pem", "expired at 2021-01-01"]),
            (files(&certificate, &key, Some(&expired_certificate)), ["--tls-client-ca", "old.pem", "expired at"]),
        ] {
            let error = opened.unwrap_err().to_string();
            assert!(parts.iter().all(|part| error.contains(part)) && !error.contains('\n'), "{parts:?}: {error}");
        }
    }
}
