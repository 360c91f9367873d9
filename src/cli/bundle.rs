//! `lodestone bundle`
use super::{
    LibraryArgs,
    encoder::EncoderArgs,
    exit::Exit,
    matrix::Matrix,
    output::{FormatArgs, OutputArgs, write_file},
    paths::{new_directory, output_directory},
    progress::StageBars,
    store_options,
    time::bundle_name,
};
use anyhow::{Context, ensure};
use lodestone_core::{ids::Row, units::UnixMillis};
use lodestone_pipeline::{
    bundle::{Bundle, Head, Manifest},
    ranking::{QueryEncoderKind, SentenceConfig},
};
use lodestone_rollout::{Store, StoreError};
use lodestone_training::{ExternalModels, ExternalUserEncoder, bundle_external_models};
use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

#[derive(clap::Subcommand)]
pub(crate) enum BundleCommand {
    Build(Box<BuildArgs>),
    Show(ShowArgs),
    ExportVectors(ExportVectorsArgs),
    Publish(PublishArgs),
    Prune(PruneArgs),
}

/// Builds a bundle from another one with models that were trained elsewhere.
///
/// docs/bring-your-own-model.md specifies the inputs and outputs of each model. Every model is run before the bundle is
/// written.
#[derive(clap::Args)]
#[command(group = clap::ArgGroup::new("models").required(true).multiple(true)
    .args(["user_encoder", "query_encoder", "ranker"]))]
#[command(after_help = "\
Examples:
  lodestone bundle build --from bundle --out new --ranker ranker.onnx
  lodestone bundle build --from bundle --out new --user-encoder user.onnx --item-vectors items.npy")]
pub(crate) struct BuildArgs {
    /// The bundle that everything else is copied from.
    #[arg(long, value_name = "DIR")]
    from: PathBuf,
    /// The bundle to write; must not exist.
    #[arg(long, value_name = "DIR", value_parser = new_directory)]
    out: PathBuf,
    /// User encoder, from a history to a vector, as ONNX.
    #[arg(long, value_name = "FILE", requires = "item_vectors")]
    user_encoder: Option<PathBuf>,
    /// Item vectors in the space of the user encoder: .npy or .fvecs, one row per item, in the order of the bundle's
    /// items.parquet. The user encoder must have as many dimensions.
    #[arg(long, value_name = "FILE", requires = "user_encoder")]
    item_vectors: Option<PathBuf>,
    #[command(flatten)]
    encoder: EncoderArgs,
    /// Ranking model, from features to the logits of the heads, as ONNX.
    #[arg(long, value_name = "FILE")]
    ranker: Option<PathBuf>,
    /// Heads of the ranking model as JSON: [{"name": "purchase", "weight": 1.0, "scale": 1.0, "offset": 0.0}, …].
    /// Default: the heads of the bundle.
    #[arg(long, value_name = "FILE", requires = "ranker")]
    heads: Option<PathBuf>,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    library: LibraryArgs,
}

/// Verifies the checksums of a bundle and prints its contents.
#[derive(clap::Args)]
pub(crate) struct ShowArgs {
    /// The bundle.
    #[arg(long, value_name = "DIR")]
    bundle: PathBuf,
    #[command(flatten)]
    output: OutputArgs,
}

/// Writes the vectors of a bundle's items as .npy, for other programs.
///
/// Row r of both matrices belongs to line r of item_ids.txt, and to row r of the bundle's items.parquet. A product with
/// the output of the bundle's encoders is the score that retrieval uses.
#[derive(clap::Args)]
#[command(after_help = "\
Example:
  lodestone bundle export-vectors --bundle bundle --out vectors")]
pub(crate) struct ExportVectorsArgs {
    /// The bundle.
    #[arg(long, value_name = "DIR")]
    bundle: PathBuf,
    /// The directory for item_vectors.npy (user space), title_vectors.npy (query space) and item_ids.txt. Files of
    /// these names are replaced.
    #[arg(long, value_name = "DIR", value_parser = output_directory)]
    out: PathBuf,
    #[command(flatten)]
    format: FormatArgs,
}

/// Verifies a bundle, copies it to a store and makes it the store's current bundle.
///
/// Servers that watch the store load it; see docs/model-rollout.md.
#[derive(clap::Args)]
#[command(after_help = "\
Example:
  lodestone bundle publish --bundle bundle --store s3://bucket/shop")]
pub(crate) struct PublishArgs {
    /// The bundle.
    #[arg(long, value_name = "DIR")]
    bundle: PathBuf,
    /// Publishes only if the store has no current bundle; otherwise does nothing and succeeds.
    #[arg(long)]
    if_empty: bool,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// Removes old bundles from a store. Keeps the current one and the newest others.
#[derive(clap::Args)]
pub(crate) struct PruneArgs {
    /// Number of bundles to keep in addition to the current one, for rollback, canary and shadow.
    #[arg(long, value_name = "N")]
    keep: usize,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// The store that bundles are published to.
#[derive(clap::Args)]
pub(crate) struct StoreArgs {
    /// A directory or, in a build with the cargo feature `s3`, `gcs` or `azure` (the container image has all three), a
    /// URL such as s3://bucket/path. Credentials come from the environment (AWS_…, GOOGLE_…, AZURE_…).
    #[arg(long, value_name = "DIR|URL", env = "LODESTONE_STORE")]
    store: String,
}

impl StoreArgs {
    /// Opens the store to publish to it. A directory is created if it does not exist.
    pub(crate) fn open(&self) -> Result<Store, StoreError> {
        Store::open(&self.store, store_options())
    }
}

pub(crate) fn run(command: BundleCommand) -> anyhow::Result<Exit> {
    match command {
        BundleCommand::Build(args) => build(*args),
        BundleCommand::Show(args) => show(&args),
        BundleCommand::ExportVectors(args) => export_vectors(&args),
        BundleCommand::Publish(args) => publish(&args),
        BundleCommand::Prune(args) => prune(&args),
    }?;
    Ok(Exit::Success)
}

#[derive(serde::Serialize)]
struct Built {
    name: String,
    bundle: PathBuf,
}

impl fmt::Display for Built {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "bundle {} written; evaluate it with `lodestone gate`", self.bundle.display())
    }
}

fn build(args: BuildArgs) -> anyhow::Result<()> {
    let runtime = args.library.load()?;
    let user = match args.user_encoder.zip(args.item_vectors) {
        Some((model, vectors)) => {
            let Matrix { values, dimensions } = Matrix::read(&vectors)?;
            Some(ExternalUserEncoder { model, item_vectors: values, width: dimensions })
        }
        None => None,
    };
    let heads = args.heads.as_deref().map(read_heads).transpose()?;
    let query_encoder = args.encoder.source();
    let models = ExternalModels { user, query_encoder, ranker: args.ranker.map(|model| (model, heads)) };
    let now = UnixMillis::now();
    let name = bundle_name(now)?;
    let mut bars = StageBars::default();
    bundle_external_models(&args.from, &args.out, &models, &name, now, &runtime, &mut |step| bars.show(step))?;
    bars.finish();
    args.format.print(&Built { name, bundle: args.out })
}

fn read_heads(path: &Path) -> anyhow::Result<Vec<Head>> {
    let text = fs::read(path).with_context(|| path.display().to_string())?;
    let heads: Vec<Head> = serde_json::from_slice(&text).with_context(|| path.display().to_string())?;
    ensure!(!heads.is_empty(), "{}: the list is empty; at least one head is required", path.display());
    for head in &heads {
        ensure!(
            [head.weight, head.scale, head.offset].iter().all(|number| number.is_finite()),
            "{}: head `{}` has a number that is not finite",
            path.display(),
            head.name
        );
    }
    Ok(heads)
}

#[derive(serde::Serialize)]
struct Published {
    /// The store's current bundle.
    current: String,
    store: String,
    /// False if the store had a current bundle and `--if-empty` is set.
    published: bool,
}

impl fmt::Display for Published {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = if self.published { "is current" } else { "stays current" };
        writeln!(f, "{} {verb} in {}", self.current, self.store)
    }
}

fn publish(args: &PublishArgs) -> anyhow::Result<()> {
    let store = args.store.open()?;
    let (current, published) = match (args.if_empty, store.current()?) {
        (true, Some(current)) => (current.name, false),
        _ => (store.publish(&args.bundle, args.if_empty.then_some(None))?.name, true),
    };
    args.output.write(&Published { current, store: store.location().to_string(), published })
}

#[derive(serde::Serialize)]
struct Pruned {
    store: String,
    removed: Vec<String>,
}

impl fmt::Display for Pruned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.removed.is_empty() {
            return writeln!(f, "no bundle was removed from {}", self.store);
        }
        self.removed.iter().try_for_each(|name| writeln!(f, "bundle {name} removed from {}", self.store))
    }
}

fn prune(args: &PruneArgs) -> anyhow::Result<()> {
    let store = Store::open_existing(&args.store.store, store_options())?;
    let removed = store.prune(args.keep)?;
    args.output.write(&Pruned { store: store.location().to_string(), removed })
}

#[derive(serde::Serialize)]
struct ExportedVectors {
    bundle: String,
    out: PathBuf,
    item_count: usize,
    item_vector_dimensions: usize,
    title_vector_dimensions: usize,
}

impl fmt::Display for ExportedVectors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { bundle, out, item_count, item_vector_dimensions, title_vector_dimensions } = self;
        writeln!(f, "vectors of {item_count} items of bundle {bundle} written to {}", out.display())?;
        writeln!(f, "item vectors {item_vector_dimensions} dimensions, title vectors {title_vector_dimensions}")
    }
}

fn export_vectors(args: &ExportVectorsArgs) -> anyhow::Result<()> {
    let bundle = Bundle::open(&args.bundle)?;
    fs::create_dir_all(&args.out).with_context(|| format!("--out {}", args.out.display()))?;
    let item_count = bundle.items.len();
    for (index, name) in [(&bundle.item_vectors, "item_vectors"), (&bundle.title_vectors, "title_vectors")] {
        let rows =
            (0..item_count as u32).map(|row| index.vector(Row(row)).with_context(|| format!("{name}: row {row}")));
        let values = rows.collect::<anyhow::Result<Vec<_>>>()?.concat();
        Matrix { values, dimensions: index.dimensions() }.write(&args.out.join(name).with_extension("npy"))?;
    }
    // An id has no control characters, so each is one line.
    let ids: String = bundle.items.iter().map(|item| format!("{}\n", item.id)).collect();
    write_file("--out", &args.out.join("item_ids.txt"), &ids)?;
    args.format.print(&ExportedVectors {
        bundle: bundle.manifest.name.clone(),
        out: args.out.clone(),
        item_count,
        item_vector_dimensions: bundle.item_vectors.dimensions(),
        title_vector_dimensions: bundle.title_vectors.dimensions(),
    })
}

/// The manifest of a bundle and the sizes of its contents.
#[derive(serde::Serialize)]
struct Contents<'a> {
    #[serde(flatten)]
    manifest: &'a Manifest,
    item_count: usize,
    item_vector_dimensions: usize,
    item_vector_precision: String,
    query_encoder_kind: &'static str,
    query_vector_dimensions: usize,
    has_user_encoder: bool,
    has_ranker: bool,
}

impl fmt::Display for Contents<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let manifest = self.manifest;
        writeln!(f, "name            {}", manifest.name)?;
        writeln!(f, "created         {}", UnixMillis(manifest.created_ms))?;
        writeln!(f, "trained until   {}", UnixMillis(manifest.trained_until_ms))?;
        writeln!(f, "items           {}", self.item_count)?;
        writeln!(f, "item vectors    {} dimensions, {}", self.item_vector_dimensions, self.item_vector_precision)?;
        match self.has_user_encoder {
            true => writeln!(f, "user encoder    the latest {} events of a user", manifest.encoder_events)?,
            false => writeln!(f, "user encoder    none, because there were too few events")?,
        }
        if !self.has_ranker {
            writeln!(f, "ranking model   none, because there were too few events")?;
        }
        writeln!(f, "query encoder   {}, {} dimensions", self.query_encoder_kind, self.query_vector_dimensions)?;
        if let QueryEncoderKind::Sentence(config) = &manifest.query_encoder {
            let SentenceConfig { output, query_prefix, passage_prefix, tokens_max, .. } = config;
            writeln!(f, "                output {output}, {:?} pooling, at most {tokens_max} tokens", config.pooling)?;
            writeln!(f, "                prefixes {query_prefix:?} (query) and {passage_prefix:?} (item)")?;
        }
        let floor = manifest.relevance;
        writeln!(
            f,
            "relevance       cosine of at least {:.3}: precision {:.3}, recall {:.3}",
            floor.cosine_min, floor.precision, floor.recall
        )?;
        writeln!(f, "feature schema  {}", manifest.feature_schema)?;
        if !manifest.searchable_attributes.is_empty() {
            writeln!(f, "searchable      {}", manifest.searchable_attributes.join(", "))?;
        }
        for feature in manifest.features.declared() {
            writeln!(f, "feature         {}", feature.name())?;
        }
        for head in &manifest.heads {
            let Head { name, weight, scale, offset } = head;
            writeln!(f, "head            {name}: weight {weight}, scale {scale:.3}, offset {offset:.3}")?;
        }
        manifest.files.iter().try_for_each(|(name, file)| writeln!(f, "{:>15} {name}", file.bytes))
    }
}

fn show(args: &ShowArgs) -> anyhow::Result<()> {
    let bundle = Bundle::open(&args.bundle)?;
    args.output.write(&Contents {
        manifest: &bundle.manifest,
        item_count: bundle.items.len(),
        item_vector_dimensions: bundle.item_vectors.dimensions(),
        item_vector_precision: format!("{:?}", bundle.item_vectors.precision()),
        query_encoder_kind: match &bundle.manifest.query_encoder {
            QueryEncoderKind::HashedTerms { .. } => "hashed terms",
            QueryEncoderKind::Sentence(_) => "sentence encoder",
        },
        query_vector_dimensions: bundle.title_vectors.dimensions(),
        has_user_encoder: !bundle.user_encoder.is_empty(),
        has_ranker: !bundle.ranker.is_empty(),
    })
}
