//! Validated campaigns of incentives. All mistakes of a campaign are reported together.
use crate::{
    compiled::{Problems, RuleProblem, etag, limits},
    data::{Benefit, Incentive, IncentiveAllocation, IncentiveCampaign},
};
use lodestone_core::{ids::ItemId, units::UnixMillis};

/// Means no incentive in files of decisions and metrics.
pub const NO_INCENTIVE: &str = "none";
/// The minimum effect of a campaign without one.
const MINIMUM_EFFECT: f64 = 0.02;
/// The last number of `lodestone.v1.LoyaltySegment`.
const SEGMENT_MAX: i32 = 6;

/// A validated campaign.
#[derive(Debug, Clone, PartialEq)]
pub struct CompiledCampaign {
    /// With its etag.
    pub campaign: IncentiveCampaign,
    start: Option<UnixMillis>,
    end: Option<UnixMillis>,
}

impl CompiledCampaign {
    /// Validates a campaign and sets its etag. Returns all mistakes.
    pub fn new(mut campaign: IncentiveCampaign) -> Result<Self, Vec<RuleProblem>> {
        let mut problems = Problems::default();
        problems.id("campaign_id", &campaign.campaign_id);
        let characters = campaign.title.chars().count();
        if characters > limits::TITLE_CHARS {
            problems.add("title", format!("has {characters} characters; the limit is {}", limits::TITLE_CHARS));
        }
        let code = &campaign.currency_code;
        // Not whether it is in use: stored campaigns stay valid when their currency no longer is.
        if code.len() != 3 || !code.bytes().all(|byte| byte.is_ascii_uppercase()) {
            let shown: String = code.chars().take(40).collect();
            problems.add("currency_code", format!("`{shown}` is not an ISO 4217 code of 3 capital letters"));
        }
        problems.within("budget_micros", campaign.budget_micros, 0, limits::AMOUNT_MICROS);
        if !(campaign.margin > 0.0 && campaign.margin <= 1.0) {
            problems.add("margin", format!("is {}; it must be above 0 and at most 1", campaign.margin));
        }
        problems.within("holdout_share", campaign.holdout_share, 0.01, 0.9);
        match IncentiveAllocation::try_from(campaign.allocation) {
            Ok(IncentiveAllocation::Randomised | IncentiveAllocation::Targeted) => {}
            _ => problems
                .add("allocation", format!("is {}; it must be RANDOMISED (1) or TARGETED (2)", campaign.allocation)),
        }
        problems.within("user_limit", campaign.user_limit, 1, 1000);
        problems.within("user_limit_days", campaign.user_limit_days, 1, 366);
        if campaign.minimum_effect != 0.0 {
            problems.within("minimum_effect", campaign.minimum_effect, 0.005, 0.5);
        }
        problems.within("budget_price", campaign.budget_price, 0.0, 1000.0);
        if campaign.budget_price > 0.0 && campaign.allocation == IncentiveAllocation::Randomised as i32 {
            problems.add("budget_price", "has no effect on a randomised pilot; leave it out");
        }
        let start = problems.time("start_time", campaign.start_time.as_ref());
        let end = problems.time("end_time", campaign.end_time.as_ref());
        if let (Some(start), Some(end)) = (start, end)
            && start >= end
        {
            problems.add("end_time", "must be after start_time");
        }
        problems.count("excluded_segments", campaign.excluded_segments.len(), SEGMENT_MAX as usize);
        for (index, segment) in campaign.excluded_segments.iter().take(SEGMENT_MAX as usize).enumerate() {
            problems.within(format_args!("excluded_segments[{index}]"), *segment, 1, SEGMENT_MAX);
        }
        let groups = &campaign.excluded_customer_groups;
        problems.count("excluded_customer_groups", groups.len(), limits::CONDITIONS);
        for (index, group) in groups.iter().take(limits::CONDITIONS).enumerate() {
            if group.is_empty() || group.len() > limits::AUDIENCE_BYTES {
                let description = format!("has {} bytes; it must have 1 to {}", group.len(), limits::AUDIENCE_BYTES);
                problems.add(format_args!("excluded_customer_groups[{index}]"), description);
            }
        }
        match campaign.incentives.len() {
            0 => problems.add("incentives", "is empty; at least one incentive is needed"),
            count => problems.count("incentives", count, limits::INCENTIVES),
        }
        for (index, incentive) in campaign.incentives.iter().take(limits::INCENTIVES).enumerate() {
            self::incentive(&mut problems, index, incentive);
            let earlier = &campaign.incentives[..index];
            if earlier.iter().any(|other| other.incentive_id == incentive.incentive_id) {
                problems.add(format_args!("incentives[{index}].incentive_id"), "is the id of an earlier incentive");
            }
        }
        match problems.0.is_empty() {
            false => Err(problems.0),
            true => {
                campaign.etag.clear();
                campaign.etag = etag(&campaign);
                Ok(Self { campaign, start, end })
            }
        }
    }

    pub fn id(&self) -> &str {
        &self.campaign.campaign_id
    }

    /// Returns the campaign as the log stores it.
    pub fn stored(&self) -> IncentiveCampaign {
        IncentiveCampaign { etag: String::new(), ..self.campaign.clone() }
    }

    /// Returns whether the campaign gives incentives at a time.
    pub fn is_active(&self, at: UnixMillis) -> bool {
        self.start.is_none_or(|start| start <= at) && self.end.is_none_or(|end| at < end)
    }

    /// Returns the time from which on it gives nothing.
    pub fn end(&self) -> Option<UnixMillis> {
        self.end
    }

    /// Returns whether it is a randomised pilot.
    pub fn is_pilot(&self) -> bool {
        self.campaign.allocation == IncentiveAllocation::Randomised as i32
    }

    /// Returns the least change of the purchase probability that a pilot must be able to show.
    pub fn minimum_effect(&self) -> f64 {
        if self.campaign.minimum_effect == 0.0 { MINIMUM_EFFECT } else { self.campaign.minimum_effect }
    }
}

fn incentive(problems: &mut Problems, index: usize, incentive: &Incentive) {
    let at = |field: &str| format!("incentives[{index}].{field}");
    problems.id(&at("incentive_id"), &incentive.incentive_id);
    if incentive.incentive_id == NO_INCENTIVE {
        problems
            .add(at("incentive_id"), format!("is `{NO_INCENTIVE}`, which means no incentive in files of decisions"));
    }
    match &incentive.benefit {
        None => problems.add(at("benefit"), "is missing; set one of its fields"),
        Some(Benefit::PercentOff(percent)) => {
            if !(*percent > 0.0 && *percent <= 100.0) {
                problems.add(at("percent_off"), format!("is {percent}; it must be above 0 and at most 100"));
            }
        }
        Some(Benefit::AmountOffMicros(amount)) => {
            problems.within(at("amount_off_micros"), *amount, 1, limits::AMOUNT_MICROS);
        }
        Some(Benefit::FreeShipping(true) | Benefit::EarlyAccess(true)) => {}
        Some(Benefit::FreeShipping(false)) => problems.add(at("free_shipping"), "is false; it must be true"),
        Some(Benefit::EarlyAccess(false)) => problems.add(at("early_access"), "is false; it must be true"),
        Some(Benefit::GiftItemId(id)) => {
            if let Err(error) = ItemId::parse(id) {
                problems.add(at("gift_item_id"), error.to_string());
            }
        }
        Some(Benefit::Points(points)) => problems.within(at("points"), *points, 1, 1_000_000_000),
    }
    match incentive.cost_micros {
        None => problems.add(at("cost_micros"), "is missing; set the cost of one redemption, 0 if there is none"),
        Some(cost) => problems.within(at("cost_micros"), cost, 0, limits::AMOUNT_MICROS),
    }
    problems.within(at("valid_days"), incentive.valid_days, 1, 366);
    if incentive.user_count_max < 0 {
        problems.add(at("user_count_max"), format!("is {}; it must be 0 (no limit) or more", incentive.user_count_max));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn campaign() -> IncentiveCampaign {
        IncentiveCampaign {
            campaign_id: "winter".into(),
            currency_code: "EUR".into(),
            budget_micros: 100,
            margin: 0.3,
            holdout_share: 0.1,
            allocation: 1,
            user_limit: 1,
            user_limit_days: 30,
            incentives: vec![Incentive {
                incentive_id: "ten".into(),
                benefit: Some(Benefit::PercentOff(10.0)),
                cost_micros: Some(5),
                valid_days: 14,
                user_count_max: 0,
            }],
            ..IncentiveCampaign::default()
        }
    }

    #[test]
    fn every_mistake_is_reported_with_its_field_and_limit() {
        let good = CompiledCampaign::new(campaign()).unwrap();
        assert_eq!((good.campaign.etag.len(), good.minimum_effect(), good.is_pilot()), (16, 0.02, true));
        let mut bad = campaign();
        (bad.budget_micros, bad.margin, bad.holdout_share, bad.allocation) = (-1, 0.0, 0.0, 0);
        (bad.user_limit, bad.user_limit_days, bad.currency_code) = (-1, 0, "eur".into());
        bad.incentives.push(Incentive {
            cost_micros: None,
            user_count_max: -1,
            benefit: None,
            ..bad.incentives[0].clone()
        });
        let problems = CompiledCampaign::new(bad).unwrap_err();
        let found: Vec<String> = problems.iter().map(|of| format!("{} {}", of.field, of.description)).collect();
        assert_eq!(
            found,
            [
                "currency_code `eur` is not an ISO 4217 code of 3 capital letters",
                "budget_micros is -1; it must be within 0 and 1000000000000000",
                "margin is 0; it must be above 0 and at most 1",
                "holdout_share is 0; it must be within 0.01 and 0.9",
                "allocation is 0; it must be RANDOMISED (1) or TARGETED (2)",
                "user_limit is -1; it must be within 1 and 1000",
                "user_limit_days is 0; it must be within 1 and 366",
                "incentives[1].benefit is missing; set one of its fields",
                "incentives[1].cost_micros is missing; set the cost of one redemption, 0 if there is none",
                "incentives[1].user_count_max is -1; it must be 0 (no limit) or more",
                "incentives[1].incentive_id is the id of an earlier incentive",
            ]
        );
    }
}
