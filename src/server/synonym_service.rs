//! SynonymService: maintains sets of synonyms.
use super::{
    convert,
    guard::guarded,
    proto::{self, synonym_service_server::SynonymService},
    rule_service::{EntriesPage, checked},
    services::Services,
    status,
    violations::Violations,
};
use lodestone_engine::{EntryKind, PutMode};
use tonic::{Request, Response, Status};

impl Services {
    /// Writes the set of a request.
    async fn write_synonym_set(
        &self,
        sent: Option<proto::SynonymSet>,
        mode: impl FnOnce(String) -> PutMode,
    ) -> Result<(Option<proto::SynonymSet>, u64), Status> {
        let mut violations = Violations::default();
        let compiled = convert::synonym_set(&mut violations, sent.as_ref());
        checked(violations)?;
        let etag = sent.map(|set| set.etag).unwrap_or_default();
        let set = compiled.ok_or_else(|| status::invalid(Vec::new()))?;
        let (written, log_position) = self.engine.put_synonyms(set, mode(etag)).await.map_err(status::of)?;
        Ok((Some(convert::synonym_set_to_proto(&written)), log_position))
    }
}

#[tonic::async_trait]
impl SynonymService for Services {
    async fn create_synonym_set(
        &self,
        request: Request<proto::CreateSynonymSetRequest>,
    ) -> Result<Response<proto::CreateSynonymSetResponse>, Status> {
        let audited = self.audited(
            &request,
            "SynonymService/CreateSynonymSet",
            request.get_ref().synonym_set.as_ref().map_or("", |sent| &sent.synonym_set_id),
        );
        let response = async {
            let sent = request.into_inner().synonym_set;
            let (synonym_set, log_position) = self.write_synonym_set(sent, |_| PutMode::Create).await?;
            Ok(Response::new(proto::CreateSynonymSetResponse {
                synonym_set,
                consistency_token: self.consistency_token(log_position),
            }))
        };
        guarded(&self.metrics, "CreateSynonymSet", audited.run(response)).await
    }

    async fn get_synonym_set(
        &self,
        request: Request<proto::GetSynonymSetRequest>,
    ) -> Result<Response<proto::GetSynonymSetResponse>, Status> {
        let response = async {
            let id = request.into_inner().synonym_set_id;
            let rules = self.engine.rules();
            let set = rules.synonym_sets.get(&id);
            let set = set.ok_or_else(|| status::entry_not_found(EntryKind::SynonymSet, &id))?;
            let synonym_set = Some(convert::synonym_set_to_proto(set));
            Ok(Response::new(proto::GetSynonymSetResponse { synonym_set }))
        };
        guarded(&self.metrics, "GetSynonymSet", response).await
    }

    async fn list_synonym_sets(
        &self,
        request: Request<proto::ListSynonymSetsRequest>,
    ) -> Result<Response<proto::ListSynonymSetsResponse>, Status> {
        let response = async {
            let proto::ListSynonymSetsRequest { page_size, page_token } = request.into_inner();
            let rules = self.engine.rules();
            let (kind, page) = (EntryKind::SynonymSet, (page_size, page_token.as_str()));
            let page =
                self.entries_page(&rules.synonym_sets, kind, page, convert::synonym_set_to_proto, |set| set.id())?;
            let EntriesPage { entries, next_page_token, notices } = page;
            let total_size = rules.synonym_sets.len() as i32;
            Ok(Response::new(proto::ListSynonymSetsResponse {
                synonym_sets: entries,
                next_page_token,
                total_size,
                notices,
            }))
        };
        guarded(&self.metrics, "ListSynonymSets", response).await
    }

    async fn update_synonym_set(
        &self,
        request: Request<proto::UpdateSynonymSetRequest>,
    ) -> Result<Response<proto::UpdateSynonymSetResponse>, Status> {
        let audited = self.audited(
            &request,
            "SynonymService/UpdateSynonymSet",
            request.get_ref().synonym_set.as_ref().map_or("", |sent| &sent.synonym_set_id),
        );
        let response = async {
            let mode = |etag| PutMode::Update { etag };
            let sent = request.into_inner().synonym_set;
            let (synonym_set, log_position) = self.write_synonym_set(sent, mode).await?;
            Ok(Response::new(proto::UpdateSynonymSetResponse {
                synonym_set,
                consistency_token: self.consistency_token(log_position),
            }))
        };
        guarded(&self.metrics, "UpdateSynonymSet", audited.run(response)).await
    }

    async fn delete_synonym_set(
        &self,
        request: Request<proto::DeleteSynonymSetRequest>,
    ) -> Result<Response<proto::DeleteSynonymSetResponse>, Status> {
        let audited = self.audited(&request, "SynonymService/DeleteSynonymSet", &request.get_ref().synonym_set_id);
        let response = async {
            let proto::DeleteSynonymSetRequest { synonym_set_id, etag } = request.into_inner();
            let deleted = self.engine.delete_entry(EntryKind::SynonymSet, synonym_set_id, etag).await;
            Ok(Response::new(proto::DeleteSynonymSetResponse {
                consistency_token: self.consistency_token(deleted.map_err(status::of)?),
            }))
        };
        guarded(&self.metrics, "DeleteSynonymSet", audited.run(response)).await
    }
}
