//! The price of a budget that has to last for a period: what one more unit of the budget is expected to gain.
//!
//! The multiplier of the budget is solved again at each decision, from what is left of the budget, the time that is left,
//! and the demand of recent decisions (Agrawal, Wang and Ye 2014, "A Dynamic Near-Optimal Algorithm for Online Linear
//! Programming", Operations Research 62:4; re-solving with what is left: Jasin and Kumar 2012, Mathematics of Operations
//! Research 37:2). Demand is a sum of integers over a fixed grid of prices, so it depends neither on the order of the
//! decisions nor on how they were summed.
use std::sync::LazyLock;

/// Prices above 0 of the grid: from 2^-7, eight per octave, to 2^10.
const PRICE_COUNT: usize = 17 * STEPS_PER_OCTAVE + 1;
const STEPS_PER_OCTAVE: usize = 8;
const LOWEST_OCTAVE: f64 = -7.0;
/// Points of a curve: the price 0, then those above it.
const POINTS: usize = PRICE_COUNT + 1;

/// Returns the price at a point of the grid. Beyond its end, no gain is above the price times the expected cost.
fn price_at(point: usize) -> f64 {
    match point {
        0 => 0.0,
        POINTS.. => f64::INFINITY,
        _ => (LOWEST_OCTAVE + (point - 1) as f64 / STEPS_PER_OCTAVE as f64).exp2(),
    }
}

/// The prices of all points, and the one beyond them.
static PRICES: LazyLock<[f64; POINTS + 1]> = LazyLock::new(|| std::array::from_fn(price_at));

/// An incentive that a user would receive if the budget was unlimited, or another one with a gain. In millionths of the
/// currency's unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DemandedIncentive {
    pub gain_micros: i64,
    /// P(redeemed) × cost of a redemption.
    pub expected_cost_micros: i64,
    /// What the budget holds while the incentive is open.
    pub cost_micros: i64,
}

impl DemandedIncentive {
    /// Returns what is left of the gain after the price of the expected cost. An incentive without a cost keeps its gain at
    /// any price; at an infinite price no other one has a gain.
    pub fn net_gain(&self, price: f64) -> f64 {
        match self.cost_micros > 0 {
            false => self.gain_micros as f64,
            true if price.is_infinite() => f64::NEG_INFINITY,
            true => self.gain_micros as f64 - price * self.expected_cost_micros as f64,
        }
    }
}

/// The costs that users would cause at each price of the budget.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DemandCurve {
    /// Costs and expected costs by the point of the grid, in millionths of the currency's unit.
    costs: Vec<i64>,
    expected_costs: Vec<i64>,
}

impl Default for DemandCurve {
    fn default() -> Self {
        Self { costs: vec![0; POINTS], expected_costs: vec![0; POINTS] }
    }
}

impl DemandCurve {
    /// Adds the demand of a user who receives at most one of `incentives`: at each price the one with the greatest net gain,
    /// if that is above 0.
    pub fn add(&mut self, incentives: &[DemandedIncentive]) {
        for point in 0..POINTS {
            let price = PRICES[point];
            let gaining = incentives.iter().map(|of| (of.net_gain(price), of)).filter(|(net, _)| *net > 0.0);
            let Some((_, chosen)) = gaining.max_by(|left, right| left.0.total_cmp(&right.0)) else { break };
            let (cost, expected) = (chosen.cost_micros, chosen.expected_cost_micros);
            self.costs[point] = self.costs[point].saturating_add(cost);
            self.expected_costs[point] = self.expected_costs[point].saturating_add(expected);
        }
    }

    /// Adds the demand of other users.
    pub fn merge(&mut self, other: &Self) {
        let sums = self.costs.iter_mut().zip(&other.costs);
        let expected = self.expected_costs.iter_mut().zip(&other.expected_costs);
        sums.chain(expected).for_each(|(sum, of)| *sum = sum.saturating_add(*of));
    }

    /// Returns the price at which these users use as much of the budget as `planned_micros`. `open_share`: share of the
    /// given incentives that are still open at the end of the period, each of which holds its full cost; of the others the
    /// redeemed ones cost something.
    pub fn price(&self, open_share: f64, planned_micros: f64) -> BudgetPrice {
        let used = |point: usize| match (self.costs.get(point), self.expected_costs.get(point)) {
            (Some(cost), Some(expected)) => open_share * *cost as f64 + (1.0 - open_share) * *expected as f64,
            _ => 0.0,
        };
        let planned = planned_micros.max(0.0);
        let above = (0..POINTS).find(|point| used(*point) <= planned).unwrap_or(POINTS);
        let Some(below) = above.checked_sub(1) else { return BudgetPrice::fixed(0.0) };
        let low_share = (planned - used(above)) / (used(below) - used(above));
        BudgetPrice { low: PRICES[below], high: PRICES[above], low_share }
    }
}

/// A price of a budget: `low` with the probability `low_share`, otherwise `high`, which is infinite if only free incentives
/// are given at it. So equal users, whom no single price tells apart, share what is left.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BudgetPrice {
    pub low: f64,
    pub high: f64,
    /// From 0 to 1, without 1 unless both prices are the same.
    pub low_share: f64,
}

impl BudgetPrice {
    /// Returns a price that is certain.
    pub fn fixed(price: f64) -> Self {
        Self { low: price, high: price, low_share: 1.0 }
    }

    /// Draws a price. `draw`: from 0 to 1, without 1.
    pub fn draw(&self, draw: f64) -> f64 {
        if draw < self.low_share { self.low } else { self.high }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn incentive(gain: i64, expected: i64, cost: i64) -> DemandedIncentive {
        DemandedIncentive { gain_micros: gain, expected_cost_micros: expected, cost_micros: cost }
    }

    #[test]
    fn a_budget_for_all_has_no_price_and_a_scarce_one_that_of_the_last_user_it_suffices_for() {
        let mut curve = DemandCurve::default();
        assert_eq!(curve.price(1.0, 0.0), BudgetPrice::fixed(0.0), "without demand nothing is scarce");
        // Gains of 1 to 100 per unit of the expected cost of 10; each holds 40 while it is open.
        (1..=100).for_each(|gain| curve.add(&[incentive(gain * 10, 10, 40)]));
        assert_eq!(curve.price(0.0, 1000.0), BudgetPrice::fixed(0.0));
        assert_eq!(curve.price(1.0, 4000.0), BudgetPrice::fixed(0.0));
        let half = curve.price(0.0, 500.0);
        assert!(half.low < 51.0 && half.high > 50.0 && half.high < 1.1 * half.low, "{half:?}");
        assert_eq!(curve.price(1.0, 2000.0), half, "all are open at the end, and hold four times as much");
        let mixed = curve.price(0.5, 500.0);
        assert!(mixed.low > 75.0 && mixed.high < 88.0, "25 a user, so that 20 of 100 use 500: {mixed:?}");
        let none = curve.price(0.0, -5.0);
        assert!(none.low_share == 0.0 && none.high >= 100.0, "{none:?}");
    }

    #[test]
    fn equal_users_share_the_budget_by_chance() {
        let mut curve = DemandCurve::default();
        (0..10).for_each(|_| curve.add(&[incentive(20, 10, 10)]));
        let price = curve.price(0.0, 30.0);
        assert!(price.low < 2.0 && price.high >= 2.0 && (price.low_share - 0.3).abs() < 1e-9, "{price:?}");
        assert_eq!((price.draw(0.29), price.draw(0.31)), (price.low, price.high));
        // A gain beyond the grid: by chance too, and what is free is always given.
        let mut beyond = DemandCurve::default();
        (0..4).for_each(|_| beyond.add(&[incentive(1_000_000, 1, 10)]));
        beyond.add(&[incentive(5, 0, 0)]);
        let price = beyond.price(1.0, 10.0);
        assert_eq!((price.high, price.low_share), (f64::INFINITY, 0.25));
        assert_eq!(incentive(5, 0, 0).net_gain(price.high), 5.0);
        // Nobody redeemed it in the pilot, but it holds its cost.
        assert_eq!(incentive(5, 0, 1).net_gain(price.high), f64::NEG_INFINITY);
        assert_eq!((incentive(5, 0, 1).net_gain(1000.0), incentive(5, 1, 1).net_gain(2.0)), (5.0, 3.0));
    }

    fn users() -> impl Strategy<Value = Vec<Vec<DemandedIncentive>>> {
        let one = (0i64..50_000, 0i64..5000, 0i64..5000)
            .prop_map(|(gain, expected, more)| incentive(gain, expected, expected + more));
        prop::collection::vec(prop::collection::vec(one, 0..4), 0..40)
    }

    proptest! {
        /// The expected use at the price is the plan, unless all of the demand is less.
        #[test]
        fn the_expected_use_at_a_price_is_the_plan(users in users(), open_share in 0.0..=1.0_f64, plan in 0.0..100_000.0_f64) {
            let mut curve = DemandCurve::default();
            users.iter().for_each(|user| curve.add(user));
            let used = |price: f64| -> f64 {
                let best = |user: &Vec<DemandedIncentive>| {
                    let gaining = user.iter().filter(|of| of.net_gain(price) > 0.0);
                    let best = gaining.max_by(|a, b| a.net_gain(price).total_cmp(&b.net_gain(price)))?;
                    Some(open_share * best.cost_micros as f64 + (1.0 - open_share) * best.expected_cost_micros as f64)
                };
                users.iter().filter_map(best).sum()
            };
            let price = curve.price(open_share, plan);
            let expected = price.low_share * used(price.low) + (1.0 - price.low_share) * used(price.high);
            prop_assert!((0.0..=1.0).contains(&price.low_share), "{price:?}");
            prop_assert!((expected - plan.min(used(0.0))).abs() < 1e-6 * plan.max(1.0), "{price:?} {expected} {}", used(0.0));
        }

        #[test]
        fn the_order_of_users_does_not_matter(users in users()) {
            let (mut forward, mut parts) = (DemandCurve::default(), [DemandCurve::default(), DemandCurve::default()]);
            users.iter().for_each(|user| forward.add(user));
            users.iter().rev().enumerate().for_each(|(index, user)| parts[index % 2].add(user));
            let [mut merged, other] = parts;
            merged.merge(&other);
            prop_assert_eq!(merged, forward);
        }
    }
}
