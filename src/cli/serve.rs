//! `lodestone serve`
use super::{
    LibraryArgs,
    catalogs::{self, CatalogSource, WORKERS_MAX, currency_code},
    connections::ConnectionArgs,
    exit::Exit,
    listen::{BoundAddress, ListenAddresses},
    log,
    numbers::{between, whole, within},
    observability::ObservabilityArgs,
    security::{Security, SecurityArgs},
    settings::Settings,
    signal::StopSignals,
    store_options,
};
use crate::{
    audit::{self, AuditLog},
    server::{self, Catalogs, Collector, DEFAULT_CATALOG, Health, ServerConfig, Traces, http_endpoint},
};
use anyhow::Context;
use lodestone_core::error_chain::format_error_chain;
use lodestone_engine::{Engine, EngineConfig, OpenError, OpenOptions, open};
use lodestone_events::LogError;
use lodestone_index::Languages;
use lodestone_pipeline::{
    answers::AnswerLogConfig,
    bundle::BundleError,
    ranking::Device,
    serving::{Serving, ServingConfig, ServingError},
};
use lodestone_rollout::{BundleSource, HealthBounds, RolloutConfig, SlateCacheConfig, Store};
use lodestone_rules::SynonymsError;
use lodestone_state::{RecoveryError, StateLimits};
use std::{fs, io, path::PathBuf, sync::Arc, time::Duration};
use tokio::sync::oneshot;

pub(super) const USAGE: &str = "\
lodestone serve --bundle <DIR> --data <DIR> [OPTIONS]     (one bundle)
       lodestone serve --store <DIR|URL> --data <DIR> [OPTIONS]  (the current bundle of a store)
       lodestone serve --config <FILE> [OPTIONS]                 (settings of a file)";
pub(super) const EXAMPLES: &str = "\
Examples:
  lodestone serve --bundle bundle --data data
  lodestone serve --store s3://bucket/shop --data data --metrics-listen 127.0.0.1:9464
  lodestone serve --config lodestone.toml --workers 4";

/// Serves ranking, events and the catalogue over gRPC.
///
/// Every flag can also be set by its environment variable, or by its key in a file, see --config. SIGTERM and Ctrl-C
/// finish the running requests and end the server with exit code 0.
#[derive(clap::Args)]
#[command(group = clap::ArgGroup::new("source").required(true).args(["bundle", "store"]))]
pub(crate) struct ServeArgs {
    /// TOML file with settings: the names of these flags with `_` instead of `-`, such as `metrics_listen =
    /// "127.0.0.1:9464"`. Flags override environment variables, and these override the file; see docs/cli.md.
    #[arg(long, value_name = "FILE", env = "LODESTONE_CONFIG")]
    config: Option<PathBuf>,
    /// The bundle of `lodestone train`. It serves until the server ends.
    #[arg(long, value_name = "DIR", env = "LODESTONE_BUNDLE")]
    pub(super) bundle: Option<PathBuf>,
    /// A store of bundles, a directory or a URL, filled by `lodestone bundle publish`. The server loads the store's
    /// current bundle, watches the store, and swaps in later bundles without interruption; see docs/model-rollout.md.
    #[arg(long, value_name = "DIR|URL", env = "LODESTONE_STORE")]
    pub(super) store: Option<String>,
    /// The data directory: the imported history, if any, and the event log.
    #[arg(long, value_name = "DIR", env = "LODESTONE_DATA")]
    pub(super) data: PathBuf,
    /// Address of the gRPC server. The host is a name or an IP address; of a name with several addresses, the first
    /// that can be bound, IPv4 before IPv6.
    #[arg(long, value_name = "HOST:PORT", env = "LODESTONE_LISTEN", default_value = "127.0.0.1:50051")]
    listen: String,
    /// Address of the HTTP endpoint: GET /metrics for Prometheus, /livez, /readyz and /version for probes; see
    /// docs/observability.md. Default: no HTTP endpoint.
    #[arg(long, value_name = "HOST:PORT", env = "LODESTONE_METRICS_LISTEN")]
    metrics_listen: Option<String>,
    /// Worker threads, each with its own models. At most 1,024. Default: one per core.
    #[arg(long, value_name = "N", env = "LODESTONE_WORKERS", value_parser = within(1..=WORKERS_MAX as u64))]
    workers: Option<usize>,
    /// Length of the request queue of each priority. Further requests are refused with RESOURCE_EXHAUSTED; most are refused
    /// earlier, see docs/overload.md.
    #[arg(long, value_name = "N", env = "LODESTONE_QUEUE_REQUESTS_MAX", value_parser = within(1..),
          default_value_t = 1024)]
    queue_requests_max: usize,
    /// Greatest memory of the answers that are kept for later pages, in bytes, of each bundle in memory. Beyond it the
    /// `page_token`s of the answers that were not used for the longest time expire early.
    #[arg(long, value_name = "N", env = "LODESTONE_SLATES_BYTES", value_parser = whole::<u64>(1 << 20..),
          default_value_t = SlateCacheConfig::default().bytes_max)]
    slates_bytes: u64,
    /// Device of the models. `cuda` requires a build with the cargo feature `cuda` and the CUDA build of ONNX Runtime.
    #[arg(long, value_enum, env = "LODESTONE_DEVICE", default_value = "cpu")]
    device: DeviceArg,
    /// Shifts the imported history in time so that it ends now, for demonstrations with old data. Every startup then
    /// reads the whole log.
    #[arg(long, env = "LODESTONE_HISTORY_ENDS_NOW")]
    history_ends_now: bool,
    /// Greatest number of event ids remembered for deduplication, 17 to 29 bytes each. Ids expire after seven days, or
    /// earlier, the oldest first, when there are more than this.
    #[arg(long, value_name = "N", env = "LODESTONE_DEDUPE_IDS_MAX", value_parser = within(1..),
          default_value_t = lodestone_events::DEDUPE_IDS_MAX)]
    dedupe_ids_max: usize,
    /// Greatest number of users and visitors with a history. Beyond it, those with the earliest last events are
    /// forgotten, an eighth of the limit at once.
    #[arg(long, value_name = "N", env = "LODESTONE_USERS_MAX", value_parser = within(1..),
          default_value_t = StateLimits::default().users_max)]
    users_max: usize,
    /// Greatest number of items that events name. Beyond it, the events of those with the earliest last events are
    /// forgotten, an eighth of the limit at once.
    #[arg(long, value_name = "N", env = "LODESTONE_EVENT_ITEMS_MAX", value_parser = within(1..),
          default_value_t = StateLimits::default().event_items_max)]
    event_items_max: usize,
    /// Seconds that an event's time may be ahead of the server's clock. Events further ahead are rejected with both
    /// times.
    #[arg(long, value_name = "S", env = "LODESTONE_EVENT_AHEAD_S_MAX", value_parser = whole::<u32>(0..), default_value_t = 300)]
    event_ahead_s_max: u32,
    /// Diversity of the results when a request does not set it: from 0, ranked by score only, to 1.
    #[arg(long, value_name = "0..1", env = "LODESTONE_DIVERSITY_DEFAULT", value_parser = between(0.0, 1.0),
          default_value_t = 0.0)]
    diversity_default: f64,
    /// TOML file with serving configurations, exploration and experiments; see docs/serving.md. Default: one
    /// configuration without exploration.
    #[arg(long, value_name = "FILE", env = "LODESTONE_SERVING")]
    serving: Option<PathBuf>,
    /// TOML file with further catalogues, each with a bundle and a data directory of its own; see docs/catalogs.md.
    /// Default: the catalogue `default` alone, of --bundle or --store and --data.
    #[arg(long, value_name = "FILE", env = "LODESTONE_CATALOGS")]
    catalogs: Option<PathBuf>,
    /// Share of the answers that are logged under DATA/answers, for replay and off-policy evaluation; see
    /// docs/answers.md. Default: 1 if the serving file explores or has experiments, otherwise 0.1.
    #[arg(long, value_name = "0..1", env = "LODESTONE_ANSWERS_SHARE", value_parser = between(0.0, 1.0))]
    answers_share: Option<f64>,
    /// Retention of logged answers in days.
    #[arg(long, value_name = "N", env = "LODESTONE_ANSWERS_DAYS", value_parser = whole::<u32>(1..=3650),
          default_value_t = AnswerLogConfig::default().days_max)]
    answers_days: u32,
    /// Greatest size of the answer log in bytes. The oldest files are removed beyond it.
    #[arg(long, value_name = "N", env = "LODESTONE_ANSWERS_BYTES", value_parser = whole::<u64>(1..),
          default_value_t = AnswerLogConfig::default().bytes_max)]
    answers_bytes: u64,
    /// Synonyms, one rule per line: `sofa, couch` or `tv => television`; see docs/search.md.
    #[arg(long, value_name = "FILE", env = "LODESTONE_SYNONYMS")]
    synonyms: Option<PathBuf>,
    /// Languages of the items' texts, for inflected forms: any of ar, da, de, el, en, es, fi, fr, hu, it, nl, no, pl,
    /// pt, ro, ru, sv, tr, separated by commas; see docs/search.md.
    #[arg(long, value_name = "LIST", env = "LODESTONE_LANGUAGES", default_value = "en")]
    languages: Languages,
    /// The currency in which requests compare prices, such as EUR, in a catalogue with prices in several, if neither the
    /// viewer nor the filter chooses one. Without it such requests are refused. See docs/places.md.
    #[arg(long, value_name = "CODE", env = "LODESTONE_CURRENCY", value_parser = currency_code)]
    currency: Option<String>,
    /// Number of different users that must have searched for a text before others see it as a completion, 1 to 100.
    #[arg(long, value_name = "N", env = "LODESTONE_COMPLETION_USERS_MIN",
          value_parser = within(1..=lodestone_state::COMPLETION_USERS_MIN_MAX as u64),
          default_value_t = lodestone_state::COMPLETION_USERS_MIN)]
    completion_users_min: usize,
    /// Deadline of requests that set none.
    #[arg(long, value_name = "MS", env = "LODESTONE_DEADLINE_MS_DEFAULT", value_parser = whole::<u64>(1..), default_value_t = 1000)]
    deadline_ms_default: u64,
    /// Greatest number of connections. Further ones are closed at once. Each needs a file descriptor; see `ulimit -n`.
    #[arg(long, value_name = "N", env = "LODESTONE_CONNECTIONS_MAX", value_parser = within(1..=1_000_000),
          default_value_t = ServerConfig::default().connections_max)]
    pub(super) connections_max: usize,
    #[command(flatten)]
    pub(super) library: LibraryArgs,
    // Last, because their help headings continue.
    #[command(flatten)]
    pub(super) security: SecurityArgs,
    #[command(flatten)]
    pub(super) observability: ObservabilityArgs,
    #[command(flatten)]
    pub(super) connections: ConnectionArgs,
    #[command(flatten)]
    rollout: RolloutArgs,
}

/// Greatest duration of a setting in seconds: 116 days.
const SECONDS_MAX: f64 = 1e7;

/// Rollout of new bundles.
#[derive(clap::Args)]
#[command(next_help_heading = "Rollout of new bundles")]
struct RolloutArgs {
    /// Interval in which the store is polled for its current bundle.
    #[arg(long, value_name = "S", env = "LODESTONE_WATCH_SECONDS", value_parser = between(0.05, SECONDS_MAX),
          default_value_t = 10.0)]
    watch_seconds: f64,
    /// Former bundles that stay in memory, for rollback without loading and for later pages of their results.
    #[arg(long, value_name = "N", env = "LODESTONE_KEPT_BUNDLES_MAX", value_parser = within(0..), default_value_t = 1)]
    kept_bundles_max: usize,
    /// Health window: a canary or a new bundle is judged by the answers of this many recent seconds.
    #[arg(long, value_name = "S", env = "LODESTONE_BOUNDS_WINDOW_SECONDS", value_parser = between(0.1, SECONDS_MAX),
          default_value_t = 60.0)]
    bounds_window_seconds: f64,
    /// Time after a swap in which the new bundle is judged and may be rolled back.
    #[arg(long, value_name = "S", env = "LODESTONE_PROBATION_SECONDS", value_parser = between(0.0, SECONDS_MAX),
          default_value_t = 600.0)]
    probation_seconds: f64,
    /// Least number of answers in the health window for a judgement.
    #[arg(long, value_name = "N", env = "LODESTONE_BOUNDS_REQUESTS_MIN", value_parser = whole::<u64>(0..), default_value_t = 200)]
    bounds_requests_min: u64,
    /// A bundle is rolled back if a greater share of its answers are errors.
    #[arg(long, value_name = "0..1", env = "LODESTONE_ERROR_SHARE_MAX", value_parser = between(0.0, 1.0),
          default_value_t = 0.01)]
    error_share_max: f64,
    /// A bundle is rolled back if the share of its degraded answers (without a model or a source) exceeds that of the
    /// other bundle by more than this.
    #[arg(long, value_name = "0..1", env = "LODESTONE_DEGRADED_SHARE_MAX", value_parser = between(0.0, 1.0),
          default_value_t = 0.05)]
    degraded_share_max: f64,
    /// A bundle is rolled back if the 99th percentile of its time in a worker exceeds that of the other bundle times
    /// this, 1 to 1000.
    #[arg(long, value_name = "RATIO", env = "LODESTONE_P99_RATIO_MAX", value_parser = between(1.0, 1000.0),
          default_value_t = 2.0)]
    p99_ratio_max: f64,
    /// A canary is rolled back if, with confidence, its users interact with fewer answers than the other users times
    /// this. 0 turns the bound off.
    #[arg(long, value_name = "RATIO", env = "LODESTONE_CHOICE_RATIO_MIN", value_parser = between(0.0, 1.0),
          default_value_t = 0.8)]
    choice_ratio_min: f64,
}

impl RolloutArgs {
    fn config(&self) -> RolloutConfig {
        RolloutConfig {
            watch: Duration::from_secs_f64(self.watch_seconds),
            kept_max: self.kept_bundles_max,
            bounds: HealthBounds {
                requests_min: self.bounds_requests_min.max(1),
                error_share_max: self.error_share_max,
                degraded_share_max: self.degraded_share_max,
                p99_ratio_max: self.p99_ratio_max,
                conversion_ratio_min: self.choice_ratio_min,
                window: Duration::from_secs_f64(self.bounds_window_seconds),
                probation: Duration::from_secs_f64(self.probation_seconds),
            },
        }
    }
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum DeviceArg {
    Cpu,
    Cuda,
}

pub(crate) fn serve(args: ServeArgs, settings: &Settings) -> anyhow::Result<Exit> {
    log::start(args.observability.log_format);
    lodestone_telemetry::count_panics();
    settings.warn_of_unknown_variables();
    if let Some(config) = &args.config {
        tracing::info!(config = %config.display(), "settings of a file");
    }
    let addresses = Addresses::resolve(&args)?;
    addresses.check_distinct()?;
    args.connections.check()?;
    // Certificates and keys are checked before anything is loaded or bound.
    let security = args.security.open(&addresses.grpc)?;
    let collector = args.observability.collector()?;
    let sources = catalog_sources(&args)?;
    // All files are read before anything is loaded.
    let configs = sources.iter().map(|source| engine_config(&args, source)).collect::<anyhow::Result<Vec<_>>>()?;
    sources.iter().try_for_each(|source| check_data(source).map(drop))?;
    // A port in use is noticed before anything is loaded or written.
    let bound = addresses.bind()?;
    lodestone_core::text::warm_up();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut sources = sources.iter().zip(configs);
    let (default, config) = sources.next().context("the catalogue `default` is first")?;
    let mut catalogs = Catalogs::from(Arc::new(open_engine(&args, default, config, cores)?));
    for (source, config) in sources {
        let engine = open_engine(&args, source, config, cores);
        catalogs = catalogs.with(&source.name, Arc::new(engine.with_context(|| format!("catalogue {}", source.name))?));
    }
    // The lock of the data directory is held now.
    let audit = AuditLog::open(&args.data.join(audit::DIRECTORY), args.security.audit_settings())?;
    // Network I/O takes a third of the time of ranking; more threads would only compete for the cores.
    let io_threads = (cores / 2).max(1);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(io_threads).enable_all().build()?;
    runtime.block_on(run_server(&args, bound, (security, audit), collector, catalogs))?;
    Ok(Exit::Success)
}

/// The addresses of the server.
pub(super) struct Addresses {
    pub(super) grpc: ListenAddresses,
    pub(super) metrics: Option<ListenAddresses>,
}

impl Addresses {
    pub(super) fn resolve(args: &ServeArgs) -> anyhow::Result<Self> {
        let metrics = args.metrics_listen.as_deref();
        Ok(Self {
            grpc: ListenAddresses::resolve("--listen", &args.listen)?,
            metrics: metrics.map(|text| ListenAddresses::resolve("--metrics-listen", text)).transpose()?,
        })
    }

    /// Checks that both ports can be bound at the same time.
    pub(super) fn check_distinct(&self) -> anyhow::Result<()> {
        self.metrics.as_ref().map_or(Ok(()), |metrics| self.grpc.check_distinct(metrics))
    }

    fn bind(&self) -> anyhow::Result<BoundAddresses> {
        let metrics = self.metrics.as_ref().map(ListenAddresses::bind).transpose()?;
        Ok(BoundAddresses { grpc: self.grpc.bind()?, metrics })
    }
}

/// The addresses of the server, which refuse connections until the models are loaded.
struct BoundAddresses {
    grpc: BoundAddress,
    metrics: Option<BoundAddress>,
}

/// Returns the catalogue of the flags.
pub(super) fn default_source(args: &ServeArgs) -> CatalogSource {
    CatalogSource {
        name: DEFAULT_CATALOG.to_owned(),
        bundle: args.bundle.clone(),
        store: args.store.clone(),
        data: args.data.clone(),
        serving: args.serving.clone(),
        synonyms: args.synonyms.clone(),
        languages: args.languages.clone(),
        currency: args.currency.clone(),
        workers: args.workers,
    }
}

/// Returns the catalogues of the server, `default` first.
pub(super) fn catalog_sources(args: &ServeArgs) -> anyhow::Result<Vec<CatalogSource>> {
    let default = default_source(args);
    let named = args.catalogs.as_deref().map(|path| catalogs::read(path, &default)).transpose()?;
    Ok(std::iter::once(default).chain(named.into_iter().flatten()).collect())
}

pub(super) fn engine_config(args: &ServeArgs, source: &CatalogSource) -> anyhow::Result<EngineConfig> {
    let (diversity, answers_share) = (args.diversity_default as f32, args.answers_share);
    let base = ServingConfig { diversity, ..ServingConfig::default() };
    let serving = match &source.serving {
        Some(path) => Serving::open(path, &base).map_err(|error| serving_problem(source, &error))?,
        None => Serving::of(base),
    };
    let share = answers_share.unwrap_or(if serving.varies() { 1.0 } else { AnswerLogConfig::default().share });
    let answers = AnswerLogConfig { share, days_max: args.answers_days, bytes_max: args.answers_bytes };
    let slates = SlateCacheConfig { bytes_max: args.slates_bytes, ..SlateCacheConfig::default() };
    Ok(EngineConfig { serving: Arc::new(serving), answers, slates, currency: source.currency.clone() })
}

fn serving_problem(source: &CatalogSource, error: &ServingError) -> anyhow::Error {
    let remedy = if matches!(error, ServingError::Io { .. }) { "; check the path and permissions" } else { "" };
    anyhow::anyhow!("{}: {error}{remedy}", source.setting("serving"))
}

/// Checks that the data directory of a catalogue is none or a directory.
pub(super) fn check_data(source: &CatalogSource) -> anyhow::Result<String> {
    let (setting, path) = (source.setting("data"), &source.data);
    match fs::metadata(path) {
        Ok(found) if found.is_dir() => Ok(format!("{} exists", path.display())),
        Ok(_) => anyhow::bail!("{setting} {} is a file; name a directory", path.display()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Ok(format!("{} is created at the start", path.display()))
        }
        Err(error) => anyhow::bail!("{setting} {}: {error}; check the path and permissions", path.display()),
    }
}

/// Names the setting that an error of opening is about, and the remedy.
fn open_problem(source: &CatalogSource, error: OpenError) -> anyhow::Error {
    let data = source.setting("data");
    let bundle = source.setting(if source.store.is_some() { "store" } else { "bundle" });
    let (setting, remedy) = match &error {
        OpenError::Bundle(BundleError::Io { .. }) => {
            (bundle, "; name a directory that `lodestone train` wrote".to_owned())
        }
        OpenError::Bundle(_) => (bundle, String::new()),
        OpenError::Synonyms(SynonymsError::Io { .. }) => {
            (source.setting("synonyms"), "; check the path and permissions".to_owned())
        }
        OpenError::Synonyms(_) => (source.setting("synonyms"), String::new()),
        OpenError::Log(LogError::InUse { .. }) | OpenError::Recovery(RecoveryError::Log(LogError::InUse { .. })) => {
            (data.clone(), format!("; stop it, or choose another {data}"))
        }
        OpenError::Log(LogError::Open { .. }) | OpenError::Io { .. } => {
            (data, "; check the path, permissions and free space".to_owned())
        }
        _ => return error.into(),
    };
    let problem = format_error_chain(&error);
    anyhow::anyhow!("{setting}: {}{remedy}", problem.strip_prefix("synonyms: ").unwrap_or(&problem))
}

fn open_engine(args: &ServeArgs, source: &CatalogSource, config: EngineConfig, cores: usize) -> anyhow::Result<Engine> {
    let bundle = match (&source.store, &source.bundle) {
        (Some(store), _) => BundleSource::Store(Store::open_existing(store, store_options())?),
        (None, bundle) => BundleSource::Directory(bundle.clone().context("--bundle or --store is required")?),
    };
    let is_new = !source.data.exists();
    let opened = open(OpenOptions {
        bundle,
        rollout: args.rollout.config(),
        data: &source.data,
        library: args.library.onnxruntime.as_deref(),
        device: match args.device {
            DeviceArg::Cpu => Device::Cpu,
            DeviceArg::Cuda => Device::Cuda,
        },
        synonyms: source.synonyms.as_deref(),
        languages: source.languages.clone(),
        completion_users_min: args.completion_users_min,
        workers: source.workers.unwrap_or(cores),
        queue_requests_max: args.queue_requests_max,
        history_ends_now: args.history_ends_now,
        dedupe_ids_max: args.dedupe_ids_max,
        limits: StateLimits { users_max: args.users_max, event_items_max: args.event_items_max },
        config,
    });
    let engine = opened.map_err(|error| open_problem(source, error))?;
    if is_new {
        let (data, setting) = (source.data.display(), source.setting("data"));
        tracing::warn!(
            %data,
            "the data directory did not exist and was created: it has no written items and no events; check {setting} if \
             the shop has some"
        );
    }
    Ok(engine)
}

/// Serves until a signal stops the server, then writes checkpoints.
async fn run_server(
    args: &ServeArgs,
    bound: BoundAddresses,
    (security, audit): (Security, AuditLog),
    collector: Option<Collector>,
    catalogs: Catalogs,
) -> anyhow::Result<()> {
    let traces = match collector {
        Some(collector) => Some(Traces::start(collector, &catalogs).context("--otlp-endpoint and --otlp-ca")?),
        None => None,
    };
    let listener = bound.grpc.listen()?;
    let metrics_listener = bound.metrics.map(BoundAddress::listen).transpose()?;
    let address = listener.local_addr()?;
    for (catalog, engine) in catalogs.iter() {
        tracing::info!(%address, catalog, generation = %engine.generation(), "serving");
    }
    let health = Health::default();
    let config = ServerConfig {
        deadline_default: Duration::from_millis(args.deadline_ms_default),
        event_ahead_max: Duration::from_secs(args.event_ahead_s_max.into()),
        connections_max: args.connections_max,
        tls: security.tls,
        api_keys: security.api_keys,
        jwt: security.jwt,
        audit: Some(Arc::new(audit)),
        health: health.clone(),
        slow_request: args.observability.slow_request(),
        traces: traces.clone(),
        ..ServerConfig::default()
    };
    let config = args.connections.apply(config);
    if let Some(listener) = metrics_listener {
        tokio::spawn(http_endpoint::serve(listener, catalogs.clone(), health));
    }
    let mut signals = StopSignals::install()?;
    let (stop, stopped) = oneshot::channel::<()>();
    tokio::spawn(async move {
        signals.received().await;
        tracing::info!("stopping; a second signal ends the process at once");
        // Fails if the server has ended.
        let _ = stop.send(());
        signals.received().await;
        end_at_once();
    });
    // The sender is dropped only after it has sent.
    server::serve(catalogs.clone(), config, listener, async move { stopped.await.unwrap_or_default() }).await?;
    catalogs.iter().for_each(|(_, engine)| engine.checkpoint_on_shutdown());
    if let Some(traces) = traces {
        traces.flush().await;
    }
    tracing::info!("stopped");
    Ok(())
}

/// Acknowledged writes are durable, so that the next startup only reads more of the log.
#[expect(clippy::disallowed_methods, reason = "the second signal ends a server that does not stop")]
fn end_at_once() -> ! {
    tracing::warn!("a second signal; running requests are cut, and no checkpoint is written");
    std::process::exit(Exit::Interrupted.code())
}
