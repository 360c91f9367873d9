//! What surrounds every RPC: counting, timing, and a status instead of a torn connection where a bug panics.
use futures_util::FutureExt;
use lodestone_telemetry::Metrics;
use std::{future::Future, panic::AssertUnwindSafe, time::Instant};
use tonic::{Code, Response, Status};

/// Counts a request as begun, and as ended when it is dropped: also where its caller went away.
struct Running<'a> {
    metrics: &'a Metrics,
    rpc: &'static str,
    begun: Instant,
    code: Code,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.metrics.ended(self.rpc, name(self.code), self.begun.elapsed());
    }
}

/// Answers a request and counts it.
pub(super) async fn guarded<T>(
    metrics: &Metrics,
    rpc: &'static str,
    answer: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<Response<T>, Status> {
    metrics.begun(rpc);
    let mut running = Running { metrics, rpc, begun: Instant::now(), code: Code::Cancelled };
    let result = AssertUnwindSafe(answer).catch_unwind().await.unwrap_or_else(|_| {
        metrics.panicked();
        tracing::error!(rpc, "a request panicked");
        Err(Status::internal("internal error; the server's log tells more"))
    });
    running.code = result.as_ref().map_or_else(Status::code, |_| Code::Ok);
    result
}

/// The name of a code in gRPC's own writing.
fn name(code: Code) -> &'static str {
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
    use lodestone_telemetry::Sizes;

    #[tokio::test]
    async fn a_panic_becomes_a_status_and_is_counted() {
        let metrics = Metrics::default();
        let panics = async { panic!("a bug") };
        let status = guarded::<()>(&metrics, "Search", panics).await.unwrap_err();
        assert_eq!(status.code(), Code::Internal);
        assert!(!status.message().contains("a bug"));
        let text = metrics.text(Sizes::default());
        assert!(text.contains("lodestone_panics_total 1"), "{text}");
        assert!(text.contains("lodestone_requests_total{rpc=\"Search\",code=\"INTERNAL\"} 1"), "{text}");
    }
}
