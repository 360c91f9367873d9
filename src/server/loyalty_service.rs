//! LoyaltyService: scores of signed-in users.
use super::{
    convert,
    deadline::handler_deadline,
    guard::guarded,
    proto::{self, loyalty_service_server::LoyaltyService},
    rule_service::checked,
    services::{Services, list_size},
    status,
    violations::Violations,
};
use lodestone_core::ids::UserId;
use lodestone_engine::{AtRiskPage, AtRiskRequest, UserLoyalty};
use lodestone_events::EventKind;
use lodestone_loyalty::{
    Condition, Driver, Estimate, Explanation, HorizonScore, LoyaltyScore, RiskScore, Segment, Spend, UserSummary,
};
use prost_types::Timestamp;
use std::time::Duration;
use tonic::{Request, Response, Status};

/// Number of users per page and per batch.
const PAGE_SIZE_DEFAULT: usize = 100;
pub(super) const USERS_MAX: usize = 1000;
/// Longest time of BatchGetLoyalty and ListAtRisk, and that of a caller who sets none.
const DEADLINE: Duration = Duration::from_secs(60);

fn user_id(violations: &mut Violations, field: &str, id: &str) -> Option<UserId> {
    violations.keep(field, UserId::signed_in(id))
}

#[tonic::async_trait]
impl LoyaltyService for Services {
    async fn get_loyalty(
        &self,
        request: Request<proto::GetLoyaltyRequest>,
    ) -> Result<Response<proto::GetLoyaltyResponse>, Status> {
        let response = async {
            let id = request.into_inner().user_id;
            let mut violations = Violations::default();
            let user = user_id(&mut violations, "user_id", &id);
            checked(violations)?;
            let users: Vec<UserId> = user.into_iter().collect();
            let scored = self.engine.loyalty(&users).map_err(status::of)?.pop();
            let generation = scored.as_ref().map(|scored| scored.generation.to_string()).unwrap_or_default();
            let loyalty = scored.map(|scored| loyalty(id, &scored, true));
            Ok(Response::new(proto::GetLoyaltyResponse { loyalty, generation }))
        };
        guarded(&self.metrics, "GetLoyalty", response).await
    }

    async fn batch_get_loyalty(
        &self,
        request: Request<proto::BatchGetLoyaltyRequest>,
    ) -> Result<Response<proto::BatchGetLoyaltyResponse>, Status> {
        let response = async {
            let deadline = handler_deadline(request.metadata().as_ref(), DEADLINE, DEADLINE);
            let ids = request.into_inner().user_ids;
            list_size("user_ids", ids.len(), USERS_MAX)?;
            let mut violations = Violations::default();
            let parsed = ids.iter().enumerate().map(|(index, id)| {
                let field = format!("user_ids[{index}]");
                user_id(&mut violations, &field, id)
            });
            let users: Vec<UserId> = parsed.collect::<Vec<_>>().into_iter().flatten().collect();
            checked(violations)?;
            let scored = self.engine.batch_loyalty(&users, deadline).await.map_err(status::of)?;
            let loyalties = ids.into_iter().zip(&scored).map(|(id, scored)| loyalty(id, scored, false)).collect();
            Ok(Response::new(proto::BatchGetLoyaltyResponse { loyalties }))
        };
        guarded(&self.metrics, "BatchGetLoyalty", response).await
    }

    async fn list_at_risk(
        &self,
        request: Request<proto::ListAtRiskRequest>,
    ) -> Result<Response<proto::ListAtRiskResponse>, Status> {
        let response = async {
            let deadline = handler_deadline(request.metadata().as_ref(), DEADLINE, DEADLINE);
            let sent = request.into_inner();
            let mut violations = Violations::default();
            let request = AtRiskRequest {
                segments: segments(&mut violations, &sent.segments),
                currency: convert::currency(&mut violations, "currency_code", &sent.currency_code),
                page_size: violations.size("page_size", sent.page_size, PAGE_SIZE_DEFAULT, USERS_MAX),
                page_token: sent.page_token,
            };
            let notices = checked(violations)?;
            let page = self.engine.list_at_risk(&request, deadline).await.map_err(status::of)?;
            Ok(Response::new(proto::ListAtRiskResponse { notices, ..at_risk_response(page) }))
        };
        guarded(&self.metrics, "ListAtRisk", response).await
    }
}

fn segments(violations: &mut Violations, sent: &[i32]) -> Vec<Segment> {
    violations.count("segments", sent.len(), Segment::ALL.len());
    let mut segments = Vec::new();
    for (index, number) in sent.iter().take(Segment::ALL.len()).enumerate() {
        match Segment::ALL.into_iter().find(|segment| segment_to_proto(*segment) as i32 == *number) {
            Some(segment) => segments.push(segment),
            None => violations.add(
                format_args!("segments[{index}]"),
                format!("is {number}; it must be a segment other than LOYALTY_SEGMENT_UNSPECIFIED, 1 to 6"),
            ),
        }
    }
    segments
}

fn segment_to_proto(segment: Segment) -> proto::LoyaltySegment {
    match segment {
        Segment::New => proto::LoyaltySegment::New,
        Segment::Growing => proto::LoyaltySegment::Growing,
        Segment::Loyal => proto::LoyaltySegment::Loyal,
        Segment::AtRisk => proto::LoyaltySegment::AtRisk,
        Segment::Lapsing => proto::LoyaltySegment::Lapsing,
        Segment::Lost => proto::LoyaltySegment::Lost,
    }
}

fn driver_to_proto(driver: Driver) -> proto::LoyaltyDriver {
    match driver {
        Driver::PurchaseCount => proto::LoyaltyDriver::PurchaseCount,
        Driver::LastPurchase => proto::LoyaltyDriver::LastPurchase,
        Driver::CustomerAge => proto::LoyaltyDriver::CustomerAge,
        Driver::RecentPurchases => proto::LoyaltyDriver::RecentPurchases,
        Driver::PurchaseRhythm => proto::LoyaltyDriver::PurchaseRhythm,
        Driver::PurchaseValue => proto::LoyaltyDriver::PurchaseValue,
        Driver::Visits => proto::LoyaltyDriver::Visits,
        Driver::Browsing => proto::LoyaltyDriver::Browsing,
        Driver::Refunds => proto::LoyaltyDriver::Refunds,
        Driver::Engagement => proto::LoyaltyDriver::Engagement,
        Driver::Incentives => proto::LoyaltyDriver::Incentives,
    }
}

fn at_risk_response(page: AtRiskPage) -> proto::ListAtRiskResponse {
    let user = |(user, score): (UserId, RiskScore)| proto::UserAtRisk {
        user_id: user.signed_in_id().unwrap_or_default().to_owned(),
        segment: segment_to_proto(score.segment).into(),
        value_at_risk: score.value_at_risk(),
        return_probability: score.return_probability,
        purchase_probability: score.purchase_probability,
        expected_value: score.expected_value,
    };
    proto::ListAtRiskResponse {
        users: page.users.into_iter().map(user).collect(),
        next_page_token: page.next_page_token,
        total_size: page.total_size as i32,
        currency_code: page.currency,
        horizon_days: page.horizon_days as i32,
        snapshot_time: Some(convert::timestamp(page.at)),
        notices: Vec::new(),
    }
}

fn estimate(of: Estimate) -> Option<proto::IntervalEstimate> {
    Some(proto::IntervalEstimate { value: of.value, low: of.low, high: of.high })
}

fn explanation(of: &Explanation) -> proto::LogitExplanation {
    let contribution = |(driver, logit): &(Driver, f64)| proto::DriverContribution {
        driver: driver_to_proto(*driver).into(),
        logit: *logit,
    };
    proto::LogitExplanation { base_logit: of.base_logit, contributions: of.drivers.iter().map(contribution).collect() }
}

/// `in_detail`: with explanations and summary.
fn loyalty(user_id: String, scored: &UserLoyalty, in_detail: bool) -> proto::Loyalty {
    let score: &LoyaltyScore = &scored.score;
    let condition = |condition: &Condition| proto::SegmentCondition {
        quantity: condition.quantity.name().to_owned(),
        value: score.quantities.get(condition.quantity),
        min: condition.min,
        max: condition.max,
    };
    let explained = |of: &Option<Explanation>| of.as_ref().filter(|_| in_detail).map(explanation);
    let horizon = |of: &HorizonScore| proto::LoyaltyScore {
        horizon_days: of.days as i32,
        purchase_probability: estimate(of.purchase),
        return_probability: estimate(of.return_visit),
        expected_purchases: estimate(of.purchases),
        expected_value: of.value.and_then(estimate),
        purchase_explanation: explained(&of.purchase_explanation),
        return_explanation: explained(&of.return_explanation),
        purchase_probability_change: of.earlier.map(|earlier| of.purchase.value - earlier[0]),
        return_probability_change: of.earlier.map(|earlier| of.return_visit.value - earlier[1]),
    };
    proto::Loyalty {
        user_id,
        has_history: !score.is_prior,
        segment: segment_to_proto(score.rule.segment).into(),
        segment_conditions: score.rule.conditions.iter().map(condition).collect(),
        currency_code: score.currency.clone(),
        scores: score.horizons.iter().map(horizon).collect(),
        summary: scored.summary.as_ref().filter(|_| in_detail).map(|of| summary(of, scored.day)),
    }
}

fn summary(of: &UserSummary, day: u16) -> proto::LoyaltySummary {
    let time = |seconds: u32| Some(Timestamp { seconds: seconds.into(), nanos: 0 });
    let purchases = of.purchase_times_s();
    let count = |number: u32| i32::try_from(number).unwrap_or(i32::MAX);
    let event_count = |kind: EventKind| {
        (of.count(kind) > 0).then(|| proto::EventTypeCount { r#type: kind as i32, count: count(of.count(kind)) })
    };
    let value = |spend: &Spend| proto::CurrencyValue {
        currency_code: spend.currency().to_owned(),
        purchase_count: count(spend.purchases),
        bought_micros: spend.bought_micros,
        refunded_micros: spend.refunded_micros,
        decayed_values: of.decayed_value(spend, day).into(),
    };
    let (clicks, attributed_purchases) = of.attributed();
    proto::LoyaltySummary {
        event_counts: EventKind::ALL.into_iter().filter_map(event_count).collect(),
        first_event_time: time(of.first_s()),
        last_event_time: time(of.last_s()),
        first_purchase_time: purchases.and_then(|(first, _)| time(first)),
        last_purchase_time: purchases.and_then(|(_, last)| time(last)),
        purchase_days: count(of.purchase_days()),
        visit_days: count(of.visit_days()),
        session_count: count(of.sessions()),
        purchase_interval_days: of.interval_mean(),
        purchase_interval_variation: of.interval_variation(),
        cadence_drift: of.cadence_drift(),
        decayed_purchases: of.decayed_purchases(day).into(),
        values: of.spend().map(value).collect(),
        other_currency_event_count: count(of.other_currency_events()),
        coupon_purchase_count: count(of.coupons()),
        attributed_click_count: count(clicks),
        attributed_purchase_count: count(attributed_purchases),
        mean_stars: of.mean_stars(),
        abandoned_cart_count: count(of.abandoned_carts()),
    }
}
