//! The server that a command calls, and its catalogue.
use super::catalogs::catalog_name;
use crate::server::{CATALOG_METADATA, DEFAULT_CATALOG};
use anyhow::Context;
use std::time::Duration;
use tonic::{
    Request, Status,
    metadata::AsciiMetadataValue,
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint},
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A running server.
#[derive(clap::Args)]
pub(crate) struct ServerArgs {
    /// Address of the server.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:50051")]
    address: String,
    /// Catalogue of the server: a name of the file of `lodestone serve --catalogs`, or `default`.
    #[arg(long, value_name = "NAME", value_parser = metadata, default_value = DEFAULT_CATALOG)]
    catalog: AsciiMetadataValue,
}

/// A connection whose requests name their catalogue.
pub(crate) type ServerChannel = InterceptedService<Channel, CatalogOfRequests>;

/// Adds the name of the catalogue to requests.
#[derive(Clone)]
pub(crate) struct CatalogOfRequests(AsciiMetadataValue);

impl Interceptor for CatalogOfRequests {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert(CATALOG_METADATA, self.0.clone());
        Ok(request)
    }
}

/// Parses the name of a catalogue.
fn metadata(name: &str) -> Result<AsciiMetadataValue, String> {
    let name = catalog_name(name)?;
    name.parse().map_err(|_| format!("`{name}` cannot be sent as metadata"))
}

impl ServerArgs {
    pub(crate) async fn connect(&self) -> anyhow::Result<ServerChannel> {
        let address = &self.address;
        let endpoint = Endpoint::from_shared(format!("http://{address}")).context("--address")?.tcp_nodelay(true);
        let connected = endpoint.connect_timeout(CONNECT_TIMEOUT).connect().await;
        let channel = connected.with_context(|| format!("no server answers at {address} (--address)"))?;
        Ok(InterceptedService::new(channel, CatalogOfRequests(self.catalog.clone())))
    }
}
