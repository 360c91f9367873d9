//! Worker threads, each with models `M` of its own. Their queue is bounded: if it is full, a request is refused at
//! once. A request whose caller has gone is dropped before it runs. An idle worker takes its share of the queued
//! requests and answers them as one batch.
use crate::EngineError;
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};
use tokio::sync::{Semaphore, oneshot};

/// The retry delay that a refused caller receives.
const RETRY_AFTER: Duration = Duration::from_millis(100);

/// Maximum size of a batch. Larger batches gain little in the models, and all requests of a batch wait for its last.
const BATCH_MAX: usize = 8;

type Reply<T> = oneshot::Sender<Result<T, EngineError>>;

type Work<M> = Box<dyn FnOnce(&mut M) + Send>;

enum Job<M, Request, Response> {
    Request { request: Request, deadline: Instant, reply: Reply<Response> },
    Work(Work<M>),
}

/// Answers a batch of requests, in their order.
pub(crate) type AnswerBatch<M, Request, Response> = dyn Fn(&mut M, &[Request]) -> Vec<Response> + Send + Sync;

pub(crate) struct Workers<M, Request, Response> {
    queue: Sender<Job<M, Request, Response>>,
    /// One permit for each request that may wait before it enters the queue; as many as the queue is long.
    waiting: Semaphore,
}

impl<M: Send + 'static, Request: Send + 'static, Response: Send + 'static> Workers<M, Request, Response> {
    /// Starts one thread for each set of models. The threads end when this value is dropped.
    pub(crate) fn start(
        models: Vec<M>,
        queue_requests_max: usize,
        answer_batch: Arc<AnswerBatch<M, Request, Response>>,
    ) -> std::io::Result<Self> {
        let (queue, jobs) = bounded::<Job<M, Request, Response>>(queue_requests_max);
        let worker_count = models.len();
        for (index, mut models) in models.into_iter().enumerate() {
            let (jobs, answer_batch) = (jobs.clone(), answer_batch.clone());
            let body = move || {
                while let Ok(job) = jobs.recv() {
                    let (batch, works) = take_share(job, &jobs, worker_count);
                    answer(&mut models, batch, &*answer_batch);
                    for work in works {
                        // A panic in one job must not end the thread.
                        catch_panic("work", || work(&mut models));
                    }
                }
            };
            thread::Builder::new().name(format!("answer-{index}")).spawn(body)?;
        }
        Ok(Self { queue, waiting: Semaphore::new(queue_requests_max) })
    }

    /// Waits for the condition of a request that cannot enter the queue yet. If as many requests wait as the queue may
    /// have, refuses at once.
    pub(crate) async fn wait_for<T>(&self, condition: impl Future<Output = T>) -> Result<T, EngineError> {
        let _permit = self.waiting.try_acquire().map_err(|_| EngineError::Overloaded { retry_after: RETRY_AFTER })?;
        Ok(condition.await)
    }

    /// Answers a request. Waits for the answer until the deadline.
    pub(crate) async fn answer(&self, deadline: Instant, request: Request) -> Result<Response, EngineError> {
        let (reply, answered) = oneshot::channel();
        self.send(Job::Request { request, deadline, reply })?;
        wait(deadline, answered).await
    }

    /// Runs `work` on a worker. Waits for its result until the deadline.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        deadline: Instant,
        work: impl FnOnce(&mut M) -> Result<T, EngineError> + Send + 'static,
    ) -> Result<T, EngineError> {
        let (reply, answered) = oneshot::channel();
        self.send(Job::Work(Box::new(move |models| {
            if let Some(reply) = still_wanted(reply, deadline) {
                let _ = reply.send(work(models));
            }
        })))?;
        wait(deadline, answered).await
    }

    fn send(&self, job: Job<M, Request, Response>) -> Result<(), EngineError> {
        self.queue.try_send(job).map_err(|error| match error {
            TrySendError::Full(_) => EngineError::Overloaded { retry_after: RETRY_AFTER },
            TrySendError::Disconnected(_) => EngineError::Internal("the workers ended".into()),
        })
    }
}

async fn wait<T>(deadline: Instant, answered: oneshot::Receiver<Result<T, EngineError>>) -> Result<T, EngineError> {
    match tokio::time::timeout_at(deadline.into(), answered).await {
        Err(_) => Err(EngineError::DeadlineExceeded),
        Ok(Err(_)) => Err(EngineError::Internal("the answer panicked".into())),
        Ok(Ok(result)) => result,
    }
}

/// Returns the reply channel, unless the caller has gone or the deadline has passed, which is reported to the caller.
fn still_wanted<T>(reply: Reply<T>, deadline: Instant) -> Option<Reply<T>> {
    if reply.is_closed() {
        return None;
    }
    if Instant::now() >= deadline {
        let _ = reply.send(Err(EngineError::DeadlineExceeded));
        return None;
    }
    Some(reply)
}

/// Runs `body`; logs a panic and returns none.
fn catch_panic<T>(name: &str, body: impl FnOnce() -> T) -> Option<T> {
    let result = catch_unwind(AssertUnwindSafe(body)).ok();
    if result.is_none() {
        tracing::error!("{name} panicked");
    }
    result
}

/// Requests and the channels of their responses; parallel.
type Batch<Request, Response> = (Vec<Request>, Vec<Reply<Response>>);

/// Returns the first job and this worker's share of the queue.
fn take_share<M, Request, Response>(
    first: Job<M, Request, Response>,
    jobs: &Receiver<Job<M, Request, Response>>,
    worker_count: usize,
) -> (Batch<Request, Response>, Vec<Work<M>>) {
    let share = (1 + jobs.len() / worker_count).min(BATCH_MAX);
    let (mut batch, mut works) = ((Vec::with_capacity(share), Vec::with_capacity(share)), Vec::new());
    for job in std::iter::once(first).chain(jobs.try_iter().take(share - 1)) {
        match job {
            Job::Request { request, deadline, reply } => {
                if let Some(reply) = still_wanted(reply, deadline) {
                    batch.0.push(request);
                    batch.1.push(reply);
                }
            }
            Job::Work(work) => works.push(work),
        }
    }
    (batch, works)
}

fn answer<M, Request, Response>(
    models: &mut M,
    (requests, replies): Batch<Request, Response>,
    answer_batch: &AnswerBatch<M, Request, Response>,
) {
    if requests.is_empty() {
        return;
    }
    if let Some(answers) = catch_panic("an answer", || answer_batch(models, &requests)) {
        for (answer, reply) in answers.into_iter().zip(replies) {
            let _ = reply.send(Ok(answer));
        }
    } else if requests.len() > 1 {
        // One of the requests causes the panic; the others succeed alone.
        for (request, reply) in requests.into_iter().zip(replies) {
            answer(models, (vec![request], vec![reply]), answer_batch);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;

    /// Doubles numbers, records the sizes of the batches, and panics at 13.
    fn doubling(sizes: &Arc<Mutex<Vec<usize>>>) -> Arc<AnswerBatch<(), u32, u32>> {
        let sizes = sizes.clone();
        Arc::new(move |_, requests| {
            sizes.lock().push(requests.len());
            assert!(!requests.contains(&13), "a bug");
            requests.iter().map(|request| request * 2).collect()
        })
    }

    /// Sends all numbers while the only worker is busy, so that they queue up.
    async fn send_while_busy(workers: &Workers<(), u32, u32>, numbers: &[u32]) -> Vec<Result<u32, EngineError>> {
        let deadline = Instant::now() + Duration::from_secs(20);
        let ((started, has_started), (release, released)) = (oneshot::channel(), std::sync::mpsc::channel::<()>());
        let busy = workers.run(deadline, move |()| {
            let _ = started.send(());
            let _ = released.recv();
            Ok(())
        });
        let sent = async {
            let _ = has_started.await;
            let answers = futures_util::future::join_all(numbers.iter().map(|n| workers.answer(deadline, *n)));
            let release = async move {
                tokio::time::sleep(Duration::from_millis(50)).await;
                let _ = release.send(());
            };
            tokio::join!(answers, release).0
        };
        let (_, answers) = tokio::join!(busy, sent);
        answers
    }

    #[tokio::test]
    async fn queued_requests_are_answered_in_batches_and_in_order() {
        let sizes = Arc::default();
        let workers = Workers::start(vec![()], 100, doubling(&sizes)).unwrap();
        let numbers: Vec<u32> = (20..32).collect();
        let answers = send_while_busy(&workers, &numbers).await;
        assert!(answers.iter().zip(&numbers).all(|(answer, number)| *answer.as_ref().unwrap() == number * 2));
        assert_eq!(*sizes.lock(), [8, 4]);
    }

    #[tokio::test]
    async fn requests_that_wait_for_a_condition_are_bounded() {
        let workers = Workers::start(vec![()], 3, doubling(&Arc::default())).unwrap();
        let (met, condition) = tokio::sync::watch::channel(false);
        let wait = || {
            let mut condition = condition.clone();
            workers.wait_for(async move { condition.wait_for(|met| *met).await.is_ok() })
        };
        let mut waiting: Vec<_> = (0..3).map(|_| Box::pin(wait())).collect();
        for wait in &mut waiting {
            assert!(tokio::time::timeout(Duration::ZERO, wait).await.is_err(), "it waits");
        }
        assert!(matches!(wait().await, Err(EngineError::Overloaded { .. })));
        // A caller that has gone leaves its permit.
        waiting.pop();
        waiting.push(Box::pin(wait()));
        assert!(tokio::time::timeout(Duration::ZERO, &mut waiting[2]).await.is_err(), "it waits");
        met.send(true).unwrap();
        let results = futures_util::future::join_all(waiting).await;
        assert!(results.iter().all(|result| matches!(result, Ok(true))), "{results:?}");
    }

    #[tokio::test]
    async fn a_panic_fails_only_the_request_that_causes_it_and_is_counted() {
        lodestone_telemetry::count_panics();
        let workers = Workers::start(vec![()], 100, doubling(&Arc::default())).unwrap();
        let answers = send_while_busy(&workers, &[1, 13, 2]).await;
        assert!(matches!(&answers[..], [Ok(2), Err(EngineError::Internal(_)), Ok(4)]), "{answers:?}");
        let text = lodestone_telemetry::Metrics::default().text(lodestone_telemetry::Sizes::default());
        let count = text.lines().find_map(|line| line.strip_prefix("lodestone_panics_total "));
        // At least those of the batch and of the request alone.
        assert!(count.unwrap().parse::<u64>().unwrap() >= 2, "{text}");
    }
}
