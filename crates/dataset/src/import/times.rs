//! Times in a shop's file.
use super::{
    ValueError,
    mapping::Clean,
    report::{Reason, RowError},
    rows::ValueKind,
};
use jiff::{
    Timestamp,
    civil::{Date, DateTime, Time},
    fmt::{strtime::BrokenDownTime, temporal::Pieces},
    tz::{Offset, TimeZone},
};
use lodestone_core::units::UnixMillis;

/// The formats of a file's times.
pub(super) struct Times {
    /// The first one that a time has applies.
    formats: Vec<Format>,
    name: String,
    zone: TimeZone,
    /// Number of rows whose time is in the format.
    read_count: u64,
}

enum Format {
    Iso8601,
    /// A number since 1970, in this many units per second.
    Unix(i64),
    /// A strftime format, and the same format with other spellings of its offset. A spelling with a literal `Z` has
    /// the offset 0.
    Strftime(Vec<(String, Option<Offset>)>),
}

/// The reason why a time cannot be used.
#[derive(Debug, PartialEq, Eq)]
enum TimeError {
    /// Not in the format.
    Format,
    /// No moment that the calendar has.
    Range,
}

impl Times {
    pub(super) const ISO_8601: &str = "iso8601";
    const UNIX: [(&str, i64); 3] = [("unix_s", 1), ("unix_ms", 1000), ("unix_us", 1_000_000)];

    /// Checks format and time zone of a mapping.
    pub(super) fn new(clean: &Clean) -> Result<Self, String> {
        let zone = TimeZone::get(&clean.time_zone)
            .map_err(|_| format!("clean.time_zone `{}` is not an IANA time zone", clean.time_zone))?;
        let format = |name: &String| {
            let unix = Self::UNIX.iter().find(|(unix, _)| unix == name);
            match unix {
                Some((_, per_second)) => Ok(Format::Unix(*per_second)),
                None if name == Self::ISO_8601 => Ok(Format::Iso8601),
                None if name.contains('%') => Ok(Format::Strftime(spellings(name))),
                None => Err(format!(
                    "clean.time_format `{name}` is not known; use `iso8601`, `unix_s`, `unix_ms`, `unix_us`, or a \
                     strftime format such as `%d/%m/%Y %H:%M`"
                )),
            }
        };
        let formats = clean.time_format.0.iter().map(format).collect::<Result<Vec<_>, _>>()?;
        if formats.is_empty() {
            return Err("clean.time_format is empty; it needs at least one format".to_owned());
        }
        Ok(Self { formats, name: clean.time_format.text(), zone, read_count: 0 })
    }

    /// Parses the time of a row. A time in another format ends the import: to drop the row would keep the others of a
    /// file whose days and months are mixed up.
    pub(super) fn read(&mut self, column: &str, text: &str, kind: ValueKind) -> Result<UnixMillis, RowError> {
        let parsed = match kind {
            // A time of another form is none that the calendar has.
            ValueKind::Time => self.parse_iso(text).map_err(|_| TimeError::Range),
            ValueKind::Text | ValueKind::Number => self.parse(text),
        };
        match parsed {
            Ok(at) => {
                self.read_count += 1;
                Ok(at)
            }
            Err(TimeError::Range) => {
                Err(RowError::dropped(Reason::Time, column, text, "outside the range of the calendar"))
            }
            Err(TimeError::Format) => Err(RowError::Mapping(ValueError::new(column, text, &self.mismatch()))),
        }
    }

    /// Describes a time that is not in the format.
    fn mismatch(&self) -> String {
        let name = &self.name;
        match self.read_count {
            0 => format!(
                "not a time in the format `{name}`, and neither is an earlier one; set clean.time_format in the mapping \
                 to the format of the file: `iso8601` (2026-11-28T09:30:00+01:00), `unix_s`, `unix_ms`, `unix_us`, or a \
                 strftime format such as `%d/%m/%Y %H:%M`"
            ),
            count => format!(
                "not a time in the format `{name}` (clean.time_format), as those of {count} earlier rows are; correct \
                 the row, or the format if it mixes up days and months"
            ),
        }
    }

    /// Parses a time. An offset in the text applies; a time without one is local in the mapping's time zone.
    fn parse(&self, text: &str) -> Result<UnixMillis, TimeError> {
        let parsed = |format: &Format| {
            let parsed = match format {
                Format::Iso8601 => self.parse_iso(text),
                Format::Unix(per_second) => unix(text, *per_second).unwrap_or(Err(TimeError::Format)),
                Format::Strftime(spellings) => {
                    let mut parsed = spellings.iter().map(|(format, offset)| self.strptime(format, *offset, text));
                    parsed.find_map(|parsed| parsed).unwrap_or(Err(TimeError::Format))
                }
            };
            (parsed != Err(TimeError::Format)).then_some(parsed)
        };
        self.formats.iter().find_map(parsed).unwrap_or(Err(TimeError::Format))
    }

    /// Parses two ISO 8601 times with a slash between them; none if the text has another form. Returns the first moment
    /// of the period and the first one after it: a second date without a time is the last day.
    pub(super) fn parse_period(&self, text: &str) -> Option<(UnixMillis, UnixMillis)> {
        let (from, to) = text.split_once('/')?;
        let next_day = |date: Date| date.tomorrow().map_err(|_| TimeError::Range);
        Some((self.parse_iso(from.trim()).ok()?, self.parse_iso_with(to.trim(), next_day).ok()?))
    }

    /// Returns the time of an ISO 8601 text, whatever the mapping's format; none for other texts.
    pub(super) fn iso(&self, text: &str) -> Option<UnixMillis> {
        self.parse_iso(text).ok()
    }

    /// Parses an ISO 8601 time, whatever the mapping's format; Parquet's own times are written like this. A date is its
    /// first moment.
    fn parse_iso(&self, text: &str) -> Result<UnixMillis, TimeError> {
        self.parse_iso_with(text, Ok)
    }

    /// The same; a date without a time is the first moment of the day that `of_date` returns.
    fn parse_iso_with(
        &self,
        text: &str,
        of_date: impl Fn(Date) -> Result<Date, TimeError>,
    ) -> Result<UnixMillis, TimeError> {
        let text = joined_offset(text);
        let pieces = Pieces::parse(text.as_bytes()).map_err(|_| TimeError::Format)?;
        let local = match pieces.time() {
            Some(time) => pieces.date().to_datetime(time),
            None => of_date(pieces.date())?.to_datetime(Time::midnight()),
        };
        self.moment(local, pieces.to_numeric_offset())
    }

    fn strptime(&self, format: &str, offset: Option<Offset>, text: &str) -> Option<Result<UnixMillis, TimeError>> {
        let parsed = BrokenDownTime::parse(format, text).ok()?;
        if let Some(at) = parsed.timestamp() {
            return Some(Ok(UnixMillis(at.as_millisecond())));
        }
        if parsed.iana_time_zone().is_some() {
            let zoned = parsed.to_zoned().map_err(|_| TimeError::Range);
            return Some(zoned.map(|zoned| UnixMillis(zoned.timestamp().as_millisecond())));
        }
        let local = parsed.to_datetime().ok()?;
        Some(self.moment(local, offset.or(parsed.offset())))
    }

    fn moment(&self, local: DateTime, offset: Option<Offset>) -> Result<UnixMillis, TimeError> {
        let at: Result<Timestamp, _> = match offset {
            Some(offset) => offset.to_timestamp(local),
            None => self.zone.to_timestamp(local),
        };
        at.map(|at| UnixMillis(at.as_millisecond())).map_err(|_| TimeError::Range)
    }
}

/// Returns the format and its other spellings: `Z`, an offset with a colon and one without may alternate in one file.
fn spellings(format: &str) -> Vec<(String, Option<Offset>)> {
    let mut spellings = vec![(format.to_owned(), None)];
    if let Some(directive) = ["%:z", "%z"].into_iter().find(|directive| format.contains(directive)) {
        let with = |offset: &str| format.replace(directive, offset);
        spellings.push((with(if directive == "%z" { "%:z" } else { "%z" }), None));
        spellings.push((with("Z"), Some(Offset::UTC)));
    }
    spellings
}

/// Returns the time of a number; none if the text is not a number.
fn unix(text: &str, per_second: i64) -> Option<Result<UnixMillis, TimeError>> {
    let ms = match text.parse::<i64>() {
        Ok(number) => (i128::from(number) * 1000).div_euclid(per_second.into()),
        Err(_) => {
            let number = text.parse::<f64>().ok().filter(|number| number.is_finite())?;
            // Saturates, and then is out of range.
            (number * 1000.0 / per_second as f64) as i128
        }
    };
    Some(i64::try_from(ms).map(UnixMillis).map_err(|_| TimeError::Range))
}

/// Joins an offset that follows a space to its time: databases write `2026-11-28 09:30:00 +0100` and `… UTC`.
fn joined_offset(text: &str) -> String {
    match text.rsplit_once(' ') {
        Some((time, "UTC" | "GMT" | "Z")) => format!("{time}Z"),
        Some((time, offset)) if offset.starts_with(['+', '-']) => format!("{time}{offset}"),
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::import::mapping::Names;

    fn clean(format: &str, zone: &str) -> Clean {
        Clean { time_format: Names(vec![format.to_owned()]), time_zone: zone.to_owned(), ..Clean::default() }
    }

    fn times(format: &str, zone: &str) -> Times {
        Times::new(&clean(format, zone)).unwrap()
    }

    fn text(at: UnixMillis) -> String {
        Timestamp::from_millisecond(at.0).unwrap().to_string()
    }

    #[test]
    fn an_offset_in_the_text_applies() {
        let moment = "2024-07-16T02:30:00Z";
        for (format, sent) in [
            ("%Y-%m-%d %H:%M:%S %z", "2024-07-15 22:30:00 -0400"),
            ("%Y-%m-%d %H:%M:%S %z", "2024-07-15 22:30:00 -04:00"),
            ("%Y-%m-%dT%H:%M:%S%:z", "2024-07-16T02:30:00Z"),
            ("%Y-%m-%dT%H:%M:%S%z", "2024-07-16T02:30:00Z"),
            ("%Y-%m-%d %H:%M:%S %Q", "2024-07-15 22:30:00 America/New_York"),
            ("iso8601", "2024-07-15T22:30:00-04:00"),
            ("iso8601", "2024-07-15 22:30:00-0400"),
            ("iso8601", "2024-07-15 22:30:00 -0400"),
            ("iso8601", "2024-07-16 02:30:00 UTC"),
            ("iso8601", "2024-07-16T02:30Z"),
            ("iso8601", "2024-07-16T02:30:00.000000Z"),
            ("unix_s", "1721097000"),
            ("unix_s", "1721097000.0"),
            ("unix_ms", "1721097000000"),
            ("unix_us", "1721097000000000"),
            ("%s", "1721097000"),
        ] {
            let at = times(format, "Europe/London").parse(sent);
            assert_eq!(at.map(text).as_deref(), Ok(moment), "{sent} as {format}");
        }
    }

    #[test]
    fn the_first_of_several_formats_that_a_time_has_applies() {
        let formats = Names(vec!["iso8601".to_owned(), "unix_ms".to_owned()]);
        let times = Times::new(&Clean { time_format: formats, ..Clean::default() }).unwrap();
        for sent in ["2024-07-16T02:30:00Z", "1721097000000"] {
            assert_eq!(times.parse(sent).map(text).as_deref(), Ok("2024-07-16T02:30:00Z"), "{sent}");
        }
        assert_eq!(times.parse("yesterday"), Err(TimeError::Format));
        let period = times.parse_period("2024-07-16T02:30Z/2024-07-16T03:30+01:00");
        assert_eq!(period, Some((UnixMillis(1_721_097_000_000), UnixMillis(1_721_097_000_000))));
        assert_eq!(times.parse_period("2024-07-16T02:30Z"), None);
    }

    #[test]
    fn a_time_without_an_offset_is_local() {
        for (format, sent) in [
            ("iso8601", "2024-07-15 22:30:00"),
            ("iso8601", "2024-07-15T22:30"),
            ("%d/%m/%Y %H:%M", "15/07/2024 22:30"),
        ] {
            let at = times(format, "Europe/London").parse(sent);
            assert_eq!(at.map(text).as_deref(), Ok("2024-07-15T21:30:00Z"), "{sent}");
        }
        assert_eq!(times("iso8601", "UTC").parse("2024-07-15").map(text).as_deref(), Ok("2024-07-15T00:00:00Z"));
        assert_eq!(times("%d.%m.%Y", "UTC").parse("15.07.2024").map(text).as_deref(), Ok("2024-07-15T00:00:00Z"));
    }

    #[test]
    fn a_moment_outside_the_calendar_is_not_called_unparsable() {
        for (format, sent) in [
            ("iso8601", "9999-12-31 23:59:59"),
            ("%Y-%m-%d %H:%M:%S", "9999-12-31 23:59:59"),
            ("unix_s", "99999999999999999999"),
            ("unix_s", "9e30"),
        ] {
            assert_eq!(times(format, "UTC").parse(sent), Err(TimeError::Range), "{sent}");
        }
        for (format, sent) in [("iso8601", "yesterday"), ("unix_ms", "2024-07-15"), ("unix_s", ""), ("%Y", "x")] {
            assert!(matches!(times(format, "UTC").parse(sent), Err(TimeError::Format)), "{sent}");
        }
    }

    #[test]
    fn an_unknown_format_or_zone_is_refused() {
        let refused = |format: &str, zone: &str| Times::new(&clean(format, zone)).err().unwrap();
        assert!(refused("ISO", "UTC").contains("unix_ms"));
        assert!(refused("iso8601", "Mars/Base").contains("Mars/Base"));
    }
}
