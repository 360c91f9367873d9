//! Facets over gRPC, compared with counts item by item.
use crate::support::{bundles::Shop, grpc::GrpcServer};
use lodestone::server::proto::{
    self, AttributeValue, RecommendType, attribute_value::Kind, catalog_service_client::CatalogServiceClient,
    ranking_service_client::RankingServiceClient,
};
use lodestone_rollout::HealthBounds;
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::collections::BTreeMap;
use tonic::Code;
use tonic_types::StatusExt;

const BRANDS: [&str; 4] = ["Acme", "Blue Mountain", "Zeta", "蓝山咖啡"];
const COLORS: [&str; 3] = ["red", "blue", "green"];

/// A shelf with its brand, colour and price as indices and units.
struct Shelf {
    brand: usize,
    color: usize,
    price: i64,
}

impl Shelf {
    fn item(&self, number: usize) -> proto::Item {
        let color = AttributeValue { kind: Some(Kind::Text(COLORS[self.color].to_owned())) };
        proto::Item {
            item_id: format!("shelf-{number}"),
            title: format!("walnut shelf {number}"),
            brand: BRANDS[self.brand].to_owned(),
            categories: vec!["Shelves".to_owned()],
            price_micros: Some(self.price * 1_000_000),
            attributes: [("color".to_owned(), color)].into(),
            ..Default::default()
        }
    }
}

fn facet(field: &str, multi_select: bool) -> proto::FacetSpec {
    proto::FacetSpec { field: field.to_owned(), multi_select, bounds: bounds(field), ..Default::default() }
}

fn bounds(field: &str) -> Vec<f64> {
    if field == "price" { vec![5.0] } else { Vec::new() }
}

/// Returns counts by value, or by the lower end of a range.
fn counts(facet: &proto::Facet) -> BTreeMap<String, i64> {
    let name = |value: &proto::FacetValue| match value.value.as_str() {
        "" => value.min.map_or("below".to_owned(), |min| min.to_string()),
        text => text.to_owned(),
    };
    facet.values.iter().map(|value| (name(value), value.item_count)).filter(|(_, count)| *count > 0).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn facets_that_select_several_values_count_without_their_own_condition() {
    const COUNT: usize = 1500;
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let mut random = StdRng::seed_from_u64(4);
    let shelves: Vec<Shelf> = (0..COUNT)
        .map(|_| Shelf {
            brand: random.random_range(0..BRANDS.len()),
            color: random.random_range(0..COLORS.len()),
            price: random.random_range(0..10),
        })
        .collect();
    let items: Vec<proto::Item> = shelves.iter().enumerate().map(|(n, shelf)| shelf.item(n)).collect();
    for part in items.chunks(1000) {
        let request = proto::UpsertItemsRequest { items: part.to_vec(), update_time: None };
        CatalogServiceClient::new(server.channel.clone()).upsert_items(request).await.unwrap();
    }
    let count = |field: &str, is_counted: &dyn Fn(&Shelf) -> bool| -> BTreeMap<String, i64> {
        let mut counts = BTreeMap::new();
        for shelf in shelves.iter().filter(|shelf| is_counted(shelf)) {
            let value = match field {
                "brand" => BRANDS[shelf.brand],
                "attributes.color" => COLORS[shelf.color],
                _ if shelf.price < 5 => "below",
                _ => "5",
            };
            *counts.entry(value.to_owned()).or_default() += 1;
        }
        counts
    };
    let mut client = RankingServiceClient::new(server.channel.clone());
    let viewer = Some(proto::Viewer { visitor_id: "v".to_owned(), ..Default::default() });
    let fields = ["brand", "attributes.color", "price"];
    let filter = "category = \"Shelves\" AND (brand = \"Acme\" OR brand = \"Zeta\") AND attributes.color IN (\"red\") \
                  AND price >= 5";
    let is_brand = |shelf: &Shelf| [0, 2].contains(&shelf.brand);
    let is_color = |shelf: &Shelf| shelf.color == 0;
    let is_price = |shelf: &Shelf| shelf.price >= 5;
    for query in ["", "walnut shelf"] {
        for multi_select in [[false; 3], [true; 3], [true, false, false], [false, true, true]] {
            let request = proto::SearchRequest {
                viewer: viewer.clone(),
                query: query.to_owned(),
                filter: filter.to_owned(),
                facet_specs: fields.iter().zip(multi_select).map(|(field, multi)| facet(field, multi)).collect(),
                ..Default::default()
            };
            let answer = client.search(request).await.unwrap().into_inner();
            let matches = |shelf: &Shelf, without: Option<usize>| {
                (without == Some(0) || is_brand(shelf))
                    && (without == Some(1) || is_color(shelf))
                    && (without == Some(2) || is_price(shelf))
            };
            for (at, field) in fields.iter().enumerate() {
                let without = multi_select[at].then_some(at);
                let expected = count(field, &|shelf| matches(shelf, without));
                assert_eq!(counts(&answer.facets[at]), expected, "`{query}`, {field}, {multi_select:?}");
            }
            let total = shelves.iter().filter(|shelf| matches(shelf, None)).count();
            assert_eq!((answer.total_size as usize, answer.facet_item_count as usize), (total, total));
        }
    }
    // Of recommendations, all eligible items are counted.
    let request = proto::RecommendRequest {
        viewer: viewer.clone(),
        r#type: RecommendType::ForYou.into(),
        filter: filter.to_owned(),
        facet_specs: vec![facet("brand", true)],
        ..Default::default()
    };
    let answer = client.recommend(request).await.unwrap().into_inner();
    assert_eq!(counts(&answer.facets[0]), count("brand", &|shelf| is_color(shelf) && is_price(shelf)));
    // A condition that OR joins with another field stays; so does one of another field with the same value.
    let request = proto::SearchRequest {
        viewer: viewer.clone(),
        filter: "category = \"Shelves\" AND (brand = \"Acme\" OR price < 5)".to_owned(),
        facet_specs: vec![facet("brand", true)],
        ..Default::default()
    };
    let answer = client.search(request).await.unwrap().into_inner();
    assert_eq!(counts(&answer.facets[0]), count("brand", &|shelf| shelf.brand == 0 || shelf.price < 5));

    // Values are found by the begin of a word.
    for (value_query, brand) in [("mou", 1), ("BLUE mountain", 1), ("咖啡", 3)] {
        let spec = proto::FacetSpec { value_query: value_query.to_owned(), ..facet("brand", false) };
        let request = proto::SearchRequest {
            viewer: viewer.clone(),
            filter: "category = \"Shelves\"".to_owned(),
            facet_specs: vec![spec],
            ..Default::default()
        };
        let answer = client.search(request).await.unwrap().into_inner();
        assert_eq!(counts(&answer.facets[0]), count("brand", &|shelf| shelf.brand == brand), "{value_query}");
    }
    let bad = |field: &str, value_query: &str| proto::FacetSpec {
        value_query: value_query.to_owned(),
        ..facet(field, false)
    };
    let request = proto::SearchRequest {
        viewer,
        facet_specs: vec![bad("brand", &"x".repeat(201)), bad("price", "5"), bad("tags", " "), bad("in_stock", "t")],
        ..Default::default()
    };
    let status = client.search(request).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    let details = status.get_error_details();
    let fields: Vec<&str> =
        details.bad_request().unwrap().field_violations.iter().map(|violation| violation.field.as_str()).collect();
    assert_eq!(fields, [0, 1, 2, 3].map(|n| format!("facet_specs[{n}].value_query")));
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_facet_that_selects_several_values_counts_though_nothing_matches_its_condition() {
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let mut items: Vec<proto::Item> = (0..9)
        .map(|number| Shelf { brand: usize::from(number < 3), color: number % 3, price: number as i64 }.item(number))
        .collect();
    for (number, item) in items.iter_mut().enumerate() {
        item.title = format!("{} shelf {number}", if number < 3 { "zebrano" } else { "walnut" });
        item.rating = Some(if number < 6 { 4.5 } else { 2.0 });
    }
    let request = proto::UpsertItemsRequest { items, update_time: None };
    CatalogServiceClient::new(server.channel.clone()).upsert_items(request).await.unwrap();
    let search = async |query: &str, filter: &str, specs: Vec<proto::FacetSpec>| {
        let request = proto::SearchRequest {
            viewer: Some(proto::Viewer { user_id: "u".to_owned(), ..Default::default() }),
            query: query.to_owned(),
            filter: filter.to_owned(),
            facet_specs: specs,
            ..Default::default()
        };
        RankingServiceClient::new(server.channel.clone()).search(request).await.unwrap().into_inner()
    };
    // Shelves 3 to 8 are of walnut and Acme, the others of zebrano and Blue Mountain.
    let specs = || vec![facet("brand", true), facet("attributes.color", true), facet("price", true)];
    let acme = BTreeMap::from([("Acme".to_owned(), 6)]);
    let found = search("walnut", "brand = \"Blue Mountain\"", specs()).await;
    assert_eq!(counts(&found.facets[0]), acme);
    let found = search("walnut", "brand = \"Acme\" AND attributes.color = \"red\" AND price < 5", specs()).await;
    assert_eq!((found.total_size, counts(&found.facets[0])), (1, BTreeMap::from([("Acme".to_owned(), 1)])));
    assert_eq!(counts(&found.facets[1]).values().sum::<i64>(), 2, "the shelves 3 and 4");
    assert_eq!(counts(&found.facets[2]), BTreeMap::from([("below".to_owned(), 1), ("5".to_owned(), 1)]));
    // Without its condition, the facet counts the items with all words, though the filter leaves those with some.
    let found = search("walnut shelf", "brand = \"Blue Mountain\"", specs()).await;
    assert_eq!((found.total_size, counts(&found.facets[0])), (3, acme));

    let rating = proto::FacetSpec { bounds: vec![4.0], ..facet("rating", false) };
    let found = search("shelf", "brand = \"Acme\"", vec![rating, facet("stock_quantity", false)]).await;
    assert_eq!(counts(&found.facets[0]), BTreeMap::from([("below".to_owned(), 3), ("4".to_owned(), 3)]));
    assert!(found.facets[1].values.is_empty());
    server.end().await;
}
