//! Admission of calls before anything of them is read: their priority, and the refusal of ranking requests that the
//! workers cannot answer in time. A refusal costs neither the memory nor the time of a message, so that a server with
//! several times the load that it can answer spends its time on answers.
use super::{ServerConfig, guard::code_name, services::timeout, status, transport::rpc_of, violations::Violations};
use http::HeaderMap;
use lodestone_engine::Engine;
use lodestone_pipeline::Priority;
use lodestone_telemetry::call;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tonic::{Request, Status};

/// The metadata of a call of RankingService that states its priority. Absent or empty: `interactive`.
pub const PRIORITY_METADATA: &str = "lodestone-priority";
/// The calls that only the workers answer.
const RANKING: &str = "/lodestone.v1.RankingService/";
/// The engine's deadline is this much before the caller's, so that the caller receives the server's status instead of
/// the one of its own library.
const DEADLINE_MARGIN: Duration = Duration::from_millis(5);

/// Returns the time at which the engine must have answered a call with this timeout.
pub(super) fn engine_deadline(timeout: Option<Duration>, config: &ServerConfig) -> Instant {
    let time = timeout.unwrap_or(config.deadline_default).min(config.deadline_max);
    Instant::now() + time.saturating_sub(DEADLINE_MARGIN)
}

/// Returns the priority in the metadata of a call; the problem if it is none.
fn priority(headers: &HeaderMap) -> Result<Priority, String> {
    match headers.get(PRIORITY_METADATA).map(|value| value.as_bytes()) {
        None | Some(b"" | b"interactive") => Ok(Priority::Interactive),
        Some(b"batch") => Ok(Priority::Batch),
        Some(other) => {
            let shown: String = String::from_utf8_lossy(other).chars().take(64).collect();
            Err(format!("is `{shown}`; it must be interactive or batch"))
        }
    }
}

/// Returns the priority of a call. An unknown one is a violation.
pub(super) fn priority_of<T>(violations: &mut Violations, request: &Request<T>) -> Priority {
    priority(request.metadata().as_ref()).unwrap_or_else(|description| {
        violations.add(PRIORITY_METADATA, description);
        Priority::default()
    })
}

/// Admits calls to the services of one catalogue.
pub(super) struct Admission {
    engine: Arc<Engine>,
    config: ServerConfig,
}

impl Admission {
    pub(super) fn new(engine: Arc<Engine>, config: ServerConfig) -> Self {
        Self { engine, config }
    }

    /// Refuses a ranking request that the workers cannot answer in time, and counts the refusal. The service refuses
    /// an unknown priority, together with the other violations of the request.
    pub(super) fn check(&self, path: &str, headers: &HeaderMap) -> Result<(), Status> {
        if !path.starts_with(RANKING) {
            return Ok(());
        }
        let timeout = headers.get("grpc-timeout").and_then(|value| timeout(value.to_str().ok()?));
        let deadline = engine_deadline(timeout, &self.config);
        self.engine.admit(priority(headers).unwrap_or_default(), deadline).map_err(|error| {
            let status = status::of(error);
            self.engine.metrics().refused(rpc_of(path), code_name(status.code()));
            call::count();
            status
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_priority_is_one_of_two_names() {
        let of = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(PRIORITY_METADATA, text.parse().unwrap());
            priority(&headers)
        };
        assert_eq!(priority(&HeaderMap::new()), Ok(Priority::Interactive));
        assert_eq!(of(""), Ok(Priority::Interactive));
        assert_eq!(of("interactive"), Ok(Priority::Interactive));
        assert_eq!(of("batch"), Ok(Priority::Batch));
        assert_eq!(of("Batch").unwrap_err(), "is `Batch`; it must be interactive or batch");
        assert!(of(&"x".repeat(5000)).unwrap_err().len() < 120);
    }

    #[test]
    fn the_engine_ends_before_the_caller_and_within_the_limit() {
        let config = ServerConfig::default();
        let left = |timeout| engine_deadline(timeout, &config).saturating_duration_since(Instant::now());
        assert!(left(None) <= config.deadline_default - DEADLINE_MARGIN);
        assert!(left(Some(Duration::from_secs(3600))) <= config.deadline_max - DEADLINE_MARGIN);
        assert!(left(Some(Duration::from_secs(3600))) > config.deadline_max / 2);
        assert_eq!(left(Some(Duration::from_millis(3))), Duration::ZERO);
    }
}
