//! The layer between observation and authorization. It gives every status a reason, also those of the gRPC library for requests that
//! reach no service, ends calls at their deadlines, limits the memory and the time of messages that arrive, and decides
//! which responses are compressed.
use super::{
    deadline::call_time, guard::code_name, http2::OpenCall, message_memory::CallMemory, proto::DESCRIPTORS,
    request_bytes_max, status,
};
use futures_util::future::{BoxFuture, FutureExt};
use http::{HeaderMap, Request, Response, header::HeaderName};
use http_body::Frame;
use http_body_util::BodyExt;
use hyper::body::Bytes;
use lodestone_telemetry::{Metrics, call};
use prost::Message;
use std::{
    collections::HashMap,
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::{Arc, LazyLock},
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::{Sleep, sleep, timeout},
};
use tonic::{Code, Status, body::Body};
use tower::Service;

const ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");
const ACCEPT_ENCODING: HeaderName = HeaderName::from_static("grpc-accept-encoding");

/// Memory for all request messages that are arriving, in KiB.
const ARRIVING_KIB_MAX: usize = 512 << 10;
/// The bytes of a message count for [`ARRIVING_KIB_MAX`] in steps of this size. Smaller messages do not count.
const COUNTED_BYTES: usize = 64 << 10;
/// Greatest size of the rest of a request that is read after its response, and the greatest time for it.
const REST_BYTES_MAX: usize = 64 << 10;
const REST_TIME_MAX: Duration = Duration::from_secs(1);
/// The bytes before each message of gRPC: whether it is compressed, and its length.
const PREFIX_BYTES: usize = 5;

/// A method of a service.
struct Rpc {
    name: String,
    /// Whether the caller may send messages as long as the call lasts.
    is_client_streaming: bool,
    /// Whether the server may send messages as long as the call lasts.
    is_server_streaming: bool,
}

/// All RPCs by path, such as `/lodestone.v1.RankingService/Search`.
static RPCS: LazyLock<HashMap<String, Rpc>> = LazyLock::new(|| {
    let files = prost_types::FileDescriptorSet::decode(DESCRIPTORS).expect("the descriptors were compiled by build.rs");
    let mut rpcs = HashMap::new();
    for file in files.file {
        for service in &file.service {
            let path = |method: &str| format!("/{}.{}/{method}", file.package(), service.name());
            let named = service.method.iter().map(|method| {
                let rpc = Rpc {
                    name: method.name().to_owned(),
                    is_client_streaming: method.client_streaming(),
                    is_server_streaming: method.server_streaming(),
                };
                (path(method.name()), rpc)
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

/// Returns the path of an RPC if there is one.
pub(super) fn known_path(path: &str) -> Option<&'static str> {
    RPCS.get_key_value(path).map(|(path, _)| path.as_str())
}

/// Returns true if the caller of a path may send messages as long as the call lasts.
pub(super) fn is_client_streaming(path: &str) -> bool {
    RPCS.get(path).map_or_else(|| is_reflection(path), |rpc| rpc.is_client_streaming)
}

fn is_reflection(path: &str) -> bool {
    path.starts_with("/grpc.reflection.")
}

/// Returns the budget of all request messages that are arriving.
pub(super) fn arriving_budget() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(ARRIVING_KIB_MAX))
}

/// Follows the messages in the bytes of a request.
///
/// Large messages take the memory of their bytes from a budget of the process as the bytes arrive, until the next message
/// of the call begins or the body is dropped. Lengths that are only announced do not count: the gRPC library reserves
/// addresses for them, which take no memory, and callers that send nothing would use up the budget of the others.
struct MessageLengths {
    budget: Arc<Semaphore>,
    /// Greatest size of a message of the method. The library refuses larger ones without reserving anything.
    bytes_max: usize,
    prefix: [u8; PREFIX_BYTES],
    /// Bytes of the current prefix that have arrived.
    prefix_bytes: usize,
    /// Size of the current message.
    length: usize,
    /// Bytes of the current message that have not arrived.
    missing: usize,
    /// Number of messages that have arrived.
    complete: u64,
    permit: Option<OwnedSemaphorePermit>,
}

impl MessageLengths {
    fn new(budget: Arc<Semaphore>, bytes_max: usize) -> Self {
        Self {
            budget,
            bytes_max,
            prefix: [0; PREFIX_BYTES],
            prefix_bytes: 0,
            length: 0,
            missing: 0,
            complete: 0,
            permit: None,
        }
    }

    /// Returns true while a part of a message has arrived.
    fn is_within_message(&self) -> bool {
        self.prefix_bytes > 0 || self.missing > 0
    }

    /// Returns true if another message has begun after the first one.
    fn has_second_message(&self) -> bool {
        self.complete > 1 || (self.complete == 1 && self.is_within_message())
    }

    /// Follows the next bytes of the body. Fails if the budget is exhausted.
    fn advance(&mut self, mut bytes: &[u8]) -> Result<(), Status> {
        while !bytes.is_empty() {
            let arrived = self.missing.min(bytes.len());
            self.missing -= arrived;
            self.take_memory()?;
            self.complete += u64::from(arrived > 0 && self.missing == 0);
            bytes = &bytes[arrived..];
            let begun = (PREFIX_BYTES - self.prefix_bytes).min(bytes.len());
            self.prefix[self.prefix_bytes..][..begun].copy_from_slice(&bytes[..begun]);
            self.prefix_bytes += begun;
            bytes = &bytes[begun..];
            if self.prefix_bytes < PREFIX_BYTES {
                continue;
            }
            let [_, length @ ..] = self.prefix;
            self.length = u32::from_be_bytes(length) as usize;
            (self.missing, self.prefix_bytes, self.permit) = (self.length, 0, None);
            self.complete += u64::from(self.missing == 0);
        }
        Ok(())
    }

    /// Takes the bytes of the current message that have arrived from the budget.
    fn take_memory(&mut self) -> Result<(), Status> {
        let arrived = self.length - self.missing;
        // Nothing of a message that is too large is kept.
        if !(COUNTED_BYTES..=self.bytes_max).contains(&self.length) || arrived < COUNTED_BYTES {
            return Ok(());
        }
        let wanted = arrived.next_multiple_of(COUNTED_BYTES).min(self.length).div_ceil(1 << 10);
        let held = self.permit.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        if wanted <= held {
            return Ok(());
        }
        let permit = self.budget.clone().try_acquire_many_owned((wanted - held) as u32);
        let permit = permit.map_err(|_| status::messages_overloaded(self.length))?;
        match &mut self.permit {
            Some(held) => held.merge(permit),
            None => self.permit = Some(permit),
        }
        Ok(())
    }
}

/// The body of a request, whose messages must arrive within a time: otherwise calls that never send their last byte
/// would hold the memory of the others.
struct RequestBody {
    inner: Body,
    lengths: MessageLengths,
    limit: Duration,
    /// Whether the caller may pause between messages for longer.
    may_pause: bool,
    /// Whether the method takes one message.
    has_one_message: bool,
    /// The memory of the message that was decoded.
    memory: CallMemory,
    /// Set when a message is not complete at once, which is rare.
    timer: Option<Pin<Box<Sleep>>>,
}

impl http_body::Body for RequestBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        // A stream that reads on has handled its message.
        if !this.has_one_message {
            this.memory.release();
        }
        let polled = http_body::Body::poll_frame(Pin::new(&mut this.inner), context);
        match &polled {
            Poll::Pending if this.may_pause && !this.lengths.is_within_message() => {}
            Poll::Pending => {
                let limit = this.limit;
                let timer = this.timer.get_or_insert_with(|| Box::pin(sleep(limit)));
                ready!(timer.as_mut().poll(context));
                return Poll::Ready(Some(Err(status::request_incomplete(limit))));
            }
            Poll::Ready(Some(Ok(frame))) => {
                let complete = this.lengths.complete;
                if let Some(bytes) = frame.data_ref()
                    && let Err(status) = this.lengths.advance(bytes)
                {
                    return Poll::Ready(Some(Err(status)));
                }
                // The library would decode it, and discard it.
                if this.has_one_message && this.lengths.has_second_message() {
                    let message = "the call has a second message, and the method takes one";
                    return Poll::Ready(Some(Err(Status::internal(message))));
                }
                // gRPC has no trailers of requests. The library would replace metadata of the call by them, which was
                // checked before.
                if frame.is_trailers() {
                    return Poll::Ready(None);
                }
                // Each message of a stream has its own time.
                if this.may_pause && this.lengths.complete > complete {
                    this.timer = None;
                }
            }
            Poll::Ready(_) => {}
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

impl Drop for RequestBody {
    /// Reads the rest of a request that was answered before it arrived, as refusals are. If the body was dropped, HTTP/2
    /// would reset the call, the rest would arrive for a call that no longer exists, and after 1,024 of those h2 ends the
    /// connection with all its calls.
    fn drop(&mut self) {
        if http_body::Body::is_end_stream(self) {
            return;
        }
        let mut rest = Box::pin(read_rest(std::mem::take(&mut self.inner)));
        // Mostly it has arrived meanwhile.
        if rest.as_mut().now_or_never().is_none()
            && let Ok(runtime) = Handle::try_current()
        {
            runtime.spawn(timeout(REST_TIME_MAX, rest));
        }
    }
}

async fn read_rest(mut body: Body) {
    let mut bytes = 0;
    while let Some(Ok(frame)) = body.frame().await {
        bytes += frame.data_ref().map_or(0, Bytes::len);
        if bytes > REST_BYTES_MAX {
            return;
        }
    }
}

/// The body of the response of a call with a stream of messages, which are decoded while the body is polled.
struct StreamedBody {
    inner: Body,
    memory: CallMemory,
}

impl http_body::Body for StreamedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        let inner = Pin::new(&mut this.inner);
        let polled = this.memory.sync_scope(|| http_body::Body::poll_frame(inner, context));
        // The message is handled. The caller may take any time to read the response.
        if polled.is_ready() {
            this.memory.release();
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

/// What a call holds until its response was sent.
struct HeldCall {
    _counted: Option<Call>,
    of_connection: Option<Arc<OpenCall>>,
    has_one_response: bool,
}

/// The layer around all services.
#[derive(Clone)]
pub(crate) struct Transport<S> {
    inner: S,
    // Shared, because the layer is cloned for every call.
    metrics: Arc<Metrics>,
    /// Time for the message of a request to arrive.
    read_max: Duration,
    calls: Calls,
    /// Memory for the messages that are arriving, in KiB.
    budget: Arc<Semaphore>,
}

impl<S> Transport<S> {
    pub(crate) fn new(inner: S, metrics: Metrics, read_max: Duration, calls: Calls, budget: Arc<Semaphore>) -> Self {
        Self { inner, metrics: Arc::new(metrics), read_max, calls, budget }
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
        let time_max = call_time(request.headers());
        let path = request.uri().path().to_owned();
        let metrics = self.metrics.clone();
        let lengths = MessageLengths::new(self.budget.clone(), request_bytes_max(&path));
        let is_streaming = is_client_streaming(&path);
        // Reflection is a stream by its form only: clients end it after their last request.
        let (limit, may_pause) = (self.read_max, is_streaming && !is_reflection(&path));
        let (memory, has_one_message) = (CallMemory::default(), !is_streaming);
        let of_request = memory.clone();
        request = request.map(|inner| {
            let memory = of_request;
            Body::new(RequestBody { inner, lengths, limit, may_pause, has_one_message, memory, timer: None })
        });
        let rpc = RPCS.get(&path);
        let call = HeldCall {
            _counted: rpc.map(|_| self.calls.begin()),
            of_connection: request.extensions_mut().remove::<Arc<OpenCall>>(),
            // Streams have responses for as long as they last, and watches of health wait for them.
            has_one_response: rpc.is_some_and(|rpc| !rpc.is_server_streaming),
        };
        let response = memory.clone().scope(self.inner.call(request));
        Box::pin(async move {
            let response = match time_max {
                None => response.await?,
                Some(time) => match timeout(time, response).await {
                    Ok(response) => response?,
                    Err(_) => status::deadline_exceeded().into_http(),
                },
            };
            let response = match has_one_message {
                true => response,
                false => response.map(|inner| Body::new(StreamedBody { inner, memory })),
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

/// Adds the reason to a status that has none, in the headers of a response without a body or in the trailers. Counts an error
/// of a request that reached no service. The body of the response holds the call.
fn with_reason(response: Response<Body>, path: String, metrics: &Metrics, call: HeldCall) -> Response<Body> {
    if let Some(of_connection) = call.of_connection.as_ref().filter(|_| call.has_one_response) {
        of_connection.respond();
    }
    let refused = without_reason(response.headers()).map(|refused| status::of_transport(&refused, &path));
    if let Some(code) = refused.as_ref().map(Status::code).or_else(|| error_of(response.headers()).map(|of| of.code()))
        && !call::count()
    {
        metrics.refused(rpc_of(&path), code_name(code));
    }
    match refused {
        Some(status) => status.into_http(),
        None => {
            let frame_with_reason = move |frame| {
                let _until_the_end = &call;
                with_reason_in_trailers(frame, &path)
            };
            response.map(|body| Body::new(body.map_frame(frame_with_reason)))
        }
    }
}

fn with_reason_in_trailers<D>(frame: http_body::Frame<D>, path: &str) -> http_body::Frame<D> {
    let trailers = match frame.into_trailers() {
        Ok(trailers) => trailers,
        Err(data) => return data,
    };
    let status = without_reason(&trailers).map(|refused| status::of_transport(&refused, path));
    http_body::Frame::trailers(status.map_or(trailers, |status| status.into_http::<()>().into_parts().0.headers))
}

/// Returns the status in headers or trailers if it is an error.
fn error_of(headers: &HeaderMap) -> Option<Status> {
    headers.get(Status::GRPC_STATUS)?;
    Status::from_header_map(headers).filter(|status| status.code() != Code::Ok)
}

/// The same for an error without details.
fn without_reason(headers: &HeaderMap) -> Option<Status> {
    error_of(headers).filter(|status| status.details().is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::message_memory::build_within_budget;
    use futures_util::{StreamExt, stream};
    use http_body_util::StreamBody;
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
        let (read_max, calls) = (Duration::from_secs(1), Calls::default());
        let mut transport = Transport::new(Never, Metrics::default(), read_max, calls, arriving_budget());
        let response = transport.call(request).await.unwrap();
        let status = Status::from_header_map(response.headers()).unwrap();
        assert_eq!(status.code(), Code::DeadlineExceeded);
        assert_eq!(status.get_error_details().error_info().unwrap().reason, "DEADLINE_EXCEEDED");
    }

    #[tokio::test]
    async fn a_call_counts_until_its_response_is_dropped() {
        let (calls, metrics) = (Calls::default(), Metrics::default());
        calls.none().await;
        let call = HeldCall { _counted: Some(calls.begin()), of_connection: None, has_one_response: true };
        let response = Response::new(Body::new(http_body_util::Full::from("an answer")));
        let response = with_reason(response, "/lodestone.v1.RankingService/Search".to_owned(), &metrics, call);
        assert_eq!(calls.count(), 1);
        let mut none = Box::pin(calls.none());
        assert!(futures_util::poll!(&mut none).is_pending());
        drop(response);
        none.await;
        assert_eq!(calls.count(), 0);
    }

    #[test]
    fn bytes_that_arrive_are_taken_from_the_budget_until_the_next_message_or_the_end() {
        let budget = Arc::new(Semaphore::new(1024));
        let free = || budget.available_permits();
        let lengths = || MessageLengths::new(budget.clone(), 1 << 20);
        let prefix = |length: u32| [&[0][..], &length.to_be_bytes()].concat();
        let (mut first, mut second) = (lengths(), lengths());
        for byte in prefix(768 << 10) {
            first.advance(&[byte]).unwrap();
        }
        // Any number of calls may announce a message, and send its first bytes.
        for _ in 0..100 {
            lengths().advance(&[prefix(1 << 20), vec![0; 5]].concat()).unwrap();
        }
        first.advance(&vec![0; (64 << 10) - 1]).unwrap();
        assert_eq!(free(), 1024);
        first.advance(&[0]).unwrap();
        assert_eq!(free(), 1024 - 64);
        first.advance(&[0]).unwrap();
        assert_eq!(free(), 1024 - 128, "in steps");
        first.advance(&vec![0; (704 << 10) - 2]).unwrap();
        assert!(first.is_within_message() && free() == 256);
        second.advance(&[prefix(3), vec![1, 2, 3], prefix(255)].concat()).unwrap();
        assert!(second.is_within_message());
        second.advance(&[0; 255]).unwrap();
        assert!(!second.is_within_message() && free() == 256, "small messages do not count");
        assert_eq!((first.complete, second.complete), (0, 2));
        second.advance(&[prefix(0), prefix(1), vec![0], vec![0]].concat()).unwrap();
        assert!(second.is_within_message() && second.complete == 4, "a part of the next prefix");
        second.advance(&prefix(0)[1..]).unwrap();
        assert!(!second.is_within_message() && second.complete == 5);
        second.advance(&prefix(257 << 10)).unwrap();
        second.advance(&vec![0; 256 << 10]).unwrap();
        let status = second.advance(&[0]).unwrap_err();
        let details = status.get_error_details();
        assert_eq!(
            (status.code(), details.error_info().unwrap().reason.as_str()),
            (Code::ResourceExhausted, "OVERLOADED")
        );
        assert!(details.retry_info().is_some());
        drop(second);
        assert_eq!(free(), 256, "given back with the body");
        // The library refuses what is larger than the method allows.
        lengths().advance(&[prefix(u32::MAX), vec![0; 512 << 10]].concat()).unwrap();
        assert_eq!(free(), 256);
        first.advance(&[0]).unwrap();
        assert!(!first.is_within_message() && free() == 256, "the memory of a complete message is in use");
        first.advance(&prefix(1)).unwrap();
        assert_eq!(free(), 1024);
    }

    #[tokio::test]
    async fn a_stream_keeps_the_memory_of_a_message_until_it_responds_or_reads_on() {
        let (memory, mut polls) = (CallMemory::default(), 0);
        let frames = stream::poll_fn(move |_: &mut Context<'_>| {
            polls += 1;
            if polls == 2 {
                return Poll::Ready(Some(Ok::<_, Status>(Frame::data(Bytes::from_static(b"response")))));
            }
            build_within_budget(2 << 20, || ()).unwrap();
            Poll::Pending
        });
        let mut response = StreamedBody { inner: Body::new(StreamBody::new(frames)), memory: memory.clone() };
        assert!(futures_util::poll!(response.frame()).is_pending() && memory.is_held());
        assert!(response.frame().await.unwrap().is_ok());
        assert!(!memory.is_held());
        assert!(futures_util::poll!(response.frame()).is_pending() && memory.is_held());
        let mut request = RequestBody {
            inner: Body::new(StreamBody::new(stream::pending::<Result<Frame<Bytes>, Status>>())),
            lengths: MessageLengths::new(arriving_budget(), 1 << 20),
            limit: Duration::from_secs(10),
            may_pause: true,
            has_one_message: false,
            memory: memory.clone(),
            timer: None,
        };
        assert!(futures_util::poll!(request.frame()).is_pending() && !memory.is_held());
    }

    #[tokio::test]
    async fn a_method_with_one_message_takes_no_second_one_and_no_trailers() {
        let body = |frames: Vec<Frame<Bytes>>, has_one_message: bool| {
            let inner = Body::new(StreamBody::new(stream::iter(frames.into_iter().map(Ok::<_, Status>))));
            let (lengths, limit) = (MessageLengths::new(arriving_budget(), 1 << 20), Duration::from_secs(10));
            let (may_pause, memory) = (!has_one_message, CallMemory::default());
            RequestBody { inner, lengths, limit, may_pause, has_one_message, memory, timer: None }
        };
        let data = |bytes: &[u8]| Frame::data(Bytes::copy_from_slice(bytes));
        let message: [u8; 7] = [0, 0, 0, 0, 2, 7, 7];
        // In one frame, also if only its first byte has arrived, and later.
        let within = [&message[..], &[0]].concat();
        for frames in [vec![message.repeat(2)], vec![within], vec![message.to_vec(), vec![0]]] {
            let all = || frames.iter().map(|bytes| data(bytes)).collect();
            let mut single = body(all(), true);
            for _ in 1..frames.len() {
                assert!(single.frame().await.unwrap().is_ok());
            }
            let status = single.frame().await.unwrap().unwrap_err();
            let status = status::of_transport(&status, "/lodestone.v1.RankingService/Search");
            assert_eq!(status.code(), Code::InvalidArgument);
            assert_eq!(status.get_error_details().error_info().unwrap().reason, "MESSAGE_MALFORMED");
            assert!(status.message().contains("second message"), "{status:?}");
            let mut streamed = body(all(), false);
            while let Some(frame) = streamed.frame().await {
                assert!(frame.unwrap().is_data());
            }
        }
        let mut trailers = HeaderMap::new();
        trailers.insert("lodestone-catalog", "other".parse().unwrap());
        let mut single = body(vec![data(&message), Frame::trailers(trailers)], true);
        assert!(single.frame().await.unwrap().unwrap().is_data());
        assert!(single.frame().await.is_none());
    }

    #[tokio::test]
    async fn a_stream_may_pause_between_messages_and_not_within_them() {
        let limit = Duration::from_millis(50);
        let body = |frames: Vec<Vec<u8>>| {
            let frames = frames.into_iter().map(|bytes| Ok::<_, Status>(Frame::data(Bytes::from(bytes))));
            let inner = Body::new(StreamBody::new(stream::iter(frames).chain(stream::pending())));
            let lengths = MessageLengths::new(arriving_budget(), 1 << 20);
            let memory = CallMemory::default();
            RequestBody { inner, lengths, limit, may_pause: true, has_one_message: false, memory, timer: None }
        };
        let mut paused = body(vec![vec![0, 0, 0, 0, 2, 7], vec![7]]);
        for _ in 0..2 {
            assert!(paused.frame().await.unwrap().is_ok());
        }
        assert!(tokio::time::timeout(4 * limit, paused.frame()).await.is_err(), "the stream is open");
        // The second frame ends a message and begins another one.
        let mut incomplete = body(vec![vec![0, 0, 0, 0, 2, 7], vec![7, 0, 0, 0, 0, 1]]);
        for _ in 0..2 {
            assert!(incomplete.frame().await.unwrap().is_ok());
        }
        let status = incomplete.frame().await.unwrap().unwrap_err();
        assert_eq!(status.get_error_details().error_info().unwrap().reason, "REQUEST_INCOMPLETE");
    }

    #[test]
    fn a_status_of_the_library_receives_a_reason_in_headers_and_in_trailers() {
        let metrics = Metrics::default();
        let refused = Status::internal("invalid string value");
        let path = "/lodestone.v1.RankingService/Search";
        let call = HeldCall { _counted: None, of_connection: None, has_one_response: true };
        let headers = with_reason(refused.clone().into_http(), path.to_owned(), &metrics, call).into_parts().0.headers;
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
