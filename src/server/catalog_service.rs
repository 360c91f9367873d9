//! CatalogService: upserts, deletes and returns items.
use super::{
    convert,
    guard::guarded,
    proto::{self, catalog_service_server::CatalogService},
    services::{BatchViolations, Services, echoed_id, list_size},
    status,
    violations::Violations,
};
use lodestone_core::ids::ItemId;
use lodestone_engine::WriteOutcome;
use tonic::{Request, Response, Status};

const ITEMS_MAX: usize = 1000;

fn item_status(outcome: WriteOutcome) -> i32 {
    match outcome {
        WriteOutcome::Replaced => proto::ItemStatus::Replaced,
        WriteOutcome::Deleted => proto::ItemStatus::Deleted,
        WriteOutcome::Unknown => proto::ItemStatus::Unknown,
        WriteOutcome::Created | WriteOutcome::Accepted | WriteOutcome::Duplicate => proto::ItemStatus::Created,
    }
    .into()
}

/// Sets the status of the valid items of a batch. `indices`: the index of the item of each outcome.
fn item_results(
    mut results: Vec<proto::ItemResult>,
    indices: Vec<usize>,
    outcomes: Vec<WriteOutcome>,
) -> Vec<proto::ItemResult> {
    for (index, outcome) in indices.into_iter().zip(outcomes) {
        results[index].status = item_status(outcome);
    }
    results
}

fn rejected(id: &str, violations: Violations, details: &mut BatchViolations) -> proto::ItemResult {
    proto::ItemResult {
        status: proto::ItemStatus::Rejected.into(),
        item_id: echoed_id(id),
        violations: details.of_entry(violations.found),
    }
}

#[tonic::async_trait]
impl CatalogService for Services {
    async fn upsert_items(
        &self,
        request: Request<proto::UpsertItemsRequest>,
    ) -> Result<Response<proto::UpsertItemsResponse>, Status> {
        let response = async {
            let sent = request.into_inner().items;
            list_size("items", sent.len(), ITEMS_MAX)?;
            let (mut results, mut valid, mut indices) = (Vec::with_capacity(sent.len()), Vec::new(), Vec::new());
            let mut details = BatchViolations::default();
            for (index, item) in sent.iter().enumerate() {
                let mut violations = Violations::default();
                let parsed = convert::item(&mut violations, format_args!("items[{index}]"), item);
                if let Some(item) = parsed {
                    valid.push(item);
                    indices.push(index);
                }
                results.push(rejected(&item.item_id, violations, &mut details));
            }
            self.metrics.wrote("rejected", (results.len() - valid.len()) as u64);
            let report = self.engine.upsert_items(valid).await.map_err(status::of)?;
            let session_version = report.session_version;
            let results = item_results(results, indices, report.outcomes);
            Ok(Response::new(proto::UpsertItemsResponse { results, session_version }))
        };
        guarded(&self.metrics, "UpsertItems", response).await
    }

    async fn delete_items(
        &self,
        request: Request<proto::DeleteItemsRequest>,
    ) -> Result<Response<proto::DeleteItemsResponse>, Status> {
        let response = async {
            let sent = request.into_inner().item_ids;
            list_size("item_ids", sent.len(), ITEMS_MAX)?;
            let (mut results, mut valid, mut indices) = (Vec::with_capacity(sent.len()), Vec::new(), Vec::new());
            let mut details = BatchViolations::default();
            for (index, id) in sent.iter().enumerate() {
                let mut violations = Violations::default();
                if let Some(id) = violations.keep(format!("item_ids[{index}]"), ItemId::parse(id)) {
                    valid.push(id);
                    indices.push(index);
                }
                results.push(rejected(id, violations, &mut details));
            }
            self.metrics.wrote("rejected", (results.len() - valid.len()) as u64);
            let report = self.engine.delete_items(valid).await.map_err(status::of)?;
            let session_version = report.session_version;
            let results = item_results(results, indices, report.outcomes);
            Ok(Response::new(proto::DeleteItemsResponse { results, session_version }))
        };
        guarded(&self.metrics, "DeleteItems", response).await
    }

    async fn get_item(
        &self,
        request: Request<proto::GetItemRequest>,
    ) -> Result<Response<proto::GetItemResponse>, Status> {
        let response = async {
            let text = request.into_inner().item_id;
            let mut violations = Violations::default();
            let Some(id) = violations.keep("item_id", ItemId::parse(&text)) else {
                return Err(status::invalid(violations.found));
            };
            let item = self.engine.get_item(&id).ok_or_else(|| status::item_not_found(&text))?;
            Ok(Response::new(proto::GetItemResponse { item: Some(convert::item_to_proto(&item)) }))
        };
        guarded(&self.metrics, "GetItem", response).await
    }
}
