//! Comparison of a bundle's lists with the baselines, on the same users.
use super::{
    Progress,
    baselines::{
        Case, Question, QuestionScores, Shop, StateUntil, TUNED, TunedBaseline, ranking_scores, sampled,
        tuned_baselines,
    },
    error::TrainError,
    evaluate::{EvaluateOptions, UserLists, best_first, replay_targets},
    replay::{Interaction, interactions, without_refunded},
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

/// A question that lists are compared on.
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

    fn of_question(question: Question) -> Self {
        match question {
            Question::All => Self::All,
            Question::Repeat => Self::Repeat,
            Question::Discovery | Question::DiscoveryOfNew | Question::DiscoveryOfEstablished => Self::Discovery,
        }
    }
}

/// The served lists of one task, compared with all baselines on the same users.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Comparison {
    pub state_until: StateUntil,
    pub task: Task,
    pub user_count: usize,
    pub ranked_ndcg_at_10: MeanInterval,
    pub baselines: Vec<BaselineScore>,
    /// The baseline with the greatest mean.
    pub best_baseline: &'static str,
    /// Mean of the ranked lists relative to that of the best baseline.
    pub ratio: f64,
    /// NDCG@10 of the ranked lists minus that of the best baseline, paired by user.
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

/// The users of a group: the ranked lists and the best baseline of the whole comparison.
#[derive(Debug, Clone, serde::Serialize)]
pub struct GroupScore {
    pub name: String,
    pub user_count: usize,
    pub ranked_ndcg_at_10: MeanInterval,
    pub baseline_ndcg_at_10: MeanInterval,
    pub gain: MeanInterval,
}

/// Scores of one question by user, of the served lists and of each baseline.
pub(super) struct Scored {
    pub ranked: Vec<f64>,
    pub baselines: Vec<Vec<f64>>,
}

/// Name and settings of a baseline.
pub(super) struct Settings {
    pub name: &'static str,
    pub settings: String,
}

impl Scored {
    /// Takes the users who have a target, among those that `kept` selects.
    fn new(
        question: Question,
        ranked: &[QuestionScores],
        baselines: &[TunedBaseline],
        kept: &dyn Fn(usize) -> bool,
    ) -> Self {
        let scores = |of: &[QuestionScores]| {
            let kept = of.iter().enumerate().filter(|(user, _)| kept(*user));
            kept.filter_map(|(_, scores)| scores[question as usize]).collect()
        };
        Self { ranked: scores(ranked), baselines: baselines.iter().map(|baseline| scores(&baseline.scores)).collect() }
    }

    fn gains(&self, baseline: usize) -> Vec<f64> {
        self.ranked.iter().zip(&self.baselines[baseline]).map(|(ranked, baseline)| ranked - baseline).collect()
    }
}

/// Users' next baskets with the bundle's rankings.
#[derive(Default)]
pub(super) struct Cases(Vec<(Case, Vec<Row>)>);

impl Cases {
    pub(super) fn add(&mut self, lists: &UserLists) {
        let case = Case { user: lists.user.clone(), at: lists.at, targets: lists.targets.clone() };
        self.0.push((case, best_first(lists.ranked)));
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
        let events = dataset::read_history(data)?;
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
        let states: Vec<(StateUntil, Vec<&(Case, Vec<Row>)>)> =
            states.iter().map(|(state, cases)| (*state, sampled(cases.0.iter().collect(), count))).collect();
        let cases = states.iter().map(|(state, of)| (*state, of.iter().map(|(case, _)| case.clone()).collect()));
        let cases: Vec<(StateUntil, Vec<Case>)> = cases.collect();
        let tuned = tuned_baselines(&shop, self.trained_until, &cases, progress);
        let mut comparisons = Vec::new();
        for (((state, of), (_, cases)), tuned) in states.iter().zip(&cases).zip(tuned) {
            let ranked = of.iter().map(|(case, ranking)| ranking_scores(&shop, case, ranking));
            let ranked: Vec<QuestionScores> = ranked.collect();
            let activity: Vec<usize> = cases.iter().map(|case| shop.basket_count(&case.user, case.at)).collect();
            for (question, baselines) in TUNED.into_iter().zip(&tuned) {
                let task = Task::of_question(question);
                let scored = Scored::new(question, &ranked, baselines, &|_| true);
                let settings = baselines.iter().map(|of| Settings { name: of.name, settings: of.settings.clone() });
                let groups = groups(question, &ranked, baselines, &activity);
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
    let requests: Vec<Case> = live.0.iter().map(|(case, _)| case.clone()).collect();
    let states =
        [(StateUntil::Request, live), (StateUntil::Training, cases_at_training(data, bundle, runtime, progress)?)];
    let mut comparisons = compared.compare(&states, options, progress);
    let shop = compared.shop();
    let history = History {
        shop: &shop,
        interactions: &compared.interactions,
        views: &compared.views,
        trained_until: compared.trained_until,
    };
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
    match replay_targets(data, bundle, since, StateUntil::Training, runtime, progress, observe) {
        Ok(_) | Err(TrainError::TooLittle(_)) => Ok(cases),
        Err(error) => Err(error),
    }
}

impl Comparison {
    /// Compares the scores of the same users, and of groups of them. Returns `None` without a user.
    pub(super) fn new(
        state_until: StateUntil,
        task: Task,
        scored: &Scored,
        settings: &[Settings],
        groups: Vec<(String, Scored)>,
        options: &EvaluateOptions,
    ) -> Option<Self> {
        let user_count = scored.ranked.len();
        let resamples = resamples(user_count, options.bootstrap_count, options.seed);
        let intervals: Vec<MeanInterval> =
            scored.baselines.iter().map(|scores| bootstrap_mean(scores, &resamples)).collect();
        let by_mean = |a: &usize, b: &usize| intervals[*a].mean.total_cmp(&intervals[*b].mean);
        let best = (0..intervals.len()).max_by(by_mean).filter(|_| user_count > 0)?;
        let ranked_ndcg_at_10 = bootstrap_mean(&scored.ranked, &resamples);
        let baseline = |(of, ndcg_at_10): (&Settings, &MeanInterval)| BaselineScore {
            name: of.name,
            settings: of.settings.clone(),
            ndcg_at_10: *ndcg_at_10,
        };
        let group = |(name, scored): (String, Scored)| group_score(name, &scored, best, options);
        Some(Self {
            state_until,
            task,
            user_count,
            ranked_ndcg_at_10,
            best_baseline: settings[best].name,
            ratio: ranked_ndcg_at_10.mean / intervals[best].mean,
            gain: bootstrap_mean(&scored.gains(best), &resamples),
            baselines: settings.iter().zip(&intervals).map(baseline).collect(),
            groups: groups.into_iter().filter_map(group).collect(),
        })
    }
}

/// Returns the users by terciles of their number of earlier baskets and, of the discovery, those with a target of
/// either age.
fn groups(
    question: Question,
    ranked: &[QuestionScores],
    baselines: &[TunedBaseline],
    activity: &[usize],
) -> Vec<(String, Scored)> {
    let with_target = |user: &usize| ranked[*user][question as usize].is_some();
    let mut counts: Vec<usize> = (0..ranked.len()).filter(with_target).map(|user| activity[user]).collect();
    counts.sort_unstable();
    let last_of = |share: usize| counts.get((counts.len() * share / 3).saturating_sub(1)).copied().unwrap_or(0);
    let mut groups = Vec::new();
    let mut from = 0;
    for to in [last_of(1), last_of(2), last_of(3)] {
        let in_group = |user: usize| (from..=to).contains(&activity[user]);
        let scored = Scored::new(question, ranked, baselines, &in_group);
        let name = match from < to {
            true => format!("{from} to {to} earlier baskets"),
            false => format!("{to} earlier baskets"),
        };
        groups.push((name, scored));
        from = from.max(to + 1);
    }
    if question == Question::Discovery {
        for (question, name) in
            [(Question::DiscoveryOfNew, "items of the last 30 days"), (Question::DiscoveryOfEstablished, "older items")]
        {
            groups.push((name.to_owned(), Scored::new(question, ranked, baselines, &|_| true)));
        }
    }
    groups
}

/// Returns `None` for too few users.
fn group_score(name: String, scored: &Scored, baseline: usize, options: &EvaluateOptions) -> Option<GroupScore> {
    let user_count = scored.ranked.len();
    let resamples = resamples(user_count, options.bootstrap_count, options.seed);
    (user_count >= GROUP_USERS_MIN).then(|| GroupScore {
        name,
        user_count,
        ranked_ndcg_at_10: bootstrap_mean(&scored.ranked, &resamples),
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
        writeln!(f, "NDCG@10 {}, {state}, {} users", self.task.name(), self.user_count)?;
        for baseline in &self.baselines {
            writeln!(f, "  {:<18}{:<26}{}", baseline.name, baseline.ndcg_at_10.to_string(), baseline.settings)?;
        }
        writeln!(f, "  {:<18}{}", "ranked", self.ranked_ndcg_at_10)?;
        for group in &self.groups {
            writeln!(
                f,
                "  {} ({} users): ranked {:.4}, {} {:.4}, difference {}",
                group.name,
                group.user_count,
                group.ranked_ndcg_at_10.mean,
                self.best_baseline,
                group.baseline_ndcg_at_10.mean,
                group.gain
            )?;
        }
        writeln!(f, "  ranked / {}: {:.3}, difference {}", self.best_baseline, self.ratio, self.gain)
    }
}
