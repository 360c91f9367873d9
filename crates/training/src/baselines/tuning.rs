//! The choice of the baselines' settings, on the last part of the training data.
use super::{
    cases::{Case, CaseTable, Question, QuestionScores, for_each_case},
    scores::{Fitted, Score},
    shop::Shop,
};
use crate::Progress;
use ahash::AHashSet;
use lodestone_core::{
    ids::{Row, UserId},
    units::UnixMillis,
};
use rayon::prelude::*;

/// Share of the interactions before the end of the training on which the settings are chosen.
const VALIDATION_SHARE: f64 = 0.1;
/// Most cases of the validation.
const VALIDATION_CASES_MAX: usize = 1000;
/// Most cases times items, so that the time for a large catalogue is limited, and the fewest cases nevertheless.
const CASE_ITEMS_MAX: usize = 50_000_000;
const VALIDATION_CASES_MIN: usize = 200;

/// The end of the state that a list is computed from: the end of the training, or the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StateUntil {
    Training,
    Request,
}

/// The questions for which the settings are chosen.
pub(crate) const TUNED: [Question; 3] = [Question::All, Question::Repeat, Question::Discovery];

/// A weighted sum of scores.
type WeightedScores = Vec<(usize, f32)>;

/// Scores of one kind, from which the best by question is chosen.
struct Family {
    name: &'static str,
    scores: Vec<Score>,
}

const NEVER: f32 = f32::INFINITY;
const OWN: &str = "own purchases";
const POPULARITY: &str = "popularity";
/// Weights of popularity when it is added to the user's own purchases.
const POPULARITY_WEIGHTS: [f32; 7] = [0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0];
/// Weights of the combination, and how often each of them is chosen again.
const WEIGHTS: [f32; 7] = [0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 4.0];
const ROUNDS: usize = 3;

fn families() -> Vec<Family> {
    let decays = [14.0, 30.0, 90.0, NEVER];
    let users = |half_life_days| [50, 200, 1000].map(|neighbours| Score::UserKnn { half_life_days, neighbours });
    let ease =
        |half_life_days| [50.0, 200.0, 1000.0].map(|regularisation| Score::Ease { regularisation, half_life_days });
    let tifu = |groups| [0.05, 0.1, 0.2, 0.5, 0.8].map(|own_share| Score::TifuKnn { groups, own_share });
    let family = |name, scores| Family { name, scores };
    vec![
        family(POPULARITY, [3.0, 7.0, 14.0, 30.0, 60.0, NEVER].map(|days| Score::Popularity { days }).to_vec()),
        family(OWN, [30.0, 90.0, 180.0, NEVER].map(|half_life_days| Score::Own { half_life_days }).to_vec()),
        family("ItemKNN", decays.map(|half_life_days| Score::ItemKnn { half_life_days }).to_vec()),
        family("UserKNN", decays.into_iter().flat_map(users).collect()),
        family("TIFU-KNN", [3, 7].into_iter().flat_map(tifu).collect()),
        family("EASE", decays.into_iter().flat_map(ease).collect()),
        family("transitions", vec![Score::Transitions]),
    ]
}

/// A baseline with the settings that were best on the validation data.
pub(crate) struct TunedBaseline {
    pub name: &'static str,
    pub settings: String,
    /// By case of the evaluation.
    pub scores: Vec<QuestionScores>,
}

/// Chooses the settings of all baselines by state and question on the last part of the data before `until`, and
/// evaluates them on the cases of the state. Returns the baselines by state, and by question of [`TUNED`].
pub(crate) fn tuned_baselines(
    shop: &Shop,
    until: UnixMillis,
    cases: &[(StateUntil, Vec<Case>)],
    progress: &mut dyn FnMut(Progress),
) -> Vec<[Vec<TunedBaseline>; 3]> {
    let families = families();
    let scores: Vec<Score> = families.iter().flat_map(|family| family.scores.clone()).collect();
    let begins = validation_begins(shop, until);
    let mut chosen: Vec<[Vec<(&'static str, WeightedScores)>; 3]> = Vec::new();
    let fitted = Fitted::new(shop, begins, &scores, progress);
    for (state, _) in cases {
        let validation = validation_cases(shop, begins, until, *state);
        let tables = for_each_case(shop, &fitted, &scores, &validation, progress, |_, table| table);
        chosen.push(TUNED.map(|question| choose(&families, &tables, question)));
    }
    drop(fitted);
    let used: Vec<usize> = {
        let weights = chosen.iter().flatten().flatten().flat_map(|(_, weights)| weights);
        let mut used: Vec<usize> = weights.map(|(score, _)| *score).collect();
        used.sort_unstable();
        used.dedup();
        used
    };
    let used_scores: Vec<Score> = used.iter().map(|score| scores[*score]).collect();
    let fitted = Fitted::new(shop, until, &used_scores, progress);
    let of_state = |((_, cases), chosen): (&(StateUntil, Vec<Case>), [Vec<(&'static str, WeightedScores)>; 3])| {
        let renumbered = chosen.map(|baselines| {
            let index = |score: usize| used.binary_search(&score).expect("collected above");
            let renumber =
                |weights: WeightedScores| weights.into_iter().map(|(s, weight)| (index(s), weight)).collect();
            baselines.into_iter().map(|(name, weights)| (name, renumber(weights))).collect::<Vec<(_, WeightedScores)>>()
        });
        let of_case = |_: &Case, table: CaseTable| -> Vec<QuestionScores> {
            let baselines = renumbered.iter().flatten();
            baselines.map(|(_, weights)| Question::ALL.map(|question| table.ndcg(weights, question))).collect()
        };
        let by_case = for_each_case(shop, &fitted, &used_scores, cases, progress, of_case);
        let mut next = 0;
        renumbered.map(|baselines| {
            let tuned = baselines.into_iter().map(|(name, weights)| {
                let index = next;
                next += 1;
                let settings = described(&weights, &used_scores);
                TunedBaseline { name, settings, scores: by_case.iter().map(|scores| scores[index]).collect() }
            });
            tuned.collect()
        })
    };
    cases.iter().zip(chosen).map(of_state).collect()
}

fn described(weights: &[(usize, f32)], scores: &[Score]) -> String {
    match weights {
        [(score, _)] => scores[*score].to_string(),
        several => several
            .iter()
            .map(|(score, weight)| format!("{weight} × {}", scores[*score]))
            .collect::<Vec<_>>()
            .join(" + "),
    }
}

/// Returns the time from which on the training data are for validation.
pub(crate) fn validation_begins(shop: &Shop, until: UnixMillis) -> UnixMillis {
    let known = shop.interactions_before(until);
    known.get((known.len() as f64 * (1.0 - VALIDATION_SHARE)) as usize).map_or(until, |first| first.at)
}

/// Returns each user's first basket after the validation data begin that the user's history precedes, as in an
/// evaluation.
pub(crate) fn validation_cases(shop: &Shop, begins: UnixMillis, ends: UnixMillis, state: StateUntil) -> Vec<Case> {
    let mut seen: AHashSet<&UserId> = AHashSet::new();
    let mut cases = Vec::new();
    for interaction in shop.interactions_before(ends) {
        let Some(user) = interaction.user.as_ref().filter(|_| interaction.at >= begins) else { continue };
        let at = match state {
            StateUntil::Training => begins,
            StateUntil::Request => interaction.at,
        };
        if shop.bought_before(user, at).is_empty() || !seen.insert(user) {
            continue;
        }
        cases.push(Case { user: user.clone(), at, targets: interaction.rows.iter().map(|row| Row(*row)).collect() });
    }
    let count = (CASE_ITEMS_MAX / shop.item_count.max(1)).clamp(VALIDATION_CASES_MIN, VALIDATION_CASES_MAX);
    sampled(cases, count)
}

/// Returns at most `count` values at equal distances.
pub(crate) fn sampled<T>(values: Vec<T>, count: usize) -> Vec<T> {
    let step = values.len().div_ceil(count.max(1)).max(1);
    values.into_iter().step_by(step).collect()
}

/// Chooses the settings of each family, and of the sums, for one question.
fn choose(families: &[Family], tables: &[CaseTable], question: Question) -> Vec<(&'static str, WeightedScores)> {
    let score = |weights: &WeightedScores| {
        let of_cases: Vec<f64> = tables.par_iter().filter_map(|table| table.ndcg(weights, question)).collect();
        of_cases.iter().sum::<f64>() / of_cases.len().max(1) as f64
    };
    let mut chosen: Vec<(&'static str, WeightedScores)> = Vec::new();
    let mut members: Vec<(&str, usize)> = Vec::new();
    for family in families {
        let first = members.len();
        members.extend(family.scores.iter().map(|_| family.name).zip(first..));
        let settings = (first..members.len()).map(|score| vec![(score, 1.0)]).collect();
        chosen.push((family.name, best_of(settings, &score)));
    }
    let of_family =
        |name| members.iter().filter(move |(family, _)| *family == name).map(|(_, score)| *score).collect::<Vec<_>>();
    let mut with_popularity = Vec::new();
    for own in of_family(OWN) {
        for popularity in of_family(POPULARITY) {
            let weighted = POPULARITY_WEIGHTS.map(|weight| vec![(own, 1.0), (popularity, weight)]);
            with_popularity.extend(weighted);
        }
    }
    chosen.push(("own + popularity", best_of(with_popularity, &score)));
    chosen.push(("combination", combination(&chosen, &score)));
    chosen
}

/// Returns the first of those with the greatest score.
fn best_of(settings: Vec<WeightedScores>, score: &dyn Fn(&WeightedScores) -> f64) -> WeightedScores {
    let scored = settings.into_iter().map(|weights| (score(&weights), weights));
    let best = scored.reduce(|best, other| if other.0 > best.0 { other } else { best });
    best.map(|(_, weights)| weights).unwrap_or_default()
}

/// Returns the best sum of the scores of all baselines, by coordinate ascent from the best of them: one weight after
/// the other is replaced by the best of [`WEIGHTS`].
fn combination(baselines: &[(&'static str, WeightedScores)], score: &dyn Fn(&WeightedScores) -> f64) -> WeightedScores {
    let start = best_of(baselines.iter().map(|(_, weights)| weights.clone()).collect(), score);
    let mut weights: WeightedScores = start.clone();
    for (part, _) in baselines.iter().flat_map(|(_, weights)| weights) {
        if weights.iter().all(|(known, _)| known != part) {
            weights.push((*part, 0.0));
        }
    }
    let mut best = score(&start);
    for _ in 0..ROUNDS {
        let before = best;
        for part in 0..weights.len() {
            for weight in WEIGHTS {
                let mut changed = weights.clone();
                changed[part].1 = weight;
                let changed_score = score(&changed);
                if changed_score > best {
                    (weights, best) = (changed, changed_score);
                }
            }
        }
        if best == before {
            break;
        }
    }
    weights.retain(|(_, weight)| *weight > 0.0);
    weights
}
