//! serve
use super::LibraryArgs;
use crate::{
    answers::AnswersConfig,
    engine::{EngineConfig, Opening, open},
    ranking::Device,
    server::{self, ServerConfig},
    serving::{Serving, ServingConfig},
    telemetry,
};
use anyhow::Context;
use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

#[derive(clap::Args)]
pub struct ServeArgs {
    /// The bundle that `train` wrote.
    #[arg(long, value_name = "DIR", env = "LODESTONE_BUNDLE")]
    bundle: PathBuf,
    /// The shop's data directory: the imported history, if any, and the log of what comes in.
    #[arg(long, value_name = "DIR", env = "LODESTONE_DATA")]
    data: PathBuf,
    #[arg(long, value_name = "HOST:PORT", env = "LODESTONE_LISTEN", default_value = "127.0.0.1:50051")]
    listen: SocketAddr,
    /// Answers GET /metrics here, for Prometheus; see docs/metrics.md. Default: nowhere.
    #[arg(long, value_name = "HOST:PORT", env = "LODESTONE_METRICS_LISTEN")]
    metrics_listen: Option<SocketAddr>,
    /// Threads that answer, each with its own models. Default: one for each core.
    #[arg(long, value_name = "N", env = "LODESTONE_WORKERS")]
    workers: Option<usize>,
    /// Requests that may wait for a thread; one more is refused with RESOURCE_EXHAUSTED.
    #[arg(long, value_name = "N", env = "LODESTONE_QUEUE_REQUESTS_MAX", default_value_t = 1024)]
    queue_requests_max: usize,
    /// Where the models run. `cuda` needs a build with the cargo feature `cuda` and the CUDA build of the library.
    #[arg(long, value_enum, env = "LODESTONE_DEVICE", default_value = "cpu")]
    device: DeviceArg,
    /// Moves the imported history so that it ends now: for demonstrations with old data. Each start then reads the whole log.
    #[arg(long, env = "LODESTONE_HISTORY_ENDS_NOW")]
    history_ends_now: bool,
    /// Event ids that are remembered for seven days at most, 17 to 29 bytes each; beyond it the oldest are forgotten sooner.
    #[arg(long, value_name = "N", env = "LODESTONE_DEDUPE_IDS_MAX", default_value_t = crate::events::DEDUPE_IDS_MAX)]
    dedupe_ids_max: usize,
    /// How far an event's time may be ahead of this clock; one that is further ahead is refused with both times.
    #[arg(long, value_name = "S", env = "LODESTONE_EVENT_AHEAD_S_MAX", default_value_t = 300)]
    event_ahead_s_max: u32,
    /// How strongly answers avoid items that are alike where a request does not say, 0 to 1.
    #[arg(long, value_name = "0..1", env = "LODESTONE_DIVERSITY_DEFAULT", default_value_t = 0.0)]
    diversity_default: f32,
    /// Named configurations, exploration and experiments; see docs/serving.md. Default: one configuration without exploration.
    #[arg(long, value_name = "FILE", env = "LODESTONE_SERVING")]
    serving: Option<PathBuf>,
    /// The share of answers whose record is kept under DATA/answers, for replay and for learning; see docs/answers.md.
    /// Default: 1 where the serving file explores or has experiments, otherwise 0.1.
    #[arg(long, value_name = "0..1", env = "LODESTONE_ANSWERS_SHARE")]
    answers_share: Option<f64>,
    /// Days for which records of answers are kept.
    #[arg(long, value_name = "N", env = "LODESTONE_ANSWERS_DAYS", default_value_t = AnswersConfig::default().days_max)]
    answers_days: u32,
    /// Bytes that all records of answers may take; beyond it the oldest files are removed.
    #[arg(long, value_name = "N", env = "LODESTONE_ANSWERS_BYTES", default_value_t = AnswersConfig::default().bytes_max)]
    answers_bytes: u64,
    /// Words that mean the same, a line each: `sofa, couch` or `tv => television`; see docs/search.md.
    #[arg(long, value_name = "FILE", env = "LODESTONE_SYNONYMS")]
    synonyms: Option<PathBuf>,
    /// The time of a request that brings no deadline.
    #[arg(long, value_name = "MS", env = "LODESTONE_DEADLINE_MS_DEFAULT", default_value_t = 1000)]
    deadline_ms_default: u64,
    #[command(flatten)]
    library: LibraryArgs,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum DeviceArg {
    Cpu,
    Cuda,
}

/// The number that Linux gives it on x86 and ARM.
const SIGXFSZ: i32 = 25;

pub fn serve(args: ServeArgs) -> anyhow::Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "lodestone=info,warn".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    anyhow::ensure!(
        (0.0..=1.0).contains(&args.diversity_default),
        "--diversity-default is {}; it must be within 0 and 1",
        args.diversity_default
    );
    if let Some(share) = args.answers_share {
        anyhow::ensure!((0.0..=1.0).contains(&share), "--answers-share is {share}; it must be within 0 and 1");
    }
    anyhow::ensure!(
        (1..=3650).contains(&args.answers_days),
        "--answers-days is {}; it must be within 1 and 3650",
        args.answers_days
    );
    let base = ServingConfig { diversity: args.diversity_default, ..ServingConfig::default() };
    let serving = match &args.serving {
        Some(path) => Serving::open(path, &base)?,
        None => Serving::of(base),
    };
    let share = args.answers_share.unwrap_or(if serving.varies() { 1.0 } else { AnswersConfig::default().share });
    let answers = AnswersConfig { share, days_max: args.answers_days, bytes_max: args.answers_bytes };
    crate::text::warm_up();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let engine = open(Opening {
        bundle: &args.bundle,
        data: &args.data,
        library: args.library.onnxruntime.as_deref(),
        device: match args.device {
            DeviceArg::Cpu => Device::Cpu,
            DeviceArg::Cuda => Device::Cuda,
        },
        synonyms: args.synonyms.as_deref(),
        workers: args.workers.unwrap_or(cores),
        queue_requests_max: args.queue_requests_max,
        history_ends_now: args.history_ends_now,
        dedupe_ids_max: args.dedupe_ids_max,
        config: EngineConfig { serving: Arc::new(serving), answers, ..EngineConfig::default() },
    })?;
    // Reading and writing requests takes a third of what answering does; more threads only take turns on the cores.
    let io_threads = (cores / 2).max(1);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(io_threads).enable_all().build()?;
    runtime.block_on(async {
        // A file that reaches a limit (`ulimit -f`) is a failed write then, and not the end of the process.
        let _limit = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::from_raw(SIGXFSZ))?;
        let listener = tokio::net::TcpListener::bind(args.listen)
            .await
            .with_context(|| format!("cannot listen on {}", args.listen))?;
        tracing::info!(address = %listener.local_addr()?, generation = %engine.generation(), "serving");
        let config = ServerConfig {
            deadline_default: Duration::from_millis(args.deadline_ms_default),
            event_ahead_max: Duration::from_secs(args.event_ahead_s_max.into()),
            ..ServerConfig::default()
        };
        let engine = Arc::new(engine);
        if let Some(address) = args.metrics_listen {
            let listener = tokio::net::TcpListener::bind(address)
                .await
                .with_context(|| format!("cannot listen for metrics on {address}"))?;
            let engine = engine.clone();
            tokio::spawn(telemetry::serve(listener, move || engine.metrics_text()));
        }
        server::serve(engine.clone(), config, listener, stop_signal()).await?;
        engine.checkpoint_at_end();
        tracing::info!("stopped");
        Ok(())
    })
}

/// Ends at SIGINT or SIGTERM.
async fn stop_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut terminate) = signal(SignalKind::terminate()) else {
        let _ = tokio::signal::ctrl_c().await;
        return;
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
}
