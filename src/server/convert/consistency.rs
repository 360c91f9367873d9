//! Consistency tokens: log positions as callers hold them.
use crate::server::violations::Violations;
use sha2::{Digest, Sha256};

/// Hexadecimal digits of a position, so that later tokens are greater texts.
const POSITION_DIGITS: usize = 16;

/// Returns the token of a log position; empty for 0, the position of an empty log.
pub(crate) fn consistency_token(position: u64) -> String {
    match position {
        0 => String::new(),
        _ => format!("{position:016x}{:04x}", check(position)),
    }
}

/// Returns the log position of a token.
pub(super) fn log_position(violations: &mut Violations, field: &str, token: &str) -> u64 {
    if token.is_empty() {
        return 0;
    }
    let position = token.get(..POSITION_DIGITS).and_then(|digits| u64::from_str_radix(digits, 16).ok());
    position.filter(|position| consistency_token(*position) == token).unwrap_or_else(|| {
        let shown = super::shortened(token);
        violations
            .add(field, format!("`{shown}` is no consistency token; send one that a write or an answer returned"));
        0
    })
}

/// Digits by which a text that is no token, such as a truncated one, is noticed.
fn check(position: u64) -> u16 {
    let digest = Sha256::digest(position.to_be_bytes());
    u16::from_be_bytes([digest[0], digest[1]])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_keep_positions_and_their_order_and_other_texts_are_refused() {
        let parsed = |token: &str| {
            let mut violations = Violations::default();
            let position = log_position(&mut violations, "consistency_token", token);
            violations.is_empty().then_some(position)
        };
        for position in [0, 1, 1998, u64::MAX] {
            assert_eq!(parsed(&consistency_token(position)), Some(position));
        }
        assert!(consistency_token(9) < consistency_token(10) && consistency_token(255) < consistency_token(256));
        let token = consistency_token(1998);
        for bad in ["1998", "x", &token[1..], &token.to_uppercase(), &format!("{token}0"), "é000000000000000000é"] {
            assert_eq!(parsed(bad), None, "{bad}");
        }
    }
}
