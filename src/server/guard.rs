//! Wraps every RPC: counts and times it, turns a panic into a status instead of a broken connection, and refuses
//! responses that clients would not accept.
use super::{RESPONSE_BYTES_MAX, status};
use futures_util::{
    FutureExt,
    future::BoxFuture,
    stream::{self, BoxStream},
};
use lodestone_engine::EngineError;
use lodestone_telemetry::{Metrics, call};
use prost::Message;
use std::{future::Future, panic::AssertUnwindSafe, time::Instant};
use tonic::{Code, Response, Status};

/// Records the end of a request when dropped, and therefore also when the caller cancels it.
struct Running {
    metrics: Metrics,
    rpc: &'static str,
    started: Instant,
    code: Code,
}

impl Running {
    fn begin(metrics: &Metrics, rpc: &'static str) -> Self {
        metrics.begun(rpc);
        call::count();
        Self { metrics: metrics.clone(), rpc, started: Instant::now(), code: Code::Cancelled }
    }

    fn end(mut self, code: Code) {
        self.code = code;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.metrics.ended(self.rpc, code_name(self.code), self.started.elapsed());
    }
}

/// Runs a request with metrics. A panic becomes INTERNAL; the panic hook counts it. A response above
/// [`RESPONSE_BYTES_MAX`] becomes RESOURCE_EXHAUSTED.
pub(crate) async fn guarded<T: Message>(
    metrics: &Metrics,
    rpc: &'static str,
    response: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<Response<T>, Status> {
    let running = Running::begin(metrics, rpc);
    let result = AssertUnwindSafe(response).catch_unwind().await.unwrap_or_else(|_| Err(panicked(rpc)));
    let result = result.and_then(|response| match response.get_ref().encoded_len() {
        ..=RESPONSE_BYTES_MAX => Ok(response),
        bytes => Err(status::response_too_large(bytes)),
    });
    running.end(result.as_ref().map_or_else(Status::code, |_| Code::Ok));
    result
}

/// Runs a call with a stream of responses, with metrics. `step` returns the next response; none ends the stream. A
/// panic becomes INTERNAL; the panic hook counts it.
pub(crate) fn guarded_stream<S, T, F>(
    metrics: &Metrics,
    rpc: &'static str,
    call: S,
    step: F,
) -> Response<BoxStream<'static, Result<T, Status>>>
where
    S: Send + 'static,
    T: 'static,
    F: for<'a> Fn(&'a mut S) -> BoxFuture<'a, Result<Option<T>, Status>> + Clone + Send + 'static,
{
    let begun = Some((Running::begin(metrics, rpc), call));
    Response::new(Box::pin(stream::unfold(begun, move |state| {
        let step = step.clone();
        async move {
            let (running, mut call) = state?;
            let result = AssertUnwindSafe(step(&mut call)).catch_unwind().await.unwrap_or_else(|_| Err(panicked(rpc)));
            match result {
                Ok(Some(response)) => Some((Ok(response), Some((running, call)))),
                Ok(None) => {
                    running.end(Code::Ok);
                    None
                }
                Err(status) => {
                    running.end(status.code());
                    Some((Err(status), None))
                }
            }
        }
    })))
}

fn panicked(rpc: &str) -> Status {
    status::of(EngineError::Internal(format!("{rpc} panicked")))
}

/// Returns the name of a code as in the gRPC specification.
pub(crate) fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::proto::SuggestResponse;
    use lodestone_telemetry::{Sizes, count_panics};
    use tonic_types::StatusExt;

    fn reason(status: &Status) -> Option<String> {
        status.get_error_details().error_info().map(|info| info.reason.clone())
    }

    #[tokio::test]
    async fn a_panic_becomes_a_status_with_its_reason_and_is_counted() {
        count_panics();
        let metrics = Metrics::default();
        let panics = async { panic!("a bug") };
        let status = guarded::<()>(&metrics, "Search", panics).await.unwrap_err();
        assert_eq!((status.code(), reason(&status).as_deref()), (Code::Internal, Some("INTERNAL")));
        assert!(!status.message().contains("a bug"));
        let text = metrics.text(Sizes::default());
        assert!(!text.contains("lodestone_panics_total 0"), "{text}");
        assert!(text.contains("lodestone_requests_total{rpc=\"Search\",code=\"INTERNAL\"} 1"), "{text}");
    }

    #[tokio::test]
    async fn a_response_that_clients_do_not_accept_is_refused_with_its_size() {
        let response = |bytes| async move {
            let attribution_token = "x".repeat(bytes);
            Ok(Response::new(SuggestResponse { attribution_token, ..Default::default() }))
        };
        assert!(guarded(&Metrics::default(), "Suggest", response(RESPONSE_BYTES_MAX - 10)).await.is_ok());
        let status = guarded(&Metrics::default(), "Suggest", response(RESPONSE_BYTES_MAX)).await.unwrap_err();
        assert_eq!((status.code(), reason(&status).as_deref()), (Code::ResourceExhausted, Some("RESPONSE_TOO_LARGE")));
    }
}
