//! Serves HTTP/2 on accepted connections, and ends them when the server stops, when they are old, when they are idle, and
//! when their clients read no responses.
//!
//! Connections end with GOAWAY, so that running calls finish and the client sends its next call on another connection,
//! perhaps to another server. The loop is that of `tonic::transport::Server`, which knows neither idle connections nor a
//! jitter of their age, and whose `max_connection_age_grace` sends no GOAWAY (tonic 0.14.9).
use super::{
    CANCELLED_EARLY_MAX, CONNECTION_CALLS_MAX, CONNECTION_WINDOW_BYTES, HEADER_BYTES_MAX, KEEPALIVE,
    connections::Connection,
};
use futures_util::{Stream, StreamExt};
use http::{Request, Response};
use hyper::{body::Incoming, server::conn::http2};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    service::{TowerToHyperService, TowerToHyperServiceFuture},
};
use parking_lot::Mutex;
use std::{
    collections::BTreeMap,
    convert::Infallible,
    future::Future,
    io,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{sync::watch, time::sleep};
use tonic::body::Body;
use tower::Service;

/// Share of the age by which connections end earlier or later, so that the clients of a server that has started do not
/// all come back at once.
const AGE_JITTER: f64 = 0.1;

/// When connections end.
#[derive(Debug, Clone, Copy)]
pub(super) struct ConnectionLimits {
    /// Greatest time without a call. None: no limit.
    pub(super) idle: Option<Duration>,
    /// Greatest age, with a jitter of a tenth. None: no limit.
    pub(super) age: Option<Duration>,
    /// Time for the calls that run at the greatest age. None: as long as they take.
    pub(super) age_grace: Option<Duration>,
    /// Time for a client to read the response of a call with one response. Then the connection ends with GOAWAY, and its
    /// other calls have this time again.
    pub(super) response_read: Duration,
    /// Time without a call after GOAWAY. Then the connection is closed, also if its client ignores the GOAWAY.
    pub(super) goaway_idle: Duration,
}

/// The calls of a connection.
#[derive(Debug)]
pub(super) struct Activity {
    begun: Instant,
    calls: Mutex<OpenCalls>,
}

#[derive(Debug)]
struct OpenCalls {
    count: usize,
    /// When the last one ended, or the connection began.
    idle_since: Instant,
    /// The calls whose response is being sent, with the time since when, by their numbers.
    responding: BTreeMap<u64, Instant>,
    next_number: u64,
}

impl Activity {
    fn new() -> Self {
        let begun = Instant::now();
        let calls = OpenCalls { count: 0, idle_since: begun, responding: BTreeMap::new(), next_number: 0 };
        Self { begun, calls: Mutex::new(calls) }
    }

    fn begin(self: &Arc<Self>) -> OpenCall {
        self.calls.lock().count += 1;
        OpenCall { activity: self.clone(), number: Mutex::new(None) }
    }

    /// Returns when there was no call for `limit`.
    async fn idle(&self, limit: Duration) {
        self.idle_after(self.begun, limit).await;
    }

    /// Returns when there was no call for `limit` after `begun`.
    async fn idle_after(&self, begun: Instant, limit: Duration) {
        loop {
            let idle = {
                let calls = self.calls.lock();
                if calls.count > 0 { Duration::ZERO } else { calls.idle_since.max(begun).elapsed() }
            };
            match limit.checked_sub(idle).filter(|left| !left.is_zero()) {
                None => return,
                // Later calls postpone the end, which is found then.
                Some(left) => sleep(left).await,
            }
        }
    }

    /// Returns when a response was not read within `limit`.
    async fn unread_response(&self, limit: Duration) {
        loop {
            let oldest = self.calls.lock().responding.first_key_value().map(|(_, since)| since.elapsed());
            match limit.checked_sub(oldest.unwrap_or_default()).filter(|left| !left.is_zero()) {
                None => return,
                Some(left) => sleep(left).await,
            }
        }
    }
}

/// A call of a connection, until it is dropped. An extension of its request.
#[derive(Debug)]
pub(super) struct OpenCall {
    activity: Arc<Activity>,
    /// Among the calls whose response is being sent.
    number: Mutex<Option<u64>>,
}

impl OpenCall {
    /// Begins the time in which the client must read the response.
    pub(super) fn respond(&self) {
        let mut number = self.number.lock();
        let calls = &mut *self.activity.calls.lock();
        if number.is_none() {
            calls.responding.insert(calls.next_number, Instant::now());
            *number = Some(calls.next_number);
            calls.next_number += 1;
        }
    }
}

impl Drop for OpenCall {
    fn drop(&mut self) {
        let calls = &mut *self.activity.calls.lock();
        calls.count -= 1;
        calls.idle_since = Instant::now();
        if let Some(number) = *self.number.get_mut() {
            calls.responding.remove(&number);
        }
    }
}

/// The services as a connection calls them: each request has its [`OpenCall`].
struct ConnectionService<S> {
    inner: TowerToHyperService<S>,
    activity: Arc<Activity>,
}

impl<S> hyper::service::Service<Request<Incoming>> for ConnectionService<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = TowerToHyperServiceFuture<S, Request<Body>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(Arc::new(self.activity.begin()));
        self.inner.call(request)
    }
}

/// Serves connections until `stopped` resolves, then accepts no more and returns when all have ended.
pub(super) async fn serve<S>(
    incoming: impl Stream<Item = Connection>,
    service: S,
    limits: ConnectionLimits,
    stopped: impl Future<Output = ()>,
) -> io::Result<()>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    let (drain, draining) = watch::channel(false);
    // In a block, because its end closes the listener: otherwise the system would accept further connections.
    {
        let mut incoming = pin!(incoming);
        let mut stopped = pin!(stopped);
        let mut number = 0_u64;
        loop {
            let connection = tokio::select! {
                () = &mut stopped => break,
                connection = incoming.next() => connection,
            };
            let connection = connection.ok_or_else(|| io::Error::other("the listener ended"))?;
            number += 1;
            let limits = ConnectionLimits { age: limits.age.map(|age| with_jitter(age, number)), ..limits };
            tokio::spawn(serve_connection(connection, service.clone(), limits, draining.clone()));
        }
    }
    drain.send_replace(true);
    drop(draining);
    drain.closed().await;
    Ok(())
}

/// Returns the age of connection `number`. The fractions of the multiples of the golden ratio are spread evenly, whatever
/// the number of connections.
fn with_jitter(age: Duration, number: u64) -> Duration {
    let fraction = (number as f64 * 0.618_033_988_749_894_9).fract();
    age.mul_f64(1.0 - AGE_JITTER + 2.0 * AGE_JITTER * fraction)
}

async fn serve_connection<S>(
    connection: Connection,
    service: S,
    limits: ConnectionLimits,
    mut draining: watch::Receiver<bool>,
) where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    let activity = Arc::new(Activity::new());
    let service = ConnectionService { inner: TowerToHyperService::new(service), activity: activity.clone() };
    let mut http2 = http2::Builder::new(TokioExecutor::new());
    http2
        .timer(TokioTimer::new())
        // Also the limit of small messages of streams that are not read yet: half of it, by h2's count of overhead.
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .keep_alive_interval(KEEPALIVE.0)
        .keep_alive_timeout(KEEPALIVE.1)
        .max_header_list_size(HEADER_BYTES_MAX)
        .max_pending_accept_reset_streams(CANCELLED_EARLY_MAX)
        .max_concurrent_streams(CONNECTION_CALLS_MAX);
    let mut served = pin!(http2.serve_connection(TokioIo::new(connection), service));
    let unread = activity.unread_response(limits.response_read);
    // Fails if the server has ended.
    let drained = pin!(async {
        let _ = draining.wait_for(|is_draining| *is_draining).await;
    });
    let (grace, is_read) = tokio::select! {
        ended = served.as_mut() => return log_end(ended),
        // The library resets no single call whose response it waits to send, so that the others may end first.
        () = unread => {
            log_unread(limits.response_read);
            (Some(limits.response_read), false)
        }
        () = drained => (None, true),
        () = or_never(limits.age.map(sleep)) => (limits.age_grace, true),
        // What arrives before the client has received the GOAWAY is answered, as at the greatest age.
        () = or_never(limits.idle.map(|limit| activity.idle(limit))) => (limits.age_grace, true),
    };
    served.as_mut().graceful_shutdown();
    let goaway = Instant::now();
    tokio::select! {
        ended = served.as_mut() => log_end(ended),
        () = or_never(is_read.then(|| activity.unread_response(limits.response_read))) => {
            log_unread(limits.response_read);
        }
        () = activity.idle_after(goaway, limits.goaway_idle) => {
            tracing::debug!("closing a connection whose client did not end it after GOAWAY");
        }
        () = or_never(grace.map(sleep)) => tracing::debug!(
            age = ?activity.begun.elapsed(), "closing a connection whose calls did not end after GOAWAY"
        ),
    }
}

async fn or_never(future: Option<impl Future<Output = ()>>) {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

fn log_end(ended: hyper::Result<()>) {
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection failed");
    }
}

fn log_unread(limit: Duration) {
    tracing::debug!("ending a connection whose client did not read a response within {limit:?}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::timeout;

    #[test]
    fn ages_differ_by_a_tenth_and_are_spread_evenly() {
        let age = Duration::from_secs(1000);
        let ages: Vec<u64> = (1..=1000).map(|number| with_jitter(age, number).as_secs()).collect();
        assert!(ages.iter().all(|age| (900..=1100).contains(age)));
        for tenth in 0..10 {
            let (from, to) = (900 + 20 * tenth, 920 + 20 * tenth);
            let count = ages.iter().filter(|age| (from..to).contains(*age)).count();
            assert!((95..=105).contains(&count), "{count} connections of 1,000 end within {from}..{to} s");
        }
    }

    #[tokio::test]
    async fn a_connection_is_idle_after_its_last_call() {
        let limit = Duration::from_millis(50);
        let activity = Arc::new(Activity::new());
        let call = activity.begin();
        assert!(timeout(10 * limit, activity.idle(limit)).await.is_err(), "a call runs");
        let other = activity.begin();
        drop(call);
        assert!(timeout(10 * limit, activity.idle(limit)).await.is_err(), "another one runs");
        drop(other);
        activity.idle(limit).await;
        assert!(activity.calls.lock().idle_since.elapsed() >= limit);
    }

    #[tokio::test]
    async fn a_connection_is_idle_after_goaway_for_its_own_time() {
        let limit = Duration::from_millis(50);
        let activity = Arc::new(Activity::new());
        activity.idle(limit).await;
        let goaway = Instant::now();
        activity.idle_after(goaway, limit).await;
        assert!(goaway.elapsed() >= limit, "the time before it does not count");
        let call = activity.begin();
        assert!(timeout(4 * limit, activity.idle_after(goaway, limit)).await.is_err(), "a call runs");
        drop(call);
        activity.idle_after(goaway, limit).await;
    }

    #[tokio::test]
    async fn a_response_must_be_read_within_a_time_that_begins_with_it() {
        let limit = Duration::from_millis(50);
        let activity = Arc::new(Activity::new());
        let (computed, first, second) = (activity.begin(), activity.begin(), activity.begin());
        assert!(timeout(3 * limit, activity.unread_response(limit)).await.is_err(), "no response yet");
        first.respond();
        first.respond();
        second.respond();
        assert_eq!(activity.calls.lock().responding.len(), 2);
        drop(first);
        activity.unread_response(limit).await;
        drop((computed, second));
        let calls = activity.calls.lock();
        assert!(calls.responding.is_empty() && calls.count == 0);
    }
}
