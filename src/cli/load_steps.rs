//! `lodestone load-test --steps`: what becomes of calls with a deadline while the load changes, beyond the capacity and
//! back.
//!
//! The generator usually shares its cores with the server, so it is cheap: one thread, requests that are encoded before
//! the measurement, responses that are not decoded.
use super::{
    client::{ServerArgs, ServerChannel},
    load_test::{Calls, connect},
};
use anyhow::Context;
use hdrhistogram::Histogram;
use parking_lot::Mutex;
use prost::bytes::{Buf, BufMut, Bytes};
use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval},
};
use tonic::{
    Code, Request, Status,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::http::uri::PathAndQuery,
};
use tonic_types::StatusExt;

/// Different requests. Their answers are no longer in the caches of the processor when one is sent again.
const REQUESTS: u64 = 4096;
/// Requests that are due within a tick are sent together. Timers are not finer.
const TICK: Duration = Duration::from_millis(1);
const RATE_MAX: f64 = 1e6;
const SECONDS_MAX: f64 = 3600.0;

/// A part of the measurement.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Step {
    /// Requests per second. None: one request in flight per connection.
    rate: Option<f64>,
    seconds: f64,
}

/// Parses `RATE:SECONDS` or `closed:SECONDS`.
pub(super) fn step(text: &str) -> Result<Step, String> {
    let (rate, seconds) = text.split_once(':').ok_or("expected RATE:SECONDS, such as 1000:5, or closed:SECONDS")?;
    let number = |name: &str, text: &str, limit: f64| {
        let value = text.parse::<f64>().ok().filter(|value| *value > 0.0 && *value <= limit);
        value.ok_or_else(|| format!("{name} is `{text}`; it must be a number above 0, at most {limit}"))
    };
    let rate = if rate == "closed" { None } else { Some(number("the rate", rate, RATE_MAX)?) };
    Ok(Step { rate, seconds: number("the duration", seconds, SECONDS_MAX)? })
}

/// The result of `lodestone load-test --steps`.
#[derive(serde::Serialize)]
pub(super) struct StepsReport {
    rpc: &'static str,
    connections: usize,
    deadline_ms: u64,
    steps: Vec<StepReport>,
}

/// The calls that were sent in a step.
#[derive(serde::Serialize)]
struct StepReport {
    /// None: one request in flight per connection.
    rate_per_s: Option<f64>,
    seconds: f64,
    sent: u64,
    /// Answers within the deadline, per second.
    good_per_s: f64,
    /// Answers after the deadline, and calls that the deadline ended.
    late: u64,
    /// Refused with RESOURCE_EXHAUSTED.
    refused: u64,
    /// Those of them with a RetryInfo.
    refused_with_retry_info: u64,
    /// Other errors.
    failed: u64,
    /// Code and message of the first of them.
    first_failure: Option<String>,
    /// Latency of the calls that were not refused, with those that the deadline ended.
    p50_ms: f64,
    p99_ms: f64,
    /// Time until a refusal arrived.
    refused_p50_ms: f64,
    refused_p99_ms: f64,
    /// Time by which calls were sent too late. Latencies count from the sending.
    lag_p99_ms: f64,
    /// By the second in which the calls were sent.
    by_second: Vec<SecondReport>,
}

#[derive(serde::Serialize)]
struct SecondReport {
    sent: u64,
    good: u64,
    p99_ms: f64,
}

impl StepsReport {
    /// Returns the number of calls that were answered in time.
    pub(super) fn answered(&self) -> u64 {
        self.steps.iter().flat_map(|step| &step.by_second).map(|second| second.good).sum()
    }
}

impl fmt::Display for StepsReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} with {} connections and a deadline of {} ms", self.rpc, self.connections, self.deadline_ms)?;
        writeln!(
            f,
            "{:>9} {:>5}  {:>8} {:>9} {:>7} {:>8} {:>8} {:>8}  {:>11} {:>10}  {:>6}",
            "at rate/s",
            "s",
            "sent",
            "in time/s",
            "late",
            "p50 ms",
            "p99 ms",
            "refused",
            "RetryInfo",
            "p99 ms",
            "failed"
        )?;
        for of in &self.steps {
            let rate = of.rate_per_s.map_or("closed".to_owned(), |rate| format!("{rate:.0}"));
            writeln!(
                f,
                "{rate:>9} {:>5}  {:>8} {:>9.0} {:>7} {:>8.2} {:>8.2} {:>8}  {:>11} {:>10.2}  {:>6}",
                of.seconds,
                of.sent,
                of.good_per_s,
                of.late,
                of.p50_ms,
                of.p99_ms,
                of.refused,
                of.refused_with_retry_info,
                of.refused_p99_ms,
                of.failed
            )?;
        }
        match self.steps.iter().find_map(|step| step.first_failure.as_ref()) {
            Some(failure) => writeln!(f, "first failure: {failure}"),
            None => Ok(()),
        }
    }
}

/// Sends bytes as they are, and drops those that arrive.
struct RawCodec;

impl Codec for RawCodec {
    type Encode = Bytes;
    type Decode = ();
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for RawCodec {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(message);
        Ok(())
    }
}

impl Decoder for RawCodec {
    type Item = ();
    type Error = Status;

    fn decode(&mut self, message: &mut DecodeBuf<'_>) -> Result<Option<()>, Status> {
        message.advance(message.remaining());
        Ok(Some(()))
    }
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 3_600_000_000, 3).expect("fixed bounds that the histogram allows")
}

fn record(times: &mut Histogram<u64>, time: Duration) {
    times.saturating_record((time.as_micros() as u64).max(1));
}

fn percentile_ms(times: &Histogram<u64>, share: f64) -> f64 {
    times.value_at_quantile(share) as f64 / 1000.0
}

/// The calls of a step so far.
struct Outcomes {
    deadline: Duration,
    late: u64,
    refused_with_retry_info: u64,
    failed: u64,
    first_failure: Option<Status>,
    admitted: Histogram<u64>,
    refused: Histogram<u64>,
    lag: Histogram<u64>,
    by_second: Vec<SecondOutcomes>,
}

struct SecondOutcomes {
    sent: u64,
    good: u64,
    admitted: Histogram<u64>,
}

impl Outcomes {
    fn new(deadline: Duration) -> Self {
        Self {
            deadline,
            late: 0,
            refused_with_retry_info: 0,
            failed: 0,
            first_failure: None,
            admitted: histogram(),
            refused: histogram(),
            lag: histogram(),
            by_second: Vec::new(),
        }
    }

    fn second(&mut self, number: usize) -> &mut SecondOutcomes {
        while self.by_second.len() <= number {
            self.by_second.push(SecondOutcomes { sent: 0, good: 0, admitted: histogram() });
        }
        &mut self.by_second[number]
    }

    /// Notes a call that is sent in second `number` of the step, later than it was due by `lag`.
    fn send(&mut self, number: usize, lag: Duration) {
        record(&mut self.lag, lag);
        self.second(number).sent += 1;
    }

    /// Notes the outcome of a call that was sent in second `number`.
    fn finish(&mut self, number: usize, latency: Duration, outcome: Result<(), Status>) {
        let is_admitted = match outcome {
            Ok(()) if latency <= self.deadline => {
                self.second(number).good += 1;
                true
            }
            Ok(()) => {
                self.late += 1;
                true
            }
            Err(status) => match status.code() {
                // The library of the client reports a deadline as CANCELLED.
                Code::DeadlineExceeded | Code::Cancelled => {
                    self.late += 1;
                    true
                }
                Code::ResourceExhausted => {
                    record(&mut self.refused, latency);
                    self.refused_with_retry_info += u64::from(status.get_error_details().retry_info().is_some());
                    false
                }
                _ => {
                    self.failed += 1;
                    self.first_failure.get_or_insert(status);
                    false
                }
            },
        };
        if is_admitted {
            record(&mut self.admitted, latency);
            record(&mut self.second(number).admitted, latency);
        }
    }

    fn report(&self, step: Step, server: &ServerArgs) -> StepReport {
        let sum = |of: fn(&SecondOutcomes) -> u64| self.by_second.iter().map(of).sum::<u64>();
        let of_second = |second: &SecondOutcomes| SecondReport {
            sent: second.sent,
            good: second.good,
            p99_ms: percentile_ms(&second.admitted, 0.99),
        };
        StepReport {
            rate_per_s: step.rate,
            seconds: step.seconds,
            sent: sum(|second| second.sent),
            good_per_s: sum(|second| second.good) as f64 / step.seconds,
            late: self.late,
            refused: self.refused.len(),
            refused_with_retry_info: self.refused_with_retry_info,
            failed: self.failed,
            first_failure: self.first_failure.as_ref().map(|status| server.describe(status)),
            p50_ms: percentile_ms(&self.admitted, 0.50),
            p99_ms: percentile_ms(&self.admitted, 0.99),
            refused_p50_ms: percentile_ms(&self.refused, 0.50),
            refused_p99_ms: percentile_ms(&self.refused, 0.99),
            lag_p99_ms: percentile_ms(&self.lag, 0.99),
            by_second: self.by_second.iter().map(of_second).collect(),
        }
    }
}

/// What all calls of a measurement share.
struct Generator {
    path: PathAndQuery,
    /// Encoded.
    requests: Vec<Bytes>,
    channels: Vec<ServerChannel>,
    deadline: Duration,
}

impl Generator {
    async fn call(&self, number: usize, channel: ServerChannel) -> Result<(), Status> {
        let mut client = Grpc::new(channel);
        client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let mut request = Request::new(self.requests[number % self.requests.len()].clone());
        request.set_timeout(self.deadline);
        client.unary(request, self.path.clone(), RawCodec).await.map(drop)
    }

    /// Sends a call of a step that began at `started`, and notes its outcome.
    async fn measure(&self, number: usize, channel: ServerChannel, started: Instant, outcomes: &Mutex<Outcomes>) {
        let sent = Instant::now();
        let second = (sent - started).as_secs() as usize;
        let outcome = self.call(number, channel).await;
        outcomes.lock().finish(second, sent.elapsed(), outcome);
    }

    /// Keeps one call in flight on each connection.
    async fn closed_loop(self: &Arc<Self>, length: Duration, outcomes: &Arc<Mutex<Outcomes>>) {
        let started = Instant::now();
        let callers = self.channels.iter().enumerate().map(|(index, channel)| {
            let (this, channel, outcomes) = (self.clone(), channel.clone(), outcomes.clone());
            tokio::spawn(async move {
                let mut number = index;
                while started.elapsed() < length {
                    outcomes.lock().send(started.elapsed().as_secs() as usize, Duration::ZERO);
                    this.measure(number, channel.clone(), started, &outcomes).await;
                    number += this.channels.len();
                }
            })
        });
        futures_util::future::join_all(callers.collect::<Vec<_>>()).await;
    }

    /// Sends calls on schedule, whatever becomes of them. `running` is held by every call.
    async fn open_loop(
        self: &Arc<Self>,
        rate: f64,
        length: Duration,
        outcomes: &Arc<Mutex<Outcomes>>,
        running: &mpsc::Sender<()>,
    ) {
        let started = Instant::now();
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut number = 0;
        loop {
            ticks.tick().await;
            let elapsed = started.elapsed();
            let due = (elapsed.min(length).as_secs_f64() * rate) as usize;
            while number < due {
                let lag = elapsed.saturating_sub(Duration::from_secs_f64(number as f64 / rate));
                outcomes.lock().send(elapsed.as_secs() as usize, lag);
                let (this, outcomes, running) = (self.clone(), outcomes.clone(), running.clone());
                let channel = self.channels[number % self.channels.len()].clone();
                tokio::spawn(async move {
                    this.measure(number, channel, started, &outcomes).await;
                    drop(running);
                });
                number += 1;
            }
            if elapsed >= length {
                return;
            }
        }
    }

    async fn run(self: Arc<Self>, steps: &[Step]) -> Vec<Arc<Mutex<Outcomes>>> {
        let (running, mut ended) = mpsc::channel(1);
        let mut all = Vec::with_capacity(steps.len());
        for step in steps {
            let outcomes = Arc::new(Mutex::new(Outcomes::new(self.deadline)));
            let length = Duration::from_secs_f64(step.seconds);
            match step.rate {
                None => self.closed_loop(length, &outcomes).await,
                Some(rate) => self.open_loop(rate, length, &outcomes, &running).await,
            }
            all.push(outcomes);
        }
        drop(running);
        // Until no call holds a sender. The deadline ends each of them.
        let _ = ended.recv().await;
        all
    }
}

/// Runs the steps one after the other.
pub(super) fn run(
    calls: &Calls,
    server: &ServerArgs,
    connections: usize,
    steps: &[Step],
    deadline: Duration,
) -> anyhow::Result<StepsReport> {
    let encoded = (0..REQUESTS).map(|number| calls.encoded(number)).collect::<Option<Vec<_>>>();
    let encoded =
        encoded.with_context(|| format!("--steps takes recommend, search, browse or suggest, not {}", calls.rpc()))?;
    let path = PathAndQuery::from_static(encoded[0].0);
    let requests = encoded.into_iter().map(|(_, message)| Bytes::from(message)).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcomes = runtime.block_on(async {
        let channels = connect(server, connections).await?;
        anyhow::Ok(Arc::new(Generator { path, requests, channels, deadline }).run(steps).await)
    })?;
    Ok(StepsReport {
        rpc: calls.rpc(),
        connections,
        deadline_ms: deadline.as_millis() as u64,
        steps: steps.iter().zip(outcomes).map(|(step, outcomes)| outcomes.lock().report(*step, server)).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic_types::ErrorDetails;

    #[test]
    fn a_step_is_a_rate_or_a_closed_loop_with_a_duration() {
        assert_eq!(step("1000:2.5"), Ok(Step { rate: Some(1000.0), seconds: 2.5 }));
        assert_eq!(step("closed:3"), Ok(Step { rate: None, seconds: 3.0 }));
        for (text, part) in [
            ("1000", "RATE:SECONDS"),
            ("0:2", "the rate is `0`"),
            ("fast:2", "the rate is `fast`"),
            ("NaN:2", "the rate is `NaN`"),
            ("1000:", "the duration is ``"),
            ("1000:3601", "at most 3600"),
        ] {
            let error = step(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn outcomes_are_good_late_refused_or_failed() {
        let ms = Duration::from_millis;
        let mut outcomes = Outcomes::new(ms(100));
        let retry = ErrorDetails::with_retry_info(Some(ms(200)));
        let refused = Status::with_error_details(Code::ResourceExhausted, "overloaded", retry);
        for (second, latency, outcome) in [
            (0, ms(100), Ok(())),
            (0, ms(101), Ok(())),
            (1, ms(40), Ok(())),
            (1, ms(100), Err(Status::deadline_exceeded(""))),
            (1, ms(100), Err(Status::cancelled("Timeout expired"))),
            (1, ms(2), Err(refused)),
            (1, ms(3), Err(Status::resource_exhausted(""))),
            (2, ms(4), Err(Status::internal("a bug"))),
        ] {
            outcomes.send(second, ms(1));
            outcomes.finish(second, latency, outcome);
        }
        let server = crate::cli::client::tests::server(&[]);
        let report = outcomes.report(Step { rate: Some(8.0), seconds: 2.0 }, &server);
        assert_eq!((report.sent, report.late, report.refused, report.failed), (8, 3, 2, 1));
        assert_eq!((report.refused_with_retry_info, report.good_per_s), (1, 1.0));
        assert!((report.refused_p99_ms - 3.0).abs() < 0.1 && (report.p99_ms - 101.0).abs() < 0.2);
        let by_second: Vec<_> = report.by_second.iter().map(|second| (second.sent, second.good)).collect();
        assert_eq!(by_second, [(2, 1), (5, 1), (1, 0)]);
        assert!(report.first_failure.unwrap().contains("a bug"));
    }
}
