//! Whether a new bundle may replace the one that serves.
use super::{
    Progress,
    evaluate::{EvaluateOptions, Judged, NDCG, RANKED, judge_bundle},
    train::TrainError,
};
use ahash::AHashMap;
use lodestone_core::{
    ids::UserId,
    statistics::{MeanInterval, bootstrap_mean, resamples},
    units::UnixMillis,
};
use lodestone_pipeline::{bundle::Bundle, ranking::Runtime};
use std::{fmt, path::Path};

/// So often are both timed again where the candidate seems too slow; the least time of each counts.
const TIMED_AGAIN_MAX: usize = 2;

/// What a candidate may cost.
#[derive(Debug, Clone)]
pub struct GateOptions {
    /// Time of an answer, as a multiple of the current bundle's.
    pub slower_max: f64,
    /// Items that appear in some list, as a share of the current bundle's.
    pub coverage_min: f64,
    pub evaluate: EvaluateOptions,
}

impl Default for GateOptions {
    fn default() -> Self {
        Self { slower_max: 1.25, coverage_min: 0.9, evaluate: EvaluateOptions::default() }
    }
}

/// What the gate saw, and why the candidate is refused; without a reason it may serve.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Verdict {
    pub user_count: usize,
    pub candidate_ndcg_at_10: f64,
    pub current_ndcg_at_10: f64,
    /// Over the same users.
    pub ndcg_gain: MeanInterval,
    pub time_ratio: f64,
    pub candidate_shown: usize,
    pub current_shown: usize,
    pub refusals: Vec<String>,
}

/// Judges both bundles on the users' baskets that came after the training of either, by the lists that they would serve.
/// A candidate is refused when it is worse beyond the 95 % interval of the difference, slower than the bound, or shows
/// fewer different items than the bound.
pub fn gate(
    data: &Path,
    candidate: &Path,
    current: &Path,
    runtime: &Runtime,
    options: &GateOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<Verdict, TrainError> {
    let mut since = UnixMillis(i64::MIN);
    for bundle in [candidate, current] {
        since = since.max(UnixMillis(Bundle::open(bundle)?.manifest.trained_until_ms));
    }
    let mut judge = |bundle: &Path, stage| {
        judge_bundle(data, bundle, since, runtime, &mut |step| progress(Progress { stage, ..step }))
    };
    let (mut of_candidate, mut of_current) = (judge(candidate, "candidate")?, judge(current, "current")?);
    // What else runs on the machine makes one of them slow for a while; what is slow is so again.
    for _ in 0..TIMED_AGAIN_MAX {
        if of_candidate.seconds <= options.slower_max * of_current.seconds {
            break;
        }
        of_current.seconds = of_current.seconds.min(judge(current, "current")?.seconds);
        of_candidate.seconds = of_candidate.seconds.min(judge(candidate, "candidate")?.seconds);
    }
    Ok(verdict(&of_candidate, &of_current, options))
}

fn verdict(candidate: &Judged, current: &Judged, options: &GateOptions) -> Verdict {
    let ndcg = |judged: &Judged| -> AHashMap<UserId, f64> {
        judged.users.iter().cloned().zip(judged.scores[RANKED].iter().map(|score| score[NDCG])).collect()
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
        candidate_ndcg_at_10: mean(&mut pairs.iter().map(|pair| pair.0)),
        current_ndcg_at_10: mean(&mut pairs.iter().map(|pair| pair.1)),
        ndcg_gain: bootstrap_mean(
            &differences,
            &resamples(differences.len(), options.evaluate.bootstrap_count, options.evaluate.seed),
        ),
        time_ratio: candidate.seconds / current.seconds,
        candidate_shown: candidate.shown[RANKED].len(),
        current_shown: current.shown[RANKED].len(),
        refusals: Vec::new(),
    };
    let mut refuse = |reason| verdict.refusals.push(reason);
    if verdict.ndcg_gain.high < 0.0 {
        refuse(format!("it is worse: NDCG@10 changes by {}", verdict.ndcg_gain));
    }
    if verdict.time_ratio.is_nan() || verdict.time_ratio > options.slower_max {
        refuse(format!(
            "it is slower: {:.2} of the time, at most {} is allowed",
            verdict.time_ratio, options.slower_max
        ));
    }
    let least = options.coverage_min * verdict.current_shown as f64;
    if (verdict.candidate_shown as f64) < least {
        refuse(format!(
            "it covers fewer items: {} appear in some list, {} of the current bundle's",
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
        writeln!(
            f,
            "{:.2} of the current bundle's time; {} different items in the lists, current {}",
            self.time_ratio, self.candidate_shown, self.current_shown
        )?;
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

    fn judged(ndcg: impl Fn(usize) -> f64, shown: u32, seconds: f64) -> Judged {
        let users = (0..200).map(|n| UserId::signed_in(&format!("p{n}")).unwrap()).collect();
        let scores: Vec<[f64; 3]> = (0..200).map(|n| [0.0, ndcg(n), 0.0]).collect();
        let rows = (0..shown).map(Row).collect();
        Judged {
            trained_until: UnixMillis(0),
            item_count: 1000,
            users,
            scores: [scores.clone(), scores.clone(), scores],
            shown: [Default::default(), Default::default(), rows],
            seconds,
        }
    }

    #[test]
    fn each_reason_refuses_and_noise_does_not() {
        let current = judged(|n| (n % 10) as f64 / 10.0, 500, 1.0);
        let refusals = |candidate: Judged| verdict(&candidate, &current, &GateOptions::default()).refusals;
        assert!(refusals(judged(|n| (n % 10) as f64 / 10.0, 500, 1.0)).is_empty());
        assert!(
            refusals(judged(|n| ((n + 1) % 10) as f64 / 10.0, 460, 1.2)).is_empty(),
            "noise, and within the bounds"
        );
        let worse = refusals(judged(|n| (n % 10) as f64 / 11.0, 500, 1.0));
        assert!(worse.len() == 1 && worse[0].contains("worse"), "{worse:?}");
        let slower = refusals(judged(|n| (n % 10) as f64 / 10.0, 500, 1.3));
        assert!(slower.len() == 1 && slower[0].contains("slower"), "{slower:?}");
        let fewer = refusals(judged(|n| (n % 10) as f64 / 10.0, 400, 1.0));
        assert!(fewer.len() == 1 && fewer[0].contains("fewer items"), "{fewer:?}");
    }
}
