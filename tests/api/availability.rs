//! Items that are sold out, paths of categories and attributes with several texts, over gRPC.
use crate::support::{bundles::Shop, grpc::GrpcServer, items::all_fields};
use lodestone::server::proto::{
    self, AttributeValue, RecommendType, SoldOut, attribute_value::Kind, catalog_service_client::CatalogServiceClient,
    ranking_service_client::RankingServiceClient,
};
use lodestone_rollout::HealthBounds;
use std::collections::{BTreeMap, BTreeSet};
use tonic::transport::Channel;

const COUNT: usize = 600;

/// Every third mug is sold out.
fn is_sold_out(number: usize) -> bool {
    number.is_multiple_of(3)
}

fn mug(number: usize) -> proto::Item {
    proto::Item {
        item_id: format!("mug-{number}"),
        title: format!("porcelain mug {number}"),
        categories: vec!["Tableware".to_owned()],
        price_micros: Some((number as i64 * 7 % 50) * 1_000_000),
        stock_quantity: Some(if is_sold_out(number) { 0 } else { 4 }),
        ..Default::default()
    }
}

async fn upsert(channel: &Channel, items: Vec<proto::Item>) {
    let request = proto::UpsertItemsRequest { items, update_time: None };
    let written = CatalogServiceClient::new(channel.clone()).upsert_items(request).await.unwrap().into_inner();
    assert!(written.results.iter().all(|result| result.violations.is_empty()), "{:?}", written.results);
}

fn viewer() -> Option<proto::Viewer> {
    Some(proto::Viewer { visitor_id: "v".to_owned(), ..Default::default() })
}

fn request(query: &str, filter: &str, sold_out: SoldOut, order_by: &str) -> proto::SearchRequest {
    proto::SearchRequest {
        viewer: viewer(),
        query: query.to_owned(),
        filter: filter.to_owned(),
        page_size: 100,
        options: Some(proto::RankingOptions {
            sold_out: sold_out.into(),
            order_by: order_by.to_owned(),
            read_mask: Some(all_fields()),
            ..Default::default()
        }),
        ..Default::default()
    }
}

async fn search(channel: &Channel, request: &proto::SearchRequest) -> proto::SearchResponse {
    RankingServiceClient::new(channel.clone()).search(request.clone()).await.unwrap().into_inner()
}

async fn all_items(channel: &Channel, request: &proto::SearchRequest) -> (Vec<proto::Item>, usize) {
    let (mut items, mut token, mut total) = (Vec::new(), String::new(), 0);
    loop {
        let page = search(channel, &proto::SearchRequest { page_token: token, ..request.clone() }).await;
        total = page.total_size.max(total);
        items.extend(page.results.into_iter().map(|result| result.item.unwrap()));
        token = page.next_page_token;
        if token.is_empty() {
            return (items, total as usize);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn items_that_are_sold_out_are_hidden_last_or_shown() {
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    upsert(&server.channel, (0..COUNT).map(mug).collect()).await;
    let filter = "category = \"Tableware\"";
    let in_stock = (0..COUNT).filter(|n| !is_sold_out(*n)).count();
    let is_in_stock = |item: &proto::Item| item.stock_quantity != Some(0);
    for query in ["", "porcelain mug"] {
        for order_by in ["", "price", "price desc, title"] {
            let what = format!("`{query}` by `{order_by}`");
            for (sold_out, count) in [
                (SoldOut::Unspecified, in_stock),
                (SoldOut::Hide, in_stock),
                (SoldOut::Last, COUNT),
                (SoldOut::Show, COUNT),
            ] {
                let (items, total) = all_items(&server.channel, &request(query, filter, sold_out, order_by)).await;
                let distinct: BTreeSet<&str> = items.iter().map(|item| item.item_id.as_str()).collect();
                assert_eq!((items.len(), distinct.len(), total), (count, count, count), "{what}, {sold_out:?}");
                let first_sold_out = items.iter().position(|item| !is_in_stock(item)).unwrap_or(items.len());
                if sold_out == SoldOut::Last {
                    assert_eq!(first_sold_out, in_stock, "{what}: sold-out items come last");
                    let prices = |items: &[proto::Item]| items.iter().map(|item| item.price_micros).collect::<Vec<_>>();
                    if order_by == "price" {
                        let parts = [&items[..in_stock], &items[in_stock..]].map(prices);
                        assert!(parts.iter().all(|prices| prices.is_sorted()), "{what}");
                    }
                }
            }
        }
        // The filter decides.
        let sold = format!("{filter} AND in_stock = false");
        let (items, total) = all_items(&server.channel, &request(query, &sold, SoldOut::Unspecified, "")).await;
        assert!(total == COUNT - in_stock && items.len() == total && !items.iter().any(is_in_stock), "`{query}`");
    }
    let recommend = async |sold_out: SoldOut| {
        let options = Some(proto::RankingOptions {
            sold_out: sold_out.into(),
            read_mask: Some(all_fields()),
            ..Default::default()
        });
        let request = proto::RecommendRequest {
            viewer: viewer(),
            r#type: RecommendType::ForYou.into(),
            filter: filter.to_owned(),
            page_size: 200,
            options,
            ..Default::default()
        };
        let answer = RankingServiceClient::new(server.channel.clone()).recommend(request).await.unwrap().into_inner();
        answer.results.into_iter().map(|result| result.item.unwrap()).collect::<Vec<_>>()
    };
    assert!(recommend(SoldOut::Show).await.iter().any(|item| !is_in_stock(item)));
    for hidden in [SoldOut::Unspecified, SoldOut::Hide, SoldOut::Last] {
        let items = recommend(hidden).await;
        assert!(items.len() == 200 && items.iter().all(is_in_stock), "{hidden:?}");
    }
    // What is sold out does not push out items in stock that match less, and a filter decides instead of HIDE.
    let query = "porcelain mug 300";
    let of = async |sold_out: SoldOut| all_items(&server.channel, &request(query, filter, sold_out, "")).await.0;
    let (hidden, last) = (of(SoldOut::Hide).await, of(SoldOut::Last).await);
    assert!(!hidden.is_empty() && hidden.iter().all(is_in_stock));
    assert!(last.len() > 100 && last[..last.len() - 1].iter().all(is_in_stock), "the ranked window is in stock");
    assert_eq!(last.last().unwrap().item_id, "mug-300");
    let options = Some(proto::RankingOptions { sold_out: SoldOut::Last.into(), ..Default::default() });
    let list = proto::RecommendRequest {
        viewer: viewer(),
        r#type: RecommendType::ForYou.into(),
        filter: format!("{filter} AND in_stock = false"),
        options,
        ..Default::default()
    };
    let list = RankingServiceClient::new(server.channel.clone()).recommend(list).await.unwrap().into_inner();
    assert!(!list.results.is_empty());
    // A search that finds only sold-out items has them.
    let only = search(&server.channel, &request("mug-3", filter, SoldOut::Last, "")).await;
    assert_eq!((only.results[0].item_id.as_str(), only.empty_reason), ("mug-3", 0));
}

fn counts(facet: &proto::Facet) -> BTreeMap<&str, i64> {
    facet.values.iter().map(|value| (value.value.as_str(), value.item_count)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paths_of_categories_and_lists_of_texts_are_filtered_and_counted() {
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let item = |id: &str, path: &[&str], materials: &[&str]| proto::Item {
        item_id: id.to_owned(),
        title: format!("thing {id}"),
        tags: vec!["paths".to_owned()],
        categories: path.iter().map(|path| (*path).to_owned()).collect(),
        attributes: BTreeMap::from([("material", materials)])
            .into_iter()
            .filter(|(_, texts)| !texts.is_empty())
            .map(|(name, texts)| {
                let texts = texts.iter().map(|text| (*text).to_owned()).collect();
                (name.to_owned(), AttributeValue { kind: Some(Kind::Texts(proto::TextList { texts })) })
            })
            .collect(),
        ..Default::default()
    };
    upsert(
        &server.channel,
        vec![
            item("a", &["Home > Kitchen > Mugs", "Gifts > Kitchen", "Home > Gifts"], &["Glass", "Wood"]),
            item("b", &["Home>Kitchen > Plates"], &["glass"]),
            item("c", &["Home > Garden"], &["Bamboo wood"]),
            item("d", &["Toys > Kitchen"], &[]),
            item("e", &["家居 > 厨房"], &["玻璃"]),
            item("f", &["Toys > Games"], &[]),
        ],
    )
    .await;
    for (filter, expected) in [
        ("category_path = \"Home > Kitchen\"", &["a", "b"][..]),
        ("category_path = \"home>KITCHEN\"", &["a", "b"]),
        ("category_path IN (\"Toys\", \"Home > Garden\")", &["c", "d", "f"]),
        ("category_path = \"Kitchen\"", &[]),
        ("category = \"Kitchen\"", &["a", "b", "d"]),
        ("category_path = \"家居 > 厨房\"", &["e"]),
        // A name with `>` is a path.
        ("category = \"Home > Kitchen\"", &["a", "b"]),
        ("category IN (\"Games\", \"gifts > KITCHEN\") AND NOT category = \"Toys > Kitchen\"", &["a", "f"]),
        ("category = \"Gifts\"", &["a"]),
        ("attributes.material = \"glass\"", &["a", "b"]),
        ("attributes.material HAS \"wood\"", &["a", "c"]),
        ("attributes.material != \"glass\"", &["c", "e"]),
        ("NOT attributes.material = \"glass\"", &["c", "d", "e", "f"]),
    ] {
        let filter = format!("tags = \"paths\" AND {filter}");
        let (items, total) = all_items(&server.channel, &request("", &filter, SoldOut::Unspecified, "item_id")).await;
        let ids: Vec<&str> = items.iter().map(|item| item.item_id.as_str()).collect();
        assert_eq!((ids.as_slice(), total), (expected, expected.len()), "{filter}");
    }
    let facet = |field: &str, parent: &str| proto::FacetSpec {
        field: field.to_owned(),
        parent: parent.to_owned(),
        ..Default::default()
    };
    let facets_of = async |spec: proto::FacetSpec| {
        let request = proto::SearchRequest {
            facet_specs: vec![spec],
            ..request("", "tags = \"paths\"", SoldOut::Unspecified, "")
        };
        search(&server.channel, &request).await.facets
    };
    let top = facets_of(facet("category_path", "")).await;
    assert_eq!(counts(&top[0]), BTreeMap::from([("Home", 3), ("Toys", 2), ("Gifts", 1), ("家居", 1)]));
    let below = facets_of(facet("category_path", "HOME")).await;
    assert_eq!(counts(&below[0]), BTreeMap::from([("Home > Kitchen", 2), ("Home > Garden", 1), ("Home > Gifts", 1)]));
    let below = facets_of(facet("category_path", "Home > Kitchen")).await;
    assert_eq!(counts(&below[0]), BTreeMap::from([("Home > Kitchen > Mugs", 1), ("Home > Kitchen > Plates", 1)]));
    let names = facets_of(facet("category", "")).await;
    let expected = [("Home", 3), ("Kitchen", 3), ("Toys", 2), ("Mugs", 1), ("Plates", 1), ("Garden", 1), ("Gifts", 1)];
    let expected = BTreeMap::from_iter(expected.into_iter().chain([("Games", 1), ("家居", 1), ("厨房", 1)]));
    assert_eq!(counts(&names[0]), expected, "an item counts once for each name");
    // A search for these things offers the fields in which they differ.
    let request = proto::SearchRequest {
        dynamic_facet_count: 1,
        ..request("thing", "tags = \"paths\"", SoldOut::Unspecified, "")
    };
    let chosen: Vec<String> =
        search(&server.channel, &request).await.facets.into_iter().map(|facet| facet.field).collect();
    assert_eq!(chosen, ["category_path"]);
    // Suggestions stay within a filter.
    let suggest = async |filter: &str| {
        let request = proto::SuggestRequest {
            viewer: viewer(),
            prefix: "thing".to_owned(),
            product_count: 20,
            filter: filter.to_owned(),
            read_mask: Some(all_fields()),
            ..Default::default()
        };
        let answer = RankingServiceClient::new(server.channel.clone()).suggest(request).await.unwrap().into_inner();
        answer.products.into_iter().map(|product| product.item.unwrap().item_id).collect::<BTreeSet<_>>()
    };
    assert_eq!(suggest("category_path = \"Home > Kitchen\"").await, BTreeSet::from(["a".to_owned(), "b".to_owned()]));
    assert_eq!(suggest("tags = \"paths\"").await.len(), 6);
    let materials = facets_of(facet("attributes.material", "")).await;
    assert_eq!(counts(&materials[0]), BTreeMap::from([("Glass", 2), ("Wood", 1), ("Bamboo wood", 1), ("玻璃", 1)]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stated_availability_decides_together_with_the_stock() {
    use proto::Availability::{self, Backorder, Discontinued, InStock, OutOfStock, Preorder, Unspecified};
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let channel = &server.channel;
    let item = |id: &str, availability: Availability, stock_quantity: Option<i64>| proto::Item {
        item_id: id.to_owned(),
        title: format!("wooden sled {id}"),
        categories: vec!["Sleds".to_owned()],
        availability: availability.into(),
        stock_quantity,
        ..Default::default()
    };
    upsert(
        channel,
        vec![
            item("a", Unspecified, Some(3)),
            item("b", InStock, Some(0)),
            item("c", Backorder, Some(0)),
            item("d", Backorder, Some(2)),
            item("e", Preorder, Some(0)),
            item("f", OutOfStock, Some(9)),
            item("g", Discontinued, None),
        ],
    )
    .await;
    let found = async |query: &str, filter: &str, sold_out: SoldOut| {
        let filter = format!("category = \"Sleds\"{filter}");
        let (items, total) = all_items(channel, &request(query, &filter, sold_out, "item_id")).await;
        assert_eq!(items.len(), total);
        items.into_iter().map(|item| item.item_id).collect::<Vec<_>>().concat()
    };
    for (filter, expected) in [
        ("", "acde"),
        (" AND in_stock = true", "acde"),
        (" AND in_stock = false", "bfg"),
        (" AND availability = \"preorder\"", "e"),
        (" AND availability IN (\"backorder\", \"DISCONTINUED\")", "cg"),
        (" AND availability = \"in_stock\"", "ad"),
        (" AND availability != \"in stock\"", "bcefg"),
    ] {
        assert_eq!(found("", filter, SoldOut::Unspecified).await, expected, "{filter}");
        assert_eq!(found("wooden sled", filter, SoldOut::Unspecified).await, expected, "{filter}");
    }
    assert_eq!(found("", "", SoldOut::Last).await, "acdebfg");
    assert_eq!(found("", "", SoldOut::Show).await, "abcdefg");
    let facet = proto::FacetSpec { field: "availability".to_owned(), ..Default::default() };
    let counted =
        proto::SearchRequest { facet_specs: vec![facet], ..request("", "category = \"Sleds\"", SoldOut::Show, "") };
    let facets = search(channel, &counted).await.facets;
    let expected = [("in_stock", 2), ("out_of_stock", 2), ("backorder", 1), ("preorder", 1), ("discontinued", 1)];
    assert_eq!(counts(&facets[0]), BTreeMap::from(expected));
    // What is discontinued is never recommended.
    let recommended = async |filter: &str, sold_out: SoldOut| {
        let request = proto::RecommendRequest {
            viewer: viewer(),
            r#type: RecommendType::ForYou.into(),
            filter: format!("category = \"Sleds\"{filter}"),
            page_size: 200,
            options: Some(proto::RankingOptions { sold_out: sold_out.into(), ..Default::default() }),
            ..Default::default()
        };
        let answer = RankingServiceClient::new(channel.clone()).recommend(request).await.unwrap().into_inner();
        let ids: BTreeSet<String> = answer.results.into_iter().map(|result| result.item_id).collect();
        ids.into_iter().collect::<String>()
    };
    assert_eq!(recommended("", SoldOut::Unspecified).await, "acde");
    assert_eq!(recommended("", SoldOut::Show).await, "abcdef");
    assert_eq!(recommended(" AND in_stock = false", SoldOut::Unspecified).await, "bf");
    assert_eq!(recommended(" AND availability = \"discontinued\"", SoldOut::Show).await, "");
    // Short messages set it, and stock alone leaves it.
    let set = |id: &str, availability: Availability, stock_quantity: Option<i64>| proto::Inventory {
        item_id: id.to_owned(),
        availability: availability.into(),
        stock_quantity,
        ..Default::default()
    };
    let inventories = vec![
        set("a", Discontinued, None),
        set("b", Preorder, None),
        set("d", Unspecified, Some(0)),
        set("f", Unspecified, Some(50)),
        set("g", InStock, Some(1)),
    ];
    let written = proto::SetInventoryRequest { inventories };
    let mut catalog = CatalogServiceClient::new(channel.clone());
    let results = catalog.set_inventory(written).await.unwrap().into_inner().results;
    assert!(results.iter().all(|result| result.status() == proto::ItemStatus::Updated), "{results:?}");
    assert_eq!(found("", "", SoldOut::Unspecified).await, "bcdeg");
    assert_eq!(found("", " AND availability = \"backorder\"", SoldOut::Unspecified).await, "cd");
    let update = proto::ItemUpdate {
        item: Some(proto::Item { item_id: "f".to_owned(), ..Default::default() }),
        update_mask: Some(prost_types::FieldMask { paths: vec!["availability".to_owned()] }),
        update_time: None,
    };
    catalog.update_items(proto::UpdateItemsRequest { updates: vec![update] }).await.unwrap();
    assert_eq!(found("", " AND availability = \"in_stock\"", SoldOut::Unspecified).await, "fg");
    let mut unknown = item("h", Unspecified, None);
    unknown.availability = 77;
    let refused = proto::UpsertItemsRequest { items: vec![unknown], update_time: None };
    let results = catalog.upsert_items(refused).await.unwrap().into_inner().results;
    assert_eq!(results[0].violations[0].field, "items[0].availability");
    server.end().await;
}
