//! Builds every status of the server, with its reason as `google.rpc.ErrorInfo`.
use super::violations::Violation;
use lodestone_engine::{EngineError, PageTokenError};
use lodestone_events::LogError;
use lodestone_rollout::RolloutError;
use std::{collections::HashMap, time::Duration};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

const DOMAIN: &str = "lodestone";

/// The `ErrorInfo.reason` of a status. docs/errors.md lists the same reasons.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reason {
    InvalidRequest,
    PageTokenInvalid,
    PageTokenExpired,
    ItemNotFound,
    ServingConfigNotFound,
    AttributionTokenInvalid,
    AnswerNotFound,
    AnswerDamaged,
    GenerationGone,
    Overloaded,
    DeadlineExceeded,
    StorageFull,
    StorageFailed,
    BundleNotFound,
    BundleRefused,
    BundleIsCurrent,
    NoEarlierBundle,
    TooManyChanges,
    StoreFailed,
    Internal,
}

impl Reason {
    #[cfg(test)]
    const ALL: [Self; 20] = [
        Self::InvalidRequest,
        Self::PageTokenInvalid,
        Self::PageTokenExpired,
        Self::ItemNotFound,
        Self::ServingConfigNotFound,
        Self::AttributionTokenInvalid,
        Self::AnswerNotFound,
        Self::AnswerDamaged,
        Self::GenerationGone,
        Self::Overloaded,
        Self::DeadlineExceeded,
        Self::StorageFull,
        Self::StorageFailed,
        Self::BundleNotFound,
        Self::BundleRefused,
        Self::BundleIsCurrent,
        Self::NoEarlierBundle,
        Self::TooManyChanges,
        Self::StoreFailed,
        Self::Internal,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::InvalidRequest => "INVALID_REQUEST",
            Self::PageTokenInvalid => "PAGE_TOKEN_INVALID",
            Self::PageTokenExpired => "PAGE_TOKEN_EXPIRED",
            Self::ItemNotFound => "ITEM_NOT_FOUND",
            Self::ServingConfigNotFound => "SERVING_CONFIG_NOT_FOUND",
            Self::AttributionTokenInvalid => "ATTRIBUTION_TOKEN_INVALID",
            Self::AnswerNotFound => "ANSWER_NOT_FOUND",
            Self::AnswerDamaged => "ANSWER_DAMAGED",
            Self::GenerationGone => "GENERATION_GONE",
            Self::Overloaded => "OVERLOADED",
            Self::DeadlineExceeded => "DEADLINE_EXCEEDED",
            Self::StorageFull => "STORAGE_FULL",
            Self::StorageFailed => "STORAGE_FAILED",
            Self::BundleNotFound => "BUNDLE_NOT_FOUND",
            Self::BundleRefused => "BUNDLE_REFUSED",
            Self::BundleIsCurrent => "BUNDLE_IS_CURRENT",
            Self::NoEarlierBundle => "NO_EARLIER_BUNDLE",
            Self::TooManyChanges => "TOO_MANY_CHANGES",
            Self::StoreFailed => "STORE_FAILED",
            Self::Internal => "INTERNAL",
        }
    }

    /// The gRPC code of statuses with this reason.
    fn code(self) -> Code {
        match self {
            Self::InvalidRequest | Self::PageTokenInvalid | Self::AttributionTokenInvalid => Code::InvalidArgument,
            Self::PageTokenExpired => Code::Aborted,
            Self::ItemNotFound | Self::ServingConfigNotFound | Self::AnswerNotFound | Self::BundleNotFound => {
                Code::NotFound
            }
            Self::AnswerDamaged => Code::DataLoss,
            Self::GenerationGone | Self::BundleRefused | Self::BundleIsCurrent | Self::NoEarlierBundle => {
                Code::FailedPrecondition
            }
            Self::Overloaded | Self::StorageFull | Self::TooManyChanges => Code::ResourceExhausted,
            Self::DeadlineExceeded => Code::DeadlineExceeded,
            Self::StorageFailed | Self::StoreFailed => Code::Unavailable,
            Self::Internal => Code::Internal,
        }
    }
}

fn status(reason: Reason, message: impl Into<String>, mut details: ErrorDetails) -> Status {
    details.set_error_info(reason.name(), DOMAIN, HashMap::new());
    Status::with_error_details(reason.code(), message, details)
}

/// Returns INVALID_ARGUMENT with all violations.
pub(crate) fn invalid(violations: Vec<Violation>) -> Status {
    let message = match &violations[..] {
        [only] => format!("{}: {}", only.field, only.description),
        many => format!("{} fields are invalid", many.len()),
    };
    let mut details = ErrorDetails::new();
    for violation in violations {
        details.add_bad_request_violation(violation.field, violation.description);
    }
    status(Reason::InvalidRequest, message, details)
}

pub(crate) fn item_not_found(id: &str) -> Status {
    let mut details = ErrorDetails::new();
    details.set_resource_info("lodestone.v1.Item", id, "", "the catalogue has no such item");
    status(Reason::ItemNotFound, "the catalogue has no such item", details)
}

/// Returns the status of an engine error. Details of internal errors are logged and not returned.
pub(crate) fn of(error: EngineError) -> Status {
    let message = error.to_string();
    let none = ErrorDetails::new;
    match error {
        EngineError::Overloaded { retry_after } => {
            status(Reason::Overloaded, message, ErrorDetails::with_retry_info(Some(retry_after)))
        }
        EngineError::DeadlineExceeded => status(Reason::DeadlineExceeded, message, none()),
        EngineError::PageToken(PageTokenError::Expired) => {
            status(Reason::PageTokenExpired, format!("page_token {message}"), none())
        }
        EngineError::PageToken(PageTokenError::Foreign | PageTokenError::OtherRequest) => {
            let details = ErrorDetails::with_bad_request_violation("page_token", &message);
            status(Reason::PageTokenInvalid, format!("page_token {message}"), details)
        }
        EngineError::ServingConfig(unknown) => {
            let mut details = none();
            details.set_resource_info("lodestone.v1.ServingConfig", unknown.name, "", &message);
            status(Reason::ServingConfigNotFound, format!("options.serving_config: {message}"), details)
        }
        EngineError::AttributionToken => {
            let details = ErrorDetails::with_bad_request_violation("attribution_token", &message);
            let message = format!("attribution_token {message}");
            status(Reason::AttributionTokenInvalid, message, details)
        }
        EngineError::AnswerNotFound => status(Reason::AnswerNotFound, message, none()),
        EngineError::GenerationGone { .. } => status(Reason::GenerationGone, message, none()),
        EngineError::Replay(_) => status(Reason::AnswerDamaged, message, none()),
        EngineError::Answers(error) => {
            tracing::error!(%error, "the answer log cannot be read");
            status(Reason::StorageFailed, message, none())
        }
        EngineError::Log(error) => of_log(&error),
        EngineError::Internal(text) => {
            tracing::error!(text, "internal error");
            status(Reason::Internal, "internal error; see the server's log", none())
        }
    }
}

/// Returns the status of a failed change of the serving bundles.
pub(crate) fn of_rollout(error: RolloutError) -> Status {
    let message = error.to_string();
    let mut details = ErrorDetails::new();
    match error {
        RolloutError::Unknown { name } => {
            details.set_resource_info("lodestone.v1.Bundle", name, "", &message);
            status(Reason::BundleNotFound, message, details)
        }
        RolloutError::Refused { .. } => status(Reason::BundleRefused, message, details),
        RolloutError::IsCurrent { .. } => status(Reason::BundleIsCurrent, message, details),
        RolloutError::NoEarlierBundle => status(Reason::NoEarlierBundle, message, details),
        RolloutError::Store(_) => status(Reason::StoreFailed, message, details),
        RolloutError::Busy => {
            details.set_retry_info(Some(Duration::from_secs(1)));
            status(Reason::TooManyChanges, message, details)
        }
        RolloutError::Deadline => status(Reason::DeadlineExceeded, message, details),
        RolloutError::Ended => of(EngineError::Internal(message)),
    }
}

fn of_log(error: &LogError) -> Status {
    match error {
        LogError::Overloaded => {
            let details = ErrorDetails::with_retry_info(Some(Duration::from_millis(100)));
            status(Reason::Overloaded, error.to_string(), details)
        }
        LogError::Full => status(Reason::StorageFull, "the disk is full; nothing was stored", ErrorDetails::new()),
        error => {
            tracing::error!(%error, "the event log failed");
            status(Reason::StorageFailed, "the event log failed; nothing was stored", ErrorDetails::new())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::guard::code_name;
    use std::collections::BTreeSet;

    #[test]
    fn the_document_lists_exactly_the_reasons_with_their_codes() {
        // Rows of the form | `REASON` | CODE | ….
        let document = include_str!("../../docs/errors.md");
        let rows = document.lines().filter_map(|line| {
            let mut cells = line.split('|').map(str::trim).skip(1);
            let reason = cells.next()?.strip_prefix('`')?.strip_suffix('`')?;
            let code = cells.next()?.trim_matches('`');
            (!code.is_empty() && code.chars().all(|c| c.is_ascii_uppercase() || c == '_')).then_some((reason, code))
        });
        let listed: BTreeSet<(&str, &str)> = rows.collect();
        let reasons: BTreeSet<(&str, &str)> =
            Reason::ALL.iter().map(|reason| (reason.name(), code_name(reason.code()))).collect();
        assert_eq!(listed, reasons);
    }

    #[test]
    fn all_violations_are_returned() {
        let violation = |field: &str| Violation { field: field.to_owned(), description: "is wrong".to_owned() };
        let status = invalid(vec![violation("a"), violation("b")]);
        let details = status.get_error_details();
        assert_eq!(details.bad_request().map(|request| request.field_violations.len()), Some(2));
        assert_eq!(details.error_info().map(|info| info.reason.as_str()), Some("INVALID_REQUEST"));
    }

    #[test]
    fn internal_errors_are_not_returned() {
        assert!(!of(EngineError::Internal("secret".to_owned())).message().contains("secret"));
    }
}
