//! How good a bundle is on what came after its training: each user's next basket.
use super::{
    Progress,
    replay::VISIT_MS,
    train::{TrainError, retrieve_candidates},
};
use ahash::{AHashMap, AHashSet};
use lodestone_core::{
    ids::{Row, UserId},
    statistics::{MeanInterval, bootstrap_mean, resamples},
    units::UnixMillis,
};
use lodestone_dataset as dataset;
use lodestone_events::{Event, EventKind};
use lodestone_pipeline::{
    Generation, Models, Options, RankedCandidates, RequestContext, Viewer,
    bundle::Bundle,
    context,
    ranking::{Device, Runtime},
};
use std::{fmt, path::Path, time::Instant};

/// Places that count.
pub(super) const CUTOFF: usize = 10;

#[derive(Debug, Clone)]
pub struct EvaluateOptions {
    /// Resamples of the users for the intervals.
    pub bootstrap_count: usize,
    pub seed: u64,
}

impl Default for EvaluateOptions {
    fn default() -> Self {
        Self { bootstrap_count: 1000, seed: 1 }
    }
}

/// One way of making the list.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Method {
    pub name: &'static str,
    pub hr_at_10: MeanInterval,
    pub ndcg_at_10: MeanInterval,
    pub mrr_at_10: MeanInterval,
    /// Share of the catalogue that appears in some user's list.
    pub coverage_at_10: f64,
}

#[derive(Debug, Clone, serde::Serialize)]
pub struct Evaluation {
    pub user_count: usize,
    pub item_count: usize,
    pub trained_until_ms: i64,
    pub methods: Vec<Method>,
    /// NDCG@10 of each method less that of the one before it, over the same users.
    pub ndcg_gains: Vec<(&'static str, MeanInterval)>,
}

/// What a bundle gave each user, and what it cost.
pub(super) struct Judged {
    pub trained_until: UnixMillis,
    pub item_count: usize,
    pub users: Vec<UserId>,
    /// By method: hit, NDCG and reciprocal rank of each user.
    pub scores: [Vec<[f64; 3]>; 3],
    /// By method: the items that appeared in some list.
    pub shown: [AHashSet<Row>; 3],
    /// One user's lists, in the middle of all: what else the machine does makes some of them slow.
    pub seconds: f64,
}

pub(super) const METHODS: [&str; 3] = ["popularity", "retrieval", "ranked"];
pub(super) const RANKED: usize = 2;
pub(super) const NDCG: usize = 1;

/// What one user would have been shown before a basket.
pub(super) struct Shown<'a> {
    pub user: &'a UserId,
    pub at: UnixMillis,
    pub history_length: usize,
    pub targets: &'a AHashSet<Row>,
    /// By method: the first places.
    pub lists: &'a [Vec<Row>; 3],
    pub ranked: &'a RankedCandidates,
}

/// [`replay_targets`] without a look at each user.
pub(super) fn judge_bundle(
    data: &Path,
    bundle: &Path,
    since: UnixMillis,
    runtime: &Runtime,
    progress: &mut dyn FnMut(Progress),
) -> Result<Judged, TrainError> {
    replay_targets(data, bundle, since, runtime, progress, &mut |_, _| {})
}

/// Replays the events through the serving code. Users with a history before their first basket that came after the
/// bundle's training, and not before `since`, take part, each once; that basket is the target, repeats included. Where nothing
/// was bought since then, it is the first choice of any kind. The lists are those of the moment at which the visit began: what
/// somebody looks at or puts into the cart tells what they are about to buy, but a shop that shows it to them shows nothing new.
pub(super) fn replay_targets(
    data: &Path,
    bundle: &Path,
    since: UnixMillis,
    runtime: &Runtime,
    progress: &mut dyn FnMut(Progress),
    look: &mut dyn FnMut(&Shown, &mut Models),
) -> Result<Judged, TrainError> {
    let bundle = Bundle::open(bundle)?;
    let trained_until = UnixMillis(bundle.manifest.trained_until_ms);
    let mut models = Models::open(runtime, &bundle, Device::Cpu)?;
    let item_count = bundle.items.len();
    let generation = Generation::standalone(bundle, 1024)?;
    let events = dataset::into_events(dataset::read_history(data)?);
    let mut judged = Judged {
        trained_until,
        item_count,
        users: Vec::new(),
        scores: Default::default(),
        shown: Default::default(),
        seconds: 0.0,
    };
    let mut times: Vec<f64> = Vec::new();
    let is_late = |event: &Event| event.at >= trained_until && event.at >= since;
    let are_bought = events.iter().any(|event| event.kind == EventKind::Purchase && is_late(event));
    let mut done_users: AHashSet<UserId> = AHashSet::new();
    let is_wanted = |event: &Event| match are_bought {
        true => event.kind == EventKind::Purchase,
        false => event.kind.is_positive(),
    };
    let target_of = first_of_visits(&events, |event| is_wanted(event) && is_late(event));
    for (done, event) in events.iter().enumerate() {
        let target = target_of.get(&done).map(|place| &events[*place]);
        let history = target.and_then(|_| generation.state.users.history(&event.user));
        if let Some((target, history)) = target.zip(history).filter(|_| done_users.insert(event.user.clone())) {
            let targets: AHashSet<Row> = target
                .lines
                .iter()
                .filter_map(|line| generation.state.keys.get(&line.item))
                .map(|key| Row(key.0))
                .collect();
            let begun = Instant::now();
            let (lists, ranked) = lists(&generation, &mut models, &event.user, event.at);
            times.push(begun.elapsed().as_secs_f64());
            judged.users.push(event.user.clone());
            let history_length = history.events.len();
            let shown = Shown {
                user: &event.user,
                at: event.at,
                history_length,
                targets: &targets,
                lists: &lists,
                ranked: &ranked,
            };
            look(&shown, &mut models);
            for (method, list) in lists.into_iter().enumerate() {
                judged.scores[method].push(judge(&list, &targets));
                judged.shown[method].extend(list);
            }
        }
        generation.state.apply_event(0, event);
        if done % 256 == 0 {
            progress(Progress { stage: "evaluate", done, total: events.len(), loss: f32::NAN });
        }
    }
    times.sort_by(f64::total_cmp);
    judged.seconds = times.get(times.len() / 2).copied().unwrap_or(0.0);
    match judged.users.is_empty() {
        true => {
            Err(TrainError::TooLittle("no user with a history chose anything after the bundle's training".to_owned()))
        }
        false => Ok(judged),
    }
}

/// The place of each visit's first event with that of the first target in the visit, where there is one.
fn first_of_visits(events: &[Event], is_target: impl Fn(&Event) -> bool) -> AHashMap<usize, usize> {
    let mut visits: AHashMap<&UserId, (usize, UnixMillis)> = AHashMap::new();
    let mut targets = AHashMap::new();
    for (place, event) in events.iter().enumerate() {
        let visit = visits.entry(&event.user).or_insert((place, event.at));
        if event.at.0 - visit.1.0 > VISIT_MS {
            visit.0 = place;
        }
        visit.1 = event.at;
        if is_target(event) {
            targets.entry(visit.0).or_insert(place);
        }
    }
    targets
}

/// Judges a bundle by [`judge_bundle`].
pub fn evaluate(
    data: &Path,
    bundle: &Path,
    runtime: &Runtime,
    options: &EvaluateOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<Evaluation, TrainError> {
    Ok(evaluation(&judge_bundle(data, bundle, UnixMillis(i64::MIN), runtime, progress)?, options))
}

pub(super) fn evaluation(judged: &Judged, options: &EvaluateOptions) -> Evaluation {
    let resamples = resamples(judged.users.len(), options.bootstrap_count, options.seed);
    let measured = |method: usize, metric: usize| {
        bootstrap_mean(&judged.scores[method].iter().map(|score| score[metric]).collect::<Vec<_>>(), &resamples)
    };
    let methods = (0..3)
        .map(|method| Method {
            name: METHODS[method],
            hr_at_10: measured(method, 0),
            ndcg_at_10: measured(method, NDCG),
            mrr_at_10: measured(method, 2),
            coverage_at_10: judged.shown[method].len() as f64 / judged.item_count as f64,
        })
        .collect();
    let gain = |better: usize, worse: usize| {
        let pairs = judged.scores[better].iter().zip(&judged.scores[worse]);
        bootstrap_mean(&pairs.map(|(b, w)| b[NDCG] - w[NDCG]).collect::<Vec<_>>(), &resamples)
    };
    Evaluation {
        user_count: judged.users.len(),
        item_count: judged.item_count,
        trained_until_ms: judged.trained_until.0,
        methods,
        ndcg_gains: vec![("retrieval - popularity", gain(1, 0)), ("ranked - retrieval", gain(RANKED, 1))],
    }
}

/// The first [`CUTOFF`] rows by popularity, by retrieval alone, and by retrieval and ranking.
fn lists(
    generation: &Generation,
    models: &mut Models,
    user: &UserId,
    now: UnixMillis,
) -> ([Vec<Row>; 3], RankedCandidates) {
    let viewer = Viewer { user: user.clone(), session: String::new(), locale: String::new() };
    let (catalog, options) = (generation.catalog.load_full(), Options::default());
    let mut context = RequestContext::new(generation, &catalog, &viewer, &options, now);
    let popular = generation.state.popular(now);
    let popular = popular.iter().filter_map(|(key, _)| catalog.row_of_key(*key)).take(CUTOFF).collect();
    retrieve_candidates(&mut context, models, None);
    let retrieved = context.candidates.list.iter().map(|candidate| candidate.row).take(CUTOFF).collect();
    let ranked = context::rank(std::slice::from_mut(&mut context), models).remove(0);
    let mut order: Vec<usize> = (0..ranked.scores.len()).collect();
    order.sort_by(|a, b| ranked.scores[*b].total_cmp(&ranked.scores[*a]).then(a.cmp(b)));
    let best = order.into_iter().take(CUTOFF).map(|index| ranked.candidates.list[index].row).collect();
    ([popular, retrieved, best], ranked)
}

/// Hit, NDCG and reciprocal rank of a list, each within [`CUTOFF`].
pub(super) fn judge(list: &[Row], targets: &AHashSet<Row>) -> [f64; 3] {
    let discount = |place: usize| 1.0 / ((place + 2) as f64).log2();
    let hits: Vec<usize> =
        list.iter().enumerate().filter(|(_, row)| targets.contains(row)).map(|(place, _)| place).collect();
    let ideal: f64 = (0..targets.len().min(CUTOFF)).map(discount).sum();
    let gained: f64 = hits.iter().map(|place| discount(*place)).sum();
    let ndcg = if ideal > 0.0 { gained / ideal } else { 0.0 };
    [f64::from(u8::from(!hits.is_empty())), ndcg, hits.first().map_or(0.0, |place| 1.0 / (place + 1) as f64)]
}

/// The same resamples for all metrics, so that differences are paired.
impl fmt::Display for Evaluation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} users' next baskets, {} items; 95 % bootstrap intervals", self.user_count, self.item_count)?;
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
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lodestone_core::ids::EventId;
    use lodestone_events::Attribution;

    #[test]
    fn a_target_is_judged_from_the_first_event_of_its_visit() {
        let event = |user: &str, minute: i64, kind| Event {
            id: EventId::parse(&format!("{user}{minute}")).unwrap(),
            kind,
            user: UserId::signed_in(user).unwrap(),
            session: String::new(),
            at: UnixMillis(minute * 60_000),
            lines: Vec::new(),
            query: String::new(),
            order: String::new(),
            stars: 0,
            coupon: String::new(),
            categories: Vec::new(),
            currency: String::new(),
            attribution: Attribution::None,
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
        let found = first_of_visits(&events, |event| event.kind == EventKind::Purchase);
        assert_eq!(found, [(0, 3), (1, 1), (5, 6)].into_iter().collect());
    }

    #[test]
    fn a_perfect_list_has_an_ndcg_of_one_and_an_empty_one_of_zero() {
        let targets: AHashSet<Row> = [Row(1), Row(2)].into();
        assert_eq!(judge(&[Row(2), Row(1), Row(3)], &targets), [1.0, 1.0, 1.0]);
        assert_eq!(judge(&[], &targets), [0.0, 0.0, 0.0]);
        let later = judge(&[Row(9), Row(1)], &targets);
        assert!(later[1] < 0.5 && later[2] == 0.5);
    }
}
