//! `lodestone load-test`: throughput and latency of a server, measured by a client.
use super::{
    client::{ServerArgs, ServerChannel},
    exit::Exit,
    load_steps::{self, Step, step},
    numbers::within,
    output::OutputArgs,
    paths::{existing_directory, new_file},
};
use crate::server::proto::{
    self, DebugLevel, EventType, RecommendType, event_service_client::EventServiceClient,
    loyalty_service_client::LoyaltyServiceClient, ranking_service_client::RankingServiceClient,
};
use anyhow::{Context, ensure};
use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressStyle};
use lodestone_dataset::{self as dataset, DatasetEvent};
use prost::Message;
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    fs::File,
    io::{BufWriter, Write},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// Number of requests over which the stages in the server are averaged.
const TRACED_REQUESTS: usize = 300;
/// Messages per event stream.
const STREAM_MESSAGES: usize = 20;
/// Visitors of data without events.
const SYNTHETIC_VISITORS: usize = 1000;
/// Greatest number of requests in flight. An open loop against a server that cannot keep up would otherwise exhaust the
/// memory.
const IN_FLIGHT_MAX: u64 = 20_000;

/// Measures throughput and latency of a running server with the users, titles and items of imported data.
///
/// For each number of connections, a closed loop first measures the capacity: every connection sends its next request
/// when the last one is answered. Then an open loop sends at a fixed rate, independently of the responses. Its
/// latencies count from the time at which a request was due, which avoids coordinated omission.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  lodestone load-test --data data --rpc search --connections 1,8,32
  lodestone load-test --data data --rpc browse --order-by 'price desc' --page-number 500 --connections 1
  lodestone load-test --data data --rpc get-loyalty --connections 8 --rate 1000 --only-rate
  lodestone load-test --data data --rate 500 --only-rate --latencies latencies.csv
  lodestone load-test --data data --connections 16 --steps 500:2,3000:5,500:3 --deadline-ms 100")]
pub(crate) struct LoadTestArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// Directory of `lodestone import`: queries are made of its titles, events have its items. Requests have its users;
    /// if it has none, its visitors; without events, synthetic visitors.
    #[arg(long, value_name = "DIR", value_parser = existing_directory)]
    data: PathBuf,
    /// The RPC to measure.
    #[arg(long, value_enum, default_value = "recommend")]
    rpc: RpcArg,
    /// Numbers of connections to measure, 1 to 1024 each.
    #[arg(long, value_name = "N,N,…", value_delimiter = ',', value_parser = within(1..=1024), default_value = "1,8,32")]
    connections: Vec<usize>,
    /// Length of each measurement in seconds. There are two per number of connections.
    #[arg(long, value_name = "S", default_value_t = 5.0)]
    seconds: f64,
    /// Requests per second of the open loop. Default: 70 % of the measured capacity.
    #[arg(long, value_name = "R")]
    rate: Option<f64>,
    /// Skips the capacity measurement and sends only at --rate.
    #[arg(long, requires = "rate")]
    only_rate: bool,
    /// Results per page.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..), default_value_t = 24)]
    page_size: i32,
    /// Filter of `search` and `browse`.
    #[arg(long, value_name = "FILTER", default_value = "")]
    filter: String,
    /// Fields that order `search` and `browse`.
    #[arg(long, value_name = "FIELDS", default_value = "")]
    order_by: String,
    /// Page of `browse`, and of `search` with --order-by. Default: the first.
    #[arg(long, value_name = "N")]
    page_number: Option<i64>,
    /// Events per request of `write-events`, or per message of `stream-events` (at most 1,000).
    #[arg(long, value_name = "N", value_parser = within(1..=10_000), default_value_t = 100)]
    batch: usize,
    /// Seed of the choice of users and queries.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Measures overload instead of capacity: an open loop whose rate changes, such as `1000:2,6000:5` for 2 s with 1000
    /// requests per second and 5 s with 6000. `closed:S` has one request in flight per connection for S seconds. Of
    /// --connections, the greatest number counts.
    #[arg(long, value_name = "RATE:S,…", value_delimiter = ',', value_parser = step, requires = "deadline_ms",
          conflicts_with_all = ["rate", "only_rate", "latencies"])]
    steps: Vec<Step>,
    /// Deadline of each call of --steps, 1 to 600000.
    #[arg(long, value_name = "MS", value_parser = within(1..=600_000), requires = "steps")]
    deadline_ms: Option<usize>,
    /// Also writes every request of the open loop as a CSV row: due time (µs since 1970), latency, whether it was
    /// answered.
    #[arg(long, value_name = "FILE", value_parser = new_file)]
    latencies: Option<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum RpcArg {
    Recommend,
    Search,
    /// Searches without a query: category pages.
    Browse,
    Suggest,
    /// The loyalty scores of random users.
    GetLoyalty,
    /// Views of random items by random users. The server stores them: measure it on a copy of the data.
    WriteEvents,
    /// The same as streams of 20 messages with --batch events each. A call is a stream.
    StreamEvents,
}

impl RpcArg {
    fn name(self) -> &'static str {
        match self {
            Self::Recommend => "Recommend",
            Self::Search | Self::Browse => "Search",
            Self::Suggest => "Suggest",
            Self::GetLoyalty => "GetLoyalty",
            Self::WriteEvents => "WriteEvents",
            Self::StreamEvents => "StreamEvents",
        }
    }

    /// Whether the response can have the durations of the stages in the server.
    fn has_stages(self) -> bool {
        match self {
            Self::Recommend | Self::Search | Self::Browse => true,
            Self::Suggest | Self::GetLoyalty | Self::WriteEvents | Self::StreamEvents => false,
        }
    }
}

/// The result of `lodestone load-test`.
#[derive(serde::Serialize)]
struct Report {
    rpc: &'static str,
    runs: Vec<Run>,
    /// Mean durations of the stages in the server, one request at a time. Empty for RPCs without stages.
    stages_us: BTreeMap<String, f64>,
}

#[derive(serde::Serialize)]
struct Run {
    connections: usize,
    /// Responses per second with one request in flight per connection.
    capacity_per_s: f64,
    /// Latency at capacity.
    capacity_p50_ms: f64,
    capacity_p99_ms: f64,
    /// Requests per second of the open loop.
    rate_per_s: f64,
    /// Responses per second in the open loop.
    answered_per_s: f64,
    /// Latency from the due time of the request.
    p50_ms: f64,
    p99_ms: f64,
    max_ms: f64,
    /// Errors in both measurements.
    failed: u64,
    /// Code and message of the first error.
    first_failure: Option<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        writeln!(f, "{}", self.rpc)?;
        writeln!(
            f,
            "{:>11}  {:>10} {:>9} {:>9}  {:>10} {:>9} {:>9} {:>9} {:>7}",
            "connections", "capacity/s", "p50 ms", "p99 ms", "at rate/s", "p50 ms", "p99 ms", "max ms", "failed"
        )?;
        for run in &self.runs {
            writeln!(
                f,
                "{:>11}  {:>10.0} {:>9.2} {:>9.2}  {:>10.0} {:>9.2} {:>9.2} {:>9.2} {:>7}",
                run.connections,
                run.capacity_per_s,
                run.capacity_p50_ms,
                run.capacity_p99_ms,
                run.answered_per_s,
                run.p50_ms,
                run.p99_ms,
                run.max_ms,
                run.failed
            )?;
        }
        for run in &self.runs {
            if let Some(failure) = &run.first_failure {
                writeln!(f, "first failure with {} connections: {failure}", run.connections)?;
            }
        }
        if !self.stages_us.is_empty() {
            let stages = self.stages_us.iter().map(|(stage, us)| format!("{stage} {us:.0}")).collect::<Vec<_>>();
            writeln!(f, "µs in the server, one request at a time: {}", stages.join(", "))?;
        }
        Ok(())
    }
}

pub(crate) fn load_test(args: &LoadTestArgs) -> anyhow::Result<Exit> {
    ensure!(args.seconds > 0.0 && args.seconds <= 3600.0, "--seconds is {}; above 0, at most 3600", args.seconds);
    ensure!(args.rate.is_none_or(|rate| rate > 0.0 && rate <= 1e6), "--rate must be above 0 and at most 1,000,000");
    let calls = Arc::new(Calls::of(args)?);
    if let Some(deadline_ms) = args.deadline_ms {
        let deadline = Duration::from_millis(deadline_ms as u64);
        let connections = args.connections.iter().copied().max().unwrap_or(1);
        let report = load_steps::run(&calls, &args.server, connections, &args.steps, deadline)?;
        args.output.write(&report)?;
        return Ok(Exit::answer(report.answered() > 0));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let connections_max = args.connections.iter().copied().max().unwrap_or(1);
    let channels = runtime.block_on(connect(&args.server, connections_max))?;
    let mut latencies = args.latencies.as_deref().map(latencies_file).transpose()?;

    let bar = ProgressBar::new(2 * args.connections.len() as u64);
    bar.set_style(ProgressStyle::with_template("{msg:<40} [{bar:20}] {pos}/{len}")?);
    let length = Duration::from_secs_f64(args.seconds);
    let (mut runs, mut answered): (Vec<Run>, u64) = (Vec::new(), 0);
    for &connections in &args.connections {
        let channels = &channels[..connections];
        bar.set_message(format!("{connections} connections, capacity"));
        let full = match args.only_rate {
            true => Latencies::new(),
            false => {
                // The warm-up is not measured.
                let warm_up = length.min(Duration::from_secs(1));
                runtime.block_on(closed_loop(&calls, channels, warm_up));
                runtime.block_on(closed_loop(&calls, channels, length))
            }
        };
        bar.inc(1);
        let rate = args.rate.unwrap_or(0.7 * full.per_second()).max(1.0);
        bar.set_message(format!("{connections} connections, {rate:.0} requests/s"));
        let paced = open_loop(&runtime, &calls, channels, Pace { rate, length }, latencies.as_mut())?;
        bar.inc(1);
        runs.push(Run {
            connections,
            capacity_per_s: full.per_second(),
            capacity_p50_ms: full.percentile(0.50),
            capacity_p99_ms: full.percentile(0.99),
            rate_per_s: rate,
            answered_per_s: paced.per_second(),
            p50_ms: paced.percentile(0.50),
            p99_ms: paced.percentile(0.99),
            max_ms: paced.percentile(1.0),
            failed: full.failed + paced.failed,
            first_failure: full.first_failure.or(paced.first_failure).map(|status| args.server.describe(&status)),
        });
        answered += full.us.len() + paced.us.len();
    }
    bar.finish_and_clear();
    if let Some(file) = &mut latencies {
        file.flush().context("--latencies")?;
    }
    let stages_us = match args.rpc.has_stages() && answered > 0 {
        true => runtime.block_on(mean_stages(&calls, &channels[0])),
        false => BTreeMap::new(),
    };
    args.output.write(&Report { rpc: args.rpc.name(), runs, stages_us })?;
    Ok(Exit::answer(answered > 0))
}

fn latencies_file(path: &Path) -> anyhow::Result<BufWriter<File>> {
    let file = File::create(path).with_context(|| format!("--latencies {}", path.display()))?;
    let mut file = BufWriter::new(file);
    writeln!(file, "due_unix_us,latency_us,is_answered")?;
    Ok(file)
}

pub(super) async fn connect(server: &ServerArgs, count: usize) -> anyhow::Result<Vec<ServerChannel>> {
    let mut channels = Vec::with_capacity(count);
    for _ in 0..count {
        channels.push(server.connect().await?);
    }
    Ok(channels)
}

/// Generates calls. The same seed produces the same sequence, independently of the server.
pub(super) struct Calls {
    rpc: RpcArg,
    viewers: Vec<proto::Viewer>,
    queries: Vec<String>,
    items: Vec<String>,
    page_size: i32,
    filter: String,
    order_by: String,
    page_number: Option<i64>,
    batch: usize,
    seed: u64,
}

impl Calls {
    fn of(args: &LoadTestArgs) -> anyhow::Result<Self> {
        let items = dataset::read_items(&args.data.join("items.parquet"))?;
        let events = dataset::read_history_if_any(&args.data)?;
        let viewers = viewers(&events);
        ensure!(
            args.rpc != RpcArg::GetLoyalty || viewers.iter().all(|viewer| !viewer.user_id.is_empty()),
            "{} has no events of signed-in users, whom --rpc get-loyalty asks about",
            args.data.display()
        );
        Ok(Self {
            rpc: args.rpc,
            viewers,
            queries: items.iter().map(|item| first_words(&item.title)).collect(),
            items: items.iter().map(|item| item.id.to_string()).collect(),
            page_size: args.page_size,
            filter: args.filter.clone(),
            order_by: args.order_by.clone(),
            page_number: args.page_number,
            batch: args.batch,
            seed: args.seed,
        })
    }

    fn viewer(&self, random: &mut StdRng) -> Option<proto::Viewer> {
        Some(self.viewers[random.random_range(0..self.viewers.len())].clone())
    }

    fn recommend(
        &self,
        viewer: Option<proto::Viewer>,
        options: Option<proto::RankingOptions>,
    ) -> proto::RecommendRequest {
        let r#type = RecommendType::ForYou.into();
        proto::RecommendRequest { viewer, r#type, page_size: self.page_size, options, ..Default::default() }
    }

    fn search(
        &self,
        viewer: Option<proto::Viewer>,
        query: &str,
        options: Option<proto::RankingOptions>,
    ) -> proto::SearchRequest {
        proto::SearchRequest {
            viewer,
            query: if self.rpc == RpcArg::Search { query.to_owned() } else { String::new() },
            page_size: self.page_size,
            filter: self.filter.clone(),
            options: options.map(|options| proto::RankingOptions { order_by: self.order_by.clone(), ..options }),
            page_number: self.page_number,
            ..Default::default()
        }
    }

    /// Returns the path of the method and the encoded message of call number `number`. None: not a method of
    /// RankingService.
    pub(super) fn encoded(&self, number: u64) -> Option<(&'static str, Vec<u8>)> {
        let mut random = self.random(number);
        let viewer = self.viewer(&mut random);
        let query = &self.queries[random.random_range(0..self.queries.len())];
        let options = Some(proto::RankingOptions::default());
        Some(match self.rpc {
            RpcArg::Recommend => {
                ("/lodestone.v1.RankingService/Recommend", self.recommend(viewer, options).encode_to_vec())
            }
            RpcArg::Search | RpcArg::Browse => {
                ("/lodestone.v1.RankingService/Search", self.search(viewer, query, options).encode_to_vec())
            }
            RpcArg::Suggest => {
                ("/lodestone.v1.RankingService/Suggest", suggest(viewer, query, &mut random).encode_to_vec())
            }
            RpcArg::GetLoyalty | RpcArg::WriteEvents | RpcArg::StreamEvents => return None,
        })
    }

    /// Returns the name of the RPC.
    pub(super) fn rpc(&self) -> &'static str {
        self.rpc.name()
    }

    fn random(&self, number: u64) -> StdRng {
        StdRng::seed_from_u64(self.seed.wrapping_mul(0x9E37_79B9).wrapping_add(number))
    }

    /// Sends call number `number`. Returns the stages in the response, if `debug` asks for them.
    async fn send(&self, number: u64, channel: ServerChannel, debug: DebugLevel) -> Result<Stages, tonic::Status> {
        let mut random = self.random(number);
        let viewer = self.viewer(&mut random);
        let query = &self.queries[random.random_range(0..self.queries.len())];
        let options = Some(proto::RankingOptions { debug_level: debug.into(), ..Default::default() });
        let info = match self.rpc {
            RpcArg::Recommend => {
                let request = self.recommend(viewer, options);
                RankingServiceClient::new(channel).recommend(request).await?.into_inner().info
            }
            RpcArg::Search | RpcArg::Browse => {
                let request = self.search(viewer, query, options);
                RankingServiceClient::new(channel).search(request).await?.into_inner().info
            }
            RpcArg::Suggest => {
                let request = suggest(viewer, query, &mut random);
                RankingServiceClient::new(channel).suggest(request).await?.into_inner().info
            }
            RpcArg::GetLoyalty => {
                let request =
                    proto::GetLoyaltyRequest { user_id: viewer.map_or(String::new(), |viewer| viewer.user_id) };
                LoyaltyServiceClient::new(channel).get_loyalty(request).await?;
                return Ok(Stages::new());
            }
            RpcArg::WriteEvents => {
                let events = (0..self.batch).map(|_| self.view(&mut random)).collect();
                let request = proto::WriteEventsRequest { events };
                let written = EventServiceClient::new(channel).write_events(request).await?.into_inner();
                let accepted = proto::EventStatus::Accepted as i32;
                return match written.results.iter().find(|result| result.status != accepted) {
                    None => Ok(Stages::new()),
                    Some(rejected) => Err(tonic::Status::aborted(format!("an event was not accepted: {rejected:?}"))),
                };
            }
            RpcArg::StreamEvents => {
                let mut message =
                    || proto::StreamEventsRequest { events: (0..self.batch).map(|_| self.view(&mut random)).collect() };
                let messages: Vec<_> = (0..STREAM_MESSAGES).map(|_| message()).collect();
                let stream = futures_util::stream::iter(messages);
                let mut responses = EventServiceClient::new(channel).stream_events(stream).await?.into_inner();
                let mut counts = None;
                while let Some(response) = responses.message().await? {
                    counts = response.counts;
                }
                return match counts.is_some_and(|of| of.accepted_count as usize == STREAM_MESSAGES * self.batch) {
                    true => Ok(Stages::new()),
                    false => Err(tonic::Status::aborted(format!("events were not accepted: {counts:?}"))),
                };
            }
        };
        let stages = info.and_then(|info| info.debug).map(|debug| debug.stages).unwrap_or_default();
        Ok(stages.into_iter().map(|stage| (stage.stage, stage.duration.map_or(0, |time| time.nanos))).collect())
    }

    fn view(&self, random: &mut StdRng) -> proto::Event {
        let item_id = self.items[random.random_range(0..self.items.len())].clone();
        proto::Event {
            r#type: EventType::View.into(),
            viewer: self.viewer(random),
            lines: vec![proto::EventLine { item_id, ..Default::default() }],
            ..Default::default()
        }
    }
}

/// Requests completions of the beginning of a query.
fn suggest(viewer: Option<proto::Viewer>, query: &str, random: &mut StdRng) -> proto::SuggestRequest {
    let prefix = query.chars().take(random.random_range(2..=8)).collect();
    proto::SuggestRequest { viewer, prefix, ..Default::default() }
}

/// Returns the signed-in users of events; if there are none, their visitors; if there are no events, synthetic visitors.
fn viewers(events: &[DatasetEvent]) -> Vec<proto::Viewer> {
    let ids = |prefix: &str| -> BTreeSet<&str> {
        let keys = events.iter().filter_map(|event| Some(event.user.as_ref()?.as_str()));
        keys.filter_map(|key| key.strip_prefix(prefix)).collect()
    };
    let visitor = |visitor_id: String| proto::Viewer { visitor_id, ..Default::default() };
    let users = ids("u:");
    if !users.is_empty() {
        let user = |id: &str| proto::Viewer { user_id: id.to_owned(), ..Default::default() };
        return users.into_iter().map(user).collect();
    }
    let visitors = ids("v:");
    match visitors.is_empty() {
        false => visitors.into_iter().map(|id| visitor(id.to_owned())).collect(),
        true => (0..SYNTHETIC_VISITORS).map(|number| visitor(format!("load-test-{number}"))).collect(),
    }
}

/// Names of stages and their nanoseconds.
type Stages = Vec<(String, i32)>;

/// Returns the first three words, a typical query.
fn first_words(title: &str) -> String {
    title.split_whitespace().take(3).collect::<Vec<_>>().join(" ").to_lowercase()
}

/// Latencies of one measurement.
struct Latencies {
    us: Histogram<u64>,
    elapsed: Duration,
    failed: u64,
    first_failure: Option<tonic::Status>,
}

impl Latencies {
    fn new() -> Self {
        let us = Histogram::new_with_bounds(1, 3_600_000_000, 3).expect("fixed bounds that the histogram allows");
        Self { us, elapsed: Duration::ZERO, failed: 0, first_failure: None }
    }

    fn record(&mut self, latency: Duration, answer: Result<Stages, tonic::Status>) {
        match answer {
            Ok(_) => self.us.saturating_record((latency.as_micros() as u64).max(1)),
            Err(status) => {
                self.failed += 1;
                self.first_failure.get_or_insert(status);
            }
        }
    }

    fn per_second(&self) -> f64 {
        self.us.len() as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    fn percentile(&self, share: f64) -> f64 {
        self.us.value_at_quantile(share) as f64 / 1000.0
    }
}

/// Call numbers continue over all measurements, so that none repeats requests that an earlier one has put into caches.
static NEXT_CALL: AtomicU64 = AtomicU64::new(0);

async fn closed_loop(calls: &Arc<Calls>, channels: &[ServerChannel], length: Duration) -> Latencies {
    let started = Instant::now();
    let callers: Vec<_> = channels
        .iter()
        .map(|channel| {
            let (calls, channel) = (calls.clone(), channel.clone());
            tokio::spawn(async move {
                let mut own = Latencies::new();
                while started.elapsed() < length {
                    let sent = Instant::now();
                    let number = NEXT_CALL.fetch_add(1, Ordering::Relaxed);
                    let answer = calls.send(number, channel.clone(), DebugLevel::Unspecified).await;
                    own.record(sent.elapsed(), answer);
                }
                own
            })
        })
        .collect();
    let mut all = Latencies::new();
    for caller in callers {
        let own = caller.await.expect("callers do not panic");
        all.us.add(&own.us).expect("the same bounds");
        all.failed += own.failed;
        all.first_failure = all.first_failure.or(own.first_failure);
    }
    all.elapsed = started.elapsed();
    all
}

struct Pace {
    /// Requests per second.
    rate: f64,
    length: Duration,
}

/// Sends on schedule from a separate thread, because tokio's timers are too coarse for latencies below a millisecond.
#[expect(
    clippy::disallowed_methods,
    reason = "a schedule sleeps, its start has nanoseconds, and IN_FLIGHT_MAX bounds the channel"
)]
fn open_loop(
    runtime: &tokio::runtime::Runtime,
    calls: &Arc<Calls>,
    channels: &[ServerChannel],
    Pace { rate, length }: Pace,
    mut csv: Option<&mut BufWriter<File>>,
) -> anyhow::Result<Latencies> {
    let count = (rate * length.as_secs_f64()).ceil() as u64;
    let (answers, mut answered) = tokio::sync::mpsc::unbounded_channel();
    let (in_flight, too_slow) = (Arc::new(AtomicU64::new(0)), AtomicBool::new(false));
    let (started, started_at) = (Instant::now(), SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default());
    let mut all = Latencies::new();
    let mut written = Ok(());
    thread::scope(|scope| {
        scope.spawn(|| {
            let answers = answers;
            for index in 0..count {
                let due = started + Duration::from_secs_f64(index as f64 / rate);
                thread::sleep(due.saturating_duration_since(Instant::now()));
                if in_flight.fetch_add(1, Ordering::Relaxed) >= IN_FLIGHT_MAX {
                    too_slow.store(true, Ordering::Relaxed);
                    return;
                }
                let (calls, answers, in_flight) = (calls.clone(), answers.clone(), in_flight.clone());
                let channel = channels[index as usize % channels.len()].clone();
                let number = NEXT_CALL.fetch_add(1, Ordering::Relaxed);
                runtime.spawn(async move {
                    let answer = calls.send(number, channel, DebugLevel::Unspecified).await;
                    in_flight.fetch_sub(1, Ordering::Relaxed);
                    let _ = answers.send((due - started, due.elapsed(), answer));
                });
            }
        });
        while let Some((due, latency, answer)) = answered.blocking_recv() {
            if let (Some(file), Ok(())) = (&mut csv, &written) {
                let due_us = (started_at + due).as_micros();
                written = writeln!(file, "{due_us},{},{}", latency.as_micros(), answer.is_ok());
            }
            all.record(latency, answer);
        }
    });
    written.context("--latencies")?;
    ensure!(
        !too_slow.into_inner(),
        "the server cannot keep up with {rate:.0} requests/s: {IN_FLIGHT_MAX} are in flight; choose a lower --rate"
    );
    all.elapsed = started.elapsed();
    Ok(all)
}

/// Returns the mean microseconds of each stage in the server.
async fn mean_stages(calls: &Calls, channel: &ServerChannel) -> BTreeMap<String, f64> {
    let mut sums: BTreeMap<String, f64> = BTreeMap::new();
    for _ in 0..TRACED_REQUESTS {
        let number = NEXT_CALL.fetch_add(1, Ordering::Relaxed);
        for (stage, nanos) in calls.send(number, channel.clone(), DebugLevel::Timings).await.unwrap_or_default() {
            *sums.entry(stage).or_default() += f64::from(nanos) / 1000.0 / TRACED_REQUESTS as f64;
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;
    use lodestone_core::{
        ids::{ItemId, UserId},
        units::UnixMillis,
    };
    use lodestone_events::EventKind;

    #[test]
    fn requests_have_the_users_or_else_the_visitors_of_the_data_or_else_synthetic_ones() {
        let view = |user: Option<UserId>| {
            DatasetEvent::of_item("1".into(), EventKind::View, user, UnixMillis(1), ItemId::parse("i").unwrap())
        };
        let (user, visitor) = (view(UserId::signed_in("a").ok()), view(UserId::visitor("b").ok()));
        let of = |events: &[DatasetEvent]| -> Vec<(String, String)> {
            viewers(events).into_iter().map(|viewer| (viewer.user_id, viewer.visitor_id)).collect()
        };
        assert_eq!(of(&[user.clone(), visitor.clone(), user]), [("a".to_owned(), String::new())]);
        assert_eq!(of(&[visitor, view(None)]), [(String::new(), "b".to_owned())]);
        assert_eq!(of(&[]).len(), SYNTHETIC_VISITORS);
    }
}
