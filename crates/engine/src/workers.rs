//! Threads that answer, each with models `M` of its own. The queue before them is bounded: what does not fit is refused at
//! once, and a request whose caller has gone is dropped before it costs anything. A thread that becomes free takes its
//! share of the questions that wait and answers them together.
use crate::EngineError;
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};
use tokio::sync::oneshot;

/// What a caller who is refused is told to wait.
const RETRY_AFTER: Duration = Duration::from_millis(100);

/// Questions that are answered together, at most: beyond it the models gain little, and all wait for the last.
const TOGETHER_MAX: usize = 8;

type Reply<T> = oneshot::Sender<Result<T, EngineError>>;

type Work<M> = Box<dyn FnOnce(&mut M) + Send>;

enum Job<M, Q, A> {
    PlannedRequest { question: Q, deadline: Instant, reply: Reply<A> },
    Work(Work<M>),
}

/// Answers some questions, in their order.
pub(crate) type AnswerMany<M, Q, A> = dyn Fn(&mut M, &[Q]) -> Vec<A> + Send + Sync;

pub(crate) struct Workers<M, Q, A> {
    queue: Sender<Job<M, Q, A>>,
}

impl<M: Send + 'static, Q: Send + 'static, A: Send + 'static> Workers<M, Q, A> {
    /// One thread for each set of models. They end when this value is dropped.
    pub(crate) fn start(
        models: Vec<M>,
        queue_requests_max: usize,
        answer_many: Arc<AnswerMany<M, Q, A>>,
    ) -> std::io::Result<Self> {
        let (queue, jobs) = bounded::<Job<M, Q, A>>(queue_requests_max);
        let worker_count = models.len();
        for (index, mut models) in models.into_iter().enumerate() {
            let (jobs, answer_many) = (jobs.clone(), answer_many.clone());
            let body = move || {
                while let Ok(job) = jobs.recv() {
                    let (waiting, works) = take_share(job, &jobs, worker_count);
                    answer(&mut models, waiting, &*answer_many);
                    for work in works {
                        // A bug in one answer must not take the thread from all others.
                        guarded("work", || work(&mut models));
                    }
                }
            };
            thread::Builder::new().name(format!("answer-{index}")).spawn(body)?;
        }
        Ok(Self { queue })
    }

    /// The answer to a question; waits for it, at most until the deadline.
    pub(crate) async fn answer(&self, deadline: Instant, question: Q) -> Result<A, EngineError> {
        let (reply, answered) = oneshot::channel();
        self.send(Job::PlannedRequest { question, deadline, reply })?;
        wait(deadline, answered).await
    }

    /// Runs `work` on a worker and waits for it, at most until the deadline.
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

    fn send(&self, job: Job<M, Q, A>) -> Result<(), EngineError> {
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

/// The reply, unless its caller has gone or its time is over (which is told).
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

fn guarded<T>(what: &str, body: impl FnOnce() -> T) -> Option<T> {
    let result = catch_unwind(AssertUnwindSafe(body)).ok();
    if result.is_none() {
        tracing::error!("{what} panicked");
    }
    result
}

type Waiting<Q, A> = (Vec<Q>, Vec<Reply<A>>);

/// The job and this worker's share of those that wait behind it.
fn take_share<M, Q, A>(
    first: Job<M, Q, A>,
    jobs: &Receiver<Job<M, Q, A>>,
    worker_count: usize,
) -> (Waiting<Q, A>, Vec<Work<M>>) {
    let share = (1 + jobs.len() / worker_count).min(TOGETHER_MAX);
    let (mut waiting, mut works) = ((Vec::with_capacity(share), Vec::with_capacity(share)), Vec::new());
    for job in std::iter::once(first).chain(jobs.try_iter().take(share - 1)) {
        match job {
            Job::PlannedRequest { question, deadline, reply } => {
                if let Some(reply) = still_wanted(reply, deadline) {
                    waiting.0.push(question);
                    waiting.1.push(reply);
                }
            }
            Job::Work(work) => works.push(work),
        }
    }
    (waiting, works)
}

fn answer<M, Q, A>(models: &mut M, (questions, replies): Waiting<Q, A>, answer_many: &AnswerMany<M, Q, A>) {
    if questions.is_empty() {
        return;
    }
    if let Some(answers) = guarded("an answer", || answer_many(models, &questions)) {
        for (answer, reply) in answers.into_iter().zip(replies) {
            let _ = reply.send(Ok(answer));
        }
    } else if questions.len() > 1 {
        // One of them is to blame; the others get their answers alone.
        for (question, reply) in questions.into_iter().zip(replies) {
            answer(models, (vec![question], vec![reply]), answer_many);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    /// Doubles numbers, notes how many came together, panics at 13.
    fn doubling(groups: &Arc<Mutex<Vec<usize>>>) -> Arc<AnswerMany<(), u32, u32>> {
        let groups = groups.clone();
        Arc::new(move |_, questions| {
            groups.lock().expect("not poisoned: noted before any panic").push(questions.len());
            assert!(!questions.contains(&13), "a bug");
            questions.iter().map(|question| question * 2).collect()
        })
    }

    /// Asks all numbers while the only worker is busy, so that they wait together.
    async fn ask_behind_work(workers: &Workers<(), u32, u32>, numbers: &[u32]) -> Vec<Result<u32, EngineError>> {
        let deadline = Instant::now() + Duration::from_secs(20);
        let ((started, has_started), (release, released)) = (oneshot::channel(), std::sync::mpsc::channel::<()>());
        let busy = workers.run(deadline, move |()| {
            let _ = started.send(());
            let _ = released.recv();
            Ok(())
        });
        let asked = async {
            let _ = has_started.await;
            let answers = futures_util::future::join_all(numbers.iter().map(|n| workers.answer(deadline, *n)));
            let release = async move {
                while workers.queue.len() < numbers.len() {
                    assert!(Instant::now() < deadline, "the numbers do not wait in the queue");
                    tokio::task::yield_now().await;
                }
                let _ = release.send(());
            };
            tokio::join!(answers, release).0
        };
        let (_, answers) = tokio::join!(busy, asked);
        answers
    }

    #[tokio::test]
    async fn what_waits_is_answered_together_and_in_order() {
        let groups = Arc::default();
        let workers = Workers::start(vec![()], 100, doubling(&groups)).unwrap();
        let numbers: Vec<u32> = (20..32).collect();
        let answers = ask_behind_work(&workers, &numbers).await;
        assert!(answers.iter().zip(&numbers).all(|(answer, number)| *answer.as_ref().unwrap() == number * 2));
        assert_eq!(*groups.lock().unwrap(), [8, 4]);
    }

    #[tokio::test]
    async fn a_bug_in_one_answer_costs_only_that_answer() {
        let workers = Workers::start(vec![()], 100, doubling(&Arc::default())).unwrap();
        let answers = ask_behind_work(&workers, &[1, 13, 2]).await;
        assert!(matches!(&answers[..], [Ok(2), Err(EngineError::Internal(_)), Ok(4)]), "{answers:?}");
    }
}
