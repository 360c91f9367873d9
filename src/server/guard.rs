//! Wraps every RPC: counts and times it, and turns a panic into a status instead of a broken connection.
use super::status;
use futures_util::FutureExt;
use lodestone_engine::EngineError;
use lodestone_telemetry::Metrics;
use std::{future::Future, panic::AssertUnwindSafe, time::Instant};
use tonic::{Code, Response, Status};

/// Records the end of a request when dropped, and therefore also when the caller cancels it.
struct Running<'a> {
    metrics: &'a Metrics,
    rpc: &'static str,
    started: Instant,
    code: Code,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.metrics.ended(self.rpc, code_name(self.code), self.started.elapsed());
    }
}

/// Runs a request with metrics. A panic becomes INTERNAL.
pub(crate) async fn guarded<T>(
    metrics: &Metrics,
    rpc: &'static str,
    response: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<Response<T>, Status> {
    metrics.begun(rpc);
    let mut running = Running { metrics, rpc, started: Instant::now(), code: Code::Cancelled };
    let result = AssertUnwindSafe(response).catch_unwind().await.unwrap_or_else(|_| {
        metrics.panicked();
        Err(status::of(EngineError::Internal(format!("{rpc} panicked"))))
    });
    running.code = result.as_ref().map_or_else(Status::code, |_| Code::Ok);
    result
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
