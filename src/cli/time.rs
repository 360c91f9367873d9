//! Times as people write them on a command line.
use crate::units::UnixMillis;
use anyhow::{Context, bail};

/// A day, a time, or a span before now.
pub fn since(text: &str, now: UnixMillis) -> anyhow::Result<UnixMillis> {
    if let Ok(at) = text.parse::<jiff::Timestamp>() {
        return Ok(UnixMillis(at.as_millisecond()));
    }
    if let Ok(day) = text.parse::<jiff::civil::Date>() {
        let at = day.to_zoned(jiff::tz::TimeZone::UTC).context("the day")?;
        return Ok(UnixMillis(at.timestamp().as_millisecond()));
    }
    let (digits, unit) = text.split_at(text.trim_end_matches(|c: char| c.is_ascii_alphabetic()).len());
    let unit_ms = match unit {
        "d" => UnixMillis::DAY,
        "h" => 3_600_000,
        "m" => 60_000,
        _ => bail!("`{text}` is no day (2026-11-25), time (2026-11-25T08:00:00Z) or span before now (7d, 12h, 30m)"),
    };
    let count: i64 = digits.parse().with_context(|| format!("`{text}` has no whole number before its unit"))?;
    Ok(UnixMillis(now.0.saturating_sub(count.saturating_mul(unit_ms))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_times_and_spans_are_read() {
        let now = UnixMillis(1_764_072_000_000);
        assert_eq!(since("2025-11-25", now).unwrap(), UnixMillis(1_764_028_800_000));
        assert_eq!(since("2025-11-25T12:00:00Z", now).unwrap(), now);
        assert_eq!(since("2d", now).unwrap(), UnixMillis(now.0 - 2 * UnixMillis::DAY));
        for wrong in ["", "yesterday", "d", "7", "7w", "日"] {
            assert!(since(wrong, now).is_err(), "{wrong}");
        }
    }
}
