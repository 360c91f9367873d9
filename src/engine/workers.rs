//! Threads that answer, each with its own models. The queue before them is bounded: what does not fit is refused at
//! once, and a request whose caller has gone is dropped before it costs anything.
use super::{models::Models, request::EngineError};
use crossbeam_channel::{Sender, TrySendError, bounded};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    thread,
    time::{Duration, Instant},
};
use tokio::sync::oneshot;

type Job = Box<dyn FnOnce(&mut Models) + Send>;

/// What a caller who is refused is told to wait.
const RETRY_AFTER: Duration = Duration::from_millis(100);

pub struct Workers {
    queue: Sender<Job>,
}

impl Workers {
    /// One thread for each set of models. They end when this value is dropped.
    pub fn start(models: Vec<Models>, queue_requests_max: usize) -> std::io::Result<Self> {
        let (queue, jobs) = bounded::<Job>(queue_requests_max);
        for (index, mut models) in models.into_iter().enumerate() {
            let jobs = jobs.clone();
            thread::Builder::new().name(format!("answer-{index}")).spawn(move || {
                for job in jobs {
                    // A bug in one answer must not take the thread from all others.
                    if catch_unwind(AssertUnwindSafe(|| job(&mut models))).is_err() {
                        tracing::error!("an answer panicked");
                    }
                }
            })?;
        }
        Ok(Self { queue })
    }

    /// Runs `work` on a worker and waits for it, at most until the deadline.
    pub async fn run<T: Send + 'static>(
        &self,
        deadline: Instant,
        work: impl FnOnce(&mut Models) -> Result<T, EngineError> + Send + 'static,
    ) -> Result<T, EngineError> {
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move |models| {
            if answer.is_closed() {
                return;
            }
            let result = if Instant::now() >= deadline { Err(EngineError::DeadlineExceeded) } else { work(models) };
            let _ = answer.send(result);
        });
        match self.queue.try_send(job) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => return Err(EngineError::Overloaded { retry_after: RETRY_AFTER }),
            Err(TrySendError::Disconnected(_)) => return Err(EngineError::Internal("the workers ended".into())),
        }
        match tokio::time::timeout_at(deadline.into(), answered).await {
            Err(_) => Err(EngineError::DeadlineExceeded),
            Ok(Err(_)) => Err(EngineError::Internal("the answer panicked".into())),
            Ok(Ok(result)) => result,
        }
    }
}
