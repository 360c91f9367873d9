//! How connections end: idle, old, with a client that reads nothing, and when the server stops. Through real
//! connections.
use crate::{
    security::{query, search_over},
    support::{
        bundles::Shop,
        server::{Server, TIME_MAX},
        wait::wait_until,
    },
};
use lodestone::server::{
    ServerConfig,
    proto::{self, event_service_client::EventServiceClient},
};
use lodestone_engine::Engine;
use lodestone_rollout::HealthBounds;
use prost::Message;
use std::{sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
    time::timeout,
};
use tonic::{Status, Streaming, transport::Channel};

/// A limit that passes within a test.
const SHORT: Duration = Duration::from_millis(300);
/// The beginning of a client's HTTP/2 (RFC 9113, section 3.4), before its first frame.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
// Types and flags of frames.
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// The code of RST_STREAM of a client that no longer wants the response.
const CANCEL: u8 = 8;

fn shop() -> (Shop, Arc<Engine>) {
    let shop = Shop::new();
    let engine = Arc::new(shop.open(HealthBounds::default()));
    (shop, engine)
}

/// A call of StreamEvents that lasts until it is dropped.
struct OpenStream {
    messages: mpsc::Sender<proto::StreamEventsRequest>,
    responses: Streaming<proto::StreamEventsResponse>,
}

impl OpenStream {
    /// Begins the call, with a first event that the server does not know.
    async fn begin(channel: Channel, event_id: &str) -> Self {
        let (messages, receiver) = mpsc::channel(1);
        let sent = futures_util::stream::unfold(receiver, |mut receiver: mpsc::Receiver<_>| async move {
            Some((receiver.recv().await?, receiver))
        });
        let responses = EventServiceClient::new(channel).stream_events(sent).await.unwrap().into_inner();
        let mut stream = Self { messages, responses };
        assert_eq!(stream.accepted(event_id).await.unwrap(), 1);
        stream
    }

    /// Sends an event. Returns the number of accepted events of the stream.
    async fn accepted(&mut self, event_id: &str) -> Result<i64, Status> {
        let event = proto::Event {
            event_id: event_id.to_owned(),
            r#type: proto::EventType::View.into(),
            viewer: query("mug").viewer,
            lines: vec![proto::EventLine { item_id: "i1".to_owned(), ..Default::default() }],
            ..Default::default()
        };
        // Fails if the call has ended.
        let _ = self.messages.send(proto::StreamEventsRequest { events: vec![event] }).await;
        let response = self.responses.message().await?;
        Ok(response.and_then(|response| response.counts).map_or(0, |counts| counts.accepted_count))
    }
}

/// Waits until another client gets a place of a server.
async fn place_is_free(server: &Server) {
    wait_until("a place is free", TIME_MAX, async || search_over(server.connect()).await.is_ok()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_connection_ends_and_one_with_a_call_stays() {
    let (_shop, engine) = shop();
    let config = ServerConfig { connection_idle: Some(SHORT), connections_max: 1, ..ServerConfig::default() };
    let server = Server::start(&engine, config).await;
    let idle = server.connect();
    assert_eq!(search_over(idle.clone()).await.unwrap(), 3);
    place_is_free(&server).await;

    let channel = server.connect();
    wait_until("the stream has the place", TIME_MAX, async || search_over(channel.clone()).await.is_ok()).await;
    let mut stream = OpenStream::begin(channel, "first").await;
    // Longer than a connection may be idle.
    assert!(timeout(4 * SHORT, stream.responses.message()).await.is_err(), "the call goes on");
    assert_eq!(stream.accepted("later").await.unwrap(), 2);
    drop(stream);
    place_is_free(&server).await;
    drop(idle);
    server.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_connection_ends_after_its_calls_or_their_grace() {
    let (_shop, engine) = shop();
    let aged = |grace| ServerConfig {
        connection_age: Some(SHORT),
        connection_age_grace: grace,
        connection_idle: None,
        connections_max: 2,
        ..ServerConfig::default()
    };
    let server = Server::start(&engine, aged(None)).await;
    let channel = server.connect();
    let mut stream = OpenStream::begin(channel.clone(), "first").await;
    assert!(timeout(4 * SHORT, stream.responses.message()).await.is_err(), "the call goes on");
    // The first call after GOAWAY may still be sent over the old connection, which refuses it.
    let answered = async || search_over(channel.clone()).await.is_ok_and(|found| found == 3);
    wait_until("another connection has the next calls", TIME_MAX, answered).await;
    assert_eq!(stream.accepted("later").await.unwrap(), 2);
    // Both places are taken until the second connection is old too, although its client keeps it.
    place_is_free(&server).await;
    assert_eq!(stream.accepted("last").await.unwrap(), 3);
    drop((stream, channel));
    server.end().await;

    let server = Server::start(&engine, aged(Some(SHORT))).await;
    let mut stream = OpenStream::begin(server.connect(), "first-with-grace").await;
    let cut = timeout(TIME_MAX, stream.responses.message()).await.expect("the grace ends the call");
    assert!(cut.is_err(), "{cut:?}");
    server.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopping_server_is_not_ready_and_answers_until_its_wait_is_over() {
    let (_shop, engine) = shop();
    let config = ServerConfig { drain_wait: 10 * TIME_MAX, ..ServerConfig::default() };
    let server = Server::start(&engine, config).await;
    let (old, new) = (server.connect(), server.connect());
    assert_eq!(search_over(old.clone()).await.unwrap(), 3);
    let (_, serving) = server.begin_end().await;
    assert_eq!(search_over(old).await.unwrap(), 3);
    assert_eq!(search_over(new).await.unwrap(), 3, "a load balancer may not have noticed yet");
    assert!(!serving.is_finished());
    serving.abort();

    let server = Server::start(&engine, ServerConfig { drain_wait: Duration::ZERO, ..ServerConfig::default() }).await;
    let (address, idle) = (server.address, server.connect());
    assert_eq!(search_over(idle.clone()).await.unwrap(), 3);
    timeout(TIME_MAX, server.end()).await.expect("without a wait and without calls it ends at once");
    assert!(TcpStream::connect(address).await.is_err());
    assert!(search_over(idle).await.is_err());
}

/// Returns a frame of HTTP/2.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Returns the types of frames.
fn kinds(mut frames: &[u8]) -> Vec<u8> {
    let mut kinds = Vec::new();
    while let [a, b, c, kind, rest @ ..] = frames {
        kinds.push(*kind);
        // The flags and the number of the stream come before the payload.
        let length = u32::from_be_bytes([0, *a, *b, *c]) as usize + 5;
        frames = rest.get(length..).unwrap_or_default();
    }
    kinds
}

/// Returns the headers of a call of Search, as HPACK (RFC 7541) without the dynamic table.
fn search_headers() -> Vec<u8> {
    let literal = |name: &[u8], value: &str| [name, &[value.len() as u8], value.as_bytes()].concat();
    [
        // `:method: POST` and `:scheme: http` of the static table.
        vec![0x83, 0x86],
        literal(&[0x04], "/lodestone.v1.RankingService/Search"),
        literal(&[0x01], "localhost"),
        // `content-type`, which has the index 31.
        literal(&[0x0F, 0x10], "application/grpc"),
        literal(&[0x00, 2, b't', b'e'], "trailers"),
    ]
    .concat()
}

/// Returns the message of a call of Search, with its prefix of gRPC.
fn search_message() -> Vec<u8> {
    let message = query("mug").encode_to_vec();
    [&[0][..], &(message.len() as u32).to_be_bytes(), &message[..]].concat()
}

/// A search backend whose deadlines pass while the server does not read: it cancels the calls before they begin here.
#[tokio::test(flavor = "multi_thread")]
async fn calls_that_are_cancelled_before_they_begin_end_no_other() {
    const CANCELLED: u32 = 1_000;
    let (_shop, engine) = shop();
    let server = Server::start(&engine, ServerConfig::default()).await;
    let mut client = TcpStream::connect(server.address).await.unwrap();
    let mut sent = [PREFACE, &frame(SETTINGS, 0, 0, &[])[..]].concat();
    for stream in (0..CANCELLED).map(|call| 2 * call + 1) {
        sent.extend(frame(HEADERS, END_HEADERS, stream, &search_headers()));
        sent.extend(frame(RST_STREAM, 0, stream, &[0, 0, 0, CANCEL]));
    }
    let last = 2 * CANCELLED + 1;
    sent.extend(frame(HEADERS, END_HEADERS, last, &search_headers()));
    sent.extend(frame(DATA, END_STREAM, last, &search_message()));
    client.write_all(&sent).await.unwrap();
    let mut received = Vec::new();
    let answered = async {
        while !kinds(&received).contains(&DATA) {
            let count = client.read_buf(&mut received).await.expect("the connection goes on");
            assert!(count > 0 && !kinds(&received).contains(&GOAWAY), "the connection goes on: {received:?}");
        }
    };
    timeout(TIME_MAX, answered).await.expect("the last call is answered");
    server.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_reads_no_response_is_disconnected() {
    let (_shop, engine) = shop();
    let server = Server::start(&engine, ServerConfig { response_read_max: SHORT, ..ServerConfig::default() }).await;
    let channel = server.connect();
    assert_eq!(search_over(channel.clone()).await.unwrap(), 3);
    let mut deaf = TcpStream::connect(server.address).await.unwrap();
    let sent = [
        PREFACE.to_vec(),
        // SETTINGS_INITIAL_WINDOW_SIZE is 0: the server may send headers and no part of a message.
        frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]),
        frame(HEADERS, END_HEADERS, 1, &search_headers()),
        frame(DATA, END_STREAM, 1, &search_message()),
    ];
    deaf.write_all(&sent.concat()).await.unwrap();
    let mut received = Vec::new();
    // A reset is an end too.
    let _ = timeout(TIME_MAX, deaf.read_to_end(&mut received)).await.expect("the server closes the connection");
    let answered = "lodestone_requests_total{rpc=\"Search\",code=\"OK\"} 2";
    assert!(engine.metrics_text().contains(answered), "its call was answered: {}", engine.metrics_text());
    assert!(received.windows(4).all(|part| part != b"mug "), "nothing of the answer was sent");
    assert!(kinds(&received).contains(&GOAWAY), "the other calls of the connection may end: {received:?}");
    assert_eq!(search_over(channel).await.unwrap(), 3, "others are served");
    server.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_ignores_goaway_is_disconnected() {
    let (_shop, engine) = shop();
    let config = ServerConfig { connection_idle: Some(SHORT), goaway_idle_max: SHORT, ..ServerConfig::default() };
    let server = Server::start(&engine, config).await;
    let mut client = TcpStream::connect(server.address).await.unwrap();
    client.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[])[..]].concat()).await.unwrap();
    let mut received = Vec::new();
    // It answers nothing. Earlier than the pings of HTTP/2 find that, which begin after 30 s.
    let ended = timeout(Duration::from_secs(20), client.read_to_end(&mut received)).await;
    // A reset is an end too.
    let _ = ended.expect("the server closes the connection");
    assert!(kinds(&received).contains(&GOAWAY), "{received:?}");
    server.end().await;
}

/// A blocked write stops HTTP/2, whose pings and GOAWAY would end the connection.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_blocks_all_writes_gives_its_place_back() {
    let (_shop, engine) = shop();
    let config = ServerConfig { write_blocked_max: SHORT, connections_max: 1, ..ServerConfig::default() };
    let server = Server::start(&engine, config).await;
    let mut deaf = TcpStream::connect(server.address).await.unwrap();
    deaf.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[])[..]].concat()).await.unwrap();
    let pings = frame(PING, 0, 0, &[7; 8]).repeat(1 << 16);
    // Until the server, which cannot write its answers, closes the connection.
    let flood = async { while deaf.write_all(&pings).await.is_ok() {} };
    timeout(TIME_MAX, flood).await.expect("the server closes the connection");
    place_is_free(&server).await;
    server.end().await;
}

/// Floods of frames that the server must answer, from clients that read none of the answers. A server that kept the
/// answers would accept everything.
#[tokio::test(flavor = "multi_thread")]
async fn floods_of_pings_and_settings_are_not_kept() {
    let (_shop, engine) = shop();
    let server = Server::start(&engine, ServerConfig::default()).await;
    for flood in [frame(PING, 0, 0, &[7; 8]), frame(SETTINGS, 0, 0, &[])] {
        let mut deaf = TcpStream::connect(server.address).await.unwrap();
        deaf.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[])[..]].concat()).await.unwrap();
        let flood = flood.repeat((128 << 20) / flood.len());
        let written = timeout(Duration::from_secs(5), deaf.write_all(&flood)).await;
        assert!(!matches!(written, Ok(Ok(()))), "the server reads what it cannot answer");
        assert_eq!(search_over(server.connect()).await.unwrap(), 3, "others are served");
    }
    server.end().await;
}
