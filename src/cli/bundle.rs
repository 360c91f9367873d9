//! bundle
use super::{LibraryArgs, StoreArgs, matrix::Matrix, offline::Bars, time::bundle_name};
use anyhow::{Context, ensure};
use lodestone_catalog::VECTOR_DIM;
use lodestone_core::units::UnixMillis;
use lodestone_pipeline::{
    bundle::{Bundle, Head},
    ranking::Runtime,
};
use lodestone_training::{ExternalModels, bring};
use std::{
    fs,
    path::{Path, PathBuf},
};

#[derive(clap::Subcommand)]
pub(super) enum BundleCommand {
    /// Puts models that were trained elsewhere into a bundle; docs/bring-your-own-model.md says what each must take and give.
    Build(BuildArgs),
    /// Verifies a bundle and says what it holds.
    Show(ShowArgs),
    /// Verifies a bundle, copies it into a store and makes it the one that servers of that store load; see docs/model-rollout.md.
    Publish(PublishArgs),
    /// Removes old bundles from a store: all but the current one and those that were made last.
    Prune(PruneArgs),
}

#[derive(clap::Args)]
#[command(group = clap::ArgGroup::new("models").required(true).multiple(true).args(["user_encoder", "query_encoder", "ranker"]))]
pub(super) struct BuildArgs {
    /// The bundle that everything else is taken from.
    #[arg(long, value_name = "DIR")]
    from: PathBuf,
    /// The bundle to be written; must not exist.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// From a history to a vector, as ONNX.
    #[arg(long, value_name = "FILE", requires = "item_vectors")]
    user_encoder: Option<PathBuf>,
    /// The items' vectors in the user encoder's space: .npy or .fvecs, 64 numbers for each item, in the order of the
    /// bundle's items.parquet.
    #[arg(long, value_name = "FILE", requires = "user_encoder")]
    item_vectors: Option<PathBuf>,
    /// From texts to vectors: a directory with model.onnx and tokenizer.json.
    #[arg(long, value_name = "DIR")]
    query_encoder: Option<PathBuf>,
    /// From features to the logits of the heads, as ONNX.
    #[arg(long, value_name = "FILE")]
    ranker: Option<PathBuf>,
    /// The ranker's heads, where they are others than the bundle's: JSON,
    /// [{"name": "purchase", "weight": 1.0, "scale": 1.0, "offset": 0.0}, …].
    #[arg(long, value_name = "FILE", requires = "ranker")]
    heads: Option<PathBuf>,
    #[command(flatten)]
    library: LibraryArgs,
}

#[derive(clap::Args)]
pub(super) struct ShowArgs {
    #[arg(long, value_name = "DIR")]
    bundle: PathBuf,
}

#[derive(clap::Args)]
pub(super) struct PublishArgs {
    #[arg(long, value_name = "DIR")]
    bundle: PathBuf,
    /// Only where the store has no current bundle yet; otherwise nothing is done.
    #[arg(long)]
    if_empty: bool,
    #[command(flatten)]
    store: StoreArgs,
}

#[derive(clap::Args)]
pub(super) struct PruneArgs {
    /// How many to keep beside the current one: a way back, and what servers try as canary or shadow.
    #[arg(long, value_name = "N")]
    keep: usize,
    #[command(flatten)]
    store: StoreArgs,
}

pub(super) fn run(command: BundleCommand) -> anyhow::Result<()> {
    match command {
        BundleCommand::Build(args) => build(args),
        BundleCommand::Show(args) => show(&args.bundle),
        BundleCommand::Publish(args) => publish(&args),
        BundleCommand::Prune(args) => prune(&args),
    }
}

fn build(args: BuildArgs) -> anyhow::Result<()> {
    let runtime = Runtime::load(args.library.onnxruntime.as_deref())?;
    let user = match args.user_encoder.zip(args.item_vectors) {
        Some((model, vectors)) => {
            let matrix = Matrix::read(&vectors)?;
            ensure!(
                matrix.dimensions == VECTOR_DIM,
                "{}: vectors have {} dimensions where {VECTOR_DIM} are due",
                vectors.display(),
                matrix.dimensions
            );
            Some((model, matrix.values))
        }
        None => None,
    };
    let heads = args.heads.as_deref().map(heads_of).transpose()?;
    let models =
        ExternalModels { user, query_encoder: args.query_encoder, ranker: args.ranker.map(|model| (model, heads)) };
    let now = UnixMillis::now();
    let name = bundle_name(now)?;
    let mut bars = Bars::default();
    bring(&args.from, &args.out, &models, &name, now, &runtime, &mut |step| bars.show(step))?;
    bars.finish();
    println!("bundle {} written; judge it with `lodestone gate`", args.out.display());
    Ok(())
}

fn publish(args: &PublishArgs) -> anyhow::Result<()> {
    let store = args.store.open()?;
    if let (true, Some(current)) = (args.if_empty, store.current()?) {
        println!("{} stays current in {}", current.name, store.place());
        return Ok(());
    }
    let manifest = store.publish(&args.bundle, args.if_empty.then_some(None))?;
    println!("{} is current in {}", manifest.name, store.place());
    Ok(())
}

fn prune(args: &PruneArgs) -> anyhow::Result<()> {
    let store = args.store.open()?;
    for name in store.prune(args.keep)? {
        println!("{name} is gone from {}", store.place());
    }
    Ok(())
}

fn heads_of(path: &Path) -> anyhow::Result<Vec<Head>> {
    let text = fs::read(path).with_context(|| path.display().to_string())?;
    let heads: Vec<Head> = serde_json::from_slice(&text).with_context(|| path.display().to_string())?;
    ensure!(!heads.is_empty(), "{}: there must be at least one head", path.display());
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

fn show(path: &Path) -> anyhow::Result<()> {
    let bundle = Bundle::open(path)?;
    let manifest = &bundle.manifest;
    let time = |ms| jiff::Timestamp::from_millisecond(ms).map_or_else(|_| ms.to_string(), |time| time.to_string());
    println!("name            {}", manifest.name);
    println!("created         {}", time(manifest.created_ms));
    println!("trained until   {}", time(manifest.trained_until_ms));
    println!("items           {}", bundle.items.len());
    println!("item vectors    {} dimensions, {:?}", bundle.item_vectors.dimensions(), bundle.item_vectors.precision());
    let encoder = if bundle.tokenizer.is_some() { "sentence encoder" } else { "hashed terms" };
    println!("query encoder   {encoder}, {} dimensions", bundle.title_vectors.dimensions());
    println!("feature schema  {}", manifest.feature_schema);
    for head in &manifest.heads {
        println!(
            "head            {}: weight {}, scale {:.3}, offset {:.3}",
            head.name, head.weight, head.scale, head.offset
        );
    }
    for (name, file) in &manifest.files {
        println!("{:>15} {name}", file.bytes);
    }
    Ok(())
}
