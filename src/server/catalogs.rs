//! Several catalogues in one server. Each is an engine of its own, with its own log, state and bundles, behind services
//! of its own. Which of them a request reaches is decided before any service reads it, so that no service can mix them.
use super::{admission::Admission, status};
use http::Request;
use lodestone_engine::Engine;
use lodestone_telemetry::Metrics;
use std::{
    collections::BTreeMap,
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};
use tonic::{Status, body::Body, service::Routes};
use tower::Service;

/// The metadata of a request that names its catalogue. Absent or empty: [`DEFAULT_CATALOG`].
pub const CATALOG_METADATA: &str = "lodestone-catalog";

/// The name of the catalogue of requests that name none.
pub const DEFAULT_CATALOG: &str = "default";

/// The engines of a server by the name of their catalogue.
#[derive(Clone)]
pub struct Catalogs(BTreeMap<String, Arc<Engine>>);

impl From<Arc<Engine>> for Catalogs {
    /// Returns the catalogue `default` alone.
    fn from(engine: Arc<Engine>) -> Self {
        Self(BTreeMap::from([(DEFAULT_CATALOG.to_owned(), engine)]))
    }
}

impl Catalogs {
    /// Adds a catalogue.
    pub fn with(mut self, name: &str, engine: Arc<Engine>) -> Self {
        self.0.insert(name.to_owned(), engine);
        self
    }

    /// Returns the catalogues in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Arc<Engine>)> {
        self.0.iter().map(|(name, engine)| (name.as_str(), engine))
    }

    /// Returns the metrics of the server. Those of several catalogues have the label `catalog`.
    pub fn metrics_text(&self) -> String {
        let mut engines = self.0.values();
        match (engines.next(), engines.next()) {
            (Some(only), None) => only.metrics_text(),
            _ => Metrics::text_of_catalogs(self.iter().map(|(name, engine)| (name, engine.metrics(), engine.sizes()))),
        }
    }

    /// Returns the engine of requests that name no catalogue.
    pub(super) fn default_engine(&self) -> &Arc<Engine> {
        &self.0[DEFAULT_CATALOG]
    }

    /// Waits until a catalogue takes no more writes, because a change failed in a way that only a restart repairs.
    pub(super) async fn writes_stopped(&self) {
        let stopped = self.0.values().map(|engine| Box::pin(engine.writes_stopped()));
        futures_util::future::select_all(stopped).await;
    }
}

/// Passes each request to the services of its catalogue.
#[derive(Clone)]
pub(super) struct CatalogRouter {
    /// Health and reflection, which are of the whole server.
    of_server: Routes,
    by_catalog: Arc<BTreeMap<String, (Admission, Routes)>>,
}

impl CatalogRouter {
    pub(super) fn new(of_server: Routes, by_catalog: BTreeMap<String, (Admission, Routes)>) -> Self {
        Self { of_server, by_catalog: Arc::new(by_catalog) }
    }

    /// Returns the services of a request, or the status of its refusal.
    fn routes(&self, request: &Request<Body>) -> Result<Routes, Status> {
        let path = request.uri().path();
        if path.starts_with("/grpc.") {
            return Ok(self.of_server.clone());
        }
        let named = request.headers().get(CATALOG_METADATA).map(|value| value.as_bytes());
        let name = named.filter(|name| !name.is_empty()).unwrap_or(DEFAULT_CATALOG.as_bytes());
        let name = String::from_utf8_lossy(name);
        let Some((admission, routes)) = self.by_catalog.get(&*name) else {
            return Err(status::catalog_not_found(&name));
        };
        admission.check(path, request.headers())?;
        Ok(routes.clone())
    }
}

type Response = http::Response<Body>;

impl Service<Request<Body>> for CatalogRouter {
    type Response = Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // Routes are always ready.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        match self.routes(&request) {
            Ok(mut routes) => Box::pin(routes.call(request)),
            Err(status) => Box::pin(std::future::ready(Ok(status.into_http()))),
        }
    }
}
