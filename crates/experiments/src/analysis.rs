//! Computes the report of an experiment from exposures and outcomes.
use crate::{
    interleaving::{ALPHA, InterleavingReport, credit},
    observations::{Draft, Exposure, Outcome},
    sample_ratio::{SampleRatio, sample_ratio},
};
use ahash::AHashMap;
use lodestone_core::{
    statistics::{Moments, SequentialInterval, sequential_interval},
    units::UnixMillis,
};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// Fewest users of an arm for which an interval is computed, because it relies on the normal distribution of means.
pub(crate) const USERS_MIN: u64 = 100;
/// Fewest users of an arm with the outcome, for the same reason.
pub(crate) const OUTCOMES_MIN: f64 = 10.0;
/// Number of looks in a comparison's history.
const LOOKS: usize = 60;
/// Most kinds of outcomes in a report.
const KINDS_MAX: usize = 30;

/// How an experiment is analysed.
#[derive(Debug, Clone, PartialEq)]
pub struct AnalysisOptions {
    /// The arm that the others are compared with. `None`: `control`, otherwise `default`, otherwise the first by name.
    pub control: Option<String>,
    /// Expected shares of the users, with a sum of at most 1; users without an arm have the rest. Empty: equal shares.
    pub shares: Vec<(String, f64)>,
    /// Outcomes count from a user's first answer until this much later; only users whose window is over are counted.
    pub window_ms: i64,
    /// Number of users in an arm at which the intervals are narrowest for their level.
    pub planned: f64,
}

impl Default for AnalysisOptions {
    fn default() -> Self {
        Self { control: None, shares: Vec::new(), window_ms: UnixMillis::DAY, planned: 10_000.0 }
    }
}

/// Why an experiment cannot be analysed.
#[derive(Debug, thiserror::Error)]
pub enum ExperimentError {
    #[error("the answers do not contain the experiment `{experiment}`; they contain: {known}")]
    Unknown { experiment: String, known: String },
    #[error("there is no arm `{arm}`; the experiment has: {known}")]
    Arm { arm: String, known: String },
    #[error("arm `{arm}` has two shares")]
    TwoShares { arm: String },
    #[error("the shares have the sum {sum}; it must be at most 1, because they are shares of the users")]
    ShareSum { sum: f64 },
    #[error("the share of arm `{arm}` is {share}; it must be a number of 0 or more, and one must be above 0")]
    Share { arm: String, share: f64 },
}

impl ExperimentError {
    pub(crate) fn unknown(experiment: &str, known: BTreeSet<&str>) -> Self {
        let known = if known.is_empty() { "none".to_owned() } else { known.into_iter().collect::<Vec<_>>().join(", ") };
        Self::Unknown { experiment: experiment.to_owned(), known }
    }
}

/// The number of users in an arm.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ArmCount {
    pub name: String,
    pub users: u64,
    /// Users whose window is over, which the metrics count.
    pub counted: u64,
    pub answers: u64,
    /// Visits: distinct session ids of each user. Answers without a session id do not count.
    pub sessions: u64,
    /// The expected share of the users, 0 to 1.
    pub expected_share: f64,
}

/// Users that are excluded from the metrics of all arms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct LeftOut {
    /// Users who received more than one arm.
    pub several_arms: u64,
    /// Users whose window is not over.
    pub open_window: u64,
}

/// An arm's mean of a metric. Both values are none without a counted user.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ArmMean {
    pub arm: String,
    pub mean: Option<f64>,
    pub standard_deviation: Option<f64>,
}

/// The interval at one look during the experiment.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Look {
    /// Counted users of all arms until then.
    pub users: u64,
    #[serde(flatten)]
    pub interval: SequentialInterval,
}

/// An arm compared with the control.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    pub arm: String,
    /// Arm minus control. `None`: insufficient data.
    pub interval: Option<SequentialInterval>,
    /// The difference divided by the control's mean; `None` if that is 0.
    pub relative: Option<f64>,
    /// The interval excludes 0.
    pub decided: bool,
    pub history: Vec<Look>,
}

/// One metric of all arms.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MetricReport {
    pub name: String,
    pub arms: Vec<ArmMean>,
    pub comparisons: Vec<Comparison>,
}

/// The analysis of an experiment.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ExperimentReport {
    pub experiment: String,
    /// Time of the first answer, in ms since 1970.
    pub from_ms: i64,
    /// Time of the latest answer or outcome, which is the time of this report.
    pub until_ms: i64,
    pub window_ms: i64,
    pub control: String,
    pub arms: Vec<ArmCount>,
    pub left_out: LeftOut,
    /// `None` with a single arm.
    pub sample_ratio: Option<SampleRatio>,
    pub metrics: Vec<MetricReport>,
    /// One for each kind of outcome; empty without interleaved answers.
    pub interleaving: Vec<InterleavingReport>,
}

/// A user in one arm.
pub(crate) struct User<'a> {
    pub(crate) id: &'a str,
    pub(crate) arm: usize,
    pub(crate) first: UnixMillis,
}

/// Analyses one experiment. Exposures and outcomes may be in any order, and may include other experiments.
pub fn analyse(
    experiment: &str,
    exposures: &[Exposure],
    drafts: &[Draft],
    outcomes: &[Outcome],
    options: &AnalysisOptions,
) -> Result<ExperimentReport, ExperimentError> {
    let own: Vec<&Exposure> = exposures.iter().filter(|exposure| exposure.experiment == experiment).collect();
    let drafts: Vec<Draft> = drafts.iter().filter(|draft| draft.experiment == experiment).cloned().collect();
    let times = || own.iter().map(|exposure| exposure.at).chain(drafts.iter().map(|draft| draft.at));
    let Some(from) = times().min() else {
        let known = exposures.iter().map(|exposure| exposure.experiment.as_str()).collect();
        return Err(ExperimentError::unknown(experiment, known));
    };
    let until = times().chain(outcomes.iter().map(|outcome| outcome.at)).max().unwrap_or(from);
    let arms: Vec<&str> =
        own.iter().map(|exposure| exposure.arm.as_str()).collect::<BTreeSet<_>>().into_iter().collect();
    let shares = shares(&arms, options)?;
    let control = control(&arms, options)?;
    let (mut users, several_arms) = users(&own, &arms);
    let mut counts: Vec<ArmCount> = arm_counts(&own, &arms, &shares, &users);
    let users_by_arm: Vec<u64> = counts.iter().map(|arm| arm.users).collect();
    let before = users.len();
    users.retain(|user| until.0.saturating_sub(user.first.0) >= options.window_ms);
    users.iter().for_each(|user| counts[user.arm].counted += 1);
    let left_out = LeftOut { several_arms, open_window: (before - users.len()) as u64 };
    let kinds: BTreeSet<&str> = outcomes.iter().map(|outcome| outcome.kind.as_str()).collect();
    let outcomes_by_user = by_user(&users, outcomes, options.window_ms);
    let metrics = kinds
        .iter()
        .take(KINDS_MAX)
        .flat_map(|kind| Metric::of_kind(kind, outcomes))
        .map(|metric| metric.report(&users, &outcomes_by_user, &arms, control, options.planned))
        .collect();
    let interleaving = match drafts.is_empty() {
        true => Vec::new(),
        false => kinds.iter().take(KINDS_MAX).map(|kind| credit(&drafts, outcomes, kind, options.window_ms)).collect(),
    };
    Ok(ExperimentReport {
        experiment: experiment.to_owned(),
        from_ms: from.0,
        until_ms: until.0,
        window_ms: options.window_ms,
        control: arms.get(control).copied().unwrap_or_default().to_owned(),
        sample_ratio: sample_ratio(&users_by_arm, &shares),
        arms: counts,
        left_out,
        metrics,
        interleaving,
    })
}

/// Returns the expected shares of the arms, with a sum of 1.
pub(crate) fn shares(arms: &[&str], options: &AnalysisOptions) -> Result<Vec<f64>, ExperimentError> {
    if options.shares.is_empty() {
        return Ok(vec![1.0 / arms.len().max(1) as f64; arms.len()]);
    }
    let total: f64 = options.shares.iter().map(|(_, share)| share).sum();
    for (index, (arm, share)) in options.shares.iter().enumerate() {
        if options.shares[..index].iter().any(|(earlier, _)| earlier == arm) {
            return Err(ExperimentError::TwoShares { arm: arm.clone() });
        }
        if !share.is_finite() || *share < 0.0 || total.is_nan() || total <= 0.0 {
            return Err(ExperimentError::Share { arm: arm.clone(), share: *share });
        }
        if !arms.contains(&arm.as_str()) {
            return Err(ExperimentError::Arm { arm: arm.clone(), known: arms.join(", ") });
        }
    }
    // The sum of shares such as 0.7, 0.2 and 0.1 is not exact.
    if total > 1.0 + 1e-6 {
        return Err(ExperimentError::ShareSum { sum: (total * 1e6).round() / 1e6 });
    }
    let share = |arm: &&str| options.shares.iter().find(|(name, _)| name == arm).map_or(0.0, |(_, share)| *share);
    Ok(arms.iter().map(|arm| share(arm) / total).collect())
}

/// Returns the index of the control arm.
pub(crate) fn control(arms: &[&str], options: &AnalysisOptions) -> Result<usize, ExperimentError> {
    let index_of = |name: &str| arms.iter().position(|arm| *arm == name);
    match &options.control {
        Some(name) => index_of(name).ok_or_else(|| ExperimentError::Arm { arm: name.clone(), known: arms.join(", ") }),
        None => Ok(index_of("control").or_else(|| index_of("default")).unwrap_or(0)),
    }
}

/// Returns the users of a single arm in the order of their first answers, and the number of users of several arms.
pub(crate) fn users<'a>(exposures: &[&'a Exposure], arms: &[&str]) -> (Vec<User<'a>>, u64) {
    let mut all: AHashMap<&str, (User, bool)> = AHashMap::new();
    for exposure in exposures {
        let arm = arms.binary_search(&exposure.arm.as_str()).unwrap_or(0);
        let new = || (User { id: exposure.user.as_str(), arm, first: exposure.at }, false);
        let (user, several) = all.entry(exposure.user.as_str()).or_insert_with(new);
        *several |= user.arm != arm;
        user.first = user.first.min(exposure.at);
    }
    let several = all.values().filter(|(_, several)| *several).count() as u64;
    let mut users: Vec<User> = all.into_values().filter(|(_, several)| !several).map(|(user, _)| user).collect();
    users.sort_by(|a, b| (a.first, a.id).cmp(&(b.first, b.id)));
    (users, several)
}

pub(crate) fn arm_counts(exposures: &[&Exposure], arms: &[&str], shares: &[f64], users: &[User]) -> Vec<ArmCount> {
    let sessions = |arm: usize| {
        let with_session =
            exposures.iter().filter(|exposure| exposure.arm == arms[arm] && !exposure.session.is_empty());
        with_session.map(|exposure| (&exposure.user, &exposure.session)).collect::<BTreeSet<_>>().len() as u64
    };
    let count = |arm: usize| ArmCount {
        name: arms[arm].to_owned(),
        users: users.iter().filter(|user| user.arm == arm).count() as u64,
        counted: 0,
        answers: exposures.iter().filter(|exposure| exposure.arm == arms[arm]).count() as u64,
        sessions: sessions(arm),
        expected_share: shares[arm],
    };
    (0..arms.len()).map(count).collect()
}

/// The outcomes of each user within the window: count and value by kind.
type UserOutcomes<'a> = Vec<BTreeMap<&'a str, (f64, f64)>>;

fn by_user<'a>(users: &[User], outcomes: &'a [Outcome], window_ms: i64) -> UserOutcomes<'a> {
    let numbers: AHashMap<&str, usize> = users.iter().enumerate().map(|(index, user)| (user.id, index)).collect();
    let mut outcomes_by_user: UserOutcomes = vec![BTreeMap::new(); users.len()];
    for outcome in outcomes {
        let Some(number) = numbers.get(outcome.user.as_str()) else { continue };
        let after = outcome.at.0.saturating_sub(users[*number].first.0);
        if (0..=window_ms).contains(&after) {
            let (count, value) = outcomes_by_user[*number].entry(outcome.kind.as_str()).or_default();
            *count += 1.0;
            *value += outcome.value;
        }
    }
    outcomes_by_user
}

/// A metric, with one value for each user.
enum Metric<'a> {
    /// 1 for a user with an outcome of this kind.
    Share(&'a str),
    Count(&'a str),
    Value(&'a str),
}

impl<'a> Metric<'a> {
    /// Returns the metrics of a kind of outcome: the share of users, and the value if known, otherwise the count.
    fn of_kind(kind: &'a str, outcomes: &[Outcome]) -> [Self; 2] {
        match outcomes.iter().any(|outcome| outcome.kind == kind && outcome.value != 0.0) {
            true => [Self::Share(kind), Self::Value(kind)],
            false => [Self::Share(kind), Self::Count(kind)],
        }
    }

    fn name(&self) -> String {
        match self {
            Self::Share(kind) => format!("users with {kind}"),
            Self::Count(kind) => format!("{kind} per user"),
            Self::Value(kind) => format!("value of {kind} per user"),
        }
    }

    fn of(&self, outcomes: &BTreeMap<&str, (f64, f64)>) -> f64 {
        let of = |kind: &str| outcomes.get(kind).copied().unwrap_or((0.0, 0.0));
        match self {
            Self::Share(kind) => f64::from(u8::from(of(kind).0 > 0.0)),
            Self::Count(kind) => of(kind).0,
            Self::Value(kind) => of(kind).1,
        }
    }

    fn report(
        &self,
        users: &[User],
        outcomes_by_user: &UserOutcomes,
        arms: &[&str],
        control: usize,
        planned: f64,
    ) -> MetricReport {
        let others: Vec<usize> = (0..arms.len()).filter(|arm| *arm != control).collect();
        // The level holds for all arms of a metric together (Bonferroni correction).
        let alpha = ALPHA / others.len().max(1) as f64;
        let mut tallies = vec![Tally::default(); arms.len()];
        let mut histories = vec![Vec::new(); arms.len()];
        let every = users.len().div_ceil(LOOKS).max(1);
        for (index, (user, outcomes)) in users.iter().zip(outcomes_by_user).enumerate() {
            tallies[user.arm].add(self.of(outcomes));
            let seen = index + 1;
            if seen % every == 0 || seen == users.len() {
                for arm in &others {
                    let interval = Tally::compare(&tallies[control], &tallies[*arm], planned, alpha);
                    histories[*arm].extend(interval.map(|interval| Look { users: seen as u64, interval }));
                }
            }
        }
        let comparison = |arm: &usize| {
            let interval = Tally::compare(&tallies[control], &tallies[*arm], planned, alpha);
            let is_counted = |arm: usize| tallies[arm].moments.count > 0;
            let mean = tallies[control].moments.mean;
            Comparison {
                arm: arms[*arm].to_owned(),
                interval,
                relative: (mean != 0.0 && is_counted(*arm)).then(|| (tallies[*arm].moments.mean - mean) / mean),
                decided: interval.is_some_and(|interval| interval.low > 0.0 || interval.high < 0.0),
                history: histories[*arm].clone(),
            }
        };
        let mean = |(arm, tally): (&&str, &Tally)| {
            let is_counted = tally.moments.count > 0;
            ArmMean {
                arm: (*arm).to_owned(),
                mean: is_counted.then_some(tally.moments.mean),
                standard_deviation: is_counted.then(|| tally.moments.variance().sqrt()),
            }
        };
        MetricReport {
            name: self.name(),
            arms: arms.iter().zip(&tallies).map(mean).collect(),
            comparisons: others.iter().map(comparison).collect(),
        }
    }
}

/// The moments of a metric in one arm.
#[derive(Debug, Clone, Copy, Default)]
struct Tally {
    moments: Moments,
    /// Users whose value is not 0.
    nonzero: f64,
}

impl Tally {
    fn add(&mut self, value: f64) {
        self.moments.add(value);
        self.nonzero += f64::from(u8::from(value != 0.0));
    }

    /// Returns the interval of arm minus control, or `None` for insufficient data.
    fn compare(control: &Self, arm: &Self, planned: f64, alpha: f64) -> Option<SequentialInterval> {
        let enough = |tally: &Self| tally.moments.count >= USERS_MIN && tally.nonzero >= OUTCOMES_MIN;
        (enough(control) && enough(arm))
            .then(|| sequential_interval(&control.moments, &arm.moments, planned, alpha))
            .flatten()
    }
}
