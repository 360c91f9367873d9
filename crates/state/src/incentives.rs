//! The fold of decisions about incentives: limits per user, limits of incentives, and budgets.
use ahash::AHashMap;
use lodestone_core::units::UnixMillis;
use lodestone_events::IncentiveDecision;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// Number of decisions that the state keeps, because each counts and is returned to a repeated call.
pub const DECISIONS_MAX: usize = 5_000_000;

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
        if decision.cost_micros > 0 {
            campaign.used_micros = campaign.used_micros.saturating_add(decision.cost_micros);
            campaign.open.insert((decision.expires_ms, id.clone()));
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
        campaign.open.remove(&(decision.expires_ms, key));
        campaign.redeemed += 1;
        stored.cost = CostState::Redeemed;
    }

    /// Returns the use of a campaign. Returns the costs of incentives that were not redeemed in time to the budget.
    pub fn campaign_use(&mut self, campaign_id: &str, now: UnixMillis) -> CampaignUse {
        let Some(campaign) = self.campaigns.get_mut(campaign_id) else { return CampaignUse::default() };
        while campaign.open.first().is_some_and(|(expires, _)| *expires <= now.0) {
            let Some((_, id)) = campaign.open.pop_first() else { break };
            if let Some(stored) = self.decisions.get_mut(&id) {
                stored.cost = CostState::Released;
                campaign.used_micros = campaign.used_micros.saturating_sub(stored.decision.cost_micros);
            }
        }
        CampaignUse {
            used_micros: campaign.used_micros,
            counts: campaign.counts.clone(),
            randomised_counts: campaign.randomised_counts.clone(),
            redeemed: campaign.redeemed,
        }
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
}
