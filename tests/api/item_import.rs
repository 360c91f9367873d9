//! Feeds over gRPC: acknowledged message by message, and full ones that delete what they lack.
use crate::support::{
    bundles::{ITEMS, Shop},
    grpc::GrpcServer,
};
use lodestone::server::proto::{
    self, ImportMode, ItemStatus, catalog_service_client::CatalogServiceClient, import_items_request::Part,
};
use lodestone_core::units::UnixMillis;
use lodestone_rollout::HealthBounds;
use tonic::{Code, Status, transport::Channel};
use tonic_types::StatusExt;

fn item(id: &str) -> proto::Item {
    proto::Item { item_id: id.to_owned(), title: format!("title of {id}"), ..Default::default() }
}

fn items(ids: &[&str]) -> proto::ImportItemsRequest {
    let items = ids.iter().map(|id| item(id)).collect();
    proto::ImportItemsRequest { part: Some(Part::Items(proto::ImportedItems { items })) }
}

fn options(change: impl FnOnce(&mut proto::ImportOptions)) -> proto::ImportItemsRequest {
    let mut options = proto::ImportOptions::default();
    change(&mut options);
    proto::ImportItemsRequest { part: Some(Part::Options(options)) }
}

fn full(change: impl FnOnce(&mut proto::ImportOptions)) -> proto::ImportItemsRequest {
    options(|options| {
        options.mode = ImportMode::Full.into();
        change(options);
    })
}

fn at(seconds_ago: i64) -> Option<prost_types::Timestamp> {
    Some(prost_types::Timestamp { seconds: UnixMillis::now().0 / 1000 - seconds_ago, nanos: 0 })
}

/// Sends a whole feed. Returns the responses before the first error, and the error.
async fn import(
    channel: &Channel,
    messages: Vec<proto::ImportItemsRequest>,
) -> (Vec<proto::ImportItemsResponse>, Option<Status>) {
    let mut client = CatalogServiceClient::new(channel.clone());
    let mut stream = client.import_items(futures_util::stream::iter(messages)).await.unwrap().into_inner();
    let mut responses = Vec::new();
    loop {
        match stream.message().await {
            Ok(Some(response)) => responses.push(response),
            Ok(None) => return (responses, None),
            Err(status) => return (responses, Some(status)),
        }
    }
}

/// All items, created, replaced, unchanged, stale and rejected ones.
fn counts(response: &proto::ImportItemsResponse) -> [i64; 6] {
    let counts = response.counts.unwrap();
    [
        counts.item_count,
        counts.created_count,
        counts.replaced_count,
        counts.unchanged_count,
        counts.stale_count,
        counts.rejected_count,
    ]
}

/// The ids of the items that the tests write.
async fn ids(channel: &Channel) -> Vec<String> {
    let request =
        proto::ListItemsRequest { filter: "item_id != \"\"".to_owned(), page_size: 1000, ..Default::default() };
    let listed = CatalogServiceClient::new(channel.clone()).list_items(request).await.unwrap().into_inner();
    listed.items.into_iter().map(|item| item.item_id).filter(|id| id.starts_with("feed-")).collect()
}

async fn purge(channel: &Channel, filter: &str, force: bool) -> Result<proto::PurgeItemsResponse, Status> {
    let request = proto::PurgeItemsRequest { filter: filter.to_owned(), force, ..Default::default() };
    Ok(CatalogServiceClient::new(channel.clone()).purge_items(request).await?.into_inner())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attributes_that_a_feed_sets_one_by_one_have_the_limit_of_an_item() {
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let with = |names: std::ops::Range<usize>| {
        let number = |n: usize| proto::AttributeValue { kind: Some(proto::attribute_value::Kind::Number(n as f64)) };
        let attributes = names.map(|n| (format!("a{n}"), number(n))).collect();
        let items = vec![proto::Item { attributes, ..item("feed-many") }];
        proto::ImportItemsRequest { part: Some(Part::Items(proto::ImportedItems { items })) }
    };
    let (_, error) = import(&server.channel, vec![with(0..98)]).await;
    assert!(error.is_none(), "{error:?}");
    let mask = options(|options| {
        let paths = (98..101).map(|n| format!("attributes.a{n}")).collect();
        options.update_mask = Some(prost_types::FieldMask { paths });
    });
    let (responses, error) = import(&server.channel, vec![mask, with(98..101), with(98..100)]).await;
    assert!(error.is_none(), "{error:?}");
    assert_eq!(counts(&responses[1]), [1, 0, 0, 0, 0, 1]);
    let violation = &responses[1].results[0].result.as_ref().unwrap().violations[0];
    assert_eq!(violation.field, "items[0].attributes");
    assert!(violation.description.contains("would have 101 entries; the limit is 100"), "{}", violation.description);
    assert_eq!(counts(&responses[2]), [2, 0, 1, 0, 0, 1], "98 and two are the limit");
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_message_of_a_feed_is_acknowledged_with_its_watermark() {
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let (responses, error) =
        import(&server.channel, vec![items(&["feed-a", "feed-b"]), items(&["feed-c", "", "feed-a"])]).await;
    assert!(error.is_none(), "{error:?}");
    let found: Vec<[i64; 6]> = responses.iter().map(counts).collect();
    assert_eq!(found, [[2, 2, 0, 0, 0, 0], [5, 3, 0, 1, 0, 1], [5, 3, 0, 1, 0, 1]], "two messages and the end");
    let rejected = &responses[1].results[0];
    assert_eq!((responses[1].results.len(), rejected.index), (1, 3));
    assert!(rejected.result.as_ref().unwrap().violations[0].field.starts_with("items[1]"));
    assert!(responses[2].deletions.is_none() && responses[1].consistency_token > responses[0].consistency_token);
    // Late items are stale.
    let (responses, _) =
        import(&server.channel, vec![options(|options| options.update_time = at(1000)), items(&["feed-a", "feed-d"])])
            .await;
    assert_eq!(counts(responses.last().unwrap()), [2, 1, 0, 0, 1, 0]);
    let stale = responses[1].results[0].result.as_ref().unwrap();
    assert_eq!((stale.status(), stale.item_id.as_str()), (ItemStatus::Stale, "feed-a"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_feed_deletes_what_it_lacks_unless_that_is_too_much_or_newer() {
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let channel = &server.channel;
    // Only these items, so that shares are round.
    purge(channel, "item_id != \"\"", true).await.unwrap();
    let old = options(|options| options.update_time = at(2000));
    let names: Vec<String> = (0..10).map(|n| format!("feed-{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    import(channel, vec![old, items(&names)]).await;
    assert_eq!(ids(channel).await.len(), 10);
    // A dry run says what would be deleted, and nothing is written.
    let dry = full(|options| options.validate_only = true);
    let (responses, error) = import(channel, vec![dry, items(&names[..8]), items(&["feed-new"])]).await;
    assert!(error.is_none(), "{error:?}");
    let last = responses.last().unwrap();
    let deletions = last.deletions.clone().unwrap();
    assert_eq!(
        (deletions.item_count, deletions.item_ids, deletions.share),
        (2, vec!["feed-8".into(), "feed-9".into()], 0.2)
    );
    assert_eq!((counts(last), ids(channel).await.len()), ([9, 1, 0, 8, 0, 0], 10));
    // Half of the catalogue is missing: the items are written and none is deleted.
    let (_, error) = import(channel, vec![full(|_| {}), items(&names[..5])]).await;
    let error = error.unwrap();
    assert_eq!(error.code(), Code::FailedPrecondition);
    assert_eq!(error.get_error_details().error_info().unwrap().reason, "FEED_SHRINKS");
    assert!(error.message().contains("5 of 10 items, 50.0 %"), "{}", error.message());
    assert_eq!(ids(channel).await.len(), 10);
    // An item that was written after the feed's time stays; the others go.
    let changed = proto::Item { title: "another title".to_owned(), ..item("feed-9") };
    let changed = proto::ImportedItems { items: vec![changed] };
    import(channel, vec![proto::ImportItemsRequest { part: Some(Part::Items(changed)) }]).await;
    let options = full(|options| (options.update_time, options.deleted_share_max) = (at(1000), Some(0.5)));
    let (responses, error) = import(channel, vec![options, items(&names[..5])]).await;
    assert!(error.is_none(), "{error:?}");
    assert_eq!(responses.last().unwrap().deletions.as_ref().unwrap().item_count, 4);
    assert_eq!(ids(channel).await, ["feed-0", "feed-1", "feed-2", "feed-3", "feed-4", "feed-9"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_feed_that_breaks_off_deletes_nothing_and_keeps_what_was_acknowledged() {
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    import(&server.channel, vec![items(&["feed-a", "feed-b"])]).await;
    let (sender, receiver) = tokio::sync::mpsc::channel(2);
    let messages =
        futures_util::stream::unfold(receiver, async |mut receiver| Some((receiver.recv().await?, receiver)));
    let mut client = CatalogServiceClient::new(server.channel.clone());
    let mut stream = client.import_items(messages).await.unwrap().into_inner();
    sender.send(full(|options| options.deleted_share_max = Some(1.0))).await.unwrap();
    sender.send(items(&["feed-c"])).await.unwrap();
    stream.message().await.unwrap().unwrap();
    assert_eq!(counts(&stream.message().await.unwrap().unwrap())[0], 1, "the next message is sent after the watermark");
    // The client goes away without ending the feed.
    drop(stream);
    drop(client);
    drop(sender);
    // A later write is applied after everything that came before it.
    import(&server.channel, vec![items(&["feed-d"])]).await;
    assert_eq!(ids(&server.channel).await, ["feed-a", "feed-b", "feed-c", "feed-d"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dry_run_counts_what_the_feed_would_do_and_new_ids_do_not_hide_what_is_missing() {
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let channel = &server.channel;
    purge(channel, "item_id != \"\"", true).await.unwrap();
    let names: Vec<String> = (0..40).map(|n| format!("feed-{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    import(channel, vec![items(&names[..10])]).await;
    // The feed is older than the items, has one twice, and nearly all of its ids are new.
    let feed = |validate_only| {
        let options = full(|options| (options.update_time, options.validate_only) = (at(1000), validate_only));
        vec![options, items(&names[9..]), items(&["feed-39"])]
    };
    let (dry, error) = import(channel, feed(true)).await;
    assert!(error.is_none(), "{error:?}");
    let (real, _) = import(channel, feed(false)).await;
    let last = |responses: &[proto::ImportItemsResponse]| counts(responses.last().unwrap());
    assert_eq!((last(&dry), last(&real)), ([32, 30, 0, 1, 1, 0], [32, 30, 0, 1, 1, 0]));
    // The items are as of now, so that no older feed deletes them; one of now would delete them all.
    let (responses, error) = import(channel, vec![full(|_| {}), items(&["other-1", "other-2"])]).await;
    assert_eq!(error.unwrap().get_error_details().error_info().unwrap().reason, "FEED_SHRINKS");
    assert_eq!(counts(responses.last().unwrap())[1], 2);
    assert_eq!(ids(channel).await.len(), 40);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_options_and_filters_are_refused_by_name() {
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let ahead = Some(prost_types::Timestamp { seconds: UnixMillis::now().0 / 1000 + 86_400, nanos: 0 });
    let bad = options(|options| (options.mode, options.update_time, options.deleted_share_max) = (9, ahead, Some(1.5)));
    let (responses, error) = import(&server.channel, vec![bad, items(&["feed-a"])]).await;
    let details = error.unwrap().get_details_bad_request().unwrap();
    let fields: Vec<&str> = details.field_violations.iter().map(|violation| violation.field.as_str()).collect();
    assert_eq!(
        fields,
        ["options.mode", "options.deleted_share_max", "options.deleted_share_max", "options.update_time"]
    );
    assert!(responses.is_empty() && ids(&server.channel).await.is_empty());
    for (messages, field) in [
        (vec![full(|_| {}), full(|_| {})], "options"),
        (vec![items(&["feed-a"]), full(|_| {})], "options"),
        (vec![proto::ImportItemsRequest { part: None }], "part"),
        (vec![items(&[])], "items"),
    ] {
        let error = import(&server.channel, messages).await.1.unwrap();
        assert_eq!(error.code(), Code::InvalidArgument);
        assert_eq!(error.get_details_bad_request().unwrap().field_violations[0].field, field);
    }
    for filter in ["", "  ", "brand ="] {
        let error = purge(&server.channel, filter, true).await.unwrap_err();
        assert_eq!(error.get_details_bad_request().unwrap().field_violations[0].field, "filter");
    }
    let count = ids(&server.channel).await.len() as i64;
    for force in [false, true] {
        let error = purge(&server.channel, "NOT attributes.discontinud = \"yes\"", force).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument);
        let violation = error.get_details_bad_request().unwrap().field_violations.remove(0);
        assert_eq!(violation.field, "filter");
        assert!(violation.description.contains("no item has the attribute `discontinud`"), "{violation:?}");
    }
    let counted = purge(&server.channel, "item_id = \"feed-a\"", false).await.unwrap();
    assert_eq!((counted.item_count, count, counted.consistency_token.as_str()), (1, 1, ""));
    let purged = purge(&server.channel, "item_id = \"feed-a\"", true).await.unwrap();
    assert_eq!((purged.item_count, purged.item_ids), (1, vec!["feed-a".to_owned()]));
    assert!(!purged.consistency_token.is_empty() && ids(&server.channel).await.is_empty());
}

/// A bundle of a later feed has an item that an older feed lacks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_full_feed_deletes_no_item_of_a_later_one() {
    let shop = Shop::new();
    shop.publish_changed("feed", |bundle| bundle.items[7].values_at = Some(UnixMillis::now()));
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let older = full(|options| {
        options.update_time = at(60);
        options.deleted_share_max = Some(1.0);
    });
    let (responses, error) = import(&server.channel, vec![older, items(&["feed-a"])]).await;
    assert!(error.is_none(), "{error:?}");
    assert_eq!(responses.last().unwrap().deletions.as_ref().unwrap().item_count, ITEMS as i64 - 1);
    let request = proto::GetItemRequest { item_id: "i7".to_owned() };
    assert!(CatalogServiceClient::new(server.channel.clone()).get_item(request).await.is_ok());
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_feed_of_some_fields_leaves_the_others() {
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let mut catalog = CatalogServiceClient::new(server.channel.clone());
    let stock = proto::Inventory { item_id: "i7".to_owned(), stock_quantity: Some(3), ..Default::default() };
    catalog.set_inventory(proto::SetInventoryRequest { inventories: vec![stock] }).await.unwrap();
    let masked = |paths: &[&str]| {
        let paths = paths.iter().map(|path| (*path).to_owned()).collect();
        options(|options| options.update_mask = Some(prost_types::FieldMask { paths }))
    };
    let (responses, error) = import(&server.channel, vec![masked(&["title", "brand"]), items(&["i7", "feed-a"])]).await;
    assert!(error.is_none(), "{error:?}");
    assert_eq!(counts(responses.last().unwrap()), [2, 1, 1, 0, 0, 0]);
    assert!(responses[1].results.is_empty(), "both are written");
    let request = proto::GetItemRequest { item_id: "i7".to_owned() };
    let item = catalog.get_item(request).await.unwrap().into_inner().item.unwrap();
    assert_eq!((item.title.as_str(), item.stock_quantity), ("title of i7", Some(3)));
    for (paths, problem) in [(&[][..], "is empty"), (&["colour"], "`colour` is not a field of an item")] {
        let (_, error) = import(&server.channel, vec![masked(paths)]).await;
        let violations = error.unwrap().get_details_bad_request().unwrap().field_violations;
        assert!(violations[0].field.starts_with("options.update_mask"), "{violations:?}");
        assert!(violations[0].description.contains(problem), "{violations:?}");
    }
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_feed_of_prices_needs_no_titles_except_of_new_items() {
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let channel = &server.channel;
    let get = async |id: &str| {
        let request = proto::GetItemRequest { item_id: id.to_owned() };
        CatalogServiceClient::new(channel.clone()).get_item(request).await.map(|got| got.into_inner().item.unwrap())
    };
    let before = get("i7").await.unwrap();
    assert_ne!(before.price_micros, Some(77_000_000));
    let masked = |validate_only: bool| {
        options(|options| {
            options.update_mask = Some(prost_types::FieldMask { paths: vec!["price_micros".to_owned()] });
            options.validate_only = validate_only;
        })
    };
    let priced = |id: &str| proto::Item {
        item_id: id.to_owned(),
        price_micros: Some(77_000_000),
        // Not in the mask.
        brand: "b".repeat(10_000),
        ..Default::default()
    };
    let feed = || {
        let unknown = proto::Item { brand: String::new(), ..priced("feed-unknown") };
        let items = vec![priced("i7"), unknown];
        proto::ImportItemsRequest { part: Some(Part::Items(proto::ImportedItems { items })) }
    };
    for validate_only in [true, false] {
        let (responses, error) = import(channel, vec![masked(validate_only), feed()]).await;
        assert!(error.is_none(), "{error:?}");
        assert_eq!(counts(responses.last().unwrap()), [2, 0, 1, 0, 0, 1]);
        let rejected = responses[1].results.iter().find(|of| of.index == 1).unwrap().result.as_ref().unwrap();
        assert_eq!((rejected.item_id.as_str(), rejected.status()), ("feed-unknown", ItemStatus::Rejected));
        let violations: Vec<_> =
            rejected.violations.iter().map(|of| (of.field.as_str(), of.description.as_str())).collect();
        let reason = "is empty, and no item has this id; a new item needs a title of 1 to 1,000 characters";
        assert_eq!(violations, [("items[1].title", reason)]);
    }
    assert_eq!(get("i7").await.unwrap(), proto::Item { price_micros: Some(77_000_000), ..before });
    assert_eq!(get("feed-unknown").await.unwrap_err().code(), Code::NotFound);
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_feed_of_some_fields_has_an_item_several_times_also_if_it_is_new() {
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let masked = |validate_only: bool| {
        options(|options| {
            options.update_mask = Some(prost_types::FieldMask { paths: vec!["price_micros".to_owned()] });
            options.validate_only = validate_only;
        })
    };
    let part = |items| proto::ImportItemsRequest { part: Some(Part::Items(proto::ImportedItems { items })) };
    let priced = |item: proto::Item, price: i64| proto::Item { price_micros: Some(price), ..item };
    let new = proto::Item { brand: "Acme".to_owned(), ..item("feed-new") };
    let again = proto::Item { item_id: "feed-new".to_owned(), ..Default::default() };
    let renamed = proto::Item { title: "another title".to_owned(), ..again.clone() };
    for validate_only in [true, false] {
        let first = part(vec![priced(new.clone(), 5), priced(again.clone(), 6), priced(renamed.clone(), 7)]);
        // Each message is checked on its own.
        let (second, third) = (part(vec![priced(again.clone(), 8)]), part(vec![priced(again.clone(), 8)]));
        let (responses, error) = import(&server.channel, vec![masked(validate_only), first, second, third]).await;
        assert!(error.is_none(), "{error:?}");
        assert_eq!(counts(responses.last().unwrap()), [5, 1, 3, 1, 0, 0], "{responses:?}");
    }
    let request = proto::GetItemRequest { item_id: "feed-new".to_owned() };
    let stored = CatalogServiceClient::new(server.channel.clone()).get_item(request).await.unwrap().into_inner();
    let stored = stored.item.unwrap();
    let expected = ("title of feed-new", "Acme", Some(8));
    assert_eq!((stored.title.as_str(), stored.brand.as_str(), stored.price_micros), expected);
    server.end().await;
}
