//! `lodestone simulate`: simulated shoppers use real servers with and without the learning loop.
use super::{
    LibraryArgs,
    exit::Exit,
    numbers::{between, whole, within},
    output::{OutputArgs, write_file},
    paths::{new_directory, new_file},
    progress::style,
};
use crate::server::proto::{
    self, RecommendType, catalog_service_client::CatalogServiceClient, event_service_client::EventServiceClient,
    ranking_service_client::RankingServiceClient,
};
use anyhow::{Context, anyhow, bail, ensure};
use indicatif::ProgressBar;
use lodestone_catalog::Item;
use lodestone_core::units::UnixMillis;
use lodestone_dataset as dataset;
use lodestone_events::EventKind;
use lodestone_loyalty::TrainedLoyalty;
use lodestone_pipeline::bundle::Bundle;
use lodestone_rollout::Store;
use lodestone_rules::Objective;
use lodestone_training::{
    EvaluateOptions,
    simulation::{
        Arm, Day, DisplayedList, Draws, InitialState, Intent, ObjectiveCurves, Outcomes, Shop, Shopper,
        SimulatedObjective, SimulationConfig, Trajectories, UserAction, Visit, dataset_events, id_of, initial_state,
        objective_curves, outcomes, plot, plot_objectives, product_of,
    },
};
use std::{
    fmt, fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};
use tonic::transport::{Channel, Endpoint};

/// Greatest time for the startup of a server and for the swap to a new bundle.
const SERVER_TIMEOUT: Duration = Duration::from_secs(60);
/// Flags of the retrains: interactions for the evaluation, and lists for the ranking model.
const NEWEST_MAX: usize = 500;
const LISTS_MAX: &str = "1000";
const RETRAIN_LOG: &str = "retrain.log";
/// The result of the last retrain that learns from answers.
const RETRAINED: &str = "retrained.json";
/// The serving file of the arms that explore.
const SERVING: &str = "[configs.default]\nexploration = { temperature = 0.5, top = 20 }\n";
/// Time between the end of the last simulated day and now.
const MARGIN_MS: i64 = 15 * 60 * 1000;

/// Measures the value of the learning loop: simulated shoppers with known, drifting tastes use real servers.
///
/// Three servers start with the same bundle, trained on the same simulated history, and meet the same shoppers. `off`
/// receives no events, `live` receives every event, and for `loop` a bundle is also trained, evaluated and published
/// every night (`lodestone retrain --gate`). Shoppers return the more often, the better their visits were. The result
/// has clicks, purchases and return rate of each arm with bootstrap intervals. With --answers, two further servers
/// explore: for `explore` the trainings are those of `loop`, for `answers` they also learn from the answer log
/// (`lodestone retrain --answers`). docs/simulation.md states the assumptions.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  lodestone simulate --seeds 1 --shoppers 100 --days 5
  lodestone simulate --format json --out simulation.json --plot simulation.svg")]
pub(crate) struct SimulateArgs {
    /// Number of simulated worlds, each with its own shop and shoppers.
    #[arg(long, value_name = "N", value_parser = whole::<u64>(1..=100), default_value_t = 3)]
    seeds: u64,
    /// Seed of the first world. The others follow it.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Shoppers per world.
    #[arg(long, value_name = "N", value_parser = within(20..=100_000), default_value_t = SimulationConfig::default().shopper_count)]
    shoppers: usize,
    /// Products per world. A fifth of them are launched during the measured days.
    #[arg(long, value_name = "N", value_parser = within(50..=9999), default_value_t = SimulationConfig::default().product_count)]
    products: usize,
    /// Measured days, with a night after each; the last one ends now.
    #[arg(long, value_name = "N", value_parser = within(2..=365), default_value_t = SimulationConfig::default().day_count)]
    days: usize,
    /// Days before them, on which the first bundle is trained.
    #[arg(long, value_name = "N", value_parser = within(5..=3650), default_value_t = SimulationConfig::default().history_days)]
    history_days: usize,
    /// Probability of a visit on a day of a shopper who never found anything; one who always does visits on far more days.
    #[arg(long, value_name = "P", value_parser = between(0.001, 0.5), default_value_t = SimulationConfig::default().visit_probability)]
    visit_probability: f64,
    /// Also simulates the arms `explore` and `answers`.
    #[arg(long)]
    answers: bool,
    /// Instead compares serving configurations with objectives: revenue and return rate over these weights, 0 to 1, each
    /// with one server that receives every event and does not retrain. See docs/objectives.md.
    #[arg(long, value_name = "W,…", value_delimiter = ',', conflicts_with = "answers", value_parser = weight)]
    objective_weights: Vec<f64>,
    /// The objectives of --objective-weights: click, purchase, revenue, loyalty.
    #[arg(long, value_name = "NAME,…", value_delimiter = ',', default_value = "loyalty,revenue",
          requires = "objective_weights", value_parser = objective)]
    objectives: Vec<String>,
    /// Largest loss of NDCG of these configurations; 1 is no limit.
    #[arg(long, value_name = "LOSS", default_value_t = 1.0, requires = "objective_weights", value_parser = weight)]
    ndcg_loss_max: f64,
    /// Also writes a plot as SVG: of the days, or of the return rate over the revenue.
    #[arg(long, value_name = "FILE", value_parser = new_file)]
    plot: Option<PathBuf>,
    /// Directory for data, bundles and logs of the servers; must not exist. Default: a temporary directory, removed at
    /// the end.
    #[arg(long, value_name = "DIR", value_parser = new_directory)]
    work: Option<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    library: LibraryArgs,
}

/// Parses a number from 0 to 1.
fn weight(text: &str) -> anyhow::Result<f64> {
    let number: f64 = text.parse().map_err(|_| anyhow!("`{text}` is not a number"))?;
    ensure!((0.0..=1.0).contains(&number), "{number} is not within 0 and 1");
    Ok(number)
}

/// Parses the name of an objective. Simulated products have no costs.
fn objective(text: &str) -> anyhow::Result<String> {
    let mut known = Objective::ALL.into_iter().filter(|objective| *objective != Objective::Margin);
    ensure!(
        known.any(|objective| objective.name() == text),
        "`{text}` is not one of click, purchase, revenue, loyalty"
    );
    Ok(text.to_owned())
}

/// The result of `lodestone simulate --objective-weights`.
#[derive(serde::Serialize)]
struct ObjectiveReport {
    config: SimulationConfig,
    seeds: Vec<u64>,
    seconds: f64,
    ndcg_loss_max: f64,
    curves: ObjectiveCurves,
}

impl fmt::Display for ObjectiveReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.curves)?;
        writeln!(f, "{} seeds, limit of the NDCG loss {}; {:.0} s", self.seeds.len(), self.ndcg_loss_max, self.seconds)
    }
}

/// Compares configurations with objectives.
fn compare_objectives(args: SimulateArgs, config: SimulationConfig) -> anyhow::Result<Exit> {
    let mut objectives = vec![SimulatedObjective { objective: "relevance".to_owned(), weight: 0.0 }];
    for objective in &args.objectives {
        let weights = args.objective_weights.iter().filter(|weight| **weight > 0.0);
        objectives.extend(weights.map(|weight| SimulatedObjective { objective: objective.clone(), weight: *weight }));
    }
    let work = WorkDirectory::create(args.work)?;
    let started = Instant::now();
    let seeds: Vec<u64> = (0..args.seeds).map(|seed| args.seed.wrapping_add(seed)).collect();
    let steps = 1 + config.day_count as u64 * objectives.len() as u64;
    let bar = ProgressBar::new(args.seeds * steps).with_style(style("{pos}/{len}"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut lives = Vec::new();
    for seed in &seeds {
        let program = Program { library: args.library.onnxruntime.clone(), seed: *seed };
        let path = work.path.join(format!("seed-{seed}"));
        let simulated = simulate_objectives(&program, &path, &config, (&objectives, args.ndcg_loss_max), &bar);
        let simulated = runtime.block_on(simulated);
        lives.push(simulated.with_context(|| format!("seed {seed}, see {}", path.display()))?);
    }
    bar.finish_and_clear();
    let curves = objective_curves(&lives, &objectives, &EvaluateOptions::default());
    if let Some(path) = &args.plot {
        write_file("--plot", path, &plot_objectives(&curves))?;
    }
    let (seconds, ndcg_loss_max) = (started.elapsed().as_secs_f64(), args.ndcg_loss_max);
    args.output.write(&ObjectiveReport { config, seeds, seconds, ndcg_loss_max, curves })?;
    work.end();
    Ok(Exit::Success)
}

/// The result of `lodestone simulate`.
#[derive(serde::Serialize)]
struct Report {
    config: SimulationConfig,
    seeds: Vec<u64>,
    seconds: f64,
    /// The bundle of each night, by seed.
    nights: Vec<Vec<Night>>,
    /// The same of the further arms that retrain; empty without --answers.
    answer_nights: Vec<Vec<AnswerNight>>,
    outcomes: Outcomes,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let published = self.nights.iter().flatten().filter(|night| **night == Night::Published).count();
        write!(f, "{}", self.outcomes)?;
        writeln!(
            f,
            "{} nights: {published} bundles published, the others refused by the gate; {:.0} s",
            self.nights.iter().flatten().count(),
            self.seconds
        )?;
        let nights = || self.answer_nights.iter().flatten();
        if self.answer_nights.is_empty() {
            return Ok(());
        }
        writeln!(
            f,
            "published with exploration: {}, with the answer log {}, of which {} learned from answers, on average from {:.0} lists",
            nights().filter(|night| night.explore == Night::Published).count(),
            nights().filter(|night| night.answers == Night::Published).count(),
            nights().filter(|night| night.answers == Night::Published && night.list_count > 0).count(),
            nights().map(|night| night.list_count as f64).sum::<f64>()
                / nights().filter(|night| night.list_count > 0).count().max(1) as f64,
        )
    }
}

/// What happened to the bundle of a night.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
enum Night {
    Published,
    /// The gate refused it, and the previous bundle stays current.
    Refused,
}

/// What happened to the bundles of a night in the arms that explore.
#[derive(Debug, Clone, Copy, serde::Serialize)]
struct AnswerNight {
    explore: Night,
    answers: Night,
    /// Lists of the answer log that the training of `answers` learned from.
    list_count: usize,
}

pub(crate) fn simulate(args: SimulateArgs) -> anyhow::Result<Exit> {
    let config = SimulationConfig {
        product_count: args.products,
        shopper_count: args.shoppers,
        history_days: args.history_days,
        day_count: args.days,
        visit_probability: args.visit_probability,
        ..SimulationConfig::default()
    };
    if !args.objective_weights.is_empty() {
        return compare_objectives(args, config);
    }
    let work = WorkDirectory::create(args.work)?;
    let started = Instant::now();
    let seeds: Vec<u64> = (0..args.seeds).map(|seed| args.seed.wrapping_add(seed)).collect();
    let bar = ProgressBar::new(args.seeds * (args.days as u64 + 1)).with_style(style("{pos}/{len}"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let arms = Arm::of(args.answers);
    let (mut lives, mut nights, mut answer_nights) = (Vec::new(), Vec::new(), Vec::new());
    for seed in &seeds {
        let program = Program { library: args.library.onnxruntime.clone(), seed: *seed };
        let path = work.path.join(format!("seed-{seed}"));
        let world = runtime
            .block_on(simulate_world(&program, &path, (&config, arms), &bar))
            .with_context(|| format!("seed {seed}, see {}", path.display()))?;
        lives.push(world.lives);
        nights.push(world.nights);
        answer_nights.extend(args.answers.then_some(world.answer_nights));
    }
    bar.finish_and_clear();
    let outcomes = outcomes(&lives, arms, &EvaluateOptions::default());
    if let Some(path) = &args.plot {
        write_file("--plot", path, &plot(&outcomes))?;
    }
    let seconds = started.elapsed().as_secs_f64();
    args.output.write(&Report { config, seeds, seconds, nights, answer_nights, outcomes })?;
    work.end();
    Ok(Exit::Success)
}

/// The working directory. A temporary one is removed at the end, but stays after a failure, because it has the servers'
/// logs.
struct WorkDirectory {
    path: PathBuf,
    is_temporary: bool,
}

impl WorkDirectory {
    fn create(chosen: Option<PathBuf>) -> anyhow::Result<Self> {
        let is_temporary = chosen.is_none();
        let path = chosen.unwrap_or_else(|| {
            std::env::temp_dir().join(format!("lodestone-simulate-{}-{}", std::process::id(), UnixMillis::now().0))
        });
        fs::create_dir_all(&path).with_context(|| path.display().to_string())?;
        Ok(Self { path, is_temporary })
    }

    fn end(self) {
        if self.is_temporary {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// Starts servers and trainings as child processes of this program.
struct Program {
    library: Option<PathBuf>,
    seed: u64,
}

impl Program {
    fn command(&self, arguments: &[&str], paths: &[(&str, &Path)]) -> anyhow::Result<Command> {
        let mut command = Command::new(std::env::current_exe().context("the path of this program")?);
        command.args(arguments).stdin(Stdio::null());
        for (flag, path) in paths {
            command.arg(flag).arg(path);
        }
        if let Some(library) = &self.library {
            command.env("ORT_DYLIB_PATH", library);
        }
        Ok(command)
    }

    /// Runs a command to its end and returns the exit code. Its output goes to `log`.
    async fn run(&self, arguments: &[&str], paths: &[(&str, &Path)], log: &Path) -> anyhow::Result<i32> {
        let mut command = self.command(arguments, paths)?;
        command.stdout(open_log(log)?).stderr(open_log(log)?);
        let status = tokio::task::spawn_blocking(move || command.status()).await?.context("lodestone")?;
        Ok(status.code().unwrap_or(Exit::Error.code()))
    }
}

fn open_log(path: &Path) -> anyhow::Result<fs::File> {
    fs::OpenOptions::new().create(true).append(true).open(path).with_context(|| path.display().to_string())
}

/// The outcome of one seed.
struct SimulatedWorld {
    /// The days of the shoppers in each arm.
    lives: Vec<Trajectories>,
    /// What happened to the bundles.
    nights: Vec<Night>,
    answer_nights: Vec<AnswerNight>,
}

/// Simulates one seed.
async fn simulate_world(
    program: &Program,
    path: &Path,
    (config, arms): (&SimulationConfig, &[Arm]),
    bar: &ProgressBar,
) -> anyhow::Result<SimulatedWorld> {
    let draws = Draws::new(program.seed);
    let InitialState { shop, shoppers, history } = initial_state(config, draws);
    bar.set_message(format!("seed {}: first bundle", program.seed));
    let world = World::new(program, path, config, &shop, &history).await?;
    bar.inc(1);

    let mut runs = Vec::new();
    for arm in arms {
        runs.push({
            let serving_file = arm.explores().then_some(SERVING);
            ArmRun::begin(&world, *arm, path.join(arm.name()), shoppers.clone(), serving_file).await?
        });
    }
    let (mut nights, mut answer_nights) = (Vec::new(), Vec::new());
    for day in 0..config.day_count {
        bar.set_message(format!("seed {}: day {}", program.seed, day + 1));
        futures_util::future::try_join_all(runs.iter_mut().map(|run| run.day(&world, day))).await?;
        if day + 1 < config.day_count {
            bar.set_message(format!("seed {}: night {}", program.seed, day + 1));
            let mut of_arms = Vec::new();
            for run in runs.iter_mut().filter(|run| run.arm.retrains()) {
                of_arms.push(run.night(&world).await?);
            }
            match of_arms[..] {
                [(night, _)] => nights.push(night),
                [(night, _), (explore, _), (answers, list_count)] => {
                    nights.push(night);
                    answer_nights.push(AnswerNight { explore, answers, list_count });
                }
                _ => bail!("one or three arms retrain"),
            }
        }
        bar.inc(1);
    }
    Ok(SimulatedWorld { lives: runs.into_iter().map(|run| run.lives).collect(), nights, answer_nights })
}

/// Simulates one seed with serving configurations instead of trainings. Returns the days of the shoppers by
/// configuration.
async fn simulate_objectives(
    program: &Program,
    path: &Path,
    config: &SimulationConfig,
    (objectives, ndcg_loss_max): (&[SimulatedObjective], f64),
    bar: &ProgressBar,
) -> anyhow::Result<Vec<Trajectories>> {
    let draws = Draws::new(program.seed);
    let InitialState { shop, shoppers, history } = initial_state(config, draws);
    bar.set_message(format!("seed {}: first bundle", program.seed));
    let world = World::new(program, path, config, &shop, &history).await?;
    check_heads(&world.bundle, objectives)?;
    bar.inc(1);
    let mut lives = Vec::with_capacity(objectives.len());
    for (number, SimulatedObjective { objective, weight }) in objectives.iter().enumerate() {
        bar.set_message(format!("seed {}: {objective} {weight}", program.seed));
        let text = format!(
            "[configs.default]\nobjectives = {{ weights = {{ {objective} = {weight:?} }}, ndcg_loss_max = {ndcg_loss_max:?} }}\n"
        );
        let serving_file = (*weight > 0.0).then_some(text.as_str());
        let directory = path.join(format!("objective-{number}"));
        let mut run = ArmRun::begin(&world, Arm::Live, directory, shoppers.clone(), serving_file).await?;
        for day in 0..config.day_count {
            run.day(&world, day).await?;
            bar.inc(1);
        }
        lives.push(run.lives);
    }
    Ok(lives)
}

/// Checks that a bundle has what the objectives need.
fn check_heads(path: &Path, objectives: &[SimulatedObjective]) -> anyhow::Result<()> {
    let Bundle { manifest, loyalty, .. } = Bundle::open(path)?;
    for SimulatedObjective { objective, .. } in objectives {
        let Some(known) = Objective::ALL.into_iter().find(|known| known.name() == objective) else { continue };
        let missing = known.heads().iter().find(|head| manifest.heads.iter().all(|of| of.name != **head));
        ensure!(
            missing.is_none(),
            "the first bundle has no head `{}`, which {objective} needs: too few of its labels are known. Those of \
             `return_visit` take 14 days, and the labels are of the last sixth of --history-days; use 150 or more, or more \
             --shoppers",
            missing.unwrap_or(&"")
        );
        if known == Objective::Loyalty
            && let TrainedLoyalty::Missing { reason } = &*loyalty
        {
            bail!(
                "the first bundle has no loyalty model, which loyalty needs: {reason}; use more --history-days or --shoppers"
            );
        }
    }
    Ok(())
}

/// State that all arms of a seed share.
struct World<'a> {
    program: &'a Program,
    shop: &'a Shop,
    draws: Draws,
    config: &'a SimulationConfig,
    /// Start of the first measured day.
    start: UnixMillis,
    /// Interactions that a bundle is evaluated on.
    newest: String,
    /// The store with the first bundle. Each arm that retrains has a copy.
    store: PathBuf,
    /// The files of the first history.
    first: PathBuf,
    /// The first bundle.
    bundle: PathBuf,
}

impl<'a> World<'a> {
    /// Writes the history and trains the first bundle.
    async fn new(
        program: &'a Program,
        path: &Path,
        config: &'a SimulationConfig,
        shop: &'a Shop,
        history: &[Visit],
    ) -> anyhow::Result<Self> {
        let draws = Draws::new(program.seed);
        let start = UnixMillis(UnixMillis::now().0 - MARGIN_MS - config.day_count as i64 * UnixMillis::DAY);
        let first = path.join("first");
        fs::create_dir_all(&first).with_context(|| first.display().to_string())?;
        let long_ago = UnixMillis(start.0 - config.history_days as i64 * UnixMillis::DAY);
        let items: Vec<Item> = shop.launched(None).map(|product| shop.item(product, Some(long_ago))).collect();
        dataset::write_items(&first.join("items.parquet"), &items)?;
        dataset::write_events(&first.join("events.parquet"), &dataset_events(history, shop, start))?;
        // A small world has few interactions to evaluate on.
        let newest = (history.len() / 10).clamp(20, NEWEST_MAX).to_string();
        let (store, bundle) = (path.join("store"), PathBuf::new());
        let mut world = World { program, shop, draws, config, start, newest, store, first, bundle };
        ensure!(
            world.retrain(&world.first, path, &world.store, &[]).await? == Exit::Success.code(),
            "the first training failed; see {}",
            path.display()
        );
        world.bundle = current(&world.store).await?;
        Ok(world)
    }

    /// Runs `lodestone retrain` and returns its exit code.
    async fn retrain(&self, data: &Path, path: &Path, store: &Path, more: &[&str]) -> anyhow::Result<i32> {
        let arguments = [&["retrain", "--gate", "--newest", &self.newest, "--lists-max", LISTS_MAX], more].concat();
        self.program.run(&arguments, &[("--data", data), ("--store", store)], &path.join(RETRAIN_LOG)).await
    }
}

/// Returns the directory of a store's current bundle.
async fn current(store: &Path) -> anyhow::Result<PathBuf> {
    let location = store.to_owned();
    let current = tokio::task::spawn_blocking(move || {
        Store::open(&location.display().to_string(), std::iter::empty()).and_then(|store| store.current())
    });
    let current = current.await?.context("the store")?.context("the store has no current bundle")?;
    Ok(store.join(current.name))
}

/// One arm: its server, its copies of the shoppers, and their days.
struct ArmRun {
    arm: Arm,
    path: PathBuf,
    server: Server,
    shoppers: Vec<Shopper>,
    lives: Trajectories,
}

impl ArmRun {
    async fn begin(
        world: &World<'_>,
        arm: Arm,
        path: PathBuf,
        shoppers: Vec<Shopper>,
        serving_file: Option<&str>,
    ) -> anyhow::Result<Self> {
        let (first, bundle) = (&world.first, &world.bundle);
        let data = path.join("data");
        fs::create_dir_all(&data).with_context(|| data.display().to_string())?;
        for name in ["items.parquet", "events.parquet"] {
            fs::copy(first.join(name), data.join(name)).with_context(|| first.join(name).display().to_string())?;
        }
        let (store, serving) = (path.join("store"), path.join("serving.toml"));
        let [bundle_flag, store_flag, serving_flag] = [bundle, &store, &serving].map(|path| path.display().to_string());
        let mut source = vec!["--bundle", &bundle_flag];
        if arm.retrains() {
            let paths = [("--bundle", bundle.as_path()), ("--store", &store)];
            let code = world.program.run(&["bundle", "publish"], &paths, &path.join(RETRAIN_LOG)).await?;
            ensure!(code == Exit::Success.code(), "the first bundle was not published; see {}", path.display());
            // Polls the store often and has no probation, because the traffic is much less than that of a real shop.
            source = vec!["--store", &store_flag, "--watch-seconds", "0.2", "--probation-seconds", "0"];
        }
        if let Some(text) = serving_file {
            fs::write(&serving, text).with_context(|| serving_flag.clone())?;
            source.extend(["--serving", &serving_flag]);
        }
        let server = Server::start(world.program, &source, &data, &path.join("server.log")).await?;
        let lives = vec![Vec::new(); shoppers.len()];
        Ok(Self { arm, path, server, shoppers, lives })
    }

    /// Simulates a day of every shopper, in the order of the hours of their visits.
    async fn day(&mut self, world: &World<'_>, day: usize) -> anyhow::Result<()> {
        let morning = UnixMillis(world.start.0 + day as i64 * UnixMillis::DAY);
        let launched: Vec<usize> = world.shop.launched(Some(day)).collect();
        self.server.upsert(launched.into_iter().map(|product| world.shop.item(product, Some(morning)))).await?;
        let when = day as i64;
        self.shoppers.iter_mut().for_each(|shopper| shopper.start_day(when, world.draws));
        let mut order: Vec<usize> = (0..self.shoppers.len()).collect();
        let hours: Vec<f64> = self.shoppers.iter().map(|shopper| shopper.hour(when, world.draws)).collect();
        order.sort_by(|a, b| hours[*a].total_cmp(&hours[*b]));
        for number in order {
            let lived = match self.shoppers[number].visits(when, world.draws) {
                true => self.visit(world, number, when).await?,
                false => Day::default(),
            };
            self.lives[number].push(lived);
        }
        Ok(())
    }

    /// Simulates a night of the loop: retrains while the server runs, and waits until the server has loaded the bundle.
    /// The second value is the number of lists of the answer log that the training learned from.
    async fn night(&mut self, world: &World<'_>) -> anyhow::Result<(Night, usize)> {
        let (data, store, result) = (self.path.join("data"), self.path.join("store"), self.path.join(RETRAINED));
        let result_flag = result.display().to_string();
        let learns_from_answers = self.arm == Arm::Answers;
        let more: &[&str] = match learns_from_answers {
            true => &["--answers", "--format", "json", "--out", &result_flag],
            false => &[],
        };
        let code = world.retrain(&data, &self.path, &store, more).await?;
        let list_count = match learns_from_answers && [Exit::Success.code(), Exit::No.code()].contains(&code) {
            true => answer_lists(&result)?,
            false => 0,
        };
        match code {
            code if code == Exit::Success.code() => {}
            code if code == Exit::No.code() => return Ok((Night::Refused, list_count)),
            code => bail!("the retrain ended with exit code {code}; see {}", self.path.join(RETRAIN_LOG).display()),
        }
        let published = current(&store).await?;
        let name = published.file_name().unwrap_or_default().to_string_lossy();
        let started = Instant::now();
        while self.server.generation().await? != name {
            ensure!(
                started.elapsed() < SERVER_TIMEOUT,
                "the server did not load {name} within {} s",
                SERVER_TIMEOUT.as_secs()
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok((Night::Published, list_count))
    }

    async fn visit(&mut self, world: &World<'_>, number: usize, day: i64) -> anyhow::Result<Day> {
        let (shop, draws) = (world.shop, world.draws);
        let shopper = &mut self.shoppers[number];
        let (mut reactions, mut list) = (Vec::new(), 0);
        while let Some(intent) = shopper.next_intent(list, day, draws) {
            let (products, token) = self.server.request(&shopper.id(), day, &intent, world.config.page_size).await?;
            let of_list = shopper.react(&products, list, shop, day, draws);
            shopper.record_purchases(&of_list, shop, day);
            let seen = DisplayedList { intent, products, reactions: of_list };
            if self.arm.writes_events() {
                let actions = seen.actions(list, world.start, day, shopper.hour(day, draws));
                let shown = ShownList { shopper: &shopper.id(), day, list, token: &token };
                self.server.write_events(&shown, &actions, shop).await?;
            }
            reactions.extend(seen.reactions);
            list += 1;
        }
        shopper.end_visit(&reactions);
        let bought = || reactions.iter().filter(|reaction| reaction.is_bought);
        let revenue_micros = bought().map(|reaction| shop.products[reaction.product].price.micros()).sum();
        let (clicks, purchases) = (reactions.len() as u32, bought().count() as u32);
        Ok(Day { visited: true, clicks, purchases, revenue_micros })
    }
}

/// Reads from the result of a retrain how many lists of the answer log it learned from.
fn answer_lists(result: &Path) -> anyhow::Result<usize> {
    let text = fs::read(result).with_context(|| result.display().to_string())?;
    let report: serde_json::Value = serde_json::from_slice(&text).with_context(|| result.display().to_string())?;
    let count = report["trained"]["answers"]["list_count"].as_u64();
    count.map(|count| count as usize).with_context(|| format!("{} has no answers", result.display()))
}

/// A list that a shopper saw.
struct ShownList<'a> {
    shopper: &'a str,
    day: i64,
    /// Number of the list within the visit.
    list: usize,
    /// The attribution token of the response.
    token: &'a str,
}

/// A child process `lodestone serve`, killed on drop.
struct Server {
    process: Child,
    channel: Channel,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Server {
    /// `source`: the flags that select its bundles.
    async fn start(program: &Program, source: &[&str], data: &Path, log: &Path) -> anyhow::Result<Self> {
        let address = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).context("a free port")?;
        let address = address.to_string();
        let arguments = [&["serve", "--workers", "1", "--listen", &address], source].concat();
        let mut command = program.command(&arguments, &[("--data", data)])?;
        command.stdout(open_log(log)?).stderr(open_log(log)?);
        let mut process = command.spawn().context("lodestone serve")?;
        let endpoint = Endpoint::from_shared(format!("http://{address}"))?.tcp_nodelay(true);
        let started = Instant::now();
        let channel = loop {
            match endpoint.connect().await {
                Ok(channel) => break channel,
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
            if let Some(status) = process.try_wait()? {
                bail!("the server ended during startup ({status}); see {}", log.display());
            }
            if started.elapsed() > SERVER_TIMEOUT {
                let _ = process.kill();
                bail!("the server did not start within {} s; see {}", SERVER_TIMEOUT.as_secs(), log.display());
            }
        };
        Ok(Self { process, channel })
    }

    /// Returns the name of the bundle that answers.
    async fn generation(&self) -> anyhow::Result<String> {
        let r#type = RecommendType::Trending.into();
        let viewer = viewer("nobody", 0);
        let request = proto::RecommendRequest { viewer, r#type, page_size: 1, ..Default::default() };
        let answer = RankingServiceClient::new(self.channel.clone()).recommend(request).await?.into_inner();
        Ok(answer.info.unwrap_or_default().generation)
    }

    async fn upsert(&self, items: impl Iterator<Item = Item>) -> anyhow::Result<()> {
        let items: Vec<proto::Item> = items.map(|item| item_message(&item)).collect();
        if items.is_empty() {
            return Ok(());
        }
        let answer = CatalogServiceClient::new(self.channel.clone())
            .upsert_items(proto::UpsertItemsRequest { items, update_time: None })
            .await?;
        let rejected = proto::ItemStatus::Rejected as i32;
        match answer.into_inner().results.into_iter().find(|result| result.status == rejected) {
            None => Ok(()),
            Some(result) => bail!("item {} was rejected: {:?}", result.item_id, result.violations),
        }
    }

    /// Sends a request of a shopper. Returns the shown products and the attribution token.
    async fn request(
        &self,
        shopper: &str,
        day: i64,
        intent: &Intent,
        page_size: usize,
    ) -> anyhow::Result<(Vec<usize>, String)> {
        let (viewer, page_size) = (viewer(shopper, day), page_size as i32);
        let mut client = RankingServiceClient::new(self.channel.clone());
        let (results, token) = match intent {
            Intent::FirstPage => {
                let r#type = RecommendType::ForYou.into();
                let request = proto::RecommendRequest { viewer, r#type, page_size, ..Default::default() };
                let answer = client.recommend(request).await?.into_inner();
                (answer.results, answer.attribution_token)
            }
            Intent::Search(query) => {
                let request = proto::SearchRequest { viewer, query: query.clone(), page_size, ..Default::default() };
                let answer = client.search(request).await?.into_inner();
                (answer.results, answer.attribution_token)
            }
        };
        Ok((results.iter().filter_map(|result| product_of(&result.item_id)).collect(), token))
    }

    /// Writes the events of a shopper on a list. The next response reflects them.
    async fn write_events(&self, shown: &ShownList<'_>, actions: &[UserAction], shop: &Shop) -> anyhow::Result<()> {
        let events = actions.iter().enumerate().map(|(number, action)| event_message(action, number, shown, shop));
        let request = proto::WriteEventsRequest { events: events.collect() };
        let answer = EventServiceClient::new(self.channel.clone()).write_events(request).await?.into_inner();
        let accepted = proto::EventStatus::Accepted as i32;
        match answer.results.iter().find(|result| result.status != accepted || !result.warnings.is_empty()) {
            None => Ok(()),
            Some(result) => bail!("an event was not accepted without warnings: {result:?}"),
        }
    }
}

fn viewer(shopper: &str, day: i64) -> Option<proto::Viewer> {
    Some(proto::Viewer { user_id: shopper.to_owned(), session_id: format!("d{day}"), ..Default::default() })
}

/// `number`: number of the event within the list.
fn event_message(action: &UserAction, number: usize, shown: &ShownList<'_>, shop: &Shop) -> proto::Event {
    let ShownList { shopper, day, list, token } = *shown;
    let id = format!("w{day}-{shopper}-{list}-{number}");
    let order_id = if action.kind == EventKind::Purchase { id.clone() } else { String::new() };
    let lines = action.lines.iter().map(|(product, rank)| proto::EventLine {
        item_id: id_of(*product),
        quantity: 1.0,
        price_micros: Some(shop.products[*product].price.micros()),
        rank: *rank as i32,
    });
    proto::Event {
        event_id: id,
        r#type: action.kind as i32,
        viewer: viewer(shopper, day),
        occurred_time: Some(crate::server::timestamp(action.at)),
        lines: lines.collect(),
        attribution_token: token.to_owned(),
        query: action.query.clone(),
        order_id,
        ..Default::default()
    }
}

fn item_message(item: &Item) -> proto::Item {
    proto::Item {
        item_id: item.id.to_string(),
        title: item.title.clone(),
        categories: item.categories.clone(),
        price_micros: item.price.map(|price| price.micros()),
        currency_code: item.currency.clone(),
        create_time: item.created_at.map(crate::server::timestamp),
        ..Default::default()
    }
}
