//! Which services take requests. `grpc.health.v1` and the probes over HTTP read the same statuses.
use parking_lot::Mutex;
use std::{collections::BTreeMap, sync::Arc};
use tonic::Request;
use tonic_health::{
    pb::{
        HealthCheckRequest,
        health_check_response::ServingStatus,
        health_server::{Health as _, HealthServer},
    },
    server::{HealthReporter, HealthService},
};

/// The health of a server.
#[derive(Clone, Debug, Default)]
pub struct Health {
    reporter: HealthReporter,
    /// Why services do not take requests, by subject.
    reasons: Arc<Mutex<BTreeMap<String, &'static str>>>,
}

impl Health {
    /// Returns the reporter that sets the statuses of services.
    pub(super) fn reporter(&self) -> &HealthReporter {
        &self.reporter
    }

    /// Returns the service `grpc.health.v1`.
    pub(super) fn service(&self) -> HealthServer<HealthService> {
        HealthServer::new(HealthService::from_health_reporter(self.reporter.clone()))
    }

    /// Notes why a subject does not take requests. Callers without a key read it, so it names no files.
    pub(super) fn note(&self, subject: String, reason: &'static str) {
        self.reasons.lock().insert(subject, reason);
    }

    /// Removes the reason of a subject.
    pub(super) fn clear(&self, subject: &str) {
        self.reasons.lock().remove(subject);
    }

    /// Returns the reasons, each with its subject.
    pub(super) fn reasons(&self) -> Vec<String> {
        self.reasons.lock().iter().map(|(subject, reason)| format!("{subject}: {reason}")).collect()
    }

    /// Returns whether a service is SERVING, as `grpc.health.v1` answers; the empty name is that of the whole server.
    /// None: there is no such service.
    pub(super) async fn is_serving(&self, service: &str) -> Option<bool> {
        let health = HealthService::from_health_reporter(self.reporter.clone());
        let checked = health.check(Request::new(HealthCheckRequest { service: service.to_owned() })).await;
        Some(checked.ok()?.into_inner().status() == ServingStatus::Serving)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic_health::ServingStatus;

    #[tokio::test]
    async fn statuses_are_those_of_grpc_and_reasons_are_kept_until_they_are_cleared() {
        let health = Health::default();
        health.reporter().set_service_status("writes", ServingStatus::NotServing).await;
        health.reporter().set_service_status("", ServingStatus::Serving).await;
        assert_eq!(health.is_serving("").await, Some(true));
        assert_eq!(health.clone().is_serving("writes").await, Some(false));
        assert_eq!(health.is_serving("none").await, None);
        health.note("catalogue outlet".to_owned(), "its log is away");
        health.note("server".to_owned(), "it is stopping");
        health.clear("server");
        assert_eq!(health.clone().reasons(), ["catalogue outlet: its log is away"]);
    }
}
