//! Evaluation of a canary: conversions of its users compared with those of the current generation's users at the same
//! time.
use ahash::{AHashMap, AHashSet};
use lodestone_core::{
    ids::UserId,
    statistics::{Moments, SequentialInterval, sequential_interval},
    units::UnixMillis,
};
use parking_lot::Mutex;
use uuid::Uuid;

/// Maximum number of counted users, and of counted converted answers. An evaluation is decided long before.
const COUNTED_MAX: usize = 1_000_000;
/// Number of users on each side at which the confidence sequence is narrowest.
const PLANNED_USERS: f64 = 2000.0;
/// Probability, at most, that a canary within the bound is ever removed. It holds over all looks at the data.
const ALPHA: f64 = 0.05;

/// Users since the start of a canary, with the number of each user's converted answers. The unit of analysis is the
/// user, because the answers of one user are correlated.
pub struct CanaryEvaluation {
    begun: UnixMillis,
    counts: Mutex<Counts>,
}

#[derive(Default)]
struct Counts {
    /// Number of converted answers of each user.
    users: AHashMap<UserId, u32>,
    /// Ids of answers with a conversion.
    converted: AHashSet<[u8; 16]>,
    current: Sums,
    canary: Sums,
}

/// Sums over users of their numbers of converted answers.
#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    users: u64,
    sum: u64,
    squares: u64,
}

/// The state of an evaluation.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct CanaryReport {
    pub canary_users: u64,
    pub current_users: u64,
    /// Mean number of converted answers of a user.
    pub canary_conversions: f64,
    pub current_conversions: f64,
    /// Confidence sequence of the canary's mean minus the current generation's: it holds at all times at once. None if
    /// there are too few users.
    pub difference: Option<(f64, f64)>,
}

impl CanaryEvaluation {
    pub fn new(begun: UnixMillis) -> Self {
        Self { begun, counts: Mutex::default() }
    }

    /// Records that a user received an answer.
    pub fn record_answer(&self, user: &UserId, by_canary: bool) {
        let mut counts = self.counts.lock();
        let counts = &mut *counts;
        if counts.users.len() < COUNTED_MAX && !counts.users.contains_key(user) {
            counts.users.insert(user.clone(), 0);
            counts.side(by_canary).users += 1;
        }
    }

    /// Records a conversion of a user on an answer. Answers from before the evaluation, and users without an answer
    /// since, do not count.
    pub fn record_conversion(&self, user: &UserId, answer: [u8; 16], by_canary: bool) {
        if answered_at(answer).is_none_or(|at| at < self.begun) {
            return;
        }
        let mut counts = self.counts.lock();
        let counts = &mut *counts;
        if counts.converted.len() >= COUNTED_MAX {
            return;
        }
        let Some(conversions) = counts.users.get_mut(user) else { return };
        if counts.converted.insert(answer) {
            let squares = u64::from(2 * *conversions + 1);
            *conversions += 1;
            let side = counts.side(by_canary);
            side.sum += 1;
            side.squares += squares;
        }
    }

    pub fn report(&self) -> CanaryReport {
        let counts = self.counts.lock();
        let interval = counts.interval(1.0);
        CanaryReport {
            canary_users: counts.canary.users,
            current_users: counts.current.users,
            canary_conversions: counts.canary.moments(1.0).mean,
            current_conversions: counts.current.moments(1.0).mean,
            difference: interval.map(|interval| (interval.low, interval.high)),
        }
    }

    /// Returns the reason to remove the canary: it is certain that its users convert less than `ratio_min` times as
    /// often as the users of the current generation. None otherwise.
    pub fn violation(&self, ratio_min: f64) -> Option<String> {
        let counts = self.counts.lock();
        let interval = counts.interval(ratio_min)?;
        (interval.high < 0.0).then(|| {
            format!(
                "its {} users converted on {:.3} answers each, the other {} on {:.3}; the minimum is {ratio_min} times as many",
                counts.canary.users,
                counts.canary.moments(1.0).mean,
                counts.current.users,
                counts.current.moments(1.0).mean,
            )
        })
    }
}

impl Counts {
    fn side(&mut self, by_canary: bool) -> &mut Sums {
        if by_canary { &mut self.canary } else { &mut self.current }
    }

    /// Confidence sequence of the canary's mean minus `ratio` times the current generation's.
    fn interval(&self, ratio: f64) -> Option<SequentialInterval> {
        sequential_interval(&self.current.moments(ratio), &self.canary.moments(1.0), PLANNED_USERS, ALPHA)
    }
}

impl Sums {
    /// Returns the moments of the numbers times a factor.
    fn moments(&self, factor: f64) -> Moments {
        Moments::of_sums(self.users, factor * self.sum as f64, factor * factor * self.squares as f64)
    }
}

/// Returns the time in an answer's id.
fn answered_at(answer: [u8; 16]) -> Option<UnixMillis> {
    let (seconds, nanos) = Uuid::from_bytes(answer).get_timestamp()?.to_unix();
    Some(UnixMillis(seconds as i64 * 1000 + i64::from(nanos / 1_000_000)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng, rngs::StdRng};

    fn user(number: usize) -> UserId {
        UserId::signed_in(&format!("p{number}")).unwrap()
    }

    fn answer() -> [u8; 16] {
        Uuid::now_v7().into_bytes()
    }

    /// Simulates users with some answers each. Users of the canary convert `ratio` times as often as the others.
    fn simulated(ratio: f64, users: usize, seed: u64) -> CanaryEvaluation {
        let (evaluation, mut rng) = (CanaryEvaluation::new(UnixMillis(0)), StdRng::seed_from_u64(seed));
        for number in 0..users {
            let (user, by_canary) = (user(number), number % 4 == 0);
            for _ in 0..rng.random_range(1..5) {
                evaluation.record_answer(&user, by_canary);
                if rng.random_bool(if by_canary { 0.3 * ratio } else { 0.3 }) {
                    evaluation.record_conversion(&user, answer(), by_canary);
                }
            }
        }
        evaluation
    }

    #[test]
    fn only_a_canary_with_fewer_conversions_violates_the_bound() {
        let reason = simulated(0.4, 3000, 1).violation(0.8).unwrap();
        assert!(reason.contains("its 750 users") && reason.contains("0.8 times"), "{reason}");
        assert_eq!((2..12).filter(|seed| simulated(1.0, 3000, *seed).violation(0.8).is_some()).count(), 0);
        assert!(simulated(0.4, 30, 1).violation(0.8).is_none(), "too few users");
        assert!(simulated(0.4, 3000, 1).violation(0.0).is_none(), "0 accepts any ratio");
        let report = simulated(1.0, 3000, 1).report();
        assert_eq!((report.canary_users, report.current_users), (750, 2250));
        let (low, high) = report.difference.unwrap();
        assert!(low < 0.0 && high > 0.0 && (report.canary_conversions - 0.75).abs() < 0.15, "{report:?}");
    }

    #[test]
    fn an_answer_counts_once_and_only_if_it_is_from_the_evaluation() {
        let now = UnixMillis::now();
        let (evaluation, early) = (CanaryEvaluation::new(UnixMillis(now.0 + 60_000)), answer());
        evaluation.record_answer(&user(1), true);
        evaluation.record_conversion(&user(1), early, true);
        assert_eq!(evaluation.report().canary_conversions, 0.0, "the answer is from before the evaluation");
        let evaluation = CanaryEvaluation::new(UnixMillis(now.0 - 1000));
        evaluation.record_conversion(&user(1), early, true);
        evaluation.record_answer(&user(1), true);
        evaluation.record_answer(&user(1), true);
        evaluation.record_conversion(&user(1), early, true);
        evaluation.record_conversion(&user(1), early, true);
        let report = evaluation.report();
        assert_eq!((report.canary_users, report.canary_conversions, report.difference), (1, 1.0, None));
    }
}
