//! Addresses to listen on.
use anyhow::Context;
use std::net::{SocketAddr, ToSocketAddrs};
use tokio::net::TcpListener;

/// The addresses of a host and a port, those of IPv4 first, as clients on the same machine expect of `localhost`.
#[derive(Debug)]
pub(crate) struct ListenAddresses {
    /// As given, `HOST:PORT`.
    text: String,
    addresses: Vec<SocketAddr>,
}

impl ListenAddresses {
    /// Resolves `HOST:PORT`, where the host is a name or an IP address. `flag` is named in errors.
    pub(crate) fn resolve(flag: &str, text: &str) -> anyhow::Result<Self> {
        let is_host = |host: &str| !host.is_empty() && !host.contains(['/', ' ']);
        anyhow::ensure!(
            text.rsplit_once(':').is_some_and(|(host, port)| is_host(host) && port.parse::<u16>().is_ok()),
            "{flag} is `{text}`; it must be HOST:PORT, such as localhost:50051, 0.0.0.0:50051 or [::]:50051"
        );
        let resolved =
            text.to_socket_addrs().with_context(|| format!("{flag}: cannot resolve the host of `{text}`"))?;
        let mut addresses: Vec<SocketAddr> = resolved.collect();
        addresses.sort_by_key(SocketAddr::is_ipv6);
        Ok(Self { text: text.to_owned(), addresses })
    }

    /// Returns the address as given, `HOST:PORT`.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// Returns true if only this machine reaches the addresses.
    pub(crate) fn is_loopback(&self) -> bool {
        self.addresses.iter().all(|address| address.ip().to_canonical().is_loopback())
    }

    /// Listens on the first of the addresses that can be bound.
    pub(crate) async fn bind(&self) -> anyhow::Result<TcpListener> {
        TcpListener::bind(&self.addresses[..]).await.with_context(|| format!("cannot listen on {}", self.text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn host_names_and_ip_addresses_are_bound() {
        for text in ["localhost:0", "127.0.0.1:0"] {
            let listener = ListenAddresses::resolve("--listen", text).unwrap().bind().await.unwrap();
            let address = listener.local_addr().unwrap();
            assert!(address.ip().is_loopback() && address.is_ipv4(), "{text}: {address}");
        }
        let all = ListenAddresses::resolve("--listen", "[::1]:50051").unwrap().addresses;
        assert_eq!(all, ["[::1]:50051".parse().unwrap()]);
    }

    #[test]
    fn an_address_that_is_none_is_refused_with_its_flag() {
        // A label of a host name has at most 63 characters, so that no server is asked for it.
        let unknown = format!("{}:50051", "x".repeat(64));
        for (text, part) in [
            ("localhost", "must be HOST:PORT"),
            (":50051", "must be HOST:PORT"),
            ("", "must be HOST:PORT"),
            ("localhost:", "must be HOST:PORT"),
            ("localhost:port", "must be HOST:PORT"),
            ("localhost:65536", "must be HOST:PORT"),
            ("http://localhost:50051", "must be HOST:PORT"),
            (&unknown, "cannot resolve the host of `xxx"),
        ] {
            let error = format!("{:#}", ListenAddresses::resolve("--metrics-listen", text).unwrap_err());
            assert!(error.starts_with("--metrics-listen") && error.contains(part), "{text}: {error}");
        }
    }
}
