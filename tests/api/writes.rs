//! Writes that fail, that repeat, and that replace: over gRPC on a server in this process.
use crate::support::{
    bundles::{ITEMS, Shop, ids, recommend, runtime, search, search_by, soon, viewer},
    wait::{block_until, wait_until},
};
use lodestone::server::{
    ServerConfig,
    proto::{
        self, EventStatus, EventType, ItemStatus, catalog_service_client::CatalogServiceClient,
        event_service_client::EventServiceClient,
    },
    serve,
};
use lodestone_catalog::Item;
use lodestone_core::{
    faults::{self, Fault},
    ids::{ItemId, Row},
    units::PriceMicros,
};
use lodestone_engine::Engine;
use lodestone_events::{Change, log, quarantined};
use lodestone_pipeline::{
    Options, Page, RecommendKind, RecommendRequest,
    bundle::Bundle,
    generation::{Generation, Space},
    models::Models,
    ranking::Device,
};
use lodestone_rollout::HealthBounds;
use std::{collections::BTreeSet, fs, sync::Arc, time::Duration};
use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle};
use tonic::{Code, Status, transport::Channel};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
use tonic_types::StatusExt;

const TIME_MAX: Duration = Duration::from_secs(60);

/// A server in this process, over the shop's data directory.
struct Served {
    engine: Arc<Engine>,
    channel: Channel,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Served {
    async fn start(shop: &Shop) -> Self {
        let engine = Arc::new(shop.reopen(HealthBounds::default()).await);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = serve(engine.clone(), ServerConfig::default(), listener, async {
            let _ = stopped.await;
        });
        let task = tokio::spawn(async move { serving.await.unwrap() });
        let channel = Channel::from_shared(address).unwrap().connect().await.unwrap();
        Self { engine, channel, stop, task }
    }

    /// Stops the server, so that another one can open its data.
    async fn stop(self) {
        drop(self.channel);
        let _ = self.stop.send(());
        self.task.await.unwrap();
    }

    async fn write_events(&self, events: Vec<proto::Event>) -> Result<proto::WriteEventsResponse, Status> {
        let mut client = EventServiceClient::new(self.channel.clone());
        Ok(client.write_events(proto::WriteEventsRequest { events }).await?.into_inner())
    }

    async fn upsert(&self, items: Vec<proto::Item>) -> Result<Vec<ItemStatus>, Status> {
        let mut client = CatalogServiceClient::new(self.channel.clone());
        let response = client.upsert_items(proto::UpsertItemsRequest { items, update_time: None }).await?.into_inner();
        Ok(response.results.iter().map(proto::ItemResult::status).collect())
    }

    async fn delete(&self, ids: &[&str]) -> Vec<ItemStatus> {
        let item_ids = ids.iter().map(|id| (*id).to_owned()).collect();
        let mut client = CatalogServiceClient::new(self.channel.clone());
        let response = client.delete_items(proto::DeleteItemsRequest { item_ids }).await.unwrap().into_inner();
        response.results.iter().map(proto::ItemResult::status).collect()
    }

    async fn item(&self, id: &str) -> proto::Item {
        let mut client = CatalogServiceClient::new(self.channel.clone());
        let request = proto::GetItemRequest { item_id: id.to_owned() };
        client.get_item(request).await.unwrap().into_inner().item.unwrap()
    }

    async fn health(&self, service: &str) -> ServingStatus {
        let request = HealthCheckRequest { service: service.to_owned() };
        HealthClient::new(self.channel.clone()).check(request).await.unwrap().into_inner().status()
    }

    /// Returns the ids that a search finds.
    async fn found(&self, query: &str) -> Vec<String> {
        ids(&search(&self.engine, query, "", 100).await.unwrap())
    }

    /// Returns the items that a user bought, by id.
    async fn history(&self, user: &str) -> Vec<String> {
        let mut ids = ids(&recommend(&self.engine, user, RecommendKind::BuyAgain).await.unwrap());
        ids.sort();
        ids
    }

    fn metric(&self, name: &str) -> u64 {
        let text = self.engine.metrics_text();
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("lodestone_{name} ")));
        line.unwrap_or_else(|| panic!("{name} is missing")).parse().unwrap()
    }
}

fn item(id: &str, title: &str) -> proto::Item {
    proto::Item { item_id: id.to_owned(), title: title.to_owned(), ..Default::default() }
}

fn purchase(event_id: &str, user: &str, order_id: &str, items: &[&str]) -> proto::Event {
    let line = |id: &&str| proto::EventLine { item_id: (*id).to_owned(), ..Default::default() };
    proto::Event {
        event_id: event_id.to_owned(),
        r#type: EventType::Purchase.into(),
        viewer: Some(proto::Viewer { user_id: user.to_owned(), ..Default::default() }),
        lines: items.iter().map(line).collect(),
        order_id: order_id.to_owned(),
        ..Default::default()
    }
}

fn reason(status: &Status) -> String {
    status.get_error_details().error_info().map(|info| info.reason.clone()).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_panics_is_quarantined_and_the_server_continues() {
    let shop = Shop::new();
    let served = Served::start(&shop).await;
    let poison = faults::arm("event", "poison-event", Fault::Panic);
    let events = ["good-1", "poison-event", "good-2"];
    let events: Vec<_> =
        events.iter().enumerate().map(|(n, id)| purchase(id, "anna", "", &[&format!("i{n}")])).collect();
    let status = served.write_events(events).await.unwrap_err();
    assert_eq!((status.code(), reason(&status)), (Code::Internal, "CHANGE_QUARANTINED".to_owned()));
    assert!(status.message().contains("purchase `poison-event` at position 2"), "{}", status.message());
    assert_eq!(served.history("anna").await, ["i0", "i2"]);

    let poisons =
        [faults::arm("lexical", "poison-item", Fault::Panic), faults::arm("query vectors", "i3", Fault::Panic)];
    let items = vec![item("new", "Walnut tray"), item("poison-item", "Walnut bowl"), item("i3", "Walnut clock")];
    let status = served.upsert(items).await.unwrap_err();
    assert_eq!(reason(&status), "CHANGE_QUARANTINED");
    assert!(["poison-item", "i3"].iter().all(|id| status.message().contains(id)), "{}", status.message());
    assert_eq!(served.found("walnut").await[0], "new");
    assert!(served.item("i3").await.title.contains("number 3"), "the old item stays");
    assert_eq!(served.metric("quarantined"), 3);

    // The writer goes on.
    served.write_events(vec![purchase("good-3", "anna", "", &["i7"])]).await.unwrap();
    assert_eq!(served.upsert(vec![item("new", "Walnut shelf")]).await.unwrap(), [ItemStatus::Replaced]);
    assert_eq!(served.history("anna").await, ["i0", "i2", "i7"]);
    assert_eq!(served.health("lodestone.v1.EventService").await, ServingStatus::Serving);
    served.stop().await;

    // A replay skips what is quarantined, also when it could be applied now.
    drop((poison, poisons));
    let directory = shop.data_path().join("log");
    let named: Vec<_> =
        quarantined(&directory).unwrap().into_iter().map(|change| (change.position, change.id)).collect();
    assert_eq!(named, [(2, "poison-event".to_owned()), (5, "poison-item".to_owned()), (6, "i3".to_owned())]);
    let mut read = Vec::new();
    log::read(&directory, 1, |position, _, _| read.push(position)).unwrap();
    assert_eq!(read, [1, 3, 4, 7, 8]);
    let served = Served::start(&shop).await;
    assert_eq!(served.history("anna").await, ["i0", "i2", "i7"]);
    assert!(served.item("i3").await.title.contains("number 3"));
    assert_eq!(served.metric("quarantined"), 3);
    // The poisoned event is not remembered, so that it can be sent again.
    let again = served.write_events(vec![purchase("poison-event", "anna", "", &["i1"])]).await.unwrap();
    assert_eq!(again.results[0].status(), EventStatus::Accepted);
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_panics_during_the_replay_is_quarantined_too() {
    let shop = Shop::new();
    let served = Served::start(&shop).await;
    let events = ["first", "panics-later", "last"];
    let events: Vec<_> = events.iter().enumerate().map(|(n, id)| purchase(id, "b", "", &[&format!("i{n}")])).collect();
    served.write_events(events).await.unwrap();
    served.upsert(vec![item("panics-later", "Walnut tray"), item("other", "Walnut bowl")]).await.unwrap();
    served.stop().await;
    let poisons =
        [faults::arm("replay", "panics-later", Fault::Panic), faults::arm("lexical", "panics-later", Fault::Panic)];
    let served = Served::start(&shop).await;
    assert_eq!(served.history("b").await, ["i0", "i2"]);
    assert_eq!(served.found("walnut").await[0], "other");
    assert_eq!(served.metric("quarantined"), 1);
    served.stop().await;
    drop(poisons);
    let served = Served::start(&shop).await;
    assert_eq!(served.history("b").await, ["i0", "i2"]);
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_cannot_undo_a_change_reports_it_and_takes_no_more_writes() {
    let shop = Shop::new();
    let served = Served::start(&shop).await;
    assert_eq!(served.metric("log_writable"), 1);
    let poisons =
        [faults::arm("lexical", "not-undone", Fault::Error), faults::arm("restore", "not-undone", Fault::Error)];
    let status = served.upsert(vec![item("not-undone", "Walnut tray")]).await.unwrap_err();
    assert_eq!((status.code(), reason(&status)), (Code::Unavailable, "WRITES_STOPPED".to_owned()));
    let status = served.write_events(vec![purchase("e", "c", "", &["i1"])]).await.unwrap_err();
    assert_eq!(reason(&status), "WRITES_STOPPED");
    wait_until("the health of writes is NOT_SERVING", TIME_MAX, async || {
        served.health("lodestone.v1.EventService").await == ServingStatus::NotServing
            && served.health("lodestone.v1.CatalogService").await == ServingStatus::NotServing
    })
    .await;
    assert_eq!(served.metric("log_writable"), 0);
    // Answers continue.
    assert_eq!(served.health("lodestone.v1.RankingService").await, ServingStatus::Serving);
    assert!(!served.found("red mug").await.is_empty());
    served.stop().await;
    drop(poisons);
    // The restart applies the change, which is in the log.
    let served = Served::start(&shop).await;
    assert_eq!(served.found("walnut").await[0], "not-undone");
    served.write_events(vec![purchase("e", "c", "", &["i1"])]).await.unwrap();
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failure_at_any_step_leaves_every_index_as_before() {
    let shop = Shop::new();
    let served = Served::start(&shop).await;
    served.upsert(vec![item("live", "Walnut tray")]).await.unwrap();
    let queries = ["red mug", "green lamp number 5", "walnut tray", "zebra"];
    let similar = async |id: &str| ids(&served.engine.recommend(similar_to(id), soon()).await.unwrap());
    let answers = async || {
        let mut answers = Vec::new();
        for query in queries {
            answers.push(served.found(query).await);
        }
        for id in ["i5", "live", "i8"] {
            answers.push(similar(id).await);
        }
        answers
    };
    let before = answers().await;
    let steps = ["catalog", "user vectors", "query vectors", "lexical", "completions", "publish"];
    for step in steps {
        for fault in [Fault::Error, Fault::Panic] {
            // A new item, an item of the bundle, and an item that was written since; then a delete.
            for id in ["absent", "i5", "live"] {
                let armed = faults::arm(step, id, fault);
                let status = served.upsert(vec![item(id, "Striped zebra cushion")]).await.unwrap_err();
                assert_eq!(reason(&status), "CHANGE_QUARANTINED", "{step}");
                let mut client = CatalogServiceClient::new(served.channel.clone());
                if id != "absent" {
                    let deleted =
                        client.delete_items(proto::DeleteItemsRequest { item_ids: vec![id.to_owned()] }).await;
                    assert_eq!(reason(&deleted.unwrap_err()), "CHANGE_QUARANTINED", "{step}");
                }
                drop(armed);
                assert_eq!(answers().await, before, "{step} {fault:?} {id}");
            }
        }
    }
    assert_eq!(served.metric("items"), ITEMS as u64 + 1);
    // Without the fault the change is applied.
    served.upsert(vec![item("i5", "Striped zebra cushion")]).await.unwrap();
    assert_eq!(served.found("zebra").await[0], "i5");
    let after = answers().await;
    served.stop().await;
    let served = Served::start(&shop).await;
    assert_eq!(served.found("zebra").await, after[3]);
    served.stop().await;
}

fn similar_to(id: &str) -> RecommendRequest {
    RecommendRequest {
        viewer: viewer("similar"),
        kind: RecommendKind::Similar,
        page: Page { size: 100, token: String::new(), number: 1, fingerprint: 0 },
        filter: None,
        anchors: vec![ItemId::parse(id).unwrap()],
        facets: Vec::new(),
        options: Options::default(),
        message: Vec::new(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_fails_for_the_canary_is_in_effect_for_nobody() {
    let shop = Shop::new();
    let served = Served::start(&shop).await;
    let canary = Some(("b".to_owned(), 0.5));
    served.engine.rollout().set_canary(canary, soon()).await.unwrap();
    let armed = faults::arm("b", "i5", Fault::Panic);
    let status = served.upsert(vec![item("i5", "Striped zebra cushion")]).await.unwrap_err();
    assert_eq!(reason(&status), "CHANGE_QUARANTINED");
    drop(armed);
    // The users of both bundles.
    let mut bundles = BTreeSet::new();
    let titles = async |query: &str, bundles: &mut BTreeSet<String>| {
        let mut firsts = BTreeSet::new();
        for n in 0..40 {
            let answer = search_by(&served.engine, &format!("user-{n}"), query, "", 5).await.unwrap();
            bundles.insert(answer.info.generation.to_string());
            firsts.insert(ids(&answer)[0].clone());
        }
        firsts
    };
    assert_eq!(titles("blue lamp number 7", &mut bundles).await, BTreeSet::from(["i7".to_owned()]));
    assert!(served.item("i5").await.title.contains("number 5"));
    assert_eq!(titles("green lamp number 5", &mut bundles).await, BTreeSet::from(["i5".to_owned()]));
    assert_eq!(bundles.len(), 2, "{bundles:?}");
    served.upsert(vec![item("i5", "Striped zebra cushion")]).await.unwrap();
    assert_eq!(titles("zebra", &mut bundles).await, BTreeSet::from(["i5".to_owned()]));
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn items_of_one_batch_are_applied_in_order() {
    use ItemStatus::{Created, Deleted, Replaced, Unknown};
    let shop = Shop::new();
    let served = Served::start(&shop).await;
    let batch = vec![item("a", "First"), item("b", "Other"), item("a", "Second"), item("i1", "Known")];
    assert_eq!(served.upsert(batch).await.unwrap(), [Created, Created, Replaced, Replaced]);
    assert_eq!(served.item("a").await.title, "Second");
    assert_eq!(served.delete(&["a", "a", "none"]).await, [Deleted, Unknown, Unknown]);
    assert_eq!(served.upsert(vec![item("a", "Third")]).await.unwrap(), [Created]);
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_changes_nothing_is_not_stored() {
    use ItemStatus::{Created, Deleted, Replaced, Unchanged, Unknown};
    let shop = Shop::new();
    let served = Served::start(&shop).await;
    let position = |served: &Served| served.metric("log_position");
    assert_eq!(served.delete(&["none", "nowhere", "none"]).await, [Unknown; 3]);
    assert_eq!(position(&served), 0);
    let lamp = || proto::Item { stock_quantity: Some(3), ..item("lamp", "Walnut lamp") };
    assert_eq!(
        served.upsert(vec![lamp(), lamp(), item("tray", "Walnut tray")]).await.unwrap(),
        [Created, Unchanged, Created]
    );
    assert_eq!(position(&served), 2);
    for _ in 0..3 {
        assert_eq!(served.upsert(vec![lamp()]).await.unwrap(), [Unchanged]);
    }
    assert_eq!(position(&served), 2, "the same content again");
    // Within one write, the last change counts.
    let other = || proto::Item { stock_quantity: Some(4), ..lamp() };
    let statuses = served.upsert(vec![lamp(), other(), other(), lamp()]).await.unwrap();
    assert_eq!(statuses, [Unchanged, Replaced, Unchanged, Replaced]);
    assert_eq!((position(&served), served.item("lamp").await.stock_quantity), (4, Some(3)));
    assert_eq!(served.delete(&["lamp", "lamp", "none"]).await, [Deleted, Unknown, Unknown]);
    assert_eq!(served.delete(&["lamp"]).await, [Unknown]);
    assert_eq!(position(&served), 5);
    // An item of the bundle that no write has named: its content is stored once, because other bundles have another
    // one.
    let known = served.item("i1").await;
    for _ in 0..2 {
        assert_eq!(served.upsert(vec![known.clone()]).await.unwrap(), [Unchanged]);
    }
    assert_eq!(served.delete(&["i2", "i2"]).await, [Deleted, Unknown]);
    assert_eq!(position(&served), 7);
    served.stop().await;
    let served = Served::start(&shop).await;
    assert_eq!(served.delete(&["lamp", "i2", "none"]).await, [Unknown; 3]);
    assert_eq!(served.upsert(vec![known, item("tray", "Walnut tray")]).await.unwrap(), [Unchanged; 2]);
    assert_eq!(position(&served), 7, "after a restart");
    assert_eq!(served.upsert(vec![lamp()]).await.unwrap(), [Created]);
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_line_counts_once_whatever_the_event_id() {
    let shop = Shop::new();
    let served = Served::start(&shop).await;
    let write = async |served: &Served, event| {
        let result = served.write_events(vec![event]).await.unwrap().results.remove(0);
        let fields: Vec<String> = result.warnings.iter().map(|warning| warning.field.clone()).collect();
        (result.status(), fields)
    };
    use EventStatus::{Accepted, Duplicate};
    assert_eq!(write(&served, purchase("e1", "anna", "o1", &["i1", "i1"])).await, (Accepted, vec![]));
    let again = ["events[0].lines[0]".to_owned()];
    assert_eq!(write(&served, purchase("e2", "anna", "o1", &["i1"])).await, (Duplicate, again.to_vec()));
    // The order grew: only the new item counts.
    assert_eq!(write(&served, purchase("e3", "anna", "o1", &["i1", "i2"])).await, (Accepted, again.to_vec()));
    // Another order, another user, and purchases without an order are no repetitions.
    assert_eq!(write(&served, purchase("e4", "anna", "o2", &["i1"])).await, (Accepted, vec![]));
    assert_eq!(write(&served, purchase("e5", "berta", "o1", &["i1"])).await, (Accepted, vec![]));
    for id in ["e6", "e7"] {
        assert_eq!(write(&served, purchase(id, "anna", "", &["i3"])).await, (Accepted, vec![]));
    }
    assert_eq!(served.metric("repeated_order_lines_total"), 2);
    let mut stored = Vec::new();
    log::read(&shop.data_path().join("log"), 1, |_, _, change| stored.push(change.id().to_owned())).unwrap();
    assert_eq!(stored, ["e1", "e3", "e4", "e5", "e6", "e7"]);
    served.stop().await;
    // A restart remembers the orders.
    let served = Served::start(&shop).await;
    assert_eq!(write(&served, purchase("e8", "anna", "o1", &["i2"])).await, (Duplicate, again.to_vec()));
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_without_a_currency_have_that_of_their_items_and_unknown_items_are_named() {
    let shop = Shop::new();
    let served = Served::start(&shop).await;
    let lamp = |id: &str, currency: &str| proto::Item {
        price_micros: Some(1),
        currency_code: currency.to_owned(),
        ..item(id, "Walnut lamp")
    };
    served.upsert(vec![lamp("pounds", "GBP"), lamp("euros", "EUR"), item("free", "Leaflet")]).await.unwrap();
    let write = async |id: &str, items: &[&str], currency: &str| {
        let mut event = purchase(id, "anna", "", items);
        event.lines.iter_mut().for_each(|line| line.price_micros = Some(5_000_000));
        event.currency_code = currency.to_owned();
        let result = served.write_events(vec![event]).await.unwrap().results.remove(0);
        assert_eq!(result.status(), EventStatus::Accepted);
        result.warnings.into_iter().map(|warning| (warning.field, warning.description)).collect::<Vec<_>>()
    };
    let field = |warnings: &[(String, String)]| warnings.iter().map(|(field, _)| field.clone()).collect::<Vec<_>>();
    assert_eq!(write("e1", &["pounds"], "").await, []);
    assert_eq!(write("e2", &["pounds"], "USD").await, []);
    let partly = write("e3", &["nosuch", "euros"], "").await;
    assert_eq!(field(&partly), ["events[0].lines[0].item_id"]);
    assert!(partly[0].1.contains("`nosuch`, which the catalogue does not have"), "{partly:?}");
    let mixed = write("e4", &["pounds", "euros"], "").await;
    assert_eq!(field(&mixed), ["events[0].currency_code"]);
    assert!(mixed[0].1.contains("its items have EUR and GBP"), "{mixed:?}");
    let unknown = write("e5", &["free", "nowhere"], "").await;
    assert_eq!(field(&unknown), ["events[0].lines[1].item_id", "events[0].currency_code"]);
    assert!(unknown[1].1.contains("no item of the event has one"), "{unknown:?}");
    assert_eq!(served.metric("unknown_event_items_total"), 2);
    assert_eq!(served.metric("events_without_currency_total"), 2);
    let mut stored = Vec::new();
    log::read(&shop.data_path().join("log"), 1, |_, _, change| {
        if let Change::Event(event) = change {
            stored.push((event.id.to_string(), event.currency));
        }
    })
    .unwrap();
    let expected = [("e1", "GBP"), ("e2", "USD"), ("e3", "EUR"), ("e4", ""), ("e5", "")];
    assert_eq!(stored, expected.map(|(id, currency)| (id.to_owned(), currency.to_owned())));
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_oversold_item_is_sold_out() {
    let shop = Shop::new();
    let served = Served::start(&shop).await;
    let lamp = |stock| proto::Item { stock_quantity: Some(stock), ..item("lamp", "Walnut lamp") };
    served.upsert(vec![lamp(5)]).await.unwrap();
    assert_eq!(served.found("walnut").await[0], "lamp");
    served.upsert(vec![lamp(-2)]).await.unwrap();
    assert_eq!(served.item("lamp").await.stock_quantity, Some(0));
    assert!(!served.found("walnut").await.contains(&"lamp".to_owned()));
    served.stop().await;
}

/// Writes the shop's items a thousand times with other prices, and then some times with other titles, and compares with
/// a server that receives only the last state.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn repeated_writes_of_the_same_items_leave_the_server_as_a_fresh_load() {
    let shop = Shop::new();
    let served = Served::start(&shop).await;
    let price = |round: usize, n: usize| Some(1_000_000 * ((round + n) % 50) as i64);
    let mut known: Vec<proto::Item> = Vec::new();
    for n in 0..ITEMS {
        known.push(served.item(&format!("i{n}")).await);
    }
    let queries = ["red mug", "blue lamp number 7", "number 31", "gren mug", "chocolate"];
    let answers = async |served: &Served| {
        let mut answers = Vec::new();
        for query in queries {
            let answer = search(&served.engine, query, "", 100).await.unwrap();
            answers.push((ids(&answer), answer.corrected_query.clone()));
        }
        answers
    };
    let with_prices = |round: usize| -> Vec<proto::Item> {
        let items = known.iter().enumerate();
        items.map(|(n, item)| proto::Item { price_micros: price(round, n), ..item.clone() }).collect()
    };
    served.upsert(with_prices(999)).await.unwrap();
    let before = answers(&served).await;
    for round in 0..1000 {
        served.upsert(with_prices(round)).await.unwrap();
    }
    assert_eq!(served.metric("live_items"), 0, "a price changes no vector");
    assert_eq!(served.item("i3").await.price_micros, price(999, 3));
    assert_eq!(served.item("i3").await.create_time, known[3].create_time, "a replaced item keeps its age");
    assert_eq!(answers(&served).await, before, "the learned vectors stay");

    // Titles change, and come back at the end.
    let title = |round: usize, n: usize| format!("chocolate round{round} thing {n}");
    for round in 0..30 {
        let items = (0..ITEMS).map(|n| item(&format!("i{n}"), &title(round, n))).collect();
        served.upsert(items).await.unwrap();
    }
    assert!(served.found("chocolate round29").await.len() >= ITEMS);
    served.upsert(with_prices(999)).await.unwrap();
    assert_eq!(answers(&served).await, before);
    assert_eq!(served.metric("items"), ITEMS as u64);
    served.stop().await;
    let served = Served::start(&shop).await;
    assert_eq!(answers(&served).await, before, "a restart leads to the same answers");
    served.stop().await;
}

/// Applies writes to a generation without a server, and counts what its indexes hold.
#[test]
fn repeated_writes_take_no_rows_documents_and_vectors() {
    let shop = Shop::new();
    let bundle = Bundle::open(&shop.store_path().join("a")).unwrap();
    let mut models = Models::open(&runtime(), &bundle, Device::Cpu).unwrap();
    let items = bundle.items.clone();
    let generation = Generation::standalone(bundle, 10).unwrap();
    let mut write = |round: usize, titles: usize| {
        let changed = |(n, item): (usize, &Item)| {
            let mut item = item.clone();
            item.price = PriceMicros::new((round * 40 + n) as i64);
            if titles > 0 {
                item.title = format!("{} version{}", item.title, round % titles);
            }
            item
        };
        let items: Vec<Item> = items.iter().enumerate().map(changed).collect();
        let vectors = generation.embed(&mut models, &items.iter().collect::<Vec<_>>()).unwrap();
        let change = |(item, vectors): (Item, _)| ((item.id.clone(), Some(Arc::new(item))), Some(vectors));
        generation.apply(items.into_iter().zip(vectors).map(change).collect(), round as u64 + 1).unwrap();
    };
    // Three titles of each item, ten times; then the titles of the bundle.
    (0..30).for_each(|round| write(round, 3));
    (30..1000).for_each(|round| write(round, 0));
    let catalog = generation.catalog.load();
    assert_eq!((catalog.row_count(), catalog.item_count()), (ITEMS, ITEMS));
    assert_eq!(catalog.get(Row(7)).item.price, PriceMicros::new(999 * 40 + 7));
    assert!((0..ITEMS as u32).all(|row| catalog.get(Row(row)).vectors.is_of_bundle()));
    block_until("replaced documents are removed", TIME_MAX, || generation.lexical.document_count() == ITEMS);
    for space in [Space::User, Space::Query] {
        // One for each of the three titles and one for the learned vector that came back.
        let points = generation.vector_index(space).live_count();
        assert!(points <= 4 * ITEMS, "{points}");
        generation.merge().unwrap();
        assert_eq!(generation.vector_index(space).live_count(), 0);
    }
}

/// An item that is deleted, left out by a merge and written again has the vectors of its row already.
#[test]
fn vector_search_finds_an_item_that_is_written_again_after_a_merge_without_it() {
    let shop = Shop::new();
    let bundle = Bundle::open(&shop.store_path().join("a")).unwrap();
    let mut models = Models::open(&runtime(), &bundle, Device::Cpu).unwrap();
    let item = Arc::new(bundle.items[7].clone());
    let generation = Generation::standalone(bundle, 10).unwrap();
    generation.apply(vec![((item.id.clone(), None), None)], 1).unwrap();
    generation.merge().unwrap();
    let is_indexed = || [Space::User, Space::Query].map(|space| generation.vector_index(space).contains(Row(7)));
    assert_eq!(is_indexed(), [false; 2]);
    let vectors = generation.embed(&mut models, &[&item]).unwrap().pop();
    generation.apply(vec![((item.id.clone(), Some(item)), vectors)], 2).unwrap();
    assert_eq!(is_indexed(), [true; 2]);
}

/// The vectors of written items are saved on shutdown. A restart encodes only texts that are not saved.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_reads_the_saved_vectors_of_written_items() {
    let shop = Shop::new();
    let path = shop.data_path().join("item_vectors.cache");
    let answers = async |served: &Served| {
        let similar = served.engine.recommend(similar_to("kettle"), soon()).await.unwrap();
        [served.found("copper kettle").await, served.found("brass samovar").await, ids(&similar)]
    };
    let served = Served::start(&shop).await;
    served.upsert(vec![item("kettle", "Copper kettle"), item("samovar", "Brass samovar")]).await.unwrap();
    let before = answers(&served).await;
    assert!(!path.exists());
    served.engine.checkpoint_on_shutdown();
    served.stop().await;
    let saved = fs::read(&path).unwrap();

    // An item whose text would have to be encoded cannot be applied.
    let text = Item::titled(ItemId::parse("kettle").unwrap(), "Copper kettle").search_text();
    let fault = faults::arm("encode", &text, Fault::Error);
    let served = Served::start(&shop).await;
    assert_eq!(answers(&served).await, before);
    served.stop().await;

    // A damaged file is not used, and is written again.
    let mut damaged = saved.clone();
    damaged[saved.len() / 2] ^= 1;
    fs::write(&path, &damaged).unwrap();
    let served = Served::start(&shop).await;
    assert!(!served.found("copper kettle").await.contains(&"kettle".to_owned()));
    served.stop().await;
    assert!(fs::read(&path).unwrap().len() < saved.len());
    drop(fault);
    let served = Served::start(&shop).await;
    assert_eq!(answers(&served).await, before);
    // The last bits of vectors depend on the texts that are encoded together.
    assert_eq!(fs::read(&path).unwrap().len(), saved.len());

    // Deleted items leave the file.
    for (id, is_left) in [("samovar", true), ("kettle", false)] {
        served.delete(&[id]).await;
        served.engine.checkpoint_on_shutdown();
        assert_eq!(path.exists(), is_left);
        assert!(fs::read(&path).unwrap_or_default().len() < saved.len());
    }
    served.stop().await;
}

/// A restart builds new frozen graphs if most items were written by the API, and otherwise inserts the written items.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_leads_to_the_same_answers_with_few_and_with_many_written_items() {
    let shop = Shop::new();
    let served = Served::start(&shop).await;
    let kettles = |range: std::ops::Range<usize>| -> Vec<proto::Item> {
        let title = |n: usize| format!("{} kettle model {n}", ["red", "blue", "green"][n % 3]);
        range.map(|n| item(&format!("kettle{n}"), &title(n))).collect()
    };
    let answers = async |served: &Served| {
        let mut answers = Vec::new();
        for query in ["red kettle", "kettle model 4", "bleu ketle", "lamp", "kettle 57"] {
            let found = served.found(query).await;
            answers.push(found.into_iter().collect::<BTreeSet<_>>());
        }
        let similar = served.engine.recommend(similar_to("kettle1"), soon()).await.unwrap();
        answers.push(ids(&similar).into_iter().collect());
        answers
    };
    served.upsert(kettles(0..10)).await.unwrap();
    let few = answers(&served).await;
    served.stop().await;

    let served = Served::start(&shop).await;
    assert_eq!(answers(&served).await, few);
    assert_eq!((served.metric("live_items"), served.metric("merges")), (10, 0));
    served.upsert(kettles(10..60)).await.unwrap();
    served.delete(&["kettle4", "i5"]).await;
    let many = answers(&served).await;
    served.stop().await;

    let served = Served::start(&shop).await;
    assert_eq!((served.metric("live_items"), served.metric("merges")), (0, 1));
    assert_eq!(answers(&served).await, many);
    assert!(many.iter().all(|ids| !ids.contains("kettle4") && !ids.is_empty()));
    // Later writes are live again.
    served.upsert(kettles(4..5)).await.unwrap();
    served.upsert(vec![item("samovar", "Brass samovar")]).await.unwrap();
    assert_eq!(served.metric("live_items"), 2);
    assert!(served.found("kettle model 4").await.contains(&"kettle4".to_owned()));
    assert_eq!(served.found("samovar").await[0], "samovar");
    served.stop().await;
}
