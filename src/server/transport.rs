//! The outermost layer of the server. It gives every status a reason, also those of the gRPC library for requests that
//! reach no service, ends calls at their deadlines, and decides which responses are compressed.
use super::{proto::DESCRIPTORS, services::timeout, status};
use futures_util::future::BoxFuture;
use http::{HeaderMap, Request, Response, header::HeaderName};
use http_body::Frame;
use http_body_util::BodyExt;
use hyper::body::Bytes;
use lodestone_telemetry::Metrics;
use prost::Message;
use std::{
    collections::HashMap,
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::LazyLock,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    sync::watch,
    time::{Sleep, sleep},
};
use tonic::{Code, Status, body::Body};
use tower::Service;

const ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");
const ACCEPT_ENCODING: HeaderName = HeaderName::from_static("grpc-accept-encoding");
/// The server ends a call this much before the caller's deadline. tonic would end it at the deadline as CANCELLED.
const DEADLINE_MARGIN: Duration = Duration::from_millis(2);

/// A method of a service.
struct Rpc {
    name: String,
    /// Whether the caller may send messages as long as the call lasts.
    is_client_streaming: bool,
}

/// All RPCs by path, such as `/lodestone.v1.RankingService/Search`.
static RPCS: LazyLock<HashMap<String, Rpc>> = LazyLock::new(|| {
    let files = prost_types::FileDescriptorSet::decode(DESCRIPTORS).expect("the descriptors were compiled by build.rs");
    let mut rpcs = HashMap::new();
    for file in files.file {
        for service in &file.service {
            let path = |method: &str| format!("/{}.{}/{method}", file.package(), service.name());
            let named = service.method.iter().map(|method| {
                let (name, is_client_streaming) = (method.name().to_owned(), method.client_streaming());
                (path(method.name()), Rpc { name, is_client_streaming })
            });
            rpcs.extend(named);
        }
    }
    rpcs
});

/// Returns the name of the RPC of a path, for the labels of metrics; `unknown` if there is none.
pub(super) fn rpc_of(path: &str) -> &'static str {
    RPCS.get(path).map_or("unknown", |rpc| rpc.name.as_str())
}

/// The body of a request with one message, which must arrive within a time: otherwise calls that never send their last
/// byte would hold the memory of the others.
struct TimedBody {
    inner: Body,
    limit: Duration,
    /// Set when the body is not complete at once, which is rare.
    timer: Option<Pin<Box<Sleep>>>,
}

impl http_body::Body for TimedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        let polled = http_body::Body::poll_frame(Pin::new(&mut this.inner), context);
        if polled.is_pending() {
            let limit = this.limit;
            let timer = this.timer.get_or_insert_with(|| Box::pin(sleep(limit)));
            ready!(timer.as_mut().poll(context));
            return Poll::Ready(Some(Err(status::request_incomplete(limit))));
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

/// The number of calls in progress, each until its response was sent. Calls of health checks and of reflection do not
/// count: they may watch for as long as the server runs.
#[derive(Clone, Default)]
pub(crate) struct Calls(watch::Sender<usize>);

impl Calls {
    fn begin(&self) -> Call {
        self.0.send_modify(|count| *count += 1);
        Call(self.clone())
    }

    pub(crate) fn count(&self) -> usize {
        *self.0.borrow()
    }

    /// Returns when there is no call.
    pub(crate) async fn none(&self) {
        // Fails only without a sender.
        let _ = self.0.subscribe().wait_for(|count| *count == 0).await;
    }
}

/// Counts until it is dropped.
struct Call(Calls);

impl Drop for Call {
    fn drop(&mut self) {
        self.0.0.send_modify(|count| *count -= 1);
    }
}

/// The layer around all services.
#[derive(Clone)]
pub(crate) struct Transport<S> {
    inner: S,
    metrics: Metrics,
    /// Time for the message of a request to arrive.
    read_max: Duration,
    calls: Calls,
}

impl<S> Transport<S> {
    pub(crate) fn new(inner: S, metrics: Metrics, read_max: Duration, calls: Calls) -> Self {
        Self { inner, metrics, read_max, calls }
    }
}

impl<S> Service<Request<Body>> for Transport<S>
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

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        mirror_compression(request.headers_mut());
        let deadline = request.headers().get("grpc-timeout").and_then(|value| timeout(value.to_str().ok()?));
        let path = request.uri().path().to_owned();
        let metrics = self.metrics.clone();
        let is_reflection = || path.starts_with("/grpc.reflection.");
        let is_client_streaming = RPCS.get(&path).map_or_else(is_reflection, |rpc| rpc.is_client_streaming);
        if !is_client_streaming {
            let limit = self.read_max;
            request = request.map(|inner| Body::new(TimedBody { inner, limit, timer: None }));
        }
        let call = RPCS.contains_key(&path).then(|| self.calls.begin());
        let response = self.inner.call(request);
        Box::pin(async move {
            let response = match deadline.map(|time| time.saturating_sub(DEADLINE_MARGIN)) {
                None => response.await?,
                Some(time) => match tokio::time::timeout(time, response).await {
                    Ok(response) => response?,
                    Err(_) => status::deadline_exceeded().into_http(),
                },
            };
            Ok(with_reason(response, path, &metrics, call))
        })
    }
}

/// Hides from the services that the caller accepts gzip unless the request itself is sent with gzip. Within a data
/// centre the compression of a page takes longer than its transfer, and most client libraries announce gzip always.
fn mirror_compression(headers: &mut HeaderMap) {
    if headers.get(ENCODING).is_none_or(|encoding| encoding != "gzip") {
        headers.remove(ACCEPT_ENCODING);
    }
}

/// Adds the reason to a status that has none, in the headers of a response without a body or in the trailers. Such a
/// request reached no service, and is counted here. The body of the response holds the call.
fn with_reason(response: Response<Body>, path: String, metrics: &Metrics, call: Option<Call>) -> Response<Body> {
    let Some(refused) = without_reason(response.headers()) else {
        let frame_with_reason = move |frame| {
            let _until_the_end = &call;
            with_reason_in_trailers(frame, &path)
        };
        return response.map(|body| Body::new(body.map_frame(frame_with_reason)));
    };
    let status = status::of_transport(&refused, &path);
    metrics.refused(rpc_of(&path), super::guard::code_name(status.code()));
    status.into_http()
}

fn with_reason_in_trailers<D>(frame: http_body::Frame<D>, path: &str) -> http_body::Frame<D> {
    let trailers = match frame.into_trailers() {
        Ok(trailers) => trailers,
        Err(data) => return data,
    };
    let status = without_reason(&trailers).map(|refused| status::of_transport(&refused, path));
    http_body::Frame::trailers(status.map_or(trailers, |status| status.into_http::<()>().into_parts().0.headers))
}

/// Returns the status in headers or trailers if it is an error without details.
fn without_reason(headers: &HeaderMap) -> Option<Status> {
    headers.get(Status::GRPC_STATUS)?;
    let status = Status::from_header_map(headers)?;
    (status.code() != Code::Ok && status.details().is_empty()).then_some(status)
}

#[cfg(test)]
mod tests {
    use super::*;
    use lodestone_telemetry::Sizes;
    use tonic_types::StatusExt;

    /// A service that never answers.
    #[derive(Clone)]
    struct Never;

    impl Service<Request<Body>> for Never {
        type Response = Response<Body>;
        type Error = Infallible;
        type Future = std::future::Pending<Result<Response<Body>, Infallible>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: Request<Body>) -> Self::Future {
            std::future::pending()
        }
    }

    #[tokio::test]
    async fn a_call_ends_before_its_deadline_with_a_reason() {
        let request = Request::builder().header("grpc-timeout", "20m").body(Body::empty()).unwrap();
        let response = Transport::new(Never, Metrics::default(), Duration::from_secs(1), Calls::default())
            .call(request)
            .await
            .unwrap();
        let status = Status::from_header_map(response.headers()).unwrap();
        assert_eq!(status.code(), Code::DeadlineExceeded);
        assert_eq!(status.get_error_details().error_info().unwrap().reason, "DEADLINE_EXCEEDED");
    }

    #[tokio::test]
    async fn a_call_counts_until_its_response_is_dropped() {
        let (calls, metrics) = (Calls::default(), Metrics::default());
        calls.none().await;
        let call = Some(calls.begin());
        let response = Response::new(Body::empty());
        let response = with_reason(response, "/lodestone.v1.RankingService/Search".to_owned(), &metrics, call);
        assert_eq!(calls.count(), 1);
        let mut none = Box::pin(calls.none());
        assert!(futures_util::poll!(&mut none).is_pending());
        drop(response);
        none.await;
        assert_eq!(calls.count(), 0);
    }

    #[test]
    fn a_status_of_the_library_receives_a_reason_in_headers_and_in_trailers() {
        let metrics = Metrics::default();
        let refused = Status::internal("invalid string value");
        let path = "/lodestone.v1.RankingService/Search";
        let headers = with_reason(refused.clone().into_http(), path.to_owned(), &metrics, None).into_parts().0.headers;
        let trailers = refused.into_http::<()>().into_parts().0.headers;
        let frame = with_reason_in_trailers::<hyper::body::Bytes>(http_body::Frame::trailers(trailers), path);
        for headers in [headers, frame.into_trailers().unwrap()] {
            let status = Status::from_header_map(&headers).unwrap();
            assert_eq!(status.code(), Code::InvalidArgument);
            assert_eq!(status.get_error_details().error_info().unwrap().reason, "MESSAGE_MALFORMED");
        }
        let text = metrics.text(Sizes::default());
        assert!(text.contains("lodestone_requests_total{rpc=\"Search\",code=\"INVALID_ARGUMENT\"} 1"), "{text}");
    }

    #[test]
    fn rpcs_have_names_of_low_cardinality() {
        assert_eq!(rpc_of("/lodestone.v1.RankingService/Search"), "Search");
        assert_eq!(rpc_of("/lodestone.v1.EventService/StreamEvents"), "StreamEvents");
        for unknown in ["", "/", "/lodestone.v1.RankingService/Find", "/shop.v1.Finder/Search"] {
            assert_eq!(rpc_of(unknown), "unknown");
        }
    }

    #[test]
    fn responses_are_compressed_for_callers_that_compress() {
        for (encoding, is_kept) in [(None, false), (Some("identity"), false), (Some("gzip"), true)] {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT_ENCODING, "identity, deflate, gzip".parse().unwrap());
            headers.extend(encoding.map(|encoding| (ENCODING, encoding.parse().unwrap())));
            mirror_compression(&mut headers);
            assert_eq!(headers.contains_key(ACCEPT_ENCODING), is_kept, "{encoding:?}");
        }
    }
}
