//! Incentives over gRPC: campaigns, pilots, targeted decisions, limits and budgets under races and after a restart.
use crate::support::{
    bundles::Shop,
    grpc::GrpcServer,
    status::{reason, violations},
};
use lodestone::server::proto::{
    self, IncentiveAllocation, IncentiveReason, event_service_client::EventServiceClient, incentive::Benefit,
    incentive_service_client::IncentiveServiceClient,
};
use lodestone_core::{
    ids::{EventId, ItemId, UserId},
    units::{PriceMicros, Quantity, UnixMillis},
};
use lodestone_dataset::{DatasetEvent, LoggedDecisions, export, write_events};
use lodestone_engine::{Engine, event_log};
use lodestone_events::{Event, EventKind, EventLine, IncentiveDecision, is_holdout};
use lodestone_loyalty::{LoyaltyModel, TrainedLoyalty, fit_campaign_uplift, fit_loyalty};
use lodestone_rollout::HealthBounds;
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::{
    collections::{BTreeMap, BTreeSet},
    process::Command,
    sync::Arc,
};
use tonic::{Code, Status, transport::Channel};

fn client(server: &GrpcServer) -> IncentiveServiceClient<Channel> {
    IncentiveServiceClient::new(server.channel.clone())
}

fn incentive(id: &str, cost_micros: i64) -> proto::Incentive {
    proto::Incentive {
        incentive_id: id.to_owned(),
        benefit: Some(Benefit::PercentOff(10.0)),
        cost_micros: Some(cost_micros),
        valid_days: 14,
        user_count_max: 0,
    }
}

/// A pilot of two incentives that cost 5 and 3, with a budget of 1,000.
pub(crate) fn campaign(id: &str) -> proto::IncentiveCampaign {
    proto::IncentiveCampaign {
        campaign_id: id.to_owned(),
        currency_code: "EUR".to_owned(),
        budget_micros: 1_000_000_000,
        margin: 0.4,
        holdout_share: 0.1,
        allocation: IncentiveAllocation::Randomised.into(),
        user_limit: 1,
        user_limit_days: 30,
        incentives: vec![incentive("ten", 5_000_000), incentive("shipping", 3_000_000)],
        ..Default::default()
    }
}

async fn create(server: &GrpcServer, campaign: proto::IncentiveCampaign) -> Result<proto::IncentiveCampaign, Status> {
    let request = proto::CreateIncentiveCampaignRequest { campaign: Some(campaign) };
    Ok(client(server).create_incentive_campaign(request).await?.into_inner().campaign.unwrap())
}

async fn update(server: &GrpcServer, campaign: proto::IncentiveCampaign) -> Result<proto::IncentiveCampaign, Status> {
    let request = proto::UpdateIncentiveCampaignRequest { campaign: Some(campaign) };
    Ok(client(server).update_incentive_campaign(request).await?.into_inner().campaign.unwrap())
}

async fn used(server: &GrpcServer, id: &str) -> proto::IncentiveCampaignUse {
    let request = proto::GetIncentiveCampaignRequest { campaign_id: id.to_owned() };
    client(server).get_incentive_campaign(request).await.unwrap().into_inner().r#use.unwrap()
}

pub(crate) fn request(campaign: &str, decision: &str, user: &str) -> proto::DecideIncentiveRequest {
    proto::DecideIncentiveRequest {
        decision_id: decision.to_owned(),
        campaign_id: campaign.to_owned(),
        user_id: user.to_owned(),
        ..Default::default()
    }
}

async fn decide(
    server: &GrpcServer,
    request: proto::DecideIncentiveRequest,
) -> Result<proto::DecideIncentiveResponse, Status> {
    Ok(client(server).decide_incentive(request).await?.into_inner())
}

/// Views of users, so that the server knows them.
async fn introduce(server: &GrpcServer, users: impl Iterator<Item = String>) {
    let event = |user: String| proto::Event {
        event_id: format!("view of {user}"),
        r#type: proto::EventType::View.into(),
        viewer: Some(proto::Viewer { user_id: user, ..Default::default() }),
        lines: vec![proto::EventLine { item_id: "i1".to_owned(), ..Default::default() }],
        ..Default::default()
    };
    write(server, users.map(event).collect()).await;
}

async fn write(server: &GrpcServer, events: Vec<proto::Event>) -> Vec<proto::EventResult> {
    let request = proto::WriteEventsRequest { events };
    let written = EventServiceClient::new(server.channel.clone()).write_events(request).await.unwrap().into_inner();
    let is_accepted = |result: &proto::EventResult| result.status == i32::from(proto::EventStatus::Accepted);
    assert!(written.results.iter().all(is_accepted), "{written:?}");
    written.results
}

/// Writes a redemption. Returns the warning about it, or the empty text.
async fn redeem(server: &GrpcServer, user: &str, coupon: &str) -> String {
    let event = proto::Event {
        event_id: format!("redeemed {coupon} by {user}"),
        r#type: proto::EventType::IncentiveRedeemed.into(),
        viewer: Some(proto::Viewer { user_id: user.to_owned(), ..Default::default() }),
        coupon_id: coupon.to_owned(),
        ..Default::default()
    };
    let warnings = write(server, vec![event]).await.remove(0).warnings;
    assert!(warnings.iter().all(|warning| warning.field == "events[0].coupon_id"), "{warnings:?}");
    warnings.into_iter().map(|warning| warning.description).collect()
}

fn reason_of(answer: &proto::DecideIncentiveResponse) -> IncentiveReason {
    IncentiveReason::try_from(answer.reason).unwrap()
}

async fn start(shop: &Shop) -> GrpcServer {
    GrpcServer::start(shop.open(HealthBounds::default())).await
}

async fn restart(shop: &Shop, server: GrpcServer) -> GrpcServer {
    server.end().await;
    GrpcServer::start(shop.reopen(HealthBounds::default()).await).await
}

#[tokio::test(flavor = "multi_thread")]
async fn campaigns_are_created_listed_updated_and_deleted_and_survive_a_restart() {
    let shop = Shop::new();
    let server = start(&shop).await;
    let created = create(&server, campaign("winter")).await.unwrap();
    assert!(created.create_time.is_some() && created.etag.len() == 16);
    let exists = create(&server, campaign("winter")).await.unwrap_err();
    assert_eq!(reason(&exists), (Code::AlreadyExists, "INCENTIVE_CAMPAIGN_EXISTS".to_owned()));
    create(&server, campaign("spring")).await.unwrap();
    let changed = proto::IncentiveCampaign { budget_micros: 7, ..created.clone() };
    let updated = update(&server, changed.clone()).await.unwrap();
    assert_eq!((updated.budget_micros, updated.create_time), (7, created.create_time));
    let stale = update(&server, changed).await.unwrap_err();
    assert_eq!(reason(&stale), (Code::Aborted, "ETAG_MISMATCH".to_owned()));

    let server = restart(&shop, server).await;
    let list = |page_size: i32, page_token: String| {
        let mut client = client(&server);
        async move {
            let request = proto::ListIncentiveCampaignsRequest { page_size, page_token };
            client.list_incentive_campaigns(request).await.unwrap().into_inner()
        }
    };
    let first = list(1, String::new()).await;
    assert_eq!((first.campaigns[0].campaign_id.as_str(), first.total_size), ("spring", 2));
    let second = list(1, first.next_page_token).await;
    assert_eq!(second.campaigns, [updated]);
    assert!(second.next_page_token.is_empty());
    let delete = proto::DeleteIncentiveCampaignRequest { campaign_id: "winter".to_owned(), etag: String::new() };
    client(&server).delete_incentive_campaign(delete.clone()).await.unwrap();
    let gone = client(&server).delete_incentive_campaign(delete).await.unwrap_err();
    assert_eq!(reason(&gone), (Code::NotFound, "INCENTIVE_CAMPAIGN_NOT_FOUND".to_owned()));
    let gone = decide(&server, request("winter", "d", "a")).await.unwrap_err();
    assert_eq!(reason(&gone), (Code::NotFound, "INCENTIVE_CAMPAIGN_NOT_FOUND".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_campaigns_and_requests_are_refused_with_field_value_and_limit() {
    let shop = Shop::new();
    let server = start(&shop).await;
    let mut bad = campaign("no spaces");
    (bad.budget_micros, bad.user_limit, bad.currency_code) = (-1, -5, String::new());
    bad.incentives[0].cost_micros = None;
    bad.incentives[1].cost_micros = Some(-3);
    let refused = violations(&create(&server, bad).await.unwrap_err());
    let fields: Vec<&str> = refused.iter().map(|(field, _)| field.as_str()).collect();
    assert_eq!(
        fields,
        [
            "campaign.campaign_id",
            "campaign.currency_code",
            "campaign.budget_micros",
            "campaign.user_limit",
            "campaign.incentives[0].cost_micros",
            "campaign.incentives[1].cost_micros"
        ]
    );
    assert_eq!(refused[2].1, "is -1; it must be within 0 and 1000000000000000");
    assert_eq!(refused[4].1, "is missing; set the cost of one redemption, 0 if there is none");
    let misspelled = proto::IncentiveCampaign { currency_code: "GPB".to_owned(), ..campaign("c") };
    let expected = "`GPB` is not an ISO 4217 code in use; did you mean GBP?";
    let refused = violations(&create(&server, misspelled).await.unwrap_err());
    assert_eq!(refused, [("campaign.currency_code".to_owned(), expected.to_owned())]);

    create(&server, campaign("c")).await.unwrap();
    introduce(&server, ["a".to_owned()].into_iter()).await;
    let bad = proto::DecideIncentiveRequest {
        currency_code: "euro".to_owned(),
        customer_groups: vec![String::new()],
        ..request("c", "", "")
    };
    let refused = violations(&decide(&server, bad).await.unwrap_err());
    let fields: Vec<&str> = refused.iter().map(|(field, _)| field.as_str()).collect();
    assert_eq!(fields, ["decision_id", "user_id", "currency_code", "customer_groups[0]"]);
}

/// What does not allow a decision is reported, and stores nothing.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_given_without_budget_in_another_currency_or_to_those_who_are_excluded() {
    let shop = Shop::new();
    let server = start(&shop).await;
    introduce(&server, ["a".to_owned()].into_iter()).await;
    let named = |id: &str| campaign(id);
    let (past, future) =
        (prost_types::Timestamp { seconds: 1, nanos: 0 }, prost_types::Timestamp { seconds: 4_000_000_000, nanos: 0 });
    let campaigns = [
        proto::IncentiveCampaign { budget_micros: 0, ..named("none") },
        proto::IncentiveCampaign { budget_micros: 2_999_999, ..named("small") },
        proto::IncentiveCampaign { excluded_customer_groups: vec!["staff".to_owned()], ..named("groups") },
        proto::IncentiveCampaign { start_time: Some(future), ..named("later") },
        named("over"),
        proto::IncentiveCampaign { allocation: IncentiveAllocation::Targeted.into(), ..named("targeted") },
        named("euro"),
    ];
    for campaign in campaigns {
        create(&server, campaign).await.unwrap();
    }
    // A campaign cannot begin after its end; a running one can be ended.
    let ended = |id: &str| proto::IncentiveCampaign { end_time: Some(past), ..named(id) };
    let refused = create(&server, ended("ended")).await.unwrap_err();
    assert!(refused.message().starts_with("campaign.end_time: is in the past"), "{refused}");
    update(&server, ended("over")).await.unwrap();
    let staff =
        proto::DecideIncentiveRequest { customer_groups: vec!["staff".to_owned()], ..request("groups", "d", "a") };
    let dollars = proto::DecideIncentiveRequest { currency_code: "USD".to_owned(), ..request("euro", "d", "a") };
    let bought = proto::Event {
        event_id: "bought in dollars".to_owned(),
        r#type: proto::EventType::Purchase.into(),
        viewer: Some(proto::Viewer { user_id: "american".to_owned(), ..Default::default() }),
        lines: vec![proto::EventLine { item_id: "i1".to_owned(), price_micros: Some(7_000_000), ..Default::default() }],
        currency_code: "USD".to_owned(),
        ..Default::default()
    };
    write(&server, vec![bought]).await;
    for (request, expected) in [
        (request("none", "d", "a"), IncentiveReason::Budget),
        (request("small", "d", "a"), IncentiveReason::Budget),
        (staff, IncentiveReason::Excluded),
        (request("later", "d", "a"), IncentiveReason::NotActive),
        (request("over", "d", "a"), IncentiveReason::NotActive),
        (dollars, IncentiveReason::OtherCurrency),
        (request("euro", "d", "american"), IncentiveReason::OtherCurrency),
        (request("euro", "d", "nobody"), IncentiveReason::UnknownUser),
        (request("targeted", "d", "a"), IncentiveReason::NoModel),
    ] {
        let answer = decide(&server, request.clone()).await.unwrap();
        assert_eq!(reason_of(&answer), expected, "{answer:?}");
        assert!(!answer.decided && answer.incentive_id.is_empty() && answer.coupon_id.is_empty(), "{answer:?}");
        assert!(!answer.explanation.is_empty() && answer.propensity == 0.0);
        assert_eq!(used(&server, &request.campaign_id).await.decision_count, 0);
    }
    let counted = |campaign: &str, incentive: &str, reason: &str| {
        let labels = format!("{{campaign=\"{campaign}\",incentive=\"{incentive}\",reason=\"{reason}\"}}");
        server.metric(&format!("incentive_decisions_total{labels}"))
    };
    assert_eq!(counted("none", "none", "BUDGET"), Some(1));
    assert_eq!(counted("euro", "none", "OTHER_CURRENCY"), Some(2));
    assert_eq!(counted("targeted", "none", "NO_MODEL"), Some(1));
    // The same id decides once something allows it. A repeated call is no other decision.
    let answer = decide(&server, request("euro", "d", "a")).await.unwrap();
    assert!(answer.decided && answer.propensity > 0.0, "{answer:?}");
    decide(&server, request("euro", "d", "a")).await.unwrap();
    let incentive = if answer.incentive_id.is_empty() { "none" } else { &answer.incentive_id };
    let reason_name = reason_of(&answer).as_str_name().trim_start_matches("INCENTIVE_REASON_");
    assert_eq!(counted("euro", incentive, reason_name), Some(1));
    let in_euros =
        proto::DecideIncentiveRequest { currency_code: "EUR".to_owned(), ..request("euro", "e", "american") };
    assert!(decide(&server, in_euros).await.unwrap().decided, "the request states the currency of now");
    let delete = proto::DeleteIncentiveCampaignRequest { campaign_id: "none".to_owned(), etag: String::new() };
    client(&server).delete_incentive_campaign(delete).await.unwrap();
    assert_eq!(counted("none", "none", "BUDGET"), None);
    let other = decide(&server, request("small", "d", "a")).await.unwrap_err();
    assert_eq!(reason(&other), (Code::AlreadyExists, "DECISION_EXISTS".to_owned()));
}

/// Decisions of one user at many connections share the user's allowance, and it is spent after a restart.
#[tokio::test(flavor = "multi_thread")]
async fn racing_connections_share_one_allowance_and_a_restart_keeps_it() {
    let shop = Shop::new();
    let server = start(&shop).await;
    introduce(&server, ["a".to_owned(), "b".to_owned()].into_iter()).await;
    create(&server, proto::IncentiveCampaign { user_limit: 2, ..campaign("c") }).await.unwrap();
    let race = |server: &GrpcServer, prefix: &'static str| {
        let channels: Vec<Channel> = (0..12).map(|_| server.connect()).collect();
        async move {
            let calls = channels.into_iter().enumerate().map(|(number, channel)| {
                tokio::spawn(async move {
                    let request = request("c", &format!("{prefix}{number}"), "a");
                    IncentiveServiceClient::new(channel).decide_incentive(request).await.unwrap().into_inner()
                })
            });
            let mut answers = Vec::new();
            for call in calls.collect::<Vec<_>>() {
                answers.push(call.await.unwrap());
            }
            answers
        }
    };
    let answers = race(&server, "first").await;
    let (decided, refused): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.decided);
    assert_eq!((decided.len(), refused.len()), (2, 10));
    assert!(refused.iter().all(|answer| reason_of(answer) == IncentiveReason::UserLimit), "{refused:?}");
    let before = used(&server, "c").await;
    assert_eq!(before.decision_count, 2);

    let server = restart(&shop, server).await;
    assert_eq!(used(&server, "c").await, before);
    assert!(race(&server, "second").await.iter().all(|answer| !answer.decided));
    // A repeated call returns its decision.
    let repeated: Vec<_> = race(&server, "first").await.into_iter().filter(|answer| answer.decided).collect();
    let without_token = |answer: &proto::DecideIncentiveResponse| proto::DecideIncentiveResponse {
        consistency_token: String::new(),
        ..answer.clone()
    };
    assert_eq!(
        repeated.iter().map(without_token).collect::<Vec<_>>(),
        decided.into_iter().map(without_token).collect::<Vec<_>>()
    );
    assert_eq!(used(&server, "c").await, before);
}

/// Many users at several connections never spend more than the budget.
#[tokio::test(flavor = "multi_thread")]
async fn racing_users_keep_the_budget_and_redeemed_incentives_count_once() {
    let shop = Shop::new();
    let server = start(&shop).await;
    introduce(&server, (0..60).map(|user| format!("u{user}"))).await;
    let limited = proto::Incentive { user_count_max: 1, ..incentive("gift", 1_000_000) };
    let campaign = proto::IncentiveCampaign {
        budget_micros: 31_000_000,
        holdout_share: 0.01,
        incentives: vec![incentive("ten", 10_000_000), limited],
        ..campaign("c")
    };
    create(&server, campaign).await.unwrap();
    let calls: Vec<_> = (0..60)
        .map(|user| {
            let mut client = IncentiveServiceClient::new(server.connect());
            tokio::spawn(async move {
                let user = format!("u{user}");
                let answer =
                    client.decide_incentive(request("c", &format!("d {user}"), &user)).await.unwrap().into_inner();
                (user, answer)
            })
        })
        .collect();
    let mut given = Vec::new();
    for call in calls {
        let (user, answer) = call.await.unwrap();
        if !answer.incentive_id.is_empty() {
            assert_eq!(answer.coupon_id, format!("d {user}"));
            assert!(answer.expire_time.is_some());
            given.push((user, answer));
        }
    }
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    given.iter().for_each(|(_, answer)| *counts.entry(answer.incentive_id.as_str()).or_default() += 1);
    assert_eq!((counts.get("ten"), counts.get("gift")), (Some(&3), Some(&1)), "the budget and the limit are used up");
    let before = used(&server, "c").await;
    assert_eq!((before.used_micros, before.redeemed_count), (31_000_000, 0));
    assert_eq!((before.decision_counts["ten"], before.decision_counts.get("")), (3, None));
    // How many of the draws were of no incentive before the budget was used up depends on the order of the users.
    assert_eq!(before.decision_counts.values().sum::<i64>(), before.decision_count, "{before:?}");
    let (user, answer) = &given[0];
    // Coupons that count for no campaign are accepted with a warning.
    let warning =
        |coupon: &str, reason: &str| format!("is `{coupon}`: {reason}; the event is stored and counts for no campaign");
    let of_another = redeem(&server, "u59 is another user", &answer.coupon_id).await;
    assert_eq!(of_another, warning(&answer.coupon_id, "the decision with this id is of another user"));
    let of_the_shop = redeem(&server, user, "SPRING").await;
    assert_eq!(of_the_shop, warning("SPRING", "no decision of this server has this id"));
    assert_eq!(used(&server, "c").await.redeemed_count, 0);
    let event = format!("redeemed by {user}");
    let twice = |id: &str| proto::Event {
        event_id: id.to_owned(),
        r#type: proto::EventType::IncentiveRedeemed.into(),
        viewer: Some(proto::Viewer { user_id: user.clone(), ..Default::default() }),
        coupon_id: answer.coupon_id.clone(),
        ..Default::default()
    };
    let results = write(&server, vec![twice(&event), twice("again")]).await;
    assert!(results.iter().all(|result| result.warnings.is_empty()), "{results:?}");
    let after = used(&server, "c").await;
    assert_eq!((after.used_micros, after.redeemed_count), (31_000_000, 1));
    let server = restart(&shop, server).await;
    assert_eq!(used(&server, "c").await, after);
}

const USERS: usize = 400;

/// Events of users with prices: the loyalty model needs some months of them. Until `now`.
fn history(now: UnixMillis) -> Vec<Event> {
    let mut random = StdRng::seed_from_u64(5);
    let mut events = Vec::new();
    for user in 0..USERS {
        let (mean_days, leave) = (3.0 + 30.0 * random.random::<f64>(), 0.05 * random.random::<f64>());
        let mut at = random.random::<f64>() * 100.0;
        while at < 200.0 {
            let kind = if random.random::<f64>() < 0.4 { EventKind::Purchase } else { EventKind::View };
            let time = UnixMillis(now.0 - ((200.0 - at) * UnixMillis::DAY as f64) as i64);
            events.push(event(&format!("h{user} {at}"), kind, user, time));
            if random.random::<f64>() < leave {
                break;
            }
            at += -(1.0 - random.random::<f64>()).ln() * mean_days;
        }
    }
    events.sort_by_key(|event| event.at);
    events
}

fn event(id: &str, kind: EventKind, user: usize, at: UnixMillis) -> Event {
    let line = EventLine {
        item: ItemId::parse("i1").unwrap(),
        quantity: Quantity::ONE,
        price: PriceMicros::new(50_000_000),
        rank: 0,
    };
    let user = UserId::signed_in(&format!("u{user}")).unwrap();
    Event { lines: vec![line], currency: "EUR".to_owned(), ..Event::new(EventId::parse(id).unwrap(), kind, user, at) }
}

/// Decisions of a pilot between 100 and 40 days ago, after which `ten` adds many purchases and `shipping` none.
fn pilot(events: &mut Vec<Event>, now: UnixMillis) -> Vec<(IncentiveDecision, bool)> {
    let mut random = StdRng::seed_from_u64(6);
    let mut decisions = Vec::new();
    for number in 0..9000 {
        // A user each, so that no decision is within the horizon of another one.
        let user = USERS + number;
        let at = now.0 - (random.random_range(40.0..100.0) * UnixMillis::DAY as f64) as i64;
        let (incentive, propensity, extra) = match random.random_range(0..10) {
            0..4 => ("", 0.4, 0.0),
            4..7 => ("ten", 0.3, 0.9),
            _ => ("shipping", 0.3, 0.0),
        };
        if random.random::<f64>() < extra {
            let time = UnixMillis(at + UnixMillis::DAY * random.random_range(1..3));
            events.push(event(&format!("bought {number}"), EventKind::Purchase, user, time));
        }
        let decision = IncentiveDecision {
            decision_id: format!("pilot {number}"),
            user: format!("u:u{user}"),
            campaign_id: "c".to_owned(),
            incentive_id: incentive.to_owned(),
            at_ms: at,
            reason: IncentiveReason::Randomised.into(),
            propensity,
            is_randomised: true,
            cost_micros: if incentive.is_empty() { 0 } else { 3_000_000 },
            currency: "EUR".to_owned(),
            margin: 0.4,
            minimum_effect: 0.1,
            ..Default::default()
        };
        decisions.push((decision, !incentive.is_empty()));
    }
    events.sort_by_key(|event| event.at);
    decisions
}

/// A model of the shop whose pilot had this share of the decisions.
fn trained(decision_count: usize) -> LoyaltyModel {
    let now = UnixMillis::now();
    let mut events = history(now);
    let decisions = pilot(&mut events, now);
    let fitted = fit_loyalty(&events, now);
    let mut model = fitted.model().unwrap_or_else(|| panic!("{fitted:?}")).clone();
    let decisions = decisions.iter().take(decision_count).map(|(decision, is_redeemed)| (decision, *is_redeemed));
    model.uplift = fit_campaign_uplift(&model, &events, decisions, now);
    model
}

fn publish(shop: &Shop, name: &str, model: LoyaltyModel) {
    // As a server reads it from the bundle.
    let model = serde_json::from_slice(&serde_json::to_vec(&TrainedLoyalty::Model(Box::new(model))).unwrap()).unwrap();
    shop.publish_changed(name, |bundle| bundle.loyalty = Arc::new(model));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_targeted_campaign_gives_what_gains_and_says_how_many_observations_are_missing_without_a_model() {
    let shop = Shop::new();
    publish(&shop, "few", trained(20));
    let server = start(&shop).await;
    let targeted = proto::IncentiveCampaign {
        allocation: IncentiveAllocation::Targeted.into(),
        holdout_share: 0.2,
        ..campaign("c")
    };
    create(&server, targeted.clone()).await.unwrap();
    create(&server, proto::IncentiveCampaign { campaign_id: "new".to_owned(), ..targeted.clone() }).await.unwrap();
    introduce(&server, (0..50).map(|user| format!("u{user}"))).await;
    let answer = decide(&server, request("c", "d", "u1")).await.unwrap();
    assert_eq!(reason_of(&answer), IncentiveReason::NoModel, "{answer:?}");
    assert!(answer.explanation.contains("randomised pilot"), "{}", answer.explanation);
    assert!(answer.missing_observations["ten"] > 0 && answer.missing_observations["none"] > 0, "{answer:?}");
    let answer = decide(&server, request("new", "d", "u1")).await.unwrap();
    assert_eq!((reason_of(&answer), answer.missing_observations.len()), (IncentiveReason::NoModel, 3));
    server.end().await;

    publish(&shop, "enough", trained(9000));
    let server = GrpcServer::start(shop.reopen(HealthBounds::default()).await).await;
    let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
    for user in 0..40 {
        let answer = decide(&server, request("c", &format!("t{user}"), &format!("u{user}"))).await.unwrap();
        *reasons.entry(reason_of(&answer).as_str_name()).or_default() += 1;
        match reason_of(&answer) {
            IncentiveReason::Gain => {
                assert_eq!((answer.incentive_id.as_str(), answer.propensity), ("ten", 0.8));
                let effect = answer.effect.unwrap();
                let (gain, purchase) = (effect.gain.unwrap(), effect.purchase_probability.unwrap());
                assert!(gain.low < gain.value && gain.value > 0.0 && purchase.value > 0.0, "{effect:?}");
                assert!(effect.expected_cost > 0.0 && answer.explanation.contains("expected to gain"));
            }
            IncentiveReason::Holdout => assert_eq!((answer.incentive_id.as_str(), answer.propensity), ("", 0.2)),
            IncentiveReason::NoGain => assert_eq!((answer.incentive_id.as_str(), answer.propensity), ("", 1.0)),
            _ => panic!("{answer:?}"),
        }
    }
    assert!(reasons["INCENTIVE_REASON_GAIN"] > 10 && reasons.contains_key("INCENTIVE_REASON_HOLDOUT"), "{reasons:?}");
    // A price above every gain per cost reserves the budget for nobody.
    update(&server, proto::IncentiveCampaign { budget_price: 1000.0, ..targeted }).await.unwrap();
    for user in 40..50 {
        let answer = decide(&server, request("c", &format!("t{user}"), &format!("u{user}"))).await.unwrap();
        assert_eq!(reason_of(&answer), IncentiveReason::NoGain, "{answer:?}");
    }
}

/// A targeted campaign with an end keeps its budget for the whole period. Of the users who ask at its beginning, at two
/// connections, few receive something, although each gains. The price follows from the log, so it is that of before after
/// a restart.
#[tokio::test(flavor = "multi_thread")]
async fn a_campaign_with_an_end_keeps_its_budget_for_the_whole_period() {
    const ASKING: usize = 160;
    let shop = Shop::new();
    publish(&shop, "enough", trained(9000));
    let server = start(&shop).await;
    introduce(&server, (0..ASKING).map(|user| format!("u{user}"))).await;
    let end = UnixMillis(UnixMillis::now().0 + 10 * UnixMillis::DAY);
    let targeted = proto::IncentiveCampaign {
        allocation: IncentiveAllocation::Targeted.into(),
        end_time: Some(prost_types::Timestamp { seconds: end.0 / 1000, nanos: 0 }),
        ..campaign("c")
    };
    // Without an end, and without a price, each user who gains receives something.
    let unlimited = proto::IncentiveCampaign { campaign_id: "c".to_owned(), end_time: None, ..targeted.clone() };
    create(&server, unlimited).await.unwrap();
    let mut first: BTreeMap<&str, u32> = BTreeMap::new();
    for user in 0..20 {
        let answer = decide(&server, request("c", &format!("before {user}"), &format!("u{user}"))).await.unwrap();
        *first.entry(reason_of(&answer).as_str_name()).or_default() += 1;
    }
    assert!(first["INCENTIVE_REASON_GAIN"] > 10, "{first:?}");
    assert_eq!(used(&server, "c").await.budget_price, 0.0);
    update(&server, targeted).await.unwrap();
    assert!(used(&server, "c").await.budget_price > 0.0, "the demand is known");

    let connections: Vec<_> = (0..2)
        .map(|connection| {
            let mut client = IncentiveServiceClient::new(server.connect());
            tokio::spawn(async move {
                let mut answers = Vec::new();
                for user in (20..ASKING).filter(|user| user % 2 == connection) {
                    let request = request("c", &format!("d{user}"), &format!("u{user}"));
                    answers.push(client.decide_incentive(request).await.unwrap().into_inner());
                }
                answers
            })
        })
        .collect();
    let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
    for connection in connections {
        for answer in connection.await.unwrap() {
            *reasons.entry(reason_of(&answer).as_str_name()).or_default() += 1;
            assert!(answer.decided && answer.propensity > 0.0 && answer.propensity < 1.0, "{answer:?}");
            match reason_of(&answer) {
                IncentiveReason::Gain => assert!(answer.propensity < 0.9, "{answer:?}"),
                IncentiveReason::NoGain => {
                    assert!(answer.explanation.contains("above the price of the budget"), "{answer:?}");
                }
                IncentiveReason::Holdout => {}
                _ => panic!("{answer:?}"),
            }
        }
    }
    // 2 % of the period's budget suffices for few: unplanned, more than 100 would receive one.
    assert!(reasons.get("INCENTIVE_REASON_GAIN").is_none_or(|given| *given < 30), "{reasons:?}");
    assert!(reasons["INCENTIVE_REASON_NO_GAIN"] > 80, "{reasons:?}");
    let before = used(&server, "c").await;
    assert!(before.budget_price > 0.0 && before.used_micros <= 1_000_000_000, "{before:?}");
    let server = restart(&shop, server).await;
    assert_eq!(used(&server, "c").await, before);
}

/// The decisions of the log with their redemptions reach the files that a training reads.
#[tokio::test(flavor = "multi_thread")]
async fn exported_decisions_have_propensities_and_redemptions() {
    let shop = Shop::new();
    let server = start(&shop).await;
    introduce(&server, (0..30).map(|user| format!("u{user}"))).await;
    create(&server, campaign("c")).await.unwrap();
    let mut redeemed = None;
    for user in 0..30 {
        let answer = decide(&server, request("c", &format!("d{user}"), &format!("u{user}"))).await.unwrap();
        if redeemed.is_none() && !answer.coupon_id.is_empty() {
            redeem(&server, &format!("u{user}"), &answer.coupon_id).await;
            redeemed = Some(answer.coupon_id);
        }
    }
    server.end().await;
    let engine: Engine = shop.reopen(HealthBounds::default()).await;
    drop(engine);
    let data = tempfile::tempdir().unwrap();
    let log = event_log(&shop.data_path()).unwrap();
    assert_eq!(export(&log, 0..100_000, &data.path().join("events")).unwrap().decisions, 30);
    let none = export(&log, 0..1, &data.path().join("none")).unwrap();
    assert_eq!((none.events, none.decisions), (0, 30), "decisions are of any day");
    let read = LoggedDecisions::read(data.path()).unwrap();
    assert_eq!(read.iter().count(), 30);
    for (decision, is_redeemed) in read.iter() {
        assert!(decision.is_randomised, "{decision:?}");
        let (each, none) = (0.9 / 3.0, 0.1 + 0.9 / 3.0);
        let expected = if decision.is_given() { each } else { none };
        assert!((decision.propensity - expected).abs() < 1e-12, "{decision:?}");
        assert_eq!(is_redeemed, Some(&decision.decision_id) == redeemed.as_ref(), "{decision:?}");
    }
}

/// Runs a command of the program and returns its report, or the error of one that fails.
fn lodestone(arguments: &[&str]) -> Result<serde_json::Value, String> {
    let output = Command::new(env!("CARGO_BIN_EXE_lodestone")).args(arguments).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    if output.status.success() { Ok(serde_json::from_slice(&output.stdout).unwrap()) } else { Err(error) }
}

/// `loyalty assign` decides within the budget and its limits and keeps the hold-out, and `loyalty campaign` lists users with
/// the incentive or none.
#[test]
fn a_campaign_by_mail_has_an_incentive_or_none_for_each_user() {
    let shop = Shop::new();
    publish(&shop, "enough", trained(9000));
    let work = tempfile::tempdir().unwrap();
    let path = |name: &str| work.path().join(name).to_str().unwrap().to_owned();
    let bundle = shop.store_path().join("enough").to_str().unwrap().to_owned();
    let of = |event: Event| {
        let Event { id, kind, user, at, mut lines, currency, .. } = event;
        let line = lines.pop().unwrap();
        let row = DatasetEvent::of_item(id.to_string(), kind, Some(user), at, line.item);
        DatasetEvent { price: line.price, currency, ..row }
    };
    let rows: Vec<DatasetEvent> = history(UnixMillis::now()).into_iter().map(of).collect();
    write_events(&work.path().join("events.parquet"), &rows).unwrap();
    let data = work.path().to_str().unwrap();
    let assign = |options: &[&str]| {
        let fixed = ["loyalty", "assign", "--data", data, "--bundle", &bundle, "--campaign", "c", "--format", "json"];
        let out = path("decisions.parquet");
        lodestone(&[&fixed[..], &["--holdout-share", "0.2", "--out", &out], options].concat())
    };
    let count = |report: &serde_json::Value, of: &str, name: &str| report[of][name].as_u64().unwrap_or_default();

    let all = assign(&["--budget", "100000"]).unwrap();
    assert_eq!(count(&all, "reasons", "BUDGET"), 0, "{all}");
    let (given, holdout) = (count(&all, "reasons", "GAIN"), count(&all, "reasons", "HOLDOUT"));
    assert!(given > 200 && holdout > 30 && all["budget_price"] == 0.0, "{all}");
    assert_eq!(given + holdout + count(&all, "reasons", "NO_GAIN"), USERS as u64);
    let none = assign(&["--budget", "0"]).unwrap();
    assert_eq!((count(&none, "reasons", "GAIN"), count(&none, "incentives", "ten")), (0, 0), "{none}");
    let limited = assign(&["--budget", "100000", "--limit", "ten=7", "--limit", "shipping=0"]).unwrap();
    assert_eq!((count(&limited, "incentives", "ten"), count(&limited, "incentives", "shipping")), (7, 0), "{limited}");
    let segments = ["new=0", "growing=2", "loyal=0", "at-risk=1", "lapsing=0", "lost=0"];
    let of_segments: Vec<&str> = segments.iter().flat_map(|limit| ["--segment-limit", *limit]).collect();
    let grouped = assign(&[&["--budget", "100000"][..], &of_segments].concat()).unwrap();
    assert!((1..=3).contains(&count(&grouped, "reasons", "GAIN")), "{grouped}");
    for (options, expected) in [
        (vec!["--limit", "nope=1"], "--limit names nope; the incentives are shipping, ten"),
        (vec!["--limit", "ten=1", "--limit", "ten=2"], "--limit names ten twice"),
        (vec!["--limit", "ten=many"], "`many` is not a number of users"),
        (vec!["--segment-limit", "rich=1"], "`rich` is no segment; expected one of new, growing"),
        (vec!["--segment-limit", "loyal"], "is not of the form NAME=N"),
        (
            vec!["--segment", "lost", "--segment-limit", "loyal=1"],
            "--segment-limit names loyal, which is none of --segment",
        ),
    ] {
        let error = assign(&[&["--budget", "10"][..], &options].concat()).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }

    let page = path("report.html");
    lodestone(&["loyalty", "report", "--data", data, "--bundle", &bundle, "--out", &page, "--format", "json"]).unwrap();
    let page = std::fs::read_to_string(page).unwrap();
    let (_, budgets) = page.split_once("<h2>Budget of incentives</h2>").unwrap();
    let budgets = budgets.split("<h2>").next().unwrap();
    assert!(budgets.contains("Campaign c: expected gain") && budgets.contains("in EUR"), "{budgets}");
    assert!(
        budgets.matches("<tr>").count() == 10 && budgets.contains("<polyline") && !budgets.contains("NaN"),
        "{budgets}"
    );
    let gains: Vec<f64> = budgets
        .split("<tr>")
        .skip(2)
        .map(|row| row.split("<td>").nth(3).unwrap())
        .map(|cell| cell.trim_end_matches("</td>").parse().unwrap())
        .collect();
    assert!(gains.is_sorted() && gains[8] > 2.0 * gains[0], "{gains:?}");

    let campaign = |out: &str| {
        let segments = ["new", "growing", "loyal", "at-risk", "lapsing", "lost"];
        let segments: Vec<&str> = segments.iter().flat_map(|name| ["--segment", *name]).collect();
        let (out, decisions) = (path(out), path("decisions.parquet"));
        let fixed = ["loyalty", "campaign", "--data", data, "--bundle", &bundle, "--products", "2", "--users", "60"];
        let files = ["--decisions", &decisions, "--out", &out, "--format", "json"];
        lodestone(&[&fixed[..], &files, &segments].concat())
    };
    let scarce = assign(&["--budget", "60"]).unwrap();
    assert!(
        scarce["expected_cost"].as_f64().unwrap() <= 60.0 && scarce["budget_price"].as_f64().unwrap() > 0.0,
        "{scarce}"
    );
    assert!(count(&scarce, "reasons", "BUDGET") > 50 && count(&scarce, "reasons", "GAIN") > 5, "{scarce}");
    let report = campaign("list.csv").unwrap();
    let text = std::fs::read_to_string(path("list.csv")).unwrap();
    let mut lines = text.lines().map(|line| line.split(',').collect::<Vec<_>>());
    let header = lines.next().unwrap();
    let column = |name: &str| header.iter().position(|column| *column == name).unwrap();
    let [user, incentive, reason, propensity, product] =
        ["user_id", "incentive_id", "incentive_reason", "propensity", "product_2"].map(column);
    let mut found: BTreeMap<&str, u64> = BTreeMap::new();
    for row in lines {
        *found.entry(row[incentive]).or_default() += 1;
        let is_kept = is_holdout("c", 0.2, &UserId::signed_in(row[user]).unwrap());
        match row[reason] {
            "GAIN" => assert_eq!((row[incentive], row[propensity], is_kept), ("ten", "0.8", false)),
            "HOLDOUT" => assert_eq!((row[incentive], row[propensity], is_kept), ("none", "0.2", true)),
            "BUDGET" | "NO_GAIN" => assert_eq!((row[incentive], row[propensity]), ("none", "1")),
            other => panic!("{other}"),
        }
        assert!(!row[product].is_empty(), "{row:?}");
    }
    assert_eq!(found.values().sum::<u64>(), 60);
    // The incentives are first, so that those which are not in the list are of users whose value is unknown.
    let reasons: Vec<&str> = text.lines().skip(1).map(|line| line.split(',').nth(reason).unwrap()).collect();
    assert!(reasons.is_sorted_by_key(|reason| *reason != "GAIN"), "{reasons:?}");
    let unlisted: u64 =
        report["unlisted_incentives"].as_object().unwrap().values().map(|count| count.as_u64().unwrap()).sum();
    assert_eq!(count(&report, "incentives", "ten") + unlisted, count(&scarce, "reasons", "GAIN"), "{report}");
    assert!(found.iter().all(|(name, number)| count(&report, "incentives", name) == *number), "{report} {found:?}");
    let segment = column("segment");
    let listed: BTreeSet<&str> = text.lines().skip(1).filter_map(|line| line.split(',').nth(segment)).collect();
    assert!(listed.len() > 1, "{listed:?}");
    assign(&["--budget", "60", "--segment", listed.first().unwrap()]).unwrap();
    let error = campaign("other.csv").unwrap_err();
    assert!(error.contains("has no decision about") && error.contains("every --segment"), "{error}");
}
