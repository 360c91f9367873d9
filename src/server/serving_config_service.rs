//! ServingConfigService: maintains serving configurations.
use super::{
    convert,
    guard::guarded,
    proto::{self, serving_config_service_server::ServingConfigService},
    rule_service::{EntriesPage, checked, preview_deadline, previewed_count},
    services::Services,
    status,
    violations::Violations,
};
use lodestone_engine::{EntryKind, PutMode, ServingConfigEntry, ServingConfigPreview, ServingConfigSource};
use lodestone_rules::CompiledServingConfig;
use tonic::{Request, Response, Status};

impl Services {
    /// Validates the configuration of a request, also by the bundles and the catalogue.
    fn checked_serving_config(&self, sent: Option<&proto::ServingConfig>) -> Result<CompiledServingConfig, Status> {
        let mut violations = Violations::default();
        let compiled = convert::serving_config(&mut violations, sent);
        let problems = sent.map(|sent| self.engine.config_problems(&convert::stored_serving_config(sent)));
        convert::add_problems(&mut violations, "serving_config", problems.unwrap_or_default());
        checked(violations)?;
        compiled.ok_or_else(|| status::invalid(Vec::new()))
    }

    /// Writes the configuration of a request.
    async fn write_serving_config(
        &self,
        sent: Option<proto::ServingConfig>,
        mode: impl FnOnce(String) -> PutMode,
    ) -> Result<(Option<proto::ServingConfig>, u64), Status> {
        let compiled = self.checked_serving_config(sent.as_ref())?;
        let etag = sent.map(|config| config.etag).unwrap_or_default();
        let (written, log_position) =
            self.engine.put_serving_config(compiled.stored(), mode(etag)).await.map_err(status::of)?;
        Ok((Some(convert::serving_config_to_proto(&written, ServingConfigSource::Api)), log_position))
    }
}

#[tonic::async_trait]
impl ServingConfigService for Services {
    async fn create_serving_config(
        &self,
        request: Request<proto::CreateServingConfigRequest>,
    ) -> Result<Response<proto::CreateServingConfigResponse>, Status> {
        let audited = self.audited(
            &request,
            "ServingConfigService/CreateServingConfig",
            request.get_ref().serving_config.as_ref().map_or("", |sent| &sent.serving_config_id),
        );
        let response = async {
            let sent = request.into_inner().serving_config;
            let (serving_config, log_position) = self.write_serving_config(sent, |_| PutMode::Create).await?;
            Ok(Response::new(proto::CreateServingConfigResponse {
                serving_config,
                consistency_token: self.consistency_token(log_position),
            }))
        };
        guarded(&self.metrics, "CreateServingConfig", audited.run(response)).await
    }

    async fn get_serving_config(
        &self,
        request: Request<proto::GetServingConfigRequest>,
    ) -> Result<Response<proto::GetServingConfigResponse>, Status> {
        let response = async {
            let id = request.into_inner().serving_config_id;
            let configs = self.engine.serving_configs();
            let found = configs.get(&id).ok_or_else(|| status::entry_not_found(EntryKind::ServingConfig, &id))?;
            let serving_config = Some(convert::serving_config_to_proto(&found.config, found.source));
            Ok(Response::new(proto::GetServingConfigResponse { serving_config }))
        };
        guarded(&self.metrics, "GetServingConfig", response).await
    }

    async fn list_serving_configs(
        &self,
        request: Request<proto::ListServingConfigsRequest>,
    ) -> Result<Response<proto::ListServingConfigsResponse>, Status> {
        let response = async {
            let proto::ListServingConfigsRequest { page_size, page_token } = request.into_inner();
            let configs = self.engine.serving_configs();
            let (kind, page) = (EntryKind::ServingConfig, (page_size, page_token.as_str()));
            let converted = |entry: &ServingConfigEntry| convert::serving_config_to_proto(&entry.config, entry.source);
            let page = self.entries_page(&configs, kind, page, converted, |entry| entry.config.id())?;
            let EntriesPage { entries, next_page_token, notices } = page;
            let total_size = configs.len() as i32;
            Ok(Response::new(proto::ListServingConfigsResponse {
                serving_configs: entries,
                next_page_token,
                total_size,
                notices,
            }))
        };
        guarded(&self.metrics, "ListServingConfigs", response).await
    }

    async fn update_serving_config(
        &self,
        request: Request<proto::UpdateServingConfigRequest>,
    ) -> Result<Response<proto::UpdateServingConfigResponse>, Status> {
        let audited = self.audited(
            &request,
            "ServingConfigService/UpdateServingConfig",
            request.get_ref().serving_config.as_ref().map_or("", |sent| &sent.serving_config_id),
        );
        let response = async {
            let mode = |etag| PutMode::Update { etag };
            let sent = request.into_inner().serving_config;
            let (serving_config, log_position) = self.write_serving_config(sent, mode).await?;
            Ok(Response::new(proto::UpdateServingConfigResponse {
                serving_config,
                consistency_token: self.consistency_token(log_position),
            }))
        };
        guarded(&self.metrics, "UpdateServingConfig", audited.run(response)).await
    }

    async fn delete_serving_config(
        &self,
        request: Request<proto::DeleteServingConfigRequest>,
    ) -> Result<Response<proto::DeleteServingConfigResponse>, Status> {
        let audited =
            self.audited(&request, "ServingConfigService/DeleteServingConfig", &request.get_ref().serving_config_id);
        let response = async {
            let proto::DeleteServingConfigRequest { serving_config_id, etag } = request.into_inner();
            let deleted = self.engine.delete_entry(EntryKind::ServingConfig, serving_config_id, etag).await;
            Ok(Response::new(proto::DeleteServingConfigResponse {
                consistency_token: self.consistency_token(deleted.map_err(status::of)?),
            }))
        };
        guarded(&self.metrics, "DeleteServingConfig", audited.run(response)).await
    }

    async fn preview_serving_config(
        &self,
        request: Request<proto::PreviewServingConfigRequest>,
    ) -> Result<Response<proto::PreviewServingConfigResponse>, Status> {
        let response = async {
            let deadline = preview_deadline(&request);
            let proto::PreviewServingConfigRequest { serving_config, answer_count } = request.into_inner();
            let mut violations = Violations::default();
            let count = previewed_count(&mut violations, answer_count);
            checked(violations)?;
            let config = self.checked_serving_config(serving_config.as_ref())?;
            self.engine.check_objectives(&config.config).map_err(status::of)?;
            let preview = self.engine.preview_serving_config(&config, count, convert::ranking_request, deadline);
            Ok(Response::new(preview_to_proto(preview.await.map_err(status::of)?)))
        };
        guarded(&self.metrics, "PreviewServingConfig", response).await
    }
}

fn preview_to_proto(preview: ServingConfigPreview) -> proto::PreviewServingConfigResponse {
    let left_out = |(reason, count): (String, usize)| proto::LeftOutReason { reason, answer_count: count as i32 };
    proto::PreviewServingConfigResponse {
        answer_count: preview.answer_count as i32,
        left_out_answer_count: preview.left_out.values().sum::<usize>() as i32,
        left_out_reasons: preview.left_out.into_iter().map(left_out).collect(),
        slot_count: preview.slot_count as i32,
        changed_slot_count: preview.changed_slot_count as i32,
        changed_answer_count: preview.changed_answer_count as i32,
        mean_ndcg_loss: preview.mean_ndcg_loss,
        largest_ndcg_loss: preview.largest_ndcg_loss,
        mean_objective_share: preview.mean_objective_share,
        bounded_answer_count: preview.bounded_answer_count as i32,
    }
}
