//! ServingConfigService: maintains serving configurations.
use super::{
    convert,
    guard::guarded,
    proto::{self, serving_config_service_server::ServingConfigService},
    rule_service::{EntriesPage, checked},
    services::Services,
    status,
    violations::Violations,
};
use lodestone_engine::{EntryKind, PutMode, ServingConfigEntry, ServingConfigSource};
use tonic::{Request, Response, Status};

impl Services {
    /// Writes the configuration of a request.
    async fn write_serving_config(
        &self,
        sent: Option<proto::ServingConfig>,
        mode: impl FnOnce(String) -> PutMode,
    ) -> Result<(Option<proto::ServingConfig>, u64), Status> {
        let mut violations = Violations::default();
        let compiled = convert::serving_config(&mut violations, sent.as_ref());
        let heads = sent.iter().flat_map(|config| config.head_weights.keys());
        convert::add_problems(&mut violations, "serving_config", self.engine.head_problems(heads));
        checked(violations)?;
        let etag = sent.map(|config| config.etag).unwrap_or_default();
        let config = compiled.map(|compiled| compiled.stored()).unwrap_or_default();
        let (written, log_position) = self.engine.put_serving_config(config, mode(etag)).await.map_err(status::of)?;
        Ok((Some(convert::serving_config_to_proto(&written, ServingConfigSource::Api)), log_position))
    }
}

#[tonic::async_trait]
impl ServingConfigService for Services {
    async fn create_serving_config(
        &self,
        request: Request<proto::CreateServingConfigRequest>,
    ) -> Result<Response<proto::CreateServingConfigResponse>, Status> {
        let response = async {
            let sent = request.into_inner().serving_config;
            let (serving_config, log_position) = self.write_serving_config(sent, |_| PutMode::Create).await?;
            Ok(Response::new(proto::CreateServingConfigResponse {
                serving_config,
                consistency_token: self.consistency_token(log_position),
            }))
        };
        guarded(&self.metrics, "CreateServingConfig", response).await
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
            let EntriesPage { entries, next_page_token } = page;
            let total_size = configs.len() as i32;
            Ok(Response::new(proto::ListServingConfigsResponse {
                serving_configs: entries,
                next_page_token,
                total_size,
            }))
        };
        guarded(&self.metrics, "ListServingConfigs", response).await
    }

    async fn update_serving_config(
        &self,
        request: Request<proto::UpdateServingConfigRequest>,
    ) -> Result<Response<proto::UpdateServingConfigResponse>, Status> {
        let response = async {
            let mode = |etag| PutMode::Update { etag };
            let sent = request.into_inner().serving_config;
            let (serving_config, log_position) = self.write_serving_config(sent, mode).await?;
            Ok(Response::new(proto::UpdateServingConfigResponse {
                serving_config,
                consistency_token: self.consistency_token(log_position),
            }))
        };
        guarded(&self.metrics, "UpdateServingConfig", response).await
    }

    async fn delete_serving_config(
        &self,
        request: Request<proto::DeleteServingConfigRequest>,
    ) -> Result<Response<proto::DeleteServingConfigResponse>, Status> {
        let response = async {
            let proto::DeleteServingConfigRequest { serving_config_id, etag } = request.into_inner();
            let deleted = self.engine.delete_entry(EntryKind::ServingConfig, serving_config_id, etag).await;
            Ok(Response::new(proto::DeleteServingConfigResponse {
                consistency_token: self.consistency_token(deleted.map_err(status::of)?),
            }))
        };
        guarded(&self.metrics, "DeleteServingConfig", response).await
    }
}
