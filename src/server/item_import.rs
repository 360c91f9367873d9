//! The long writes of CatalogService: a feed as a stream of messages, and the deletion of all items that match a
//! filter.
use super::{
    audited::AuditedCall,
    catalog_service::Validated,
    client::{Client, client_of},
    convert::{self, FilterForms},
    item_checks::ItemChecks,
    price_currency::PriceCurrencies,
    proto::{self, import_items_request::Part},
    services::Services,
    status,
    violations::Violations,
};
use lodestone_catalog::{Item, ItemField, ItemWrite, WriteTime, WrittenFields};
use lodestone_core::{bits, ids::ItemId, units::UnixMillis};
use lodestone_engine::{Engine, EngineError, WriteReport};
use lodestone_pipeline::{AttributeUse, run::RequestField};
use std::{
    collections::{BTreeSet, HashMap},
    fmt::Display,
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};
use tonic::{Request, Status, Streaming};

/// Greatest share of the catalogue that a full feed may delete, unless its options say otherwise.
const DELETED_SHARE_MAX: f64 = 0.3;
/// Ids of deleted items in a response.
const LISTED_IDS_MAX: usize = 100;
/// Items of one deletion.
const DELETED_AT_ONCE: usize = 1000;

/// A feed that is being imported.
pub(super) struct ItemImport {
    services: Services,
    client: Option<Arc<Client>>,
    /// Describes the deletions of a full feed.
    audited: AuditedCall,
    messages: Streaming<proto::ImportItemsRequest>,
    /// Messages that have arrived.
    message_count: u64,
    /// None: the next message is the first one.
    options: Option<ImportOptions>,
    counts: proto::ImportCounts,
    log_position: u64,
    /// By key: the items of the feed, for a full one.
    seen: Vec<u64>,
    /// Items that a feed which writes nothing would have created, with hashes of the fields that it has.
    would_create: HashMap<ItemId, u64>,
    is_finished: bool,
}

/// Validated options of a feed.
#[derive(Debug, Clone)]
struct ImportOptions {
    is_full: bool,
    time: WriteTime,
    deleted_share_max: f64,
    validate_only: bool,
    /// The fields that are written to items that exist. None: all.
    fields: Option<Arc<BTreeSet<ItemField>>>,
}

impl ImportOptions {
    /// Converts an item of the feed. `exists` returns true for the id of an item that the catalogue has, or that the feed
    /// has created. Returns None if there are violations.
    fn write(
        &self,
        violations: &mut Violations,
        path: &dyn Display,
        sent: &proto::Item,
        exists: impl Fn(&ItemId) -> bool,
    ) -> Option<ItemWrite> {
        match &self.fields {
            Some(fields) if ItemId::parse(&sent.item_id).is_ok_and(|id| exists(&id)) => {
                let item = convert::item_with_only(violations, path, sent, fields)?;
                Some(ItemWrite { item, fields: WrittenFields::Some((**fields).clone()), time: self.time })
            }
            Some(_) if sent.title.trim().is_empty() => {
                convert::item(violations, path, sent, false);
                let problem = "is empty, and no item has this id; a new item needs a title of 1 to 1,000 characters";
                violations.add(format_args!("{path}.title"), problem);
                None
            }
            _ => Some(ItemWrite::of_all(convert::item(violations, path, sent, true)?, self.time)),
        }
    }
}

impl ItemImport {
    pub(super) fn new(services: Services, request: Request<Streaming<proto::ImportItemsRequest>>) -> Self {
        Self {
            client: client_of(&request),
            audited: services.audited(&request, "CatalogService/ImportItems", ""),
            services,
            messages: request.into_inner(),
            message_count: 0,
            options: None,
            counts: proto::ImportCounts::default(),
            log_position: 0,
            seen: Vec::new(),
            would_create: HashMap::new(),
            is_finished: false,
        }
    }

    /// Handles the next message, or the end of the feed. None: the feed has ended before.
    pub(super) async fn step(&mut self) -> Result<Option<proto::ImportItemsResponse>, Status> {
        if self.is_finished {
            return Ok(None);
        }
        // The first message is that of the call, which is counted.
        if let Some(client) = self.client.as_ref().filter(|_| self.message_count > 0) {
            client.pace().await;
        }
        let message = self.messages.message().await.map_err(|error| status::of_transport(&error, ""))?;
        self.is_finished = message.is_none();
        if let Some(message) = &message {
            self.admit(message)?;
        }
        self.answer(message).await.map(Some)
    }

    /// Counts a message and its items for the limits of the client.
    fn admit(&mut self, message: &proto::ImportItemsRequest) -> Result<(), Status> {
        self.message_count += 1;
        let Some(client) = &self.client else { return Ok(()) };
        if self.message_count > 1 {
            client.count_message(&self.services.metrics);
        }
        match &message.part {
            Some(Part::Items(items)) => client.admit_changes(items.items.len(), &self.services.metrics),
            Some(Part::Options(_)) | None => Ok(()),
        }
    }

    async fn answer(
        &mut self,
        message: Option<proto::ImportItemsRequest>,
    ) -> Result<proto::ImportItemsResponse, Status> {
        match message.map(|message| message.part) {
            Some(Some(Part::Options(options))) => {
                let mut violations = Violations::default();
                if self.options.is_some() {
                    violations.add("options", "is not in the first message; only that one may have options");
                }
                self.options = Some(self.options(&mut violations, &options));
                match violations.is_empty() {
                    true => Ok(self.response(Vec::new())),
                    false => Err(status::invalid(violations.found)),
                }
            }
            Some(Some(Part::Items(items))) => self.write(&items.items).await,
            Some(None) => {
                let mut violations = Violations::default();
                violations.add("part", "is not set; set options or items");
                Err(status::invalid(violations.found))
            }
            None => self.finish().await,
        }
    }

    fn options(&self, violations: &mut Violations, sent: &proto::ImportOptions) -> ImportOptions {
        let mode = proto::ImportMode::try_from(sent.mode);
        if mode.is_err() {
            violations.add("options.mode", format!("{} is not an ImportMode", sent.mode));
        }
        let is_full = mode == Ok(proto::ImportMode::Full);
        let share = sent.deleted_share_max;
        if let Some(share) = share.filter(|share| !(0.0..=1.0).contains(share)) {
            violations.add("options.deleted_share_max", format!("is {share}; it must be within 0 and 1"));
        }
        if share.is_some() && !is_full {
            violations.add("options.deleted_share_max", "needs the mode IMPORT_MODE_FULL");
        }
        let fields = sent.update_mask.as_ref().map(|mask| {
            if mask.paths.is_empty() {
                violations.add("options.update_mask", "is empty; name at least one field, or leave it out for all");
            }
            Arc::new(convert::update_mask(violations, "options.update_mask", &mask.paths))
        });
        let clock = self.services.clock();
        ImportOptions {
            is_full,
            time: clock.write_time(violations, "options.update_time", sent.update_time.as_ref()),
            deleted_share_max: share.unwrap_or(DELETED_SHARE_MAX),
            validate_only: sent.validate_only,
            fields,
        }
    }

    /// The options; those of a feed that begins without any are the defaults.
    fn begun(&mut self) -> ImportOptions {
        let now = UnixMillis::now();
        let options = self.options.get_or_insert(ImportOptions {
            is_full: false,
            time: WriteTime::Received(now),
            deleted_share_max: DELETED_SHARE_MAX,
            validate_only: false,
            fields: None,
        });
        options.clone()
    }

    async fn write(&mut self, items: &[proto::Item]) -> Result<proto::ImportItemsResponse, Status> {
        let options = self.begun();
        let held = self.services.engine.hold_declarations().await;
        let rules = self.services.engine.rules();
        let (mut checks, currencies) = (ItemChecks::new(&self.services.engine), PriceCurrencies::default());
        let convert = |violations: &mut Violations, path: &dyn Display, item: &proto::Item| {
            let exists = |id: &ItemId| checks.exists(id) || self.would_create.contains_key(id);
            let write = options.write(violations, path, item, exists)?;
            if !convert::check_attribute_kinds(violations, path, &write, &rules.attributes) {
                return None;
            }
            currencies.check(violations, path, &write, &self.services.engine);
            checks.admit(violations, path, &write).then_some(write)
        };
        let validated = Validated::of("items", items, |item| &item.item_id, convert)?;
        drop((checks, currencies));
        let ids: Vec<Option<ItemId>> = items.iter().map(|item| ItemId::parse(&item.item_id).ok()).collect();
        let results = match options.validate_only {
            true => {
                let (engine, would_create) = (&self.services.engine, &mut self.would_create);
                validated.accepted(|write| {
                    if engine.is_stale(write) {
                        return proto::ItemStatus::Stale;
                    }
                    if engine.is_unchanged(write) {
                        return proto::ItemStatus::Unchanged;
                    }
                    if engine.get_item(&write.item.id).is_some() {
                        return proto::ItemStatus::Replaced;
                    }
                    let content = match &options.fields {
                        Some(fields) => content_hash(&write.item.with_only(fields)),
                        None => content_hash(&write.item),
                    };
                    match would_create.insert(write.item.id.clone(), content) {
                        None => proto::ItemStatus::Created,
                        Some(before) if before == content => proto::ItemStatus::Unchanged,
                        Some(_) => proto::ItemStatus::Replaced,
                    }
                })
            }
            false => {
                let (results, version) = self.services.write_valid_items(validated, held).await?;
                self.log_position = self.log_position.max(version);
                results
            }
        };
        if options.is_full {
            let keys = ids.iter().flatten().filter_map(|id| self.services.engine.item_key(id));
            keys.for_each(|key| bits::set(&mut self.seen, key.0 as usize));
        }
        let first = self.counts.item_count;
        let mut kept = Vec::new();
        for (index, result) in results.into_iter().enumerate() {
            self.counts.item_count += 1;
            match result.status() {
                proto::ItemStatus::Created => self.counts.created_count += 1,
                proto::ItemStatus::Replaced | proto::ItemStatus::Updated => self.counts.replaced_count += 1,
                proto::ItemStatus::Unchanged => self.counts.unchanged_count += 1,
                proto::ItemStatus::Stale => self.counts.stale_count += 1,
                _ => self.counts.rejected_count += 1,
            }
            let is_in_effect = matches!(
                result.status(),
                proto::ItemStatus::Created
                    | proto::ItemStatus::Replaced
                    | proto::ItemStatus::Updated
                    | proto::ItemStatus::Unchanged
            );
            if !is_in_effect || !result.warnings.is_empty() {
                kept.push(proto::ImportItemResult { index: first + index as i64, result: Some(result) });
            }
        }
        Ok(self.response(kept))
    }

    fn response(&self, results: Vec<proto::ImportItemResult>) -> proto::ImportItemsResponse {
        proto::ImportItemsResponse {
            counts: Some(self.counts),
            results,
            consistency_token: self.services.consistency_token(self.log_position),
            deletions: None,
        }
    }

    /// Ends the feed. A full one deletes the items that it does not have.
    async fn finish(&mut self) -> Result<proto::ImportItemsResponse, Status> {
        let options = self.begun();
        if !options.is_full {
            return Ok(self.response(Vec::new()));
        }
        let (WriteTime::Stated(until) | WriteTime::Received(until)) = options.time;
        let engine = self.services.engine.clone();
        let seen = std::mem::take(&mut self.seen);
        let (missing, item_count) = engine.items_missing_in(seen, until).await.map_err(status::of)?;
        // Of the catalogue before the feed, so that a feed whose ids have all changed is noticed.
        let created_count = if options.validate_only { 0 } else { self.counts.created_count as usize };
        let item_count = item_count.saturating_sub(created_count);
        let share = missing.len() as f64 / item_count.max(1) as f64;
        if share > options.deleted_share_max && !options.validate_only {
            return Err(status::feed_shrinks(missing.len(), item_count, options.deleted_share_max));
        }
        if !options.validate_only && !missing.is_empty() {
            let audited = self.audited.about(format!("{} items that the feed lacks", missing.len()));
            let delete = async { delete_all(&engine, &missing, until).await.map_err(status::of) };
            let version = audited.run(delete).await?;
            self.log_position = self.log_position.max(version);
        }
        let deletions = proto::ImportDeletions { item_count: missing.len() as i64, share, item_ids: listed(&missing) };
        Ok(proto::ImportItemsResponse { deletions: Some(deletions), ..self.response(Vec::new()) })
    }
}

/// Returns a hash of an item's values, which is compared only within one feed.
fn content_hash(item: &Item) -> u64 {
    let mut hasher = DefaultHasher::new();
    format!("{item:?}").hash(&mut hasher);
    hasher.finish()
}

/// The first ids of deleted items.
fn listed(ids: &[ItemId]) -> Vec<String> {
    ids.iter().take(LISTED_IDS_MAX).map(ItemId::to_string).collect()
}

/// Deletes the items that were not written after a time, and returns the log position afterwards.
async fn delete_all(engine: &Arc<Engine>, ids: &[ItemId], until: UnixMillis) -> Result<u64, EngineError> {
    let mut position = 0;
    for part in ids.chunks(DELETED_AT_ONCE) {
        let WriteReport { log_position, .. } = engine.delete_items(part.to_vec(), WriteTime::Stated(until)).await?;
        position = position.max(log_position);
    }
    Ok(position)
}

impl Services {
    /// Deletes the items that match a filter, or only counts them.
    pub(super) async fn purge(
        &self,
        request: Request<proto::PurgeItemsRequest>,
    ) -> Result<proto::PurgeItemsResponse, Status> {
        let deadline = self.call_context(&request, None).deadline;
        let client = client_of(&request);
        let request = request.into_inner();
        let mut violations = Violations::default();
        let expression = request.filter_expression.as_ref();
        let filter = convert::filter(&mut violations, "filter", &request.filter, expression);
        if request.filter.trim().is_empty() && expression.is_none() {
            violations.add("filter", "is empty; it must select the items to delete, such as `brand = \"Acme\"`");
        }
        let Some(filter) = filter.filter(|_| violations.is_empty()) else {
            return Err(self.refused(violations, deadline).await);
        };
        // Items that are written after this time stay.
        let until = UnixMillis(UnixMillis::now().0 - 1);
        let forms = FilterForms::of(expression, None);
        let uses = AttributeUse::of_filter(RequestField::Filter, &filter);
        let ids = self.engine.items_matching(filter).await.map_err(|error| status::of_request(error, &forms))?;
        // A misspelled name, or a value of another kind, would select no item, or all with NOT. After the search, which
        // waits for writes.
        let problems = self.attribute_notices(uses, |field| forms.path(field), deadline).await;
        if !problems.is_empty() {
            return Err(status::invalid(problems));
        }
        if let Some(client) = client.filter(|_| request.force) {
            client.admit_changes(ids.len(), &self.metrics)?;
        }
        let log_position = match request.force {
            true => delete_all(&self.engine, &ids, until).await.map_err(status::of)?,
            false => 0,
        };
        Ok(proto::PurgeItemsResponse {
            item_count: ids.len() as i64,
            item_ids: listed(&ids),
            consistency_token: self.consistency_token(log_position),
        })
    }
}
