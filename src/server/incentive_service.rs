//! IncentiveService: maintains campaigns of incentives and decides who receives one.
use super::{
    convert,
    guard::guarded,
    proto::{self, incentive_service_server::IncentiveService},
    rule_service::{EntriesPage, checked},
    services::Services,
    status,
    violations::Violations,
};
use lodestone_core::{
    ids::{EventId, UserId},
    units::UnixMillis,
};
use lodestone_engine::{CampaignStatus, DecideRequest, EntryKind, IncentiveAnswer, PutMode};
use lodestone_events::{DecisionEffect, DecisionEstimate, IncentiveDecision};
use lodestone_rules::{NO_INCENTIVE, limits};
use std::collections::BTreeMap;
use tonic::{Request, Response, Status};

impl Services {
    /// Writes the campaign of a request.
    async fn write_campaign(
        &self,
        sent: Option<proto::IncentiveCampaign>,
        mode: impl FnOnce(String) -> PutMode,
    ) -> Result<(Option<proto::IncentiveCampaign>, u64), Status> {
        let mut violations = Violations::default();
        let compiled = convert::incentive_campaign(&mut violations, sent.as_ref());
        checked(violations)?;
        let etag = sent.map(|campaign| campaign.etag).unwrap_or_default();
        let campaign = compiled.map(|compiled| compiled.stored()).unwrap_or_default();
        let (written, log_position) = self.engine.put_campaign(campaign, mode(etag)).await.map_err(status::of)?;
        Ok((Some(convert::incentive_campaign_to_proto(&written)), log_position))
    }
}

fn decide_request(sent: proto::DecideIncentiveRequest) -> Result<DecideRequest, Status> {
    let mut violations = Violations::default();
    // The same limits as those of an event's coupon_id, which names the decision.
    violations.keep("decision_id", EventId::parse(&sent.decision_id));
    let user = violations.keep("user_id", UserId::signed_in(&sent.user_id));
    let currency = convert::currency(&mut violations, "currency_code", &sent.currency_code);
    violations.count("customer_groups", sent.customer_groups.len(), limits::CONDITIONS);
    for (index, group) in sent.customer_groups.iter().take(limits::CONDITIONS).enumerate() {
        if group.is_empty() || group.len() > limits::AUDIENCE_BYTES {
            let description = format!("has {} bytes; it must have 1 to {}", group.len(), limits::AUDIENCE_BYTES);
            violations.add(format_args!("customer_groups[{index}]"), description);
        }
    }
    let Some(user) = user.filter(|_| violations.is_empty()) else { return Err(status::invalid(violations.found)) };
    Ok(DecideRequest {
        decision_id: sent.decision_id,
        campaign_id: sent.campaign_id,
        user,
        currency,
        customer_groups: sent.customer_groups,
    })
}

/// Counts by incentive; no incentive has the name that it has in files of decisions.
fn counts(counts: BTreeMap<String, u64>) -> std::collections::HashMap<String, i64> {
    let name = |incentive: String| if incentive.is_empty() { NO_INCENTIVE.to_owned() } else { incentive };
    counts.into_iter().map(|(incentive, count)| (name(incentive), count as i64)).collect()
}

fn estimate(of: DecisionEstimate) -> Option<proto::IntervalEstimate> {
    Some(proto::IntervalEstimate { value: of.value, low: of.low, high: of.high })
}

fn effect(of: DecisionEffect) -> proto::IncentiveEffect {
    proto::IncentiveEffect {
        purchase_probability: estimate(of.purchase_probability),
        gain: estimate(of.gain),
        expected_cost: of.expected_cost,
    }
}

fn decided(of: &IncentiveDecision, consistency_token: String) -> proto::DecideIncentiveResponse {
    let is_given = of.is_given();
    proto::DecideIncentiveResponse {
        incentive_id: of.incentive_id.clone(),
        coupon_id: if is_given { of.decision_id.clone() } else { String::new() },
        reason: of.reason,
        explanation: of.explanation.clone(),
        decided: true,
        propensity: of.propensity,
        expire_time: is_given.then(|| convert::timestamp(UnixMillis(of.expires_ms))),
        effect: of.effect.map(effect),
        missing_observations: Default::default(),
        consistency_token,
    }
}

#[tonic::async_trait]
impl IncentiveService for Services {
    async fn create_incentive_campaign(
        &self,
        request: Request<proto::CreateIncentiveCampaignRequest>,
    ) -> Result<Response<proto::CreateIncentiveCampaignResponse>, Status> {
        let audited = self.audited(
            &request,
            "IncentiveService/CreateIncentiveCampaign",
            request.get_ref().campaign.as_ref().map_or("", |sent| &sent.campaign_id),
        );
        let response = async {
            let (campaign, log_position) =
                self.write_campaign(request.into_inner().campaign, |_| PutMode::Create).await?;
            Ok(Response::new(proto::CreateIncentiveCampaignResponse {
                campaign,
                consistency_token: self.consistency_token(log_position),
            }))
        };
        guarded(&self.metrics, "CreateIncentiveCampaign", audited.run(response)).await
    }

    async fn get_incentive_campaign(
        &self,
        request: Request<proto::GetIncentiveCampaignRequest>,
    ) -> Result<Response<proto::GetIncentiveCampaignResponse>, Status> {
        let response = async {
            let id = request.into_inner().campaign_id;
            let rules = self.engine.rules();
            let campaign = rules.campaigns.get(&id);
            let campaign = campaign.ok_or_else(|| status::entry_not_found(EntryKind::IncentiveCampaign, &id))?;
            let CampaignStatus { used, missing_observations, budget_price } = self.engine.campaign_status(campaign);
            Ok(Response::new(proto::GetIncentiveCampaignResponse {
                campaign: Some(convert::incentive_campaign_to_proto(campaign)),
                r#use: Some(proto::IncentiveCampaignUse {
                    used_micros: used.used_micros,
                    decision_count: used.counts.values().sum::<u64>() as i64,
                    decision_counts: counts(used.counts),
                    redeemed_count: used.redeemed as i64,
                    missing_observations: counts(missing_observations),
                    budget_price,
                }),
            }))
        };
        guarded(&self.metrics, "GetIncentiveCampaign", response).await
    }

    async fn list_incentive_campaigns(
        &self,
        request: Request<proto::ListIncentiveCampaignsRequest>,
    ) -> Result<Response<proto::ListIncentiveCampaignsResponse>, Status> {
        let response = async {
            let proto::ListIncentiveCampaignsRequest { page_size, page_token } = request.into_inner();
            let rules = self.engine.rules();
            let (kind, page) = (EntryKind::IncentiveCampaign, (page_size, page_token.as_str()));
            let page =
                self.entries_page(&rules.campaigns, kind, page, convert::incentive_campaign_to_proto, |of| of.id())?;
            let EntriesPage { entries, next_page_token, notices } = page;
            let total_size = rules.campaigns.len() as i32;
            Ok(Response::new(proto::ListIncentiveCampaignsResponse {
                campaigns: entries,
                next_page_token,
                total_size,
                notices,
            }))
        };
        guarded(&self.metrics, "ListIncentiveCampaigns", response).await
    }

    async fn update_incentive_campaign(
        &self,
        request: Request<proto::UpdateIncentiveCampaignRequest>,
    ) -> Result<Response<proto::UpdateIncentiveCampaignResponse>, Status> {
        let audited = self.audited(
            &request,
            "IncentiveService/UpdateIncentiveCampaign",
            request.get_ref().campaign.as_ref().map_or("", |sent| &sent.campaign_id),
        );
        let response = async {
            let mode = |etag| PutMode::Update { etag };
            let (campaign, log_position) = self.write_campaign(request.into_inner().campaign, mode).await?;
            Ok(Response::new(proto::UpdateIncentiveCampaignResponse {
                campaign,
                consistency_token: self.consistency_token(log_position),
            }))
        };
        guarded(&self.metrics, "UpdateIncentiveCampaign", audited.run(response)).await
    }

    async fn delete_incentive_campaign(
        &self,
        request: Request<proto::DeleteIncentiveCampaignRequest>,
    ) -> Result<Response<proto::DeleteIncentiveCampaignResponse>, Status> {
        let audited =
            self.audited(&request, "IncentiveService/DeleteIncentiveCampaign", &request.get_ref().campaign_id);
        let response = async {
            let proto::DeleteIncentiveCampaignRequest { campaign_id, etag } = request.into_inner();
            let deleted = self.engine.delete_entry(EntryKind::IncentiveCampaign, campaign_id, etag).await;
            Ok(Response::new(proto::DeleteIncentiveCampaignResponse {
                consistency_token: self.consistency_token(deleted.map_err(status::of)?),
            }))
        };
        guarded(&self.metrics, "DeleteIncentiveCampaign", audited.run(response)).await
    }

    async fn decide_incentive(
        &self,
        request: Request<proto::DecideIncentiveRequest>,
    ) -> Result<Response<proto::DecideIncentiveResponse>, Status> {
        let response = async {
            let request = decide_request(request.into_inner())?;
            Ok(Response::new(match self.engine.decide_incentive(request).await.map_err(status::of)? {
                IncentiveAnswer::Decided { decision, log_position } => {
                    decided(&decision, self.consistency_token(log_position))
                }
                IncentiveAnswer::NotDecided { reason, explanation, missing, log_position } => {
                    proto::DecideIncentiveResponse {
                        reason: reason as i32,
                        explanation,
                        missing_observations: counts(missing),
                        consistency_token: self.consistency_token(log_position),
                        ..Default::default()
                    }
                }
            }))
        };
        guarded(&self.metrics, "DecideIncentive", response).await
    }
}
