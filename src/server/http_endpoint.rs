//! The HTTP endpoint of `--metrics-listen`: metrics for Prometheus, and probes for platforms whose gRPC probes know no
//! TLS.
use super::{Catalogs, health::Health};
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{ALLOW, CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use lodestone_engine::Engine;
use parking_lot::Mutex;
use std::{collections::BTreeMap, convert::Infallible, sync::Arc, time::Duration};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, oneshot},
    time::timeout,
};

/// Connections at a time. One more closes the oldest one whose request has not arrived, so that clients that send nothing
/// do not keep probes out; it waits if there is none.
const CONNECTIONS_MAX: usize = 64;
/// Time for the head of a request to arrive.
const HEAD_MAX: Duration = Duration::from_secs(1);
/// Time of a connection, which has one request: from accepting it until the client has read the response.
const CONNECTION_MAX: Duration = Duration::from_secs(10);
/// Greatest number of headers of a request.
const HEADERS_MAX: usize = 64;
/// Greatest size of the head of a request in bytes.
const HEAD_BYTES_MAX: usize = 16 << 10;
/// Time until connections are accepted again after the system refused one.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

const TEXT: &str = "text/plain; charset=utf-8";
const METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The commit of the build. The variable is set by whoever builds, because a build needs no git.
const GIT_COMMIT: Option<&str> = option_env!("LODESTONE_GIT_COMMIT");

/// The body of `/version`.
#[derive(serde::Serialize)]
struct Version {
    version: &'static str,
    git_commit: Option<&'static str>,
    /// The current bundle of each catalogue.
    bundles: BTreeMap<String, String>,
}

/// Answers requests until it is dropped.
pub async fn serve(listener: TcpListener, catalogs: Catalogs, health: Health) {
    let (endpoint, places) = (Endpoint { catalogs, health }, Arc::new(Semaphore::new(CONNECTIONS_MAX)));
    let heads = Heads::default();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                if places.available_permits() == 0 {
                    heads.close_oldest();
                }
                let place = places.clone().acquire_owned().await;
                let endpoint = endpoint.clone();
                let (head, closed) = heads.begin();
                tokio::spawn(async move {
                    tokio::select! {
                        served = timeout(CONNECTION_MAX, endpoint.serve(stream, head)) => if served.is_err() {
                            tracing::debug!("a connection of the HTTP endpoint took longer than {CONNECTION_MAX:?}");
                        },
                        // Fails when the request has arrived: then only the time limit ends the connection.
                        Ok(()) = closed => tracing::debug!("closed a connection of the HTTP endpoint without a request"),
                    }
                    drop(place);
                });
            }
            Err(error) => {
                // No file descriptors are left, most likely; they come back.
                tracing::warn!(%error, "the HTTP endpoint could not take a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// The connections whose requests have not arrived.
#[derive(Clone, Default)]
struct Heads(Arc<Mutex<OpenHeads>>);

#[derive(Default)]
struct OpenHeads {
    /// By number, so the first one is the oldest.
    closers: BTreeMap<u64, oneshot::Sender<()>>,
    next_number: u64,
}

impl Heads {
    /// Begins a connection. The receiver resolves when the connection must be closed.
    fn begin(&self) -> (Head, oneshot::Receiver<()>) {
        let (closer, closed) = oneshot::channel();
        let heads = &mut *self.0.lock();
        let number = heads.next_number;
        heads.next_number += 1;
        heads.closers.insert(number, closer);
        (Head { heads: self.clone(), number }, closed)
    }

    fn close_oldest(&self) {
        if let Some((_, closer)) = self.0.lock().closers.pop_first() {
            // Fails if the connection has just ended.
            let _ = closer.send(());
        }
    }
}

/// A connection whose request has not arrived, until it ends.
struct Head {
    heads: Heads,
    number: u64,
}

impl Head {
    fn arrived(&self) {
        self.heads.0.lock().closers.remove(&self.number);
    }
}

impl Drop for Head {
    fn drop(&mut self) {
        self.arrived();
    }
}

#[derive(Clone)]
struct Endpoint {
    catalogs: Catalogs,
    health: Health,
}

/// A response before it is sent: its code, its type and its body.
type Answer = (StatusCode, &'static str, String);

impl Endpoint {
    /// Answers the request of a connection.
    async fn serve(self, stream: TcpStream, head: Head) {
        let (endpoint, head) = (&self, &head);
        let answer = service_fn(move |request| {
            head.arrived();
            async move { Ok::<_, Infallible>(endpoint.respond(request).await) }
        });
        let mut server = http1::Builder::new();
        server.timer(TokioTimer::new()).header_read_timeout(HEAD_MAX).keep_alive(false);
        server.max_headers(HEADERS_MAX).max_buf_size(HEAD_BYTES_MAX);
        if let Err(error) = server.serve_connection(TokioIo::new(stream), answer).await {
            tracing::debug!(%error, "a client of the HTTP endpoint went away");
        }
    }

    async fn respond(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (status, kind, body) = match [Method::GET, Method::HEAD].contains(request.method()) {
            true => self.answer(request.uri().path(), request.uri().query()).await,
            false => (StatusCode::METHOD_NOT_ALLOWED, TEXT, "only GET and HEAD\n".to_owned()),
        };
        let mut response = Response::new(Full::new(Bytes::from(body)));
        *response.status_mut() = status;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        if status == StatusCode::METHOD_NOT_ALLOWED {
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        }
        response
    }

    async fn answer(&self, path: &str, query: Option<&str>) -> Answer {
        match path {
            "/metrics" => (StatusCode::OK, METRICS, self.catalogs.metrics_text()),
            "/livez" => (StatusCode::OK, TEXT, "alive\n".to_owned()),
            "/readyz" => self.readiness(query.unwrap_or_default()).await,
            "/version" => (StatusCode::OK, "application/json", self.version()),
            _ => {
                let paths = "the paths are /metrics, /livez, /readyz and /version\n";
                (StatusCode::NOT_FOUND, TEXT, paths.to_owned())
            }
        }
    }

    /// Returns whether the server, or the service of the query `service=NAME`, is SERVING, and why something is not.
    async fn readiness(&self, query: &str) -> Answer {
        let service = match query.split_once('=') {
            _ if query.is_empty() => "",
            Some(("service", name)) => name,
            _ => return (StatusCode::BAD_REQUEST, TEXT, "the only parameter is service=NAME\n".to_owned()),
        };
        let (status, word) = match self.health.is_serving(service).await {
            Some(true) => (StatusCode::OK, "ready"),
            Some(false) => (StatusCode::SERVICE_UNAVAILABLE, "not ready"),
            None => {
                let problem = "there is no such service; names are those of grpc.health.v1, such as \
                               lodestone.v1.EventService\n";
                return (StatusCode::NOT_FOUND, TEXT, problem.to_owned());
            }
        };
        let lines = std::iter::once(word.to_owned()).chain(self.health.reasons());
        (status, TEXT, lines.map(|line| line + "\n").collect())
    }

    fn version(&self) -> String {
        let bundle = |(catalog, engine): (&str, &Arc<Engine>)| (catalog.to_owned(), engine.generation().to_string());
        let version = Version {
            version: env!("CARGO_PKG_VERSION"),
            git_commit: GIT_COMMIT.filter(|commit| !commit.is_empty()),
            bundles: self.catalogs.iter().map(bundle).collect(),
        };
        serde_json::to_string(&version).expect("a struct of texts is JSON") + "\n"
    }
}
