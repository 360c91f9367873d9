//! The services: check, ask the engine, answer.
use super::{
    ServerConfig,
    convert::{self, Envelope},
    guard::guarded,
    proto::{self, catalog_service_server::CatalogService, ranking_service_server::RankingService},
    status,
    violations::{Violation, Violations},
};
use lodestone_core::{ids::ItemId, units::UnixMillis};
use lodestone_engine::{Engine, EngineError, WriteOutcome};
use lodestone_pipeline::Answer;
use lodestone_telemetry::Metrics;
use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};
use tonic::{Request, Response, Status};

const ITEMS_MAX: usize = 1000;
/// Our deadline is this much before the caller's, so that the caller gets our status and not its own library's.
const DEADLINE_MARGIN: Duration = Duration::from_millis(5);

/// All services over one engine.
#[derive(Clone)]
pub(super) struct Services {
    pub(super) engine: Arc<Engine>,
    pub(super) config: ServerConfig,
    pub(super) metrics: Metrics,
}

/// What a request brings besides its message.
pub(super) struct Asked {
    pub deadline: Instant,
    request_id: String,
    validate_only: bool,
}

impl Services {
    pub(super) fn new(engine: Arc<Engine>, config: ServerConfig) -> Self {
        let metrics = engine.metrics().clone();
        Self { engine, config, metrics }
    }

    pub(super) fn asked<T>(&self, request: &Request<T>, options: Option<&proto::RankingOptions>) -> Asked {
        let time = timeout_of(request).unwrap_or(self.config.deadline_default).min(self.config.deadline_max);
        let request_id = match options.map(|options| options.request_id.as_str()) {
            None | Some("") => uuid::Uuid::now_v7().to_string(),
            Some(id) => id.to_owned(),
        };
        Asked {
            deadline: Instant::now() + time.saturating_sub(DEADLINE_MARGIN),
            request_id,
            validate_only: options.is_some_and(|options| options.validate_only),
        }
    }
}

/// The time that the caller gives; none where it does not say.
pub(super) fn timeout_of<T>(request: &Request<T>) -> Option<Duration> {
    request.metadata().get("grpc-timeout").and_then(|value| value.to_str().ok()).and_then(timeout)
}

/// Reads `grpc-timeout`: up to 8 digits and a unit.
fn timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let amount: u64 = digits.parse().ok().filter(|_| digits.len() <= 8)?;
    Some(match unit {
        "H" => Duration::from_secs(amount * 3600),
        "M" => Duration::from_secs(amount * 60),
        "S" => Duration::from_secs(amount),
        "m" => Duration::from_millis(amount),
        "u" => Duration::from_micros(amount),
        "n" => Duration::from_nanos(amount),
        _ => return None,
    })
}

/// Refuses a request with violations; otherwise asks, unless only a check was wanted.
async fn answered(
    violations: Violations,
    asked: Asked,
    check: Result<(), EngineError>,
    ask: impl Future<Output = Result<Answer, EngineError>>,
) -> Result<(Answer, Envelope), Status> {
    if !violations.is_empty() {
        return Err(status::invalid(violations.found));
    }
    check.map_err(status::of)?;
    let answer = if asked.validate_only { Answer::default() } else { ask.await.map_err(status::of)? };
    Ok((answer, Envelope { request_id: asked.request_id, notices: violations.notices }))
}

#[tonic::async_trait]
impl RankingService for Services {
    async fn search(&self, request: Request<proto::SearchRequest>) -> Result<Response<proto::SearchResponse>, Status> {
        let answer = async {
            let asked = self.asked(&request, request.get_ref().options.as_ref());
            let mut violations = Violations::default();
            let parsed = convert::search(&mut violations, request.into_inner(), UnixMillis::now());
            let check = self.engine.check_serving_config(&parsed.options.serving_config);
            let ask = self.engine.search(parsed, asked.deadline);
            let (answer, envelope) = answered(violations, asked, check, ask).await?;
            Ok(Response::new(convert::search_response(answer, envelope)))
        };
        guarded(&self.metrics, "Search", answer).await
    }

    async fn recommend(
        &self,
        request: Request<proto::RecommendRequest>,
    ) -> Result<Response<proto::RecommendResponse>, Status> {
        let answer = async {
            let asked = self.asked(&request, request.get_ref().options.as_ref());
            let mut violations = Violations::default();
            let parsed = convert::recommend(&mut violations, request.into_inner(), UnixMillis::now());
            let check = self.engine.check_serving_config(&parsed.options.serving_config);
            let ask = self.engine.recommend(parsed, asked.deadline);
            let (answer, envelope) = answered(violations, asked, check, ask).await?;
            Ok(Response::new(convert::recommend_response(answer, envelope)))
        };
        guarded(&self.metrics, "Recommend", answer).await
    }

    async fn rank(&self, request: Request<proto::RankRequest>) -> Result<Response<proto::RankResponse>, Status> {
        let answer = async {
            let asked = self.asked(&request, request.get_ref().options.as_ref());
            let mut violations = Violations::default();
            let parsed = convert::rank(&mut violations, request.into_inner(), UnixMillis::now());
            let check = self.engine.check_serving_config(&parsed.options.serving_config);
            let ask = self.engine.rank(parsed, asked.deadline);
            let (answer, envelope) = answered(violations, asked, check, ask).await?;
            Ok(Response::new(convert::rank_response(answer, envelope)))
        };
        guarded(&self.metrics, "Rank", answer).await
    }

    async fn suggest(
        &self,
        request: Request<proto::SuggestRequest>,
    ) -> Result<Response<proto::SuggestResponse>, Status> {
        let answer = async {
            let asked = self.asked(&request, None);
            let mut violations = Violations::default();
            let parsed = convert::suggest(&mut violations, request.into_inner());
            if !violations.is_empty() {
                return Err(status::invalid(violations.found));
            }
            let answer = self.engine.suggest(parsed, asked.deadline).await.map_err(status::of)?;
            let envelope = Envelope { request_id: asked.request_id, notices: violations.notices };
            Ok(Response::new(convert::suggest_response(answer, envelope)))
        };
        guarded(&self.metrics, "Suggest", answer).await
    }
}

/// One violation about the whole list.
pub(super) fn list_size(field: &str, count: usize, limit: usize) -> Result<(), Status> {
    if (1..=limit).contains(&count) {
        return Ok(());
    }
    let description = format!("has {count} entries; 1 to {limit} are taken");
    Err(status::invalid(vec![Violation { field: field.to_owned(), description }]))
}

pub(super) fn to_proto(violations: Vec<Violation>) -> Vec<proto::FieldViolation> {
    violations
        .into_iter()
        .map(|violation| proto::FieldViolation { field: violation.field, description: violation.description })
        .collect()
}

fn item_status(outcome: WriteOutcome) -> i32 {
    match outcome {
        WriteOutcome::Replaced => proto::ItemStatus::Replaced,
        WriteOutcome::Deleted => proto::ItemStatus::Deleted,
        WriteOutcome::Unknown => proto::ItemStatus::Unknown,
        WriteOutcome::Created | WriteOutcome::Accepted | WriteOutcome::Duplicate => proto::ItemStatus::Created,
    }
    .into()
}

/// Results of a batch: the rejected ones are known, the others get their outcomes in order.
fn item_results(
    mut results: Vec<proto::ItemResult>,
    places: Vec<usize>,
    outcomes: Vec<WriteOutcome>,
) -> Vec<proto::ItemResult> {
    for (place, outcome) in places.into_iter().zip(outcomes) {
        results[place].status = item_status(outcome);
    }
    results
}

fn rejected(id: &str, violations: Violations) -> proto::ItemResult {
    proto::ItemResult {
        status: proto::ItemStatus::Rejected.into(),
        item_id: id.to_owned(),
        violations: to_proto(violations.found),
    }
}

#[tonic::async_trait]
impl CatalogService for Services {
    async fn upsert_items(
        &self,
        request: Request<proto::UpsertItemsRequest>,
    ) -> Result<Response<proto::UpsertItemsResponse>, Status> {
        let answer = async {
            let sent = request.into_inner().items;
            list_size("items", sent.len(), ITEMS_MAX)?;
            let (mut results, mut accepted, mut places) = (Vec::with_capacity(sent.len()), Vec::new(), Vec::new());
            for (index, item) in sent.iter().enumerate() {
                let mut violations = Violations::default();
                let parsed = convert::item(&mut violations, format_args!("items[{index}]"), item, UnixMillis::now());
                if let Some(item) = parsed {
                    accepted.push(item);
                    places.push(index);
                }
                results.push(rejected(&item.item_id, violations));
            }
            self.metrics.wrote("rejected", (results.len() - accepted.len()) as u64);
            let (outcomes, session_version) = self.engine.upsert_items(accepted).await.map_err(status::of)?;
            let results = item_results(results, places, outcomes);
            Ok(Response::new(proto::UpsertItemsResponse { results, session_version }))
        };
        guarded(&self.metrics, "UpsertItems", answer).await
    }

    async fn delete_items(
        &self,
        request: Request<proto::DeleteItemsRequest>,
    ) -> Result<Response<proto::DeleteItemsResponse>, Status> {
        let answer = async {
            let sent = request.into_inner().item_ids;
            list_size("item_ids", sent.len(), ITEMS_MAX)?;
            let (mut results, mut accepted, mut places) = (Vec::with_capacity(sent.len()), Vec::new(), Vec::new());
            for (index, id) in sent.iter().enumerate() {
                let mut violations = Violations::default();
                if let Some(id) = violations.keep(format!("item_ids[{index}]"), ItemId::parse(id)) {
                    accepted.push(id);
                    places.push(index);
                }
                results.push(rejected(id, violations));
            }
            self.metrics.wrote("rejected", (results.len() - accepted.len()) as u64);
            let (outcomes, session_version) = self.engine.delete_items(accepted).await.map_err(status::of)?;
            let results = item_results(results, places, outcomes);
            Ok(Response::new(proto::DeleteItemsResponse { results, session_version }))
        };
        guarded(&self.metrics, "DeleteItems", answer).await
    }

    async fn get_item(
        &self,
        request: Request<proto::GetItemRequest>,
    ) -> Result<Response<proto::GetItemResponse>, Status> {
        let answer = async {
            let text = request.into_inner().item_id;
            let mut violations = Violations::default();
            let Some(id) = violations.keep("item_id", ItemId::parse(&text)) else {
                return Err(status::invalid(violations.found));
            };
            let item = self.engine.get_item(&id).ok_or_else(|| status::item_not_found(&text))?;
            Ok(Response::new(proto::GetItemResponse { item: Some(convert::item_to_proto(&item)) }))
        };
        guarded(&self.metrics, "GetItem", answer).await
    }
}

#[cfg(test)]
mod tests {
    use super::timeout;
    use std::time::Duration;

    #[test]
    fn grpc_timeouts_are_read() {
        assert_eq!(timeout("250m"), Some(Duration::from_millis(250)));
        assert_eq!(timeout("3S"), Some(Duration::from_secs(3)));
        for wrong in ["", "m", "12", "123456789S", "-1S", "5秒"] {
            assert_eq!(timeout(wrong), None, "{wrong}");
        }
    }
}
