//! ModelService: lists bundles and controls which of them answers.
use super::{
    convert,
    deadline::handler_deadline,
    guard::guarded,
    proto::{self, model_service_server::ModelService},
    rule_service::checked,
    services::Services,
    status,
    violations::Violations,
};
use lodestone_rollout::{BundleState, RolloutError};
use std::time::{Duration, Instant};
use tonic::{Request, Response, Status};

/// Longest time of a change, and that of a caller who sets none. Loading a bundle of millions of items takes minutes.
const CHANGE_DEADLINE: Duration = Duration::from_secs(300);

fn deadline<T>(request: &Request<T>) -> Instant {
    handler_deadline(request.metadata().as_ref(), CHANGE_DEADLINE, CHANGE_DEADLINE)
}

impl Services {
    /// Returns the bundle in a state.
    async fn bundle_in(&self, state: BundleState) -> Result<Option<proto::Bundle>, RolloutError> {
        let bundles = self.engine.rollout().bundles().await?;
        Ok(bundles.iter().find(|bundle| bundle.state == state).map(convert::bundle_to_proto))
    }
}

#[tonic::async_trait]
impl ModelService for Services {
    async fn list_bundles(
        &self,
        request: Request<proto::ListBundlesRequest>,
    ) -> Result<Response<proto::ListBundlesResponse>, Status> {
        let audited = self.audited(&request, "ModelService/ListBundles", "");
        let response = async {
            let bundles = self.engine.rollout().bundles().await.map_err(status::of_rollout)?;
            let bundles = bundles.iter().map(convert::bundle_to_proto).collect();
            Ok(Response::new(proto::ListBundlesResponse { bundles }))
        };
        guarded(&self.metrics, "ListBundles", audited.run(response)).await
    }

    async fn activate_bundle(
        &self,
        request: Request<proto::ActivateBundleRequest>,
    ) -> Result<Response<proto::ActivateBundleResponse>, Status> {
        let audited = self.audited(&request, "ModelService/ActivateBundle", &request.get_ref().bundle);
        let response = async {
            let deadline = deadline(&request);
            let mut violations = Violations::default();
            let name = convert::bundle_name(&mut violations, &request.into_inner().bundle);
            checked(violations)?;
            self.engine.rollout().activate(name, deadline).await.map_err(status::of_rollout)?;
            let bundle = self.bundle_in(BundleState::Current).await.map_err(status::of_rollout)?;
            Ok(Response::new(proto::ActivateBundleResponse { bundle }))
        };
        guarded(&self.metrics, "ActivateBundle", audited.run(response)).await
    }

    async fn rollback_bundle(
        &self,
        request: Request<proto::RollbackBundleRequest>,
    ) -> Result<Response<proto::RollbackBundleResponse>, Status> {
        let audited = self.audited(&request, "ModelService/RollbackBundle", "");
        let response = async {
            let deadline = deadline(&request);
            let mut violations = Violations::default();
            let reason = convert::reason(&mut violations, &request.into_inner().reason);
            checked(violations)?;
            self.engine.rollout().rollback(reason, deadline).await.map_err(status::of_rollout)?;
            let bundle = self.bundle_in(BundleState::Current).await.map_err(status::of_rollout)?;
            Ok(Response::new(proto::RollbackBundleResponse { bundle }))
        };
        guarded(&self.metrics, "RollbackBundle", audited.run(response)).await
    }

    async fn set_shadow(
        &self,
        request: Request<proto::SetShadowRequest>,
    ) -> Result<Response<proto::SetShadowResponse>, Status> {
        let audited = self.audited(&request, "ModelService/SetShadow", &request.get_ref().bundle);
        let response = async {
            let (deadline, mut violations) = (deadline(&request), Violations::default());
            let sent = request.into_inner();
            let shadow = convert::bundle_share(&mut violations, &sent.bundle, sent.share);
            checked(violations)?;
            self.engine.rollout().set_shadow(shadow, deadline).await.map_err(status::of_rollout)?;
            let bundle = self.bundle_in(BundleState::Shadow).await.map_err(status::of_rollout)?;
            Ok(Response::new(proto::SetShadowResponse { bundle }))
        };
        guarded(&self.metrics, "SetShadow", audited.run(response)).await
    }

    async fn set_canary(
        &self,
        request: Request<proto::SetCanaryRequest>,
    ) -> Result<Response<proto::SetCanaryResponse>, Status> {
        let audited = self.audited(&request, "ModelService/SetCanary", &request.get_ref().bundle);
        let response = async {
            let (deadline, mut violations) = (deadline(&request), Violations::default());
            let sent = request.into_inner();
            let canary = convert::bundle_share(&mut violations, &sent.bundle, sent.share);
            checked(violations)?;
            self.engine.rollout().set_canary(canary, deadline).await.map_err(status::of_rollout)?;
            let bundle = self.bundle_in(BundleState::Canary).await.map_err(status::of_rollout)?;
            Ok(Response::new(proto::SetCanaryResponse { bundle }))
        };
        guarded(&self.metrics, "SetCanary", audited.run(response)).await
    }
}
