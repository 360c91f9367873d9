//! benchmark search
use crate::cli::{LibraryArgs, offline::Bars};
use lodestone_pipeline::ranking::Runtime;
use lodestone_training as training;
use std::path::PathBuf;

/// Searches a judged catalogue by words, by vectors, by both, and by both as the ranking model orders them; prints nDCG@10
/// and recall@100 of good products.
///
/// The whole catalogue is searched, and a product that nobody judged is worth nothing. The query encoder is the one given,
/// or it learns from the products' titles alone. The ranking model learns from the judgments of other queries than those
/// that it orders (five folds).
#[derive(clap::Args)]
pub(crate) struct SearchArgs {
    /// .jsonl (id, title, name, supplier or brand, short_description or description, attr_t_…) or .tsv (product_uid or id,
    /// title); plain, .gz or .zst.
    #[arg(long, value_name = "FILE")]
    products: PathBuf,
    /// .tsv: query, product_id or product_uid, and rating (0 to 3) or relevance (1 to 3); plain, .gz or .zst.
    #[arg(long, value_name = "FILE")]
    judgments: PathBuf,
    /// A sentence encoder: a directory with model.onnx (input_ids, attention_mask, token_type_ids) and tokenizer.json.
    #[arg(long, value_name = "DIR")]
    encoder: Option<PathBuf>,
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    library: LibraryArgs,
}

pub(super) fn search(args: SearchArgs) -> anyhow::Result<()> {
    let runtime = Runtime::load(args.library.onnxruntime.as_deref())?;
    let mut bars = Bars::default();
    let SearchArgs { products, judgments, encoder, seed, .. } = args;
    let options = training::SearchBenchmarkOptions { products, judgments, encoder, seed };
    let report = training::search_benchmark(&options, &runtime, &mut |step| bars.show(step))?;
    bars.finish();
    match args.json {
        true => println!("{}", serde_json::to_string_pretty(&report)?),
        false => print!("{report}"),
    }
    Ok(())
}
