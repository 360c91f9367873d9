//! Simulated decisions about incentives with known effects, for tests and `lodestone benchmark incentive`.
use crate::{
    model::sigmoid,
    simulate::normal,
    uplift::{IncentiveLog, Observation},
};
use rand::{Rng, SeedableRng, rngs::StdRng};

/// Names of the inputs of simulated users. `recency_days` and `frequency` are those of RFM.
pub const SIMULATED_INPUTS: [&str; 5] = ["recency_days", "frequency", "mean_value", "visits_28d", "coupon_share"];
/// Names of the simulated incentives.
const SIMULATED_INCENTIVES: [&str; 3] = ["percent_10", "free_shipping", "gift"];
/// Cost of a redeemed incentive other than the percentage, in units.
const COSTS: [f64; 2] = [4.0, 3.0];
const PERCENT: f64 = 0.1;
const MICROS: f64 = 1e6;

/// Simulated decisions and the expected outcomes of each arm.
pub struct SimulatedIncentives {
    pub log: IncentiveLog,
    /// Expected net gain in millionths for each row and arm, row-major.
    pub gains: Vec<f64>,
}

impl SimulatedIncentives {
    /// Returns the true change of the gain of a row by an arm, compared with no incentive, in millionths.
    pub fn gain(&self, row: usize, arm: usize) -> f64 {
        let of_row = row * self.log.arm_count();
        self.gains[of_row + arm] - self.gains[of_row]
    }
}

/// Simulates decisions about `count` users, one each. Frequent customers purchase anyway, so that an incentive only costs;
/// of users without recent visits hardly anybody returns; some are put off by advertising. `margin`: share of the
/// value that is profit. The logged decisions depend on the users, with known propensities.
pub fn simulate_incentives(count: usize, margin: f64, seed: u64) -> SimulatedIncentives {
    let mut rng = StdRng::seed_from_u64(seed);
    let (mut observations, mut inputs, mut gains) = (Vec::new(), Vec::new(), Vec::new());
    for user in 0..count {
        let loyalty = normal(&mut rng);
        let recency = (3.2 - 0.5 * loyalty + 0.7 * normal(&mut rng)).exp().min(365.0).floor();
        let frequency = (1.0 + 0.6 * loyalty + 0.5 * normal(&mut rng)).exp().min(60.0).floor();
        let value = (4.0 + 0.4 * normal(&mut rng)).exp();
        let visits = (1.6 + 0.5 * loyalty + 0.6 * normal(&mut rng) - recency / 60.0).exp().floor();
        let coupons = rng.random::<f64>();
        let none = sigmoid(-3.0 + 0.9 * (1.0 + frequency).ln() + 0.3 * visits.min(8.0) - 0.012 * recency);
        // Who comes anyway cannot be moved much, and who no longer visits does not see an incentive.
        let movable = (1.0 - none) * visits / (visits + 1.0);
        let changes = [
            0.0,
            movable * (0.55 * coupons - 0.12),
            movable * (0.40 * coupons - 0.02 - 0.004 * (value - 55.0)).min(0.35),
            movable * (0.22 - 0.35 * coupons),
        ];
        let purchase = changes.map(|change| (none + change).clamp(0.005, 0.98));
        let redeemed = [0.0, 0.8, 0.9, 0.7];
        let cost = [0.0, PERCENT * value, COSTS[0], COSTS[1]];
        let weights = [0.6, (0.2 * coupons).exp(), (0.02 * frequency.min(20.0)).exp(), 0.7 + 0.3 * coupons];
        let total: f64 = weights.iter().sum();
        let mut left = rng.random::<f64>() * total;
        let drawn = weights.iter().position(|weight| {
            left -= weight;
            left < 0.0
        });
        let arm = drawn.unwrap_or(weights.len() - 1);
        let has_purchase = rng.random::<f64>() < purchase[arm];
        let spread = (0.5 * normal(&mut rng) - 0.125).exp();
        let is_redeemed = rng.random::<f64>() < redeemed[arm];
        let paid = |of: f64| if has_purchase { (of * MICROS).round() } else { 0.0 };
        observations.push(Observation {
            user: user as u32,
            arm,
            propensity: weights[arm] / total,
            has_purchase,
            value_micros: paid(value * spread),
            cost_micros: match (is_redeemed, arm) {
                (false, _) => 0.0,
                // A percentage costs more of a larger purchase.
                (true, 1) => paid(cost[1] * spread),
                (true, _) => paid(cost[arm]),
            },
        });
        inputs.extend([recency, frequency, value, visits, coupons]);
        gains.extend((0..4).map(|arm| MICROS * purchase[arm] * (margin * value - redeemed[arm] * cost[arm])));
    }
    let log = IncentiveLog {
        incentives: SIMULATED_INCENTIVES.map(str::to_owned).into(),
        input_count: SIMULATED_INPUTS.len(),
        inputs,
        observations,
    };
    SimulatedIncentives { log, gains }
}
