//! Message sizes, compression and the statuses of the gRPC library, as a client with the default settings of its
//! library sees them.
use crate::support::{bundles::Shop, items::all_fields};
use lodestone::server::{
    self, ServerConfig,
    proto::{
        self, EventStatus, EventType, ItemStatus, catalog_service_client::CatalogServiceClient,
        event_service_client::EventServiceClient, ranking_service_client::RankingServiceClient,
    },
};
use lodestone_engine::Engine;
use lodestone_rollout::HealthBounds;
use prost::{
    Message,
    bytes::{Buf, BufMut},
};
use std::{collections::BTreeSet, io, sync::Arc};
use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle};
use tonic::{
    Code, Request, Response, Status,
    client::Grpc,
    codec::{Codec, CompressionEncoding::Gzip, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::http::uri::PathAndQuery,
    transport::{Channel, Endpoint},
};
use tonic_types::StatusExt;

/// Items whose answers are larger than a response may be.
const HEAVY_ITEMS: usize = 210;
/// Characters of their descriptions, the greatest number that is allowed.
const DESCRIPTION_CHARS: usize = 20_000;
const SEARCH: &str = "/lodestone.v1.RankingService/Search";

/// A server in this process, and a channel to it.
struct Server {
    engine: Arc<Engine>,
    channel: Channel,
    stop: oneshot::Sender<()>,
    serving: JoinHandle<io::Result<()>>,
    _shop: Shop,
}

impl Server {
    async fn start() -> Self {
        let shop = Shop::new();
        let engine = Arc::new(shop.open(HealthBounds::default()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let (stop, stopped) = oneshot::channel::<()>();
        let shutdown = async move {
            let _ = stopped.await;
        };
        let serving = tokio::spawn(server::serve(engine.clone(), ServerConfig::default(), listener, shutdown));
        let channel = Endpoint::from_shared(address).unwrap().connect().await.unwrap();
        Self { engine, channel, stop, serving, _shop: shop }
    }

    async fn end(self) {
        drop(self.channel);
        self.stop.send(()).unwrap();
        self.serving.await.unwrap().unwrap();
    }

    /// Sends bytes as the only message of a call, and returns the status, which must be an error.
    async fn refusal(&self, path: &'static str, request: Request<Vec<u8>>, is_compressed: bool) -> Status {
        let mut client = Grpc::new(self.channel.clone());
        if is_compressed {
            client = client.send_compressed(Gzip);
        }
        client.ready().await.unwrap();
        let response: Result<Response<()>, Status> =
            client.unary(request, PathAndQuery::from_static(path), RawCodec).await;
        response.unwrap_err()
    }
}

/// Sends bytes as they are.
struct RawCodec;

impl Codec for RawCodec {
    type Encode = Vec<u8>;
    type Decode = ();
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for RawCodec {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put_slice(&item);
        Ok(())
    }
}

impl Decoder for RawCodec {
    type Item = ();
    type Error = Status;

    fn decode(&mut self, message: &mut DecodeBuf<'_>) -> Result<Option<()>, Status> {
        message.advance(message.remaining());
        Ok(Some(()))
    }
}

fn viewer() -> Option<proto::Viewer> {
    Some(proto::Viewer { visitor_id: "browser".to_owned(), ..Default::default() })
}

fn search(query: &str, page_token: String) -> proto::SearchRequest {
    proto::SearchRequest {
        viewer: viewer(),
        query: query.to_owned(),
        page_size: 200,
        page_token,
        options: Some(proto::RankingOptions { read_mask: Some(all_fields()), ..Default::default() }),
        ..Default::default()
    }
}

/// An item with the longest description that is allowed.
fn heavy_item(number: usize) -> proto::Item {
    let description = "warm grey felt slipper ".repeat(DESCRIPTION_CHARS / 23);
    proto::Item {
        item_id: format!("heavy-{number}"),
        title: format!("heavy slipper {number}"),
        description,
        ..Default::default()
    }
}

/// Asserts the code and the reason of a status, and that the message contains all `texts`.
fn assert_refused(status: &Status, code: Code, reason: &str, texts: &[&str]) {
    let details = status.get_error_details();
    let found = details.error_info().map(|info| (info.domain.as_str(), info.reason.as_str()));
    assert_eq!((status.code(), found), (code, Some(("lodestone.dev", reason))), "{status:?}");
    assert!(texts.iter().all(|text| status.message().contains(text)), "{texts:?} in {status:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_have_stated_sizes_and_every_refusal_has_a_reason() {
    let server = Server::start().await;
    refusals_of_the_library(&server).await;
    large_writes(&server).await;
    pages_of_large_items(&server).await;
    compression(&server).await;
    let metrics = server.engine.metrics_text();
    for line in ["rpc=\"unknown\",code=\"UNIMPLEMENTED\"} 2", "rpc=\"UpsertItems\",code=\"RESOURCE_EXHAUSTED\"} 3"] {
        assert!(metrics.contains(line), "{line} is missing in {metrics}");
    }
    server.end().await;
}

async fn refusals_of_the_library(server: &Server) {
    // Field 2, `query`, with a byte that is not UTF-8; a truncated message.
    let status = server.refusal(SEARCH, Request::new(vec![0x12, 1, 0xFF]), false).await;
    assert_refused(&status, Code::InvalidArgument, "MESSAGE_MALFORMED", &["query", "UTF-8"]);
    let status = server.refusal(SEARCH, Request::new(vec![0x12, 100]), false).await;
    assert_refused(&status, Code::InvalidArgument, "MESSAGE_MALFORMED", &[]);

    let mut request = Request::new(search("mug", String::new()).encode_to_vec());
    request.metadata_mut().insert("grpc-encoding", "snappy".parse().unwrap());
    let status = server.refusal(SEARCH, request, false).await;
    assert_refused(&status, Code::Unimplemented, "COMPRESSION_UNSUPPORTED", &["snappy", "gzip"]);
    assert_eq!(status.metadata().get("grpc-accept-encoding").unwrap(), "gzip,identity");

    for path in ["/lodestone.v1.RankingService/Find", "/shop.v1.Finder/Search"] {
        let status = server.refusal(path, Request::new(Vec::new()), false).await;
        assert_refused(&status, Code::Unimplemented, "METHOD_UNKNOWN", &[path]);
    }
    let health = tonic_health::pb::HealthCheckRequest { service: "nothing".to_owned() };
    let path = "/grpc.health.v1.Health/Check";
    let status = server.refusal(path, Request::new(health.encode_to_vec()), true).await;
    assert_refused(&status, Code::NotFound, "SERVICE_UNKNOWN", &[]);

    // A second message of a method that takes one.
    let mut client = Grpc::new(server.channel.clone());
    client.ready().await.unwrap();
    let messages = futures_util::stream::iter(vec![search("mug", String::new()).encode_to_vec(); 2]);
    let responses = client.streaming(Request::new(messages), PathAndQuery::from_static(SEARCH), RawCodec).await;
    assert_refused(&responses.unwrap_err(), Code::InvalidArgument, "MESSAGE_MALFORMED", &["second message"]);

    // The second message of the stream cannot be decoded.
    let bad = vec![0x0A, 100];
    let good = proto::StreamEventsRequest { events: vec![view(0, "stream")] }.encode_to_vec();
    let mut client = Grpc::new(server.channel.clone());
    client.ready().await.unwrap();
    let path = PathAndQuery::from_static("/lodestone.v1.EventService/StreamEvents");
    let messages = futures_util::stream::iter([good, bad]);
    let mut responses = client.streaming(Request::new(messages), path, RawCodec).await.unwrap().into_inner();
    assert_eq!(responses.message().await.unwrap(), Some(()), "the first message is answered");
    assert_refused(&responses.message().await.unwrap_err(), Code::InvalidArgument, "MESSAGE_MALFORMED", &[]);

    // Thousands of small messages that the server has not read yet are no attack.
    let tiny = |number: usize| proto::StreamEventsRequest { events: vec![view(number, "tiny")] };
    let messages = futures_util::stream::iter((0..5000).map(tiny).collect::<Vec<_>>());
    let mut responses =
        EventServiceClient::new(server.channel.clone()).stream_events(messages).await.unwrap().into_inner();
    let mut count = 0;
    while let Some(response) = responses.message().await.unwrap() {
        count = response.counts.unwrap().accepted_count;
    }
    assert_eq!(count, 5000);

    // So many violations that not all of them fit into the headers.
    let exclude_item_ids = vec!["x".repeat(200); 1000];
    let options = Some(proto::RankingOptions { exclude_item_ids, ..Default::default() });
    let request = proto::SearchRequest { options, ..search("mug", String::new()) };
    let status = RankingServiceClient::new(server.channel.clone()).search(request).await.unwrap_err();
    assert_refused(&status, Code::InvalidArgument, "INVALID_REQUEST", &["1000 fields"]);
    let details = status.get_error_details();
    let shown = details.bad_request().unwrap().field_violations.len();
    assert!((10..=20).contains(&shown), "{shown} violations");
    assert_eq!(details.error_info().unwrap().metadata["omitted_violations"], (1000 - shown).to_string());
}

/// A view with the greatest lengths of some fields.
fn view(number: usize, session: &str) -> proto::Event {
    proto::Event {
        event_id: format!("{session}-{number}"),
        r#type: EventType::View.into(),
        viewer: viewer(),
        lines: vec![proto::EventLine { item_id: format!("i{}", number % 40), ..Default::default() }],
        ..Default::default()
    }
}

async fn large_writes(server: &Server) {
    let mut catalog = CatalogServiceClient::new(server.channel.clone());
    let items: Vec<_> = (0..HEAVY_ITEMS).map(heavy_item).collect();
    let request = proto::UpsertItemsRequest { items, update_time: None };
    assert!(request.encoded_len() > 4 << 20, "more than a default limit of gRPC libraries");
    let written = catalog.upsert_items(request).await.unwrap().into_inner();
    assert!(written.results.iter().all(|result| result.status() == ItemStatus::Created));

    // The greatest number of events, of 1.5 KB each.
    let mut events = EventServiceClient::new(server.channel.clone());
    let query = "q".repeat(1000);
    let attribution_token = "t".repeat(400);
    let event = |number| proto::Event {
        query: query.clone(),
        attribution_token: attribution_token.clone(),
        ..view(number, "large")
    };
    let request = proto::WriteEventsRequest { events: (0..10_000).map(event).collect() };
    assert!(request.encoded_len() > 14_000_000);
    let written = events.write_events(request).await.unwrap().into_inner();
    assert!(written.results.iter().all(|result| result.status() == EventStatus::Accepted));
    assert!(!written.results[0].warnings.is_empty(), "the token is foreign");

    // Every event with 195 violations and an id that is too long: the answers have less than the client accepts, 4 MiB.
    let lines = vec![proto::EventLine::default(); 195];
    let event = |_| proto::Event { event_id: "e".repeat(2000), lines: lines.clone(), ..view(0, "") };
    let request = proto::WriteEventsRequest { events: (0..10_000).map(event).collect() };
    let written = events.write_events(request).await.unwrap().into_inner();
    assert!(written.results.iter().all(|result| result.status() == EventStatus::Rejected));
    assert_eq!(written.results[0].violations.len(), 10);
    assert!(written.results[0].event_id.len() < 200);
    let message = proto::StreamEventsRequest { events: (0..1000).map(event).collect() };
    let messages = futures_util::stream::iter([message.clone(), message]);
    let mut responses = events.stream_events(messages).await.unwrap().into_inner();
    let mut rejected = 0;
    while let Some(response) = responses.message().await.unwrap() {
        assert!(response.results.iter().all(|indexed| indexed.result.as_ref().unwrap().violations.len() <= 10));
        rejected = response.counts.unwrap().rejected_count;
    }
    assert_eq!(rejected, 2000);

    let path = "/lodestone.v1.CatalogService/UpsertItems";
    let status = server.refusal(path, Request::new(vec![0; (32 << 20) + 1]), false).await;
    assert_refused(&status, Code::ResourceExhausted, "MESSAGE_TOO_LARGE", &["33554432", "33554433", "fewer"]);
    assert!(status.get_error_details().retry_info().is_none(), "the same message is always too large");
    // 16 million empty items, of which each takes hundreds of bytes in memory.
    let status = server.refusal(path, Request::new([0x0A, 0].repeat(16 << 20)), false).await;
    assert_refused(&status, Code::InvalidArgument, "INVALID_REQUEST", &["items", "at least", "1000"]);
    // As many as were below the limit of the memory, in a few kB.
    let status = server.refusal(path, Request::new([0x0A, 0].repeat(100_000)), true).await;
    assert_refused(&status, Code::InvalidArgument, "INVALID_REQUEST", &["items", "100000 entries", "1000"]);
    // One item with millions of empty tags, field 9. The length has four bytes of seven bits.
    let tags = [0x4A, 0].repeat(8 << 20);
    let length = [0x80, 0x80, 0x80, 0x08];
    assert_eq!(tags.len(), 8 << 21);
    let item = [&[0x0A][..], &length, &tags].concat();
    let status = server.refusal(path, Request::new(item), false).await;
    assert_refused(&status, Code::ResourceExhausted, "MESSAGE_TOO_LARGE", &["16777221 bytes", "256 MiB", "fewer"]);
    let status = server.refusal(path, Request::new(vec![0; 64 << 20]), true).await;
    assert_refused(&status, Code::ResourceExhausted, "MESSAGE_TOO_LARGE", &["33554432", "after decompression"]);
}

async fn pages_of_large_items(server: &Server) {
    let mut ranking = RankingServiceClient::new(server.channel.clone());
    let (mut found, mut token, mut pages) = (Vec::new(), String::new(), 0);
    loop {
        let page = ranking.search(search("heavy slipper", token)).await.unwrap().into_inner();
        assert!(page.encoded_len() <= 4 << 20 && page.results.iter().all(|result| result.item.is_some()));
        found.extend(page.results.iter().map(|result| result.item_id.clone()));
        (pages, token) = (pages + 1, page.next_page_token);
        let is_cut = page.results.len() < 200 && !token.is_empty();
        assert_eq!(page.info.unwrap().notices.iter().any(|notice| notice.field == "page_size"), is_cut);
        if token.is_empty() {
            break;
        }
    }
    assert!(pages > 1 && found.len() * DESCRIPTION_CHARS > 3 << 20, "{pages} pages of {} results", found.len());
    assert_eq!(found.iter().collect::<BTreeSet<_>>().len(), found.len(), "no result is repeated");

    let candidates = (0..HEAVY_ITEMS)
        .map(|number| proto::RankCandidate { item_id: format!("heavy-{number}"), ..Default::default() })
        .collect();
    let options = Some(proto::RankingOptions { read_mask: Some(all_fields()), ..Default::default() });
    let request = proto::RankRequest { viewer: viewer(), candidates, options, ..Default::default() };
    let ranked = ranking.rank(request).await.unwrap().into_inner();
    let with_items = ranked.results.iter().take_while(|result| result.item.is_some()).count();
    assert_eq!(ranked.results.len(), HEAVY_ITEMS);
    assert!((100..HEAVY_ITEMS).contains(&with_items), "{with_items} results have their item");
    let notices = ranked.info.unwrap().notices;
    assert!(notices[0].field == "options.read_mask" && notices[0].description.contains(&with_items.to_string()));
}

async fn compression(server: &Server) {
    let encoding = |response: &Response<proto::SearchResponse>| {
        response.metadata().get("grpc-encoding").map(|encoding| encoding.to_str().unwrap().to_owned())
    };
    let client = || RankingServiceClient::new(server.channel.clone());
    let both =
        client().send_compressed(Gzip).accept_compressed(Gzip).search(search("mug", String::new())).await.unwrap();
    assert_eq!(encoding(&both).as_deref(), Some("gzip"));
    assert!(!both.get_ref().results.is_empty());
    let accepted = client().accept_compressed(Gzip).search(search("mug", String::new())).await.unwrap();
    assert_eq!(encoding(&accepted), None, "only callers that compress receive compressed responses");
    let plain = client().search(search("mug", String::new())).await.unwrap();
    assert_eq!(encoding(&plain), None);
}
