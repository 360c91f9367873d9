//! The thread that publishes popularity, so that no request computes it.
use crossbeam_channel::{RecvTimeoutError, Sender};
use lodestone_core::units::UnixMillis;
use lodestone_events::panic_message;
use lodestone_state::LiveState;
use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

/// Minimum pause between two snapshots.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// Minimum pause as a multiple of the duration of the last snapshot, so that large catalogues use a tenth of a core.
const PAUSE_FACTOR: u32 = 9;
/// Maximum age of a snapshot, because trends change without events, too.
const AGE_MAX: Duration = Duration::from_secs(60);

/// Starts the thread that publishes the state's popularity soon after each signal and at least once in [`AGE_MAX`]. It
/// ends when the sender is dropped.
pub(crate) fn start_publishing(state: Arc<LiveState>) -> io::Result<Sender<()>> {
    let (sender, signals) = crossbeam_channel::bounded::<()>(1);
    thread::Builder::new().name("popularity".into()).spawn(move || {
        while signals.recv_timeout(AGE_MAX) != Err(RecvTimeoutError::Disconnected) {
            let begun = Instant::now();
            // A panic must not end the thread, because later snapshots may succeed.
            let publish = AssertUnwindSafe(|| state.publish_popularity(UnixMillis::now()));
            if let Err(panic) = catch_unwind(publish) {
                tracing::error!(reason = panic_message(&*panic), "cannot publish popularity");
            }
            let pause = PAUSE_MIN.max(begun.elapsed() * PAUSE_FACTOR);
            let _ = crossbeam_channel::never::<()>().recv_timeout(pause);
        }
    })?;
    Ok(sender)
}
