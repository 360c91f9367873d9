//! The deadline of a call.
use http::HeaderMap;
use std::time::{Duration, Instant};

/// The server ends a call this much before the caller's deadline, so that the caller receives the server's status. tonic
/// would end it at the deadline as CANCELLED.
const CALL_MARGIN: Duration = Duration::from_millis(2);
/// A handler ends this much before the caller's deadline, so that its status, which says more, precedes the end of the call.
const HANDLER_MARGIN: Duration = Duration::from_millis(5);

/// Returns the time after which the server ends a call. None if the caller sets no timeout.
pub(super) fn call_time(headers: &HeaderMap) -> Option<Duration> {
    Some(timeout_of(headers)?.saturating_sub(CALL_MARGIN))
}

/// Returns the time at which the handler of a call must have answered. The caller's timeout, `default` without one, is
/// limited to `max`.
pub(super) fn handler_deadline(headers: &HeaderMap, default: Duration, max: Duration) -> Instant {
    Instant::now() + timeout_of(headers).unwrap_or(default).min(max).saturating_sub(HANDLER_MARGIN)
}

fn timeout_of(headers: &HeaderMap) -> Option<Duration> {
    headers.get("grpc-timeout").and_then(|value| timeout(value.to_str().ok()?))
}

/// Parses `grpc-timeout`: up to 8 digits and a unit.
fn timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let amount: u64 = digits.parse().ok().filter(|_| digits.len() <= 8)?;
    Some(match unit {
        "H" => Duration::from_secs(amount * 3600),
        "M" => Duration::from_secs(amount * 60),
        "S" => Duration::from_secs(amount),
        "m" => Duration::from_millis(amount),
        "u" => Duration::from_micros(amount),
        "n" => Duration::from_nanos(amount),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(timeout: &str) -> HeaderMap {
        HeaderMap::from_iter([(http::HeaderName::from_static("grpc-timeout"), timeout.parse().unwrap())])
    }

    #[test]
    fn grpc_timeouts_are_parsed() {
        assert_eq!(timeout("250m"), Some(Duration::from_millis(250)));
        assert_eq!(timeout("3S"), Some(Duration::from_secs(3)));
        for wrong in ["", "m", "12", "123456789S", "-1S", "5秒"] {
            assert_eq!(timeout(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_handler_ends_before_the_call_and_within_the_limit() {
        let (default, max) = (Duration::from_secs(1), Duration::from_secs(10));
        let left = |of: &HeaderMap| handler_deadline(of, default, max).saturating_duration_since(Instant::now());
        assert!(left(&HeaderMap::new()) <= default - HANDLER_MARGIN);
        assert!(left(&headers("1H")) <= max - HANDLER_MARGIN);
        assert!(left(&headers("1H")) > max / 2);
        assert_eq!(left(&headers("3m")), Duration::ZERO);
        assert!(left(&headers("250m")) < call_time(&headers("250m")).unwrap());
        assert_eq!(call_time(&headers("3m")), Some(Duration::from_millis(1)));
        assert_eq!(call_time(&HeaderMap::new()), None);
    }
}
