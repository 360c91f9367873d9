//! Sale prices with dates, costs and margins over gRPC.
use crate::support::{
    answers::replay,
    bundles::Shop,
    grpc::GrpcServer,
    items::{all_fields, upsert_items},
};
use lodestone::server::proto::{
    self, RecommendType, catalog_service_client::CatalogServiceClient, ranking_service_client::RankingServiceClient,
};
use lodestone_catalog::{Item, Offer, OfferKey};
use lodestone_core::{
    ids::ItemId,
    units::{PriceMicros, UnixMillis},
};
use lodestone_rollout::HealthBounds;
use prost_types::FieldMask;
use std::time::Duration;
use tonic::{Code, Status, transport::Channel};

const UNIT: i64 = 1_000_000;

fn lamp(id: &str, price: i64) -> proto::Item {
    proto::Item {
        item_id: id.to_owned(),
        title: format!("brass lantern {id}"),
        categories: vec!["Lanterns".to_owned()],
        price_micros: Some(price * UNIT),
        ..Default::default()
    }
}

/// A time in milliseconds from now.
fn from_now(ms: i64) -> Option<prost_types::Timestamp> {
    let at = UnixMillis::now().0 + ms;
    Some(prost_types::Timestamp { seconds: at / 1000, nanos: (at % 1000 * 1_000_000) as i32 })
}

fn on_sale(id: &str, price: i64, sale: i64, start_ms: i64, end_ms: i64) -> proto::Item {
    proto::Item {
        sale_price_micros: Some(sale * UNIT),
        sale_start_time: from_now(start_ms),
        sale_end_time: from_now(end_ms),
        ..lamp(id, price)
    }
}

async fn upsert(channel: &Channel, items: Vec<proto::Item>) {
    let request = proto::UpsertItemsRequest { items, update_time: None };
    let written = CatalogServiceClient::new(channel.clone()).upsert_items(request).await.unwrap().into_inner();
    assert!(written.results.iter().all(|result| result.violations.is_empty()), "{:?}", written.results);
}

async fn get(channel: &Channel, id: &str) -> proto::Item {
    let request = proto::GetItemRequest { item_id: id.to_owned() };
    CatalogServiceClient::new(channel.clone()).get_item(request).await.unwrap().into_inner().item.unwrap()
}

fn viewer() -> Option<proto::Viewer> {
    Some(proto::Viewer { visitor_id: "v".to_owned(), ..Default::default() })
}

fn request(filter: &str, order_by: &str) -> proto::SearchRequest {
    proto::SearchRequest {
        viewer: viewer(),
        filter: format!("category = \"Lanterns\"{filter}"),
        page_size: 100,
        options: Some(proto::RankingOptions {
            read_mask: Some(all_fields()),
            order_by: order_by.to_owned(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

async fn search(channel: &Channel, request: proto::SearchRequest) -> Result<proto::SearchResponse, Status> {
    RankingServiceClient::new(channel.clone()).search(request).await.map(tonic::Response::into_inner)
}

async fn items(channel: &Channel, filter: &str, order_by: &str) -> Vec<proto::Item> {
    let answer = search(channel, request(filter, order_by)).await.unwrap();
    answer.results.into_iter().map(|result| result.item.unwrap()).collect()
}

async fn ids(channel: &Channel, filter: &str, order_by: &str) -> Vec<String> {
    items(channel, filter, order_by).await.into_iter().map(|item| item.item_id).collect()
}

async fn recommended_on_sale(channel: &Channel) -> Vec<String> {
    let request = proto::RecommendRequest {
        viewer: viewer(),
        r#type: RecommendType::OnSale.into(),
        page_size: 100,
        ..Default::default()
    };
    let answer = RankingServiceClient::new(channel.clone()).recommend(request).await.unwrap().into_inner();
    let mut ids: Vec<String> = answer.results.into_iter().map(|result| result.item_id).collect();
    ids.sort();
    ids
}

async fn is_replayed(channel: &Channel, token: &str) -> bool {
    replay(channel, token).await.identical
}

/// What a page shows of an item: price, original price, and whether it has the sale.
fn shown(item: &proto::Item) -> (i64, Option<i64>, bool) {
    let units = |micros: i64| micros / UNIT;
    (item.price_micros.map_or(-1, units), item.original_price_micros.map(units), item.sale_price_micros.is_some())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sale_price_is_what_a_user_pays_within_its_dates() {
    const HOUR: i64 = 3_600_000;
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let channel = &server.channel;
    let lamps = vec![
        lamp("plain", 10),
        on_sale("now", 10, 6, -HOUR, HOUR),
        on_sale("over", 10, 1, -HOUR, -1),
        on_sale("later", 10, 2, HOUR, 2 * HOUR),
        proto::Item { sale_start_time: None, sale_end_time: None, ..on_sale("always", 10, 5, 0, 0) },
        proto::Item { original_price_micros: Some(12 * UNIT), ..on_sale("both", 10, 9, -HOUR, HOUR) },
    ];
    upsert(channel, lamps.clone()).await;
    assert_eq!(ids(channel, "", "price, item_id").await, ["always", "now", "both", "later", "over", "plain"]);
    assert_eq!(ids(channel, " AND price <= 6", "price").await, ["always", "now"]);
    assert_eq!(ids(channel, " AND original_price = 10", "discount desc").await, ["always", "now", "both"]);
    assert_eq!(ids(channel, " AND discount = 0.4", "").await, ["now"]);
    assert_eq!(recommended_on_sale(channel).await, ["always", "both", "now"]);
    let page = items(channel, "", "item_id").await;
    let expected = [
        ("always", (5, Some(10), true)),
        ("both", (9, Some(10), true)),
        ("later", (10, None, false)),
        ("now", (6, Some(10), true)),
        ("over", (10, None, false)),
        ("plain", (10, None, false)),
    ];
    assert_eq!(page.iter().map(|item| (item.item_id.as_str(), shown(item))).collect::<Vec<_>>(), expected);
    let mut facet = request("", "");
    facet.facet_specs =
        vec![proto::FacetSpec { field: "price".to_owned(), bounds: vec![6.0, 10.0], ..Default::default() }];
    let facets = search(channel, facet).await.unwrap().facets;
    assert_eq!(facets[0].values.iter().map(|range| range.item_count).collect::<Vec<_>>(), [1, 2, 3]);
    // The catalogue has the item as it was written.
    for lamp in &lamps {
        let stored = proto::Item { create_time: None, ..get(channel, &lamp.item_id).await };
        let written = proto::Item { create_time: None, ..lamp.clone() };
        assert_eq!(stored, written);
    }
    // A write of one field changes the sale.
    let ended = proto::Item { sale_end_time: from_now(-1), ..lamp("now", 0) };
    let update_mask = Some(FieldMask { paths: vec!["sale_end_time".to_owned()] });
    let update = proto::ItemUpdate { item: Some(ended), update_mask, update_time: None };
    let request = proto::UpdateItemsRequest { updates: vec![update] };
    CatalogServiceClient::new(channel.clone()).update_items(request).await.unwrap();
    assert_eq!(recommended_on_sale(channel).await, ["always", "both"]);
    let wrong = proto::Item { sale_price_micros: Some(-1), ..on_sale("wrong", 10, 1, 5, 5) };
    let request = proto::UpsertItemsRequest { items: vec![wrong], update_time: None };
    let results = CatalogServiceClient::new(channel.clone()).upsert_items(request).await.unwrap().into_inner().results;
    let fields: Vec<&str> = results[0].violations.iter().map(|violation| violation.field.as_str()).collect();
    assert_eq!(fields, ["items[0].sale_price_micros", "items[0].sale_end_time"]);
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sale_begins_and_ends_without_a_write() {
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let channel = &server.channel;
    upsert(channel, vec![lamp("plain", 7), on_sale("soon", 10, 5, 1500, 4000)]).await;
    let (mut phases, mut tokens) = (Vec::new(), Vec::new());
    while phases.len() < 3 {
        let begun = UnixMillis::now();
        let answer = search(channel, request("", "")).await.unwrap();
        let soon = answer.results.iter().find(|result| result.item_id == "soon").unwrap().item.as_ref().unwrap();
        let sale = get(channel, "soon").await;
        let ms = |time: &Option<prost_types::Timestamp>| {
            time.as_ref().map_or(0, |time| time.seconds * 1000 + i64::from(time.nanos) / 1_000_000)
        };
        let (start, end) = (ms(&sale.sale_start_time), ms(&sale.sale_end_time));
        let phase_of = |at: UnixMillis| usize::from(at.0 >= start) + usize::from(at.0 >= end);
        let phase = phase_of(begun);
        if phase != phase_of(UnixMillis::now()) {
            // A boundary passed during the request.
            continue;
        }
        let expected = [(10, None, false), (5, Some(10), true), (10, None, false)][phase];
        assert_eq!(shown(soon), expected, "phase {phase}");
        let order = ids(channel, " AND price > 0", "price").await;
        let (cheap, reduced) = (ids(channel, " AND price < 6", "").await, recommended_on_sale(channel).await);
        if phase == phase_of(UnixMillis::now()) {
            let is_on = phase == 1;
            assert_eq!(order, if is_on { ["soon", "plain"] } else { ["plain", "soon"] });
            assert_eq!((cheap.len(), reduced.len()), (usize::from(is_on), usize::from(is_on)));
            if phases.last() != Some(&phase) {
                phases.push(phase);
                tokens.push(answer.attribution_token);
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(phases, [0, 1, 2]);
    // Answers of all phases are replayed after the sale.
    for token in tokens {
        assert!(is_replayed(channel, &token).await);
    }
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_margin_is_a_field_and_the_cost_is_shown_to_no_user() {
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let channel = &server.channel;
    let cost = |item: proto::Item, cost: i64| proto::Item { cost_micros: Some(cost * UNIT), ..item };
    upsert(
        channel,
        vec![
            cost(lamp("six", 10), 4),
            cost(lamp("one", 10), 9),
            cost(on_sale("loss", 10, 3, -1000, 3_600_000), 5),
            lamp("unknown", 50),
        ],
    )
    .await;
    assert_eq!(ids(channel, "", "margin desc").await, ["six", "one", "loss", "unknown"]);
    assert_eq!(ids(channel, " AND margin < 0", "").await, ["loss"]);
    assert_eq!(ids(channel, " AND margin >= 1", "margin").await, ["one", "six"]);
    assert!(items(channel, "", "margin").await.iter().all(|item| item.cost_micros.is_none()));
    assert_eq!(get(channel, "six").await.cost_micros, Some(4 * UNIT));
    let list = proto::ListItemsRequest {
        filter: "margin > 0".to_owned(),
        read_mask: Some(FieldMask { paths: vec!["cost_micros".to_owned()] }),
        ..Default::default()
    };
    let listed = CatalogServiceClient::new(channel.clone()).list_items(list).await.unwrap().into_inner();
    assert_eq!(listed.items.iter().map(|item| item.cost_micros).collect::<Vec<_>>(), [Some(9 * UNIT), Some(4 * UNIT)]);
    let mut facet = request("", "");
    facet.facet_specs = vec![proto::FacetSpec { field: "margin".to_owned(), ..Default::default() }];
    let refused = search(channel, facet).await.unwrap_err();
    assert!(refused.code() == Code::InvalidArgument && refused.message().contains("margin"), "{refused}");
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn inventory_sets_a_sale_of_an_item_and_of_its_offers_with_the_time_of_each_value() {
    const HOUR: i64 = 3_600_000;
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let channel = &server.channel;
    upsert(channel, vec![lamp("plain", 10), lamp("reduced", 10)]).await;
    let set = async |channel: &Channel, entry: proto::Inventory| {
        let request = proto::SetInventoryRequest { inventories: vec![entry] };
        let written = CatalogServiceClient::new(channel.clone()).set_inventory(request).await.unwrap().into_inner();
        let result = &written.results[0];
        let fields: Vec<String> = result.violations.iter().map(|violation| violation.field.clone()).collect();
        (result.status(), result.stale_fields.clone(), fields)
    };
    let york = Some(proto::OfferKey { place_id: "york".to_owned(), ..Default::default() });
    let sale = |price: i64, from: i64, to: i64| proto::Inventory {
        item_id: "reduced".to_owned(),
        sale_price_micros: Some(price * UNIT),
        sale_start_time: from_now(from),
        sale_end_time: from_now(to),
        ..Default::default()
    };
    let of_york = proto::Inventory { offer_key: york.clone(), price_micros: Some(9 * UNIT), ..sale(4, -HOUR, HOUR) };
    let updated = (proto::ItemStatus::Updated, Vec::new(), Vec::new());
    assert_eq!(set(channel, sale(6, -HOUR, HOUR)).await, updated);
    assert_eq!(set(channel, of_york).await, updated);
    let check = async |channel: &Channel| {
        let in_york = proto::Viewer { place_id: "york".to_owned(), ..viewer().unwrap() };
        for (viewer, expected) in [(viewer().unwrap(), (6, Some(10), true)), (in_york, (4, Some(9), true))] {
            let search_of = proto::SearchRequest { viewer: Some(viewer), ..request(" AND price < 7", "price") };
            let found = search(channel, search_of).await.unwrap().results;
            let [only] = &found[..] else { panic!("{found:?}") };
            assert_eq!(shown(only.item.as_ref().unwrap()), expected);
        }
    };
    check(channel).await;
    // A late write undoes nothing.
    let late = proto::Inventory { update_time: from_now(-HOUR), stock_quantity: Some(3), ..sale(1, -HOUR, HOUR) };
    assert_eq!(set(channel, late).await.0, proto::ItemStatus::Stale);
    let late = proto::Inventory { update_time: from_now(-HOUR), offer_key: york.clone(), ..sale(1, -HOUR, HOUR) };
    assert_eq!(set(channel, late).await.0, proto::ItemStatus::Stale);
    let wrong = proto::Inventory { sale_price_micros: Some(-1), ..sale(1, 5, 5) };
    let fields = vec!["inventories[0].sale_price_micros".to_owned(), "inventories[0].sale_end_time".to_owned()];
    assert_eq!(set(channel, wrong).await, (proto::ItemStatus::Rejected, Vec::new(), fields));
    check(channel).await;
    server.end().await;
    let server = GrpcServer::start(shop.reopen(HealthBounds::default()).await).await;
    let channel = &server.channel;
    check(channel).await;
    // The end of a sale is one field.
    let ended = |offer_key: Option<proto::OfferKey>| proto::Inventory {
        item_id: "reduced".to_owned(),
        sale_end_time: from_now(-1),
        offer_key,
        ..Default::default()
    };
    assert_eq!(set(channel, ended(None)).await, updated);
    assert_eq!(set(channel, ended(york)).await, updated);
    assert_eq!(ids(channel, " AND price < 7", "").await, Vec::<String>::new());
    let offers = get(channel, "reduced").await.offers;
    assert_eq!((offers[0].price_micros, offers[0].sale_price_micros), (Some(9 * UNIT), Some(4 * UNIT)));
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sale_of_an_offer_begins_without_a_write() {
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let channel = &server.channel;
    let soon = UnixMillis::now().0 + 1500;
    let start = prost_types::Timestamp { seconds: soon / 1000, nanos: (soon % 1000 * 1_000_000) as i32 };
    let offer = proto::Offer {
        key: Some(proto::OfferKey { place_id: "york".to_owned(), ..Default::default() }),
        price_micros: Some(9 * UNIT),
        sale_price_micros: Some(4 * UNIT),
        sale_start_time: Some(start),
        ..Default::default()
    };
    upsert(channel, vec![proto::Item { offers: vec![offer], ..lamp("soon", 10) }]).await;
    let in_york = proto::Viewer { place_id: "york".to_owned(), ..viewer().unwrap() };
    let search_of = proto::SearchRequest { viewer: Some(in_york), ..request("", "price") };
    let mut phases = Vec::new();
    while phases.last() != Some(&true) {
        let begun = UnixMillis::now().0 >= soon;
        let found = search(channel, search_of.clone()).await.unwrap();
        if begun != (UnixMillis::now().0 >= soon) {
            continue;
        }
        let price = shown(found.results[0].item.as_ref().unwrap());
        assert_eq!(price, if begun { (4, Some(9), true) } else { (9, None, false) });
        if phases.last() != Some(&begun) {
            phases.push(begun);
        }
    }
    assert_eq!(phases, [false, true]);
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_price_without_a_currency_has_a_warning_if_others_have_one() {
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let mut catalog = CatalogServiceClient::new(server.channel.clone());
    let item = |id: &str, price_micros: Option<i64>, currency: &str| proto::Item {
        item_id: id.to_owned(),
        title: format!("lamp {id}"),
        price_micros,
        currency_code: currency.to_owned(),
        ..Default::default()
    };
    let warnings = |results: &[proto::ItemResult]| -> Vec<(proto::ItemStatus, Vec<(String, String)>)> {
        let of = |result: &proto::ItemResult| {
            let warnings = result.warnings.iter().map(|of| (of.field.clone(), of.description.clone()));
            (result.status(), warnings.collect())
        };
        results.iter().map(of).collect()
    };
    let warning = |path: &str, currencies: &str| {
        let description = format!(
            "is empty, and other prices are in {currencies}; requests that choose a currency find no price of this item"
        );
        vec![(format!("{path}.currency_code"), description)]
    };
    let mut write = async |items: Vec<proto::Item>| {
        let request = proto::UpsertItemsRequest { items, update_time: None };
        catalog.upsert_items(request).await.unwrap().into_inner().results
    };
    use proto::ItemStatus::{Created, Updated};
    // A shop that names no currency has one.
    assert_eq!(warnings(&write(vec![item("a", Some(5), "")]).await), [(Created, vec![])]);
    write(vec![item("b", Some(5), "GBP"), item("c", Some(5), "EUR")]).await;
    let written = write(vec![item("d", Some(5), ""), item("e", None, ""), item("f", Some(5), "EUR")]).await;
    let expected = [(Created, warning("items[0]", "EUR and GBP")), (Created, vec![]), (Created, vec![])];
    assert_eq!(warnings(&written), expected);

    // A change of the price keeps the currency that the item has.
    let update = |id: &str, paths: &[&str]| proto::ItemUpdate {
        item: Some(item(id, Some(7), "")),
        update_mask: Some(prost_types::FieldMask { paths: paths.iter().map(|path| (*path).to_owned()).collect() }),
        update_time: None,
    };
    let updates = vec![
        update("b", &["price_micros"]),
        update("d", &["price_micros"]),
        update("c", &["price_micros", "currency_code"]),
    ];
    let mut catalog = CatalogServiceClient::new(server.channel.clone());
    let updated = catalog.update_items(proto::UpdateItemsRequest { updates }).await.unwrap().into_inner().results;
    let expected = [
        (Updated, vec![]),
        (Updated, warning("updates[1].item", "EUR and GBP")),
        (Updated, warning("updates[2].item", "EUR and GBP")),
    ];
    assert_eq!(warnings(&updated), expected);
    let part = proto::import_items_request::Part::Items(proto::ImportedItems {
        items: vec![item("g", Some(5), "EUR"), item("h", Some(5), "")],
    });
    let feed = futures_util::stream::iter([proto::ImportItemsRequest { part: Some(part) }]);
    let response = catalog.import_items(feed).await.unwrap().into_inner().message().await.unwrap().unwrap();
    let [result] = &response.results[..] else { panic!("{response:?}") };
    let listed = warnings(result.result.as_slice());
    assert_eq!((result.index, listed), (1, vec![(Created, warning("items[1]", "EUR and GBP"))]));
    server.end().await;
}

/// Sets inventory. Returns the status of each entry with the fields and descriptions of its violations.
async fn set_inventory(
    channel: &Channel,
    inventories: Vec<proto::Inventory>,
) -> Vec<(proto::ItemStatus, Vec<(String, String)>)> {
    let request = proto::SetInventoryRequest { inventories };
    let written = CatalogServiceClient::new(channel.clone()).set_inventory(request).await.unwrap().into_inner();
    let found = |result: proto::ItemResult| {
        let status = result.status();
        (status, result.violations.into_iter().map(|violation| (violation.field, violation.description)).collect())
    };
    written.results.into_iter().map(found).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_item_whose_inventory_was_set_can_be_written_back() {
    const HOUR: i64 = 3_600_000;
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let channel = &server.channel;
    let york = proto::OfferKey { place_id: "york".to_owned(), ..Default::default() };
    let of_york =
        |id: &str| proto::Inventory { item_id: id.to_owned(), offer_key: Some(york.clone()), ..Default::default() };
    let ids: Vec<String> = (1..32).map(|bits| format!("lamp-{bits}")).collect();
    upsert(channel, ids.iter().map(|id| lamp(id, 10)).collect()).await;
    // By bit: the price, the original price, the sale price, and the start and the end of the sale.
    for (id, bits) in ids.iter().zip(1_u32..) {
        let has = |bit: u32| bits & (1 << bit) != 0;
        let entry = proto::Inventory {
            price_micros: has(0).then_some(9 * UNIT),
            original_price_micros: has(1).then_some(12 * UNIT),
            sale_price_micros: has(2).then_some(4 * UNIT),
            sale_start_time: from_now(HOUR).filter(|_| has(3)),
            sale_end_time: from_now(2 * HOUR).filter(|_| has(4)),
            ..of_york(id)
        };
        let (status, violations) = set_inventory(channel, vec![entry]).await.remove(0);
        let mut expected = Vec::new();
        for (name, bit) in [("original_price_micros", 1), ("sale_price_micros", 2)] {
            if has(bit) && !has(0) {
                let description = "needs a price_micros of the same offer".to_owned();
                expected.push((format!("inventories[0].{name}"), description));
            }
        }
        let is_refused = !expected.is_empty();
        assert_eq!(violations, expected, "{bits:b}");
        let expected = if is_refused { proto::ItemStatus::Rejected } else { proto::ItemStatus::Updated };
        assert_eq!(status, expected, "{bits:b}");
    }
    // The price may be stored, or be set by an earlier entry of the request.
    let original = |id: &str| proto::Inventory { original_price_micros: Some(12 * UNIT), ..of_york(id) };
    let price = proto::Inventory { price_micros: Some(9 * UNIT), ..of_york("lamp-2") };
    let found = set_inventory(channel, vec![original("lamp-1"), original("lamp-2"), price, original("lamp-2")]).await;
    let statuses: Vec<proto::ItemStatus> = found.iter().map(|(status, _)| *status).collect();
    use proto::ItemStatus::{Rejected, Updated};
    assert_eq!(statuses, [Updated, Rejected, Updated, Updated], "{found:?}");
    // The offer of lamp-9 has the start of a sale, and lamp-1 itself has none yet.
    let of_item = proto::Inventory { item_id: "lamp-1".to_owned(), ..Default::default() };
    let entries = vec![
        proto::Inventory { sale_end_time: from_now(0), ..of_york("lamp-9") },
        proto::Inventory { sale_start_time: from_now(2 * HOUR), ..of_item.clone() },
        proto::Inventory { sale_end_time: from_now(HOUR), ..of_item },
    ];
    let found = set_inventory(channel, entries).await;
    let statuses: Vec<proto::ItemStatus> = found.iter().map(|(status, _)| *status).collect();
    assert_eq!(statuses, [Rejected, Updated, Rejected], "{found:?}");
    for at in [0, 2] {
        let (field, found) = &found[at].1[0];
        assert_eq!(*field, format!("inventories[{at}].sale_end_time"));
        assert!(found.contains("not after sale_start_time"), "{found}");
    }
    for id in &ids {
        let item = get(channel, id).await;
        let request = proto::UpsertItemsRequest { items: vec![item.clone()], update_time: None };
        let written = CatalogServiceClient::new(channel.clone()).upsert_items(request).await.unwrap().into_inner();
        assert_eq!(written.results[0].violations, [], "{item:?}");
    }
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_offer_that_lacks_a_price_takes_all_values_that_need_none() {
    const HOUR: i64 = 3_600_000;
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    // The engine stores offers that requests may not have.
    let key = OfferKey { place_id: "york".into(), ..OfferKey::default() };
    let offer = Offer {
        original_price: PriceMicros::new(12 * UNIT),
        sale_start: Some(UnixMillis(UnixMillis::now().0 + HOUR)),
        ..Offer::new(key)
    };
    let stored = Item { offers: vec![offer], ..Item::titled(ItemId::parse("lamp").unwrap(), "brass lantern") };
    upsert_items(&server.engine, vec![stored]).await.unwrap();
    let entry = || proto::Inventory {
        item_id: "lamp".to_owned(),
        offer_key: Some(proto::OfferKey { place_id: "york".to_owned(), ..Default::default() }),
        ..Default::default()
    };
    let entries = vec![
        proto::Inventory { stock_quantity: Some(3), ..entry() },
        proto::Inventory { sale_end_time: from_now(2 * HOUR), ..entry() },
        proto::Inventory { sale_end_time: from_now(0), ..entry() },
        proto::Inventory { stock_quantity: Some(4), sale_price_micros: Some(4 * UNIT), ..entry() },
        proto::Inventory { original_price_micros: Some(12 * UNIT), ..entry() },
        proto::Inventory { price_micros: Some(9 * UNIT), ..entry() },
        proto::Inventory { sale_price_micros: Some(4 * UNIT), ..entry() },
    ];
    let found = set_inventory(&server.channel, entries).await;
    use proto::ItemStatus::{Rejected, Updated};
    let statuses: Vec<proto::ItemStatus> = found.iter().map(|(status, _)| *status).collect();
    assert_eq!(statuses, [Updated, Updated, Rejected, Rejected, Rejected, Updated, Updated], "{found:?}");
    let fields: Vec<&str> = found.iter().flat_map(|(_, of)| of).map(|(field, _)| field.as_str()).collect();
    assert_eq!(
        fields,
        ["inventories[2].sale_end_time", "inventories[3].sale_price_micros", "inventories[4].original_price_micros"]
    );
    assert_eq!(get(&server.channel, "lamp").await.offers[0].stock_quantity, Some(3));
    server.end().await;
}
