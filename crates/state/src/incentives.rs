//! The fold of decisions about incentives: limits per user, limits of incentives, budgets and their prices.
use ahash::AHashMap;
use lodestone_core::units::UnixMillis;
use lodestone_events::IncentiveDecision;
use lodestone_loyalty::{BudgetPrice, DemandCurve, DemandedIncentive};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// Number of decisions that the state keeps, because each counts and is returned to a repeated call.
pub const DECISIONS_MAX: usize = 5_000_000;
/// Days before the present one whose demand counts for the price of a budget: a week, so that each weekday counts.
const DEMAND_DAYS: i64 = 7;
/// The demand is taken as that of at least this share of the period. So the first decisions of a campaign, from which the
/// demand is not known yet, can spend about this share of the budget more than was planned.
const DEMAND_SHARE_MIN: f64 = 0.02;

/// Whether the cost of a decision is part of the use of the budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CostState {
    /// Can be redeemed.
    Open,
    /// Was not redeemed in time; its cost was returned.
    Released,
    Redeemed,
}

#[derive(Debug)]
struct Stored {
    decision: Arc<IncentiveDecision>,
    cost: CostState,
}

/// The decisions of a campaign.
#[derive(Debug, Default)]
struct Campaign {
    used_micros: i64,
    /// Open incentives with a cost by the time until which they can be redeemed.
    open: BTreeSet<(i64, Arc<str>)>,
    counts: BTreeMap<String, u64>,
    randomised_counts: BTreeMap<String, u64>,
    redeemed: u64,
    /// Times of the decisions of each user.
    by_user: AHashMap<String, Vec<i64>>,
    /// Cost of open incentives that is expected to be returned to the budget, by the day on which they expire.
    returns: BTreeMap<i64, i64>,
    /// Decisions by gain of the latest days.
    demand: BTreeMap<i64, DayDemand>,
}

/// The demand of a day.
#[derive(Debug)]
struct DayDemand {
    first_ms: i64,
    curve: DemandCurve,
}

/// A budget and the time until which it has to last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BudgetPeriod {
    pub budget_micros: i64,
    pub end: UnixMillis,
    /// The longest time for which an incentive is open.
    pub valid_ms: i64,
}

impl Campaign {
    fn add_demand(&mut self, decision: &IncentiveDecision) {
        if decision.budget_price.is_none() {
            return;
        }
        let day = day(decision.at_ms);
        let newest = self.demand.last_key_value().map_or(day, |(newest, _)| day.max(*newest));
        let begin = newest - DEMAND_DAYS;
        self.demand.retain(|day, _| *day >= begin);
        if day < begin {
            return;
        }
        let new = || DayDemand { first_ms: decision.at_ms, curve: DemandCurve::default() };
        let of_day = self.demand.entry(day).or_insert_with(new);
        of_day.first_ms = of_day.first_ms.min(decision.at_ms);
        let demanded = decision.demand.iter().map(|of| DemandedIncentive {
            gain_micros: of.gain_micros,
            expected_cost_micros: of.expected_cost_micros,
            cost_micros: of.cost_micros,
        });
        of_day.curve.add(&demanded.collect::<Vec<_>>());
    }

    /// Changes the sum of what is expected to be returned when the incentive of a decision expires.
    fn change_returns(&mut self, decision: &IncentiveDecision, sign: i64) {
        let sum = self.returns.entry(day(decision.expires_ms)).or_default();
        *sum = sum.saturating_add(sign * expected_return(decision));
        if *sum == 0 {
            self.returns.remove(&day(decision.expires_ms));
        }
    }

    fn budget_price(&self, period: &BudgetPeriod, now: UnixMillis) -> BudgetPrice {
        let begin = day(now.0) - DEMAND_DAYS;
        let (mut curve, mut first_ms) = (DemandCurve::default(), None);
        for of_day in self.demand.range(begin..).map(|(_, of_day)| of_day) {
            curve.merge(&of_day.curve);
            first_ms = Some(first_ms.map_or(of_day.first_ms, |first: i64| first.min(of_day.first_ms)));
        }
        let Some(first_ms) = first_ms.filter(|_| now < period.end) else { return BudgetPrice::fixed(0.0) };
        let left_ms = (period.end.0 - now.0) as f64;
        let returned: i64 = self.returns.range(..day(period.end.0)).map(|(_, sum)| *sum).sum();
        let left = period.budget_micros.saturating_sub(self.used_micros).saturating_add(returned);
        let of_period = DEMAND_SHARE_MIN * (period.end.0 - first_ms) as f64;
        let observed_ms = ((now.0 - first_ms) as f64).max(of_period);
        let open_share = (period.valid_ms as f64 / left_ms).min(1.0);
        curve.price(open_share, left as f64 * observed_ms / left_ms)
    }
}

fn day(ms: i64) -> i64 {
    ms.div_euclid(UnixMillis::DAY)
}

/// Returns the cost of a decision that is expected to return to the budget: all but the expected cost. Without an estimate,
/// as in a pilot, nothing is expected.
fn expected_return(decision: &IncentiveDecision) -> i64 {
    let Some(effect) = &decision.effect else { return 0 };
    let expected = (effect.expected_cost * 1e6).round() as i64;
    decision.cost_micros.saturating_sub(expected).clamp(0, decision.cost_micros.max(0))
}

/// The use of a campaign.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CampaignUse {
    /// Cost of open and redeemed incentives.
    pub used_micros: i64,
    /// Decisions by incentive; the empty id is none.
    pub counts: BTreeMap<String, u64>,
    /// Of those, the ones that uplift can be learned from.
    pub randomised_counts: BTreeMap<String, u64>,
    pub redeemed: u64,
}

/// All decisions about incentives.
#[derive(Debug, Default)]
pub struct IncentiveLedger {
    decisions: AHashMap<Arc<str>, Stored>,
    campaigns: AHashMap<String, Campaign>,
}

impl IncentiveLedger {
    /// Returns the number of decisions.
    pub fn len(&self) -> usize {
        self.decisions.len()
    }

    pub fn is_empty(&self) -> bool {
        self.decisions.is_empty()
    }

    /// Returns the decision with an id.
    pub fn decision(&self, id: &str) -> Option<Arc<IncentiveDecision>> {
        self.decisions.get(id).map(|stored| stored.decision.clone())
    }

    /// Adds a decision. The first one with an id counts.
    pub fn add(&mut self, decision: IncentiveDecision) {
        if self.decisions.contains_key(decision.decision_id.as_str()) {
            return;
        }
        let id: Arc<str> = Arc::from(decision.decision_id.as_str());
        let campaign = self.campaigns.entry(decision.campaign_id.clone()).or_default();
        *campaign.counts.entry(decision.incentive_id.clone()).or_default() += 1;
        if decision.is_randomised {
            *campaign.randomised_counts.entry(decision.incentive_id.clone()).or_default() += 1;
        }
        campaign.by_user.entry(decision.user.clone()).or_default().push(decision.at_ms);
        campaign.add_demand(&decision);
        if decision.cost_micros > 0 {
            campaign.used_micros = campaign.used_micros.saturating_add(decision.cost_micros);
            campaign.open.insert((decision.expires_ms, id.clone()));
            campaign.change_returns(&decision, 1);
        }
        self.decisions.insert(id, Stored { decision: Arc::new(decision), cost: CostState::Open });
    }

    /// Records that the user redeemed the incentive of a decision. Other ids and users are ignored.
    pub fn redeem(&mut self, id: &str, user: &str) {
        let Some((key, _)) = self.decisions.get_key_value(id) else { return };
        let key = key.clone();
        let Some(stored) = self.decisions.get_mut(id) else { return };
        let decision = &stored.decision;
        if decision.user != user || !decision.is_given() || stored.cost == CostState::Redeemed {
            return;
        }
        let Some(campaign) = self.campaigns.get_mut(&decision.campaign_id) else { return };
        if stored.cost == CostState::Released {
            // The shop accepted it although it had expired.
            campaign.used_micros = campaign.used_micros.saturating_add(decision.cost_micros);
        }
        if campaign.open.remove(&(decision.expires_ms, key)) {
            campaign.change_returns(decision, -1);
        }
        campaign.redeemed += 1;
        stored.cost = CostState::Redeemed;
    }

    /// Returns the costs of incentives that were not redeemed in time to the budget of their campaign.
    fn return_costs(&mut self, campaign_id: &str, now: UnixMillis) {
        let Some(campaign) = self.campaigns.get_mut(campaign_id) else { return };
        while campaign.open.first().is_some_and(|(expires, _)| *expires <= now.0) {
            let Some((_, id)) = campaign.open.pop_first() else { break };
            if let Some(stored) = self.decisions.get_mut(&id) {
                stored.cost = CostState::Released;
                campaign.used_micros = campaign.used_micros.saturating_sub(stored.decision.cost_micros);
                campaign.change_returns(&stored.decision, -1);
            }
        }
    }

    /// Returns the use of a campaign at a time.
    pub fn campaign_use(&mut self, campaign_id: &str, now: UnixMillis) -> CampaignUse {
        self.return_costs(campaign_id, now);
        let Some(campaign) = self.campaigns.get(campaign_id) else { return CampaignUse::default() };
        CampaignUse {
            used_micros: campaign.used_micros,
            counts: campaign.counts.clone(),
            randomised_counts: campaign.randomised_counts.clone(),
            redeemed: campaign.redeemed,
        }
    }

    /// Returns the price with which the demand of the latest days uses what is left of a budget evenly until the end of its
    /// period; 0 without such demand, and after the end. It depends only on the decisions, their redemptions and `now`.
    pub fn budget_price(&mut self, campaign_id: &str, period: &BudgetPeriod, now: UnixMillis) -> BudgetPrice {
        self.return_costs(campaign_id, now);
        let campaign = self.campaigns.get(campaign_id);
        campaign.map_or(BudgetPrice::fixed(0.0), |campaign| campaign.budget_price(period, now))
    }

    /// Returns the number of a user's decisions since a time.
    pub fn user_decisions_since(&self, campaign_id: &str, user: &str, since: UnixMillis) -> usize {
        let times = self.campaigns.get(campaign_id).and_then(|campaign| campaign.by_user.get(user));
        times.map_or(0, |times| times.iter().filter(|at| **at > since.0).count())
    }

    /// Returns the decisions, each with whether its incentive was redeemed.
    pub(crate) fn all(&self) -> Vec<(Arc<IncentiveDecision>, bool)> {
        let of = |stored: &Stored| (stored.decision.clone(), stored.cost == CostState::Redeemed);
        self.decisions.values().map(of).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lodestone_events::{DecisionDemand, DecisionEffect, DecisionEstimate};

    fn decision(id: &str, user: &str, incentive: &str, at: i64) -> IncentiveDecision {
        IncentiveDecision {
            decision_id: id.into(),
            user: user.into(),
            campaign_id: "c".into(),
            incentive_id: incentive.into(),
            at_ms: at,
            cost_micros: if incentive.is_empty() { 0 } else { 10 },
            expires_ms: at + 100,
            ..IncentiveDecision::default()
        }
    }

    #[test]
    fn the_budget_counts_open_and_redeemed_incentives() {
        let mut ledger = IncentiveLedger::default();
        for (id, user, incentive, at) in
            [("1", "u:a", "x", 0), ("2", "u:b", "x", 10), ("3", "u:c", "", 20), ("1", "u:z", "x", 30)]
        {
            ledger.add(decision(id, user, incentive, at));
        }
        let used = |ledger: &mut IncentiveLedger, now: i64| ledger.campaign_use("c", UnixMillis(now)).used_micros;
        assert_eq!((ledger.len(), used(&mut ledger, 50)), (3, 20));
        ledger.redeem("1", "u:b");
        ledger.redeem("3", "u:c");
        ledger.redeem("2", "u:b");
        ledger.redeem("2", "u:b");
        assert_eq!(used(&mut ledger, 100), 10, "the first expired, and the second was redeemed");
        ledger.redeem("1", "u:a");
        let found = ledger.campaign_use("c", UnixMillis(1000));
        assert_eq!((found.used_micros, found.redeemed, found.counts["x"], found.counts[""]), (20, 2, 2, 1));
        assert_eq!(ledger.user_decisions_since("c", "u:a", UnixMillis(-1)), 1);
        assert_eq!(ledger.user_decisions_since("c", "u:a", UnixMillis(0)), 0);
        assert_eq!(ledger.decision("2").unwrap().user, "u:b");
    }
    const DAY: i64 = UnixMillis::DAY;

    /// A decision by gain whose user could receive an incentive with a gain of 20 and a cost of 10, half of which is
    /// expected.
    fn by_gain(id: usize, at: i64, is_given: bool) -> IncentiveDecision {
        let estimate = DecisionEstimate { value: 0.1, low: 0.0, high: 0.2 };
        let effect = DecisionEffect { purchase_probability: estimate, gain: estimate, expected_cost: 5e-6 };
        IncentiveDecision {
            effect: is_given.then_some(effect),
            expires_ms: at + 14 * DAY,
            demand: vec![DecisionDemand { gain_micros: 20, expected_cost_micros: 5, cost_micros: 10 }],
            budget_price: Some(0.0),
            ..decision(&id.to_string(), &format!("u:{id}"), if is_given { "x" } else { "" }, at)
        }
    }

    #[test]
    fn the_price_follows_from_what_is_left_of_the_budget_the_time_and_the_demand() {
        let mut ledger = IncentiveLedger::default();
        let end = UnixMillis(30 * DAY);
        let period = |budget_micros: i64| BudgetPeriod { budget_micros, end, valid_ms: 14 * DAY };
        let price = |ledger: &mut IncentiveLedger, budget: i64, now: i64| {
            ledger.budget_price("c", &period(budget), UnixMillis(now))
        };
        let free = BudgetPrice::fixed(0.0);
        assert_eq!(price(&mut ledger, 0, 5), free, "nothing is known about the demand");
        // Ten users a day, of whom nobody receives anything: their demand for 20 days is 10 × 10 × 20 = 2,000 if all
        // incentives stay open, and 14 of the 20 days do.
        (0..100).for_each(|id| ledger.add(by_gain(id, id as i64 * DAY / 10, false)));
        let now = 10 * DAY;
        assert_eq!(price(&mut ledger, 2000, now), free);
        let scarce = price(&mut ledger, 500, now);
        assert!(scarce.low < 4.0 && scarce.high >= 4.0, "a gain of 20 is 4 times the expected cost: {scarce:?}");
        // 0.7 × 10 + 0.3 × 5 for each of 10 users a day.
        assert!((scarce.low_share - 500.0 / (8.5 * 10.0 * 20.0)).abs() < 0.01, "{scarce:?}");
        // A given incentive holds its cost, of which a half is expected back if it expires before the end.
        for id in 100..110 {
            ledger.add(by_gain(id, now, true));
        }
        let (before, after) = (scarce.low_share, price(&mut ledger, 500, now).low_share);
        assert!(after < before * (500.0 - 45.0) / 500.0 && after > before * (500.0 - 100.0) / 500.0 * 0.8, "{after}");
        // A user of the last minute can receive what is left.
        ledger.add(by_gain(200, 30 * DAY - 60_000, false));
        assert_eq!(price(&mut ledger, 500, 30 * DAY - 1000), free);
        assert!(price(&mut ledger, 0, 30 * DAY - 1000).high >= 4.0, "nothing is left");
        assert_eq!(price(&mut ledger, 0, 30 * DAY), free, "the campaign has ended");
    }

    /// The price depends on the decisions and redemptions alone: neither on their order, as in a checkpoint, nor on when
    /// costs were returned.
    #[test]
    fn the_price_is_the_same_after_a_replay_in_any_order() {
        let decisions: Vec<_> = (0..400).map(|id| by_gain(id, id as i64 * DAY / 20, id.is_multiple_of(3))).collect();
        let redeemed = |id: usize| id.is_multiple_of(9) && id < 300;
        let period = BudgetPeriod { budget_micros: 1500, end: UnixMillis(40 * DAY), valid_ms: 14 * DAY };
        let now = UnixMillis(20 * DAY);
        let mut live = IncentiveLedger::default();
        for (id, decision) in decisions.iter().enumerate() {
            live.budget_price("c", &period, decision.at());
            live.add(decision.clone());
            if let Some(earlier) = id.checked_sub(40).filter(|earlier| redeemed(*earlier)) {
                live.redeem(&earlier.to_string(), &format!("u:{earlier}"));
            }
        }
        let mut replayed = IncentiveLedger::default();
        for (decision, is_redeemed) in live.all() {
            replayed.add(IncentiveDecision::clone(&decision));
            if is_redeemed {
                replayed.redeem(&decision.decision_id, &decision.user);
            }
        }
        let price = live.budget_price("c", &period, now);
        assert!(price.low > 0.0, "{price:?}");
        assert_eq!(replayed.budget_price("c", &period, now), price);
        assert_eq!(replayed.campaign_use("c", now), live.campaign_use("c", now));
        // Also after all have expired.
        let later = UnixMillis(39 * DAY);
        assert_eq!(replayed.campaign_use("c", later), live.campaign_use("c", later));
        assert!(live.campaigns["c"].returns.is_empty() && replayed.campaigns["c"].returns.is_empty());
    }
}
