//! The outermost layer of the server. It names each call, returns its id and its trace in the headers of the response, and
//! reports calls that were slow or are sampled. docs/observability.md describes what operators see.
use super::{
    CATALOG_METADATA, DEFAULT_CATALOG,
    guard::code_name,
    throttle::Throttle,
    trace_context::TraceParent,
    traces::{SampledCall, Trace, Traces},
    transport::{is_client_streaming, known_path},
};
use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderValue, Request, Response, header::HeaderName};
use http_body::Frame;
use hyper::body::Bytes;
use lodestone_telemetry::{
    Metrics,
    call::{Call, StageTime, is_request_id},
};
use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};
use tonic::{Code, Status, body::Body};
use tower::Service;
use uuid::Uuid;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const TRACE_ID: HeaderName = HeaderName::from_static("x-trace-id");
const TRACE_PARENT: HeaderName = HeaderName::from_static("traceparent");

/// Lines of the log about slow requests in [`SLOW_INTERVAL`].
const SLOW_LINES_MAX: u32 = 10;
const SLOW_INTERVAL: Duration = Duration::from_secs(10);

/// The time from which a request is slow, and the limit of the lines about slow ones.
struct SlowLog {
    limit: Duration,
    throttle: Throttle,
}

/// What becomes of all calls.
pub(super) struct Observer {
    slow: Option<SlowLog>,
    traces: Option<Traces>,
    /// The catalogues by name.
    catalogs: Vec<(String, Metrics)>,
}

impl Observer {
    /// Requests of at least `slow_request` are logged; none are if it is absent.
    pub(super) fn new(
        slow_request: Option<Duration>,
        traces: Option<Traces>,
        catalogs: Vec<(String, Metrics)>,
    ) -> Arc<Self> {
        let slow = slow_request.map(|limit| SlowLog { limit, throttle: Throttle::new(SLOW_LINES_MAX, SLOW_INTERVAL) });
        Arc::new(Self { slow, traces, catalogs })
    }

    fn begin(self: &Arc<Self>, request: &Request<Body>) -> Observed {
        let headers = request.headers();
        // Health checks and reflection are named, and neither logged nor traced.
        let path = known_path(request.uri().path());
        let fresh = Uuid::now_v7();
        let parent = headers.get(TRACE_PARENT).and_then(|value| TraceParent::parse(value.as_bytes()));
        let trace = Trace::of(parent, self.traces.as_ref().filter(|_| path.is_some()), fresh);
        let trace_id = trace.map(|trace| format!("{:032x}", u128::from_be_bytes(trace.id)));
        Observed {
            observer: self.clone(),
            call: Call::new(sent_id(headers), trace_id, || fresh.to_string()),
            path,
            catalog: headers.get(CATALOG_METADATA).cloned(),
            begun: Instant::now(),
            trace: trace.filter(|trace| trace.is_sampled),
            is_stream: path.is_some_and(is_client_streaming),
            code: Code::Cancelled,
        }
    }
}

/// Returns the id that a caller gave its call, if it can be one.
fn sent_id(headers: &HeaderMap) -> Option<String> {
    let sent = headers.get(REQUEST_ID).filter(|value| is_request_id(value.as_bytes()))?;
    sent.to_str().ok().map(str::to_owned)
}

/// A call in progress. It is reported when it is dropped, and therefore also when the caller cancels it.
struct Observed {
    observer: Arc<Observer>,
    call: Arc<Call>,
    /// None: a health check, reflection, or no known method.
    path: Option<&'static str>,
    /// As sent.
    catalog: Option<HeaderValue>,
    begun: Instant,
    /// None: no span of the call is exported.
    trace: Option<Trace>,
    /// Whether the call lasts as long as its caller wishes, so that it is never slow.
    is_stream: bool,
    code: Code,
}

impl Observed {
    /// Adds the headers to a response. The call of a stream ends with the body, other calls end here.
    fn respond(mut self, mut response: Response<Body>) -> Response<Body> {
        let headers = response.headers_mut();
        // A response with a message has its status in the trailers; only that of a stream may be an error.
        self.code = code_of(headers).unwrap_or(Code::Ok);
        let has_trace = self.code != Code::Unauthenticated;
        let trace_id = self.call.trace_id().filter(|_| has_trace).map(str::to_owned);
        let ids = [(REQUEST_ID, Some(self.call.request_id())), (TRACE_ID, trace_id)];
        for (name, id) in ids {
            // Ids are visible ASCII.
            if let Some(value) = id.and_then(|id| HeaderValue::try_from(id).ok()) {
                headers.insert(name, value);
            }
        }
        match self.is_stream {
            true => response.map(|inner| Body::new(ObservedBody { inner, observed: self })),
            false => response,
        }
    }

    /// Returns the name of the catalogue and its metrics. Calls to unknown catalogues count for the default one, as in
    /// the other metrics.
    fn catalog(&self) -> Option<(&str, &Metrics)> {
        let sent = self.catalog.as_ref().map(HeaderValue::as_bytes).filter(|name| !name.is_empty());
        let named = |name: &[u8]| self.observer.catalogs.iter().find(|(known, _)| known.as_bytes() == name);
        let default = named(DEFAULT_CATALOG.as_bytes());
        match sent.map(named) {
            None => default.map(|(name, metrics)| (name.as_str(), metrics)),
            Some(Some((name, metrics))) => Some((name.as_str(), metrics)),
            Some(None) => default.map(|(_, metrics)| ("unknown", metrics)),
        }
    }
}

/// Returns the status in headers or trailers.
fn code_of(headers: &HeaderMap) -> Option<Code> {
    headers.get(Status::GRPC_STATUS).map(|code| Code::from_bytes(code.as_bytes()))
}

impl Drop for Observed {
    fn drop(&mut self) {
        let (Some(path), total) = (self.path, self.begun.elapsed()) else { return };
        let slow = self.observer.slow.as_ref().filter(|slow| !self.is_stream && total >= slow.limit);
        if slow.is_none() && self.trace.is_none() {
            return;
        }
        let Some((catalog, metrics)) = self.catalog() else { return };
        let stages = self.call.take_stages();
        if let Some(slow) = slow {
            let rpc = path.rsplit('/').next().unwrap_or(path);
            metrics.slow_request(rpc);
            if let Some(omitted) = slow.throttle.admit(Instant::now()) {
                tracing::warn!(
                    request_id = self.call.request_id(),
                    trace_id = self.call.trace_id(),
                    rpc,
                    catalog,
                    code = code_name(self.code),
                    total_ms = milliseconds(total),
                    stages_ms = stages_text(&stages),
                    omitted,
                    "slow request"
                );
            }
        }
        // Otherwise strangers could send a `traceparent` that is sampled, and fill the collector.
        let trace = self.trace.filter(|_| self.code != Code::Unauthenticated);
        if let (Some(traces), Some(trace)) = (&self.observer.traces, trace) {
            traces.record(&SampledCall {
                trace,
                path,
                catalog,
                request_id: self.call.request_id(),
                code: self.code,
                begun: self.begun,
                stages: &stages,
            });
        }
    }
}

/// Returns a time in milliseconds with three decimals.
fn milliseconds(time: Duration) -> f64 {
    time.as_micros() as f64 / 1000.0
}

/// Returns stages as `queue=0.412 rank=1.73`.
fn stages_text(stages: &[StageTime]) -> String {
    let stage = |stage: &StageTime| format!("{}={}", stage.name, milliseconds(stage.time));
    stages.iter().map(stage).collect::<Vec<_>>().join(" ")
}

/// The body of the response of a stream.
struct ObservedBody {
    inner: Body,
    observed: Observed,
}

impl http_body::Body for ObservedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        let call = this.observed.call.clone();
        let polled = call.sync_scope(|| http_body::Body::poll_frame(Pin::new(&mut this.inner), context));
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(code) = frame.trailers_ref().and_then(code_of)
        {
            this.observed.code = code;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        http_body::Body::is_end_stream(&self.inner)
    }

    fn size_hint(&self) -> http_body::SizeHint {
        http_body::Body::size_hint(&self.inner)
    }
}

/// The layer.
#[derive(Clone)]
pub(super) struct Observation<S> {
    inner: S,
    observer: Arc<Observer>,
}

impl<S> Observation<S> {
    pub(super) fn new(inner: S, observer: Arc<Observer>) -> Self {
        Self { inner, observer }
    }
}

impl<S> Service<Request<Body>> for Observation<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let observed = self.observer.begin(&request);
        let response = observed.call.clone().scope(self.inner.call(request));
        Box::pin(async move { Ok(observed.respond(response.await?)) })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::server::Collector;
    use lodestone_telemetry::{Sizes, call};
    use parking_lot::Mutex;
    use std::io;
    use tracing_subscriber::fmt::MakeWriter;

    const SEARCH: &str = "/lodestone.v1.RankingService/Search";

    /// A service that takes some time, records a stage, and answers with a status in the headers.
    #[derive(Clone)]
    struct Answers {
        time: Duration,
        code: Code,
    }

    impl Service<Request<Body>> for Answers {
        type Response = Response<Body>;
        type Error = Infallible;
        type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: Request<Body>) -> Self::Future {
            let Self { time, code } = self.clone();
            Box::pin(async move {
                call::timed("rank", tokio::time::sleep(time)).await;
                let status = code as i32;
                Ok(Response::builder().header("grpc-status", status).body(Body::empty()).unwrap())
            })
        }
    }

    /// The log of a test.
    #[derive(Clone, Default)]
    pub(crate) struct Log(Arc<Mutex<Vec<u8>>>);

    impl Log {
        pub(crate) fn text(&self) -> String {
            String::from_utf8(self.0.lock().clone()).unwrap()
        }
    }

    impl io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl<'a> MakeWriter<'a> for Log {
        type Writer = Self;

        fn make_writer(&'a self) -> Self {
            self.clone()
        }
    }

    fn request(headers: &[(&str, &str)]) -> Request<Body> {
        let mut request = Request::builder().uri(SEARCH);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(Body::empty()).unwrap()
    }

    fn observation(slow_ms: u64, answers: Answers, metrics: &Metrics) -> Observation<Answers> {
        let catalogs = vec![("default".to_owned(), metrics.clone())];
        Observation::new(answers, Observer::new(Some(Duration::from_millis(slow_ms)), None, catalogs))
    }

    fn header<'a>(response: &'a Response<Body>, name: &str) -> Option<&'a str> {
        response.headers().get(name).map(|value| value.to_str().unwrap())
    }

    #[tokio::test]
    async fn a_call_has_the_id_of_its_caller_or_a_new_one_also_if_it_fails() {
        let metrics = Metrics::default();
        let long = "x".repeat(129);
        for code in [Code::Ok, Code::InvalidArgument] {
            let mut service = observation(10_000, Answers { time: Duration::ZERO, code }, &metrics);
            let named = service.call(request(&[("x-request-id", "shop-7/42")])).await.unwrap();
            assert_eq!(header(&named, "x-request-id"), Some("shop-7/42"));
            let mut seen = std::collections::BTreeSet::new();
            for sent in ["", "two words", &long] {
                let response = service.call(request(&[("x-request-id", sent)])).await.unwrap();
                let id = header(&response, "x-request-id").unwrap().to_owned();
                assert!(Uuid::parse_str(&id).is_ok() && seen.insert(id), "{sent:?} is replaced by a new id");
                assert_eq!(header(&response, "x-trace-id"), None);
            }
        }
    }

    #[tokio::test]
    async fn the_trace_of_the_caller_is_returned() {
        let metrics = Metrics::default();
        let mut service = observation(10_000, Answers { time: Duration::ZERO, code: Code::Ok }, &metrics);
        let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
        let parent = format!("00-{trace}-00f067aa0ba902b7-01");
        let response = service.call(request(&[("traceparent", &parent)])).await.unwrap();
        assert_eq!(header(&response, "x-trace-id"), Some(trace));
        let response = service.call(request(&[("traceparent", "00-0-0-1")])).await.unwrap();
        assert_eq!(header(&response, "x-trace-id"), None);
    }

    #[tokio::test]
    async fn a_slow_call_is_logged_with_its_stages_and_without_its_content_and_the_lines_are_limited() {
        let (metrics, log) = (Metrics::default(), Log::default());
        let subscriber = tracing_subscriber::fmt().with_writer(log.clone()).with_ansi(false).finish();
        let _guard = tracing::subscriber::set_default(subscriber);
        let answers = Answers { time: Duration::ZERO, code: Code::DeadlineExceeded };
        let mut fast = observation(60_000, answers.clone(), &metrics);
        fast.call(request(&[])).await.unwrap();
        assert!(log.0.lock().is_empty());
        let mut slow = observation(0, answers, &metrics);
        let headers = [("x-request-id", "r-1"), ("lodestone-catalog", "none\u{7e}"), ("user", "anna")];
        for _ in 0..15 {
            slow.call(request(&headers)).await.unwrap();
        }
        let text = String::from_utf8(log.0.lock().clone()).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), SLOW_LINES_MAX as usize, "{text}");
        for part in
            ["slow request", "request_id=\"r-1\"", "rpc=\"Search\"", "catalog=\"unknown\"", "rank=", "total_ms="]
        {
            assert!(lines[0].contains(part), "{part} is missing in {}", lines[0]);
        }
        assert!(lines[0].contains("code=\"DEADLINE_EXCEEDED\"") && !text.contains("anna") && !text.contains("none~"));
        let text = metrics.text(Sizes::default());
        assert!(text.contains("lodestone_slow_requests_total{rpc=\"Search\"} 15"), "{text}");
    }

    #[tokio::test]
    async fn calls_without_a_valid_key_have_neither_a_span_nor_the_id_of_a_trace() {
        for (code, has_span) in [(Code::Unauthenticated, false), (Code::PermissionDenied, true)] {
            let metrics = Metrics::default();
            // Nothing listens there, so that spans are counted as dropped.
            let collector = Collector { endpoint: "http://127.0.0.1:9".to_owned(), ca: None, share: 1.0 };
            let traces = Traces::start_with(collector, metrics.clone()).unwrap();
            let observer = Observer::new(None, Some(traces.clone()), vec![("default".to_owned(), metrics.clone())]);
            let mut service = Observation::new(Answers { time: Duration::ZERO, code }, observer);
            let response = service.call(request(&[])).await.unwrap();
            assert_eq!(header(&response, "x-trace-id").is_some(), has_span, "{code:?}");
            traces.flush().await;
            let text = metrics.text(Sizes::default());
            assert_eq!(text.contains("lodestone_spans_total{outcome=\"dropped\"} 2"), has_span, "{code:?} {text}");
        }
    }

    #[tokio::test]
    async fn a_cancelled_call_is_reported_and_one_of_no_known_method_is_not() {
        let metrics = Metrics::default();
        let mut service = observation(0, Answers { time: Duration::from_secs(60), code: Code::Ok }, &metrics);
        drop(service.call(request(&[])));
        let mut health = request(&[]);
        *health.uri_mut() = "/grpc.health.v1.Health/Check".parse().unwrap();
        drop(service.call(health));
        let text = metrics.text(Sizes::default());
        assert!(text.contains("lodestone_slow_requests_total{rpc=\"Search\"} 1"), "{text}");
    }
}
