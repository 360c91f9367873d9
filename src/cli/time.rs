//! Times on the command line.
use anyhow::{Context, bail};
use lodestone_core::units::UnixMillis;

/// Parses a day, a time, or a span before now.
pub(crate) fn since(text: &str, now: UnixMillis) -> anyhow::Result<UnixMillis> {
    if let Some(at) = UnixMillis::parse(text) {
        return Ok(at);
    }
    let (digits, unit) = text.split_at(text.trim_end_matches(|c: char| c.is_ascii_alphabetic()).len());
    let unit_ms = match unit {
        "d" => UnixMillis::DAY,
        "h" => 3_600_000,
        "m" => 60_000,
        _ => bail!(
            "`{text}` is not a day (2026-11-25), a time (2026-11-25T08:00:00Z) or a span before now (7d, 12h, 30m)"
        ),
    };
    let count: i64 = digits.parse().with_context(|| format!("`{text}` must have a whole number before its unit"))?;
    Ok(UnixMillis(now.0.saturating_sub(count.saturating_mul(unit_ms))))
}

/// Returns the name of a bundle whose training started at `at`: `20261126T031222.047Z`. The order of names is the order
/// of time. Names have milliseconds because retraining a small shop may take less than a second and a store rejects a
/// name that it has.
pub(crate) fn bundle_name(at: UnixMillis) -> anyhow::Result<String> {
    let at = jiff::Timestamp::from_millisecond(at.0).context("the clock")?;
    Ok(at.strftime("%Y%m%dT%H%M%S%.3fZ").to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_bundles_are_in_the_order_of_time() {
        let at = UnixMillis(1_764_072_000_000);
        let names = [0, 7, 999, 1000].map(|ms| bundle_name(UnixMillis(at.0 + ms)).unwrap());
        assert_eq!(names[1], "20251125T120000.007Z");
        assert!(names.is_sorted_by(|left, right| left < right), "{names:?}");
    }

    #[test]
    fn days_times_and_spans_are_parsed() {
        let now = UnixMillis(1_764_072_000_000);
        assert_eq!(since("2025-11-25", now).unwrap(), UnixMillis(1_764_028_800_000));
        assert_eq!(since("2025-11-25T12:00:00Z", now).unwrap(), now);
        assert_eq!(since("2d", now).unwrap(), UnixMillis(now.0 - 2 * UnixMillis::DAY));
        for wrong in ["", "yesterday", "d", "7", "7w", "日"] {
            assert!(since(wrong, now).is_err(), "{wrong}");
        }
    }
}
