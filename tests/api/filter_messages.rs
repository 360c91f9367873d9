//! Filters that are messages select the same items as those in the filter language, in every request that has one.
use crate::support::{bundles::Shop, grpc::GrpcServer};
use lodestone::server::proto::{
    self, FilterOperator, RecommendType, catalog_service_client::CatalogServiceClient, filter_expression::Kind,
    filter_value, ranking_service_client::RankingServiceClient,
};
use lodestone_rollout::HealthBounds;
use tonic::{Code, Status, transport::Channel};
use tonic_types::StatusExt;

/// The filter as a text or as a message; empty and none in a request without one.
type SentFilter = (String, Option<proto::FilterExpression>);

fn viewer() -> Option<proto::Viewer> {
    Some(proto::Viewer { user_id: "p1".to_owned(), ..Default::default() })
}

fn expression(kind: Kind) -> proto::FilterExpression {
    proto::FilterExpression { kind: Some(kind) }
}

/// `title HAS "red" AND NOT item_id IN ("i0", "i6") AND in_stock`
fn message() -> proto::FilterExpression {
    let text = |text: &str| proto::FilterValue { kind: Some(filter_value::Kind::Text(text.to_owned())) };
    let listed = proto::FilterInList { field: "item_id".to_owned(), values: vec![text("i0"), text("i6")] };
    let in_stock = proto::FilterComparison {
        field: "in_stock".to_owned(),
        operator: FilterOperator::Equal.into(),
        value: Some(proto::FilterValue { kind: Some(filter_value::Kind::Flag(true)) }),
    };
    let expressions = vec![
        expression(Kind::HasWords(proto::FilterHasWords { field: "title".to_owned(), text: "red".to_owned() })),
        expression(Kind::Negated(Box::new(expression(Kind::InList(listed))))),
        expression(Kind::Comparison(in_stock)),
    ];
    expression(Kind::AllOf(proto::FilterExpressions { expressions }))
}

fn ids(results: Vec<proto::Result>) -> Vec<String> {
    results.into_iter().map(|result| result.item_id).collect()
}

async fn search(channel: Channel, (filter, filter_expression): SentFilter) -> Result<Vec<String>, Status> {
    let request = proto::SearchRequest { viewer: viewer(), filter, filter_expression, ..Default::default() };
    Ok(ids(RankingServiceClient::new(channel).search(request).await?.into_inner().results))
}

async fn boost(channel: Channel, (filter, filter_expression): SentFilter) -> Result<Vec<String>, Status> {
    let boosts = vec![proto::Boost { filter, filter_expression, factor: 50.0 }];
    let options = Some(proto::RankingOptions { boosts, ..Default::default() });
    let request = proto::SearchRequest { viewer: viewer(), options, ..Default::default() };
    Ok(ids(RankingServiceClient::new(channel).search(request).await?.into_inner().results))
}

async fn recommend(channel: Channel, (filter, filter_expression): SentFilter) -> Result<Vec<String>, Status> {
    let r#type = RecommendType::ForYou.into();
    let request = proto::RecommendRequest { viewer: viewer(), r#type, filter, filter_expression, ..Default::default() };
    Ok(ids(RankingServiceClient::new(channel).recommend(request).await?.into_inner().results))
}

async fn suggest(channel: Channel, (filter, filter_expression): SentFilter) -> Result<Vec<String>, Status> {
    let request = proto::SuggestRequest {
        viewer: viewer(),
        prefix: "red".to_owned(),
        product_count: 20,
        filter,
        filter_expression,
        ..Default::default()
    };
    Ok(ids(RankingServiceClient::new(channel).suggest(request).await?.into_inner().products))
}

async fn list(channel: Channel, (filter, filter_expression): SentFilter) -> Result<Vec<String>, Status> {
    let request = proto::ListItemsRequest { filter, filter_expression, page_size: 3, ..Default::default() };
    let mut client = CatalogServiceClient::new(channel);
    let first = client.list_items(request.clone()).await?.into_inner();
    let second = proto::ListItemsRequest { page_token: first.next_page_token, ..request };
    let second = client.list_items(second).await?.into_inner();
    Ok(first.items.into_iter().chain(second.items).map(|item| item.item_id).collect())
}

async fn purge(channel: Channel, (filter, filter_expression): SentFilter) -> Result<Vec<String>, Status> {
    let request = proto::PurgeItemsRequest { filter, filter_expression, force: false };
    Ok(CatalogServiceClient::new(channel).purge_items(request).await?.into_inner().item_ids)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_select_the_same_items_as_texts() {
    let shop = Shop::new();
    let server = GrpcServer::start(shop.open(HealthBounds::default())).await;
    let text = || ("title HAS \"red\" AND NOT item_id IN (\"i0\", \"i6\") AND in_stock".to_owned(), None);
    let both = || (text().0, Some(message()));
    let channel = || server.channel.clone();
    macro_rules! check {
        ($call:ident, $field:literal) => {
            let of_text = $call(channel(), text()).await.unwrap();
            assert!(of_text.len() > 3, "{of_text:?}");
            assert_eq!($call(channel(), (String::new(), Some(message()))).await.unwrap(), of_text);
            let status = $call(channel(), both()).await.unwrap_err();
            let details = status.get_error_details();
            assert_eq!(status.code(), Code::InvalidArgument);
            assert_eq!(details.bad_request().unwrap().field_violations[0].field, $field);
        };
    }
    check!(search, "filter_expression");
    check!(boost, "options.boosts[0].filter_expression");
    check!(recommend, "filter_expression");
    check!(suggest, "filter_expression");
    check!(list, "filter_expression");
    check!(purge, "filter_expression");
    server.end().await;
}
