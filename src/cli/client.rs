//! The server that a command calls, its catalogue, and how the command proves who it is.
use super::catalogs::catalog_name;
use crate::server::{CATALOG_METADATA, DEFAULT_CATALOG};
use anyhow::{Context, ensure};
use std::{fs, net::IpAddr, path::PathBuf, time::Duration};
use tonic::{
    Code, Request, Status,
    metadata::AsciiMetadataValue,
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The environment variable of an API key. It is no flag, because other users of a machine see the flags of processes.
const API_KEY: &str = "LODESTONE_API_KEY";

/// A running server.
#[derive(clap::Args)]
pub(crate) struct ServerArgs {
    /// Address of the server.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:50051")]
    address: String,
    /// Catalogue of the server: a name of the file of `lodestone serve --catalogs`, or `default`.
    #[arg(long, value_name = "NAME", value_parser = metadata, default_value = DEFAULT_CATALOG)]
    catalog: AsciiMetadataValue,
    /// Connects with TLS, and accepts a server whose certificate is of an authority in this PEM file.
    #[arg(long, value_name = "FILE")]
    tls_ca: Option<PathBuf>,
    /// The name in the server's certificate, if it is not the host of --address.
    #[arg(long, value_name = "NAME", requires = "tls_ca")]
    tls_server_name: Option<String>,
    /// PEM file with the certificate of this client, for a server that verifies clients.
    #[arg(long, value_name = "FILE", requires_all = ["tls_ca", "tls_key"])]
    tls_cert: Option<PathBuf>,
    /// PEM file with the private key of --tls-cert.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// File with the API key. Default: the environment variable LODESTONE_API_KEY, and no key without it.
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// Sends the API key without TLS to another machine.
    #[arg(long)]
    insecure: bool,
}

/// A connection whose requests name their catalogue and have the API key.
pub(crate) type ServerChannel = InterceptedService<Channel, CallMetadata>;

/// Adds the name of the catalogue and the API key to requests.
#[derive(Clone)]
pub(crate) struct CallMetadata {
    catalog: AsciiMetadataValue,
    authorization: Option<AsciiMetadataValue>,
}

impl Interceptor for CallMetadata {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert(CATALOG_METADATA, self.catalog.clone());
        if let Some(authorization) = &self.authorization {
            request.metadata_mut().insert("authorization", authorization.clone());
        }
        Ok(request)
    }
}

/// Parses the name of a catalogue.
fn metadata(name: &str) -> Result<AsciiMetadataValue, String> {
    let name = catalog_name(name)?;
    name.parse().map_err(|_| format!("`{name}` cannot be sent as metadata"))
}

impl ServerArgs {
    pub(crate) async fn connect(&self) -> anyhow::Result<ServerChannel> {
        let address = &self.address;
        let authorization = self.authorization()?;
        let scheme = if self.tls_ca.is_some() { "https" } else { "http" };
        let mut endpoint = Endpoint::from_shared(format!("{scheme}://{address}")).context("--address")?;
        endpoint = endpoint.tcp_nodelay(true).connect_timeout(CONNECT_TIMEOUT);
        if let Some(tls) = self.tls()? {
            endpoint = endpoint.tls_config(tls).context("--tls-ca, --tls-cert and --tls-key")?;
        }
        let channel = endpoint.connect().await.map_err(|error| {
            let error = anyhow::Error::new(error);
            let context = connection_context(address, &error);
            error.context(context)
        })?;
        Ok(InterceptedService::new(channel, CallMetadata { catalog: self.catalog.clone(), authorization }))
    }

    /// Formats the code and the message of a failed call, with the options that a failed connection needs.
    pub(crate) fn describe(&self, status: &Status) -> String {
        // A server that expects TLS closes a connection without it, and one that verifies clients ends the handshake of TLS
        // 1.3 after the client regards it as finished, so that the first call fails.
        let is_of_connection = ["transport error", "h2 protocol error"].iter().any(|of| status.message().contains(of));
        let hint = match (is_of_connection, &self.tls_ca, &self.tls_cert) {
            (true, None, _) => "; if the server uses TLS, set --tls-ca",
            (true, Some(_), None) => "; if the server verifies clients, set --tls-cert and --tls-key",
            _ => "",
        };
        format!("{:?}: {}{hint}", status.code(), status.message())
    }

    fn tls(&self) -> anyhow::Result<Option<ClientTlsConfig>> {
        let read = |flag: &str, path: &PathBuf| fs::read(path).with_context(|| format!("{flag} {}", path.display()));
        let Some(ca) = &self.tls_ca else { return Ok(None) };
        let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read("--tls-ca", ca)?));
        if let Some(name) = &self.tls_server_name {
            tls = tls.domain_name(name);
        }
        if let Some((certificate, key)) = self.tls_cert.as_ref().zip(self.tls_key.as_ref()) {
            tls = tls.identity(Identity::from_pem(read("--tls-cert", certificate)?, read("--tls-key", key)?));
        }
        Ok(Some(tls))
    }

    /// Returns the value of the metadata `authorization`. Refuses to send a key that others on the network could read.
    fn authorization(&self) -> anyhow::Result<Option<AsciiMetadataValue>> {
        #[expect(clippy::disallowed_methods, reason = "a secret is no argument")]
        let key = match &self.api_key_file {
            Some(path) => {
                let shown = || format!("--api-key-file {}", path.display());
                let key = fs::read_to_string(path).with_context(shown)?;
                let is_key = !key.trim().is_empty() && key.trim().chars().all(|of| of.is_ascii_graphic());
                ensure!(
                    is_key,
                    "{}: expected the key alone, on one line of printable ASCII without spaces, as `lodestone key create \
                     --out` writes it",
                    shown()
                );
                Some(key)
            }
            None => std::env::var(API_KEY).ok(),
        };
        let Some(key) = key.map(|key| key.trim().to_owned()).filter(|key| !key.is_empty()) else { return Ok(None) };
        ensure!(
            self.tls_ca.is_some() || self.insecure || is_loopback(&self.address),
            "--address {} is another machine, and the API key would be sent without encryption; set --tls-ca, or \
             --insecure if the network is trusted",
            self.address
        );
        let mut value: AsciiMetadataValue =
            format!("Bearer {key}").parse().context("the API key is not printable ASCII")?;
        // Not in logs, and not in the compression state of HTTP/2.
        value.set_sensitive(true);
        Ok(Some(value))
    }
}

/// Returns true if the same command may succeed later.
pub(crate) fn is_repeatable(status: &Status) -> bool {
    !matches!(status.code(), Code::Unauthenticated | Code::PermissionDenied | Code::InvalidArgument)
}

/// Tells a refused certificate apart from a server that does not answer. rustls reports it as text within an I/O error.
fn connection_context(address: &str, error: &anyhow::Error) -> String {
    let chain = error.chain().map(ToString::to_string).collect::<Vec<_>>().join(": ");
    if !chain.contains("invalid peer certificate") {
        return format!("no server answers at {address} (--address)");
    }
    let remedy = if chain.contains("CaUsedAsEndEntity") {
        "it is the certificate of an authority; create it with basicConstraints=critical,CA:FALSE"
    } else if chain.contains("not valid for name") || chain.contains("NotValidForName") {
        "it has another name; set --tls-server-name, or create it with subjectAltName"
    } else {
        "it must be of an authority in --tls-ca, and valid now"
    };
    format!("the certificate of the server at {address} is refused: {remedy} (docs/security.md)")
}

/// Returns true if `HOST:PORT` is this machine.
fn is_loopback(address: &str) -> bool {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        server: ServerArgs,
    }

    pub(crate) fn server(arguments: &[&str]) -> ServerArgs {
        Command::try_parse_from(["program"].iter().chain(arguments)).unwrap().server
    }

    #[test]
    fn a_file_with_more_than_a_key_is_an_error_with_option_file_and_cause() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key").display().to_string();
        for text in ["", "lodestone_secret\nThis is the key", "lodestone secret"] {
            fs::write(&path, text).unwrap();
            let error = server(&["--api-key-file", &path]).authorization().unwrap_err().to_string();
            assert!(error.starts_with(&format!("--api-key-file {path}: expected the key alone")), "{error}");
        }
    }

    #[test]
    fn failed_connections_name_the_options_of_tls() {
        let lost = Status::unavailable("transport error");
        assert!(server(&[]).describe(&lost).ends_with("set --tls-ca"));
        let (ca, own) = (["--tls-ca", "ca.pem"], ["--tls-cert", "c.pem", "--tls-key", "k.pem"]);
        assert!(server(&ca).describe(&lost).ends_with("set --tls-cert and --tls-key"));
        assert_eq!(server(&[&ca[..], &own[..]].concat()).describe(&lost), "Unavailable: transport error");
        assert_eq!(server(&[]).describe(&Status::unauthenticated("no key")), "Unauthenticated: no key");
        assert!(is_repeatable(&lost) && !is_repeatable(&Status::permission_denied("")));
    }

    #[tokio::test]
    async fn a_refused_certificate_is_told_apart_from_a_missing_server() {
        let error = server(&["--address", "127.0.0.1:1"]).connect().await.err().unwrap().to_string();
        assert_eq!(error, "no server answers at 127.0.0.1:1 (--address)");
        for (cause, remedy) in [
            ("Other(OtherError(CaUsedAsEndEntity))", "CA:FALSE"),
            ("UnknownIssuer", "--tls-ca"),
            ("certificate not valid for name", "--tls-server-name"),
        ] {
            let error = anyhow::anyhow!("invalid peer certificate: {cause}").context("transport error");
            let text = connection_context("shop:1", &error);
            assert!(text.contains("is refused") && text.contains(remedy), "{text}");
        }
    }

    #[test]
    fn an_api_key_is_sent_to_this_machine_or_with_tls() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key").display().to_string();
        fs::write(&path, "lodestone_secret\n").unwrap();
        for (address, arguments, is_sent) in [
            ("127.0.0.1:1", vec![], true),
            ("[::1]:1", vec![], true),
            ("localhost:1", vec![], true),
            ("shop.example:1", vec![], false),
            ("10.0.0.1:1", vec![], false),
            ("10.0.0.1:1", vec!["--insecure"], true),
            ("10.0.0.1:1", vec!["--tls-ca", "ca.pem"], true),
        ] {
            let flags = ["program", "--api-key-file", path.as_str(), "--address", address];
            let server = Command::try_parse_from(flags.into_iter().chain(arguments)).unwrap().server;
            match server.authorization() {
                Ok(Some(value)) => assert!(is_sent && value == "Bearer lodestone_secret" && value.is_sensitive()),
                Ok(None) => panic!("the key is lost"),
                Err(error) => assert!(!is_sent && error.to_string().contains("--tls-ca"), "{address}: {error}"),
            }
        }
    }
}
