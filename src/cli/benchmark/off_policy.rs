//! benchmark off-policy
use anyhow::{Context, ensure};
use lodestone_experiments::off_policy::{self, EstimateOptions, SupportLimits};
use std::path::PathBuf;

/// Estimates, from the log of one policy, what another earns per shown item (with clicks: its click rate), and compares
/// it with the other's own log.
///
/// The other policy's probabilities are the shares of its items by position. Prints IPS, SNIPS, clipped IPS and the doubly
/// robust estimator with 95 % intervals; docs/off-policy.md tells how to read them. Exit code 1 where the log cannot
/// tell: the other policy does what the log never did, or too seldom did.
#[derive(clap::Args)]
pub(crate) struct OffPolicyArgs {
    /// The log to learn from: .csv, .csv.gz or .csv.zst with `item_id`, `position` (1 and more), `click` (0 or 1) or `reward`,
    /// `propensity_score` (the probability of this item at this position), and `user_id` where users are known.
    #[arg(long, value_name = "FILE")]
    logged: PathBuf,
    /// A log of the policy to be judged, in the same format.
    #[arg(long, value_name = "FILE")]
    target: PathBuf,
    /// Also writes JSON to this file; without a file, prints JSON instead of the table.
    #[arg(long, value_name = "OUT", num_args = 0..=1)]
    json: Option<Option<PathBuf>>,
    /// The same seed gives the same intervals.
    #[arg(long, value_name = "N", default_value_t = EstimateOptions::default().seed)]
    seed: u64,
    /// Resamples of the users (of the rows where the file tells no users) behind the intervals.
    #[arg(long, value_name = "N", default_value_t = EstimateOptions::default().resamples as u32,
          value_parser = clap::value_parser!(u32).range(100..=100_000))]
    resamples: u32,
    /// Where clipped IPS cuts weights. Default: the root of the number of rows.
    #[arg(long, value_name = "WEIGHT")]
    clip: Option<f64>,
    /// Refuses a log that is worth fewer rows of the other policy than this (effective sample size).
    #[arg(long, value_name = "ROWS", default_value_t = SupportLimits::default().ess_min)]
    ess_min: f64,
    /// Refuses a log where more than this share of the other policy's choices are items that the log never shows.
    #[arg(long, value_name = "SHARE", default_value_t = SupportLimits::default().unseen_items_max)]
    unseen_items_max: f64,
    /// Refuses a log where more than this share of the other policy's choices are items at positions where the log never
    /// shows them.
    #[arg(long, value_name = "SHARE", default_value_t = SupportLimits::default().unseen_cells_max)]
    unseen_cells_max: f64,
}

/// Exit code 1 where the log was refused.
pub(super) fn off_policy(args: OffPolicyArgs) -> anyhow::Result<i32> {
    ensure!(args.clip.is_none_or(|clip| clip.is_finite() && clip > 0.0), "--clip must be above 0");
    ensure!(args.ess_min.is_finite() && args.ess_min >= 1.0, "--ess-min must be 1 or more");
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
    match &args.json {
        Some(None) => println!("{}", serde_json::to_string_pretty(&report)?),
        Some(Some(out)) => {
            std::fs::write(out, serde_json::to_string_pretty(&report)?).with_context(|| out.display().to_string())?;
            print!("{report}");
        }
        None => print!("{report}"),
    }
    Ok(i32::from(report.refused.is_some()))
}
