//! The choice of the baselines' settings, on the last part of the training data.
use super::{
    cases::{Case, CaseTable, Subtask, SubtaskScores, for_each_case},
    scores::{Fitted, Score},
    shop::Shop,
};
use crate::{Progress, replay::sampled};
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

/// The subtasks for which the settings are chosen.
pub(crate) const TUNED: [Subtask; 3] = [Subtask::All, Subtask::Repeat, Subtask::Discovery];

/// A weighted sum of scores.
type WeightedScores = Vec<(usize, f32)>;
/// The chosen baselines of each subtask of [`TUNED`].
type Chosen = [Vec<(&'static str, WeightedScores)>; 3];

/// Scores of one kind, from which the best by subtask is chosen.
struct Family {
    name: &'static str,
    scores: Vec<Score>,
}

const NEVER: f32 = f32::INFINITY;
const OWN: &str = "own purchases";
const POPULARITY: &str = "popularity";
/// Weights of popularity when it is added to the user's own purchases.
const POPULARITY_WEIGHTS: [f32; 9] = [0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0];
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
    pub scores: Vec<SubtaskScores>,
}

/// Chooses the settings of all baselines by state and subtask on the last part of the data before `until`, and
/// evaluates them on the cases of the state. Returns the baselines by state, and by subtask of [`TUNED`].
pub(crate) fn tuned_baselines(
    shop: &Shop,
    until: UnixMillis,
    cases: &[(StateUntil, Vec<Case>)],
    progress: &mut dyn FnMut(Progress),
) -> Vec<[Vec<TunedBaseline>; 3]> {
    let families = families();
    let scores: Vec<Score> = families.iter().flat_map(|family| family.scores.clone()).collect();
    let begins = validation_begins(shop, until);
    let mut chosen: Vec<Chosen> = Vec::new();
    let fitted = Fitted::new(shop, begins, &scores, progress);
    for (state, _) in cases {
        let validation = validation_cases(shop, begins, until, *state);
        let tables = for_each_case(shop, &fitted, &scores, &validation, progress, |_, table| table);
        chosen.push(TUNED.map(|subtask| choose(&families, &tables, subtask)));
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
    let of_state = |((_, cases), chosen): (&(StateUntil, Vec<Case>), Chosen)| {
        let renumbered = chosen.map(|baselines| {
            let index = |score: usize| used.binary_search(&score).expect("collected above");
            let renumber =
                |weights: WeightedScores| weights.into_iter().map(|(s, weight)| (index(s), weight)).collect();
            baselines.into_iter().map(|(name, weights)| (name, renumber(weights))).collect::<Vec<(_, WeightedScores)>>()
        });
        let of_case = |_: &Case, table: CaseTable| -> Vec<SubtaskScores> {
            let baselines = renumbered.iter().flatten();
            baselines.map(|(_, weights)| Subtask::ALL.map(|subtask| table.ndcg(weights, subtask))).collect()
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

/// Chooses the settings of each family, and of the sums, for one subtask.
fn choose(families: &[Family], tables: &[CaseTable], subtask: Subtask) -> Vec<(&'static str, WeightedScores)> {
    let score = |weights: &WeightedScores| {
        let of_cases: Vec<f64> = tables.par_iter().filter_map(|table| table.ndcg(weights, subtask)).collect();
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

#[cfg(test)]
mod tests {
    use super::{
        super::shop::tests::{bought, day, user},
        *,
    };
    use crate::replay::Interaction;

    fn mean(baseline: &TunedBaseline, subtask: Subtask) -> f64 {
        let scores: Vec<f64> = baseline.scores.iter().filter_map(|scores| scores[subtask as usize]).collect();
        scores.iter().sum::<f64>() / scores.len() as f64
    }

    /// Each user buys an own item each time. 40 users buy each day from `days`.
    fn loyal_users(days: std::ops::Range<u32>) -> Vec<Interaction> {
        let day = |day: u32| (0..40u32).map(move |of| bought(&format!("p{of}"), f64::from(day), &[of]));
        days.flat_map(day).collect()
    }

    #[test]
    fn own_purchases_are_found_and_their_combination_is_no_worse() {
        let interactions = loyal_users(0..12);
        let shop = Shop::new(&interactions, vec![None; 40]);
        let cases: Vec<Case> = (0..40)
            .map(|of| Case { user: user(&format!("p{of}")), at: day(10.0), targets: [Row(of)].into() })
            .collect();
        let states = [(StateUntil::Request, cases)];
        let [all, repeat, discovery] = tuned_baselines(&shop, day(10.0), &states, &mut |_| {}).remove(0);
        for tuned in [&all, &repeat] {
            let of = |name| tuned.iter().find(|baseline| baseline.name == name).unwrap();
            for name in [OWN, "TIFU-KNN", "own + popularity", "combination"] {
                assert_eq!(mean(of(name), Subtask::Repeat), 1.0, "{name}");
            }
        }
        let popularity = &all.iter().find(|baseline| baseline.name == POPULARITY).unwrap();
        assert!(mean(popularity, Subtask::All) < 0.3);
        assert!(discovery.iter().all(|baseline| baseline.scores.iter().all(|scores| scores[2].is_none())));
    }

    #[test]
    fn the_window_of_popularity_is_the_one_that_predicts() {
        // Item 1 sold for a year; item 0 sells since a few days, and everyone buys it next.
        let mut interactions: Vec<Interaction> =
            (0..300).map(|at| bought(&format!("p{}", at % 50), f64::from(at), &[1])).collect();
        interactions.extend((0..30).map(|at| bought("", 300.0 + f64::from(at) / 10.0, &[0])));
        interactions.extend((0..40).map(|of| bought(&format!("p{of}"), 304.0 + f64::from(of) / 100.0, &[0])));
        let shop = Shop::new(&interactions, vec![None; 2]);
        let cases = vec![Case { user: user("p45"), at: day(305.0), targets: [Row(0)].into() }];
        let states = [(StateUntil::Training, cases)];
        let tuned = tuned_baselines(&shop, day(305.0), &states, &mut |_| {}).remove(0);
        let popularity = tuned[0].iter().find(|baseline| baseline.name == POPULARITY).unwrap();
        assert_eq!(popularity.settings, "popularity of 3 days");
        assert_eq!(mean(popularity, Subtask::All), 1.0);
    }

    #[test]
    fn validation_has_the_first_basket_of_users_with_a_history() {
        let interactions = [
            bought("a", 0.0, &[0]),
            bought("b", 5.0, &[1]),
            bought("a", 6.0, &[1, 2]),
            bought("b", 7.0, &[0]),
            bought("a", 8.0, &[3]),
            bought("", 8.0, &[3]),
            bought("b", 20.0, &[2]),
        ];
        let shop = Shop::new(&interactions, vec![None; 4]);
        let cases = |state| -> Vec<(UserId, UnixMillis, usize)> {
            let cases = validation_cases(&shop, day(5.0), day(9.0), state);
            cases.into_iter().map(|case| (case.user, case.at, case.targets.len())).collect()
        };
        // Static: b has no history before the validation data begin.
        assert_eq!(cases(StateUntil::Training), [(user("a"), day(5.0), 2)]);
        assert_eq!(cases(StateUntil::Request), [(user("a"), day(6.0), 2), (user("b"), day(7.0), 1)]);
    }

    #[test]
    fn a_shop_without_users_has_no_cases_and_no_panic() {
        let interactions = [bought("", 0.0, &[0, 1]), bought("", 5.0, &[1])];
        let shop = Shop::new(&interactions, vec![None; 2]);
        let states = [(StateUntil::Request, Vec::new()), (StateUntil::Training, Vec::new())];
        for tuned in tuned_baselines(&shop, day(9.0), &states, &mut |_| {}) {
            assert!(tuned.iter().flatten().all(|baseline| baseline.scores.is_empty()));
        }
    }

    #[test]
    fn samples_are_spread_and_as_many_as_allowed() {
        assert_eq!(sampled((0..10).collect(), 4), [2, 4, 7, 9]);
        assert_eq!(sampled((0..3).collect(), 4), [0, 1, 2]);
        assert!(sampled(Vec::<u8>::new(), 4).is_empty());
    }
}
