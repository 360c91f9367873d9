//! Limits how many item events of one user count within an hour, so that a program that walks through the catalogue
//! does not decide what is popular.
use ahash::AHashMap;

/// Maximum number of items of one user's events that count within an hour.
const LINES_PER_HOUR_MAX: u32 = 1000;
/// Maximum number of users whose lines are counted. Beyond it all of them are forgotten, which at most repeats their
/// limits.
const USERS_MAX: usize = 1 << 20;
/// Bytes of a record: user u32, hour u32, lines u32.
const RECORD_BYTES: usize = 12;

/// The lines of the users of the last two hours.
#[derive(Debug, Clone, Default)]
pub(super) struct UserRates {
    /// By the checksum of the user's id: the hour since 1970 of the latest event, and the lines since its beginning.
    lines: AHashMap<u32, (u32, u32)>,
    /// The latest hour of any event.
    hour: u32,
}

impl UserRates {
    /// Counts a line of the user's events. Returns whether it is within the limit. An event before the user's latest
    /// hour counts in that hour, so that events with earlier times do not get around the limit.
    pub(super) fn allows(&mut self, user: u32, at_s: u32) -> bool {
        let hour = at_s / 3600;
        if hour > self.hour {
            self.hour = hour;
            self.lines.retain(|_, (of, _)| *of + 1 >= hour);
        }
        if self.lines.len() >= USERS_MAX {
            self.lines.clear();
        }
        let (of, lines) = self.lines.entry(user).or_insert((hour, 0));
        if hour > *of {
            (*of, *lines) = (hour, 0);
        }
        *lines += 1;
        *lines <= LINES_PER_HOUR_MAX
    }

    /// Returns the state for checkpoints.
    pub(super) fn record(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.lines.len() * RECORD_BYTES);
        for (user, (hour, lines)) in &self.lines {
            [user, hour, lines].into_iter().for_each(|number| bytes.extend_from_slice(&number.to_le_bytes()));
        }
        bytes
    }

    /// Adds the users of a record that [`UserRates::record`] returned.
    pub(super) fn restore(&mut self, record: &[u8]) -> Result<(), &'static str> {
        if !record.len().is_multiple_of(RECORD_BYTES) {
            return Err("the rates of users are truncated");
        }
        for record in record.chunks_exact(RECORD_BYTES) {
            let number = |at: usize| u32::from_le_bytes(record[at..at + 4].try_into().expect("four bytes"));
            self.lines.insert(number(0), (number(4), number(8)));
            self.hour = self.hour.max(number(4));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_who_exceeds_the_limit_counts_again_in_the_next_hour_but_not_with_earlier_times() {
        let mut rates = UserRates::default();
        let hour = 500_000 * 3600;
        let allowed = (0..1500).filter(|_| rates.allows(1, hour)).count();
        assert_eq!(allowed, LINES_PER_HOUR_MAX as usize);
        assert!(rates.allows(2, hour), "another user");
        assert!(!rates.allows(1, hour - 30 * 3600), "an earlier time");
        assert!(rates.allows(1, hour + 3600), "the next hour");

        let mut restored = UserRates::default();
        restored.restore(&rates.record()).unwrap();
        assert_eq!((&restored.lines, restored.hour), (&rates.lines, rates.hour));
        assert!(restored.restore(&[0; 13]).is_err());
        // Users of earlier hours are forgotten.
        assert!(rates.allows(3, hour + 9 * 3600));
        assert_eq!(rates.lines.len(), 1);
    }
}
