//! Attributes that are times and locations, the report of the kinds of attributes, and declared attributes, over gRPC.
use crate::support::{
    bundles::Shop,
    grpc::GrpcServer,
    status::{reason, violations},
};
use lodestone::server::proto::{
    self, AttributeValue, attribute_value::Kind, catalog_service_client::CatalogServiceClient,
    ranking_service_client::RankingServiceClient,
};
use lodestone_rollout::HealthBounds;
use tonic::{Code, Status, transport::Channel};

fn item(id: &str, attributes: Vec<(&str, Kind)>) -> proto::Item {
    let value = |(name, kind): (&str, Kind)| (name.to_owned(), AttributeValue { kind: Some(kind) });
    proto::Item {
        item_id: id.to_owned(),
        title: format!("garden gnome {id}"),
        categories: vec!["Gnomes".to_owned()],
        attributes: attributes.into_iter().map(value).collect(),
        ..Default::default()
    }
}

fn time(seconds: i64) -> Kind {
    Kind::Time(prost_types::Timestamp { seconds, nanos: 0 })
}

fn location(latitude: f64, longitude: f64) -> Kind {
    Kind::GeoPoint(proto::GeoPoint { latitude, longitude })
}

async fn upsert(channel: &Channel, items: Vec<proto::Item>) -> Vec<proto::ItemResult> {
    let request = proto::UpsertItemsRequest { items, update_time: None };
    CatalogServiceClient::new(channel.clone()).upsert_items(request).await.unwrap().into_inner().results
}

async fn ids(channel: &Channel, filter: &str, order_by: &str) -> Result<String, Status> {
    let request = proto::SearchRequest {
        viewer: Some(proto::Viewer { visitor_id: "v".to_owned(), ..Default::default() }),
        filter: format!("category = \"Gnomes\" AND {filter}"),
        options: Some(proto::RankingOptions { order_by: order_by.to_owned(), ..Default::default() }),
        ..Default::default()
    };
    let answer = RankingServiceClient::new(channel.clone()).search(request).await?.into_inner();
    Ok(answer.results.into_iter().map(|result| result.item_id).collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn times_and_locations_are_filtered_sorted_and_reported() {
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let channel = &server.channel;
    // 2026-01-01, and locations in Berlin, Potsdam and Sydney.
    const YEAR: i64 = 1_767_225_600;
    let gnomes = vec![
        item("a", vec![("released", time(YEAR)), ("branch", location(52.52, 13.405))]),
        item("b", vec![("released", time(YEAR + 1)), ("branch", location(52.39, 13.065))]),
        item("c", vec![("released", time(YEAR - 1)), ("branch", location(-33.87, 151.21))]),
        item("d", vec![("released", Kind::Text("soon".to_owned())), ("branch", Kind::Number(52.52))]),
        item("e", vec![]),
    ];
    assert!(upsert(channel, gnomes.clone()).await.iter().all(|result| result.violations.is_empty()));
    for (filter, order, expected) in [
        ("attributes.released >= timestamp(\"2026-01-01T00:00:00Z\")", "item_id", "ab"),
        ("attributes.released < timestamp(\"2026-01-01\")", "item_id", "c"),
        ("attributes.released = timestamp(\"2026-01-01T01:00:00+01:00\")", "item_id", "a"),
        ("attributes.released != timestamp(\"2026-01-01\")", "item_id", "bc"),
        ("NOT attributes.released < timestamp(\"2026-01-01\")", "item_id", "abde"),
        ("attributes.released = \"soon\"", "item_id", "d"),
        ("distance(attributes.branch, 52.5, 13.4) < 10 km", "item_id", "a"),
        ("distance(attributes.branch, 52.5, 13.4) <= 2300 m", "item_id", "a"),
        ("distance(attributes.branch, 52.5, 13.4) < 2 km", "item_id", ""),
        ("distance(attributes.branch, 52.5, 13.4) > 10 km", "item_id", "bc"),
        ("in_stock", "distance(attributes.branch, 52.4, 13.0), item_id", "bacde"),
        ("in_stock", "distance(attributes.branch, 52.4, 13.0) desc, item_id desc", "cabed"),
        ("item_id IN (\"a\", \"b\", \"c\")", "attributes.released desc", "bac"),
    ] {
        assert_eq!(ids(channel, filter, order).await.unwrap(), expected, "{filter}; {order}");
    }
    for filter in [
        "distance(attributes.branch, 95, 0) < 1 km",
        "distance(attributes.branch, 52, 13) < 1",
        "attributes.released < timestamp(\"soon\")",
    ] {
        assert_eq!(ids(channel, filter, "").await.unwrap_err().code(), Code::InvalidArgument, "{filter}");
    }
    let mut catalog = CatalogServiceClient::new(channel.clone());
    let stored = catalog.get_item(proto::GetItemRequest { item_id: "b".to_owned() }).await.unwrap().into_inner();
    assert_eq!(stored.item.unwrap().attributes, gnomes[1].attributes);
    let listed = catalog.list_attributes(proto::ListAttributesRequest::default()).await.unwrap().into_inner();
    let kinds = |kinds: &proto::AttributeKinds| {
        let kind = |kind: &proto::AttributeKindCount| (kind.kind(), kind.item_count, kind.example_item_id.clone());
        (kinds.name.clone(), kinds.kinds.iter().map(kind).collect::<Vec<_>>())
    };
    use proto::AttributeKind::{GeoPoint, Number, Text, Time};
    let of = |kind, count, example: &str| (kind, count, example.to_owned());
    assert_eq!(
        listed.attributes.iter().map(kinds).collect::<Vec<_>>(),
        [
            ("branch".to_owned(), vec![of(GeoPoint, 3, "a"), of(Number, 1, "d")]),
            ("released".to_owned(), vec![of(Time, 3, "a"), of(Text, 1, "d")]),
        ]
    );
    let bad = upsert(
        channel,
        vec![
            item("x", vec![("branch", location(90.5, 0.0))]),
            item("y", vec![("branch", location(0.0, f64::NAN))]),
            item("z", vec![("released", time(i64::MAX))]),
        ],
    )
    .await;
    let fields: Vec<&str> = bad.iter().flat_map(|result| &result.violations).map(|found| &*found.field).collect();
    let expected = ["items[0].attributes[branch]", "items[1].attributes[branch]", "items[2].attributes[released]"];
    assert_eq!(fields, expected);
    server.end().await;
}

fn text(text: &str) -> Kind {
    Kind::Text(text.to_owned())
}

fn declaration(name: &str, kind: proto::AttributeKind) -> proto::AttributeDeclaration {
    proto::AttributeDeclaration { name: name.to_owned(), kind: kind.into(), ..Default::default() }
}

async fn declare(
    channel: &Channel,
    declaration: proto::AttributeDeclaration,
    validate_only: bool,
) -> Result<proto::DeclareAttributeResponse, Status> {
    let request = proto::DeclareAttributeRequest { declaration: Some(declaration), validate_only };
    Ok(CatalogServiceClient::new(channel.clone()).declare_attribute(request).await?.into_inner())
}

async fn list_page(
    channel: &Channel,
    page_size: i32,
    page_token: &str,
) -> Result<proto::ListAttributesResponse, Status> {
    let request = proto::ListAttributesRequest { page_size, page_token: page_token.to_owned() };
    Ok(CatalogServiceClient::new(channel.clone()).list_attributes(request).await?.into_inner())
}

async fn listed(channel: &Channel, name: &str) -> Option<proto::AttributeKinds> {
    list_page(channel, 0, "").await.unwrap().attributes.into_iter().find(|attribute| attribute.name == name)
}

/// The ids of the items that have all words of a query.
async fn found(channel: &Channel, query: &str) -> Vec<String> {
    let request = proto::SearchRequest {
        viewer: Some(proto::Viewer { visitor_id: "v".to_owned(), ..Default::default() }),
        query: query.to_owned(),
        filter: "category = \"Gnomes\"".to_owned(),
        ..Default::default()
    };
    let answer = RankingServiceClient::new(channel.clone()).search(request).await.unwrap().into_inner();
    let is_match =
        |result: &proto::Result| result.reasons.iter().any(|reason| reason.code() == proto::ReasonCode::MatchesWords);
    let mut ids: Vec<String> =
        answer.results.iter().filter(|result| is_match(result)).map(|result| result.item_id.clone()).collect();
    ids.sort();
    ids
}

async fn facets(channel: &Channel, specs: &[&str], dynamic: i32) -> Result<Vec<String>, Status> {
    let spec = |field: &&str| proto::FacetSpec { field: (*field).to_owned(), ..Default::default() };
    let request = proto::SearchRequest {
        viewer: Some(proto::Viewer { visitor_id: "v".to_owned(), ..Default::default() }),
        filter: "category = \"Gnomes\"".to_owned(),
        facet_specs: specs.iter().map(spec).collect(),
        dynamic_facet_count: dynamic,
        ..Default::default()
    };
    let answer = RankingServiceClient::new(channel.clone()).search(request).await?.into_inner();
    Ok(answer.facets.into_iter().map(|facet| facet.field).collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attributes_are_listed_in_pages() {
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let channel = &server.channel;
    let names: Vec<String> = (0..1100).map(|n| format!("size_{n:04}")).collect();
    // An item has at most 100 attributes.
    let items = names.chunks(100).enumerate().map(|(n, names)| {
        item(&format!("g{n}"), names.iter().map(|name| (name.as_str(), Kind::Number(1.0))).collect())
    });
    assert!(upsert(channel, items.collect()).await.iter().all(|result| result.violations.is_empty()));
    declare(channel, declaration("size_0999_declared", proto::AttributeKind::Number), false).await.unwrap();
    let mut expected = names.clone();
    expected.insert(1000, "size_0999_declared".to_owned());

    for (page_size, per_page) in [(0, 100), (7, 7), (1000, 1000), (5000, 1000)] {
        let (mut found, mut token) = (Vec::new(), String::new());
        loop {
            let page = list_page(channel, page_size, &token).await.unwrap();
            assert_eq!(page.total_size, 1101);
            let replaced = proto::Notice {
                field: "page_size".to_owned(),
                description: "5000 is above the limit; 1000 was used".to_owned(),
            };
            assert_eq!(page.notices, (page_size == 5000).then_some(replaced).into_iter().collect::<Vec<_>>());
            let is_last = page.next_page_token.is_empty();
            assert!(is_last || page.attributes.len() == per_page, "{}", page.attributes.len());
            found.extend(page.attributes.into_iter().map(|attribute| attribute.name));
            token = page.next_page_token;
            if is_last {
                break;
            }
        }
        assert_eq!(found, expected, "pages of {page_size}");
    }
    // A page whose last attribute is the last of all has no next page.
    let token = list_page(channel, 1000, "").await.unwrap().next_page_token;
    let last = list_page(channel, 101, &token).await.unwrap();
    assert_eq!((last.attributes.len(), &*last.next_page_token), (101, ""));

    // An attribute before the page that no item has any more moves no other attribute.
    let first = list_page(channel, 10, "").await.unwrap();
    upsert(channel, vec![item("g0", vec![("size_0050", Kind::Number(1.0))])]).await;
    let second = list_page(channel, 2, &first.next_page_token).await.unwrap();
    let second_names: Vec<&str> = second.attributes.iter().map(|attribute| &*attribute.name).collect();
    assert_eq!((second_names, second.total_size), (vec!["size_0050", "size_0100"], 1101 - 99));

    let refused = list_page(channel, -1, "").await.unwrap_err();
    assert_eq!(violations(&refused)[0].0, "page_size");
    // Tokens of nobody and of another list.
    let listed = proto::ListItemsRequest { page_size: 1, ..Default::default() };
    let items = CatalogServiceClient::new(channel.clone()).list_items(listed).await.unwrap().into_inner();
    assert!(!items.next_page_token.is_empty());
    for token in ["token", &items.next_page_token] {
        let refused = list_page(channel, 10, token).await.unwrap_err();
        assert_eq!(reason(&refused), (Code::InvalidArgument, "PAGE_TOKEN_INVALID".to_owned()));
    }
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attribute_that_no_item_has_is_named_in_a_notice() {
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let channel = &server.channel;
    upsert(
        channel,
        vec![item("a", vec![("glaze_color", text("celadon")), ("weight", Kind::Number(2.0))]), item("b", vec![])],
    )
    .await;
    let notices = |info: Option<proto::AnswerInfo>| -> Vec<(String, String)> {
        info.unwrap().notices.into_iter().map(|notice| (notice.field, notice.description)).collect()
    };
    let unknown = |field: &str, name: &str, nearest: &str| {
        let nearest = if nearest.is_empty() { String::new() } else { format!("; the nearest name is `{nearest}`") };
        (field.to_owned(), format!("no item has the attribute `{name}`, and it is not declared{nearest}"))
    };
    let viewer = Some(proto::Viewer { visitor_id: "v".to_owned(), ..Default::default() });
    let search = proto::SearchRequest {
        viewer: viewer.clone(),
        filter: "attributes.glaze_colour = \"celadon\" OR attributes.weight > 1".to_owned(),
        facet_specs: ["attributes.glaze_color", "attributes.depth"]
            .map(|field| proto::FacetSpec { field: field.to_owned(), ..Default::default() })
            .into(),
        options: Some(proto::RankingOptions {
            order_by: "attributes.Weigth desc, distance(attributes.branch, 52.5, 13.4), price".to_owned(),
            boosts: vec![proto::Boost {
                filter: "brand = \"Acme\" AND NOT attributes.eco".to_owned(),
                factor: 2.0,
                ..Default::default()
            }],
            ..Default::default()
        }),
        ..Default::default()
    };
    let mut ranking = RankingServiceClient::new(channel.clone());
    let of_attributes = |info| {
        let mut found = notices(info);
        found.retain(|(_, description)| description.contains("attribute"));
        found
    };
    let expected = [
        unknown("options.order_by", "Weigth", "weight"),
        unknown("options.order_by", "branch", ""),
        unknown("facet_specs[1].field", "depth", ""),
        unknown("options.boosts[0].filter", "eco", ""),
        unknown("filter", "glaze_colour", "glaze_color"),
    ];
    let answer = ranking.search(search.clone()).await.unwrap().into_inner();
    assert_eq!(answer.results.len(), 1);
    assert_eq!(of_attributes(answer.info), expected);
    // A check of a request says the same.
    let mut checked = search.clone();
    checked.options.as_mut().unwrap().validate_only = true;
    assert_eq!(of_attributes(ranking.search(checked).await.unwrap().into_inner().info), expected);

    let is_set = proto::FilterComparison {
        field: "attributes.glazecolor".to_owned(),
        operator: proto::FilterOperator::Equal.into(),
        value: Some(proto::FilterValue { kind: Some(proto::filter_value::Kind::Flag(true)) }),
    };
    let is_set = proto::FilterExpression { kind: Some(proto::filter_expression::Kind::Comparison(is_set)) };
    let recommended = proto::RecommendRequest {
        viewer: viewer.clone(),
        r#type: proto::RecommendType::ForYou.into(),
        filter_expression: Some(is_set),
        ..Default::default()
    };
    let answer = ranking.recommend(recommended).await.unwrap().into_inner();
    assert_eq!(notices(answer.info), [unknown("filter_expression", "glazecolor", "glaze_color")]);
    let suggested = proto::SuggestRequest {
        viewer: viewer.clone(),
        prefix: "g".to_owned(),
        filter: "attributes.eco".to_owned(),
        ..Default::default()
    };
    let answer = ranking.suggest(suggested.clone()).await.unwrap().into_inner();
    assert_eq!(notices(answer.info), [unknown("filter", "eco", "")]);
    // Rank has items of its own, whose attributes are known.
    let guest = item("guest", vec![("eco", Kind::Flag(true))]);
    let boost = |name: &str| proto::Boost { filter: format!("attributes.{name}"), factor: 2.0, ..Default::default() };
    let ranked = proto::RankRequest {
        viewer,
        candidates: vec![
            proto::RankCandidate { item_id: "a".to_owned(), ..Default::default() },
            proto::RankCandidate { item_id: "guest".to_owned(), item: Some(guest), ..Default::default() },
        ],
        options: Some(proto::RankingOptions { boosts: vec![boost("eco"), boost("ecco")], ..Default::default() }),
        ..Default::default()
    };
    let answer = ranking.rank(ranked).await.unwrap().into_inner();
    assert_eq!(notices(answer.info), [unknown("options.boosts[1].filter", "ecco", "")]);

    // A declaration makes an attribute known, and so does an item; the deletion of the last item with it does not.
    declare(channel, declaration("eco", proto::AttributeKind::Flag), false).await.unwrap();
    assert_eq!(notices(ranking.suggest(suggested).await.unwrap().into_inner().info), []);
    let by = |filter: &str| proto::SearchRequest {
        filter: filter.to_owned(),
        options: None,
        facet_specs: vec![],
        ..search.clone()
    };
    upsert(channel, vec![item("c", vec![("depth", Kind::Number(1.0))])]).await;
    let by_depth = by("attributes.depth > 0");
    assert_eq!(notices(ranking.search(by_depth.clone()).await.unwrap().into_inner().info), []);
    let delete = proto::DeleteItemsRequest { item_ids: vec!["c".to_owned()] };
    CatalogServiceClient::new(channel.clone()).delete_items(delete).await.unwrap();
    let answer = ranking.search(by_depth).await.unwrap().into_inner();
    assert_eq!(notices(answer.info), [unknown("filter", "depth", "")]);
    server.end().await;
}

/// Fields and descriptions of notices.
fn texts(notices: Vec<proto::Notice>) -> Vec<(String, String)> {
    notices.into_iter().map(|notice| (notice.field, notice.description)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_of_another_kind_than_an_attribute_has_are_named() {
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let channel = &server.channel;
    const YEAR: i64 = 1_767_225_600;
    let attributes = |size: &str| {
        let branch = location(52.5, 13.4);
        vec![("size", text(size)), ("made", time(YEAR)), ("branch", branch), ("weight", Kind::Number(2.0))]
    };
    upsert(channel, vec![item("a", attributes("M")), item("b", attributes("5"))]).await;
    declare(channel, declaration("eco", proto::AttributeKind::Flag), false).await.unwrap();
    let compared = |name: &str, of: &str, value: &str, kind: &str| {
        format!(
            "`attributes.{name}` is of the kind {of}, and is compared with {value}, of the kind {kind}; no item satisfies \
             the comparison"
        )
    };
    let mut ranking = RankingServiceClient::new(channel.clone());
    let mut catalog = CatalogServiceClient::new(channel.clone());
    let search = |filter: &str| proto::SearchRequest {
        viewer: Some(proto::Viewer { visitor_id: "v".to_owned(), ..Default::default() }),
        filter: filter.to_owned(),
        ..Default::default()
    };

    // Searches and lists find none of these, and say why alike.
    let long = format!("attributes.weight = \"{}\"", "x".repeat(200));
    for (filter, expected) in [
        ("attributes.size = 5", vec![compared("size", "text", "5", "number")]),
        ("attributes.size IN (4, 5) AND attributes.size < 6", vec![compared("size", "text", "4", "number")]),
        ("attributes.made = \"soon\"", vec![compared("made", "time", "\"soon\"", "text")]),
        ("attributes.weight HAS \"two\"", vec![compared("weight", "number", "\"two\"", "text")]),
        (long.as_str(), vec![compared("weight", "number", &format!("\"{}…", "x".repeat(39)), "text")]),
        ("attributes.weight", vec![compared("weight", "number", "true", "flag")]),
        (
            "attributes.size > timestamp(\"2026-01-31\") AND attributes.size != true",
            vec![
                compared("size", "text", "timestamp(\"2026-01-31\")", "time"),
                compared("size", "text", "true", "flag"),
            ],
        ),
        ("attributes.eco = 1", vec![compared("eco", "flag", "1", "number")]),
        (
            "distance(attributes.size, 52.5, 13.4) < 1 km",
            vec![
                "`attributes.size` is of the kind text, and distances are those of the kind geo_point; no item has a \
                  distance"
                    .to_owned(),
            ],
        ),
    ] {
        let expected: Vec<_> = expected.into_iter().map(|of| ("filter".to_owned(), of)).collect();
        let answer = ranking.search(search(filter)).await.unwrap().into_inner();
        assert_eq!((answer.total_size, texts(answer.info.unwrap().notices)), (0, expected.clone()), "{filter}");
        let listed = proto::ListItemsRequest { filter: filter.to_owned(), ..Default::default() };
        let listed = catalog.list_items(listed).await.unwrap().into_inner();
        assert_eq!((listed.total_size, texts(listed.notices)), (0, expected.clone()), "{filter}");
        // Within NOT they would select all items, so nothing is deleted by them.
        let purge = proto::PurgeItemsRequest { filter: format!("NOT ({filter})"), force: true, ..Default::default() };
        assert_eq!(violations(&catalog.purge_items(purge).await.unwrap_err()), expected, "{filter}");
    }
    // A value of a kind that an item has, or that is declared, is none of them.
    for filter in ["attributes.size = \"XL\" OR attributes.weight > 9", "attributes.size IN (\"M\")", "attributes.eco"]
    {
        assert_eq!(
            texts(ranking.search(search(filter)).await.unwrap().into_inner().info.unwrap().notices),
            [],
            "{filter}"
        );
    }

    // Orders, facets and boosts.
    let facet = |field: &str| proto::FacetSpec { field: field.to_owned(), ..Default::default() };
    let request = proto::SearchRequest {
        facet_specs: vec![
            facet("attributes.made"),
            proto::FacetSpec { bounds: vec![1.0], ..facet("attributes.size") },
            proto::FacetSpec { value_query: "t".to_owned(), ..facet("attributes.weight") },
        ],
        options: Some(proto::RankingOptions {
            order_by: "attributes.branch, distance(attributes.made, 52.5, 13.4), attributes.size".to_owned(),
            ..Default::default()
        }),
        ..search("attributes.weight = 2")
    };
    let answer = ranking.search(request).await.unwrap().into_inner();
    let expected = [
        (
            "options.order_by",
            "`attributes.branch` is of the kind geo_point, which does not sort; use distance(attributes.branch, …)",
        ),
        (
            "options.order_by",
            "`attributes.made` is of the kind time, and distances are those of the kind geo_point; no item has a distance",
        ),
        (
            "facet_specs[0].field",
            "`attributes.made` is of the kind time, and facets count the kinds text, number and flag",
        ),
        ("facet_specs[1].field", "`attributes.size` is of the kind text, and `bounds` are those of the kind number"),
        (
            "facet_specs[2].field",
            "`attributes.weight` is of the kind number, and `value_query` finds values of the kinds text and flag",
        ),
    ];
    let expected = expected.map(|(field, description)| (field.to_owned(), description.to_owned()));
    assert_eq!((answer.total_size, texts(answer.info.unwrap().notices)), (2, expected.to_vec()));
    // Several texts do not sort; an item with one does.
    let colors = |texts: &[&str]| {
        let texts = texts.iter().map(|text| (*text).to_owned()).collect();
        vec![("colors", Kind::Texts(proto::TextList { texts }))]
    };
    upsert(channel, vec![item("c", colors(&["red", "blue"]))]).await;
    let sorted = || proto::SearchRequest {
        options: Some(proto::RankingOptions { order_by: "attributes.colors".to_owned(), ..Default::default() }),
        ..search("in_stock")
    };
    let expected = "the items have several texts of `attributes.colors`, which do not sort";
    let answer = ranking.search(sorted()).await.unwrap().into_inner();
    assert_eq!(texts(answer.info.unwrap().notices), [("options.order_by".to_owned(), expected.to_owned())]);
    upsert(channel, vec![item("d", vec![("colors", text("green"))])]).await;
    assert_eq!(texts(ranking.search(sorted()).await.unwrap().into_inner().info.unwrap().notices), []);
    let boost = proto::Boost { filter: "attributes.size > 4".to_owned(), factor: 2.0, ..Default::default() };
    let options = Some(proto::RankingOptions { boosts: vec![boost], ..Default::default() });
    let answer = ranking.search(proto::SearchRequest { options, ..search("in_stock") }).await.unwrap().into_inner();
    let expected = ("options.boosts[0].filter".to_owned(), compared("size", "text", "4", "number"));
    assert_eq!(texts(answer.info.unwrap().notices), [expected]);
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_field_that_is_an_attribute_is_reported_with_it() {
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let channel = &server.channel;
    upsert(channel, vec![item("a", vec![("glaze_color", text("red"))])]).await;
    let mut ranking = RankingServiceClient::new(channel.clone());
    let mut catalog = CatalogServiceClient::new(channel.clone());
    let is = |name: &str| format!("; `{name}` is an attribute, use `attributes.{name}`; ");
    let near = "; the nearest attribute is `attributes.glaze_color`; ";
    let check = |status: Status, expected: &[(&str, &str)]| {
        let found = violations(&status);
        let fields: Vec<&str> = found.iter().map(|(field, _)| field.as_str()).collect();
        assert_eq!(fields, expected.iter().map(|(field, _)| *field).collect::<Vec<_>>());
        for ((field, description), (_, part)) in found.iter().zip(expected) {
            assert!(description.contains(part), "{field}: {description}");
        }
    };

    let request = proto::SearchRequest {
        viewer: Some(proto::Viewer { visitor_id: "v".to_owned(), ..Default::default() }),
        filter: "in_stock AND glaze_color = \"red\"".to_owned(),
        facet_specs: vec![proto::FacetSpec { field: "glaze_color".to_owned(), ..Default::default() }],
        options: Some(proto::RankingOptions { order_by: "glazeColour desc, depth".to_owned(), ..Default::default() }),
        ..Default::default()
    };
    let refused = ranking.search(request.clone()).await.unwrap_err();
    check(
        refused,
        &[
            ("filter", &is("glaze_color")),
            ("facet_specs[0].field", &is("glaze_color")),
            ("options.order_by", near),
            ("options.order_by", "`depth` is not a field; use item_id"),
        ],
    );
    let list = proto::ListItemsRequest { filter: "glaze_color = \"red\"".to_owned(), ..Default::default() };
    check(catalog.list_items(list).await.unwrap_err(), &[("filter", &is("glaze_color"))]);
    let purge = proto::PurgeItemsRequest { filter: "glaze_colour = \"red\"".to_owned(), ..Default::default() };
    check(catalog.purge_items(purge).await.unwrap_err(), &[("filter", near)]);
    let suggest = proto::SuggestRequest {
        viewer: request.viewer.clone(),
        prefix: "g".to_owned(),
        filter: "depth = 5".to_owned(),
        ..Default::default()
    };
    let expected = "at character 0: unknown field depth; the fields are item_id";
    check(ranking.suggest(suggest.clone()).await.unwrap_err(), &[("filter", expected)]);

    // A declaration makes it known too, and messages are like texts.
    declare(channel, declaration("depth", proto::AttributeKind::Number), false).await.unwrap();
    check(ranking.suggest(suggest).await.unwrap_err(), &[("filter", &is("depth"))]);
    let words = proto::FilterHasWords { field: "depth".to_owned(), text: "deep".to_owned() };
    let words = proto::FilterExpression { kind: Some(proto::filter_expression::Kind::HasWords(words)) };
    let list = proto::ListItemsRequest { filter_expression: Some(words), ..Default::default() };
    check(catalog.list_items(list).await.unwrap_err(), &[("filter_expression.has_words.field", &is("depth"))]);

    // Rules.
    let action = |action| proto::RuleAction { action: Some(action) };
    let rule = |filter: &str| proto::Rule {
        rule_id: "r".to_owned(),
        actions: vec![
            action(proto::rule_action::Action::Banner("b".to_owned())),
            action(proto::rule_action::Action::Hide(filter.to_owned())),
        ],
        ..Default::default()
    };
    let mut rules = proto::rule_service_client::RuleServiceClient::new(channel.clone());
    let create = |filter: &str| proto::CreateRuleRequest { rule: Some(rule(filter)) };
    let refused = rules.create_rule(create("depth > 5")).await.unwrap_err();
    check(refused, &[("rule.actions[1].hide", &is("depth"))]);
    let preview = proto::PreviewRuleRequest { rule: Some(rule("depth > 5")), answer_count: 1 };
    check(rules.preview_rule(preview).await.unwrap_err(), &[("rule.actions[1].hide", &is("depth"))]);
    let created = rules.create_rule(create("attributes.depth = \"deep\" OR attributes.dept > 1")).await.unwrap();
    let expected = [
        (
            "rule.actions[1].hide",
            "no item has the attribute `dept`, and it is not declared; the nearest name is `depth`",
        ),
        (
            "rule.actions[1].hide",
            "`attributes.depth` is of the kind number, and is compared with \"deep\", of the kind text; no item satisfies \
             the comparison",
        ),
    ];
    let expected = expected.map(|(field, description)| (field.to_owned(), description.to_owned()));
    assert_eq!(texts(created.into_inner().notices), expected);
    let update = proto::UpdateRuleRequest { rule: Some(rule("attributes.depth > 1")) };
    assert_eq!(texts(rules.update_rule(update).await.unwrap().into_inner().notices), []);
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_declared_kind_is_enforced_and_its_texts_are_searched_after_restarts_and_swaps() {
    use proto::AttributeKind::{Number, Text};
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let channel = &server.channel;
    let gnomes = vec![
        item("a", vec![("glaze", text("celadon")), ("weight", Kind::Number(2.0))]),
        item("b", vec![("glaze", text("celadon")), ("weight", Kind::Number(3.0))]),
        item("c", vec![("glaze", text("tenmoku")), ("weight", Kind::Number(4.0))]),
        item("d", vec![("glaze", text("tenmoku")), ("weight", text("heavy"))]),
    ];
    upsert(channel, gnomes).await;
    assert_eq!(found(channel, "celadon").await, Vec::<String>::new(), "its texts are not searched yet");

    // Values of another kind are counted and named, and refuse the declaration.
    let checked = declare(channel, declaration("weight", Number), true).await.unwrap();
    let conflicts = checked.conflicts.unwrap();
    assert_eq!((conflicts.item_count, conflicts.item_ids), (1, vec!["d".to_owned()]));
    assert!(checked.declaration.unwrap().etag.is_empty() && checked.consistency_token.is_empty());
    let refused = declare(channel, declaration("weight", Number), false).await.unwrap_err();
    assert_eq!(reason(&refused), (Code::FailedPrecondition, "ATTRIBUTE_CONFLICT".to_owned()));
    assert!(refused.message().contains("1 items") && refused.message().contains("`d`"), "{refused:?}");
    upsert(channel, vec![item("d", vec![("glaze", text("tenmoku")), ("weight", Kind::Number(5.0))])]).await;
    let declared = declare(channel, declaration("weight", Number), false).await.unwrap().declaration.unwrap();
    assert!(declared.create_time.is_some() && declared.etag.len() == 16, "{declared:?}");

    // Later writes are checked, whichever way they take.
    let heavy = item("e", vec![("weight", text("heavy")), ("glaze", text("celadon"))]);
    let results = upsert(channel, vec![heavy.clone(), item("f", vec![("weight", Kind::Number(1.0))])]).await;
    assert_eq!((results[0].status(), results[1].status()), (proto::ItemStatus::Rejected, proto::ItemStatus::Created));
    let violation = &results[0].violations[0];
    assert_eq!(violation.field, "items[0].attributes[weight]");
    assert!(violation.description.contains("`heavy`") && violation.description.contains("number"), "{violation:?}");
    let update = |paths: &[&str]| proto::ItemUpdate {
        item: Some(proto::Item { item_id: "a".to_owned(), ..heavy.clone() }),
        update_mask: Some(prost_types::FieldMask { paths: paths.iter().map(|path| (*path).to_owned()).collect() }),
        update_time: None,
    };
    let updates = vec![update(&["attributes.weight"]), update(&["attributes"]), update(&["attributes.glaze"])];
    let mut catalog = CatalogServiceClient::new(channel.clone());
    let results = catalog.update_items(proto::UpdateItemsRequest { updates }).await.unwrap().into_inner().results;
    let statuses: Vec<_> = results.iter().map(proto::ItemResult::status).collect();
    use proto::ItemStatus::{Rejected, Unchanged};
    assert_eq!(statuses, [Rejected, Rejected, Unchanged]);
    assert_eq!(results[0].violations[0].field, "updates[0].item.attributes[weight]");
    let part = proto::import_items_request::Part::Items(proto::ImportedItems { items: vec![heavy.clone()] });
    let feed = futures_util::stream::iter([proto::ImportItemsRequest { part: Some(part) }]);
    let mut responses = catalog.import_items(feed).await.unwrap().into_inner();
    let response = responses.message().await.unwrap().unwrap();
    assert_eq!(response.counts.unwrap().rejected_count, 1);

    // Searchable and facetable with the acknowledgement.
    let searchable = proto::AttributeDeclaration { searchable: true, facetable: true, ..declaration("glaze", Text) };
    let glaze = declare(channel, searchable.clone(), false).await.unwrap().declaration.unwrap();
    assert_eq!(found(channel, "celadon").await, ["a", "b"]);
    upsert(channel, vec![item("g", vec![("glaze", text("celadon"))])]).await;
    assert_eq!(found(channel, "celadon").await.len(), 3);
    assert_eq!(facets(channel, &["attributes.glaze"], 0).await.unwrap(), ["attributes.glaze"]);
    let refused = facets(channel, &["brand", "attributes.weight"], 0).await.unwrap_err();
    let [(field, problem)] = &violations(&refused)[..] else { panic!("{refused:?}") };
    assert!(field == "facet_specs[1].field" && problem.contains("attributes.weight"), "{refused:?}");
    let chosen = facets(channel, &[], 9).await.unwrap();
    assert!(chosen.contains(&"attributes.glaze".to_owned()) && !chosen.contains(&"attributes.weight".to_owned()));

    // The etag of another content.
    let stale = proto::AttributeDeclaration { etag: declared.etag.clone(), ..searchable.clone() };
    let aborted = declare(channel, stale, false).await.unwrap_err();
    assert_eq!(reason(&aborted), (Code::Aborted, "ETAG_MISMATCH".to_owned()));
    let wrong = proto::AttributeDeclaration { searchable: true, ..declaration("no name", Number) };
    let fields: Vec<String> =
        violations(&declare(channel, wrong, false).await.unwrap_err()).into_iter().map(|(field, _)| field).collect();
    assert_eq!(fields, ["declaration.name", "declaration.searchable"]);
    server.end().await;

    let server = GrpcServer::start(shop.reopen(HealthBounds::default()).await).await;
    let channel = &server.channel;
    let check = async || {
        assert_eq!(listed(channel, "glaze").await.unwrap().declaration.as_ref(), Some(&glaze));
        assert_eq!(found(channel, "celadon").await.len(), 3);
        assert_eq!(upsert(channel, vec![heavy.clone()]).await[0].status(), Rejected);
    };
    check().await;
    for bundle in ["b", "c", "a"] {
        let soon = std::time::Instant::now() + std::time::Duration::from_secs(60);
        server.engine.rollout().activate(bundle.to_owned(), soon).await.unwrap();
        check().await;
    }

    // Without the declaration everything is as before.
    let delete = async |name: &str, etag: &str| {
        let request = proto::DeleteAttributeDeclarationRequest { name: name.to_owned(), etag: etag.to_owned() };
        CatalogServiceClient::new(channel.clone()).delete_attribute_declaration(request).await
    };
    assert_eq!(reason(&delete("glaze", &declared.etag).await.unwrap_err()).0, Code::Aborted);
    delete("glaze", &glaze.etag).await.unwrap();
    delete("weight", "").await.unwrap();
    let gone = reason(&delete("weight", "").await.unwrap_err());
    assert_eq!(gone, (Code::NotFound, "ATTRIBUTE_NOT_DECLARED".to_owned()));
    assert_eq!(found(channel, "celadon").await, Vec::<String>::new());
    assert_eq!(upsert(channel, vec![heavy]).await[0].status(), proto::ItemStatus::Created);
    server.end().await;
}
