//! Compares policies of incentives on logged decisions: one half of the users teaches them, the other half judges them.
use crate::{
    allocation::{Allocation, AllocationLimits, Candidate, allocate},
    metrics::descending,
    model::Estimate,
    regression::{Family, dot, fit},
    uplift::{
        DoublyRobustScores, Evidence, IncentiveEffect, IncentiveLog, NO_INCENTIVE, PolicyValue, UpliftError,
        UpliftModel, UpliftOptions,
    },
};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom};
use serde::Serialize;

/// Penalty of squared weights of the RFM policy, in rows.
const PENALTY: f64 = 20.0;
/// Budget without a stated one: this share of the expected cost of the same incentive for everyone.
const BUDGET_SHARE: f64 = 0.2;

/// Options of [`compare_incentive_policies`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ComparisonOptions {
    pub uplift: UpliftOptions,
    /// Greatest sum of expected costs for the judged users, in millionths. None: 20 % of the cost of the best incentive
    /// for everyone.
    pub budget_micros: Option<f64>,
    /// Positions of the days since the last purchase and of the number of purchases in the inputs, for the RFM policy.
    pub rfm: Option<[usize; 2]>,
    /// Bootstrap resamples of the areas under curves.
    pub resamples: usize,
    pub seed: u64,
}

/// The value of one policy.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PolicyReport {
    /// `random`, `everyone`, `rfm`, `response` or `uplift`.
    pub policy: &'static str,
    /// Per judged row.
    pub value: PolicyValue,
    /// Area under the uplift curve of the policy's order without a budget. None: the policy has no order.
    pub auuc_micros: Option<Estimate>,
    pub qini_micros: Option<Estimate>,
    /// The true gain, of simulated decisions.
    pub true_gain_micros: Option<f64>,
}

/// The result of a comparison.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct IncentiveComparison {
    pub rows: usize,
    pub judged_rows: usize,
    pub budget_micros: f64,
    /// Of the half that teaches: no incentive, then each incentive.
    pub evidence: Vec<Evidence>,
    /// The incentive with the greatest mean gain in the half that teaches, which `everyone`, `rfm` and `response` use.
    pub best_incentive: String,
    pub policies: Vec<PolicyReport>,
    /// The assignment of `uplift`, in millionths.
    pub allocation: Allocation,
}

/// The judged rows in the order in which a policy gives incentives, and the arm of each row.
struct Order {
    priority: Vec<f64>,
    arms: Vec<usize>,
}

impl Order {
    /// Returns the arms if the budget is spent in the order of the priority.
    fn spend(&self, effects: &[Vec<IncentiveEffect>], budget: f64) -> Vec<usize> {
        let (mut arms, mut spent) = (vec![NO_INCENTIVE; self.arms.len()], 0.0);
        for row in descending(&self.priority).into_iter().map(|row| row as usize) {
            let cost = effects[row][self.arms[row] - 1].cost_micros;
            if spent + cost > budget {
                break;
            }
            spent += cost;
            arms[row] = self.arms[row];
        }
        arms
    }
}

/// Compares policies. `true_gain` returns the true gain of an observation, by its user and arm, minus that of no
/// incentive; only simulated decisions have one.
pub fn compare_incentive_policies(
    log: &IncentiveLog,
    options: &ComparisonOptions,
    true_gain: Option<&dyn Fn(u32, usize) -> f64>,
) -> Result<IncentiveComparison, UpliftError> {
    if let Some(budget) = options.budget_micros.filter(|budget| !(budget.is_finite() && *budget >= 0.0)) {
        return Err(UpliftError::Option { field: "budget", value: budget, limit: "0 or more" });
    }
    // Hashed, because the numbers of users may have an order.
    let half = |user: u32| (u64::from(user) ^ options.seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 63 == 0;
    let (train, test) = log.split(half);
    let (model, train_scores) = UpliftModel::fit_with_scores(&train, &options.uplift)?;
    let mean_gain = |arm: usize| train_scores.policy_value(&vec![arm; train.observations.len()]).gain_micros.value;
    let best = (1..log.arm_count()).max_by(|left, right| mean_gain(*left).total_cmp(&mean_gain(*right)));
    let best = best.ok_or(UpliftError::NoIncentives)?;
    let rows = test.observations.len();
    let effects: Vec<Vec<IncentiveEffect>> = (0..rows).map(|row| model.effects(test.row(row))).collect();
    let everyone_cost: f64 = effects.iter().map(|of| of[best - 1].cost_micros).sum();
    let budget = options.budget_micros.unwrap_or(BUDGET_SHARE * everyone_cost);
    let scores = DoublyRobustScores::new(&test, options.uplift.margin)?;
    let report = |policy, arms: &[usize], order: Option<&Order>| {
        let areas =
            order.map(|order| scores.uplift_areas(&order.priority, &order.arms, options.resamples, options.seed));
        let gain = |of: &dyn Fn(u32, usize) -> f64| {
            test.observations.iter().zip(arms).map(|(row, arm)| of(row.user, *arm)).sum::<f64>() / rows.max(1) as f64
        };
        PolicyReport {
            policy,
            value: scores.policy_value(arms),
            auuc_micros: areas.map(|areas| areas.auuc_micros),
            qini_micros: areas.map(|areas| areas.qini_micros),
            true_gain_micros: true_gain.map(gain),
        }
    };
    let mut rng = StdRng::seed_from_u64(options.seed);
    let mut places: Vec<f64> = (0..rows).map(|row| row as f64).collect();
    places.shuffle(&mut rng);
    let random = Order { priority: places, arms: (0..rows).map(|_| rng.random_range(1..log.arm_count())).collect() };
    let mut policies = vec![
        report("random", &random.spend(&effects, budget), Some(&random)),
        report("everyone", &vec![best; rows], None),
    ];
    if let Some(priority) = options.rfm.map(|positions| rfm_risk(&train, &test, positions)) {
        let order = Order { priority, arms: vec![best; rows] };
        policies.push(report("rfm", &order.spend(&effects, budget), Some(&order)));
    }
    let response = effects.iter().map(|of| of[best - 1].response).collect();
    let response = Order { priority: response, arms: vec![best; rows] };
    policies.push(report("response", &response.spend(&effects, budget), Some(&response)));
    let greatest = |of: &Vec<IncentiveEffect>| {
        let gains = of.iter().enumerate().map(|(index, effect)| (index + 1, effect.gain_micros.value));
        gains.max_by(|left, right| left.1.total_cmp(&right.1)).unwrap_or((1, 0.0))
    };
    let order = Order {
        priority: effects.iter().map(|of| greatest(of).1).collect(),
        arms: effects.iter().map(|of| greatest(of).0).collect(),
    };
    let (arms, allocation) = assign(&effects, budget);
    policies.push(report("uplift", &arms, Some(&order)));
    Ok(IncentiveComparison {
        rows: log.observations.len(),
        judged_rows: rows,
        budget_micros: budget,
        evidence: train.evidence(options.uplift.minimum_effect),
        best_incentive: log.incentives[best - 1].clone(),
        policies,
        allocation,
    })
}

/// Assigns incentives to those whose net gain is above 0 at its lower bound.
fn assign(effects: &[Vec<IncentiveEffect>], budget: f64) -> (Vec<usize>, Allocation) {
    let of_row = |(user, of): (usize, &Vec<IncentiveEffect>)| {
        let gains = of.iter().enumerate().filter(|(_, effect)| effect.gain_lower_micros > 0.0);
        let candidate = |(incentive, effect): (usize, &IncentiveEffect)| Candidate {
            user,
            incentive,
            gain: effect.gain_micros.value,
            cost: effect.cost_micros,
        };
        gains.map(candidate).collect::<Vec<_>>()
    };
    let candidates: Vec<Candidate> = effects.iter().enumerate().flat_map(of_row).collect();
    let allocation = allocate(&candidates, &AllocationLimits { budget: Some(budget), ..AllocationLimits::default() });
    let mut arms = vec![NO_INCENTIVE; effects.len()];
    allocation.chosen.iter().for_each(|at| arms[candidates[*at].user] = candidates[*at].incentive + 1);
    (arms, allocation)
}

/// Returns 1 − P(purchase without an incentive) by a logistic regression on recency and frequency.
fn rfm_risk(train: &IncentiveLog, test: &IncentiveLog, positions: [usize; 2]) -> Vec<f64> {
    let inputs = |log: &IncentiveLog, row: usize| {
        let [recency, frequency] = positions.map(|position| log.row(row)[position].max(0.0).ln_1p());
        [1.0, recency, frequency]
    };
    let untreated = || (0..train.observations.len()).filter(|row| train.observations[*row].arm == NO_INCENTIVE);
    let rows: Vec<f64> = untreated().flat_map(|row| inputs(train, row)).collect();
    let targets: Vec<f64> = untreated().map(|row| f64::from(u8::from(train.observations[row].has_purchase))).collect();
    let weights = fit(&rows, 3, &targets, Family::Bernoulli, PENALTY);
    (0..test.observations.len()).map(|row| -dot(&inputs(test, row), &weights)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::incentive_simulation::simulate_incentives;

    #[test]
    fn uplift_beats_the_other_policies_at_a_budget_and_estimates_agree_with_the_known_effects() {
        let simulated = simulate_incentives(40_000, 0.3, 11);
        let options = ComparisonOptions {
            uplift: UpliftOptions { margin: 0.3, minimum_effect: 0.05, ..UpliftOptions::default() },
            budget_micros: None,
            rfm: Some([0, 1]),
            resamples: 100,
            seed: 1,
        };
        let gain = |user: u32, arm: usize| simulated.gain(user as usize, arm);
        let found = compare_incentive_policies(&simulated.log, &options, Some(&gain)).unwrap();
        let names: Vec<&str> = found.policies.iter().map(|of| of.policy).collect();
        assert_eq!(names, ["random", "everyone", "rfm", "response", "uplift"]);
        let (uplift, others) = found.policies.split_last().unwrap();
        for other in others {
            let (known, of_uplift) = (other.true_gain_micros.unwrap(), uplift.true_gain_micros.unwrap());
            assert!(of_uplift > known, "{} {known} {of_uplift}", other.policy);
            assert!(other.value.gain_micros.low < known && known < other.value.gain_micros.high + 1e5, "{other:?}");
        }
        assert!(uplift.value.gain_micros.low > 0.0 && uplift.qini_micros.unwrap().low > 0.0, "{uplift:?}");
        assert!(found.allocation.cost <= found.budget_micros);
        assert!(found.allocation.duality_gap < 0.01 * found.allocation.gain, "{:?}", found.allocation);
        let nothing = ComparisonOptions { budget_micros: Some(0.0), ..options };
        let found = compare_incentive_policies(&simulated.log, &nothing, None).unwrap();
        assert_eq!(found.policies.last().unwrap().value.treated, 0);
        let negative = ComparisonOptions { budget_micros: Some(-1.0), ..options };
        let error = compare_incentive_policies(&simulated.log, &negative, None).unwrap_err();
        assert_eq!(error.to_string(), "budget is -1; it must be 0 or more");
    }
}
