//! An engine behind its gRPC services, in the process of the test.
use lodestone::server::{Catalogs, ServerConfig, serve};
use lodestone_engine::Engine;
use std::{sync::Arc, time::Duration};
use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle};
use tonic::transport::{Channel, Endpoint};

/// A server on a free port.
pub(crate) struct GrpcServer {
    pub(crate) channel: Channel,
    pub(crate) engine: Arc<Engine>,
    endpoint: Endpoint,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl GrpcServer {
    pub(crate) async fn start(engine: Engine) -> Self {
        let engine = Arc::new(engine);
        Self::start_with(engine.clone(), engine.into()).await
    }

    /// Starts a server of several catalogues, of which `engine` is the default one.
    pub(crate) async fn start_with(engine: Arc<Engine>, catalogs: Catalogs) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        // A test on a busy machine has longer deadlines than a shop.
        let limit = Duration::from_secs(60);
        let config = ServerConfig { deadline_default: limit, deadline_max: limit, ..ServerConfig::default() };
        let task = tokio::spawn(async move {
            let stopped = async { stopped.await.unwrap_or_default() };
            serve(catalogs, config, listener, stopped).await.unwrap();
        });
        let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
        Self { channel: endpoint.connect_lazy(), engine, endpoint, stop, task }
    }

    /// Returns a channel with a connection of its own.
    pub(crate) fn connect(&self) -> Channel {
        self.endpoint.connect_lazy()
    }

    /// Returns the number in a line of the metrics, which begins after `lodestone_`.
    pub(crate) fn metric(&self, line: &str) -> Option<u64> {
        let text = self.engine.metrics_text();
        let found = text.lines().find_map(|found| found.strip_prefix(&format!("lodestone_{line} ")));
        found.map(|number| number.parse().unwrap())
    }

    /// Ends the server and drops its engine.
    pub(crate) async fn end(self) {
        drop((self.channel, self.engine));
        self.stop.send(()).unwrap();
        self.task.await.unwrap();
    }
}
