//! The one place where statuses are made.
use super::violations::Violation;
use lodestone_engine::{EngineError, PageTokenError};
use lodestone_events::LogError;
use lodestone_rollout::RolloutError;
use std::{collections::HashMap, time::Duration};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

const DOMAIN: &str = "lodestone";

/// Every reason that a status can carry; `docs/errors.md` lists the same.
pub const REASONS: [&str; 19] = [
    "INVALID_REQUEST",
    "PAGE_TOKEN_INVALID",
    "PAGE_TOKEN_EXPIRED",
    "ITEM_NOT_FOUND",
    "SERVING_CONFIG_NOT_FOUND",
    "ATTRIBUTION_TOKEN_INVALID",
    "ANSWER_NOT_FOUND",
    "ANSWER_DAMAGED",
    "GENERATION_GONE",
    "OVERLOADED",
    "DEADLINE_EXCEEDED",
    "STORAGE_FULL",
    "STORAGE_FAILED",
    "BUNDLE_NOT_FOUND",
    "BUNDLE_REFUSED",
    "BUNDLE_IS_CURRENT",
    "NO_EARLIER_BUNDLE",
    "STORE_FAILED",
    "INTERNAL",
];

fn status(code: Code, reason: &str, message: impl Into<String>, mut details: ErrorDetails) -> Status {
    details.set_error_info(reason, DOMAIN, HashMap::new());
    Status::with_error_details(code, message, details)
}

/// INVALID_ARGUMENT with every violation.
pub(super) fn invalid(violations: Vec<Violation>) -> Status {
    let message = match &violations[..] {
        [only] => format!("{}: {}", only.field, only.description),
        many => format!("{} fields cannot be taken", many.len()),
    };
    let mut details = ErrorDetails::new();
    for violation in violations {
        details.add_bad_request_violation(violation.field, violation.description);
    }
    status(Code::InvalidArgument, "INVALID_REQUEST", message, details)
}

pub(super) fn item_not_found(id: &str) -> Status {
    let mut details = ErrorDetails::new();
    details.set_resource_info("lodestone.v1.Item", id, "", "the catalogue has no such item");
    status(Code::NotFound, "ITEM_NOT_FOUND", "the catalogue has no such item", details)
}

/// The status of an engine's error. Internal texts are logged, not told.
pub(super) fn of(error: EngineError) -> Status {
    let message = error.to_string();
    let none = ErrorDetails::new;
    match error {
        EngineError::Overloaded { retry_after } => {
            status(Code::ResourceExhausted, "OVERLOADED", message, ErrorDetails::with_retry_info(Some(retry_after)))
        }
        EngineError::DeadlineExceeded => status(Code::DeadlineExceeded, "DEADLINE_EXCEEDED", message, none()),
        EngineError::PageToken(PageTokenError::Expired) => {
            status(Code::Aborted, "PAGE_TOKEN_EXPIRED", format!("page_token {message}"), none())
        }
        EngineError::PageToken(PageTokenError::Foreign | PageTokenError::OtherRequest) => {
            let details = ErrorDetails::with_bad_request_violation("page_token", &message);
            status(Code::InvalidArgument, "PAGE_TOKEN_INVALID", format!("page_token {message}"), details)
        }
        EngineError::ServingConfig(unknown) => {
            let mut details = none();
            details.set_resource_info("lodestone.v1.ServingConfig", unknown.name, "", &message);
            status(Code::NotFound, "SERVING_CONFIG_NOT_FOUND", format!("options.serving_config: {message}"), details)
        }
        EngineError::AttributionToken => {
            let details = ErrorDetails::with_bad_request_violation("attribution_token", &message);
            let message = format!("attribution_token {message}");
            status(Code::InvalidArgument, "ATTRIBUTION_TOKEN_INVALID", message, details)
        }
        EngineError::AnswerNotFound => status(Code::NotFound, "ANSWER_NOT_FOUND", message, none()),
        EngineError::GenerationGone { .. } => status(Code::FailedPrecondition, "GENERATION_GONE", message, none()),
        EngineError::Replay(_) => status(Code::DataLoss, "ANSWER_DAMAGED", message, none()),
        EngineError::Answers(error) => {
            tracing::error!(%error, "the log of answers cannot be read");
            status(Code::Unavailable, "STORAGE_FAILED", message, none())
        }
        EngineError::Log(error) => of_log(&error),
        EngineError::Internal(text) => {
            tracing::error!(text, "internal error");
            status(Code::Internal, "INTERNAL", "internal error; the server's log tells more", none())
        }
    }
}

/// The status of a change of models that did not happen.
pub(super) fn of_rollout(error: RolloutError) -> Status {
    let message = error.to_string();
    let mut details = ErrorDetails::new();
    match error {
        RolloutError::Unknown { name } => {
            details.set_resource_info("lodestone.v1.Bundle", name, "", &message);
            status(Code::NotFound, "BUNDLE_NOT_FOUND", message, details)
        }
        RolloutError::Refused { .. } => status(Code::FailedPrecondition, "BUNDLE_REFUSED", message, details),
        RolloutError::IsCurrent { .. } => status(Code::FailedPrecondition, "BUNDLE_IS_CURRENT", message, details),
        RolloutError::NothingKept => status(Code::FailedPrecondition, "NO_EARLIER_BUNDLE", message, details),
        RolloutError::Store(_) => status(Code::Unavailable, "STORE_FAILED", message, details),
        RolloutError::Busy => {
            details.set_retry_info(Some(Duration::from_secs(1)));
            status(Code::ResourceExhausted, "TOO_MANY_CHANGES", message, details)
        }
        RolloutError::Deadline => status(Code::DeadlineExceeded, "DEADLINE_EXCEEDED", message, details),
        RolloutError::Ended => of(EngineError::Internal(message)),
    }
}

fn of_log(error: &LogError) -> Status {
    match error {
        LogError::Overloaded => {
            let details = ErrorDetails::with_retry_info(Some(Duration::from_millis(100)));
            status(Code::ResourceExhausted, "OVERLOADED", error.to_string(), details)
        }
        LogError::Full => {
            status(Code::ResourceExhausted, "STORAGE_FULL", "the disk is full; nothing was stored", ErrorDetails::new())
        }
        error => {
            tracing::error!(%error, "the event log failed");
            status(Code::Unavailable, "STORAGE_FAILED", "the event log failed; nothing was stored", ErrorDetails::new())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_lists_every_reason() {
        let document = include_str!("../../docs/errors.md");
        for reason in REASONS {
            assert!(document.contains(&format!("`{reason}`")), "docs/errors.md lacks {reason}");
        }
    }

    #[test]
    fn several_violations_come_at_once() {
        let violation = |field: &str| Violation { field: field.to_owned(), description: "is wrong".to_owned() };
        let status = invalid(vec![violation("a"), violation("b")]);
        let details = status.get_error_details();
        assert_eq!(details.bad_request().map(|request| request.field_violations.len()), Some(2));
        assert_eq!(details.error_info().map(|info| info.reason.as_str()), Some("INVALID_REQUEST"));
    }

    #[test]
    fn internal_texts_are_not_told() {
        assert!(!of(EngineError::Internal("secret".to_owned())).message().contains("secret"));
    }
}
