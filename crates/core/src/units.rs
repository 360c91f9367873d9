//! Quantities with units: times and prices.

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
