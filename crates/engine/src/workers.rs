//! Worker threads, each with models `M` of its own. Their queue is bounded: if it is full, or if a request would wait
//! for longer than its deadline, the request is refused at once. A request whose caller has gone, or that cannot be
//! answered in time any more, is dropped before it runs. An idle worker takes its share of the queued requests and
//! answers them as one batch.
use crate::EngineError;
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};
use tokio::sync::{Semaphore, oneshot};

/// The shortest and the longest retry delay that a refused caller receives.
const RETRY_AFTER: Duration = Duration::from_millis(100);
const RETRY_AFTER_MAX: Duration = Duration::from_secs(2);

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

/// The recent mean time of a worker for one job: an exponential moving average.
///
/// A sample counts at most [`ServiceTime::GROWTH_MAX`] times the mean, so that one slow job, such as the first one, does
/// not refuse the requests after it.
#[derive(Debug, Default)]
struct ServiceTime {
    nanos: AtomicU64,
}

impl ServiceTime {
    /// Weight of a sample is 1 / `SAMPLES`.
    const SAMPLES: u64 = 16;
    const GROWTH_MAX: u64 = 4;
    /// A mean below it grows by more than [`Self::GROWTH_MAX`].
    const FLOOR: Duration = Duration::from_millis(1);

    fn get(&self) -> Duration {
        Duration::from_nanos(self.nanos.load(Ordering::Relaxed))
    }

    /// Records `count` jobs that took `time` together.
    fn record(&self, time: Duration, count: usize) {
        let sample = nanos(time) / count.max(1) as u64;
        for _ in 0..count {
            // Samples that are lost to another worker's do not matter.
            let mean = self.nanos.load(Ordering::Relaxed);
            let sample = sample.min(mean.max(nanos(Self::FLOOR)).saturating_mul(Self::GROWTH_MAX));
            let sum = mean.saturating_mul(Self::SAMPLES - 1).saturating_add(sample);
            self.nanos.store(sum / Self::SAMPLES, Ordering::Relaxed);
        }
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Returns the number of jobs that a worker takes at once if `queued` jobs wait, including the first.
fn share_of(queued: usize, worker_count: usize) -> usize {
    (queued / worker_count).saturating_add(1).min(BATCH_MAX)
}

/// Decides about a request that arrives while `queued` jobs wait. If it cannot be answered within `left`, with a margin
/// of a quarter, returns the time until the queue is empty. A request that finds no queue is never refused, because only
/// computed requests correct the service time.
fn refuse_on_arrival(queued: usize, worker_count: usize, service: Duration, left: Duration) -> Option<Duration> {
    if queued == 0 {
        return None;
    }
    let jobs = |count: usize| service.saturating_mul(u32::try_from(count).unwrap_or(u32::MAX));
    let wait = jobs(queued.div_ceil(worker_count));
    // The answers of a batch are sent together.
    let needed = wait.saturating_add(jobs(share_of(queued, worker_count)));
    (needed.saturating_add(needed / 4) > left).then_some(wait)
}

/// Returns whether a request that a worker takes with a batch of `share` jobs cannot be answered within `left`. One that
/// it takes alone is computed if any time is left.
fn is_too_late(share: usize, service: Duration, left: Duration) -> bool {
    let needed = if share == 1 { Duration::ZERO } else { service.saturating_mul(share as u32) };
    left.is_zero() || needed > left
}

pub(crate) struct Workers<M, Request, Response> {
    queue: Sender<Job<M, Request, Response>>,
    worker_count: usize,
    service_time: Arc<ServiceTime>,
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
        let service_time = Arc::<ServiceTime>::default();
        for (index, mut models) in models.into_iter().enumerate() {
            let (jobs, answer_batch, service_time) = (jobs.clone(), answer_batch.clone(), service_time.clone());
            let body = move || {
                while let Ok(job) = jobs.recv() {
                    let (batch, works) = take_share(job, &jobs, worker_count, &service_time);
                    let (count, begun) = (batch.0.len() + works.len(), Instant::now());
                    answer(&mut models, batch, &*answer_batch);
                    for work in works {
                        // A panic in one job must not end the thread.
                        catch_panic("work", || work(&mut models));
                    }
                    service_time.record(begun.elapsed(), count);
                }
            };
            thread::Builder::new().name(format!("answer-{index}")).spawn(body)?;
        }
        Ok(Self { queue, worker_count, service_time, waiting: Semaphore::new(queue_requests_max) })
    }

    /// Waits for the condition of a request that cannot enter the queue yet. If as many requests wait as the queue may
    /// have, refuses at once.
    pub(crate) async fn wait_for<T>(&self, condition: impl Future<Output = T>) -> Result<T, EngineError> {
        let _permit = self.waiting.try_acquire().map_err(|_| EngineError::Overloaded { retry_after: RETRY_AFTER })?;
        Ok(condition.await)
    }

    /// Answers a request. Waits for the answer until the deadline.
    pub(crate) async fn answer(&self, deadline: Instant, request: Request) -> Result<Response, EngineError> {
        self.admit(deadline)?;
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
        self.admit(deadline)?;
        let (reply, answered) = oneshot::channel();
        self.send(Job::Work(Box::new(move |models| {
            if let Some(reply) = still_wanted(reply, deadline) {
                let _ = reply.send(work(models));
            }
        })))?;
        wait(deadline, answered).await
    }

    /// Refuses a job that cannot be done before its deadline, so that the caller learns of it now and the workers compute
    /// only what arrives in time.
    fn admit(&self, deadline: Instant) -> Result<(), EngineError> {
        let left = deadline.saturating_duration_since(Instant::now());
        match refuse_on_arrival(self.queue.len(), self.worker_count, self.service_time.get(), left) {
            None => Ok(()),
            Some(wait) => Err(EngineError::Overloaded { retry_after: wait.clamp(RETRY_AFTER, RETRY_AFTER_MAX) }),
        }
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
    service_time: &ServiceTime,
) -> (Batch<Request, Response>, Vec<Work<M>>) {
    let share = share_of(jobs.len(), worker_count);
    let service = service_time.get();
    let (mut batch, mut works) = ((Vec::with_capacity(share), Vec::with_capacity(share)), Vec::new());
    for job in std::iter::once(first).chain(jobs.try_iter().take(share - 1)) {
        match job {
            Job::Request { request, deadline, reply } => {
                let Some(reply) = still_wanted(reply, deadline) else { continue };
                if is_too_late(share, service, deadline.saturating_duration_since(Instant::now())) {
                    let _ = reply.send(Err(EngineError::Overloaded { retry_after: RETRY_AFTER }));
                    continue;
                }
                batch.0.push(request);
                batch.1.push(reply);
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

    #[test]
    fn a_request_is_refused_if_the_queue_takes_longer_than_its_time() {
        let ms = Duration::from_millis;
        // 20 jobs before it for each of 2 workers and a batch of 8: 28 jobs of 10 ms and a quarter more are 350 ms.
        assert_eq!(refuse_on_arrival(40, 2, ms(10), ms(350)), None);
        assert_eq!(refuse_on_arrival(40, 2, ms(10), ms(349)), Some(ms(200)));
        assert_eq!(refuse_on_arrival(1, 2, ms(10), ms(24)), Some(ms(10)));
        assert_eq!(refuse_on_arrival(1, 2, ms(10), ms(25)), None);
        assert_eq!(refuse_on_arrival(0, 2, ms(10), ms(1)), None, "an idle worker always corrects the service time");
        assert_eq!(refuse_on_arrival(1000, 2, Duration::ZERO, ms(1)), None, "nothing is known yet");
        assert!(refuse_on_arrival(usize::MAX, 1, Duration::MAX, ms(1)).is_some(), "no overflow");

        assert!(is_too_late(8, ms(10), ms(79)) && !is_too_late(8, ms(10), ms(80)));
        assert!(is_too_late(1, ms(10), Duration::ZERO) && !is_too_late(1, ms(10), ms(1)));
    }

    #[test]
    fn the_service_time_follows_the_recent_jobs_and_not_one_slow_job() {
        let time = ServiceTime::default();
        time.record(Duration::from_secs(10), 1);
        assert!(time.get() < Duration::from_millis(1), "{:?} after a slow first job", time.get());
        time.record(Duration::from_millis(800), 80);
        let usual = time.get();
        assert!((Duration::from_millis(9)..=Duration::from_millis(10)).contains(&usual), "{usual:?}");
        time.record(Duration::from_secs(10), 1);
        assert!(time.get() < usual * 3 / 2, "{:?} after one slow job", time.get());
        time.record(Duration::from_millis(80), 80);
        assert!(time.get() < Duration::from_millis(2), "{:?} after fast jobs", time.get());
        time.record(Duration::ZERO, 0);
    }

    /// The only worker is busy and one request waits, so that a job of a second is expected before the next request.
    #[tokio::test]
    async fn a_request_without_enough_time_is_refused_on_arrival_and_others_wait() {
        let workers = Workers::start(vec![()], 100, doubling(&Arc::default())).unwrap();
        let ((started, has_started), (release, released)) = (oneshot::channel(), std::sync::mpsc::channel::<()>());
        let deadline = Instant::now() + Duration::from_secs(60);
        let busy = workers.run(deadline, move |()| {
            let _ = started.send(());
            let _ = released.recv();
            Ok(())
        });
        let sent = async {
            has_started.await.unwrap();
            let mut waiting = Box::pin(workers.answer(deadline, 1));
            assert!(futures_util::poll!(&mut waiting).is_pending());
            workers.service_time.nanos.store(nanos(Duration::from_secs(1)), Ordering::Relaxed);
            let refused = workers.answer(Instant::now() + Duration::from_secs(2), 2).await;
            let Err(EngineError::Overloaded { retry_after }) = refused else { panic!("{refused:?}") };
            assert_eq!(retry_after, Duration::from_secs(1));
            let mut later = Box::pin(workers.answer(deadline, 3));
            assert!(futures_util::poll!(&mut later).is_pending());
            release.send(()).unwrap();
            (waiting.await.unwrap(), later.await.unwrap())
        };
        let (busy, answers) = tokio::join!(busy, sent);
        assert!(busy.is_ok());
        assert_eq!(answers, (2, 6));
    }

    #[tokio::test]
    async fn a_request_that_cannot_be_answered_in_time_any_more_is_dropped_before_it_is_computed() {
        let sizes = Arc::<Mutex<Vec<usize>>>::default();
        let workers = Workers::start(vec![()], 100, doubling(&sizes)).unwrap();
        let ((started, has_started), (release, released)) = (oneshot::channel(), std::sync::mpsc::channel::<()>());
        let (soon, late) = (Instant::now() + Duration::from_secs(60), Instant::now() + Duration::from_secs(7200));
        let busy = workers.run(late, move |()| {
            let _ = started.send(());
            let _ = released.recv();
            Ok(())
        });
        let sent = async {
            has_started.await.unwrap();
            let mut first = Box::pin(workers.answer(soon, 1));
            let mut second = Box::pin(workers.answer(late, 2));
            let mut third = Box::pin(workers.answer(late, 3));
            for waiting in [&mut first, &mut second, &mut third] {
                assert!(futures_util::poll!(waiting).is_pending());
            }
            // A job is slower than expected when the requests arrived: 3 jobs of 100 s are more than a minute. The
            // mean falls by a sixteenth when the busy job is recorded.
            workers.service_time.nanos.store(nanos(Duration::from_secs(100)), Ordering::Relaxed);
            release.send(()).unwrap();
            (first.await, second.await, third.await)
        };
        let (_, (first, second, third)) = tokio::join!(busy, sent);
        assert!(matches!(first, Err(EngineError::Overloaded { .. })), "{first:?}");
        assert_eq!((second.unwrap(), third.unwrap()), (4, 6));
        assert_eq!(sizes.lock().iter().sum::<usize>(), 2, "the first was not computed");
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
