//! Who calls, and how much: tokens, rates and quotas, roles of debug information, the audit log. Through real connections.
use crate::{
    security::{Authority, query, reason, search_over},
    support::{
        bundles::Shop,
        process::Process,
        server::{Server, TIME_MAX},
        wait::wait_until,
    },
};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode, jwk::Jwk};
use lodestone::{
    audit::{self, AuditLog, AuditSettings, EntryKind},
    server::{
        ApiKeys, ClientLimits, Jwt, JwtSettings, KeySetLocation, NewKey, ServerConfig,
        proto::{
            self, catalog_service_client::CatalogServiceClient, event_service_client::EventServiceClient,
            import_items_request::Part, ranking_service_client::RankingServiceClient,
            rule_service_client::RuleServiceClient,
        },
    },
};
use lodestone_core::units::UnixMillis;
use lodestone_rollout::HealthBounds;
use rcgen::{KeyPair, PKCS_ED25519};
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::{Mutex, mpsc},
};
use tonic::{
    Code, Request, Status, Streaming,
    client::Grpc,
    codegen::http::uri::PathAndQuery,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;
use tonic_types::StatusExt;

const ISSUER: &str = "https://id.shop.test/";

/// Returns PKCS #8 v1 of an Ed25519 key: the library reads public keys of it alone, and the generator writes v2, which
/// appends the public key.
fn ed25519_der(pair: &KeyPair) -> Vec<u8> {
    [&[0x30, 0x2e, 0x02, 0x01, 0x00], &pair.serialized_der()[5..48]].concat()
}

/// A key of an identity provider.
struct Signer {
    key: EncodingKey,
    id: &'static str,
}

impl Signer {
    fn new(id: &'static str) -> Self {
        let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        Self { key: EncodingKey::from_ed_der(&ed25519_der(&key)), id }
    }

    fn sign(&self, claims: &Value) -> String {
        let header = Header { kid: Some(self.id.to_owned()), ..Header::new(Algorithm::EdDSA) };
        encode(&header, claims, &self.key).unwrap()
    }
}

fn key_set(signers: &[&Signer]) -> String {
    let jwk = |signer: &&Signer| {
        let mut jwk = Jwk::from_encoding_key(&signer.key, Algorithm::EdDSA).unwrap();
        jwk.common.key_id = Some(signer.id.to_owned());
        jwk
    };
    json!({"keys": signers.iter().map(jwk).collect::<Vec<_>>()}).to_string()
}

/// Returns the claims of a token that is valid for some seconds from now on.
fn claims(seconds: i64, roles: &[&str]) -> Value {
    let now = UnixMillis::now().0 / 1000;
    json!({"iss": ISSUER, "aud": "lodestone", "sub": "subject", "exp": now + seconds, "lodestone_roles": roles})
}

/// The web server of an identity provider.
struct Provider {
    url: String,
    /// What it answers. None: an error.
    key_set: Arc<Mutex<Option<String>>>,
    count: Arc<AtomicUsize>,
}

impl Provider {
    async fn start(key_set: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/jwks", listener.local_addr().unwrap());
        let (key_set, count) = (Arc::new(Mutex::new(Some(key_set))), Arc::new(AtomicUsize::new(0)));
        let provider = Self { url, key_set: key_set.clone(), count: count.clone() };
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let (mut request, mut part) = (Vec::new(), [0; 1024]);
                while !request.ends_with(b"\r\n\r\n") {
                    let read = stream.read(&mut part).await.unwrap();
                    assert!(read > 0, "the request is incomplete");
                    request.extend_from_slice(&part[..read]);
                }
                count.fetch_add(1, Ordering::SeqCst);
                let (status, body) = match key_set.lock().await.clone() {
                    Some(body) => ("200 OK", body),
                    None => ("503 Service Unavailable", String::new()),
                };
                let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
                // Fails if the client does not read a body that is too large.
                let _ = stream.write_all(format!("{head}{body}").as_bytes()).await;
                let _ = stream.shutdown().await;
            }
        });
        provider
    }

    async fn verifier(&self, refresh_unknown_key: Duration) -> Arc<Jwt> {
        let settings = JwtSettings {
            key_set: KeySetLocation::parse(&self.url).unwrap(),
            issuer: ISSUER.to_owned(),
            audience: "lodestone".to_owned(),
            roles_claim: "lodestone_roles".to_owned(),
            catalogs_claim: "lodestone_catalogs".to_owned(),
            limits: ClientLimits::default(),
            refresh: JwtSettings::REFRESH,
            refresh_unknown_key,
        };
        Arc::new(Jwt::open(settings).await.unwrap())
    }
}

fn with_bearer<T>(message: T, secret: &str) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {secret}").parse().unwrap());
    request
}

/// Returns the reason of a search with a secret; empty if it succeeds.
async fn search_with(channel: &Channel, secret: &str) -> String {
    let response = RankingServiceClient::new(channel.clone()).search(with_bearer(query("mug"), secret)).await;
    response.map(|_| String::new()).unwrap_or_else(|status| {
        assert!(!format!("{status:?}").contains(secret), "{status:?}");
        reason(&status)
    })
}

fn view(id: &str) -> proto::Event {
    proto::Event {
        event_id: id.to_owned(),
        r#type: proto::EventType::View.into(),
        viewer: query("").viewer,
        lines: vec![proto::EventLine { item_id: "i1".to_owned(), ..Default::default() }],
        ..Default::default()
    }
}

/// Opens a stream of events. Returns the sender of its messages and the responses.
async fn event_stream(
    channel: &Channel,
    secret: &str,
) -> (mpsc::Sender<proto::StreamEventsRequest>, Streaming<proto::StreamEventsResponse>) {
    let (sender, receiver) = mpsc::channel(1);
    let messages =
        futures_util::stream::unfold(receiver, async |mut receiver| Some((receiver.recv().await?, receiver)));
    let responses =
        EventServiceClient::new(channel.clone()).stream_events(with_bearer(messages, secret)).await.unwrap();
    (sender, responses.into_inner())
}

fn message(id: &str) -> proto::StreamEventsRequest {
    proto::StreamEventsRequest { events: vec![view(id)] }
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_of_an_identity_provider_are_accepted_while_their_key_is_in_its_set() {
    let shop = Shop::new();
    let engine = Arc::new(shop.open(HealthBounds::default()));
    let (old, new, stranger) = (Signer::new("old"), Signer::new("new"), Signer::new("stranger"));
    let provider = Provider::start(key_set(&[&old])).await;
    let jwt = provider.verifier(Duration::ZERO).await;
    let server = Server::start(&engine, ServerConfig { jwt: Some(jwt), ..ServerConfig::default() }).await;
    let channel = server.connect();
    let of_old = old.sign(&claims(300, &["rank", "events"]));
    assert_eq!(search_with(&channel, &of_old).await, "");
    assert_eq!(search_with(&channel, &old.sign(&claims(-61, &["rank"]))).await, "TOKEN_INVALID");
    assert_eq!(search_with(&channel, &old.sign(&claims(-30, &["rank"]))).await, "", "clocks differ");
    assert_eq!(search_with(&channel, &old.sign(&claims(300, &["events", "admin"]))).await, "ROLE_MISSING");
    let mut of_shoes = claims(300, &["rank"]);
    of_shoes["lodestone_catalogs"] = json!(["shoes"]);
    assert_eq!(search_with(&channel, &old.sign(&of_shoes)).await, "CATALOG_DENIED");
    assert_eq!(search_with(&channel, &NewKey::of([1; 32]).secret).await, "API_KEY_INVALID", "there are no keys");
    let (sender, mut responses) = event_stream(&channel, &of_old).await;
    sender.send(message("before")).await.unwrap();
    assert_eq!(responses.message().await.unwrap().unwrap().counts.unwrap().accepted_count, 1);
    assert_eq!(provider.count.load(Ordering::SeqCst), 1);

    // The key is rotated. The first token of the new key makes the server download the set.
    let of_new = new.sign(&claims(300, &["rank"]));
    *provider.key_set.lock().await = Some(key_set(&[&new]));
    assert_eq!(search_with(&channel, &of_new).await, "");
    assert_eq!(search_with(&channel, &of_old).await, "TOKEN_INVALID");
    sender.send(message("after")).await.unwrap();
    let status = responses.message().await.unwrap_err();
    assert_eq!((status.code(), reason(&status)), (Code::Unauthenticated, "TOKEN_INVALID".to_owned()));

    // What the provider answers wrongly changes nothing.
    for wrong in [None, Some("no keys".to_owned()), Some("{\"keys\": []}".to_owned()), Some("x".repeat(2 << 20))] {
        *provider.key_set.lock().await = wrong;
        let before = provider.count.load(Ordering::SeqCst);
        assert_eq!(search_with(&channel, &stranger.sign(&claims(300, &["rank"]))).await, "TOKEN_INVALID");
        assert_eq!(provider.count.load(Ordering::SeqCst), before + 1);
        assert_eq!(search_with(&channel, &of_new).await, "");
    }
    server.end().await;

    // Unknown keys cause one download in a time.
    *provider.key_set.lock().await = Some(key_set(&[&old]));
    let jwt = provider.verifier(Duration::from_secs(3600)).await;
    let server = Server::start(&engine, ServerConfig { jwt: Some(jwt), ..ServerConfig::default() }).await;
    let (channel, before) = (server.connect(), provider.count.load(Ordering::SeqCst));
    for _ in 0..20 {
        assert_eq!(search_with(&channel, &stranger.sign(&claims(300, &["rank"]))).await, "TOKEN_INVALID");
    }
    assert_eq!(search_with(&channel, &of_old).await, "");
    assert_eq!(provider.count.load(Ordering::SeqCst), before);
    server.end().await;
}

/// Returns the configuration of a server with API keys, and their secrets. Each has a name and further lines.
fn with_keys<const N: usize>(directory: &Path, entries: [(&str, &str); N]) -> (ServerConfig, [String; N]) {
    let key = |index: usize| NewKey::of([index as u8 + 1; 32]);
    let entry = |(index, (name, more)): (usize, &(&str, &str))| {
        format!("[[keys]]\nname = \"{name}\"\nhash = \"{}\"\n{more}\n", key(index).hash)
    };
    let path = directory.join("keys.toml");
    fs::write(&path, entries.iter().enumerate().map(entry).collect::<String>()).unwrap();
    let keys = ApiKeys::open(&path, ClientLimits::default()).unwrap();
    let config = ServerConfig { api_keys: Some(Arc::new(keys)), ..ServerConfig::default() };
    (config, std::array::from_fn(|index| key(index).secret))
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_are_limited_in_calls_messages_and_changes() {
    let shop = Shop::new();
    let engine = Arc::new(shop.open(HealthBounds::default()));
    let directory = tempfile::tempdir().unwrap();
    let (config, [slow, fast, feed]) = with_keys(
        directory.path(),
        [
            // So slow that no request is replenished while the test runs.
            ("slow", "roles = [\"rank\"]\nrequests_per_second = 0.001\nburst = 3"),
            ("fast", "roles = [\"rank\"]"),
            ("feed", "roles = [\"events\", \"catalog\"]\nrequests_per_second = 1000\nburst = 1\nchanges_per_day = 4"),
        ],
    );
    let server = Server::start(&engine, config).await;
    let channel = server.connect();
    for _ in 0..3 {
        assert_eq!(search_with(&channel, &slow).await, "");
    }
    let refused =
        RankingServiceClient::new(channel.clone()).search(with_bearer(query("mug"), &slow)).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused)), (Code::ResourceExhausted, "RATE_LIMITED".to_owned()));
    let wait = |status: &Status| status.get_error_details().retry_info().unwrap().retry_delay.unwrap();
    assert!((100..=1000).contains(&wait(&refused).as_secs()), "{refused:?}");
    assert_eq!(search_with(&channel, &fast).await, "", "other clients are not affected");

    // Each message of a stream is paced, and its events count.
    let (sender, mut responses) = event_stream(&channel, &feed).await;
    for index in 1..=3 {
        sender.send(message(&format!("e{index}"))).await.unwrap();
        assert_eq!(responses.message().await.unwrap().unwrap().counts.unwrap().accepted_count, index);
    }
    let mut two = message("e4");
    two.events.push(view("e5"));
    sender.send(two).await.unwrap();
    let status = responses.message().await.unwrap_err();
    assert_eq!((status.code(), reason(&status)), (Code::ResourceExhausted, "QUOTA_EXCEEDED".to_owned()));
    assert!(status.message().contains("2 events or items") && status.message().contains("1 more"), "{status:?}");
    assert!((1..=86_400).contains(&wait(&status).as_secs()), "{status:?}");
    let item = |id: &str| proto::Item { item_id: id.to_owned(), title: "a mug".to_owned(), ..Default::default() };
    let upsert = async |ids: &[&str]| {
        let request = proto::UpsertItemsRequest { items: ids.iter().map(|id| item(id)).collect(), update_time: None };
        // The stream may have used the only request of this millisecond.
        loop {
            let mut client = CatalogServiceClient::new(channel.clone());
            match client.upsert_items(with_bearer(request.clone(), &feed)).await {
                Ok(_) => return String::new(),
                Err(status) if reason(&status) == "RATE_LIMITED" => {
                    tokio::time::sleep(wait(&status)).await;
                }
                Err(status) => return reason(&status),
            }
        }
    };
    assert_eq!(upsert(&["a", "b"]).await, "QUOTA_EXCEEDED");
    assert_eq!(upsert(&["a"]).await, "", "one change is left");
    assert_eq!(upsert(&["a"]).await, "QUOTA_EXCEEDED");
    let metrics = engine.metrics_text();
    for line in [
        "lodestone_client_requests_total{client=\"slow\"} 4",
        "lodestone_client_refused_total{client=\"slow\",reason=\"rate\"} 1",
        "lodestone_client_requests_total{client=\"fast\"} 1",
        "lodestone_client_refused_total{client=\"feed\",reason=\"quota\"} 3",
    ] {
        assert!(metrics.lines().any(|of| of == line), "{line} is missing in {metrics}");
    }
    server.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn scores_and_features_need_the_role_debug() {
    let shop = Shop::new();
    let engine = Arc::new(shop.open(HealthBounds::default()));
    let directory = tempfile::tempdir().unwrap();
    let entries = [("shop", "roles = [\"rank\"]"), ("developer", "roles = [\"rank\", \"debug\"]")];
    let (config, [of_shop, of_developer]) = with_keys(directory.path(), entries);
    let server = Server::start(&engine, config).await;
    let mut client = RankingServiceClient::new(server.connect());
    use proto::DebugLevel::{Features, Scores, Timings, Unspecified};
    for (level, may) in [(Unspecified, true), (Timings, true), (Scores, false), (Features, false)] {
        let options = Some(proto::RankingOptions { debug_level: level.into(), ..Default::default() });
        let search = proto::SearchRequest { options: options.clone(), ..query("mug") };
        let candidate = proto::RankCandidate { item_id: "i1".to_owned(), ..Default::default() };
        let rank = proto::RankRequest {
            options: options.clone(),
            candidates: vec![candidate],
            viewer: query("").viewer,
            ..Default::default()
        };
        let kind = proto::RecommendType::ForYou.into();
        let recommend =
            proto::RecommendRequest { options, r#type: kind, viewer: query("").viewer, ..Default::default() };
        let suggest = proto::SuggestRequest {
            prefix: "mu".to_owned(),
            debug_level: level.into(),
            viewer: query("").viewer,
            ..Default::default()
        };
        for (secret, may) in [(&of_shop, may), (&of_developer, true)] {
            let outcomes = [
                ("options.debug_level", client.search(with_bearer(search.clone(), secret)).await.err()),
                ("options.debug_level", client.recommend(with_bearer(recommend.clone(), secret)).await.err()),
                ("options.debug_level", client.rank(with_bearer(rank.clone(), secret)).await.err()),
                ("debug_level", client.suggest(with_bearer(suggest.clone(), secret)).await.err()),
            ];
            for (field, refused) in outcomes {
                match refused {
                    None => assert!(may, "{level:?} {field}"),
                    Some(status) => {
                        assert!(!may, "{level:?} {field} {status:?}");
                        let details = status.get_error_details();
                        let info = details.error_info().unwrap();
                        assert_eq!((status.code(), info.reason.as_str()), (Code::PermissionDenied, "ROLE_MISSING"));
                        assert_eq!((&*info.metadata["role"], &*info.metadata["field"]), ("debug", field));
                    }
                }
            }
        }
    }
    server.end().await;
}

/// Returns the audited methods that docs/security.md lists, such as `RuleService/CreateRule`. The program has the same.
fn audited_methods() -> BTreeSet<String> {
    let document = include_str!("../../docs/security.md");
    let (_, section) = document.split_once("\n## Audit log\n").unwrap();
    let rows = section.split("\n## ").next().unwrap().lines().filter(|line| line.starts_with("| `"));
    let methods = rows.flat_map(|row| {
        let names: Vec<&str> = row.split('`').skip(1).step_by(2).collect();
        names[1..].iter().map(|method| format!("{}/{method}", names[0])).collect::<Vec<_>>()
    });
    methods.collect()
}

/// Calls a method with an empty message.
async fn call_empty(channel: &Channel, method: &str, secret: &str) -> Result<(), Status> {
    let mut client = Grpc::new(channel.clone());
    client.ready().await.unwrap();
    let path = PathAndQuery::from_maybe_shared(format!("/lodestone.v1.{method}")).unwrap();
    let mut request = with_bearer((), secret);
    request.metadata_mut().insert("x-request-id", "r-1".parse().unwrap());
    client.unary(request, path, ProstCodec::<(), ()>::default()).await.map(|_| ())
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_of_administration_and_privacy_are_in_the_audit_log_or_refused() {
    let shop = Shop::new();
    let engine = Arc::new(shop.open(HealthBounds::default()));
    let directory = tempfile::tempdir().unwrap();
    let every_role = "roles = [\"rank\", \"events\", \"catalog\", \"rules\", \"loyalty\", \"privacy\", \"admin\"]";
    let entries = [("operator", every_role), ("reader", "roles = [\"rank\"]")];
    let (config, [operator, reader]) = with_keys(directory.path(), entries);
    let path = directory.path().join("audit");
    let log = Arc::new(AuditLog::open(&path, AuditSettings::default()).unwrap());
    let server = Server::start(&engine, ServerConfig { audit: Some(log), ..config }).await;
    let channel = server.connect();
    let methods = audited_methods();
    assert!(methods.len() > 20, "{methods:?}");
    for method in methods.iter().filter(|method| *method != "CatalogService/ImportItems") {
        let outcome = call_empty(&channel, method, &operator).await;
        let entries = audit::read(&path, None, 2).unwrap();
        let last = entries.last().unwrap();
        let identity = (last.client.as_str(), last.client_kind.as_str(), last.catalog.as_str(), &*last.request_id);
        assert_eq!((last.method.as_str(), identity), (method.as_str(), ("operator", "api_key", "default", "r-1")));
        assert_eq!(last.status == "OK", outcome.is_ok(), "{last:?} {outcome:?}");
        match last.kind {
            EntryKind::Call => {
                assert!(["ModelService/ListBundles", "ExplainService/ReplayAnswer"].contains(&method.as_str()))
            }
            EntryKind::End => {
                let begin = &entries[0];
                assert_eq!((begin.kind, begin.sequence, &begin.method), (EntryKind::Begin, last.begin, method));
            }
            EntryKind::Begin => panic!("{method} has no end"),
        }
    }
    // Other calls, and calls of clients that may not make them, are not in it.
    let count = || audit::verify(&path, None).unwrap().line_count;
    let before = count();
    assert_eq!(search_with(&channel, &reader).await, "");
    assert_eq!(reason(&call_empty(&channel, "ModelService/SetCanary", &reader).await.unwrap_err()), "ROLE_MISSING");
    assert!(call_empty(&channel, "RuleService/ListRules", &operator).await.is_ok());
    assert_eq!(count(), before);

    // A rule that is made is named, and without the log it is not made.
    let create = async |id: &str| {
        let action = proto::RuleAction { action: Some(proto::rule_action::Action::Banner("a banner".to_owned())) };
        let rule = proto::Rule { rule_id: id.to_owned(), actions: vec![action], ..Default::default() };
        let request = proto::CreateRuleRequest { rule: Some(rule) };
        RuleServiceClient::new(channel.clone()).create_rule(with_bearer(request, &operator)).await.map(|_| ())
    };
    create("first").await.unwrap();
    let entries = audit::read(&path, None, 2).unwrap();
    assert!(entries.iter().all(|entry| entry.resource == "first"), "{entries:?}");
    let aside = directory.path().join("aside");
    fs::rename(&path, &aside).unwrap();
    let status = create("second").await.unwrap_err();
    assert_eq!((status.code(), reason(&status)), (Code::Unavailable, "AUDIT_FAILED".to_owned()));
    assert!(!status.message().contains(&*path.display().to_string()), "{status:?}");
    assert_eq!(engine.rules().rules.len(), 1);
    let refused = call_empty(&channel, "ModelService/ListBundles", &operator).await.unwrap_err();
    assert_eq!(reason(&refused), "AUDIT_FAILED");
    assert_eq!(search_with(&channel, &operator).await, "");
    fs::rename(&aside, &path).unwrap();
    create("second").await.unwrap();

    // A purge that only counts says so in both lines.
    for force in [false, true] {
        let request = proto::PurgeItemsRequest { filter: "item_id = \"none\"".to_owned(), force, ..Default::default() };
        CatalogServiceClient::new(channel.clone()).purge_items(with_bearer(request, &operator)).await.unwrap();
        let entries = audit::read(&path, None, 2).unwrap();
        assert!(entries.iter().all(|entry| entry.method == "CatalogService/PurgeItems"), "{entries:?}");
        assert!(entries.iter().all(|entry| entry.dry_run != force), "{entries:?}");
    }
    let value = proto::FilterValue { kind: Some(proto::filter_value::Kind::Text("none".to_owned())) };
    let listed = proto::FilterInList { field: "item_id".to_owned(), values: vec![value] };
    let expression = proto::FilterExpression { kind: Some(proto::filter_expression::Kind::InList(listed)) };
    let request = proto::PurgeItemsRequest { filter_expression: Some(expression), ..Default::default() };
    CatalogServiceClient::new(channel.clone()).purge_items(with_bearer(request, &operator)).await.unwrap();
    let entries = audit::read(&path, None, 2).unwrap();
    let names_filter = |resource: &str| resource.contains("item_id") && resource.contains("\"none\"");
    assert!(entries.iter().all(|entry| names_filter(&entry.resource)), "{entries:?}");

    // A full feed that deletes items.
    let options = proto::ImportOptions {
        mode: proto::ImportMode::Full.into(),
        deleted_share_max: Some(1.0),
        ..Default::default()
    };
    let item = proto::Item { item_id: "only".to_owned(), title: "a mug".to_owned(), ..Default::default() };
    let parts = [Part::Options(options), Part::Items(proto::ImportedItems { items: vec![item] })];
    let feed = futures_util::stream::iter(parts.map(|part| proto::ImportItemsRequest { part: Some(part) }));
    let mut responses = CatalogServiceClient::new(channel.clone())
        .import_items(with_bearer(feed, &operator))
        .await
        .unwrap()
        .into_inner();
    let mut deleted = 0;
    while let Some(response) = responses.message().await.unwrap() {
        deleted = response.deletions.map_or(deleted, |deletions| deletions.item_count);
    }
    assert!(deleted > 0);
    let entries = audit::read(&path, None, 2).unwrap();
    assert_eq!(entries[1].method, "CatalogService/ImportItems");
    assert_eq!(entries[1].resource, format!("{deleted} items that the feed lacks"));
    let verification = audit::verify(&path, None).unwrap();
    assert!(verification.violation.is_none() && verification.begins_the_log, "{verification:?}");
    server.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_are_in_no_log_no_error_and_no_shown_setting() {
    let shop = Shop::new();
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).display().to_string();
    let (authority, signer, stranger) = (Authority::new(), Signer::new("key-1"), Signer::new("key-1"));
    let (certificate, tls_key) = authority.issue();
    let (key, unknown) = (NewKey::of([1; 32]), NewKey::of([2; 32]));
    fs::write(path("cert.pem"), certificate).unwrap();
    fs::write(path("key.pem"), &tls_key).unwrap();
    fs::write(path("shop.key"), &key.secret).unwrap();
    let entry = format!("[[keys]]\nname = \"shop\"\nhash = \"{}\"\nroles = [\"rank\", \"rules\"]\n", key.hash);
    fs::write(path("keys.toml"), entry).unwrap();
    let provider = Provider::start(key_set(&[&signer])).await;
    let valid = signer.sign(&claims(300, &["rank"]));
    let tokens = [
        valid.clone(),
        signer.sign(&claims(-300, &["rank"])),
        stranger.sign(&claims(300, &["rank"])),
        "eyJhbGciOiJub25lIn0.eyJzdWIiOiJ4In0.c2lnbmF0dXJl".to_owned(),
    ];
    // Lines of base64 of the key, and the signatures of tokens.
    let of_tls = tls_key.lines().filter(|line| !line.starts_with("-----")).map(str::to_owned);
    let of_tokens = tokens.iter().map(|token| token.rsplit('.').next().unwrap().to_owned());
    let in_url = "query-secret-7d1f";
    let secrets: Vec<String> = of_tls
        .chain(of_tokens)
        .chain([key.secret.clone(), unknown.secret.clone(), in_url.to_owned()])
        .filter(|secret| secret.len() > 8)
        .collect();
    assert!(secrets.len() >= 8, "{}", secrets.len());
    let has_secret = |text: &str| secrets.iter().find(|secret| text.contains(secret.as_str())).cloned();

    let (bundle, data) = (shop.store_path().join("a").display().to_string(), path("data"));
    let jwks = format!("{}?key={in_url}", provider.url);
    let flags = |replaced: &str, by: &str| -> Vec<String> {
        let of = |flag: &str, value: &str| {
            let value = if flag == replaced { by } else { value };
            [flag.to_owned(), value.to_owned()]
        };
        [
            of("--bundle", &bundle),
            of("--data", &data),
            of("--listen", "127.0.0.1:0"),
            of("--tls-cert", &path("cert.pem")),
            of("--tls-key", &path("key.pem")),
            of("--api-keys", &path("keys.toml")),
            of("--jwt-jwks", &jwks),
            of("--jwt-issuer", ISSUER),
            of("--jwt-audience", "lodestone"),
        ]
        .concat()
    };
    let run = async |command: &[&str], flags: Vec<String>| {
        let mut process = Command::new(env!("CARGO_BIN_EXE_lodestone"));
        process.args(command).args(flags);
        let output = tokio::task::spawn_blocking(move || process.output()).await.unwrap().unwrap();
        let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        (output.status.code(), text)
    };
    for command in [&["config", "show"][..], &["config", "check"], &["doctor"], &["config", "show", "--format", "json"]]
    {
        let (code, text) = run(command, flags("", "")).await;
        assert!(code != Some(2) && (text.contains("tls_key") || text.contains("tokens on")), "{command:?}: {text}");
        assert_eq!(has_secret(&text), None, "{command:?}: {text}");
    }
    // Files in each other's places.
    for (flag, wrong) in [
        ("--tls-cert", path("key.pem")),
        ("--tls-key", path("shop.key")),
        ("--api-keys", path("shop.key")),
        ("--api-keys", path("key.pem")),
        ("--jwt-jwks", path("shop.key")),
        ("--jwt-jwks", path("key.pem")),
        ("--jwt-jwks", format!("https://127.0.0.1:1/jwks?key={in_url}")),
    ] {
        let (code, text) = run(&["serve"], flags(flag, &wrong)).await;
        assert_eq!(code, Some(2), "{flag} {wrong}: {text}");
        assert!(text.contains(flag), "{text}");
        assert_eq!(has_secret(&text), None, "{flag} {wrong}: {text}");
    }

    let process = Process::serve(|command| command.args(flags("", "")).env("RUST_LOG", "debug,lodestone=trace")).await;
    let endpoint = Endpoint::from_shared(format!("https://{}", process.address)).unwrap();
    let channel = endpoint.tls_config(authority.trusted()).unwrap().connect().await.unwrap();
    let mut texts = Vec::new();
    let bearer = |secret: &str| format!("Bearer {secret}");
    for sent in [bearer(&key.secret), bearer(&unknown.secret), key.secret.clone(), format!("Basic {}", key.secret)]
        .into_iter()
        .chain(tokens.iter().map(|token| bearer(token)))
        .chain([bearer(&valid[1..]), bearer(&format!("{valid}x"))])
    {
        let mut request = Request::new(query("mug"));
        request.metadata_mut().insert("authorization", sent.parse().unwrap());
        texts
            .extend(RankingServiceClient::new(channel.clone()).search(request).await.err().map(|of| format!("{of:?}")));
        for method in ["ModelService/ListBundles", "RuleService/DeleteRule"] {
            let mut client = Grpc::new(channel.clone());
            client.ready().await.unwrap();
            let path = PathAndQuery::from_maybe_shared(format!("/lodestone.v1.{method}")).unwrap();
            let mut request = Request::new(());
            request.metadata_mut().insert("authorization", sent.parse().unwrap());
            let outcome = client.unary(request, path, ProstCodec::<(), ()>::default()).await;
            texts.extend(outcome.err().map(|of| format!("{of:?}")));
        }
    }
    assert!(search_over(channel).await.is_err(), "a call without a secret");
    assert!(texts.len() >= 20, "{texts:?}");
    assert!(texts.iter().any(|text| text.contains("has expired")), "{texts:?}");
    for text in &texts {
        assert_eq!(has_secret(text), None, "{text}");
    }
    let audited = fs::read_dir(Path::new(&data).join("audit")).unwrap();
    for file in audited {
        let text = fs::read_to_string(file.unwrap().path()).unwrap();
        assert!(text.contains("RuleService/DeleteRule") && has_secret(&text).is_none(), "{text}");
    }
    // The log has an event of the last call when it is read.
    wait_until("the log has the refusals", TIME_MAX, async || process.log().contains("a client lacks a role")).await;
    let logged = process.log();
    assert_eq!(has_secret(&logged), None, "{logged}");
}
