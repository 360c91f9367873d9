//! Bounds of numbers on the command line.
use std::ops::{Bound, RangeBounds};

/// Parses a number within the range. The error has the range.
pub(crate) fn within(range: impl RangeBounds<u64>) -> impl Fn(&str) -> Result<usize, String> + Clone {
    whole(range)
}

/// Parses a whole number of the type within the range. The error has the range, also for a negative number.
pub(crate) fn whole<T: TryFrom<u64>>(range: impl RangeBounds<u64>) -> impl Fn(&str) -> Result<T, String> + Clone {
    let least = match range.start_bound() {
        Bound::Included(least) => *least,
        Bound::Excluded(below) => below + 1,
        Bound::Unbounded => 0,
    };
    let greatest = match range.end_bound() {
        Bound::Included(greatest) => *greatest,
        Bound::Excluded(above) => above - 1,
        Bound::Unbounded => u64::MAX >> (64 - 8 * size_of::<T>()),
    };
    move |text| {
        let shown = if greatest == u64::MAX { format!("{least}..") } else { format!("{least}..={greatest}") };
        // Wider than the type, because a number beyond it is a number.
        let value: i128 = text.parse().map_err(|_| format!("it must be a whole number in {shown}"))?;
        let value = u64::try_from(value).ok().filter(|value| (least..=greatest).contains(value));
        value.and_then(|value| T::try_from(value).ok()).ok_or_else(|| format!("{text} is not in {shown}"))
    }
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
    fn a_whole_number_is_within_its_range_and_its_type() {
        let percent = whole::<u32>(1..=100);
        assert_eq!((percent("1"), percent("100")), (Ok(1), Ok(100)));
        for text in ["0", "101", "-1", "99999999999999999999"] {
            assert_eq!(percent(text).unwrap_err(), format!("{text} is not in 1..=100"));
        }
        assert_eq!(percent("1.5").unwrap_err(), "it must be a whole number in 1..=100");
        assert_eq!(whole::<u16>(0..)("65536").unwrap_err(), "65536 is not in 0..=65535");
        assert_eq!(whole::<u64>(1..)("-1").unwrap_err(), "-1 is not in 1..");
        assert_eq!(whole::<u64>(1..)("18446744073709551615"), Ok(u64::MAX));
        assert_eq!(within(2..)("2"), Ok(2));
    }

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
