//! `lodestone benchmark search`
use crate::cli::{LibraryArgs, encoder::EncoderArgs, exit::Exit, output::OutputArgs, progress::StageBars};
use lodestone_training::{self, SearchBenchmarkOptions};
use std::path::PathBuf;

/// Measures product search on judged queries: nDCG@10 and recall@100 of lexical, vector, fused and reranked search.
///
/// Searches the whole catalogue; products without a judgment count as irrelevant. The query encoder is
/// --query-encoder or is trained on the product titles only. The ranking model is trained on the judgments of other
/// queries than those that it ranks (five folds).
#[derive(clap::Args)]
#[command(after_help = "\
Example:
  lodestone benchmark search --products products.jsonl.gz --judgments judgments.tsv.gz")]
pub(crate) struct SearchArgs {
    /// .jsonl (id, title, name, supplier or brand, short_description or description, attr_t_…) or .tsv (product_uid or
    /// id, title); plain, .gz or .zst.
    #[arg(long, value_name = "FILE")]
    products: PathBuf,
    /// .tsv with query, product_id or product_uid, and rating (0 to 3) or relevance (1 to 3); plain, .gz or .zst.
    #[arg(long, value_name = "FILE")]
    judgments: PathBuf,
    #[command(flatten)]
    encoder: EncoderArgs,
    /// Seed of the training and the folds.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    library: LibraryArgs,
}

pub(crate) fn search(args: SearchArgs) -> anyhow::Result<Exit> {
    let SearchArgs { products, judgments, encoder, seed, output, library } = args;
    let runtime = library.load()?;
    let mut bars = StageBars::default();
    let options = SearchBenchmarkOptions { products, judgments, encoder: encoder.source(), seed };
    let report = lodestone_training::search_benchmark(&options, &runtime, &mut |step| bars.show(step))?;
    bars.finish();
    output.write(&report)?;
    Ok(Exit::Success)
}
