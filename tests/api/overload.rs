//! Priorities, and what becomes of more calls than the server can answer in time. Through real connections.
use crate::support::{
    bundles::Shop,
    server::{Server, TIME_MAX},
};
use futures_util::future::join_all;
use lodestone::server::{
    PRIORITY_METADATA, ServerConfig,
    proto::{self, ranking_service_client::RankingServiceClient},
};
use lodestone_rollout::HealthBounds;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tonic::{Code, Request, Status, transport::Channel};
use tonic_types::StatusExt;

/// Calls that are sent at once; a connection takes 256.
const BURST: usize = 250;
const CONNECTIONS: usize = 4;

async fn search(channel: Channel, priority: &str, timeout: Duration) -> Result<usize, Status> {
    let viewer = Some(proto::Viewer { visitor_id: "browser".to_owned(), ..Default::default() });
    let mut request = Request::new(proto::SearchRequest { viewer, query: "mug".to_owned(), ..Default::default() });
    request.set_timeout(timeout);
    if !priority.is_empty() {
        request.metadata_mut().insert(PRIORITY_METADATA, priority.parse().unwrap());
    }
    let response = RankingServiceClient::new(channel).search(request).await?;
    Ok(response.into_inner().results.len())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_priority_is_interactive_or_batch() {
    let shop = Shop::new();
    let engine = Arc::new(shop.open(HealthBounds::default()));
    let server = Server::start(&engine, ServerConfig::default()).await;
    for priority in ["", "interactive", "batch"] {
        assert!(search(server.connect(), priority, TIME_MAX).await.unwrap() > 0, "{priority}");
    }
    let status = search(server.connect(), "urgent", TIME_MAX).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    let details = status.get_error_details();
    let violation = &details.bad_request().unwrap().field_violations[0];
    assert_eq!(violation.field, PRIORITY_METADATA);
    assert!(violation.description.contains("`urgent`") && violation.description.contains("batch"), "{violation:?}");
    server.end().await;
}

/// Bursts of calls whose deadlines leave the workers no time to answer all of them.
#[tokio::test(flavor = "multi_thread")]
async fn every_call_beyond_the_capacity_is_refused_with_a_delay_or_ends_at_its_deadline() {
    let shop = Shop::new();
    let engine = Arc::new(shop.open(HealthBounds::default()));
    let server = Server::start(&engine, ServerConfig::default()).await;
    let channels: Vec<Channel> = (0..CONNECTIONS).map(|_| server.connect()).collect();
    let begun = Instant::now();
    let (mut answered, mut refused) = (0, 0);
    // The faster the machine, the more bursts it takes.
    while refused == 0 || answered == 0 {
        assert!(begun.elapsed() < TIME_MAX, "{answered} calls were answered and {refused} refused");
        let call = |number: usize| search(channels[number % CONNECTIONS].clone(), "", Duration::from_millis(12));
        for outcome in join_all((0..CONNECTIONS * BURST).map(call)).await {
            match outcome {
                Ok(count) => answered += usize::from(count > 0),
                Err(status) if status.code() == Code::ResourceExhausted => {
                    let details = status.get_error_details();
                    assert_eq!(details.error_info().unwrap().reason, "OVERLOADED");
                    let delay = details.retry_info().unwrap().retry_delay.unwrap();
                    assert!((Duration::from_millis(100)..=Duration::from_secs(2)).contains(&delay), "{delay:?}");
                    refused += 1;
                }
                // The client's library ends a call at its deadline as CANCELLED.
                Err(status) => {
                    assert!(matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled), "{status:?}");
                }
            }
        }
    }
    let metrics = engine.metrics_text();
    let line = "lodestone_requests_total{rpc=\"Search\",code=\"RESOURCE_EXHAUSTED\"} ";
    let counted = metrics.lines().find_map(|found| found.strip_prefix(line)).unwrap();
    assert!(counted.parse::<usize>().unwrap() >= refused, "{metrics}");
    // Afterwards everything is as before.
    assert!(search(server.connect(), "", TIME_MAX).await.unwrap() > 0);
    server.end().await;
}
