//! `lodestone gate`, and the verdict that `train` and `retrain` share.
use super::{LibraryArgs, exit::Exit, output::OutputArgs, paths::existing_directory, progress::StageBars};
use lodestone_pipeline::ranking::Runtime;
use lodestone_training::{self, GateOptions, Verdict};
use std::path::{Path, PathBuf};

/// Decides whether a new bundle may replace the current one. Exit code 1 and the reasons if not.
///
/// Both bundles are evaluated on the events after the training of either. A candidate is refused if there are too few
/// users to tell, if its ranking is worse with confidence than the current bundle's or than the best of the baselines
/// that `lodestone evaluate` prints, if it is slower, or if it recommends fewer different items.
#[derive(clap::Args)]
#[command(after_help = "\
Example:
  lodestone gate --data data --candidate new --current bundle --format json")]
pub(crate) struct GateArgs {
    /// The data that both bundles were trained on.
    #[arg(long, value_name = "DIR", value_parser = existing_directory)]
    data: PathBuf,
    /// The new bundle.
    #[arg(long, value_name = "DIR")]
    candidate: PathBuf,
    /// The bundle that serves.
    #[arg(long, value_name = "DIR")]
    current: PathBuf,
    #[command(flatten)]
    users: UsersMinArg,
    /// Highest allowed ratio of the candidate's response time to the current bundle's.
    #[arg(long, value_name = "RATIO", default_value_t = GateOptions::default().slower_max)]
    slower_max: f64,
    /// Lowest allowed ratio of different items in the candidate's lists to those in the current bundle's.
    #[arg(long, value_name = "RATIO", default_value_t = GateOptions::default().coverage_min)]
    coverage_min: f64,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    library: LibraryArgs,
}

/// The limit that `gate`, `train` and `retrain` share.
#[derive(clap::Args)]
pub(crate) struct UsersMinArg {
    /// Fewest users with a basket after both trainings on which the gate decides; with fewer it refuses. 0: any
    /// number.
    #[arg(long, value_name = "N", default_value_t = GateOptions::default().users_min)]
    pub(crate) users_min: usize,
}

pub(crate) fn gate(args: &GateArgs) -> anyhow::Result<Exit> {
    let runtime = args.library.load()?;
    let options = GateOptions {
        users_min: args.users.users_min,
        slower_max: args.slower_max,
        coverage_min: args.coverage_min,
        ..GateOptions::default()
    };
    let verdict = decide(&args.data, &args.candidate, &args.current, &runtime, &options)?;
    args.output.write(&verdict)?;
    Ok(Exit::answer(verdict.refusals.is_empty()))
}

/// Runs the gate with progress bars.
pub(crate) fn decide(
    data: &Path,
    candidate: &Path,
    current: &Path,
    runtime: &Runtime,
    options: &GateOptions,
) -> anyhow::Result<Verdict> {
    let mut bars = StageBars::default();
    let verdict = lodestone_training::gate(data, candidate, current, runtime, options, &mut |step| bars.show(step))?;
    bars.finish();
    Ok(verdict)
}
