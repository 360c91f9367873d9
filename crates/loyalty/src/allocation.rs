//! Assigns at most one incentive to each user under a budget and limits: the multiple-choice knapsack problem.
//!
//! Lagrangian relaxation: multipliers price the budget and the limits, so that each user can be decided alone. The dual
//! function is an upper bound of every assignment (Fisher 1981, "The Lagrangian Relaxation Method for Solving Integer
//! Programming Problems"; Kellerer, Pferschy and Pisinger 2004, "Knapsack Problems", chapter 11); its distance to the
//! assignment is the duality gap.
use serde::Serialize;

/// Bisection steps for one multiplier.
const BISECTIONS: usize = 50;
/// Passes over all multipliers.
const PASSES: usize = 12;

/// An incentive that a user may receive.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    /// Candidates of a user are consecutive.
    pub user: usize,
    pub incentive: usize,
    /// Expected net gain. Candidates without a gain above 0 are never chosen.
    pub gain: f64,
    /// Expected cost, in the unit of the budget: cost per redemption × P(redeemed). At least 0.
    pub cost: f64,
}

/// A budget and limits.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct AllocationLimits {
    /// Sum of the expected costs. None: unlimited.
    pub budget: Option<f64>,
    /// Greatest number of users with each incentive, by its number. Incentives beyond the end are unlimited.
    pub incentives: Vec<Option<usize>>,
    /// The group of each user, by number. Empty: no groups.
    pub user_groups: Vec<usize>,
    /// Greatest number of users with an incentive in each group.
    pub groups: Vec<Option<usize>>,
}

/// An assignment.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Allocation {
    /// Positions of the chosen candidates, ascending.
    #[serde(skip)]
    pub chosen: Vec<usize>,
    /// Sum of the expected gains.
    pub gain: f64,
    /// Sum of the expected costs.
    pub cost: f64,
    /// No assignment within the limits has a greater gain.
    pub gain_bound: f64,
    /// `gain_bound` minus `gain`.
    pub duality_gap: f64,
    /// Gain of one more unit of the budget.
    pub budget_price: f64,
    /// Gain of one more user with each incentive, by its number; 0 without a limit.
    #[serde(skip)]
    incentive_prices: Vec<f64>,
    /// Gain of one more user with an incentive in each group; 0 without a limit.
    #[serde(skip)]
    group_prices: Vec<f64>,
}

impl Allocation {
    /// Returns the gain of a candidate minus the prices of the budget and the limits that it uses. Above 0: it would be
    /// chosen in addition, except for the last user for whom a limit suffices. `group`: the group of its user.
    pub fn reduced_gain(&self, candidate: &Candidate, group: usize) -> f64 {
        let price = |prices: &[f64], index: usize| prices.get(index).copied().unwrap_or(0.0);
        candidate.gain
            - self.budget_price * candidate.cost
            - price(&self.incentive_prices, candidate.incentive)
            - price(&self.group_prices, group)
    }
}

/// A constraint: the budget, then the incentives and groups with a limit.
struct Constraint {
    limit: f64,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Budget,
    Incentive(usize),
    Group(usize),
}

struct Problem<'a> {
    candidates: &'a [Candidate],
    limits: &'a AllocationLimits,
    constraints: Vec<Constraint>,
}

/// Assigns incentives. The result keeps every limit. With a budget alone, the gap is at most the greatest gain of one
/// user.
pub fn allocate(candidates: &[Candidate], limits: &AllocationLimits) -> Allocation {
    let constraints = limits
        .budget
        .map(|limit| Constraint { limit, kind: Kind::Budget })
        .into_iter()
        .chain(limited(&limits.incentives, Kind::Incentive))
        .chain(limited(&limits.groups, Kind::Group))
        .collect();
    let problem = Problem { candidates, limits, constraints };
    let multipliers = problem.multipliers();
    let bound = problem.dual(&multipliers);
    let chosen = problem.assignment(&multipliers);
    let gain: f64 = chosen.iter().map(|at| candidates[*at].gain).sum();
    let price = |kind: Kind| {
        let mut priced = problem.constraints.iter().zip(&multipliers);
        priced.find(|(of, _)| of.kind == kind).map_or(0.0, |(_, multiplier)| *multiplier)
    };
    Allocation {
        gain,
        cost: chosen.iter().map(|at| candidates[*at].cost).sum(),
        gain_bound: bound.max(gain),
        duality_gap: (bound - gain).max(0.0),
        budget_price: price(Kind::Budget),
        incentive_prices: (0..limits.incentives.len()).map(|index| price(Kind::Incentive(index))).collect(),
        group_prices: (0..limits.groups.len()).map(|index| price(Kind::Group(index))).collect(),
        chosen,
    }
}

fn limited(limits: &[Option<usize>], kind: fn(usize) -> Kind) -> impl Iterator<Item = Constraint> {
    limits
        .iter()
        .enumerate()
        .filter_map(move |(index, limit)| limit.map(|limit| Constraint { limit: limit as f64, kind: kind(index) }))
}

impl Problem<'_> {
    /// Returns how much of a constraint a candidate uses.
    fn usage(&self, constraint: &Constraint, candidate: &Candidate) -> f64 {
        match constraint.kind {
            Kind::Budget => candidate.cost,
            Kind::Incentive(index) => f64::from(u8::from(candidate.incentive == index)),
            Kind::Group(index) => {
                f64::from(u8::from(self.limits.user_groups.get(candidate.user).is_some_and(|group| *group == index)))
            }
        }
    }

    fn reduced_gain(&self, candidate: &Candidate, multipliers: &[f64]) -> f64 {
        let of = self.constraints.iter().zip(multipliers).filter(|(_, multiplier)| **multiplier > 0.0);
        candidate.gain - of.map(|(of, multiplier)| multiplier * self.usage(of, candidate)).sum::<f64>()
    }

    /// Calls `visit` with the candidate of each user that has the greatest reduced gain, if that is above 0.
    fn each_best(&self, multipliers: &[f64], mut visit: impl FnMut(usize, f64)) {
        let mut best: Option<(usize, f64)> = None;
        for (at, candidate) in self.candidates.iter().enumerate() {
            let gain = self.reduced_gain(candidate, multipliers);
            if gain > 0.0 && candidate.gain > 0.0 && best.is_none_or(|(_, most)| gain > most) {
                best = Some((at, gain));
            }
            if self.candidates.get(at + 1).is_none_or(|next| next.user != candidate.user)
                && let Some((at, gain)) = best.take()
            {
                visit(at, gain);
            }
        }
    }

    fn dual(&self, multipliers: &[f64]) -> f64 {
        let mut sum: f64 = self.constraints.iter().zip(multipliers).map(|(of, multiplier)| of.limit * multiplier).sum();
        self.each_best(multipliers, |_, gain| sum += gain);
        sum
    }

    /// Minimises the dual function by one multiplier after the other. Each is the least one for which the best candidates
    /// keep its limit.
    fn multipliers(&self) -> Vec<f64> {
        let mut multipliers = vec![0.0; self.constraints.len()];
        let mut dual = self.dual(&multipliers);
        for _ in 0..PASSES {
            for (index, constraint) in self.constraints.iter().enumerate() {
                let used = |multiplier: f64| {
                    let mut tried = multipliers.clone();
                    tried[index] = multiplier;
                    let mut sum = 0.0;
                    self.each_best(&tried, |at, _| sum += self.usage(constraint, &self.candidates[at]));
                    sum
                };
                if used(0.0) <= constraint.limit {
                    multipliers[index] = 0.0;
                    continue;
                }
                let ratio = |candidate: &Candidate| match self.usage(constraint, candidate) {
                    usage if usage > 0.0 => candidate.gain / usage,
                    _ => 0.0,
                };
                let (mut low, mut high) = (0.0, self.candidates.iter().map(ratio).fold(0.0, f64::max));
                for _ in 0..BISECTIONS {
                    let middle = 0.5 * (low + high);
                    if used(middle) <= constraint.limit { high = middle } else { low = middle }
                }
                multipliers[index] = high;
            }
            let next = self.dual(&multipliers);
            if self.constraints.len() < 2 || next >= dual * (1.0 - 1e-9) {
                break;
            }
            dual = next;
        }
        multipliers
    }

    /// Chooses candidates by their reduced gains within all limits: first the best of each user, then those that still
    /// fit or that replace one with a smaller gain.
    fn assignment(&self, multipliers: &[f64]) -> Vec<usize> {
        let users = self.candidates.iter().map(|candidate| candidate.user + 1).max().unwrap_or(0);
        let mut of_user: Vec<Option<usize>> = vec![None; users];
        let mut used = vec![0.0; self.constraints.len()];
        let mut best: Vec<(usize, f64)> = Vec::new();
        self.each_best(multipliers, |at, gain| best.push((at, gain)));
        best.sort_by(|left, right| right.1.total_cmp(&left.1).then_with(|| left.0.cmp(&right.0)));
        let mut all: Vec<(usize, f64)> = self
            .candidates
            .iter()
            .enumerate()
            .filter(|(_, candidate)| candidate.gain > 0.0)
            .map(|(at, candidate)| (at, self.reduced_gain(candidate, multipliers)))
            .collect();
        all.sort_by(|left, right| right.1.total_cmp(&left.1).then_with(|| left.0.cmp(&right.0)));
        for (at, _) in best.into_iter().chain(all) {
            let candidate = &self.candidates[at];
            let replaced = of_user[candidate.user].map(|at| &self.candidates[at]);
            if replaced.is_some_and(|replaced| replaced.gain >= candidate.gain) {
                continue;
            }
            let change = |constraint: &Constraint| {
                self.usage(constraint, candidate) - replaced.map_or(0.0, |of| self.usage(constraint, of))
            };
            let changes: Vec<f64> = self.constraints.iter().map(change).collect();
            let fits = self
                .constraints
                .iter()
                .zip(used.iter().zip(&changes))
                .all(|(constraint, (used, change))| *change <= 0.0 || used + change <= constraint.limit);
            if fits {
                used.iter_mut().zip(&changes).for_each(|(used, change)| *used += change);
                of_user[candidate.user] = Some(at);
            }
        }
        let mut chosen: Vec<usize> = of_user.into_iter().flatten().collect();
        chosen.sort_unstable();
        chosen
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Returns the greatest gain of all assignments.
    fn greatest(candidates: &[Candidate], limits: &AllocationLimits) -> f64 {
        fn visit(at: usize, chosen: &mut Vec<usize>, candidates: &[Candidate], limits: &AllocationLimits) -> f64 {
            if !is_within(chosen, candidates, limits) {
                return f64::NEG_INFINITY;
            }
            if at == candidates.len() {
                return chosen.iter().map(|at| candidates[*at].gain).sum();
            }
            let without = visit(at + 1, chosen, candidates, limits);
            if chosen.last().is_some_and(|last| candidates[*last].user == candidates[at].user) {
                return without;
            }
            chosen.push(at);
            let with = visit(at + 1, chosen, candidates, limits);
            chosen.pop();
            without.max(with)
        }
        visit(0, &mut Vec::new(), candidates, limits)
    }

    fn is_within(chosen: &[usize], candidates: &[Candidate], limits: &AllocationLimits) -> bool {
        let cost: f64 = chosen.iter().map(|at| candidates[*at].cost).sum();
        let count = |is_counted: &dyn Fn(&Candidate) -> bool, limit: Option<usize>| {
            limit.is_none_or(|limit| chosen.iter().filter(|at| is_counted(&candidates[**at])).count() <= limit)
        };
        limits.budget.is_none_or(|budget| cost <= budget + 1e-9)
            && limits.incentives.iter().enumerate().all(|(index, limit)| count(&|of| of.incentive == index, *limit))
            && limits.groups.iter().enumerate().all(|(index, limit)| {
                count(&|of| limits.user_groups.get(of.user).is_some_and(|group| *group == index), *limit)
            })
    }

    fn problem() -> impl Strategy<Value = (Vec<Candidate>, AllocationLimits)> {
        let candidate = || (-2.0..10.0_f64, 0.0..5.0_f64);
        let limit = || prop::option::of(0..4_usize);
        let users = prop::collection::vec(prop::collection::vec(candidate(), 0..3), 1..7);
        (users, prop::option::of(0.0..15.0_f64), [limit(), limit()], [limit(), limit()]).prop_map(
            |(users, budget, incentives, groups)| {
                let candidates = users
                    .iter()
                    .enumerate()
                    .flat_map(|(user, of)| {
                        let candidate = move |(incentive, (gain, cost)): (usize, &(f64, f64))| Candidate {
                            user,
                            incentive,
                            gain: *gain,
                            cost: *cost,
                        };
                        of.iter().enumerate().map(candidate)
                    })
                    .collect();
                let user_groups = (0..users.len()).map(|user| user % 2).collect();
                let limits =
                    AllocationLimits { budget, incentives: incentives.into(), user_groups, groups: groups.into() };
                (candidates, limits)
            },
        )
    }

    proptest! {
        #[test]
        fn an_assignment_keeps_every_limit_and_the_optimum_is_between_it_and_the_bound((candidates, limits) in problem()) {
            let found = allocate(&candidates, &limits);
            prop_assert!(is_within(&found.chosen, &candidates, &limits));
            let users: std::collections::BTreeSet<usize> = found.chosen.iter().map(|at| candidates[*at].user).collect();
            prop_assert_eq!(users.len(), found.chosen.len());
            let optimum = greatest(&candidates, &limits);
            prop_assert!(found.gain <= optimum + 1e-9 && optimum <= found.gain_bound + 1e-6, "{found:?} {optimum}");
            prop_assert!((found.gain_bound - found.gain - found.duality_gap).abs() < 1e-9);
            if limits.incentives.iter().chain(&limits.groups).all(Option::is_none) {
                let most = candidates.iter().map(|of| of.gain).fold(0.0, f64::max);
                prop_assert!(found.duality_gap <= most + 1e-6, "{found:?}");
            }
        }
    }

    #[test]
    fn nobody_without_a_gain_is_chosen_and_no_budget_buys_nothing() {
        let candidates = [
            Candidate { user: 0, incentive: 0, gain: -1.0, cost: 0.0 },
            Candidate { user: 1, incentive: 0, gain: 2.0, cost: 1.0 },
        ];
        assert_eq!(allocate(&candidates, &AllocationLimits::default()).chosen, [1]);
        let none = AllocationLimits { budget: Some(0.0), ..AllocationLimits::default() };
        let found = allocate(&candidates, &none);
        assert!(found.chosen.is_empty() && found.cost == 0.0);
        assert!(allocate(&[], &none).chosen.is_empty());
    }

    /// Of many users the gap is a small share of the gain.
    #[test]
    fn the_gap_of_many_users_is_small() {
        use rand::{Rng, SeedableRng, rngs::StdRng};
        let mut rng = StdRng::seed_from_u64(3);
        let candidates: Vec<Candidate> = (0..6000)
            .map(|at| Candidate {
                user: at / 3,
                incentive: at % 3,
                gain: rng.random_range(-1.0..5.0),
                cost: rng.random_range(0.1..2.0),
            })
            .collect();
        let limits = AllocationLimits { budget: Some(500.0), ..AllocationLimits::default() };
        let found = allocate(&candidates, &limits);
        assert!(found.cost <= 500.0 && found.cost > 499.0, "{}", found.cost);
        assert!(found.duality_gap < 0.001 * found.gain, "{found:?}");
        // The prices decide a user alone as the assignment does, except for those whom the rest of the budget suffices for.
        let above: std::collections::BTreeSet<usize> =
            candidates.iter().filter(|of| found.reduced_gain(of, 0) > 0.0).map(|of| of.user).collect();
        let (chosen, by_price) = (found.chosen.len(), above.len());
        assert!(chosen.abs_diff(by_price) < 25 && chosen > 300, "{chosen} {by_price}");
        let halves = AllocationLimits {
            user_groups: (0..2000).map(|user| user % 2).collect(),
            groups: vec![Some(40), None],
            ..AllocationLimits::default()
        };
        let grouped = allocate(&candidates, &halves);
        let of_first = grouped.chosen.iter().filter(|at| candidates[**at].user.is_multiple_of(2)).count();
        assert_eq!(of_first, 40);
        let above: std::collections::BTreeSet<usize> = candidates
            .iter()
            .filter(|of| of.user % 2 == 0 && grouped.reduced_gain(of, 0) > 0.0)
            .map(|of| of.user)
            .collect();
        assert!(above.len().abs_diff(40) < 3, "{}", above.len());
        let limits = AllocationLimits { incentives: vec![Some(100), None, Some(50)], ..limits };
        let limited = allocate(&candidates, &limits);
        assert!(
            limited.gain < found.gain && limited.duality_gap < 0.02 * limited.gain,
            "{} {}",
            limited.gain,
            limited.duality_gap
        );
    }
}
