//! Health of a generation: recent outcomes of its answers, and the bounds that they must not violate.
use hdrhistogram::Histogram;
use parking_lot::Mutex;
use std::time::{Duration, Instant};

/// Number of parts of a window. The oldest part expires as a whole.
const PARTS: u64 = 12;

/// Recent outcomes of a generation's answers.
pub struct HealthWindow {
    begun: Instant,
    part_length: Duration,
    parts: Mutex<Vec<Part>>,
}

struct Part {
    number: u64,
    errors: u64,
    degraded: u64,
    /// In µs; the number of its entries is the number of answers.
    latencies: Histogram<u32>,
}

/// Counts and latencies of a health window.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct HealthSummary {
    /// Number of answers and errors.
    pub requests: u64,
    /// Requests whose pipeline panicked.
    pub errors: u64,
    /// Answers without one of the models or sources.
    pub degraded: u64,
    /// Median of the time in a worker.
    pub p50: Duration,
    pub p99: Duration,
}

impl HealthWindow {
    pub fn new(length: Duration) -> Self {
        let part_length = (length / PARTS as u32).max(Duration::from_millis(1));
        Self { begun: Instant::now(), part_length, parts: Mutex::default() }
    }

    pub fn record(&self, latency: Duration, is_degraded: bool) {
        self.in_part(|part| {
            part.latencies.saturating_record((latency.as_micros() as u64).max(1));
            part.degraded += u64::from(is_degraded);
        });
    }

    pub fn record_error(&self) {
        self.in_part(|part| part.errors += 1);
    }

    pub fn summary(&self) -> HealthSummary {
        let mut parts = self.parts.lock();
        self.expire(&mut parts);
        let mut all = latencies();
        let mut summary = HealthSummary::default();
        for part in parts.iter() {
            summary.requests += part.latencies.len() + part.errors;
            summary.errors += part.errors;
            summary.degraded += part.degraded;
            all.add(&part.latencies).expect("the same bounds");
        }
        let at = |share| Duration::from_micros(all.value_at_quantile(share));
        HealthSummary { p50: at(0.5), p99: at(0.99), ..summary }
    }

    fn in_part(&self, record: impl FnOnce(&mut Part)) {
        let mut parts = self.parts.lock();
        let number = self.expire(&mut parts);
        if parts.last().is_none_or(|part| part.number != number) {
            parts.push(Part { number, errors: 0, degraded: 0, latencies: latencies() });
        }
        record(parts.last_mut().expect("one was pushed"));
    }

    /// Drops expired parts and returns the number of the current one.
    fn expire(&self, parts: &mut Vec<Part>) -> u64 {
        let number = (self.begun.elapsed().as_nanos() / self.part_length.as_nanos()) as u64;
        parts.retain(|part| part.number + PARTS > number);
        number
    }
}

fn latencies() -> Histogram<u32> {
    Histogram::new_with_bounds(1, 60_000_000, 2).expect("constant bounds, which are valid")
}

/// Bounds of a generation's health, compared with another generation.
#[derive(Debug, Clone)]
pub struct HealthBounds {
    /// Minimum number of requests for a verdict.
    pub requests_min: u64,
    /// Maximum share of requests with an error.
    pub error_share_max: f64,
    /// Maximum share of degraded answers above the share of the other generation.
    pub degraded_share_max: f64,
    /// Maximum ratio of the 99th percentile of the time in a worker to that of the other generation.
    pub p99_ratio_max: f64,
    /// Minimum ratio of the canary's conversions per user to those of the current generation; 0 accepts any ratio.
    pub conversion_ratio_min: f64,
    /// Length of the health window.
    pub window: Duration,
    /// Time after a swap during which a violation rolls the new generation back.
    pub probation: Duration,
}

impl Default for HealthBounds {
    fn default() -> Self {
        Self {
            requests_min: 200,
            error_share_max: 0.01,
            degraded_share_max: 0.05,
            p99_ratio_max: 2.0,
            conversion_ratio_min: 0.8,
            window: Duration::from_secs(60),
            probation: Duration::from_secs(600),
        }
    }
}

impl HealthBounds {
    /// Returns the first violated bound of the new generation, compared with the old one. None: no bound is violated,
    /// or there are too few requests.
    pub fn violation(&self, new: &HealthSummary, old: &HealthSummary) -> Option<String> {
        if new.requests < self.requests_min {
            return None;
        }
        let share = |count: u64, of: &HealthSummary| count as f64 / of.requests.max(1) as f64;
        let (errors, degraded) = (share(new.errors, new), share(new.degraded, new));
        let degraded_before = share(old.degraded, old);
        let of = format!("of {} answers", new.requests);
        if errors > self.error_share_max {
            return Some(format!(
                "{:.1} % {of} failed, at most {:.1} % may",
                100.0 * errors,
                100.0 * self.error_share_max
            ));
        }
        if degraded > degraded_before + self.degraded_share_max {
            return Some(format!(
                "{:.1} % {of} were degraded, {:.1} % before; at most {:.1} points more are allowed",
                100.0 * degraded,
                100.0 * degraded_before,
                100.0 * self.degraded_share_max
            ));
        }
        let (slow, before) = (new.p99.as_secs_f64(), old.p99.as_secs_f64());
        if old.requests >= self.requests_min && slow > before * self.p99_ratio_max {
            return Some(format!(
                "the 99th percentile {of} is {:.2} ms, {:.2} ms before; at most {:.1} times that is allowed",
                1000.0 * slow,
                1000.0 * before,
                self.p99_ratio_max
            ));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(requests: u64, errors: u64, degraded: u64, p99_ms: u64) -> HealthSummary {
        HealthSummary { requests, errors, degraded, p50: Duration::ZERO, p99: Duration::from_millis(p99_ms) }
    }

    #[test]
    fn each_violated_bound_is_described_and_few_requests_give_no_verdict() {
        let bounds = HealthBounds::default();
        let old = summary(1000, 0, 100, 10);
        let violation = |new: HealthSummary| bounds.violation(&new, &old).unwrap_or_default();
        assert_eq!(violation(summary(1000, 10, 150, 20)), "");
        assert_eq!(violation(summary(199, 199, 199, 900)), "");
        assert!(violation(summary(1000, 11, 0, 1)).contains("1.1 % of 1000 answers failed"));
        assert!(violation(summary(1000, 0, 151, 1)).contains("15.1 % of 1000 answers were degraded"));
        assert!(violation(summary(1000, 0, 0, 21)).contains("21.00 ms"));
        assert_eq!(
            bounds.violation(&summary(1000, 0, 0, 900), &summary(10, 0, 0, 1)),
            None,
            "the old generation has too few requests"
        );
    }

    #[test]
    fn outcomes_expire_after_the_window() {
        let window = HealthWindow::new(Duration::from_millis(240));
        window.record(Duration::from_millis(3), true);
        window.record_error();
        let seen = window.summary();
        assert_eq!((seen.requests, seen.errors, seen.degraded), (2, 1, 1));
        assert!((2.9..3.2).contains(&(1000.0 * seen.p99.as_secs_f64())));
        let expiry = Instant::now() + Duration::from_secs(20);
        while window.summary().requests > 0 && Instant::now() < expiry {
            std::thread::yield_now();
        }
        assert_eq!(window.summary().requests, 0);
    }
}
