//! CatalogService: writes, deletes and returns items.
use super::{
    audited::listed_items,
    convert::{self, FilterForms},
    guard::{guarded, guarded_stream},
    item_checks::ItemChecks,
    item_import::ItemImport,
    price_currency::PriceCurrencies,
    proto::{self, catalog_service_server::CatalogService},
    rule_service::checked,
    services::{BatchViolations, Services, echoed_id, list_size},
    status,
    violations::Violations,
};
use futures_util::stream::BoxStream;
use lodestone_catalog::{Item, ItemList, ItemWrite, WriteTime};
use lodestone_core::{ids::ItemId, units::UnixMillis};
use lodestone_engine::{DeclarationsGuard, EngineError, EntryKind, ItemsToken, WriteOutcome, WriteReport};
use lodestone_pipeline::{AttributeUse, RESULTS_BYTES_MAX, run::RequestField};
use lodestone_telemetry::call;
use prost::Message;
use std::{fmt::Display, sync::Arc};
use tonic::{Request, Response, Status, Streaming};

pub(super) const ITEMS_MAX: usize = 1000;
/// Maximum number of stale fields that a result names.
const STALE_FIELDS_MAX: usize = 20;

fn item_status(outcome: WriteOutcome) -> i32 {
    match outcome {
        WriteOutcome::Replaced => proto::ItemStatus::Replaced,
        WriteOutcome::Updated => proto::ItemStatus::Updated,
        WriteOutcome::Unchanged => proto::ItemStatus::Unchanged,
        WriteOutcome::Stale => proto::ItemStatus::Stale,
        WriteOutcome::Deleted => proto::ItemStatus::Deleted,
        WriteOutcome::Unknown => proto::ItemStatus::Unknown,
        WriteOutcome::Created | WriteOutcome::Accepted | WriteOutcome::Duplicate => proto::ItemStatus::Created,
    }
    .into()
}

/// The entries of a request before they are stored.
pub(super) struct Validated<T> {
    /// A result per entry. Those of valid entries are REJECTED until their outcome is known.
    results: Vec<proto::ItemResult>,
    valid: Vec<T>,
    /// Indices of the results of `valid`.
    indices: Vec<usize>,
}

impl<T> Validated<T> {
    /// Validates the entries of the list `field`. `id` returns the item's id as sent.
    pub(super) fn of<S>(
        field: &'static str,
        sent: &[S],
        id: impl Fn(&S) -> &str,
        mut convert: impl FnMut(&mut Violations, &dyn Display, &S) -> Option<T>,
    ) -> Result<Self, Status> {
        list_size(field, sent.len(), ITEMS_MAX)?;
        let mut validated = Self { results: Vec::with_capacity(sent.len()), valid: Vec::new(), indices: Vec::new() };
        let mut details = BatchViolations::default();
        for (index, entry) in sent.iter().enumerate() {
            let mut violations = Violations::default();
            if let Some(converted) = convert(&mut violations, &format_args!("{field}[{index}]"), entry) {
                validated.valid.push(converted);
                validated.indices.push(index);
            }
            validated.results.push(proto::ItemResult {
                status: proto::ItemStatus::Rejected.into(),
                item_id: echoed_id(id(entry)),
                violations: details.of_entry(violations.found),
                warnings: details.of_entry(violations.notices),
                stale_fields: Vec::new(),
            });
        }
        Ok(validated)
    }

    /// Returns the results as if all valid entries had been written, with the status of each.
    pub(super) fn accepted(mut self, mut status: impl FnMut(&T) -> proto::ItemStatus) -> Vec<proto::ItemResult> {
        for (index, entry) in self.indices.iter().zip(&self.valid) {
            self.results[*index].status = status(entry).into();
        }
        self.results
    }
}

fn results(
    mut results: Vec<proto::ItemResult>,
    indices: &[usize],
    report: WriteReport,
) -> (Vec<proto::ItemResult>, u64) {
    for (index, outcome) in indices.iter().zip(report.outcomes) {
        results[*index].status = item_status(outcome);
    }
    for stale in report.stale_fields {
        let fields = &mut results[indices[stale.change]].stale_fields;
        if fields.len() < STALE_FIELDS_MAX {
            fields.push(stale.field.name().into_owned());
        }
    }
    (results, report.log_position)
}

impl Services {
    /// Writes the valid entries with `write`. Returns the results of all entries and the log position.
    async fn write_valid<T>(
        &self,
        validated: Validated<T>,
        write: impl AsyncFnOnce(Vec<T>) -> Result<WriteReport, EngineError>,
    ) -> Result<(Vec<proto::ItemResult>, u64), Status> {
        let Validated { results: of_entries, valid, indices } = validated;
        self.metrics.wrote("rejected", (of_entries.len() - valid.len()) as u64);
        let report = write(valid).await.map_err(status::of)?;
        Ok(results(of_entries, &indices, report))
    }

    /// The same for items that were checked against the declared attributes under `held`.
    pub(super) async fn write_valid_items(
        &self,
        validated: Validated<ItemWrite>,
        held: DeclarationsGuard,
    ) -> Result<(Vec<proto::ItemResult>, u64), Status> {
        let write = async |writes| {
            let engine = self.engine.clone();
            // In a task of its own, because a caller that stops waiting must not release the guard before the items are in
            // effect.
            let written = call::spawn(async move {
                let written = engine.write_items(writes).await;
                drop(held);
                written
            });
            written.await.map_err(|error| EngineError::Internal(error.to_string()))?
        };
        self.write_valid(validated, write).await
    }

    pub(super) fn clock(&self) -> convert::Clock {
        convert::Clock { now: UnixMillis::now(), ahead_max: self.config.event_ahead_max }
    }
}

#[tonic::async_trait]
impl CatalogService for Services {
    type ImportItemsStream = BoxStream<'static, Result<proto::ImportItemsResponse, Status>>;

    async fn import_items(
        &self,
        request: Request<Streaming<proto::ImportItemsRequest>>,
    ) -> Result<Response<Self::ImportItemsStream>, Status> {
        let import = ItemImport::new(self.clone(), request);
        Ok(guarded_stream(&self.metrics, "ImportItems", import, |import| Box::pin(import.step())))
    }

    async fn purge_items(
        &self,
        request: Request<proto::PurgeItemsRequest>,
    ) -> Result<Response<proto::PurgeItemsResponse>, Status> {
        let sent = request.get_ref();
        // Written in the filter language. An invalid one deletes nothing.
        let written = sent.filter_expression.as_ref().and_then(|expression| {
            convert::filter(&mut Violations::default(), "filter", &sent.filter, Some(expression))
        });
        let filter = written.map_or_else(|| sent.filter.clone(), |filter| filter.to_string());
        let audited = self.audited(&request, "CatalogService/PurgeItems", filter).with_dry_run(!sent.force);
        let response = async { Ok(Response::new(self.purge(request).await?)) };
        guarded(&self.metrics, "PurgeItems", audited.run(response)).await
    }

    async fn upsert_items(
        &self,
        request: Request<proto::UpsertItemsRequest>,
    ) -> Result<Response<proto::UpsertItemsResponse>, Status> {
        let response = async {
            self.admit_changes(&request, request.get_ref().items.len())?;
            let proto::UpsertItemsRequest { items, update_time } = request.into_inner();
            let mut violations = Violations::default();
            let time = self.clock().write_time(&mut violations, "update_time", update_time.as_ref());
            if !violations.is_empty() {
                return Err(status::invalid(violations.found));
            }
            let (held, rules) = (self.engine.hold_declarations().await, self.engine.rules());
            let (mut checks, currencies) = (ItemChecks::new(&self.engine), PriceCurrencies::default());
            let convert = |violations: &mut Violations, path: &dyn Display, item: &proto::Item| {
                let write = ItemWrite::of_all(convert::item(violations, path, item, true)?, time);
                if !convert::check_attribute_kinds(violations, path, &write, &rules.attributes) {
                    return None;
                }
                currencies.check(violations, path, &write, &self.engine);
                checks.admit(violations, path, &write).then_some(write)
            };
            let validated = Validated::of("items", &items, |item| &item.item_id, convert)?;
            drop((checks, currencies));
            let (results, log_position) = self.write_valid_items(validated, held).await?;
            Ok(Response::new(proto::UpsertItemsResponse {
                results,
                consistency_token: self.consistency_token(log_position),
            }))
        };
        guarded(&self.metrics, "UpsertItems", response).await
    }

    async fn update_items(
        &self,
        request: Request<proto::UpdateItemsRequest>,
    ) -> Result<Response<proto::UpdateItemsResponse>, Status> {
        let response = async {
            self.admit_changes(&request, request.get_ref().updates.len())?;
            let (updates, clock) = (request.into_inner().updates, self.clock());
            fn id(update: &proto::ItemUpdate) -> &str {
                update.item.as_ref().map_or("", |item| &item.item_id)
            }
            let (held, rules) = (self.engine.hold_declarations().await, self.engine.rules());
            let (mut checks, currencies) = (ItemChecks::new(&self.engine), PriceCurrencies::default());
            let convert = |violations: &mut Violations, path: &dyn Display, update: &proto::ItemUpdate| {
                let write = convert::item_update(violations, path, update, clock)?;
                let path = format!("{path}.item");
                if !convert::check_attribute_kinds(violations, &path, &write, &rules.attributes) {
                    return None;
                }
                currencies.check(violations, &path, &write, &self.engine);
                checks.admit(violations, &path, &write).then_some(write)
            };
            let validated = Validated::of("updates", &updates, id, convert)?;
            drop((checks, currencies));
            let (results, log_position) = self.write_valid_items(validated, held).await?;
            Ok(Response::new(proto::UpdateItemsResponse {
                results,
                consistency_token: self.consistency_token(log_position),
            }))
        };
        guarded(&self.metrics, "UpdateItems", response).await
    }

    async fn set_inventory(
        &self,
        request: Request<proto::SetInventoryRequest>,
    ) -> Result<Response<proto::SetInventoryResponse>, Status> {
        let response = async {
            self.admit_changes(&request, request.get_ref().inventories.len())?;
            let (inventories, clock) = (request.into_inner().inventories, self.clock());
            let mut checks = ItemChecks::new(&self.engine);
            let convert = |violations: &mut Violations, path: &dyn Display, inventory: &proto::Inventory| {
                let write = convert::inventory(violations, path, inventory, clock)?;
                checks.admit(violations, path, &write).then_some(write)
            };
            let validated = Validated::of("inventories", &inventories, |entry| &entry.item_id, convert)?;
            drop(checks);
            let write = async |writes| self.engine.write_items(writes).await;
            let (results, log_position) = self.write_valid(validated, write).await?;
            Ok(Response::new(proto::SetInventoryResponse {
                results,
                consistency_token: self.consistency_token(log_position),
            }))
        };
        guarded(&self.metrics, "SetInventory", response).await
    }

    async fn delete_items(
        &self,
        request: Request<proto::DeleteItemsRequest>,
    ) -> Result<Response<proto::DeleteItemsResponse>, Status> {
        let audited = self.audited(&request, "CatalogService/DeleteItems", listed_items(&request.get_ref().item_ids));
        let response = async {
            self.admit_changes(&request, request.get_ref().item_ids.len())?;
            let sent = request.into_inner().item_ids;
            let convert =
                |violations: &mut Violations, path: &dyn Display, id: &String| violations.keep(path, ItemId::parse(id));
            let validated = Validated::of("item_ids", &sent, String::as_str, convert)?;
            let (results, log_position) = self
                .write_valid(validated, async |ids| {
                    self.engine.delete_items(ids, WriteTime::Received(UnixMillis::now())).await
                })
                .await?;
            Ok(Response::new(proto::DeleteItemsResponse {
                results,
                consistency_token: self.consistency_token(log_position),
            }))
        };
        guarded(&self.metrics, "DeleteItems", audited.run(response)).await
    }

    async fn list_items(
        &self,
        request: Request<proto::ListItemsRequest>,
    ) -> Result<Response<proto::ListItemsResponse>, Status> {
        let response = async {
            let deadline = self.call_context(&request, None).deadline;
            let mut violations = Violations::default();
            let request = request.into_inner();
            let forms = FilterForms::of(request.filter_expression.as_ref(), None);
            let convert::ItemsRequest { filter, count, token, fingerprint, read_mask } =
                convert::list_items(&mut violations, request);
            if !violations.is_empty() {
                return Err(self.refused(violations, deadline).await);
            }
            let uses = filter.as_ref().map(|filter| AttributeUse::of_filter(RequestField::Filter, filter));
            let listed = self.engine.list_items(filter, &token, fingerprint, count, deadline).await;
            let listed = listed.map_err(|error| status::of_request(error, &forms));
            let ItemList { items, total, mut has_more } = listed?;
            let (mut sent, mut bytes) = (Vec::with_capacity(items.len()), 0);
            for item in &items {
                let item = convert::item_to_proto(&read_mask.of(item));
                bytes += item.encoded_len();
                if bytes > RESULTS_BYTES_MAX && !sent.is_empty() {
                    has_more = true;
                    break;
                }
                sent.push(item);
            }
            let last = items.get(sent.len().wrapping_sub(1)).filter(|_| has_more);
            let token = |last: &Arc<Item>| ItemsToken { fingerprint, after: last.id.clone() };
            let next_page_token = last.map(|last| self.engine.items_token(&token(last))).unwrap_or_default();
            let mut notices = violations.notices;
            let path = |field| forms.path(field);
            notices.extend(self.attribute_notices(uses.unwrap_or_default(), path, deadline).await);
            Ok(Response::new(proto::ListItemsResponse {
                items: sent,
                next_page_token,
                total_size: total as i64,
                notices: notices.into_iter().map(convert::notice).collect(),
            }))
        };
        guarded(&self.metrics, "ListItems", response).await
    }

    async fn list_attributes(
        &self,
        request: Request<proto::ListAttributesRequest>,
    ) -> Result<Response<proto::ListAttributesResponse>, Status> {
        let response = async {
            let deadline = self.call_context(&request, None).deadline;
            let proto::ListAttributesRequest { page_size, page_token } = request.into_inner();
            let mut violations = Violations::default();
            let count = convert::list_size(&mut violations, page_size);
            let notices = checked(violations)?;
            let page = self.engine.list_attributes(&page_token, count, deadline).await.map_err(status::of)?;
            let declared = &self.engine.rules().attributes;
            let of_page = page.attributes.into_iter().map(|kinds| convert::attribute_kinds(kinds, declared));
            Ok(Response::new(proto::ListAttributesResponse {
                attributes: of_page.collect(),
                total_size: page.total as i32,
                next_page_token: page.next_page_token,
                notices,
            }))
        };
        guarded(&self.metrics, "ListAttributes", response).await
    }

    async fn declare_attribute(
        &self,
        request: Request<proto::DeclareAttributeRequest>,
    ) -> Result<Response<proto::DeclareAttributeResponse>, Status> {
        let audited = self.audited(
            &request,
            "CatalogService/DeclareAttribute",
            request.get_ref().declaration.as_ref().map_or("", |sent| &sent.name),
        );
        let audited = audited.with_dry_run(request.get_ref().validate_only);
        let response = async {
            let deadline = self.call_context(&request, None).deadline;
            let proto::DeclareAttributeRequest { declaration, validate_only } = request.into_inner();
            let mut violations = Violations::default();
            let compiled = convert::attribute_declaration(&mut violations, declaration.as_ref());
            let (Some(attribute), Some(sent)) = (compiled, declaration) else {
                return Err(status::invalid(violations.found));
            };
            let (name, kind) = (attribute.name().to_owned(), attribute.kind);
            if validate_only {
                let conflicts = self.engine.attribute_conflicts(name, kind, deadline).await.map_err(status::of)?;
                let declaration = convert::attribute_declaration_to_proto(&attribute);
                let declaration = proto::AttributeDeclaration { etag: String::new(), ..declaration };
                let conflicts = proto::AttributeConflicts {
                    item_count: conflicts.item_count as i64,
                    item_ids: conflicts.items.iter().map(ItemId::to_string).collect(),
                };
                return Ok(Response::new(proto::DeclareAttributeResponse {
                    declaration: Some(declaration),
                    conflicts: Some(conflicts),
                    consistency_token: String::new(),
                }));
            }
            let declared = self.engine.declare_attribute(attribute.stored(), kind, sent.etag, deadline).await;
            let (written, log_position) = declared.map_err(status::of)?;
            Ok(Response::new(proto::DeclareAttributeResponse {
                declaration: Some(convert::attribute_declaration_to_proto(&written)),
                conflicts: None,
                consistency_token: self.consistency_token(log_position),
            }))
        };
        guarded(&self.metrics, "DeclareAttribute", audited.run(response)).await
    }

    async fn delete_attribute_declaration(
        &self,
        request: Request<proto::DeleteAttributeDeclarationRequest>,
    ) -> Result<Response<proto::DeleteAttributeDeclarationResponse>, Status> {
        let audited = self.audited(&request, "CatalogService/DeleteAttributeDeclaration", &request.get_ref().name);
        let response = async {
            let proto::DeleteAttributeDeclarationRequest { name, etag } = request.into_inner();
            let deleted = self.engine.delete_entry(EntryKind::Attribute, name, etag).await;
            Ok(Response::new(proto::DeleteAttributeDeclarationResponse {
                consistency_token: self.consistency_token(deleted.map_err(status::of)?),
            }))
        };
        guarded(&self.metrics, "DeleteAttributeDeclaration", audited.run(response)).await
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
