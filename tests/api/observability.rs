//! What operators see: probes over HTTP, ids of requests, slow requests, traces. Through real connections.
use crate::{
    security::query,
    support::{bundles::Shop, wait::wait_until},
};
use lodestone::server::{
    self, Catalogs, Collector, Health, ServerConfig, Traces, http_endpoint,
    proto::{
        self, catalog_service_client::CatalogServiceClient, event_service_client::EventServiceClient,
        ranking_service_client::RankingServiceClient,
    },
};
use lodestone_engine::Engine;
use lodestone_rollout::HealthBounds;
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    trace::v1::Span,
};
use parking_lot::Mutex;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::oneshot,
    task::JoinHandle,
};
use tonic::{
    Code, Request, Response, Status,
    transport::{Channel, Endpoint, Identity, ServerTlsConfig, server::TcpIncoming},
};

/// The limit of waits for the server. A test on a busy machine may wait long.
const TIME_MAX: Duration = Duration::from_secs(60);
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SPAN: &str = "00f067aa0ba902b7";

/// A server with its HTTP endpoint.
struct Server {
    channel: Channel,
    http: SocketAddr,
    endpoint: JoinHandle<()>,
    stop: oneshot::Sender<()>,
    serving: JoinHandle<()>,
}

impl Server {
    async fn start(engine: &Arc<Engine>, config: ServerConfig) -> Self {
        let (listener, http) = (listen().await, listen().await);
        let address = format!("http://{}", listener.local_addr().unwrap());
        let (http_address, health) = (http.local_addr().unwrap(), Health::default());
        let config =
            ServerConfig { deadline_default: TIME_MAX, deadline_max: TIME_MAX, health: health.clone(), ..config };
        let (stop, stopped) = oneshot::channel::<()>();
        let shutdown = async move { stopped.await.unwrap_or_default() };
        let endpoint = tokio::spawn(http_endpoint::serve(http, engine.clone().into(), health));
        let served = server::serve(engine.clone(), config, listener, shutdown);
        let serving = tokio::spawn(async { served.await.unwrap() });
        let channel = Endpoint::from_shared(address).unwrap().connect().await.unwrap();
        Self { channel, http: http_address, endpoint, stop, serving }
    }

    /// Sends a request to the HTTP endpoint. Returns the status line with the headers, and the body.
    async fn http(&self, method: &str, path: &str) -> (String, String) {
        http(self.http, &format!("{method} {path} HTTP/1.1\r\nhost: test\r\n\r\n")).await
    }

    /// Returns the code and the body of a GET.
    async fn get(&self, path: &str) -> (u16, String) {
        let (head, body) = self.http("GET", path).await;
        (head[9..12].parse().unwrap(), body)
    }

    /// Stops the server, and then the HTTP endpoint.
    async fn end(self) {
        drop(self.channel);
        self.stop.send(()).unwrap();
        self.serving.await.unwrap();
        self.endpoint.abort();
        let _ = self.endpoint.await;
    }
}

async fn listen() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.unwrap()
}

async fn http(address: SocketAddr, request: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut response = Vec::new();
    tokio::time::timeout(TIME_MAX, stream.read_to_end(&mut response)).await.unwrap().unwrap();
    let response = String::from_utf8(response).unwrap();
    let (head, body) = response.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{response:?}"));
    (head.to_owned(), body.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_over_http_follow_the_health_of_the_server() {
    let shop = Shop::new();
    let engine = Arc::new(shop.open(HealthBounds::default()));
    let server = Server::start(&engine, ServerConfig::default()).await;
    assert_eq!(server.get("/livez").await, (200, "alive\n".to_owned()));
    assert_eq!(server.get("/readyz").await, (200, "ready\n".to_owned()));
    let (_, version) = server.get("/version").await;
    let version: serde_json::Value = serde_json::from_str(&version).unwrap();
    assert_eq!(version["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(version["bundles"]["default"], "a");
    let (code, metrics) = server.get("/metrics").await;
    assert!(code == 200 && metrics.contains("lodestone_items 40\n") && metrics.ends_with("# EOF\n"), "{metrics}");
    let (head, body) = server.http("HEAD", "/livez").await;
    assert!(head.starts_with("HTTP/1.1 200 ") && body.is_empty(), "{head} {body}");
    let (head, _) = server.http("POST", "/livez").await;
    assert!(head.starts_with("HTTP/1.1 405 ") && head.contains("allow: GET, HEAD"), "{head}");
    let events = "/readyz?service=lodestone.v1.EventService";
    for (path, code, text) in [
        ("/", 404, "/readyz"),
        (events, 200, "ready\n"),
        ("/readyz?service=none", 404, "no such service"),
        ("/readyz?verbose", 400, "service=NAME"),
    ] {
        let (found, body) = server.get(path).await;
        assert!(found == code && body.contains(text), "{path}: {found} {body}");
    }

    // Without its log the server takes no writes, and ranking continues.
    let (log, away) = (shop.data_path().join("log"), shop.data_path().join("away"));
    std::fs::rename(&log, &away).unwrap();
    let reason = "writes of catalogue default: files of the event log were removed, moved or replaced\n";
    wait_until("the log is missed", TIME_MAX, async || server.get(events).await.0 == 503).await;
    assert_eq!(server.get(events).await, (503, format!("not ready\n{reason}")));
    assert_eq!(server.get("/readyz").await, (200, format!("ready\n{reason}")));
    assert_eq!(server.get("/readyz?service=lodestone.v1.RankingService").await.0, 200);
    std::fs::rename(&away, &log).unwrap();
    wait_until("the log is back", TIME_MAX, async || server.get(events).await.0 == 200).await;
    assert_eq!(server.get("/readyz").await, (200, "ready\n".to_owned()));

    // A stopping server is not ready, and alive until it ends.
    let Server { channel, http, endpoint, stop, serving } = server;
    drop(channel);
    stop.send(()).unwrap();
    serving.await.unwrap();
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n");
    let (head, body) = self::http(http, &get("/readyz")).await;
    assert!(head.starts_with("HTTP/1.1 503 ") && body == "not ready\nserver: it is stopping\n", "{head} {body}");
    assert!(self::http(http, &get("/livez")).await.0.starts_with("HTTP/1.1 200 "));
    endpoint.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_http_endpoint_bounds_requests_and_connections() {
    let shop = Shop::new();
    let engine = Arc::new(shop.open(HealthBounds::default()));
    let server = Server::start(&engine, ServerConfig::default()).await;
    let many: String = (0..100).map(|number| format!("x-{number}: 1\r\n")).collect();
    let (head, _) = http(server.http, &format!("GET /livez HTTP/1.1\r\nhost: test\r\n{many}\r\n")).await;
    assert!(head.starts_with("HTTP/1.1 431 "), "{head}");
    let mut large = TcpStream::connect(server.http).await.unwrap();
    let head = format!("GET /livez HTTP/1.1\r\nhost: test\r\nx-large: {}\r\n\r\n", "x".repeat(256 << 10));
    // The endpoint closes the connection without reading the rest, which may reset it before its response is read.
    let _ = large.write_all(head.as_bytes()).await;
    let mut response = Vec::new();
    let _ = tokio::time::timeout(TIME_MAX, large.read_to_end(&mut response)).await.expect("the endpoint ends it");
    assert!(response.is_empty() || response.starts_with(b"HTTP/1.1 431 "), "{}", String::from_utf8_lossy(&response));
    // A client that sends nothing, and one that sends a part of a request, are closed. Meanwhile others are answered.
    let mut silent = TcpStream::connect(server.http).await.unwrap();
    let mut partial = TcpStream::connect(server.http).await.unwrap();
    partial.write_all(b"GET /livez HTTP/1.1\r\nhost:").await.unwrap();
    assert_eq!(server.get("/livez").await.0, 200);
    for connection in [&mut silent, &mut partial] {
        let closed = tokio::time::timeout(TIME_MAX, connection.read_to_end(&mut Vec::new())).await;
        // A reset is an end too.
        let _ = closed.expect("the endpoint closes a silent connection");
    }
    // More than all places, with a part of a request.
    let mut waiting = Vec::new();
    for _ in 0..400 {
        let mut stream = TcpStream::connect(server.http).await.unwrap();
        // The endpoint may have closed it.
        let _ = stream.write_all(b"GET /livez HTTP/1.1\r\n").await;
        waiting.push(stream);
    }
    for _ in 0..20 {
        // Sooner than the first of them end by the limit of their time.
        let answered = tokio::time::timeout(Duration::from_millis(500), server.get("/readyz")).await;
        assert_eq!(answered.expect("a probe waits for no place").0, 200);
    }
    drop(waiting);
    server.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_response_has_the_id_of_its_request() {
    let shop = Shop::new();
    let engine = Arc::new(shop.open(HealthBounds::default()));
    let server = Server::start(&engine, ServerConfig::default()).await;
    let mut client = RankingServiceClient::new(server.channel.clone());
    let request = |id: &'static str, of_message: &str, text: &str| {
        let options = Some(proto::RankingOptions { request_id: of_message.to_owned(), ..Default::default() });
        let mut request = Request::new(proto::SearchRequest { options, ..query(text) });
        if !id.is_empty() {
            request.metadata_mut().insert("x-request-id", id.parse().unwrap());
        }
        request
    };
    let id_of =
        |metadata: &tonic::metadata::MetadataMap| metadata.get("x-request-id").unwrap().to_str().unwrap().to_owned();
    for (header, message, expected) in [
        ("shop-7", "", ["shop-7", "shop-7"]),
        ("", "page-9", ["page-9", "page-9"]),
        ("shop-7", "page-9", ["shop-7", "page-9"]),
    ] {
        let response = client.search(request(header, message, "mug")).await.unwrap();
        let found = [id_of(response.metadata()), response.get_ref().info.as_ref().unwrap().request_id.clone()];
        assert_eq!(found, expected, "{header} {message}");
    }
    let response = client.search(request("two words", "", "mug")).await.unwrap();
    let generated = id_of(response.metadata());
    assert!(uuid::Uuid::parse_str(&generated).is_ok(), "{generated}");
    assert_eq!(response.get_ref().info.as_ref().unwrap().request_id, generated);

    // Errors of a service, and of requests that reach none.
    let status = client.search(request("of-error", "", &"x".repeat(10_000))).await.unwrap_err();
    assert_eq!((status.code(), id_of(status.metadata())), (Code::InvalidArgument, "of-error".to_owned()));
    let mut request = Request::new(query("mug"));
    request.metadata_mut().insert("lodestone-catalog", "none".parse().unwrap());
    request.metadata_mut().insert("x-request-id", "of-router".parse().unwrap());
    request.metadata_mut().insert("traceparent", format!("00-{TRACE}-{SPAN}-01").parse().unwrap());
    let status = client.search(request).await.unwrap_err();
    assert_eq!((status.code(), id_of(status.metadata())), (Code::NotFound, "of-router".to_owned()));
    assert_eq!(status.metadata().get("x-trace-id").unwrap(), TRACE);
    let mut events = EventServiceClient::new(server.channel.clone());
    let stream = events.stream_events(futures_util::stream::empty()).await.unwrap();
    assert!(!id_of(stream.metadata()).is_empty());
    server.end().await;
}

/// A collector that keeps the spans that it receives.
#[derive(Clone, Default)]
struct Spans(Arc<Mutex<Vec<Span>>>);

#[tonic::async_trait]
impl TraceService for Spans {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let of_resources = request.into_inner().resource_spans.into_iter();
        let of_scopes = of_resources.flat_map(|of| of.scope_spans);
        self.0.lock().extend(of_scopes.flat_map(|of| of.spans));
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Spans {
    /// Serves with TLS. Returns the address, and the certificate of the authority as PEM.
    async fn serve(&self) -> (String, Vec<u8>) {
        let mut authority = CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let certificate =
            CertificateParams::new(vec!["localhost".to_owned()]).unwrap().signed_by(&key, &authority).unwrap();
        let identity = Identity::from_pem(certificate.pem(), key.serialize_pem());
        let listener = listen().await;
        let address = format!("https://localhost:{}", listener.local_addr().unwrap().port());
        let server = tonic::transport::Server::builder()
            .tls_config(ServerTlsConfig::new().identity(identity))
            .unwrap()
            .add_service(TraceServiceServer::new(self.clone()))
            .serve_with_incoming(TcpIncoming::from(listener));
        tokio::spawn(server);
        (address, authority.pem().into_bytes())
    }

    /// Returns the spans of a trace.
    fn of(&self, trace: &str) -> Vec<Span> {
        let id = u128::from_str_radix(trace, 16).unwrap().to_be_bytes();
        self.0.lock().iter().filter(|span| span.trace_id == id).cloned().collect()
    }
}

fn sampled<T>(message: T, flags: &str) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("traceparent", format!("00-{TRACE}-{SPAN}-{flags}").parse().unwrap());
    request
}

#[tokio::test(flavor = "multi_thread")]
async fn sampled_calls_reach_a_collector_over_tls_with_their_stages() {
    let shop = Shop::new();
    let engine = Arc::new(shop.open(HealthBounds::default()));
    let catalogs = Catalogs::from(engine.clone());
    let spans = Spans::default();
    let (endpoint, ca) = spans.serve().await;
    let traces = Traces::start(Collector { endpoint, ca: Some(ca), share: 0.0 }, &catalogs).unwrap();
    let server = Server::start(&engine, ServerConfig { traces: Some(traces.clone()), ..ServerConfig::default() }).await;
    let mut client = RankingServiceClient::new(server.channel.clone());
    // Neither the caller nor the share samples these.
    client.search(query("mug")).await.unwrap();
    client.search(sampled(query("mug"), "00")).await.unwrap();
    let response = client.search(sampled(query("mug"), "01")).await.unwrap();
    assert_eq!(response.metadata().get("x-trace-id").unwrap(), TRACE);
    let items =
        vec![proto::Item { item_id: "new".to_owned(), title: "A walnut tray".to_owned(), ..Default::default() }];
    let upsert = proto::UpsertItemsRequest { items, update_time: None };
    CatalogServiceClient::new(server.channel.clone()).upsert_items(sampled(upsert, "01")).await.unwrap();
    let missing = proto::GetItemRequest { item_id: "missing".to_owned() };
    CatalogServiceClient::new(server.channel.clone()).get_item(sampled(missing, "01")).await.unwrap_err();
    let mut events = EventServiceClient::new(server.channel.clone());
    let stream = events.stream_events(sampled(futures_util::stream::empty(), "01")).await.unwrap();
    assert_eq!(stream.into_inner().message().await.unwrap(), None);
    server.end().await;
    traces.flush().await;

    let found = spans.of(TRACE);
    assert_eq!(spans.0.lock().len(), found.len(), "calls that are not sampled have no span");
    let roots: Vec<&Span> = found
        .iter()
        .filter(|span| span.parent_span_id == u64::from_str_radix(SPAN, 16).unwrap().to_be_bytes())
        .collect();
    let names: Vec<&str> = roots.iter().map(|span| span.name.as_str()).collect();
    let expected =
        ["RankingService/Search", "CatalogService/UpsertItems", "CatalogService/GetItem", "EventService/StreamEvents"];
    assert_eq!(names, expected.map(|name| format!("lodestone.v1.{name}")));
    let stages_of = |root: &Span| {
        let children = found.iter().filter(|span| span.parent_span_id == root.span_id);
        for child in children.clone() {
            let is_within = root.start_time_unix_nano <= child.start_time_unix_nano
                && child.end_time_unix_nano <= root.end_time_unix_nano;
            assert!(is_within, "{child:?} of {root:?}");
        }
        children.map(|span| span.name.clone()).collect::<Vec<_>>()
    };
    let search = stages_of(roots[0]);
    for stage in ["queue", "state", "encode", "retrieve", "features", "rank"] {
        assert!(search.iter().any(|name| name == stage), "{stage} is missing in {search:?}");
    }
    assert_eq!(stages_of(roots[1]), ["encode_items", "write"]);
    let code = |span: &Span| {
        let attribute = span.attributes.iter().find(|attribute| attribute.key == "rpc.grpc.status_code").unwrap();
        format!("{:?}", attribute.value)
    };
    assert!(code(roots[0]).contains("IntValue(0)") && code(roots[2]).contains("IntValue(5)"), "{:?}", roots[2]);
    assert_eq!(found.len(), roots.iter().map(|root| 1 + stages_of(root).len()).sum::<usize>(), "no span is left");
    let text = engine.metrics_text();
    assert!(text.contains(&format!("lodestone_spans_total{{outcome=\"exported\"}} {}\n", found.len())), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_are_answered_without_the_collector_and_lost_spans_are_counted() {
    let shop = Shop::new();
    let engine = Arc::new(shop.open(HealthBounds::default()));
    let catalogs = Catalogs::from(engine.clone());
    let spans = Spans::default();
    let (endpoint, _) = spans.serve().await;
    // The collector's certificate is of another authority.
    let (_, other) = Spans::default().serve().await;
    let traces = Traces::start(Collector { endpoint, ca: Some(other), share: 1.0 }, &catalogs).unwrap();
    let server = Server::start(&engine, ServerConfig { traces: Some(traces.clone()), ..ServerConfig::default() }).await;
    let response = RankingServiceClient::new(server.channel.clone()).search(query("mug")).await.unwrap();
    assert!(response.metadata().get("x-trace-id").is_some() && !response.get_ref().results.is_empty());
    wait_until("the spans are counted", TIME_MAX, async || {
        engine.metrics_text().contains("lodestone_spans_total{outcome=\"dropped\"}")
    })
    .await;
    server.end().await;
    traces.flush().await;
    assert!(spans.0.lock().is_empty());
}
