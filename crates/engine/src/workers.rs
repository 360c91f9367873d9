//! Worker threads, each with models `M` of its own, and admission: which requests they compute.
//!
//! Requests wait in one bounded queue per [`Priority`]. A request is refused on arrival if its queue is full, or if the
//! work ahead of it takes longer than its deadline leaves. While the queue of interactive requests stands, that is, while
//! no worker has found it empty for [`STANDING_AFTER`], the load exceeds the capacity; then a request may use only half
//! of the time that is left, so that an estimate that is too low costs no answer, and batch requests are refused. (The
//! measure of a standing queue is that of CoDel, RFC 8289, as B. Maurer applies it to servers in "Fail at Scale", ACM
//! Queue 13 (8), 2015; the order of priorities is that of DAGOR, H. Zhou et al., SoCC 2018.) A request whose caller has
//! gone, or that cannot be answered in time any more, is dropped before it runs. An idle worker takes its share of the
//! queued requests and answers them as one batch.
use crate::EngineError;
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded, select_biased};
use lodestone_pipeline::request::Priority;
use lodestone_rollout::be_nice;
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
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

/// A queue that no worker has found empty for this long stands.
const STANDING_AFTER: Duration = Duration::from_millis(100);
/// Longest expected wait of an admitted request while the queue stands, whatever its deadline. It bounds the time for
/// which requests wait after the load has fallen again.
const STANDING_WAIT_MAX: Duration = Duration::from_secs(1);
/// A worker takes a batch job after as many interactive ones, so that batch jobs, among them the encoding of written items,
/// continue under any load.
const INTERACTIVE_RUN_MAX: usize = 8;

/// Nice value of the workers. Under overload they use all cores, and the threads that read calls run only for microseconds
/// at a time: to accept, to refuse, to send an answer. With a third of their weight the workers let them run at once.
const NICE: i32 = 5;

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

/// What a request finds when it arrives.
#[derive(Debug, Clone, Copy)]
struct Backlog {
    /// Jobs that wait in front of it.
    queued: usize,
    /// Expected time until a worker takes it: that of the jobs in front of it and of those that run.
    wait: Duration,
    /// Expected time of the batch that it will be part of, whose answers are sent together.
    batch: Duration,
    /// Whether the queue of interactive requests stands.
    is_standing: bool,
}

impl Backlog {
    /// Decides about a request with `left` until its deadline. If it cannot be answered in time, with a margin of a
    /// fifth of the time, or of half of it while the queue stands, returns the expected wait. A request
    /// that finds no queue is never refused, because only computed requests correct the service time.
    fn refuses(&self, left: Duration) -> Option<Duration> {
        if self.queued == 0 {
            return None;
        }
        let usable = if self.is_standing { left / 2 } else { left.saturating_mul(4) / 5 };
        let is_long = self.is_standing && self.wait > STANDING_WAIT_MAX;
        (is_long || self.wait.saturating_add(self.batch) > usable).then_some(self.wait)
    }
}

/// Returns the time that some workers need for the work of one.
fn divided(work: Duration, workers: usize) -> Duration {
    work / u32::try_from(workers).unwrap_or(u32::MAX).max(1)
}

/// Returns the time of a worker for `count` jobs.
fn time_of(count: usize, service: Duration) -> Duration {
    service.saturating_mul(u32::try_from(count).unwrap_or(u32::MAX))
}

/// Returns whether a request that a worker takes with a batch of `share` jobs cannot be answered within `left`. One that
/// it takes alone is computed if any time is left.
fn is_too_late(share: usize, service: Duration, left: Duration) -> bool {
    let needed = if share == 1 { Duration::ZERO } else { time_of(share, service) };
    left.is_zero() || needed > left
}

/// What the workers and the callers know about the jobs of one priority.
#[derive(Debug, Default)]
struct Load {
    service_time: ServiceTime,
    /// Jobs that workers have taken and not finished.
    running: AtomicUsize,
    /// Workers that compute them.
    workers: AtomicUsize,
}

impl Load {
    /// Returns the time of a worker for the running jobs and `queued` further ones.
    fn work(&self, queued: usize) -> Duration {
        time_of(self.running.load(Ordering::Relaxed).saturating_add(queued), self.service_time.get())
    }
}

/// When the queue of interactive requests was empty, in nanoseconds since the start.
#[derive(Debug)]
struct LastEmpty {
    started: Instant,
    nanos: AtomicU64,
}

impl LastEmpty {
    fn now() -> Self {
        Self { started: Instant::now(), nanos: AtomicU64::new(0) }
    }

    fn set(&self) {
        self.nanos.store(nanos(self.started.elapsed()), Ordering::Relaxed);
    }

    fn is_standing(&self) -> bool {
        let now = nanos(self.started.elapsed());
        now.saturating_sub(self.nanos.load(Ordering::Relaxed)) > nanos(STANDING_AFTER)
    }
}

/// Places of the workers that wait for batch jobs or compute them: one fewer than there are workers, because a batch job
/// may take seconds, and at least one.
#[derive(Debug)]
struct BatchPlaces {
    taken: AtomicUsize,
    count: usize,
}

impl BatchPlaces {
    fn of(worker_count: usize) -> Self {
        Self { taken: AtomicUsize::new(0), count: worker_count.saturating_sub(1).max(1) }
    }

    /// Takes a place, if one is free.
    fn take(&self) -> bool {
        let next = |taken| (taken < self.count).then_some(taken + 1);
        self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).is_ok()
    }

    fn give_back(&self) {
        self.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What callers and workers share.
struct Shared {
    worker_count: usize,
    interactive: Load,
    batch: Load,
    batch_places: BatchPlaces,
    last_empty: LastEmpty,
}

impl Shared {
    fn load(&self, priority: Priority) -> &Load {
        match priority {
            Priority::Interactive => &self.interactive,
            Priority::Batch => &self.batch,
        }
    }
}

/// One queue for each priority.
struct Queues<C> {
    interactive: C,
    batch: C,
}

impl<C> Queues<C> {
    fn of(&self, priority: Priority) -> &C {
        match priority {
            Priority::Interactive => &self.interactive,
            Priority::Batch => &self.batch,
        }
    }
}

impl<J> Queues<Receiver<J>> {
    /// Waits for the next job of a worker; none if there will be no more. `run` is the number of interactive jobs that
    /// the worker has taken since its last batch job. With a batch job the worker has a place, which it gives back.
    fn next(&self, run: &mut usize, places: &BatchPlaces) -> Option<(Priority, J)> {
        let is_batch_due = *run >= INTERACTIVE_RUN_MAX;
        let batch_if_due = is_batch_due.then(|| self.try_batch(places)).flatten();
        let (priority, job) = match batch_if_due {
            Some(job) => (Priority::Batch, job),
            None => match self.interactive.try_recv() {
                Ok(job) => (Priority::Interactive, job),
                Err(_) => self.wait(places)?,
            },
        };
        *run = if priority == Priority::Interactive { *run + 1 } else { 0 };
        Some((priority, job))
    }

    fn try_batch(&self, places: &BatchPlaces) -> Option<J> {
        if !places.take() {
            return None;
        }
        let job = self.batch.try_recv().ok();
        if job.is_none() {
            places.give_back();
        }
        job
    }

    /// Waits for a job of any priority; without a place for an interactive one. The workers with a place look for batch
    /// jobs when they finish, so that none is left.
    fn wait(&self, places: &BatchPlaces) -> Option<(Priority, J)> {
        if !places.take() {
            return Some((Priority::Interactive, self.interactive.recv().ok()?));
        }
        select_biased! {
            recv(self.interactive) -> job => match job {
                Ok(job) => {
                    places.give_back();
                    Some((Priority::Interactive, job))
                }
                // The senders are dropped together.
                Err(_) => Some((Priority::Batch, self.batch.recv().ok()?)),
            },
            recv(self.batch) -> job => match job {
                Ok(job) => Some((Priority::Batch, job)),
                Err(_) => {
                    places.give_back();
                    Some((Priority::Interactive, self.interactive.recv().ok()?))
                }
            },
        }
    }
}

pub(crate) struct Workers<M, Request, Response> {
    queues: Queues<Sender<Job<M, Request, Response>>>,
    shared: Arc<Shared>,
    /// One permit for each request that may wait before it enters the queue; as many as the queue is long.
    waiting: Semaphore,
}

impl<M: Send + 'static, Request: Send + 'static, Response: Send + 'static> Workers<M, Request, Response> {
    /// Starts one thread for each set of models, and a queue of `queue_requests_max` for each priority. The threads end
    /// when this value is dropped.
    pub(crate) fn start(
        models: Vec<M>,
        queue_requests_max: usize,
        answer_batch: Arc<AnswerBatch<M, Request, Response>>,
    ) -> std::io::Result<Self> {
        let (interactive, interactive_jobs) = bounded::<Job<M, Request, Response>>(queue_requests_max);
        let (batch, batch_jobs) = bounded::<Job<M, Request, Response>>(queue_requests_max);
        let shared = Arc::new(Shared {
            worker_count: models.len(),
            interactive: Load::default(),
            batch: Load::default(),
            batch_places: BatchPlaces::of(models.len()),
            last_empty: LastEmpty::now(),
        });
        for (index, mut models) in models.into_iter().enumerate() {
            let jobs = Queues { interactive: interactive_jobs.clone(), batch: batch_jobs.clone() };
            let (answer_batch, shared) = (answer_batch.clone(), shared.clone());
            let body = move || {
                be_nice(NICE);
                let mut run = 0;
                while let Some((priority, job)) = jobs.next(&mut run, &shared.batch_places) {
                    compute(&mut models, (priority, job), &jobs, &shared, &*answer_batch);
                }
            };
            thread::Builder::new().name(format!("answer-{index}")).spawn(body)?;
        }
        let queues = Queues { interactive, batch };
        Ok(Self { queues, shared, waiting: Semaphore::new(queue_requests_max) })
    }

    /// Waits for the condition of a request that cannot enter the queue yet. If as many requests wait as the queue may
    /// have, refuses at once.
    pub(crate) async fn wait_for<T>(&self, condition: impl Future<Output = T>) -> Result<T, EngineError> {
        let _permit = self.waiting.try_acquire().map_err(|_| EngineError::Overloaded { retry_after: RETRY_AFTER })?;
        Ok(condition.await)
    }

    /// Answers a request. Waits for the answer until the deadline.
    pub(crate) async fn answer(
        &self,
        priority: Priority,
        deadline: Instant,
        request: Request,
    ) -> Result<Response, EngineError> {
        self.admit(priority, deadline)?;
        let (reply, answered) = oneshot::channel();
        self.send(priority, Job::Request { request, deadline, reply })?;
        wait(deadline, answered).await
    }

    /// Runs `work` on a worker. Waits for its result until the deadline.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        priority: Priority,
        deadline: Instant,
        work: impl FnOnce(&mut M) -> Result<T, EngineError> + Send + 'static,
    ) -> Result<T, EngineError> {
        let mut backlog = self.backlog(priority);
        // Work of writes is not refused because there are many requests.
        backlog.is_standing &= priority == Priority::Interactive;
        self.check_time(&backlog, deadline)?;
        self.finish(priority, deadline, work).await
    }

    /// The same for a request that is not refused any more, because it was admitted and a worker has computed a part of
    /// it, which would be lost.
    pub(crate) async fn finish<T: Send + 'static>(
        &self,
        priority: Priority,
        deadline: Instant,
        work: impl FnOnce(&mut M) -> Result<T, EngineError> + Send + 'static,
    ) -> Result<T, EngineError> {
        let (reply, answered) = oneshot::channel();
        let work = Box::new(move |models: &mut M| {
            if let Some(reply) = still_wanted(reply, deadline) {
                let _ = reply.send(work(models));
            }
        });
        self.send(priority, Job::Work(work))?;
        wait(deadline, answered).await
    }

    /// Refuses a request that cannot be answered before its deadline, so that the caller learns of it now and the workers
    /// compute only what arrives in time. Refuses batch requests while the queue of interactive ones stands. Takes no
    /// place in a queue: a server calls it before it reads the request.
    pub(crate) fn admit(&self, priority: Priority, deadline: Instant) -> Result<(), EngineError> {
        let backlog = self.backlog(priority);
        if priority == Priority::Batch && backlog.is_standing {
            return Err(overloaded(backlog.wait));
        }
        self.check_time(&backlog, deadline)
    }

    fn check_time(&self, backlog: &Backlog, deadline: Instant) -> Result<(), EngineError> {
        let left = deadline.saturating_duration_since(Instant::now());
        backlog.refuses(left).map_or(Ok(()), |wait| Err(overloaded(wait)))
    }

    fn backlog(&self, priority: Priority) -> Backlog {
        let Shared { worker_count, interactive, batch, batch_places, last_empty } = &*self.shared;
        let (interactive_queued, batch_queued) = (self.queues.interactive.len(), self.queues.batch.len());
        if interactive_queued == 0 {
            last_empty.set();
        }
        // Long batch jobs leave the other workers to interactive ones.
        let on_batch = batch.workers.load(Ordering::Relaxed);
        let until_free = if on_batch < *worker_count { Duration::ZERO } else { batch.service_time.get() };
        let interactive_wait = divided(interactive.work(interactive_queued), worker_count.saturating_sub(on_batch))
            .saturating_add(until_free);
        let (queued, wait) = match priority {
            Priority::Interactive => (interactive_queued, interactive_wait),
            Priority::Batch => {
                let batch_wait = divided(batch.work(batch_queued), batch_places.count);
                (interactive_queued.saturating_add(batch_queued), interactive_wait.saturating_add(batch_wait))
            }
        };
        let share = share_of(self.queues.of(priority).len(), *worker_count);
        let batch = time_of(share, self.shared.load(priority).service_time.get());
        Backlog { queued, wait, batch, is_standing: interactive_queued > 0 && last_empty.is_standing() }
    }

    fn send(&self, priority: Priority, job: Job<M, Request, Response>) -> Result<(), EngineError> {
        self.queues.of(priority).try_send(job).map_err(|error| match error {
            TrySendError::Full(_) => EngineError::Overloaded { retry_after: RETRY_AFTER },
            TrySendError::Disconnected(_) => EngineError::Internal("the workers ended".into()),
        })
    }
}

fn overloaded(wait: Duration) -> EngineError {
    EngineError::Overloaded { retry_after: wait.clamp(RETRY_AFTER, RETRY_AFTER_MAX) }
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

/// Computes a job, together with the worker's share of its queue.
fn compute<M, Request, Response>(
    models: &mut M,
    (priority, first): (Priority, Job<M, Request, Response>),
    jobs: &Queues<Receiver<Job<M, Request, Response>>>,
    shared: &Shared,
    answer_batch: &AnswerBatch<M, Request, Response>,
) {
    let load = shared.load(priority);
    let (batch, works) = take_share(first, jobs.of(priority), shared.worker_count, &load.service_time);
    if jobs.interactive.is_empty() {
        shared.last_empty.set();
    }
    let (count, begun) = (batch.0.len() + works.len(), Instant::now());
    load.running.fetch_add(count, Ordering::Relaxed);
    load.workers.fetch_add(1, Ordering::Relaxed);
    answer(models, batch, answer_batch);
    for work in works {
        // A panic in one job must not end the thread.
        catch_panic("work", || work(models));
    }
    load.running.fetch_sub(count, Ordering::Relaxed);
    load.workers.fetch_sub(1, Ordering::Relaxed);
    load.service_time.record(begun.elapsed(), count);
    if priority == Priority::Batch {
        shared.batch_places.give_back();
    }
}

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

    /// Returns a job that keeps a worker busy, its start, and what ends it.
    fn busy_job<'w>(
        workers: &'w Workers<(), u32, u32>,
        deadline: Instant,
    ) -> (impl Future<Output = Result<(), EngineError>> + 'w, oneshot::Receiver<()>, std::sync::mpsc::Sender<()>) {
        let ((started, has_started), (release, released)) = (oneshot::channel(), std::sync::mpsc::channel::<()>());
        let job = workers.run(Priority::Interactive, deadline, move |()| {
            let _ = started.send(());
            let _ = released.recv();
            Ok(())
        });
        (job, has_started, release)
    }

    /// Sends all numbers while the only worker is busy, so that they queue up.
    async fn send_while_busy(workers: &Workers<(), u32, u32>, numbers: &[u32]) -> Vec<Result<u32, EngineError>> {
        let deadline = Instant::now() + Duration::from_secs(20);
        let (busy, has_started, release) = busy_job(workers, deadline);
        let sent = async {
            let _ = has_started.await;
            let answers = futures_util::future::join_all(
                numbers.iter().map(|n| workers.answer(Priority::Interactive, deadline, *n)),
            );
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
        let idle = Backlog { queued: 40, wait: ms(200), batch: ms(80), is_standing: false };
        assert_eq!(idle.refuses(ms(350)), None, "280 ms and a margin of a fifth");
        assert_eq!(idle.refuses(ms(349)), Some(ms(200)));
        let standing = Backlog { is_standing: true, ..idle };
        assert_eq!(standing.refuses(ms(560)), None, "while the queue stands, the margin is a half");
        assert_eq!(standing.refuses(ms(559)), Some(ms(200)));
        let hour = Duration::from_secs(3600);
        let long = Backlog { wait: STANDING_WAIT_MAX + ms(1), ..standing };
        assert_eq!(long.refuses(hour), Some(long.wait), "a standing queue does not grow with the deadlines");
        assert_eq!(Backlog { is_standing: false, ..long }.refuses(hour), None);
        let first = Backlog { queued: 0, ..idle };
        assert_eq!(first.refuses(ms(1)), None, "an idle worker always corrects the service time");
        let endless = Backlog { wait: Duration::MAX, batch: Duration::MAX, ..idle };
        assert!(endless.refuses(ms(1)).is_some() && endless.refuses(Duration::MAX).is_some(), "no overflow");

        assert!(is_too_late(8, ms(10), ms(79)) && !is_too_late(8, ms(10), ms(80)));
        assert!(is_too_late(1, ms(10), Duration::ZERO) && !is_too_late(1, ms(10), ms(1)));
    }

    #[test]
    fn running_jobs_count_as_work_ahead() {
        let load = Load::default();
        load.service_time.nanos.store(nanos(Duration::from_millis(10)), Ordering::Relaxed);
        load.running.store(8, Ordering::Relaxed);
        assert_eq!(load.work(12), Duration::from_millis(200));
        assert_eq!(Load::default().work(usize::MAX), Duration::ZERO, "nothing is known yet");
    }

    #[test]
    fn interactive_jobs_come_first_and_batch_jobs_are_not_starved() {
        let ((interactive, interactive_jobs), (batch, batch_jobs)) = (bounded(100), bounded(100));
        for number in 0..20 {
            interactive.send(number).unwrap();
            batch.send(100 + number).unwrap();
        }
        let jobs = Queues { interactive: interactive_jobs, batch: batch_jobs };
        let (places, mut run) = (BatchPlaces::of(1), 0);
        let mut next = || {
            let (priority, job) = jobs.next(&mut run, &places).unwrap();
            if priority == Priority::Batch {
                places.give_back();
            }
            job
        };
        let taken: Vec<u32> = (0..20).map(|_| next()).collect();
        let expected: Vec<u32> = (0..8).chain([100]).chain(8..16).chain([101]).chain(16..18).collect();
        assert_eq!(taken, expected);
        let left: Vec<u32> = (0..20).map(|_| next()).collect();
        assert_eq!(
            left,
            [18, 19].into_iter().chain(102..120).collect::<Vec<_>>(),
            "nothing waits behind an empty queue"
        );
        drop((interactive, batch));
        assert!(jobs.next(&mut run, &places).is_none(), "the workers end with their queues");
    }

    #[test]
    fn batch_jobs_leave_a_worker_to_interactive_ones() {
        let ((interactive, interactive_jobs), (batch, batch_jobs)) = (bounded(100), bounded(100));
        let jobs = Queues { interactive: interactive_jobs, batch: batch_jobs };
        let places = BatchPlaces::of(2);
        for number in [100, 101] {
            batch.send(number).unwrap();
        }
        assert_eq!(jobs.next(&mut 0, &places), Some((Priority::Batch, 100)));
        // The other worker waits for interactive jobs only, also when it has had many of them.
        for mut run in [0, INTERACTIVE_RUN_MAX] {
            interactive.send(1).unwrap();
            assert_eq!(jobs.next(&mut run, &places), Some((Priority::Interactive, 1)));
        }
        places.give_back();
        assert_eq!(jobs.next(&mut 0, &places), Some((Priority::Batch, 101)));
        places.give_back();
        // A worker that waits for both gives its place back when an interactive job comes.
        interactive.send(2).unwrap();
        assert_eq!(jobs.wait(&places), Some((Priority::Interactive, 2)));
        assert_eq!(places.taken.load(Ordering::Relaxed), 0);
        assert_eq!([0, 1, 2, 8].map(|workers| BatchPlaces::of(workers).count), [1, 1, 1, 7]);
    }

    /// Field 19 of the status of a thread in /proc is its nice value (man 5 proc).
    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn workers_are_nice_to_the_threads_that_read_calls() {
        fn of_this_thread() -> i32 {
            let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
            let (_, after_name) = stat.rsplit_once(')').unwrap();
            after_name.split_whitespace().nth(19 - 3).unwrap().parse().unwrap()
        }
        let workers = Workers::start(vec![()], 10, doubling(&Arc::default())).unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        let of_worker = workers.run(Priority::Interactive, deadline, |()| Ok(of_this_thread())).await.unwrap();
        assert_eq!(of_worker, NICE.max(of_this_thread()));
    }

    /// The only worker is busy, and an interactive request has waited for longer than a queue may before it stands.
    #[tokio::test]
    async fn batch_requests_are_refused_while_interactive_ones_queue_up() {
        let workers = Workers::start(vec![()], 100, doubling(&Arc::default())).unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        let (busy, has_started, release) = busy_job(&workers, deadline);
        let sent = async {
            has_started.await.unwrap();
            let mut early = Box::pin(workers.answer(Priority::Batch, deadline, 1));
            assert!(futures_util::poll!(&mut early).is_pending(), "nothing waits yet");
            let mut waiting = Box::pin(workers.answer(Priority::Interactive, deadline, 2));
            assert!(futures_util::poll!(&mut waiting).is_pending());
            while !workers.shared.last_empty.is_standing() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            let refused = workers.answer(Priority::Batch, deadline, 3).await;
            assert!(matches!(refused, Err(EngineError::Overloaded { .. })), "{refused:?}");
            assert!(workers.admit(Priority::Interactive, deadline).is_ok());
            // Work of writes is not refused for it.
            let mut work = Box::pin(workers.run(Priority::Batch, deadline, |()| Ok(4)));
            assert!(futures_util::poll!(&mut work).is_pending());
            release.send(()).unwrap();
            (waiting.await.unwrap(), early.await.unwrap(), work.await.unwrap())
        };
        let (busy, answers) = tokio::join!(busy, sent);
        assert!(busy.is_ok());
        assert_eq!(answers, (4, 2, 4));
        assert!(workers.admit(Priority::Batch, deadline).is_ok(), "the queue is empty again");
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

    /// The only worker is busy and one request waits, so that two jobs of 100 ms are expected before the next request.
    #[tokio::test]
    async fn a_request_without_enough_time_is_refused_on_arrival_and_others_wait() {
        let workers = Workers::start(vec![()], 100, doubling(&Arc::default())).unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        let (busy, has_started, release) = busy_job(&workers, deadline);
        let sent = async {
            has_started.await.unwrap();
            let mut waiting = Box::pin(workers.answer(Priority::Interactive, deadline, 1));
            assert!(futures_util::poll!(&mut waiting).is_pending());
            workers.shared.interactive.service_time.nanos.store(nanos(Duration::from_millis(100)), Ordering::Relaxed);
            let refused = workers.answer(Priority::Interactive, Instant::now() + Duration::from_millis(400), 2).await;
            let Err(EngineError::Overloaded { retry_after }) = refused else { panic!("{refused:?}") };
            assert_eq!(retry_after, Duration::from_millis(200));
            let mut later = Box::pin(workers.answer(Priority::Interactive, deadline, 3));
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
        let (soon, late) = (Instant::now() + Duration::from_secs(60), Instant::now() + Duration::from_secs(7200));
        let (busy, has_started, release) = busy_job(&workers, late);
        let sent = async {
            has_started.await.unwrap();
            let mut first = Box::pin(workers.answer(Priority::Interactive, soon, 1));
            let mut second = Box::pin(workers.answer(Priority::Interactive, late, 2));
            let mut third = Box::pin(workers.answer(Priority::Interactive, late, 3));
            for waiting in [&mut first, &mut second, &mut third] {
                assert!(futures_util::poll!(waiting).is_pending());
            }
            // A job is slower than expected when the requests arrived: 3 jobs of 100 s are more than a minute. The
            // mean falls by a sixteenth when the busy job is recorded.
            workers.shared.interactive.service_time.nanos.store(nanos(Duration::from_secs(100)), Ordering::Relaxed);
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
