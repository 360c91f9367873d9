//! OpenTelemetry traces of sampled calls, exported over OTLP.
//!
//! A span is built after its call has ended, from the times of the call's stages. So a call that is not sampled costs one
//! comparison, and a collector that is slow or away delays no call: spans wait in a bounded queue, and are dropped and
//! counted beyond it.
use super::{Catalogs, guard::code_name, throttle::Throttle, trace_context::TraceParent};
use lodestone_telemetry::{Metrics, call::StageTime};
use opentelemetry::{
    InstrumentationScope, KeyValue,
    trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState},
};
use opentelemetry_otlp::{ExporterBuildError, SpanExporter, WithExportConfig, WithTonicConfig};
use opentelemetry_sdk::{
    Resource,
    trace::{SpanData, SpanEvents, SpanExporter as _, SpanLinks},
};
use parking_lot::Mutex;
use std::{
    borrow::Cow,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{sleep, timeout},
};
use tonic::{
    Code,
    transport::{Certificate, ClientTlsConfig},
};
use uuid::Uuid;

/// Sampled calls whose spans wait. A call has about 12 spans of 400 bytes, so that they have at most some 5 MiB.
const QUEUED_CALLS_MAX: usize = 1024;
/// Spans of one message to the collector, without those of its last call. Collectors accept messages of 4 MiB.
const BATCH_SPANS: usize = 1000;
/// Time for a batch to fill.
const BATCH_TIME: Duration = Duration::from_secs(1);
/// Time for the collector to take a batch, with repetitions.
const EXPORT_MAX: Duration = Duration::from_secs(10);
/// Time for the last batches when the server stops.
const FLUSH_MAX: Duration = Duration::from_secs(5);
/// Time between two lines of the log about dropped spans.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// The trace of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Trace {
    pub(super) id: [u8; 16],
    /// The span of the caller. None: the trace begins here.
    parent: Option<[u8; 8]>,
    /// Whether the spans of the call are exported.
    pub(super) is_sampled: bool,
}

impl Trace {
    /// Decides about a call. The caller's decision comes first, so that a trace is whole; otherwise `fresh`, a new UUID of
    /// version 7, is the trace of a share of the calls. None: the call is in no trace.
    pub(super) fn of(parent: Option<TraceParent>, traces: Option<&Traces>, fresh: Uuid) -> Option<Self> {
        match (parent, traces) {
            (Some(parent), traces) => Some(Self {
                id: parent.trace_id,
                parent: Some(parent.span_id),
                is_sampled: parent.is_sampled && traces.is_some(),
            }),
            (None, Some(traces)) => {
                traces.samples(fresh).then_some(Self { id: fresh.into_bytes(), parent: None, is_sampled: true })
            }
            (None, None) => None,
        }
    }
}

/// A call that has ended.
pub(super) struct SampledCall<'a> {
    pub(super) trace: Trace,
    /// Such as `/lodestone.v1.RankingService/Search`.
    pub(super) path: &'static str,
    pub(super) catalog: &'a str,
    pub(super) request_id: String,
    pub(super) code: Code,
    pub(super) begun: Instant,
    pub(super) stages: &'a [StageTime],
}

/// A collector of traces, and what it receives.
pub struct Collector {
    /// `http://HOST:PORT` or `https://HOST:PORT`.
    pub endpoint: String,
    /// The authorities of its certificate as PEM. None: those of the system.
    pub ca: Option<Vec<u8>>,
    /// The share of the calls without a `traceparent` that are sampled.
    pub share: f64,
}

/// Exports the spans of sampled calls.
#[derive(Clone)]
pub struct Traces {
    /// Calls whose last 32 bits are below it are sampled: all with 2³².
    threshold: u64,
    spans: mpsc::Sender<Vec<SpanData>>,
    stop: watch::Sender<bool>,
    /// Exports. None after [`Traces::flush`].
    task: Arc<Mutex<Option<JoinHandle<()>>>>,
    dropped: Arc<Dropped>,
}

impl std::fmt::Debug for Traces {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Traces").field("threshold", &self.threshold).finish_non_exhaustive()
    }
}

/// Counts and reports spans that did not reach the collector.
struct Dropped {
    metrics: Metrics,
    throttle: Throttle,
}

impl Dropped {
    fn record(&self, count: usize, reason: &str) {
        self.metrics.spans("dropped", count as u64);
        if let Some(omitted) = self.throttle.admit(Instant::now()) {
            tracing::warn!(spans = count, reason, omitted, "dropped spans of sampled requests");
        }
    }
}

impl Traces {
    /// Starts exporting to a collector. Must be called within a tokio runtime. Spans are counted for the default
    /// catalogue.
    pub fn start(collector: Collector, catalogs: &Catalogs) -> Result<Self, ExporterBuildError> {
        Self::start_with(collector, catalogs.default_engine().metrics().clone())
    }

    pub(super) fn start_with(collector: Collector, metrics: Metrics) -> Result<Self, ExporterBuildError> {
        let Collector { endpoint, ca, share } = collector;
        let is_encrypted = endpoint.starts_with("https:");
        let builder = SpanExporter::builder().with_tonic().with_endpoint(endpoint).with_timeout(EXPORT_MAX);
        let tls = match ca {
            Some(pem) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem)),
            None => ClientTlsConfig::new().with_native_roots(),
        };
        let builder = if is_encrypted { builder.with_tls_config(tls) } else { builder };
        let mut exporter = builder.build()?;
        let service = [
            KeyValue::new("service.name", "lodestone"),
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::new("service.instance.id", Uuid::now_v7().to_string()),
        ];
        // With the attributes of the environment variable OTEL_RESOURCE_ATTRIBUTES.
        exporter.set_resource(&Resource::builder().with_attributes(service).build());
        let (spans, queue) = mpsc::channel(QUEUED_CALLS_MAX);
        let stop = watch::Sender::new(false);
        let dropped = Arc::new(Dropped { metrics, throttle: Throttle::new(1, LOG_INTERVAL) });
        let export = Export { exporter, queue, stop: stop.subscribe(), dropped: dropped.clone() };
        let task = Arc::new(Mutex::new(Some(tokio::spawn(export.run()))));
        Ok(Self { threshold: threshold(share), spans, stop, task, dropped })
    }

    /// Decides whether a new trace is sampled, by the part of a UUID of version 7 that is random.
    fn samples(&self, id: Uuid) -> bool {
        let [.., a, b, c, d] = id.into_bytes();
        u64::from(u32::from_be_bytes([a, b, c, d])) < self.threshold
    }

    /// Queues the spans of a call. Drops them if the queue is full.
    pub(super) fn record(&self, call: &SampledCall) {
        match self.spans.try_reserve() {
            Ok(place) => place.send(spans(call)),
            Err(_) => self.dropped.record(1 + call.stages.len(), "the queue is full"),
        }
    }

    /// Exports what waits and ends, within a limit of time.
    pub async fn flush(&self) {
        let task = self.task.lock().take();
        let Some(mut task) = task else { return };
        self.stop.send_replace(true);
        if timeout(FLUSH_MAX, &mut task).await.is_err() {
            task.abort();
            tracing::warn!("the last spans could not be exported within {FLUSH_MAX:?}");
        }
    }
}

/// The task that exports.
struct Export {
    exporter: SpanExporter,
    queue: mpsc::Receiver<Vec<SpanData>>,
    stop: watch::Receiver<bool>,
    dropped: Arc<Dropped>,
}

impl Export {
    /// Exports until the queue is closed and empty.
    async fn run(mut self) {
        while let Some(batch) = self.batch().await {
            let count = batch.len();
            match timeout(EXPORT_MAX, self.exporter.export(batch)).await {
                Ok(Ok(())) => self.dropped.metrics.spans("exported", count as u64),
                Ok(Err(error)) => self.dropped.record(count, &error.to_string()),
                Err(_) => self.dropped.record(count, "the collector did not answer in time"),
            }
        }
    }

    /// Returns the next batch: some calls, or those of some time. None: no call follows.
    async fn batch(&mut self) -> Option<Vec<SpanData>> {
        let mut batch = loop {
            tokio::select! {
                biased;
                first = self.queue.recv() => break first?,
                () = stopped(&mut self.stop) => self.queue.close(),
            }
        };
        let mut is_stopped = false;
        let mut full = std::pin::pin!(sleep(BATCH_TIME));
        while batch.len() < BATCH_SPANS {
            tokio::select! {
                biased;
                call = self.queue.recv() => match call {
                    Some(spans) => batch.extend(spans),
                    None => break,
                },
                () = stopped(&mut self.stop), if !is_stopped => {
                    is_stopped = true;
                    self.queue.close();
                }
                () = full.as_mut() => break,
            }
        }
        Some(batch)
    }
}

/// Returns when the exporter is told to stop.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    // Fails if nobody can record any more, which ends the queue too.
    let _ = stop.wait_for(|is_stopped| *is_stopped).await;
}

/// Returns the number of 2³² ids that are sampled.
fn threshold(share: f64) -> u64 {
    (share.clamp(0.0, 1.0) * (1_u64 << 32) as f64) as u64
}

/// Returns the spans of a call: its own, then one for each stage.
fn spans(call: &SampledCall) -> Vec<SpanData> {
    let (now, clock) = (Instant::now(), wall_clock());
    let at = |instant: Instant| clock - now.saturating_duration_since(instant);
    let scope = InstrumentationScope::builder("lodestone").with_version(env!("CARGO_PKG_VERSION")).build();
    let span = |name: &'static str, begun: SystemTime, end: SystemTime| SpanData {
        span_context: SpanContext::new(
            TraceId::from_bytes(call.trace.id),
            new_span_id(),
            TraceFlags::SAMPLED,
            false,
            TraceState::NONE,
        ),
        parent_span_id: SpanId::INVALID,
        parent_span_is_remote: false,
        span_kind: SpanKind::Internal,
        name: Cow::Borrowed(name),
        start_time: begun,
        end_time: end,
        attributes: Vec::new(),
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status: Status::Unset,
        instrumentation_scope: scope.clone(),
    };
    let path = call.path.trim_start_matches('/');
    let (service, method) = path.split_once('/').unwrap_or((path, ""));
    let own = SpanData {
        parent_span_id: call.trace.parent.map_or(SpanId::INVALID, SpanId::from_bytes),
        parent_span_is_remote: call.trace.parent.is_some(),
        span_kind: SpanKind::Server,
        attributes: vec![
            KeyValue::new("rpc.system", "grpc"),
            KeyValue::new("rpc.service", service),
            KeyValue::new("rpc.method", method),
            KeyValue::new("rpc.grpc.status_code", i64::from(call.code as i32)),
            KeyValue::new("lodestone.catalog", call.catalog.to_owned()),
            KeyValue::new("lodestone.request_id", call.request_id.clone()),
        ],
        status: status(call.code),
        ..span(path, at(call.begun), clock)
    };
    let own_id = own.span_context.span_id();
    let stage = |stage: &StageTime| SpanData {
        parent_span_id: own_id,
        ..span(stage.name, at(stage.begun), at(stage.begun + stage.time))
    };
    let stages = call.stages.iter().map(stage);
    std::iter::once(own).chain(stages).collect()
}

/// Returns the status of a server's span: the caller's errors are none of the server's.
fn status(code: Code) -> Status {
    match code {
        Code::Unknown
        | Code::DeadlineExceeded
        | Code::Unimplemented
        | Code::Internal
        | Code::Unavailable
        | Code::DataLoss => Status::Error { description: Cow::Borrowed(code_name(code)) },
        _ => Status::Unset,
    }
}

/// Returns an id that is not zero: its first bits are the variant of the UUID.
fn new_span_id() -> SpanId {
    let [_, _, _, _, _, _, _, _, id @ ..] = Uuid::now_v7().into_bytes();
    SpanId::from_bytes(id)
}

#[expect(clippy::disallowed_methods, reason = "the times of spans are in nanoseconds, and UnixMillis in milliseconds")]
fn wall_clock() -> SystemTime {
    SystemTime::now()
}

#[cfg(test)]
mod tests {
    use super::*;
    use lodestone_telemetry::Sizes;

    fn parent(is_sampled: bool) -> TraceParent {
        TraceParent { trace_id: [7; 16], span_id: [9; 8], is_sampled }
    }

    /// Nothing listens on the address.
    fn traces(share: f64, metrics: &Metrics) -> Traces {
        let collector = Collector { endpoint: "http://127.0.0.1:9".to_owned(), ca: None, share };
        Traces::start_with(collector, metrics.clone()).unwrap()
    }

    #[tokio::test]
    async fn the_caller_decides_and_otherwise_the_share() {
        let (all, none) = (traces(1.0, &Metrics::default()), traces(0.0, &Metrics::default()));
        let fresh = Uuid::now_v7();
        let of =
            |parent, traces| Trace::of(parent, traces, fresh).map(|trace| (trace.id, trace.parent, trace.is_sampled));
        for traces in [&all, &none] {
            for is_sampled in [true, false] {
                let expected = Some(([7; 16], Some([9; 8]), is_sampled));
                assert_eq!(of(Some(parent(is_sampled)), Some(traces)), expected);
            }
        }
        assert_eq!(of(Some(parent(true)), None), Some(([7; 16], Some([9; 8]), false)), "nothing is exported");
        assert_eq!(of(None, Some(&all)), Some((fresh.into_bytes(), None, true)));
        assert_eq!((of(None, Some(&none)), of(None, None)), (None, None));
        let tenth = traces(0.1, &Metrics::default());
        let sampled = (0..20_000).filter(|_| tenth.samples(Uuid::now_v7())).count();
        assert!((1600..2400).contains(&sampled), "{sampled} of 20,000 with a share of 0.1");
    }

    #[test]
    fn stages_are_children_within_the_span_of_their_call() {
        let begun = Instant::now();
        let time = Duration::from_millis(3);
        let stages = [
            StageTime { name: "queue", begun, time },
            StageTime { name: "rank", begun: begun + time, time: Duration::from_millis(4) },
        ];
        // The call ends after its stages.
        while begun.elapsed() < Duration::from_millis(7) {
            std::hint::spin_loop();
        }
        let spans = spans(&SampledCall {
            trace: Trace::of(Some(parent(true)), None, Uuid::now_v7()).unwrap(),
            path: "/lodestone.v1.RankingService/Search",
            catalog: "default",
            request_id: "r-1".to_owned(),
            code: Code::Internal,
            begun,
            stages: &stages,
        });
        let [own, queue, rank] = &spans[..] else { panic!("{} spans", spans.len()) };
        assert_eq!((&*own.name, &*queue.name, &*rank.name), ("lodestone.v1.RankingService/Search", "queue", "rank"));
        assert_eq!((own.parent_span_id, own.parent_span_is_remote), (SpanId::from_bytes([9; 8]), true));
        assert_eq!(own.status, Status::Error { description: Cow::Borrowed("INTERNAL") });
        for stage in [queue, rank] {
            assert_eq!(stage.parent_span_id, own.span_context.span_id());
            assert_eq!(stage.span_context.trace_id(), TraceId::from_bytes([7; 16]));
            assert!(own.start_time <= stage.start_time && stage.end_time <= own.end_time);
        }
        assert_eq!(rank.end_time.duration_since(rank.start_time).unwrap(), Duration::from_millis(4));
        assert_eq!(queue.end_time, rank.start_time);
    }

    #[tokio::test]
    async fn spans_that_reach_no_collector_are_counted_and_delay_nobody() {
        let metrics = Metrics::default();
        let traces = traces(1.0, &metrics);
        let call = || SampledCall {
            trace: Trace::of(None, Some(&traces), Uuid::now_v7()).unwrap(),
            path: "/lodestone.v1.RankingService/Search",
            catalog: "default",
            request_id: "r-1".to_owned(),
            code: Code::Ok,
            begun: Instant::now(),
            stages: &[],
        };
        // More than the queue holds; none of them waits.
        let count = 2 * QUEUED_CALLS_MAX;
        (0..count).for_each(|_| traces.record(&call()));
        traces.flush().await;
        let text = metrics.text(Sizes::default());
        let dropped = text.lines().find_map(|line| line.strip_prefix("lodestone_spans_total{outcome=\"dropped\"} "));
        let dropped: usize = dropped.unwrap_or("0").parse().unwrap();
        assert!((count - QUEUED_CALLS_MAX..=count).contains(&dropped), "{dropped} of {count} spans");
        assert!(!text.contains("exported"), "{text}");
        traces.flush().await;
    }
}
