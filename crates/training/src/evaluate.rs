//! Evaluation of a bundle on the events after its training: the metrics of each user's next basket.
use super::{
    Progress,
    baselines::StateUntil,
    comparison::{Cases, Comparison, comparisons},
    error::TrainError,
    relevance::{self, RelevanceCut},
    replay::{Session, is_one_visit, remove_refunded},
    retrieval::{ListRequest, retrieve_candidates},
};
use ahash::{AHashMap, AHashSet};
use lodestone_core::{
    ids::{ItemId, Row, UserId},
    statistics::{MeanInterval, bootstrap_mean, resamples},
    units::UnixMillis,
    viewer::ViewerContext,
};
use lodestone_dataset as dataset;
use lodestone_events::{Event, EventKind};
use lodestone_pipeline::{
    Generation, Models, Options, RankedCandidates, RequestContext, Viewer,
    bundle::Bundle,
    context,
    ranking::{Device, Runtime},
    retrieve,
};
use std::{fmt, path::Path, time::Instant};

/// Length of the evaluated lists.
pub(super) const CUTOFF: usize = 10;

/// Options of the bootstrap intervals.
#[derive(Debug, Clone)]
pub struct EvaluateOptions {
    /// Bootstrap resamples of the users.
    pub bootstrap_count: usize,
    pub seed: u64,
}

impl Default for EvaluateOptions {
    fn default() -> Self {
        Self { bootstrap_count: 1000, seed: 1 }
    }
}

/// Metrics of one method of producing the list.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Method {
    pub name: &'static str,
    pub hr_at_10: MeanInterval,
    pub ndcg_at_10: MeanInterval,
    pub mrr_at_10: MeanInterval,
    /// Share of the catalogue that appears in any user's list.
    pub coverage_at_10: f64,
}

/// Targets of the events after the training that are not in the catalogue of the bundle: items that left the shop, or
/// that are newer than the bundle. They are left out of the comparison.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct UnknownTargets {
    /// Distinct items.
    pub item_count: usize,
    /// Lines of events with these items.
    pub line_count: usize,
}

impl fmt::Display for UnknownTargets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { item_count, line_count } = self;
        match line_count {
            0 => Ok(()),
            _ => {
                writeln!(f, "left out: {line_count} targets, of {item_count} items outside the catalogue of the bundle")
            }
        }
    }
}

/// Result of [`evaluate`].
#[derive(Debug, Clone, serde::Serialize)]
pub struct Evaluation {
    pub user_count: usize,
    pub item_count: usize,
    pub unknown_targets: UnknownTargets,
    pub trained_until_ms: i64,
    pub methods: Vec<Method>,
    /// Differences of NDCG@10 between each method and the one before it, paired by user.
    pub ndcg_gains: Vec<(&'static str, MeanInterval)>,
    pub relevance: RelevanceCut,
    /// The ranked lists and the baselines, by state and task. Tasks without a target are left out.
    pub comparisons: Vec<Comparison>,
}

/// Metrics of a bundle's lists by user, and their latency.
pub(super) struct ReplayScores {
    pub trained_until: UnixMillis,
    pub item_count: usize,
    pub unknown_targets: UnknownTargets,
    pub users: Vec<UserId>,
    /// By method: hit, NDCG and reciprocal rank of each user.
    pub scores: [Vec<[f64; 3]>; 3],
    /// By method: the items that appear in any list.
    pub covered: [AHashSet<Row>; 3],
    /// Median time of one user's lists, because other load on the machine slows some of them down.
    pub seconds: f64,
}

pub(super) const METHODS: [&str; 3] = ["popularity", "retrieval", "ranked"];
pub(super) const RANKED: usize = 2;
pub(super) const NDCG: usize = 1;

/// A user's lists at the start of the visit with the target basket.
pub(super) struct UserLists<'a> {
    pub user: &'a UserId,
    pub at: UnixMillis,
    pub history_length: usize,
    pub targets: &'a AHashSet<Row>,
    /// Items that the user bought before.
    pub bought: &'a AHashSet<Row>,
    /// By method: the first [`CUTOFF`] rows.
    pub lists: &'a [Vec<Row>; 3],
    pub ranked: &'a RankedCandidates,
}

/// Replays the events through the serving code and computes the metrics of each user's next basket.
///
/// A user takes part once, with the first basket that is neither before the end of the bundle's training nor before
/// `since`, if a history precedes it. The target is that basket, repeat purchases included, without the items that the
/// user gave back. If there is no such purchase at all, the target is the first positive interaction of any kind. The
/// lists are computed at the start of the visit with the target, because views and cart events of the same visit would
/// reveal the purchase.
///
/// Items that are not in the bundle's catalogue, or not in `also_in`, are no targets; a basket without a target does not
/// count. Data of which no item is in the bundle's catalogue is an error.
///
/// With [`StateUntil::Training`], events after the training change no list, and all lists are computed as of its end.
///
/// `observe` is called with the lists of each user.
#[expect(clippy::too_many_arguments, reason = "what is replayed, and how")]
pub(super) fn replay_targets(
    data: &Path,
    bundle: &Path,
    since: UnixMillis,
    also_in: Option<&AHashSet<ItemId>>,
    state_until: StateUntil,
    runtime: &Runtime,
    progress: &mut dyn FnMut(Progress),
    observe: &mut dyn FnMut(&UserLists, &mut Models),
) -> Result<ReplayScores, TrainError> {
    let bundle = Bundle::open(bundle)?;
    let trained_until = UnixMillis(bundle.manifest.trained_until_ms);
    let mut models = Models::open(runtime, &bundle, Device::Cpu)?;
    let (name, item_count) = (bundle.manifest.name.clone(), bundle.items.len());
    let generation = Generation::standalone(bundle, 1024)?;
    let events = dataset::into_events(dataset::join_orders(dataset::read_history(data)?));
    // The first keys are the rows; items of events that the catalogue does not contain have later ones.
    let known_row =
        |item: &ItemId| generation.state.keys.get(item).map(|key| Row(key.0)).filter(|row| row.index() < item_count);
    let items: AHashSet<&ItemId> = events.iter().flat_map(|event| &event.lines).map(|line| &line.item).collect();
    if !items.is_empty() && items.iter().all(|item| known_row(item).is_none()) {
        return Err(TrainError::OtherItems { data: data.to_owned(), bundle: name, item_count: items.len() });
    }
    let target_row = |item: &ItemId| known_row(item).filter(|_| also_in.is_none_or(|items| items.contains(item)));
    let mut scores = ReplayScores {
        trained_until,
        item_count,
        unknown_targets: UnknownTargets::default(),
        users: Vec::new(),
        scores: Default::default(),
        covered: Default::default(),
        seconds: 0.0,
    };
    let mut times: Vec<f64> = Vec::new();
    let mut outcomes = events.clone();
    remove_refunded(&mut outcomes);
    let is_late = |event: &Event| event.at >= trained_until && event.at >= since && !event.user.is_anonymous();
    let has_target = |event: &Event| event.lines.iter().any(|line| target_row(&line.item).is_some());
    let has_purchases =
        outcomes.iter().any(|event| event.kind == EventKind::Purchase && is_late(event) && has_target(event));
    let mut done_users: AHashSet<UserId> = AHashSet::new();
    let is_target_kind = |event: &Event| match has_purchases {
        true => event.kind == EventKind::Purchase,
        false => event.kind.is_positive(),
    };
    let target_of = visit_starts(&outcomes, |event| is_target_kind(event) && is_late(event) && has_target(event));
    let mut unknown: AHashSet<&ItemId> = AHashSet::new();
    for event in outcomes.iter().filter(|event| is_target_kind(event) && is_late(event)) {
        for line in event.lines.iter().filter(|line| target_row(&line.item).is_none()) {
            scores.unknown_targets.line_count += 1;
            unknown.insert(&line.item);
        }
    }
    scores.unknown_targets.item_count = unknown.len();
    for (done, event) in events.iter().enumerate() {
        let target = target_of.get(&done).map(|index| &outcomes[*index]);
        let history = target.and_then(|_| generation.state.users.history(&event.user));
        if let Some((target, history)) = target.zip(history).filter(|_| done_users.insert(event.user.clone())) {
            let targets: AHashSet<Row> = target.lines.iter().filter_map(|line| target_row(&line.item)).collect();
            let at = match state_until {
                StateUntil::Training => trained_until,
                StateUntil::Request => event.at,
            };
            generation.state.publish_popularity(at);
            let started = Instant::now();
            let (lists, ranked) = lists(&generation, &mut models, &event.user, &event.context, at);
            times.push(started.elapsed().as_secs_f64());
            scores.users.push(event.user.clone());
            let bought = history.events.iter().filter(|event| event.kind == EventKind::Purchase);
            let user_lists = UserLists {
                user: &event.user,
                at,
                history_length: history.events.len(),
                targets: &targets,
                bought: &bought.map(|event| Row(event.item.0)).collect(),
                lists: &lists,
                ranked: &ranked,
            };
            observe(&user_lists, &mut models);
            for (method, list) in lists.into_iter().enumerate() {
                scores.scores[method].push(list_metrics(&list, &targets));
                scores.covered[method].extend(list);
            }
        }
        if state_until == StateUntil::Request || event.at < trained_until {
            generation.state.apply_event(0, event);
        }
        if done % 256 == 0 {
            progress(Progress { stage: "evaluate", done, total: events.len(), loss: f32::NAN });
        }
    }
    times.sort_by(f64::total_cmp);
    scores.seconds = times.get(times.len() / 2).copied().unwrap_or(0.0);
    match scores.users.is_empty() {
        true => Err(TrainError::TooLittle(
            "no user with a history has a positive interaction with an item of the bundle after its training; evaluate on \
             newer events"
                .to_owned(),
        )),
        false => Ok(scores),
    }
}

/// Returns, for each visit with a target, the index of the visit's first event and that of its first target.
fn visit_starts(events: &[Event], is_target: impl Fn(&Event) -> bool) -> AHashMap<usize, usize> {
    let mut visits: AHashMap<&UserId, (usize, (Session, UnixMillis))> = AHashMap::new();
    let mut targets = AHashMap::new();
    for (index, event) in events.iter().enumerate() {
        let here = (Session::of(&event.session), event.at);
        let visit = visits.entry(&event.user).or_insert((index, here));
        if !is_one_visit(visit.1, here) {
            visit.0 = index;
        }
        visit.1 = here;
        if is_target(event) {
            targets.entry(visit.0).or_insert(index);
        }
    }
    targets
}

/// Evaluates a bundle on the events after its training, by [`replay_targets`].
pub fn evaluate(
    data: &Path,
    bundle: &Path,
    runtime: &Runtime,
    options: &EvaluateOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<Evaluation, TrainError> {
    let mut cases = Cases::default();
    let since = UnixMillis(i64::MIN);
    let observe = &mut |lists: &UserLists, _: &mut Models| cases.add(lists);
    let scores = replay_targets(data, bundle, since, None, StateUntil::Request, runtime, progress, observe)?;
    let comparisons = comparisons(data, bundle, runtime, cases, options, progress)?;
    let relevance = relevance::of_bundle(bundle, runtime, progress)?;
    Ok(evaluation(&scores, relevance, comparisons, options))
}

/// Computes means and intervals. All metrics share the resamples, so that differences are paired.
pub(super) fn evaluation(
    scores: &ReplayScores,
    relevance: RelevanceCut,
    comparisons: Vec<Comparison>,
    options: &EvaluateOptions,
) -> Evaluation {
    let resamples = resamples(scores.users.len(), options.bootstrap_count, options.seed);
    let interval = |method: usize, metric: usize| {
        bootstrap_mean(&scores.scores[method].iter().map(|score| score[metric]).collect::<Vec<_>>(), &resamples)
    };
    let methods = (0..3)
        .map(|method| Method {
            name: METHODS[method],
            hr_at_10: interval(method, 0),
            ndcg_at_10: interval(method, NDCG),
            mrr_at_10: interval(method, 2),
            coverage_at_10: scores.covered[method].len() as f64 / scores.item_count as f64,
        })
        .collect();
    let gain = |better: usize, worse: usize| {
        let pairs = scores.scores[better].iter().zip(&scores.scores[worse]);
        bootstrap_mean(&pairs.map(|(b, w)| b[NDCG] - w[NDCG]).collect::<Vec<_>>(), &resamples)
    };
    Evaluation {
        user_count: scores.users.len(),
        item_count: scores.item_count,
        unknown_targets: scores.unknown_targets,
        trained_until_ms: scores.trained_until.0,
        methods,
        ndcg_gains: vec![("retrieval - popularity", gain(1, 0)), ("ranked - retrieval", gain(RANKED, 1))],
        relevance,
        comparisons,
    }
}

/// Returns the first [`CUTOFF`] rows by popularity, by retrieval alone, and by retrieval and ranking.
fn lists(
    generation: &Generation,
    models: &mut Models,
    user: &UserId,
    context: &ViewerContext,
    now: UnixMillis,
) -> ([Vec<Row>; 3], RankedCandidates) {
    let viewer = Viewer { context: context.clone(), ..Viewer::of_user(user.clone()) };
    let (catalog, options) = (generation.catalog.load_full(), Options::default());
    let mut context = RequestContext::new(generation, &catalog, &viewer, &options, now);
    let popular = retrieve::popular(&context.retrieval_input(), CUTOFF).into_iter().map(|(row, _)| row).collect();
    retrieve_candidates(&mut context, models, &ListRequest::ForYou);
    let retrieved = context.candidates.list.iter().map(|candidate| candidate.row).take(CUTOFF).collect();
    let ranked = context::rank(std::slice::from_mut(&mut context), models).remove(0);
    let mut best = best_first(&ranked);
    best.truncate(CUTOFF);
    ([popular, retrieved, best], ranked)
}

/// Returns all candidates by descending score; equal scores keep the order of retrieval.
pub(super) fn best_first(ranked: &RankedCandidates) -> Vec<Row> {
    let mut order: Vec<usize> = (0..ranked.scores.len()).collect();
    order.sort_by(|a, b| ranked.scores[*b].total_cmp(&ranked.scores[*a]).then(a.cmp(b)));
    order.into_iter().map(|index| ranked.candidates.list[index].row).collect()
}

/// Returns hit, NDCG and reciprocal rank of a list of at most [`CUTOFF`] rows.
pub(super) fn list_metrics(list: &[Row], targets: &AHashSet<Row>) -> [f64; 3] {
    let hits: Vec<usize> =
        list.iter().enumerate().filter(|(_, row)| targets.contains(row)).map(|(position, _)| position).collect();
    let ndcg = ndcg(hits.iter().copied(), targets.len());
    [f64::from(u8::from(!hits.is_empty())), ndcg, hits.first().map_or(0.0, |position| 1.0 / (position + 1) as f64)]
}

/// Returns NDCG of a list of at most [`CUTOFF`] rows from the positions of its targets, from 0.
pub(super) fn ndcg(hits: impl Iterator<Item = usize>, target_count: usize) -> f64 {
    let discount = |position: usize| 1.0 / ((position + 2) as f64).log2();
    let ideal: f64 = (0..target_count.min(CUTOFF)).map(discount).sum();
    let gained = hits.map(discount).fold(0.0, |sum, gain| sum + gain);
    if ideal > 0.0 { gained / ideal } else { 0.0 }
}

impl fmt::Display for Evaluation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} users' next baskets, {} items; 95 % bootstrap intervals", self.user_count, self.item_count)?;
        write!(f, "{}", self.unknown_targets)?;
        writeln!(f, "{:<12}{:<28}{:<28}{:<28}coverage@10", "", "HR@10", "NDCG@10", "MRR@10")?;
        for method in &self.methods {
            writeln!(
                f,
                "{:<12}{:<28}{:<28}{:<28}{:.4}",
                method.name,
                method.hr_at_10.to_string(),
                method.ndcg_at_10.to_string(),
                method.mrr_at_10.to_string(),
                method.coverage_at_10
            )?;
        }
        for (name, gain) in &self.ndcg_gains {
            writeln!(f, "NDCG@10 {name}: {gain}")?;
        }
        writeln!(f, "{}", self.relevance)?;
        self.comparisons.iter().try_for_each(|comparison| write!(f, "\n{comparison}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lodestone_core::ids::EventId;

    #[test]
    fn a_target_belongs_to_the_first_event_of_its_visit() {
        let event = |user: &str, minute: i64, kind| {
            let id = EventId::parse(&format!("{user}{minute}")).unwrap();
            Event::new(id, kind, UserId::signed_in(user).unwrap(), UnixMillis(minute * 60_000))
        };
        let events = [
            event("a", 0, EventKind::View),
            event("b", 5, EventKind::Purchase),
            event("a", 25, EventKind::AddToCart),
            event("a", 50, EventKind::Purchase),
            event("a", 55, EventKind::Purchase),
            event("a", 90, EventKind::Click),
            event("a", 100, EventKind::Purchase),
        ];
        let starts = visit_starts(&events, |event| event.kind == EventKind::Purchase);
        assert_eq!(starts, [(0, 3), (1, 1), (5, 6)].into_iter().collect());
    }

    #[test]
    fn a_perfect_list_has_an_ndcg_of_one_and_an_empty_one_of_zero() {
        let targets: AHashSet<Row> = [Row(1), Row(2)].into();
        assert_eq!(list_metrics(&[Row(2), Row(1), Row(3)], &targets), [1.0, 1.0, 1.0]);
        assert_eq!(list_metrics(&[], &targets), [0.0, 0.0, 0.0]);
        let later = list_metrics(&[Row(9), Row(1)], &targets);
        assert!(later[1] < 0.5 && later[2] == 0.5);
    }
}
