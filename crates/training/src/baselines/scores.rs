//! Scores of all items for a user at one time, from counts.
use super::{
    Case,
    items::ItemWeights,
    neighbours::{FrequencyVectors, SimilarUsers},
    shop::{Sales, Shop, decayed},
};
use crate::{Progress, counts::transitions};
use lodestone_core::{ids::Row, units::UnixMillis};
use lodestone_index::Neighbours;
use std::fmt;

/// Neighbours of TIFU-KNN (Hu et al. 2020, table 3: 300 for Ta-Feng).
const TIFU_NEIGHBOURS: usize = 300;

/// A score of each item from counts, with its settings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Score {
    /// Logarithm of the sales of the last days.
    Popularity { days: f32 },
    /// The user's own purchases, decayed.
    Own { half_life_days: f32 },
    /// [`ItemWeights::cosines`].
    ItemKnn { half_life_days: f32 },
    /// [`SimilarUsers`].
    UserKnn { half_life_days: f32, neighbours: usize },
    /// [`FrequencyVectors`].
    TifuKnn { groups: usize, own_share: f32 },
    /// [`ItemWeights::ease`].
    Ease { regularisation: f32, half_life_days: f32 },
    /// First-order transitions from the items of the user's last purchase.
    Transitions,
}

impl fmt::Display for Score {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Popularity { days } => write!(f, "popularity of {}", Days(*days)),
            Self::Own { half_life_days } => write!(f, "own purchases, {}", Decay(*half_life_days)),
            Self::ItemKnn { half_life_days } => write!(f, "ItemKNN, {}", Decay(*half_life_days)),
            Self::UserKnn { half_life_days, neighbours } => {
                write!(f, "UserKNN of {neighbours}, {}", Decay(*half_life_days))
            }
            Self::TifuKnn { groups, own_share } => write!(f, "TIFU-KNN, {groups} groups, own share {own_share}"),
            Self::Ease { regularisation, half_life_days } => {
                write!(f, "EASE, λ {regularisation}, {}", Decay(*half_life_days))
            }
            Self::Transitions => f.write_str("transitions"),
        }
    }
}

/// A number of days, or all time.
pub(super) struct Days(pub f32);

impl fmt::Display for Days {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.is_finite() {
            true => write!(f, "{} days", self.0),
            false => f.write_str("all time"),
        }
    }
}

/// The half-life of purchases, in days.
pub(crate) struct Decay(pub f32);

impl fmt::Display for Decay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.is_finite() {
            true => write!(f, "half-life {} days", self.0),
            false => f.write_str("no decay"),
        }
    }
}

/// The models, learned from the purchases before the end of the training.
pub(super) struct Fitted {
    ease: Vec<(f32, ItemWeights)>,
    cosines: Option<ItemWeights>,
    transitions: Option<Neighbours>,
}

impl Fitted {
    pub(super) fn new(shop: &Shop, until: UnixMillis, scores: &[Score], progress: &mut dyn FnMut(Progress)) -> Self {
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
}

/// Everything that scores are computed from, at a time that only advances.
pub(super) struct ScoringState<'a> {
    shop: &'a Shop<'a>,
    fitted: &'a Fitted,
    scores: &'a [Score],
    sales: Vec<(f32, Sales)>,
    /// By half-life, with the greatest number of neighbours.
    similar: Vec<(f32, usize, SimilarUsers)>,
    /// By number of groups.
    frequency: Vec<(usize, FrequencyVectors)>,
}

impl<'a> ScoringState<'a> {
    /// `ends` is the latest time that the state will have.
    pub(super) fn new(shop: &'a Shop<'a>, fitted: &'a Fitted, scores: &'a [Score], ends: UnixMillis) -> Self {
        let mut state = Self { shop, fitted, scores, sales: Vec::new(), similar: Vec::new(), frequency: Vec::new() };
        for score in scores {
            match *score {
                Score::Popularity { days } if state.sales.iter().all(|(of, _)| *of != days) => {
                    state.sales.push((days, Sales::new(shop.item_count, days)));
                }
                Score::UserKnn { half_life_days, neighbours } => {
                    match state.similar.iter_mut().find(|(of, ..)| *of == half_life_days) {
                        Some((_, greatest, _)) => *greatest = neighbours.max(*greatest),
                        None => {
                            let users = SimilarUsers::new(shop, ends, half_life_days);
                            state.similar.push((half_life_days, neighbours, users));
                        }
                    }
                }
                Score::TifuKnn { groups, .. } if state.frequency.iter().all(|(of, _)| *of != groups) => {
                    state.frequency.push((groups, FrequencyVectors::new(shop, groups)));
                }
                _ => {}
            }
        }
        state
    }

    pub(super) fn advance(&mut self, at: UnixMillis) {
        self.sales.iter_mut().for_each(|(_, sales)| sales.advance(self.shop, at));
        self.similar.iter_mut().for_each(|(.., users)| users.advance(self.shop, at));
        self.frequency.iter_mut().for_each(|(_, users)| users.advance(self.shop, at));
    }

    /// Returns the scores of all items for a case at the time of the state.
    pub(super) fn scores(&self, case: &Case) -> Vec<Vec<f32>> {
        let user = self.shop.number(&case.user);
        let similar: Vec<Vec<(u32, f32)>> = (self.similar.iter())
            .map(|(_, count, users)| user.map_or_else(Vec::new, |user| users.similar(user, *count)))
            .collect();
        let nearest: Vec<Vec<f32>> = (self.frequency.iter())
            .map(|(_, users)| user.map_or_else(Vec::new, |user| users.mean_of_nearest(user, TIFU_NEIGHBOURS)))
            .collect();
        self.scores.iter().map(|score| self.score(*score, case, user, &similar, &nearest)).collect()
    }

    fn score(
        &self,
        score: Score,
        case: &Case,
        user: Option<u32>,
        similar: &[Vec<(u32, f32)>],
        nearest: &[Vec<f32>],
    ) -> Vec<f32> {
        let none = || vec![0.0; self.shop.item_count];
        let bought = self.shop.bought_before(&case.user, case.at);
        let of_items = |weights: Option<&ItemWeights>, half_life_days| {
            weights.map_or_else(none, |weights| weights.scores(bought, case.at, half_life_days))
        };
        match score {
            Score::Popularity { days } => {
                let sales = self.sales.iter().find(|(of, _)| *of == days);
                sales.map_or_else(none, |(_, sales)| sales.counts().iter().map(|count| count.ln_1p()).collect())
            }
            Score::Own { half_life_days } => {
                let mut scores = none();
                bought.iter().for_each(|b| scores[b.row as usize] += decayed(b.at, case.at, half_life_days));
                scores
            }
            Score::ItemKnn { half_life_days } => of_items(self.fitted.cosines.as_ref(), half_life_days),
            Score::Ease { regularisation, half_life_days } => {
                of_items(self.fitted.ease(regularisation), half_life_days)
            }
            Score::UserKnn { half_life_days, neighbours } => {
                let mut users = self.similar.iter().zip(similar).filter(|((of, ..), _)| *of == half_life_days);
                users
                    .next()
                    .map_or_else(none, |((.., users), similar)| users.scores(&similar[..similar.len().min(neighbours)]))
            }
            Score::TifuKnn { groups, own_share } => {
                let mut users = self.frequency.iter().zip(nearest).filter(|((of, _), _)| *of == groups);
                let users = users.next().zip(user);
                users.map_or_else(none, |(((_, users), nearest), user)| users.scores(user, nearest, own_share))
            }
            Score::Transitions => {
                let mut scores = none();
                let last = bought.last().map(|last| last.at);
                let table = self.fitted.transitions.as_ref();
                for from in bought.iter().rev().take_while(|bought| Some(bought.at) == last) {
                    let (to, weights) = table.map_or((&[][..], &[][..]), |table| table.of(Row(from.row)));
                    to.iter().zip(weights).for_each(|(to, weight)| scores[*to as usize] += weight);
                }
                scores
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::shop::tests::{bought, day, user},
        *,
    };
    use ahash::AHashSet;

    #[test]
    fn scores_are_those_of_the_time_of_the_case() {
        let interactions = [
            bought("me", 0.0, &[0]),
            bought("you", 0.0, &[0, 1]),
            bought("me", 10.0, &[0, 2]),
            bought("you", 15.0, &[2]),
            bought("me", 30.0, &[1]),
        ];
        let shop = Shop::new(&interactions, vec![None; 3]);
        let scores = [
            Score::Own { half_life_days: 10.0 },
            Score::Popularity { days: 12.0 },
            Score::Transitions,
            Score::UserKnn { half_life_days: f32::INFINITY, neighbours: 5 },
        ];
        let fitted = Fitted::new(&shop, day(16.0), &scores, &mut |_| {});
        let mut state = ScoringState::new(&shop, &fitted, &scores, day(20.0));
        let case = |name: &str| Case { user: user(name), at: day(20.0), targets: AHashSet::new() };
        state.advance(day(20.0));
        let [own, popularity, transitions, users] = state.scores(&case("me")).try_into().unwrap();
        assert_eq!(own, [0.25 + 0.5, 0.0, 0.5]);
        assert_eq!(popularity, [1.0f32.ln_1p(), 0.0, 2.0f32.ln_1p()]);
        assert!(transitions[2] > 0.0 && transitions[1] == 0.0, "{transitions:?}: item 2 followed item 0");
        assert!(users[1] > 0.0 && users[0] == users[1], "{users:?}: the other user has each item once");
        let unknown = state.scores(&case("stranger"));
        assert!(unknown[0].iter().chain(&unknown[2]).chain(&unknown[3]).all(|score| *score == 0.0));
        assert_eq!(unknown[1], popularity);
    }
}
