//! The platform, region, locale and session of viewers, over gRPC: events and answers keep them, and the ranking model
//! uses them.
use crate::support::{
    bundles::{ITEMS, Shop, item_id},
    grpc::GrpcServer,
    wait::wait_until,
};
use lodestone::server::proto::{
    self, EventType, Platform, RecommendType, event_service_client::EventServiceClient,
    ranking_service_client::RankingServiceClient,
};
use lodestone_core::{
    ids::UserId,
    units::UnixMillis,
    viewer::{self, ViewerContext},
};
use lodestone_dataset::DatasetEvent;
use lodestone_events::{Change, EventKind, log};
use lodestone_pipeline::{answers, features::FeatureSchema};
use lodestone_rollout::HealthBounds;
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::time::Duration;

const WAIT_MAX: Duration = Duration::from_secs(60);

/// Users whose visits are in an app or on a desktop at random, and who buy items with even numbers in the app and those
/// with odd numbers on the desktop.
fn purchases_by_platform() -> Vec<DatasetEvent> {
    let mut rng = StdRng::seed_from_u64(5);
    let mut rows = Vec::new();
    for user in 0..100 {
        for visit in 0..14 {
            let is_app = rng.random_bool(0.5);
            let platform = if is_app { viewer::Platform::Ios } else { viewer::Platform::Web };
            let item = 2 * rng.random_range(0..ITEMS / 2) + usize::from(!is_app);
            let at = UnixMillis(1_700_000_000_000 + ((visit * 240 + rng.random_range(0..240)) as i64) * 3_600_000);
            let (id, user_id) = (format!("{user}-{visit}"), UserId::signed_in(&format!("p{user}")).ok());
            let context = ViewerContext { platform: Some(platform), ..ViewerContext::default() };
            let row = DatasetEvent::of_item(id, EventKind::Purchase, user_id, at, item_id(item));
            rows.push(DatasetEvent { context, ..row });
        }
    }
    rows.sort_by_key(|row| row.at);
    rows
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_platform_of_the_viewer_changes_the_answer() {
    let affinity = r#"[{"kind": "context_affinity", "name": "platform_affinity", "field": "platform"}]"#;
    let features: FeatureSchema = serde_json::from_str(affinity).unwrap();
    let shop = Shop::of(&purchases_by_platform(), features);
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let mut client = RankingServiceClient::new(server.channel.clone());
    let mut even_of_ten = async |platform: Platform| {
        let viewer = proto::Viewer { visitor_id: "new".to_owned(), platform: platform.into(), ..Default::default() };
        let request = proto::RecommendRequest {
            viewer: Some(viewer),
            r#type: RecommendType::ForYou.into(),
            page_size: 10,
            ..Default::default()
        };
        let results = client.recommend(request).await.unwrap().into_inner().results;
        let number = |result: &proto::Result| result.item_id[1..].parse::<usize>().unwrap();
        results.iter().filter(|result| number(result).is_multiple_of(2)).count()
    };
    assert_eq!(even_of_ten(Platform::Ios).await, 10);
    assert_eq!(even_of_ten(Platform::Web).await, 0);
    let unknown = even_of_ten(Platform::Unspecified).await;
    assert!((2..=8).contains(&unknown), "{unknown} of ten");
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_and_answers_keep_the_context_and_the_session_of_the_viewer() {
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let viewer = proto::Viewer {
        user_id: "anna".to_owned(),
        session_id: "visit-7".to_owned(),
        platform: Platform::MobileWeb.into(),
        locale: "de-AT".to_owned(),
        region_code: "at".to_owned(),
        ..Default::default()
    };
    let event = proto::Event {
        r#type: EventType::View.into(),
        viewer: Some(viewer.clone()),
        lines: vec![proto::EventLine { item_id: "i1".to_owned(), ..Default::default() }],
        ..Default::default()
    };
    let written = proto::WriteEventsRequest { events: vec![event] };
    EventServiceClient::new(server.channel.clone()).write_events(written).await.unwrap();
    let request = proto::RecommendRequest {
        viewer: Some(viewer),
        r#type: RecommendType::ForYou.into(),
        page_size: 3,
        ..Default::default()
    };
    RankingServiceClient::new(server.channel.clone()).recommend(request).await.unwrap();
    let logged = shop.data_path().join("answers");
    let mut rows = Vec::new();
    wait_until("the answer is logged", WAIT_MAX, async || {
        rows = answers::read_rows(&logged, UnixMillis(0), 10).map_or_else(|_| Vec::new(), |(rows, _)| rows);
        !rows.is_empty()
    })
    .await;
    assert_eq!((rows.len(), rows[0].session.as_str()), (3, "visit-7"));
    assert_eq!(rows[0].context.texts(), ["mobile_web", "AT", "de-AT"]);
    server.end().await;

    let mut stored = Vec::new();
    log::read(&shop.data_path().join("log"), 1, |_, _, change| stored.push(change)).unwrap();
    let [Change::Event(event)] = &stored[..] else { panic!("one event: {stored:?}") };
    assert_eq!((event.session.as_str(), event.context.texts()), ("visit-7", ["mobile_web", "AT", "de-AT"]));
}
