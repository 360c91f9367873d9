//! What shoppers choose from a canary's answers, beside what others choose from the current generation's at the same time.
use ahash::{AHashMap, AHashSet};
use lodestone_core::{
    ids::UserId,
    statistics::{Moments, SequentialInterval, sequential_interval},
    units::UnixMillis,
};
use parking_lot::Mutex;
use uuid::Uuid;

/// Users, and answers with a choice, that are counted at most. Long before, the evaluation is decided.
const COUNTED_MAX: usize = 1_000_000;
/// The interval is narrowest with so many users on each side.
const PLANNED: f64 = 2000.0;
/// At most so often is a canary taken back that is no worse than the bound allows, whenever and however often one looks.
const ALPHA: f64 = 0.05;

/// Users since a canary began, and from how many of their answers each chose something. The user is what is counted, as
/// the answers of one user are alike.
pub struct CanaryEvaluation {
    began: UnixMillis,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    users: AHashMap<UserId, u32>,
    /// Answers from which something was chosen already.
    chosen: AHashSet<[u8; 16]>,
    current: Sums,
    canary: Sums,
}

/// Of the users' numbers of answers with a choice.
#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    users: u64,
    sum: u64,
    squares: u64,
}

/// How a evaluation goes.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct CanaryReport {
    pub canary_users: u64,
    pub current_users: u64,
    /// Answers from which a user chose something, on average.
    pub canary_choices: f64,
    pub current_choices: f64,
    /// The canary's less the current one's: an interval that holds at all times at once. None where too little is known.
    pub difference: Option<(f64, f64)>,
}

impl CanaryEvaluation {
    pub fn new(began: UnixMillis) -> Self {
        Self { began, seen: Mutex::default() }
    }

    /// Notes that a user got an answer.
    pub fn record_answer(&self, user: &UserId, by_canary: bool) {
        let mut seen = self.seen.lock();
        let seen = &mut *seen;
        if seen.users.len() < COUNTED_MAX && !seen.users.contains_key(user) {
            seen.users.insert(user.clone(), 0);
            seen.side(by_canary).users += 1;
        }
    }

    /// Notes that a user chose something from an answer. Answers from before the evaluation, and users who got none since, say
    /// nothing of it.
    pub fn record_conversion(&self, user: &UserId, answer: [u8; 16], by_canary: bool) {
        if answered_at(answer).is_none_or(|at| at < self.began) {
            return;
        }
        let mut seen = self.seen.lock();
        let seen = &mut *seen;
        if seen.chosen.len() >= COUNTED_MAX {
            return;
        }
        let Some(choices) = seen.users.get_mut(user) else { return };
        if seen.chosen.insert(answer) {
            let squares = u64::from(2 * *choices + 1);
            *choices += 1;
            let side = seen.side(by_canary);
            side.sum += 1;
            side.squares += squares;
        }
    }

    pub fn report(&self) -> CanaryReport {
        let seen = self.seen.lock();
        let interval = seen.interval(1.0);
        CanaryReport {
            canary_users: seen.canary.users,
            current_users: seen.current.users,
            canary_choices: seen.canary.moments(1.0).mean,
            current_choices: seen.current.moments(1.0).mean,
            difference: interval.map(|interval| (interval.low, interval.high)),
        }
    }

    /// Why the canary may not go on; none: its users choose at least `ratio_min` times as often as the others, or it is not
    /// certain that they do not.
    pub fn broken(&self, ratio_min: f64) -> Option<String> {
        let seen = self.seen.lock();
        let interval = seen.interval(ratio_min)?;
        (interval.high < 0.0).then(|| {
            format!(
                "its {} users chose from {:.3} answers each, the other {} from {:.3}; at least {ratio_min} times as many are due",
                seen.canary.users,
                seen.canary.moments(1.0).mean,
                seen.current.users,
                seen.current.moments(1.0).mean,
            )
        })
    }
}

impl Seen {
    fn side(&mut self, by_canary: bool) -> &mut Sums {
        if by_canary { &mut self.canary } else { &mut self.current }
    }

    /// Of the canary's mean less `ratio` times the current one's.
    fn interval(&self, ratio: f64) -> Option<SequentialInterval> {
        sequential_interval(&self.current.moments(ratio), &self.canary.moments(1.0), PLANNED, ALPHA)
    }
}

impl Sums {
    /// Of the numbers times a factor.
    fn moments(&self, factor: f64) -> Moments {
        Moments::of_sums(self.users, factor * self.sum as f64, factor * factor * self.squares as f64)
    }
}

/// When an answer with this id was made.
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

    /// Users with some answers each, of which a share, the canary's times `ratio`, is chosen from.
    fn lived(ratio: f64, users: usize, seed: u64) -> CanaryEvaluation {
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
    fn a_canary_from_which_less_is_chosen_is_told_and_others_are_not() {
        let reason = lived(0.4, 3000, 1).broken(0.8).unwrap();
        assert!(reason.contains("its 750 users") && reason.contains("0.8 times"), "{reason}");
        assert_eq!((2..12).filter(|seed| lived(1.0, 3000, *seed).broken(0.8).is_some()).count(), 0);
        assert!(lived(0.4, 30, 1).broken(0.8).is_none(), "too little is known");
        assert!(lived(0.4, 3000, 1).broken(0.0).is_none(), "0 allows all");
        let report = lived(1.0, 3000, 1).report();
        assert_eq!((report.canary_users, report.current_users), (750, 2250));
        let (low, high) = report.difference.unwrap();
        assert!(low < 0.0 && high > 0.0 && (report.canary_choices - 0.75).abs() < 0.15, "{report:?}");
    }

    #[test]
    fn an_answer_counts_once_and_only_one_of_the_evaluation() {
        let now = UnixMillis::now();
        let (evaluation, early) = (CanaryEvaluation::new(UnixMillis(now.0 + 60_000)), answer());
        evaluation.record_answer(&user(1), true);
        evaluation.record_conversion(&user(1), early, true);
        assert_eq!(evaluation.report().canary_choices, 0.0, "the answer is from before the evaluation");
        let evaluation = CanaryEvaluation::new(UnixMillis(now.0 - 1000));
        evaluation.record_conversion(&user(1), early, true);
        evaluation.record_answer(&user(1), true);
        evaluation.record_answer(&user(1), true);
        evaluation.record_conversion(&user(1), early, true);
        evaluation.record_conversion(&user(1), early, true);
        let report = evaluation.report();
        assert_eq!((report.canary_users, report.canary_choices, report.difference), (1, 1.0, None));
    }
}
