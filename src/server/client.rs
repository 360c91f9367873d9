//! Clients: who makes a call, what they may do, and how much.
use super::{access::Role, proto, services::Services, status};
use governor::{
    DefaultDirectRateLimiter, Quota, RateLimiter,
    clock::{Clock, DefaultClock},
};
use lodestone_core::units::UnixMillis;
use lodestone_telemetry::Metrics;
use parking_lot::Mutex;
use std::{collections::BTreeSet, num::NonZeroU32, sync::Arc, time::Duration};
use tonic::{Request, Status};

/// Slowest rate of requests: one in 1,000 s.
const RATE_MIN: f64 = 0.001;
const RATE_MAX: f64 = 1e6;
const BURST_MAX: u32 = 1_000_000;

/// How much a client may do. None: as much as it likes.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ClientLimits {
    /// Messages of requests per second, on average.
    pub requests_per_second: Option<f64>,
    /// Messages of requests that may come at once after a pause. None: those of one second, at least 1.
    pub burst: Option<u32>,
    /// Events and items in messages that write or delete them, per day in UTC.
    pub changes_per_day: Option<u64>,
}

impl ClientLimits {
    /// Checks the values. The message begins with the name of the field.
    pub fn check(self) -> Result<Self, String> {
        if let Some(rate) = self.requests_per_second.filter(|rate| !(RATE_MIN..=RATE_MAX).contains(rate)) {
            return Err(format!("requests_per_second is {rate}; it must be within {RATE_MIN} and {RATE_MAX}"));
        }
        if let Some(burst) = self.burst.filter(|burst| !(1..=BURST_MAX).contains(burst)) {
            return Err(format!("burst is {burst}; it must be within 1 and {BURST_MAX}"));
        }
        if self.burst.is_some() && self.requests_per_second.is_none() {
            return Err("burst needs requests_per_second".to_owned());
        }
        if self.changes_per_day == Some(0) {
            return Err("changes_per_day is 0; it must be at least 1. To forbid writes, remove the roles".to_owned());
        }
        Ok(self)
    }

    /// Returns these limits, and those of `default` where there are none. Rate and burst belong together.
    pub(super) fn or(self, default: Self) -> Self {
        let rate = if self.requests_per_second.is_some() { self } else { default };
        Self {
            requests_per_second: rate.requests_per_second,
            burst: rate.burst,
            changes_per_day: self.changes_per_day.or(default.changes_per_day),
        }
    }

    /// Returns the rate and burst as a quota of the limiter. Both are checked.
    fn quota(self) -> Option<Quota> {
        let rate = self.requests_per_second?;
        let burst = self.burst.unwrap_or((rate.ceil() as u32).max(1));
        let period = Quota::with_period(Duration::from_secs_f64(1.0 / rate))?;
        Some(period.allow_burst(NonZeroU32::new(burst)?))
    }
}

/// The changes of a day in UTC.
#[derive(Debug, Clone, Copy, Default)]
struct ChangeCount {
    day: i64,
    count: u64,
}

/// What a client has used of its limits. In memory, so it is empty after a restart.
pub(super) struct Usage {
    limits: ClientLimits,
    requests: Option<DefaultDirectRateLimiter>,
    changes: Mutex<ChangeCount>,
}

impl Usage {
    pub(super) fn new(limits: ClientLimits) -> Self {
        Self { limits, requests: limits.quota().map(RateLimiter::direct), changes: Mutex::default() }
    }

    /// Returns the usage of a client whose limits are read again. Equal limits keep all counts, others those of the day.
    pub(super) fn with_limits(former: Option<&Arc<Self>>, limits: ClientLimits) -> Arc<Self> {
        match former {
            None => Arc::new(Self::new(limits)),
            Some(former) if former.limits == limits => former.clone(),
            Some(former) => Arc::new(Self { changes: Mutex::new(*former.changes.lock()), ..Self::new(limits) }),
        }
    }

    /// Counts a message of a request. Fails with the time until there is room for one.
    fn admit_request(&self) -> Result<(), Duration> {
        let Some(requests) = &self.requests else { return Ok(()) };
        requests.check().map_err(|until| until.wait_time_from(DefaultClock::default().now()))
    }

    /// Counts changes, all of them or none. Fails with the remaining number and the time until the next day.
    fn admit_changes(&self, count: u64, now: UnixMillis) -> Result<(), (u64, Duration)> {
        let Some(limit) = self.limits.changes_per_day else { return Ok(()) };
        let day = now.0.div_euclid(UnixMillis::DAY);
        let mut changes = self.changes.lock();
        if changes.day != day {
            *changes = ChangeCount { day, count: 0 };
        }
        let left = limit.saturating_sub(changes.count);
        if count > left {
            let next_day = (day + 1) * UnixMillis::DAY;
            return Err((left, Duration::from_millis(next_day.saturating_sub(now.0).max(0) as u64)));
        }
        changes.count += count;
        Ok(())
    }
}

/// How a client proves who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ClientKind {
    ApiKey,
    Token,
}

impl ClientKind {
    /// Returns the name in the audit log.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::ApiKey => "api_key",
            Self::Token => "token",
        }
    }
}

/// Who makes a call.
pub(crate) struct Client {
    /// The name of an API key, or the subject of a token.
    pub(crate) name: String,
    pub(crate) kind: ClientKind,
    /// Its label in metrics, of which there are few.
    pub(super) label: String,
    pub(super) roles: BTreeSet<Role>,
    /// None: all.
    pub(super) catalogs: Option<BTreeSet<String>>,
    pub(super) usage: Arc<Usage>,
}

impl Client {
    /// Counts a message of a request, and refuses it beyond the client's rate.
    pub(super) fn admit_request(&self, metrics: &Metrics) -> Result<(), Status> {
        metrics.client_request(&self.label);
        self.usage.admit_request().map_err(|wait| {
            metrics.client_refused(&self.label, "rate");
            status::rate_limited(self.usage.limits.requests_per_second.unwrap_or_default(), wait)
        })
    }

    /// Waits until the client's rate has room for a further message of a stream. A refusal would end the stream, whose
    /// messages the client would then send again. A stream waits before it reads the message, because one that was built
    /// keeps its part of the memory of messages.
    pub(super) async fn pace(&self) {
        while let Err(wait) = self.usage.admit_request() {
            tokio::time::sleep(wait).await;
        }
    }

    /// Counts a further message of a stream.
    pub(super) fn count_message(&self, metrics: &Metrics) {
        metrics.client_request(&self.label);
    }

    /// Counts the entries of a message that changes them, and refuses it beyond the client's quota.
    pub(super) fn admit_changes(&self, count: usize, metrics: &Metrics) -> Result<(), Status> {
        self.usage.admit_changes(count as u64, UnixMillis::now()).map_err(|(left, wait)| {
            metrics.client_refused(&self.label, "quota");
            status::quota_exceeded(count, left, self.usage.limits.changes_per_day.unwrap_or_default(), wait)
        })
    }

    pub(super) fn has(&self, role: Role) -> bool {
        self.roles.contains(&role)
    }

    pub(super) fn may_use(&self, catalog: &[u8]) -> bool {
        self.catalogs.as_ref().is_none_or(|catalogs| catalogs.iter().any(|name| name.as_bytes() == catalog))
    }
}

/// Returns the client of a call. None: the server does not authenticate.
pub(crate) fn client_of<T>(request: &Request<T>) -> Option<Arc<Client>> {
    request.extensions().get::<Arc<Client>>().cloned()
}

impl Services {
    /// Counts the entries of a message that changes them. Fails beyond the quota of the client.
    pub(super) fn admit_changes<T>(&self, request: &Request<T>, count: usize) -> Result<(), Status> {
        client_of(request).map_or(Ok(()), |client| client.admit_changes(count, &self.metrics))
    }

    /// Refuses the debug levels that show the models and the values of items to a client that may not have them. `field`
    /// has the level.
    pub(super) fn check_debug_level<T>(&self, request: &Request<T>, field: &str, level: i32) -> Result<(), Status> {
        let is_internal = [proto::DebugLevel::Scores, proto::DebugLevel::Features].map(i32::from).contains(&level);
        match client_of(request) {
            Some(client) if is_internal && !client.has(Role::Debug) => {
                Err(status::debug_denied(field, Role::Debug.name()))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(requests_per_second: f64, burst: u32, changes_per_day: u64) -> ClientLimits {
        ClientLimits {
            requests_per_second: Some(requests_per_second),
            burst: Some(burst),
            changes_per_day: Some(changes_per_day),
        }
    }

    #[test]
    fn limits_out_of_range_are_refused_with_the_field() {
        let none = ClientLimits::default();
        assert!(
            none.check().is_ok() && limits(0.001, 1, 1).check().is_ok() && limits(1e6, 1_000_000, 1).check().is_ok()
        );
        for (limits, part) in [
            (limits(0.0, 1, 1), "requests_per_second is 0;"),
            (limits(f64::NAN, 1, 1), "requests_per_second is NaN;"),
            (limits(f64::INFINITY, 1, 1), "requests_per_second is inf;"),
            (limits(1.0, 0, 1), "burst is 0;"),
            (limits(1.0, 1_000_001, 1), "burst is 1000001;"),
            (ClientLimits { burst: Some(1), ..none }, "burst needs requests_per_second"),
            (limits(1.0, 1, 0), "changes_per_day is 0;"),
        ] {
            let problem = limits.check().unwrap_err();
            assert!(problem.starts_with(part), "{problem}");
        }
    }

    #[test]
    fn a_client_without_limits_has_the_default_ones() {
        let default = limits(5.0, 7, 100);
        assert_eq!(ClientLimits::default().or(default), default);
        let fast = ClientLimits { requests_per_second: Some(50.0), ..ClientLimits::default() };
        assert_eq!(fast.or(default), ClientLimits { burst: None, changes_per_day: Some(100), ..fast });
        assert_eq!(fast.quota().unwrap().burst_size().get(), 50);
        let slow = ClientLimits { requests_per_second: Some(0.25), ..ClientLimits::default() };
        let quota = slow.quota().unwrap();
        assert_eq!((quota.burst_size().get(), quota.replenish_interval()), (1, Duration::from_secs(4)));
    }

    #[test]
    fn requests_beyond_burst_and_rate_are_refused_with_the_time_to_wait() {
        // So slow that no request is replenished while the test runs.
        let usage = Usage::new(limits(0.001, 3, 10));
        for _ in 0..3 {
            assert_eq!(usage.admit_request(), Ok(()));
        }
        for _ in 0..2 {
            let wait = usage.admit_request().unwrap_err().as_secs_f64();
            assert!((900.0..=1000.0).contains(&wait), "{wait}");
        }
        assert!(Usage::new(ClientLimits::default()).admit_request().is_ok());
    }

    #[test]
    fn changes_beyond_the_quota_are_refused_until_the_next_day() {
        let usage = Usage::new(limits(1.0, 1, 10));
        let day = |days: i64, ms: i64| UnixMillis(days * UnixMillis::DAY + ms);
        assert_eq!(usage.admit_changes(7, day(20, 0)), Ok(()));
        let hour = Duration::from_secs(3600);
        let at = day(20, UnixMillis::DAY - 3_600_000);
        assert_eq!(usage.admit_changes(4, at), Err((3, hour)), "nothing of a refused message counts");
        assert_eq!(usage.admit_changes(3, at), Ok(()));
        assert_eq!(usage.admit_changes(1, at), Err((0, hour)));
        assert_eq!(usage.admit_changes(10, day(21, 0)), Ok(()));
        assert!(usage.admit_changes(11, day(22, 0)).is_err());
    }

    #[test]
    fn limits_that_are_read_again_keep_what_was_used() {
        let (same, other) = (limits(0.001, 1, 10), limits(0.001, 2, 10));
        let usage = Usage::with_limits(None, same);
        let now = UnixMillis(0);
        assert!(usage.admit_request().is_ok() && usage.admit_changes(10, now).is_ok());
        let again = Usage::with_limits(Some(&usage), same);
        assert!(again.admit_request().is_err() && again.admit_changes(1, now).is_err());
        let changed = Usage::with_limits(Some(&usage), other);
        assert!(changed.admit_request().is_ok() && changed.admit_changes(1, now).is_err());
    }
}
