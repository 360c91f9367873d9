//! Canonical spelling of numbers with units: "10ft", "10 feet" and "10'" become the same tokens.
use super::{Token, TokenKind, stem};

/// Pushes the tokens of a word from a script with spaces: the stemmed word, or the parts of a measure ("18v" becomes
/// "18" and "volt", "4x8ft" becomes "4", "x", "8" and "ft"). Other spellings of a unit are replaced only after a
/// number, because "foot" alone is not a measure.
pub(super) fn push_word(word: &str, tokens: &mut Vec<Token>) {
    let after_number = last(tokens).is_some_and(|token| is_quantity(&token.text));
    match unit(word) {
        Some(unit) if after_number || is_power(unit) => push(unit, tokens),
        Some("x") if last(tokens).is_some_and(|token| unit(&token.text).is_some()) => push("x", tokens),
        _ => match split(word) {
            Some(parts) => parts.into_iter().for_each(|part| push(part, tokens)),
            None => push_plain(word, tokens),
        },
    }
}

/// Pushes a word that is no measure. A word with symbols ("c++") stays as it is, followed by the word alone.
fn push_plain(word: &str, tokens: &mut Vec<Token>) {
    let bare = word.trim_end_matches(['+', '#']);
    if bare.len() == word.len() {
        return push(&stem(word), tokens);
    }
    push(word, tokens);
    tokens.push(Token { text: stem(bare), kind: TokenKind::Bare });
}

/// Returns true for a number with a unit written as one word, such as "10ft".
pub(super) fn is_measure(word: &str) -> bool {
    split(word).is_some()
}

/// Returns true for a spelling of a unit, such as "ounces" or "x" between two lengths.
pub fn is_unit(word: &str) -> bool {
    unit(word).is_some()
}

/// Returns the canonical spelling of a Chinese unit if the last token is a number.
pub(super) fn cjk_unit(word: &str, tokens: &[Token]) -> Option<&'static str> {
    last(tokens).filter(|token| is_quantity(&token.text))?;
    Some(match word {
        "毫升" => "ml",
        "毫米" => "mm",
        "厘米" | "公分" => "cm",
        "公斤" | "千克" => "kg",
        "英寸" => "in",
        "英尺" => "ft",
        "升" => "liter",
        "瓦" => "watt",
        "伏" => "volt",
        _ => return None,
    })
}

/// Returns the last token that is not a joined form.
fn last(tokens: &[Token]) -> Option<&Token> {
    tokens.iter().rfind(|token| token.kind != TokenKind::Joined)
}

fn push(text: &str, tokens: &mut Vec<Token>) {
    tokens.push(Token { text: text.to_owned(), kind: TokenKind::Word });
}

/// Returns true for a number, and for "sq" and "cu", which may separate a number from its unit: "2 cu. ft.".
fn is_quantity(text: &str) -> bool {
    text.bytes().next().is_some_and(|byte| byte.is_ascii_digit()) && number_length(text) == text.len() || is_power(text)
}

fn is_power(text: &str) -> bool {
    text == "sq" || text == "cu"
}

/// Returns the length in bytes of the number at the start of a word, such as "1/2" or "1.5".
fn number_length(word: &str) -> usize {
    word.bytes().take_while(|byte| byte.is_ascii_digit() || matches!(byte, b'.' | b'/')).count()
}

/// Splits a measure written as one word: a number, then pairs of "x" and a number, then at most one unit. Returns
/// `None` for any other word.
fn split(word: &str) -> Option<Vec<&str>> {
    let (number, mut rest) = word.split_at(number_length(word));
    let mut parts = vec![Some(number).filter(|number| !number.is_empty())?];
    while let Some(side) = rest.strip_prefix('x') {
        let (number, after) = side.split_at(number_length(side));
        if number.is_empty() {
            break;
        }
        parts.extend(["x", number]);
        rest = after;
    }
    if !rest.is_empty() {
        parts.push(unit(rest)?);
    }
    (parts.len() > 1).then_some(parts)
}

/// Returns the canonical spelling of a unit.
fn unit(word: &str) -> Option<&'static str> {
    Some(match word {
        "ft" | "foot" | "feet" => "ft",
        "in" | "inch" | "inches" => "in",
        "yd" | "yds" | "yard" | "yards" => "yd",
        "mm" | "millimeter" | "millimeters" | "millimetre" | "millimetres" => "mm",
        "cm" | "centimeter" | "centimeters" | "centimetre" | "centimetres" => "cm",
        "m" | "meter" | "meters" | "metre" | "metres" => "meter",
        "sq" | "square" => "sq",
        "cu" | "cubic" => "cu",
        "lb" | "lbs" | "pound" | "pounds" => "lb",
        "oz" | "ounce" | "ounces" => "oz",
        "g" | "gram" | "grams" => "gram",
        "kg" | "kgs" | "kilo" | "kilos" | "kilogram" | "kilograms" => "kg",
        "gal" | "gallon" | "gallons" => "gal",
        "qt" | "quart" | "quarts" => "qt",
        "ml" | "milliliter" | "milliliters" | "millilitre" | "millilitres" => "ml",
        "l" | "liter" | "liters" | "litre" | "litres" => "liter",
        "w" | "watt" | "watts" => "watt",
        "v" | "volt" | "volts" => "volt",
        "a" | "amp" | "amps" | "ampere" | "amperes" => "amp",
        "gb" | "gigabyte" | "gigabytes" => "gb",
        "tb" | "terabyte" | "terabytes" => "tb",
        "hp" | "horsepower" => "hp",
        "ga" | "gauge" => "ga",
        "btu" | "btus" => "btu",
        "deg" | "degree" | "degrees" => "deg",
        "pk" | "pack" | "packs" => "pack",
        "pc" | "pcs" | "piece" | "pieces" => "pc",
        "hr" | "hrs" | "hour" | "hours" => "hr",
        "min" | "minute" | "minutes" => "min",
        "x" | "by" => "x",
        _ => return None,
    })
}
