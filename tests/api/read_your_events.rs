//! Session versions over gRPC, on a server that is killed meanwhile: an answer to a request with an acknowledged
//! position reflects every event up to it, and no history shrinks.
use crate::support::{
    bundles::{ITEMS, Shop},
    process::Process,
    wait::wait_until,
};
use lodestone::server::proto::{
    self, EventStatus, EventType, RecommendType, event_service_client::EventServiceClient,
    ranking_service_client::RankingServiceClient,
};
use parking_lot::Mutex;
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::{
    net::TcpListener,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::task::JoinHandle;
use tonic::transport::{Channel, Endpoint};

const WRITERS: usize = 4;
const READERS: usize = 3;
const KILLS: usize = 4;
/// Views and reads between two kills, at least.
const WORK_MIN: usize = 30;
/// The longest time in which a restarted server answers again.
const RESTART_TIME_MAX: Duration = Duration::from_secs(60);
/// Time between two attempts while no server answers.
const RETRY_INTERVAL: Duration = Duration::from_millis(20);

async fn serve(shop: &Shop, address: &str) -> Process {
    Process::serve(|command| {
        command.args(["--listen", address, "--workers", "2", "--store"]).arg(shop.store_path());
        command.arg("--data").arg(shop.data_path())
    })
    .await
}

fn viewer(user: usize) -> Option<proto::Viewer> {
    Some(proto::Viewer { user_id: format!("reader-{user}"), ..Default::default() })
}

/// Returns the view number `number` of a user.
fn view(user: usize, number: usize) -> proto::Event {
    proto::Event {
        event_id: format!("{user}-{number}"),
        r#type: EventType::View.into(),
        viewer: viewer(user),
        lines: vec![proto::EventLine { item_id: item_of_view(number), ..Default::default() }],
        ..Default::default()
    }
}

/// Returns the item of a user's view number `number`.
fn item_of_view(number: usize) -> String {
    format!("i{}", number % ITEMS)
}

/// Writes an event until it is acknowledged, across restarts. Returns the consistency token of the write.
async fn write_until_acknowledged(channel: &Channel, event: &proto::Event, by_stream: bool) -> String {
    let mut client = EventServiceClient::new(channel.clone());
    let deadline = Instant::now() + RESTART_TIME_MAX;
    loop {
        let answer = if by_stream {
            let message = proto::StreamEventsRequest { events: vec![event.clone()] };
            let written = async {
                let mut responses = client.stream_events(futures_util::stream::iter([message])).await?.into_inner();
                let response = responses.message().await?;
                response.ok_or_else(|| tonic::Status::unavailable("the stream ended without a response"))
            };
            written.await.map(|written| {
                let counts = written.counts.unwrap();
                (counts.accepted_count + counts.duplicate_count == 1, written.consistency_token)
            })
        } else {
            let written = client.write_events(proto::WriteEventsRequest { events: vec![event.clone()] }).await;
            let is_stored = |status: EventStatus| matches!(status, EventStatus::Accepted | EventStatus::Duplicate);
            written.map(tonic::Response::into_inner).map(|w| (is_stored(w.results[0].status()), w.consistency_token))
        };
        match answer {
            Ok((is_stored, version)) => {
                assert!(is_stored, "{event:?}");
                return version;
            }
            Err(status) => assert!(Instant::now() < deadline, "{status}"),
        }
        tokio::time::sleep(RETRY_INTERVAL).await;
    }
}

/// Returns the items that a user viewed, latest first, and the consistency token of the answer; `None` while no
/// server answers.
async fn viewed(channel: &Channel, user: usize, consistency_token: String) -> Option<(Vec<String>, String)> {
    let request = proto::RecommendRequest {
        viewer: viewer(user),
        r#type: RecommendType::RecentlyViewed.into(),
        page_size: 100,
        options: Some(proto::RankingOptions { consistency_token, ..Default::default() }),
        ..Default::default()
    };
    let answer = RankingServiceClient::new(channel.clone()).recommend(request).await.ok()?.into_inner();
    let degradations = answer.info.unwrap_or_default().degradations;
    assert!(degradations.is_empty(), "{degradations:?}");
    Some((answer.results.into_iter().map(|result| result.item_id).collect(), answer.consistency_token))
}

/// Returns the items that an answer holds after `count` views of a user, latest first.
fn expected(count: usize) -> Vec<String> {
    (0..count).rev().take(ITEMS).map(item_of_view).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_reflects_every_event_up_to_an_acknowledged_position_across_kills() {
    let shop = Shop::new();
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let mut server = serve(&shop, &address).await;
    let channel = || Endpoint::from_shared(format!("http://{address}")).unwrap().connect_lazy();
    // For each user: the token of the last acknowledgement, of which later ones are greater texts, and the number of
    // views up to it.
    let acknowledged: Arc<Mutex<[(String, usize); WRITERS]>> = Arc::default();
    let (stop, reads) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut tasks: Vec<JoinHandle<()>> = Vec::new();
    for user in 0..WRITERS {
        // Events are written over one connection and read over another.
        let (writing, reading, acknowledged, stop) = (channel(), channel(), acknowledged.clone(), stop.clone());
        tasks.push(tokio::spawn(async move {
            let mut count = 0;
            while !stop.load(Ordering::Relaxed) {
                let version = write_until_acknowledged(&writing, &view(user, count), count % 3 == 2).await;
                count += 1;
                acknowledged.lock()[user] = (version.clone(), count);
                if let Some((seen, reflected)) = viewed(&reading, user, version.clone()).await {
                    assert!(reflected >= version);
                    assert_eq!(seen, expected(count), "user {user} after {count} views");
                }
            }
        }));
    }
    for reader in 0..READERS {
        let (reading, acknowledged, stop, reads) = (channel(), acknowledged.clone(), stop.clone(), reads.clone());
        tasks.push(tokio::spawn(async move {
            let mut random = StdRng::seed_from_u64(reader as u64);
            let mut most = [0; WRITERS];
            let mut answered = Instant::now();
            while !stop.load(Ordering::Relaxed) {
                let all = acknowledged.lock().clone();
                // The greatest token covers all acknowledgements so far.
                let version = all.iter().map(|(version, _)| version.clone()).max().unwrap_or_default();
                let user = random.random_range(0..WRITERS);
                let Some((seen, reflected)) = viewed(&reading, user, version.clone()).await else {
                    assert!(answered.elapsed() < RESTART_TIME_MAX, "no answer for {RESTART_TIME_MAX:?}");
                    tokio::time::sleep(RETRY_INTERVAL).await;
                    continue;
                };
                answered = Instant::now();
                assert!(reflected >= version);
                // More views may have been written since.
                let now = acknowledged.lock()[user].1 + 1;
                let found = (all[user].1.max(most[user])..=now).find(|count| expected(*count) == seen);
                let count = found.unwrap_or_else(|| panic!("{seen:?} of {user}, with {all:?} to {now} views"));
                most[user] = count;
                reads.fetch_add(1, Ordering::Relaxed);
            }
        }));
    }
    let work = || {
        let views: usize = acknowledged.lock().iter().map(|(_, count)| count).sum();
        (views, reads.load(Ordering::Relaxed))
    };
    // Each kill comes after another amount of work. A task that ended has failed, and its panic is reported below.
    let work_is_done = async |count: usize| {
        let before = work();
        wait_until("views and reads go on", 2 * RESTART_TIME_MAX, async || {
            let now = work();
            (now.0 >= before.0 + count && now.1 >= before.1 + count) || tasks.iter().any(JoinHandle::is_finished)
        })
        .await;
    };
    for kill in 0..KILLS {
        work_is_done(WORK_MIN + 7 * kill).await;
        drop(server);
        server = serve(&shop, &address).await;
    }
    work_is_done(WORK_MIN).await;
    let (views, read_count) = work();
    stop.store(true, Ordering::Relaxed);
    for task in tasks {
        task.await.unwrap();
    }
    println!("{views} views written and read by their writers, {read_count} reads of others, {KILLS} kills");
    assert!(views > 100 && read_count > 100, "{views} views, {read_count} reads");
    drop(server);
}
