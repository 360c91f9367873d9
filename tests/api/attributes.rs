//! Attributes that are times and places, and the report of the kinds of attributes, over gRPC.
use crate::support::{bundles::Shop, grpc::GrpcServer};
use lodestone::server::proto::{
    self, AttributeValue, attribute_value::Kind, catalog_service_client::CatalogServiceClient,
    ranking_service_client::RankingServiceClient,
};
use lodestone_rollout::HealthBounds;
use tonic::{Code, Status, transport::Channel};

fn item(id: &str, attributes: Vec<(&str, Kind)>) -> proto::Item {
    let value = |(name, kind): (&str, Kind)| (name.to_owned(), AttributeValue { kind: Some(kind) });
    proto::Item {
        item_id: id.to_owned(),
        title: format!("garden gnome {id}"),
        categories: vec!["Gnomes".to_owned()],
        attributes: attributes.into_iter().map(value).collect(),
        ..Default::default()
    }
}

fn time(seconds: i64) -> Kind {
    Kind::Time(prost_types::Timestamp { seconds, nanos: 0 })
}

fn place(latitude: f64, longitude: f64) -> Kind {
    Kind::GeoPoint(proto::GeoPoint { latitude, longitude })
}

async fn upsert(channel: &Channel, items: Vec<proto::Item>) -> Vec<proto::ItemResult> {
    let request = proto::UpsertItemsRequest { items, update_time: None };
    CatalogServiceClient::new(channel.clone()).upsert_items(request).await.unwrap().into_inner().results
}

async fn ids(channel: &Channel, filter: &str, order_by: &str) -> Result<String, Status> {
    let request = proto::SearchRequest {
        viewer: Some(proto::Viewer { visitor_id: "v".to_owned(), ..Default::default() }),
        filter: format!("category = \"Gnomes\" AND {filter}"),
        options: Some(proto::RankingOptions { order_by: order_by.to_owned(), ..Default::default() }),
        ..Default::default()
    };
    let answer = RankingServiceClient::new(channel.clone()).search(request).await?.into_inner();
    Ok(answer.results.into_iter().map(|result| result.item_id).collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn times_and_places_are_filtered_sorted_and_reported() {
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let channel = &server.channel;
    // 2026-01-01, and places in Berlin, Potsdam and Sydney.
    const YEAR: i64 = 1_767_225_600;
    let gnomes = vec![
        item("a", vec![("released", time(YEAR)), ("branch", place(52.52, 13.405))]),
        item("b", vec![("released", time(YEAR + 1)), ("branch", place(52.39, 13.065))]),
        item("c", vec![("released", time(YEAR - 1)), ("branch", place(-33.87, 151.21))]),
        item("d", vec![("released", Kind::Text("soon".to_owned())), ("branch", Kind::Number(52.52))]),
        item("e", vec![]),
    ];
    assert!(upsert(channel, gnomes.clone()).await.iter().all(|result| result.violations.is_empty()));
    for (filter, order, expected) in [
        ("attributes.released >= timestamp(\"2026-01-01T00:00:00Z\")", "item_id", "ab"),
        ("attributes.released < timestamp(\"2026-01-01\")", "item_id", "c"),
        ("attributes.released = timestamp(\"2026-01-01T01:00:00+01:00\")", "item_id", "a"),
        ("attributes.released != timestamp(\"2026-01-01\")", "item_id", "bc"),
        ("NOT attributes.released < timestamp(\"2026-01-01\")", "item_id", "abde"),
        ("attributes.released = \"soon\"", "item_id", "d"),
        ("distance(attributes.branch, 52.5, 13.4) < 10 km", "item_id", "a"),
        ("distance(attributes.branch, 52.5, 13.4) <= 2300 m", "item_id", "a"),
        ("distance(attributes.branch, 52.5, 13.4) < 2 km", "item_id", ""),
        ("distance(attributes.branch, 52.5, 13.4) > 10 km", "item_id", "bc"),
        ("in_stock", "distance(attributes.branch, 52.4, 13.0), item_id", "bacde"),
        ("in_stock", "distance(attributes.branch, 52.4, 13.0) desc, item_id desc", "cabed"),
        ("item_id IN (\"a\", \"b\", \"c\")", "attributes.released desc", "bac"),
    ] {
        assert_eq!(ids(channel, filter, order).await.unwrap(), expected, "{filter}; {order}");
    }
    for filter in [
        "distance(attributes.branch, 95, 0) < 1 km",
        "distance(attributes.branch, 52, 13) < 1",
        "attributes.released < timestamp(\"soon\")",
    ] {
        assert_eq!(ids(channel, filter, "").await.unwrap_err().code(), Code::InvalidArgument, "{filter}");
    }
    let mut catalog = CatalogServiceClient::new(channel.clone());
    let stored = catalog.get_item(proto::GetItemRequest { item_id: "b".to_owned() }).await.unwrap().into_inner();
    assert_eq!(stored.item.unwrap().attributes, gnomes[1].attributes);
    let listed = catalog.list_attributes(proto::ListAttributesRequest {}).await.unwrap().into_inner();
    let kinds = |kinds: &proto::AttributeKinds| {
        let kind = |kind: &proto::AttributeKindCount| (kind.kind(), kind.item_count, kind.example_item_id.clone());
        (kinds.name.clone(), kinds.kinds.iter().map(kind).collect::<Vec<_>>())
    };
    use proto::AttributeKind::{GeoPoint, Number, Text, Time};
    let of = |kind, count, example: &str| (kind, count, example.to_owned());
    assert_eq!(
        listed.attributes.iter().map(kinds).collect::<Vec<_>>(),
        [
            ("branch".to_owned(), vec![of(GeoPoint, 3, "a"), of(Number, 1, "d")]),
            ("released".to_owned(), vec![of(Time, 3, "a"), of(Text, 1, "d")]),
        ]
    );
    let bad = upsert(
        channel,
        vec![
            item("x", vec![("branch", place(90.5, 0.0))]),
            item("y", vec![("branch", place(0.0, f64::NAN))]),
            item("z", vec![("released", time(i64::MAX))]),
        ],
    )
    .await;
    let fields: Vec<&str> = bad.iter().flat_map(|result| &result.violations).map(|found| &*found.field).collect();
    let expected = ["items[0].attributes[branch]", "items[1].attributes[branch]", "items[2].attributes[released]"];
    assert_eq!(fields, expected);
    server.end().await;
}
