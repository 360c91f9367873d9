//! Calls in the audit log. [`AUDITED`](super::access::AUDITED) lists their methods.
use super::{
    access::{Audit, audit_of},
    client::client_of,
    guard::code_name,
    services::Services,
    status,
};
use crate::audit::{AuditLog, Call, EntryKind};
use lodestone_telemetry::call;
use std::{future::Future, sync::Arc};
use tonic::{Code, Request, Status};

/// Ids of deleted items in a line.
const LISTED_IDS_MAX: usize = 20;

/// A call for the audit log.
#[derive(Clone)]
pub(super) struct AuditedCall {
    /// None: the server has no audit log.
    log: Option<Arc<AuditLog>>,
    call: Call,
    audit: Audit,
}

impl Services {
    /// Describes a call. `method` is the service and the method, and `resource` what the call is about.
    pub(super) fn audited<T>(
        &self,
        request: &Request<T>,
        method: &'static str,
        resource: impl Into<String>,
    ) -> AuditedCall {
        let client = client_of(request);
        // As in the response and in the log.
        let request_id = call::Call::current().map(|call| call.request_id());
        let call = Call {
            client: client.as_ref().map(|client| client.name.clone()).unwrap_or_default(),
            client_kind: client.as_ref().map_or("none", |client| client.kind.name()),
            method,
            catalog: self.catalog.clone(),
            resource: resource.into(),
            request_id: request_id.unwrap_or_default(),
            dry_run: false,
        };
        AuditedCall { log: self.config.audit.clone(), call, audit: audit_of(method) }
    }
}

impl AuditedCall {
    /// Returns the call with what it is about.
    pub(super) fn about(&self, resource: String) -> Self {
        Self { call: Call { resource, ..self.call.clone() }, ..self.clone() }
    }

    /// Returns the call with whether it asks to change nothing.
    pub(super) fn with_dry_run(mut self, dry_run: bool) -> Self {
        self.call.dry_run = dry_run;
        self
    }

    /// Runs a call and records it. Refuses it if it cannot be recorded: a change before it is made, and the result of a
    /// read instead of returning it.
    pub(super) async fn run<T>(self, response: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
        let Self { log: Some(log), call, audit } = self else { return response.await };
        let begin = match audit {
            Audit::Read => None,
            Audit::Change => {
                let begun = log.write(call.clone(), EntryKind::Begin, "", 0).await;
                Some(begun.map_err(|_| status::audit_failed(false))?)
            }
        };
        let result = response.await;
        let status = code_name(result.as_ref().map_or_else(Status::code, |_| Code::Ok));
        let kind = if begin.is_some() { EntryKind::End } else { EntryKind::Call };
        let ended = log.write(call, kind, status, begin.unwrap_or_default()).await;
        ended.map_err(|_| status::audit_failed(begin.is_some()))?;
        result
    }
}

/// Names the first of some items.
pub(super) fn listed_items(ids: &[String]) -> String {
    let listed: Vec<&str> = ids.iter().take(LISTED_IDS_MAX).map(String::as_str).collect();
    format!("{} items: {}", ids.len(), listed.join(", "))
}
