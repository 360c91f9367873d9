//! The gate: the decision whether a candidate bundle may replace the current one.
use super::{
    Progress,
    baselines::StateUntil,
    comparison::{Cases, ComparedData, Comparison, Task},
    error::TrainError,
    evaluate::{EvaluateOptions, NDCG, RANKED, ReplayScores, UnknownTargets, UserLists, replay_targets},
};
use ahash::{AHashMap, AHashSet};
use lodestone_core::{
    ids::{ItemId, UserId},
    statistics::{MeanInterval, bootstrap_mean, resamples},
    units::UnixMillis,
};
use lodestone_pipeline::{Models, bundle::Bundle, ranking::Runtime};
use std::{fmt, path::Path};

/// Repetitions of both measurements while the candidate seems too slow. The minimum of each counts.
const TIME_REPETITIONS_MAX: usize = 2;
/// Fewest users for a comparison with the baselines, even if [`GateOptions::users_min`] is lower: a bundle is refused
/// for good reasons only, and the bootstrap interval of few users is too narrow.
const BASELINE_USERS_MIN: usize = 50;

/// Limits for a candidate.
#[derive(Debug, Clone)]
pub struct GateOptions {
    /// Fewest users whose next baskets both bundles are compared on. The verdict on fewer says nothing: the interval
    /// of the difference is wide, and its bootstrap is too narrow. 0: any number.
    pub users_min: usize,
    /// Greatest latency, relative to the current bundle's.
    pub slower_max: f64,
    /// Fewest distinct items in the lists, relative to the current bundle's.
    pub coverage_min: f64,
    pub evaluate: EvaluateOptions,
}

impl Default for GateOptions {
    fn default() -> Self {
        Self { users_min: 50, slower_max: 1.25, coverage_min: 0.9, evaluate: EvaluateOptions::default() }
    }
}

/// Measurements of both bundles and the reasons for refusing the candidate. Without a reason it passes.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Verdict {
    pub user_count: usize,
    /// Targets that are not in the catalogues of both bundles.
    pub unknown_targets: UnknownTargets,
    pub candidate_ndcg_at_10: f64,
    pub current_ndcg_at_10: f64,
    /// Paired by user.
    pub ndcg_gain: MeanInterval,
    pub time_ratio: f64,
    /// Distinct items in the lists.
    pub candidate_shown: usize,
    pub current_shown: usize,
    /// None with too few users.
    pub baseline: Option<BaselineVerdict>,
    pub refusals: Vec<String>,
}

/// The candidate compared with the best baseline on the users' whole next baskets, with the state up to each request.
#[derive(Debug, Clone, serde::Serialize)]
pub struct BaselineVerdict {
    pub name: &'static str,
    pub settings: String,
    pub ndcg_at_10: f64,
    /// Of the candidate on the same users.
    pub candidate_ndcg_at_10: f64,
    /// Paired by user.
    pub ndcg_gain: MeanInterval,
}

impl BaselineVerdict {
    fn new(comparison: &Comparison) -> Self {
        let best = comparison.best();
        Self {
            name: best.name,
            settings: best.settings.clone(),
            ndcg_at_10: best.ndcg_at_10.mean,
            candidate_ndcg_at_10: comparison.served_ndcg_at_10.mean,
            ndcg_gain: comparison.gain,
        }
    }
}

/// Evaluates the ranked lists of both bundles on the users' next baskets after both trainings. A candidate is refused
/// if there are fewer users than the limit, its NDCG@10 is lower beyond the 95 % interval of the difference, than that
/// of the current bundle or of the best baseline, its latency exceeds the limit, or its lists have fewer distinct items
/// than the limit.
pub fn gate(
    data: &Path,
    candidate: &Path,
    current: &Path,
    runtime: &Runtime,
    options: &GateOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<Verdict, TrainError> {
    let opened = [Bundle::open(candidate)?, Bundle::open(current)?];
    let since = UnixMillis(opened.iter().map(|bundle| bundle.manifest.trained_until_ms).fold(i64::MIN, i64::max));
    let names = opened.each_ref().map(|bundle| bundle.manifest.name.clone());
    // Both have the same targets: those that only one of them has would decide for the other one.
    let [in_candidate, in_current] =
        opened.map(|bundle| bundle.items.into_iter().map(|item| item.id).collect::<AHashSet<ItemId>>());
    let in_both: AHashSet<ItemId> = in_candidate.intersection(&in_current).cloned().collect();
    if in_both.is_empty() {
        let [candidate, current] = names;
        return Err(TrainError::OtherBundle { candidate, current });
    }
    let mut cases = Cases::default();
    let mut score = |bundle: &Path, stage, cases: &mut Cases| {
        let progress = &mut |step| progress(Progress { stage, ..step });
        let observe = &mut |lists: &UserLists, _: &mut Models| cases.add(lists);
        replay_targets(data, bundle, since, Some(&in_both), StateUntil::Request, runtime, progress, observe)
    };
    let mut of_candidate = score(candidate, "candidate", &mut cases)?;
    let mut of_current = score(current, "current", &mut Cases::default())?;
    // Other load on the machine may slow one measurement down, so a violation is measured again.
    for _ in 0..TIME_REPETITIONS_MAX {
        if of_candidate.seconds <= options.slower_max * of_current.seconds {
            break;
        }
        of_current.seconds = of_current.seconds.min(score(current, "current", &mut Cases::default())?.seconds);
        of_candidate.seconds = of_candidate.seconds.min(score(candidate, "candidate", &mut Cases::default())?.seconds);
    }
    let comparisons = match of_candidate.users.len() >= options.users_min.max(BASELINE_USERS_MIN) {
        true => {
            let states = [(StateUntil::Request, cases)];
            ComparedData::read(data, candidate)?.compare(&states, &options.evaluate, progress)
        }
        false => Vec::new(),
    };
    let all = comparisons.iter().find(|comparison| comparison.task == Task::All);
    Ok(verdict(&of_candidate, &of_current, all.map(BaselineVerdict::new), options))
}

fn verdict(
    candidate: &ReplayScores,
    current: &ReplayScores,
    baseline: Option<BaselineVerdict>,
    options: &GateOptions,
) -> Verdict {
    let ndcg = |scores: &ReplayScores| -> AHashMap<UserId, f64> {
        scores.users.iter().cloned().zip(scores.scores[RANKED].iter().map(|score| score[NDCG])).collect()
    };
    let of_current = ndcg(current);
    let pairs: Vec<(f64, f64)> = candidate
        .users
        .iter()
        .zip(&candidate.scores[RANKED])
        .filter_map(|(user, score)| Some((score[NDCG], *of_current.get(user)?)))
        .collect();
    let differences: Vec<f64> = pairs.iter().map(|(candidate, current)| candidate - current).collect();
    let mean = |values: &mut dyn Iterator<Item = f64>| values.sum::<f64>() / pairs.len().max(1) as f64;
    let mut verdict = Verdict {
        user_count: pairs.len(),
        unknown_targets: candidate.unknown_targets,
        candidate_ndcg_at_10: mean(&mut pairs.iter().map(|pair| pair.0)),
        current_ndcg_at_10: mean(&mut pairs.iter().map(|pair| pair.1)),
        ndcg_gain: bootstrap_mean(
            &differences,
            &resamples(differences.len(), options.evaluate.bootstrap_count, options.evaluate.seed),
        ),
        time_ratio: candidate.seconds / current.seconds,
        candidate_shown: candidate.covered[RANKED].len(),
        current_shown: current.covered[RANKED].len(),
        baseline,
        refusals: Vec::new(),
    };
    let mut refuse = |reason| verdict.refusals.push(reason);
    if pairs.len() < options.users_min {
        refuse(format!(
            "too few users to tell: {} have a basket after both trainings; the limit is {} (--users-min; 0 accepts any \
             number)",
            pairs.len(),
            options.users_min
        ));
    }
    if verdict.ndcg_gain.high < 0.0 {
        refuse(format!("it is worse: NDCG@10 changes by {}", verdict.ndcg_gain));
    }
    if let Some(baseline) = verdict.baseline.as_ref().filter(|baseline| baseline.ndcg_gain.high < 0.0) {
        refuse(format!(
            "it is below a baseline that needs no training: NDCG@10 is {:.4}, that of {} is {:.4} ({}), difference {}",
            baseline.candidate_ndcg_at_10, baseline.name, baseline.ndcg_at_10, baseline.settings, baseline.ndcg_gain
        ));
    }
    if verdict.time_ratio.is_nan() || verdict.time_ratio > options.slower_max {
        refuse(format!(
            "it is slower: its latency is {:.2} of the current bundle's; the limit is {}",
            verdict.time_ratio, options.slower_max
        ));
    }
    let fewest = options.coverage_min * verdict.current_shown as f64;
    if (verdict.candidate_shown as f64) < fewest {
        refuse(format!(
            "it covers fewer items: its lists have {} distinct items, those of the current bundle {}; the limit is \
             {fewest:.0}",
            verdict.candidate_shown, verdict.current_shown
        ));
    }
    verdict
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} users: NDCG@10 {:.4}, current {:.4}, difference {}",
            self.user_count, self.candidate_ndcg_at_10, self.current_ndcg_at_10, self.ndcg_gain
        )?;
        write!(f, "{}", self.unknown_targets)?;
        writeln!(
            f,
            "latency {:.2} of the current bundle's; {} distinct items in the lists, current {}",
            self.time_ratio, self.candidate_shown, self.current_shown
        )?;
        if let Some(baseline) = &self.baseline {
            writeln!(
                f,
                "best baseline, {}: NDCG@10 {:.4}, difference {}",
                baseline.name, baseline.ndcg_at_10, baseline.ndcg_gain
            )?;
        }
        match self.refusals.is_empty() {
            true => writeln!(f, "passes"),
            false => self.refusals.iter().try_for_each(|reason| writeln!(f, "refused: {reason}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lodestone_core::ids::Row;

    fn scores(ndcg: impl Fn(usize) -> f64, covered: u32, seconds: f64) -> ReplayScores {
        scores_of(200, ndcg, covered, seconds)
    }

    fn scores_of(count: usize, ndcg: impl Fn(usize) -> f64, covered: u32, seconds: f64) -> ReplayScores {
        let users = (0..count).map(|n| UserId::signed_in(&format!("p{n}")).unwrap()).collect();
        let by_user: Vec<[f64; 3]> = (0..count).map(|n| [0.0, ndcg(n), 0.0]).collect();
        let rows = (0..covered).map(Row).collect();
        ReplayScores {
            trained_until: UnixMillis(0),
            item_count: 1000,
            unknown_targets: UnknownTargets::default(),
            users,
            scores: [by_user.clone(), by_user.clone(), by_user],
            covered: [Default::default(), Default::default(), rows],
            seconds,
        }
    }

    #[test]
    fn each_violation_refuses_and_noise_passes() {
        let current = scores(|n| (n % 10) as f64 / 10.0, 500, 1.0);
        let refusals = |candidate: ReplayScores| verdict(&candidate, &current, None, &GateOptions::default()).refusals;
        assert!(refusals(scores(|n| (n % 10) as f64 / 10.0, 500, 1.0)).is_empty());
        assert!(refusals(scores(|n| ((n + 1) % 10) as f64 / 10.0, 460, 1.2)).is_empty(), "noise within the limits");
        let worse = refusals(scores(|n| (n % 10) as f64 / 11.0, 500, 1.0));
        assert!(worse.len() == 1 && worse[0].contains("worse"), "{worse:?}");
        let slower = refusals(scores(|n| (n % 10) as f64 / 10.0, 500, 1.3));
        assert!(slower.len() == 1 && slower[0].contains("slower"), "{slower:?}");
        let fewer = refusals(scores(|n| (n % 10) as f64 / 10.0, 400, 1.0));
        assert!(fewer.len() == 1 && fewer[0].contains("fewer items"), "{fewer:?}");
    }

    #[test]
    fn a_bundle_below_a_baseline_is_refused_with_both_figures() {
        let refusals = |high: f64| {
            let baseline = BaselineVerdict {
                name: "own + popularity",
                settings: "1 × own purchases".to_owned(),
                ndcg_at_10: 0.5,
                candidate_ndcg_at_10: 0.45,
                ndcg_gain: MeanInterval { mean: -0.05, low: -0.09, high },
            };
            let same = scores(|n| (n % 10) as f64 / 10.0, 500, 1.0);
            verdict(&same, &same, Some(baseline), &GateOptions::default()).refusals
        };
        assert!(refusals(0.0).is_empty(), "the difference may be chance");
        assert_eq!(
            refusals(-0.01),
            [
                "it is below a baseline that needs no training: NDCG@10 is 0.4500, that of own + popularity is 0.5000 (1 × own \
              purchases), difference -0.0500 [-0.0900, -0.0100]"
            ]
        );
    }

    #[test]
    fn too_few_users_to_tell_are_a_refusal_unless_declared() {
        let few = |worse: f64| scores_of(5, |n| if n == 0 { 0.9 - worse } else { 0.1 }, 500, 1.0);
        let refusals = |users_min| {
            let options = GateOptions { users_min, ..GateOptions::default() };
            verdict(&few(0.5), &few(0.0), None, &options).refusals
        };
        let default = refusals(GateOptions::default().users_min);
        assert!(default.len() == 1 && default[0].contains("too few users to tell: 5"), "{default:?}");
        assert!(refusals(5).is_empty() && refusals(0).is_empty(), "declared to be enough");
    }
}
