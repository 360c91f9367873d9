//! Searches without an item that has every word, over gRPC.
use crate::support::{bundles::Shop, grpc::GrpcServer};
use lodestone::server::proto::{
    self, catalog_service_client::CatalogServiceClient, event_service_client::EventServiceClient,
    ranking_service_client::RankingServiceClient,
};
use lodestone_rollout::HealthBounds;

/// One item has the rare word and a common one, two have the rare word alone, and 30 items, which users buy, have both
/// common words.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn items_with_the_rare_word_of_a_query_precede_those_with_common_words() {
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let rare = ["navy chenille cushion", "green chenille rug", "white chenille throw"];
    let common = (0..30).map(|number| format!("flower navy candle {number}"));
    let others = (0..60).map(|number| format!("stone vase {number}"));
    let titles: Vec<String> = rare.iter().map(ToString::to_string).chain(common).chain(others).collect();
    let items = titles.iter().enumerate().map(|(number, title)| proto::Item {
        item_id: format!("n{number}"),
        title: title.clone(),
        ..Default::default()
    });
    let request = proto::UpsertItemsRequest { items: items.collect(), update_time: None };
    CatalogServiceClient::new(server.channel.clone()).upsert_items(request).await.unwrap();
    let purchases = (3..33).flat_map(|item| (0..5).map(move |user| (item, user)));
    let event = |(item, user): (usize, usize)| proto::Event {
        event_id: format!("{item} {user}"),
        r#type: proto::EventType::Purchase.into(),
        viewer: Some(proto::Viewer { user_id: format!("u{user}"), ..Default::default() }),
        lines: vec![proto::EventLine { item_id: format!("n{item}"), ..Default::default() }],
        ..Default::default()
    };
    let request = proto::WriteEventsRequest { events: purchases.map(event).collect() };
    let written = EventServiceClient::new(server.channel.clone()).write_events(request).await.unwrap().into_inner();
    for query in ["flower chenille navy", "chenille flower navy"] {
        let request = proto::SearchRequest {
            viewer: Some(proto::Viewer { user_id: "u1".to_owned(), ..Default::default() }),
            query: query.to_owned(),
            page_size: 10,
            options: Some(proto::RankingOptions {
                consistency_token: written.consistency_token.clone(),
                ..Default::default()
            }),
            ..Default::default()
        };
        let answer = RankingServiceClient::new(server.channel.clone()).search(request).await.unwrap().into_inner();
        let degradations = answer.info.unwrap().degradations;
        let is_relaxed = |of: &proto::Degradation| of.code() == proto::DegradationCode::QueryRelaxed;
        assert!(degradations.iter().any(is_relaxed), "{degradations:?}");
        let found: Vec<&str> = answer.results.iter().map(|result| &*result.item_id).collect();
        assert_eq!((found.len(), found[0]), (10, "n0"), "{query}: {found:?}");
        let has_rare = |id: &str| ["n0", "n1", "n2"].contains(&id);
        assert!(found[..3].iter().all(|id| has_rare(id)), "{query}: {found:?}");
    }
    server.end().await;
}
