//! Numbers in a shop's file.
use super::{
    ValueError,
    mapping::Clean,
    report::{Reason, RowError},
};
use lodestone_core::units::PriceMicros;

/// Separators of thousands in every notation: spaces, also those that do not break lines, and Swiss apostrophes.
const GROUP_SEPARATORS: [char; 5] = [' ', '\u{a0}', '\u{202f}', '\'', '\u{2019}'];

/// Parses the numbers of one file. Without a declared decimal separator it is the point, as long as no number of the
/// file can mean something else.
pub(super) struct Numbers {
    declared: Option<char>,
    /// Whether a point was a decimal separator for certain.
    has_decimal_point: bool,
    /// The line of the first number whose point may separate thousands, with its error.
    ambiguous: Option<(u64, ValueError)>,
}

/// A cell with a number.
#[derive(Clone, Copy)]
pub(super) struct Cell<'a> {
    pub column: &'a str,
    pub text: &'a str,
    pub line: u64,
    /// The file's format has numbers, so that nothing is ambiguous.
    pub is_number: bool,
}

impl Numbers {
    pub(super) fn new(clean: &Clean) -> Result<Self, String> {
        let declared = match clean.decimal_separator.as_str() {
            "" => None,
            "." => Some('.'),
            "," => Some(','),
            other => return Err(format!("clean.decimal_separator is `{other}`; it must be `.` or `,`")),
        };
        Ok(Self { declared, has_decimal_point: false, ambiguous: None })
    }

    /// Parses a number; `None` if the cell is empty.
    pub(super) fn parse(&mut self, cell: Cell<'_>) -> Result<Option<f64>, RowError> {
        let Cell { column, text, line, is_number } = cell;
        if text.is_empty() {
            return Ok(None);
        }
        let not_a_number = || RowError::dropped(Reason::NotANumber, column, text, "not a number");
        if is_number {
            return plain(text).map(Some).ok_or_else(not_a_number);
        }
        if let Some(decimal) = self.declared {
            return with_separator(text, decimal).map(Some).ok_or_else(|| {
                let problem = format!("not a number with the decimal separator `{decimal}` (clean.decimal_separator)");
                RowError::dropped(Reason::NotANumber, column, text, &problem)
            });
        }
        let undeclared = || ValueError::new(column, text, UNDECLARED);
        let is_certain = text.contains('.') || text.matches(',').count() != 1;
        if let Some(number) = with_separator(text, '.').filter(|_| is_certain) {
            match with_separator(text, ',') {
                Some(other) if other != number => {
                    self.ambiguous.get_or_insert_with(|| (line, undeclared()));
                }
                _ => self.has_decimal_point |= text.contains('.'),
            }
            return Ok(Some(number));
        }
        match with_separator(text, ',') {
            Some(_) => Err(RowError::Mapping(undeclared())),
            None => Err(not_a_number()),
        }
    }

    /// Returns the value of an attribute as a number; `None` if it is a text.
    pub(super) fn attribute(&self, text: &str, is_number: bool) -> Option<f64> {
        match self.declared {
            Some(decimal) if !is_number => with_separator(text, decimal),
            _ => plain(text),
        }
    }

    /// Returns the line and the error of a number such as `1.299` if no other number of the file shows that the point
    /// is the decimal separator.
    pub(super) fn ambiguous(self) -> Option<(u64, ValueError)> {
        self.ambiguous.filter(|_| !self.has_decimal_point)
    }
}

const UNDECLARED: &str = "a number with an unclear decimal separator; set clean.decimal_separator = \",\" (as in \
                          1.299,00) or \".\" (as in 1,299.00) in the mapping";

/// Parses a number without separators of thousands and with a decimal point.
fn plain(text: &str) -> Option<f64> {
    text.parse().ok().filter(|number: &f64| number.is_finite())
}

/// Parses a number with this decimal separator, and possibly with separators of thousands.
fn with_separator(text: &str, decimal: char) -> Option<f64> {
    let other = if decimal == '.' { ',' } else { '.' };
    let (whole, fraction) = match text.split_once(decimal) {
        Some((whole, fraction)) => (whole, Some(fraction)),
        None => (text, None),
    };
    let is_group = |c: char| c == other || GROUP_SEPARATORS.contains(&c);
    if fraction.is_some_and(|fraction| fraction.contains(is_group) || fraction.contains(decimal)) {
        return None;
    }
    let whole = match whole.find(is_group) {
        Some(_) => without_groups(whole, is_group)?,
        None => whole.to_owned(),
    };
    match fraction {
        Some(fraction) => plain(&format!("{whole}.{fraction}")),
        None => plain(&whole),
    }
}

/// Removes the separators of thousands: one to three digits, of which the first is not 0, and then always three.
fn without_groups(whole: &str, is_group: impl Fn(char) -> bool) -> Option<String> {
    let digits = whole.strip_prefix(['-', '+']).unwrap_or(whole);
    let separator = digits.chars().find(|c| is_group(*c))?;
    let mut groups = digits.split(separator);
    let first = groups.next()?;
    let are_digits = |group: &str| group.bytes().all(|byte| byte.is_ascii_digit());
    let is_first = (1..=3).contains(&first.len()) && !first.starts_with('0') && are_digits(first);
    let is_valid = is_first && groups.all(|group| group.len() == 3 && are_digits(group));
    is_valid.then(|| whole.replace(separator, ""))
}

/// Returns a price within the bounds of the mapping and of prices.
pub(super) fn price(number: f64, column: &str, text: &str, clean: &Clean) -> Result<PriceMicros, RowError> {
    let number = number * clean.price_unit;
    let too_low = |problem: &str| RowError::dropped(Reason::PriceTooLow, column, text, problem);
    if number < clean.price_min {
        return Err(too_low(&format!("below clean.price_min, {}", clean.price_min)));
    }
    // The conversion saturates outside the range of prices.
    let micros = (number * 1e6).round() as i64;
    if micros < 0 {
        return Err(too_low("below 0"));
    }
    PriceMicros::new(micros).ok_or_else(|| {
        let problem = format!("above {}, the highest price", PriceMicros::MAX / 1_000_000);
        RowError::dropped(Reason::PriceTooHigh, column, text, &problem)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(decimal_separator: &str) -> Numbers {
        Numbers::new(&Clean { decimal_separator: decimal_separator.to_owned(), ..Clean::default() }).unwrap()
    }

    fn parse(declared: &str, text: &str) -> Result<f64, RowError> {
        let cell = Cell { column: "price", text, line: 2, is_number: false };
        numbers(declared).parse(cell).map(|number| number.expect("the text is not empty"))
    }

    #[test]
    fn a_declared_separator_decides() {
        for (declared, text, number) in [
            (".", "1,299.00", 1299.0),
            (".", "1,299", 1299.0),
            (".", "1.299", 1.299),
            (".", "-12,345,678.5", -12_345_678.5),
            (",", "1.299,00", 1299.0),
            (",", "1.299", 1299.0),
            (",", "1,299", 1.299),
            (",", "12,50", 12.5),
            (",", "1 299,50", 1299.5),
            (",", "1\u{202f}299,50", 1299.5),
            (".", "1'299.50", 1299.5),
            (",", "1e3", 1000.0),
            (".", "+.5", 0.5),
        ] {
            assert_eq!(parse(declared, text).ok(), Some(number), "{text} with {declared}");
        }
        let wrong =
            ["12,50", "1,29.00", "0,299", "1,2345", "1.299,00", "1,299 000", "1..2", "free", "1.2,345", "inf", "NaN"];
        for text in wrong {
            assert!(matches!(parse(".", text), Err(RowError::Dropped { .. })), "{text}");
        }
        assert!(Numbers::new(&Clean { decimal_separator: ";".to_owned(), ..Clean::default() }).is_err());
    }

    #[test]
    fn without_a_declaration_only_what_has_one_meaning_is_a_number() {
        for (text, number) in
            [("1,299.00", 1299.0), ("12.5", 12.5), ("1 299", 1299.0), ("1,299,000", 1_299_000.0), ("7", 7.0)]
        {
            assert_eq!(parse("", text).ok(), Some(number), "{text}");
        }
        for text in ["12,50", "1,299", "1.299,00", "1.299.000", "1 299,00", "0,5"] {
            let Err(RowError::Mapping(error)) = parse("", text) else { panic!("{text}") };
            assert!(error.problem.contains("clean.decimal_separator"), "{text}");
        }
        assert!(matches!(parse("", "free"), Err(RowError::Dropped { .. })));
    }

    #[test]
    fn a_point_that_may_separate_thousands_needs_another_number_that_decides() {
        let ambiguous = |texts: &[&str], is_number| {
            let mut numbers = numbers("");
            for text in texts {
                assert!(numbers.parse(Cell { column: "price", text, line: 2, is_number }).is_ok());
            }
            numbers.ambiguous().is_some()
        };
        assert!(ambiguous(&["1.299", "899"], false));
        assert!(!ambiguous(&["1.299", "899.5"], false) && !ambiguous(&["0.345"], false));
        assert!(!ambiguous(&["1.299"], true), "a number of JSON or Parquet");
    }
}
