//! Campaigns of incentives, and decisions about who receives one.
use crate::{
    engine::Engine,
    error::{EngineError, RuleError},
    incentive_choice::{Draft, IncentiveOutcome, budget_price, not_decided},
    loyalty::model_of,
    rules::{PutMode, Target, invalid},
};
use lodestone_core::{ids::UserId, units::UnixMillis};
use lodestone_events::{Change, Event, EventKind, IncentiveDecision, is_holdout};
use lodestone_loyalty::{IncentiveEffect, LoyaltyModel, TrainedLoyalty, UserSummary, day_of, required_observations};
use lodestone_rules::{CompiledCampaign, EntryKind, IncentiveCampaign, NO_INCENTIVE, RuleChange, RuleSnapshot};
use lodestone_state::{CampaignUse, DECISIONS_MAX};
use lodestone_telemetry::call;
use prost_types::Timestamp;
use std::{collections::BTreeMap, sync::Arc};
use uuid::Uuid;

const MICROS: f64 = 1e6;

/// A request for a decision.
#[derive(Debug, Clone)]
pub struct DecideRequest {
    pub decision_id: String,
    pub campaign_id: String,
    pub user: UserId,
    /// Empty: that of the campaign.
    pub currency: String,
    pub customer_groups: Vec<String>,
}

/// Why a user receives an incentive or none. The numbers are those of `lodestone.v1.IncentiveReason`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum IncentiveReason {
    Randomised = 1,
    Gain = 2,
    NoGain = 3,
    Holdout = 4,
    NoModel = 5,
    NotActive = 6,
    Excluded = 7,
    UserLimit = 8,
    Budget = 9,
    OtherCurrency = 10,
    UnknownUser = 11,
}

impl IncentiveReason {
    /// Returns the name in `lodestone.v1.IncentiveReason`, without its prefix.
    pub fn name(self) -> &'static str {
        match self {
            Self::Randomised => "RANDOMISED",
            Self::Gain => "GAIN",
            Self::NoGain => "NO_GAIN",
            Self::Holdout => "HOLDOUT",
            Self::NoModel => "NO_MODEL",
            Self::NotActive => "NOT_ACTIVE",
            Self::Excluded => "EXCLUDED",
            Self::UserLimit => "USER_LIMIT",
            Self::Budget => "BUDGET",
            Self::OtherCurrency => "OTHER_CURRENCY",
            Self::UnknownUser => "UNKNOWN_USER",
        }
    }
}

/// The answer to a [`DecideRequest`].
#[derive(Debug, Clone)]
pub enum IncentiveAnswer {
    /// A stored decision with the log position at which it is in effect.
    Decided { decision: Arc<IncentiveDecision>, log_position: u64 },
    /// Nothing is stored.
    NotDecided {
        reason: IncentiveReason,
        explanation: String,
        /// Missing observations by incentive, only with [`IncentiveReason::NoModel`].
        missing: BTreeMap<String, u64>,
        log_position: u64,
    },
}

/// The state of a campaign.
#[derive(Debug, Clone, PartialEq)]
pub struct CampaignStatus {
    pub used: CampaignUse,
    /// The observations that its pilot lacks at most, by incentive.
    pub missing_observations: BTreeMap<String, u64>,
    /// The lower of the two neighbouring prices of the grid between which decisions draw. At 0, a scarce budget refuses some of
    /// the gains below the first price of the grid.
    pub budget_price: f64,
}

impl Engine {
    /// Writes a valid campaign, whose times and etag are set here.
    pub async fn put_campaign(
        &self,
        campaign: IncentiveCampaign,
        mode: PutMode,
    ) -> Result<(Arc<CompiledCampaign>, u64), EngineError> {
        let id = campaign.campaign_id.clone();
        let change = |rules: &RuleSnapshot, now: Timestamp| {
            let known = rules.campaigns.get(&campaign.campaign_id).map(|known| &known.campaign);
            let (kind, count) = (EntryKind::IncentiveCampaign, rules.campaigns.len());
            Target { kind, id: &campaign.campaign_id, count }.check(known.map(|known| known.etag.as_str()), &mode)?;
            if let Some(known) = known.filter(|known| known.currency_code != campaign.currency_code) {
                let description = format!(
                    "is {}; it must stay {}, in which decisions count for the budget. Create another campaign",
                    campaign.currency_code, known.currency_code
                );
                return Err(invalid(kind, "currency_code", description));
            }
            if let (PutMode::Create, Some(end)) = (&mode, &campaign.end_time)
                && (end.seconds, end.nanos) <= (now.seconds, now.nanos)
            {
                let description =
                    "is in the past, so that nothing would be given; choose a later time, or leave it out";
                return Err(invalid(kind, "end_time", description.to_owned()));
            }
            let create_time = known.map_or(Some(now), |known| known.create_time);
            let etag = String::new();
            Ok(RuleChange::PutCampaign(IncentiveCampaign { create_time, update_time: Some(now), etag, ..campaign }))
        };
        let (rules, position) = self.write_rules(change).await?;
        let written = rules.campaigns.get(&id).cloned();
        let lost = || EngineError::Internal(format!("the campaign {id} is not in effect after its write"));
        let written = written.ok_or_else(lost)?;
        let incentives = &written.campaign.incentives;
        let is_known = |id: &str| id == NO_INCENTIVE || incentives.iter().any(|of| of.incentive_id == id);
        self.metrics.retain_incentives(&id, is_known);
        Ok((written, position))
    }

    /// Returns what a campaign has used and what its pilot lacks.
    pub fn campaign_status(&self, campaign: &CompiledCampaign) -> CampaignStatus {
        let now = UnixMillis::now();
        let mut incentives = self.generations.state.incentives.lock();
        let used = incentives.campaign_use(campaign.id(), now);
        let budget_price = budget_price(&mut incentives, campaign, now).low;
        drop(incentives);
        let missing_observations = missing_at_most(campaign, &used);
        CampaignStatus { used, missing_observations, budget_price }
    }

    /// Returns the reason why an event of a coupon counts for no campaign. None if it counts, and for other events. A
    /// server without decisions has none for a coupon either: the coupons are those of the shop.
    pub fn uncounted_coupon(&self, event: &Event) -> Option<&'static str> {
        let is_of_coupon = matches!(event.kind, EventKind::IncentiveShown | EventKind::IncentiveRedeemed);
        if !is_of_coupon || event.coupon.is_empty() {
            return None;
        }
        let incentives = self.generations.state.incentives.lock();
        match incentives.decision(&event.coupon) {
            None if incentives.is_empty() => None,
            None => Some("no decision of this server has this id"),
            Some(decision) if decision.user != event.user.as_str() => {
                Some("the decision with this id is of another user")
            }
            Some(decision) if !decision.is_given() => Some("the decision with this id gave no incentive"),
            Some(_) => None,
        }
    }

    /// Decides about an incentive. A decision is stored when this returns. One decision is made and stored at a time, so
    /// that each sees all others.
    pub async fn decide_incentive(&self, request: DecideRequest) -> Result<IncentiveAnswer, EngineError> {
        let guard = self.incentive_writes.clone().lock_owned().await;
        let known = self.generations.state.incentives.lock().decision(&request.decision_id);
        if let Some(decision) = known {
            if decision.campaign_id != request.campaign_id || decision.user != request.user.as_str() {
                return Err(EngineError::DecisionExists { id: request.decision_id });
            }
            return Ok(IncentiveAnswer::Decided { decision, log_position: self.writer.position() });
        }
        let rules = self.rules();
        let (kind, id) = (EntryKind::IncentiveCampaign, &request.campaign_id);
        let campaign =
            rules.campaigns.get(id).ok_or_else(|| EngineError::Rule(RuleError::NotFound { kind, id: id.clone() }))?;
        let (reason, decision) = match self.choose(campaign, &request)? {
            IncentiveOutcome::Decided(reason, decision) => (reason, *decision),
            IncentiveOutcome::NotDecided(reason, explanation, missing) => {
                self.metrics.decided_incentive(campaign.id(), NO_INCENTIVE, reason.name());
                let log_position = self.writer.position();
                return Ok(IncentiveAnswer::NotDecided { reason, explanation, missing, log_position });
            }
        };
        let change = Change::Decision(decision.clone());
        let queued = self.writer.queue(vec![(change, None)]).await.map_err(EngineError::Log)?;
        // In a task of its own, because a caller that stops waiting must not release the guard before the decision counts.
        let (metrics, stored) = (self.metrics.clone(), decision.clone());
        let written = call::spawn(async move {
            let written = call::timed("write", queued.written()).await;
            drop(guard);
            if written.is_ok() {
                let incentive = if stored.is_given() { &*stored.incentive_id } else { NO_INCENTIVE };
                metrics.decided_incentive(&stored.campaign_id, incentive, reason.name());
            }
            written
        });
        let written = written.await.map_err(|error| EngineError::Internal(error.to_string()))?;
        let log_position = written.map_err(EngineError::Log)?.log_position;
        Ok(IncentiveAnswer::Decided { decision: Arc::new(decision), log_position })
    }

    fn choose(&self, campaign: &CompiledCampaign, request: &DecideRequest) -> Result<IncentiveOutcome, EngineError> {
        let (now, of) = (UnixMillis::now(), &campaign.campaign);
        if !request.currency.is_empty() && request.currency != of.currency_code {
            let (sent, own) = (&request.currency, &of.currency_code);
            let text = format!("the request is in {sent}, and the campaign's budget and costs are in {own}");
            return Ok(not_decided(IncentiveReason::OtherCurrency, text));
        }
        if !campaign.is_active(now) {
            return Ok(not_decided(IncentiveReason::NotActive, "the campaign has not begun, or has ended"));
        }
        let Some(summary) = self.generations.state.users.summary(&request.user).filter(|of| of.event_count() > 0)
        else {
            return Ok(not_decided(IncentiveReason::UnknownUser, "the server knows no event of the user"));
        };
        // The request states the currency in which the user purchases now; without one, the purchases so far do.
        if request.currency.is_empty() && summary.spends_only_in_others(&of.currency_code) {
            let found = summary.main_spend().map_or("", |spend| spend.currency());
            let text = format!(
                "the user has purchased in {found} and never in {}, in which the campaign's budget and costs are; a request \
                 with a `currency_code` of {} decides",
                of.currency_code, of.currency_code
            );
            return Ok(not_decided(IncentiveReason::OtherCurrency, text));
        }
        let excluded = request.customer_groups.iter().find(|group| of.excluded_customer_groups.contains(group));
        if let Some(group) = excluded {
            let text = format!("the campaign excludes the customer group `{group}`");
            return Ok(not_decided(IncentiveReason::Excluded, text));
        }
        let routes = self.generations.routes();
        let loaded = routes.of(&request.user);
        let day = day_of(now);
        if !of.excluded_segments.is_empty() {
            let segment = model_of(loaded)?.segment(&summary, day);
            if of.excluded_segments.contains(&segment.number()) {
                let text = format!("the campaign excludes the user's segment, {}", segment.name());
                return Ok(not_decided(IncentiveReason::Excluded, text));
            }
        }
        let since = UnixMillis(now.0 - i64::from(of.user_limit_days) * UnixMillis::DAY);
        let (used, decided, total, price) = {
            let mut incentives = self.generations.state.incentives.lock();
            let decided = incentives.user_decisions_since(campaign.id(), request.user.as_str(), since);
            let used = incentives.campaign_use(campaign.id(), now);
            (used, decided, incentives.len(), budget_price(&mut incentives, campaign, now))
        };
        if decided >= of.user_limit as usize {
            let text = format!(
                "the user has {decided} decisions of {} days; the limit is {}",
                of.user_limit_days, of.user_limit
            );
            return Ok(not_decided(IncentiveReason::UserLimit, text));
        }
        if total >= DECISIONS_MAX {
            return Err(EngineError::TooManyDecisions { limit: DECISIONS_MAX });
        }
        let is_holdout = is_holdout(campaign.id(), of.holdout_share, &request.user);
        let draft = Draft { campaign, request, used: &used, now, is_holdout };
        let available = draft.available();
        if available.is_empty() {
            let cheapest = of.incentives.iter().filter_map(|incentive| incentive.cost_micros).min().unwrap_or(0);
            let text = format!(
                "{:.2} of the budget of {:.2} {} are left, and the cheapest incentive costs {:.2}; or each \
                 incentive has reached `user_count_max` decisions",
                draft.left_micros().max(0) as f64 / MICROS,
                of.budget_micros as f64 / MICROS,
                of.currency_code,
                cheapest as f64 / MICROS
            );
            return Ok(not_decided(IncentiveReason::Budget, text));
        }
        Ok(match campaign.is_pilot() {
            true => draft.randomised(&available, draw()),
            false => match &*loaded.generation.loyalty {
                TrainedLoyalty::Model(model) => match effects(model, campaign.id(), &summary, day) {
                    Some(effects) => draft.targeted(&effects, price, draw()),
                    None => no_model(model, campaign, &used),
                },
                TrainedLoyalty::Missing { reason } => IncentiveOutcome::NotDecided(
                    IncentiveReason::NoModel,
                    format!("the bundle has no loyalty model: {reason}"),
                    missing_at_most(campaign, &used),
                ),
            },
        })
    }
}

/// Returns a random number from 0 to 1, without 1.
fn draw() -> f64 {
    // The last 32 bits of a version 7 UUID are random; a counter precedes them, which hardly changes within a millisecond.
    f64::from(Uuid::now_v7().as_u128() as u32) / 4_294_967_296.0
}

fn effects<'a>(
    model: &'a LoyaltyModel,
    campaign_id: &str,
    summary: &UserSummary,
    day: u16,
) -> Option<BTreeMap<&'a str, IncentiveEffect>> {
    Some(model.incentive_effects(campaign_id, summary, day)?.into_iter().collect())
}

/// Returns the observations that a pilot lacks if the purchase probability is 0.5, by incentive.
fn missing_at_most(campaign: &CompiledCampaign, used: &CampaignUse) -> BTreeMap<String, u64> {
    let required = required_observations(0.5, campaign.minimum_effect()) as u64;
    let arms = campaign.campaign.incentives.iter().map(|incentive| incentive.incentive_id.as_str());
    let missing = |arm: &str| required.saturating_sub(used.randomised_counts.get(arm).copied().unwrap_or(0));
    let missing = std::iter::once("").chain(arms).map(|arm| (arm.to_owned(), missing(arm)));
    missing.filter(|(_, missing)| *missing > 0).collect()
}

fn no_model(model: &LoyaltyModel, campaign: &CompiledCampaign, used: &CampaignUse) -> IncentiveOutcome {
    let (text, missing) = match model.campaign_uplift(campaign.id()) {
        Some(uplift) => {
            let missing = uplift.evidence.iter().filter(|of| of.missing > 0);
            (uplift.reason.clone(), missing.map(|of| (of.incentive.clone(), of.missing as u64)).collect())
        }
        None => {
            let text = "the bundle was trained without decisions of this campaign; run it with the allocation RANDOMISED, \
                        then train";
            (text.to_owned(), missing_at_most(campaign, used))
        }
    };
    IncentiveOutcome::NotDecided(IncentiveReason::NoModel, text, missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_of_one_moment_are_independent() {
        let draws: Vec<f64> = (0..4000).map(|_| draw()).collect();
        let below = draws.iter().filter(|draw| **draw < 0.5).count();
        assert!((1800..2200).contains(&below), "{below} of 4000 are below a half");
        // Of two independent numbers from 0 to 1, the distance is below 0.01 with a probability of 0.02.
        let near = draws.windows(2).filter(|pair| (pair[0] - pair[1]).abs() < 0.01).count();
        assert!(near < 160, "{near} of 3999 follow a near one");
    }
}
