//! Numbers with units, which shops and shoppers write in many ways: "10ft", "10 feet" and "10'" are the same words.
use super::{Token, TokenKind, stem};

/// Pushes a word of a script with spaces: stemmed, or as the parts of a measure ("18v" as "18" and "volt", "4x8ft" as "4",
/// "x", "8" and "ft"). A unit's other spellings count as the unit where a number is before them: "foot" alone is no measure.
pub(super) fn push_word(word: &str, tokens: &mut Vec<Token>) {
    let after_number = tokens.last().is_some_and(|token| is_quantity(&token.text));
    match unit(word) {
        Some(unit) if after_number || is_power(unit) => push(unit, tokens),
        Some("x") if tokens.last().is_some_and(|token| unit(&token.text).is_some()) => push("x", tokens),
        _ => match split(word) {
            Some(parts) => parts.into_iter().for_each(|part| push(part, tokens)),
            None => push(&stem(word), tokens),
        },
    }
}

/// The spelling that stands for all spellings of a Chinese unit, where a number is before it.
pub(super) fn cjk_unit(word: &str, tokens: &[Token]) -> Option<&'static str> {
    tokens.last().filter(|token| is_quantity(&token.text))?;
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

fn push(text: &str, tokens: &mut Vec<Token>) {
    tokens.push(Token { text: text.to_owned(), kind: TokenKind::Word });
}

/// A number, or what stands between a number and its unit: "2 cu. ft.".
fn is_quantity(text: &str) -> bool {
    text.bytes().next().is_some_and(|byte| byte.is_ascii_digit()) && number_length(text) == text.len() || is_power(text)
}

fn is_power(text: &str) -> bool {
    text == "sq" || text == "cu"
}

/// Bytes of the number that a word starts with: "1/2", "1.5".
fn number_length(word: &str) -> usize {
    word.bytes().take_while(|byte| byte.is_ascii_digit() || matches!(byte, b'.' | b'/')).count()
}

/// The parts of a measure that is written in one word: a number, then "x" and numbers, then at most one unit.
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

/// The spelling that stands for all spellings of a unit.
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
