//! Accepts connections: limits their number, encrypts them, and closes those that send no request.
use super::{ServerConfig, throttle::Throttle, tls::Tls};
use futures_util::{Stream, StreamExt, future::BoxFuture, stream};
use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch},
    time::{Sleep, sleep, timeout},
};
use tokio_rustls::server::TlsStream;
use tonic::transport::server::TcpIncoming;

/// The bytes with which an HTTP/2 client begins (RFC 9113, section 3.4).
const PREFACE_BYTES: usize = 24;
/// Time without traffic after which the system asks whether the peer still exists, and between its questions.
const TCP_KEEPALIVE: Duration = Duration::from_secs(60);
/// Time between two attempts while the system has no more file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Time between two log lines about refused connections.
const LOG_INTERVAL: Duration = Duration::from_secs(10);
/// Connections that wait for the server after their handshakes.
const READY_MAX: usize = 64;

/// Closes all connections, also when it is dropped. Each connection has a receiver, so that they are counted.
pub(super) struct Closer(watch::Sender<bool>);

impl Closer {
    pub(super) fn new() -> Self {
        Self(watch::Sender::new(false))
    }

    pub(super) fn close(&self) {
        self.0.send_replace(true);
    }

    /// The number of open connections while none is accepted any more.
    pub(super) fn connection_count(&self) -> usize {
        self.0.receiver_count()
    }
}

/// Accepts connections until the returned stream is dropped. A connection above the limit is closed at once, so that the
/// client tries another server instead of waiting.
pub(super) fn accept(
    listener: TcpListener,
    config: &ServerConfig,
    closer: &Closer,
) -> impl Stream<Item = Connection> + use<> {
    let (sender, receiver) = mpsc::channel(READY_MAX);
    tokio::spawn(run(listener, config.clone(), closer.0.subscribe(), sender));
    stream::unfold(receiver, |mut receiver| async move {
        let connection = receiver.recv().await?;
        Some((connection, receiver))
    })
}

async fn run(
    listener: TcpListener,
    config: ServerConfig,
    close: watch::Receiver<bool>,
    ready: mpsc::Sender<Connection>,
) {
    let ServerConfig { tls, connections_max, handshake_max, write_blocked_max, .. } = config;
    let places = Arc::new(Semaphore::new(connections_max));
    // The builder's settings do not apply to a listener that is already bound.
    let mut incoming = TcpIncoming::from(listener)
        .with_nodelay(Some(true))
        .with_keepalive(Some(TCP_KEEPALIVE))
        .with_keepalive_interval(Some(TCP_KEEPALIVE));
    let refusals = Throttle::new(1, LOG_INTERVAL);
    loop {
        let accepted = tokio::select! {
            accepted = incoming.next() => accepted,
            () = ready.closed() => return,
        };
        match accepted {
            None => return,
            Some(Err(error)) if is_of_peer(&error) => {
                tracing::debug!(%error, "a connection ended before it was accepted")
            }
            Some(Err(error)) => {
                log_refused(&refusals, &format!("the system accepts no connection: {error}"));
                // The connection stays in the backlog, so accepting it again at once would take all time of a core.
                sleep(ACCEPT_PAUSE).await;
            }
            Some(Ok(stream)) => match places.clone().try_acquire_owned() {
                Ok(place) => {
                    let hold = Hold { close: close.clone(), place, write_blocked_max };
                    tokio::spawn(hand_over(stream, tls.clone(), handshake_max, hold, ready.clone()));
                }
                Err(_) => {
                    log_refused(&refusals, &format!("there are {connections_max} connections (--connections-max)"))
                }
            },
        }
    }
}

/// Returns true if a connection failed and not the listener.
fn is_of_peer(error: &io::Error) -> bool {
    use io::ErrorKind::{
        BrokenPipe, ConnectionAborted, ConnectionRefused, ConnectionReset, InvalidInput, NotConnected,
    };
    // Options of a socket whose peer has gone cannot be set: EINVAL or ENOTCONN.
    [BrokenPipe, ConnectionAborted, ConnectionRefused, ConnectionReset, InvalidInput, NotConnected]
        .contains(&error.kind())
}

/// What an open connection holds.
struct Hold {
    close: watch::Receiver<bool>,
    place: OwnedSemaphorePermit,
    write_blocked_max: Duration,
}

/// Passes a connection to the server after its TLS handshake.
async fn hand_over(
    stream: TcpStream,
    tls: Option<Arc<Tls>>,
    handshake_max: Duration,
    Hold { mut close, place, write_blocked_max }: Hold,
    ready: mpsc::Sender<Connection>,
) {
    let io = match tls {
        None => Io::Plain(stream),
        Some(tls) => match timeout(handshake_max, tls.acceptor().accept(stream)).await {
            Ok(Ok(stream)) => Io::Tls(Box::new(stream)),
            Ok(Err(error)) => return tracing::debug!(%error, "a TLS handshake failed"),
            Err(_) => return tracing::debug!("a TLS handshake took longer than {handshake_max:?}"),
        },
    };
    let preface = Some((Box::pin(sleep(handshake_max)), 0));
    let closed: BoxFuture<'static, ()> = Box::pin(async move {
        // Fails if the server has ended.
        let _ = close.wait_for(|is_closing| *is_closing).await;
    });
    // Fails if the server stops.
    let blocked = WriteLimit { limit: write_blocked_max, timer: None };
    let _ = ready.send(Connection { io, preface, blocked, closed: Some(closed), _place: place }).await;
}

/// Logs refused connections, at most once in [`LOG_INTERVAL`].
fn log_refused(throttle: &Throttle, reason: &str) {
    if let Some(omitted) = throttle.admit(Instant::now()) {
        tracing::warn!(refused = omitted + 1, reason, "refused connections");
    }
}

enum Io {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// A connection of a client. Its place is free again when it is dropped.
pub(super) struct Connection {
    io: Io,
    /// Until the client has sent the preface of HTTP/2: its time limit, and the number of bytes so far. Afterwards the
    /// pings of HTTP/2 find dead clients.
    preface: Option<(Pin<Box<Sleep>>, usize)>,
    blocked: WriteLimit,
    /// Resolves when the server closes its connections. None: it has.
    closed: Option<BoxFuture<'static, ()>>,
    _place: OwnedSemaphorePermit,
}

/// The limit of the time in which a client reads nothing of what is sent to it. Until it does, HTTP/2 reads nothing either,
/// so neither pings nor GOAWAY end such a connection.
struct WriteLimit {
    limit: Duration,
    /// Since a write or flush was blocked. None: none is.
    timer: Option<Pin<Box<Sleep>>>,
}

impl WriteLimit {
    /// Polls while nothing can be written. Ready when the time is over.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(self.limit)));
        ready!(timer.as_mut().poll(context));
        Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, "the client did not read what was sent to it"))
    }
}

impl Connection {
    /// Returns what an attempt to write or to flush resulted in, or an error if the connection must end. `is_flushed`: TLS
    /// has nothing left to send if it was successful.
    fn written<T>(
        &mut self,
        context: &mut Context<'_>,
        polled: Poll<io::Result<T>>,
        is_flushed: bool,
    ) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            // TLS takes some bytes while the system takes none.
            if is_flushed || matches!(self.io, Io::Plain(_)) {
                self.blocked.timer = None;
            }
            return polled;
        }
        if self.poll_closed(context).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        self.blocked.poll(context).map(Err)
    }

    fn poll_closed(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if let Some(closed) = &mut self.closed {
            ready!(closed.as_mut().poll(context));
            self.closed = None;
        }
        Poll::Ready(())
    }
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let polled = match &mut this.io {
            Io::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Io::Tls(stream) => Pin::new(&mut **stream).poll_read(context, buffer),
        };
        if polled.is_ready() {
            if let Some((_, received)) = &mut this.preface {
                *received += buffer.filled().len() - before;
                if *received >= PREFACE_BYTES {
                    this.preface = None;
                }
            }
            return polled;
        }
        if this.poll_closed(context).is_ready() {
            // As if the client had closed it.
            return Poll::Ready(Ok(()));
        }
        let Some((limit, _)) = &mut this.preface else { return Poll::Pending };
        ready!(limit.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client began no HTTP/2")))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = match &mut this.io {
            Io::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Io::Tls(stream) => Pin::new(&mut **stream).poll_write(context, bytes),
        };
        this.written(context, polled, false)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = match &mut this.io {
            Io::Plain(stream) => Pin::new(stream).poll_write_vectored(context, parts),
            Io::Tls(stream) => Pin::new(&mut **stream).poll_write_vectored(context, parts),
        };
        this.written(context, polled, false)
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Io::Plain(stream) => stream.is_write_vectored(),
            Io::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let polled = match &mut this.io {
            Io::Plain(stream) => Pin::new(stream).poll_flush(context),
            Io::Tls(stream) => Pin::new(&mut **stream).poll_flush(context),
        };
        this.written(context, polled, true)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let polled = match &mut this.io {
            Io::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Io::Tls(stream) => Pin::new(&mut **stream).poll_shutdown(context),
        };
        this.written(context, polled, true)
    }
}
