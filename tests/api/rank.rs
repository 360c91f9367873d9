//! Rank over gRPC: the caller's retrieval scores, items that the catalogue does not have, and values of features.
use crate::support::{bundles::Shop, grpc::GrpcServer, items::all_fields, status::violations};
use lodestone::server::proto::{
    self, DebugLevel, ReasonCode, catalog_service_client::CatalogServiceClient,
    explain_service_client::ExplainServiceClient, ranking_service_client::RankingServiceClient,
};
use lodestone_core::units::UnixMillis;
use lodestone_pipeline::serving::{Serving, ServingConfig};
use lodestone_rollout::HealthBounds;
use lodestone_training::TrainOptions;
use std::collections::HashMap;
use tonic::{Code, Status};
use tonic_types::StatusExt;

fn viewer() -> Option<proto::Viewer> {
    Some(proto::Viewer { user_id: "p1".to_owned(), ..Default::default() })
}

fn candidate(id: &str) -> proto::RankCandidate {
    proto::RankCandidate { item_id: id.to_owned(), ..Default::default() }
}

fn scored(id: &str, score: f64) -> proto::RankCandidate {
    proto::RankCandidate { retrieval_score: Some(score), ..candidate(id) }
}

fn with_features(id: &str, features: &[(&str, f64)]) -> proto::RankCandidate {
    let features = features.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
    proto::RankCandidate { features, ..candidate(id) }
}

/// A candidate with an item of its own.
fn described(id: &str, title: &str) -> proto::RankCandidate {
    let item = proto::Item {
        title: title.to_owned(),
        price_micros: Some(4_950_000),
        create_time: Some(prost_types::Timestamp { seconds: 1_700_000_000, nanos: 0 }),
        ..Default::default()
    };
    proto::RankCandidate { item: Some(item), ..candidate(id) }
}

async fn rank(server: &GrpcServer, candidates: Vec<proto::RankCandidate>) -> Result<proto::RankResponse, Status> {
    let options = proto::RankingOptions {
        debug_level: DebugLevel::Features.into(),
        read_mask: Some(all_fields()),
        ..Default::default()
    };
    let request =
        proto::RankRequest { viewer: viewer(), candidates, query: "red mug".to_owned(), options: Some(options) };
    Ok(RankingServiceClient::new(server.channel.clone()).rank(request).await?.into_inner())
}

fn ids(answer: &proto::RankResponse) -> Vec<&str> {
    answer.results.iter().map(|result| result.item_id.as_str()).collect()
}

fn result<'a>(answer: &'a proto::RankResponse, id: &str) -> &'a proto::Result {
    answer.results.iter().find(|result| result.item_id == id).unwrap()
}

/// The features of a result by name.
fn features(answer: &proto::RankResponse, id: &str) -> HashMap<String, f32> {
    let names = &answer.info.as_ref().unwrap().debug.as_ref().unwrap().feature_names;
    let values = &result(answer, id).debug.as_ref().unwrap().features;
    assert_eq!(names.len(), values.len());
    names.iter().cloned().zip(values.iter().copied()).collect()
}

fn refused_fields(status: &Status) -> Vec<String> {
    violations(status).into_iter().map(|(field, _)| field).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_callers_scores_are_the_first_stage() {
    let shop = Shop::new();
    let config = ServingConfig { ranker: false, ..ServingConfig::default() };
    let server = GrpcServer::start(shop.open_serving(Serving::of(config))).await;
    let sent = vec![
        scored("i1", 0.1),
        scored("i2", 7.5),
        candidate("i3"),
        scored("i4", 7.5),
        scored("i5", -1e300),
        candidate("i6"),
    ];
    let answer = rank(&server, sent).await.unwrap();
    assert_eq!(ids(&answer), ["i2", "i4", "i1", "i5", "i3", "i6"]);
    for (index, result) in answer.results.iter().enumerate() {
        let debug = result.debug.as_ref().unwrap();
        let fused = 1.0 / (61.0 + index as f64);
        assert!((debug.retrieval_score - fused).abs() < 1e-6 && debug.retrieval_rank == index as i32 + 1, "{debug:?}");
        assert_eq!(features(&answer, &result.item_id)["retrieval_score"], debug.retrieval_score as f32);
        assert!((result.score - fused).abs() < 1e-6, "without the ranking model: {result:?}");
        assert_eq!(debug.source_scores[0].name, "caller");
        assert_eq!(result.reasons[0].code(), ReasonCode::Candidate);
    }
    let first = &answer.results[0].debug.as_ref().unwrap().source_scores;
    assert_eq!(first.iter().map(|named| named.score).collect::<Vec<_>>(), [7.5]);
    let in_order = rank(&server, ["i9", "i3", "i7"].map(candidate).to_vec()).await.unwrap();
    assert_eq!(ids(&in_order), ["i9", "i3", "i7"], "without scores, the order of the request");
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_item_of_the_request_is_ranked_as_if_it_were_written() {
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let mut catalogue = CatalogServiceClient::new(server.channel.clone());
    let sent = || vec![candidate("i3"), described("guest", "red mug number 99"), candidate("none"), candidate("i6")];
    let before = rank(&server, sent()).await.unwrap();
    assert_eq!(before.info.as_ref().unwrap().unknown_item_ids, ["none"]);
    assert_eq!(ids(&before)[3], "none", "it is last");
    let guest = result(&before, "guest").item.clone().unwrap();
    assert_eq!((guest.title.as_str(), guest.price_micros), ("red mug number 99", Some(4_950_000)));
    let of_guest = features(&before, "guest");
    assert!(of_guest["query_similarity"] > 0.0 && of_guest["price"] > 1.7, "{of_guest:?}");

    // Nothing is stored.
    let get = proto::GetItemRequest { item_id: "guest".to_owned() };
    assert_eq!(catalogue.get_item(get).await.unwrap_err().code(), Code::NotFound);
    let unknown = rank(&server, vec![candidate("i3"), candidate("guest")]).await.unwrap();
    assert_eq!(unknown.info.unwrap().unknown_item_ids, ["guest"]);

    // The answer can be replayed to the bit.
    let replay = proto::ReplayAnswerRequest { attribution_token: before.attribution_token.clone() };
    let replayed = ExplainServiceClient::new(server.channel.clone()).replay_answer(replay).await.unwrap().into_inner();
    assert!(replayed.identical, "{}", replayed.first_difference);

    let item = proto::Item { item_id: "guest".to_owned(), ..described("guest", "red mug number 99").item.unwrap() };
    let upsert = proto::UpsertItemsRequest { items: vec![item], update_time: None };
    catalogue.upsert_items(upsert).await.unwrap();
    let after = rank(&server, sent()).await.unwrap();
    let of_written = features(&after, "guest");
    for (name, value) in of_guest {
        assert!((value - of_written[&name]).abs() < 1e-3, "{name}: {value} and {}", of_written[&name]);
    }
    let notices = after.info.unwrap().notices;
    assert!(notices.iter().any(|notice| notice.description.contains("the first of them `guest`")), "{notices:?}");
    server.end().await;
}

/// The bundle has the prices of its training, because no item of the shop has a sale with dates.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_item_of_the_request_has_the_price_of_now() {
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let now = UnixMillis::now().0 / 1000;
    let time = |seconds: i64| Some(prost_types::Timestamp { seconds: now + seconds, nanos: 0 });
    let on_sale = |id: &str, start, end| {
        let mut candidate = described(id, "red mug");
        let item = candidate.item.as_mut().unwrap();
        (item.sale_price_micros, item.sale_start_time, item.sale_end_time) = (Some(3_000_000), start, end);
        candidate
    };
    let sent = vec![on_sale("begun", time(-3600), time(3600)), on_sale("ended", None, time(-3600))];
    let answer = rank(&server, sent).await.unwrap();
    let price = |id: &str| result(&answer, id).item.as_ref().unwrap().price_micros;
    assert_eq!((price("begun"), price("ended")), (Some(3_000_000), Some(4_950_000)));
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_candidates_are_refused_with_their_paths() {
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let untitled = described("a", " ");
    let mut other = described("b", "b");
    other.item.as_mut().unwrap().item_id = "c".to_owned();
    let mut wrong = vec![untitled, other, scored("d", f64::NAN), with_features("e", &[("margin", f64::INFINITY)])];
    let status = rank(&server, wrong.clone()).await.unwrap_err();
    let fields = [
        "candidates[0].item.title",
        "candidates[1].item.item_id",
        "candidates[2].retrieval_score",
        "candidates[3].features[margin]",
        "candidates[3].features[margin]",
    ];
    assert_eq!(refused_fields(&status), fields);
    assert!(status.message().contains("candidates[0].item.title"));
    wrong = (0..101).map(|number| described(&format!("x{number}"), "x")).collect();
    let status = rank(&server, wrong).await.unwrap_err();
    let info = status.get_error_details().error_info().unwrap().clone();
    assert_eq!(refused_fields(&status), ["candidates"]);
    assert_eq!((info.metadata["field"].as_str(), info.metadata["limit"].as_str()), ("candidates", "100"));
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn declared_features_have_the_values_of_the_request() {
    let shop = Shop::new();
    let declared = r#"[{"kind": "request", "name": "margin", "missing": 0.25}, {"kind": "request", "name": "distance", "log": true}]"#;
    let features_of_shop = serde_json::from_str(declared).unwrap();
    shop.publish_trained_with(TrainOptions {
        name: "declared".to_owned(),
        features: features_of_shop,
        ..TrainOptions::default()
    });
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let mut guest = described("guest", "blue lamp");
    guest.features = with_features("", &[("distance", 1.0)]).features;
    let sent = vec![with_features("i1", &[("margin", 0.5), ("distance", -3.0)]), guest, candidate("i2")];
    let answer = rank(&server, sent).await.unwrap();
    let values = |id: &str| (features(&answer, id)["margin"], features(&answer, id)["distance"]);
    assert_eq!(values("i1"), (0.5, -(3f32.ln_1p())));
    assert_eq!(values("guest"), (0.25, 1f32.ln_1p()));
    assert_eq!(values("i2"), (0.25, 0.0));

    let status = rank(&server, vec![with_features("i1", &[("colour", 1.0), ("margin", 1.0)])]).await.unwrap_err();
    assert_eq!(refused_fields(&status), ["candidates[0].features[colour]"]);
    assert!(status.message().contains("declares margin, distance"), "{status:?}");
    server.end().await;
}
