//! Prices and stock at places, in regions, for groups of customers and in currencies, over gRPC: what viewers see, filter
//! and sort by, and what remains after a restart.
use crate::support::{
    answers::replay, bundles::Shop, grpc::GrpcServer, items::all_fields, status::violations, wait::wait_until,
};
use lodestone::server::proto::{
    self, Availability, ItemStatus, RecommendType, catalog_service_client::CatalogServiceClient,
    ranking_service_client::RankingServiceClient,
};
use lodestone_core::units::UnixMillis;
use lodestone_rollout::HealthBounds;
use prost_types::{FieldMask, Timestamp};
use std::{collections::BTreeMap, time::Duration};
use tonic::{Status, transport::Channel};

const COUNT: usize = 400;
const UNIT: i64 = 1_000_000;

fn key(place: &str, region: &str, group: &str, currency: &str) -> proto::OfferKey {
    proto::OfferKey {
        place_id: place.to_owned(),
        region_code: region.to_owned(),
        customer_group: group.to_owned(),
        currency_code: currency.to_owned(),
    }
}

fn offer(key: proto::OfferKey, price: Option<i64>, stock: Option<i64>) -> proto::Offer {
    proto::Offer {
        key: Some(key),
        price_micros: price.map(|price| price * UNIT),
        original_price_micros: None,
        stock_quantity: stock,
        ..Default::default()
    }
}

/// A viewer with the fields of a key.
fn viewer(key: &proto::OfferKey) -> proto::Viewer {
    proto::Viewer {
        visitor_id: "v".to_owned(),
        place_id: key.place_id.clone(),
        region_code: key.region_code.clone(),
        customer_group: key.customer_group.clone(),
        currency_code: key.currency_code.clone(),
        ..Default::default()
    }
}

/// Price and stock of a bowl for viewers in general.
fn own(number: usize) -> (i64, i64) {
    (10 + number as i64 * 37 % 90, 5)
}

/// Price and stock of a bowl in the store of Zurich, of which every fourth bowl has none and every third is sold out.
fn in_zurich(number: usize) -> (i64, i64) {
    match number % 4 {
        0 => own(number),
        _ => (10 + number as i64 * 53 % 90, if number.is_multiple_of(3) { 0 } else { 2 }),
    }
}

fn bowl(number: usize) -> proto::Item {
    let (price, stock) = in_zurich(number);
    let local = offer(key("zurich", "", "", ""), Some(price), Some(stock));
    proto::Item {
        item_id: format!("bowl-{number}"),
        title: format!("wooden bowl {number}"),
        categories: vec!["Bowls".to_owned()],
        price_micros: Some(own(number).0 * UNIT),
        stock_quantity: Some(own(number).1),
        offers: if number.is_multiple_of(4) { Vec::new() } else { vec![local] },
        ..Default::default()
    }
}

fn item(id: &str, price: Option<i64>, currency: &str, offers: Vec<proto::Offer>) -> proto::Item {
    proto::Item {
        item_id: id.to_owned(),
        title: format!("thing {id}"),
        tags: vec!["few".to_owned()],
        price_micros: price.map(|price| price * UNIT),
        currency_code: currency.to_owned(),
        offers,
        ..Default::default()
    }
}

fn catalog(channel: &Channel) -> CatalogServiceClient<Channel> {
    CatalogServiceClient::new(channel.clone())
}

async fn upsert(channel: &Channel, items: Vec<proto::Item>) {
    let request = proto::UpsertItemsRequest { items, update_time: None };
    let written = catalog(channel).upsert_items(request).await.unwrap().into_inner();
    assert!(written.results.iter().all(|result| result.violations.is_empty()), "{:?}", written.results);
}

async fn get(channel: &Channel, id: &str) -> proto::Item {
    let request = proto::GetItemRequest { item_id: id.to_owned() };
    catalog(channel).get_item(request).await.unwrap().into_inner().item.unwrap()
}

fn request(of: &proto::OfferKey, filter: &str, order_by: &str, page_size: i32) -> proto::SearchRequest {
    proto::SearchRequest {
        viewer: Some(viewer(of)),
        filter: filter.to_owned(),
        page_size,
        options: Some(proto::RankingOptions {
            order_by: order_by.to_owned(),
            read_mask: Some(all_fields()),
            ..Default::default()
        }),
        ..Default::default()
    }
}

async fn search(channel: &Channel, request: &proto::SearchRequest) -> Result<proto::SearchResponse, Status> {
    Ok(RankingServiceClient::new(channel.clone()).search(request.clone()).await?.into_inner())
}

/// All results, page by page, as id, price in units and stock.
async fn shown(channel: &Channel, request: &proto::SearchRequest) -> Vec<(String, Option<i64>, Option<i64>)> {
    let (mut found, mut token) = (Vec::new(), String::new());
    loop {
        let page = search(channel, &proto::SearchRequest { page_token: token, ..request.clone() }).await.unwrap();
        for item in page.results.into_iter().map(|result| result.item.unwrap()) {
            assert!(item.offers.is_empty(), "an answer has the values that apply and no offers");
            found.push((item.item_id, item.price_micros.map(|price| price / UNIT), item.stock_quantity));
        }
        token = page.next_page_token;
        if token.is_empty() {
            return found;
        }
    }
}

fn ago(seconds: i64) -> Option<Timestamp> {
    Some(Timestamp { seconds: UnixMillis::now().0 / 1000 - seconds, nanos: 0 })
}

fn inventory(id: &str, key: proto::OfferKey, price: Option<i64>, stock: Option<i64>) -> proto::Inventory {
    proto::Inventory {
        item_id: id.to_owned(),
        price_micros: price.map(|price| price * UNIT),
        stock_quantity: stock,
        offer_key: Some(key),
        ..Default::default()
    }
}

async fn set(channel: &Channel, inventories: Vec<proto::Inventory>) -> Vec<proto::ItemResult> {
    catalog(channel).set_inventory(proto::SetInventoryRequest { inventories }).await.unwrap().into_inner().results
}

fn names(found: &[(String, Option<i64>, Option<i64>)]) -> Vec<&str> {
    found.iter().map(|(id, ..)| id.as_str()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_place_has_prices_and_stock_of_its_own_on_every_page() {
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let channel = &server.channel;
    upsert(channel, (0..COUNT).map(bowl).collect()).await;
    let (nowhere, zurich) = (proto::OfferKey::default(), key("zurich", "", "", ""));
    for (place, values) in
        [(&nowhere, own as fn(usize) -> (i64, i64)), (&zurich, in_zurich), (&key("bern", "", "", ""), own)]
    {
        let in_stock = || (0..COUNT).filter(|number| values(*number).1 > 0);
        let row = |number: usize| (format!("bowl-{number}"), Some(values(number).0), Some(values(number).1));
        for (filter, matches) in [
            ("category = \"Bowls\"", &(|_: usize| true) as &dyn Fn(usize) -> bool),
            ("category = \"Bowls\" AND price < 50", &|number| values(number).0 < 50),
            ("category = \"Bowls\" AND stock_quantity >= 3", &|number| values(number).1 >= 3),
        ] {
            for query in ["", "wooden bowl"] {
                for order_by in ["price", "price desc", "stock_quantity, price", ""] {
                    let sent = proto::SearchRequest { query: query.to_owned(), ..request(place, filter, order_by, 90) };
                    let found = shown(channel, &sent).await;
                    let mut expected: Vec<_> = in_stock().filter(|number| matches(*number)).map(row).collect();
                    let mut sorted = found.clone();
                    let what = format!("{place:?} `{query}` {filter} by `{order_by}`");
                    expected.sort();
                    sorted.sort();
                    assert_eq!(sorted, expected, "{what}");
                    let prices: Vec<Option<i64>> = found.iter().map(|(_, price, _)| *price).collect();
                    match order_by {
                        "price" => assert!(prices.is_sorted(), "{what}"),
                        "price desc" => assert!(prices.iter().rev().is_sorted(), "{what}"),
                        "stock_quantity, price" => {
                            assert!(found.is_sorted_by_key(|(_, price, stock)| (*stock, *price)), "{what}");
                        }
                        _ => {}
                    }
                }
            }
        }
        // Facets count the prices of the place.
        let spec = proto::FacetSpec { field: "price".to_owned(), bounds: vec![50.0], ..Default::default() };
        let sent = proto::SearchRequest { facet_specs: vec![spec], ..request(place, "category = \"Bowls\"", "", 10) };
        let answer = search(channel, &sent).await.unwrap();
        let below = in_stock().filter(|number| values(*number).0 < 50).count();
        let counts: Vec<i64> = answer.facets[0].values.iter().map(|value| value.item_count).collect();
        assert_eq!(counts, [below as i64, (in_stock().count() - below) as i64], "{place:?}");
        assert_eq!(answer.total_size as usize, in_stock().count());
    }
    // A token belongs to the place.
    let first = search(channel, &request(&zurich, "", "price", 10)).await.unwrap();
    for other in [&nowhere, &key("bern", "", "", ""), &key("zurich", "CH", "", ""), &key("zurich", "", "", "EUR")] {
        let sent =
            proto::SearchRequest { page_token: first.next_page_token.clone(), ..request(other, "", "price", 10) };
        let found = violations(&search(channel, &sent).await.unwrap_err());
        assert_eq!(found[0].0, "page_token", "{found:?}");
    }
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_most_specific_offer_applies_in_every_kind_of_answer() {
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let channel = &server.channel;
    let reduced =
        proto::Offer { original_price_micros: Some(20 * UNIT), ..offer(key("a", "", "", ""), Some(15), None) };
    let offers = vec![
        offer(key("", "ch", "", ""), Some(7), None),
        offer(key("", "", "wholesale", ""), Some(5), Some(100)),
        reduced,
        offer(key("b", "", "", ""), None, Some(0)),
    ];
    upsert(channel, vec![item("vase", Some(9), "", offers), item("pot", Some(8), "", Vec::new())]).await;
    let stored = get(channel, "vase").await;
    assert_eq!((stored.price_micros, stored.offers.len()), (Some(9 * UNIT), 4));
    assert!(stored.offers.iter().any(|offer| offer.key == Some(key("", "CH", "", ""))), "{stored:?}");
    let filter = "tags = \"few\"";
    for (of, price, stock) in [
        (key("", "", "", ""), 9, None),
        (key("", "CH", "", ""), 7, None),
        (key("", "ch", "", ""), 7, None),
        (key("", "CH", "wholesale", ""), 5, Some(100)),
        (key("a", "CH", "wholesale", ""), 15, Some(100)),
    ] {
        let found = shown(channel, &request(&of, filter, "price", 10)).await;
        assert!(found.contains(&("vase".to_owned(), Some(price), stock)), "{of:?}: {found:?}");
        let list = proto::RecommendRequest {
            viewer: Some(viewer(&of)),
            r#type: RecommendType::ForYou.into(),
            filter: format!("{filter} AND price = {price}"),
            options: Some(proto::RankingOptions { read_mask: Some(all_fields()), ..Default::default() }),
            ..Default::default()
        };
        let listed = RankingServiceClient::new(channel.clone()).recommend(list).await.unwrap().into_inner().results;
        let listed: Vec<(String, Option<i64>)> =
            listed.into_iter().map(|result| (result.item_id, result.item.unwrap().price_micros)).collect();
        assert_eq!(listed, [("vase".to_owned(), Some(price * UNIT))], "{of:?}");
        let suggest = proto::SuggestRequest {
            viewer: Some(viewer(&of)),
            prefix: "thing va".to_owned(),
            product_count: 5,
            read_mask: Some(all_fields()),
            ..Default::default()
        };
        let suggested =
            RankingServiceClient::new(channel.clone()).suggest(suggest).await.unwrap().into_inner().products;
        assert_eq!(suggested[0].item.as_ref().unwrap().price_micros, Some(price * UNIT), "{of:?}");
        let rank = proto::RankRequest {
            viewer: Some(viewer(&of)),
            candidates: vec![proto::RankCandidate { item_id: "vase".to_owned(), ..Default::default() }],
            options: Some(proto::RankingOptions { read_mask: Some(all_fields()), ..Default::default() }),
            ..Default::default()
        };
        let ranked = RankingServiceClient::new(channel.clone()).rank(rank).await.unwrap().into_inner().results;
        assert_eq!(ranked[0].item.as_ref().unwrap().price_micros, Some(price * UNIT), "{of:?}");
    }
    // Sold out at one place, on sale at another.
    let at_b = shown(channel, &request(&key("b", "", "", ""), filter, "", 10)).await;
    assert_eq!(names(&at_b), ["pot"]);
    let on_sale = async |of: proto::OfferKey| {
        let list = proto::RecommendRequest {
            viewer: Some(viewer(&of)),
            r#type: RecommendType::OnSale.into(),
            filter: filter.to_owned(),
            ..Default::default()
        };
        let answer = RankingServiceClient::new(channel.clone()).recommend(list).await.unwrap().into_inner();
        answer.results.into_iter().map(|result| result.item_id).collect::<Vec<_>>()
    };
    assert_eq!(on_sale(key("a", "", "", "")).await, ["vase"]);
    assert_eq!(on_sale(key("", "CH", "", "")).await, [""; 0]);
    let discounted = shown(channel, &request(&key("a", "", "", ""), "discount >= 0.25", "discount desc", 10)).await;
    assert_eq!(names(&discounted), ["vase"]);
    // Boosts of prices and features of the ranking read what the viewer sees, and the answer is replayed from its record.
    let mut boosted =
        proto::SearchRequest { query: "thing".to_owned(), ..request(&key("", "", "wholesale", ""), filter, "", 10) };
    let options = boosted.options.as_mut().unwrap();
    options.boosts.push(proto::Boost { filter: "price < 6".to_owned(), factor: 50.0, ..Default::default() });
    options.debug_level = proto::DebugLevel::Scores.into();
    let factors = |answer: &proto::SearchResponse| -> BTreeMap<String, f64> {
        let factor = |result: &proto::Result| result.debug.as_ref().unwrap().score_parts.unwrap().boost_factor;
        answer.results.iter().map(|result| (result.item_id.clone(), factor(result))).collect()
    };
    let expected = |vase: f64| BTreeMap::from([("pot".to_owned(), 1.0), ("vase".to_owned(), vase)]);
    let for_others = proto::SearchRequest { viewer: Some(viewer(&key("", "", "", ""))), ..boosted.clone() };
    let others = search(channel, &for_others).await.unwrap();
    assert_eq!(factors(&others), expected(1.0));
    let answer = search(channel, &boosted).await.unwrap();
    assert_eq!(factors(&answer), expected(50.0));
    assert_eq!(answer.results[0].item_id, "vase");
    let replayed = replay(channel, &answer.attribution_token).await;
    assert!(replayed.identical, "{}", replayed.first_difference);
    let Some(proto::replay_answer_response::Request::Search(logged)) = replayed.request else { panic!("{replayed:?}") };
    assert_eq!(logged.viewer.unwrap().customer_group, "wholesale");
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_server_chooses_the_currency_of_requests_that_choose_none() {
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open_in_currency("GBP")).await;
    let channel = &server.channel;
    let none = Vec::new;
    // Without a code, and in one currency only, nothing is chosen.
    upsert(channel, vec![item("bare", Some(2), "", none()), item("cup", Some(4), "GBP", none())]).await;
    let (anywhere, few) = (key("", "", "", ""), "tags = \"few\"");
    let by_price = async |of: &proto::OfferKey| names(&shown(channel, &request(of, few, "price", 10)).await).join(" ");
    assert_eq!(by_price(&anywhere).await, "bare cup");
    upsert(channel, vec![item("jug", Some(3), "EUR", none()), item("urn", Some(7), "GBP", none())]).await;
    assert!(by_price(&anywhere).await.starts_with("cup urn "), "items without a price in the currency are last");
    let below = request(&anywhere, &format!("{few} AND price < 5"), "", 10);
    assert_eq!(names(&shown(channel, &below).await), ["cup"]);
    assert!(by_price(&key("", "", "", "EUR")).await.starts_with("jug "), "a viewer chooses another one");
    let chosen = request(&anywhere, &format!("{few} AND currency = \"EUR\""), "price", 10);
    assert_eq!(names(&shown(channel, &chosen).await), ["jug"]);
    // A request that compares no prices shows each item at its own price.
    let own = shown(channel, &request(&anywhere, few, "title", 10)).await;
    assert!(own.contains(&("jug".to_owned(), Some(3), None)), "{own:?}");
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prices_in_several_currencies_are_compared_only_within_one() {
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let channel = &server.channel;
    let franc = |price: i64| offer(key("", "CH", "", "CHF"), Some(price), None);
    let dollar = |price: i64| offer(key("", "", "", "USD"), Some(price), None);
    upsert(
        channel,
        vec![
            item("cup", Some(4), "EUR", vec![franc(5), dollar(6)]),
            item("jug", Some(9), "EUR", vec![dollar(8)]),
            item("urn", Some(7), "GBP", vec![franc(3)]),
        ],
    )
    .await;
    let filter = "tags = \"few\"";
    let all = async |of: &proto::OfferKey, order_by: &str| shown(channel, &request(of, filter, order_by, 10)).await;
    let priced = |id: &str, price: Option<i64>| (id.to_owned(), price, None);
    let (anywhere, swiss) = (key("", "", "", ""), key("", "CH", "", ""));
    // One currency: the others have no price, and are last.
    for (of, expected) in [
        (key("", "", "", "EUR"), vec![priced("cup", Some(4)), priced("jug", Some(9)), priced("urn", None)]),
        (key("", "", "", "USD"), vec![priced("cup", Some(6)), priced("jug", Some(8)), priced("urn", None)]),
        (key("", "CH", "", "CHF"), vec![priced("urn", Some(3)), priced("cup", Some(5)), priced("jug", None)]),
    ] {
        assert_eq!(all(&of, "price, item_id").await, expected, "{of:?}");
        let below = request(&of, &format!("{filter} AND price < 7"), "price", 10);
        let cheap: Vec<_> =
            expected.iter().filter(|(_, price, _)| price.is_some_and(|price| price < 7)).cloned().collect();
        assert_eq!(shown(channel, &below).await, cheap, "{of:?}");
    }
    // None: an answer without a comparison has each item in its own currency.
    let own = all(&anywhere, "title").await;
    assert_eq!(own, [priced("cup", Some(4)), priced("jug", Some(9)), priced("urn", Some(7))]);
    let refused = async |sent: proto::SearchRequest, field: &str, currencies: &str| {
        for validate_only in [false, true] {
            let options = sent.options.clone().map(|options| proto::RankingOptions { validate_only, ..options });
            let found =
                violations(&search(channel, &proto::SearchRequest { options, ..sent.clone() }).await.unwrap_err());
            let expected = format!("compares prices, which are in {currencies}; choose one by viewer.currency_code");
            assert!(found.len() == 1 && found[0].0 == field && found[0].1.starts_with(&expected), "{found:?}");
        }
    };
    refused(request(&anywhere, "", "original_price", 10), "options.order_by", "EUR and GBP").await;
    refused(request(&anywhere, "price < 5", "price", 10), "filter", "EUR and GBP").await;
    refused(request(&swiss, filter, "title, price", 10), "options.order_by", "CHF and EUR").await;
    let spec = |field: &str| proto::FacetSpec { field: field.to_owned(), ..Default::default() };
    let specs = vec![spec("brand"), spec("price")];
    let facets = proto::SearchRequest { facet_specs: specs, ..request(&swiss, "", "", 10) };
    refused(facets, "facet_specs[1].field", "CHF and EUR").await;
    let below = proto::FilterExpression {
        kind: Some(proto::filter_expression::Kind::Comparison(proto::FilterComparison {
            field: "price".to_owned(),
            operator: proto::FilterOperator::Less.into(),
            value: Some(proto::FilterValue { kind: Some(proto::filter_value::Kind::Number(5.0)) }),
        })),
    };
    let message = proto::SearchRequest { filter_expression: Some(below.clone()), ..request(&anywhere, "", "", 10) };
    refused(proto::SearchRequest { filter: String::new(), ..message }, "filter_expression", "EUR and GBP").await;
    let boosts = vec![
        proto::Boost { filter: "in_stock".to_owned(), factor: 2.0, filter_expression: None },
        proto::Boost { filter: String::new(), factor: 2.0, filter_expression: Some(below.clone()) },
    ];
    let sent = request(&anywhere, "", "", 10);
    let options = sent.options.clone().map(|options| proto::RankingOptions { boosts, ..options });
    let boosted = proto::SearchRequest { options, ..sent };
    refused(boosted, "options.boosts[1].filter_expression", "EUR and GBP").await;
    let list = proto::ListItemsRequest { filter_expression: Some(below), ..Default::default() };
    let found = violations(&catalog(channel).list_items(list).await.unwrap_err());
    assert_eq!(found[0].0, "filter_expression");
    // A filter chooses a currency, also of a list of the catalogue.
    let chosen = shown(channel, &request(&swiss, "price < 9 AND currency = \"CHF\"", "price", 10)).await;
    assert_eq!(names(&chosen), ["urn", "cup"]);
    let list = async |filter: &str| {
        let request = proto::ListItemsRequest { filter: filter.to_owned(), ..Default::default() };
        catalog(channel).list_items(request).await.map(|listed| listed.into_inner().items)
    };
    let found = violations(&list("price > 5").await.unwrap_err());
    assert!(found[0].0 == "filter" && found[0].1.contains("EUR and GBP; choose one by a condition"), "{found:?}");
    let listed = list("price > 5 AND currency = \"EUR\"").await.unwrap();
    assert!(listed.len() == 1 && listed[0].item_id == "jug" && listed[0].offers == vec![dollar(8)], "{listed:?}");
    let purge = proto::PurgeItemsRequest { filter: "price > 5".to_owned(), force: true, ..Default::default() };
    violations(&catalog(channel).purge_items(purge).await.unwrap_err());
    // Sold out is sold out in every currency.
    let results = set(channel, vec![inventory("cup", swiss.clone(), None, Some(0))]).await;
    assert_eq!(results[0].status(), ItemStatus::Updated);
    assert_eq!(names(&all(&key("", "CH", "", "CHF"), "price").await), ["urn", "jug"]);
    server.end().await;
}

/// A time in milliseconds from now.
fn from_now(ms: i64) -> Option<Timestamp> {
    let at = UnixMillis::now().0 + ms;
    Some(Timestamp { seconds: at / 1000, nanos: (at % 1000 * 1_000_000) as i32 })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_price_of_an_offer_has_no_sale_and_the_margin_is_above_the_cost_of_the_item() {
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let channel = &server.channel;
    let sale = |id: &str, start_ms: i64, end_ms: i64, offers| proto::Item {
        sale_price_micros: Some(6 * UNIT),
        sale_start_time: from_now(start_ms),
        sale_end_time: from_now(end_ms),
        cost_micros: Some(4 * UNIT),
        ..item(id, Some(9), "EUR", offers)
    };
    let day = 86_400_000;
    let at_a = || offer(key("a", "", "", ""), Some(8), Some(1));
    let swiss = || offer(key("", "CH", "", "CHF"), Some(5), None);
    let items = vec![
        sale("now", -day, day, vec![at_a(), swiss()]),
        sale("soon", 3000, day, vec![at_a(), swiss()]),
        sale("plain", -day, day, Vec::new()),
    ];
    upsert(channel, items).await;
    let filter = |more: &str| format!("tags = \"few\"{more}");
    let (anywhere, a, ch) = (key("", "", "", ""), key("a", "", "", ""), key("", "CH", "", ""));
    let priced = async |of: &proto::OfferKey| -> BTreeMap<String, i64> {
        let found = shown(channel, &request(of, &filter(""), "item_id", 10)).await;
        found.into_iter().map(|(id, price, _)| (id, price.unwrap())).collect()
    };
    let prices = |now: i64, soon: i64, plain: i64| {
        BTreeMap::from([("now".to_owned(), now), ("soon".to_owned(), soon), ("plain".to_owned(), plain)])
    };
    assert_eq!(priced(&a).await, prices(8, 8, 6));
    let on_sale = async |of: &proto::OfferKey| {
        let list = proto::RecommendRequest {
            viewer: Some(viewer(of)),
            r#type: RecommendType::OnSale.into(),
            filter: filter(""),
            ..Default::default()
        };
        let listed = RankingServiceClient::new(channel.clone()).recommend(list).await.unwrap().into_inner().results;
        listed.into_iter().map(|result| result.item_id).collect::<Vec<_>>()
    };
    assert_eq!(on_sale(&a).await, ["plain"], "the price of an offer is not reduced by a sale");
    // A page shows neither the sale of another price nor the cost.
    let page = search(channel, &request(&a, &filter(""), "item_id", 10)).await.unwrap();
    for item in page.results.into_iter().map(|result| result.item.unwrap()) {
        assert_eq!((item.sale_price_micros.is_some(), item.cost_micros), (item.item_id == "plain", None), "{item:?}");
    }
    // The margin is that of the price of the viewer, in the currency of the cost.
    assert_eq!(names(&shown(channel, &request(&a, &filter(" AND margin >= 4"), "item_id", 10)).await), ["now", "soon"]);
    let of_swiss = key("", "CH", "", "CHF");
    assert_eq!(names(&shown(channel, &request(&of_swiss, &filter(" AND margin > 0"), "", 10)).await), [""; 0]);
    let found = violations(&search(channel, &request(&ch, &filter(" AND margin > 0"), "", 10)).await.unwrap_err());
    assert!(found[0].1.contains("CHF and EUR"), "{found:?}");
    // A sale begins in the views of viewers to whom the item's own price applies.
    let b = key("b", "", "", "");
    wait_until("the sale has begun", Duration::from_secs(60), async || priced(&b).await["soon"] == 6).await;
    for (of, expected) in [
        (&anywhere, prices(6, 6, 6)),
        (&a, prices(8, 8, 6)),
        (&ch, prices(5, 5, 6)),
        (&key("a", "CH", "", "EUR"), prices(8, 8, 6)),
        (&key("", "CH", "", "EUR"), prices(6, 6, 6)),
    ] {
        assert_eq!(priced(of).await, expected, "{of:?}");
    }
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_stated_availability_of_an_item_holds_at_every_place() {
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let channel = &server.channel;
    let (none, some) = (key("none", "", "", ""), key("some", "", "", ""));
    let stated = |id: &str, availability: Availability| proto::Item {
        availability: availability.into(),
        stock_quantity: Some(5),
        ..item(id, Some(1), "", vec![offer(none.clone(), None, Some(0)), offer(some.clone(), None, Some(3))])
    };
    let items = vec![
        stated("plain", Availability::Unspecified),
        stated("ordered", Availability::Backorder),
        stated("early", Availability::Preorder),
        stated("out", Availability::OutOfStock),
        stated("gone", Availability::Discontinued),
    ];
    upsert(channel, items).await;
    let found = async |of: &proto::OfferKey, filter: &str| {
        let sent = request(of, &format!("tags = \"few\"{filter}"), "item_id", 10);
        let options = sent
            .options
            .clone()
            .map(|options| proto::RankingOptions { sold_out: proto::SoldOut::Last.into(), ..options });
        let found = shown(channel, &proto::SearchRequest { options, ..sent }).await;
        found.into_iter().map(|(id, ..)| id).collect::<Vec<_>>()
    };
    assert_eq!(found(&none, " AND in_stock").await, ["early", "ordered"]);
    assert_eq!(found(&some, " AND in_stock").await, ["early", "ordered", "plain"]);
    assert_eq!(found(&none, " AND availability = \"backorder\"").await, ["ordered"]);
    assert_eq!(found(&none, " AND availability = \"out_of_stock\"").await, ["out", "plain"]);
    assert_eq!(found(&some, " AND availability = \"in_stock\"").await, ["ordered", "plain"]);
    assert_eq!(found(&some, " AND availability = \"out_of_stock\"").await, ["out"]);
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_items_that_a_rank_sends_have_offers_too() {
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let channel = &server.channel;
    upsert(channel, vec![item("known", Some(9), "EUR", vec![offer(key("a", "", "", ""), Some(7), None)])]).await;
    let sent = item("sent", Some(8), "EUR", vec![offer(key("a", "", "", ""), Some(3), Some(2))]);
    let candidate = |id: &str, item| proto::RankCandidate { item_id: id.to_owned(), item, ..Default::default() };
    let rank = |of: &proto::OfferKey, sent: &proto::Item, order_by: &str| proto::RankRequest {
        viewer: Some(viewer(of)),
        candidates: vec![candidate("known", None), candidate("sent", Some(sent.clone()))],
        options: request(of, "", order_by, 10).options,
        ..Default::default()
    };
    for (of, known, of_sent) in
        [(key("", "", "", ""), 9, 8), (key("a", "", "", ""), 7, 3), (key("b", "", "", ""), 9, 8)]
    {
        let ranked = RankingServiceClient::new(channel.clone()).rank(rank(&of, &sent, "price")).await.unwrap();
        let items: Vec<proto::Item> =
            ranked.into_inner().results.into_iter().map(|result| result.item.unwrap()).collect();
        let shown: Vec<(&str, i64)> =
            items.iter().map(|item| (item.item_id.as_str(), item.price_micros.unwrap() / UNIT)).collect();
        assert_eq!(shown, [("sent", of_sent), ("known", known)], "{of:?}");
        assert!(items.iter().all(|item| item.offers.is_empty()));
    }
    let dear = proto::Item { currency_code: "CHF".to_owned(), ..sent };
    let request = rank(&key("", "", "", ""), &dear, "price");
    let found = violations(&RankingServiceClient::new(channel.clone()).rank(request).await.unwrap_err());
    assert!(found[0].0 == "options.order_by" && found[0].1.contains("CHF and EUR"), "{found:?}");
    server.end().await;
}

/// The offers of an item as texts, in their order.
fn offers(item: &proto::Item) -> Vec<(proto::OfferKey, Option<i64>, Option<i64>)> {
    let offer = |offer: &proto::Offer| {
        (offer.key.clone().unwrap(), offer.price_micros.map(|price| price / UNIT), offer.stock_quantity)
    };
    item.offers.iter().map(offer).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn inventory_is_set_per_place_and_remains_after_a_replay_and_from_a_checkpoint() {
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let channel = &server.channel;
    upsert(channel, vec![item("lamp", Some(30), "EUR", vec![offer(key("a", "", "", ""), Some(28), Some(3))])]).await;
    let status = async |entry: proto::Inventory| {
        let results = set(channel, vec![entry]).await;
        (results[0].status(), results[0].stale_fields.clone())
    };
    let of = |place: &str| key(place, "", "", "");
    let at = |entry: proto::Inventory, seconds: i64| proto::Inventory { update_time: ago(seconds), ..entry };
    let updated = (ItemStatus::Updated, Vec::new());
    // An item of the bundle has offers too.
    assert_eq!(status(inventory("i3", of("a"), Some(2), Some(1))).await, updated);
    assert_eq!(status(inventory("lamp", of("b"), None, Some(7))).await, updated, "a new offer");
    let now = Some(prost_types::Timestamp { seconds: UnixMillis::now().0 / 1000 + 100, nanos: 0 });
    let ahead = proto::Inventory { update_time: now, ..inventory("lamp", of("b"), Some(25), None) };
    assert_eq!(status(ahead).await, updated);
    assert_eq!(status(at(inventory("lamp", of("b"), Some(26), None), 50)).await.0, ItemStatus::Stale);
    let stock_late = proto::Inventory { update_time: ago(-50), ..inventory("lamp", of("b"), Some(27), Some(6)) };
    let stale = vec!["offers[place_id=b].price_micros".to_owned()];
    assert_eq!(status(stock_late).await, (ItemStatus::Updated, stale));
    assert_eq!(status(inventory("nothing", of("b"), Some(1), None)).await.0, ItemStatus::Unknown);
    let expected = vec![(of("a"), Some(28), Some(3)), (of("b"), Some(25), Some(6))];
    let check = async |channel: &Channel| {
        let lamp = get(channel, "lamp").await;
        assert_eq!((offers(&lamp), lamp.price_micros), (expected.clone(), Some(30 * UNIT)));
        assert_eq!(offers(&get(channel, "i3").await), [(of("a"), Some(2), Some(1))]);
        let found = shown(channel, &request(&of("b"), "price < 26", "price desc", 10)).await;
        assert_eq!(found, [("lamp".to_owned(), Some(25), Some(6))]);
        let found = shown(channel, &request(&of("a"), "price < 29", "price desc", 10)).await;
        assert_eq!(names(&found), ["lamp", "i3"]);
    };
    check(channel).await;
    server.end().await;
    let server = GrpcServer::start(shop.reopen(HealthBounds::default()).await).await;
    check(&server.channel).await;
    server.engine.checkpoint_on_shutdown();
    server.end().await;
    let server = GrpcServer::start(shop.reopen(HealthBounds::default()).await).await;
    let channel = &server.channel;
    check(channel).await;
    // All offers, or those without the ones that are left out, by a mask.
    let update = |offers: Vec<proto::Offer>, update_time| proto::ItemUpdate {
        item: Some(proto::Item { item_id: "lamp".to_owned(), offers, ..Default::default() }),
        update_mask: Some(FieldMask { paths: vec!["offers".to_owned()] }),
        update_time,
    };
    let change = async |update| {
        let request = proto::UpdateItemsRequest { updates: vec![update] };
        catalog(channel).update_items(request).await.unwrap().into_inner().results.remove(0)
    };
    let result = change(update(vec![offer(of("c"), Some(1), None)], None)).await;
    assert_eq!(result.status(), ItemStatus::Updated, "{result:?}");
    assert_eq!(offers(&get(channel, "lamp").await), [(of("c"), Some(1), None)]);
    assert_eq!(change(update(Vec::new(), ago(5000))).await.status(), ItemStatus::Stale);
    change(update(Vec::new(), None)).await;
    assert_eq!(get(channel, "lamp").await.offers, []);
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_offers_are_refused_with_field_value_and_limit() {
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let channel = &server.channel;
    let refused = async |offers: Vec<proto::Offer>| -> BTreeMap<String, String> {
        let request = proto::UpsertItemsRequest { items: vec![item("x", Some(1), "", offers)], update_time: None };
        let result = catalog(channel).upsert_items(request).await.unwrap().into_inner().results.remove(0);
        assert_eq!(result.status(), ItemStatus::Rejected, "{result:?}");
        result.violations.into_iter().map(|violation| (violation.field, violation.description)).collect()
    };
    let place = |name: &str| key(name, "", "", "");
    let original =
        proto::Offer { original_price_micros: Some(1), price_micros: None, ..offer(place("d"), None, Some(1)) };
    let found = refused(vec![
        offer(place("a"), Some(1), None),
        offer(place("a"), Some(2), None),
        offer(key("", "", "", ""), Some(1), None),
        proto::Offer { price_micros: Some(-1), ..offer(key("b\n", "Swiss", &"g".repeat(129), "chf"), None, None) },
        offer(place("c"), None, None),
        original,
        offer(key("", "", "", "CHF"), Some(1), Some(4)),
        proto::Offer { stock_quantity: Some(2_000_000_000), ..offer(place("e"), None, None) },
    ])
    .await;
    for (field, part) in [
        ("items[0].offers[1].key", "is that of offers[0]"),
        ("items[0].offers[2].key", "is empty; set place_id, region_code, customer_group or currency_code"),
        ("items[0].offers[3].key.place_id", "control"),
        ("items[0].offers[3].key.region_code", "`Swiss` is not an ISO 3166-1 code"),
        ("items[0].offers[3].key.customer_group", "129"),
        ("items[0].offers[3].key.currency_code", "`chf` is not an ISO 4217 code in use; did you mean CHF?"),
        ("items[0].offers[3].price_micros", "is -1"),
        ("items[0].offers[4]", "has no value"),
        ("items[0].offers[5].original_price_micros", "needs a price_micros"),
        ("items[0].offers[6].stock_quantity", "stock has no currency"),
    ] {
        assert!(found.get(field).is_some_and(|text| text.contains(part)), "{field}: {found:?}");
    }
    assert_eq!(found.len(), 10, "a result names ten violations");
    let many = |count: usize| (0..count).map(|n| offer(place(&format!("p{n}")), Some(1), None)).collect::<Vec<_>>();
    assert_eq!(refused(many(201)).await["items[0].offers"], "has 201 entries; the limit is 200");
    // Offers that are set one by one have the same limit.
    upsert(channel, vec![item("x", Some(1), "", many(199))]).await;
    let results = set(
        channel,
        vec![
            inventory("x", place("p0"), Some(2), None),
            inventory("x", place("new"), Some(2), None),
            inventory("x", place("newer"), Some(2), None),
            inventory("x", place("new"), Some(3), None),
            proto::Inventory { currency_code: "EUR".to_owned(), ..inventory("x", place("p0"), Some(2), None) },
            inventory("x", key("", "", "", ""), Some(2), None),
        ],
    )
    .await;
    let statuses: Vec<ItemStatus> = results.iter().map(proto::ItemResult::status).collect();
    use ItemStatus::{Rejected, Updated};
    assert_eq!(statuses, [Updated, Updated, Rejected, Updated, Rejected, Rejected]);
    let with_availability =
        proto::Inventory { availability: Availability::Preorder.into(), ..inventory("x", place("p0"), Some(2), None) };
    let result = set(channel, vec![with_availability]).await.remove(0);
    assert_eq!((result.status(), &*result.violations[0].field), (Rejected, "inventories[0].availability"));
    let text = |at: usize| format!("{}: {}", results[at].violations[0].field, results[at].violations[0].description);
    assert_eq!(text(2), "inventories[2].offer_key: is new, and the item would have 201 offers; the limit is 200");
    assert!(text(4).starts_with("inventories[4].currency_code: must be empty"), "{}", text(4));
    assert!(text(5).starts_with("inventories[5].offer_key: is empty"), "{}", text(5));
    let bad = proto::OfferKey { place_id: "x".repeat(129), ..key("", "C", "a\u{7}", "eur") };
    let found = violations(&search(channel, &request(&bad, "", "", 10)).await.unwrap_err());
    let fields: Vec<&str> = found.iter().map(|(field, _)| field.as_str()).collect();
    assert_eq!(fields, ["viewer.place_id", "viewer.customer_group", "viewer.region_code", "viewer.currency_code"]);
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_currency_that_does_not_exist_is_refused_with_the_one_that_was_meant() {
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let channel = &server.channel;
    upsert(channel, vec![item("lamp", Some(1), "GBP", Vec::new())]).await;
    let expected = "`GPB` is not an ISO 4217 code in use; did you mean GBP?";
    let found = |result: proto::ItemResult| {
        assert_eq!(result.status(), ItemStatus::Rejected, "{result:?}");
        let violation = result.violations.into_iter().next().unwrap();
        (violation.field, violation.description)
    };
    let refused = |field: &str| (field.to_owned(), expected.to_owned());
    let items = vec![item("other", Some(1), "GPB", vec![])];
    let written = catalog(channel).upsert_items(proto::UpsertItemsRequest { items, update_time: None }).await.unwrap();
    assert_eq!(found(written.into_inner().results.remove(0)), refused("items[0].currency_code"));
    let of_item = proto::Inventory {
        item_id: "lamp".to_owned(),
        price_micros: Some(UNIT),
        currency_code: "GPB".to_owned(),
        ..Default::default()
    };
    let of_offer = inventory("lamp", key("leeds", "", "", "GPB"), Some(2), None);
    let mut results = set(channel, vec![of_item, of_offer]).await;
    assert_eq!(found(results.remove(0)), refused("inventories[0].currency_code"));
    assert_eq!(found(results.remove(0)), refused("inventories[1].offer_key.currency_code"));
    let viewer = violations(&search(channel, &request(&key("", "", "", "GPB"), "", "", 10)).await.unwrap_err());
    assert_eq!(viewer, [refused("viewer.currency_code")]);
    server.end().await;
}
