//! serve
use super::{LibraryArgs, open_store};
use crate::server::{self, ServerConfig, metrics_endpoint};
use anyhow::Context;
use lodestone_engine::{EngineConfig, OpenOptions, open};
use lodestone_pipeline::{
    answers::AnswersConfig,
    ranking::Device,
    serving::{Serving, ServingConfig},
};
use lodestone_rollout::{BundleSource, HealthBounds, RolloutConfig};
use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

#[derive(clap::Args)]
pub(super) struct ServeArgs {
    /// The bundle that `train` wrote: it serves as long as the server runs.
    #[arg(
        long,
        value_name = "DIR",
        env = "LODESTONE_BUNDLE",
        required_unless_present = "store",
        conflicts_with = "store"
    )]
    bundle: Option<PathBuf>,
    /// A store of bundles, which `bundle publish` fills: a directory or a URL. The server loads what is current there, watches
    /// it, and loads what becomes current later beside it; docs/model-rollout.md tells all of it.
    #[arg(long, value_name = "DIR|URL", env = "LODESTONE_STORE")]
    store: Option<String>,
    #[command(flatten)]
    life: LifeArgs,
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
    #[arg(long, value_name = "N", env = "LODESTONE_DEDUPE_IDS_MAX", default_value_t = lodestone_events::DEDUPE_IDS_MAX)]
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

/// How bundles come and go.
#[derive(clap::Args)]
struct LifeArgs {
    /// How often the store is asked what is current.
    #[arg(long, value_name = "S", env = "LODESTONE_WATCH_SECONDS", default_value_t = 10.0)]
    watch_seconds: f64,
    /// Bundles that stay in memory after they answered: for a way back without loading, and for later pages of their answers.
    #[arg(long, value_name = "N", env = "LODESTONE_KEPT_BUNDLES_MAX", default_value_t = 1)]
    kept_bundles_max: usize,
    /// A canary or a new bundle is judged by the answers of so many seconds.
    #[arg(long, value_name = "S", env = "LODESTONE_BOUNDS_WINDOW_SECONDS", default_value_t = 60.0)]
    bounds_window_seconds: f64,
    /// After a swap the new bundle is judged so long; then it is trusted.
    #[arg(long, value_name = "S", env = "LODESTONE_PROBATION_SECONDS", default_value_t = 600.0)]
    probation_seconds: f64,
    /// Fewer answers than this say nothing.
    #[arg(long, value_name = "N", env = "LODESTONE_BOUNDS_REQUESTS_MIN", default_value_t = 200)]
    bounds_requests_min: u64,
    /// A bundle is taken back where a greater share of its answers fails.
    #[arg(long, value_name = "0..1", env = "LODESTONE_ERROR_SHARE_MAX", default_value_t = 0.01)]
    error_share_max: f64,
    /// A bundle is taken back where so much more of its answers lack a model or a source than before.
    #[arg(long, value_name = "0..1", env = "LODESTONE_DEGRADED_SHARE_MAX", default_value_t = 0.05)]
    degraded_share_max: f64,
    /// A bundle is taken back where the 99th percentile of its time in a worker is so many times that of the other one.
    #[arg(long, value_name = "RATIO", env = "LODESTONE_P99_RATIO_MAX", default_value_t = 2.0)]
    p99_ratio_max: f64,
    /// A canary is taken back where its users certainly choose something from fewer answers than the others do, times this. 0:
    /// choices are no bound.
    #[arg(long, value_name = "RATIO", env = "LODESTONE_CHOICE_RATIO_MIN", default_value_t = 0.8)]
    choice_ratio_min: f64,
}

impl LifeArgs {
    fn config(&self) -> anyhow::Result<RolloutConfig> {
        let seconds = |name: &str, value: f64, least: f64| match (least..=1e7).contains(&value) {
            true => Ok(Duration::from_secs_f64(value)),
            false => Err(anyhow::anyhow!("--{name} is {value}; it must be within {least} and 10,000,000")),
        };
        for (name, share) in
            [("error-share-max", self.error_share_max), ("degraded-share-max", self.degraded_share_max)]
        {
            anyhow::ensure!((0.0..=1.0).contains(&share), "--{name} is {share}; it must be within 0 and 1");
        }
        anyhow::ensure!(self.p99_ratio_max >= 1.0, "--p99-ratio-max is {}; it must be at least 1", self.p99_ratio_max);
        let ratio = self.choice_ratio_min;
        anyhow::ensure!((0.0..=1.0).contains(&ratio), "--choice-ratio-min is {ratio}; it must be within 0 and 1");
        Ok(RolloutConfig {
            watch: seconds("watch-seconds", self.watch_seconds, 0.05)?,
            kept_max: self.kept_bundles_max,
            bounds: HealthBounds {
                requests_min: self.bounds_requests_min.max(1),
                error_share_max: self.error_share_max,
                degraded_share_max: self.degraded_share_max,
                p99_ratio_max: self.p99_ratio_max,
                choice_ratio_min: self.choice_ratio_min,
                window: seconds("bounds-window-seconds", self.bounds_window_seconds, 0.1)?,
                probation: seconds("probation-seconds", self.probation_seconds, 0.0)?,
            },
        })
    }
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum DeviceArg {
    Cpu,
    Cuda,
}

/// The number that Linux gives it on x86 and ARM.
const SIGXFSZ: i32 = 25;

pub(super) fn serve(args: ServeArgs) -> anyhow::Result<()> {
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
    lodestone_core::text::warm_up();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let bundle = match (&args.store, &args.bundle) {
        (Some(store), _) => BundleSource::Store(open_store(store)?),
        (None, bundle) => BundleSource::Directory(bundle.clone().context("--bundle or --store is needed")?),
    };
    let engine = open(OpenOptions {
        bundle,
        rollout: args.life.config()?,
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
            tokio::spawn(metrics_endpoint::serve(listener, move || engine.metrics_text()));
        }
        server::serve(engine.clone(), config, listener, stop_signal()).await?;
        engine.checkpoint_on_shutdown();
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
