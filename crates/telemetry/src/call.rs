//! The call that the current task answers: its identity for logs, and the times of its stages.
//!
//! A server runs each call within [`Call::scope`]. Code below the server records stages without knowing of it; outside of
//! a call, for example in a command, records have no effect.
use parking_lot::Mutex;
use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::task::JoinHandle;

tokio::task_local! {
    static CURRENT: Arc<Call>;
}

/// Greatest length of the id of a call in bytes.
pub const REQUEST_ID_BYTES_MAX: usize = 128;

/// Greatest number of stages of a call. A stream has some for each of its messages, as long as it lasts.
const STAGES_MAX: usize = 64;

/// A stage of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StageTime {
    pub name: &'static str,
    pub begun: Instant,
    /// Of a stage that several requests share, the share of this one.
    pub time: Duration,
}

impl StageTime {
    /// Returns the stage that began at `begun` and ends now.
    pub fn since(name: &'static str, begun: Instant) -> Self {
        Self { name, begun, time: begun.elapsed() }
    }
}

/// A call, from its arrival to its response.
#[derive(Debug)]
pub struct Call {
    request_id: Mutex<RequestId>,
    trace_id: Option<String>,
    stages: Mutex<Vec<StageTime>>,
    /// Whether the metrics of requests have it.
    is_counted: AtomicBool,
}

#[derive(Debug)]
struct RequestId {
    text: String,
    /// Whether the caller may still name the call, because its headers did not.
    is_generated: bool,
}

/// Returns true if a text can be the id of a call: it can be sent in a header and written to a log on one line.
pub fn is_request_id(text: &[u8]) -> bool {
    (1..=REQUEST_ID_BYTES_MAX).contains(&text.len()) && text.iter().all(u8::is_ascii_graphic)
}

impl Call {
    /// `sent` is the id in the headers; none if the caller sent none, or one that [`is_request_id`] refuses. `trace_id`
    /// has hexadecimal digits.
    pub fn new(sent: Option<String>, trace_id: Option<String>, generate: impl FnOnce() -> String) -> Arc<Self> {
        let is_generated = sent.is_none();
        let request_id = RequestId { text: sent.unwrap_or_else(generate), is_generated };
        Arc::new(Self {
            request_id: Mutex::new(request_id),
            trace_id,
            stages: Mutex::default(),
            is_counted: AtomicBool::new(false),
        })
    }

    /// Returns the call that the current task answers.
    pub fn current() -> Option<Arc<Self>> {
        CURRENT.try_with(Arc::clone).ok()
    }

    /// Runs a future of the call.
    pub fn scope<F: Future>(self: Arc<Self>, future: F) -> impl Future<Output = F::Output> {
        CURRENT.scope(self, future)
    }

    /// Runs a part of the call that does not wait.
    pub fn sync_scope<T>(self: Arc<Self>, part: impl FnOnce() -> T) -> T {
        CURRENT.sync_scope(self, part)
    }

    pub fn request_id(&self) -> String {
        self.request_id.lock().text.clone()
    }

    /// The trace of the call. None: the call is in no trace that anybody records.
    pub fn trace_id(&self) -> Option<&str> {
        self.trace_id.as_deref()
    }

    /// Uses the id of the request's message, unless the headers have one.
    pub fn name(&self, text: &str) {
        let mut request_id = self.request_id.lock();
        if request_id.is_generated && is_request_id(text.as_bytes()) {
            *request_id = RequestId { text: text.to_owned(), is_generated: false };
        }
    }

    /// Returns the stages in the order in which they were recorded, and forgets them.
    pub fn take_stages(&self) -> Vec<StageTime> {
        std::mem::take(&mut self.stages.lock())
    }
}

/// Records stages of the current call, the first [`STAGES_MAX`] of them.
pub fn record_stages(stages: &[StageTime]) {
    // Fails outside of a call.
    let _ = CURRENT.try_with(|call| {
        let mut kept = call.stages.lock();
        let room = STAGES_MAX.saturating_sub(kept.len());
        kept.extend_from_slice(&stages[..stages.len().min(room)]);
    });
}

/// Notes that the metrics of requests have the current call. Returns whether they had it before; false outside of a call.
pub fn count() -> bool {
    CURRENT.try_with(|call| call.is_counted.swap(true, Ordering::Relaxed)).unwrap_or_default()
}

/// Records how long a future of the current call takes.
pub async fn timed<T>(name: &'static str, future: impl Future<Output = T>) -> T {
    let begun = Instant::now();
    let output = future.await;
    record_stages(&[StageTime::since(name, begun)]);
    output
}

/// Runs a future of the current call in a task of its own, which continues if the call is cancelled.
pub fn spawn<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
    match Call::current() {
        Some(call) => tokio::spawn(call.scope(future)),
        None => tokio::spawn(future),
    }
}

/// Records an answer of the workers: the wait until the first of its stages, and these. None: no answer came in time, or
/// the request was refused.
pub fn record_answer(sent: Instant, stages: Option<&[StageTime]>) {
    let Some(stages) = stages else {
        return record_stages(&[StageTime::since("unanswered", sent)]);
    };
    let begun = stages.iter().map(|stage| stage.begun).min().unwrap_or_else(Instant::now);
    record_stages(&[StageTime { name: "queue", begun: sent, time: begun.saturating_duration_since(sent) }]);
    record_stages(stages);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(sent: Option<&str>) -> Arc<Call> {
        Call::new(sent.map(str::to_owned), None, || "generated".to_owned())
    }

    #[test]
    fn ids_are_visible_ascii_of_at_most_128_bytes() {
        for valid in ["a", "shop-7/42~{\"x\"}", &"x".repeat(128)] {
            assert!(is_request_id(valid.as_bytes()), "{valid}");
        }
        for invalid in ["", "a b", "a\n", "\u{e9}", "\u{7f}", &"x".repeat(129)] {
            assert!(!is_request_id(invalid.as_bytes()), "{invalid:?}");
        }
    }

    #[test]
    fn the_id_of_the_headers_comes_before_that_of_the_message_and_this_before_a_generated_one() {
        let (named, unnamed, invalid) = (call(Some("of-headers")), call(None), call(None));
        named.name("of-message");
        assert_eq!(named.request_id(), "of-headers");
        assert_eq!(unnamed.request_id(), "generated");
        unnamed.name("of-message");
        unnamed.name("of-another-message");
        assert_eq!(unnamed.request_id(), "of-message");
        invalid.name("of a message");
        assert_eq!(invalid.request_id(), "generated");
    }

    #[test]
    fn stages_are_recorded_for_the_call_of_the_task_and_nowhere_without_one() {
        assert!(Call::current().is_none());
        let now = Instant::now();
        let stage = |name, begun| StageTime { name, begun, time: Duration::from_millis(2) };
        let later = now + Duration::from_millis(5);
        record_answer(now, Some(&[stage("rank", later)]));
        let call = call(None);
        call.clone().sync_scope(|| {
            assert_eq!(Call::current().unwrap().request_id(), "generated");
            record_answer(now, Some(&[stage("rank", later + Duration::from_millis(2)), stage("state", later)]));
        });
        let stages: Vec<_> = call.take_stages().iter().map(|stage| (stage.name, stage.begun, stage.time)).collect();
        let wait = ("queue", now, Duration::from_millis(5));
        assert_eq!((stages.len(), stages[0], stages[1].0, stages[2].0), (3, wait, "rank", "state"));
        assert!(call.take_stages().is_empty());
        call.clone().sync_scope(|| record_answer(now, None));
        assert_eq!(call.take_stages()[0].name, "unanswered");
        call.clone().sync_scope(|| (0..2 * STAGES_MAX).for_each(|_| record_stages(&[stage("write", now)])));
        assert_eq!(call.take_stages().len(), STAGES_MAX);
    }

    #[test]
    fn a_call_is_counted_once() {
        let call = call(None);
        assert_eq!([call.clone().sync_scope(count), call.sync_scope(count)], [false, true]);
        assert!(!count(), "there is no call");
    }

    #[tokio::test]
    async fn a_task_of_a_call_records_stages_of_the_call() {
        let call = call(None);
        let task = call.clone().sync_scope(|| spawn(timed("write", std::future::ready(7))));
        assert_eq!(task.await.unwrap(), 7);
        assert_eq!(call.take_stages()[0].name, "write");
        assert_eq!(spawn(timed("write", std::future::ready(7))).await.unwrap(), 7);
    }
}
