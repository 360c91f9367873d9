//! Answers that were logged.
use super::wait::wait_until;
use lodestone::server::proto::{self, explain_service_client::ExplainServiceClient};
use std::time::Duration;
use tonic::{Code, Status, transport::Channel};

/// Replays an answer when it is in the log, which a thread of its own writes.
pub(crate) async fn replay(channel: &Channel, attribution_token: &str) -> proto::ReplayAnswerResponse {
    let request = proto::ReplayAnswerRequest { attribution_token: attribution_token.to_owned() };
    let mut replayed = Err(Status::not_found(""));
    wait_until("the answer is logged", Duration::from_secs(60), async || {
        replayed = ExplainServiceClient::new(channel.clone()).replay_answer(request.clone()).await;
        !matches!(&replayed, Err(status) if status.code() == Code::NotFound)
    })
    .await;
    replayed.unwrap().into_inner()
}
