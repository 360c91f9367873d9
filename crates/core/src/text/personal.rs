//! Recognition of personal data in texts that other users might see.

/// Minimum digits of a number that may be a phone, card, account or order number.
const NUMBER_DIGITS_MIN: usize = 7;

/// Returns true if a text in normal form has an e-mail address, or a number of at least seven digits, in one group or
/// in several: a phone, card, account or order number. Years are not counted, so that "calendar 2026 2027" is no such
/// number.
pub fn has_personal_data(normal: &str) -> bool {
    has_email(normal) || has_long_number(normal)
}

fn has_email(text: &str) -> bool {
    let inside = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
    text.match_indices('@')
        .any(|(at, _)| inside(text[..at].chars().next_back()) && inside(text[at + 1..].chars().next()))
}

fn has_long_number(text: &str) -> bool {
    let (mut digits, mut group) = (0, String::new());
    for c in text.chars().chain(['\n']) {
        if c.is_ascii_digit() {
            group.push(c);
            continue;
        }
        let is_year = group.len() == 4 && (group.starts_with("19") || group.starts_with("20"));
        digits += if is_year { 0 } else { group.len() };
        if digits >= NUMBER_DIGITS_MIN {
            return true;
        }
        group.clear();
        if !matches!(c, ' ' | '-' | '.' | '/' | '(' | ')' | '+' | '_' | ':') {
            digits = 0;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::normalize;

    #[test]
    fn addresses_and_long_numbers_are_personal() {
        for text in [
            "zzjane.roe@shop.test 0155 0199",
            "Jane.Roe＠example.org",
            "0155 0199",
            "+44 (0)20 7946-0018",
            "call 555-0199-2",
            "4111 1111 1111 1111",
            "4111111111111111",
            "DE89 3704 0044 0532 0130 00",
            "order 10002345",
            "٠١٥٥ ٠١٩٩",
        ] {
            assert!(has_personal_data(&normalize(text)), "{text}");
        }
        for text in [
            "",
            "red mug",
            "lego 75192",
            "1920x1080 monitor",
            "10 ft x 8 ft x 12 ft",
            "calendar 2026-2027",
            "mug @ home",
            "dcd780c2 18v",
            "3/4 in pipe 10 ft",
            "iphone 15 256 gb",
        ] {
            assert!(!has_personal_data(&normalize(text)), "{text}");
        }
    }
}
