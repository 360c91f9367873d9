//! Signals that end a command, and one that must not.
use tokio::signal::unix::{Signal, SignalKind, signal};

/// SIGXFSZ on Linux, x86 and ARM.
const SIGXFSZ: i32 = 25;

/// Lets a write beyond the limit of file sizes (`ulimit -f`) fail with an error instead of ending the process.
pub(crate) fn survive_file_size_limit() -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let _context = runtime.enter();
    // tokio never removes a handler, so it outlives the runtime.
    signal(SignalKind::from_raw(SIGXFSZ)).map(drop)
}

/// SIGINT (Ctrl-C) and SIGTERM.
pub(crate) struct StopSignals {
    interrupt: Signal,
    terminate: Signal,
}

impl StopSignals {
    /// Replaces the signals' default action. Must be called within a tokio runtime.
    pub(crate) fn install() -> std::io::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    /// Returns when one of the signals arrives.
    pub(crate) async fn received(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
