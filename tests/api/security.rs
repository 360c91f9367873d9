//! What strangers and attackers reach: files, connections, TLS, API keys. Through real connections.
use crate::support::{
    bundles::{Shop, search},
    events::{START, event},
    items::upsert_items,
    server::{Server, TIME_MAX},
    wait::wait_until,
};
use lodestone::server::{
    ApiKeys, ClientLimits, NewKey, ServerConfig, Tls, TlsFiles,
    proto::{
        self, catalog_service_client::CatalogServiceClient, event_service_client::EventServiceClient,
        model_service_client::ModelServiceClient, ranking_service_client::RankingServiceClient,
    },
};
use lodestone_catalog::Item;
use lodestone_core::ids::ItemId;
use lodestone_engine::OpenError;
use lodestone_events::{EventKind, LogError};
use lodestone_pipeline::{
    bundle::{Bundle, BundleError},
    serving::{Serving, ServingConfig},
};
use lodestone_rollout::HealthBounds;
use prost::Message;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
};
use tonic::{
    Code, Request, Status,
    client::Grpc,
    codegen::http::uri::PathAndQuery,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_prost::ProstCodec;
use tonic_types::StatusExt;

pub(crate) fn query(text: &str) -> proto::SearchRequest {
    let viewer = Some(proto::Viewer { visitor_id: "browser".to_owned(), ..Default::default() });
    proto::SearchRequest { viewer, query: text.to_owned(), page_size: 3, ..Default::default() }
}

pub(crate) async fn search_over(channel: Channel) -> Result<usize, Status> {
    let response = RankingServiceClient::new(channel).search(query("mug")).await?;
    Ok(response.into_inner().results.len())
}

pub(crate) fn reason(status: &Status) -> String {
    status.get_error_details().error_info().map(|info| info.reason.clone()).unwrap_or_default()
}

/// Returns the files and directories below a directory that others than their owner can use.
fn shared_files(directory: &Path, count: &mut usize) -> Vec<(PathBuf, u32)> {
    let mut shared = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let metadata = fs::metadata(&path).unwrap();
        let (mode, expected) = (metadata.permissions().mode() & 0o777, if metadata.is_dir() { 0o700 } else { 0o600 });
        *count += 1;
        if mode != expected {
            shared.push((path.clone(), mode));
        }
        if metadata.is_dir() {
            shared.extend(shared_files(&path, count));
        }
    }
    shared
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_the_server_are_private() {
    let shop = Shop::new();
    let engine = shop.open(HealthBounds::default());
    upsert_items(&engine, vec![Item::titled(ItemId::parse("new").unwrap(), "a new mug")]).await.unwrap();
    engine.write_events(vec![event("e", EventKind::View, "u", "i1", START)]).await.unwrap();
    search(&engine, "mug", "", 3).await.unwrap();
    engine.checkpoint_on_shutdown();
    drop(engine);
    // The answers are written by a thread.
    let answers = shop.data_path().join("answers");
    wait_until("the answers are written", TIME_MAX, async || fs::read_dir(&answers).unwrap().next().is_some()).await;
    let mut count = 0;
    let shared = shared_files(&shop.data_path(), &mut count);
    assert!(shared.is_empty(), "{shared:?}");
    let mode = fs::metadata(shop.data_path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    let names = ["token.key", "item_vectors.cache", "answers", "log"];
    let has = |name: &str| shop.data_path().join(name).exists();
    assert!(count >= 7 && names.iter().all(|name| has(name)), "{count} files");

    // An export has the users of events.
    let out = shop.data_path().join("export");
    lodestone_dataset::export(&shop.data_path().join("log"), 0..100_000, &out).unwrap();
    let shared = shared_files(&out, &mut count);
    assert!(shared.is_empty(), "{shared:?}");

    // A file that cannot be read is named.
    let key = shop.data_path().join("token.key");
    fs::remove_file(&key).unwrap();
    fs::create_dir(&key).unwrap();
    let mut error = String::new();
    let open = || shop.try_open_serving(HealthBounds::default(), Serving::of(ServingConfig::default()));
    wait_until("the dropped engine has released its log", TIME_MAX, async || match open() {
        Err(OpenError::Log(LogError::InUse { .. })) => false,
        result => {
            error = result.err().unwrap().to_string();
            true
        }
    })
    .await;
    assert!(error.contains(&key.display().to_string()), "{error}");
}

#[test]
fn files_of_a_bundle_have_their_size_and_are_regular() {
    let shop = Shop::new();
    let bundle = shop.store_path().join("a");
    assert!(Bundle::open(&bundle).is_ok());
    let file = bundle.join("ranker.onnx");
    let content = fs::read(&file).unwrap();
    let expected_bytes = content.len() as u64;
    fs::write(&file, [&content[..], b"!"].concat()).unwrap();
    let error = Bundle::open(&bundle).err().unwrap();
    assert!(
        matches!(&error, BundleError::Length { path, found, expected }
            if *path == file && *found == expected_bytes + 1 && *expected == expected_bytes),
        "{error}"
    );
    // A pipe without a writer would block its reader for ever.
    for name in ["ranker.onnx", "items.parquet", "manifest.json"] {
        let file = bundle.join(name);
        let aside = bundle.join("aside");
        fs::rename(&file, &aside).unwrap();
        let made = std::process::Command::new("mkfifo").arg(&file).status().unwrap();
        assert!(made.success());
        let error = Bundle::open(&bundle).err().unwrap().to_string();
        assert!(error.contains(name) && error.contains("not a regular file"), "{error}");
        if name == "manifest.json" {
            assert!(shop.store().manifest("a").is_err() && shop.store().names().is_err());
        }
        fs::rename(&aside, &file).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_and_connections_are_bounded() {
    let shop = Shop::new();
    let engine = Arc::new(shop.open(HealthBounds::default()));
    let short = Duration::from_millis(300);
    let config =
        ServerConfig { connections_max: 3, handshake_max: short, request_read_max: short, ..ServerConfig::default() };
    let server = Server::start(&engine, config).await;
    let channel = server.connect();
    assert_eq!(search_over(channel.clone()).await.unwrap(), 3);

    // A message of empty parts takes hundreds of times its size in memory.
    let request = proto::SearchRequest { facet_specs: vec![proto::FacetSpec::default(); 140_000], ..query("mug") };
    assert!((256 << 10..1 << 20).contains(&request.encoded_len()));
    let status = RankingServiceClient::new(channel.clone()).search(request).await.unwrap_err();
    assert_eq!((status.code(), reason(&status)), (Code::ResourceExhausted, "MESSAGE_TOO_LARGE".to_owned()));
    assert!(status.message().contains("262144"), "{status:?}");
    assert_eq!(status.get_error_details().error_info().unwrap().metadata["limit"], "262144");
    let items = vec![proto::Item { item_id: "x".repeat(300), ..Default::default() }; 1000];
    let request = proto::UpsertItemsRequest { items, update_time: None };
    assert!(request.encoded_len() > 256 << 10);
    let mut catalog = CatalogServiceClient::new(channel.clone());
    assert!(catalog.upsert_items(request).await.is_ok(), "other services take larger messages");

    // The refusal of 150 fields fits into the headers of a client that accepts 8 KiB.
    let options = proto::RankingOptions { exclude_item_ids: vec![String::new(); 150], ..Default::default() };
    let request = proto::SearchRequest { options: Some(options), ..query("mug") };
    let endpoint = Endpoint::from_shared(format!("http://{}", server.address)).unwrap();
    let small = endpoint.http2_max_header_list_size(8192).connect_lazy();
    let status = RankingServiceClient::new(small.clone()).search(request).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    let details = status.get_error_details();
    assert_eq!(details.bad_request().unwrap().field_violations.len(), 20);
    assert_eq!(details.error_info().unwrap().metadata["omitted_violations"], "130");
    drop(small);

    // Headers above 16 KiB are refused, and the connection goes on.
    let mut request = Request::new(query("mug"));
    request.metadata_mut().insert("x-large", "x".repeat(20 << 10).parse().unwrap());
    assert!(RankingServiceClient::new(channel.clone()).search(request).await.is_err());
    assert_eq!(search_over(channel.clone()).await.unwrap(), 3);

    // A call that never sends its message ends, without a deadline of its own.
    let begun = Instant::now();
    let mut client = Grpc::new(channel.clone());
    client.ready().await.unwrap();
    let never = futures_util::stream::pending::<proto::SearchRequest>();
    let path = PathAndQuery::from_static("/lodestone.v1.RankingService/Search");
    let codec: ProstCodec<proto::SearchRequest, proto::SearchResponse> = ProstCodec::default();
    let status = client.client_streaming(Request::new(never), path, codec).await.unwrap_err();
    assert_eq!((status.code(), reason(&status)), (Code::DeadlineExceeded, "REQUEST_INCOMPLETE".to_owned()));
    assert!(begun.elapsed() >= short);
    // A stream of events may pause for longer.
    let pause = futures_util::stream::once(async move {
        tokio::time::sleep(2 * short).await;
        let event = proto::Event {
            event_id: "late".to_owned(),
            r#type: proto::EventType::View.into(),
            viewer: query("").viewer,
            lines: vec![proto::EventLine { item_id: "i1".to_owned(), ..Default::default() }],
            ..Default::default()
        };
        proto::StreamEventsRequest { events: vec![event] }
    });
    let mut events = EventServiceClient::new(channel.clone()).stream_events(pause).await.unwrap().into_inner();
    assert_eq!(events.message().await.unwrap().unwrap().counts.unwrap().accepted_count, 1);

    // Silent connections are closed, also those that send a part of HTTP/2's beginning. Above the limit they are closed
    // at once, and the place of a closed connection is free again.
    let mut begun = TcpStream::connect(server.address).await.unwrap();
    begun.write_all(b"PRI * HTTP/2.0\r\n").await.unwrap();
    let mut silent = TcpStream::connect(server.address).await.unwrap();
    for connection in [&mut begun, &mut silent] {
        let closed = tokio::time::timeout(TIME_MAX, connection.read_to_end(&mut Vec::new())).await;
        // A reset is an end too.
        let _ = closed.expect("the server closes a silent connection");
    }
    let mut held = Vec::new();
    wait_until("two more clients are connected", TIME_MAX, async || {
        let client = server.connect();
        let is_served = search_over(client.clone()).await.is_ok();
        held.extend(is_served.then_some(client));
        held.len() == 2
    })
    .await;
    let mut refused = TcpStream::connect(server.address).await.unwrap();
    let closed = tokio::time::timeout(TIME_MAX, refused.read_to_end(&mut Vec::new())).await;
    let _ = closed.expect("a connection above the limit is closed");
    assert_eq!(search_over(channel.clone()).await.unwrap(), 3, "the others are served");
    drop(held);
    wait_until("a place is free again", TIME_MAX, async || search_over(server.connect()).await.is_ok()).await;
    server.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_waits_for_calls_and_not_for_connections_without_one() {
    let shop = Shop::new();
    let engine = Arc::new(shop.open(HealthBounds::default()));
    let config = ServerConfig { drain: 2 * TIME_MAX, handshake_max: 4 * TIME_MAX, ..ServerConfig::default() };
    let server = Server::start(&engine, config).await;
    let mut silent = TcpStream::connect(server.address).await.unwrap();
    // It begins HTTP/2 with empty settings, and then neither reads nor answers.
    let mut deaf = TcpStream::connect(server.address).await.unwrap();
    deaf.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let idle = server.connect();
    assert_eq!(search_over(idle.clone()).await.unwrap(), 3);

    let message = |id: &str| {
        let event = proto::Event {
            event_id: id.to_owned(),
            r#type: proto::EventType::View.into(),
            viewer: query("").viewer,
            lines: vec![proto::EventLine { item_id: "i1".to_owned(), ..Default::default() }],
            ..Default::default()
        };
        proto::StreamEventsRequest { events: vec![event] }
    };
    let (sender, receiver) = mpsc::channel(1);
    let messages = futures_util::stream::unfold(receiver, |mut receiver: mpsc::Receiver<_>| async move {
        Some((receiver.recv().await?, receiver))
    });
    let mut responses = EventServiceClient::new(server.connect()).stream_events(messages).await.unwrap().into_inner();
    sender.send(message("before")).await.unwrap();
    assert_eq!(responses.message().await.unwrap().unwrap().counts.unwrap().accepted_count, 1);

    let (address, serving) = server.stop();
    wait_until("no connection is accepted", TIME_MAX, async || TcpStream::connect(address).await.is_err()).await;
    sender.send(message("after")).await.unwrap();
    assert_eq!(responses.message().await.unwrap().unwrap().counts.unwrap().accepted_count, 2, "the call goes on");
    assert!(!serving.is_finished());
    drop(sender);
    assert_eq!(responses.message().await.unwrap(), None);
    let ended = tokio::time::timeout(TIME_MAX, serving).await.expect("only connections without a call are left");
    ended.unwrap().unwrap();
    for connection in [&mut silent, &mut deaf] {
        let closed = tokio::time::timeout(TIME_MAX, connection.read_to_end(&mut Vec::new())).await;
        // A reset is an end too.
        let _ = closed.expect("the connection is closed");
    }
    drop(idle);
}

/// An authority and the files of a certificate of `localhost`.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn pem(&self) -> String {
        self.0.as_ref().pem()
    }

    /// Returns a certificate of this authority and its key.
    pub(crate) fn issue(&self) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        (params.signed_by(&key, &*self.0).unwrap().pem(), key.serialize_pem())
    }

    /// Returns the settings of a client that trusts this authority.
    pub(crate) fn trusted(&self) -> ClientTlsConfig {
        ClientTlsConfig::new().ca_certificate(Certificate::from_pem(self.pem())).domain_name("localhost")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_encrypted_and_clients_verified() {
    let shop = Shop::new();
    let engine = Arc::new(shop.open(HealthBounds::default()));
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let (authority, clients, other) = (Authority::new(), Authority::new(), Authority::new());
    let write = |authority: &Authority| {
        let (certificate, key) = authority.issue();
        fs::write(path("cert"), certificate).unwrap();
        fs::write(path("key"), key).unwrap();
    };
    write(&authority);
    let files = |client_ca| TlsFiles { certificate: path("cert"), key: path("key"), client_ca };
    let config = |tls: TlsFiles| ServerConfig {
        tls: Some(Arc::new(Tls::open(tls).unwrap())),
        reload: Duration::from_millis(50),
        ..ServerConfig::default()
    };

    let server = Server::start(&engine, config(files(None))).await;
    let channel = server.try_connect(authority.trusted()).await.unwrap();
    assert_eq!(search_over(channel.clone()).await.unwrap(), 3);
    let metrics = engine.metrics_text();
    let mut lines = metrics.lines();
    let expiry = lines.find_map(|line| line.strip_prefix("lodestone_certificate_expiry_timestamp_seconds "));
    assert!(expiry.unwrap().parse::<i64>().unwrap() > 1_700_000_000, "{expiry:?}");
    assert!(server.try_connect(other.trusted()).await.is_err(), "the client does not trust the server");
    assert!(search_over(server.connect()).await.is_err(), "without TLS nothing is served");

    // A file that does not fit its key changes nothing; a new pair is used for new connections.
    let (certificate, _) = other.issue();
    let key = fs::read(path("key")).unwrap();
    fs::write(path("cert"), certificate).unwrap();
    assert!(server.try_connect(authority.trusted()).await.is_ok());
    assert_eq!(fs::read(path("key")).unwrap(), key);
    write(&other);
    wait_until("the new certificate is used", TIME_MAX, async || server.try_connect(other.trusted()).await.is_ok())
        .await;
    assert!(server.try_connect(authority.trusted()).await.is_err(), "the old certificate is replaced");
    assert_eq!(search_over(channel).await.unwrap(), 3, "connections stay");
    server.end().await;

    fs::write(path("clients"), clients.pem()).unwrap();
    let server = Server::start(&engine, config(files(Some(path("clients"))))).await;
    let identity = |authority: &Authority| {
        let (certificate, key) = authority.issue();
        Identity::from_pem(certificate, key)
    };
    let channel = server.try_connect(other.trusted().identity(identity(&clients))).await.unwrap();
    assert_eq!(search_over(channel).await.unwrap(), 3);
    // With TLS 1.3 a client learns of its refusal only from the first response.
    for tls in [other.trusted(), other.trusted().identity(identity(&authority))] {
        let refused = match server.try_connect(tls).await {
            Ok(channel) => search_over(channel).await.is_err(),
            Err(_) => true,
        };
        assert!(refused, "a client without a certificate of the authority is refused");
    }
    server.end().await;
}

/// A refused call is answered before its message arrives. h2 ends a connection on which 1,024 messages arrived for calls
/// that no longer exist.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_outlives_thousands_of_refused_calls() {
    let shop = Shop::new();
    let engine = Arc::new(shop.open(HealthBounds::default()));
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("keys.toml");
    let key = NewKey::of([1; 32]);
    fs::write(&path, format!("[[keys]]\nname = \"shop\"\nhash = \"{}\"\nroles = [\"rank\"]\n", key.hash)).unwrap();
    let keys = ApiKeys::open(&path, ClientLimits::default()).unwrap();
    let config = ServerConfig { api_keys: Some(Arc::new(keys)), ..ServerConfig::default() };
    let server = Server::start(&engine, config).await;
    let channel = server.connect();
    for _ in 0..20 {
        let calls = (0..200).map(|_| {
            let mut client = RankingServiceClient::new(channel.clone());
            async move { client.search(query(&"mug ".repeat(100))).await.unwrap_err() }
        });
        for status in futures_util::future::join_all(calls).await {
            assert_eq!(reason(&status), "API_KEY_MISSING", "{status:?}");
        }
    }
    drop(channel);
    server.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_need_a_key_with_their_role() {
    let shop = Shop::new();
    let engine = Arc::new(shop.open(HealthBounds::default()));
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("keys.toml");
    let (shop_key, feed, unknown) = (NewKey::of([1; 32]), NewKey::of([2; 32]), NewKey::of([3; 32]));
    let entry = |name: &str, key: &NewKey, more: &str| {
        format!("[[keys]]\nname = \"{name}\"\nhash = \"{}\"\n{more}\n", key.hash)
    };
    let of_shop = entry("shop", &shop_key, "roles = [\"rank\", \"events\"]\ncatalogs = [\"default\"]");
    fs::write(&path, &of_shop).unwrap();
    let config = ServerConfig {
        api_keys: Some(Arc::new(ApiKeys::open(&path, ClientLimits::default()).unwrap())),
        reload: Duration::from_millis(50),
        ..ServerConfig::default()
    };
    let server = Server::start(&engine, config).await;
    let channel = server.connect();
    let search_with = async |secret: &str, catalog: &str| {
        let mut request = Request::new(query("mug"));
        if !secret.is_empty() {
            request.metadata_mut().insert("authorization", format!("Bearer {secret}").parse().unwrap());
        }
        request.metadata_mut().insert("lodestone-catalog", catalog.parse().unwrap());
        let response = RankingServiceClient::new(channel.clone()).search(request).await;
        response.map(|_| String::new()).unwrap_or_else(|status| {
            let text = format!("{status:?}");
            assert!(secret.is_empty() || !text.contains(secret), "{text}");
            reason(&status)
        })
    };
    assert_eq!(search_with(&shop_key.secret, "default").await, "");
    assert_eq!(search_with("", "default").await, "API_KEY_MISSING");
    assert_eq!(search_with(&unknown.secret, "default").await, "API_KEY_INVALID");
    // Whether a catalogue exists is not told.
    for catalog in ["unknown", "other"] {
        assert_eq!(search_with(&shop_key.secret, catalog).await, "CATALOG_DENIED");
        assert_eq!(search_with("", catalog).await, "API_KEY_MISSING");
    }
    let with_key = |mut request: Request<()>| {
        let value = format!("Bearer {}", shop_key.secret).parse().unwrap();
        request.metadata_mut().insert("authorization", value);
        Ok::<_, Status>(request)
    };
    let mut models = ModelServiceClient::with_interceptor(channel.clone(), with_key);
    let status = models.list_bundles(proto::ListBundlesRequest {}).await.unwrap_err();
    assert_eq!((status.code(), reason(&status)), (Code::PermissionDenied, "ROLE_MISSING".to_owned()));
    assert_eq!(status.get_error_details().error_info().unwrap().metadata["role"], "admin");
    let health = HealthClient::new(channel.clone()).check(HealthCheckRequest::default()).await;
    assert!(health.is_ok(), "load balancers have no key");
    let large = HealthCheckRequest { service: "s".repeat(5000) };
    let status = HealthClient::new(channel.clone()).check(large).await.unwrap_err();
    assert_eq!((status.code(), reason(&status)), (Code::ResourceExhausted, "MESSAGE_TOO_LARGE".to_owned()));
    let metrics = engine.metrics_text();
    for line in ["rpc=\"Search\",code=\"UNAUTHENTICATED\"}", "rpc=\"ListBundles\",code=\"PERMISSION_DENIED\"} 1"] {
        assert!(metrics.contains(line), "{line} is missing in {metrics}");
    }

    // A stream of events for as long as the key is valid.
    let (sender, receiver) = tokio::sync::mpsc::channel::<proto::StreamEventsRequest>(1);
    let messages = futures_util::stream::unfold(receiver, |mut receiver| async move {
        let message = receiver.recv().await?;
        Some((message, receiver))
    });
    let mut stream_request = Request::new(messages);
    let value = format!("Bearer {}", shop_key.secret).parse().unwrap();
    stream_request.metadata_mut().insert("authorization", value);
    let of_event = |id: &str| {
        let event = proto::Event {
            event_id: id.to_owned(),
            r#type: proto::EventType::View.into(),
            viewer: query("").viewer,
            lines: vec![proto::EventLine { item_id: "i1".to_owned(), ..Default::default() }],
            ..Default::default()
        };
        proto::StreamEventsRequest { events: vec![event] }
    };
    sender.send(of_event("before")).await.unwrap();
    let stored = EventServiceClient::new(channel.clone()).stream_events(stream_request).await.unwrap();
    let mut stored = stored.into_inner();
    assert_eq!(stored.message().await.unwrap().unwrap().counts.unwrap().accepted_count, 1);

    // A key is added and then the other one revoked, without a restart; a file with a mistake changes nothing.
    let of_feed = entry("feed", &feed, "roles = [\"rank\"]");
    fs::write(&path, [&of_shop[..], &of_feed].concat()).unwrap();
    wait_until("the new key is valid", TIME_MAX, async || search_with(&feed.secret, "default").await.is_empty()).await;
    fs::write(&path, "[[keys]").unwrap();
    assert_eq!(search_with(&shop_key.secret, "default").await, "");
    fs::write(&path, &of_feed).unwrap();
    let is_revoked = async || search_with(&shop_key.secret, "default").await == "API_KEY_INVALID";
    wait_until("the other key is revoked", TIME_MAX, is_revoked).await;
    sender.send(of_event("after")).await.unwrap();
    let status = stored.message().await.unwrap_err();
    assert_eq!((status.code(), reason(&status)), (Code::Unauthenticated, "API_KEY_INVALID".to_owned()));
    assert_eq!(search_with(&feed.secret, "default").await, "");
    assert_eq!(search_with(&feed.secret, "other").await, "CATALOG_NOT_FOUND", "a key of all catalogues");
    server.end().await;
}
