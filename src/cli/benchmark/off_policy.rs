//! `lodestone benchmark off-policy`
use crate::cli::{exit::Exit, output::OutputArgs};
use anyhow::ensure;
use lodestone_experiments::off_policy::{self, EstimateOptions, SupportLimits};
use std::path::PathBuf;

/// Estimates the reward per shown item of a target policy from the log of another policy, and compares it with the
/// target's log.
///
/// The probabilities of the target policy are the shares of its items by position. Prints IPS, SNIPS, clipped IPS and
/// the doubly robust estimator with 95 % intervals; see docs/off-policy.md. Exit code 1 if the log does not support an
/// estimate, because the target policy takes actions that the logging policy never or too rarely took.
#[derive(clap::Args)]
#[command(after_help = "\
Example:
  lodestone benchmark off-policy --logged random.csv.gz --target thompson.csv.gz --format json")]
pub(crate) struct OffPolicyArgs {
    /// Log of the logging policy: .csv, .csv.gz or .csv.zst with `item_id`, `position` (1 and more), `click` (0 or 1)
    /// or `reward`, `propensity_score` (the probability of this item at this position), and optionally `user_id`.
    #[arg(long, value_name = "FILE")]
    logged: PathBuf,
    /// Log of the target policy, in the same format.
    #[arg(long, value_name = "FILE")]
    target: PathBuf,
    /// Seed of the bootstrap.
    #[arg(long, value_name = "N", default_value_t = EstimateOptions::default().seed)]
    seed: u64,
    /// Bootstrap resamples, of the users or, without `user_id`, of the rows.
    #[arg(long, value_name = "N", default_value_t = EstimateOptions::default().resamples as u32,
          value_parser = clap::value_parser!(u32).range(100..=100_000))]
    resamples: u32,
    /// Greatest weight of clipped IPS. Default: the square root of the number of rows.
    #[arg(long, value_name = "WEIGHT")]
    clip: Option<f64>,
    /// Least effective sample size, in rows of the target policy.
    #[arg(long, value_name = "ROWS", default_value_t = SupportLimits::default().ess_min)]
    ess_min: f64,
    /// Greatest share of the target policy's actions with items that the log never shows.
    #[arg(long, value_name = "SHARE", default_value_t = SupportLimits::default().unseen_items_max)]
    unseen_items_max: f64,
    /// Greatest share of the target policy's actions with items in positions in which the log never shows them.
    #[arg(long, value_name = "SHARE", default_value_t = SupportLimits::default().unseen_cells_max)]
    unseen_cells_max: f64,
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) fn off_policy(args: &OffPolicyArgs) -> anyhow::Result<Exit> {
    ensure!(
        args.clip.is_none_or(|clip| clip.is_finite() && clip > 0.0),
        "--clip is {}; it must be above 0",
        args.clip.unwrap_or_default()
    );
    ensure!(args.ess_min.is_finite() && args.ess_min >= 1.0, "--ess-min is {}; it must be 1 or more", args.ess_min);
    for (name, share) in [("unseen-items", args.unseen_items_max), ("unseen-cells", args.unseen_cells_max)] {
        ensure!((0.0..=1.0).contains(&share), "--{name}-max is {share}; it must be from 0 to 1");
    }
    let limits = SupportLimits {
        ess_min: args.ess_min,
        unseen_items_max: args.unseen_items_max,
        unseen_cells_max: args.unseen_cells_max,
    };
    let options = EstimateOptions { resamples: args.resamples as usize, seed: args.seed, clip: args.clip, limits };
    let report = off_policy::benchmark(&args.logged, &args.target, &options)?;
    args.output.write(&report)?;
    Ok(Exit::answer(report.refused.is_none()))
}
