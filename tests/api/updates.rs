//! Writes of some fields of items over gRPC: what they change, in which order they count, and what they cost.
use crate::support::{
    bundles::{ITEMS, Shop, ids, search, search_by, soon},
    grpc::GrpcServer,
    resident_bytes,
};
use futures_util::future::try_join_all;
use lodestone::server::proto::{self, ItemStatus, catalog_service_client::CatalogServiceClient};
use lodestone_core::units::{PriceMicros, UnixMillis};
use lodestone_rollout::HealthBounds;
use prost_types::{FieldMask, Timestamp};
use std::{collections::BTreeSet, time::Instant};
use tonic::{Code, Status, transport::Channel};

/// A time some seconds before now.
fn ago(seconds: i64) -> Option<Timestamp> {
    Some(Timestamp { seconds: UnixMillis::now().0 / 1000 - seconds, nanos: 0 })
}

fn item(id: &str, title: &str) -> proto::Item {
    proto::Item { item_id: id.to_owned(), title: title.to_owned(), ..Default::default() }
}

fn priced(id: &str, price_micros: i64) -> proto::Item {
    proto::Item { price_micros: Some(price_micros), ..item(id, "") }
}

fn update(item: proto::Item, mask: &[&str], update_time: Option<Timestamp>) -> proto::ItemUpdate {
    let paths = mask.iter().map(|path| (*path).to_owned()).collect();
    proto::ItemUpdate { item: Some(item), update_mask: Some(FieldMask { paths }), update_time }
}

fn catalog(server: &GrpcServer) -> CatalogServiceClient<Channel> {
    CatalogServiceClient::new(server.channel.clone())
}

type Written = Vec<(ItemStatus, Vec<String>)>;

fn written(results: Vec<proto::ItemResult>) -> Written {
    results.into_iter().map(|result| (result.status(), result.stale_fields)).collect()
}

async fn upsert(server: &GrpcServer, items: Vec<proto::Item>, update_time: Option<Timestamp>) -> Written {
    let request = proto::UpsertItemsRequest { items, update_time };
    written(catalog(server).upsert_items(request).await.unwrap().into_inner().results)
}

async fn send(server: &GrpcServer, updates: Vec<proto::ItemUpdate>) -> Result<Vec<proto::ItemResult>, Status> {
    Ok(catalog(server).update_items(proto::UpdateItemsRequest { updates }).await?.into_inner().results)
}

async fn change(server: &GrpcServer, updates: Vec<proto::ItemUpdate>) -> Written {
    written(send(server, updates).await.unwrap())
}

async fn get(server: &GrpcServer, id: &str) -> proto::Item {
    let request = proto::GetItemRequest { item_id: id.to_owned() };
    catalog(server).get_item(request).await.unwrap().into_inner().item.unwrap()
}

fn priced_and_titled(id: &str, title: &str, price_micros: i64) -> proto::Item {
    proto::Item { price_micros: Some(price_micros), ..item(id, title) }
}

async fn exists(server: &GrpcServer, id: &str) -> bool {
    let request = proto::GetItemRequest { item_id: id.to_owned() };
    match catalog(server).get_item(request).await {
        Ok(_) => true,
        Err(status) => {
            assert_eq!(status.code(), Code::NotFound);
            false
        }
    }
}

async fn delete(server: &GrpcServer, id: &str) {
    catalog(server).delete_items(proto::DeleteItemsRequest { item_ids: vec![id.to_owned()] }).await.unwrap();
}

async fn found(server: &GrpcServer, query: &str) -> Vec<String> {
    ids(&search(&server.engine, query, "", 100).await.unwrap())
}

fn applied(status: ItemStatus) -> (ItemStatus, Vec<String>) {
    (status, Vec::new())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn some_fields_change_in_place_and_the_rest_stays() {
    use ItemStatus::{Unchanged, Updated};
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let before = get(&server, "i3").await;
    let sold_out = proto::Item { stock_quantity: Some(0), ..item("i3", "is not read") };
    assert_eq!(change(&server, vec![update(sold_out, &["stock_quantity"], None)]).await, [applied(Updated)]);
    assert!(!found(&server, "number 3").await.contains(&"i3".to_owned()));
    // The item of GetItem sent back as a whole.
    let mut whole = get(&server, "i3").await;
    assert_eq!((&whole.title, whole.stock_quantity), (&before.title, Some(0)));
    (whole.stock_quantity, whole.title) = (Some(4), "Striped zebra cushion".to_owned());
    let number = proto::AttributeValue { kind: Some(proto::attribute_value::Kind::Number(7.0)) };
    whole.attributes.insert("seats".to_owned(), number.clone());
    let mask = ["stock_quantity", "title", "attributes.seats"];
    assert_eq!(change(&server, vec![update(whole, &mask, None)]).await, [applied(Updated)]);
    assert_eq!(found(&server, "zebra").await, ["i3"]);
    assert!(!found(&server, "number 3").await.contains(&"i3".to_owned()));
    let expected = proto::Item {
        title: "Striped zebra cushion".to_owned(),
        stock_quantity: Some(4),
        attributes: before.attributes.clone().into_iter().chain([("seats".to_owned(), number)]).collect(),
        ..before.clone()
    };
    assert_eq!(get(&server, "i3").await, expected);
    // Fields of the mask that the item does not have are cleared.
    let cleared = vec![update(item("i3", ""), &["stock_quantity", "attributes.seats"], None)];
    assert_eq!(change(&server, cleared).await, [applied(Updated)]);
    let expected = proto::Item { title: expected.title, ..before };
    assert_eq!(get(&server, "i3").await, expected);

    let position = server.metric("log_position").unwrap();
    let again = update(item("i3", "Striped zebra cushion"), &["title"], None);
    assert_eq!(change(&server, vec![again.clone(), again]).await, [applied(Unchanged), applied(Unchanged)]);
    assert_eq!(server.metric("log_position"), Some(position), "the same values again are not stored");
    server.end().await;
    let server = GrpcServer::start(shop.reopen(HealthBounds::default()).await).await;
    assert_eq!(get(&server, "i3").await, expected, "after a restart");
    assert_eq!(found(&server, "zebra").await, ["i3"]);
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_newest_value_of_a_field_wins_in_whichever_order_writes_arrive() {
    use ItemStatus::{Created, Replaced, Stale, Unknown, Updated};
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let price = ["price_micros"];
    assert_eq!(upsert(&server, vec![item("lamp", "Walnut lamp")], ago(100)).await, [applied(Created)]);
    assert_eq!(change(&server, vec![update(priced("lamp", 5), &price, ago(50))]).await, [applied(Updated)]);
    let position = server.metric("log_position").unwrap();
    // A message that was delayed.
    let late = update(priced("lamp", 6), &price, ago(60));
    assert_eq!(change(&server, vec![late.clone()]).await, [applied(Stale)]);
    assert_eq!(server.metric("log_position"), Some(position), "a stale write is not stored");
    // A catalogue that was exported before the price changed.
    let export = vec![proto::Item { price_micros: Some(7), ..item("lamp", "Walnut floor lamp") }];
    let kept = (Replaced, vec!["price_micros".to_owned()]);
    assert_eq!(upsert(&server, export, ago(70)).await, [kept]);
    let lamp = get(&server, "lamp").await;
    assert_eq!((lamp.title.as_str(), lamp.price_micros), ("Walnut floor lamp", Some(5)));
    assert_eq!(upsert(&server, vec![item("lamp", "Old lamp")], ago(90)).await, [applied(Stale)]);
    let both =
        update(proto::Item { brand: "Acme".to_owned(), ..priced("lamp", 8) }, &["brand", "price_micros"], ago(55));
    assert_eq!(change(&server, vec![both]).await, [(Updated, vec!["price_micros".to_owned()])]);
    // Several writes of one item in one request.
    let writes = vec![
        update(priced("lamp", 10), &price, ago(10)),
        update(priced("lamp", 20), &price, ago(20)),
        update(priced("lamp", 9), &price, ago(9)),
    ];
    assert_eq!(change(&server, writes).await, [applied(Updated), applied(Stale), applied(Updated)]);
    assert_eq!(get(&server, "lamp").await.price_micros, Some(9));
    // Without a time, the last write to arrive wins.
    let ahead = Some(Timestamp { seconds: UnixMillis::now().0 / 1000 + 100, nanos: 0 });
    assert_eq!(change(&server, vec![update(priced("lamp", 11), &price, ahead)]).await, [applied(Updated)]);
    assert_eq!(change(&server, vec![update(priced("lamp", 12), &price, None)]).await, [applied(Updated)]);
    assert_eq!(get(&server, "lamp").await.price_micros, Some(12));

    delete(&server, "lamp").await;
    assert_eq!(change(&server, vec![update(priced("lamp", 13), &price, None)]).await, [applied(Unknown)]);
    assert_eq!(upsert(&server, vec![item("lamp", "Late lamp")], ago(1000)).await, [applied(Stale)]);
    assert_eq!(upsert(&server, vec![item("lamp", "New lamp")], None).await, [applied(Created)]);
    let never = update(priced("never", 1), &price, None);
    assert_eq!(change(&server, vec![never]).await, [applied(Unknown)]);
    server.end().await;
    let server = GrpcServer::start(shop.reopen(HealthBounds::default()).await).await;
    assert_eq!(change(&server, vec![late]).await, [applied(Stale)], "times remain after a restart");
    assert_eq!(get(&server, "lamp").await.title, "New lamp");
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stock_and_prices_are_set_in_short_messages() {
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let of = |id: &str| proto::Inventory { item_id: id.to_owned(), ..Default::default() };
    let inventories = vec![
        proto::Inventory { price_micros: Some(3_000_000), currency_code: "CNY".to_owned(), ..of("i1") },
        proto::Inventory { stock_quantity: Some(-1), update_time: ago(5), ..of("i2") },
        of("i3"),
        proto::Inventory { currency_code: "CNY".to_owned(), ..of("i4") },
        proto::Inventory { price_micros: Some(-1), stock_quantity: Some(1 << 40), ..of("") },
        proto::Inventory { stock_quantity: Some(1), update_time: ago(-1000), ..of("i5") },
        proto::Inventory { stock_quantity: Some(1), ..of("none") },
    ];
    let request = proto::SetInventoryRequest { inventories };
    let results = catalog(&server).set_inventory(request).await.unwrap().into_inner().results;
    let fields: Vec<(ItemStatus, Vec<&str>)> = results
        .iter()
        .map(|result| (result.status(), result.violations.iter().map(|violation| violation.field.as_str()).collect()))
        .collect();
    use ItemStatus::{Rejected, Unknown, Updated};
    assert_eq!(
        fields,
        [
            (Updated, vec![]),
            (Updated, vec![]),
            (Rejected, vec!["inventories[2]"]),
            (Rejected, vec!["inventories[3].currency_code"]),
            (Rejected, vec!["inventories[4].item_id", "inventories[4].price_micros", "inventories[4].stock_quantity"]),
            (Rejected, vec!["inventories[5].update_time"]),
            (Unknown, vec![]),
        ]
    );
    let changed = get(&server, "i1").await;
    assert_eq!((changed.price_micros, changed.currency_code.as_str()), (Some(3_000_000), "CNY"));
    assert_eq!(get(&server, "i2").await.stock_quantity, Some(0));
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_update_is_refused_with_all_its_faults_and_the_others_are_written() {
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let long = "x".repeat(300);
    let updates = vec![
        update(item("i1", ""), &["title"], None),
        update(item("i1", "Title"), &[], None),
        update(item("i1", "Title"), &["title", "price", "item_id"], None),
        update(proto::Item { brand: long.clone(), ..item("", "") }, &["brand"], ago(-1000)),
        proto::ItemUpdate { update_mask: Some(FieldMask { paths: vec!["tags".to_owned()] }), ..Default::default() },
        update(item("i1", "Striped zebra cushion"), &["title"], None),
        // Fields that the mask does not name are not read.
        update(proto::Item { brand: long, ..priced("i2", 5) }, &["price_micros"], None),
    ];
    let results = send(&server, updates).await.unwrap();
    let fields: Vec<Vec<&str>> = results
        .iter()
        .map(|result| result.violations.iter().map(|violation| violation.field.as_str()).collect())
        .collect();
    assert_eq!(
        fields,
        [
            vec!["updates[0].item.title"],
            vec!["updates[1].update_mask"],
            vec!["updates[2].update_mask.paths[1]", "updates[2].update_mask.paths[2]"],
            vec!["updates[3].item.item_id", "updates[3].item.brand", "updates[3].update_time"],
            vec!["updates[4].item.item_id"],
            vec![],
            vec![],
        ]
    );
    let description = &results[2].violations[0].description;
    assert!(description.contains("`price` is not a field") && description.contains("price_micros"), "{description}");
    assert_eq!(found(&server, "zebra").await, ["i1"]);
    assert_eq!(get(&server, "i2").await.price_micros, Some(5));
    let many = vec![update(item("i1", "Title"), &["title"], None); 1001];
    assert_eq!(send(&server, many).await.unwrap_err().code(), Code::InvalidArgument);
    let early = proto::UpsertItemsRequest { items: vec![item("a", "A")], update_time: ago(-1000) };
    assert_eq!(catalog(&server).upsert_items(early).await.unwrap_err().code(), Code::InvalidArgument);
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attributes_that_are_set_one_by_one_have_the_limit_of_an_item() {
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let with = |names: std::ops::Range<usize>| {
        let number = |n: usize| proto::AttributeValue { kind: Some(proto::attribute_value::Kind::Number(n as f64)) };
        proto::Item { attributes: names.map(|n| (format!("a{n}"), number(n))).collect(), ..item("many", "Walnut lamp") }
    };
    upsert(&server, vec![with(0..98)], None).await;
    let set = |names: std::ops::Range<usize>| {
        let mask: Vec<String> = names.clone().map(|n| format!("attributes.a{n}")).collect();
        update(with(names), &mask.iter().map(String::as_str).collect::<Vec<_>>(), None)
    };
    let remove = |names: std::ops::Range<usize>| {
        let mask: Vec<String> = names.map(|n| format!("attributes.a{n}")).collect();
        update(item("many", ""), &mask.iter().map(String::as_str).collect::<Vec<_>>(), ago(-60))
    };
    // The second of the two would be one too many.
    let results = send(&server, vec![set(97..100), set(100..101), remove(0..2), set(100..102)]).await.unwrap();
    use ItemStatus::{Rejected, Unchanged, Updated};
    let statuses: Vec<ItemStatus> = results.iter().map(proto::ItemResult::status).collect();
    assert_eq!(statuses, [Updated, Rejected, Updated, Updated]);
    let violation = &results[1].violations[0];
    assert_eq!(violation.field, "updates[1].item.attributes");
    assert!(violation.description.contains("would have 101 entries; the limit is 100"), "{}", violation.description);
    assert_eq!(get(&server, "many").await.attributes.len(), 100);
    // All attributes as a whole, and one more.
    let whole = update(with(0..100), &["attributes"], ago(-60));
    let results = send(&server, vec![whole, set(100..101)]).await.unwrap();
    assert_eq!(results.iter().map(proto::ItemResult::status).collect::<Vec<_>>(), [Updated, Rejected]);
    // Removals of attributes that never existed take memory, too.
    let removals = |first: usize| (first..first + 5).map(|n| remove(n * 100..n * 100 + 100)).collect::<Vec<_>>();
    let statuses = |results: Vec<proto::ItemResult>| results.iter().map(proto::ItemResult::status).collect::<Vec<_>>();
    assert_eq!(statuses(send(&server, removals(10)).await.unwrap()), [Unchanged; 5]);
    assert_eq!(
        statuses(send(&server, removals(20)).await.unwrap()),
        [Unchanged, Unchanged, Unchanged, Unchanged, Rejected]
    );
    let (status, stale_fields) = upsert(&server, vec![with(0..1)], ago(-30)).await.remove(0);
    assert_eq!((status, stale_fields.len()), (ItemStatus::Replaced, 20), "a result names some of the stale fields");
    upsert(&server, vec![with(0..3)], None).await;
    assert_eq!(
        statuses(send(&server, removals(30)).await.unwrap()),
        [Unchanged; 5],
        "a whole write forgets the removals"
    );
    let bad = Some(Timestamp { nanos: -1, ..ago(10).unwrap() });
    let results = send(&server, vec![update(item("many", "x"), &["title"], bad)]).await.unwrap();
    assert_eq!(results[0].violations[0].field, "updates[0].update_time");
    server.end().await;
}

/// Two bundles have different titles of an item. A write of its price leaves each its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn some_fields_change_the_item_of_each_bundle() {
    let shop = Shop::new();
    shop.publish_changed("other", |bundle| bundle.items[7].title = "Striped zebra cushion".to_owned());
    shop.store().point_to("a", None).unwrap();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    server.engine.rollout().set_canary(Some(("other".to_owned(), 0.5)), soon()).await.unwrap();
    assert_eq!(
        change(&server, vec![update(priced("i7", 5), &["price_micros"], None)]).await,
        [applied(ItemStatus::Updated)]
    );
    let mut titles = BTreeSet::new();
    for user in 0..40 {
        let user = format!("user-{user}");
        let answer = search_by(&server.engine, &user, "lamp number 7", "", 5).await.unwrap();
        titles.extend(answer.results.iter().filter(|result| result.id.as_str() == "i7").map(|_| "lamp"));
        let answer = search_by(&server.engine, &user, "zebra", "", 5).await.unwrap();
        titles.extend(answer.results.iter().filter(|result| result.id.as_str() == "i7").map(|_| "zebra"));
    }
    assert_eq!(titles, BTreeSet::from(["lamp", "zebra"]));
    // A bundle that begins to answer later has its own title and the new price.
    server.engine.rollout().set_canary(None, soon()).await.unwrap();
    server.engine.rollout().activate("other".to_owned(), soon()).await.unwrap();
    let after = get(&server, "i7").await;
    assert_eq!((after.title.as_str(), after.price_micros), ("Striped zebra cushion", Some(5)));
    server.end().await;
}

/// A bundle of a feed that is later than some writes and earlier than others; then the bundle without a feed again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_later_feed_wins_over_earlier_writes_and_loses_to_later_ones() {
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    upsert(&server, vec![priced_and_titled("i7", "Written lamp", 1)], ago(120)).await;
    change(&server, vec![update(priced("i8", 1), &["price_micros"], ago(120))]).await;
    delete(&server, "i9").await;
    delete(&server, "i10").await;
    let feed_time = UnixMillis::now();
    shop.publish_changed("feed", |bundle| {
        for item in &mut bundle.items[7..10] {
            (item.price, item.values_at) = (PriceMicros::new(900), Some(feed_time));
            item.title = format!("Zebra cushion {}", item.id);
        }
    });
    server.engine.rollout().activate("feed".to_owned(), soon()).await.unwrap();
    for id in ["i7", "i8", "i9"] {
        let item = get(&server, id).await;
        assert_eq!((item.title, item.price_micros), (format!("Zebra cushion {id}"), Some(900)));
    }
    assert!(!exists(&server, "i10").await, "an item without a feed stays deleted");
    assert_eq!(found(&server, "zebra").await.len(), 3);

    // Writes from before the feed are stale, later ones count, also of the item that was deleted before it.
    let late = upsert(&server, vec![priced_and_titled("i7", "Late lamp", 2)], ago(60)).await;
    assert_eq!(late, [applied(ItemStatus::Stale)]);
    let late = change(&server, vec![update(priced("i8", 2), &["price_micros"], ago(60))]).await;
    assert_eq!(late, [applied(ItemStatus::Stale)]);
    let prices = ["i8", "i9"].map(|id| update(priced(id, 5), &["price_micros"], None));
    assert_eq!(change(&server, prices.to_vec()).await, [applied(ItemStatus::Updated), applied(ItemStatus::Updated)]);
    let shown = async |server: &GrpcServer| {
        let mut shown = Vec::new();
        for id in ["i7", "i8", "i9"] {
            shown.push(get(server, id).await.price_micros);
        }
        shown
    };
    assert_eq!(shown(&server).await, [Some(900), Some(5), Some(5)]);
    server.end().await;

    // The rule is the same after a replay of the log, and in a bundle without the feed.
    shop.store().point_to("feed", None).unwrap();
    let server = GrpcServer::start(shop.reopen(HealthBounds::default()).await).await;
    assert_eq!(shown(&server).await, [Some(900), Some(5), Some(5)]);
    server.engine.rollout().activate("a".to_owned(), soon()).await.unwrap();
    assert_eq!(get(&server, "i7").await.title, "Late lamp");
    assert_eq!(get(&server, "i8").await.price_micros, Some(5));
    assert!(!exists(&server, "i9").await && !exists(&server, "i10").await);
    server.end().await;
}

/// Prices and stock of 1,000 items change 1,000 times: neither rows nor documents nor vectors are added, and memory
/// does not grow.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_day_of_price_changes_takes_no_memory() {
    const COUNT: usize = 1000;
    const CONNECTIONS: usize = 4;
    const ROUNDS: usize = 1000;
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let items = (0..COUNT).map(|n| item(&format!("new-{n}"), &format!("Walnut thing number {n}"))).collect();
    upsert(&server, items, None).await;
    let corrected = async || search(&server.engine, "walnt", "", 10).await.unwrap();
    let before = corrected().await;
    let live = server.metric("live_items").unwrap();
    let set = async |round: usize| {
        let inventory = |n: usize| proto::Inventory {
            item_id: format!("new-{n}"),
            price_micros: Some((round * COUNT + n) as i64),
            stock_quantity: Some(1 + (round + n) as i64 % 7),
            ..Default::default()
        };
        let request = proto::SetInventoryRequest { inventories: (0..COUNT).map(inventory).collect() };
        let results = catalog(&server).set_inventory(request).await?.into_inner().results;
        assert!(results.iter().all(|result| result.status() == ItemStatus::Updated));
        Ok::<_, Status>(())
    };
    // The first rounds fill the allocator's caches.
    for round in 0..10 {
        set(round).await.unwrap();
    }
    let (resident, begun) = (resident_bytes(), Instant::now());
    for round in (10..10 + ROUNDS).step_by(CONNECTIONS) {
        try_join_all((0..CONNECTIONS).map(|n| set(round + n))).await.unwrap();
    }
    let (seconds, grown) = (begun.elapsed().as_secs_f64(), resident_bytes().saturating_sub(resident));
    let per_second = (ROUNDS * COUNT) as f64 / seconds;
    println!("{per_second:.0} updates/s, resident memory +{:.1} MB", grown as f64 / 1e6);
    assert!(grown < 32_000_000, "memory grew by {grown} bytes");
    assert_eq!(server.metric("live_items"), Some(live), "a price changes no vector");
    assert_eq!(server.metric("items"), Some((ITEMS + COUNT) as u64));
    let after = corrected().await;
    assert_eq!((ids(&after), after.corrected_query), (ids(&before), before.corrected_query));
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn items_are_listed_to_the_last_one() {
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let long = "long description ".repeat(1000);
    let described = |n: usize| proto::Item { description: long.clone(), ..item(&format!("new-{n:03}"), "Walnut") };
    upsert(&server, (0..300).map(described).collect(), None).await;
    let sold_out = proto::Item { stock_quantity: Some(0), ..item("i1", "") };
    change(&server, vec![update(sold_out, &["stock_quantity"], None)]).await;
    delete(&server, "i2").await;
    let list = async |request: proto::ListItemsRequest| {
        Ok::<_, Status>(catalog(&server).list_items(request).await?.into_inner())
    };
    let all = async |request: proto::ListItemsRequest| {
        let (mut listed, mut token) = (Vec::new(), String::new());
        loop {
            let page = list(proto::ListItemsRequest { page_token: token, ..request.clone() }).await.unwrap();
            listed.extend(page.items);
            token = page.next_page_token;
            if token.is_empty() {
                return (listed, page.total_size);
            }
        }
    };
    let expected: BTreeSet<String> = (0..ITEMS)
        .filter(|n| *n != 2)
        .map(|n| format!("i{n}"))
        .chain((0..300).map(|n| format!("new-{n:03}")))
        .collect();
    for page_size in [0, 7, 1000] {
        let (listed, total) = all(proto::ListItemsRequest { page_size, ..Default::default() }).await;
        let ids: Vec<&str> = listed.iter().map(|item| item.item_id.as_str()).collect();
        assert_eq!(ids, expected.iter().map(String::as_str).collect::<Vec<_>>(), "pages of {page_size}");
        assert_eq!(total as usize, expected.len());
    }
    let page = list(proto::ListItemsRequest { page_size: 1000, ..Default::default() }).await.unwrap();
    assert!(page.items.len() < expected.len(), "a page has at most 3 MiB");
    let masked = proto::ListItemsRequest {
        filter: "in_stock = false".to_owned(),
        read_mask: Some(FieldMask { paths: vec!["stock_quantity".to_owned(), "item_id".to_owned()] }),
        ..Default::default()
    };
    let (listed, total) = all(masked.clone()).await;
    assert_eq!((listed, total), (vec![proto::Item { stock_quantity: Some(0), ..item("i1", "") }], 1));

    let token = list(proto::ListItemsRequest { page_size: 2, ..Default::default() }).await.unwrap().next_page_token;
    for bad in [
        proto::ListItemsRequest { page_size: -1, ..Default::default() },
        proto::ListItemsRequest { filter: "price <".to_owned(), ..Default::default() },
        proto::ListItemsRequest { page_token: "x".to_owned(), ..Default::default() },
        proto::ListItemsRequest { page_token: token, ..masked },
        proto::ListItemsRequest { read_mask: Some(FieldMask { paths: vec!["x".to_owned()] }), ..Default::default() },
    ] {
        assert_eq!(list(bad.clone()).await.unwrap_err().code(), Code::InvalidArgument, "{bad:?}");
    }
    server.end().await;
}
