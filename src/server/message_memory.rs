//! The memory of all request messages that are built, which is taken from a budget of the process.
//!
//! A call keeps its memory until it no longer needs its message: a call with one message until its response is ready, a
//! stream until it reads the next message or responds.
use super::status;
use parking_lot::Mutex;
use std::sync::{Arc, LazyLock};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Status;

/// Memory for all messages, in KiB.
const BUDGET_KIB: usize = 512 << 10;
/// Messages that take less memory do not count, so that ordinary requests are answered while large messages are handled.
const COUNTED_BYTES_MIN: usize = 1 << 20;

static BUDGET: LazyLock<Arc<Semaphore>> = LazyLock::new(|| Arc::new(Semaphore::new(BUDGET_KIB)));

tokio::task_local! {
    /// The memory of the call whose future is polled.
    static CURRENT: CallMemory;
}

/// What a call has taken from the budget for its current message.
#[derive(Debug, Clone, Default)]
pub(super) struct CallMemory(Arc<Mutex<Option<OwnedSemaphorePermit>>>);

impl CallMemory {
    /// Returns a future that keeps the memory of the messages that it decodes here.
    pub(super) async fn scope<F: Future>(self, future: F) -> F::Output {
        CURRENT.scope(self, future).await
    }

    /// Keeps the memory of the messages that `poll` decodes here.
    pub(super) fn sync_scope<T>(&self, poll: impl FnOnce() -> T) -> T {
        CURRENT.sync_scope(self.clone(), poll)
    }

    /// Returns the memory to the budget.
    pub(super) fn release(&self) {
        *self.0.lock() = None;
    }

    #[cfg(test)]
    pub(super) fn is_held(&self) -> bool {
        self.0.lock().is_some()
    }
}

/// Builds a message that takes about `bytes` of memory. Fails if the budget does not have them.
pub(super) fn build_within_budget<T>(bytes: usize, build: impl FnOnce() -> T) -> Result<T, Status> {
    build_within(&BUDGET, bytes, build)
}

fn build_within<T>(budget: &Arc<Semaphore>, bytes: usize, build: impl FnOnce() -> T) -> Result<T, Status> {
    // The call has handled its previous message.
    keep(None);
    let permit = match bytes {
        ..COUNTED_BYTES_MIN => None,
        _ => {
            let kib = u32::try_from(bytes.div_ceil(1 << 10)).unwrap_or(u32::MAX);
            let permit = budget.clone().try_acquire_many_owned(kib);
            Some(permit.map_err(|_| status::message_memory_overloaded(bytes))?)
        }
    };
    let built = build();
    keep(permit);
    Ok(built)
}

/// Keeps a permit for the current call. Responses that a client decodes belong to no call of the server: their permit is
/// returned.
fn keep(permit: Option<OwnedSemaphorePermit>) {
    let _ = CURRENT.try_with(|memory| *memory.0.lock() = permit);
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Code;
    use tonic_types::StatusExt;

    #[tokio::test]
    async fn a_call_keeps_the_memory_of_its_message_until_it_ends() {
        let budget = Arc::new(Semaphore::new(8 << 10));
        let free = || budget.available_permits();
        let first = CallMemory::default();
        let built = first.sync_scope(|| build_within(&budget, 5 << 20, free));
        assert_eq!((built.unwrap(), free()), (3 << 10, 3 << 10), "taken before the message is built, and kept");

        // A future, as a call with one message is one.
        let second = CallMemory::default().scope(async {
            let status = build_within(&budget, 4 << 20, free).unwrap_err();
            let details = status.get_error_details();
            assert_eq!(
                (status.code(), details.error_info().unwrap().reason.as_str()),
                (Code::ResourceExhausted, "OVERLOADED")
            );
            assert!(details.retry_info().is_some() && status.message().contains("4194304"), "{status:?}");
            build_within(&budget, 3 << 20, || ()).unwrap();
            assert_eq!(free(), 0);
            // The previous message has been handled, and small messages do not count.
            build_within(&budget, COUNTED_BYTES_MIN - 1, || ()).unwrap();
            assert_eq!(free(), 3 << 10);
            build_within(&budget, 2 << 20, || ()).unwrap();
            assert_eq!(free(), 1 << 10);
        });
        second.await;
        assert_eq!(free(), 3 << 10);
        first.release();
        assert_eq!(free(), 8 << 10);

        first.sync_scope(|| build_within(&budget, 5 << 20, || ())).unwrap();
        drop(first);
        assert_eq!(free(), 8 << 10);
        build_within(&budget, 5 << 20, || assert_eq!(free(), 3 << 10)).unwrap();
        assert_eq!(free(), 8 << 10, "outside of a call, only while it is built");
    }
}
