//! Addresses to listen on.
use anyhow::{Context, ensure};
use std::{
    io,
    net::{IpAddr, SocketAddr, ToSocketAddrs},
};
use tokio::net::{TcpListener, TcpSocket};

/// Connections that wait to be accepted.
const BACKLOG: u32 = 1024;

/// The addresses of a host and a port, those of IPv4 first, as clients on the same machine expect of `localhost`.
#[derive(Debug)]
pub(crate) struct ListenAddresses {
    /// Named in errors.
    flag: &'static str,
    /// As given, `HOST:PORT`.
    text: String,
    addresses: Vec<SocketAddr>,
}

impl ListenAddresses {
    /// Resolves `HOST:PORT`, where the host is a name or an IP address. `flag` is named in errors.
    pub(crate) fn resolve(flag: &'static str, text: &str) -> anyhow::Result<Self> {
        let is_host = |host: &str| !host.is_empty() && !host.contains(['/', ' ']);
        anyhow::ensure!(
            text.rsplit_once(':').is_some_and(|(host, port)| is_host(host) && port.parse::<u16>().is_ok()),
            "{flag} is `{text}`; it must be HOST:PORT, such as localhost:50051, 0.0.0.0:50051 or [::]:50051"
        );
        let resolved =
            text.to_socket_addrs().with_context(|| format!("{flag}: cannot resolve the host of `{text}`"))?;
        let mut addresses: Vec<SocketAddr> = resolved.collect();
        addresses.sort_by_key(SocketAddr::is_ipv6);
        Ok(Self { flag, text: text.to_owned(), addresses })
    }

    /// Returns the address as given, `HOST:PORT`.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// Returns the flag and the address as given.
    pub(crate) fn shown(&self) -> String {
        format!("{} {}", self.flag, self.text)
    }

    /// Returns true if only this machine reaches the addresses.
    pub(crate) fn is_loopback(&self) -> bool {
        self.addresses.iter().all(|address| address.ip().to_canonical().is_loopback())
    }

    /// Checks that these addresses and others can be bound at the same time.
    pub(crate) fn check_distinct(&self, other: &Self) -> anyhow::Result<()> {
        // The first address is bound unless the machine does not have it.
        let overlaps = self.addresses.first().zip(other.addresses.first()).is_some_and(|(of, to)| overlap(*of, *to));
        ensure!(
            !overlaps,
            "{} {} has the port of {} {}; choose another port",
            other.flag,
            other.text,
            self.flag,
            self.text
        );
        Ok(())
    }

    /// Binds the first of the addresses that can be bound. Connections are refused until [`BoundAddress::listen`].
    pub(crate) fn bind(&self) -> anyhow::Result<BoundAddress> {
        let mut failure = io::Error::from(io::ErrorKind::AddrNotAvailable);
        for address in &self.addresses {
            match bind(*address) {
                Ok(socket) => return Ok(BoundAddress { flag: self.flag, text: self.text.clone(), socket }),
                Err(error) => failure = error,
            }
        }
        Err(problem(self.flag, &self.text, &failure))
    }
}

/// Returns whether two addresses cannot be bound at the same time. Port 0 is any free port.
fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    let (ip, other_ip) = (one.ip().to_canonical(), other.ip().to_canonical());
    // `::` includes all addresses of IPv4 too.
    let includes = |all: IpAddr, ip: IpAddr| all.is_unspecified() && (all.is_ipv6() || ip.is_ipv4());
    one.port() != 0
        && one.port() == other.port()
        && (ip == other_ip || includes(ip, other_ip) || includes(other_ip, ip))
}

fn bind(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // Otherwise a restarted server would wait for the end of the connections of the former one.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

/// Describes why an address cannot be listened on, with the remedy.
fn problem(flag: &str, text: &str, error: &io::Error) -> anyhow::Error {
    let remedy = match error.kind() {
        io::ErrorKind::AddrInUse => "stop the process that has the port, or choose another",
        io::ErrorKind::AddrNotAvailable => {
            "this machine does not have the address; choose one of its own, or 0.0.0.0 or [::] for all"
        }
        io::ErrorKind::PermissionDenied => "the user of the server may not use the port; choose one from 1024 on",
        _ => "choose another address",
    };
    anyhow::anyhow!("{flag} {text}: cannot listen: {error}; {remedy}")
}

/// An address that is bound and refuses connections. So a port in use is noticed before the models are loaded, and clients
/// try other servers meanwhile instead of waiting for this one.
#[derive(Debug)]
pub(crate) struct BoundAddress {
    flag: &'static str,
    text: String,
    socket: TcpSocket,
}

impl BoundAddress {
    /// Takes connections. Must be called within a runtime.
    pub(crate) fn listen(self) -> anyhow::Result<TcpListener> {
        // Fails if another process that bound the address at the same time listens now.
        self.socket.listen(BACKLOG).map_err(|error| problem(self.flag, &self.text, &error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn host_names_and_ip_addresses_are_bound() {
        for text in ["localhost:0", "127.0.0.1:0"] {
            let listener = ListenAddresses::resolve("--listen", text).unwrap().bind().unwrap().listen().unwrap();
            let address = listener.local_addr().unwrap();
            assert!(address.ip().is_loopback() && address.is_ipv4(), "{text}: {address}");
        }
        let all = ListenAddresses::resolve("--listen", "[::1]:50051").unwrap().addresses;
        assert_eq!(all, ["[::1]:50051".parse().unwrap()]);
    }

    #[tokio::test]
    async fn an_address_that_cannot_be_bound_is_refused_with_its_flag_and_the_remedy() {
        let resolve = |text: &str| ListenAddresses::resolve("--metrics-listen", text).unwrap();
        let used = resolve("127.0.0.1:0").bind().unwrap().listen().unwrap();
        let in_use = used.local_addr().unwrap().to_string();
        // An address for documentation (RFC 5737), which no machine has.
        for (text, part) in
            [(in_use.as_str(), "; stop the process that has the port, or choose another"), ("192.0.2.1:0", "0.0.0.0")]
        {
            let error = resolve(text).bind().unwrap_err().to_string();
            assert!(error.starts_with(&format!("--metrics-listen {text}: cannot listen: ")), "{error}");
            assert!(error.contains(part), "{error}");
        }
    }

    #[tokio::test]
    async fn a_bound_address_refuses_connections_until_the_server_listens() {
        let bound = ListenAddresses::resolve("--listen", "127.0.0.1:0").unwrap().bind().unwrap();
        let address = bound.socket.local_addr().unwrap();
        let refused = tokio::net::TcpStream::connect(address).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        let _listener = bound.listen().unwrap();
        assert!(tokio::net::TcpStream::connect(address).await.is_ok());
    }

    #[test]
    fn addresses_that_include_each_other_need_different_ports() {
        let check = |listen: &str, metrics: &str| {
            let listen = ListenAddresses::resolve("--listen", listen).unwrap();
            listen.check_distinct(&ListenAddresses::resolve("--metrics-listen", metrics).unwrap())
        };
        for (listen, metrics) in [
            ("127.0.0.1:50051", "127.0.0.1:50051"),
            ("127.0.0.1:50051", "localhost:50051"),
            ("0.0.0.0:50051", "127.0.0.1:50051"),
            ("[::1]:50051", "[::]:50051"),
            ("127.0.0.1:50051", "[::]:50051"),
            ("[::ffff:127.0.0.1]:50051", "127.0.0.1:50051"),
        ] {
            let error = check(listen, metrics).unwrap_err().to_string();
            let expected = format!("--metrics-listen {metrics} has the port of --listen {listen}; choose another port");
            assert_eq!(error, expected);
        }
        for (listen, metrics) in [
            ("127.0.0.1:50051", "127.0.0.1:9464"),
            ("127.0.0.1:0", "127.0.0.1:0"),
            ("127.0.0.1:50051", "127.0.0.2:50051"),
            ("127.0.0.1:50051", "[::1]:50051"),
            ("0.0.0.0:50051", "[::1]:50051"),
        ] {
            assert!(check(listen, metrics).is_ok(), "{listen} {metrics}");
        }
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
