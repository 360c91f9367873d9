//! Groups of variants over gRPC: an answer has one result for each product, and everything counts products.
use crate::support::{bundles::Shop, grpc::GrpcServer, items::all_fields};
use lodestone::server::proto::{
    self, AttributeValue, RecommendType, attribute_value::Kind, catalog_service_client::CatalogServiceClient,
    ranking_service_client::RankingServiceClient,
};
use lodestone_rollout::HealthBounds;
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use std::collections::{BTreeMap, BTreeSet};
use tonic::{Code, transport::Channel};
use tonic_types::StatusExt;

const COLORS: [&str; 4] = ["red", "blue", "green", "white"];

#[derive(Debug, Clone)]
struct Shirt {
    id: String,
    group: String,
    color: &'static str,
    price: i64,
    stock: i64,
}

impl Shirt {
    fn new(id: &str, group: &str, color: &'static str, price: i64) -> Self {
        Self { id: id.to_owned(), group: group.to_owned(), color, price, stock: 5 }
    }

    /// The product: the group, or the item itself.
    fn product(&self) -> &str {
        if self.group.is_empty() { &self.id } else { &self.group }
    }

    fn item(&self) -> proto::Item {
        let color = AttributeValue { kind: Some(Kind::Text(self.color.to_owned())) };
        proto::Item {
            item_id: self.id.clone(),
            group_id: self.group.clone(),
            title: format!("linen shirt {}", self.color),
            categories: vec!["Shirts".to_owned()],
            price_micros: Some(self.price * 1_000_000),
            stock_quantity: Some(self.stock),
            attributes: [("color".to_owned(), color)].into(),
            ..Default::default()
        }
    }
}

async fn upsert(channel: &Channel, shirts: &[Shirt]) {
    for part in shirts.chunks(1000) {
        let request = proto::UpsertItemsRequest { items: part.iter().map(Shirt::item).collect(), update_time: None };
        let written = CatalogServiceClient::new(channel.clone()).upsert_items(request).await.unwrap().into_inner();
        assert!(written.results.iter().all(|result| result.violations.is_empty()), "{:?}", written.results);
    }
}

fn viewer() -> Option<proto::Viewer> {
    Some(proto::Viewer { visitor_id: "v".to_owned(), ..Default::default() })
}

fn options(change: impl FnOnce(&mut proto::RankingOptions)) -> Option<proto::RankingOptions> {
    let mut options = proto::RankingOptions::default();
    change(&mut options);
    Some(options)
}

fn search_for(query: &str) -> proto::SearchRequest {
    proto::SearchRequest {
        viewer: viewer(),
        query: query.to_owned(),
        filter: "category = \"Shirts\"".to_owned(),
        page_size: 24,
        ..Default::default()
    }
}

async fn search(channel: &Channel, request: &proto::SearchRequest) -> proto::SearchResponse {
    RankingServiceClient::new(channel.clone()).search(request.clone()).await.unwrap().into_inner()
}

async fn all_results(channel: &Channel, request: &proto::SearchRequest) -> Vec<proto::Result> {
    let (mut results, mut token) = (Vec::new(), String::new());
    loop {
        let page = search(channel, &proto::SearchRequest { page_token: token, ..request.clone() }).await;
        results.extend(page.results);
        token = page.next_page_token;
        if token.is_empty() {
            return results;
        }
    }
}

fn ids(results: &[proto::Result]) -> Vec<&str> {
    results.iter().map(|result| result.item_id.as_str()).collect()
}

/// 900 shirts: a third alone, the others in groups of 2 to 300 variants.
fn random_shirts(random: &mut StdRng) -> Vec<Shirt> {
    let mut shirts = Vec::new();
    while shirts.len() < 900 {
        let size = *[1, 1, 1, 2, 3, 8, 40].choose(random).unwrap();
        let size = if shirts.is_empty() { 300 } else { size };
        let group = if size == 1 { String::new() } else { format!("group-{}", shirts.len()) };
        for _ in 0..size {
            let color = COLORS[random.random_range(0..COLORS.len())];
            let id = format!("shirt-{}", shirts.len());
            let stock = i64::from(random.random_bool(0.8));
            shirts.push(Shirt { stock, ..Shirt::new(&id, &group, color, random.random_range(0..50)) });
        }
    }
    shirts
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_page_total_and_facet_counts_products() {
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let shirts = random_shirts(&mut StdRng::seed_from_u64(9));
    upsert(&server.channel, &shirts).await;
    let by_id: BTreeMap<&str, &Shirt> = shirts.iter().map(|shirt| (shirt.id.as_str(), shirt)).collect();
    let is_cheap = |shirt: &Shirt| shirt.price < 25;
    for (query, is_filtered) in [("", false), ("", true), ("linen shirt", false), ("linen shirt", true)] {
        let eligible: Vec<&Shirt> =
            shirts.iter().filter(|shirt| shirt.stock > 0 && (!is_filtered || is_cheap(shirt))).collect();
        let products: BTreeSet<&str> = eligible.iter().map(|shirt| shirt.product()).collect();
        for order_by in ["", "price", "price desc", "attributes.color, price desc"] {
            let request = proto::SearchRequest {
                filter: format!("category = \"Shirts\"{}", if is_filtered { " AND price < 25" } else { "" }),
                options: options(|options| options.order_by = order_by.to_owned()),
                facet_specs: ["attributes.color", "price"]
                    .map(|field| proto::FacetSpec {
                        field: field.to_owned(),
                        bounds: if field == "price" { vec![10.0] } else { Vec::new() },
                        ..Default::default()
                    })
                    .to_vec(),
                ..search_for(query)
            };
            let what = format!("`{query}` by `{order_by}`, filtered: {is_filtered}");
            let results = all_results(&server.channel, &request).await;
            let shown: Vec<&Shirt> = results.iter().map(|result| by_id[result.item_id.as_str()]).collect();
            let of_shown: BTreeSet<&str> = shown.iter().map(|shirt| shirt.product()).collect();
            assert_eq!(results.len(), of_shown.len(), "{what}: no product appears twice");
            assert_eq!(of_shown, products, "{what}");
            assert!(shown.iter().all(|shirt| shirt.stock > 0 && (!is_filtered || is_cheap(shirt))), "{what}");
            for (result, shirt) in results.iter().zip(&shown) {
                let variants = eligible.iter().filter(|other| !shirt.group.is_empty() && other.group == shirt.group);
                assert_eq!(result.variant_count as usize, variants.count(), "{what}: {shirt:?}");
            }
            if let Some(is_descending) = ["price", "price desc"].iter().position(|order| *order == order_by) {
                let best = |product: &str| {
                    let prices = eligible.iter().filter(|shirt| shirt.product() == product).map(|shirt| shirt.price);
                    if is_descending == 1 { prices.max() } else { prices.min() }
                };
                assert!(shown.iter().all(|shirt| Some(shirt.price) == best(shirt.product())), "{what}");
                let ordered = shown.windows(2).all(|pair| match is_descending {
                    0 => pair[0].price <= pair[1].price,
                    _ => pair[0].price >= pair[1].price,
                });
                assert!(ordered, "{what}");
            }
            let first = search(&server.channel, &request).await;
            assert_eq!(first.total_size as usize, products.len(), "{what}");
            assert_eq!(first.facet_item_count as usize, products.len(), "{what}");
            let distinct = |is_counted: &dyn Fn(&Shirt) -> bool| {
                let counted = eligible.iter().filter(|shirt| is_counted(shirt)).map(|shirt| shirt.product());
                counted.collect::<BTreeSet<&str>>().len() as i64
            };
            for value in &first.facets[0].values {
                assert_eq!(value.item_count, distinct(&|shirt| shirt.color == value.value), "{what}: {}", value.value);
            }
            let prices: Vec<i64> = first.facets[1].values.iter().map(|value| value.item_count).collect();
            assert_eq!(prices, [distinct(&|shirt| shirt.price < 10), distinct(&|shirt| shirt.price >= 10)], "{what}");
        }
    }
    // Each variant is a result if the request asks for it.
    let request =
        proto::SearchRequest { options: options(|options| options.all_variants = true), ..search_for("linen shirt") };
    let results = all_results(&server.channel, &request).await;
    let offered: BTreeSet<&str> =
        shirts.iter().filter(|shirt| shirt.stock > 0).map(|shirt| shirt.id.as_str()).collect();
    assert_eq!(ids(&results).into_iter().collect::<BTreeSet<_>>(), offered);
    assert!(results.len() == offered.len() && results.iter().all(|result| result.variant_count == 0));
    // One product with 300 variants does not fill a list.
    let offered = shirts.iter().filter(|shirt| shirt.stock > 0).map(|shirt| shirt.product());
    let product_count = offered.collect::<BTreeSet<&str>>().len().min(100);
    for kind in [RecommendType::ForYou, RecommendType::Trending, RecommendType::NewArrivals] {
        let request = proto::RecommendRequest {
            viewer: viewer(),
            r#type: kind.into(),
            filter: "category = \"Shirts\"".to_owned(),
            page_size: 100,
            ..Default::default()
        };
        let answer = RankingServiceClient::new(server.channel.clone()).recommend(request).await.unwrap().into_inner();
        let of_shown: BTreeSet<&str> = ids(&answer.results).into_iter().map(|id| by_id[id].product()).collect();
        assert_eq!((answer.results.len(), of_shown.len()), (product_count, product_count), "{kind:?}");
    }
    let request =
        proto::SuggestRequest { viewer: viewer(), prefix: "linen".to_owned(), product_count: 20, ..Default::default() };
    let answer = RankingServiceClient::new(server.channel.clone()).suggest(request).await.unwrap().into_inner();
    let of_shown: BTreeSet<&str> = ids(&answer.products).into_iter().map(|id| by_id[id].product()).collect();
    assert_eq!((answer.products.len(), of_shown.len()), (20, 20));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_variant_that_fits_is_shown_with_the_others_on_demand() {
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let mut shirts: Vec<Shirt> =
        COLORS.iter().map(|color| Shirt::new(&format!("tee-{color}"), "tee", color, 10)).collect();
    shirts.extend(COLORS.iter().map(|color| Shirt::new(&format!("polo-{color}"), "polo", color, 20)));
    shirts.push(Shirt::new("alone", "", "red", 30));
    upsert(&server.channel, &shirts).await;
    let request = proto::SearchRequest {
        options: options(|options| options.variant_list_size = 3),
        ..search_for("linen shirt green")
    };
    let answer = search(&server.channel, &request).await;
    let mut shown = ids(&answer.results);
    shown[..2].sort_unstable();
    let expected = (vec!["polo-green", "tee-green", "alone"], 2);
    assert_eq!((shown, answer.total_size), expected, "the query's variant is shown, before a partial match");
    let tee = answer.results.iter().find(|result| result.item_id == "tee-green").unwrap();
    let variants: Vec<&str> = tee.variants.iter().map(|item| item.item_id.as_str()).collect();
    assert_eq!((variants, tee.variant_count), (vec!["tee-green", "tee-red", "tee-blue"], 4));
    assert!(tee.variants.iter().all(|item| item.title.is_empty()), "only ids without a read mask");
    // Whole items, a filter that leaves two variants, and a variant that is sold out.
    shirts[0].stock = 0;
    upsert(&server.channel, &shirts[..1]).await;
    let request = proto::SearchRequest {
        filter: "group_id = \"tee\" AND attributes.color IN (\"red\", \"blue\", \"white\")".to_owned(),
        options: options(|options| (options.variant_list_size, options.read_mask) = (500, Some(all_fields()))),
        ..search_for("")
    };
    let answer = search(&server.channel, &request).await;
    assert_eq!((answer.results.len(), answer.results[0].variant_count), (1, 2));
    assert!(answer.results[0].variants.iter().all(|item| item.group_id == "tee" && !item.title.is_empty()));
    assert!(answer.info.unwrap().notices.iter().any(|notice| notice.field == "options.variant_list_size"));
    // An id of a group pins, excludes and starts lists.
    let pin = |item_id: &str, rank| proto::Pin { item_id: item_id.to_owned(), rank };
    let with = |change: &dyn Fn(&mut proto::RankingOptions)| proto::SearchRequest {
        options: options(change),
        ..search_for("")
    };
    let pinned = search(&server.channel, &with(&|options| options.pins = vec![pin("polo", 1)])).await;
    assert!(pinned.results[0].item_id.starts_with("polo-") && pinned.results.len() == 3, "{:?}", ids(&pinned.results));
    let pinned = search(&server.channel, &with(&|options| options.pins = vec![pin("tee-white", 2)])).await;
    assert_eq!((ids(&pinned.results)[1], pinned.results.len()), ("tee-white", 3));
    let both =
        search(&server.channel, &with(&|options| options.pins = vec![pin("tee-white", 1), pin("tee-blue", 2)])).await;
    assert_eq!((&ids(&both.results)[..2], both.results.len()), (&["tee-white", "tee-blue"][..], 4));
    let without = search(&server.channel, &with(&|options| options.exclude_item_ids = vec!["tee".to_owned()])).await;
    assert!(without.results.len() == 2 && without.total_size == 2);
    assert!(without.info.unwrap().unknown_item_ids.is_empty());
    let similar = proto::RecommendRequest {
        viewer: viewer(),
        r#type: RecommendType::Similar.into(),
        anchor_item_ids: vec!["tee-blue".to_owned()],
        ..Default::default()
    };
    let similar = RankingServiceClient::new(server.channel.clone()).recommend(similar).await.unwrap().into_inner();
    assert!(!similar.results.is_empty());
    assert!(similar.results.iter().all(|result| !result.item_id.starts_with("tee-")), "{:?}", ids(&similar.results));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_variant_that_sells_out_between_pages_gives_its_place_to_another() {
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let shirts: Vec<Shirt> = (0..20)
        .flat_map(|group| [0, 1].map(|n| Shirt::new(&format!("{group}-{n}"), &format!("g{group}"), COLORS[n], 10)))
        .collect();
    upsert(&server.channel, &shirts).await;
    let request = proto::SearchRequest { page_size: 10, ..search_for("linen shirt") };
    let first = search(&server.channel, &request).await;
    assert_eq!(first.results.len(), 10);
    // All of one kind are sold out, whichever was to be shown.
    let expected =
        search(&server.channel, &proto::SearchRequest { page_token: first.next_page_token.clone(), ..request.clone() })
            .await;
    let sold_out: Vec<Shirt> = shirts
        .iter()
        .filter(|shirt| expected.results.iter().any(|result| result.item_id == shirt.id))
        .map(|shirt| Shirt { stock: 0, ..shirt.clone() })
        .collect();
    upsert(&server.channel, &sold_out).await;
    let second = search(&server.channel, &proto::SearchRequest { page_token: first.next_page_token, ..request }).await;
    let groups = |results: &[proto::Result]| -> Vec<String> {
        ids(results).into_iter().map(|id| id.split('-').next().unwrap().to_owned()).collect()
    };
    assert_eq!(groups(&second.results), groups(&expected.results), "the order of the products is frozen");
    assert!(ids(&second.results).iter().all(|id| sold_out.iter().all(|shirt| shirt.id != *id)));
}

/// Many feeds have a column of groups that is the same for all items.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_has_a_limit_of_variants() {
    const LIMIT: usize = 10_000;
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let mut client = CatalogServiceClient::new(server.channel.clone());
    let item = |number: usize, group: &str| proto::Item {
        item_id: format!("v{number}"),
        title: format!("Linen shirt {number}"),
        categories: vec!["Shirts".to_owned()],
        group_id: group.to_owned(),
        ..Default::default()
    };
    let mut write = async |items: Vec<proto::Item>| {
        let request = proto::UpsertItemsRequest { items, update_time: None };
        client.upsert_items(request).await.unwrap().into_inner().results
    };
    use proto::ItemStatus::{Created, Rejected, Replaced};
    let statuses = |results: &[proto::ItemResult]| results.iter().map(|result| result.status()).collect::<Vec<_>>();
    let is_refused = |result: &proto::ItemResult, field: &str| {
        let [violation] = &result.violations[..] else { panic!("{result:?}") };
        let expected = format!("is `0`, which would have {} variants; the limit is {LIMIT}", LIMIT + 1);
        assert_eq!((&*violation.field, &violation.description), (field, &expected));
    };
    for first in (0..LIMIT - 1).step_by(1000) {
        let items = (first..(first + 1000).min(LIMIT - 1)).map(|number| item(number, "0")).collect();
        assert!(write(items).await.iter().all(|result| result.status() == Created));
    }
    // Within one request, the first of them takes the last place.
    let results = write(vec![item(LIMIT, "0"), item(LIMIT, "0"), item(LIMIT + 1, "0"), item(LIMIT + 1, "1")]).await;
    assert!(results[1].violations.is_empty(), "it counts once: {:?}", results[1]);
    assert_eq!(statuses(&[results[0].clone(), results[2].clone(), results[3].clone()]), [Created, Rejected, Created]);
    is_refused(&results[2], "items[2].group_id");
    // A variant of the group stays one.
    let renamed = proto::Item { title: "Linen shirt, long".to_owned(), ..item(7, "0") };
    assert_eq!(statuses(&write(vec![renamed]).await), [Replaced]);

    let mut catalog = CatalogServiceClient::new(server.channel.clone());
    let update = proto::ItemUpdate {
        item: Some(item(LIMIT + 1, "0")),
        update_mask: Some(prost_types::FieldMask { paths: vec!["group_id".to_owned()] }),
        update_time: None,
    };
    let updated = catalog.update_items(proto::UpdateItemsRequest { updates: vec![update.clone()] }).await.unwrap();
    is_refused(&updated.into_inner().results[0], "updates[0].item.group_id");
    let part = proto::import_items_request::Part::Items(proto::ImportedItems { items: vec![item(LIMIT + 2, "0")] });
    let feed = futures_util::stream::iter([proto::ImportItemsRequest { part: Some(part) }]);
    let response = catalog.import_items(feed).await.unwrap().into_inner().message().await.unwrap().unwrap();
    is_refused(response.results[0].result.as_ref().unwrap(), "items[0].group_id");

    // The group is one product, of which a list has at most 100 variants.
    let request = proto::SearchRequest {
        options: options(|options| options.variant_list_size = 100),
        ..search_for("linen shirt")
    };
    let found = search(&server.channel, &request).await;
    assert_eq!(found.total_size, 2);
    let group = found.results.iter().find(|result| result.variant_count as usize == LIMIT).unwrap();
    assert_eq!(group.variants.len(), 100);
    // A place that becomes free is taken.
    let deleted = proto::DeleteItemsRequest { item_ids: vec!["v3".to_owned()] };
    catalog.delete_items(deleted).await.unwrap();
    let updated = catalog.update_items(proto::UpdateItemsRequest { updates: vec![update] }).await.unwrap();
    assert_eq!(updated.into_inner().results[0].status(), proto::ItemStatus::Updated);
    // Also by an earlier item of the request.
    let (next, beyond) = (item(LIMIT + 3, "0"), item(LIMIT + 4, "0"));
    let results = write(vec![item(5, ""), next, item(7, ""), item(7, "0"), beyond]).await;
    assert_eq!(statuses(&results), [Replaced, Created, Replaced, Replaced, Rejected]);
    is_refused(&results[4], "items[4].group_id");
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_changes_and_bad_ids_are_named() {
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    upsert(
        &server.channel,
        &[Shirt::new("a", "", "red", 1), Shirt::new("b", "x", "red", 1), Shirt::new("c", "x", "red", 1)],
    )
    .await;
    let mut client = CatalogServiceClient::new(server.channel.clone());
    let update = |id: &str, group: &str| proto::UpdateItemsRequest {
        updates: vec![proto::ItemUpdate {
            item: Some(proto::Item { item_id: id.to_owned(), group_id: group.to_owned(), ..Default::default() }),
            update_mask: Some(prost_types::FieldMask { paths: vec!["group_id".to_owned()] }),
            update_time: None,
        }],
    };
    let total = async || search(&server.channel, &search_for("")).await.total_size;
    assert_eq!(total().await, 2);
    client.update_items(update("a", "x")).await.unwrap();
    assert_eq!(total().await, 1);
    client.update_items(update("b", "")).await.unwrap();
    assert_eq!(total().await, 2);
    client.delete_items(proto::DeleteItemsRequest { item_ids: vec!["a".to_owned(), "c".to_owned()] }).await.unwrap();
    assert_eq!(total().await, 1);
    let result = client.update_items(update("b", &"x".repeat(129))).await.unwrap().into_inner().results.remove(0);
    assert!(result.violations[0].field.ends_with("group_id"), "{result:?}");
    let request = proto::SearchRequest { options: options(|options| options.variant_list_size = -1), ..search_for("") };
    let status = RankingServiceClient::new(server.channel.clone()).search(request).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    let violations = status.get_details_bad_request().unwrap().field_violations;
    assert_eq!(violations[0].field, "options.variant_list_size");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orders_boosts_and_pins_choose_the_variant() {
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let mut shirts: Vec<Shirt> = Vec::new();
    for group in 0..12 {
        for (n, color) in COLORS.iter().enumerate() {
            let price = 50 + group - 10 * n as i64;
            shirts.push(Shirt::new(&format!("{group}-{color}"), &format!("g{group}"), color, price));
        }
    }
    upsert(&server.channel, &shirts).await;
    let pin = |item_id: &str, rank| proto::Pin { item_id: item_id.to_owned(), rank };
    // The group of a pinned variant has no other result, also in an order of fields.
    for order_by in ["", "price", "price desc", "title"] {
        for query in ["", "linen shirt"] {
            let pins = vec![pin("3-red", 1), pin("4-blue", 2)];
            let request = proto::SearchRequest {
                options: options(|options| (options.pins, options.order_by) = (pins, order_by.to_owned())),
                page_size: 5,
                ..search_for(query)
            };
            let results = all_results(&server.channel, &request).await;
            assert_eq!(&ids(&results)[..2], &["3-red", "4-blue"], "`{query}` by `{order_by}`");
            let groups: BTreeSet<&str> = ids(&results).iter().map(|id| id.split('-').next().unwrap()).collect();
            assert_eq!((results.len(), groups.len()), (12, 12), "`{query}` by `{order_by}`: {:?}", ids(&results));
        }
    }
    // Of recommendations in an order of fields, each product has its first variant.
    let recommend = async |change: &dyn Fn(&mut proto::RecommendRequest)| {
        let mut request = proto::RecommendRequest {
            viewer: viewer(),
            r#type: RecommendType::ForYou.into(),
            filter: "category = \"Shirts\"".to_owned(),
            page_size: 100,
            ..Default::default()
        };
        change(&mut request);
        RankingServiceClient::new(server.channel.clone()).recommend(request).await.unwrap().into_inner().results
    };
    let cheapest =
        recommend(&|request| request.options = options(|options| options.order_by = "price".to_owned())).await;
    assert!(cheapest.len() == 12 && ids(&cheapest).iter().all(|id| id.ends_with("-white")), "{:?}", ids(&cheapest));
    // A boosted variant stands for its product, in a list and in a search.
    let boosts =
        vec![proto::Boost { filter: "attributes.color = \"green\"".to_owned(), factor: 3.0, filter_expression: None }];
    let boosted = |options: &mut proto::RankingOptions| options.boosts.clone_from(&boosts);
    let listed = recommend(&|request| request.options = options(boosted)).await;
    assert!(listed.len() == 12 && ids(&listed).iter().all(|id| id.ends_with("-green")), "{:?}", ids(&listed));
    let request = proto::SearchRequest { options: options(boosted), ..search_for("linen shirt") };
    assert!(ids(&all_results(&server.channel, &request).await).iter().all(|id| id.ends_with("-green")));
    // Other variants of an anchor are no similar products, also if each variant is a result.
    let similar = recommend(&|request| {
        request.r#type = RecommendType::Similar.into();
        request.anchor_item_ids = vec!["5-red".to_owned()];
        request.options = options(|options| options.all_variants = true);
    });
    assert!(ids(&similar.await).iter().all(|id| !id.starts_with("5-")));
    // Ids of groups are compared exactly.
    for (id, count) in [("g1", 1), ("G1", 0), ("g1 ", 0)] {
        let request = proto::SearchRequest { filter: format!("group_id = \"{id}\""), ..search_for("") };
        assert_eq!(search(&server.channel, &request).await.total_size, count, "{id}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_variant_leaves_its_place_and_no_product_is_lost_or_repeated() {
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    // One more product than the ranked window has results.
    let shirts: Vec<Shirt> = (0..251)
        .flat_map(|group| [0, 1].map(|n| Shirt::new(&format!("{group}-{n}"), &format!("g{group}"), COLORS[n], 10)))
        .collect();
    upsert(&server.channel, &shirts).await;
    for (query, order_by) in [("", ""), ("", "price"), ("linen shirt", "")] {
        let pin = |item_id: &str, rank| proto::Pin { item_id: item_id.to_owned(), rank };
        let pins = vec![pin("7-0", 1), pin("7-1", 2)];
        let request = proto::SearchRequest {
            options: options(|options| (options.pins, options.order_by) = (pins, order_by.to_owned())),
            ..search_for(query)
        };
        let results = all_results(&server.channel, &request).await;
        let groups: BTreeSet<&str> = ids(&results).iter().map(|id| id.split('-').next().unwrap()).collect();
        assert_eq!((results.len(), groups.len()), (252, 251), "`{query}` by `{order_by}`");
    }
    let request = proto::SearchRequest { page_size: 200, ..search_for("") };
    let first = search(&server.channel, &request).await;
    let next = proto::SearchRequest { page_token: first.next_page_token.clone(), ..request.clone() };
    let later = search(&server.channel, &next);
    // One variant of an earlier and of a later page is deleted.
    let deleted = [first.results[3].item_id.clone(), later.await.results[3].item_id.clone()];
    let delete = proto::DeleteItemsRequest { item_ids: deleted.to_vec() };
    CatalogServiceClient::new(server.channel.clone()).delete_items(delete).await.unwrap();
    let mut shown: Vec<proto::Result> = first.results;
    let mut token = first.next_page_token;
    while !token.is_empty() {
        let page = search(&server.channel, &proto::SearchRequest { page_token: token, ..request.clone() }).await;
        shown.extend(page.results);
        token = page.next_page_token;
    }
    let groups: BTreeSet<&str> = ids(&shown).iter().map(|id| id.split('-').next().unwrap()).collect();
    assert_eq!((shown.len(), groups.len()), (251, 251));
    assert_eq!(shown[203].rank, 204);
    assert!(!ids(&shown)[4..].contains(&deleted[1].as_str()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rank_returns_every_candidate_and_excludes_groups() {
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let shirts: Vec<Shirt> =
        (0..400).map(|n| Shirt::new(&format!("s{n}"), if n < 5 { "G" } else { "" }, COLORS[n % 4], 10)).collect();
    upsert(&server.channel, &shirts).await;
    let candidate = |id: &str| proto::RankCandidate { item_id: id.to_owned(), ..Default::default() };
    let mut candidates: Vec<proto::RankCandidate> = shirts.iter().map(|shirt| candidate(&shirt.id)).collect();
    candidates.push(candidate("G"));
    let request = proto::RankRequest {
        viewer: viewer(),
        candidates,
        options: options(|options| options.exclude_item_ids = vec!["G".to_owned()]),
        ..Default::default()
    };
    let ranked = RankingServiceClient::new(server.channel.clone()).rank(request).await.unwrap().into_inner();
    assert_eq!(ranked.info.unwrap().unknown_item_ids, ["G"], "a candidate is an item");
    assert_eq!(ranked.results.iter().filter(|result| result.item_id.starts_with('s')).count(), 395);
}
