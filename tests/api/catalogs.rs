//! Several catalogues in one server: neither sees the items, events, users, rules and tokens of the other.
use crate::support::{
    bundles::{Shop, item_id},
    grpc::GrpcServer,
    status::{reason, violations},
    wait::wait_until,
};
use lodestone::server::{
    CATALOG_METADATA, Catalogs,
    proto::{
        self, catalog_service_client::CatalogServiceClient, event_service_client::EventServiceClient,
        explain_service_client::ExplainServiceClient, ranking_service_client::RankingServiceClient,
        rule_action::Action, rule_service_client::RuleServiceClient,
    },
};
use lodestone_engine::Engine;
use lodestone_rollout::HealthBounds;
use std::{sync::Arc, time::Duration};
use tonic::{Code, Request, Status};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

const OUTLET: &str = "outlet";
const USER: &str = "shared-user";

/// Returns a request to a catalogue; without a name to the default one.
fn to<T>(catalog: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    if !catalog.is_empty() {
        request.metadata_mut().insert(CATALOG_METADATA, catalog.parse().unwrap());
    }
    request
}

async fn start(shop: &Shop) -> (GrpcServer, Catalogs) {
    let default: Arc<Engine> = Arc::new(shop.reopen(HealthBounds::default()).await);
    let outlet = Arc::new(shop.reopen_with(|| shop.try_open_catalog(OUTLET)).await);
    let catalogs = Catalogs::from(default.clone()).with(OUTLET, outlet);
    (GrpcServer::start_with(default, catalogs.clone()).await, catalogs)
}

/// The fields of a refused request.
fn fields(status: &Status) -> Vec<String> {
    violations(status).into_iter().map(|(field, _)| field).collect()
}

fn search(query: &str) -> proto::SearchRequest {
    let viewer = proto::Viewer { user_id: USER.to_owned(), ..Default::default() };
    proto::SearchRequest { viewer: Some(viewer), query: query.to_owned(), page_size: 5, ..Default::default() }
}

async fn try_search(
    server: &GrpcServer,
    catalog: &str,
    request: proto::SearchRequest,
) -> Result<proto::SearchResponse, Status> {
    let mut ranking = RankingServiceClient::new(server.channel.clone());
    ranking.search(to(catalog, request)).await.map(tonic::Response::into_inner)
}

async fn found(server: &GrpcServer, catalog: &str, query: &str) -> Vec<String> {
    let response = try_search(server, catalog, search(query)).await.unwrap();
    response.results.into_iter().map(|result| result.item_id).collect()
}

async fn write_view(
    server: &GrpcServer,
    catalog: &str,
    id: &str,
    attribution_token: &str,
) -> proto::WriteEventsResponse {
    let event = proto::Event {
        event_id: id.to_owned(),
        r#type: proto::EventType::View.into(),
        viewer: Some(proto::Viewer { user_id: USER.to_owned(), ..Default::default() }),
        lines: vec![proto::EventLine { item_id: item_id(3).to_string(), ..Default::default() }],
        attribution_token: attribution_token.to_owned(),
        ..Default::default()
    };
    let mut events = EventServiceClient::new(server.channel.clone());
    let request = proto::WriteEventsRequest { events: vec![event] };
    events.write_events(to(catalog, request)).await.unwrap().into_inner()
}

async fn is_known(server: &GrpcServer, catalog: &str) -> bool {
    try_search(server, catalog, search("mug")).await.unwrap().info.unwrap().user_known
}

async fn item_title(server: &GrpcServer, catalog: &str, id: &str) -> Option<String> {
    let mut items = CatalogServiceClient::new(server.channel.clone());
    let request = proto::GetItemRequest { item_id: id.to_owned() };
    match items.get_item(to(catalog, request)).await {
        Ok(response) => Some(response.into_inner().item.unwrap().title),
        Err(status) => {
            assert_eq!(reason(&status).1, "ITEM_NOT_FOUND");
            None
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn catalogues_are_isolated_and_survive_a_restart() {
    let shop = Shop::new();
    let (server, catalogs) = start(&shop).await;

    // Items: one more in the outlet, and another title of one that both have.
    let shared = item_id(1).to_string();
    let item =
        |id: &str, title: &str| proto::Item { item_id: id.to_owned(), title: title.to_owned(), ..Default::default() };
    let upserted = vec![item("outlet-only", "Zanzibar vase"), item(&shared, "Zanzibar plate")];
    let mut items = CatalogServiceClient::new(server.channel.clone());
    let request = proto::UpsertItemsRequest { items: upserted, ..Default::default() };
    let written = items.upsert_items(to(OUTLET, request)).await.unwrap().into_inner();
    let vases = found(&server, OUTLET, "zanzibar").await;
    assert!(vases.contains(&"outlet-only".to_owned()) && vases.contains(&shared), "{vases:?}");
    let elsewhere = found(&server, "default", "zanzibar").await;
    assert!(!elsewhere.contains(&"outlet-only".to_owned()) && !elsewhere.contains(&shared), "{elsewhere:?}");

    // Events and users: the same event id counts in each catalogue.
    assert!(!is_known(&server, "").await && !is_known(&server, OUTLET).await);
    for (catalog, other_knows) in [(OUTLET, false), ("", true)] {
        let stored = write_view(&server, catalog, "view-1", "").await;
        assert_eq!(stored.results[0].status(), proto::EventStatus::Accepted);
        assert_eq!((is_known(&server, OUTLET).await, is_known(&server, "").await), (true, other_knows));
    }

    // Rules.
    let pin = Action::Pin(proto::Pin { item_id: item_id(30).to_string(), rank: 1 });
    let actions = vec![proto::RuleAction { action: Some(pin) }];
    let rule = proto::Rule { rule_id: "of-outlet".to_owned(), actions, ..Default::default() };
    let mut rules = RuleServiceClient::new(server.channel.clone());
    rules.create_rule(to(OUTLET, proto::CreateRuleRequest { rule: Some(rule) })).await.unwrap();
    let get = || proto::GetRuleRequest { rule_id: "of-outlet".to_owned() };
    assert_eq!(reason(&rules.get_rule(get()).await.unwrap_err()), (Code::NotFound, "RULE_NOT_FOUND".to_owned()));
    let first = async |catalog: &str| found(&server, catalog, "blue mug").await[0].clone();
    assert_eq!(first(OUTLET).await, item_id(30).to_string());
    assert_ne!(first("").await, item_id(30).to_string());

    // Tokens of the outlet: of a page, of a position, of an answer.
    let answer = try_search(&server, OUTLET, search("mug")).await.unwrap();
    assert!(!answer.next_page_token.is_empty() && !answer.consistency_token.is_empty());
    let page = |token: &str| proto::SearchRequest { page_token: token.to_owned(), ..search("mug") };
    assert!(try_search(&server, OUTLET, page(&answer.next_page_token)).await.is_ok());
    let refused = try_search(&server, "", page(&answer.next_page_token)).await.unwrap_err();
    assert_eq!(
        (reason(&refused).1.as_str(), &fields(&refused)[..]),
        ("PAGE_TOKEN_INVALID", &["page_token".to_owned()][..])
    );
    for token in [&answer.consistency_token, &written.consistency_token] {
        let options = proto::RankingOptions { consistency_token: token.clone(), ..Default::default() };
        let request = proto::SearchRequest { options: Some(options), ..search("mug") };
        assert!(try_search(&server, OUTLET, request.clone()).await.is_ok());
        let refused = try_search(&server, "", request).await.unwrap_err();
        assert_eq!(fields(&refused), ["options.consistency_token"]);
        let suggest =
            proto::SuggestRequest { prefix: "mu".to_owned(), consistency_token: token.clone(), ..Default::default() };
        let mut ranking = RankingServiceClient::new(server.channel.clone());
        let refused = ranking.suggest(to("", suggest)).await.unwrap_err();
        assert!(fields(&refused).contains(&"consistency_token".to_owned()), "{refused:?}");
    }
    let mut explain = ExplainServiceClient::new(server.channel.clone());
    let replay = || proto::ReplayAnswerRequest { attribution_token: answer.attribution_token.clone() };
    wait_until("the record is readable", Duration::from_secs(60), async || {
        explain.clone().replay_answer(to(OUTLET, replay())).await.is_ok()
    })
    .await;
    let refused = explain.replay_answer(to("", replay())).await.unwrap_err();
    assert_eq!(reason(&refused).1, "ATTRIBUTION_TOKEN_INVALID");
    for (catalog, warnings) in [(OUTLET, 0), ("", 1)] {
        let stored = write_view(&server, catalog, "view-2", &answer.attribution_token).await;
        assert_eq!(
            (stored.results[0].status(), stored.results[0].warnings.len()),
            (proto::EventStatus::Accepted, warnings)
        );
    }

    // Unknown names, metrics, health.
    for unknown in ["Outlet", "none", "a b"] {
        let refused = try_search(&server, unknown, search("mug")).await.unwrap_err();
        assert_eq!(reason(&refused), (Code::NotFound, "CATALOG_NOT_FOUND".to_owned()));
        assert!(refused.message().contains(unknown) && !refused.message().contains(OUTLET), "{refused:?}");
    }
    let metrics = catalogs.metrics_text();
    for line in [
        "lodestone_requests_total{rpc=\"Search\",code=\"NOT_FOUND\",catalog=\"default\"} 3",
        "lodestone_rules{catalog=\"outlet\"} 1",
        "lodestone_rules{catalog=\"default\"} 0",
        "lodestone_users{catalog=\"outlet\"} 1",
    ] {
        let ordered = |text: &str| {
            let (name, rest) = text.split_once('{')?;
            let (labels, value) = rest.split_once("} ")?;
            let mut labels: Vec<String> = labels.split(',').map(str::to_owned).collect();
            labels.sort_unstable();
            Some((name.to_owned(), labels, value.to_owned()))
        };
        assert!(metrics.lines().any(|found| ordered(found) == ordered(line)), "{line} is missing in\n{metrics}");
    }
    let mut health = HealthClient::new(server.channel.clone());
    let check = |service: &str| to(OUTLET, HealthCheckRequest { service: service.to_owned() });
    assert!(health.check(check("")).await.is_ok() && health.check(check("lodestone.v1.EventService")).await.is_ok());
    drop(catalogs);
    server.end().await;

    let (server, catalogs) = start(&shop).await;
    assert_eq!(item_title(&server, OUTLET, &shared).await.as_deref(), Some("Zanzibar plate"));
    assert_eq!(item_title(&server, OUTLET, "outlet-only").await.as_deref(), Some("Zanzibar vase"));
    assert_eq!(item_title(&server, "", "outlet-only").await, None);
    assert_ne!(item_title(&server, "", &shared).await.as_deref(), Some("Zanzibar plate"));
    assert!(is_known(&server, "").await && is_known(&server, OUTLET).await);
    let again = write_view(&server, OUTLET, "view-1", "").await;
    assert_eq!(again.results[0].status(), proto::EventStatus::Duplicate);
    assert_eq!(found(&server, OUTLET, "blue mug").await[0], item_id(30).to_string());
    assert_ne!(found(&server, "", "blue mug").await[0], item_id(30).to_string());
    drop(catalogs);
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_services_that_write_are_unhealthy_while_the_log_of_any_catalogue_is_away() {
    let shop = Shop::new();
    let (server, catalogs) = start(&shop).await;
    let status = async |service: &str| {
        let request = HealthCheckRequest { service: service.to_owned() };
        let mut health = HealthClient::new(server.channel.clone());
        health.check(request).await.unwrap().into_inner().status
    };
    const SERVING: i32 = 1;
    assert_eq!(status("lodestone.v1.EventService").await, SERVING);
    let (log, away) = (shop.catalog_path(OUTLET).join("log"), shop.catalog_path(OUTLET).join("away"));
    std::fs::rename(&log, &away).unwrap();
    wait_until("the outlet's log is missed", Duration::from_secs(60), async || {
        status("lodestone.v1.EventService").await != SERVING
    })
    .await;
    assert_eq!((status("").await, status("lodestone.v1.RankingService").await), (SERVING, SERVING));
    std::fs::rename(&away, &log).unwrap();
    wait_until("the outlet's log is back", Duration::from_secs(60), async || {
        status("lodestone.v1.EventService").await == SERVING
    })
    .await;
    drop(catalogs);
    server.end().await;
}
