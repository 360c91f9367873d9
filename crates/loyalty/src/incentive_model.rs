//! The uplift of a shop's campaigns, fitted to the decisions of the log and scored for a user of now.
use crate::{
    fit::by_user,
    inputs::{SHARED, shared},
    model::{LoyaltyModel, user_value},
    summary::{UserSummary, day_of},
    uplift::{
        Evidence, IncentiveEffect, IncentiveLog, NO_INCENTIVE, Observation, PROPENSITY_MIN, UpliftError, UpliftModel,
        UpliftOptions,
    },
};
use lodestone_core::units::UnixMillis;
use lodestone_events::{Event, EventKind, IncentiveDecision};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Days after a decision in which purchases count.
pub const UPLIFT_HORIZON_DAYS: i64 = 30;

/// What is known about the uplift of a campaign.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CampaignUplift {
    pub campaign_id: String,
    /// ISO 4217 code of the decisions, in which gains and costs are.
    pub currency: String,
    /// None if the observations are too few.
    pub model: Option<UpliftModel>,
    /// Why there is no model; empty with one.
    pub reason: String,
    /// No incentive, then each incentive.
    pub evidence: Vec<Evidence>,
}

impl CampaignUplift {
    pub(crate) fn check(&self) -> bool {
        self.model.as_ref().is_none_or(|model| model.check(SHARED))
    }
}

/// Fits the uplift of each campaign to its randomised decisions whose horizon ended before `until`. `events`: of signed-in
/// users, in the order of time. `decisions`: each with whether its incentive was redeemed.
pub fn fit_campaign_uplift<'a>(
    model: &LoyaltyModel,
    events: &[Event],
    decisions: impl Iterator<Item = (&'a IncentiveDecision, bool)>,
    until: UnixMillis,
) -> Vec<CampaignUplift> {
    let horizon = UPLIFT_HORIZON_DAYS * UnixMillis::DAY;
    let mut campaigns: BTreeMap<&str, Vec<(&IncentiveDecision, bool)>> = BTreeMap::new();
    for (decision, is_redeemed) in decisions {
        let of = campaigns.entry(decision.campaign_id.as_str()).or_default();
        if decision.is_randomised && decision.propensity >= PROPENSITY_MIN && decision.at_ms + horizon <= until.0 {
            of.push((decision, is_redeemed));
        }
    }
    if campaigns.is_empty() {
        return Vec::new();
    }
    let users: BTreeMap<&str, Vec<&Event>> = by_user(events, until).into_iter().collect();
    campaigns.into_iter().map(|(id, decisions)| fit_campaign(model, &users, id, decisions)).collect()
}

fn fit_campaign(
    model: &LoyaltyModel,
    users: &BTreeMap<&str, Vec<&Event>>,
    id: &str,
    mut decisions: Vec<(&IncentiveDecision, bool)>,
) -> CampaignUplift {
    decisions.sort_by(|(left, _), (right, _)| {
        (&left.user, left.at_ms, &left.decision_id).cmp(&(&right.user, right.at_ms, &right.decision_id))
    });
    // A campaign may have changed. The values of its latest state are those of the decisions that follow.
    let latest = decisions.iter().map(|(decision, _)| *decision).max_by_key(|decision| decision.at_ms);
    let (margin, minimum_effect, currency) = latest.map_or((1.0, UpliftOptions::default().minimum_effect, ""), |of| {
        (of.margin, of.minimum_effect, of.currency.as_str())
    });
    decisions.retain(|(decision, _)| decision.currency == currency);
    let names: BTreeSet<&str> =
        decisions.iter().map(|(of, _)| of.incentive_id.as_str()).filter(|incentive| !incentive.is_empty()).collect();
    let arms: BTreeMap<&str, usize> = names.iter().enumerate().map(|(index, name)| (*name, index + 1)).collect();
    let mut numbers: BTreeMap<&str, u32> = BTreeMap::new();
    for (decision, _) in &decisions {
        let next = numbers.len() as u32;
        numbers.entry(&decision.user).or_insert(next);
    }
    let row = |(decision, is_redeemed): &(&IncentiveDecision, bool)| {
        let events = users.get(decision.user.as_str()).map_or(&[][..], Vec::as_slice);
        let mut summary = UserSummary::default();
        let before = events.partition_point(|event| event.at.0 < decision.at_ms);
        events[..before].iter().for_each(|event| summary.add(event));
        let end = decision.at_ms + UPLIFT_HORIZON_DAYS * UnixMillis::DAY;
        let window = events[before..].iter().take_while(|event| event.at.0 < end);
        let (mut has_purchase, mut value) = (false, 0.0);
        for event in window.filter(|event| event.kind == EventKind::Purchase) {
            has_purchase = true;
            if event.currency == currency {
                let line = event.lines.iter().filter_map(|line| Some((line.price?, line.quantity)));
                value += line.map(|(price, quantity)| price.micros() as f64 * quantity.units()).sum::<f64>();
            }
        }
        let observation = Observation {
            user: numbers.get(decision.user.as_str()).copied().unwrap_or_default(),
            arm: arms.get(decision.incentive_id.as_str()).copied().unwrap_or(NO_INCENTIVE),
            propensity: decision.propensity,
            has_purchase,
            value_micros: value,
            cost_micros: if *is_redeemed { decision.cost_micros.max(0) as f64 } else { 0.0 },
        };
        (observation, user_inputs(model, &summary, day_of(decision.at())))
    };
    let rows: Vec<(Observation, [f64; SHARED])> = decisions.par_iter().map(row).collect();
    let log = IncentiveLog {
        incentives: names.iter().map(|name| (*name).to_owned()).collect(),
        input_count: SHARED,
        inputs: rows.iter().flat_map(|(_, inputs)| *inputs).collect(),
        observations: rows.iter().map(|(observation, _)| *observation).collect(),
    };
    let options = UpliftOptions { margin, minimum_effect, ..UpliftOptions::default() };
    let evidence = log.evidence(minimum_effect);
    let (model, reason) = match UpliftModel::fit(&log, &options) {
        Ok(model) => (Some(model), String::new()),
        Err(error @ (UpliftError::TooFew(_) | UpliftError::NoIncentives)) => (None, error.to_string()),
        Err(error) => (None, format!("the decisions cannot be read: {error}")),
    };
    CampaignUplift { campaign_id: id.to_owned(), currency: currency.to_owned(), model, reason, evidence }
}

fn user_inputs(model: &LoyaltyModel, summary: &UserSummary, day: u16) -> [f64; SHARED] {
    let ratio = user_value(summary, &model.mean_values).map_or(1.0, |(_, _, ratio)| ratio);
    shared(summary, day.max((summary.last_s() / 86_400) as u16), ratio)
}

impl LoyaltyModel {
    /// Returns what is known about the uplift of a campaign.
    pub fn campaign_uplift(&self, campaign_id: &str) -> Option<&CampaignUplift> {
        self.uplift.iter().find(|uplift| uplift.campaign_id == campaign_id)
    }

    /// Returns the effect of each incentive of a campaign on a user, by its id. None without a model.
    pub fn incentive_effects(
        &self,
        campaign_id: &str,
        summary: &UserSummary,
        day: u16,
    ) -> Option<Vec<(&str, IncentiveEffect)>> {
        let model = self.campaign_uplift(campaign_id)?.model.as_ref()?;
        Some(model.incentives().zip(model.effects(&user_inputs(self, summary, day))).collect())
    }
}
