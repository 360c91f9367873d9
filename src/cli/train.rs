//! `lodestone train`, and the training flags that `retrain` shares.
use super::{
    LibraryArgs,
    encoder::EncoderArgs,
    exit::Exit,
    gate::{UsersMinArg, decide},
    numbers::within,
    output::FormatArgs,
    paths::{check_new_directory, existing_directory, new_directory},
    progress::StageBars,
    signal::StopSignals,
    threads::ThreadsArgs,
    time::bundle_name,
};
use anyhow::{Context, anyhow};
use clap::builder::TypedValueParser;
use lodestone_catalog::attribute_name;
use lodestone_core::{format::OtherVersion, units::UnixMillis};
use lodestone_engine::ANSWERS;
use lodestone_pipeline::{
    answers,
    bundle::{Bundle, MANIFEST, Manifest},
    features::FeatureSchema,
    ranking::Runtime,
};
use lodestone_training::{
    self, AnswerSource, CheckpointUse, EncoderSettings, GateOptions, Progress, TrainError, TrainOptions, TrainReport,
    Verdict, WarmStart,
};
use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

/// Trains encoders, neighbour lists and the ranking model on imported data and writes a bundle.
///
/// Ctrl-C or SIGTERM ends the training after the current step with exit code 130 and leaves OUT.checkpoint, from which
/// the same command resumes.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  lodestone train --data data --out bundle
  lodestone train --data data --out next --from bundle --gate bundle
  lodestone train --data data --answers data/answers --out next")]
pub(crate) struct TrainCommandArgs {
    /// Imported data: items.parquet and events.parquet.
    #[arg(long, value_name = "DIR", value_parser = existing_directory)]
    data: PathBuf,
    /// The bundle to write; must not exist.
    #[arg(long, value_name = "DIR", value_parser = new_directory)]
    out: PathBuf,
    /// Initialises the encoders with the weights of this bundle: fewer epochs for about the same quality. Default:
    /// random weights.
    #[arg(long, value_name = "DIR")]
    from: Option<PathBuf>,
    /// The answer log of a server, DATA/answers: the ranking model also learns from lists that were really shown, with
    /// the interactions that followed. Starts when exploration gave enough evidence of the position bias; until then
    /// the summary says how much is missing. See docs/training.md.
    #[arg(long, value_name = "DIR", value_parser = answer_log)]
    answers: Option<PathBuf>,
    /// The bundle that serves. A new bundle that the gate refuses is not written, with exit code 1 and the reasons;
    /// see `lodestone gate`.
    #[arg(long, value_name = "DIR")]
    gate: Option<PathBuf>,
    #[command(flatten)]
    users: UsersMinArg,
    #[command(flatten)]
    train: TrainArgs,
    #[command(flatten)]
    format: FormatArgs,
}

/// Training flags of `train` and `retrain`.
#[derive(clap::Args)]
pub(crate) struct TrainArgs {
    /// Seed of the samples and the initial weights.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    #[command(flatten)]
    encoder: EncoderArgs,
    #[command(flatten)]
    user_encoder: UserEncoderArgs,
    /// Greatest number of lists before interactions that the ranking model is trained on. Lists of snapshots, in which
    /// all users with a purchase soon are ranked, are at most three times as many.
    #[arg(long, value_name = "N", default_value_t = TrainOptions::default().lists_max)]
    lists_max: usize,
    /// Features of the ranking model in addition to the built-in ones, as a TOML file; see docs/training.md. Default:
    /// those of the bundle that the training starts from (`train --from`) or replaces (`retrain`).
    #[arg(long, value_name = "FILE", value_parser = |path: &str| FeatureSchema::read(Path::new(path)))]
    features: Option<FeatureSchema>,
    /// Declares no features, also if the earlier bundle has some.
    #[arg(long, conflicts_with = "features")]
    no_features: bool,
    /// Attributes whose texts a search finds, as it finds brands and categories: names separated by commas, such as
    /// `color,material`. Default: those of the earlier bundle, as of --features.
    #[arg(long, value_name = "NAMES", value_delimiter = ',', value_parser = attribute)]
    searchable_attributes: Vec<String>,
    /// No attribute is searchable, also if the earlier bundle has some.
    #[arg(long, conflicts_with = "searchable_attributes")]
    no_searchable_attributes: bool,
    #[command(flatten)]
    threads: ThreadsArgs,
    #[command(flatten)]
    library: LibraryArgs,
}

/// Size of the user encoder.
#[derive(clap::Args)]
pub(crate) struct UserEncoderArgs {
    /// Width of the user encoder: the dimensions of the vectors of users and items, 16 to 512, a multiple of 8. More
    /// cost memory, and time in every request; see docs/training.md.
    #[arg(long, value_name = "N", value_parser = width(), default_value_t = EncoderSettings::default().width)]
    encoder_width: usize,
    /// Transformer blocks of the user encoder, 1 to 8.
    #[arg(long, value_name = "N", value_parser = within(1..=8), default_value_t = EncoderSettings::default().blocks)]
    encoder_blocks: usize,
    /// Maximum number of events that the user encoder reads, 8 to 200: the latest ones of a user.
    #[arg(long, value_name = "N", value_parser = within(8..=200), default_value_t = EncoderSettings::default().events)]
    encoder_events: usize,
}

/// Parses the directory of an answer log.
fn answer_log(text: &str) -> Result<PathBuf, String> {
    let directory = existing_directory(text)?;
    let is_log = |directory: &Path| answers::list_files(directory).map(|files| !files.is_empty());
    let problem = match (is_log(&directory).map_err(|error| error.to_string())?, is_log(&directory.join(ANSWERS))) {
        (true, _) => return Ok(directory),
        (false, Ok(true)) => format!("it is a data directory; pass {}", directory.join(ANSWERS).display()),
        _ => "pass DATA/answers of the server; the output of `lodestone answers export` does not suffice".to_owned(),
    };
    Err(format!("is not an answer log, because it contains no *.answers files: {problem}"))
}

/// Parses the name of an attribute.
fn attribute(name: &str) -> Result<String, String> {
    match attribute_name(&format!("attributes.{name}")) {
        Some(name) => Ok(name.to_owned()),
        None => Err("is not the name of an attribute: 1 to 64 of A-Z, a-z, 0-9, _".to_owned()),
    }
}

/// Parses the width of the user encoder.
fn width() -> impl TypedValueParser<Value = usize> {
    within(16..=512).try_map(|width| match width.is_multiple_of(8) {
        true => Ok(width),
        false => Err(format!("{width} is not a multiple of 8 in 16..=512")),
    })
}

impl UserEncoderArgs {
    pub(crate) fn settings(&self) -> EncoderSettings {
        EncoderSettings { width: self.encoder_width, blocks: self.encoder_blocks, events: self.encoder_events }
    }
}

/// What a training inherits, if no flag sets it.
#[derive(Clone, Copy)]
pub(crate) struct Earlier<'a> {
    pub(crate) bundle: Option<&'a Path>,
    /// By declared attribute: whether searches find its texts. Has precedence over the bundle.
    pub(crate) searchable: &'a BTreeMap<String, bool>,
}

impl TrainArgs {
    /// Starts the thread pool and loads ONNX Runtime.
    pub(crate) fn start(&self) -> anyhow::Result<Runtime> {
        self.threads.start_pool()?;
        self.library.load()
    }

    /// Options of a training that starts now, is named after the current time, and stops at a signal.
    fn options(&self) -> anyhow::Result<TrainOptions> {
        let now = UnixMillis::now();
        Ok(TrainOptions {
            seed: self.seed,
            query_encoder: self.encoder.source(),
            encoder: self.user_encoder.settings(),
            lists_max: self.lists_max,
            features: self.features.clone().unwrap_or_default(),
            searchable_attributes: self.searchable_attributes.clone(),
            name: bundle_name(now)?,
            now,
            stop: stop_flag()?,
            ..TrainOptions::default()
        })
    }

    /// Returns whether no flag names the searchable attributes.
    fn takes_attributes(&self) -> bool {
        self.searchable_attributes.is_empty() && !self.no_searchable_attributes
    }

    /// Sets the options that no flag sets to those of an earlier bundle.
    fn inherit(&self, bundle: &Path, options: &mut TrainOptions) -> anyhow::Result<Inherited> {
        let takes_features = self.features.is_none() && !self.no_features;
        let takes_attributes = self.takes_attributes();
        if !takes_features && !takes_attributes {
            return Ok(Inherited::Nothing);
        }
        let path = bundle.join(MANIFEST);
        let text = std::fs::read(&path).with_context(|| path.display().to_string())?;
        let manifest = match Manifest::parse(&text) {
            Ok(manifest) => manifest,
            Err(error) => return Ok(Inherited::BundleNotUsed { reason: error.to_string() }),
        };
        if takes_features {
            options.features = manifest.features;
        }
        if takes_attributes {
            options.searchable_attributes = manifest.searchable_attributes;
        }
        let features = options.features.declared().iter().map(|feature| feature.name().to_owned());
        Ok(Inherited::Bundle {
            name: manifest.name,
            features: features.filter(|_| takes_features).collect(),
            searchable_attributes: options.searchable_attributes.iter().filter(|_| takes_attributes).cloned().collect(),
        })
    }

    /// Trains with progress bars. `earlier` is what the training inherits. `adjust`
    /// sets the options that differ between the commands. Returns None if a signal stopped the training.
    pub(crate) fn run(
        &self,
        data: &Path,
        out: &Path,
        earlier: Earlier,
        runtime: &Runtime,
        adjust: impl FnOnce(TrainOptions) -> TrainOptions,
    ) -> anyhow::Result<Option<Trained>> {
        let mut options = adjust(self.options()?);
        let inherited = match earlier.bundle {
            Some(bundle) => self.inherit(bundle, &mut options)?,
            None => Inherited::Nothing,
        };
        if self.takes_attributes() {
            for (name, is_searchable) in earlier.searchable {
                options.searchable_attributes.retain(|known| known != name);
                options.searchable_attributes.extend(is_searchable.then(|| name.clone()));
            }
        }
        let mut bars = StageBars::default();
        let trained = lodestone_training::train(data, out, runtime, &options, &mut |step: Progress| bars.show(step));
        bars.finish();
        match trained {
            Ok(report) => Ok(Some(Trained { report, inherited })),
            Err(TrainError::Stopped) => Ok(None),
            Err(error) => {
                let is_inherited = self.features.is_none() && matches!(error, TrainError::Feature(_));
                let error = anyhow::Error::from(error);
                Err(match inherited {
                    Inherited::Bundle { name, .. } if is_inherited => error.context(format!(
                        "the declared features are those of bundle {name}; declare others with --features, or none with \
                         --no-features"
                    )),
                    _ => error,
                })
            }
        }
    }
}

/// What a training takes over from an earlier bundle, because no flag says otherwise.
#[derive(serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Inherited {
    Nothing,
    Bundle {
        name: String,
        /// Names of the declared features.
        features: Vec<String>,
        searchable_attributes: Vec<String>,
    },
    BundleNotUsed {
        reason: String,
    },
}

/// A finished training.
#[derive(serde::Serialize)]
pub(crate) struct Trained {
    #[serde(flatten)]
    report: TrainReport,
    inherited: Inherited,
}

/// Returns the answer log in a directory as an input of the training.
pub(crate) fn answer_source(directory: PathBuf) -> AnswerSource {
    AnswerSource { directory, answer_of: lodestone_engine::answer_of_token }
}

/// Returns a flag that the first SIGINT or SIGTERM sets. The second one ends the process.
#[expect(clippy::disallowed_methods, reason = "the second signal ends a training that does not stop")]
fn stop_flag() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut signals = runtime.block_on(async { StopSignals::install() })?;
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        runtime.block_on(async {
            loop {
                signals.received().await;
                if flag.swap(true, Ordering::Relaxed) {
                    std::process::exit(Exit::Interrupted.code());
                }
                eprintln!("stopping after this step; a second signal ends the process at once");
            }
        });
    })?;
    Ok(stop)
}

impl fmt::Display for Trained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { report, inherited } = self;
        let from_the_beginning = "the training started from the beginning";
        match report.checkpoint {
            CheckpointUse::Nothing | CheckpointUse::Resumed => {}
            CheckpointUse::Ignored => {
                writeln!(f, "the checkpoint of this bundle has other data or settings; {from_the_beginning}")?;
            }
            CheckpointUse::OtherVersion { found, expected } => {
                writeln!(f, "the checkpoint {}; {from_the_beginning}", OtherVersion { found, expected })?;
            }
        }
        match &report.start {
            WarmStart::RandomWeights => {}
            WarmStart::Bundle { name, known_item_count } => {
                writeln!(f, "initial weights: bundle {name}, which has {known_item_count} of the items")?;
            }
            WarmStart::BundleNotUsed { reason } => writeln!(f, "initial weights: random, because {reason}")?,
        }
        match inherited {
            Inherited::Nothing => {}
            Inherited::Bundle { name, features, searchable_attributes } => {
                if !features.is_empty() {
                    writeln!(f, "declared features of bundle {name}: {}", features.join(", "))?;
                }
                if !searchable_attributes.is_empty() {
                    writeln!(f, "searchable attributes of bundle {name}: {}", searchable_attributes.join(", "))?;
                }
            }
            Inherited::BundleNotUsed { reason } => {
                writeln!(f, "no declared features and searchable attributes of the earlier bundle: {reason}")?;
            }
        }
        writeln!(
            f,
            "{} items, {} interactions; {} history windows, {} epochs; {} ranking lists; heads: {}",
            report.item_count,
            report.interaction_count,
            report.sample_count,
            report.epoch_count,
            report.list_count,
            if report.heads.is_empty() { "none".to_owned() } else { report.heads.join(", ") }
        )?;
        for missing in [&report.missing_user_encoder, &report.missing_ranker].into_iter().flatten() {
            writeln!(f, "{missing}")?;
        }
        if !report.left_out_sources.is_empty() {
            writeln!(f, "sources that find hardly an item alone are left out: {}", report.left_out_sources.join(", "))?;
        }
        for feature in &report.features {
            write!(f, "{feature}")?;
        }
        if let Some(answers) = &report.answers {
            write!(f, "{answers}")?;
        }
        write!(f, "{}", report.loyalty)?;
        let seconds: Vec<String> =
            report.seconds.iter().map(|(stage, seconds)| format!("{stage} {seconds:.1} s")).collect();
        let memory = report.memory_bytes_max.map_or(String::new(), |bytes| format!("; peak memory {} MB", bytes >> 20));
        writeln!(f, "{}{memory}", seconds.join(", "))?;
        for (model, difference) in &report.exports {
            writeln!(f, "{model:<16} ONNX export differs from the trained model by at most {difference:.1e}")?;
        }
        Ok(())
    }
}

/// The result of `lodestone train`.
#[derive(serde::Serialize)]
struct Summary {
    #[serde(flatten)]
    trained: Trained,
    /// None without `--gate`.
    #[serde(skip_serializing_if = "Option::is_none")]
    gate: Option<Verdict>,
    /// Path of the bundle; None if the gate refused it.
    bundle: Option<PathBuf>,
    elapsed_seconds: f64,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.trained)?;
        if let Some(verdict) = &self.gate {
            write!(f, "{verdict}")?;
        }
        match &self.bundle {
            Some(path) => writeln!(f, "bundle {} written in {:.0} s", path.display(), self.elapsed_seconds),
            None => writeln!(f, "no bundle was written"),
        }
    }
}

/// A bundle that waits for the verdict of the gate, OUT.candidate. It is removed unless it gets its final name, so that
/// the same command can be repeated after a failure.
struct Candidate(PathBuf);

impl Candidate {
    /// Removes what a killed command left behind.
    fn new(out: &Path) -> anyhow::Result<Self> {
        let mut name = out.as_os_str().to_owned();
        name.push(".candidate");
        let path = PathBuf::from(name);
        if path.join(MANIFEST).is_file() {
            std::fs::remove_dir_all(&path).with_context(|| path.display().to_string())?;
        }
        // Before it is this command's to remove.
        check_new_directory(&path).map_err(|problem| anyhow!("{} {problem}", path.display()))?;
        Ok(Self(path))
    }

    fn rename(&self, out: &Path) -> anyhow::Result<()> {
        std::fs::rename(&self.0, out).with_context(|| self.0.display().to_string())
    }
}

impl Drop for Candidate {
    fn drop(&mut self) {
        // Fails after the renaming, and if nothing was written.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Checks what would fail after the training, and creates the parents of `--out`, which a checkpoint needs.
fn prepare(args: &TrainCommandArgs, written: &Path) -> anyhow::Result<()> {
    check_new_directory(written).map_err(|problem| anyhow!("{} {problem}", written.display()))?;
    if let Some(current) = &args.gate {
        Bundle::open(current).context("--gate")?;
    }
    let parent = written.parent().unwrap_or(Path::new(""));
    std::fs::create_dir_all(parent).with_context(|| parent.display().to_string())
}

pub(crate) fn train(args: TrainCommandArgs) -> anyhow::Result<Exit> {
    let started = Instant::now();
    // A gated bundle gets its final name after it has passed.
    let candidate = args.gate.as_ref().map(|_| Candidate::new(&args.out)).transpose()?;
    let written = candidate.as_ref().map_or(&args.out, |candidate| &candidate.0);
    // Before the bundle of --gate is read, which would start the pool with one thread per processor.
    let runtime = args.train.start()?;
    prepare(&args, written)?;
    let warm_start = args.from.clone();
    let answers = args.answers.clone().map(answer_source);
    let adjust = |options| TrainOptions { warm_start, answers, ..options };
    let earlier = Earlier { bundle: args.from.as_deref(), searchable: &BTreeMap::new() };
    let Some(trained) = args.train.run(&args.data, written, earlier, &runtime, adjust)? else {
        eprintln!("stopped; the same command resumes from {}.checkpoint", written.display());
        return Ok(Exit::Interrupted);
    };
    let gate = match &args.gate {
        Some(current) => {
            let options = GateOptions { users_min: args.users.users_min, ..GateOptions::default() };
            Some(decide(&args.data, written, current, &runtime, &options)?)
        }
        None => None,
    };
    let passes = gate.as_ref().is_none_or(|verdict| verdict.refusals.is_empty());
    if let Some(candidate) = candidate.as_ref().filter(|_| passes) {
        candidate.rename(&args.out)?;
    }
    drop(candidate);
    let bundle = passes.then_some(args.out);
    args.format.print(&Summary { trained, gate, bundle, elapsed_seconds: started.elapsed().as_secs_f64() })?;
    Ok(Exit::answer(passes))
}
