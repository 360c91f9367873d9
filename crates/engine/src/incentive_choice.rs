//! The choice of an incentive: by chance in a pilot, and by gain and the price of the budget in a targeted campaign.
use crate::incentives::{DecideRequest, IncentiveReason};
use lodestone_core::units::UnixMillis;
use lodestone_events::{DecisionDemand, DecisionEffect, DecisionEstimate, IncentiveDecision};
use lodestone_loyalty::{BudgetPrice, DemandedIncentive, Estimate, IncentiveEffect};
use lodestone_rules::{CompiledCampaign, Incentive};
use lodestone_state::{BudgetPeriod, CampaignUse, IncentiveLedger};
use std::collections::BTreeMap;

const MICROS: f64 = 1e6;

/// A decision before it is written.
pub(crate) enum IncentiveOutcome {
    Decided(IncentiveReason, Box<IncentiveDecision>),
    NotDecided(IncentiveReason, String, BTreeMap<String, u64>),
}

pub(crate) fn not_decided(reason: IncentiveReason, explanation: impl Into<String>) -> IncentiveOutcome {
    IncentiveOutcome::NotDecided(reason, explanation.into(), BTreeMap::new())
}

/// Returns the price of a campaign's budget: that of the campaign, or one with which the budget lasts until its end; 0
/// without both, and for a pilot.
pub(crate) fn budget_price(ledger: &mut IncentiveLedger, campaign: &CompiledCampaign, now: UnixMillis) -> BudgetPrice {
    let of = &campaign.campaign;
    match campaign.end() {
        _ if campaign.is_pilot() => BudgetPrice::fixed(0.0),
        _ if of.budget_price > 0.0 => BudgetPrice::fixed(of.budget_price),
        None => BudgetPrice::fixed(0.0),
        Some(end) => {
            let with_cost = of.incentives.iter().filter(|incentive| incentive.cost_micros.unwrap_or(0) > 0);
            let valid_days = with_cost.map(|incentive| incentive.valid_days).max().unwrap_or(0);
            let valid_ms = i64::from(valid_days) * UnixMillis::DAY;
            ledger.budget_price(campaign.id(), &BudgetPeriod { budget_micros: of.budget_micros, end, valid_ms }, now)
        }
    }
}

/// An incentive with a gain above 0 at the lower end of its interval.
#[derive(Clone, Copy)]
struct GainingIncentive<'a> {
    incentive: &'a Incentive,
    effect: IncentiveEffect,
    demanded: DemandedIncentive,
}

/// What a decision is about.
pub(crate) struct Draft<'a> {
    pub(crate) campaign: &'a CompiledCampaign,
    pub(crate) request: &'a DecideRequest,
    /// Of the campaign, before this decision.
    pub(crate) used: &'a CampaignUse,
    pub(crate) now: UnixMillis,
    pub(crate) is_holdout: bool,
}

impl<'a> Draft<'a> {
    /// Returns what is left of the budget; negative after it was reduced.
    pub(crate) fn left_micros(&self) -> i64 {
        self.campaign.campaign.budget_micros.saturating_sub(self.used.used_micros)
    }

    /// Returns the incentives below their limits that the rest of the budget suffices for.
    pub(crate) fn available(&self) -> Vec<&'a Incentive> {
        self.campaign.campaign.incentives.iter().filter(|of| self.is_available(of)).collect()
    }

    fn is_available(&self, incentive: &Incentive) -> bool {
        let has_budget = self.campaign.campaign.budget_micros > 0;
        has_budget && incentive.cost_micros.unwrap_or(0) <= self.left_micros() && self.is_below_limit(incentive)
    }

    fn is_below_limit(&self, incentive: &Incentive) -> bool {
        let count = self.used.counts.get(&incentive.incentive_id).copied().unwrap_or(0);
        incentive.user_count_max == 0 || count < incentive.user_count_max as u64
    }

    fn decision(&self, reason: IncentiveReason, incentive: Option<&Incentive>, propensity: f64) -> IncentiveDecision {
        let of = &self.campaign.campaign;
        IncentiveDecision {
            decision_id: self.request.decision_id.clone(),
            user: self.request.user.as_str().to_owned(),
            campaign_id: of.campaign_id.clone(),
            incentive_id: incentive.map(|incentive| incentive.incentive_id.clone()).unwrap_or_default(),
            at_ms: self.now.0,
            reason: reason as i32,
            propensity,
            is_randomised: false,
            cost_micros: incentive.and_then(|incentive| incentive.cost_micros).unwrap_or(0),
            expires_ms: incentive.map_or(0, |incentive| self.now.0 + i64::from(incentive.valid_days) * UnixMillis::DAY),
            currency: of.currency_code.clone(),
            margin: of.margin,
            minimum_effect: self.campaign.minimum_effect(),
            explanation: String::new(),
            effect: None,
            demand: Vec::new(),
            budget_price: None,
        }
    }

    /// Draws none or one of the available incentives, all equally probable. `draw`: from 0 to 1, without 1.
    pub(crate) fn randomised(&self, available: &[&Incentive], draw: f64) -> IncentiveOutcome {
        let holdout = self.campaign.campaign.holdout_share;
        let arms = (available.len() + 1) as f64;
        let each = (1.0 - holdout) / arms;
        let drawn = (draw * arms) as usize;
        let incentive = available.get(drawn).copied().filter(|_| !self.is_holdout);
        let (reason, propensity) = match (self.is_holdout, incentive) {
            (true, _) => (IncentiveReason::Holdout, holdout + each),
            (false, None) => (IncentiveReason::Randomised, holdout + each),
            (false, Some(_)) => (IncentiveReason::Randomised, each),
        };
        let explanation = match (self.is_holdout, incentive) {
            (true, _) => format!("the user is in the hold-out of {holdout} of all users"),
            (false, None) => format!("the pilot drew no incentive; its probability was {propensity:.4}"),
            (false, Some(of)) => {
                format!("the pilot drew {}; its probability was {propensity:.4}", of.incentive_id)
            }
        };
        let decision = self.decision(reason, incentive, propensity);
        let is_randomised = available.len() == self.campaign.campaign.incentives.len();
        IncentiveOutcome::Decided(reason, Box::new(IncentiveDecision { is_randomised, explanation, ..decision }))
    }

    /// Chooses the available incentive with the greatest net gain at a drawn price of the budget, if its lower bound is above
    /// 0. `draw`: from 0 to 1, without 1.
    pub(crate) fn targeted(
        &self,
        effects: &BTreeMap<&str, IncentiveEffect>,
        price: BudgetPrice,
        draw: f64,
    ) -> IncentiveOutcome {
        let holdout = self.campaign.campaign.holdout_share;
        let gaining = self.gaining(effects);
        let best = |price: f64, is_possible: &dyn Fn(&Incentive) -> bool| {
            let net = |of: &GainingIncentive| of.demanded.net_gain(price);
            let possible = gaining.iter().filter(|of| is_possible(of.incentive) && net(of) > 0.0);
            possible.max_by(|left, right| net(left).total_cmp(&net(right))).copied()
        };
        let available = |price: f64| best(price, &|incentive| self.is_available(incentive));
        let drawn = price.draw(draw);
        // The probability of the same result over the draws of the price.
        let probability = |id: Option<&str>| {
            let has_result = |price: f64| available(price).map(|of| of.incentive.incentive_id.as_str()) == id;
            match (has_result(price.low), has_result(price.high)) {
                (true, true) => 1.0,
                (true, false) => price.low_share,
                (false, true) => 1.0 - price.low_share,
                (false, false) => 0.0,
            }
        };
        // None also results from the hold-out, so that it is certain if no price yields an incentive.
        let undecided = probability(None);
        let of_none = if undecided < 1.0 { holdout + (1.0 - holdout) * undecided } else { 1.0 };
        let decided = |reason: IncentiveReason, explanation: String, decision: IncentiveDecision| {
            let demand = if self.is_holdout { Vec::new() } else { self.demand(&gaining) };
            let budget_price = Some(drawn);
            IncentiveOutcome::Decided(
                reason,
                Box::new(IncentiveDecision { explanation, demand, budget_price, ..decision }),
            )
        };
        let Some(GainingIncentive { incentive, effect, .. }) = available(drawn) else {
            if best(drawn, &|_| true).is_some() {
                let text = "the incentives with a gain for this user cost more than what is left of the budget, or have \
                            reached their limits";
                return not_decided(IncentiveReason::Budget, text);
            }
            let decision = self.decision(IncentiveReason::NoGain, None, of_none);
            return decided(IncentiveReason::NoGain, without_gain(gaining.is_empty(), drawn), decision);
        };
        let id = &incentive.incentive_id;
        if self.is_holdout {
            let explanation =
                format!("the user is in the hold-out of {holdout} of all users; otherwise {id} would be given");
            let decision = self.decision(IncentiveReason::Holdout, None, of_none);
            return decided(IncentiveReason::Holdout, explanation, decision);
        }
        let explanation = format!(
            "{id} is expected to gain {:.2} {} after its cost, at least {:.2} at the confidence of the model, and to \
             change the purchase probability by {:+.3}; the price of the budget is {drawn:.3}",
            effect.gain_micros.value / MICROS,
            self.campaign.campaign.currency_code,
            effect.gain_lower_micros / MICROS,
            effect.purchase.value
        );
        let of_model = DecisionEffect {
            purchase_probability: estimate(effect.purchase, 1.0),
            gain: estimate(effect.gain_micros, MICROS),
            expected_cost: effect.cost_micros / MICROS,
        };
        let propensity = (1.0 - holdout) * probability(Some(id));
        let decision = self.decision(IncentiveReason::Gain, Some(incentive), propensity);
        decided(IncentiveReason::Gain, explanation, IncentiveDecision { effect: Some(of_model), ..decision })
    }

    fn gaining(&self, effects: &BTreeMap<&str, IncentiveEffect>) -> Vec<GainingIncentive<'a>> {
        let gaining = |incentive: &'a Incentive| {
            let effect = *effects.get(incentive.incentive_id.as_str())?;
            let cost_micros = incentive.cost_micros.unwrap_or(0);
            let demanded = DemandedIncentive {
                gain_micros: effect.gain_micros.value.round() as i64,
                // The cost may have been reduced since the pilot.
                expected_cost_micros: (effect.cost_micros.round() as i64).clamp(0, cost_micros.max(0)),
                cost_micros,
            };
            (effect.gain_lower_micros > 0.0).then_some(GainingIncentive { incentive, effect, demanded })
        };
        self.campaign.campaign.incentives.iter().filter_map(gaining).collect()
    }

    /// Returns the demand for the budget: without incentives that have reached their limits, which nobody can receive.
    fn demand(&self, gaining: &[GainingIncentive]) -> Vec<DecisionDemand> {
        let below_limit = gaining.iter().filter(|of| self.is_below_limit(of.incentive));
        let demand = |of: &GainingIncentive| DecisionDemand {
            gain_micros: of.demanded.gain_micros,
            expected_cost_micros: of.demanded.expected_cost_micros,
            cost_micros: of.demanded.cost_micros,
        };
        below_limit.map(demand).collect()
    }
}

/// Explains why no incentive is given at a price of the budget. `is_gaining_empty`: none has a gain at any price.
fn without_gain(is_gaining_empty: bool, price: f64) -> String {
    match is_gaining_empty {
        true => "no incentive has a gain above 0 at the lower end of its interval for this user".to_owned(),
        false if price.is_infinite() => {
            "no incentive with a cost is given at this moment, so that the budget lasts until the campaign ends"
                .to_owned()
        }
        false => format!("no gain for this user is above the price of the budget, {price:.3}, × its expected cost"),
    }
}

fn estimate(of: Estimate, unit: f64) -> DecisionEstimate {
    DecisionEstimate { value: of.value / unit, low: of.low / unit, high: of.high / unit }
}

#[cfg(test)]
mod tests;
