//! A generation that is asked what shoppers ask, without being heard: how it would have ordered, and how long it takes.
use crate::{load_threads::lower_priority, routes::LoadedGeneration, health::{Summary, Window}};
use lodestone_pipeline::run::{self, PlannedRequest, PipelineResponse};
use lodestone_core::ids::ItemKey;
use ahash::AHashMap;
use crossbeam_channel::Sender;
use parking_lot::Mutex;
use std::{
    io,
    sync::{Arc, Weak},
    thread,
    time::Duration,
};

/// Places that are compared.
const COMPARED: usize = 50;
/// Requests that wait for the shadow at most; the rest is dropped.
const WAITING_MAX: usize = 64;
/// Places whose overlap is told.
const FIRST: usize = 10;

/// A generation in the shadow and what was seen of it.
pub struct Shadow {
    pub served: Arc<LoadedGeneration>,
    /// Of the requests, within 0 and 1.
    pub share: f64,
    seen: Mutex<Seen>,
    own: Window,
    answering: Window,
}

#[derive(Default)]
struct Seen {
    count: u64,
    correlation_sum: f64,
    correlation_count: u64,
    overlap_sum: f64,
    dropped: u64,
}

/// What was seen of a shadow.
#[derive(Debug, Clone, Copy, Default)]
pub struct ShadowReport {
    /// Requests that both answered.
    pub requests: u64,
    /// Requests that it had no time for.
    pub dropped: u64,
    /// Mean of Spearman's rank correlation over the items that both have among their first 50; -1 to 1.
    pub rank_correlation: f64,
    /// Mean share of the first ten that both have.
    pub overlap_at_10: f64,
    /// Time in a thread, of the last minute's requests.
    pub own: Summary,
    pub answering: Summary,
}

/// A request that was answered, for the shadow.
pub struct ShadowWork {
    question: PlannedRequest,
    shadow: Weak<Shadow>,
    order: Vec<ItemKey>,
    latency: Duration,
}

impl Shadow {
    pub fn new(served: Arc<LoadedGeneration>, share: f64, window: Duration) -> Self {
        Self { served, share, seen: Mutex::default(), own: Window::new(window), answering: Window::new(window) }
    }

    /// What the shadow does for a request that `by` answered with `told`.
    pub fn work(self: &Arc<Self>, question: PlannedRequest, by: &LoadedGeneration, told: &PipelineResponse) -> ShadowWork {
        ShadowWork {
            question,
            shadow: Arc::downgrade(self),
            order: told.slate.keys(&by.generation, COMPARED),
            latency: time_of(told),
        }
    }

    /// Notes that there was no time for a request.
    pub fn dropped(&self) {
        self.seen.lock().dropped += 1;
    }

    pub fn report(&self) -> ShadowReport {
        let seen = self.seen.lock();
        let mean = |sum: f64, count: u64| if count == 0 { 0.0 } else { sum / count as f64 };
        ShadowReport {
            requests: seen.count,
            dropped: seen.dropped,
            rank_correlation: mean(seen.correlation_sum, seen.correlation_count),
            overlap_at_10: mean(seen.overlap_sum, seen.count),
            own: self.own.summary(),
            answering: self.answering.summary(),
        }
    }
}

impl ShadowWork {
    /// Asks the shadow, unless it is gone. A panic is noted and goes no further.
    pub fn run(self) {
        let Some(shadow) = self.shadow.upgrade() else { return };
        let generation = &shadow.served.generation;
        let tell = || {
            let question = std::slice::from_ref(&self.question);
            stories::tell(generation, &mut shadow.served.spare_models(), question).remove(0)
        };
        let Ok(told) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(tell)) else {
            shadow.own.note_error();
            return;
        };
        shadow.own.note(time_of(&told), told.is_degraded());
        shadow.answering.note(self.latency, false);
        let order = told.slate.keys(generation, COMPARED);
        let mut seen = shadow.seen.lock();
        seen.count += 1;
        seen.overlap_sum += overlap(&self.order, &order);
        if let Some(correlation) = rank_correlation(&self.order, &order) {
            seen.correlation_sum += correlation;
            seen.correlation_count += 1;
        }
    }
}

/// The time that an answer took in its thread.
pub fn time_of(told: &PipelineResponse) -> Duration {
    told.stages.iter().map(|(_, time)| *time).sum()
}

/// Spearman's rho over the items that both lists have; none where these are fewer than two.
fn rank_correlation(a: &[ItemKey], b: &[ItemKey]) -> Option<f64> {
    let in_b: AHashMap<ItemKey, usize> = b.iter().enumerate().map(|(place, key)| (*key, place)).collect();
    let places: Vec<usize> = a.iter().filter_map(|key| in_b.get(key).copied()).collect();
    let count = places.len() as f64;
    if places.len() < 2 {
        return None;
    }
    let mut sorted = places.clone();
    sorted.sort_unstable();
    let rank = |place: &usize| sorted.binary_search(place).expect("it is one of them") as f64;
    let squares: f64 = places.iter().enumerate().map(|(own, place)| (own as f64 - rank(place)).powi(2)).sum();
    Some(1.0 - 6.0 * squares / (count * (count * count - 1.0)))
}

/// The share of the first ten that both have; 1 where neither has any.
fn overlap(a: &[ItemKey], b: &[ItemKey]) -> f64 {
    let (a, b) = (&a[..a.len().min(FIRST)], &b[..b.len().min(FIRST)]);
    let common = a.iter().filter(|key| b.contains(key)).count();
    match a.len().max(b.len()) {
        0 => 1.0,
        most => common as f64 / most as f64,
    }
}

/// Starts the thread that asks the shadow. It ends with the last sender.
pub fn start_shadow() -> io::Result<Sender<ShadowWork>> {
    let (sender, given) = crossbeam_channel::bounded::<ShadowWork>(WAITING_MAX);
    thread::Builder::new().name("shadow".into()).spawn(move || {
        lower_priority();
        while let Ok(work) = given.recv() {
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
        assert_eq!(rank_correlation(&list, &keys(&[4, 7, 1])), Some(1.0), "items that one lacks do not count");
        assert_eq!(rank_correlation(&list, &keys(&[4, 5])), None);
        // 1, 2, 3, 4 beside 2, 1, 3, 4: 1 - 6 * 2 / (4 * 15).
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
