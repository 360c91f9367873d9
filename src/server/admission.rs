//! Admission of calls before anything of them is read: their priority, and the refusal of ranking requests that the
//! workers cannot answer in time. A refusal costs neither the memory nor the time of a message, so that a server with
//! several times the load that it can answer spends its time on answers.
use super::{
    ServerConfig, deadline::handler_deadline, guard::code_name, status, transport::rpc_of, violations::Violations,
};
use http::HeaderMap;
use lodestone_engine::Engine;
use lodestone_pipeline::Priority;
use lodestone_telemetry::call;
use std::sync::Arc;
use tonic::{Request, Status};

/// The metadata of a call of RankingService that states its priority. Absent or empty: `interactive`.
pub const PRIORITY_METADATA: &str = "lodestone-priority";
/// The calls that only the workers answer.
const RANKING: &str = "/lodestone.v1.RankingService/";

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
        let deadline = handler_deadline(headers, self.config.deadline_default, self.config.deadline_max);
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
}
