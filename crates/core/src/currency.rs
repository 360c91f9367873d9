//! Currencies by their ISO 4217 codes.
use std::{cmp::Reverse, fmt};

/// The codes of ISO 4217 in use (list one of its maintenance agency SIX, currencies and funds), and those that were replaced
/// since 2015, because histories of orders have them; sorted. XTS (tests) and XXX (no currency) are left out, because no
/// price is in them.
const CODES: [&str; 187] = [
    "AED", "AFN", "ALL", "AMD", "ANG", "AOA", "ARS", "AUD", "AWG", "AZN", "BAM", "BBD", "BDT", "BGN", "BHD", "BIF",
    "BMD", "BND", "BOB", "BOV", "BRL", "BSD", "BTN", "BWP", "BYN", "BYR", "BZD", "CAD", "CDF", "CHE", "CHF", "CHW",
    "CLF", "CLP", "CNY", "COP", "COU", "CRC", "CUC", "CUP", "CVE", "CZK", "DJF", "DKK", "DOP", "DZD", "EGP", "ERN",
    "ETB", "EUR", "FJD", "FKP", "GBP", "GEL", "GHS", "GIP", "GMD", "GNF", "GTQ", "GYD", "HKD", "HNL", "HRK", "HTG",
    "HUF", "IDR", "ILS", "INR", "IQD", "IRR", "ISK", "JMD", "JOD", "JPY", "KES", "KGS", "KHR", "KMF", "KPW", "KRW",
    "KWD", "KYD", "KZT", "LAK", "LBP", "LKR", "LRD", "LSL", "LTL", "LYD", "MAD", "MDL", "MGA", "MKD", "MMK", "MNT",
    "MOP", "MRO", "MRU", "MUR", "MVR", "MWK", "MXN", "MXV", "MYR", "MZN", "NAD", "NGN", "NIO", "NOK", "NPR", "NZD",
    "OMR", "PAB", "PEN", "PGK", "PHP", "PKR", "PLN", "PYG", "QAR", "RON", "RSD", "RUB", "RWF", "SAR", "SBD", "SCR",
    "SDG", "SEK", "SGD", "SHP", "SLE", "SLL", "SOS", "SRD", "SSP", "STD", "STN", "SVC", "SYP", "SZL", "THB", "TJS",
    "TMT", "TND", "TOP", "TRY", "TTD", "TWD", "TZS", "UAH", "UGX", "USD", "USN", "UYI", "UYU", "UYW", "UZS", "VED",
    "VEF", "VES", "VND", "VUV", "WST", "XAD", "XAF", "XAG", "XAU", "XBA", "XBB", "XBC", "XBD", "XCD", "XCG", "XDR",
    "XOF", "XPD", "XPF", "XPT", "XSU", "XUA", "YER", "ZAR", "ZMW", "ZWG", "ZWL",
];

/// A text that is no such code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownCurrency {
    /// At most 40 characters.
    text: String,
    nearest: Option<&'static str>,
}

impl std::error::Error for UnknownCurrency {}

impl UnknownCurrency {
    /// Returns the message without the text, for errors that name the value themselves.
    pub fn problem(&self) -> String {
        match self.nearest {
            Some(code) => format!("not an ISO 4217 code in use; did you mean {code}?"),
            None => "not an ISO 4217 code in use; use one such as EUR".to_owned(),
        }
    }
}

impl fmt::Display for UnknownCurrency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` is {}", self.text, self.problem())
    }
}

/// Checks that a text is such a code, in capital letters.
pub fn check(text: &str) -> Result<(), UnknownCurrency> {
    if CODES.binary_search(&text).is_ok() {
        return Ok(());
    }
    Err(UnknownCurrency { text: shown(text), nearest: nearest(text) })
}

/// Parses a code in any case of letters, as files have it.
pub fn parse(text: &str) -> Result<String, UnknownCurrency> {
    let code = text.to_ascii_uppercase();
    match check(&code) {
        Ok(()) => Ok(code),
        Err(error) => Err(UnknownCurrency { text: shown(text), ..error }),
    }
}

/// Returns the first 40 characters of a text.
fn shown(text: &str) -> String {
    match text.char_indices().nth(40) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// Returns the code that differs from a text by the case of its letters, by two neighbouring letters that are swapped, or
/// by one letter, in this order; of several, the one that differs furthest from the start.
fn nearest(text: &str) -> Option<&'static str> {
    // Longer texts are not compared.
    if !(2..=4).contains(&text.len()) {
        return None;
    }
    let text = text.to_ascii_uppercase();
    let near = CODES.iter().filter_map(|code| Some((distance(text.as_bytes(), code.as_bytes())?, *code)));
    near.min_by_key(|(distance, _)| *distance).map(|(_, code)| code)
}

/// Returns 0 for the same letters, 1 for two neighbouring ones that are swapped, 2 for one that differs, is missing or is
/// added, and none beyond; and the number of letters before the difference.
fn distance(text: &[u8], code: &[u8]) -> Option<(u8, Reverse<usize>)> {
    let start = text.iter().zip(code).take_while(|(a, b)| a == b).count();
    let edits = match (&text[start..], &code[start..]) {
        ([], []) => 0,
        ([a, b, text @ ..], [c, d, code @ ..]) if (a, b, text) == (d, c, code) => 1,
        ([_, text @ ..], [_, code @ ..]) if text == code => 2,
        ([_, rest @ ..], code) if rest == code => 2,
        (text, [_, rest @ ..]) if text == rest => 2,
        _ => return None,
    };
    Some((edits, Reverse(start)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_codes_are_sorted_and_none_is_for_tests() {
        assert!(CODES.is_sorted_by(|a, b| a < b));
        assert!(CODES.iter().all(|code| code.len() == 3 && code.bytes().all(|byte| byte.is_ascii_uppercase())));
        for code in ["EUR", "GBP", "USD", "JPY", "CNY", "CHF", "AED", "ZWG"] {
            assert_eq!(check(code), Ok(()));
        }
        for code in ["XXX", "XTS", "DEM", "", "gbp"] {
            assert!(check(code).is_err(), "{code}");
        }
        assert_eq!(parse("gbp").as_deref(), Ok("GBP"));
    }

    #[test]
    fn a_code_that_is_one_edit_away_is_suggested() {
        for (text, message) in [
            ("GPB", "`GPB` is not an ISO 4217 code in use; did you mean GBP?"),
            ("eur", "`eur` is not an ISO 4217 code in use; did you mean EUR?"),
            ("EURO", "`EURO` is not an ISO 4217 code in use; did you mean EUR?"),
            ("JP", "`JP` is not an ISO 4217 code in use; did you mean JPY?"),
            ("USX", "`USX` is not an ISO 4217 code in use; did you mean USD?"),
            ("UXD", "`UXD` is not an ISO 4217 code in use; did you mean USD?"),
            ("QQQ", "`QQQ` is not an ISO 4217 code in use; use one such as EUR"),
            ("", "`` is not an ISO 4217 code in use; use one such as EUR"),
            ("£££", "`£££` is not an ISO 4217 code in use; use one such as EUR"),
        ] {
            assert_eq!(check(text).unwrap_err().to_string(), message);
            assert_eq!(
                parse(text).map_err(|error| error.to_string()),
                match text {
                    "eur" => Ok("EUR".to_owned()),
                    _ => Err(message.to_owned()),
                }
            );
        }
        let shown = check(&"x".repeat(50)).unwrap_err().to_string();
        assert!(shown.starts_with(&format!("`{}…`", "x".repeat(40))), "{shown}");
    }
}
