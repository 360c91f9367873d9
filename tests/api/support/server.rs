//! A gRPC server in this process.
use super::wait::wait_until;
use lodestone::server::{self, ServerConfig};
use lodestone_engine::Engine;
use std::{io, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle};
use tonic::{
    Status,
    transport::{Channel, ClientTlsConfig, Endpoint},
};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

/// The limit of waits for the server. A test on a busy machine may wait long.
pub(crate) const TIME_MAX: Duration = Duration::from_secs(60);

pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    stop: oneshot::Sender<()>,
    serving: JoinHandle<io::Result<()>>,
}

impl Server {
    pub(crate) async fn start(engine: &Arc<Engine>, config: ServerConfig) -> Self {
        let config = ServerConfig { deadline_default: TIME_MAX, deadline_max: TIME_MAX, ..config };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let shutdown = async move { stopped.await.unwrap_or_default() };
        let serving = tokio::spawn(server::serve(engine.clone(), config, listener, shutdown));
        Self { address, stop, serving }
    }

    /// Returns a channel without TLS.
    pub(crate) fn connect(&self) -> Channel {
        Endpoint::from_shared(format!("http://{}", self.address)).unwrap().connect_lazy()
    }

    pub(crate) async fn try_connect(&self, tls: ClientTlsConfig) -> Result<Channel, Status> {
        let endpoint = Endpoint::from_shared(format!("https://{}", self.address)).unwrap();
        let channel = endpoint.tls_config(tls).unwrap().connect().await;
        channel.map_err(|error| Status::from_error(error.into()))
    }

    /// Begins the shutdown. Returns the address of the server and its task.
    pub(crate) fn stop(self) -> (SocketAddr, JoinHandle<io::Result<()>>) {
        self.stop.send(()).unwrap();
        (self.address, self.serving)
    }

    pub(crate) async fn end(self) {
        self.stop().1.await.unwrap().unwrap();
    }

    /// Begins the shutdown, and returns when the server reports that it is not ready.
    pub(crate) async fn begin_end(self) -> (SocketAddr, JoinHandle<io::Result<()>>) {
        let health = HealthClient::new(self.connect());
        let stopping = self.stop();
        wait_until("the server is not ready", TIME_MAX, async || {
            let checked = health.clone().check(HealthCheckRequest::default()).await.unwrap();
            checked.into_inner().status() == ServingStatus::NotServing
        })
        .await;
        stopping
    }
}
