//! Suggest over gRPC: options of the answer, and the acceptance of completions.
use crate::support::{answers::replay, bundles::Shop, grpc::GrpcServer};
use lodestone::server::proto::{
    self, CompletionSource, DebugLevel, EventStatus, EventType, event_service_client::EventServiceClient,
    ranking_service_client::RankingServiceClient, replay_answer_response::Request,
};
use lodestone_rollout::HealthBounds;
use std::collections::BTreeSet;
use tonic::{Code, Status};
use tonic_types::StatusExt;

fn viewer(user: &str) -> Option<proto::Viewer> {
    Some(proto::Viewer { user_id: user.to_owned(), ..Default::default() })
}

async fn suggest(server: &GrpcServer, request: proto::SuggestRequest) -> Result<proto::SuggestResponse, Status> {
    Ok(RankingServiceClient::new(server.channel.clone()).suggest(request).await?.into_inner())
}

async fn typed(server: &GrpcServer, user: &str, prefix: &str) -> proto::SuggestResponse {
    let request = proto::SuggestRequest { viewer: viewer(user), prefix: prefix.to_owned(), ..Default::default() };
    suggest(server, request).await.unwrap()
}

async fn write(server: &GrpcServer, event: proto::Event) -> proto::EventResult {
    let request = proto::WriteEventsRequest { events: vec![event] };
    let written = EventServiceClient::new(server.channel.clone()).write_events(request).await.unwrap();
    written.into_inner().results.remove(0)
}

/// The event by which a user accepts a completion.
fn acceptance(user: &str, kind: EventType, answer: &proto::SuggestResponse, at: usize) -> proto::Event {
    let completion = &answer.completions[at];
    proto::Event {
        r#type: kind.into(),
        viewer: viewer(user),
        query: if kind == EventType::Search { completion.text.clone() } else { String::new() },
        attribution_token: answer.attribution_token.clone(),
        completion_id: completion.completion_id.clone(),
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn accepted_completions_come_first_also_after_a_restart() {
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let answer = typed(&server, "reader", "red mug").await;
    let ids: BTreeSet<&str> = answer.completions.iter().map(|of| of.completion_id.as_str()).collect();
    assert_eq!(ids.len(), answer.completions.len(), "each completion has an id of its own");
    let last = answer.completions.len() - 1;
    let accepted = answer.completions[last].text.clone();
    let searched = answer.completions[0].text.clone();
    assert_ne!(searched, accepted);

    for user in 0..5 {
        let user = format!("u{user}");
        let seen = typed(&server, &user, "red mug").await;
        let at = seen.completions.iter().position(|completion| completion.text == accepted).unwrap();
        let kind = [EventType::Click, EventType::Search][usize::from(user == "u1")];
        let result = write(&server, acceptance(&user, kind, &seen, at)).await;
        assert_eq!((result.status(), result.warnings.len()), (EventStatus::Accepted, 0), "{result:?}");
        let search = proto::Event {
            r#type: EventType::Search.into(),
            viewer: viewer(&user),
            query: searched.clone(),
            ..Default::default()
        };
        write(&server, search).await;
    }
    let check = async |server: &GrpcServer| {
        let completions = typed(server, "reader", "red mug").await.completions;
        for (completion, text) in completions.iter().zip([&accepted, &searched]) {
            assert_eq!((&completion.text, completion.source()), (text, CompletionSource::Query));
        }
    };
    check(&server).await;
    server.end().await;
    let server = GrpcServer::start(shop.reopen(HealthBounds::default()).await).await;
    check(&server).await;
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_completion_of_another_answer_or_text_is_refused() {
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let [first, second] = [typed(&server, "p", "red").await, typed(&server, "p", "blue").await];
    let rejected = async |event: proto::Event, problem: &str| {
        let result = write(&server, event).await;
        assert_eq!(result.status(), EventStatus::Rejected, "{result:?}");
        let [violation] = &result.violations[..] else { panic!("{result:?}") };
        assert_eq!(violation.field, "events[0].completion_id");
        assert!(violation.description.contains(problem), "{violation:?}");
    };
    let click = acceptance("p", EventType::Click, &first, 0);
    let token = second.attribution_token.clone();
    rejected(proto::Event { attribution_token: token, ..click.clone() }, "another answer").await;
    rejected(proto::Event { attribution_token: String::new(), ..click.clone() }, "needs the attribution_token").await;
    let search = acceptance("p", EventType::Search, &first, 0);
    rejected(proto::Event { query: "green lamp".to_owned(), ..search }, "the query is `green lamp`").await;
    let view = proto::Event {
        r#type: EventType::View.into(),
        lines: vec![proto::EventLine { item_id: "i1".to_owned(), ..Default::default() }],
        ..click.clone()
    };
    rejected(view, "must be empty for `view`").await;
    rejected(proto::Event { completion_id: "x".repeat(8001), ..click.clone() }, "the limit is 8000").await;

    let foreign = write(&server, proto::Event { completion_id: "forged".to_owned(), ..click }).await;
    assert_eq!(foreign.status(), EventStatus::Accepted);
    assert_eq!(foreign.warnings[0].field, "events[0].completion_id");
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_suggestion_has_the_options_of_other_answers() {
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let request = proto::SuggestRequest {
        viewer: viewer("p1"),
        prefix: "red".to_owned(),
        read_mask: Some(prost_types::FieldMask { paths: vec!["title".to_owned()] }),
        debug_level: DebugLevel::Features.into(),
        serving_config: "default".to_owned(),
        ..Default::default()
    };
    let answer = suggest(&server, request.clone()).await.unwrap();
    let info = answer.info.unwrap();
    let debug = info.debug.unwrap();
    assert_eq!(info.serving_config, "default");
    assert!(debug.stages.iter().any(|stage| stage.stage == "complete") && !debug.head_weights.is_empty(), "{debug:?}");
    assert!(!answer.products.is_empty());
    for product in &answer.products {
        let item = product.item.as_ref().unwrap();
        assert!(item.title.contains("red") && item.create_time.is_none(), "{item:?}");
        assert_eq!(product.debug.as_ref().unwrap().features.len(), debug.feature_names.len());
    }

    let unknown = proto::SuggestRequest { serving_config: "none".to_owned(), ..request.clone() };
    let status = suggest(&server, unknown).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    assert_eq!(status.get_error_details().error_info().unwrap().metadata["field"], "serving_config");
    let wrong = proto::SuggestRequest {
        read_mask: Some(prost_types::FieldMask { paths: vec!["title".to_owned(), "colour".to_owned()] }),
        debug_level: 99,
        ..request
    };
    let status = suggest(&server, wrong).await.unwrap_err();
    let details = status.get_error_details();
    let fields: Vec<&str> =
        details.bad_request().unwrap().field_violations.iter().map(|violation| violation.field.as_str()).collect();
    assert_eq!(fields, ["read_mask.paths[1]", "debug_level"]);
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_suggestion_is_recorded_and_its_accepted_completions_are_counted() {
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let request = proto::SuggestRequest {
        viewer: viewer("p"),
        prefix: "red mug".to_owned(),
        completion_count: 3,
        product_count: 4,
        ..Default::default()
    };
    let answer = suggest(&server, request.clone()).await.unwrap();
    assert!(answer.completions.len() > 1 && !answer.products.is_empty());
    let shown = answer.completions.len() as u64;
    let metric = |outcome: &str| server.metric(&format!("completions_total{{outcome=\"{outcome}\"}}"));
    assert_eq!((metric("shown"), metric("accepted").unwrap_or(0)), (Some(shown), 0));

    let click = proto::Event { event_id: "e1".to_owned(), ..acceptance("p", EventType::Click, &answer, 1) };
    assert_eq!(write(&server, click.clone()).await.status(), EventStatus::Accepted);
    assert_eq!(write(&server, click).await.status(), EventStatus::Duplicate);
    let forged = proto::Event { completion_id: "forged".to_owned(), ..acceptance("p", EventType::Search, &answer, 0) };
    assert_eq!(write(&server, forged).await.status(), EventStatus::Accepted);
    assert_eq!((metric("shown"), metric("accepted")), (Some(shown), Some(1)), "neither a repetition nor a forged id");

    let replayed = replay(&server.channel, &answer.attribution_token).await;
    assert!(replayed.identical, "{}", replayed.first_difference);
    let texts: Vec<&String> = answer.completions.iter().map(|completion| &completion.text).collect();
    assert_eq!(replayed.completions.iter().collect::<Vec<_>>(), texts);
    let products: Vec<&String> = answer.products.iter().map(|product| &product.item_id).collect();
    assert_eq!(replayed.slots.iter().map(|slot| &slot.item_id).collect::<Vec<_>>(), products);
    assert_eq!(replayed.request, Some(Request::Suggest(request)));
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn titles_of_the_few_products_that_a_filter_leaves_are_completions() {
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let item = |id: &str, title: &str, brand: &str, group: &str| proto::Item {
        item_id: id.to_owned(),
        title: title.to_owned(),
        brand: brand.to_owned(),
        group_id: group.to_owned(),
        ..Default::default()
    };
    let prints = (0..300).map(|n| item(&format!("print-{n}"), &format!("Zebra print {n}"), "Acme", ""));
    let rugs = [
        item("rug-1", "Woollen zebra patterned rug, small", "Looms", "rug"),
        item("rug-2", "Woollen zebra patterned rug, large", "Looms", "rug"),
        item("rug-3", "Woollen rug of other zebras", "Looms", ""),
        item("rug-4", "Woollen rug with stripes", "Looms", ""),
    ];
    let request = proto::UpsertItemsRequest { items: prints.chain(rugs).collect(), update_time: None };
    let mut catalog = proto::catalog_service_client::CatalogServiceClient::new(server.channel.clone());
    catalog.upsert_items(request).await.unwrap();
    let completed = async |filter: &str, count: i32| -> Vec<(String, CompletionSource)> {
        let request = proto::SuggestRequest {
            viewer: viewer("v"),
            prefix: "zeb".to_owned(),
            filter: filter.to_owned(),
            completion_count: count,
            ..Default::default()
        };
        let completions = suggest(&server, request).await.unwrap().completions;
        assert!(completions.iter().all(|of| !of.completion_id.is_empty()));
        completions.into_iter().map(|of| (of.text.clone(), of.source())).collect()
    };
    assert_eq!(completed("", 8).await.len(), 8);
    // One of each product whose title has a word that begins with the prefix, whatever else is more popular.
    let found = completed("brand = \"Looms\"", 8).await;
    let titles: Vec<&String> =
        found.iter().filter(|(_, source)| *source == CompletionSource::Title).map(|(text, _)| text).collect();
    assert_eq!(titles.len(), 2, "{found:?}");
    assert!(titles.iter().all(|title| title.contains("zebra")), "{found:?}");
    assert_eq!(titles.iter().filter(|title| title.contains("patterned")).count(), 1, "{found:?}");
    assert_eq!(completed("brand = \"Looms\"", 1).await.len(), 1);
    server.end().await;
}
