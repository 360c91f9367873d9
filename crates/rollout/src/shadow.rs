//! Shadow traffic: replays live requests on a candidate generation and discards the answers, to compare orders and
//! latencies.
use crate::{
    health::{HealthSummary, HealthWindow},
    load_threads::use_idle_priority,
    loaded::LoadedGeneration,
};
use ahash::AHashMap;
use crossbeam_channel::Sender;
use lodestone_core::{ids::ItemKey, units::UnixMillis};
use lodestone_pipeline::run::{self, PipelineAnswer, PlannedRequest};
use parking_lot::Mutex;
use std::{
    io,
    sync::{Arc, Weak},
    thread,
    time::Duration,
};

/// Number of entries of each slate that are compared.
const COMPARED: usize = 50;
/// Maximum number of queued requests; further ones are dropped.
const QUEUED_MAX: usize = 64;
/// Number of first entries whose overlap is reported.
const FIRST: usize = 10;

/// A shadow generation and its comparison with the answering ones.
pub struct Shadow {
    pub loaded: Arc<LoadedGeneration>,
    /// Share of requests, 0 to 1.
    pub share: f64,
    counts: Mutex<Counts>,
    own: HealthWindow,
    answering: HealthWindow,
}

#[derive(Default)]
struct Counts {
    requests: u64,
    correlation_sum: f64,
    correlation_count: u64,
    overlap_sum: f64,
    dropped: u64,
}

/// The comparison of a shadow with the answering generations.
#[derive(Debug, Clone, Copy, Default)]
pub struct ShadowReport {
    /// Requests that both ran.
    pub requests: u64,
    /// Requests that were dropped because the queue was full.
    pub dropped: u64,
    /// Mean of Spearman's rank correlation over the common items of the first 50; -1 to 1.
    pub rank_correlation: f64,
    /// Mean share of common items among the first ten.
    pub overlap_at_10: f64,
    /// Health of the shadow, with the time in its thread.
    pub own: HealthSummary,
    pub answering: HealthSummary,
}

/// An answered request for the shadow.
pub struct ShadowWork {
    request: PlannedRequest,
    shadow: Weak<Shadow>,
    order: Vec<ItemKey>,
    latency: Duration,
    now: UnixMillis,
}

impl Shadow {
    pub fn new(loaded: Arc<LoadedGeneration>, share: f64, window: Duration) -> Self {
        Self {
            loaded,
            share,
            counts: Mutex::default(),
            own: HealthWindow::new(window),
            answering: HealthWindow::new(window),
        }
    }

    /// Prepares the shadow's run of a request that generation `by` answered with `answer`.
    pub(crate) fn work(
        self: &Arc<Self>,
        request: PlannedRequest,
        answer: &PipelineAnswer,
        now: UnixMillis,
    ) -> ShadowWork {
        ShadowWork {
            request,
            shadow: Arc::downgrade(self),
            order: answer.slate.keys(COMPARED),
            latency: run_time(answer),
            now,
        }
    }

    /// Records a request that was dropped because the queue was full.
    pub(crate) fn record_dropped(&self) {
        self.counts.lock().dropped += 1;
    }

    pub fn report(&self) -> ShadowReport {
        let counts = self.counts.lock();
        let mean = |sum: f64, count: u64| if count == 0 { 0.0 } else { sum / count as f64 };
        ShadowReport {
            requests: counts.requests,
            dropped: counts.dropped,
            rank_correlation: mean(counts.correlation_sum, counts.correlation_count),
            overlap_at_10: mean(counts.overlap_sum, counts.requests),
            own: self.own.summary(),
            answering: self.answering.summary(),
        }
    }
}

impl ShadowWork {
    /// Runs the request on the shadow, unless the shadow was removed. A panic is caught and recorded.
    fn run(self) {
        let Some(shadow) = self.shadow.upgrade() else { return };
        let generation = &shadow.loaded.generation;
        let run = || {
            let requests = std::slice::from_ref(&self.request);
            generation.catalog_at(self.now);
            run::run(generation, &mut shadow.loaded.spare_models(), requests, self.now).remove(0)
        };
        let Ok(answer) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)) else {
            shadow.own.record_error();
            return;
        };
        shadow.own.record(run_time(&answer), answer.is_degraded());
        shadow.answering.record(self.latency, false);
        let order = answer.slate.keys(COMPARED);
        let mut counts = shadow.counts.lock();
        counts.requests += 1;
        counts.overlap_sum += overlap(&self.order, &order);
        if let Some(correlation) = rank_correlation(&self.order, &order) {
            counts.correlation_sum += correlation;
            counts.correlation_count += 1;
        }
    }
}

/// Returns the time that an answer took in its thread.
pub(crate) fn run_time(answer: &PipelineAnswer) -> Duration {
    answer.stage_times.iter().map(|stage| stage.time).sum()
}

/// Spearman's rho over the common items of both lists; none if there are fewer than two.
fn rank_correlation(a: &[ItemKey], b: &[ItemKey]) -> Option<f64> {
    let in_b: AHashMap<ItemKey, usize> = b.iter().enumerate().map(|(index, key)| (*key, index)).collect();
    let indices: Vec<usize> = a.iter().filter_map(|key| in_b.get(key).copied()).collect();
    let count = indices.len() as f64;
    if indices.len() < 2 {
        return None;
    }
    let mut sorted = indices.clone();
    sorted.sort_unstable();
    let rank = |index: &usize| sorted.binary_search(index).expect("it is one of them") as f64;
    let squares: f64 = indices.iter().enumerate().map(|(own, index)| (own as f64 - rank(index)).powi(2)).sum();
    Some(1.0 - 6.0 * squares / (count * (count * count - 1.0)))
}

/// Returns the share of common items among the first ten; 1 if both lists are empty.
fn overlap(a: &[ItemKey], b: &[ItemKey]) -> f64 {
    let (a, b) = (&a[..a.len().min(FIRST)], &b[..b.len().min(FIRST)]);
    let common = a.iter().filter(|key| b.contains(key)).count();
    match a.len().max(b.len()) {
        0 => 1.0,
        most => common as f64 / most as f64,
    }
}

/// Starts the thread that runs requests on shadows. It ends when the last sender is dropped.
pub fn start_shadow() -> io::Result<Sender<ShadowWork>> {
    let (sender, queue) = crossbeam_channel::bounded::<ShadowWork>(QUEUED_MAX);
    thread::Builder::new().name("shadow".into()).spawn(move || {
        use_idle_priority();
        while let Ok(work) = queue.recv() {
            work.run();
        }
    })?;
    Ok(sender)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(keys: &[u32]) -> Vec<ItemKey> {
        keys.iter().copied().map(ItemKey).collect()
    }

    #[test]
    fn correlation_is_one_for_the_same_order_and_minus_one_for_its_reverse() {
        let list = keys(&[4, 8, 1, 9]);
        assert_eq!(rank_correlation(&list, &list), Some(1.0));
        assert_eq!(rank_correlation(&list, &keys(&[9, 1, 8, 4])), Some(-1.0));
        assert_eq!(rank_correlation(&list, &keys(&[4, 7, 1])), Some(1.0), "only common items count");
        assert_eq!(rank_correlation(&list, &keys(&[4, 5])), None);
        // Ranks 1, 2, 3, 4 and 2, 1, 3, 4: 1 - 6 * 2 / (4 * 15).
        assert!((rank_correlation(&list, &keys(&[8, 4, 1, 9])).unwrap() - 0.8).abs() < 1e-12);
    }

    #[test]
    fn overlap_counts_the_first_ten() {
        assert_eq!(overlap(&keys(&[1, 2]), &keys(&[2, 1])), 1.0);
        assert_eq!(overlap(&keys(&[1, 2]), &keys(&[3, 1])), 0.5);
        assert_eq!(overlap(&[], &[]), 1.0);
        assert_eq!(overlap(&keys(&[1]), &[]), 0.0);
    }
}
