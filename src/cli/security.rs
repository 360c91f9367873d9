//! Who may reach the server: TLS, API keys, tokens, limits of clients, and the refusal to serve strangers.
use super::{
    listen::ListenAddresses,
    numbers::{between, whole, within},
};
use crate::{
    audit::AuditSettings,
    server::{ApiKeys, ClientLimits, Jwt, JwtSettings, KeySetLocation, Tls, TlsFiles},
};
use lodestone_core::{error_chain::format_error_chain, units::UnixMillis};
use std::{path::PathBuf, sync::Arc};

/// Security of `lodestone serve`; see docs/security.md.
#[derive(clap::Args)]
#[command(next_help_heading = "Security")]
pub(crate) struct SecurityArgs {
    /// PEM file with the certificate of the server, followed by intermediate ones. Connections are encrypted with TLS. A
    /// changed file is used within seconds, without a restart.
    #[arg(long, value_name = "FILE", env = "LODESTONE_TLS_CERT", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// PEM file with the private key of --tls-cert, not encrypted.
    #[arg(long, value_name = "FILE", env = "LODESTONE_TLS_KEY", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// PEM file with the authorities of clients' certificates. Only clients with a certificate of them can connect
    /// (mutual TLS).
    #[arg(long, value_name = "FILE", env = "LODESTONE_TLS_CLIENT_CA", requires = "tls_cert")]
    tls_client_ca: Option<PathBuf>,
    /// TOML file with API keys, made by `lodestone key create`. Calls need a key with the role of their method. A changed
    /// file is used within seconds, without a restart.
    #[arg(long, value_name = "FILE", env = "LODESTONE_API_KEYS")]
    api_keys: Option<PathBuf>,
    /// The JSON Web Key Set of an identity provider whose tokens clients send: a file, or a URL with https. Calls need a
    /// token, or an API key, with the role of their method. A file is read again within seconds, a URL every 5 minutes and
    /// when a token names an unknown key.
    #[arg(long, value_name = "FILE|URL", env = "LODESTONE_JWT_JWKS", value_parser = KeySetLocation::parse,
          requires_all = ["jwt_issuer", "jwt_audience"])]
    jwt_jwks: Option<KeySetLocation>,
    /// The issuer (`iss`) of tokens.
    #[arg(long, value_name = "ISSUER", env = "LODESTONE_JWT_ISSUER", requires = "jwt_jwks",
          value_parser = clap::builder::NonEmptyStringValueParser::new())]
    jwt_issuer: Option<String>,
    /// The audience of this server: one of the values of `aud` of tokens.
    #[arg(long, value_name = "AUDIENCE", env = "LODESTONE_JWT_AUDIENCE", requires = "jwt_jwks",
          value_parser = clap::builder::NonEmptyStringValueParser::new())]
    jwt_audience: Option<String>,
    /// The claim with the roles of a token: an array of strings, or one string with spaces such as `scope`. A value that
    /// begins with `/` is a JSON pointer, such as `/realm_access/roles`.
    #[arg(long, value_name = "CLAIM", env = "LODESTONE_JWT_ROLES_CLAIM", default_value = "lodestone_roles",
          value_parser = clap::builder::NonEmptyStringValueParser::new())]
    jwt_roles_claim: String,
    /// The claim with the catalogues of a token, likewise. A token without it may use all catalogues.
    #[arg(long, value_name = "CLAIM", env = "LODESTONE_JWT_CATALOGS_CLAIM", default_value = "lodestone_catalogs",
          value_parser = clap::builder::NonEmptyStringValueParser::new())]
    jwt_catalogs_claim: String,
    /// Requests per second of each API key without a limit of its own, and of each subject of tokens. Each message of a
    /// stream counts. Default: no limit.
    #[arg(long, value_name = "N", env = "LODESTONE_CLIENT_REQUESTS_PER_SECOND", value_parser = between(0.001, 1e6))]
    client_requests_per_second: Option<f64>,
    /// Requests that such a client may send at once after a pause. Default: those of one second.
    #[arg(long, value_name = "N", env = "LODESTONE_CLIENT_BURST", requires = "client_requests_per_second",
          value_parser = whole::<u32>(1..=1_000_000))]
    client_burst: Option<u32>,
    /// Events and items that such a client may write or delete per day in UTC. Default: no limit.
    #[arg(long, value_name = "N", env = "LODESTONE_CLIENT_CHANGES_PER_DAY", value_parser = whole::<u64>(1..))]
    client_changes_per_day: Option<u64>,
    /// Size of a file of the audit log, DATA/audit, beyond which another one begins.
    #[arg(long, value_name = "BYTES", env = "LODESTONE_AUDIT_FILE_BYTES_MAX", default_value_t = AuditSettings::default().file_bytes_max,
          value_parser = whole::<u64>(1 << 20..))]
    audit_file_bytes_max: u64,
    /// Files of the audit log that are kept. The oldest are removed beyond it.
    #[arg(long, value_name = "N", env = "LODESTONE_AUDIT_FILES_MAX", default_value_t = AuditSettings::default().files_max,
          value_parser = within(2..))]
    audit_files_max: usize,
    /// Serves without encryption or without authentication on an address that other machines reach. Only for networks
    /// in which every machine is trusted, or behind a proxy that does both.
    #[arg(long, env = "LODESTONE_INSECURE")]
    insecure: bool,
}

/// What the flags define.
pub(crate) struct Security {
    pub(crate) tls: Option<Arc<Tls>>,
    pub(crate) api_keys: Option<Arc<ApiKeys>>,
    pub(crate) jwt: Option<Arc<Jwt>>,
}

impl SecurityArgs {
    fn tls_files(&self) -> Option<TlsFiles> {
        let (certificate, key) = self.tls_cert.clone().zip(self.tls_key.clone())?;
        Some(TlsFiles { certificate, key, client_ca: self.tls_client_ca.clone() })
    }

    /// Returns the time at which the first certificate expires. None: there is none, or [`SecurityArgs::open`] fails.
    pub(crate) fn certificates_expiry(&self) -> Option<UnixMillis> {
        Tls::open(self.tls_files()?).ok()?.expiry()
    }

    fn limits(&self) -> ClientLimits {
        ClientLimits {
            requests_per_second: self.client_requests_per_second,
            burst: self.client_burst,
            changes_per_day: self.client_changes_per_day,
        }
    }

    pub(crate) fn audit_settings(&self) -> AuditSettings {
        AuditSettings { file_bytes_max: self.audit_file_bytes_max, files_max: self.audit_files_max }
    }

    /// Reads or downloads the keys of tokens.
    fn open_jwt(&self) -> anyhow::Result<Option<Jwt>> {
        let Some(key_set) = self.jwt_jwks.clone() else { return Ok(None) };
        let settings = JwtSettings {
            key_set,
            issuer: self.jwt_issuer.clone().unwrap_or_default(),
            audience: self.jwt_audience.clone().unwrap_or_default(),
            roles_claim: self.jwt_roles_claim.clone(),
            catalogs_claim: self.jwt_catalogs_claim.clone(),
            limits: self.limits(),
            refresh: JwtSettings::REFRESH,
            refresh_unknown_key: JwtSettings::REFRESH_UNKNOWN_KEY,
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Some(runtime.block_on(Jwt::open(settings))?))
    }

    /// Reads and checks the files, and reports all mistakes at once. Refuses an address that other machines reach without TLS and authentication.
    pub(crate) fn open(&self, address: &ListenAddresses) -> anyhow::Result<Security> {
        let mut problems = Vec::new();
        let mut note = |error: anyhow::Error| problems.push(format_error_chain(&*error));
        let tls = self.tls_files().map(Tls::open).transpose();
        let tls = tls.map_err(|error| note(error.into())).ok().flatten();
        let api_keys = self.api_keys.as_deref().map(|path| ApiKeys::open(path, self.limits())).transpose();
        let api_keys = api_keys.map_err(|error| note(error.into())).ok().flatten();
        let jwt = self.open_jwt().map_err(&mut note).ok().flatten();
        // Of the settings, because files with a mistake are reported above.
        let knows_clients = self.api_keys.is_some() || self.jwt_jwks.is_some();
        if self.limits() != ClientLimits::default() && !knows_clients {
            note(anyhow::anyhow!(
                "--client-requests-per-second and --client-changes-per-day are limits of each client, and the server does \
                 not know them; set --api-keys or --jwt-jwks"
            ));
        }
        if !address.is_loopback() && !self.insecure {
            let authenticates = knows_clients || self.tls_client_ca.is_some();
            let missing = match (self.tls_cert.is_some(), authenticates) {
                (true, true) => "",
                (false, true) => "encryption: set --tls-cert and --tls-key",
                (true, false) => "authentication: set --api-keys, --jwt-jwks or --tls-client-ca",
                (false, false) => "encryption and authentication: set --tls-cert, --tls-key and --api-keys",
            };
            if !missing.is_empty() {
                note(anyhow::anyhow!(
                    "--listen {}: other machines reach this address, and the server has no {missing}; or listen on \
                     127.0.0.1; or state with --insecure that the network is trusted",
                    address.text()
                ));
            }
        }
        anyhow::ensure!(problems.is_empty(), "{}", problems.join("; "));
        Ok(Security { tls: tls.map(Arc::new), api_keys: api_keys.map(Arc::new), jwt: jwt.map(Arc::new) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        security: SecurityArgs,
    }

    fn open(arguments: &[&str], listen: &str) -> anyhow::Result<Security> {
        let command = Command::try_parse_from(std::iter::once(&"serve").chain(arguments))?;
        command.security.open(&ListenAddresses::resolve("--listen", listen).unwrap())
    }

    #[test]
    fn an_address_that_others_reach_needs_tls_and_authentication() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name).display().to_string();
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate =
            rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap().self_signed(&key).unwrap();
        std::fs::write(path("cert"), certificate.pem()).unwrap();
        std::fs::write(path("key"), key.serialize_pem()).unwrap();
        let hash = crate::server::NewKey::of([1; 32]).hash;
        std::fs::write(path("keys"), format!("[[keys]]\nname = \"a\"\nhash = \"{hash}\"\nroles = [\"rank\"]\n"))
            .unwrap();
        let tls = ["--tls-cert".to_owned(), path("cert"), "--tls-key".to_owned(), path("key")];
        let tls: Vec<&str> = tls.iter().map(String::as_str).collect();
        let (keys, certificate) = (path("keys"), path("cert"));
        let (keys, mutual) = (["--api-keys", keys.as_str()], ["--tls-client-ca", certificate.as_str()]);
        for loopback in ["127.0.0.1:0", "[::1]:0", "localhost:0"] {
            assert!(open(&[], loopback).is_ok(), "{loopback}");
        }
        for public in ["0.0.0.0:0", "[::]:0", "192.0.2.1:0"] {
            assert!(open(&["--insecure"], public).is_ok());
            assert!(open(&[&tls[..], &keys[..]].concat(), public).is_ok());
            assert!(open(&[&tls[..], &mutual[..]].concat(), public).is_ok());
            for (arguments, part) in [
                (vec![], "no encryption and authentication: set --tls-cert, --tls-key and --api-keys"),
                (tls.clone(), "no authentication: set --api-keys, --jwt-jwks or --tls-client-ca"),
                (keys.to_vec(), "no encryption: set --tls-cert and --tls-key"),
            ] {
                let error = open(&arguments, public).err().unwrap().to_string();
                assert!(error.starts_with(&format!("--listen {public}")) && error.contains(part), "{error}");
                assert!(error.contains("--insecure"), "{error}");
            }
        }
        // All mistakes are reported at once.
        let error = open(&["--api-keys", "/none"], "0.0.0.0:0").err().unwrap().to_string();
        assert!(error.contains("--api-keys /none: cannot be read") && error.contains("no encryption: set"), "{error}");
        let files = ["--api-keys", "/none", "--tls-cert", "/no.pem", "--tls-key", "/no.key"];
        let error = open(&files, "0.0.0.0:0").err().unwrap().to_string();
        assert!(error.contains("--api-keys /none") && error.contains("/no.pem"), "{error}");
        assert!(!error.contains("no encryption"), "{error}");
        for arguments in [&tls[..2], &mutual[..]] {
            assert!(open(arguments, "127.0.0.1:0").is_err(), "{arguments:?} needs the other files");
        }
        let error = open(&["--api-keys", "/none"], "127.0.0.1:0").err().unwrap().to_string();
        assert!(error.starts_with("--api-keys /none: cannot be read"), "{error}");
    }

    #[test]
    fn tokens_need_an_issuer_and_an_audience_and_limits_need_clients() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("jwks.json");
        // A key of RFC 8037.
        let key = r#"{"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#;
        std::fs::write(&path, format!("{{\"keys\": [{key}]}}")).unwrap();
        let jwks = path.display().to_string();
        let jwks = ["--jwt-jwks", jwks.as_str()];
        let (issuer, audience) = (["--jwt-issuer", "https://id.shop.test/"], ["--jwt-audience", "lodestone"]);
        let all = [jwks, issuer, audience].concat();
        assert!(open(&all, "127.0.0.1:0").unwrap().jwt.is_some());
        let limited = [&all[..], &["--client-requests-per-second", "5", "--client-burst", "9"]].concat();
        assert!(open(&limited, "[::1]:0").is_ok());
        let at = |location| [["--jwt-jwks", location], issuer, audience].concat();
        for (arguments, part) in [
            ([jwks, issuer].concat(), "--jwt-audience"),
            ([jwks, audience].concat(), "--jwt-issuer"),
            ([issuer, audience].concat(), "--jwt-jwks"),
            (at("http://id.shop.test/"), "https://"),
            (at("/none"), "--jwt-jwks /none: cannot be read"),
            (vec!["--client-changes-per-day", "5"], "set --api-keys or --jwt-jwks"),
            (vec!["--client-requests-per-second", "0"], "--client-requests-per-second"),
            (vec!["--client-burst", "5"], "--client-requests-per-second"),
        ] {
            let error = open(&arguments, "127.0.0.1:0").err().unwrap().to_string();
            assert!(error.contains(part), "{part}: {error}");
        }
        std::fs::write(&path, "{\"keys\": []}").unwrap();
        let error = open(&all, "127.0.0.1:0").err().unwrap().to_string();
        assert!(error.starts_with("--jwt-jwks ") && error.contains("none of its 0 keys"), "{error}");
    }
}
