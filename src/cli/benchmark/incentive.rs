//! `lodestone benchmark incentive`
use crate::cli::{
    exit::Exit,
    numbers::within,
    output::OutputArgs,
    paths::{existing_directory, new_file},
    threads::ThreadsArgs,
};
use anyhow::ensure;
use lodestone_dataset::{Cells, Decisions, read_decisions, write_table};
use lodestone_loyalty::{
    ComparisonOptions, Estimate, Evidence, IncentiveComparison, IncentiveLog, Observation, SIMULATED_INPUTS,
    SimulatedIncentives, UpliftError, UpliftOptions, compare_incentive_policies, simulate_incentives,
};
use std::{fmt, path::PathBuf};

const MICROS: f64 = 1e6;
/// Columns of the RFM policy.
const RFM: [&str; 2] = ["recency_days", "frequency"];

/// Compares policies that decide who receives which incentive, on logged decisions with their outcomes.
///
/// One half of the users teaches, the other half judges. Policies: `random`; `everyone` receives the incentive with the
/// greatest mean gain, whatever the budget is; `rfm` gives it to those who are least likely to purchase without; `response`
/// to those who are most likely to purchase with it; `uplift` decides by what each incentive changes (doubly robust
/// learner) under the budget. Gains are margin × value − cost, compared with no incentive for anyone. Policies keep the
/// expected cost within the budget; the cost of the table is estimated from the outcomes, and may be above it. See
/// docs/incentives.md. Exit code 1 if the decisions are too few.
#[derive(clap::Args)]
#[command(group = clap::ArgGroup::new("decisions").required(true).args(["data", "generate"]))]
#[command(after_help = "\
Examples:
  lodestone benchmark incentive --data data --margin 0.3 --budget 2000
  lodestone benchmark incentive --generate 100000 --seed 1 --margin 0.3 --format json

--data has decisions.parquet, or decisions.csv (also .gz or .zst) with a header. A row is a decision:
  user_id      text; the rows of one user are one observation in all intervals
  treatment    name of the incentive, or none
  propensity   probability with which this treatment was chosen, 0.001 to 1
  purchase     1 if the user purchased within the horizon, otherwise 0
  value        value of the user's purchases within the horizon, in the currency's unit
  cost         cost of the redeemed incentive; 0 if it was not redeemed, and for none
  currency     optional; all rows must have the same
All other columns are features: numbers that were known before the decision. rfm needs recency_days and frequency.")]
pub(crate) struct IncentiveArgs {
    /// The directory with the decisions.
    #[arg(long, value_name = "DIR", value_parser = existing_directory)]
    data: Option<PathBuf>,
    /// Simulates this many decisions with known effects instead, and reports the true gains.
    #[arg(long, value_name = "N", value_parser = within(100..=10_000_000))]
    generate: Option<usize>,
    /// Also writes the simulated decisions as a decisions.parquet.
    #[arg(long, value_name = "FILE", value_parser = new_file, requires = "generate")]
    save: Option<PathBuf>,
    /// Seed of the simulation, of the halves and of the bootstrap.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Greatest expected cost for the judged half, in the currency's unit. Default: 20 % of the cost of `everyone`.
    #[arg(long, value_name = "AMOUNT")]
    budget: Option<f64>,
    /// Share of the value that is profit before the cost of the incentive.
    #[arg(long, value_name = "SHARE", default_value_t = UpliftOptions::default().margin)]
    margin: f64,
    /// Least change of the purchase probability that the decisions must be able to show.
    #[arg(long, value_name = "CHANGE", default_value_t = UpliftOptions::default().minimum_effect)]
    minimum_effect: f64,
    /// Confidence, 0.5 to 0.999, with which the gain of a user must be above 0 for an incentive.
    #[arg(long, value_name = "SHARE", default_value_t = UpliftOptions::default().confidence)]
    confidence: f64,
    /// Bootstrap resamples of the users.
    #[arg(long, value_name = "N", value_parser = within(100..=100_000), default_value_t = 1000)]
    resamples: usize,
    #[command(flatten)]
    threads: ThreadsArgs,
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) fn incentive(args: &IncentiveArgs) -> anyhow::Result<Exit> {
    args.threads.start_pool()?;
    let budget = args.budget.unwrap_or_default();
    ensure!(budget.is_finite() && budget >= 0.0, "--budget is {budget}; it must be 0 or more");
    let options = |features: &[&str]| {
        let [recency, frequency] = RFM.map(|name| features.iter().position(|feature| *feature == name));
        ComparisonOptions {
            uplift: UpliftOptions {
                margin: args.margin,
                minimum_effect: args.minimum_effect,
                confidence: args.confidence,
            },
            budget_micros: args.budget.map(|budget| budget * MICROS),
            rfm: recency.zip(frequency).map(|(recency, frequency)| [recency, frequency]),
            resamples: args.resamples,
            seed: args.seed,
        }
    };
    let (compared, currency) = match (&args.data, args.generate) {
        (Some(data), _) => {
            let decisions = read_decisions(data)?;
            let (log, currency) = (log_of(&decisions), decisions.currency);
            let features: Vec<&str> = decisions.features.iter().map(String::as_str).collect();
            (compare_incentive_policies(&log, &options(&features), None), currency)
        }
        (None, count) => {
            let simulated = simulate_incentives(count.unwrap_or_default(), args.margin, args.seed);
            if let Some(path) = &args.save {
                save(path, &simulated)?;
            }
            let gain = |user: u32, arm: usize| simulated.gain(user as usize, arm);
            (compare_incentive_policies(&simulated.log, &options(&SIMULATED_INPUTS), Some(&gain)), String::new())
        }
    };
    let report = match compared {
        Ok(comparison) => {
            IncentiveReport { currency, refused: None, missing: Vec::new(), comparison: Some(comparison) }
        }
        Err(UpliftError::TooFew(evidence)) => IncentiveReport {
            currency,
            refused: Some(UpliftError::TooFew(evidence.clone()).to_string()),
            missing: evidence,
            comparison: None,
        },
        Err(error) => return Err(error.into()),
    };
    args.output.write(&report)?;
    Ok(Exit::answer(report.refused.is_none()))
}

fn log_of(decisions: &Decisions) -> IncentiveLog {
    let micros = |amount: f64| (amount * MICROS).round();
    let observations = decisions.rows.iter().map(|(row, _)| Observation {
        user: row.user,
        arm: row.treatment,
        propensity: row.propensity,
        has_purchase: row.has_purchase,
        value_micros: micros(row.value),
        cost_micros: micros(row.cost),
    });
    IncentiveLog {
        incentives: decisions.incentives.clone(),
        input_count: decisions.features.len(),
        inputs: decisions.rows.iter().flat_map(|(_, features)| features.iter().copied()).collect(),
        observations: observations.collect(),
    }
}

fn save(path: &std::path::Path, simulated: &SimulatedIncentives) -> anyhow::Result<()> {
    let log = &simulated.log;
    let rows = &log.observations;
    let name = |of: &Observation| of.arm.checked_sub(1).map_or("none", |index| log.incentives[index].as_str());
    let numbers = |of: &dyn Fn(&Observation) -> f64| Cells::Numbers(rows.iter().map(|row| Some(of(row))).collect());
    let mut columns = vec![
        ("user_id".to_owned(), Cells::Texts(rows.iter().map(|of| of.user.to_string()).collect())),
        ("treatment".to_owned(), Cells::Texts(rows.iter().map(|of| name(of).to_owned()).collect())),
        ("propensity".to_owned(), numbers(&|of| of.propensity)),
        ("purchase".to_owned(), Cells::Integers(rows.iter().map(|of| of.has_purchase.into()).collect())),
        ("value".to_owned(), numbers(&|of| of.value_micros / MICROS)),
        ("cost".to_owned(), numbers(&|of| of.cost_micros / MICROS)),
    ];
    for (index, feature) in SIMULATED_INPUTS.iter().enumerate() {
        let of_feature = log.inputs.iter().skip(index).step_by(log.input_count);
        columns.push(((*feature).to_owned(), Cells::Numbers(of_feature.map(|input| Some(*input)).collect())));
    }
    Ok(write_table(path, columns)?)
}

#[derive(serde::Serialize)]
struct IncentiveReport {
    /// Empty: the file names none.
    currency: String,
    /// Why there is no comparison.
    refused: Option<String>,
    /// The observations of the half that teaches, if they are too few.
    missing: Vec<Evidence>,
    comparison: Option<IncentiveComparison>,
}

impl fmt::Display for IncentiveReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(of) = &self.comparison else {
            return writeln!(f, "refused: {}", self.refused.as_deref().unwrap_or_default());
        };
        let units = |micros: f64| micros / MICROS;
        writeln!(
            f,
            "{} decisions, {} of them judge; budget {:.2} {}; best incentive for everyone: {}",
            of.rows,
            of.judged_rows,
            units(of.budget_micros),
            self.currency,
            of.best_incentive
        )?;
        writeln!(
            f,
            "{:<9} {:>8} {:>10} {:>28} {:>9} {:>28} {:>10}",
            "policy", "treated", "cost", "gain per 1,000 decisions", "true", "Qini per 1,000", "AUUC"
        )?;
        let tenths = |value: f64| {
            let text = format!("{value:.1}");
            if text == "-0.0" { "0.0".to_owned() } else { text }
        };
        let thousand = |of: &Estimate| {
            let [value, low, high] = [of.value, of.low, of.high].map(|micros| tenths(1000.0 * units(micros)));
            format!("{value} [{low}, {high}]")
        };
        let optional = |of: Option<String>| of.unwrap_or_else(|| "-".to_owned());
        for policy in &of.policies {
            writeln!(
                f,
                "{:<9} {:>8} {:>10} {:>28} {:>9} {:>28} {:>10}",
                policy.policy,
                policy.value.treated,
                tenths(units(policy.value.cost_micros.value) * of.judged_rows as f64),
                thousand(&policy.value.gain_micros),
                optional(policy.true_gain_micros.map(|gain| tenths(1000.0 * units(gain)))),
                optional(policy.qini_micros.as_ref().map(thousand)),
                optional(policy.auuc_micros.map(|of| tenths(1000.0 * units(of.value))))
            )?;
        }
        let allocation = &of.allocation;
        writeln!(
            f,
            "assignment of uplift: expected gain {:.1}, at most {:.1} is possible (duality gap {:.2}); expected cost {:.1}; \
             one more unit of the budget gains {:.2}",
            units(allocation.gain),
            units(allocation.gain_bound),
            units(allocation.duality_gap),
            units(allocation.cost),
            allocation.budget_price
        )
    }
}
