//! Comparison of a bundle's lists with the baselines, on the same users.
use super::{
    Progress,
    baselines::{
        Case, Shop, StateUntil, Subtask, SubtaskScores, TUNED, TunedBaseline, ranking_scores, tuned_baselines,
    },
    error::TrainError,
    evaluate::{EvaluateOptions, UserLists, best_first, replay_targets},
    replay::{Interaction, interactions, sampled, without_refunded},
    request_tasks::{History, compare_requests},
};
use lodestone_core::{
    ids::Row,
    statistics::{MeanInterval, bootstrap_mean, resamples},
    units::UnixMillis,
};
use lodestone_dataset as dataset;
use lodestone_events::EventKind;
use lodestone_pipeline::{bundle::Bundle, ranking::Runtime};
use std::{fmt, path::Path};

/// Most users of a comparison, and most users times items, so that the time for a large catalogue is limited.
const CASES_MAX: usize = 3000;
const CASE_ITEMS_MAX: usize = 100_000_000;
/// Fewest users of a comparison with a large catalogue.
const CASES_MIN: usize = 500;
/// Fewest users of a group. The interval of fewer is too wide.
const GROUP_USERS_MIN: usize = 30;

/// A task that lists are compared on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// The user's next basket.
    All,
    /// Its items that the user bought before, among such items.
    Repeat,
    /// Its other items, among those that are new to the user.
    Discovery,
    /// `BOUGHT_TOGETHER`: the rest of a basket from one of its items.
    BoughtTogether,
    /// `SIMILAR`: the item viewed next, or the next basket from an item of the one before.
    Similar,
    /// `BUY_AGAIN`: the user's own items in the next basket.
    BuyAgain,
    /// `Search` by a known user: an item of the next basket from words of its title.
    Search,
}

impl Task {
    pub fn name(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Repeat => "repeat",
            Self::Discovery => "discovery",
            Self::BoughtTogether => "BOUGHT_TOGETHER",
            Self::Similar => "SIMILAR",
            Self::BuyAgain => "BUY_AGAIN",
            Self::Search => "Search",
        }
    }

    pub(super) fn is_request(self) -> bool {
        matches!(self, Self::BoughtTogether | Self::Similar | Self::BuyAgain | Self::Search)
    }

    fn of_subtask(subtask: Subtask) -> Self {
        match subtask {
            Subtask::All => Self::All,
            Subtask::Repeat => Self::Repeat,
            Subtask::Discovery | Subtask::DiscoveryOfNew | Subtask::DiscoveryOfEstablished => Self::Discovery,
        }
    }
}

/// The served lists of one task, compared with all baselines on the same users.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Comparison {
    pub state_until: StateUntil,
    pub task: Task,
    /// Users; of a type of request, requests.
    pub case_count: usize,
    pub served_ndcg_at_10: MeanInterval,
    pub baselines: Vec<BaselineScore>,
    /// The baseline with the greatest mean.
    pub best_baseline: &'static str,
    /// Mean of the served lists relative to that of the best baseline. None if the latter is 0.
    pub ratio: Option<f64>,
    /// NDCG@10 of the served lists minus that of the best baseline, paired by user.
    pub gain: MeanInterval,
    /// Groups of users and of items with enough users.
    pub groups: Vec<GroupScore>,
}

/// A baseline with the settings that were best on the last part of the training data.
#[derive(Debug, Clone, serde::Serialize)]
pub struct BaselineScore {
    pub name: &'static str,
    pub settings: String,
    pub ndcg_at_10: MeanInterval,
}

/// The users of a group: the served lists and the best baseline of the whole comparison.
#[derive(Debug, Clone, serde::Serialize)]
pub struct GroupScore {
    pub name: String,
    /// As in [`Comparison`].
    pub case_count: usize,
    pub served_ndcg_at_10: MeanInterval,
    pub baseline_ndcg_at_10: MeanInterval,
    pub gain: MeanInterval,
}

/// Scores of one subtask by user, of the served lists and of each baseline.
pub(super) struct Scored {
    pub served: Vec<f64>,
    pub baselines: Vec<Vec<f64>>,
}

/// Name and settings of a baseline.
pub(super) struct Settings {
    pub name: &'static str,
    pub settings: String,
}

impl Scored {
    /// Takes the users who have a target, among those that `kept` selects.
    pub(super) fn new(
        subtask: Subtask,
        served: &[SubtaskScores],
        baselines: &[TunedBaseline],
        kept: &dyn Fn(usize) -> bool,
    ) -> Self {
        let scores = |of: &[SubtaskScores]| {
            let kept = of.iter().enumerate().filter(|(user, _)| kept(*user));
            kept.filter_map(|(_, scores)| scores[subtask as usize]).collect()
        };
        Self { served: scores(served), baselines: baselines.iter().map(|baseline| scores(&baseline.scores)).collect() }
    }

    fn gains(&self, baseline: usize) -> Vec<f64> {
        self.served.iter().zip(&self.baselines[baseline]).map(|(served, baseline)| served - baseline).collect()
    }
}

/// A user's next basket with the bundle's ranking.
type RankedCase = (Case, Vec<Row>);

/// Users' next baskets with the bundle's rankings. Of many users, at equal distances, at least [`CASES_MAX`] and at
/// most twice as many are kept.
#[derive(Default)]
pub(super) struct Cases {
    kept: Vec<RankedCase>,
    /// Users so far.
    seen: usize,
    /// Binary logarithm of the distance of the kept ones.
    thinning: u32,
}

impl Cases {
    pub(super) fn add(&mut self, lists: &UserLists) {
        self.seen += 1;
        if !(self.seen - 1).is_multiple_of(1 << self.thinning) {
            return;
        }
        let case = Case { user: lists.user.clone(), at: lists.at, targets: lists.targets.clone() };
        self.kept.push((case, best_first(lists.ranked)));
        if self.kept.len() > 2 * CASES_MAX {
            self.thinning += 1;
            let mut index = 0;
            self.kept.retain(|_| {
                index += 1;
                index % 2 == 1
            });
        }
    }
}

/// The data of a comparison: items of the bundle, and what happened in the shop.
pub(super) struct ComparedData {
    trained_until: UnixMillis,
    /// Purchases, if there are any after the end of the training; then the targets are purchases, too.
    interactions: Vec<Interaction>,
    views: Vec<Interaction>,
    created: Vec<Option<UnixMillis>>,
}

impl ComparedData {
    pub(super) fn read(data: &Path, bundle: &Path) -> Result<Self, TrainError> {
        let bundle = Bundle::open(bundle)?;
        let trained_until = UnixMillis(bundle.manifest.trained_until_ms);
        let row_of = bundle.items.iter().enumerate().map(|(row, item)| (item.id.clone(), row as u32)).collect();
        let events = dataset::join_orders(dataset::read_history(data)?);
        // As the training: without what was refunded before its end.
        let mut kept = without_refunded(&events, trained_until);
        kept.extend(events.into_iter().filter(|event| event.at >= trained_until));
        let mut interactions = interactions(&kept, &row_of);
        let views = interactions.iter().filter(|of| of.kind == EventKind::View).cloned().collect();
        let is_purchase = |of: &Interaction| of.kind == EventKind::Purchase;
        if interactions.iter().any(|of| is_purchase(of) && of.at >= trained_until) {
            interactions.retain(is_purchase);
        }
        let created = bundle.items.iter().map(|item| item.created_at).collect();
        Ok(Self { trained_until, interactions, views, created })
    }

    fn shop(&self) -> Shop<'_> {
        Shop::new(&self.interactions, self.created.clone())
    }

    /// Compares the rankings of each state with the baselines.
    pub(super) fn compare(
        &self,
        states: &[(StateUntil, Cases)],
        options: &EvaluateOptions,
        progress: &mut dyn FnMut(Progress),
    ) -> Vec<Comparison> {
        let shop = self.shop();
        let count = (CASE_ITEMS_MAX / self.created.len().max(1)).clamp(CASES_MIN, CASES_MAX);
        let states = states.iter().map(|(state, cases)| (*state, sampled(cases.kept.iter().collect(), count)));
        let states: Vec<(StateUntil, Vec<&RankedCase>)> = states.collect();
        let cases = states.iter().map(|(state, of)| (*state, of.iter().map(|(case, _)| case.clone()).collect()));
        let cases: Vec<(StateUntil, Vec<Case>)> = cases.collect();
        let tuned = tuned_baselines(&shop, self.trained_until, &cases, progress);
        let mut comparisons = Vec::new();
        for (((state, of), (_, cases)), tuned) in states.iter().zip(&cases).zip(tuned) {
            let served = of.iter().map(|(case, ranking)| ranking_scores(&shop, case, ranking));
            let served: Vec<SubtaskScores> = served.collect();
            let activity: Vec<usize> = cases.iter().map(|case| shop.basket_count(&case.user, case.at)).collect();
            for (subtask, baselines) in TUNED.into_iter().zip(&tuned) {
                let task = Task::of_subtask(subtask);
                let scored = Scored::new(subtask, &served, baselines, &|_| true);
                let settings = baselines.iter().map(|of| Settings { name: of.name, settings: of.settings.clone() });
                let groups = groups(subtask, &served, baselines, &activity);
                let settings: Vec<Settings> = settings.collect();
                comparisons.extend(Comparison::new(*state, task, &scored, &settings, groups, options));
            }
        }
        comparisons
    }
}

/// Compares the rankings of `live`, whose state includes what happened up to each request, those with the state of the
/// end of the training, and the answers to other requests, with their baselines.
pub(super) fn comparisons(
    data: &Path,
    bundle: &Path,
    runtime: &Runtime,
    live: Cases,
    options: &EvaluateOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<Vec<Comparison>, TrainError> {
    let compared = ComparedData::read(data, bundle)?;
    let requests: Vec<Case> = live.kept.iter().map(|(case, _)| case.clone()).collect();
    let states =
        [(StateUntil::Request, live), (StateUntil::Training, cases_at_training(data, bundle, runtime, progress)?)];
    let mut comparisons = compared.compare(&states, options, progress);
    let shop = compared.shop();
    let history = History::new(&shop, &compared.interactions, &compared.views, compared.trained_until);
    comparisons.extend(compare_requests(data, bundle, runtime, &history, &requests, options, progress)?);
    Ok(comparisons)
}

/// Replays the events with the state of the end of the training. Users without a history before it take no part.
fn cases_at_training(
    data: &Path,
    bundle: &Path,
    runtime: &Runtime,
    progress: &mut dyn FnMut(Progress),
) -> Result<Cases, TrainError> {
    let mut cases = Cases::default();
    let since = UnixMillis(i64::MIN);
    let observe = &mut |lists: &UserLists, _: &mut _| cases.add(lists);
    match replay_targets(data, bundle, since, None, StateUntil::Training, runtime, progress, observe) {
        Ok(_) | Err(TrainError::TooLittle(_)) => Ok(cases),
        Err(error) => Err(error),
    }
}

impl Comparison {
    /// Returns the baseline with the greatest mean.
    pub(super) fn best(&self) -> &BaselineScore {
        let best = self.baselines.iter().find(|baseline| baseline.name == self.best_baseline);
        best.expect("the best baseline is one of them")
    }

    /// Compares the scores of the same users, and of groups of them. Returns `None` without a user.
    pub(super) fn new(
        state_until: StateUntil,
        task: Task,
        scored: &Scored,
        settings: &[Settings],
        groups: Vec<(String, Scored)>,
        options: &EvaluateOptions,
    ) -> Option<Self> {
        let case_count = scored.served.len();
        let resamples = resamples(case_count, options.bootstrap_count, options.seed);
        let intervals: Vec<MeanInterval> =
            scored.baselines.iter().map(|scores| bootstrap_mean(scores, &resamples)).collect();
        let by_mean = |a: &usize, b: &usize| intervals[*a].mean.total_cmp(&intervals[*b].mean);
        let best = (0..intervals.len()).max_by(by_mean).filter(|_| case_count > 0)?;
        let served_ndcg_at_10 = bootstrap_mean(&scored.served, &resamples);
        let baseline = |(of, ndcg_at_10): (&Settings, &MeanInterval)| BaselineScore {
            name: of.name,
            settings: of.settings.clone(),
            ndcg_at_10: *ndcg_at_10,
        };
        let group = |(name, scored): (String, Scored)| group_score(name, &scored, best, options);
        Some(Self {
            state_until,
            task,
            case_count,
            served_ndcg_at_10,
            best_baseline: settings[best].name,
            ratio: Some(served_ndcg_at_10.mean / intervals[best].mean).filter(|ratio| ratio.is_finite()),
            gain: bootstrap_mean(&scored.gains(best), &resamples),
            baselines: settings.iter().zip(&intervals).map(baseline).collect(),
            groups: groups.into_iter().filter_map(group).collect(),
        })
    }
}

/// Returns the users by terciles of their number of earlier baskets and, of the discovery, those with a target of
/// either age.
fn groups(
    subtask: Subtask,
    served: &[SubtaskScores],
    baselines: &[TunedBaseline],
    activity: &[usize],
) -> Vec<(String, Scored)> {
    let with_target = |user: &usize| served[*user][subtask as usize].is_some();
    let mut counts: Vec<usize> = (0..served.len()).filter(with_target).map(|user| activity[user]).collect();
    counts.sort_unstable();
    let last_of = |share: usize| counts.get((counts.len() * share / 3).saturating_sub(1)).copied().unwrap_or(0);
    let mut groups = Vec::new();
    let mut from = 0;
    for to in [last_of(1), last_of(2), last_of(3)] {
        let in_group = |user: usize| (from..=to).contains(&activity[user]);
        let scored = Scored::new(subtask, served, baselines, &in_group);
        let least = counts.iter().copied().find(|count| *count >= from).unwrap_or(to);
        let name = match least < to {
            true => format!("earlier baskets: {least} to {to}"),
            false => format!("earlier baskets: {to}"),
        };
        groups.push((name, scored));
        from = from.max(to + 1);
    }
    if subtask == Subtask::Discovery {
        for (subtask, name) in
            [(Subtask::DiscoveryOfNew, "items of the last 30 days"), (Subtask::DiscoveryOfEstablished, "older items")]
        {
            groups.push((name.to_owned(), Scored::new(subtask, served, baselines, &|_| true)));
        }
    }
    groups
}

/// Returns `None` for too few users.
fn group_score(name: String, scored: &Scored, baseline: usize, options: &EvaluateOptions) -> Option<GroupScore> {
    let case_count = scored.served.len();
    let resamples = resamples(case_count, options.bootstrap_count, options.seed);
    (case_count >= GROUP_USERS_MIN).then(|| GroupScore {
        name,
        case_count,
        served_ndcg_at_10: bootstrap_mean(&scored.served, &resamples),
        baseline_ndcg_at_10: bootstrap_mean(&scored.baselines[baseline], &resamples),
        gain: bootstrap_mean(&scored.gains(baseline), &resamples),
    })
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state_until {
            StateUntil::Request => "state up to each request",
            StateUntil::Training => "state of the end of the training",
        };
        let cases = if self.task.is_request() { "requests" } else { "users" };
        writeln!(f, "NDCG@10 {}, {state}, {} {cases}", self.task.name(), self.case_count)?;
        for baseline in &self.baselines {
            writeln!(f, "  {:<22}{:<26}{}", baseline.name, baseline.ndcg_at_10.to_string(), baseline.settings)?;
        }
        writeln!(f, "  {:<22}{}", "served", self.served_ndcg_at_10)?;
        for group in &self.groups {
            writeln!(
                f,
                "  {} ({} users): served {:.4}, {} {:.4}, difference {}",
                group.name,
                group.case_count,
                group.served_ndcg_at_10.mean,
                self.best_baseline,
                group.baseline_ndcg_at_10.mean,
                group.gain
            )?;
        }
        let ratio = self.ratio.map_or_else(|| "none".to_owned(), |ratio| format!("{ratio:.3}"));
        writeln!(f, "  served / {}: {ratio}, difference {}", self.best_baseline, self.gain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(score: f64) -> SubtaskScores {
        let mut scores = [None; 5];
        scores[Subtask::All as usize] = Some(score);
        scores
    }

    fn baseline(name: &'static str, scores: Vec<SubtaskScores>) -> TunedBaseline {
        TunedBaseline { name, settings: String::new(), scores }
    }

    #[test]
    fn the_best_baseline_is_the_measure() {
        let settings = |name| Settings { name, settings: format!("{name} as tuned") };
        let scored = Scored { served: vec![0.4, 0.6], baselines: vec![vec![0.2, 0.2], vec![0.5, 0.3], vec![0.1, 0.1]] };
        let settings = [settings("a"), settings("b"), settings("c")];
        let new = |scored: &Scored| {
            let options = EvaluateOptions::default();
            Comparison::new(StateUntil::Request, Task::All, scored, &settings, Vec::new(), &options)
        };
        let comparison = new(&scored).unwrap();
        assert_eq!((comparison.best_baseline, comparison.case_count), ("b", 2));
        assert!((comparison.ratio.unwrap() - 0.5 / 0.4).abs() < 1e-9 && (comparison.gain.mean - 0.1).abs() < 1e-9);
        assert!(
            (comparison.gain.low + 0.1).abs() < 1e-9 && (comparison.gain.high - 0.3).abs() < 1e-9,
            "paired by user"
        );
        let text = comparison.to_string();
        assert!(text.starts_with("NDCG@10 all, state up to each request, 2 users\n"), "{text}");
        assert!(text.ends_with("  served / b: 1.250, difference 0.1000 [-0.1000, 0.3000]\n"), "{text}");
        assert!(new(&Scored { served: Vec::new(), baselines: vec![Vec::new(); 3] }).is_none());
    }

    #[test]
    fn users_are_grouped_by_terciles_of_their_baskets() {
        let count = 90;
        let activity: Vec<usize> = (0..count).map(|user| if user < 50 { 1 } else { user }).collect();
        let ranked: Vec<SubtaskScores> = (0..count).map(|user| all(user as f64)).collect();
        let baselines = [baseline("a", ranked.clone())];
        let groups = groups(Subtask::All, &ranked, &baselines, &activity);
        let groups: Vec<(&str, usize)> = groups.iter().map(|(name, of)| (name.as_str(), of.served.len())).collect();
        assert_eq!(
            groups,
            [("earlier baskets: 1", 50), ("earlier baskets: 50 to 59", 10), ("earlier baskets: 60 to 89", 30)]
        );
        let small = Scored { served: vec![0.5; GROUP_USERS_MIN - 1], baselines: vec![vec![0.5; GROUP_USERS_MIN - 1]] };
        assert!(group_score("few".to_owned(), &small, 0, &EvaluateOptions::default()).is_none());
    }
}
