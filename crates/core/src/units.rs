//! Values with units: times, prices and quantities.
use jiff::{Timestamp, civil::Date, tz::TimeZone};
use std::fmt;

/// A time in milliseconds since 1970-01-01 UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct UnixMillis(pub i64);

impl UnixMillis {
    pub const DAY: i64 = 86_400_000;

    /// Reads the clock. Modules below the server take the time as an argument instead, so that their results repeat.
    #[expect(clippy::disallowed_methods, reason = "this function is the program's clock")]
    pub fn now() -> Self {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Self(since.as_millis() as i64)
    }

    /// Returns whole seconds, clamped to the range of `u32` (1970 to 2106).
    pub fn seconds_u32(self) -> u32 {
        (self.0 / 1000).clamp(0, i64::from(u32::MAX)) as u32
    }

    /// Returns the days from `earlier` to `self`; 0 if `earlier` is later.
    pub fn days_since(self, earlier: UnixMillis) -> f32 {
        (self.0.saturating_sub(earlier.0).max(0) as f64 / Self::DAY as f64) as f32
    }

    /// Parses a time in the format of RFC 3339, or a date, which means midnight UTC.
    pub fn parse(text: &str) -> Option<Self> {
        let at = match text.parse::<Timestamp>() {
            Ok(at) => at,
            Err(_) => text.parse::<Date>().ok()?.to_zoned(TimeZone::UTC).ok()?.timestamp(),
        };
        Some(Self(at.as_millisecond()))
    }

    /// Formats the date in UTC, such as `2026-11-25`. Returns `None` for a time that [`fmt::Display`] shows as a number.
    pub fn date(self) -> Option<String> {
        let at = Timestamp::from_millisecond(self.0).ok()?;
        Some(at.strftime("%Y-%m-%d").to_string())
    }
}

/// In the format of RFC 3339, in UTC; a time outside the years that it can express, as a number of milliseconds.
impl fmt::Display for UnixMillis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Timestamp::from_millisecond(self.0) {
            Ok(at) => write!(f, "{at}"),
            Err(_) => write!(f, "{} ms", self.0),
        }
    }
}

/// A price in millionths of its currency's unit, from 0 to [`PriceMicros::MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PriceMicros(i64);

impl PriceMicros {
    pub const MAX: i64 = 1_000_000_000_000_000;

    /// Returns `None` for a negative value or one above [`PriceMicros::MAX`].
    pub fn new(micros: i64) -> Option<Self> {
        (0..=Self::MAX).contains(&micros).then_some(Self(micros))
    }

    pub fn micros(self) -> i64 {
        self.0
    }

    /// Returns the price in the currency's unit: 2,950,000 micros are 2.95.
    pub fn units(self) -> f64 {
        self.0 as f64 / 1e6
    }
}

/// An amount of an item in thousandths of its unit: pieces, or the unit of its price, such as kilograms. From 0.001 to
/// [`Quantity::UNITS_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Quantity(u32);

impl Quantity {
    pub const ONE: Self = Self(1000);
    pub const UNITS_MAX: u32 = 1_000_000;

    /// Rounds to thousandths. Returns `None` if the result is not within 0.001 and [`Quantity::UNITS_MAX`].
    pub fn from_units(units: f64) -> Option<Self> {
        // The conversion saturates, and NaN becomes 0.
        Self::from_thousandths((units * 1000.0).round() as u32)
    }

    /// Returns `None` for 0 and for more than [`Quantity::UNITS_MAX`].
    pub fn from_thousandths(thousandths: u32) -> Option<Self> {
        (1..=Self::UNITS_MAX * 1000).contains(&thousandths).then_some(Self(thousandths))
    }

    pub fn thousandths(self) -> u32 {
        self.0
    }

    /// Returns the amount in units: 345 thousandths are 0.345.
    pub fn units(self) -> f64 {
        f64::from(self.0) / 1000.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_formatted_and_parsed() {
        for (at, text) in [
            (1_764_072_000_000, "2025-11-25T12:00:00Z"),
            (1_764_072_000_007, "2025-11-25T12:00:00.007Z"),
            (-1, "1969-12-31T23:59:59.999Z"),
        ] {
            assert_eq!(UnixMillis(at).to_string(), text);
            assert_eq!(UnixMillis::parse(text), Some(UnixMillis(at)));
        }
        assert_eq!(UnixMillis::parse("2025-11-25T13:00:00+01:00"), Some(UnixMillis(1_764_072_000_000)));
        assert_eq!(UnixMillis::parse("2025-11-25"), Some(UnixMillis(1_764_028_800_000)));
        assert_eq!(UnixMillis(1_764_072_000_000).date().as_deref(), Some("2025-11-25"));
        for wrong in ["", "yesterday", "2025-13-01"] {
            assert_eq!(UnixMillis::parse(wrong), None, "{wrong}");
        }
        assert_eq!(UnixMillis(i64::MAX).to_string(), "9223372036854775807 ms");
        assert_eq!(UnixMillis(i64::MIN).date(), None);
    }

    #[test]
    fn quantities_keep_thousandths_and_their_range() {
        assert_eq!(Quantity::from_units(0.345).map(Quantity::thousandths), Some(345));
        assert_eq!(Quantity::from_units(1.9).map(Quantity::units), Some(1.9));
        assert_eq!(Quantity::from_units(1.0), Some(Quantity::ONE));
        assert!(Quantity::from_units(1e6).is_some() && Quantity::from_units(0.001).is_some());
        for outside in [0.0, 0.0004, -1.0, 1_000_000.1, 1e30, f64::NAN, f64::INFINITY] {
            assert_eq!(Quantity::from_units(outside), None, "{outside}");
        }
    }
}
