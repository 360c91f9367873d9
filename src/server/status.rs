//! Builds every status of the server, with its reason as `google.rpc.ErrorInfo`.
use super::{
    CATALOG_METADATA, DEFAULT_CATALOG, RESPONSE_BYTES_MAX, convert::FilterForms, request_bytes_max,
    violations::Violation,
};
use lodestone_engine::{EngineError, EntryKind, PageTokenError, RuleError};
use lodestone_events::LogError;
use lodestone_pipeline::serving::UnknownConfig;
use lodestone_rollout::RolloutError;
use lodestone_rules::RuleProblem;
use std::{collections::HashMap, time::Duration};
use tonic::{Code, Status, metadata::MetadataMap};
use tonic_types::{ErrorDetails, StatusExt};

/// `ErrorInfo.domain` of every status.
const DOMAIN: &str = "lodestone.dev";
/// Key of `ErrorInfo.metadata`: the number of violations that are left out of `BadRequest`.
const OMITTED_VIOLATIONS: &str = "omitted_violations";
/// The path of the field that is wrong; of several the first.
const FIELD: &str = "field";
/// The limit that the value of the field exceeds.
const LIMIT: &str = "limit";
/// The role that the client lacks.
const ROLE: &str = "role";
/// The current `etag` of an entry that was changed.
const CURRENT_ETAG: &str = "current_etag";
/// Greatest length of a value of `ErrorInfo.metadata`.
const METADATA_CHARS_MAX: usize = 200;
/// Greatest size of the message of a status, percent-encoded, in bytes. A status is sent in headers, of which many
/// clients accept 8 KiB in all.
const MESSAGE_BYTES_MAX: usize = 700;
/// Greatest size of the violations of a status in bytes. They are sent in base64, which adds a third.
const VIOLATIONS_BYTES_MAX: usize = 2500;
/// Greatest number of violations in a status.
const VIOLATIONS_MAX: usize = 20;
/// Greatest length of the description of a violation in a status.
const DESCRIPTION_CHARS_MAX: usize = 500;

/// The `ErrorInfo.reason` of a status. docs/errors.md lists the same reasons.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reason {
    InvalidRequest,
    MessageMalformed,
    MessageTooLarge,
    ResponseTooLarge,
    CompressionUnsupported,
    MethodUnknown,
    ServiceUnknown,
    ConnectionFailed,
    RequestIncomplete,
    ApiKeyMissing,
    ApiKeyInvalid,
    TokenInvalid,
    RoleMissing,
    CatalogDenied,
    RateLimited,
    QuotaExceeded,
    AuditFailed,
    PageTokenInvalid,
    PageTokenExpired,
    CatalogNotFound,
    ItemNotFound,
    FeedShrinks,
    ServingConfigNotFound,
    ServingConfigExists,
    ServingConfigReadOnly,
    ServingConfigInUse,
    TooManyServingConfigs,
    IncentiveCampaignNotFound,
    IncentiveCampaignExists,
    TooManyIncentiveCampaigns,
    DecisionExists,
    TooManyDecisions,
    RuleExists,
    RuleNotFound,
    SynonymSetExists,
    SynonymSetNotFound,
    EtagMismatch,
    TooManyRules,
    AttributeNotDeclared,
    AttributeConflict,
    TooManyAttributes,
    AttributionTokenInvalid,
    AnswerNotFound,
    AnswerDamaged,
    GenerationGone,
    LoyaltyModelMissing,
    CostsMissing,
    Overloaded,
    DeadlineExceeded,
    StorageFull,
    StorageFailed,
    LogDisplaced,
    ChangeQuarantined,
    WritesStopped,
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
    const ALL: [Self; 61] = [
        Self::InvalidRequest,
        Self::MessageMalformed,
        Self::MessageTooLarge,
        Self::ResponseTooLarge,
        Self::CompressionUnsupported,
        Self::MethodUnknown,
        Self::ServiceUnknown,
        Self::ConnectionFailed,
        Self::RequestIncomplete,
        Self::ApiKeyMissing,
        Self::ApiKeyInvalid,
        Self::TokenInvalid,
        Self::RoleMissing,
        Self::CatalogDenied,
        Self::RateLimited,
        Self::QuotaExceeded,
        Self::AuditFailed,
        Self::PageTokenInvalid,
        Self::PageTokenExpired,
        Self::CatalogNotFound,
        Self::ItemNotFound,
        Self::FeedShrinks,
        Self::ServingConfigNotFound,
        Self::ServingConfigExists,
        Self::ServingConfigReadOnly,
        Self::ServingConfigInUse,
        Self::TooManyServingConfigs,
        Self::IncentiveCampaignNotFound,
        Self::IncentiveCampaignExists,
        Self::TooManyIncentiveCampaigns,
        Self::DecisionExists,
        Self::TooManyDecisions,
        Self::RuleExists,
        Self::RuleNotFound,
        Self::SynonymSetExists,
        Self::SynonymSetNotFound,
        Self::EtagMismatch,
        Self::TooManyRules,
        Self::AttributeNotDeclared,
        Self::AttributeConflict,
        Self::TooManyAttributes,
        Self::AttributionTokenInvalid,
        Self::AnswerNotFound,
        Self::AnswerDamaged,
        Self::GenerationGone,
        Self::LoyaltyModelMissing,
        Self::CostsMissing,
        Self::Overloaded,
        Self::DeadlineExceeded,
        Self::StorageFull,
        Self::StorageFailed,
        Self::LogDisplaced,
        Self::ChangeQuarantined,
        Self::WritesStopped,
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
            Self::MessageMalformed => "MESSAGE_MALFORMED",
            Self::MessageTooLarge => "MESSAGE_TOO_LARGE",
            Self::ResponseTooLarge => "RESPONSE_TOO_LARGE",
            Self::CompressionUnsupported => "COMPRESSION_UNSUPPORTED",
            Self::MethodUnknown => "METHOD_UNKNOWN",
            Self::ServiceUnknown => "SERVICE_UNKNOWN",
            Self::ConnectionFailed => "CONNECTION_FAILED",
            Self::RequestIncomplete => "REQUEST_INCOMPLETE",
            Self::ApiKeyMissing => "API_KEY_MISSING",
            Self::ApiKeyInvalid => "API_KEY_INVALID",
            Self::TokenInvalid => "TOKEN_INVALID",
            Self::RoleMissing => "ROLE_MISSING",
            Self::CatalogDenied => "CATALOG_DENIED",
            Self::RateLimited => "RATE_LIMITED",
            Self::QuotaExceeded => "QUOTA_EXCEEDED",
            Self::AuditFailed => "AUDIT_FAILED",
            Self::PageTokenInvalid => "PAGE_TOKEN_INVALID",
            Self::PageTokenExpired => "PAGE_TOKEN_EXPIRED",
            Self::CatalogNotFound => "CATALOG_NOT_FOUND",
            Self::ItemNotFound => "ITEM_NOT_FOUND",
            Self::FeedShrinks => "FEED_SHRINKS",
            Self::ServingConfigNotFound => "SERVING_CONFIG_NOT_FOUND",
            Self::ServingConfigExists => "SERVING_CONFIG_EXISTS",
            Self::ServingConfigReadOnly => "SERVING_CONFIG_READ_ONLY",
            Self::ServingConfigInUse => "SERVING_CONFIG_IN_USE",
            Self::TooManyServingConfigs => "TOO_MANY_SERVING_CONFIGS",
            Self::IncentiveCampaignNotFound => "INCENTIVE_CAMPAIGN_NOT_FOUND",
            Self::IncentiveCampaignExists => "INCENTIVE_CAMPAIGN_EXISTS",
            Self::TooManyIncentiveCampaigns => "TOO_MANY_INCENTIVE_CAMPAIGNS",
            Self::DecisionExists => "DECISION_EXISTS",
            Self::TooManyDecisions => "TOO_MANY_DECISIONS",
            Self::RuleExists => "RULE_EXISTS",
            Self::RuleNotFound => "RULE_NOT_FOUND",
            Self::SynonymSetExists => "SYNONYM_SET_EXISTS",
            Self::SynonymSetNotFound => "SYNONYM_SET_NOT_FOUND",
            Self::EtagMismatch => "ETAG_MISMATCH",
            Self::TooManyRules => "TOO_MANY_RULES",
            Self::AttributeNotDeclared => "ATTRIBUTE_NOT_DECLARED",
            Self::AttributeConflict => "ATTRIBUTE_CONFLICT",
            Self::TooManyAttributes => "TOO_MANY_ATTRIBUTES",
            Self::AttributionTokenInvalid => "ATTRIBUTION_TOKEN_INVALID",
            Self::AnswerNotFound => "ANSWER_NOT_FOUND",
            Self::AnswerDamaged => "ANSWER_DAMAGED",
            Self::GenerationGone => "GENERATION_GONE",
            Self::LoyaltyModelMissing => "LOYALTY_MODEL_MISSING",
            Self::CostsMissing => "COSTS_MISSING",
            Self::Overloaded => "OVERLOADED",
            Self::DeadlineExceeded => "DEADLINE_EXCEEDED",
            Self::StorageFull => "STORAGE_FULL",
            Self::StorageFailed => "STORAGE_FAILED",
            Self::LogDisplaced => "LOG_DISPLACED",
            Self::ChangeQuarantined => "CHANGE_QUARANTINED",
            Self::WritesStopped => "WRITES_STOPPED",
            Self::BundleNotFound => "BUNDLE_NOT_FOUND",
            Self::BundleRefused => "BUNDLE_REFUSED",
            Self::BundleIsCurrent => "BUNDLE_IS_CURRENT",
            Self::NoEarlierBundle => "NO_EARLIER_BUNDLE",
            Self::TooManyChanges => "TOO_MANY_CHANGES",
            Self::StoreFailed => "STORE_FAILED",
            Self::Internal => "INTERNAL",
        }
    }

    /// The delay after which a caller should send the request again; none if it would fail again.
    fn retry_after(self) -> Option<Duration> {
        match self {
            Self::Overloaded | Self::ConnectionFailed => Some(Duration::from_millis(100)),
            Self::TooManyChanges | Self::StorageFailed | Self::StoreFailed => Some(Duration::from_secs(1)),
            // The statuses state the time of the client's limit.
            Self::RateLimited | Self::QuotaExceeded | Self::AuditFailed => Some(Duration::from_secs(1)),
            // Until the files of the log are back, or the server restarts.
            Self::LogDisplaced | Self::WritesStopped => Some(Duration::from_secs(10)),
            Self::InvalidRequest
            | Self::MessageMalformed
            | Self::MessageTooLarge
            | Self::ResponseTooLarge
            | Self::CompressionUnsupported
            | Self::MethodUnknown
            | Self::ServiceUnknown
            | Self::RequestIncomplete
            | Self::ApiKeyMissing
            | Self::ApiKeyInvalid
            | Self::TokenInvalid
            | Self::RoleMissing
            | Self::CatalogDenied
            | Self::PageTokenInvalid
            | Self::PageTokenExpired
            | Self::ItemNotFound
            | Self::FeedShrinks
            | Self::CatalogNotFound
            | Self::ServingConfigNotFound
            | Self::ServingConfigExists
            | Self::ServingConfigReadOnly
            | Self::ServingConfigInUse
            | Self::TooManyServingConfigs
            | Self::IncentiveCampaignNotFound
            | Self::IncentiveCampaignExists
            | Self::TooManyIncentiveCampaigns
            | Self::DecisionExists
            | Self::TooManyDecisions
            | Self::RuleExists
            | Self::RuleNotFound
            | Self::SynonymSetExists
            | Self::SynonymSetNotFound
            | Self::EtagMismatch
            | Self::TooManyRules
            | Self::AttributeNotDeclared
            | Self::AttributeConflict
            | Self::TooManyAttributes
            | Self::AttributionTokenInvalid
            | Self::AnswerNotFound
            | Self::AnswerDamaged
            | Self::GenerationGone
            | Self::DeadlineExceeded
            | Self::StorageFull
            | Self::ChangeQuarantined
            | Self::BundleNotFound
            | Self::BundleRefused
            | Self::BundleIsCurrent
            | Self::NoEarlierBundle
            | Self::LoyaltyModelMissing
            | Self::CostsMissing
            | Self::Internal => None,
        }
    }

    /// The gRPC code of statuses with this reason.
    fn code(self) -> Code {
        match self {
            Self::InvalidRequest | Self::MessageMalformed | Self::PageTokenInvalid | Self::AttributionTokenInvalid => {
                Code::InvalidArgument
            }
            Self::PageTokenExpired | Self::EtagMismatch => Code::Aborted,
            Self::RuleExists
            | Self::SynonymSetExists
            | Self::ServingConfigExists
            | Self::IncentiveCampaignExists
            | Self::DecisionExists => Code::AlreadyExists,
            Self::CatalogNotFound
            | Self::ItemNotFound
            | Self::ServingConfigNotFound
            | Self::IncentiveCampaignNotFound
            | Self::RuleNotFound
            | Self::SynonymSetNotFound
            | Self::AttributeNotDeclared
            | Self::AnswerNotFound
            | Self::BundleNotFound
            | Self::ServiceUnknown => Code::NotFound,
            Self::CompressionUnsupported | Self::MethodUnknown => Code::Unimplemented,
            Self::AnswerDamaged => Code::DataLoss,
            Self::FeedShrinks
            | Self::AttributeConflict
            | Self::ServingConfigReadOnly
            | Self::ServingConfigInUse
            | Self::GenerationGone
            | Self::LoyaltyModelMissing
            | Self::CostsMissing
            | Self::BundleRefused
            | Self::BundleIsCurrent
            | Self::NoEarlierBundle => Code::FailedPrecondition,
            Self::Overloaded
            | Self::RateLimited
            | Self::QuotaExceeded
            | Self::StorageFull
            | Self::TooManyChanges
            | Self::TooManyRules
            | Self::TooManyAttributes
            | Self::TooManyServingConfigs
            | Self::TooManyIncentiveCampaigns
            | Self::TooManyDecisions
            | Self::MessageTooLarge
            | Self::ResponseTooLarge => Code::ResourceExhausted,
            Self::ApiKeyMissing | Self::ApiKeyInvalid | Self::TokenInvalid => Code::Unauthenticated,
            Self::RoleMissing | Self::CatalogDenied => Code::PermissionDenied,
            Self::DeadlineExceeded | Self::RequestIncomplete => Code::DeadlineExceeded,
            Self::StorageFailed
            | Self::AuditFailed
            | Self::LogDisplaced
            | Self::WritesStopped
            | Self::StoreFailed
            | Self::ConnectionFailed => Code::Unavailable,
            Self::ChangeQuarantined | Self::Internal => Code::Internal,
        }
    }
}

fn status(reason: Reason, message: impl Into<String>, details: ErrorDetails) -> Status {
    status_about(reason, message, details, [])
}

/// Returns a status with metadata.
fn status_about<const N: usize>(
    reason: Reason,
    message: impl Into<String>,
    mut details: ErrorDetails,
    metadata: [(&str, Option<String>); N],
) -> Status {
    let metadata: HashMap<String, String> = metadata
        .into_iter()
        .filter_map(|(key, value)| Some((key.to_owned(), value?.chars().take(METADATA_CHARS_MAX).collect())))
        .collect();
    details.set_error_info(reason.name(), DOMAIN, metadata);
    if let (None, Some(delay)) = (details.retry_info(), reason.retry_after()) {
        details.set_retry_info(Some(delay));
    }
    Status::with_error_details(reason.code(), bounded_message(message.into()), details)
}

/// Truncates a message to [`MESSAGE_BYTES_MAX`] in percent-encoding, which takes 3 bytes for each byte that is not
/// printable ASCII.
fn bounded_message(mut message: String) -> String {
    let mut bytes = 0;
    let encoded = |c: char| if matches!(c, ' '..='~') && c != '%' { 1 } else { 3 * c.len_utf8() };
    let end = message.char_indices().find(|(_, c)| {
        bytes += encoded(*c);
        bytes > MESSAGE_BYTES_MAX
    });
    if let Some((end, _)) = end {
        message.truncate(end);
        message.push('…');
    }
    message
}

/// Returns INVALID_ARGUMENT with the first [`VIOLATIONS_MAX`] violations, as far as headers may carry them, and the number
/// of those that are left out.
pub(crate) fn invalid(violations: Vec<Violation>) -> Status {
    let message = match &violations[..] {
        [only] => format!("{}: {}", only.field, only.description),
        many => format!("{} fields are invalid; {}: {}", many.len(), many[0].field, many[0].description),
    };
    let first = violations.first();
    let (field, limit) = (first.map(|of| of.field.clone()), first.and_then(|of| of.limit));
    let (count, mut bytes) = (violations.len(), 0);
    let fitting = violations.into_iter().take(VIOLATIONS_MAX).map(|mut violation| {
        if let Some((end, _)) = violation.description.char_indices().nth(DESCRIPTION_CHARS_MAX) {
            violation.description.truncate(end);
            violation.description.push('…');
        }
        violation
    });
    let fitting = fitting.take_while(|violation| {
        bytes += violation.field.len() + violation.description.len();
        bytes <= VIOLATIONS_BYTES_MAX
    });
    let mut details = ErrorDetails::new();
    for violation in fitting {
        details.add_bad_request_violation(violation.field, violation.description);
    }
    let shown = details.bad_request().map_or(0, |request| request.field_violations.len());
    let omitted = (shown < count).then(|| (count - shown).to_string());
    let metadata = [(FIELD, field), (LIMIT, limit.map(|limit| limit.to_string())), (OMITTED_VIOLATIONS, omitted)];
    status_about(Reason::InvalidRequest, message, details, metadata)
}

/// Returns the status of a request that the gRPC library refused, from its status; one with a reason
/// stays. `path` is that of the HTTP request.
pub(crate) fn of_transport(refused: &Status, path: &str) -> Status {
    // Such as a message of a stream that did not arrive in time.
    if !refused.details().is_empty() {
        return refused.clone();
    }
    let text = refused.message();
    let names_encodings = refused.metadata().contains_key("grpc-accept-encoding");
    let limit = request_bytes_max(path);
    let (reason, message) = match refused.code() {
        Code::OutOfRange | Code::ResourceExhausted => (Reason::MessageTooLarge, too_large(text, limit)),
        Code::Internal => (Reason::MessageMalformed, format!("the request is not a valid message: {text}")),
        Code::Unimplemented if names_encodings => {
            (Reason::CompressionUnsupported, format!("{text}; use gzip or no compression"))
        }
        Code::Unimplemented => (Reason::MethodUnknown, format!("the server has no method {path}")),
        Code::NotFound => (Reason::ServiceUnknown, text.to_owned()),
        _ => (Reason::ConnectionFailed, format!("the request did not arrive: {text}")),
    };
    let limit = (reason == Reason::MessageTooLarge).then(|| limit.to_string());
    let status = status_about(reason, message, ErrorDetails::new(), [(LIMIT, limit)]);
    with_metadata(status, refused.metadata())
}

/// Describes a request message that is too large. `text` is the library's message, which has its size unless it is
/// compressed.
fn too_large(text: &str, limit: usize) -> String {
    let mut numbers = text.split_whitespace().filter_map(|word| word.parse::<usize>().ok());
    let size = match numbers.find(|number| *number != limit) {
        Some(bytes) => format!("{bytes} bytes"),
        None => "more bytes".to_owned(),
    };
    format!(
        "the request message has {size}; the limit is {limit} after decompression. Send fewer events or items \
         in one message"
    )
}

/// Adds metadata, such as the list of supported compressions.
fn with_metadata(mut status: Status, metadata: &MetadataMap) -> Status {
    *status.metadata_mut() = metadata.clone();
    status
}

/// Returns the status of a response that is larger than clients accept.
pub(crate) fn response_too_large(bytes: usize) -> Status {
    let message = format!(
        "the response has {bytes} bytes; the limit is {RESPONSE_BYTES_MAX}. Request fewer facets or candidates, or less \
         debug information"
    );
    let limit = Some(RESPONSE_BYTES_MAX.to_string());
    status_about(Reason::ResponseTooLarge, message, ErrorDetails::new(), [(LIMIT, limit)])
}

/// Returns the status of a call without an API key or token.
pub(crate) fn api_key_missing() -> Status {
    let message = "the call has no API key and no token; send it as metadata `authorization: Bearer KEY`";
    status(Reason::ApiKeyMissing, message, ErrorDetails::new())
}

/// Returns the status of a call whose API key is unknown, revoked or expired. Does not say which.
pub(crate) fn api_key_invalid() -> Status {
    status(Reason::ApiKeyInvalid, "the API key is unknown, revoked or expired", ErrorDetails::new())
}

/// Returns the status of a call whose JSON Web Token is refused for a reason.
pub(crate) fn token_invalid(problem: &str) -> Status {
    status(Reason::TokenInvalid, format!("the token {problem}"), ErrorDetails::new())
}

/// Returns the status of a call whose client lacks the role of the method.
pub(crate) fn role_missing(role: &str) -> Status {
    let message = format!("the method needs an API key or a token with the role `{role}`");
    status_about(Reason::RoleMissing, message, ErrorDetails::new(), [(ROLE, Some(role.to_owned()))])
}

/// Returns the status of a request for debug information that its client may not have. `field` has the level.
pub(crate) fn debug_denied(field: &str, role: &str) -> Status {
    let message = format!("{field}: SCORES and FEATURES need an API key or a token with the role `{role}`");
    let metadata = [(ROLE, Some(role.to_owned())), (FIELD, Some(field.to_owned()))];
    status_about(Reason::RoleMissing, message, ErrorDetails::new(), metadata)
}

/// Returns the status of a call whose client may not use the catalogue, whether it exists or not. `is_named` says whether the
/// call names one.
pub(crate) fn catalog_denied(is_named: bool) -> Status {
    let message = match is_named {
        true => format!("the API key or token may not use the catalogue that the metadata `{CATALOG_METADATA}` names"),
        false => format!(
            "the API key or token may not use the catalogue `{DEFAULT_CATALOG}`, which a call without the metadata \
             `{CATALOG_METADATA}` uses; name one that it may use"
        ),
    };
    status(Reason::CatalogDenied, message, ErrorDetails::new())
}

/// Returns the status of a request beyond the rate of its client. There is room for one after `wait`.
pub(crate) fn rate_limited(requests_per_second: f64, wait: Duration) -> Status {
    let message = format!("the client sends more than {requests_per_second} requests per second");
    let details = ErrorDetails::with_retry_info(Some(wait));
    status_about(Reason::RateLimited, message, details, [(LIMIT, Some(requests_per_second.to_string()))])
}

/// Returns the status of a message with `count` changes, of which the quota of its client has room for `left`. The next day
/// begins after `wait`.
pub(crate) fn quota_exceeded(count: usize, left: u64, limit: u64, wait: Duration) -> Status {
    let message = format!(
        "the message has {count} events or items, and the client may change {left} more today; the limit is {limit} per \
         day in UTC"
    );
    let details = ErrorDetails::with_retry_info(Some(wait));
    status_about(Reason::QuotaExceeded, message, details, [(LIMIT, Some(limit.to_string()))])
}

/// Returns the status of a call that the audit log cannot record. `is_done` says whether it may have had an effect.
pub(crate) fn audit_failed(is_done: bool) -> Status {
    let message = match is_done {
        false => "the audit log cannot be written, so the call is refused; see the server's log",
        true => "the audit log cannot be written after the call, which may have had its effect; see the server's log",
    };
    status(Reason::AuditFailed, message, ErrorDetails::new())
}

/// Returns the status of a request whose message did not arrive within `limit`.
pub(crate) fn request_incomplete(limit: Duration) -> Status {
    let message = format!("the request message did not arrive within {} s", limit.as_secs_f64());
    status(Reason::RequestIncomplete, message, ErrorDetails::new())
}

/// Returns the status of a request message of `bytes` for which there is no memory while others arrive.
pub(crate) fn messages_overloaded(bytes: usize) -> Status {
    let message =
        format!("the server has no memory for a request message of {bytes} bytes while other large messages arrive");
    status(Reason::Overloaded, message, ErrorDetails::new())
}

/// Returns the status of a request message that would take `bytes` of memory, which the others have taken.
pub(crate) fn message_memory_overloaded(bytes: usize) -> Status {
    let message = format!(
        "the server has no memory for a request message that takes {bytes} bytes in memory while it handles other large \
         messages"
    );
    status(Reason::Overloaded, message, ErrorDetails::new())
}

/// Returns the status of a request message of `bytes` that would take more than `limit` bytes of memory.
pub(crate) fn message_memory(bytes: usize, limit: usize) -> Status {
    let message = format!(
        "the message of {bytes} bytes has so many parts that it would take more than {} MiB of memory; send fewer events, \
         items or lines in one message",
        limit >> 20
    );
    status_about(Reason::MessageTooLarge, message, ErrorDetails::new(), [(LIMIT, Some(limit.to_string()))])
}

/// Returns the status of a call whose caller's time limit has passed.
pub(crate) fn deadline_exceeded() -> Status {
    of(EngineError::DeadlineExceeded)
}

/// Returns the status of a request to a catalogue that the server does not have. Does not name the others, because callers
/// of one catalogue need not know of them.
pub(crate) fn catalog_not_found(name: &str) -> Status {
    let name: String = name.chars().take(64).collect();
    let message = format!("the server has no catalogue `{name}`, which the metadata `{CATALOG_METADATA}` names");
    let mut details = ErrorDetails::new();
    details.set_resource_info("lodestone.v1.Catalog", name, "", "");
    status(Reason::CatalogNotFound, message, details)
}

pub(crate) fn item_not_found(id: &str) -> Status {
    let message = format!("the catalogue has no item `{id}`");
    let mut details = ErrorDetails::new();
    details.set_resource_info("lodestone.v1.Item", id, "", &message);
    let field = Some("item_id".to_owned());
    status_about(Reason::ItemNotFound, message, details, [(FIELD, field)])
}

/// Returns the status of an unknown entry.
pub(crate) fn entry_not_found(kind: EntryKind, id: &str) -> Status {
    of(EngineError::Rule(RuleError::NotFound { kind, id: id.to_owned() }))
}

/// Returns the field of requests that has an entry of this kind.
fn message_field(kind: EntryKind) -> &'static str {
    match kind {
        EntryKind::Rule => "rule",
        EntryKind::SynonymSet => "synonym_set",
        EntryKind::ServingConfig => "serving_config",
        EntryKind::Attribute => "declaration",
        EntryKind::IncentiveCampaign => "campaign",
    }
}

/// Returns the status of a refused change of an entry.
fn of_rule(error: RuleError) -> Status {
    let message = error.to_string();
    let current = match &error {
        RuleError::Etag { current, .. } => Some(current.clone()),
        _ => None,
    };
    let (reason, kind, id) = match error {
        RuleError::Exists { kind, id } => {
            let reason = match kind {
                EntryKind::Rule => Reason::RuleExists,
                EntryKind::SynonymSet => Reason::SynonymSetExists,
                EntryKind::ServingConfig => Reason::ServingConfigExists,
                // Two callers declared the attribute at the same time.
                EntryKind::Attribute => Reason::EtagMismatch,
                EntryKind::IncentiveCampaign => Reason::IncentiveCampaignExists,
            };
            (reason, kind, id)
        }
        RuleError::NotFound { kind, id } => {
            let reason = match kind {
                EntryKind::Rule => Reason::RuleNotFound,
                EntryKind::SynonymSet => Reason::SynonymSetNotFound,
                EntryKind::ServingConfig => Reason::ServingConfigNotFound,
                EntryKind::Attribute => Reason::AttributeNotDeclared,
                EntryKind::IncentiveCampaign => Reason::IncentiveCampaignNotFound,
            };
            (reason, kind, id)
        }
        RuleError::Etag { kind, id, .. } => (Reason::EtagMismatch, kind, id),
        RuleError::ReadOnly { id } => (Reason::ServingConfigReadOnly, EntryKind::ServingConfig, id),
        RuleError::AttributeConflict { name, .. } => (Reason::AttributeConflict, EntryKind::Attribute, name),
        RuleError::InUse { id, .. } => (Reason::ServingConfigInUse, EntryKind::ServingConfig, id),
        RuleError::Invalid { kind, problems } => {
            let violation = |RuleProblem { field, description, .. }: RuleProblem| {
                Violation::new(format_args!("{}.{field}", message_field(kind)), description)
            };
            return invalid(problems.into_iter().map(violation).collect());
        }
        RuleError::TooMany { kind, limit, .. } => {
            let reason = match kind {
                EntryKind::ServingConfig => Reason::TooManyServingConfigs,
                EntryKind::Attribute => Reason::TooManyAttributes,
                EntryKind::IncentiveCampaign => Reason::TooManyIncentiveCampaigns,
                EntryKind::Rule | EntryKind::SynonymSet => Reason::TooManyRules,
            };
            return status_about(reason, message, ErrorDetails::new(), [(LIMIT, Some(limit.to_string()))]);
        }
        RuleError::TooManyRegexes { limit, .. } => {
            let limit = Some(limit.to_string());
            return status_about(Reason::TooManyRules, message, ErrorDetails::new(), [(LIMIT, limit)]);
        }
    };
    let mut details = ErrorDetails::new();
    let message_type = match kind {
        EntryKind::Rule => "lodestone.v1.Rule",
        EntryKind::SynonymSet => "lodestone.v1.SynonymSet",
        EntryKind::ServingConfig => "lodestone.v1.ServingConfig",
        EntryKind::Attribute => "lodestone.v1.AttributeDeclaration",
        EntryKind::IncentiveCampaign => "lodestone.v1.IncentiveCampaign",
    };
    // A text that is no id may have any length.
    details.set_resource_info(message_type, id.chars().take(64).collect::<String>(), "", "");
    status_about(reason, message, details, [(CURRENT_ETAG, current)])
}

/// Returns the status of a full feed that would delete too much of the catalogue.
pub(crate) fn feed_shrinks(missing_count: usize, item_count: usize, share_max: f64) -> Status {
    let message = format!(
        "the feed lacks {missing_count} of {item_count} items, {:.1} % of the catalogue; options.deleted_share_max is \
         {share_max}. Its items are written and none is deleted. If the shop has shrunk, send the feed with a larger share",
        100.0 * missing_count as f64 / item_count.max(1) as f64
    );
    let metadata = [(FIELD, Some("options.deleted_share_max".to_owned())), (LIMIT, Some(share_max.to_string()))];
    status_about(Reason::FeedShrinks, message, ErrorDetails::new(), metadata)
}

/// Returns the status of an engine error of a request, whose fields the error may name.
pub(crate) fn of_request(error: EngineError, forms: &FilterForms) -> Status {
    let field = match &error {
        EngineError::MixedCurrencies { field, .. } => forms.path(*field),
        EngineError::NotFacetable { index, .. } => format!("facet_specs[{index}].field"),
        _ => return of(error),
    };
    invalid(vec![Violation::new(field, error.to_string())])
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
            let field = Some("page_token".to_owned());
            status_about(Reason::PageTokenExpired, format!("page_token {message}"), none(), [(FIELD, field)])
        }
        EngineError::PageToken(PageTokenError::Foreign | PageTokenError::OtherRequest) => {
            let details = ErrorDetails::with_bad_request_violation("page_token", &message);
            let field = Some("page_token".to_owned());
            status_about(Reason::PageTokenInvalid, format!("page_token {message}"), details, [(FIELD, field)])
        }
        EngineError::ServingConfig(unknown) => unknown_serving_config("options.serving_config", unknown),
        EngineError::MixedCurrencies { .. } | EngineError::NotFacetable { .. } => {
            of_request(error, &FilterForms::default())
        }
        EngineError::AttributionToken => {
            let details = ErrorDetails::with_bad_request_violation("attribution_token", &message);
            let message = format!("attribution_token {message}");
            let field = Some("attribution_token".to_owned());
            status_about(Reason::AttributionTokenInvalid, message, details, [(FIELD, field)])
        }
        EngineError::AnswerNotFound => status(Reason::AnswerNotFound, message, none()),
        EngineError::GenerationGone { .. } => status(Reason::GenerationGone, message, none()),
        EngineError::LoyaltyMissing { .. } => status(Reason::LoyaltyModelMissing, message, none()),
        EngineError::CostsMissing => status(Reason::CostsMissing, message, none()),
        EngineError::DecisionExists { .. } => {
            let field = Some("decision_id".to_owned());
            status_about(Reason::DecisionExists, message, none(), [(FIELD, field)])
        }
        EngineError::TooManyDecisions { limit } => {
            status_about(Reason::TooManyDecisions, message, none(), [(LIMIT, Some(limit.to_string()))])
        }
        EngineError::Replay(_) => status(Reason::AnswerDamaged, message, none()),
        EngineError::Answers(error) => {
            tracing::error!(%error, "the answer log cannot be read");
            status(Reason::StorageFailed, message, none())
        }
        EngineError::Rule(error) => of_rule(error),
        EngineError::Log(error) => of_log(&error),
        EngineError::Internal(text) => {
            tracing::error!(text, "internal error");
            status(Reason::Internal, "internal error; see the server's log", none())
        }
    }
}

/// Returns the status of a request whose field names a serving configuration that does not exist.
pub(crate) fn unknown_serving_config(field: &str, unknown: UnknownConfig) -> Status {
    let message = format!("{field}: {unknown}");
    let mut details = ErrorDetails::new();
    details.set_resource_info("lodestone.v1.ServingConfig", unknown.name, "", "there is none of this name");
    status_about(Reason::ServingConfigNotFound, message, details, [(FIELD, Some(field.to_owned()))])
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
        RolloutError::Busy => status(Reason::TooManyChanges, message, details),
        RolloutError::Deadline => status(Reason::DeadlineExceeded, message, details),
        RolloutError::Ended => of(EngineError::Internal(message)),
    }
}

fn of_log(error: &LogError) -> Status {
    match error {
        LogError::Overloaded => status(Reason::Overloaded, error.to_string(), ErrorDetails::new()),
        LogError::Quarantined { .. } => status(Reason::ChangeQuarantined, error.to_string(), ErrorDetails::new()),
        LogError::Stopped | LogError::Stopping { .. } => {
            let message = "the server takes no more writes after a failure; see its log, and restart it";
            status(Reason::WritesStopped, message, ErrorDetails::new())
        }
        LogError::Full => {
            status(Reason::StorageFull, format!("{}; nothing was stored", LogError::Full), ErrorDetails::new())
        }
        LogError::Displaced { path } => {
            // Callers need not know where files are; the log of the server has the path.
            let error = LogError::Displaced { path: path.file_name().unwrap_or_default().into() };
            status(Reason::LogDisplaced, format!("nothing was stored: {error}"), ErrorDetails::new())
        }
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
    fn a_denied_catalogue_is_that_of_the_metadata_or_the_default_one() {
        let message = |is_named| catalog_denied(is_named).message().to_owned();
        assert!(message(true).ends_with("that the metadata `lodestone-catalog` names"), "{}", message(true));
        assert!(message(false).contains("the catalogue `default`, which a call without"), "{}", message(false));
    }

    #[test]
    fn the_document_says_to_retry_exactly_the_errors_with_a_delay() {
        let document = include_str!("../../docs/errors.md");
        for reason in Reason::ALL {
            let row = document.lines().find(|line| line.starts_with(&format!("| `{}` |", reason.name()))).unwrap();
            assert_eq!(row.contains("`RetryInfo`"), reason.retry_after().is_some(), "{row}");
            let status = status(reason, "", ErrorDetails::new());
            let delay = status.get_error_details().retry_info().and_then(|info| info.retry_delay);
            assert_eq!(delay, reason.retry_after());
            assert!(reason.code() != Code::Unavailable || delay.is_some(), "{row}");
        }
    }

    #[test]
    fn all_violations_are_returned() {
        let violation = |field: &str| Violation::new(field, "is wrong");
        let status = invalid(vec![Violation { limit: Some(7), ..violation("a") }, violation("b")]);
        let metadata = status.get_error_details().error_info().unwrap().metadata.clone();
        let expected = [("field", "a"), ("limit", "7")].map(|(key, value)| (key.to_owned(), value.to_owned()));
        assert_eq!(metadata, HashMap::from(expected));
        let details = status.get_error_details();
        assert_eq!(details.bad_request().map(|request| request.field_violations.len()), Some(2));
        assert_eq!(details.error_info().map(|info| info.reason.as_str()), Some("INVALID_REQUEST"));
    }

    #[test]
    fn a_status_fits_into_the_headers_that_clients_accept() {
        let of_size = |count: usize, description: String| {
            let violation = |index| Violation::new(format_args!("field[{index}]"), description.clone());
            invalid((0..count).map(violation).collect())
        };
        for status in
            [of_size(1000, "is wrong".to_owned()), of_size(3, "é".repeat(100_000)), of_size(1, "é".repeat(9000))]
        {
            let headers = status.clone().into_http::<()>().into_parts().0.headers;
            // HTTP/2 counts 32 bytes for each header in addition to name and value.
            let bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 32).sum();
            assert!(bytes <= 8192, "{bytes} bytes");
            let details = status.get_error_details();
            let (info, request) = (details.error_info().unwrap(), details.bad_request().unwrap());
            assert_eq!(info.reason, "INVALID_REQUEST");
            assert!(!request.field_violations.is_empty());
            let omitted = info.metadata.get(OMITTED_VIOLATIONS).map_or(0, |count| count.parse::<usize>().unwrap());
            assert!(request.field_violations.len() <= VIOLATIONS_MAX);
            assert!([1, 3, 1000].contains(&(request.field_violations.len() + omitted)));
        }
    }

    #[test]
    fn a_status_names_files_without_their_directories() {
        let path = std::path::PathBuf::from("/srv/secret/log/00000000000000000001.log");
        let io = || std::sync::Arc::new(std::io::Error::from(std::io::ErrorKind::PermissionDenied));
        let displaced = of(EngineError::Log(LogError::Displaced { path: path.clone() }));
        assert!(
            displaced.message().starts_with("nothing was stored: 00000000000000000001.log is no longer"),
            "{displaced}"
        );
        for error in [
            LogError::Displaced { path: path.clone() },
            LogError::Open { path: path.clone(), source: io() },
            LogError::InUse { path: path.clone() },
            LogError::Damaged { path: path.clone(), offset: 1, position: 1, reason: "a checksum".into() },
            LogError::EndMissing { log: path.clone(), checkpoint: path.clone(), until: 2, last: 1 },
            LogError::Stopping { reason: path.display().to_string().into() },
        ] {
            let status = of(EngineError::Log(error));
            assert!(!status.message().contains("secret"), "{status}");
        }
    }

    #[test]
    fn internal_errors_are_not_returned() {
        assert!(!of(EngineError::Internal("secret".to_owned())).message().contains("secret"));
    }
}
