//! Campaigns of incentives, and decisions about who receives one.
use crate::{
    engine::Engine,
    error::{EngineError, RuleError},
    loyalty::model_of,
    rules::{PutMode, Target, invalid},
};
use lodestone_core::{ids::UserId, units::UnixMillis};
use lodestone_events::{Change, DecisionEffect, DecisionEstimate, Event, EventKind, IncentiveDecision, is_holdout};
use lodestone_loyalty::{
    Estimate, IncentiveEffect, LoyaltyModel, TrainedLoyalty, UserSummary, day_of, required_observations,
};
use lodestone_rules::{
    CompiledCampaign, EntryKind, Incentive, IncentiveCampaign, NO_INCENTIVE, RuleChange, RuleSnapshot,
};
use lodestone_state::{CampaignUse, DECISIONS_MAX};
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

/// A decision before it is written.
enum Choice {
    Decided(IncentiveReason, Box<IncentiveDecision>),
    NotDecided(IncentiveReason, String, BTreeMap<String, u64>),
}

fn not_decided(reason: IncentiveReason, explanation: impl Into<String>) -> Choice {
    Choice::NotDecided(reason, explanation.into(), BTreeMap::new())
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

    /// Returns the use of a campaign, and the observations that its pilot lacks at most, by incentive.
    pub fn campaign_use(&self, campaign: &CompiledCampaign) -> (CampaignUse, BTreeMap<String, u64>) {
        let used = self.generations.state.incentives.lock().campaign_use(campaign.id(), UnixMillis::now());
        let missing = missing_at_most(campaign, &used);
        (used, missing)
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
            Choice::Decided(reason, decision) => (reason, *decision),
            Choice::NotDecided(reason, explanation, missing) => {
                self.metrics.decided_incentive(campaign.id(), NO_INCENTIVE, reason.name());
                let log_position = self.writer.position();
                return Ok(IncentiveAnswer::NotDecided { reason, explanation, missing, log_position });
            }
        };
        let change = Change::Decision(decision.clone());
        let queued = self.writer.queue(vec![(change, None)]).await.map_err(EngineError::Log)?;
        // In a task of its own, because a caller that stops waiting must not release the guard before the decision counts.
        let (metrics, stored) = (self.metrics.clone(), decision.clone());
        let written = tokio::spawn(async move {
            let written = queued.written().await;
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

    fn choose(&self, campaign: &CompiledCampaign, request: &DecideRequest) -> Result<Choice, EngineError> {
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
        let excluded = request.customer_groups.iter().find(|group| of.excluded_customer_groups.contains(group));
        if let Some(group) = excluded {
            let text = format!("the campaign excludes the customer group `{group}`");
            return Ok(not_decided(IncentiveReason::Excluded, text));
        }
        let routes = self.generations.routes();
        let loaded = routes.of(&request.user);
        let day = day_of(now);
        if !of.excluded_segments.is_empty() {
            let segment = model_of(loaded)?.score(Some(&summary), day).rule.segment;
            if of.excluded_segments.contains(&segment.number()) {
                let text = format!("the campaign excludes the user's segment, {}", segment.name());
                return Ok(not_decided(IncentiveReason::Excluded, text));
            }
        }
        let since = UnixMillis(now.0 - i64::from(of.user_limit_days) * UnixMillis::DAY);
        let (used, decided, total) = {
            let mut incentives = self.generations.state.incentives.lock();
            let decided = incentives.user_decisions_since(campaign.id(), request.user.as_str(), since);
            (incentives.campaign_use(campaign.id(), now), decided, incentives.len())
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
        let left = of.budget_micros.saturating_sub(used.used_micros);
        let has_room = |incentive: &&Incentive| {
            let count = used.counts.get(&incentive.incentive_id).copied().unwrap_or(0);
            let is_left = incentive.user_count_max == 0 || count < incentive.user_count_max as u64;
            of.budget_micros > 0 && incentive.cost_micros.unwrap_or(0) <= left && is_left
        };
        let available: Vec<&Incentive> = of.incentives.iter().filter(has_room).collect();
        if available.is_empty() {
            let cheapest = of.incentives.iter().filter_map(|incentive| incentive.cost_micros).min().unwrap_or(0);
            let text = format!(
                "{:.2} of the budget of {:.2} {} are left, and the cheapest incentive costs {:.2}; or each \
                 incentive has reached `user_count_max` decisions",
                left.max(0) as f64 / MICROS,
                of.budget_micros as f64 / MICROS,
                of.currency_code,
                cheapest as f64 / MICROS
            );
            return Ok(not_decided(IncentiveReason::Budget, text));
        }
        let draft =
            Draft { campaign, request, now, is_holdout: is_holdout(campaign.id(), of.holdout_share, &request.user) };
        Ok(match campaign.is_pilot() {
            true => draft.randomised(&available, draw()),
            false => match &*loaded.generation.loyalty {
                TrainedLoyalty::Model(model) => match effects(model, campaign.id(), &summary, day) {
                    Some(effects) => draft.targeted(&available, &effects),
                    None => no_model(model, campaign, &used),
                },
                TrainedLoyalty::Missing { reason } => Choice::NotDecided(
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

fn no_model(model: &LoyaltyModel, campaign: &CompiledCampaign, used: &CampaignUse) -> Choice {
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
    Choice::NotDecided(IncentiveReason::NoModel, text, missing)
}

/// What a decision is about.
struct Draft<'a> {
    campaign: &'a CompiledCampaign,
    request: &'a DecideRequest,
    now: UnixMillis,
    is_holdout: bool,
}

impl Draft<'_> {
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
        }
    }

    /// Draws none or one of the available incentives, all equally probable. `draw`: from 0 to 1.
    fn randomised(&self, available: &[&Incentive], draw: f64) -> Choice {
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
        Choice::Decided(reason, Box::new(IncentiveDecision { is_randomised, explanation, ..decision }))
    }

    /// Chooses the available incentive with the greatest net gain, if its lower bound is above 0.
    fn targeted(&self, available: &[&Incentive], effects: &BTreeMap<&str, IncentiveEffect>) -> Choice {
        let holdout = self.campaign.campaign.holdout_share;
        let price = self.campaign.campaign.budget_price;
        let net = |effect: &IncentiveEffect| effect.gain_micros.value - price * effect.cost_micros;
        let best = |incentives: &mut dyn Iterator<Item = &Incentive>| {
            let known =
                incentives.filter_map(|of| Some((of.incentive_id.clone(), *effects.get(of.incentive_id.as_str())?)));
            let gaining = known.filter(|(_, effect)| effect.gain_lower_micros > 0.0 && net(effect) > 0.0);
            gaining.max_by(|left, right| net(&left.1).total_cmp(&net(&right.1)))
        };
        let chosen = best(&mut available.iter().copied());
        let Some((id, effect)) = chosen else {
            if best(&mut self.campaign.campaign.incentives.iter()).is_some() {
                let text = "the incentives with a gain for this user cost more than what is left of the budget, or have \
                            reached their limits";
                return not_decided(IncentiveReason::Budget, text);
            }
            let explanation = format!(
                "no incentive has a gain above 0 at the lower end of its interval, and above {price} × its expected cost, for \
                 this user"
            );
            let decision = self.decision(IncentiveReason::NoGain, None, 1.0);
            return Choice::Decided(IncentiveReason::NoGain, Box::new(IncentiveDecision { explanation, ..decision }));
        };
        if self.is_holdout {
            let explanation =
                format!("the user is in the hold-out of {holdout} of all users; otherwise {id} would be given");
            let decision = self.decision(IncentiveReason::Holdout, None, holdout);
            return Choice::Decided(IncentiveReason::Holdout, Box::new(IncentiveDecision { explanation, ..decision }));
        }
        let incentive = available.iter().copied().find(|of| of.incentive_id == id);
        let gain = effect.gain_micros.value / MICROS;
        let explanation = format!(
            "{id} is expected to gain {gain:.2} {} after its cost, at least {:.2} at the confidence of the model, and to \
             change the purchase probability by {:+.3}",
            self.campaign.campaign.currency_code,
            effect.gain_lower_micros / MICROS,
            effect.purchase.value
        );
        let effect = Some(DecisionEffect {
            purchase_probability: estimate(effect.purchase, 1.0),
            gain: estimate(effect.gain_micros, MICROS),
            expected_cost: effect.cost_micros / MICROS,
        });
        let decision = self.decision(IncentiveReason::Gain, incentive, 1.0 - holdout);
        Choice::Decided(IncentiveReason::Gain, Box::new(IncentiveDecision { explanation, effect, ..decision }))
    }
}

fn estimate(of: Estimate, unit: f64) -> DecisionEstimate {
    DecisionEstimate { value: of.value / unit, low: of.low / unit, high: of.high / unit }
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
