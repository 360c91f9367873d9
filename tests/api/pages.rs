//! Answers over gRPC while the shop changes: pages of a frozen order, what counts as a match, pins, new items, and
//! purchases that are given back.
use crate::support::{answers::replay, bundles::Shop, grpc::GrpcServer, items::all_fields, wait::wait_until};
use lodestone::server::proto::{
    self, EventType, QueryMatch, ReasonCode, RecommendType, catalog_service_client::CatalogServiceClient,
    event_service_client::EventServiceClient, model_service_client::ModelServiceClient,
    ranking_service_client::RankingServiceClient,
};
use lodestone_core::units::UnixMillis;
use lodestone_rollout::HealthBounds;
use std::time::Duration;
use tonic::{Code, Status, transport::Channel};
use tonic_types::StatusExt;

const DAY_S: i64 = 86_400;
/// The longest time until an answer is in the log of answers.
const LOG_TIME_MAX: Duration = Duration::from_secs(60);
/// The longest time until popularity is published.
const PUBLISH_TIME_MAX: Duration = Duration::from_secs(60);

fn viewer(user: &str) -> Option<proto::Viewer> {
    Some(proto::Viewer { user_id: user.to_owned(), ..Default::default() })
}

/// Returns an item of brand Acme that costs 10 and was created 100 days ago.
fn desk(number: usize) -> proto::Item {
    proto::Item {
        item_id: format!("desk-{number}"),
        title: format!("walnut desk {}", ["oak", "pine", "teak", "ash"][number % 4]),
        brand: "Acme".to_owned(),
        price_micros: Some(10_000_000 + number as i64),
        create_time: Some(prost_types::Timestamp { seconds: now_s() - 100 * DAY_S, nanos: 0 }),
        ..Default::default()
    }
}

fn now_s() -> i64 {
    UnixMillis::now().0 / 1000
}

async fn upsert(channel: &Channel, items: Vec<proto::Item>) {
    let request = proto::UpsertItemsRequest { items, update_time: None };
    let written = CatalogServiceClient::new(channel.clone()).upsert_items(request).await.unwrap().into_inner();
    assert!(written.results.iter().all(|result| result.violations.is_empty()), "{:?}", written.results);
}

async fn delete(channel: &Channel, item: &str) {
    let request = proto::DeleteItemsRequest { item_ids: vec![item.to_owned()] };
    CatalogServiceClient::new(channel.clone()).delete_items(request).await.unwrap();
}

async fn search(channel: &Channel, request: proto::SearchRequest) -> Result<proto::SearchResponse, Status> {
    let request = proto::SearchRequest { viewer: viewer("searcher"), ..request };
    Ok(RankingServiceClient::new(channel.clone()).search(request).await?.into_inner())
}

fn query(text: &str) -> proto::SearchRequest {
    proto::SearchRequest { query: text.to_owned(), page_size: 200, ..Default::default() }
}

fn ids(results: &[proto::Result]) -> Vec<&str> {
    results.iter().map(|result| result.item_id.as_str()).collect()
}

fn reasons(result: &proto::Result) -> Vec<ReasonCode> {
    result.reasons.iter().map(proto::Reason::code).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_query_has_the_same_total_and_facets_with_and_without_function_words() {
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let channel = &server.channel;
    let item = |id: String, title: &str, description: &str, brand: &str, price: usize| proto::Item {
        item_id: id,
        title: title.to_owned(),
        description: description.to_owned(),
        brand: brand.to_owned(),
        price_micros: Some(price as i64 * 1_000_000),
        ..Default::default()
    };
    let teapot = |number: usize| {
        let title = ["stoneware teapot", "stoneware teapot handle"][number % 2];
        item(format!("teapot-{number}"), title, "", "Acme", 10 + 2 * number)
    };
    let shirt = |number: usize| {
        item(
            format!("shirt-{number}"),
            "linen shirt",
            "a shirt with a collar for the summer",
            "Bramble",
            5 + 2 * number,
        )
    };
    upsert(channel, (0..14).map(teapot).chain((0..12).map(shirt)).collect()).await;
    for (text, plain, total) in [
        ("a teapot", "teapot", 14),
        ("teapot with handle", "teapot handle", 7),
        ("a teapot for the summer handle", "teapot summer handle", 26),
    ] {
        for order_by in ["", "price"] {
            let mut answers = Vec::new();
            for text in [text, plain] {
                let request = proto::SearchRequest {
                    facet_specs: vec![proto::FacetSpec { field: "brand".to_owned(), ..Default::default() }],
                    options: Some(proto::RankingOptions { order_by: order_by.to_owned(), ..Default::default() }),
                    ..query(text)
                };
                answers.push(search(channel, request).await.unwrap());
            }
            let (with, without) = (&answers[0], &answers[1]);
            assert_eq!((with.total_size, without.total_size), (total, total), "`{text}` `{order_by}`");
            assert_eq!(with.facets, without.facets, "`{text}` `{order_by}`");
            assert_eq!(with.corrected_query, "", "`{text}`");
            if order_by == "price" {
                assert_eq!(ids(&with.results), ids(&without.results), "`{text}`");
            }
        }
    }
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn later_pages_keep_the_order_and_show_the_items_of_now() {
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let channel = &server.channel;
    upsert(channel, (0..12).map(desk).collect()).await;
    let request = proto::SearchRequest {
        filter: "price < 100".to_owned(),
        page_size: 3,
        options: Some(proto::RankingOptions { read_mask: Some(all_fields()), ..Default::default() }),
        ..query("walnut desk")
    };
    let order = search(channel, proto::SearchRequest { page_size: 200, ..request.clone() }).await.unwrap();
    let order: Vec<String> = order.results.into_iter().map(|result| result.item_id).collect();
    assert_eq!(order.len(), 12, "{order:?}");
    let first = search(channel, request.clone()).await.unwrap();
    assert_eq!(ids(&first.results), order[..3]);

    let changed = |at: usize, change: &dyn Fn(&mut proto::Item)| {
        let number = order[at].strip_prefix("desk-").unwrap().parse().unwrap();
        let mut item = desk(number);
        change(&mut item);
        item
    };
    delete(channel, &order[1]).await;
    delete(channel, &order[4]).await;
    let changes = vec![
        changed(5, &|item| item.stock_quantity = Some(0)),
        changed(6, &|item| item.price_micros = Some(20_000_000)),
        changed(7, &|item| item.price_micros = Some(200_000_000)),
    ];
    upsert(channel, changes).await;
    let next = |token: &str| proto::SearchRequest { page_token: token.to_owned(), ..request.clone() };
    let second = search(channel, next(&first.next_page_token)).await.unwrap();
    assert_eq!(ids(&second.results), [&order[3], &order[6], &order[8]], "the page is filled with the items after it");
    assert_eq!(second.results.iter().map(|result| result.rank).collect::<Vec<_>>(), [4, 7, 9]);
    assert_eq!(second.results[1].item.as_ref().unwrap().price_micros, Some(20_000_000));
    assert_eq!((second.total_size, &second.facets), (first.total_size, &first.facets));

    // The slate belongs to a bundle that no longer answers, and whose catalogue changes late.
    let activate = proto::ActivateBundleRequest { bundle: "c".to_owned() };
    ModelServiceClient::new(channel.clone()).activate_bundle(activate).await.unwrap();
    delete(channel, &order[9]).await;
    let third = search(channel, next(&second.next_page_token)).await.unwrap();
    assert_eq!(ids(&third.results), order[10..]);
    assert_eq!(third.next_page_token, "");
    let again = search(channel, next(&first.next_page_token)).await.unwrap();
    assert_eq!(ids(&again.results), ids(&second.results), "a page is the same when it is requested again");
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_total_size_is_what_the_facets_count_and_matches_come_first() {
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let channel = &server.channel;
    let other = |number: usize| proto::Item {
        item_id: format!("chair-{number}"),
        title: format!("walnut chair {number}"),
        brand: "Acme".to_owned(),
        price_micros: Some(1_000_000),
        ..Default::default()
    };
    let of_other_brand = proto::Item { brand: "Zeta".to_owned(), ..desk(30) };
    upsert(channel, (0..8).map(desk).chain((0..5).map(other)).chain([of_other_brand]).collect()).await;
    let brands = vec![proto::FacetSpec { field: "brand".to_owned(), ..Default::default() }];
    for (text, filter, expected) in [
        ("walnut desk", "", Some(9)),
        ("walnut desk", "brand = \"Acme\"", Some(8)),
        ("walnut desk", "brand = \"Zeta\"", Some(1)),
        ("desk-3", "", None),
        ("walnut zzqxv", "", Some(14)),
        ("zzqxv blorp", "", None),
    ] {
        let plain = proto::SearchRequest { filter: filter.to_owned(), ..query(text) };
        let counted = proto::SearchRequest { facet_specs: brands.clone(), ..plain.clone() };
        let (plain, counted) = (search(channel, plain).await.unwrap(), search(channel, counted).await.unwrap());
        assert_eq!(i64::from(counted.total_size), counted.facet_item_count, "{text} {filter}");
        assert_eq!(plain.total_size, counted.total_size, "{text} {filter}");
        if let Some(expected) = expected {
            assert_eq!(counted.total_size, expected, "{text} {filter}");
        }
    }
    let counted = search(channel, proto::SearchRequest { facet_specs: brands, ..query("walnut desk") }).await.unwrap();
    let of_facet: Vec<(&str, i64)> =
        counted.facets[0].values.iter().map(|value| (value.value.as_str(), value.item_count)).collect();
    assert_eq!(of_facet, [("Acme", 8), ("Zeta", 1)], "each is the total size below that filter");

    for order_by in ["", "price"] {
        let options = Some(proto::RankingOptions { order_by: order_by.to_owned(), ..Default::default() });
        let filter = "brand = \"Acme\"".to_owned();
        let found = search(channel, proto::SearchRequest { filter, options, ..query("walnut desk") }).await.unwrap();
        let matches: Vec<QueryMatch> = found.results.iter().map(proto::Result::query_match).collect();
        let (matching, others) = matches.split_at(found.total_size as usize);
        assert!(matching.iter().all(|by| *by == QueryMatch::AllWords), "{order_by} {matches:?}");
        assert!(others.iter().all(|by| *by == QueryMatch::SomeWords), "{order_by} {matches:?}");
        assert_eq!(others.is_empty(), !order_by.is_empty(), "a field orders the matches alone");
    }
    let found = search(channel, query("desk-3")).await.unwrap();
    assert_eq!(found.results[0].query_match(), QueryMatch::Identifier);
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pin_has_its_reason_and_its_own_rank() {
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let channel = &server.channel;
    let pinned = |pins: &[(&str, i32)]| {
        let pins = pins.iter().map(|(item, rank)| proto::Pin { item_id: (*item).to_owned(), rank: *rank }).collect();
        Some(proto::RankingOptions { pins, ..Default::default() })
    };
    let options = pinned(&[("i1", 1), ("i0", 2)]);
    let found = search(channel, proto::SearchRequest { options, ..query("lamp number 1") }).await.unwrap();
    assert_eq!(ids(&found.results)[..2], ["i1", "i0"]);
    assert_eq!(reasons(&found.results[0])[0], ReasonCode::Pinned);
    assert!(reasons(&found.results[0]).contains(&ReasonCode::MatchesWords), "{:?}", found.results[0].reasons);
    assert_eq!(reasons(&found.results[1])[0], ReasonCode::Pinned);
    let fields = async |pins: &[(&str, i32)]| {
        let request = proto::SearchRequest { options: pinned(pins), ..query("lamp") };
        let status = search(channel, request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        let details = status.get_details_bad_request().unwrap();
        details.field_violations.into_iter().map(|found| (found.field, found.description)).collect::<Vec<_>>()
    };
    let rank = "is 2, the rank of pins[0]; a rank takes one pin";
    assert_eq!(fields(&[("i1", 2), ("i2", 2)]).await, [("options.pins[1].rank".to_owned(), rank.to_owned())]);
    let item = "is `i1`, the item of pins[1]; an item takes one pin";
    let found = fields(&[("i0", 3), ("i1", 1), ("i1", 2)]).await;
    assert_eq!(found, [("options.pins[2].item_id".to_owned(), item.to_owned())]);

    // An excluded item is not shown, neither as a candidate nor as a pin.
    let candidates =
        ["i3", "i4"].map(|id| proto::RankCandidate { item_id: id.to_owned(), ..Default::default() }).to_vec();
    let options = pinned(&[("i3", 1)])
        .map(|options| proto::RankingOptions { exclude_item_ids: vec!["i3".to_owned()], ..options });
    let request = proto::RankRequest { viewer: viewer("p"), candidates, options, ..Default::default() };
    let ranked = RankingServiceClient::new(channel.clone()).rank(request).await.unwrap().into_inner();
    assert_eq!(ids(&ranked.results), ["i4"]);
    assert_eq!(ranked.info.unwrap().dropped_pin_item_ids, ["i3"]);
    server.end().await;
}

/// Asserts that the parts explain the score of each entry: the weights and probabilities the base, and the parts the
/// score. Each entry is a score, its parts and the probabilities of its heads.
fn assert_explained(weights: &[proto::NamedScore], entries: &[(f64, proto::ScoreParts, &[proto::NamedScore])]) {
    assert!(!weights.is_empty() && !entries.is_empty());
    for (score, parts, heads) in entries {
        let names = |scores: &[proto::NamedScore]| scores.iter().map(|named| named.name.clone()).collect::<Vec<_>>();
        assert_eq!(names(weights), names(heads));
        let base: f64 = weights.iter().zip(*heads).map(|(weight, head)| weight.score * head.score).sum();
        assert!((base - parts.base).abs() < 1e-5, "{base} {parts:?}");
        let sum = parts.base + parts.match_bonus;
        let expected = if sum < 0.0 { sum / parts.boost_factor } else { sum * parts.boost_factor };
        assert!((expected - score).abs() < 1e-5, "{score} {parts:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_parts_explain_the_score_of_an_answer_and_of_its_replay() {
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let channel = &server.channel;
    let boost = |filter: &str, factor| proto::Boost { filter: filter.to_owned(), factor, filter_expression: None };
    let options = Some(proto::RankingOptions {
        boosts: vec![boost("title HAS \"red\"", 3.0), boost("item_id = \"i0\"", 0.5)],
        debug_level: proto::DebugLevel::Scores.into(),
        ..Default::default()
    });
    let found = search(channel, proto::SearchRequest { options, ..query("mug number 0") }).await.unwrap();
    let debug: Vec<&proto::ResultDebug> = found.results.iter().filter_map(|result| result.debug.as_ref()).collect();
    let entries: Vec<_> = (found.results.iter().zip(&debug))
        .map(|(result, debug)| (result.score, debug.score_parts.unwrap(), &debug.heads[..]))
        .collect();
    let weights = found.info.unwrap().debug.unwrap().head_weights;
    assert_explained(&weights, &entries);
    let factors = |id: &str| {
        let at = found.results.iter().position(|result| result.item_id == id).unwrap();
        (entries[at].1.match_bonus, entries[at].1.boost_factor)
    };
    assert_eq!((factors("i0"), factors("i1").1), ((1.0, 1.5), 1.0));

    let replayed = replay(channel, &found.attribution_token).await;
    assert!(replayed.identical, "{}", replayed.first_difference);
    let slots: Vec<_> =
        replayed.slots.iter().map(|slot| (slot.score, slot.score_parts.unwrap(), &slot.heads[..])).collect();
    assert_eq!(slots, entries);
    assert_eq!(replayed.slots[0].head_weights, weights);
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_item_is_new_for_thirty_days_after_its_creation() {
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let channel = &server.channel;
    let created = |days: i64| Some(prost_types::Timestamp { seconds: now_s() - days * DAY_S, nanos: 0 });
    let item = |id: &str, create_time| proto::Item {
        item_id: id.to_owned(),
        title: "brass sundial".to_owned(),
        create_time,
        ..Default::default()
    };
    let ids = ["today", "recent", "old", "announced"];
    let created = [None, created(29), created(31), created(-20)];
    upsert(channel, ids.iter().zip(created).map(|(id, created)| item(id, created)).collect()).await;
    let is_new = async || {
        let found = search(channel, query("brass sundial")).await.unwrap();
        let codes = |id: &str| reasons(found.results.iter().find(|result| result.item_id == id).unwrap());
        ids.map(|id| codes(id).last() == Some(&ReasonCode::New))
    };
    assert_eq!(is_new().await, [true, true, false, false], "an item that is announced is not new yet");
    // Another write of a known item does not make it new.
    let renamed = proto::Item { brand: "Acme".to_owned(), ..item("old", None) };
    upsert(channel, vec![renamed]).await;
    assert_eq!(is_new().await, [true, true, false, false]);
    // Neither does the ranking model see a newer item than one of today.
    let options = Some(proto::RankingOptions { debug_level: proto::DebugLevel::Features.into(), ..Default::default() });
    let found = search(channel, proto::SearchRequest { options, ..query("brass sundial") }).await.unwrap();
    let names = &found.info.as_ref().unwrap().debug.as_ref().unwrap().feature_names;
    let age = names.iter().position(|name| name == "item_age_days").unwrap();
    let age_of = |id: &str| {
        let result = found.results.iter().find(|result| result.item_id == id).unwrap();
        result.debug.as_ref().unwrap().features[age]
    };
    assert!(age_of("announced") == 0.0 && age_of("today") < 0.01, "{} {}", age_of("announced"), age_of("today"));
    let found = search(channel, query("red mug number 0")).await.unwrap();
    let old = found.results.iter().find(|result| result.item_id == "i0").unwrap();
    assert!(!reasons(old).contains(&ReasonCode::New), "the creation of the bundle's item is not known");
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_given_back_in_full_is_not_bought() {
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let start = now_s() - 10 * DAY_S;
    let event = |number: i64, kind: EventType, user: &str, lines: &[(&str, i32)]| proto::Event {
        event_id: format!("{user}-{number}"),
        r#type: kind.into(),
        viewer: viewer(user),
        occurred_time: Some(prost_types::Timestamp { seconds: start + number * 3600, nanos: 0 }),
        lines: lines
            .iter()
            .map(|(item, quantity)| proto::EventLine {
                item_id: (*item).to_owned(),
                quantity: f64::from(*quantity),
                ..Default::default()
            })
            .collect(),
        ..Default::default()
    };
    let events = vec![
        event(0, EventType::View, "p", &[("i5", 1)]),
        event(1, EventType::Purchase, "p", &[("i5", 2), ("i6", 3)]),
        event(2, EventType::Purchase, "p", &[("i7", 1)]),
        event(3, EventType::Refund, "p", &[("i5", 2), ("i6", 1)]),
        // The purchase of this refund arrives later.
        event(5, EventType::Refund, "q", &[("i8", 1)]),
        event(4, EventType::Purchase, "q", &[("i8", 1)]),
    ];
    let write = async |server: &GrpcServer| {
        let events = events.clone();
        EventServiceClient::new(server.channel.clone())
            .write_events(proto::WriteEventsRequest { events })
            .await
            .unwrap();
    };
    let recommend = async |server: &GrpcServer, user: &str, kind: RecommendType| {
        let request =
            proto::RecommendRequest { viewer: viewer(user), r#type: kind.into(), page_size: 200, ..Default::default() };
        RankingServiceClient::new(server.channel.clone()).recommend(request).await.unwrap().into_inner().results
    };
    let check = async |server: &GrpcServer, round: &str| {
        let mut again = recommend(server, "p", RecommendType::BuyAgain).await;
        again.sort_by(|a, b| a.item_id.cmp(&b.item_id));
        assert_eq!(ids(&again), ["i6", "i7"], "{round}");
        assert!(recommend(server, "q", RecommendType::BuyAgain).await.is_empty(), "{round}");
        let for_you = recommend(server, "p", RecommendType::ForYou).await;
        let bought = |result: &&proto::Result| reasons(result).contains(&ReasonCode::BoughtBefore);
        let mut bought: Vec<&str> = for_you.iter().filter(bought).map(|result| result.item_id.as_str()).collect();
        bought.sort_unstable();
        assert_eq!(bought, ["i6", "i7"], "{round}");
        let evidence: Vec<&String> =
            for_you.iter().flat_map(|result| &result.reasons).flat_map(|reason| &reason.evidence_item_ids).collect();
        assert!(!evidence.is_empty() && evidence.iter().all(|id| *id != "i5"), "{round} {evidence:?}");
    };
    write(&server).await;
    check(&server, "live").await;
    server.end().await;
    let server = GrpcServer::start(shop.reopen(HealthBounds::default()).await).await;
    check(&server, "replayed").await;
    let replayed = ids(&recommend(&server, "nobody", RecommendType::ForYou).await).join(" ");
    server.end().await;
    // Popularity is published from time to time, so a server that does not replay shows it a moment later.
    std::fs::remove_dir_all(shop.data_path()).unwrap();
    let server = GrpcServer::start(shop.reopen(HealthBounds::default()).await).await;
    assert_ne!(ids(&recommend(&server, "nobody", RecommendType::ForYou).await).join(" "), replayed, "no events yet");
    write(&server).await;
    wait_until("the popularity is that of the replay", PUBLISH_TIME_MAX, async || {
        ids(&recommend(&server, "nobody", RecommendType::ForYou).await).join(" ") == replayed
    })
    .await;
    server.end().await;
}

fn view(user: &str, item: &str, at_s: i64) -> proto::Event {
    proto::Event {
        event_id: format!("{user}-{item}"),
        r#type: EventType::View.into(),
        viewer: viewer(user),
        occurred_time: Some(prost_types::Timestamp { seconds: at_s, nanos: 0 }),
        lines: vec![proto::EventLine { item_id: item.to_owned(), ..Default::default() }],
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_whose_anchors_are_unknown_declares_from_what_it_starts() {
    use RecommendType::{BoughtTogether, Similar};
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let channel = &server.channel;
    let events = vec![view("p", "i3", now_s() - 60), view("p", "i8", now_s() - 30)];
    EventServiceClient::new(channel.clone()).write_events(proto::WriteEventsRequest { events }).await.unwrap();
    let recommend = async |user: &str, kind: RecommendType, anchors: &[&str]| {
        let request = proto::RecommendRequest {
            viewer: viewer(user),
            r#type: kind.into(),
            page_size: 5,
            anchor_item_ids: anchors.iter().map(|id| (*id).to_owned()).collect(),
            ..Default::default()
        };
        RankingServiceClient::new(channel.clone()).recommend(request).await.unwrap().into_inner()
    };
    for (kind, anchors, evidence, unknown, is_declared) in [
        (Similar, &["none", "nowhere"][..], &["i8", "i3"][..], &["none", "nowhere"][..], true),
        (BoughtTogether, &["none"], &["i8", "i3"], &["none"], true),
        (Similar, &["none", "i5"], &["i5"], &["none"], false),
        (BoughtTogether, &["i5", "none"], &["i5"], &["none"], false),
        (Similar, &[], &["i8", "i3"], &[], false),
        (BoughtTogether, &[], &["i8", "i3"], &[], false),
    ] {
        let answer = recommend("p", kind, anchors).await;
        let info = answer.info.unwrap();
        let codes: Vec<_> = info.degradations.iter().map(proto::Degradation::code).collect();
        let expected = [proto::DegradationCode::AnchorsUnknown];
        assert_eq!(codes, expected[..usize::from(is_declared)], "{kind:?} {anchors:?}");
        assert_eq!(info.unknown_item_ids, unknown, "{kind:?} {anchors:?}");
        // No basket of the shop has two items.
        assert_eq!(answer.results.is_empty(), kind == BoughtTogether, "{kind:?} {anchors:?}");
        for result in &answer.results {
            assert_eq!(result.reasons[0].evidence_item_ids, evidence, "{kind:?} {anchors:?}");
        }
    }
    // Without a history there is nothing to start from.
    let answer = recommend("nobody", Similar, &["none"]).await;
    assert!(answer.results.is_empty());
    assert_eq!(answer.info.unwrap().degradations.len(), 1);
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_item_that_is_named_twice_counts_once_with_a_notice() {
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let channel = &server.channel;
    let notices = |info: Option<proto::AnswerInfo>| -> Vec<(String, String)> {
        info.unwrap().notices.into_iter().map(|notice| (notice.field, notice.description)).collect()
    };
    let rank = async |ids: &[&str]| {
        let candidates =
            ids.iter().map(|id| proto::RankCandidate { item_id: (*id).to_owned(), ..Default::default() }).collect();
        let request = proto::RankRequest { viewer: viewer("p"), candidates, ..Default::default() };
        RankingServiceClient::new(channel.clone()).rank(request).await.unwrap().into_inner()
    };
    let ranked = rank(&["i1", "i2", "none", "i1", "none", "i1"]).await;
    let mut found = ids(&ranked.results);
    found.sort_unstable();
    assert_eq!(found, ["i1", "i2", "none"]);
    let description = "3 of 6 entries name an item of an earlier entry, the first of them candidates[3].item_id `i1`; \
                       each item counts once";
    assert_eq!(notices(ranked.info), [("candidates".to_owned(), description.to_owned())]);
    assert_eq!(notices(rank(&["i1", "i2"]).await.info), []);

    let recommend = async |anchors: &[&str]| {
        let request = proto::RecommendRequest {
            viewer: viewer("p"),
            r#type: RecommendType::BoughtTogether.into(),
            anchor_item_ids: anchors.iter().map(|id| (*id).to_owned()).collect(),
            ..Default::default()
        };
        RankingServiceClient::new(channel.clone()).recommend(request).await.unwrap().into_inner()
    };
    let (once, twice) = (recommend(&["i1", "i5"]).await, recommend(&["i1", "i5", "i1"]).await);
    assert_eq!(twice.results, once.results);
    let named: Vec<String> = notices(twice.info).into_iter().map(|(field, _)| field).collect();
    assert_eq!(named, ["anchor_item_ids"]);
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_texts_of_deleted_items_are_no_completions() {
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let chair = |id: &str, title: &str| proto::Item {
        item_id: id.to_owned(),
        title: title.to_owned(),
        brand: "Vrakzel".to_owned(),
        categories: vec!["Quibbles".to_owned()],
        ..Default::default()
    };
    let completions = async |channel: &Channel, prefix: &str| -> Vec<String> {
        let request = proto::SuggestRequest { viewer: viewer("p"), prefix: prefix.to_owned(), ..Default::default() };
        let found = RankingServiceClient::new(channel.clone()).suggest(request).await.unwrap().into_inner();
        found.completions.into_iter().map(|completion| completion.text).collect()
    };
    let channel = &server.channel;
    let title_of_7 = "blue lamp number 7";
    assert_eq!(completions(channel, title_of_7).await, [title_of_7]);
    upsert(channel, vec![chair("a", "Zibbled chair"), chair("b", "zibbled  CHAIR"), chair("c", "Zibbled stool")]).await;
    delete(channel, "a").await;
    assert_eq!(completions(channel, "zibbled ch").await, ["Zibbled chair"], "another item has the title");
    // A title that is replaced goes, too.
    upsert(channel, vec![chair("b", "Walnut chair")]).await;
    assert_eq!(completions(channel, "zibbled ch").await, [""; 0]);
    assert_eq!(completions(channel, "vrak").await, ["Vrakzel"]);
    for item in ["b", "c", "i7"] {
        delete(channel, item).await;
    }
    let are_gone = async |channel: &Channel| {
        for prefix in ["zibbled", "vrak", "quibb"] {
            assert_eq!(completions(channel, prefix).await, [""; 0], "{prefix}");
        }
        // Titles that are one typing error away may remain.
        assert!(!completions(channel, title_of_7).await.iter().any(|text| text == title_of_7));
    };
    are_gone(channel).await;
    server.end().await;
    let server = GrpcServer::start(shop.reopen(HealthBounds::default()).await).await;
    are_gone(&server.channel).await;
    upsert(&server.channel, vec![chair("c", "Zibbled stool")]).await;
    assert_eq!(completions(&server.channel, "zibbled").await, ["Zibbled stool"]);
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_refund_an_earlier_purchase_still_counts_for_popularity() {
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let channel = &server.channel;
    let items: Vec<proto::Item> = ["given-back", "kept", "viewed"].iter().map(|id| untitled(id)).collect();
    upsert(channel, items).await;
    let event = |item: &str, number: i64, kind: EventType, user: &str| proto::Event {
        event_id: format!("{user}-{item}-{number}"),
        r#type: kind.into(),
        ..view(user, item, now_s() - 3600 + number)
    };
    let mut events = Vec::new();
    for user in ["p", "q", "r"] {
        events.push(event("given-back", 0, EventType::Purchase, user));
        events.push(event("given-back", 1, EventType::Purchase, user));
        events.push(event("given-back", 2, EventType::Refund, user));
        events.push(event("viewed", 3, EventType::View, user));
    }
    events.extend(["p", "q"].map(|user| event("kept", 3, EventType::Purchase, user)));
    EventServiceClient::new(channel.clone()).write_events(proto::WriteEventsRequest { events }).await.unwrap();
    let order = async || {
        let request = proto::RecommendRequest {
            viewer: viewer("stranger"),
            r#type: RecommendType::ForYou.into(),
            page_size: 200,
            filter: "item_id IN (\"given-back\", \"kept\", \"viewed\")".to_owned(),
            options: Some(proto::RankingOptions {
                debug_level: proto::DebugLevel::Scores.into(),
                ..Default::default()
            }),
            ..Default::default()
        };
        let found = RankingServiceClient::new(channel.clone()).recommend(request).await.unwrap().into_inner();
        let popular = |result: &proto::Result| {
            let scores = &result.debug.as_ref().unwrap().source_scores;
            scores.iter().find(|named| named.name == "popular").map_or(0.0, |named| named.score)
        };
        let mut scores: Vec<(String, f64)> =
            found.results.iter().map(|result| (result.item_id.clone(), popular(result))).collect();
        scores.sort_by(|a, b| b.1.total_cmp(&a.1));
        scores.into_iter().map(|(id, _)| id).collect::<Vec<_>>()
    };
    // Three users bought the first item once, two the second one; the popularity is published by a thread of its own.
    wait_until("purchases that stand count", LOG_TIME_MAX, async || order().await == ["given-back", "kept", "viewed"])
        .await;
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_are_kept_for_later_pages_are_bounded_by_bytes() {
    let bytes_max = 1 << 20;
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open_with_slate_bytes(bytes_max)).await;
    let channel = &server.channel;
    upsert(channel, (0..12).map(desk).collect()).await;
    // Each answer keeps 1,000 ids of 100 bytes twice: those that it excludes, and those that it does not know.
    let request = |number: usize| proto::SearchRequest {
        page_size: 3,
        options: Some(proto::RankingOptions {
            exclude_item_ids: (0..1000).map(|at| format!("{number}-{at}-{}", "x".repeat(90))).collect(),
            debug_level: proto::DebugLevel::Features.into(),
            ..Default::default()
        }),
        ..query("walnut desk")
    };
    let mut tokens = Vec::new();
    for number in 0..20 {
        let first = search(channel, request(number)).await.unwrap();
        assert!(first.info.unwrap().debug.is_some());
        assert!(first.results.iter().all(|result| !result.debug.as_ref().unwrap().features.is_empty()));
        tokens.push(first.next_page_token);
    }
    // The cache removes answers some time after they were added.
    let is_bounded = async || server.metric("slate_bytes").is_some_and(|bytes| (1..=bytes_max).contains(&bytes));
    wait_until("the kept answers fit", PUBLISH_TIME_MAX, is_bounded).await;
    let kept = server.metric("slates").unwrap();
    assert!((1..=10).contains(&kept), "{kept} answers of at least 100 KB in 1 MiB");

    let page = async |number: usize| {
        let request = proto::SearchRequest { page_token: tokens[number].clone(), ..request(number) };
        search(channel, request).await
    };
    let latest = page(19).await.unwrap();
    assert_eq!(latest.results.len(), 3);
    assert!(latest.info.unwrap().debug.is_none(), "debug information is not kept");
    assert!(latest.results.iter().all(|result| result.debug.is_none()));
    let status = page(0).await.unwrap_err();
    assert_eq!(status.get_error_details().error_info().unwrap().reason, "PAGE_TOKEN_EXPIRED");
    server.end().await;
}

fn untitled(id: &str) -> proto::Item {
    proto::Item { item_id: id.to_owned(), title: format!("gadget {id}"), ..Default::default() }
}
