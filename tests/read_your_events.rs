//! Over gRPC, on a real server that is killed meanwhile: whoever names an acknowledged position sees all up to it, and no user
//! ever goes back.
#[path = "support/bundles.rs"]
#[allow(dead_code)]
mod bundles;

use bundles::{ITEMS, Shop};
use lodestone::server::proto::{
    self, EventStatus, EventType, RecommendType, event_service_client::EventServiceClient,
    ranking_service_client::RankingServiceClient,
};
use parking_lot::Mutex;
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::{
    io::{BufRead, BufReader},
    net::TcpListener,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tonic::transport::{Channel, Endpoint};

const WRITERS: usize = 4;
const READERS: usize = 3;
const KILLS: usize = 4;

/// A server that is killed when it is dropped.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // SIGKILL.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn serve(shop: &Shop, address: &str) -> Server {
    let mut child = Command::new(env!("CARGO_BIN_EXE_lodestone"))
        .args(["serve", "--listen", address, "--workers", "2", "--store"])
        .arg(shop.store_path())
        .arg("--data")
        .arg(shop.data_path())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    let told: Vec<String> = lines.by_ref().take_while(|line| !line.contains("serving")).collect();
    let is_serving = child.try_wait().unwrap().is_none();
    // The server must not wait for someone to read what it tells.
    std::thread::spawn(move || lines.for_each(drop));
    let server = Server(child);
    assert!(is_serving, "{told:?}");
    server
}

fn viewer(user: usize) -> Option<proto::Viewer> {
    Some(proto::Viewer { user_id: format!("reader-{user}"), ..Default::default() })
}

fn view(user: usize, place: usize) -> proto::Event {
    proto::Event {
        event_id: format!("{user}-{place}"),
        r#type: EventType::View.into(),
        viewer: viewer(user),
        lines: vec![proto::EventLine { item_id: item_at(place), ..Default::default() }],
        ..Default::default()
    }
}

/// The item that a user views as the `place`th.
fn item_at(place: usize) -> String {
    format!("i{}", place % ITEMS)
}

/// Writes an event until it is acknowledged, over restarts: the position, at which it is in effect.
async fn written(channel: &Channel, event: &proto::Event, by_stream: bool) -> u64 {
    let mut client = EventServiceClient::new(channel.clone());
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        let answer = if by_stream {
            let message = proto::StreamEventsRequest { events: vec![event.clone()] };
            let written = client.stream_events(futures_util::stream::iter([message])).await;
            written
                .map(tonic::Response::into_inner)
                .map(|w| (w.accepted_count + w.duplicate_count == 1, w.session_version))
        } else {
            let written = client.write_events(proto::WriteEventsRequest { events: vec![event.clone()] }).await;
            let is_stored = |status: EventStatus| matches!(status, EventStatus::Accepted | EventStatus::Duplicate);
            written.map(tonic::Response::into_inner).map(|w| (is_stored(w.results[0].status()), w.session_version))
        };
        match answer {
            Ok((is_stored, version)) => {
                assert!(is_stored, "{event:?}");
                return version;
            }
            Err(status) => assert!(Instant::now() < until, "{status}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What a user viewed, the latest first, with the position that the answer knows; none while no server answers.
async fn viewed(channel: &Channel, user: usize, session_version: u64) -> Option<(Vec<String>, u64)> {
    let request = proto::RecommendRequest {
        viewer: viewer(user),
        r#type: RecommendType::RecentlyViewed.into(),
        page_size: 100,
        options: Some(proto::RankingOptions { session_version, ..Default::default() }),
        ..Default::default()
    };
    let answer = RankingServiceClient::new(channel.clone()).recommend(request).await.ok()?.into_inner();
    let degradations = answer.info.unwrap_or_default().degradations;
    assert!(degradations.is_empty(), "{degradations:?}");
    Some((answer.results.into_iter().map(|result| result.item_id).collect(), answer.session_version))
}

/// What must be seen of somebody who viewed the places below `count`.
fn expected(count: usize) -> Vec<String> {
    (0..count).rev().take(ITEMS).map(item_at).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_names_an_acknowledged_position_sees_all_up_to_it_over_kills() {
    let shop = Shop::new();
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let mut server = serve(&shop, &address);
    let channel = || Endpoint::from_shared(format!("http://{address}")).unwrap().connect_lazy();
    // Of each user: the position of the last acknowledgement, and how many views it covers.
    let acknowledged: Arc<Mutex<[(u64, usize); WRITERS]>> = Arc::default();
    let (stop, reads) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut tasks = Vec::new();
    for user in 0..WRITERS {
        // What is written over one connection is read over another.
        let (writing, reading, acknowledged, stop) = (channel(), channel(), acknowledged.clone(), stop.clone());
        tasks.push(tokio::spawn(async move {
            let mut place = 0;
            while !stop.load(Ordering::Relaxed) {
                let version = written(&writing, &view(user, place), place % 3 == 2).await;
                place += 1;
                acknowledged.lock()[user] = (version, place);
                if let Some((seen, knows)) = viewed(&reading, user, version).await {
                    assert!(knows >= version);
                    assert_eq!(seen, expected(place), "user {user} after {place} views");
                }
            }
        }));
    }
    for reader in 0..READERS {
        let (reading, acknowledged, stop, reads) = (channel(), acknowledged.clone(), stop.clone(), reads.clone());
        tasks.push(tokio::spawn(async move {
            let mut random = StdRng::seed_from_u64(reader as u64);
            let mut most = [0; WRITERS];
            while !stop.load(Ordering::Relaxed) {
                let all = *acknowledged.lock();
                // The greatest position covers what all had been told by then.
                let version = all.iter().map(|(version, _)| *version).max().unwrap_or(0);
                let user = random.random_range(0..WRITERS);
                let Some((seen, knows)) = viewed(&reading, user, version).await else {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    continue;
                };
                assert!(knows >= version);
                // More may have been written since.
                let now = acknowledged.lock()[user].1 + 1;
                let found = (all[user].1.max(most[user])..=now).find(|count| expected(*count) == seen);
                let count = found.unwrap_or_else(|| panic!("{seen:?} of {user}, who had viewed {all:?} to {now}"));
                most[user] = count;
                reads.fetch_add(1, Ordering::Relaxed);
            }
        }));
    }
    for kill in 0..KILLS {
        tokio::time::sleep(Duration::from_millis(400 + 130 * kill as u64)).await;
        drop(server);
        server = serve(&shop, &address);
    }
    tokio::time::sleep(Duration::from_millis(400)).await;
    stop.store(true, Ordering::Relaxed);
    for task in tasks {
        task.await.unwrap();
    }
    let views = acknowledged.lock().iter().map(|(_, count)| count).sum::<usize>();
    let reads = reads.load(Ordering::Relaxed);
    println!("{views} views written and read at once, {reads} reads of others, {KILLS} kills");
    assert!(views > 100 && reads > 100, "{views} views, {reads} reads");
    drop(server);
}
