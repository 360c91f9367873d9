//! Baselines of the field that need no training beyond counting, or one matrix inverse: what a bundle must be better
//! than. Each is tuned on the last part of the training data, by task.
mod items;
mod neighbours;
mod shop;

use crate::{
    Progress,
    counts::transitions,
    evaluate::{CUTOFF, NDCG, list_metrics},
};
use ahash::{AHashMap, AHashSet};
use items::ItemWeights;
use lodestone_core::{
    ids::{Row, UserId},
    units::UnixMillis,
};
use lodestone_index::Neighbours;
use neighbours::UserVectors;
pub(crate) use shop::Shop;
use shop::decayed;
use std::fmt;

/// A question about a user's next basket. `All`: the whole basket. `Repeat`: the items that the user bought before,
/// among such items. `Discovery`: the other items, among those that are new to the user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    All,
    Repeat,
    Discovery,
}

impl Task {
    pub const ALL: [Task; 3] = [Task::All, Task::Repeat, Task::Discovery];

    pub fn name(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Repeat => "repeat",
            Self::Discovery => "discovery",
        }
    }

    fn includes(self, is_own: bool) -> bool {
        match self {
            Self::All => true,
            Self::Repeat => is_own,
            Self::Discovery => !is_own,
        }
    }
}

/// A user's next basket, and the time from which on nothing is known.
#[derive(Debug, Clone)]
pub(crate) struct Case {
    pub user: UserId,
    pub at: UnixMillis,
    pub targets: AHashSet<Row>,
}

/// NDCG@10 by task; `None` if the basket has no target of the task.
pub(crate) type TaskScores = [Option<f64>; 3];

/// Returns NDCG@10 by task of the first items in the order of `ranking`, which may be longer than the list. `own` are
/// the items that the user bought before.
pub(crate) fn task_scores(
    ranking: impl Iterator<Item = Row> + Clone,
    targets: &AHashSet<Row>,
    own: &AHashSet<Row>,
) -> TaskScores {
    Task::ALL.map(|task| {
        let targets: AHashSet<Row> = targets.iter().copied().filter(|row| task.includes(own.contains(row))).collect();
        if targets.is_empty() {
            return None;
        }
        let list: Vec<Row> = ranking.clone().filter(|row| task.includes(own.contains(row))).take(CUTOFF).collect();
        Some(list_metrics(&list, &targets)[NDCG])
    })
}

/// Returns the items that the user of a case bought before.
pub(crate) fn own_items(shop: &Shop, case: &Case) -> AHashSet<Row> {
    shop.bought_before(&case.user, case.at).iter().map(|bought| Row(bought.row)).collect()
}

/// A score of each item from counts, with its settings.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Score {
    /// Sales of the last days.
    Popularity { days: f32 },
    /// The user's own purchases, decayed.
    Own { half_life_days: f32 },
    /// [`ItemWeights::cosines`].
    ItemKnn { half_life_days: f32 },
    /// [`UserVectors`].
    UserKnn { half_life_days: f32, neighbours: usize },
    /// [`ItemWeights::ease`].
    Ease { regularisation: f32, half_life_days: f32 },
    /// First-order transitions from the items of the user's last interaction.
    Transitions,
}

impl fmt::Display for Score {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Popularity { days } => write!(f, "popularity of {}", Days(*days)),
            Self::Own { half_life_days } => write!(f, "own purchases, half-life {}", Days(*half_life_days)),
            Self::ItemKnn { half_life_days } => write!(f, "ItemKNN, half-life {}", Days(*half_life_days)),
            Self::UserKnn { half_life_days, neighbours } => {
                write!(f, "UserKNN of {neighbours}, half-life {}", Days(*half_life_days))
            }
            Self::Ease { regularisation, half_life_days } => {
                write!(f, "EASE, λ {regularisation}, half-life {}", Days(*half_life_days))
            }
            Self::Transitions => f.write_str("transitions"),
        }
    }
}

/// A number of days, or all time.
struct Days(f32);

impl fmt::Display for Days {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.is_finite() {
            true => write!(f, "{} days", self.0),
            false => f.write_str("all time"),
        }
    }
}

/// A baseline: one score, or the weighted sum of several, each with mean 0 and standard deviation 1 over the items.
#[derive(Debug, Clone, PartialEq)]
struct Baseline(Vec<(f32, Score)>);

impl fmt::Display for Baseline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (weight, score)) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { " + " };
            match self.0.len() {
                1 => write!(f, "{score}")?,
                _ => write!(f, "{separator}{weight} × {score}")?,
            }
        }
        Ok(())
    }
}

/// Baselines of one kind, from which the best by task is chosen.
struct Family {
    name: &'static str,
    baselines: Vec<Baseline>,
}

const NEVER: f32 = f32::INFINITY;
const HALF_LIVES: [f32; 2] = [90.0, NEVER];

/// Returns the families of one score each.
fn single_families() -> Vec<Family> {
    let family = |name, scores: Vec<Score>| Family {
        name,
        baselines: scores.into_iter().map(|score| Baseline(vec![(1.0, score)])).collect(),
    };
    let users = |half_life_days| [50, 200].map(|neighbours| Score::UserKnn { half_life_days, neighbours });
    let ease = |half_life_days| [200.0, 1000.0].map(|regularisation| Score::Ease { regularisation, half_life_days });
    vec![
        family("popularity", [7.0, 14.0, 30.0, 60.0, NEVER].map(|days| Score::Popularity { days }).to_vec()),
        family(
            "own purchases",
            [30.0, 90.0, 180.0, NEVER].map(|half_life_days| Score::Own { half_life_days }).to_vec(),
        ),
        family("ItemKNN", HALF_LIVES.map(|half_life_days| Score::ItemKnn { half_life_days }).to_vec()),
        family("UserKNN", HALF_LIVES.into_iter().flat_map(users).collect()),
        family("EASE", HALF_LIVES.into_iter().flat_map(ease).collect()),
        family("transitions", vec![Score::Transitions]),
    ]
}

/// Returns the families of sums, whose parts are the best scores of the families above for one task.
fn combined_families(best: &AHashMap<&'static str, Score>) -> Vec<Family> {
    let (own, popularity) = (best["own purchases"], best["popularity"]);
    let with_popularity = [0.02, 0.05, 0.1, 0.2, 0.5].map(|weight| Baseline(vec![(1.0, own), (weight, popularity)]));
    let mut combined = Vec::new();
    for users in [0.0, 0.5, 1.0] {
        for ease in [0.0, 0.5, 1.0] {
            for sold in [0.0, 0.2, 0.5, 1.0] {
                let parts = [(1.0, own), (users, best["UserKNN"]), (ease, best["EASE"]), (sold, popularity)];
                combined.push(Baseline(parts.into_iter().filter(|(weight, _)| *weight > 0.0).collect()));
            }
        }
    }
    vec![
        Family { name: "own + popularity", baselines: with_popularity.to_vec() },
        Family { name: "combination", baselines: combined },
    ]
}

/// A baseline with the settings that were best on the validation data, and its scores by case.
pub(crate) struct Tuned {
    pub name: &'static str,
    pub settings: String,
    /// By case of the evaluation; `None` if the case has no target of the task.
    pub ndcg: Vec<Option<f64>>,
}

/// What the scores are computed from, as of the end of the training.
struct Fitted {
    ease: Vec<(f32, ItemWeights)>,
    cosines: Option<ItemWeights>,
    transitions: Option<Neighbours>,
}

impl Fitted {
    fn new(shop: &Shop, until: UnixMillis, scores: &[Score], progress: &mut dyn FnMut(Progress)) -> Self {
        let mut fitted = Self { ease: Vec::new(), cosines: None, transitions: None };
        for (done, score) in scores.iter().enumerate() {
            progress(Progress { stage: "baselines: fit", done, total: scores.len(), loss: f32::NAN });
            match *score {
                Score::Ease { regularisation, .. } if fitted.ease(regularisation).is_none() => {
                    fitted.ease.push((regularisation, ItemWeights::counts(shop, until).ease(regularisation)));
                }
                Score::ItemKnn { .. } if fitted.cosines.is_none() => {
                    fitted.cosines = Some(ItemWeights::counts(shop, until).cosines());
                }
                Score::Transitions => {
                    fitted.transitions = Some(transitions(shop.interactions_before(until), shop.item_count));
                }
                _ => {}
            }
        }
        fitted
    }

    fn ease(&self, regularisation: f32) -> Option<&ItemWeights> {
        self.ease.iter().find(|(other, _)| *other == regularisation).map(|(_, weights)| weights)
    }

    /// Returns a score of each item for a case. The users' vectors are as of its time.
    fn scores(&self, shop: &Shop, users: &[UserVectors], score: Score, case: &Case) -> Vec<f32> {
        let none = || vec![0.0; shop.item_count];
        let bought = shop.bought_before(&case.user, case.at);
        match score {
            Score::Popularity { days } => shop.sales(case.at, days).into_iter().map(f32::ln_1p).collect(),
            Score::Own { half_life_days } => {
                let mut scores = none();
                bought.iter().for_each(|b| scores[b.row as usize] += decayed(b.at, case.at, half_life_days));
                scores
            }
            Score::ItemKnn { half_life_days } => {
                self.cosines.as_ref().map_or_else(none, |weights| weights.scores(bought, case.at, half_life_days))
            }
            Score::Ease { regularisation, half_life_days } => {
                self.ease(regularisation).map_or_else(none, |weights| weights.scores(bought, case.at, half_life_days))
            }
            Score::UserKnn { half_life_days, neighbours } => users
                .iter()
                .find(|vectors| vectors.half_life_days == half_life_days)
                .map_or_else(none, |vectors| vectors.scores(shop, &case.user, neighbours)),
            Score::Transitions => {
                let mut scores = none();
                let last = bought.last().map(|last| last.at);
                for from in bought.iter().rev().take_while(|bought| Some(bought.at) == last) {
                    let (to, weights) =
                        self.transitions.as_ref().map_or((&[][..], &[][..]), |table| table.of(Row(from.row)));
                    to.iter().zip(weights).for_each(|(to, weight)| scores[*to as usize] += weight);
                }
                scores
            }
        }
    }
}

/// Returns NDCG@10 by baseline and case, by task. The models see the purchases before `until`, and the state of each
/// case those before its time.
fn evaluate(
    shop: &Shop,
    until: UnixMillis,
    cases: &[Case],
    baselines: &[&Baseline],
    progress: &mut dyn FnMut(Progress),
) -> Vec<Vec<TaskScores>> {
    let mut distinct: Vec<Score> = Vec::new();
    for (_, score) in baselines.iter().flat_map(|baseline| &baseline.0) {
        if !distinct.contains(score) {
            distinct.push(*score);
        }
    }
    let fitted = Fitted::new(shop, until, &distinct, progress);
    let mut order: Vec<usize> = (0..cases.len()).collect();
    order.sort_by_key(|index| cases[*index].at);
    let ends = order.last().map_or(until, |last| cases[*last].at);
    let mut users: Vec<UserVectors> = Vec::new();
    for score in &distinct {
        if let Score::UserKnn { half_life_days, .. } = *score
            && users.iter().all(|vectors| vectors.half_life_days != half_life_days)
        {
            users.push(UserVectors::new(shop, ends, half_life_days));
        }
    }
    let mut results = vec![vec![[None; 3]; cases.len()]; baselines.len()];
    for (done, index) in order.into_iter().enumerate() {
        if done % 16 == 0 {
            progress(Progress { stage: "baselines", done, total: cases.len(), loss: f32::NAN });
        }
        let case = &cases[index];
        users.iter_mut().for_each(|vectors| vectors.advance(shop, case.at));
        let own = own_items(shop, case);
        let scores: Vec<Vec<f32>> =
            distinct.iter().map(|score| standardised(fitted.scores(shop, &users, *score, case))).collect();
        for (baseline, results) in baselines.iter().zip(&mut results) {
            let mut sum = vec![0.0; shop.item_count];
            for (weight, score) in &baseline.0 {
                let part = distinct.iter().position(|other| other == score).expect("collected above");
                sum.iter_mut().zip(&scores[part]).for_each(|(sum, value)| *sum += weight * value);
            }
            let mut ranking: Vec<Row> = (0..shop.item_count as u32).map(Row).collect();
            // The first of each task are among the first of all, the user's own items, and those that follow them.
            let length = (CUTOFF + own.len()).max(10 * CUTOFF).min(ranking.len());
            let best_first = |a: &Row, b: &Row| sum[b.index()].total_cmp(&sum[a.index()]).then(a.cmp(b));
            if length < ranking.len() {
                ranking.select_nth_unstable_by(length, best_first);
            }
            let mut own_rest: Vec<Row> = ranking[length..].iter().copied().filter(|row| own.contains(row)).collect();
            ranking.truncate(length);
            ranking.append(&mut own_rest);
            ranking.sort_unstable_by(best_first);
            results[index] = task_scores(ranking.iter().copied(), &case.targets, &own);
        }
    }
    results
}

/// Shifts and scales values to mean 0 and standard deviation 1. Equal values become 0.
fn standardised(mut values: Vec<f32>) -> Vec<f32> {
    let count = values.len().max(1) as f64;
    let mean = values.iter().map(|value| f64::from(*value)).sum::<f64>() / count;
    let variance = values.iter().map(|value| (f64::from(*value) - mean).powi(2)).sum::<f64>() / count;
    let scale = if variance > 0.0 { 1.0 / variance.sqrt() } else { 0.0 };
    values.iter_mut().for_each(|value| *value = ((f64::from(*value) - mean) * scale) as f32);
    values
}

/// Most cases of the validation.
const VALIDATION_CASES_MAX: usize = 1000;
/// Share of the interactions before the end of the training on which the settings are chosen.
const VALIDATION_SHARE: f64 = 0.1;

/// The end of the state that a list is computed from: the end of the training, or the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StateUntil {
    Training,
    Request,
}

/// Returns each user's first basket after the validation data begin, if the user bought something before.
fn validation_cases(shop: &Shop, begins: UnixMillis, ends: UnixMillis, state: StateUntil) -> Vec<Case> {
    let mut seen: AHashSet<&UserId> = AHashSet::new();
    let mut cases = Vec::new();
    for interaction in shop.interactions_before(ends) {
        let Some(user) = interaction.user.as_ref().filter(|_| interaction.at >= begins) else { continue };
        if shop.bought_before(user, begins).is_empty() || !seen.insert(user) {
            continue;
        }
        let at = match state {
            StateUntil::Training => begins,
            StateUntil::Request => interaction.at,
        };
        cases.push(Case { user: user.clone(), at, targets: interaction.rows.iter().map(|row| Row(*row)).collect() });
    }
    let step = cases.len().div_ceil(VALIDATION_CASES_MAX).max(1);
    cases.into_iter().step_by(step).collect()
}

/// Tunes all baselines for each task on the last part of the data before `until`, and evaluates them on the cases.
/// Returns them by task.
pub(crate) fn tuned_baselines(
    shop: &Shop,
    until: UnixMillis,
    cases: &[Case],
    state: StateUntil,
    progress: &mut dyn FnMut(Progress),
) -> [Vec<Tuned>; 3] {
    let known = shop.interactions_before(until);
    let begins = known.get((known.len() as f64 * (1.0 - VALIDATION_SHARE)) as usize).map_or(until, |first| first.at);
    let validation = validation_cases(shop, begins, until, state);
    let mut best_of = |families: &[Family]| -> Vec<[Baseline; 3]> {
        let all: Vec<&Baseline> = families.iter().flat_map(|family| &family.baselines).collect();
        let mut results = evaluate(shop, begins, &validation, &all, progress).into_iter();
        let best = families.iter().map(|family| {
            let results: Vec<Vec<TaskScores>> = results.by_ref().take(family.baselines.len()).collect();
            let score = |index: &usize, task: usize| mean(results[*index].iter().filter_map(|scores| scores[task]));
            [0, 1, 2].map(|task| {
                let best = (0..results.len()).rev().max_by(|a, b| score(a, task).total_cmp(&score(b, task)));
                family.baselines[best.unwrap_or(0)].clone()
            })
        });
        best.collect()
    };
    let singles = single_families();
    let best_singles = best_of(&singles);
    let mut chosen: [Vec<(&'static str, Baseline)>; 3] = Default::default();
    for (task, chosen) in chosen.iter_mut().enumerate() {
        let of_task = singles.iter().zip(&best_singles).map(|(family, best)| (family.name, best[task].clone()));
        chosen.extend(of_task);
        let scores = chosen.iter().map(|(name, baseline)| (*name, baseline.0[0].1)).collect();
        let combined = combined_families(&scores);
        let best = best_of(&combined);
        chosen.extend(combined.iter().zip(best).map(|(family, best)| (family.name, best[task].clone())));
    }
    let all: Vec<&Baseline> = chosen.iter().flatten().map(|(_, baseline)| baseline).collect();
    let mut results = evaluate(shop, until, cases, &all, progress).into_iter();
    let mut task = 0;
    chosen.map(|baselines| {
        let tuned = baselines.into_iter().zip(results.by_ref()).map(|((name, baseline), results)| Tuned {
            name,
            settings: baseline.to_string(),
            ndcg: results.iter().map(|scores| scores[task]).collect(),
        });
        let tuned = tuned.collect();
        task += 1;
        tuned
    })
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0), |(sum, count), value| (sum + value, count + 1));
    sum / f64::from(count.max(1))
}
