//! Injected faults: a test makes a step of a write fail or panic for one item or event. Without an armed fault, a check
//! is one relaxed load. Nothing but a test arms faults.
use parking_lot::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The effect of an armed step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    Error,
    Panic,
}

/// The error of a step for which [`Fault::Error`] is armed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a test injected a fault at step `{step}`")]
pub struct InjectedFault {
    step: String,
}

static COUNT: AtomicUsize = AtomicUsize::new(0);
static ARMED: Mutex<Vec<(String, String, Fault)>> = Mutex::new(Vec::new());

/// Arms a step for the item or event with the id `id`, until the returned value is dropped.
pub fn arm(step: &str, id: &str, fault: Fault) -> ArmedFault {
    ARMED.lock().push((step.to_owned(), id.to_owned(), fault));
    COUNT.fetch_add(1, Ordering::Relaxed);
    ArmedFault { step: step.to_owned(), id: id.to_owned() }
}

/// Disarms the fault when it is dropped.
#[must_use]
pub struct ArmedFault {
    step: String,
    id: String,
}

impl Drop for ArmedFault {
    fn drop(&mut self) {
        COUNT.fetch_sub(1, Ordering::Relaxed);
        let mut armed = ARMED.lock();
        if let Some(at) = armed.iter().position(|(step, id, _)| *step == self.step && *id == self.id) {
            armed.remove(at);
        }
    }
}

/// Fails or panics if `step` is armed for one of the ids.
pub fn check<'a>(step: &str, ids: impl IntoIterator<Item = &'a str>) -> Result<(), InjectedFault> {
    if COUNT.load(Ordering::Relaxed) == 0 {
        return Ok(());
    }
    let fault = {
        let armed = ARMED.lock();
        let of = |id: &str| armed.iter().find(|(s, i, _)| s == step && i == id).map(|(_, _, fault)| *fault);
        ids.into_iter().find_map(of)
    };
    match fault {
        None => Ok(()),
        Some(Fault::Error) => Err(InjectedFault { step: step.to_owned() }),
        Some(Fault::Panic) => panic!("a test injected a panic at step `{step}`"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_armed_step_of_the_armed_id_fails() {
        let armed = arm("step-of-this-test", "a", Fault::Error);
        assert!(check("step-of-this-test", ["b", "a"]).is_err());
        assert!(check("step-of-this-test", ["b"]).is_ok() && check("other-step", ["a"]).is_ok());
        drop(armed);
        assert!(check("step-of-this-test", ["a"]).is_ok());
    }
}
