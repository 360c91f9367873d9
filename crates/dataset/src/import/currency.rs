//! Currencies in the text of a price.
use super::report::{Reason, RowError};
use lodestone_core::currency::{self, UnknownCurrency};

/// Signs that belong to one currency. `$`, `¥` and `kr` belong to several.
const SIGNS: [(&str, &str); 8] = [
    ("€", "EUR"),
    ("£", "GBP"),
    ("zł", "PLN"),
    ("Kč", "CZK"),
    ("₹", "INR"),
    ("₩", "KRW"),
    ("US$", "USD"),
    ("CA$", "CAD"),
];
const SHARED_SIGNS: [&str; 4] = ["$", "¥", "kr", "kr."];

/// The text of a price without its currency.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct PriceText<'a> {
    pub number: &'a str,
    /// An ISO 4217 code. None without a currency, or with a sign of several.
    pub currency: Option<String>,
}

/// Returns the code of the column of currencies. Without a price, nothing depends on it.
pub(super) fn stated(column: &str, text: &str, is_priced: bool) -> Result<Option<String>, RowError> {
    match text {
        "" => Ok(None),
        text => match currency::parse(text) {
            Ok(code) => Ok(Some(code)),
            Err(_) if !is_priced => Ok(None),
            Err(error) => Err(RowError::dropped(Reason::Currency, column, text, &error.problem())),
        },
    }
}

/// Returns the one currency that the values of a row name. `column` and `text`: of the price, for the error.
pub(super) fn only(
    mut named: impl Iterator<Item = String>,
    column: &str,
    text: &str,
) -> Result<Option<String>, RowError> {
    let Some(code) = named.next() else { return Ok(None) };
    match named.find(|other| *other != code) {
        None => Ok(Some(code)),
        Some(other) => {
            let problem = format!("in {code}, and another value of the row is in {other}");
            Err(RowError::dropped(Reason::Currency, column, text, &problem))
        }
    }
}

/// Splits a price such as `12.99 EUR`, `EUR 12.99` or `€12.99`. A text of another form is its own number, which the
/// caller then refuses. Fails for three letters that are not a code.
pub(super) fn split(text: &str) -> Result<PriceText<'_>, UnknownCurrency> {
    let whole = PriceText { number: text, currency: None };
    let is_number_part = |c: char| c.is_ascii_digit() || matches!(c, '-' | '+' | '.' | ',');
    let (Some(start), Some(end)) = (text.find(is_number_part), text.rfind(|c: char| c.is_ascii_digit())) else {
        return Ok(whole);
    };
    if start > end {
        return Ok(whole);
    }
    let (before, after) = (text[..start].trim(), text[end + 1..].trim());
    let number = &text[start..=end];
    let sign = match (before, after) {
        ("", "") => return Ok(whole),
        ("", sign) | (sign, "") => sign,
        _ => return Ok(whole),
    };
    let is_code = sign.len() == 3 && sign.bytes().all(|byte| byte.is_ascii_alphabetic());
    Ok(match SIGNS.iter().find(|(known, _)| *known == sign) {
        Some((_, code)) => PriceText { number, currency: Some((*code).to_owned()) },
        None if is_code => PriceText { number, currency: Some(currency::parse(sign)?) },
        None if SHARED_SIGNS.contains(&sign) => PriceText { number, currency: None },
        None => whole,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_price_is_split_from_its_currency() {
        for (text, number, currency) in [
            ("12.99 EUR", "12.99", Some("EUR")),
            ("EUR 1.299,00", "1.299,00", Some("EUR")),
            ("12.99usd", "12.99", Some("USD")),
            ("€12.99", "12.99", Some("EUR")),
            ("12,99 €", "12,99", Some("EUR")),
            ("£-3", "-3", Some("GBP")),
            ("129 Kč", "129", Some("CZK")),
            ("$5", "5", None),
            ("129 kr", "129", None),
            ("12.99", "12.99", None),
            ("1e3", "1e3", None),
            ("free", "free", None),
            ("12.99 pounds", "12.99 pounds", None),
            ("EUR 5 each", "EUR 5 each", None),
            ("", "", None),
            ("-", "-", None),
        ] {
            assert_eq!(split(text), Ok(PriceText { number, currency: currency.map(str::to_owned) }), "{text}");
        }
        for text in ["12.99 GPB", "gpb 12.99"] {
            assert_eq!(split(text).unwrap_err().problem(), "not an ISO 4217 code in use; did you mean GBP?");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,20}") {
            if let Ok(found) = split(&text) {
                prop_assert!(text.contains(found.number));
            }
        }
    }
}
