//! What shoppers find over gRPC: boosts beyond the first candidates, completions from titles, lists and identifiers.
use crate::support::{bundles::Shop, grpc::GrpcServer};
use lodestone::server::proto::{
    self, CompletionSource, DebugLevel, DegradationCode, RecommendType, catalog_service_client::CatalogServiceClient,
    ranking_service_client::RankingServiceClient, rule_action::Action, rule_service_client::RuleServiceClient,
};
use lodestone_rollout::HealthBounds;
use tonic::{Code, transport::Channel};

const LAPTOPS: usize = 900;
const NOTEBOOKS: usize = 60;

fn ranking(server: &GrpcServer) -> RankingServiceClient<Channel> {
    RankingServiceClient::new(server.channel.clone())
}

fn viewer() -> Option<proto::Viewer> {
    Some(proto::Viewer { visitor_id: "nobody-yet".to_owned(), ..Default::default() })
}

fn item(id: String, title: String) -> proto::Item {
    proto::Item { item_id: id, title, ..Default::default() }
}

async fn write(server: &GrpcServer, items: Vec<proto::Item>) {
    let request = proto::UpsertItemsRequest { items, update_time: None };
    CatalogServiceClient::new(server.channel.clone()).upsert_items(request).await.unwrap();
}

/// Writes items with the word laptop, of which the notebooks have the longest titles and so the lowest scores.
async fn write_laptops(server: &GrpcServer) {
    let laptops = (0..LAPTOPS).map(|n| proto::Item {
        categories: vec!["Sleeve".to_owned()],
        ..item(format!("sleeve-{n}"), format!("Laptop sleeve {n}"))
    });
    let notebooks = (0..NOTEBOOKS).map(|n| proto::Item {
        categories: vec!["Notebook".to_owned()],
        ..item(format!("notebook-{n}"), format!("Aluminium computer with metal lid, long battery life, laptop {n}"))
    });
    // A category page has the latest items first.
    write(server, notebooks.chain(laptops).collect()).await;
}

fn boosted(query: &str, boosts: Vec<proto::Boost>) -> proto::SearchRequest {
    let options = Some(proto::RankingOptions { boosts, ..Default::default() });
    proto::SearchRequest { viewer: viewer(), query: query.to_owned(), page_size: 200, options, ..Default::default() }
}

fn boost(factor: f64) -> proto::Boost {
    proto::Boost { filter: "category = \"Notebook\"".to_owned(), factor, filter_expression: None }
}

/// Returns the number of notebooks before the first sleeve. Other items, which a category page has too, do not count.
fn notebooks_first(answer: &proto::SearchResponse) -> usize {
    let ids = answer.results.iter().map(|result| result.item_id.as_str());
    ids.take_while(|id| !id.starts_with("sleeve-")).filter(|id| id.starts_with("notebook-")).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_boost_reaches_all_matches_of_its_filter() {
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    write_laptops(&server).await;
    let search = async |request: proto::SearchRequest| ranking(&server).search(request).await.unwrap().into_inner();
    for (query, factor) in [("laptop", 10.0), ("", 100.0)] {
        let plain = search(boosted(query, Vec::new())).await;
        assert!(notebooks_first(&plain) < NOTEBOOKS, "{query}");
        let answer = search(boosted(query, vec![boost(factor)])).await;
        assert_eq!(answer.total_size, plain.total_size);
        let demoted = search(boosted(query, vec![boost(0.1)])).await;
        // Without a query the probabilities of this bundle differ by more than any factor.
        if !query.is_empty() {
            assert_eq!(notebooks_first(&answer), NOTEBOOKS, "{query}");
            assert_eq!(notebooks_first(&demoted), 0, "{query}");
        }
        // All results are found once, page by page.
        let mut ids: Vec<String> = Vec::new();
        let mut request = boosted(query, vec![boost(factor)]);
        loop {
            let page = search(request.clone()).await;
            ids.extend(page.results.into_iter().map(|result| result.item_id));
            if page.next_page_token.is_empty() {
                break;
            }
            request.page_token = page.next_page_token;
        }
        assert_eq!(ids.len() as i32, plain.total_size, "{query}");
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len() as i32, plain.total_size, "{query}");
    }
    let retrieval = async |boosts: Vec<proto::Boost>| {
        let mut request = boosted("laptop", boosts);
        request.options.as_mut().unwrap().debug_level = DebugLevel::Timings.into();
        let mut nanos: Vec<i32> = Vec::new();
        for _ in 0..50 {
            let debug = search(request.clone()).await.info.unwrap().debug.unwrap();
            let stage = debug.stages.into_iter().find(|stage| stage.stage == "retrieve").unwrap();
            nanos.push(stage.duration.unwrap().nanos);
        }
        nanos.sort_unstable();
        nanos[nanos.len() / 2] / 1000
    };
    let (plain, with_boost) = (retrieval(Vec::new()).await, retrieval(vec![boost(10.0)]).await);
    println!("median of the stage `retrieve`: {plain} µs, with a boost {with_boost} µs");
    // A rule is as a boost of the request.
    let rule = proto::Rule {
        rule_id: "notebooks".to_owned(),
        actions: vec![proto::RuleAction { action: Some(Action::Boost(boost(10.0))) }],
        ..Default::default()
    };
    let create = proto::CreateRuleRequest { rule: Some(rule) };
    RuleServiceClient::new(server.channel.clone()).create_rule(create).await.unwrap();
    assert_eq!(notebooks_first(&search(boosted("laptop", Vec::new())).await), NOTEBOOKS);
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn completions_are_phrases_and_brands_before_whole_titles() {
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let shirts = ["Bramble", "Oak", "Moss", "Fern"].into_iter().enumerate().flat_map(|(n, name)| {
        ["L", "M"].map(|size| proto::Item {
            group_id: format!("style-{n}"),
            brand: "Linnet".to_owned(),
            ..item(format!("shirt-{n}-{size}"), format!("{name} Linen Shirt {size}"))
        })
    });
    let mugs = (0..3).map(|n| item(format!("mug-{n}"), format!("小熊 白色马克杯 {n}50毫升")));
    let runner = (0..4).map(|n| proto::Item {
        group_id: "runner".to_owned(),
        ..item(format!("runner-{n}"), format!("Linen Runner {n}"))
    });
    write(&server, shirts.chain(mugs).chain(runner).collect()).await;
    let complete = async |prefix: &str| {
        let request = proto::SuggestRequest { viewer: viewer(), prefix: prefix.to_owned(), ..Default::default() };
        let answer = ranking(&server).suggest(request).await.unwrap().into_inner();
        answer.completions.into_iter().map(|of| (of.text.clone(), of.source())).collect::<Vec<_>>()
    };
    let found = complete("lin").await;
    let place = |text: &str, source| found.iter().position(|(of, from)| (of.as_str(), *from) == (text, source));
    let (phrase, brand) = (place("linen shirt", CompletionSource::Phrase), place("Linnet", CompletionSource::Brand));
    let first_title = found.iter().position(|(_, source)| *source == CompletionSource::Title).unwrap();
    assert!(phrase.is_some_and(|at| at < first_title) && brand.is_some_and(|at| at < first_title), "{found:?}");
    assert_eq!(place("linen runner", CompletionSource::Phrase), None, "it is one product: {found:?}");
    let titles = found[first_title..].iter().filter(|(text, _)| text.starts_with("Linen Runner"));
    assert!(titles.count() <= 1 && found[first_title..].iter().all(|(_, from)| *from == CompletionSource::Title));
    assert_eq!(complete("马").await[0], ("马克杯".to_owned(), CompletionSource::Phrase));
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_and_identifiers_say_what_they_are() {
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let recommend = async |kind: RecommendType| {
        let request = proto::RecommendRequest { viewer: viewer(), r#type: kind.into(), ..Default::default() };
        ranking(&server).recommend(request).await.unwrap().into_inner()
    };
    for kind in [RecommendType::Similar, RecommendType::BoughtTogether] {
        let answer = recommend(kind).await;
        let codes: Vec<DegradationCode> = answer.info.unwrap().degradations.iter().map(|of| of.code()).collect();
        assert!(answer.results.is_empty() && codes == [DegradationCode::AnchorsMissing], "{codes:?}");
    }
    let old = |n: usize| proto::Item {
        create_time: Some(prost_types::Timestamp { seconds: 1_500_000_000 + n as i64, nanos: 0 }),
        group_id: "ST001".to_owned(),
        ..item(format!("robe-{n}"), "Velvet robe".to_owned())
    };
    write(&server, (0..2).map(old).collect()).await;
    let answer = recommend(RecommendType::NewArrivals).await;
    assert!(answer.results.iter().any(|result| result.item_id.starts_with("robe-")));
    for result in answer.results.iter().filter(|result| result.item_id.starts_with("robe-")) {
        assert!(result.reasons.is_empty(), "an item of 2017 is not new: {:?}", result.reasons);
    }
    let request = proto::SearchRequest { viewer: viewer(), query: "st001".to_owned(), ..Default::default() };
    let found = ranking(&server).search(request).await.unwrap().into_inner();
    assert!(!found.results.is_empty() && found.results.iter().all(|result| result.item_id.starts_with("robe-")));
    let request = proto::GetItemRequest { item_id: "nosuch".to_owned() };
    let status = CatalogServiceClient::new(server.channel.clone()).get_item(request).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::NotFound, "the catalogue has no item `nosuch`"));
    server.end().await;
}
