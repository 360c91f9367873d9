//! Who may reach the server: TLS, API keys, and the refusal to serve strangers.
use super::listen::ListenAddresses;
use crate::server::{ApiKeys, Tls, TlsFiles};
use lodestone_core::units::UnixMillis;
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
    /// Serves without encryption or without authentication on an address that other machines reach. Only for networks
    /// in which every machine is trusted, or behind a proxy that does both.
    #[arg(long, env = "LODESTONE_INSECURE")]
    insecure: bool,
}

/// What the flags define.
pub(crate) struct Security {
    pub(crate) tls: Option<Arc<Tls>>,
    pub(crate) api_keys: Option<Arc<ApiKeys>>,
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

    /// Reads and checks the files. Refuses an address that other machines reach without TLS and authentication.
    pub(crate) fn open(&self, address: &ListenAddresses) -> anyhow::Result<Security> {
        let tls = self.tls_files().map(Tls::open).transpose()?;
        let api_keys = self.api_keys.as_deref().map(ApiKeys::open).transpose()?;
        if !address.is_loopback() && !self.insecure {
            let authenticates = api_keys.is_some() || tls.as_ref().is_some_and(Tls::verifies_clients);
            let missing = match (tls.is_some(), authenticates) {
                (true, true) => "",
                (false, true) => "encryption: set --tls-cert and --tls-key",
                (true, false) => "authentication: set --api-keys or --tls-client-ca",
                (false, false) => "encryption and authentication: set --tls-cert, --tls-key and --api-keys",
            };
            anyhow::ensure!(
                missing.is_empty(),
                "--listen {}: other machines reach this address, and the server has no {missing}; or listen on 127.0.0.1; \
                 or state with --insecure that the network is trusted",
                address.text()
            );
        }
        Ok(Security { tls: tls.map(Arc::new), api_keys: api_keys.map(Arc::new) })
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
                (tls.clone(), "no authentication: set --api-keys or --tls-client-ca"),
                (keys.to_vec(), "no encryption: set --tls-cert and --tls-key"),
            ] {
                let error = open(&arguments, public).err().unwrap().to_string();
                assert!(error.starts_with(&format!("--listen {public}")) && error.contains(part), "{error}");
                assert!(error.contains("--insecure"), "{error}");
            }
        }
        for arguments in [&tls[..2], &mutual[..]] {
            assert!(open(arguments, "127.0.0.1:0").is_err(), "{arguments:?} needs the other files");
        }
        let error = open(&["--api-keys", "/none"], "127.0.0.1:0").err().unwrap().to_string();
        assert!(error.starts_with("--api-keys /none: cannot be read"), "{error}");
    }
}
