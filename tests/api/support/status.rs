//! The details of statuses.
use tonic::{Code, Status};
use tonic_types::StatusExt;

/// The code and the `ErrorInfo.reason` of a status.
pub(crate) fn reason(status: &Status) -> (Code, String) {
    (status.code(), status.get_error_details().error_info().map_or(String::new(), |info| info.reason.clone()))
}

/// The fields and descriptions of a refused request or of a refused page token.
pub(crate) fn violations(status: &Status) -> Vec<(String, String)> {
    let (code, reason) = reason(status);
    assert!(
        code == Code::InvalidArgument && ["INVALID_REQUEST", "PAGE_TOKEN_INVALID"].contains(&&*reason),
        "{status:?}"
    );
    let details = status.get_error_details();
    let found = details.bad_request().map_or(&[][..], |request| &request.field_violations);
    found.iter().map(|violation| (violation.field.clone(), violation.description.clone())).collect()
}
