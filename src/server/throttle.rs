//! Limits the lines of a log, so that an overload does not flood it.
use parking_lot::Mutex;
use std::time::{Duration, Instant};

/// Lets a number of lines through in each interval, and counts the others.
#[derive(Debug)]
pub(super) struct Throttle {
    lines_max: u32,
    interval: Duration,
    window: Mutex<Window>,
}

#[derive(Debug, Default)]
struct Window {
    begun: Option<Instant>,
    lines: u32,
    /// Since the last line.
    omitted: u64,
}

impl Throttle {
    pub(super) fn new(lines_max: u32, interval: Duration) -> Self {
        Self { lines_max, interval, window: Mutex::default() }
    }

    /// Returns the number of lines that were left out before this one; none if this one is left out too.
    pub(super) fn admit(&self, now: Instant) -> Option<u64> {
        let mut window = self.window.lock();
        if window.begun.is_none_or(|begun| now.saturating_duration_since(begun) >= self.interval) {
            (window.begun, window.lines) = (Some(now), 0);
        }
        if window.lines == self.lines_max {
            window.omitted += 1;
            return None;
        }
        window.lines += 1;
        Some(std::mem::take(&mut window.omitted))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_lines_of_an_interval_pass_and_the_next_one_counts_the_others() {
        let throttle = Throttle::new(2, Duration::from_secs(10));
        let begun = Instant::now();
        let admitted = [0, 1, 2, 9, 10, 11, 19, 20].map(|second| throttle.admit(begun + Duration::from_secs(second)));
        assert_eq!(admitted, [Some(0), Some(0), None, None, Some(2), Some(0), None, Some(1)]);
    }
}
