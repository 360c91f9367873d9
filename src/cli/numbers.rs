//! Bounds of numbers on the command line.
use clap::builder::RangedU64ValueParser;
use std::ops::RangeBounds;

/// Parses a number within the range. The error has the range.
pub(crate) fn within(range: impl RangeBounds<u64>) -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(range)
}

/// Parses a real number from `least` to `greatest`. The error has the bounds.
pub(crate) fn between(least: f64, greatest: f64) -> impl Fn(&str) -> Result<f64, String> + Clone {
    move |text| {
        let value: f64 = text.parse().map_err(|_| "it must be a number".to_owned())?;
        match (least..=greatest).contains(&value) {
            true => Ok(value),
            false => Err(format!("it must be within {least} and {greatest}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_real_number_is_within_its_bounds() {
        let share = between(0.0, 1.0);
        assert_eq!((share("0"), share("1"), share("0.25")), (Ok(0.0), Ok(1.0), Ok(0.25)));
        for text in ["-0.1", "1.1", "NaN", "inf"] {
            assert_eq!(share(text).unwrap_err(), "it must be within 0 and 1", "{text}");
        }
        assert_eq!(share("half").unwrap_err(), "it must be a number");
    }
}
