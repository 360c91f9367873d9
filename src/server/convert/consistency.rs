//! Consistency tokens: positions of a log as callers hold them.
use crate::server::violations::Violations;
use sha2::{Digest, Sha256};

/// Hexadecimal digits of a position, which come first, so that later tokens of a log are greater texts.
const POSITION_DIGITS: usize = 16;
/// Hexadecimal digits that identify the log.
const LOG_DIGITS: usize = 8;

/// A position of a log that a token names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct LogPosition {
    /// See [`lodestone_engine::Engine::log_id`].
    pub(crate) log: u32,
    pub(crate) position: u64,
}

/// Returns the token of a log position; empty for 0, the position of an empty log.
pub(crate) fn consistency_token(LogPosition { log, position }: LogPosition) -> String {
    match position {
        0 => String::new(),
        _ => format!("{position:016x}{log:08x}{:04x}", check(log, position)),
    }
}

/// Returns the log position of a token.
pub(super) fn log_position(violations: &mut Violations, field: &str, token: &str) -> LogPosition {
    if token.is_empty() {
        return LogPosition::default();
    }
    let number = |begin: usize, digits: usize| u64::from_str_radix(token.get(begin..begin + digits)?, 16).ok();
    let parsed = || {
        let (position, log) = (number(0, POSITION_DIGITS)?, number(POSITION_DIGITS, LOG_DIGITS)?);
        Some(LogPosition { log: log as u32, position })
    };
    parsed().filter(|position| consistency_token(*position) == token).unwrap_or_else(|| {
        let shown = super::shortened(token);
        violations
            .add(field, format!("`{shown}` is no consistency token; send one that a write or an answer returned"));
        LogPosition::default()
    })
}

/// Digits by which a text that is no token, such as a truncated one, is noticed.
fn check(log: u32, position: u64) -> u16 {
    let digest = Sha256::new().chain_update(position.to_be_bytes()).chain_update(log.to_be_bytes()).finalize();
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
        let token = |log, position| consistency_token(LogPosition { log, position });
        assert_eq!(parsed(&token(7, 0)), Some(LogPosition::default()));
        for (log, position) in [(0, 1), (7, 1998), (u32::MAX, u64::MAX)] {
            assert_eq!(parsed(&token(log, position)), Some(LogPosition { log, position }));
        }
        assert!(token(7, 9) < token(7, 10) && token(7, 255) < token(7, 256));
        let token = token(7, 1998);
        for bad in ["1998", "x", &token[1..], &token.to_uppercase(), &format!("{token}0"), "é000000000000000000é"] {
            assert_eq!(parsed(bad), None, "{bad}");
        }
    }
}
