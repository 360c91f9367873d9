//! Waiting for a condition, with a deadline.
use std::time::{Duration, Instant};

/// Time between two tests of a condition.
const INTERVAL: Duration = Duration::from_millis(10);

/// Tests `condition` until it holds. Panics with its name if it does not hold within `limit`.
pub(crate) async fn wait_until(name: &str, limit: Duration, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !condition().await {
        assert!(Instant::now() < deadline, "after {limit:?} this still does not hold: {name}");
        tokio::time::sleep(INTERVAL).await;
    }
}

/// As [`wait_until`], for tests without an asynchronous runtime.
#[expect(clippy::disallowed_methods, reason = "the interval between two tests of a condition that has a deadline")]
pub(crate) fn block_until(name: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !condition() {
        assert!(Instant::now() < deadline, "after {limit:?} this still does not hold: {name}");
        std::thread::sleep(INTERVAL);
    }
}
