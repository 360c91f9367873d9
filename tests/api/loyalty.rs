//! Loyalty over gRPC: scores with reasons, their change with each event, users at risk, refusals.
use crate::support::{bundles::Shop, grpc::GrpcServer, server::TIME_MAX};
use lodestone::server::proto::{
    self, event_service_client::EventServiceClient, loyalty_service_client::LoyaltyServiceClient,
};
use lodestone_core::{
    ids::{ItemId, UserId},
    units::{PriceMicros, Quantity, UnixMillis},
};
use lodestone_dataset::{DatasetEvent, into_events, read_history, write_events};
use lodestone_engine::EngineError;
use lodestone_events::{Event, EventKind};
use lodestone_loyalty::{LoyaltyModel, TrainedLoyalty, UserSummary, day_of, fit_loyalty};
use lodestone_rollout::HealthBounds;
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::{collections::BTreeSet, sync::Arc, time::Instant};
use tonic::{Code, Status, transport::Channel};
use tonic_types::StatusExt;

const USERS: usize = 600;
const DAYS: f64 = 300.0;

fn loyalty(server: &GrpcServer) -> LoyaltyServiceClient<Channel> {
    LoyaltyServiceClient::new(server.channel.clone())
}

/// Events of users who purchase and view with rates of their own and leave at some time, until now. Every tenth user
/// pays in another currency.
fn history() -> Vec<DatasetEvent> {
    let mut random = StdRng::seed_from_u64(11);
    let now = UnixMillis::now().0;
    let mut rows = Vec::new();
    for user in 0..USERS {
        let (mean_days, leave) = (2.0 + 40.0 * random.random::<f64>().powi(2), random.random::<f64>() * 0.12);
        let price = (4.0 + 40.0 * random.random::<f64>()) as i64 * 1_000_000;
        let mut at = random.random::<f64>() * 200.0;
        let mut number = 0;
        while at < DAYS {
            let buys = number == 0 || random.random::<f64>() < 0.35;
            let kind = if buys { EventKind::Purchase } else { EventKind::View };
            let time = UnixMillis(now - ((DAYS - at) * UnixMillis::DAY as f64) as i64);
            let id = UserId::signed_in(&format!("p{user}")).unwrap();
            let item = ItemId::parse(&format!("i{}", random.random_range(0..40))).unwrap();
            rows.push(DatasetEvent {
                price: PriceMicros::new(price),
                quantity: Quantity::from_units(f64::from(random.random_range(1..4))),
                currency: if user % 10 == 9 { "USD" } else { "EUR" }.to_owned(),
                ..DatasetEvent::of_item(format!("h{user}-{number}"), kind, Some(id), time, item)
            });
            number += 1;
            if random.random::<f64>() < leave {
                break;
            }
            at += -(1.0 - random.random::<f64>()).ln() * mean_days;
        }
    }
    rows.sort_by_key(|row| row.at);
    rows
}

/// A shop with an imported history, the events of its files, and the model that a training fits to them.
pub(crate) struct LoyalShop {
    pub(crate) shop: Shop,
    events: Vec<Event>,
    model: LoyaltyModel,
}

impl LoyalShop {
    pub(crate) fn new() -> Self {
        let shop = Shop::new();
        std::fs::create_dir_all(shop.data_path()).unwrap();
        write_events(&shop.data_path().join("events.parquet"), &history()).unwrap();
        let events = into_events(read_history(&shop.data_path()).unwrap());
        let trained = fit_loyalty(&events, UnixMillis::now());
        // As a server reads it from the bundle.
        let trained: TrainedLoyalty = serde_json::from_slice(&serde_json::to_vec(&trained).unwrap()).unwrap();
        let model = trained.model().unwrap_or_else(|| panic!("{trained:?}")).clone();
        shop.publish_changed("loyal", |bundle| bundle.loyalty = Arc::new(trained));
        shop.publish_changed("without", |bundle| {
            bundle.loyalty = Arc::new(TrainedLoyalty::Missing { reason: "there are 3 users".to_owned() });
        });
        Self { shop, events, model }
    }

    pub(crate) async fn serve(&self, bundle: &str) -> GrpcServer {
        self.shop.store().point_to(bundle, None).unwrap();
        GrpcServer::start(self.shop.open(HealthBounds::default())).await
    }

    /// Folds the events of the files of a user.
    fn folded(&self, user: &str) -> UserSummary {
        let user = UserId::signed_in(user).unwrap();
        let mut summary = UserSummary::default();
        self.events.iter().filter(|event| event.user == user).for_each(|event| summary.add(event));
        summary
    }
}

pub(crate) async fn get(server: &GrpcServer, user: &str) -> Result<proto::Loyalty, Status> {
    let request = proto::GetLoyaltyRequest { user_id: user.to_owned() };
    Ok(loyalty(server).get_loyalty(request).await?.into_inner().loyalty.unwrap())
}

async fn at_risk(server: &GrpcServer, request: proto::ListAtRiskRequest) -> Result<proto::ListAtRiskResponse, Status> {
    Ok(loyalty(server).list_at_risk(request).await?.into_inner())
}

/// Writes an event of today.
async fn write(server: &GrpcServer, user: &str, r#type: proto::EventType, id: &str) {
    let viewer = proto::Viewer { user_id: user.to_owned(), session_id: "s".to_owned(), ..Default::default() };
    let line = proto::EventLine { item_id: "i1".to_owned(), price_micros: Some(25_000_000), ..Default::default() };
    let event = proto::Event {
        event_id: id.to_owned(),
        r#type: r#type.into(),
        viewer: Some(viewer),
        lines: vec![line],
        currency_code: "EUR".to_owned(),
        coupon_id: if r#type == proto::EventType::Purchase { "SPRING".to_owned() } else { String::new() },
        ..Default::default()
    };
    let request = proto::WriteEventsRequest { events: vec![event] };
    let written = EventServiceClient::new(server.channel.clone()).write_events(request).await.unwrap().into_inner();
    assert_eq!(written.results[0].status, i32::from(proto::EventStatus::Accepted), "{written:?}");
}

fn purchase_probability(loyalty: &proto::Loyalty) -> f64 {
    loyalty.scores.last().unwrap().purchase_probability.unwrap().value
}

fn violated(status: &Status) -> BTreeSet<String> {
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    let details = status.get_error_details();
    details.bad_request().unwrap().field_violations.iter().map(|of| of.field.clone()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn scores_follow_events_have_reasons_and_survive_a_restart() {
    let shop = LoyalShop::new();
    let server = shop.serve("loyal").await;

    // A user without events has the prior.
    let unknown = get(&server, "nobody").await.unwrap();
    assert!(!unknown.has_history && unknown.summary.is_none());
    assert_eq!(unknown.segment(), proto::LoyaltySegment::New);
    assert_eq!(unknown.scores.len(), shop.model.horizons.len());
    let first = &unknown.scores[0];
    let probability = first.purchase_probability.unwrap();
    assert!(probability.low <= probability.value && probability.value <= probability.high && probability.high < 1.0);
    assert!(first.purchase_explanation.is_none() && first.purchase_probability_change.is_none());

    // An acknowledged purchase is in the next answer.
    write(&server, "nobody", proto::EventType::View, "n1").await;
    let viewed = get(&server, "nobody").await.unwrap();
    assert!(viewed.has_history);
    assert_eq!((viewed.segment(), viewed.summary.as_ref().unwrap().purchase_days), (proto::LoyaltySegment::New, 0));
    write(&server, "nobody", proto::EventType::Purchase, "n2").await;
    let bought = get(&server, "nobody").await.unwrap();
    let summary = bought.summary.clone().unwrap();
    assert_eq!((summary.purchase_days, summary.session_count, summary.coupon_purchase_count), (1, 1, 1));
    assert_eq!((&*summary.values[0].currency_code, summary.values[0].bought_micros), ("EUR", 25_000_000));
    assert_ne!(purchase_probability(&bought), purchase_probability(&viewed));
    write(&server, "nobody", proto::EventType::Refund, "n3").await;
    let refunded = get(&server, "nobody").await.unwrap().summary.unwrap();
    assert_eq!((refunded.values[0].refunded_micros, refunded.purchase_days, refunded.visit_days), (25_000_000, 1, 1));

    // Each probability is the exact sum of its contributions, and its change is that of 30 days.
    let mut segments = BTreeSet::new();
    for user in 0..60 {
        let loyalty = get(&server, &format!("p{user}")).await.unwrap();
        segments.insert(loyalty.segment().as_str_name());
        for score in &loyalty.scores {
            for (estimate, explanation) in [
                (score.purchase_probability.unwrap(), score.purchase_explanation.as_ref().unwrap()),
                (score.return_probability.unwrap(), score.return_explanation.as_ref().unwrap()),
            ] {
                let sum = explanation.base_logit + explanation.contributions.iter().map(|of| of.logit).sum::<f64>();
                assert!((sum - (estimate.value / (1.0 - estimate.value)).ln()).abs() < 1e-9);
                assert_eq!(explanation.contributions.len(), 11);
            }
            assert!(score.expected_value.unwrap().value > 0.0);
        }
        for condition in &loyalty.segment_conditions {
            assert!(condition.min.is_none_or(|min| condition.value >= min), "{condition:?}");
            assert!(condition.max.is_none_or(|max| condition.value <= max), "{condition:?}");
        }
        let expected = if user % 10 == 9 { "USD" } else { "EUR" };
        assert_eq!(loyalty.currency_code, expected);
    }
    assert!(segments.len() >= 3, "{segments:?}");

    // The server's fold of its history is that of the training, and so are its scores.
    let today = day_of(UnixMillis::now());
    for user in ["p0", "p1", "p7", "p19", "p42"] {
        let folded = shop.folded(user);
        let state = &server.engine.loyalty(&[UserId::signed_in(user).unwrap()]).unwrap()[0];
        assert_eq!(state.summary, Some(folded));
        assert_eq!(state.score, shop.model.score(Some(&folded), state.day));
        assert_eq!(state.score.rule.segment, shop.model.segment(&folded, state.day));
        assert!(state.day >= today);
    }
    let before = get(&server, "nobody").await.unwrap();
    server.end().await;
    let server = GrpcServer::start(shop.shop.reopen(HealthBounds::default()).await).await;
    let after = get(&server, "nobody").await.unwrap();
    assert_eq!(before.summary.map(|of| of.event_counts), after.summary.map(|of| of.event_counts));
    server.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_and_lists_of_users_at_risk_agree_with_single_answers() {
    let shop = LoyalShop::new();
    let server = shop.serve("loyal").await;
    let user_ids: Vec<String> = (0..1000).map(|user| format!("p{user}")).collect();
    let request = proto::BatchGetLoyaltyRequest { user_ids: user_ids.clone() };
    let batch = loyalty(&server).batch_get_loyalty(request).await.unwrap().into_inner().loyalties;
    assert_eq!(batch.iter().map(|of| of.user_id.clone()).collect::<Vec<_>>(), user_ids);
    let single = get(&server, "p12").await.unwrap();
    assert_eq!(batch[12].segment, single.segment);
    assert!((purchase_probability(&batch[12]) - purchase_probability(&single)).abs() < 1e-3);
    assert!(batch[12].summary.is_none() && !batch[999].has_history);

    // All pages of the list, in the main currency.
    let mut request = proto::ListAtRiskRequest { page_size: 100, ..Default::default() };
    let mut listed: Vec<proto::UserAtRisk> = Vec::new();
    loop {
        let page = at_risk(&server, request.clone()).await.unwrap();
        assert_eq!((&*page.currency_code, page.total_size), ("EUR", 540));
        assert_eq!(page.horizon_days, batch[0].scores.last().unwrap().horizon_days);
        listed.extend(page.users);
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            break;
        }
    }
    assert_eq!(listed.len(), 540);
    assert_eq!(listed.iter().map(|user| &user.user_id).collect::<BTreeSet<_>>().len(), 540);
    assert!(listed.windows(2).all(|pair| pair[0].value_at_risk >= pair[1].value_at_risk));
    for user in &listed[..5] {
        let value = (1.0 - user.return_probability) * user.expected_value;
        assert!((user.value_at_risk - value).abs() < 1e-9);
        let index = user_ids.iter().position(|id| *id == user.user_id).unwrap();
        assert!((batch[index].scores.last().unwrap().expected_value.unwrap().value - user.expected_value).abs() < 1e-2);
    }
    // A segment and another currency.
    let segment = listed[0].segment;
    let of_segment = proto::ListAtRiskRequest { segments: vec![segment], page_size: 1000, ..Default::default() };
    let page = at_risk(&server, of_segment.clone()).await.unwrap();
    let expected: Vec<&String> =
        listed.iter().filter(|user| user.segment == segment).map(|user| &user.user_id).collect();
    assert_eq!(page.users.iter().map(|user| &user.user_id).collect::<Vec<_>>(), expected);
    let dollars = proto::ListAtRiskRequest { currency_code: "USD".to_owned(), ..Default::default() };
    assert_eq!(at_risk(&server, dollars).await.unwrap().total_size, 60);

    // A token belongs to its request.
    let first = at_risk(&server, proto::ListAtRiskRequest { page_size: 5, ..Default::default() }).await.unwrap();
    let other = proto::ListAtRiskRequest { page_token: first.next_page_token, ..of_segment };
    assert_eq!(violated(&at_risk(&server, other).await.unwrap_err()), BTreeSet::from(["page_token".to_owned()]));
    let foreign = proto::ListAtRiskRequest { page_token: "x".to_owned(), ..Default::default() };
    assert_eq!(violated(&at_risk(&server, foreign).await.unwrap_err()), BTreeSet::from(["page_token".to_owned()]));
    server.end().await;
}

/// The workers score the users of a batch, and so not after its deadline. One user needs no worker.
#[tokio::test(flavor = "multi_thread")]
async fn batches_are_work_with_a_deadline() {
    let shop = LoyalShop::new();
    let server = shop.serve("loyal").await;
    let users: Vec<UserId> = (0..100).map(|user| UserId::signed_in(&format!("p{user}")).unwrap()).collect();
    let late = server.engine.batch_loyalty(&users, Instant::now()).await;
    assert!(matches!(late, Err(EngineError::DeadlineExceeded)));
    let scored = server.engine.batch_loyalty(&users, Instant::now() + TIME_MAX).await.unwrap();
    let single = server.engine.loyalty(&users).unwrap();
    assert_eq!(scored.len(), users.len());
    assert!(scored.iter().zip(&single).all(|(batch, single)| batch.summary == single.summary));
    server.end().await;
}

/// Users with only refunds, with a purchase of 10^9, with a purchase of 1990 and with purchases in four currencies have scores
/// in their ranges, and are in the list in their own currency alone.
#[tokio::test(flavor = "multi_thread")]
async fn unusual_users_have_scores_within_their_ranges() {
    use proto::EventType::{AddToCart, Purchase, Refund, View};
    let shop = LoyalShop::new();
    let server = shop.serve("loyal").await;
    let event = |user: &str,
                 number: usize,
                 r#type: proto::EventType,
                 (price, currency): (i64, &str),
                 seconds: Option<i64>| {
        let line =
            proto::EventLine { item_id: "i1".to_owned(), price_micros: Some(price * 1_000_000), ..Default::default() };
        proto::Event {
            event_id: format!("{user} {number}"),
            r#type: r#type.into(),
            viewer: Some(proto::Viewer { user_id: user.to_owned(), ..Default::default() }),
            lines: vec![line],
            currency_code: currency.to_owned(),
            occurred_time: seconds.map(|seconds| prost_types::Timestamp { seconds, nanos: 0 }),
            ..Default::default()
        }
    };
    let billion = 1_000_000_000;
    let mut events = vec![
        event("refunds", 0, Refund, (30, "EUR"), None),
        event("refunds", 1, Refund, (billion, "EUR"), None),
        event("rich", 0, Purchase, (billion, "EUR"), None),
        event("old", 0, Purchase, (5, "EUR"), Some(640_000_000)),
        event("returned", 0, Purchase, (5, "EUR"), Some(640_000_000)),
        event("returned", 1, Purchase, (5, "EUR"), None),
        event("cart", 0, AddToCart, (5, "EUR"), Some(1_600_000_000)),
        event("cart", 1, View, (5, "EUR"), None),
    ];
    for (number, currency) in ["USD", "GBP", "CHF", "SEK", "GBP"].into_iter().enumerate() {
        events.push(event("traveller", number, Purchase, (7, currency), None));
    }
    let request = proto::WriteEventsRequest { events };
    let written = EventServiceClient::new(server.channel.clone()).write_events(request).await.unwrap().into_inner();
    let accepted = i32::from(proto::EventStatus::Accepted);
    assert!(written.results.iter().all(|result| result.status == accepted), "{written:?}");

    for user in ["refunds", "rich", "old", "returned", "cart", "traveller"] {
        let loyalty = get(&server, user).await.unwrap();
        assert!(loyalty.has_history && loyalty.summary.is_some());
        for score in &loyalty.scores {
            let (purchase, back) = (score.purchase_probability.unwrap(), score.return_probability.unwrap());
            let (count, value) = (score.expected_purchases.unwrap(), score.expected_value.unwrap());
            for (of, max) in [(purchase, 1.0), (back, 1.0), (count, f64::from(score.horizon_days)), (value, 1e12)] {
                assert!(
                    (0.0..=max).contains(&of.low) && of.low <= of.value && of.value <= of.high,
                    "{user}: {score:?}"
                );
                assert!(of.high.is_finite(), "{user}: {score:?}");
            }
        }
    }
    let refunds = get(&server, "refunds").await.unwrap();
    let summary = refunds.summary.as_ref().unwrap();
    assert_eq!((refunds.segment(), refunds.currency_code.as_str()), (proto::LoyaltySegment::New, "EUR"));
    assert_eq!((summary.purchase_days, summary.visit_days, summary.values[0].bought_micros), (0, 0, 0));
    assert_eq!(summary.values[0].refunded_micros, (billion + 30) * 1_000_000);
    let traveller = get(&server, "traveller").await.unwrap();
    assert_eq!(traveller.currency_code, "GBP", "most purchases");
    let values = &traveller.summary.as_ref().unwrap().values;
    let values: Vec<_> = values.iter().map(|of| (of.currency_code.as_str(), of.bought_micros / 1_000_000)).collect();
    assert_eq!(values, [("USD", 7), ("GBP", 14), ("CHF", 7)]);
    assert_eq!(traveller.summary.unwrap().other_currency_event_count, 1);
    assert_eq!(get(&server, "cart").await.unwrap().summary.unwrap().abandoned_cart_count, 1);

    let first = at_risk(&server, proto::ListAtRiskRequest { page_size: 1, ..Default::default() }).await.unwrap();
    assert_eq!(first.users[0].user_id, "rich");
    assert!(first.users[0].value_at_risk > 0.0 && first.users[0].value_at_risk.is_finite(), "{first:?}");
    let in_currency = |code: &str| proto::ListAtRiskRequest { currency_code: code.to_owned(), ..Default::default() };
    let pounds = at_risk(&server, in_currency("GBP")).await.unwrap();
    assert_eq!(pounds.users.iter().map(|user| user.user_id.as_str()).collect::<Vec<_>>(), ["traveller"]);

    // Four newer snapshots later, the pages of the first one are gone, and the message says to begin again.
    for code in ["USD", "CHF", "SEK"] {
        at_risk(&server, in_currency(code)).await.unwrap();
    }
    let next = proto::ListAtRiskRequest { page_token: first.next_page_token, ..Default::default() };
    let expired = at_risk(&server, next).await.unwrap_err();
    assert_eq!(expired.code(), Code::Aborted, "{expired:?}");
    server.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_requests_and_a_bundle_without_a_model_are_refused() {
    let shop = LoyalShop::new();
    let server = shop.serve("without").await;
    let fields = |fields: &[&str]| fields.iter().map(|field| (*field).to_owned()).collect::<BTreeSet<_>>();
    for id in ["", "a\nb", &"x".repeat(129)] {
        assert_eq!(violated(&get(&server, id).await.unwrap_err()), fields(&["user_id"]));
    }
    let batch = |user_ids: Vec<String>| {
        let mut client = loyalty(&server);
        async move { client.batch_get_loyalty(proto::BatchGetLoyaltyRequest { user_ids }).await.unwrap_err() }
    };
    assert_eq!(violated(&batch(Vec::new()).await), fields(&["user_ids"]));
    assert_eq!(violated(&batch(vec!["u".to_owned(); 1001]).await), fields(&["user_ids"]));
    let some = vec!["u".to_owned(), String::new(), "v".to_owned(), "\u{1}".to_owned()];
    assert_eq!(violated(&batch(some).await), fields(&["user_ids[1]", "user_ids[3]"]));
    let request = proto::ListAtRiskRequest {
        segments: vec![1, 0, 9],
        currency_code: "eur".to_owned(),
        page_size: -1,
        page_token: String::new(),
    };
    let violations = violated(&at_risk(&server, request).await.unwrap_err());
    assert_eq!(violations, fields(&["segments[1]", "segments[2]", "currency_code", "page_size"]));

    for status in [
        get(&server, "p1").await.unwrap_err(),
        batch(vec!["p1".to_owned()]).await,
        at_risk(&server, proto::ListAtRiskRequest::default()).await.unwrap_err(),
    ] {
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert_eq!(status.get_error_details().error_info().unwrap().reason, "LOYALTY_MODEL_MISSING");
        assert!(status.message().contains("there are 3 users") && status.message().contains("trained on more events"));
    }
    server.end().await;
}
