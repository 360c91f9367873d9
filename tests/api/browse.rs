//! Category pages, field orders and deep pages over gRPC: every match appears exactly once in the reference order, also
//! while other items are written.
use crate::support::{answers::replay, bundles::Shop, grpc::GrpcServer, wait::wait_until};
use lodestone::server::proto::{
    self, EventType, QueryMatch, ReasonCode, RecommendType, catalog_service_client::CatalogServiceClient,
    event_service_client::EventServiceClient, ranking_service_client::RankingServiceClient,
};
use lodestone_core::units::UnixMillis;
use lodestone_rollout::HealthBounds;
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use std::{cmp::Ordering, collections::BTreeMap, time::Duration};
use tonic::{Code, Status, transport::Channel};
use tonic_types::StatusExt;

/// Results of the ranked window of the default serving configuration.
const WINDOW: usize = 250;
const DAY_S: i64 = 86_400;
const WAIT_MAX: Duration = Duration::from_secs(60);

fn viewer(user: &str) -> Option<proto::Viewer> {
    Some(proto::Viewer { user_id: user.to_owned(), ..Default::default() })
}

fn now_s() -> i64 {
    UnixMillis::now().0 / 1000
}

fn days_ago(days: i64) -> Option<prost_types::Timestamp> {
    Some(prost_types::Timestamp { seconds: now_s() - days * DAY_S, nanos: 0 })
}

fn item(id: &str, title: &str, category: &str) -> proto::Item {
    proto::Item {
        item_id: id.to_owned(),
        title: title.to_owned(),
        categories: vec![category.to_owned()],
        create_time: days_ago(100),
        ..Default::default()
    }
}

async fn upsert(channel: &Channel, items: &[proto::Item]) {
    for items in items.chunks(1000) {
        let request = proto::UpsertItemsRequest { items: items.to_vec(), update_time: None };
        let written = CatalogServiceClient::new(channel.clone()).upsert_items(request).await.unwrap().into_inner();
        assert!(written.results.iter().all(|result| result.violations.is_empty()), "{:?}", written.results);
    }
}

async fn delete(channel: &Channel, ids: Vec<String>) {
    let request = proto::DeleteItemsRequest { item_ids: ids };
    CatalogServiceClient::new(channel.clone()).delete_items(request).await.unwrap();
}

async fn search(channel: &Channel, request: &proto::SearchRequest) -> Result<proto::SearchResponse, Status> {
    let viewer = request.viewer.clone().or_else(|| viewer("browser"));
    let request = proto::SearchRequest { viewer, ..request.clone() };
    Ok(RankingServiceClient::new(channel.clone()).search(request).await?.into_inner())
}

fn browse(category: &str, order_by: &str, page_size: i32) -> proto::SearchRequest {
    proto::SearchRequest {
        filter: format!("category = \"{category}\""),
        page_size,
        options: Some(proto::RankingOptions { order_by: order_by.to_owned(), ..Default::default() }),
        ..Default::default()
    }
}

fn numbered(request: &proto::SearchRequest, number: i64) -> proto::SearchRequest {
    proto::SearchRequest { page_number: Some(number), ..request.clone() }
}

/// Returns all pages. `between` runs before each page but the first.
async fn pages(
    channel: &Channel,
    request: &proto::SearchRequest,
    mut between: impl AsyncFnMut(usize),
) -> Vec<proto::SearchResponse> {
    let (mut pages, mut token) = (Vec::new(), String::new());
    loop {
        let request = proto::SearchRequest { page_token: token, ..request.clone() };
        let page = search(channel, &request).await.unwrap();
        token = page.next_page_token.clone();
        let is_last = token.is_empty();
        assert!(is_last || page.results.len() == request.page_size as usize, "only the last page may be shorter");
        pages.push(page);
        if is_last {
            return pages;
        }
        between(pages.len()).await;
    }
}

fn results(pages: &[proto::SearchResponse]) -> Vec<&proto::Result> {
    pages.iter().flat_map(|page| &page.results).collect()
}

fn ids<'a>(results: impl IntoIterator<Item = &'a proto::Result>) -> Vec<&'a str> {
    results.into_iter().map(|result| result.item_id.as_str()).collect()
}

fn codes(result: &proto::Result) -> Vec<ReasonCode> {
    result.reasons.iter().map(proto::Reason::code).collect()
}

fn ranked_count(answer: &proto::SearchResponse) -> i32 {
    answer.info.as_ref().unwrap().ranked_count
}

async fn view(channel: &Channel, item: &str, users: usize) {
    let event = |user: usize| proto::Event {
        r#type: EventType::View.into(),
        viewer: viewer(&format!("viewer-{user}")),
        lines: vec![proto::EventLine { item_id: item.to_owned(), ..Default::default() }],
        ..Default::default()
    };
    let events = (0..users).map(event).collect();
    EventServiceClient::new(channel.clone()).write_events(proto::WriteEventsRequest { events }).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_category_page_has_every_eligible_item_to_the_very_end() {
    const ITEMS: usize = 2000;
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let channel = &server.channel;
    let (newer, older) = (days_ago(40), days_ago(400));
    let bowl = |number: usize| proto::Item {
        create_time: [None, newer, older][number % 3],
        ..item(&format!("bowl-{number}"), &format!("bowl {number}"), "Bowls")
    };
    let bowls: Vec<proto::Item> = (0..ITEMS).map(bowl).collect();
    upsert(channel, &bowls).await;
    // Not eligible: sold out, excluded, of another category.
    let sold_out = proto::Item { stock_quantity: Some(0), ..item("sold-out", "bowl", "Bowls") };
    upsert(channel, &[sold_out, item("excluded", "bowl", "Bowls"), item("jug", "jug", "Jugs")]).await;
    let mut request = browse("Bowls", "", 130);
    request.query = " \t".to_owned();
    request.options.as_mut().unwrap().exclude_item_ids = vec!["excluded".to_owned()];
    request.facet_specs = vec![proto::FacetSpec { field: "category".to_owned(), ..Default::default() }];

    let answer = pages(channel, &request, async |_| {}).await;
    let first = &answer[0];
    assert_eq!((first.total_size as usize, first.facet_item_count), (ITEMS, ITEMS as i64));
    assert_eq!((ranked_count(first) as usize, first.empty_reason()), (WINDOW, proto::EmptyReason::Unspecified));
    assert_eq!((first.corrected_query.as_str(), first.recommendations.is_none()), ("", true));
    assert!(answer.iter().all(|page| page.attribution_token == first.attribution_token && page.facets == first.facets));
    let all = results(&answer);
    assert_eq!(all.iter().map(|result| result.rank as usize).collect::<Vec<_>>(), (1..=ITEMS).collect::<Vec<_>>());
    let mut found = ids(all.iter().copied());
    found.sort_unstable();
    found.dedup();
    assert!(found.len() == ITEMS && found.iter().all(|id| id.starts_with("bowl-")));
    assert!(all.iter().all(|result| result.query_match() == QueryMatch::Unspecified));

    // Behind the window: by popularity, then newest, then in the order of their keys, which are those of the writes.
    // Items without a time have that of their write.
    let number = |result: &proto::Result| -> usize { result.item_id.strip_prefix("bowl-").unwrap().parse().unwrap() };
    let order = |number: usize| (number % 3, number);
    let is_sorted = |results: &[&proto::Result]| results.is_sorted_by_key(|result| order(number(result)));
    let tail = &all[WINDOW..];
    // The window takes the latest items, because the sources have none of them.
    assert!(tail.iter().all(|result| !codes(result).contains(&ReasonCode::Popular)));
    let undated: Vec<usize> = tail.iter().map(|result| number(result)).filter(|number| number % 3 == 0).collect();
    let dated: Vec<&proto::Result> = tail.iter().copied().filter(|result| number(result) % 3 > 0).collect();
    assert!(is_sorted(&dated) && codes(tail[0]) == [ReasonCode::New], "{:?}", tail[0]);
    assert!(!undated.is_empty() && tail[..undated.len()].iter().all(|result| number(result) % 3 == 0));

    // Popular items lead the rest. Popularity is published by a thread of its own.
    let last = all[ITEMS - 1].item_id.clone();
    view(channel, &last, 5).await;
    wait_until("the item is popular", WAIT_MAX, async || {
        let first = search(channel, &proto::SearchRequest { page_size: 200, ..request.clone() }).await.unwrap();
        first.results.iter().any(|result| result.item_id == last && codes(result).contains(&ReasonCode::Popular))
    })
    .await;

    // A page by its number is that of the token, and the pages go on from there.
    let by_token = pages(channel, &request, async |_| {}).await;
    for at in [3, 9, by_token.len()] {
        let page = search(channel, &numbered(&request, at as i64)).await.unwrap();
        assert_eq!(ids(&page.results), ids(&by_token[at - 1].results), "page {at}");
        assert_eq!(page.results[0].rank, by_token[at - 1].results[0].rank);
        assert_eq!(page.next_page_token.is_empty(), at == by_token.len());
        if at < by_token.len() {
            let next = proto::SearchRequest { page_token: page.next_page_token, ..request.clone() };
            assert_eq!(ids(&search(channel, &next).await.unwrap().results), ids(&by_token[at].results));
        }
    }
    for beyond in [by_token.len() as i64 + 1, i64::from(i32::MAX)] {
        let page = search(channel, &numbered(&request, beyond)).await.unwrap();
        assert!(page.results.is_empty() && page.next_page_token.is_empty() && page.empty_reason == 0);
        assert_eq!(page.total_size as usize, ITEMS);
    }

    // Nothing eligible.
    let nothing = proto::SearchRequest { recommendation_count: 5, ..browse("None", "", 10) };
    for order_by in ["", "price"] {
        let mut nothing = nothing.clone();
        nothing.options.as_mut().unwrap().order_by = order_by.to_owned();
        let found = search(channel, &nothing).await.unwrap();
        assert_eq!((found.total_size, found.empty_reason()), (0, proto::EmptyReason::NothingEligible));
        assert!(found.results.is_empty() && found.recommendations.is_none());
    }
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_of_category_pages_and_field_orders_are_replayed() {
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let channel = &server.channel;
    let items: Vec<proto::Item> = (0..300)
        .map(|number| proto::Item {
            price_micros: Some(i64::from(number % 7) * 1_000_000),
            ..item(&format!("jar-{number}"), &format!("glass jar {number}"), "Jars")
        })
        .collect();
    upsert(channel, &items).await;
    let pins = vec![proto::Pin { item_id: "jar-299".to_owned(), rank: 3 }];
    for (query, order_by) in [("", ""), ("", "price desc, title"), ("glass", ""), ("glass", "price")] {
        let mut request = proto::SearchRequest { query: query.to_owned(), ..browse("Jars", order_by, 20) };
        request.options.as_mut().unwrap().pins = pins.clone();
        let answer = pages(channel, &request, async |_| {}).await;
        let all = results(&answer);
        assert_eq!((all.len(), all[2].item_id.as_str()), (300, "jar-299"), "`{query}` `{order_by}`");
        assert!(codes(all[2]).contains(&ReasonCode::Pinned) && answer[0].total_size == 300);
        assert_eq!(ranked_count(&answer[0]) > 0, order_by.is_empty(), "`{query}` `{order_by}`");
        let replayed = replay(channel, &answer[0].attribution_token).await;
        assert!(replayed.identical, "`{query}` `{order_by}`: {}", replayed.first_difference);
        let slots: Vec<&str> = replayed.slots.iter().map(|slot| slot.item_id.as_str()).collect();
        assert_eq!(slots, ids(&answer[0].results), "`{query}` `{order_by}`");
    }
    // The record of an answer that begins with a later page has its slate, but no slots.
    for number in [2, 15] {
        let page = search(channel, &numbered(&browse("Jars", "price", 20), number)).await.unwrap();
        assert_eq!(page.results.len(), 20);
        let replayed = replay(channel, &page.attribution_token).await;
        assert!(replayed.identical && replayed.slots.is_empty(), "{}", replayed.first_difference);
    }
    let discarded = proto::RankingOptions {
        order_by: "price".to_owned(),
        diversity: Some(0.5),
        boosts: vec![proto::Boost { filter: "in_stock".to_owned(), factor: 2.0, filter_expression: None }],
        ..Default::default()
    };
    let request = proto::SearchRequest { options: Some(discarded), ..browse("Jars", "", 5) };
    let notices = search(channel, &request).await.unwrap().info.unwrap().notices;
    let fields: Vec<&str> = notices.iter().map(|notice| notice.field.as_str()).collect();
    assert_eq!(fields, ["options.diversity", "options.boosts"]);
    server.end().await;
}

/// A generated item with the values of its reference order.
#[derive(Clone)]
struct Generated {
    item: proto::Item,
    weight: Option<f64>,
}

fn generated(random: &mut StdRng, id: &str, category: &str) -> Generated {
    let words = ["oak", "Pine", "teak", "Ash", "elm"];
    let title = format!("{} shelf {}", words.choose(random).unwrap(), words.choose(random).unwrap());
    let weight = random.random_bool(0.7).then(|| f64::from(random.random_range(-2..3i8)) / 2.0);
    let mut made = proto::Item {
        brand: ["Acme", "acme", "Öko", ""].choose(random).unwrap().to_string(),
        price_micros: random.random_bool(0.8).then(|| random.random_range(0..6) * 500_000),
        create_time: days_ago(random.random_range(1..5)),
        ..item(id, &title, category)
    };
    let kind = weight.map(proto::attribute_value::Kind::Number);
    made.attributes.extend(kind.map(|kind| ("weight".to_owned(), proto::AttributeValue { kind: Some(kind) })));
    Generated { item: made, weight }
}

/// Compares two optional values; missing ones are last in both directions.
fn missing_last<T: PartialOrd>(a: Option<T>, b: Option<T>, is_descending: bool) -> Ordering {
    match (a, b) {
        (Some(a), Some(b)) if is_descending => b.partial_cmp(&a).unwrap(),
        (Some(a), Some(b)) => a.partial_cmp(&b).unwrap(),
        (a, b) => b.is_some().cmp(&a.is_some()),
    }
}

fn compare(order_by: &str, a: &Generated, b: &Generated) -> Ordering {
    let normal = |text: &str| Some(lodestone_core::text::normalize(text)).filter(|text| !text.is_empty());
    let key = |key: &str| {
        let is_descending = key.ends_with("desc");
        match key.split_whitespace().next().unwrap() {
            "price" => missing_last(a.item.price_micros, b.item.price_micros, is_descending),
            "brand" => missing_last(normal(&a.item.brand), normal(&b.item.brand), is_descending),
            "title" => missing_last(normal(&a.item.title), normal(&b.item.title), is_descending),
            "create_time" => {
                let time = |item: &proto::Item| item.create_time.as_ref().map(|time| time.seconds);
                missing_last(time(&a.item), time(&b.item), is_descending)
            }
            "attributes.weight" => missing_last(a.weight, b.weight, is_descending),
            other => panic!("{other}"),
        }
    };
    order_by.split(',').map(key).find(|ordering| ordering.is_ne()).unwrap_or(Ordering::Equal)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_pages_are_all_matches_once_in_the_reference_order_while_other_items_are_written() {
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let channel = &server.channel;
    let mut random = StdRng::seed_from_u64(11);
    let orders = [
        "price desc, attributes.weight asc, title",
        "attributes.weight desc, brand",
        "brand desc, price, create_time desc, title desc",
        "title",
        "create_time desc,price desc",
        "price",
    ];
    for (round, order_by) in orders.iter().cycle().take(12).enumerate() {
        let category = format!("Shelves {round}");
        let count = [700, 120, 1100][round % 3];
        let mut items: Vec<Generated> =
            (0..count).map(|number| generated(&mut random, &format!("s{round}-{number}"), &category)).collect();
        upsert(channel, &items.iter().map(|made| made.item.clone()).collect::<Vec<_>>()).await;
        // The first items stay; the others change, go or come between the pages.
        let stable = count * 3 / 4;
        let mut expected: Vec<&Generated> = items.iter().collect();
        expected.sort_by(|a, b| compare(order_by, a, b));
        let expected: Vec<String> = expected.into_iter().map(|made| made.item.item_id.clone()).collect();
        let request = proto::SearchRequest {
            // A query whose matches are those of the category.
            query: if round % 2 == 0 { String::new() } else { "shelf".to_owned() },
            facet_specs: vec![proto::FacetSpec { field: "brand".to_owned(), ..Default::default() }],
            ..browse(&category, order_by, random.random_range(25..=110))
        };
        let quiet = pages(channel, &request, async |_| {}).await;
        assert_eq!(ids(results(&quiet)), expected, "{order_by}");
        assert_eq!((quiet[0].total_size as usize, quiet[0].facet_item_count as usize), (count, count));
        assert_eq!(ranked_count(&quiet[0]), 0);
        for number in [2, quiet.len()] {
            let page = search(channel, &numbered(&request, number as i64)).await.unwrap();
            assert_eq!(ids(&page.results), ids(&quiet[number - 1].results), "page {number} by {order_by}");
        }

        let mut writes = StdRng::seed_from_u64(round as u64);
        let answer = pages(channel, &request, async |page| {
            let changed = writes.random_range(stable..count);
            let other = generated(&mut writes, &format!("s{round}-{changed}"), &category);
            let new = generated(&mut writes, &format!("s{round}-new-{page}"), &category);
            upsert(channel, &[other.item, new.item]).await;
            delete(channel, vec![format!("s{round}-{}", writes.random_range(stable..count))]).await;
        })
        .await;
        let found = ids(results(&answer));
        let mut times: BTreeMap<&str, usize> = BTreeMap::new();
        found.iter().for_each(|id| *times.entry(id).or_default() += 1);
        let is_stable = |id: &&str| items[..stable].iter().any(|made| made.item.item_id == **id);
        let found: Vec<&str> = found.into_iter().filter(is_stable).collect();
        let expected: Vec<&str> = expected.iter().map(String::as_str).filter(is_stable).collect();
        assert_eq!(found, expected, "{order_by}, round {round}");
        assert!(times.iter().filter(|(id, _)| is_stable(id)).all(|(_, times)| *times == 1));
        items.clear();
    }
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_search_by_relevance_continues_to_its_last_match() {
    const ITEMS: usize = 900;
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let channel = &server.channel;
    // Longer titles have lower lexical scores.
    let desks: Vec<proto::Item> = (0..ITEMS)
        .map(|number| {
            let words = ["plain ", "old ", "heavy "].concat().repeat(number % 9);
            item(&format!("desk-{number}"), &format!("walnut desk {words}{number}"), "Desks")
        })
        .collect();
    upsert(channel, &desks).await;
    let request = proto::SearchRequest {
        query: "walnut desk".to_owned(),
        facet_specs: vec![proto::FacetSpec { field: "category".to_owned(), ..Default::default() }],
        page_size: 70,
        ..Default::default()
    };
    for writes in [false, true] {
        let answer = pages(channel, &request, async |page| {
            if writes {
                // Their words change the frequencies from which scores are computed.
                let others: Vec<proto::Item> = (0..40)
                    .map(|number| item(&format!("chair-{page}-{number}"), &format!("walnut chair {number}"), "Chairs"))
                    .collect();
                upsert(channel, &others).await;
            }
        })
        .await;
        assert_eq!((answer[0].total_size as usize, answer[0].facet_item_count as usize), (ITEMS, ITEMS));
        let all = results(&answer);
        let mut found = ids(all.iter().copied());
        assert_eq!(found.len(), ITEMS, "writes: {writes}");
        found.sort_unstable();
        found.dedup();
        assert!(found.len() == ITEMS && found.iter().all(|id| id.starts_with("desk-")), "writes: {writes}");
        assert!(all.iter().all(|result| result.query_match() == QueryMatch::AllWords));
        let ranked = ranked_count(&answer[0]) as usize;
        assert!(all[ranked..].iter().all(|result| codes(result) == [ReasonCode::MatchesWords]));
        assert!((1..=WINDOW).contains(&ranked), "{ranked}");
        // The scores of the rest fall with the length of the title.
        let length = |result: &&&proto::Result| {
            let number: usize = result.item_id.strip_prefix("desk-").unwrap().parse().unwrap();
            number % 9
        };
        let lengths: Vec<usize> = all[ranked..].iter().map(|result| length(&result)).collect();
        assert!(lengths.is_sorted(), "{lengths:?}");
    }
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_keys_sort_with_missing_values_last() {
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let channel = &server.channel;
    use proto::attribute_value::Kind;
    let made = |id: &str, title: &str, price: Option<i64>, weight: Option<Kind>| proto::Item {
        price_micros: price.map(|price| price * 1_000_000),
        attributes: weight
            .into_iter()
            .map(|kind| ("weight".to_owned(), proto::AttributeValue { kind: Some(kind) }))
            .collect(),
        ..item(id, title, "Tins")
    };
    let number = |number: f64| Some(Kind::Number(number));
    let tins = [
        made("a", "blue tin", Some(3), number(2.0)),
        made("b", "Ärmel tin", Some(3), None),
        made("c", "arc tin", Some(3), number(-1.0)),
        made("d", "zinc tin", None, number(1.0)),
        made("e", "ARC tin", Some(3), number(2.0)),
        made("f", "tin", Some(10), Some(Kind::Text("Heavy".to_owned()))),
        made("g", "box tin", Some(10), Some(Kind::Flag(true))),
        made("h", "box tin", None, None),
        made("i", "arc tin", Some(3), number(2.0)),
    ];
    upsert(channel, &tins).await;
    for (order_by, expected) in [
        ("price desc, attributes.weight asc, title", "gfceiabdh"),
        ("price, attributes.weight desc, title desc", "aeicbfgdh"),
        ("attributes.weight", "gcdaeifbh"),
        ("attributes.weight desc", "faeidcgbh"),
        ("title", "ceibaghfd"),
        ("title desc", "dfghabcei"),
        ("item_id desc", "ihgfedcba"),
        ("  price   asc ,  item_id desc ", "iecbagfhd"),
    ] {
        let mut request = browse("Tins", order_by, 4);
        let answer = pages(channel, &request, async |_| {}).await;
        assert_eq!(ids(results(&answer)).concat(), expected, "{order_by}");
        request.query = "tin".to_owned();
        let answer = pages(channel, &request, async |_| {}).await;
        assert_eq!(ids(results(&answer)).concat(), expected, "tin {order_by}");
        assert_eq!(answer[0].total_size, 9);
    }
    // Of a list with a type, its results are sorted.
    let request = proto::RecommendRequest {
        viewer: viewer("p"),
        r#type: RecommendType::ForYou.into(),
        filter: "category = \"Tins\"".to_owned(),
        options: browse("", "price desc, title desc", 0).options,
        ..Default::default()
    };
    let sorted = RankingServiceClient::new(channel.clone()).recommend(request).await.unwrap().into_inner().results;
    assert_eq!(ids(&sorted)[..3], ["f", "g", "a"]);
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invalid_orders_and_page_numbers_are_refused_with_value_and_limit() {
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let channel = &server.channel;
    let refused = async |request: &proto::SearchRequest| -> Vec<(String, String)> {
        let status = search(channel, request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        let details = status.get_details_bad_request().unwrap();
        details.field_violations.into_iter().map(|found| (found.field, found.description)).collect()
    };
    let mut bad = numbered(&browse("x", "colour, price down, tags, price, price desc", 0), 0);
    bad.page_token = "token".to_owned();
    let found = refused(&bad).await;
    let of = |field: &str| -> Vec<&str> {
        found.iter().filter(|found| found.0 == field).map(|found| found.1.as_str()).collect()
    };
    let orders = of("options.order_by");
    assert_eq!(orders.len(), 4, "{found:?}");
    for (problem, part) in orders.iter().zip(["has 5 keys; the limit is 4", "`colour`", "`down`", "`tags`"]) {
        assert!(problem.contains(part), "{problem}");
    }
    assert!(orders[1].contains("use item_id, group_id, title, brand, price"));
    let range = "is 0; it must be within 1 and 2147483647";
    assert_eq!(of("page_number"), [range, "is 0; leave it out of a request with a page_token"]);
    let found = refused(&browse("x", "price, price", 0)).await;
    assert_eq!(found[0].1, "`price` occurs twice; a field may occur once");
    for number in [-1, 1 << 31] {
        let found = refused(&numbered(&browse("x", "price", 0), number)).await;
        assert_eq!(found[0].1, format!("is {number}; it must be within 1 and 2147483647"));
    }
    let found = refused(&numbered(&proto::SearchRequest { query: "mug".to_owned(), ..browse("x", "", 0) }, 2)).await;
    assert!(found[0].1.starts_with("is 2; a search with a query and without options.order_by"), "{found:?}");

    // A token belongs to its order, filter and page size.
    upsert(channel, &(0..30).map(|n| item(&format!("pot-{n}"), "pot", "Pots")).collect::<Vec<_>>()).await;
    let request = browse("Pots", "title", 10);
    let first = search(channel, &numbered(&request, 1)).await.unwrap();
    let token = first.next_page_token;
    let with = |request: proto::SearchRequest| proto::SearchRequest { page_token: token.clone(), ..request };
    search(channel, &with(request.clone())).await.unwrap();
    for other in [browse("Pots", "title desc", 10), browse("Pots", "", 10), browse("Pots", "title", 11)] {
        let found = refused(&with(other)).await;
        assert_eq!(found[0].0, "page_token");
    }
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_arrivals_are_the_newest_first_and_no_list_is_empty_while_an_item_is_eligible() {
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let channel = &server.channel;
    let aged = |id: &str, days: i64| proto::Item { create_time: days_ago(days), ..item(id, "kettle", "Kettles") };
    upsert(channel, &[aged("old", 60), aged("newest", 1), aged("announced", -9), aged("recent", 8)]).await;
    let recommend = async |kind: RecommendType, filter: &str| {
        let request = proto::RecommendRequest {
            viewer: viewer("stranger"),
            r#type: kind.into(),
            filter: filter.to_owned(),
            page_size: 200,
            ..Default::default()
        };
        RankingServiceClient::new(channel.clone()).recommend(request).await.unwrap().into_inner()
    };
    let found = recommend(RecommendType::NewArrivals, "category = \"Kettles\"").await;
    assert_eq!(ids(&found.results), ["newest", "recent", "old", "announced"]);
    let is_new: Vec<bool> = found.results.iter().map(|result| codes(result).contains(&ReasonCode::New)).collect();
    assert_eq!(is_new, [true, true, false, false], "neither one of 60 days nor one that is announced is new");
    assert_eq!(found.info.unwrap().ranked_count, 0);
    // The items of the bundle have no time; the most popular of them are first.
    let all = recommend(RecommendType::NewArrivals, "").await.results;
    let trending = recommend(RecommendType::Trending, "").await.results;
    let of_bundle = |results: &[proto::Result]| -> Vec<String> {
        let ids = results.iter().map(|result| result.item_id.clone());
        ids.filter(|id| id.starts_with('i') && id[1..].parse::<usize>().is_ok()).collect()
    };
    assert_eq!(ids(&all)[..3], ["newest", "recent", "old"]);
    assert_eq!(of_bundle(&all), of_bundle(&trending));
    for kind in [RecommendType::ForYou, RecommendType::Trending, RecommendType::NewArrivals] {
        for id in ["old", "announced", "i7"] {
            assert_eq!(ids(&recommend(kind, &format!("item_id = \"{id}\"")).await.results), [id], "{kind:?}");
        }
    }
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn items_on_sale_are_those_below_their_original_price() {
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let channel = &server.channel;
    let reduced = |id: &str, price: Option<i64>, original: Option<i64>| proto::Item {
        price_micros: price.map(|price| price * 1_000_000),
        original_price_micros: original.map(|price| price * 1_000_000),
        rating: original.map(|price| price as f64 / 10.0),
        ..item(id, "kettle", "Kettles")
    };
    let kettles = [
        reduced("half", Some(10), Some(20)),
        reduced("tenth", Some(27), Some(30)),
        reduced("over", Some(20), Some(20)),
        reduced("regular", Some(5), None),
        reduced("unpriced", None, Some(50)),
        proto::Item { stock_quantity: Some(0), ..reduced("sold-out", Some(1), Some(9)) },
    ];
    upsert(channel, &kettles).await;
    let on_sale = async |filter: &str| {
        let request = proto::RecommendRequest {
            viewer: viewer("bargain-hunter"),
            r#type: RecommendType::OnSale.into(),
            filter: filter.to_owned(),
            page_size: 200,
            ..Default::default()
        };
        let answer = RankingServiceClient::new(channel.clone()).recommend(request).await.unwrap().into_inner();
        let mut ids: Vec<String> = answer.results.into_iter().map(|result| result.item_id).collect();
        ids.sort();
        ids
    };
    assert_eq!(on_sale("").await, ["half", "tenth"]);
    assert_eq!(on_sale("price > 20 OR in_stock = false").await, ["tenth"]);
    let by = async |order: &str| {
        let page = search(channel, &browse("Kettles", order, 10)).await.unwrap();
        page.results.into_iter().map(|result| result.item_id).collect::<Vec<_>>()
    };
    assert_eq!(by("discount desc, price").await, ["half", "tenth", "regular", "over", "unpriced"]);
    assert_eq!(by("rating desc, original_price").await, ["unpriced", "tenth", "half", "over", "regular"]);
    // A sale begins and ends by a write of the price.
    let inventory = |id: &str, price: i64, original: Option<i64>| proto::Inventory {
        item_id: id.to_owned(),
        price_micros: Some(price * 1_000_000),
        original_price_micros: original.map(|price| price * 1_000_000),
        ..Default::default()
    };
    let inventories = vec![inventory("half", 20, None), inventory("regular", 4, Some(5))];
    let request = proto::SetInventoryRequest { inventories };
    CatalogServiceClient::new(channel.clone()).set_inventory(request).await.unwrap();
    assert_eq!(on_sale("").await, ["regular", "tenth"]);
    server.end().await;
}
